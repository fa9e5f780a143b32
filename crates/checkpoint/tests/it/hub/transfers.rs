//! How bytes arrive: redirects, tokens, broken and damaged downloads, two processes at once.

use super::*;
use imgclass_test_support::hub_server::{Fault, HubServer, sha256};

#[tokio::test(flavor = "multi_thread")]
async fn the_token_goes_to_the_hub_and_not_to_its_storage() {
    let (server, _cache, config) = hub();
    let storage = HubServer::start();
    server.store_at(&storage);
    server.require_token("secret-token");
    get(&config).await.unwrap();
    let seen = server.take_seen();
    assert!(
        !seen.is_empty()
            && seen
                .iter()
                .all(|call| call.authorization.as_deref() == Some("Bearer secret-token"))
    );
    let stored = storage.take_seen();
    assert!(
        !stored.is_empty() && stored.iter().all(|call| call.authorization.is_none()),
        "{stored:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_fails_once_is_asked_again() {
    let (server, _cache, config) = hub();
    server.fail("GET", "/revision/", 1, Fault::Status(500, ""));
    server.fail("HEAD", "model.safetensors", 1, Fault::Status(503, ""));
    server.fail("GET", "/storage/", 1, Fault::Status(502, ""));
    let files = get(&config).await.unwrap();
    assert_eq!(std::fs::read(files.weights).unwrap(), weights());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_cut_off_is_continued_where_it_broke() {
    let (server, _cache, config) = hub();
    server.fail("GET", "/storage/", 1, Fault::CutAfter(100_000));
    let files = get(&config).await.unwrap();
    assert_eq!(std::fs::read(files.weights).unwrap(), weights());
    let ranges = ranges(&server.take_seen());
    assert_eq!(ranges, ["bytes=100000-159999"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_stays_cut_off_is_never_taken_for_whole_and_a_later_run_completes_it() {
    let (server, cache, config) = hub();
    server.fail("GET", "/storage/", usize::MAX, Fault::CutAfter(50_000));
    let error = get(&config).await.unwrap_err();
    assert!(
        matches!(&error, HubError::Interrupted { file, .. } if file == "model.safetensors"),
        "{error}"
    );
    assert!(error.to_string().contains("again"), "{error}");
    for revision in ["main", COMMIT] {
        assert!(matches!(
            cached(&config, MODEL, revision, None),
            Err(HubError::NotCached { .. })
        ));
    }
    let blob = cache
        .path()
        .join("models--timm--resnet50.test/blobs")
        .join(sha256(&weights()));
    assert!(!blob.exists());

    server.heal();
    server.take_seen();
    assert_eq!(
        std::fs::read(get(&config).await.unwrap().weights).unwrap(),
        weights()
    );
    let ranges = ranges(&server.take_seen());
    assert_eq!(ranges, ["bytes=100000-159999"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_that_cannot_be_continued_is_thrown_away() {
    // One that is not the file's, one that the storage does not continue, and one longer than the
    // file.
    let mut wrong = weights();
    wrong[7] ^= 1;
    for (beginning, fault) in [
        (&wrong[..90_000], None),
        (&weights()[..90_000], Some(Fault::IgnoreRange)),
        (&[0; 200_000][..], None),
    ] {
        let (server, cache, config) = hub();
        let blobs = cache.path().join("models--timm--resnet50.test/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(
            blobs.join(format!("{}.incomplete", sha256(&weights()))),
            beginning,
        )
        .unwrap();
        if let Some(fault) = fault {
            server.fail("GET", "/storage/", usize::MAX, fault);
        }
        assert_eq!(
            std::fs::read(get(&config).await.unwrap().weights).unwrap(),
            weights()
        );
        assert_eq!(
            std::fs::read_dir(&blobs).unwrap().count(),
            2,
            "only the two blobs are left"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_what_the_hub_declared_are_refused_and_removed() {
    let mut flipped = weights();
    flipped[12_345] ^= 1;
    let cases: [(&str, Fault, &str); 3] = [
        ("/storage/", Fault::Body(flipped), "model.safetensors"),
        (
            "config.json",
            Fault::Body(br#"{"error":"later"}"#.to_vec()),
            "config.json",
        ),
        (
            "config.json",
            Fault::Body(vec![b'x'; CONFIG.len()]),
            "config.json",
        ),
    ];
    for (index, (part, fault, file)) in cases.into_iter().enumerate() {
        let (server, cache, config) = hub();
        server.fail("GET", part, usize::MAX, fault);
        let error = get(&config).await.unwrap_err();
        let corrupt = matches!(&error, HubError::Corrupt { path, .. } if path.ends_with(file));
        assert!(corrupt, "case {index}: {error}");
        for part in ["expected", "found", "weights fetch"] {
            assert!(
                error.to_string().contains(part),
                "case {index}: no {part:?} in {error}"
            );
        }
        let missing = cached(&config, MODEL, COMMIT, None);
        assert!(
            matches!(missing, Err(HubError::NotCached { .. })),
            "case {index}"
        );
        let snapshots = cache.path().join("models--timm--resnet50.test/snapshots");
        let bad = snapshots.join(COMMIT).join(file);
        assert!(
            std::fs::symlink_metadata(bad).is_err(),
            "case {index}: the bad file is still there"
        );

        server.heal();
        assert_eq!(
            std::fs::read(get(&config).await.unwrap().weights).unwrap(),
            weights()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_the_way_is_repaired_by_a_second_try() {
    let (server, _cache, config) = hub();
    server.fail(
        "GET",
        "/storage/",
        1,
        Fault::Body(b"an error page".to_vec()),
    );
    assert_eq!(
        std::fs::read(get(&config).await.unwrap().weights).unwrap(),
        weights()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_with_a_chunk_store_is_asked_for_plain_bytes() {
    let (server, _cache, config) = hub();
    server.offer_chunk_store();
    assert_eq!(
        std::fs::read(get(&config).await.unwrap().weights).unwrap(),
        weights()
    );
    assert_eq!(calls(&server.take_seen(), "GET", "xet-read-token"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_refuses_is_told_as_a_download_that_broke_off() {
    let (server, cache, config) = hub();
    server.fail("GET", "/storage/", usize::MAX, Fault::Status(403, ""));
    let error = get(&config).await.unwrap_err();
    let expected =
        matches!(&error, HubError::Interrupted { file, .. } if file == "model.safetensors");
    assert!(
        expected && error.to_string().contains("status 403"),
        "{error}"
    );
    let blobs = cache.path().join("models--timm--resnet50.test/blobs");
    assert!(!blobs.join(sha256(&weights())).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_model_is_followed_by_its_relative_redirect() {
    let (server, _cache, config) = hub();
    server.rename("timm/old-name", MODEL);
    let files = fetch(&config, "timm/old-name", "main", None, None)
        .await
        .unwrap();
    assert_eq!(std::fs::read(files.weights).unwrap(), weights());
    assert_eq!(files.revision.as_deref(), Some(COMMIT));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_download_once() {
    let (server, _cache, config) = hub();
    let (one, two) = tokio::join!(get(&config), get(&config));
    assert_eq!(one.unwrap(), two.unwrap());
    let seen = server.take_seen();
    assert_eq!(calls(&seen, "GET", "/storage/"), 1);
    assert_eq!(calls(&seen, "GET", "config.json"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_rises_to_the_declared_size() {
    let (_server, _cache, config) = hub();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let progress: Arc<imgclass_checkpoint::hub::ProgressFn> = Arc::new(move |p| {
        sink.lock()
            .unwrap()
            .push((p.file.to_owned(), p.done, p.total))
    });
    fetch(&config, MODEL, "main", None, Some(progress))
        .await
        .unwrap();
    let reports = reports.lock().unwrap();
    let size = weights().len() as u64;
    assert!(
        reports
            .iter()
            .all(|(file, _, total)| file == "model.safetensors" && *total == size)
    );
    assert!(
        reports.windows(2).all(|pair| pair[0].1 < pair[1].1),
        "{reports:?}"
    );
    assert_eq!(reports.last().map(|report| report.1), Some(size));
}

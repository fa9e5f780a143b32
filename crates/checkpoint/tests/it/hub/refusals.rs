//! What is refused, and in which words.

use super::*;
use imgclass_test_support::hub_server::{Fault, HubServer};

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_exist_are_refused_before_any_call() {
    let (server, _cache, config) = hub();
    for id in [
        "", "a/b/c", "../x", "a/..", "a b/c", "/b", "a/", "a//b", "a--b/c", "a/b.git", "-a/b",
        "a/.b", "a\\b", "ä/b", "a/b?c", "a/b%2f",
    ] {
        let error = fetch(&config, id, "main", None, None).await.unwrap_err();
        assert!(
            matches!(error, HubError::InvalidModelId { .. }),
            "{id:?}: {error}"
        );
        assert!(
            matches!(
                cached(&config, id, "main", None),
                Err(HubError::InvalidModelId { .. })
            ),
            "{id:?}"
        );
    }
    for revision in [
        "",
        "..",
        "a/../b",
        "/main",
        "main/",
        "a b",
        "-x",
        ".git",
        "a\\b",
        "a:b",
        "a\nb",
        &"x".repeat(201),
    ] {
        let error = fetch(&config, MODEL, revision, None, None)
            .await
            .unwrap_err();
        assert!(
            matches!(error, HubError::InvalidRevision { .. }),
            "{revision:?}: {error}"
        );
    }
    assert!(server.take_seen().is_empty());
    for endpoint in [
        "",
        "hub.example",
        "localhost:8080",
        "ftp://hub.example",
        "file:///etc",
    ] {
        let config = HubConfig {
            endpoint: Some(endpoint.to_owned()),
            ..config.clone()
        };
        let error = get(&config).await.unwrap_err();
        assert!(
            matches!(error, HubError::InvalidEndpoint { .. }),
            "{endpoint:?}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_out_of_reach_names_the_three_ways_on() {
    let cache = tempfile::tempdir().unwrap();
    let silent = HubServer::start();
    silent.fail("GET", "", usize::MAX, Fault::Silence);
    let short = HubLimits {
        metadata: Duration::from_millis(300),
        ..HubLimits::default()
    };
    for endpoint in [closed_port(), silent.url()] {
        let config = HubConfig {
            limits: short,
            ..config(&endpoint, cache.path())
        };
        let error = get(&config).await.unwrap_err();
        assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
        let host = endpoint.trim_start_matches("http://");
        for part in [
            "out of reach",
            host,
            MODEL,
            "retry",
            "--weights FILE",
            "weights/resnet50.safetensors",
            "--weights random",
        ] {
            assert!(error.to_string().contains(part), "no {part:?} in: {error}");
        }
    }
    assert!(
        std::fs::read_dir(cache.path()).unwrap().next().is_none(),
        "a failure left something in the cache"
    );
    let limits = HubLimits::default();
    assert!(limits.metadata * 2 + limits.connect < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_silent_in_the_middle_is_given_up() {
    let (server, _cache, config) = hub();
    let config = HubConfig {
        limits: HubLimits {
            metadata: Duration::from_millis(300),
            ..HubLimits::default()
        },
        ..config
    };
    server.fail("HEAD", "config.json", usize::MAX, Fault::Silence);
    let error = get(&config).await.unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_of_the_hub_has_its_own_error_with_advice() {
    type Check = fn(&HubError) -> bool;
    let table: [(Fault, Check, &str); 8] = [
        (
            Fault::Status(401, "RepoNotFound"),
            |e| matches!(e, HubError::AccessDenied { status: 401, .. }),
            "token",
        ),
        (
            Fault::Status(403, "GatedRepo"),
            |e| matches!(e, HubError::AccessDenied { status: 403, .. }),
            "terms",
        ),
        (
            Fault::Status(404, "RepoNotFound"),
            |e| matches!(e, HubError::ModelNotFound { .. }),
            "--model",
        ),
        (
            Fault::Status(404, "RevisionNotFound"),
            |e| matches!(e, HubError::RevisionNotFound { .. }),
            "--revision",
        ),
        (
            Fault::Status(429, ""),
            |e| matches!(e, HubError::RateLimited { .. }),
            "fewer requests",
        ),
        (
            Fault::Status(500, ""),
            |e| matches!(e, HubError::Status { status: 500, .. }),
            "--weights random",
        ),
        (
            Fault::Body(b"<html>sign in to the guest network</html>".to_vec()),
            |e| matches!(e, HubError::Protocol { .. }),
            "HF_ENDPOINT",
        ),
        (
            Fault::Body(br#"{"id":"a/b","sha":"../../etc","siblings":[]}"#.to_vec()),
            |e| matches!(e, HubError::Protocol { .. }),
            "commit",
        ),
    ];
    for (fault, expected, advice) in table {
        let (server, cache, config) = hub();
        server.fail("GET", "/revision/", usize::MAX, fault.clone());
        let error = get(&config).await.unwrap_err();
        assert!(expected(&error), "{fault:?}: {error:?}");
        assert!(
            error.to_string().contains(advice),
            "no {advice:?} in: {error}"
        );
        assert!(!format!("{error:?} {error}").contains("secret-token"));
        assert!(
            std::fs::read_dir(cache.path()).unwrap().next().is_none(),
            "{fault:?} left something in the cache"
        );
    }
    // The same from the hub's own bookkeeping.
    let (_server, _cache, config) = hub();
    assert!(matches!(
        fetch(&config, MODEL, "gone", None, None).await,
        Err(HubError::RevisionNotFound { .. })
    ));
    assert!(matches!(
        fetch(&config, "timm/other", "main", None, None).await,
        Err(HubError::ModelNotFound { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_one_file_is_told_as_such() {
    type Check = fn(&HubError) -> bool;
    let table: [(Fault, Check); 3] = [
        (Fault::Status(401, "GatedRepo"), |e| {
            matches!(e, HubError::AccessDenied { status: 401, .. })
        }),
        (Fault::Status(403, "GatedRepo"), |e| {
            matches!(e, HubError::AccessDenied { status: 403, .. })
        }),
        (Fault::Status(404, "EntryNotFound"), |e| {
            matches!(e, HubError::FileNotFound { .. })
        }),
    ];
    for (fault, expected) in table {
        let (server, _cache, config) = hub();
        server.fail("HEAD", "model.safetensors", usize::MAX, fault.clone());
        let error = get(&config).await.unwrap_err();
        assert!(expected(&error), "{fault:?}: {error:?}");
        assert!(matches!(
            cached(&config, MODEL, "main", None),
            Err(HubError::NotCached { .. })
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_chosen_by_a_fixed_rule() {
    let cases: [(&[&str], Option<&str>); 6] = [
        (
            &["model.safetensors", "other.safetensors"],
            Some("model.safetensors"),
        ),
        (
            &["resnet50.safetensors", "onnx/model.safetensors"],
            Some("resnet50.safetensors"),
        ),
        (&["a.safetensors", "b.safetensors"], None),
        (&["pytorch_model.bin"], None),
        (&["onnx/model.safetensors"], None),
        (&["..safetensors", "../../x.safetensors"], None),
    ];
    for (names, expected) in cases {
        let server = HubServer::start();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, name.as_bytes())).collect();
        server.commit(MODEL, "main", COMMIT, &files);
        server.store_at(&server);
        let cache = tempfile::tempdir().unwrap();
        let config = config(&server.url(), cache.path());
        match (get(&config).await, expected) {
            (Ok(files), Some(name)) => {
                assert!(files.weights.ends_with(name), "{names:?}");
                assert_eq!(files.config, None);
                server.take_seen();
                // That there is no config.json is remembered.
                assert_eq!(
                    fetch(&config, MODEL, COMMIT, None, None).await.unwrap(),
                    files
                );
                assert!(server.take_seen().is_empty());
            }
            (Err(HubError::NoWeights { .. }), None) => {}
            (other, _) => panic!("{names:?}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_an_answer_that_would_leave_the_cache_is_refused_and_nothing_is_written_there() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim.txt");
    std::fs::write(&victim, "precious").unwrap();
    let absolute = Box::leak(format!("\"{}\"", victim.display()).into_boxed_str());
    let table = [
        ("ETag", "\"../../../../victim.txt\""),
        ("ETag", "../../evil"),
        ("ETag", absolute),
        ("ETag", "\"..\""),
        ("ETag", "\".hidden\""),
        ("ETag", "\"a/b\""),
        ("ETag", "\"a\\b\""),
        ("ETag", "\"\""),
        ("X-Linked-Etag", "\"../../../victim.txt\""),
        ("X-Repo-Commit", "../../../../evil"),
        ("X-Repo-Commit", LATER),
    ];
    for (header, value) in table {
        let (server, cache, config) = hub();
        server.fail(
            "HEAD",
            "/resolve/",
            usize::MAX,
            Fault::Header(header, value),
        );
        let error = get(&config).await.unwrap_err();
        assert!(
            matches!(error, HubError::Protocol { .. }),
            "{value}: {error}"
        );
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        let entries = walkdir::WalkDir::new(cache.path()).into_iter().flatten();
        let links = entries.filter(|entry| entry.path_is_symlink()).count();
        assert_eq!(links, 0, "{value} made a link");
        let beside: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(beside.len(), 1, "{value}: {beside:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_given_up() {
    let (server, _cache, config) = hub();
    let mut listing = br#"{"sha":"0123456789abcdef0123456789abcdef01234567","siblings":["#.to_vec();
    listing.extend(br#"{"rfilename":"a"},"#.repeat(1 << 20));
    listing.extend(br#"{"rfilename":"model.safetensors"}]}"#);
    server.fail("GET", "/revision/", usize::MAX, Fault::Body(listing));
    let error = get(&config).await.unwrap_err();
    assert!(
        matches!(&error, HubError::Protocol { detail, .. } if detail.contains("bytes")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_in_shards_are_refused_with_the_way_to_join_them() {
    let server = HubServer::start();
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, name.as_bytes())).collect();
    server.commit(MODEL, "main", COMMIT, &files);
    let cache = tempfile::tempdir().unwrap();
    let said = get(&config(&server.url(), cache.path()))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("split") && said.contains("max_shard_size"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_absurd_size_is_not_downloaded() {
    let server = HubServer::start();
    let huge = vec![b' '; (1 << 20) + 1];
    server.commit(
        MODEL,
        "main",
        COMMIT,
        &[("config.json", &huge), ("model.safetensors", &weights())],
    );
    let cache = tempfile::tempdir().unwrap();
    let error = get(&config(&server.url(), cache.path())).await.unwrap_err();
    assert!(matches!(error, HubError::TooLarge { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_written_is_named() {
    let (_server, cache, config) = hub();
    let file = cache.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let config = HubConfig {
        cache_dir: file.clone(),
        ..config
    };
    let error = get(&config).await.unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error}");
    assert!(
        error.to_string().contains(file.to_str().unwrap())
            && error.to_string().contains("HF_HUB_CACHE"),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_so_and_leaves_nothing_that_looks_whole() {
    let (_server, cache, config) = hub();
    let blobs = cache.path().join("models--timm--resnet50.test/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = blobs.join(sha256(&weights()));
    // Every write to this device fails as on a full disk.
    let partial = blobs.join(format!("{}.incomplete", sha256(&weights())));
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = get(&config).await.unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error:?}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(!blob.exists());
    std::fs::remove_file(&partial).unwrap();
    let files = get(&config)
        .await
        .expect("with room again, a later run completes it");
    assert_eq!(std::fs::read(files.weights).unwrap(), weights());
}

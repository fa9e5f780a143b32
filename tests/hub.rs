//! Checkpoints through `hf-hub`'s real code path, against a small hub on loopback; nothing else is ever called.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "support/hub_server.rs"]
mod hub_server;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hub_server::{Fault, HubServer, Seen, sha256};
use imgclass::model::hub::{
    CheckpointFiles, HubConfig, HubError, HubLimits, cached, fetch, verify_cached,
};

const MODEL: &str = "timm/resnet50.test";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const CONFIG: &[u8] = br#"{"architecture":"resnet50"}"#;

/// Bytes that no two places of a file share.
fn weights() -> Vec<u8> {
    (0..40_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn config(endpoint: &str, cache: &Path) -> HubConfig {
    HubConfig {
        endpoint: Some(endpoint.to_owned()),
        cache_dir: cache.to_owned(),
        token: Some("secret-token".to_owned()),
        offline: false,
        limits: HubLimits::default(),
    }
}

/// A hub with one model on branch `main`, and an empty cache.
fn hub() -> (HubServer, tempfile::TempDir, HubConfig) {
    let server = HubServer::start();
    server.commit(
        MODEL,
        "main",
        COMMIT,
        &[("config.json", CONFIG), ("model.safetensors", &weights())],
    );
    // Absolute, as the real hub's: a relative one is followed as a change of name.
    server.store_at(&server);
    let cache = tempfile::tempdir().unwrap();
    let config = config(&server.url(), cache.path());
    (server, cache, config)
}

async fn get(config: &HubConfig) -> Result<CheckpointFiles, HubError> {
    fetch(config, MODEL, "main", None).await
}

fn calls(seen: &[Seen], method: &str, part: &str) -> usize {
    seen.iter()
        .filter(|call| call.method == method && call.path.contains(part))
        .count()
}

/// The ranges asked of the storage.
fn ranges(seen: &[Seen]) -> Vec<String> {
    let stored = seen.iter().filter(|call| call.path.contains("/storage/"));
    stored.filter_map(|call| call.range.clone()).collect()
}

/// An address where nothing listens.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn variables_are_read_as_every_hugging_face_tool_reads_them() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "from-home\n").unwrap();
    std::fs::write(home.path().join("other"), " from-path ").unwrap();
    let home_dir = home.path().to_str().unwrap();
    let other = home.path().join("other");
    let other = other.to_str().unwrap();

    let read = |vars: &[(&str, &str)]| {
        let vars: HashMap<String, String> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        HubConfig::from_vars(|name| vars.get(name).cloned())
    };
    let caches: [(&[(&str, &str)], &str); 6] = [
        (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
        (
            &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
            "/x/huggingface/hub",
        ),
        (
            &[("HOME", "/h"), ("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")],
            "/f/hub",
        ),
        (
            &[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")],
            "/old",
        ),
        (
            &[
                ("HF_HOME", "/f"),
                ("HUGGINGFACE_HUB_CACHE", "/old"),
                ("HF_HUB_CACHE", "/c"),
            ],
            "/c",
        ),
        (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "")], "/f/hub"),
    ];
    for (vars, expected) in caches {
        assert_eq!(read(vars).cache_dir, Path::new(expected), "{vars:?}");
    }
    let tokens: [(&[(&str, &str)], Option<&str>); 5] = [
        (&[("HF_HOME", "/nowhere")], None),
        (&[("HF_HOME", home_dir)], Some("from-home")),
        (
            &[("HF_HOME", home_dir), ("HF_TOKEN_PATH", other)],
            Some("from-path"),
        ),
        (
            &[
                ("HF_HOME", home_dir),
                ("HF_TOKEN_PATH", other),
                ("HF_TOKEN", "direct"),
            ],
            Some("direct"),
        ),
        (
            &[
                ("HF_HOME", home_dir),
                ("HF_TOKEN", "direct"),
                ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
            ],
            None,
        ),
    ];
    for (vars, expected) in tokens {
        assert_eq!(read(vars).token.as_deref(), expected, "{vars:?}");
    }
    for (value, offline) in [
        ("1", true),
        ("TRUE", true),
        ("yes", true),
        ("On", true),
        ("0", false),
        ("", false),
        ("no", false),
    ] {
        assert_eq!(
            read(&[("HF_HUB_OFFLINE", value)]).offline,
            offline,
            "{value:?}"
        );
    }
    assert_eq!(
        read(&[("HF_ENDPOINT", "http://mirror")])
            .endpoint
            .as_deref(),
        Some("http://mirror")
    );
    assert_eq!(read(&[]).endpoint, None);
    assert!(!format!("{:?}", read(&[("HF_TOKEN", "direct")])).contains("direct"));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_exist_are_refused_before_any_call() {
    let (server, _cache, config) = hub();
    for id in [
        "", "a/b/c", "../x", "a/..", "a b/c", "/b", "a/", "a//b", "a--b/c", "a/b.git", "-a/b",
        "a/.b", "a\\b", "ä/b", "a/b?c", "a/b%2f",
    ] {
        let error = fetch(&config, id, "main", None).await.unwrap_err();
        assert!(
            matches!(error, HubError::InvalidModelId { .. }),
            "{id:?}: {error}"
        );
        assert!(
            matches!(
                cached(&config, id, "main"),
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
        let error = fetch(&config, MODEL, revision, None).await.unwrap_err();
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
async fn a_checkpoint_is_fetched_whole_and_into_the_layout_that_other_tools_share() {
    let (_server, cache, config) = hub();
    let files = get(&config).await.unwrap();
    let root = cache.path().join("models--timm--resnet50.test");
    assert_eq!(
        files.weights,
        root.join("snapshots")
            .join(COMMIT)
            .join("model.safetensors")
    );
    assert_eq!(std::fs::read(&files.weights).unwrap(), weights());
    assert_eq!(
        std::fs::read(files.config.as_ref().unwrap()).unwrap(),
        CONFIG
    );
    assert_eq!(files.revision, COMMIT);
    assert_eq!(files.sha256, Some(sha256(&weights())));
    assert_eq!(
        std::fs::read_to_string(root.join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(root.join("blobs").join(sha256(&weights())).is_file());
    assert_eq!(cached(&config, MODEL, "main").unwrap(), files);
    assert_eq!(cached(&config, MODEL, COMMIT).unwrap(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_branch_costs_one_call_and_a_cached_commit_none() {
    let (server, _cache, config) = hub();
    let first = get(&config).await.unwrap();
    server.take_seen();
    assert_eq!(get(&config).await.unwrap(), first);
    assert_eq!(server.take_seen().len(), 1);
    assert_eq!(fetch(&config, MODEL, COMMIT, None).await.unwrap(), first);
    assert_eq!(
        fetch(&config, MODEL, &COMMIT.to_uppercase(), None)
            .await
            .unwrap(),
        first
    );
    assert!(server.take_seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_makes_no_call_whether_the_cache_has_it_or_not() {
    let (server, _cache, config) = hub();
    let offline = HubConfig {
        offline: true,
        ..config.clone()
    };
    let error = get(&offline).await.unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    for way in [
        "weights fetch",
        "--weights FILE",
        "weights/resnet50.safetensors",
        "--weights random",
    ] {
        assert!(error.to_string().contains(way), "{error}");
    }
    assert!(server.take_seen().is_empty());
    let files = get(&config).await.unwrap();
    server.take_seen();
    assert_eq!(get(&offline).await.unwrap(), files);
    assert!(server.take_seen().is_empty());
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
async fn the_cache_serves_while_the_hub_is_out_of_reach_or_failing() {
    let (server, _cache, config) = hub();
    let files = get(&config).await.unwrap();
    let unreachable = HubConfig {
        endpoint: Some(closed_port()),
        ..config.clone()
    };
    assert_eq!(get(&unreachable).await.unwrap(), files);
    server.fail("GET", "/revision/", usize::MAX, Fault::Status(503, ""));
    assert_eq!(get(&config).await.unwrap(), files);
    server.heal();
    // But not while the hub says clearly that there is no such thing any more.
    server.fail(
        "GET",
        "/revision/",
        usize::MAX,
        Fault::Status(404, "RepoNotFound"),
    );
    assert!(matches!(
        get(&config).await,
        Err(HubError::ModelNotFound { .. })
    ));
}

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
        fetch(&config, MODEL, "gone", None).await,
        Err(HubError::RevisionNotFound { .. })
    ));
    assert!(matches!(
        fetch(&config, "timm/other", "main", None).await,
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
            cached(&config, MODEL, "main"),
            Err(HubError::NotCached { .. })
        ));
    }
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
                assert_eq!(fetch(&config, MODEL, COMMIT, None).await.unwrap(), files);
                assert!(server.take_seen().is_empty());
            }
            (Err(HubError::NoWeights { .. }), None) => {}
            (other, _) => panic!("{names:?}: {other:?}"),
        }
    }
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
            cached(&config, MODEL, revision),
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
    // One that is not the file's, one that the storage does not continue, and one longer than the file.
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
    let cases: [(&str, Fault, &str); 4] = [
        ("/storage/", Fault::Body(flipped), "model.safetensors"),
        ("/storage/", Fault::Status(403, ""), "model.safetensors"),
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
        let missing = cached(&config, MODEL, COMMIT);
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
async fn a_chunk_store_that_does_not_answer_is_passed_by() {
    let (server, _cache, config) = hub();
    server.offer_chunk_store();
    assert_eq!(
        std::fs::read(get(&config).await.unwrap().weights).unwrap(),
        weights()
    );
    let seen = server.take_seen();
    assert_eq!(calls(&seen, "GET", "xet-read-token"), 1);
    assert_eq!(ranges(&seen), ["bytes=0-159999"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_whose_plain_way_is_closed_is_asked_in_the_usual_way() {
    for (method, part) in [("POST", "/paths-info/"), ("HEAD", "/storage/")] {
        let (server, cache, config) = hub();
        let blobs = cache.path().join("models--timm--resnet50.test/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let kept = blobs.join(format!("{}.incomplete", sha256(&weights())));
        std::fs::write(kept, &weights()[..9]).unwrap();
        server.fail(method, part, usize::MAX, Fault::Status(403, ""));
        let files = get(&config).await.unwrap();
        assert_eq!(std::fs::read(files.weights).unwrap(), weights());
        let seen = server.take_seen();
        assert!(calls(&seen, method, part) > 0 && ranges(&seen).is_empty());
    }
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
async fn a_renamed_model_is_followed_by_its_relative_redirect() {
    let (server, _cache, config) = hub();
    server.rename("timm/old-name", MODEL);
    let files = fetch(&config, "timm/old-name", "main", None).await.unwrap();
    assert_eq!(std::fs::read(files.weights).unwrap(), weights());
    assert_eq!(files.revision, COMMIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_moved_brings_its_new_commit() {
    let (server, _cache, config) = hub();
    get(&config).await.unwrap();
    let newer = vec![7; 5000];
    server.commit(
        MODEL,
        "main",
        LATER,
        &[("config.json", CONFIG), ("model.safetensors", &newer)],
    );
    server.take_seen();
    let files = get(&config).await.unwrap();
    assert_eq!(
        (
            files.revision.as_str(),
            std::fs::read(&files.weights).unwrap()
        ),
        (LATER, newer)
    );
    // The unchanged file is the same blob, so only its name was asked for.
    assert_eq!(calls(&server.take_seen(), "GET", "config.json"), 0);
    assert_eq!(
        std::fs::read(cached(&config, MODEL, COMMIT).unwrap().weights).unwrap(),
        weights()
    );
    assert_eq!(cached(&config, MODEL, "main").unwrap().revision, LATER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_moved_to_something_that_cannot_be_fetched_keeps_the_old_commit() {
    let (server, _cache, config) = hub();
    let old = get(&config).await.unwrap();
    server.commit(
        MODEL,
        "main",
        LATER,
        &[("config.json", CONFIG), ("model.safetensors", &[7; 5000])],
    );
    server.store_at(&server);
    server.fail("GET", "/storage/", usize::MAX, Fault::CutAfter(100));
    assert_eq!(get(&config).await.unwrap(), old);
    assert_eq!(cached(&config, MODEL, "main").unwrap(), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_lacks_a_part_is_completed() {
    let (server, cache, config) = hub();
    let files = get(&config).await.unwrap();
    // Another tool may have taken the weights alone.
    std::fs::remove_file(files.config.as_ref().unwrap()).unwrap();
    assert_eq!(cached(&config, MODEL, COMMIT).unwrap().config, None);
    assert_eq!(fetch(&config, MODEL, COMMIT, None).await.unwrap(), files);
    // A link whose blob was cleaned away.
    std::fs::remove_file(
        cache
            .path()
            .join("models--timm--resnet50.test/blobs")
            .join(sha256(&weights())),
    )
    .unwrap();
    assert!(matches!(
        cached(&config, MODEL, COMMIT),
        Err(HubError::NotCached { .. })
    ));
    server.take_seen();
    assert_eq!(fetch(&config, MODEL, COMMIT, None).await.unwrap(), files);
    assert_eq!(std::fs::read(&files.weights).unwrap(), weights());
    assert_eq!(calls(&server.take_seen(), "GET", "/storage/"), 1);
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

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_a_single_flipped_bit() {
    let (_server, _cache, config) = hub();
    assert!(matches!(
        verify_cached(&config, MODEL, "main"),
        Err(HubError::NotCached { .. })
    ));
    let files = get(&config).await.unwrap();
    let verified = verify_cached(&config, MODEL, "main").unwrap();
    assert_eq!(
        (verified.bytes, verified.sha256),
        (weights().len() as u64, sha256(&weights()))
    );
    let mut bytes = weights();
    bytes[99] ^= 0x10;
    std::fs::write(&files.weights, bytes).unwrap();
    let error = verify_cached(&config, MODEL, "main").unwrap_err();
    assert!(
        matches!(&error, HubError::Corrupt { expected, .. } if expected.contains(&sha256(&weights()))),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_rises_to_the_declared_size() {
    let (_server, _cache, config) = hub();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let progress: Arc<imgclass::model::hub::ProgressFn> = Arc::new(move |p| {
        sink.lock()
            .unwrap()
            .push((p.file.to_owned(), p.done, p.total))
    });
    fetch(&config, MODEL, "main", Some(progress)).await.unwrap();
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

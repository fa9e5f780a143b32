//! Checkpoints from a small hub on loopback; nothing else is ever called.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "hub/refusals.rs"]
mod refusals;
#[path = "hub/transfers.rs"]
mod transfers;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use imgclass_checkpoint::WeightsFiles;
use imgclass_checkpoint::hub::{
    HubConfig, HubError, HubLimits, cached, fetch, list, verify_cached,
};
use imgclass_test_support::hub_server::{Fault, HubServer, Seen, sha256};

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

async fn get(config: &HubConfig) -> Result<WeightsFiles, HubError> {
    fetch(config, MODEL, "main", None, None).await
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
    type Vars<'a> = &'a [(&'a str, &'a str)];
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "from-home\n").unwrap();
    std::fs::write(home.path().join("other"), " from-path ").unwrap();
    let home_dir = home.path().to_str().unwrap();
    let other = home.path().join("other");
    let other = other.to_str().unwrap();

    let read = |vars: Vars| {
        let vars: HashMap<String, String> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        HubConfig::from_vars(|name| vars.get(name).cloned())
    };
    let caches: [(Vars, &str); 6] = [
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
    let in_home: [(Vars, &str); 5] = [
        (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
        (&[("HOME", "/h"), ("HF_HUB_CACHE", "~")], "/h"),
        (&[("HOME", "/h"), ("HF_HUB_CACHE", "~other/c")], "~other/c"),
        (
            &[("SCRATCH", "/s"), ("HF_HOME", "${SCRATCH}/a$SCRATCH")],
            "/s/a/s/hub",
        ),
        (&[("HF_HUB_CACHE", "/a$/b${NOWHERE}")], "/a$/b${NOWHERE}"),
    ];
    for (vars, expected) in in_home {
        assert_eq!(read(vars).cache_dir, Path::new(expected), "{vars:?}");
    }
    let tokens: [(Vars, Option<&str>); 7] = [
        (
            &[("HF_HOME", home_dir), ("HUGGING_FACE_HUB_TOKEN", "older")],
            Some("older"),
        ),
        (
            &[("HF_TOKEN", "direct"), ("HUGGING_FACE_HUB_TOKEN", "older")],
            Some("direct"),
        ),
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
    assert_eq!(files.revision.as_deref(), Some(COMMIT));
    assert_eq!(files.declared_sha256, Some(sha256(&weights())));
    assert_eq!(
        std::fs::read_to_string(root.join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(root.join("blobs").join(sha256(&weights())).is_file());
    assert_eq!(cached(&config, MODEL, "main", None).unwrap(), files);
    assert_eq!(cached(&config, MODEL, COMMIT, None).unwrap(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_branch_costs_one_call_and_a_cached_commit_none() {
    let (server, _cache, config) = hub();
    let first = get(&config).await.unwrap();
    server.take_seen();
    assert_eq!(get(&config).await.unwrap(), first);
    assert_eq!(server.take_seen().len(), 1);
    assert_eq!(
        fetch(&config, MODEL, COMMIT, None, None).await.unwrap(),
        first
    );
    assert_eq!(
        fetch(&config, MODEL, &COMMIT.to_uppercase(), None, None)
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
async fn offline_without_a_branch_names_the_commits_that_are_cached() {
    let (_server, cache, config) = hub();
    get(&config).await.unwrap();
    std::fs::remove_dir_all(cache.path().join("models--timm--resnet50.test/refs")).unwrap();
    let offline = HubConfig {
        offline: true,
        ..config
    };
    let said = get(&offline).await.unwrap_err().to_string();
    assert!(
        said.contains(COMMIT) && said.contains("--revision"),
        "{said}"
    );
    fetch(&offline, MODEL, COMMIT, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_written_is_used_with_what_another_tool_put_into_it() {
    let (server, cache, config) = hub();
    let files = get(&config).await.unwrap();
    // Other tools leave neither our notes nor our locks. Files in the places of the folders keep
    // even root from making them, as a read-only file system does.
    let notes = cache.path().join("models--timm--resnet50.test/.no_exist");
    let locks = cache.path().join(".locks");
    for folder in [&notes, &locks] {
        std::fs::remove_dir_all(folder).unwrap();
        std::fs::write(folder, "").unwrap();
    }
    assert_eq!(get(&config).await.unwrap(), files);
    // What is newer on the hub cannot be written, so what is cached is served.
    let newer = [7; 50];
    server.commit(MODEL, "main", LATER, &[("model.safetensors", &newer)]);
    server.store_at(&server);
    assert_eq!(get(&config).await.unwrap(), files);
    for file in [&notes, &locks] {
        std::fs::remove_file(file).unwrap();
    }
    let later = get(&config).await.unwrap().revision;
    assert_eq!(later.as_deref(), Some(LATER));
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
            files.revision.as_deref(),
            std::fs::read(&files.weights).unwrap()
        ),
        (Some(LATER), newer)
    );
    // The unchanged file is the same blob, so only its name was asked for.
    assert_eq!(calls(&server.take_seen(), "GET", "config.json"), 0);
    assert_eq!(
        std::fs::read(cached(&config, MODEL, COMMIT, None).unwrap().weights).unwrap(),
        weights()
    );
    assert_eq!(
        cached(&config, MODEL, "main", None)
            .unwrap()
            .revision
            .as_deref(),
        Some(LATER)
    );
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
    assert_eq!(cached(&config, MODEL, "main", None).unwrap(), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_lacks_a_part_is_completed() {
    let (server, cache, config) = hub();
    let files = get(&config).await.unwrap();
    // Another tool may have taken the weights alone.
    std::fs::remove_file(files.config.as_ref().unwrap()).unwrap();
    assert_eq!(cached(&config, MODEL, COMMIT, None).unwrap().config, None);
    assert_eq!(
        fetch(&config, MODEL, COMMIT, None, None).await.unwrap(),
        files
    );
    // A link whose blob was cleaned away.
    std::fs::remove_file(
        cache
            .path()
            .join("models--timm--resnet50.test/blobs")
            .join(sha256(&weights())),
    )
    .unwrap();
    assert!(matches!(
        cached(&config, MODEL, COMMIT, None),
        Err(HubError::NotCached { .. })
    ));
    server.take_seen();
    assert_eq!(
        fetch(&config, MODEL, COMMIT, None, None).await.unwrap(),
        files
    );
    assert_eq!(std::fs::read(&files.weights).unwrap(), weights());
    assert_eq!(calls(&server.take_seen(), "GET", "/storage/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_a_single_flipped_bit() {
    let (_server, _cache, config) = hub();
    assert!(matches!(
        verify_cached(&config, MODEL, "main", None),
        Err(HubError::NotCached { .. })
    ));
    let files = get(&config).await.unwrap();
    let verified = verify_cached(&config, MODEL, "main", None).unwrap();
    assert_eq!(
        (verified.bytes, verified.sha256),
        (weights().len() as u64, sha256(&weights()))
    );
    let mut bytes = weights();
    bytes[99] ^= 0x10;
    std::fs::write(&files.weights, bytes).unwrap();
    let error = verify_cached(&config, MODEL, "main", None).unwrap_err();
    assert!(
        matches!(&error, HubError::Corrupt { expected, .. } if expected.contains(&sha256(&weights()))),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_the_cache_names_model_commit_branches_file_size_and_digest() {
    let (server, cache, config) = hub();
    assert_eq!(list(&config).unwrap(), []);
    let files = get(&config).await.unwrap();
    server.commit(
        MODEL,
        "feature/x",
        LATER,
        &[("model.safetensors", &[7; 5000])],
    );
    server.store_at(&server);
    fetch(&config, MODEL, "feature/x", None, None)
        .await
        .unwrap();
    // A link whose blob was cleaned away, and another kind of repository.
    let folder = cache.path().join("models--a--b/snapshots").join(COMMIT);
    std::fs::create_dir_all(&folder).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", folder.join("model.safetensors")).unwrap();
    std::fs::create_dir_all(cache.path().join("datasets--a--b/snapshots")).unwrap();
    let found = list(&config).unwrap();
    let rows: Vec<_> = found
        .iter()
        .map(|w| (&*w.model, &*w.revision, &w.names[..], &*w.file, w.bytes))
        .collect();
    let (main, feature) = (["main".to_owned()], ["feature/x".to_owned()]);
    let size = weights().len() as u64;
    assert_eq!(
        rows,
        [
            (MODEL, COMMIT, &main[..], "model.safetensors", size),
            (MODEL, LATER, &feature[..], "model.safetensors", 5000),
        ]
    );
    assert_eq!(found[0].path, files.weights);
    assert_eq!(found[0].sha256, Some(sha256(&weights())));
    assert!(found[0].written.ends_with('Z'), "{}", found[0].written);
}

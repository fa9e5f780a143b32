//! Brings a checkpoint from the Hugging Face hub into the shared cache and says where its files
//! are.
//!
//! The cache is the one that all Hugging Face tools share
//! (`models--owner--name/{blobs,refs,snapshots}`): what another tool has downloaded is used, and
//! what is downloaded here serves the others.
//!
//! Where the rules are:
//!
//! - A revision is pinned to one commit before any file is fetched.
//! - Every name that an answer holds is checked before it becomes part of a path: commits, file
//!   names and entity tags.
//! - Every phase has a time limit, and every answer a largest size.
//! - Sizes and digests are compared with those that the hub declared.
//! - Only one process at a time fills a repository.
//! - A cache that cannot be written serves what it has.
//! - "Offline" means that not even a client is built.
//!
//! [`fetch`] asks `remote` what there is and lets `transfer` download what `cache` does not have.
//! `names` has the checks.

mod cache;
mod config;
mod error;
mod list;
mod names;
mod remote;
mod transfer;

use std::sync::Arc;

use cache::{CachedRepo, Snapshot};
pub use config::{HubConfig, HubLimits};
pub use error::HubError;
pub use list::{CachedWeights, list};
pub(crate) use names::shard_advice;
use remote::{Listing, Remote};

use crate::source::WeightsFiles;

#[cfg(fuzzing)]
pub(crate) fn fuzz(body: &[u8]) {
    remote::fuzz(body);
}

/// The name of the file that describes a checkpoint. In timm's form it includes the preprocessing.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// The name of the file that describes the preprocessing of a checkpoint in transformers' form.
pub(crate) const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// The files that are fetched beside the weights, if the repository has them.
const DESCRIPTIONS: [&str; 2] = [CONFIG_FILE, PREPROCESSOR_FILE];

/// The progress of one file's download, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadProgress<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// The bytes received so far. The number falls when a broken download starts again.
    pub done: u64,
    /// The size of the file in bytes as the hub declared it; 0 if it did not.
    pub total: u64,
}

/// A function that is told about the progress of a download. The transfer itself calls it, so it
/// must return at once.
pub type ProgressFn = dyn Fn(DownloadProgress<'_>) + Send + Sync;

/// What [`verify_cached`] has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The files that were read.
    pub files: WeightsFiles,
    /// The size of the weights in bytes.
    pub bytes: u64,
    /// The SHA-256 of the weights on disk, 64 lower-case hexadecimal digits. It equals
    /// [`WeightsFiles::declared_sha256`] if that is known; else there was nothing to compare it with.
    pub sha256: String,
}

/// Makes sure that the checkpoint `model_id` at `revision` (branch, tag or commit) is in the cache,
/// and returns where its files are.
///
/// | what the cache holds | calls to the hub |
/// |---|---|
/// | a complete checkpoint, and `revision` is a whole commit hash | none |
/// | anything, and [`HubConfig::offline`] is set | none |
/// | a complete checkpoint, and `revision` is a branch or tag | one: which commit is it now? |
/// | less | that one, then two for each missing file |
///
/// The weights are `file` if one is named, else `model.safetensors`, else the only `*.safetensors`
/// file at the top of the repository, else `resnet50.safetensors`. A hub that is out of reach or
/// failing, a download that breaks off, and a cache that cannot be written are no errors while the
/// cache holds the revision: that copy is used, with a warning in the log.
///
/// It must run on a multi-threaded Tokio runtime.
///
/// # Errors
/// [`HubError`], whose texts say what to do. Nothing unfinished or unverified is left where a later
/// call would take it for whole.
pub async fn fetch(
    config: &HubConfig,
    model_id: &str,
    revision: &str,
    file: Option<&str>,
    progress: Option<Arc<ProgressFn>>,
) -> Result<WeightsFiles, HubError> {
    let revision = names::check(model_id, revision)?;
    let repo = CachedRepo::new(&config.cache_dir, model_id);
    let local = repo.resolve(&revision, file);
    if config.offline {
        return take_local(config, &repo, model_id, &revision, file, local);
    }
    if let Some(snapshot) = &local
        && names::is_commit(&revision)
        && snapshot.unsettled.is_empty()
    {
        return Ok(snapshot.files.clone());
    }
    match fetch_online(config, &repo, model_id, &revision, file, progress).await {
        Ok(files) => Ok(files),
        Err(error) => match local {
            Some(snapshot) if error.is_transient() || error.is_about_cache() => {
                tracing::warn!(
                    model = model_id,
                    commit = snapshot.commit,
                    cause = error.brief(),
                    "the newest checkpoint cannot be fetched now: going on with the cached one"
                );
                Ok(snapshot.files)
            }
            _ => Err(error),
        },
    }
}

/// Finds a checkpoint in the cache. It calls nobody and writes nothing.
///
/// # Errors
/// [`HubError::NotCached`], or an error for an invalid name.
pub fn cached(
    config: &HubConfig,
    model_id: &str,
    revision: &str,
    file: Option<&str>,
) -> Result<WeightsFiles, HubError> {
    let revision = names::check(model_id, revision)?;
    let repo = CachedRepo::new(&config.cache_dir, model_id);
    let local = repo.resolve(&revision, file);
    take_local(config, &repo, model_id, &revision, file, local)
}

/// Reads the whole cached checkpoint and compares it with what the hub declared when it was
/// downloaded. It calls nobody, and blocks while it reads.
///
/// # Errors
/// [`HubError::NotCached`], [`HubError::Corrupt`], [`HubError::Cache`] if a file cannot be read, or
/// an error for an invalid name.
pub fn verify_cached(
    config: &HubConfig,
    model_id: &str,
    revision: &str,
    file: Option<&str>,
) -> Result<Verified, HubError> {
    let files = cached(config, model_id, revision, file)?;
    for path in files.config.iter().chain(&files.preprocessor) {
        cache::check_json(path)?;
    }
    let (bytes, sha256) = cache::digest(&files.weights)?;
    if let Some(declared) = &files.declared_sha256
        && *declared != sha256
    {
        return Err(HubError::Corrupt {
            path: files.weights,
            expected: format!("SHA-256 {declared}"),
            found: format!("SHA-256 {sha256} over {bytes} bytes"),
        });
    }
    Ok(Verified {
        files,
        bytes,
        sha256,
    })
}

/// Returns the cached files, or an error if there are none.
fn take_local(
    config: &HubConfig,
    repo: &CachedRepo,
    model_id: &str,
    revision: &str,
    file: Option<&str>,
    local: Option<Snapshot>,
) -> Result<WeightsFiles, HubError> {
    let Some(snapshot) = local else {
        return Err(HubError::NotCached {
            model: model_id.to_owned(),
            revision: revision.to_owned(),
            cache_dir: config.cache_dir.clone(),
            commits: repo.commits(file),
        });
    };
    if snapshot.unsettled.contains(&CONFIG_FILE) {
        tracing::warn!(
            model = model_id,
            commit = snapshot.commit,
            "the cache has the weights but not {CONFIG_FILE}: default preprocessing will be used; \
             `imgclass weights fetch` completes the cache"
        );
    }
    Ok(snapshot.files)
}

/// Asks the hub for the commit of the revision, and downloads the files that the cache lacks.
async fn fetch_online(
    config: &HubConfig,
    repo: &CachedRepo,
    model_id: &str,
    revision: &str,
    file: Option<&str>,
    progress: Option<Arc<ProgressFn>>,
) -> Result<WeightsFiles, HubError> {
    let remote = Remote::new(config, model_id, revision)?;
    let listing = remote.listing(file).await?;
    let (commit, weights) = (&listing.commit, &listing.weights);
    let there = || repo.at_commit(commit, Some(weights));
    let lacks = |snapshot: &Snapshot| {
        let wanted = |name: &&&str| listing.descriptions.contains(*name);
        snapshot.unsettled.iter().find(wanted).is_some()
    };
    if let Some(snapshot) = there().filter(|snapshot| !lacks(snapshot)) {
        // A cache that another user or a container's image has filled may be read-only.
        let noted = note_contents(repo, &listing).and_then(|()| repo.point_ref(revision, commit));
        if let Err(error) = noted {
            tracing::debug!(cause = error.brief(), "the hub cache cannot be written");
        }
        return Ok(snapshot.files);
    }

    let _only_us = repo.lock().await?;
    // Whoever held the lock may have brought what was missing, so each file is looked for again.
    // Descriptions first, so that weights in a snapshot mean that they are there too.
    for name in &listing.descriptions {
        transfer::ensure(&remote, repo, commit, name, None).await?;
    }
    note_contents(repo, &listing)?;
    transfer::ensure(&remote, repo, commit, weights, progress).await?;
    // Last: a branch must not point at a commit that is not all there.
    repo.point_ref(revision, commit)?;
    there()
        .map(|snapshot| snapshot.files)
        .ok_or_else(|| HubError::NotCached {
            model: model_id.to_owned(),
            revision: listing.commit.clone(),
            cache_dir: config.cache_dir.clone(),
            commits: Vec::new(),
        })
}

/// Records which descriptions a commit does not have and which of its weights are meant, for later
/// calls without the hub.
fn note_contents(repo: &CachedRepo, listing: &Listing) -> Result<(), HubError> {
    for name in DESCRIPTIONS {
        if !listing.descriptions.contains(&name) {
            repo.note_absent(&listing.commit, name)?;
        }
    }
    repo.note_choice(&listing.commit, &listing.choice)
}

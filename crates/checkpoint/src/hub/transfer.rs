//! Downloads one file into the cache: from where an earlier try ended, within limits, and compared
//! with what the hub declared before anybody can take it for whole.
//!
//! Bytes come by plain HTTP. They are written to `blobs/<etag>.incomplete`, where the hub's other
//! tools look for them too, and get their name only when they have been checked.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use reqwest::StatusCode;
use tokio::time::timeout;

use super::cache::{self, CachedRepo};
use super::remote::{Declared, Remote, no_answer};
use super::{DESCRIPTIONS, DownloadProgress, HubError, ProgressFn};

/// The largest weights file, in bytes. ResNet-152 in f32 is 241 MB.
const MAX_WEIGHTS_BYTES: u64 = 2 << 30;
/// The largest configuration, in bytes. timm's is under 1 kB; transformers' with 1000 labels is 70
/// kB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Makes sure that the cache holds one file of a commit, whole and as the hub declared it. The
/// repository must be locked.
pub(super) async fn ensure(
    remote: &Remote,
    repo: &CachedRepo,
    commit: &str,
    file: &str,
    progress: Option<Arc<ProgressFn>>,
) -> Result<(), HubError> {
    let pointer = repo.pointer(commit, file);
    if pointer.is_file() {
        return Ok(());
    }
    let declared = remote.describe(commit, file).await?;
    check_size(file, declared.size.unwrap_or(0))?;
    let blob = repo.blob(&declared.etag);
    if !blob.is_file() {
        let _lock = repo.lock_blob(&declared.etag).await?;
        // Whoever held the lock may have brought it.
        if !blob.is_file() {
            let download = Download {
                remote,
                commit,
                file,
                declared: &declared,
                progress,
            };
            download.run(repo, &pointer, &blob).await?;
        }
    }
    repo.link(commit, file, &declared.etag)
}

/// One file that is to be downloaded.
struct Download<'a> {
    remote: &'a Remote,
    commit: &'a str,
    file: &'a str,
    declared: &'a Declared,
    progress: Option<Arc<ProgressFn>>,
}

impl Download<'_> {
    /// Downloads the file to `blob`, and once more where the first try broke off or brought
    /// something else. `pointer` is the file's place in the cache, for errors.
    async fn run(&self, repo: &CachedRepo, pointer: &Path, blob: &Path) -> Result<(), HubError> {
        let partial = repo.partial(&self.declared.etag);
        let mut tries = 0;
        loop {
            let continues = std::fs::metadata(&partial).is_ok_and(|kept| kept.len() > 0);
            let outcome = match self.append(&partial, pointer).await {
                Ok(()) => self.check(&partial, pointer).await,
                Err(error) => Err(error),
            };
            tries += 1;
            let error = match outcome {
                Ok(()) => {
                    return std::fs::rename(&partial, blob).map_err(|source| HubError::Cache {
                        path: blob.to_owned(),
                        source,
                    });
                }
                Err(error) => error,
            };
            let again = match error {
                HubError::Corrupt { .. } => {
                    cache::remove(&partial);
                    // The fault may be that of the part that was there before.
                    tries < 2 || continues
                }
                HubError::Interrupted { .. } => tries < 2,
                _ => false,
            };
            if !again {
                return Err(error);
            }
            let (file, cause) = (self.file, error.brief());
            tracing::warn!(file, cause, "trying the download again");
        }
    }

    /// Appends what is missing to a partial download. One that cannot be gone on with is replaced.
    async fn append(&self, partial: &Path, pointer: &Path) -> Result<(), HubError> {
        let cannot_write = |source| HubError::Cache {
            path: partial.to_owned(),
            source,
        };
        cache::create_parent(partial).map_err(cannot_write)?;
        let kept = std::fs::metadata(partial).map_or(0, |metadata| metadata.len());
        // Only a digest can tell whether two parts belong together.
        let size = self
            .declared
            .size
            .filter(|_| self.declared.sha256().is_some());
        let start = size.filter(|size| kept <= *size).map_or(0, |_| kept);
        if start > 0 && Some(start) == size {
            return Ok(());
        }
        let answer = self
            .remote
            .open(self.commit, self.file, start, self.declared.size)
            .await?;
        let start = match answer.status() {
            StatusCode::PARTIAL_CONTENT if continues(&answer, start) => start,
            StatusCode::OK => 0,
            _ => {
                cache::remove(partial);
                return Err(self.broke_off("the storage does not continue it"));
            }
        };
        let mut out = OpenOptions::new()
            .append(true)
            .create(true)
            .open(partial)
            .map_err(cannot_write)?;
        if start == 0 && kept > 0 {
            out.set_len(0).map_err(cannot_write)?;
        }
        // An answer that says how long it is has come as a whole if it ends.
        let says_length = answer.content_length().is_some();
        let stall = self.remote.limits.stall;
        let mut stream = answer.bytes_stream();
        let mut done = start;
        loop {
            let next = timeout(stall, stream.next())
                .await
                .map_err(|_| self.broke_off(no_answer(stall)))?;
            let Some(chunk) = next else {
                break;
            };
            let chunk = chunk
                .map_err(|error| self.remote.doing(Some(self.file)).explain_transport(error))?;
            done += chunk.len() as u64;
            check_size(self.file, done)?;
            if let Some(size) = self.declared.size.filter(|size| done > *size) {
                return Err(HubError::Corrupt {
                    path: pointer.to_owned(),
                    expected: format!("{size} bytes"),
                    found: "more".to_owned(),
                });
            }
            out.write_all(&chunk).map_err(cannot_write)?;
            self.report(done);
        }
        match self.declared.size {
            Some(size) if done < size && !says_length => {
                Err(self.broke_off(format!("{done} of {size} bytes came")))
            }
            _ => Ok(()),
        }
    }

    /// Compares what was downloaded with what the hub declared.
    async fn check(&self, partial: &Path, pointer: &Path) -> Result<(), HubError> {
        let (partial, pointer) = (partial.to_owned(), pointer.to_owned());
        let declared = self.declared.clone();
        let is_json = DESCRIPTIONS.contains(&self.file);
        tokio::task::spawn_blocking(move || {
            cache::check_download(&partial, &pointer, &declared, is_json)
        })
        .await
        .map_err(|error| HubError::Client {
            detail: error.to_string(),
        })?
    }

    fn report(&self, done: u64) {
        if let Some(report) = &self.progress {
            report(DownloadProgress {
                file: self.file,
                done,
                total: self.declared.size.unwrap_or(0),
            });
        }
    }

    fn broke_off(&self, detail: impl Into<String>) -> HubError {
        HubError::Interrupted {
            file: self.file.to_owned(),
            detail: detail.into(),
        }
    }
}

/// Returns whether a partial answer begins at byte `start`.
fn continues(answer: &reqwest::Response, start: u64) -> bool {
    let range = answer.headers().get(reqwest::header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

/// Checks that a size in bytes is one that a file of this kind can have.
fn check_size(file: &str, size: u64) -> Result<(), HubError> {
    let limit = if DESCRIPTIONS.contains(&file) {
        MAX_CONFIG_BYTES
    } else {
        MAX_WEIGHTS_BYTES
    };
    if size > limit {
        return Err(HubError::TooLarge {
            file: file.to_owned(),
            limit,
        });
    }
    Ok(())
}

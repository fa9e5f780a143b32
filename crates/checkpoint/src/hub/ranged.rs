//! Downloads a large file by plain HTTP from where an earlier try ended. A blob is only left if it
//! has been verified.
//!
//! `hf-hub` starts every download at the first byte. It also goes through the hub's chunk store
//! wherever the hub offers it, which mirrors and firewalls often break. Its streams, which are used
//! here, do neither.

use std::fs::OpenOptions;
use std::io::Write;

use futures_util::StreamExt;
use hf_hub::repository::RepoTreeEntry;
use tokio::time::timeout;

use super::cache::{self, CachedRepo, Partial};
use super::transfer::{Remote, off_thread};
use super::watch::{Watch, check_size, no_answer};
use super::{HubError, names};

/// The byte at which a download begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// Begin where an earlier try ended. If there was none, do not download.
    Kept,
    /// Begin where an earlier try ended, or else at the first byte.
    KeptOrFirstByte,
    /// Begin at the first byte.
    FirstByte,
}

impl Remote {
    /// Completes the blob of the watched file, if `begin` and the hub allow it. `Remote::download`
    /// then only links it. A partial download that turns out not to be of this file is removed, and
    /// nothing is completed.
    pub(super) async fn complete_blob(
        &self,
        repo: &CachedRepo,
        commit: &str,
        begin: Begin,
        watch: &Watch,
    ) -> Result<(), HubError> {
        let file = watch.file();
        let kept = repo.partials();
        if begin == Begin::Kept && kept.is_empty() {
            return Ok(());
        }
        let Some((sha256, size)) = self.declared(commit, file).await else {
            return Ok(());
        };
        check_size(file, size)?;
        let Some(_lock) = repo.try_lock_blob(&sha256) else {
            return Ok(());
        };
        let partial = match kept.into_iter().find(|partial| partial.sha256 == sha256) {
            Some(partial) if begin != Begin::FirstByte && partial.len < size => partial,
            Some(partial) => {
                // Not truncated: whoever may still be writing to it goes on writing to no file.
                cache::remove(&partial.path);
                Partial { len: 0, ..partial }
            }
            None => repo.partial(&sha256),
        };
        if partial.len == 0 && (begin == Begin::Kept || partial.blob.exists()) {
            return Ok(());
        }
        tracing::info!(
            file,
            have = partial.len,
            size,
            "downloading in the plain way"
        );
        self.append(commit, &partial, size, watch).await?;
        let path = partial.path.clone();
        let (bytes, found) = off_thread(move || cache::digest(&path)).await?;
        if found == sha256 {
            return std::fs::rename(&partial.path, &partial.blob).map_err(|source| {
                HubError::Cache {
                    path: partial.blob,
                    source,
                }
            });
        }
        tracing::warn!(
            file,
            bytes,
            found,
            expected = sha256,
            "what was put together is not the file: starting again"
        );
        cache::remove(&partial.path);
        Ok(())
    }

    /// Returns the SHA-256 and the size in bytes that the hub declares of a large file. Any doubt
    /// means `None`: the file is then not downloaded in this way.
    async fn declared(&self, commit: &str, file: &str) -> Option<(String, u64)> {
        let question = self
            .repo
            .get_paths_info()
            .paths(vec![file.to_owned()])
            .revision(commit)
            .send();
        let entries = timeout(self.limits.metadata, question).await.ok()?.ok()?;
        entries.into_iter().find_map(|entry| match entry {
            RepoTreeEntry::File {
                path,
                lfs: Some(lfs),
                size,
                ..
            } if path == file => {
                // The digest becomes part of a path.
                lfs.sha256
                    .filter(|sha256| names::is_hex(sha256, 64))
                    .map(|sha256| (sha256, size))
            }
            _ => None,
        })
    }

    /// Appends the bytes from `partial.len` up to `size`.
    async fn append(
        &self,
        commit: &str,
        partial: &Partial,
        size: u64,
        watch: &Watch,
    ) -> Result<(), HubError> {
        let file = watch.file();
        let doing = self.doing(Some(file));
        let broke_off = |detail: String| HubError::Interrupted {
            file: file.to_owned(),
            detail,
        };
        let cannot_write = |source| HubError::Cache {
            path: partial.path.clone(),
            source,
        };
        let question = self
            .repo
            .download_file_stream()
            .filename(file)
            .revision(commit)
            .range(partial.len..size)
            .send();
        let (_, mut stream) = timeout(self.limits.metadata, question)
            .await
            .map_err(|_| doing.unreachable(no_answer(self.limits.metadata)))?
            .map_err(|error| doing.explain(error))?;
        let mut out = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&partial.path)
            .map_err(cannot_write)?;
        let mut done = partial.len;
        watch.declare(size);
        while done < size {
            let next = timeout(self.limits.stall, stream.next())
                .await
                .map_err(|_| broke_off(no_answer(self.limits.stall)))?;
            let Some(chunk) = next else {
                return Err(broke_off(format!("{done} of {size} bytes came")));
            };
            let chunk = chunk.map_err(|error| doing.explain(error))?;
            // A storage that ignores the range sends more than was asked for.
            let wanted =
                usize::try_from(size - done).map_or(chunk.len(), |left| left.min(chunk.len()));
            out.write_all(&chunk[..wanted]).map_err(cannot_write)?;
            done += wanted as u64;
            watch.update(done);
        }
        Ok(())
    }
}

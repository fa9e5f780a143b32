//! The folder of one repository in the shared hub cache: which files are there, whether they are
//! whole, and who may fill it.
//!
//! The layout is `huggingface_hub`'s: `refs/<branch>` holds a commit hash,
//! `snapshots/<commit>/<file>` is a link to `blobs/<etag>`, and the etag of a large file is its
//! SHA-256. A file that a commit is known not to have leaves an empty `.no_exist/<commit>/<file>`.
//! Where links do not exist (Windows) files are copies and no digest is recorded.
//!
//! `hf-hub` names the folders of repositories and snapshots. It checks no name, so only names that
//! have been checked come here.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::{Cache, CacheRepo, Repo};
use sha2::{Digest, Sha256};

use super::remote::Declared;
use super::{CONFIG_FILE, DESCRIPTIONS, HubError, PREPROCESSOR_FILE, names};
use crate::source::WeightsFiles;

/// How long to wait while another process fills the repository. At 170 kB/s a checkpoint of 100 MB
/// takes as long.
const LOCK_WAIT: Duration = Duration::from_secs(600);
/// How often to look whether the other process is done.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// The end of a partial download's name. `huggingface_hub` downloads to `<etag>.incomplete` beside
/// the final blob, too.
const PARTIAL_SUFFIX: &str = ".incomplete";

/// The folder of a repository in the cache. It need not exist.
pub(super) struct CachedRepo {
    model: String,
    layout: CacheRepo,
    root: PathBuf,
    locks: PathBuf,
}

/// A checkpoint that is in the cache.
pub(super) struct Snapshot {
    pub(super) files: WeightsFiles,
    pub(super) commit: String,
    /// The descriptions that are neither there nor known not to exist. Only the hub can tell about
    /// them.
    pub(super) unsettled: Vec<&'static str>,
}

impl CachedRepo {
    /// Returns the folder of a model, whose id must have been checked.
    pub(super) fn new(cache_dir: &Path, model_id: &str) -> Self {
        let repo = Repo::model(model_id.to_owned());
        let folder = repo.folder_name();
        Self {
            model: model_id.to_owned(),
            layout: Cache::new(cache_dir.to_owned()).repo(repo),
            root: cache_dir.join(&folder),
            locks: cache_dir.join(".locks").join(folder),
        }
    }

    /// Returns the cached checkpoint that a checked revision means, as far as the cache knows.
    /// `file` is the name of the weights file, if one is asked for.
    pub(super) fn resolve(&self, revision: &str, file: Option<&str>) -> Option<Snapshot> {
        if names::is_commit(revision) {
            return self.at_commit(revision, file);
        }
        self.at_commit(&self.read_ref(revision)?, file)
    }

    /// Returns the cached checkpoint of one commit, if its weights are there.
    pub(super) fn at_commit(&self, commit: &str, file: Option<&str>) -> Option<Snapshot> {
        let folder = self.layout.pointer_path(commit);
        let present: Vec<String> = fs::read_dir(&folder)
            .ok()?
            .flatten()
            // Follows links: one that leads nowhere is not a file.
            .filter(|entry| entry.path().is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        let names = || present.iter().map(String::as_str);
        let has = |name: &str| names().any(|present| present == name);
        // What was cached by name must not pass for the repository's own choice.
        let noted = fs::read_to_string(self.choice(commit)).ok();
        let asked = file.or(noted.as_deref().filter(|_| !has(names::WEIGHTS_FILE)));
        let weights = folder.join(names::choose_weights(names(), asked).ok()?);
        let settled = |name: &str| has(name) || self.no_exist(commit, name).is_file();
        Some(Snapshot {
            unsettled: DESCRIPTIONS
                .into_iter()
                .filter(|name| !settled(name))
                .collect(),
            commit: commit.to_owned(),
            files: WeightsFiles {
                declared_sha256: declared_sha256(&weights),
                weights,
                config: has(CONFIG_FILE).then(|| folder.join(CONFIG_FILE)),
                preprocessor: has(PREPROCESSOR_FILE).then(|| folder.join(PREPROCESSOR_FILE)),
                model: self.model.clone(),
                revision: Some(commit.to_owned()),
            },
        })
    }

    /// Returns where a file of a commit is, or will be.
    pub(super) fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.layout.pointer_path(commit).join(file)
    }

    /// Returns where the bytes of a file are, or will be. The entity tag must have been checked.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Returns where a download is kept until it is whole.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.root
            .join("blobs")
            .join(format!("{etag}{PARTIAL_SUFFIX}"))
    }

    /// Puts a blob into a commit under a file's name: by a link, or by a copy where there are no
    /// links.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.pointer(commit, file);
        // Made beside and renamed, so that a link that leads nowhere is replaced.
        let beside = pointer.with_file_name(format!(".imgclass-{}.tmp", std::process::id()));
        create_parent(&pointer)
            .and_then(|()| make_link(&self.blob(etag), &beside))
            .and_then(|()| fs::rename(&beside, &pointer))
            .map_err(|source| HubError::Cache {
                path: pointer,
                source,
            })
    }

    /// Waits for the lock that the hub's other tools hold while they download this blob. It ends
    /// with the returned file.
    pub(super) async fn lock_blob(&self, etag: &str) -> Result<File, HubError> {
        self.lock_file(&format!("{etag}.lock")).await
    }

    /// Waits until only this process may fill the repository. The lock ends with the returned file,
    /// or with the process.
    pub(super) async fn lock(&self) -> Result<File, HubError> {
        self.lock_file("imgclass.lock").await
    }

    async fn lock_file(&self, name: &str) -> Result<File, HubError> {
        let path = self.locks.join(name);
        let file = open_lock(&path).map_err(|source| HubError::Cache {
            path: path.clone(),
            source,
        })?;
        let mut waited = Duration::ZERO;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(source)) => return Err(HubError::Cache { path, source }),
                Err(TryLockError::WouldBlock) if waited >= LOCK_WAIT => {
                    return Err(HubError::Locked { path });
                }
                Err(TryLockError::WouldBlock) => {
                    if waited.is_zero() {
                        tracing::info!(lock = %path.display(), "another process is filling the hub cache: waiting for it");
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                    waited += LOCK_POLL;
                }
            }
        }
    }

    /// Returns the commits whose weights are in the cache, sorted.
    pub(super) fn commits(&self, file: Option<&str>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join("snapshots")) else {
            return Vec::new();
        };
        let names = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let mut commits: Vec<String> = names
            .filter(|name| names::is_commit(name) && self.at_commit(name, file).is_some())
            .collect();
        commits.sort();
        commits
    }

    /// Records that `revision` now means `commit`, for later calls without the hub.
    pub(super) fn point_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if names::is_commit(revision) || self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        // Written beside and renamed: a reader never sees half a hash.
        let beside = path.with_file_name(format!(".imgclass-{}.tmp", std::process::id()));
        create_parent(&path)
            .and_then(|()| fs::write(&beside, commit))
            .and_then(|()| fs::rename(&beside, &path))
            .map_err(|source| HubError::Cache { path, source })
    }

    /// Records that a commit does not have one of the descriptions.
    pub(super) fn note_absent(&self, commit: &str, name: &str) -> Result<(), HubError> {
        write(self.no_exist(commit, name), "")
    }

    /// Records which weights file of a commit is meant if none is named; an empty name means that
    /// there is no such file. What is cached does not show the name, because it may be a file that
    /// somebody named.
    pub(super) fn note_choice(&self, commit: &str, weights: &str) -> Result<(), HubError> {
        match weights {
            names::WEIGHTS_FILE => Ok(()),
            weights => write(self.choice(commit), weights),
        }
    }

    fn read_ref(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim().to_ascii_lowercase();
        names::is_hex(&commit, 40).then_some(commit)
    }

    /// Returns the empty file that records that a commit does not have a file.
    fn no_exist(&self, commit: &str, name: &str) -> PathBuf {
        self.root.join(".no_exist").join(commit).join(name)
    }

    /// Returns where the choice of a commit's weights is recorded: beside our lock, out of other
    /// tools' way.
    fn choice(&self, commit: &str) -> PathBuf {
        self.locks.join(format!("imgclass-{commit}.weights"))
    }
}

/// Writes a file and makes its folder. A file that says the same already is left alone.
fn write(path: PathBuf, text: &str) -> Result<(), HubError> {
    if fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    create_parent(&path)
        .and_then(|()| fs::write(&path, text))
        .map_err(|source| HubError::Cache { path, source })
}

/// Compares a download with what the hub declared: the digest if there is one, else the size. A JSON
/// file must also be JSON. `pointer` is the file's place in the cache, for errors.
pub(super) fn check_download(
    download: &Path,
    pointer: &Path,
    declared: &Declared,
    is_json: bool,
) -> Result<(), HubError> {
    let (bytes, found) = digest(download)?;
    let differs = declared.size.is_some_and(|size| size != bytes);
    let (expected, found) = match declared.sha256() {
        Some(sha256) if sha256 != found => (
            format!("SHA-256 {sha256}"),
            format!("{bytes} bytes with SHA-256 {found}"),
        ),
        None if differs => (
            format!("{} bytes", declared.size.unwrap_or(0)),
            format!("{bytes} bytes"),
        ),
        _ if is_json => {
            return check_json(download).map_err(|error| match error {
                HubError::Corrupt {
                    expected, found, ..
                } => HubError::Corrupt {
                    path: pointer.to_owned(),
                    expected,
                    found,
                },
                other => other,
            });
        }
        _ => return Ok(()),
    };
    Err(HubError::Corrupt {
        path: pointer.to_owned(),
        expected,
        found,
    })
}

/// Checks that a file holds a JSON object.
pub(super) fn check_json(path: &Path) -> Result<(), HubError> {
    let text = fs::read(path).map_err(|source| HubError::Cache {
        path: path.to_owned(),
        source,
    })?;
    let found = match serde_json::from_slice::<serde_json::Value>(&text) {
        Ok(serde_json::Value::Object(_)) => return Ok(()),
        Ok(_) => "another JSON value".to_owned(),
        Err(error) => format!("{} bytes that are not JSON ({error})", text.len()),
    };
    Err(HubError::Corrupt {
        path: path.to_owned(),
        expected: "a JSON object".to_owned(),
        found,
    })
}

/// Returns a file's size in bytes and its SHA-256 in lower-case hexadecimal digits.
pub(super) fn digest(path: &Path) -> Result<(u64, String), HubError> {
    let cannot_read = |source| HubError::Cache {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(cannot_read)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer).map_err(cannot_read)?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        hasher.update(&buffer[..count]);
    }
    Ok((bytes, hex::encode(hasher.finalize())))
}

/// Returns the digest that a link into `blobs` records in its target's name. Only large files have
/// one.
pub(super) fn declared_sha256(pointer: &Path) -> Option<String> {
    let target = fs::read_link(pointer).ok()?;
    let name = target.file_name()?.to_str()?;
    names::is_hex(name, 64).then(|| name.to_ascii_lowercase())
}

fn open_lock(path: &Path) -> io::Result<File> {
    create_parent(path)?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Makes `link` lead to the blob beside it in the cache. The link is relative, so that a cache can
/// be moved.
#[cfg(unix)]
fn make_link(blob: &Path, link: &Path) -> io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    let target = Path::new("../../blobs").join(name);
    match std::os::unix::fs::symlink(&target, link) {
        // Left by a process that ended and had this one's number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(link)?;
            std::os::unix::fs::symlink(&target, link)
        }
        other => other,
    }
}

#[cfg(not(unix))]
fn make_link(blob: &Path, link: &Path) -> io::Result<()> {
    fs::copy(blob, link).map(drop)
}

pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Removes a file that need not exist.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a bad file from the hub cache");
    }
}

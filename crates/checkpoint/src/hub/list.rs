//! Lists the weights in the cache by names, links and sizes, without opening them.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{HubConfig, HubError, cache, names};

/// A weights file in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedWeights {
    /// The model, `owner/name`.
    pub model: String,
    /// The commit, 40 hexadecimal digits.
    pub revision: String,
    /// The branches and tags that mean this commit, as far as the cache knows.
    pub names: Vec<String>,
    /// The file's name.
    pub file: String,
    /// The path of the file.
    pub path: PathBuf,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// When the file was written, such as `2026-01-31T12:00:00Z`; empty if the file system does not
    /// say.
    pub written: String,
    /// The SHA-256 that the hub declared, if the cache records one.
    pub sha256: Option<String>,
}

/// Returns every safetensors file of every model in the cache, sorted by model, commit and name. It
/// calls nobody.
///
/// # Errors
/// [`HubError::Cache`] if the cache is there and cannot be read.
pub fn list(config: &HubConfig) -> Result<Vec<CachedWeights>, HubError> {
    let root = &config.cache_dir;
    let folders = match fs::read_dir(root) {
        Ok(folders) => folders,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(HubError::Cache {
                path: root.clone(),
                source,
            });
        }
    };
    let mut found: Vec<CachedWeights> = folders
        .flatten()
        .filter_map(|folder| {
            let name = folder.file_name().into_string().ok()?;
            let model = name.strip_prefix("models--")?.replace("--", "/");
            Some(list_model(&model, &folder.path()))
        })
        .flatten()
        .collect();
    found.sort_by(|a, b| (&a.model, &a.revision, &a.file).cmp(&(&b.model, &b.revision, &b.file)));
    Ok(found)
}

/// Returns the safetensors files of one model.
fn list_model(model: &str, folder: &Path) -> Vec<CachedWeights> {
    let refs = read_refs(&folder.join("refs"));
    let commits = fs::read_dir(folder.join("snapshots")).into_iter().flatten();
    let commits = commits.flatten().filter_map(|entry| {
        let commit = entry.file_name().into_string().ok()?;
        names::is_commit(&commit).then(|| (commit, entry.path()))
    });
    let files = commits.flat_map(|(commit, folder)| {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.map(move |file| (commit.clone(), file.path()))
    });
    files
        .filter_map(|(revision, path)| {
            let file = path.file_name()?.to_str()?.to_owned();
            // Follows the link: one that leads nowhere is not listed.
            let metadata = fs::metadata(&path).ok()?;
            if !file.ends_with(".safetensors") || !metadata.is_file() {
                return None;
            }
            let written = metadata.modified().map(humantime::format_rfc3339_seconds);
            let named = refs.iter().filter(|(_, commit)| *commit == revision);
            Some(CachedWeights {
                model: model.to_owned(),
                names: named.map(|(name, _)| name.clone()).collect(),
                revision,
                sha256: cache::declared_sha256(&path),
                file,
                path,
                bytes: metadata.len(),
                written: written.map_or_else(|_| String::new(), |time| time.to_string()),
            })
        })
        .collect()
}

/// Returns the names below `refs`, which may have slashes in them, and their commits.
fn read_refs(folder: &Path) -> Vec<(String, String)> {
    let files = WalkDir::new(folder).into_iter().flatten();
    let mut refs: Vec<(String, String)> = files
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| {
            let name = entry.path().strip_prefix(folder).ok()?.to_str()?.to_owned();
            let commit = fs::read_to_string(entry.path()).ok()?;
            Some((name, commit.trim().to_ascii_lowercase()))
        })
        .collect();
    refs.sort();
    refs
}

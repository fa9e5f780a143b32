//! Which model ids, revisions and file names are accepted, before any of them becomes part of a path or URL; never touches disk or network.

use super::{CONFIG_FILE, HubError};

/// The name under which the hub's libraries store unsharded weights.
const WEIGHTS_FILE: &str = "model.safetensors";

/// The hub's own bound on a repository's name, in characters (`huggingface_hub`'s `validate_repo_id`); an owner has the same here.
const MAX_ID_PART: usize = 96;

/// Git allows more; no branch or tag in use comes near.
const MAX_REVISION: usize = 200;

/// Refuses an invalid model id or revision; returns the revision with a whole commit hash in lower case.
pub(super) fn check(model_id: &str, revision: &str) -> Result<String, HubError> {
    if let Err(why) = check_model_id(model_id) {
        return Err(HubError::InvalidModelId {
            id: model_id.to_owned(),
            why,
        });
    }
    if let Err(why) = check_revision(revision) {
        return Err(HubError::InvalidRevision {
            revision: revision.to_owned(),
            why,
        });
    }
    if is_hex(revision, 40) {
        Ok(revision.to_ascii_lowercase())
    } else {
        Ok(revision.to_owned())
    }
}

/// The rules of `huggingface_hub`'s `validate_repo_id`.
fn check_model_id(id: &str) -> Result<(), &'static str> {
    if id.is_empty() {
        return Err("it is empty");
    }
    if id.matches('/').count() > 1 {
        return Err("it has more than one '/'");
    }
    if id.contains("..") || id.contains("--") {
        return Err("'..' and '--' are not allowed");
    }
    if id.ends_with(".git") {
        return Err("it must not end in '.git'");
    }
    for part in id.split('/') {
        if part.is_empty() {
            return Err("the owner or the name is empty");
        }
        if part.len() > MAX_ID_PART {
            return Err("the owner or the name is longer than 96 characters");
        }
        if !part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        {
            return Err("only letters, digits, '-', '_' and '.' are allowed");
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err("the owner and the name must not begin or end with '-' or '.'");
        }
    }
    Ok(())
}

/// Git's rules for reference names, as far as they keep a name inside its folder and its URL.
fn check_revision(revision: &str) -> Result<(), &'static str> {
    if revision.is_empty() {
        return Err("it is empty");
    }
    if revision.len() > MAX_REVISION {
        return Err("it is longer than 200 bytes");
    }
    if revision
        .bytes()
        .any(|b| b.is_ascii_control() || b" ~^:?*[\\".contains(&b))
    {
        return Err("spaces, control characters and any of ~^:?*[\\ are not allowed");
    }
    if revision.contains("..") || revision.starts_with('-') {
        return Err("it must not contain '..' nor begin with '-'");
    }
    if revision
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.'))
    {
        return Err("between slashes there must be a name that does not begin with '.'");
    }
    Ok(())
}

/// Whether a checked revision is a whole commit hash, which can never come to mean other files.
pub(super) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40) && !revision.bytes().any(|b| b.is_ascii_uppercase())
}

/// Whether `text` is exactly `digits` hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Picks the weights among file names: `model.safetensors`, or else the only safetensors file at the top.
/// On failure, says what safetensors files there are.
pub(super) fn choose_weights<'a>(names: impl Iterator<Item = &'a str>) -> Result<String, String> {
    let mut found: Vec<&str> = names
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    found.sort_unstable();
    if found.contains(&WEIGHTS_FILE) {
        return Ok(WEIGHTS_FILE.to_owned());
    }
    let top: Vec<&str> = found
        .iter()
        .copied()
        .filter(|name| is_plain(name))
        .collect();
    match top[..] {
        [only] => Ok(only.to_owned()),
        _ if found.is_empty() => Err("no *.safetensors file".to_owned()),
        _ => {
            let shown = found.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if found.len() > 5 { ", ..." } else { "" };
            Err(format!(
                "{} safetensors file(s): {shown}{more}",
                found.len()
            ))
        }
    }
}

/// Whether the listing names the checkpoint's configuration.
pub(super) fn has_config<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name == CONFIG_FILE)
}

/// A file name without folders that is safe to join to a path.
fn is_plain(name: &str) -> bool {
    !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
}

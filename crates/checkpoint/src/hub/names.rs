//! Checks model ids, revisions and file names before any of them becomes part of a path or URL.

use super::HubError;

/// The name under which the hub's libraries store unsharded weights.
pub(super) const WEIGHTS_FILE: &str = "model.safetensors";

/// The weights that are meant if a repository holds several networks, as `lmz/candle-resnet` does.
const RESNET50_FILE: &str = "resnet50.safetensors";

/// The hub's own bound on a repository's name, in characters (`huggingface_hub`'s
/// `validate_repo_id`). Here it holds for an owner, too.
const MAX_ID_PART: usize = 96;

/// The longest revision, in bytes. Git allows more, but no branch or tag in use comes near.
const MAX_REVISION: usize = 200;

/// The longest entity tag that names a blob, in bytes.
const MAX_ETAG: usize = 128;

/// Checks a model id and a revision. Returns the revision, in lower case if it is a whole commit
/// hash.
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

/// Checks a model id by the rules of `huggingface_hub`'s `validate_repo_id`.
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

/// Checks a revision by Git's rules for reference names, as far as they keep a name inside its
/// folder and its URL.
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

/// Returns whether a checked revision is a whole commit hash, which can never come to mean other
/// files.
pub(super) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40) && !revision.bytes().any(|b| b.is_ascii_uppercase())
}

/// Returns whether `text` is exactly `digits` hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Returns whether an entity tag can be the name of a file in the cache: short, and without
/// separators or a leading dot. The hub's own are 40 or 64 hexadecimal digits.
pub(super) fn is_blob_name(etag: &str) -> bool {
    !etag.is_empty() && etag.len() <= MAX_ETAG && is_plain(etag)
}

/// Returns a text of a stranger's for a message: in quotes, its control characters escaped, and
/// short.
pub(super) fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    format!("{start:?}")
}

/// Chooses the weights among file names: the one that is asked for, else `model.safetensors`, else
/// the only safetensors file at the top, else `resnet50.safetensors` of several. The error says
/// which files there are.
pub(super) fn choose_weights<'a>(
    names: impl Iterator<Item = &'a str>,
    asked: Option<&str>,
) -> Result<String, String> {
    let names: Vec<&str> = names.collect();
    let is_weights = |name: &str| name.ends_with(".safetensors");
    let mut top: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| is_weights(name) && is_plain(name))
        .collect();
    top.sort_unstable();
    if let Some(asked) = asked {
        return match top.contains(&asked) {
            true => Ok(asked.to_owned()),
            false => Err(format!("no {asked}, but {}", listed(&top))),
        };
    }
    let usual = [WEIGHTS_FILE, RESNET50_FILE];
    match (usual.into_iter().find(|name| top.contains(name)), &top[..]) {
        (Some(WEIGHTS_FILE), _) => Ok(WEIGHTS_FILE.to_owned()),
        (_, [only]) => Ok((*only).to_owned()),
        (Some(usual), _) => Ok(usual.to_owned()),
        (None, []) => Err(describe_alternative(&names)),
        (None, _) => Err(listed(&top)),
    }
}

/// Describes the files of a repository that has no safetensors file at the top.
fn describe_alternative(names: &[&str]) -> String {
    let convertible = [".bin", ".pth", ".pt", ".h5", ".keras"];
    let other = names
        .iter()
        .find(|name| is_plain(name) && convertible.iter().any(|end| name.ends_with(end)));
    match other {
        Some(other) => format!(
            "no *.safetensors file, but {other}: download that, turn it into one with `imgclass weights convert {other}` and name the result with `--weights`"
        ),
        None => "no *.safetensors file at the top".to_owned(),
    }
}

fn listed(files: &[&str]) -> String {
    let shown = files.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let more = if files.len() > 5 { ", ..." } else { "" };
    let advice = files.iter().find_map(|file| shard_advice(file));
    let advice = advice.map_or_else(String::new, |advice| format!(" ({advice})"));
    format!("{} safetensors file(s): {shown}{more}{advice}", files.len())
}

/// Returns what to do about a file that is one of several shards, such as
/// `model-00001-of-00002.safetensors`, or the index of such files; `None` for other files.
pub(crate) fn shard_advice(file: &str) -> Option<&'static str> {
    let is_shard = file
        .strip_suffix(".safetensors")
        .and_then(|stem| stem.rsplit_once("-of-"))
        .is_some_and(|(_, count)| count.len() == 5 && count.bytes().all(|b| b.is_ascii_digit()));
    (is_shard || file.ends_with(".safetensors.index.json")).then_some(
        "the weights are split into several files, which are not read: save them as one, for \
         example with transformers' model.save_pretrained(folder, max_shard_size=\"2GB\")",
    )
}

/// Returns whether a file name has no folders and is safe to join to a path.
pub(super) fn is_plain(name: &str) -> bool {
    !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
}

//! The configuration of the hub: where it and its cache are and how long to wait, as the usual
//! environment variables say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to reach the hub and where its cache lies.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's base URL (http or https); `None` for the public hub.
    pub endpoint: Option<String>,
    /// The folder that holds `models--owner--name` folders.
    pub cache_dir: PathBuf,
    /// The access token, which is sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// Whether the hub must not be called. What the cache does not have is an error then.
    pub offline: bool,
    /// How long to wait for the hub.
    pub limits: HubLimits,
}

/// How long to wait for the hub. Together the first two keep "the hub is out of reach" under 30
/// seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLimits {
    /// The time to open one connection. It holds for the hub's storage too, where each of three
    /// tries gets as much.
    pub connect: Duration,
    /// The time for one question about files, with all its retries.
    pub metadata: Duration,
    /// The time without a byte during a plain download. A whole download has no limit: it takes as
    /// long as the line needs.
    pub stall: Duration,
}

impl Default for HubLimits {
    /// Returns 5 s, 12 s and 30 s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            metadata: Duration::from_secs(12),
            stall: Duration::from_secs(30),
        }
    }
}

impl HubConfig {
    /// Reads the process's environment; see [`HubConfig::from_vars`].
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Reads the variables that every Hugging Face tool honours. An empty variable counts as unset.
    ///
    /// - endpoint: `HF_ENDPOINT`
    /// - cache: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`,
    ///   `XDG_CACHE_HOME/huggingface/hub`, `HOME/.cache/huggingface/hub`
    /// - token: none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set, else `HF_TOKEN`,
    ///   `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, the file `token` in `HF_HOME`
    /// - offline: `HF_HUB_OFFLINE` is `1`, `true`, `yes` or `on`, in any case
    ///
    /// In paths, a leading `~` is the home folder, and `$NAME` and `${NAME}` are variables.
    #[must_use]
    pub fn from_vars(vars: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| vars(name).filter(|value| !value.is_empty());
        let home = hf_home(&get);
        let cache_dir = get("HF_HUB_CACHE")
            .or_else(|| get("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| home.join("hub"), |path| expand(&path, &get));
        let offline = get("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "true" | "yes" | "on"
            )
        });
        Self {
            endpoint: get("HF_ENDPOINT"),
            cache_dir,
            token: token(&get, &home),
            offline,
            limits: HubLimits::default(),
        }
    }
}

/// Returns the folder in which Hugging Face tools keep their files.
fn hf_home(get: &impl Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(home) = get("HF_HOME") {
        return expand(&home, get);
    }
    if let Some(cache) = get("XDG_CACHE_HOME") {
        return expand(&cache, get).join("huggingface");
    }
    let home = get("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    home.join(".cache").join("huggingface")
}

/// Replaces a leading `~` by the home folder and variables by their values, as the hub's other tools
/// do. What is unknown stays as it is.
fn expand(path: &str, get: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let rest = path
        .strip_prefix('~')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let mut text = match (rest, get("HOME")) {
        (Some(rest), Some(home)) => home + rest,
        _ => path.to_owned(),
    };
    let mut from = 0;
    while let Some(start) = text[from..].find('$').map(|at| at + from) {
        let after = &text[start + 1..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, length) = match after
            .strip_prefix('{')
            .and_then(|rest| rest.split_once('}'))
        {
            Some((name, _)) => (name, name.len() + 3),
            None => {
                let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
                (&after[..end], end + 1)
            }
        };
        let value = Some(name).filter(|name| !name.is_empty()).and_then(get);
        from = start + value.as_ref().map_or(1, String::len);
        if let Some(value) = value {
            text.replace_range(start..start + length, &value);
        }
    }
    PathBuf::from(text)
}

/// Returns the access token, if there is one.
fn token(get: &impl Fn(&str) -> Option<String>, home: &Path) -> Option<String> {
    if get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    get("HF_TOKEN")
        .or_else(|| get("HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| get("HF_TOKEN_PATH").and_then(|path| read(&expand(&path, get))))
        .or_else(|| read(&home.join("token")))
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

/// Shows whether there is a token, but not the token.
impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("offline", &self.offline)
            .field("limits", &self.limits)
            .finish()
    }
}

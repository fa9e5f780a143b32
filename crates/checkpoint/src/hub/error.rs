//! The errors of the hub. Each text says what to do, and none holds a token or a signed URL.

use std::error::Error;
use std::io;
use std::path::PathBuf;

/// What someone without the hub can do.
const WITHOUT_HUB: &str = "Ways on: (1) retry when the hub can be reached; (2) use a local checkpoint: `--weights FILE`, \
     or put it at weights/resnet50.safetensors; (3) `--weights random` tries the interface with untrained weights";

/// A checkpoint could not be brought into the cache, or not be found there.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The model id cannot name a repository. The hub was not called.
    #[error(
        "{id:?} is not a model id: {why}. It looks like `owner/name`, for example timm/resnet50.tv2_in1k"
    )]
    InvalidModelId {
        /// The id as given.
        id: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The revision cannot name a branch, tag or commit. The hub was not called.
    #[error(
        "{revision:?} is not a revision: {why}. Use a branch, a tag or a commit hash, for example main"
    )]
    InvalidRevision {
        /// The revision as given.
        revision: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The endpoint is no http or https URL. The hub was not called.
    #[error("the hub endpoint {endpoint:?} is not an http:// or https:// URL: correct HF_ENDPOINT")]
    InvalidEndpoint {
        /// The endpoint as given.
        endpoint: String,
    },
    /// The HTTP client could not be built. The hub was not called.
    #[error(
        "cannot build a client for the hub: {detail}. Are the system's CA certificates installed?"
    )]
    Client {
        /// The client's own words.
        detail: String,
    },
    /// The hub or its storage does not answer, and the cache does not have the checkpoint.
    #[error(
        "the hub is out of reach at {host} ({detail}), and {model} is not in the cache. {WITHOUT_HUB}"
    )]
    Unreachable {
        /// The model asked for.
        model: String,
        /// Host and port that did not answer.
        host: String,
        /// What the connection said.
        detail: String,
    },
    /// The cache does not have the checkpoint, and the hub must not be asked.
    #[error(
        "{model} at revision {revision} is not in the cache at {}{}, and the hub is not asked \
         (offline, or only the cache was wanted). Fetch it with `imgclass weights fetch`, HF_HUB_OFFLINE unset. {WITHOUT_HUB}",
        cache_dir.display(),
        other_commits(commits)
    )]
    NotCached {
        /// The model asked for.
        model: String,
        /// The revision asked for.
        revision: String,
        /// The cache looked at.
        cache_dir: PathBuf,
        /// The commits of the model that the cache does have.
        commits: Vec<String>,
    },
    /// The hub refuses access (status 401 or 403): the model is private, gated or misspelt, or the
    /// token is bad.
    #[error("the hub refuses access to {model} (status {status}{detail}): {}", access_advice(*token_sent))]
    AccessDenied {
        /// The model asked for.
        model: String,
        /// 401 or 403.
        status: u16,
        /// The hub's words, beginning with `: `, or nothing.
        detail: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The hub knows no such repository.
    #[error(
        "the hub has no model {model}: check the spelling of `--model`; a private one needs HF_TOKEN"
    )]
    ModelNotFound {
        /// The model asked for.
        model: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "the hub has no revision {revision} of {model}: check `--revision` (a branch, a tag or a whole commit hash)"
    )]
    RevisionNotFound {
        /// The model asked for.
        model: String,
        /// The revision asked for.
        revision: String,
    },
    /// The repository has no weights that can be used, or more than one candidate.
    #[error(
        "{model} at {commit} has {found}; needed is model.safetensors, resnet50.safetensors, or exactly one *.safetensors file at the top. \
         Name one with `--weights-file`, choose another `--model` or `--revision`, or download a file and name it with `--weights FILE`"
    )]
    NoWeights {
        /// The model asked for.
        model: String,
        /// The commit looked at.
        commit: String,
        /// What there is instead.
        found: String,
    },
    /// The hub listed a file and then did not have it.
    #[error(
        "the hub lists {file} in {model} but does not have it: retry, or choose another `--revision`"
    )]
    FileNotFound {
        /// The model asked for.
        model: String,
        /// The file asked for.
        file: String,
    },
    /// The hub answered with a status that is not an answer.
    #[error("the hub answered with status {status}{detail}. {WITHOUT_HUB}")]
    Status {
        /// The status.
        status: u16,
        /// The hub's words, beginning with `: `, or nothing.
        detail: String,
    },
    /// The hub has had too many requests (status 429).
    #[error("the hub asks for fewer requests{}: wait, or set HF_TOKEN, whose limit is higher. {WITHOUT_HUB}", wait(*retry_after_s))]
    RateLimited {
        /// How long the hub asks to wait, in seconds, where it says.
        retry_after_s: Option<u64>,
    },
    /// The answer is not one of a hub: a proxy's page, or a mirror that lacks a part.
    #[error(
        "what answers at {host} does not speak as the hub does ({detail}): check HF_ENDPOINT and any proxy"
    )]
    Protocol {
        /// The endpoint.
        host: String,
        /// What was wrong.
        detail: String,
    },
    /// A download broke off. The part that came is not taken for the file.
    #[error(
        "the download of {file} broke off ({detail}): run it again, it goes on where it can. {WITHOUT_HUB}"
    )]
    Interrupted {
        /// The file's name in the repository.
        file: String,
        /// What the connection said.
        detail: String,
    },
    /// A file is larger than any checkpoint of this kind. It was not downloaded.
    #[error(
        "{file} has more than {limit} bytes, which no ResNet checkpoint needs: check `--model`"
    )]
    TooLarge {
        /// The file's name in the repository.
        file: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// A file is not the one that the hub declared. A download that fails so is removed from the
    /// cache.
    #[error(
        "{} is corrupt: expected {expected}, found {found}. Run `imgclass weights fetch` again; \
         if the file is still there, remove it first",
        path.display()
    )]
    Corrupt {
        /// The file in the cache.
        path: PathBuf,
        /// What the hub declared.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Another process holds the repository in the cache for too long.
    #[error("another process has been filling the cache for a long time (it holds {}): wait for it or stop it, then retry", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot use the hub cache at {}: {source}. Make it writable, free space, or name another folder with HF_HUB_CACHE", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HubError {
    /// Returns what happened in a few words, without advice, for the log line of an error that was
    /// recovered from.
    pub(super) fn brief(&self) -> String {
        match self {
            Self::Unreachable { host, detail, .. } => format!("{host} is out of reach: {detail}"),
            Self::AccessDenied { status, detail, .. } | Self::Status { status, detail } => {
                format!("status {status}{detail}")
            }
            Self::RateLimited { .. } => "status 429: too many requests".to_owned(),
            Self::Protocol { detail, .. } | Self::Interrupted { detail, .. } => detail.clone(),
            Self::Corrupt {
                expected, found, ..
            } => format!("expected {expected}, found {found}"),
            other => other.to_string(),
        }
    }

    /// Returns whether the cache could not be used, so that the hub is not to blame.
    pub(super) fn is_about_cache(&self) -> bool {
        matches!(self, Self::Cache { .. } | Self::Locked { .. })
    }

    /// Returns whether the same call may succeed later with nothing changed on this side.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::RateLimited { .. } | Self::Interrupted { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// What was being done when a call failed. The same failure means different things at different
/// times.
pub(super) struct Doing<'a> {
    pub(super) model: &'a str,
    pub(super) revision: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) token_sent: bool,
    /// The file that the call is about; `None` while asking about the repository.
    pub(super) file: Option<&'a str>,
}

impl Doing<'_> {
    pub(super) fn unreachable(&self, detail: impl Into<String>) -> HubError {
        HubError::Unreachable {
            model: self.model.to_owned(),
            host: self.endpoint.to_owned(),
            detail: detail.into(),
        }
    }

    /// Returns the error for an answer that is no success. `code` is the hub's `X-Error-Code`,
    /// `message` its own words.
    pub(super) fn refused(
        &self,
        status: u16,
        code: Option<&str>,
        message: Option<&str>,
        retry_after_s: Option<u64>,
    ) -> HubError {
        let model = self.model.to_owned();
        match (status, code, self.file) {
            (401 | 403, ..) => HubError::AccessDenied {
                model,
                status,
                detail: said(message),
                token_sent: self.token_sent,
            },
            // The hub answers 404 for all three and tells them apart in a header.
            (404, Some("RevisionNotFound"), _) => HubError::RevisionNotFound {
                model,
                revision: self.revision.to_owned(),
            },
            (404, Some("RepoNotFound"), _) | (404, _, None) => HubError::ModelNotFound { model },
            (404, _, Some(file)) => HubError::FileNotFound {
                model,
                file: file.to_owned(),
            },
            (429, ..) => HubError::RateLimited { retry_after_s },
            (300..=399, ..) => HubError::Protocol {
                host: self.endpoint.to_owned(),
                detail: format!("status {status}"),
            },
            _ => HubError::Status {
                status,
                detail: said(message),
            },
        }
    }

    /// Returns the error for a call without an answer, or with one that broke off.
    pub(super) fn explain_transport(&self, error: reqwest::Error) -> HubError {
        let host = error
            .url()
            .and_then(|url| {
                Some(format!(
                    "{}:{}",
                    url.host_str()?,
                    url.port_or_known_default()?
                ))
            })
            .unwrap_or_else(|| self.endpoint.to_owned());
        // Without the URL: the hub's storage puts a signature into it.
        let error = error.without_url();
        let detail = chain(&error);
        if error.is_connect() || (error.is_timeout() && self.file.is_none()) {
            return HubError::Unreachable {
                model: self.model.to_owned(),
                host,
                detail,
            };
        }
        if error.is_redirect() || (error.is_decode() && self.file.is_none()) {
            return HubError::Protocol { host, detail };
        }
        self.broke_off(detail)
    }

    fn broke_off(&self, detail: String) -> HubError {
        match self.file {
            Some(file) => HubError::Interrupted {
                file: file.to_owned(),
                detail,
            },
            None => self.unreachable(detail),
        }
    }
}

/// Returns the texts of an error and of its causes, each of them once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

/// Returns a remote message, kept short and on one line because anyone may have written it.
fn said(message: Option<&str>) -> String {
    let Some(message) = message.map(str::trim).filter(|text| !text.is_empty()) else {
        return String::new();
    };
    let line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    format!(": {line}")
}

fn other_commits(commits: &[String]) -> String {
    match commits {
        [] => String::new(),
        [one] => format!(" (there is the commit {one}: name it with `--revision`)"),
        several => format!(
            " (there are the commits {}: name one with `--revision`)",
            several.join(", ")
        ),
    }
}

fn access_advice(token_sent: bool) -> &'static str {
    if token_sent {
        "check the spelling of `--model`, that the token is valid, and that its account has accepted the model's terms on the hub"
    } else {
        "check the spelling of `--model`; a private or gated model needs a token in HF_TOKEN, whose account has accepted its terms"
    }
}

fn wait(retry_after_s: Option<u64>) -> String {
    retry_after_s.map_or_else(String::new, |seconds| format!(" for {seconds} s"))
}

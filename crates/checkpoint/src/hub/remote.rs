//! Speaks the hub's HTTP interface: which commit and files a revision has, what a file is, and its
//! bytes.
//!
//! Nothing of an answer is trusted. Every name in it is checked before it becomes part of a path,
//! every answer has a largest size, and every question has a time limit.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{CONTENT_LENGTH, ETAG, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::error::Doing;
use super::{DESCRIPTIONS, HubConfig, HubError, HubLimits, names};

/// The public hub.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// The number of tries after the first, for connections that fail and for answers of the kind "not
/// now" (status 500, 502, 503 and 504).
const RETRIES: u32 = 2;

/// The pause before the first further try. It doubles with each.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The largest answer about a repository, in bytes. One with 100,000 files has some 5 MB.
const MAX_INFO_BYTES: usize = 16 << 20;

/// The largest part of an error's text that is read, in bytes.
const MAX_ERROR_BYTES: usize = 16 << 10;

/// How often a relative redirect is followed. A model that got another name needs one.
const MAX_REDIRECTS: usize = 5;

/// One model at one revision on the hub.
pub(super) struct Remote {
    /// Follows redirects, as downloads from the hub's storage need.
    client: Client,
    /// Follows none: the hub describes a file in the headers of the redirect to its storage.
    direct: Client,
    endpoint: Url,
    token: Option<String>,
    pub(super) limits: HubLimits,
    model: String,
    revision: String,
    host: String,
}

/// What the hub says about a revision.
pub(super) struct Listing {
    /// The commit that the revision means now.
    pub(super) commit: String,
    /// The file name of the weights.
    pub(super) weights: String,
    /// The weights that are meant if none are named; empty if there are none.
    pub(super) choice: String,
    /// Those of [`DESCRIPTIONS`] that the revision has.
    pub(super) descriptions: Vec<&'static str>,
}

/// What the hub declares of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    /// The name of the file's blob in the cache. It is a plain name; for a large file it is its
    /// SHA-256.
    pub(super) etag: String,
    /// The size in bytes, if it is declared.
    pub(super) size: Option<u64>,
}

impl Declared {
    /// Returns the SHA-256 of the whole file, if it is declared.
    pub(super) fn sha256(&self) -> Option<String> {
        names::is_hex(&self.etag, 64).then(|| self.etag.to_ascii_lowercase())
    }
}

impl Remote {
    /// Builds the client and calls nobody. The model id and the revision must have been checked.
    pub(super) fn new(
        config: &HubConfig,
        model_id: &str,
        revision: &str,
    ) -> Result<Self, HubError> {
        let text = config.endpoint.as_deref().unwrap_or(PUBLIC_HUB);
        let endpoint = Url::parse(text).ok();
        let endpoint = endpoint.and_then(|url| Some((host_of(&url)?, url)));
        let (host, endpoint) = endpoint.ok_or_else(|| HubError::InvalidEndpoint {
            endpoint: text.to_owned(),
        })?;
        let client = |redirects: Policy| {
            Client::builder()
                .user_agent(concat!("imgclass/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(config.limits.connect)
                .read_timeout(config.limits.stall)
                .redirect(redirects)
                .build()
                .map_err(|error| HubError::Client {
                    detail: error.to_string(),
                })
        };
        Ok(Self {
            client: client(Policy::default())?,
            direct: client(Policy::none())?,
            endpoint,
            token: config.token.clone(),
            limits: config.limits,
            model: model_id.to_owned(),
            revision: revision.to_owned(),
            host,
        })
    }

    /// Asks in one call which commit the revision means now and which files it has, `file` among
    /// them.
    pub(super) async fn listing(&self, file: Option<&str>) -> Result<Listing, HubError> {
        let doing = self.doing(None);
        let path = ["api", "models"].into_iter().chain(self.model.split('/'));
        let mut url = self.url(path.chain(["revision", &self.revision]))?;
        // Only these two, so that nothing else in the answer can fail to be understood.
        url.set_query(Some("expand=sha&expand=siblings"));
        let question = async {
            let request = || self.request(&self.client, Method::GET, url.clone());
            let answer = self.send(&doing, request).await?;
            let answer = self.check_status(&doing, answer).await?;
            self.read_body(&doing, answer, MAX_INFO_BYTES).await
        };
        let body = timeout(self.limits.metadata, question)
            .await
            .map_err(|_| doing.unreachable(no_answer(self.limits.metadata)))??;
        let info = Info::parse(&body).map_err(|detail| self.protocol(detail))?;
        info.choose(file).map_err(|found| HubError::NoWeights {
            model: self.model.clone(),
            commit: info.commit.clone(),
            found,
        })
    }

    /// Asks what a file of a commit is, without its bytes.
    pub(super) async fn describe(&self, commit: &str, file: &str) -> Result<Declared, HubError> {
        let doing = self.doing(Some(file));
        let question = async {
            let mut url = self.file_url(commit, file)?;
            for _ in 0..=MAX_REDIRECTS {
                let request = || self.request(&self.direct, Method::HEAD, url.clone());
                let answer = self.send(&doing, request).await?;
                match relative_location(&answer) {
                    Some(next) => url = next,
                    None => return Ok(answer),
                }
            }
            Err(self.protocol("it redirects too often"))
        };
        let answer = timeout(self.limits.metadata, question)
            .await
            .map_err(|_| doing.unreachable(no_answer(self.limits.metadata)))??;
        let redirects = answer.status().is_redirection();
        let answer = if redirects {
            answer
        } else {
            self.check_status(&doing, answer).await?
        };
        self.read_declaration(commit, &answer)
    }

    /// Checks what the headers of an answer declare of a file. The entity tag becomes a file's name
    /// in the cache, so only a plain name is accepted.
    fn read_declaration(&self, commit: &str, answer: &Response) -> Result<Declared, HubError> {
        let header = |name: &str| {
            let value = answer.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        if let Some(said) = header("x-repo-commit")
            && !said.eq_ignore_ascii_case(commit)
        {
            return Err(self.protocol(format!(
                "it was asked for commit {commit} and answered for {}",
                names::shown(&said)
            )));
        }
        let etag = header("x-linked-etag")
            .or_else(|| header(ETAG.as_str()))
            .ok_or_else(|| self.protocol("it declares no ETag of the file"))?;
        let etag = etag.strip_prefix("W/").unwrap_or(&etag).trim_matches('"');
        if !names::is_blob_name(etag) {
            return Err(self.protocol(format!(
                "its ETag {} cannot be the name of a file in the cache",
                names::shown(etag)
            )));
        }
        // A redirect's own length is that of its few words of text.
        let length = header("x-linked-size").or_else(|| {
            let redirects = answer.status().is_redirection();
            header(CONTENT_LENGTH.as_str()).filter(|_| !redirects)
        });
        Ok(Declared {
            etag: etag.to_owned(),
            size: length.and_then(|length| length.parse().ok()),
        })
    }

    /// Asks for a file's bytes from `start` on; `end` is the file's size. The answer has status 200
    /// for the whole file, 206 for the part, or 416 where there is no such part.
    pub(super) async fn open(
        &self,
        commit: &str,
        file: &str,
        start: u64,
        end: Option<u64>,
    ) -> Result<Response, HubError> {
        let doing = self.doing(Some(file));
        let url = self.file_url(commit, file)?;
        let request = || {
            let request = self.request(&self.client, Method::GET, url.clone());
            match (start, end) {
                (0, _) => request,
                (start, Some(end)) => {
                    request.header(RANGE, format!("bytes={start}-{}", end.saturating_sub(1)))
                }
                (start, None) => request.header(RANGE, format!("bytes={start}-")),
            }
        };
        let answer = timeout(self.limits.metadata, self.send(&doing, request))
            .await
            .map_err(|_| doing.unreachable(no_answer(self.limits.metadata)))??;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(answer)
            }
            // The hub has described the file, so this is about the way to its bytes.
            other => Err(HubError::Interrupted {
                file: file.to_owned(),
                detail: format!("status {}", other.as_u16()),
            }),
        }
    }

    /// Returns what is being done, for errors.
    pub(super) fn doing<'a>(&'a self, file: Option<&'a str>) -> Doing<'a> {
        Doing {
            model: &self.model,
            revision: &self.revision,
            endpoint: &self.host,
            token_sent: self.token.is_some(),
            file,
        }
    }

    fn protocol(&self, detail: impl Into<String>) -> HubError {
        HubError::Protocol {
            host: self.host.clone(),
            detail: detail.into(),
        }
    }

    fn file_url(&self, commit: &str, file: &str) -> Result<Url, HubError> {
        self.url(self.model.split('/').chain(["resolve", commit, file]))
    }

    /// Returns the URL of a path below the endpoint, each segment encoded.
    fn url<'a>(&self, path: impl Iterator<Item = &'a str>) -> Result<Url, HubError> {
        let mut url = self.endpoint.clone();
        url.set_query(None);
        url.set_fragment(None);
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(self.protocol("its URL has no path")),
        };
        Ok(url)
    }

    fn request(&self, client: &Client, method: Method, url: Url) -> RequestBuilder {
        let request = client.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request, and again after a pause where it failed in a way that passes.
    async fn send(
        &self,
        doing: &Doing<'_>,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Response, HubError> {
        let mut tries = 0;
        loop {
            let outcome = request().send().await;
            let passes = match &outcome {
                Ok(answer) => matches!(answer.status().as_u16(), 500 | 502 | 503 | 504),
                Err(error) => error.is_connect() || error.is_timeout(),
            };
            if !passes || tries == RETRIES {
                return outcome.map_err(|error| doing.explain_transport(error));
            }
            tokio::time::sleep(RETRY_PAUSE * 2u32.pow(tries)).await;
            tries += 1;
        }
    }

    /// Turns an answer that is no success into an error with the hub's own words.
    async fn check_status(
        &self,
        doing: &Doing<'_>,
        answer: Response,
    ) -> Result<Response, HubError> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        #[derive(Deserialize)]
        struct Said {
            error: String,
        }
        let status = answer.status().as_u16();
        let header = |name: &str| {
            let value = answer.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        let retry_after = header("retry-after").and_then(|text| text.parse().ok());
        let body = self.read_body(doing, answer, MAX_ERROR_BYTES).await;
        let said = body
            .ok()
            .and_then(|body| serde_json::from_slice::<Said>(&body).ok());
        let message = said.map(|said| said.error).or(message);
        Err(doing.refused(status, code.as_deref(), message.as_deref(), retry_after))
    }

    /// Reads an answer of limited size.
    async fn read_body(
        &self,
        doing: &Doing<'_>,
        answer: Response,
        limit: usize,
    ) -> Result<Vec<u8>, HubError> {
        let mut stream = answer.bytes_stream();
        let mut body = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| doing.explain_transport(error))?;
            if body.len() + chunk.len() > limit {
                return Err(self.protocol(format!("its answer has more than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// The hub's answer about a revision, as far as it is needed.
struct Info {
    commit: String,
    files: Vec<String>,
}

impl Info {
    fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Answer {
            sha: Option<String>,
            siblings: Option<Vec<Sibling>>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| format!("its answer is not understood: {error}"))?;
        let commit = answer.sha.ok_or("it names no commit")?.to_ascii_lowercase();
        // The hash becomes part of a path.
        if !names::is_hex(&commit, 40) {
            return Err("the commit that it names is no commit hash".to_owned());
        }
        let siblings = answer.siblings.ok_or("it lists no files")?;
        Ok(Self {
            commit,
            files: siblings.into_iter().map(|file| file.rfilename).collect(),
        })
    }

    /// Chooses the files to fetch; the error says which there are.
    fn choose(&self, file: Option<&str>) -> Result<Listing, String> {
        let files = || self.files.iter().map(String::as_str);
        let there = |name: &&str| files().any(|file| file == *name);
        Ok(Listing {
            commit: self.commit.clone(),
            weights: names::choose_weights(files(), file)?,
            choice: names::choose_weights(files(), None).unwrap_or_default(),
            descriptions: DESCRIPTIONS.into_iter().filter(there).collect(),
        })
    }
}

/// Reads bytes as an answer about a revision, whose names must be safe to join to a path.
#[cfg(fuzzing)]
pub(super) fn fuzz(body: &[u8]) {
    if let Ok(listing) = Info::parse(body).and_then(|info| info.choose(None)) {
        let plain = |name: &str| !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
        assert!(plain(&listing.commit) && plain(&listing.weights) && plain(&listing.choice));
    }
    let etag = String::from_utf8_lossy(body);
    assert!(!names::is_blob_name(&etag) || !etag.contains(['/', '\\', '\0']));
}

/// Returns where a redirect leads that names no host: to the same model under another name.
fn relative_location(answer: &Response) -> Option<Url> {
    if !answer.status().is_redirection() {
        return None;
    }
    let location = answer.headers().get(LOCATION)?.to_str().ok()?;
    let is_relative = location.starts_with('/') && !location.starts_with("//");
    is_relative.then(|| answer.url().join(location).ok())?
}

/// Returns `host:port` of an http or https URL. An endpoint may hold a password, which belongs in
/// no message.
fn host_of(url: &Url) -> Option<String> {
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    Some(format!(
        "{}:{}",
        url.host_str()?,
        url.port_or_known_default()?
    ))
}

/// Returns the text for a limit that has passed.
pub(super) fn no_answer(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs_f32())
}

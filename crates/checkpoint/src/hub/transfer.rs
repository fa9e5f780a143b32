//! Asks the hub and downloads from it, each time with a time limit, a size limit and a check.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hf_hub::{HFClient, HFRepository, RepoTypeModel};
use tokio::time::timeout;

use super::cache::{self, CachedRepo};
use super::error::Doing;
use super::ranged::Begin;
use super::watch::{Watch, no_answer};
use super::{DESCRIPTIONS, HubConfig, HubError, HubLimits, ProgressFn, names};

/// The number of tries after the first, for answers that say "later" (`hf-hub` knows which).
const RETRIES: usize = 2;
/// The pause before retry n is at most 2^n of these.
const RETRY_BASE: Duration = Duration::from_millis(250);

/// One model at one revision on the hub.
pub(super) struct Remote {
    pub(super) repo: HFRepository<RepoTypeModel>,
    pub(super) limits: HubLimits,
    model: String,
    revision: String,
    host: String,
    cache_dir: PathBuf,
    token_sent: bool,
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

impl Remote {
    /// Builds the client and calls nobody. The model id and the revision must have been checked.
    pub(super) fn new(
        config: &HubConfig,
        model_id: &str,
        revision: &str,
    ) -> Result<Self, HubError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("imgclass/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.limits.connect)
            .read_timeout(config.limits.stall)
            .build()
            .map_err(|error| HubError::Client {
                detail: error.to_string(),
            })?;
        let mut builder = HFClient::builder()
            .client(http)
            .user_agent(concat!("imgclass/", env!("CARGO_PKG_VERSION")))
            .cache_dir(&config.cache_dir)
            .retry_max_attempts(RETRIES)
            .retry_base_delay(RETRY_BASE);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &config.token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|error| match error {
            hf_hub::HFError::Url(_) => bad_endpoint(config),
            other => HubError::Client {
                detail: other.to_string(),
            },
        })?;
        let host = host_of(client.endpoint()).ok_or_else(|| bad_endpoint(config))?;
        let (owner, name) = hf_hub::split_id(model_id);
        Ok(Self {
            repo: client.model(owner, name),
            limits: config.limits,
            model: model_id.to_owned(),
            revision: revision.to_owned(),
            host,
            cache_dir: config.cache_dir.clone(),
            token_sent: config.token.is_some(),
        })
    }

    /// Asks in one call which commit the revision means now and which files it has, `file` among
    /// them.
    pub(super) async fn listing(&self, file: Option<&str>) -> Result<Listing, HubError> {
        let doing = self.doing(None);
        let question = self
            .repo
            .info()
            .revision(self.revision.clone())
            // Only these, so that nothing else in the answer can fail to be understood.
            .expand(vec!["sha".to_owned(), "siblings".to_owned()])
            .send();
        let info = timeout(self.limits.metadata, question)
            .await
            .map_err(|_| doing.unreachable(no_answer(self.limits.metadata)))?
            .map_err(|error| doing.explain(error))?;
        let protocol = |detail: &str| HubError::Protocol {
            host: self.host.clone(),
            detail: detail.to_owned(),
        };
        let commit = info
            .sha
            .ok_or_else(|| protocol("it names no commit"))?
            .to_ascii_lowercase();
        // The hash becomes part of a path.
        if !names::is_hex(&commit, 40) {
            return Err(protocol("the commit that it names is no commit hash"));
        }
        let siblings = info.siblings.ok_or_else(|| protocol("it lists no files"))?;
        let files = || siblings.iter().map(|sibling| sibling.rfilename.as_str());
        let chosen = names::choose_weights(files(), file);
        let weights = chosen.map_err(|found| HubError::NoWeights {
            model: self.model.clone(),
            commit: commit.clone(),
            found,
        })?;
        let there = |name: &&str| files().any(|file| file == *name);
        Ok(Listing {
            commit,
            weights,
            choice: names::choose_weights(files(), None).unwrap_or_default(),
            descriptions: DESCRIPTIONS.into_iter().filter(there).collect(),
        })
    }

    /// Downloads one file into the cache, in the way that `hf-hub` chooses.
    async fn download(&self, commit: &str, watch: &Arc<Watch>) -> Result<(), HubError> {
        let file = watch.file();
        let doing = self.doing(Some(file));
        let transfer = self
            .repo
            .download_file()
            .filename(file)
            .revision(commit)
            .progress(Arc::clone(watch))
            .send();
        tokio::select! {
            result = transfer => result.map(drop).map_err(|error| match doing.explain(error) {
                error @ (HubError::Cache { .. } | HubError::Locked { .. } | HubError::Unreachable { .. }) => error,
                // The hub has described the file, so its refusal is about one way to the bytes, not
                // about the file.
                error if watch.started() => HubError::Interrupted { file: file.to_owned(), detail: error.brief() },
                error => error,
            }),
            error = watch.overseen(&doing, self.limits) => Err(error),
        }
    }

    /// Returns what is being done, for errors.
    pub(super) fn doing<'a>(&'a self, file: Option<&'a str>) -> Doing<'a> {
        Doing {
            model: &self.model,
            revision: &self.revision,
            endpoint: &self.host,
            cache_dir: &self.cache_dir,
            token_sent: self.token_sent,
            file,
        }
    }
}

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
    // A link that leads nowhere would make hf-hub tell the hub that we have the file.
    cache::remove(&pointer);
    let watch = Arc::new(Watch::new(file, progress.clone()));
    let first = bring(remote, repo, commit, &watch, Begin::Kept).await;
    let Err(error @ (HubError::Interrupted { .. } | HubError::Corrupt { .. })) = first else {
        return first;
    };
    tracing::warn!(file, cause = error.brief(), "trying the download again");
    let begin = if watch.chunked() {
        Begin::FirstByte
    } else {
        Begin::KeptOrFirstByte
    };
    bring(
        remote,
        repo,
        commit,
        &Arc::new(Watch::new(file, progress)),
        begin,
    )
    .await
}

/// Tries a download once: by plain HTTP if `begin` says so and the hub allows it, and as `hf-hub`
/// does it for what is left to do.
async fn bring(
    remote: &Remote,
    repo: &CachedRepo,
    commit: &str,
    watch: &Arc<Watch>,
    begin: Begin,
) -> Result<(), HubError> {
    let file = watch.file();
    match remote.complete_blob(repo, commit, begin, watch).await {
        Ok(()) => {}
        Err(
            error @ (HubError::Interrupted { .. }
            | HubError::Cache { .. }
            | HubError::TooLarge { .. }),
        ) => {
            return Err(error);
        }
        Err(error) => tracing::warn!(
            file,
            cause = error.brief(),
            "the plain way is closed: trying the usual one"
        ),
    }
    let result = remote.download(commit, watch).await;
    watch.end();
    result?;
    let pointer = repo.pointer(commit, file);
    let (path, size) = (pointer.clone(), watch.declared_size());
    // hf-hub does not look at the status with which the bytes came, so an error page would pass for
    // the file.
    let checked = off_thread(move || cache::check_download(&path, size)).await;
    if matches!(checked, Err(HubError::Corrupt { .. })) {
        repo.discard(&pointer);
    }
    checked
}

/// Runs work that reads a whole file on a thread where it holds up no other task.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| HubError::Client {
            detail: error.to_string(),
        })?
}

fn bad_endpoint(config: &HubConfig) -> HubError {
    HubError::InvalidEndpoint {
        endpoint: config.endpoint.clone().unwrap_or_default(),
    }
}

/// Returns `host:port` of an http or https URL. An endpoint may hold a password, which belongs in
/// no message.
fn host_of(endpoint: &str) -> Option<String> {
    let url = reqwest::Url::parse(endpoint).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    Some(format!(
        "{}:{}",
        url.host_str()?,
        url.port_or_known_default()?
    ))
}

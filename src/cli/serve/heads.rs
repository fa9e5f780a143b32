//! Loads heads at the start, and again on SIGHUP or when a file changes.
//!
//! A new head is read and checked beside the old one, which serves until the new one takes its
//! place. A file that cannot be used leaves the old head serving.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::Failure;
use crate::config::{HeadArgs, NamedHead};
use crate::metrics::Metrics;
use crate::service::{HeadError, Service};

/// The time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells whether a file has changed: its time of modification, its length and, on Unix, its
/// inode, which a rename changes.
type Stamp = Option<[u64; 4]>;

/// The heads of a service, and the files that they come from.
pub(super) struct HeadLoader {
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    heads: Vec<(NamedHead, Stamp)>,
    watch: bool,
}

impl HeadLoader {
    /// Loads all heads.
    ///
    /// # Errors
    /// A head cannot be used: the service does not start then.
    pub(super) async fn start(
        args: &HeadArgs,
        service: Arc<Service>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let heads = args
            .heads
            .iter()
            .map(|head| (head.clone(), stamp(&head.path)));
        let loader = Self {
            service,
            metrics,
            heads: heads.collect(),
            watch: args.watch_heads,
        };
        for (head, _) in &loader.heads {
            loader.load(head).await??;
        }
        Ok(loader)
    }

    /// Loads heads again whenever `reload` is notified, and when files change if they are watched.
    pub(super) async fn keep_up_to_date(mut self, reload: Arc<tokio::sync::Notify>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let all = tokio::select! {
                () = reload.notified() => true,
                _ = looks.tick(), if self.watch => false,
            };
            for i in 0..self.heads.len() {
                let (head, known) = self.heads[i].clone();
                let now = stamp(&head.path);
                if all || now != known {
                    self.heads[i].1 = now;
                    self.reload(&head).await;
                }
            }
        }
    }

    async fn reload(&self, head: &NamedHead) {
        let outcome = match self.load(head).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(failure) => failure.to_string(),
        };
        self.service.note_head_failure(&head.name);
        tracing::error!(
            head = head.name,
            "{outcome}: the head that was loaded before goes on serving"
        );
    }

    /// Reads a head's file, and serves the head if it is usable.
    async fn load(&self, head: &NamedHead) -> Result<Result<(), HeadError>, Failure> {
        let (service, named) = (self.service.clone(), head.clone());
        let loading =
            tokio::task::spawn_blocking(move || service.load_head(&named.name, &named.path));
        let loaded = loading.await?;
        self.metrics.head_loaded(&head.name, loaded.is_ok());
        Ok(loaded.map(|loaded| {
            tracing::info!(
                head = loaded.name,
                sha256 = loaded.sha256,
                classes = loaded.labels().len(),
                accuracy = loaded.head.evaluation.accuracy,
                "loaded a head"
            );
            self.service.serve_head(loaded);
        }))
    }
}

#[cfg(unix)]
fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().ok()?;
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Some([
        seconds.unsigned_abs(),
        nanoseconds.unsigned_abs(),
        metadata.len(),
        metadata.ino(),
    ])
}

/// Without the time of modification, because the clock that tells it jumps.
#[cfg(not(unix))]
fn stamp(path: &Path) -> Stamp {
    Some([path.metadata().ok()?.len(), 0, 0, 0])
}

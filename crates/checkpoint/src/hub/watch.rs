//! Watches one download: reports its progress, and ends it if it stalls or grows too large.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::error::Doing;
use super::{DESCRIPTIONS, DownloadProgress, HubError, HubLimits, ProgressFn};

/// The longest time without a byte after the transfer has begun. Plain HTTP has the shorter
/// `HubLimits::stall` of its own. This one is for the hub's chunk store (Xet), whose own limits are
/// minutes and which counts only whole blocks.
const SILENCE: Duration = Duration::from_secs(60);
/// The largest weights file, in bytes. ResNet-152 in f32 is 241 MB.
const MAX_WEIGHTS_BYTES: u64 = 2 << 30;
/// The largest configuration, in bytes. timm's is under 1 kB; transformers' with 1000 labels is 70
/// kB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// One try of one download.
pub(super) struct Watch {
    file: String,
    started: AtomicBool,
    chunked: AtomicBool,
    ended: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    moved: Notify,
    report: Option<Arc<ProgressFn>>,
}

impl Watch {
    pub(super) fn new(file: &str, report: Option<Arc<ProgressFn>>) -> Self {
        Self {
            file: file.to_owned(),
            started: AtomicBool::new(false),
            chunked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            moved: Notify::new(),
            report,
        }
    }

    /// Returns the error with which the download must be given up, as soon as it must.
    pub(super) async fn overseen(&self, doing: &Doing<'_>, limits: HubLimits) -> HubError {
        loop {
            let size = self.declared_size().max(self.done.load(Ordering::Relaxed));
            if let Err(error) = check_size(&self.file, size) {
                return error;
            }
            let patience = if self.started() {
                SILENCE
            } else {
                limits.metadata
            };
            if timeout(patience, self.moved.notified()).await.is_err() {
                return if self.started() {
                    HubError::Interrupted {
                        file: self.file.clone(),
                        detail: no_answer(patience),
                    }
                } else {
                    doing.unreachable(no_answer(patience))
                };
            }
        }
    }

    /// Returns whether the hub has described the file, so that its bytes come next.
    pub(super) fn started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Returns whether the bytes came from the hub's chunk store. Its tasks outlive a transfer that
    /// was given up.
    pub(super) fn chunked(&self) -> bool {
        self.chunked.load(Ordering::Relaxed)
    }

    /// Returns the file's name in the repository.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Records the size in bytes that the hub declares.
    pub(super) fn declare(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Returns the file's size in bytes as the hub declared it; 0 if it did not.
    pub(super) fn declared_size(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Ends the reports to the caller.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Records the number of bytes that have come and reports it.
    pub(super) fn update(&self, done: u64) {
        if self.done.swap(done, Ordering::Relaxed) == done {
            return;
        }
        self.moved.notify_one();
        if let Some(report) = &self.report {
            report(DownloadProgress {
                file: &self.file,
                done,
                total: self.declared_size(),
            });
        }
    }
}

impl ProgressHandler for Watch {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.declare(*total_bytes);
                self.started.store(true, Ordering::Relaxed);
                self.moved.notify_one();
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    self.update(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => {
                self.chunked.store(true, Ordering::Relaxed);
                self.update(*bytes_completed);
            }
            DownloadEvent::Complete => {}
        }
    }
}

/// Checks that a size in bytes is one that a file of this kind can have.
pub(super) fn check_size(file: &str, size: u64) -> Result<(), HubError> {
    let limit = if DESCRIPTIONS.contains(&file) {
        MAX_CONFIG_BYTES
    } else {
        MAX_WEIGHTS_BYTES
    };
    if size > limit {
        return Err(HubError::TooLarge {
            file: file.to_owned(),
            limit,
        });
    }
    Ok(())
}

/// Returns the text for a limit that has passed.
pub(super) fn no_answer(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs_f32())
}

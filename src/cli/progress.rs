//! Progress bars on standard error.
//!
//! They are shown on a terminal only, so that a log file or a pipe holds none.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use imgclass_checkpoint::hub::DownloadProgress;

/// Creates a bar that counts images. Without their number it cannot tell the remaining time.
pub(super) fn image_bar(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{wide_bar} {pos}/{len} images, {per_sec}, {eta} left",
        None => "{spinner} {pos} images, {per_sec}, {elapsed}",
    };
    bar(total, template)
}

/// Creates a bar that counts forward passes.
pub(super) fn pass_bar(total: u64) -> ProgressBar {
    bar(Some(total), "{wide_bar} {pos}/{len} runs, {eta} left")
}

/// Creates a bar that counts the milliseconds of a measurement. Its message tells the results so
/// far.
pub(super) fn clock_bar(total: u64) -> ProgressBar {
    bar(Some(total), "{wide_bar} {msg}, {eta} left")
}

/// Returns a callback that shows the progress of downloads, with a bar for each file.
pub(super) fn download_bars() -> impl Fn(DownloadProgress<'_>) + Send + Sync {
    let current: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);
    move |progress| {
        let Ok(mut current) = current.lock() else {
            return;
        };
        let is_another_file = current
            .as_ref()
            .is_none_or(|(file, _)| file != progress.file);
        if is_another_file {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
            let bar = bar(Some(progress.total), template);
            bar.set_message(progress.file.to_owned());
            *current = Some((progress.file.to_owned(), bar));
        }
        if let Some((_, bar)) = &*current {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            if progress.done >= progress.total {
                bar.finish();
            }
        }
    }
}

/// Creates a bar in the form of an `indicatif` template, or an invisible one if standard error is
/// not a terminal.
fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, target).with_style(style)
}

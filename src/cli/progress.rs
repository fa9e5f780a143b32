//! Progress bars, on a terminal only: files and pipes see none.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use imgclass_checkpoint::hub::DownloadProgress;

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A bar that counts images; without their number, it can tell no remaining time.
pub(super) fn images(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, target());
    bar.with_style(style(match total {
        Some(_) => "{wide_bar} {pos}/{len} images, {per_sec}, {eta} left",
        None => "{spinner} {pos} images, {per_sec}, {elapsed}",
    }))
}

/// A bar that counts forward passes.
pub(super) fn iterations(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target());
    bar.with_style(style("{wide_bar} {pos}/{len} runs, {eta} left"))
}

/// A bar that counts the milliseconds of a measurement; its message is for what was measured so far.
pub(super) fn clock(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target());
    bar.with_style(style("{wide_bar} {msg}, {eta} left"))
}

/// A callback that shows downloads, one bar a file.
pub(super) fn downloads() -> impl Fn(DownloadProgress<'_>) + Send + Sync {
    let bars: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);
    move |progress| {
        let Ok(mut current) = bars.lock() else { return };
        if current
            .as_ref()
            .is_none_or(|(file, _)| file != progress.file)
        {
            let bar = ProgressBar::with_draw_target(Some(progress.total), target());
            let bar = bar.with_message(progress.file.to_owned());
            *current = Some((
                progress.file.to_owned(),
                bar.with_style(style(
                    "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
                )),
            ));
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

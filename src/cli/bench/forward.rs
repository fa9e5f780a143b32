//! `imgclass bench` without `--url` measures how fast forward passes are on this machine, as a
//! whole and layer by layer.
//!
//! The input is made up, because a pass takes the same time for every image.

use std::fmt::Write;
use std::panic;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::BenchFormat;
use super::cores::{self, CoreRoundTrip};
use crate::cli::{Failure, block_on, output, progress, service};
use crate::config::ModelArgs;
use imgclass_kernels::{self, Isa, ThreadPool};
use imgclass_network::{Classifier, Input, LayerTime, NetworkError};

/// The options of measuring forward passes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Forward pass")]
pub(super) struct ForwardArgs {
    /// The number of images in a forward pass
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    batch_size: u16,

    /// The number of forward passes at one time, which share the threads
    ///
    /// Under load, the service runs as many passes at one time as there are threads, up to eight.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1024),
        conflicts_with = "per_layer"
    )]
    passes: u16,

    /// The number of forward passes that are timed, one after the other
    ///
    /// With --passes, each of the passes at one time runs this often.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    iterations: u32,

    /// The number of forward passes that run before those, for a steady clock and warm caches
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(0..=1_000_000)
    )]
    warm_up: u32,

    /// Also print each layer's time, algorithm, GFLOP/s and share of the measured peak
    #[arg(long)]
    per_layer: bool,

    #[command(flatten)]
    model: ModelArgs,
}

/// What was measured. Times are those of a whole forward pass, in milliseconds.
#[derive(Debug, Serialize)]
struct ForwardReport {
    model: String,
    device: String,
    /// The number type that the network computed in.
    dtype: String,
    instruction_set: Option<String>,
    threads: usize,
    batch_size: usize,
    passes: usize,
    iterations: usize,
    load_ms: f64,
    median_ms: f64,
    min_ms: f64,
    p99_ms: f64,
    images_per_second: f64,
    /// How far the cores are apart; absent where that cannot be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    core_round_trip: Option<CoreRoundTrip>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<LayerReports>,
}

/// What was measured layer by layer.
#[derive(Debug, Serialize)]
struct LayerReports {
    /// The most GFLOP/s that all threads reach together.
    peak_gflops: f64,
    layers: Vec<LayerReport>,
}

/// What was measured of one layer; the time is the median over the iterations.
#[derive(Debug, Serialize)]
struct LayerReport {
    layer: String,
    algorithm: String,
    ms: f64,
    /// The speed if the layer's operations are counted as a direct convolution's. Winograd's
    /// algorithm needs fewer, so its layers can exceed the peak.
    gflops: f64,
    share_of_peak: f64,
}

pub(super) fn run(args: &ForwardArgs, format: BenchFormat) -> Result<ExitCode, Failure> {
    let classifier = block_on(service::load_classifier(&args.model))?;
    let image = made_up_image(&classifier);
    let images = vec![&image; usize::from(args.batch_size)];
    let bar = progress::pass_bar(u64::from(args.iterations) * u64::from(args.passes));
    let (mut times, layers) = measure(&classifier, &images, args, &bar)?;
    bar.finish_and_clear();
    let report = report(&classifier, args, &mut times, layers);
    output::print(match format {
        BenchFormat::Json => serde_json::to_string(&report)? + "\n",
        BenchFormat::Table => table(&report)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Makes up an image, in the form in which the service hands images to this model.
///
/// For a GPU these are bytes, and uploading them is part of a pass's time.
fn made_up_image(classifier: &Classifier) -> Input {
    let numbers = 0..classifier.input_len();
    if classifier.takes_pixels() {
        Input::Pixels(numbers.map(|i| (i % 255) as u8).collect())
    } else {
        Input::Planar(numbers.map(|i| (i % 255) as f32 / 64.0 - 2.0).collect())
    }
}

/// Measures the time of each forward pass, and that of each layer if `--per-layer` asks for it.
fn measure(
    classifier: &Classifier,
    images: &[&Input],
    args: &ForwardArgs,
    bar: &ProgressBar,
) -> Result<(Vec<Duration>, Option<LayerReports>), Failure> {
    if args.per_layer {
        let mut runs = Vec::new();
        let times = time_each(args, bar, || {
            runs.push(classifier.profile(images)?);
            Ok(())
        })?;
        let measured = runs.get(args.warm_up as usize..).unwrap_or_default();
        return Ok((times, Some(report_layers(classifier, args, measured)?)));
    }
    let pass = || time_each(args, bar, || classifier.run_batch(images, &[]).map(drop));
    let times = thread::scope(|scope| {
        let passes: Vec<_> = (0..args.passes).map(|_| scope.spawn(pass)).collect();
        let ends = passes.into_iter().map(|pass| {
            pass.join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload))
        });
        ends.collect::<Result<Vec<_>, _>>()
    })?;
    Ok((times.concat(), None))
}

/// Calls `run` as often as `--iterations` says, after the warm-up, and returns the time of each
/// call.
fn time_each(
    args: &ForwardArgs,
    bar: &ProgressBar,
    mut run: impl FnMut() -> Result<(), NetworkError>,
) -> Result<Vec<Duration>, NetworkError> {
    for _ in 0..args.warm_up {
        run()?;
    }
    let measured = (0..args.iterations).map(|_| {
        let start = Instant::now();
        run()?;
        bar.inc(1);
        Ok(start.elapsed())
    });
    measured.collect()
}

/// Summarises the times of the layers over all runs.
fn report_layers(
    classifier: &Classifier,
    args: &ForwardArgs,
    runs: &[Vec<LayerTime>],
) -> Result<LayerReports, Failure> {
    let Some(isa) = &classifier.info().isa else {
        return Err(
            "--per-layer measures our CPU kernels; this model runs on another device".into(),
        );
    };
    let pool = ThreadPool::new(args.model.threads())?;
    let peak_gflops = imgclass_kernels::measure_peak_gflops(Isa::named(isa)?, &pool);
    let first = runs.first().map(Vec::as_slice).unwrap_or_default();
    let report_layer = |(i, layer): (usize, &LayerTime)| {
        let mut times: Vec<Duration> = runs
            .iter()
            .filter_map(|run| run.get(i))
            .map(|layer| layer.time)
            .collect();
        let time = quantile(&mut times, 0.5);
        let gflops = layer.flops as f64 / time.as_secs_f64().max(1e-9) / 1e9;
        LayerReport {
            layer: layer.layer.clone(),
            algorithm: layer.algorithm.clone(),
            ms: ms(time),
            gflops,
            share_of_peak: gflops / peak_gflops,
        }
    };
    Ok(LayerReports {
        peak_gflops,
        layers: first.iter().enumerate().map(report_layer).collect(),
    })
}

fn report(
    classifier: &Classifier,
    args: &ForwardArgs,
    times: &mut [Duration],
    layers: Option<LayerReports>,
) -> ForwardReport {
    let info = classifier.info();
    let median = quantile(times, 0.5);
    let (batch_size, passes) = (usize::from(args.batch_size), usize::from(args.passes));
    let images = (batch_size * passes) as f64;
    ForwardReport {
        model: info.checkpoint.id.clone(),
        device: info.device.clone(),
        dtype: info.compute_dtype.to_string(),
        instruction_set: info.isa.clone(),
        threads: info.threads,
        batch_size,
        passes,
        iterations: times.len(),
        load_ms: ms(info.load_time),
        median_ms: ms(median),
        min_ms: ms(quantile(times, 0.0)),
        p99_ms: ms(quantile(times, 0.99)),
        images_per_second: images / median.as_secs_f64().max(1e-9),
        core_round_trip: cores::measure(),
        layers,
    }
}

/// Sorts the times, and returns the one at the quantile `q`, from 0 to 1, by the nearest rank.
fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times
        .get((q * last as f64).round() as usize)
        .copied()
        .unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Formats the result for people.
fn table(report: &ForwardReport) -> Result<String, Failure> {
    let mut text = String::new();
    let isa = report.instruction_set.as_deref().unwrap_or("-");
    writeln!(
        text,
        "{} on {} in {} ({isa}, {} threads), batch of {}{}",
        output::printable(&report.model),
        report.device,
        report.dtype,
        report.threads,
        report.batch_size,
        match report.passes {
            1 => String::new(),
            passes => format!(", {passes} at one time"),
        }
    )?;
    writeln!(
        text,
        "median {:.2} ms, min {:.2} ms, p99 {:.2} ms over {} runs: {:.1} images/s; \
         loaded in {:.0} ms",
        report.median_ms,
        report.min_ms,
        report.p99_ms,
        report.iterations,
        report.images_per_second,
        report.load_ms
    )?;
    if let Some(round_trip) = &report.core_round_trip {
        writeln!(
            text,
            "a cache line takes {round_trip} from core to core and back; compare only figures with \
             about the same"
        )?;
    }
    let Some(layers) = &report.layers else {
        return Ok(text);
    };
    writeln!(
        text,
        "\npeak {:.0} GFLOP/s; GFLOP/s counted as the direct algorithm, \
         so Winograd's may exceed it",
        layers.peak_gflops
    )?;
    writeln!(
        text,
        "{:<24} {:<28} {:>8} {:>9} {:>7}",
        "layer", "algorithm", "ms", "GFLOP/s", "peak"
    )?;
    for layer in &layers.layers {
        writeln!(
            text,
            "{:<24} {:<28} {:>8.3} {:>9.1} {:>6.0}%",
            layer.layer,
            layer.algorithm,
            layer.ms,
            layer.gflops,
            layer.share_of_peak * 100.0
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let mut times: Vec<Duration> = [5, 1, 4, 2, 3].map(Duration::from_millis).into();
        let found = [0.0, 0.5, 0.99, 1.0].map(|q| quantile(&mut times, q).as_millis());
        assert_eq!(found, [1, 3, 5, 5]);
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}

//! `imgclass train` makes a classifier for the user's own classes: a head.
//!
//! `labelled` finds the images, `features` keeps what the network says of them so that an
//! interrupted run can go on, `imgclass_heads` trains and judges, and `report` and `html` present
//! what was found.

mod features;
mod html;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};

use self::features::{FeatureFile, ImageDigest, PictureFeatures};
use self::report::{LeftOut, TrainReport};
use super::labelled::{self, Labelled};
use super::{Failure, block_on, output, progress, service};
use crate::config::ServiceArgs;
use crate::service::{Ask, NoObserver, Service, Source};
use imgclass_heads::{
    ClassWeights, Examples, Picture, Progress, Training, TrainingOptions, check_classes,
};

/// The arguments of `imgclass train`.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// A folder with a subfolder of images for each class, or a table (.tsv or .csv) with the
    /// columns `file` and `class`
    #[arg(value_name = "DIR|TABLE")]
    labelled: PathBuf,

    /// The file of the head to write, such as plants.head; it is replaced if it exists
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The folder from which a table's relative file names start [default: the table's folder]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Use the features that an interrupted run left in FILE.features, and keep them for the next
    /// run; only images that are new or changed go through the network
    #[arg(long)]
    resume: bool,

    /// Learn from the mirrored form of each image as well; this takes twice the time
    #[arg(long)]
    flips: bool,

    /// How classes of different sizes are weighted
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Weighting::Balanced)]
    class_weights: Weighting,

    /// The inverse of the penalty on large weights, as scikit-learn's LogisticRegression has it
    /// [default: chosen by cross-validation]
    #[arg(long = "c", value_name = "C", value_parser = parse_c)]
    c: Option<f64>,

    /// The number of parts of which each is held out once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=100))]
    folds: u16,

    /// The format of the report on standard output
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    format: ReportFormat,

    /// A file to write the report to as well: a web page if its name ends in .html, else JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    #[command(flatten)]
    service: ServiceArgs,
}

/// How classes of different sizes are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Weighting {
    /// Every class counts the same
    Balanced,
    /// Every image counts the same
    None,
}

/// The format of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    /// A summary for people
    Table,
    /// All figures, for programs
    Json,
}

fn parse_c(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(c) if (1e-12..=1e12).contains(&c) => Ok(c),
        _ => Err("expected a number above 0, such as 0.01".to_owned()),
    }
}

pub(super) fn run(args: &TrainArgs) -> Result<ExitCode, Failure> {
    block_on(train(args))
}

async fn train(args: &TrainArgs) -> Result<ExitCode, Failure> {
    let images = labelled::read(&args.labelled, args.root.as_deref())?;
    check_writable(&args.output)?;
    // What is wrong with the classes is said before hours of work.
    check_classes(images.iter().map(|i| (i.input.name(), i.label.as_str())))?;
    let service = service::start(&args.service, Arc::new(NoObserver)).await?;
    let mut file = FeatureFile::open(&args.output, &service.network_id(), args.resume)?;
    let (pictures, left_out) = read_features(&service, images, args, &mut file).await?;
    let examples = Examples::new(pictures).map_err(|error| explain(&error, &left_out))?;

    let options = TrainingOptions {
        folds: usize::from(args.folds),
        class_weights: match args.class_weights {
            Weighting::Balanced => ClassWeights::Balanced,
            Weighting::None => ClassWeights::None,
        },
        c: args.c,
        threads: args.service.model.threads(),
        network: service.network_id(),
        program: format!("imgclass {}", env!("CARGO_PKG_VERSION")),
    };
    let training = tokio::task::spawn_blocking(move || fit(examples, &options)).await??;
    let bytes = training.head.to_bytes()?;
    write_in_one_step(&args.output, &bytes)?;
    file.finish(args.resume)?;

    let report = TrainReport::new(&args.output, bytes.len(), &training.head, left_out);
    let text = match args.format {
        ReportFormat::Table => report.table(),
        ReportFormat::Json => report.json()?,
    };
    if let Some(path) = &args.report {
        let is_page = path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("html"));
        let text = if is_page {
            output::printable_lines(&html::page(&report))
        } else {
            report.json()?
        };
        output::write_file(path, text)?;
    }
    output::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Trains with a progress bar.
fn fit(examples: Examples, options: &TrainingOptions) -> io::Result<Training> {
    let bar = progress::pass_bar(1);
    let training = imgclass_heads::train(examples, options, &|Progress { done, of }| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    training
}

/// Finds out before the work whether the output can be written after it.
fn check_writable(output: &Path) -> Result<(), Failure> {
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if output.is_dir() || !folder.is_dir() {
        let what = if output.is_dir() {
            "it is a folder"
        } else {
            "its folder is not there"
        };
        return Err(format!("{}: the head cannot be written: {what}", output.display()).into());
    }
    Ok(())
}

/// Writes a file beside its place and renames it, so that a service that watches it never reads a
/// half of it.
fn write_in_one_step(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    written.map_err(|error| {
        // What was written of it is of no use.
        let _ = fs::remove_file(&partial);
        format!("{}: {error}", path.display()).into()
    })
}

/// Names the images that were left out where they may be the reason for an error.
fn explain(error: &imgclass_heads::ExampleError, left_out: &[LeftOut]) -> Failure {
    match left_out {
        [] => error.to_string().into(),
        [first, ..] => format!(
            "{error} ({} images could not be read, such as {}: {})",
            left_out.len(),
            output::printable(&first.file),
            output::printable(&first.error)
        )
        .into(),
    }
}

/// Runs all images through the network, as many at a time as `classify` does. Returns those that
/// could be read, in their order, and why others could not.
async fn read_features(
    service: &Service,
    images: Vec<Labelled>,
    args: &TrainArgs,
    file: &mut FeatureFile,
) -> Result<(Vec<Picture>, Vec<LeftOut>), Failure> {
    let bar = progress::image_bar(Some(images.len() as u64));
    let known = file.known();
    let known = &known;
    let read = stream::iter(images)
        .map(|image| async move {
            let name = image.input.name().to_owned();
            let features = picture_features(service, image.input, args.flips, known).await;
            (name, image.label, features)
        })
        .buffered(service::inputs_at_once(service, &args.service));
    let mut read = std::pin::pin!(read);
    let (mut pictures, mut left_out) = (Vec::new(), Vec::new());
    while let Some((name, label, outcome)) = read.next().await {
        match outcome {
            Ok((digest, features)) => {
                file.add(digest, &features)?;
                pictures.push(Picture {
                    name,
                    label,
                    features: features.plain,
                    mirrored: if args.flips { features.mirrored } else { None },
                });
            }
            Err(error) => {
                bar.suspend(|| {
                    eprintln!(
                        "imgclass: {}: left out: {}",
                        output::printable(&name),
                        output::printable(&error)
                    );
                });
                left_out.push(LeftOut { file: name, error });
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((pictures, left_out))
}

/// Returns the digest and the features of one image: those of an earlier run where its bytes are the
/// same, else the network's.
async fn picture_features(
    service: &Service,
    input: super::inputs::Input,
    flips: bool,
    known: &features::Known,
) -> Result<(ImageDigest, PictureFeatures), String> {
    let bytes = match input.read(service.max_fetched_bytes()).await? {
        Source::Bytes(bytes) => bytes,
        Source::Url(_) | Source::Prepared(_) => {
            return Err("only files can be trained on".to_owned());
        }
    };
    let digest: ImageDigest = Sha256::digest(&bytes).into();
    let earlier = known.get(&digest);
    if let Some(features) = earlier.filter(|features| !flips || features.mirrored.is_some()) {
        return Ok((digest, features.clone()));
    }
    let plain = match earlier {
        Some(features) => features.plain.clone(),
        None => features_of(service, bytes.clone(), false).await?,
    };
    let mirrored = if flips {
        Some(features_of(service, bytes, true).await?)
    } else {
        None
    };
    Ok((digest, PictureFeatures { plain, mirrored }))
}

async fn features_of(
    service: &Service,
    bytes: bytes::Bytes,
    mirrored: bool,
) -> Result<Vec<f32>, String> {
    let ask = Ask {
        mirrored,
        ..Ask::features()
    };
    let answer = service::answer_source(service, Source::Bytes(bytes), ask).await?;
    answer
        .output
        .features
        .ok_or_else(|| "the network gave no features".to_owned())
}

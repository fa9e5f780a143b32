//! `imgclass eval` measures how often the model is right on images whose classes are known, and
//! whether its confidence is deserved.
//!
//! `labelled` finds which images there are and what is in them, `score` counts, and `report` and
//! `html` present what was counted.

mod comparison;
mod html;
mod report;
mod score;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};

use self::comparison::{ComparisonTally, Pair};
use self::report::EvalReport;
use self::score::{Evaluation, Judged};
use super::inputs::Input;
use super::labelled::{self, Labelled};
use super::{Failure, block_on, output, progress, service};
use crate::config::ServiceArgs;
use crate::service::{Ask, Model, NoObserver, Service};
use imgclass_network::ComputeType;

/// The arguments of `imgclass eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// A folder with a subfolder for each class, which is named by its WordNet id, index or name;
    /// or a table (.tsv or .csv) with the columns `file` and `class`
    #[arg(value_name = "DIR|TSV")]
    labelled: PathBuf,

    /// The folder from which a table's relative file names start [default: the table's folder]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Measure the head that `imgclass train` has written to this file, instead of the checkpoint's
    /// own classes
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,

    /// Also run the model in this number type, such as f32, and say what `--dtype` loses against it:
    /// how many images keep their class, and how far accuracy and probabilities are apart
    #[arg(long, value_name = "TYPE")]
    compare: Option<ComputeType>,

    /// The format of the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    format: ReportFormat,

    /// A file to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    service: ServiceArgs,
}

/// The format of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    /// A summary for people
    Table,
    /// All figures, for programs
    Json,
    /// A web page with plots, which needs no other file
    Html,
}

pub(super) fn run(args: &EvalArgs) -> Result<ExitCode, Failure> {
    block_on(evaluate(args))
}

async fn evaluate(args: &EvalArgs) -> Result<ExitCode, Failure> {
    let service = service::start(&args.service, Arc::new(NoObserver)).await?;
    let model = service::load_model(&service, args.head.as_deref())?;
    let other = match args.compare {
        Some(dtype) => Some(start_other(args, dtype).await?),
        None => None,
    };
    let images = labelled::read(&args.labelled, args.root.as_deref())?;
    let cases = cases(&service, &model, images, args.labelled.is_dir())?;
    let bar = progress::image_bar(Some(cases.len() as u64));
    let judged = stream::iter(cases)
        .map(|case| judge(&service, &model, other.as_ref(), case))
        .buffered(service::inputs_at_once(&service, &args.service));
    let mut judged = std::pin::pin!(judged);
    let mut evaluation = Evaluation::new(service.labels_of(&model).len());
    let mut comparison = ComparisonTally::default();
    while let Some((file, outcome)) = judged.next().await {
        match outcome {
            Ok((judged, pair)) => {
                evaluation.add(&judged);
                if let Some(pair) = pair {
                    comparison.add(&pair);
                }
            }
            Err(reason) => evaluation.add_failure(file, reason),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut report = EvalReport::new(&evaluation, &service, &model);
    if let Some(other) = &other {
        let dtype = |service: &Service| service.model().compute_dtype.to_string();
        report.comparison = Some(comparison.report(dtype(&service), dtype(&other.service)));
    }
    let text = match args.format {
        ReportFormat::Table => report.table(),
        ReportFormat::Json => output::printable_json(serde_json::to_string_pretty(&report)? + "\n"),
        ReportFormat::Html => output::printable_lines(&html::page(&report)),
    };
    match &args.output {
        Some(path) => output::write_file(path, text)?,
        None => output::print(text)?,
    }
    Ok(if report.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The same model in another number type.
struct Other {
    service: Service,
    model: Model,
}

/// Loads the model again, in another number type.
///
/// # Errors
///
/// Returns an error if the type is the one that is evaluated, or if the weights cannot be computed
/// in it.
async fn start_other(args: &EvalArgs, dtype: ComputeType) -> Result<Other, Failure> {
    if args.service.model.dtype == Some(dtype) {
        return Err(format!("--compare {dtype} is the type of --dtype: name another one").into());
    }
    let mut arguments = args.service.clone();
    arguments.model.dtype = Some(dtype);
    if dtype != ComputeType::Int8 {
        arguments.model.calibrate = None;
    }
    let service = service::start(&arguments, Arc::new(NoObserver)).await?;
    let model = service::load_model(&service, args.head.as_deref())?;
    Ok(Other { service, model })
}

/// An image and its class.
#[derive(Debug)]
struct Case {
    input: Input,
    /// The index of the class, or the reason why it is not known.
    class: Result<usize, String>,
}

/// Finds the class of each image.
///
/// # Errors
///
/// Returns an error if a folder's name is not a class. A wrong line of a table costs its image only.
fn cases(
    service: &Service,
    model: &Model,
    images: Vec<Labelled>,
    in_folders: bool,
) -> Result<Vec<Case>, Failure> {
    let case = |image: Labelled| match service.class_of(model, &image.label) {
        Err(error) if in_folders => {
            Err(format!("{}: {error}", output::printable(image.input.name())).into())
        }
        class => Ok(Case {
            input: image.input,
            class: class.map_err(|error| error.to_string()),
        }),
    };
    images.into_iter().map(case).collect()
}

/// Classifies one image and compares the answer with its class, and with what the model says in
/// another number type. Returns the name of the image with the outcome.
async fn judge(
    service: &Service,
    model: &Model,
    other: Option<&Other>,
    case: Case,
) -> (String, Result<(Judged, Option<Pair>), String>) {
    let file = case.input.name().to_owned();
    let outcome = async {
        let class = case.class?;
        let source = case.input.read(service.max_fetched_bytes()).await?;
        let of_other = other.map(|_| source.clone());
        let ask = model.asking(Ask::default());
        let answer = service::answer_source(service, source, ask).await?;
        let scores = service.scores(model, &answer.output);
        let pair = match other.zip(of_other) {
            Some((other, source)) => {
                let ask = other.model.asking(Ask::default());
                let answer = service::answer_source(&other.service, source, ask).await?;
                let others = other.service.scores(&other.model, &answer.output);
                Some(Pair {
                    class,
                    probabilities: scores.probabilities.clone(),
                    other: others.probabilities,
                })
            }
            None => None,
        };
        let predictions = service.named_classes(model, &scores, 5, 0.0, 0.0);
        let judged = Judged {
            class,
            predicted: predictions.iter().map(|p| p.index).collect(),
            confidence: predictions
                .first()
                .map_or(0.0, |p| f64::from(p.probability)),
        };
        Ok((judged, pair))
    };
    (file, outcome.await)
}

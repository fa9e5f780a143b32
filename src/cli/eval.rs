//! `imgclass eval` measures how often the model is right on images whose classes are known, and
//! whether its confidence is deserved.
//!
//! `labelled` finds which images there are and what is in them, `score` counts, and `report` and
//! `html` present what was counted.

mod html;
mod report;
mod score;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};

use self::report::EvalReport;
use self::score::{Evaluation, Judged};
use super::inputs::Input;
use super::labelled::{self, Labelled};
use super::{Failure, block_on, output, progress, service};
use crate::config::ServiceArgs;
use crate::service::{Ask, Model, NoObserver, Service};

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
    let images = labelled::read(&args.labelled, args.root.as_deref())?;
    let cases = cases(&service, &model, images, args.labelled.is_dir())?;
    let bar = progress::image_bar(Some(cases.len() as u64));
    let judged = stream::iter(cases)
        .map(|case| judge(&service, &model, case))
        .buffered(service::inputs_at_once(&service, &args.service));
    let mut judged = std::pin::pin!(judged);
    let mut evaluation = Evaluation::new(service.labels_of(&model).len());
    while let Some((file, outcome)) = judged.next().await {
        match outcome {
            Ok(judged) => evaluation.add(&judged),
            Err(reason) => evaluation.add_failure(file, reason),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = EvalReport::new(&evaluation, &service, &model);
    let text = match args.format {
        ReportFormat::Table => report.table(),
        ReportFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
        ReportFormat::Html => html::page(&report),
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

/// Classifies one image and compares the answer with its class. Returns the name of the image with
/// the outcome.
async fn judge(service: &Service, model: &Model, case: Case) -> (String, Result<Judged, String>) {
    let file = case.input.name().to_owned();
    let outcome = async {
        let class = case.class?;
        let answer = service::answer(service, case.input, model.asking(Ask::default())).await?;
        let scores = service.scores(model, &answer.output);
        let predictions = service.named_classes(model, &scores, 5, 0.0, 0.0);
        Ok(Judged {
            class,
            predicted: predictions.iter().map(|p| p.index).collect(),
            confidence: predictions
                .first()
                .map_or(0.0, |p| f64::from(p.probability)),
        })
    };
    (file, outcome.await)
}

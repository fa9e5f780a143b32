//! `imgclass eval`: how often the model is right on pictures whose classes are known, and how well it knows that. Runs pictures through the
//! service; the counting is `score`'s.

mod cases;
mod html;
mod report;
mod score;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};

use self::cases::Case;
use self::score::{Evaluation, Judged};
use super::classify::explain;
use super::{Failure, load, progress, runtime};
use crate::config::ServiceArgs;
use crate::service::{Ask, Service};
use imgclass_engine::NoObserver;

/// Measure accuracy and calibration on labelled images.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// A folder with one folder a class, named by WordNet id, index or name; or a table (.tsv) with the columns `file` and `class`
    #[arg(value_name = "DIR|TSV")]
    labelled: PathBuf,

    /// Where a table's relative file names begin [default: the table's folder]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    service: ServiceArgs,
}

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A summary for people
    Table,
    /// Everything, for programs
    Json,
    /// One page with plots, which needs no other file
    Html,
}

pub(super) fn run(args: &EvalArgs) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(eval(args));
    runtime.shutdown_background();
    outcome
}

async fn eval(args: &EvalArgs) -> Result<ExitCode, Failure> {
    let service = load::service(&args.service, Arc::new(NoObserver)).await?;
    let cases = cases::read(&args.labelled, args.root.as_deref(), &service)?;
    let bar = progress::images(Some(cases.len() as u64));
    let ahead = (4 * service.images_at_once()).min(args.service.limits.max_concurrent_requests);
    let judged = stream::iter(cases)
        .map(|case| judge(&service, case))
        .buffered(ahead);
    let mut judged = std::pin::pin!(judged);
    let mut evaluation = Evaluation::new(service.labels().len());
    while let Some((file, outcome)) = judged.next().await {
        match outcome {
            Ok(judged) => evaluation.add(&judged),
            Err(reason) => evaluation.fail(file, reason),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = report::Report::new(&evaluation, &service);
    let text = match args.format {
        Format::Table => report.table(),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Html => html::page(&report),
    };
    match &args.output {
        Some(path) => {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(match report.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn judge(service: &Service, case: Case) -> (String, Result<Judged, String>) {
    let file = case.input.name().to_owned();
    let outcome = async {
        let class = case.class?;
        let source = case.input.read(service.max_fetched_bytes()).await?;
        let answer = service.answer_one(source, Ask::default()).await;
        let answer = answer.map_err(|error| explain(&error))?;
        let predictions = service.predictions(&answer.output.logits, 5, 0.0);
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

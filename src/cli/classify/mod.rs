//! `imgclass classify`: one picture or an archive of millions to classes. Results come in the order of the inputs, each as soon as it and those
//! before it are there; one bad input is reported and the rest go on.

pub(in crate::cli) mod inputs;
mod output;
mod parquet;
mod resume;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};

use self::inputs::{Input, Names, Shard};
use self::output::{Format, Row, Writer};
use super::{Failure, load, progress, runtime};
use crate::config::ServiceArgs;
use crate::service::{Ask, Service, ServiceError};
use imgclass_engine::NoObserver;
use imgclass_fetch::FetchError;

/// Classify files, folders and URLs.
#[derive(Debug, Args)]
pub(super) struct ClassifyArgs {
    /// Image files, folders of them (searched at every depth), patterns such as 'photos/**/*.jpg', http and https URLs, or `-` for one image
    /// on standard input
    #[arg(required_unless_present = "files_from", value_name = "INPUT")]
    inputs: Vec<String>,

    /// A file that names inputs, one a line; `-` for standard input (repeatable)
    #[arg(long, value_name = "LIST")]
    files_from: Vec<String>,

    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// How many classes to name for an image
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    top_k: u16,

    /// Also write the pooled features of each image (jsonl and parquet)
    #[arg(long)]
    embeddings: bool,

    /// Also write each image's logits, one per class, before softmax (jsonl)
    #[arg(long)]
    logits: bool,

    /// Write to this file (for parquet: into this folder) instead of standard output
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Continue what an earlier run has written to --output, leaving out the inputs that it finished
    #[arg(long, requires = "output")]
    resume: bool,

    /// Only take this part of the inputs, chosen by their names: 2/5 is the second of five
    #[arg(long, value_name = "PART/PARTS")]
    shard: Option<Shard>,

    /// What to do about an input that fails
    #[arg(long, value_enum, default_value_t = OnError::Report)]
    on_error: OnError,

    #[command(flatten)]
    service: ServiceArgs,
}

/// What to do about an input that fails; all of these end with exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Write a row that says why, and go on
    Report,
    /// Write no row, say why on standard error, and go on; --resume tries it again
    Skip,
    /// Say why on standard error and end
    Stop,
}

impl ClassifyArgs {
    /// Options that do not go together; exit code 2.
    fn contradiction(&self) -> Option<&'static str> {
        match self.format {
            Format::Parquet if self.output.is_none() => {
                Some("--format parquet writes a folder of files: name it with --output")
            }
            Format::Table if self.resume => {
                Some("a table cannot be continued: --resume needs --format jsonl, csv or parquet")
            }
            Format::Table | Format::Csv if self.embeddings => {
                Some("--embeddings needs --format jsonl or parquet")
            }
            Format::Table | Format::Csv | Format::Parquet if self.logits => {
                Some("--logits needs --format jsonl")
            }
            _ => None,
        }
    }

    /// The inputs of this run.
    fn inputs(&self, done: Names) -> impl Iterator<Item = Input> + use<> {
        let shard = self.shard;
        inputs::expand(&self.inputs, &self.files_from).filter(move |input| {
            shard.is_none_or(|shard| shard.takes(input.name())) && !done.contains(input.name())
        })
    }

    fn open(&self) -> Result<(Writer, Names), Failure> {
        let Some(path) = &self.output else {
            let out = std::io::stdout();
            let bars = out.is_terminal();
            let writer = match self.format {
                Format::Jsonl => Writer::Jsonl(Box::new(out)),
                Format::Csv => {
                    out.lock().write_all(&output::csv_heading()?)?;
                    Writer::Csv(Box::new(out))
                }
                _ => Writer::Table {
                    out: Box::new(out),
                    bars,
                },
            };
            return Ok((writer, Names::default()));
        };
        let opened = resume::open(path, self.format, self.resume, self.shard, self.embeddings);
        let opened = opened.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((opened.writer, opened.done))
    }
}

pub(super) fn run(args: &ClassifyArgs) -> Result<ExitCode, Failure> {
    if let Some(reason) = args.contradiction() {
        eprintln!("imgclass: {reason}");
        return Ok(ExitCode::from(2));
    }
    let runtime = runtime()?;
    let outcome = runtime.block_on(classify(args));
    runtime.shutdown_background();
    outcome
}

async fn classify(args: &ClassifyArgs) -> Result<ExitCode, Failure> {
    let (mut writer, done) = args.open()?;
    let service = load::service(&args.service, Arc::new(NoObserver)).await?;
    let bar = progress::images(total(args, &done));
    let mut all_good = true;
    // Four times what the model works on: the rest is being read and decoded meanwhile, with room for one slow file among them.
    let ahead = (4 * service.images_at_once()).min(args.service.limits.max_concurrent_requests);
    let results = stream::iter(args.inputs(done))
        .map(|input| one(&service, input, args))
        .buffered(ahead);
    let mut results = std::pin::pin!(results);
    while let Some((name, result)) = results.next().await {
        all_good &= result.is_ok();
        if let (Err(reason), OnError::Skip | OnError::Stop) = (&result, args.on_error) {
            bar.suspend(|| eprintln!("imgclass: {}: {reason}", name.escape_debug()));
            if args.on_error == OnError::Stop {
                break;
            }
        } else {
            let row = result.as_ref().map_err(String::as_str);
            match bar.suspend(|| writer.write(&name, row)) {
                // Whoever read our output has seen enough: `| head`.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    return Ok(ExitCode::SUCCESS);
                }
                other => other?,
            }
        }
        bar.inc(1);
    }
    writer.finish()?;
    bar.finish_and_clear();
    Ok(match all_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// How many images there are, where somebody watches and they can be counted beforehand.
fn total(args: &ClassifyArgs, done: &Names) -> Option<u64> {
    let countable = !args.files_from.iter().any(|list| list == "-");
    (countable && std::io::stderr().is_terminal()).then(|| {
        let all = args.inputs(Names::default()).count() as u64;
        all.saturating_sub(done.len() as u64)
    })
}

async fn one(
    service: &Service,
    input: Input,
    args: &ClassifyArgs,
) -> (String, Result<Row, String>) {
    let name = input.name().to_owned();
    let ask = match args.embeddings {
        true => Ask::features(),
        false => Ask::default(),
    };
    let result = async {
        let source = input.read(service.max_fetched_bytes()).await?;
        let answer = service.answer_one(source, ask).await;
        answer.map_err(|error| explain(&error))
    };
    let row = result.await.map(|answer| Row {
        predictions: service.predictions(&answer.output.logits, usize::from(args.top_k), 0.0),
        embedding: answer.output.features,
        logits: args.logits.then_some(answer.output.logits),
    });
    (name, row)
}

/// On the command line the user is the operator: the log's text serves better than the one for strangers.
pub(super) fn explain(error: &ServiceError) -> String {
    match error {
        ServiceError::Fetch(error @ FetchError::Answer(_)) => error.public_message(),
        other => other.to_string(),
    }
}

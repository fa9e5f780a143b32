//! `imgclass classify` classifies one image, or an archive of millions.
//!
//! `inputs` finds the images, `selection` leaves out those of other machines and of earlier runs,
//! `results` writes what was found, and `resume` and `parquet` continue the output of an earlier
//! run. Results come in the order of the inputs. A bad input is reported, and the others go on.

mod parquet;
mod results;
mod resume;
mod selection;

use std::io::{ErrorKind, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};

use self::results::{ExtraColumns, ImageResult, ResultFormat, ResultWriter};
use self::resume::OpenOutput;
use self::selection::{NameSet, Shard};
use super::inputs::{self, Input};
use super::{Failure, block_on, output, progress, service};
use crate::config::ServiceArgs;
use crate::config::values::parse_share;
use crate::service::{Ask, Model, NoObserver, Service};

/// The arguments of `imgclass classify`.
#[derive(Debug, Args)]
pub(super) struct ClassifyArgs {
    /// Image files, folders (searched at every depth), patterns such as 'photos/**/*.jpg', http and
    /// https URLs, or `-` for one image on standard input
    #[arg(required_unless_present = "files_from", value_name = "INPUT")]
    inputs: Vec<String>,

    /// A file that names further inputs, one per line; `-` for standard input (repeatable)
    #[arg(long, value_name = "LIST")]
    files_from: Vec<String>,

    /// The format of the results
    #[arg(long, value_enum, default_value_t = ResultFormat::Table)]
    format: ResultFormat,

    /// The number of classes to name for each image, the most probable first
    #[arg(
        long,
        value_name = "K",
        default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    top_k: u16,

    /// Also write the pooled features of each image (jsonl and parquet)
    #[arg(long)]
    embeddings: bool,

    /// Also write the logits of each image, one for each class, before softmax (jsonl)
    #[arg(long)]
    logits: bool,

    /// Classify by a head that `imgclass train` has written, instead of the checkpoint's own classes
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,

    /// Call an image `unknown` if at least this share of the head's own images fit better: with
    /// 0.05, 5 % of the images of its classes are refused
    #[arg(
        long,
        value_name = "SHARE",
        requires = "head",
        value_parser = parse_share
    )]
    unknown_below: Option<f32>,

    /// A file to write instead of standard output; for parquet, a folder of files
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Continue what an earlier run has written to --output, without the inputs that it finished
    #[arg(long, requires = "output")]
    resume: bool,

    /// Classify only a part of the inputs, chosen by their names: 2/5 is the second of five parts
    #[arg(long, value_name = "PART/PARTS")]
    shard: Option<Shard>,

    /// What to do if an input fails; the exit code is 1 in each case
    #[arg(long, value_name = "ACTION", value_enum, default_value_t = OnError::Report)]
    on_error: OnError,

    #[command(flatten)]
    service: ServiceArgs,
}

/// What to do if an input fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Write a result that says why, and go on
    Report,
    /// Write no result, say why on standard error, and go on; --resume tries the input again
    Skip,
    /// Say why on standard error, and end
    Stop,
}

impl ClassifyArgs {
    /// Describes the first pair of options that cannot be used together, if there is one.
    fn contradiction(&self) -> Option<&'static str> {
        match self.format {
            ResultFormat::Parquet if self.output.is_none() => {
                Some("--format parquet writes a folder of files: name it with --output")
            }
            ResultFormat::Table if self.resume => {
                Some("a table cannot be continued: --resume needs --format jsonl, csv or parquet")
            }
            ResultFormat::Table | ResultFormat::Csv if self.embeddings => {
                Some("--embeddings needs --format jsonl or parquet")
            }
            ResultFormat::Table | ResultFormat::Csv | ResultFormat::Parquet if self.logits => {
                Some("--logits needs --format jsonl")
            }
            _ => None,
        }
    }

    /// Opens where results go, and reads what an earlier run has finished.
    fn open_output(&self) -> Result<OpenOutput, Failure> {
        let extra = ExtraColumns {
            embeddings: self.embeddings,
            known: self.head.is_some(),
        };
        let Some(path) = &self.output else {
            return Ok(OpenOutput {
                writer: ResultWriter::to_stdout(self.format, extra)?,
                finished: NameSet::default(),
            });
        };
        let opened = resume::open(path, self.format, self.resume, self.shard, extra);
        opened.map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// Finds the inputs of this run, without those in `finished`.
    fn select_inputs(&self, finished: NameSet) -> impl Iterator<Item = Input> + use<> {
        let (shard, is_csv) = (self.shard, self.format == ResultFormat::Csv);
        inputs::expand(&self.inputs, &self.files_from).filter(move |input| {
            let name = input.name();
            let is_finished = if is_csv {
                // As it stands there.
                finished.contains(&output::printable(name))
            } else {
                finished.contains(name)
            };
            shard.is_none_or(|shard| shard.takes(name)) && !is_finished
        })
    }

    /// Counts the inputs for the progress bar, if somebody watches it and counting is possible.
    fn count_inputs(&self, finished: &NameSet) -> Option<u64> {
        // Standard input can be read only once.
        let countable = !self.files_from.iter().any(|list| list == "-");
        (countable && std::io::stderr().is_terminal()).then(|| {
            let all = self.select_inputs(NameSet::default()).count() as u64;
            all.saturating_sub(finished.len() as u64)
        })
    }
}

pub(super) fn run(args: &ClassifyArgs) -> Result<ExitCode, Failure> {
    if let Some(reason) = args.contradiction() {
        eprintln!("imgclass: {reason}");
        return Ok(ExitCode::from(2));
    }
    block_on(classify(args))
}

async fn classify(args: &ClassifyArgs) -> Result<ExitCode, Failure> {
    let OpenOutput {
        mut writer,
        finished,
    } = args.open_output()?;
    let service = service::start(&args.service, Arc::new(NoObserver)).await?;
    let model = service::load_model(&service, args.head.as_deref())?;
    let bar = progress::image_bar(args.count_inputs(&finished));
    let mut all_succeeded = true;
    let results = stream::iter(args.select_inputs(finished))
        .map(|input| classify_input(&service, &model, input, args))
        .buffered(service::inputs_at_once(&service, &args.service));
    let mut results = std::pin::pin!(results);
    while let Some((name, result)) = results.next().await {
        all_succeeded &= result.is_ok();
        if let (Err(reason), OnError::Skip | OnError::Stop) = (&result, args.on_error) {
            let line = format!("imgclass: {name}: {reason}");
            bar.suspend(|| eprintln!("{}", output::printable(&line)));
            if args.on_error == OnError::Stop {
                break;
            }
        } else {
            match bar.suspend(|| writer.write(&name, &result)) {
                // Whoever reads the output has read enough, as in `imgclass classify ... | head`.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    return Ok(ExitCode::SUCCESS);
                }
                other => other?,
            }
        }
        bar.inc(1);
    }
    writer.finish()?;
    bar.finish_and_clear();
    Ok(if all_succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Classifies one input, and returns its name with its result or the reason why there is none.
async fn classify_input(
    service: &Service,
    model: &Model,
    input: Input,
    args: &ClassifyArgs,
) -> (String, Result<ImageResult, String>) {
    let name = input.name().to_owned();
    let ask = if args.embeddings {
        Ask::features()
    } else {
        Ask::default()
    };
    let answer = service::answer(service, input, model.asking(ask)).await;
    let result = answer.map(|answer| {
        let scores = service.scores(model, &answer.output);
        let (top_k, unknown) = (usize::from(args.top_k), args.unknown_below.unwrap_or(0.0));
        ImageResult {
            predictions: service.named_classes(model, &scores, top_k, 0.0, unknown),
            known: scores.known,
            embedding: answer.output.features.filter(|_| args.embeddings),
            logits: args.logits.then_some(scores.logits),
        }
    });
    (name, result)
}

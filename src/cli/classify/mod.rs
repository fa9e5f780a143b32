//! `imgclass classify`: files, folders, URLs and standard input to classes. Results come in the order of the inputs, each as soon as it
//! and those before it are there; one bad input is reported and the rest go on.

mod inputs;
mod output;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use futures_util::{StreamExt, stream};

use self::inputs::Input;
use self::output::{Format, Writer};
use super::{Failure, load, progress, runtime};
use crate::config::ServiceArgs;
use crate::engine::NoObserver;
use crate::fetch::FetchError;
use crate::service::{Classified, Service, ServiceError};

/// Classify files, folders and URLs.
#[derive(Debug, Args)]
pub(super) struct ClassifyArgs {
    /// Image files, folders of them (searched at every depth), http and https URLs, or `-` for one image on standard input
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<String>,

    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// How many classes to name for an image
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    top_k: u16,

    #[command(flatten)]
    service: ServiceArgs,
}

pub(super) fn run(args: &ClassifyArgs) -> Result<ExitCode, Failure> {
    let inputs = inputs::expand(&args.inputs);
    let runtime = runtime()?;
    let outcome = runtime.block_on(classify(args, inputs));
    runtime.shutdown_background();
    outcome
}

async fn classify(args: &ClassifyArgs, inputs: Vec<Input>) -> Result<ExitCode, Failure> {
    let service = load::service(&args.service, Arc::new(NoObserver)).await?;
    let bar = progress::images(inputs.len() as u64);
    let mut writer = Writer::new(args.format, std::io::stdout().lock());
    let mut all_good = true;
    // Two full batches: one in the model, one being read and decoded meanwhile.
    let ahead =
        (2 * args.service.limits.max_batch_size).min(args.service.limits.max_concurrent_requests);
    let results = stream::iter(inputs)
        .map(|input| one(&service, input, usize::from(args.top_k)))
        .buffered(ahead);
    let mut results = std::pin::pin!(results);
    while let Some((name, result)) = results.next().await {
        all_good &= result.is_ok();
        let written = bar.suspend(|| writer.write(&name, result.as_ref().map_err(String::as_str)));
        match written {
            // Whoever read our output has seen enough: `| head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            other => other?,
        }
        bar.inc(1);
    }
    writer.finish()?;
    bar.finish_and_clear();
    std::io::stdout().flush()?;
    Ok(if all_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn one(
    service: &Service,
    input: Input,
    top_k: usize,
) -> (String, Result<Classified, String>) {
    let name = input.name().to_owned();
    let result = match input.read(service.max_fetched_bytes()).await {
        Ok(source) => service
            .classify(source, top_k)
            .await
            .map_err(|error| explain(&error)),
        Err(reason) => Err(reason),
    };
    (name, result)
}

/// On the command line the user is the operator: the log's text serves better than the one for strangers.
fn explain(error: &ServiceError) -> String {
    match error {
        ServiceError::Fetch(error @ FetchError::Answer(_)) => error.public_message(),
        other => other.to_string(),
    }
}

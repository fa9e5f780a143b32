//! `imgclass explain`: one picture with a heat map over it, as PNG: where the network saw a class. Draws nothing itself.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::classify::{explain, inputs};
use super::{Failure, load, runtime};
use crate::config::ServiceArgs;
use crate::service::Ask;
use imgclass_engine::NoObserver;

/// Show where in an image a class was seen.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// An image file, an http or https URL, or `-` for standard input
    #[arg(value_name = "INPUT")]
    input: String,

    /// The PNG to write: the picture with the heat map over it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The class to explain: an index, a WordNet id or a name [default: the most probable one]
    #[arg(long)]
    class: Option<String>,

    /// Of the colours over the picture, from 0 to 1
    #[arg(long, default_value_t = 0.5, value_parser = opacity)]
    opacity: f32,

    /// Write the heat map alone, transparent where the network does not look
    #[arg(long, conflicts_with = "opacity")]
    heatmap: bool,

    #[command(flatten)]
    service: ServiceArgs,
}

fn opacity(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(opacity) if (0.0..=1.0).contains(&opacity) => Ok(opacity),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

pub(super) fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(explained(args));
    runtime.shutdown_background();
    outcome
}

async fn explained(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let service = load::service(&args.service, Arc::new(NoObserver)).await?;
    let class = args
        .class
        .as_deref()
        .map(|text| service.class(text))
        .transpose()?;
    let mut inputs = inputs::expand(std::slice::from_ref(&args.input), &[]);
    let (Some(input), None) = (inputs.next(), inputs.next()) else {
        return Err("explain takes one image".into());
    };
    let source = input.read(service.max_fetched_bytes()).await?;
    let answer = service.answer_one(source, Ask::explanation(true)).await;
    let answer = answer.map_err(|error| explain(&error))?;
    let explanation = service.explain(answer, class)?;
    let png = match args.heatmap {
        true => explanation.heatmap()?,
        false => explanation.overlay(args.opacity)?,
    };
    let name = args.output.display();
    std::fs::write(&args.output, png).map_err(|error| format!("{name}: {error}"))?;
    let class = &explanation.prediction;
    println!(
        "{name}: {} (class {}), {:.2} %",
        class.label,
        class.index,
        class.probability * 100.0
    );
    Ok(ExitCode::SUCCESS)
}

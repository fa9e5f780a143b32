//! `imgclass explain` writes an image with a heat map over it, which shows where the network sees a
//! class.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{Failure, block_on, inputs, output, service};
use crate::config::ServiceArgs;
use crate::service::{Ask, NoObserver};

/// The arguments of `imgclass explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// An image file, an http or https URL, or `-` for standard input
    #[arg(value_name = "INPUT")]
    input: String,

    /// The PNG file to write: the image with the heat map over it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Explain a class of the head that `imgclass train` has written to this file
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,

    /// The class to explain: an index, a WordNet id or a name [default: the most probable one]
    #[arg(long)]
    class: Option<String>,

    /// The opacity of the heat map over the image, from 0 to 1
    #[arg(long, default_value_t = 0.5, value_parser = parse_opacity)]
    opacity: f32,

    /// Write the heat map alone, transparent where the network does not look
    #[arg(long, conflicts_with = "opacity")]
    heatmap: bool,

    #[command(flatten)]
    service: ServiceArgs,
}

fn parse_opacity(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(opacity) if (0.0..=1.0).contains(&opacity) => Ok(opacity),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

pub(super) fn run(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    block_on(explain(args))
}

async fn explain(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let service = service::start(&args.service, Arc::new(NoObserver)).await?;
    let model = service::load_model(&service, args.head.as_deref())?;
    let class = args
        .class
        .as_deref()
        .map(|text| service.class_of(&model, text))
        .transpose()?;
    let mut inputs = inputs::expand(std::slice::from_ref(&args.input), &[]);
    let (Some(input), None) = (inputs.next(), inputs.next()) else {
        return Err("explain takes one image".into());
    };
    let answer = service::answer(&service, input, model.asking(Ask::explanation(true))).await?;
    let explanation = service.explain(&model, answer, class)?;
    let png = if args.heatmap {
        explanation.heatmap()?
    } else {
        explanation.overlay(args.opacity)?
    };
    output::write_file(&args.output, png)?;
    let class = &explanation.prediction;
    output::print(format!(
        "{}: {} (class {}), {:.2} %\n",
        output::printable(&args.output.display().to_string()),
        output::printable(&class.label),
        class.index,
        class.probability * 100.0
    ))?;
    Ok(ExitCode::SUCCESS)
}

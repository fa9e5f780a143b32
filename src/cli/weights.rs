//! `imgclass weights`: fetch a checkpoint, say where it lies, check it whole.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{Failure, progress, runtime};
use crate::config::WeightsArgs;
use crate::model::hub::{self, HubConfig};
use crate::model::{Classifier, DeviceChoice, ModelOptions, WeightsChoice, WeightsSource};

/// Fetch, find and check checkpoints.
#[derive(Debug, Args)]
pub(super) struct WeightsCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch the checkpoint from the hub, if it is not there, and print its path
    Fetch(WeightsArgs),
    /// Print the path of the checkpoint that would be loaded; makes no call
    Path(WeightsArgs),
    /// Check the checkpoint: the hub's digest, every tensor's name, shape, type and numbers; makes no call
    Verify(WeightsArgs),
}

pub(super) fn run(command: &WeightsCommand) -> Result<ExitCode, Failure> {
    let hub = HubConfig::from_env();
    match &command.action {
        Action::Fetch(args) => {
            let show = Some(Arc::new(progress::downloads()) as Arc<hub::ProgressFn>);
            let source = runtime()?.block_on(WeightsSource::find(
                &args.choice(Path::new(".")),
                &hub,
                show,
            ))?;
            println!("{}", path_of(&source)?.display());
        }
        Action::Path(args) => println!("{}", path_of(&present(args, &hub)?)?.display()),
        Action::Verify(args) => verify(args, &hub)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The weights that are on this machine already.
fn present(args: &WeightsArgs, hub: &HubConfig) -> Result<WeightsSource, Failure> {
    Ok(match args.choice(Path::new(".")) {
        WeightsChoice::Random(seed) => WeightsSource::Random(seed),
        WeightsChoice::File(file) => WeightsSource::local(&file),
        WeightsChoice::Hub { model, revision } => {
            let files = hub::cached(hub, &model, &revision)?;
            WeightsSource::cached(model, files)
        }
    })
}

fn path_of(source: &WeightsSource) -> Result<PathBuf, Failure> {
    match source {
        WeightsSource::Random(_) => {
            Err("random weights come from a formula; there is no file".into())
        }
        WeightsSource::Files { weights, .. } if !weights.is_file() => {
            Err(format!("there is no weights file {}", weights.display()).into())
        }
        WeightsSource::Files { weights, .. } => Ok(weights.clone()),
    }
}

fn verify(args: &WeightsArgs, hub: &HubConfig) -> Result<(), Failure> {
    let declared = match args.choice(Path::new(".")) {
        WeightsChoice::Hub { model, revision } => {
            hub::verify_cached(hub, &model, &revision)?.files.sha256
        }
        WeightsChoice::Random(_) | WeightsChoice::File(_) => None,
    };
    let source = present(args, hub)?;
    let threads = std::thread::available_parallelism()?;
    let options = ModelOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        isa: None,
        threads,
    };
    let classifier = Classifier::load(&source, &options)?;
    let info = classifier.info();
    let sha256 = info
        .sha256
        .as_deref()
        .unwrap_or("none: computed by a formula");
    println!(
        "{}: whole, {} classes, {}, sha256 {sha256}",
        info.id, info.classes, info.dtype
    );
    if let Some(declared) = declared {
        println!("the hub declared sha256 {declared}: the same");
    }
    Ok(())
}

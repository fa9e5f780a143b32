//! `imgclass weights`: fetch a checkpoint, say where it lies, check it whole; list the cache; convert what other programs wrote.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{Failure, progress, runtime};
use crate::config::{OverrideArgs, WeightsArgs};
use imgclass_checkpoint::hub::{self, HubConfig};
use imgclass_checkpoint::{OpenCheckpoint, WeightsChoice, WeightsSource};

/// Fetch, find, check and convert checkpoints.
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
    Verify(VerifyArgs),
    /// List the checkpoints in the hub's cache; makes no call
    List,
    /// Turn PyTorch's .pth or .bin, or Keras' .h5 or .keras, into a safetensors file with a configuration; runs no code of the file's
    Convert(ConvertArgs),
}

#[derive(Debug, Args)]
struct ConvertArgs {
    /// The file to convert; a config.json beside it goes along
    file: PathBuf,

    /// Where to write [default: beside the file, with the ending .safetensors]; the configuration goes beside it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    overrides: OverrideArgs,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    overrides: OverrideArgs,
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
        Action::List => list(&hub)?,
        Action::Convert(args) => convert(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The weights that are on this machine already.
fn present(args: &WeightsArgs, hub: &HubConfig) -> Result<WeightsSource, Failure> {
    Ok(match args.choice(Path::new(".")) {
        WeightsChoice::Random(architecture) => WeightsSource::random(architecture),
        WeightsChoice::File(file) => WeightsSource::local(&file),
        WeightsChoice::Hub {
            model,
            revision,
            file,
        } => {
            let files = hub::cached(hub, &model, &revision, file.as_deref())?;
            WeightsSource::cached(model, files)
        }
    })
}

fn path_of(source: &WeightsSource) -> Result<PathBuf, Failure> {
    match source {
        WeightsSource::Random { .. } => {
            Err("random weights come from a formula; there is no file".into())
        }
        WeightsSource::Files(files) if !files.weights.is_file() => {
            Err(format!("there is no weights file {}", files.weights.display()).into())
        }
        WeightsSource::Files(files) => Ok(files.weights.clone()),
    }
}

fn list(hub: &HubConfig) -> Result<(), Failure> {
    let cached = hub::list(hub)?;
    if cached.is_empty() {
        println!("no checkpoints in {}", hub.cache_dir.display());
    }
    for weights in cached {
        let size = bytesize::ByteSize(weights.bytes);
        let names = match &weights.names[..] {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        println!(
            "{}  {}{names}  {}  {size}  {}",
            weights.model, weights.revision, weights.file, weights.written
        );
    }
    Ok(())
}

fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    let beside = || args.file.with_extension("safetensors");
    let output = args.output.clone().unwrap_or_else(beside);
    let converted = imgclass_checkpoint::convert(&args.file, &output, &args.overrides.overrides())?;
    println!(
        "{}: {}, {} classes; {} says how images are prepared",
        converted.weights.display(),
        converted.architecture,
        converted.classes,
        converted.config.display()
    );
    Ok(())
}

fn verify(args: &VerifyArgs, hub: &HubConfig) -> Result<(), Failure> {
    let VerifyArgs {
        weights: args,
        overrides,
    } = args;
    let declared = match args.choice(Path::new(".")) {
        WeightsChoice::Hub {
            model,
            revision,
            file,
        } => {
            hub::verify_cached(hub, &model, &revision, file.as_deref())?
                .files
                .sha256
        }
        WeightsChoice::Random(_) | WeightsChoice::File(_) => None,
    };
    let source = present(args, hub)?;
    let checkpoint = OpenCheckpoint::open(&source, &overrides.overrides())?;
    checkpoint.check_tensors()?;
    let info = checkpoint.info;
    let sha256 = info
        .sha256
        .as_deref()
        .unwrap_or("none: computed by a formula");
    println!(
        "{}: whole, {}, {} classes, {}, sha256 {sha256}",
        info.id, info.architecture, info.classes, info.stored_type
    );
    if let Some(declared) = declared {
        println!("the hub declared sha256 {declared}: the same");
    }
    Ok(())
}

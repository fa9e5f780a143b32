//! `imgclass weights` handles checkpoints without running them.
//!
//! It downloads a checkpoint, prints where it is, checks all of it, lists the hub's cache, and
//! converts files that other programs have written.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{Failure, block_on, output, progress};
use crate::config::{OverrideArgs, WeightsArgs};
use crate::service::check_network;
use imgclass_checkpoint::hub::{self, HubConfig};
use imgclass_checkpoint::{LastLayer, OpenCheckpoint, WeightsChoice, WeightsSource};
use imgclass_heads::Head;
use imgclass_network::{
    ComputeType, DeviceChoice, Fidelity, GpuPath, LayerNoise, ModelOptions, QuantisedCheckpoint,
};

/// The arguments of `imgclass weights`.
#[derive(Debug, Args)]
pub(super) struct WeightsCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Download the checkpoint from the hub if it is not in the cache, and print its path
    Fetch(WeightsArgs),
    /// Print the path of the checkpoint that would be loaded, without contacting the hub
    Path(WeightsArgs),
    /// Check the whole checkpoint, without contacting the hub
    ///
    /// This compares the file with the digest that the hub declared, and checks the name, shape,
    /// type and numbers of every tensor. Of 8-bit integers it also says how they were made.
    Verify(VerifyArgs),
    /// List the checkpoints in the hub's cache, without contacting the hub
    List,
    /// Convert a PyTorch or Keras file to a safetensors file with a configuration
    ///
    /// The format is recognised by the file's content: PyTorch's .pth and .bin, Keras' .h5 and
    /// .keras. Pickled files are read without running any code in them.
    Convert(ConvertArgs),
    /// Make a file of 8-bit integers, which is a quarter of the size and loads without calibration
    ///
    /// It answers as `--dtype int8` does with the float checkpoint, bit for bit, and needs no other
    /// file: it says itself how images are prepared and what the classes are called.
    Quantize(QuantizeArgs),
    /// Make a full checkpoint of the network and a head, with a configuration in timm's form
    ///
    /// Any program that loads timm's checkpoints loads the result. It says nothing of unknown
    /// images: only `--head` does.
    Merge(MergeArgs),
}

/// The arguments of `imgclass weights convert`.
#[derive(Debug, Args)]
struct ConvertArgs {
    /// The file to convert; a config.json beside it is copied to the output
    file: PathBuf,

    /// The safetensors file to write; its configuration is written beside it [default: beside the
    /// file to convert, with the ending .safetensors]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    overrides: OverrideArgs,
}

/// The arguments of `imgclass weights quantize`.
#[derive(Debug, Args)]
struct QuantizeArgs {
    /// The float checkpoint, a safetensors file [default: as --weights and --model say]
    #[arg(value_name = "WEIGHTS")]
    file: Option<PathBuf>,

    /// The safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// A folder of pictures like those that will be classified: the ranges of activations are
    /// measured on up to 64 of them instead of on generated ones
    #[arg(long, value_name = "DIR")]
    calibrate: Option<PathBuf>,

    /// Also print the ratio of signal to noise of each layer's output in decibels: of the layer by
    /// itself, and with what the layers before it have lost
    #[arg(long)]
    layers: bool,

    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// The arguments of `imgclass weights merge`.
#[derive(Debug, Args)]
struct MergeArgs {
    /// The head that `imgclass train` has written
    head: PathBuf,

    /// The safetensors file to write, in a folder without a config.json
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// The arguments of `imgclass weights verify`.
#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    overrides: OverrideArgs,
}

pub(super) fn run(command: &WeightsCommand) -> Result<ExitCode, Failure> {
    let hub = HubConfig::from_env();
    let text = match &command.action {
        Action::Fetch(args) => fetch(args, &hub)?,
        Action::Path(args) => format!("{}\n", path_of(&find_local(args, &hub)?)?.display()),
        Action::Verify(args) => verify(args, &hub)?,
        Action::List => list(&hub)?,
        Action::Convert(args) => convert(args)?,
        Action::Quantize(args) => quantize(args, &hub)?,
        Action::Merge(args) => merge(args, &hub)?,
    };
    output::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Downloads the checkpoint if necessary, and returns its path as a line.
fn fetch(args: &WeightsArgs, hub: &HubConfig) -> Result<String, Failure> {
    let choice = args.choice(Path::new("."));
    let show = Some(Arc::new(progress::download_bars()) as Arc<hub::ProgressFn>);
    let source = block_on(async { Ok(WeightsSource::find(&choice, hub, show).await?) })?;
    Ok(format!("{}\n", path_of(&source)?.display()))
}

/// Finds the weights on this machine.
///
/// # Errors
///
/// Returns an error if they would have to be downloaded.
fn find_local(args: &WeightsArgs, hub: &HubConfig) -> Result<WeightsSource, Failure> {
    Ok(match args.choice(Path::new(".")) {
        WeightsChoice::Random(architecture) => WeightsSource::random(architecture),
        WeightsChoice::File(file) => WeightsSource::local(&file),
        WeightsChoice::Hub {
            model,
            revision,
            file,
        } => WeightsSource::Files(hub::cached(hub, &model, &revision, file.as_deref())?),
    })
}

/// Returns the path of the weights file, or an error if there is none.
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

/// Lists the checkpoints in the hub's cache, one per line.
fn list(hub: &HubConfig) -> Result<String, Failure> {
    let cached = hub::list(hub)?;
    if cached.is_empty() {
        return Ok(format!("no checkpoints in {}\n", hub.cache_dir.display()));
    }
    let lines = cached.into_iter().map(|weights| {
        let size = bytesize::ByteSize(weights.bytes);
        let names = match &weights.names[..] {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        let line = format!(
            "{}  {}{names}  {}  {size}  {}",
            weights.model, weights.revision, weights.file, weights.written
        );
        output::printable(&line).into_owned() + "\n"
    });
    Ok(lines.collect())
}

/// How many names of what a file holds beside its weights are shown.
const SHOWN_NAMES: usize = 20;

/// Converts a file, and returns lines that say what was written and what was left out.
fn convert(args: &ConvertArgs) -> Result<String, Failure> {
    let beside = || args.file.with_extension("safetensors");
    let output = args.output.clone().unwrap_or_else(beside);
    let converted = imgclass_checkpoint::convert(&args.file, &output, &args.overrides.overrides())?;
    let mut text = format!(
        "{}: {}, {} classes; {} says how images are prepared\n",
        output::printable(&converted.weights.display().to_string()),
        converted.architecture,
        converted.classes,
        output::printable(&converted.config.display().to_string())
    );
    for note in converted.notes {
        text += &format!("{note}\n");
    }
    if !converted.left_out.is_empty() {
        let (shown, rest) = converted
            .left_out
            .split_at(converted.left_out.len().min(SHOWN_NAMES));
        let more = match rest.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text += &format!(
            "left out, because inference does not need it: {}{more}\n",
            shown.join(", ")
        );
    }
    Ok(text)
}

/// Makes a file of 8-bit integers, and returns lines that say what was written.
fn quantize(args: &QuantizeArgs, hub: &HubConfig) -> Result<String, Failure> {
    let output = &args.output;
    if output.exists() {
        return Err(format!(
            "{} is there already: remove it, or name another place with --output",
            output.display()
        )
        .into());
    }
    let source = match &args.file {
        Some(file) => WeightsSource::local(file),
        None => find_local(&args.weights, hub)?,
    };
    let checkpoint = OpenCheckpoint::open(&source, &args.overrides.overrides())?;
    let options = quantize_options(args);
    let QuantisedCheckpoint {
        bytes,
        fidelity,
        wide_layers,
        noise,
    } = imgclass_network::quantise_checkpoint(&checkpoint, &options, args.layers)?;
    output::write_file(output, &bytes)?;
    let mut text = format!(
        "{}: {}, {} classes, 8-bit integers, {}\n",
        output::printable(&output.display().to_string()),
        checkpoint.info.architecture,
        checkpoint.info.classes,
        bytesize::ByteSize(bytes.len() as u64),
    );
    text += &compared(fidelity);
    if !wide_layers.is_empty() {
        text += &format!("kept in bfloat16: {}\n", wide_layers.join(", "));
    }
    if !noise.is_empty() {
        text += "layer                     alone dB   in the network dB\n";
    }
    for LayerNoise { layer, own, total } in noise {
        text += &format!("{layer:<24}  {own:>8.1}  {total:>18.1}\n");
    }
    Ok(text)
}

/// Says how a network in 8-bit integers compares with the float network.
fn compared(fidelity: Fidelity) -> String {
    format!(
        "compared with float32 on {} pictures: {} have the same first class, the logits are off by \
         {:.3} of their standard deviation\n",
        fidelity.pictures, fidelity.same_class, fidelity.logit_error
    )
}

/// Returns the options with which the ranges are measured.
fn quantize_options(args: &QuantizeArgs) -> ModelOptions {
    ModelOptions {
        device: DeviceChoice::Cpu,
        dtype: Some(ComputeType::Int8),
        gpu_path: GpuPath::Auto,
        isa: None,
        threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        // The ranges are in the file.
        cache: None,
        calibrate: args.calibrate.clone(),
        overrides: args.overrides.overrides(),
    }
}

/// Makes a checkpoint of a network and a head, and returns a line that says what was written.
fn merge(args: &MergeArgs, hub: &HubConfig) -> Result<String, Failure> {
    let (head, _) = Head::read(&args.head)?;
    let source = find_local(&args.weights, hub)?;
    let checkpoint = OpenCheckpoint::open(&source, &args.overrides.overrides())?;
    check_network(&args.head, &head, &checkpoint.info)?;
    let layer = LastLayer {
        labels: head.labels(),
        weights: head.weights(),
        bias: head.bias(),
    };
    let merged = imgclass_checkpoint::merge(&checkpoint, layer, &args.output)?;
    Ok(format!(
        "{}: {}, {} classes; {} says how images are prepared\n",
        output::printable(&merged.weights.display().to_string()),
        merged.architecture,
        merged.classes,
        output::printable(&merged.config.display().to_string())
    ))
}

/// Checks all of a checkpoint, and returns what it is.
///
/// # Errors
///
/// Returns an error that names the first thing that is wrong.
fn verify(args: &VerifyArgs, hub: &HubConfig) -> Result<String, Failure> {
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
                .declared_sha256
        }
        WeightsChoice::Random(_) | WeightsChoice::File(_) => None,
    };
    let source = find_local(args, hub)?;
    let checkpoint = OpenCheckpoint::open(&source, &overrides.overrides())?;
    let fidelity = imgclass_network::check_tensors(&checkpoint)?;
    let info = checkpoint.info;
    let sha256 = info
        .sha256
        .as_deref()
        .unwrap_or("none: computed by a formula");
    let mut text = format!(
        "{}: whole, {}, {} classes, {}, sha256 {sha256}\n",
        output::printable(&info.id),
        info.architecture,
        info.classes,
        info.stored_type
    );
    if let Some(float) = &info.quantised_from {
        let sha256 = float.sha256.as_deref().unwrap_or("none: by a formula");
        let id = output::printable(&float.id);
        text += &format!("made from {id}, {}, sha256 {sha256}\n", float.stored_type);
    }
    if let Some(fidelity) = fidelity {
        text += &compared(fidelity);
    }
    if let Some(declared) = declared {
        text += &format!("the hub declared sha256 {declared}: the same\n");
    }
    Ok(text)
}

//! One peer written in Rust, loaded once: times bursts of inference when told to. Never compares or judges.
//!
//! The protocol is `peer_worker.py`'s. Thread counts: `--threads` for rten and tract, `RAYON_NUM_THREADS`, which
//! run.py sets to the same number, for candle.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

const WARM_UP: usize = 2;
const CHANNELS: usize = 3;
const SIDE: usize = 224;
const CLASSES: usize = 1000;

#[derive(Parser)]
#[command(about = "One peer engine for benches/peers/run.py")]
struct Args {
    engine: Engine,
    /// Checkpoint with torchvision's names (candle reads this one).
    #[arg(long)]
    weights: PathBuf,
    /// The same network as ONNX (rten and tract read this one).
    #[arg(long)]
    onnx: PathBuf,
    /// The input [batch, 3, 224, 224], raw little-endian float32.
    #[arg(long)]
    input: PathBuf,
    #[arg(long)]
    batch_size: usize,
    #[arg(long)]
    threads: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    CandleTransformers,
    Rten,
    Tract,
}

/// One inference on the input it was made with: the logits, row-major.
type Infer = Box<dyn Fn() -> Result<Vec<f32>>>;

fn candle(args: &Args, x: &[f32]) -> Result<Infer> {
    use candle_core::{DType, Device, Module, Tensor};
    let tensors = candle_core::safetensors::load(&args.weights, &Device::Cpu)?;
    let weights = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let model = candle_transformers::models::resnet::resnet50(CLASSES, weights)?;
    let x = Tensor::from_slice(x, (args.batch_size, CHANNELS, SIDE, SIDE), &Device::Cpu)?;
    Ok(Box::new(move || {
        Ok(model.forward(&x)?.flatten_all()?.to_vec1()?)
    }))
}

fn rten(args: &Args, x: &[f32]) -> Result<Infer> {
    use rten::{ModelOptions, RunOptions, ThreadPool};
    use rten_tensor::prelude::*;
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(true);
    let model = options.load_file(&args.onnx)?;
    let x = rten_tensor::NdTensor::from_data([args.batch_size, CHANNELS, SIDE, SIDE], x.to_vec());
    let pool = Arc::new(ThreadPool::with_num_threads(args.threads));
    Ok(Box::new(move || {
        let options = RunOptions::default().with_thread_pool(Some(pool.clone()));
        let logits: rten_tensor::NdTensor<f32, 2> =
            model.run_one(x.view().into(), Some(options))?.try_into()?;
        Ok(logits.to_vec())
    }))
}

fn tract(args: &Args, x: &[f32]) -> Result<Infer> {
    use tract_linalg::multithread::{Executor, set_default_executor};
    use tract_onnx::prelude::*;
    if args.threads > 1 {
        set_default_executor(Executor::multithread(args.threads));
    }
    let shape = [args.batch_size, CHANNELS, SIDE, SIDE];
    let model = tract_onnx::onnx()
        .model_for_path(&args.onnx)?
        .with_input_fact(0, f32::fact(shape).into())?
        .into_optimized()?
        .into_runnable()?;
    let x: TValue = Tensor::from_shape(&shape, x)?.into();
    Ok(Box::new(move || {
        let outputs = model.run(tvec!(x.clone()))?;
        Ok(outputs[0].try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    }))
}

/// The version of `package` that this build locked.
fn locked_version(package: &str) -> Result<&'static str> {
    include_str!("../Cargo.lock")
        .split_once(&format!("name = \"{package}\"\nversion = \""))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(version, _)| version)
        .with_context(|| format!("{package} is not in Cargo.lock"))
}

fn read_input(path: &Path, batch_size: usize) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let wanted = batch_size * CHANNELS * SIDE * SIDE * 4;
    ensure!(
        bytes.len() == wanted,
        "{} has {} bytes, expected {wanted}",
        path.display(),
        bytes.len()
    );
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect())
}

fn burst(infer: &Infer, count: usize) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        infer()?;
    }
    (0..count)
        .map(|_| {
            let start = Instant::now();
            infer()?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        })
        .collect()
}

fn main() -> Result<()> {
    let args = Args::parse();
    let x = read_input(&args.input, args.batch_size)?;
    let (package, infer) = match args.engine {
        Engine::CandleTransformers => ("candle-transformers", candle(&args, &x)?),
        Engine::Rten => ("rten", rten(&args, &x)?),
        Engine::Tract => ("tract-onnx", tract(&args, &x)?),
    };
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{}",
        serde_json::json!({"version": locked_version(package)?, "logits": infer()?})
    )?;
    out.flush()?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let count = line
            .strip_prefix("run ")
            .with_context(|| format!("expected `run N`, got {line:?}"))?;
        writeln!(
            out,
            "{}",
            serde_json::json!({"ms": burst(&infer, count.parse()?)?})
        )?;
        out.flush()?;
    }
    Ok(())
}

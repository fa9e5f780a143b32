//! Trains a head on made-up features of many classes, and prints the time of each fit, the
//! evaluation's main figures and the most memory that the process held: how docs/own-classes.md
//! measures.
//!
//! ```text
//! cargo run --release -p imgclass-heads --example train_many CLASSES PICTURES_PER_CLASS [THREADS]
//! ```
//!
//! The features are like a ResNet-50's in what decides the time: there are 2048 of them, and they
//! have few directions with much variance and many with little.

use std::num::NonZeroUsize;
use std::time::Instant;

use imgclass_heads::{ClassWeights, Examples, NetworkId, Picture, TrainingOptions, train};

const FEATURES: usize = 2048;

/// Returns normally distributed numbers that depend on `seed` alone.
fn normal(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32);
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    };
    // The sum of four uniform numbers is normal enough.
    std::iter::repeat_with(move || {
        (uniform() + uniform() + uniform() + uniform() - 2.0) * 3f32.sqrt()
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |name: &str| -> Result<usize, Box<dyn std::error::Error>> {
        Ok(arguments
            .next()
            .ok_or(format!("{name} is missing"))?
            .parse()?)
    };
    let (classes, per_class) = (argument("CLASSES")?, argument("PICTURES_PER_CLASS")?);
    let threads = argument("THREADS").unwrap_or(2);
    let picture = |i: usize| {
        let class = i % classes;
        let parts = normal(class as u64).zip(normal((1 << 40) + i as u64));
        let feature = |(j, (between, within)): (usize, (f32, f32))| {
            let deviation = (j as f32 + 3.0).powf(-0.6);
            // The share of the variance that is between classes.
            let share = 0.5 / (1.0 + j as f32 / 200.0);
            deviation * (share.sqrt() * between + (1.0 - share).sqrt() * within)
        };
        Picture {
            name: i.to_string(),
            label: class.to_string(),
            features: parts.take(FEATURES).enumerate().map(feature).collect(),
            mirrored: None,
        }
    };
    let examples = Examples::new((0..classes * per_class).map(picture))?;
    let options = TrainingOptions {
        folds: 5,
        class_weights: ClassWeights::Balanced,
        c: None,
        threads: NonZeroUsize::new(threads).ok_or("no threads")?,
        network: NetworkId::default(),
        program: "example".to_owned(),
    };
    let start = Instant::now();
    let head = train(examples, &options, &|progress| {
        eprintln!(
            "{:?} after {:.1} s",
            progress,
            start.elapsed().as_secs_f64()
        );
    })?
    .head;
    println!("{:.1} s", start.elapsed().as_secs_f64());
    for tried in &head.evaluation.tried {
        println!(
            "C {:.3e}: loss {:.4}, accuracy {:.4}",
            tried.c, tried.log_loss, tried.accuracy
        );
    }
    println!(
        "accuracy {:.4}, of the first five {:.4}, loss {:.4}, temperature {:.3}, {:?}",
        head.evaluation.accuracy,
        head.evaluation.top5,
        head.evaluation.log_loss,
        head.recipe.temperature,
        head.evaluation.unknown
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
        println!("{line}");
    }
    Ok(())
}

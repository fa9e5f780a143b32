//! Trains a head on features from a file, and prints its evaluation as JSON: how
//! docs/own-classes.md compares with scikit-learn, on the same features and the same folds.
//!
//! A line of the file is a label, a tab, and the features with spaces between them:
//!
//! ```text
//! cargo run --release -p imgclass-heads --example train_features FEATURES.tsv
//! ```

use std::num::NonZeroUsize;
use std::time::Instant;

use imgclass_heads::{ClassWeights, Examples, NetworkId, Picture, TrainingOptions, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name a file of features")?;
    let threads = std::env::args().nth(2).map_or(Ok(1), |text| text.parse())?;
    let text = std::fs::read_to_string(path)?;
    let mut pictures = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let (label, numbers) = line.split_once('\t').ok_or("a line has no tab")?;
        let features = numbers
            .split(' ')
            .map(str::parse)
            .collect::<Result<Vec<f32>, _>>()?;
        pictures.push(Picture {
            name: i.to_string(),
            label: label.to_owned(),
            features,
            mirrored: None,
        });
    }
    let examples = Examples::new(pictures)?;
    let options = TrainingOptions {
        folds: 5,
        class_weights: ClassWeights::None,
        c: None,
        threads: NonZeroUsize::new(threads).ok_or("no threads")?,
        network: NetworkId::default(),
        program: "example".to_owned(),
    };
    let start = Instant::now();
    let training = train(examples, &options, &|_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    let report = serde_json::json!({
        "seconds": seconds,
        "c": training.head.recipe.c,
        "temperature": training.head.recipe.temperature,
        "folds": training.folds,
        "evaluation": training.head.evaluation,
    });
    println!("{report}");
    Ok(())
}

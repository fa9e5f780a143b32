//! The layer map holds: which folder may import which, and where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// A layer and the layers of ours that it may name with `crate::`.
const MAY_IMPORT: [(&str, &[&str]); 10] = [
    ("kernels", &[]),
    ("image", &["kernels"]),
    ("fetch", &[]),
    ("model", &["kernels"]),
    ("engine", &["model"]),
    ("service", &["fetch", "image", "engine", "model"]),
    ("metrics", &["engine", "service"]),
    ("config", &["fetch", "image", "engine", "model", "service"]),
    (
        "api",
        &[
            "service", "config", "metrics", "engine", "fetch", "image", "model",
        ],
    ),
    (
        "cli",
        &[
            "service", "config", "metrics", "api", "engine", "fetch", "model", "kernels",
        ],
    ),
];

/// Crates that only one layer may name.
const ONLY_IN: [(&str, &[&str]); 11] = [
    ("zip", &["model"]),
    ("hdf5_reader", &["model"]),
    ("candle_core", &["model"]),
    ("candle_nn", &["model"]),
    ("hf_hub", &["model"]),
    ("poem", &["api"]),
    ("poem_openapi", &["api"]),
    ("hyper", &["api"]),
    ("hyper_util", &["api"]),
    ("prometheus", &["metrics"]),
    ("jpeg_decoder", &["image"]),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(&src).expect("below src");
                let layer = inside
                    .iter()
                    .next()
                    .expect("a name")
                    .to_string_lossy()
                    .trim_end_matches(".rs")
                    .to_owned();
                let text = fs::read_to_string(&path).expect("a source");
                found.push((layer, path, text));
            }
        }
    }
    assert!(found.len() > 30, "only {} sources found", found.len());
    found
}

/// The code of a file: comments are free to speak of anything.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()));
    lines.filter(|(_, line)| !line.trim().is_empty())
}

#[test]
fn a_layer_imports_only_the_layers_under_it() {
    let mut offences = Vec::new();
    for (layer, path, text) in sources() {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == layer) else {
            continue;
        };
        for (number, line) in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let target: String = line[at + 7..]
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                let known = MAY_IMPORT.iter().any(|(name, _)| *name == target);
                if known && target != layer && !allowed.contains(&target.as_str()) {
                    offences.push(format!(
                        "{}:{number}: {layer} imports {target}",
                        path.display()
                    ));
                }
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn a_foreign_crate_is_named_only_in_its_layer() {
    let mut offences = Vec::new();
    for (layer, path, text) in sources() {
        for (number, line) in code(&text) {
            for (name, layers) in ONLY_IN {
                let named =
                    line.contains(&format!("{name}::")) || line.contains(&format!("use {name}"));
                if named && !layers.contains(&layer.as_str()) {
                    offences.push(format!("{}:{number}: {layer} names {name}", path.display()));
                }
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn unsafe_code_stands_only_in_the_kernels() {
    let mut offences = Vec::new();
    for (layer, path, text) in sources() {
        for (number, line) in code(&text) {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if layer != "kernels" && words.into_iter().any(|word| word == "unsafe") {
                offences.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_kernels_know_only_the_standard_library_and_rayon() {
    let mut offences = Vec::new();
    for (layer, path, text) in sources()
        .into_iter()
        .filter(|(layer, _, _)| layer == "kernels")
    {
        for (number, line) in code(&text) {
            let Some(rest) = line
                .trim()
                .strip_prefix("use ")
                .or_else(|| line.trim().strip_prefix("pub use "))
            else {
                continue;
            };
            let root: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            let ours = path.parent().is_some_and(|folder| {
                folder.join(format!("{root}.rs")).exists() || folder.join(&root).is_dir()
            });
            let allowed =
                ["std", "core", "rayon", "super", "self", "crate"].contains(&root.as_str()) || ours;
            if !allowed
                && !text.contains(&format!("mod {root} "))
                && !text.contains(&format!("enum {root}"))
            {
                offences.push(format!("{}:{number}: {layer} uses {root}", path.display()));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

/// The wall clock jumps; deadlines and durations are on the monotonic one.
#[test]
fn nothing_is_timed_by_a_clock_that_can_jump() {
    let mut offences = Vec::new();
    for (_, path, text) in sources() {
        for (number, line) in code(&text) {
            if ["SystemTime", "UNIX_EPOCH", "chrono::"]
                .iter()
                .any(|name| line.contains(name))
            {
                offences.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

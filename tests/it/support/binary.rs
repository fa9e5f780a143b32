//! The binary as users run it, in a folder of its own.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The binary with nothing of this machine's environment that could change what it does.
pub(crate) fn imgclass(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgclass"));
    for (name, _) in std::env::vars() {
        let ours = ["IMGCLASS_", "HF_"]
            .iter()
            .any(|start| name.starts_with(start));
        if ours || ["PORT", "RUST_LOG"].contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(folder)
        .env("HF_HOME", folder.join("hub"))
        .stdin(Stdio::null());
    command
}

pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    imgclass(folder)
        .args(arguments)
        .output()
        .expect("the binary runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A small picture of its own for every `seed`.
#[allow(dead_code, reason = "not every test sends pictures")]
pub(crate) fn write_picture(path: &Path, seed: u8) {
    let pixels = image::RgbImage::from_fn(50, 40, |x, y| {
        image::Rgb([(x * 5) as u8 ^ seed, (y * 6) as u8, seed.wrapping_mul(37)])
    });
    pixels.save(path).expect("a picture");
}

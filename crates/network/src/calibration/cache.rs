//! Ranges that are kept for the next start, in a text file for each weights file:
//!
//! ```text
//! imgclass int8 ranges, recipe 3
//! for v1.5 224x224 [0.017, ...]
//! compared 16 same 15 error 0.0812
//! wide layer1.0.conv1 layer1.0.conv2
//! conv1 0.0123 0 4 ... 0.5 0.25 ...
//! layer1.0.conv1 0.0456 0 4 ... 0.5 0.25 ...
//! end 49
//! ```
//!
//! A layer's line has its scale, the number of its channels' exponents and they themselves, and the
//! channels' means.
//! A file that is missing, damaged, or for anything else than what is loaded is as good as none: the
//! ranges are measured again.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io, process};

use imgclass_checkpoint::CheckpointInfo;

use super::{Fidelity, RECIPE};
use crate::input::Normalisation;
use crate::quantise::{LARGEST_EXPONENT, LayerRange, Scales};

/// The most bytes of a file that are read. The layers of a ResNet-152 have 75,000 channels, of which
/// none takes more than 20 bytes.
const MOST_BYTES: u64 = 2 << 20;

/// Where the ranges of one checkpoint are kept.
pub(crate) struct Cache {
    path: PathBuf,
    /// What the ranges are for: the file's first two lines.
    header: String,
}

impl Cache {
    /// Returns where the ranges of a checkpoint are kept in `folder`. There is no place for weights
    /// that come from no file.
    pub(crate) fn of(
        folder: &Path,
        info: &CheckpointInfo,
        normalisation: &Normalisation,
    ) -> Option<Self> {
        let sha256 = info.sha256.as_deref()?;
        let (height, width) = info.preprocessing.crop.dims();
        Some(Self {
            path: folder.join(format!("int8-{sha256}.txt")),
            header: format!(
                "imgclass int8 ranges, recipe {RECIPE}\nfor {} {height}x{width} {normalisation:?}\n",
                info.architecture.variant()
            ),
        })
    }

    /// Reads the ranges, if there are any.
    pub(crate) fn read(&self) -> Option<(Scales, Fidelity)> {
        if fs::metadata(&self.path).ok()?.len() > MOST_BYTES {
            return None;
        }
        parse(
            fs::read_to_string(&self.path)
                .ok()?
                .strip_prefix(&self.header)?,
        )
    }

    /// Keeps ranges. The file is renamed into its place, so that nobody reads half of it.
    pub(crate) fn write(&self, scales: &Scales, fidelity: &Fidelity) {
        let text = self.header.clone() + &format(scales, fidelity);
        match self.replace(&text) {
            Ok(()) => tracing::debug!(path = %self.path.display(), "kept the ranges"),
            Err(error) => tracing::warn!(
                path = %self.path.display(),
                %error,
                "the ranges for int8 cannot be kept; the next start will measure them again"
            ),
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let temporary = self.path.with_extension(format!("{}.tmp", process::id()));
        fs::write(&temporary, text)?;
        let renamed = fs::rename(&temporary, &self.path);
        if renamed.is_err() {
            // Nothing can be done about a file that stays.
            let _ = fs::remove_file(&temporary);
        }
        renamed
    }
}

fn format(scales: &Scales, fidelity: &Fidelity) -> String {
    let mut text = format!(
        "compared {} same {} error {}\n",
        fidelity.pictures, fidelity.same_class, fidelity.logit_error
    );
    text += "wide";
    for name in &scales.wide {
        text += " ";
        text += name;
    }
    text.push('\n');
    for (name, range) in &scales.ranges {
        // Writing to a string does not fail.
        let _ = write!(text, "{name} {} {}", range.scale, range.exponents.len());
        for exponent in &range.exponents {
            let _ = write!(text, " {exponent}");
        }
        for mean in &range.means {
            let _ = write!(text, " {mean}");
        }
        text.push('\n');
    }
    text + &format!("end {}\n", scales.ranges.len())
}

fn parse(text: &str) -> Option<(Scales, Fidelity)> {
    let mut lines = text.lines();
    let compared: Vec<&str> = lines.next()?.split(' ').collect();
    let [
        "compared",
        pictures,
        "same",
        same_class,
        "error",
        logit_error,
    ] = compared[..]
    else {
        return None;
    };
    let fidelity = Fidelity {
        pictures: pictures.parse().ok()?,
        same_class: same_class.parse().ok()?,
        logit_error: logit_error.parse().ok().filter(|e: &f64| e.is_finite())?,
    };
    let mut words = lines.next()?.split(' ');
    let mut scales = Scales::default();
    if words.next() != Some("wide") {
        return None;
    }
    scales.wide.extend(words.map(str::to_owned));
    loop {
        let (name, rest) = lines.next()?.split_once(' ')?;
        if name == "end" {
            let whole = rest.parse() == Ok(scales.ranges.len()) && lines.next().is_none();
            return whole.then_some((scales, fidelity));
        }
        scales.ranges.insert(name.to_owned(), parse_range(rest)?);
    }
}

fn parse_range(text: &str) -> Option<LayerRange> {
    let mut words = text.split(' ');
    let scale: f32 = words.next()?.parse().ok()?;
    let count = words.next()?.parse().ok()?;
    let exponents: Vec<u8> = words
        .by_ref()
        .take(count)
        .map(|word| word.parse().ok().filter(|e| *e <= LARGEST_EXPONENT))
        .collect::<Option<_>>()?;
    let means: Vec<f32> = words
        .map(|word| word.parse().ok().filter(|mean: &f32| mean.is_finite()))
        .collect::<Option<_>>()?;
    let usable = scale.is_normal() && scale > 0.0 && exponents.len() == count;
    usable.then_some(LayerRange {
        scale,
        exponents,
        means,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_were_written_and_damaged_files_are_not_read() {
        let range = |scale, exponents: &[u8], means: &[f32]| LayerRange {
            scale,
            exponents: exponents.to_vec(),
            means: means.to_vec(),
        };
        let ranges = [
            ("conv1", range(0.1, &[0, 2, 1], &[0.5, 1.0 / 3.0, 0.0])),
            ("layer1.0.conv1", range(1.0 / 3.0, &[], &[0.125, 2.0])),
        ];
        let scales = Scales {
            ranges: ranges.map(|(name, range)| (name.to_owned(), range)).into(),
            wide: ["layer1.0.conv1".to_owned()].into(),
        };
        let fidelity = Fidelity {
            pictures: 16,
            same_class: 15,
            logit_error: 0.081,
        };
        let text = format(&scales, &fidelity);
        assert_eq!(parse(&text), Some((scales, fidelity)));
        for end in 0..text.len() - 1 {
            assert_eq!(parse(&text[..end]), None, "{:?}", &text[..end]);
        }
        for (from, to) in [
            ("conv1 0.1 ", "conv1 -0.1 "),
            ("conv1 0.1 ", "conv1 0 "),
            ("conv1 0.1 ", "conv1 NaN "),
            ("conv1 0.1 ", "conv1 inf "),
            (" 2 1 ", " 3 1 "),
            (" 3 0 2", " 9 0 2"),
            (" 0.5 ", " NaN "),
            ("end 2", "end 3"),
            ("0.081", "NaN"),
        ] {
            assert!(text.contains(from));
            assert_eq!(parse(&text.replace(from, to)), None, "{to}");
        }
    }
}

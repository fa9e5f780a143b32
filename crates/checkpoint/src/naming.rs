//! Maps torchvision's names of tensors, which the network and timm use, to the names in a file. A
//! file may have transformers' names, and a wrapper's prefix before either.

use crate::architecture::{Architecture, Block};

/// The most blocks of a stage that are looked for. Our networks have up to 36.
const MAX_BLOCKS: usize = 64;

/// The library whose names a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Torchvision,
    Transformers,
}

/// How a file names its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Naming {
    style: Style,
    /// The prefix that a wrapper put before every name, with its last dot: `module.`, `model.`,
    /// `timm_model.`.
    prefix: String,
}

impl Naming {
    /// Finds out how the names of a whole file are made. Where they show nothing, torchvision's
    /// names are assumed, and the first missing tensor will be reported.
    pub(super) fn detect(names: &[&str]) -> Self {
        let found = [Style::Torchvision, Style::Transformers]
            .into_iter()
            .filter_map(|style| {
                let anchor = style.name("conv1.weight");
                let prefixes = names.iter().filter_map(|name| name.strip_suffix(&anchor));
                let prefix = prefixes.min_by_key(|prefix| prefix.len())?;
                let wraps = prefix.is_empty()
                    || (prefix.ends_with('.') && names.iter().all(|name| name.starts_with(prefix)));
                let prefix = prefix.to_owned();
                wraps.then_some(Self { style, prefix })
            });
        let bare = Self {
            style: Style::Torchvision,
            prefix: String::new(),
        };
        found
            .min_by_key(|naming| naming.prefix.len())
            .unwrap_or(bare)
    }

    /// Returns the file's name of the tensor that torchvision calls `name`.
    pub(super) fn file_name(&self, name: &str) -> String {
        format!("{}{}", self.prefix, self.style.name(name))
    }

    /// Returns the network that the names are nearest to. They show the kind of block and the
    /// depths.
    pub(super) fn architecture(&self, names: &[&str]) -> Architecture {
        let depths = std::array::from_fn(|stage| {
            let present = |block: &usize| {
                let start = format!("{}{}", self.prefix, self.style.block(stage, *block));
                names.iter().any(|name| name.starts_with(&start))
            };
            (0..MAX_BLOCKS).filter(present).count()
        });
        let third = self.file_name("layer1.0.conv3.weight");
        let block = if names.contains(&third.as_str()) {
            Block::Bottleneck
        } else {
            Block::Basic
        };
        Architecture::nearest(block, depths)
    }
}

impl Style {
    /// Returns the start of the names of a block's tensors; stages count from 0.
    fn block(self, stage: usize, block: usize) -> String {
        match self {
            Self::Torchvision => format!("layer{}.{block}.", stage + 1),
            Self::Transformers => format!("resnet.encoder.stages.{stage}.layers.{block}."),
        }
    }

    /// Returns this style's name of the tensor that torchvision calls `name`. A name that is
    /// unknown stays as it is.
    fn name(self, name: &str) -> String {
        match self {
            Self::Torchvision => name.to_owned(),
            Self::Transformers => to_transformers(name).unwrap_or_else(|| name.to_owned()),
        }
    }
}

/// Translates torchvision's name of a tensor into transformers'; `None` for an unknown name.
///
/// | torchvision | transformers |
/// |---|---|
/// | `conv1`, `bn1` | `resnet.embedder.embedder.convolution`, `.normalization` |
/// | `layer1.0.conv1`, `.bn1` | `resnet.encoder.stages.0.layers.0.layer.0.convolution`, `.normalization` |
/// | `layer1.0.downsample.0`, `.1` | `resnet.encoder.stages.0.layers.0.shortcut.convolution`, `.normalization` |
/// | `fc` | `classifier.1`, after a layer that only flattens |
fn to_transformers(name: &str) -> Option<String> {
    let (layer, part) = name.rsplit_once('.')?;
    let within = |layer: &str| {
        let step = |digit: &str| digit.parse::<usize>().ok()?.checked_sub(1);
        Some(match layer {
            "downsample.0" => "shortcut.convolution".to_owned(),
            "downsample.1" => "shortcut.normalization".to_owned(),
            _ => match (layer.strip_prefix("conv"), layer.strip_prefix("bn")) {
                (Some(digit), _) => format!("layer.{}.convolution", step(digit)?),
                (_, Some(digit)) => format!("layer.{}.normalization", step(digit)?),
                _ => return None,
            },
        })
    };
    let mapped = match layer {
        "conv1" => "resnet.embedder.embedder.convolution".to_owned(),
        "bn1" => "resnet.embedder.embedder.normalization".to_owned(),
        "fc" => "classifier.1".to_owned(),
        _ => {
            let mut parts = layer.strip_prefix("layer")?.splitn(3, '.');
            let (stage, block) = (parts.next()?, parts.next()?.parse().ok()?);
            let stage = stage.parse::<usize>().ok()?.checked_sub(1)?;
            Style::Transformers.block(stage, block) + &within(parts.next()?)?
        }
    };
    Some(format!("{mapped}.{part}"))
}

//! Maps torchvision's names of tensors, which the network and timm use, to the names in a file. A
//! file may have transformers' names, and a wrapper's prefix before either.

use crate::architecture::{Architecture, Block};
use crate::text::shown;

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
        Self::find(names, |prefix| {
            names.iter().all(|name| name.starts_with(prefix))
        })
    }

    /// Does what [`Naming::detect`] does where other tensors may stand beside the network's, as in a
    /// training state.
    pub(super) fn detect_among(names: &[&str]) -> Self {
        Self::find(names, |prefix| {
            [Style::Torchvision, Style::Transformers]
                .iter()
                .any(|style| {
                    let second = format!("{prefix}{}", style.name("layer1.0.conv1.weight"));
                    names.contains(&&*second)
                })
        })
    }

    fn find(names: &[&str], wraps: impl Fn(&str) -> bool) -> Self {
        let found = [Style::Torchvision, Style::Transformers]
            .into_iter()
            .filter_map(|style| {
                let anchor = style.name("conv1.weight");
                let prefixes = names.iter().filter_map(|name| name.strip_suffix(&anchor));
                let prefix = prefixes.min_by_key(|prefix| prefix.len())?;
                let fits = prefix.is_empty() || (prefix.ends_with('.') && wraps(prefix));
                let prefix = prefix.to_owned();
                fits.then_some(Self { style, prefix })
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

    /// Returns what a tensor of a training state is for, by its name.
    pub(super) fn role(&self, name: &str) -> Role {
        let within = name.strip_prefix(&*self.prefix);
        let part = within.unwrap_or(name).split('.').next().unwrap_or_default();
        if within.is_some() && self.style.parts().contains(&part) {
            return Role::Network;
        }
        let part = part.to_lowercase();
        let is_any = |known: &[&str]| part.split('_').any(|word| known.contains(&word));
        if is_any(&NORMALISATION) {
            return Role::Unknown(format!(
                "its tensor `{}` prepares pictures within the network, which a ResNet of ours does \
                 not do: leave it out and write its numbers into a config.json as mean and std",
                shown(name)
            ));
        }
        if is_any(&RECORDS) {
            return Role::Record;
        }
        match within {
            // The check of the whole network will name it.
            Some(_) => Role::Network,
            None => Role::Unknown(format!(
                "its tensor `{}` stands beside the network under `{}` and may be a part of it that a \
                 ResNet of ours does not have: save the state_dict() of the network alone",
                shown(name),
                shown(&self.prefix)
            )),
        }
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

/// What a tensor of a training state is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// It belongs to the network, as far as its name tells.
    Network,
    /// It is a record of the training, which changes nothing at inference.
    Record,
    /// It may belong to the network, or not. Holds the reason to refuse it.
    Unknown(String),
}

/// Words in the names of what training programs keep beside a network: losses and their weights,
/// metrics, counters.
const RECORDS: [&str; 22] = [
    "criterion",
    "criterions",
    "criteria",
    "loss",
    "losses",
    "metric",
    "metrics",
    "acc",
    "accuracy",
    "auroc",
    "auc",
    "f1",
    "precision",
    "recall",
    "specificity",
    "confmat",
    "confusion",
    "kappa",
    "top1",
    "top5",
    "averaged",
    "updates",
];

/// Words in the names of layers that normalise pictures within a network.
const NORMALISATION: [&str; 9] = [
    "mean",
    "std",
    "normalize",
    "normalizer",
    "normalise",
    "normalization",
    "normalisation",
    "preprocess",
    "preprocessing",
];

impl Style {
    /// Returns the first parts of all names of a network of ours, behind a wrapper's prefix.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Torchvision => &["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
            Self::Transformers => &["resnet", "classifier"],
        }
    }

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

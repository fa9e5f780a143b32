//! The names of the classes: ImageNet's table, a checkpoint's own names, or an operator's.
//!
//! The ImageNet table is the list of WordNet synsets and lemmas as timm ships it (Apache-2.0).
//! Several classes share a short name (134 and 517 "crane", 638 and 639 "maillot"): only the index
//! and the WordNet id identify a class.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The most classes that a checkpoint may have. ImageNet-21k has 21,841, and no classifier of
/// pictures in use has more than some 100,000.
pub(crate) const MAX_CLASSES: usize = 200_000;

const IMAGENET: &str = include_str!("imagenet_labels.tsv");

/// The names of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The WordNet id, such as `n02504458`; absent for checkpoints with classes of their own.
    pub wnid: Option<String>,
    /// The short name, such as "African elephant".
    pub name: String,
    /// All names, the short one first.
    pub names: Vec<String>,
}

impl Label {
    /// Makes a label of names alone: one, or several with commas and spaces between them. A WordNet
    /// id is recognised.
    pub(super) fn plain(text: &str) -> Self {
        let names: Vec<String> = text.trim().split(", ").map(str::to_owned).collect();
        let name = names.first().cloned().unwrap_or_default();
        Self {
            wnid: is_wnid(&name).then(|| name.clone()),
            name,
            names,
        }
    }

    /// Makes the label of a class that has no name.
    pub(super) fn numbered(index: usize) -> Self {
        Self::plain(&format!("class {index}"))
    }

    /// Makes a label of a class's key in a checkpoint, as a rule a WordNet id, and the names that
    /// it stands for.
    pub(super) fn described(key: String, description: &str) -> Self {
        let mut label = Self::plain(description);
        if is_wnid(&key) {
            label.wnid = Some(key);
        } else {
            label.names.insert(0, key.clone());
            label.name = key;
        }
        label
    }
}

/// Returns whether a text is a WordNet id: `n` and eight digits.
fn is_wnid(text: &str) -> bool {
    let digits = text.strip_prefix('n').unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Reads labels from a text with one class to a line, in the order of the classes: its names, or
/// `id<TAB>names`. A comma and a space separate names. The error says which line is wrong.
pub(super) fn parse(text: &str) -> Result<Vec<Label>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let label = |(index, line): (usize, &str)| {
        let parts: Vec<&str> = line.split('\t').map(str::trim).collect();
        match parts[..] {
            [names] if !names.is_empty() => Ok(Label::plain(names)),
            [key, names] if !key.is_empty() && !names.is_empty() => {
                Ok(Label::described(key.to_owned(), names))
            }
            _ => Err(format!(
                "line {} is {line:?}, expected names, or an id, a tab and names",
                index + 1
            )),
        }
    };
    text.trim_end().lines().enumerate().map(label).collect()
}

/// The origin of the labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelSource {
    /// ImageNet-1k's table, because there are 1000 classes and no other names.
    ImageNet,
    /// The checkpoint's configuration.
    Checkpoint,
    /// The operator's file.
    File,
    /// The classes have numbers, because nothing names them.
    Numbered,
    /// The file of a head.
    Head,
}

/// Shows the origin as `/v1/model` does.
impl fmt::Display for LabelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ImageNet => "imagenet-1k",
            Self::Checkpoint => "checkpoint",
            Self::File => "file",
            Self::Numbered => "numbered",
            Self::Head => "head",
        })
    }
}

/// A text does not name one class.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClassError {
    /// It is no index, no WordNet id and no name.
    #[error(
        "there is no class \"{0}\"; give an index, a WordNet id such as n02504458, or a name as \
         /v1/labels has it"
    )]
    Unknown(String),
    /// Several classes share this name.
    #[error("\"{name}\" is the name of several classes: give one of the indices {indices:?}")]
    Ambiguous {
        /// The name as it was given.
        name: String,
        /// The classes that have it.
        indices: Vec<usize>,
    },
}

/// The names of a network's classes, by index. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Labels {
    labels: Arc<[Label]>,
    source: LabelSource,
}

/// How many of 1000 short names must be ImageNet's for a table to mean its classes. Tables differ
/// in a few of them.
const SAME_NAMES: usize = 900;

impl Labels {
    /// Returns the 1000 classes of ImageNet-1k, in the order of their sorted WordNet ids.
    pub fn imagenet() -> Self {
        let lines = IMAGENET.lines();
        let pairs = lines.map(|line| line.split_once('\t').unwrap_or(("", line)));
        let labels = pairs.map(|(wnid, lemmas)| Label::described(wnid.to_owned(), lemmas));
        Self {
            labels: labels.collect(),
            source: LabelSource::ImageNet,
        }
    }

    /// Makes labels of given names. Where they are plainly those of ImageNet-1k in its order, they
    /// get its WordNet ids.
    pub(super) fn named(mut labels: Vec<Label>, source: LabelSource) -> Self {
        let imagenet = Self::imagenet();
        if labels.len() == imagenet.len() {
            let pairs = || labels.iter().zip(imagenet.iter());
            let same = pairs().filter(|(a, b)| a.name == b.name).count();
            let by_id = pairs().all(|(a, b)| a.names.len() == 1 && a.wnid == b.wnid);
            if by_id {
                return Self { source, ..imagenet };
            }
            if same >= SAME_NAMES {
                for (label, known) in labels.iter_mut().zip(imagenet.iter()) {
                    label.wnid = label.wnid.take().or_else(|| known.wnid.clone());
                }
            }
        }
        Self {
            labels: labels.into(),
            source,
        }
    }

    /// Makes labels of the classes of a head, whose names are taken as they are.
    pub fn of_head(names: &[String]) -> Self {
        let label = |name: &String| Label {
            wnid: is_wnid(name).then(|| name.clone()),
            name: name.clone(),
            names: vec![name.clone()],
        };
        Self {
            labels: names.iter().map(label).collect(),
            source: LabelSource::Head,
        }
    }

    /// Returns the origin of the labels.
    pub fn source(&self) -> LabelSource {
        self.source
    }

    /// Returns `class 0`, `class 1`, ... for a checkpoint whose classes have no names.
    pub fn numbered(classes: usize) -> Self {
        Self {
            labels: (0..classes).map(Label::numbered).collect(),
            source: LabelSource::Numbered,
        }
    }

    /// Returns the labels that fit a network with this many classes: ImageNet's for 1000, else
    /// numbers.
    pub fn for_classes(classes: usize) -> Self {
        let imagenet = Self::imagenet();
        if imagenet.len() == classes {
            imagenet
        } else {
            Self::numbered(classes)
        }
    }

    /// Returns the number of classes.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Returns whether there are no classes.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Returns the label of a class index.
    pub fn get(&self, index: usize) -> Option<&Label> {
        self.labels.get(index)
    }

    /// Returns the index of the class that a text names: by its index, its WordNet id, or one of
    /// its names in upper or lower case. A name that is the short name of only one class means that
    /// class, though others may have it among their further names.
    ///
    /// # Errors
    /// [`ClassError`] if no class or several classes have the name.
    pub fn find(&self, text: &str) -> Result<usize, ClassError> {
        let text = text.trim();
        let wanted = text.to_lowercase();
        if let Some(index) = text.parse().ok().filter(|index| *index < self.len()) {
            return Ok(index);
        }
        let matching = |has: &dyn Fn(&Label) -> bool| -> Vec<usize> {
            let found = self.iter().enumerate().filter(|(_, label)| has(label));
            found.map(|(index, _)| index).collect()
        };
        let by_id = matching(&|label| label.wnid.as_deref() == Some(wanted.as_str()));
        let by_short_name = matching(&|label| label.name.to_lowercase() == wanted);
        let by_any_name =
            matching(&|label| label.names.iter().any(|name| name.to_lowercase() == wanted));
        for indices in [by_id, by_short_name, by_any_name] {
            match indices[..] {
                [] => continue,
                [index] => return Ok(index),
                _ => {
                    return Err(ClassError::Ambiguous {
                        name: text.to_owned(),
                        indices,
                    });
                }
            }
        }
        let shown: String = text.chars().take(64).collect();
        Err(ClassError::Unknown(shown))
    }

    /// Returns all labels, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.labels.iter()
    }
}

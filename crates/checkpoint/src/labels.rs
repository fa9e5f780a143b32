//! What the classes are called: ImageNet's table, a checkpoint's own or an operator's. It never reads files.
//!
//! The ImageNet table is the list of WordNet synsets and lemmas as timm ships it (Apache-2.0). Several classes share a short name
//! (134 and 517 "crane", 638 and 639 "maillot"): only the index and the WordNet id identify a class.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

const IMAGENET: &str = include_str!("imagenet_labels.tsv");

/// One class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// WordNet id such as `n02504458`; absent for checkpoints with classes of their own.
    pub wnid: Option<String>,
    /// The short name, such as "African elephant".
    pub name: String,
    /// All names, the short one first.
    pub names: Vec<String>,
}

impl Label {
    /// A class from its names alone: one, or several with commas and spaces between them. A WordNet id is known as such.
    pub(super) fn plain(text: &str) -> Self {
        let names: Vec<String> = text.trim().split(", ").map(str::to_owned).collect();
        let name = names.first().cloned().unwrap_or_default();
        Self {
            wnid: is_wnid(&name).then(|| name.clone()),
            name,
            names,
        }
    }

    /// A class from its key in a checkpoint, a WordNet id as a rule, and what that stands for.
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

/// `n` and eight digits.
fn is_wnid(text: &str) -> bool {
    let digits = text.strip_prefix('n').unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Labels from a text with one class a line, in the order of the classes: its names, or `id<TAB>names`; names with a comma and a space
/// between them. The error says which line is wrong.
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

/// Whose names they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelSource {
    /// ImageNet-1k's, because there are 1000 classes and nobody said otherwise.
    ImageNet,
    /// The checkpoint's configuration.
    Checkpoint,
    /// The operator's file.
    File,
    /// Nobody's: the classes have numbers.
    Numbered,
}

/// As `/v1/model` says it.
impl fmt::Display for LabelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ImageNet => "imagenet-1k",
            Self::Checkpoint => "checkpoint",
            Self::File => "file",
            Self::Numbered => "numbered",
        })
    }
}

/// Why a text names no class.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClassError {
    /// It is no index, no WordNet id and no name.
    #[error(
        "there is no class \"{0}\"; give an index, a WordNet id such as n02504458, or a name as /v1/labels has it"
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

/// Of the 1000 short names, so many at least are ImageNet's in a table that means its classes; tables differ in a few.
const SAME_NAMES: usize = 900;

impl Labels {
    /// ImageNet-1k's 1000 classes in the order of their sorted WordNet ids.
    pub fn imagenet() -> Self {
        let lines = IMAGENET.lines();
        let pairs = lines.map(|line| line.split_once('\t').unwrap_or(("", line)));
        let labels = pairs.map(|(wnid, lemmas)| Label::described(wnid.to_owned(), lemmas));
        Self {
            labels: labels.collect(),
            source: LabelSource::ImageNet,
        }
    }

    /// Names from elsewhere. Where they are plainly ImageNet-1k's in its order, they get its WordNet ids.
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

    /// Whose names they are.
    pub fn source(&self) -> LabelSource {
        self.source
    }

    /// `class 0`, `class 1`, ... for a checkpoint whose classes nobody named.
    pub fn numbered(classes: usize) -> Self {
        let labels = (0..classes).map(|index| Label::plain(&format!("class {index}")));
        Self {
            labels: labels.collect(),
            source: LabelSource::Numbered,
        }
    }

    /// The labels that fit a network with this many classes: ImageNet's for 1000, else numbers.
    pub fn for_classes(classes: usize) -> Self {
        let imagenet = Self::imagenet();
        if imagenet.len() == classes {
            imagenet
        } else {
            Self::numbered(classes)
        }
    }

    /// How many classes there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The label of a class index.
    pub fn get(&self, index: usize) -> Option<&Label> {
        self.labels.get(index)
    }

    /// The class that a text names: an index, a WordNet id, or one of a class's names in any case. A name that is the short name of one
    /// class alone means that class, though others may have it among their further names.
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

    /// All labels by index.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.labels.iter()
    }
}

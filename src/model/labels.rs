//! What the classes are called. The one table of names; it never reads files.
//!
//! The ImageNet table is the list of WordNet synsets and lemmas as timm ships it (Apache-2.0). Several classes share a short name
//! (134 and 517 "crane", 638 and 639 "maillot"): only the index and the WordNet id identify a class.

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
pub struct Labels(Arc<[Label]>);

impl Labels {
    /// ImageNet-1k's 1000 classes in the order of their sorted WordNet ids.
    pub fn imagenet() -> Self {
        Self(
            IMAGENET
                .lines()
                .map(|line| {
                    let (wnid, lemmas) = line.split_once('\t').unwrap_or(("", line));
                    let names: Vec<String> = lemmas.split(", ").map(str::to_owned).collect();
                    Label {
                        wnid: Some(wnid.to_owned()),
                        name: names.first().cloned().unwrap_or_default(),
                        names,
                    }
                })
                .collect(),
        )
    }

    /// `class 0`, `class 1`, ... for a checkpoint whose classes nobody named.
    pub fn numbered(classes: usize) -> Self {
        Self(
            (0..classes)
                .map(|index| {
                    let name = format!("class {index}");
                    Label {
                        wnid: None,
                        names: vec![name.clone()],
                        name,
                    }
                })
                .collect(),
        )
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
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The label of a class index.
    pub fn get(&self, index: usize) -> Option<&Label> {
        self.0.get(index)
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
        self.0.iter()
    }
}

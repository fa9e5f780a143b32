//! The heads that are served beside the checkpoint's own classes.
//!
//! A head is a linear classifier on the network's features, so one forward pass serves the
//! checkpoint's classes and all heads. A request takes the heads as they are when it begins. A head
//! that is replaced meanwhile answers the requests that have it, and is dropped after the last.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use super::{Ask, Prediction, Service};
use imgclass_checkpoint::{CheckpointInfo, ClassError, Labels};
use imgclass_heads::{Head, HeadFileError, NetworkId};
use imgclass_image::{Preprocessing, Resize};
use imgclass_network::{Output, head};

/// The label of a picture that fits nothing a head was trained on.
pub const UNKNOWN: &str = "unknown";

/// A head that was loaded and fits the network.
#[derive(Debug)]
pub struct ServedHead {
    /// The name by which requests ask for it.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
    /// The head itself.
    pub head: Head,
    labels: Labels,
}

/// Why a head cannot be served.
#[derive(Debug, Error)]
pub enum HeadError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] HeadFileError),
    /// The head reads another network's features.
    #[error(
        "{}: this head reads the features of another network: it was trained on {}, and the \
         network here is {}; train it again with these weights, or load those",
        path.display(), trained_on, here
    )]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// The network that it was trained on.
        trained_on: String,
        /// The network that is loaded.
        here: String,
    },
}

/// What a request wants its answers from: the checkpoint's own classes, or a head.
#[derive(Debug, Clone)]
pub enum Model {
    /// The checkpoint's own last layer.
    Checkpoint,
    /// A head.
    Head(Arc<ServedHead>),
}

/// What a model says of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The logits by class index.
    pub logits: Vec<f32>,
    /// The probabilities by class index.
    pub probabilities: Vec<f32>,
    /// How well the picture fits anything that the head was trained on: the share of its held-out
    /// training pictures that fit no better. `None` for the checkpoint's own classes.
    pub known: Option<f32>,
}

/// The heads of a service.
#[derive(Debug, Default)]
pub(super) struct Heads {
    served: RwLock<Arc<Vec<Arc<ServedHead>>>>,
    /// The names of those whose file could not be used when it was read last.
    failed: RwLock<BTreeSet<String>>,
}

impl Heads {
    fn all(&self) -> Arc<Vec<Arc<ServedHead>>> {
        self.served
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Model {
    /// Adds to `ask` what the model needs.
    #[must_use]
    pub fn asking(&self, mut ask: Ask) -> Ask {
        ask.want.features |= matches!(self, Self::Head(_));
        ask
    }

    /// Returns the head, if it is one.
    pub fn head(&self) -> Option<&ServedHead> {
        match self {
            Self::Checkpoint => None,
            Self::Head(head) => Some(head),
        }
    }
}

impl ServedHead {
    /// Returns the names of the classes.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }
}

/// Heads.
impl Service {
    /// Reads a head's file and checks that it fits the network that is loaded. Does not serve it
    /// yet.
    ///
    /// # Errors
    /// [`HeadError`] says what is wrong with the file.
    pub fn load_head(&self, name: &str, path: &Path) -> Result<ServedHead, HeadError> {
        let (head, sha256) = Head::read(path)?;
        let info = self.model();
        check(
            path,
            &head,
            &network_id(&info.checkpoint, &info.compute_dtype.to_string()),
        )?;
        Ok(ServedHead {
            name: name.to_owned(),
            path: path.to_owned(),
            labels: Labels::of_head(head.labels()),
            sha256,
            head,
        })
    }

    /// Serves a head from now on, in the place of the one that had its name.
    pub fn serve_head(&self, head: ServedHead) {
        let mut heads = self
            .heads
            .served
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut next = heads.to_vec();
        let head = Arc::new(head);
        let mut failed = self
            .heads
            .failed
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        failed.remove(&head.name);
        match next.iter_mut().find(|other| other.name == head.name) {
            Some(place) => *place = head,
            None => next.push(head),
        }
        *heads = Arc::new(next);
    }

    /// Notes that a head's file could not be used, so that the head that was loaded before serves on.
    pub fn note_head_failure(&self, name: &str) {
        let mut failed = self
            .heads
            .failed
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        failed.insert(name.to_owned());
    }

    /// Returns whether the file of a head could not be used when it was read last.
    pub fn head_is_stale(&self, name: &str) -> bool {
        let failed = self
            .heads
            .failed
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        failed.contains(name)
    }

    /// Returns the heads that are served now.
    pub fn heads(&self) -> Arc<Vec<Arc<ServedHead>>> {
        self.heads.all()
    }

    /// Returns the head of a name; `None` where there is none.
    pub fn head(&self, name: &str) -> Option<Model> {
        let heads = self.heads.all();
        let found = heads.iter().find(|head| head.name == name);
        found.cloned().map(Model::Head)
    }

    /// Returns what tells this network's features from another's.
    pub fn network_id(&self) -> NetworkId {
        let info = self.model();
        network_id(&info.checkpoint, &info.compute_dtype.to_string())
    }

    /// Returns the names of a model's classes.
    pub fn labels_of<'a>(&'a self, model: &'a Model) -> &'a Labels {
        model
            .head()
            .map_or_else(|| self.labels(), ServedHead::labels)
    }

    /// Returns the index of the class of a model that `text` names.
    ///
    /// # Errors
    /// [`ClassError`] where no class has that name, or more than one.
    pub fn class_of(&self, model: &Model, text: &str) -> Result<usize, ClassError> {
        self.labels_of(model).find(text)
    }

    /// Returns a model's scores of an output, which must hold the features for a head
    /// ([`Model::asking`]). Without them a head knows nothing: all its scores are 0.
    pub fn scores(&self, model: &Model, output: &Output) -> Scores {
        let Some(served) = model.head() else {
            return Scores {
                probabilities: self.probabilities(&output.logits),
                logits: output.logits.clone(),
                known: None,
            };
        };
        match served
            .head
            .answer(output.features.as_deref().unwrap_or_default())
        {
            Some(fit) => Scores {
                probabilities: head::softmax(&fit.logits),
                logits: fit.logits,
                known: Some(fit.known),
            },
            None => Scores {
                probabilities: vec![0.0; served.labels.len()],
                logits: vec![0.0; served.labels.len()],
                known: Some(0.0),
            },
        }
    }

    /// Returns the `top_k` most probable classes of some scores, without those whose probability is
    /// below `min_probability`.
    ///
    /// Where the picture fits worse than `min_known`, the only class is [`UNKNOWN`], with the share
    /// of training pictures that fit better as its probability. Its index is one beyond the head's
    /// classes.
    pub fn named_classes(
        &self,
        model: &Model,
        scores: &Scores,
        top_k: usize,
        min_probability: f32,
        min_known: f32,
    ) -> Vec<Prediction> {
        let labels = self.labels_of(model);
        if let Some(known) = scores.known.filter(|known| *known < min_known) {
            return vec![Prediction {
                index: labels.len(),
                wnid: None,
                label: UNKNOWN.to_owned(),
                probability: 1.0 - known,
            }];
        }
        head::top_k(&scores.probabilities, top_k)
            .into_iter()
            .take_while(|(_, probability)| *probability >= min_probability)
            .map(|(index, probability)| Prediction::of(labels, index, probability))
            .collect()
    }
}

/// Returns what tells a network's features from another's.
fn network_id(checkpoint: &CheckpointInfo, compute_dtype: &str) -> NetworkId {
    let architecture = &checkpoint.architecture;
    let formula = || format!("formula {}", architecture.name());
    NetworkId {
        digest: checkpoint
            .float_digest()
            .map_or_else(formula, str::to_owned),
        architecture: format!("{} {}", architecture.name(), architecture.variant()),
        preprocessing: describe_preprocessing(&checkpoint.preprocessing),
        compute_dtype: compute_dtype.to_owned(),
        name: checkpoint.id.clone(),
    }
}

/// Checks that a head reads the features of a checkpoint, whatever the type is that computes them.
///
/// # Errors
/// [`HeadError::OtherNetwork`] where it does not.
pub(crate) fn check_network(
    path: &Path,
    head: &Head,
    checkpoint: &CheckpointInfo,
) -> Result<(), HeadError> {
    check(
        path,
        head,
        &network_id(checkpoint, &head.network.compute_dtype),
    )
}

fn check(path: &Path, head: &Head, here: &NetworkId) -> Result<(), HeadError> {
    if reads_features_of(head, here) {
        return Ok(());
    }
    Err(HeadError::OtherNetwork {
        path: path.to_owned(),
        trained_on: describe(&head.network),
        here: describe(here),
    })
}

/// Whether a head can read the features of a network. The type that computes them does not matter:
/// docs/own-classes.md tells what 8-bit integers change.
fn reads_features_of(head: &Head, here: &NetworkId) -> bool {
    let trained = &head.network;
    trained.digest == here.digest
        && trained.architecture == here.architecture
        && trained.preprocessing == here.preprocessing
}

fn describe(network: &NetworkId) -> String {
    let digest: String = network.digest.chars().take(16).collect();
    format!(
        "{} ({}, {digest}, {}, {})",
        network.name, network.architecture, network.preprocessing, network.compute_dtype
    )
}

/// Describes preprocessing in a text that is equal for equal preprocessing.
fn describe_preprocessing(preprocessing: &Preprocessing) -> String {
    let resize = match preprocessing.resize {
        Resize::ShorterSide(side) => side.to_string(),
        Resize::Exact(size) => format!("{}x{}", size.height, size.width),
    };
    format!(
        "resize {resize} {}, crop {}x{}, {} of {}, mean {:?}, deviation {:?}",
        preprocessing.filter,
        preprocessing.crop.height,
        preprocessing.crop.width,
        preprocessing.channels,
        preprocessing.scale.maximum(),
        preprocessing.mean,
        preprocessing.std
    )
}

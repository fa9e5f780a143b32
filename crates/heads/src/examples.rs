//! The pictures that a head is trained on: their features, their classes and their names.

use std::collections::BTreeMap;

use thiserror::Error;

/// The most classes that a head may have.
const MAX_CLASSES: usize = 10_000;

/// The most characters of a label.
pub(crate) const LABEL_LENGTH: usize = 1000;

/// One picture to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The name, for the report.
    pub name: String,
    /// The name of the class.
    pub label: String,
    /// The features.
    pub features: Vec<f32>,
    /// The features of the mirrored picture, where it is to be learned from as well.
    pub mirrored: Option<Vec<f32>>,
}

/// The features of the pictures, with their classes.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// How many numbers each picture has.
    dims: usize,
    /// The features `[pictures, dims]`.
    features: Vec<f32>,
    /// The features of the mirrored pictures, `[pictures, dims]`, or nothing.
    mirrored: Vec<f32>,
    /// Each picture's class, by its index in `labels`.
    classes: Vec<usize>,
    /// Each picture's name, for the report.
    names: Vec<String>,
    /// The names of the classes, sorted.
    labels: Vec<String>,
}

/// Why a head cannot be trained on some pictures.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExampleError {
    /// There are no pictures.
    #[error("there are no pictures to train on")]
    Empty,
    /// There is one class only.
    #[error(
        "all {pictures} pictures are of one class, {label:?}: a classifier needs at least two \
         classes to tell apart; add a folder of other pictures, for example one named \"other\""
    )]
    OneClass {
        /// The class.
        label: String,
        /// How many pictures there are.
        pictures: usize,
    },
    /// There are too many classes.
    #[error("there are {0} classes, and a head may have {MAX_CLASSES}")]
    TooManyClasses(usize),
    /// A class has a single picture, so nothing of it can be held out.
    #[error(
        "class {label:?} has one picture, {name:?}: a class needs at least two, one to learn from \
         and one to check; add pictures, or leave the class out"
    )]
    OnePicture {
        /// The class.
        label: String,
        /// The picture.
        name: String,
    },
    /// A label is empty.
    #[error("the class of {name:?} has no name")]
    NoLabel {
        /// The picture.
        name: String,
    },
    /// A label is too long.
    #[error(
        "the class of {name:?} has a name of {length} characters, and it may have {LABEL_LENGTH}"
    )]
    LongLabel {
        /// The picture.
        name: String,
        /// How many characters the label has.
        length: usize,
    },
    /// A picture's features are not usable.
    #[error("the features of {name:?} are unusable: {reason}")]
    Features {
        /// The picture.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// Checks that pictures, each a name and a label, make classes that can be trained on. It needs no
/// features, so it can come before the work of computing them.
///
/// # Errors
/// [`ExampleError`] says which class cannot be used, and what to do.
pub fn check_classes<'a>(
    pictures: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), ExampleError> {
    // The number of pictures of each class, and the name of its first.
    let mut classes: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    let mut pictures_in_all = 0;
    for (name, label) in pictures {
        if label.trim().is_empty() {
            return Err(ExampleError::NoLabel {
                name: name.to_owned(),
            });
        }
        let length = label.chars().count();
        if length > LABEL_LENGTH {
            return Err(ExampleError::LongLabel {
                name: name.to_owned(),
                length,
            });
        }
        classes.entry(label).or_insert((0, name)).0 += 1;
        pictures_in_all += 1;
    }
    let mut entries = classes.iter();
    match (entries.next(), entries.next()) {
        (None, _) => return Err(ExampleError::Empty),
        (Some((label, _)), None) => {
            return Err(ExampleError::OneClass {
                label: (*label).to_owned(),
                pictures: pictures_in_all,
            });
        }
        _ if classes.len() > MAX_CLASSES => {
            return Err(ExampleError::TooManyClasses(classes.len()));
        }
        _ => {}
    }
    match classes.iter().find(|(_, (count, _))| *count == 1) {
        Some((label, (_, name))) => Err(ExampleError::OnePicture {
            label: (*label).to_owned(),
            name: (*name).to_owned(),
        }),
        None => Ok(()),
    }
}

impl Examples {
    /// Makes examples of pictures. Either all of them have mirrored features or none has.
    ///
    /// # Errors
    /// [`ExampleError`] says which picture or class cannot be used, and what to do.
    pub fn new(pictures: impl IntoIterator<Item = Picture>) -> Result<Self, ExampleError> {
        let mut examples = Self::default();
        let mut labels = Vec::new();
        for picture in pictures {
            let Picture {
                name,
                label,
                features,
                mirrored,
            } = picture;
            if examples.names.is_empty() {
                examples.dims = features.len();
            }
            let unusable = |reason: &str| ExampleError::Features {
                name: name.clone(),
                reason: reason.to_owned(),
            };
            let rows = [Some(&features), mirrored.as_ref()];
            for row in rows.into_iter().flatten() {
                if row.len() != examples.dims || row.is_empty() {
                    return Err(unusable(&format!(
                        "there are {} of them, and other pictures have {}",
                        row.len(),
                        examples.dims
                    )));
                }
                if row.iter().any(|x| !x.is_finite()) {
                    return Err(unusable("one of them is not a finite number"));
                }
            }
            if !examples.names.is_empty() && mirrored.is_some() != examples.has_mirrored() {
                return Err(unusable(
                    "some pictures have mirrored features and others have none",
                ));
            }
            examples.features.extend_from_slice(&features);
            examples.mirrored.extend(mirrored.into_iter().flatten());
            examples.names.push(name);
            labels.push(label);
        }
        examples.set_labels(labels)?;
        Ok(examples)
    }

    /// Numbers the classes in the order of their names.
    fn set_labels(&mut self, labels: Vec<String>) -> Result<(), ExampleError> {
        let names = self.names.iter().map(String::as_str);
        check_classes(names.zip(labels.iter().map(String::as_str)))?;
        let mut indices: BTreeMap<&str, usize> =
            labels.iter().map(|label| (label.as_str(), 0)).collect();
        for (index, entry) in indices.values_mut().enumerate() {
            *entry = index;
        }
        self.classes = labels
            .iter()
            .map(|label| indices.get(label.as_str()).copied().unwrap_or_default())
            .collect();
        self.labels = indices.into_keys().map(str::to_owned).collect();
        Ok(())
    }

    /// Returns how many pictures there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns whether there are no pictures. A value made by [`Examples::new`] has some.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns how many numbers each picture has.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Returns the names of the classes, sorted.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Returns each picture's class, by its index in [`Examples::labels`].
    pub fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Returns each picture's name.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the features of one picture.
    pub(crate) fn row(&self, picture: usize) -> &[f32] {
        &self.features[picture * self.dims..][..self.dims]
    }

    /// Returns the features of one picture or, where there are any, of its mirrored form.
    pub(crate) fn form(&self, picture: usize, mirrored: bool) -> &[f32] {
        let values = if mirrored {
            &self.mirrored
        } else {
            &self.features
        };
        &values[picture * self.dims..][..self.dims]
    }

    /// Whether there are features of mirrored pictures.
    pub(crate) fn has_mirrored(&self) -> bool {
        !self.mirrored.is_empty()
    }

    /// Returns the same pictures with other features, of which there are as many for each picture.
    pub(crate) fn with_features(&self, features: Vec<f32>, mirrored: Vec<f32>) -> Self {
        Self {
            dims: features.len() / self.len().max(1),
            features,
            mirrored,
            classes: self.classes.clone(),
            names: self.names.clone(),
            labels: self.labels.clone(),
        }
    }

    /// Moves the origin of all features to `mean` and divides them by `scale`.
    pub(crate) fn shift_and_scale(&mut self, mean: &[f32], scale: f32) {
        for values in [&mut self.features, &mut self.mirrored] {
            for row in values.chunks_exact_mut(mean.len()) {
                for (x, mean) in row.iter_mut().zip(mean) {
                    *x = (*x - mean) / scale;
                }
            }
        }
    }
}

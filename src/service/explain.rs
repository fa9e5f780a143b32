//! Shows where in a picture the model saw a class: turns the last feature map of an answer into a
//! class activation map, as numbers or as a picture.

use thiserror::Error;

use super::{Answer, Model, Prediction, Service};
use imgclass_image::{HeatMap, Preprocessor, Region, RenderError, RgbImage};
use imgclass_network::head;

/// Which part of a picture the network saw.
#[derive(Debug, Clone)]
pub struct View {
    /// The upright picture's width and height in pixels.
    pub size: (u32, u32),
    /// The part that the network sees, in pixels of the upright picture.
    pub region: Region,
    /// The picture, if it was asked for; no larger than [`View::MAX_SIDE`].
    picture: Option<RgbImage>,
}

impl View {
    /// The longest side of a kept picture, in pixels. That is enough for a screen, and takes 3 MB
    /// at most.
    pub const MAX_SIDE: u32 = 1024;

    pub(super) fn of(
        size: (u32, u32),
        picture: Option<RgbImage>,
        preprocessor: &Preprocessor,
    ) -> Self {
        Self {
            size,
            region: preprocessor.region(size),
            picture,
        }
    }
}

/// Why there is no explanation.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The answer lacks the feature map or the picture, or there is no such class. Holds the class;
    /// the caller did not ask for what it needs.
    #[error("the answer does not hold what an explanation of class {0} needs")]
    Incomplete(usize),
    /// The map of this class has numbers beyond `f32`.
    #[error("the class activation map of class {0} is not finite: the weights are damaged")]
    NotFinite(usize),
    /// The picture cannot be drawn.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// Where in a picture the network saw a class.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The class that is explained.
    pub prediction: Prediction,
    /// The class activation map, row by row. Its mean plus the bias of the class is the logit of
    /// the class.
    pub grid: Vec<Vec<f32>>,
    view: View,
}

impl Service {
    /// Explains one class of a model in an answer to [`Ask::explanation`](super::Ask::explanation):
    /// the most probable one if `class` is `None`. The map of a head is as exact as that of the
    /// checkpoint's own classes: both are linear in the features.
    ///
    /// # Errors
    /// [`ExplainError::Incomplete`] where the answer has no feature map or there is no such class,
    /// [`ExplainError::NotFinite`] where the map overflows.
    pub fn explain(
        &self,
        model: &Model,
        answer: Answer,
        class: Option<usize>,
    ) -> Result<Explanation, ExplainError> {
        let probabilities = self.scores(model, &answer.output).probabilities;
        let top = || {
            head::top_k(&probabilities, 1)
                .first()
                .map_or(0, |top| top.0)
        };
        let class = class.unwrap_or_else(top);
        let incomplete = || ExplainError::Incomplete(class);
        let map = match model.head() {
            None => self.classifier.class_activation_map(&answer.output, class),
            Some(served) => {
                let map = answer.output.feature_map.as_deref();
                map.zip(served.head.class_weights(class))
                    .map(|(map, weights)| head::class_activation_map(map, weights))
            }
        };
        let (map, view) = map.zip(answer.view).ok_or_else(incomplete)?;
        if !map.iter().all(|x| x.is_finite()) {
            return Err(ExplainError::NotFinite(class));
        }
        let probability = probabilities.get(class).copied().ok_or_else(incomplete)?;
        let width = self.map_size().1.max(1);
        Ok(Explanation {
            prediction: Prediction::of(self.labels_of(model), class, probability),
            grid: map.chunks(width).map(<[f32]>::to_vec).collect(),
            view,
        })
    }

    /// Returns rows and columns of a class activation map.
    pub fn map_size(&self) -> (usize, usize) {
        // The network halves its input five times, rounding up.
        let (_, height, width) = self.input_shape();
        (height.div_ceil(32), width.div_ceil(32))
    }
}

impl Explanation {
    /// Returns the upright picture's width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.view.size
    }

    /// Returns the part of the upright picture that the map covers, in pixels.
    pub fn region(&self) -> Region {
        self.view.region
    }

    /// Draws the map in colours over the picture and returns a PNG. `opacity` is that of the
    /// colours, from 0 to 1.
    ///
    /// # Errors
    /// [`ExplainError::Incomplete`] where the picture was not kept, [`ExplainError::Render`] where
    /// it cannot be drawn.
    pub fn overlay(&self, opacity: f32) -> Result<Vec<u8>, ExplainError> {
        let (picture, map) = self.drawn()?;
        Ok(map.over(picture, opacity)?)
    }

    /// Draws the map alone and returns a PNG of the size that [`Explanation::overlay`] has. It is
    /// transparent where the network does not look.
    ///
    /// # Errors
    /// As [`Explanation::overlay`].
    pub fn heatmap(&self) -> Result<Vec<u8>, ExplainError> {
        let (picture, map) = self.drawn()?;
        Ok(map.alone((picture.width(), picture.height()))?)
    }

    fn drawn(&self) -> Result<(&RgbImage, HeatMap), ExplainError> {
        let picture = self.view.picture.as_ref();
        let picture = picture.ok_or(ExplainError::Incomplete(self.prediction.index))?;
        let (width, height) = self.view.size;
        let region = self.view.region.scaled(
            f64::from(picture.width()) / f64::from(width),
            f64::from(picture.height()) / f64::from(height),
        );
        let size = (self.grid.len(), self.grid.first().map_or(0, Vec::len));
        Ok((picture, HeatMap::new(&self.grid.concat(), size, region)?))
    }
}

//! Why the model says what it says: where in the picture it saw a class. Turns a class activation map into numbers and pictures for people;
//! runs no model.

use thiserror::Error;

use super::{Answer, Prediction, Service};
use imgclass_image::{HeatMap, Preprocessor, Region, RenderError, RgbImage};
use imgclass_network::head;

/// How the network saw a picture.
#[derive(Debug, Clone)]
pub struct View {
    /// The upright picture's width and height in pixels.
    pub size: (u32, u32),
    /// The part of it that the network sees, in its pixels.
    pub region: Region,
    /// The picture, where it was asked for.
    picture: Option<RgbImage>,
}

impl View {
    /// Pictures are kept and shown with no side longer than this many pixels: enough for a screen, and 3 MB at most.
    pub const MAX_SIDE: u32 = 1024;

    pub(super) fn of(picture: RgbImage, preprocessor: &Preprocessor, keep: bool) -> Self {
        let size = (picture.width(), picture.height());
        Self {
            size,
            region: preprocessor.region(size),
            picture: keep.then(|| picture.fitted(Self::MAX_SIDE)),
        }
    }
}

/// There is no explanation.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The answer lacks the last feature map or the picture, or there is no such class: the asker's mistake.
    #[error("the answer does not hold what an explanation of class {0} needs")]
    Incomplete(usize),
    /// The picture could not be drawn.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// Where a class was seen.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The class that is explained.
    pub prediction: Prediction,
    /// The class activation map, row by row: its mean plus the class's bias is the class's logit.
    pub grid: Vec<Vec<f32>>,
    view: View,
}

impl Service {
    /// Where in the picture of an answer to [`Ask::explanation`](super::Ask::explanation) the model saw a class; the most probable one, where
    /// none is given.
    pub fn explain(
        &self,
        answer: Answer,
        class: Option<usize>,
    ) -> Result<Explanation, ExplainError> {
        let probabilities = head::softmax(&answer.output.logits);
        let top = || {
            head::top_k(&probabilities, 1)
                .first()
                .map_or(0, |top| top.0)
        };
        let class = class.unwrap_or_else(top);
        let incomplete = || ExplainError::Incomplete(class);
        let map = self.classifier.class_activation_map(&answer.output, class);
        let (map, view) = map.zip(answer.view).ok_or_else(incomplete)?;
        let probability = probabilities.get(class).copied().ok_or_else(incomplete)?;
        let width = self.map_size().1.max(1);
        Ok(Explanation {
            prediction: self.prediction(class, probability),
            grid: map.chunks(width).map(<[f32]>::to_vec).collect(),
            view,
        })
    }

    /// Rows and columns of a class activation map.
    pub fn map_size(&self) -> (usize, usize) {
        // The network halves its input five times, rounding up.
        let (_, height, width) = self.input_shape();
        (height.div_ceil(32), width.div_ceil(32))
    }
}

impl Explanation {
    /// The upright picture's width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.view.size
    }

    /// The part of the picture that the map covers, in its pixels.
    pub fn region(&self) -> Region {
        self.view.region
    }

    /// The picture, no larger than [`View::MAX_SIDE`], with the map in colours over it, as PNG. `opacity` is from 0 to 1.
    pub fn overlay(&self, opacity: f32) -> Result<Vec<u8>, ExplainError> {
        let (picture, map) = self.drawn()?;
        Ok(map.over(picture, opacity)?)
    }

    /// The map in colours alone, as PNG of the size of [`Explanation::overlay`]; transparent where the network does not see.
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

//! Decodes AVIF: a still picture, a grid of tiles, or the first frame of a sequence, to the pixels
//! that Pillow gets from libavif.
//!
//! The container (`container`) and the sequence header of the coded data (`sequence`) are read here,
//! before anything of the picture's size is allocated. `imgclass-av1` decodes the coded data to luma
//! and chroma, and `colour` makes RGB of them. Alpha is dropped, so that it is not even decoded.

mod boxes;
mod colour;
mod container;
mod sequence;

use imgclass_av1::{DecodeError, Frame, Layout, Options, Plane, Sample};

use crate::error::Refusal;
use crate::orientation::Orientation;

use colour::Conversion;
use container::Source;
use sequence::SequenceHeader;

/// How far into the coded data a sequence header is looked for.
const SEQUENCE_HEADER_WITHIN: usize = 4096;

/// What the container and the sequence header of an AVIF file tell.
#[derive(Debug, Clone)]
pub(super) struct Header {
    source: Source,
    sequence: SequenceHeader,
    conversion: Conversion,
}

impl Header {
    /// Reads the container and the sequence header.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let source = container::read(bytes)?;
        let first = source.tiles.first().ok_or_else(Refusal::cut_off)?;
        let sequence = SequenceHeader::find(&first.first(bytes, SEQUENCE_HEADER_WITHIN))?;
        let (width, height) = source.size;
        let (tile_width, tile_height) = source.tile_size;
        let (rows, columns) = source.grid;
        if width == 0 || height == 0 {
            return Err(Refusal::malformed("it has no pixels"));
        }
        // Tiles cover the picture, and each holds a part of it.
        let covers = |side: u32, tile: u32, count: u32| {
            let (side, tile, count) = (u64::from(side), u64::from(tile), u64::from(count));
            (count - 1) * tile < side && side <= count * tile
        };
        if !covers(width, tile_width, columns) || !covers(height, tile_height, rows) {
            return Err(Refusal::malformed(
                "the tiles of its grid do not cover the picture",
            ));
        }
        let is_halved = |count: u32, side: u32| count > 1 && side % 2 == 1;
        let (halves_width, halves_height) = match sequence.layout {
            Layout::Half => (true, true),
            Layout::HalfWidth => (true, false),
            Layout::Monochrome | Layout::Full => (false, false),
        };
        if halves_width && is_halved(columns, tile_width)
            || halves_height && is_halved(rows, tile_height)
        {
            return Err(Refusal::malformed(
                "the tiles of its grid share samples of chroma",
            ));
        }
        let colour = source.colour.unwrap_or(sequence.colour);
        let conversion =
            Conversion::new(colour, sequence.depth, sequence.layout, source.has_alpha)?;
        Ok(Self {
            source,
            sequence,
            conversion,
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        self.source.size
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.source.orientation
    }

    /// Returns an upper bound of the bytes that decoding holds beside the RGB picture, which is made
    /// when the decoder has been closed.
    pub(super) fn working_bytes(&self) -> u64 {
        let SequenceHeader { depth, layout, .. } = self.sequence;
        let (width, height) = self.source.size;
        let (tile_width, tile_height) = self.source.tile_size;
        let coded = self.source.tiles.iter().map(container::Data::length).max();
        let frame = imgclass_av1::frame_bytes(width, height, depth, layout);
        // Decoding: the coded data twice (joined, and the decoder's copy), what the decoder needs
        // for a tile, and in a grid the samples of all tiles together.
        let decoding = imgclass_av1::working_bytes(tile_width, tile_height, depth, layout)
            .saturating_add(if self.is_grid() { frame } else { 0 })
            .saturating_add(2 * coded.unwrap_or(0) as u64);
        let rgb = u64::from(width)
            .saturating_mul(u64::from(height))
            .saturating_mul(3);
        let converting = frame.saturating_add(Conversion::row_bytes(width));
        converting.max(decoding.saturating_sub(rgb))
    }

    fn is_grid(&self) -> bool {
        self.source.grid != (1, 1)
    }

    /// Decodes the picture to RGB as it is stored.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        if self.sequence.depth > 8 {
            self.decode_samples::<u16>(bytes)
        } else {
            self.decode_samples::<u8>(bytes)
        }
    }

    fn decode_samples<T: Sample>(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        if self.is_grid() {
            let canvas = Canvas::<T>::decode(self, bytes)?;
            return self.conversion.convert(&canvas.planes()?);
        }
        let frame = self.decode_tile(bytes, 0)?;
        self.conversion.convert(&planes::<T>(&frame)?)
    }

    /// Decodes a tile, and compares what comes with what was announced.
    fn decode_tile(&self, bytes: &[u8], index: usize) -> Result<Frame, Refusal> {
        let (width, height) = self.source.tile_size;
        let options = Options {
            operating_point: self.source.operating_point,
            layer: self.source.layer,
            ..Options::of_size(width, height)
        };
        let data = self.source.tiles.get(index).ok_or_else(Refusal::cut_off)?;
        let data = data.first(bytes, usize::MAX);
        let frame = imgclass_av1::decode(&data, &options).map_err(refusal)?;
        if frame.size() != self.source.tile_size {
            let (found_width, found_height) = frame.size();
            return Err(Refusal::malformed(&format!(
                "its container announces {width}x{height} pixels, its AV1 data holds \
                 {found_width}x{found_height}"
            )));
        }
        if (frame.depth(), frame.layout()) != (self.sequence.depth, self.sequence.layout) {
            return Err(Refusal::malformed(
                "its AV1 data contradicts its first header",
            ));
        }
        Ok(frame)
    }
}

fn refusal(error: DecodeError) -> Refusal {
    match error {
        DecodeError::NoPicture => Refusal::cut_off(),
        error => Refusal::malformed(&error.to_string()),
    }
}

/// Luma, and chroma if there is any: blue, then red.
pub(super) struct Planes<'a, T> {
    luma: Plane<'a, T>,
    chroma: Option<[Plane<'a, T>; 2]>,
}

/// Returns the planes of a frame.
fn planes<T: Sample>(frame: &Frame) -> Result<Planes<'_, T>, Refusal> {
    let plane = |index| {
        let missing = || Refusal::malformed("its AV1 data has fewer planes than announced");
        frame.plane::<T>(index).ok_or_else(missing)
    };
    Ok(Planes {
        luma: plane(0)?,
        chroma: match frame.layout() {
            Layout::Monochrome => None,
            _ => Some([plane(1)?, plane(2)?]),
        },
    })
}

/// The samples of a grid's tiles, side by side. Chroma is only then brought to the size of luma, so
/// that there are no seams.
struct Canvas<T> {
    size: (usize, usize),
    chroma_size: (usize, usize),
    samples: [Vec<T>; 3],
}

impl<T: Sample> Canvas<T> {
    fn decode(header: &Header, bytes: &[u8]) -> Result<Self, Refusal> {
        let (width, height) = header.source.size;
        let size = (width as usize, height as usize);
        let chroma_size = match header.sequence.layout {
            Layout::Monochrome => (0, 0),
            Layout::Half => (size.0.div_ceil(2), size.1.div_ceil(2)),
            Layout::HalfWidth => (size.0.div_ceil(2), size.1),
            Layout::Full => size,
        };
        let sizes = [size, chroma_size, chroma_size];
        let mut canvas = Self {
            size,
            chroma_size,
            samples: sizes.map(|(width, height)| vec![T::default(); width * height]),
        };
        let columns = header.source.grid.1 as usize;
        for index in 0..header.source.tiles.len() {
            let frame = header.decode_tile(bytes, index)?;
            let planes = planes::<T>(&frame)?;
            let place = (index % columns, index / columns);
            canvas.copy(0, size, place, &planes.luma);
            for (chroma, plane) in planes.chroma.iter().flatten().enumerate() {
                canvas.copy(1 + chroma, chroma_size, place, plane);
            }
        }
        Ok(canvas)
    }

    /// Copies a tile's plane to its place, as far as the picture goes.
    fn copy(
        &mut self,
        index: usize,
        (width, height): (usize, usize),
        (column, row): (usize, usize),
        plane: &Plane<'_, T>,
    ) {
        let (tile_width, tile_height) = plane.size();
        let left = column * tile_width;
        let length = tile_width.min(width.saturating_sub(left));
        for y in 0..tile_height {
            let line = row * tile_height + y;
            if line >= height {
                break;
            }
            let at = line * width + left;
            self.samples[index][at..at + length].copy_from_slice(&plane.row(y)[..length]);
        }
    }

    fn planes(&self) -> Result<Planes<'_, T>, Refusal> {
        let plane = |index: usize, (width, height)| {
            Plane::new(&self.samples[index], width, height).ok_or_else(Refusal::cut_off)
        };
        Ok(Planes {
            luma: plane(0, self.size)?,
            chroma: match self.chroma_size {
                (0, 0) => None,
                size => Some([plane(1, size)?, plane(2, size)?]),
            },
        })
    }
}

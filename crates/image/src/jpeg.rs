//! Decodes JPEGs to the pixels of libjpeg-turbo, which is what Pillow uses: baseline, extended and
//! progressive, with 8 bits, any sampling that libjpeg takes, grey, RGB, YCbCr, CMYK and YCCK.
//!
//! ```text
//! bytes ── markers ──► tables, frame and scan headers
//!             │ bits, huffman, scan
//!             ▼
//!        coefficients ── idct ──► planes ── upsampling, colour ──► RGB
//! ```
//!
//! [`picture`] walks over the scans; [`layout`] says how many blocks each component has.
//!
//! A JPEG whose only scan has all components goes from a block's coefficients straight to its
//! samples. All others keep their coefficients until the last scan.
//!
//! Damage is treated as Pillow treats it. Where entropy-coded data end early or make no sense,
//! libjpeg goes on with what it has, and so does this decoder, to the same pixels. A file that ends
//! before its picture does is refused, and so is one with a marker that nobody knows.

mod bits;
mod huffman;
mod idct;
mod layout;
mod markers;
mod picture;
mod planes;
mod scan;
mod smoothing;

use self::layout::{block_size, layouts};
use self::markers::{ColourModel, Frame, Markers};
use self::picture::Picture;
use crate::error::Refusal;
use crate::orientation::{self, Orientation};
use crate::reduction::Reduction;

/// What the markers before the first scan tell.
#[derive(Debug, Clone)]
pub(super) struct Header {
    frame: Frame,
    orientation: Orientation,
    has_one_scan: bool,
}

impl Header {
    /// Reads the markers before the first scan.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let header = Self::read_any(bytes)?;
        match header.frame.components.len() {
            1 | 3 | 4 => Ok(header),
            count => Err(Refusal::Unsupported(format!(
                "a JPEG of {count} components"
            ))),
        }
    }

    /// Reads the markers of a JPEG with any number of components.
    fn read_any(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut markers = Markers::new(bytes)?;
        let (scan, frame) = match (markers.next()?, markers.frame()) {
            (Some(scan), Some(frame)) => (scan, frame.clone()),
            _ => return Err(Refusal::malformed("it holds no picture")),
        };
        Ok(Self {
            has_one_scan: !frame.is_progressive && scan.components.len() == frame.components.len(),
            frame,
            orientation: orientation::of_jpeg(markers.exif(), markers.xmp()),
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        (self.frame.width.into(), self.frame.height.into())
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Returns an upper bound of the bytes that decoding at this size holds beside the RGB picture:
    /// the planes in whole MCUs, and the coefficients where there are several scans.
    pub(super) fn working_bytes(&self, reduction: Reduction) -> u64 {
        let coefficients = if self.has_one_scan { 0 } else { 128 };
        let parts = self.frame.components.iter().zip(layouts(&self.frame));
        let planes: u64 = parts
            .map(|(component, layout)| {
                let side = block_size(&self.frame, component, reduction) as u64;
                layout.padded_blocks() as u64 * (side * side + coefficients)
            })
            .sum();
        let width = u64::from(reduction.side(self.frame.width.into()));
        planes + width * (self.frame.components.len() as u64 + 2)
    }

    /// Decodes the picture to RGB at the size that `reduction` asks for.
    pub(super) fn decode(&self, bytes: &[u8], reduction: Reduction) -> Result<Vec<u8>, Refusal> {
        let (planes, model) = Picture::new(bytes, self, reduction)?.decode()?;
        let (width, height) = self.size();
        let size = (
            reduction.side(width) as usize,
            reduction.side(height) as usize,
        );
        let is_fancy = reduction != Reduction::Eighth;
        Ok(planes::to_rgb(&planes, model, size, is_fancy))
    }
}

/// What a JPEG inside another file holds. That file tells its colours; the JPEG's own markers do not
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inner {
    /// Three channels, which become RGB.
    YCbCr,
    /// So many channels, which stay as they are.
    Plain(usize),
}

/// Decodes a JPEG inside another file to `out`: `rows` rows of `width` pixels, interleaved. The JPEG
/// must be as wide, and may be higher, up to `most_rows`.
pub(super) fn decode_inner(
    bytes: &[u8],
    inner: Inner,
    (width, rows, most_rows): (usize, usize, usize),
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let header = Header::read_any(bytes)?;
    let (found_width, found_height) = (header.frame.width.into(), header.frame.height.into());
    let found_channels = header.frame.components.len();
    let channels = match inner {
        Inner::YCbCr => 3,
        Inner::Plain(channels) => channels,
    };
    if width != found_width || !(rows..=most_rows).contains(&found_height) {
        return Err(Refusal::Malformed(format!(
            "the JPEG inside has {found_width}x{found_height} pixels where {width}x{rows} belong"
        )));
    }
    if channels != found_channels {
        return Err(Refusal::Malformed(format!(
            "the JPEG inside has {found_channels} channels instead of {channels}"
        )));
    }
    let (planes, _) = Picture::new(bytes, &header, Reduction::Full)?.decode()?;
    *out = match inner {
        Inner::YCbCr => planes::to_rgb(&planes, ColourModel::YCbCr, (width, rows), true),
        Inner::Plain(_) => planes::interleaved(&planes, (width, rows)),
    };
    Ok(())
}

/// Joins a JPEG of nothing but tables with one that lacks them.
pub(super) fn joined(tables: &[u8], picture: &[u8]) -> Vec<u8> {
    let tables = tables.strip_suffix(&[0xFF, markers::EOI]).unwrap_or(tables);
    let picture = picture
        .strip_prefix(&[0xFF, markers::SOI])
        .unwrap_or(picture);
    [tables, picture].concat()
}

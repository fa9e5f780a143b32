//! Decodes WebP: a still picture, or the first frame of an animation, as Pillow and libwebp show it.
//!
//! The container is read here and its pixels by the crate `image`, which gets nothing but the chunk
//! that holds them. So chunks of metadata are never allocated, however large they claim to
//! be. Alpha is dropped, so that its chunk is not read either.

use std::io::Cursor;

use ::image::codecs::webp::WebPDecoder;
use ::image::{ColorType, ImageDecoder};

use crate::bytes::{array, u16_le, u32_le};
use crate::error::Refusal;
use crate::orientation::{self, Orientation};

/// Flags of an extended header.
const HAS_ANIMATION: u8 = 0x02;
const HAS_XMP: u8 = 0x04;
const HAS_EXIF: u8 = 0x08;

/// The name and size before the contents of a chunk.
const CHUNK_HEADER: usize = 8;
/// The bytes before the chunks in the frame of an animation.
const FRAME_HEADER: usize = 16;

/// What the container of a WebP tells.
#[derive(Debug, Clone)]
pub(super) struct Header {
    canvas: (u32, u32),
    /// Where the picture lies on the canvas.
    offset: (u32, u32),
    picture: Picture,
    orientation: Orientation,
}

/// The chunk that holds the pixels.
#[derive(Debug, Clone, Copy)]
struct Picture {
    is_lossless: bool,
    start: usize,
    end: usize,
    width: u32,
    height: u32,
}

/// A chunk: its name, and where its contents begin and end.
struct Chunk {
    name: [u8; 4],
    start: usize,
    end: usize,
}

impl Header {
    /// Reads the container.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        // Bytes behind the container do not count; all before must be there.
        let end = (u32_le(bytes, 4)? as usize).saturating_add(8);
        let bytes = bytes.get(..end).ok_or_else(Refusal::cut_off)?;
        let first = chunk(bytes, 12)?;
        match &first.name {
            b"VP8X" => Self::read_extended(bytes, &first),
            b"VP8 " | b"VP8L" => {
                let picture = Picture::read(bytes, &first)?;
                Ok(Self {
                    canvas: (picture.width, picture.height),
                    offset: (0, 0),
                    picture,
                    orientation: Orientation::Upright,
                })
            }
            _ => Err(Refusal::malformed("it begins with an unknown chunk")),
        }
    }

    fn read_extended(bytes: &[u8], header: &Chunk) -> Result<Self, Refusal> {
        let [flags, _, _, _, w0, w1, w2, h0, h1, h2] = array(&bytes[..header.end], header.start)?;
        let canvas = (
            u32::from_le_bytes([w0, w1, w2, 0]) + 1,
            u32::from_le_bytes([h0, h1, h2, 0]) + 1,
        );
        let is_animated = flags & HAS_ANIMATION != 0;
        let (mut exif, mut xmp, mut found) = (None, None, None);
        let mut at = padded(header.end);
        while at < bytes.len() {
            let chunk = chunk(bytes, at)?;
            at = padded(chunk.end);
            let contents = &bytes[chunk.start..chunk.end];
            match &chunk.name {
                b"VP8 " | b"VP8L" if !is_animated && found.is_none() => {
                    found = Some((Picture::read(bytes, &chunk)?, (0, 0)));
                }
                b"ANMF" if is_animated && found.is_none() => {
                    found = Some(read_frame(bytes, &chunk)?);
                }
                // What the header does not announce is ignored, as by libwebp.
                b"EXIF" if flags & HAS_EXIF != 0 => exif = exif.or(Some(contents)),
                b"XMP " if flags & HAS_XMP != 0 => xmp = xmp.or(Some(contents)),
                _ => {}
            }
        }
        let Some((picture, offset)) = found else {
            return Err(Refusal::malformed("it holds no picture"));
        };
        let size = (picture.width, picture.height);
        let fits = |offset: u32, length: u32, canvas: u32| offset + length <= canvas;
        if !is_animated && size != canvas
            || !fits(offset.0, size.0, canvas.0)
            || !fits(offset.1, size.1, canvas.1)
        {
            return Err(Refusal::malformed("its picture does not fit its canvas"));
        }
        Ok(Self {
            canvas,
            offset,
            picture,
            orientation: orientation::from_blocks(exif, xmp),
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        self.canvas
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Returns an upper bound of the bytes that decoding holds beside the RGB picture, from the
    /// buffers of the decoder at the locked version.
    pub(super) fn working_bytes(&self) -> u64 {
        let Picture {
            is_lossless,
            start,
            end,
            width,
            height,
        } = self.picture;
        let pixels = u64::from(width) * u64::from(height);
        let encoded = (end - start) as u64;
        // Lossy: planes of luma and chroma, a little over 1.5 bytes a pixel. Lossless: RGBA, and
        // as much for the transforms. An animation's frame is copied to its canvas.
        let frame = if is_lossless { 9 } else { 2 };
        let copy = if self.is_whole_canvas() { 0 } else { 3 };
        pixels * (frame + copy) + encoded
    }

    fn is_whole_canvas(&self) -> bool {
        (self.picture.width, self.picture.height) == self.canvas
    }

    /// Decodes the picture to RGB. What a frame leaves of the canvas is black.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let frame = self.picture.decode(bytes)?;
        if self.is_whole_canvas() {
            return Ok(frame);
        }
        let (width, height) = (self.canvas.0 as usize, self.canvas.1 as usize);
        let mut canvas = vec![0; width * height * 3];
        let row_bytes = self.picture.width as usize * 3;
        for (y, row) in frame.chunks_exact(row_bytes).enumerate() {
            let at = ((self.offset.1 as usize + y) * width + self.offset.0 as usize) * 3;
            canvas[at..at + row_bytes].copy_from_slice(row);
        }
        Ok(canvas)
    }
}

impl Picture {
    /// Reads the size from the beginning of a chunk of pixels.
    fn read(bytes: &[u8], chunk: &Chunk) -> Result<Self, Refusal> {
        let contents = &bytes[chunk.start..chunk.end];
        let is_lossless = &chunk.name == b"VP8L";
        let (width, height) = if is_lossless {
            let ([0x2F], bits) = (array(contents, 0)?, u32_le(contents, 1)?) else {
                return Err(Refusal::malformed("its picture has a wrong signature"));
            };
            ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        } else {
            if array(contents, 3)? != [0x9D, 0x01, 0x2A] {
                return Err(Refusal::malformed("its picture has a wrong signature"));
            }
            let side = |at| u16_le(contents, at).map(|side| u32::from(side & 0x3FFF));
            (side(6)?, side(8)?)
        };
        Ok(Self {
            is_lossless,
            start: chunk.start,
            end: chunk.end,
            width,
            height,
        })
    }

    /// Decodes the pixels to RGB.
    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let contents = bytes
            .get(self.start..self.end)
            .ok_or_else(Refusal::cut_off)?;
        // A file of nothing but this chunk.
        let length = contents.len() as u32;
        let mut file = Vec::with_capacity(contents.len() + 21);
        file.extend_from_slice(b"RIFF");
        file.extend_from_slice(&(length + length % 2 + 12).to_le_bytes());
        file.extend_from_slice(if self.is_lossless {
            b"WEBPVP8L"
        } else {
            b"WEBPVP8 "
        });
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(contents);
        file.resize(file.len().next_multiple_of(2), 0);
        let decoder = WebPDecoder::new(Cursor::new(file)).map_err(refusal)?;
        let channels = if decoder.color_type() == ColorType::Rgba8 {
            4
        } else {
            3
        };
        let pixels = self.width as usize * self.height as usize;
        if decoder.dimensions() != (self.width, self.height)
            || decoder.total_bytes() != (pixels * channels) as u64
        {
            return Err(Refusal::malformed("its headers contradict each other"));
        }
        let mut samples = vec![0; pixels * channels];
        decoder.read_image(&mut samples).map_err(refusal)?;
        if channels == 4 {
            for pixel in 0..pixels {
                samples.copy_within(pixel * 4..pixel * 4 + 3, pixel * 3);
            }
            samples.truncate(pixels * 3);
        }
        Ok(samples)
    }
}

/// Reads an animation's frame: its picture and where that lies on the canvas.
fn read_frame(bytes: &[u8], frame: &Chunk) -> Result<(Picture, (u32, u32)), Refusal> {
    let bytes = &bytes[..frame.end];
    let [x0, x1, x2, y0, y1, y2] = array(bytes, frame.start)?;
    let offset = (
        u32::from_le_bytes([x0, x1, x2, 0]) * 2,
        u32::from_le_bytes([y0, y1, y2, 0]) * 2,
    );
    let mut at = frame.start + FRAME_HEADER;
    while at < frame.end {
        let chunk = chunk(bytes, at)?;
        if matches!(&chunk.name, b"VP8 " | b"VP8L") {
            return Ok((Picture::read(bytes, &chunk)?, offset));
        }
        at = padded(chunk.end);
    }
    Err(Refusal::malformed("its first frame holds no picture"))
}

/// Returns the chunk at `at`, which must be there whole.
fn chunk(bytes: &[u8], at: usize) -> Result<Chunk, Refusal> {
    let name = array(bytes, at)?;
    let size = u32_le(bytes, at + 4)? as usize;
    let start = at + CHUNK_HEADER;
    let end = start.checked_add(size).filter(|&end| end <= bytes.len());
    Ok(Chunk {
        name,
        start,
        end: end.ok_or_else(Refusal::cut_off)?,
    })
}

/// Chunks are padded to an even length.
fn padded(end: usize) -> usize {
    end + end % 2
}

fn refusal(error: ::image::ImageError) -> Refusal {
    match error {
        ::image::ImageError::Limits(_) => Refusal::TooMuchMemory,
        ::image::ImageError::IoError(_) => Refusal::cut_off(),
        other => Refusal::malformed(&other.to_string()),
    }
}

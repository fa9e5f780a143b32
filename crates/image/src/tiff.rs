//! Decodes the first page of a TIFF or BigTIFF to RGB, as Pillow and libtiff show it.
//!
//! ```text
//! directory ──► Page: size, layout of the samples, where the strips or tiles are
//!    compression, ccitt, jpeg │ one strip or tile at a time (of all planes)
//!                             ▼
//!                  predictor ──► samples ──► RGB
//! ```
//!
//! What a file may ask for is bounded by its size: a picture's strips and tiles together may read no
//! more than some times the file's bytes, and unpack no more than some times the picture's. A JPEG
//! inside must have the size of its strip or tile.

mod ccitt;
mod compression;
mod directory;
mod samples;

use self::compression::Compression;
use self::directory::{Directory, tag};
use self::samples::{Colour, Layout, Number};
use crate::error::Refusal;
use crate::jpeg;
use crate::orientation::{self, Orientation};

/// How many times the file's bytes its strips and tiles may read together.
const READS_PER_BYTE: usize = 4;

/// Bytes of JPEG tables that a strip or tile may have beside its own data. Encoders write some 600. What
/// is more counts as read for each strip anew, because it is.
const USUAL_TABLES: usize = 2048;

/// How many times the picture's samples its strips and tiles may unpack to together, apart from
/// [`SMALL`]. Tiles of 16 x 16 for a picture one pixel wide take 16 times.
const UNPACKED_PER_SAMPLE: u64 = 64;

/// Bytes that any picture may unpack to.
const SMALL: u64 = 4 << 20;

/// What the first directory of a TIFF tells.
#[derive(Debug, Clone)]
pub(super) struct Header {
    directory: Directory,
    width: u32,
    height: u32,
    orientation: Orientation,
    coding: Coding,
    layout: Layout,
    is_planar: bool,
    is_bit_reversed: bool,
    predictor: Predictor,
    /// The sides of a strip or tile.
    chunk: (u32, u32),
    is_tiled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Bytes(Compression),
    Jpeg(jpeg::Inner),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Predictor {
    None,
    /// Each sample is stored as its difference from the one before.
    Horizontal,
    /// The same for the bytes of floating-point numbers, sorted by their weight.
    FloatingPoint,
}

impl Header {
    /// Reads the first directory.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let directory = Directory::read(bytes)?;
        let first = |tag| directory.first(bytes, tag);
        let side = |tag| match first(tag) {
            Some(side @ 1..=0xFFFF_FFFF) => Ok(side as u32),
            Some(_) => Err(Refusal::malformed("it has no pixels")),
            None => Err(Refusal::malformed("its first page has no size")),
        };
        let (width, height) = (side(tag::WIDTH)?, side(tag::HEIGHT)?);
        let is_planar = first(tag::PLANAR) == Some(2);
        let photometric = first(tag::PHOTOMETRIC).unwrap_or(0);
        let compression = first(tag::COMPRESSION).unwrap_or(1);
        let layout = layout(&directory, bytes, photometric, compression)?;
        let coding = coding(
            &directory,
            bytes,
            compression,
            photometric,
            &layout,
            is_planar,
        )?;
        let is_predicted = matches!(
            coding,
            Coding::Bytes(
                Compression::Lzw | Compression::Deflate | Compression::Zstd | Compression::Lzma
            )
        );
        let predictor = match first(tag::PREDICTOR) {
            _ if !is_predicted => Predictor::None,
            None | Some(1) => Predictor::None,
            Some(2) if layout.bits % 8 == 0 => Predictor::Horizontal,
            Some(3) if layout.number == Number::Float => Predictor::FloatingPoint,
            Some(other) => {
                return Err(unsupported(format!(
                    "with predictor {other} for samples of {} bits",
                    layout.bits
                )));
            }
        };
        let is_tiled = first(tag::STRIP_OFFSETS).is_none() && first(tag::TILE_OFFSETS).is_some();
        let chunk = if is_tiled {
            (side(tag::TILE_WIDTH)?, side(tag::TILE_HEIGHT)?)
        } else {
            let rows = first(tag::ROWS_PER_STRIP).unwrap_or(u64::MAX);
            (width, rows.clamp(1, u64::from(height)) as u32)
        };
        if layout.bits % 8 != 0 && is_planar && layout.channels > 1 {
            return Err(unsupported(format!(
                "of planes of {} bits per sample",
                layout.bits
            )));
        }
        let header = Self {
            directory,
            width,
            height,
            orientation: orientation(&directory, bytes),
            coding,
            layout,
            is_planar,
            is_bit_reversed: first(tag::FILL_ORDER) == Some(2),
            predictor,
            chunk,
            is_tiled,
        };
        let unpacked = header.unpacked_bytes();
        let samples = u64::from(width)
            .saturating_mul(u64::from(height))
            .saturating_mul(header.layout.pixel_bits())
            / 8;
        if unpacked
            > samples
                .saturating_mul(UNPACKED_PER_SAMPLE)
                .saturating_add(SMALL)
        {
            return Err(Refusal::malformed(
                "its tiles hold much more than the picture does",
            ));
        }
        Ok(header)
    }

    pub(super) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Returns an upper bound of the bytes that decoding holds beside the RGB picture: a strip or
    /// tile, of all planes, and what its decompression needs.
    pub(super) fn working_bytes(&self) -> u64 {
        let rows = u64::from(self.chunk.1.min(self.height));
        let pixels = u64::from(self.chunk.0).saturating_mul(rows);
        let unpacked = (pixels.saturating_mul(self.layout.pixel_bits()) / 8).saturating_add(rows);
        let beside = match self.coding {
            Coding::Bytes(compression) => compression.working_bytes(unpacked),
            // Planes and coefficients, in whole MCUs.
            Coding::Jpeg(_) => unpacked.saturating_mul(4).saturating_add(1 << 20),
        };
        unpacked.saturating_mul(2).saturating_add(beside)
    }

    /// Returns how many strips or tiles lie side by side and below each other.
    fn chunks(&self) -> (u32, u32) {
        let across = self.width.div_ceil(self.chunk.0);
        (across, self.height.div_ceil(self.chunk.1))
    }

    /// Returns the bytes that all strips and tiles unpack to, apart from rows below the picture.
    fn unpacked_bytes(&self) -> u64 {
        let row = u64::from(self.chunk.0).saturating_mul(u64::from(self.chunks().0));
        row.saturating_mul(u64::from(self.height))
            .saturating_mul(self.layout.pixel_bits())
            / 8
    }

    /// Decodes the picture to RGB.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let palette = self.palette(bytes)?;
        let (width, height) = (self.width as usize, self.height as usize);
        let (chunk_width, chunk_height) = (self.chunk.0 as usize, self.chunk.1 as usize);
        let (across, down) = (self.chunks().0 as usize, self.chunks().1 as usize);
        let planes = if self.is_planar {
            self.layout.channels
        } else {
            1
        };
        let mut source = Source::new(self, bytes)?;
        let mut rgb = vec![0; width * height * 3];
        let mut chunks: Vec<Vec<u8>> = vec![Vec::new(); planes];
        let mut row = Vec::new();
        for down_by in 0..down {
            let top = down_by * chunk_height;
            let rows = chunk_height.min(height - top);
            for across_by in 0..across {
                let left = across_by * chunk_width;
                let visible = chunk_width.min(width - left);
                for (plane, chunk) in chunks.iter_mut().enumerate() {
                    // Planes that say nothing of the colour are passed over.
                    if plane < self.layout.used_channels() {
                        let index = (plane * down + down_by) * across + across_by;
                        source.read(self, index, rows, chunk)?;
                    }
                }
                let row_bytes = self.layout.row_bytes(chunk_width, planes > 1);
                for y in 0..rows {
                    let at = ((top + y) * width + left) * 3;
                    let pixels = rgb[at..at + visible * 3].as_chunks_mut::<3>().0;
                    let samples = if planes > 1 {
                        let rows = chunks.iter().map(|c| c.get(y * row_bytes..).unwrap_or(&[]));
                        self.layout.interleave(rows, visible, &mut row);
                        row.as_slice()
                    } else {
                        &chunks[0][y * row_bytes..][..row_bytes]
                    };
                    self.layout.to_rgb(samples, palette.as_deref(), pixels);
                }
            }
        }
        Ok(rgb)
    }

    /// Returns the 256 colours of a palette: three lists of 16-bit numbers, of which the high byte
    /// counts.
    fn palette(&self, bytes: &[u8]) -> Result<Option<Box<[[u8; 3]; 256]>>, Refusal> {
        if self.layout.colour != Colour::Palette {
            return Ok(None);
        }
        let map = self.directory.values(bytes, tag::COLOUR_MAP);
        let map = map.ok_or_else(|| Refusal::malformed("its palette is missing"))?;
        let count = map.len() / 3;
        let mut palette = Box::new([[0; 3]; 256]);
        for (index, colour) in palette.iter_mut().enumerate().take(count) {
            let part = |list: usize| map.get(list * count + index).unwrap_or(0) / 256;
            *colour = [0, 1, 2].map(|list| part(list).min(255) as u8);
        }
        Ok(Some(palette))
    }
}

/// The strips or tiles of a file.
struct Source<'a> {
    bytes: &'a [u8],
    offsets: directory::Values<'a>,
    sizes: Option<directory::Values<'a>>,
    jpeg_tables: &'a [u8],
    /// Bytes that may still be read.
    budget: usize,
    reversed: Vec<u8>,
}

impl<'a> Source<'a> {
    fn new(header: &Header, bytes: &'a [u8]) -> Result<Self, Refusal> {
        let (offsets, sizes) = if header.is_tiled {
            (tag::TILE_OFFSETS, tag::TILE_BYTES)
        } else {
            (tag::STRIP_OFFSETS, tag::STRIP_BYTES)
        };
        let values = |tag| header.directory.values(bytes, tag);
        let offsets = values(offsets);
        Ok(Self {
            bytes,
            offsets: offsets
                .ok_or_else(|| Refusal::malformed("it does not say where its data are"))?,
            sizes: values(sizes),
            jpeg_tables: values(tag::JPEG_TABLES).map_or(&[], |tables| tables.bytes()),
            budget: bytes.len().saturating_mul(READS_PER_BYTE),
            reversed: Vec::new(),
        })
    }

    /// Unpacks `rows` rows of strip or tile number `index` to `out`.
    fn read(
        &mut self,
        header: &Header,
        index: usize,
        rows: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let offset = self.offsets.get(index).ok_or_else(Refusal::cut_off)?;
        let offset = usize::try_from(offset).map_err(|_| Refusal::cut_off())?;
        let rest = self.bytes.get(offset..).ok_or_else(Refusal::cut_off)?;
        let layout = &header.layout;
        let is_one_plane = header.is_planar && layout.channels > 1;
        let width = header.chunk.0 as usize;
        let row_bytes = layout.row_bytes(width, is_one_plane);
        // A size that is missing or wrong leaves it to the decoder to find the end.
        let stated = self.sizes.and_then(|sizes| sizes.get(index)).unwrap_or(0) as usize;
        let data = match header.coding {
            Coding::Bytes(Compression::None) => rest.get(..row_bytes * rows).unwrap_or(rest),
            _ if stated == 0 => rest,
            _ => rest.get(..stated).ok_or_else(Refusal::cut_off)?,
        };
        let tables = match header.coding {
            Coding::Jpeg(_) => self.jpeg_tables.len().saturating_sub(USUAL_TABLES),
            Coding::Bytes(_) => 0,
        };
        let read = data.len().saturating_add(tables);
        self.budget = self.budget.checked_sub(read).ok_or_else(|| {
            Refusal::malformed("its strips or tiles lie over each other too often")
        })?;
        out.clear();
        out.resize(row_bytes * rows, 0);
        let compression = match header.coding {
            Coding::Jpeg(inner) => {
                let joined;
                let data = match self.jpeg_tables {
                    [] => data,
                    tables => {
                        joined = jpeg::joined(tables, data);
                        &joined
                    }
                };
                let size = (width, rows, header.chunk.1 as usize);
                let inner = if is_one_plane {
                    jpeg::Inner::Plain(1)
                } else {
                    inner
                };
                return jpeg::decode_inner(data, inner, size, out);
            }
            Coding::Bytes(compression) => compression,
        };
        let data = if header.is_bit_reversed {
            self.reversed.clear();
            self.reversed
                .extend(data.iter().map(|byte| byte.reverse_bits()));
            &self.reversed
        } else {
            data
        };
        compression.decompress(data, width, row_bytes, out)?;
        let channels = if is_one_plane { 1 } else { layout.channels };
        let bytes = layout.bits as usize / 8;
        for row in out.chunks_exact_mut(row_bytes) {
            match header.predictor {
                Predictor::None => {}
                Predictor::Horizontal => {
                    samples::undo_differences(row, bytes, channels, header.directory.is_little);
                }
                Predictor::FloatingPoint => {
                    samples::undo_float_differences(
                        row,
                        bytes,
                        channels,
                        header.directory.is_little,
                    );
                }
            }
        }
        Ok(())
    }
}

fn unsupported(what: String) -> Refusal {
    Refusal::Unsupported(format!("a TIFF {what} (convert it to PNG)"))
}

/// Returns how samples are stored and what they mean.
fn layout(
    directory: &Directory,
    bytes: &[u8],
    photometric: u64,
    compression: u64,
) -> Result<Layout, Refusal> {
    let first = |tag| directory.first(bytes, tag);
    let all = |tag| directory.values(bytes, tag);
    let channels = first(tag::CHANNELS).unwrap_or(1);
    if !(1..=6).contains(&channels) {
        return Err(unsupported(format!("of {channels} samples a pixel")));
    }
    let bits = first(tag::BITS).unwrap_or(1);
    let uniform = |tag: u16, value: u64| {
        all(tag).is_none_or(|values| values.iter().take(channels as usize).all(|v| v == value))
    };
    if !uniform(tag::BITS, bits) {
        return Err(unsupported(
            "whose channels differ in their bits".to_owned(),
        ));
    }
    let format = first(tag::SAMPLE_FORMAT).unwrap_or(1);
    if !uniform(tag::SAMPLE_FORMAT, format) {
        return Err(unsupported(
            "whose channels differ in their format".to_owned(),
        ));
    }
    let number = match format {
        // 4 is "undefined", which is most often the usual.
        1 | 4 => Number::Unsigned,
        2 => Number::Signed,
        3 => Number::Float,
        other => return Err(unsupported(format!("of sample format {other}"))),
    };
    let colour = match photometric {
        0 | 1 => Colour::Grey {
            is_inverted: photometric == 0,
        },
        2 => Colour::Rgb,
        3 => Colour::Palette,
        5 => Colour::Cmyk,
        // The JPEG inside is converted when it is decoded.
        6 if compression == JPEG && channels >= 3 => Colour::Rgb,
        6 if channels == 1 => Colour::Grey { is_inverted: false },
        4 => return Err(unsupported("that is a transparency mask".to_owned())),
        6 => return Err(unsupported("of YCbCr without JPEG compression".to_owned())),
        8..=10 => return Err(unsupported("of CIE L*a*b* colours".to_owned())),
        32_803 | 34_892 => return Err(unsupported("of a camera's raw samples".to_owned())),
        32_844 | 32_845 => return Err(unsupported("of LogLuv colours".to_owned())),
        other => return Err(unsupported(format!("of colour model {other}"))),
    };
    let layout = Layout {
        bits: bits.min(255) as u8,
        number,
        channels: channels as usize,
        colour,
        // The first channel behind the colours, if they have been multiplied with it.
        is_premultiplied: first(tag::EXTRA_CHANNELS) == Some(1)
            && channels as usize > colour.channels(),
        is_little: directory.is_little,
    };
    if layout.is_known() {
        Ok(layout)
    } else {
        Err(unsupported(format!(
            "of {channels} {number} samples of {bits} bits for {colour}"
        )))
    }
}

const JPEG: u64 = 7;

fn coding(
    directory: &Directory,
    bytes: &[u8],
    compression: u64,
    photometric: u64,
    layout: &Layout,
    is_planar: bool,
) -> Result<Coding, Refusal> {
    let coding = match compression {
        1 => Compression::None,
        2 => Compression::Ccitt(ccitt::Kind::Huffman),
        3 => {
            let options = directory.first(bytes, tag::T4_OPTIONS).unwrap_or(0);
            Compression::Ccitt(ccitt::Kind::Group3 {
                has_two_dimensions: options & 1 != 0,
            })
        }
        4 => Compression::Ccitt(ccitt::Kind::Group4),
        5 => Compression::Lzw,
        8 | 32_946 => Compression::Deflate,
        32_773 => Compression::PackBits,
        34_925 => Compression::Lzma,
        50_000 => Compression::Zstd,
        JPEG if layout.bits == 8 => {
            return Ok(Coding::Jpeg(
                if photometric == 6 && !is_planar && layout.channels >= 3 {
                    jpeg::Inner::YCbCr
                } else {
                    jpeg::Inner::Plain(layout.channels)
                },
            ));
        }
        other => {
            let name = match other {
                6 => "old-style JPEG",
                JPEG => "JPEG of more than 8 bits",
                32_809 => "ThunderScan",
                33_003 | 33_005 | 34_712 => "JPEG 2000",
                34_676 | 34_677 => "LogLuv",
                34_887 => "LERC",
                50_001 => "WebP",
                50_002 => "JPEG XL",
                _ => return Err(unsupported(format!("with compression {other}"))),
            };
            return Err(unsupported(format!("with {name} compression")));
        }
    };
    if matches!(coding, Compression::Ccitt(_)) && (layout.bits, layout.channels) != (1, 1) {
        return Err(Refusal::malformed(
            "its fax compression is not of single bits",
        ));
    }
    Ok(Coding::Bytes(coding))
}

/// Returns the orientation that the directory tells, or else its XMP packet.
fn orientation(directory: &Directory, bytes: &[u8]) -> Orientation {
    match directory.first(bytes, tag::ORIENTATION) {
        Some(number) => Orientation::from_number(number.min(9) as i64),
        None => {
            let xmp = directory.values(bytes, tag::XMP);
            orientation::from_blocks(None, xmp.map(|xmp| xmp.bytes()))
        }
    }
}

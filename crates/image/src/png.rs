//! Decodes PNG as Pillow does. Of an animated one, the default picture is decoded.
//!
//! The chunks are read here, and the crate `png` decodes the pixels from those that it needs: the
//! header and the data. So colour profiles are never inflated, and nothing but the little text that
//! may tell an orientation is.

use std::io::Cursor;

use flate2::{Decompress, FlushDecompress};
use png::{ColorType, DecodeOptions, Decoder, DecodingError, Limits};

use crate::bytes::array;
use crate::error::Refusal;
use crate::orientation::{self, Orientation};

const SIGNATURE: usize = 8;

/// The bytes of a chunk beside its contents: length, name and checksum.
const AROUND_CONTENTS: u64 = 12;

/// The bytes of a file beside its data that are handed to the decoder: signature, header, palette
/// and end.
const BESIDE_DATA: usize = 1024;

/// The longest text that is inflated to look for an orientation.
const LONGEST_TEXT: usize = 1 << 20;

/// The most texts that are looked into. Usually there is one.
const MOST_TEXTS: u32 = 8;

/// What the chunks of a PNG tell.
#[derive(Debug, Clone)]
pub(super) struct Header {
    width: u32,
    height: u32,
    bits: u8,
    kind: u8,
    orientation: Orientation,
    /// The bytes of all chunks of data, whole.
    data_bytes: u64,
}

/// A chunk, of which the file may hold only the beginning.
struct Chunk<'a> {
    name: [u8; 4],
    contents: &'a [u8],
    /// Whether it is there whole.
    is_whole: bool,
    /// Whether its checksum is right.
    is_sound: bool,
}

/// The chunks of a file.
struct Chunks<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    /// Returns the next chunk, and `None` where the file ends or goes on with something else.
    fn next(&mut self) -> Option<Chunk<'a>> {
        let rest = self.bytes.get(self.at..)?;
        let (&[a, b, c, d, ref name @ ..], behind) = rest.split_first_chunk::<8>()?;
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if !name.iter().all(is_word) {
            return None;
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let contents = behind.get(..length).unwrap_or(behind);
        let checksum = behind.get(length..).and_then(<[u8]>::first_chunk);
        let is_sound = checksum.is_some_and(|&checksum| {
            // The data's checksum is that of the stream within them.
            name == b"IDAT" || {
                let mut crc = flate2::Crc::new();
                crc.update(name);
                crc.update(contents);
                crc.sum() == u32::from_be_bytes(checksum)
            }
        });
        self.at = self.at.saturating_add(8 + length + 4);
        Some(Chunk {
            name: *name,
            contents,
            is_whole: contents.len() == length,
            is_sound,
        })
    }
}

fn chunks(bytes: &[u8]) -> Chunks<'_> {
    Chunks {
        bytes,
        at: SIGNATURE,
    }
}

impl Header {
    /// Reads the chunks. The colours' data are left alone.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut chunks = chunks(bytes);
        let header = match chunks.next() {
            Some(chunk) if &chunk.name == b"IHDR" => chunk,
            Some(chunk) if &chunk.name == b"CgBI" => {
                return Err(Refusal::Unsupported(
                    "a PNG as Xcode changes it for apps (take the original, or convert it with \
                     `pngcrush -revert-iphone-optimizations`)"
                        .to_owned(),
                ));
            }
            Some(_) => return Err(Refusal::malformed("it does not begin with its header")),
            None => return Err(Refusal::cut_off()),
        };
        if !header.is_whole {
            return Err(Refusal::cut_off());
        }
        if !header.is_sound {
            return Err(Refusal::malformed("the checksum of its header is wrong"));
        }
        let [w0, w1, w2, w3, h0, h1, h2, h3, bits, kind, ..]: [u8; 13] = array(header.contents, 0)?;
        let width = u32::from_be_bytes([w0, w1, w2, w3]);
        let height = u32::from_be_bytes([h0, h1, h2, h3]);
        if width == 0 || height == 0 {
            return Err(Refusal::malformed("it has no pixels"));
        }
        if channels(kind, bits).is_none() {
            return Err(Refusal::Malformed(format!(
                "there is no PNG of colour type {kind} with {bits} bits"
            )));
        }
        let mut metadata = Metadata::default();
        let (mut data_bytes, mut is_behind_data, mut has_palette) = (0, false, false);
        for chunk in chunks {
            match &chunk.name {
                b"IDAT" => data_bytes += chunk.contents.len() as u64 + AROUND_CONTENTS,
                b"IEND" => break,
                _ if is_behind_data && !chunk.is_whole => break,
                _ if !chunk.is_whole => return Err(Refusal::cut_off()),
                [b'A'..=b'Z', ..] if !chunk.is_sound && !is_behind_data => {
                    return Err(Refusal::malformed("the checksum of a chunk is wrong"));
                }
                // Pillow refuses the whole picture for it; a text that is left out is no harm.
                _ if !chunk.is_sound => {}
                b"PLTE" => has_palette = true,
                _ => metadata.add(&chunk),
            }
            is_behind_data |= &chunk.name == b"IDAT";
        }
        if !is_behind_data {
            return Err(Refusal::cut_off());
        }
        if kind == INDEXED && !has_palette {
            return Err(Refusal::malformed("its palette is missing"));
        }
        Ok(Self {
            width,
            height,
            bits,
            kind,
            orientation: metadata.orientation(),
            data_bytes,
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Returns the bytes that decoding holds beside the RGB picture: the samples as they are stored,
    /// some rows of them, and the compressed data.
    pub(super) fn working_bytes(&self) -> u64 {
        let channels = channels(self.kind, self.bits).unwrap_or(4);
        let row = (u64::from(self.width) * channels * u64::from(self.bits)).div_ceil(8);
        let samples = if (self.kind, self.bits) == (RGB, 8) {
            0
        } else {
            row * u64::from(self.height)
        };
        samples + row * 2 + self.data_bytes + (256 << 10)
    }

    /// Decodes the picture to RGB.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut options = DecodeOptions::default();
        options.set_ignore_crc(true);
        options.set_ignore_adler32(false);
        let (file, palette) = self.essentials(bytes);
        let mut decoder = Decoder::new_with_options(Cursor::new(file), options);
        // Whoever decodes has judged the size.
        decoder.set_limits(Limits { bytes: usize::MAX });
        let mut reader = decoder.read_info().map_err(refusal)?;
        let info = reader.info();
        if (
            info.width,
            info.height,
            info.bit_depth as u8,
            info.color_type as u8,
        ) != (self.width, self.height, self.bits, self.kind)
        {
            return Err(Refusal::malformed("its headers contradict each other"));
        }
        let size = reader.output_buffer_size().ok_or(Refusal::TooMuchMemory)?;
        let mut samples = vec![0; size];
        reader.next_frame(&mut samples).map_err(refusal)?;
        let row_bytes = size / self.height as usize;
        Ok(match (ColorType::from_u8(self.kind), self.bits) {
            (Some(ColorType::Rgb), 8) => samples,
            (Some(ColorType::Indexed), bits) => self.unpacked(&samples, row_bytes, bits, |index| {
                palette[usize::from(index)]
            }),
            (Some(ColorType::Grayscale), bits @ (1 | 2 | 4)) => {
                let step = u8::MAX / (u8::MAX >> (8 - bits));
                self.unpacked(&samples, row_bytes, bits, |value| [value * step; 3])
            }
            (_, bits) => {
                let sample_bytes = usize::from(bits / 8);
                let channels = channels(self.kind, self.bits).unwrap_or(1) as usize;
                let picked = if channels < 3 { [0; 3] } else { [0, 1, 2] };
                // Of 16 bits, the high byte comes first.
                samples
                    .chunks_exact(channels * sample_bytes)
                    .flat_map(|pixel| picked.map(|channel| pixel[channel * sample_bytes]))
                    .collect()
            }
        })
    }

    /// Unpacks numbers of `bits` bits, the first in the highest ones.
    fn unpacked(
        &self,
        samples: &[u8],
        row_bytes: usize,
        bits: u8,
        colour: impl Fn(u8) -> [u8; 3],
    ) -> Vec<u8> {
        let width = self.width as usize;
        let mut rgb = vec![0; width * self.height as usize * 3];
        for (row, samples) in rgb
            .chunks_exact_mut(width * 3)
            .zip(samples.chunks_exact(row_bytes))
        {
            let pixels = row.as_chunks_mut::<3>().0;
            for (pixels, byte) in pixels.chunks_mut(usize::from(8 / bits)).zip(samples) {
                for (index, pixel) in (1..).zip(pixels) {
                    *pixel = colour(byte >> (8 - bits * index) & (u8::MAX >> (8 - bits)));
                }
            }
        }
        rgb
    }

    /// Returns a file of nothing but the header and the data, and the palette. Colours that the
    /// palette leaves out are black.
    fn essentials(&self, bytes: &[u8]) -> (Vec<u8>, [[u8; 3]; 256]) {
        let mut file = Vec::with_capacity(self.data_bytes as usize + BESIDE_DATA);
        let mut palette = [[0; 3]; 256];
        file.extend_from_slice(&bytes[..SIGNATURE]);
        let mut add = |name: &[u8; 4], contents: &[u8]| {
            file.extend_from_slice(&(contents.len() as u32).to_be_bytes());
            file.extend_from_slice(name);
            file.extend_from_slice(contents);
            file.extend_from_slice(&[0; 4]);
        };
        let mut is_behind_data = false;
        for chunk in chunks(bytes) {
            match &chunk.name {
                b"IHDR" => add(b"IHDR", chunk.contents.get(..13).unwrap_or_default()),
                b"PLTE" => {
                    for (colour, stored) in palette.iter_mut().zip(chunk.contents.as_chunks().0) {
                        *colour = *stored;
                    }
                    if self.kind == INDEXED {
                        let length = chunk.contents.len().min(768) / 3 * 3;
                        add(b"PLTE", &chunk.contents[..length]);
                    }
                }
                b"IDAT" => {
                    add(b"IDAT", chunk.contents);
                    is_behind_data = true;
                }
                // Data in several places are not joined.
                _ if is_behind_data => break,
                _ => {}
            }
        }
        add(b"IEND", &[]);
        (file, palette)
    }
}

const RGB: u8 = 2;
const INDEXED: u8 = 3;

/// Returns the number of channels of a colour type, if it is one that has so many bits.
fn channels(kind: u8, bits: u8) -> Option<u64> {
    match (kind, bits) {
        (0, 1 | 2 | 4 | 8 | 16) | (INDEXED, 1 | 2 | 4 | 8) => Some(1),
        (4, 8 | 16) => Some(2),
        (RGB, 8 | 16) => Some(3),
        (6, 8 | 16) => Some(4),
        _ => None,
    }
}

/// What the metadata of a PNG tell of its orientation.
#[derive(Default)]
struct Metadata {
    exif: Option<Vec<u8>>,
    /// EXIF in the text that ImageMagick writes.
    raw_profile: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
    /// How many texts that may tell it there were.
    text_count: u32,
}

impl Metadata {
    fn add(&mut self, chunk: &Chunk<'_>) {
        const RAW_PROFILE: &[u8] = b"Raw profile type exif";
        const XMP: &[u8] = b"XML:com.adobe.xmp";
        if &chunk.name == b"eXIf" {
            self.exif = Some(chunk.contents.to_vec());
            return;
        }
        if !matches!(&chunk.name, b"tEXt" | b"zTXt" | b"iTXt") {
            return;
        }
        let mut parts = chunk.contents.splitn(2, |&byte| byte == 0);
        let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
            return;
        };
        let slot = match key {
            RAW_PROFILE => &mut self.raw_profile,
            XMP => &mut self.xmp,
            _ => return,
        };
        // A file of nothing but texts would inflate without end.
        self.text_count += 1;
        if self.text_count > MOST_TEXTS {
            return;
        }
        let text = match &chunk.name {
            b"tEXt" => Some(value.to_vec()),
            b"zTXt" => value.split_first().and_then(|(_, value)| inflated(value)),
            _ => international_text(value),
        };
        if text.is_some() {
            *slot = text;
        }
    }

    fn orientation(&self) -> Orientation {
        let unpacked = self.raw_profile.as_deref().and_then(raw_profile);
        let exif = self.exif.as_deref().or(unpacked.as_deref());
        orientation::from_blocks(exif, self.xmp.as_deref())
    }
}

/// Returns the text of an international text chunk, which follows its compression, its language and
/// its translated name.
fn international_text(value: &[u8]) -> Option<Vec<u8>> {
    let (&[is_compressed, _], rest) = value.split_first_chunk()?;
    let text = rest.splitn(3, |&byte| byte == 0).nth(2)?;
    if is_compressed == 0 {
        Some(text.to_vec())
    } else {
        inflated(text)
    }
}

/// Inflates a text. Returns `None` for one that is damaged or too long.
fn inflated(compressed: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(4096);
    let mut decoder = Decompress::new(true);
    loop {
        let read = decoder.total_in() as usize;
        let rest = compressed.get(read..)?;
        let status = decoder
            .decompress_vec(rest, &mut text, FlushDecompress::None)
            .ok()?;
        if status == flate2::Status::StreamEnd {
            return Some(text);
        }
        if text.len() >= LONGEST_TEXT || text.len() < text.capacity() {
            return None;
        }
        text.reserve(text.len());
    }
}

/// Unpacks the hexadecimal digits of a raw profile, which follow three lines.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3)?;
    let mut digits = digits
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|&byte| char::from(byte).to_digit(16));
    let mut bytes = Vec::new();
    while let Some(high) = digits.next() {
        bytes.push((high? << 4 | digits.next()??) as u8);
    }
    Some(bytes)
}

fn refusal(error: DecodingError) -> Refusal {
    match error {
        DecodingError::IoError(_) => Refusal::cut_off(),
        DecodingError::LimitsExceeded => Refusal::TooMuchMemory,
        other => Refusal::malformed(&other.to_string()),
    }
}

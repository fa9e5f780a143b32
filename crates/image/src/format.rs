//! Tells the format of a file by its first bytes, and names what people send instead of a picture.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ImageError;

/// The formats that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// JPEG: baseline or progressive, Huffman coded, of 8 bits.
    Jpeg,
    /// PNG. Of an animated one, the default picture is decoded.
    Png,
    /// WebP, lossy or lossless. Of an animated one, the first frame is decoded.
    WebP,
    /// GIF, of which the first frame is decoded.
    Gif,
    /// A bitmap of Windows or OS/2.
    Bmp,
    /// TIFF or BigTIFF, of which the first page is decoded.
    Tiff,
    /// AVIF. Of a sequence, the first frame is decoded. Only builds with the feature `avif` know it.
    Avif,
}

impl Format {
    /// The formats as a message lists them.
    #[cfg(feature = "avif")]
    pub(super) const LIST: &'static str = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF";
    /// The formats as a message lists them.
    #[cfg(not(feature = "avif"))]
    pub(super) const LIST: &'static str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

    /// Returns the format that the first bytes tell, or `None` if they tell none that is decoded.
    #[must_use]
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Self::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            // 42 is TIFF, 43 BigTIFF.
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            [_, _, _, _, b'f', b't', b'y', b'p', ..]
                if cfg!(feature = "avif") && is_avif(bytes) =>
            {
                Some(Self::Avif)
            }
            [b'B', b'M', ..] if is_bitmap(bytes) => Some(Self::Bmp),
            [12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0, ..] if is_bare_bitmap(bytes) => {
                Some(Self::Bmp)
            }
            _ => None,
        }
    }

    /// Returns what [`Format::sniff`] does, or an error that names what was sent, as far as it can
    /// be told.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, ImageError> {
        Self::sniff(bytes).ok_or_else(|| ImageError::Unsupported {
            found: describe_foreign(bytes).to_owned(),
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Avif => "AVIF",
        })
    }
}

/// Returns whether an ISO base media file is AVIF. Pictures of the general brands "mif1" and "msf1"
/// are AVIF if the list of compatible brands says so; else they are HEIC.
fn is_avif(bytes: &[u8]) -> bool {
    /// More brands than any file names.
    const LOOKED_AT: usize = 64;
    let is_coded = |brand: &[u8; 4]| matches!(brand, b"avif" | b"avis");
    let Some(size) = bytes.first_chunk().map(|&size| u32::from_be_bytes(size)) else {
        return false;
    };
    let brands = bytes.get(8..).unwrap_or_default();
    let brands = &brands[..brands.len().min((size as usize).saturating_sub(8))];
    let brands = brands.as_chunks::<4>().0;
    match brands {
        [major, ..] if is_coded(major) => true,
        // The second is the version of the first.
        [[b'm', b'i' | b's', b'f', b'1'], _, compatible @ ..] => {
            compatible.iter().take(LOOKED_AT).any(is_coded)
        }
        _ => false,
    }
}

/// Returns whether bytes that begin with "BM" are a bitmap. "BM" also begins prose, so the size of
/// the header that follows must be one that some bitmap has.
fn is_bitmap(bytes: &[u8]) -> bool {
    match bytes.get(14..18) {
        Some(&[size, 0, 0, 0]) => matches!(size, 12 | 16 | 40 | 52 | 56 | 64 | 108 | 124),
        _ => false,
    }
}

/// Returns whether bytes that begin with the size of a bitmap header, without a file header, go on
/// like one: with one plane, and a number of bits that some bitmap has.
fn is_bare_bitmap(bytes: &[u8]) -> bool {
    let at = if bytes[0] == 12 { 8 } else { 12 };
    match bytes.get(at..at + 4) {
        Some(&[1, 0, bits, 0]) => matches!(bits, 1 | 2 | 4 | 8 | 16 | 24 | 32),
        _ => false,
    }
}

/// The first bytes of files that people send instead of a picture, and of pictures in formats that
/// are not decoded here.
const FOREIGN: &[(&[u8], &str)] = &[
    (b"%PDF", "a PDF document"),
    (b"\0\0\x01\0", "an ICO icon"),
    (b"8BPS", "a Photoshop document"),
    (b"\xFF\x0A", "a JPEG XL image"),
    (b"\0\0\0\x0CJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0CjP  ", "a JPEG 2000 image"),
    (b"\xFF\x4F\xFF\x51", "a JPEG 2000 image"),
    (b"qoif", "a QOI image"),
    (b"\x76\x2F\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"DDS ", "a DirectDraw surface"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1F\x8B", "gzip-compressed data"),
    (b"\x1A\x45\xDF\xA3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP"),
    (
        b"BM",
        "a file that begins like a BMP but has no known bitmap header",
    ),
];

/// Names a file that is in no format of ours. ISO base media files are told apart by their brand,
/// and markup and JSON by the beginning of their text: a web page or an API's error is the
/// likeliest thing behind a wrong URL.
fn describe_foreign(bytes: &[u8]) -> &'static str {
    const UNKNOWN: &str = "this file (its first bytes are those of no known image format)";
    if bytes.is_empty() {
        return "an empty file";
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12) {
            _ if is_avif(bytes) => {
                "an AVIF image (this program was built without AVIF; build it with `--features \
                 avif`, or convert the image with `avifdec photo.avif photo.png` of libavif)"
            }
            Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1") => {
                "a HEIC image (convert it with `heif-convert photo.heic photo.jpg` of libheif; an \
                 iPhone takes JPEGs with Settings, Camera, Formats, Most Compatible)"
            }
            _ => "an MP4 or QuickTime video",
        };
    }
    if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return name;
    }
    if let [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] = bytes {
        return "a netpbm image";
    }
    describe_foreign_text(bytes).unwrap_or(UNKNOWN)
}

/// Names markup and JSON, which are looked for in the first 512 bytes only.
fn describe_foreign_text(bytes: &[u8]) -> Option<&'static str> {
    const LOOKED_AT: usize = 512;
    let head = bytes.get(..LOOKED_AT).unwrap_or(bytes);
    let head = head
        .strip_prefix(b"\xEF\xBB\xBF")
        .unwrap_or(head)
        .trim_ascii_start();
    let contains = |tag: &[u8]| head.windows(tag.len()).any(|w| w.eq_ignore_ascii_case(tag));
    match head.first()? {
        b'<' if contains(b"<svg") => Some("an SVG drawing"),
        b'<' if contains(b"<html") || contains(b"<!doctype html") => Some("an HTML page"),
        b'<' => Some("an XML or HTML document"),
        b'{' | b'[' => Some("a JSON document"),
        _ => None,
    }
}

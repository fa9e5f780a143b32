//! Encoded bytes to an upright RGB picture, with the size judged before anything of that size is allocated; it never
//! resizes, and never returns part of a picture that the file does not hold.

use super::error::ImageError;
use super::format::Format;
use super::gif::FirstFrame;
use super::jpeg;
use super::pixels::{RgbImage, extra_bytes, to_rgb8, turned};
use ::image::codecs::{
    bmp::BmpDecoder, jpeg::JpegDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder,
};
use ::image::metadata::Orientation;
use ::image::{ExtendedColorType, ImageDecoder};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

const CUT_OFF: &str = "the file ends before the picture does";
const NO_PIXELS: &str = "it has no pixels";

/// Bytes for what does not grow with the picture: Huffman tables, a deflate window, metadata of the usual size.
const TABLES: u64 = 512 << 10;

/// How large a picture may be. All three are judged from its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Longest side in pixels.
    pub max_side: u32,
    /// Most bytes that decoding may hold at once, see [`ImageInfo::decoded_bytes`].
    pub max_decoded_bytes: u64,
}

/// What a picture's header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// The format of its bytes.
    pub format: Format,
    /// Width in pixels, after EXIF orientation.
    pub width: u32,
    /// Height in pixels, after EXIF orientation.
    pub height: u32,
    /// Estimate, from above, of the bytes that [`decode`] holds at its peak beside the encoded bytes: the decoder's
    /// samples, working buffers and tables, their conversion to RGB and the turned copy.
    pub decoded_bytes: u64,
}

/// Reads the header only: what the picture is and what it would cost, or why it will not be decoded.
///
/// # Errors
/// [`ImageError::Unsupported`], [`ImageError::TooLarge`], or [`ImageError::Malformed`] where even the header is damaged.
pub fn inspect(bytes: &[u8], limits: &Limits) -> Result<ImageInfo, ImageError> {
    let format = Format::of(bytes)?;
    contain_panics(format, || Ok(Opened::new(format, bytes, limits)?.info))
}

/// Decodes to upright 8-bit RGB what Pillow's `ImageOps.exif_transpose(Image.open(...)).convert("RGB")` gives: the first
/// frame or page, alpha dropped, no colour management. A file that ends before its picture does is refused.
///
/// # Errors
/// Any [`ImageError`]. No input panics: a decoder's panic comes back as [`ImageError::Malformed`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    let format = Format::of(bytes)?;
    contain_panics(format, || {
        Opened::new(format, bytes, limits)?.read(bytes, limits)
    })
}

/// Runs `work`, turning a panic into [`ImageError::Malformed`]. The decoders are large, parse what strangers send, and
/// have panicked on damaged files before; one such file must cost its sender an error, not the service a worker. Nothing
/// that `work` may leave half-changed outlives it, hence `AssertUnwindSafe`.
fn contain_panics<T>(
    format: Format,
    work: impl FnOnce() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(ImageError::Malformed {
            format,
            reason: "the decoder gave up on its damaged data".to_owned(),
        })
    })
}

/// A picture whose header is read and whose size is within the limits.
struct Opened<'a> {
    info: ImageInfo,
    orientation: Orientation,
    codec: Codec<'a>,
}

/// GIF has its own, because only the raw frame tells what Pillow shows around it.
enum Codec<'a> {
    Gif(Box<FirstFrame<'a>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

impl<'a> Opened<'a> {
    fn new(format: Format, bytes: &'a [u8], limits: &Limits) -> Result<Self, ImageError> {
        let mut codec = open(format, bytes, limits)?;
        let (stored, orientation, decoded_bytes) = match &mut codec {
            Codec::Gif(frame) => (
                frame.size(),
                Orientation::NoTransforms,
                frame.decoded_bytes() + TABLES,
            ),
            Codec::Other(decoder) => {
                // A damaged EXIF block says nothing about the pixels.
                let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
                let peak = peak_bytes(format, bytes, decoder.as_ref(), orientation);
                (decoder.dimensions(), orientation, peak)
            }
        };
        let (width, height) = turned(stored, orientation);
        let info = ImageInfo {
            format,
            width,
            height,
            decoded_bytes,
        };
        check(&info, limits)?;
        Ok(Self {
            info,
            orientation,
            codec,
        })
    }

    fn read(self, bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
        let format = self.info.format;
        let complete = match format {
            Format::Jpeg => jpeg::is_complete(bytes),
            Format::WebP => is_complete_riff(bytes),
            // These decoders notice by themselves.
            Format::Png | Format::Gif | Format::Bmp | Format::Tiff => true,
        };
        if !complete {
            return Err(malformed(format, &CUT_OFF));
        }
        let picture = match self.codec {
            Codec::Gif(frame) => frame.read().map_err(|e| malformed(format, &e))?,
            Codec::Other(decoder) => match first_choice(format, bytes) {
                None => read_samples(format, decoder, limits)?,
                picture => picture,
            },
        };
        picture
            .and_then(|picture| picture.upright(self.orientation))
            .ok_or_else(|| malformed(format, &NO_PIXELS))
    }
}

/// The picture from a decoder that is closer to Pillow's than `image`'s own, where there is one and it can read the file.
fn first_choice(format: Format, bytes: &[u8]) -> Option<RgbImage> {
    match format {
        Format::Jpeg => jpeg::decode(bytes),
        Format::Png | Format::WebP | Format::Gif | Format::Bmp | Format::Tiff => None,
    }
}

/// Whether a WebP is as long as it says. The decoder would leave out what is missing at the end, EXIF for one.
fn is_complete_riff(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).and_then(|field| field.try_into().ok());
    length.is_some_and(|field| 8 + u64::from(u32::from_le_bytes(field)) <= bytes.len() as u64)
}

fn read_samples(
    format: Format,
    mut decoder: Box<dyn ImageDecoder + '_>,
    limits: &Limits,
) -> Result<Option<RgbImage>, ImageError> {
    decoder
        .set_limits(codec_limits(limits))
        .map_err(|e| refusal(format, limits, e))?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    // `check` has seen this many bytes.
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder
        .read_image_boxed(&mut samples)
        .map_err(|e| refusal(format, limits, e))?;
    Ok(RgbImage::new(width, height, to_rgb8(color, samples)?))
}

/// Opens the decoder of `format`, which reads headers but nothing of the picture's size.
fn open<'a>(format: Format, bytes: &'a [u8], limits: &Limits) -> Result<Codec<'a>, ImageError> {
    let from = Cursor::new(bytes);
    let decoder: Result<Box<dyn ImageDecoder + 'a>, _> = match format {
        Format::Gif => {
            return match FirstFrame::open(bytes) {
                Ok(Some(frame)) => Ok(Codec::Gif(Box::new(frame))),
                Ok(None) => Err(malformed(format, &"it has no frame")),
                Err(error) => Err(malformed(format, &error)),
            };
        }
        Format::Jpeg => {
            if let Some(kind) = jpeg::unsupported_kind(bytes) {
                return Err(ImageError::Unsupported {
                    found: kind.to_owned(),
                });
            }
            JpegDecoder::new(from).map(|d| Box::new(d) as _)
        }
        // The PNG decoder takes its memory limit (for metadata that unpacks to gigabytes) at birth or never. Its sides are
        // left to `check`, which names them.
        Format::Png => {
            let mut limits = codec_limits(limits);
            (limits.max_image_width, limits.max_image_height) = (None, None);
            PngDecoder::with_limits(from, limits).map(|d| Box::new(d) as _)
        }
        Format::WebP => WebPDecoder::new(from).map(|d| Box::new(d) as _),
        Format::Bmp => BmpDecoder::new(from).map(|d| Box::new(d) as _),
        Format::Tiff => TiffDecoder::new(from).map(|d| Box::new(d) as _),
    };
    decoder
        .map(Codec::Other)
        .map_err(|e| refusal(format, limits, e))
}

fn codec_limits(limits: &Limits) -> ::image::Limits {
    let mut codec = ::image::Limits::no_limits();
    codec.max_image_width = Some(limits.max_side);
    codec.max_image_height = Some(limits.max_side);
    codec.max_alloc = Some(limits.max_decoded_bytes);
    codec
}

/// See [`ImageInfo::decoded_bytes`]. The working buffers are those of the decoders at the locked versions, measured with a
/// counting allocator on 36 files of one megapixel (the estimate was 1.0 to 2.4 times the real peak).
fn peak_bytes(
    format: Format,
    bytes: &[u8],
    decoder: &dyn ImageDecoder,
    orientation: Orientation,
) -> u64 {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let per_pixel = |bytes: u64| pixels.saturating_mul(bytes);
    let working = match format {
        // The coefficients, a plane for each component in whole MCUs, some rows at every stage, and a copy of the file.
        Format::Jpeg => jpeg::coefficient_bytes(bytes)
            .saturating_add(per_pixel(3))
            .saturating_add((u64::from(width) + u64::from(height)) * 256)
            .saturating_add(bytes.len() as u64),
        // Lossy: planes of luma and chroma, a little over 1.5 bytes a pixel. Lossless: an RGBA frame. With alpha or
        // animated: all of that and an RGBA canvas.
        Format::WebP if bytes.get(12..16) == Some(b"VP8 ") => per_pixel(2),
        Format::WebP if bytes.get(12..16) == Some(b"VP8L") => per_pixel(5),
        Format::WebP => per_pixel(10),
        // The decoder fills a buffer of its own and copies it; CMYK has four samples where the copy has three.
        Format::Tiff => match decoder.original_color_type() {
            ExtendedColorType::Cmyk8 => per_pixel(4),
            ExtendedColorType::Cmyk16 => per_pixel(8),
            _ => decoder.total_bytes(),
        },
        Format::Png | Format::Bmp | Format::Gif => 0,
    };
    let turning = if orientation == Orientation::NoTransforms {
        0
    } else {
        3
    };
    // The working buffers are gone before the conversion starts, and its input before the turn.
    let samples = decoder.total_bytes().max(per_pixel(3));
    let beside = per_pixel(extra_bytes(decoder.color_type()).max(turning));
    samples
        .saturating_add(working.max(beside))
        .saturating_add(TABLES)
}

fn check(info: &ImageInfo, limits: &Limits) -> Result<(), ImageError> {
    let pixels = u64::from(info.width) * u64::from(info.height);
    if pixels == 0 {
        return Err(malformed(info.format, &NO_PIXELS));
    }
    let measures = [
        (
            "longer side in pixels",
            u64::from(info.width.max(info.height)),
            u64::from(limits.max_side),
        ),
        ("number of pixels", pixels, limits.max_pixels),
        (
            "decoded size in bytes",
            info.decoded_bytes,
            limits.max_decoded_bytes,
        ),
    ];
    match measures.into_iter().find(|(_, found, limit)| found > limit) {
        Some((what, found, limit)) => Err(ImageError::TooLarge { what, found, limit }),
        None => Ok(()),
    }
}

/// A decoder's error as ours.
fn refusal(format: Format, limits: &Limits, error: ::image::ImageError) -> ImageError {
    use ::image::ImageError as E;
    match error {
        E::Limits(_) => ImageError::TooMuchMemory {
            limit: limits.max_decoded_bytes,
        },
        E::Unsupported(unsupported) => ImageError::Unsupported {
            found: format!("this kind of {format} ({})", printable(&unsupported)),
        },
        E::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            malformed(format, &CUT_OFF)
        }
        E::Decoding(e) => malformed(format, &e),
        E::IoError(e) => malformed(format, &e),
        E::Encoding(e) => malformed(format, &e),
        E::Parameter(e) => malformed(format, &e),
    }
}

fn malformed(format: Format, reason: &dyn std::fmt::Display) -> ImageError {
    ImageError::Malformed {
        format,
        reason: printable(reason),
    }
}

/// A decoder's words cut to a line: some quote the file, which may hold anything.
fn printable(words: &dyn std::fmt::Display) -> String {
    const LONGEST: usize = 200;
    words
        .to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect()
}

//! Decodes pictures to upright RGB. The size is checked before anything of that size is allocated,
//! and a file that holds only a part of its picture is refused.
//!
//! [`Encoded::open`] reads the header and [`Encoded::decode`] the pixels. The formats come from the
//! `image` crate, except for GIF (see `gif`) and for the JPEGs that another decoder reads better
//! (see `jpeg`).

use crate::error::ImageError;
use crate::format::Format;
use crate::gif::FirstFrame;
use crate::jpeg;
use crate::pixels::{RgbImage, extra_bytes, to_rgb8, turned};
use ::image::codecs::{
    bmp::BmpDecoder, jpeg::JpegDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder,
};
use ::image::metadata::Orientation;
use ::image::{ExtendedColorType, ImageDecoder};
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

const CUT_OFF: &str = "the file ends before the picture does";
const NO_PIXELS: &str = "it has no pixels";

/// Bytes for what does not grow with the picture: Huffman tables, a deflate window, metadata of the
/// usual size.
const TABLES: u64 = 512 << 10;

/// How large a picture may be. All three limits are checked against its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The largest number of pixels, width times height.
    pub max_pixels: u64,
    /// The longest side in pixels.
    pub max_side: u32,
    /// The most bytes that decoding may hold at once, see [`ImageInfo::decoded_bytes`].
    pub max_decoded_bytes: u64,
}

/// What the header of a picture tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The format of its bytes.
    pub format: Format,
    /// Width in pixels, after EXIF orientation.
    pub width: u32,
    /// Height in pixels, after EXIF orientation.
    pub height: u32,
    /// An upper bound of the bytes that decoding holds at its peak beside the encoded bytes: the
    /// decoder's samples, its working buffers and tables, their conversion to RGB and the turned
    /// copy.
    pub decoded_bytes: u64,
}

/// An encoded picture whose header has been read and found to be within the limits.
///
/// A caller that shares memory between pictures opens one, waits until
/// [`decoded_bytes`](ImageInfo::decoded_bytes) are free, and then decodes it:
///
/// ```
/// # use imgclass_image::{Encoded, ImageError, Limits, RgbImage};
/// # fn wait_for_memory(_: u64) {}
/// fn read(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
///     let encoded = Encoded::open(bytes, limits)?;
///     wait_for_memory(encoded.info().decoded_bytes);
///     encoded.decode()
/// }
/// ```
///
/// It holds the bytes and what the header told, but no decoder: the JPEG decoder of `image` has a
/// copy of the whole file, and its PNG decoder an unpacked colour profile of any size within the
/// limits. Nobody has set that memory aside while a picture waits for its turn.
#[derive(Debug, Clone)]
pub struct Encoded<B> {
    bytes: B,
    limits: Limits,
    info: ImageInfo,
    orientation: Orientation,
    /// The markers of a JPEG, `None` for other formats.
    jpeg: Option<jpeg::Headers>,
}

impl<B: AsRef<[u8]>> Encoded<B> {
    /// Reads the header of a picture: its format, its size and what decoding it costs. It allocates
    /// nothing of the picture's size.
    ///
    /// # Errors
    /// - [`ImageError::Unsupported`] if the bytes are in no format that is decoded here.
    /// - [`ImageError::TooLarge`] if the picture is over a limit.
    /// - [`ImageError::TooMuchMemory`] if metadata before the pixels is over the memory limit.
    /// - [`ImageError::Malformed`] if even the header is damaged, or a decoder panics on it.
    pub fn open(bytes: B, limits: &Limits) -> Result<Self, ImageError> {
        let format = Format::of(bytes.as_ref())?;
        contain_panics(format, || {
            let jpeg = (format == Format::Jpeg).then(|| jpeg::Headers::read(bytes.as_ref()));
            let header = read_header(format, bytes.as_ref(), jpeg.as_ref(), limits)?;
            Ok((header, jpeg))
        })
        .map(|((info, orientation), jpeg)| Self {
            bytes,
            limits: *limits,
            info,
            orientation,
            jpeg,
        })
    }

    /// Returns what the header told.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Decodes the picture to upright 8-bit RGB, as Pillow's
    /// `ImageOps.exif_transpose(Image.open(...)).convert("RGB")` does: the first frame or page,
    /// alpha dropped, no colour management. A file that ends before its picture does is refused.
    ///
    /// # Errors
    /// Any [`ImageError`]. No input panics: a decoder's panic comes back as
    /// [`ImageError::Malformed`].
    pub fn decode(&self) -> Result<RgbImage, ImageError> {
        contain_panics(self.info.format, || self.read_pixels())
    }

    fn read_pixels(&self) -> Result<RgbImage, ImageError> {
        let (format, bytes) = (self.info.format, self.bytes.as_ref());
        if !self.is_complete() {
            return Err(malformed(format, &CUT_OFF));
        }
        // The JPEG decoder that is closer to Pillow than `image`'s, if it is the right one for this
        // file and can read it.
        let preferred = self.jpeg.as_ref().and_then(|headers| headers.decode(bytes));
        let picture = match preferred {
            Some(picture) => Some(picture),
            None => match open_decoder(format, bytes, &self.limits)? {
                Decoder::Gif(frame) => frame.read().map_err(|e| malformed(format, &e))?,
                Decoder::Other(decoder) => read_samples(format, decoder, &self.limits)?,
            },
        };
        picture
            .and_then(|picture| picture.upright(self.orientation))
            .ok_or_else(|| malformed(format, &NO_PIXELS))
    }

    /// Returns whether the file goes on to the end of its picture, as far as that must be found out
    /// here: the decoders of the other formats notice by themselves.
    fn is_complete(&self) -> bool {
        let bytes = self.bytes.as_ref();
        match (&self.jpeg, self.info.format) {
            (Some(headers), _) => headers.is_complete(bytes),
            (None, Format::WebP) => is_complete_riff(bytes),
            (None, _) => true,
        }
    }
}

/// Returns what [`Encoded::open`] finds out.
///
/// # Errors
/// Those of [`Encoded::open`].
pub fn inspect(bytes: &[u8], limits: &Limits) -> Result<ImageInfo, ImageError> {
    Encoded::open(bytes, limits).map(|encoded| encoded.info)
}

/// Opens and decodes a picture: [`Encoded::open`], then [`Encoded::decode`].
///
/// # Errors
/// Those of the two.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    Encoded::open(bytes, limits)?.decode()
}

/// Runs `work`, turning a panic into [`ImageError::Malformed`].
///
/// The decoders are large, parse what strangers send, and have panicked on damaged files before;
/// one such file must cost its sender an error, not the service a worker. Nothing that `work` may
/// leave half-changed outlives it, hence `AssertUnwindSafe`.
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

/// Reads a header and checks it against the limits.
fn read_header(
    format: Format,
    bytes: &[u8],
    jpeg: Option<&jpeg::Headers>,
    limits: &Limits,
) -> Result<(ImageInfo, Orientation), ImageError> {
    if let Some(kind) = jpeg.and_then(jpeg::Headers::unsupported_kind) {
        return Err(ImageError::Unsupported {
            found: kind.to_owned(),
        });
    }
    let (stored, orientation, decoded_bytes) = match open_decoder(format, bytes, limits)? {
        Decoder::Gif(frame) => (
            frame.size(),
            Orientation::NoTransforms,
            frame.decoded_bytes() + TABLES,
        ),
        Decoder::Other(mut decoder) => {
            // A damaged EXIF block says nothing about the pixels.
            let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
            let working = working_bytes(format, bytes, jpeg, decoder.as_ref());
            let peak = peak_bytes(decoder.as_ref(), working, orientation);
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
    Ok((info, orientation))
}

/// A decoder that has read its file's header.
enum Decoder<'a> {
    /// GIF has its own, because only the raw frame tells what Pillow shows around it.
    Gif(Box<FirstFrame<'a>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

/// Opens the decoder of `format`, which reads headers but nothing of the picture's size.
fn open_decoder<'a>(
    format: Format,
    bytes: &'a [u8],
    limits: &Limits,
) -> Result<Decoder<'a>, ImageError> {
    let from = Cursor::new(bytes);
    let decoder: Result<Box<dyn ImageDecoder + 'a>, _> = match format {
        Format::Gif => {
            return match FirstFrame::open(bytes) {
                Ok(Some(frame)) => Ok(Decoder::Gif(Box::new(frame))),
                Ok(None) => Err(malformed(format, &"it has no frame")),
                Err(error) => Err(malformed(format, &error)),
            };
        }
        Format::Jpeg => JpegDecoder::new(from).map(|d| Box::new(d) as _),
        // The PNG decoder takes its memory limit (for metadata that unpacks to gigabytes) when it
        // is made, or never. Its sides are left to `check`, which names them.
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
        .map(Decoder::Other)
        .map_err(|e| refusal(format, limits, e))
}

/// Returns an upper bound of the bytes that decoding holds at its peak, see
/// [`ImageInfo::decoded_bytes`]. `working` are those of [`working_bytes`].
fn peak_bytes(decoder: &dyn ImageDecoder, working: u64, orientation: Orientation) -> u64 {
    let pixels = pixels_of(decoder);
    let turning = if orientation == Orientation::NoTransforms {
        0
    } else {
        3
    };
    // The working buffers are gone before the conversion starts, and its input before the turn.
    let samples = decoder.total_bytes().max(pixels.saturating_mul(3));
    let beside = pixels.saturating_mul(extra_bytes(decoder.color_type()).max(turning));
    samples
        .saturating_add(working.max(beside))
        .saturating_add(TABLES)
}

/// Returns an upper bound of the bytes that a decoder holds beside its output.
///
/// The buffers are those of the decoders at the locked versions, measured with a counting allocator
/// on 36 files of one megapixel (the estimate was 1.0 to 2.4 times the real peak).
fn working_bytes(
    format: Format,
    bytes: &[u8],
    jpeg: Option<&jpeg::Headers>,
    decoder: &dyn ImageDecoder,
) -> u64 {
    let (width, height) = decoder.dimensions();
    let per_pixel = |bytes: u64| pixels_of(decoder).saturating_mul(bytes);
    match format {
        // The coefficients, a plane for each component in whole MCUs, some rows at every stage, and
        // a copy of the file.
        Format::Jpeg => jpeg
            .map_or(0, jpeg::Headers::coefficient_bytes)
            .saturating_add(per_pixel(3))
            .saturating_add((u64::from(width) + u64::from(height)) * 256)
            .saturating_add(bytes.len() as u64),
        // Lossy: planes of luma and chroma, a little over 1.5 bytes a pixel. Lossless: an RGBA
        // frame. With alpha or animated: all of that and an RGBA canvas.
        Format::WebP if bytes.get(12..16) == Some(b"VP8 ") => per_pixel(2),
        Format::WebP if bytes.get(12..16) == Some(b"VP8L") => per_pixel(5),
        Format::WebP => per_pixel(10),
        // The decoder fills a buffer of its own and copies it; CMYK has four samples where the copy
        // has three.
        Format::Tiff => match decoder.original_color_type() {
            ExtendedColorType::Cmyk8 => per_pixel(4),
            ExtendedColorType::Cmyk16 => per_pixel(8),
            _ => decoder.total_bytes(),
        },
        Format::Png | Format::Bmp | Format::Gif => 0,
    }
}

fn pixels_of(decoder: &dyn ImageDecoder) -> u64 {
    let (width, height) = decoder.dimensions();
    u64::from(width) * u64::from(height)
}

/// Returns an error for a picture without pixels and for one over a limit.
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
        Some((what, found, limit)) => Err(ImageError::TooLarge {
            what: what.into(),
            found,
            limit,
        }),
        None => Ok(()),
    }
}

/// Returns whether a WebP is as long as it says. The decoder would leave out what is missing at the
/// end, EXIF for one.
fn is_complete_riff(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).and_then(|field| field.try_into().ok());
    length.is_some_and(|field| 8 + u64::from(u32::from_le_bytes(field)) <= bytes.len() as u64)
}

/// Decodes the samples and converts them to RGB; `None` if there are no pixels.
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

/// Returns the limits in the terms of the decoders.
fn codec_limits(limits: &Limits) -> ::image::Limits {
    let mut codec = ::image::Limits::no_limits();
    codec.max_image_width = Some(limits.max_side);
    codec.max_image_height = Some(limits.max_side);
    codec.max_alloc = Some(limits.max_decoded_bytes);
    codec
}

/// Returns a decoder's error as ours.
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

/// Returns a decoder's words as one line of limited length: some decoders quote the file, which may
/// hold anything.
fn printable(words: &dyn std::fmt::Display) -> String {
    const LONGEST: usize = 200;
    words
        .to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect()
}

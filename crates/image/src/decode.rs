//! Decodes pictures to upright RGB. The size is checked before anything of that size is allocated,
//! and a file that holds only a part of its picture is refused.
//!
//! [`Encoded::open`] reads the header and [`Encoded::decode`] the pixels. Each format has a module
//! of its own with a `Header`, which reads what comes before the pixels and later decodes them.

#[cfg(feature = "avif")]
use crate::avif;
use crate::error::{ImageError, Refusal};
use crate::format::Format;
use crate::orientation::Orientation;
use crate::pixels::RgbImage;
use crate::reduction::Reduction;
use crate::{bmp, gif, jpeg, png, tiff, webp};
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
    /// copy. A picture that is decoded at a reduced size holds less.
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
/// It holds the bytes and what the header told, but nothing of the picture's size.
#[derive(Debug, Clone)]
pub struct Encoded<B> {
    bytes: B,
    limits: Limits,
    info: ImageInfo,
    header: Header,
    reduction: Reduction,
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
        Self::open_at(bytes, limits, |_| Reduction::Full)
    }

    /// Opens a picture that need not be decoded at its full size. `least` gets width and height of
    /// the upright picture, and returns the least width and height that will do.
    ///
    /// A JPEG is then decoded at a half, a quarter or an eighth of its size if both sides are still
    /// at least as long as asked for. That takes a part of the time and of the memory, and gives
    /// the pixels of Pillow's `Image.draft`. Other formats are decoded whole.
    ///
    /// The limits on pixels and sides hold for the full size, that on memory for the reduced one.
    ///
    /// # Errors
    /// Those of [`Encoded::open`].
    pub fn open_at_least(
        bytes: B,
        limits: &Limits,
        least: impl FnOnce((u32, u32)) -> (u32, u32),
    ) -> Result<Self, ImageError> {
        Self::open_at(bytes, limits, |size| {
            Reduction::to_at_least(least(size), size)
        })
    }

    fn open_at(
        bytes: B,
        limits: &Limits,
        reduction: impl FnOnce((u32, u32)) -> Reduction,
    ) -> Result<Self, ImageError> {
        let format = Format::of(bytes.as_ref())?;
        let header = contained(format, limits, || Header::read(format, bytes.as_ref()))?;
        let reduction = match header {
            Header::Jpeg(_) => reduction(header.orientation().turned(header.size())),
            _ => Reduction::Full,
        };
        let info = header.info(format, reduction);
        check(&info, limits)?;
        Ok(Self {
            bytes,
            limits: *limits,
            info,
            header,
            reduction,
        })
    }

    /// Returns what the header told: the full size, and the memory of the size at which the picture
    /// is decoded.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Decodes the picture to upright 8-bit RGB, as Pillow's
    /// `ImageOps.exif_transpose(Image.open(...)).convert("RGB")` does: the first frame or page,
    /// alpha dropped, no colour management. A file that ends before its picture does is refused.
    /// The picture is smaller than [`Encoded::info`] says where [`Encoded::open_at_least`] allowed
    /// it.
    ///
    /// # Errors
    /// Any [`ImageError`]. No input panics: a decoder's panic comes back as
    /// [`ImageError::Malformed`].
    /// Only damaged AVIF can abort the process, as `imgclass-av1` says.
    pub fn decode(&self) -> Result<RgbImage, ImageError> {
        contained(self.info.format, &self.limits, || {
            let rgb = self.header.decode(self.bytes.as_ref(), self.reduction)?;
            let (width, height) = self.header.size();
            let size = (self.reduction.side(width), self.reduction.side(height));
            let orientation = self.header.orientation();
            let (width, height) = orientation.turned(size);
            RgbImage::new(width, height, orientation.apply(size, rgb))
                .ok_or_else(|| Refusal::malformed("it has no pixels"))
        })
    }
}

/// What comes before the pixels of a picture, by its format.
#[derive(Debug, Clone)]
enum Header {
    Jpeg(jpeg::Header),
    Png(png::Header),
    WebP(webp::Header),
    Gif(gif::Header),
    Bmp(bmp::Header),
    Tiff(tiff::Header),
    #[cfg(feature = "avif")]
    Avif(avif::Header),
}

impl Header {
    fn read(format: Format, bytes: &[u8]) -> Result<Self, Refusal> {
        match format {
            Format::Jpeg => jpeg::Header::read(bytes).map(Self::Jpeg),
            Format::Png => png::Header::read(bytes).map(Self::Png),
            Format::WebP => webp::Header::read(bytes).map(Self::WebP),
            Format::Gif => gif::Header::read(bytes).map(Self::Gif),
            Format::Bmp => bmp::Header::read(bytes).map(Self::Bmp),
            Format::Tiff => tiff::Header::read(bytes).map(Self::Tiff),
            #[cfg(feature = "avif")]
            Format::Avif => avif::Header::read(bytes).map(Self::Avif),
            // No file is found to be AVIF.
            #[cfg(not(feature = "avif"))]
            Format::Avif => Err(Refusal::Unsupported("an AVIF image".to_owned())),
        }
    }

    /// Returns width and height as they are stored.
    fn size(&self) -> (u32, u32) {
        match self {
            Self::Jpeg(header) => header.size(),
            Self::Png(header) => header.size(),
            Self::WebP(header) => header.size(),
            Self::Gif(header) => header.size(),
            Self::Bmp(header) => header.size(),
            Self::Tiff(header) => header.size(),
            #[cfg(feature = "avif")]
            Self::Avif(header) => header.size(),
        }
    }

    fn orientation(&self) -> Orientation {
        match self {
            Self::Jpeg(header) => header.orientation(),
            Self::Png(header) => header.orientation(),
            Self::WebP(header) => header.orientation(),
            Self::Tiff(header) => header.orientation(),
            #[cfg(feature = "avif")]
            Self::Avif(header) => header.orientation(),
            Self::Gif(_) | Self::Bmp(_) => Orientation::Upright,
        }
    }

    /// Returns an upper bound of the bytes that decoding holds beside the RGB picture.
    fn working_bytes(&self, reduction: Reduction) -> u64 {
        match self {
            Self::Jpeg(header) => header.working_bytes(reduction),
            Self::Png(header) => header.working_bytes(),
            Self::WebP(header) => header.working_bytes(),
            Self::Gif(header) => header.working_bytes(),
            Self::Bmp(header) => header.working_bytes(),
            Self::Tiff(header) => header.working_bytes(),
            #[cfg(feature = "avif")]
            Self::Avif(header) => header.working_bytes(),
        }
    }

    fn info(&self, format: Format, reduction: Reduction) -> ImageInfo {
        let (width, height) = self.orientation().turned(self.size());
        let rgb = u64::from(reduction.side(width))
            .saturating_mul(u64::from(reduction.side(height)))
            .saturating_mul(3);
        // What decoding needs beside the picture is gone before it is turned.
        let turned = match self.orientation() {
            Orientation::Upright => 0,
            _ => rgb,
        };
        let decoded_bytes = rgb
            .saturating_add(self.working_bytes(reduction).max(turned))
            .saturating_add(TABLES);
        ImageInfo {
            format,
            width,
            height,
            decoded_bytes,
        }
    }

    /// Decodes the picture to RGB as it is stored, a JPEG at the size that `reduction` says.
    fn decode(&self, bytes: &[u8], reduction: Reduction) -> Result<Vec<u8>, Refusal> {
        match self {
            Self::Jpeg(header) => header.decode(bytes, reduction),
            Self::Png(header) => header.decode(bytes),
            Self::WebP(header) => header.decode(bytes),
            Self::Gif(header) => header.decode(bytes),
            Self::Bmp(header) => header.decode(bytes),
            Self::Tiff(header) => header.decode(bytes),
            #[cfg(feature = "avif")]
            Self::Avif(header) => header.decode(bytes),
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

/// Runs `work`, turning a refusal, or a panic, into an error.
///
/// The decoders are large, parse what strangers send, and have panicked on damaged files before;
/// one such file must cost its sender an error, not the service a worker. Nothing that `work` may
/// leave half-changed outlives it, hence `AssertUnwindSafe`.
fn contained<T>(
    format: Format,
    limits: &Limits,
    work: impl FnOnce() -> Result<T, Refusal>,
) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| {
            Err(Refusal::malformed(
                "the decoder gave up on its damaged data",
            ))
        })
        .map_err(|refusal| refusal.of(format, limits.max_decoded_bytes))
}

/// Returns an error for a picture without pixels and for one over a limit.
fn check(info: &ImageInfo, limits: &Limits) -> Result<(), ImageError> {
    let pixels = u64::from(info.width) * u64::from(info.height);
    if pixels == 0 {
        return Err(Refusal::malformed("it has no pixels").of(info.format, 0));
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

//! Decodes one AV1 picture to planes of luma and chroma, as AVIF files hold it.
//!
//! The decoder is [rav1d](https://github.com/memorysafety/rav1d), a port of dav1d to Rust. Its only
//! interface is dav1d's: functions of a C library, which take raw pointers. This crate makes a safe
//! interface of the few that a still picture needs. It is a crate of its own, because all that is
//! above it forbids `unsafe` code.
//!
//! rav1d decodes on the calling thread here, without assembly. **It aborts the process on most
//! damaged data**: it panics (its issue 1497), and a panic cannot leave its `extern "C"` functions.
//! So call it where a process has nothing to lose.
//!
//! ```no_run
//! # fn main() -> Result<(), imgclass_av1::DecodeError> {
//! # let item: &[u8] = &[];
//! let frame = imgclass_av1::decode(item, &imgclass_av1::Options::of_size(640, 480))?;
//! let luma = frame.plane::<u8>(0).expect("8 bits a sample");
//! assert_eq!(luma.row(0).len(), 640);
//! # Ok(())
//! # }
//! ```

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use rav1d::Dav1dResult;
use rav1d::include::dav1d::data::Dav1dData;
use rav1d::include::dav1d::dav1d::{Dav1dContext, Dav1dLogger, Dav1dSettings};
use rav1d::include::dav1d::headers::{
    DAV1D_PIXEL_LAYOUT_I400, DAV1D_PIXEL_LAYOUT_I420, DAV1D_PIXEL_LAYOUT_I422,
    DAV1D_PIXEL_LAYOUT_I444,
};
use rav1d::include::dav1d::picture::Dav1dPicture;
use rav1d::src::lib::{
    dav1d_close, dav1d_data_create, dav1d_data_unref, dav1d_default_settings, dav1d_get_picture,
    dav1d_open, dav1d_picture_unref, dav1d_send_data,
};
use thiserror::Error;

/// Returns the bytes that a [`Frame`] of this size holds.
#[must_use]
pub fn frame_bytes(width: u32, height: u32, depth: u8, layout: Layout) -> u64 {
    let luma = padded_pixels(width, height);
    let samples = match layout {
        Layout::Monochrome => luma,
        Layout::Half => luma + luma / 2,
        Layout::HalfWidth => luma.saturating_mul(2),
        Layout::Full => luma.saturating_mul(3),
    };
    samples.saturating_mul(if depth > 8 { 2 } else { 1 })
}

/// Returns an upper bound of the bytes that [`decode`] holds at once, its frame included, for a
/// picture of one frame. A picture of many frames can take more.
#[must_use]
pub fn working_bytes(width: u32, height: u32, depth: u8, layout: Layout) -> u64 {
    // Film grain is drawn into a second frame. What the decoder notes of each block, for filters and
    // for later frames, is in proportion to luma.
    frame_bytes(width, height, depth, layout)
        .saturating_mul(2)
        .saturating_add(padded_pixels(width, height))
        .saturating_add(FIXED)
}

/// Returns the pixels of a picture that is padded to whole blocks of 128 pixels.
fn padded_pixels(width: u32, height: u32) -> u64 {
    let padded = |side: u32| u64::from(side).next_multiple_of(128) + 128;
    padded(width).saturating_mul(padded(height))
}

/// Tables and contexts of the decoder, whatever the picture's size.
const FIXED: u64 = 4 << 20;

/// What to decode, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most pixels that a frame may have. A larger one is refused before it is allocated.
    pub max_pixels: u32,
    /// The operating point of a scalable picture, from 0 to 31; 0 for any other.
    pub operating_point: u8,
    /// The spatial layer of a layered picture, from 0 to 3. `None` for the best one.
    pub layer: Option<u8>,
}

impl Options {
    /// Returns the options for a picture of one layer that is no larger than `width` by `height`.
    #[must_use]
    pub fn of_size(width: u32, height: u32) -> Self {
        Self {
            max_pixels: width.saturating_mul(height),
            operating_point: 0,
            layer: None,
        }
    }
}

/// Why a picture was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The decoder found a fault in the data, or a frame larger than allowed.
    #[error("its AV1 data is damaged, or contradicts the size that the file announces")]
    Damaged,
    /// The data ended before a picture was complete.
    #[error("its AV1 data holds no complete picture")]
    NoPicture,
    /// The decoder did not start, or produced what it never should.
    #[error("the AV1 decoder failed")]
    Failed,
}

/// How many samples of chroma there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// None: 4:0:0.
    Monochrome,
    /// Half as many in each direction as of luma: 4:2:0.
    Half,
    /// Half as many in each row as of luma: 4:2:2.
    HalfWidth,
    /// As many as of luma: 4:4:4.
    Full,
}

/// The type of a sample: `u8` in pictures of 8 bits, `u16` in those of 10 and 12 bits.
pub trait Sample: Copy + Default + Into<u16> + sealed::Sealed {}
impl Sample for u8 {}
impl Sample for u16 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
}

/// The samples of luma or of one of chroma.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a, T> {
    samples: &'a [T],
    stride: usize,
    width: usize,
    height: usize,
}

impl<'a, T: Sample> Plane<'a, T> {
    /// Returns the plane of these samples, row by row. `None` if there are not `width` times
    /// `height` of them.
    #[must_use]
    pub fn new(samples: &'a [T], width: usize, height: usize) -> Option<Self> {
        (width.checked_mul(height) == Some(samples.len())).then_some(Self {
            samples,
            stride: width,
            width,
            height,
        })
    }

    /// Returns width and height, in samples.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Returns a row.
    ///
    /// # Panics
    /// Panics if `y` is not less than the height.
    #[must_use]
    pub fn row(&self, y: usize) -> &'a [T] {
        assert!(y < self.height, "row {y} of {}", self.height);
        &self.samples[y * self.stride..][..self.width]
    }
}

/// A decoded picture.
pub struct Frame {
    picture: Picture,
    layout: Layout,
}

impl Frame {
    /// Returns width and height in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        let parameters = &self.picture.0.p;
        (parameters.w.unsigned_abs(), parameters.h.unsigned_abs())
    }

    /// Returns the number of bits of a sample: 8, 10 or 12.
    #[must_use]
    pub fn depth(&self) -> u8 {
        // `Frame::of` has checked that it is one of the three.
        self.picture.0.p.bpc as u8
    }

    /// Returns how many samples of chroma there are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the plane of luma (0), blue (1) or red (2). `None` where the picture has no such
    /// plane, or samples of another type.
    #[must_use]
    pub fn plane<T: Sample>(&self, index: usize) -> Option<Plane<'_, T>> {
        let bytes = if self.depth() > 8 { 2 } else { 1 };
        let data = *self.picture.0.data.get(index)?;
        if size_of::<T>() != bytes || (index > 0 && self.layout == Layout::Monochrome) {
            return None;
        }
        let stride = usize::try_from(self.picture.0.stride[index.min(1)]).ok()? / bytes;
        let (width, height) = self.size();
        let (width, height) = (width as usize, height as usize);
        let (width, height) = match self.layout {
            _ if index == 0 => (width, height),
            Layout::Half => (width.div_ceil(2), height.div_ceil(2)),
            Layout::HalfWidth => (width.div_ceil(2), height),
            Layout::Full | Layout::Monochrome => (width, height),
        };
        if stride < width {
            return None;
        }
        // SAFETY: rav1d's own allocator made this plane (`dav1d_default_settings` sets it), with
        // whole rows of `stride` samples for at least `height` rows, initialised with zeros, at an
        // address aligned to 64 bytes. The picture owns that memory as long as `self` lives. Nobody
        // writes to it: the decoder has been closed, and it had no other thread.
        let samples = unsafe { slice::from_raw_parts(data?.as_ptr().cast::<T>(), stride * height) };
        Some(Plane {
            samples,
            stride,
            width,
            height,
        })
    }

    fn of(picture: Picture) -> Result<Self, DecodeError> {
        let parameters = &picture.0.p;
        let layout = match parameters.layout {
            DAV1D_PIXEL_LAYOUT_I400 => Layout::Monochrome,
            DAV1D_PIXEL_LAYOUT_I420 => Layout::Half,
            DAV1D_PIXEL_LAYOUT_I422 => Layout::HalfWidth,
            DAV1D_PIXEL_LAYOUT_I444 => Layout::Full,
            _ => return Err(DecodeError::Failed),
        };
        let is_known = matches!(parameters.bpc, 8 | 10 | 12);
        if !is_known || parameters.w <= 0 || parameters.h <= 0 {
            return Err(DecodeError::Failed);
        }
        Ok(Self { picture, layout })
    }
}

/// Decodes the first picture in `data`, which is a temporal unit: the contents of an image item of
/// an AVIF file, or of the first sample of a sequence. Film grain is applied.
///
/// # Errors
/// Any [`DecodeError`]. rav1d aborts the process where it panics.
pub fn decode(data: &[u8], options: &Options) -> Result<Frame, DecodeError> {
    let decoder = Decoder::open(options)?;
    let mut input = Input::copy(data)?;
    loop {
        if !input.is_empty() {
            decoder.send(&mut input)?;
        }
        match decoder.next_picture()? {
            Some(picture) if options.layer.is_none_or(|layer| picture.layer() == layer) => {
                // What the decoder holds beside the picture is freed first.
                drop(decoder);
                return Frame::of(picture);
            }
            // The decoder wants more data, or gave another layer.
            Some(_) => {}
            None if input.is_empty() => return Err(DecodeError::NoPicture),
            None => {}
        }
    }
}

/// rav1d's result for "try again": dav1d's `DAV1D_ERR(EAGAIN)`.
const AGAIN: i32 = -11;

/// A decoder that is open.
struct Decoder(Option<Dav1dContext>);

impl Decoder {
    fn open(options: &Options) -> Result<Self, DecodeError> {
        let mut settings = MaybeUninit::<Dav1dSettings>::uninit();
        // SAFETY: the pointer is valid for writing settings.
        unsafe { dav1d_default_settings(NonNull::from(&mut settings).cast()) };
        // SAFETY: the call above has written all of them.
        let mut settings = unsafe { settings.assume_init() };
        settings.n_threads = 1;
        settings.max_frame_delay = 1;
        settings.frame_size_limit = options.max_pixels;
        settings.operating_point = i32::from(options.operating_point.min(31));
        settings.all_layers = i32::from(options.layer.is_some());
        // SAFETY: without a callback there is nothing that could be called.
        settings.logger = unsafe { Dav1dLogger::new(None, None) };
        let mut context = None;
        // SAFETY: both pointers are valid: the first for writing, the second for reading. The
        // settings hold no pointer of ours.
        let result = unsafe {
            dav1d_open(
                Some(NonNull::from(&mut context)),
                Some(NonNull::from(&mut settings)),
            )
        };
        if result.0 < 0 || context.is_none() {
            return Err(DecodeError::Failed);
        }
        Ok(Self(context))
    }

    /// Hands data over, as much as the decoder takes.
    fn send(&self, input: &mut Input) -> Result<(), DecodeError> {
        // SAFETY: the context is from `dav1d_open` and is closed only when `self` is dropped. The
        // data is from `dav1d_data_create`, and valid for reading and writing.
        let Dav1dResult(result) =
            unsafe { dav1d_send_data(self.0, Some(NonNull::from(&mut input.0))) };
        if result < 0 && result != AGAIN {
            return Err(DecodeError::Damaged);
        }
        Ok(())
    }

    /// Returns the next picture, or `None` if the decoder needs more data for one.
    fn next_picture(&self) -> Result<Option<Picture>, DecodeError> {
        let mut picture = Picture(Dav1dPicture::default());
        // SAFETY: the context is as above. The picture is empty and valid for writing.
        let Dav1dResult(result) =
            unsafe { dav1d_get_picture(self.0, Some(NonNull::from(&mut picture.0))) };
        match result {
            AGAIN => Ok(None),
            ..0 => Err(DecodeError::Damaged),
            _ => Ok(Some(picture)),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid, and the context is from `dav1d_open`. The call takes it out,
        // so that it is closed once.
        unsafe { dav1d_close(Some(NonNull::from(&mut self.0))) };
    }
}

/// Data that the decoder has not taken yet.
struct Input(Dav1dData);

impl Input {
    fn copy(data: &[u8]) -> Result<Self, DecodeError> {
        if data.is_empty() {
            return Err(DecodeError::NoPicture);
        }
        let mut input = Self(Dav1dData::default());
        // SAFETY: the pointer is valid for writing.
        let start = unsafe { dav1d_data_create(Some(NonNull::from(&mut input.0)), data.len()) };
        if start.is_null() {
            return Err(DecodeError::Failed);
        }
        // SAFETY: `start` is that of a new block of `data.len()` bytes, which nothing else refers
        // to yet.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), start, data.len()) };
        Ok(input)
    }

    fn is_empty(&self) -> bool {
        self.0.sz == 0
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // SAFETY: the data is from `dav1d_data_create`, or empty where the decoder has taken it all.
        unsafe { dav1d_data_unref(Some(NonNull::from(&mut self.0))) };
    }
}

/// A picture of the decoder's, which keeps its samples alive.
struct Picture(Dav1dPicture);

impl Picture {
    /// Returns the spatial layer.
    fn layer(&self) -> u8 {
        // SAFETY: where there is a header, the picture keeps it alive, and it is not changed any
        // more.
        self.0
            .frame_hdr
            .map_or(0, |header| unsafe { (*header.as_ptr()).spatial_id })
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // SAFETY: the picture is empty or from `dav1d_get_picture`, and is given back once.
        unsafe { dav1d_picture_unref(Some(NonNull::from(&mut self.0))) };
        // What is left is an empty picture, in which rav1d 1.1 puts a new, empty list of messages.
        if let Some(messages) = self.0.itut_t35_ref.take() {
            // SAFETY: the call above has made this reference of an `Arc`, and there is no other copy.
            drop(unsafe { messages.into_arc() });
        }
    }
}

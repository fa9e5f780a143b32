//! Decodes the first frame of a GIF and lays it on its canvas, as Pillow shows it.

use ::gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, Frame, MemoryLimit};

use crate::pixels::RgbImage;

/// A GIF that has been read up to the pixels of its first frame.
pub(super) struct FirstFrame<'a> {
    decoder: Decoder<&'a [u8]>,
    frame: Frame<'static>,
}

impl<'a> FirstFrame<'a> {
    /// Reads the headers and allocates nothing of the picture's size. Returns `None` if there is no
    /// frame.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Option<Self>, DecodingError> {
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::Indexed);
        // The caller has its own limits and sees the size before anything is read.
        options.set_memory_limit(MemoryLimit::Unlimited);
        let mut decoder = options.read_info(bytes)?;
        let Some(frame) = decoder.next_frame_info()?.cloned() else {
            return Ok(None);
        };
        Ok(Some(Self { decoder, frame }))
    }

    /// Returns width and height of the canvas, grown to hold a frame that reaches over its edge, as
    /// Pillow grows it.
    pub(super) fn size(&self) -> (u32, u32) {
        let reach = |at: u16, extent: u16| u32::from(at) + u32::from(extent);
        (
            u32::from(self.decoder.width()).max(reach(self.frame.left, self.frame.width)),
            u32::from(self.decoder.height()).max(reach(self.frame.top, self.frame.height)),
        )
    }

    /// Returns the bytes that [`FirstFrame::read`] holds: one for each pixel of the frame, three
    /// for each pixel of the canvas.
    pub(super) fn decoded_bytes(&self) -> u64 {
        let (width, height) = self.size();
        u64::from(width) * u64::from(height) * 3
            + u64::from(self.frame.width) * u64::from(self.frame.height)
    }

    /// Decodes the frame and lays it on its canvas. The part that it leaves uncovered gets the
    /// colour of the transparent index, or else of index 0, as Pillow fills it; the background
    /// index is ignored, as it is everywhere. Returns `None` if the canvas has no pixels.
    pub(super) fn read(mut self) -> Result<Option<RgbImage>, DecodingError> {
        let (width, height) = self.size();
        let mut indices = vec![0; self.decoder.buffer_size()];
        self.decoder.read_into_buffer(&mut indices)?;
        let palette = palette(self.decoder.palette()?);
        let fill = palette[usize::from(self.frame.transparent.unwrap_or(0))];
        let row_bytes = width as usize * 3;
        let mut canvas = fill.repeat(width as usize * height as usize);
        let (left, frame_width) = (usize::from(self.frame.left), usize::from(self.frame.width));
        if frame_width > 0 && row_bytes > 0 {
            let rows = canvas
                .chunks_exact_mut(row_bytes)
                .skip(usize::from(self.frame.top));
            for (row, indices) in rows.zip(indices.chunks_exact(frame_width)) {
                for (pixel, &index) in row[left * 3..].chunks_exact_mut(3).zip(indices) {
                    pixel.copy_from_slice(&palette[usize::from(index)]);
                }
            }
        }
        Ok(RgbImage::new(width, height, canvas))
    }
}

/// Returns all 256 colours. Those that the file leaves out are black.
fn palette(colours: &[u8]) -> [[u8; 3]; 256] {
    let mut table = [[0; 3]; 256];
    for (entry, colour) in table.iter_mut().zip(colours.as_chunks().0) {
        *entry = *colour;
    }
    table
}

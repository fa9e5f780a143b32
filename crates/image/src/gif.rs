//! Decodes the first frame of a GIF and lays it on its canvas, as Pillow shows it.

use weezl::decode::Decoder;
use weezl::{BitOrder, LzwStatus};

use crate::bytes::{array, u16_le};
use crate::error::Refusal;

const TRAILER: u8 = b';';
const EXTENSION: u8 = b'!';
const IMAGE: u8 = b',';
const GRAPHIC_CONTROL: u8 = 0xF9;

/// What comes before the pixels of a GIF's first frame.
#[derive(Debug, Clone)]
pub(super) struct Header {
    /// Width and height of the canvas, grown to hold a frame that reaches over its edge, as Pillow
    /// grows it.
    canvas: (u32, u32),
    left: u16,
    top: u16,
    width: u16,
    height: u16,
    is_interlaced: bool,
    transparent: Option<u8>,
    /// Where the palette begins and ends. Without one, indices are shades of grey.
    palette: Option<(usize, usize)>,
    /// The bits of a colour, with which the codes begin.
    code_bits: u8,
    data_at: usize,
}

impl Header {
    /// Reads on to the first frame's data. Bytes and extensions that nobody knows are passed over.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let screen: [u8; 13] = array(bytes, 0)?;
        let (mut at, mut palette) = (13, None);
        if screen[10] & 0x80 != 0 {
            palette = Some(read_palette(bytes, &mut at, screen[10])?);
        }
        let mut transparent = None;
        loop {
            let [byte] = array(bytes, at)?;
            at += 1;
            match byte {
                TRAILER => return Err(Refusal::malformed("it has no frame")),
                EXTENSION => {
                    let [label] = array(bytes, at)?;
                    at += 1;
                    if label == GRAPHIC_CONTROL {
                        let [length, flags, _, _, index] = array(bytes, at)?;
                        if length >= 4 && flags & 1 != 0 {
                            transparent = Some(index);
                        }
                    }
                    while let Some(block) = block(bytes, &mut at)? {
                        let _ = block;
                    }
                }
                IMAGE => break,
                _ => {}
            }
        }
        let number = |offset: usize| u16_le(bytes, at + offset);
        let (left, top, width, height) = (number(0)?, number(2)?, number(4)?, number(6)?);
        let [flags] = array(bytes, at + 8)?;
        at += 9;
        if flags & 0x80 != 0 {
            palette = Some(read_palette(bytes, &mut at, flags)?);
        }
        let [code_bits] = array(bytes, at)?;
        if width == 0 || height == 0 {
            return Err(Refusal::malformed("its frame has no pixels"));
        }
        if !(1..=11).contains(&code_bits) {
            return Err(Refusal::Malformed(format!(
                "its codes begin with {code_bits} bits"
            )));
        }
        let reach = |screen: usize, start: u16, length: u16| -> Result<u32, Refusal> {
            let end = u32::from(start) + u32::from(length);
            Ok(u32::from(u16_le(bytes, screen)?).max(end))
        };
        Ok(Self {
            canvas: (reach(6, left, width)?, reach(8, top, height)?),
            left,
            top,
            width,
            height,
            is_interlaced: flags & 0x40 != 0,
            transparent,
            palette,
            code_bits,
            data_at: at + 1,
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        self.canvas
    }

    /// Returns the bytes that decoding holds beside the RGB picture: one for each pixel of the
    /// frame, and the table of codes.
    pub(super) fn working_bytes(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height) + (64 << 10)
    }

    /// Decodes the frame and lays it on its canvas. The part that it leaves uncovered gets the
    /// colour of the transparent index, or else of index 0, as Pillow fills it; the background
    /// index is ignored, as it is everywhere.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let indices = self.indices(bytes)?;
        let palette = self.palette(bytes);
        let (width, height) = (self.canvas.0 as usize, self.canvas.1 as usize);
        let fill = palette[usize::from(self.transparent.unwrap_or(0))];
        let mut canvas = fill.repeat(width * height);
        let (left, frame_width) = (usize::from(self.left), usize::from(self.width));
        let rows = indices.chunks_exact(frame_width);
        for (row, y) in rows.zip(self.row_order()) {
            let at = ((usize::from(self.top) + y) * width + left) * 3;
            let pixels = canvas[at..at + frame_width * 3].as_chunks_mut::<3>().0;
            for (pixel, &index) in pixels.iter_mut().zip(row) {
                *pixel = palette[usize::from(index)];
            }
        }
        Ok(canvas)
    }

    /// Returns the rows in the order in which the file has them.
    fn row_order(&self) -> impl Iterator<Item = usize> {
        let height = usize::from(self.height);
        let passes: &[(usize, usize)] = if self.is_interlaced {
            &[(0, 8), (4, 8), (2, 4), (1, 2)]
        } else {
            &[(0, 1)]
        };
        passes
            .iter()
            .flat_map(move |&(first, step)| (first..height).step_by(step))
    }

    /// Returns all 256 colours. Those that the file leaves out are black.
    fn palette(&self, bytes: &[u8]) -> [[u8; 3]; 256] {
        let stored = self.palette.and_then(|(start, end)| bytes.get(start..end));
        let Some(stored) = stored else {
            return std::array::from_fn(|grey| [grey as u8; 3]);
        };
        let mut palette = [[0; 3]; 256];
        for (colour, stored) in palette.iter_mut().zip(stored.as_chunks().0) {
            *colour = *stored;
        }
        palette
    }

    /// Decompresses the frame's indices, in the order of the file.
    fn indices(&self, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut indices = vec![0; usize::from(self.width) * usize::from(self.height)];
        let mut decoder = Decoder::new(BitOrder::Lsb, self.code_bits);
        let (mut at, mut filled) = (self.data_at, 0);
        while filled < indices.len() {
            let Some(mut block) = block(bytes, &mut at)? else {
                return Err(Refusal::cut_off());
            };
            loop {
                let done = decoder.decode_bytes(block, &mut indices[filled..]);
                filled += done.consumed_out;
                block = &block[done.consumed_in..];
                match done.status {
                    Err(_) => return Err(Refusal::malformed("its codes are damaged")),
                    Ok(LzwStatus::Done) if filled < indices.len() => {
                        return Err(Refusal::cut_off());
                    }
                    // It may hold back indices after it has taken the last of the block.
                    _ if filled == indices.len() || done.consumed_in + done.consumed_out == 0 => {
                        break;
                    }
                    Ok(_) => {}
                }
            }
        }
        Ok(indices)
    }
}

/// Returns where a palette begins and ends, whose size the flags tell, and moves behind it.
fn read_palette(bytes: &[u8], at: &mut usize, flags: u8) -> Result<(usize, usize), Refusal> {
    let start = *at;
    *at += 3 << ((flags & 7) + 1);
    if *at > bytes.len() {
        return Err(Refusal::cut_off());
    }
    Ok((start, *at))
}

/// Returns the next block of data, and `None` for the empty one that ends them.
fn block<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, Refusal> {
    let [length] = array(bytes, *at)?;
    let start = *at + 1;
    let end = start + usize::from(length);
    // Of the last block, what is there counts.
    *at = end.min(bytes.len());
    Ok((length > 0).then(|| &bytes[start..*at]))
}

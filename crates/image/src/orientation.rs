//! How a picture must be turned to stand upright, from EXIF blocks and XMP packets as Pillow reads
//! them.

/// A turn, by the number that it has in EXIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Orientation {
    #[default]
    Upright,
    Mirrored,
    Rotated180,
    Flipped,
    /// Mirrored at the diagonal from the upper left.
    Transposed,
    /// To be rotated clockwise.
    Rotated90,
    /// Mirrored at the diagonal from the upper right.
    Transversed,
    /// To be rotated counterclockwise.
    Rotated270,
}

impl Orientation {
    /// Returns the turn that a number stands for. Numbers that EXIF does not know turn nothing.
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Mirrored,
            3 => Self::Rotated180,
            4 => Self::Flipped,
            5 => Self::Transposed,
            6 => Self::Rotated90,
            7 => Self::Transversed,
            8 => Self::Rotated270,
            _ => Self::Upright,
        }
    }

    /// Returns width and height after the turn.
    pub(super) fn turned(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.swaps_sides() {
            (height, width)
        } else {
            (width, height)
        }
    }

    fn swaps_sides(self) -> bool {
        matches!(
            self,
            Self::Transposed | Self::Rotated90 | Self::Transversed | Self::Rotated270
        )
    }

    /// Turns interleaved RGB samples of `width` by `height`, which is its size before the turn.
    pub(super) fn apply(self, (width, height): (u32, u32), mut rgb: Vec<u8>) -> Vec<u8> {
        let (width, height) = (width as usize, height as usize);
        let pixels = rgb.as_chunks_mut::<3>().0;
        match self {
            Self::Upright => return rgb,
            Self::Rotated180 => pixels.reverse(),
            Self::Mirrored => pixels.chunks_exact_mut(width).for_each(<[_]>::reverse),
            Self::Flipped => {
                let (upper, lower) = pixels.split_at_mut(height / 2 * width);
                for (above, below) in upper
                    .chunks_exact_mut(width)
                    .zip(lower.chunks_exact_mut(width).rev())
                {
                    above.swap_with_slice(below);
                }
            }
            _ => return self.swap_sides((width, height), pixels),
        }
        rgb
    }

    /// Turns a picture whose columns become rows, in squares that fit the cache.
    fn swap_sides(self, (width, height): (usize, usize), pixels: &[[u8; 3]]) -> Vec<u8> {
        const SQUARE: usize = 32;
        let mut turned = vec![0; pixels.len() * 3];
        let out = turned.as_chunks_mut::<3>().0;
        let from_right = matches!(self, Self::Transversed | Self::Rotated270);
        let from_bottom = matches!(self, Self::Transversed | Self::Rotated90);
        for top in (0..width).step_by(SQUARE) {
            for left in (0..height).step_by(SQUARE) {
                for row in top..(top + SQUARE).min(width) {
                    let column = if from_right { width - 1 - row } else { row };
                    for x in left..(left + SQUARE).min(height) {
                        let y = if from_bottom { height - 1 - x } else { x };
                        out[row * height + x] = pixels[y * width + column];
                    }
                }
            }
        }
        turned
    }
}

/// Returns the orientation of a JPEG with these EXIF segments and this XMP packet.
///
/// Pillow joins EXIF segments, so that what counts is the directory of the first.
pub(super) fn of_jpeg(exif: &[&[u8]], xmp: Option<&[u8]>) -> Orientation {
    match exif {
        [] => from_blocks(None, xmp),
        [block] => from_blocks(Some(block), xmp),
        [first, others @ ..] => {
            let mut joined = first.to_vec();
            for other in others {
                joined.extend_from_slice(other.get(EXIF_PREFIX.len()..).unwrap_or_default());
            }
            from_blocks(Some(&joined), xmp)
        }
    }
}

/// Returns the orientation that an EXIF block tells, or else an XMP packet.
pub(super) fn from_blocks(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    exif.and_then(of_exif)
        .or_else(|| xmp.and_then(of_xmp))
        .unwrap_or_default()
}

/// Returns whether an EXIF block names an orientation, whichever.
#[cfg(feature = "avif")]
pub(super) fn names_orientation(exif: &[u8]) -> bool {
    of_exif(exif).is_some()
}

const EXIF_PREFIX: &[u8] = b"Exif\0\0";

/// Returns the orientation in an EXIF block, which is a small TIFF, after the name "Exif" once or
/// twice or without it. `None` if the block has none.
fn of_exif(block: &[u8]) -> Option<Orientation> {
    let block = block.strip_prefix(EXIF_PREFIX).unwrap_or(block);
    let block = block.strip_prefix(EXIF_PREFIX).unwrap_or(block);
    let is_little = match block.first_chunk()? {
        b"II*\0" | b"II\0*" => true,
        b"MM\0*" | b"MM*\0" => false,
        _ => return None,
    };
    let tiff = Numbers {
        bytes: block,
        is_little,
    };
    let directory = tiff.number(4, 4)?;
    let count = tiff.number(directory, 2)?;
    let entries = (0..count).map_while(|index| {
        let entry = directory + 2 + index * 12;
        block.get(entry..entry + 12).map(|_| entry)
    });
    entries
        .filter(|&entry| tiff.number(entry, 2) == Some(ORIENTATION_TAG))
        .filter_map(|entry| tiff.orientation(entry))
        .last()
}

const ORIENTATION_TAG: usize = 0x112;

/// The bytes of a TIFF and their order.
struct Numbers<'a> {
    bytes: &'a [u8],
    is_little: bool,
}

impl Numbers<'_> {
    /// Returns the number of `length` bytes at `at`.
    fn number(&self, at: usize, length: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        let join = |number, &byte: &u8| number << 8 | usize::from(byte);
        Some(if self.is_little {
            bytes.iter().rev().fold(0, join)
        } else {
            bytes.iter().fold(0, join)
        })
    }

    /// Returns the orientation in a directory's entry, `None` if the entry has no value. A value of
    /// a type that is no number turns nothing.
    fn orientation(&self, entry: usize) -> Option<Orientation> {
        let length = match self.number(entry + 2, 2)? {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => return None,
        };
        let count = self.number(entry + 4, 4)?;
        let size = length * count;
        let at = match size {
            0 => return None,
            1..=4 => entry + 8,
            _ => self.number(entry + 8, 4)?,
        };
        // All of the values must be there, of which the first counts.
        self.bytes.get(at..at.checked_add(size)?)?;
        let value = self.number(at, length)?;
        Some(match self.number(entry + 2, 2)? {
            3 | 4 | 6 | 8 | 9 | 13 | 16 => Orientation::from_number(value as i64),
            _ => Orientation::Upright,
        })
    }
}

/// Returns the orientation in an XMP packet: the first attribute or element of that name with a
/// digit behind it.
fn of_xmp(packet: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(packet, NAME).find_map(|at| {
        let value = &packet[at + NAME.len()..];
        let value = value.strip_prefix(b"=\"").or(value.strip_prefix(b">"))?;
        let digit = value.first().filter(|byte| byte.is_ascii_digit())?;
        Some(Orientation::from_number(i64::from(digit - b'0')))
    })
}

//! Reads the entropy-coded bits of a scan, and finds its way from one restart marker to the next as
//! libjpeg does.

use memchr::memchr;

use super::markers::{RST0, RST7, SOF0};

/// The most bits that [`Bits::refill`] may leave missing: after it, at least this many are there
/// unless a marker or the end of the file has come.
const FULL: u32 = 56;

/// A reader of bits, most significant first. Stuffed zero bytes are dropped. It stops at a marker
/// and gives zero bits from there on.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits from the top; below the first `count` all are zero.
    buffer: u64,
    count: u32,
    /// The marker that stopped the reader.
    marker: Option<u8>,
    /// Whether bits were asked for behind a marker. The rest of the segment is then left as it is.
    is_segment_over: bool,
    /// Whether bits or a marker were asked for behind the end of the file.
    is_cut_off: bool,
    next_restart: u8,
}

impl<'a> Bits<'a> {
    /// Starts to read at `at`, which follows a scan header.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            buffer: 0,
            count: 0,
            marker: None,
            is_segment_over: false,
            is_cut_off: false,
            next_restart: 0,
        }
    }

    /// Returns whether the rest of this segment, up to the next restart, holds nothing.
    pub(super) fn is_segment_over(&self) -> bool {
        self.is_segment_over
    }

    /// Returns whether something was asked for that lies behind the end of the file.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Returns whether a marker or at least `length` bytes follow the bits that were taken.
    pub(super) fn has_ended_with(&self, length: usize) -> bool {
        let unread = self.bytes.get(self.at..).unwrap_or_default();
        self.marker.is_some()
            || unread.len() + self.count as usize / 8 >= length
            || memchr(0xFF, unread).is_some_and(|at| unread.get(at + 1).is_some_and(|&b| b != 0))
    }

    /// Ends the scan. Returns the marker that stopped the reader, if one has, and where the file
    /// goes on behind what was read.
    pub(super) fn finish(self) -> (Option<u8>, usize) {
        (self.marker, self.at)
    }

    /// Makes at least 32 bits available, if the segment has as many.
    #[inline(always)]
    pub(super) fn fill(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    #[inline]
    fn refill(&mut self) {
        if let Some(&[a, b, c, d, e, f, g, h]) =
            self.bytes.get(self.at..).and_then(<[u8]>::first_chunk)
        {
            let word = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            if !has_ff(word) && self.marker.is_none() {
                // As many whole bytes as fit.
                let fitting = (63 - self.count) / 8;
                self.at += fitting as usize;
                let kept = word & !(u64::MAX >> (fitting * 8));
                self.buffer |= kept >> self.count;
                self.count += fitting * 8;
                return;
            }
        }
        self.refill_bytewise();
    }

    #[cold]
    #[inline(never)]
    fn refill_bytewise(&mut self) {
        while self.count <= FULL && self.marker.is_none() {
            let Some(&byte) = self.bytes.get(self.at) else {
                return;
            };
            self.at += 1;
            if byte == 0xFF {
                // Any number of padding bytes may come before a marker.
                let rest = &self.bytes[self.at..];
                let Some(padding) = rest.iter().position(|&byte| byte != 0xFF) else {
                    self.at = self.bytes.len();
                    return;
                };
                self.at += padding + 1;
                if rest[padding] != 0 {
                    self.marker = Some(rest[padding]);
                    return;
                }
            }
            self.buffer |= u64::from(byte) << (FULL - self.count);
            self.count += 8;
        }
    }

    /// Returns the next `length` bits (1 to 16) without taking them; zeros where there are none.
    #[inline(always)]
    pub(super) fn peek(&self, length: u32) -> usize {
        (self.buffer >> (64 - length)) as usize
    }

    /// Takes `length` bits, at most 31, which [`Bits::fill`] must have been called for.
    #[inline(always)]
    pub(super) fn skip(&mut self, length: u32) {
        if length > self.count {
            self.run_out();
        }
        self.buffer <<= length;
        self.count -= length;
    }

    /// From here on the bits are zeros, as in libjpeg.
    #[cold]
    #[inline(never)]
    fn run_out(&mut self) {
        self.is_segment_over = true;
        self.is_cut_off |= self.marker.is_none();
        self.count = FULL + 1;
    }

    /// Takes `length` bits (1 to 16) as a number.
    #[inline(always)]
    pub(super) fn take(&mut self, length: u32) -> i32 {
        let value = self.peek(length) as i32;
        self.skip(length);
        value
    }

    /// Takes one bit, refilling first where needed.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.fill();
        self.take(1) != 0
    }

    /// Takes a number of `length` bits (0 to 16) in the form that coefficients have: the upper half
    /// of the codes are the positive numbers.
    #[inline(always)]
    pub(super) fn signed(&mut self, length: u32) -> i32 {
        if length == 0 {
            return 0;
        }
        let value = self.take(length);
        if value < 1 << (length - 1) {
            value - (1 << length) + 1
        } else {
            value
        }
    }

    /// Goes on behind the next restart marker. If another marker is there than the one that is due,
    /// it does what libjpeg's `jpeg_resync_to_restart` does: a marker that comes too early leaves
    /// the segments before it empty, one that comes too late is passed over.
    pub(super) fn restart(&mut self) {
        (self.buffer, self.count) = (0, 0);
        let due = self.next_restart;
        self.next_restart = (due + 1) & 7;
        loop {
            let marker = match self.marker.take() {
                Some(marker) => marker,
                None => match next_marker(self.bytes, &mut self.at) {
                    Some(marker) => marker,
                    None => {
                        (self.is_cut_off, self.is_segment_over) = (true, true);
                        return;
                    }
                },
            };
            let ahead = marker.wrapping_sub(RST0).wrapping_sub(due) & 7;
            match marker {
                // No marker of a picture: look for another.
                ..SOF0 => continue,
                // Restarts that should have come before.
                RST0..=RST7 if matches!(ahead, 6 | 7) => continue,
                // One of the next two, or the marker of something else: this segment is empty.
                RST0..=RST7 if matches!(ahead, 1 | 2) => self.marker = Some(marker),
                // The right one, or one so wrong that it is taken for it.
                RST0..=RST7 => self.is_segment_over = false,
                _ => self.marker = Some(marker),
            }
            return;
        }
    }
}

/// Returns whether one of the eight bytes is 0xFF.
fn has_ff(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    let inverted = !word;
    inverted.wrapping_sub(LOW) & word & (LOW << 7) != 0
}

/// Returns the next marker at or behind `at`, which moves behind it. Bytes of no marker are skipped.
pub(super) fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        let rest = bytes.get(*at..)?;
        let start = memchr(0xFF, rest)?;
        let padding = rest[start..].iter().position(|&byte| byte != 0xFF)?;
        let marker = rest[start + padding];
        *at += start + padding + 1;
        if marker != 0 {
            return Some(marker);
        }
    }
}

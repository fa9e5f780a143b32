//! Boxes, of which an ISO base media file consists, and the numbers in them. All numbers are
//! big-endian.

use crate::error::Refusal;

/// A box: its name, and where its contents begin and end in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct BoxAt {
    pub(super) name: [u8; 4],
    pub(super) start: usize,
    pub(super) end: usize,
}

impl BoxAt {
    /// Returns a reader of the contents.
    pub(super) fn reader<'a>(&self, file: &'a [u8]) -> Reader<'a> {
        Reader::new(file, self.start, self.end)
    }

    /// Returns a reader of the contents behind the version and flags of a full box, and these two.
    pub(super) fn full<'a>(&self, file: &'a [u8]) -> Result<(Reader<'a>, u8, u32), Refusal> {
        let mut reader = self.reader(file);
        let [version, a, b, c] = reader.array()?;
        Ok((reader, version, u32::from_be_bytes([0, a, b, c])))
    }
}

/// Reads numbers and boxes from a part of a file.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// Returns a reader of `file` from `start` to `end`, or to the file's end if that comes first.
    pub(super) fn new(file: &'a [u8], start: usize, end: usize) -> Self {
        let end = end.min(file.len());
        Self {
            file,
            at: start.min(end),
            end,
        }
    }

    /// Returns the bytes that are left.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.file[self.at..self.end]
    }

    /// Returns the next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let bytes = self.rest().get(..count).ok_or_else(Refusal::cut_off)?;
        self.at += count;
        Ok(bytes)
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<(), Refusal> {
        self.take(count).map(|_| ())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Refusal::cut_off())
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refusal> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_be_bytes)
    }

    /// Returns a number of `bytes` bytes, at most 8.
    pub(super) fn uint(&mut self, bytes: usize) -> Result<u64, Refusal> {
        let join = |number, &byte: &u8| number << 8 | u64::from(byte);
        Ok(self.take(bytes)?.iter().fold(0, join))
    }

    /// Returns an identifier, which has 16 bits in old versions of a box and 32 in new ones.
    pub(super) fn id(&mut self, is_long: bool) -> Result<u32, Refusal> {
        self.uint(if is_long { 4 } else { 2 }).map(|id| id as u32)
    }

    /// Returns the next box, and moves behind it. `None` at the end. A box must lie within its
    /// parent; the last one in the file may have size 0, which means that it ends with the file.
    pub(super) fn next_box(&mut self) -> Result<Option<BoxAt>, Refusal> {
        if self.at == self.end {
            return Ok(None);
        }
        let begin = self.at;
        let size = self.u32()?;
        let name = self.array()?;
        let size = match size {
            0 if self.end == self.file.len() => (self.end - begin) as u64,
            1 => self.uint(8)?,
            size => u64::from(size),
        };
        if &name == b"uuid" {
            self.skip(16)?;
        }
        let end = usize::try_from(size)
            .ok()
            .and_then(|size| begin.checked_add(size));
        let end = end.filter(|&end| end >= self.at).ok_or_else(|| {
            Refusal::malformed("a box of its container is smaller than its own header")
        })?;
        if end > self.end {
            return Err(Refusal::cut_off());
        }
        let found = BoxAt {
            name,
            start: self.at,
            end,
        };
        self.at = end;
        Ok(Some(found))
    }

    /// Returns the first box of this name among those that are left.
    pub(super) fn find(&self, name: &[u8; 4]) -> Result<Option<BoxAt>, Refusal> {
        let mut reader = self.clone();
        while let Some(found) = reader.next_box()? {
            if &found.name == name {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

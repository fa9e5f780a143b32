//! Decompresses the strips and tiles of a TIFF.

use std::io::{Cursor, Read, Write};

use flate2::{Decompress, FlushDecompress};
use weezl::{BitOrder, decode::Decoder as LzwDecoder};

use super::ccitt;
use crate::error::Refusal;

/// How strips and tiles are compressed. JPEG is not among them: it needs more than bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    PackBits,
    Lzw,
    Deflate,
    Zstd,
    Lzma,
    Ccitt(ccitt::Kind),
}

/// The largest window that a Zstandard frame may have: libtiff writes up to 8 MiB.
const LARGEST_WINDOW: u64 = 16 << 20;

impl Compression {
    /// Returns the bytes that the decoder holds beside its output of `output` bytes.
    pub(super) fn working_bytes(self, output: u64) -> u64 {
        match self {
            Self::Zstd => 2 * LARGEST_WINDOW.max(output),
            Self::Lzma => output + LARGEST_LZMA_CHUNK + (1 << 20),
            _ => 64 << 10,
        }
    }

    /// Decompresses `data` to the whole of `out`, of which each row has `width` samples and
    /// `row_bytes` bytes.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if the data are damaged or do not fill `out`.
    pub(super) fn decompress(
        self,
        data: &[u8],
        width: usize,
        row_bytes: usize,
        out: &mut [u8],
    ) -> Result<(), Refusal> {
        match self {
            Self::None => {
                let data = data.get(..out.len()).ok_or_else(Refusal::cut_off)?;
                out.copy_from_slice(data);
                Ok(())
            }
            Self::PackBits => unpack_bits(data, out),
            Self::Lzw => unpack_lzw(data, out),
            Self::Deflate => inflate(data, out),
            Self::Zstd => unpack_zstd(data, out),
            Self::Lzma => unpack_lzma(data, out),
            Self::Ccitt(kind) => ccitt::decode(kind, data, width, row_bytes, out),
        }
    }
}

fn damaged(_: impl std::fmt::Debug) -> Refusal {
    Refusal::malformed("its compressed data are damaged")
}

fn unpack_bits(data: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    let (mut rest, mut filled) = (data, 0);
    while filled < out.len() {
        let (&head, behind) = rest.split_first().ok_or_else(Refusal::cut_off)?;
        let space = &mut out[filled..];
        match head as i8 {
            -128 => rest = behind,
            head @ 0.. => {
                let count = head as usize + 1;
                let (literal, behind) = behind.split_at_checked(count).unwrap_or((behind, &[]));
                let fitting = literal.len().min(space.len());
                if literal.len() < count.min(space.len()) {
                    return Err(Refusal::cut_off());
                }
                space[..fitting].copy_from_slice(&literal[..fitting]);
                filled += fitting;
                rest = behind;
            }
            head => {
                let (&value, behind) = behind.split_first().ok_or_else(Refusal::cut_off)?;
                let fitting = (1 - isize::from(head)) as usize;
                let fitting = fitting.min(space.len());
                space[..fitting].fill(value);
                filled += fitting;
                rest = behind;
            }
        }
    }
    Ok(())
}

fn unpack_lzw(data: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    // Before TIFF 5.0 codes began in the lowest bits. The first code is always the one that clears
    // the table, 256, which tells the two apart.
    let mut decoder = match data {
        [0, second, ..] if second & 1 != 0 => LzwDecoder::new(BitOrder::Lsb, 8),
        _ => LzwDecoder::with_tiff_size_switch(BitOrder::Msb, 8),
    };
    let (mut read, mut filled) = (0, 0);
    while filled < out.len() {
        let done = decoder.decode_bytes(&data[read..], &mut out[filled..]);
        read += done.consumed_in;
        filled += done.consumed_out;
        match done.status {
            Ok(weezl::LzwStatus::Ok) if done.consumed_in + done.consumed_out > 0 => {}
            Ok(_) if filled == out.len() => {}
            Ok(_) => return Err(Refusal::cut_off()),
            Err(error) => return Err(damaged(error)),
        }
    }
    Ok(())
}

fn inflate(data: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    let mut decoder = Decompress::new(true);
    loop {
        let (read, filled) = (decoder.total_in() as usize, decoder.total_out() as usize);
        if filled == out.len() {
            return Ok(());
        }
        let status = decoder
            .decompress(&data[read..], &mut out[filled..], FlushDecompress::None)
            .map_err(damaged)?;
        let is_stuck =
            decoder.total_in() as usize == read && decoder.total_out() as usize == filled;
        if (is_stuck || status == flate2::Status::StreamEnd)
            && (decoder.total_out() as usize) < out.len()
        {
            return Err(Refusal::cut_off());
        }
    }
}

fn unpack_zstd(data: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    if zstd_window(data).ok_or_else(Refusal::cut_off)? > LARGEST_WINDOW.max(out.len() as u64) {
        return Err(Refusal::TooMuchMemory);
    }
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(data).map_err(damaged)?;
    decoder.read_exact(out).map_err(damaged)
}

/// Returns the bytes of the window that a Zstandard frame asks for (RFC 8878, 3.1.1.1). The decoder
/// allocates as many.
fn zstd_window(frame: &[u8]) -> Option<u64> {
    let (_magic, header) = frame.split_first_chunk::<4>()?;
    let (&descriptor, fields) = header.split_first()?;
    let is_single = descriptor & 0x20 != 0;
    if !is_single {
        let window = *fields.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = 1 << (descriptor >> 6);
    let size = fields.get(dictionary_bytes..dictionary_bytes + size_bytes)?;
    let size = size
        .iter()
        .rev()
        .fold(0, |size, &byte| size << 8 | u64::from(byte));
    Some(if size_bytes == 2 { size + 256 } else { size })
}

/// Decompresses an `.xz` file, as libtiff writes them: one stream of one block, compressed with
/// LZMA2, after a filter that stores differences.
fn unpack_lzma(data: &[u8], out: &mut [u8]) -> Result<(), Refusal> {
    const STREAM_HEADER: usize = 12;
    let mut distance = 0;
    let block = data.get(STREAM_HEADER..).ok_or_else(Refusal::cut_off)?;
    let header_bytes = (usize::from(*block.first().ok_or_else(Refusal::cut_off)?) + 1) * 4;
    let (header, payload) = block
        .split_at_checked(header_bytes)
        .ok_or_else(Refusal::cut_off)?;
    let mut fields = Cursor::new(header);
    fields.set_position(1);
    let [flags] = read_bytes(&mut fields)?;
    for flag in [0x40, 0x80] {
        if flags & flag != 0 {
            read_number(&mut fields)?;
        }
    }
    for _ in 0..=flags & 3 {
        let (filter, size) = (read_number(&mut fields)?, read_number(&mut fields)?);
        let [property] = read_bytes(&mut fields)?;
        match (filter, size) {
            (DELTA, 1) => distance = usize::from(property) + 1,
            (LZMA2, 1) => {}
            _ => return Err(Refusal::malformed("its LZMA data have an unknown filter")),
        }
    }
    let mut sink = Sink { out, filled: 0 };
    let needed = lzma_chunks(payload, sink.out.len());
    let mut chunks = needed.chain(&[0][..]);
    let unpacked = lzma_rs::lzma2_decompress(&mut chunks, &mut sink);
    let filled = sink.filled;
    if filled < out.len() {
        unpacked.map_err(damaged)?;
        return Err(Refusal::cut_off());
    }
    if distance > 0 {
        for at in distance..out.len() {
            out[at] = out[at].wrapping_add(out[at - distance]);
        }
    }
    Ok(())
}

/// Returns the chunks of LZMA2 data that hold `wanted` bytes. The decoder keeps what it unpacks until
/// the end, so it gets no more than these.
fn lzma_chunks(data: &[u8], wanted: usize) -> &[u8] {
    let (mut at, mut total) = (0, 0);
    while total < wanted {
        let Some(&[control, high, low]) = data.get(at..).and_then(<[u8]>::first_chunk) else {
            break;
        };
        let size = usize::from(u16::from_be_bytes([high, low])) + 1;
        at += match control {
            0 => break,
            1 | 2 => 3 + size,
            3..0x80 => return data,
            _ => {
                let packed = data.get(at + 3..).and_then(<[u8]>::first_chunk);
                let packed = packed.map_or(0, |&packed| u16::from_be_bytes(packed));
                total += usize::from(control & 0x1F) << 16;
                usize::from(packed) + 1 + if control >= 0xC0 { 6 } else { 5 }
            }
        };
        total += size;
    }
    data.get(..at).unwrap_or(data)
}

/// The most bytes that one chunk of LZMA2 unpacks to.
const LARGEST_LZMA_CHUNK: u64 = 2 << 20;

const DELTA: u64 = 3;
const LZMA2: u64 = 0x21;

fn read_bytes<const N: usize>(from: &mut impl Read) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(damaged)?;
    Ok(bytes)
}

/// Reads a number of up to nine groups of seven bits, the lowest first.
fn read_number(from: &mut impl Read) -> Result<u64, Refusal> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let [byte] = read_bytes(from)?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Refusal::malformed("its LZMA header is damaged"))
}

/// Takes bytes until it is full, and then no more.
struct Sink<'a> {
    out: &'a mut [u8],
    filled: usize,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let space = &mut self.out[self.filled..];
        let fitting = bytes.len().min(space.len());
        space[..fitting].copy_from_slice(&bytes[..fitting]);
        self.filled += fitting;
        Ok(fitting)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

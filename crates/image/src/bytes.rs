//! Numbers at a place in a file. A number that the file does not hold whole means that the file was
//! cut off.

use crate::error::Refusal;

/// Returns the `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Refusal> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or_else(Refusal::cut_off)
}

/// Returns the little-endian 16-bit number at `at`.
pub(super) fn u16_le(bytes: &[u8], at: usize) -> Result<u16, Refusal> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Returns the little-endian 32-bit number at `at`.
pub(super) fn u32_le(bytes: &[u8], at: usize) -> Result<u32, Refusal> {
    array(bytes, at).map(u32::from_le_bytes)
}

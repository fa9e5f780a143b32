//! The two passes of a separable resize: weighted sums of 8-bit pixels in fixed point, the same bit
//! for bit on every instruction set. The caller says by [`Taps`] which pixels count how much, so
//! filters are not known here.

use super::isa::Isa;

/// How many bits of a weight stand behind the binary point.
pub const FRACTION_BITS: u32 = 22;

/// One half in fixed point. Every sum starts from it, so that cutting off the fraction rounds the
/// sum.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// The bytes of a pixel: red, green, blue.
const PIXEL: usize = 3;

/// The source pixels that one resized pixel is made of, and their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taps {
    /// The first source pixel.
    pub first: usize,
    /// The weights of the source pixels from there on, in fixed point with [`FRACTION_BITS`]. Their
    /// absolute values sum to less than 2 in fixed point, so that no sum of 8-bit samples
    /// overflows.
    pub weights: Vec<i32>,
}

impl Taps {
    /// Returns the source pixel after the last.
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// Resizes rows of `width` pixels across. Returns `[rows, columns, 3]`, with each column as its
/// taps say.
///
/// # Panics
/// If the samples are not whole rows, or a tap is outside them.
#[must_use]
pub fn resample_across(isa: Isa, samples: &[u8], width: usize, columns: &[Taps]) -> Vec<u8> {
    let row_bytes = width * PIXEL;
    assert_eq!(
        samples.len() % row_bytes.max(1),
        0,
        "rows of {width} pixels"
    );
    assert!(
        columns.iter().all(|taps| taps.end() <= width),
        "taps beyond a row of {width} pixels"
    );
    let mut out = vec![0; samples.len() / row_bytes.max(1) * columns.len() * PIXEL];
    if !out.is_empty() {
        // SAFETY: an `Isa` names what the processor has, and the pass across rows asks for nothing
        // else: its arguments are slices.
        unsafe { (isa.kernels().across)(samples, row_bytes, columns, &mut out) };
    }
    out
}

/// Resizes rows of `row_bytes` samples down. Returns `[rows, row_bytes]`, with each row as its taps
/// say.
///
/// # Panics
/// If the samples are not whole rows, or a tap is outside them.
#[must_use]
pub fn resample_down(isa: Isa, samples: &[u8], row_bytes: usize, rows: &[Taps]) -> Vec<u8> {
    let height = samples.len() / row_bytes.max(1);
    assert_eq!(
        samples.len(),
        height * row_bytes,
        "rows of {row_bytes} bytes"
    );
    assert!(
        rows.iter().all(|taps| taps.end() <= height),
        "taps beyond {height} rows"
    );
    let mut out = vec![0; rows.len() * row_bytes];
    if !out.is_empty() {
        // SAFETY: an `Isa` names what the processor has, and the pass down columns asks for nothing
        // else: its arguments are slices.
        unsafe { (isa.kernels().down)(samples, row_bytes, rows, &mut out) };
    }
    out
}

/// A pass compiled for one instruction set. Its arguments are samples in whole rows, the bytes of a
/// row, a [`Taps`] for each column or row of the output, and the output. It is unsafe to call only
/// in that the processor must have the instruction set.
pub(crate) type Pass = unsafe fn(&[u8], usize, &[Taps], &mut [u8]);

/// Returns the 8 bits of a sum. What lies beyond black or white is clipped.
#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Computes [`resample_across`] pixel by pixel.
pub(crate) fn across(samples: &[u8], row_bytes: usize, columns: &[Taps], out: &mut [u8]) {
    let out_rows = out.chunks_exact_mut(columns.len() * PIXEL);
    for (row, out) in samples.chunks_exact(row_bytes).zip(out_rows) {
        let (row, _) = row.as_chunks::<PIXEL>();
        let (out, _) = out.as_chunks_mut::<PIXEL>();
        for (taps, out) in columns.iter().zip(out) {
            let mut sums = [HALF; PIXEL];
            for (pixel, &weight) in row[taps.first..].iter().zip(&taps.weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * weight;
                }
            }
            *out = sums.map(clip);
        }
    }
}

/// Computes [`resample_down`]. The compiler turns it into vectors by itself.
#[inline(always)]
pub(crate) fn down(samples: &[u8], row_bytes: usize, rows: &[Taps], out: &mut [u8]) {
    let mut sums = vec![0; row_bytes];
    for (taps, out) in rows.iter().zip(out.chunks_exact_mut(row_bytes)) {
        sums.fill(HALF);
        let sources = samples[taps.first * row_bytes..].chunks_exact(row_bytes);
        for (source, &weight) in sources.zip(&taps.weights) {
            for (sum, &sample) in sums.iter_mut().zip(source) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = clip(sum);
        }
    }
}

/// How many whole pixels the 16 bytes of a vector's lane hold.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const PIXELS_IN_LANE: usize = 5;

/// Returns how many weights make a group, and the weights of all columns: the same number of groups
/// for each column, filled up with zeros behind its own weights. There are as few groups as
/// possible, and a group has at most [`PIXELS_IN_LANE`] weights.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn grouped(columns: &[Taps]) -> (usize, Vec<i32>) {
    let most = columns.iter().map(|taps| taps.weights.len()).max();
    let most = most.unwrap_or(0).max(1);
    let groups = most.div_ceil(PIXELS_IN_LANE);
    let in_group = most.div_ceil(groups);
    let mut padded = vec![0; columns.len() * groups * in_group];
    let each = columns
        .iter()
        .zip(padded.chunks_exact_mut(groups * in_group));
    for (taps, weights) in each {
        weights[..taps.weights.len()].copy_from_slice(&taps.weights);
    }
    (in_group, padded)
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    #![allow(
        clippy::missing_safety_doc,
        reason = "clippy takes safe functions with target features for unsafe ones"
    )]

    use std::arch::x86_64::*;

    use super::{FRACTION_BITS, HALF, PIXEL, PIXELS_IN_LANE, Taps, grouped};

    /// Computes [`super::resample_across`] two rows at a time.
    #[target_feature(enable = "avx2")]
    pub(crate) fn across(samples: &[u8], row_bytes: usize, columns: &[Taps], out: &mut [u8]) {
        let (in_group, weights) = grouped(columns);
        let pass = match in_group {
            1 => pairs::<1>,
            2 => pairs::<2>,
            3 => pairs::<3>,
            4 => pairs::<4>,
            _ => pairs::<PIXELS_IN_LANE>,
        };
        pass(samples, row_bytes, columns, &weights, out);
    }

    /// Computes two rows at a time. Each lane holds the pixels of one row, and from one tap to the
    /// next only the choice of bytes changes. `weights` has the same number of groups of `N` for
    /// each column.
    #[target_feature(enable = "avx2")]
    fn pairs<const N: usize>(
        samples: &[u8],
        row_bytes: usize,
        columns: &[Taps],
        weights: &[i32],
        out: &mut [u8],
    ) {
        let out_bytes = columns.len() * PIXEL;
        let (weights, _) = weights.as_chunks::<N>();
        let groups = weights.len() / columns.len();
        let picks: [__m256i; N] = std::array::from_fn(|pixel| pick(pixel as i32));
        for (pair, out) in out.chunks_mut(2 * out_bytes).enumerate() {
            let upper = &samples[2 * pair * row_bytes..];
            let (out_upper, out_lower) = out.split_at_mut(out_bytes);
            // A last row without a neighbour is computed twice, and stored once.
            let lower = upper.get(row_bytes..).filter(|lower| !lower.is_empty());
            let lower = lower.unwrap_or(upper);
            let (out_upper, _) = out_upper.as_chunks_mut::<PIXEL>();
            let (out_lower, _) = out_lower.as_chunks_mut::<PIXEL>();
            let each = columns.iter().zip(weights.chunks_exact(groups));
            for (column, (taps, weights)) in each.enumerate() {
                let mut sums = _mm256_set1_epi32(HALF);
                for (group, weights) in weights.iter().enumerate() {
                    let at = (taps.first + group * N) * PIXEL;
                    let pixels = _mm256_set_m128i(load(lower, at), load(upper, at));
                    for (&weight, &pick) in weights.iter().zip(&picks) {
                        let samples = _mm256_shuffle_epi8(pixels, pick);
                        let weighted = _mm256_mullo_epi32(samples, _mm256_set1_epi32(weight));
                        sums = _mm256_add_epi32(sums, weighted);
                    }
                }
                // Saturation clips as `super::clip` does: no sum is too large for the 16 bits in
                // between.
                let sums = _mm256_srai_epi32::<{ FRACTION_BITS as i32 }>(sums);
                let words = _mm256_packus_epi32(sums, sums);
                let bytes = _mm256_packus_epi16(words, words);
                out_upper[column] = first_pixel(_mm256_castsi256_si128(bytes));
                if let Some(out) = out_lower.get_mut(column) {
                    *out = first_pixel(_mm256_extracti128_si256::<1>(bytes));
                }
            }
        }
    }

    /// Returns the shuffle that moves the three samples of one pixel of each lane into 32 bits
    /// each. The fourth 32 bits become zero.
    #[target_feature(enable = "avx2")]
    fn pick(pixel: i32) -> __m256i {
        _mm256_broadcastsi128_si256(pick_in_lane(pixel))
    }

    /// Returns [`pick`] for one lane.
    #[target_feature(enable = "avx2")]
    pub(super) fn pick_in_lane(pixel: i32) -> __m128i {
        let sample = |channel| (pixel * PIXEL as i32 + channel) | -256;
        _mm_setr_epi32(sample(0), sample(1), sample(2), -1)
    }

    /// Returns the 16 bytes from `at` on, and zeros beyond the end, where all weights are zero.
    #[target_feature(enable = "avx2")]
    pub(super) fn load(samples: &[u8], at: usize) -> __m128i {
        let rest = samples.get(at..).unwrap_or_default();
        let mut padded = [0; 16];
        let bytes = match rest.first_chunk::<16>() {
            Some(bytes) => bytes,
            None => {
                padded[..rest.len()].copy_from_slice(rest);
                &padded
            }
        };
        // SAFETY: `bytes` refers to 16 bytes, and the instruction needs no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn first_pixel(bytes: __m128i) -> [u8; PIXEL] {
        let [red, green, blue, _] = _mm_cvtsi128_si32(bytes).to_le_bytes();
        [red, green, blue]
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    #![allow(
        clippy::missing_safety_doc,
        reason = "clippy takes safe functions with target features for unsafe ones"
    )]

    use std::arch::x86_64::*;

    use super::avx2::{load, pick_in_lane};
    use super::{FRACTION_BITS, HALF, PIXEL, PIXELS_IN_LANE, Taps, grouped};

    /// How many rows are computed at a time: the lanes of a vector.
    const ROWS: usize = 4;

    /// Computes [`super::resample_across`] four rows at a time.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) fn across(samples: &[u8], row_bytes: usize, columns: &[Taps], out: &mut [u8]) {
        let (in_group, weights) = grouped(columns);
        let pass = match in_group {
            1 => quads::<1>,
            2 => quads::<2>,
            3 => quads::<3>,
            4 => quads::<4>,
            _ => quads::<PIXELS_IN_LANE>,
        };
        pass(samples, row_bytes, columns, &weights, out);
    }

    /// Computes four rows at a time, as `super::avx2::pairs` computes two.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn quads<const N: usize>(
        samples: &[u8],
        row_bytes: usize,
        columns: &[Taps],
        weights: &[i32],
        out: &mut [u8],
    ) {
        let out_bytes = columns.len() * PIXEL;
        let (weights, _) = weights.as_chunks::<N>();
        let groups = weights.len() / columns.len();
        let picks: [__m512i; N] =
            std::array::from_fn(|pixel| _mm512_broadcast_i32x4(pick_in_lane(pixel as i32)));
        let quads = samples.chunks(ROWS * row_bytes);
        for (samples, out) in quads.zip(out.chunks_mut(ROWS * out_bytes)) {
            // Rows that the last four lack are computed as the first of them, and not stored.
            let [a, b, c, d]: [&[u8]; ROWS] = std::array::from_fn(|row| {
                let row = samples.get(row * row_bytes..).filter(|row| !row.is_empty());
                row.unwrap_or(samples)
            });
            let each = columns.iter().zip(weights.chunks_exact(groups));
            for (column, (taps, weights)) in each.enumerate() {
                let mut sums = _mm512_set1_epi32(HALF);
                for (group, weights) in weights.iter().enumerate() {
                    let at = (taps.first + group * N) * PIXEL;
                    let pixels = lanes([load(a, at), load(b, at), load(c, at), load(d, at)]);
                    for (&weight, &pick) in weights.iter().zip(&picks) {
                        let samples = _mm512_shuffle_epi8(pixels, pick);
                        let weighted = _mm512_mullo_epi32(samples, _mm512_set1_epi32(weight));
                        sums = _mm512_add_epi32(sums, weighted);
                    }
                }
                // Clips as `super::clip` does.
                let sums = _mm512_srai_epi32::<{ FRACTION_BITS }>(sums);
                let sums = _mm512_max_epi32(sums, _mm512_setzero_si512());
                let pixels = quarters(_mm512_cvtusepi32_epi8(sums));
                let rows = out.chunks_exact_mut(out_bytes);
                for (row, [red, green, blue, _]) in rows.zip(pixels) {
                    row[column * PIXEL..][..PIXEL].copy_from_slice(&[red, green, blue]);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn lanes([a, b, c, d]: [__m128i; ROWS]) -> __m512i {
        let lanes = _mm512_castsi128_si512(a);
        let lanes = _mm512_inserti32x4::<1>(lanes, b);
        let lanes = _mm512_inserti32x4::<2>(lanes, c);
        _mm512_inserti32x4::<3>(lanes, d)
    }

    #[target_feature(enable = "avx2")]
    fn quarters(bytes: __m128i) -> [[u8; 4]; ROWS] {
        [
            _mm_extract_epi32::<0>(bytes),
            _mm_extract_epi32::<1>(bytes),
            _mm_extract_epi32::<2>(bytes),
            _mm_extract_epi32::<3>(bytes),
        ]
        .map(i32::to_le_bytes)
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon {
    #![allow(
        clippy::missing_safety_doc,
        reason = "clippy takes safe functions with target features for unsafe ones"
    )]

    use std::arch::aarch64::*;

    use super::{FRACTION_BITS, HALF, PIXEL, PIXELS_IN_LANE, Taps, grouped};

    /// How many rows are computed at a time. They share the weights, which take as many
    /// instructions to spread over a register as a row takes to be multiplied by them.
    const ROWS: usize = 4;

    /// Computes [`super::resample_across`] four rows at a time.
    #[target_feature(enable = "neon")]
    pub(crate) fn across(samples: &[u8], row_bytes: usize, columns: &[Taps], out: &mut [u8]) {
        let (in_group, weights) = grouped(columns);
        let pass = match in_group {
            1 => quads::<1>,
            2 => quads::<2>,
            3 => quads::<3>,
            4 => quads::<4>,
            _ => quads::<PIXELS_IN_LANE>,
        };
        pass(samples, row_bytes, columns, &weights, out);
    }

    /// Computes four rows at a time, with a register for each. From one tap to the next only the
    /// choice of bytes changes. `weights` has the same number of groups of `N` for each column.
    #[target_feature(enable = "neon")]
    fn quads<const N: usize>(
        samples: &[u8],
        row_bytes: usize,
        columns: &[Taps],
        weights: &[i32],
        out: &mut [u8],
    ) {
        let out_bytes = columns.len() * PIXEL;
        let (weights, _) = weights.as_chunks::<N>();
        let groups = weights.len() / columns.len();
        let picks: [uint8x16_t; N] = std::array::from_fn(|pixel| pick(pixel as u8));
        let quads = samples.chunks(ROWS * row_bytes);
        for (samples, out) in quads.zip(out.chunks_mut(ROWS * out_bytes)) {
            // Rows that the last four lack are computed as the first of them, and not stored.
            let rows: [&[u8]; ROWS] = std::array::from_fn(|row| {
                let row = samples.get(row * row_bytes..).filter(|row| !row.is_empty());
                row.unwrap_or(samples)
            });
            let each = columns.iter().zip(weights.chunks_exact(groups));
            for (column, (taps, weights)) in each.enumerate() {
                let mut sums = [vdupq_n_s32(HALF); ROWS];
                for (group, weights) in weights.iter().enumerate() {
                    let at = (taps.first + group * N) * PIXEL;
                    let pixels = rows.map(|row| load(row, at));
                    for (&weight, &pick) in weights.iter().zip(&picks) {
                        for (sum, &pixels) in sums.iter_mut().zip(&pixels) {
                            let samples = vreinterpretq_s32_u8(vqtbl1q_u8(pixels, pick));
                            *sum = vmlaq_n_s32(*sum, samples, weight);
                        }
                    }
                }
                let rows = out.chunks_exact_mut(out_bytes);
                for (row, sum) in rows.zip(sums) {
                    // Saturation clips as `super::clip` does: no sum is too large for the 16 bits
                    // in between.
                    let words = vqmovun_s32(vshrq_n_s32::<{ FRACTION_BITS as i32 }>(sum));
                    let bytes = vqmovn_u16(vcombine_u16(words, words));
                    let pixel = vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)).to_le_bytes();
                    row[column * PIXEL..][..PIXEL].copy_from_slice(&pixel[..PIXEL]);
                }
            }
        }
    }

    /// Returns the table that moves the three samples of one pixel into 32 bits each. The fourth 32
    /// bits become zero, as all bytes do whose index is beyond the register.
    #[target_feature(enable = "neon")]
    fn pick(pixel: u8) -> uint8x16_t {
        let mut table = [u8::MAX; 16];
        for channel in 0..PIXEL {
            table[4 * channel] = PIXEL as u8 * pixel + channel as u8;
        }
        // SAFETY: the table has 16 bytes, and the instruction needs no alignment.
        unsafe { vld1q_u8(table.as_ptr()) }
    }

    /// Returns the 16 bytes from `at` on, and zeros beyond the end, where all weights are zero.
    #[target_feature(enable = "neon")]
    fn load(samples: &[u8], at: usize) -> uint8x16_t {
        let rest = samples.get(at..).unwrap_or_default();
        let mut padded = [0; 16];
        let bytes = match rest.first_chunk::<16>() {
            Some(bytes) => bytes,
            None => {
                padded[..rest.len()].copy_from_slice(rest);
                &padded
            }
        };
        // SAFETY: `bytes` refers to 16 bytes, and the instruction needs no alignment.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }
}

//! Estimates the AC coefficients that a progressive JPEG leaves out, from the DC coefficients
//! around a block, as libjpeg-turbo does it ("block smoothing"). This matters for a picture whose
//! later scans are missing.

use super::idct::Block;
use super::markers::Quantisation;

/// The coefficients that are estimated, by their places in zigzag order, which begin at 1: where
/// each stands in a block.
const PLACES: [usize; 10] = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24];

/// What is known of a component's coefficients: how many low bits of each are missing, in zigzag
/// order; -1 for all of them.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) now: [i8; 64],
    /// The same before the last scan of this component.
    pub(super) before: [i8; 64],
}

impl Known {
    pub(super) fn nothing() -> Self {
        Self {
            now: [-1; 64],
            before: [-1; 64],
        }
    }

    /// Notes that a scan gives coefficients `first` to `last` but for their `low` lowest bits.
    pub(super) fn add(&mut self, first: u8, last: u8, low: u8, is_first_scan: bool) {
        let noted = usize::from(first.min(1))..=usize::from(last.max(9));
        if is_first_scan {
            self.before[noted].fill(0);
        } else {
            self.before[noted.clone()].copy_from_slice(&self.now[noted]);
        }
        self.now[usize::from(first)..=usize::from(last)].fill(low as i8);
    }
}

/// Returns whether a picture is smoothed: if some of the first coefficients are missing in one
/// component, and all components allow the estimate.
pub(super) fn is_needed<'a>(
    mut components: impl Iterator<Item = (&'a Known, &'a Quantisation)> + Clone,
) -> bool {
    components.clone().all(|(known, quantisation)| {
        known.now[0] >= 0 && PLACES.iter().all(|&place| quantisation[place] != 0)
    }) && components.any(|(known, _)| known.now[1..10].iter().any(|&bits| bits != 0))
}

/// Returns a block with estimates in the place of those of its first coefficients that are zero and
/// not known exactly. `missing` are the missing bits, and `dc` the DC coefficients of five rows of
/// five blocks, with this block in the middle.
pub(super) fn smoothed(
    block: &Block,
    quantisation: &Quantisation,
    missing: &[i8; 64],
    dc: &[[i64; 5]; 5],
) -> Block {
    let is_all_missing = missing[1..10].iter().all(|&bits| bits == -1);
    let weights = if is_all_missing {
        &WIDE_WEIGHTS[..]
    } else {
        &NARROW_WEIGHTS[..]
    };
    let factor = |place: usize| i64::from(quantisation[place]);
    let estimate = |weights: &[[i64; 5]; 5], place: usize| {
        let weighted = dc.iter().flatten().zip(weights.iter().flatten());
        let sum = weighted.map(|(dc, weight)| dc * weight).sum::<i64>() * factor(0);
        let size = ((factor(place) << 7) + sum.abs()) / (factor(place) << 8);
        (size, sum < 0)
    };
    let mut result = *block;
    for (index, (weights, &place)) in (1..).zip(weights.iter().zip(&PLACES[1..])) {
        let bits = missing[index];
        if bits == 0 || block[place] != 0 {
            continue;
        }
        let (mut size, is_negative) = estimate(weights, place);
        if bits > 0 {
            size = size.min((1 << bits) - 1);
        }
        result[place] = if is_negative { -size } else { size } as i16;
    }
    if is_all_missing {
        let (size, is_negative) = estimate(&DC_WEIGHTS, 0);
        result[0] = if is_negative { -size } else { size } as i16;
    }
    result
}

/// The weights for the first five coefficients, where some of the first nine are known.
const NARROW_WEIGHTS: [[[i64; 5]; 5]; 5] = [
    [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [-7, 50, 0, -50, 7],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ],
    [
        [0, 0, -7, 0, 0],
        [0, 0, 50, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, -50, 0, 0],
        [0, 0, 7, 0, 0],
    ],
    [
        [0, 0, -1, 0, 0],
        [0, 0, 13, 0, 0],
        [0, 0, -24, 0, 0],
        [0, 0, 13, 0, 0],
        [0, 0, -1, 0, 0],
    ],
    [
        [0, -1, 0, 1, 0],
        [-1, 10, 0, -10, 1],
        [0, 0, 0, 0, 0],
        [1, -10, 0, 10, -1],
        [0, 1, 0, -1, 0],
    ],
    [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [-1, 13, -24, 13, -1],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ],
];

/// The weights for the first nine coefficients, where nothing of them is known.
const WIDE_WEIGHTS: [[[i64; 5]; 5]; 9] = [
    [
        [-1, -1, 0, 1, 1],
        [-3, 13, 0, -13, 3],
        [-3, 38, 0, -38, 3],
        [-3, 13, 0, -13, 3],
        [-1, -1, 0, 1, 1],
    ],
    [
        [-1, -3, -3, -3, -1],
        [-1, 13, 38, 13, -1],
        [0, 0, 0, 0, 0],
        [1, -13, -38, -13, 1],
        [1, 3, 3, 3, 1],
    ],
    [
        [0, 0, 1, 0, 0],
        [0, 2, 7, 2, 0],
        [0, -5, -14, -5, 0],
        [0, 2, 7, 2, 0],
        [0, 0, 1, 0, 0],
    ],
    [
        [-1, 0, 0, 0, 1],
        [0, 9, 0, -9, 0],
        [0, 0, 0, 0, 0],
        [0, -9, 0, 9, 0],
        [1, 0, 0, 0, -1],
    ],
    [
        [0, 0, 0, 0, 0],
        [0, 2, -5, 2, 0],
        [1, 7, -14, 7, 1],
        [0, 2, -5, 2, 0],
        [0, 0, 0, 0, 0],
    ],
    [
        [0, 0, 0, 0, 0],
        [0, 1, 0, -1, 0],
        [0, 2, 0, -2, 0],
        [0, 1, 0, -1, 0],
        [0, 0, 0, 0, 0],
    ],
    [
        [0, 0, 0, 0, 0],
        [0, 1, -3, 1, 0],
        [0, 0, 0, 0, 0],
        [0, -1, 3, -1, 0],
        [0, 0, 0, 0, 0],
    ],
    [
        [0, 0, 0, 0, 0],
        [0, 1, 0, -1, 0],
        [0, -3, 0, 3, 0],
        [0, 1, 0, -1, 0],
        [0, 0, 0, 0, 0],
    ],
    [
        [0, 0, 0, 0, 0],
        [0, 1, 2, 1, 0],
        [0, 0, 0, 0, 0],
        [0, -1, -2, -1, 0],
        [0, 0, 0, 0, 0],
    ],
];

/// The weights for the DC coefficient itself, which is smoothed where nothing else is known.
const DC_WEIGHTS: [[i64; 5]; 5] = [
    [-2, -6, -8, -6, -2],
    [-6, 6, 42, 6, -6],
    [-8, 42, 152, 42, -8],
    [-6, 6, 42, 6, -6],
    [-2, -6, -8, -6, -2],
];

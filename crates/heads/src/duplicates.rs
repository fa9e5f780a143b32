//! Pictures that are the same, or nearly: another size, another quality, a slight crop.

use imgclass_kernels::{Isa, PackedLinear, ThreadPool};

use crate::examples::Examples;
use crate::product::dot;

/// The cosine of centred features above which two pictures count as nearly the same.
/// No two of the 200 reference photographs come above 0.61; how far copies of a picture in other
/// sizes and qualities fall below 1 has not been measured.
pub(crate) const SIMILAR: f32 = 0.9;

/// The most multiplications for which all pairs are compared: 31,000 pictures of 2048 features, which
/// take some fifteen seconds on two cores.
const MOST_WORK: f64 = 1e12;

/// How many rows are compared with how many others at one time.
const BLOCK: usize = 512;

/// The most pairs that are kept.
const MOST_PAIRS: usize = 100_000;

/// Two pictures, the first before the second, and the cosine of their features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SimilarPair {
    pub(crate) first: usize,
    pub(crate) second: usize,
    pub(crate) similarity: f32,
}

/// Finds all pairs of similar pictures among centred examples, the most similar first. Returns
/// `None` where there are too many pictures to compare.
pub(crate) fn find(examples: &Examples, pool: &ThreadPool) -> Option<Vec<SimilarPair>> {
    let (count, dims) = (examples.len(), examples.dims());
    if (count as f64).powi(2) / 2.0 * dims as f64 > MOST_WORK {
        return None;
    }
    let unit_rows = |from: usize| {
        let mut rows = Vec::with_capacity(BLOCK * dims);
        for picture in from..count.min(from + BLOCK) {
            let row = examples.row(picture);
            let length = dot(row, row).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
            rows.extend(row.iter().map(|x| x / length));
        }
        rows
    };
    let mut pairs = Vec::new();
    for start in (0..count).step_by(BLOCK) {
        let block = unit_rows(start);
        let columns = block.len() / dims;
        let packed = PackedLinear::new(Isa::detect(), dims, &block, &vec![0.0; columns]);
        for others_start in (0..=start).step_by(BLOCK) {
            let others = unit_rows(others_start);
            let cosines = packed.forward(pool, &others, others.len() / dims);
            for (position, &similarity) in cosines.iter().enumerate() {
                let first = others_start + position / columns;
                let second = start + position % columns;
                if similarity >= SIMILAR && first < second && pairs.len() < MOST_PAIRS {
                    pairs.push(SimilarPair {
                        first,
                        second,
                        similarity,
                    });
                }
            }
        }
    }
    pairs.sort_by(|a, b| {
        b.similarity
            .total_cmp(&a.similarity)
            .then((a.first, a.second).cmp(&(b.first, b.second)))
    });
    Some(pairs)
}

/// Returns the group of each of `count` pictures: those that are connected by pairs have one group,
/// which is the index of its first picture.
pub(crate) fn groups(count: usize, pairs: &[SimilarPair]) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..count).collect();
    fn root(parent: &mut [usize], mut of: usize) -> usize {
        while parent[of] != of {
            parent[of] = parent[parent[of]];
            of = parent[of];
        }
        of
    }
    for pair in pairs {
        let (a, b) = (
            root(&mut parent, pair.first),
            root(&mut parent, pair.second),
        );
        parent[a.max(b)] = a.min(b);
    }
    (0..count)
        .map(|picture| root(&mut parent, picture))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_pictures_are_one_group() {
        let pair = |first, second| SimilarPair {
            first,
            second,
            similarity: 1.0,
        };
        assert_eq!(
            groups(6, &[pair(1, 4), pair(4, 5), pair(0, 2)]),
            [0, 1, 0, 3, 1, 1]
        );
    }
}

//! Pictures that are the same, or nearly: another size, another quality, a slight crop.

use crate::examples::Examples;
use crate::product::{Dots, dot};

/// The cosine of centred features above which two pictures count as nearly the same.
/// No two of the 200 reference photographs come above 0.61; how far copies of a picture in other
/// sizes and qualities fall below 1 has not been measured.
pub(crate) const SIMILAR: f32 = 0.9;

/// The most multiplications for which all pairs are compared: some ten seconds.
const MOST_WORK: f64 = 2e11;

/// How many rows are compared with how many others at one time.
const BLOCK: usize = 64;

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
pub(crate) fn find(examples: &Examples) -> Option<Vec<SimilarPair>> {
    let (count, dims) = (examples.len(), examples.dims());
    if (count as f64).powi(2) / 2.0 * dims as f64 > MOST_WORK {
        return None;
    }
    let mut unit = Vec::with_capacity(count * dims);
    for picture in 0..count {
        let row = examples.row(picture);
        let length = dot(row, row).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
        unit.extend(row.iter().map(|x| x / length));
    }
    let rows: Vec<&[f32]> = unit.chunks_exact(dims).collect();
    let mut pairs = Vec::new();
    let mut cosines = vec![0f32; BLOCK * BLOCK];
    for (i, block) in rows.chunks(BLOCK).enumerate() {
        for (j, others) in unit.chunks(BLOCK * dims).enumerate().skip(i) {
            let columns = others.len() / dims;
            let out = &mut cosines[..block.len() * columns];
            Dots {
                rows: block,
                matrix: others,
                dims,
                out,
            }
            .run();
            for (position, &similarity) in out.iter().enumerate() {
                let (first, second) = (
                    i * BLOCK + position / columns,
                    j * BLOCK + position % columns,
                );
                if first < second && similarity >= SIMILAR && pairs.len() < MOST_PAIRS {
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

//! Stratified folds: each picture is held out once, and each fold has its share of every class.

use std::collections::BTreeMap;

/// Divides pictures into `folds` folds and returns each picture's fold.
///
/// Pictures of one group stay together, so that no picture is judged by a classifier that has seen
/// its double. Groups are dealt out class by class, the largest first, each to the fold that has
/// the fewest pictures of the class, and among those the fewest of all. The result depends on the
/// order of the pictures only through `shuffle`.
pub(crate) fn stratified(
    classes: &[usize],
    groups: &[usize],
    folds: usize,
    shuffle: impl Fn(usize) -> u64,
) -> Vec<usize> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (picture, &group) in groups.iter().enumerate() {
        members.entry(group).or_default().push(picture);
    }
    // A group's class is that of its first picture: nearly all groups are of one class.
    let mut order: Vec<(usize, Vec<usize>)> = members
        .into_values()
        .map(|pictures| (classes[pictures[0]], pictures))
        .collect();
    order.sort_by_key(|(class, pictures)| {
        (
            *class,
            usize::MAX - pictures.len(),
            shuffle(pictures[0]),
            pictures[0],
        )
    });
    let class_count = classes.iter().max().map_or(0, |max| max + 1);
    let mut in_class = vec![vec![0usize; folds]; class_count];
    let mut in_fold = vec![0usize; folds];
    let mut assigned = vec![0; classes.len()];
    for (class, pictures) in order {
        let fold = (0..folds)
            .min_by_key(|&fold| (in_class[class][fold], in_fold[fold], fold))
            .unwrap_or(0);
        for picture in pictures {
            assigned[picture] = fold;
            in_class[classes[picture]][fold] += 1;
            in_fold[fold] += 1;
        }
    }
    assigned
}

/// Returns a number that looks random and depends on its argument alone (the finaliser of
/// splitmix64).
pub(crate) fn mix(x: usize) -> u64 {
    let mut z = (x as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fold_has_its_share_of_every_class_and_groups_stay_together() {
        let classes: Vec<usize> = (0..103).map(|i| [0, 0, 0, 1, 2, 0, 1][i % 7]).collect();
        let mut groups: Vec<usize> = (0..103).collect();
        groups[50] = 3;
        groups[90] = 3;
        for folds in [2, 3, 5] {
            let found = stratified(&classes, &groups, folds, mix);
            assert_eq!(found[3], found[50]);
            assert_eq!(found[3], found[90]);
            for class in 0..3 {
                let count = |fold| {
                    let of = |&i: &usize| found[i] == fold && classes[i] == class;
                    (0..103).filter(of).count()
                };
                let counts: Vec<usize> = (0..folds).map(count).collect();
                let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(max - min <= 3, "{folds} folds, class {class}: {counts:?}");
            }
        }
    }

    #[test]
    fn two_pictures_of_a_class_fall_into_different_folds() {
        let found = stratified(&[0, 0, 1, 1], &[0, 1, 2, 3], 2, mix);
        assert_ne!(found[0], found[1]);
        assert_ne!(found[2], found[3]);
    }
}

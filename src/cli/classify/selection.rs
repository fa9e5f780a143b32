//! Selects the inputs of a run: one part of them for each machine, without those that an earlier
//! run has finished.

use std::collections::HashSet;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// One of several equal parts of the inputs, for one of several machines. `2/5` is the second of
/// five.
///
/// An input's part follows from the digest of its name, so machines need not know of each other,
/// and the parts stay the same when inputs are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    /// Which part this is, from 1.
    pub(super) part: u64,
    /// The number of parts.
    pub(super) parts: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(part, parts)| {
            Some(Self {
                part: part.parse().ok()?,
                parts: parts.parse().ok()?,
            })
        });
        let valid = parsed
            .filter(|shard| (1..=shard.parts).contains(&shard.part) && shard.parts <= 1_000_000);
        valid.ok_or_else(|| "expected a part and the number of parts, such as 1/4".to_owned())
    }
}

impl Shard {
    /// Returns whether the input of this name belongs to the part.
    pub(super) fn takes(self, name: &str) -> bool {
        digest(name) % u128::from(self.parts) == u128::from(self.part - 1)
    }
}

/// Returns the first 128 bits of a name's SHA-256.
///
/// They are the same on every machine, and the chance that two names of an archive share them is
/// negligible.
fn digest(name: &str) -> u128 {
    let hash = Sha256::digest(name.as_bytes());
    hash.iter()
        .take(16)
        .fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}

/// A set of input names, which takes 16 bytes for each name plus the overhead of a hash set.
#[derive(Debug, Default)]
pub(super) struct NameSet(HashSet<u128>);

impl NameSet {
    pub(super) fn insert(&mut self, name: &str) {
        self.0.insert(digest(name));
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&digest(name))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_falls_to_exactly_one_shard() {
        for parts in [1, 2, 7] {
            for i in 0..100 {
                let name = format!("archive/{i}.jpg");
                let takers = (1..=parts).filter(|&part| Shard { part, parts }.takes(&name));
                assert_eq!(takers.count(), 1, "{name} of {parts}");
            }
        }
    }

    #[test]
    fn a_shard_is_a_part_and_a_number_of_parts() {
        assert_eq!("2/5".parse(), Ok(Shard { part: 2, parts: 5 }));
        for wrong in ["", "2", "0/5", "6/5", "a/b", "1/0", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}

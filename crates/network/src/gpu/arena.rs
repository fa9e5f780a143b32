//! Lays activations into one piece of memory.

/// When an activation is in use, and how much memory it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The number of the operation that writes it.
    pub first: usize,
    /// The number of the last operation that reads it, at least `first`.
    pub last: usize,
    /// Its bytes.
    pub bytes: usize,
}

impl Span {
    /// Whether both are in use during some operation.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where each activation lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arena {
    /// The begin of each activation in bytes, in the order of the spans.
    pub offsets: Vec<usize>,
    /// The bytes of all of them together.
    pub bytes: usize,
}

impl Arena {
    /// Every activation begins at a multiple of this. Tensor cores load 16 bytes at once; 256 is
    /// what CUDA's own allocations begin at.
    pub const ALIGNMENT: usize = 256;

    /// Lays out activations so that two which are in use during the same operation do not overlap.
    ///
    /// The largest activation is placed first, each at the lowest offset that is free. That is not
    /// always the least memory, but for a ResNet the result is within a few percent of the largest
    /// sum of activations that are in use at one time.
    #[must_use]
    pub fn layout(spans: &[Span]) -> Self {
        let mut order: Vec<usize> = (0..spans.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(spans[i].bytes), i));
        let mut offsets = vec![0; spans.len()];
        let mut placed: Vec<usize> = Vec::with_capacity(spans.len());
        let mut bytes = 0;
        for i in order {
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|&&other| spans[i].meets(&spans[other]))
                .map(|&other| (offsets[other], offsets[other] + spans[other].bytes))
                .collect();
            taken.sort_unstable();
            let mut offset = 0;
            for (begin, end) in taken {
                if offset + spans[i].bytes <= begin {
                    break;
                }
                offset = offset.max(end.next_multiple_of(Self::ALIGNMENT));
            }
            offsets[i] = offset;
            bytes = bytes.max(offset + spans[i].bytes);
            placed.push(i);
        }
        Self { offsets, bytes }
    }
}

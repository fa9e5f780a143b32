//! Convolutions of random shapes are right.
#![cfg(not(miri))]

use imgclass_kernels::{BatchDims, ConvShape, Isa};
use proptest::prelude::*;

use crate::pool;
use crate::reference::{Case, Expected, run};

prop_compose! {
    fn cases()(
        in_channels in 1usize..70,
        out_channels in 1usize..70,
        kernel in prop_oneof![3 => Just(3usize), 2 => Just(1usize), 1 => 1usize..8],
        stride in 1usize..3,
        padding in 0usize..4,
        n in 1usize..4,
        h in 1usize..20,
        w in 1usize..20,
        residual in any::<bool>(),
        relu in any::<bool>(),
    ) -> Case {
        // A kernel larger than the padded image has no output.
        let side = kernel.saturating_sub(2 * padding);
        let input = BatchDims { n, h: h.max(side), w: w.max(side) };
        Case::new(ConvShape { in_channels, out_channels, kernel, stride, padding }, input, residual, relu)
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} on {:?}, residual {}, ReLU {}",
            self.shape,
            self.input,
            self.skip.is_some(),
            self.relu
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_convolution_is_right_on_every_instruction_set(case in cases(), threads in 1usize..4) {
        let expected = Expected::new(&case, 60);
        let pool = pool(threads);
        for isa in Isa::available() {
            let (y, algorithm) = run(&case, isa, &pool);
            expected.check(&case, algorithm, &y, &format!("{isa}, {algorithm}"));
        }
    }
}

//! What the kernels are compared with: naive convolutions in double precision, which share no code
//! with them. Also seeded numbers, and outputs with poison and guards.

use imgclass_kernels::{
    Algorithm, BatchDims, ConvShape, Isa, PackedConv, ThreadPool, blocked_to_nchw, nchw_to_blocked,
};

/// The unit roundoff of single precision.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Returns uniform numbers in [-1, 1), the same for the same seed. The generator is SplitMix64.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Rounds to bfloat16, to nearest and ties to even.
pub(crate) fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let x = f32::from_bits(rounded);
    if x.is_normal() { x } else { 0.0f32.copysign(x) }
}

/// One layer with its operands. Activations are NCHW and weights OIHW.
pub(crate) struct Case {
    pub(crate) shape: ConvShape,
    pub(crate) input: BatchDims,
    pub(crate) x: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) skip: Option<Vec<f32>>,
    pub(crate) relu: bool,
}

impl Case {
    pub(crate) fn new(shape: ConvShape, input: BatchDims, residual: bool, relu: bool) -> Self {
        let output = shape.output_dims(input);
        Self {
            shape,
            input,
            x: numbers(1, shape.in_channels * input.pixels()),
            weight: numbers(2, shape.weight_len()),
            bias: numbers(3, shape.out_channels),
            skip: residual.then(|| numbers(4, shape.out_channels * output.pixels())),
            relu,
        }
    }

    /// Returns, for every output channel at one output pixel, the value and the sum of the absolute
    /// products that it is made of.
    pub(crate) fn exact(&self, pixel: usize) -> Vec<(f64, f64)> {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
        } = self.shape;
        let output = self.shape.output_dims(self.input);
        let plane = output.h * output.w;
        let (image, oy, ox) = (pixel / plane, pixel % plane / output.w, pixel % output.w);
        let mut window = Vec::with_capacity(in_channels * kernel * kernel);
        for channel in 0..in_channels {
            for (ky, kx) in (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)) {
                let y = (oy * stride + ky)
                    .checked_sub(padding)
                    .filter(|&y| y < self.input.h);
                let x = (ox * stride + kx)
                    .checked_sub(padding)
                    .filter(|&x| x < self.input.w);
                window.push(match (y, x) {
                    (Some(y), Some(x)) => f64::from(
                        self.x[((image * in_channels + channel) * self.input.h + y) * self.input.w
                            + x],
                    ),
                    _ => 0.0,
                });
            }
        }
        let one = |channel: usize| {
            let weights = &self.weight[channel * window.len()..][..window.len()];
            let (mut sum, mut size) = (
                f64::from(self.bias[channel]),
                f64::from(self.bias[channel]).abs(),
            );
            for (x, w) in window.iter().zip(weights) {
                let product = x * f64::from(*w);
                sum += product;
                size += product.abs();
            }
            if let Some(skip) = &self.skip {
                let value =
                    f64::from(skip[(image * out_channels + channel) * plane + pixel % plane]);
                sum += value;
                size += value.abs();
            }
            (if self.relu { sum.max(0.0) } else { sum }, size)
        };
        (0..out_channels).map(one).collect()
    }

    /// Returns which output pixels are compared: all of a small image. Of a larger one they are
    /// some near its corners, and about `most` that lie an odd number of pixels apart.
    fn samples(&self, most: usize) -> Vec<usize> {
        let pixels = self.shape.output_dims(self.input).pixels();
        if pixels <= most {
            return (0..pixels).collect();
        }
        let step = (pixels / most) | 1;
        let mut chosen: Vec<_> = (0..pixels).step_by(step).collect();
        chosen.extend([1, pixels / 2, pixels - 2, pixels - 1]);
        chosen
    }
}

/// What the output of every instruction set for a case is compared with.
pub(crate) struct Expected {
    samples: Vec<usize>,
    values: Vec<Vec<(f64, f64)>>,
}

impl Expected {
    pub(crate) fn new(case: &Case, most_samples: usize) -> Self {
        let samples = case.samples(most_samples);
        let values = samples.iter().map(|&pixel| case.exact(pixel)).collect();
        Self { samples, values }
    }

    /// Compares an NCHW output. A direct sum of k products is off by at most about k roundings of
    /// the sum of absolute products. Winograd's products mix the pixels of a tile, so the largest
    /// such sum of the channel counts there, and its transforms amplify: by up to 4 (2x2) and 100
    /// (4x4) in norm, of which random numbers reach a small part.
    pub(crate) fn check(&self, case: &Case, algorithm: Algorithm, y: &[f32], what: &str) {
        let ConvShape {
            in_channels,
            out_channels,
            kernel,
            ..
        } = case.shape;
        let output = case.shape.output_dims(case.input);
        let plane = output.h * output.w;
        let products = (in_channels * kernel * kernel) as f64;
        let roundings = match algorithm {
            Algorithm::Gemm | Algorithm::ImplicitGemm => products + 3.0,
            Algorithm::Winograd2 => 4.0 * (in_channels as f64 + 16.0),
            Algorithm::Winograd4 => 25.0 * (in_channels as f64 + 16.0),
        };
        let mixes = matches!(algorithm, Algorithm::Winograd2 | Algorithm::Winograd4);
        for channel in 0..out_channels {
            let largest = self
                .values
                .iter()
                .map(|pixel| pixel[channel].1)
                .fold(0.0, f64::max);
            for (&pixel, exact) in self.samples.iter().zip(&self.values) {
                let (value, size) = exact[channel];
                let bound = UNIT * roundings * if mixes { largest } else { size }
                    + f64::from(f32::MIN_POSITIVE);
                let got = y[(pixel / plane * out_channels + channel) * plane + pixel % plane];
                let error = (f64::from(got) - value).abs();
                assert!(
                    error <= bound,
                    "{what}: {:?} on {:?}: channel {channel}, pixel {pixel}: {got} for {value}, off by {error:e}, \
                     allowed {bound:e}",
                    case.shape,
                    case.input,
                );
            }
        }
    }
}

/// Runs `fill` on `len` elements that are poisoned with NaN and lie between two guard zones.
/// Asserts that the output is finite everywhere and that the guards are untouched.
pub(crate) fn guarded(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let out = guarded_words(len, fill);
    let poisoned = out.iter().position(|v| !v.is_finite());
    assert_eq!(
        poisoned, None,
        "an output element was left as it was, or computed from poison"
    );
    out
}

/// Runs `fill` on `len` words of poison that lie between two guard zones. Asserts that each word was
/// written and that the guards are untouched.
pub(crate) fn guarded_words(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    const GUARD: usize = 64;
    const CANARY: f32 = f32::from_bits(0x7fc0_dead);
    let mut memory = vec![CANARY; len + 2 * GUARD];
    fill(&mut memory[GUARD..GUARD + len]);
    let untouched = |zone: &[f32]| zone.iter().all(|v| v.to_bits() == CANARY.to_bits());
    assert!(
        untouched(&memory[..GUARD]),
        "the guard before the output was overwritten"
    );
    assert!(
        untouched(&memory[GUARD + len..]),
        "the guard after the output was overwritten"
    );
    let out = memory[GUARD..GUARD + len].to_vec();
    let left = out.iter().position(|v| v.to_bits() == CANARY.to_bits());
    assert_eq!(left, None, "an output word was left as it was");
    out
}

/// Returns the case's NCHW output by one instruction set, which is computed in guarded memory.
pub(crate) fn run(case: &Case, isa: Isa, pool: &ThreadPool) -> (Vec<f32>, Algorithm) {
    let conv = PackedConv::new(isa, case.shape, &case.weight, &case.bias);
    let output = conv.output_dims(case.input);
    let x = nchw_to_blocked(&case.x, case.shape.in_channels, case.input);
    let skip = case
        .skip
        .as_ref()
        .map(|skip| nchw_to_blocked(skip, case.shape.out_channels, output));
    let y = guarded(output.blocked_len(case.shape.out_channels), |out| {
        conv.forward_into(pool, &x, case.input, skip.as_deref(), case.relu, out);
    });
    if let Some(skip) = &skip {
        let onto = guarded(skip.len(), |out| {
            out.copy_from_slice(skip);
            conv.forward_onto(pool, &x, case.input, case.relu, out);
        });
        let same = y.iter().zip(&onto).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(
            same,
            "writing over the residual changed a bit for {:?}",
            case.shape
        );
    }
    (
        blocked_to_nchw(&y, case.shape.out_channels, output),
        conv.algorithm(),
    )
}

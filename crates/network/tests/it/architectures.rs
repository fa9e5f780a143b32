//! Every network of the family gives the numbers of a plain one. These are candle-transformers'
//! networks; for the stride in the first 1x1, which they do not have, it is a few lines of candle.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Conv2dConfig, Func, Module, ModuleT, VarBuilder};
use candle_transformers::models::resnet as plain;
use imgclass_checkpoint::formula::FormulaWeights;
use imgclass_checkpoint::{Architecture, Block, Overrides, Variant, WeightsSource};
use imgclass_kernels::Isa;
use imgclass_network::{Classifier, ModelOptions, Want};

use crate::{Computes, FORMULA, Images, formula, load};

const CLASSES: usize = 7;

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("numbers")
}

fn backends() -> [(&'static str, Computes); 3] {
    let portable = Isa::named("portable").expect("always there");
    [
        ("packed", Computes::Kernels(Isa::detect(), 2)),
        ("portable", Computes::Kernels(portable, 1)),
        ("candle", Computes::Candle(DType::F32)),
    ]
}

/// Asserts that the network's logits are those of the plain one, on every backend.
fn check(architecture: &Architecture, reference: &Func, sizes: &[(usize, usize, usize)]) {
    for (name, backend) in backends() {
        let net = load(&FORMULA, architecture, CLASSES, backend);
        for &(n, h, w) in sizes {
            let images = Images::formula(n, h, w);
            let expected = reference.forward(&images.tensor());
            let expected = numbers(&expected.expect("the reference's pass"));
            let out = net.run(&images);
            let features = n * architecture.features();
            assert_eq!(out.features.len(), features, "{architecture}");
            assert_eq!(out.logits.len(), n * CLASSES, "{architecture}");
            let largest = expected.iter().fold(1f32, |max, x| max.max(x.abs()));
            for (found, expected) in out.logits.iter().zip(&expected) {
                let error = (found - expected).abs() / largest;
                assert!(error < 1e-4, "{architecture}, {name}, {h}x{w}: {error}");
            }
        }
    }
}

#[test]
fn every_network_gives_the_logits_of_candle_transformers_network_of_that_name() {
    type Plain = for<'a> fn(usize, VarBuilder<'a>) -> Result<Func<'a>>;
    let table: [(&str, Plain); 5] = [
        ("resnet18", plain::resnet18),
        ("resnet34", plain::resnet34),
        ("resnet50", plain::resnet50),
        ("resnet101", plain::resnet101),
        ("resnet152", plain::resnet152),
    ];
    for (name, build) in table {
        let architecture = Architecture::named(name).expect("a known name");
        let reference = build(CLASSES, formula()).expect("the reference loads");
        // Deep networks on the smallest images: the layers are the same.
        let sizes: &[_] = match architecture.block() {
            Block::Basic => &[(2, 64, 64), (1, 97, 65)],
            Block::Bottleneck => &[(1, 64, 64)],
        };
        check(&architecture, &reference, sizes);
    }
}

/// ResNet v1 in plain candle, unfolded, with this epsilon.
fn version_one(depths: [usize; 4], epsilon: f64, vb: VarBuilder) -> Result<Func<'static>> {
    type Layer = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;
    let conv_bn = |from, to, kernel, stride, conv: VarBuilder, bn: VarBuilder| -> Result<Layer> {
        let config = Conv2dConfig {
            stride,
            padding: kernel / 2,
            ..Default::default()
        };
        let conv = candle_nn::conv2d_no_bias(from, to, kernel, config, conv)?;
        let bn = candle_nn::batch_norm(to, epsilon, bn)?;
        Ok(Box::new(move |x: &Tensor| {
            bn.forward_t(&conv.forward(x)?, false)
        }))
    };
    let stem = conv_bn(3, 64, 7, 2, vb.pp("conv1"), vb.pp("bn1"))?;
    let (mut blocks, mut channels) = (Vec::<Layer>::new(), 64);
    for (stage, depth) in depths.into_iter().enumerate() {
        let width = 64 << stage;
        for block in 0..depth {
            let vb = vb.pp(format!("layer{}.{block}", stage + 1));
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let first = conv_bn(channels, width, 1, stride, vb.pp("conv1"), vb.pp("bn1"))?;
            let second = conv_bn(width, width, 3, 1, vb.pp("conv2"), vb.pp("bn2"))?;
            let third = conv_bn(width, 4 * width, 1, 1, vb.pp("conv3"), vb.pp("bn3"))?;
            let (conv, bn) = (vb.pp("downsample.0"), vb.pp("downsample.1"));
            let skip: Layer = match block {
                0 => conv_bn(channels, 4 * width, 1, stride, conv, bn)?,
                _ => Box::new(|x: &Tensor| Ok(x.clone())),
            };
            blocks.push(Box::new(move |x: &Tensor| {
                let y = second(&first(x)?.relu()?)?.relu()?;
                (third(&y)? + skip(x)?)?.relu()
            }));
            channels = 4 * width;
        }
    }
    let fc = candle_nn::linear(channels, CLASSES, vb.pp("fc"))?;
    Ok(Func::new(move |x| {
        let x = stem(x)?.relu()?;
        let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
        let x = x.max_pool2d_with_stride(3, 2)?;
        let x = blocks.iter().try_fold(x, |x, block| block(&x))?;
        fc.forward(&x.mean((2, 3))?)
    }))
}

#[test]
fn the_first_version_has_its_stride_in_the_first_convolution_of_a_block_and_its_epsilon_counts() {
    let keras = 1.001e-5;
    for epsilon in [keras, 0.05] {
        let reference = version_one([3, 4, 6, 3], epsilon, formula()).expect("the reference loads");
        let architecture = Architecture::RESNET50
            .with_variant(Variant::V1)
            .with_batch_norm_epsilon(epsilon);
        check(&architecture, &reference, &[(1, 64, 64), (2, 65, 33)]);
    }
}

#[test]
fn basic_blocks_are_the_same_in_both_variants_and_bottlenecks_are_not() {
    let logits = |architecture: Architecture, variant| {
        let options = ModelOptions {
            overrides: Overrides {
                variant: Some(variant),
                ..Overrides::default()
            },
            ..crate::options()
        };
        let source = WeightsSource::random(architecture);
        let classifier = Classifier::load(&source, &options).expect("the formula always loads");
        let image = numbers(&Images::formula(1, 224, 224).tensor());
        let outputs = classifier.run_prepared(&[&image], Want::default());
        outputs.expect("a forward pass").remove(0).logits
    };
    for (architecture, same) in [
        (Architecture::RESNET18, true),
        (Architecture::RESNET50, false),
    ] {
        let [one, two] = [Variant::V1, Variant::V1_5].map(|v| logits(architecture, v));
        assert_eq!(one == two, same, "{architecture}");
    }
}

#[test]
fn an_image_has_the_same_bits_in_any_batch_and_with_any_number_of_threads_in_basic_blocks_too() {
    let input = Images::formula(5, 64, 64);
    let bits = |threads: usize, first: usize, n: usize| {
        let by = Computes::Kernels(Isa::detect(), threads);
        let net = load(&FORMULA, &Architecture::RESNET18, CLASSES, by);
        let logits = net.run(&input.narrow(first, n)).logits;
        logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let alone: Vec<u32> = (0..5).flat_map(|image| bits(1, image, 1)).collect();
    for (threads, n) in [(1, 5), (2, 3), (3, 5), (4, 4)] {
        assert!(
            bits(threads, 0, n) == alone[..n * CLASSES],
            "{threads} threads, batch of {n}"
        );
    }
}

#[test]
fn features_and_class_activation_maps_have_the_networks_own_width() {
    let classifier = Classifier::load(
        &WeightsSource::random(Architecture::RESNET18),
        &crate::options(),
    )
    .expect("the formula always loads");
    let image = vec![0.25; classifier.input_len()];
    let want = Want {
        features: true,
        feature_map: true,
    };
    let output = &classifier.run_prepared(&[&image], want).expect("a pass")[0];
    assert_eq!(output.features.as_ref().map(Vec::len), Some(512));
    assert_eq!(output.feature_map.as_ref().map(Vec::len), Some(512 * 49));
    let bias = FormulaWeights { seed: 0 }.values("fc.bias", &[1000]);
    let map = classifier.class_activation_map(output, 999).expect("a map");
    let logit = map.iter().sum::<f32>() / map.len() as f32 + bias[999];
    let error = (logit - output.logits[999]).abs() / output.logits[999].abs().max(1.0);
    assert!(error < 1e-4, "{logit}, not {}", output.logits[999]);
}

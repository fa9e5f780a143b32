//! Pictures to network input: Pillow's resize, torchvision's crop, the checkpoint's normalisation.
//!
//! `golden/preprocess_resize.safetensors` was recorded by `golden/make_preprocess.py`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use imgclass_image::{
    Channels, CropOffset, Filter, Limits, Preprocessing, PreprocessingError, Preprocessor, Resize,
    RgbImage, Scale, Size, decode,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
const ONE_PIXEL: Size = Size::square(1);
const LIMITS: Limits = Limits {
    max_pixels: 20_000_000,
    max_side: 20_000,
    max_decoded_bytes: 200_000_000,
};

/// Settings whose output is the pixels' values from 0 to 255.
fn settings_for_pixels(resize: Resize, filter: Filter, crop: Size) -> Preprocessing {
    Preprocessing {
        resize,
        filter,
        crop,
        mean: [0.0; 3],
        std: [1.0 / 255.0; 3],
        ..Preprocessing::default()
    }
}

/// A preprocessor whose output is the pixels' values from 0 to 255.
fn pixels_of(resize: Resize, filter: Filter, crop: Size) -> Preprocessor {
    preprocessor(settings_for_pixels(resize, filter, crop))
}

fn preprocessor(settings: Preprocessing) -> Preprocessor {
    Preprocessor::new(settings).expect("a valid configuration")
}

/// The same formula as `scene` in `golden/make_preprocess.py`.
fn scene(width: u32, height: u32) -> RgbImage {
    let mut data = Vec::new();
    for y in 0..u64::from(height) {
        for x in 0..u64::from(width) {
            for c in 0..3 {
                let bowl = (x * x * (c + 2) + y * y * (4 - c) + 3 * x * y) / 97;
                let edge = if (x / 7 + y / 5 + c) % 3 == 0 { 90 } else { 0 };
                let texture = (x * 31 + y * 17 + c * 11) % 29;
                data.push(((bowl + edge + texture) % 256) as u8);
            }
        }
    }
    RgbImage::new(width, height, data).expect("a picture with pixels")
}

#[test]
fn every_recorded_resize_and_crop_is_what_pillow_and_torchvision_give() {
    let bytes = include_bytes!("../../../../tests/golden/preprocess_resize.safetensors");
    let tensors = SafeTensors::deserialize(bytes).expect("the recorded cases");
    assert!(tensors.len() > 30);
    for (case, expected) in tensors.tensors() {
        let parts: Vec<&str> = case.split(['x', ' ']).skip(1).collect();
        let [width, height, side, crop, step] = parts
            .try_into()
            .map(|p: [&str; 5]| p.map(number))
            .expect("five numbers");
        let filter = [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]
            .into_iter()
            .find(|filter| case.starts_with(&filter.to_string()))
            .expect("a known filter");
        let preprocessing = pixels_of(Resize::ShorterSide(side), filter, Size::square(crop));
        let input = preprocessing.apply(&scene(width, height));
        let (crop, step) = (crop as usize, step as usize);
        let kept = crop.div_ceil(step);
        assert_eq!(expected.shape(), [kept, kept, 3], "{case}");
        // The sine that Lanczos needs differs in its last bit between platforms.
        let allowed = if filter == Filter::Lanczos { 1.0 } else { 0.0 };
        for (i, &expected) in expected.data().iter().enumerate() {
            let (row, column, channel) = (i / 3 / kept * step, i / 3 % kept * step, i % 3);
            let found = input[(channel * crop + row) * crop + column].round();
            let apart = (found - f32::from(expected)).abs();
            assert!(
                apart <= allowed,
                "{case}: row {row}, column {column}: {found} instead of {expected}"
            );
        }
    }
}

fn number(text: &str) -> u32 {
    text.parse().expect("a whole number")
}

/// The folder of reference data, or a loud line that says what is skipped.
fn shared(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if folder.is_dir() {
        return Some(folder);
    }
    // Not by a macro: what those print is shown for failing tests only.
    let skipped =
        format!("\n*** SKIPPED: {test}: the reference data is not beside the checkout ***\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), skipped.as_bytes());
    None
}

#[test]
fn the_reference_pictures_give_the_reference_input() {
    let Some(folder) = shared("the_reference_pictures_give_the_reference_input") else {
        return;
    };
    let bytes = std::fs::read(folder.join("reference/preprocess.safetensors"))
        .expect("the reference input");
    let tensors = SafeTensors::deserialize(&bytes).expect("the reference input");
    assert_eq!(tensors.len(), 20);
    for (name, expected) in tensors.tensors() {
        let (picture, recipe) = name.split_once('.').expect("a picture and a recipe");
        let (path, lossless) = match picture.strip_suffix("_png") {
            Some(stem) => (format!("images/formats/{stem}.png"), true),
            None => (format!("images/{picture}.jpg"), false),
        };
        let (side, filter) = match recipe {
            "bilinear_256_224" => (256, Filter::Bilinear),
            "bicubic_235_224" => (235, Filter::Bicubic),
            other => panic!("unknown recipe {other}"),
        };
        let preprocessing = preprocessor(Preprocessing {
            resize: Resize::ShorterSide(side),
            filter,
            crop: Size::square(224),
            mean: MEAN,
            std: STD,
            ..Preprocessing::default()
        });
        let picture = decode(
            &std::fs::read(folder.join(path)).expect("the picture"),
            &LIMITS,
        )
        .expect("a picture");
        let input = preprocessing.apply(&picture);
        let expected = expected
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b));
        assert_eq!(input.len(), expected.len(), "{name}");
        // In units of 1/255.
        let apart = input
            .iter()
            .zip(expected)
            .enumerate()
            .map(|(i, (found, expected))| {
                f64::from((found - expected).abs() * STD[i / (224 * 224)] * 255.0)
            });
        let (max, sum) = apart.fold((0.0_f64, 0.0), |(max, sum), d| (max.max(d), sum + d));
        let mean = sum / input.len() as f64;
        let (max_allowed, mean_allowed) = if lossless {
            (1.001, 0.01)
        } else {
            (f64::INFINITY, 0.5)
        };
        eprintln!("{name}: largest difference {max:.3}/255, mean {mean:.4}/255");
        assert!(
            max <= max_allowed && mean < mean_allowed,
            "{name}: largest {max}, mean {mean}"
        );
    }
}

#[test]
fn the_input_is_planar_and_normalised_per_channel() {
    let picture = RgbImage::new(2, 1, vec![10, 20, 30, 10, 20, 30]).expect("a picture");
    let preprocessing = preprocessor(Preprocessing {
        resize: Resize::ShorterSide(8),
        filter: Filter::Bilinear,
        crop: Size {
            height: 4,
            width: 6,
        },
        mean: MEAN,
        std: STD,
        ..Preprocessing::default()
    });
    let input = preprocessing.apply(&picture);
    assert_eq!(input.len(), 3 * 4 * 6);
    for (channel, plane) in input.chunks_exact(4 * 6).enumerate() {
        let expected = (((channel + 1) * 10) as f32 / 255.0 - MEAN[channel]) / STD[channel];
        assert!(
            plane.iter().all(|&value| value == expected),
            "channel {channel}: {plane:?} is not {expected}"
        );
    }
}

#[test]
fn a_crop_larger_than_the_picture_is_centred_on_black() {
    let picture = RgbImage::new(1, 1, vec![255; 3]).expect("a picture");
    let input = pixels_of(
        Resize::ShorterSide(2),
        Filter::Bilinear,
        Size {
            height: 5,
            width: 4,
        },
    )
    .apply(&picture);
    let plane: Vec<u8> = input[..20]
        .iter()
        .map(|value| value.round() as u8)
        .collect();
    #[rustfmt::skip]
    let expected = [
        0,   0,   0, 0,
        0, 255, 255, 0,
        0, 255, 255, 0,
        0,   0,   0, 0,
        0,   0,   0, 0,
    ];
    assert_eq!(plane, expected);
}

#[test]
fn squashing_shows_the_whole_picture() {
    // Left half black, right half white, four times as wide as high.
    let row: Vec<u8> = (0..8)
        .flat_map(|x| [if x < 4 { 0 } else { 255 }; 3])
        .collect();
    let picture = RgbImage::new(8, 2, row.repeat(2)).expect("a picture");
    let squashed = pixels_of(
        Resize::Exact(Size::square(2)),
        Filter::Bilinear,
        Size::square(2),
    )
    .apply(&picture);
    assert!(squashed[0] < 40.0 && squashed[1] > 215.0, "{squashed:?}");
}

#[test]
fn extreme_shapes_cost_only_what_the_crop_shows() {
    let preprocessing = |filter| pixels_of(Resize::ShorterSide(256), filter, Size::square(224));
    for (width, height) in [
        (1, 1),
        (1, 20_000),
        (20_000, 1),
        (1, 65_535),
        (65_535, 2),
        (3, 60_000),
        (4_000, 3),
    ] {
        let picture = RgbImage::new(width, height, vec![77; (width * height * 3) as usize])
            .expect("a picture");
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let input = preprocessing(filter).apply(&picture);
            assert_eq!(input.len(), 3 * 224 * 224);
            assert!(
                input.iter().all(|value| value.round() == 77.0),
                "{width}x{height} {filter}"
            );
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_with_its_value() {
    let new = |resize, crop, mean, std| {
        Preprocessor::new(Preprocessing {
            resize,
            filter: Filter::Bicubic,
            crop,
            mean,
            std,
            ..Preprocessing::default()
        })
    };
    let side = |what, found| PreprocessingError::Side {
        what,
        found,
        max: 4096,
    };
    let table = [
        (
            new(Resize::ShorterSide(0), ONE_PIXEL, MEAN, STD),
            side("resize height", 0),
        ),
        (
            new(Resize::ShorterSide(5000), ONE_PIXEL, MEAN, STD),
            side("resize height", 5000),
        ),
        (
            new(
                Resize::Exact(Size {
                    height: 9,
                    width: 0,
                }),
                ONE_PIXEL,
                MEAN,
                STD,
            ),
            side("resize width", 0),
        ),
        (
            new(
                Resize::ShorterSide(256),
                Size {
                    height: 0,
                    width: 224,
                },
                MEAN,
                STD,
            ),
            side("crop height", 0),
        ),
        (
            new(
                Resize::ShorterSide(256),
                Size {
                    height: 224,
                    width: 9999,
                },
                MEAN,
                STD,
            ),
            side("crop width", 9999),
        ),
        (
            new(
                Resize::ShorterSide(256),
                Size::square(224),
                MEAN,
                [0.2, 0.0, 0.2],
            ),
            PreprocessingError::Normalisation {
                channel: 1,
                mean: MEAN[1],
                std: 0.0,
            },
        ),
        (
            new(
                Resize::ShorterSide(256),
                Size::square(224),
                [0.0, 0.0, f32::INFINITY],
                STD,
            ),
            PreprocessingError::Normalisation {
                channel: 2,
                mean: f32::INFINITY,
                std: STD[2],
            },
        ),
    ];
    for (found, expected) in table {
        assert_eq!(found, Err(expected));
    }
}

#[test]
fn every_filter_is_read_by_the_name_that_it_shows() {
    for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
        assert_eq!(filter.to_string().parse(), Ok(filter));
    }
    let error = "nearest".parse::<Filter>().expect_err("not antialiased");
    assert!(
        error.contains("`nearest`") && error.contains("lanczos"),
        "{error}"
    );
}

#[test]
fn a_picture_has_exactly_the_bytes_of_its_shape() {
    assert!(RgbImage::new(2, 2, vec![0; 12]).is_some());
    for (width, height, bytes) in [
        (2, 2, 11),
        (2, 2, 13),
        (0, 2, 0),
        (2, 0, 0),
        (u32::MAX, u32::MAX, 3),
    ] {
        assert!(
            RgbImage::new(width, height, vec![0; bytes]).is_none(),
            "{width}x{height}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_geometry_keeps_a_flat_picture_flat(
        (width, height) in (1_u32..400, 1_u32..400),
        (side, crop_height, crop_width) in (1_u32..200, 1_u32..100, 1_u32..100),
        squash in any::<bool>(),
        value in any::<u8>(),
    ) {
        let picture = RgbImage::new(width, height, vec![value; (width * height * 3) as usize]).expect("a picture");
        // No larger than the picture after the resize, so that nothing is black.
        let crop = Size { height: crop_height.min(side), width: crop_width.min(side) };
        let resize = if squash { Resize::Exact(Size::square(side)) } else { Resize::ShorterSide(side) };
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let input = pixels_of(resize, filter, crop).apply(&picture);
            prop_assert_eq!(input.len(), (3 * crop.height * crop.width) as usize);
            prop_assert!(input.iter().all(|found| found.round() == f32::from(value)));
        }
    }
}

#[test]
fn an_odd_crop_begins_where_torchvision_or_transformers_begins_it() {
    for (side, crop, half_to_even, down) in [(5, 2, 2, 1), (6, 5, 0, 0), (7, 4, 2, 1), (8, 4, 2, 2)]
    {
        let data = (0..side * side).flat_map(|at| [(at % side) as u8, (at / side) as u8, 0]);
        let picture = RgbImage::new(side, side, data.collect()).expect("a picture");
        let square = Size::square(crop);
        let settings = settings_for_pixels(Resize::ShorterSide(side), Filter::Bilinear, square);
        let offsets = [
            (CropOffset::HalfToEven, half_to_even),
            (CropOffset::HalfDown, down),
        ];
        for (crop_offset, first) in offsets {
            let preprocessing = preprocessor(Preprocessing {
                crop_offset,
                ..settings.clone()
            });
            let input = preprocessing.apply(&picture);
            let plane = (crop * crop) as usize;
            assert_eq!(
                input[0].round(),
                first as f32,
                "{side} to {crop}, {crop_offset:?}"
            );
            assert_eq!(
                input[plane].round(),
                first as f32,
                "{side} to {crop}, {crop_offset:?}"
            );
            let region = preprocessing.region((side, side));
            assert_eq!(
                (region.left, region.top),
                (f64::from(first), f64::from(first))
            );
        }
    }
}

#[test]
fn caffes_planes_are_blue_green_red_from_0_to_255_less_the_mean_exactly() {
    let picture = RgbImage::new(1, 1, vec![200, 100, 50]).expect("a picture");
    let mean = [103.939, 116.779, 123.68];
    let of = |channels, scale| {
        let settings = Preprocessing {
            resize: Resize::Exact(ONE_PIXEL),
            crop: ONE_PIXEL,
            channels,
            scale,
            mean,
            std: [1.0; 3],
            ..Preprocessing::default()
        };
        preprocessor(settings).apply(&picture)
    };
    let less = |values: [f32; 3]| -> Vec<f32> { (0..3).map(|i| values[i] - mean[i]).collect() };
    assert_eq!(of(Channels::Bgr, Scale::Byte), less([50.0, 100.0, 200.0]));
    assert_eq!(of(Channels::Rgb, Scale::Byte), less([200.0, 100.0, 50.0]));
    assert_eq!(
        of(Channels::Bgr, Scale::Unit),
        less([50.0 / 255.0, 100.0 / 255.0, 200.0 / 255.0])
    );
    assert_eq!(
        of(Channels::Rgb, Scale::Unit),
        less([200.0 / 255.0, 100.0 / 255.0, 50.0 / 255.0])
    );
}

#[test]
fn a_reduced_picture_keeps_the_proportions_and_the_crop_of_the_full_one() {
    // Of the full sizes, some are no multiples of the divisor: their reduced sides are rounded up.
    for (width, height) in [(1600, 1200), (1201, 1599), (1023, 4001), (2047, 513)] {
        let full = gradient(width, height);
        let (reduced_width, reduced_height) = (width.div_ceil(4), height.div_ceil(4));
        let reduced = {
            let average = |x: u32, y: u32, channel: usize| {
                let sum: u32 = (0..16)
                    .map(|at| {
                        let x = (4 * x + at % 4).min(width - 1);
                        let y = (4 * y + at / 4).min(height - 1);
                        u32::from(full.data()[((y * width + x) * 3) as usize + channel])
                    })
                    .sum();
                (sum / 16) as u8
            };
            let data = (0..reduced_height)
                .flat_map(|y| (0..reduced_width).map(move |x| (x, y)))
                .flat_map(|(x, y)| [0, 1, 2].map(|channel| average(x, y, channel)));
            RgbImage::new(reduced_width, reduced_height, data.collect()).expect("pixels")
        };
        for (resize, crop) in [
            (Resize::ShorterSide(64), Size::square(56)),
            (
                Resize::Exact(Size {
                    height: 40,
                    width: 60,
                }),
                Size::square(48),
            ),
        ] {
            let preprocessing = pixels_of(resize, Filter::Bilinear, crop);
            let expected = preprocessing.pixels(&full);
            let found = preprocessing.pixels_of_reduced(&reduced, (width, height));
            let apart = expected
                .iter()
                .zip(&found)
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            // The rounding down of the averages, and the border. A shift by a pixel of the crop would
            // be more.
            assert!(apart <= Some(2), "{width}x{height} {resize:?}: {apart:?}");
        }
    }
}

/// A picture whose red grows across and whose green grows down, from 0 to 255.
fn gradient(width: u32, height: u32) -> RgbImage {
    let data = (0..height).flat_map(|y| {
        (0..width).flat_map(move |x| [(x * 255 / width) as u8, (y * 255 / height) as u8, 128])
    });
    RgbImage::new(width, height, data.collect()).expect("a picture with pixels")
}

#[test]
fn a_picture_must_stay_twice_as_large_as_the_resize_makes_it() {
    let exact = Size {
        height: 224,
        width: 320,
    };
    let table = [
        (Resize::ShorterSide(256), (4000, 3000), (682, 512)),
        (Resize::ShorterSide(256), (3000, 4000), (512, 682)),
        (Resize::ShorterSide(232), (500, 500), (464, 464)),
        (Resize::Exact(exact), (4000, 3000), (640, 448)),
        (Resize::ShorterSide(4096), (u32::MAX, 1), (u32::MAX, 8192)),
    ];
    for (resize, full, expected) in table {
        let preprocessing = pixels_of(resize, Filter::Bilinear, Size::square(224));
        assert_eq!(
            preprocessing.twice_resized(full),
            expected,
            "{resize:?} {full:?}"
        );
    }
}

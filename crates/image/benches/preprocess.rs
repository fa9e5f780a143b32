//! Time from encoded bytes to network input, by stage; it never checks results, the tests do.
//!
//! `cargo bench --bench preprocess`. The pictures are made here, so that the figures need no data:
//! a smooth scene with some texture, which compresses about as a photograph does. JPEGs have one
//! chroma sample per pixel, the costlier kind.

#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "criterion's macros make public items without documentation; a bench fails by panicking"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::{DynamicImage, ImageFormat, RgbImage};
use imgclass_image::{Filter, Limits, Preprocessing, Preprocessor, Resize, decode, inspect};
use std::hint::black_box;
use std::io::Cursor;

const LIMITS: Limits = Limits {
    max_pixels: 50_000_000,
    max_side: 16_384,
    max_decoded_bytes: 512 << 20,
};

fn scene(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let texture = (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729)) % 23;
        let shade = |phase: f32| 110.0 + 90.0 * (9.0 * u + phase).sin() * (7.0 * v - phase).cos();
        image::Rgb([0.0, 1.0, 2.0].map(|phase| shade(phase) as u8 + texture as u8))
    }))
}

fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    scene(width, height)
        .write_to(&mut bytes, format)
        .expect("encoding to memory");
    bytes.into_inner()
}

fn preprocess(c: &mut Criterion) {
    let recipes = [(256, Filter::Bilinear), (235, Filter::Bicubic)].map(|(side, filter)| {
        Preprocessor::new(Preprocessing {
            resize: Resize::ShorterSide(side),
            filter,
            ..Preprocessing::default()
        })
        .expect("a valid configuration")
    });
    let pictures = [
        (1280, 960, ImageFormat::Jpeg),
        (500, 375, ImageFormat::Jpeg),
        (500, 375, ImageFormat::Png),
        (4000, 3000, ImageFormat::Jpeg),
    ];
    for (width, height, format) in pictures {
        let bytes = encoded(width, height, format);
        let mut group = c.benchmark_group(format!("{format:?} {width}x{height}"));
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        group.bench_function("inspect", |b| {
            b.iter(|| inspect(black_box(&bytes), &LIMITS))
        });
        group.bench_function("decode", |b| b.iter(|| decode(black_box(&bytes), &LIMITS)));
        let picture = decode(&bytes, &LIMITS).expect("a valid picture");
        for recipe in &recipes {
            group.bench_function(format!("apply {}", recipe.settings().filter), |b| {
                b.iter(|| recipe.apply(black_box(&picture)));
            });
        }
        group.bench_function("decode and apply bilinear", |b| {
            b.iter(|| decode(black_box(&bytes), &LIMITS).map(|picture| recipes[0].apply(&picture)));
        });
        group.finish();
    }
}

criterion_group!(benches, preprocess);
criterion_main!(benches);

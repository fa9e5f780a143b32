//! Encoded pictures to RGB: what Pillow gives, what is refused and how, and that nothing a stranger
//! sends panics.
//!
//! `golden/preprocess_decode.safetensors` was recorded by `golden/make_preprocess.py`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use imgclass_image::{Encoded, Format, ImageError, Limits, RgbImage, decode, inspect};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::io::Cursor;
use std::path::Path;

const LIMITS: Limits = Limits {
    max_pixels: 20_000_000,
    max_side: 20_000,
    max_decoded_bytes: 200_000_000,
};

/// A picture in some format and what Pillow makes of it.
struct Recorded {
    name: String,
    file: Vec<u8>,
    /// `[height, width, 3]`.
    rgb: RgbImage,
}

fn recorded() -> Vec<Recorded> {
    let bytes = include_bytes!("../../../../tests/golden/preprocess_decode.safetensors");
    let tensors = SafeTensors::deserialize(bytes).expect("the recorded pictures");
    let mut names: Vec<&str> = tensors
        .names()
        .into_iter()
        .filter_map(|n| n.strip_suffix(".file"))
        .collect();
    names.sort_unstable();
    let picture = |name: &str| {
        let rgb = tensors.tensor(&format!("{name}.rgb")).expect("its pixels");
        let (height, width) = (rgb.shape()[0] as u32, rgb.shape()[1] as u32);
        Recorded {
            name: name.to_owned(),
            file: tensors
                .tensor(&format!("{name}.file"))
                .expect("its bytes")
                .data()
                .to_vec(),
            rgb: RgbImage::new(width, height, rgb.data().to_vec()).expect("pixels of that shape"),
        }
    };
    names.into_iter().map(picture).collect()
}

pub(crate) fn file(name: &str) -> Vec<u8> {
    recorded()
        .into_iter()
        .find(|r| r.name == name)
        .expect("a recorded picture")
        .file
}

/// Largest and mean difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(&a, &b)| a.abs_diff(b));
    let sum: f64 = differences.clone().map(f64::from).sum();
    (differences.max().unwrap_or(0), sum / a.len() as f64)
}

#[test]
fn every_recorded_picture_decodes_to_what_pillow_makes_of_it() {
    for Recorded { name, file, rgb } in recorded() {
        let picture = decode(&file, &LIMITS).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (picture.width(), picture.height()),
            (rgb.width(), rgb.height()),
            "{name}"
        );
        let (max, mean) = difference(picture.data(), rgb.data());
        assert_eq!(max, 0, "{name}: {mean} apart on average");
    }
}

#[test]
fn the_header_tells_what_decoding_gives() {
    for Recorded { name, file, rgb } in recorded() {
        let info = inspect(&file, &LIMITS).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (info.width, info.height),
            (rgb.width(), rgb.height()),
            "{name}"
        );
        assert_eq!(Some(info.format), Format::sniff(&file), "{name}");
        // For so small a picture, mostly the decoder's tables.
        let bytes = info.decoded_bytes;
        assert!(
            (rgb.data().len() as u64..1 << 20).contains(&bytes),
            "{name}: {bytes}"
        );
    }
}

#[test]
fn of_sixteen_bits_the_high_byte_is_kept() {
    use image::{DynamicImage, ImageBuffer, ImageFormat};
    let (width, height) = (5, 4);
    let samples = |channels: usize| -> Vec<u16> {
        (0..20 * channels)
            .map(|i| (i * 3_271 % 65_536) as u16)
            .collect()
    };
    let pictures = [
        (
            DynamicImage::ImageLuma16(ImageBuffer::from_raw(width, height, samples(1)).unwrap()),
            1,
            [0, 0, 0],
        ),
        (
            DynamicImage::ImageLumaA16(ImageBuffer::from_raw(width, height, samples(2)).unwrap()),
            2,
            [0, 0, 0],
        ),
        (
            DynamicImage::ImageRgb16(ImageBuffer::from_raw(width, height, samples(3)).unwrap()),
            3,
            [0, 1, 2],
        ),
        (
            DynamicImage::ImageRgba16(ImageBuffer::from_raw(width, height, samples(4)).unwrap()),
            4,
            [0, 1, 2],
        ),
    ];
    for (picture, channels, kept) in pictures {
        for format in [ImageFormat::Png, ImageFormat::Tiff] {
            if format == ImageFormat::Tiff && channels == 2 {
                continue; // The encoder has no such TIFF.
            }
            let mut bytes = Cursor::new(Vec::new());
            picture
                .write_to(&mut bytes, format)
                .expect("encoding to memory");
            let decoded = decode(bytes.get_ref(), &LIMITS)
                .unwrap_or_else(|e| panic!("{format:?} {channels}: {e}"));
            let expected: Vec<u8> = samples(channels)
                .chunks_exact(channels)
                .flat_map(|pixel| kept.map(|channel| (pixel[channel] >> 8) as u8))
                .collect();
            assert_eq!(
                decoded.data(),
                expected,
                "{format:?} with {channels} channels"
            );
        }
    }
}

#[test]
fn the_first_bytes_tell_the_format() {
    let names = [
        ("jpeg_420", Format::Jpeg),
        ("png_rgb", Format::Png),
        ("webp_lossy", Format::WebP),
        ("gif_still", Format::Gif),
        ("bmp_rgb", Format::Bmp),
        ("tiff_rgb", Format::Tiff),
        ("tiff_big", Format::Tiff),
    ];
    for (name, format) in names {
        assert_eq!(Format::sniff(&file(name)), Some(format), "{name}");
    }
}

#[test]
fn what_is_not_an_image_is_named_as_far_as_its_bytes_tell() {
    let table: &[(&[u8], &str)] = &[
        (b"", "an empty file"),
        (b"%PDF-1.7", "a PDF document"),
        #[cfg(not(feature = "avif"))]
        (
            b"\0\0\0\x1Cftypavif\0\0\0\0",
            "an AVIF image (this program was built without AVIF",
        ),
        (b"\0\0\0\x18ftypheic", "a HEIC image"),
        (b"\0\0\0\x18ftypmp42", "an MP4 or QuickTime video"),
        (b"\xFF\x0A\xFF", "a JPEG XL image"),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "an SVG drawing",
        ),
        (b"<?xml version='1.0'?>\n<svg/>", "an SVG drawing"),
        (
            b"\xEF\xBB\xBF\n <!DOCTYPE html><title>no</title>",
            "an HTML page",
        ),
        (b"<html>", "an HTML page"),
        (b"<?xml version='1.0'?><feed/>", "an XML or HTML document"),
        (b"{\"error\": \"not found\"}", "a JSON document"),
        (b"P6\n2 2\n255\n", "a netpbm image"),
        (b"RIFF\0\0\0\0WAVE", "a RIFF file that is not WebP"),
        (
            b"BM stands for bitmap, or for a name",
            "a file that begins like a BMP",
        ),
        (b"GIF89", "this file"),
        (b"plain words", "this file"),
        (b"\xFF\xD8", "this file"),
    ];
    for (bytes, expected) in table {
        for refused in [
            decode(bytes, &LIMITS).map(drop),
            inspect(bytes, &LIMITS).map(drop),
        ] {
            match refused {
                Err(error @ ImageError::Unsupported { .. }) => {
                    let text = error.to_string();
                    assert!(text.starts_with(expected), "{bytes:?}: {text}");
                    let list = if cfg!(feature = "avif") {
                        "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
                    } else {
                        "JPEG, PNG, WebP, GIF, BMP or TIFF"
                    };
                    assert!(text.ends_with(list), "{text}");
                }
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn kinds_of_a_known_format_that_are_not_decoded_are_unsupported_and_not_malformed() {
    use image::{DynamicImage, ImageFormat, Rgb32FImage};
    let mut float = Cursor::new(Vec::new());
    DynamicImage::ImageRgb32F(Rgb32FImage::new(2, 2))
        .write_to(&mut float, ImageFormat::Tiff)
        .expect("encoding to memory");
    // A grey TIFF told to have lightness and two colours: photometric interpretation (tag 262, one
    // short) 1 becomes 8.
    let mut lab = file("tiff_grey");
    let tag = [6, 1, 3, 0, 1, 0, 0, 0, 1, 0];
    let at = lab
        .windows(tag.len())
        .position(|w| w == tag)
        .expect("the tag");
    lab[at + 8] = 8;
    // A JPEG told to be arithmetic-coded (SOF0 becomes SOF9).
    let mut arithmetic = file("jpeg_444");
    let at = arithmetic
        .windows(2)
        .position(|w| w == [0xFF, 0xC0])
        .expect("the frame header");
    arithmetic[at + 1] = 0xC9;
    for (name, bytes) in [
        ("float TIFF", float.into_inner()),
        ("L*a*b* TIFF", lab),
        ("arithmetic JPEG", arithmetic),
    ] {
        match decode(&bytes, &LIMITS) {
            Err(ImageError::Unsupported { .. }) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// The bytes with those at `at` replaced.
fn patched(name: &str, at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = file(name);
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// A PNG of nothing but a header (its checksum right) and an empty data chunk.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        let crc = !body.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
            })
        });
        [
            &(data.len() as u32).to_be_bytes(),
            body.as_slice(),
            &crc.to_be_bytes(),
        ]
        .concat()
    };
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, 6, 0, 0, 0],
    ]
    .concat();
    [
        b"\x89PNG\r\n\x1A\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", b""),
    ]
    .concat()
}

/// Where in a recorded file `bytes` first stand.
fn find(name: &str, bytes: &[u8]) -> usize {
    let file = file(name);
    let at = file.windows(bytes.len()).position(|w| w == bytes);
    at.unwrap_or_else(|| panic!("{name} has no {bytes:?}"))
}

fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let little = |side: u32| side.to_le_bytes();
    // A frame header's marker, length and precision come before its sides.
    let baseline = find("jpeg_444", &[0xFF, 0xC0]) + 5;
    let progressive = find("jpeg_progressive", &[0xFF, 0xC2]) + 5;
    // An image descriptor's offsets come before its sides.
    let gif_frame = find("gif_still", &[0x2C, 0, 0, 0, 0, 23, 0, 17, 0]) + 5;
    let mut tiff = file("tiff_rgb");
    // Width, height and rows per strip (each one long).
    for tag in [0x100_u16, 0x101, 0x116] {
        let at = find(
            "tiff_rgb",
            &[&tag.to_le_bytes()[..], &[4, 0, 1, 0, 0, 0]].concat(),
        );
        tiff[at + 8..at + 12].copy_from_slice(&little(65_536));
    }
    vec![
        ("PNG of 100,000 by 100,000", png_header(100_000, 100_000)),
        (
            "PNG of one row that is 2^31 - 1 long",
            png_header(i32::MAX as u32, 1),
        ),
        (
            "PNG of one column that is 2^31 - 1 long",
            png_header(1, i32::MAX as u32),
        ),
        (
            "baseline JPEG of 65,535 by 65,535",
            patched("jpeg_444", baseline, &[0xFF; 4]),
        ),
        (
            "progressive JPEG of 65,535 by 65,535",
            patched("jpeg_progressive", progressive, &[0xFF; 4]),
        ),
        (
            "GIF of a small frame on a huge canvas",
            patched("gif_still", 6, &[0xFF; 4]),
        ),
        (
            "GIF of a huge frame on a small canvas",
            patched("gif_still", gif_frame, &[0xFF; 4]),
        ),
        (
            "BMP of 65,535 by 65,535",
            patched("bmp_rgb", 18, &[little(65_535), little(65_535)].concat()),
        ),
        ("TIFF of 65,536 by 65,536", tiff),
    ]
}

/// The service opens a picture, waits for memory, and decodes it on another thread.
#[test]
fn an_opened_picture_can_be_decoded_later_on_another_thread() {
    for Recorded { name, file, .. } in recorded() {
        let expected = decode(&file, &LIMITS).unwrap_or_else(|e| panic!("{name}: {e}"));
        let encoded = Encoded::open(file, &LIMITS).unwrap_or_else(|e| panic!("{name}: {e}"));
        let info = *encoded.info();
        assert_eq!(
            (info.width, info.height),
            (expected.width(), expected.height()),
            "{name}"
        );
        let decoded = std::thread::spawn(move || encoded.decode()).join();
        assert_eq!(decoded.expect("no panic"), Ok(expected), "{name}");
    }
}

#[test]
fn bombs_are_refused_by_their_headers() {
    for (name, bytes) in bombs() {
        for refused in [
            inspect(&bytes, &LIMITS).map(drop),
            decode(&bytes, &LIMITS).map(drop),
        ] {
            match refused {
                Err(ImageError::TooLarge { found, limit, .. }) => assert!(found > limit, "{name}"),
                Err(ImageError::TooMuchMemory { .. }) => {}
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

#[test]
fn each_limit_refuses_what_is_one_over_it_and_says_so() {
    let bytes = file("jpeg_turned_6");
    let info = inspect(&bytes, &LIMITS).expect("a picture of 17 by 23");
    let exact = Limits {
        max_pixels: 17 * 23,
        max_side: 23,
        max_decoded_bytes: info.decoded_bytes,
    };
    assert!(decode(&bytes, &exact).is_ok());
    let table = [
        (
            Limits {
                max_pixels: 17 * 23 - 1,
                ..exact
            },
            "number of pixels is 391, over the limit of 390",
        ),
        (
            Limits {
                max_side: 22,
                ..exact
            },
            "longer side in pixels is 23, over the limit of 22",
        ),
        (
            Limits {
                max_decoded_bytes: info.decoded_bytes - 1,
                ..exact
            },
            "decoded size in bytes",
        ),
    ];
    for (limits, expected) in table {
        let error = decode(&bytes, &limits).expect_err("over the limit");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_refused_and_never_half_decoded() {
    for Recorded { name, file, .. } in recorded() {
        let whole = decode(&file, &LIMITS).expect("the whole file");
        for length in 0..file.len() {
            // What follows the picture (other frames, an end marker, metadata) may be missing.
            match decode(&file[..length], &LIMITS) {
                Ok(picture) => {
                    assert!(picture == whole, "{name}: {length} of {} bytes", file.len())
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn a_jpeg_without_its_end_is_refused_even_when_only_the_marker_is_missing() {
    let bytes = file("jpeg_420");
    let error = decode(&bytes[..bytes.len() - 2], &LIMITS).expect_err("cut off");
    assert_eq!(
        error.to_string(),
        "the JPEG image cannot be decoded: the file ends before the picture does"
    );
    // What follows the end does not matter.
    assert!(decode(&[bytes.as_slice(), b"trailing bytes"].concat(), &LIMITS).is_ok());
}

#[test]
fn every_format_of_the_reference_decodes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/images/formats");
    let Ok(files) = std::fs::read_dir(&folder) else {
        // Not by a macro: what those print is shown for failing tests only.
        let skipped =
            b"\n*** SKIPPED: every format of the reference: it is not beside the checkout ***\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), skipped);
        return;
    };
    let mut count = 0;
    for path in files.map(|entry| entry.expect("a readable folder").path()) {
        let bytes = std::fs::read(&path).expect("a readable file");
        let picture = decode(&bytes, &LIMITS).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(
            picture.width() >= 45 && picture.height() >= 45,
            "{}",
            path.display()
        );
        count += 1;
    }
    assert_eq!(count, 27);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_give_a_picture_or_an_error_but_no_panic(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut all = recorded();
        let Recorded { mut file, .. } = all.swap_remove(which.index(all.len()));
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        // Small enough that a damaged size costs no time.
        let limits = Limits { max_pixels: 1_000_000, ..LIMITS };
        if let Ok(picture) = decode(&file, &limits) {
            prop_assert!(picture.data().len() <= 3_000_000);
        }
    }

    #[test]
    fn noise_behind_a_signature_gives_an_error_but_no_panic(
        signature in prop::sample::select(vec!["jpeg_444", "png_rgb", "webp_lossy", "gif_still", "bmp_rgb", "tiff_rgb"]),
        kept in 4_usize..64,
        noise in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = file(signature);
        bytes.truncate(kept);
        bytes.extend(noise);
        let _ = decode(&bytes, &Limits { max_pixels: 1_000_000, ..LIMITS });
    }
}

#[test]
fn the_memory_of_a_reduced_jpeg_follows_its_size_and_the_other_limits_do_not() {
    let grey = |width, height| {
        let mut jpeg = Cursor::new(Vec::new());
        image::DynamicImage::new_rgb8(width, height)
            .write_to(&mut jpeg, image::ImageFormat::Jpeg)
            .expect("encoding to memory");
        jpeg.into_inner()
    };
    let jpeg = grey(1600, 1200);
    let full = inspect(&jpeg, &LIMITS).expect("a picture");
    let reduced = |limits: Limits, least| {
        Encoded::open_at_least(&jpeg, &limits, |full| {
            assert_eq!(full, (1600, 1200));
            (least, least)
        })
    };
    let mut before = full.decoded_bytes + 1;
    for (least, divisor) in [(601, 1), (600, 2), (300, 4), (150, 8)] {
        let encoded = reduced(LIMITS, least).expect("a picture");
        let info = *encoded.info();
        assert_eq!((info.width, info.height), (1600, 1200), "{least}");
        assert!(info.decoded_bytes < before, "{least}: {info:?}");
        before = info.decoded_bytes;
        // What is decoded, and as much again for the planes of the components.
        let pixels = 1600 * 1200 / (divisor * divisor);
        assert!(info.decoded_bytes >= 2 * 3 * pixels, "{least}: {info:?}");
        assert!(
            info.decoded_bytes < 2 * 3 * pixels + (1 << 20),
            "{least}: {info:?}"
        );
        let picture = encoded.decode().expect("a picture");
        assert_eq!(
            u64::from(picture.width() * picture.height()),
            pixels,
            "{least}"
        );
    }
    let little_memory = Limits {
        max_decoded_bytes: full.decoded_bytes / 4,
        ..LIMITS
    };
    assert!(reduced(little_memory, 300).is_ok());
    assert!(matches!(
        reduced(little_memory, 601),
        Err(ImageError::TooLarge { .. })
    ));
    for limits in [
        Limits {
            max_pixels: 1600 * 1200 - 1,
            ..LIMITS
        },
        Limits {
            max_side: 1599,
            ..LIMITS
        },
    ] {
        assert!(matches!(
            reduced(limits, 150),
            Err(ImageError::TooLarge { .. })
        ));
    }
}

#[test]
fn only_jpegs_are_decoded_at_a_reduced_size() {
    for Recorded { name, file, rgb } in recorded() {
        let encoded = Encoded::open_at_least(&file, &LIMITS, |_| (1, 1)).expect(&name);
        let picture = encoded.decode().expect(&name);
        let is_reduced = (picture.width(), picture.height()) != (rgb.width(), rgb.height());
        let is_large_jpeg = encoded.info().format == Format::Jpeg && rgb.width() > 1;
        assert_eq!(is_reduced, is_large_jpeg, "{name}");
    }
}

//! AVIF: what Pillow gives, what is refused and how, and that nothing of a stranger's takes more
//! than its header announces.
//!
//! `golden/avif.safetensors` was recorded by `golden/make_avif.py`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use imgclass_image::{Encoded, Format, ImageError, Limits, RgbImage, decode, inspect};
use safetensors::SafeTensors;

const LIMITS: Limits = Limits {
    max_pixels: 20_000_000,
    max_side: 20_000,
    max_decoded_bytes: 200_000_000,
};

/// The recorded pictures: name, file and what Pillow makes of it.
fn recorded() -> Vec<(String, Vec<u8>, RgbImage)> {
    let bytes = include_bytes!("../../../../tests/golden/avif.safetensors");
    let tensors = SafeTensors::deserialize(bytes).expect("the recorded pictures");
    let mut names: Vec<_> = tensors.names().into_iter().collect();
    names.sort_unstable();
    let names = names
        .into_iter()
        .filter_map(|name| name.strip_suffix(".file"));
    names
        .map(|name| {
            let file = tensors.tensor(&format!("{name}.file")).expect("its bytes");
            let rgb = tensors.tensor(&format!("{name}.rgb")).expect("its pixels");
            let (height, width) = (rgb.shape()[0] as u32, rgb.shape()[1] as u32);
            let rgb = RgbImage::new(width, height, rgb.data().to_vec()).expect("pixels");
            (name.to_owned(), file.data().to_vec(), rgb)
        })
        .collect()
}

fn file(wanted: &str) -> Vec<u8> {
    let found = recorded().into_iter().find(|(name, ..)| name == wanted);
    found.expect("a recorded picture").1
}

/// Returns where the contents of the box of this name begin.
fn contents_of(file: &[u8], name: &[u8; 4]) -> usize {
    let at = file.windows(4).position(|window| window == name);
    at.expect("a box of this name") + 4
}

/// Changes the size that the container announces.
fn announce(file: &mut [u8], width: u32, height: u32) {
    let at = contents_of(file, b"ispe") + 4;
    file[at..at + 4].copy_from_slice(&width.to_be_bytes());
    file[at + 4..at + 8].copy_from_slice(&height.to_be_bytes());
}

fn reason(file: &[u8]) -> String {
    decode(file, &LIMITS).expect_err("a refusal").to_string()
}

#[test]
fn pictures_are_seen_as_pillow_sees_them() {
    for (name, file, expected) in recorded() {
        assert_eq!(Format::sniff(&file), Some(Format::Avif), "{name}");
        let info = inspect(&file, &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = (expected.width(), expected.height());
        assert_eq!((info.width, info.height), size, "{name}");
        let seen = decode(&file, &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(seen == expected, "{name}: other pixels");
    }
}

#[test]
fn a_picture_is_judged_by_the_size_that_its_container_announces() {
    let mut file = file("420_full");
    announce(&mut file, 60_000, 21);
    assert!(reason(&file).contains("longer side in pixels is 60000"));
    announce(&mut file, 19_000, 19_000);
    assert!(reason(&file).contains("number of pixels is 361000000"));
    let limits = Limits {
        max_decoded_bytes: 1_000_000,
        ..LIMITS
    };
    announce(&mut file, 33, 21);
    assert!(matches!(
        decode(&file, &limits),
        Err(ImageError::TooLarge {
            limit: 1_000_000,
            ..
        })
    ));
}

#[test]
fn coded_data_of_another_size_than_announced_is_refused() {
    let mut file = file("420_full");
    announce(&mut file, 32, 21);
    assert!(reason(&file).contains("contradicts the size that the file announces"));
    announce(&mut file, 34, 21);
    assert!(reason(&file).contains("announces 34x21 pixels, its AV1 data holds 33x21"));
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    for name in ["420_full", "grid", "sequence", "xmp_6"] {
        let file = file(name);
        for length in (32..file.len()).step_by(7) {
            match decode(&file[..length], &LIMITS) {
                Err(ImageError::Malformed { format, .. }) => assert_eq!(format, Format::Avif),
                // A sequence's other frames are not needed, nor is what follows the picture.
                Ok(_) => assert!(length > file.len() / 2, "{name} of {length} bytes"),
                Err(error) => panic!("{name} of {length} bytes: {error}"),
            }
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let picture = file("420_full");
    let changed = |name: &[u8; 4], offset: usize, bytes: &[u8]| {
        let mut file = picture.clone();
        let at = contents_of(&file, name) + offset;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        reason(&file)
    };
    let table = [
        // The matrix that the container names.
        (
            changed(b"nclx", 4, &[0, 14]),
            "matrix coefficients 14 in full range",
        ),
        (
            changed(b"nclx", 4, &[0, 0]),
            "matrix coefficients 0 in full range",
        ),
        (
            changed(b"infe", 8, b"hvc1"),
            "primary item is of type \"hvc1\"",
        ),
        (changed(b"pitm", 4, &[0, 9]), "names no primary item"),
        (changed(b"ispe", 4, &[0; 8]), "no pixels"),
        (changed(b"mdat", 0, &[0xFF; 12]), "AV1 data"),
    ];
    for (seen, expected) in table {
        assert!(seen.contains(expected), "{seen}, not {expected}");
    }
}

#[test]
fn general_brands_are_avif_where_the_list_of_brands_says_so() {
    let mut file = file("420_full");
    file[8..12].copy_from_slice(b"mif1");
    assert_eq!(Format::sniff(&file), Some(Format::Avif));
    assert!(decode(&file, &LIMITS).is_ok());
    file[8..12].copy_from_slice(b"heic");
    assert_eq!(Format::sniff(&file), None);
    assert!(reason(&file).starts_with("a HEIC image"));
    let heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic";
    assert!(reason(heic).starts_with("a HEIC image"));
}

#[test]
fn long_lists_in_a_container_are_refused() {
    let mut file = file("420_full");
    // A second list of references, of which each has as many entries as fit.
    let reference = |count: u16| {
        let mut entry = (12 + 2 * u32::from(count)).to_be_bytes().to_vec();
        entry.extend_from_slice(b"cdsc");
        entry.extend_from_slice(&[0, 1]);
        entry.extend_from_slice(&count.to_be_bytes());
        entry.resize(entry.len() + 2 * usize::from(count), 0);
        entry
    };
    let entries = [
        reference(65_000),
        reference(65_000),
        reference(65_000),
        reference(65_000),
        reference(65_000),
    ]
    .concat();
    let mut list = (12 + entries.len() as u32).to_be_bytes().to_vec();
    list.extend_from_slice(b"iref\0\0\0\0");
    list.extend_from_slice(&entries);
    let meta = contents_of(&file, b"meta") - 8;
    let size = u32::from_be_bytes(file[meta..meta + 4].try_into().unwrap());
    let size = size + list.len() as u32;
    file[meta..meta + 4].copy_from_slice(&size.to_be_bytes());
    let first = meta + 12;
    file.splice(first..first, list);
    assert!(reason(&file).contains("lists more than"));
}

/// One decoding needs less than its header announces. What more it took would show as an
/// allocation that fails in a worker, which `tests/it/decoding.rs` of the service tries.
#[test]
fn the_header_announces_more_memory_than_samples_and_picture_take() {
    for (name, file, picture) in recorded() {
        let encoded = Encoded::open(file, &LIMITS).expect("a recorded picture");
        let pixels = picture.data().len() as u64;
        assert!(encoded.info().decoded_bytes > 2 * pixels, "{name}");
    }
}

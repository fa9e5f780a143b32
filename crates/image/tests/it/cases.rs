//! Odd pictures from public bug reports: what Pillow sees, from the reference data beside the
//! checkout (`shared/cases/images`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use imgclass_image::{ImageError, Limits, decode};
use imgclass_test_support::shared;

const LIMITS: Limits = Limits {
    max_pixels: 1_000_000,
    max_side: 20_000,
    max_decoded_bytes: 100_000_000,
};

/// Pictures that Pillow reads and that are refused here, each with the beginning of the reason.
const REFUSED: &[(&str, &str)] = &[
    ("jpeg_arithmetic.jpg", "an arithmetic-coded JPEG"),
    ("tiff_LAB_pillow.tif", "a TIFF of CIE L*a*b* colours"),
];

/// Pictures that Pillow refuses and that are read here.
const READ: &[&str] = &["bmp_os2v2_16.bmp"];

#[test]
fn odd_pictures_are_seen_as_pillow_sees_them() {
    let Some(table) = shared("cases/images/cases.tsv", "odd pictures") else {
        return;
    };
    let folder = table.parent().expect("a folder");
    let text = std::fs::read_to_string(&table).expect("a readable table");
    let mut wrong = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (name, is_read) = (fields[0], fields[1] == "reads");
        let bytes = std::fs::read(folder.join(name)).expect("a readable file");
        let seen = decode(&bytes, &LIMITS);
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (seen, refused) {
            (Err(error), Some((_, reason))) if error.to_string().starts_with(reason) => {}
            (Err(error), None) if !is_read => assert!(!error.to_string().is_empty()),
            (Ok(_), None) if !is_read && READ.contains(&name) => {}
            (Ok(picture), None) if is_read => {
                let expected = folder.join("pillow").join(format!("{name}.png"));
                let expected = std::fs::read(expected).expect("what Pillow sees");
                let expected = decode(&expected, &LIMITS).expect("a PNG");
                if picture != expected {
                    wrong.push(format!("{name}: seen otherwise"));
                }
            }
            (seen, _) => wrong.push(format!(
                "{name}: {}",
                seen.map_or_else(|error| error.to_string(), |_| "read".to_owned())
            )),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Inputs that took gigabytes or minutes. Here they cost an error, or a picture within its limits.
#[test]
fn hostile_pictures_are_judged_by_their_headers() {
    let table = [
        ("differential_10000.jpg", Some("the image's")),
        ("scans_600.jpg", Some("the image's")),
        (
            "webp_exif_4GiB.webp",
            Some("the WebP image cannot be decoded"),
        ),
        ("jpeg_in_tiff_8000.tiff", Some("")),
        ("iccp_700MB.png", None),
    ];
    let limits = Limits {
        max_side: 9_000,
        max_pixels: 10_000_000,
        ..LIMITS
    };
    for (name, expected) in table {
        let Some(path) = shared(&format!("cases/hostile/{name}"), "hostile pictures") else {
            return;
        };
        let bytes = std::fs::read(path).expect("a readable file");
        let start = std::time::Instant::now();
        match (decode(&bytes, &limits), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                assert!(error.to_string().starts_with(expected), "{name}: {error}");
            }
            (Ok(_), Some(_)) => panic!("{name}: decoded"),
            (Err(error), None) => panic!("{name}: {error}"),
        }
        let took = start.elapsed();
        assert!(took.as_secs() < 5, "{name} took {took:?}");
        assert!(!matches!(
            decode(
                &bytes,
                &Limits {
                    max_pixels: 10,
                    ..limits
                }
            ),
            Ok(_) | Err(ImageError::TooMuchMemory { .. })
        ));
    }
}

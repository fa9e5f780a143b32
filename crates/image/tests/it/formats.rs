//! Odd forms of each format, made from the recorded pictures or written here: they are seen as the
//! usual form of the same picture is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use imgclass_image::{Encoded, ImageError, Limits, RgbImage, decode, inspect};

use crate::decode::file;

const LIMITS: Limits = Limits {
    max_pixels: 1_000_000,
    max_side: 20_000,
    max_decoded_bytes: 100_000_000,
};

fn seen(bytes: &[u8]) -> RgbImage {
    decode(bytes, &LIMITS).unwrap_or_else(|error| panic!("{error}"))
}

fn reason(bytes: &[u8]) -> String {
    match decode(bytes, &LIMITS) {
        Ok(_) => panic!("decoded"),
        Err(error) => error.to_string(),
    }
}

fn spliced(bytes: &[u8], at: usize, inserted: &[u8]) -> Vec<u8> {
    [&bytes[..at], inserted, &bytes[at..]].concat()
}

/// A JPEG's segments: the marker, where it begins, and where it ends.
fn segments(jpeg: &[u8]) -> Vec<(u8, usize, usize)> {
    let (mut at, mut found) = (2, Vec::new());
    loop {
        let length = usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        found.push((jpeg[at + 1], at, at + 2 + length));
        if jpeg[at + 1] == 0xDA {
            return found;
        }
        at += 2 + length;
    }
}

fn without(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let mut left = jpeg.to_vec();
    for (found, start, end) in segments(jpeg).into_iter().rev() {
        if found == marker {
            left.drain(start..end);
        }
    }
    left
}

fn segment(marker: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16 + 2).to_be_bytes();
    [&[0xFF, marker], &length[..], payload].concat()
}

/// An EXIF block, without a name before it, that holds an orientation of this type and value.
fn exif(kind: u16, value: &[u8; 4]) -> Vec<u8> {
    let mut block = b"MM\0*\0\0\0\x08\0\x01\x01\x12".to_vec();
    block.extend_from_slice(&kind.to_be_bytes());
    block.extend_from_slice(&[0, 0, 0, 1]);
    block.extend_from_slice(value);
    block.extend_from_slice(&[0; 4]);
    block
}

#[test]
fn jpegs_whose_markers_are_odd_are_seen_as_usual() {
    let usual = file("jpeg_444");
    let scan = segments(&usual).pop().unwrap().1;
    let adobe = |transform| {
        segment(
            0xEE,
            &[b"Adobe\0d\0\0\0\0".as_slice(), &[transform]].concat(),
        )
    };
    let bare = without(&usual, 0xE0);
    let mut named = bare.clone();
    let frame = segments(&named).iter().find(|s| s.0 == 0xC0).unwrap().1;
    let scan_of_bare = segments(&named).pop().unwrap().1;
    for (index, name) in b"RGB".iter().enumerate() {
        named[frame + 10 + index * 3] = *name;
        named[scan_of_bare + 5 + index * 2] = *name;
    }
    let with_jfif = spliced(&named, 2, &usual[2..segments(&usual)[0].2]);
    let mut endless = usual.clone();
    endless.truncate(usual.len() - 2);
    endless.extend_from_slice(b"a trailer of some maker");
    let table = [
        (
            "JFIF and Adobe's transform 0",
            spliced(&usual, 2, &adobe(0)),
        ),
        ("JFIF and the names R, G, B", with_jfif),
        ("Adobe's transform 1 alone", spliced(&bare, 2, &adobe(1))),
        ("neither JFIF nor Adobe", bare.clone()),
        (
            "no Huffman tables, as in Motion JPEG",
            without(&usual, 0xC4),
        ),
        ("no end, but a trailer", endless),
        (
            "garbage between segments",
            spliced(&usual, scan, b"garbage"),
        ),
        ("padding before a marker", spliced(&usual, scan, &[0xFF; 5])),
        (
            "a restart interval of 0",
            spliced(&usual, scan, &segment(0xDD, &[0, 0])),
        ),
    ];
    let expected = seen(&usual);
    for (name, jpeg) in table {
        assert_eq!(seen(&jpeg), expected, "{name}");
    }
    // These two say that the samples are red, green and blue.
    let rgb = seen(&named);
    assert_ne!(rgb, expected);
    assert_eq!(seen(&spliced(&bare, 2, &adobe(0))), rgb);
}

#[test]
fn damaged_jpegs_are_refused_by_what_is_wrong() {
    let usual = file("jpeg_444");
    let (_, frame, frame_end) = segments(&usual).into_iter().find(|s| s.0 == 0xC0).unwrap();
    let (_, scan, scan_end) = segments(&usual).pop().unwrap();
    let twice = spliced(&usual, scan, &usual[frame..frame_end]);
    let mut reserved = usual.clone();
    reserved.splice(scan_end + 20..scan_end + 20, [0xFF, 0x35]);
    let mut fractional = usual.clone();
    fractional[frame + 11] = 0x31;
    fractional[frame + 14] = 0x21;
    let table = [
        ("it has two frame headers", twice),
        ("unknown marker 0x35", reserved),
        (
            "the file ends before the picture does",
            usual[..usual.len() / 2].to_vec(),
        ),
        ("a quantisation table is missing", without(&usual, 0xDB)),
        ("differ by fractions", fractional),
    ];
    for (expected, jpeg) in table {
        let reason = reason(&jpeg);
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

#[test]
fn a_jpeg_of_a_thousand_empty_scans_is_refused_and_takes_no_time() {
    let progressive = file("jpeg_progressive");
    let (_, scan, scan_end) = segments(&progressive).pop().unwrap();
    let empty = progressive[scan..scan_end].repeat(1_000);
    let start = std::time::Instant::now();
    assert!(reason(&spliced(&progressive, scan, &empty)).contains("scans"));
    assert!(start.elapsed().as_secs() < 2);
}

#[test]
fn a_reduced_jpeg_has_the_least_size_that_is_large_enough() {
    let mut jpeg = std::io::Cursor::new(Vec::new());
    let shade = |x: u32, y: u32| image::Rgb([(x / 2) as u8, (y / 2) as u8, 90]);
    image::DynamicImage::from(image::RgbImage::from_fn(400, 300, shade))
        .write_to(&mut jpeg, image::ImageFormat::Jpeg)
        .unwrap();
    let jpeg = jpeg.into_inner();
    let table = [
        ((400, 300), (400, 300)),
        ((201, 100), (400, 300)),
        ((200, 150), (200, 150)),
        ((101, 10), (200, 150)),
        ((100, 75), (100, 75)),
        ((50, 37), (50, 38)),
        ((1, 1), (50, 38)),
    ];
    for (least, expected) in table {
        let encoded = Encoded::open_at_least(&jpeg, &LIMITS, |_| least).unwrap();
        assert_eq!((encoded.info().width, encoded.info().height), (400, 300));
        let picture = encoded.decode().unwrap();
        assert_eq!((picture.width(), picture.height()), expected, "{least:?}");
        let middle = (expected.1 / 2 * expected.0 + expected.0 / 2) as usize * 3;
        let found = &picture.data()[middle..middle + 3];
        let near = found
            .iter()
            .zip([100, 75, 90])
            .all(|(&found, wanted)| found.abs_diff(wanted) < 8);
        assert!(near, "{least:?}: {found:?}");
    }
}

#[test]
fn an_orientation_is_found_in_every_form_that_pillow_finds() {
    const NAME: &[u8] = b"Exif\0\0";
    let xmp = b"<x tiff:Orientation=\"6\"/>";
    let (short, long) = (exif(3, &[0, 6, 0, 0]), exif(4, &[0, 0, 0, 6]));
    let upright = exif(3, &[0, 1, 0, 0]);
    let jpeg = file("jpeg_444");
    let app1 = |payloads: &[&[u8]]| segment(0xE1, &payloads.concat());
    let with = |inserted: &[Vec<u8>]| spliced(&jpeg, 2, &inserted.concat());
    let png = file("png_rgb");
    let end = png.len() - 12;
    let png_with = |at, kind: &[u8; 4], data: &[u8]| spliced(&png, at, &chunk(kind, data));
    let digits: String = short.iter().map(|byte| format!("{byte:02x}")).collect();
    let raw = format!("Raw profile type exif\0\nexif\n      26\n{digits}\n");
    let packet = [b"XML:com.adobe.xmp\0\0\0\0\0".as_slice(), xmp].concat();
    let webp = file("webp_lossy");
    let turned = [
        ("JPEG, short", with(&[app1(&[NAME, &short])])),
        ("JPEG, long", with(&[app1(&[NAME, &long])])),
        ("JPEG, named twice", with(&[app1(&[NAME, NAME, &short])])),
        (
            "JPEG, two blocks",
            with(&[app1(&[NAME, &short]), app1(&[NAME, &upright])]),
        ),
        (
            "JPEG, XMP",
            with(&[app1(&[b"http://ns.adobe.com/xap/1.0/\0", xmp])]),
        ),
        ("PNG", png_with(33, b"eXIf", &short)),
        (
            "PNG, named",
            png_with(33, b"eXIf", &[NAME, &short].concat()),
        ),
        ("PNG, behind the data", png_with(end, b"eXIf", &short)),
        ("PNG, raw profile", png_with(33, b"tEXt", raw.as_bytes())),
        ("PNG, XMP", png_with(33, b"iTXt", &packet)),
        ("WebP", extended(&webp, 8, &[(b"EXIF", &short)])),
        (
            "WebP, named",
            extended(&webp, 8, &[(b"EXIF", &[NAME, &short].concat())]),
        ),
        ("WebP, XMP", extended(&webp, 4, &[(b"XMP ", xmp)])),
    ];
    for (name, bytes) in turned {
        let picture = seen(&bytes);
        assert_eq!((picture.width(), picture.height()), (17, 23), "{name}");
    }
    let as_it_is = [
        (
            "JPEG, of a type that is no number",
            with(&[app1(&[NAME, &exif(1, &[6, 0, 0, 0])])]),
        ),
        (
            "JPEG, a number that EXIF does not know",
            with(&[app1(&[NAME, &exif(3, &[0, 9, 0, 0])])]),
        ),
        (
            "WebP, not announced",
            extended(&webp, 0, &[(b"EXIF", &short)]),
        ),
        ("WebP, announced and not there", extended(&webp, 12, &[])),
    ];
    for (name, bytes) in as_it_is {
        let picture = seen(&bytes);
        assert_eq!((picture.width(), picture.height()), (23, 17), "{name}");
    }
}

/// A PNG's chunk with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    let crc = !body.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
        })
    });
    let length = (data.len() as u32).to_be_bytes();
    [&length[..], &body, &crc.to_be_bytes()].concat()
}

/// A simple WebP of 23 by 17 with an extended header of these flags, and chunks behind its picture.
fn extended(simple: &[u8], flags: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBPVP8X\x0A\0\0\0".to_vec();
    body.extend_from_slice(&[flags, 0, 0, 0, 22, 0, 0, 16, 0, 0]);
    body.extend_from_slice(&simple[12..]);
    for (name, data) in chunks {
        body.extend_from_slice(*name);
        body.extend_from_slice(&(data.len() as u32).to_le_bytes());
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

#[test]
fn chunks_that_claim_gigabytes_are_never_allocated() {
    let webp = file("webp_lossy");
    let mut huge = extended(&webp, 8, &[(b"EXIF", b"MM")]);
    let at = huge
        .windows(4)
        .position(|window| window == b"EXIF")
        .unwrap()
        + 4;
    huge[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        decode(&huge, &LIMITS),
        Err(ImageError::Malformed { .. })
    ));
    let mut profile = spliced(&file("png_rgb"), 33, &chunk(b"iCCP", b"name\0\0junk"));
    seen(&profile);
    profile[33..37].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        decode(&profile, &LIMITS),
        Err(ImageError::Malformed { .. })
    ));
}

#[test]
fn a_png_announces_the_memory_for_its_data_however_they_are_cut() {
    let (width, height) = (200_u32, 200_u32);
    let mut stored = ZlibEncoder::new(Vec::new(), Compression::none());
    let row = vec![7; 1 + 3 * width as usize];
    for _ in 0..height {
        stored.write_all(&[0]).unwrap();
        stored.write_all(&row[1..]).unwrap();
    }
    let data = stored.finish().unwrap();
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    for piece in [1, 100, data.len()] {
        let mut png = b"\x89PNG\r\n\x1A\n".to_vec();
        png.extend(chunk(b"IHDR", &[&size[..], &[8, 2, 0, 0, 0]].concat()));
        for part in data.chunks(piece) {
            png.extend(chunk(b"IDAT", part));
        }
        png.extend(chunk(b"IEND", &[]));
        let info = inspect(&png, &LIMITS).unwrap();
        // The decoder holds the picture, and a copy of the chunks of data.
        let least = u64::from(width * height * 3) + png.len() as u64 - 100;
        let announced = info.decoded_bytes;
        assert!(announced >= least, "{piece}: {announced} of {least}");
        assert!(seen(&png).data().iter().all(|&sample| sample == 7));
    }
}

#[test]
fn odd_pngs_gifs_and_bitmaps_are_seen_as_usual() {
    let png = file("png_rgb");
    let gif = file("gif_still");
    let image = gif
        .windows(9)
        .position(|w| w == [0x2C, 0, 0, 0, 0, 23, 0, 17, 0])
        .unwrap();
    let bmp = file("bmp_rgb");
    let mut no_planes = bmp.clone();
    no_planes[26] = 0;
    // A header of OS/2 2.x is longer; what is new in it does not matter.
    let mut os2 = spliced(&bmp, 54, &[0; 24]);
    os2[14] = 64;
    os2[10] += 24;
    let table = [
        ("png_rgb", "no end", png[..png.len() - 12].to_vec()),
        (
            "png_rgb",
            "an unknown chunk",
            spliced(&png, 33, &chunk(b"ABCD", b"data")),
        ),
        (
            "gif_still",
            "an unknown extension",
            spliced(&gif, image, &[0x21, 0x77, 2, 1, 1, 0]),
        ),
        ("gif_still", "garbage", spliced(&gif, image, &[0, 1, 2])),
        ("gif_still", "no end", gif[..gif.len() - 1].to_vec()),
        ("bmp_rgb", "no planes", no_planes),
        ("bmp_rgb", "OS/2 2.x", os2),
        ("bmp_rgb", "no file header", bmp[14..].to_vec()),
    ];
    for (usual, name, bytes) in table {
        assert_eq!(seen(&bytes), seen(&file(usual)), "{usual}: {name}");
    }
}

/// A bitmap of 8 bits in run lengths.
fn run_lengths(height: i32, data: &[u8]) -> Vec<u8> {
    let mut bmp = b"BM\0\0\0\0\0\0\0\0".to_vec();
    bmp.extend_from_slice(&(54_u32 + 16).to_le_bytes());
    bmp.extend_from_slice(&40_u32.to_le_bytes());
    bmp.extend_from_slice(&4_u32.to_le_bytes());
    bmp.extend_from_slice(&height.to_le_bytes());
    bmp.extend_from_slice(&[1, 0, 8, 0, 1, 0, 0, 0]);
    bmp.extend_from_slice(&[0; 12]);
    bmp.extend_from_slice(&[4, 0, 0, 0, 0, 0, 0, 0]);
    for grey in [0, 100, 200, 255] {
        bmp.extend_from_slice(&[grey, grey, grey, 0]);
    }
    bmp.extend_from_slice(data);
    bmp
}

#[test]
fn run_lengths_may_skip_pixels_and_run_from_the_top() {
    let greys =
        |bytes: &[u8]| -> Vec<u8> { seen(bytes).data().chunks(3).map(|pixel| pixel[0]).collect() };
    // Two pixels, a jump by one to the right, one pixel; the second row one by one.
    let data = [2, 1, 0, 2, 1, 0, 1, 2, 0, 0, 0, 4, 3, 2, 1, 0, 0, 1];
    let rows = [[100, 100, 0, 200], [255, 200, 100, 0]];
    assert_eq!(greys(&run_lengths(-2, &data)), rows.concat());
    assert_eq!(greys(&run_lengths(2, &data)), [rows[1], rows[0]].concat());
    // A run that reaches over the end of its row is cut.
    let long = [9, 1, 0, 0, 4, 2, 0, 1];
    assert_eq!(
        greys(&run_lengths(-2, &long)),
        [[100; 4], [200; 4]].concat()
    );
    assert!(reason(&run_lengths(-2, &[4, 1, 0, 1])).contains("ends before"));
}

/// A little-endian TIFF: its entries (tag, values), and its data, whose place is the strips' or
/// tiles' first offset. Offsets in `places` are relative to it.
fn tiff(entries: &[(u16, &[u32])], places: (u16, &[u32]), data: &[u8]) -> Vec<u8> {
    let mut all: Vec<(u16, Vec<u32>)> = entries
        .iter()
        .map(|(tag, values)| (*tag, values.to_vec()))
        .collect();
    all.push((places.0, places.1.iter().map(|place| place + 8).collect()));
    all.sort();
    let mut bytes = b"II*\0".to_vec();
    let end = (8 + data.len()).next_multiple_of(2);
    bytes.extend_from_slice(&(end as u32).to_le_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(end, 0);
    let mut behind = end + 2 + all.len() * 12 + 4;
    let mut tail = Vec::new();
    bytes.extend_from_slice(&(all.len() as u16).to_le_bytes());
    for (tag, values) in &all {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&4_u16.to_le_bytes());
        bytes.extend_from_slice(&(values.len() as u32).to_le_bytes());
        if let [value] = values.as_slice() {
            bytes.extend_from_slice(&value.to_le_bytes());
        } else {
            bytes.extend_from_slice(&(behind as u32).to_le_bytes());
            tail.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            behind += values.len() * 4;
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&tail);
    bytes
}

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS: u16 = 258;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const STRIPS: u16 = 273;
const CHANNELS: u16 = 277;
const ROWS: u16 = 278;
const SIZES: u16 = 279;
const PLANAR: u16 = 284;
const PREDICTOR: u16 = 317;
const COLOUR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_HEIGHT: u16 = 323;
const TILES: u16 = 324;
const EXTRA: u16 = 338;
const FORMAT: u16 = 339;
const JPEG_TABLES: u16 = 347;

#[test]
fn samples_of_tiffs_become_rgb() {
    let colours: Vec<u32> = [0, 255, 10, 20, 0, 254, 11, 21, 0, 253, 12, 22]
        .map(|c| c * 256)
        .into();
    let grey = |values: [u8; 2]| -> Vec<u8> { values.into_iter().flat_map(|v| [v; 3]).collect() };
    let float = [7.9_f32, 300.0].map(f32::to_le_bytes).concat();
    let wide = [0x1234_u32, 0xFF_FFFF].map(u32::to_le_bytes).concat();
    type Case<'a> = (&'a str, &'a [(u16, &'a [u32])], &'a [u8], Vec<u8>);
    let table: &[Case<'_>] = &[
        (
            "1 bit",
            &[(BITS, &[1]), (PHOTOMETRIC, &[1])],
            &[0x40],
            grey([0, 255]),
        ),
        (
            "1 bit, 0 is white",
            &[(PHOTOMETRIC, &[0])],
            &[0x40],
            grey([255, 0]),
        ),
        (
            "2 bits",
            &[(BITS, &[2]), (PHOTOMETRIC, &[1])],
            &[0x60],
            grey([85, 170]),
        ),
        (
            "4 bits",
            &[(BITS, &[4]), (PHOTOMETRIC, &[1])],
            &[0x3C],
            grey([51, 204]),
        ),
        (
            "12 bits",
            &[(BITS, &[12]), (PHOTOMETRIC, &[1])],
            &[0x12, 0x3A, 0xBC],
            grey([0x12, 0xAB]),
        ),
        (
            "1 bit, lowest first",
            &[(BITS, &[1]), (PHOTOMETRIC, &[1]), (FILL_ORDER, &[2])],
            &[0x02],
            grey([0, 255]),
        ),
        (
            "grey and alpha",
            &[
                (BITS, &[8, 8]),
                (PHOTOMETRIC, &[1]),
                (CHANNELS, &[2]),
                (EXTRA, &[2]),
            ],
            &[9, 1, 200, 2],
            grey([9, 200]),
        ),
        (
            "palette",
            &[(BITS, &[8]), (PHOTOMETRIC, &[3]), (COLOUR_MAP, &colours)],
            &[1, 3],
            vec![255, 254, 253, 20, 21, 22],
        ),
        (
            "palette of 4 bits",
            &[(BITS, &[4]), (PHOTOMETRIC, &[3]), (COLOUR_MAP, &colours)],
            &[0x20],
            vec![10, 11, 12, 0, 0, 0],
        ),
        (
            "multiplied with alpha",
            &[
                (BITS, &[8; 4]),
                (PHOTOMETRIC, &[2]),
                (CHANNELS, &[4]),
                (EXTRA, &[1]),
            ],
            &[50, 25, 0, 100, 9, 9, 9, 0],
            vec![127, 63, 0, 0, 0, 0],
        ),
        (
            "16 bits, 0 is white",
            &[(BITS, &[16]), (PHOTOMETRIC, &[0])],
            &[0, 5, 0, 200],
            grey([250, 55]),
        ),
        (
            "16 bits, signed",
            &[(BITS, &[16]), (PHOTOMETRIC, &[1]), (FORMAT, &[2])],
            &[0, 0xFF, 0, 100],
            grey([0, 100]),
        ),
        (
            "32 bits",
            &[(BITS, &[32]), (PHOTOMETRIC, &[1])],
            &wide,
            grey([0x12, 255]),
        ),
        (
            "floating point",
            &[(BITS, &[32]), (PHOTOMETRIC, &[1]), (FORMAT, &[3])],
            &float,
            grey([7, 255]),
        ),
        (
            "CMYK",
            &[(BITS, &[8; 4]), (PHOTOMETRIC, &[5]), (CHANNELS, &[4])],
            &[0, 255, 0, 0, 0, 0, 0, 100],
            vec![255, 0, 255, 155, 155, 155],
        ),
    ];
    for (name, entries, data, expected) in table {
        let entries: Vec<(u16, &[u32])> =
            [&[(WIDTH, [2].as_slice()), (HEIGHT, &[1])], *entries].concat();
        let picture = seen(&tiff(&entries, (STRIPS, &[0]), data));
        assert_eq!(picture.data(), expected, "{name}");
    }
}

#[test]
fn differences_are_added_up_across_extra_channels() {
    // Run lengths do not use them, so that the same bytes mean two things.
    let entries = |compression| -> Vec<(u16, Vec<u32>)> {
        vec![
            (WIDTH, vec![2]),
            (HEIGHT, vec![1]),
            (BITS, vec![8; 4]),
            (COMPRESSION, vec![compression]),
            (PHOTOMETRIC, vec![2]),
            (CHANNELS, vec![4]),
            (PREDICTOR, vec![2]),
            (EXTRA, vec![0]),
        ]
    };
    let samples = [1, 2, 3, 4, 10, 20, 30, 40];
    let mut zlib = vec![0x78, 0x01, 1, 8, 0, 0xF7, 0xFF];
    zlib.extend_from_slice(&samples);
    for (compression, data, expected) in [
        (8, zlib, [1, 2, 3, 11, 22, 33]),
        (32_773, [&[7], &samples[..]].concat(), [1, 2, 3, 10, 20, 30]),
    ] {
        let mut entries = entries(compression);
        entries.push((SIZES, vec![data.len() as u32]));
        let entries: Vec<(u16, &[u32])> = entries.iter().map(|(t, v)| (*t, v.as_slice())).collect();
        let picture = seen(&tiff(&entries, (STRIPS, &[0]), &data));
        assert_eq!(picture.data(), expected, "{compression}");
    }
}

#[test]
fn planes_in_tiles_that_reach_over_the_edge_are_joined() {
    // 3 x 3 pixels in tiles of 16 x 16, each plane of one value.
    let data = [[10; 256], [20; 256], [30; 256]].concat();
    let entries: &[(u16, &[u32])] = &[
        (WIDTH, &[3]),
        (HEIGHT, &[3]),
        (BITS, &[8; 3]),
        (PHOTOMETRIC, &[2]),
        (CHANNELS, &[3]),
        (PLANAR, &[2]),
        (TILE_WIDTH, &[16]),
        (TILE_HEIGHT, &[16]),
    ];
    let picture = seen(&tiff(entries, (TILES, &[0, 256, 512]), &data));
    assert_eq!(picture.data(), [10, 20, 30].repeat(9));
}

/// A TIFF of `height` rows whose strips all hold the same JPEG of 23 by 17 pixels.
fn around_a_jpeg(width: u32, height: u32, rows: u32) -> Vec<u8> {
    let jpeg = file("jpeg_444");
    let strips = height.div_ceil(rows) as usize;
    let entries: &[(u16, &[u32])] = &[
        (WIDTH, &[width]),
        (HEIGHT, &[height]),
        (BITS, &[8; 3]),
        (COMPRESSION, &[7]),
        (PHOTOMETRIC, &[6]),
        (CHANNELS, &[3]),
        (ROWS, &[rows]),
        (SIZES, &vec![jpeg.len() as u32; strips]),
    ];
    tiff(entries, (STRIPS, &vec![0; strips]), &jpeg)
}

#[test]
fn a_jpeg_inside_a_tiff_is_judged_like_any_other_and_must_fit_its_strip() {
    assert_eq!(seen(&around_a_jpeg(23, 17, 17)), seen(&file("jpeg_444")));
    assert_eq!(seen(&around_a_jpeg(23, 34, 17)).height(), 34);
    assert!(reason(&around_a_jpeg(16, 17, 17)).contains("the JPEG inside has 23x17 pixels"));
    assert!(reason(&around_a_jpeg(23, 20, 20)).contains("the JPEG inside has 23x17 pixels"));
    assert!(reason(&around_a_jpeg(23, 17 * 40, 17)).contains("too often"));
}

#[test]
fn tables_that_the_jpegs_inside_a_tiff_share_count_for_each_of_them() {
    let jpeg = file("jpeg_444");
    let with_tables = |comments: usize, strips: usize| {
        let mut tables = vec![0xFF, 0xD8];
        for _ in 0..comments {
            tables.extend([0xFF, 0xFE, 0x03, 0xFE]);
            tables.extend([0; 1020]);
        }
        tables.extend([0xFF, 0xD9]);
        let words = tables.as_chunks::<4>().0.iter();
        let words: Vec<u32> = words.map(|word| u32::from_le_bytes(*word)).collect();
        let places: Vec<u32> = (0..strips).map(|i| (i * jpeg.len()) as u32).collect();
        let entries: &[(u16, &[u32])] = &[
            (WIDTH, &[23]),
            (HEIGHT, &[17 * strips as u32]),
            (BITS, &[8; 3]),
            (COMPRESSION, &[7]),
            (PHOTOMETRIC, &[6]),
            (CHANNELS, &[3]),
            (ROWS, &[17]),
            (SIZES, &vec![jpeg.len() as u32; strips]),
            (JPEG_TABLES, &words),
        ];
        tiff(entries, (STRIPS, &places), &jpeg.repeat(strips))
    };
    assert_eq!(seen(&with_tables(1, 3)).height(), 51);
    assert!(reason(&with_tables(100, 100)).contains("too often"));
}

#[test]
fn a_tiff_that_is_not_decoded_says_what_it_is_and_what_to_do() {
    type Case<'a> = (&'a str, &'a [(u16, &'a [u32])]);
    let table: &[Case<'_>] = &[
        (
            "a TIFF with JPEG 2000 compression (convert",
            &[(COMPRESSION, &[34_712])],
        ),
        (
            "a TIFF with old-style JPEG compression",
            &[(COMPRESSION, &[6])],
        ),
        ("a TIFF of CIE L*a*b* colours", &[(PHOTOMETRIC, &[8])]),
        ("a TIFF of 9 samples a pixel", &[(CHANNELS, &[9])]),
        (
            "a TIFF of 1 floating-point samples of 16 bits",
            &[(BITS, &[16]), (FORMAT, &[3])],
        ),
    ];
    for (expected, entries) in table {
        let entries: Vec<(u16, &[u32])> =
            [&[(WIDTH, [2].as_slice()), (HEIGHT, &[1])], *entries].concat();
        let reason = reason(&tiff(&entries, (STRIPS, &[0]), &[0; 40]));
        assert!(reason.starts_with(expected), "{reason}");
    }
}

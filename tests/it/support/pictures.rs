//! Pictures to send, and the forms in which requests carry them.

use std::path::Path;

use base64::Engine as _;

/// Returns the picture of the interface's documentation, as a data URL.
pub(crate) fn example() -> &'static str {
    include_str!("../../../src/api/example_image.txt").trim()
}

/// Returns an encoded picture whose colours change from pixel to pixel.
pub(crate) fn picture(width: u32, height: u32, format: image::ImageFormat) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 5) as u8, (y * 3) as u8, 90])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

/// Returns [`picture`] as PNG.
pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
    picture(width, height, image::ImageFormat::Png)
}

/// Writes a small picture, which is another one for every `seed`. The path's extension is its
/// format.
pub(crate) fn write_picture(path: &Path, seed: u8) {
    let pixels = image::RgbImage::from_fn(50, 40, |x, y| {
        image::Rgb([(x * 5) as u8 ^ seed, (y * 6) as u8, seed.wrapping_mul(37)])
    });
    pixels.save(path).expect("a picture");
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(crate) fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(bytes))
}

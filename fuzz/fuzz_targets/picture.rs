//! What every target of pictures does with a file.

use imgclass_image::{Encoded, Format, ImageError, Limits};

/// Small limits, so that a run is quick.
const LIMITS: Limits = Limits {
    max_pixels: 1 << 16,
    max_side: 4_096,
    max_decoded_bytes: 64 << 20,
};

/// Opens a file of `format` and decodes it whole and reduced. Files of other formats are left to
/// their own targets.
///
/// A decoder's panic is contained and comes back as an error; here it ends the run, as a panic of
/// code of our own is a fault.
pub fn read(bytes: &[u8], format: Format) {
    if Format::sniff(bytes) != Some(format) {
        return;
    }
    let Ok(encoded) = Encoded::open(bytes, &LIMITS) else {
        return;
    };
    let info = *encoded.info();
    match encoded.decode() {
        Ok(picture) => {
            assert_eq!((picture.width(), picture.height()), (info.width, info.height));
        }
        Err(ImageError::Malformed { reason, .. }) => {
            assert!(!reason.contains("gave up"), "a decoder panicked");
        }
        Err(_) => {}
    }
    let reduced = Encoded::open_at_least(bytes, &LIMITS, |_| (8, 8));
    let _ = reduced.map(|encoded| encoded.decode());
}

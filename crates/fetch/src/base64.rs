//! Decodes base64 as forgivingly as browsers do, and in both of its alphabets.

use std::borrow::Cow;

use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine};

const fn forgiving(alphabet: &Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config)
}

const IN_STANDARD: GeneralPurpose = forgiving(&STANDARD);
const IN_URL_SAFE: GeneralPurpose = forgiving(&URL_SAFE);

/// Decodes base64, in the standard alphabet or in the one for URLs (RFC 4648, sections 4 and 5).
///
/// Padding may be missing, and unused last bits may be set. Whitespace is skipped, so that wrapped
/// lines are read.
///
/// # Errors
///
/// Returns an error at the first byte that belongs to neither alphabet, or to the other one than the
/// bytes before it, or if the padding is wrong.
pub fn decode_base64(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let text = without_whitespace(Cow::Borrowed(text));
    let is_url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    if is_url_safe {
        IN_URL_SAFE.decode(&text)
    } else {
        IN_STANDARD.decode(&text)
    }
}

/// Removes ASCII whitespace; keeps the text as it is if there is none.
pub(super) fn without_whitespace(text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if !text.iter().any(u8::is_ascii_whitespace) {
        return text;
    }
    let mut text = text.into_owned();
    text.retain(|byte| !byte.is_ascii_whitespace());
    Cow::Owned(text)
}

/// The first characters of the base64 of JPEG, PNG, GIF, WebP, and TIFF in either byte order.
const STARTS: [&str; 6] = ["/9j/", "iVBORw0K", "R0lGOD", "UklGR", "SUkqA", "TU0AK"];

/// Returns whether a text that should be a URL looks like the base64 of an image instead.
pub(super) fn looks_like_base64(text: &str) -> bool {
    let mut start = text.bytes().take(256);
    let is_in_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(&byte);
    let known = STARTS.iter().any(|known| text.starts_with(known));
    (known || text.len() >= 128) && start.all(is_in_alphabet)
}

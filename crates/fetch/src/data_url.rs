//! Decodes `data:image/...;base64,` URLs (RFC 2397).
//!
//! The data are percent-decoded and then read as the WHATWG's forgiving base64, as browsers do.
//! ASCII whitespace is skipped, so wrapped base64 works. Padding may be missing, but not wrong. The
//! URL-safe alphabet is read too. Decoding allocates no more than the URL's length, or the size
//! limit.

use std::borrow::Cow;

use bytes::Bytes;

use super::base64::{decode_base64, without_whitespace};
use super::error::{DataUrlFault, FetchError};

const SCHEME: &str = "data:";

/// The longest header in bytes, from the scheme to the comma before the data.
///
/// Media types of images are short. The limit keeps a URL without a comma from being scanned for
/// megabytes.
const MAX_HEADER: usize = 256;

/// Returns whether `url` has the scheme `data:`, in any case.
#[must_use]
pub fn is_data_url(url: &str) -> bool {
    url.get(..SCHEME.len())
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

/// Decodes the bytes in `url`, whose scheme is `data:` in any case: between 1 and `limit` bytes.
///
/// # Errors
///
/// Returns [`FetchError::InvalidDataUrl`] for a URL that is malformed, and [`FetchError::TooLarge`]
/// for one that is too long.
pub fn decode(url: &str, limit: u64) -> Result<Bytes, FetchError> {
    let rest = url.as_bytes().get(SCHEME.len()..).unwrap_or_default();
    let comma = rest.iter().take(MAX_HEADER).position(|byte| *byte == b',');
    let comma = comma.ok_or(DataUrlFault::Comma)?;
    check_header(&rest[..comma])?;
    let text = without_whitespace(percent_decode(&rest[comma + 1..])?);
    if decoded_length(&text) > limit {
        return Err(FetchError::TooLarge { limit });
    }
    let bytes = decode_base64(&text).map_err(|_| DataUrlFault::Base64)?;
    if bytes.is_empty() {
        return Err(DataUrlFault::Empty.into());
    }
    Ok(bytes.into())
}

/// Checks that a header is a media type, any parameters, and `base64` at the end, in any case. The
/// media type is `image/<subtype>`, or one that says nothing about the data.
fn check_header(header: &[u8]) -> Result<(), DataUrlFault> {
    let mut parts = header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let media_type = parts.next().unwrap_or_default();
    let is_image = media_type
        .split_at_checked(6)
        .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(b"image/") && !rest.is_empty());
    let says_nothing =
        media_type.is_empty() || media_type.eq_ignore_ascii_case(b"application/octet-stream");
    if !is_image && !says_nothing {
        return Err(DataUrlFault::MediaType);
    }
    let encoding = parts.next_back().unwrap_or_default();
    if !encoding.eq_ignore_ascii_case(b"base64") {
        return Err(DataUrlFault::NotBase64);
    }
    Ok(())
}

/// Percent-decodes `data`; borrows it if there is nothing to decode.
fn percent_decode(data: &[u8]) -> Result<Cow<'_, [u8]>, DataUrlFault> {
    if !data.contains(&b'%') {
        return Ok(Cow::Borrowed(data));
    }
    let mut text = Vec::with_capacity(data.len());
    let mut rest = data;
    while let [first, tail @ ..] = rest {
        let byte = match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                hex_digit(*high)? << 4 | hex_digit(*low)?
            }
            (b'%', _) => return Err(DataUrlFault::Percent),
            _ => {
                rest = tail;
                *first
            }
        };
        text.push(byte);
    }
    Ok(Cow::Owned(text))
}

/// Returns the value of one hexadecimal digit.
fn hex_digit(digit: u8) -> Result<u8, DataUrlFault> {
    let value = char::from(digit)
        .to_digit(16)
        .ok_or(DataUrlFault::Percent)?;
    Ok(value as u8)
}

/// Returns how many bytes `text` decodes to if it is valid base64.
fn decoded_length(text: &[u8]) -> u64 {
    let padding = text
        .iter()
        .rev()
        .take_while(|byte| **byte == b'=')
        .count()
        .min(2);
    (text.len() - padding) as u64 * 3 / 4
}

//! `data:image/...;base64,` URLs (RFC 2397) to bytes. Never allocates more than the text or the limit, and never guesses
//! at a form that browsers refuse.
//!
//! The data are read as the WHATWG's forgiving base64 after percent-decoding: ASCII whitespace is skipped, so wrapped
//! base64 works; padding may be missing but not wrong; the URL-safe alphabet is refused.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::error::{DataUrlFault, FetchError};

const SCHEME: &str = "data:";

/// The comma must come this early: media types of images are short, and an error then costs no scan of megabytes.
const MAX_HEADER: usize = 256;

const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

pub(super) fn is_data_url(url: &str) -> bool {
    url.get(..SCHEME.len())
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

/// The bytes in `url`, for which [`is_data_url`] holds: between 1 and `limit`.
pub(super) fn decode(url: &str, limit: u64) -> Result<Bytes, FetchError> {
    let rest = &url.as_bytes()[SCHEME.len()..];
    let comma = rest.iter().take(MAX_HEADER).position(|byte| *byte == b',');
    let comma = comma.ok_or(DataUrlFault::Comma)?;
    check_header(&rest[..comma])?;
    let text = significant(&rest[comma + 1..])?;
    if decoded_length(&text) > limit {
        return Err(FetchError::TooLarge { limit });
    }
    let bytes = FORGIVING.decode(&text).map_err(|_| DataUrlFault::Base64)?;
    if bytes.is_empty() {
        return Err(DataUrlFault::Empty.into());
    }
    Ok(bytes.into())
}

/// `image/<subtype>`, any parameters, and `base64` at the end; letters in either case.
fn check_header(header: &[u8]) -> Result<(), DataUrlFault> {
    let mut parts = header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let media_type = parts.next().unwrap_or_default();
    let is_image = media_type
        .get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"image/"));
    if !is_image || media_type.len() == 6 {
        return Err(DataUrlFault::MediaType);
    }
    let encoding = parts.next_back().unwrap_or_default();
    if !encoding.eq_ignore_ascii_case(b"base64") {
        return Err(DataUrlFault::NotBase64);
    }
    Ok(())
}

/// The base64 characters of `data`: percent-decoded, without whitespace. Borrowed where there is nothing to undo.
fn significant(data: &[u8]) -> Result<Cow<'_, [u8]>, DataUrlFault> {
    if !data
        .iter()
        .any(|byte| *byte == b'%' || byte.is_ascii_whitespace())
    {
        return Ok(Cow::Borrowed(data));
    }
    let mut text = Vec::with_capacity(data.len());
    let mut rest = data;
    while let [first, tail @ ..] = rest {
        let byte = match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                hex(*high)? << 4 | hex(*low)?
            }
            (b'%', _) => return Err(DataUrlFault::Percent),
            _ => {
                rest = tail;
                *first
            }
        };
        if !byte.is_ascii_whitespace() {
            text.push(byte);
        }
    }
    Ok(Cow::Owned(text))
}

fn hex(digit: u8) -> Result<u8, DataUrlFault> {
    let value = char::from(digit)
        .to_digit(16)
        .ok_or(DataUrlFault::Percent)?;
    Ok(value as u8)
}

/// How many bytes valid base64 `text` decodes to.
fn decoded_length(text: &[u8]) -> u64 {
    let padding = text
        .iter()
        .rev()
        .take_while(|byte| **byte == b'=')
        .count()
        .min(2);
    (text.len() - padding) as u64 * 3 / 4
}

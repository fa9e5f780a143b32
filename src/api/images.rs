//! How requests of several protocols carry images: checks that they share.

use super::problem::Failure;
use crate::service::Source;
use imgclass_fetch::{decode_base64 as decode, decode_data_url};

/// Checks that a request has at least one image and no more than `limit`.
///
/// # Errors
/// A [`Failure`] that says how many there are and what to do.
pub(super) fn check_count(images: usize, limit: usize) -> Result<(), Failure> {
    match images {
        0 => Err(Failure::invalid_request(
            "images: there are none; send at least one",
        )),
        n if n > limit => Err(Failure::invalid_request(format!(
            "images: {n} are over the limit of {limit} in one request; send several requests"
        ))),
        _ => Ok(()),
    }
}

/// Decodes an image from base64, or from a data URL, which many clients send in its place. Wrapped
/// lines, both alphabets and missing padding are read.
///
/// # Errors
/// A text for the client that says what is wrong.
pub(super) fn decode_base64(text: &str) -> Result<Source, String> {
    if text
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
    {
        // The request's body has been within its limit.
        let bytes = decode_data_url(text, u64::MAX);
        return bytes
            .map(Source::Bytes)
            .map_err(|error| error.public_message());
    }
    match decode(text.as_bytes()) {
        Ok(bytes) => Ok(Source::Bytes(bytes.into())),
        Err(error) => Err(format!("this is not base64: {error}")),
    }
}

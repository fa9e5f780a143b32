//! How requests of several protocols carry images: checks that they share.

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};

use super::problem::Failure;
use crate::service::Source;

/// The standard alphabet. Padding may be missing, as it is in the base64 of many clients.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

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

/// Decodes an image from base64.
///
/// # Errors
/// A text for the client that says what is wrong.
pub(super) fn decode_base64(text: &str) -> Result<Source, String> {
    match BASE64.decode(text) {
        Ok(bytes) => Ok(Source::Bytes(bytes.into())),
        Err(error) => Err(format!("this is not base64: {error}")),
    }
}

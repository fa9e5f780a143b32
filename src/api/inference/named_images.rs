//! Reads the images of a request to TensorFlow Serving's or KServe's `predict`, in each form that
//! those protocols document.
//!
//! An image is `{"b64": "..."}`, `{"url": "..."}`, or a text that is a URL or base64. It may stand
//! under the name of an input, as in `{"image_bytes": {"b64": "..."}}`. A list has one image for
//! each element. In column format the name may also stand around the list:
//! `{"image_bytes": [{"b64": "..."}]}`.
//!
//! Images are decoded as they are read. What is neither of these forms is refused at its first byte,
//! so nothing is ever kept that will not be used.

use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::protocol::text_source;
use crate::api::images::decode_base64;
use crate::api::json::MAX_IMAGES;
use crate::api::problem::clip;
use crate::service::Source;

/// The names of the model's only input.
const INPUTS: [&str; 2] = ["image_bytes", "input"];

/// The keys that an image may have.
const KEYS: [&str; 4] = ["b64", "url", "image_bytes", "input"];

/// The images of a request, at most [`MAX_IMAGES`].
#[derive(Debug)]
pub(super) struct Images(pub(super) Vec<Source>);

impl<'de> Deserialize<'de> for Images {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ImagesVisitor { named: true })
    }
}

/// The images of a request in row format, which are always a list.
#[derive(Debug)]
pub(super) struct Rows(pub(super) Vec<Source>);

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let images = deserializer.deserialize_seq(ImagesVisitor { named: true })?;
        Ok(Self(images.0))
    }
}

/// Reads a list of images, or one image.
struct ImagesVisitor {
    /// Says that the images may stand under the name of an input.
    named: bool,
}

impl<'de> DeserializeSeed<'de> for ImagesVisitor {
    type Value = Images;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Images, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ImagesVisitor {
    type Value = Images;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of images, or `image_bytes` with one")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Images, E> {
        ImageVisitor { named: false }
            .visit_str(text)
            .map(|image| Images(vec![image]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Images, A::Error> {
        let mut images = Vec::new();
        while images.len() < MAX_IMAGES {
            match list.next_element_seed(ImageVisitor { named: self.named })? {
                Some(image) => images.push(image),
                None => return Ok(Images(images)),
            }
        }
        match list.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::custom(format!("more than {MAX_IMAGES} images"))),
            None => Ok(Images(images)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Images, A::Error> {
        let key = first_key(&mut map)?;
        let images = if self.named && INPUTS.contains(&key.as_str()) {
            map.next_value_seed(Self { named: false })?
        } else {
            Images(vec![image_under(&key, &mut map, false)?])
        };
        no_further_key(&mut map)?;
        Ok(images)
    }
}

/// Reads one image.
struct ImageVisitor {
    /// Says that the image may stand under the name of an input.
    named: bool,
}

impl<'de> DeserializeSeed<'de> for ImageVisitor {
    type Value = Source;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Source, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ImageVisitor {
    type Value = Source;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"b64\": \"...\"}, {\"url\": \"...\"} or a URL")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Source, E> {
        text_source(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Source, A::Error> {
        let key = first_key(&mut map)?;
        let image = image_under(&key, &mut map, self.named)?;
        no_further_key(&mut map)?;
        Ok(image)
    }
}

/// Reads the image that is the value of `key`.
fn image_under<'de, A: MapAccess<'de>>(
    key: &str,
    map: &mut A,
    named: bool,
) -> Result<Source, A::Error> {
    match key {
        "b64" => map.next_value_seed(Base64),
        "url" => map.next_value().map(Source::Url),
        name if named && INPUTS.contains(&name) => {
            map.next_value_seed(ImageVisitor { named: false })
        }
        other => Err(A::Error::unknown_field(&clip(other), &KEYS)),
    }
}

fn first_key<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    let missing = || A::Error::custom("expected `b64`, `url`, or the name of an input");
    map.next_key::<String>()?.ok_or_else(missing)
}

fn no_further_key<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    match map.next_key::<String>()? {
        None => Ok(()),
        Some(key) => Err(A::Error::custom(format!(
            "`{}` is one key too many: an image has one, `b64` or `url`",
            clip(key)
        ))),
    }
}

/// Decodes a text of base64.
struct Base64;

impl<'de> DeserializeSeed<'de> for Base64 {
    type Value = Source;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Source, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Base64 {
    type Value = Source;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Source, E> {
        decode_base64(text).map_err(E::custom)
    }
}

//! Reads and writes tensors as the Open Inference Protocol has them: numbers and texts in JSON, or
//! bytes behind it (the binary tensor data extension).

use bytes::Bytes;
use serde::de::{DeserializeSeed, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::protocol::text_source;
use crate::api::json::{self, JsonError, at_most};
use crate::api::problem::clip;
use crate::service::Source;

/// The most dimensions that a shape may have: two more than any tensor of ours has.
const MAX_DIMENSIONS: usize = 6;

/// A tensor of a request. Its elements are read once its shape is known to be right.
#[derive(Debug, Deserialize)]
pub(super) struct InputTensor<'a> {
    pub(super) name: String,
    pub(super) datatype: String,
    #[serde(deserialize_with = "at_most::<MAX_DIMENSIONS, _, _>")]
    pub(super) shape: Vec<usize>,
    parameters: Option<TensorParameters>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// What a request may say about a tensor, an input or an output. Other parameters are skipped.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TensorParameters {
    binary_data_size: Option<u64>,
    pub(super) binary_data: Option<bool>,
    pub(super) classification: Option<i64>,
    shared_memory_region: Option<IgnoredAny>,
}

impl TensorParameters {
    /// Refuses tensors that are in memory which the client shares with the server.
    ///
    /// # Errors
    /// A text for the client.
    pub(super) fn refuse_shared_memory(&self) -> Result<(), String> {
        match self.shared_memory_region {
            Some(_) => Err(
                "parameters.shared_memory_region: this server shares no memory with \
                            its clients; send and take tensors in the body"
                    .to_owned(),
            ),
            None => Ok(()),
        }
    }
}

/// What a tensor holds.
pub(super) enum Content {
    Numbers(Vec<f32>),
    /// Texts of JSON: base64 or URLs.
    Images(Vec<Source>),
    Binary(Bytes),
}

/// The kinds of elements that a tensor of a request may have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// FP32.
    Number,
    /// BYTES.
    Image,
}

impl InputTensor<'_> {
    /// Returns how many elements the shape has; `None` where the number overflows.
    pub(super) fn elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |n, dim| n.checked_mul(*dim))
    }

    /// Reads the elements, of which there are `count` of one kind. Binary ones are taken from the
    /// front of `rest`, which is what follows the JSON.
    ///
    /// # Errors
    /// A text for the client that says what is wrong.
    pub(super) fn content(
        &self,
        kind: Kind,
        count: usize,
        rest: &mut Bytes,
    ) -> Result<Content, String> {
        let name = clip(self.name.as_str());
        let parameters = self.parameters.as_ref();
        parameters
            .map_or(Ok(()), TensorParameters::refuse_shared_memory)
            .map_err(|reason| format!("inputs[0].{reason}"))?;
        match (parameters.and_then(|p| p.binary_data_size), self.data) {
            (None, Some(data)) => json_content(kind, count, data),
            (None, None) => Err(format!(
                "inputs[0]: {name} has neither `data` nor `binary_data_size`"
            )),
            (Some(_), Some(_)) => Err(format!(
                "inputs[0]: {name} has both `data` and `binary_data_size`"
            )),
            (Some(size), None) => {
                let size = usize::try_from(size).ok();
                match size.filter(|size| *size <= rest.len()) {
                    Some(size) => Ok(Content::Binary(rest.split_to(size))),
                    None => Err(format!(
                        "inputs[0].parameters.binary_data_size: it is not what follows the JSON, which is {} bytes",
                        rest.len()
                    )),
                }
            }
        }
    }
}

/// Reads the elements of a tensor in JSON, in row-major order; the JSON may be flat or nested.
fn json_content(kind: Kind, count: usize, data: &RawValue) -> Result<Content, String> {
    let mut content = match kind {
        // The caller has compared the shape with its limits.
        Kind::Number => Content::Numbers(Vec::with_capacity(count)),
        Kind::Image => Content::Images(Vec::new()),
    };
    let push = Push {
        content: &mut content,
        count,
    };
    json::read_value(data.get().as_bytes(), push, "inputs[0].data")
        .map_err(JsonError::into_detail)?;
    let found = content.len();
    if found < count {
        return Err(format!(
            "inputs[0].data: the tensor has {found} elements, and its shape has {count}"
        ));
    }
    Ok(content)
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.len(),
            Self::Images(images) => images.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// Adds one JSON value to the content of a tensor: itself, or all those of an array. An element
/// beyond `count` is an error.
struct Push<'a> {
    content: &'a mut Content,
    count: usize,
}

impl Push<'_> {
    fn number<E: serde::de::Error>(self, x: f64) -> Result<(), E> {
        match self.content {
            _ if self.content.len() >= self.count => Err(E::custom(self.too_many())),
            Content::Numbers(numbers) => {
                numbers.push(x as f32);
                Ok(())
            }
            _ => Err(E::custom("a BYTES tensor in JSON holds texts, not numbers")),
        }
    }

    fn too_many(&self) -> String {
        format!(
            "the tensor has more elements than its shape, which has {}",
            self.count
        )
    }
}

impl<'de> DeserializeSeed<'de> for Push<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Push<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.content {
            Content::Numbers(_) => "numbers, or arrays of them",
            _ => "texts, or arrays of them",
        })
    }

    fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<(), E> {
        self.number(x)
    }

    fn visit_u64<E: serde::de::Error>(self, x: u64) -> Result<(), E> {
        self.number(x as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, x: i64) -> Result<(), E> {
        self.number(x as f64)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        match self.content {
            _ if self.content.len() >= self.count => Err(E::custom(self.too_many())),
            Content::Images(images) => {
                images.push(text_source(text).map_err(E::custom)?);
                Ok(())
            }
            _ => Err(E::custom("an FP32 tensor holds numbers, not texts")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let Self { content, count } = self;
        loop {
            let content = &mut *content;
            if array.next_element_seed(Push { content, count })?.is_none() {
                return Ok(());
            }
        }
    }
}

/// Reads little-endian single-precision numbers.
pub(super) fn numbers(bytes: &[u8]) -> Result<Vec<f32>, String> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    match rest {
        [] => Ok(numbers.iter().map(|x| f32::from_le_bytes(*x)).collect()),
        _ => Err(format!("{} bytes are no whole number of FP32", bytes.len())),
    }
}

/// Reads byte strings, each of which stands behind its length as a little-endian 32-bit number. Stops
/// at the first one beyond `limit`, which it returns too.
pub(super) fn byte_strings(mut bytes: Bytes, limit: usize) -> Result<Vec<Bytes>, String> {
    let mut strings = Vec::new();
    while !bytes.is_empty() && strings.len() <= limit {
        let cut_off = || format!("BYTES element {} is cut off", strings.len());
        let (length, _) = bytes.split_first_chunk::<4>().ok_or_else(cut_off)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > bytes.len() - 4 {
            return Err(cut_off());
        }
        bytes = bytes.slice(4..);
        strings.push(bytes.split_to(length));
    }
    Ok(strings)
}

/// A tensor of an answer.
#[derive(Debug, Serialize)]
pub(super) struct OutputTensor {
    name: String,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Flat>,
}

#[derive(Debug, Serialize)]
struct Size {
    binary_data_size: usize,
}

/// A tensor's elements in row-major order.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Flat {
    /// FP32.
    Numbers(Vec<f32>),
    /// BYTES.
    Texts(Vec<String>),
}

impl OutputTensor {
    /// Makes a tensor in JSON; or a binary one, whose bytes are added to `tail`, where `tail` is
    /// given.
    pub(super) fn new(
        name: String,
        shape: Vec<usize>,
        elements: Flat,
        tail: Option<&mut Vec<u8>>,
    ) -> Self {
        let datatype = match elements {
            Flat::Numbers(_) => "FP32",
            Flat::Texts(_) => "BYTES",
        };
        let (parameters, data) = match tail {
            None => (None, Some(elements)),
            Some(tail) => {
                let before = tail.len();
                elements.append_to(tail);
                let size = Size {
                    binary_data_size: tail.len() - before,
                };
                (Some(size), None)
            }
        };
        Self {
            name,
            datatype,
            shape,
            parameters,
            data,
        }
    }
}

impl Flat {
    fn append_to(&self, tail: &mut Vec<u8>) {
        match self {
            Self::Numbers(numbers) => tail.extend(numbers.iter().flat_map(|x| x.to_le_bytes())),
            Self::Texts(texts) => {
                for text in texts {
                    // A label is far below 4 GiB.
                    tail.extend((text.len() as u32).to_le_bytes());
                    tail.extend(text.as_bytes());
                }
            }
        }
    }
}

//! Reads and writes tensors as the Open Inference Protocol has them: numbers and texts in JSON, or
//! bytes behind it (the binary tensor data extension).

use bytes::Bytes;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The elements of a tensor in JSON, in row-major order; the JSON may be flat or nested.
///
/// They are read without a tree of JSON values, which would take sixteen times the memory of a body
/// of numbers.
#[derive(Debug, Default)]
pub(super) struct Elements {
    pub(super) numbers: Vec<f32>,
    pub(super) texts: Vec<String>,
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut elements = Self::default();
        Push(&mut elements).deserialize(deserializer)?;
        Ok(elements)
    }
}

/// Adds one JSON value to the elements: itself, or all those of an array.
struct Push<'a>(&'a mut Elements);

impl<'de> DeserializeSeed<'de> for Push<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Push<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("numbers, texts, or arrays of them")
    }

    fn visit_f64<E>(self, x: f64) -> Result<(), E> {
        self.0.numbers.push(x as f32);
        Ok(())
    }

    fn visit_u64<E>(self, x: u64) -> Result<(), E> {
        self.0.numbers.push(x as f32);
        Ok(())
    }

    fn visit_i64<E>(self, x: i64) -> Result<(), E> {
        self.0.numbers.push(x as f32);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.texts.push(text.to_owned());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while array.next_element_seed(Push(&mut *self.0))?.is_some() {}
        if !self.0.numbers.is_empty() && !self.0.texts.is_empty() {
            return Err(A::Error::custom("numbers and texts are mixed"));
        }
        Ok(())
    }
}

/// A tensor of a request.
#[derive(Debug, Deserialize)]
pub(super) struct InputTensor {
    pub(super) name: String,
    pub(super) datatype: String,
    pub(super) shape: Vec<usize>,
    #[serde(default)]
    pub(super) parameters: Map<String, Value>,
    pub(super) data: Option<Elements>,
}

/// What a tensor holds.
pub(super) enum Content {
    Json(Elements),
    Binary(Bytes),
}

impl InputTensor {
    /// Returns how many elements the shape has; `None` where the number overflows.
    pub(super) fn elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |n, dim| n.checked_mul(*dim))
    }

    /// Takes the elements out. Binary ones are taken from the front of `rest`, which is what
    /// follows the JSON.
    ///
    /// # Errors
    /// A text for the client that says what is wrong.
    pub(super) fn take_content(&mut self, rest: &mut Bytes) -> Result<Content, String> {
        let name = &self.name;
        match (self.parameters.get("binary_data_size"), self.data.take()) {
            (None, Some(elements)) => Ok(Content::Json(elements)),
            (None, None) => Err(format!(
                "input {name} has neither `data` nor `binary_data_size`"
            )),
            (Some(_), Some(_)) => Err(format!(
                "input {name} has both `data` and `binary_data_size`"
            )),
            (Some(size), None) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                match size.filter(|size| *size <= rest.len()) {
                    Some(size) => Ok(Content::Binary(rest.split_to(size))),
                    None => Err(format!(
                        "input {name}: its `binary_data_size` is not what follows the JSON, which is {} bytes",
                        rest.len()
                    )),
                }
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

/// Reads byte strings, each of which stands behind its length as a little-endian 32-bit number.
pub(super) fn byte_strings(mut bytes: Bytes) -> Result<Vec<Bytes>, String> {
    let mut strings = Vec::new();
    while !bytes.is_empty() {
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

//! Reads JSON straight into the types of a request, within limits.
//!
//! There is no tree of JSON values in between: it would take 70 times the memory of a body of small
//! objects. What a request does not name is skipped without being kept. Lists have the limits that
//! follow from the interface, and an error names the field that it is about.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::de::{IgnoredAny, Unexpected};

use super::problem::{Failure, clip};

pub(super) use crate::config::MAX_IMAGES_PER_REQUEST as MAX_IMAGES;

/// The longest text that comes back in the answer, in bytes: a user's or a request's id.
const MAX_ID: usize = 64 * 1024;

/// The byte order mark that some editors and libraries put before UTF-8. RFC 8259 lets a parser
/// skip it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Says why a text is not the JSON of a request.
#[derive(Debug)]
pub(super) enum JsonError {
    /// The text is not JSON.
    Malformed(String),
    /// The text is JSON, but not what is asked for.
    Invalid(String),
}

impl JsonError {
    /// Returns what is wrong and in which field.
    pub(super) fn into_detail(self) -> String {
        match self {
            Self::Malformed(detail) | Self::Invalid(detail) => detail,
        }
    }

    fn new(path: &str, error: &serde_json::Error) -> Self {
        if !error.is_data() {
            return Self::Malformed(error.to_string());
        }
        let text = error.to_string();
        // The position helps nobody whose JSON was written by a program; the field does.
        let reason = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(text, _)| text);
        Self::Invalid(match path {
            "." | "" => reason.to_owned(),
            field => format!("{}: {reason}", clip(field)),
        })
    }
}

impl From<JsonError> for Failure {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Malformed(detail) => Self::malformed_json(detail),
            JsonError::Invalid(detail) => Self::invalid_request(detail),
        }
    }
}

/// Reads a JSON object.
///
/// # Errors
/// A [`JsonError`] where the bytes are not JSON, not an object (`expected` says of what), or where a
/// field is wrong.
pub(super) fn read_object<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    expected: &str,
) -> Result<T, JsonError> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        return read_value(bytes, PhantomData, "");
    }
    // serde would take an array for an object, its elements for the fields in their order.
    read_value(bytes, PhantomData::<IgnoredAny>, "")?;
    Err(JsonError::Invalid(format!("expected {expected}")))
}

/// Reads any JSON value by `seed`. Errors name their field as if it stood in the field `within`.
pub(super) fn read_value<'de, S: DeserializeSeed<'de>>(
    bytes: &'de [u8],
    seed: S,
    within: &str,
) -> Result<S::Value, JsonError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = seed.deserialize(tracked).map_err(|error| {
        let path = track.path().to_string();
        let path = match path.as_str() {
            "." => within.to_owned(),
            path if within.is_empty() || path.starts_with('[') => format!("{within}{path}"),
            path => format!("{within}.{path}"),
        };
        JsonError::new(&path, &error)
    })?;
    json.end().map_err(|error| JsonError::new("", &error))?;
    Ok(value)
}

/// Reads a list of at most `N` elements. An element too many is an error before it is kept.
pub(super) fn at_most<'de, const N: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct List<const N: usize, T>(PhantomData<T>);

    impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for List<N, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while elements.len() < N {
                match list.next_element()? {
                    Some(element) => elements.push(element),
                    None => return Ok(elements),
                }
            }
            match list.next_element::<IgnoredAny>()? {
                Some(_) => Err(A::Error::custom(format!("more than {N} elements"))),
                None => Ok(elements),
            }
        }
    }

    deserializer.deserialize_seq(List::<N, T>(PhantomData))
}

/// Reads a list of at most `N` elements, or `null`, which stands for an empty one.
pub(super) fn at_most_or_null<'de, const N: usize, T, D>(
    deserializer: D,
) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Bounded<const N: usize, T>(Vec<T>);

    impl<'de, const N: usize, T: Deserialize<'de>> Deserialize<'de> for Bounded<N, T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            at_most::<N, T, D>(deserializer).map(Self)
        }
    }

    let list = Option::<Bounded<N, T>>::deserialize(deserializer)?;
    Ok(list.map_or_else(Vec::new, |list| list.0))
}

/// Reads a text that comes back in the answer.
pub(super) fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    if id.len() > MAX_ID {
        let (length, expected) = (id.len(), format!("at most {MAX_ID} bytes"));
        return Err(D::Error::invalid_value(
            Unexpected::Other(&format!("a text of {length} bytes")),
            &&*expected,
        ));
    }
    Ok(id)
}

/// Reads a text as [`id`] does, or `null`.
pub(super) fn id_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    struct Id(String);

    impl<'de> Deserialize<'de> for Id {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            id(deserializer).map(Self)
        }
    }

    Ok(Option::<Id>::deserialize(deserializer)?.map(|id| id.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Body {
        #[serde(deserialize_with = "id")]
        name: String,
        #[serde(default, deserialize_with = "at_most::<2, _, _>")]
        list: Vec<u8>,
    }

    #[test]
    fn a_body_is_read_or_the_error_says_which_field_is_wrong() {
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(MAX_ID + 1));
        let cases: [(&str, &str); 13] = [
            (r#"{"name":"n","list":[1,2],"more":[[{}]]}"#, "n [1, 2]"),
            ("\u{feff}{\"name\":\"n\"}", "n []"),
            (
                "\u{feff}\u{feff}{\"name\":\"n\"}",
                "malformed: expected value at line 1 column 1",
            ),
            (" \n{\"name\":\"n\"}\n", "n []"),
            (
                r#"{"name":"n"} x"#,
                "malformed: trailing characters at line 1 column 14",
            ),
            (r#"{"name":"n","name":"m"}"#, "duplicate field `name`"),
            (r#"{"list":[]}"#, "missing field `name`"),
            (
                r#"{"name":"n","list":[1,2,3]}"#,
                "list: more than 2 elements",
            ),
            (
                r#"{"name":"n","list":[1,300]}"#,
                "list[1]: invalid value: integer `300`, expected u8",
            ),
            (
                r#"{"name":"n","list":{}}"#,
                "list: invalid type: map, expected a list",
            ),
            (r#"["n",[1]]"#, "expected a JSON object"),
            (
                "",
                "malformed: EOF while parsing a value at line 1 column 0",
            ),
            (
                &long,
                "name: invalid value: a text of 65537 bytes, expected at most 65536 bytes",
            ),
        ];
        for (text, expected) in cases {
            let found = match read_object::<Body>(text.as_bytes(), "a JSON object") {
                Ok(body) => format!("{} {:?}", body.name, body.list),
                Err(JsonError::Malformed(detail)) => format!("malformed: {detail}"),
                Err(JsonError::Invalid(detail)) => detail,
            };
            assert_eq!(found, expected, "{}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn nesting_that_nobody_asked_for_is_skipped_and_nesting_that_is_read_has_a_limit() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let skipped = format!("{{\"name\":\"n\",\"more\":{}}}", nested(100_000));
        assert!(read_object::<Body>(skipped.as_bytes(), "").is_ok());
        let read = format!("{{\"name\":{}}}", nested(100_000));
        assert!(read_object::<Body>(read.as_bytes(), "").is_err());
    }
}

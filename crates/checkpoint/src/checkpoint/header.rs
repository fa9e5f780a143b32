//! Checks the header of a safetensors file before and after the safetensors crate reads it. The
//! crate accepts headers of 100 MB, and of two tensors of one name it keeps the last.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The largest header that is read, in bytes. That of a ResNet-152 has 0.1 MB; a header in memory
/// takes some ten times its size.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Checks that the header is of a size that a network of ours can have.
pub(crate) fn check_length(file: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("it has only {} bytes", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        return Err(format!(
            "its header should have {length} bytes, but {} follow",
            rest.len()
        ));
    }
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "its header has {length} bytes; that of a ResNet has less than {MAX_HEADER_BYTES}"
        ));
    }
    Ok(())
}

/// Returns a tensor's name that the header of a well-formed safetensors file holds more than once.
pub(crate) fn find_repeated_name(file: &[u8]) -> Option<String> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let mut json = serde_json::Deserializer::from_slice(rest.get(..length)?);
    let mut repeated = None;
    // The only error is our own: the header has been parsed before.
    let _ = json.deserialize_map(Names(&mut repeated));
    repeated
}

/// Reads the keys of a map and stops at the first one that it has seen before.
struct Names<'a>(&'a mut Option<String>);

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a safetensors header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if seen.contains(&name) {
                *self.0 = Some(name);
                return Err(A::Error::custom("twice"));
            }
            map.next_value::<IgnoredAny>()?;
            seen.insert(name);
        }
        Ok(())
    }
}

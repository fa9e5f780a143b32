//! Writes what a command prints at its end, to standard output or to a file.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use super::Failure;

/// Writes `text` to standard output.
///
/// A closed pipe is not an error: `imgclass ... | head` has read all that it wants.
pub(super) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes `bytes` to a file, which is replaced if it exists.
///
/// # Errors
///
/// Returns the name of the file and the reason.
pub(super) fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()).into())
}

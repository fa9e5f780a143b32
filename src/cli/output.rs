//! Writes what a command prints at its end, to standard output or to a file.

use std::borrow::Cow;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use super::Failure;
pub(super) use imgclass_checkpoint::printable;

/// The characters with which spreadsheets begin a formula.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Returns a text for a cell of CSV, which no spreadsheet takes for a formula: where it would, an
/// apostrophe stands before it. [`unguard_cell`] removes it.
pub(super) fn guard_cell(text: &str) -> Cow<'_, str> {
    if begins_formula(text) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Returns the text that [`guard_cell`] was given.
pub(super) fn unguard_cell(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(text) if begins_formula(text) => text,
        _ => cell,
    }
}

/// Returns whether a text begins a formula, with or without apostrophes before it. A sign alone is
/// none; `-` is the name of standard input.
fn begins_formula(text: &str) -> bool {
    let text = text.trim_start_matches('\'');
    text.starts_with(FORMULA) && text.len() > 1
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_begins_a_formula_and_every_text_comes_back() {
        for (text, cell) in [
            ("cat", "cat"),
            ("", ""),
            ("'cat", "'cat"),
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("-1", "'-1"),
            ("+a", "'+a"),
            ("@a", "'@a"),
            ("\ta", "'\ta"),
            ("'=a", "''=a"),
            ("a=b", "a=b"),
            ("-", "-"),
            ("'-", "'-"),
        ] {
            assert_eq!(guard_cell(text), cell);
            assert_eq!(unguard_cell(&guard_cell(text)), text);
        }
    }
}

//! Writes what a command prints at its end, to standard output or to a file.

use std::borrow::Cow;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use tempfile::NamedTempFile;

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

/// Returns JSON that says the same, without a character that steers a terminal. JSON itself escapes
/// only those below the space.
pub(super) fn printable_json(json: String) -> String {
    let is_text = |c: char| matches!(c, '\n' | '\t' | '\r');
    if json
        .split(is_text)
        .all(|line| matches!(printable(line), Cow::Borrowed(_)))
    {
        return json;
    }
    let mut shown = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        // Outside of texts there are none, and all of them have four digits.
        if is_text(c) || matches!(printable(c.encode_utf8(&mut [0; 4])), Cow::Borrowed(_)) {
            shown.push(c);
        } else {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    shown
}

/// Returns a text of several lines in which nothing but the lines' ends steers a terminal.
pub(super) fn printable_lines(text: &str) -> String {
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(printable).collect();
    lines.join("\n")
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

/// Writes `bytes` to a file, which is replaced if it exists. Where it cannot be written whole, because
/// the disk is full for example, there is no new file, and an old one stays as it was.
///
/// # Errors
///
/// Returns the name of the file and the reason.
pub(super) fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let replaced = replace(path, bytes.as_ref());
    replaced.map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Writes a file beside the one at `path`, and moves it there. What is no regular file, such as a pipe,
/// is written to.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return fs::write(path, bytes);
    }
    // A link stays a link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut new = match new_file(folder) {
        // A file may be writable in a folder that is not.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && old.is_some() => {
            return fs::write(path, bytes);
        }
        new => new?,
    };
    new.write_all(bytes)?;
    new.flush()?;
    if let Some(old) = old {
        new.as_file().set_permissions(old.permissions())?;
    }
    new.persist(path)?;
    Ok(())
}

/// Makes a file that is removed unless it is moved. Others may read it as the process's mask has it.
fn new_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".imgclass-").tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_links_and_devices_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for bytes in ["new", "replaced"] {
            write_file(&path, bytes).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), bytes);
        }
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            write_file(&link, "through the link").unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&path).unwrap(), "through the link");
            write_file(Path::new("/dev/null"), "nothing").unwrap();
            assert!(!fs::metadata("/dev/null").unwrap().is_file());
        }
        assert!(write_file(&folder.path().join("no/such"), "x").is_err());
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, if cfg!(unix) { 2 } else { 1 }, "nothing else is left");
    }

    #[test]
    fn json_and_pages_have_nothing_that_steers_a_terminal_and_json_stays_the_same() {
        for text in [
            "plain",
            "a\u{1b}[31m\u{9b}b\u{202e}\n\u{7f}\t\"\\",
            "\u{2028}größer 猫",
        ] {
            let json = serde_json::to_string_pretty(&[text]).unwrap();
            let shown = printable_json(json);
            let lines = || shown.split('\n');
            assert!(lines().all(|line| printable(line) == line), "{shown:?}");
            assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
        }
        assert_eq!(printable_lines("<p>\n\u{1b}x\n"), "<p>\n\\u{1b}x\n");
    }

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

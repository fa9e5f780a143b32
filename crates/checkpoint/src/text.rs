//! Makes texts of strangers fit for a terminal: names of tensors and labels can hold anything.

use std::borrow::Cow;

/// The longest name that an error shows, in characters.
const MAX_SHOWN: usize = 120;

/// Returns a text in which nothing steers a terminal: control characters, which begin escape
/// sequences and new lines, and the characters that change the direction of writing are replaced by
/// their escapes, such as `\u{1b}`.
///
/// ```
/// assert_eq!(imgclass_checkpoint::printable("a\u{1b}[31mred"), "a\\u{1b}[31mred");
/// assert_eq!(imgclass_checkpoint::printable("größer 猫"), "größer 猫");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_debug());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Returns the beginning of a stranger's name for a message.
pub(crate) fn shown(name: &str) -> String {
    match name.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", printable(&name[..end])),
        None => printable(name).into_owned(),
    }
}

/// Returns whether a terminal obeys a character instead of showing it.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

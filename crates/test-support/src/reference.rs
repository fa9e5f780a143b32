//! The reference data that may lie beside the checkout.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Returns a file of the reference data. Where there is none it says loudly that `test` is skipped.
pub fn shared(file: &str, test: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared")
        .join(file);
    if path.exists() {
        return Some(path);
    }
    // Not by a macro: what those print is shown for failing tests only.
    let skipped = format!(
        "\n*** SKIPPED: {test}: the reference data {} is not there ***\n",
        path.display()
    );
    let _ = std::io::stderr().write_all(skipped.as_bytes());
    None
}

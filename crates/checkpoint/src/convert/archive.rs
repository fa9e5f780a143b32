//! Reads members of the zip archives that PyTorch and Keras write.

use std::io::{Cursor, Read};

use zip::ZipArchive;

/// Returns the names of the members.
pub(super) fn list_members(bytes: &[u8]) -> Result<Vec<String>, String> {
    let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let names = archive.file_names();
    let names = names.map(|name| {
        name.map(|name| name.into_owned())
            .map_err(|e| e.to_string())
    });
    names.collect()
}

/// Reads a whole member. Nothing is decompressed: PyTorch and Keras only store.
pub(super) fn read_member(bytes: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let entry = archive
        .by_name(name)
        .map_err(|e| format!("its member {name} cannot be read: {e}"))?;
    let mut content = Vec::new();
    entry
        .take(bytes.len() as u64)
        .read_to_end(&mut content)
        .map_err(|e| format!("its member {name} is damaged: {e}"))?;
    Ok(content)
}

//! Reads the zip archives that PyTorch and Keras write: their directory, and members as slices of
//! the file.
//!
//! Both programs only store, so nothing has to be decompressed, and a reader of the directory alone
//! is enough. It holds archives to what those programs write: each member is in one piece, stored,
//! with a name of its own, and no two members share bytes. So what is read of a file never has more
//! bytes than the file. The `zip` crate (9.8) promises none of this, and it finds no directory in
//! PyTorch's archives whose inner name has 21 characters, such as `best_model_checkpoint`.

use std::collections::HashMap;

/// The most members that are listed. A ResNet-152 with its optimizer's state has some 2,800.
const MAX_MEMBERS: u64 = 100_000;

/// The signatures of the records, and the sizes of their fixed parts in bytes.
const END: ([u8; 4], usize) = (*b"PK\x05\x06", 22);
const END_64: ([u8; 4], usize) = (*b"PK\x06\x06", 56);
const LOCATOR_64: ([u8; 4], usize) = (*b"PK\x06\x07", 20);
const ENTRY: ([u8; 4], usize) = (*b"PK\x01\x02", 46);
const LOCAL: ([u8; 4], usize) = (*b"PK\x03\x04", 30);

/// The extra field that holds sizes and places of more than 32 bits.
const WIDE_FIELD: u16 = 1;

/// The longest comment at the end of an archive, in bytes.
const MAX_COMMENT: usize = 0xffff;

/// A zip archive in memory, whose directory has been read and checked.
pub(super) struct Archive<'a> {
    members: HashMap<String, &'a [u8]>,
}

/// Where a member is, as the directory says.
struct Entry {
    name: String,
    /// The place of the member's own header.
    header: usize,
    size: usize,
}

impl<'a> Archive<'a> {
    /// Reads the directory and finds every member.
    pub(super) fn read(file: &'a [u8]) -> Result<Self, String> {
        let damaged = || "its zip directory is damaged: copy or download it again".to_owned();
        let mut spans = Vec::new();
        let mut members = HashMap::new();
        for entry in read_directory(file).ok_or_else(damaged)? {
            let Entry { name, header, size } = entry?;
            let start = find_content(file, header).ok_or_else(damaged)?;
            let end = start.checked_add(size).ok_or_else(damaged)?;
            let content = file.get(start..end).ok_or_else(damaged)?;
            spans.push((header, end, name.clone()));
            if members.insert(name.clone(), content).is_some() {
                return Err(format!("its member {name:?} is there twice"));
            }
        }
        spans.sort();
        match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => Err(format!(
                "its members {:?} and {:?} overlap, which no program writes",
                pair[0].2, pair[1].2
            )),
            None => Ok(Self { members }),
        }
    }

    /// Returns an archive of these members.
    #[cfg(fuzzing)]
    pub(super) fn of(members: impl IntoIterator<Item = (String, &'a [u8])>) -> Self {
        Self {
            members: members.into_iter().collect(),
        }
    }

    /// Returns the content of a member, if there is one of this name.
    pub(super) fn find(&self, name: &str) -> Option<&'a [u8]> {
        self.members.get(name).copied()
    }

    /// Returns the content of a member.
    pub(super) fn member(&self, name: &str) -> Result<&'a [u8], String> {
        let missing = || format!("its member {name:?} is missing");
        self.find(name).ok_or_else(missing)
    }

    /// Returns the names of the members, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }
}

/// Returns the entries of the directory; `None` if there is none, or if it is cut off.
fn read_directory(file: &[u8]) -> Option<Vec<Result<Entry, String>>> {
    let (mut at, count) = find_directory(file)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let fixed = record(file, at, ENTRY)?;
        let name_length = usize::from(u16_at(fixed, 28));
        let extra_length = usize::from(u16_at(fixed, 30));
        let comment_length = usize::from(u16_at(fixed, 32));
        let name_start = at + ENTRY.1;
        let extra_start = name_start + name_length;
        let name = file.get(name_start..extra_start)?;
        let extra = file.get(extra_start..extra_start + extra_length)?;
        entries.push(read_entry(fixed, name, extra));
        at = extra_start + extra_length + comment_length;
    }
    Some(entries)
}

/// Returns where the directory starts, and how many entries it has.
fn find_directory(file: &[u8]) -> Option<(usize, u64)> {
    let first = file.len().checked_sub(END.1)?;
    let last = first.saturating_sub(MAX_COMMENT);
    let (end, fixed) = (last..=first)
        .rev()
        .find_map(|at| Some((at, record(file, at, END)?)))?;
    let (mut count, mut start) = (u64::from(u16_at(fixed, 10)), u64::from(u32_at(fixed, 16)));
    // Archives that need wider numbers have a second record, and a third that says where it is.
    let locator = end.checked_sub(LOCATOR_64.1);
    if let Some(locator) = locator.and_then(|at| record(file, at, LOCATOR_64)) {
        let wide = record(file, usize::try_from(u64_at(locator, 8)).ok()?, END_64)?;
        (count, start) = (u64_at(wide, 32), u64_at(wide, 48));
    }
    let start = usize::try_from(start).ok()?;
    (count <= MAX_MEMBERS && start <= file.len()).then_some((start, count))
}

/// Reads one entry of the directory.
fn read_entry(fixed: &[u8], name: &[u8], extra: &[u8]) -> Result<Entry, String> {
    let name = String::from_utf8_lossy(name).into_owned();
    let (flags, method) = (u16_at(fixed, 8), u16_at(fixed, 10));
    if method != 0 || flags & 1 != 0 {
        return Err(format!(
            "its member {name:?} is compressed or encrypted: neither PyTorch nor Keras does that, so \
             unpack it and save the weights again"
        ));
    }
    let mut numbers = [
        u64::from(u32_at(fixed, 24)),
        u64::from(u32_at(fixed, 20)),
        u64::from(u32_at(fixed, 42)),
    ];
    // A field of 32 ones stands for a number in the extra field, in this order.
    let mut wide = find_wide_field(extra).unwrap_or_default();
    for number in &mut numbers {
        if *number == u64::from(u32::MAX)
            && let Some((first, rest)) = wide.split_first_chunk::<8>()
        {
            *number = u64::from_le_bytes(*first);
            wide = rest;
        }
    }
    let [size, stored, header] = numbers;
    if size != stored {
        return Err(format!(
            "its member {name:?} is stored in {stored} bytes but should have {size}"
        ));
    }
    let fits = |number: u64| {
        usize::try_from(number)
            .map_err(|_| format!("its member {name:?} is at byte {number} or as large"))
    };
    let (header, size) = (fits(header)?, fits(size)?);
    Ok(Entry { name, header, size })
}

/// Returns the content of the extra field of wide numbers.
fn find_wide_field(mut extra: &[u8]) -> Option<&[u8]> {
    while extra.len() >= 4 {
        let (kind, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let content = extra.get(4..4 + length)?;
        if kind == WIDE_FIELD {
            return Some(content);
        }
        extra = &extra[4 + length..];
    }
    None
}

/// Returns where the content of a member starts: behind its own header, whose name and extra field
/// have lengths of their own.
fn find_content(file: &[u8], header: usize) -> Option<usize> {
    let fixed = record(file, header, LOCAL)?;
    let variable = usize::from(u16_at(fixed, 26)) + usize::from(u16_at(fixed, 28));
    header.checked_add(LOCAL.1)?.checked_add(variable)
}

/// Returns the fixed part of the record at a place, if it has the signature.
fn record(file: &[u8], at: usize, (signature, size): ([u8; 4], usize)) -> Option<&[u8]> {
    let fixed = file.get(at..at.checked_add(size)?)?;
    fixed.starts_with(&signature).then_some(fixed)
}

/// Returns a little-endian number. The place must be within the bytes, as it is in fixed parts.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

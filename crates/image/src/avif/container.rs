//! Finds the picture in the container of an AVIF file: one coded item, a grid of them, or the first
//! frame of a sequence (ISO/IEC 14496-12 and 23008-12).
//!
//! Only what leads to the pixels is read. Thumbnails, depth and gain maps and colour profiles are
//! passed over. What a file may list is limited, so that a container of many megabytes costs little.

use std::collections::HashMap;

use crate::error::Refusal;
use crate::orientation::{self, Orientation};

use super::boxes::{BoxAt, Reader};

/// How samples stand for colours, by the numbers of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Colour {
    pub(super) primaries: u16,
    pub(super) matrix: u16,
    pub(super) is_full_range: bool,
}

impl Colour {
    /// The number that says nothing, of primaries and of matrices.
    pub(super) const UNSPECIFIED: u16 = 2;
}

/// Where the picture is in the file, and how to show it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) size: (u32, u32),
    /// Rows and columns of tiles; 1 by 1 for a picture in one piece.
    pub(super) grid: (u32, u32),
    /// Width and height of each tile.
    pub(super) tile_size: (u32, u32),
    /// The coded data of each tile, row by row.
    pub(super) tiles: Vec<Data>,
    pub(super) operating_point: u8,
    pub(super) layer: Option<u8>,
    /// What the container says of colours, over what the coded data says.
    pub(super) colour: Option<Colour>,
    pub(super) has_alpha: bool,
    pub(super) orientation: Orientation,
}

/// Coded data: parts of the file, one behind the other. All of them lie within the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Data {
    parts: Vec<(usize, usize)>,
}

impl Data {
    pub(super) fn length(&self) -> usize {
        self.parts.iter().map(|(start, end)| end - start).sum()
    }

    /// Returns the first `most` bytes, or all if there are fewer.
    pub(super) fn first(&self, file: &[u8], most: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.length().min(most));
        for &(start, end) in &self.parts {
            let end = end.min(start.saturating_add(most - data.len()));
            data.extend_from_slice(file.get(start..end).unwrap_or_default());
        }
        data
    }
}

/// Reads the container of a file.
pub(super) fn read(file: &[u8]) -> Result<Source, Refusal> {
    let mut budget = Budget::default();
    let (mut meta, mut movie) = (None, None);
    let mut is_sequence = None;
    let mut reader = Reader::new(file, 0, file.len());
    loop {
        let found = match reader.next_box() {
            Ok(Some(found)) => found,
            // Pixels may be missing at the end: that is found when they are read.
            Err(refusal) if refusal.is_cut_off() && (meta.is_some() || movie.is_some()) => break,
            Ok(None) => break,
            Err(refusal) => return Err(refusal),
        };
        match &found.name {
            b"ftyp" if is_sequence.is_none() => {
                is_sequence = Some(match &found.reader(file).array()? {
                    b"avis" => Some(true),
                    b"avif" => Some(false),
                    _ => None,
                });
            }
            b"meta" if meta.is_none() => meta = Some(found),
            b"moov" if movie.is_none() => movie = Some(found),
            _ => {}
        }
    }
    match (is_sequence.flatten(), meta, movie) {
        (Some(true) | None, _, Some(movie)) => read_movie(file, movie, &mut budget),
        (Some(false) | None, Some(meta), _) => read_items(file, meta, &mut budget),
        _ => Err(Refusal::cut_off()),
    }
}

/// The most entries of any kind that a container may list.
const MOST_ENTRIES: u32 = 1 << 18;

/// How many entries are left.
struct Budget(u32);

impl Default for Budget {
    fn default() -> Self {
        Self(MOST_ENTRIES)
    }
}

impl Budget {
    /// What an item counts, which takes more memory than a number in a list.
    const ITEM: u32 = 8;

    fn spend(&mut self, entries: u32) -> Result<(), Refusal> {
        self.0 = self.0.checked_sub(entries).ok_or_else(|| {
            Refusal::malformed(&format!(
                "its container lists more than {MOST_ENTRIES} properties and references"
            ))
        })?;
        Ok(())
    }
}

/// An item: coded data, a grid, or metadata.
#[derive(Debug, Default)]
struct Item {
    kind: [u8; 4],
    /// Whether a "mime" item is XMP.
    is_xmp: bool,
    is_in_meta: bool,
    /// Offsets and lengths.
    extents: Vec<(u64, u64)>,
    /// Numbers of properties, counted from 1, and whether a reader must know them.
    properties: Vec<(u16, bool)>,
}

/// A reference from an item to others, such as from a grid to its tiles.
#[derive(Debug)]
struct Reference {
    kind: [u8; 4],
    from: u32,
    to: Vec<u32>,
}

/// The items of a file.
struct Items<'a> {
    file: &'a [u8],
    primary: u32,
    items: HashMap<u32, Item>,
    properties: Vec<BoxAt>,
    references: Vec<Reference>,
    /// Where data lies that the meta box itself holds.
    own_data: Option<BoxAt>,
}

/// Reads the picture that the items of a meta box make.
fn read_items(file: &[u8], meta: BoxAt, budget: &mut Budget) -> Result<Source, Refusal> {
    let items = Items::read(file, meta, budget)?;
    let Some(primary) = items.items.get(&items.primary) else {
        return Err(Refusal::malformed("its container names no primary item"));
    };
    let size = items.size(primary)?;
    items.check_essential(primary)?;
    let (grid, tile_ids) = match &primary.kind {
        b"av01" => ((1, 1), vec![items.primary]),
        b"grid" => items.grid(primary, size)?,
        kind => {
            let name = kind.escape_ascii();
            return Err(Refusal::Unsupported(format!(
                "an AVIF image whose primary item is of type \"{name}\""
            )));
        }
    };
    let mut tiles = Vec::with_capacity(tile_ids.len());
    let mut tile_size = None;
    let mut first = primary;
    for id in &tile_ids {
        let Some(tile) = items.items.get(id).filter(|tile| &tile.kind == b"av01") else {
            return Err(Refusal::malformed(
                "its grid refers to an item that is no AV1 image",
            ));
        };
        items.check_essential(tile)?;
        let this_size = items.size(tile)?;
        if *tile_size.get_or_insert(this_size) != this_size {
            return Err(Refusal::malformed("the tiles of its grid differ in size"));
        }
        if tiles.is_empty() {
            first = tile;
        }
        tiles.push(items.data(tile)?);
    }
    let layer = items.property(first, b"lsel")?;
    let layer = layer.map(|mut layer| layer.u16()).transpose()?;
    let operating_point = items.property(first, b"a1op")?;
    Ok(Source {
        size,
        grid,
        tile_size: tile_size.unwrap_or(size),
        tiles,
        operating_point: operating_point.map_or(Ok(0), |mut point| point.u8())?,
        // 0xFFFF says that any layer will do.
        layer: layer.filter(|&layer| layer < 4).map(|layer| layer as u8),
        colour: colour(items.properties_of(primary))?,
        has_alpha: items.has_alpha(&tile_ids),
        orientation: items.orientation(primary)?,
    })
}

impl<'a> Items<'a> {
    fn read(file: &'a [u8], meta: BoxAt, budget: &mut Budget) -> Result<Self, Refusal> {
        let mut found = Self {
            file,
            primary: 0,
            items: HashMap::new(),
            properties: Vec::new(),
            references: Vec::new(),
            own_data: None,
        };
        let (mut reader, ..) = meta.full(file)?;
        let mut associations = Vec::new();
        while let Some(child) = reader.next_box()? {
            match &child.name {
                b"pitm" => {
                    let (mut reader, version, _) = child.full(file)?;
                    found.primary = reader.id(version > 0)?;
                }
                b"iinf" => found.read_kinds(child, budget)?,
                b"iloc" => found.read_locations(child, budget)?,
                b"iref" => found.read_references(child, budget)?,
                b"idat" => found.own_data = Some(child),
                b"iprp" => {
                    let mut reader = child.reader(file);
                    while let Some(child) = reader.next_box()? {
                        match &child.name {
                            b"ipco" => {
                                let mut reader = child.reader(file);
                                while let Some(property) = reader.next_box()? {
                                    budget.spend(2)?;
                                    found.properties.push(property);
                                }
                            }
                            b"ipma" => associations.push(child),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        for child in associations {
            found.read_associations(child, budget)?;
        }
        Ok(found)
    }

    fn item(&mut self, id: u32, budget: &mut Budget) -> Result<&mut Item, Refusal> {
        if !self.items.contains_key(&id) {
            budget.spend(Budget::ITEM)?;
        }
        Ok(self.items.entry(id).or_default())
    }

    fn read_kinds(&mut self, list: BoxAt, budget: &mut Budget) -> Result<(), Refusal> {
        let file = self.file;
        let (mut reader, version, _) = list.full(file)?;
        let _count = reader.id(version > 0)?;
        while let Some(entry) = reader.next_box()? {
            if &entry.name != b"infe" {
                continue;
            }
            let (mut reader, version, _) = entry.full(file)?;
            if !matches!(version, 2 | 3) {
                continue;
            }
            let id = reader.id(version == 3)?;
            let _protection = reader.u16()?;
            let kind = reader.array()?;
            // Behind the kind there are the name and, for "mime", the media type, as texts that end
            // with a zero.
            let media_type = reader.rest().split(|&byte| byte == 0).nth(1);
            let item = self.item(id, budget)?;
            item.kind = kind;
            item.is_xmp = &kind == b"mime" && media_type == Some(b"application/rdf+xml");
        }
        Ok(())
    }

    fn read_locations(&mut self, list: BoxAt, budget: &mut Budget) -> Result<(), Refusal> {
        let (mut reader, version, _) = list.full(self.file)?;
        let [lengths, base_and_index] = reader.array()?;
        let has_method = matches!(version, 1 | 2);
        let offset_size = usize::from(lengths >> 4);
        let length_size = usize::from(lengths & 15);
        let base_size = usize::from(base_and_index >> 4);
        let index_size = usize::from(if has_method { base_and_index & 15 } else { 0 });
        if version > 2
            || [offset_size, length_size, base_size, index_size]
                .iter()
                .any(|size| ![0, 4, 8].contains(size))
        {
            return Err(Refusal::malformed(
                "its list of locations has an unknown form",
            ));
        }
        for _ in 0..reader.id(version == 2)? {
            let id = reader.id(version == 2)?;
            let method = if has_method { reader.u16()? & 15 } else { 0 };
            if method > 1 {
                return Err(Refusal::Unsupported(
                    "an AVIF image whose items lie within other items".to_owned(),
                ));
            }
            let _data_reference = reader.u16()?;
            let base = reader.uint(base_size)?;
            let count = reader.u16()?;
            budget.spend(count.into())?;
            let item = self.item(id, budget)?;
            if !item.extents.is_empty() {
                return Err(Refusal::malformed("its container locates an item twice"));
            }
            item.is_in_meta = method == 1;
            for _ in 0..count {
                reader.skip(index_size)?;
                let offset = base.checked_add(reader.uint(offset_size)?);
                let offset = offset.ok_or_else(Refusal::cut_off)?;
                item.extents.push((offset, reader.uint(length_size)?));
            }
        }
        Ok(())
    }

    fn read_references(&mut self, list: BoxAt, budget: &mut Budget) -> Result<(), Refusal> {
        let (mut reader, version, _) = list.full(self.file)?;
        while let Some(entry) = reader.next_box()? {
            let mut reader = entry.reader(self.file);
            let from = reader.id(version > 0)?;
            let count = reader.u16()?;
            budget.spend(u32::from(count) + Budget::ITEM)?;
            let to = (0..count).map(|_| reader.id(version > 0));
            self.references.push(Reference {
                kind: entry.name,
                from,
                to: to.collect::<Result<_, _>>()?,
            });
        }
        Ok(())
    }

    fn read_associations(&mut self, list: BoxAt, budget: &mut Budget) -> Result<(), Refusal> {
        let (mut reader, version, flags) = list.full(self.file)?;
        let is_long = flags & 1 == 1;
        for _ in 0..reader.u32()? {
            let id = reader.id(version > 0)?;
            let count = reader.u8()?;
            budget.spend(count.into())?;
            let item = self.item(id, budget)?;
            for _ in 0..count {
                let (is_essential, property) = if is_long {
                    let entry = reader.u16()?;
                    (entry >> 15 == 1, entry & 0x7FFF)
                } else {
                    let entry = reader.u8()?;
                    (entry >> 7 == 1, u16::from(entry & 0x7F))
                };
                if property > 0 {
                    item.properties.push((property, is_essential));
                }
            }
        }
        Ok(())
    }

    fn properties_of(&self, item: &Item) -> impl Iterator<Item = Property<'a>> {
        item.properties
            .iter()
            .filter_map(|&(number, is_essential)| {
                let property = self.properties.get(usize::from(number) - 1)?;
                Some(Property {
                    name: property.name,
                    contents: property.reader(self.file),
                    is_essential,
                })
            })
    }

    /// Returns the contents of an item's property behind its version and flags, which all of those
    /// that are asked for have, but not irot and imir.
    fn property(&self, item: &Item, name: &[u8; 4]) -> Result<Option<Reader<'a>>, Refusal> {
        let property = self.properties_of(item).find(|found| &found.name == name);
        Ok(property.map(|property| property.contents))
    }

    /// Returns width and height that the container announces for an item.
    fn size(&self, item: &Item) -> Result<(u32, u32), Refusal> {
        let Some(mut extents) = self.property(item, b"ispe")? else {
            return Err(Refusal::malformed("an image of its container has no size"));
        };
        let _version_and_flags = extents.u32()?;
        Ok((extents.u32()?, extents.u32()?))
    }

    /// Refuses an item with a property that a reader must know and that is not known here.
    fn check_essential(&self, item: &Item) -> Result<(), Refusal> {
        const KNOWN: &[&[u8; 4]] = &[
            b"av1C", b"ispe", b"pixi", b"colr", b"pasp", b"clap", b"irot", b"imir", b"auxC",
            b"a1op", b"lsel", b"a1lx", b"clli", b"mdcv", b"cclv", b"amve",
        ];
        let unknown = self
            .properties_of(item)
            .find(|property| property.is_essential && !KNOWN.contains(&&property.name));
        match unknown {
            Some(property) => Err(Refusal::Unsupported(format!(
                "an AVIF image with the property \"{}\"",
                property.name.escape_ascii()
            ))),
            None => Ok(()),
        }
    }

    /// Returns rows and columns of a grid, and the items that are its tiles.
    fn grid(&self, item: &Item, size: (u32, u32)) -> Result<((u32, u32), Vec<u32>), Refusal> {
        const LONGEST: usize = 12;
        let description = self.data(item)?.first(self.file, LONGEST);
        let mut reader = Reader::new(&description, 0, LONGEST);
        let [version, flags, rows, columns] = reader.array()?;
        let is_long = flags & 1 == 1;
        let output = (reader.id(is_long)?, reader.id(is_long)?);
        let (rows, columns) = (u32::from(rows) + 1, u32::from(columns) + 1);
        let tiles = self
            .references
            .iter()
            .find(|reference| &reference.kind == b"dimg" && reference.from == self.primary);
        let tiles = tiles
            .map(|reference| reference.to.clone())
            .unwrap_or_default();
        if version != 0 || output != size || tiles.len() != (rows * columns) as usize {
            return Err(Refusal::malformed(
                "its grid contradicts its tiles or its size",
            ));
        }
        Ok(((rows, columns), tiles))
    }

    /// Returns where an item's data is.
    fn data(&self, item: &Item) -> Result<Data, Refusal> {
        let (base, end) = match (item.is_in_meta, &self.own_data) {
            (false, _) => (0, self.file.len()),
            (true, Some(own)) => (own.start, own.end),
            (true, None) => return Err(Refusal::cut_off()),
        };
        let mut data = Data::default();
        let mut length = 0;
        for &(offset, size) in &item.extents {
            let start = usize::try_from(offset)
                .ok()
                .and_then(|at| base.checked_add(at));
            let size = usize::try_from(size).map_err(|_| Refusal::cut_off())?;
            let range = start.and_then(|start| Some((start, start.checked_add(size)?)));
            let range = range.filter(|range| range.1 <= end);
            let range = range.ok_or_else(Refusal::cut_off)?;
            // Parts may overlap, but no item is longer than its file.
            length += size;
            if length > self.file.len() {
                return Err(Refusal::malformed(
                    "an item of its container is longer than the file",
                ));
            }
            data.parts.push(range);
        }
        if length == 0 {
            return Err(Refusal::malformed("an item of its container has no data"));
        }
        Ok(data)
    }

    /// Returns whether the picture has alpha: an auxiliary item for the whole, or one for each tile.
    fn has_alpha(&self, tiles: &[u32]) -> bool {
        self.references.iter().any(|reference| {
            let is_for = |id: &u32| *id == self.primary || tiles.first() == Some(id);
            &reference.kind == b"auxl"
                && reference.to.iter().any(is_for)
                && self
                    .items
                    .get(&reference.from)
                    .is_some_and(|item| self.is_alpha(item))
        })
    }

    fn is_alpha(&self, item: &Item) -> bool {
        const ALPHA: [&[u8]; 2] = [
            b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
            b"urn:mpeg:hevc:2015:auxid:1",
        ];
        self.properties_of(item).any(|property| {
            let name = property.contents.rest().get(4..).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next();
            &property.name == b"auxC" && name.is_some_and(|name| ALPHA.contains(&name))
        })
    }

    /// Returns how to turn the picture, as Pillow does it: the properties count, and EXIF does not.
    /// A turn in XMP counts where neither the properties turn nor EXIF names an orientation.
    fn orientation(&self, primary: &Item) -> Result<Orientation, Refusal> {
        match turn(self.properties_of(primary))? {
            Orientation::Upright => Ok(self.described_orientation(Some(self.primary))),
            turn => Ok(turn),
        }
    }

    /// Returns the turn that XMP tells, if EXIF names none, from metadata of the item `of`, or from
    /// any where the items belong to a track.
    fn described_orientation(&self, of: Option<u32>) -> Orientation {
        let describes = |id: &u32| {
            of.is_none_or(|described| {
                self.references.iter().any(|reference| {
                    &reference.kind == b"cdsc"
                        && reference.from == *id
                        && reference.to.contains(&described)
                })
            })
        };
        let contents = |is_wanted: fn(&Item) -> bool| {
            let wanted = self.items.iter();
            let wanted = wanted.filter(|(id, item)| is_wanted(item) && describes(id));
            let (_, item) = wanted.min_by_key(|(id, _)| **id)?;
            Some(self.data(item).ok()?.first(self.file, usize::MAX))
        };
        let exif = contents(|item| &item.kind == b"Exif");
        // The offset of the TIFF's header comes first.
        let exif = exif.as_deref().and_then(|exif| exif.get(4..));
        if exif.is_some_and(orientation::names_orientation) {
            return Orientation::Upright;
        }
        let xmp = contents(|item| item.is_xmp);
        orientation::from_blocks(None, xmp.as_deref())
    }
}

/// A property of a picture.
struct Property<'a> {
    name: [u8; 4],
    contents: Reader<'a>,
    is_essential: bool,
}

/// Returns the turn that properties tell: a rotation, then a mirror.
fn turn<'a>(properties: impl Iterator<Item = Property<'a>>) -> Result<Orientation, Refusal> {
    let (mut angle, mut axis) = (None, None);
    for mut property in properties {
        match &property.name {
            b"irot" => angle = angle.or(Some(property.contents.u8()? & 3)),
            b"imir" => axis = axis.or(Some(property.contents.u8()? & 1)),
            _ => {}
        }
    }
    // Quarter turns counterclockwise. Mirror 0 swaps top and bottom, mirror 1 left and right.
    Ok(match (angle.unwrap_or(0), axis) {
        (0, None) => Orientation::Upright,
        (0, Some(0)) | (2, Some(1)) => Orientation::Flipped,
        (0, Some(_)) | (2, Some(0)) => Orientation::Mirrored,
        (1, None) => Orientation::Rotated270,
        (2, _) => Orientation::Rotated180,
        (1, Some(0)) | (3, Some(1)) => Orientation::Transposed,
        (1, Some(_)) | (3, Some(0)) => Orientation::Transversed,
        _ => Orientation::Rotated90,
    })
}

/// Returns what properties say of colours by number.
fn colour<'a>(properties: impl Iterator<Item = Property<'a>>) -> Result<Option<Colour>, Refusal> {
    for mut property in properties {
        if &property.name != b"colr" || &property.contents.array()? != b"nclx" {
            continue;
        }
        let contents = &mut property.contents;
        let primaries = contents.u16()?;
        let _transfer = contents.u16()?;
        return Ok(Some(Colour {
            primaries,
            matrix: contents.u16()?,
            is_full_range: contents.u8()? >> 7 == 1,
        }));
    }
    Ok(None)
}

/// A track of a sequence.
struct Track {
    id: u32,
    size: (u32, u32),
    /// The description of its samples, if they are AV1.
    entry: Option<BoxAt>,
    /// The first sample's offset and length.
    first: Option<(u64, u32)>,
    /// The track of which this one is alpha or a depth map.
    auxiliary_of: Option<u32>,
    /// Where its metadata is.
    meta: Option<BoxAt>,
}

/// Reads the first frame of the first track of a sequence.
fn read_movie(file: &[u8], movie: BoxAt, budget: &mut Budget) -> Result<Source, Refusal> {
    let mut tracks = Vec::new();
    let mut reader = movie.reader(file);
    while let Some(child) = reader.next_box()? {
        if &child.name == b"trak" {
            budget.spend(Budget::ITEM)?;
            tracks.push(read_track(file, child)?);
        }
    }
    let shown = tracks.iter().find_map(|track| {
        let has_picture = track.id != 0 && track.auxiliary_of.is_none();
        let (entry, first) = (track.entry?, track.first?);
        has_picture.then_some((track, entry, first))
    });
    let Some((track, entry, (offset, length))) = shown else {
        return Err(Refusal::malformed(
            "its sequence has no track of AV1 frames",
        ));
    };
    let start = usize::try_from(offset).map_err(|_| Refusal::cut_off())?;
    let end = start.checked_add(length as usize);
    let end = end
        .filter(|&end| end <= file.len())
        .ok_or_else(Refusal::cut_off)?;
    let properties = || -> Result<Vec<Property<'_>>, Refusal> {
        /// The fields of a visual sample entry, before its boxes.
        const FIELDS: usize = 78;
        let mut reader = entry.reader(file);
        reader.skip(FIELDS)?;
        let mut properties = Vec::new();
        while let Some(child) = reader.next_box()? {
            if matches!(&child.name, b"colr" | b"irot" | b"imir") {
                properties.push(Property {
                    name: child.name,
                    contents: child.reader(file),
                    is_essential: false,
                });
            }
        }
        Ok(properties)
    };
    let orientation = match (turn(properties()?.into_iter())?, track.meta) {
        (Orientation::Upright, Some(meta)) => {
            Items::read(file, meta, budget)?.described_orientation(None)
        }
        (turn, _) => turn,
    };
    Ok(Source {
        size: track.size,
        grid: (1, 1),
        tile_size: track.size,
        tiles: vec![Data {
            parts: vec![(start, end)],
        }],
        operating_point: 0,
        layer: None,
        colour: colour(properties()?.into_iter())?,
        has_alpha: tracks
            .iter()
            .any(|other| other.entry.is_some() && other.auxiliary_of == Some(track.id)),
        orientation,
    })
}

fn read_track(file: &[u8], track: BoxAt) -> Result<Track, Refusal> {
    let mut found = Track {
        id: 0,
        size: (0, 0),
        entry: None,
        first: None,
        auxiliary_of: None,
        meta: None,
    };
    let reader = track.reader(file);
    found.meta = reader.find(b"meta")?;
    if let Some(header) = reader.find(b"tkhd")? {
        let (mut reader, version, _) = header.full(file)?;
        // Times, then the identifier, then a duration and what is not used for pictures.
        let time = if version == 1 { 8 } else { 4 };
        reader.skip(2 * time)?;
        found.id = reader.u32()?;
        reader.skip(4 + time + 52)?;
        found.size = (reader.u32()? >> 16, reader.u32()? >> 16);
    }
    if let Some(references) = reader.find(b"tref")?
        && let Some(auxiliary) = references.reader(file).find(b"auxl")?
    {
        found.auxiliary_of = Some(auxiliary.reader(file).u32()?);
    }
    let mut inner = reader;
    for name in [b"mdia", b"minf", b"stbl"] {
        let Some(child) = inner.find(name)? else {
            return Ok(found);
        };
        inner = child.reader(file);
    }
    if let Some(descriptions) = inner.find(b"stsd")? {
        let (mut reader, ..) = descriptions.full(file)?;
        let _count = reader.u32()?;
        found.entry = reader.find(b"av01")?;
    }
    let sizes = inner.find(b"stsz")?;
    let offsets = match inner.find(b"stco")? {
        Some(offsets) => Some((offsets, 4)),
        None => inner.find(b"co64")?.map(|offsets| (offsets, 8)),
    };
    if let (Some(sizes), Some((offsets, bytes))) = (sizes, offsets) {
        let (mut sizes, ..) = sizes.full(file)?;
        let all = sizes.u32()?;
        let _count = sizes.u32()?;
        let (mut offsets, ..) = offsets.full(file)?;
        if offsets.u32()? > 0 {
            let length = if all == 0 { sizes.u32()? } else { all };
            found.first = Some((offsets.uint(bytes)?, length));
        }
    }
    Ok(found)
}

//! Reads the marker segments of a JPEG (ITU-T T.81, annex B) as Pillow and libjpeg do.
//!
//! [`Markers::next`] walks to the next scan or to the end and keeps what it passes: tables, the
//! frame header, and what tells the colour model. Both reading the header and decoding use it, so
//! that the picture that is judged is the picture that is decoded.

use super::bits::next_marker;
use super::huffman::{self, Codes, Kind};
use crate::error::Refusal;

pub(super) const SOF0: u8 = 0xC0;
const SOF1: u8 = 0xC1;
const SOF2_PROGRESSIVE: u8 = 0xC2;
const DHT: u8 = 0xC4;
const SOF9_ARITHMETIC: u8 = 0xC9;
const SOF10_ARITHMETIC_PROGRESSIVE: u8 = 0xCA;
const DAC: u8 = 0xCC;
const SOF15: u8 = 0xCF;
pub(super) const RST0: u8 = 0xD0;
pub(super) const RST7: u8 = 0xD7;
pub(super) const SOI: u8 = 0xD8;
pub(super) const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const DQT: u8 = 0xDB;
const DNL: u8 = 0xDC;
const DRI: u8 = 0xDD;
const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
const APP14: u8 = 0xEE;
const APP15: u8 = 0xEF;
const COM: u8 = 0xFE;
const TEM: u8 = 0x01;

/// The longest side that libjpeg decodes.
pub(super) const LONGEST_SIDE: u16 = 65_500;

/// The position of each coefficient of the zigzag order in a block of rows. A damaged run may lead
/// up to 16 places behind the end, which count as the last.
pub(super) const ZIGZAG: [u8; 80] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63,
];

/// How the components make a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColourModel {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    /// CMYK of which the first three are stored as YCbCr.
    Ycck,
}

/// A frame header.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) is_progressive: bool,
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) components: Vec<Component>,
}

/// A component as the frame header gives it.
#[derive(Debug, Clone)]
pub(super) struct Component {
    id: u8,
    /// The horizontal sampling factor, from 1 to 4.
    pub(super) across: u8,
    /// The vertical sampling factor, from 1 to 4.
    pub(super) down: u8,
    pub(super) quantisation: u8,
}

impl Frame {
    /// Returns the largest sampling factors, across and down.
    pub(super) fn largest_sampling(&self) -> (u32, u32) {
        let across = self.components.iter().map(|c| c.across).max();
        let down = self.components.iter().map(|c| c.down).max();
        (across.unwrap_or(1).into(), down.unwrap_or(1).into())
    }
}

/// A scan header.
#[derive(Debug)]
pub(super) struct Scan {
    /// For each component: its index in the frame, its DC table and its AC table.
    pub(super) components: Vec<(usize, usize, usize)>,
    /// The first and the last coefficient in zigzag order.
    pub(super) first: u8,
    pub(super) last: u8,
    /// The successive approximation: how many low bits earlier scans and this one leave out.
    pub(super) high: u8,
    pub(super) low: u8,
}

/// A quantisation table, by rows.
pub(super) type Quantisation = [u16; 64];

/// A JPEG that is read from marker to marker.
pub(super) struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
    /// A marker that has been read already.
    pending: Option<u8>,
    frame: Option<Frame>,
    scan_count: u32,
    quantisation: [Option<Box<Quantisation>>; 4],
    dc: [Option<Box<Codes>>; 4],
    ac: [Option<Box<Codes>>; 4],
    restart_interval: u16,
    has_jfif: bool,
    adobe_transform: Option<u8>,
    /// The payloads of the EXIF segments before the first scan.
    exif: Vec<&'a [u8]>,
    /// The last XMP packet before the first scan.
    xmp: Option<&'a [u8]>,
}

impl<'a> Markers<'a> {
    /// Starts at the beginning of the file.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if the file does not begin as a JPEG does.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Refusal> {
        if !bytes.starts_with(&[0xFF, SOI]) {
            return Err(Refusal::malformed("it does not begin with a start marker"));
        }
        Ok(Self {
            bytes,
            at: 2,
            pending: None,
            frame: None,
            scan_count: 0,
            quantisation: Default::default(),
            dc: Default::default(),
            ac: Default::default(),
            restart_interval: 0,
            has_jfif: false,
            adobe_transform: None,
            exif: Vec::new(),
            xmp: None,
        })
    }

    /// Reads on to the next scan header. Returns `None` at the end of the picture, and
    /// [`Refusal::cut_off`] if the file has no end.
    pub(super) fn next(&mut self) -> Result<Option<Scan>, Refusal> {
        loop {
            let marker = match self.pending.take() {
                Some(marker) => marker,
                None => next_marker(self.bytes, &mut self.at).ok_or_else(Refusal::cut_off)?,
            };
            match marker {
                SOS => {
                    let scan = self.scan_header()?;
                    self.scan_count += 1;
                    return Ok(Some(scan));
                }
                EOI => return Ok(None),
                RST0..=RST7 => {}
                // libjpeg passes over it; Pillow, which reads the headers first, does not.
                TEM if self.scan_count > 0 => {}
                SOI => return Err(Refusal::malformed("it has a second start marker")),
                DHT => self.huffman_tables()?,
                DQT => self.quantisation_tables()?,
                DRI => {
                    let &[high, low] = self.segment()? else {
                        return Err(wrong_length("restart interval"));
                    };
                    self.restart_interval = u16::from_be_bytes([high, low]);
                }
                COM | DNL | DAC => {
                    self.passed_over()?;
                }
                SOF0..=SOF15 => self.frame_header(marker)?,
                APP0..=APP15 => self.application_segment(marker)?,
                // Pillow knows them, libjpeg does not.
                _ => {
                    return Err(Refusal::Malformed(format!(
                        "it has the unknown marker 0x{marker:02X}"
                    )));
                }
            }
        }
    }

    /// Goes on behind a scan, with the marker that ended it.
    pub(super) fn resume(&mut self, (marker, at): (Option<u8>, usize)) {
        (self.pending, self.at) = (marker, at);
    }

    /// Returns where the entropy-coded data of the scan begin whose header was read last.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the frame header, once it has been read.
    pub(super) fn frame(&self) -> Option<&Frame> {
        self.frame.as_ref()
    }

    pub(super) fn restart_interval(&self) -> u16 {
        self.restart_interval
    }

    pub(super) fn exif(&self) -> &[&'a [u8]] {
        &self.exif
    }

    pub(super) fn xmp(&self) -> Option<&'a [u8]> {
        self.xmp
    }

    /// Returns a quantisation table.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if the file has not defined it.
    pub(super) fn quantisation(&self, which: u8) -> Result<&Quantisation, Refusal> {
        let table = self.quantisation.get(usize::from(which));
        table
            .and_then(Option::as_deref)
            .ok_or_else(|| Refusal::malformed("a quantisation table is missing"))
    }

    /// Returns a Huffman table. `has_defaults` says that the standard's tables stand for missing
    /// ones, as they do in Motion JPEG.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if there is no such table, or its codes are wrong.
    pub(super) fn huffman(
        &self,
        kind: Kind,
        which: usize,
        has_defaults: bool,
    ) -> Result<huffman::Table, Refusal> {
        let tables = match kind {
            Kind::Dc => &self.dc,
            Kind::Ac => &self.ac,
        };
        if let Some(codes) = tables.get(which).and_then(Option::as_deref) {
            return huffman::Table::new(codes, kind);
        }
        match huffman::standard(kind, which) {
            Some(codes) if has_defaults => huffman::Table::new(&codes, kind),
            _ => Err(Refusal::malformed("a Huffman table is missing")),
        }
    }

    /// Returns how the components make a colour, by the rules of libjpeg. What comes behind the
    /// first scan header does not count.
    pub(super) fn colour_model(&self, frame: &Frame) -> ColourModel {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        match (ids.as_slice(), self.has_jfif, self.adobe_transform) {
            ([_, _, _], true, _) => ColourModel::YCbCr,
            ([_, _, _], _, Some(0)) => ColourModel::Rgb,
            ([_, _, _], _, Some(_)) => ColourModel::YCbCr,
            ([b'R', b'G', b'B'], ..) => ColourModel::Rgb,
            ([_, _, _], ..) => ColourModel::YCbCr,
            ([_, _, _, _], _, None | Some(0)) => ColourModel::Cmyk,
            ([_, _, _, _], ..) => ColourModel::Ycck,
            // Two, or more than four, only come in other files, which tell what they are.
            _ => ColourModel::Grey,
        }
    }

    /// Takes the payload of a segment, whose length must be right.
    fn segment(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        match length {
            Some(&[0, 0 | 1]) => Err(wrong_length("segment")),
            // Behind the last scan, a file without an end may end anywhere but in a segment.
            _ if self.scan_count > 0 => self.passed_over().map_err(|_| wrong_length("segment")),
            _ => self.passed_over(),
        }
    }

    /// Takes the payload of a segment, which follows its length. A length of less than its own two
    /// bytes is passed over, as by libjpeg where it does not need the payload.
    fn passed_over(&mut self) -> Result<&'a [u8], Refusal> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some((&length, rest)) = rest.split_first_chunk() else {
            return Err(Refusal::cut_off());
        };
        // The length counts its own two bytes.
        let length = usize::from(u16::from_be_bytes(length)).saturating_sub(2);
        let payload = rest.get(..length).ok_or_else(Refusal::cut_off)?;
        self.at += 2 + length;
        Ok(payload)
    }

    fn frame_header(&mut self, marker: u8) -> Result<(), Refusal> {
        let kind = match marker {
            SOF0 | SOF1 | SOF2_PROGRESSIVE => None,
            SOF9_ARITHMETIC | SOF10_ARITHMETIC_PROGRESSIVE => Some("an arithmetic-coded JPEG"),
            0xC3 | 0xCB => Some("a lossless JPEG"),
            _ => Some("a hierarchical JPEG"),
        };
        if let Some(kind) = kind {
            return Err(Refusal::Unsupported(kind.to_owned()));
        }
        if self.frame.is_some() {
            return Err(Refusal::malformed("it has two frame headers"));
        }
        let Some((&[precision, h0, h1, w0, w1, count], rest)) =
            self.segment()?.split_first_chunk::<6>()
        else {
            return Err(wrong_length("frame header"));
        };
        if precision != 8 {
            return Err(Refusal::Unsupported(format!(
                "a JPEG of {precision} bits per sample"
            )));
        }
        let (listed, []) = rest.as_chunks::<3>() else {
            return Err(wrong_length("frame header"));
        };
        if listed.len() != usize::from(count) {
            return Err(wrong_length("frame header"));
        }
        let (width, height) = (u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1]));
        if width == 0 || height == 0 || listed.is_empty() {
            return Err(Refusal::malformed("it has no pixels"));
        }
        let components: Vec<Component> = listed
            .iter()
            .map(|&[id, sampling, quantisation]| Component {
                id,
                across: sampling >> 4,
                down: sampling & 15,
                quantisation,
            })
            .collect();
        let in_range = |factor: u8| (1..=4).contains(&factor);
        if !components
            .iter()
            .all(|c| in_range(c.across) && in_range(c.down))
        {
            return Err(Refusal::malformed("a sampling factor is not from 1 to 4"));
        }
        self.frame = Some(Frame {
            is_progressive: marker == SOF2_PROGRESSIVE,
            width,
            height,
            components,
        });
        Ok(())
    }

    fn scan_header(&mut self) -> Result<Scan, Refusal> {
        let payload = self.segment()?;
        let Some(frame) = &self.frame else {
            return Err(Refusal::malformed("a scan comes before the frame header"));
        };
        let Some((&count, rest)) = payload.split_first() else {
            return Err(wrong_length("scan header"));
        };
        let count = usize::from(count);
        if !(1..=4).contains(&count) || rest.len() != count * 2 + 3 {
            return Err(wrong_length("scan header"));
        }
        let (listed, ending) = rest.split_at(count * 2);
        let mut components: Vec<(usize, usize, usize)> = Vec::with_capacity(count);
        for &[id, tables] in listed.as_chunks::<2>().0 {
            // As libjpeg finds them, also where several have one id.
            let found = frame
                .components
                .iter()
                .enumerate()
                .find(|&(index, component)| component.id == id && index >= components.len());
            let Some((index, _)) = found else {
                return Err(Refusal::malformed("a scan names an unknown component"));
            };
            if components.iter().any(|&(known, ..)| known == index) {
                return Err(Refusal::malformed("a scan names a component twice"));
            }
            components.push((index, usize::from(tables >> 4), usize::from(tables & 15)));
        }
        Ok(Scan {
            components,
            first: ending[0],
            last: ending[1],
            high: ending[2] >> 4,
            low: ending[2] & 15,
        })
    }

    fn quantisation_tables(&mut self) -> Result<(), Refusal> {
        let mut rest = self.segment()?;
        while let Some((&head, values)) = rest.split_first() {
            let is_wide = head >> 4 != 0;
            let bytes = if is_wide { 128 } else { 64 };
            let Some((values, behind)) = values.split_at_checked(bytes) else {
                return Err(wrong_length("quantisation table"));
            };
            let Some(slot) = self.quantisation.get_mut(usize::from(head & 15)) else {
                return Err(Refusal::malformed("a quantisation table has a wrong index"));
            };
            let mut table = Box::new([0; 64]);
            for (index, &position) in ZIGZAG[..64].iter().enumerate() {
                table[usize::from(position)] = if is_wide {
                    u16::from_be_bytes([values[index * 2], values[index * 2 + 1]])
                } else {
                    values[index].into()
                };
            }
            *slot = Some(table);
            rest = behind;
        }
        Ok(())
    }

    fn huffman_tables(&mut self) -> Result<(), Refusal> {
        let mut rest = self.segment()?;
        while let Some((&[head, ref counts @ ..], behind)) = rest.split_first_chunk::<17>() {
            let count: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let Some((symbols, behind)) = behind.split_at_checked(count) else {
                return Err(wrong_length("Huffman table"));
            };
            if count > 256 {
                return Err(Refusal::malformed("a Huffman table has too many codes"));
            }
            let tables = if head & 0x10 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            let Some(slot) = tables.get_mut(usize::from(head & !0x10)) else {
                return Err(Refusal::malformed("a Huffman table has a wrong index"));
            };
            let mut padded = [0; 256];
            padded[..count].copy_from_slice(symbols);
            *slot = Some(Box::new(Codes {
                counts: *counts,
                symbols: padded,
            }));
            rest = behind;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(wrong_length("Huffman table"))
        }
    }

    fn application_segment(&mut self, marker: u8) -> Result<(), Refusal> {
        const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        let payload = self.passed_over()?;
        if self.scan_count > 0 {
            return Ok(());
        }
        match marker {
            APP0 if payload.len() >= 14 && payload.starts_with(b"JFIF\0") => self.has_jfif = true,
            APP1 if payload.starts_with(b"Exif\0\0") => self.exif.push(payload),
            APP1 => self.xmp = payload.strip_prefix(XMP).or(self.xmp),
            APP14 if payload.len() >= 12 && payload.starts_with(b"Adobe") => {
                self.adobe_transform = Some(payload[11]);
            }
            _ => {}
        }
        Ok(())
    }
}

fn wrong_length(what: &str) -> Refusal {
    Refusal::Malformed(format!("a {what} has a wrong length"))
}

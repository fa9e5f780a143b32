//! Decodes JPEGs to the pixels of libjpeg-turbo, which is what Pillow uses: baseline, extended and
//! progressive, with 8 bits, any sampling that libjpeg takes, grey, RGB, YCbCr, CMYK and YCCK.
//!
//! ```text
//! bytes ── markers ──► tables, frame and scan headers
//!             │ bits, huffman, scan
//!             ▼
//!        coefficients ── idct ──► planes ── upsampling, colour ──► RGB
//! ```
//!
//! A JPEG whose only scan has all components goes from a block's coefficients straight to its
//! samples. All others keep their coefficients until the last scan.
//!
//! Damage is treated as Pillow treats it. Where entropy-coded data end early or make no sense,
//! libjpeg goes on with what it has, and so does this decoder, to the same pixels. A file that ends
//! before its picture does is refused, and so is one with a marker that nobody knows.

mod bits;
mod huffman;
mod idct;
mod markers;
mod planes;
mod scan;
mod smoothing;

use self::bits::Bits;
use self::huffman::{Kind, Table};
use self::idct::Block;
use self::markers::{ColourModel, Frame, Markers, Quantisation, Scan};
use self::planes::Plane;
use self::smoothing::Known;
use crate::error::Refusal;
use crate::orientation::{self, Orientation};
use crate::reduction::Reduction;

/// The most scans that a JPEG may have. Encoders write up to about 20.
const MOST_SCANS: u32 = 256;

/// The most blocks that all scans together may visit for each block of the picture. A progressive
/// JPEG visits each some 10 times.
const VISITS_PER_BLOCK: u64 = 64;

/// Bytes that must follow the last block of a JPEG that has no end marker: libjpeg reads ahead by
/// as many, and Pillow refuses a file in which it cannot.
const READ_AHEAD: usize = 8;

/// What the markers before the first scan tell.
#[derive(Debug, Clone)]
pub(super) struct Header {
    frame: Frame,
    orientation: Orientation,
    has_one_scan: bool,
}

impl Header {
    /// Reads the markers before the first scan.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let header = Self::read_any(bytes)?;
        match header.frame.components.len() {
            1 | 3 | 4 => Ok(header),
            count => Err(Refusal::Unsupported(format!(
                "a JPEG of {count} components"
            ))),
        }
    }

    /// Reads the markers of a JPEG with any number of components.
    fn read_any(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut markers = Markers::new(bytes)?;
        let (scan, frame) = match (markers.next()?, markers.frame()) {
            (Some(scan), Some(frame)) => (scan, frame.clone()),
            _ => return Err(Refusal::malformed("it holds no picture")),
        };
        Ok(Self {
            has_one_scan: !frame.is_progressive && scan.components.len() == frame.components.len(),
            frame,
            orientation: orientation::of_jpeg(markers.exif(), markers.xmp()),
        })
    }

    pub(super) fn size(&self) -> (u32, u32) {
        (self.frame.width.into(), self.frame.height.into())
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Returns an upper bound of the bytes that decoding at this size holds beside the RGB picture:
    /// the planes in whole MCUs, and the coefficients where there are several scans.
    pub(super) fn working_bytes(&self, reduction: Reduction) -> u64 {
        let coefficients = if self.has_one_scan { 0 } else { 128 };
        let parts = self.frame.components.iter().zip(layouts(&self.frame));
        let planes: u64 = parts
            .map(|(component, layout)| {
                let side = block_size(&self.frame, component, reduction) as u64;
                layout.padded_blocks() as u64 * (side * side + coefficients)
            })
            .sum();
        let width = u64::from(reduction.side(self.frame.width.into()));
        planes + width * (self.frame.components.len() as u64 + 2)
    }

    /// Decodes the picture to RGB at the size that `reduction` asks for.
    pub(super) fn decode(&self, bytes: &[u8], reduction: Reduction) -> Result<Vec<u8>, Refusal> {
        let (planes, model) = Picture::new(bytes, self, reduction)?.decode()?;
        let (width, height) = self.size();
        let size = (
            reduction.side(width) as usize,
            reduction.side(height) as usize,
        );
        let is_fancy = reduction != Reduction::Eighth;
        Ok(planes::to_rgb(&planes, model, size, is_fancy))
    }
}

/// What a JPEG inside another file holds. That file tells its colours; the JPEG's own markers do not
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inner {
    /// Three channels, which become RGB.
    YCbCr,
    /// So many channels, which stay as they are.
    Plain(usize),
}

/// Decodes a JPEG inside another file to `out`: `rows` rows of `width` pixels, interleaved. The JPEG
/// must be as wide, and may be higher, up to `most_rows`.
pub(super) fn decode_inner(
    bytes: &[u8],
    inner: Inner,
    (width, rows, most_rows): (usize, usize, usize),
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let header = Header::read_any(bytes)?;
    let (found_width, found_height) = (header.frame.width.into(), header.frame.height.into());
    let found_channels = header.frame.components.len();
    let channels = match inner {
        Inner::YCbCr => 3,
        Inner::Plain(channels) => channels,
    };
    if width != found_width || !(rows..=most_rows).contains(&found_height) {
        return Err(Refusal::Malformed(format!(
            "the JPEG inside has {found_width}x{found_height} pixels where {width}x{rows} belong"
        )));
    }
    if channels != found_channels {
        return Err(Refusal::Malformed(format!(
            "the JPEG inside has {found_channels} channels instead of {channels}"
        )));
    }
    let (planes, _) = Picture::new(bytes, &header, Reduction::Full)?.decode()?;
    *out = match inner {
        Inner::YCbCr => planes::to_rgb(&planes, ColourModel::YCbCr, (width, rows), true),
        Inner::Plain(_) => planes::interleaved(&planes, (width, rows)),
    };
    Ok(())
}

/// Joins a JPEG of nothing but tables with one that lacks them.
pub(super) fn joined(tables: &[u8], picture: &[u8]) -> Vec<u8> {
    let tables = tables.strip_suffix(&[0xFF, markers::EOI]).unwrap_or(tables);
    let picture = picture
        .strip_prefix(&[0xFF, markers::SOI])
        .unwrap_or(picture);
    [tables, picture].concat()
}

/// The measures of a component.
#[derive(Clone, Copy)]
struct Layout {
    across: usize,
    down: usize,
    /// Blocks that belong to the picture.
    blocks_wide: usize,
    blocks_high: usize,
    /// Blocks in whole MCUs.
    padded_wide: usize,
    padded_high: usize,
}

impl Layout {
    fn padded_blocks(&self) -> usize {
        self.padded_wide * self.padded_high
    }

    /// Returns the DC coefficients of five rows of five blocks around a block. Beyond the picture's
    /// edge the last block is repeated. In the last row of MCUs, if that is not whole, libjpeg
    /// finds the upper edge too early; so does this.
    fn dc_around(&self, coefficients: &[Block], x: usize, y: usize) -> [[i64; 5]; 5] {
        let rows_of_mcus = self.padded_high / self.down;
        let mcu_row = y / self.down;
        let rows = if mcu_row + 1 < rows_of_mcus {
            self.down
        } else {
            self.blocks_high - mcu_row * self.down
        };
        let (place, end) = (mcu_row * rows + y % self.down, rows * rows_of_mcus);
        let (above, below) = (place.min(2), (end - 1 - place).min(2));
        std::array::from_fn(|row| {
            let row = (y + row.clamp(2 - above, 2 + below)) - 2;
            std::array::from_fn(|column| {
                let column = (x + column).clamp(2, self.blocks_wide + 1) - 2;
                coefficients[row * self.padded_wide + column][0].into()
            })
        })
    }
}

/// Returns the length of a block's side in samples when a component is decoded at a reduced size. A
/// component with fewer samples is reduced less, where that saves stretching it.
fn block_size(frame: &Frame, component: &markers::Component, reduction: Reduction) -> usize {
    let (most_across, most_down) = frame.largest_sampling();
    let least = reduction.block_size();
    let (across, down) = (u32::from(component.across), u32::from(component.down));
    let fits = |size: usize| {
        let size = size as u32 * 2;
        (most_across * least as u32).is_multiple_of(across * size)
            && (most_down * least as u32).is_multiple_of(down * size)
    };
    let mut size = least;
    while size < 8 && fits(size) {
        size *= 2;
    }
    size
}

fn layouts(frame: &Frame) -> Vec<Layout> {
    let (most_across, most_down) = frame.largest_sampling();
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    let mcus_wide = width.div_ceil(8 * most_across) as usize;
    let mcus_high = height.div_ceil(8 * most_down) as usize;
    frame
        .components
        .iter()
        .map(|component| {
            let (across, down) = (u32::from(component.across), u32::from(component.down));
            Layout {
                across: across as usize,
                down: down as usize,
                blocks_wide: (width * across).div_ceil(8 * most_across) as usize,
                blocks_high: (height * down).div_ceil(8 * most_down) as usize,
                padded_wide: mcus_wide * across as usize,
                padded_high: mcus_high * down as usize,
            }
        })
        .collect()
}

/// A component while it is decoded.
struct Component {
    layout: Layout,
    /// The table as it is when the first scan of this component begins. Before that all zeros,
    /// which make the component grey.
    quantisation: Box<Quantisation>,
    is_begun: bool,
    /// The length of a block's side in samples.
    block_size: usize,
    /// The sum of the DC differences.
    prediction: i32,
    plane: Plane,
    /// The coefficients of all blocks, if there are several scans.
    coefficients: Vec<Block>,
}

/// A picture while it is decoded.
struct Picture<'a> {
    markers: Markers<'a>,
    components: Vec<Component>,
    has_one_scan: bool,
    /// For each component of a progressive JPEG: what is known of its coefficients.
    known: Vec<Known>,
    scan_count: u32,
    /// The row of MCUs in which the last scan had its last data.
    last_good_row: usize,
    /// Blocks that scans may still visit.
    visits: u64,
}

impl<'a> Picture<'a> {
    fn new(bytes: &'a [u8], header: &Header, reduction: Reduction) -> Result<Self, Refusal> {
        let frame = &header.frame;
        if frame.width.max(frame.height) > markers::LONGEST_SIDE {
            return Err(Refusal::Unsupported(format!(
                "a JPEG with a side of more than {} pixels",
                markers::LONGEST_SIDE
            )));
        }
        let (most_across, most_down) = frame.largest_sampling();
        let least = reduction.block_size();
        let components = frame
            .components
            .iter()
            .zip(layouts(frame))
            .map(|(component, layout)| {
                let (across, down) = (u32::from(component.across), u32::from(component.down));
                let block_size = block_size(frame, component, reduction);
                let scaled = block_size as u32;
                let stretch = |most: u32, factor: u32| {
                    let (most, factor) = (most * least as u32, factor * scaled);
                    (most % factor == 0).then_some((most / factor) as usize)
                };
                let (Some(stretch_across), Some(stretch_down)) =
                    (stretch(most_across, across), stretch(most_down, down))
                else {
                    return Err(Refusal::Unsupported(
                        "a JPEG whose components differ by fractions in resolution".to_owned(),
                    ));
                };
                let length = |full: u16, most: u32, factor: u32| {
                    (u32::from(full) * factor * scaled).div_ceil(most * 8) as usize
                };
                let stride = layout.padded_wide * block_size;
                Ok(Component {
                    layout,
                    quantisation: Box::new([0; 64]),
                    is_begun: false,
                    block_size,
                    prediction: 0,
                    plane: Plane {
                        width: length(frame.width, most_across, across),
                        height: length(frame.height, most_down, down),
                        stride,
                        samples: vec![128; stride * layout.padded_high * block_size],
                        stretch: (stretch_across, stretch_down),
                    },
                    coefficients: if header.has_one_scan {
                        Vec::new()
                    } else {
                        vec![[0; 64]; layout.padded_blocks()]
                    },
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let blocks: u64 = components
            .iter()
            .map(|c| c.layout.padded_blocks() as u64)
            .sum();
        Ok(Self {
            markers: Markers::new(bytes)?,
            known: vec![Known::nothing(); components.len()],
            scan_count: 0,
            last_good_row: 0,
            components,
            has_one_scan: header.has_one_scan,
            visits: blocks * VISITS_PER_BLOCK,
        })
    }

    /// Decodes the planes of the components, and returns how they make a colour.
    fn decode(mut self) -> Result<(Vec<Plane>, ColourModel), Refusal> {
        let Some(first) = self.markers.next()? else {
            return Err(Refusal::malformed("it holds no picture"));
        };
        let Some(frame) = self.markers.frame().cloned() else {
            return Err(Refusal::malformed("it has no frame header"));
        };
        let model = self.markers.colour_model(&frame);
        if self.has_one_scan {
            self.read_scan(&frame, &first)?;
            self.read_end()?;
        } else {
            let mut scan = Some(first);
            while let Some(header) = scan {
                self.read_scan(&frame, &header)?;
                scan = self.markers.next()?;
            }
            self.transform_coefficients(frame.is_progressive);
        }
        Ok((
            self.components.into_iter().map(|c| c.plane).collect(),
            model,
        ))
    }

    /// Reads what follows the only scan. The picture is whole already, so that the end marker may
    /// be missing; what is there must make sense.
    fn read_end(&mut self) -> Result<(), Refusal> {
        match self.markers.next() {
            Ok(None) => Ok(()),
            Err(refusal) if refusal.is_cut_off() => Ok(()),
            Ok(Some(_)) => Err(Refusal::malformed("it has more scans than one")),
            Err(refusal) => Err(refusal),
        }
    }

    fn read_scan(&mut self, frame: &Frame, scan: &Scan) -> Result<(), Refusal> {
        self.scan_count += 1;
        if self.scan_count > MOST_SCANS {
            return Err(Refusal::Malformed(format!(
                "it has more than {MOST_SCANS} scans"
            )));
        }
        for &(index, ..) in &scan.components {
            let component = &mut self.components[index];
            if !component.is_begun {
                let which = frame.components[index].quantisation;
                *component.quantisation = *self.markers.quantisation(which)?;
                component.is_begun = true;
            }
            component.prediction = 0;
        }
        if frame.is_progressive {
            self.check_progression(scan)?;
        }
        let ended = self.read_huffman_scan(frame, scan)?;
        self.markers.resume(ended);
        Ok(())
    }

    /// Checks what a scan of a progressive JPEG says that it holds, and notes it.
    fn check_progression(&mut self, scan: &Scan) -> Result<(), Refusal> {
        let is_band = if scan.first == 0 {
            scan.last == 0
        } else {
            scan.first <= scan.last && scan.last < 64 && scan.components.len() == 1
        };
        if !is_band || scan.low > 13 || scan.high != 0 && scan.high != scan.low + 1 {
            return Err(Refusal::malformed("a scan of the progression is wrong"));
        }
        for &(index, ..) in &scan.components {
            self.known[index].add(scan.first, scan.last, scan.low, self.scan_count == 1);
        }
        Ok(())
    }

    /// Reads a Huffman-coded scan. Returns the marker that ended it, if that was read, and where
    /// the file goes on.
    fn read_huffman_scan(
        &mut self,
        frame: &Frame,
        scan: &Scan,
    ) -> Result<(Option<u8>, usize), Refusal> {
        let mut bits = Bits::new(self.markers.bytes(), self.markers.position());
        let is_progressive = frame.is_progressive;
        let mut tables = Vec::with_capacity(scan.components.len());
        for &(_, dc, ac) in &scan.components {
            let needs_dc = !is_progressive || scan.first == 0 && scan.high == 0;
            let needs_ac = !is_progressive || scan.first > 0;
            let table = |kind, which| self.markers.huffman(kind, which, !is_progressive);
            tables.push((
                needs_dc.then(|| table(Kind::Dc, dc)).transpose()?,
                needs_ac.then(|| table(Kind::Ac, ac)).transpose()?,
            ));
        }
        if is_progressive {
            self.read_progressive_scan(&mut bits, scan, &tables)?;
        } else {
            let tables: Vec<(&Table, &Table)> = tables
                .iter()
                .filter_map(|(dc, ac)| Some((dc.as_ref()?, ac.as_ref()?)))
                .collect();
            self.read_sequential_scan(&mut bits, scan, &tables)?;
        }
        if bits.is_cut_off() || self.has_one_scan && !bits.has_ended_with(READ_AHEAD) {
            return Err(Refusal::cut_off());
        }
        Ok(bits.finish())
    }

    fn read_sequential_scan(
        &mut self,
        bits: &mut Bits<'_>,
        scan: &Scan,
        tables: &[(&Table, &Table)],
    ) -> Result<(), Refusal> {
        let restart_interval = self.markers.restart_interval();
        let has_one_scan = self.has_one_scan;
        let mut block = [0; 64];
        self.for_each_mcu(scan, restart_interval, |components, step| {
            match step {
                Step::Restart => bits.restart(),
                Step::Block {
                    part,
                    component,
                    x,
                    y,
                } => {
                    let component = &mut components[component];
                    if has_one_scan {
                        let is_flat = scan::read_block(
                            bits,
                            tables[part],
                            &mut component.prediction,
                            &mut block,
                        )?;
                        component.transform(&block, is_flat, x, y);
                        if is_flat {
                            block[0] = 0;
                        } else {
                            block = [0; 64];
                        }
                    } else {
                        let at = y * component.layout.padded_wide + x;
                        let block = &mut component.coefficients[at];
                        scan::read_block(bits, tables[part], &mut component.prediction, block)?;
                    }
                }
            }
            Ok(bits.state())
        })
    }

    fn read_progressive_scan(
        &mut self,
        bits: &mut Bits<'_>,
        scan: &Scan,
        tables: &[(Option<Table>, Option<Table>)],
    ) -> Result<(), Refusal> {
        let restart_interval = self.markers.restart_interval();
        let mut skipped = 0;
        self.for_each_mcu(scan, restart_interval, |components, step| {
            match step {
                Step::Restart => {
                    skipped = 0;
                    bits.restart();
                }
                Step::Block {
                    part,
                    component,
                    x,
                    y,
                } => {
                    let component = &mut components[component];
                    let at = y * component.layout.padded_wide + x;
                    let block = &mut component.coefficients[at];
                    match &tables[part] {
                        (Some(dc), _) => {
                            let sum = &mut component.prediction;
                            scan::first_dc(bits, dc, sum, scan.low, block)?;
                        }
                        (_, Some(ac)) => {
                            let band = scan::Band {
                                table: ac,
                                first: scan.first.into(),
                                last: scan.last.into(),
                                low: scan.low,
                            };
                            if scan.high == 0 {
                                band.first(bits, &mut skipped, block);
                            } else {
                                band.refine(bits, &mut skipped, block);
                            }
                        }
                        (None, None) => scan::refine_dc(bits, scan.low, block),
                    }
                }
            }
            Ok(bits.state())
        })
    }

    /// Walks over the MCUs of a scan and calls `work` for each block, and for each restart. What it
    /// returns tells whether the blocks up to the next restart are left out, and whether to stop.
    fn for_each_mcu(
        &mut self,
        scan: &Scan,
        restart_interval: u16,
        mut work: impl FnMut(&mut [Component], Step) -> Result<State, Refusal>,
    ) -> Result<(), Refusal> {
        let is_interleaved = scan.components.len() > 1;
        let parts: Vec<(usize, Layout)> = scan
            .components
            .iter()
            .map(|&(index, ..)| (index, self.components[index].layout))
            .collect();
        let Some(&(_, first)) = parts.first() else {
            return Ok(());
        };
        let (mcus_wide, mcus_high) = if is_interleaved {
            let blocks: usize = parts.iter().map(|(_, l)| l.across * l.down).sum();
            if blocks > 10 {
                return Err(Refusal::malformed("a scan has too many blocks in a unit"));
            }
            (
                first.padded_wide / first.across,
                first.padded_high / first.down,
            )
        } else {
            (first.blocks_wide, first.blocks_high)
        };
        let mut until_restart = u32::from(restart_interval);
        let mut state = State::Going;
        for mcu_y in 0..mcus_high {
            for mcu_x in 0..mcus_wide {
                if state == State::Going {
                    self.last_good_row = mcu_y / if is_interleaved { 1 } else { first.down };
                }
                if restart_interval > 0 {
                    if until_restart == 0 {
                        for &(index, _) in &parts {
                            self.components[index].prediction = 0;
                        }
                        state = work(&mut self.components, Step::Restart)?;
                        until_restart = restart_interval.into();
                    }
                    until_restart -= 1;
                }
                match state {
                    State::Going => {}
                    State::SegmentOver if restart_interval > 0 => continue,
                    State::SegmentOver | State::CutOff => return Ok(()),
                }
                for (part, &(component, layout)) in parts.iter().enumerate() {
                    let (across, down) = if is_interleaved {
                        (layout.across, layout.down)
                    } else {
                        (1, 1)
                    };
                    for down_by in 0..down {
                        for across_by in 0..across {
                            let block = Step::Block {
                                part,
                                component,
                                x: mcu_x * across + across_by,
                                y: mcu_y * down + down_by,
                            };
                            state = work(&mut self.components, block)?;
                        }
                    }
                }
            }
            let visited = (mcus_wide * parts.len()) as u64;
            self.visits = self.visits.checked_sub(visited).ok_or_else(|| {
                Refusal::malformed("its scans take more work than its size explains")
            })?;
        }
        Ok(())
    }

    /// Turns the coefficients of all scans into samples.
    fn transform_coefficients(&mut self, is_progressive: bool) {
        let is_smoothed = is_progressive
            && smoothing::is_needed(
                (self.known.iter()).zip(self.components.iter().map(|c| &*c.quantisation)),
            );
        for (component, known) in self.components.iter_mut().zip(&self.known) {
            let coefficients = std::mem::take(&mut component.coefficients);
            let layout = component.layout;
            for y in 0..layout.blocks_high {
                // Behind the end of the last scan's data, what it brought does not count.
                let missing = if y / layout.down > self.last_good_row {
                    &known.before
                } else {
                    &known.now
                };
                for x in 0..layout.blocks_wide {
                    let block = &coefficients[y * layout.padded_wide + x];
                    if is_smoothed {
                        let dc = layout.dc_around(&coefficients, x, y);
                        let quantisation = &component.quantisation;
                        let block = smoothing::smoothed(block, quantisation, missing, &dc);
                        component.transform(&block, false, x, y);
                    } else {
                        component.transform(block, false, x, y);
                    }
                }
            }
        }
    }
}

/// What to do next in a scan.
enum Step {
    /// Go on behind the next restart marker.
    Restart,
    /// Read a block of the scan's component number `part`.
    Block {
        part: usize,
        component: usize,
        x: usize,
        y: usize,
    },
}

/// How a scan goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Going,
    /// Up to the next restart, all that is left stays as it is.
    SegmentOver,
    /// The file has ended.
    CutOff,
}

impl Component {
    /// Writes the samples of a block.
    fn transform(&mut self, block: &Block, is_flat: bool, x: usize, y: usize) {
        let stride = self.plane.stride;
        let at = y * self.block_size * stride + x * self.block_size;
        idct::inverse(
            block,
            &self.quantisation,
            is_flat,
            self.block_size,
            &mut self.plane.samples[at..],
            stride,
        );
    }
}

impl Bits<'_> {
    fn state(&self) -> State {
        if self.is_cut_off() {
            State::CutOff
        } else if self.is_segment_over() {
            State::SegmentOver
        } else {
            State::Going
        }
    }
}

//! A picture while it is decoded: goes over the scans, MCU by MCU, from entropy-coded data to the
//! samples of each component.

use super::Header;
use super::bits::Bits;
use super::huffman::{Kind, Table};
use super::idct::{self, Block};
use super::layout::{Layout, block_size, layouts};
use super::markers::{self, ColourModel, Frame, Markers, Quantisation, Scan};
use super::planes::Plane;
use super::scan;
use super::smoothing::{self, Known};
use crate::error::Refusal;
use crate::reduction::Reduction;

/// The most scans that a JPEG may have. Encoders write up to about 20.
const MOST_SCANS: u32 = 256;

/// The most blocks that all scans together may visit for each block of the picture. A progressive
/// JPEG visits each some 10 times.
const VISITS_PER_BLOCK: u64 = 64;

/// Bytes that must follow the last block of a JPEG that has no end marker: libjpeg reads ahead by
/// as many, and Pillow refuses a file in which it cannot.
const READ_AHEAD: usize = 8;

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
pub(super) struct Picture<'a> {
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
    /// Prepares the planes of a picture that is to be decoded at the size of `reduction`.
    pub(super) fn new(
        bytes: &'a [u8],
        header: &Header,
        reduction: Reduction,
    ) -> Result<Self, Refusal> {
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
    pub(super) fn decode(mut self) -> Result<(Vec<Plane>, ColourModel), Refusal> {
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

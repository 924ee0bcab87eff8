//! Decoding: bytes to integers, integers to values. Several samples are decoded side by side, so that the processor does not
//! wait for one entropy coder.

use std::sync::Mutex;

use super::order::{Plan, repeat};
use super::rans::{Stream, decode_streams};
use super::spatial::{EIGHT_LEN, EightTiles, inverse_tile};
use super::tables::TILE;
use super::{BadSample, FREE_BITS, Fault, LEVELS, SAME_STEP, STATES, Transform, ZERO, level_of};
use crate::memory::{filled, resize, with_room};
use crate::parallel::for_each_chunk;
use crate::quant::arch::Isa;
use crate::quant::floats::{BF16, F16, F32, Float, FloatsMut};
use crate::quant::kernel::{CHUNK, Kernel};
use crate::{Error, Result};

/// Samples that are entropy-decoded side by side.
const GROUP: usize = 16;

/// Samples whose tiles are transformed together.
const SAMPLES: usize = 8;

/// Elements whose integers are computed at a time: one for each bit of a word.
pub const BLOCK: usize = 64;

/// The largest number of low bits for which instruction sets may have code of their own.
const MOST_RAW_TOGETHER: u8 = 8;

/// Tiles that are worth the vectors of eight: fewer are transformed one by one.
const LEAST_TOGETHER: usize = 3;

/// An output array of integers in steps.
pub enum NumbersMut<'a> {
    /// 16 bits. A sample with larger numbers is reported.
    I16(&'a mut [i16]),
    /// 32 bits, which are always enough.
    I32(&'a mut [i32]),
}

/// A type of integers in steps.
trait Number: Copy + Default + Send {
    /// Converts, possibly dropping bits.
    fn of(number: i32) -> Self;
    /// True if a number is not changed by `of`.
    fn fits(number: i32) -> bool;
}

impl Number for f32 {
    #[inline(always)]
    fn of(number: i32) -> Self {
        number as f32 // exact: a number has at most 19 bits
    }
    #[inline(always)]
    fn fits(_: i32) -> bool {
        true
    }
}

impl Number for i16 {
    #[inline(always)]
    fn of(number: i32) -> Self {
        number as i16
    }
    #[inline(always)]
    fn fits(number: i32) -> bool {
        i32::from(number as i16) == number
    }
}

impl Number for i32 {
    #[inline(always)]
    fn of(number: i32) -> Self {
        number
    }
    #[inline(always)]
    fn fits(_: i32) -> bool {
        true
    }
}

impl Transform {
    /// Decodes `samples` to `out` (N, C, height, width). Returns the samples that cannot be decoded, whose values are 0.
    ///
    /// # Errors
    /// An argument error if `out` has not the length of the samples, or their shape is out of range; a memory error.
    pub fn decode(
        &self,
        samples: &[&[u8]],
        out: FloatsMut<'_>,
        shape: (usize, usize),
        threads: usize,
    ) -> Result<Vec<BadSample>> {
        self.decode_with(Isa::best(), samples, out, shape, threads)
    }

    /// [`Transform::decode`] with a given instruction set.
    pub fn decode_with(
        &self,
        isa: Isa,
        samples: &[&[u8]],
        out: FloatsMut<'_>,
        shape: (usize, usize),
        threads: usize,
    ) -> Result<Vec<BadSample>> {
        match out {
            FloatsMut::F32(out) => self.decode_as::<F32>(isa, samples, out, shape, threads),
            FloatsMut::F16(out) => self.decode_as::<F16>(isa, samples, out, shape, threads),
            FloatsMut::BF16(out) => self.decode_as::<BF16>(isa, samples, out, shape, threads),
        }
    }

    fn decode_as<F: Float>(
        &self,
        isa: Isa,
        samples: &[&[u8]],
        out: &mut [F::Bits],
        (height, width): (usize, usize),
        threads: usize,
    ) -> Result<Vec<BadSample>> {
        let plan = &*self.plan(height, width)?;
        self.each_group(plan, samples, out, threads, |samples, out| {
            let mut lanes = lanes(samples.len(), plan)?;
            let mut scratch = Scratch::new::<F>(self.channels(), plan, lanes.len().min(SAMPLES))?;
            let mut bad = Vec::new();
            let groups = samples.chunks(GROUP).zip(out.chunks_mut(GROUP.saturating_mul(plan.elements)));
            for (number, (samples, out)) in groups.enumerate() {
                let lanes = &mut lanes[..samples.len()];
                prepare(plan, samples, lanes)?;
                isa.run(DecodeGroup::<F> { transform: self, plan, isa, lanes, scratch: &mut scratch, out });
                bad.extend(faults(lanes).map(|(lane, fault)| (GROUP * number + lane, fault)));
            }
            Ok(bad)
        })
    }

    /// Decodes `samples` to integers in steps, `out` (N, C, height, width), without the inverse transform, and the step of
    /// each to `steps` (N). Returns the samples that cannot be decoded, and those whose numbers do not fit in `out`; their
    /// numbers are 0.
    ///
    /// # Errors
    /// An argument error if `out` or `steps` has not the length of the samples, or their shape is out of range; a memory
    /// error.
    pub fn decode_numbers(
        &self,
        samples: &[&[u8]],
        out: NumbersMut<'_>,
        steps: &mut [f32],
        shape: (usize, usize),
        threads: usize,
    ) -> Result<Vec<BadSample>> {
        if steps.len() != samples.len() {
            return Err(Error::argument(format!("{} steps for {} samples", steps.len(), samples.len())));
        }
        for (step, sample) in steps.iter_mut().zip(samples) {
            *step = self.step(sample.first().copied().unwrap_or(SAME_STEP));
        }
        match out {
            NumbersMut::I16(out) => self.decode_numbers_as(samples, out, shape, threads),
            NumbersMut::I32(out) => self.decode_numbers_as(samples, out, shape, threads),
        }
    }

    fn decode_numbers_as<N: Number>(
        &self,
        samples: &[&[u8]],
        out: &mut [N],
        (height, width): (usize, usize),
        threads: usize,
    ) -> Result<Vec<BadSample>> {
        let (plan, isa) = (&*self.plan(height, width)?, Isa::best());
        self.each_group(plan, samples, out, threads, |samples, out| {
            let mut lanes = lanes(samples.len(), plan)?;
            let mut bad = Vec::new();
            let groups = samples.chunks(GROUP).zip(out.chunks_mut(GROUP.saturating_mul(plan.elements)));
            for (number, (samples, out)) in groups.enumerate() {
                let lanes = &mut lanes[..samples.len()];
                prepare(plan, samples, lanes)?;
                isa.run(DecodeNumbers { transform: self, plan, isa, lanes, out });
                bad.extend(faults(lanes).map(|(lane, fault)| (GROUP * number + lane, fault)));
            }
            Ok(bad)
        })
    }

    /// Calls `work` on runs of whole groups of samples, on up to `threads` threads. Returns the bad samples, ascending.
    fn each_group<T: Send>(
        &self,
        plan: &Plan,
        samples: &[&[u8]],
        out: &mut [T],
        threads: usize,
        work: impl Fn(&[&[u8]], &mut [T]) -> Result<Vec<BadSample>> + Sync,
    ) -> Result<Vec<BadSample>> {
        if samples.len().checked_mul(plan.elements) != Some(out.len()) {
            return Err(Error::argument(format!(
                "{} samples of {} elements do not match an output of {}",
                samples.len(),
                plan.elements,
                out.len()
            )));
        }
        if threads <= 1 || samples.len() <= GROUP {
            return work(samples, out);
        }
        let together = CHUNK.div_ceil(plan.elements).next_multiple_of(GROUP);
        let total = Mutex::new(Ok(Vec::new()));
        for_each_chunk(out, together.saturating_mul(plan.elements), threads, |index, out| {
            let first = index * together;
            let bad = work(&samples[first..][..out.len() / plan.elements], out);
            // Nothing panics under this lock, so it cannot be poisoned.
            let Ok(mut total) = total.lock() else { return };
            match (&mut *total, bad) {
                (Ok(total), Ok(bad)) => total.extend(bad.into_iter().map(|(sample, fault)| (first + sample, fault))),
                (total, Err(error)) => *total = Err(error),
                (Err(_), Ok(_)) => {}
            }
        });
        let mut total: Vec<BadSample> = total.into_inner().unwrap_or_else(|_| Ok(Vec::new()))?;
        total.sort_unstable_by_key(|(sample, _)| *sample);
        Ok(total)
    }
}

/// A sample on its way.
#[derive(Default)]
struct Lane {
    stream: Stream,
    step: u8,
    /// By tile: the table and the number of low bits of the current run of bands.
    levels: Vec<(u8, u8)>,
    /// The number of low bits of each element before `head`, which ends a block or the sample; from there on there are none.
    raw: Vec<u8>,
    head: usize,
    /// The low bits, with 8 bytes before those of the sample and 16 after them.
    bits: Vec<u8>,
    /// The integers in coded order, in whole blocks.
    numbers: Vec<i32>,
    fault: Option<Fault>,
}

/// Lanes for at most `samples` samples.
fn lanes(samples: usize, plan: &Plan) -> Result<Vec<Lane>> {
    let mut lanes = with_room(GROUP.min(samples))?;
    for _ in 0..GROUP.min(samples) {
        let (levels, raw) = (filled((0, 0), plan.tiles.len())?, filled(0, plan.elements)?);
        let numbers = filled(0, plan.elements.next_multiple_of(BLOCK))?;
        lanes.push(Lane { stream: Stream::new(plan.elements)?, levels, raw, numbers, ..Lane::default() });
    }
    Ok(lanes)
}

fn faults(lanes: &[Lane]) -> impl Iterator<Item = (usize, Fault)> {
    lanes.iter().enumerate().filter_map(|(lane, state)| state.fault.map(|fault| (lane, fault)))
}

/// Reads what comes before the words of each sample.
fn prepare(plan: &Plan, samples: &[&[u8]], lanes: &mut [Lane]) -> Result<()> {
    for (sample, lane) in samples.iter().zip(lanes) {
        lane.fault = if lane.read(sample, plan)? { None } else { Some(Fault::Truncated) };
    }
    Ok(())
}

impl Lane {
    /// Reads what comes before the words. Returns false if the sample ends before them.
    fn read(&mut self, sample: &[u8], plan: &Plan) -> Result<bool> {
        let Some((&[step], rest)) = sample.split_first_chunk() else { return Ok(false) };
        let Some((offsets, rest)) = rest.split_at_checked(plan.tiles.len()) else { return Ok(false) };
        self.step = step;
        let bits = self.choose_tables(offsets, plan);
        let Some((bits, rest)) = rest.split_at_checked(bits.saturating_sub(FREE_BITS).div_ceil(8)) else {
            return Ok(false);
        };
        resize(&mut self.bits, FREE_BITS / 8 + bits.len() + 16)?;
        self.bits[FREE_BITS / 8..][..bits.len()].copy_from_slice(bits);
        // No sample needs more words and escapes than two of each per element.
        self.stream.start(&rest[..rest.len().min(4 * STATES + 4 * plan.elements)])
    }

    /// Sets the table of each element from the offsets of the tiles. Returns the number of low bits.
    fn choose_tables(&mut self, offsets: &[u8], plan: &Plan) -> usize {
        let (tables, levels) = (&mut self.stream.tables, &mut self.levels);
        self.head = 0;
        let mut bits = 0;
        for (base, run) in &plan.runs {
            let (mut low_bits, mut most) = (0, 0);
            for (level, offset) in levels.iter_mut().zip(offsets) {
                *level = LEVELS[usize::from(level_of(*base, *offset as i8))];
                low_bits += usize::from(level.1);
                most = most.max(level.1);
            }
            let tables = &mut tables[run.clone()];
            if plan.is_full {
                repeat(tables, levels, |level| level.0);
            } else {
                for (table, tile) in tables.iter_mut().zip(&plan.tile[run.clone()]) {
                    *table = levels[*tile as usize].0;
                }
            }
            // `base` falls, so once a run has no low bits, none has.
            if most > 0 {
                let raw = &mut self.raw[run.clone()];
                self.head = run.end;
                if plan.is_full {
                    repeat(raw, levels, |level| level.1);
                    bits += low_bits * (raw.len() / levels.len());
                } else {
                    for (raw, tile) in raw.iter_mut().zip(&plan.tile[run.clone()]) {
                        *raw = levels[*tile as usize].1;
                        bits += usize::from(*raw);
                    }
                }
            }
        }
        let end = self.head.next_multiple_of(BLOCK).min(self.raw.len());
        self.raw[self.head..end].fill(0);
        self.head = end;
        bits
    }

    /// Finds the integers. Sets the fault if the sample is damaged.
    #[inline(always)]
    fn find_numbers(&mut self, isa: Isa) {
        let Self { stream, raw, head, bits, numbers, fault, .. } = self;
        if stream.is_short() {
            *fault = Some(Fault::Truncated);
        } else if stream.states.iter().any(|state| state >> 16 != 1) {
            *fault = Some(Fault::Damaged);
        }
        if fault.is_some() {
            return;
        }
        for (bits, state) in bits.chunks_exact_mut(2).zip(stream.states) {
            bits.copy_from_slice(&(state as u16).to_le_bytes());
        }
        let mut rest =
            Rest { raw: &raw[..*head], bits, bit: 0, escapes: stream.words[stream.at..stream.end].as_chunks().0 };
        let mut before = 0;
        for (symbols, numbers) in stream.symbols.chunks(BLOCK).zip(numbers.as_chunks_mut().0) {
            if let Some(after) = rest.levels(isa, symbols, before, numbers) {
                before = after;
                continue;
            }
            let Some(parities) = rest.numbers(isa, symbols, numbers) else {
                *fault = Some(Fault::Truncated);
                return;
            };
            let u = match isa.shift_inputs(first_parities(parities, before)) {
                Some(u) => u,
                None => inputs(first_parities(parities, before)),
            };
            let labels = low_labels(u, before);
            before = last_inputs(u);
            if !isa.add_labels(numbers, labels) {
                add_labels(numbers, labels);
            }
        }
    }

    /// Places the integers in `out` at `positions`. Sets the fault if one does not fit.
    #[inline(always)]
    fn place<N: Number>(&mut self, positions: &[u32], out: &mut [N]) {
        if !scatter(&self.numbers, positions, out) {
            self.fault = Some(Fault::Wide);
        }
    }
}

/// The parts of a sample other than symbols.
struct Rest<'a> {
    /// The numbers of low bits of the elements to come; there are none for elements after these.
    raw: &'a [u8],
    bits: &'a [u8],
    /// The next low bit.
    bit: usize,
    escapes: &'a [[u8; 2]],
}

impl Rest<'_> {
    /// Makes integers of at most [`BLOCK`] symbols. Returns the lowest bit of each, or `None` if there are not enough escapes.
    #[inline(always)]
    fn numbers(&mut self, isa: Isa, symbols: &[u8], numbers: &mut [i32; BLOCK]) -> Option<u64> {
        let (raw, later) = self.raw.split_at(self.raw.len().min(symbols.len()));
        if let Ok(symbols) = symbols.try_into()
            && has_no_escape(symbols)
        {
            if raw.is_empty() {
                if !isa.center_symbols(symbols, numbers) {
                    for (number, symbol) in numbers.iter_mut().zip(symbols) {
                        *number = i32::from(*symbol) - ZERO;
                    }
                }
                return Some(low_bits(symbols)); // of symbol and number alike: `ZERO` is even
            }
            if let Ok(raw) = raw.try_into()
                && most(raw) <= MOST_RAW_TOGETHER
                && let Some((parities, bits)) = isa.add_low_bits(symbols, raw, self.bits, self.bit, numbers)
            {
                (self.raw, self.bit) = (later, self.bit + bits);
                return Some(parities);
            }
        }
        self.numbers_one_by_one(symbols, numbers)
    }

    /// Makes levels of [`BLOCK`] symbols at once, if the instruction set has code for these. Returns the last inputs.
    #[inline(always)]
    fn levels(&mut self, isa: Isa, symbols: &[u8], before: u64, numbers: &mut [i32; BLOCK]) -> Option<u64> {
        let symbols = symbols.try_into().ok()?;
        if self.raw.is_empty() {
            return isa.levels(symbols, before, numbers);
        }
        let (raw, later) = self.raw.split_first_chunk()?;
        let (after, bits) = isa.levels_with_low_bits(symbols, raw, self.bits, self.bit, before, numbers)?;
        (self.raw, self.bit) = (later, self.bit + bits);
        Some(after)
    }

    #[inline(never)] // so that its few variables are in registers
    fn numbers_one_by_one(&mut self, symbols: &[u8], numbers: &mut [i32; BLOCK]) -> Option<u64> {
        let (raw, later) = self.raw.split_at(self.raw.len().min(symbols.len()));
        let (mut parities, mut bit) = (0, self.bit);
        for (i, (number, symbol)) in numbers.iter_mut().zip(symbols).enumerate() {
            let raw = u32::from(raw.get(i).copied().unwrap_or(0));
            let window = self.bits.get(bit >> 3..).and_then(|bits| bits.first_chunk()).unwrap_or(&[0; 4]);
            let low = u32::from_le_bytes(*window) >> (bit & 7) & ((1 << raw) - 1);
            bit += raw as usize;
            *number = (i32::from(*symbol) - ZERO) << raw | low as i32;
            if *symbol == 0 {
                let (escape, escapes) = self.escapes.split_first()?;
                *number = i32::from(i16::from_le_bytes(*escape));
                self.escapes = escapes;
            }
            parities |= u64::from(*number as u32 & 1) << i;
        }
        (self.raw, self.bit) = (later, bit);
        Some(parities)
    }
}

/// Writes integers to their positions. Returns false if one does not fit.
#[inline(never)] // so that its few variables are in registers
fn scatter<N: Number>(numbers: &[i32], positions: &[u32], out: &mut [N]) -> bool {
    let mut fits = true;
    for (number, position) in numbers.iter().zip(positions) {
        fits &= N::fits(*number);
        out[*position as usize] = N::of(*number);
    }
    fits
}

#[inline(always)]
fn most(raw: &[u8; BLOCK]) -> u8 {
    raw.iter().fold(0, |most, raw| most.max(*raw))
}

/// True if no symbol is 0.
#[inline(always)]
fn has_no_escape(symbols: &[u8; BLOCK]) -> bool {
    symbols.iter().fold(u8::MAX, |least, symbol| least.min(*symbol)) != 0
}

/// The lowest bits of 64 bytes.
#[inline(always)]
fn low_bits(bytes: &[u8; BLOCK]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The product has the lowest bit of byte i at bit 56 + i, and no carries.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let mut bits = 0;
    for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        bits |= ((u64::from_le_bytes(*eight) & ONES).wrapping_mul(GATHER) >> 56) << (8 * i);
    }
    bits
}

/// Parities as if the u before were 0. Bit 0 of `before` is the last u of the block before, bit 1 the one before that, bit 2 the
/// third.
#[inline(always)]
pub const fn first_parities(parities: u64, before: u64) -> u64 {
    parities ^ (before & 1) ^ (before >> 2 & 1) ^ (before >> 1 & 1) << 1 ^ (before & 1) << 2
}

/// The inputs u of the shift register that gave these parities: `u[i] = parity[i] ^ u[i - 1] ^ u[i - 3]`. As polynomials over
/// GF(2), this divides by 1 + D + D^3, whose inverse is the product of its squares, the squares of these and so on:
/// 1 + D^(2^j) + D^(3 * 2^j).
#[inline(always)]
pub const fn inputs(parities: u64) -> u64 {
    let mut u = parities;
    u ^= u << 1 ^ u << 3;
    u ^= u << 2 ^ u << 6;
    u ^= u << 4 ^ u << 12;
    u ^= u << 8 ^ u << 24;
    u ^= u << 16 ^ u << 48;
    u ^ u << 32
}

/// The lowest bit of the label of each element of a block.
#[inline(always)]
pub const fn low_labels(u: u64, before: u64) -> u64 {
    u << 2 | (before & 1) << 1 | before >> 1 & 1
}

/// The last three u of a block, as `before` of [`first_parities`].
#[inline(always)]
pub const fn last_inputs(u: u64) -> u64 {
    u >> 63 | (u >> 62 & 1) << 1 | (u >> 61 & 1) << 2
}

/// Makes levels of integers: `2 k`, plus the lowest bit of the label.
#[inline(always)]
fn add_labels(numbers: &mut [i32; BLOCK], labels: u64) {
    for (eight, byte) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(labels.to_le_bytes()) {
        for (i, number) in eight.iter_mut().enumerate() {
            *number = (*number << 1) + i32::from(i32::from(byte) & 1 << i != 0);
        }
    }
}

/// Entropy-decodes the samples of lanes without a fault.
#[inline(always)]
fn decode_words(isa: Isa, transform: &Transform, lanes: &mut [Lane]) {
    let mut streams: [Option<&mut Stream>; GROUP] = Default::default();
    let whole = lanes.iter_mut().filter(|lane| lane.fault.is_none());
    streams.iter_mut().zip(whole).for_each(|(stream, lane)| *stream = Some(&mut lane.stream));
    decode_streams(isa, &transform.entries, &mut streams);
}

/// Buffers for a group of samples.
struct Scratch {
    /// The tiles of a sample, or eight tiles side by side.
    coefficients: Vec<f32>,
    /// The integers of a group: all tiles of a band next to each other.
    columns: Vec<i32>,
    /// The mean of each channel in steps.
    zero: Vec<f32>,
    /// Values before they are rounded to a smaller type.
    wide: Vec<f32>,
}

impl Scratch {
    fn new<F: Float>(channels: usize, plan: &Plan, samples: usize) -> Result<Self> {
        let columns = if plan.tiles.len().is_multiple_of(8) { 0 } else { columns(plan, samples) * channels * TILE };
        let wide = if size_of::<F::Bits>() == size_of::<f32>() { 0 } else { samples * plan.elements };
        Ok(Self {
            coefficients: filled(0.0, plan.tiled_len(channels).max(channels * EIGHT_LEN))?,
            columns: filled(0, if plan.is_full { columns } else { 0 })?,
            zero: filled(0.0, channels * 8)?,
            wide: filled(0.0, wide)?,
        })
    }
}

/// The number of tiles of some samples, in whole vectors.
fn columns(plan: &Plan, samples: usize) -> usize {
    (plan.tiles.len() * samples).next_multiple_of(8)
}

/// The decode kernel for at most [`GROUP`] samples.
struct DecodeGroup<'a, F: Float> {
    transform: &'a Transform,
    plan: &'a Plan,
    isa: Isa,
    lanes: &'a mut [Lane],
    scratch: &'a mut Scratch,
    out: &'a mut [F::Bits],
}

impl<F: Float> Kernel for DecodeGroup<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { transform, plan, isa, lanes, scratch, out } = self;
        decode_words(isa, transform, lanes);
        for lane in lanes.iter_mut().filter(|lane| lane.fault.is_none()) {
            lane.find_numbers(isa);
        }
        let mut wide = std::mem::take(&mut scratch.wide);
        for (lanes, out) in lanes.chunks_mut(SAMPLES).zip(out.chunks_mut(SAMPLES * plan.elements)) {
            if let Some(FloatsMut::F32(out)) = F::floats_mut(out) {
                inverse(isa, transform, plan, lanes, scratch, out);
            } else {
                let wide = &mut wide[..out.len()];
                inverse(isa, transform, plan, lanes, scratch, wide);
                isa.narrow::<F>(wide, out);
            }
        }
        scratch.wide = wide;
        for (lane, out) in lanes.iter().zip(out.chunks_exact_mut(plan.elements)) {
            if lane.fault.is_some() {
                out.fill(F::narrow(0.0));
            }
        }
    }
}

/// Integers to values of some samples. A sample with a fault has any values.
#[inline(always)]
fn inverse(isa: Isa, transform: &Transform, plan: &Plan, lanes: &mut [Lane], scratch: &mut Scratch, out: &mut [f32]) {
    if plan.is_full && lanes.len() * plan.tiles.len() >= LEAST_TOGETHER && isa.has_eight_tiles() {
        return inverse_together(isa, transform, plan, lanes, scratch, out);
    }
    let (channels, shape) = (transform.channels(), (plan.height, plan.width));
    for (lane, out) in lanes.iter_mut().zip(out.chunks_exact_mut(plan.elements)) {
        if lane.fault.is_some() {
            continue;
        }
        let zero = &mut scratch.zero[..channels];
        let step = transform.step(lane.step);
        for (zero, mean) in zero.iter_mut().zip(&transform.tables.mean) {
            *zero = *mean / step;
        }
        lane.place(&plan.tiled, &mut scratch.coefficients);
        // No closures around large kernels: they would not be compiled for the instruction set.
        for (values, tile) in scratch.coefficients.chunks_exact_mut(Plan::tile_len(channels)).zip(&plan.tiles) {
            let values = &mut values[..channels * TILE];
            inverse_tile(isa, &transform.basis, zero, step, *tile, values, out, shape);
        }
    }
}

/// [`inverse`] for whole tiles, eight at a time: of a sample, or of several.
#[inline(always)]
fn inverse_together(
    isa: Isa,
    transform: &Transform,
    plan: &Plan,
    lanes: &[Lane],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Scratch { coefficients, columns: together, zero, .. } = scratch;
    let tiles = plan.tiles.len();
    let is_alone = tiles.is_multiple_of(8);
    let stride = if is_alone { tiles } else { columns(plan, lanes.len()) };
    if !is_alone {
        interleave(isa, lanes, tiles, stride, together);
    }
    let count = lanes.len() * tiles;
    for first in (0..count).step_by(8) {
        let mut eight = EightTiles {
            basis: &transform.basis,
            ranks: &plan.ranks,
            stride,
            first: if is_alone { first % tiles } else { first },
            zero,
            steps: [1.0; 8],
            starts: [0; 8],
            count: (count - first).min(8),
            height: plan.height,
            width: plan.width,
            coefficients,
        };
        for column in 0..eight.count {
            let (sample, tile) = ((first + column) / tiles, plan.tiles[(first + column) % tiles]);
            let step = transform.step(lanes[sample].step);
            eight.steps[column] = step;
            eight.starts[column] = sample * plan.elements + tile.row * plan.width + tile.column;
            for (zero, mean) in eight.zero.as_chunks_mut::<8>().0.iter_mut().zip(&transform.tables.mean) {
                zero[column] = *mean / step;
            }
        }
        let numbers = if is_alone { &lanes[first / tiles].numbers } else { &*together };
        isa.inverse_eight_tiles(&mut eight, numbers, out);
    }
}

/// Writes the integers of all samples: for each band, those of each sample's tiles.
#[inline(always)]
fn interleave(isa: Isa, lanes: &[Lane], tiles: usize, stride: usize, out: &mut [i32]) {
    if let (1, Ok(lanes)) = (tiles, <&[Lane; 8]>::try_from(lanes))
        && isa.interleave_eight(lanes.each_ref().map(|lane| &lane.numbers[..]), out)
    {
        return;
    }
    for (sample, lane) in lanes.iter().enumerate() {
        for (row, numbers) in out.chunks_exact_mut(stride).zip(lane.numbers.chunks_exact(tiles)) {
            row[sample * tiles..][..tiles].copy_from_slice(numbers);
        }
    }
}

/// The kernel that decodes at most [`GROUP`] samples to integers.
struct DecodeNumbers<'a, N: Number> {
    transform: &'a Transform,
    plan: &'a Plan,
    isa: Isa,
    lanes: &'a mut [Lane],
    out: &'a mut [N],
}

impl<N: Number> Kernel for DecodeNumbers<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { transform, plan, isa, lanes, out } = self;
        decode_words(isa, transform, lanes);
        for (lane, out) in lanes.iter_mut().zip(out.chunks_exact_mut(plan.elements)) {
            if lane.fault.is_none() {
                lane.find_numbers(isa);
            }
            if lane.fault.is_none() {
                lane.place(&plan.order, out);
            }
            if lane.fault.is_some() {
                out.fill(N::default());
            }
        }
    }
}

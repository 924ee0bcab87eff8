//! Encoding: values to coefficients, coefficients to integers by the trellis, integers to bytes.

use std::sync::PoisonError;

use super::order::{Plan, repeat};
use super::rans::{self, LOW};
use super::rates::{LEAST_OFFSET, OFFSETS, ROW, ROWS_TOGETHER, Rates, WINDOWS};
use super::spatial::forward_tile;
use super::tables::TILE;
use super::{
    BadSample, FREE_BITS, Fault, LEVELS, LIMIT, PERIOD, SAME_STEP, STATES, SYMBOLS, TABLES, Transform, ZERO, level_of,
};
use crate::memory::{append, filled, reserve, resize, with_room};
use crate::parallel::for_each_chunk;
use crate::quant::arch::Isa;
use crate::quant::arrays::sample_len;
use crate::quant::floats::{BF16, F16, F32, F64, Float, Floats};
use crate::quant::kernel::{CHUNK, Kernel, LABELS, ROUND};
use crate::quant::viterbi::{LANES, Metric, STEP};
use crate::{Error, Result};

/// The largest coefficient, in steps: its integer must fit in 16 bits.
const LARGEST: f64 = 65_000.0;

/// Elements that are compared together, if the instruction set has code for that.
const SIXTEEN: usize = 16;

/// Steps that are tried for a budget.
const TURNS: u32 = 12;

/// The number of first turns that follow the slope; later ones bisect.
const SLOPE_TURNS: u32 = 3;

/// Steps of the step byte that save a bit per element.
const STEPS_PER_BIT: f64 = 32.0;

/// Encoded samples, one after the other.
#[derive(Debug, Default, PartialEq)]
pub struct EncodedRows {
    /// The bytes of all samples.
    pub bytes: Vec<u8>,
    /// The length of each sample. A bad sample has no bytes, or as many zeros as the budget.
    pub lengths: Vec<usize>,
    /// The samples that cannot be encoded, ascending.
    pub bad: Vec<BadSample>,
}

impl Transform {
    /// Encodes `x` (N, C, height, width). With `budget`, every sample has that many bytes, and the smallest step for which it
    /// fits; without, every sample has the step of the tables and the bytes that it needs.
    ///
    /// # Errors
    /// An argument error if `x` is not whole samples, or their shape is out of range; a memory error.
    pub fn encode(
        &self,
        x: Floats<'_>,
        shape: (usize, usize),
        budget: Option<usize>,
        threads: usize,
    ) -> Result<EncodedRows> {
        self.encode_with(Isa::best(), x, shape, budget, threads)
    }

    /// [`Transform::encode`] with a given instruction set.
    pub fn encode_with(
        &self,
        isa: Isa,
        x: Floats<'_>,
        shape: (usize, usize),
        budget: Option<usize>,
        threads: usize,
    ) -> Result<EncodedRows> {
        match x {
            Floats::F32(x) => self.encode_as::<F32>(isa, x, shape, budget, threads),
            Floats::F16(x) => self.encode_as::<F16>(isa, x, shape, budget, threads),
            Floats::BF16(x) => self.encode_as::<BF16>(isa, x, shape, budget, threads),
            Floats::F64(x) => self.encode_as::<F64>(isa, x, shape, budget, threads),
        }
    }

    fn encode_as<F: Float>(
        &self,
        isa: Isa,
        x: &[F::Bits],
        (height, width): (usize, usize),
        budget: Option<usize>,
        threads: usize,
    ) -> Result<EncodedRows> {
        let plan = &*self.plan(height, width)?;
        sample_len(x.len(), self.channels(), height * width)?;
        let together = CHUNK.div_ceil(plan.elements).next_multiple_of(LANES);
        let chunks: Vec<&[F::Bits]> = x.chunks(together * plan.elements).collect();
        let mut parts: Vec<Result<EncodedRows>> = with_room(chunks.len())?;
        parts.resize_with(chunks.len(), || Ok(EncodedRows::default()));
        for_each_chunk(&mut parts, 1, threads, |index, part| {
            part[0] = match isa.lanes() {
                LANES => self.encode_chunk::<F, LANES>(isa, plan, chunks[index], budget),
                _ => self.encode_chunk::<F, 8>(isa, plan, chunks[index], budget),
            };
        });
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_else(|| Ok(EncodedRows::default()))?;
        for part in parts {
            let part = part?;
            let first = all.lengths.len();
            append(&mut all.bytes, &part.bytes)?;
            all.lengths.extend(part.lengths);
            all.bad.extend(part.bad.into_iter().map(|(sample, fault)| (first + sample, fault)));
        }
        Ok(all)
    }

    fn encode_chunk<F: Float, const L: usize>(
        &self,
        isa: Isa,
        plan: &Plan,
        x: &[F::Bits],
        budget: Option<usize>,
    ) -> Result<EncodedRows> {
        let samples = x.len() / plan.elements;
        let mut buffers = self.take_buffers();
        let mut coefficients = std::mem::take(&mut buffers.coefficients);
        resize(&mut coefficients, x.len())?;
        let mut searches: Vec<Search> = with_room(samples)?;
        let mut forward = Forward::new(self, plan)?;
        let each = x.chunks_exact(plan.elements).zip(coefficients.chunks_exact_mut(plan.elements));
        for (x, out) in each {
            let peak = forward.run::<F>(isa, x, out);
            searches.push(Search::new(peak, self.tables.step, budget));
        }
        let mut attempt = Attempt::<L>::with(buffers, self, plan, &self.rates, samples)?;
        loop {
            let open: Vec<usize> = (0..samples).filter(|sample| searches[*sample].is_open).collect();
            if open.is_empty() {
                break;
            }
            for group in open.chunks(L) {
                for (lane, sample) in group.iter().enumerate() {
                    let step = self.step(searches[*sample].step as u8);
                    let y = &coefficients[sample * plan.elements..][..plan.elements];
                    isa.run(Divide { y, step, out: &mut attempt.lanes[lane].y });
                }
                attempt.quantize(isa, group.len());
                for (lane, sample) in group.iter().enumerate() {
                    let search = &mut searches[*sample];
                    search.next(attempt.pack(lane, search.step as u8)?, plan.elements)?;
                }
            }
        }
        self.keep_buffers(Buffers { coefficients, ..attempt.into_buffers() });
        let mut out = EncodedRows { lengths: with_room(samples)?, ..EncodedRows::default() };
        for (sample, search) in searches.into_iter().enumerate() {
            let start = out.bytes.len();
            match search.fault {
                None => append(&mut out.bytes, &search.best)?,
                Some(fault) => out.bad.push((sample, fault)),
            }
            if let Some(budget) = budget {
                resize(&mut out.bytes, start + budget)?;
            }
            out.lengths.push(out.bytes.len() - start);
        }
        Ok(out)
    }
}

/// Buffers of an encoder that are kept for its next samples: the system takes a quarter of the time to give fresh memory for
/// large ones.
#[derive(Debug, Default)]
pub struct Buffers {
    coefficients: Vec<f32>,
    lanes: Vec<Lane>,
    paths: Vec<u8>,
    words: Vec<u16>,
}

/// Buffers of more bytes are not kept.
const MOST_BYTES: usize = 1 << 25;

/// Buffers that are kept at most: one for each thread of a large machine.
const MOST_BUFFERS: usize = 64;

impl Transform {
    fn take_buffers(&self) -> Buffers {
        // Nothing panics under this lock, so it cannot be poisoned.
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pop().unwrap_or_default()
    }

    fn keep_buffers(&self, buffers: Buffers) {
        let elements =
            buffers.coefficients.capacity() + buffers.lanes.iter().map(|lane| 3 * lane.y.capacity()).sum::<usize>();
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if size_of::<f32>() * elements <= MOST_BYTES && kept.len() < MOST_BUFFERS && kept.try_reserve(1).is_ok() {
            kept.push(buffers);
        }
    }
}

/// The search for the step of a sample.
struct Search {
    budget: Option<usize>,
    step: i32,
    low: i32,
    high: i32,
    turn: u32,
    /// The bytes of the smallest step that fits so far.
    best: Vec<u8>,
    is_open: bool,
    fault: Option<Fault>,
}

impl Search {
    /// Begins with the largest coefficient of a sample, unless that is a fault.
    fn new(peak: std::result::Result<f32, Fault>, step: f32, budget: Option<usize>) -> Self {
        let steps = peak.map(|peak| f64::from(peak) / f64::from(step));
        // The smallest step at which the integers fit in 16 bits, also if the budget would allow a smaller one.
        let (low, fault) = match steps {
            Ok(steps) if steps.is_finite() => {
                let low = f64::from(SAME_STEP) + (32.0 * (steps.max(1.0) / LARGEST).log2()).ceil();
                (low.max(0.0) as i32, (low > 255.0).then_some(Fault::TooLarge))
            }
            Ok(_) => (0, Some(Fault::TooLarge)),
            Err(fault) => (0, Some(fault)),
        };
        let step = low.max(i32::from(SAME_STEP));
        Self { budget, step, low, high: 255, turn: 0, best: Vec::new(), is_open: fault.is_none(), fault }
    }

    /// Takes the bytes of a sample at the current step, and finds the step to try next.
    fn next(&mut self, bytes: &[u8], elements: usize) -> Result<()> {
        let Some(budget) = self.budget else {
            self.is_open = false;
            return append(&mut self.best, bytes);
        };
        let excess = (bytes.len() as f64 - budget as f64) * 8.0 * STEPS_PER_BIT / elements as f64;
        if excess <= 0.0 {
            self.best.clear();
            append(&mut self.best, bytes)?;
            self.high = self.step;
        } else {
            self.low = self.step + 1;
        }
        self.turn += 1;
        let is_left = self.low < self.high || self.best.is_empty() && self.low == self.high;
        self.is_open = is_left && self.turn < TURNS;
        if self.is_open {
            let guess = match self.turn {
                ..=SLOPE_TURNS if excess > 0.0 => self.step + excess.ceil() as i32,
                ..=SLOPE_TURNS => self.step + excess.trunc() as i32 - 1,
                _ => (self.low + self.high) / 2,
            };
            let highest = if self.best.is_empty() { self.high } else { self.high - 1 };
            self.step = guess.max(self.low).min(highest);
        } else if self.best.is_empty() {
            self.fault = Some(Fault::NoRoom);
        }
        Ok(())
    }
}

/// Scratch space of the forward transform of a sample.
pub struct Forward<'a> {
    transform: &'a Transform,
    plan: &'a Plan,
    wide: Vec<f32>,
    buffer: Vec<f32>,
    tiled: Vec<f32>,
}

impl<'a> Forward<'a> {
    pub fn new(transform: &'a Transform, plan: &'a Plan) -> Result<Self> {
        Ok(Self {
            transform,
            plan,
            wide: filled(0.0, plan.elements)?,
            buffer: filled(0.0, transform.channels() * TILE)?,
            tiled: filled(0.0, plan.tiled_len(transform.channels()))?,
        })
    }

    /// Writes the coefficients of a sample in coded order. Returns the largest magnitude, or the first channel that has a NaN
    /// or an infinity.
    pub fn run<F: Float>(&mut self, isa: Isa, x: &[F::Bits], out: &mut [f32]) -> std::result::Result<f32, Fault> {
        let x = if let Floats::F32(x) = F::floats(x) {
            x
        } else {
            isa.widen::<F>(x, &mut self.wide);
            &self.wide
        };
        isa.run(ForwardSample {
            isa,
            transform: self.transform,
            plan: self.plan,
            x,
            buffer: &mut self.buffer,
            tiled: &mut self.tiled,
            out,
        })
    }
}

struct ForwardSample<'a> {
    isa: Isa,
    transform: &'a Transform,
    plan: &'a Plan,
    x: &'a [f32],
    buffer: &'a mut [f32],
    tiled: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for ForwardSample<'_> {
    type Output = std::result::Result<f32, Fault>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { isa, transform, plan, x, buffer, tiled, out } = self;
        if !all_finite(x) {
            let bad = x.iter().position(|x| !x.is_finite()).unwrap_or_default();
            return Err(Fault::NotFinite(bad / (plan.height * plan.width)));
        }
        let shape = (plan.height, plan.width);
        for (tile, tiled) in plan.tiles.iter().zip(tiled.chunks_exact_mut(Plan::tile_len(transform.channels()))) {
            let tiled = &mut tiled[..buffer.len()];
            forward_tile(isa, &transform.inverse, &transform.tables.mean, *tile, x, shape, buffer, tiled);
        }
        for (out, position) in out.iter_mut().zip(&plan.tiled) {
            *out = tiled[*position as usize];
        }
        // Magnitudes by their bits, which have a NaN above all.
        Ok(f32::from_bits(out.iter().fold(0, |peak, out| out.abs().to_bits().max(peak))))
    }
}

#[inline(always)]
fn all_finite(x: &[f32]) -> bool {
    x.chunks(64).all(|x| x.iter().fold(true, |finite, x| finite & x.is_finite()))
}

/// Divides the coefficients of a sample by its step.
pub struct Divide<'a> {
    pub y: &'a [f32],
    pub step: f32,
    pub out: &'a mut [f32],
}

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, y) in self.out.iter_mut().zip(self.y) {
            *out = *y / self.step;
        }
    }
}

/// A sample of a group.
#[derive(Debug, Default)]
pub struct Lane {
    /// The coefficients in steps, in coded order.
    pub y: Vec<f32>,
    /// The t of each element.
    pub t: Vec<u8>,
    /// The offset of each tile.
    pub offsets: Vec<i8>,
    /// First where the rates of each rounded coefficient are; then the choice of each element; then the level.
    pub levels: Vec<i32>,
    /// The index of the symbol of each element among those of all tables.
    symbols: Vec<u16>,
}

/// Quantizing at most L samples, each with its own step.
pub struct Attempt<'a, const L: usize> {
    transform: &'a Transform,
    plan: &'a Plan,
    rates: &'a Rates,
    pub lanes: Vec<Lane>,
    /// By element, a byte for each of the L lanes.
    paths: Vec<u8>,
    bits: Vec<u8>,
    words: Vec<u16>,
    escapes: Vec<i16>,
    bytes: Vec<u8>,
    /// False if all offsets are 0.
    pub has_offsets: bool,
}

impl<'a, const L: usize> Attempt<'a, L> {
    pub fn new(transform: &'a Transform, plan: &'a Plan, rates: &'a Rates, samples: usize) -> Result<Self> {
        Self::with(Buffers::default(), transform, plan, rates, samples)
    }

    fn with(
        buffers: Buffers,
        transform: &'a Transform,
        plan: &'a Plan,
        rates: &'a Rates,
        samples: usize,
    ) -> Result<Self> {
        let Buffers { mut lanes, mut paths, mut words, .. } = buffers;
        lanes.try_reserve(L).map_err(|_| Error::memory(L * size_of::<Lane>()))?;
        lanes.resize_with(lanes.len().max(L.min(samples)), Lane::default);
        for Lane { y, t, offsets, levels, symbols } in &mut lanes {
            resize(y, plan.elements)?;
            resize(t, plan.elements)?;
            offsets.clear(); // they are 0 for an attempt without offsets
            resize(offsets, plan.tiles.len())?;
            resize(levels, plan.elements)?;
            resize(symbols, plan.elements)?;
        }
        resize(&mut paths, L * plan.elements)?;
        resize(&mut words, plan.elements + 1)?;
        Ok(Self {
            transform,
            plan,
            rates,
            lanes,
            paths,
            bits: Vec::new(),
            words,
            escapes: with_room(plan.elements)?,
            bytes: Vec::new(),
            has_offsets: true,
        })
    }

    fn into_buffers(self) -> Buffers {
        let Self { lanes, paths, words, .. } = self;
        Buffers { lanes, paths, words, ..Buffers::default() }
    }

    /// Chooses offsets and levels for the coefficients of the first `count` lanes.
    pub fn quantize(&mut self, isa: Isa, count: usize) {
        let Self { plan, rates, has_offsets, .. } = *self;
        let (lanes, paths) = (&mut self.lanes[..count], self.paths.as_chunks_mut::<L>().0);
        isa.run(QuantizeGroup { isa, plan, rates, has_offsets, lanes, paths });
    }

    /// Packs the levels of a lane.
    pub fn pack(&mut self, lane: usize, step: u8) -> Result<&[u8]> {
        let Self { transform, plan, lanes, bits, words, escapes, bytes, .. } = self;
        let Lane { t, offsets, levels, symbols, .. } = &lanes[lane];
        bits.clear();
        escapes.clear();
        bytes.clear();
        let (mut window, mut filled) = (0u64, 0);
        let head = plan.low_bits_end(offsets);
        for (level, t) in levels[..head].iter().zip(t) {
            let (_, raw) = LEVELS[usize::from(*t)];
            window |= u64::from((level >> 1) as u32 & ((1 << raw) - 1)) << filled;
            filled += u32::from(raw);
            if filled >= 32 {
                append(bits, &(window as u32).to_le_bytes())?;
                (window, filled) = (window >> 32, filled - 32);
            }
        }
        append(bits, &window.to_le_bytes()[..filled.div_ceil(8) as usize])?;
        let first = bits.len().min(FREE_BITS / 8);
        let mut free = [0; FREE_BITS / 8];
        free[..first].copy_from_slice(&bits[..first]);
        let mut states = [0; STATES];
        for (state, bits) in states.iter_mut().zip(free.as_chunks().0) {
            *state = LOW + u32::from(u16::from_le_bytes(*bits));
        }
        let all = transform.symbols.first_chunk().ok_or_else(|| Error::argument("no symbols"))?;
        let (states, at, has_escape) = rans::encode(all, symbols, states, words);
        if has_escape {
            let of_escapes = levels.iter().zip(symbols.iter()).filter(|(_, index)| all[usize::from(**index)].is_escape);
            escapes.extend(of_escapes.map(|(level, _)| (level >> 1) as i16));
        }
        let words = &words[at..];
        reserve(bytes, 1 + offsets.len() + bits.len() + 4 * STATES + 2 * words.len() + 2 * escapes.len())?;
        bytes.push(step);
        bytes.extend(offsets.iter().map(|offset| *offset as u8));
        bytes.extend_from_slice(&bits[first..]);
        states.iter().for_each(|state| bytes.extend_from_slice(&state.to_le_bytes()));
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        escapes.iter().for_each(|escape| bytes.extend_from_slice(&escape.to_le_bytes()));
        Ok(bytes)
    }
}

struct QuantizeGroup<'a, const L: usize> {
    isa: Isa,
    plan: &'a Plan,
    rates: &'a Rates,
    has_offsets: bool,
    lanes: &'a mut [Lane],
    paths: &'a mut [[u8; L]],
}

impl<const L: usize> Kernel for QuantizeGroup<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, plan, rates, has_offsets, lanes, paths } = self;
        for lane in lanes.iter_mut() {
            if has_offsets {
                choose_offsets(isa, plan, rates, lane);
            }
            set_t(plan, lane);
        }
        find_paths(isa, rates, lanes, paths);
        for (number, lane) in lanes.iter_mut().enumerate() {
            let Lane { t, levels, symbols, .. } = lane;
            let mut path = [0; STEP];
            let steps = levels.chunks_mut(STEP).zip(symbols.chunks_mut(STEP)).zip(t.chunks(STEP));
            for (((levels, symbols), t), paths) in steps.zip(paths.chunks(STEP)) {
                path.iter_mut().zip(paths).for_each(|(path, paths)| *path = paths[number]);
                for (((level, symbol), t), path) in levels.iter_mut().zip(symbols).zip(t).zip(path) {
                    *level = chosen(*level, path);
                    *symbol = symbol_of(*level, *t);
                }
            }
        }
    }
}

/// The index of the symbol of a level among those of all tables, also if it has no frequency.
#[inline(always)]
fn symbol_of(level: i32, t: u8) -> u16 {
    // `LEVELS`, computed, so that there are no look-ups.
    const FIRST: u32 = (TABLES - PERIOD) as u32;
    let raw = (u32::from(t).saturating_sub(FIRST) * 171) >> 9;
    let symbol = level >> 1 >> raw;
    let index = if symbol.abs() <= LIMIT { symbol + ZERO } else { 0 };
    ((u32::from(t) - PERIOD as u32 * raw) * SYMBOLS as u32) as u16 + index as u16
}

/// Rounds half to even, for magnitudes below 2^22.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// Rounds half to even to an integer, for magnitudes below 2^22.
#[inline(always)]
fn integer(x: f32) -> i32 {
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// Chooses the offset of each tile that takes the fewest bits for the coefficients, rounded without the trellis.
#[inline(always)]
fn choose_offsets(isa: Isa, plan: &Plan, rates: &Rates, lane: &mut Lane) {
    for ((at, y), base) in lane.levels.iter_mut().zip(&lane.y).zip(&plan.base) {
        *at = Rates::row(integer(*y * 0.5), *base);
    }
    let is_far = lane.levels.iter().fold(false, |any, at| any | (*at < 0));
    let mut members = &plan.members[..];
    for (tile, offset) in plan.tiles.iter().zip(&mut lane.offsets) {
        let count = plan.elements / (plan.height * plan.width) * tile.height * tile.width;
        let mut sums = [0u32; ROW];
        let (now, later) = members.split_at(count);
        for members in now.chunks(ROWS_TOGETHER) {
            let mut rows = [0; ROWS_TOGETHER];
            for (row, member) in rows.iter_mut().zip(members) {
                *row = lane.levels[*member as usize];
            }
            if is_far {
                let far = rows.iter_mut().zip(members).filter(|(row, _)| **row < 0);
                for (row, member) in far {
                    let element = *member as usize;
                    rates.add_far(integer(lane.y[element] * 0.5), plan.base[element], &mut sums);
                    *row = 0;
                }
            }
            rates.add_rows(isa, &rows, &mut sums);
        }
        members = later;
        let mut best = 0;
        for (number, sum) in sums.iter().enumerate().take(OFFSETS) {
            if *sum < sums[best] {
                best = number;
            }
        }
        *offset = (LEAST_OFFSET + best as i32) as i8;
    }
}

/// Sets the t of each element.
#[inline(always)]
fn set_t(plan: &Plan, lane: &mut Lane) {
    let Lane { t, offsets, .. } = lane;
    for (base, run) in &plan.runs {
        let t = &mut t[run.clone()];
        if plan.is_full {
            repeat(t, offsets, |offset| level_of(*base, *offset));
        } else {
            for (t, tile) in t.iter_mut().zip(&plan.tile[run.clone()]) {
                *t = level_of(*base, offsets[*tile as usize]);
            }
        }
    }
}

/// Finds the choice of each lane and element, and the label (bits 0 and 1) of the best path.
#[inline(always)]
fn find_paths<const L: usize>(isa: Isa, rates: &Rates, lanes: &mut [Lane], paths: &mut [[u8; L]]) {
    let mut metric = Metric::<L>::START;
    let mut costs = [[[0.0; L]; LABELS]; STEP];
    let mut lows = [0; STEP];
    for (number, paths) in paths.chunks_mut(STEP).enumerate() {
        let start = number * STEP;
        let costs = &mut costs[..paths.len()];
        for (lane, values) in lanes.iter_mut().enumerate() {
            let y = &values.y[start..][..paths.len()];
            let (choices, t) = (&mut values.levels[start..][..paths.len()], &values.t[start..][..paths.len()]);
            lowest(y, &mut lows[..y.len()]);
            let mut at = 0;
            while at < y.len() {
                at += compare_sixteen(isa, rates, at, t, y, &lows, lane, costs, choices);
                let end = y.len().min(at + SIXTEEN);
                while at < end {
                    at += if compare_two(isa, rates, at, t, y, &lows, lane, costs, choices) {
                        2
                    } else {
                        choices[at] = compare(isa, rates, usize::from(t[at]), y[at], lows[at], lane, &mut costs[at]);
                        1
                    };
                }
            }
        }
        metric.advance(isa, costs, paths);
    }
    metric.finish(paths);
}

/// For each y the lowest of the four levels that are the nearest of their labels; the others follow it.
#[inline(always)]
fn lowest(y: &[f32], lows: &mut [i32]) {
    for (low, y) in lows.iter_mut().zip(y) {
        let mut least = round(*y * 0.25) * 4.0;
        for label in [1.0, 2.0, 3.0] {
            let level = round((*y - label) * 0.25) * 4.0 + label;
            least = if level < least { level } else { least };
        }
        *low = integer(least);
    }
}

/// [`compare`] for as many elements from `at` on as can be done in sixteens, next to each other. Returns their number.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn compare_sixteen<const L: usize>(
    isa: Isa,
    rates: &Rates,
    at: usize,
    t: &[u8],
    y: &[f32],
    lows: &[i32; STEP],
    lane: usize,
    costs: &mut [[[f32; L]; LABELS]],
    choices: &mut [i32],
) -> usize {
    let (t, y) = (t[at..].as_chunks::<SIXTEEN>().0, y[at..].as_chunks().0);
    let (costs, choices) = (costs[at..].as_chunks_mut().0, choices[at..].as_chunks_mut().0);
    let (elements, out) = (t.iter().zip(y).zip(lows[at..].as_chunks().0), costs.iter_mut().zip(choices));
    for (number, (((t, y), low), (costs, choices))) in elements.zip(out).enumerate() {
        if !rates.compare(isa, t, y, low, lane, costs, choices) {
            return SIXTEEN * number;
        }
    }
    SIXTEEN * t.len()
}

/// [`compare`] for the elements `at` and `at + 1`. Returns false if nothing is done.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn compare_two<const L: usize>(
    isa: Isa,
    rates: &Rates,
    at: usize,
    t: &[u8],
    y: &[f32],
    lows: &[i32; STEP],
    lane: usize,
    costs: &mut [[[f32; L]; LABELS]],
    choices: &mut [i32],
) -> bool {
    let (Some(t), Some(y), Some(low)) = (t[at..].first_chunk(), y[at..].first_chunk(), lows[at..].first_chunk()) else {
        return false;
    };
    let [t0, t1] = t.map(|t: u8| usize::from(t));
    if t0.max(t1) >= WINDOWS {
        return false;
    }
    let windows = [rates.window(t0, low[0]), rates.window(t1, low[1])];
    let Some((by_label, gives_way)) = isa.compare_levels(windows, y, low) else { return false };
    for i in 0..2 {
        write_costs(isa, by_label[i], lane, &mut costs[at + i]);
        choices[at + i] = low[i] << LABELS | gives_way[i];
    }
    true
}

/// Writes the costs of the four levels from `low` on, or of the next of the same label towards zero if that costs less. Returns
/// the choice: `low`, and in bit i whether level `low + i` gives way.
#[inline(always)]
fn compare<const L: usize>(
    isa: Isa,
    rates: &Rates,
    t: usize,
    y: f32,
    low: i32,
    lane: usize,
    costs: &mut [[f32; L]; LABELS],
) -> i32 {
    let (by_label, gives_way) = if t < WINDOWS {
        let window = rates.window(t, low);
        compare_plain(y, low, |level| window[(level - low + 4) as usize % 12])
    } else {
        compare_plain(y, low, |level| rates.cost(t, level))
    };
    write_costs(isa, by_label, lane, costs);
    low << LABELS | gives_way
}

#[inline(always)]
fn write_costs<const L: usize>(isa: Isa, by_label: [f32; LABELS], lane: usize, costs: &mut [[f32; L]; LABELS]) {
    if isa.has_labels_together() {
        costs.as_flattened_mut().as_chunks_mut::<LABELS>().0[lane] = by_label;
    } else {
        costs.iter_mut().zip(by_label).for_each(|(costs, cost)| costs[lane] = cost);
    }
}

/// Costs by label, and the choice, of the levels from `low` on.
#[inline(always)]
fn compare_plain(y: f32, low: i32, bits: impl Fn(i32) -> f32) -> ([f32; LABELS], i32) {
    let (mut by_label, mut gives_way) = ([0.0; LABELS], 0);
    for i in 0..LABELS as i32 {
        let near = low + i;
        let next = near - 4 * near.signum();
        let cost = |level: i32| {
            let error = y - level as f32;
            error * error + bits(level)
        };
        let costs = [cost(near), cost(next)];
        let lesser = costs[1] < costs[0];
        gives_way |= i32::from(lesser) << i;
        by_label[(near & 3) as usize] = costs[usize::from(lesser)];
    }
    (by_label, gives_way)
}

/// The level of a choice with the label in bits 0 and 1 of a path.
#[inline(always)]
fn chosen(choice: i32, path: u8) -> i32 {
    let low = choice >> LABELS;
    let position = (i32::from(path) - low) & 3;
    let near = low + position;
    let gives_way = choice >> position & 1;
    near - 4 * gives_way * near.signum()
}

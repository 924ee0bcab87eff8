//! Decoding: codes to levels. The state at an element follows from the three codes before it.

use super::{MOST, TrellisLevels};
use crate::quant::arch::Isa;
use crate::quant::floats::{Float, FloatsMut};
use crate::quant::kernel::{BLOCK, FLOATS, Kernel, Shape, ValueCounts};
use crate::quant::pack::{largest, unpack_sample};

/// Codes before an element that decide its level.
pub const MEMORY: usize = 3;

/// Numbers of levels that are computed before they are looked up, if the instruction set has no code for both together.
const NUMBERS: usize = 64;

/// Samples of up to so many elements are decoded together, so that each channel's tables are loaded once for all of them: their
/// planes are short, and the tables of many channels do not stay in the L1 cache next to codes and values.
const SMALL: usize = 1 << 12;
const TOGETHER: usize = 8;

/// Samples of `elements` elements that are best decoded at once.
pub fn together(elements: usize) -> usize {
    if elements <= SMALL { TOGETHER } else { 1 }
}

/// Runs of elements of one channel, next to each other in a sample, of some samples.
#[derive(Clone, Copy)]
pub struct Runs<'a> {
    /// The codes of run i, after the [`MEMORY`] codes before them, start at `i * stride`.
    pub windows: &'a [u8],
    pub stride: usize,
    /// The index of the first value of each run in the output.
    pub starts: &'a [usize],
    /// Elements of a run.
    pub len: usize,
}

impl Runs<'_> {
    /// The codes of a run, with those before, and its values.
    #[inline(always)]
    pub fn get<'b, T>(&self, run: usize, out: &'b mut [T]) -> (&[u8], &'b mut [T]) {
        let window = &self.windows[run * self.stride..][..MEMORY + self.len];
        (window, &mut out[self.starts[run]..][..self.len])
    }
}

/// The dequantize kernel of a trellis. A sample with a code of too many bits is reported as bad.
pub struct DecodeTrellis<'a, F: Float> {
    pub levels: &'a [TrellisLevels],
    pub bits: u32,
    pub isa: Isa,
    pub codes: &'a [u8],
    pub out: &'a mut [F::Bits],
    pub shape: Shape,
    /// The place of each sample in `out`; in order if it is None.
    pub rows: Option<&'a [usize]>,
}

impl<F: Float> Kernel for DecodeTrellis<'_, F> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Self { levels, bits, isa, codes, out, shape, rows } = self;
        let (bytes, elements, plane) = (shape.bytes, shape.elements, shape.plane);
        let mut counts = ValueCounts::default();
        if !shape.packed && bits < 8 && largest(codes) >> bits != 0 {
            for (number, codes) in codes.chunks_exact(bytes).enumerate() {
                if let Some(wide) = codes.iter().position(|code| code >> bits != 0) {
                    counts.bad.push((number, wide / plane));
                }
            }
        }
        let row = |number: usize| elements * rows.map_or(number, |rows| rows[number]);
        let together = together(elements);
        if together == 1 {
            for (number, codes) in codes.chunks_exact(bytes).enumerate() {
                decode_sample::<F>(isa, levels, bits, codes, &mut out[row(number)..][..elements], shape);
            }
            return counts;
        }
        let stride = MEMORY + elements;
        let (mut windows, mut starts) = (vec![0; together * stride], Vec::with_capacity(together));
        for (group, codes) in codes.chunks(together * bytes).enumerate() {
            let samples = codes.len() / bytes;
            for (codes, window) in codes.chunks_exact(bytes).zip(windows.chunks_exact_mut(stride)) {
                fill(isa, &mut window[MEMORY..], codes, bits, shape.packed);
            }
            starts.clear();
            starts.extend((0..samples).map(|sample| row(group * together + sample)));
            for (channel, levels) in levels.iter().enumerate() {
                let runs = Runs { windows: &windows[channel * plane..], stride, starts: &starts, len: plane };
                look_up::<F>(isa, levels, bits, runs, out);
                starts.iter_mut().for_each(|start| *start += plane);
            }
        }
        counts
    }
}

/// Decodes a sample block by block.
#[inline(always)]
fn decode_sample<F: Float>(
    isa: Isa,
    levels: &[TrellisLevels],
    bits: u32,
    codes: &[u8],
    out: &mut [F::Bits],
    shape: Shape,
) {
    // The codes of a block, with those before it that decide its levels.
    let mut window = [0; MEMORY + BLOCK];
    let block_bytes = if shape.packed { BLOCK / 8 * bits as usize } else { BLOCK };
    let (mut channels, mut rest_of_plane) = (levels.iter(), shape.plane);
    let mut channel = channels.next();
    for (codes, out) in codes.chunks(block_bytes).zip(out.chunks_mut(BLOCK)) {
        fill(isa, &mut window[MEMORY..][..out.len()], codes, bits, shape.packed);
        // All codes of a block at once, since the planes of small latents are short.
        let mut start = 0;
        while let (Some(levels), true) = (channel, start < out.len()) {
            let len = rest_of_plane.min(out.len() - start);
            look_up::<F>(isa, levels, bits, Runs { windows: &window[start..], stride: 0, starts: &[start], len }, out);
            (start, rest_of_plane) = (start + len, rest_of_plane - len);
            if rest_of_plane == 0 {
                (channel, rest_of_plane) = (channels.next(), shape.plane);
            }
        }
        window.copy_within(BLOCK.., 0);
    }
}

/// Copies codes to a buffer of one byte each.
#[inline(always)]
fn fill(isa: Isa, out: &mut [u8], codes: &[u8], bits: u32, packed: bool) {
    if packed {
        unpack_sample(isa, codes, out, bits);
    } else {
        out.copy_from_slice(codes);
    }
}

/// Looks up the levels of some runs.
#[inline(always)]
fn look_up<F: Float>(isa: Isa, levels: &TrellisLevels, bits: u32, runs: Runs<'_>, out: &mut [F::Bits]) {
    // No closure: it would not be compiled for the instruction set.
    let done = match F::floats_mut(out) {
        Some(out) => isa.look_up_levels(levels, bits, runs, out),
        None => 0,
    };
    if done == runs.len {
        return; // before the buffers below are zeroed for nothing
    }
    for run in 0..runs.starts.len() {
        let (window, out) = runs.get(run, out);
        let (window, out) = (&window[done..], &mut out[done..]);
        if let Some(FloatsMut::F32(out)) = F::floats_mut(out) {
            look_up_one_by_one(levels, window, out);
            continue;
        }
        let mut buffer = [0.0; FLOATS];
        for (at, out) in (0..).step_by(FLOATS).zip(out.chunks_mut(FLOATS)) {
            let (windows, len, values) = (&window[at..], out.len(), &mut buffer[..out.len()]);
            let runs = Runs { windows, stride: 0, starts: &[0], len };
            let done = isa.look_up_levels(levels, bits, runs, FloatsMut::F32(values));
            look_up_one_by_one(levels, &windows[done..], &mut values[done..]);
            isa.narrow::<F>(values, out);
        }
    }
}

#[inline(always)]
fn look_up_one_by_one(levels: &TrellisLevels, window: &[u8], out: &mut [f32]) {
    let mut numbers = [0; NUMBERS];
    for (at, out) in (0..).step_by(NUMBERS).zip(out.chunks_mut(NUMBERS)) {
        numbers_in_window(&window[at..], &mut numbers[..out.len()]);
        for (number, out) in numbers.iter().zip(out) {
            *out = levels.levels[usize::from(*number) % MOST];
        }
    }
}

/// The number of a level, from a code and the three before it.
#[inline(always)]
fn level_number(code: u8, first: u8, second: u8, third: u8) -> u16 {
    let label = ((code ^ first ^ third) & 1) << 1 | second & 1;
    u16::from(code >> 1) << 2 | u16::from(label)
}

/// The numbers of the levels of a sample's elements from `start` on.
#[inline(always)]
pub fn level_numbers(codes: &[u8], start: usize, numbers: &mut [u16]) {
    let before = |i: usize, distance: usize| i.checked_sub(distance).map_or(0, |i| codes[i]);
    // The first elements of a sample have fewer codes before them; those that are missing count as 0.
    let head = MEMORY.saturating_sub(start).min(numbers.len());
    let (first, rest) = numbers.split_at_mut(head);
    for (i, out) in (start..).zip(first) {
        *out = level_number(codes[i], before(i, 1), before(i, 2), before(i, 3));
    }
    if rest.is_empty() {
        return;
    }
    numbers_in_window(&codes[start + head - MEMORY..], rest);
}

/// The numbers of the levels of the elements after the first [`MEMORY`] codes of `codes`.
#[inline(always)]
fn numbers_in_window(codes: &[u8], numbers: &mut [u16]) {
    let codes = &codes[..numbers.len() + MEMORY];
    let before = codes[2..].iter().zip(&codes[1..]).zip(codes);
    for ((out, code), ((first, second), third)) in numbers.iter_mut().zip(&codes[MEMORY..]).zip(before) {
        *out = level_number(*code, *first, *second, *third);
    }
}

/// Adds the number of occurrences of each level in each channel of one sample's `codes` to `out` (C, levels).
pub fn count_levels(codes: &[u8], plane: usize, out: &mut [i64], levels: usize) {
    let mut numbers = [0; BLOCK];
    for (channel, out) in out.chunks_exact_mut(levels).enumerate() {
        for start in (0..plane).step_by(BLOCK) {
            let numbers = &mut numbers[..BLOCK.min(plane - start)];
            level_numbers(codes, channel * plane + start, numbers);
            for number in numbers {
                out[usize::from(*number) % levels] += 1;
            }
        }
    }
}

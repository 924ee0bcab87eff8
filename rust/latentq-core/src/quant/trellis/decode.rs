//! Decoding: codes to levels. The state at an element follows from the three codes before it.

use super::{MOST, TrellisLevels};
use crate::quant::arch::Isa;
use crate::quant::floats::{Float, FloatsMut};
use crate::quant::kernel::{BLOCK, Kernel, Shape, ValueCounts};
use crate::quant::pack::{largest, unpack_sample};

/// Codes before an element that decide its level.
const MEMORY: usize = 3;

/// Bytes of the levels of all channels from which on they do not stay in the L1 cache next to codes and values.
const MANY_LEVELS: usize = 1 << 14;
/// Samples of up to so many elements are decoded together, so that each channel's levels are fetched once for all of them.
const SMALL: usize = 1 << 12;
const TOGETHER: usize = 8;

/// Samples of `elements` elements that are best decoded at once.
pub fn together(levels: &[TrellisLevels], bits: u32, elements: usize) -> usize {
    let bytes = levels.len().saturating_mul(size_of::<f32>() << (bits + 1));
    if bytes >= MANY_LEVELS && elements <= SMALL { TOGETHER } else { 1 }
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
        let together = together(levels, bits, elements);
        if together == 1 {
            for (number, codes) in codes.chunks_exact(bytes).enumerate() {
                decode_sample::<F>(isa, levels, bits, codes, &mut out[row(number)..][..elements], shape);
            }
            return counts;
        }
        let (mut window, mut numbers) = (vec![0; MEMORY + elements], vec![0; together * elements]);
        for (group, codes) in codes.chunks(together * bytes).enumerate() {
            let numbers = &mut numbers[..codes.len() / bytes * elements];
            for (codes, numbers) in codes.chunks_exact(bytes).zip(numbers.chunks_exact_mut(elements)) {
                fill(isa, &mut window[MEMORY..], codes, bits, shape.packed);
                numbers_in_window(&window, numbers);
            }
            for (channel, levels) in levels.iter().enumerate() {
                for (sample, numbers) in numbers.chunks_exact(elements).enumerate() {
                    let out = &mut out[row(group * together + sample)..][..elements];
                    let (numbers, out) = (&numbers[channel * plane..][..plane], &mut out[channel * plane..][..plane]);
                    for (numbers, out) in numbers.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
                        look_up::<F>(isa, levels, bits, numbers, out);
                    }
                }
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
    let (mut window, mut numbers) = ([0; MEMORY + BLOCK], [0; BLOCK]);
    let block_bytes = if shape.packed { BLOCK / 8 * bits as usize } else { BLOCK };
    let (mut channels, mut rest_of_plane) = (levels.iter(), shape.plane);
    let mut channel = channels.next();
    for (codes, mut out) in codes.chunks(block_bytes).zip(out.chunks_mut(BLOCK)) {
        fill(isa, &mut window[MEMORY..][..out.len()], codes, bits, shape.packed);
        // The numbers of a block at once, since the planes of small latents are short.
        let mut numbers = &mut numbers[..out.len()];
        numbers_in_window(&window, numbers);
        window.copy_within(BLOCK.., 0);
        while let (Some(levels), false) = (channel, out.is_empty()) {
            let len = rest_of_plane.min(out.len());
            let (out_now, numbers_now);
            (out_now, out) = out.split_at_mut(len);
            (numbers_now, numbers) = numbers.split_at_mut(len);
            look_up::<F>(isa, levels, bits, numbers_now, out_now);
            rest_of_plane -= len;
            if rest_of_plane == 0 {
                (channel, rest_of_plane) = (channels.next(), shape.plane);
            }
        }
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

/// Looks up at most [`BLOCK`] levels.
#[inline(always)]
fn look_up<F: Float>(isa: Isa, levels: &TrellisLevels, bits: u32, numbers: &[u16], out: &mut [F::Bits]) {
    if let Some(FloatsMut::F32(out)) = F::floats_mut(out) {
        return look_up_f32(isa, levels, bits, numbers, out);
    }
    let mut buffer = [0.0; BLOCK];
    let buffer = &mut buffer[..out.len()];
    look_up_f32(isa, levels, bits, numbers, buffer);
    isa.narrow::<F>(buffer, out);
}

#[inline(always)]
fn look_up_f32(isa: Isa, levels: &TrellisLevels, bits: u32, numbers: &[u16], out: &mut [f32]) {
    let done = isa.look_up_levels(levels, bits + 1, numbers, out);
    for (number, out) in numbers[done..].iter().zip(&mut out[done..]) {
        *out = levels.levels[usize::from(*number) % MOST];
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

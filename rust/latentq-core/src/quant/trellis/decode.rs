//! Decoding: codes to levels. The state at an element follows from the three codes before it.

use super::{MOST, TrellisLevels};
use crate::quant::arch::Isa;
use crate::quant::floats::{Float, FloatsMut};
use crate::quant::kernel::{BLOCK, Kernel, Shape, ValueCounts};
use crate::quant::pack::{largest, unpack_sample};

/// Codes before an element that decide its level.
const MEMORY: usize = 3;

/// The dequantize kernel of a trellis. A sample with a code of too many bits is reported as bad.
pub struct DecodeTrellis<'a, F: Float> {
    pub levels: &'a [TrellisLevels],
    pub bits: u32,
    pub isa: Isa,
    pub codes: &'a [u8],
    pub out: &'a mut [F::Bits],
    pub shape: Shape,
}

impl<F: Float> Kernel for DecodeTrellis<'_, F> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Self { levels, bits, isa, codes, out, shape } = self;
        let mut unpacked = vec![0; if shape.packed { shape.elements } else { 0 }];
        let (mut numbers, mut counts) = ([0; BLOCK], ValueCounts::default());
        let samples = codes.chunks_exact(shape.bytes).zip(out.chunks_exact_mut(shape.elements));
        for (number, (codes, out)) in samples.enumerate() {
            let codes = if shape.packed {
                unpack_sample(codes, &mut unpacked, bits);
                &unpacked[..]
            } else {
                if bits < 8 && largest(codes) >> bits != 0 {
                    let wide = codes.iter().position(|code| code >> bits != 0).unwrap_or_default();
                    counts.bad.push((number, wide / shape.plane));
                }
                codes
            };
            for (channel, (out, levels)) in out.chunks_exact_mut(shape.plane).zip(levels).enumerate() {
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    let start = channel * shape.plane + block * BLOCK;
                    let numbers = &mut numbers[..out.len()];
                    level_numbers(codes, start, numbers);
                    look_up::<F>(isa, levels, bits, numbers, out);
                }
            }
        }
        counts
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
    let done = isa.look_up_levels(&levels.levels, bits + 1, numbers, out);
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
    let codes = &codes[start + head - MEMORY..][..rest.len() + MEMORY];
    let before = codes[2..].iter().zip(&codes[1..]).zip(codes);
    for ((out, code), ((first, second), third)) in rest.iter_mut().zip(&codes[3..]).zip(before) {
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

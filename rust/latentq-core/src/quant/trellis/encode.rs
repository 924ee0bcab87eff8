//! Encoding: the path of least squared error through the states, for several samples at once.

use super::{MOST, TrellisLevels};
use crate::Result;
use crate::memory::filled;
use crate::quant::arch::Isa;
use crate::quant::encode::observe;
use crate::quant::floats::{Float, Floats};
use crate::quant::kernel::{CHUNK, Kernel, LABELS, Shape, Tally, ValueCounts};
use crate::quant::pack::pack_sample;
use crate::quant::viterbi::{LANES, Metric, STEP};

/// Quantizes whole samples to codes by the levels of each channel.
pub fn encode<F: Float>(
    isa: Isa,
    levels: &[TrellisLevels],
    bits: u32,
    x: &[F::Bits],
    out: &mut [u8],
    shape: Shape,
) -> Result<ValueCounts> {
    match isa.lanes() {
        LANES => encode_lanes::<F, LANES>(isa, levels, bits, x, out, shape),
        _ => encode_lanes::<F, 8>(isa, levels, bits, x, out, shape),
    }
}

fn encode_lanes<F: Float, const L: usize>(
    isa: Isa,
    levels: &[TrellisLevels],
    bits: u32,
    x: &[F::Bits],
    out: &mut [u8],
    shape: Shape,
) -> Result<ValueCounts> {
    let group = shape.elements.saturating_mul(L);
    let mut wide = filled(0.0, if size_of::<F::Bits>() == 4 { 0 } else { group.min(x.len()) })?;
    let mut paths = filled([0; L], shape.elements)?;
    let mut nearest = filled(Nearest(0), group)?;
    let mut unpacked = filled(0, if shape.packed { shape.elements } else { 0 })?;
    let mut tally = Tally::new(shape.channels);
    let groups = x.chunks(group).zip(out.chunks_mut(shape.bytes.saturating_mul(L)));
    for (index, (x, out)) in groups.enumerate() {
        let x = if let Floats::F32(x) = F::floats(x) {
            x
        } else {
            isa.widen::<F>(x, &mut wide[..x.len()]);
            &wide[..x.len()]
        };
        let (paths, nearest, unpacked, tally) = (&mut paths[..], &mut nearest[..], &mut unpacked[..], &mut tally);
        isa.run(EncodeGroup { isa, levels, bits, x, out, shape, first: index * L, paths, nearest, unpacked, tally });
    }
    Ok(tally.counts)
}

/// The quantize kernel for at most L samples, of which `first` is the number of the first.
struct EncodeGroup<'a, const L: usize> {
    isa: Isa,
    levels: &'a [TrellisLevels],
    bits: u32,
    x: &'a [f32],
    out: &'a mut [u8],
    shape: Shape,
    first: usize,
    paths: &'a mut [[u8; L]],
    nearest: &'a mut [Nearest],
    unpacked: &'a mut [u8],
    tally: &'a mut Tally,
}

impl<const L: usize> Kernel for EncodeGroup<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { isa, levels, bits, x, out, shape, first, paths, nearest, unpacked, tally } = self;
        find_paths(isa, levels, bits, x, shape, nearest, paths);
        let samples = x.chunks_exact(shape.elements).zip(out.chunks_exact_mut(shape.bytes));
        for (lane, (x, out)) in samples.enumerate() {
            for (channel, (x, levels)) in x.chunks_exact(shape.plane).zip(levels).enumerate() {
                let (low, high) = levels.ends();
                x.chunks(CHUNK).for_each(|x| tally.add(channel, observe(x, low, high)));
            }
            if tally.finish(first + lane) {
                out.fill(0);
                continue;
            }
            let codes = if shape.packed { &mut *unpacked } else { &mut *out };
            let nearest = &nearest[lane * shape.elements..][..shape.elements];
            for ((code, nearest), path) in codes.iter_mut().zip(nearest).zip(paths.iter()) {
                *code = nearest.code(path[lane]);
            }
            if shape.packed {
                pack_sample(isa, unpacked, out, bits);
            }
        }
    }
}

/// The level of each label that is nearest to a value, in 13 bits: the number r of the highest level below the value (or 0),
/// and for each of the levels r - 3 to r whether the level 4 above it is nearer.
#[derive(Clone, Copy)]
pub struct Nearest(pub u16);

impl Nearest {
    /// The code of the nearest level of the path's label (bits 0 and 1) and u (bit 2).
    #[inline(always)]
    fn code(self, path: u8) -> u8 {
        let (below, label) = (self.0 & (MOST as u16 - 1), u16::from(path & 3));
        let position = (label + 3).wrapping_sub(below) & 3;
        let upper = self.0 >> (9 + position) & 1;
        let number = (below + position + 4 * upper).wrapping_sub(3); // only the lowest levels of a NaN wrap
        (number >> 2 << 1) as u8 | (path >> 2)
    }
}

/// Finds for each lane and element the nearest level of each label, and the label (bits 0 and 1) and u (bit 2) of the best
/// path.
#[inline(always)]
fn find_paths<const L: usize>(
    isa: Isa,
    channels: &[TrellisLevels],
    bits: u32,
    x: &[f32],
    shape: Shape,
    nearest: &mut [Nearest],
    paths: &mut [[u8; L]],
) {
    let mut metric = Metric::<L>::START;
    // By label and lane. Instruction sets with code of their own have the labels of a lane next to each other instead.
    let mut costs = [[[0.0; L]; LABELS]; STEP];
    let mut pairs = [0; STEP];
    for (channel, levels) in channels.iter().enumerate() {
        for start in (0..shape.plane).step_by(STEP) {
            let count = STEP.min(shape.plane - start);
            let first = channel * shape.plane + start;
            for (lane, x) in x.chunks_exact(shape.elements).enumerate() {
                let (x, pairs) = (&x[first..][..count], &mut pairs[..count]);
                search(isa, levels, bits, x, pairs);
                let nearest = &mut nearest[lane * shape.elements + first..][..count];
                if !isa.compare(levels, x, pairs, lane, &mut costs[..count], nearest) {
                    for (((x, pair), nearest), costs) in x.iter().zip(pairs).zip(nearest).zip(&mut costs) {
                        *nearest = compare(levels, *x, *pair, lane, costs);
                    }
                }
            }
            metric.advance(isa, &costs[..count], &mut paths[first..first + count]);
        }
    }
    metric.finish(paths);
}

/// Searches each x in the tree of levels.
#[inline(always)]
fn search(isa: Isa, levels: &TrellisLevels, bits: u32, x: &[f32], pairs: &mut [u8]) {
    let done = isa.search(&levels.tree, bits, x, pairs);
    for (x, pair) in x[done..].iter().zip(&mut pairs[done..]) {
        let mut node = 1;
        for _ in 0..bits {
            node = 2 * node + usize::from(*x > levels.tree[node & 255]);
        }
        *pair = (node - (1 << bits)) as u8;
    }
}

/// Finds the nearest level of each label, and writes its squared error.
#[inline(always)]
fn compare<const L: usize>(
    levels: &TrellisLevels,
    x: f32,
    pair: u8,
    lane: usize,
    costs: &mut [[f32; L]; LABELS],
) -> Nearest {
    let even = 2 * usize::from(pair);
    let below = even + usize::from(x > levels.levels[even + 1]);
    let mut nearest = below as u16;
    for i in 0..LABELS {
        let upper = x > levels.bounds[below + i];
        let level = if upper { levels.padded[below + i + LABELS] } else { levels.padded[below + i] };
        let error = x - level;
        costs[(below + 1 + i) % LABELS][lane] = error * error;
        nearest |= u16::from(upper) << (9 + i);
    }
    Nearest(nearest)
}

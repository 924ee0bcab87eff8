//! Encoding by the Viterbi algorithm: the path of least squared error through the states, for several samples at once.
//!
//! A lane is a sample. All operations of a lane are those of the definition, in its order, so codes do not depend on the
//! number of lanes.

use super::{LABELS, MOST, TrellisLevels};
use crate::Result;
use crate::memory::with_room;
use crate::quant::arch::Isa;
use crate::quant::encode::observe;
use crate::quant::floats::{Float, Floats};
use crate::quant::kernel::{CHUNK, Kernel, Shape, Tally, ValueCounts};
use crate::quant::pack::pack_sample;

/// Most lanes of any instruction set.
pub const LANES: usize = 16;

/// Elements whose costs are computed before the paths take them: their costs stay in the L1 cache.
const STEP: usize = 64;

/// The metric of the states in which no path starts.
const FAR: f32 = 1e30;

/// The states of the shift register: bit 0 is u of the element before, bit 1 of the one before that, bit 2 of the third.
pub const STATES: usize = 8;

/// The label of a level that u leads to from a state: bit 0 is the second bit of the state, bit 1 the parity of u and the
/// two others.
pub const fn label(state: usize, u: usize) -> usize {
    2 * (u ^ (state & 1) ^ (state >> 2)) + (state >> 1 & 1)
}

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
        walk_back(paths);
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
                pack_sample(unpacked, out, bits);
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

/// Finds for each lane and element the nearest level of each label, and for each element and state which of two paths to
/// it is better: bit t of `paths` is 1 if state t comes from the state that is 4 above the other.
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
    let mut metric = [[FAR; L]; STATES];
    metric[0] = [0.0; L];
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
            let (costs, paths) = (&costs[..count], &mut paths[first..first + count]);
            if !isa.advance(&mut metric, costs, paths) {
                for (path, costs) in paths.iter_mut().zip(costs) {
                    *path = advance(&mut metric, costs);
                }
            }
        }
    }
    // Every path starts in state 0, so the first three elements come from the lower state, and end below state 2, 4 and 8.
    // `FAR` alone does not ensure that if errors are larger than 1e15.
    paths.iter_mut().take(3).for_each(|path| *path = [0; L]);
    let ends = STATES.min(1 << paths.len().min(3));
    // The end of each lane's path goes next to its last choice.
    if let Some(last) = paths.last_mut() {
        for (lane, last) in last.iter_mut().enumerate() {
            let mut best = 0;
            for state in 1..ends {
                if metric[state][lane] < metric[best][lane] {
                    best = state;
                }
            }
            *last = (best << 1) as u8 | (*last >> best & 1);
        }
    }
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

/// Extends the paths by one element.
#[inline(always)]
fn advance<const L: usize>(metric: &mut [[f32; L]; STATES], costs: &[[f32; L]; LABELS]) -> [u8; L] {
    let (mut next, mut chosen) = ([[0.0; L]; STATES], [0u32; L]);
    for (state, next) in next.iter_mut().enumerate() {
        let (from, u) = (state >> 1, state & 1);
        let (cost, other) = (&costs[label(from, u)], &costs[label(from | 4, u)]);
        for lane in 0..L {
            let a = metric[from][lane] + cost[lane];
            let b = metric[from | 4][lane] + other[lane];
            next[lane] = if b < a { b } else { a };
            chosen[lane] |= u32::from(b < a) << state;
        }
    }
    let mut least = next[0];
    for next in &next[1..] {
        for lane in 0..L {
            least[lane] = if next[lane] < least[lane] { next[lane] } else { least[lane] };
        }
    }
    for (metric, next) in metric.iter_mut().zip(&next) {
        for lane in 0..L {
            metric[lane] = next[lane] - least[lane];
        }
    }
    chosen.map(|chosen| chosen as u8)
}

/// Follows the best path of each lane from its end, and replaces the choices by labels (bits 0 and 1) and u (bit 2).
#[inline(always)]
fn walk_back<const L: usize>(paths: &mut [[u8; L]]) {
    let Some((last, before)) = paths.split_last_mut() else { return };
    let mut states = [0u32; L];
    for lane in 0..L {
        let (state, branch) = (u32::from(last[lane] >> 1), u32::from(last[lane] & 1));
        states[lane] = step_back(state, branch, &mut last[lane]);
    }
    for path in before.iter_mut().rev() {
        for lane in 0..L {
            let branch = u32::from(path[lane]) >> states[lane] & 1;
            states[lane] = step_back(states[lane], branch, &mut path[lane]);
        }
    }
}

/// Returns the state before `state`, and writes the label and u between the two.
#[inline(always)]
fn step_back(state: u32, branch: u32, path: &mut u8) -> u32 {
    let before = state >> 1 | branch << 2;
    let parity = (state ^ before ^ before >> 2) & 1;
    *path = ((state & 1) << 2 | parity << 1 | before >> 1 & 1) as u8;
    before
}

/// A vector of `len` equal values.
pub fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>> {
    let mut out = with_room(len)?;
    out.resize(len, value);
    Ok(out)
}

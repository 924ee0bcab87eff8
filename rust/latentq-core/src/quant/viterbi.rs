//! The trellis that both kinds of trellis-coded quantization use, and the Viterbi algorithm: the path of least cost through
//! its states, for several samples at once.
//!
//! A lane is a sample. All operations of a lane are those of the definition, in its order, so paths do not depend on the
//! number of lanes.

use super::arch::Isa;
use super::kernel::{LABELS, STATES, label};

/// Most lanes of any instruction set.
pub(super) const LANES: usize = 16;

/// Elements whose costs are computed before the paths take them: their costs stay in the L1 cache.
pub(super) const STEP: usize = 64;

/// The metric of the states in which no path starts.
const FAR: f32 = 1e30;

/// The cost of each state, by lane.
pub(super) struct Metric<const L: usize>([[f32; L]; STATES]);

impl<const L: usize> Metric<L> {
    /// The metric before the first element: all paths start in state 0.
    pub(super) const START: Self = {
        let mut metric = [[FAR; L]; STATES];
        metric[0] = [0.0; L];
        Self(metric)
    };

    /// Extends the paths by some elements. `costs` are those of the four labels of each element, by label and lane, except
    /// for instruction sets with code of their own, which have the labels of a lane next to each other. Bit t of a path is 1
    /// if state t comes from the state that is 4 above the other.
    #[inline(always)]
    pub(super) fn advance(&mut self, isa: Isa, costs: &[[[f32; L]; LABELS]], paths: &mut [[u8; L]]) {
        if !isa.advance(&mut self.0, costs, paths) {
            for (path, costs) in paths.iter_mut().zip(costs) {
                *path = advance(&mut self.0, costs);
            }
        }
    }

    /// Ends the paths, and replaces each choice by the label of the best path (bits 0 and 1) and its u (bit 2).
    #[inline(always)]
    pub(super) fn finish(&self, paths: &mut [[u8; L]]) {
        // Every path starts in state 0, so the first three elements come from the lower state, and end below state 2, 4 and
        // 8. `FAR` alone does not ensure that if errors are larger than 1e15.
        paths.iter_mut().take(3).for_each(|path| *path = [0; L]);
        let ends = STATES.min(1 << paths.len().min(3));
        let mut states = [0u32; L];
        for (lane, state) in states.iter_mut().enumerate() {
            for end in 1..ends {
                if self.0[end][lane] < self.0[*state as usize][lane] {
                    *state = end as u32;
                }
            }
        }
        for path in paths.iter_mut().rev() {
            for lane in 0..L {
                let branch = u32::from(path[lane]) >> states[lane] & 1;
                states[lane] = step_back(states[lane], branch, &mut path[lane]);
            }
        }
    }
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

/// Returns the state before `state`, and writes the label and u between the two.
#[inline(always)]
fn step_back(state: u32, branch: u32, path: &mut u8) -> u32 {
    let before = state >> 1 | branch << 2;
    let parity = (state ^ before ^ before >> 2) & 1;
    *path = ((state & 1) << 2 | parity << 1 | before >> 1 & 1) as u8;
    before
}

//! Resampling filters, and their fixed-point weights for each output of one axis.
//!
//! The arithmetic is that of `precompute_coeffs` in Pillow's Resample.c.

use std::ops::Range;

/// A resampling filter, with Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The mean over the area of an output pixel.
    Box,
    /// A triangle.
    Bilinear,
    /// A windowed sinc as wide as the triangle.
    Hamming,
    /// The cubic with a = -0.5.
    Bicubic,
    /// A sinc windowed by a wider sinc, six pixels wide.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Calls `work` with this filter as a function. All operations are in Pillow's order, because another order would round
    /// differently.
    #[inline(always)]
    fn with(self, work: impl Work) {
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        match self {
            Self::Box => work.run(|x| if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }),
            Self::Bilinear => work.run(|x| if x.abs() < 1.0 { 1.0 - x.abs() } else { 0.0 }),
            Self::Hamming => work.run(|x| match x.abs() {
                0.0 => 1.0,
                away if away < 1.0 => {
                    let x = away * std::f64::consts::PI;
                    // Pillow's constants are in single precision.
                    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
                }
                _ => 0.0,
            }),
            Self::Bicubic => work.run(|x| {
                let away = x.abs();
                // Both are computed, so that there are no branches.
                let near = ((-0.5 + 2.0) * away - (-0.5 + 3.0)) * away * away + 1.0;
                let far = (((away - 5.0) * away + 8.0) * away - 4.0) * -0.5;
                let far = if away < 2.0 { far } else { 0.0 };
                if away < 1.0 { near } else { far }
            }),
            Self::Lanczos => work.run(|x| if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }),
        }
    }
}

/// A computation with a filter. (A closure cannot be generic.)
trait Work {
    fn run(self, filter: impl Fn(f64) -> f64);
}

pub const PRECISION: u32 = 32 - 8 - 2;

/// Rows that a horizontal pass computes together. They share the loads of the weights.
pub const GROUP: usize = 4;

/// The inputs of each output of one axis, from which its weights are computed.
pub struct Axis {
    filter: Filter,
    inputs: Vec<Inputs>,
    /// The factor from the distance of an input to the argument of the filter.
    inverse: f64,
    /// Number of weights that each output has room for.
    taps: usize,
}

/// The inputs of one output. (All are floating-point numbers, because they are calculated with.)
#[derive(Clone, Copy)]
struct Inputs {
    center: f64,
    start: f64,
    count: f64,
}

/// Outputs whose weights are computed side by side, so that the compiler makes vector instructions of it.
const SIDE: usize = 8;

impl Axis {
    /// Outputs `first .. first + count` of an axis resized from `input` to `output` pixels.
    pub fn new(input: usize, output: usize, first: usize, count: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let taps = Weights::taps(input, output, filter);
        let inputs = |index: usize| {
            let center = (index as f64 + 0.5) * scale;
            // The cast saturates negative numbers at 0, as Pillow does explicitly.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            Inputs { center, start: start as f64, count: end.saturating_sub(start).min(taps) as f64 }
        };
        let inputs = (first..first + count).map(inputs).collect();
        Self { filter, inputs, inverse: 1.0 / filter_scale, taps }
    }

    /// Computes the weights, `taps` for each output.
    #[inline(always)]
    pub fn values(&self) -> Vec<i32> {
        let mut values = vec![0; self.taps * self.inputs.len()];
        self.filter.with(Fill { axis: self, values: &mut values });
        values
    }

    /// Joins these inputs with their weights.
    pub fn weights(self, values: Vec<i32>) -> Weights {
        let starts = self.inputs.iter().map(|inputs| inputs.start as usize).collect();
        let lengths = self.inputs.iter().map(|inputs| inputs.count as usize).collect();
        Weights { starts, lengths, values, taps: self.taps }
    }
}

struct Fill<'a> {
    axis: &'a Axis,
    values: &'a mut [i32],
}

impl Work for Fill<'_> {
    #[inline(always)]
    fn run(self, filter: impl Fn(f64) -> f64) {
        let &Axis { ref inputs, inverse, taps, .. } = self.axis;
        let mut exact = vec![0.0; taps * inputs.len().min(SIDE)];
        let (batches, rest) = inputs.as_chunks::<SIDE>();
        let (values, last) = self.values.split_at_mut(batches.len() * SIDE * taps);
        for (inputs, values) in batches.iter().zip(values.chunks_exact_mut(SIDE * taps)) {
            weigh(inputs, inverse, &filter, &mut exact, values);
        }
        for (inputs, values) in rest.iter().zip(last.chunks_exact_mut(taps)) {
            weigh(&[*inputs], inverse, &filter, &mut exact[..taps], values);
        }
    }
}

/// Computes the weights of `N` outputs. `exact` and `values` have room for the same number of each.
#[inline(always)]
fn weigh<const N: usize>(
    inputs: &[Inputs; N],
    inverse: f64,
    filter: &impl Fn(f64) -> f64,
    exact: &mut [f64],
    values: &mut [i32],
) {
    let exact = exact.as_chunks_mut::<N>().0;
    let mut sums = [0.0; N];
    for (tap, exact) in exact.iter_mut().enumerate() {
        let tap = tap as f64;
        for lane in 0..N {
            let Inputs { center, start, count } = inputs[lane];
            let value = filter((tap + start - center + 0.5) * inverse);
            // A zero does not change the sum.
            exact[lane] = if tap < count { value } else { 0.0 };
            sums[lane] += exact[lane];
        }
    }
    let sums = sums.map(|sum| if sum != 0.0 { sum } else { 1.0 });
    let taps = exact.len();
    for (tap, exact) in exact.iter().enumerate() {
        let mut rounded = [0; N];
        for lane in 0..N {
            rounded[lane] = round(exact[lane] / sums[lane] * f64::from(1 << PRECISION));
        }
        for lane in 0..N {
            values[lane * taps + tap] = rounded[lane];
        }
    }
}

/// Rounds a number to the nearest integer, half away from zero. (The compiler's cast is several times as slow.)
#[inline(always)]
fn round(x: f64) -> i32 {
    // The integers from here on have no fraction, and their lowest 32 bits are those of the float.
    const INTEGERS: f64 = (1u64 << 52) as f64;
    let size = x.abs() + 0.5;
    let near = (size + INTEGERS) - INTEGERS;
    let floor = if near > size { near - 1.0 } else { near };
    let floor = (floor + INTEGERS).to_bits() as i32;
    if x < 0.0 { floor.wrapping_neg() } else { floor }
}

/// The first input and the weights of each output of one axis.
pub struct Weights {
    pub starts: Vec<usize>,
    lengths: Vec<usize>,
    values: Vec<i32>,
    /// Number of weights that each output has room for.
    taps: usize,
}

impl Weights {
    /// The largest number of inputs of one output, which depends on the input only if that is reduced.
    fn taps(input: usize, output: usize, filter: Filter) -> usize {
        let support = filter.support() * (input as f64 / output as f64).max(1.0);
        (support.ceil() as usize).saturating_mul(2).saturating_add(1).min(input)
    }

    /// An upper bound of the bytes of `count` outputs: the weights, and their copy in the layout of a kernel.
    pub fn room(input: usize, output: usize, count: usize, filter: Filter) -> usize {
        let taps = Self::taps(input, output, filter);
        let each = taps.saturating_mul(16).saturating_add(72);
        count.saturating_mul(each).saturating_add(taps.saturating_mul(8 * count.min(SIDE)))
    }

    /// The range of inputs that the outputs need.
    pub fn inputs(&self) -> Range<usize> {
        let ends = self.starts.iter().zip(&self.lengths).map(|(start, length)| start + length);
        self.starts.iter().copied().min().unwrap_or(0)..ends.max().unwrap_or(0)
    }

    /// The largest number of inputs of one output.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// True if every weight splits into three signed bytes, as it does for all filters.
    #[cfg(target_arch = "x86_64")]
    pub fn fit_digits(&self) -> bool {
        self.values.iter().all(|weight| weight.unsigned_abs() < 127 << 16)
    }

    pub fn at(&self, index: usize) -> (usize, &[i32]) {
        (self.starts[index], &self.values[index * self.taps..][..self.lengths[index]])
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.starts.len()).map(|index| self.at(index))
    }
}

/// The initial value of a sum: one half, so that truncation rounds.
pub const HALF: i32 = 1 << (PRECISION - 1);

pub fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::{Axis, Filter, Weights, round};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn weights_are_rounded_half_away_from_zero(x in -8e6..8e6, half in -1000..1000) {
            for x in [x, f64::from(half) + 0.5, f64::from(half), -0.0] {
                prop_assert_eq!(round(x), x.round() as i32);
            }
        }
    }

    #[test]
    fn room_is_enough_and_does_not_grow_with_what_is_cropped() {
        for (input, output, count) in [(1000, 64, 64), (64, 1000, 256), (500, 500, 10), (7, 3, 1), (5000, 1, 1)] {
            for filter in [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                let axis = Axis::new(input, output, 0, count, filter);
                let values = axis.values();
                let weights = axis.weights(values);
                let used = 4 * weights.values.capacity() + 8 * (weights.starts.capacity() + weights.lengths.capacity());
                assert!(used <= Weights::room(input, output, count, filter));
            }
        }
        // A line of 178 million pixels as high as a square of 64: nearly all of it is cropped.
        assert!(Weights::room(178_000_000, 64 * 178_000_000, 64, Filter::Lanczos) < 1 << 14);
        // As wide as one pixel: all of it is needed.
        assert!(Weights::room(178_000_000, 1, 1, Filter::Lanczos) > 4 * 178_000_000);
    }
}

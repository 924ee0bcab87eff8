//! Sums of float columns, from which their statistics follow.

use super::arch::Isa;
use super::floats::{BF16, F16, F32, Float, Floats};
use super::kernel::Kernel;

/// The sums of one channel, in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Sum of the values.
    pub sum: f64,
    /// Sum of the squares.
    pub square: f64,
    /// Smallest value, or infinity if there are none.
    pub min: f64,
    /// Largest value, or minus infinity if there are none.
    pub max: f64,
}

/// Sums each plane of `plane` values. Eight accumulators, added in a fixed order, give the same result on every machine.
pub fn moments(x: Floats<'_>, plane: usize) -> Vec<Moments> {
    moments_with(Isa::best(), x, plane)
}

/// [`moments`] with a given instruction set.
pub fn moments_with(isa: Isa, x: Floats<'_>, plane: usize) -> Vec<Moments> {
    match x {
        Floats::F32(x) => isa.run(Planes(x, plane, |x| f64::from(F32::widen(x)))),
        Floats::F16(x) => isa.run(Planes(x, plane, |x| f64::from(F16::widen(x)))),
        Floats::BF16(x) => isa.run(Planes(x, plane, |x| f64::from(BF16::widen(x)))),
        Floats::F64(x) => isa.run(Planes(x, plane, |x| x)),
    }
}

/// Sums planes of that many values, which a function widens.
struct Planes<'a, T, W>(&'a [T], usize, W);

impl<T: Copy, W: Fn(T) -> f64> Kernel for Planes<'_, T, W> {
    type Output = Vec<Moments>;

    #[inline(always)]
    fn run(self) -> Vec<Moments> {
        let Self(x, plane, widen) = self;
        let mut all = Vec::with_capacity(x.len() / plane.max(1));
        for x in x.chunks(plane.max(1)) {
            all.push(one_plane(x, &widen));
        }
        all
    }
}

#[inline(always)]
fn one_plane<T: Copy>(x: &[T], widen: impl Fn(T) -> f64) -> Moments {
    let mut lanes = Lanes { sum: [0.0; 8], square: [0.0; 8], min: [f64::INFINITY; 8], max: [f64::NEG_INFINITY; 8] };
    let (eights, rest) = x.as_chunks::<8>();
    for eight in eights {
        lanes.add(eight, &widen);
    }
    lanes.add(rest, &widen);
    Moments {
        sum: lanes.sum.iter().sum(),
        square: lanes.square.iter().sum(),
        min: lanes.min.iter().copied().fold(f64::INFINITY, f64::min),
        max: lanes.max.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// The accumulators.
struct Lanes {
    sum: [f64; 8],
    square: [f64; 8],
    min: [f64; 8],
    max: [f64; 8],
}

impl Lanes {
    /// Adds at most eight values, each to its lane.
    #[inline(always)]
    fn add<T: Copy>(&mut self, x: &[T], widen: impl Fn(T) -> f64) {
        for (lane, &x) in x.iter().enumerate().take(8) {
            let x = widen(x);
            self.sum[lane] += x;
            self.square[lane] += x * x;
            self.min[lane] = if x < self.min[lane] { x } else { self.min[lane] };
            self.max[lane] = if x > self.max[lane] { x } else { self.max[lane] };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(x in proptest::collection::vec(any::<f32>(), 0..200), plane in 0usize..60) {
            let bits = |isa| {
                let all = moments_with(isa, Floats::F32(&x), plane).into_iter();
                all.map(|m| [m.sum, m.square, m.min, m.max].map(|x| (x.is_nan(), if x.is_nan() { 0 } else { x.to_bits() })))
                    .collect::<Vec<_>>()
            };
            let expected = bits(Isa::Baseline);
            for isa in Isa::available() {
                prop_assert_eq!(bits(isa), expected.clone());
            }
        }
    }
}

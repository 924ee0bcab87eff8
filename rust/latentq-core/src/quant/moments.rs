//! Sums of float columns, from which their statistics follow.

use super::floats::{BF16, F16, F32, Float, Floats};

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
    match x {
        Floats::F32(x) => planes(x, plane, |x| f64::from(F32::widen(x))),
        Floats::F16(x) => planes(x, plane, |x| f64::from(F16::widen(x))),
        Floats::BF16(x) => planes(x, plane, |x| f64::from(BF16::widen(x))),
        Floats::F64(x) => planes(x, plane, |x| x),
    }
}

fn planes<T: Copy>(x: &[T], plane: usize, widen: impl Fn(T) -> f64) -> Vec<Moments> {
    x.chunks(plane.max(1)).map(|x| one_plane(x, &widen)).collect()
}

fn one_plane<T: Copy>(x: &[T], widen: impl Fn(T) -> f64) -> Moments {
    let (mut sum, mut square) = ([0.0; 8], [0.0; 8]);
    let (mut min, mut max) = ([f64::INFINITY; 8], [f64::NEG_INFINITY; 8]);
    for eight in x.chunks(8) {
        for (lane, &x) in eight.iter().enumerate() {
            let x = widen(x);
            sum[lane] += x;
            square[lane] += x * x;
            min[lane] = if x < min[lane] { x } else { min[lane] };
            max[lane] = if x > max[lane] { x } else { max[lane] };
        }
    }
    Moments {
        sum: sum.iter().sum(),
        square: square.iter().sum(),
        min: min.iter().copied().fold(f64::INFINITY, f64::min),
        max: max.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

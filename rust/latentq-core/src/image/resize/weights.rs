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

    /// The filter at `x`. All operations are in Pillow's order, because another order would round differently.
    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        let away = x.abs();
        match self {
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Bilinear if away < 1.0 => 1.0 - away,
            Self::Hamming if away == 0.0 => 1.0,
            Self::Hamming if away < 1.0 => {
                let x = away * std::f64::consts::PI;
                // Pillow's constants are in single precision.
                x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
            }
            Self::Bicubic if away < 1.0 => ((-0.5 + 2.0) * away - (-0.5 + 3.0)) * away * away + 1.0,
            Self::Bicubic if away < 2.0 => (((away - 5.0) * away + 8.0) * away - 4.0) * -0.5,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

pub const PRECISION: u32 = 32 - 8 - 2;

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
        let each = taps.saturating_mul(16).saturating_add(48);
        count.saturating_mul(each).saturating_add(taps.saturating_mul(8))
    }

    /// Computes the weights of outputs `first .. first + count` of an axis resized from `input` to `output` pixels.
    pub fn new(input: usize, output: usize, first: usize, count: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let taps = Self::taps(input, output, filter);
        let mut weights = Self { starts: Vec::new(), lengths: Vec::new(), values: vec![0; taps * count], taps };
        let mut exact = vec![0.0; taps];
        for (index, values) in weights.values.chunks_exact_mut(taps).enumerate() {
            let center = ((first + index) as f64 + 0.5) * scale;
            let inverse = 1.0 / filter_scale;
            // The cast saturates negative numbers at 0, as Pillow does explicitly.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let length = end.saturating_sub(start).min(taps);
            let mut sum = 0.0;
            for (offset, value) in exact[..length].iter_mut().enumerate() {
                *value = filter.at(((offset + start) as f64 - center + 0.5) * inverse);
                sum += *value;
            }
            for (value, exact) in values.iter_mut().zip(&exact[..length]) {
                let normal = if sum != 0.0 { exact / sum } else { *exact };
                let scaled = normal * f64::from(1 << PRECISION);
                *value = if normal < 0.0 { scaled - 0.5 } else { scaled + 0.5 } as i32;
            }
            weights.starts.push(start);
            weights.lengths.push(length);
        }
        weights
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
    use super::{Filter, Weights};

    #[test]
    fn room_is_enough_and_does_not_grow_with_what_is_cropped() {
        for (input, output, count) in [(1000, 64, 64), (64, 1000, 256), (500, 500, 10), (7, 3, 1), (5000, 1, 1)] {
            for filter in [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                let weights = Weights::new(input, output, 0, count, filter);
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

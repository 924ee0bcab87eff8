//! Pillow's resize, to the bit: separable, each pass in 22-bit fixed point and rounded to 8 bits. Only what the kept window needs is computed.
//!
//! The arithmetic is that of `precompute_coeffs` and `ImagingResampleInner` in Pillow's Resample.c.

use std::ops::Range;

use super::geometry::Window;
use super::{Image, View};
use crate::{Error, Result};

/// A resampling kernel, by Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The mean of what a pixel covers.
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

    /// The kernel at `x`. Every operation is in Pillow's order: another would round otherwise.
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
                x.sin() / x * (0.54 + 0.46 * x.cos())
            }
            Self::Bicubic if away < 1.0 => ((-0.5 + 2.0) * away - (-0.5 + 3.0)) * away * away + 1.0,
            Self::Bicubic if away < 2.0 => (((away - 5.0) * away + 8.0) * away - 4.0) * -0.5,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

const PRECISION: u32 = 32 - 8 - 2;

/// For each output of one axis: where its inputs start, and their weights.
struct Weights {
    starts: Vec<usize>,
    lengths: Vec<usize>,
    values: Vec<i32>,
    /// Weights reserved for each output.
    taps: usize,
}

impl Weights {
    /// The outputs `first .. first + count` of an axis resized from `input` to `output`.
    fn new(input: usize, output: usize, first: usize, count: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let taps = (support.ceil() as usize * 2 + 1).min(input);
        let mut weights = Self { starts: Vec::new(), lengths: Vec::new(), values: vec![0; taps * count], taps };
        let mut exact = vec![0.0; taps];
        for (index, values) in weights.values.chunks_exact_mut(taps).enumerate() {
            let center = ((first + index) as f64 + 0.5) * scale;
            let inverse = 1.0 / filter_scale;
            // A float that is converted saturates at zero, which is what Pillow's test for negative numbers does.
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

    /// The inputs that any of the outputs needs.
    fn inputs(&self) -> Range<usize> {
        let ends = self.starts.iter().zip(&self.lengths).map(|(start, length)| start + length);
        self.starts.iter().copied().min().unwrap_or(0)..ends.max().unwrap_or(0)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let values = self.values.chunks_exact(self.taps);
        self.starts.iter().zip(&self.lengths).zip(values).map(|((&start, &length), values)| (start, &values[..length]))
    }
}

/// What a sum starts from, so that cutting off its low bits rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes to `size` (width, height) and gives the `window` of the result.
pub fn resize(image: View<'_>, size: (usize, usize), window: Window, filter: Filter) -> Result<Image> {
    if size.0 == 0 || size.1 == 0 {
        return Err(Error::argument("width and height must be at least 1"));
    }
    let pixels = window.width.checked_mul(window.height).filter(|pixels| *pixels <= isize::MAX as usize / 8);
    if pixels.is_none() {
        return Err(Error::argument(format!("{} x {} pixels are too many", window.width, window.height)));
    }
    // A side that keeps its length is not filtered.
    let columns = (size.0 != image.width).then(|| Weights::new(image.width, size.0, window.left, window.width, filter));
    let rows = (size.1 != image.height).then(|| Weights::new(image.height, size.1, window.top, window.height, filter));
    let used_columns = columns.as_ref().map_or(window.left..window.left + window.width, Weights::inputs);
    let used_rows = rows.as_ref().map_or(window.top..window.top + window.height, Weights::inputs);

    let part = Part::new(image, used_columns, used_rows);
    let result = match (columns, rows) {
        (None, None) => part.copy(),
        (Some(columns), None) => part.horizontal(&columns),
        (None, Some(rows)) => part.vertical(&rows),
        (Some(columns), Some(rows)) if is_vertical_first((image.width, image.height), size) => {
            let low = part.vertical(&rows);
            Part { rows: 0..low.height, ..Part::all(&low, &part) }.horizontal(&columns)
        }
        (Some(columns), Some(rows)) => {
            let narrow = part.horizontal(&columns);
            Part { columns: 0..narrow.width, ..Part::all(&narrow, &part) }.vertical(&rows)
        }
    };
    Ok(result)
}

/// Since Pillow 13 the pass order depends on the sizes; each pass rounds, so the order shows in the pixels.
fn is_vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    to.1 < from.1 && (from.1 - to.1) as i128 > 2 * (from.0 as i128 - to.0 as i128)
}

/// The part of an image that the result needs. It keeps the image's own column and row numbers.
struct Part<'a> {
    pixels: &'a [u8],
    /// Bytes from one row to the next.
    stride: usize,
    columns: Range<usize>,
    rows: Range<usize>,
}

impl<'a> Part<'a> {
    fn new(image: View<'a>, columns: Range<usize>, rows: Range<usize>) -> Self {
        let stride = image.width * 3;
        Self { pixels: &image.pixels[rows.start * stride + columns.start * 3..], stride, columns, rows }
    }

    /// All of the result of a pass. The axis that it did not touch has the numbers of `before`.
    fn all(image: &'a Image, before: &Self) -> Self {
        let (columns, rows) = (before.columns.clone(), before.rows.clone());
        Self { pixels: &image.pixels, stride: image.width * 3, columns, rows }
    }

    fn row(&self, index: usize) -> &'a [u8] {
        &self.pixels[(index - self.rows.start) * self.stride..]
    }

    fn copy(&self) -> Image {
        let width = self.columns.len();
        let pixels = self.rows.clone().flat_map(|row| &self.row(row)[..width * 3]).copied().collect();
        Image { width, height: self.rows.len(), pixels }
    }

    fn horizontal(&self, columns: &Weights) -> Image {
        let (width, height) = (columns.starts.len(), self.rows.len());
        let mut pixels = vec![0; width * height * 3];
        for (out, row) in pixels.chunks_exact_mut(width * 3).zip(self.rows.clone()) {
            let row = self.row(row);
            for (pixel, (start, weights)) in out.chunks_exact_mut(3).zip(columns.iter()) {
                let mut sums = [HALF; 3];
                for (input, &weight) in row[(start - self.columns.start) * 3..].chunks_exact(3).zip(weights) {
                    for channel in 0..3 {
                        sums[channel] += i32::from(input[channel]) * weight;
                    }
                }
                pixel.copy_from_slice(&sums.map(clip));
            }
        }
        Image { width, height, pixels }
    }

    fn vertical(&self, rows: &Weights) -> Image {
        let (width, height) = (self.columns.len(), rows.starts.len());
        let mut pixels = vec![0; width * height * 3];
        let mut sums = vec![0; width * 3];
        for (out, (start, weights)) in pixels.chunks_exact_mut(width * 3).zip(rows.iter()) {
            sums.fill(HALF);
            for (offset, &weight) in weights.iter().enumerate() {
                for (sum, &value) in sums.iter_mut().zip(self.row(start + offset)) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (value, &sum) in out.iter_mut().zip(&sums) {
                *value = clip(sum);
            }
        }
        Image { width, height, pixels }
    }
}

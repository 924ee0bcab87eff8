//! Resizing, bit-exact with Pillow: two separable passes in 22-bit fixed point, each rounded to 8 bits. Only pixels that
//! contribute to the kept window are computed.
//!
//! The arithmetic is that of `precompute_coeffs` and `ImagingResampleInner` in Pillow's Resample.c.

mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_vnni;

use std::ops::Range;

use kernel::Horizontal;
pub use kernel::Isa;
pub use weights::Filter;
use weights::{Axis, GROUP, Weights};

use super::pixels::{Image, View, check_room};
use crate::memory::{HUGE, advise_huge};
use crate::{Error, Result};

/// Maximum number of pixels in a result (12 GiB).
const MAX_PIXELS: usize = 1 << 32;

/// A rectangle in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// Rows that are taken before the result grows. They are to stay in the first cache until it does.
const PIECE: usize = 2 * GROUP;

/// A planned resize that keeps a window of its result. The rows of the input are pushed from top to bottom.
pub struct Resizer {
    columns: Option<Horizontal>,
    rows: Option<Weights>,
    vertical_first: bool,
    window: Window,
    isa: Isa,
    used_columns: Range<usize>,
    used_rows: Range<usize>,
    /// Rows that wait for the vertical pass, already resized horizontally if that is the first pass.
    taken: Rows,
    /// The number of the first row of `taken`.
    first: usize,
    /// Rows between the passes, if the vertical one is the first.
    low: Rows,
    /// The rows of the result that are done.
    done: Vec<u8>,
}

/// Rows next to each other, and room after them.
#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    /// Bytes per row.
    width: usize,
    count: usize,
    /// Bytes that can be read after the last row.
    padding: usize,
}

impl Rows {
    /// Adds rows of any content, and returns them.
    fn add(&mut self, count: usize) -> &mut [u8] {
        let start = self.count * self.width;
        self.count += count;
        let end = self.count * self.width;
        // Earlier rows are not cleared: the new ones overwrite them.
        if self.bytes.len() < end + self.padding {
            self.bytes.resize(end + self.padding, 0);
        }
        &mut self.bytes[start..end]
    }

    fn drop_first(&mut self, count: usize) {
        self.bytes.copy_within(count * self.width..self.count * self.width, 0);
        self.count -= count;
    }
}

impl Resizer {
    /// Plans the resize of an image of size `from` to `size` (both width, height), of which `window` is kept.
    pub fn new(from: (usize, usize), size: (usize, usize), window: Window, filter: Filter, isa: Isa) -> Result<Self> {
        if size.0 == 0 || size.1 == 0 {
            return Err(Error::argument("width and height must be at least 1"));
        }
        let pixels = window.width.checked_mul(window.height).filter(|pixels| *pixels <= MAX_PIXELS);
        let Some(pixels) = pixels else {
            return Err(Error::argument(format!(
                "{} x {} pixels exceed the limit of {MAX_PIXELS} pixels",
                window.width, window.height
            )));
        };
        let across = Weights::room(from.0, size.0, window.width, filter);
        check_room(across.saturating_add(Weights::room(from.1, size.1, window.height, filter)))?;
        // An axis whose length does not change is not filtered.
        let axis = |from: usize, size: usize, first: usize, count: usize| {
            (size != from).then(|| kernel::weights(Axis::new(from, size, first, count, filter), isa))
        };
        let columns = axis(from.0, size.0, window.left, window.width);
        let rows = axis(from.1, size.1, window.top, window.height);
        let used_columns = columns.as_ref().map_or(window.left..window.left + window.width, Weights::inputs);
        let used_rows = rows.as_ref().map_or(window.top..window.top + window.height, Weights::inputs);
        let vertical_first = rows.is_some() && columns.is_some() && is_vertical_first(from, size);
        let columns = columns.map(|columns| Horizontal::new(columns, isa));
        let width = 3 * if columns.is_some() && !vertical_first { window.width } else { used_columns.len() };
        // Rows are dropped when they are two thirds of those that are held.
        let most = rows.as_ref().map_or(0, |rows| rows.longest().saturating_mul(3).saturating_add(PIECE));
        check_room(width.saturating_mul(most.min(used_rows.len()) + GROUP).saturating_add(3 * pixels))?;
        let taken = Rows { width, ..Rows::default() };
        let padding = columns.as_ref().map_or(0, Horizontal::padding);
        let low = Rows { width, padding, ..Rows::default() };
        let (first, mut done) = (used_rows.start, Vec::with_capacity(3 * pixels));
        if 3 * pixels >= HUGE {
            advise_huge(done.spare_capacity_mut());
        }
        Ok(Self { columns, rows, vertical_first, window, isa, used_columns, used_rows, taken, first, low, done })
    }

    /// Columns of the input that the result depends on.
    pub fn used_columns(&self) -> Range<usize> {
        self.used_columns.clone()
    }

    /// Rows of the input that the result depends on.
    pub fn used_rows(&self) -> Range<usize> {
        self.used_rows.clone()
    }

    /// Adds the next rows. They start at the first used column and are `stride` bytes apart; the last may end at the last
    /// used column.
    pub fn push(&mut self, input: &[u8], stride: usize, rows: usize) {
        for start in (0..rows).step_by(PIECE) {
            let (input, rows) = (&input[start * stride..], PIECE.min(rows - start));
            let out = match &self.rows {
                Some(_) => self.taken.add(rows),
                None => grow(&mut self.done, rows * self.window.width * 3),
            };
            let width = out.len() / rows;
            match &self.columns {
                Some(columns) if !self.vertical_first => columns.run(input, stride, out, width),
                _ => {
                    for (row, out) in out.chunks_exact_mut(width).enumerate() {
                        out.copy_from_slice(&input[row * stride..][..width]);
                    }
                }
            }
            self.reduce();
        }
    }

    /// Computes the rows of the result, or those between the passes, whose inputs have been taken.
    fn reduce(&mut self) {
        let Some(rows) = &self.rows else { return };
        let (width, columns) = (self.window.width * 3, self.columns.as_ref().filter(|_| self.vertical_first));
        loop {
            let next = self.done.len() / width + self.low.count;
            if next == self.window.height {
                return;
            }
            let (start, weights) = rows.at(next);
            let before = start - self.first;
            if before + weights.len() > self.taken.count {
                // For each row that is moved, two are dropped.
                let dropped = before.min(self.taken.count);
                if dropped >= 2 * (self.taken.count - dropped) {
                    self.taken.drop_first(dropped);
                    self.first += dropped;
                }
                return;
            }
            let out = match columns {
                Some(_) => self.low.add(1),
                None => grow(&mut self.done, width),
            };
            let input = &self.taken.bytes[before * self.taken.width..self.taken.count * self.taken.width];
            kernel::vertical(input, self.taken.width, weights, out, self.isa);
            if let Some(columns) = columns
                && (self.low.count == GROUP || next + 1 == self.window.height)
            {
                let out = grow(&mut self.done, self.low.count * width);
                columns.run(&self.low.bytes, self.low.width, out, width);
                self.low.count = 0;
            }
        }
    }

    /// Returns the result. All used rows must have been pushed.
    pub fn finish(self) -> Image {
        Image { width: self.window.width, height: self.window.height, pixels: self.done }
    }
}

/// Adds as many bytes, and returns them.
fn grow(bytes: &mut Vec<u8>, count: usize) -> &mut [u8] {
    let start = bytes.len();
    bytes.resize(start + count, 0);
    &mut bytes[start..]
}

/// Resizes to `size` (width, height) and returns the `window` of the result.
pub fn resize(image: View<'_>, size: (usize, usize), window: Window, filter: Filter, isa: Isa) -> Result<Image> {
    let mut resizer = Resizer::new((image.width, image.height), size, window, filter, isa)?;
    let rows = resizer.used_rows();
    let stride = image.width * 3;
    let start = rows.start * stride + resizer.used_columns().start * 3;
    resizer.push(&image.pixels[start..], stride, rows.len());
    Ok(resizer.finish())
}

/// Since Pillow 13 the order of the passes depends on the sizes. Each pass rounds, so the order affects the pixels.
fn is_vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    to.1 < from.1 && (from.1 - to.1) as i128 > 2 * (from.0 as i128 - to.0 as i128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pixels(width: usize, height: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // Many extremes, so that sums overshoot in both directions.
        let value = |random: u64| {
            if random & 3 == 0 {
                0
            } else if random & 3 == 1 {
                255
            } else {
                (random >> 8) as u8
            }
        };
        (0..width * height * 3).map(|_| value(next())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_instruction_set_gives_the_pixels_of_plain_rust(
            from in (1usize..150, 1usize..60),
            to in (1usize..150, 1usize..60),
            part in (0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0),
            filter in prop::sample::select(&[
                Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos,
            ][..]),
            seed: u64,
        ) {
            let input = pixels(from.0, from.1, seed);
            let image = View::new(from.0, from.1, &input).unwrap();
            let cut = |side: usize, start: f64, length: f64| {
                let start = (side as f64 * start) as usize;
                (start, 1 + ((side - start - 1) as f64 * length) as usize)
            };
            let ((left, width), (top, height)) = (cut(to.0, part.0, part.1), cut(to.1, part.2, part.3));
            let window = Window { left, top, width, height };
            let plain = resize(image, to, window, filter, Isa::Scalar).unwrap();
            let whole = Window { left: 0, top: 0, width: to.0, height: to.1 };
            let all = resize(image, to, whole, filter, Isa::Scalar).unwrap();
            for (y, row) in plain.pixels.chunks_exact(width * 3).enumerate() {
                prop_assert_eq!(row, &all.pixels[((top + y) * to.0 + left) * 3..][..width * 3]);
            }
            for isa in Isa::available() {
                prop_assert_eq!(&resize(image, to, window, filter, isa).unwrap(), &plain, "{:?}", isa);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_pixels_of_plain_rust_for_large_images() {
        for from in [(500, 375), (2048, 1536), (4000, 300), (64, 64), (300, 1200)] {
            let input = pixels(from.0, from.1, 7);
            let image = View::new(from.0, from.1, &input).unwrap();
            for to in [(341, 256), (256, 341), (1000, 1000), (20, 10), (100, 3)] {
                for filter in [Filter::Box, Filter::Bicubic, Filter::Lanczos] {
                    let window = Window { left: to.0 / 8, top: to.1 / 8, width: to.0 / 2, height: to.1 / 2 };
                    let plain = resize(image, to, window, filter, Isa::Scalar).unwrap();
                    for isa in Isa::available() {
                        assert!(resize(image, to, window, filter, isa).unwrap() == plain, "{isa:?} {from:?} {to:?}");
                    }
                }
            }
        }
    }
}

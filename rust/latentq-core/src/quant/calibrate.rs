//! Calibration: ranges and codebooks from data that arrives in batches.
//!
//! The values of each channel are counted in a histogram of 11 significant bits: float16 and bfloat16 values exactly,
//! float32 values to one part in 4096. The extremes are kept exactly. The size of the histogram is bounded, and the order
//! of the data does not matter.

use super::arrays::sample_len;
use super::floats::{BF16, F16, F32, F64, Float, Floats, FloatsMut};
use super::scheme::{Quantizer, check_bits, top};
use crate::{Error, Result};

/// The rule that derives the range of a channel from its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The smallest and the largest value. Nothing is clipped.
    MinMax,
    /// All values except one in [`TAIL`] at each end.
    Percentile,
    /// The range with the smallest squared error, clipped values included.
    Mse,
}

/// [`Method::Percentile`] clips one value in this many below the range, and as many above.
pub const TAIL: f64 = 10_000.0;

/// Limit on the iterations of Lloyd's algorithm, which ends earlier once no value changes its code.
const ITERATIONS: usize = 1500;

/// Mantissa bits of an f32 that a histogram drops.
const DROPPED: u32 = 13;
/// Counts per page. A page covers one sign and exponent.
const PAGE: usize = 1 << (23 - DROPPED);

/// Histograms of values, one per channel.
#[derive(Clone, Debug)]
pub struct Calibrator {
    channels: Vec<Histogram>,
}

impl Calibrator {
    /// Creates a calibrator without data.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::argument("a calibrator needs at least one channel"));
        }
        Ok(Self { channels: vec![Histogram::default(); channels] })
    }

    /// Adds the values of `x` (N, C, plane). If one is a NaN or an infinity, returns its sample and channel and adds none.
    pub fn update(&mut self, x: Floats<'_>, plane: usize) -> Result<Option<(usize, usize)>> {
        match x {
            Floats::F32(x) => self.update_as::<F32>(x, plane),
            Floats::F16(x) => self.update_as::<F16>(x, plane),
            Floats::BF16(x) => self.update_as::<BF16>(x, plane),
            Floats::F64(x) => self.update_as::<F64>(x, plane),
        }
    }

    fn update_as<F: Float>(&mut self, x: &[F::Bits], plane: usize) -> Result<Option<(usize, usize)>> {
        let channels = self.channels.len();
        if let Some(bad) = first_bad::<F>(x, channels, plane)? {
            return Ok(Some(bad));
        }
        for (index, x) in x.chunks(plane.max(1)).enumerate() {
            let histogram = &mut self.channels[index % channels];
            x.iter().for_each(|x| histogram.add(F::widen(*x)));
        }
        Ok(None)
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Low and high of each channel.
    pub fn ranges(&self, bits: u32, method: Method) -> Result<Vec<(f32, f32)>> {
        check_bits(bits)?;
        self.sorted()
            .map(|channel| {
                let channel = channel?;
                let (low, high) = match method {
                    Method::MinMax => (channel.min, channel.max),
                    Method::Percentile => channel.percentile(),
                    Method::Mse => channel.smallest_error(top(bits)),
                };
                Ok((low as f32, high as f32))
            })
            .collect()
    }

    /// The codebooks with the smallest squared error, channel by channel, each of `2^bits` ascending levels.
    pub fn levels(&self, bits: u32) -> Result<Vec<f32>> {
        check_bits(bits)?;
        let mut levels = Vec::new();
        for channel in self.sorted() {
            levels.extend(channel?.lloyd_max(1 << bits));
        }
        Ok(levels)
    }

    /// The error of quantizing the data with `quantizer`, per channel.
    pub fn measure(&self, quantizer: &Quantizer) -> Result<Vec<Cost>> {
        if quantizer.channels() != self.channels.len() {
            let (theirs, ours) = (quantizer.channels(), self.channels.len());
            return Err(Error::argument(format!("the quantizer has {theirs} channels, the data {ours}")));
        }
        let costs = self.channels.iter().enumerate().map(|(channel, histogram)| {
            let Some(quantizer) = quantizer.channel(channel) else {
                return Err(Error::argument("a trellis is measured on samples, not on counts of their values"));
            };
            let mut cost = Cost::default();
            for (value, count) in histogram.ascending() {
                let (mut code, mut back) = ([0], [0.0]);
                let seen = quantizer.quantize(Floats::F32(&[value as f32]), &mut code, 1, 1)?;
                quantizer.dequantize(&code, FloatsMut::F32(&mut back), 1, 1)?;
                let error = (value - f64::from(back[0])).abs();
                cost.count += count;
                cost.clipped += count * seen.clipped[0] as f64;
                cost.signal += count * value * value;
                cost.noise += count * error * error;
                cost.largest = cost.largest.max(error);
            }
            Ok(cost)
        });
        costs.collect()
    }

    fn sorted(&self) -> impl Iterator<Item = Result<Sorted>> + '_ {
        self.channels.iter().enumerate().map(|(channel, histogram)| {
            let nothing = || Error::argument(format!("channel {channel} has no values to calibrate with"));
            Sorted::new(histogram).ok_or_else(nothing)
        })
    }
}

/// Sample and channel of the first NaN or infinity, after checking that `x` is whole samples.
pub(super) fn first_bad<F: Float>(x: &[F::Bits], channels: usize, plane: usize) -> Result<Option<(usize, usize)>> {
    sample_len(x.len(), channels, plane)?;
    let bad = x.chunks(plane.max(1)).position(|x| !x.iter().all(|x| F::widen(*x).is_finite()));
    Ok(bad.map(|plane| (plane / channels, plane % channels)))
}

/// The error of quantizing one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Number of values.
    pub count: f64,
    /// Number of values outside the range.
    pub clipped: f64,
    /// Sum of the squared values.
    pub signal: f64,
    /// Sum of the squared errors.
    pub noise: f64,
    /// Largest absolute error.
    pub largest: f64,
}

/// Counts of values rounded to 11 significant bits.
#[derive(Clone, Debug)]
struct Histogram {
    /// Indexed by the upper 9 bits of an f32. A page is allocated with its first value.
    pages: Vec<Option<Box<[u64]>>>,
    min: f32,
    max: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { pages: vec![None; 512], min: f32::INFINITY, max: f32::NEG_INFINITY }
    }
}

impl Histogram {
    /// Counts a finite value.
    fn add(&mut self, value: f32) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let bits = value.to_bits();
        // Rounds half to even. A carry correctly increments the exponent.
        let key = ((bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) >> DROPPED) as usize;
        let page = self.pages[key / PAGE].get_or_insert_with(|| vec![0; PAGE].into_boxed_slice());
        page[key % PAGE] += 1;
    }

    /// The distinct values, ascending, with their counts.
    fn ascending(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let key = |page: usize, index: usize| (page * PAGE + index) as u32;
        let half = self.pages.len() / 2;
        let occurring = move |page: usize| {
            let counts = self.pages[page].as_deref().unwrap_or_default();
            counts
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0)
                .map(move |(index, &count)| (key(page, index), count))
        };
        let negative =
            (half..2 * half).rev().flat_map(move |page| occurring(page).collect::<Vec<_>>().into_iter().rev());
        let positive = (0..half).flat_map(occurring);
        // A rounded value may be outside the range of the data, or even infinite.
        negative
            .chain(positive)
            .map(|(key, count)| (f64::from(f32::from_bits(key << DROPPED).clamp(self.min, self.max)), count as f64))
    }
}

/// The values of a channel, ascending, with prefix sums: the sum over any run of values takes two look-ups.
struct Sorted {
    min: f64,
    max: f64,
    /// The mean. It is subtracted from all values, so that sums of squares keep their precision.
    center: f64,
    values: Vec<f64>,
    /// Prefix sums of counts, values and squares; each has one element more than `values`.
    count: Vec<f64>,
    sum: Vec<f64>,
    square: Vec<f64>,
}

impl Sorted {
    fn new(histogram: &Histogram) -> Option<Self> {
        let pairs: Vec<_> = histogram.ascending().collect();
        let total: f64 = pairs.iter().map(|(_, count)| count).sum();
        if total == 0.0 {
            return None;
        }
        let center = pairs.iter().map(|(value, count)| value * count).sum::<f64>() / total;
        let values: Vec<f64> = pairs.iter().map(|(value, _)| value - center).collect();
        let prefix = |power: i32| {
            let mut sum = 0.0;
            let terms = values.iter().zip(&pairs).map(|(value, (_, count))| value.powi(power) * count);
            let sums = terms.map(|term| {
                sum += term;
                sum
            });
            std::iter::once(0.0).chain(sums).collect::<Vec<f64>>()
        };
        let (count, sum, square) = (prefix(0), prefix(1), prefix(2));
        let (min, max) = (f64::from(histogram.min), f64::from(histogram.max));
        Some(Self { min, max, center, values, count, sum, square })
    }

    /// Squared error of the values `from..to` if all are replaced by `level`.
    fn error(&self, from: usize, to: usize, level: f64) -> f64 {
        let part = |sums: &[f64]| sums[to] - sums[from];
        part(&self.square) - 2.0 * level * part(&self.sum) + level * level * part(&self.count)
    }

    /// Index of the first value above `bound`, searching from `from` on.
    fn above(&self, bound: f64, from: usize) -> usize {
        from + self.values[from..].partition_point(|value| *value <= bound)
    }

    fn percentile(&self) -> (f64, f64) {
        let tail = self.count[self.values.len()] / TAIL;
        let low = self.count[1..].partition_point(|count| *count <= tail);
        let high = self.count[1..].partition_point(|count| *count < self.count[self.values.len()] - tail);
        (self.values[low] + self.center, self.values[high] + self.center)
    }

    /// Squared error of all values, quantized with `top + 1` codes from `low` to `high` (both relative to `center`).
    fn affine_error(&self, low: f64, high: f64, top: f64) -> f64 {
        let step = (high - low) / top;
        let (mut from, mut error) = (0, 0.0);
        for code in 0..top as usize {
            let level = low + code as f64 * step;
            let to = self.above(level + step / 2.0, from);
            error += self.error(from, to, level);
            from = to;
        }
        error + self.error(from, self.values.len(), high)
    }

    /// The range with the smallest squared error. Both ends shrink towards the mean: first on a coarse grid of pairs, then
    /// alternately in finer and finer steps.
    fn smallest_error(&self, top: f32) -> (f64, f64) {
        let top = f64::from(top);
        let (min, max) = (self.min - self.center, self.max - self.center);
        if min >= max {
            return (self.min, self.max);
        }
        let mut best = (self.affine_error(min, max, top), min, max);
        let consider = |low: f64, high: f64, best: &mut (f64, f64, f64)| {
            if min <= low && low < high && high <= max {
                let error = self.affine_error(low, high, top);
                if error < best.0 {
                    *best = (error, low, high);
                }
            }
        };
        let scale = |half_octaves: f64| 0.5f64.powf(half_octaves / 2.0);
        for low in 0..16 {
            for high in 0..16 {
                consider(min * scale(f64::from(low)), max * scale(f64::from(high)), &mut best);
            }
        }
        let mut reach = 0.5;
        for _ in 0..10 {
            let (_, low, high) = best;
            for offset in -2..=2 {
                consider((low * scale(f64::from(offset) * reach)).max(min), high, &mut best);
            }
            let (_, low, high) = best;
            for offset in -2..=2 {
                consider(low, (high * scale(f64::from(offset) * reach)).min(max), &mut best);
            }
            reach /= 2.0;
        }
        (best.1 + self.center, best.2 + self.center)
    }

    /// Lloyd's algorithm: move each bound to the midpoint of its levels, then each level to the mean of its values.
    fn lloyd_max(&self, size: usize) -> Vec<f32> {
        let mut levels = self.first_levels(size);
        let mut bounds = vec![0; size + 1];
        for _ in 0..ITERATIONS {
            let mut next = vec![0; size + 1];
            next[size] = self.values.len();
            for code in 1..size {
                next[code] = self.above((levels[code - 1] + levels[code]) / 2.0, next[code - 1]);
            }
            if next == bounds {
                break;
            }
            bounds = next;
            for (level, bound) in levels.iter_mut().zip(bounds.windows(2)) {
                let count = self.count[bound[1]] - self.count[bound[0]];
                if count > 0.0 {
                    *level = (self.sum[bound[1]] - self.sum[bound[0]]) / count;
                }
            }
        }
        levels.sort_unstable_by(f64::total_cmp);
        levels.iter().map(|level| (level + self.center) as f32).collect()
    }

    /// Initial levels, as dense as the cube root of the density of the values, which is optimal for many levels (Panter
    /// and Dite, 1951). For a normal distribution these are quantiles of a normal distribution sqrt(3) times as wide. The
    /// density is estimated from a few bins (many would be noisy), with an extra bin for each tail.
    fn first_levels(&self, size: usize) -> Vec<f64> {
        const BINS: usize = 32;
        let total = self.count[self.values.len()];
        let quantile = |share: f64| self.values[self.count[1..].partition_point(|count| *count < share * total)];
        let (low, high) = (quantile(0.001), quantile(0.999));
        let inner = (0..=BINS).map(|bin| low + (high - low) * bin as f64 / BINS as f64);
        let edges: Vec<f64> = std::iter::once(self.values[0]).chain(inner).chain(self.values.last().copied()).collect();
        let (mut from, mut sum) = (0, 0.0);
        let sums = edges.windows(2).map(|edge| {
            let to = self.above(edge[1], from);
            // Cube root of the density times the width of the bin.
            sum += ((self.count[to] - self.count[from]) * (edge[1] - edge[0]).powi(2)).cbrt();
            from = to;
            sum
        });
        let sums: Vec<f64> = std::iter::once(0.0).chain(sums).collect();
        (0..size)
            .map(|code| {
                let target = (code as f64 + 0.5) / size as f64 * sums[sums.len() - 1];
                let bin = sums[1..].partition_point(|sum| *sum < target).min(edges.len() - 2);
                let inside = (target - sums[bin]) / (sums[bin + 1] - sums[bin]).max(f64::MIN_POSITIVE);
                edges[bin] + inside.clamp(0.0, 1.0) * (edges[bin + 1] - edges[bin])
            })
            .collect()
    }
}

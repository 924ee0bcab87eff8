//! Calibration of a trellis: levels as dense as the cube root of the density of the values, improved by rounds of encoding.

use super::decode::level_numbers;
use crate::memory::{filled, with_room};
use crate::quant::calibrate::first_bad;
use crate::quant::floats::{BF16, F16, F32, F64, Float, Floats};
use crate::quant::kernel::BLOCK;
use crate::quant::scheme::{Quantizer, check_bits};
use crate::{Error, Result};

/// Values that a calibrator keeps at most, unless one sample has more.
const MOST_VALUES: usize = 1 << 24;

/// Rounds of encoding, each of which moves every level to the mean of its values.
const ROUNDS: usize = 15;

/// Bits from which on there are no rounds: a level has too few values, so that its mean is worse than where it starts.
const STEADY: u32 = 6;

/// Samples to calibrate a trellis on. Their order matters; how they are cut in batches does not.
#[derive(Clone, Debug)]
pub struct TrellisCalibrator {
    channels: usize,
    /// The kept samples, one after the other.
    kept: Vec<f32>,
    /// Elements per channel of each kept sample.
    planes: Vec<usize>,
    /// Samples given so far.
    samples: usize,
    /// Every sample whose index is a multiple of this is kept: 1, and twice as many whenever there are too many values.
    stride: usize,
}

impl TrellisCalibrator {
    /// Creates a calibrator without samples.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::argument("a calibrator needs at least one channel"));
        }
        Ok(Self { channels, kept: Vec::new(), planes: Vec::new(), samples: 0, stride: 1 })
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Adds the samples of `x` (N, C, plane). If one holds a NaN or an infinity, returns its index and channel and adds none.
    pub fn update(&mut self, x: Floats<'_>, plane: usize) -> Result<Option<(usize, usize)>> {
        match x {
            Floats::F32(x) => self.update_as::<F32>(x, plane),
            Floats::F16(x) => self.update_as::<F16>(x, plane),
            Floats::BF16(x) => self.update_as::<BF16>(x, plane),
            Floats::F64(x) => self.update_as::<F64>(x, plane),
        }
    }

    fn update_as<F: Float>(&mut self, x: &[F::Bits], plane: usize) -> Result<Option<(usize, usize)>> {
        if let Some(bad) = first_bad::<F>(x, self.channels, plane)? {
            return Ok(Some(bad));
        }
        if x.is_empty() {
            return Ok(None);
        }
        let size = self.channels * plane;
        for sample in x.chunks_exact(size) {
            if self.samples.is_multiple_of(self.stride) {
                if !self.kept.is_empty() && self.kept.len() + size > MOST_VALUES {
                    self.drop_every_second();
                }
                if self.samples.is_multiple_of(self.stride) {
                    self.kept.try_reserve(size).map_err(|_| Error::memory(size.saturating_mul(size_of::<f32>())))?;
                    self.planes.try_reserve(1).map_err(|_| Error::memory(size_of::<usize>()))?;
                    self.planes.push(plane);
                    self.kept.extend(sample.iter().map(|x| F::widen(*x)));
                }
            }
            self.samples += 1;
        }
        Ok(None)
    }

    fn drop_every_second(&mut self) {
        let (mut from, mut to) = (0, 0);
        for (sample, plane) in self.planes.iter().enumerate() {
            let size = self.channels * plane;
            if sample.is_multiple_of(2) {
                self.kept.copy_within(from..from + size, to);
                to += size;
            }
            from += size;
        }
        self.kept.truncate(to);
        self.planes = self.planes.iter().copied().step_by(2).collect();
        self.stride *= 2;
    }

    /// The kept samples in runs of one shape, each with its elements per channel.
    fn runs(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let mut rest = self.kept.as_slice();
        self.planes.chunk_by(|a, b| a == b).map(move |planes| {
            let (run, after) = rest.split_at(planes.len() * planes[0] * self.channels);
            rest = after;
            (planes[0], run)
        })
    }

    /// The levels of all channels, channel by channel, `2^(bits + 1)` ascending levels each.
    pub fn levels(&self, bits: u32) -> Result<Vec<f32>> {
        check_bits(bits)?;
        if self.kept.is_empty() {
            return Err(Error::argument("there are no samples to calibrate with"));
        }
        let size = 2usize << bits;
        let mut levels = with_room(self.channels * size)?;
        let mut values = with_room(self.kept.len() / self.channels)?;
        for channel in 0..self.channels {
            values.clear();
            for (plane, run) in self.runs() {
                for sample in run.chunks_exact(self.channels * plane) {
                    values.extend_from_slice(&sample[channel * plane..][..plane]);
                }
            }
            values.sort_unstable_by(f32::total_cmp);
            levels.extend(spread(&values, size, margin(bits)));
        }
        for _ in 0..if bits < STEADY { ROUNDS } else { 0 } {
            self.improve(&mut levels, bits)?;
        }
        Ok(rounded(&levels))
    }

    /// Moves each level to the mean of its values, with the level itself as half a value.
    fn improve(&self, levels: &mut [f64], bits: u32) -> Result<()> {
        let size = 2usize << bits;
        let quantizer = Quantizer::trellis(&rounded(levels), bits)?;
        let mut codes = filled(0, self.kept.len())?;
        let (mut sums, mut counts) = (filled(0.0, levels.len())?, filled(0.0, levels.len())?);
        let mut numbers = [0; BLOCK];
        for (plane, run) in self.runs() {
            let (sample, codes) = (self.channels * plane, &mut codes[..run.len()]);
            quantizer.quantize(Floats::F32(run), codes, plane, 1)?;
            for (x, codes) in run.chunks_exact(sample).zip(codes.chunks_exact(sample)) {
                for channel in 0..self.channels {
                    let (sums, counts) = (&mut sums[channel * size..][..size], &mut counts[channel * size..][..size]);
                    for start in (channel * plane..(channel + 1) * plane).step_by(BLOCK) {
                        let numbers = &mut numbers[..BLOCK.min((channel + 1) * plane - start)];
                        level_numbers(codes, start, numbers);
                        for (x, number) in x[start..].iter().zip(numbers) {
                            sums[usize::from(*number) % size] += f64::from(*x);
                            counts[usize::from(*number) % size] += 1.0;
                        }
                    }
                }
            }
        }
        for ((level, sum), count) in levels.iter_mut().zip(sums).zip(counts) {
            *level = (sum + 0.5 * *level) / (count + 0.5);
        }
        levels.chunks_exact_mut(size).for_each(|levels| levels.sort_unstable_by(f64::total_cmp));
        Ok(())
    }
}

/// The share of the range by which the ends are moved out. From 6 bits on, the values of other data outside the range
/// have most of the error.
fn margin(bits: u32) -> f64 {
    match bits {
        0..STEADY => 0.02,
        STEADY => 0.1,
        _ => 0.2,
    }
}

fn rounded(levels: &[f64]) -> Vec<f32> {
    levels.iter().map(|level| level.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32).collect()
}

/// `count` levels as dense as the cube root of the density of sorted values, which is estimated from 28 quantiles. The
/// first and the last quantile are moved out by `margin` of the range.
fn spread(values: &[f32], count: usize, margin: f64) -> Vec<f64> {
    const INNER: usize = 24;
    let inner = (0..INNER).map(|i| if i == INNER - 1 { 0.99 } else { 0.01 + i as f64 * (0.98 / 23.0) });
    let shares: Vec<f64> = [0.0, 0.001, 0.005].into_iter().chain(inner).chain([0.995, 0.999, 1.0]).collect();
    let mut quantiles: Vec<f64> = shares.iter().map(|share| quantile(values, *share)).collect();
    let end = quantiles.len() - 1;
    let range = quantiles[end] - quantiles[0];
    quantiles[0] -= margin * range;
    quantiles[end] += margin * range;
    let least = 1e-12 + 1e-9 * (quantiles[end] - quantiles[0]);
    let mut mass = vec![0.0];
    for (quantile, share) in quantiles.windows(2).zip(shares.windows(2)) {
        let width = (quantile[1] - quantile[0]).max(least);
        mass.push(mass[mass.len() - 1] + width * ((share[1] - share[0]) / width).cbrt());
    }
    let total = mass[end];
    let mut at = 0;
    (0..count)
        .map(|i| {
            let target = (i as f64 + 0.5) / count as f64 * total;
            while at + 1 < end && mass[at + 1] <= target {
                at += 1;
            }
            let slope = (quantiles[at + 1] - quantiles[at]) / (mass[at + 1] - mass[at]);
            slope * (target - mass[at]) + quantiles[at]
        })
        .collect()
}

/// The quantile of sorted values, linear between two of them.
fn quantile(values: &[f32], share: f64) -> f64 {
    let position = share * (values.len() - 1) as f64;
    let lower = position as usize;
    let (low, high) = (f64::from(values[lower]), f64::from(values[(lower + 1).min(values.len() - 1)]));
    low + (high - low) * (position - lower as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count as u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).powi(3)).collect()
    }

    #[test]
    fn batches_do_not_change_the_levels() {
        let x = values(12 * 2 * 9);
        let mut whole = TrellisCalibrator::new(2).unwrap();
        whole.update(Floats::F32(&x), 9).unwrap();
        let mut parts = TrellisCalibrator::new(2).unwrap();
        for x in x.chunks(5 * 18) {
            parts.update(Floats::F32(x), 9).unwrap();
        }
        for bits in [2, 5, 8] {
            let levels = whole.levels(bits).unwrap();
            assert_eq!(levels, parts.levels(bits).unwrap());
            assert!(levels.chunks(2 << bits).all(|levels| levels.is_sorted()));
        }
    }

    #[test]
    fn of_too_many_samples_every_second_is_kept() {
        let size = MOST_VALUES / 4;
        let mut calibrator = TrellisCalibrator::new(1).unwrap();
        for index in 0..11 {
            calibrator.update(Floats::F32(&vec![index as f32; size]), size).unwrap();
        }
        let kept: Vec<f32> = calibrator.kept.chunks(size).map(|sample| sample[0]).collect();
        assert_eq!(kept, [0.0, 4.0, 8.0]);
    }

    #[test]
    fn samples_of_several_shapes_are_kept_whole() {
        let x = values(2 * (9 + 9 + 4 + 9));
        let mut calibrator = TrellisCalibrator::new(2).unwrap();
        let mut at = 0;
        for plane in [9, 9, 4, 9] {
            calibrator.update(Floats::F32(&x[at..at + 2 * plane]), plane).unwrap();
            at += 2 * plane;
        }
        let runs: Vec<_> = calibrator.runs().collect();
        assert_eq!(runs, [(9, &x[..36]), (4, &x[36..44]), (9, &x[44..])]);
        for bits in [2, 8] {
            assert!(calibrator.levels(bits).unwrap().chunks(2 << bits).all(|levels| levels.is_sorted()));
        }
        calibrator.drop_every_second();
        assert_eq!(calibrator.runs().collect::<Vec<_>>(), [(9, &x[..18]), (4, &x[36..44])]);
        assert_eq!(calibrator.stride, 2);
    }

    #[test]
    fn a_constant_channel_has_equal_levels_and_huge_values_finite_ones() {
        let mut calibrator = TrellisCalibrator::new(2).unwrap();
        calibrator.update(Floats::F32(&[0.7, 0.7, -3e38, 3e38, 0.7, 0.7, 1.0, f32::MAX]), 2).unwrap();
        for bits in 2..=8 {
            let levels = calibrator.levels(bits).unwrap();
            assert!(levels[..2 << bits].iter().all(|level| *level == 0.7));
            assert!(Quantizer::trellis(&levels, bits).is_ok());
        }
    }

    #[test]
    fn nothing_to_calibrate_on_is_an_error() {
        assert!(TrellisCalibrator::new(0).is_err());
        let mut calibrator = TrellisCalibrator::new(2).unwrap();
        assert_eq!(calibrator.update(Floats::F32(&[0.0, 1.0, f32::NAN, 0.0]), 1).unwrap(), Some((1, 0)));
        assert!(calibrator.levels(4).is_err());
        assert!(calibrator.update(Floats::F32(&[0.0; 3]), 1).is_err());
        calibrator.update(Floats::F32(&[0.0; 4]), 1).unwrap();
        assert!(calibrator.levels(9).is_err());
        assert!(calibrator.levels(4).is_ok());
    }
}

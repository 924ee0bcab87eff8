//! Calibration: the basis from the covariance of channels, then the tables, in rounds of quantizing the samples.

use super::eigen::{compose, eigen, product, transposed};
use super::encode::{Attempt, Divide, Forward};
use super::rates::{LAMBDA, Rates};
use super::tables::TILE;
use super::{
    Fault, LEVELS, LIMIT, MOST_CHANNELS, MOST_T, PERIOD, PRECISION, SYMBOLS, TABLES, Transform, TransformTables, ZERO,
    check_transform_shape,
};
use crate::memory::{filled, with_room};
use crate::quant::arch::Isa;
use crate::quant::calibrate::first_bad;
use crate::quant::floats::{BF16, F16, F32, F64, Float, Floats};
use crate::quant::viterbi::LANES;
use crate::{Error, Result};

/// Values that a calibrator keeps at most, unless one sample has more.
const MOST_VALUES: usize = 1 << 24;

/// Rounds of quantizing, each of which fits the tables to the integers.
const ROUNDS: usize = 4;

/// The weight of the prior, in counts of a table.
const PRIOR: f64 = 20.0;

/// Tables that are tried for a band around the one it has.
const SPAN: i32 = 4;

/// The standard deviation of table 0, in integers.
const DEVIATION: f64 = 0.12;

/// A band has no less energy than this share of the largest: bands without any would make the first step too small.
const LEAST_ENERGY: f64 = 1e-8;

/// The largest coefficient of a sample, in steps: less than the encoder takes, because other samples have larger ones.
const LARGEST_STEPS: f64 = 16_000.0;

/// A metric has no eigenvalue below this share of its largest.
const LEAST_WEIGHT: f64 = 1e-6;

/// A kept sample.
#[derive(Clone, Debug)]
struct Kept {
    shape: (usize, usize),
    values: Vec<f32>,
}

/// Samples to calibrate a transform on, of any shapes. Their order matters; how they are cut in batches does not.
#[derive(Clone, Debug)]
pub struct TransformCalibrator {
    channels: usize,
    kept: Vec<Kept>,
    /// Values of the kept samples.
    values: usize,
    /// Samples given so far.
    samples: usize,
    /// Every sample whose index is a multiple of this is kept: 1, and twice as many whenever there are too many values.
    stride: usize,
}

impl TransformCalibrator {
    /// Creates a calibrator without samples.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 || channels > MOST_CHANNELS {
            return Err(Error::argument(format!("a transform has 1 to {MOST_CHANNELS} channels, not {channels}")));
        }
        Ok(Self { channels, kept: Vec::new(), values: 0, samples: 0, stride: 1 })
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Adds the samples of `x` (N, C, height, width). If one holds a NaN or an infinity, returns its index and channel and adds
    /// none.
    pub fn update(&mut self, x: Floats<'_>, shape: (usize, usize)) -> Result<Option<(usize, usize)>> {
        match x {
            Floats::F32(x) => self.update_as::<F32>(x, shape),
            Floats::F16(x) => self.update_as::<F16>(x, shape),
            Floats::BF16(x) => self.update_as::<BF16>(x, shape),
            Floats::F64(x) => self.update_as::<F64>(x, shape),
        }
    }

    fn update_as<F: Float>(&mut self, x: &[F::Bits], shape: (usize, usize)) -> Result<Option<(usize, usize)>> {
        let plane = shape.0.saturating_mul(shape.1);
        if let Some(bad) = first_bad::<F>(x, self.channels, plane)? {
            return Ok(Some(bad));
        }
        if !x.is_empty() {
            check_transform_shape(self.channels, shape)?;
        }
        for sample in x.chunks_exact((self.channels * plane).max(1)) {
            if self.samples.is_multiple_of(self.stride) && self.values + sample.len() > MOST_VALUES && self.values > 0 {
                self.drop_every_second();
            }
            if self.samples.is_multiple_of(self.stride) {
                let mut values = with_room(sample.len())?;
                values.extend(sample.iter().map(|x| F::widen(*x)));
                self.kept.try_reserve(1).map_err(|_| Error::memory(size_of::<Kept>()))?;
                self.values += values.len();
                self.kept.push(Kept { shape, values });
            }
            self.samples += 1;
        }
        Ok(None)
    }

    fn drop_every_second(&mut self) {
        let mut number = 0;
        self.kept.retain(|_| {
            number += 1;
            number % 2 == 1
        });
        self.values = self.kept.iter().map(|kept| kept.values.len()).sum();
        self.stride *= 2;
    }

    /// The tables for about `rate` bits per element, without the bytes before the words of a sample. `metric` (C, C) says how
    /// much errors of the channels count together; it is taken to the power `power`.
    ///
    /// # Errors
    /// An argument error if there are no samples, they are too small, or an argument is out of range; a memory error.
    pub fn tables(&self, rate: f64, metric: Option<(&[f64], f64)>) -> Result<TransformTables> {
        if self.kept.is_empty() {
            return Err(Error::argument("there are no samples to calibrate with"));
        }
        if !(0.25..=16.0).contains(&rate) {
            return Err(Error::argument(format!("a rate must be 0.25 to 16 bits per element, not {rate}")));
        }
        let n = self.channels;
        let mean = self.mean()?;
        let covariance = self.covariance(&mean)?;
        let (inverse, basis) = match metric {
            None => {
                let (_, vectors) = eigen(&covariance, n)?;
                let basis = transposed(&vectors, n)?;
                (vectors, basis)
            }
            Some((metric, power)) => {
                let (half, back) = square_root(metric, power, n)?;
                let weighted = product(&product(&half, &covariance, n)?, &half, n)?;
                let (_, vectors) = eigen(&weighted, n)?;
                (product(&vectors, &half, n)?, product(&back, &transposed(&vectors, n)?, n)?)
            }
        };
        let narrow = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
        let tables = TransformTables {
            step: 1.0,
            mean: narrow(&mean),
            basis: narrow(&basis),
            inverse: narrow(&inverse),
            base: filled(0, n * TILE)?,
            frequency: frequencies(&[0; TABLES * SYMBOLS])?,
        };
        Rounds { kept: &self.kept, rate, isa: Isa::best() }.run(tables)
    }

    fn mean(&self) -> Result<Vec<f64>> {
        let mut sums = filled(0.0, self.channels)?;
        let mut count = 0usize;
        for kept in &self.kept {
            let plane = kept.shape.0 * kept.shape.1;
            count += plane;
            for (sum, values) in sums.iter_mut().zip(kept.values.chunks_exact(plane)) {
                *sum += values.iter().map(|value| f64::from(*value)).sum::<f64>();
            }
        }
        Ok(sums.into_iter().map(|sum| sum / count as f64).collect())
    }

    fn covariance(&self, mean: &[f64]) -> Result<Vec<f64>> {
        /// Positions at a time.
        const BLOCK: usize = 256;
        let n = self.channels;
        let mut sums = filled(0.0, n * n)?;
        let mut centered = filled(0.0, n * BLOCK)?;
        let mut count = 0usize;
        for kept in &self.kept {
            let plane = kept.shape.0 * kept.shape.1;
            count += plane;
            for start in (0..plane).step_by(BLOCK) {
                let len = BLOCK.min(plane - start);
                for (channel, mean) in mean.iter().enumerate() {
                    let values = &kept.values[channel * plane + start..][..len];
                    for (out, value) in centered[channel * BLOCK..].iter_mut().zip(values) {
                        *out = f64::from(*value) - mean;
                    }
                }
                for i in 0..n {
                    for j in 0..=i {
                        let (a, b) = (&centered[i * BLOCK..][..len], &centered[j * BLOCK..][..len]);
                        let mut lanes = [0.0; 8];
                        for (a, b) in a.chunks(8).zip(b.chunks(8)) {
                            for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                                *lane += a * b;
                            }
                        }
                        sums[i * n + j] += lanes.iter().sum::<f64>();
                    }
                }
            }
        }
        for i in 0..n {
            for j in 0..=i {
                sums[i * n + j] /= count as f64;
                sums[j * n + i] = sums[i * n + j];
            }
        }
        Ok(sums)
    }
}

/// The square root of `metric^power`, scaled to determinant 1, and its inverse.
fn square_root(metric: &[f64], power: f64, n: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    if metric.len() != n * n || metric.iter().any(|value| !value.is_finite()) || !power.is_finite() {
        return Err(Error::argument(format!("a metric is a finite matrix of {n} x {n}, to a finite power")));
    }
    let mut symmetric = filled(0.0, n * n)?;
    for i in 0..n {
        for j in 0..n {
            symmetric[i * n + j] = (metric[i * n + j] + metric[j * n + i]) / 2.0;
        }
    }
    let (values, vectors) = eigen(&symmetric, n)?;
    if values[0] <= 0.0 {
        return Err(Error::argument("a metric must have a positive eigenvalue"));
    }
    let logs: Vec<f64> = values.iter().map(|value| value.max(values[0] * LEAST_WEIGHT).ln() * power / 2.0).collect();
    let middle = logs.iter().sum::<f64>() / n as f64;
    let root: Vec<f64> = logs.iter().map(|log| (log - middle).exp()).collect();
    let back: Vec<f64> = root.iter().map(|value| 1.0 / value).collect();
    Ok((compose(&root, &vectors, n)?, compose(&back, &vectors, n)?))
}

/// Frequencies for these counts of symbols (18, 128): with a prior of a Laplace distribution of each table's deviation.
fn frequencies(counts: &[u64; TABLES * SYMBOLS]) -> Result<Vec<u16>> {
    let mut out = with_room(TABLES * SYMBOLS)?;
    for (table, counts) in counts.chunks_exact(SYMBOLS).enumerate() {
        let scale = deviation(table) / 2f64.sqrt();
        let below = |edge: f64| match edge < 0.0 {
            true => 0.5 * (edge / scale).exp(),
            false => 1.0 - 0.5 * (-edge / scale).exp(),
        };
        let total: u64 = counts.iter().sum();
        let share = |count: u64, prior: f64| (count as f64 + PRIOR * prior) / (total as f64 + PRIOR);
        // An integer stands for the levels 2 k and 2 k + 1, so those of mean 0 have the mean -1/4.
        let edge = |k: i32| f64::from(k) - 0.5 + 0.25;
        let mut row = [0i32; SYMBOLS];
        row[0] = ((share(counts[0], 0.0) * 4096.0 + 0.5) as i32).max(1);
        for (index, (out, count)) in row.iter_mut().zip(counts).enumerate().skip(1) {
            let k = index as i32 - ZERO;
            let low = if k == -LIMIT { 0.0 } else { below(edge(k)) };
            let high = if k == LIMIT { 1.0 } else { below(edge(k + 1)) };
            *out = (share(*count, high - low) * 4096.0 + 0.5) as i32;
        }
        let rest = (1 << PRECISION) - row.iter().sum::<i32>();
        let mut largest = 0;
        for (index, frequency) in row.iter().enumerate() {
            if *frequency > row[largest] {
                largest = index;
            }
        }
        row[largest] += rest;
        out.extend(row.map(|frequency| frequency as u16));
    }
    Ok(out)
}

/// The standard deviation of a table, in integers.
fn deviation(table: usize) -> f64 {
    DEVIATION * (table as f64 / PERIOD as f64).exp2()
}

/// The rounds that fit the tables to the samples.
struct Rounds<'a> {
    kept: &'a [Kept],
    rate: f64,
    isa: Isa,
}

/// Bits that each base around that of a band would take, and the integers by symbol.
struct Seen {
    counts: Box<[u64; TABLES * SYMBOLS]>,
    /// The integers of each kept sample, in coded order, and the offsets of its tiles.
    samples: Vec<(Vec<i16>, Vec<i8>)>,
    bits: f64,
}

impl Rounds<'_> {
    fn run(&self, mut tables: TransformTables) -> Result<TransformTables> {
        let (energy, peak) = self.energy(&tables)?;
        let present = energy.iter().filter(|(_, count)| *count > 0).map(|(sum, count)| sum / *count as f64);
        let least = present.clone().fold(1e-20, f64::max) * LEAST_ENERGY;
        let (sum, count) = present.fold((0.0, 0), |(sum, count), energy| (sum + energy.max(least).ln(), count + 1));
        let middle = (sum / f64::from(count)).exp();
        // Without any variance all integers are 0 at any step.
        let least_step = (f64::from(peak) / LARGEST_STEPS).max(1e-10);
        tables.step = (middle * 3.4 * (-2.0 * self.rate).exp2()).sqrt().max(least_step) as f32;
        for (base, (sum, count)) in tables.base.iter_mut().zip(&energy) {
            let deviation = (sum / (*count).max(1) as f64).sqrt();
            let t = ((deviation / f64::from(tables.step) / 2.0 / DEVIATION + 1e-9).log2() * PERIOD as f64)
                .round_ties_even();
            *base = t.clamp(0.0, MOST_T as f64) as u8;
        }
        for round in 0..ROUNDS {
            let transform = Transform::new(tables.clone())?;
            let seen = self.quantize(&transform, round > 0)?;
            tables.frequency = frequencies(&seen.counts)?;
            tables.base = self.best_bases(&transform, &tables, &seen)?;
            if round > 0 {
                tables.step = (f64::from(tables.step) * (seen.bits - self.rate).exp2()).max(least_step) as f32;
            }
        }
        Ok(tables)
    }

    /// The sum of squared coefficients of each band and their number, and the largest coefficient.
    fn energy(&self, tables: &TransformTables) -> Result<(Vec<(f64, u64)>, f32)> {
        let transform = Transform::new(tables.clone())?;
        let (mut energy, mut peak) = (filled((0.0, 0), tables.base.len())?, 0f32);
        self.each_shape(&transform, |_, plan, forward, samples| {
            let mut y = filled(0.0, plan.elements)?;
            let bands = plan.bands(tables.base.len())?;
            for sample in samples {
                peak = peak.max(checked(forward.run::<F32>(self.isa, &sample.values, &mut y))?);
                for (band, y) in bands.iter().zip(&y) {
                    let (sum, count) = &mut energy[*band as usize];
                    *sum += f64::from(*y) * f64::from(*y);
                    *count += 1;
                }
            }
            Ok(())
        })?;
        Ok((energy, peak))
    }

    /// Calls `work` for each run of samples of one shape.
    fn each_shape(
        &self,
        transform: &Transform,
        mut work: impl FnMut(usize, &super::order::Plan, &mut Forward<'_>, &[Kept]) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        for samples in self.kept.chunk_by(|a, b| a.shape == b.shape) {
            let plan = &*transform.plan(samples[0].shape.0, samples[0].shape.1)?;
            work(first, plan, &mut Forward::new(transform, plan)?, samples)?;
            first += samples.len();
        }
        Ok(())
    }

    /// Quantizes all samples. In the first round, without costs of bits and offsets.
    fn quantize(&self, transform: &Transform, has_costs: bool) -> Result<Seen> {
        match self.isa.lanes() {
            LANES => self.quantize_lanes::<LANES>(transform, has_costs),
            _ => self.quantize_lanes::<8>(transform, has_costs),
        }
    }

    fn quantize_lanes<const L: usize>(&self, transform: &Transform, has_costs: bool) -> Result<Seen> {
        let mut rates = Rates::new(&transform.tables.frequency)?;
        rates.set_lambda(if has_costs { LAMBDA } else { 0.0 })?;
        let mut seen =
            Seen { counts: Box::new([0; TABLES * SYMBOLS]), samples: with_room(self.kept.len())?, bits: 0.0 };
        let (mut bits, mut elements) = (0u64, 0u64);
        self.each_shape(transform, |_, plan, forward, samples| {
            let mut attempt = Attempt::<L>::new(transform, plan, &rates, samples.len())?;
            attempt.has_offsets = has_costs;
            let mut y = filled(0.0, plan.elements)?;
            for group in samples.chunks(L) {
                for (lane, sample) in group.iter().enumerate() {
                    checked(forward.run::<F32>(self.isa, &sample.values, &mut y))?;
                    let out = &mut attempt.lanes[lane].y;
                    self.isa.run(Divide { y: &y, step: transform.tables.step, out });
                }
                attempt.quantize(self.isa, group.len());
                for lane in &attempt.lanes[..group.len()] {
                    let mut integers = with_room(plan.elements)?;
                    for (level, t) in lane.levels.iter().zip(&lane.t) {
                        let k = level >> 1;
                        let (table, raw) = LEVELS[usize::from(*t)];
                        let symbol = k >> raw;
                        let index = if symbol.abs() <= LIMIT { symbol + ZERO } else { 0 };
                        seen.counts[usize::from(table) * SYMBOLS + index as usize] += 1;
                        bits += u64::from(rates.rate(usize::from(*t), k));
                        integers.push(k as i16);
                    }
                    elements += integers.len() as u64;
                    seen.samples.push((integers, lane.offsets.clone()));
                }
            }
            Ok(())
        })?;
        seen.bits = bits as f64 / 64.0 / elements as f64;
        Ok(seen)
    }

    /// The base of each band that takes the fewest bits, given the offsets.
    fn best_bases(&self, transform: &Transform, tables: &TransformTables, seen: &Seen) -> Result<Vec<u8>> {
        let rates = Rates::new(&tables.frequency)?;
        let mut sums = filled([0u64; 2 * SPAN as usize + 1], tables.base.len())?;
        self.each_shape(transform, |first, plan, _, samples| {
            let bands = plan.bands(tables.base.len())?;
            for (integers, offsets) in &seen.samples[first..first + samples.len()] {
                let elements = integers.iter().zip(&bands).zip(plan.base.iter().zip(&plan.tile));
                for ((k, band), (base, tile)) in elements {
                    let offset = offsets[*tile as usize];
                    for (span, sum) in (-SPAN..=SPAN).zip(&mut sums[*band as usize]) {
                        let t = (i32::from(*base) + span + i32::from(offset)).clamp(0, MOST_T as i32);
                        *sum += u64::from(rates.rate(t as usize, i32::from(*k)));
                    }
                }
            }
            Ok(())
        })?;
        let mut out = with_room(tables.base.len())?;
        for (base, sums) in tables.base.iter().zip(&sums) {
            let mut best = 0;
            // The nearest first, so that a tie keeps the base.
            for span in (1..=SPAN).flat_map(|span| [-span, span]) {
                if sums[(span + SPAN) as usize] < sums[(best + SPAN) as usize] {
                    best = span;
                }
            }
            out.push((i32::from(*base) + best).clamp(0, MOST_T as i32) as u8);
        }
        Ok(out)
    }
}

/// The largest coefficient. Values are finite, so only an overflow can be a fault.
fn checked(peak: std::result::Result<f32, Fault>) -> Result<f32> {
    match peak {
        Ok(peak) if peak.is_finite() => Ok(peak),
        _ => Err(Error::argument("the values are too large to calibrate a transform")),
    }
}

//! The loops over elements. Each is plain Rust over one plane (one channel of one sample), compiled for every instruction
//! set by [`super::isa`], so all of them agree to the bit: f32 additions and multiplications are never fused.

use std::sync::Mutex;

use super::half::{BF16, F16, F32, F64, Float, Floats, FloatsMut};
use super::isa::{Isa, Kernel};
use super::scheme::{Affine, Codebook, Quantizer, Rounding, Scheme, top};
use crate::parallel::for_each_chunk;
use crate::{Error, Result};

/// What was seen while quantising, at no further pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// For each channel, the values below its low or above its high, in samples that are not bad.
    pub clipped: Vec<u64>,
    /// For each sample that holds a NaN or an infinity: its number and the first such channel. Its codes are all 0.
    pub bad: Vec<(usize, usize)>,
}

/// 1.5 * 2^23: added to a value in [0, 2^22), it leaves the value, rounded to nearest even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// A thread takes at least this many elements, so that handing them out costs nothing beside the work.
const CHUNK: usize = 1 << 16;

impl Quantizer {
    /// Writes the codes of `x` (N, C, plane) to `out`.
    ///
    /// A sample that holds a NaN or an infinity is reported in the counts; its codes are 0.
    pub fn quantize(&self, x: Floats<'_>, out: &mut [u8], plane: usize, threads: usize) -> Result<Counts> {
        self.quantize_with(Isa::best(), x, out, plane, threads)
    }

    pub(crate) fn quantize_with(
        &self,
        isa: Isa,
        x: Floats<'_>,
        out: &mut [u8],
        plane: usize,
        threads: usize,
    ) -> Result<Counts> {
        let sample = sample_len(x.len(), out.len(), self.channels(), plane)?;
        Ok(match x {
            Floats::F32(x) => self.quantize_as::<F32>(isa, x, out, sample, threads),
            Floats::F16(x) => self.quantize_as::<F16>(isa, x, out, sample, threads),
            Floats::BF16(x) => self.quantize_as::<BF16>(isa, x, out, sample, threads),
            Floats::F64(x) => self.quantize_as::<F64>(isa, x, out, sample, threads),
        })
    }

    fn quantize_as<F: Float>(&self, isa: Isa, x: &[F::Bits], out: &mut [u8], sample: usize, threads: usize) -> Counts {
        each_chunk(x, out, sample, self.channels(), threads, |x, out| {
            isa.run(Quantize::<F> { quantizer: self, x, out, sample })
        })
    }

    /// Writes the values of `codes` (N, C, plane) to `out`. A code of more than `bits` bits is an error.
    pub fn dequantize(&self, codes: &[u8], out: FloatsMut<'_>, plane: usize, threads: usize) -> Result<()> {
        self.dequantize_with(Isa::best(), codes, out, plane, threads)
    }

    pub(crate) fn dequantize_with(
        &self,
        isa: Isa,
        codes: &[u8],
        out: FloatsMut<'_>,
        plane: usize,
        threads: usize,
    ) -> Result<()> {
        let sample = sample_len(codes.len(), out.len(), self.channels(), plane)?;
        match out {
            FloatsMut::F32(out) => self.dequantize_as::<F32>(isa, codes, out, sample, threads),
            FloatsMut::F16(out) => self.dequantize_as::<F16>(isa, codes, out, sample, threads),
            FloatsMut::BF16(out) => self.dequantize_as::<BF16>(isa, codes, out, sample, threads),
        }
    }

    fn dequantize_as<F: Float>(
        &self,
        isa: Isa,
        codes: &[u8],
        out: &mut [F::Bits],
        sample: usize,
        threads: usize,
    ) -> Result<()> {
        let counts = each_chunk(codes, out, sample, self.channels(), threads, |codes, out| {
            isa.run(Dequantize::<F> { quantizer: self, codes, out, sample })
        });
        match counts.bad.first() {
            None => Ok(()),
            Some((sample, channel)) => Err(Error::argument(format!(
                "sample {sample}, channel {channel} holds a code of more than {} bits",
                self.bits()
            ))),
        }
    }

    /// Adds to `out` (C, 2^bits) how often each code occurs in each channel of `codes` (N, C, plane).
    pub fn histogram(&self, codes: &[u8], out: &mut [i64], plane: usize) -> Result<()> {
        let (channels, size) = (self.channels(), 1usize << self.bits());
        sample_len(codes.len(), codes.len(), channels, plane)?;
        if out.len() != channels * size {
            return Err(Error::argument(format!("a histogram here has {channels} x {size} counts, not {}", out.len())));
        }
        for (index, codes) in codes.chunks(plane.max(1)).enumerate() {
            let channel = index % channels;
            // Four tables, because equal codes follow each other and a counter is slow to be incremented twice in a row.
            let mut counts = [[0u32; 256]; 4];
            for codes in codes.chunks(1 << 30) {
                for four in codes.chunks(4) {
                    for (counts, &code) in counts.iter_mut().zip(four) {
                        counts[usize::from(code)] += 1;
                    }
                }
                for (code, total) in (0..256)
                    .map(|code| (code, counts.iter_mut().map(|c| i64::from(std::mem::take(&mut c[code]))).sum::<i64>()))
                {
                    match out[channel * size..(channel + 1) * size].get_mut(code) {
                        Some(count) => *count += total,
                        None if total == 0 => {}
                        None => {
                            let (sample, bits) = (index / channels, self.bits());
                            return Err(Error::argument(format!(
                                "sample {sample}, channel {channel} holds the code {code}, which is more than {bits} bits"
                            )));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Rounds every value of `x` (N, C, plane) to the type of `out`. A sample that holds a NaN, an infinity or a value that the
/// type cannot hold is reported as bad, and is all zeros.
pub fn convert(x: Floats<'_>, out: FloatsMut<'_>, channels: usize, plane: usize, threads: usize) -> Result<Counts> {
    let sample = sample_len(x.len(), out.len(), channels, plane)?;
    let shape = (sample, channels, threads);
    Ok(match out {
        FloatsMut::F32(out) => convert_to::<F32>(x, out, shape),
        FloatsMut::F16(out) => convert_to::<F16>(x, out, shape),
        FloatsMut::BF16(out) => convert_to::<BF16>(x, out, shape),
    })
}

fn convert_to<To: Float>(x: Floats<'_>, out: &mut [To::Bits], shape: (usize, usize, usize)) -> Counts {
    match x {
        Floats::F32(x) => convert_as::<F32, To>(x, out, shape),
        Floats::F16(x) => convert_as::<F16, To>(x, out, shape),
        Floats::BF16(x) => convert_as::<BF16, To>(x, out, shape),
        Floats::F64(x) => convert_as::<F64, To>(x, out, shape),
    }
}

fn convert_as<From: Float, To: Float>(
    x: &[From::Bits],
    out: &mut [To::Bits],
    (sample, channels, threads): (usize, usize, usize),
) -> Counts {
    let isa = Isa::best();
    each_chunk(x, out, sample, channels, threads, |x, out| {
        isa.run(Convert::<From, To> { x, out, sample, plane: sample / channels })
    })
}

/// The number of elements of a sample, after checking that the arrays hold whole samples of it.
fn sample_len(x: usize, out: usize, channels: usize, plane: usize) -> Result<usize> {
    let sample = channels.saturating_mul(plane);
    if x != out {
        return Err(Error::argument(format!("the output has {out} elements, the input {x}")));
    }
    if x != 0 && (sample == 0 || !x.is_multiple_of(sample)) {
        return Err(Error::argument(format!("{x} elements are not samples of {channels} channels of {plane}")));
    }
    Ok(sample.max(1))
}

/// Hands whole samples of `x` and `out` to `work`, on up to `threads` threads, and adds up what it counts. Sums of
/// integers and a sorted list: the same whatever the threads.
fn each_chunk<X: Sync, Y: Send>(
    x: &[X],
    out: &mut [Y],
    sample: usize,
    channels: usize,
    threads: usize,
    work: impl Fn(&[X], &mut [Y]) -> Counts + Sync,
) -> Counts {
    let samples = CHUNK.div_ceil(sample);
    let chunk = if threads > 1 { samples.saturating_mul(sample) } else { out.len() };
    let total = Mutex::new(Counts { clipped: vec![0; channels], bad: Vec::new() });
    for_each_chunk(out, chunk, threads, |index, out| {
        let start = index * chunk;
        let counts = work(&x[start..start + out.len()], out);
        // Nothing under this lock panics, so it cannot be poisoned.
        if let Ok(mut total) = total.lock() {
            for (total, count) in total.clipped.iter_mut().zip(counts.clipped) {
                *total += count;
            }
            total.bad.extend(counts.bad.into_iter().map(|(bad, channel)| (index * samples + bad, channel)));
        }
    });
    let mut total = total.into_inner().unwrap_or_default();
    total.bad.sort_unstable();
    total
}

struct Quantize<'a, F: Float> {
    quantizer: &'a Quantizer,
    x: &'a [F::Bits],
    out: &'a mut [u8],
    sample: usize,
}

impl<F: Float> Kernel for Quantize<'_, F> {
    type Output = Counts;

    #[inline(always)]
    fn run(self) -> Counts {
        let channels = self.quantizer.channels();
        let plane = self.sample / channels;
        let top = top(self.quantizer.bits());
        each_sample(self.x, self.out, (self.sample, plane, channels), 0, |channel, x, out| {
            match &self.quantizer.scheme() {
                Scheme::Affine(affine, Rounding::Nearest) => nearest::<F>(x, out, &affine[channel], top),
                Scheme::Affine(affine, Rounding::Truncate) => truncate::<F>(x, out, &affine[channel], top),
                Scheme::Codebook(books) => look_up::<F>(x, out, &books[channel], top as usize),
            }
        })
    }
}

struct Dequantize<'a, F: Float> {
    quantizer: &'a Quantizer,
    codes: &'a [u8],
    out: &'a mut [F::Bits],
    sample: usize,
}

impl<F: Float> Kernel for Dequantize<'_, F> {
    type Output = Counts;

    #[inline(always)]
    fn run(self) -> Counts {
        let channels = self.quantizer.channels();
        let plane = self.sample / channels;
        let top = top(self.quantizer.bits()) as u8;
        each_sample(self.codes, self.out, (self.sample, plane, channels), F::narrow(0.0), |channel, codes, out| {
            match &self.quantizer.scheme() {
                Scheme::Affine(affine, _) => {
                    let Affine { zero, step, .. } = affine[channel];
                    for (code, out) in codes.iter().zip(out) {
                        *out = F::narrow((f32::from(*code) + zero) * step);
                    }
                }
                Scheme::Codebook(books) => {
                    let levels = &books[channel].levels;
                    for (code, out) in codes.iter().zip(out) {
                        *out = F::narrow(levels[usize::from(*code)]);
                    }
                }
            }
            (0, top < u8::MAX && codes.iter().fold(0, |most, &code| most.max(code)) > top)
        })
    }
}

struct Convert<'a, From: Float, To: Float> {
    x: &'a [From::Bits],
    out: &'a mut [To::Bits],
    sample: usize,
    plane: usize,
}

impl<From: Float, To: Float> Kernel for Convert<'_, From, To> {
    type Output = Counts;

    #[inline(always)]
    fn run(self) -> Counts {
        let shape = (self.sample, self.plane, self.sample / self.plane.max(1));
        each_sample(self.x, self.out, shape, To::narrow(0.0), |_, x, out| {
            let mut bad = false;
            for (x, out) in x.iter().zip(out) {
                let narrow = To::narrow(From::widen(*x));
                *out = narrow;
                bad |= !To::widen(narrow).is_finite();
            }
            (0, bad)
        })
    }
}

/// Calls `work(channel, x, out) -> (clipped, bad)` on every plane, and zeroes the samples that are bad.
#[inline(always)]
fn each_sample<X, Y: Copy>(
    x: &[X],
    out: &mut [Y],
    (sample, plane, channels): (usize, usize, usize),
    nothing: Y,
    work: impl Fn(usize, &[X], &mut [Y]) -> (u64, bool),
) -> Counts {
    let mut counts = Counts { clipped: vec![0; channels], bad: Vec::new() };
    let mut clipped = vec![0; channels];
    for (number, (x, out)) in x.chunks_exact(sample).zip(out.chunks_exact_mut(sample)).enumerate() {
        let mut first_bad = None;
        for (channel, (x, out)) in x.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).enumerate() {
            let bad;
            (clipped[channel], bad) = work(channel, x, out);
            if bad && first_bad.is_none() {
                first_bad = Some(channel);
            }
        }
        match first_bad {
            Some(channel) => {
                out.fill(nothing);
                counts.bad.push((number, channel));
            }
            None => {
                for (total, count) in counts.clipped.iter_mut().zip(&clipped) {
                    *total += count;
                }
            }
        }
    }
    counts
}

/// `code = clamp(rint((x - low) * inverse_step))`.
#[inline(always)]
fn nearest<F: Float>(x: &[F::Bits], out: &mut [u8], affine: &Affine, top: f32) -> (u64, bool) {
    let Affine { low, high, inverse_step, .. } = *affine;
    count_plane::<F>(x, out, low, high, |x| {
        let code = (x - low) * inverse_step;
        // In this order a NaN (infinity times the 0 of a channel of one value) becomes 0.
        let code = if code > 0.0 { code } else { 0.0 };
        let code = if code < top { code } else { top };
        (code + ROUND).to_bits() as u8
    })
}

/// imagenet.int8's `(clip(z, low, high) / (high - low) + offset) * 255`, as `astype(uint8)` truncates it.
#[inline(always)]
fn truncate<F: Float>(x: &[F::Bits], out: &mut [u8], affine: &Affine, top: f32) -> (u64, bool) {
    let Affine { low, high, inverse_step, .. } = *affine;
    if inverse_step == 0.0 {
        return nearest::<F>(x, out, affine, top);
    }
    let span = high - low;
    let offset = -low / span;
    count_plane::<F>(x, out, low, high, |x| {
        let x = if x > low { x } else { low };
        let x = if x < high { x } else { high };
        let code = (x / span + offset) * top;
        let code = if code > 0.0 { code } else { 0.0 };
        let code = if code < top { code } else { top };
        code as i32 as u8
    })
}

/// The number of bounds below x, by halving.
#[inline(always)]
fn look_up<F: Float>(x: &[F::Bits], out: &mut [u8], book: &Codebook, top: usize) -> (u64, bool) {
    let (low, high) = (book.levels[0], book.levels[top]);
    count_plane::<F>(x, out, low, high, |x| {
        let mut code = 0usize;
        let mut half = top.div_ceil(2);
        while half > 0 {
            code += if x > book.bounds[(code + half - 1) & 255] { half } else { 0 };
            half /= 2;
        }
        code as u8
    })
}

/// Writes `encode(x)` for every x; counts what is outside [low, high], and says whether a value is NaN or infinite.
#[inline(always)]
fn count_plane<F: Float>(
    x: &[F::Bits],
    out: &mut [u8],
    low: f32,
    high: f32,
    encode: impl Fn(f32) -> u8,
) -> (u64, bool) {
    const EXPONENT: u32 = 0x7f80_0000;
    let (mut total, mut bad) = (0, 0);
    for (x, out) in x.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let mut clipped = 0u32;
        for (x, out) in x.iter().zip(out) {
            let x = F::widen(*x);
            *out = encode(x);
            clipped += u32::from(x < low) + u32::from(x > high);
            bad |= u32::from(x.to_bits() & EXPONENT == EXPONENT);
        }
        total += u64::from(clipped);
    }
    (total, bad != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::half::{BF16, F16, Float};
    use super::*;

    const SHAPE: (usize, usize, usize) = (3, 2, 131);

    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![8 => -12f32..12.0, 1 => any::<f32>()];
        proptest::collection::vec(value, SHAPE.0 * SHAPE.1 * SHAPE.2)
    }

    fn quantizers() -> impl Strategy<Value = Quantizer> {
        let range = (-11f32..11.0, 0f32..20.0).prop_map(|(low, span)| (low, low + span));
        let affine = (2u32..=8, range.clone(), range, any::<bool>()).prop_map(|(bits, a, b, truncate)| {
            let rounding = if truncate { Rounding::Truncate } else { Rounding::Nearest };
            Quantizer::affine(&[a.0, b.0], &[a.1, b.1], bits, rounding).unwrap()
        });
        let codebook = (2u32..=8).prop_flat_map(|bits| {
            proptest::collection::vec(-11f32..11.0, 2 << bits).prop_map(move |mut levels| {
                for channel in levels.chunks_mut(1 << bits) {
                    channel.sort_by(f32::total_cmp);
                }
                Quantizer::codebook(&levels, bits).unwrap()
            })
        });
        prop_oneof![2 => affine, 1 => codebook]
    }

    /// The definitions, one value at a time: each f32 operation done in f64 and rounded.
    fn expected(quantizer: &Quantizer, channel: usize, x: f32) -> (u8, u64) {
        let top = f64::from(top(quantizer.bits()));
        let round = |x: f64| f64::from(x as f32);
        match quantizer.scheme() {
            Scheme::Affine(channels, rounding) => {
                let Affine { low, high, inverse_step, .. } = channels[channel];
                let clipped = u64::from(x < low || x > high);
                if inverse_step == 0.0 {
                    return (0, clipped);
                }
                let code = match rounding {
                    Rounding::Nearest => {
                        round(round(f64::from(x) - f64::from(low)) * f64::from(inverse_step)).round_ties_even()
                    }
                    Rounding::Truncate => {
                        let span = round(f64::from(high) - f64::from(low));
                        let offset = round(-f64::from(low) / span);
                        round(round(round(f64::from(x.clamp(low, high)) / span) + offset) * top).trunc()
                    }
                };
                (code.clamp(0.0, top) as u8, clipped)
            }
            Scheme::Codebook(books) => {
                let levels = &books[channel].levels[..=top as usize];
                let inside = f64::from(x.clamp(levels[0], levels[levels.len() - 1]));
                let distance = |level: f32| (inside - f64::from(level)).abs();
                let nearest = levels.iter().map(|level| distance(*level)).fold(f64::INFINITY, f64::min);
                let code = levels.iter().position(|level| distance(*level) == nearest).unwrap();
                (code as u8, u64::from(x < levels[0] || x > levels[levels.len() - 1]))
            }
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_codes_of_the_definition(x in values(), quantizer in quantizers()) {
            let (samples, channels, plane) = SHAPE;
            let mut codes = vec![0; x.len()];
            let mut counts = Counts { clipped: vec![0; channels], bad: Vec::new() };
            for sample in 0..samples {
                let start = sample * channels * plane;
                let planes = || x[start..start + channels * plane].chunks(plane).enumerate();
                if let Some((channel, _)) = planes().find(|(_, x)| x.iter().any(|x| !x.is_finite())) {
                    counts.bad.push((sample, channel));
                    continue;
                }
                for (channel, x) in planes() {
                    for (i, &x) in x.iter().enumerate() {
                        let (code, clipped) = expected(&quantizer, channel, x);
                        codes[start + channel * plane + i] = code;
                        counts.clipped[channel] += clipped;
                    }
                }
            }
            let mut values = vec![0.0; x.len()];
            quantizer.dequantize_with(Isa::Baseline, &codes, FloatsMut::F32(&mut values), plane, 1).unwrap();
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let mut out = vec![1; x.len()];
                    let seen = quantizer.quantize_with(isa, Floats::F32(&x), &mut out, plane, threads).unwrap();
                    prop_assert_eq!(&out, &codes, "{:?}", isa);
                    prop_assert_eq!(&seen, &counts, "{:?}", isa);
                    let mut back = vec![1.0; x.len()];
                    quantizer.dequantize_with(isa, &out, FloatsMut::F32(&mut back), plane, threads).unwrap();
                    prop_assert_eq!(&back, &values, "{:?}", isa);
                }
            }
        }

        #[test]
        fn every_float_type_gives_the_codes_of_its_values_as_f32(x in values(), quantizer in quantizers()) {
            let plane = SHAPE.2;
            let codes = |x: Floats<'_>| {
                let mut out = vec![0; x.len()];
                let counts = quantizer.quantize(x, &mut out, plane, 1).unwrap();
                (out, counts)
            };
            let half: Vec<u16> = x.iter().map(|x| F16::narrow(*x)).collect();
            let wide: Vec<f32> = half.iter().map(|x| F16::widen(*x)).collect();
            prop_assert_eq!(codes(Floats::F16(&half)), codes(Floats::F32(&wide)));
            let half: Vec<u16> = x.iter().map(|x| BF16::narrow(*x)).collect();
            let wide: Vec<f32> = half.iter().map(|x| BF16::widen(*x)).collect();
            prop_assert_eq!(codes(Floats::BF16(&half)), codes(Floats::F32(&wide)));
            let double: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            prop_assert_eq!(codes(Floats::F64(&double)), codes(Floats::F32(&x)));
        }

        #[test]
        fn values_of_16_bits_are_those_of_32_bits_rounded(codes in proptest::collection::vec(any::<u8>(), 262), quantizer in quantizers()) {
            let codes: Vec<u8> = codes.into_iter().map(|code| code >> (8 - quantizer.bits())).collect();
            let mut wide = vec![0.0; codes.len()];
            quantizer.dequantize(&codes, FloatsMut::F32(&mut wide), SHAPE.2, 1).unwrap();
            for isa in Isa::available() {
                let mut half = vec![0; codes.len()];
                quantizer.dequantize_with(isa, &codes, FloatsMut::F16(&mut half), SHAPE.2, 1).unwrap();
                prop_assert_eq!(&half, &wide.iter().map(|x| F16::narrow(*x)).collect::<Vec<_>>());
                quantizer.dequantize_with(isa, &codes, FloatsMut::BF16(&mut half), SHAPE.2, 1).unwrap();
                prop_assert_eq!(&half, &wide.iter().map(|x| BF16::narrow(*x)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn lengths_that_do_not_agree_are_errors() {
        let quantizer = Quantizer::affine(&[0.0, 0.0], &[1.0, 1.0], 8, Rounding::Nearest).unwrap();
        let x = [0.5; 12];
        for (plane, len) in [(3, 11), (4, 12), (0, 12), (usize::MAX, 12)] {
            assert!(quantizer.quantize(Floats::F32(&x), &mut vec![0; len], plane, 1).is_err());
        }
        assert!(quantizer.quantize(Floats::F32(&[]), &mut [], 0, 1).is_ok());
    }
}

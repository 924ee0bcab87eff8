//! Quantizing and dequantizing whole arrays: argument checks, and the distribution of samples to threads.
//!
//! The loops are in `encode` and `decode`: plain Rust over one plane (one channel of one sample), compiled for every
//! instruction set by [`super::arch`]. All instruction sets give identical bits: f32 additions and multiplications are
//! never fused.

use std::sync::Mutex;

use super::arch::Isa;
use super::decode::Dequantize;
use super::encode::Quantize;
use super::floats::{BF16, F16, F32, F64, Float, Floats, FloatsMut};
use super::kernel::{CHUNK, Shape, ValueCounts};
use super::pack::packed_len;
use super::scheme::{Quantizer, Scheme};
use super::streams::{DequantizeStreams, QuantizeStreams};
use super::trellis::{self, DecodeTrellis, count_levels};
use super::viterbi::LANES;
use crate::memory::prefetch;
use crate::parallel::for_each_chunk;
use crate::{Error, Result};

/// Arrays of at least this many elements are larger than the caches.
const STREAM: usize = 8 << 20;

/// Planes shorter than this are not worked on in two streams: the cost per plane exceeds the saving (with planes of 64 and
/// 256 values the rate was two thirds).
const LONG: usize = 512;

/// Codes of several samples that are counted channel by channel: they stay in the L2 cache.
const COUNTED: usize = 1 << 18;

impl Quantizer {
    /// Quantizes `x` (N, C, plane) to `out`, one byte per code.
    ///
    /// A sample that contains a NaN or an infinity is reported in the counts; its codes are 0.
    pub fn quantize(&self, x: Floats<'_>, out: &mut [u8], plane: usize, threads: usize) -> Result<ValueCounts> {
        self.quantize_with(Isa::best(), x, out, plane, false, threads)
    }

    /// [`Quantizer::quantize`] followed by [`super::pack`], in one pass: `out` is (N, bytes).
    pub fn quantize_packed(&self, x: Floats<'_>, out: &mut [u8], plane: usize, threads: usize) -> Result<ValueCounts> {
        self.quantize_with(Isa::best(), x, out, plane, true, threads)
    }

    /// [`Quantizer::quantize`] or [`Quantizer::quantize_packed`] with a given instruction set.
    pub fn quantize_with(
        &self,
        isa: Isa,
        x: Floats<'_>,
        out: &mut [u8],
        plane: usize,
        packed: bool,
        threads: usize,
    ) -> Result<ValueCounts> {
        let shape = self.shape(x.len(), out.len(), plane, packed)?;
        match x {
            Floats::F32(x) => self.quantize_as::<F32>(isa, x, out, shape, threads),
            Floats::F16(x) => self.quantize_as::<F16>(isa, x, out, shape, threads),
            Floats::BF16(x) => self.quantize_as::<BF16>(isa, x, out, shape, threads),
            Floats::F64(x) => self.quantize_as::<F64>(isa, x, out, shape, threads),
        }
    }

    fn quantize_as<F: Float>(
        &self,
        isa: Isa,
        x: &[F::Bits],
        out: &mut [u8],
        shape: Shape,
        threads: usize,
    ) -> Result<ValueCounts> {
        let (lengths, channels, bits) = ((shape.elements, shape.bytes), shape.channels, self.bits());
        match self.scheme() {
            Scheme::Trellis(levels) => each_chunk(x, out, lengths, channels, LANES, threads, |x, out| {
                trellis::encode::<F>(isa, levels, bits, x, out, shape)
            }),
            _ => each_chunk(x, out, lengths, channels, 1, threads, |x, out| {
                let work = Quantize::<F> { quantizer: self, isa, x, out, shape };
                Ok(if shape.stream { isa.run(QuantizeStreams(work)) } else { isa.run(work) })
            }),
        }
    }

    /// Dequantizes `codes` (N, C, plane), one byte each, to `out`. A code of more than `bits` bits is an error.
    pub fn dequantize(&self, codes: &[u8], out: FloatsMut<'_>, plane: usize, threads: usize) -> Result<()> {
        self.dequantize_with(Isa::best(), codes, out, plane, false, threads)
    }

    /// [`super::unpack`] followed by [`Quantizer::dequantize`], in one pass: `packed` is (N, bytes).
    pub fn dequantize_packed(&self, packed: &[u8], out: FloatsMut<'_>, plane: usize, threads: usize) -> Result<()> {
        self.dequantize_with(Isa::best(), packed, out, plane, true, threads)
    }

    /// [`Quantizer::dequantize`] or [`Quantizer::dequantize_packed`] with a given instruction set.
    pub fn dequantize_with(
        &self,
        isa: Isa,
        codes: &[u8],
        out: FloatsMut<'_>,
        plane: usize,
        packed: bool,
        threads: usize,
    ) -> Result<()> {
        let shape = self.shape(out.len(), codes.len(), plane, packed)?;
        match out {
            FloatsMut::F32(out) => self.dequantize_as::<F32>(isa, codes, out, shape, threads),
            FloatsMut::F16(out) => self.dequantize_as::<F16>(isa, codes, out, shape, threads),
            FloatsMut::BF16(out) => self.dequantize_as::<BF16>(isa, codes, out, shape, threads),
        }
    }

    fn dequantize_as<F: Float>(
        &self,
        isa: Isa,
        codes: &[u8],
        out: &mut [F::Bits],
        shape: Shape,
        threads: usize,
    ) -> Result<()> {
        let (lengths, channels, bits) = ((shape.bytes, shape.elements), shape.channels, self.bits());
        let counts = each_chunk(codes, out, lengths, channels, 1, threads, |codes, out| {
            Ok(match self.scheme() {
                Scheme::Trellis(levels) => {
                    isa.run(DecodeTrellis::<F> { levels, bits, isa, codes, out, shape, rows: None })
                }
                _ => {
                    let work = Dequantize::<F> { quantizer: self, isa, codes, out, shape, coming: &[] };
                    if shape.stream { isa.run(DequantizeStreams(work)) } else { isa.run(work) }
                }
            })
        })?;
        self.check_codes(&counts)
    }

    /// Dequantizes packed samples (N, bytes) to the given rows of `out` (M, C, plane), on the calling thread. It is fastest
    /// with [`Quantizer::together`] samples or a multiple.
    pub fn dequantize_rows(&self, packed: &[u8], rows: &[usize], out: FloatsMut<'_>, plane: usize) -> Result<()> {
        let elements = self.channels().saturating_mul(plane);
        let room = out.len() / elements.max(1);
        if let Some(row) = rows.iter().find(|row| **row >= room) {
            return Err(Error::argument(format!("the output has {room} rows, and so no row {row}")));
        }
        let shape = self.shape(elements.saturating_mul(rows.len()), packed.len(), plane, true)?;
        let shape = Shape { stream: false, ..shape };
        match out {
            FloatsMut::F32(out) => self.dequantize_rows_as::<F32>(packed, rows, out, shape),
            FloatsMut::F16(out) => self.dequantize_rows_as::<F16>(packed, rows, out, shape),
            FloatsMut::BF16(out) => self.dequantize_rows_as::<BF16>(packed, rows, out, shape),
        }
    }

    fn dequantize_rows_as<F: Float>(
        &self,
        codes: &[u8],
        rows: &[usize],
        out: &mut [F::Bits],
        shape: Shape,
    ) -> Result<()> {
        let (isa, bits) = (Isa::best(), self.bits());
        if let Scheme::Trellis(levels) = self.scheme() {
            let rows = Some(rows);
            return self.check_codes(&isa.run(DecodeTrellis::<F> { levels, bits, isa, codes, out, shape, rows }));
        }
        for (codes, row) in codes.chunks_exact(shape.bytes).zip(rows) {
            let out = &mut out[row * shape.elements..][..shape.elements];
            self.check_codes(&isa.run(Dequantize::<F> { quantizer: self, isa, codes, out, shape, coming: &[] }))?;
        }
        Ok(())
    }

    /// Dequantizes one packed sample to `out` (C, plane), on the calling thread, and prefetches `coming`, which is read next.
    pub fn dequantize_sample(&self, packed: &[u8], out: FloatsMut<'_>, plane: usize, coming: &[u8]) -> Result<()> {
        let shape = self.shape(out.len(), packed.len(), plane, true)?;
        if shape.stream || matches!(self.scheme(), Scheme::Trellis(_)) {
            prefetch(coming);
            return self.dequantize_packed(packed, out, plane, 1);
        }
        match out {
            FloatsMut::F32(out) => self.dequantize_sample_as::<F32>(packed, out, shape, coming),
            FloatsMut::F16(out) => self.dequantize_sample_as::<F16>(packed, out, shape, coming),
            FloatsMut::BF16(out) => self.dequantize_sample_as::<BF16>(packed, out, shape, coming),
        }
    }

    fn dequantize_sample_as<F: Float>(
        &self,
        codes: &[u8],
        out: &mut [F::Bits],
        shape: Shape,
        coming: &[u8],
    ) -> Result<()> {
        let isa = Isa::best();
        self.check_codes(&isa.run(Dequantize::<F> { quantizer: self, isa, codes, out, shape, coming }))
    }

    /// Samples of `plane` elements per channel that are best given to [`Quantizer::dequantize_rows`] at once.
    pub fn together(&self, plane: usize) -> usize {
        match self.scheme() {
            Scheme::Trellis(levels) => trellis::together(levels.len().saturating_mul(plane)),
            _ => 1,
        }
    }

    fn check_codes(&self, counts: &ValueCounts) -> Result<()> {
        match counts.bad.first() {
            None => Ok(()),
            Some((sample, channel)) => Err(Error::argument(format!(
                "sample {sample}, channel {channel} has a code of more than {} bits",
                self.bits()
            ))),
        }
    }

    /// The shape of a sample, after checking that both arrays have the same number of whole samples.
    fn shape(&self, elements: usize, bytes: usize, plane: usize, packed: bool) -> Result<Shape> {
        let channels = self.channels();
        let sample = sample_len(elements, channels, plane)?;
        let packed = packed && self.bits() < 8;
        let shape = Shape {
            channels,
            plane,
            elements: sample,
            bytes: if packed { packed_len(sample, self.bits())? } else { sample },
            packed,
            stream: elements >= STREAM && plane >= LONG,
        };
        if bytes == elements / shape.elements.max(1) * shape.bytes {
            return Ok(shape);
        }
        Err(Error::argument(format!(
            "{elements} values do not match {bytes} bytes in samples of {} bytes",
            shape.bytes
        )))
    }

    /// Adds the number of occurrences of each code in each channel of `codes` (N, C, plane) to `out` (C, 2^bits); of each
    /// level, to `out` (C, 2^(bits + 1)), if this is a trellis.
    pub fn histogram(&self, codes: &[u8], out: &mut [i64], plane: usize) -> Result<()> {
        let (channels, size) = (self.channels(), self.levels());
        let sample = sample_len(codes.len(), channels, plane)?;
        if out.len() != channels * size {
            return Err(Error::argument(format!(
                "the histogram must have {channels} x {size} counts, not {}",
                out.len()
            )));
        }
        let has_wide = match self.scheme() {
            Scheme::Trellis(_) => {
                let has_wide = codes.iter().any(|code| u32::from(*code) >> self.bits() != 0);
                if !has_wide {
                    codes.chunks(sample).for_each(|codes| count_levels(codes, plane, out, size));
                }
                has_wide
            }
            _ => {
                let run = (COUNTED / sample).max(1).saturating_mul(sample);
                codes.chunks(run).any(|codes| count_codes(codes, sample, plane, out, size))
            }
        };
        match codes.iter().position(|code| has_wide && u32::from(*code) >> self.bits() != 0) {
            Some(wide) => Err(self.wide_code(wide / plane, codes[wide])),
            None => Ok(()),
        }
    }

    /// The error for a code of too many bits in a plane.
    fn wide_code(&self, plane: usize, code: u8) -> Error {
        let (sample, channel, bits) = (plane / self.channels(), plane % self.channels(), self.bits());
        Error::argument(format!(
            "sample {sample}, channel {channel} has the code {code}, which needs more than {bits} bits"
        ))
    }
}

/// Adds the counts of the codes of whole samples to `out`, rows of `size` counts. Returns true if a code is not below `size`.
fn count_codes(codes: &[u8], sample: usize, plane: usize, out: &mut [i64], size: usize) -> bool {
    let mut has_wide = false;
    for (channel, out) in out.chunks_mut(size).enumerate() {
        // Four tables: equal codes often follow each other, and incrementing one counter twice in a row is slow.
        let mut counts = [[0i64; 256]; 4];
        for codes in codes.chunks(sample) {
            let (fours, rest) = codes[channel * plane..(channel + 1) * plane].as_chunks::<4>();
            for four in fours {
                for (counts, &code) in counts.iter_mut().zip(four) {
                    counts[usize::from(code)] += 1;
                }
            }
            rest.iter().for_each(|&code| counts[0][usize::from(code)] += 1);
        }
        for code in 0..256 {
            let total = counts.iter().map(|counts| counts[code]).sum::<i64>();
            match out.get_mut(code) {
                Some(count) => *count += total,
                None => has_wide |= total != 0,
            }
        }
    }
    has_wide
}

/// Number of elements in a sample, after checking that `elements` is a whole number of samples.
pub(super) fn sample_len(elements: usize, channels: usize, plane: usize) -> Result<usize> {
    let sample = channels.saturating_mul(plane);
    if elements != 0 && (sample == 0 || !elements.is_multiple_of(sample)) {
        return Err(Error::argument(format!(
            "{elements} elements are not whole samples of {channels} channels x {plane}"
        )));
    }
    // An empty array may have samples of any size; 0 would be an invalid chunk size.
    Ok(if elements == 0 { channels } else { sample })
}

/// Calls `work` on runs of whole samples of `x` and `out`, which have the given lengths, on up to `threads` threads, and
/// adds up the counts. All runs but the last are multiples of `together` samples. Integer sums and a sorted list do not
/// depend on the number of threads.
pub(super) fn each_chunk<X: Sync, Y: Send>(
    x: &[X],
    out: &mut [Y],
    (x_len, out_len): (usize, usize),
    channels: usize,
    together: usize,
    threads: usize,
    work: impl Fn(&[X], &mut [Y]) -> Result<ValueCounts> + Sync,
) -> Result<ValueCounts> {
    if threads <= 1 || out.len() <= CHUNK {
        return work(x, out);
    }
    let samples = CHUNK.div_ceil(out_len).next_multiple_of(together);
    let total = Mutex::new(Ok(ValueCounts { clipped: vec![0; channels], bad: Vec::new() }));
    for_each_chunk(out, samples.saturating_mul(out_len), threads, |index, out| {
        let first = index * samples;
        let counts = work(&x[first * x_len..][..out.len() / out_len * x_len], out);
        // Nothing panics under this lock, so it cannot be poisoned.
        let Ok(mut total) = total.lock() else { return };
        match (&mut *total, counts) {
            (Ok(total), Ok(counts)) => total.add(first, counts),
            (total, Err(error)) => *total = Err(error),
            (Err(_), Ok(_)) => {}
        }
    });
    let mut total = total.into_inner().unwrap_or_else(|_| Ok(ValueCounts::default()))?;
    total.bad.sort_unstable();
    Ok(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::floats::{BF16, F16, Float};
    use super::super::kernel::{LINE, TURN};
    use super::super::scheme::{Affine, Rounding, Scheme, top};
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

    /// The definition, one value at a time: each f32 operation is done in f64 and rounded.
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
            Scheme::Trellis(_) => unreachable!("tested in `trellis::tests`"),
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_codes_of_the_definition(x in values(), quantizer in quantizers()) {
            let (samples, channels, plane) = SHAPE;
            let mut codes = vec![0; x.len()];
            let mut counts = ValueCounts { clipped: vec![0; channels], bad: Vec::new() };
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
            quantizer.dequantize_with(Isa::Baseline, &codes, FloatsMut::F32(&mut values), plane, false, 1).unwrap();
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let mut out = vec![1; x.len()];
                    let seen = quantizer.quantize_with(isa, Floats::F32(&x), &mut out, plane, false, threads).unwrap();
                    prop_assert_eq!(&out, &codes, "{:?}", isa);
                    prop_assert_eq!(&seen, &counts, "{:?}", isa);
                    let bytes = packed_len(channels * plane, quantizer.bits()).unwrap();
                    let (mut packed, mut expected) = (vec![1; samples * bytes], vec![2; samples * bytes]);
                    let seen = quantizer.quantize_with(isa, Floats::F32(&x), &mut packed, plane, true, threads).unwrap();
                    super::super::pack(&codes, &mut expected, channels * plane, quantizer.bits(), 1).unwrap();
                    prop_assert_eq!(&packed, &expected, "{:?}", isa);
                    prop_assert_eq!(&seen, &counts, "{:?}", isa);
                    let mut back = vec![1.0; x.len()];
                    quantizer.dequantize_with(isa, &packed, FloatsMut::F32(&mut back), plane, true, threads).unwrap();
                    prop_assert_eq!(&back, &values, "{:?}", isa);
                    let mut back = vec![1.0; x.len()];
                    quantizer.dequantize_with(isa, &out, FloatsMut::F32(&mut back), plane, false, threads).unwrap();
                    prop_assert_eq!(&back, &values, "{:?}", isa);
                }
            }
        }

        #[test]
        fn every_float_type_gives_the_codes_of_its_values_as_f32(x in values(), quantizer in quantizers()) {
            let plane = SHAPE.2;
            let codes = |isa: Isa, x: Floats<'_>| {
                let mut out = vec![0; x.len()];
                let counts = quantizer.quantize_with(isa, x, &mut out, plane, false, 1).unwrap();
                (out, counts)
            };
            let f16: Vec<u16> = x.iter().map(|x| F16::narrow(*x)).collect();
            let bf16: Vec<u16> = x.iter().map(|x| BF16::narrow(*x)).collect();
            let f64: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let wide_f16: Vec<f32> = f16.iter().map(|x| F16::widen(*x)).collect();
            let wide_bf16: Vec<f32> = bf16.iter().map(|x| BF16::widen(*x)).collect();
            for isa in Isa::available() {
                prop_assert_eq!(codes(isa, Floats::F16(&f16)), codes(Isa::Baseline, Floats::F32(&wide_f16)));
                prop_assert_eq!(codes(isa, Floats::BF16(&bf16)), codes(Isa::Baseline, Floats::F32(&wide_bf16)));
                prop_assert_eq!(codes(isa, Floats::F64(&f64)), codes(Isa::Baseline, Floats::F32(&x)));
            }
        }

        #[test]
        fn values_of_16_bits_are_rounded_values_of_32_bits(codes in proptest::collection::vec(any::<u8>(), 262), quantizer in quantizers()) {
            let codes: Vec<u8> = codes.into_iter().map(|code| code >> (8 - quantizer.bits())).collect();
            let mut wide = vec![0.0; codes.len()];
            quantizer.dequantize(&codes, FloatsMut::F32(&mut wide), SHAPE.2, 1).unwrap();
            for isa in Isa::available() {
                let mut half = vec![0; codes.len()];
                quantizer.dequantize_with(isa, &codes, FloatsMut::F16(&mut half), SHAPE.2, false, 1).unwrap();
                prop_assert_eq!(&half, &wide.iter().map(|x| F16::narrow(*x)).collect::<Vec<_>>());
                quantizer.dequantize_with(isa, &codes, FloatsMut::BF16(&mut half), SHAPE.2, false, 1).unwrap();
                prop_assert_eq!(&half, &wide.iter().map(|x| BF16::narrow(*x)).collect::<Vec<_>>());
            }
        }
    }

    /// Calls `work` on the middle of a buffer, from `offset` elements on, and asserts that it writes `expected` there only.
    fn check_written<T>(expected: &[T], offset: usize, around: T, work: impl FnOnce(&mut [T]))
    where
        T: Copy + PartialEq + std::fmt::Debug,
    {
        let mut buffer = vec![around; offset + expected.len() + LINE];
        work(&mut buffer[offset..][..expected.len()]);
        assert!(buffer[offset..][..expected.len()] == *expected);
        assert!(buffer[..offset].iter().chain(&buffer[offset + expected.len()..]).all(|value| *value == around));
    }

    /// Asserts that two streams of non-temporal stores, starting `offset` elements into a buffer, write what the baseline
    /// writes.
    fn check_streaming<F: Float>(quantizer: &Quantizer, x: &[F::Bits], plane: usize, offset: usize) {
        let (channels, elements) = (quantizer.channels(), quantizer.channels() * plane);
        for packed in [false, quantizer.bits() < 8] {
            let bytes = if packed { packed_len(elements, quantizer.bits()).unwrap() } else { elements };
            let shape = |stream| Shape { channels, plane, elements, bytes, packed, stream };
            let mut codes = vec![1; x.len() / elements * bytes];
            let counts = quantizer.quantize_as::<F>(Isa::Baseline, x, &mut codes, shape(false), 1).unwrap();
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                check_written(&codes, offset, 2, |out| {
                    assert_eq!(quantizer.quantize_as::<F>(isa, x, out, shape(true), threads).unwrap(), counts);
                });
            }
        }
    }

    /// The same for values of codes.
    fn check_streamed_values<F: Float>(quantizer: &Quantizer, codes: &[u8], plane: usize, offset: usize)
    where
        F::Bits: PartialEq + std::fmt::Debug,
    {
        let (channels, elements, bits) = (quantizer.channels(), quantizer.channels() * plane, quantizer.bits());
        let bytes = packed_len(elements, bits).unwrap();
        let mut packed = vec![0; codes.len() / elements * bytes];
        super::super::pack(codes, &mut packed, elements, bits, 1).unwrap();
        for (codes, bytes, packed) in [(codes, elements, false), (&packed, bytes, true)] {
            let shape = |stream| Shape { channels, plane, elements, bytes, packed: packed && bits < 8, stream };
            let mut values = vec![F::narrow(0.0); codes.len() / bytes * elements];
            quantizer.dequantize_as::<F>(Isa::Baseline, codes, &mut values, shape(false), 1).unwrap();
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                check_written(&values, offset, F::narrow(1e4), |out| {
                    quantizer.dequantize_as::<F>(isa, codes, out, shape(true), threads).unwrap();
                });
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn non_temporal_stores_write_the_same_codes(
            quantizer in quantizers(),
            plane in prop_oneof![1usize..200, TURN - 2..TURN + 3, 2000usize..9000, (1usize..50).prop_map(|lines| LINE * lines)],
            samples in 1usize..9,
            offset in 0..LINE,
            bad in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..3), 0..4),
            seed in any::<u32>(),
        ) {
            let value = |i: u32| (i ^ seed).wrapping_mul(0x9e37_79b1) as f32 / 1.8e8 - 12.0;
            let mut x: Vec<f32> = (0..(samples * 2 * plane) as u32).map(value).collect();
            for (index, kind) in bad {
                let len = x.len();
                x[index.index(len)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
            }
            check_streaming::<F32>(&quantizer, &x, plane, offset);
            let x: Vec<u16> = x.into_iter().map(F16::narrow).collect();
            check_streaming::<F16>(&quantizer, &x, plane, offset);
            check_streaming::<BF16>(&quantizer, &x, plane, offset);
            let codes: Vec<u8> = x.iter().map(|x| (x.wrapping_mul(0x9e37) >> 8) as u8 >> (8 - quantizer.bits())).collect();
            check_streamed_values::<F32>(&quantizer, &codes, plane, offset);
            check_streamed_values::<F16>(&quantizer, &codes, plane, offset);
            check_streamed_values::<BF16>(&quantizer, &codes, plane, offset);
        }
    }

    #[test]
    fn zeros_of_either_sign_and_values_far_outside_are_clipped_or_not_as_numbers_are() {
        let (plane, far) = (64, [f32::MAX, f32::MIN, 3e9, -3e9]);
        for (low, high) in
            [(0.0, 1.0), (-0.0, 1.0), (-1.0, 0.0), (-1.0, -0.0), (0.0, 0.0), (-1e38, 2e38), (-1e-40, 1e-40)]
        {
            let quantizer = Quantizer::affine(&[low], &[high], 8, Rounding::Nearest).unwrap();
            for special in [&[0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 0.5][..], &far] {
                let x: Vec<f32> = special.iter().cycle().take(3 * plane).copied().collect();
                let expected: Vec<u8> = x.iter().map(|x| expected(&quantizer, 0, *x).0).collect();
                let outside: u64 = x.iter().map(|x| u64::from(*x < low || *x > high)).sum();
                for (isa, stream) in Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
                    let mut out = vec![1; x.len() + LINE];
                    let start = out.as_ptr().align_offset(LINE);
                    let out = &mut out[start..][..x.len()];
                    let shape = Shape { channels: 1, plane, elements: plane, bytes: plane, packed: false, stream };
                    let counts = quantizer.quantize_as::<F32>(isa, &x, out, shape, 1).unwrap();
                    assert_eq!((&*out, counts.clipped[0]), (&expected[..], outside), "{isa:?} {low} to {high}");
                }
            }
        }
    }

    #[test]
    fn values_halfway_between_two_bfloat16_become_the_even_one() {
        // Codes 0 to 255 are the numbers from 256 on: every other one from 257 on is a tie.
        for (low, high, ties) in [(256.0, 511.0, true), (-511.0, -256.0, true), (-1.0, 1.1, false)] {
            let quantizer = Quantizer::affine(&[low], &[high], 8, Rounding::Nearest).unwrap();
            let Scheme::Affine(affine, _) = quantizer.scheme() else { unreachable!("an affine quantizer") };
            assert_eq!(affine[0].has_ties, ties);
            let codes: Vec<u8> = (0..=255).collect();
            let mut wide = vec![0.0; 256];
            quantizer.dequantize_with(Isa::Baseline, &codes, FloatsMut::F32(&mut wide), 256, false, 1).unwrap();
            let expected: Vec<u16> = wide.into_iter().map(BF16::narrow).collect();
            for isa in Isa::available() {
                let mut out = vec![0; 256];
                quantizer.dequantize_with(isa, &codes, FloatsMut::BF16(&mut out), 256, false, 1).unwrap();
                assert_eq!(out, expected, "{isa:?}");
            }
        }
    }

    #[test]
    fn a_wide_code_in_a_large_array_is_named() {
        let quantizer = Quantizer::affine(&[-1.0, -0.5], &[1.0, 0.75], 6, Rounding::Nearest).unwrap();
        let plane = LONG + 3;
        let samples = STREAM.div_ceil(2 * plane);
        let mut codes = vec![7; samples * 2 * plane];
        for (sample, channel) in [(samples - 2, 0), (samples / 2 + 1, 1)] {
            codes[(2 * sample + channel) * plane + plane - 1] = 64;
        }
        let error = quantizer.dequantize(&codes, FloatsMut::F32(&mut vec![0.0; codes.len()]), plane, 1).unwrap_err();
        assert_eq!(error.to_string(), format!("sample {}, channel 1 has a code of more than 6 bits", samples / 2 + 1));
    }

    #[test]
    fn a_large_array_gives_the_codes_of_its_parts() {
        let quantizer = Quantizer::affine(&[-1.0, -0.5], &[1.0, 0.75], 8, Rounding::Nearest).unwrap();
        for plane in [LONG - 1, LONG, 1027] {
            let sample = 2 * plane;
            let samples = STREAM.div_ceil(sample);
            let mut x: Vec<f32> = (0..samples * sample).map(|i| (i % 1999) as f32 / 900.0 - 1.0).collect();
            let bad = [(3, 1), (samples / 2, 0), (samples - 1, 1)];
            for (sample_number, channel) in bad {
                x[sample_number * sample + channel * plane + plane / 3] = f32::NAN;
            }
            let mut parts = vec![0; x.len()];
            let mut clipped = [0, 0];
            for (x, out) in x.chunks(1000 * sample).zip(parts.chunks_mut(1000 * sample)) {
                let counts = quantizer.quantize(Floats::F32(x), out, plane, 1).unwrap();
                clipped.iter_mut().zip(counts.clipped).for_each(|(total, count)| *total += count);
            }
            for threads in [1, 3] {
                // Start in the middle of a cache line.
                let mut whole = vec![0; x.len() + 5];
                let counts = quantizer.quantize(Floats::F32(&x), &mut whole[5..], plane, threads).unwrap();
                assert!(whole[5..] == parts, "planes of {plane}");
                assert_eq!((counts.clipped.as_slice(), counts.bad.as_slice()), (&clipped[..], &bad[..]));
            }
        }
    }

    #[test]
    fn mismatched_lengths_are_errors() {
        let quantizer = Quantizer::affine(&[0.0, 0.0], &[1.0, 1.0], 8, Rounding::Nearest).unwrap();
        let x = [0.5; 12];
        for (plane, len) in [(3, 11), (4, 12), (0, 12), (usize::MAX, 12)] {
            assert!(quantizer.quantize(Floats::F32(&x), &mut vec![0; len], plane, 1).is_err());
        }
        assert!(quantizer.quantize(Floats::F32(&[]), &mut [], 0, 1).is_ok());
    }
}

//! Casting arrays from one float type to another.

use super::arch::Isa;
use super::arrays::{each_chunk, sample_len};
use super::floats::{BF16, F16, F32, F64, Float, Floats, FloatsMut};
use super::kernel::{INFINITY, Kernel, Shape, ValueCounts};
use crate::{Error, Result};

/// Casts `x` (N, C, plane) to the type of `out`, rounding half to even. A sample that contains a NaN, an infinity or a
/// value outside the range of that type is reported as bad, and becomes all zeros.
pub fn convert(
    x: Floats<'_>,
    out: FloatsMut<'_>,
    channels: usize,
    plane: usize,
    threads: usize,
) -> Result<ValueCounts> {
    let sample = sample_len(x.len(), channels, plane)?;
    if x.len() != out.len() {
        return Err(Error::argument(format!("the output has {} elements, the input has {}", out.len(), x.len())));
    }
    let shape = Shape { channels, plane, elements: sample, bytes: sample, packed: false, stream: false };
    match out {
        FloatsMut::F32(out) => convert_to::<F32>(x, out, shape, threads),
        FloatsMut::F16(out) => convert_to::<F16>(x, out, shape, threads),
        FloatsMut::BF16(out) => convert_to::<BF16>(x, out, shape, threads),
    }
}

fn convert_to<To: Float>(x: Floats<'_>, out: &mut [To::Bits], shape: Shape, threads: usize) -> Result<ValueCounts> {
    match x {
        Floats::F32(x) => convert_as::<F32, To>(x, out, shape, threads),
        Floats::F16(x) => convert_as::<F16, To>(x, out, shape, threads),
        Floats::BF16(x) => convert_as::<BF16, To>(x, out, shape, threads),
        Floats::F64(x) => convert_as::<F64, To>(x, out, shape, threads),
    }
}

fn convert_as<From: Float, To: Float>(
    x: &[From::Bits],
    out: &mut [To::Bits],
    shape: Shape,
    threads: usize,
) -> Result<ValueCounts> {
    let isa = Isa::best();
    each_chunk(x, out, (shape.elements, shape.elements), shape.channels, 1, threads, |x, out| {
        Ok(isa.run(Convert::<From, To> { x, out, shape }))
    })
}

struct Convert<'a, From: Float, To: Float> {
    x: &'a [From::Bits],
    out: &'a mut [To::Bits],
    shape: Shape,
}

impl<From: Float, To: Float> Kernel for Convert<'_, From, To> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Self { x, out, shape } = self;
        let mut counts = ValueCounts { clipped: vec![0; shape.channels], bad: Vec::new() };
        for (number, (x, out)) in x.chunks_exact(shape.elements).zip(out.chunks_exact_mut(shape.elements)).enumerate() {
            let mut bad = None;
            for (channel, (x, out)) in x.chunks_exact(shape.plane).zip(out.chunks_exact_mut(shape.plane)).enumerate() {
                let mut largest = 0;
                for (x, out) in x.iter().zip(out) {
                    *out = To::narrow(From::widen(*x));
                    largest = largest.max(To::widen(*out).to_bits() & 0x7fff_ffff);
                }
                if largest >= INFINITY && bad.is_none() {
                    bad = Some((number, channel));
                }
            }
            if let Some(bad) = bad {
                out.fill(To::narrow(0.0));
                counts.bad.push(bad);
            }
        }
        counts
    }
}

//! Decoding: codes to values, plane by plane.

use super::arch::Isa;
use super::floats::{Float, FloatsMut};
use super::kernel::{FLOATS, Kernel, Shape, ValueCounts};
use super::pack::{largest, unpack_sample};
use super::scheme::{Affine, Codebook, Quantizer, Scheme};
use crate::memory::prefetch_few;

/// Codes that are decoded between prefetching a few lines and the next few: the processor waits if many are prefetched at once.
const PIECE: usize = 256;

/// The dequantize kernel. A sample with a code of too many bits is reported as bad.
pub(super) struct Dequantize<'a, F: Float> {
    pub quantizer: &'a Quantizer,
    pub isa: Isa,
    pub codes: &'a [u8],
    pub out: &'a mut [F::Bits],
    pub shape: Shape,
    /// Bytes to prefetch meanwhile.
    pub coming: &'a [u8],
}

impl<F: Float> Kernel for Dequantize<'_, F> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Self { quantizer, isa, codes, out, shape, mut coming } = self;
        let bits = quantizer.bits();
        let piece = match quantizer.scheme() {
            Scheme::Affine(..) if !coming.is_empty() => PIECE.min(shape.plane),
            _ => shape.plane, // for each piece, levels would be laid out again
        };
        let mut unpacked = vec![0; if shape.packed { shape.elements } else { 0 }];
        let mut counts = ValueCounts::default();
        let samples = out.len() / shape.elements;
        for turn in 0..samples {
            // Alternate between the two halves of the batch: a single write stream does not saturate the memory.
            let number = turn / 2 + turn % 2 * samples.div_ceil(2);
            let codes = &codes[number * shape.bytes..][..shape.bytes];
            let out = &mut out[number * shape.elements..][..shape.elements];
            let codes = if shape.packed {
                unpack_sample(isa, codes, &mut unpacked, bits);
                &unpacked[..]
            } else {
                if bits < 8 && largest(codes) >> bits != 0 {
                    let wide = codes.iter().position(|code| code >> bits != 0).unwrap_or_default();
                    counts.bad.push((number, wide / shape.plane));
                }
                codes
            };
            for (channel, (codes, out)) in
                codes.chunks_exact(shape.plane).zip(out.chunks_exact_mut(shape.plane)).enumerate()
            {
                for (codes, out) in codes.chunks(piece).zip(out.chunks_mut(piece)) {
                    let (now, later) = coming.split_at(coming.len().min(piece));
                    prefetch_few(now);
                    coming = later;
                    decode::<F>(isa, quantizer, channel, codes, out);
                }
            }
        }
        counts.bad.sort_unstable();
        counts
    }
}

/// Decodes codes of one channel.
#[inline(always)]
pub(super) fn decode<F: Float>(isa: Isa, quantizer: &Quantizer, channel: usize, codes: &[u8], out: &mut [F::Bits]) {
    match quantizer.scheme() {
        Scheme::Affine(affine, _) => decode_plane::<F, _>(isa, &Scale(&affine[channel]), codes, out),
        Scheme::Codebook(books) => decode_plane::<F, _>(isa, &LookUp(&books[channel], quantizer.bits()), codes, out),
        Scheme::Trellis(_) => {} // decoded by `DecodeTrellis`
    }
}

/// Maps codes of one channel to values.
trait Decode {
    fn decode(&self, isa: Isa, codes: &[u8], out: &mut [f32]);

    /// Decodes to any float type with vector instructions. Returns the number of elements done, possibly not all.
    #[inline(always)]
    fn decode_vectors(&self, _: Isa, _: &[u8], _: FloatsMut<'_>) -> usize {
        0
    }
}

#[inline(always)]
fn decode_plane<F: Float, D: Decode>(isa: Isa, scheme: &D, codes: &[u8], out: &mut [F::Bits]) {
    // No closure: it would not be compiled for the instruction set.
    let done = match F::floats_mut(out) {
        Some(out) => scheme.decode_vectors(isa, codes, out),
        None => 0,
    };
    let (codes, out) = (&codes[done..], &mut out[done..]);
    if codes.is_empty() {
        return; // before the buffer below is zeroed for nothing
    }
    if let Some(FloatsMut::F32(out)) = F::floats_mut(out) {
        return scheme.decode(isa, codes, out);
    }
    let mut buffer = [0.0; FLOATS];
    for (codes, out) in codes.chunks(FLOATS).zip(out.chunks_mut(FLOATS)) {
        let buffer = &mut buffer[..codes.len()];
        scheme.decode(isa, codes, buffer);
        isa.narrow::<F>(buffer, out);
    }
}

/// `x = (code + zero) * step`.
struct Scale<'a>(&'a Affine);

impl Decode for Scale<'_> {
    #[inline(always)]
    fn decode(&self, _: Isa, codes: &[u8], out: &mut [f32]) {
        let Affine { zero, step, .. } = *self.0;
        for (code, out) in codes.iter().zip(out) {
            *out = (f32::from(*code) + zero) * step;
        }
    }

    #[inline(always)]
    fn decode_vectors(&self, isa: Isa, codes: &[u8], out: FloatsMut<'_>) -> usize {
        isa.decode(self.0, codes, out)
    }
}

/// `x = levels[code]`.
struct LookUp<'a>(&'a Codebook, u32);

impl Decode for LookUp<'_> {
    #[inline(always)]
    fn decode(&self, isa: Isa, codes: &[u8], out: &mut [f32]) {
        let Self(book, bits) = *self;
        let done = isa.look_up(&book.levels, bits, codes, out);
        for (code, out) in codes[done..].iter().zip(&mut out[done..]) {
            *out = book.levels[usize::from(*code)];
        }
    }
}

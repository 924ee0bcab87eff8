//! Encoding: values to codes, plane by plane.

use super::arch::Isa;
use super::cells::Cells;
use super::floats::{F32, Float, Floats};
use super::kernel::{CHUNK, FLOATS, INFINITY, Kernel, Observed, ROUND, Shape, Tally, ValueCounts};
use super::pack::pack_sample;
use super::scheme::{Affine, Codebook, Quantizer, Rounding, Scheme, top};

/// The quantize kernel.
pub(super) struct Quantize<'a, F: Float> {
    pub quantizer: &'a Quantizer,
    pub isa: Isa,
    pub x: &'a [F::Bits],
    pub out: &'a mut [u8],
    pub shape: Shape,
}

impl<F: Float> Kernel for Quantize<'_, F> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Self { quantizer, isa, x, out, shape } = self;
        let mut unpacked = vec![0; if shape.packed { shape.elements } else { 0 }];
        let mut tally = Tally::new(shape.channels);
        for (number, (x, out)) in x.chunks_exact(shape.elements).zip(out.chunks_exact_mut(shape.bytes)).enumerate() {
            let codes = if shape.packed { &mut unpacked[..] } else { &mut *out };
            let planes = x.chunks_exact(shape.plane).zip(codes.chunks_exact_mut(shape.plane));
            for (channel, (x, codes)) in planes.enumerate() {
                for (x, codes) in x.chunks(CHUNK).zip(codes.chunks_mut(CHUNK)) {
                    tally.add(channel, encode::<F>(isa, quantizer, channel, x, codes));
                }
            }
            if tally.finish(number) {
                out.fill(0);
            } else if shape.packed {
                pack_sample(isa, &unpacked, out, quantizer.bits());
            }
        }
        tally.counts
    }
}

/// Encodes at most [`CHUNK`] values of one channel.
#[inline(always)]
pub(super) fn encode<F: Float>(
    isa: Isa,
    quantizer: &Quantizer,
    channel: usize,
    x: &[F::Bits],
    out: &mut [u8],
) -> Observed {
    let bits = quantizer.bits();
    match quantizer.scheme() {
        Scheme::Affine(affine, Rounding::Nearest) => Nearest(&affine[channel]).encode::<F>(isa, x, out),
        Scheme::Affine(affine, Rounding::Truncate) => Truncate(&affine[channel], top(bits)).encode::<F>(isa, x, out),
        Scheme::Codebook(books) => Search(&books[channel], bits).encode::<F>(isa, x, out),
        Scheme::Trellis(_) => Observed::NOTHING, // encoded by `EncodeTrellis`
    }
}

/// Maps values of one channel to codes.
trait Encode {
    /// Encodes at most [`CHUNK`] values.
    fn encode<F: Float>(&self, isa: Isa, x: &[F::Bits], out: &mut [u8]) -> Observed;
}

/// Clamps to [low, high]; NaN becomes low. Two selects, which compile to vector min and max.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Encodes value by value. Codes are computed from the clamped x, so the code itself needs no clamping.
#[inline(always)]
fn encode_each<F: Float>(x: &[F::Bits], out: &mut [u8], low: f32, high: f32, code: impl Code) -> Observed {
    let (mut outside, mut largest) = (0u32, 0u32);
    for (x, out) in x.iter().zip(out) {
        let x = F::widen(*x);
        let inside = clamp(x, low, high);
        *out = code.of(inside);
        outside += u32::from(inside != x);
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    Observed { outside: u64::from(outside), finite: largest < INFINITY }
}

/// Maps a value in range to its code. (A closure would not be compiled for the instruction set of its caller.)
trait Code {
    fn of(&self, inside: f32) -> u8;
}

/// `code = rint((x - low) * inverse_step)`. Clamping x first is equivalent to clamping the code.
struct Nearest<'a>(&'a Affine);

struct NearestCode {
    low: f32,
    inverse_step: f32,
}

impl Code for NearestCode {
    #[inline(always)]
    fn of(&self, inside: f32) -> u8 {
        ((inside - self.low) * self.inverse_step + ROUND).to_bits() as u8
    }
}

impl Encode for Nearest<'_> {
    #[inline(always)]
    fn encode<F: Float>(&self, isa: Isa, x: &[F::Bits], out: &mut [u8]) -> Observed {
        let Affine { low, high, inverse_step, .. } = *self.0;
        let (done, mut seen) = isa.encode(self.0, F::floats(x), out);
        seen.add(encode_each::<F>(&x[done..], &mut out[done..], low, high, NearestCode { low, inverse_step }));
        seen
    }
}

/// `(clip(z, low, high) / (high - low) + offset) * 255` of imagenet.int8, truncated as `astype(uint8)` does.
struct Truncate<'a>(&'a Affine, f32);

struct TruncateCode {
    span: f32,
    offset: f32,
    top: f32,
}

impl Code for TruncateCode {
    #[inline(always)]
    fn of(&self, inside: f32) -> u8 {
        let code = clamp((inside / self.span + self.offset) * self.top, 0.0, self.top);
        let rounded = (code + ROUND) - ROUND;
        let down = if rounded > code { 1.0 } else { 0.0 };
        (rounded - down + ROUND).to_bits() as u8
    }
}

impl Encode for Truncate<'_> {
    #[inline(always)]
    fn encode<F: Float>(&self, isa: Isa, x: &[F::Bits], out: &mut [u8]) -> Observed {
        let Self(affine, top) = *self;
        let Affine { low, high, inverse_step, .. } = *affine;
        if inverse_step == 0.0 {
            return Nearest(affine).encode::<F>(isa, x, out);
        }
        let span = high - low;
        encode_each::<F>(x, out, low, high, TruncateCode { span, offset: -low / span, top })
    }
}

/// Counts the bounds below x by binary search.
struct Search<'a>(&'a Codebook, u32);

#[derive(Clone, Copy)]
struct SearchCode<'a> {
    tree: &'a [f32; 256],
    bits: u32,
}

impl Code for SearchCode<'_> {
    #[inline(always)]
    fn of(&self, inside: f32) -> u8 {
        let mut node = 1;
        for _ in 0..self.bits {
            node = 2 * node + usize::from(inside > self.tree[node & 255]);
        }
        (node - (1 << self.bits)) as u8
    }
}

impl Encode for Search<'_> {
    #[inline(always)]
    fn encode<F: Float>(&self, isa: Isa, x: &[F::Bits], out: &mut [u8]) -> Observed {
        let Self(book, bits) = *self;
        if let Some(cells) = &book.cells {
            return encode_by_cells::<F>(isa, cells, x, out);
        }
        let (low, high) = (book.levels[0], book.levels[255]);
        let rest = SearchCode { tree: &book.tree, bits };
        let mut seen = Observed::NOTHING;
        let mut buffer = [0.0; FLOATS];
        for (x, out) in x.chunks(FLOATS).zip(out.chunks_mut(FLOATS)) {
            let wide = &mut buffer[..x.len()];
            isa.widen::<F>(x, wide);
            let done = isa.search(&book.tree, bits, wide, out);
            seen.add(encode_each::<F32>(&wide[done..], &mut out[done..], low, high, rest));
            seen.add(observe(&wide[..done], low, high));
        }
        seen
    }
}

/// Values whose cells are found before their codes.
const SHORT: usize = 128;

/// Encodes with the cells of a codebook.
#[inline(always)]
fn encode_by_cells<F: Float>(isa: Isa, cells: &Cells, x: &[F::Bits], out: &mut [u8]) -> Observed {
    let (mut outside, mut largest) = (0u32, 0u32);
    // Short, since they are filled with zeros first.
    let (mut buffer, mut numbers) = ([0.0; SHORT], [0; SHORT]);
    for (x, out) in x.chunks(SHORT).zip(out.chunks_mut(SHORT)) {
        let numbers = &mut numbers[..x.len()];
        let wide = match F::floats(x) {
            Floats::F32(x) => x,
            _ => {
                isa.widen::<F>(x, &mut buffer[..x.len()]);
                &buffer[..x.len()]
            }
        };
        for (x, number) in wide.iter().zip(numbers.iter_mut()) {
            let (inside, cell) = cells.of(*x);
            *number = cell;
            outside += u32::from(inside != *x);
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        cells.codes(wide, numbers, out);
    }
    Observed { outside: u64::from(outside), finite: largest < INFINITY }
}

/// The observations of [`encode_each`] without the codes.
#[inline(always)]
pub(super) fn observe(x: &[f32], low: f32, high: f32) -> Observed {
    let (mut outside, mut largest) = (0u32, 0u32);
    for x in x {
        outside += u32::from(clamp(*x, low, high) != *x);
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    Observed { outside: u64::from(outside), finite: largest < INFINITY }
}

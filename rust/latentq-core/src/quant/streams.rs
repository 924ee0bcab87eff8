//! Arrays larger than the caches. The two halves of a batch are worked on in turns, because one stream does not saturate the
//! memory (two were 1.2 times as fast on a Zen 4, and 1.3 times on a Zen 5), and results are written with non-temporal
//! stores, which saves reading the lines that are overwritten.

use super::arch::{Isa, fence};
use super::decode::{Dequantize, decode};
use super::encode::{Quantize, encode};
use super::floats::Float;
use super::kernel::{Kernel, LINE, Shape, TURN, Tally, ValueCounts};
use super::pack::{largest, pack_sample, unpack_sample};
use super::scheme::{Quantizer, Rounding, Scheme};

/// Codes that are packed together: they fill whole bytes.
const GROUP: usize = 8;

/// Does the work of `encode::Quantize`.
pub(super) struct QuantizeStreams<'a, F: Float>(pub Quantize<'a, F>);

impl<F: Float> Kernel for QuantizeStreams<'_, F> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Quantize { quantizer, isa, x, out, shape } = self.0;
        if let (false, Scheme::Affine(affine, Rounding::Nearest)) = (shape.packed, quantizer.scheme())
            && let Some(counts) = isa.quantize_past_caches::<F>(affine, x, out, shape.plane)
        {
            return counts;
        }
        let first = x.len() / shape.elements / 2;
        let (x, other_x) = x.split_at(first * shape.elements);
        let (half_out, other_out) = out.split_at_mut(first * shape.bytes);
        let mut half = Encoder::<F>::new(x, half_out, shape);
        let mut other = Encoder::<F>::new(other_x, other_out, shape);
        while half.step(isa, quantizer, shape) | other.step(isa, quantizer, shape) {}
        let (mut counts, others) = (half.finish(), other.finish());
        for (clipped, other) in counts.clipped.iter_mut().zip(others.clipped) {
            *clipped += other;
        }
        counts.bad.extend(others.bad.into_iter().map(|(number, channel)| (first + number, channel)));
        for (number, _) in &counts.bad {
            out[number * shape.bytes..][..shape.bytes].fill(0);
        }
        counts
    }
}

/// Does the work of `decode::Dequantize`.
pub(super) struct DequantizeStreams<'a, F: Float>(pub Dequantize<'a, F>);

impl<F: Float> Kernel for DequantizeStreams<'_, F> {
    type Output = ValueCounts;

    #[inline(always)]
    fn run(self) -> ValueCounts {
        let Dequantize { quantizer, isa, codes, out, shape } = self.0;
        let first = out.len() / shape.elements / 2;
        let (codes, other_codes) = codes.split_at(first * shape.bytes);
        let (half_out, other_out) = out.split_at_mut(first * shape.elements);
        let mut half = Decoder::<F>::new(codes, half_out, shape);
        let mut other = Decoder::<F>::new(other_codes, other_out, shape);
        while half.step(isa, quantizer, shape) | other.step(isa, quantizer, shape) {}
        let (mut bad, others) = (half.finish(), other.finish());
        bad.extend(others.into_iter().map(|(number, channel)| (first + number, channel)));
        ValueCounts { bad, ..ValueCounts::default() }
    }
}

/// The next elements of a half.
struct Place {
    samples: usize,
    sample: usize,
    channel: usize,
    /// Elements of the plane that are done.
    done: usize,
}

impl Place {
    fn new(samples: usize) -> Self {
        Self { samples, sample: 0, channel: 0, done: 0 }
    }

    /// How many elements of one plane are next: at most [`TURN`], and 0 at the end.
    #[inline(always)]
    fn next(&self, shape: Shape) -> usize {
        if self.sample == self.samples { 0 } else { TURN.min(shape.plane - self.done) }
    }

    /// The number of the sample that these elements end, if they do.
    #[inline(always)]
    fn pass(&mut self, count: usize, shape: Shape) -> Option<usize> {
        self.done += count;
        if self.done < shape.plane {
            return None;
        }
        (self.done, self.channel) = (0, self.channel + 1);
        if self.channel < shape.channels {
            return None;
        }
        (self.channel, self.sample) = (0, self.sample + 1);
        Some(self.sample - 1)
    }
}

/// The state of encoding one half.
struct Encoder<'a, F: Float> {
    x: &'a [F::Bits],
    place: Place,
    out: Past<'a, u8>,
    /// Codes that are not packed yet: the first `held`.
    codes: [u8; TURN + GROUP],
    held: usize,
    tally: Tally,
}

impl<'a, F: Float> Encoder<'a, F> {
    fn new(x: &'a [F::Bits], out: &'a mut [u8], shape: Shape) -> Self {
        let place = Place::new(x.len() / shape.elements);
        Self { x, place, out: Past::new(out), codes: [0; TURN + GROUP], held: 0, tally: Tally::new(shape.channels) }
    }

    /// Encodes up to [`TURN`] values of one plane. Returns false if none are left.
    #[inline(always)]
    fn step(&mut self, isa: Isa, quantizer: &Quantizer, shape: Shape) -> bool {
        let (count, channel) = (self.place.next(shape), self.place.channel);
        if count == 0 {
            return false;
        }
        let (x, rest) = self.x.split_at(count);
        self.x = rest;
        let end = self.place.pass(count, shape);
        if shape.packed {
            let filled = self.held + count;
            self.tally.add(channel, encode::<F>(isa, quantizer, channel, x, &mut self.codes[self.held..filled]));
            let bits = quantizer.bits() as usize;
            let now = if end.is_some() { filled } else { filled / GROUP * GROUP };
            let bytes = now / GROUP * bits + (now % GROUP * bits).div_ceil(8);
            pack_sample(isa, &self.codes[..now], self.out.room(bytes), quantizer.bits());
            self.out.put(isa, bytes);
            self.codes.copy_within(now..filled, 0);
            self.held = filled - now;
        } else {
            self.tally.add(channel, encode::<F>(isa, quantizer, channel, x, self.out.room(count)));
            self.out.put(isa, count);
        }
        if let Some(number) = end {
            self.tally.finish(number);
        }
        true
    }

    fn finish(self) -> ValueCounts {
        self.out.finish();
        self.tally.counts
    }
}

/// The state of decoding one half.
struct Decoder<'a, F: Float> {
    codes: &'a [u8],
    place: Place,
    out: Past<'a, F::Bits>,
    unpacked: [u8; TURN + GROUP],
    /// Samples with a code of too many bits, each with its first such channel.
    bad: Vec<(usize, usize)>,
}

impl<'a, F: Float> Decoder<'a, F> {
    fn new(codes: &'a [u8], out: &'a mut [F::Bits], shape: Shape) -> Self {
        let place = Place::new(out.len() / shape.elements);
        Self { codes, place, out: Past::new(out), unpacked: [0; TURN + GROUP], bad: Vec::new() }
    }

    /// Decodes up to [`TURN`] codes of one plane. Returns false if none are left.
    #[inline(always)]
    fn step(&mut self, isa: Isa, quantizer: &Quantizer, shape: Shape) -> bool {
        let count = self.place.next(shape);
        if count == 0 {
            return false;
        }
        let Place { sample, channel, done, .. } = self.place;
        let stored = &self.codes[sample * shape.bytes..][..shape.bytes];
        let (at, bits) = (channel * shape.plane + done, quantizer.bits());
        let codes = if shape.packed {
            // From the group on that the first code lies in.
            let (group, skipped) = (at / GROUP, at % GROUP);
            let unpacked = &mut self.unpacked[..skipped + count];
            let bytes = (unpacked.len() * bits as usize).div_ceil(8);
            unpack_sample(isa, &stored[group * bits as usize..][..bytes], unpacked, bits);
            &unpacked[skipped..]
        } else {
            let codes = &stored[at..][..count];
            if bits < 8 && largest(codes) >> bits != 0 && self.bad.last().is_none_or(|(last, _)| *last != sample) {
                self.bad.push((sample, channel));
            }
            codes
        };
        decode::<F>(isa, quantizer, channel, codes, self.out.room(count));
        self.out.put(isa, count);
        self.place.pass(count, shape);
        true
    }

    fn finish(self) -> Vec<(usize, usize)> {
        self.out.finish();
        self.bad
    }
}

/// An output at any alignment that is written front to back, in whole cache lines.
struct Past<'a, T> {
    /// What is not written yet. It starts at a cache line, after `head` elements that are written as usual.
    out: &'a mut [T],
    head: usize,
    /// Elements that are not written yet: the first `pending`.
    stage: [T; TURN + 2 * LINE],
    pending: usize,
}

impl<'a, T: Copy + Default> Past<'a, T> {
    fn new(out: &'a mut [T]) -> Self {
        let head = out.as_ptr().align_offset(LINE).min(out.len());
        Self { out, head, stage: [T::default(); TURN + 2 * LINE], pending: 0 }
    }

    /// Where the next elements belong, at most [`TURN`].
    #[inline(always)]
    fn room(&mut self, count: usize) -> &mut [T] {
        &mut self.stage[self.pending..][..count]
    }

    /// Takes the elements that were written to the room for them.
    #[inline(always)]
    fn put(&mut self, isa: Isa, count: usize) {
        self.pending += count;
        if self.head > 0 {
            let head = self.head.min(self.pending);
            let (now, later) = std::mem::take(&mut self.out).split_at_mut(head);
            now.copy_from_slice(&self.stage[..head]);
            self.stage.copy_within(head..self.pending, 0);
            (self.out, self.head, self.pending) = (later, self.head - head, self.pending - head);
        }
        let line = LINE / size_of::<T>();
        let whole = self.pending / line * line;
        if whole == 0 {
            return;
        }
        let (now, later) = std::mem::take(&mut self.out).split_at_mut(whole);
        isa.store_past_caches(&self.stage[..whole], now);
        // Fewer than these, but a fixed length is faster.
        let rest: [T; LINE] = *self.stage[whole..].first_chunk().expect("room for a line");
        self.stage[..LINE].copy_from_slice(&rest);
        (self.out, self.pending) = (later, self.pending - whole);
    }

    fn finish(self) {
        self.out.copy_from_slice(&self.stage[..self.pending]);
        // Before anything that follows, other threads must see what was stored.
        fence();
    }
}

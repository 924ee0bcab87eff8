//! Arrays larger than the caches. Parts of a batch are worked on in turns, because one stream does not saturate the memory (two are
//! 1.2 times as fast on a Zen 4, and 1.3 times on a Zen 5), and results are written with non-temporal stores, which saves
//! reading the lines that are overwritten.

use super::arch::{Isa, fence};
use super::decode::{Dequantize, decode};
use super::encode::{Quantize, encode};
use super::floats::Float;
use super::kernel::{Kernel, LINE, Shape, TURN, Tally, ValueCounts, parts};
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
        let samples = x.len() / shape.elements;
        let (mut left, mut left_out) = (x, &mut out[..]);
        let mut encoders = parts(samples).map(|range| {
            let (x, rest) = left.split_at(range.len() * shape.elements);
            let (out, rest_out) = std::mem::take(&mut left_out).split_at_mut(range.len() * shape.bytes);
            (left, left_out) = (rest, rest_out);
            Encoder::<F>::new(range.start, x, out, shape)
        });
        let mut more = true;
        while more {
            more = false;
            for part in &mut encoders {
                more |= part.step(isa, quantizer, shape);
            }
        }
        let mut counts = ValueCounts { clipped: vec![0; shape.channels], bad: Vec::new() };
        for part in encoders {
            counts.add(part.first, part.finish());
        }
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
        let Dequantize { quantizer, isa, codes, out, shape, .. } = self.0;
        let samples = out.len() / shape.elements;
        let (mut left, mut left_out) = (codes, out);
        let mut decoders = parts(samples).map(|range| {
            let (codes, rest) = left.split_at(range.len() * shape.bytes);
            let (out, rest_out) = std::mem::take(&mut left_out).split_at_mut(range.len() * shape.elements);
            (left, left_out) = (rest, rest_out);
            Decoder::<F>::new(range.start, codes, out, shape)
        });
        let mut more = true;
        while more {
            more = false;
            for part in &mut decoders {
                more |= part.step(isa, quantizer, shape);
            }
        }
        let mut counts = ValueCounts::default();
        for part in decoders {
            counts.add(part.first, ValueCounts { bad: part.finish(), ..ValueCounts::default() });
        }
        counts
    }
}

/// The next elements of a part.
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

/// The state of encoding one part.
struct Encoder<'a, F: Float> {
    /// The number of the first sample.
    first: usize,
    x: &'a [F::Bits],
    place: Place,
    out: Past<'a, u8>,
    /// Codes that are not packed yet: the first `held`.
    codes: [u8; TURN + GROUP],
    held: usize,
    tally: Tally,
}

impl<'a, F: Float> Encoder<'a, F> {
    fn new(first: usize, x: &'a [F::Bits], out: &'a mut [u8], shape: Shape) -> Self {
        let place = Place::new(x.len() / shape.elements);
        Self {
            first,
            x,
            place,
            out: Past::new(out),
            codes: [0; TURN + GROUP],
            held: 0,
            tally: Tally::new(shape.channels),
        }
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
            pack_sample(isa, &self.codes[..now], self.out.room(isa, bytes), quantizer.bits());
            self.out.put(bytes);
            self.codes.copy_within(now..filled, 0);
            self.held = filled - now;
        } else {
            let direct = match (quantizer.scheme(), self.out.aligned(count)) {
                (Scheme::Affine(affine, Rounding::Nearest), Some(out)) => {
                    isa.encode_past_caches(&affine[channel], F::floats(x), out)
                }
                _ => None,
            };
            if let Some(seen) = direct {
                self.tally.add(channel, seen);
                self.out.pass(count);
            } else {
                self.tally.add(channel, encode::<F>(isa, quantizer, channel, x, self.out.room(isa, count)));
                self.out.put(count);
            }
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

/// The state of decoding one part.
struct Decoder<'a, F: Float> {
    /// The number of the first sample.
    first: usize,
    codes: &'a [u8],
    place: Place,
    out: Past<'a, F::Bits>,
    unpacked: [u8; TURN + GROUP],
    /// Samples with a code of too many bits, each with its first such channel.
    bad: Vec<(usize, usize)>,
}

impl<'a, F: Float> Decoder<'a, F> {
    fn new(first: usize, codes: &'a [u8], out: &'a mut [F::Bits], shape: Shape) -> Self {
        let place = Place::new(out.len() / shape.elements);
        Self { first, codes, place, out: Past::new(out), unpacked: [0; TURN + GROUP], bad: Vec::new() }
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
        decode::<F>(isa, quantizer, channel, codes, self.out.room(isa, count));
        self.out.put(count);
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

    /// Where the next elements belong, at most [`TURN`]. What was put a turn ago is stored now: right after it was written, loads
    /// that span two of those writes would wait for them.
    #[inline(always)]
    fn room(&mut self, isa: Isa, count: usize) -> &mut [T] {
        if self.head > 0 {
            let head = self.head.min(self.pending);
            let (now, later) = std::mem::take(&mut self.out).split_at_mut(head);
            now.copy_from_slice(&self.stage[..head]);
            self.stage.copy_within(head..self.pending, 0);
            (self.out, self.head, self.pending) = (later, self.head - head, self.pending - head);
        }
        let line = LINE / size_of::<T>();
        let whole = self.pending / line * line;
        if whole > 0 {
            let (now, later) = std::mem::take(&mut self.out).split_at_mut(whole);
            isa.store_past_caches(&self.stage[..whole], now);
            // Fewer than these, but a fixed length is faster.
            let rest: [T; LINE] = *self.stage[whole..].first_chunk().expect("room for a line");
            self.stage[..LINE].copy_from_slice(&rest);
            (self.out, self.pending) = (later, self.pending - whole);
        }
        &mut self.stage[self.pending..][..count]
    }

    /// Where the next elements belong in the output itself, if that is aligned to 16 bytes and they are whole cache lines.
    #[inline(always)]
    fn aligned(&mut self, count: usize) -> Option<&mut [T]> {
        let is_aligned = self.pending == 0 && self.out.as_ptr().addr().is_multiple_of(16);
        (is_aligned && (count * size_of::<T>()).is_multiple_of(LINE)).then(|| &mut self.out[..count])
    }

    /// Takes the elements that were written to the output itself.
    #[inline(always)]
    fn pass(&mut self, count: usize) {
        self.out = &mut std::mem::take(&mut self.out)[count..];
        self.head = self.out.as_ptr().align_offset(LINE).min(self.out.len());
    }

    /// Takes the elements that were written to the room for them.
    #[inline(always)]
    fn put(&mut self, count: usize) {
        self.pending += count;
    }

    fn finish(self) {
        self.out.copy_from_slice(&self.stage[..self.pending]);
        // Before anything that follows, other threads must see what was stored.
        fence();
    }
}

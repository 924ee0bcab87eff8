//! Quantizing arrays larger than the caches with AVX-512, as `streams` does. Codes are shifted into whole cache lines within
//! a register: by way of a buffer it took up to 1.15 times as long.

use std::arch::x86_64::*;

use super::x86::encode_lines;
use crate::quant::floats::Float;
use crate::quant::kernel::{LINE, TURN, Tally, ValueCounts, parts};
use crate::quant::scheme::Affine;

/// Quantizes `x` (N, C, plane) to the nearest codes. Parts of the batch take turns, because one read stream does not saturate the
/// memory.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,popcnt")]
pub fn quantize<F: Float>(affine: &[Affine], x: &[F::Bits], out: &mut [u8], plane: usize) -> ValueCounts {
    let sample = affine.len() * plane;
    let (mut left, mut left_out) = (x, &mut out[..]);
    let mut halves = parts(x.len() / sample).map(|range| {
        let (x, rest) = left.split_at(range.len() * sample);
        let (out, rest_out) = std::mem::take(&mut left_out).split_at_mut(range.len() * sample);
        (left, left_out) = (rest, rest_out);
        Part::<F>::new(affine, range.start, x, out, plane)
    });
    let mut more = true;
    while more {
        more = false;
        for part in &mut halves {
            more |= part.step();
        }
    }
    let mut counts = ValueCounts { clipped: vec![0; affine.len()], bad: Vec::new() };
    for part in halves {
        counts.add(part.first, part.finish());
    }
    for (number, _) in &counts.bad {
        out[number * sample..][..sample].fill(0);
    }
    counts
}

/// The state of encoding one part of the batch.
struct Part<'a, F: Float> {
    /// The number of the first sample.
    first: usize,
    affine: &'a [Affine],
    plane: usize,
    /// Values that are not encoded yet.
    x: &'a [F::Bits],
    /// Number of these that belong to the current plane.
    left: usize,
    /// Sample and channel of the current plane.
    at: (usize, usize),
    lines: Lines<'a>,
    carry: Carry,
    tally: Tally,
}

impl<'a, F: Float> Part<'a, F> {
    #[target_feature(enable = "avx512f,avx512vbmi")]
    #[inline]
    fn new(affine: &'a [Affine], first: usize, x: &'a [F::Bits], out: &'a mut [u8], plane: usize) -> Self {
        let lines = Lines::new(out);
        let carry = Carry::new(&lines);
        Self { first, affine, plane, x, left: plane, at: (0, 0), lines, carry, tally: Tally::new(affine.len()) }
    }

    /// Encodes up to [`TURN`] values of one plane. Returns false if none are left.
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,popcnt")]
    #[inline]
    fn step(&mut self) -> bool {
        let turn = TURN.min(self.left);
        let Some((x, rest)) = self.x.split_at_checked(turn) else {
            return false;
        };
        let (number, channel) = self.at;
        let mut carry = self.carry;
        let seen = encode_lines(&self.affine[channel], F::floats(x), |codes, count| {
            carry.put(&mut self.lines, codes, count);
        });
        self.carry = carry;
        self.tally.add(channel, seen);
        self.x = rest;
        self.left -= turn;
        if self.left == 0 {
            self.left = self.plane;
            self.at = if channel + 1 < self.affine.len() {
                (number, channel + 1)
            } else {
                self.tally.finish(number);
                (number + 1, 0)
            };
        }
        true
    }

    #[target_feature(enable = "avx512f,avx512vbmi")]
    #[inline]
    fn finish(self) -> ValueCounts {
        let tail = self.lines.tail;
        tail.copy_from_slice(&bytes(self.carry.codes)[LINE - tail.len()..]);
        // Make the non-temporal stores visible to other threads before anything that follows.
        _mm_sfence();
        self.tally.counts
    }
}

/// One aligned cache line.
#[repr(align(64))]
struct Line([u8; LINE]);

/// An output for non-temporal stores, at any alignment.
struct Lines<'a> {
    /// The bytes before the first whole line, the whole lines, and the bytes after the last.
    head: &'a mut [u8],
    whole: &'a mut [Line],
    tail: &'a mut [u8],
}

impl<'a> Lines<'a> {
    #[allow(unsafe_code)]
    fn new(out: &'a mut [u8]) -> Self {
        // SAFETY: any 64 bytes are a valid line.
        let (head, whole, tail) = unsafe { out.align_to_mut::<Line>() };
        Self { head, whole, tail }
    }

    #[cold]
    fn put_head(&mut self, line: [u8; LINE]) {
        self.head.copy_from_slice(&line[LINE - self.head.len()..]);
    }
}

/// Codes that do not fill a line yet, and their position. `Copy`, so that it stays in registers.
#[derive(Clone, Copy)]
struct Carry {
    /// The last `pending` bytes are codes that are not written yet.
    codes: __m512i,
    pending: usize,
    /// Index of the whole line that they start, or [`HEAD`].
    line: usize,
}

/// The partial line before the first whole line.
const HEAD: usize = usize::MAX;

impl Carry {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(lines: &Lines) -> Self {
        // Treat the bytes before the output in its first line as pending.
        let pending = (LINE - lines.head.len()) % LINE;
        Self { codes: _mm512_setzero_si512(), pending, line: if pending == 0 { 0 } else { HEAD } }
    }

    /// Appends the first `count` bytes of `codes`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    #[allow(unsafe_code)]
    fn put(&mut self, lines: &mut Lines, codes: __m512i, count: usize) {
        if count == LINE || self.pending + count >= LINE {
            let line = self.after(LINE - self.pending, codes);
            match lines.whole.get_mut(self.line) {
                // SAFETY: a line is 64 aligned bytes.
                Some(to) => unsafe { _mm512_stream_si512(to.0.as_mut_ptr().cast(), line) },
                None => lines.put_head(bytes(line)),
            }
            self.line = self.line.wrapping_add(1);
        }
        if count == LINE {
            self.codes = codes;
        } else {
            self.codes = self.after(count, codes);
            self.pending = (self.pending + count) % LINE;
        }
    }

    /// 64 bytes of the concatenation of `self.codes` and `codes`, after the first `skipped`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    #[allow(unsafe_code)]
    fn after(&self, skipped: usize, codes: __m512i) -> __m512i {
        const POSITIONS: [u8; LINE] = {
            let mut positions = [0; LINE];
            let mut i = 0;
            while i < LINE {
                positions[i] = i as u8;
                i += 1;
            }
            positions
        };
        // SAFETY: an array of 64 bytes.
        let positions = unsafe { _mm512_loadu_si512(POSITIONS.as_ptr().cast()) };
        _mm512_permutex2var_epi8(self.codes, _mm512_add_epi8(positions, _mm512_set1_epi8(skipped as i8)), codes)
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code)]
fn bytes(vector: __m512i) -> [u8; LINE] {
    let mut bytes = [0; LINE];
    // SAFETY: an array of 64 bytes.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) };
    bytes
}

//! Types and constants that all kernels share.

use std::ops::Range;

/// A loop that is compiled once for each instruction set: a struct of its inputs, and `run` as its body.
pub trait Kernel {
    /// The result of `run`.
    type Output;
    /// Runs the loop. Implementations must be `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// The shape of a sample.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub channels: usize,
    pub plane: usize,
    /// `channels * plane`.
    pub elements: usize,
    /// Bytes of the sample's codes.
    pub bytes: usize,
    /// True if the codes are bit-packed.
    pub packed: bool,
    /// True if codes are written with non-temporal stores, which bypass the caches.
    pub stream: bool,
}

/// Clipped and non-finite values, counted in the same pass that quantizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueCounts {
    /// Values below low or above high, per channel, in samples that are not bad.
    pub clipped: Vec<u64>,
    /// Each sample that contains a NaN or an infinity: its index and the first such channel. Its codes are all 0.
    pub bad: Vec<(usize, usize)>,
}

impl ValueCounts {
    /// Adds the counts of samples from number `first` on.
    pub(super) fn add(&mut self, first: usize, other: ValueCounts) {
        for (total, count) in self.clipped.iter_mut().zip(other.clipped) {
            *total += count;
        }
        self.bad.extend(other.bad.into_iter().map(|(number, channel)| (first + number, channel)));
    }
}

/// Observations about a run of values, made while encoding it.
pub(super) struct Observed {
    /// Number of values below low or above high; a NaN counts.
    pub outside: u64,
    /// True if no value is a NaN or an infinity.
    pub finite: bool,
}

impl Observed {
    pub const NOTHING: Observed = Observed { outside: 0, finite: true };

    #[inline(always)]
    pub fn add(&mut self, other: Observed) {
        self.outside += other.outside;
        self.finite &= other.finite;
    }
}

/// Accumulates [`ValueCounts`] plane by plane. Clipped values of bad samples are not counted.
pub(super) struct Tally {
    pub counts: ValueCounts,
    /// Clipped values of the current sample, per channel.
    clipped: Vec<u64>,
    /// The first bad channel of the current sample.
    bad: Option<usize>,
}

impl Tally {
    pub fn new(channels: usize) -> Self {
        let counts = ValueCounts { clipped: vec![0; channels], bad: Vec::new() };
        Self { counts, clipped: vec![0; channels], bad: None }
    }

    #[inline(always)]
    pub fn add(&mut self, channel: usize, seen: Observed) {
        self.counts.clipped[channel] += seen.outside;
        self.clipped[channel] += seen.outside;
        if !seen.finite && self.bad.is_none() {
            self.bad = Some(channel);
        }
    }

    /// Ends sample `number`. Returns true if it is bad.
    #[inline(always)]
    pub fn finish(&mut self, number: usize) -> bool {
        let bad = self.bad.take();
        if let Some(channel) = bad {
            self.counts.bad.push((number, channel));
            for (total, count) in self.counts.clipped.iter_mut().zip(&self.clipped) {
                *total -= count;
            }
        }
        self.clipped.fill(0);
        bad.is_some()
    }
}

/// Codes that are decoded at a time, through a buffer that stays in the L1 cache.
pub(super) const BLOCK: usize = 1024;

/// Values that are widened or narrowed at a time, through a buffer. It is zeroed for each plane, so it is no larger than the
/// planes of small latents.
pub(super) const FLOATS: usize = 128;

/// Parts of a large batch that are worked on in turns.
const STREAMS: usize = 2;

/// The samples of each part of a large batch.
pub(super) fn parts(samples: usize) -> [Range<usize>; STREAMS] {
    std::array::from_fn(|part| samples * part / STREAMS..samples * (part + 1) / STREAMS)
}

/// Elements of one part of a large batch that are done before switching to the next part. A multiple of 8.
pub(super) const TURN: usize = 1024;

/// Bytes in a cache line.
pub(super) const LINE: usize = 64;

/// Minimum number of elements per task of a thread: enough to make the cost of a task negligible.
pub(super) const CHUNK: usize = 1 << 16;

/// 1.5 * 2^23. A value in [0, 2^22) plus this constant has the value, rounded half to even, in its low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// The bits of infinity. The bits of any finite value, sign cleared, are smaller.
pub(super) const INFINITY: u32 = 0x7f80_0000;

/// The states of the shift register: bit 0 is u of the element before, bit 1 of the one before that, bit 2 of the third.
pub(super) const STATES: usize = 8;

/// Levels that share a label are 4 apart, so a window of 4 consecutive levels has one of each.
pub(super) const LABELS: usize = 4;

/// The label of a level that u leads to from a state: bit 0 is the second bit of the state, bit 1 the parity of u and the
/// two others.
pub(super) const fn label(state: usize, u: usize) -> usize {
    2 * (u ^ (state & 1) ^ (state >> 2)) + (state >> 1 & 1)
}

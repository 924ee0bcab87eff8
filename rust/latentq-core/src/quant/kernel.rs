//! The vocabulary that kernels share: what they are given, what they report, and the sizes that they work in.

/// A piece of work whose body is compiled once for each instruction set.
pub trait Kernel {
    /// What it gives back.
    type Output;
    /// The body. Implementations must be `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// The shape of a sample.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub channels: usize,
    pub plane: usize,
    /// `channels * plane`.
    pub elements: usize,
    /// Of its codes.
    pub bytes: usize,
    /// Whether the codes have no gaps between them.
    pub packed: bool,
    /// Whether codes are written past the caches.
    pub stream: bool,
}

/// What was seen while quantising, at no further pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// For each channel, the values below its low or above its high, in samples that are not bad.
    pub clipped: Vec<u64>,
    /// For each sample that holds a NaN or an infinity: its number and the first such channel. Its codes are all 0.
    pub bad: Vec<(usize, usize)>,
}

/// What encoding tells of a run of values.
pub(super) struct Seen {
    /// Values below low or above high, NaN among them.
    pub outside: u64,
    /// Whether all of them are numbers.
    pub finite: bool,
}

impl Seen {
    pub const NOTHING: Seen = Seen { outside: 0, finite: true };

    #[inline(always)]
    pub fn add(&mut self, other: Seen) {
        self.outside += other.outside;
        self.finite &= other.finite;
    }
}

/// Adds up what is seen, plane by plane, leaving out the samples that turn out bad.
pub(super) struct Tally {
    pub counts: Counts,
    /// Of the sample at hand.
    clipped: Vec<u64>,
    bad: Option<usize>,
}

impl Tally {
    pub fn new(channels: usize) -> Self {
        let counts = Counts { clipped: vec![0; channels], bad: Vec::new() };
        Self { counts, clipped: vec![0; channels], bad: None }
    }

    #[inline(always)]
    pub fn see(&mut self, channel: usize, seen: Seen) {
        self.counts.clipped[channel] += seen.outside;
        self.clipped[channel] += seen.outside;
        if !seen.finite && self.bad.is_none() {
            self.bad = Some(channel);
        }
    }

    /// Ends the sample of this number; gives whether it is bad.
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

/// Values that are not f32 are widened, and narrowed, through a buffer of this many, which stays in the first cache.
pub(super) const BLOCK: usize = 1024;

/// The bytes of a cache line.
pub(super) const LINE: usize = 64;

/// A thread takes at least this many elements, so that handing them out costs nothing beside the work.
pub(super) const CHUNK: usize = 1 << 16;

/// 1.5 * 2^23: added to a value in [0, 2^22), it leaves the value, rounded to nearest even, in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// The bits of infinity: those of a finite value, its sign off, are less.
pub(super) const INFINITY: u32 = 0x7f80_0000;

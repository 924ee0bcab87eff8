//! The definition of a quantizer: bits per code, and an affine map, a codebook or the levels of a trellis for each channel.

use super::cells::Cells;
use super::trellis::TrellisLevels;
use crate::{Error, Result};

/// Rounding of values between two codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest code; ties to the even code.
    Nearest,
    /// Down, with the arithmetic of imagenet.int8's encoder. Only for reproducing old data.
    Truncate,
}

/// The map between values and codes of one channel, in f32:
/// `code = clamp(rint((x - low) * inverse_step))` and `x = (code + zero) * step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// The value of code 0.
    pub low: f32,
    /// The value of the last code.
    pub high: f32,
    /// `(high - low) / (2^bits - 1)`.
    pub step: f32,
    /// `low / step`.
    pub zero: f32,
    /// `1 / step`, or 0 for a channel with a single value.
    pub inverse_step: f32,
    /// True if a value of a code is halfway between two bfloat16 numbers.
    pub has_ties: bool,
}

impl Affine {
    fn new(low: f32, high: f32, bits: u32) -> Result<Self> {
        if !(low.is_finite() && high.is_finite() && low <= high) {
            return Err(Error::argument(format!("a range must be finite with low <= high, not {low} to {high}")));
        }
        let span = high - low;
        if !span.is_finite() {
            return Err(Error::argument(format!("the range from {low} to {high} is too wide for float32")));
        }
        let step = span / top(bits);
        let inverse_step = 1.0 / step;
        // A channel with a single value (or a range too small to divide in f32): always code 0, which decodes to `low`.
        let (step, zero, inverse_step) = match inverse_step.is_finite() {
            true => (step, low / step, inverse_step),
            false if low == 0.0 => (1.0, 0.0, 0.0),
            false => (low, 1.0, 0.0),
        };
        let has_ties = (0..=u8::MAX).any(|code| ((f32::from(code) + zero) * step).to_bits() & 0xffff == 0x8000);
        Ok(Self { low, high, step, zero, inverse_step, has_ties })
    }
}

/// The codebook of one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// The value of every code, ascending. Entries after the last code repeat it, so that any byte is a valid index.
    pub levels: [f32; 256],
    /// The bounds between codes as a binary search tree: node 1 is the root, and the search goes from node n to 2 n + 1 if
    /// x is above the bound, else to 2 n. A bound is the largest f32 not above the midpoint of its two levels, so x is
    /// above the bound exactly if the upper level is nearer; a value at the midpoint takes the lower code.
    pub tree: [f32; 256],
    /// A faster way than the tree, if there is one.
    pub cells: Option<Box<Cells>>,
}

impl Codebook {
    fn new(levels: &[f32]) -> Result<Self> {
        let ascending = levels.windows(2).all(|pair| pair[0] <= pair[1]);
        let (Some(&last), true) = (levels.last(), ascending && levels.iter().all(|level| level.is_finite())) else {
            return Err(Error::argument("the levels of a codebook must be finite and ascending"));
        };
        let mut book = Self { levels: [last; 256], tree: [f32::INFINITY; 256], cells: None };
        let mut bounds = Vec::new();
        book.levels[..levels.len()].copy_from_slice(levels);
        for (index, pair) in levels.windows(2).enumerate() {
            let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
            let rounded = middle as f32;
            let bound = if f64::from(rounded) > middle { rounded.next_down() } else { rounded };
            // The bound below code i is in the row of the tree that decides the lowest set bit of i.
            let code = index + 1;
            book.tree[(levels.len() + code) >> (code.trailing_zeros() + 1)] = bound;
            bounds.push(bound);
        }
        book.cells = Cells::new(levels[0], last, &bounds);
        Ok(book)
    }
}

/// The parameters of all channels.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheme {
    /// An affine map for each channel.
    Affine(Vec<Affine>, Rounding),
    /// A codebook for each channel.
    Codebook(Vec<Codebook>),
    /// The levels of each channel; a sample's codes depend on each other.
    Trellis(Vec<TrellisLevels>),
}

/// Maps floats to codes of `bits` bits and back, with parameters for each channel. Immutable.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantizer {
    bits: u32,
    scheme: Scheme,
}

impl Quantizer {
    /// Creates an affine quantizer. `low` and `high` have one value per channel.
    pub fn affine(low: &[f32], high: &[f32], bits: u32, rounding: Rounding) -> Result<Self> {
        check_bits(bits)?;
        if low.len() != high.len() || low.is_empty() {
            return Err(Error::argument(format!(
                "low and high must have one value per channel, not {} and {}",
                low.len(),
                high.len()
            )));
        }
        let channels = low.iter().zip(high).map(|(&low, &high)| Affine::new(low, high, bits)).collect::<Result<_>>()?;
        Ok(Self { bits, scheme: Scheme::Affine(channels, rounding) })
    }

    /// Creates a codebook quantizer. `levels` has `2^bits` ascending values per channel, channel by channel.
    pub fn codebook(levels: &[f32], bits: u32) -> Result<Self> {
        check_bits(bits)?;
        let size = 1usize << bits;
        if levels.is_empty() || !levels.len().is_multiple_of(size) {
            return Err(Error::argument(format!("a codebook of {bits} bits needs {size} levels per channel")));
        }
        let channels = levels.chunks(size).map(Codebook::new).collect::<Result<_>>()?;
        Ok(Self { bits, scheme: Scheme::Codebook(channels) })
    }

    /// Creates a trellis quantizer. `levels` has `2^(bits + 1)` ascending values per channel, channel by channel.
    pub fn trellis(levels: &[f32], bits: u32) -> Result<Self> {
        check_bits(bits)?;
        let size = 2usize << bits;
        if levels.is_empty() || !levels.len().is_multiple_of(size) {
            return Err(Error::argument(format!("a trellis of {bits} bits needs {size} levels per channel")));
        }
        let channels = levels.chunks(size).map(TrellisLevels::new).collect::<Result<_>>()?;
        Ok(Self { bits, scheme: Scheme::Trellis(channels) })
    }

    /// Bits per code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        match &self.scheme {
            Scheme::Affine(channels, _) => channels.len(),
            Scheme::Codebook(channels) => channels.len(),
            Scheme::Trellis(channels) => channels.len(),
        }
    }

    /// Number of values that codes of one channel stand for.
    pub fn levels(&self) -> usize {
        match &self.scheme {
            Scheme::Trellis(_) => 2 << self.bits,
            _ => 1 << self.bits,
        }
    }

    /// A quantizer for one channel only; `None` for a trellis, whose codes depend on other channels.
    pub(super) fn channel(&self, channel: usize) -> Option<Self> {
        let scheme = match &self.scheme {
            Scheme::Affine(channels, rounding) => Scheme::Affine(vec![channels[channel]], *rounding),
            Scheme::Codebook(channels) => Scheme::Codebook(vec![channels[channel].clone()]),
            Scheme::Trellis(_) => return None,
        };
        Some(Self { bits: self.bits, scheme })
    }

    /// The parameters of the channels.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }
}

/// The last code of `bits` bits, as f32.
pub(crate) fn top(bits: u32) -> f32 {
    ((1u32 << bits) - 1) as f32
}

pub(crate) fn check_bits(bits: u32) -> Result<()> {
    if (2..=8).contains(&bits) { Ok(()) } else { Err(Error::argument(format!("bits must be 2 to 8, not {bits}"))) }
}

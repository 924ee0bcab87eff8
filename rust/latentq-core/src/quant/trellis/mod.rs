//! Trellis-coded quantization: 2^(bits + 1) levels per channel for codes of `bits` bits.
//!
//! The lowest bits u of a sample's codes drive a shift register of three bits, the state. The state decides the lowest bit
//! of a level's number, so at any element only every other level can be had; the path through the states is chosen so
//! that the error of the whole sample is least (`encode`). `docs/codec.md` documents states, labels and arithmetic.

mod calibrate;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

use super::floats::{BF16, F16, Float};
use super::kernel::LABELS;
use crate::{Error, Result};

pub use calibrate::TrellisCalibrator;
pub(super) use decode::{DecodeTrellis, MEMORY, Runs, count_levels, together};
pub(super) use encode::{Nearest, encode};

/// Largest number of levels of a channel.
pub(super) const MOST: usize = 512;

/// The levels of one channel, and tables to find the nearest of each label.
#[derive(Clone, Debug, PartialEq)]
pub struct TrellisLevels {
    /// The value of every level, ascending. Entries after the last level repeat it, so that any number is a valid index.
    pub(super) levels: [f32; MOST],
    /// The levels of even number as a binary search tree, as in [`super::Codebook`]: the search of x ends at n if level 2 n
    /// is below x (or n is 0) and level 2 n + 2 is not.
    tree: [f32; 256],
    /// The bytes of the levels: `[byte][level]`, little-endian.
    pub(super) bytes: [[u8; MOST]; 4],
    /// The bytes of the levels as float16 and bfloat16.
    pub(super) bytes_f16: [[u8; MOST]; 2],
    pub(super) bytes_bf16: [[u8; MOST]; 2],
    /// Entry n + 3 is level n, with room around for windows of [`LABELS`] levels.
    pub(super) padded: [f32; MOST + 2 * LABELS - 1],
    /// Entry n + 3 is the bound between the levels n and n + 4: x above it is nearer to the upper one. It is minus infinity
    /// where there is no level n, and infinity where there is no level n + 4.
    pub(super) bounds: [f32; MOST + LABELS - 1],
}

impl TrellisLevels {
    /// Makes the tables of a channel from its `2^(bits + 1)` levels.
    pub(super) fn new(levels: &[f32]) -> Result<Self> {
        let ascending = levels.windows(2).all(|pair| pair[0] <= pair[1]);
        let (&[first, .., last], true) = (levels, ascending && levels.iter().all(|level| level.is_finite())) else {
            return Err(Error::argument("the levels of a trellis must be finite and ascending"));
        };
        let mut tables = Self {
            levels: [last; MOST],
            tree: [f32::INFINITY; 256],
            bytes: [[0; MOST]; 4],
            bytes_f16: [[0; MOST]; 2],
            bytes_bf16: [[0; MOST]; 2],
            padded: [last; MOST + 2 * LABELS - 1],
            bounds: [f32::INFINITY; MOST + LABELS - 1],
        };
        tables.levels[..levels.len()].copy_from_slice(levels);
        for (number, level) in tables.levels.iter().enumerate() {
            set_bytes(&mut tables.bytes, number, level.to_le_bytes());
            set_bytes(&mut tables.bytes_f16, number, F16::narrow(*level).to_le_bytes());
            set_bytes(&mut tables.bytes_bf16, number, BF16::narrow(*level).to_le_bytes());
        }
        tables.padded[..LABELS - 1].fill(first);
        tables.padded[LABELS - 1..][..levels.len()].copy_from_slice(levels);
        tables.bounds[..LABELS - 1].fill(f32::NEG_INFINITY);
        for (window, bound) in levels.windows(LABELS + 1).zip(&mut tables.bounds[LABELS - 1..]) {
            *bound = ((f64::from(window[0]) + f64::from(window[LABELS])) / 2.0) as f32;
        }
        let pairs = levels.len() / 2;
        for pair in 1..pairs {
            // The bound below a pair is in the row of the tree that decides the lowest set bit of its number.
            tables.tree[(pairs + pair) >> (pair.trailing_zeros() + 1)] = levels[2 * pair];
        }
        Ok(tables)
    }

    /// The lowest and the highest level.
    fn ends(&self) -> (f32, f32) {
        (self.levels[0], self.levels[MOST - 1])
    }
}

fn set_bytes<const B: usize>(tables: &mut [[u8; MOST]; B], number: usize, bytes: [u8; B]) {
    for (table, byte) in tables.iter_mut().zip(bytes) {
        table[number] = byte;
    }
}

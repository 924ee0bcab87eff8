//! The transform codec: a basis over channels, a DCT of 8 x 8 tiles, a trellis of integers, and an entropy coder.
//!
//! A sample is stored in any number of bytes: as many as a constant step needs, or exactly as many as a budget allows, for
//! which each sample has a step of its own. `docs/codec.md` documents the bytes, the order of coefficients and the arithmetic.
//! All floats are f32, and no operation is fused, so every instruction set gives the same bytes and values.

mod calibrate;
mod decode;
mod eigen;
mod encode;
mod order;
mod rans;
mod rates;
mod spatial;
mod tables;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::memory::filled;
use crate::{Error, Result};

pub use calibrate::TransformCalibrator;
pub use decode::NumbersMut;
pub(super) use decode::{BLOCK, first_parities, inputs, last_inputs, low_labels};
use encode::Buffers;
pub use encode::EncodedRows;
use order::Plan;
use rans::Symbol;
pub(super) use rans::{ENTRIES, Entry, SEGMENT, Stream};
use rates::Rates;
pub(super) use rates::{WINDOWS, Windows};
pub(super) use spatial::{EIGHT_LEN, EightTiles};
pub(super) use tables::DCT;
use tables::{MANTISSA, TILE};

/// Most channels of a sample.
pub const MOST_CHANNELS: usize = 128;

/// A sample of fewer elements is not worth a transform: the bytes before its words are too many.
pub const LEAST_ELEMENTS: usize = 256;

/// Tables of frequencies.
pub const TABLES: usize = 18;

/// Symbols of a table: an escape, and the integers from -63 to 63.
pub const SYMBOLS: usize = 128;

/// The largest integer that has a symbol.
const LIMIT: i32 = 63;

/// The symbol of 0.
const ZERO: i32 = LIMIT + 1;

/// The frequencies of a table add up to `2^PRECISION`.
const PRECISION: u32 = 12;

/// Each `t` stands for a standard deviation of `0.12 * 2^(t / PERIOD)`.
const PERIOD: usize = 3;

/// The largest `t`.
const MOST_T: usize = 50;

/// The step byte for which a sample has the step of the tables.
const SAME_STEP: u8 = 128;

/// States of the entropy coder of a sample, which take the elements in turn.
const STATES: usize = 4;

/// Bits that are stored in the initial states of the encoder, 16 in each.
const FREE_BITS: usize = 16 * STATES;

/// The table of each `t` and the number of low bits that are stored as they are.
const LEVELS: [(u8, u8); MOST_T + 1] = {
    let mut levels = [(0, 0); MOST_T + 1];
    let mut t = 0;
    while t < levels.len() {
        let raw = if t < TABLES { 0 } else { (t - TABLES) / PERIOD + 1 };
        levels[t] = ((t - PERIOD * raw) as u8, raw as u8);
        t += 1;
    }
    levels
};

/// The `t` of a band in a tile.
#[inline(always)]
fn level_of(base: u8, offset: i8) -> u8 {
    (i16::from(base) + i16::from(offset)).clamp(0, MOST_T as i16) as u8
}

/// The parameters of a transform, as they are stored with a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformTables {
    /// The step of a sample whose step byte is 128.
    pub step: f32,
    /// The mean of each channel (C).
    pub mean: Vec<f32>,
    /// From coefficients to channels (C, C): a sample is `basis @ coefficients + mean`.
    pub basis: Vec<f32>,
    /// From channels to coefficients (C, C).
    pub inverse: Vec<f32>,
    /// The `t` of each band (C, 8, 8), at most 50.
    pub base: Vec<u8>,
    /// The frequencies of symbols (18, 128); each row adds up to 4096.
    pub frequency: Vec<u16>,
}

impl TransformTables {
    fn check(&self) -> Result<()> {
        let channels = self.mean.len();
        if channels == 0 || channels > MOST_CHANNELS {
            return Err(Error::argument(format!("a transform has 1 to {MOST_CHANNELS} channels, not {channels}")));
        }
        let sizes = [
            ("basis", self.basis.len(), channels * channels),
            ("inverse", self.inverse.len(), channels * channels),
            ("base", self.base.len(), channels * TILE),
            ("frequency", self.frequency.len(), TABLES * SYMBOLS),
        ];
        if let Some((name, len, expected)) = sizes.into_iter().find(|(_, len, expected)| len != expected) {
            return Err(Error::argument(format!(
                "{name} of a transform of {channels} channels has {expected} numbers, not {len}"
            )));
        }
        for (name, values) in [("mean", &self.mean), ("basis", &self.basis), ("inverse", &self.inverse)] {
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::argument(format!("{name} of a transform has the value {value}: it must be finite")));
            }
        }
        if !(self.step.is_finite() && self.step >= 1e-30) {
            return Err(Error::argument(format!(
                "the step of a transform must be finite and positive, not {}",
                self.step
            )));
        }
        if let Some(base) = self.base.iter().find(|base| usize::from(**base) > MOST_T) {
            return Err(Error::argument(format!("base of a transform has the value {base}: at most {MOST_T}")));
        }
        for (table, row) in self.frequency.chunks_exact(SYMBOLS).enumerate() {
            let sum: u32 = row.iter().map(|frequency| u32::from(*frequency)).sum();
            if sum != 1 << PRECISION {
                return Err(Error::argument(format!(
                    "the frequencies of table {table} add up to {sum}, not to {}",
                    1 << PRECISION
                )));
            }
            if row[0] == 0 {
                return Err(Error::argument(format!("table {table} has no frequency for an escape: at least 1")));
            }
        }
        Ok(())
    }
}

/// A transform codec. Immutable.
#[derive(Debug)]
pub struct Transform {
    tables: TransformTables,
    /// `basis` and `inverse`, by column: the numbers that multiply one coefficient (or channel) are next to each other.
    basis: Vec<f32>,
    inverse: Vec<f32>,
    entries: Vec<Entry>,
    symbols: Vec<Symbol>,
    rates: Rates,
    /// The plans of the shapes that have been used.
    plans: Mutex<Vec<Arc<Plan>>>,
    /// Buffers that no thread uses now.
    buffers: Mutex<Vec<Buffers>>,
}

/// Plans that a transform keeps; a dataset has at most some tens of shapes.
const MOST_PLANS: usize = 256;

impl Transform {
    /// Creates a codec from its tables.
    ///
    /// # Errors
    /// An argument error if the tables have the wrong sizes or values outside their range; a memory error.
    pub fn new(tables: TransformTables) -> Result<Self> {
        tables.check()?;
        Ok(Self {
            basis: by_column(&tables.basis, tables.mean.len())?,
            inverse: by_column(&tables.inverse, tables.mean.len())?,
            entries: rans::entries(&tables.frequency)?,
            symbols: rans::symbols(&tables.frequency)?,
            rates: Rates::new(&tables.frequency)?,
            plans: Mutex::new(Vec::new()),
            buffers: Mutex::new(Vec::new()),
            tables,
        })
    }

    /// The parameters.
    pub fn tables(&self) -> &TransformTables {
        &self.tables
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.tables.mean.len()
    }

    /// The order of the coefficients of samples of `height` x `width`.
    fn plan(&self, height: usize, width: usize) -> Result<Arc<Plan>> {
        // Nothing panics under this lock, so it cannot be poisoned.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.iter().find(|plan| (plan.height, plan.width) == (height, width)) {
            return Ok(Arc::clone(plan));
        }
        elements_of(self.channels(), (height, width))?;
        let plan = Arc::new(Plan::new(&self.tables.base, height, width)?);
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        plans.try_reserve(1).map_err(|_| Error::memory(size_of::<Arc<Plan>>()))?;
        plans.push(Arc::clone(&plan));
        Ok(plan)
    }

    /// The step of a sample with this step byte.
    fn step(&self, byte: u8) -> f32 {
        let index = i32::from(byte) - i32::from(SAME_STEP);
        // Exact: the exponent is -4 to 3.
        let power = f32::from_bits(((127 + (index >> 5)) as u32) << 23);
        self.tables.step * power * MANTISSA[(index & 31) as usize]
    }
}

/// Elements of a sample, if that is a number that the codec can handle.
fn elements_of(channels: usize, (height, width): (usize, usize)) -> Result<usize> {
    let elements = channels.checked_mul(height).and_then(|size| size.checked_mul(width));
    elements.filter(|elements| (1..=i32::MAX as usize).contains(elements)).ok_or_else(|| {
        Error::argument(format!("a sample of {channels} x {height} x {width} is empty or too large for a transform"))
    })
}

/// Checks that samples of this shape are worth a transform.
///
/// # Errors
/// An argument error if they are too small or too large.
pub fn check_transform_shape(channels: usize, shape: (usize, usize)) -> Result<()> {
    if channels > MOST_CHANNELS {
        return Err(Error::argument(format!("a transform has 1 to {MOST_CHANNELS} channels, not {channels}")));
    }
    if elements_of(channels, shape)? < LEAST_ELEMENTS {
        return Err(Error::argument(format!(
            "a sample of {channels} x {} x {} has less than {LEAST_ELEMENTS} elements: use a trellis for it",
            shape.0, shape.1
        )));
    }
    Ok(())
}

/// A square matrix of `size` rows, transposed.
fn by_column(matrix: &[f32], size: usize) -> Result<Vec<f32>> {
    let mut out = filled(0.0, matrix.len())?;
    for (at, value) in matrix.iter().enumerate() {
        out[at % size * size + at / size] = *value;
    }
    Ok(out)
}

/// The reason for which a sample cannot be encoded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A value of this channel is a NaN or an infinity.
    NotFinite(usize),
    /// A value is too large for the step of the tables.
    TooLarge,
    /// No step makes the sample small enough for the budget.
    NoRoom,
    /// The bytes end before the sample does.
    Truncated,
    /// The entropy coder does not end in a state in which an encoder begins.
    Damaged,
    /// An integer has more than the 16 bits that were asked for.
    Wide,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite(channel) => write!(formatter, "channel {channel} has a NaN or an infinity"),
            Self::TooLarge => formatter.write_str("a value is too far from those of the calibration"),
            Self::NoRoom => formatter.write_str("the number of bytes is too small for it at any step"),
            Self::Truncated => formatter.write_str("its bytes end early"),
            Self::Damaged => formatter.write_str("its bytes are damaged"),
            Self::Wide => formatter.write_str("its integers have more than 16 bits"),
        }
    }
}

/// A sample that cannot be encoded or decoded: its index, and why.
pub type BadSample = (usize, Fault);

//! What coefficients cost, in bits, as the encoder reckons: multiples of 1/64.

use super::{LEVELS, LIMIT, MOST_T, PRECISION, SYMBOLS, TABLES, ZERO};
use crate::Result;
use crate::memory::with_room;
use crate::quant::arch::Isa;
use crate::quant::kernel::LABELS;

/// Bits of an escape beyond those of its symbol.
const ESCAPE: u16 = 16 * UNIT;

/// A bit.
const UNIT: u16 = 64;

/// What a bit costs, in squares of the step. It takes the place of centroids: values stay on the grid.
pub const LAMBDA: f32 = 0.3;

/// Offsets that an encoder tries for a tile: -16 to 16.
pub const OFFSETS: usize = 33;

/// The least of them.
pub const LEAST_OFFSET: i32 = -16;

/// Rates that are added at a time: the offsets, and as many more as fill vectors.
pub const ROW: usize = 48;

/// Rates of one integer by t, from `t = LEAST_OFFSET` on, clamped to 0 to 50.
const ROW_LEN: usize = MOST_T + ROW;

/// Rows whose sum fits in 16 bits.
pub const ROWS_TOGETHER: usize = 16;

/// Integers with a row of rates.
const ROWS: i32 = 511;

/// Up to this number of low bits, the costs of integers are in a table by t.
const WINDOW_RAW: u8 = 5;

/// Values of t with a table of costs.
pub const WINDOWS: usize = TABLES + 3 * WINDOW_RAW as usize;

/// Costs in a table beyond those of the last integers with a symbol.
const MARGIN: i32 = 16;

/// The rates of all integers.
#[derive(Debug)]
pub struct Rates {
    /// Of each symbol of each table (18, 128), without low bits.
    symbols: Vec<u16>,
    /// A row of zeros, then by integer from `-ROWS` on: rates by t.
    rows: Vec<u16>,
    /// By t: costs of the levels n, next to each other.
    costs: Vec<f32>,
    windows: Windows,
    /// What a bit costs.
    lambda: f32,
}

/// Where the costs of each t are. Those from [`WINDOWS`] on have none.
#[derive(Debug)]
pub struct Windows {
    /// The index of the cost of level 0.
    pub centers: [u16; 64],
    /// The costs of 12 levels from `low - 4` on are there for `low` from `-reach` to `reach - 4`; beyond, all are escapes.
    pub reaches: [u16; 64],
}

impl Rates {
    pub fn new(frequency: &[u16]) -> Result<Self> {
        let mut symbols: Vec<u16> = with_room(TABLES * SYMBOLS)?;
        for row in frequency.chunks_exact(SYMBOLS) {
            let rate = |frequency: u16| {
                let share = f64::from(frequency) / f64::from(1 << PRECISION);
                (-share.log2() * f64::from(UNIT)).round_ties_even() as u16
            };
            let escape = rate(row[0].max(1)) + ESCAPE;
            symbols.push(escape);
            symbols.extend(row[1..].iter().map(|&frequency| if frequency == 0 { escape } else { rate(frequency) }));
        }
        let mut out = Self {
            symbols,
            rows: Vec::new(),
            costs: Vec::new(),
            windows: Windows { centers: [0; 64], reaches: [0; 64] },
            lambda: LAMBDA,
        };
        out.rows = with_room((2 * ROWS + 2) as usize * ROW_LEN)?;
        out.rows.resize(ROW_LEN, 0);
        for k in -ROWS..=ROWS {
            for at in 0..ROW_LEN as i32 {
                let rate = out.rate((at + LEAST_OFFSET).clamp(0, MOST_T as i32) as usize, k);
                out.rows.push(rate as u16);
            }
        }
        out.set_lambda(LAMBDA)?;
        Ok(out)
    }

    /// Makes the tables of costs.
    pub fn set_lambda(&mut self, lambda: f32) -> Result<()> {
        let reach = |t: usize| ((2 * SYMBOLS as i32) >> 1) << LEVELS[t].1;
        let len = (0..WINDOWS).map(|t| 2 * (reach(t) + MARGIN) as usize).sum();
        let mut costs = with_room(len)?;
        for t in 0..WINDOWS {
            let reach = reach(t);
            // At most 53,280 costs, and 4,104.
            self.windows.centers[t] = (costs.len() + (reach + MARGIN) as usize) as u16;
            self.windows.reaches[t] = (reach + MARGIN / 2) as u16;
            costs.extend((-reach - MARGIN..reach + MARGIN).map(|level| lambda * self.bits(t, level >> 1)));
        }
        (self.costs, self.lambda) = (costs, lambda);
        Ok(())
    }

    /// The rate of an integer in a t, in units of 1/64 bit.
    #[inline(always)]
    pub fn rate(&self, t: usize, k: i32) -> u32 {
        let (table, raw) = LEVELS[t.min(MOST_T)];
        let symbol = k >> raw;
        let index = if symbol.abs() <= LIMIT { symbol + ZERO } else { 0 };
        u32::from(self.symbols[usize::from(table) * SYMBOLS + index as usize]) + u32::from(raw) * u32::from(UNIT)
    }

    /// The rate of an integer in a t, in bits. Exact.
    #[inline(always)]
    pub fn bits(&self, t: usize, k: i32) -> f32 {
        self.rate(t, k) as f32 / f32::from(UNIT)
    }

    /// The cost in bits of a level in a t.
    #[inline(always)]
    pub fn cost(&self, t: usize, level: i32) -> f32 {
        self.lambda * self.bits(t, level >> 1)
    }

    /// Where the rates of an integer of a band with this base are, for all offsets; negative if there are none.
    #[inline(always)]
    pub fn row(k: i32, base: u8) -> i32 {
        let at = k.wrapping_add(ROWS + 1).wrapping_mul(ROW_LEN as i32).wrapping_add(i32::from(base));
        if k.unsigned_abs() > ROWS as u32 { -1 } else { at }
    }

    /// Adds the rates of an integer without a row.
    #[cold]
    pub fn add_far(&self, k: i32, base: u8, sums: &mut [u32; ROW]) {
        for (offset, sum) in (LEAST_OFFSET..).zip(&mut sums[..OFFSETS]) {
            *sum += self.rate((i32::from(base) + offset).clamp(0, MOST_T as i32) as usize, k);
        }
    }

    /// Adds rates for all offsets, which are where `row` says. 0 has only zeros.
    #[inline(always)]
    pub fn add_rows(&self, isa: Isa, starts: &[i32; ROWS_TOGETHER], sums: &mut [u32; ROW]) {
        if isa.add_rows(&self.rows, starts, sums) {
            return;
        }
        for start in starts {
            for (sum, rate) in sums.iter_mut().zip(&self.rows[*start as usize..]) {
                *sum += u32::from(*rate);
            }
        }
    }

    /// The costs in bits of twelve levels from `low - 4` on, for a t below [`WINDOWS`]. `low` is clamped to where there are costs:
    /// beyond, all are those of an escape.
    #[inline(always)]
    pub fn window(&self, t: usize, low: i32) -> &[f32; 12] {
        let [center, reach] = [&self.windows.centers, &self.windows.reaches].map(|windows| i32::from(windows[t % 64]));
        let start = (center + low.clamp(-reach, reach - 4) - 4) as usize;
        // There are always twelve; the constant is never used.
        self.costs.get(start..).and_then(|costs| costs.first_chunk()).unwrap_or(&[0.0; 12])
    }

    /// Does [`super::encode::compare`] for sixteen elements. Returns false if nothing is done.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub fn compare<const L: usize>(
        &self,
        isa: Isa,
        t: &[u8; 16],
        y: &[f32; 16],
        low: &[i32; 16],
        lane: usize,
        costs: &mut [[[f32; L]; LABELS]; 16],
        choices: &mut [i32; 16],
    ) -> bool {
        isa.compare_sixteen(&self.costs, &self.windows, t, y, low, lane, costs, choices)
    }
}

//! The transforms of a tile: the DCT, and matrices over channels. Sums are in ascending order, and no operation is fused.

use super::order::Tile;
use super::tables::{DCT, SIDE, TILE, TRANSPOSED};
use crate::quant::arch::Isa;

/// A row of a tile.
type Row = [f32; SIDE];

/// Two rows, next to each other.
const PAIR: usize = 2 * SIDE;

/// Channels of a result that are computed together.
const TOGETHER: usize = 4;

#[inline(always)]
fn scaled<const N: usize>(values: &[f32; N], by: f32) -> [f32; N] {
    let mut out = [0.0; N];
    for i in 0..N {
        out[i] = by * values[i];
    }
    out
}

#[inline(always)]
fn add_scaled<const N: usize>(sum: &mut [f32; N], values: &[f32; N], by: f32) {
    for i in 0..N {
        sum[i] += by * values[i];
    }
}

/// `out[i] = sum over k of by[k * SIDE + i] * rows[k]`, for the first `outputs` rows.
#[inline(always)]
fn along_rows(rows: &[Row], by: &[Row; SIDE], inputs: usize, outputs: usize) -> [Row; SIDE] {
    let mut out = [[0.0; SIDE]; SIDE];
    for (i, out) in out.iter_mut().enumerate().take(outputs) {
        let mut sum = scaled(&rows[0], by[0][i]);
        for k in 1..inputs {
            add_scaled(&mut sum, &rows[k], by[k][i]);
        }
        *out = sum;
    }
    out
}

/// `out[i][j] = sum over k of rows[i][k] * by[k][j]`, for the first `outputs` rows.
#[inline(always)]
fn along_columns(rows: &[Row], by: &[Row; SIDE], inputs: usize, outputs: usize) -> [Row; SIDE] {
    let mut out = [[0.0; SIDE]; SIDE];
    for (out, row) in out.iter_mut().zip(rows).take(outputs) {
        let mut sum = scaled(&by[0], row[0]);
        for k in 1..inputs {
            add_scaled(&mut sum, &by[k], row[k]);
        }
        *out = sum;
    }
    out
}

#[inline(always)]
fn rows_of(values: &mut [f32; TILE]) -> &mut [Row] {
    values.as_chunks_mut().0
}

/// Coefficients to values, in place.
#[inline(always)]
fn inverse_dct(isa: Isa, values: &mut [f32; TILE], tile: Tile) {
    if (tile.height, tile.width) == (SIDE, SIDE) && isa.inverse_dct(values, &DCT[SIDE - 1]) {
        return;
    }
    let rows = rows_of(values);
    let columns = along_columns(rows, &DCT[tile.width - 1], tile.width, tile.height);
    rows.copy_from_slice(&along_rows(&columns, &DCT[tile.height - 1], tile.height, tile.height));
}

/// Values to coefficients, in place.
#[inline(always)]
fn forward_dct(isa: Isa, values: &mut [f32; TILE], tile: Tile) {
    if (tile.height, tile.width) == (SIDE, SIDE) && isa.forward_dct(values, &TRANSPOSED[SIDE - 1]) {
        return;
    }
    let rows = rows_of(values);
    let columns = along_rows(rows, &TRANSPOSED[tile.height - 1], tile.height, tile.height);
    rows.copy_from_slice(&along_columns(&columns, &TRANSPOSED[tile.width - 1], tile.width, tile.height));
}

/// What becomes of the results of [`mix`]. (A closure would not be compiled for the instruction set of its caller.)
trait Put {
    /// Takes the results of a row and the next for one channel. Implementations must be `#[inline(always)]`.
    fn put(&mut self, channel: usize, row: usize, sums: &[f32; PAIR]);
}

/// `out[c] = sum over k of matrix[c][k] * input[k]` for a square matrix that is stored by column. `input` has a tile for each
/// channel.
#[inline(always)]
fn mix(isa: Isa, matrix: &[f32], input: &[f32], rows: usize, mut out: impl Put) {
    let channels = input.len() / TILE;
    let mut first = 0;
    while rows == SIDE
        && first + TOGETHER <= channels
        && let Some(sums) = isa.mix_tile(matrix, input, first)
    {
        for (i, sums) in sums.iter().enumerate() {
            for (pair, sums) in sums.as_chunks().0.iter().enumerate() {
                out.put(first + i, 2 * pair, sums);
            }
        }
        first += TOGETHER;
    }
    for row in (0..rows).step_by(2) {
        let mut channel = first;
        while channel + TOGETHER <= channels {
            let sums = match isa.mix(matrix, input, row, channel) {
                Some(sums) => sums,
                None => mix_channels(matrix, input, row, channel),
            };
            for (i, sums) in sums.iter().enumerate() {
                out.put(channel + i, row, sums);
            }
            channel += TOGETHER;
        }
        for channel in channel..channels {
            let [sums] = mix_channels::<1>(matrix, input, row, channel);
            out.put(channel, row, &sums);
        }
    }
}

/// The results of a row and the next for N channels.
#[inline(always)]
fn mix_channels<const N: usize>(matrix: &[f32], input: &[f32], row: usize, channel: usize) -> [[f32; PAIR]; N] {
    let channels = input.len() / TILE;
    let mut sums = [[0.0; PAIR]; N];
    for (k, (tile, column)) in input.chunks_exact(TILE).zip(matrix.chunks_exact(channels)).enumerate() {
        let (Some(values), Some(by)) = (tile[row * SIDE..].first_chunk(), column[channel..].first_chunk::<N>()) else {
            return sums; // a tile has pairs of rows, and a column all channels
        };
        for (sum, by) in sums.iter_mut().zip(by) {
            if k == 0 {
                *sum = scaled(values, *by);
            } else {
                add_scaled(sum, values, *by);
            }
        }
    }
    sums
}

/// Writes values to a tile of a sample (C, height, width).
struct ToSample<'a> {
    zero: &'a [f32],
    step: f32,
    tile: Tile,
    shape: (usize, usize),
    out: &'a mut [f32],
}

impl Put for ToSample<'_> {
    #[inline(always)]
    fn put(&mut self, channel: usize, row: usize, sums: &[f32; PAIR]) {
        let Self { zero, step, tile, shape: (height, width), out } = self;
        let mut values = *sums;
        for value in &mut values {
            *value = (*value + zero[channel]) * *step;
        }
        let start = (channel * *height + tile.row + row) * *width + tile.column;
        for (i, values) in values.as_chunks::<SIDE>().0.iter().enumerate() {
            if row + i < tile.height {
                let out = &mut out[start + i * *width..][..tile.width];
                if let Some(out) = out.first_chunk_mut() {
                    *out = *values;
                } else {
                    out.copy_from_slice(&values[..tile.width]);
                }
            }
        }
    }
}

/// Writes coefficients (C, 8, 8).
struct ToTile<'a>(&'a mut [f32]);

impl Put for ToTile<'_> {
    #[inline(always)]
    fn put(&mut self, channel: usize, row: usize, sums: &[f32; PAIR]) {
        self.0[channel * TILE + row * SIDE..][..PAIR].copy_from_slice(sums);
    }
}

/// Integers in steps to values of a sample (C, height, width), for one tile. `coefficients` (C, 8, 8) is overwritten. `zero`
/// has the mean of each channel in steps.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn inverse_tile(
    isa: Isa,
    basis: &[f32],
    zero: &[f32],
    step: f32,
    tile: Tile,
    coefficients: &mut [f32],
    out: &mut [f32],
    shape: (usize, usize),
) {
    for values in coefficients.as_chunks_mut().0 {
        inverse_dct(isa, values, tile);
    }
    mix(isa, basis, coefficients, tile.height, ToSample { zero, step, tile, shape, out });
}

/// Values of a sample (C, height, width) to coefficients (C, 8, 8), for one tile. `buffer` has the length of `coefficients`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn forward_tile(
    isa: Isa,
    inverse: &[f32],
    mean: &[f32],
    tile: Tile,
    x: &[f32],
    (height, width): (usize, usize),
    buffer: &mut [f32],
    coefficients: &mut [f32],
) {
    for ((channel, buffer), mean) in buffer.as_chunks_mut::<TILE>().0.iter_mut().enumerate().zip(mean) {
        let start = (channel * height + tile.row) * width + tile.column;
        for (row, buffer) in rows_of(buffer).iter_mut().enumerate().take(tile.height) {
            let x = &x[start + row * width..][..tile.width];
            if let Ok(x) = <&Row>::try_from(x) {
                *buffer = x.map(|x| x - *mean); // as a vector
                continue;
            }
            for (out, x) in buffer.iter_mut().zip(x) {
                *out = *x - *mean;
            }
        }
    }
    mix(isa, inverse, buffer, tile.height, ToTile(coefficients));
    for values in coefficients.as_chunks_mut().0 {
        forward_dct(isa, values, tile);
    }
}

/// Length of the coefficients of a channel of eight tiles, with a gap as in [`super::order::Plan::tile_len`].
pub const EIGHT_LEN: usize = 8 * TILE + 16;

/// Eight whole tiles, of one sample or several, whose values are next to each other.
pub struct EightTiles<'a> {
    /// From coefficients to channels, by column.
    pub basis: &'a [f32],
    /// By band: the number of the row that has its integers.
    pub ranks: &'a [u32],
    /// Integers of a row.
    pub stride: usize,
    /// The first of the eight in a row.
    pub first: usize,
    /// The mean of each channel in steps of each tile (C, 8).
    pub zero: &'a mut [f32],
    pub steps: [f32; 8],
    /// The index of the first value of each tile in the output.
    pub starts: [usize; 8],
    /// The tiles that are there; the rest of the eight are any numbers.
    pub count: usize,
    /// Rows and columns of a sample.
    pub height: usize,
    pub width: usize,
    /// Room for (C, [`EIGHT_LEN`]).
    pub coefficients: &'a mut [f32],
}

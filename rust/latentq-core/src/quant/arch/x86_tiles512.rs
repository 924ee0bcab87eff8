//! The inverse transform of `x86_tiles` with vectors of sixteen: two rows, or two columns, of eight tiles.

use std::arch::x86_64::*;

use crate::quant::transform::{DCT, EIGHT_LEN, EightTiles};

/// Rows of integers to values of `out`. Does the arithmetic of `spatial::inverse_tile`.
///
/// # Panics
/// If the lengths do not fit.
#[target_feature(enable = "avx512f,avx512dq")]
pub fn inverse_avx512(tiles: &mut EightTiles<'_>, numbers: &[i32], out: &mut [f32]) {
    let channels = tiles.ranks.len() / 64;
    assert!(tiles.coefficients.len() >= channels * EIGHT_LEN && tiles.basis.len() == channels * channels);
    let coefficients = tiles.coefficients.as_chunks_mut::<EIGHT_LEN>().0;
    for (ranks, values) in tiles.ranks.as_chunks().0.iter().zip(coefficients) {
        inverse_dct(ranks, tiles.stride, tiles.first, numbers, values);
    }
    for row in (0..8).step_by(2) {
        let mut channel = 0;
        while channel + 4 <= channels {
            mix::<4>(tiles, row, channel, out);
            channel += 4;
        }
        while channel < channels {
            mix::<1>(tiles, row, channel, out);
            channel += 1;
        }
    }
}

/// The coefficients of a channel to values (8 rows, 8 columns, 8 tiles).
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
#[allow(unsafe_code)]
fn inverse_dct(ranks: &[u32; 64], stride: usize, first: usize, numbers: &[i32], values: &mut [f32; EIGHT_LEN]) {
    let eight = |rank: u32| {
        let numbers: &[i32; 8] = numbers[rank as usize * stride + first..].first_chunk().expect("eight columns");
        // SAFETY: 8 numbers.
        unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
    };
    // Two rows in each vector.
    let mut half = [[_mm512_setzero_ps(); 8]; 4];
    for (ranks, half) in ranks.as_chunks::<16>().0.iter().zip(&mut half) {
        let mut rows = *half;
        for (column, rows) in rows.iter_mut().enumerate() {
            let lower = _mm512_castsi256_si512(eight(ranks[column]));
            *rows = _mm512_cvtepi32_ps(_mm512_inserti64x4::<1>(lower, eight(ranks[8 + column])));
        }
        *half = combine(rows);
    }
    for column in (0..8).step_by(2) {
        // Two columns in each vector.
        let mut rows = half[0];
        for (rows, half) in rows.as_chunks_mut::<2>().0.iter_mut().zip(&half) {
            let (a, b) = (half[column], half[column + 1]);
            *rows = [_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b)];
        }
        for (row, sum) in combine(rows).into_iter().enumerate() {
            let values: &mut [f32; 16] = values[8 * (8 * row + column)..].first_chunk_mut().expect("two columns");
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), sum) };
        }
    }
}

/// The arithmetic of `x86_tiles::combine`.
#[target_feature(enable = "avx512f")]
#[inline]
fn combine(values: [__m512; 8]) -> [__m512; 8] {
    const BY: &[[f32; 8]; 8] = &DCT[7];
    let mut out = values;
    for i in 0..4 {
        let product = _mm512_mul_ps(_mm512_set1_ps(BY[0][i]), values[0]);
        let (mut sum, mut other) = (product, product);
        for k in 1..8 {
            let product = _mm512_mul_ps(_mm512_set1_ps(BY[k][i]), values[k]);
            sum = _mm512_add_ps(sum, product);
            other = if k % 2 == 1 { _mm512_sub_ps(other, product) } else { _mm512_add_ps(other, product) };
        }
        (out[i], out[7 - i]) = (sum, other);
    }
    out
}

/// Writes the values of N channels in a row and the next.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
#[allow(unsafe_code, clippy::needless_range_loop)] // a pair of columns of each of `values`
fn mix<const N: usize>(tiles: &EightTiles<'_>, row: usize, channel: usize, out: &mut [f32]) {
    let channels = tiles.ranks.len() / 64;
    assert!(channel + N <= channels && row + 2 <= 8 && tiles.coefficients.len() >= channels * EIGHT_LEN);
    assert!(tiles.basis.len() == channels * channels);
    let steps = twice(&tiles.steps);
    let mut values = [[[_mm512_setzero_ps(); 4]; 2]; N];
    for pair in 0..4 {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        // SAFETY: `from` moves through the channels of `coefficients` at two columns of two rows of each, and `by` through the
        // columns of `basis` at N of its channels.
        unsafe {
            let mut from = tiles.coefficients.as_ptr().add(8 * (8 * row + 2 * pair));
            let mut by = tiles.basis.as_ptr().add(channel);
            for k in 0..channels {
                let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(64)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let by = _mm512_set1_ps(*by.add(i));
                    let products = [_mm512_mul_ps(by, a), _mm512_mul_ps(by, b)];
                    for (sum, product) in sum.iter_mut().zip(products) {
                        *sum = if k == 0 { product } else { _mm512_add_ps(*sum, product) };
                    }
                }
                (from, by) = (from.wrapping_add(EIGHT_LEN), by.wrapping_add(channels));
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let zero = twice(tiles.zero[8 * (channel + i)..].first_chunk().expect("all channels"));
            for (half, sum) in sums.into_iter().enumerate() {
                values[i][half][pair] = _mm512_mul_ps(_mm512_add_ps(sum, zero), steps);
            }
        }
    }
    for (i, values) in values.into_iter().enumerate() {
        for (half, values) in values.into_iter().enumerate() {
            let at = ((channel + i) * tiles.height + row + half) * tiles.width;
            let rows = rows_of_tiles(values);
            for (tile, start) in tiles.starts[..tiles.count].iter().enumerate() {
                let both = rows[tile / 2];
                let row = if tile % 2 == 0 { _mm512_castps512_ps256(both) } else { _mm512_extractf32x8_ps::<1>(both) };
                let out: &mut [f32; 8] = out[start + at..].first_chunk_mut().expect("room for eight");
                // SAFETY: 8 numbers.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), row) };
            }
        }
    }
}

/// Columns of eight tiles, two in each vector, to the eight values of each tile, those of two tiles in each vector.
#[target_feature(enable = "avx512f")]
#[inline]
fn rows_of_tiles(columns: [__m512; 4]) -> [__m512; 4] {
    // Both columns of a tile next to each other, in the order of tiles in which the rest leaves them ascending.
    let order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
    let [a, b, c, d] = columns.map(|columns| _mm512_castps_pd(_mm512_permutexvar_ps(order, columns)));
    let (ab, cd) = (_mm512_unpacklo_pd(a, b), _mm512_unpacklo_pd(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_pd(a, b), _mm512_unpackhi_pd(c, d));
    let (first, second) = (_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15));
    let join = |a, which, b| _mm512_castpd_ps(_mm512_permutex2var_pd(a, which, b));
    [join(ab, first, cd), join(ab, second, cd), join(ab_high, first, cd_high), join(ab_high, second, cd_high)]
}

/// Eight numbers in both halves of a vector.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
#[allow(unsafe_code)]
fn twice(values: &[f32; 8]) -> __m512 {
    // SAFETY: 8 numbers.
    _mm512_broadcast_f32x8(unsafe { _mm256_loadu_ps(values.as_ptr()) })
}

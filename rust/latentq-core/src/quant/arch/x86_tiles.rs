//! The inverse transform of eight tiles at a time, a tile in each lane of a vector: nothing is shuffled before the end.

use std::arch::x86_64::*;

use crate::quant::transform::{DCT, EIGHT_LEN, EightTiles};

type Vectors = [__m256; 8];

/// Rows of integers to values of `out`. Does the arithmetic of `spatial::inverse_tile`.
///
/// # Panics
/// If the lengths do not fit.
#[target_feature(enable = "avx2")]
pub fn inverse_avx2(tiles: &mut EightTiles<'_>, numbers: &[i32], out: &mut [f32]) {
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
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn inverse_dct(ranks: &[u32; 64], stride: usize, first: usize, numbers: &[i32], values: &mut [f32; EIGHT_LEN]) {
    let mut half = [_mm256_setzero_ps(); 64];
    for (ranks, half) in ranks.as_chunks::<8>().0.iter().zip(half.as_chunks_mut::<8>().0) {
        let row = ranks.map(|rank| {
            let numbers: &[i32; 8] = numbers[rank as usize * stride + first..].first_chunk().expect("eight columns");
            // SAFETY: 8 numbers.
            _mm256_cvtepi32_ps(unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) })
        });
        *half = combine(row);
    }
    for column in 0..8 {
        let rows = [0, 1, 2, 3, 4, 5, 6, 7].map(|row| half[8 * row + column]);
        for (row, sum) in combine(rows).into_iter().enumerate() {
            store(&mut values[8 * (8 * row + column)..], sum);
        }
    }
}

/// `out[i] = sum over k of DCT[k][i] * values[k]`. `DCT[k][7 - i]` is `DCT[k][i]`, or for odd k its negative, so that the sums of i
/// and 7 - i have the same products.
#[target_feature(enable = "avx2")]
#[inline]
fn combine(values: Vectors) -> Vectors {
    const BY: &[[f32; 8]; 8] = &DCT[7];
    let mut out = values;
    for i in 0..4 {
        let product = _mm256_mul_ps(_mm256_set1_ps(BY[0][i]), values[0]);
        let (mut sum, mut other) = (product, product);
        for k in 1..8 {
            let product = _mm256_mul_ps(_mm256_set1_ps(BY[k][i]), values[k]);
            sum = _mm256_add_ps(sum, product);
            other = if k % 2 == 1 { _mm256_sub_ps(other, product) } else { _mm256_add_ps(other, product) };
        }
        (out[i], out[7 - i]) = (sum, other);
    }
    out
}

/// Writes the values of N channels in a row and the next.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code, clippy::needless_range_loop)] // a column of each of `values`
fn mix<const N: usize>(tiles: &EightTiles<'_>, row: usize, channel: usize, out: &mut [f32]) {
    let channels = tiles.ranks.len() / 64;
    assert!(channel + N <= channels && row + 2 <= 8 && tiles.coefficients.len() >= channels * EIGHT_LEN);
    assert!(tiles.basis.len() == channels * channels);
    let steps = load(&tiles.steps);
    let mut values = [[[_mm256_setzero_ps(); 8]; 2]; N];
    for column in 0..8 {
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        // SAFETY: `from` moves through the channels of `coefficients` at two vectors of each, and `by` through the columns of
        // `basis` at N of its channels.
        unsafe {
            let mut from = tiles.coefficients.as_ptr().add(8 * (8 * row + column));
            let mut by = tiles.basis.as_ptr().add(channel);
            for k in 0..channels {
                let (a, b) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(64)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let by = _mm256_broadcast_ss(&*by.add(i));
                    let products = [_mm256_mul_ps(by, a), _mm256_mul_ps(by, b)];
                    for (sum, product) in sum.iter_mut().zip(products) {
                        *sum = if k == 0 { product } else { _mm256_add_ps(*sum, product) };
                    }
                }
                (from, by) = (from.wrapping_add(EIGHT_LEN), by.wrapping_add(channels));
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let zero = load(tiles.zero[8 * (channel + i)..].first_chunk().expect("all channels"));
            for (half, sum) in sums.into_iter().enumerate() {
                values[i][half][column] = _mm256_mul_ps(_mm256_add_ps(sum, zero), steps);
            }
        }
    }
    for (i, values) in values.into_iter().enumerate() {
        for (half, values) in values.into_iter().enumerate() {
            let at = ((channel + i) * tiles.height + row + half) * tiles.width;
            for (values, start) in transposed(values).into_iter().zip(&tiles.starts[..tiles.count]) {
                store(&mut out[start + at..], values);
            }
        }
    }
}

/// Writes rows of integers, one after the other, as columns. Returns false if the rows do not have the length of whole columns.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn interleave_avx2(rows: [&[i32]; 8], out: &mut [i32]) -> bool {
    let len = rows[0].len();
    if !len.is_multiple_of(8) || rows.iter().any(|row| row.len() != len) || out.len() > 8 * len {
        return false;
    }
    for (at, out) in out.chunks_exact_mut(64).enumerate() {
        // SAFETY: all rows have eight numbers from there on, as `out` has at most those of whole rows.
        let eight = rows.map(|row| unsafe { _mm256_loadu_ps(row.as_ptr().add(8 * at).cast()) });
        for (out, column) in out.as_chunks_mut::<8>().0.iter_mut().zip(transposed(eight)) {
            // SAFETY: 8 numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().cast(), column) };
        }
    }
    out.len().is_multiple_of(64)
}

#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn load(values: &[f32; 8]) -> __m256 {
    // SAFETY: 8 numbers.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Writes the first eight of `out`.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn store(out: &mut [f32], values: __m256) {
    let out: &mut [f32; 8] = out.first_chunk_mut().expect("room for eight");
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
}

/// Rows to columns.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(rows: Vectors) -> Vectors {
    let [a, b, c, d, e, f, g, h] = rows;
    let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let ((ab, ab_high), (cd, cd_high)) = (pairs(a, b), pairs(c, d));
    let ((ef, ef_high), (gh, gh_high)) = (pairs(e, f), pairs(g, h));
    let fours = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
    let ((a0, a1), (a2, a3)) = (fours(ab, cd), fours(ab_high, cd_high));
    let ((e0, e1), (e2, e3)) = (fours(ef, gh), fours(ef_high, gh_high));
    let low = |a, e| _mm256_permute2f128_ps::<0x20>(a, e);
    let high = |a, e| _mm256_permute2f128_ps::<0x31>(a, e);
    [low(a0, e0), low(a1, e1), low(a2, e2), low(a3, e3), high(a0, e0), high(a1, e1), high(a2, e2), high(a3, e3)]
}

//! The encoder of the transform codec with AVX-512.

use std::arch::x86_64::*;

use crate::quant::kernel::LABELS;
use crate::quant::transform::{WINDOWS, Windows};

/// The arithmetic of `transform::encode::compare` for sixteen elements of a lane, four at a time. Returns false if a t has no
/// window; then nothing is done.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
#[allow(unsafe_code, clippy::too_many_arguments)]
pub fn compare_avx512<const L: usize>(
    by_level: &[f32],
    windows: &Windows,
    t: &[u8; 16],
    y: &[f32; 16],
    low: &[i32; 16],
    lane: usize,
    costs: &mut [[[f32; L]; LABELS]; 16],
    choices: &mut [i32; 16],
) -> bool {
    // SAFETY: arrays of 16 and of 64.
    let (t, y, low) = unsafe {
        let t = _mm_loadu_si128(t.as_ptr().cast());
        (t, _mm512_loadu_ps(y.as_ptr()), _mm512_loadu_si512(low.as_ptr().cast()))
    };
    if _mm_cmpge_epu8_mask(t, _mm_set1_epi8(WINDOWS as i8)) != 0 || lane >= L {
        return false;
    }
    let index = _mm512_castsi256_si512(_mm256_cvtepu8_epi16(t));
    let look_up = |of: &[u16; 64]| {
        // SAFETY: two vectors.
        let [a, b] = [0, 32].map(|at| unsafe { _mm512_loadu_si512(of.as_ptr().add(at).cast()) });
        _mm512_cvtepu16_epi32(_mm512_castsi512_si256(_mm512_permutex2var_epi16(a, index, b)))
    };
    let (center, reach) = (look_up(&windows.centers), look_up(&windows.reaches));
    let four = _mm512_set1_epi32(4);
    let least = _mm512_sub_epi32(_mm512_setzero_si512(), reach);
    let inside = _mm512_max_epi32(_mm512_min_epi32(low, _mm512_sub_epi32(reach, four)), least);
    let start = _mm512_sub_epi32(_mm512_add_epi32(center, inside), four);
    // A negative start is a large number.
    if by_level.len() < 12 || _mm512_cmpgt_epu32_mask(start, _mm512_set1_epi32((by_level.len() - 12) as i32)) != 0 {
        return false;
    }
    let (mut starts, mut gives_way) = ([0u32; 16], 0u64);
    // SAFETY: an array of 16.
    unsafe { _mm512_storeu_si512(starts.as_mut_ptr().cast(), start) };
    let by_label = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 1, 2, 3));
    let by_element = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let groups = starts.as_chunks::<4>().0.iter().zip(costs.as_chunks_mut::<4>().0);
    for (group, (starts, costs)) in groups.enumerate() {
        let each = _mm512_add_epi32(by_element, _mm512_set1_epi32(4 * group as i32));
        let value = _mm512_permutexvar_ps(each, y);
        let near = _mm512_add_epi32(_mm512_permutexvar_epi32(each, low), by_label);
        // SAFETY: all starts have twelve costs after them.
        let [below, same, above] = [0, 4, 8].map(|at| {
            let [a, b, c, d] = starts.map(|start| unsafe { _mm_loadu_ps(by_level.as_ptr().add(start as usize + at)) });
            _mm512_insertf32x8::<1>(_mm512_castps256_ps512(_mm256_set_m128(b, a)), _mm256_set_m128(d, c))
        });
        let (is_above, is_below) = (_mm512_cmpgt_epi32_mask(near, _mm512_setzero_si512()), _mm512_movepi32_mask(near));
        let next = _mm512_mask_sub_epi32(near, is_above, near, four);
        let next = _mm512_mask_add_epi32(next, is_below, next, four);
        let cost = |level: __m512i, bits: __m512| {
            let error = _mm512_sub_ps(value, _mm512_cvtepi32_ps(level));
            _mm512_add_ps(_mm512_mul_ps(error, error), bits)
        };
        let (near_cost, next_cost) = (cost(near, same), cost(next, _mm512_mask_blend_ps(is_below, below, above)));
        let is_less = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(is_above | is_below, next_cost, near_cost);
        let least = _mm512_mask_blend_ps(is_less, near_cost, next_cost);
        // Label l is at position l - low, of which two bits count.
        let position = _mm512_sub_epi32(_mm512_add_epi32(by_label, by_label), near);
        let least = _mm512_permutevar_ps(least, position);
        let quarters = [
            _mm512_castps512_ps128(least),
            _mm512_extractf32x4_ps::<1>(least),
            _mm512_extractf32x4_ps::<2>(least),
            _mm512_extractf32x4_ps::<3>(least),
        ];
        for (costs, least) in costs.iter_mut().zip(quarters) {
            // SAFETY: an element has L arrays of four, and `lane` is less.
            unsafe { _mm_storeu_ps(costs.as_flattened_mut().as_mut_ptr().add(LABELS * lane), least) };
        }
        gives_way |= u64::from(is_less) << (16 * group);
    }
    // Four bits for each element.
    let bits =
        _mm512_inserti64x4::<1>(_mm512_set1_epi32(gives_way as i32), _mm256_set1_epi32((gives_way >> 32) as i32));
    let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    let bits = _mm512_and_si512(_mm512_srlv_epi32(bits, shifts), _mm512_set1_epi32(15));
    let choice = _mm512_or_si512(_mm512_slli_epi32::<4>(low), bits);
    // SAFETY: an array of 16.
    unsafe { _mm512_storeu_si512(choices.as_mut_ptr().cast(), choice) };
    true
}

/// The arithmetic of `spatial::mix_channels` for four channels and a whole tile. Returns `None` if the lengths do not fit.
#[target_feature(enable = "avx512f")]
#[inline]
#[allow(unsafe_code)]
pub fn mix_tile_avx512(matrix: &[f32], input: &[f32], channel: usize) -> Option<[[f32; 64]; 4]> {
    let channels = input.len() / 64;
    if channels == 0 || matrix.len() != channels * channels || channel + 4 > channels {
        return None;
    }
    let mut sums = [[_mm512_setzero_ps(); 4]; 4];
    // SAFETY: `values` moves through the tiles of `input`, and `by` through the columns of `matrix` at four of its channels.
    unsafe {
        let (mut values, mut by) = (input.as_ptr(), matrix.as_ptr().add(channel));
        for k in 0..channels {
            let rows = [0, 16, 32, 48].map(|at| _mm512_loadu_ps(values.add(at)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let by = _mm512_set1_ps(*by.add(i));
                for (sum, rows) in sums.iter_mut().zip(rows) {
                    let product = _mm512_mul_ps(by, rows);
                    *sum = if k == 0 { product } else { _mm512_add_ps(*sum, product) };
                }
            }
            (values, by) = (values.wrapping_add(64), by.wrapping_add(channels));
        }
        // Four vectors of sixteen are 64 numbers.
        Some(std::mem::transmute::<[[__m512; 4]; 4], [[f32; 64]; 4]>(sums))
    }
}

/// The arithmetic of `spatial::forward_dct` for a whole tile, two rows at a time.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
#[allow(unsafe_code)]
pub fn forward_dct_avx512(values: &mut [f32; 64], by: &[[f32; 8]; 8]) {
    // SAFETY: rows of eight.
    let twice = |row: &[f32; 8]| _mm512_broadcast_f32x8(unsafe { _mm256_loadu_ps(row.as_ptr()) });
    let (mut columns, rows) = ([_mm512_setzero_ps(); 4], values.as_chunks::<8>().0);
    for (k, row) in rows.iter().enumerate() {
        let row = twice(row);
        for (i, sum) in columns.iter_mut().enumerate() {
            let low = _mm512_castps256_ps512(_mm256_set1_ps(by[k][2 * i]));
            let factors = _mm512_insertf32x8::<1>(low, _mm256_set1_ps(by[k][2 * i + 1]));
            let product = _mm512_mul_ps(factors, row);
            *sum = if k == 0 { product } else { _mm512_add_ps(*sum, product) };
        }
    }
    for (two, out) in columns.into_iter().zip(values.as_chunks_mut::<16>().0) {
        let mut sum = _mm512_setzero_ps();
        for (k, by) in by.iter().enumerate() {
            let number = k as i32;
            let low = _mm512_castsi256_si512(_mm256_set1_epi32(number));
            let each = _mm512_inserti64x4::<1>(low, _mm256_set1_epi32(8 + number));
            let product = _mm512_mul_ps(_mm512_permutexvar_ps(each, two), twice(by));
            sum = if k == 0 { product } else { _mm512_add_ps(sum, product) };
        }
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

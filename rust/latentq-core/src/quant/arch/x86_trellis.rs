//! x86-64 code of the trellis encoder: searches in tables that do not fit in a register or two, and the paths.
//!
//! As in `x86`, each function processes whole vectors and returns the number of elements done.

use std::arch::x86_64::*;

use crate::quant::kernel::{LABELS, STATES, label};
use crate::quant::trellis::{Nearest, TrellisLevels};

/// Binary search: rows 0 to 4 of the tree, from node 2^row on, are in registers, and permutes select from them; deeper
/// rows are gathered.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn search_avx2(tree: &[f32; 256], bits: u32, x: &[f32], out: &mut [u8]) -> usize {
    let (x, out) = (x.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    // SAFETY: node + 8 is at most 32 for rows 0 to 4; a gathered node is below 2^bits, which is at most 256; x and out are
    // arrays of 8.
    unsafe {
        let part = |node: usize| _mm256_loadu_ps(tree.as_ptr().add(node));
        let small = [1, 2, 4, 8].map(part);
        let row4 = [part(16), part(24)];
        for (x, out) in x.iter().zip(out.iter_mut()) {
            let x = _mm256_loadu_ps(x.as_ptr());
            let mut code = _mm256_setzero_si256();
            let descend = |code: __m256i, bound: __m256| {
                let right = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, bound));
                _mm256_sub_epi32(_mm256_add_epi32(code, code), right)
            };
            for row in small.iter().take(bits as usize) {
                code = descend(code, _mm256_permutevar8x32_ps(*row, code));
            }
            if bits > 4 {
                let halves = row4.map(|half| _mm256_permutevar8x32_ps(half, code));
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
                code = descend(code, _mm256_blendv_ps(halves[0], halves[1], upper));
            }
            for row in 5..bits {
                let node = _mm256_add_epi32(code, _mm256_set1_epi32(1 << row));
                code = descend(code, _mm256_i32gather_ps::<4>(tree.as_ptr(), node));
            }
            let words = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256::<1>(code));
            _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(words, words));
        }
    }
    8 * x.len().min(out.len())
}

/// By the lowest bits of the number of the level below a value: the position of each label in the window of four levels.
const POSITIONS: [[i32; LABELS]; LABELS] = [[3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0], [0, 1, 2, 3]];

/// The arithmetic of `trellis::encode::compare`, for the values of one lane.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn compare_avx2<const L: usize>(
    levels: &TrellisLevels,
    x: &[f32],
    pairs: &[u8],
    lane: usize,
    costs: &mut [[[f32; L]; LABELS]],
    nearest: &mut [Nearest],
) {
    for (((x, pair), costs), nearest) in x.iter().zip(pairs).zip(costs).zip(nearest) {
        let even = 2 * usize::from(*pair);
        let below = even + usize::from(*x > levels.levels[even + 1]);
        // SAFETY: `below` is at most 511, so all windows are inside their tables; the rest are arrays of 4.
        unsafe {
            let value = _mm_set1_ps(*x);
            let upper = _mm_cmpgt_ps(value, _mm_loadu_ps(levels.bounds.as_ptr().add(below)));
            let lower_levels = _mm_loadu_ps(levels.padded.as_ptr().add(below));
            let upper_levels = _mm_loadu_ps(levels.padded.as_ptr().add(below + LABELS));
            let error = _mm_sub_ps(value, _mm_blendv_ps(lower_levels, upper_levels, upper));
            let positions = _mm_loadu_si128(POSITIONS[below % LABELS].as_ptr().cast());
            let by_label = _mm_permutevar_ps(_mm_mul_ps(error, error), positions);
            let by_lane = costs.as_flattened_mut().as_chunks_mut::<LABELS>().0;
            _mm_storeu_ps(by_lane[lane].as_mut_ptr(), by_label);
            *nearest = Nearest(below as u16 | (_mm_movemask_ps(upper) << 9) as u16);
        }
    }
}

/// The arithmetic of `trellis::encode::advance` for 8 lanes. Returns false if there are not 8.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn advance_avx2(metric: &mut [f32], costs: &[f32], paths: &mut [u8]) -> bool {
    let (Ok(metric), Some(costs)) = (<&mut [f32; 8 * STATES]>::try_from(metric), as_all_chunks::<_, 32>(costs)) else {
        return false;
    };
    // Transposing 4 x 4 in halves of vectors puts the even lanes first; the bytes of paths go back.
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let back = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    // SAFETY: `metric` has 8 vectors of 8; costs are 4 vectors of 8; paths are arrays of 8.
    unsafe {
        let mut now = [0, 1, 2, 3, 4, 5, 6, 7]
            .map(|state| _mm256_permutevar8x32_ps(_mm256_loadu_ps(metric.as_ptr().add(8 * state)), order));
        for (costs, path) in costs.iter().zip(paths.as_chunks_mut::<8>().0) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|pair| _mm256_loadu_ps(costs.as_ptr().add(8 * pair)));
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let cost = [
                _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
                _mm256_shuffle_ps::<0xee>(ab_low, cd_low),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
            ];
            let mut chosen = _mm256_setzero_si256();
            let mut next = now;
            for (state, next) in next.iter_mut().enumerate().rev() {
                let (from, u) = (state >> 1, state & 1);
                let a = _mm256_add_ps(now[from], cost[label(from, u)]);
                let b = _mm256_add_ps(now[from | 4], cost[label(from | 4, u)]);
                *next = _mm256_min_ps(b, a); // a if they are equal or one is NaN
                let better = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(b, a));
                chosen = _mm256_sub_epi32(_mm256_add_epi32(chosen, chosen), better);
            }
            let [n0, n1, n2, n3, n4, n5, n6, n7] = next;
            let least = _mm256_min_ps(
                _mm256_min_ps(_mm256_min_ps(n0, n1), _mm256_min_ps(n2, n3)),
                _mm256_min_ps(_mm256_min_ps(n4, n5), _mm256_min_ps(n6, n7)),
            );
            now = next.map(|next| _mm256_sub_ps(next, least));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256::<1>(chosen));
            let path_bytes = _mm_shuffle_epi8(_mm_packus_epi16(words, words), bytes);
            _mm_storel_epi64(path.as_mut_ptr().cast(), path_bytes);
        }
        for (state, now) in now.into_iter().enumerate() {
            _mm256_storeu_ps(metric.as_mut_ptr().add(8 * state), _mm256_permutevar8x32_ps(now, back));
        }
    }
    true
}

/// The arithmetic of `trellis::encode::advance` for 16 lanes. Returns false if there are not 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[allow(unsafe_code)]
pub fn advance_avx512(metric: &mut [f32], costs: &[f32], paths: &mut [u8]) -> bool {
    let (Ok(metric), Some(costs)) = (<&mut [f32; 16 * STATES]>::try_from(metric), as_all_chunks::<_, 64>(costs)) else {
        return false;
    };
    // Transposing 4 x 4 in quarters of vectors makes lane 4 i + j lane 4 j + i; the same again goes back.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let bytes = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    // SAFETY: `metric` has 8 vectors of 16; costs are 4 vectors of 16; paths are arrays of 16.
    unsafe {
        let mut now = [0, 1, 2, 3, 4, 5, 6, 7]
            .map(|state| _mm512_permutexvar_ps(order, _mm512_loadu_ps(metric.as_ptr().add(16 * state))));
        for (costs, path) in costs.iter().zip(paths.as_chunks_mut::<16>().0) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|four| _mm512_loadu_ps(costs.as_ptr().add(16 * four)));
            let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let cost = [
                _mm512_shuffle_ps::<0x44>(ab_low, cd_low),
                _mm512_shuffle_ps::<0xee>(ab_low, cd_low),
                _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
            ];
            let mut chosen = _mm512_setzero_si512();
            let mut next = now;
            for (state, next) in next.iter_mut().enumerate() {
                let (from, u) = (state >> 1, state & 1);
                let a = _mm512_add_ps(now[from], cost[label(from, u)]);
                let b = _mm512_add_ps(now[from | 4], cost[label(from | 4, u)]);
                *next = _mm512_min_ps(b, a); // a if they are equal or one is NaN
                let better = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b, a);
                chosen = _mm512_mask_or_epi32(chosen, better, chosen, _mm512_set1_epi32(1 << state));
            }
            let [n0, n1, n2, n3, n4, n5, n6, n7] = next;
            let least = _mm512_min_ps(
                _mm512_min_ps(_mm512_min_ps(n0, n1), _mm512_min_ps(n2, n3)),
                _mm512_min_ps(_mm512_min_ps(n4, n5), _mm512_min_ps(n6, n7)),
            );
            now = next.map(|next| _mm512_sub_ps(next, least));
            let path_bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(chosen), bytes);
            _mm_storeu_si128(path.as_mut_ptr().cast(), path_bytes);
        }
        for (state, now) in now.into_iter().enumerate() {
            _mm512_storeu_ps(metric.as_mut_ptr().add(16 * state), _mm512_permutexvar_ps(order, now));
        }
    }
    true
}

/// The slice as arrays of N, or None if it has a remainder.
fn as_all_chunks<T, const N: usize>(slice: &[T]) -> Option<&[[T; N]]> {
    let (chunks, rest) = slice.as_chunks();
    rest.is_empty().then_some(chunks)
}

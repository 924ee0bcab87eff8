//! x86-64 code of the trellis decoder: codes to numbers of levels, and look-ups in tables that do not fit in a register or two.
//!
//! Each function returns the number of elements of each run that it has done, possibly not all.

use std::arch::x86_64::*;

use crate::quant::floats::FloatsMut;
use crate::quant::kernel::LINE;
use crate::quant::trellis::{MEMORY, MOST, Runs, TrellisLevels};

/// The lowest eight bits of the numbers of the levels of 32 elements.
///
/// # Safety
/// There must be 35 codes.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
unsafe fn numbers_avx2(window: *const u8) -> __m256i {
    // SAFETY: 32 codes from each of the first four on.
    let [third, second, first, code] = [0, 1, 2, 3].map(|at| unsafe { _mm256_loadu_si256(window.add(at).cast()) });
    let parity = _mm256_xor_si256(_mm256_xor_si256(code, first), third);
    let label = _mm256_or_si256(
        _mm256_and_si256(_mm256_add_epi8(parity, parity), _mm256_set1_epi8(2)),
        _mm256_and_si256(second, _mm256_set1_epi8(1)),
    );
    _mm256_or_si256(_mm256_and_si256(_mm256_add_epi8(code, code), _mm256_set1_epi8(!3)), label)
}

/// Looks up in tables of 16 `PARTS` levels byte by byte: a shuffle looks up one byte of the levels of 32 elements, and the
/// bytes of each level are put together at the end. Permutes of whole levels would look up 8. (Eight parts take longer than
/// [`look_up_one_by_one`].)
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn look_up_avx2<const PARTS: usize>(levels: &TrellisLevels, runs: Runs<'_>, out: &mut [f32]) -> usize {
    // Both steps of putting together work in halves of vectors: in this order the levels come out in theirs.
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let whole = runs.len / 32 * 32;
    // SAFETY: the parts are within the tables; a step reads 35 codes of a window, which has three more than `out` has values.
    unsafe {
        let table = |part: usize| {
            let part = |bytes: &[u8; MOST]| _mm_loadu_si128(bytes.as_ptr().add(16 * part).cast());
            levels.bytes.each_ref().map(|bytes| _mm256_broadcastsi128_si256(part(bytes)))
        };
        let tables: [_; PARTS] = std::array::from_fn(table);
        for run in 0..runs.starts.len() {
            let (window, out) = runs.get(run, out);
            for at in (0..whole).step_by(32) {
                let out: *mut f32 = out.as_mut_ptr().add(at);
                prefetch_for_writing(out, 32);
                let numbers = _mm256_permutevar8x32_epi32(numbers_avx2(window.as_ptr().add(at)), order);
                // A number of another part has bit 7, for which a shuffle gives 0.
                let indices: [_; PARTS] = std::array::from_fn(|part| {
                    let other = _mm256_xor_si256(numbers, _mm256_set1_epi8(16 * part as i8));
                    if PARTS == 1 { numbers } else { _mm256_adds_epu8(other, _mm256_set1_epi8(0x70)) }
                });
                let [b0, b1, b2, b3] = [0, 1, 2, 3].map(|byte| {
                    let mut found = _mm256_setzero_si256();
                    for (index, table) in indices.iter().zip(tables) {
                        found = _mm256_or_si256(found, _mm256_shuffle_epi8(table[byte], *index));
                    }
                    found
                });
                let (b01, b23) = (_mm256_unpacklo_epi8(b0, b1), _mm256_unpacklo_epi8(b2, b3));
                let (b01_high, b23_high) = (_mm256_unpackhi_epi8(b0, b1), _mm256_unpackhi_epi8(b2, b3));
                let values = [
                    _mm256_unpacklo_epi16(b01, b23),
                    _mm256_unpackhi_epi16(b01, b23),
                    _mm256_unpacklo_epi16(b01_high, b23_high),
                    _mm256_unpackhi_epi16(b01_high, b23_high),
                ];
                for (i, values) in values.into_iter().enumerate() {
                    _mm256_storeu_si256(out.add(8 * i).cast(), values);
                }
            }
        }
    }
    whole
}

/// Looks up levels one by one, which takes two thirds of the time of gathers on Zen 3 and as much on Zen 5. Numbers are extracted
/// and levels stored together, since loads and stores bound this loop.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn look_up_one_by_one(table: &[f32; MOST], runs: Runs<'_>, out: &mut [f32]) -> usize {
    let whole = runs.len / 32 * 32;
    for run in 0..runs.starts.len() {
        let (window, out) = runs.get(run, out);
        for at in (0..whole).step_by(32) {
            // SAFETY: a step reads 35 codes of the window, which has three more than `out` has values; a number is masked to 9
            // bits.
            unsafe {
                let (window, out) = (window.as_ptr().add(at), out.as_mut_ptr().add(at));
                prefetch_for_writing(out, 32);
                let codes = _mm256_loadu_si256(window.add(MEMORY).cast());
                let bit8 = _mm256_and_si256(_mm256_srli_epi16::<7>(codes), _mm256_set1_epi8(1));
                let low = numbers_avx2(window);
                let numbers = [_mm256_unpacklo_epi8(low, bit8), _mm256_unpackhi_epi8(low, bit8)];
                for (half, numbers) in numbers.into_iter().enumerate() {
                    let quarters = [_mm256_castsi256_si128(numbers), _mm256_extracti128_si256::<1>(numbers)];
                    for (quarter, numbers) in quarters.into_iter().enumerate() {
                        let values = [_mm_cvtsi128_si64(numbers), _mm_extract_epi64::<1>(numbers)].map(|four| {
                            let [a, b, c, d] =
                                [0, 16, 32, 48].map(|at| _mm_load_ss(&table[(four >> at) as usize % MOST]));
                            _mm_movelh_ps(_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d))
                        });
                        let out = out.add(8 * half + 16 * quarter);
                        _mm256_storeu_ps(out, _mm256_set_m128(values[1], values[0]));
                    }
                }
            }
        }
    }
    whole
}

/// Distance in bytes at which outputs are prefetched.
const AHEAD: usize = 1024;

/// Prefetches the cache lines of `count` values that are written soon. A look-up takes so many instructions that few stores are
/// in flight; without the prefetch, look-ups and waits for lines alternate.
#[target_feature(enable = "avx2")]
#[inline]
fn prefetch_for_writing<T>(out: *const T, count: usize) {
    for at in (0..count * size_of::<T>()).step_by(LINE) {
        _mm_prefetch::<_MM_HINT_ET0>(out.cast::<i8>().wrapping_add(AHEAD + at));
    }
}

/// Looks up levels of any number byte by byte, as [`look_up_avx2`] does, 64 elements at a time. Half-precision levels were
/// rounded before, which is the same as after.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub fn look_up_avx512(levels: &TrellisLevels, bits: u32, runs: Runs<'_>, out: FloatsMut<'_>) -> usize {
    match out {
        FloatsMut::F32(out) => look_up_by_size(&levels.bytes, bits, runs, out),
        FloatsMut::F16(out) => look_up_by_size(&levels.bytes_f16, bits, runs, out),
        FloatsMut::BF16(out) => look_up_by_size(&levels.bytes_bf16, bits, runs, out),
    }
}

/// Chooses the code for tables of `2^(bits + 1)` levels of B bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn look_up_by_size<const B: usize, T>(tables: &[[u8; MOST]; B], bits: u32, runs: Runs<'_>, out: &mut [T]) -> usize {
    match bits {
        ..=5 => look_up_runs::<B, 1, T>(tables, runs, out),
        6 => look_up_runs::<B, 2, T>(tables, runs, out),
        7 => look_up_runs::<B, 4, T>(tables, runs, out),
        _ => look_up_runs::<B, 8, T>(tables, runs, out),
    }
}

/// Looks up in tables of 64 `PARTS` levels. Does nothing if B, 2 or 4, is not the size of `T`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[allow(unsafe_code)]
fn look_up_runs<const B: usize, const PARTS: usize, T>(
    tables: &[[u8; MOST]; B],
    runs: Runs<'_>,
    out: &mut [T],
) -> usize {
    if size_of::<T>() != B {
        return 0;
    }
    let whole = runs.len / 64 * 64;
    for run in 0..runs.starts.len() {
        let (window, out) = runs.get(run, out);
        // SAFETY: the window has three codes more than `out` has values, and those have B bytes.
        unsafe {
            for at in (0..whole).step_by(64) {
                let out = out.as_mut_ptr().add(at);
                prefetch_for_writing(out, 64);
                look_up_64::<B, PARTS>(tables, window.as_ptr().add(at), out.cast(), !0);
            }
            if whole < runs.len {
                let mask = (1 << (runs.len - whole)) - 1;
                let (window, out) = (window.as_ptr().add(whole), out.as_mut_ptr().add(whole));
                look_up_64::<B, PARTS>(tables, window, out.cast(), mask);
            }
        }
    }
    runs.len
}

/// Looks up the levels of at most 64 elements, of which there are those in the mask.
///
/// # Safety
/// There must be codes at `window` and the three places after, and B bytes at `out`, for each element.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
#[allow(unsafe_code)]
unsafe fn look_up_64<const B: usize, const PARTS: usize>(
    tables: &[[u8; MOST]; B],
    window: *const u8,
    out: *mut [u8; B],
    mask: u64,
) {
    // Where a bit of the first operand is 1, that of the second, else that of the third.
    const SELECT: i32 = 0xca;
    const XOR: i32 = 0x96;
    // The last step of putting together works in quarters of vectors: in this order the levels come out in theirs.
    let order = match B {
        4 => _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        _ => _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15),
    };
    // SAFETY: of the caller; parts are within the tables.
    unsafe {
        let [third, second, first, code] = [0, 1, 2, 3].map(|at| _mm512_maskz_loadu_epi8(mask, window.add(at).cast()));
        let parity = _mm512_ternarylogic_epi64::<XOR>(code, first, third);
        // Bits 2 to 7 of the double of the code, bit 1 of the double of the parity, bit 0 of `second`.
        let (code2, parity2) = (_mm512_add_epi8(code, code), _mm512_add_epi8(parity, parity));
        let upper = _mm512_ternarylogic_epi64::<SELECT>(_mm512_set1_epi8(!3), code2, parity2);
        let numbers = _mm512_ternarylogic_epi64::<SELECT>(_mm512_set1_epi8(!1), upper, second);
        let numbers = _mm512_permutexvar_epi32(order, numbers);
        let bit7 = _mm512_movepi8_mask(numbers);
        let bit8 = if PARTS > 4 { _mm512_movepi8_mask(_mm512_permutexvar_epi32(order, code)) } else { 0 };
        let found = tables.each_ref().map(|table| {
            let part = |at: usize| _mm512_loadu_si512(table.as_ptr().add(64 * at).cast());
            let two = |at: usize| _mm512_permutex2var_epi8(part(at), numbers, part(at + 1));
            let four = |at: usize| _mm512_mask_blend_epi8(bit7, two(at), two(at + 2));
            match PARTS {
                1 => _mm512_permutexvar_epi8(numbers, part(0)),
                2 => two(0),
                4 => four(0),
                _ => _mm512_mask_blend_epi8(bit8, four(0), four(4)),
            }
        });
        match found[..] {
            [b0, b1, b2, b3] => {
                let (b01, b23) = (_mm512_unpacklo_epi8(b0, b1), _mm512_unpacklo_epi8(b2, b3));
                let (b01_high, b23_high) = (_mm512_unpackhi_epi8(b0, b1), _mm512_unpackhi_epi8(b2, b3));
                let values = [
                    _mm512_unpacklo_epi16(b01, b23),
                    _mm512_unpackhi_epi16(b01, b23),
                    _mm512_unpacklo_epi16(b01_high, b23_high),
                    _mm512_unpackhi_epi16(b01_high, b23_high),
                ];
                for (i, values) in values.into_iter().enumerate() {
                    _mm512_mask_storeu_epi32(out.add(16 * i).cast(), (mask >> (16 * i)) as u16, values);
                }
            }
            [b0, b1] => {
                let values = [_mm512_unpacklo_epi8(b0, b1), _mm512_unpackhi_epi8(b0, b1)];
                for (i, values) in values.into_iter().enumerate() {
                    _mm512_mask_storeu_epi16(out.add(32 * i).cast(), (mask >> (32 * i)) as u32, values);
                }
            }
            _ => {} // there are tables of 2 and 4 bytes
        }
    }
}

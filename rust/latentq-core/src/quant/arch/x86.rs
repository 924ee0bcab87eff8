//! x86-64 code that the compiler does not generate from plain loops: conversion while quantizing, and look-ups by permutes.
//!
//! Each function processes whole vectors and returns the number of elements done. The caller does the rest in plain Rust;
//! property tests check that the two agree.

use std::arch::x86_64::*;

use crate::isa;
use crate::quant::floats::{Floats, FloatsMut};
use crate::quant::kernel::{Kernel, LINE, Observed};
use crate::quant::scheme::Affine;

#[target_feature(enable = "avx2,f16c,popcnt,bmi2,pclmulqdq")]
pub fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[target_feature(enable = "avx2,f16c,popcnt,bmi2,pclmulqdq")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2")]
pub fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Copies whole cache lines with non-temporal stores.
///
/// # Panics
/// If `out` is not aligned to cache lines, or the lengths differ or are not of whole lines.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn store_past_caches<T: Copy>(from: &[T], out: &mut [T]) {
    let bytes = size_of_val(from);
    assert!(from.len() == out.len() && bytes.is_multiple_of(LINE) && out.as_ptr().addr().is_multiple_of(LINE));
    let (from, out) = (from.as_ptr().cast::<u8>(), out.as_mut_ptr().cast::<u8>());
    for line in (0..bytes).step_by(LINE) {
        for at in [line, line + 32] {
            // SAFETY: both have `bytes` bytes, which are only copied, and `out` is aligned.
            unsafe { _mm256_stream_si256(out.add(at).cast(), _mm256_loadu_si256(from.add(at).cast())) };
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
#[allow(unsafe_code)]
pub fn widen_f16(bits: &[u16], out: &mut [f32]) -> usize {
    let (bits, out) = (bits.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    for (bits, out) in bits.iter().zip(out.iter_mut()) {
        // SAFETY: both are arrays of 8.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()))) };
    }
    8 * bits.len().min(out.len())
}

#[target_feature(enable = "avx2,f16c")]
#[allow(unsafe_code)]
pub fn narrow_f16(values: &[f32], out: &mut [u16]) -> usize {
    let (values, out) = (values.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    for (values, out) in values.iter().zip(out.iter_mut()) {
        // SAFETY: both are arrays of 8.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(values.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), half);
        }
    }
    8 * values.len().min(out.len())
}

/// The arithmetic of `encode::Nearest`, written to `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,popcnt")]
#[allow(unsafe_code)]
pub fn encode_avx512(affine: &Affine, x: Floats<'_>, out: &mut [u8]) -> Observed {
    let mut lines = out.chunks_mut(LINE);
    encode_lines(affine, x, |codes, _| match lines.next() {
        // No mask here: masked stores are slow, and reading their result back is slow too. SAFETY: a line is 64 bytes.
        Some(to) if to.len() == LINE => unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), codes) },
        // SAFETY: the mask selects exactly the bytes of `to`.
        Some(to) => unsafe {
            _mm512_mask_storeu_epi8(to.as_mut_ptr().cast(), u64::MAX >> (LINE - to.len()), codes);
        },
        None => {}
    })
}

/// The arithmetic of `encode::Nearest`. Calls `put` with one cache line of codes at a time, and last with the remaining
/// codes in the first bytes of a line.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,popcnt")]
#[inline]
#[allow(unsafe_code)]
pub fn encode_lines(affine: &Affine, x: Floats<'_>, put: impl FnMut(__m512i, usize)) -> Observed {
    // SAFETY: `at` is 0, 16, 32 or 48, and each load reads 16 of 64 elements; for bfloat16, 32 elements at 0 or 32.
    unsafe {
        match x {
            Floats::F32(x) => encode_vectors(affine, x, &IN_ORDER, put, |x| {
                [0, 16, 32, 48].map(|at| _mm512_loadu_ps(x.as_ptr().add(at)))
            }),
            Floats::F16(x) => encode_vectors(affine, x, &IN_ORDER, put, |x| {
                [0, 16, 32, 48].map(|at| _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().add(at).cast())))
            }),
            Floats::BF16(x) => encode_vectors(affine, x, &BY_PARITY, put, |x| {
                let [first, second] = [0, 32].map(|at| _mm512_loadu_si512(x.as_ptr().add(at).cast()));
                let odd = |pairs| _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_slli_epi32::<16>(first), odd(first), _mm512_slli_epi32::<16>(second), odd(second)]
                    .map(|x| _mm512_castsi512_ps(x))
            }),
            Floats::F64(x) => encode_vectors(affine, x, &IN_ORDER, put, |x| {
                [0, 16, 32, 48].map(|at| {
                    let half = |at| _mm512_cvtpd_ps(_mm512_loadu_pd(x.as_ptr().add(at)));
                    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(half(at)), half(at + 8))
                })
            }),
        }
    }
}

/// The positions of a line's elements after packing four vectors of 16: the instruction takes four of each vector in turn.
/// With `by_parity`, the first two vectors have the even and the odd elements of the first half, and so on.
const fn packed_places(by_parity: bool) -> [u8; LINE] {
    let mut positions = [0; LINE];
    let mut i = 0;
    while i < LINE {
        let (vector, lane) = if by_parity { (i / 32 * 2 + i % 2, i % 32 / 2) } else { (i / 16, i % 16) };
        positions[i] = (16 * (lane / 4) + 4 * vector + lane % 4) as u8;
        i += 1;
    }
    positions
}
const IN_ORDER: [u8; LINE] = packed_places(false);
const BY_PARITY: [u8; LINE] = packed_places(true);

/// Prefetch distance in bytes. The hardware prefetcher stops at page boundaries.
const AHEAD: usize = 2048;

/// Class mask: quiet and signaling NaN, both infinities.
const NOT_FINITE: i32 = 0x99;

/// Encodes whole vectors. `load` widens a line of values to f32, and `positions` has the positions of their codes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,popcnt")]
#[inline]
#[allow(unsafe_code)]
fn encode_vectors<T: Copy>(
    affine: &Affine,
    x: &[T],
    positions: &[u8; LINE],
    mut put: impl FnMut(__m512i, usize),
    load: impl Fn(&[T; LINE]) -> [__m512; 4],
) -> Observed {
    let (low, high) = (_mm512_set1_ps(affine.low), _mm512_set1_ps(affine.high));
    let inverse_step = _mm512_set1_ps(affine.inverse_step);
    let last_code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(high, low), inverse_step));
    // Hidden from the compiler, which would replace a constant index by several permutes. SAFETY: an array of 64 bytes.
    let positions = unsafe { _mm512_loadu_si512(std::hint::black_box(positions).as_ptr().cast()) };
    let (mut inside, mut sums) = (0, [_mm512_setzero_ps(); 4]);
    let mut encode = |x: &[T; LINE]| {
        let x = load(x);
        let mut last = 0;
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| {
            let below_high = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(x[i], high);
            last = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(below_high, x[i], low);
            inside += u64::from(last.count_ones());
            sums[i] = _mm512_add_ps(sums[i], x[i]);
            // Values below low become negative (saturating), and packing turns negative integers into 0.
            let code = _mm512_mul_ps(_mm512_sub_ps(x[i], low), inverse_step);
            _mm512_mask_cvtps_epi32(last_code, below_high, code)
        });
        let words = [_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)];
        (_mm512_permutexvar_epi8(positions, _mm512_packus_epi16(words[0], words[1])), last >> 15)
    };
    let (lines, rest) = x.as_chunks::<LINE>();
    for x in lines {
        let codes = encode(x).0;
        for line in 0..size_of::<T>() {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast::<i8>().wrapping_add(AHEAD + LINE * line));
        }
        put(codes, LINE);
    }
    let last_line = rest.last().map(|last| {
        let mut line = [*last; LINE];
        line[..rest.len()].copy_from_slice(rest);
        line
    });
    if let Some(line) = &last_line {
        let (codes, last_is_inside) = encode(line);
        put(codes, rest.len());
        inside -= (LINE - rest.len()) as u64 * u64::from(last_is_inside);
    }
    // NaN and infinity persist in a sum, but the sum may also overflow: if it is not finite, check the values.
    let [a, b, c, d] = sums;
    let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    let mut finite = _mm512_fpclass_ps_mask::<NOT_FINITE>(sum) == 0;
    if !finite {
        let line_finite = |x| load(x).into_iter().all(|x| _mm512_fpclass_ps_mask::<NOT_FINITE>(x) == 0);
        finite = lines.iter().all(line_finite) && last_line.as_ref().is_none_or(line_finite);
    }
    Observed { outside: x.len() as u64 - inside, finite }
}

/// True if no decoded value other than 0 is so small that the bfloat16 instruction, which flushes subnormals, makes it 0:
/// |code + zero| is 0 or at least 2^-24 (the precision of f32 from 0.5 on), or the code is 0, which decodes to low.
fn is_coarse(affine: &Affine) -> bool {
    affine.step >= 1e-30 && (affine.low == 0.0 || affine.low.abs() >= 1e-37)
}

/// The arithmetic of `decode::Scale`, rounded by the bfloat16 instruction: half of the work.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code)]
fn decode_bfloat16(affine: &Affine, codes: &[u8], out: &mut [u16]) -> usize {
    let (zero, step) = (_mm512_set1_ps(affine.zero), _mm512_set1_ps(affine.step));
    let (codes, out) = (codes.as_chunks::<32>().0, out.as_chunks_mut::<32>().0);
    for (codes, out) in codes.iter().zip(out.iter_mut()) {
        let [low, high] = [0, 16].map(|at| {
            // SAFETY: reads 16 of an array of 32 bytes.
            let codes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().add(at).cast()) });
            _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(codes), zero), step)
        });
        // SAFETY: the vector and the array of 32 are both 64 bytes.
        unsafe { out.as_mut_ptr().cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low)) };
    }
    32 * codes.len().min(out.len())
}

/// The arithmetic of `decode::Scale`, rounded as `Float::narrow` does.
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code)]
pub fn decode_avx512(affine: &Affine, codes: &[u8], out: FloatsMut<'_>) -> usize {
    let (zero, step) = (_mm512_set1_ps(affine.zero), _mm512_set1_ps(affine.step));
    let decode = |codes: &[u8; 16]| {
        // SAFETY: an array of 16 bytes.
        let codes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
        _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(codes), zero), step)
    };
    // SAFETY: each store writes an array of 16.
    unsafe {
        match out {
            FloatsMut::F32(out) => {
                each_vector(codes, out, |codes, out| _mm512_storeu_ps(out.as_mut_ptr(), decode(codes)))
            }
            FloatsMut::F16(out) => each_vector(codes, out, |codes, out| {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(decode(codes));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
            }),
            FloatsMut::BF16(out) if isa::has_bfloat16() && is_coarse(affine) => decode_bfloat16(affine, codes, out),
            // Round half to even; a code never decodes to NaN.
            FloatsMut::BF16(out) => each_vector(codes, out, |codes, out| {
                let bits = _mm512_castps_si512(decode(codes));
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), upper);
            }),
        }
    }
}

/// Calls `work` for every 16 codes and their values, aligned to cache lines: the head and the tail are done by vectors that
/// overlap their neighbors. Returns the number of elements done: all, or 0 if there are fewer than 16.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn each_vector<T>(codes: &[u8], out: &mut [T], work: impl Fn(&[u8; 16], &mut [T; 16])) -> usize {
    let (Some(first), Some(first_out)) = (codes.first_chunk(), out.first_chunk_mut()) else {
        return 0;
    };
    work(first, first_out);
    let head = out.as_ptr().align_offset(16 * size_of::<T>()).min(16);
    for (codes, out) in codes[head..].as_chunks().0.iter().zip(out[head..].as_chunks_mut().0) {
        work(codes, out);
    }
    if let (Some(last), Some(last_out)) = (codes.last_chunk(), out.last_chunk_mut()) {
        work(last, last_out);
    }
    out.len()
}

/// Looks up in tables of 16 levels: two permutes of 8, selected by bit 3 of the code.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn look_up_avx2(table: &[f32; 256], codes: &[u8], out: &mut [f32]) -> usize {
    let (codes, out) = (codes.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    // SAFETY: the table has 256 elements; codes and out are arrays of 8.
    unsafe {
        let (low, high) = (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8)));
        for (codes, out) in codes.iter().zip(out.iter_mut()) {
            let index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast()));
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            let (a, b) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(a, b, upper));
        }
    }
    8 * codes.len().min(out.len())
}

/// Looks up 64 codes at a time: the four bytes of the levels are four tables of 256 bytes, each in four registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[allow(unsafe_code)]
pub fn look_up_avx512(table: &[f32; 256], codes: &[u8], out: &mut [f32]) -> usize {
    let mut bytes = [[0u8; 256]; 4];
    for (code, level) in table.iter().enumerate() {
        for (bytes, byte) in bytes.iter_mut().zip(level.to_le_bytes()) {
            bytes[code] = byte;
        }
    }
    let (codes, out) = (codes.as_chunks::<64>().0, out.as_chunks_mut::<64>().0);
    // SAFETY: each table has 256 bytes; codes and out are arrays of 64.
    unsafe {
        let tables = bytes.map(|bytes| [0, 64, 128, 192].map(|at| _mm512_loadu_si512(bytes.as_ptr().add(at).cast())));
        for (codes, out) in codes.iter().zip(out.iter_mut()) {
            let index = _mm512_loadu_si512(codes.as_ptr().cast());
            let upper = _mm512_movepi8_mask(index);
            let [a, b, c, d] = tables.map(|[t0, t1, t2, t3]| {
                let (lower_half, upper_half) =
                    (_mm512_permutex2var_epi8(t0, index, t1), _mm512_permutex2var_epi8(t2, index, t3));
                _mm512_mask_blend_epi8(upper, lower_half, upper_half)
            });
            // Interleave bytes to words to floats, within lanes of 16 codes.
            let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            let quarters = [
                _mm512_unpacklo_epi16(ab_low, cd_low),
                _mm512_unpackhi_epi16(ab_low, cd_low),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ];
            // quarters[q] has codes 16 l + 4 q .. + 4 in lane l: transpose 4 x 4 lanes.
            let [q0, q1, q2, q3] = quarters;
            let (r0, r1) = (_mm512_shuffle_i32x4::<0x44>(q0, q1), _mm512_shuffle_i32x4::<0x44>(q2, q3));
            let (r2, r3) = (_mm512_shuffle_i32x4::<0xee>(q0, q1), _mm512_shuffle_i32x4::<0xee>(q2, q3));
            let rows = [
                _mm512_shuffle_i32x4::<0x88>(r0, r1),
                _mm512_shuffle_i32x4::<0xdd>(r0, r1),
                _mm512_shuffle_i32x4::<0x88>(r2, r3),
                _mm512_shuffle_i32x4::<0xdd>(r2, r3),
            ];
            for (row, at) in rows.into_iter().zip([0, 16, 32, 48]) {
                _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), row);
            }
        }
    }
    64 * codes.len().min(out.len())
}

/// Binary search: row k of the tree, from node 2^k on, is in registers, and permutes select from it.
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code)]
pub fn search_avx512(tree: &[f32; 256], bits: u32, x: &[f32], out: &mut [u8]) -> usize {
    let (x, out) = (x.as_chunks::<16>().0, out.as_chunks_mut::<16>().0);
    // SAFETY: node + 16 is at most 256 for every row and part; x and out are arrays of 16.
    unsafe {
        let part = |row: u32, index: usize| _mm512_loadu_ps(tree.as_ptr().add((1 << row) + 16 * index));
        let small = [0, 1, 2, 3, 4].map(|row| part(row, 0));
        let level5 = [0, 1].map(|index| part(5, index));
        let level6 = [0, 1, 2, 3].map(|index| part(6, index));
        let level7 = [0, 1, 2, 3, 4, 5, 6, 7].map(|index| part(7, index));
        let one = _mm512_set1_epi32(1);
        for (x, out) in x.iter().zip(out.iter_mut()) {
            let x = _mm512_loadu_ps(x.as_ptr());
            let mut code = _mm512_setzero_si512();
            let descend = |code: __m512i, bound: __m512| {
                let right = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, bound);
                let doubled = _mm512_add_epi32(code, code);
                _mm512_mask_add_epi32(doubled, right, doubled, one)
            };
            for level in small.iter().take(bits as usize) {
                code = descend(code, _mm512_permutexvar_ps(code, *level));
            }
            if bits > 5 {
                code = descend(code, _mm512_permutex2var_ps(level5[0], code, level5[1]));
            }
            if bits > 6 {
                let halves = [0, 2].map(|at| _mm512_permutex2var_ps(level6[at], code, level6[at + 1]));
                let bit5 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(32));
                code = descend(code, _mm512_mask_blend_ps(bit5, halves[0], halves[1]));
            }
            if bits > 7 {
                let quarters = [0, 2, 4, 6].map(|at| _mm512_permutex2var_ps(level7[at], code, level7[at + 1]));
                let bit5 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(32));
                let bit6 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(64));
                let low = _mm512_mask_blend_ps(bit5, quarters[0], quarters[1]);
                let high = _mm512_mask_blend_ps(bit5, quarters[2], quarters[3]);
                code = descend(code, _mm512_mask_blend_ps(bit6, low, high));
            }
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code));
        }
    }
    16 * x.len().min(out.len())
}

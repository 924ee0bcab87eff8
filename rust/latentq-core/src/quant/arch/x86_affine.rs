//! The affine scheme with AVX2, to and from every float type.

use std::arch::x86_64::*;

use crate::quant::floats::{Floats, FloatsMut};
use crate::quant::kernel::Observed;
use crate::quant::scheme::Affine;

/// Values that become one vector of codes.
const CODES: usize = 32;

/// Prefetch distance in bytes. The hardware prefetcher stops at page boundaries.
const AHEAD: usize = 512;

/// The arithmetic of `encode::Nearest`. Returns the number of elements done, in whole vectors of codes.
#[target_feature(enable = "avx2,f16c")]
#[allow(unsafe_code)]
pub fn encode_avx2(affine: &Affine, x: Floats<'_>, out: &mut [u8]) -> (usize, Observed) {
    // SAFETY: each load reads 8 of 32 elements; for bfloat16, 16 elements at 0 or 16.
    unsafe {
        match x {
            Floats::F32(x) => encode_vectors(
                affine,
                x,
                out,
                |codes| join(codes),
                |x| [0, 8, 16, 24].map(|at| _mm256_loadu_ps(x.as_ptr().add(at))),
            ),
            Floats::F16(x) => encode_vectors(
                affine,
                x,
                out,
                |codes| join(codes),
                |x| [0, 8, 16, 24].map(|at| _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(at).cast()))),
            ),
            Floats::BF16(x) => encode_vectors(
                affine,
                x,
                out,
                |codes| join_pairs(codes),
                |x| {
                    let [first, second] = [0, 16].map(|at| _mm256_loadu_si256(x.as_ptr().add(at).cast()));
                    let odd = |pairs| _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                    [_mm256_slli_epi32::<16>(first), odd(first), _mm256_slli_epi32::<16>(second), odd(second)]
                        .map(|x| _mm256_castsi256_ps(x))
                },
            ),
            Floats::F64(x) => encode_vectors(
                affine,
                x,
                out,
                |codes| join(codes),
                |x| {
                    [0, 8, 16, 24].map(|at| {
                        let half = |at| _mm256_cvtpd_ps(_mm256_loadu_pd(x.as_ptr().add(at)));
                        _mm256_set_m128(half(at + 4), half(at))
                    })
                },
            ),
        }
    }
}

/// Codes as 32-bit integers, in order, to bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn join([a, b, c, d]: [__m256i; 4]) -> __m256i {
    // The instructions take four of each vector in turn.
    let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// The same for codes of even places, of odd ones, and these again of the second half.
#[target_feature(enable = "avx2")]
#[inline]
fn join_pairs([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let words = |even, odd| _mm256_or_si256(even, _mm256_slli_epi32::<16>(odd));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(words(a, b), words(c, d)))
}

/// Encodes whole vectors. `load` widens values to f32, and `join` makes bytes of their codes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
#[allow(unsafe_code)]
fn encode_vectors<T: Copy>(
    affine: &Affine,
    x: &[T],
    out: &mut [u8],
    join: impl Fn([__m256i; 4]) -> __m256i,
    load: impl Fn(&[T; CODES]) -> [__m256; 4],
) -> (usize, Observed) {
    let (low, high) = (_mm256_set1_ps(affine.low), _mm256_set1_ps(affine.high));
    let inverse_step = _mm256_set1_ps(affine.inverse_step);
    let (mut outside, mut sums) = ([_mm256_setzero_si256(); 2], [_mm256_setzero_ps(); 4]);
    let (x, out) = (x.as_chunks::<CODES>().0, out.as_chunks_mut::<CODES>().0);
    let count = x.len().min(out.len());
    for (x, out) in x.iter().zip(out.iter_mut()) {
        for line in 0..(size_of::<T>() * CODES).div_ceil(64) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast::<i8>().wrapping_add(AHEAD + 64 * line));
        }
        let x = load(x);
        let codes = [0, 1, 2, 3].map(|i| {
            // Of two operands, one a NaN, the instructions return the second: NaN becomes low.
            let inside = _mm256_max_ps(_mm256_min_ps(high, x[i]), low);
            let differs = _mm256_cmp_ps::<_CMP_NEQ_UQ>(inside, x[i]);
            outside[i % 2] = _mm256_sub_epi32(outside[i % 2], _mm256_castps_si256(differs));
            sums[i] = _mm256_add_ps(sums[i], x[i]);
            _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(inside, low), inverse_step))
        });
        // SAFETY: an array of 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), join(codes)) };
    }
    // NaN and infinity persist in a sum, but the sum may also overflow: if it is not finite, check the values.
    let [a, b, c, d] = sums;
    let finite = all_finite(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)))
        || x[..count].iter().all(|x| load(x).into_iter().all(|x| all_finite(x)));
    let mut lanes = [0u32; 8];
    // SAFETY: an array of 8. Each lane counts at most half of `encode::CHUNK` values.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(outside[0], outside[1])) };
    (CODES * count, Observed { outside: lanes.iter().map(|lane| u64::from(*lane)).sum(), finite })
}

#[target_feature(enable = "avx2")]
#[inline]
fn all_finite(x: __m256) -> bool {
    let difference = _mm256_sub_ps(x, x); // 0, or NaN
    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(difference, difference)) == 0
}

/// The arithmetic of `decode::Scale`, rounded as `Float::narrow` does. Returns the number of elements done, in whole vectors.
#[target_feature(enable = "avx2,f16c")]
#[allow(unsafe_code)]
pub fn decode_avx2(affine: &Affine, codes: &[u8], out: FloatsMut<'_>) -> usize {
    let (zero, step) = (_mm256_set1_ps(affine.zero), _mm256_set1_ps(affine.step));
    // The codes of even places of 16, as 32-bit integers.
    let places =
        _mm256_or_si256(_mm256_set1_epi32(0x8080_8000_u32 as i32), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    let scale = |codes| _mm256_mul_ps(_mm256_add_ps(_mm256_cvtepi32_ps(codes), zero), step);
    // SAFETY: each load reads 8 of an array of 32 or 16 codes, and each store writes as many values.
    unsafe {
        match out {
            FloatsMut::F32(out) => each_vector::<f32, 32>(codes, out, |codes, out| {
                for at in [0, 8, 16, 24] {
                    let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().add(at).cast()));
                    _mm256_storeu_ps(out.as_mut_ptr().add(at), scale(codes));
                }
            }),
            FloatsMut::F16(out) => each_vector::<u16, 32>(codes, out, |codes, out| {
                for at in [0, 8, 16, 24] {
                    let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().add(at).cast()));
                    let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scale(codes));
                    _mm_storeu_si128(out.as_mut_ptr().add(at).cast(), half);
                }
            }),
            FloatsMut::BF16(out) => each_vector::<u16, 16>(codes, out, |codes, out| {
                // Round half to even; a code never decodes to NaN.
                let round = |x| {
                    let bits = _mm256_castps_si256(x);
                    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                    _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)))
                };
                let codes = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.as_ptr().cast()));
                let even = round(scale(_mm256_shuffle_epi8(codes, places)));
                let odd = round(scale(_mm256_shuffle_epi8(codes, _mm256_add_epi32(places, _mm256_set1_epi32(1)))));
                let upper = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), upper);
            }),
        }
    }
}

/// Calls `work` for every N codes and their values. Returns the number of elements done.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn each_vector<T, const N: usize>(codes: &[u8], out: &mut [T], work: impl Fn(&[u8; N], &mut [T; N])) -> usize {
    let (codes, out) = (codes.as_chunks().0, out.as_chunks_mut().0);
    let count = codes.len().min(out.len());
    codes.iter().zip(out).for_each(|(codes, out)| work(codes, out));
    N * count
}

//! The affine scheme with AVX2, to and from every float type.

use std::arch::x86_64::*;

use crate::quant::floats::{Floats, FloatsMut};
use crate::quant::kernel::{Observed, ROUND};
use crate::quant::scheme::Affine;

/// Values that become one vector of codes.
const CODES: usize = 32;

/// Prefetch distance in bytes. The hardware prefetcher stops at page boundaries.
const AHEAD: usize = 4096;

/// The arithmetic of `encode::Nearest`. Returns the number of elements done: all whole vectors of codes, or none. With `PAST`,
/// stores bypass the caches.
///
/// # Panics
/// With `PAST`, if `out` is not aligned to 16 bytes.
#[target_feature(enable = "avx2,f16c,popcnt")]
#[allow(unsafe_code)]
pub fn encode_avx2<const PAST: bool>(affine: &Affine, x: Floats<'_>, out: &mut [u8]) -> (usize, Observed) {
    // SAFETY: each load reads 8 of 32 elements; for bfloat16, 16 elements at 0 or 16.
    unsafe {
        match x {
            Floats::F32(x) => encode_vectors::<_, PAST>(
                affine,
                x,
                out,
                |codes| join(codes),
                |x| [0, 8, 16, 24].map(|at| _mm256_loadu_ps(x.as_ptr().add(at))),
            ),
            Floats::F16(x) => encode_vectors::<_, PAST>(
                affine,
                x,
                out,
                |codes| join(codes),
                |x| [0, 8, 16, 24].map(|at| _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(at).cast()))),
            ),
            Floats::BF16(x) => encode_vectors::<_, PAST>(
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
            Floats::F64(x) => encode_vectors::<_, PAST>(
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

/// Codes as 32-bit integers of any size, in order, to the nearest bytes.
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
    let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    let places = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(bytes, places))
}

/// Encodes whole vectors. `load` widens values to f32, and `join` makes bytes of their codes. Does nothing if a value is a NaN or
/// infinite, or is 2^31 steps or more from low: then plain code does it all.
///
/// Comparisons, minima and multiplications share two units of the processor, and additions have two others: values outside are
/// found by the signs of differences, and codes are clamped by the instructions that pack them (0.7 of the time on a Zen 5).
#[target_feature(enable = "avx2,f16c,popcnt")]
#[inline]
#[allow(unsafe_code)]
fn encode_vectors<T: Copy, const PAST: bool>(
    affine: &Affine,
    x: &[T],
    out: &mut [u8],
    join: impl Fn([__m256i; 4]) -> __m256i,
    load: impl Fn(&[T; CODES]) -> [__m256; 4],
) -> (usize, Observed) {
    assert!(!PAST || out.as_ptr().addr().is_multiple_of(16));
    // Zeros whose difference from an equal bound is not -0.0.
    let (low, high) = (if affine.low == 0.0 { -0.0 } else { affine.low }, affine.high + 0.0);
    let last_code = ((affine.high - affine.low) * affine.inverse_step + ROUND).to_bits() as u8;
    let (low, high, last_code) = (_mm256_set1_ps(low), _mm256_set1_ps(high), _mm256_set1_epi8(last_code as i8));
    let inverse_step = _mm256_set1_ps(affine.inverse_step);
    let (mut outside, mut least) = (0, [_mm256_setzero_si256(); 2]);
    let (x, out) = (x.as_chunks::<CODES>().0, out.as_chunks_mut::<CODES>().0);
    let count = x.len().min(out.len());
    for (x, out) in x.iter().zip(out.iter_mut()) {
        for line in 0..(size_of::<T>() * CODES).div_ceil(64) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast::<i8>().wrapping_add(AHEAD + 64 * line));
        }
        let mut signs = [_mm256_setzero_si256(); 4];
        let x = load(x);
        let codes = [0, 1, 2, 3].map(|i| {
            let (above_low, below_high) = (_mm256_sub_ps(x[i], low), _mm256_sub_ps(high, x[i]));
            signs[i] = _mm256_castps_si256(_mm256_or_ps(above_low, below_high));
            let code = _mm256_cvtps_epi32(_mm256_mul_ps(above_low, inverse_step));
            least[i % 2] = _mm256_min_epi32(least[i % 2], code);
            code
        });
        let [a, b, c, d] = signs;
        let signs = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        outside += u64::from(_mm256_movemask_epi8(signs).count_ones());
        let codes = _mm256_min_epu8(join(codes), last_code);
        let out: *mut u8 = out.as_mut_ptr();
        // SAFETY: an array of 32 bytes; with `PAST` at a multiple of 16 from an aligned start.
        unsafe {
            if PAST {
                _mm_stream_si128(out.cast(), _mm256_castsi256_si128(codes));
                _mm_stream_si128(out.add(16).cast(), _mm256_extracti128_si256::<1>(codes));
            } else {
                _mm256_storeu_si256(out.cast(), codes);
            }
        }
    }
    // The conversion gives this number for NaN, and for values that no 32-bit integer has.
    let strange = _mm256_cmpeq_epi32(_mm256_min_epi32(least[0], least[1]), _mm256_set1_epi32(i32::MIN));
    if _mm256_testz_si256(strange, strange) == 0 {
        return (0, Observed::NOTHING);
    }
    (CODES * count, Observed { outside, finite: true })
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
            FloatsMut::BF16(out) => {
                let pairs = |codes: &[u8; 16]| {
                    let codes = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.as_ptr().cast()));
                    let odd_places = _mm256_add_epi32(places, _mm256_set1_epi32(1));
                    [places, odd_places].map(|places| _mm256_castps_si256(scale(_mm256_shuffle_epi8(codes, places))))
                };
                let put = |out: &mut [u16; 16], [even, odd]: [__m256i; 2]| {
                    let upper = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd);
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), upper);
                };
                let half = _mm256_set1_epi32(0x8000);
                // A code never decodes to NaN.
                if affine.has_ties {
                    return each_vector(codes, out, |codes, out| {
                        // Half to even.
                        let last_bit = |bits| _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                        let below_half = _mm256_set1_epi32(0x7fff);
                        let round = |bits| _mm256_add_epi32(bits, _mm256_add_epi32(last_bit(bits), below_half));
                        put(out, pairs(codes).map(round));
                    });
                }
                each_vector(codes, out, |codes, out| put(out, pairs(codes).map(|bits| _mm256_add_epi32(bits, half))))
            }
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

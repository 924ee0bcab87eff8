//! Packing and unpacking codes, 32 at a time, or 64 with AVX-512.

use std::arch::x86_64::*;

/// Codes of one vector.
const CODES: usize = 32;

/// Packs codes of BITS bits, at most 7. Returns the number of codes done, a multiple of 32.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn pack_avx2<const BITS: usize>(codes: &[u8], out: &mut [u8]) -> usize {
    let pair = _mm256_set1_epi16(1 | 1 << (8 + BITS));
    let four = _mm256_set1_epi32(1 | 1 << (16 + 2 * BITS));
    let apart = 32 - 4 * BITS as i64;
    let left = _mm256_set1_epi64x(apart);
    // The lowest BITS bytes of both halves of a lane.
    let mut places = [0x80u8; 16];
    for (i, place) in places[..2 * BITS].iter_mut().enumerate() {
        *place = (i % BITS + 8 * (i / BITS)) as u8;
    }
    // SAFETY: an array of 16.
    let places = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(places.as_ptr().cast()) });
    // Each half of a vector writes 16 bytes, of which the last are overwritten by what follows.
    let room = out.len().saturating_sub(2 * BITS + 16) / (4 * BITS) + usize::from(out.len() >= 2 * BITS + 16);
    let count = room.min(codes.len() / CODES);
    for (at, codes) in codes.as_chunks::<CODES>().0[..count].iter().enumerate() {
        // SAFETY: 32 codes; and by `room`, 16 bytes from the second half's start on are in `out`.
        unsafe {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            // Two codes to a word, four to a double word, eight to the lowest bits of a quad word.
            let fours = _mm256_madd_epi16(_mm256_maddubs_epi16(pair, codes), four);
            let eight = _mm256_srl_epi64(_mm256_sllv_epi32(fours, left), _mm_cvtsi64_si128(apart));
            let bytes = _mm256_shuffle_epi8(eight, places);
            let to = out.as_mut_ptr().add(4 * BITS * at);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
            _mm_storeu_si128(to.add(2 * BITS).cast(), _mm256_extracti128_si256::<1>(bytes));
        }
    }
    CODES * count
}

/// Unpacks codes of BITS bits, at most 7. Returns the number of codes done, a multiple of 32.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub fn unpack_avx2<const BITS: usize>(packed: &[u8], out: &mut [u8]) -> usize {
    // Of code i of eight: the two bytes that it lies in, and the factor that moves it to the upper byte of a word.
    let (mut places, mut factors) = ([0u8; 16], [0u16; 8]);
    for i in 0..8 {
        let (byte, bit) = (i * BITS / 8, i * BITS % 8);
        (places[2 * i], places[2 * i + 1]) = (byte as u8, byte as u8 + 1);
        factors[i] = 1 << (8 - bit);
    }
    // SAFETY: arrays of 16 bytes.
    let (places, factors) = unsafe {
        let load = |from: *const u8| _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
        (load(places.as_ptr()), load(factors.as_ptr().cast()))
    };
    let next = _mm256_add_epi8(places, _mm256_set1_epi8(BITS as i8));
    let mask = _mm256_set1_epi8(((1u32 << BITS) - 1) as i8);
    // Each half of a vector reads 16 bytes.
    let room = packed.len().saturating_sub(2 * BITS + 16) / (4 * BITS) + usize::from(packed.len() >= 2 * BITS + 16);
    let count = room.min(out.len() / CODES);
    for (at, out) in out.as_chunks_mut::<CODES>().0[..count].iter_mut().enumerate() {
        // SAFETY: by `room`, 16 bytes from the second half's start on are in `packed`; 32 codes.
        unsafe {
            let from = packed.as_ptr().add(4 * BITS * at);
            let halves = _mm256_loadu2_m128i(from.add(2 * BITS).cast(), from.cast());
            let words =
                |places| _mm256_srli_epi16::<8>(_mm256_mullo_epi16(_mm256_shuffle_epi8(halves, places), factors));
            let codes = _mm256_and_si256(_mm256_packus_epi16(words(places), words(next)), mask);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), codes);
        }
    }
    CODES * count
}

/// Unpacks codes of BITS bits, at most 7: the bytes of each eight codes are moved to a quad word, and the codes are cut out of it.
/// Returns the number of codes done, all in whole groups of eight.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[allow(unsafe_code)]
pub fn unpack_avx512<const BITS: usize>(packed: &[u8], out: &mut [u8]) -> usize {
    let groups = (out.len() / 8).min(packed.len() / BITS);
    let places: [u8; 64] = std::array::from_fn(|at| (at / 8 * BITS + at % 8) as u8);
    let shifts: [u8; 64] = std::array::from_fn(|at| (at % 8 * BITS) as u8);
    let code = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
    // SAFETY: arrays of 64; `now` groups from `first` on are in `packed` and in `out`, and masks let no more through. Without a
    // mask, there are 64 bytes.
    unsafe {
        let [places, shifts] = [places, shifts].map(|bytes| _mm512_loadu_si512(bytes.as_ptr().cast()));
        for first in (0..groups).step_by(8) {
            let now = (groups - first).min(8);
            let (from, to) = (packed.as_ptr().add(BITS * first), out.as_mut_ptr().add(8 * first));
            // Masks only at the end: the decoder waits for what a masked store wrote.
            let bytes = if packed.len() - BITS * first >= 64 {
                _mm512_loadu_si512(from.cast())
            } else {
                _mm512_maskz_loadu_epi8(u64::MAX >> (64 - BITS * now), from.cast())
            };
            let eights = _mm512_permutexvar_epi8(places, bytes);
            let codes = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, eights), code);
            if now == 8 {
                _mm512_storeu_si512(to.cast(), codes);
            } else {
                _mm512_mask_storeu_epi8(to.cast(), u64::MAX >> (64 - 8 * now), codes);
            }
        }
    }
    8 * groups
}

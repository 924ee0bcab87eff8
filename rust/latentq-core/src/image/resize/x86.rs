//! Resize kernels of x86-64. A 23-bit weight is split into digits that multiply-add instructions accept: two 16-bit digits
//! for `pmaddwd` (this file), three 8-bit digits for `vpdpbusd` (`x86_vnni`).

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::weights::{Axis, GROUP, HALF, PRECISION, Weights};

/// A cache line, which is one 512-bit vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [u8; 64]);

pub const ZERO: Line = Line([0; 64]);

/// The low and the high digit of a weight, each in -32768..=32767.
fn words_of(weight: i32) -> [[u8; 2]; 2] {
    let low = weight as i16;
    let high = ((weight - i32::from(low)) >> 16) as i16;
    [low.to_le_bytes(), high.to_le_bytes()]
}

/// Both digits of two weights: for each digit, the pair that fills every 32 bits of a vector.
fn word_pair(first: i32, second: i32) -> [i32; 2] {
    let (first, second) = (words_of(first), words_of(second));
    [0, 1].map(|digit| {
        let [a, b] = [first[digit], second[digit]];
        i32::from_le_bytes([a[0], a[1], b[0], b[1]])
    })
}

/// Computes the weights of an axis, compiled for AVX2.
pub fn weights(axis: &Axis) -> Vec<i32> {
    #[target_feature(enable = "avx2")]
    fn compiled(axis: &Axis) -> Vec<i32> {
        axis.values()
    }
    // SAFETY: this kernel is only chosen if the processor supports its instructions.
    unsafe { compiled(axis) }
}

// Shift counts must be literals.
const _: () = assert!(PRECISION == 22);

pub fn weight(weights: &[i32], index: usize) -> i32 {
    weights.get(index).copied().unwrap_or(0)
}

macro_rules! load {
    ($intrinsic:ident, $bytes:expr, $at:expr, $length:literal) => {{
        let bytes: &[u8] = &$bytes[$at..$at + $length];
        // SAFETY: the slice has just been cut to the length that is read.
        unsafe { $intrinsic(bytes.as_ptr().cast()) }
    }};
}

macro_rules! store {
    ($intrinsic:ident, $bytes:expr, $at:expr, $length:literal, $value:expr) => {{
        let bytes: &mut [u8] = &mut $bytes[$at..$at + $length];
        // SAFETY: the slice has just been cut to the length that is written.
        unsafe { $intrinsic(bytes.as_mut_ptr().cast(), $value) }
    }};
}

pub(super) use {load, store};

/// Asserts that each row of `out` has `count` pixels, and that from each row's start, `stride` bytes after the one before,
/// `reach` bytes of `input` can be read.
pub fn check_rows(input: &[u8], stride: usize, reach: usize, out: &[u8], width: usize, count: usize) {
    let rows = out.len() / width;
    let end = stride.checked_mul(rows - 1).and_then(|last| last.checked_add(reach));
    assert!(end.is_some_and(|end| end <= input.len()) && width == 3 * count && rows * width == out.len());
}

// Horizontal: each 128 bits of a vector are one row, and each 32 bits two taps of one channel.

/// Output pixels that are computed together.
const BLOCK: usize = 4;

/// The weights of a horizontal pass in the layout of `pmaddwd`.
pub struct Pairs {
    /// For each output pixel, the first byte that it reads. Padded to whole blocks.
    offsets: Vec<usize>,
    /// For each output pixel, both digits of `pairs` pairs of taps.
    digits: Vec<i32>,
    pairs: usize,
    /// Bytes of a row that are read.
    reach: usize,
    /// Number of output pixels.
    count: usize,
}

impl Pairs {
    pub fn new(weights: &Weights) -> Self {
        let first = weights.inputs().start;
        let pairs = weights.longest().div_ceil(2);
        let count = weights.starts.len();
        let padded = count.next_multiple_of(BLOCK);
        let mut offsets: Vec<usize> = weights.starts.iter().map(|start| (start - first) * 3).collect();
        offsets.resize(padded, offsets.last().copied().unwrap_or(0));
        let mut digits = Vec::with_capacity(padded * pairs * 2);
        for (_, values) in weights.iter() {
            digits
                .extend((0..pairs).flat_map(|pair| word_pair(weight(values, 2 * pair), weight(values, 2 * pair + 1))));
        }
        digits.resize(padded * pairs * 2, 0);
        let last = pairs.div_ceil(2).saturating_sub(1) * 12 + 16;
        let reach = offsets.iter().max().map_or(0, |offset| offset + last);
        Self { offsets, digits, pairs, reach, count }
    }

    pub fn reach(&self) -> usize {
        self.reach
    }

    /// Resamples one to four rows.
    pub fn rows(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        check_rows(input, stride, self.reach, out, width, self.count);
        // SAFETY: this kernel is only chosen if the processor supports its instructions, and the sizes have been checked.
        unsafe {
            match self.pairs {
                1 => self.group::<1>(input, stride, out, width),
                2 => self.group::<2>(input, stride, out, width),
                3 => self.group::<3>(input, stride, out, width),
                4 => self.group::<4>(input, stride, out, width),
                5 => self.group::<5>(input, stride, out, width),
                6 => self.group::<6>(input, stride, out, width),
                _ => self.group::<0>(input, stride, out, width),
            }
        }
    }

    /// `PAIRS` is the number of pairs, or 0 if it is only known when this runs.
    ///
    /// # Safety
    /// As [`check_rows`] has checked for up to four rows.
    #[target_feature(enable = "avx2")]
    unsafe fn group<const PAIRS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let pairs = if PAIRS == 0 { self.pairs } else { PAIRS };
        // If there are fewer rows, the last one is computed again.
        let last = out.len() / width - 1;
        let numbers = [0, 1, 2, 3].map(|row: usize| row.min(last));
        let rows = numbers.map(|row| input[row * stride..][..self.reach].as_ptr());
        let (spread, compact) = (spread(), compact());
        let blocks = self.offsets.chunks_exact(BLOCK).zip(self.digits.chunks_exact(BLOCK * pairs * 2));
        for (index, (offsets, digits)) in blocks.enumerate() {
            for row in rows {
                ahead(row, offsets[0] + GROUP * stride);
            }
            let mut words = [_mm256_setzero_si256(); BLOCK];
            for pixel in 0..BLOCK {
                let digits = &digits[pixel * pairs * 2..][..pairs * 2];
                // SAFETY: a row has `reach` bytes, which no offset and group exceeds.
                words[pixel] = unsafe { quad::<PAIRS>(rows, offsets[pixel], digits, spread) };
            }
            // From a row per 64 bits to a row per 128 bits: rows 0 and 1, then 2 and 3.
            let left = _mm256_castsi256_ps(_mm256_packus_epi16(words[0], words[1]));
            let right = _mm256_castsi256_ps(_mm256_packus_epi16(words[2], words[3]));
            let upper = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(left, right));
            let lower = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(left, right));
            let (upper, lower) = (_mm256_shuffle_epi8(upper, compact), _mm256_shuffle_epi8(lower, compact));
            let pixels = [
                _mm256_castsi256_si128(upper),
                _mm256_extracti128_si256::<1>(upper),
                _mm256_castsi256_si128(lower),
                _mm256_extracti128_si256::<1>(lower),
            ];
            for (row, pixels) in numbers.into_iter().zip(pixels) {
                let out = &mut out[row * width..][..width][index * 3 * BLOCK..];
                if let Some(out) = out.first_chunk_mut::<16>() {
                    // The next block overwrites the last four bytes.
                    store!(_mm_storeu_si128, out, 0, 16, pixels);
                } else {
                    let mut bytes = [0; 16];
                    store!(_mm_storeu_si128, bytes, 0, 16, pixels);
                    let length = out.len().min(3 * BLOCK);
                    out[..length].copy_from_slice(&bytes[..length]);
                }
            }
        }
    }
}

/// One pixel of each of four rows, as 16-bit numbers: rows 0 and 2 in the lower 128 bits, 1 and 3 in the upper.
///
/// # Safety
/// 16 bytes can be read from `offset` on in each row, and 12 bytes later for every four digits after the first.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quad<const PAIRS: usize>(
    rows: [*const u8; 4],
    offset: usize,
    digits: &[i32],
    spread: [__m256i; 2],
) -> __m256i {
    let mut low = [_mm256_set1_epi32(HALF); 2];
    let mut high = [_mm256_setzero_si256(); 2];
    let digits = if PAIRS == 0 { digits } else { &digits[..2 * PAIRS] };
    let (groups, rest) = digits.as_chunks::<4>();
    for (group, digits) in groups.iter().enumerate() {
        // SAFETY: by the contract.
        let taps = unsafe { load_rows(rows, offset + group * 12) };
        for pair in 0..2 {
            add_pair(&mut low, &mut high, taps, spread[pair], digits[2 * pair], digits[2 * pair + 1]);
        }
    }
    if let [low_digits, high_digits] = *rest {
        // SAFETY: by the contract.
        let taps = unsafe { load_rows(rows, offset + groups.len() * 12) };
        add_pair(&mut low, &mut high, taps, spread[0], low_digits, high_digits);
    }
    let sum = |half: usize| _mm256_srai_epi32::<22>(_mm256_add_epi32(low[half], _mm256_slli_epi32::<16>(high[half])));
    _mm256_packs_epi32(sum(0), sum(1))
}

/// 16 bytes of each of four rows.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_rows(rows: [*const u8; 4], at: usize) -> [__m256i; 2] {
    // SAFETY: by the contract.
    let load = |row: usize| unsafe { _mm_loadu_si128(rows[row].add(at).cast()) };
    let both = |row| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(row)), load(row + 1));
    [both(0), both(2)]
}

/// Adds the products of two taps of four rows and both digits of their weights.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pair(
    low: &mut [__m256i; 2],
    high: &mut [__m256i; 2],
    taps: [__m256i; 2],
    spread: __m256i,
    low_digits: i32,
    high_digits: i32,
) {
    for half in 0..2 {
        let taps = _mm256_shuffle_epi8(taps[half], spread);
        low[half] = _mm256_add_epi32(low[half], _mm256_madd_epi16(taps, _mm256_set1_epi32(low_digits)));
        high[half] = _mm256_add_epi32(high[half], _mm256_madd_epi16(taps, _mm256_set1_epi32(high_digits)));
    }
}

/// The permutations of the bytes of five pixels: each channel of two taps side by side, extended to 16 bits; of taps 0 and 1,
/// and of taps 2 and 3.
#[inline]
#[target_feature(enable = "avx2")]
fn spread() -> [__m256i; 2] {
    const X: i8 = -1;
    let both = |row| _mm256_broadcastsi128_si256(row);
    [
        both(_mm_setr_epi8(0, X, 3, X, 1, X, 4, X, 2, X, 5, X, X, X, X, X)),
        both(_mm_setr_epi8(6, X, 9, X, 7, X, 10, X, 8, X, 11, X, X, X, X, X)),
    ]
}

/// The permutation that drops the fourth byte of each of four pixels.
#[inline]
#[target_feature(enable = "avx2")]
fn compact() -> __m256i {
    _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1))
}

/// Asks for the cache line `distance` bytes after `start`, which need not exist.
#[inline]
pub fn ahead(start: *const u8, distance: usize) {
    // SAFETY: a hint, which reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(distance).cast()) };
}

// Vertical: two rows per vector.

/// Asserts that `bytes` bytes of each of `rows` rows, `stride` bytes apart, can be read.
pub fn check_columns(input: &[u8], stride: usize, rows: usize, bytes: usize) {
    let last = rows.saturating_sub(1).checked_mul(stride);
    assert!(last.and_then(|last| last.checked_add(bytes)).is_some_and(|end| end <= input.len()));
}

/// True if the high digits of the weights are bytes and 16 bits hold three sums over inputs of up to 255: that of the high
/// digits, and without its lower 16 bits that of the low digits and that of the weights.
fn fit_words(weights: &[i32]) -> bool {
    let (mut high, mut all) = (0, 0);
    for &weight in weights {
        high += i64::from(i16::from_le_bytes(words_of(weight)[1])).abs();
        all += i64::from(weight).abs();
    }
    // 255 * 127, 255 * 250 / 2 and 255 * 120 are less than 2^15, also with the half that is added.
    weights.len() <= 250 && high <= 127 && all <= 120 << 16
}

macro_rules! vertical_words {
    ($name:ident, $inner:ident, $features:literal, $vector:literal, $zero:ident, $set:ident, $load:ident,
     $store:ident, $low8:ident, $high8:ident, $madd:ident, $maddubs:ident, $add:ident, $add16:ident, $slli:ident,
     $srai:ident, $srai16:ident, $packs:ident, $packus:ident) => {
        /// Computes the whole vectors of one output row. Returns the number of bytes done.
        pub fn $name(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
            // SAFETY: this kernel is only chosen if the processor supports its instructions.
            unsafe {
                if fit_words(weights) {
                    $inner::<true>(input, stride, weights, out)
                } else {
                    $inner::<false>(input, stride, weights, out)
                }
            }
        }

        /// `FIT` is what [`fit_words`] says: the high digits are multiplied as bytes and summed in 16 bits.
        #[target_feature(enable = $features)]
        fn $inner<const FIT: bool>(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
            let zero = $zero();
            let whole = out.len() / $vector * $vector;
            check_columns(input, stride, weights.len(), whole);
            let digits_of = |pair: &[i32]| {
                let [low, high] = word_pair(pair[0], weight(pair, 1));
                let [a, _, b, _] = high.to_le_bytes();
                [low, if FIT { i32::from_le_bytes([a, b, a, b]) } else { high }]
            };
            let digits: Vec<[i32; 2]> = weights.chunks(2).map(digits_of).collect();
            for at in (0..whole).step_by($vector) {
                let mut low = [if FIT { $set(HALF) } else { zero }; 4];
                let mut high = [zero; 4];
                for (pair, digits) in digits.iter().enumerate() {
                    let (low_digits, high_digits) = ($set(digits[0]), $set(digits[1]));
                    // SAFETY: the sizes have been checked for every row of a weight.
                    let load = |row: usize| unsafe { $load(input.as_ptr().add(row * stride + at).cast()) };
                    let above = load(2 * pair);
                    // A missing last row has weight 0.
                    let below = if 2 * pair + 1 < weights.len() { load(2 * pair + 1) } else { zero };
                    let (left, right) = ($low8(above, below), $high8(above, below));
                    let words = [$low8(left, zero), $high8(left, zero), $low8(right, zero), $high8(right, zero)];
                    for quarter in 0..4 {
                        low[quarter] = $add(low[quarter], $madd(words[quarter], low_digits));
                        if !FIT {
                            high[quarter] = $add(high[quarter], $madd(words[quarter], high_digits));
                        }
                    }
                    if FIT {
                        high[0] = $add16(high[0], $maddubs(left, high_digits));
                        high[1] = $add16(high[1], $maddubs(right, high_digits));
                    }
                }
                let packed = if FIT {
                    let half = |half: usize| {
                        let low = $packs($srai::<16>(low[2 * half]), $srai::<16>(low[2 * half + 1]));
                        $srai16::<6>($add16(low, high[half]))
                    };
                    $packus(half(0), half(1))
                } else {
                    let mut sums = [zero; 4];
                    for quarter in 0..4 {
                        let sum = $add(low[quarter], $slli::<16>(high[quarter]));
                        sums[quarter] = $srai::<22>($add(sum, $set(HALF)));
                    }
                    $packus($packs(sums[0], sums[1]), $packs(sums[2], sums[3]))
                };
                store!($store, out, at, $vector, packed);
            }
            whole
        }
    };
}

vertical_words!(
    vertical_avx2,
    vertical_avx2_inner,
    "avx2",
    32,
    _mm256_setzero_si256,
    _mm256_set1_epi32,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_madd_epi16,
    _mm256_maddubs_epi16,
    _mm256_add_epi32,
    _mm256_add_epi16,
    _mm256_slli_epi32,
    _mm256_srai_epi32,
    _mm256_srai_epi16,
    _mm256_packs_epi32,
    _mm256_packus_epi16
);

vertical_words!(
    vertical_avx512,
    vertical_avx512_inner,
    "avx512f,avx512bw",
    64,
    _mm512_setzero_si512,
    _mm512_set1_epi32,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_unpacklo_epi8,
    _mm512_unpackhi_epi8,
    _mm512_madd_epi16,
    _mm512_maddubs_epi16,
    _mm512_add_epi32,
    _mm512_add_epi16,
    _mm512_slli_epi32,
    _mm512_srai_epi32,
    _mm512_srai_epi16,
    _mm512_packs_epi32,
    _mm512_packus_epi16
);

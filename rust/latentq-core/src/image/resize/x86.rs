//! Resize kernels of x86-64. A 23-bit weight is split into digits that multiply-add instructions accept: two 16-bit digits
//! for `pmaddwd` (this file), three 8-bit digits for `vpdpbusd` (`x86_vnni`).

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::weights::{HALF, PRECISION, Weights};

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

/// Adds the sums over both pairs of taps of up to four rows, rounds them, and writes one pixel of each row. (A macro, because
/// a function is not inlined.)
macro_rules! put_pixels {
    ($rows:ident, $sums:ident, $out:ident, $width:ident, $index:ident) => {
        let pair = |a, b| {
            let halves = (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
            let sum = _mm256_add_epi32(halves.0, halves.1);
            _mm256_srai_epi32::<22>(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)))
        };
        let words = _mm256_packs_epi32(pair($sums[0], $sums[1]), pair($sums[2], $sums[3]));
        let bytes = _mm256_packus_epi16(words, words);
        let (even, odd) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
        let pixels = [
            _mm_cvtsi128_si32(even),
            _mm_cvtsi128_si32(odd),
            _mm_extract_epi32::<1>(even),
            _mm_extract_epi32::<1>(odd),
        ];
        let is_last = 3 * $index + 4 > $width;
        for row in 0..$rows {
            let at = row * $width + 3 * $index;
            if is_last {
                $out[at..at + 3].copy_from_slice(&pixels[row].to_le_bytes()[..3]);
            } else {
                // The fourth byte is overwritten by the next pixel. SAFETY: it is in the row, and each row in `out`.
                unsafe { $out.as_mut_ptr().add(at).cast::<i32>().write_unaligned(pixels[row]) };
            }
        }
    };
}

// Horizontal: one output pixel and four taps at a time. A group of rows shares the weights.

/// The weights of a horizontal pass in the layout of `pmaddwd`: both digits of four taps, taps 0 and 1 below 2 and 3.
pub struct Quads {
    /// For each output pixel, the first byte that it reads.
    offsets: Vec<usize>,
    /// For each output pixel, `groups` pairs of digits.
    lines: Vec<Line>,
    groups: usize,
    /// Bytes of a row that are read.
    reach: usize,
    /// True if one 512-bit vector has both digits.
    is_wide: bool,
}

impl Quads {
    pub fn new(weights: &Weights, is_wide: bool) -> Self {
        let first = weights.inputs().start;
        let groups = weights.longest().div_ceil(4);
        let mut quads = Self { offsets: Vec::new(), lines: Vec::new(), groups, reach: 0, is_wide };
        for (start, values) in weights.iter() {
            let offset = (start - first) * 3;
            quads.offsets.push(offset);
            quads.reach = quads.reach.max(offset + groups * 12 + 4);
            for group in 0..groups {
                let pair = |at: usize| word_pair(weight(values, 4 * group + at), weight(values, 4 * group + at + 1));
                let (low, high) = (pair(0), pair(2));
                let mut line = ZERO;
                for (index, bytes) in line.0.chunks_exact_mut(4).enumerate() {
                    let digit = index / 8;
                    let taps = if index % 8 < 4 { low } else { high };
                    bytes.copy_from_slice(&taps[digit].to_le_bytes());
                }
                quads.lines.push(line);
            }
        }
        quads
    }

    pub fn reach(&self) -> usize {
        self.reach
    }

    pub fn rows(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let rows = out.len() / width;
        check_rows(input, stride, self.reach, out, width, self.offsets.len());
        // SAFETY: this kernel is only chosen if the processor supports its instructions, and the sizes have been checked.
        unsafe {
            match (rows, self.is_wide) {
                (4, false) => self.group::<4>(input, stride, out, width),
                (3, false) => self.group::<3>(input, stride, out, width),
                (2, false) => self.group::<2>(input, stride, out, width),
                (_, false) => self.group::<1>(input, stride, out, width),
                (4, true) => self.wide_group::<4>(input, stride, out, width),
                (3, true) => self.wide_group::<3>(input, stride, out, width),
                (2, true) => self.wide_group::<2>(input, stride, out, width),
                (_, true) => self.wide_group::<1>(input, stride, out, width),
            }
        }
    }

    /// # Safety
    /// As [`check_rows`] has checked for as many rows.
    #[target_feature(enable = "avx2")]
    unsafe fn group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let spread = spread();
        let lines = self.lines.chunks_exact(self.groups);
        for (index, (&offset, lines)) in self.offsets.iter().zip(lines).enumerate() {
            let mut low = [_mm256_setzero_si256(); ROWS];
            let mut high = [_mm256_setzero_si256(); ROWS];
            for (group, line) in lines.iter().enumerate() {
                let low_weights = load!(_mm256_loadu_si256, line.0, 0, 32);
                let high_weights = load!(_mm256_loadu_si256, line.0, 32, 32);
                for row in 0..ROWS {
                    // SAFETY: a row has `reach` bytes, which no offset and group exceeds.
                    let taps =
                        unsafe { _mm_loadu_si128(input.as_ptr().add(row * stride + offset + group * 12).cast()) };
                    let taps = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(taps), spread);
                    low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(taps, low_weights));
                    high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(taps, high_weights));
                }
            }
            let mut sums = [_mm256_setzero_si256(); 4];
            for row in 0..ROWS {
                sums[row] = _mm256_add_epi32(low[row], _mm256_slli_epi32::<16>(high[row]));
            }
            put_pixels!(ROWS, sums, out, width, index);
        }
    }

    /// # Safety
    /// As [`check_rows`] has checked for as many rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn wide_group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let spread = _mm512_broadcast_i64x4(spread());
        let lines = self.lines.chunks_exact(self.groups);
        for (index, (&offset, lines)) in self.offsets.iter().zip(lines).enumerate() {
            let mut sums = [_mm512_setzero_si512(); ROWS];
            for (group, line) in lines.iter().enumerate() {
                let weights = load!(_mm512_loadu_si512, line.0, 0, 64);
                for (row, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a row has `reach` bytes, which no offset and group exceeds.
                    let taps =
                        unsafe { _mm_loadu_si128(input.as_ptr().add(row * stride + offset + group * 12).cast()) };
                    let taps = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(taps), spread);
                    *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(taps, weights));
                }
            }
            let mut joined = [_mm256_setzero_si256(); 4];
            for row in 0..ROWS {
                let (low, high) = (_mm512_castsi512_si256(sums[row]), _mm512_extracti64x4_epi64::<1>(sums[row]));
                joined[row] = _mm256_add_epi32(low, _mm256_slli_epi32::<16>(high));
            }
            put_pixels!(ROWS, joined, out, width, index);
        }
    }
}

/// The permutation of the bytes of four taps: each channel of two taps side by side, extended to 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn spread() -> __m256i {
    const X: i8 = -1;
    _mm256_setr_epi8(
        0, X, 3, X, 1, X, 4, X, 2, X, 5, X, X, X, X, X, //
        6, X, 9, X, 7, X, 10, X, 8, X, 11, X, X, X, X, X,
    )
}

// Vertical: two rows per vector.

/// Asserts that `bytes` bytes of each of `rows` rows, `stride` bytes apart, can be read.
pub fn check_columns(input: &[u8], stride: usize, rows: usize, bytes: usize) {
    let last = rows.saturating_sub(1).checked_mul(stride);
    assert!(last.and_then(|last| last.checked_add(bytes)).is_some_and(|end| end <= input.len()));
}

macro_rules! vertical_words {
    ($name:ident, $inner:ident, $features:literal, $vector:literal, $zero:ident, $set:ident, $load:ident, $store:ident,
     $low8:ident, $high8:ident, $madd:ident, $add:ident, $slli:ident, $srai:ident, $packs:ident, $packus:ident) => {
        /// Computes the whole vectors of one output row. Returns the number of bytes done.
        pub fn $name(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
            // SAFETY: this kernel is only chosen if the processor supports its instructions.
            unsafe { $inner(input, stride, weights, out) }
        }

        #[target_feature(enable = $features)]
        fn $inner(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
            let zero = $zero();
            let whole = out.len() / $vector * $vector;
            check_columns(input, stride, weights.len(), whole);
            let digits: Vec<[i32; 2]> = weights.chunks(2).map(|pair| word_pair(pair[0], weight(pair, 1))).collect();
            for at in (0..whole).step_by($vector) {
                let mut low = [zero; 4];
                let mut high = [zero; 4];
                for (pair, digits) in digits.iter().enumerate() {
                    let digits = digits.map(|digits| $set(digits));
                    // SAFETY: the sizes have been checked for every row of a weight.
                    let load = |row: usize| unsafe { $load(input.as_ptr().add(row * stride + at).cast()) };
                    let above = load(2 * pair);
                    // A missing last row has weight 0.
                    let below = if 2 * pair + 1 < weights.len() { load(2 * pair + 1) } else { zero };
                    let (left, right) = ($low8(above, below), $high8(above, below));
                    let words = [$low8(left, zero), $high8(left, zero), $low8(right, zero), $high8(right, zero)];
                    for quarter in 0..4 {
                        low[quarter] = $add(low[quarter], $madd(words[quarter], digits[0]));
                        high[quarter] = $add(high[quarter], $madd(words[quarter], digits[1]));
                    }
                }
                let mut sums = [zero; 4];
                for quarter in 0..4 {
                    let sum = $add(low[quarter], $slli::<16>(high[quarter]));
                    sums[quarter] = $srai::<22>($add(sum, $set(HALF)));
                }
                let packed = $packus($packs(sums[0], sums[1]), $packs(sums[2], sums[3]));
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
    _mm256_add_epi32,
    _mm256_slli_epi32,
    _mm256_srai_epi32,
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
    _mm512_add_epi32,
    _mm512_slli_epi32,
    _mm512_srai_epi32,
    _mm512_packs_epi32,
    _mm512_packus_epi16
);

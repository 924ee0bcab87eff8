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

// Horizontal: one output pixel and four taps at a time. A group of rows shares the weights.

/// The weights of a horizontal pass in the layout of `pmaddwd`: both digits of four taps, taps 0 and 1 below 2 and 3.
pub struct Quads {
    /// For each output pixel, the first byte that it reads.
    offsets: Vec<usize>,
    /// For each output pixel, `groups` pairs of digits.
    lines: Vec<Line>,
    groups: usize,
    /// True if one 512-bit vector has both digits.
    is_wide: bool,
}

impl Quads {
    pub fn new(weights: &Weights, is_wide: bool) -> Self {
        let first = weights.inputs().start;
        let groups = weights.longest().div_ceil(4);
        let mut quads = Self { offsets: Vec::new(), lines: Vec::new(), groups, is_wide };
        for (start, values) in weights.iter() {
            quads.offsets.push((start - first) * 3);
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
        self.offsets.last().map_or(0, |last| last + (self.groups - 1) * 12 + 16)
    }

    pub fn rows(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        // SAFETY: this kernel is only chosen if the processor supports its instructions.
        unsafe {
            match (out.len() / width, self.is_wide) {
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

    #[target_feature(enable = "avx2")]
    fn group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let spread = spread();
        let lines = self.lines.chunks_exact(self.groups);
        for (index, (&offset, lines)) in self.offsets.iter().zip(lines).enumerate() {
            let mut low = [_mm256_setzero_si256(); ROWS];
            let mut high = [_mm256_setzero_si256(); ROWS];
            for (group, line) in lines.iter().enumerate() {
                let low_weights = load!(_mm256_loadu_si256, line.0, 0, 32);
                let high_weights = load!(_mm256_loadu_si256, line.0, 32, 32);
                for row in 0..ROWS {
                    let taps = load!(_mm_loadu_si128, input, row * stride + offset + group * 12, 16);
                    let taps = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(taps), spread);
                    low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(taps, low_weights));
                    high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(taps, high_weights));
                }
            }
            for row in 0..ROWS {
                out[row * width + index * 3..][..3].copy_from_slice(&join_words(low[row], high[row])[..3]);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn wide_group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let spread = _mm512_broadcast_i64x4(spread());
        let lines = self.lines.chunks_exact(self.groups);
        for (index, (&offset, lines)) in self.offsets.iter().zip(lines).enumerate() {
            let mut sums = [_mm512_setzero_si512(); ROWS];
            for (group, line) in lines.iter().enumerate() {
                let weights = load!(_mm512_loadu_si512, line.0, 0, 64);
                for row in 0..ROWS {
                    let taps = load!(_mm_loadu_si128, input, row * stride + offset + group * 12, 16);
                    let taps = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(taps), spread);
                    sums[row] = _mm512_add_epi32(sums[row], _mm512_madd_epi16(taps, weights));
                }
            }
            for row in 0..ROWS {
                let (low, high) = (_mm512_castsi512_si256(sums[row]), _mm512_extracti64x4_epi64::<1>(sums[row]));
                out[row * width + index * 3..][..3].copy_from_slice(&join_words(low, high)[..3]);
            }
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

/// Combines the sums of both digits, over two pairs of taps each, to a pixel.
#[inline]
#[target_feature(enable = "avx2")]
fn join_words(low: __m256i, high: __m256i) -> [u8; 4] {
    let sum = _mm256_add_epi32(low, _mm256_slli_epi32::<16>(high));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_srai_epi32::<22>(_mm_add_epi32(sum, _mm_set1_epi32(HALF)));
    let sum = _mm_packs_epi32(sum, sum);
    _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum)).to_le_bytes()
}

// Vertical: two rows per vector.

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
            for at in (0..whole).step_by($vector) {
                let mut low = [zero; 4];
                let mut high = [zero; 4];
                for (pair, weights) in weights.chunks(2).enumerate() {
                    let digits = word_pair(weights[0], weight(weights, 1)).map(|digits| $set(digits));
                    let row = 2 * pair * stride + at;
                    let above = load!($load, input, row, $vector);
                    // A missing last row has weight 0.
                    let below = if weights.len() == 2 { load!($load, input, row + stride, $vector) } else { zero };
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

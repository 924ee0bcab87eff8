//! The kernels of x86-64. A weight of 23 bits is split into digits that the multiply-add instructions take: two of 16
//! bits (`pmaddwd`), or three of 8 (`vpdpbusd`).

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::weights::{HALF, PRECISION, Weights};

/// A cache line, and one vector of 512 bits.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line([u8; 64]);

const ZERO: Line = Line([0; 64]);

/// Low to high, each in -128..=127.
fn bytes_of(weight: i32) -> [u8; 3] {
    let low = weight as i8;
    let rest = (weight - i32::from(low)) >> 8;
    let middle = rest as i8;
    let high = (rest - i32::from(middle)) >> 8;
    [low as u8, middle as u8, high as u8]
}

/// Low and high, each in -32768..=32767.
fn words_of(weight: i32) -> [[u8; 2]; 2] {
    let low = weight as i16;
    let high = ((weight - i32::from(low)) >> 16) as i16;
    [low.to_le_bytes(), high.to_le_bytes()]
}

/// Both digits of two weights, each pair in every 32 bits of a vector.
fn word_pair(first: i32, second: i32) -> [i32; 2] {
    let (first, second) = (words_of(first), words_of(second));
    [0, 1].map(|digit| {
        let [a, b] = [first[digit], second[digit]];
        i32::from_le_bytes([a[0], a[1], b[0], b[1]])
    })
}

// Shifts take their count as a literal.
const _: () = assert!(PRECISION == 22);

fn weight(weights: &[i32], index: usize) -> i32 {
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

// AVX2 and AVX-512 without VNNI, horizontal: one output pixel at a time, four taps at a time, the weights shared by a
// group of rows.

/// The weights of four taps, both digits, as `pmaddwd` takes them: taps 0 and 1 below, 2 and 3 above.
pub struct Quads {
    /// Of each output pixel, the first byte it reads.
    offsets: Vec<usize>,
    /// For each output pixel `groups` pairs of digits.
    lines: Vec<Line>,
    groups: usize,
    /// Whether one vector of 512 bits takes both digits.
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
        // SAFETY: a kernel is only made where its instructions were found.
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

/// Where the bytes of four taps go: each channel of two taps side by side, in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn spread() -> __m256i {
    const X: i8 = -1;
    _mm256_setr_epi8(
        0, X, 3, X, 1, X, 4, X, 2, X, 5, X, X, X, X, X, //
        6, X, 9, X, 7, X, 10, X, 8, X, 11, X, X, X, X, X,
    )
}

/// A pixel of the sums of its two digits, over two pairs of taps each.
#[inline]
#[target_feature(enable = "avx2")]
fn join_words(low: __m256i, high: __m256i) -> [u8; 4] {
    let sum = _mm256_add_epi32(low, _mm256_slli_epi32::<16>(high));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_srai_epi32::<22>(_mm_add_epi32(sum, _mm_set1_epi32(HALF)));
    let sum = _mm_packs_epi32(sum, sum);
    _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum)).to_le_bytes()
}

// AVX2 and AVX-512, vertical: two rows in a vector, 16-bit digits.

macro_rules! vertical_words {
    ($name:ident, $inner:ident, $features:literal, $vector:literal, $zero:ident, $set:ident, $load:ident, $store:ident,
     $low8:ident, $high8:ident, $madd:ident, $add:ident, $slli:ident, $srai:ident, $packs:ident, $packus:ident) => {
        /// The whole vectors of one output row. Returns how many bytes they are.
        pub fn $name(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
            // SAFETY: a kernel is only chosen where its instructions were found.
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
                    // A missing last row has weight zero.
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

// AVX-512 with VNNI, vertical: four rows in a vector, 8-bit digits.

/// The whole vectors of one output row. Returns how many bytes they are.
pub fn vertical_vnni(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
    // SAFETY: a kernel is only chosen where its instructions were found.
    unsafe { vertical_vnni_inner(input, stride, weights, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vertical_vnni_inner(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
    let zero = _mm512_setzero_si512();
    let whole = out.len() / 64 * 64;
    for at in (0..whole).step_by(64) {
        let mut sums = [[zero; 3]; 4];
        for (group, weights) in weights.chunks(4).enumerate() {
            let mut rows = [zero; 4];
            for (row, vector) in rows.iter_mut().enumerate().take(weights.len()) {
                *vector = load!(_mm512_loadu_si512, input, (4 * group + row) * stride + at, 64);
            }
            let digits = byte_group(weights).map(|digits| _mm512_set1_epi32(digits));
            let (low, high) = (_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[0], rows[1]));
            let (low2, high2) = (_mm512_unpacklo_epi8(rows[2], rows[3]), _mm512_unpackhi_epi8(rows[2], rows[3]));
            let taps = [
                _mm512_unpacklo_epi16(low, low2),
                _mm512_unpackhi_epi16(low, low2),
                _mm512_unpacklo_epi16(high, high2),
                _mm512_unpackhi_epi16(high, high2),
            ];
            for quarter in 0..4 {
                for digit in 0..3 {
                    sums[quarter][digit] = _mm512_dpbusd_epi32(sums[quarter][digit], taps[quarter], digits[digit]);
                }
            }
        }
        let quarters = sums.map(|sums| join_bytes(sums));
        let (left, right) =
            (_mm512_packs_epi32(quarters[0], quarters[1]), _mm512_packs_epi32(quarters[2], quarters[3]));
        store!(_mm512_storeu_si512, out, at, 64, _mm512_packus_epi16(left, right));
    }
    whole
}

/// The three digits of up to four weights, one weight in each byte.
fn byte_group(weights: &[i32]) -> [i32; 3] {
    let digits = [0, 1, 2, 3].map(|index| bytes_of(weight(weights, index)));
    [0, 1, 2].map(|digit| i32::from_le_bytes(digits.map(|bytes| bytes[digit])))
}

/// The sums of the three digits as one, rounded and shifted down; not yet clipped.
#[inline]
#[target_feature(enable = "avx512f")]
fn join_bytes(sums: [__m512i; 3]) -> __m512i {
    _mm512_srai_epi32::<22>(join_unrounded(sums, _mm512_set1_epi32(HALF)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn join_unrounded(sums: [__m512i; 3], start: __m512i) -> __m512i {
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[1]), _mm512_slli_epi32::<16>(sums[2]));
    _mm512_add_epi32(_mm512_add_epi32(sums[0], upper), start)
}

// AVX-512 with VNNI, horizontal. A byte permutation brings the taps of each output value together.

/// Output pixels in a vector, where what they read fits one load.
const BLOCK: usize = 5;
/// Taps in a vector, where one output pixel fills it.
const TAPS: usize = 16;

/// The weights of a horizontal pass as `vpdpbusd` takes them.
pub enum Blocks {
    /// Little or no shrinking: five output pixels in a vector, four taps at a time.
    Short {
        /// Of each block, the first byte it reads, and which of the bytes from there on go where.
        blocks: Vec<(usize, Line)>,
        /// For each block `groups` times three digits.
        lines: Vec<[Line; 3]>,
        groups: usize,
        count: usize,
    },
    /// Strong shrinking: one output pixel in a vector, a channel in each 128 bits, sixteen taps at a time.
    Long {
        /// Of each output pixel, the first byte it reads.
        offsets: Vec<usize>,
        /// For each output pixel `steps` times three digits.
        weights: Vec<[[u8; TAPS]; 3]>,
        steps: usize,
    },
}

impl Blocks {
    pub fn new(weights: &Weights) -> Self {
        let first = weights.inputs().start;
        let offset = |index: usize| (weights.starts[index] - first) * 3;
        let count = weights.starts.len();
        let last = |block: usize| (block + BLOCK).min(count) - 1;
        // The last tap of a group must be within the 64 bytes that are loaded.
        let fits = (0..count).step_by(BLOCK).all(|block| offset(last(block)) - offset(block) + 12 <= 64);
        if !fits {
            return Self::long(weights, first);
        }
        let groups = weights.longest().div_ceil(4);
        let mut blocks = Vec::new();
        let mut lines = Vec::new();
        for block in (0..count).step_by(BLOCK) {
            let mut places = ZERO;
            let mut digits = vec![[ZERO; 3]; groups];
            for index in block..=last(block) {
                let (_, values) = weights.at(index);
                for lane in 0..12 {
                    let (channel, tap) = (lane / 4, lane % 4);
                    let place = (index - block) * 12 + lane;
                    places.0[place] = (offset(index) - offset(block) + tap * 3 + channel) as u8;
                    for (group, digits) in digits.iter_mut().enumerate() {
                        let bytes = bytes_of(weight(values, 4 * group + tap));
                        for digit in 0..3 {
                            digits[digit].0[place] = bytes[digit];
                        }
                    }
                }
            }
            blocks.push((offset(block), places));
            lines.extend(digits);
        }
        Self::Short { blocks, lines, groups, count }
    }

    fn long(weights: &Weights, first: usize) -> Self {
        let steps = weights.longest().div_ceil(TAPS);
        let offsets = weights.starts.iter().map(|start| (start - first) * 3).collect();
        let digits = |(_, values): (usize, &[i32])| -> Vec<[[u8; TAPS]; 3]> {
            let step = |step: usize| {
                let taps: [[u8; 3]; TAPS] = std::array::from_fn(|tap| bytes_of(weight(values, step * TAPS + tap)));
                [0, 1, 2].map(|digit| taps.map(|bytes| bytes[digit]))
            };
            (0..steps).map(step).collect()
        };
        Self::Long { offsets, weights: weights.iter().flat_map(digits).collect(), steps }
    }

    pub fn reach(&self) -> usize {
        match self {
            Self::Short { blocks, groups, .. } => blocks.last().map_or(0, |(last, _)| last + (groups - 1) * 12 + 64),
            Self::Long { offsets, steps, .. } => offsets.last().map_or(0, |last| last + (steps - 1) * TAPS * 3 + 64),
        }
    }

    pub fn rows(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        // SAFETY: a kernel is only made where its instructions were found.
        unsafe {
            match out.len() / width {
                4 => self.group::<4>(input, stride, out, width),
                3 => self.group::<3>(input, stride, out, width),
                2 => self.group::<2>(input, stride, out, width),
                _ => self.group::<1>(input, stride, out, width),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let zero = _mm512_setzero_si512();
        match self {
            Self::Short { blocks, lines, groups, count } => {
                for (index, ((offset, places), lines)) in blocks.iter().zip(lines.chunks_exact(*groups)).enumerate() {
                    let places = load!(_mm512_loadu_si512, places.0, 0, 64);
                    let mut sums = [[zero; 3]; ROWS];
                    for (group, lines) in lines.iter().enumerate() {
                        let mut digits = [zero; 3];
                        for digit in 0..3 {
                            digits[digit] = load!(_mm512_loadu_si512, lines[digit].0, 0, 64);
                        }
                        for row in 0..ROWS {
                            let taps = load!(_mm512_loadu_si512, input, row * stride + offset + group * 12, 64);
                            let taps = _mm512_permutexvar_epi8(places, taps);
                            for digit in 0..3 {
                                sums[row][digit] = _mm512_dpbusd_epi32(sums[row][digit], taps, digits[digit]);
                            }
                        }
                    }
                    let bytes = (count - index * BLOCK).min(BLOCK) * 3;
                    let mask = ((1u32 << bytes) - 1) as u16;
                    for row in 0..ROWS {
                        let values = _mm512_max_epi32(join_bytes(sums[row]), zero);
                        let values = _mm512_cvtusepi32_epi8(values);
                        let out = &mut out[row * width + index * BLOCK * 3..][..bytes];
                        // SAFETY: the mask writes as many bytes as the slice has.
                        unsafe { _mm_mask_storeu_epi8(out.as_mut_ptr().cast(), mask, values) };
                    }
                }
            }
            Self::Long { offsets, weights, steps } => {
                let mut places = ZERO;
                for (place, byte) in places.0[..48].iter_mut().enumerate() {
                    *byte = (place % TAPS * 3 + place / TAPS) as u8;
                }
                let places = load!(_mm512_loadu_si512, places.0, 0, 64);
                // From a channel in each 32 bits to a row in each.
                let turn = _mm_setr_epi8(0, 4, 8, -1, 1, 5, 9, -1, 2, 6, 10, -1, 3, 7, 11, -1);
                for (index, (&offset, weights)) in offsets.iter().zip(weights.chunks_exact(*steps)).enumerate() {
                    let mut sums = [[zero; 3]; ROWS];
                    for (step, weights) in weights.iter().enumerate() {
                        let mut digits = [zero; 3];
                        for digit in 0..3 {
                            digits[digit] = _mm512_broadcast_i32x4(load!(_mm_loadu_si128, weights[digit], 0, 16));
                        }
                        for row in 0..ROWS {
                            let taps = load!(_mm512_loadu_si512, input, row * stride + offset + step * TAPS * 3, 64);
                            let taps = _mm512_permutexvar_epi8(places, taps);
                            for digit in 0..3 {
                                sums[row][digit] = _mm512_dpbusd_epi32(sums[row][digit], taps, digits[digit]);
                            }
                        }
                    }
                    let mut rows = [zero; 4];
                    for row in 0..ROWS {
                        rows[row] = join_unrounded(sums[row], zero);
                    }
                    // The four partial sums of each channel, added up for four rows at once.
                    let halves = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                    let (upper, lower) = (halves(rows[0], rows[1]), halves(rows[2], rows[3]));
                    let sums =
                        _mm512_add_epi32(_mm512_unpacklo_epi64(upper, lower), _mm512_unpackhi_epi64(upper, lower));
                    let sums = _mm512_srai_epi32::<22>(_mm512_add_epi32(sums, _mm512_set1_epi32(HALF)));
                    let values = _mm_shuffle_epi8(_mm512_cvtusepi32_epi8(_mm512_max_epi32(sums, zero)), turn);
                    let mut pixels = [0; 16];
                    store!(_mm_storeu_si128, pixels, 0, 16, values);
                    for (row, pixel) in pixels.chunks_exact(4).enumerate().take(ROWS) {
                        out[row * width + index * 3..][..3].copy_from_slice(&pixel[..3]);
                    }
                }
            }
        }
    }
}

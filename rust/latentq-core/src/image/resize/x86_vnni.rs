//! Resize kernels of x86-64 with AVX-512 VNNI: 8-bit digits for `vpdpbusd`.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::weights::{GROUP, HALF, Weights};
use super::x86::{Line, ZERO, ahead, check_columns, check_rows, load, store, weight};

/// The digits of a weight from low to high, each in -128..=127.
fn bytes_of(weight: i32) -> [u8; 3] {
    let low = weight as i8;
    let rest = (weight - i32::from(low)) >> 8;
    let middle = rest as i8;
    let high = (rest - i32::from(middle)) >> 8;
    [low as u8, middle as u8, high as u8]
}

/// Computes the whole vectors of one output row, four rows per vector. Returns the number of bytes done.
pub fn vertical_vnni(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
    // SAFETY: this kernel is only chosen if the processor supports its instructions.
    unsafe { vertical_vnni_inner(input, stride, weights, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vertical_vnni_inner(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) -> usize {
    let zero = _mm512_setzero_si512();
    let whole = out.len() / 64 * 64;
    check_columns(input, stride, weights.len(), whole);
    let digits: Vec<[i32; 3]> = weights.chunks(4).map(byte_group).collect();
    for at in (0..whole).step_by(64) {
        let mut sums = [[_mm512_set1_epi32(HALF), zero, zero]; 4];
        for (group, digits) in digits.iter().enumerate() {
            let mut rows = [zero; 4];
            for (row, vector) in rows.iter_mut().enumerate().take(weights.len() - 4 * group) {
                // SAFETY: the sizes have been checked for every row of a weight.
                *vector = unsafe { _mm512_loadu_si512(input.as_ptr().add((4 * group + row) * stride + at).cast()) };
            }
            let digits = digits.map(|digits| _mm512_set1_epi32(digits));
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

/// The three digits of up to four weights, one weight per byte.
fn byte_group(weights: &[i32]) -> [i32; 3] {
    let digits = [0, 1, 2, 3].map(|index| bytes_of(weight(weights, index)));
    [0, 1, 2].map(|digit| i32::from_le_bytes(digits.map(|bytes| bytes[digit])))
}

/// Combines the sums of the three digits, of which the first started at one half, and shifts them. The result is not clipped.
#[inline]
#[target_feature(enable = "avx512f")]
fn join_bytes(sums: [__m512i; 3]) -> __m512i {
    _mm512_srai_epi32::<22>(join_unshifted(sums))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn join_unshifted(sums: [__m512i; 3]) -> __m512i {
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[1]), _mm512_slli_epi32::<16>(sums[2]));
    _mm512_add_epi32(sums[0], upper)
}

/// Output pixels per vector in [`Short`].
const BLOCK: usize = 5;
/// Bytes of a vector per output pixel in [`Short`]: four taps of three channels.
const LANES: usize = 12;
/// Taps per vector in [`Long`].
const TAPS: usize = 16;

/// The weights of a horizontal pass in the layout of `vpdpbusd`. A byte permutation gathers the taps of each output value.
pub enum Blocks {
    Short(Short),
    Long(Long),
}

/// For little or no shrinking: five output pixels per vector, four taps at a time.
pub struct Short {
    /// For each block, the first byte that it reads, and the permutation of the bytes from there on.
    blocks: Vec<(usize, Line)>,
    /// For each block, `groups` times three digits.
    lines: Vec<[Line; 3]>,
    groups: usize,
    /// Bytes of a row that are read.
    reach: usize,
    /// Number of output pixels.
    count: usize,
}

/// For strong shrinking: one output pixel per vector, one channel per 128 bits, sixteen taps at a time.
pub struct Long {
    /// For each output pixel, the first byte that it reads.
    offsets: Vec<usize>,
    /// For each output pixel, `steps` times three digits.
    weights: Vec<[[u8; TAPS]; 3]>,
    steps: usize,
    /// Bytes of a row that are read.
    reach: usize,
}

impl Blocks {
    pub fn new(weights: &Weights) -> Self {
        Short::new(weights).map_or_else(|| Self::Long(Long::new(weights)), Self::Short)
    }

    /// Bytes of a row that are read, from the first used pixel on.
    pub fn reach(&self) -> usize {
        match self {
            Self::Short(short) => short.reach,
            Self::Long(long) => long.reach,
        }
    }

    /// Resamples one to four rows.
    pub fn rows(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let count = match self {
            Self::Short(short) => short.count,
            Self::Long(long) => long.offsets.len(),
        };
        check_rows(input, stride, self.reach(), out, width, count);
        // SAFETY: this kernel is only chosen if the processor supports its instructions, and the sizes have been checked.
        unsafe {
            match out.len() / width {
                4 => self.group::<4>(input, stride, out, width),
                3 => self.group::<3>(input, stride, out, width),
                2 => self.group::<2>(input, stride, out, width),
                _ => self.group::<1>(input, stride, out, width),
            }
        }
    }

    /// # Safety
    /// As [`check_rows`] has checked for as many rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        // SAFETY: the same.
        unsafe {
            match self {
                Self::Short(short) => short.group::<ROWS>(input, stride, out, width),
                Self::Long(long) => long.group::<ROWS>(input, stride, out, width),
            }
        }
    }
}

impl Short {
    /// Returns `None` if the inputs of a block do not fit one load.
    fn new(weights: &Weights) -> Option<Self> {
        let first = weights.inputs().start;
        let offset = |index: usize| (weights.starts[index] - first) * 3;
        let count = weights.starts.len();
        let last = |block: usize| (block + BLOCK).min(count) - 1;
        // The last tap of a group must be within the 64 bytes that are loaded.
        let fits = (0..count).step_by(BLOCK).all(|block| offset(last(block)) - offset(block) + 12 <= 64);
        if !fits {
            return None;
        }
        let groups = weights.longest().div_ceil(4);
        let mut blocks = Vec::with_capacity(count.div_ceil(BLOCK));
        let mut lines = vec![[ZERO; 3]; count.div_ceil(BLOCK) * groups];
        for (block, lines) in (0..count).step_by(BLOCK).zip(lines.chunks_exact_mut(groups)) {
            let mut positions = ZERO;
            let pixels = positions.0.chunks_exact_mut(LANES).zip(block..=last(block));
            for (pixel, (positions, index)) in pixels.enumerate() {
                for (lane, position) in positions.iter_mut().enumerate() {
                    let (channel, tap) = (lane / 4, lane % 4);
                    *position = (offset(index) - offset(block) + tap * 3 + channel) as u8;
                }
                let (_, values) = weights.at(index);
                for (values, lines) in values.chunks(4).zip(&mut *lines) {
                    for (line, digits) in lines.iter_mut().zip(byte_group(values)) {
                        for channel in line.0[pixel * LANES..][..LANES].chunks_exact_mut(4) {
                            channel.copy_from_slice(&digits.to_le_bytes());
                        }
                    }
                }
            }
            blocks.push((offset(block), positions));
        }
        let reach = blocks.iter().map(|(offset, _)| offset + (groups - 1) * 12 + 64).max().unwrap_or(0);
        Some(Self { blocks, lines, groups, reach, count })
    }

    /// # Safety
    /// As [`check_rows`] has checked for as many rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let zero = _mm512_setzero_si512();
        for (index, ((offset, positions), lines)) in
            self.blocks.iter().zip(self.lines.chunks_exact(self.groups)).enumerate()
        {
            let positions = load!(_mm512_loadu_si512, positions.0, 0, 64);
            for row in 0..ROWS {
                ahead(input.as_ptr(), (row + GROUP) * stride + offset);
            }
            let mut sums = [[_mm512_set1_epi32(HALF), zero, zero]; ROWS];
            for (group, lines) in lines.iter().enumerate() {
                let mut digits = [zero; 3];
                for digit in 0..3 {
                    digits[digit] = load!(_mm512_loadu_si512, lines[digit].0, 0, 64);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a row has `reach` bytes, which no offset and group exceeds.
                    let taps =
                        unsafe { _mm512_loadu_si512(input.as_ptr().add(row * stride + offset + group * 12).cast()) };
                    let taps = _mm512_permutexvar_epi8(positions, taps);
                    for digit in 0..3 {
                        sums[digit] = _mm512_dpbusd_epi32(sums[digit], taps, digits[digit]);
                    }
                }
            }
            let bytes = (self.count - index * BLOCK).min(BLOCK) * 3;
            let mask = ((1u32 << bytes) - 1) as u16;
            for row in 0..ROWS {
                let values = _mm512_max_epi32(join_bytes(sums[row]), zero);
                let values = _mm512_cvtusepi32_epi8(values);
                let out = &mut out[row * width..][..width][index * BLOCK * 3..];
                if let Some(out) = out.first_chunk_mut::<16>() {
                    // What is too much is overwritten by the next block. (A mask is slow.) SAFETY: 16 bytes.
                    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), values) };
                } else {
                    // SAFETY: the mask selects exactly the bytes of the slice.
                    unsafe { _mm_mask_storeu_epi8(out[..bytes].as_mut_ptr().cast(), mask, values) };
                }
            }
        }
    }
}

impl Long {
    fn new(weights: &Weights) -> Self {
        let first = weights.inputs().start;
        let steps = weights.longest().div_ceil(TAPS);
        let offsets: Vec<usize> = weights.starts.iter().map(|start| (start - first) * 3).collect();
        let reach = offsets.iter().max().map_or(0, |last| last + (steps - 1) * TAPS * 3 + 64);
        let digits = |(_, values): (usize, &[i32])| -> Vec<[[u8; TAPS]; 3]> {
            let step = |step: usize| {
                let taps: [[u8; 3]; TAPS] = std::array::from_fn(|tap| bytes_of(weight(values, step * TAPS + tap)));
                [0, 1, 2].map(|digit| taps.map(|bytes| bytes[digit]))
            };
            (0..steps).map(step).collect()
        };
        Self { offsets, weights: weights.iter().flat_map(digits).collect(), steps, reach }
    }

    /// # Safety
    /// As [`check_rows`] has checked for as many rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn group<const ROWS: usize>(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let zero = _mm512_setzero_si512();
        let mut positions = ZERO;
        for (position, byte) in positions.0[..48].iter_mut().enumerate() {
            *byte = (position % TAPS * 3 + position / TAPS) as u8;
        }
        let positions = load!(_mm512_loadu_si512, positions.0, 0, 64);
        // Transpose from one channel to one row per 32 bits.
        let turn = _mm_setr_epi8(0, 4, 8, -1, 1, 5, 9, -1, 2, 6, 10, -1, 3, 7, 11, -1);
        for (index, (&offset, weights)) in self.offsets.iter().zip(self.weights.chunks_exact(self.steps)).enumerate() {
            for row in 0..ROWS {
                ahead(input.as_ptr(), (row + GROUP) * stride + offset);
            }
            let mut sums = [[zero; 3]; ROWS];
            for (step, weights) in weights.iter().enumerate() {
                let mut digits = [zero; 3];
                for digit in 0..3 {
                    digits[digit] = _mm512_broadcast_i32x4(load!(_mm_loadu_si128, weights[digit], 0, 16));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a row has `reach` bytes, which no offset and step exceeds.
                    let taps = unsafe {
                        _mm512_loadu_si512(input.as_ptr().add(row * stride + offset + step * TAPS * 3).cast())
                    };
                    let taps = _mm512_permutexvar_epi8(positions, taps);
                    for digit in 0..3 {
                        sums[digit] = _mm512_dpbusd_epi32(sums[digit], taps, digits[digit]);
                    }
                }
            }
            let mut rows = [zero; 4];
            for row in 0..ROWS {
                rows[row] = join_unshifted(sums[row]);
            }
            // Add the four partial sums of each channel, for four rows at once.
            let halves = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (upper, lower) = (halves(rows[0], rows[1]), halves(rows[2], rows[3]));
            let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(upper, lower), _mm512_unpackhi_epi64(upper, lower));
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

//! x86-64 code of the transform codec: the entropy decoder, which needs gathers, and costs of the encoder.

use std::arch::x86_64::*;

use crate::quant::transform::{ENTRIES, Entry, SEGMENT, Stream};

/// Where the words of the lanes in a mask are: the number of set bits below each, in both halves.
const TAKEN: [[i32; 8]; 256] = {
    let mut taken = [[0; 8]; 256];
    let mut at = 0;
    while at < 256 * 8 {
        let (mask, lane) = (at / 8, at % 8);
        let half = lane / 4 * 4;
        let below = (mask >> half) & ((1 << (lane - half)) - 1);
        taken[mask][lane] = half as i32 + (below as u32).count_ones() as i32;
        at += 1;
    }
    taken
};

/// Decodes the elements `from..to` of the streams, at most [`SEGMENT`], in fours, two streams per vector. Returns how many
/// elements are done.
#[target_feature(enable = "avx2,popcnt")]
pub fn decode_words_avx2(
    entries: &[Entry; ENTRIES],
    streams: &mut [Option<&mut Stream>],
    from: usize,
    to: usize,
) -> usize {
    let mut rest = streams;
    while !rest.is_empty() {
        let pairs = rest.len().div_ceil(2).min(4);
        let (now, later) = rest.split_at_mut(rest.len().min(2 * pairs));
        match now.iter().flatten().count().div_ceil(2) {
            0 => {}
            1 => decode_pairs::<1>(entries, now, from, to),
            2 => decode_pairs::<2>(entries, now, from, to),
            3 => decode_pairs::<3>(entries, now, from, to),
            _ => decode_pairs::<4>(entries, now, from, to),
        }
        rest = later;
    }
    (to - from) / 4 * 4
}

/// Where a vector of two streams reads and writes.
#[derive(Clone, Copy)]
struct Pair {
    states: __m256i,
    words: [*const u8; 2],
    tables: [*const u8; 2],
    symbols: [*mut u8; 2],
}

/// The arithmetic of `Stream::decode`. With an odd number of streams, the last is decoded twice, to the same symbols.
#[target_feature(enable = "avx2,popcnt")]
#[allow(unsafe_code)]
fn decode_pairs<const P: usize>(
    entries: &[Entry; ENTRIES],
    streams: &mut [Option<&mut Stream>],
    from: usize,
    to: usize,
) {
    let mut views = [None; 8];
    let mut count = 0;
    for stream in streams.iter_mut().flatten().take(2 * P) {
        // The words of a segment, and of a read ahead, are inside.
        let words = &stream.words[stream.at..][..2 * SEGMENT + 8];
        let (tables, symbols) = (&stream.tables[from..to], &mut stream.symbols[from..to]);
        views[count] = Some((words.as_ptr(), tables.as_ptr(), symbols.as_mut_ptr(), stream.states));
        count += 1;
    }
    if count == 0 || to - from > SEGMENT {
        return;
    }
    let last = views[count - 1];
    // SAFETY: a step reads 8 bytes at each pointer to words and moves it by at most 8, and there are at most SEGMENT / 4
    // steps; reads 4 bytes of tables and writes 4 of symbols at multiples of 4 below `to - from`; indices of entries are
    // masked to their number.
    unsafe {
        let view = |at: usize| views[at].or(last).unwrap_unchecked();
        let mut pairs: [Pair; P] = std::array::from_fn(|pair| {
            let (a, b) = (view(2 * pair), view(2 * pair + 1));
            let states = _mm256_set_m128i(_mm_loadu_si128(b.3.as_ptr().cast()), _mm_loadu_si128(a.3.as_ptr().cast()));
            Pair { states, words: [a.0, b.0], tables: [a.1, b.1], symbols: [a.2, b.2] }
        });
        let slot_mask = _mm256_set1_epi32(4095);
        let entry_mask = _mm256_set1_epi32(ENTRIES as i32 - 1);
        for at in (0..(to - from) / 4 * 4).step_by(4) {
            for pair in &mut pairs {
                let states = pair.states;
                let [a, b] = pair.tables.map(|tables| _mm_cvtsi32_si128(tables.add(at).cast::<i32>().read_unaligned()));
                let tables = _mm256_slli_epi32::<12>(_mm256_cvtepu8_epi32(_mm_unpacklo_epi32(a, b)));
                let index = _mm256_and_si256(_mm256_or_si256(tables, _mm256_and_si256(states, slot_mask)), entry_mask);
                let entry = _mm256_i32gather_epi32::<4>(entries.as_ptr().cast(), index);
                let less = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), slot_mask);
                let frequency = _mm256_sub_epi32(less, _mm256_set1_epi32(-1));
                let product = _mm256_mullo_epi32(frequency, _mm256_srli_epi32::<12>(states));
                let states = _mm256_add_epi32(product, _mm256_srli_epi32::<20>(entry));
                let symbols = _mm256_and_si256(entry, _mm256_set1_epi32(127));
                let words = _mm_packus_epi32(_mm256_castsi256_si128(symbols), _mm256_extracti128_si256::<1>(symbols));
                let bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
                pair.symbols[0].add(at).cast::<i32>().write_unaligned(bytes as i32);
                pair.symbols[1].add(at).cast::<i32>().write_unaligned((bytes >> 32) as i32);
                let needs = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(states), _mm256_setzero_si256());
                let mask = _mm256_movemask_ps(_mm256_castsi256_ps(needs));
                let [a, b] = pair.words.map(|words| _mm_loadl_epi64(words.cast()));
                let taken = _mm256_loadu_si256(TAKEN[mask as usize & 255].as_ptr().cast());
                let words = _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(_mm_unpacklo_epi64(a, b)), taken);
                pair.words[0] = pair.words[0].add(2 * (mask & 15).count_ones() as usize);
                pair.words[1] = pair.words[1].add(2 * (mask >> 4 & 15).count_ones() as usize);
                let renewed = _mm256_or_si256(_mm256_slli_epi32::<16>(states), words);
                pair.states = _mm256_blendv_epi8(states, renewed, needs);
            }
        }
        for (at, stream) in streams.iter_mut().flatten().take(2 * P).enumerate() {
            let pair = &pairs[at / 2];
            let half = match at % 2 {
                0 => _mm256_castsi256_si128(pair.states),
                _ => _mm256_extracti128_si256::<1>(pair.states),
            };
            _mm_storeu_si128(stream.states.as_mut_ptr().cast(), half);
            stream.at += pair.words[at % 2].offset_from_unsigned(view(at).0);
        }
    }
}

/// The arithmetic of `Rates::add_started`: sums of at most 16 rows in 16 bits. Returns false if a row is not inside.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn add_rows_avx2(rows: &[u16], starts: &[usize], sums: &mut [u32; 48]) -> bool {
    if starts.iter().any(|start| *start > rows.len() - rows.len().min(48)) || starts.len() > 16 || rows.len() < 48 {
        return false;
    }
    // SAFETY: each start has 48 numbers after it; `sums` has six vectors of eight.
    unsafe {
        let mut total = [_mm256_setzero_si256(); 3];
        for start in starts {
            let row = rows.as_ptr().add(*start);
            for (at, total) in total.iter_mut().enumerate() {
                *total = _mm256_add_epi16(*total, _mm256_loadu_si256(row.add(16 * at).cast()));
            }
        }
        for (at, total) in total.into_iter().enumerate() {
            let halves = [_mm256_castsi256_si128(total), _mm256_extracti128_si256::<1>(total)];
            for (half, total) in halves.into_iter().enumerate() {
                let sum: *mut __m256i = sums.as_mut_ptr().add(16 * at + 8 * half).cast();
                _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum), _mm256_cvtepu16_epi32(total)));
            }
        }
    }
    true
}

/// The arithmetic of `spatial::mix_channels` for four channels and two rows. Returns `None` if the lengths do not fit.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn mix_avx2(matrix: &[f32], input: &[f32], row: usize, channel: usize) -> Option<[[f32; 16]; 4]> {
    let channels = input.len() / 64;
    if channels == 0 || matrix.len() != channels * channels || channel + 4 > channels || row + 2 > 8 {
        return None;
    }
    // SAFETY: `values` moves through the tiles of `input` at two of its rows, and `by` through the columns of `matrix` at four
    // of its channels.
    unsafe {
        let (mut values, mut by) = (input.as_ptr().add(8 * row), matrix.as_ptr().add(channel));
        let load = |values: *const f32| [_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8))];
        let [a, b] = load(values);
        let mut sums = [0, 1, 2, 3].map(|i| {
            let by = _mm256_broadcast_ss(&*by.add(i));
            [_mm256_mul_ps(by, a), _mm256_mul_ps(by, b)]
        });
        for _ in 1..channels {
            (values, by) = (values.add(64), by.add(channels));
            let [a, b] = load(values);
            for (i, sum) in sums.iter_mut().enumerate() {
                let by = _mm256_broadcast_ss(&*by.add(i));
                sum[0] = _mm256_add_ps(sum[0], _mm256_mul_ps(by, a));
                sum[1] = _mm256_add_ps(sum[1], _mm256_mul_ps(by, b));
            }
        }
        // Two vectors of eight are sixteen numbers.
        Some(std::mem::transmute::<[[__m256; 2]; 4], [[f32; 16]; 4]>(sums))
    }
}

/// The arithmetic of `spatial::inverse_dct` for a whole tile.
#[target_feature(enable = "avx2")]
#[inline]
pub fn inverse_dct_avx2(values: &mut [f32; 64], by: &[[f32; 8]; 8]) {
    store_rows(values, along_rows(along_columns(load_rows(values), by), by));
}

/// The arithmetic of `spatial::forward_dct` for a whole tile.
#[target_feature(enable = "avx2")]
#[inline]
pub fn forward_dct_avx2(values: &mut [f32; 64], by: &[[f32; 8]; 8]) {
    store_rows(values, along_columns(along_rows(load_rows(values), by), by));
}

#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn load_rows(values: &[f32; 64]) -> [__m256; 8] {
    // SAFETY: eight rows of eight.
    [0, 1, 2, 3, 4, 5, 6, 7].map(|row| unsafe { _mm256_loadu_ps(values.as_ptr().add(8 * row)) })
}

#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn store_rows(values: &mut [f32; 64], rows: [__m256; 8]) {
    for (row, vector) in rows.into_iter().enumerate() {
        // SAFETY: eight rows of eight.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr().add(8 * row), vector) };
    }
}

/// `out[i] = sum over k of by[k][i] * rows[k]`.
#[target_feature(enable = "avx2")]
#[inline]
fn along_rows(rows: [__m256; 8], by: &[[f32; 8]; 8]) -> [__m256; 8] {
    let mut out = rows;
    for (i, out) in out.iter_mut().enumerate() {
        let mut sum = _mm256_mul_ps(_mm256_set1_ps(by[0][i]), rows[0]);
        for (by, row) in by.iter().zip(rows).skip(1) {
            sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(by[i]), row));
        }
        *out = sum;
    }
    out
}

/// `out[i][j] = sum over k of rows[i][k] * by[k][j]`.
#[target_feature(enable = "avx2")]
#[inline]
fn along_columns(rows: [__m256; 8], by: &[[f32; 8]; 8]) -> [__m256; 8] {
    let mut values = [0.0; 64];
    store_rows(&mut values, rows);
    let by = load_rows(by.as_flattened().first_chunk().unwrap_or(&[0.0; 64]));
    let mut out = rows;
    for (out, values) in out.iter_mut().zip(values.as_chunks::<8>().0) {
        let mut sum = _mm256_mul_ps(_mm256_set1_ps(values[0]), by[0]);
        for (value, by) in values.iter().zip(by).skip(1) {
            sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(*value), by));
        }
        *out = sum;
    }
    out
}

/// By the lowest bits of the lowest of four levels: the position of each label.
const POSITIONS: [[i32; 4]; 4] = [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0]];

/// The arithmetic of `transform::encode::compare`. Returns the costs by label, and in bit i whether the i-th level gives way to
/// the next towards zero.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn compare_avx2(window: &[f32; 12], y: f32, low: i32) -> ([f32; 4], i32) {
    // SAFETY: the window has 12 numbers; the rest are arrays of 4.
    unsafe {
        let value = _mm_set1_ps(y);
        let near = _mm_add_epi32(_mm_set1_epi32(low), _mm_setr_epi32(0, 1, 2, 3));
        let next = _mm_sub_epi32(near, _mm_sign_epi32(_mm_set1_epi32(4), near));
        let [below, same, above] = [0, 4, 8].map(|at| _mm_loadu_ps(window.as_ptr().add(at)));
        let towards = _mm_blendv_ps(below, above, _mm_castsi128_ps(near));
        let is_zero = _mm_castsi128_ps(_mm_cmpeq_epi32(near, _mm_setzero_si128()));
        let costs = [(near, same), (next, _mm_blendv_ps(towards, same, is_zero))].map(|(level, bits)| {
            let error = _mm_sub_ps(value, _mm_cvtepi32_ps(level));
            _mm_add_ps(_mm_mul_ps(error, error), bits)
        });
        let mask = _mm_movemask_ps(_mm_cmplt_ps(costs[1], costs[0]));
        let positions = _mm_loadu_si128(POSITIONS[(low & 3) as usize].as_ptr().cast());
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm_permutevar_ps(_mm_min_ps(costs[1], costs[0]), positions));
        (out, mask)
    }
}

//! x86-64 code of the transform codec: the entropy decoder, which needs gathers, and costs of the encoder.

use std::arch::x86_64::*;

use crate::quant::transform::{BLOCK, ENTRIES, Entry, SEGMENT, Stream, inputs};

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
        let first_bytes = _mm256_set1_epi32(0x0c08_0400);
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
                let symbols = _mm256_shuffle_epi8(entry, first_bytes);
                let [a, b] = [_mm256_castsi256_si128(symbols), _mm256_extracti128_si256::<1>(symbols)];
                pair.symbols[0].add(at).cast::<i32>().write_unaligned(_mm_cvtsi128_si32(a));
                pair.symbols[1].add(at).cast::<i32>().write_unaligned(_mm_cvtsi128_si32(b));
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

/// The integers of eight symbols.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn centered(symbols: &[u8; 8]) -> __m256i {
    // SAFETY: 8 bytes.
    let symbols = unsafe { _mm_loadl_epi64(symbols.as_ptr().cast()) };
    _mm256_sub_epi32(_mm256_cvtepu8_epi32(symbols), _mm256_set1_epi32(64))
}

#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
fn store_eight(out: &mut [i32; 8], numbers: __m256i) {
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), numbers) };
}

/// Makes integers of symbols without low bits.
#[target_feature(enable = "avx2")]
#[inline]
pub fn center_symbols_avx2(symbols: &[u8; BLOCK], numbers: &mut [i32; BLOCK]) {
    for (symbols, numbers) in symbols.as_chunks().0.iter().zip(numbers.as_chunks_mut().0) {
        store_eight(numbers, centered(symbols));
    }
}

/// The arithmetic of `Rest::numbers_one_by_one` for symbols without escapes and at most 8 low bits each. Returns the lowest bit of
/// each integer and the number of bits, or `None` if `bits` is too short.
#[target_feature(enable = "avx2,bmi2,popcnt")]
#[inline]
#[allow(unsafe_code)]
pub fn add_low_bits_avx2(
    symbols: &[u8; BLOCK],
    raw: &[u8; BLOCK],
    bits: &[u8],
    bit: usize,
    numbers: &mut [i32; BLOCK],
) -> Option<(u64, usize)> {
    let (mut parities, mut at) = (0, bit);
    let masks = _mm_setr_epi8(0, 1, 3, 7, 15, 31, 63, 127, -1, 0, 0, 0, 0, 0, 0, 0);
    let eights = symbols.as_chunks::<8>().0.iter().zip(raw.as_chunks::<8>().0).zip(numbers.as_chunks_mut().0);
    for (i, ((symbols, raw), numbers)) in eights.enumerate() {
        let raw = _mm_cvtsi64_si128(i64::from_le_bytes(*raw));
        let mask = _mm_cvtsi128_si64(_mm_shuffle_epi8(masks, raw)) as u64;
        let window = u128::from_le_bytes(*bits.get(at >> 3..)?.first_chunk()?) >> (at & 7);
        let low = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(_pdep_u64(window as u64, mask) as i64));
        at += mask.count_ones() as usize;
        let high = _mm256_sllv_epi32(centered(symbols), _mm256_cvtepu8_epi32(raw));
        let sum = _mm256_or_si256(high, low);
        store_eight(numbers, sum);
        let lowest = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32::<31>(sum)));
        parities |= u64::from(lowest as u8) << (8 * i);
    }
    Some((parities, at - bit))
}

/// `transform::decode::inputs` as a product of polynomials over GF(2).
#[target_feature(enable = "pclmulqdq")]
#[inline]
pub fn shift_inputs_avx2(parities: u64) -> u64 {
    const INVERSE: u64 = inputs(1);
    let factors = _mm_set_epi64x(INVERSE as i64, parities as i64);
    _mm_cvtsi128_si64(_mm_clmulepi64_si128::<0x10>(factors, factors)) as u64
}

/// Makes levels of integers: `2 k`, plus the lowest bit of the label.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn add_labels_avx2(numbers: &mut [i32; BLOCK], labels: u64) {
    let places = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (numbers, byte) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(labels.to_le_bytes()) {
        // SAFETY: 8 numbers.
        let k = unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) };
        let is_set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(i32::from(byte)), places), places);
        store_eight(numbers, _mm256_sub_epi32(_mm256_add_epi32(k, k), is_set));
    }
}

/// The arithmetic of `Rates::add_rows`: sums of 16 rows in 16 bits. Returns false if a row is not inside.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn add_rows_avx2(rows: &[u16], starts: &[i32; 16], sums: &mut [u32; 48]) -> bool {
    // A negative start is a large number.
    let last = starts.iter().fold(0, |last, start| (*start as u32).max(last));
    if last as usize + 48 > rows.len() {
        return false;
    }
    // SAFETY: each start has 48 numbers after it; `sums` has six vectors of eight.
    unsafe {
        let mut total = [_mm256_setzero_si256(); 3];
        for start in starts {
            let row = rows.as_ptr().add(*start as usize);
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

/// The arithmetic of `transform::encode::compare` for two elements, one in each half of a vector. Returns the costs by label, and
/// in bit i whether the i-th level gives way to the next towards zero.
#[target_feature(enable = "avx2")]
#[inline]
#[allow(unsafe_code)]
pub fn compare_avx2(windows: [&[f32; 12]; 2], y: &[f32; 2], low: &[i32; 2]) -> ([[f32; 4]; 2], [i32; 2]) {
    let halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    // SAFETY: the windows have 12 numbers; the rest are arrays of 2 and 4.
    unsafe {
        let both =
            |two: *const __m128i| _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64(two)), halves);
        let value = _mm256_castsi256_ps(both(y.as_ptr().cast()));
        let near = _mm256_add_epi32(both(low.as_ptr().cast()), _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3));
        let next = _mm256_sub_epi32(near, _mm256_sign_epi32(_mm256_set1_epi32(4), near));
        let [below, same, above] =
            [0, 4, 8].map(|at| _mm256_loadu2_m128(windows[1].as_ptr().add(at), windows[0].as_ptr().add(at)));
        let towards = _mm256_blendv_ps(below, above, _mm256_castsi256_ps(near));
        let is_zero = _mm256_castsi256_ps(_mm256_cmpeq_epi32(near, _mm256_setzero_si256()));
        let costs = [(near, same), (next, _mm256_blendv_ps(towards, same, is_zero))].map(|(level, bits)| {
            let error = _mm256_sub_ps(value, _mm256_cvtepi32_ps(level));
            _mm256_add_ps(_mm256_mul_ps(error, error), bits)
        });
        let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(costs[1], costs[0]));
        let positions = low.map(|low| _mm_loadu_si128(POSITIONS[(low & 3) as usize].as_ptr().cast()));
        let positions = _mm256_set_m128i(positions[1], positions[0]);
        let by_label = _mm256_permutevar_ps(_mm256_min_ps(costs[1], costs[0]), positions);
        let mut out = [[0.0; 4]; 2];
        _mm256_storeu_ps(out.as_mut_ptr().cast(), by_label);
        (out, [mask & 15, mask >> 4])
    }
}

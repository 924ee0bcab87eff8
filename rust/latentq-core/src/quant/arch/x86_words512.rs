//! The entropy decoder of the transform codec with AVX-512, four streams per vector, and what makes levels of its symbols.

use std::arch::x86_64::*;

use super::x86_transform::shift_inputs_avx2;
use crate::quant::transform::{
    BLOCK, ENTRIES, Entry, SEGMENT, Stream, first_parities, inputs, last_inputs, low_labels,
};

/// Streams of a vector.
const FOUR: usize = 4;

/// Elements of a stream between two loads of its tables and stores of its symbols.
const ELEMENTS: usize = 16;

/// By which of the eight states of two streams take a word: for the bytes of each, where they are among the words to come, from
/// the start of those of its stream. The word goes to the upper half; bit 7 gives 0.
const TAKEN: [[u8; 32]; 256] = {
    let mut taken = [[0x80; 32]; 256];
    let mut at = 0;
    while at < 256 * 8 {
        let (mask, state) = (at / 8, at % 8);
        let half = state / 4 * 4;
        let below = (mask >> half) & ((1 << (state - half)) - 1);
        let word = (below as u32).count_ones() as u8;
        taken[mask][4 * state + 2] = 2 * word;
        taken[mask][4 * state + 3] = 2 * word + 1;
        at += 1;
    }
    taken
};

/// Decodes the elements `from..to` of the streams, at most [`SEGMENT`], in sixteens. Returns how many elements are done.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt")]
pub fn decode_words_avx512(
    entries: &[Entry; ENTRIES],
    streams: &mut [Option<&mut Stream>],
    from: usize,
    to: usize,
) -> usize {
    let count = (to - from).min(SEGMENT) / ELEMENTS * ELEMENTS;
    for streams in streams.chunks_mut(4 * FOUR) {
        match streams.iter().flatten().count() {
            0 => {}
            1..=4 => decode_fours::<1>(entries, streams, from, count),
            5..=8 => decode_fours::<2>(entries, streams, from, count),
            9..=12 => decode_fours::<3>(entries, streams, from, count),
            _ => decode_fours::<4>(entries, streams, from, count),
        }
    }
    count
}

/// Where a vector of four streams reads and writes.
#[derive(Clone, Copy)]
struct Four {
    states: __m512i,
    words: [*const u8; FOUR],
    tables: [*const u8; FOUR],
    symbols: [*mut u8; FOUR],
}

/// The arithmetic of `Stream::decode` for `count` elements of at most 4 V streams. The last is decoded in all places that are left,
/// to the same symbols.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt")]
#[allow(unsafe_code)]
fn decode_fours<const V: usize>(
    entries: &[Entry; ENTRIES],
    streams: &mut [Option<&mut Stream>],
    from: usize,
    count: usize,
) {
    let mut views = [None; 4 * FOUR];
    let mut last = None;
    for (view, stream) in views.iter_mut().zip(streams.iter_mut().flatten()).take(FOUR * V) {
        // The words of a segment, and of a read ahead, are inside.
        let words = &stream.words[stream.at..][..2 * SEGMENT + 8];
        let (tables, symbols) = (&stream.tables[from..][..count], &mut stream.symbols[from..][..count]);
        *view = Some((words.as_ptr(), tables.as_ptr(), symbols.as_mut_ptr(), stream.states));
        last = *view;
    }
    if last.is_none() || count > SEGMENT {
        return;
    }
    // By dword of a quarter of a vector: byte `4 step + i`, or with `TRANSPOSED` the other way round.
    let dwords = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 1, 2, 3));
    let transposed = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    let slot_mask = _mm512_set1_epi32(4095);
    // SAFETY: a step reads 8 bytes at each pointer to words and moves it by at most 8, and there are at most SEGMENT / 4
    // steps; 16 bytes of tables are read and of symbols written at multiples of 16 below `count`; tables are masked to five
    // bits, so that indices are below `ENTRIES`.
    unsafe {
        let view = |at: usize| views[at].or(last).unwrap_unchecked();
        let mut fours: [Four; V] = std::array::from_fn(|four| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|stream| view(FOUR * four + stream));
            let states = [a, b, c, d].map(|view| _mm_loadu_si128(view.3.as_ptr().cast()));
            Four {
                states: quarters(states),
                words: [a.0, b.0, c.0, d.0],
                tables: [a.1, b.1, c.1, d.1],
                symbols: [a.2, b.2, c.2, d.2],
            }
        });
        for at in (0..count).step_by(ELEMENTS) {
            let tables = fours.map(|four| {
                let tables = quarters(four.tables.map(|tables| _mm_loadu_si128(tables.add(at).cast())));
                _mm512_and_si512(tables, _mm512_set1_epi8(31))
            });
            let mut symbols = [_mm512_setzero_si512(); V];
            for step in 0..4 {
                let bytes = _mm512_add_epi32(_mm512_set1_epi32(4 * step + (0x8080_8000u32 as i32)), dwords);
                for ((four, tables), symbols) in fours.iter_mut().zip(tables).zip(&mut symbols) {
                    let states = four.states;
                    let table = _mm512_slli_epi32::<12>(_mm512_shuffle_epi8(tables, bytes));
                    let index = _mm512_or_si512(_mm512_and_si512(states, slot_mask), table);
                    let entry = _mm512_i32gather_epi32::<4>(index, entries.as_ptr().cast());
                    let less = _mm512_and_si512(_mm512_srli_epi32::<8>(entry), slot_mask);
                    let upper = _mm512_srli_epi32::<12>(states);
                    let product = _mm512_add_epi32(_mm512_mullo_epi32(less, upper), upper);
                    let states = _mm512_add_epi32(product, _mm512_srli_epi32::<20>(entry));
                    *symbols = _mm512_shrdi_epi32::<8>(*symbols, entry);
                    let needs = _mm512_cmplt_epu32_mask(states, _mm512_set1_epi32(1 << 16));
                    let [low, high] = [usize::from(needs) & 255, usize::from(needs) >> 8];
                    let halves = [low, high].map(|mask| _mm256_loadu_si256(TAKEN[mask].as_ptr().cast()));
                    let taken = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
                    let next = four.words.map(|words| _mm_loadl_epi64(words.cast()));
                    let words = _mm512_shuffle_epi8(quarters(next), taken);
                    four.states = _mm512_mask_shldi_epi32::<16>(states, needs, states, words);
                    for (stream, words) in four.words.iter_mut().enumerate() {
                        *words = words.add(2 * (needs >> (4 * stream) & 15).count_ones() as usize);
                    }
                }
            }
            for (four, symbols) in fours.iter().zip(symbols) {
                let symbols = of_quarters(_mm512_shuffle_epi8(symbols, transposed));
                for (to, symbols) in four.symbols.iter().zip(symbols) {
                    _mm_storeu_si128(to.add(at).cast(), symbols);
                }
            }
        }
        for (at, stream) in streams.iter_mut().flatten().take(FOUR * V).enumerate() {
            let four = &fours[at / FOUR];
            _mm_storeu_si128(stream.states.as_mut_ptr().cast(), of_quarters(four.states)[at % FOUR]);
            stream.at += four.words[at % FOUR].offset_from_unsigned(view(at).0);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn quarters([a, b, c, d]: [__m128i; 4]) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn of_quarters(vector: __m512i) -> [__m128i; 4] {
    [
        _mm512_castsi512_si128(vector),
        _mm512_extracti32x4_epi32::<1>(vector),
        _mm512_extracti32x4_epi32::<2>(vector),
        _mm512_extracti32x4_epi32::<3>(vector),
    ]
}

/// By the last three u before a block: the u of a block whose parities are 0. The rest is linear.
const AFTER: [u64; 8] = {
    let mut after = [0; 8];
    let mut before = 0;
    while before < 8 {
        after[before] = inputs(first_parities(0, before as u64));
        before += 1;
    }
    after
};

/// The lowest bit of the label of each element of a block with these parities, and its last inputs.
#[target_feature(enable = "pclmulqdq")]
#[inline]
fn labels(parities: u64, before: u64) -> (u64, u64) {
    let u = shift_inputs_avx2(parities) ^ AFTER[before as usize & 7];
    (low_labels(u, before), last_inputs(u))
}

/// Makes levels of symbols without low bits. Returns the last inputs of the shift register, or `None` if there is an escape.
#[target_feature(enable = "avx512f,avx512bw,pclmulqdq")]
#[inline]
#[allow(unsafe_code)]
pub fn levels_avx512(symbols: &[u8; BLOCK], before: u64, levels: &mut [i32; BLOCK]) -> Option<u64> {
    // SAFETY: 64 bytes.
    let symbols = unsafe { _mm512_loadu_si512(symbols.as_ptr().cast()) };
    if _mm512_testn_epi8_mask(symbols, symbols) != 0 {
        return None;
    }
    let (labels, after) = labels(_mm512_test_epi8_mask(symbols, _mm512_set1_epi8(1)), before);
    // A symbol has seven bits, so that twice as much and a label fit in a byte.
    let twice = _mm512_add_epi8(symbols, symbols);
    let twice = _mm512_mask_add_epi8(twice, labels, twice, _mm512_set1_epi8(1));
    for (quarter, levels) in of_quarters(twice).into_iter().zip(levels.as_chunks_mut::<16>().0) {
        let wide = _mm512_sub_epi32(_mm512_cvtepu8_epi32(quarter), _mm512_set1_epi32(128));
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_si512(levels.as_mut_ptr().cast(), wide) };
    }
    Some(after)
}

/// [`levels_avx512`] of symbols with at most 8 low bits each, from bit `bit` of `bits` on. Returns the number of bits as well, or
/// `None` if there is an escape, an element has more bits, or `bits` is too short.
#[target_feature(enable = "avx512f,avx512bw,pclmulqdq,bmi2,popcnt")]
#[inline]
#[allow(unsafe_code)]
pub fn levels_with_low_bits_avx512(
    symbols: &[u8; BLOCK],
    raw: &[u8; BLOCK],
    bits: &[u8],
    bit: usize,
    before: u64,
    levels: &mut [i32; BLOCK],
) -> Option<(u64, usize)> {
    let masks = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 3, 7, 15, 31, 63, 127, -1, 0, 0, 0, 0, 0, 0, 0));
    // SAFETY: 64 bytes each.
    let (symbols, raw, masks) = unsafe {
        let raw = _mm512_loadu_si512(raw.as_ptr().cast());
        (_mm512_loadu_si512(symbols.as_ptr().cast()), raw, _mm512_shuffle_epi8(masks, raw))
    };
    if _mm512_testn_epi8_mask(symbols, symbols) != 0 || _mm512_cmpgt_epu8_mask(raw, _mm512_set1_epi8(8)) != 0 {
        return None;
    }
    let (mut eights, mut low, mut at) = ([0u64; 8], [0u64; 8], bit);
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(eights.as_mut_ptr().cast(), masks) };
    for (mask, low) in eights.into_iter().zip(&mut low) {
        let window = u128::from_le_bytes(*bits.get(at >> 3..)?.first_chunk()?) >> (at & 7);
        *low = _pdep_u64(window as u64, mask);
        at += mask.count_ones() as usize;
    }
    // SAFETY: 64 bytes.
    let low = unsafe { _mm512_loadu_si512(low.as_ptr().cast()) };
    let has_low = _mm512_test_epi8_mask(raw, raw);
    let lowest = _mm512_mask_blend_epi8(has_low, symbols, low);
    let (labels, after) = labels(_mm512_test_epi8_mask(lowest, _mm512_set1_epi8(1)), before);
    let wide = |bytes| of_quarters(bytes).map(|bytes| _mm512_cvtepu8_epi32(bytes));
    let (symbols, raw, low) = (wide(symbols), wide(raw), wide(low));
    for (i, levels) in levels.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let high = _mm512_sllv_epi32(_mm512_sub_epi32(symbols[i], _mm512_set1_epi32(64)), raw[i]);
        let twice = _mm512_slli_epi32::<1>(_mm512_or_si512(high, low[i]));
        let level = _mm512_mask_add_epi32(twice, (labels >> (16 * i)) as u16, twice, _mm512_set1_epi32(1));
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_si512(levels.as_mut_ptr().cast(), level) };
    }
    Some((after, at - bit))
}

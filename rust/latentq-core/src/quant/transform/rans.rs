//! The entropy coder: range asymmetric numeral systems (Duda, arXiv:1311.2540) with 32-bit states, words of 16 bits and
//! frequencies that add up to 4096. Four states take the elements of a sample in turn.

use super::{PRECISION, STATES, SYMBOLS};
use crate::Result;
use crate::memory::{filled, resize};
use crate::quant::arch::Isa;

/// What a decoder needs to know about a slot: the symbol (bits 0 to 7), its frequency minus 1 (8 to 19), and the slot's
/// number among those of the symbol (20 to 31).
pub type Entry = u32;

/// Entries of a table.
pub const SLOTS: usize = 1 << PRECISION;

/// Number of entries: those of more tables than there are, so that every number of five bits is a table.
pub const ENTRIES: usize = 32 * SLOTS;

/// A state is at least this before and after each element.
pub const LOW: u32 = 1 << 16;

/// The entries of all tables.
pub fn entries(frequency: &[u16]) -> Result<Vec<Entry>> {
    let mut entries = filled(0, ENTRIES)?;
    for (table, row) in entries.chunks_exact_mut(SLOTS).zip(frequency.chunks_exact(SYMBOLS)) {
        let mut at = 0;
        for (symbol, frequency) in row.iter().enumerate() {
            let slots = &mut table[at..at + usize::from(*frequency)];
            for (number, slot) in slots.iter_mut().enumerate() {
                *slot = symbol as u32 | (u32::from(*frequency) - 1) << 8 | (number as u32) << 20;
            }
            at += slots.len();
        }
    }
    Ok(entries)
}

/// A symbol of a table, for the encoder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Symbol {
    /// `floor(2^44 / frequency) + 1`. For states below `2^20 frequency`, multiplying by it stays below 2^64 and divides exactly.
    reciprocal: u64,
    frequency: u16,
    cumulative: u16,
    /// 4096 less the frequency.
    others: u16,
    /// True if the integer is stored beside the words: the symbol is that of an escape.
    pub is_escape: bool,
}

/// Symbols of all tables (18, 128), and as many more as make a power of two.
pub const ALL_SYMBOLS: usize = 4096;

/// The symbols of all tables. Those without a frequency are escapes.
pub fn symbols(frequency: &[u16]) -> Result<Vec<Symbol>> {
    let mut symbols = filled(Symbol::default(), ALL_SYMBOLS)?;
    for (symbols, row) in symbols.chunks_exact_mut(SYMBOLS).zip(frequency.chunks_exact(SYMBOLS)) {
        let mut cumulative = 0;
        let mut escape = Symbol::default();
        for (number, (symbol, frequency)) in symbols.iter_mut().zip(row).enumerate() {
            let reciprocal = if *frequency == 0 { 0 } else { (1 << 44) / u64::from(*frequency) + 1 };
            let others = (1 << PRECISION) - frequency;
            *symbol = Symbol { reciprocal, frequency: *frequency, cumulative, others, is_escape: number == 0 };
            if number == 0 {
                escape = *symbol;
            } else if *frequency == 0 {
                *symbol = escape;
            }
            cumulative += frequency;
        }
    }
    Ok(symbols)
}

/// The bytes of a sample from its states on, and what they decode to.
#[derive(Default)]
pub struct Stream {
    /// The states and words, with at least [`PADDING`] bytes after `end`.
    pub words: Vec<u8>,
    /// The number of bytes that are of the sample.
    pub end: usize,
    /// The position of the next word.
    pub at: usize,
    /// True if `at` was put back because it was after the end.
    overrun: bool,
    pub states: [u32; STATES],
    /// The table of each element.
    pub tables: Vec<u8>,
    pub symbols: Vec<u8>,
}

/// Elements that are decoded between two checks of the position.
pub const SEGMENT: usize = 256;

/// Bytes of the words of a segment, and of the read ahead.
pub const PADDING: usize = 2 * SEGMENT + 16;

/// Entropy-decodes samples of the same number of elements side by side, the first `Some` ones.
#[inline(always)]
pub fn decode_streams(isa: Isa, entries: &[Entry], streams: &mut [Option<&mut Stream>]) {
    let Ok(entries) = entries.try_into() else { return };
    let elements = streams.iter().flatten().map(|stream| stream.symbols.len()).max().unwrap_or(0);
    for from in (0..elements).step_by(SEGMENT) {
        let to = elements.min(from + SEGMENT);
        for stream in streams.iter_mut().flatten() {
            if stream.at + PADDING > stream.words.len() {
                // The sample ended long ago. The rest is read from anywhere, and `at` tells so.
                stream.overrun = true;
                stream.at = 4 * STATES;
            }
        }
        // The vectors take four elements of each sample at a time.
        let done = from + isa.decode_words(entries, streams, from, to);
        for stream in streams.iter_mut().flatten() {
            stream.decode(entries, done, to);
        }
    }
}

impl Stream {
    /// A stream for samples of this many elements.
    pub fn new(elements: usize) -> Result<Self> {
        Ok(Self { tables: filled(0, elements)?, symbols: filled(0, elements)?, ..Self::default() })
    }

    /// Begins with the bytes of a sample from its states on. Returns false if there are not even states.
    pub fn start(&mut self, bytes: &[u8]) -> Result<bool> {
        let Some((states, _)) = bytes.split_first_chunk::<{ 4 * STATES }>() else { return Ok(false) };
        for (state, bytes) in self.states.iter_mut().zip(states.as_chunks().0) {
            *state = u32::from_le_bytes(*bytes);
        }
        self.end = bytes.len();
        if self.words.len() < self.end + PADDING {
            resize(&mut self.words, self.end + PADDING)?;
        }
        self.words[..self.end].copy_from_slice(bytes);
        (self.at, self.overrun) = (4 * STATES, false);
        Ok(true)
    }

    /// True if the words went on after the end of the sample.
    pub fn is_short(&self) -> bool {
        self.overrun || self.at > self.end
    }

    /// Decodes the elements `from..to`, at most [`SEGMENT`].
    #[inline(always)]
    pub fn decode(&mut self, entries: &[Entry; ENTRIES], from: usize, to: usize) {
        let symbols = self.symbols[from..to].iter_mut().zip(&self.tables[from..to]);
        for (i, (symbol, table)) in (from..).zip(symbols) {
            let state = &mut self.states[i % STATES];
            let entry = entries[(usize::from(*table) << PRECISION | (*state as usize & (SLOTS - 1))) % ENTRIES];
            *symbol = entry as u8;
            *state = ((entry >> 8 & 4095) + 1) * (*state >> PRECISION) + (entry >> 20);
            if *state < LOW {
                let word =
                    self.words.get(self.at..self.at + 2).map_or(0, |word| u16::from_le_bytes([word[0], word[1]]));
                *state = *state << 16 | u32::from(word);
                self.at += 2;
            }
        }
    }
}

/// Encodes the elements of a sample from the last to the first. Writes the words to the end of `words`, which has room for one
/// per element and one more, in the order in which a decoder reads them. Returns the states, where the words begin, and whether
/// an element is an escape.
#[inline(always)]
pub fn encode(
    symbols: &[Symbol; ALL_SYMBOLS],
    indices: &[u16],
    mut states: [u32; STATES],
    words: &mut [u16],
) -> ([u32; STATES], usize, bool) {
    let (mut at, mut has_escape) = (words.len(), false);
    let (fours, rest) = indices.as_chunks::<STATES>();
    let mut step = |state: &mut u32, index: u16| {
        let symbol = &symbols[usize::from(index) % ALL_SYMBOLS];
        has_escape |= symbol.is_escape;
        // Without branches, which could not be predicted.
        let is_full = *state >> (32 - PRECISION) >= u32::from(symbol.frequency);
        words[at - 1] = *state as u16;
        at -= usize::from(is_full);
        let low = *state >> (16 * u32::from(is_full));
        let quotient = (u64::from(low).wrapping_mul(symbol.reciprocal) >> 44) as u32;
        // The quotient in steps of 4096, the remainder and the symbol's first slot.
        *state = low + u32::from(symbol.cumulative) + quotient * u32::from(symbol.others);
    };
    for (state, index) in states.iter_mut().zip(rest).rev() {
        step(state, *index);
    }
    for four in fours.iter().rev() {
        for (state, index) in states.iter_mut().zip(four).rev() {
            step(state, *index);
        }
    }
    (states, at, has_escape)
}

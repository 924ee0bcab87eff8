//! The code of each instruction set; [`crate::isa`] says which may be used.
//!
//! Each kernel is written once, as plain loops, and compiled for every instruction set. A kernel must be
//! `#[inline(always)]` all the way down, so that its loops are compiled inside the wrappers in this module.

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_affine;
#[cfg(target_arch = "x86_64")]
mod x86_bits;
#[cfg(target_arch = "x86_64")]
mod x86_encode512;
#[cfg(target_arch = "x86_64")]
mod x86_levels;
#[cfg(target_arch = "x86_64")]
mod x86_stream;
#[cfg(target_arch = "x86_64")]
mod x86_tiles;
#[cfg(target_arch = "x86_64")]
mod x86_tiles512;
#[cfg(target_arch = "x86_64")]
mod x86_transform;
#[cfg(target_arch = "x86_64")]
mod x86_trellis;
#[cfg(target_arch = "x86_64")]
mod x86_words512;

use super::floats::{Float, Floats, FloatsMut};
use super::kernel::{Kernel, LABELS, Observed, STATES, ValueCounts};
use super::scheme::Affine;
use super::transform::{BLOCK, ENTRIES, EightTiles, Entry, Stream, Windows};
use super::trellis::{Nearest, Runs, TrellisLevels};
use crate::isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Level;

/// An instruction set that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// The baseline of the architecture (SSE2, NEON).
    Baseline,
    /// 256-bit vectors and float16 conversion (AVX2, F16C).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors with byte permutes (Ice Lake, Zen 4 and later).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// All instruction sets that may be used, the best last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend((isa::best() >= Level::Avx2).then_some(Isa::Avx2));
            all.extend((isa::best() >= Level::Avx512Vbmi).then_some(Isa::Avx512));
        }
        all
    }

    /// The best instruction set that may be used.
    pub fn best() -> Isa {
        match isa::best() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vbmi => Isa::Avx512,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => Isa::Avx2,
            _ => Isa::Baseline,
        }
    }
}

// SAFETY, for all calls below: only `available` and `best` make the values Avx2 and Avx512, after asking `isa`, which checks the processor.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
#[allow(unsafe_code)]
impl Isa {
    /// Number of f32 values that a kernel which keeps sets of vectors in registers should process together.
    pub fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => 16,
            _ => 8,
        }
    }

    /// Runs the kernel's code for this instruction set.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Baseline => kernel.run(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
        }
    }

    /// Widens every element to f32, with the conversion instruction if there is one.
    #[inline(always)]
    pub fn widen<F: Float>(self, bits: &[F::Bits], out: &mut [f32]) {
        let done = match F::floats(bits) {
            Floats::F16(bits) => self.widen_f16(bits, out),
            _ => 0,
        };
        for (bits, out) in bits[done..].iter().zip(&mut out[done..]) {
            *out = F::widen(*bits);
        }
    }

    /// Narrows every element from f32, with the conversion instruction if there is one.
    #[inline(always)]
    pub fn narrow<F: Float>(self, values: &[f32], out: &mut [F::Bits]) {
        let done = match F::floats_mut(out) {
            Some(FloatsMut::F16(out)) => self.narrow_f16(values, out),
            _ => 0,
        };
        for (value, out) in values[done..].iter().zip(&mut out[done..]) {
            *out = F::narrow(*value);
        }
    }

    /// Widens float16. Returns the number of elements done, possibly not all.
    fn widen_f16(self, bits: &[u16], out: &mut [f32]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86::widen_f16(bits, out) },
        }
    }

    /// Narrows to float16. Returns the number of elements done, possibly not all.
    fn narrow_f16(self, values: &[f32], out: &mut [u16]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86::narrow_f16(values, out) },
        }
    }

    /// Encodes to the nearest code. Returns the number of elements done, possibly not all.
    pub(super) fn encode(self, affine: &Affine, x: Floats<'_>, out: &mut [u8]) -> (usize, Observed) {
        match (self, x) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, x) => (x.len(), unsafe { x86::encode_avx512(affine, x, out) }),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, x) => unsafe { x86_affine::encode_avx2::<false>(affine, x, out) },
            _ => (0, Observed::NOTHING),
        }
    }

    /// [`Isa::encode`] of all, with stores that bypass the caches; [`fence`] must follow the last. Returns `None` if the
    /// instruction set has no code for that or some of the values; then what is in `out` means nothing.
    ///
    /// # Panics
    /// If `out` is not aligned to 16 bytes.
    #[inline(always)]
    pub(super) fn encode_past_caches(self, affine: &Affine, x: Floats<'_>, out: &mut [u8]) -> Option<Observed> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                let (done, seen) = unsafe { x86_affine::encode_avx2::<true>(affine, x, out) };
                (done == out.len()).then_some(seen)
            }
            _ => None,
        }
    }

    /// Decodes. Returns the number of elements done, possibly not all.
    pub(super) fn decode(self, affine: &Affine, codes: &[u8], out: FloatsMut<'_>) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::decode_avx512(affine, codes, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_affine::decode_avx2(affine, codes, out) },
            _ => 0,
        }
    }

    /// Packs codes of BITS bits, fewer than 8. Returns the number of codes done, a multiple of 8 and possibly not all.
    pub(super) fn pack<const BITS: usize>(self, codes: &[u8], out: &mut [u8]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86_bits::pack_avx2::<BITS>(codes, out) },
        }
    }

    /// Unpacks codes of BITS bits, fewer than 8. Returns the number of codes done, a multiple of 8 and possibly not all.
    pub(super) fn unpack<const BITS: usize>(self, packed: &[u8], out: &mut [u8]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_bits::unpack_avx2::<BITS>(packed, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_bits::unpack_avx512::<BITS>(packed, out) },
        }
    }

    /// Finds the nearest level of each label for the values of a lane, whose searches ended at `pairs`, and writes the squared
    /// errors for [`Isa::advance`]. Returns false if the
    /// instruction set has no code for that, and nothing is done.
    #[inline(always)]
    pub(super) fn compare<const L: usize>(
        self,
        levels: &TrellisLevels,
        x: &[f32],
        pairs: &[u8],
        lane: usize,
        costs: &mut [[[f32; L]; LABELS]],
        nearest: &mut [Nearest],
    ) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => {
                unsafe { x86_trellis::compare_avx2(levels, x, pairs, lane, costs, nearest) };
                true
            }
        }
    }

    /// True if [`Isa::advance`] takes costs with the labels of a lane next to each other.
    #[inline(always)]
    pub(super) fn has_labels_together(self) -> bool {
        self != Isa::Baseline
    }

    /// Extends paths by some elements. Returns false if the instruction set has no code for that, and nothing is done.
    #[inline(always)]
    pub(super) fn advance<const L: usize>(
        self,
        metric: &mut [[f32; L]; STATES],
        costs: &[[[f32; L]; LABELS]],
        paths: &mut [[u8; L]],
    ) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe {
                x86_trellis::advance_avx2(
                    metric.as_flattened_mut(),
                    costs.as_flattened().as_flattened(),
                    paths.as_flattened_mut(),
                )
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe {
                x86_trellis::advance_avx512(
                    metric.as_flattened_mut(),
                    costs.as_flattened().as_flattened(),
                    paths.as_flattened_mut(),
                )
            },
        }
    }

    /// Entropy-decodes the elements `from..to` of some streams, in fours. Returns the number of elements done, possibly not all.
    #[inline(always)]
    pub(super) fn decode_words(
        self,
        entries: &[Entry; ENTRIES],
        streams: &mut [Option<&mut Stream>],
        from: usize,
        to: usize,
    ) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_transform::decode_words_avx2(entries, streams, from, to) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_words512::decode_words_avx512(entries, streams, from, to) },
        }
    }

    /// Makes integers of symbols without low bits. Returns false if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn center_symbols(self, symbols: &[u8; BLOCK], numbers: &mut [i32; BLOCK]) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => {
                unsafe { x86_transform::center_symbols_avx2(symbols, numbers) };
                true
            }
        }
    }

    /// Makes integers of symbols and at most 8 low bits of each, from bit `bit` of `bits` on. Returns the lowest bit of each and
    /// the number of bits; `None` if the instruction set has no code for that, or `bits` is too short.
    #[inline(always)]
    pub(super) fn add_low_bits(
        self,
        symbols: &[u8; BLOCK],
        raw: &[u8; BLOCK],
        bits: &[u8],
        bit: usize,
        numbers: &mut [i32; BLOCK],
    ) -> Option<(u64, usize)> {
        match self {
            Isa::Baseline => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86_transform::add_low_bits_avx2(symbols, raw, bits, bit, numbers) },
        }
    }

    /// Makes levels of symbols without low bits. Returns the last inputs of the shift register; `None` if the instruction set has
    /// no code for that, or there is an escape.
    #[inline(always)]
    pub(super) fn levels(self, symbols: &[u8; BLOCK], before: u64, levels: &mut [i32; BLOCK]) -> Option<u64> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_words512::levels_avx512(symbols, before, levels) },
            _ => None,
        }
    }

    /// [`Isa::levels`] of symbols with low bits, from bit `bit` of `bits` on. Returns the number of bits as well; `None` also if an
    /// element has more than 8, or `bits` is too short.
    #[inline(always)]
    pub(super) fn levels_with_low_bits(
        self,
        symbols: &[u8; BLOCK],
        raw: &[u8; BLOCK],
        bits: &[u8],
        bit: usize,
        before: u64,
        levels: &mut [i32; BLOCK],
    ) -> Option<(u64, usize)> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe {
                x86_words512::levels_with_low_bits_avx512(symbols, raw, bits, bit, before, levels)
            },
            _ => None,
        }
    }

    /// The inputs of the shift register of a trellis that gave these parities; `None` if the instruction set has no code for
    /// that.
    #[inline(always)]
    pub(super) fn shift_inputs(self, parities: u64) -> Option<u64> {
        match self {
            Isa::Baseline => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => Some(unsafe { x86_transform::shift_inputs_avx2(parities) }),
        }
    }

    /// Makes levels of integers. Returns false if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn add_labels(self, numbers: &mut [i32; BLOCK], labels: u64) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => {
                unsafe { x86_transform::add_labels_avx2(numbers, labels) };
                true
            }
        }
    }

    /// True if [`Isa::inverse_eight_tiles`] does anything.
    #[inline(always)]
    pub(super) fn has_eight_tiles(self) -> bool {
        self != Isa::Baseline
    }

    /// Integers to values for eight whole tiles side by side, if the instruction set has code for that.
    #[inline(always)]
    pub(super) fn inverse_eight_tiles(self, tiles: &mut EightTiles<'_>, numbers: &[i32], out: &mut [f32]) {
        match self {
            Isa::Baseline => {}
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_tiles::inverse_avx2(tiles, numbers, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_tiles512::inverse_avx512(tiles, numbers, out) },
        }
    }

    /// Interleaves eight rows. Returns false if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn interleave_eight(self, rows: [&[i32]; 8], out: &mut [i32]) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86_tiles::interleave_avx2(rows, out) },
        }
    }

    /// Sums over channels for four of them and two rows of a tile; `None` if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn mix(self, matrix: &[f32], input: &[f32], row: usize, channel: usize) -> Option<[[f32; 16]; 4]> {
        match self {
            Isa::Baseline => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86_transform::mix_avx2(matrix, input, row, channel) },
        }
    }

    /// [`Isa::mix`] for a whole tile.
    #[inline(always)]
    pub(super) fn mix_tile(self, matrix: &[f32], input: &[f32], channel: usize) -> Option<[[f32; 64]; 4]> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_encode512::mix_tile_avx512(matrix, input, channel) },
            _ => None,
        }
    }

    /// Adds rows of 48 numbers that start there. Returns false if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn add_rows(self, rows: &[u16], starts: &[i32; 16], sums: &mut [u32; 48]) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86_transform::add_rows_avx2(rows, starts, sums) },
        }
    }

    /// The inverse DCT of a whole tile. Returns false if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn inverse_dct(self, values: &mut [f32; 64], by: &[[f32; 8]; 8]) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => {
                unsafe { x86_transform::inverse_dct_avx2(values, by) };
                true
            }
        }
    }

    /// The DCT of a whole tile. Returns false if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn forward_dct(self, values: &mut [f32; 64], by: &[[f32; 8]; 8]) -> bool {
        match self {
            Isa::Baseline => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                unsafe { x86_transform::forward_dct_avx2(values, by) };
                true
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                unsafe { x86_encode512::forward_dct_avx512(values, by) };
                true
            }
        }
    }

    /// For sixteen elements of a lane: costs of four consecutive levels from `low` on, or of the next towards zero, by label, and
    /// the choice. Returns false if the instruction set has no code for that, or a t has no window; then nothing is done.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn compare_sixteen<const L: usize>(
        self,
        by_level: &[f32],
        windows: &Windows,
        t: &[u8; 16],
        y: &[f32; 16],
        low: &[i32; 16],
        lane: usize,
        costs: &mut [[[f32; L]; LABELS]; 16],
        choices: &mut [i32; 16],
    ) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86_encode512::compare_avx512(by_level, windows, t, y, low, lane, costs, choices) },
            _ => false,
        }
    }

    /// For two elements: costs of four consecutive levels from `low` on, or of the next towards zero, by label, and the choice.
    /// Returns `None` if the instruction set has no code for that.
    #[inline(always)]
    pub(super) fn compare_levels(
        self,
        windows: [&[f32; 12]; 2],
        y: &[f32; 2],
        low: &[i32; 2],
    ) -> Option<([[f32; LABELS]; 2], [i32; 2])> {
        match self {
            Isa::Baseline => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => Some(unsafe { x86_transform::compare_avx2(windows, y, low) }),
        }
    }

    /// Looks up levels. Returns the number of elements of each run that are done, possibly not all.
    #[inline(always)]
    pub(super) fn look_up_levels(self, levels: &TrellisLevels, bits: u32, runs: Runs<'_>, out: FloatsMut<'_>) -> usize {
        match (self, out) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, FloatsMut::F32(out)) => match bits {
                ..=3 => unsafe { x86_levels::look_up_avx2::<1>(levels, runs, out) },
                4 => unsafe { x86_levels::look_up_avx2::<2>(levels, runs, out) },
                5 => unsafe { x86_levels::look_up_avx2::<4>(levels, runs, out) },
                _ => unsafe { x86_levels::look_up_one_by_one(&levels.levels, runs, out) },
            },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, out) => unsafe { x86_levels::look_up_avx512(levels, bits, runs, out) },
            _ => 0,
        }
    }

    /// Looks codes up in a table. Returns the number of elements done, possibly not all.
    pub fn look_up(self, table: &[f32; 256], bits: u32, codes: &[u8], out: &mut [f32]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if bits <= 4 => unsafe { x86::look_up_avx2(table, codes, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::look_up_avx512(table, codes, out) },
        }
    }

    /// Searches the tree of a codebook for each x. Returns the number of elements done, possibly not all.
    pub fn search(self, tree: &[f32; 256], bits: u32, x: &[f32], out: &mut [u8]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_trellis::search_avx2(tree, bits, x, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::search_avx512(tree, bits, x, out) },
        }
    }

    /// Quantizes to the nearest code, one byte each, past the caches. Returns `None` if the instruction set has no code for
    /// that, and nothing is done.
    pub(super) fn quantize_past_caches<F: Float>(
        self,
        affine: &[Affine],
        x: &[F::Bits],
        out: &mut [u8],
        plane: usize,
    ) -> Option<ValueCounts> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some(unsafe { x86_stream::quantize::<F>(affine, x, out, plane) }),
            _ => None,
        }
    }

    /// Copies whole cache lines with non-temporal stores, which bypass the caches, if there are such. [`fence`] must follow
    /// the last.
    ///
    /// # Panics
    /// If `out` is not aligned to cache lines, or the lengths differ or are not of whole lines.
    #[inline(always)]
    pub(super) fn store_past_caches<T: Copy>(self, from: &[T], out: &mut [T]) {
        match self {
            Isa::Baseline => out.copy_from_slice(from),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86::store_past_caches(from, out) },
        }
    }
}

/// Makes non-temporal stores visible to other threads before anything that follows.
#[allow(unsafe_code)]
pub(super) fn fence() {
    // SAFETY: every x86-64 processor has SSE.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

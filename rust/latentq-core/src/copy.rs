//! Copies of values that lie anywhere in memory.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // elsewhere they are plain copies

use crate::isa::{self, Level};
use crate::memory::prefetch;

/// Values are prefetched when this many bytes are left to copy before them: fewer, and they arrive late.
const AHEAD: usize = 8192;

/// The maximum number of values to prefetch ahead.
const MOST_AHEAD: usize = 8;

/// Arrays of this size and more are written past the caches, of which they would need more than there is.
const PAST_CACHES: usize = 16 << 20;

/// How many values of this many bytes after the one that is copied is the one to prefetch.
pub fn ahead(size: usize) -> usize {
    (AHEAD / size.max(1)).clamp(1, MOST_AHEAD)
}

/// Copies values into arrays, in any order.
pub struct Copier {
    level: Level,
    is_past_caches: bool,
}

impl Copier {
    /// The fastest copier.
    pub fn best() -> Self {
        Self::new(isa::best())
    }

    fn new(level: Level) -> Self {
        Self { level, is_past_caches: false }
    }

    /// Copies `value` to row `slot` of `out`, whose rows have the size of `value`, and prefetches `coming`, line by line in
    /// turns: the processor waits while it prefetches many lines at once.
    ///
    /// # Panics
    /// If `out` has no such row.
    #[inline]
    #[allow(unsafe_code)]
    pub fn copy(&mut self, value: &[u8], coming: &[u8], out: &mut [u8], slot: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.level >= Level::Avx2 {
            let is_past_caches = out.len() >= PAST_CACHES;
            self.is_past_caches |= is_past_caches;
            let row = &mut out[slot * value.len()..][..value.len()];
            // SAFETY, for both: the processor has AVX2.
            return match is_past_caches {
                true => unsafe { x86::copy::<true>(value, coming, row) },
                false => unsafe { x86::copy::<false>(value, coming, row) },
            };
        }
        prefetch(coming);
        out[slot * value.len()..][..value.len()].copy_from_slice(value);
    }
}

impl Drop for Copier {
    /// Other threads see what was copied before anything that follows.
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.is_past_caches {
            // SAFETY: every x86-64 processor has the instruction.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    const LINE: usize = 64;

    /// Lines copied in one round of the loop. With one line a round, the processor mispredicts the end of nearly every value,
    /// which costs a fifth of the time.
    const LINES: usize = 4;

    /// Copies `value` to `out`, of the same length, and prefetches `coming`.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub fn copy<const PAST_CACHES: bool>(value: &[u8], coming: &[u8], out: &mut [u8]) {
        // Non-temporal stores are for whole lines.
        let start = if PAST_CACHES { out.as_ptr().align_offset(LINE).min(out.len()) } else { 0 };
        let (value_start, value) = value.split_at(start);
        let (out_start, out) = out.split_at_mut(start);
        out_start.copy_from_slice(value_start);
        let (rounds, value_lines) = value.as_chunks::<{ LINES * LINE }>();
        let (out_rounds, out_lines) = out.as_chunks_mut::<{ LINES * LINE }>();
        let mut later = coming.chunks(LINES * LINE);
        for (from, to) in rounds.iter().zip(out_rounds) {
            later.next().into_iter().for_each(prefetch_lines);
            for line in 0..LINES {
                // SAFETY: there are as many lines; they are aligned in `out` if `PAST_CACHES`.
                unsafe { copy_line::<PAST_CACHES>(from.as_ptr().add(line * LINE), to.as_mut_ptr().add(line * LINE)) };
            }
        }
        let (lines, value_end) = value_lines.as_chunks::<LINE>();
        let (out_lines, out_end) = out_lines.as_chunks_mut::<LINE>();
        for (from, to) in lines.iter().zip(out_lines) {
            // SAFETY: as above.
            unsafe { copy_line::<PAST_CACHES>(from.as_ptr(), to.as_mut_ptr()) };
        }
        out_end.copy_from_slice(value_end);
        // Prefetch the rest of `coming`, and its last line, if it begins inside a line.
        later.for_each(prefetch_lines);
        if let Some(last) = coming.last() {
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(last).cast());
        }
    }

    /// Prefetches a round's lines. The last round may have fewer; lines after it are prefetched for nothing.
    #[inline(always)]
    fn prefetch_lines(lines: &[u8]) {
        for line in 0..LINES {
            // SAFETY: every x86-64 processor has the instruction, a hint for any address.
            #[allow(unsafe_code)]
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(lines.as_ptr().wrapping_add(line * LINE).cast());
            }
        }
    }

    /// Copies a line by halves: the compiler takes a loop with one store for a `memcpy`, and no longer takes turns.
    ///
    /// # Safety
    /// Both are lines, and `to` is aligned if `PAST_CACHES`.
    #[target_feature(enable = "avx2")]
    #[inline]
    #[allow(unsafe_code)]
    unsafe fn copy_line<const PAST_CACHES: bool>(from: *const u8, to: *mut u8) {
        // SAFETY: by the contract.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(LINE / 2).cast()));
            if PAST_CACHES {
                _mm256_stream_si256(to.cast(), low);
                _mm256_stream_si256(to.add(LINE / 2).cast(), high);
            } else {
                _mm256_storeu_si256(to.cast(), low);
                _mm256_storeu_si256(to.add(LINE / 2).cast(), high);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{AHEAD, Copier, MOST_AHEAD, PAST_CACHES, ahead};
    use crate::isa::{self, Level};

    #[test]
    fn large_values_are_prefetched_one_ahead_and_small_ones_more() {
        assert_eq!([0, 1, AHEAD / 2, AHEAD, usize::MAX].map(ahead), [MOST_AHEAD, MOST_AHEAD, 2, 1, 1]);
    }

    proptest! {
        #[test]
        fn rows_are_the_values_and_nothing_else_is_written(
            bytes in prop::collection::vec(any::<u8>(), 1..700),
            skip in 0usize..70,
            offset in 0usize..70,
            rest in 0usize..300,
            slots in prop::collection::vec(0usize..5, 1..6),
        ) {
            let value = &bytes[skip.min(bytes.len() - 1)..];
            let mut expected = vec![1; offset + 5 * value.len()];
            for slot in &slots {
                expected[offset + slot * value.len()..][..value.len()].copy_from_slice(value);
            }
            for level in [Level::Scalar, isa::best()] {
                let mut out = vec![1; expected.len()];
                let mut copier = Copier::new(level);
                for slot in &slots {
                    copier.copy(value, &bytes[..rest.min(bytes.len())], &mut out[offset..], *slot);
                }
                drop(copier);
                prop_assert_eq!(&out, &expected);
            }
        }
    }

    #[test]
    fn large_arrays_are_written_past_the_caches() {
        for (size, offset) in [(1 << 20, 0), (4096, 0), (4096, 16), (1000, 1), (31, 3), (64, 64)] {
            let n = (PAST_CACHES + size) / size;
            let value: Vec<u8> = (0..size).map(|i| (i * 7 + i / 256) as u8).collect();
            let mut out = vec![0; offset + n * size];
            let mut copier = Copier::new(isa::best());
            (0..n).for_each(|slot| copier.copy(&value, &value, &mut out[offset..], slot));
            assert_eq!(copier.is_past_caches, cfg!(target_arch = "x86_64") && isa::best() >= Level::Avx2);
            drop(copier);
            assert!(out[offset..].chunks_exact(size).all(|row| row == value));
            assert!(out[..offset].iter().all(|byte| *byte == 0));
        }
    }
}

//! What system and processor are told of memory. Both are free not to listen.

use std::mem::MaybeUninit;

/// Asks for huge pages, which are made faster than small ones, and whose addresses the processor has at hand.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn advise_huge(memory: &mut [MaybeUninit<u8>]) {
    const PAGE: usize = 1 << 12;

    let before = memory.as_ptr().addr() % PAGE;
    let pages = memory.as_mut_ptr().wrapping_byte_sub(before).cast();
    // SAFETY: the advice changes nothing that is in these pages, which are those that the memory lies in.
    unsafe { libc::madvise(pages, before + memory.len(), libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
pub fn advise_huge(_: &mut [MaybeUninit<u8>]) {}

/// Has the processor fetch `bytes` into its second cache while it does something else. (Into the first was slower: fewer
/// fetches are under way there.)
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    const LINE: usize = 64;
    for line in bytes.chunks(LINE) {
        // SAFETY: a hint, on an address that is inside `bytes`.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn prefetch(_: &[u8]) {}

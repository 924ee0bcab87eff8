//! How the processor is told of what it will need.

/// Has the processor fetch `bytes` into its second cache while it does something else. (Into the first was slower: fewer fetches are under way there.)
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

//! Fallible allocation, and hints about memory to the operating system and the processor, which may ignore them.

use std::mem::MaybeUninit;

use crate::{Error, Result};

/// An empty vector with room for `len` elements.
///
/// # Errors
/// A memory error.
pub fn with_room<T>(len: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| Error::memory(len.saturating_mul(size_of::<T>())))?;
    Ok(out)
}

/// A vector of `len` equal values.
///
/// # Errors
/// A memory error.
pub fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>> {
    let mut out = with_room(len)?;
    out.resize(len, value);
    Ok(out)
}

/// Resizes to `len` values; new ones are 0.
///
/// # Errors
/// A memory error.
pub fn resize<T: Clone + Default>(values: &mut Vec<T>, len: usize) -> Result<()> {
    let more = len.saturating_sub(values.len());
    values.try_reserve_exact(more).map_err(|_| Error::memory(len.saturating_mul(size_of::<T>())))?;
    values.resize(len, T::default());
    Ok(())
}

/// Makes room for `more` bytes.
///
/// # Errors
/// A memory error.
pub fn reserve(bytes: &mut Vec<u8>, more: usize) -> Result<()> {
    // Growing by a factor is fast, but may ask for memory that is not needed.
    if bytes.try_reserve(more).is_ok() {
        return Ok(());
    }
    bytes.try_reserve_exact(more).map_err(|_| Error::memory(bytes.len().saturating_add(more)))
}

/// Appends bytes.
///
/// # Errors
/// A memory error.
pub fn append(bytes: &mut Vec<u8>, more: &[u8]) -> Result<()> {
    reserve(bytes, more.len())?;
    bytes.extend_from_slice(more);
    Ok(())
}

/// Blocks of at least this size ask for huge pages.
pub const HUGE: usize = 4 << 20;

/// Asks for huge pages, which are faster to allocate than small pages and need fewer TLB entries.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn advise_huge(memory: &mut [MaybeUninit<u8>]) {
    const PAGE: usize = 1 << 12;

    let before = memory.as_ptr().addr() % PAGE;
    let pages = memory.as_mut_ptr().wrapping_byte_sub(before).cast();
    // SAFETY: the advice does not change the contents of the pages, and the range covers only the pages of `memory`.
    unsafe { libc::madvise(pages, before + memory.len(), libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
pub fn advise_huge(_: &mut [MaybeUninit<u8>]) {}

/// Prefetches `bytes` into the L2 cache. (Prefetching into L1 was slower: it has fewer outstanding misses.)
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    prefetch_lines::<{ std::arch::x86_64::_MM_HINT_T1 }>(bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Prefetches a few lines, between other work, into the L1 cache.
#[inline(always)]
pub fn prefetch_few(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    prefetch_lines::<{ std::arch::x86_64::_MM_HINT_T0 }>(bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[inline(always)]
fn prefetch_lines<const HINT: i32>(bytes: &[u8]) {
    const LINE: usize = 64;
    for line in bytes.chunks(LINE) {
        // SAFETY: a hint, for an address inside `bytes`.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(line.as_ptr().cast()) };
    }
}

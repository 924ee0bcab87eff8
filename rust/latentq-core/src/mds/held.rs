//! Shards held in memory: their room, how they get there, and how the processor is told of what comes next.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::reader::read_exact_at;

/// Bytes that are read at a time: what is made room for is still in the processor's cache when it is filled.
const STRETCH: usize = 1 << 20;

/// Bytes that the readers of this process have reserved.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// Room for shards in memory, free again when this is dropped.
pub struct Reservation(usize);

impl Reservation {
    /// Reserves `bytes`, where all reservations of this process together stay within `limit`.
    pub fn new(bytes: usize, limit: usize) -> Option<Self> {
        let within = |reserved: usize| reserved.checked_add(bytes).filter(|sum| *sum <= limit);
        RESERVED.fetch_update(Relaxed, Relaxed, within).ok().map(|_| Self(bytes))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.0, Relaxed);
    }
}

/// The first `len` bytes of a file, or nothing where there is no memory for them.
///
/// # Errors
/// As of reading; `UnexpectedEof` for a shorter file.
pub fn read_whole(file: &File, len: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(len).is_err() {
        return Ok(None);
    }
    advise_huge(&mut bytes);
    while bytes.len() < len {
        let start = bytes.len();
        bytes.resize(len.min(start + STRETCH), 0);
        read_exact_at(file, &mut bytes[start..], start as u64)?;
    }
    Ok(Some(bytes))
}

/// Asks for huge pages: samples are read at random, and of small pages the processor has not all addresses at hand.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn advise_huge(bytes: &mut Vec<u8>) {
    const PAGE: usize = 1 << 12;

    let room = bytes.spare_capacity_mut();
    let before = room.as_ptr().addr() % PAGE;
    let pages = room.as_mut_ptr().wrapping_byte_sub(before).cast();
    // SAFETY: the advice changes nothing that is in these pages, which are those that the buffer lies in.
    unsafe { libc::madvise(pages, before + room.len(), libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_: &mut Vec<u8>) {}

/// Has the processor fetch the first bytes of what comes next while it is still at work: it goes on by itself from there.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[inline]
pub fn prefetch(next: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    const LINE: usize = 64;
    const LINES: usize = 8;
    for line in next.chunks(LINE).take(LINES) {
        // SAFETY: a hint, on an address that is inside `next`.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub fn prefetch(_: &[u8]) {}

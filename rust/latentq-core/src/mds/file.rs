//! Reading files by position and whole, and the memory that whole shards may take.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::memory::advise_huge;

/// Bytes read at a time: small enough that freshly zeroed memory is still in the processor's cache when it is filled.
const PIECE: usize = 1 << 20;

/// Bytes reserved by all readers of this process.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// A reservation of memory for shards, released when dropped.
pub struct Reservation(usize);

impl Reservation {
    /// Reserves `bytes`, or returns `None` if all reservations of this process would exceed `limit`.
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

/// Reads the first `len` bytes of a file. Returns `None` if there is not enough memory or `is_stopped` returns true.
///
/// # Errors
/// Any error of reading; `UnexpectedEof` for a shorter file.
pub fn read_whole(file: &File, len: usize, is_stopped: impl Fn() -> bool) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(len).is_err() {
        return Ok(None);
    }
    advise_huge(bytes.spare_capacity_mut());
    while bytes.len() < len {
        if is_stopped() {
            return Ok(None);
        }
        let start = bytes.len();
        bytes.resize(len.min(start + PIECE), 0);
        read_exact_at(file, &mut bytes[start..], start as u64)?;
    }
    Ok(Some(bytes))
}

/// Fills `out` from position `offset` of a file.
///
/// # Errors
/// Any error of reading; `UnexpectedEof` if the file is too short.
#[cfg(unix)]
pub fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Fills `out` from position `offset` of a file.
///
/// # Errors
/// Any error of reading; `UnexpectedEof` if the file is too short.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

//! Shards held in memory: their room, and how they get there.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::memory::advise_huge;

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
    advise_huge(bytes.spare_capacity_mut());
    while bytes.len() < len {
        let start = bytes.len();
        bytes.resize(len.min(start + STRETCH), 0);
        read_exact_at(file, &mut bytes[start..], start as u64)?;
    }
    Ok(Some(bytes))
}

#[cfg(unix)]
pub fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

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

//! Reading files by position and whole, and the memory that whole shards may take.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Fault;
use crate::memory::advise_huge;
use crate::{Error, Result};

/// Bytes read at a time: small enough that freshly zeroed memory is still in the processor's cache when it is filled.
const PIECE: usize = 1 << 20;

/// The fault of a FIFO, a device or a folder.
pub const NOT_REGULAR: &str = "this is not a regular file";

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

/// Opens a file and returns its length.
///
/// # Errors
/// A format error if it is not a regular file: a FIFO would wait for a writer, and a device may never end. An I/O error if it
/// cannot be opened.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |error| Error::io(path, error);
    // Before opening, which waits for a FIFO.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(Fault::new(0, NOT_REGULAR).in_file(path));
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok((file, len))
}

/// Reads a regular file whole.
///
/// # Errors
/// The errors of [`open_regular`] and of reading, and a memory error.
pub fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let (file, len) = open_regular(path)?;
    read_opened(&file, len, path)
}

/// Reads the first `len` bytes of an open file. `path` is for errors.
///
/// # Errors
/// Any error of reading, and a memory error.
pub fn read_opened(file: &File, len: u64, path: &Path) -> Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| Error::memory(usize::MAX))?;
    match read_whole(file, len, || false) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Error::io(path, io::ErrorKind::OutOfMemory.into())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Fault::new(0, "the file was truncated while it was read").in_file(path))
        }
        Err(error) => Err(Error::io(path, error)),
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
    if len >= PIECE {
        advise_huge(bytes.spare_capacity_mut());
    }
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

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// In memory.
    Yes,
    /// On the disk, or after the end of the file.
    No,
    /// The system does not tell.
    Unknown,
}

/// Fills `out` from position `offset` of a file if the system has all of these bytes in memory.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[allow(unsafe_code)]
pub fn read_cached_at(file: &File, out: &mut [u8], offset: u64) -> Cached {
    use std::os::fd::AsRawFd;

    let vector = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    // The call itself, since the C library has the function only from glibc 2.26 on.
    // SAFETY: the system writes at most these bytes. The positions are the lower and the upper half, which is 0 on 64 bits.
    let read = unsafe { libc::syscall(libc::SYS_preadv2, file.as_raw_fd(), &vector, 1, offset, 0, libc::RWF_NOWAIT) };
    match usize::try_from(read) {
        Ok(read) if read == out.len() => Cached::Yes,
        Ok(_) => Cached::No,
        Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Cached::No,
        Err(_) => Cached::Unknown,
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
pub fn read_cached_at(_: &File, _: &mut [u8], _: u64) -> Cached {
    Cached::Unknown
}

/// Tells the system to read a range of a file into memory, and does not wait for it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn will_need(file: &File, range: Range<u64>) {
    use std::os::fd::AsRawFd;

    let (start, len) = (range.start as libc::off_t, range.end.saturating_sub(range.start) as libc::off_t);
    // SAFETY: advice on an open file. A system that does not take it ignores it.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), start, len, libc::POSIX_FADV_WILLNEED) };
}

#[cfg(not(target_os = "linux"))]
pub fn will_need(_: &File, _: Range<u64>) {}

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

//! Publishing: what is there is whole. A temporary beside the target, synced, then one rename, then the parent synced.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Bytes after which the disk is set to work.
const STRETCH: usize = 8 << 20;

/// Files that the disk may still be at work on when the next is written.
const BEHIND: usize = 2;

/// A folder under way: files are written into a temporary, which [`Folder::publish`] renames to its target. Dropped before
/// that, it removes the temporary.
pub struct Folder {
    target: PathBuf,
    temporary: PathBuf,
    sync: bool,
    /// Names and files written last: the disk works on them while the next are made, and only then are they waited for.
    last: VecDeque<(String, File)>,
    /// A forked child must neither remove nor fill nor publish its parent's temporary.
    owner: u32,
    done: bool,
}

impl Folder {
    /// Makes the temporary `.<name>.<8 hex digits>` beside `target`, which must be absent or an empty folder.
    ///
    /// # Errors
    /// An I/O error: `target` is something else, or its parent is missing or not writable.
    pub fn create(target: &Path, sync: bool) -> Result<Self> {
        let target = resolve(target)?;
        let exists = || Error::io(&target, std::io::Error::from(ErrorKind::AlreadyExists));
        match fs::read_dir(&target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(raise_exists(&target));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(raise_exists(&target)),
            Err(error) => return Err(Error::io(&target, error)),
        }
        loop {
            let temporary = beside(&target).ok_or_else(exists)?;
            match fs::create_dir(&temporary) {
                Ok(()) => {
                    let (last, owner) = (VecDeque::new(), std::process::id());
                    return Ok(Self { target, temporary, sync, last, owner, done: false });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&target, error)),
            }
        }
    }

    /// Writes the file `name`, made of `parts`. An error names where it is to be, not where it is for now; it may be that of
    /// a file before.
    pub fn write(&mut self, name: &str, parts: &[&[u8]]) -> Result<()> {
        self.own()?;
        let file = write_new(&self.temporary.join(name), parts, self.sync);
        let file = file.map_err(|error| Error::io(self.target.join(name), error))?;
        self.settle(BEHIND - 1)?;
        self.last.push_back((name.to_owned(), file));
        Ok(())
    }

    /// Waits until all files but the last `few` are on the disk.
    fn settle(&mut self, few: usize) -> Result<()> {
        while self.last.len() > few
            && let Some((name, file)) = self.last.pop_front()
        {
            if self.sync {
                file.sync_all().map_err(|error| Error::io(self.target.join(name), error))?;
            }
        }
        Ok(())
    }

    fn own(&self) -> Result<()> {
        match self.owner == std::process::id() {
            true => Ok(()),
            false => Err(Error::argument(format!("{} is written by another process", self.target.display()))),
        }
    }

    /// Renames the temporary to its target.
    ///
    /// # Errors
    /// An I/O error; where the target has meanwhile been published by another, one of the kind `AlreadyExists`.
    pub fn publish(mut self) -> Result<()> {
        self.own()?;
        self.settle(0)?;
        let io = |error| Error::io(&self.target, error);
        if self.sync {
            sync_folder(&self.temporary).map_err(io)?;
        }
        if let Err(error) = fs::rename(&self.temporary, &self.target) {
            return Err(match error.kind() {
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                    raise_exists(&self.target)
                }
                _ => Error::io(&self.target, error),
            });
        }
        self.done = true;
        match self.sync {
            true => sync_parent(&self.target),
            false => Ok(()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.done && self.owner == std::process::id() {
            // Nobody is left to tell; what remains begins with a dot, and is in no one's way.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Writes `bytes` as the file `path`, in place of what is there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |error| Error::io(path, error);
    let temporary = beside(path).ok_or_else(|| Error::argument(format!("{} names no file", path.display())))?;
    let written = write_new(&temporary, &[bytes], true).and_then(|file| file.sync_all());
    let written = written.and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(io(error));
    }
    sync_parent(path)
}

/// A new file. With `start`, the system is asked to begin putting it on the disk while it is still being written.
fn write_new(path: &Path, parts: &[&[u8]], start: bool) -> std::io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut written = 0;
    for stretch in parts.iter().flat_map(|part| part.chunks(STRETCH)) {
        file.write_all(stretch)?;
        written += stretch.len() as u64;
        if start && stretch.len() == STRETCH {
            start_writeback(&file, written)?;
        }
    }
    if start {
        start_writeback(&file, 0)?;
    }
    Ok(file)
}

/// Has the system begin to put the first `written` bytes of a file on the disk, 0 for all, and does not wait for it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn start_writeback(file: &File, written: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;

    // The page that is still being filled would be written twice.
    let whole_pages = i64::try_from(written & !0xfff).unwrap_or(0);
    // SAFETY: the descriptor is that of an open file; no memory is passed.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, whole_pages, libc::SYNC_FILE_RANGE_WRITE) };
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        _ if done == 0 => Ok(()),
        // Without this the sync that follows takes longer, no more.
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::ESPIPE) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn start_writeback(_: &File, _: u64) -> std::io::Result<()> {
    Ok(())
}

/// The folder that `path` names, absolute, through symbolic links where it exists.
fn resolve(path: &Path) -> Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            std::path::absolute(path).map_err(|error| Error::io(path, error))
        }
        Err(error) => Err(Error::io(path, error)),
    }
}

fn beside(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    // The standard library's own source of randomness: every RandomState has other keys.
    name.push(format!(".{:08x}", RandomState::new().build_hasher().finish() as u32));
    Some(path.with_file_name(name))
}

/// What the operating system says of a target that is there, with its own number: Python then raises `FileExistsError`.
fn raise_exists(path: &Path) -> Error {
    #[cfg(unix)]
    const EEXIST: i32 = 17;
    #[cfg(not(unix))]
    const EEXIST: i32 = 183;
    Error::io(path, std::io::Error::from_raw_os_error(EEXIST))
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            sync_folder(parent).map_err(|error| Error::io(parent, error))
        }
        None => Ok(()),
    }
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Windows has no such thing: a rename there is as lasting as it gets.
#[cfg(not(unix))]
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let _ = path;
    Ok(())
}

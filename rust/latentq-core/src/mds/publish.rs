//! Atomic publishing: write a temporary next to the target, fsync it, rename it, fsync the parent folder.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::parallel::Task;
use crate::{Error, Result};

/// Bytes that are written by one call, after which write-back is started. With fewer bytes the page cache has smaller folios
/// and takes longer; more bytes would leave the processor's cache between hashing and writing.
const PIECE: usize = 4 << 20;

/// Bytes of a replacement that are written or compared at once.
const BUFFER: usize = 1 << 20;

/// Number of files that may still be unsynced when the next one is written.
const MAX_UNSYNCED: usize = 4;

/// A folder that is being written: files go to a temporary, which [`Folder::publish`] renames to the target. Dropping it
/// earlier removes the temporary.
pub struct Folder {
    target: PathBuf,
    temporary: PathBuf,
    sync: bool,
    /// The files written last, which are fsynced while the next ones are written: a device does the work of several fsyncs
    /// that wait at the same time once.
    unsynced: VecDeque<(String, Task<std::io::Result<()>>)>,
    /// The process that created the temporary. A forked child must not write, publish or remove it.
    owner: u32,
    done: bool,
}

impl Folder {
    /// Creates the temporary `.<name>.<8 hex digits>` next to `target`, which must not exist or be an empty folder.
    ///
    /// # Errors
    /// An I/O error if `target` is anything else, or its parent is missing or not writable.
    pub fn create(target: &Path, sync: bool) -> Result<Self> {
        let target = resolve(target)?;
        let exists = || Error::io(&target, std::io::Error::from(ErrorKind::AlreadyExists));
        match fs::read_dir(&target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(already_exists(&target));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(already_exists(&target)),
            Err(error) => return Err(Error::io(&target, error)),
        }
        loop {
            let temporary = temporary_path(&target).ok_or_else(exists)?;
            match fs::create_dir(&temporary) {
                Ok(()) => {
                    let (unsynced, owner) = (VecDeque::new(), std::process::id());
                    return Ok(Self { target, temporary, sync, unsynced, owner, done: false });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&target, error)),
            }
        }
    }

    /// Writes the file `name` with the concatenation of `parts`, and calls `see` with every piece of it before it is written.
    /// Errors name the final path, not the temporary one, and may concern an earlier file.
    pub fn write(&mut self, name: &str, parts: &[&[u8]], see: impl FnMut(&[u8])) -> Result<()> {
        self.check_owner()?;
        let file = write_new(&self.temporary.join(name), parts, self.sync, see);
        let file = file.map_err(|error| Error::io(self.target.join(name), error))?;
        if self.sync {
            self.wait_for_all_but(MAX_UNSYNCED - 1)?;
            self.unsynced.push_back((name.to_owned(), Task::spawn(move || file.sync_all())));
        }
        Ok(())
    }

    /// Waits until all files except the last `few` are fsynced.
    fn wait_for_all_but(&mut self, few: usize) -> Result<()> {
        while self.unsynced.len() > few
            && let Some((name, task)) = self.unsynced.pop_front()
        {
            let synced =
                task.wait().unwrap_or_else(|| Err(std::io::Error::other("the thread of its fsync has failed")));
            synced.map_err(|error| Error::io(self.target.join(name), error))?;
        }
        Ok(())
    }

    /// Refuses a forked child.
    fn check_owner(&self) -> Result<()> {
        match self.owner == std::process::id() {
            true => Ok(()),
            false => Err(Error::argument(format!("{} is written by another process", self.target.display()))),
        }
    }

    /// Renames the temporary to the target.
    ///
    /// # Errors
    /// An I/O error, of the kind `AlreadyExists` if another process has published the target in the meantime.
    pub fn publish(mut self) -> Result<()> {
        self.check_owner()?;
        // At the same time as the files, whose names are all there.
        let folder = if self.sync { sync_folder(&self.temporary) } else { Ok(()) };
        self.wait_for_all_but(0)?;
        folder.map_err(|error| Error::io(&self.target, error))?;
        if let Err(error) = fs::rename(&self.temporary, &self.target) {
            return Err(match error.kind() {
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                    already_exists(&self.target)
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
            self.unsynced.clear(); // which waits for their threads
            // An error cannot be reported here. Leftovers start with a dot, so readers ignore them.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// A file that is written next to its target, and then takes its place. Dropping it earlier removes it. Errors name the
/// target.
pub struct Replacement {
    target: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    done: bool,
}

impl Replacement {
    /// Creates the temporary.
    pub fn create(target: &Path) -> Result<Self> {
        let temporary = temporary_path(target)
            .ok_or_else(|| Error::argument(format!("{} does not name a file", target.display())))?;
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = BufWriter::with_capacity(BUFFER, file.map_err(|error| Error::io(target, error))?);
        Ok(Self { target: target.to_path_buf(), temporary, file, done: false })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io(&self.target, error))
    }

    /// True if `present`, the opened target, has the same bytes.
    pub fn equals(&mut self, present: &File) -> Result<bool> {
        let io = |error| Error::io(&self.target, error);
        self.file.flush().map_err(io)?;
        let written = File::open(&self.temporary).map_err(io)?;
        let lengths = (written.metadata().map_err(io)?.len(), present.metadata().map_err(io)?.len());
        if lengths.0 != lengths.1 {
            return Ok(false);
        }
        let mut theirs = BufReader::with_capacity(BUFFER, present);
        let mut ours = BufReader::with_capacity(BUFFER, written);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        loop {
            (&mut ours).take(BUFFER as u64).read_to_end(&mut a).map_err(io)?;
            (&mut theirs).take(BUFFER as u64).read_to_end(&mut b).map_err(io)?;
            if a != b || a.is_empty() {
                return Ok(a == b);
            }
            a.clear();
            b.clear();
        }
    }

    /// Renames the temporary to the target.
    pub fn publish(mut self) -> Result<()> {
        let io = |error| Error::io(&self.target, error);
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(io)?;
        fs::rename(&self.temporary, &self.target).map_err(io)?;
        self.done = true;
        sync_parent(&self.target)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a new file, and calls `see` with every piece. With `start`, write-back to disk starts while the file is still being
/// written.
fn write_new(path: &Path, parts: &[&[u8]], start: bool, mut see: impl FnMut(&[u8])) -> std::io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut written = 0;
    for piece in parts.iter().flat_map(|part| part.chunks(PIECE)) {
        see(piece);
        file.write_all(piece)?;
        written += piece.len() as u64;
        if start && piece.len() == PIECE {
            start_writeback(&file, written)?;
        }
    }
    if start {
        start_writeback(&file, 0)?;
    }
    Ok(file)
}

/// Starts write-back of the first `written` bytes of a file (0 for all) without waiting for it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn start_writeback(file: &File, written: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;

    // Whole pages only: a page that is still being filled would be written twice.
    let whole_pages = i64::try_from(written & !0xfff).unwrap_or(0);
    // SAFETY: the descriptor is open, and no memory is passed.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, whole_pages, libc::SYNC_FILE_RANGE_WRITE) };
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        _ if done == 0 => Ok(()),
        // Not supported here: only the fsync that follows takes longer.
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::ESPIPE) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn start_writeback(_: &File, _: u64) -> std::io::Result<()> {
    Ok(())
}

/// Makes `path` absolute, and resolves symbolic links if it exists.
fn resolve(path: &Path) -> Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            std::path::absolute(path).map_err(|error| Error::io(path, error))
        }
        Err(error) => Err(Error::io(path, error)),
    }
}

/// A random name for a temporary next to `path`.
fn temporary_path(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    // The standard library's source of randomness: every RandomState has different keys.
    name.push(format!(".{:08x}", RandomState::new().build_hasher().finish() as u32));
    Some(path.with_file_name(name))
}

/// The error of an existing target, with the operating system's error code, so that Python raises `FileExistsError`.
fn already_exists(path: &Path) -> Error {
    #[cfg(unix)]
    const EEXIST: i32 = 17;
    #[cfg(not(unix))]
    const EEXIST: i32 = 183;
    Error::io(path, std::io::Error::from_raw_os_error(EEXIST))
}

/// Fsyncs the folder that contains `path`.
fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            sync_folder(parent).map_err(|error| Error::io(parent, error))
        }
        None => Ok(()),
    }
}

/// Fsyncs a folder.
#[cfg(unix)]
fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Windows cannot fsync a folder.
#[cfg(not(unix))]
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let _ = path;
    Ok(())
}

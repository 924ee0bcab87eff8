//! Opening shards: files, offset tables and cached bytes.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::Fault;
use super::ahead::{self, Ahead};
use super::cache::Cache;
use super::file::{Cached, Reservation, open_regular, read_cached_at, read_exact_at, read_opened, will_need};
use super::fill::Filler;
use super::index::{Index, Schema, Shard};
use super::shard::{Load, Table};
use crate::error::counted;
use crate::memory::resize;
use crate::{Error, Result};

/// Maximum number of files that one reader keeps open.
const MAX_FILES: usize = 256;

/// Number of files that all readers keep open together: each reduces to an even share when it next opens a file. The default
/// limit of Linux is 1,024 per process.
const SHARED_FILES: usize = 512;

/// Number of readers in this process.
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Maximum bytes of offsets that one reader caches: those of 64 million samples.
const MAX_TABLES: usize = 1 << 28;

/// The shards of a dataset, with caches of what is open.
pub struct Shards {
    pub folder: PathBuf,
    pub index: Index,
    tables: Cache<Table>,
    files: Cache<File>,
    /// Shards in memory: decompressed ones, and others if all of them fit.
    memory: Arc<Cache<Vec<u8>>>,
    /// `None` unless all shards fit in memory.
    resident: Option<Resident>,
    ahead: Ahead,
    /// The bytes of all files.
    pub stored: u64,
}

/// The state of a dataset that fits in memory as a whole.
struct Resident {
    /// For each shard, the number of samples read from it, or [`QUEUED`].
    reads: Box<[AtomicU64]>,
    filler: Filler,
    _room: Reservation,
}

/// Marks a shard that was given to the [`Filler`].
const QUEUED: u64 = u64::MAX;

impl Drop for Shards {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Relaxed);
    }
}

/// An open shard: its number and offsets, and the storage of its uncompressed bytes.
pub struct Opened {
    pub number: usize,
    pub schema: Arc<Schema>,
    pub table: Arc<Table>,
    storage: Storage,
}

enum Storage {
    File(Arc<File>),
    Memory(Arc<Vec<u8>>),
}

impl Storage {
    /// The bytes of a range, if they are in memory.
    #[inline]
    fn bytes(&self, range: &Range<u64>) -> Option<&[u8]> {
        match self {
            Self::File(_) => None,
            Self::Memory(bytes) => bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?),
        }
    }
}

impl Opened {
    /// The bytes of a range, if the shard is in memory.
    #[inline]
    pub fn bytes(&self, range: &Range<u64>) -> Option<&[u8]> {
        self.storage.bytes(range)
    }
}

impl Shards {
    /// See [`Reader::open`](super::Reader::open).
    pub fn open(folder: &Path, memory: usize, raw: usize, page_cache: u64) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(|error| Error::io(folder, error))?;
        let index = Index::load(&folder)?;
        let n = index.shards.len();
        let bytes = index.shards.iter().try_fold(0usize, |sum, shard| sum.checked_add(shard.raw.bytes as usize));
        let room = bytes.filter(|bytes| *bytes <= memory).and_then(|bytes| Reservation::new(bytes, raw));
        let (tables, files) = (Cache::new(n, MAX_TABLES), Cache::new(n, MAX_FILES));
        let memory = Arc::new(Cache::new(n, memory));
        let resident = room.map(|room| Resident {
            reads: (0..n).map(|_| AtomicU64::new(0)).collect(),
            filler: Filler::new(Arc::clone(&memory)),
            _room: room,
        });
        let stored = index.shards.iter().fold(0u64, |sum, shard| sum.saturating_add(shard.present_file().bytes));
        READERS.fetch_add(1, Relaxed);
        Ok(Self { folder, index, tables, files, memory, resident, ahead: Ahead::new(page_cache), stored })
    }

    /// Opens a shard to read `samples` samples. It is checked when it is first opened.
    pub fn open_shard(&self, number: usize, samples: u64) -> Result<Opened> {
        let shard = &self.index.shards[number];
        let storage = self.open_storage(number, shard, samples)?;
        let table = match self.tables.get(number) {
            Some(table) => table,
            None => self.load_table(number, shard, &storage)?,
        };
        Ok(Opened { number, schema: Arc::clone(&shard.schema), table, storage })
    }

    /// True if a shard is in memory.
    pub fn is_in_memory(&self, number: usize) -> bool {
        self.memory.get(number).is_some()
    }

    /// True if opening a shard decompresses it, unless that was done before: the system reads no part of it ahead.
    pub fn is_packed(&self, number: usize) -> bool {
        self.index.shards[number].zip.is_some() && self.files.get(number).is_none()
    }

    /// Closes a shard's file, which may be removed then, and opened again under the same name.
    pub fn close_shard(&self, number: usize) {
        self.files.remove(number);
    }

    /// Announces that all samples will be read: see [`Ahead::expect`].
    pub fn expect_all(&self, page_cache: u64) {
        self.ahead.expect(page_cache);
    }

    /// Ends what `expect_all` announced: see [`Ahead::stop`].
    pub fn stop_ahead(&self) {
        self.ahead.stop();
    }

    /// Begins to read all files ahead if that is worth it, now that `bytes` were not in memory (`None` if that is not known),
    /// and waits for a while. Returns true if files were read ahead, and no longer are.
    pub fn read_ahead(&self, bytes: Option<u64>) -> bool {
        let is_running = match self.ahead.is_due(bytes, self.stored) {
            true => self.ahead.start(Arc::clone(&self.memory), || self.files_ahead()),
            false => self.ahead.is_running(),
        };
        is_running && self.ahead.wait()
    }

    /// The most bytes that may be read ahead.
    pub fn room(&self) -> u64 {
        self.ahead.room()
    }

    /// True if files are being read ahead.
    pub fn is_reading_ahead(&self) -> bool {
        self.ahead.is_running()
    }

    /// The files of the shards that are not in memory. Those that will stay there are kept at once.
    fn files_ahead(&self) -> Vec<ahead::File> {
        let keeps = self.resident.as_ref().is_some_and(|resident| resident.filler.is_own());
        let shards = self.index.shards.iter().enumerate().filter(|(number, _)| self.memory.get(*number).is_none());
        let file = |(number, shard): (usize, &Shard)| ahead::File {
            kept: (keeps && shard.zip.is_none()).then_some(number),
            path: self.folder.join(&shard.present_file().basename),
            len: shard.present_file().bytes,
        };
        shards.map(file).collect()
    }

    fn load_table(&self, number: usize, shard: &Shard, storage: &Storage) -> Result<Arc<Table>> {
        let table = Table::load(shard.samples, shard.raw.bytes, &shard.schema, |range| {
            let mut bytes = Vec::new();
            resize(&mut bytes, (range.end - range.start) as usize).map_err(|error| self.with_path(number, error))?;
            self.read_at(number, storage, range.start, &mut bytes)?;
            Ok(Cow::Owned(bytes))
        });
        let table = Arc::new(table.map_err(|error| match error {
            Load::Fault(fault) => self.error(number, fault),
            Load::Error(error) => error,
        })?);
        self.tables.put(number, Arc::clone(&table), table.weight());
        Ok(table)
    }

    fn open_storage(&self, number: usize, shard: &Shard, samples: u64) -> Result<Storage> {
        let cached = self.memory.get(number);
        let Some((compression, zip)) = &shard.zip else {
            let file = self.open_file(number, shard)?;
            if let Some(bytes) = cached {
                // Detects a file that was truncated while it is cached, as reading it would. Seeking takes half the time of
                // a stat, and nothing else uses the file's position.
                let len = (&*file).seek(SeekFrom::End(0)).map_err(|error| Error::io(self.path(number), error))?;
                return match len == shard.raw.bytes {
                    true => Ok(Storage::Memory(bytes)),
                    false => Err(self.wrong_size(&self.path(number), len, shard.raw.bytes)),
                };
            }
            self.count_reads(number, shard, samples);
            return Ok(Storage::File(file));
        };
        if let Some(bytes) = cached {
            return Ok(Storage::Memory(bytes));
        }
        if let Some(file) = self.files.get(number) {
            return Ok(Storage::File(file));
        }
        let path = self.folder.join(&zip.basename);
        let (file, len) = match open_regular(&path) {
            Ok(opened) => opened,
            // A stock reader may have replaced it by the uncompressed file.
            Err(error) if error.is_not_found() && self.folder.join(&shard.raw.basename).exists() => {
                return self.open_file(number, shard).map(Storage::File);
            }
            Err(error) => return Err(error),
        };
        if len != zip.bytes {
            return Err(self.wrong_size(&path, len, zip.bytes));
        }
        let packed = read_opened(&file, len, &path)?;
        let bytes = compression.decompress(&packed, shard.raw.bytes).map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory => Error::io(&path, error),
            _ => Fault::new(0, error.to_string()).in_file(&path),
        });
        let bytes = Arc::new(bytes?);
        self.memory.put(number, Arc::clone(&bytes), bytes.len());
        Ok(Storage::Memory(bytes))
    }

    /// Opens the uncompressed file of a shard.
    fn open_file(&self, number: usize, shard: &Shard) -> Result<Arc<File>> {
        if let Some(file) = self.files.get(number) {
            return Ok(file);
        }
        let path = self.folder.join(&shard.raw.basename);
        let (file, len) = open_regular(&path)?;
        if len != shard.raw.bytes {
            return Err(self.wrong_size(&path, len, shard.raw.bytes));
        }
        let file = Arc::new(file);
        let share = SHARED_FILES / READERS.load(Relaxed).max(1);
        self.files.put_within(number, Arc::clone(&file), 1, share.clamp(1, MAX_FILES));
        Ok(file)
    }

    /// Counts `samples` more that are read from the file of a shard. If all shards fit in memory, it is loaded in the
    /// background once as many were read as it has, so that reading a few samples, or each sample once, stays cheap.
    fn count_reads(&self, number: usize, shard: &Shard, samples: u64) {
        let Some(Resident { reads, filler, .. }) = &self.resident else { return };
        let before = reads[number].load(Relaxed);
        if before == QUEUED || !filler.is_own() {
            return;
        }
        if before < shard.samples {
            reads[number].fetch_add(samples, Relaxed);
        } else if reads[number].swap(QUEUED, Relaxed) != QUEUED {
            filler.load(number, self.folder.join(&shard.raw.basename), shard.raw.bytes as usize);
        }
    }

    fn wrong_size(&self, path: &Path, len: u64, expected: u64) -> Error {
        Fault::new(len.min(expected), format!("the file has {}, its index says {expected}", counted(len, "byte")))
            .in_file(path)
    }

    pub fn read(&self, shard: &Opened, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_at(shard.number, &shard.storage, offset, out)
    }

    /// [`Shards::read`], if that does not wait for the disk.
    #[inline]
    pub fn read_cached(&self, shard: &Opened, offset: u64, out: &mut [u8]) -> Cached {
        match &shard.storage {
            Storage::File(file) => read_cached_at(file, out, offset),
            Storage::Memory(_) => Cached::Unknown,
        }
    }

    /// Asks the system to bring a range of a shard into memory.
    pub fn will_need(&self, shard: &Opened, range: Range<u64>) {
        if let Storage::File(file) = &shard.storage {
            will_need(file, range);
        }
    }

    fn read_at(&self, number: usize, storage: &Storage, offset: u64, out: &mut [u8]) -> Result<()> {
        match storage {
            Storage::File(file) => {
                read_exact_at(file, out, offset).map_err(|error| self.read_error(number, offset, error))
            }
            Storage::Memory(_) => {
                // Ranges of a checked table are always inside the shard.
                let cached = storage.bytes(&(offset..offset.saturating_add(out.len() as u64)));
                out.copy_from_slice(
                    cached.ok_or_else(|| self.error(number, Fault::new(offset, "the shard ends here")))?,
                );
                Ok(())
            }
        }
    }

    fn read_error(&self, number: usize, offset: u64, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::UnexpectedEof => self.error(number, Fault::new(offset, "the file is truncated")),
            _ => Error::io(self.path(number), error),
        }
    }

    pub fn path(&self, number: usize) -> PathBuf {
        self.folder.join(&self.index.shards[number].present_file().basename)
    }

    pub fn error(&self, number: usize, fault: Fault) -> Error {
        fault.in_file(&self.path(number))
    }

    /// Adds the file to the message of a memory error.
    pub fn with_path(&self, number: usize, error: Error) -> Error {
        Error::new(error.kind(), format!("{}: {error}", self.path(number).display()))
    }
}

//! Reading a dataset: single samples, and columns of many at once, by positioned reads.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::Fault;
use super::cache::Cache;
use super::file::{Reservation, read_exact_at, read_whole};
use super::index::{Index, Schema, Shard};
use super::shard::{Place, Table, split};
use crate::memory::prefetch;
use crate::{Error, Result};

/// Files that a reader keeps open at most.
const MAX_FILES: usize = 256;

/// Files that readers share: each comes down to its even share when it next opens one. Linux allows a process 1,024 unless
/// told otherwise.
const SHARED_FILES: usize = 512;

/// How many readers there are.
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Bytes of offsets that a reader keeps: those of 64 million samples.
const MAX_TABLES: usize = 1 << 28;

/// A sample up to this size is read whole, header and all, even where only some columns are asked for.
const WHOLE: u64 = 1 << 16;

/// A dataset that is open for reading. It can be shared between threads, and none ever waits for another.
pub struct Reader {
    folder: PathBuf,
    index: Index,
    /// First sample of each shard, and at the end their number.
    starts: Vec<u64>,
    tables: Cache<Table>,
    files: Cache<File>,
    /// Shards held in memory: decompressed ones, and others where there is room for all of them.
    memory: Cache<Vec<u8>>,
    /// Where there is room for all shards.
    whole: Option<Whole>,
}

/// Of a dataset that may be held in memory as a whole.
struct Whole {
    _room: Reservation,
    /// For each shard that is not held, samples that were read of it.
    reads: Box<[AtomicU64]>,
    /// A forked child shares what its parent holds, and holds nothing more: each would have a copy of what the system's
    /// page cache holds once.
    owner: u32,
}

impl Drop for Reader {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Relaxed);
    }
}

/// A shard that was looked up: its number and offsets, and where its uncompressed bytes are.
struct Open {
    number: usize,
    schema: Arc<Schema>,
    table: Arc<Table>,
    source: Source,
}

enum Source {
    File(Arc<File>),
    Memory(Arc<Vec<u8>>),
}

impl Source {
    /// Bytes that are in memory.
    #[inline]
    fn held(&self, range: &Range<u64>) -> Option<&[u8]> {
        match self {
            Self::File(_) => None,
            Self::Memory(bytes) => bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?),
        }
    }
}

/// What is wanted of a shard's samples.
struct Wanted {
    /// The columns' places in the shard's own order.
    columns: Vec<usize>,
    /// Where in a sample they lie, where that can be told of all.
    places: Option<Vec<Place>>,
}

impl Wanted {
    /// Has the processor fetch the first of the columns, where it is in memory.
    #[inline]
    fn prefetch(&self, shard: &Open, range: Range<u64>) {
        if let (Some(bytes), Some([first, ..])) = (shard.source.held(&range), self.places.as_deref()) {
            prefetch(bytes.get(first.within(range.end - range.start).start as usize..).unwrap_or_default());
        }
    }
}

/// One sample.
pub struct Sample {
    bytes: Bytes,
    /// Where in them each column lies, in the order of the reader's columns.
    columns: Vec<Range<usize>>,
    shard: usize,
    /// Where the sample lies in its shard.
    offset: u64,
}

/// The bytes of a sample, header included: its own, or those of a shard that is held in memory.
enum Bytes {
    Own(Vec<u8>),
    Held(Open, Range<u64>),
}

impl Sample {
    /// The bytes of a column's value.
    pub fn value(&self, column: usize) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Held(shard, range) => shard.source.held(range).unwrap_or_default(),
        };
        self.columns.get(column).and_then(|at| bytes.get(at.clone())).unwrap_or_default()
    }
}

impl Reader {
    /// Opens the dataset in `folder`; of the files, only the index is read.
    ///
    /// At most `memory` bytes of decompressed shards are held in memory, or one shard. The others are held as well, each from
    /// when it is read a second time on the average, where the shards of the dataset, uncompressed, are at most `memory` bytes
    /// in all, and with those of this process's other readers at most `raw`.
    ///
    /// # Errors
    /// An I/O or format error that names the index.
    pub fn open(folder: &Path, memory: usize, raw: usize) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(|error| Error::io(folder, error))?;
        let index = Index::load(&folder)?;
        let mut starts = vec![0];
        let mut total = 0;
        starts.extend(index.shards.iter().map(|shard| {
            total += shard.samples;
            total
        }));
        let n = index.shards.len();
        let bytes = index.shards.iter().try_fold(0usize, |sum, shard| sum.checked_add(shard.raw.bytes as usize));
        let room = bytes.filter(|bytes| *bytes <= memory).and_then(|bytes| Reservation::new(bytes, raw));
        let whole = room.map(|room| Whole {
            _room: room,
            reads: (0..n).map(|_| AtomicU64::new(0)).collect(),
            owner: std::process::id(),
        });
        let (tables, files, memory) = (Cache::new(n, MAX_TABLES), Cache::new(n, MAX_FILES), Cache::new(n, memory));
        READERS.fetch_add(1, Relaxed);
        Ok(Self { folder, index, starts, tables, files, memory, whole })
    }

    /// The dataset's folder, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Samples in the dataset.
    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns, in the order of the first shard.
    pub fn schema(&self) -> &Schema {
        &self.index.schema
    }

    /// One sample.
    ///
    /// # Errors
    /// An argument error for an index that is not below `len`; an I/O or format error that names the shard.
    pub fn sample(&self, index: u64) -> Result<Sample> {
        let (number, within) = self.locate(index)?;
        let shard = self.open_shard(number, 1)?;
        let range = shard.table.range(within);
        let mut ranges = Vec::with_capacity(shard.schema.columns.len());
        let own = match shard.source.held(&range) {
            Some(bytes) => {
                self.split(&shard, bytes, &range, &mut ranges)?;
                None
            }
            None => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                self.read(&shard, range.start, &mut bytes)?;
                self.split(&shard, &bytes, &range, &mut ranges)?;
                Some(bytes)
            }
        };
        let place = |at: usize| ranges[at].start as usize..ranges[at].end as usize;
        let columns = self.positions(&shard.schema).map(place).collect();
        let offset = range.start;
        let bytes = own.map_or_else(|| Bytes::Held(shard, range), Bytes::Own);
        Ok(Sample { bytes, columns, shard: number, offset })
    }

    /// The file, below the folder, that holds a column of a sample that was read, and where in it.
    pub fn place(&self, sample: &Sample, column: usize) -> (String, u64) {
        let start = sample.columns.get(column).map_or(0, |range| range.start as u64);
        (self.index.shards[sample.shard].stored().basename.clone(), sample.offset + start)
    }

    /// The error for a fault in the column of a sample that was read.
    pub fn fault(&self, sample: &Sample, column: usize, fault: Fault) -> Error {
        self.error(sample.shard, fault.at(self.place(sample, column).1))
    }

    /// Calls `visit(slot, column, value)` with each value of `columns` for the samples `indices`, `slot` and `column`
    /// counting these: all columns of a sample one after the other, the samples in the order in which they lie.
    ///
    /// A value is not copied where its shard is held in memory; it is there until `visit` returns.
    ///
    /// # Errors
    /// As [`Reader::sample`], and what `visit` says; an argument error for a column that is not there.
    pub fn for_each_value(
        &self,
        indices: &[u64],
        columns: &[usize],
        mut visit: impl FnMut(usize, usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.for_each_sample(indices, columns, |shard, wanted, range, slot, scratch| {
            let (bytes, ranges) = self.values(shard, wanted, range, scratch)?;
            let mut values = ranges.iter().map(|at| &bytes[at.start as usize..at.end as usize]).enumerate();
            values.try_for_each(|(column, value)| visit(slot, column, value))
        })
    }

    /// Calls `visit` with the shard, what is wanted of it, where in it the sample lies, and the sample's slot in `indices`.
    #[inline]
    fn for_each_sample(
        &self,
        indices: &[u64],
        columns: &[usize],
        mut visit: impl FnMut(&Open, &Wanted, Range<u64>, usize, &mut Scratch) -> Result<()>,
    ) -> Result<()> {
        if columns.iter().any(|column| *column >= self.schema().columns.len()) {
            return Err(Error::argument(format!("the columns {columns:?} of {}", self.schema().columns.len())));
        }
        // Shard by shard, so that each is looked up (and decompressed) once, and read in its own order.
        let mut order: Vec<(u64, usize)> = indices.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut scratch = Scratch::default();
        let mut rest = order.as_slice();
        while let Some((first, _)) = rest.first() {
            let (number, _) = self.locate(*first)?;
            let (start, end) = (self.starts[number], self.starts[number + 1]);
            let (run, behind) = rest.split_at(rest.partition_point(|(index, _)| *index < end));
            let shard = self.open_shard(number, run.len() as u64)?;
            let own: Vec<usize> = columns.iter().map(|column| self.position(&shard.schema, *column)).collect();
            let places = own.iter().map(|column| Place::of(&shard.schema, *column)).collect();
            let wanted = Wanted { columns: own, places };
            let range = |index: u64| shard.table.range((index - start) as usize);
            for (at, (index, slot)) in run.iter().enumerate() {
                if let Some((next, _)) = run.get(at + 1) {
                    wanted.prefetch(&shard, range(*next));
                }
                visit(&shard, &wanted, range(*index), *slot, &mut scratch)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Bytes of the sample at `range`, and where in them the wanted columns lie.
    #[inline]
    fn values<'a>(
        &self,
        shard: &'a Open,
        wanted: &Wanted,
        range: Range<u64>,
        scratch: &'a mut Scratch,
    ) -> Result<(&'a [u8], &'a [Range<u64>])> {
        let len = range.end - range.start;
        let Scratch { bytes, all, ranges } = scratch;
        ranges.clear();
        if let Some(places) = &wanted.places {
            ranges.extend(places.iter().map(|place| place.within(len)));
        }
        if let Some(bytes) = shard.source.held(&range) {
            if wanted.places.is_none() {
                self.split(shard, bytes, &range, all)?;
                ranges.extend(wanted.columns.iter().map(|column| all[*column].clone()));
            }
            return Ok((bytes, ranges));
        }
        // Where they cannot all be told without the header, a small sample is read whole, and of a large one its header.
        let mut held = 0..0;
        if wanted.places.is_none() {
            held = 0..if len <= WHOLE { len } else { shard.schema.header };
            bytes.resize(held.end as usize, 0);
            self.read(shard, range.start, bytes)?;
            self.split(shard, bytes, &range, all)?;
            ranges.extend(wanted.columns.iter().map(|column| all[*column].clone()));
        }
        let start = ranges.iter().map(|at| at.start).min().unwrap_or(0);
        let end = ranges.iter().map(|at| at.end).max().unwrap_or(0);
        if start < held.start || end > held.end {
            held = start..end;
            bytes.resize((end - start) as usize, 0);
            self.read(shard, range.start + start, bytes)?;
        }
        ranges.iter_mut().for_each(|at| *at = at.start - held.start..at.end - held.start);
        Ok((bytes, ranges))
    }

    /// The shard that holds a sample, and the sample's place in it.
    fn locate(&self, index: u64) -> Result<(usize, usize)> {
        // Empty shards share their start with the next: the last that starts at or before the sample holds it.
        let number = self.starts.partition_point(|start| *start <= index).wrapping_sub(1);
        match self.starts.get(number) {
            Some(start) if index < self.len() => Ok((number, (index - start) as usize)),
            _ => Err(Error::argument(format!("sample {index} of {}", self.len()))),
        }
    }

    /// The places in a shard's own order of the reader's columns.
    fn positions<'a>(&'a self, schema: &'a Schema) -> impl Iterator<Item = usize> + 'a {
        (0..schema.columns.len()).map(|column| self.position(schema, column))
    }

    fn position(&self, schema: &Schema, column: usize) -> usize {
        // `Index` has seen that every shard has the same columns.
        if std::ptr::eq(schema, self.schema()) {
            column
        } else {
            schema.position(&self.schema().columns[column].name).unwrap_or(column)
        }
    }

    /// Where in the sample at `range`, which begins with `head`, each column lies.
    fn split(&self, shard: &Open, head: &[u8], range: &Range<u64>, out: &mut Vec<Range<u64>>) -> Result<()> {
        let found = split(&shard.schema, head, range.end - range.start, out);
        found.map_err(|fault| self.error(shard.number, fault.at(range.start)))
    }

    /// A shard of which `samples` samples are to be read, checked when it is first touched.
    fn open_shard(&self, number: usize, samples: u64) -> Result<Open> {
        let shard = &self.index.shards[number];
        let source = self.open_source(number, shard, samples)?;
        let table = match self.tables.get(number) {
            Some(table) => table,
            None => self.load_table(number, shard, &source)?,
        };
        Ok(Open { number, schema: Arc::clone(&shard.schema), table, source })
    }

    fn load_table(&self, number: usize, shard: &Shard, source: &Source) -> Result<Arc<Table>> {
        let table = Table::load(shard.samples, shard.raw.bytes, &shard.schema, |range| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.read_at(number, source, range.start, &mut bytes).map(|()| bytes).map_err(Load::Error)
        });
        let table = Arc::new(table.map_err(|error| match error {
            Load::Fault(fault) => self.error(number, fault),
            Load::Error(error) => error,
        })?);
        self.tables.put(number, Arc::clone(&table), table.weight());
        Ok(table)
    }

    fn open_source(&self, number: usize, shard: &Shard, samples: u64) -> Result<Source> {
        let held = self.memory.get(number);
        let Some((compression, zip)) = &shard.zip else {
            let file = self.open_file(number, shard)?;
            if let Some(bytes) = held {
                // What was cut short under its reader is found out here as it is where the file is read. Nothing else here
                // uses the file's position, and telling it takes half the time of a stat.
                let len = (&*file).seek(SeekFrom::End(0)).map_err(|error| Error::io(self.path(number), error))?;
                return match len == shard.raw.bytes {
                    true => Ok(Source::Memory(bytes)),
                    false => Err(self.wrong_size(&self.path(number), len, shard.raw.bytes)),
                };
            }
            return Ok(match self.hold(number, shard, &file, samples)? {
                Some(bytes) => Source::Memory(bytes),
                None => Source::File(file),
            });
        };
        if let Some(bytes) = held {
            return Ok(Source::Memory(bytes));
        }
        if let Some(file) = self.files.get(number) {
            return Ok(Source::File(file));
        }
        let path = self.folder.join(&zip.basename);
        match fs::read(&path) {
            Ok(packed) => {
                if packed.len() as u64 != zip.bytes {
                    return Err(self.wrong_size(&path, packed.len() as u64, zip.bytes));
                }
                let bytes = compression.decompress(&packed, shard.raw.bytes);
                let bytes = Arc::new(bytes.map_err(|error| Fault::new(0, error.to_string()).in_file(&path))?);
                self.memory.put(number, Arc::clone(&bytes), bytes.len());
                Ok(Source::Memory(bytes))
            }
            // A stock reader may have put the uncompressed file in its place.
            Err(error) if error.kind() == ErrorKind::NotFound && self.folder.join(&shard.raw.basename).exists() => {
                self.open_file(number, shard).map(Source::File)
            }
            Err(error) => Err(Error::io(path, error)),
        }
    }

    /// A shard's uncompressed file.
    fn open_file(&self, number: usize, shard: &Shard) -> Result<Arc<File>> {
        if let Some(file) = self.files.get(number) {
            return Ok(file);
        }
        let path = self.folder.join(&shard.raw.basename);
        let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
        let len = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        if len != shard.raw.bytes {
            return Err(self.wrong_size(&path, len, shard.raw.bytes));
        }
        let file = Arc::new(file);
        let share = SHARED_FILES / READERS.load(Relaxed).max(1);
        self.files.put_within(number, Arc::clone(&file), 1, share.clamp(1, MAX_FILES));
        Ok(file)
    }

    /// Takes a shard into memory, where there is room for all of them and as many samples have been read of this one as it
    /// has: whoever looks at a few, or once at all, does not pay for more. Else counts `samples` more.
    fn hold(&self, number: usize, shard: &Shard, file: &File, samples: u64) -> Result<Option<Arc<Vec<u8>>>> {
        let Some(Whole { reads, owner, .. }) = &self.whole else { return Ok(None) };
        let reads = &reads[number];
        // Of several threads that find it due, the one that resets the count reads it.
        let due = reads.load(Relaxed) >= shard.samples && *owner == std::process::id();
        if !due || reads.swap(0, Relaxed) < shard.samples {
            reads.fetch_add(samples, Relaxed);
            return Ok(None);
        }
        let bytes = read_whole(file, shard.raw.bytes as usize).map_err(|error| self.read_error(number, 0, error))?;
        let bytes = bytes.map(Arc::new);
        if let Some(bytes) = &bytes {
            self.memory.put(number, Arc::clone(bytes), bytes.len());
        }
        Ok(bytes)
    }

    fn wrong_size(&self, path: &Path, len: u64, told: u64) -> Error {
        Fault::new(len.min(told), format!("the file has {len} bytes, its index says {told}")).in_file(path)
    }

    fn read(&self, shard: &Open, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_at(shard.number, &shard.source, offset, out)
    }

    fn read_at(&self, number: usize, source: &Source, offset: u64, out: &mut [u8]) -> Result<()> {
        match source {
            Source::File(file) => {
                read_exact_at(file, out, offset).map_err(|error| self.read_error(number, offset, error))
            }
            Source::Memory(_) => {
                // A checked table never leads out of the shard.
                let held = source.held(&(offset..offset.saturating_add(out.len() as u64)));
                out.copy_from_slice(held.ok_or_else(|| self.error(number, Fault::new(offset, "the shard ends here")))?);
                Ok(())
            }
        }
    }

    fn read_error(&self, number: usize, offset: u64, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::UnexpectedEof => self.error(number, Fault::new(offset, "the file ends too early")),
            _ => Error::io(self.path(number), error),
        }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(&self.index.shards[number].stored().basename)
    }

    fn error(&self, number: usize, fault: Fault) -> Error {
        fault.in_file(&self.path(number))
    }
}

/// What one gather reuses from sample to sample.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    /// Of a sample's columns, and of the wanted ones.
    all: Vec<Range<u64>>,
    ranges: Vec<Range<u64>>,
}

enum Load {
    Fault(Fault),
    Error(Error),
}

impl From<Fault> for Load {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

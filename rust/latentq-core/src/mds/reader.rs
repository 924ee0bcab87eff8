//! Reading a dataset: single samples, and columns of many at once, by positioned reads.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Fault;
use super::cache::Cache;
use super::index::{Index, Schema, Shard};
use super::shard::{Table, locate, split};
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
    /// Decompressed shards.
    memory: Cache<Vec<u8>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Relaxed);
    }
}

/// Where a shard's uncompressed bytes are.
enum Source {
    File(Arc<File>),
    Memory(Arc<Vec<u8>>),
}

/// One sample.
pub struct Sample {
    /// Its bytes, header included.
    pub bytes: Vec<u8>,
    /// Where in `bytes` each column lies, in the order of the reader's columns.
    pub columns: Vec<Range<usize>>,
    shard: usize,
    /// Where the sample lies in its shard.
    offset: u64,
}

/// Where [`Reader::gather`] puts the values of one column.
pub enum Sink<'a> {
    /// Values of exactly this many bytes, one after the other, in the order of the indices.
    Fixed(usize, &'a mut [u8]),
    /// Values of any size in one buffer, and where in it each lies, in the order of the indices.
    Each(&'a mut Vec<u8>, &'a mut Vec<Range<usize>>),
}

impl Reader {
    /// Opens the dataset in `folder`; of the files, only the index is read. At most `memory` bytes of decompressed shards
    /// are kept, or one shard.
    ///
    /// # Errors
    /// An I/O or format error that names the index.
    pub fn open(folder: &Path, memory: usize) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(|error| Error::io(folder, error))?;
        let index = Index::load(&folder)?;
        let mut starts = vec![0];
        let mut total = 0;
        starts.extend(index.shards.iter().map(|shard| {
            total += shard.samples;
            total
        }));
        let n = index.shards.len();
        let (tables, files, memory) = (Cache::new(n, MAX_TABLES), Cache::new(n, MAX_FILES), Cache::new(n, memory));
        READERS.fetch_add(1, Relaxed);
        Ok(Self { folder, index, starts, tables, files, memory })
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
        let (table, source) = self.open_shard(number)?;
        let range = table.range(within);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read(number, &source, range.start, &mut bytes)?;
        let schema = &self.index.shards[number].schema;
        let mut ranges = Vec::with_capacity(schema.columns.len());
        self.split(number, schema, &bytes, range.end - range.start, range.start, &mut ranges)?;
        let columns = self.positions(schema).map(|at| ranges[at].start as usize..ranges[at].end as usize).collect();
        Ok(Sample { bytes, columns, shard: number, offset: range.start })
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

    /// The values of `columns` for the samples `indices`, in any order, also several times.
    ///
    /// # Errors
    /// As [`Reader::sample`]; an argument error also where a value has not the size of its sink.
    pub fn gather(&self, indices: &[u64], columns: &[usize], sinks: &mut [Sink<'_>]) -> Result<()> {
        if columns.len() != sinks.len() || columns.iter().any(|column| *column >= self.schema().columns.len()) {
            return Err(Error::argument(format!("{} sinks for the columns {columns:?}", sinks.len())));
        }
        for sink in &mut *sinks {
            match sink {
                Sink::Fixed(size, out) if size.checked_mul(indices.len()) == Some(out.len()) => {}
                Sink::Fixed(size, _) => {
                    return Err(Error::argument(format!("no room for {} values of {size} bytes", indices.len())));
                }
                Sink::Each(_, ranges) => ranges.resize(indices.len(), 0..0),
            }
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
            let shard = self.open_shard(number)?;
            let schema = &self.index.shards[number].schema;
            let places: Vec<usize> = columns.iter().map(|column| self.position(schema, *column)).collect();
            for (index, slot) in run {
                let range = shard.0.range((index - start) as usize);
                self.gather_one(number, &shard.1, range, &places, *slot, sinks, &mut scratch)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Stopgap.
    pub fn for_each_value(
        &self,
        indices: &[u64],
        columns: &[usize],
        mut visit: impl FnMut(usize, usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<(u64, usize)> = indices.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut scratch = Scratch::default();
        let mut lists: Vec<(Vec<u8>, Vec<Range<usize>>)> = columns.iter().map(|_| Default::default()).collect();
        let mut rest = order.as_slice();
        while let Some((first, _)) = rest.first() {
            let (number, _) = self.locate(*first)?;
            let (start, end) = (self.starts[number], self.starts[number + 1]);
            let (run, behind) = rest.split_at(rest.partition_point(|(index, _)| *index < end));
            let shard = self.open_shard(number)?;
            let schema = &self.index.shards[number].schema;
            let places: Vec<usize> = columns.iter().map(|column| self.position(schema, *column)).collect();
            for (index, slot) in run {
                let range = shard.0.range((index - start) as usize);
                let mut sinks = Vec::new();
                for (bytes, ranges) in &mut lists { bytes.clear(); ranges.resize(1, 0..0); sinks.push(Sink::Each(bytes, ranges)); }
                self.gather_one(number, &shard.1, range, &places, 0, &mut sinks, &mut scratch)?;
                for (column, (bytes, ranges)) in lists.iter().enumerate() { visit(*slot, column, &bytes[ranges[0].clone()])?; }
            }
            rest = behind;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one sample's place, and where its values go
    fn gather_one(
        &self,
        number: usize,
        source: &Source,
        range: Range<u64>,
        places: &[usize],
        slot: usize,
        sinks: &mut [Sink<'_>],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let schema = &self.index.shards[number].schema;
        let len = range.end - range.start;
        let Scratch { bytes, ranges, wanted } = scratch;
        wanted.clear();
        wanted.extend(places.iter().map_while(|place| locate(schema, *place, len)));
        // One fixed column, its place known: straight to where it is wanted.
        if let ([at], [Sink::Fixed(size, out)]) = (wanted.as_slice(), &mut *sinks)
            && at.end - at.start == *size as u64
        {
            return self.read(number, source, range.start + at.start, &mut out[slot * *size..(slot + 1) * *size]);
        }
        // Where they cannot all be told without the header, a small sample is read whole, and of a large one its header.
        let mut held = 0..0;
        if wanted.len() < places.len() {
            held = 0..if len <= WHOLE { len } else { schema.header };
            bytes.resize(held.end as usize, 0);
            self.read(number, source, range.start, bytes)?;
            self.split(number, schema, bytes, len, range.start, ranges)?;
            wanted.clear();
            wanted.extend(places.iter().map(|place| ranges[*place].clone()));
        }
        let start = wanted.iter().map(|at| at.start).min().unwrap_or(0);
        let end = wanted.iter().map(|at| at.end).max().unwrap_or(0);
        if start < held.start || end > held.end {
            held = start..end;
            bytes.resize((end - start) as usize, 0);
            self.read(number, source, range.start + start, bytes)?;
        }
        for (at, sink) in wanted.iter().zip(sinks) {
            let value = &bytes[(at.start - held.start) as usize..(at.end - held.start) as usize];
            match sink {
                Sink::Fixed(size, out) if *size == value.len() => {
                    out[slot * *size..(slot + 1) * *size].copy_from_slice(value)
                }
                Sink::Fixed(size, _) => {
                    let shard = self.path(number);
                    let message =
                        format!("{}: a value of {} bytes, where {size} are asked for", shard.display(), value.len());
                    return Err(Error::argument(message));
                }
                Sink::Each(out, ranges) => {
                    ranges[slot] = out.len()..out.len() + value.len();
                    out.extend_from_slice(value);
                }
            }
        }
        Ok(())
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

    fn split(
        &self,
        number: usize,
        schema: &Schema,
        head: &[u8],
        len: u64,
        base: u64,
        out: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        split(schema, head, len, out).map_err(|fault| self.error(number, fault.at(base)))
    }

    /// A shard's offsets and bytes, checked when it is first touched.
    fn open_shard(&self, number: usize) -> Result<(Arc<Table>, Source)> {
        let shard = &self.index.shards[number];
        let source = self.open_source(number, shard)?;
        if let Some(table) = self.tables.get(number) {
            return Ok((table, source));
        }
        let table = Table::load(shard.samples, shard.raw.bytes, &shard.schema, |range| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.read(number, &source, range.start, &mut bytes).map(|()| bytes).map_err(Load::Error)
        });
        let table = Arc::new(table.map_err(|error| match error {
            Load::Fault(fault) => self.error(number, fault),
            Load::Error(error) => error,
        })?);
        self.tables.put(number, Arc::clone(&table), table.weight());
        Ok((table, source))
    }

    fn open_source(&self, number: usize, shard: &Shard) -> Result<Source> {
        if let Some(file) = self.files.get(number) {
            return Ok(Source::File(file));
        }
        if let Some(bytes) = self.memory.get(number) {
            return Ok(Source::Memory(bytes));
        }
        if let Some((compression, zip)) = &shard.zip {
            let path = self.folder.join(&zip.basename);
            match fs::read(&path) {
                Ok(packed) => {
                    if packed.len() as u64 != zip.bytes {
                        return Err(self.wrong_size(&path, packed.len() as u64, zip.bytes));
                    }
                    let bytes = compression.decompress(&packed, shard.raw.bytes);
                    let bytes = Arc::new(bytes.map_err(|error| Fault::new(0, error.to_string()).in_file(&path))?);
                    self.memory.put(number, Arc::clone(&bytes), bytes.len());
                    return Ok(Source::Memory(bytes));
                }
                // A stock reader may have put the uncompressed file in its place.
                Err(error) if error.kind() == ErrorKind::NotFound && self.folder.join(&shard.raw.basename).exists() => {
                }
                Err(error) => return Err(Error::io(path, error)),
            }
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
        Ok(Source::File(file))
    }

    fn wrong_size(&self, path: &Path, len: u64, told: u64) -> Error {
        Fault::new(len.min(told), format!("the file has {len} bytes, its index says {told}")).in_file(path)
    }

    fn read(&self, number: usize, source: &Source, offset: u64, out: &mut [u8]) -> Result<()> {
        match source {
            Source::File(file) => read_exact_at(file, out, offset).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => {
                    self.error(number, Fault::new(offset, format!("the file ends before {} bytes", out.len())))
                }
                _ => Error::io(self.path(number), error),
            }),
            Source::Memory(bytes) => {
                // A checked table never leads out of the shard.
                let from =
                    usize::try_from(offset).ok().and_then(|start| bytes.get(start..start.checked_add(out.len())?));
                let from = from.ok_or_else(|| self.error(number, Fault::new(offset, "the shard ends here")))?;
                out.copy_from_slice(from);
                Ok(())
            }
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
    ranges: Vec<Range<u64>>,
    wanted: Vec<Range<u64>>,
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

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

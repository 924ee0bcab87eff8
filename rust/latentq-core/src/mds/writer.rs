//! Writing a dataset with the same bytes as mosaicml's `MDSWriter`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value as Json;

use super::group;
use super::index::{Config, FileEntry, Schema, ShardEntry, to_bytes};
use super::json::dumps;
use super::publish::Folder;
use super::{Algorithm, Column, Compression, INDEX};
use crate::memory::{advise_huge, append, reserve};
use crate::parallel::Task;
use crate::{Error, Result};

/// Bytes reserved for a shard up front; a larger shard reallocates.
const ROOM: usize = 1 << 26;

/// Bytes at the start of a shard that stay in small pages, which suffices for small datasets.
const SMALL: usize = 1 << 21;

/// Options of a writer.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Compression, as `name` or `name:level`.
    pub compression: Option<String>,
    /// Names of hashes, in any order, without duplicates.
    pub hashes: Vec<String>,
    /// Maximum bytes per shard, below 2^32; 0 for the limit of the format. A larger sample gets its own shard.
    pub size_limit: u64,
    /// Fsync files and folders before and after the rename.
    pub sync: bool,
    /// Memory from earlier writers, which goes back there in the end.
    pub buffers: Option<Buffers>,
}

/// Memory that writers use in turn: filling memory that is new to the process takes longer than filling it again.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().ok()?.pop()
    }

    /// Keeps the memory of a shard, unless it is small or has grown for samples larger than a shard.
    fn give(&self, mut memory: Vec<u8>) {
        if (SMALL..=ROOM).contains(&memory.capacity())
            && let Ok(mut all) = self.0.lock()
        {
            memory.clear();
            all.push(memory);
        }
    }
}

/// The values of one column for several samples.
pub enum Values<'a> {
    /// Concatenated values of the column's fixed size.
    Fixed(&'a [u8]),
    /// Values of any size.
    Each(Vec<&'a [u8]>),
}

/// Writes samples to a temporary folder, which [`Writer::finish`] publishes. Dropping the writer earlier removes it.
///
/// A full shard is written by a background thread while the next one is filled. The writer waits for that thread before it
/// starts another.
pub struct Writer {
    schema: Schema,
    form: Arc<Form>,
    size_limit: u64,
    shards: Vec<ShardEntry>,
    /// The present group, or an empty string before the first.
    group: String,
    /// Number of shards before the present group.
    before_group: usize,
    /// The samples of the current shard.
    samples: Samples,
    /// `None` while the background thread writes a shard.
    folder: Option<Folder>,
    task: Option<Task<Written>>,
    /// An empty buffer, kept for its allocation.
    spare: Option<Samples>,
    buffers: Option<Buffers>,
    files: HashSet<String>,
    /// True after a file could not be written: the dataset would have a gap.
    failed: bool,
}

/// The result of the background thread: the folder and the samples, returned to the writer, and the index entry.
type Written = (Folder, Samples, Result<ShardEntry>);

/// Concatenated samples, and the end of each.
struct Samples {
    data: Vec<u8>,
    ends: Vec<u64>,
}

impl Samples {
    fn new(size_limit: u64, buffers: Option<&Buffers>) -> Self {
        if let Some(data) = buffers.and_then(Buffers::take) {
            return Self { data, ends: Vec::new() };
        }
        let mut data = Vec::new();
        let room = usize::try_from(size_limit).unwrap_or(ROOM).min(ROOM);
        if room > SMALL && data.try_reserve_exact(room).is_ok() {
            advise_huge(&mut data.spare_capacity_mut()[SMALL..]);
        }
        Self { data, ends: Vec::new() }
    }

    fn clear(&mut self) {
        self.data.clear();
        self.ends.clear();
    }
}

/// The properties that all shards of a group share.
#[derive(Clone)]
struct Form {
    config: Config,
    config_bytes: Vec<u8>,
    compression: Option<Compression>,
    hashes: Vec<Algorithm>,
}

impl Writer {
    /// Creates a dataset of `columns` at `path`, which must not exist or be an empty folder.
    ///
    /// # Errors
    /// An argument error for invalid options or columns; an I/O error if something exists at `path`, or its parent is not
    /// writable.
    pub fn create(path: &Path, mut columns: Vec<Column>, options: &Options) -> Result<Self> {
        // Code points and their UTF-8 bytes have the same order.
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = columns.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::argument(format!("column {:?} occurs twice", pair[0].name)));
        }
        if columns.is_empty() {
            return Err(Error::argument("a dataset needs at least one column"));
        }
        if options.size_limit > u64::from(u32::MAX) {
            return Err(Error::argument(format!(
                "size_limit must be below 2**32, because offsets are u32, not {}",
                options.size_limit
            )));
        }
        let compression = options.compression.as_deref().map(Compression::parse).transpose()?;
        let mut hashes = options.hashes.iter().map(|name| Algorithm::parse(name)).collect::<Result<Vec<_>>>()?;
        hashes.sort();
        if let Some(pair) = hashes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument(format!("hash {:?} occurs twice", pair[0].name())));
        }
        let config = Config {
            column_encodings: columns.iter().map(|column| column.text.clone()).collect(),
            column_names: columns.iter().map(|column| column.name.clone()).collect(),
            column_sizes: columns.iter().map(|column| column.size.map(u64::from)).collect(),
            compression: options.compression.clone(),
            format: "mds".into(),
            hashes: hashes.iter().map(|hash| hash.name().to_owned()).collect(),
            size_limit: if options.size_limit == 0 { Json::Null } else { options.size_limit.into() },
            version: 2,
        };
        Ok(Self {
            schema: Schema::new(columns),
            form: Arc::new(Form { config_bytes: dumps(&config), config, compression, hashes }),
            size_limit: options.size_limit,
            shards: Vec::new(),
            group: String::new(),
            before_group: 0,
            folder: Some(Folder::create(path, options.sync)?),
            samples: Samples::new(options.size_limit, options.buffers.as_ref()),
            task: None,
            spare: None,
            buffers: options.buffers.clone(),
            files: HashSet::new(),
            failed: false,
        })
    }

    /// Begins a group: the samples that follow go to shards called `shard.NAME.NNNNN.mds`, whose arrays may have another shape.
    /// A group without samples leaves no trace.
    ///
    /// # Arguments
    /// * `name`: 1 to 100 of the characters A-Z, a-z, 0-9, - and _; after that of the group before, in text order.
    /// * `columns`: The columns of the dataset, in any order, which may differ in the shape of their arrays.
    ///
    /// # Errors
    /// An argument error for another name or other columns; nothing is changed then. An I/O error if a full shard could not be
    /// written; the writer cannot be used any more then.
    pub fn begin_group(&mut self, name: &str, mut columns: Vec<Column>) -> Result<()> {
        self.check_not_failed()?;
        group::check(name, &self.group)?;
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        let own = &self.schema.columns;
        if !own.iter().map(|column| &column.name).eq(columns.iter().map(|column| &column.name)) {
            let names = |columns: &[Column]| columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
            return Err(Error::argument(format!(
                "group {name:?} has the columns {:?}, the dataset {:?}",
                names(&columns),
                names(own)
            )));
        }
        if let Some((own, column)) = own.iter().zip(&columns).find(|(own, column)| !own.equals_but_for_shape(column)) {
            return Err(Error::argument(format!(
                "column {:?} is {} in group {name:?} and {} in the dataset: only the lengths of an array's axes may differ",
                own.name,
                column.spec(),
                own.spec()
            )));
        }
        if !self.samples.ends.is_empty() {
            self.flush()?;
        }
        self.form = Arc::new(self.form.of_columns(&columns));
        self.schema = Schema::new(columns);
        name.clone_into(&mut self.group);
        self.before_group = self.shards.len() + usize::from(self.task.is_some());
        Ok(())
    }

    /// The columns, in the order that [`Writer::write`] expects values in.
    pub fn columns(&self) -> &[Column] {
        &self.schema.columns
    }

    /// Adds one sample, given the bytes of each column.
    ///
    /// # Errors
    /// An argument error for bytes of the wrong size; nothing is written then. An I/O error if a full shard could not be
    /// written; the writer cannot be used any more then.
    pub fn write(&mut self, values: &[&[u8]]) -> Result<()> {
        if values.len() != self.schema.columns.len() {
            return Err(Error::argument(format!("{} values for {} columns", values.len(), self.schema.columns.len())));
        }
        self.check(|column| values[column])?;
        self.push(|column| values[column])
    }

    /// True if the sample fits in the current shard, so that [`Writer::write`] will not wait for the disk.
    pub fn has_room(&self, values: &[&[u8]]) -> bool {
        self.fits(self.schema.header + values.iter().map(|value| value.len() as u64).sum::<u64>())
    }

    /// Adds `n` samples, all or (on an argument error) none.
    ///
    /// # Errors
    /// The errors of [`Writer::write`].
    pub fn write_batch(&mut self, n: usize, columns: &[Values<'_>]) -> Result<()> {
        if columns.len() != self.schema.columns.len() {
            return Err(Error::argument(format!("{} values for {} columns", columns.len(), self.schema.columns.len())));
        }
        for (column, values) in self.schema.columns.iter().zip(columns) {
            let good = match values {
                Values::Fixed(bytes) => {
                    column.size.map(|size| size as usize).and_then(|size| size.checked_mul(n)) == Some(bytes.len())
                }
                Values::Each(values) => values.len() == n,
            };
            if !good {
                return Err(Error::argument(format!("column {:?} does not have {n} values", column.name)));
            }
        }
        let value = |sample: usize, column: usize| match &columns[column] {
            Values::Each(values) => values[sample],
            Values::Fixed(bytes) => &bytes[sample * (bytes.len() / n)..(sample + 1) * (bytes.len() / n)],
        };
        for sample in 0..n {
            self.check(|column| value(sample, column))?;
        }
        for sample in 0..n {
            self.push(|column| value(sample, column))?;
        }
        Ok(())
    }

    /// Checks that the values have the sizes of their columns, and that the sample fits in a shard.
    fn check<'a>(&self, value: impl Fn(usize) -> &'a [u8]) -> Result<()> {
        let mut size = self.empty_len() + 4 + self.schema.header;
        for (at, column) in self.schema.columns.iter().enumerate() {
            let len = value(at).len() as u64;
            if column.size.is_some_and(|size| u64::from(size) != len) {
                let name = &column.name;
                return Err(Error::argument(format!(
                    "column {name:?}: a value has {len} bytes, but {} has {}",
                    column.text,
                    column.size.unwrap_or(0)
                )));
            }
            size += len;
        }
        match size <= u64::from(u32::MAX) {
            true => Ok(()),
            false => Err(Error::argument(format!(
                "a shard with this sample would have {size} bytes, which u32 offsets cannot address"
            ))),
        }
    }

    /// Refuses to continue after a failure.
    fn check_not_failed(&self) -> Result<()> {
        match self.failed {
            true => Err(Error::argument("the writer failed earlier: the dataset cannot be completed")),
            false => Ok(()),
        }
    }

    /// Bytes of an empty shard.
    fn empty_len(&self) -> u64 {
        8 + self.form.config_bytes.len() as u64
    }

    /// True if the current shard stays within its limit with another sample of `size` bytes.
    fn fits(&self, size: u64) -> bool {
        let shard = self.empty_len() + 4 * self.samples.ends.len() as u64 + self.samples.data.len() as u64;
        let limit = if self.size_limit == 0 { u64::from(u32::MAX) } else { self.size_limit };
        shard + size + 4 <= limit
    }

    fn push<'a>(&mut self, value: impl Fn(usize) -> &'a [u8]) -> Result<()> {
        self.check_not_failed()?;
        let size =
            self.schema.header + (0..self.schema.columns.len()).map(|column| value(column).len() as u64).sum::<u64>();
        if !self.fits(size) {
            // Without a size limit, the stock format has exactly one shard.
            if self.size_limit == 0 {
                self.failed = true;
                return Err(Error::argument(
                    "the shard would exceed 4 GiB, the maximum with u32 offsets: set a size_limit",
                ));
            }
            self.flush()?;
        }
        if let Err(error) = reserve(&mut self.samples.data, size as usize) {
            self.failed = true;
            return Err(error);
        }
        for (at, column) in self.schema.columns.iter().enumerate() {
            if column.size.is_none() {
                // `check` has made sure that this fits.
                self.samples.data.extend_from_slice(&(value(at).len() as u32).to_le_bytes());
            }
        }
        for at in 0..self.schema.columns.len() {
            self.samples.data.extend_from_slice(value(at));
        }
        self.samples.ends.push(self.samples.data.len() as u64);
        Ok(())
    }

    /// Starts writing the current shard in the background, and starts a new one.
    fn flush(&mut self) -> Result<()> {
        self.wait_for_shard()?;
        let name = self.shard_name();
        let mut folder = self.folder.take().ok_or_else(lost)?;
        let next = self.spare.take().unwrap_or_else(|| Samples::new(self.size_limit, self.buffers.as_ref()));
        let (form, samples) = (Arc::clone(&self.form), std::mem::replace(&mut self.samples, next));
        self.task = Some(Task::spawn(move || {
            let entry = form.write(&mut folder, &name, &samples);
            (folder, samples, entry)
        }));
        Ok(())
    }

    /// The file name of the next shard, when the background thread writes none.
    fn shard_name(&self) -> String {
        group::shard_name(&self.group, self.shards.len() - self.before_group)
    }

    /// Waits for the background thread.
    fn wait_for_shard(&mut self) -> Result<()> {
        let Some(task) = self.task.take() else { return Ok(()) };
        self.failed = true;
        let (folder, mut samples, entry) = task.wait().ok_or_else(lost)?;
        samples.clear();
        (self.folder, self.spare) = (Some(folder), Some(samples));
        self.shards.push(entry?);
        self.failed = false;
        Ok(())
    }

    /// Adds a file that is published together with the shards.
    ///
    /// # Errors
    /// An argument error for a name that has a separator, is reserved or occurs twice, and after a failure; an I/O error if it
    /// cannot be written.
    pub fn add_file(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let reserved = name == INDEX || (name.starts_with("shard.") && name.contains(".mds"));
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) || reserved {
            return Err(Error::argument(format!("{name:?} is not a valid name for an additional file")));
        }
        self.check_not_failed()?;
        if !self.files.insert(name.to_owned()) {
            return Err(Error::argument(format!("file {name:?} occurs twice")));
        }
        self.wait_for_shard()?;
        let written = self.folder.as_mut().ok_or_else(lost)?.write(name, &[data], |_| ());
        self.failed |= written.is_err();
        written
    }

    /// Writes the last shard and the index, and publishes the dataset.
    ///
    /// # Errors
    /// An I/O error, of the kind `AlreadyExists` if another process has published there in the meantime. All files of this
    /// writer are removed then.
    pub fn finish(mut self) -> Result<()> {
        self.wait_for_shard()?;
        if self.failed {
            return Err(Error::argument("the writer failed earlier: nothing is published"));
        }
        let mut folder = self.folder.take().ok_or_else(lost)?;
        if !self.samples.ends.is_empty() {
            self.shards.push(self.form.write(&mut folder, &self.shard_name(), &self.samples)?);
        }
        folder.write(INDEX, &[&to_bytes(&self.shards)], |_| ())?;
        folder.publish()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(buffers) = &self.buffers {
            let spare = self.spare.take().map(|samples| samples.data);
            [Some(std::mem::take(&mut self.samples.data)), spare]
                .into_iter()
                .flatten()
                .for_each(|data| buffers.give(data));
        }
    }
}

/// The error for a background thread that belongs to another process or has panicked.
fn lost() -> Error {
    Error::argument("the writer belongs to another process, or has failed earlier")
}

impl Form {
    /// The form of shards whose columns differ in size.
    fn of_columns(&self, columns: &[Column]) -> Self {
        let config = Config {
            column_encodings: columns.iter().map(|column| column.text.clone()).collect(),
            column_sizes: columns.iter().map(|column| column.size.map(u64::from)).collect(),
            ..self.config.clone()
        };
        Self { config_bytes: dumps(&config), config, ..self.clone() }
    }

    /// Writes a shard.
    fn write(&self, folder: &mut Folder, basename: &str, samples: &Samples) -> Result<ShardEntry> {
        let n = samples.ends.len();
        let start = 8 + 4 * n as u64 + self.config_bytes.len() as u64;
        let mut head = Vec::with_capacity(start as usize);
        head.extend_from_slice(&(n as u32).to_le_bytes());
        head.extend_from_slice(&(start as u32).to_le_bytes());
        // `push` has kept the shard below 2^32 bytes.
        samples.ends.iter().for_each(|end| head.extend_from_slice(&((start + end) as u32).to_le_bytes()));
        head.extend_from_slice(&self.config_bytes);
        let (raw, zip) = match self.compression {
            None => (self.write_file(folder, basename, &[&head, &samples.data])?, None),
            Some(compression) => {
                append(&mut head, &samples.data)?;
                let hashes = self.hashes.iter().map(|hash| (hash.name().to_owned(), hash.digest(&[&head])));
                let raw =
                    FileEntry { basename: basename.to_owned(), bytes: head.len() as u64, hashes: hashes.collect() };
                let basename = format!("{basename}.{}", compression.extension());
                let packed = compression.compress(&head).map_err(|error| Error::io(&basename, error))?;
                (raw, Some(self.write_file(folder, &basename, &[&packed])?))
            }
        };
        Ok(ShardEntry::new(self.config.clone(), raw, zip, n as u64))
    }

    /// Writes a file, and hashes it in the same pass.
    fn write_file(&self, folder: &mut Folder, basename: &str, parts: &[&[u8]]) -> Result<FileEntry> {
        let mut hashers: Vec<_> = self.hashes.iter().map(|hash| (hash.name().to_owned(), hash.start())).collect();
        folder.write(basename, parts, |piece| hashers.iter_mut().for_each(|(_, hasher)| hasher.update(piece)))?;
        Ok(FileEntry {
            basename: basename.to_owned(),
            bytes: parts.iter().map(|part| part.len() as u64).sum(),
            hashes: hashers.into_iter().map(|(name, hasher)| (name, hasher.finish())).collect(),
        })
    }
}

//! Writing a dataset, byte for byte as mosaicml's `MDSWriter` would.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use super::index::{Config, FileEntry, Schema, ShardEntry, to_bytes};
use super::json::dumps;
use super::publish::Folder;
use super::{Algorithm, Column, Compression, INDEX};
use crate::memory::advise_huge;
use crate::parallel::Task;
use crate::{Error, Result};

/// Bytes of a shard that are made room for at once; a larger one grows.
const ROOM: usize = 1 << 26;

/// Bytes of that which lie in small pages: most shards of a test are not larger.
const SMALL: usize = 1 << 21;

/// How a dataset is written.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `name` or `name:level`.
    pub compression: Option<String>,
    /// Names of hashes, in any order, each once.
    pub hashes: Vec<String>,
    /// Bytes that no shard is to exceed, below 2^32; 0 is no limit but the format's own. A single larger sample still gets
    /// its shard.
    pub size_limit: u64,
    /// Whether files and folders are synced before and after the rename.
    pub sync: bool,
}

/// The values of one column for several samples.
pub enum Values<'a> {
    /// One after the other, each of the column's fixed size.
    Fixed(&'a [u8]),
    /// Any sizes.
    Each(Vec<&'a [u8]>),
}

/// Writes samples into a temporary folder, which [`Writer::finish`] publishes. Dropped before that, it leaves nothing.
///
/// A full shard is written by a thread of its own while the next is filled; when that is full too, it is waited for.
pub struct Writer {
    schema: Schema,
    form: Arc<Form>,
    size_limit: u64,
    shards: Vec<ShardEntry>,
    /// Of the shard under way.
    samples: Samples,
    /// `None` while a shard is being written.
    folder: Option<Folder>,
    task: Option<Task<Written>>,
    /// Of the shard before, their room to be used again.
    spare: Option<Samples>,
    files: HashSet<String>,
    /// A file could not be written: what follows would leave a gap.
    failed: bool,
}

/// What a shard's task gives back: where it wrote, what it wrote, and whether it could.
type Written = (Folder, Samples, Result<ShardEntry>);

/// Samples one after the other, and where each ends.
struct Samples {
    data: Vec<u8>,
    ends: Vec<u64>,
}

impl Samples {
    fn new(size_limit: u64) -> Self {
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

/// What all shards of a dataset have in common.
struct Form {
    config: Config,
    config_bytes: Vec<u8>,
    compression: Option<Compression>,
    hashes: Vec<Algorithm>,
}

impl Writer {
    /// Starts a dataset of `columns` at `path`, which must be absent or an empty folder.
    ///
    /// # Errors
    /// An argument error for options, columns or names that the format does not have; an I/O error where there is
    /// something at `path`, or nothing can be written beside it.
    pub fn create(path: &Path, mut columns: Vec<Column>, options: &Options) -> Result<Self> {
        // Code points and their UTF-8 have the same order.
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = columns.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::argument(format!("the column {:?} is there twice", pair[0].name)));
        }
        if columns.is_empty() {
            return Err(Error::argument("a dataset has at least one column"));
        }
        if options.size_limit > u64::from(u32::MAX) {
            return Err(Error::argument(format!(
                "size_limit {} is not below 2**32: offsets are u32",
                options.size_limit
            )));
        }
        let compression = options.compression.as_deref().map(Compression::parse).transpose()?;
        let mut hashes = options.hashes.iter().map(|name| Algorithm::parse(name)).collect::<Result<Vec<_>>>()?;
        hashes.sort();
        if let Some(pair) = hashes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument(format!("the hash {:?} is there twice", pair[0].name())));
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
            samples: Samples::new(options.size_limit),
            folder: Some(Folder::create(path, options.sync)?),
            task: None,
            spare: None,
            files: HashSet::new(),
            failed: false,
        })
    }

    /// The columns, in the order in which values are given.
    pub fn columns(&self) -> &[Column] {
        &self.schema.columns
    }

    /// Adds one sample: the bytes of each column.
    ///
    /// # Errors
    /// An argument error for bytes that the column cannot hold: nothing is written then. An I/O error where a full shard
    /// could not be written: the dataset can then only be given up.
    pub fn write(&mut self, values: &[&[u8]]) -> Result<()> {
        if values.len() != self.schema.columns.len() {
            return Err(Error::argument(format!("{} values for {} columns", values.len(), self.schema.columns.len())));
        }
        self.check(|column| values[column])?;
        self.push(|column| values[column])
    }

    /// Whether the shard under way takes such a sample, so that [`Writer::write`] does not have to wait for the disk.
    pub fn has_room(&self, values: &[&[u8]]) -> bool {
        self.fits(self.schema.header + values.iter().map(|value| value.len() as u64).sum::<u64>())
    }

    /// Adds `n` samples.
    ///
    /// # Errors
    /// As [`Writer::write`].
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
                return Err(Error::argument(format!("column {:?} does not hold {n} values", column.name)));
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

    /// Whether the values are a sample that a shard can hold.
    fn check<'a>(&self, value: impl Fn(usize) -> &'a [u8]) -> Result<()> {
        let mut size = self.empty_len() + 4 + self.schema.header;
        for (at, column) in self.schema.columns.iter().enumerate() {
            let len = value(at).len() as u64;
            if column.size.is_some_and(|size| u64::from(size) != len) {
                let name = &column.name;
                return Err(Error::argument(format!(
                    "column {name:?}: a value of {len} bytes, {} has {}",
                    column.text,
                    column.size.unwrap_or(0)
                )));
            }
            size += len;
        }
        match size <= u64::from(u32::MAX) {
            true => Ok(()),
            false => Err(Error::argument(format!("a shard with this sample would have {size} bytes: offsets are u32"))),
        }
    }

    /// Refuses to go on after a failure.
    fn check_going(&self) -> Result<()> {
        match self.failed {
            true => Err(Error::argument("the writer failed before: the dataset cannot be completed")),
            false => Ok(()),
        }
    }

    /// Bytes of a shard without samples.
    fn empty_len(&self) -> u64 {
        8 + self.form.config_bytes.len() as u64
    }

    /// Whether a sample of `size` bytes leaves the shard under way within its limit.
    fn fits(&self, size: u64) -> bool {
        let shard = self.empty_len() + 4 * self.samples.ends.len() as u64 + self.samples.data.len() as u64;
        let limit = if self.size_limit == 0 { u64::from(u32::MAX) } else { self.size_limit };
        shard + size + 4 <= limit
    }

    fn push<'a>(&mut self, value: impl Fn(usize) -> &'a [u8]) -> Result<()> {
        self.check_going()?;
        let size =
            self.schema.header + (0..self.schema.columns.len()).map(|column| value(column).len() as u64).sum::<u64>();
        if !self.fits(size) {
            // Without a limit of its own, a dataset that outgrows one shard has no faithful form.
            if self.size_limit == 0 {
                self.failed = true;
                return Err(Error::argument(
                    "the shard would exceed 4 GiB: offsets are u32, so a size_limit is needed",
                ));
            }
            self.flush()?;
        }
        for (at, column) in self.schema.columns.iter().enumerate() {
            if column.size.is_none() {
                // `check` has seen that this fits.
                self.samples.data.extend_from_slice(&(value(at).len() as u32).to_le_bytes());
            }
        }
        for at in 0..self.schema.columns.len() {
            self.samples.data.extend_from_slice(value(at));
        }
        self.samples.ends.push(self.samples.data.len() as u64);
        Ok(())
    }

    /// Has the shard under way written, and begins the next.
    fn flush(&mut self) -> Result<()> {
        self.settle()?;
        let number = self.shards.len();
        let mut folder = self.folder.take().ok_or_else(lost)?;
        let next = self.spare.take().unwrap_or_else(|| Samples::new(self.size_limit));
        let (form, samples) = (Arc::clone(&self.form), std::mem::replace(&mut self.samples, next));
        self.task = Some(Task::spawn(move || {
            let entry = form.write(&mut folder, number, &samples);
            (folder, samples, entry)
        }));
        Ok(())
    }

    /// Waits for the shard that is being written.
    fn settle(&mut self) -> Result<()> {
        let Some(task) = self.task.take() else { return Ok(()) };
        self.failed = true;
        let (folder, mut samples, entry) = task.wait().ok_or_else(lost)?;
        samples.clear();
        (self.folder, self.spare) = (Some(folder), Some(samples));
        self.shards.push(entry?);
        self.failed = false;
        Ok(())
    }

    /// A further file, published together with the shards.
    ///
    /// # Errors
    /// An argument error for a name with a separator, one that is the writer's own, or one that is there, and after a failure.
    pub fn add_file(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let own = name == INDEX || (name.starts_with("shard.") && name.contains(".mds"));
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) || own {
            return Err(Error::argument(format!("{name:?} cannot be the name of a further file")));
        }
        self.check_going()?;
        if !self.files.insert(name.to_owned()) {
            return Err(Error::argument(format!("the file {name:?} is there twice")));
        }
        self.settle()?;
        let written = self.folder.as_mut().ok_or_else(lost)?.write(name, &[data]);
        self.failed |= written.is_err();
        written
    }

    /// Writes what is left and the index, and publishes the dataset.
    ///
    /// # Errors
    /// An I/O error; where another process has published there meanwhile, one of the kind `AlreadyExists`. Nothing of this
    /// writer is left then.
    pub fn finish(mut self) -> Result<()> {
        self.settle()?;
        if self.failed {
            return Err(Error::argument("the writer failed before: nothing is published"));
        }
        let mut folder = self.folder.take().ok_or_else(lost)?;
        if !self.samples.ends.is_empty() {
            self.shards.push(self.form.write(&mut folder, self.shards.len(), &self.samples)?);
        }
        folder.write(INDEX, &[&to_bytes(&self.shards)])?;
        folder.publish()
    }
}

/// The shard that was being written is not known of: the thread that wrote it is another process's, or has panicked.
fn lost() -> Error {
    Error::argument("the writer is another process's, or has failed before")
}

impl Form {
    /// Writes a shard.
    fn write(&self, folder: &mut Folder, number: usize, samples: &Samples) -> Result<ShardEntry> {
        let n = samples.ends.len();
        let start = 8 + 4 * n as u64 + self.config_bytes.len() as u64;
        let mut head = Vec::with_capacity(start as usize);
        head.extend_from_slice(&(n as u32).to_le_bytes());
        head.extend_from_slice(&(start as u32).to_le_bytes());
        // `push` keeps the shard below 2^32 bytes.
        samples.ends.iter().for_each(|end| head.extend_from_slice(&((start + end) as u32).to_le_bytes()));
        head.extend_from_slice(&self.config_bytes);
        let basename = format!("shard.{number:05}.mds");
        let raw = self.entry(&basename, &[&head, &samples.data]);
        let zip = match self.compression {
            None => {
                folder.write(&basename, &[&head, &samples.data])?;
                None
            }
            Some(compression) => {
                head.extend_from_slice(&samples.data);
                let basename = format!("{basename}.{}", compression.extension());
                let packed = compression.compress(&head).map_err(|error| Error::io(&basename, error))?;
                folder.write(&basename, &[&packed])?;
                Some(self.entry(&basename, &[&packed]))
            }
        };
        Ok(ShardEntry::new(self.config.clone(), raw, zip, n as u64))
    }

    fn entry(&self, basename: &str, parts: &[&[u8]]) -> FileEntry {
        let digest = |hash: &Algorithm| (hash.name().to_owned(), hash.digest(parts));
        FileEntry {
            basename: basename.to_owned(),
            bytes: parts.iter().map(|part| part.len() as u64).sum(),
            hashes: self.hashes.iter().map(digest).collect::<BTreeMap<_, _>>(),
        }
    }
}

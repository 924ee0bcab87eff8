//! Reading a dataset with positioned reads: its columns, its groups and single samples.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::group::group_of;
use super::index::Schema;
use super::opened::{Opened, Shards};
use super::shard::split;
use super::{Column, Fault};
use crate::error::counted;
use crate::memory::resize;
use crate::{Error, Result};

/// A dataset that is open for reading. It can be shared between threads, which never wait for each other.
pub struct Reader {
    pub(super) shards: Shards,
    /// Index of the first sample of each shard, and the number of samples.
    pub(super) starts: Vec<u64>,
    /// True if samples are waited for: those asked for or read last were not in memory, and no files are read ahead.
    pub(super) is_cold: AtomicBool,
}

/// Runs of consecutive samples whose shards belong to the same group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// The names of the groups, in the order of their first samples; empty for shards without a group.
    pub names: Vec<String>,
    /// For each run, the index of its first sample, ascending.
    pub starts: Vec<u64>,
    /// For each run, the position of its group in `names`.
    pub which: Vec<u32>,
}

/// One sample.
pub struct Sample {
    bytes: Bytes,
    /// The range of each column in `bytes`, in the order of the reader's columns.
    columns: Vec<Range<usize>>,
    shard: usize,
    /// Offset of the sample in its shard.
    offset: u64,
}

/// The bytes of a sample with its header: a copy, or a range of a shard in memory.
enum Bytes {
    Own(Vec<u8>),
    Shared(Opened, Range<u64>),
}

impl Sample {
    /// The bytes of a column's value.
    pub fn value(&self, column: usize) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Shared(shard, range) => shard.bytes(range).unwrap_or_default(),
        };
        self.columns.get(column).and_then(|at| bytes.get(at.clone())).unwrap_or_default()
    }
}

impl Reader {
    /// Opens the dataset in `folder`. Reads only the index.
    ///
    /// At most `memory` bytes of decompressed shards, but always one shard, are cached. If all shards of the dataset have at
    /// most `memory` bytes, and those of all readers of this process at most `raw` bytes, uncompressed shards are cached too:
    /// a background thread loads them, the first once each of its samples was read once on average, the others later.
    ///
    /// Samples that are not in memory are asked for together, before the first of them is read; or, if the files of the dataset
    /// have at most `page_cache` bytes and samples of some are read, all files are read ahead.
    ///
    /// # Errors
    /// An I/O or format error that names the index.
    pub fn open(folder: &Path, memory: usize, raw: usize, page_cache: u64) -> Result<Self> {
        let shards = Shards::open(folder, memory, raw, page_cache)?;
        let mut starts = vec![0];
        let mut total = 0;
        starts.extend(shards.index.shards.iter().map(|shard| {
            total += shard.samples;
            total
        }));
        Ok(Self { shards, starts, is_cold: AtomicBool::new(false) })
    }

    /// Announces that all samples will be read, until [`Reader::stop_ahead`]: if one is not in memory, all files are read
    /// ahead, unless they have more than `page_cache` bytes.
    pub fn expect_all(&self, page_cache: u64) {
        self.shards.expect_all(page_cache);
    }

    /// Ends what [`Reader::expect_all`] announced. When all who announced it have ended, reading ahead stops.
    pub fn stop_ahead(&self) {
        self.shards.stop_ahead();
    }

    /// Closes a shard's file: its space is free once it is removed. It is opened again when it is read.
    pub fn close_shard(&self, number: usize) {
        self.shards.close_shard(number);
    }

    /// The folder of the dataset, absolute.
    pub fn folder(&self) -> &Path {
        &self.shards.folder
    }

    /// The content hash of the index.
    pub fn index_hash(&self) -> u64 {
        self.shards.index.hash
    }

    /// Number of samples.
    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// True if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns, in the order of the first shard.
    pub fn schema(&self) -> &Schema {
        &self.shards.index.schema
    }

    /// The columns, in the order of the first shard; those whose arrays have several shapes without a shape.
    pub fn columns(&self) -> Vec<Column> {
        let columns = self.schema().columns.iter().zip(&self.shards.index.varying);
        columns.map(|(column, varies)| if *varies { column.without_shape() } else { column.clone() }).collect()
    }

    /// A column as it is in the shard of a sample.
    ///
    /// # Errors
    /// An argument error for a sample or column that does not exist.
    pub fn column_at(&self, index: u64, column: usize) -> Result<&Column> {
        let found = match self.shards.index.varying.get(column) {
            Some(true) => Some(self.column_in(self.locate(index)?.0, column)),
            _ => self.schema().columns.get(column),
        };
        found.ok_or_else(|| Error::argument(format!("there is no column {column}")))
    }

    /// A column as it is in the shard of a sample.
    pub fn column_of(&self, sample: &Sample, column: usize) -> &Column {
        self.column_in(sample.shard, column)
    }

    fn column_in(&self, shard: usize, column: usize) -> &Column {
        let schema = &self.shards.index.shards[shard].schema;
        &schema.columns[self.position(schema, column)]
    }

    /// The groups of the samples, by the names of their shards.
    pub fn groups(&self) -> Groups {
        let (mut groups, mut known, mut last) = (Groups::default(), HashMap::new(), None);
        for (shard, start) in self.shards.index.shards.iter().zip(&self.starts) {
            let name = group_of(&shard.raw.basename);
            if shard.samples == 0 || last == Some(name) {
                continue;
            }
            last = Some(name);
            let which = *known.entry(name).or_insert_with(|| {
                groups.names.push(name.to_owned());
                groups.names.len() as u32 - 1
            });
            groups.starts.push(*start);
            groups.which.push(which);
        }
        groups
    }

    /// Reads one sample.
    ///
    /// # Errors
    /// An argument error if `index` is not below `len`; an I/O or format error that names the shard.
    pub fn sample(&self, index: u64) -> Result<Sample> {
        let (number, within) = self.locate(index)?;
        let shard = self.shards.open_shard(number, 1)?;
        let range = shard.table.range(within);
        let mut ranges = Vec::with_capacity(shard.schema.columns.len());
        let own = match shard.bytes(&range) {
            Some(bytes) => {
                self.split(&shard, bytes, &range, &mut ranges)?;
                None
            }
            None => {
                let mut bytes = Vec::new();
                self.resize(&mut bytes, range.end - range.start, number)?;
                self.shards.read(&shard, range.start, &mut bytes)?;
                self.split(&shard, &bytes, &range, &mut ranges)?;
                Some(bytes)
            }
        };
        let byte_range = |at: usize| ranges[at].start as usize..ranges[at].end as usize;
        let columns = self.positions(&shard.schema).map(byte_range).collect();
        let offset = range.start;
        let bytes = own.map_or_else(|| Bytes::Shared(shard, range), Bytes::Own);
        Ok(Sample { bytes, columns, shard: number, offset })
    }

    /// The file (relative to the folder) and the offset in it of a column of a sample.
    pub fn value_location(&self, sample: &Sample, column: usize) -> (String, u64) {
        let start = sample.columns.get(column).map_or(0, |range| range.start as u64);
        (self.shards.index.shards[sample.shard].present_file().basename.clone(), sample.offset + start)
    }

    /// Converts a fault in a column of a sample to an error that names the file.
    pub fn fault(&self, sample: &Sample, column: usize, fault: Fault) -> Error {
        self.shards.error(sample.shard, fault.at(self.value_location(sample, column).1))
    }

    /// Says where a value is, for messages: the shard's file, the sample in it and in the dataset, and the column.
    pub fn place(&self, index: u64, column: usize) -> String {
        let name = self.schema().columns.get(column).map_or("?", |column| &column.name);
        match self.locate(index) {
            Ok((number, within)) => {
                let path = self.shards.path(number);
                format!("{}: sample {within} ({index} of the dataset), column {name}", path.display())
            }
            Err(_) => format!("{}: sample {index}, column {name}", self.folder().display()),
        }
    }

    /// Makes `bytes` as long as a sample, or a part of one. Errors name the shard.
    pub(super) fn resize(&self, bytes: &mut Vec<u8>, len: u64, shard: usize) -> Result<()> {
        resize(bytes, len as usize).map_err(|error| self.shards.with_path(shard, error))
    }

    /// The number of the shard that contains a sample, and the sample's index in it.
    pub(super) fn locate(&self, index: u64) -> Result<(usize, usize)> {
        // Empty shards have the same start as the next one: the last shard that starts at or before the sample contains it.
        let number = self.starts.partition_point(|start| *start <= index).wrapping_sub(1);
        match self.starts.get(number) {
            Some(start) if index < self.len() => Ok((number, (index - start) as usize)),
            _ => Err(Error::argument(format!("sample {index} is out of range for {}", counted(self.len(), "sample")))),
        }
    }

    /// The indices of the reader's columns in the shard's column order.
    fn positions<'a>(&'a self, schema: &'a Schema) -> impl Iterator<Item = usize> + 'a {
        (0..schema.columns.len()).map(|column| self.position(schema, column))
    }

    pub(super) fn position(&self, schema: &Schema, column: usize) -> usize {
        // `Index` has checked that all shards have the same columns.
        if std::ptr::eq(schema, self.schema()) {
            column
        } else {
            schema.position(&self.schema().columns[column].name).unwrap_or(column)
        }
    }

    /// Computes the ranges of all columns in the sample at `range`, which starts with `head`.
    pub(super) fn split(
        &self,
        shard: &Opened,
        head: &[u8],
        range: &Range<u64>,
        out: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let found = split(&shard.schema, head, range.end - range.start, out);
        found.map_err(|fault| self.shards.error(shard.number, fault.at(range.start)))
    }
}

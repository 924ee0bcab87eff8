//! `index.json`: the list of shards, and their schema.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::file::read_regular;
use super::json::dumps;
use super::{Column, Compression, Fault, INDEX, publish};
use crate::{Error, Result};

/// The only version of the format.
const VERSION: u64 = 2;

/// The columns of a shard, in the shard's order, and the sizes that follow from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Columns, in the order of their bytes.
    pub columns: Vec<Column>,
    /// Bytes in the header of a sample: a u32 for each column of variable size.
    pub header: u64,
    /// Bytes of all columns of fixed size.
    pub fixed: u64,
    /// The index of each column by name.
    by_name: HashMap<String, usize>,
}

impl Schema {
    /// Creates a schema. The order of `columns` is kept.
    pub fn new(columns: Vec<Column>) -> Self {
        let header = 4 * columns.iter().filter(|column| column.size.is_none()).count() as u64;
        let fixed = columns.iter().filter_map(|column| column.size).map(u64::from).sum();
        let by_name = columns.iter().enumerate().map(|(at, column)| (column.name.clone(), at)).collect();
        Self { columns, header, fixed, by_name }
    }

    /// True if all samples have the same size.
    pub fn is_fixed(&self) -> bool {
        self.header == 0
    }

    /// The index of the column called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

/// The configuration that a shard contains, in the alphabetical order in which its fields are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Config {
    pub column_encodings: Vec<String>,
    pub column_names: Vec<String>,
    pub column_sizes: Vec<Option<u64>>,
    pub compression: Option<String>,
    pub format: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub hashes: Vec<String>,
    pub size_limit: Json,
    pub version: u64,
}

impl Config {
    /// The schema, or an error message.
    pub fn schema(&self) -> std::result::Result<Schema, String> {
        schema(&self.column_names, &self.column_encodings, &self.column_sizes, &self.format, self.version)
    }
}

fn schema(
    names: &[String],
    encodings: &[String],
    sizes: &[Option<u64>],
    format: &str,
    version: u64,
) -> std::result::Result<Schema, String> {
    if format != "mds" || version != VERSION {
        return Err(format!("format {format:?}, version {version}, is not mds, version {VERSION}"));
    }
    if names.len() != encodings.len() || names.len() != sizes.len() {
        return Err(format!("{} column names, {} encodings, {} sizes", names.len(), encodings.len(), sizes.len()));
    }
    let mut seen = HashSet::new();
    if let Some(name) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(format!("column {name:?} occurs twice"));
    }
    let columns =
        names.iter().zip(encodings).zip(sizes).map(|((name, text), size)| Column::from_index(name, text, *size));
    Ok(Schema::new(columns.collect::<std::result::Result<_, _>>()?))
}

/// Reads `null`, which other writers use for nothing, as an empty collection.
fn null_as_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// One file of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path relative to the dataset's folder, with `/`.
    pub basename: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Maps algorithms to lowercase hex digests of the whole file.
    #[serde(default, deserialize_with = "null_as_default")]
    pub hashes: BTreeMap<String, String>,
}

/// The entry of a shard in `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardEntry {
    pub column_encodings: Vec<String>,
    pub column_names: Vec<String>,
    pub column_sizes: Vec<Option<u64>>,
    pub compression: Option<String>,
    pub format: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub hashes: Vec<String>,
    pub raw_data: FileEntry,
    pub samples: u64,
    #[serde(default)]
    pub size_limit: Json,
    pub version: u64,
    #[serde(default)]
    pub zip_data: Option<FileEntry>,
}

impl ShardEntry {
    pub(super) fn new(config: Config, raw_data: FileEntry, zip_data: Option<FileEntry>, samples: u64) -> Self {
        let Config { column_encodings, column_names, column_sizes, compression, format, hashes, size_limit, version } =
            config;
        Self {
            column_encodings,
            column_names,
            column_sizes,
            compression,
            format,
            hashes,
            raw_data,
            samples,
            size_limit,
            version,
            zip_data,
        }
    }

    pub fn same_columns(&self, other: &Self) -> bool {
        self.column_names == other.column_names
            && self.column_encodings == other.column_encodings
            && self.column_sizes == other.column_sizes
            && self.format == other.format
            && self.version == other.version
    }
}

#[derive(Serialize, Deserialize)]
struct IndexFile<T> {
    shards: Vec<T>,
    version: u64,
}

/// Formats the `index.json` of `shards`.
pub(super) fn to_bytes(shards: &[ShardEntry]) -> Vec<u8> {
    dumps(&IndexFile { shards: shards.iter().collect(), version: VERSION })
}

/// The entries of an `index.json`.
///
/// # Errors
/// The faults of [`Index::parse`].
pub(super) fn entries(bytes: &[u8]) -> std::result::Result<Vec<ShardEntry>, Fault> {
    let file = from_bytes(bytes)?;
    Index::of(&file)?;
    Ok(file.shards)
}

/// A shard, as parsed from the index.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The columns, in the shard's order.
    pub schema: Arc<Schema>,
    /// The uncompressed file.
    pub raw: FileEntry,
    /// The compressed file and its algorithm, if the shard is compressed.
    pub zip: Option<(Compression, FileEntry)>,
    /// Number of samples.
    pub samples: u64,
}

impl Shard {
    /// The file on disk: the compressed one if there is one.
    pub fn present_file(&self) -> &FileEntry {
        self.zip.as_ref().map_or(&self.raw, |(_, zip)| zip)
    }
}

/// A checked `index.json`.
#[derive(Clone, Debug)]
pub struct Index {
    /// The columns of the first shard, or none without shards. All shards have the same columns, possibly in another order.
    pub schema: Arc<Schema>,
    /// The shards, in the order of their samples.
    pub shards: Vec<Shard>,
}

impl Index {
    /// Reads and checks `folder/index.json`.
    ///
    /// # Errors
    /// An I/O error if it cannot be read, a format error if it is invalid.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let bytes = read_regular(&path)?;
        Self::parse(&bytes).map_err(|fault| fault.in_file(&path))
    }

    /// Parses and checks the bytes of an `index.json`.
    ///
    /// # Errors
    /// A fault. If it is in the entry of a shard, its offset is 0 and its message has the number of the shard.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, Fault> {
        Self::of(&from_bytes(bytes)?)
    }

    fn of(file: &IndexFile<ShardEntry>) -> std::result::Result<Self, Fault> {
        if file.version != VERSION {
            return Err(Fault::new(0, format!("version {} is not {VERSION}", file.version)));
        }
        let mut shards: Vec<Shard> = Vec::with_capacity(file.shards.len());
        let mut previous: Option<&ShardEntry> = None;
        for (number, entry) in file.shards.iter().enumerate() {
            let fault = |message: String| Fault::new(0, format!("shard {number}: {message}"));
            let schema = match (previous, shards.last()) {
                (Some(before), Some(last)) if before.same_columns(entry) => Arc::clone(&last.schema),
                _ => {
                    let (names, encodings) = (&entry.column_names, &entry.column_encodings);
                    let schema = schema(names, encodings, &entry.column_sizes, &entry.format, entry.version);
                    let schema = Arc::new(schema.map_err(fault)?);
                    if shards.first().is_some_and(|first| !same_set(&first.schema, &schema)) {
                        return Err(fault("its columns differ from those of shard 0".into()));
                    }
                    schema
                }
            };
            shards.push(Shard::new(entry, schema).map_err(fault)?);
            previous = Some(entry);
        }
        let total = shards.iter().try_fold(0u64, |sum, shard| sum.checked_add(shard.samples));
        if total.is_none_or(|total| i64::try_from(total).is_err()) {
            return Err(Fault::new(0, "too many samples"));
        }
        let schema = shards.first().map_or_else(|| Arc::new(Schema::new(vec![])), |shard| Arc::clone(&shard.schema));
        Ok(Self { schema, shards })
    }
}

impl Shard {
    fn new(entry: &ShardEntry, schema: Arc<Schema>) -> std::result::Result<Self, String> {
        let raw = &entry.raw_data;
        if raw.bytes > u64::from(u32::MAX) || entry.samples > raw.bytes / 4 {
            return Err(format!("{} samples do not fit in {} bytes", entry.samples, raw.bytes));
        }
        let zip = match (&entry.compression, &entry.zip_data) {
            (None, None) => None,
            (Some(name), Some(zip)) => {
                Some((Compression::parse(name).map_err(|error| error.to_string())?, zip.clone()))
            }
            (Some(name), None) => return Err(format!("compression {name:?}, but no zip_data")),
            (None, Some(_)) => return Err("zip_data, but no compression".into()),
        };
        let inside = |file: FileEntry| {
            let basename = normalized(&file.basename)?;
            Ok::<_, String>(FileEntry { basename, ..file })
        };
        let zip = zip.map(|(compression, file)| Ok::<_, String>((compression, inside(file)?))).transpose()?;
        Ok(Self { schema, raw: inside(raw.clone())?, zip, samples: entry.samples })
    }
}

/// A path without `.` and empty parts.
///
/// # Errors
/// A message for a path that leads out of the dataset's folder.
pub(super) fn normalized(basename: &str) -> std::result::Result<String, String> {
    let outside = || format!("the basename {basename:?} is not inside the folder");
    let mut parts = Vec::new();
    for part in Path::new(basename).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(outside)?),
            Component::CurDir => {}
            _ => return Err(outside()),
        }
    }
    match parts.is_empty() || basename.contains('\0') {
        true => Err(outside()),
        false => Ok(parts.join("/")),
    }
}

fn same_set(a: &Schema, b: &Schema) -> bool {
    let in_b = |column: &Column| b.position(&column.name).is_some_and(|at| b.columns[at] == *column);
    a.columns.len() == b.columns.len() && a.columns.iter().all(in_b)
}

/// Parses JSON. Converts the position of an error from line and column to a byte offset.
pub(super) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> std::result::Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| {
        let line_start = match error.line() {
            0 | 1 => 0,
            line => {
                bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1)
            }
        };
        let text = error.to_string();
        let text = text.rsplit_once(" at line").map_or(text.as_str(), |(text, _)| text);
        Fault::new((line_start + error.column().saturating_sub(1)) as u64, text)
    })
}

/// The bytes of the index that mosaicml's `merge_index` writes for the datasets `path/<folder>`, in that order.
///
/// # Errors
/// An I/O or format error that names the index of a folder; an argument error for a name that is not a direct subfolder.
pub fn merged_index(path: &Path, folders: &[String]) -> Result<Vec<u8>> {
    // Entries keep the order of their keys, and unknown keys, as Python dicts would.
    let mut merged: Vec<Json> = Vec::new();
    for folder in folders {
        if normalized(folder).is_err() || Path::new(folder).components().count() != 1 {
            return Err(Error::argument(format!("{folder:?} is not the name of a folder in {}", path.display())));
        }
        let file = path.join(folder).join(INDEX);
        let bytes = read_regular(&file)?;
        let fault = |message: String| Fault::new(0, message).in_file(&file);
        // Refuse to merge an index that cannot be read.
        Index::parse(&bytes).map_err(|fault| fault.in_file(&file))?;
        let mut index: Json = from_bytes(&bytes).map_err(|fault| fault.in_file(&file))?;
        let shards =
            index.get_mut("shards").and_then(Json::as_array_mut).ok_or_else(|| fault("it has no shards".into()))?;
        for shard in &mut *shards {
            for key in ["raw_data", "zip_data"] {
                if let Some(Json::String(basename)) = shard.get_mut(key).and_then(|file| file.get_mut("basename")) {
                    *basename = format!("{folder}/{basename}");
                }
            }
        }
        merged.append(shards);
    }
    #[derive(Serialize)]
    struct Merged {
        version: u64,
        shards: Vec<Json>,
    }
    Ok(dumps(&Merged { version: VERSION, shards: merged }))
}

/// Writes [`merged_index`] to `path/index.json` atomically.
///
/// Without `folders`, merges all direct subfolders that have an index and whose name does not start with a dot, in the
/// order of their names.
///
/// # Errors
/// The errors of [`merged_index`], and an I/O error if it cannot be written.
pub fn merge(path: &Path, folders: Option<&[String]>) -> Result<()> {
    let bytes = match folders {
        Some(folders) => merged_index(path, folders)?,
        None => merged_index(path, &datasets_in(path, has_index)?)?,
    };
    publish::replace_file(&path.join(INDEX), &bytes)
}

/// The direct subfolders that `wanted` accepts and whose name does not start with a dot, in the order of their names.
pub(super) fn datasets_in(path: &Path, wanted: impl Fn(&Path) -> Result<bool>) -> Result<Vec<String>> {
    let io = |error| Error::io(path, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name.as_encoded_bytes().starts_with(b".") || !wanted(&path.join(&name))? {
            continue;
        }
        let name = name.into_string();
        names.push(name.map_err(|name| Error::argument(format!("the name of the folder {name:?} is not UTF-8")))?);
    }
    names.sort();
    Ok(names)
}

fn has_index(folder: &Path) -> Result<bool> {
    let file: PathBuf = folder.join(INDEX);
    match fs::metadata(&file) {
        Ok(found) => Ok(found.is_file()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(Error::io(file, error)),
    }
}

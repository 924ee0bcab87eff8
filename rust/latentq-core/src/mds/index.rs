//! `index.json`: the list of shards, and their schema.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, Hash, RandomState};
use std::io::BufReader;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use super::file::{open_regular, read_regular};
use super::json::dumps;
use super::{Column, Compression, Fault, INDEX, content_hash};
use crate::{Error, Result};

/// The only version of the format.
pub(super) const VERSION: u64 = 2;

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
    D: Deserializer<'de>,
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
    /// Algorithms and lowercase hex digests of the whole file, in the order of the algorithms' names. A map would take 11
    /// times the memory for one hash, and there may be many files.
    #[serde(default, deserialize_with = "from_map", serialize_with = "as_map")]
    pub hashes: Box<[(String, String)]>,
}

/// Reads a map as its items, sorted by their keys; `null` has no items.
fn from_map<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Box<[(String, String)]>, D::Error> {
    let map: BTreeMap<String, String> = null_as_default(deserializer)?;
    Ok(map.into_iter().collect())
}

fn as_map<S: Serializer>(items: &[(String, String)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(items.iter().map(|(key, value)| (key, value)))
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

    /// Everything that decides the schema.
    fn columns(&self) -> impl Hash + PartialEq {
        (&self.column_names, &self.column_encodings, &self.column_sizes, &self.format, self.version)
    }

    pub fn same_columns(&self, other: &Self) -> bool {
        self.columns() == other.columns()
    }

    /// True if both have the same columns, in the same order, which differ at most in the shape of their arrays.
    pub fn equals_but_for_shape(&self, other: &Self) -> bool {
        let schema = |entry: &Self| {
            let (names, encodings) = (&entry.column_names, &entry.column_encodings);
            schema(names, encodings, &entry.column_sizes, &entry.format, entry.version)
        };
        self.same_columns(other)
            || schema(self).ok().zip(schema(other).ok()).is_some_and(|(mine, theirs)| {
                mine.columns.len() == theirs.columns.len()
                    && mine.columns.iter().zip(&theirs.columns).all(|(a, b)| a.equals_but_for_shape(b))
            })
    }
}

#[derive(Serialize)]
struct IndexFile<T> {
    shards: Vec<T>,
    version: u64,
}

/// Formats the `index.json` of `shards`.
pub(super) fn to_bytes(shards: &[ShardEntry]) -> Vec<u8> {
    dumps(&IndexFile { shards: shards.iter().collect(), version: VERSION })
}

/// Calls `each` with every checked entry of an `index.json`, which is read piece by piece. `path` is for errors.
///
/// # Errors
/// An I/O error, or a format error if the index is invalid; the entries before the fault have then been visited.
pub(super) fn visit_entries(file: &File, path: &Path, mut each: impl FnMut(ShardEntry)) -> Result<()> {
    let mut check = Check::default();
    let mut checked = |entry: ShardEntry| {
        check.shard(&entry).map_err(|fault| fault.message)?;
        each(entry);
        Ok(())
    };
    let mut deserializer = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 20, file));
    let read = Document(&mut checked).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match read {
        Ok(()) => check.total().map_err(|fault| fault.in_file(path)),
        Err(error) if error.is_io() => Err(Error::io(path, error.into())),
        Err(error) => Err(Error::format(format!("{}: {error}", path.display()))),
    }
}

/// Receives the entries of an index one by one; its error ends the reading.
type Receive<'a> = &'a mut dyn FnMut(ShardEntry) -> std::result::Result<(), String>;

/// An `index.json` whose entries go to the function.
struct Document<'a>(Receive<'a>);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with shards and version")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let (mut shards, mut version) = (false, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "shards" if shards => return Err(A::Error::duplicate_field("shards")),
                "shards" => {
                    map.next_value_seed(Entries(&mut *self.0))?;
                    shards = true;
                }
                "version" if version.is_some() => return Err(A::Error::duplicate_field("version")),
                "version" => version = Some(map.next_value::<u64>()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match version {
            _ if !shards => Err(A::Error::missing_field("shards")),
            Some(VERSION) => Ok(()),
            Some(version) => Err(A::Error::custom(format!("version {version} is not {VERSION}"))),
            None => Err(A::Error::missing_field("version")),
        }
    }
}

/// The list of entries.
struct Entries<'a>(Receive<'a>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of shards")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(entry) = list.next_element()? {
            (self.0)(entry).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// The number of samples in each direct subfolder that the index in `folder` names, in the order of the samples; shards
/// of the folder itself have an empty name. The index is read piece by piece.
///
/// # Errors
/// An I/O error if there is no index or it cannot be read, a format error if it is invalid.
pub fn samples_by_folder(folder: &Path) -> Result<Vec<(String, u64)>> {
    let path = folder.join(INDEX);
    let mut counts: Vec<(String, u64)> = Vec::new();
    visit_entries(&open_regular(&path)?.0, &path, |entry| {
        let basename = normalized(&entry.raw_data.basename).unwrap_or_default();
        let name = basename.split_once('/').map_or("", |(name, _)| name);
        match counts.last_mut() {
            Some((last, samples)) if last == name => *samples += entry.samples,
            _ => counts.push((name.to_owned(), entry.samples)),
        }
    })?;
    Ok(counts)
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
    /// The columns of the first shard, or none without shards. All shards have the same columns, possibly in another order and
    /// with arrays of other shapes.
    pub schema: Arc<Schema>,
    /// For each of these columns, true if shards differ in the shape of its arrays.
    pub varying: Vec<bool>,
    /// The shards, in the order of their samples.
    pub shards: Vec<Shard>,
    /// The content hash of the file: another one means another dataset.
    pub hash: u64,
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
        let mut check = Check::default();
        let mut shards = Vec::new();
        let mut fault = None;
        // The entries are checked one by one, since all of them would take six times the memory of the shards.
        let mut receive = |entry: ShardEntry| match check.shard(&entry) {
            Ok(shard) => {
                shards.push(shard);
                Ok(())
            }
            Err(found) => Err(fault.insert(found).message.clone()),
        };
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let read = Document(&mut receive).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        if let Err(error) = read {
            return Err(fault.unwrap_or_else(|| located(bytes, &error)));
        }
        check.total()?;
        let varying = check.varying;
        let schema = check.first.unwrap_or_else(|| Arc::new(Schema::new(vec![])));
        Ok(Self { schema, varying, shards, hash: content_hash(bytes) })
    }
}

/// Checks the entries of an index one by one, in order.
#[derive(Default)]
struct Check {
    /// The columns of the first shard.
    first: Option<Arc<Schema>>,
    /// For each of these columns, true if a shard has arrays of another shape.
    varying: Vec<bool>,
    /// An entry for each schema, by the hash of its columns: units of many shapes have the same ones over and over.
    known: HashMap<u64, Vec<(ShardEntry, Arc<Schema>)>>,
    hasher: RandomState,
    /// Number of shards.
    number: usize,
    /// Number of samples in them.
    samples: u64,
}

impl Check {
    /// The shard of the next entry, or a fault with the number of the shard.
    fn shard(&mut self, entry: &ShardEntry) -> std::result::Result<Shard, Fault> {
        let number = self.number;
        let fault = |message: String| Fault::new(0, format!("shard {number}: {message}"));
        let known = self.known.entry(self.hasher.hash_one(entry.columns())).or_default();
        let schema = match known.iter().find(|(before, _)| before.same_columns(entry)) {
            Some((_, schema)) => Arc::clone(schema),
            None => {
                let (names, encodings) = (&entry.column_names, &entry.column_encodings);
                let schema = schema(names, encodings, &entry.column_sizes, &entry.format, entry.version);
                let schema = Arc::new(schema.map_err(fault)?);
                let first = self.first.get_or_insert_with(|| Arc::clone(&schema));
                self.varying.resize(first.columns.len(), false);
                if !compare(first, &schema, &mut self.varying) {
                    return Err(fault("its columns differ from those of shard 0".into()));
                }
                known.push((entry.clone(), Arc::clone(&schema)));
                schema
            }
        };
        let shard = Shard::new(entry, schema).map_err(fault)?;
        self.number += 1;
        self.samples = self.samples.saturating_add(entry.samples);
        Ok(shard)
    }

    /// A fault if there are more samples than an index can count.
    fn total(&self) -> std::result::Result<(), Fault> {
        i64::try_from(self.samples).map(drop).map_err(|_| Fault::new(0, "too many samples"))
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

/// True if `other` has the columns of `first`, in any order. Marks those whose arrays have another shape in `varying`.
fn compare(first: &Schema, other: &Schema, varying: &mut [bool]) -> bool {
    let mut same = |(column, varies): (&Column, &mut bool)| {
        let Some(at) = other.position(&column.name) else { return false };
        *varies |= other.columns[at].encoding != column.encoding;
        column.equals_but_for_shape(&other.columns[at])
    };
    first.columns.len() == other.columns.len() && first.columns.iter().zip(varying).all(&mut same)
}

/// Parses JSON. Converts the position of an error from line and column to a byte offset.
pub(super) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> std::result::Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| located(bytes, &error))
}

/// The fault of an error in JSON, with the byte offset of its line and column.
fn located(bytes: &[u8], error: &serde_json::Error) -> Fault {
    let line_start = match error.line() {
        0 | 1 => 0,
        line => bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
    };
    let text = error.to_string();
    let text = text.rsplit_once(" at line").map_or(text.as_str(), |(text, _)| text);
    Fault::new((line_start + error.column().saturating_sub(1)) as u64, text)
}

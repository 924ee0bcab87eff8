//! Rebuilding the index of a dataset from its shards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::file::{NOT_REGULAR, read_opened};
use super::index::{FileEntry, Index, ShardEntry, datasets_in, entries, normalized, to_bytes};
use super::verify::{Finding, Found, open, shards_in};
use super::{Algorithm, Compression, Fault, INDEX, merge, publish, shard};
use crate::error::counted;
use crate::{Error, Kind, Result};

/// Maximum bytes of a shard: its offsets are u32.
const MAX_SHARD: u64 = u32::MAX as u64;

/// The result of [`repair`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Number of shards in the index.
    pub shards: usize,
    /// Number of samples in them.
    pub samples: u64,
    /// Shards that could not be listed, and why. The files are not changed.
    pub skipped: Vec<Finding>,
    /// New names of previous indexes, relative to the folder.
    pub kept: Vec<String>,
}

impl Repair {
    fn count(&mut self, shards: usize, samples: u64) {
        self.shards += shards;
        self.samples += samples;
    }
}

/// Rebuilds `index.json` from the shards in `folder`. If there are none, rebuilds the index of each subfolder that has lost
/// its own, and then the merged index. Nothing is deleted: a previous index is kept under another name.
///
/// The entry of a previous index is kept for a shard that a stock reader has decompressed: it describes the compressed file.
///
/// # Errors
/// A format error if no shard can be listed, or if the new index would have fewer samples than the previous one and
/// `allow_fewer` is false (nothing is written then); an I/O error if a file cannot be read or written.
pub fn repair(folder: &Path, allow_fewer: bool) -> Result<Repair> {
    let mut done = Repair::default();
    let previous = previous_entries(folder)?;
    if !shards_in(folder)?.is_empty() {
        let found = rebuild(folder, "", previous.as_deref().unwrap_or_default(), &mut done)?;
        check_samples(folder, previous.as_deref(), &done, allow_fewer)?;
        write(folder, "", &found, &mut done)?;
        return Ok(done);
    }
    let (mut names, mut rebuilt) = (Vec::new(), Vec::new());
    for name in datasets_in(folder, |folder| Ok(folder.is_dir()))? {
        let sub = folder.join(&name);
        match Index::load(&sub) {
            Ok(index) => done.count(index.shards.len(), index.shards.iter().map(|shard| shard.samples).sum()),
            Err(error) if error.kind() == Kind::Format || error.is_not_found() => {
                if shards_in(&sub)?.is_empty() {
                    continue;
                }
                // Names in the merged index start with the folder.
                let own = previous.iter().flatten().filter_map(|entry| within(entry, &name)).collect::<Vec<_>>();
                let found = rebuild(&sub, &format!("{name}/"), &own, &mut done)?;
                rebuilt.push((name.clone(), found));
            }
            Err(error) => return Err(error),
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err(Error::format(format!("{}: there is no shard in this folder", folder.display())));
    }
    check_samples(folder, previous.as_deref(), &done, allow_fewer)?;
    for (name, found) in rebuilt {
        write(&folder.join(&name), &format!("{name}/"), &found, &mut done)?;
    }
    let index = super::merged_index(folder, &names)?;
    done.kept.extend(keep(folder, &index)?);
    merge(folder, Some(&names))?;
    Ok(done)
}

/// The entries of the index in `folder`; `None` if it is missing or broken.
fn previous_entries(folder: &Path) -> Result<Option<Vec<ShardEntry>>> {
    let Found::File(file, len) = open(folder, INDEX)? else { return Ok(None) };
    Ok(entries(&read_opened(&file, len, &folder.join(INDEX))?).ok())
}

/// The entry of a merged index as the index in `name` has it; `None` for an entry of another folder.
fn within(entry: &ShardEntry, name: &str) -> Option<ShardEntry> {
    let mut entry = entry.clone();
    for file in [Some(&mut entry.raw_data), entry.zip_data.as_mut()].into_iter().flatten() {
        let basename = normalized(&file.basename).ok()?;
        file.basename = basename.strip_prefix(name)?.strip_prefix('/')?.to_owned();
    }
    Some(entry)
}

/// Refuses to replace an index by one with fewer samples.
fn check_samples(folder: &Path, previous: Option<&[ShardEntry]>, done: &Repair, allow_fewer: bool) -> Result<()> {
    let before: u64 = previous.unwrap_or_default().iter().map(|entry| entry.samples).sum();
    if allow_fewer || done.samples >= before {
        return Ok(());
    }
    let reason = done.skipped.first().map_or(String::new(), |finding| {
        format!(
            "; {} cannot be listed, the first is {}: {}",
            counted(done.skipped.len(), "shard"),
            finding.file,
            finding.message
        )
    });
    Err(Error::format(format!(
        "{}: the index lists {}, but the shards here hold {}{reason}. Nothing was changed: to replace the index, \
         allow fewer samples (--allow-fewer-samples)",
        folder.join(INDEX).display(),
        counted(before, "sample"),
        done.samples
    )))
}

/// Makes the entries of the shards in a folder. Adds those that cannot be listed to `done.skipped`, with `prefix`.
fn rebuild(folder: &Path, prefix: &str, previous: &[ShardEntry], done: &mut Repair) -> Result<Vec<ShardEntry>> {
    let names = shards_in(folder)?;
    // Readers prefer the compressed file, so its entry fits a plain shard only if that file is gone.
    let present: HashSet<&str> = names.iter().map(String::as_str).collect();
    let previous = previous.iter().filter_map(|entry| {
        let zip = normalized(&entry.zip_data.as_ref()?.basename).ok()?;
        let raw = normalized(&entry.raw_data.basename).ok()?;
        (!present.contains(zip.as_str())).then_some((raw, entry))
    });
    let previous: HashMap<String, &ShardEntry> = previous.collect();
    let mut found: BTreeMap<usize, ShardEntry> = BTreeMap::new();
    let mut listed: HashSet<String> = HashSet::new();
    let mut columns: Option<ShardEntry> = None;
    let is_compressed = |name: &str| !name.ends_with(".mds");
    // A plain shard next to its compressed form is a copy by a stock reader, and needed only if that form is broken.
    let order = (0..names.len()).filter(|at| is_compressed(&names[*at]));
    for at in order.chain((0..names.len()).filter(|at| !is_compressed(&names[*at]))) {
        let name = &names[at];
        if listed.contains(name) {
            continue;
        }
        let finding = |fault| Finding::new(&format!("{prefix}{name}"), fault);
        let entry = match read_shard(folder, name)? {
            Ok(bytes) => entry_of(name, &bytes)?.map(|entry| match previous.get(name) {
                Some(known) if describes(known, &entry, &bytes) => (*known).clone(),
                _ => entry,
            }),
            Err(fault) => Err(fault),
        };
        match entry {
            Ok(entry) if columns.as_ref().is_none_or(|first| first.same_columns(&entry)) => {
                columns.get_or_insert_with(|| entry.clone());
                done.count(1, entry.samples);
                listed.insert(entry.raw_data.basename.clone());
                found.insert(at, entry);
            }
            Ok(_) => done.skipped.push(finding(Fault::new(0, "its columns differ from those of the first shard"))),
            Err(fault) => done.skipped.push(finding(fault)),
        }
    }
    match (found.is_empty(), done.skipped.first()) {
        (true, Some(finding)) => Err(Error::format(format!(
            "{}: none of {} can be listed; the first is {}: {}",
            folder.display(),
            counted(names.len(), "shard"),
            finding.file,
            finding.message
        ))),
        _ => Ok(found.into_values().collect()),
    }
}

/// Reads a shard, if it is a file of possible size.
fn read_shard(folder: &Path, name: &str) -> Result<std::result::Result<Vec<u8>, Fault>> {
    match open(folder, name)? {
        Found::File(_, len) if len > 2 * MAX_SHARD => {
            Ok(Err(Fault::new(0, format!("the file has {len} bytes, and a shard has less than 4 GiB"))))
        }
        Found::File(file, len) => read_opened(&file, len, &folder.join(name)).map(Ok),
        Found::Missing => Ok(Err(Fault::new(0, "the file is not there"))),
        Found::NotRegular => Ok(Err(Fault::new(0, NOT_REGULAR))),
    }
}

/// True if `known`, an entry of the previous index with a compressed file, describes the plain shard `bytes`, whose own entry
/// is `rebuilt`.
fn describes(known: &ShardEntry, rebuilt: &ShardEntry, bytes: &[u8]) -> bool {
    let hash = |(name, digest): (&String, &String)| {
        Algorithm::parse(name).is_ok_and(|algorithm| algorithm.digest(&[bytes]) == *digest)
    };
    rebuilt.zip_data.is_none()
        && known.samples == rebuilt.samples
        && known.same_columns(rebuilt)
        && known.raw_data.bytes == bytes.len() as u64
        && known.raw_data.hashes.iter().all(hash)
}

/// Publishes an index, and keeps the previous one.
fn write(folder: &Path, prefix: &str, found: &[ShardEntry], done: &mut Repair) -> Result<()> {
    let index = to_bytes(found);
    done.kept.extend(keep(folder, &index)?.map(|name| format!("{prefix}{name}")));
    publish::replace_file(&folder.join(INDEX), &index)
}

/// Builds the index entry of a shard called `name` from its bytes.
///
/// # Errors
/// A memory error; inside, the first fault of the shard.
pub fn entry_of(name: &str, content: &[u8]) -> Result<std::result::Result<ShardEntry, Fault>> {
    let other = |message: String| Ok(Err(Fault::new(0, message)));
    let (raw_name, compression) = match name.rsplit_once(".mds.") {
        None => (name.to_owned(), None),
        Some((stem, extension)) => match Compression::parse(extension) {
            Ok(compression) => (format!("{stem}.mds"), Some(compression)),
            Err(error) => return other(error.to_string()),
        },
    };
    let unpacked = match compression.map(|compression| compression.decompress_up_to(content, MAX_SHARD)).transpose() {
        Ok(unpacked) => unpacked,
        Err(error) if error.kind() == ErrorKind::OutOfMemory => return Err(Error::io(name, error)),
        Err(error) => return other(format!("cannot be decompressed: {error}")),
    };
    let bytes = unpacked.as_deref().unwrap_or(content);
    let (samples, mut config) = match shard::own_config(bytes) {
        Ok(found) => found,
        Err(fault) => return Ok(Err(fault)),
    };
    let schema = match config.schema() {
        Ok(schema) => schema,
        Err(message) => return other(message),
    };
    if let Some(fault) = shard::check(samples, &schema, bytes)?.into_iter().next() {
        return Ok(Err(fault));
    }
    let hashes = match config.hashes.iter().map(|name| Algorithm::parse(name)).collect::<Result<Vec<_>>>() {
        Ok(hashes) => hashes,
        Err(error) => return other(error.to_string()),
    };
    match (config.compression.as_deref().map(Compression::parse).transpose(), compression) {
        // Decompressed by a stock reader: its header still has the compression.
        (Ok(_), None) => config.compression = None,
        (Ok(Some(stated)), Some(own)) if stated.extension() == own.extension() => {}
        _ => return other(format!("its configuration has the compression {:?}", config.compression)),
    }
    let entry = |basename: &str, bytes: &[u8]| FileEntry {
        basename: basename.to_owned(),
        bytes: bytes.len() as u64,
        hashes: hashes.iter().map(|hash| (hash.name().to_owned(), hash.digest(&[bytes]))).collect::<BTreeMap<_, _>>(),
    };
    let zip = compression.map(|_| entry(name, content));
    Ok(Ok(ShardEntry::new(config, entry(&raw_name, bytes), zip, samples)))
}

/// Keeps the index in `folder` under another name, unless it equals `index`. Returns the new name.
fn keep(folder: &Path, index: &[u8]) -> Result<Option<String>> {
    let Found::File(file, len) = open(folder, INDEX)? else { return Ok(None) };
    if len == index.len() as u64 && read_opened(&file, len, &folder.join(INDEX))? == index {
        return Ok(None);
    }
    // No `.json` at the end: mosaicml's merge_index would read it as an index.
    for number in 0.. {
        let name = format!("{INDEX}.before-repair.{number}");
        let to = folder.join(&name);
        match fs::hard_link(folder.join(INDEX), &to) {
            Ok(()) => return Ok(Some(name)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(to, error)),
        }
    }
    Ok(None)
}

//! Rebuilding the index of a dataset from its shards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::file::{NOT_REGULAR, read_opened};
use super::index::{FileEntry, Index, ShardEntry, normalized, to_bytes, visit_entries};
use super::merge::{datasets_in, write_merged};
use super::publish::Replacement;
use super::verify::{Finding, Found, open, shards_in};
use super::{Algorithm, Compression, Fault, INDEX, shard};
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
/// Memory grows with the number of subfolders only by their names, and by the indexes that are rebuilt.
///
/// # Arguments
/// * `folders`: The subfolders, in the order of the samples; by default all, in the order of their names.
/// * `allow_fewer`: The new index may have fewer samples than the previous one.
/// * `progress`: Called after each shard of `folder`, or each of its subfolders; its error ends the repair before
///   anything is written.
///
/// # Errors
/// A format error if no shard can be listed, or if the new index would have fewer samples than the previous one and
/// `allow_fewer` is false (nothing is written then); an I/O error if a file cannot be read or written.
pub fn repair(
    folder: &Path,
    folders: Option<Vec<String>>,
    allow_fewer: bool,
    progress: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<Repair> {
    let mut done = Repair::default();
    let shards = shards_in(folder)?;
    if !shards.is_empty() {
        let previous = Previous::of(folder, |entry| Some((String::new(), entry)))?;
        let total = shards.len();
        let mut step = |done| progress(Step { what: "shards", done, total });
        let found = rebuild(folder, "", shards, previous.packed(""), &mut done, &mut step)?;
        check_samples(folder, &previous, &done, allow_fewer)?;
        write(folder, "", &to_bytes(&found), &mut done)?;
        return Ok(done);
    }
    let folders = match folders {
        Some(folders) => folders,
        None => datasets_in(folder, |folder| Ok(folder.is_dir()))?,
    };
    let total = folders.len();
    let (mut names, mut lost) = (Vec::new(), HashSet::new());
    for (number, name) in folders.into_iter().enumerate() {
        let sub = folder.join(&name);
        let found = match Index::load(&sub) {
            Ok(index) => {
                done.count(index.shards.len(), index.shards.iter().map(|shard| shard.samples).sum());
                true
            }
            Err(error) if error.kind() == Kind::Format || error.is_not_found() => {
                let found = !shards_in(&sub)?.is_empty();
                if found {
                    lost.insert(name.clone());
                }
                found
            }
            Err(error) => return Err(error),
        };
        if found {
            names.push(name);
        }
        progress(Step { what: "folders", done: number + 1, total })?;
    }
    if names.is_empty() {
        return Err(Error::format(format!("{}: there is no shard in this folder", folder.display())));
    }
    let previous = Previous::of(folder, |entry| within(entry, &lost))?;
    let mut rebuilt = Vec::new();
    for name in names.iter().filter(|name| lost.contains(*name)) {
        let sub = folder.join(name);
        let found =
            rebuild(&sub, &format!("{name}/"), shards_in(&sub)?, previous.packed(name), &mut done, &mut |_| Ok(()))?;
        rebuilt.push((name, to_bytes(&found)));
        progress(Step { what: "lost indexes", done: rebuilt.len(), total: lost.len() })?;
    }
    check_samples(folder, &previous, &done, allow_fewer)?;
    for (name, index) in rebuilt {
        write(&folder.join(name), &format!("{name}/"), &index, &mut done)?;
    }
    let merged = write_merged(folder, &names)?;
    done.kept.extend(replace(folder, merged)?);
    Ok(done)
}

/// The progress of a repair.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The plural of what is counted.
    pub what: &'static str,
    /// Their number so far.
    pub done: usize,
    /// Their total number.
    pub total: usize,
}

/// The entries of a folder's index that a repair needs; empty if the index is missing or broken.
#[derive(Default)]
struct Previous {
    /// Number of samples.
    samples: u64,
    /// Entries of compressed shards, by subfolder.
    packed: HashMap<String, Vec<ShardEntry>>,
}

impl Previous {
    /// Reads the index in `folder` piece by piece. `place` gives the subfolder of an entry that is needed, and the entry as
    /// the index in that subfolder has it.
    fn of(folder: &Path, place: impl Fn(ShardEntry) -> Option<(String, ShardEntry)>) -> Result<Self> {
        let Found::File(file, _) = open(folder, INDEX)? else { return Ok(Self::default()) };
        let mut previous = Self::default();
        let read = visit_entries(&file, &folder.join(INDEX), |entry| {
            previous.samples += entry.samples;
            if entry.zip_data.is_some()
                && let Some((name, entry)) = place(entry)
            {
                previous.packed.entry(name).or_default().push(entry);
            }
        });
        match read {
            Ok(()) => Ok(previous),
            Err(error) if error.kind() == Kind::Format => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// The entries of a subfolder's compressed shards.
    fn packed(&self, name: &str) -> &[ShardEntry] {
        self.packed.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The subfolder of an entry of a merged index, and the entry as the index there has it; `None` if it is not one of `names`.
fn within(mut entry: ShardEntry, names: &HashSet<String>) -> Option<(String, ShardEntry)> {
    let name = normalized(&entry.raw_data.basename).ok()?.split_once('/')?.0.to_owned();
    if !names.contains(&name) {
        return None;
    }
    for file in [Some(&mut entry.raw_data), entry.zip_data.as_mut()].into_iter().flatten() {
        let basename = normalized(&file.basename).ok()?;
        file.basename = basename.strip_prefix(&name)?.strip_prefix('/')?.to_owned();
    }
    Some((name, entry))
}

/// Refuses to replace an index by one with fewer samples.
fn check_samples(folder: &Path, previous: &Previous, done: &Repair, allow_fewer: bool) -> Result<()> {
    let before = previous.samples;
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

/// Makes the entries of the shards in a folder, called `names`. Adds those that cannot be listed to `done.skipped`, with
/// `prefix`. `step` is told the number of shards after each.
fn rebuild(
    folder: &Path,
    prefix: &str,
    names: Vec<String>,
    previous: &[ShardEntry],
    done: &mut Repair,
    step: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<ShardEntry>> {
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
    let order = order.chain((0..names.len()).filter(|at| !is_compressed(&names[*at])));
    for (number, at) in order.enumerate() {
        step(number)?;
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
            Ok(entry) if columns.as_ref().is_none_or(|first| first.equals_but_for_shape(&entry)) => {
                columns.get_or_insert_with(|| entry.clone());
                done.count(1, entry.samples);
                listed.insert(entry.raw_data.basename.clone());
                found.insert(at, entry);
            }
            Ok(_) => done.skipped.push(finding(Fault::new(0, "its columns differ from those of the first shard"))),
            Err(fault) => done.skipped.push(finding(fault)),
        }
    }
    step(names.len())?;
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
    let hash = |(name, digest): &(String, String)| {
        Algorithm::parse(name).is_ok_and(|algorithm| algorithm.digest(&[bytes]) == *digest)
    };
    rebuilt.zip_data.is_none()
        && known.samples == rebuilt.samples
        && known.same_columns(rebuilt)
        && known.raw_data.bytes == bytes.len() as u64
        && known.raw_data.hashes.iter().all(hash)
}

/// Publishes an index, and keeps the previous one.
fn write(folder: &Path, prefix: &str, index: &[u8], done: &mut Repair) -> Result<()> {
    let mut new = Replacement::create(&folder.join(INDEX))?;
    new.write(index)?;
    done.kept.extend(replace(folder, new)?.map(|name| format!("{prefix}{name}")));
    Ok(())
}

/// Publishes the new index of a folder, and keeps the previous one. Returns the name of that, if the new one differs.
fn replace(folder: &Path, mut new: Replacement) -> Result<Option<String>> {
    let kept = match open(folder, INDEX)? {
        Found::File(file, _) if !new.equals(&file)? => keep(folder)?,
        _ => None,
    };
    new.publish()?;
    Ok(kept)
}

/// Builds the index entry of a shard called `name` from its bytes.
///
/// # Errors
/// A memory error; inside, the first fault of the shard.
pub fn entry_of(name: &str, content: &[u8]) -> Result<std::result::Result<ShardEntry, Fault>> {
    let other = |message: String| Ok(Err(Fault::new(0, message)));
    let (raw_name, compression) = match name.rsplit_once(".mds.").filter(|_| !name.ends_with(".mds")) {
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
    let mut hashes = match config.hashes.iter().map(|name| Algorithm::parse(name)).collect::<Result<Vec<_>>>() {
        Ok(hashes) => hashes,
        Err(error) => return other(error.to_string()),
    };
    hashes.sort();
    hashes.dedup();
    match (config.compression.as_deref().map(Compression::parse).transpose(), compression) {
        // Decompressed by a stock reader: its header still has the compression.
        (Ok(_), None) => config.compression = None,
        (Ok(Some(stated)), Some(own)) if stated.extension() == own.extension() => {}
        _ => return other(format!("its configuration has the compression {:?}", config.compression)),
    }
    let entry = |basename: &str, bytes: &[u8]| FileEntry {
        basename: basename.to_owned(),
        bytes: bytes.len() as u64,
        hashes: hashes.iter().map(|hash| (hash.name().to_owned(), hash.digest(&[bytes]))).collect(),
    };
    let zip = compression.map(|_| entry(name, content));
    Ok(Ok(ShardEntry::new(config, entry(&raw_name, bytes), zip, samples)))
}

/// Keeps the index in `folder` under another name. Returns the new name.
fn keep(folder: &Path) -> Result<Option<String>> {
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

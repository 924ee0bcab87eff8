//! Verifying a dataset, and rebuilding a lost index.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::index::{FileEntry, Index, Shard, ShardEntry, datasets_in, to_bytes};
use super::{Algorithm, Compression, Fault, INDEX, merge, publish, shard};
use crate::{Error, Kind, Result};

/// A problem with a file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path relative to the dataset's folder, with `/`.
    pub file: String,
    /// Offset in the file, or in its decompressed contents; 0 if the problem concerns the whole file.
    pub offset: u64,
    /// One line.
    pub message: String,
}

impl Finding {
    fn new(file: &str, fault: Fault) -> Self {
        Self { file: file.to_owned(), offset: fault.offset, message: fault.message }
    }
}

/// Checks the dataset in `folder`: its index, the size, hashes and structure of each shard, every value of every sample, and
/// that there are no unlisted shards. Returns all problems.
///
/// # Errors
/// An I/O error if there is no index or a file cannot be read.
pub fn verify(folder: &Path) -> Result<Vec<Finding>> {
    let path = folder.join(INDEX);
    let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
    let index = match Index::parse(&bytes) {
        Ok(index) => index,
        Err(fault) => return Ok(vec![Finding::new(INDEX, fault)]),
    };
    let mut findings = Vec::new();
    let mut listed = HashSet::new();
    let mut folders = HashSet::from([""]);
    for shard in &index.shards {
        let stored = shard.stored().basename.as_str();
        if !listed.insert(stored) {
            findings.push(Finding::new(stored, Fault::new(0, "the index lists the shard twice")));
            continue;
        }
        listed.insert(&shard.raw.basename);
        folders.insert(stored.rsplit_once('/').map_or("", |(parent, _)| parent));
        verify_shard(folder, shard, &mut findings)?;
    }
    let mut stray = Vec::new();
    for parent in folders {
        for name in shards_in(&folder.join(parent))? {
            let file = if parent.is_empty() { name } else { format!("{parent}/{name}") };
            if !listed.contains(file.as_str()) {
                stray.push(Finding::new(&file, Fault::new(0, "the index does not list the shard")));
            }
        }
    }
    stray.sort_by(|a, b| a.file.cmp(&b.file));
    findings.append(&mut stray);
    Ok(findings)
}

fn verify_shard(folder: &Path, shard: &Shard, findings: &mut Vec<Finding>) -> Result<()> {
    let raw = &shard.raw;
    let mut stored = shard.stored();
    let mut bytes = read(folder, &stored.basename)?;
    let mut compression = shard.zip.as_ref().map(|(compression, _)| *compression);
    if bytes.is_none() && compression.is_some() {
        // A stock reader may have decompressed it in place.
        (stored, compression) = (raw, None);
        bytes = read(folder, &stored.basename)?;
    }
    let mut report = |fault| findings.push(Finding::new(&stored.basename, fault));
    let Some(bytes) = bytes else {
        report(Fault::new(0, "the file is not there"));
        return Ok(());
    };
    let sound = check_file(stored, &bytes, &mut report);
    let bytes = match compression {
        None => bytes,
        Some(compression) => match compression.decompress(&bytes, raw.bytes) {
            Ok(bytes) => {
                if sound {
                    check_file(raw, &bytes, &mut report);
                }
                bytes
            }
            Err(error) => {
                report(Fault::new(0, format!("cannot be decompressed: {error}")));
                return Ok(());
            }
        },
    };
    shard::check(shard.samples, &shard.schema, &bytes).into_iter().for_each(report);
    Ok(())
}

/// Checks size and hashes against the index. Returns true if they match.
fn check_file(entry: &FileEntry, bytes: &[u8], report: &mut impl FnMut(Fault)) -> bool {
    let len = bytes.len() as u64;
    if len != entry.bytes {
        report(Fault::new(len.min(entry.bytes), format!("the file has {len} bytes, its index says {}", entry.bytes)));
        return false;
    }
    let mut sound = true;
    for (name, expected) in &entry.hashes {
        let message = match Algorithm::parse(name) {
            Ok(algorithm) if algorithm.digest(&[bytes]) == *expected => continue,
            Ok(_) => format!("the {name} of the file differs from its index"),
            Err(error) => error.to_string(),
        };
        report(Fault::new(0, message));
        sound = false;
    }
    sound
}

/// Reads a file; `None` if it does not exist.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io(path, error)),
    }
}

/// The result of [`repair`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Number of shards in the index.
    pub shards: usize,
    /// Number of samples in them.
    pub samples: u64,
    /// Shards that could not be listed, and why. The files are not changed.
    pub left_out: Vec<Finding>,
    /// New names of previous indexes, relative to the folder.
    pub kept: Vec<String>,
}

/// Rebuilds `index.json` from the shards in `folder`. If there are none, rebuilds the index of each subfolder that has lost
/// its own, and then the merged index. Nothing is deleted: a previous index is kept under another name.
///
/// # Errors
/// A format error if there is no shard at all; an I/O error if a file cannot be read or written.
pub fn repair(folder: &Path) -> Result<Repair> {
    let mut done = Repair::default();
    if !shards_in(folder)?.is_empty() {
        repair_here(folder, "", &mut done)?;
        return Ok(done);
    }
    let mut found = Vec::new();
    for name in datasets_in(folder, |folder| Ok(folder.is_dir()))? {
        let sub = folder.join(&name);
        match Index::load(&sub) {
            Ok(index) => {
                done.shards += index.shards.len();
                done.samples += index.shards.iter().map(|shard| shard.samples).sum::<u64>();
            }
            Err(error) if error.kind() == Kind::Format || is_missing(&error) => {
                if shards_in(&sub)?.is_empty() {
                    continue;
                }
                repair_here(&sub, &format!("{name}/"), &mut done)?;
            }
            Err(error) => return Err(error),
        }
        found.push(name);
    }
    if found.is_empty() {
        return Err(Error::format(format!("{}: there is no shard in this folder", folder.display())));
    }
    let index = super::merged_index(folder, &found)?;
    done.kept.extend(keep(folder, &index)?);
    merge(folder, Some(&found))?;
    Ok(done)
}

fn is_missing(error: &Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

fn repair_here(folder: &Path, prefix: &str, done: &mut Repair) -> Result<()> {
    let names = shards_in(folder)?;
    let mut entries: Vec<ShardEntry> = Vec::new();
    for name in &names {
        // A copy that a stock reader decompressed next to the compressed shard.
        let copy =
            names.iter().any(|other| other.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.')));
        if copy {
            continue;
        }
        let path = folder.join(name);
        let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
        match entry_of(name, &bytes) {
            Ok(entry) if entries.first().is_none_or(|first| first.same_columns(&entry)) => {
                done.shards += 1;
                done.samples += entry.samples;
                entries.push(entry);
            }
            Ok(_) => {
                let fault = Fault::new(0, "its columns differ from those of the first shard");
                done.left_out.push(Finding::new(&format!("{prefix}{name}"), fault));
            }
            Err(fault) => done.left_out.push(Finding::new(&format!("{prefix}{name}"), fault)),
        }
    }
    let index = to_bytes(&entries);
    done.kept.extend(keep(folder, &index)?.map(|name| format!("{prefix}{name}")));
    publish::replace_file(&folder.join(INDEX), &index)
}

/// Builds the index entry of a shard called `name` from its bytes.
///
/// # Errors
/// The first fault of the shard.
pub fn entry_of(name: &str, stored: &[u8]) -> std::result::Result<ShardEntry, Fault> {
    let other = |message: String| Fault::new(0, message);
    let (raw_name, compression) = match name.rsplit_once(".mds.") {
        None => (name.to_owned(), None),
        Some((stem, extension)) => {
            let compression = Compression::parse(extension).map_err(|error| other(error.to_string()))?;
            (format!("{stem}.mds"), Some(compression))
        }
    };
    let unpacked = compression.map(|compression| compression.decompress_up_to(stored, u64::from(u32::MAX)));
    let unpacked = unpacked.transpose().map_err(|error| other(format!("cannot be decompressed: {error}")))?;
    let bytes = unpacked.as_deref().unwrap_or(stored);
    let (samples, config) = shard::own_config(bytes)?;
    let schema = config.schema().map_err(other)?;
    if let Some(fault) = shard::check(samples, &schema, bytes).into_iter().next() {
        return Err(fault);
    }
    let hashes = config.hashes.iter().map(|name| Algorithm::parse(name)).collect::<Result<Vec<_>>>();
    let hashes = hashes.map_err(|error| other(error.to_string()))?;
    let entry = |basename: &str, bytes: &[u8]| FileEntry {
        basename: basename.to_owned(),
        bytes: bytes.len() as u64,
        hashes: hashes.iter().map(|hash| (hash.name().to_owned(), hash.digest(&[bytes]))).collect::<BTreeMap<_, _>>(),
    };
    let stated = config.compression.as_deref().map(Compression::parse).transpose();
    match stated {
        Ok(stated) if stated.map(Compression::extension) == compression.map(Compression::extension) => {}
        _ => return Err(other(format!("its configuration has the compression {:?}", config.compression))),
    }
    let zip = compression.map(|_| entry(name, stored));
    Ok(ShardEntry::new(config, entry(&raw_name, bytes), zip, samples))
}

/// Keeps the index in `folder` under another name, unless it equals `index`. Returns the new name.
fn keep(folder: &Path, index: &[u8]) -> Result<Option<String>> {
    match read(folder, INDEX)? {
        Some(bytes) if bytes != index => {}
        _ => return Ok(None),
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

/// The names of the shards in a folder, ordered by number.
fn shards_in(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let io = |error| Error::io(folder, error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(io)?,
    };
    for entry in entries {
        let Ok(name) = entry.map_err(io)?.file_name().into_string() else { continue };
        let stem = name.rsplit_once(".mds").filter(|(_, rest)| rest.is_empty() || rest.starts_with('.'));
        if let Some((stem, _)) = stem.filter(|(stem, _)| !stem.starts_with('.')) {
            let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            let number: u128 = stem[stem.len() - digits..].parse().unwrap_or(0);
            found.push((number, name));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

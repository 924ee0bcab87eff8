//! Verifying a dataset.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use super::file::{NOT_REGULAR, open_regular, read_opened, read_regular};
use super::group::group_of;
use super::index::{FileEntry, Index, Shard};
use super::{Algorithm, Fault, INDEX, shard};
use crate::error::counted;
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
    pub(super) fn new(file: &str, fault: Fault) -> Self {
        Self { file: file.to_owned(), offset: fault.offset, message: fault.message }
    }
}

/// Checks the dataset in `folder`: its index, the size, hashes and structure of each shard, every value of every sample, and
/// that there are no unlisted shards. Returns all problems.
///
/// # Errors
/// An I/O error if there is no index or a file cannot be read.
pub fn verify(folder: &Path) -> Result<Vec<Finding>> {
    let bytes = read_regular(&folder.join(INDEX))?;
    let index = match Index::parse(&bytes) {
        Ok(index) => index,
        Err(fault) => return Ok(vec![Finding::new(INDEX, fault)]),
    };
    let mut findings = Vec::new();
    let mut listed = HashSet::new();
    let mut folders = HashSet::from([""]);
    for shard in &index.shards {
        let name = shard.present_file().basename.as_str();
        if !listed.insert(name) {
            findings.push(Finding::new(name, Fault::new(0, "the index lists the shard twice")));
            continue;
        }
        listed.insert(&shard.raw.basename);
        folders.insert(name.rsplit_once('/').map_or("", |(parent, _)| parent));
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
    let mut entry = shard.present_file();
    let mut opened = open(folder, &entry.basename)?;
    let mut compression = shard.zip.as_ref().map(|(compression, _)| *compression);
    if matches!(opened, Found::Missing) && compression.is_some() {
        // A stock reader may have decompressed it in-place.
        (entry, compression) = (raw, None);
        opened = open(folder, &entry.basename)?;
    }
    let mut report = |fault| findings.push(Finding::new(&entry.basename, fault));
    let (file, len) = match opened {
        Found::File(file, len) => (file, len),
        Found::Missing => {
            report(Fault::new(0, "the file is not there"));
            return Ok(());
        }
        Found::NotRegular => {
            report(Fault::new(0, NOT_REGULAR));
            return Ok(());
        }
    };
    if let Some(fault) = wrong_size(len, entry) {
        report(fault);
        return Ok(());
    }
    let path = folder.join(&entry.basename);
    let bytes = read_opened(&file, len, &path)?;
    let sound = check_file(entry, &bytes, &mut report);
    let bytes = match compression {
        None => bytes,
        Some(compression) => match compression.decompress(&bytes, raw.bytes) {
            Ok(bytes) => {
                if sound {
                    check_file(raw, &bytes, &mut report);
                }
                bytes
            }
            Err(error) if error.kind() == ErrorKind::OutOfMemory => return Err(Error::io(path, error)),
            Err(error) => {
                report(Fault::new(0, format!("cannot be decompressed: {error}")));
                return Ok(());
            }
        },
    };
    shard::check(shard.samples, &shard.schema, &bytes)?.into_iter().for_each(report);
    Ok(())
}

fn wrong_size(len: u64, entry: &FileEntry) -> Option<Fault> {
    let message = format!("the file has {}, its index says {}", counted(len, "byte"), entry.bytes);
    (len != entry.bytes).then(|| Fault::new(len.min(entry.bytes), message))
}

/// Checks size and hashes against the index. Returns true if they match.
fn check_file(entry: &FileEntry, bytes: &[u8], report: &mut impl FnMut(Fault)) -> bool {
    if let Some(fault) = wrong_size(bytes.len() as u64, entry) {
        report(fault);
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

/// The file of a shard.
pub(super) enum Found {
    File(File, u64),
    Missing,
    NotRegular,
}

/// Opens a file. `Missing` and `NotRegular` are problems of the dataset, other errors are not.
pub(super) fn open(folder: &Path, name: &str) -> Result<Found> {
    match open_regular(&folder.join(name)) {
        Ok((file, len)) => Ok(Found::File(file, len)),
        Err(error) if error.kind() == Kind::Format => Ok(Found::NotRegular),
        Err(error) => match error.io_error().map(std::io::Error::kind) {
            Some(ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Found::Missing),
            _ => Err(error),
        },
    }
}

/// The names of the shards in a folder, ordered by group and number.
pub(super) fn shards_in(folder: &Path) -> Result<Vec<String>> {
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
            let group = group_of(&format!("{stem}.mds")).to_owned();
            found.push((group, number, name));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, name)| name).collect())
}

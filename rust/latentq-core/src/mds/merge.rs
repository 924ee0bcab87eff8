//! Merging datasets in one folder: the index that mosaicml's `merge_index` writes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::file::read_regular;
use super::index::{Index, VERSION, from_bytes, normalized};
use super::json::dumps;
use super::{Fault, INDEX, publish};
use crate::{Error, Result};

/// The index that mosaicml's `merge_index` writes for datasets in one folder, made piece by piece: `start`, then a piece
/// for each dataset, then `END`.
#[derive(Debug)]
pub struct MergedIndex {
    path: PathBuf,
    has_shards: bool,
}

impl MergedIndex {
    /// The piece after all others.
    pub const END: &[u8] = b"]}";

    /// An index of datasets that are direct subfolders of `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, has_shards: false }
    }

    /// The piece before all others.
    pub fn start() -> Vec<u8> {
        format!("{{\"version\": {VERSION}, \"shards\": [").into_bytes()
    }

    /// The piece of the next dataset.
    ///
    /// # Errors
    /// An I/O or format error that names its index; an argument error for a name that is not a direct subfolder.
    pub fn folder(&mut self, folder: &str) -> Result<Vec<u8>> {
        if normalized(folder).is_err() || Path::new(folder).components().count() != 1 {
            return Err(Error::argument(format!("{folder:?} is not the name of a folder in {}", self.path.display())));
        }
        let file = self.path.join(folder).join(INDEX);
        let bytes = read_regular(&file)?;
        let fault = |message: String| Fault::new(0, message).in_file(&file);
        // Refuse to merge an index that cannot be read.
        Index::parse(&bytes).map_err(|fault| fault.in_file(&file))?;
        // Entries keep the order of their keys, and unknown keys, as Python dicts would.
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
        let mut piece = Vec::new();
        for shard in shards {
            if self.has_shards {
                piece.extend_from_slice(b", ");
            }
            self.has_shards = true;
            piece.append(&mut dumps(shard));
        }
        Ok(piece)
    }
}

/// Writes the index of the datasets `path/<folder>`, in that order, next to `path/index.json`, which it can replace.
///
/// # Errors
/// The errors of [`MergedIndex::folder`], and an I/O error if it cannot be written.
pub(super) fn write_merged(path: &Path, folders: &[String]) -> Result<publish::Replacement> {
    let mut merged = MergedIndex::new(path.to_path_buf());
    let mut file = publish::Replacement::create(&path.join(INDEX))?;
    file.write(&MergedIndex::start())?;
    for folder in folders {
        file.write(&merged.folder(folder)?)?;
    }
    file.write(MergedIndex::END)?;
    Ok(file)
}

/// Writes the index that mosaicml's `merge_index` writes to `path/index.json` atomically.
///
/// Without `folders`, merges all direct subfolders that have an index and whose name does not start with a dot, in the
/// order of their names.
///
/// # Errors
/// The errors of [`MergedIndex::folder`], and an I/O error if it cannot be written.
pub fn merge(path: &Path, folders: Option<&[String]>) -> Result<()> {
    match folders {
        Some(folders) => write_merged(path, folders)?.publish(),
        None => write_merged(path, &datasets_in(path, has_index)?)?.publish(),
    }
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

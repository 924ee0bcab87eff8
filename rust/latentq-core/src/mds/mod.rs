//! MDS shards, the format of mosaicml-streaming: `docs/mds.md` tells the bytes.
//!
//! [`Writer`] writes a dataset and publishes it with one rename; [`Reader`] reads one by positioned reads; [`merge`] makes
//! one index of several datasets; [`verify`] and [`repair`] look after what is there.
//!
//! Contract: whatever the bytes, a function here returns a value or an [`Error`](crate::Error) that names file and offset.
//! It does not panic, and it allocates nothing on the word of a number that the file's own length has not earned.

#[cfg(target_endian = "big")]
compile_error!("the shard code hands bytes to and from arrays as they are: it needs a little-endian machine");

mod cache;
mod compress;
mod encoding;
mod file;
mod hash;
mod index;
mod json;
mod publish;
mod reader;
mod shard;
mod verify;
mod writer;

pub use compress::Compression;
pub use encoding::{Array, Column, DType, Encoding, Value, array_header};
pub use hash::Algorithm;
pub use index::{Index, Schema, merge, merged_index};
pub use reader::{Reader, Sample};
pub use shard::{Table, check};
pub use verify::{Finding, Repair, entry_of, repair, verify};
pub use writer::{Options, Values, Writer};

use std::path::Path;

use crate::Error;

/// The file that lists the shards of a dataset.
pub const INDEX: &str = "index.json";

/// A break of the format inside one file: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Bytes from the start of what was looked at.
    pub offset: u64,
    /// One line.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(offset: u64, message: impl Into<String>) -> Self {
        Self { offset, message: message.into() }
    }

    /// The same fault in the file that begins `base` bytes before what was looked at.
    pub fn at(mut self, base: u64) -> Self {
        self.offset = self.offset.saturating_add(base);
        self
    }

    /// The error that names the file.
    pub fn in_file(self, path: &Path) -> Error {
        Error::format(format!("{}: at byte {}: {}", path.display(), self.offset, self.message))
    }
}

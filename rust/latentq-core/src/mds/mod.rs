//! MDS shards, the format of mosaicml-streaming. `docs/mds.md` documents the bytes.
//!
//! [`Writer`] writes a dataset and publishes it with one rename; [`Reader`] reads one with positioned reads; [`merge`]
//! writes one index for several datasets; [`verify`] checks a dataset and [`repair`] restores its index.
//!
//! Contract: for any bytes, a function returns a value or an [`Error`](crate::Error) that names the file and the offset. It
//! does not panic, and it never allocates more than the length of a file justifies.

#[cfg(target_endian = "big")]
compile_error!("shards are read and written in native byte order, which must be little-endian");

mod ahead;
mod cache;
mod columns;
mod compress;
mod encoding;
mod file;
mod fill;
mod group;
mod hash;
mod index;
mod json;
mod merge;
mod opened;
mod publish;
mod reader;
mod repair;
mod shard;
mod verify;
mod writer;

pub use compress::Compression;
pub use encoding::{Array, Column, DType, Encoding, Value, array_header};
pub use hash::{Algorithm, content_hash};
pub use index::{Index, Schema, samples_by_folder};
pub use merge::{MergedIndex, merge};
pub use reader::{Groups, Reader, Sample};
pub use repair::{Repair, Step, entry_of, repair};
pub use shard::{Load, Table, check};
pub use verify::{Finding, verify};
pub use writer::{Buffers, Options, Values, Writer};

use std::path::Path;

use crate::Error;

/// The file that lists the shards of a dataset.
pub const INDEX: &str = "index.json";

/// A violation of the format inside a file: an offset and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Bytes from the start of the checked bytes.
    pub offset: u64,
    /// One line.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(offset: u64, message: impl Into<String>) -> Self {
        Self { offset, message: message.into() }
    }

    /// The same fault in a file that starts `base` bytes before the checked bytes.
    pub fn at(mut self, base: u64) -> Self {
        self.offset = self.offset.saturating_add(base);
        self
    }

    /// Converts to an error that names the file.
    pub fn in_file(self, path: &Path) -> Error {
        Error::format(format!("{}: at byte {}: {}", path.display(), self.offset, self.message))
    }
}

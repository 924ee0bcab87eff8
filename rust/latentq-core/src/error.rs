//! The error type of the crate: a kind, and a message that names the file and the offset if there are any.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Returns a count with its noun, whose plural ends with `s`: `1 sample`, `2 samples`.
pub(crate) fn counted<T: fmt::Display + PartialEq + From<u8>>(count: T, noun: &str) -> String {
    let plural = if count == T::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// The kind of an error, by what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An error of the operating system; see [`Error::io_error`] and [`Error::path`].
    Io,
    /// Bytes that violate their format (an index, a shard, a sample).
    Format,
    /// An image that cannot be decoded or exceeds a limit.
    Image,
    /// An argument outside its documented range.
    Argument,
    /// Not enough memory. The data may be good.
    Memory,
}

/// The error of every fallible function in this crate.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    io: Option<(io::Error, PathBuf)>,
}

/// The result of every fallible function in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Creates an error. The message is one line, and names the file and offset if there are any.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), io: None }
    }

    /// Creates an error for bytes that violate their format.
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(Kind::Format, message)
    }

    /// Creates an error for an image that cannot be decoded.
    pub fn image(message: impl Into<String>) -> Self {
        Self::new(Kind::Image, message)
    }

    /// Creates an error for an argument out of range.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Kind::Argument, message)
    }

    /// Creates an error for an allocation of `len` bytes that failed.
    pub fn memory(len: usize) -> Self {
        Self::new(Kind::Memory, format!("not enough memory for {len} bytes"))
    }

    /// Creates an error for an operation on `path` that the operating system refused, or that ran out of memory.
    pub fn io(path: impl AsRef<Path>, error: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        if error.kind() == io::ErrorKind::OutOfMemory {
            return Self::new(Kind::Memory, format!("{}: not enough memory", path.display()));
        }
        let message = format!("{}: {error}", path.display());
        Self { kind: Kind::Io, message, io: Some((error, path)) }
    }

    /// The kind of the error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The error of the operating system, if the kind is [`Kind::Io`].
    pub fn io_error(&self) -> Option<&io::Error> {
        self.io.as_ref().map(|(error, _)| error)
    }

    /// True if the operating system reports that a file does not exist.
    pub fn is_not_found(&self) -> bool {
        self.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// The path of the failed operation, if the kind is [`Kind::Io`].
    pub fn path(&self) -> Option<&Path> {
        self.io.as_ref().map(|(_, path)| path.as_path())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.io_error().map(|error| error as _)
    }
}

//! One error for the whole core: a kind, and a message that names the file and the offset where it can.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, in the terms a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The operating system refused something; [`Error::io_error`] and [`Error::path`] say what and where.
    Io,
    /// Bytes that are not what their format demands (an index, a shard, a sample).
    Format,
    /// An image that cannot be decoded, or that is over a limit.
    Image,
    /// An argument outside the range that the documentation gives.
    Argument,
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
    /// An error of the given kind. The message is one line, and names the file and offset where there is one.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), io: None }
    }

    /// Bytes that break their format.
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(Kind::Format, message)
    }

    /// An image that cannot be decoded.
    pub fn image(message: impl Into<String>) -> Self {
        Self::new(Kind::Image, message)
    }

    /// An argument out of range.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Kind::Argument, message)
    }

    /// An operating system error on `path`.
    pub fn io(path: impl AsRef<Path>, error: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        let message = format!("{}: {error}", path.display());
        Self { kind: Kind::Io, message, io: Some((error, path)) }
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The operating system's own error, where the kind is [`Kind::Io`].
    pub fn io_error(&self) -> Option<&io::Error> {
        self.io.as_ref().map(|(error, _)| error)
    }

    /// The path that the operating system refused, where the kind is [`Kind::Io`].
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

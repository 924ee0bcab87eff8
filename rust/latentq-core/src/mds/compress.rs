//! Compression of shards. Each algorithm works on a whole shard in memory, as in the stock writer.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::{Error, Result};

/// An algorithm and its level, written `name` or `name:level` in an index. The name is also the file extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    family: Family,
    level: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Brotli,
    Bzip2,
    Gzip,
    Snappy,
    Zstd,
}

impl Compression {
    /// Parses `name` or `name:level`.
    ///
    /// # Errors
    /// An argument error for an unknown name or level.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let (family, levels, default): (_, Range<u32>, u32) = match name {
            "br" => (Family::Brotli, 0..12, 11),
            "bz2" => (Family::Bzip2, 1..10, 9),
            "gz" => (Family::Gzip, 0..10, 9),
            "snappy" => (Family::Snappy, 0..0, 0),
            "zstd" => (Family::Zstd, 1..23, 3),
            _ => return Err(Error::argument(format!("compression {text:?} is not one of br, bz2, gz, snappy, zstd"))),
        };
        let level = match level {
            None => default,
            Some(level) => match level.parse::<u32>() {
                Ok(number) if levels.contains(&number) && level == number.to_string() => number,
                _ => return Err(Error::argument(format!("compression {text:?} does not have this level"))),
            },
        };
        Ok(Self { family, level })
    }

    /// The file extension, which follows the name of the uncompressed shard.
    pub fn extension(self) -> &'static str {
        match self.family {
            Family::Brotli => "br",
            Family::Bzip2 => "bz2",
            Family::Gzip => "gz",
            Family::Snappy => "snappy",
            Family::Zstd => "zstd",
        }
    }

    /// Compresses `raw`.
    ///
    /// # Errors
    /// Any error of the encoder (out of memory, or a block too large for snappy).
    pub fn compress(self, raw: &[u8]) -> io::Result<Vec<u8>> {
        match self.family {
            Family::Brotli => {
                let mut out = Vec::new();
                let mut encoder = brotli::CompressorWriter::new(&mut out, 1 << 16, self.level, 22);
                encoder.write_all(raw)?;
                encoder.flush()?;
                drop(encoder);
                Ok(out)
            }
            Family::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(self.level));
                encoder.write_all(raw)?;
                encoder.finish()
            }
            Family::Gzip => {
                // No timestamp, so that the same samples give the same file.
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(self.level));
                encoder.write_all(raw)?;
                encoder.finish()
            }
            Family::Snappy => snap::raw::Encoder::new().compress_vec(raw).map_err(io::Error::other),
            // A single call, so that the frame records the content size, which the stock reader requires.
            Family::Zstd => zstd::bulk::compress(raw, i32::try_from(self.level).unwrap_or(3)),
        }
    }

    /// Decompresses to exactly `len` bytes.
    ///
    /// # Errors
    /// Damaged input, or a different length.
    pub fn decompress(self, packed: &[u8], len: u64) -> io::Result<Vec<u8>> {
        let out = self.decompress_up_to(packed, len)?;
        match out.len() as u64 == len {
            true => Ok(out),
            false => Err(io::Error::other(format!("decompresses to {} bytes, not {len}", out.len()))),
        }
    }

    /// Decompresses to at most `limit` bytes. Memory is allocated as output is produced.
    ///
    /// # Errors
    /// Damaged input, or more than `limit` bytes.
    pub fn decompress_up_to(self, packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        match self.family {
            // Not a format of shards, and its windows take up to 1 GiB.
            Family::Brotli if packed.first().is_some_and(|byte| byte & 0x7f == LARGE_WINDOW) => {
                Err(io::Error::other("a brotli stream with a large window"))
            }
            Family::Brotli => take(brotli::Decompressor::new(packed, 1 << 16), limit),
            Family::Bzip2 => take(bzip2::read::MultiBzDecoder::new(packed), limit),
            Family::Gzip => take(flate2::read::MultiGzDecoder::new(packed), limit),
            Family::Zstd => take(zstd::stream::read::Decoder::new(packed)?, limit),
            Family::Snappy => {
                // Snappy allocates the length in its header, so that must be plausible for the size of the input (at most
                // 64 bytes per 2 bytes).
                let len = snap::raw::decompress_len(packed).map_err(io::Error::other)? as u64;
                if len > limit || len / 32 > packed.len() as u64 {
                    return Err(io::Error::other(format!("an implausible length of {len} bytes")));
                }
                let mut out = Vec::new();
                reserve(&mut out, len as usize)?;
                out.resize(len as usize, 0);
                let written = snap::raw::Decoder::new().decompress(packed, &mut out).map_err(io::Error::other)?;
                out.truncate(written);
                Ok(out)
            }
        }
    }
}

/// The first seven bits of a brotli stream with a large window (up to 1 GiB).
const LARGE_WINDOW: u8 = 0x11;

/// Bytes that the output of a decompressor has room for at first.
const FIRST_ROOM: usize = 1 << 16;

/// Reads to the end, at most `len` bytes. The memory follows the output, and is never more than `len` bytes.
fn take(mut reader: impl Read, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut out = Vec::new();
    loop {
        if out.len() == out.capacity() {
            let room = out.len().max(FIRST_ROOM).min(len - out.len());
            reserve(&mut out, room)?;
        }
        let start = out.len();
        if start == len {
            // Only the end may follow.
            return match reader.read(&mut [0]).map_err(memory_or_other)? {
                0 => Ok(out),
                _ => Err(io::Error::other(format!("decompresses to more than {len} bytes"))),
            };
        }
        out.resize(out.capacity().min(start + PIECE).min(len), 0);
        let read = reader.read(&mut out[start..]).map_err(memory_or_other)?;
        out.truncate(start + read);
        if read == 0 {
            return Ok(out);
        }
    }
}

/// Bytes decompressed at a time.
const PIECE: usize = 1 << 16;

fn reserve(out: &mut Vec<u8>, more: usize) -> io::Result<()> {
    out.try_reserve_exact(more).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// Recognizes zstd's message for a failed allocation.
fn memory_or_other(error: io::Error) -> io::Error {
    match error.to_string().contains("not enough memory") {
        true => io::ErrorKind::OutOfMemory.into(),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use super::Compression;

    const EVERY: [&str; 12] =
        ["br", "br:0", "br:11", "bz2", "bz2:1", "gz", "gz:0", "gz:9", "snappy", "zstd", "zstd:1", "zstd:19"];

    #[test]
    fn decompress_inverts_compress_and_refuses_every_prefix() {
        let raw: Vec<u8> = (0..3000u32).flat_map(|i| (i % 97).to_le_bytes()).collect();
        for name in EVERY {
            let compression = Compression::parse(name).unwrap();
            let packed = compression.compress(&raw).unwrap();
            assert_eq!(compression.decompress(&packed, 12000).unwrap(), raw, "{name}");
            assert!(compression.decompress(&packed, 11999).is_err(), "{name}");
            assert!(compression.decompress(&packed, 12001).is_err(), "{name}");
            for len in (0..packed.len()).step_by(1 + packed.len() / 50) {
                assert!(compression.decompress(&packed[..len], 12000).is_err(), "{name} cut at {len}");
            }
        }
    }

    #[test]
    fn the_same_bytes_compress_to_the_same_bytes() {
        for name in EVERY {
            let compression = Compression::parse(name).unwrap();
            assert_eq!(compression.compress(b"latent").unwrap(), compression.compress(b"latent").unwrap());
            assert_eq!(compression.decompress(&compression.compress(b"").unwrap(), 0).unwrap(), b"");
        }
    }

    #[test]
    fn decompression_stops_at_the_limit() {
        for name in ["br", "bz2", "gz", "zstd"] {
            let compression = Compression::parse(name).unwrap();
            let packed = compression.compress(&vec![0; 1 << 20]).unwrap();
            let error = compression.decompress_up_to(&packed, 1000).unwrap_err();
            assert_eq!(error.to_string(), "decompresses to more than 1000 bytes", "{name}");
            let out = compression.decompress_up_to(&packed, u64::from(u32::MAX)).unwrap();
            assert!(out.len() == 1 << 20 && out.capacity() <= 1 << 21, "{name}");
        }
    }

    #[test]
    fn brotli_streams_with_a_large_window_are_refused() {
        let error = Compression::parse("br").unwrap().decompress_up_to(&[0x11, 0x1e, 3], 10).unwrap_err();
        assert_eq!(error.to_string(), "a brotli stream with a large window");
    }

    #[test]
    fn levels_of_the_stock_writer_are_the_only_ones() {
        for name in ["br:12", "bz2:0", "gz:10", "snappy:1", "zstd:0", "zstd:23", "zstd:", "zstd:03", "zstd:-1", "lz4"] {
            assert!(Compression::parse(name).is_err(), "{name}");
        }
    }
}

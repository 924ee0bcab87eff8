//! Decompression of the strips and tiles of a TIFF.

use flate2::{Decompress, FlushDecompress};
use hayro_ccitt::{DecodeSettings, DecoderContext, EncodingMode};

use crate::{Error, Result};

/// No compression.
pub const RAW: u64 = 1;
/// A JPEG stream in every strip or tile.
pub const JPEG: u64 = 7;
pub const ZSTD: u64 = 50000;

pub fn broken(what: &str) -> Error {
    Error::image(format!("TIFF: {what}"))
}

/// Decompresses one strip or tile. Returns the number of bytes written to `out`.
pub fn expand(coded: &[u8], compression: u64, out: &mut [u8]) -> Result<usize> {
    Ok(match compression {
        RAW => {
            let length = coded.len().min(out.len());
            out[..length].copy_from_slice(&coded[..length]);
            length
        }
        // As in libtiff, which reads this first form of LZW too.
        5 if matches!(coded, [0, second, ..] if second & 1 == 1) => {
            return Err(broken("LZW with its bits in reverse order is not supported"));
        }
        5 => {
            let mut stream = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
            let (mut read, mut written) = (0, 0);
            loop {
                let step = stream.decode_bytes(&coded[read..], &mut out[written..]);
                read += step.consumed_in;
                written += step.consumed_out;
                if written == out.len() || !matches!(step.status, Ok(weezl::LzwStatus::Ok)) {
                    break written;
                }
            }
        }
        8 | 32946 => {
            let mut stream = Decompress::new(true);
            stream.decompress(coded, out, FlushDecompress::Finish).map_err(|_| broken("broken image data"))?;
            stream.total_out() as usize
        }
        32773 => unpack_bits(coded, out),
        ZSTD => expand_zstd(coded, out)?,
        // Pillow scrambles it, also what it wrote itself.
        32771 => return Err(broken("word-aligned fax is refused")),
        _ => return Err(broken(&format!("compression {compression} is not supported"))),
    })
}

/// Decompresses a zstd frame; bytes after it are ignored.
fn expand_zstd(coded: &[u8], out: &mut [u8]) -> Result<usize> {
    let length = zstd::zstd_safe::find_frame_compressed_size(coded).unwrap_or(coded.len());
    zstd::bulk::decompress_to_buffer(&coded[..length], out).map_err(|error| match error.to_string() {
        message if message.contains("not enough memory") => broken("not enough memory to decompress"),
        _ => broken("broken image data"),
    })
}

/// Decodes CCITT fax rows, one bit per pixel, 1 for black. Returns the number of bytes written to `out`.
pub fn expand_fax(coded: &[u8], compression: u64, options: u64, width: usize, out: &mut [u8]) -> usize {
    let stride = width.div_ceil(8);
    let settings = DecodeSettings {
        columns: width as u32,
        rows: (out.len() / stride) as u32,
        end_of_block: true,
        end_of_line: compression == 3,
        rows_are_byte_aligned: compression == 2,
        encoding: match compression {
            4 => EncodingMode::Group4,
            3 if options & 1 == 1 => EncodingMode::Group3_2D { k: 1 },
            _ => EncodingMode::Group3_1D,
        },
        invert_black: false,
    };
    let mut page = Page { rows: out.chunks_exact_mut(stride), row: &mut [], x: 0, filled: 0 };
    page.row = page.rows.next().unwrap_or_default();
    // An error may come after the last row, so only the number of rows counts.
    let _ = hayro_ccitt::decode(coded, &mut page, &mut DecoderContext::new(settings));
    page.filled
}

/// The fax rows that are not written yet.
struct Page<'a> {
    rows: std::slice::ChunksExactMut<'a, u8>,
    row: &'a mut [u8],
    x: usize,
    filled: usize,
}

impl hayro_ccitt::Decoder for Page<'_> {
    fn push_pixel(&mut self, white: bool) {
        if let (Some(byte), false) = (self.row.get_mut(self.x / 8), white) {
            *byte |= 128 >> (self.x % 8);
        }
        self.x += 1;
    }

    fn push_pixel_chunk(&mut self, white: bool, chunk_count: u32) {
        let bytes = self.row.iter_mut().skip(self.x / 8).take(chunk_count as usize);
        bytes.for_each(|byte| *byte = if white { 0 } else { 255 });
        self.x += 8 * chunk_count as usize;
    }

    fn next_line(&mut self) {
        self.filled += self.row.len();
        self.row = self.rows.next().unwrap_or_default();
        self.x = 0;
    }
}

/// Decodes PackBits. Returns the number of bytes written to `out`.
fn unpack_bits(mut coded: &[u8], out: &mut [u8]) -> usize {
    let mut at = 0;
    while let (Some((&head, rest)), true) = (coded.split_first(), at < out.len()) {
        let room = out.len() - at;
        coded = rest;
        if head < 128 {
            let length = (usize::from(head) + 1).min(coded.len());
            let kept = length.min(room);
            out[at..at + kept].copy_from_slice(&coded[..kept]);
            at += kept;
            coded = &coded[length..];
        } else if head > 128 {
            let Some((&value, rest)) = coded.split_first() else { break };
            let kept = (257 - usize::from(head)).min(room);
            out[at..at + kept].fill(value);
            at += kept;
            coded = rest;
        }
    }
    at
}

/// Reverses horizontal differencing.
pub fn unpredict(row: &mut [u8], channels: usize, bits: usize, is_little: bool) {
    if bits == 8 {
        for index in channels..row.len() {
            row[index] = row[index].wrapping_add(row[index - channels]);
        }
        return;
    }
    let bytes = bits / 8;
    for index in (bytes * channels..row.len()).step_by(bytes) {
        let before = read(&row[index - bytes * channels..][..bytes], is_little);
        let value = read(&row[index..][..bytes], is_little).wrapping_add(before);
        for (position, byte) in row[index..][..bytes].iter_mut().enumerate() {
            *byte = (value >> (8 * if is_little { position } else { bytes - 1 - position })) as u8;
        }
    }
}

/// Reverses the prediction of floats of `bytes` bytes: differences of bytes, the most significant bytes of all floats first.
/// The result is little-endian.
pub fn unpredict_floats(row: &mut [u8], bytes: usize) {
    for index in 1..row.len() {
        row[index] = row[index].wrapping_add(row[index - 1]);
    }
    let planes = row.to_vec();
    let count = row.len() / bytes;
    for (index, float) in row.chunks_exact_mut(bytes).enumerate() {
        for (position, byte) in float.iter_mut().enumerate() {
            *byte = planes[(bytes - 1 - position) * count + index];
        }
    }
}

/// Reads up to four bytes as an integer.
pub fn read(bytes: &[u8], is_little: bool) -> u32 {
    let add = |number: u32, &byte: &u8| number << 8 | u32::from(byte);
    if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
}

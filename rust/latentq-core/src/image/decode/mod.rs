//! Decoding of image files, one module per format. The format is detected from the bytes.

mod bmp;
mod gif;
mod jpeg;
mod picture;
mod png;
mod png_rows;
mod tiff;
mod tiff_expand;
mod webp;

pub use picture::{Header, Mode, Picture};

use crate::{Error, Result};

enum Format {
    Bmp,
    Gif,
    Jpeg,
    Png,
    Tiff,
    WebP,
}

fn format(data: &[u8]) -> Result<Format> {
    match data {
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        _ if data.starts_with(png::SIGNATURE) => Ok(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'B', b'M', ..] => Ok(Format::Bmp),
        [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => Ok(Format::Tiff),
        [] => Err(Error::image("the file is empty")),
        _ => Err(Error::image("not an image of a known format (JPEG, PNG, WebP, GIF, BMP, TIFF)")),
    }
}

/// Reads the header but no pixels.
pub fn header(data: &[u8]) -> Result<Header> {
    match format(data)? {
        Format::Bmp => bmp::header(data),
        Format::Gif => gif::header(data),
        Format::Jpeg => jpeg::header(data),
        Format::Png => png::header(data),
        Format::Tiff => tiff::header(data),
        Format::WebP => webp::header(data),
    }
}

/// Opens a reader of rows; `None` for formats that have none.
pub fn rows(data: &[u8], min_side: Option<usize>, max_pixels: u64) -> Result<Option<jpeg::Reader<'_>>> {
    match format(data)? {
        Format::Jpeg => jpeg::Reader::open(data, min_side, max_pixels).map(Some),
        _ => Ok(None),
    }
}

/// Decodes a file, refusing images of more than `max_pixels` pixels.
pub fn decode(data: &[u8], min_side: Option<usize>, max_pixels: u64) -> Result<Picture> {
    match format(data)? {
        Format::Jpeg => jpeg::Reader::open(data, min_side, max_pixels)?.picture(),
        Format::Bmp => bmp::decode(data, max_pixels),
        Format::Gif => gif::decode(data, max_pixels),
        Format::Png => png::decode(data, max_pixels),
        Format::Tiff => tiff::decode(data, max_pixels),
        Format::WebP => webp::decode(data, max_pixels),
    }
}

//! From the bytes of a file to its samples: one file per format, chosen by the bytes themselves.

mod bmp;
mod gif;
mod jpeg;
mod png;
mod tiff;
mod webp;

use super::check_room;
use crate::{Error, Result};

/// What a header tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format's name, as Pillow writes it.
    pub format: &'static str,
    /// Pixels in a row as stored, before any orientation is applied.
    pub width: usize,
    /// Rows as stored.
    pub height: usize,
    /// Channels once palettes are looked up, alpha included.
    pub channels: u8,
    /// The camera's orientation, 1 to 8; 1 is upright.
    pub orientation: u8,
}

/// A decoded file, not yet RGB.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub mode: Mode,
    /// Rows from the top, 8 bits a channel, no gaps.
    pub samples: Vec<u8>,
    pub icc: Option<Vec<u8>>,
    pub orientation: u8,
}

/// The channels of a picture, by Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    L,
    La,
    Rgb,
    Rgba,
    Cmyk,
    /// CIE L*a*b*, with 128 for an a or b of zero.
    Lab,
}

impl Mode {
    pub fn channels(self) -> usize {
        match self {
            Self::L => 1,
            Self::La => 2,
            Self::Rgb | Self::Lab => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }
}

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

/// Reads the header, and none of the pixels.
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

/// A reader of rows, for the formats that have one.
pub fn rows(data: &[u8], min_side: Option<usize>, max_pixels: u64) -> Result<Option<jpeg::Reader<'_>>> {
    match format(data)? {
        Format::Jpeg => jpeg::Reader::open(data, min_side, max_pixels).map(Some),
        _ => Ok(None),
    }
}

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

/// The pixel limit, asked before anything is allocated, and whether there is memory for `held` bytes a pixel. What passes
/// fits the address space: `max_pixels` has a ceiling.
fn check_pixels(width: usize, height: usize, max_pixels: u64, held: usize) -> Result<()> {
    // The bits of the widest pixels that any format has must not overflow.
    let ceiling = max_pixels.min(isize::MAX as u64 / 256);
    match (width as u64).checked_mul(height as u64) {
        Some(pixels) if pixels <= ceiling => check_room(pixels as usize * held),
        _ => Err(Error::image(format!("{width} x {height} pixels are over the limit of {max_pixels}"))),
    }
}

/// The 256 colours of a palette of RGB bytes. Those that the file leaves out are black, as in Pillow.
fn palette(given: &[u8]) -> Result<[[u8; 3]; 256]> {
    let mut colors = [[0; 3]; 256];
    if given.len() > 768 {
        return Err(Error::image("a palette of more than 256 colours"));
    }
    for (color, given) in colors.iter_mut().zip(given.chunks_exact(3)) {
        color.copy_from_slice(given);
    }
    Ok(colors)
}

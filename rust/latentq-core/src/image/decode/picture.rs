//! Types and checks that all decoders share.

use crate::image::pixels::check_room;
use crate::{Error, Result};

/// The contents of an image header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Pillow's name of the format.
    pub format: &'static str,
    /// Pixels per row in the file, before any orientation is applied.
    pub width: usize,
    /// Rows in the file.
    pub height: usize,
    /// Channels after palette look-up, alpha included.
    pub channels: u8,
    /// EXIF orientation, 1 (upright) to 8.
    pub orientation: u8,
}

/// A decoded file, before conversion to RGB.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub mode: Mode,
    /// Rows from top to bottom, 8 bits per channel, no gaps.
    pub samples: Vec<u8>,
    pub icc: Option<Vec<u8>>,
    pub orientation: u8,
}

/// The channels of a picture, with Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    L,
    La,
    Rgb,
    Rgba,
    Cmyk,
    /// CIE L*a*b*, with a and b offset by 128.
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

/// Checks the pixel limit, and that there is memory for the `bytes` bytes per pixel that the decoder allocates. Sizes that
/// pass fit the address space.
pub fn check_pixels(width: usize, height: usize, max_pixels: u64, bytes: usize) -> Result<()> {
    // The number of bits must not overflow for the widest pixels of any format.
    let ceiling = max_pixels.min(isize::MAX as u64 / 256);
    match (width as u64).checked_mul(height as u64) {
        Some(pixels) if pixels <= ceiling => check_room(pixels as usize * bytes),
        _ => Err(Error::image(format!("{width} x {height} pixels are over the limit of {max_pixels}"))),
    }
}

/// The 256 colors of a palette of RGB bytes. Missing colors are black, as in Pillow.
pub fn palette(given: &[u8]) -> Result<[[u8; 3]; 256]> {
    let mut colors = [[0; 3]; 256];
    if given.len() > 768 {
        return Err(Error::image("a palette of more than 256 colors"));
    }
    for (color, given) in colors.iter_mut().zip(given.chunks_exact(3)) {
        color.copy_from_slice(given);
    }
    Ok(colors)
}

//! A decoded file before it becomes RGB, and what all decoders check.

use crate::image::pixels::check_room;
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

/// The pixel limit, asked before anything is allocated, and whether there is memory for `held` bytes a pixel. What passes
/// fits the address space: `max_pixels` has a ceiling.
pub fn check_pixels(width: usize, height: usize, max_pixels: u64, held: usize) -> Result<()> {
    // The bits of the widest pixels that any format has must not overflow.
    let ceiling = max_pixels.min(isize::MAX as u64 / 256);
    match (width as u64).checked_mul(height as u64) {
        Some(pixels) if pixels <= ceiling => check_room(pixels as usize * held),
        _ => Err(Error::image(format!("{width} x {height} pixels are over the limit of {max_pixels}"))),
    }
}

/// The 256 colours of a palette of RGB bytes. Those that the file leaves out are black, as in Pillow.
pub fn palette(given: &[u8]) -> Result<[[u8; 3]; 256]> {
    let mut colors = [[0; 3]; 256];
    if given.len() > 768 {
        return Err(Error::image("a palette of more than 256 colours"));
    }
    for (color, given) in colors.iter_mut().zip(given.chunks_exact(3)) {
        color.copy_from_slice(given);
    }
    Ok(colors)
}

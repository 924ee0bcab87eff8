//! Pixels in memory: owned, borrowed, and as one image of a batch.

use crate::{Error, Result};

/// 8-bit RGB, rows from the top, three bytes a pixel and no gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

/// Borrowed pixels, as in [`Image`].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: &'a [u8],
}

impl<'a> View<'a> {
    /// Pixels of the given size. Errors: a side of zero, or a buffer of another length.
    pub fn new(width: usize, height: usize, pixels: &'a [u8]) -> Result<Self> {
        if width == 0 || height == 0 || width.checked_mul(height).and_then(|n| n.checked_mul(3)) != Some(pixels.len()) {
            return Err(Error::argument(format!("{} bytes are not {height} x {width} RGB pixels", pixels.len())));
        }
        Ok(Self { width, height, pixels })
    }
}

impl Image {
    /// The whole image, borrowed.
    pub fn view(&self) -> View<'_> {
        View { width: self.width, height: self.height, pixels: &self.pixels }
    }
}

/// The order of the values of one image in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Three planes of rows.
    Chw,
    /// Rows of pixels.
    Hwc,
}

impl Layout {
    pub(super) fn write(self, pixels: &[u8], out: &mut [u8]) {
        match self {
            Self::Hwc => out.copy_from_slice(pixels),
            Self::Chw => {
                let (red, rest) = out.split_at_mut(out.len() / 3);
                let (green, blue) = rest.split_at_mut(rest.len() / 2);
                for (((pixel, r), g), b) in pixels.chunks_exact(3).zip(red).zip(green).zip(blue) {
                    (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
                }
            }
        }
    }
}

/// Asks for this much memory, where it is so much that it may not be there, and gives it back: a failed allocation later
/// would end the process.
pub fn check_room(bytes: usize) -> Result<()> {
    if bytes > 1 << 26 && Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
        return Err(Error::image(format!("there is no memory for {bytes} bytes of pixels")));
    }
    Ok(())
}

//! RGB pixels in memory: owned, borrowed, or one image of a batch.

use crate::{Error, Result};

/// An 8-bit RGB image: rows from top to bottom, three bytes per pixel, no gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels per row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

/// Borrowed pixels with the layout of [`Image`].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: &'a [u8],
}

impl<'a> View<'a> {
    /// Creates a view.
    ///
    /// # Errors
    /// An argument error for a side of zero or a buffer of the wrong length.
    pub fn new(width: usize, height: usize, pixels: &'a [u8]) -> Result<Self> {
        if width == 0 || height == 0 || width.checked_mul(height).and_then(|n| n.checked_mul(3)) != Some(pixels.len()) {
            return Err(Error::argument(format!("{} bytes are not {height} x {width} RGB pixels", pixels.len())));
        }
        Ok(Self { width, height, pixels })
    }
}

impl Image {
    /// Borrows the whole image.
    pub fn view(&self) -> View<'_> {
        View { width: self.width, height: self.height, pixels: &self.pixels }
    }
}

/// Memory layout of one image in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (3, height, width): three planes.
    Chw,
    /// (height, width, 3): interleaved pixels.
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

/// Checks that a large allocation would succeed, by making and freeing it: a failed allocation elsewhere aborts the
/// process.
pub fn check_room(bytes: usize) -> Result<()> {
    if bytes > 1 << 26 && Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
        return Err(Error::image(format!("not enough memory for {bytes} bytes of pixels")));
    }
    Ok(())
}

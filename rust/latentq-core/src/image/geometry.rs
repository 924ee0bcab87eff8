//! Orientations, and the crops of conventions.md: what is resized to what, and which part is kept.

use super::pixels::Image;
use super::resize::{Filter, Kernel, Resizer, Window, resize};
use crate::{Error, Result};

/// How an image becomes a square of `size` pixels.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// The side of the square, at least 1.
    pub size: usize,
    /// Which part is kept, and how sizes are rounded.
    pub crop: Crop,
    /// The kernel of the resize.
    pub filter: Filter,
}

/// How an image of any shape becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// Long side truncated: torchvision's `Resize` and `CenterCrop`, and the ImageNet recipes.
    Center,
    /// Both sides rounded: VQGAN.
    CenterRound,
    /// ADM's and DiT's: halved by a box filter while that is possible, then resized.
    Adm,
}

/// Turns an image upright, given the orientation it is stored in.
pub fn orient(image: Image, orientation: u8) -> Image {
    let size = (image.width, image.height);
    let (width, height) = turned(size, orientation);
    Image { width, height, pixels: turn(image.pixels, size, 3, orientation) }
}

/// The size, once upright, of what is stored in an orientation.
pub fn turned((width, height): (usize, usize), orientation: u8) -> (usize, usize) {
    if (5..=8).contains(&orientation) { (height, width) } else { (width, height) }
}

/// Samples of `channels` a pixel, turned upright.
pub fn turn(samples: Vec<u8>, (width, height): (usize, usize), channels: usize, orientation: u8) -> Vec<u8> {
    if !(2..=8).contains(&orientation) {
        return samples;
    }
    let (new_width, _) = turned((width, height), orientation);
    let mut out = vec![0; samples.len()];
    for (y, row) in out.chunks_exact_mut(new_width * channels).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            let (from_x, from_y) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                _ => (width - 1 - y, x),
            };
            pixel.copy_from_slice(&samples[(from_y * width + from_x) * channels..][..channels]);
        }
    }
    out
}

/// One resize on the way to the square.
#[derive(Clone, Copy)]
pub struct Step {
    pub size: (usize, usize),
    pub window: Window,
    pub filter: Filter,
    is_last: bool,
}

/// The first resize of an image of some size.
pub fn step(width: usize, height: usize, how: Fit) -> Result<Step> {
    if how.size == 0 {
        return Err(Error::argument("size must be at least 1"));
    }
    if how.crop == Crop::Adm && width.min(height) / 2 >= how.size {
        let (width, height) = (width / 2, height / 2);
        let window = Window { left: 0, top: 0, width, height };
        return Ok(Step { size: (width, height), window, filter: Filter::Box, is_last: false });
    }
    let (size, window) = plan(width, height, how.size, how.crop);
    Ok(Step { size, window, filter: how.filter, is_last: true })
}

/// The steps after one that gave `image`.
pub fn finish(mut image: Image, mut done: Step, how: Fit, kernel: Kernel) -> Result<Image> {
    while !done.is_last {
        done = step(image.width, image.height, how)?;
        image = resize(image.view(), done.size, done.window, done.filter, kernel)?;
    }
    Ok(image)
}

impl Step {
    /// Its resize of an image of the size `from`.
    pub fn resizer(&self, from: (usize, usize), kernel: Kernel) -> Result<Resizer> {
        Resizer::new(from, self.size, self.window, self.filter, kernel)
    }
}

/// The size to resize to, and the square to keep of it.
fn plan(width: usize, height: usize, size: usize, crop: Crop) -> ((usize, usize), Window) {
    let short = width.min(height);
    let side = |side: usize| match crop {
        Crop::Center if side == short => size,
        Crop::Center => (size as u128 * side as u128 / short as u128) as usize,
        Crop::CenterRound | Crop::Adm => (side as f64 * (size as f64 / short as f64)).round_ties_even() as usize,
    };
    let offset = |side: usize| match crop {
        Crop::Center | Crop::CenterRound => half_to_even(side - size),
        Crop::Adm => (side - size) / 2,
    };
    let resized = (side(width).max(size), side(height).max(size));
    (resized, Window { left: offset(resized.0), top: offset(resized.1), width: size, height: size })
}

/// Half of a number, rounded to the nearest, a tie to the even one.
fn half_to_even(number: usize) -> usize {
    let half = number / 2;
    if number % 2 == 1 { half + half % 2 } else { half }
}

#[cfg(test)]
mod tests {
    use super::{Crop, half_to_even, plan};

    #[test]
    fn halves_round_to_even() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn the_long_side_is_truncated_or_rounded_as_the_crop_says() {
        assert_eq!(plan(500, 333, 256, Crop::Center).0, (384, 256));
        assert_eq!(plan(333, 500, 256, Crop::Center).0, (256, 384));
        assert_eq!(plan(1000, 667, 256, Crop::Center).0, (383, 256));
        assert_eq!(plan(1000, 667, 256, Crop::CenterRound).0, (384, 256));
    }
}

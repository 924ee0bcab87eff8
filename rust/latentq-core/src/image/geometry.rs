//! Crops: the size to resize to, and the part to keep. `docs/image.md` documents the crops.

use super::pixels::Image;
use super::resize::{Filter, Isa, Resizer, Window, resize};
use crate::{Error, Result};

/// The conversion of an image to a square of `size` pixels.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// Side of the square, at least 1.
    pub size: usize,
    /// The part to keep, and the rounding of sizes.
    pub crop: Crop,
    /// The filter of the resize.
    pub filter: Filter,
}

/// A rule to crop an image of any shape to a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// The long side is truncated: torchvision's `Resize` and `CenterCrop`, and the ImageNet recipes.
    Center,
    /// Both sides are rounded: VQGAN.
    CenterRound,
    /// ADM and DiT: halve with a box filter while the short side is at least twice the size, then resize.
    Adm,
}

/// One of the resizes that lead to the square.
#[derive(Clone, Copy)]
pub struct Step {
    pub size: (usize, usize),
    pub window: Window,
    pub filter: Filter,
    is_last: bool,
}

/// The first resize for an image of the given size.
pub fn step(width: usize, height: usize, target: Fit) -> Result<Step> {
    if target.size == 0 {
        return Err(Error::argument("size must be at least 1"));
    }
    if target.crop == Crop::Adm && width.min(height) / 2 >= target.size {
        let (width, height) = (width / 2, height / 2);
        let window = Window { left: 0, top: 0, width, height };
        return Ok(Step { size: (width, height), window, filter: Filter::Box, is_last: false });
    }
    let (size, window) = plan(width, height, target.size, target.crop);
    Ok(Step { size, window, filter: target.filter, is_last: true })
}

/// Runs the steps that follow `done`, whose result is `image`.
pub fn finish(mut image: Image, mut done: Step, target: Fit, isa: Isa) -> Result<Image> {
    while !done.is_last {
        done = step(image.width, image.height, target)?;
        image = resize(image.view(), done.size, done.window, done.filter, isa)?;
    }
    Ok(image)
}

impl Step {
    /// Plans this step for an image of size `from`.
    pub fn resizer(&self, from: (usize, usize), isa: Isa) -> Result<Resizer> {
        Resizer::new(from, self.size, self.window, self.filter, isa)
    }
}

/// The size to resize to, and the square to keep.
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

/// Half of a number, rounded half to even.
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

//! Crops: the size to resize to, and the part to keep. `docs/image.md` documents the crops.

use super::pixels::Image;
use super::resize::{Filter, Isa, Resizer, Window, resize};
use crate::{Error, Result};

/// The conversion of an image to `height` x `width` pixels.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// Rows of the result, at least 1.
    pub height: usize,
    /// Columns of the result, at least 1.
    pub width: usize,
    /// The part to keep, and the rounding of sizes.
    pub crop: Crop,
    /// The filter of the resize.
    pub filter: Filter,
}

impl Fit {
    /// The conversion to a square.
    pub fn square(size: usize, crop: Crop, filter: Filter) -> Self {
        Self { height: size, width: size, crop, filter }
    }

    /// The bytes of the result; `None` if there is none, or if they are more than can be counted.
    pub fn bytes(&self) -> Option<usize> {
        self.height.checked_mul(self.width)?.checked_mul(3).filter(|&bytes| bytes > 0)
    }
}

/// A rule to crop an image of any shape to another. The image is resized to cover the result: one side becomes that of
/// the result, and of the other the middle is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// The other side is truncated: torchvision's `Resize` and `CenterCrop`, and the ImageNet recipes.
    Center,
    /// Both sides are rounded: VQGAN.
    CenterRound,
    /// ADM and DiT: halve with a box filter while both sides are at least twice those of the result, then resize.
    Adm,
}

/// One of the resizes that lead to the result.
#[derive(Clone, Copy)]
pub struct Step {
    pub size: (usize, usize),
    pub window: Window,
    pub filter: Filter,
    is_last: bool,
}

/// The first resize for an image of the given size.
pub fn step(width: usize, height: usize, target: Fit) -> Result<Step> {
    if target.width == 0 || target.height == 0 {
        return Err(Error::argument("size must be at least 1"));
    }
    if target.crop == Crop::Adm && width / 2 >= target.width && height / 2 >= target.height {
        let (width, height) = (width / 2, height / 2);
        let window = Window { left: 0, top: 0, width, height };
        return Ok(Step { size: (width, height), window, filter: Filter::Box, is_last: false });
    }
    let (size, window) = plan(width, height, target);
    Ok(Step { size, window, filter: target.filter, is_last: true })
}

/// The size of the image that the last step makes of one of the given size, and the part of it that is kept.
pub fn window(width: usize, height: usize, target: Fit) -> Result<((usize, usize), Window)> {
    if width == 0 || height == 0 {
        return Err(Error::argument("an image has at least one pixel"));
    }
    let mut last = step(width, height, target)?;
    while !last.is_last {
        last = step(last.size.0, last.size.1, target)?;
    }
    Ok((last.size, last.window))
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

/// The size to resize to, and the part to keep.
fn plan(width: usize, height: usize, target: Fit) -> ((usize, usize), Window) {
    let Fit { width: wide, height: tall, crop, .. } = target;
    // The side that is scaled by more becomes that of the target.
    let (from, to) =
        if wide as u128 * height as u128 >= tall as u128 * width as u128 { (width, wide) } else { (height, tall) };
    let side = |side: usize, least: usize| {
        let scaled = match crop {
            Crop::Center => (to as u128 * side as u128 / from as u128) as usize,
            Crop::CenterRound | Crop::Adm => (side as f64 * (to as f64 / from as f64)).round_ties_even() as usize,
        };
        scaled.max(least)
    };
    let offset = |left_over: usize| match crop {
        Crop::Center | Crop::CenterRound => half_to_even(left_over),
        Crop::Adm => left_over / 2,
    };
    let resized = (side(width, wide), side(height, tall));
    let window = Window { left: offset(resized.0 - wide), top: offset(resized.1 - tall), width: wide, height: tall };
    (resized, window)
}

/// Half of a number, rounded half to even.
fn half_to_even(number: usize) -> usize {
    let half = number / 2;
    if number % 2 == 1 { half + half % 2 } else { half }
}

#[cfg(test)]
mod tests {
    use super::{Crop, Fit, half_to_even, plan, window};
    use crate::image::Filter;

    fn size_of(width: usize, height: usize, target: (usize, usize), crop: Crop) -> (usize, usize) {
        plan(width, height, Fit { height: target.1, width: target.0, crop, filter: Filter::Bicubic }).0
    }

    #[test]
    fn halves_round_to_even() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn the_other_side_is_truncated_or_rounded_as_the_crop_says() {
        assert_eq!(size_of(500, 333, (256, 256), Crop::Center), (384, 256));
        assert_eq!(size_of(333, 500, (256, 256), Crop::Center), (256, 384));
        assert_eq!(size_of(1000, 667, (256, 256), Crop::Center), (383, 256));
        assert_eq!(size_of(1000, 667, (256, 256), Crop::CenterRound), (384, 256));
    }

    #[test]
    fn a_rectangle_is_covered_whichever_side_is_scaled_by_more() {
        assert_eq!(size_of(1000, 667, (300, 100), Crop::Center), (300, 200));
        assert_eq!(size_of(1000, 667, (100, 300), Crop::Center), (449, 300));
        assert_eq!(size_of(1000, 667, (100, 300), Crop::CenterRound), (450, 300));
        assert_eq!(size_of(1000, 667, (3000, 2001), Crop::Adm), (3000, 2001));
    }

    #[test]
    fn the_window_is_that_of_the_last_step() {
        let target = Fit { height: 100, width: 150, crop: Crop::Adm, filter: Filter::Bicubic };
        // 1000 x 500 is halved twice: 250 x 125 is less than twice the target.
        let (size, kept) = window(1000, 500, target).unwrap();
        assert_eq!((size, kept.left, kept.top), ((200, 100), 25, 0));
        assert!(window(0, 5, target).is_err());
    }
}

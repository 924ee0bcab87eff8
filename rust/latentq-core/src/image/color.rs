//! From a file's own channels to RGB: colour profiles, ink, alpha.

use lcms2::{Flags, Intent, PixelFormat, Profile, ThreadContext, Transform};

use super::Image;
use super::decode::{Mode, Picture};

/// What shows through transparent pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpha {
    /// A white ground, as Pillow's `paste` with a mask puts it.
    White,
    /// A black ground.
    Black,
    /// Nothing: the alpha channel is dropped, as Pillow's `convert("RGB")` drops it.
    Drop,
}

/// What an embedded colour profile does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icc {
    /// The pixels are converted to sRGB.
    Srgb,
    /// Nothing.
    Ignore,
}

/// The pixels in RGB.
pub fn to_rgb(mut picture: Picture, alpha: Alpha, icc: Icc) -> Image {
    if let (Icc::Srgb, Some(profile)) = (icc, picture.icc.take()) {
        // A profile that cannot be read, or that is for other channels, says nothing.
        let _ = convert(&mut picture, &profile);
    }
    let Picture { width, height, mode, samples, .. } = picture;
    let pixels = match mode {
        Mode::Rgb => samples,
        Mode::L => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        Mode::La => samples.chunks_exact(2).flat_map(|pixel| over(alpha, [pixel[0]; 3], pixel[1])).collect(),
        Mode::Rgba => {
            samples.chunks_exact(4).flat_map(|pixel| over(alpha, [pixel[0], pixel[1], pixel[2]], pixel[3])).collect()
        }
        Mode::Cmyk => {
            samples.chunks_exact(4).flat_map(|ink| [0, 1, 2].map(|index| ink_to_light(ink[index], ink[3]))).collect()
        }
    };
    Image { width, height, pixels }
}

/// `a * b / 255`, rounded, in Pillow's integers.
fn multiply(a: u8, b: u8) -> u32 {
    let product = u32::from(a) * u32::from(b) + 128;
    ((product >> 8) + product) >> 8
}

fn ink_to_light(ink: u8, black: u8) -> u8 {
    let light = 255 - black;
    light.saturating_sub(multiply(ink, light) as u8)
}

fn over(ground: Alpha, color: [u8; 3], alpha: u8) -> [u8; 3] {
    let ground = match ground {
        Alpha::Drop => return color,
        Alpha::White => 255,
        Alpha::Black => 0,
    };
    color.map(|value| {
        let sum = u32::from(value) * u32::from(alpha) + ground * u32::from(255 - alpha) + 128;
        (((sum >> 8) + sum) >> 8) as u8
    })
}

/// Converts the colours of a picture to sRGB by Little CMS, as Pillow's `ImageCms.profileToProfile` does.
fn convert(picture: &mut Picture, profile: &[u8]) -> Result<(), lcms2::Error> {
    let context = ThreadContext::new();
    let from = Profile::new_icc_context(&context, profile)?;
    let to = Profile::new_srgb_context(&context);
    let transform = |input, output, flags| -> Result<Transform<u8, u8, ThreadContext>, lcms2::Error> {
        Transform::new_flags_context(&context, &from, input, &to, output, Intent::Perceptual, flags)
    };
    let rgb = |format| transform(format, PixelFormat::RGB_8, Flags::default());
    match picture.mode {
        Mode::Rgb => {
            let transform = rgb(PixelFormat::RGB_8)?;
            if !is_identity(&transform) {
                transform.transform_in_place(&mut picture.samples);
            }
        }
        Mode::Rgba => {
            if !is_identity(&rgb(PixelFormat::RGB_8)?) {
                let transform = transform(PixelFormat::RGBA_8, PixelFormat::RGBA_8, Flags::COPY_ALPHA)?;
                transform.transform_in_place(&mut picture.samples);
            }
        }
        Mode::L => {
            let transform = rgb(PixelFormat::GRAY_8)?;
            let mut pixels = vec![0; picture.samples.len() * 3];
            transform.transform_pixels(&picture.samples, &mut pixels);
            (picture.mode, picture.samples) = (Mode::Rgb, pixels);
        }
        Mode::La => {
            let transform = rgb(PixelFormat::GRAY_8)?;
            let greys: Vec<u8> = (0..=255).collect();
            let mut table = vec![0; 768];
            transform.transform_pixels(&greys, &mut table);
            let pixels = picture.samples.chunks_exact(2).flat_map(|pixel| {
                let color = &table[3 * usize::from(pixel[0])..][..3];
                [color[0], color[1], color[2], pixel[1]]
            });
            (picture.mode, picture.samples) = (Mode::Rgba, pixels.collect());
        }
        Mode::Cmyk => {
            let transform = rgb(PixelFormat::CMYK_8)?;
            let mut pixels = vec![0; picture.samples.len() / 4 * 3];
            transform.transform_pixels(&picture.samples, &mut pixels);
            (picture.mode, picture.samples) = (Mode::Rgb, pixels);
        }
    }
    Ok(())
}

/// Whether a transform moves no colour by more than one level: most photographs say that they are sRGB already, and then
/// nothing is left to do but rounding.
fn is_identity(transform: &Transform<u8, u8, ThreadContext>) -> bool {
    let levels = || (0..=255u8).step_by(17);
    let grid: Vec<u8> =
        levels().flat_map(|r| levels().flat_map(move |g| levels().flat_map(move |b| [r, g, b]))).collect();
    let mut converted = vec![0; grid.len()];
    transform.transform_pixels(&grid, &mut converted);
    grid.iter().zip(&converted).all(|(a, b)| a.abs_diff(*b) <= 1)
}

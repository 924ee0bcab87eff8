//! Conversion from the channels of a file to RGB: color profiles, CMYK, alpha.

use std::cell::RefCell;
use std::rc::Rc;

use lcms2::{CIExyY, Flags, Intent, PixelFormat, Profile, ThreadContext, Transform};

use super::decode::{Mode, Picture};
use super::pixels::{Image, check_room};
use crate::Result;

/// The background of transparent pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpha {
    /// White, blended as by Pillow's `paste` with a mask.
    White,
    /// Black.
    Black,
    /// Drop the alpha channel, as does Pillow's `convert("RGB")`.
    Drop,
}

/// The handling of an embedded color profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icc {
    /// Convert the pixels to sRGB.
    Srgb,
    /// Ignore the profile.
    Ignore,
}

/// Converts a decoded file to RGB.
///
/// # Errors
/// An image error if there is not enough memory.
pub fn to_rgb(picture: Picture, alpha: Alpha, icc: Icc) -> Result<Image> {
    let Picture { width, height, mode, mut samples, icc: profile, .. } = picture;
    // Three channels are converted in place; colors with alpha are first copied without it.
    check_room(width * height * [0, 3, 6][usize::from(mode.channels() != 3) + usize::from(mode == Mode::Rgba)])?;
    let converter = Converter::new(mode, profile.as_deref(), alpha, icc);
    let mut buffer = Vec::new();
    converter.convert(&mut samples, &mut buffer);
    let pixels = if mode.channels() == 3 { samples } else { buffer };
    Ok(Image { width, height, pixels })
}

type ToSrgb = Transform<u8, u8, ThreadContext>;

/// Converts samples of one mode to RGB.
pub struct Converter {
    mode: Mode,
    alpha: Alpha,
    to_srgb: Rc<Option<ToSrgb>>,
}

/// The mode, the profile and the transform of an image.
type KnownProfile = (Mode, Vec<u8>, Rc<Option<ToSrgb>>);

/// Number of profiles whose transforms a thread keeps.
const KNOWN_PROFILES: usize = 8;
/// The largest profile whose transform is kept, in bytes.
const KNOWN_PROFILE_BYTES: usize = 1 << 20;

thread_local! {
    /// Transforms of the latest profiles, the latest last. Most images of a collection have the same few profiles, and
    /// making a transform takes as long as decoding a small photograph.
    static KNOWN: RefCell<Vec<KnownProfile>> = const { RefCell::new(Vec::new()) };
}

impl Converter {
    pub fn new(mode: Mode, profile: Option<&[u8]>, alpha: Alpha, icc: Icc) -> Self {
        let profile = match mode {
            Mode::Lab => Some([].as_slice()), // as in Pillow: by Little CMS, whatever profile the file has
            _ => profile.filter(|_| icc == Icc::Srgb),
        };
        Self { mode, alpha, to_srgb: profile.map_or_else(Rc::default, |profile| known_transform(mode, profile)) }
    }

    /// Converts samples to pixels. Three channels are converted in place and `samples` is returned; otherwise `buffer`
    /// is filled and returned. Bytes after the last whole pixel are undefined.
    pub fn convert<'a>(&self, samples: &'a mut [u8], buffer: &'a mut Vec<u8>) -> &'a [u8] {
        let whole = samples.len() / self.mode.channels() * self.mode.channels();
        if self.mode.channels() == 3 {
            if let Some(transform) = &*self.to_srgb {
                transform.transform_in_place(&mut samples[..whole]);
            }
            return samples;
        }
        let samples = &samples[..whole];
        buffer.resize(whole / self.mode.channels() * 3, 0);
        let pixels = buffer.chunks_exact_mut(3);
        match (self.mode, &*self.to_srgb) {
            (Mode::Rgb | Mode::Lab, _) => {}
            (Mode::L | Mode::Cmyk, Some(transform)) => transform.transform_pixels(samples, buffer),
            (Mode::L, None) => pixels.zip(samples).for_each(|(pixel, &gray)| pixel.fill(gray)),
            (Mode::Cmyk, None) => pixels.zip(samples.chunks_exact(4)).for_each(|(pixel, ink)| {
                pixel.copy_from_slice(&[0, 1, 2].map(|index| ink_to_light(ink[index], ink[3])));
            }),
            (Mode::La, _) => {
                let grays: Vec<u8> = (0..=255).collect();
                let mut colors: Vec<u8> = grays.iter().flat_map(|&gray| [gray; 3]).collect();
                if let Some(transform) = &*self.to_srgb {
                    transform.transform_pixels(&grays, &mut colors);
                }
                for (pixel, sample) in pixels.zip(samples.chunks_exact(2)) {
                    let color = &colors[3 * usize::from(sample[0])..];
                    pixel.copy_from_slice(&over(self.alpha, [color[0], color[1], color[2]], sample[1]));
                }
            }
            (Mode::Rgba, to_srgb) => {
                let mut colors: Vec<u8> =
                    samples.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
                if let Some(transform) = to_srgb {
                    transform.transform_in_place(&mut colors);
                }
                for ((pixel, color), sample) in pixels.zip(colors.chunks_exact(3)).zip(samples.chunks_exact(4)) {
                    pixel.copy_from_slice(&over(self.alpha, [color[0], color[1], color[2]], sample[3]));
                }
            }
        }
        buffer
    }
}

/// The transform from a profile to sRGB, made once per thread; `None` if the colors are to stay as they are.
fn known_transform(mode: Mode, profile: &[u8]) -> Rc<Option<ToSrgb>> {
    KNOWN.with_borrow_mut(|known| {
        if let Some(at) = known.iter().position(|(other, bytes, _)| *other == mode && bytes == profile) {
            known[at..].rotate_left(1);
        } else {
            // A profile that is unreadable or for other channels is ignored, and not kept: memory may have been short.
            let Ok(transform) = transform(mode, profile).map(Rc::new) else { return Rc::default() };
            let mut bytes = Vec::new();
            if profile.len() > KNOWN_PROFILE_BYTES || bytes.try_reserve_exact(profile.len()).is_err() {
                return transform;
            }
            bytes.extend_from_slice(profile);
            if known.len() == KNOWN_PROFILES {
                known.remove(0);
            }
            known.push((mode, bytes, transform));
        }
        known.last().map_or_else(Rc::default, |(_, _, transform)| Rc::clone(transform))
    })
}

/// Makes the transform from a profile to sRGB; `None` if the colors are to stay as they are.
fn transform(mode: Mode, profile: &[u8]) -> std::result::Result<Option<ToSrgb>, lcms2::Error> {
    if mode == Mode::Lab {
        return lab_to_srgb().map(Some);
    }
    let transform = to_srgb(mode, profile)?;
    // Most photographs are tagged as sRGB; converting them would only add rounding errors.
    let is_color = matches!(mode, Mode::Rgb | Mode::Rgba);
    Ok((!(is_color && is_identity(&transform))).then_some(transform))
}

/// `a * b / 255`, rounded with Pillow's integer arithmetic.
fn multiply(a: u8, b: u8) -> u32 {
    let product = u32::from(a) * u32::from(b) + 128;
    ((product >> 8) + product) >> 8
}

fn ink_to_light(ink: u8, black: u8) -> u8 {
    let light = 255 - black;
    light.saturating_sub(multiply(ink, light) as u8)
}

fn over(background: Alpha, color: [u8; 3], alpha: u8) -> [u8; 3] {
    let background = match background {
        Alpha::Drop => return color,
        Alpha::White => 255,
        Alpha::Black => 0,
    };
    color.map(|value| {
        let sum = u32::from(value) * u32::from(alpha) + background * u32::from(255 - alpha) + 128;
        (((sum >> 8) + sum) >> 8) as u8
    })
}

/// The Little CMS transform from a profile to sRGB, as in Pillow's `ImageCms.profileToProfile`.
fn to_srgb(mode: Mode, profile: &[u8]) -> std::result::Result<ToSrgb, lcms2::Error> {
    let context = ThreadContext::new();
    let from = Profile::new_icc_context(&context, profile)?;
    let to = Profile::new_srgb_context(&context);
    let format = match mode {
        Mode::Rgb | Mode::Rgba | Mode::Lab => PixelFormat::RGB_8,
        Mode::L | Mode::La => PixelFormat::GRAY_8,
        Mode::Cmyk => PixelFormat::CMYK_8,
    };
    let flags = Flags::default();
    Transform::new_flags_context(&context, &from, format, &to, PixelFormat::RGB_8, Intent::Perceptual, flags)
}

/// The Little CMS transform from L*a*b* to sRGB, as in Pillow's `convert("RGB")`.
fn lab_to_srgb() -> std::result::Result<ToSrgb, lcms2::Error> {
    let context = ThreadContext::new();
    let from = Profile::new_lab2_context(&context, CIExyY::d50())?;
    let to = Profile::new_srgb_context(&context);
    let (lab, rgb) = (PixelFormat::Lab_8, PixelFormat::RGB_8);
    Transform::new_flags_context(&context, &from, lab, &to, rgb, Intent::Perceptual, Flags::default())
}

/// True if a transform changes no channel of any color by more than one level.
fn is_identity(transform: &ToSrgb) -> bool {
    let levels = || (0..=255u8).step_by(17);
    let grid: Vec<u8> =
        levels().flat_map(|r| levels().flat_map(move |g| levels().flat_map(move |b| [r, g, b]))).collect();
    let mut converted = vec![0; grid.len()];
    transform.transform_pixels(&grid, &mut converted);
    grid.iter().zip(&converted).all(|(a, b)| a.abs_diff(*b) <= 1)
}

//! Whole images: decode, resize, fit, and all of these for one image or a batch.

use std::ops::Range;
use std::path::Path;

use super::color::{Alpha, Converter, Icc, to_rgb};
use super::decode::{self, Picture};
use super::geometry::{self, Fit};
use super::pixels::{Image, Layout, View};
use super::resize::{self, Filter, Kernel, Window};
use crate::{Error, Result};

/// The pixel limit where none is given: Pillow's, beyond which it refuses an image.
pub const MAX_PIXELS: u64 = 2 * 89_478_485;

/// How a file becomes RGB. The default is latentq's own; the source recipes turn `orient` off, drop alpha and ignore
/// profiles, which is Pillow's plain `convert("RGB")`.
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Turn the image the way its camera was held.
    pub orient: bool,
    /// What shows through transparent pixels.
    pub alpha: Alpha,
    /// What an embedded colour profile does.
    pub icc: Icc,
    /// JPEG only, inexact: decode at 1/2, 1/4 or 1/8 of the size, as long as the short side stays at least this.
    pub min_side: Option<usize>,
    /// Images of more pixels are refused before anything is allocated.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { orient: true, alpha: Alpha::White, icc: Icc::Srgb, min_side: None, max_pixels: MAX_PIXELS }
    }
}

/// Where an image's bytes are.
pub enum Source<B> {
    /// In memory.
    Bytes(B),
    /// In a file.
    Path(std::path::PathBuf),
}

impl<B: AsRef<[u8]>> Source<B> {
    /// Calls `work` with the bytes; its errors name the file, if it is one.
    pub fn with_bytes<T>(&self, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        match self {
            Self::Bytes(bytes) => work(bytes.as_ref()),
            Self::Path(path) => work(&read(path)?).map_err(|error| named(path, error)),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(path, error))
}

fn named(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Decodes an image to RGB. Errors: an image that is unknown, broken, cut off or over the limit.
pub fn decode(data: &[u8], options: &DecodeOptions) -> Result<Image> {
    Ok(upright(decode::decode(data, options.min_side, options.max_pixels)?, options))
}

/// A decoded file in RGB, turned as the options say.
fn upright(picture: Picture, options: &DecodeOptions) -> Image {
    let orientation = if options.orient { picture.orientation } else { 1 };
    geometry::orient(to_rgb(picture, options.alpha, options.icc), orientation)
}

/// Resizes to `width` x `height`, each at least 1.
pub fn resize(image: View<'_>, width: usize, height: usize, filter: Filter) -> Result<Image> {
    let window = Window { left: 0, top: 0, width, height };
    resize::resize(image, (width, height), window, filter, Kernel::best())
}

/// Resizes and crops to a square.
pub fn fit(image: View<'_>, how: Fit) -> Result<Image> {
    fit_with(image, how, Kernel::best())
}

/// [`fit`] by one kernel, which must be an [available](Kernel::available) one. They all give the same pixels.
pub fn fit_with(image: View<'_>, how: Fit, kernel: Kernel) -> Result<Image> {
    let step = geometry::step(image.width, image.height, how)?;
    let resized = resize::resize(image, step.size, step.window, step.filter, kernel)?;
    geometry::finish(resized, step, how, kernel)
}

/// Decodes and fits. What the crop throws away is not computed, and the whole image is never held, where that gives the
/// same pixels.
pub fn load(data: &[u8], how: Fit, options: &DecodeOptions) -> Result<Image> {
    Ok(load_many(data, &[how], options)?.remove(0))
}

/// [`load`] in several ways, of one decoding.
pub fn load_many(data: &[u8], hows: &[Fit], options: &DecodeOptions) -> Result<Vec<Image>> {
    let Some(reader) = decode::rows(data, options.min_side, options.max_pixels)? else {
        let image = decode(data, options)?;
        return hows.iter().map(|&how| fit(image.view(), how)).collect();
    };
    if options.orient && reader.orientation != 1 {
        let image = upright(reader.picture()?, options);
        return hows.iter().map(|&how| fit(image.view(), how)).collect();
    }
    let converter = Converter::new(reader.mode, reader.icc.as_deref(), options.alpha, options.icc);
    let channels = reader.mode.channels();
    let size = (reader.width, reader.height);
    let kernel = Kernel::best();
    let steps: Vec<_> = hows.iter().map(|&how| geometry::step(size.0, size.1, how)).collect::<Result<_>>()?;
    let mut resizers: Vec<_> = steps.iter().map(|step| step.resizer(size, kernel)).collect::<Result<_>>()?;
    let columns = hull(resizers.iter().map(|resizer| resizer.used_columns()));
    let rows = hull(resizers.iter().map(|resizer| resizer.used_rows()));
    let mut spare = Vec::new();
    let mut first = rows.start; // of the next rows
    reader.rows(columns.clone(), rows, |samples, stride, count| {
        let pixels = converter.convert(samples, &mut spare);
        let stride = stride / channels * 3;
        for resizer in &mut resizers {
            let (left, used) = (resizer.used_columns().start - columns.start, resizer.used_rows());
            let (start, end) = (used.start.max(first), used.end.min(first + count));
            if start < end {
                resizer.push(&pixels[(start - first) * stride + left * 3..], stride, end - start);
            }
        }
        first += count;
    })?;
    let done = resizers.into_iter().zip(steps).zip(hows);
    done.map(|((resizer, step), &how)| geometry::finish(resizer.finish(), step, how, kernel)).collect()
}

/// The least range that holds all of these.
fn hull(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// Loads every item into its place in each of `outs`, which has `items.len()` squares of `3 * size * size` bytes for the
/// fit of its number, on up to `threads` threads. A bad item leaves zeros there and its error at its place in the result;
/// the others are unharmed.
pub fn load_batch<B: AsRef<[u8]> + Sync>(
    items: &[Source<B>],
    hows: &[Fit],
    options: &DecodeOptions,
    layout: Layout,
    threads: usize,
    outs: &mut [&mut [u8]],
) -> Result<Vec<Option<Error>>> {
    if hows.len() != outs.len() {
        return Err(Error::argument(format!("{} arrays for {} sizes", outs.len(), hows.len())));
    }
    // For each item, its place in every array.
    let mut places: Vec<Vec<&mut [u8]>> = items.iter().map(|_| Vec::new()).collect();
    for (how, out) in hows.iter().zip(outs) {
        let bytes = how.size.checked_mul(how.size).and_then(|n| n.checked_mul(3)).filter(|&bytes| bytes > 0);
        let Some(bytes) = bytes.filter(|bytes| bytes.checked_mul(items.len()) == Some(out.len())) else {
            let message = format!("{} bytes are not {} squares of size {}", out.len(), items.len(), how.size);
            return Err(Error::argument(message));
        };
        for (places, place) in places.iter_mut().zip(out.chunks_exact_mut(bytes)) {
            places.push(place);
        }
    }
    let errors = std::sync::Mutex::new(Vec::new());
    crate::parallel::for_each_chunk(&mut places, 1, threads, |index, places| {
        let places = places.iter_mut().flatten();
        match items[index].with_bytes(|data| load_many(data, hows, options)) {
            Ok(images) => places.zip(images).for_each(|(place, image)| layout.write(&image.pixels, place)),
            Err(error) => {
                places.for_each(|place| place.fill(0));
                // A panic elsewhere is not under this lock, so what it holds is whole.
                errors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, error));
            }
        }
    });
    let mut result: Vec<Option<Error>> = items.iter().map(|_| None).collect();
    for (index, error) in errors.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        result[index] = Some(error);
    }
    Ok(result)
}

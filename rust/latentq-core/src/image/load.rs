//! Decoding, resizing and fitting whole images, one at a time or as a batch.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::color::{Alpha, Converter, Icc, to_rgb};
use super::decode::{self, Picture};
use super::geometry::{self, Fit};
use super::orientation;
use super::pixels::{Image, Layout, View};
use super::resize::{self, Filter, Isa, Window};
use crate::{Error, Result};

/// The default pixel limit: the one above which Pillow refuses an image.
pub const MAX_PIXELS: u64 = 2 * 89_478_485;

/// Bytes at the start of a file that are read for the header of a JPEG.
const HEADER_BYTES: u64 = 1 << 16;

/// Options of decoding. The recipes of other systems set `orient` to false, drop alpha and ignore profiles, which gives
/// the pixels of Pillow's plain `convert("RGB")`.
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Turn the image upright, by its EXIF or XMP orientation.
    pub orient: bool,
    /// Background of transparent pixels.
    pub alpha: Alpha,
    /// Handling of an embedded color profile.
    pub icc: Icc,
    /// JPEG only: decode at 1/2, 1/4 or 1/8 of the size while the short side stays at least this (not bit-exact).
    pub min_side: Option<usize>,
    /// Images with more pixels are refused before anything is allocated.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { orient: true, alpha: Alpha::White, icc: Icc::Srgb, min_side: None, max_pixels: MAX_PIXELS }
    }
}

/// An encoded image.
pub enum Encoded<B> {
    /// The bytes of a file.
    Bytes(B),
    /// The path of a file.
    Path(std::path::PathBuf),
}

impl<B: AsRef<[u8]>> Encoded<B> {
    /// Calls `work` with the bytes. Its errors name the path, if there is one.
    pub fn with_bytes<T>(&self, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        match self {
            Self::Bytes(bytes) => work(bytes.as_ref()),
            Self::Path(path) => work(&read(path)?).map_err(|error| named(path, error)),
        }
    }
}

impl<B: AsRef<[u8]>> Encoded<B> {
    /// The size that [`decode`] gives the image, (width, height), from its header. Of a JPEG that is a file, only the
    /// beginning is read.
    ///
    /// # Errors
    /// Those of [`header`](decode::header), which name the path, if there is one.
    pub fn size(&self, orient: bool) -> Result<(usize, usize)> {
        match self {
            Self::Bytes(bytes) => upright_size(bytes.as_ref(), orient),
            Self::Path(path) => {
                let failed = |error| Error::io(path, error);
                let (mut file, mut data) = (std::fs::File::open(path).map_err(failed)?, Vec::new());
                (&mut file).take(HEADER_BYTES).read_to_end(&mut data).map_err(failed)?;
                // The segments before the first scan hold the orientation, too.
                if let (true, Ok(size)) = (data.starts_with(&[0xFF, 0xD8, 0xFF]), upright_size(&data, orient)) {
                    return Ok(size);
                }
                file.read_to_end(&mut data).map_err(failed)?;
                upright_size(&data, orient).map_err(|error| named(path, error))
            }
        }
    }
}

/// The size that [`decode`] gives an image, (width, height), from its header.
///
/// # Errors
/// An image error if the format is unknown or the header is broken.
pub fn upright_size(data: &[u8], orient: bool) -> Result<(usize, usize)> {
    let header = decode::header(data)?;
    let turned = orient && header.orientation >= 5;
    Ok(if turned { (header.height, header.width) } else { (header.width, header.height) })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(path, error))
}

fn named(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Decodes an image to RGB.
///
/// # Errors
/// An image error if the format is unknown, or the image is broken, truncated or over the limit.
pub fn decode(data: &[u8], options: &DecodeOptions) -> Result<Image> {
    upright(decode::decode(data, options.min_side, options.max_pixels)?, options)
}

/// Converts a decoded file to RGB and turns it upright if the options say so.
fn upright(picture: Picture, options: &DecodeOptions) -> Result<Image> {
    let orientation = if options.orient { picture.orientation } else { 1 };
    orientation::orient(to_rgb(picture, options.alpha, options.icc)?, orientation)
}

/// Resizes to `width` x `height`, each at least 1.
pub fn resize(image: View<'_>, width: usize, height: usize, filter: Filter) -> Result<Image> {
    let window = Window { left: 0, top: 0, width, height };
    resize::resize(image, (width, height), window, filter, Isa::best())
}

/// Resizes and crops.
pub fn fit(image: View<'_>, target: Fit) -> Result<Image> {
    fit_with(image, target, Isa::best())
}

/// [`fit`] with one instruction set, which must be [available](Isa::available). All give the same pixels.
pub fn fit_with(image: View<'_>, target: Fit, isa: Isa) -> Result<Image> {
    let step = geometry::step(image.width, image.height, target)?;
    let resized = resize::resize(image, step.size, step.window, step.filter, isa)?;
    geometry::finish(resized, step, target, isa)
}

/// Decodes and fits. A JPEG is processed a few rows at a time, and the part outside the crop is not decoded if that gives
/// the same pixels.
pub fn load(data: &[u8], target: Fit, options: &DecodeOptions) -> Result<Image> {
    Ok(load_many(data, &[target], options)?.remove(0))
}

/// [`load`] to several sizes, decoding once.
pub fn load_many(data: &[u8], targets: &[Fit], options: &DecodeOptions) -> Result<Vec<Image>> {
    let Some(reader) = decode::rows(data, options.min_side, options.max_pixels)? else {
        let image = decode(data, options)?;
        return targets.iter().map(|&target| fit(image.view(), target)).collect();
    };
    if options.orient && reader.orientation != 1 {
        let image = upright(reader.picture()?, options)?;
        return targets.iter().map(|&target| fit(image.view(), target)).collect();
    }
    let converter = Converter::new(reader.mode, reader.icc.as_deref(), options.alpha, options.icc);
    let channels = reader.mode.channels();
    let size = (reader.width, reader.height);
    let isa = Isa::best();
    let steps: Vec<_> = targets.iter().map(|&target| geometry::step(size.0, size.1, target)).collect::<Result<_>>()?;
    let mut resizers: Vec<_> = steps.iter().map(|step| step.resizer(size, isa)).collect::<Result<_>>()?;
    let columns = hull(resizers.iter().map(|resizer| resizer.used_columns()));
    let rows = hull(resizers.iter().map(|resizer| resizer.used_rows()));
    let mut buffer = Vec::new();
    let mut first = rows.start; // number of the next row
    reader.rows(columns.clone(), rows, |samples, stride, count| {
        let pixels = converter.convert(samples, &mut buffer);
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
    let done = resizers.into_iter().zip(steps).zip(targets);
    done.map(|((resizer, step), &target)| geometry::finish(resizer.finish(), step, target, isa)).collect()
}

/// [`load_many`] into memory: `outs[i]` has `3 * height * width` bytes for `targets[i]`.
///
/// # Errors
/// Those of [`load_many`], after which nothing was written to; an argument error for memory of another size.
pub fn load_into(
    data: &[u8],
    targets: &[Fit],
    options: &DecodeOptions,
    layout: Layout,
    outs: &mut [&mut [u8]],
) -> Result<()> {
    let images = load_many(data, targets, options)?;
    if images.len() != outs.len() || images.iter().zip(&*outs).any(|(a, b)| a.pixels.len() != b.len()) {
        return Err(Error::argument("the memory does not fit the sizes"));
    }
    images.iter().zip(outs).for_each(|(image, out)| layout.write(&image.pixels, out));
    Ok(())
}

/// Decodes a JPEG, or the part of it that [`load`] needs for `target`, and drops the rows: what libjpeg-turbo alone
/// takes, for benchmarks.
///
/// # Errors
/// Those of [`load`]; an image error for another format.
pub fn decode_and_drop(data: &[u8], target: Option<Fit>, options: &DecodeOptions) -> Result<()> {
    let Some(reader) = decode::rows(data, options.min_side, options.max_pixels)? else {
        return Err(Error::image("not a JPEG"));
    };
    let size = (reader.width, reader.height);
    let (columns, rows) = match target {
        None => (0..size.0, 0..size.1),
        Some(target) => {
            let resizer = geometry::step(size.0, size.1, target)?.resizer(size, Isa::best())?;
            (resizer.used_columns(), resizer.used_rows())
        }
    };
    reader.rows(columns, rows, |_, _, _| ())
}

/// The smallest range that contains all given ranges.
fn hull(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// Loads every item to each target, on up to `threads` threads. `outs[i]` has `items.len()` images of
/// `3 * height * width` bytes for `targets[i]`. A bad item becomes zeros, and its error is returned at its index.
pub fn load_batch<B: AsRef<[u8]> + Sync>(
    items: &[Encoded<B>],
    targets: &[Fit],
    options: &DecodeOptions,
    layout: Layout,
    threads: usize,
    outs: &mut [&mut [u8]],
) -> Result<Vec<Option<Error>>> {
    if targets.len() != outs.len() {
        return Err(Error::argument(format!("{} arrays for {} sizes", outs.len(), targets.len())));
    }
    // The outputs of each item, one per array.
    let mut rows: Vec<Vec<&mut [u8]>> = items.iter().map(|_| Vec::new()).collect();
    for (target, out) in targets.iter().zip(outs) {
        let Some(bytes) = target.bytes().filter(|bytes| bytes.checked_mul(items.len()) == Some(out.len())) else {
            let (count, height, width) = (items.len(), target.height, target.width);
            let message = format!("{} bytes are not {count} images of {height} x {width} pixels", out.len());
            return Err(Error::argument(message));
        };
        for (rows, row) in rows.iter_mut().zip(out.chunks_exact_mut(bytes)) {
            rows.push(row);
        }
    }
    let errors = std::sync::Mutex::new(Vec::new());
    crate::parallel::for_each_chunk(&mut rows, 1, threads, |index, rows| {
        let rows = &mut rows[0];
        if let Err(error) = items[index].with_bytes(|data| load_into(data, targets, options, layout, rows)) {
            rows.iter_mut().for_each(|row| row.fill(0));
            // Nothing panics under this lock, so poisoning can be ignored.
            errors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, error));
        }
    });
    let mut result: Vec<Option<Error>> = items.iter().map(|_| None).collect();
    for (index, error) in errors.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        result[index] = Some(error);
    }
    Ok(result)
}

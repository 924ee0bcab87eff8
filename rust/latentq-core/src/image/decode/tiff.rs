//! TIFF: the first page, in strips or tiles, for the layouts that image collections hold. Pillow reads some more (fax
//! inside TIFF, floating point, plain YCbCr); those are refused by name.

use flate2::{Decompress, FlushDecompress};

use super::{Header, Mode, Picture, check_pixels, jpeg, palette};
use crate::image::geometry;
use crate::image::tiff_directory::Directory;
use crate::{Error, Result};

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS: u16 = 258;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const STRIP_OFFSETS: u16 = 273;
const ORIENTATION: u16 = 274;
const SAMPLES: u16 = 277;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_COUNTS: u16 = 279;
const PLANAR: u16 = 284;
const PREDICTOR: u16 = 317;
const COLOR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_HEIGHT: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const TILE_COUNTS: u16 = 325;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;
const JPEG_TABLES: u16 = 347;
const ICC: u16 = 34675;

/// The compression that puts a JPEG stream in every strip or tile.
const JPEG: u64 = 7;

fn broken(what: &str) -> Error {
    Error::image(format!("TIFF: {what}"))
}

/// What the extra channel of a pixel is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    None,
    Ignored,
    Premultiplied,
    Alpha,
}

/// The layout of the samples.
struct Layout {
    width: usize,
    height: usize,
    bits: usize,
    samples: usize,
    photometric: u64,
    extra: Extra,
    is_planar: bool,
    orientation: u8,
}

impl Layout {
    fn read(directory: &Directory<'_>) -> Result<Self> {
        let number = |tag| directory.number(tag);
        let size = |tag| number(tag).filter(|&side| side > 0).and_then(|side| usize::try_from(side).ok());
        let (Some(width), Some(height)) = (size(WIDTH), size(HEIGHT)) else { return Err(broken("no size")) };
        let samples = number(SAMPLES).unwrap_or(1);
        let photometric = number(PHOTOMETRIC).unwrap_or(0);
        let colors = match photometric {
            0 | 1 | 3 => 1,
            2 => 3,
            // YCbCr is what JPEG makes RGB of.
            6 if number(COMPRESSION) == Some(JPEG) => 3,
            5 => 4,
            _ => return Err(broken(&format!("photometric interpretation {photometric} is not supported"))),
        };
        let all = |tag, default: u64| -> Vec<u64> {
            directory.numbers(tag).map_or(vec![default], |numbers| numbers.take(8).collect())
        };
        let extras = directory.numbers(EXTRA_SAMPLES).map_or(Vec::new(), |numbers| numbers.take(8).collect());
        let bits = all(BITS, 1);
        let format = all(SAMPLE_FORMAT, 1);
        let is_uniform = bits.iter().all(|&depth| depth == bits[0]) && format.iter().all(|&kind| kind == 1);
        let extra = match (samples.checked_sub(colors), &extras[..]) {
            (Some(0), []) => Extra::None,
            (Some(1), [0]) => Extra::Ignored,
            (Some(1), [1]) if photometric == 2 => Extra::Premultiplied,
            (Some(1), [] | [2 | 999]) if photometric == 2 => Extra::Alpha,
            (Some(1), [2]) if photometric == 1 => Extra::Alpha,
            _ => return Err(broken("an unsupported set of channels")),
        };
        let is_known = match photometric {
            0 | 1 if samples == 1 => matches!(bits[0], 1 | 2 | 4 | 8 | 16),
            3 => matches!(bits[0], 1 | 2 | 4 | 8),
            2 | 5 if number(COMPRESSION) != Some(JPEG) => matches!(bits[0], 8 | 16),
            _ => bits[0] == 8,
        };
        if !is_uniform || !is_known || photometric == 0 && bits[0] == 16 && !directory.is_little() {
            return Err(broken("an unsupported sample format"));
        }
        let orientation = number(ORIENTATION).filter(|orientation| (1..=8).contains(orientation)).unwrap_or(1) as u8;
        let is_planar = number(PLANAR) == Some(2) && samples > 1;
        if is_planar && number(COMPRESSION) == Some(JPEG) {
            return Err(broken("JPEG in planes is not supported"));
        }
        let (bits, samples) = (bits[0] as usize, samples as usize);
        Ok(Self { width, height, bits, samples, photometric, extra, is_planar, orientation })
    }

    fn mode(&self) -> Mode {
        match (self.photometric, self.extra) {
            (0 | 1, Extra::Alpha) => Mode::La,
            (0 | 1, _) => Mode::L,
            (5, _) => Mode::Cmyk,
            (_, Extra::Alpha | Extra::Premultiplied) => Mode::Rgba,
            _ => Mode::Rgb,
        }
    }
}

pub fn header(data: &[u8]) -> Result<Header> {
    let directory = Directory::first(data).ok_or_else(|| broken("no directory"))?;
    let layout = Layout::read(&directory)?;
    let (width, height) = geometry::turned((layout.width, layout.height), layout.orientation);
    Ok(Header { format: "TIFF", width, height, channels: layout.mode().channels() as u8, orientation: 1 })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let directory = Directory::first(data).ok_or_else(|| broken("no directory"))?;
    let layout = Layout::read(&directory)?;
    check_pixels(layout.width, layout.height, max_pixels)?;
    let mut planes = planes(data, &directory, &layout, max_pixels)?;
    let is_plain = layout.bits == 8 && !layout.is_planar && !matches!(layout.photometric, 0 | 3);
    let samples = match (&mut planes[..], layout.extra) {
        ([samples], Extra::None | Extra::Alpha) if is_plain => std::mem::take(samples),
        (planes, _) => unpack(planes, &directory, &layout)?,
    };
    // A TIFF's orientation is part of the format: Pillow applies it when it loads one, and so whatever is asked for.
    let size = (layout.width, layout.height);
    let samples = geometry::turn(samples, size, layout.mode().channels(), layout.orientation);
    let (width, height) = geometry::turned(size, layout.orientation);
    let icc = directory.bytes(ICC).map(<[u8]>::to_vec);
    Ok(Picture { width, height, mode: layout.mode(), samples, icc, orientation: 1 })
}

/// Strips or tiles.
struct Grid {
    width: usize,
    height: usize,
    offsets: Vec<u64>,
    counts: Vec<u64>,
}

/// The samples as they stand in the file, decompressed: all in one plane, or a plane for each channel.
fn planes(data: &[u8], directory: &Directory<'_>, layout: &Layout, max_pixels: u64) -> Result<Vec<Vec<u8>>> {
    let side = |tag, default: usize| match directory.number(tag) {
        Some(0) => Err(broken("strips or tiles of size zero")),
        Some(side) => Ok(usize::try_from(side).unwrap_or(usize::MAX)),
        None => Ok(default),
    };
    let list = |tag| directory.numbers(tag).map(|numbers| numbers.collect::<Vec<u64>>());
    let grid = match (list(STRIP_OFFSETS), list(TILE_OFFSETS)) {
        (Some(offsets), _) => {
            let height = side(ROWS_PER_STRIP, layout.height)?.min(layout.height);
            Grid { width: layout.width, height, offsets, counts: list(STRIP_COUNTS).unwrap_or_default() }
        }
        (None, Some(offsets)) => {
            let (width, height) = (side(TILE_WIDTH, 0)?, side(TILE_HEIGHT, 0)?);
            check_pixels(width, height, max_pixels)?;
            if width == 0 || height == 0 || !(width * layout.bits).is_multiple_of(8) {
                return Err(broken("tiles of an unsupported size"));
            }
            Grid { width, height, offsets, counts: list(TILE_COUNTS).unwrap_or_default() }
        }
        (None, None) => return Err(broken("neither strips nor tiles")),
    };
    let channels = if layout.is_planar { 1 } else { layout.samples };
    let stride = (layout.width * channels * layout.bits).div_ceil(8);
    let chunk_stride = (grid.width * channels * layout.bits).div_ceil(8);
    let count = if layout.is_planar { layout.samples } else { 1 };
    let compression = directory.number(COMPRESSION).unwrap_or(1);
    let is_reversed = directory.number(FILL_ORDER) == Some(2);
    let is_predicted = match directory.number(PREDICTOR) {
        Some(2) if matches!(compression, 5 | 8 | 32946) => true,
        Some(predictor) if predictor > 2 => return Err(broken("an unsupported predictor")),
        _ => false,
    };
    if is_predicted && layout.bits < 8 {
        return Err(broken("an unsupported predictor"));
    }

    let across = layout.width.div_ceil(grid.width);
    let down = layout.height.div_ceil(grid.height);
    let mut planes = Vec::new();
    for plane in 0..count {
        let mut samples = vec![0; stride * layout.height];
        for index in 0..across * down {
            let number = plane * across * down + index;
            let (left, top) = (index % across * grid.width, index / across * grid.height);
            // A strip ends with the image, a tile is whole.
            let rows = grid.height.min(layout.height - top);
            let coded_rows = if grid.width == layout.width && across == 1 { rows } else { grid.height };
            let offset = *grid.offsets.get(number).ok_or_else(|| broken("strips or tiles are missing"))?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
            let length = coded_rows * chunk_stride;
            let end = match grid.counts.get(number) {
                _ if compression == 1 => start.saturating_add(length),
                Some(&count) => start.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)),
                None => data.len(),
            };
            let coded = &data[start..end.min(data.len())];
            let reversed: Vec<u8>;
            let coded = if is_reversed {
                reversed = coded.iter().map(|byte| byte.reverse_bits()).collect();
                &reversed
            } else {
                coded
            };
            let mut chunk = Vec::new();
            if compression == JPEG {
                let size = (grid.width, coded_rows);
                let is_ycc = layout.photometric == 6;
                chunk = jpeg::decode_strip(directory.bytes(JPEG_TABLES), coded, size, channels, is_ycc)?;
            } else {
                chunk.resize(length, 0);
                expand(coded, compression, &mut chunk)?;
            }
            if is_predicted {
                for row in chunk.chunks_exact_mut(chunk_stride) {
                    unpredict(row, channels, layout.bits, directory.is_little());
                }
            }
            let first = left * channels * layout.bits / 8;
            let kept = chunk_stride.min(stride - first);
            for (row, chunk) in chunk.chunks_exact(chunk_stride).take(rows).enumerate() {
                samples[(top + row) * stride + first..][..kept].copy_from_slice(&chunk[..kept]);
            }
        }
        planes.push(samples);
    }
    Ok(planes)
}

/// Decompresses one strip or tile, which must fill `out`.
fn expand(coded: &[u8], compression: u64, out: &mut [u8]) -> Result<()> {
    let filled = match compression {
        1 => {
            let length = coded.len().min(out.len());
            out[..length].copy_from_slice(&coded[..length]);
            length
        }
        5 => {
            let mut stream = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
            let (mut read, mut written) = (0, 0);
            loop {
                let step = stream.decode_bytes(&coded[read..], &mut out[written..]);
                read += step.consumed_in;
                written += step.consumed_out;
                if written == out.len() || !matches!(step.status, Ok(weezl::LzwStatus::Ok)) {
                    break written;
                }
            }
        }
        8 | 32946 => {
            let mut stream = Decompress::new(true);
            stream.decompress(coded, out, FlushDecompress::Finish).map_err(|_| broken("broken image data"))?;
            stream.total_out() as usize
        }
        32773 => unpack_bits(coded, out),
        _ => return Err(broken(&format!("compression {compression} is not supported"))),
    };
    if filled < out.len() { Err(broken("the image data are broken or truncated")) } else { Ok(()) }
}

/// Apple's byte runs. Returns how much of `out` they fill.
fn unpack_bits(mut coded: &[u8], out: &mut [u8]) -> usize {
    let mut at = 0;
    while let (Some((&head, rest)), true) = (coded.split_first(), at < out.len()) {
        let room = out.len() - at;
        coded = rest;
        if head < 128 {
            let length = (usize::from(head) + 1).min(coded.len());
            let kept = length.min(room);
            out[at..at + kept].copy_from_slice(&coded[..kept]);
            at += kept;
            coded = &coded[length..];
        } else if head > 128 {
            let Some((&value, rest)) = coded.split_first() else { break };
            let kept = (257 - usize::from(head)).min(room);
            out[at..at + kept].fill(value);
            at += kept;
            coded = rest;
        }
    }
    at
}

/// Undoes horizontal differences.
fn unpredict(row: &mut [u8], channels: usize, bits: usize, is_little: bool) {
    if bits == 8 {
        for index in channels..row.len() {
            row[index] = row[index].wrapping_add(row[index - channels]);
        }
        return;
    }
    let read = |bytes: [u8; 2]| if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
    for index in (2 * channels..row.len()).step_by(2) {
        let before = read([row[index - 2 * channels], row[index - 2 * channels + 1]]);
        let value = read([row[index], row[index + 1]]).wrapping_add(before);
        let bytes = if is_little { value.to_le_bytes() } else { value.to_be_bytes() };
        row[index..index + 2].copy_from_slice(&bytes);
    }
}

/// From the file's samples to 8 bits a channel.
fn unpack(planes: &[Vec<u8>], directory: &Directory<'_>, layout: &Layout) -> Result<Vec<u8>> {
    let Layout { width, height, bits, samples, photometric, extra, .. } = *layout;
    let colors = if photometric == 3 {
        let map: Vec<u8> = directory
            .numbers(COLOR_MAP)
            .ok_or_else(|| broken("no colour map"))?
            .take(3 << bits)
            .map(|level| (level >> 8) as u8)
            .collect();
        let count = 1 << bits;
        if map.len() < 3 * count {
            return Err(broken("a short colour map"));
        }
        let triples: Vec<u8> =
            (0..count).flat_map(|index| [0, 1, 2].map(|channel| map[channel * count + index])).collect();
        palette(&triples)?
    } else {
        palette(&[])?
    };
    let in_plane = if layout.is_planar { 1 } else { samples };
    let stride = (width * in_plane * bits).div_ceil(8);
    let high_byte = usize::from(directory.is_little());
    let sample = |y: usize, x: usize, channel: usize| -> u8 {
        let (plane, index) = if layout.is_planar { (channel, x) } else { (0, x * samples + channel) };
        let row = &planes[plane][y * stride..][..stride];
        if bits == 16 {
            let (high, low) = (row[2 * index + high_byte], row[2 * index + 1 - high_byte]);
            // Pillow saturates 16-bit grey, and keeps the high byte of 16-bit colour.
            return if samples == 1 && high > 0 {
                255
            } else if samples == 1 {
                low
            } else {
                high
            };
        }
        row[index * bits / 8] << (index * bits % 8) >> (8 - bits)
    };
    let channels = layout.mode().channels();
    let mut out = vec![0; width * height * channels];
    for (y, row) in out.chunks_exact_mut(width * channels).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            if photometric == 3 {
                pixel.copy_from_slice(&colors[usize::from(sample(y, x, 0))]);
                continue;
            }
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = sample(y, x, channel);
            }
            if bits < 8 {
                pixel[0] *= (255 / ((1u16 << bits) - 1)) as u8;
            }
            if photometric == 0 && bits <= 8 {
                pixel[0] = 255 - pixel[0];
            }
            if extra == Extra::Premultiplied {
                let alpha = u32::from(pixel[3]);
                for value in &mut pixel[..3] {
                    *value = (u32::from(*value) * 255).checked_div(alpha).unwrap_or(0).min(255) as u8;
                }
            }
        }
    }
    Ok(out)
}

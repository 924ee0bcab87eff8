//! TIFF: the first page, in strips or tiles, in every layout that Pillow writes. What else is met is refused by name.

use flate2::{Decompress, FlushDecompress};
use hayro_ccitt::{DecodeSettings, DecoderContext, EncodingMode};

use super::jpeg;
use super::picture::{Header, Mode, Picture, check_pixels, palette};
use crate::image::tiff_directory::Directory;
use crate::image::{exif, geometry};
use crate::{Error, Result};

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const BITS: u16 = 258;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const STRIP_OFFSETS: u16 = 273;
const SAMPLES: u16 = 277;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_COUNTS: u16 = 279;
const PLANAR: u16 = 284;
const FAX_OPTIONS: u16 = 292;
const PREDICTOR: u16 = 317;
const COLOR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_HEIGHT: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const TILE_COUNTS: u16 = 325;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;
const JPEG_TABLES: u16 = 347;
const YCC_COEFFICIENTS: u16 = 529;
const YCC_SUBSAMPLING: u16 = 530;
const YCC_REFERENCE: u16 = 532;
const XMP: u16 = 700;
const ICC: u16 = 34675;

/// No compression.
const RAW: u64 = 1;
/// The compression that puts a JPEG stream in every strip or tile.
const JPEG: u64 = 7;
const ZSTD: u64 = 50000;

/// Photometric interpretations.
const WHITE_IS_ZERO: u64 = 0;
const BLACK_IS_ZERO: u64 = 1;
const RGB: u64 = 2;
const PALETTE: u64 = 3;
const INK: u64 = 5;
const YCC: u64 = 6;
const LAB: u64 = 8;

/// Sample formats.
const UNSIGNED: u64 = 1;
const SIGNED: u64 = 2;
const FLOAT: u64 = 3;

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
    format: u64,
    photometric: u64,
    compression: u64,
    extra: Extra,
    is_planar: bool,
    orientation: u8,
}

impl Layout {
    fn read(directory: &Directory<'_>) -> Result<Self> {
        let number = |tag| directory.number(tag);
        let size = |tag| number(tag).filter(|&side| side > 0 && side <= u32::MAX.into()).map(|side| side as usize);
        let (Some(width), Some(height)) = (size(WIDTH), size(HEIGHT)) else { return Err(broken("no size")) };
        let samples = number(SAMPLES).unwrap_or(1);
        let photometric = number(PHOTOMETRIC).unwrap_or(WHITE_IS_ZERO);
        let compression = number(COMPRESSION).unwrap_or(RAW);
        // Pillow itself reads what is not compressed, and takes what is left; libtiff does not.
        if compression != RAW && !directory.is_whole() {
            return Err(broken("the directory is cut off"));
        }
        let colors = match photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO | PALETTE => 1,
            RGB | YCC | LAB => 3,
            INK => 4,
            _ => return Err(broken(&format!("photometric interpretation {photometric} is not supported"))),
        };
        let all = |tag, default: u64| -> Vec<u64> {
            directory.numbers(tag).map_or(vec![default], |numbers| numbers.take(8).collect())
        };
        let extras = directory.numbers(EXTRA_SAMPLES).map_or(Vec::new(), |numbers| numbers.take(8).collect());
        let bits = all(BITS, 1);
        let format = all(SAMPLE_FORMAT, UNSIGNED);
        let is_uniform = bits.iter().all(|&depth| depth == bits[0]) && format.iter().all(|&kind| kind == format[0]);
        let extra = match (samples.checked_sub(colors), &extras[..]) {
            (Some(0), []) => Extra::None,
            (Some(1), [0]) => Extra::Ignored,
            (Some(1), [1]) if photometric == RGB => Extra::Premultiplied,
            (Some(1), [] | [2 | 999]) if photometric == RGB => Extra::Alpha,
            (Some(1), [2]) if matches!(photometric, BLACK_IS_ZERO | PALETTE) => Extra::Alpha,
            _ => return Err(broken("an unsupported set of channels")),
        };
        let is_little = directory.is_little();
        let is_known = match (photometric, format[0], bits[0]) {
            (_, UNSIGNED, 8) => true,
            (WHITE_IS_ZERO | BLACK_IS_ZERO | PALETTE, UNSIGNED, 1 | 2 | 4) => samples == 1,
            (BLACK_IS_ZERO, SIGNED, 8) | (BLACK_IS_ZERO, UNSIGNED, 16) => samples == 1,
            (WHITE_IS_ZERO, UNSIGNED, 16) | (BLACK_IS_ZERO, UNSIGNED, 32) => samples == 1 && is_little,
            // Of compressed ones from the high byte on, Pillow swaps the bytes twice.
            (BLACK_IS_ZERO, SIGNED, 16 | 32) | (WHITE_IS_ZERO | BLACK_IS_ZERO, FLOAT, 32) => {
                samples == 1 && (is_little || compression == RAW)
            }
            (RGB | INK, UNSIGNED, 16) => true,
            _ => false,
        };
        if !is_uniform || !is_known || compression == JPEG && bits[0] != 8 {
            return Err(broken("an unsupported sample format"));
        }
        if photometric == YCC && compression != JPEG && !is_plain_ycc(directory) {
            return Err(broken("an unsupported kind of YCbCr"));
        }
        let orientation = exif::of_directory(Some(directory), directory.bytes(XMP));
        let is_planar = number(PLANAR) == Some(2) && samples > 1;
        if is_planar && (compression == JPEG || photometric == YCC) {
            return Err(broken("JPEG or YCbCr in planes is not supported"));
        }
        let (bits, samples, format) = (bits[0] as usize, samples as usize, format[0]);
        Ok(Self { width, height, bits, samples, format, photometric, compression, extra, is_planar, orientation })
    }

    fn mode(&self) -> Mode {
        match (self.photometric, self.extra) {
            (WHITE_IS_ZERO | BLACK_IS_ZERO, Extra::Alpha) => Mode::La,
            (WHITE_IS_ZERO | BLACK_IS_ZERO, _) => Mode::L,
            (INK, _) => Mode::Cmyk,
            (LAB, _) => Mode::Lab,
            (_, Extra::Alpha | Extra::Premultiplied) => Mode::Rgba,
            _ => Mode::Rgb,
        }
    }
}

/// Whether YCbCr is neither subsampled nor of other numbers than JPEG's.
fn is_plain_ycc(directory: &Directory<'_>) -> bool {
    let is_whole = directory.numbers(YCC_SUBSAMPLING).is_some_and(|sides| sides.eq([1, 1]));
    let reference = directory.fractions(YCC_REFERENCE);
    is_whole
        && directory.bytes(YCC_COEFFICIENTS).is_none()
        && reference.is_none_or(|fractions| fractions.eq([0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1]))
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
    check_pixels(layout.width, layout.height, max_pixels, 12)?;
    let mut planes = planes(data, &directory, &layout, max_pixels)?;
    let is_plain = match layout.photometric {
        BLACK_IS_ZERO | RGB | INK => layout.bits == 8 && !layout.is_planar,
        YCC => layout.compression == JPEG,
        _ => false,
    };
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
            check_pixels(width, height, max_pixels, 12)?;
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
    let compression = layout.compression;
    let is_reversed = directory.number(FILL_ORDER) == Some(2);
    let is_predicted = match directory.number(PREDICTOR) {
        Some(2) if matches!(compression, 5 | 8 | 32946 | ZSTD) => true,
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
                _ if compression == RAW => start.saturating_add(length),
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
                let is_ycc = layout.photometric == YCC;
                chunk = jpeg::decode_strip(directory.bytes(JPEG_TABLES), coded, size, channels, is_ycc)?;
            } else {
                chunk.resize(length, 0);
                let filled = match compression {
                    2..=4 if layout.bits * channels == 1 => {
                        let options = directory.number(FAX_OPTIONS).unwrap_or(0);
                        expand_fax(coded, compression, options, grid.width, &mut chunk)
                    }
                    _ => expand(coded, compression, &mut chunk)?,
                };
                if filled < length {
                    return Err(broken("the image data are broken or truncated"));
                }
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

/// Decompresses one strip or tile. Returns how much of `out` it fills.
fn expand(coded: &[u8], compression: u64, out: &mut [u8]) -> Result<usize> {
    Ok(match compression {
        RAW => {
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
        ZSTD => zstd::bulk::decompress_to_buffer(coded, out).map_err(|_| broken("broken image data"))?,
        _ => return Err(broken(&format!("compression {compression} is not supported"))),
    })
}

/// Decodes the rows of a fax, a bit a pixel, black set. Returns how much of `out` they fill.
fn expand_fax(coded: &[u8], compression: u64, options: u64, width: usize, out: &mut [u8]) -> usize {
    let stride = width.div_ceil(8);
    let settings = DecodeSettings {
        columns: width as u32,
        rows: (out.len() / stride) as u32,
        end_of_block: true,
        end_of_line: compression == 3,
        rows_are_byte_aligned: compression == 2,
        encoding: match compression {
            4 => EncodingMode::Group4,
            3 if options & 1 == 1 => EncodingMode::Group3_2D { k: 1 },
            _ => EncodingMode::Group3_1D,
        },
        invert_black: false,
    };
    let mut page = Page { rows: out.chunks_exact_mut(stride), row: &mut [], x: 0, filled: 0 };
    page.row = page.rows.next().unwrap_or_default();
    // What was read before an error may be all rows.
    let _ = hayro_ccitt::decode(coded, &mut page, &mut DecoderContext::new(settings));
    page.filled
}

/// The rows of a fax still to be written.
struct Page<'a> {
    rows: std::slice::ChunksExactMut<'a, u8>,
    row: &'a mut [u8],
    x: usize,
    filled: usize,
}

impl hayro_ccitt::Decoder for Page<'_> {
    fn push_pixel(&mut self, white: bool) {
        if let (Some(byte), false) = (self.row.get_mut(self.x / 8), white) {
            *byte |= 128 >> (self.x % 8);
        }
        self.x += 1;
    }

    fn push_pixel_chunk(&mut self, white: bool, chunk_count: u32) {
        let bytes = self.row.iter_mut().skip(self.x / 8).take(chunk_count as usize);
        bytes.for_each(|byte| *byte = if white { 0 } else { 255 });
        self.x += 8 * chunk_count as usize;
    }

    fn next_line(&mut self) {
        self.filled += self.row.len();
        self.row = self.rows.next().unwrap_or_default();
        self.x = 0;
    }
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
    let bytes = bits / 8;
    for index in (bytes * channels..row.len()).step_by(bytes) {
        let before = read(&row[index - bytes * channels..][..bytes], is_little);
        let value = read(&row[index..][..bytes], is_little).wrapping_add(before);
        for (place, byte) in row[index..][..bytes].iter_mut().enumerate() {
            *byte = (value >> (8 * if is_little { place } else { bytes - 1 - place })) as u8;
        }
    }
}

/// Up to four bytes as a number.
fn read(bytes: &[u8], is_little: bool) -> u32 {
    let add = |number: u32, &byte: &u8| number << 8 | u32::from(byte);
    if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
}

/// From the file's samples to 8 bits a channel.
fn unpack(planes: &[Vec<u8>], directory: &Directory<'_>, layout: &Layout) -> Result<Vec<u8>> {
    let Layout { width, height, bits, samples, photometric, extra, .. } = *layout;
    let colors = if photometric == PALETTE {
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
    let is_little = directory.is_little();
    let sample = |y: usize, x: usize, channel: usize| -> u8 {
        let (plane, index) = if layout.is_planar { (channel, x) } else { (0, x * samples + channel) };
        let row = &planes[plane][y * stride..][..stride];
        if bits >= 16 {
            let value = read(&row[index * bits / 8..][..bits / 8], is_little);
            // Pillow keeps the high byte of 16-bit colour, and saturates every wide grey.
            return match (layout.format, bits) {
                (UNSIGNED, 16) if samples > 1 => (value >> 8) as u8,
                (SIGNED, 16) => (value as i16).clamp(0, 255) as u8,
                (FLOAT, _) => f32::from_bits(value) as u8,
                // Pillow has no unsigned numbers of 32 bits.
                (_, 32) => (value as i32).clamp(0, 255) as u8,
                _ => value.min(255) as u8,
            };
        }
        row[index * bits / 8] << (index * bits % 8) >> (8 - bits)
    };
    let channels = layout.mode().channels();
    let mut out = vec![0; width * height * channels];
    for (y, row) in out.chunks_exact_mut(width * channels).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            if photometric == PALETTE {
                pixel[..3].copy_from_slice(&colors[usize::from(sample(y, x, 0))]);
                pixel[3..].fill_with(|| sample(y, x, 1));
                continue;
            }
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = sample(y, x, channel);
            }
            if bits < 8 {
                pixel[0] *= (255 / ((1u16 << bits) - 1)) as u8;
            }
            match photometric {
                WHITE_IS_ZERO if bits <= 8 => pixel[0] = 255 - pixel[0],
                YCC => pixel.copy_from_slice(&ycc_to_rgb([pixel[0], pixel[1], pixel[2]], layout.compression)),
                // The file's a and b are signed.
                LAB => pixel[1..].iter_mut().for_each(|value| *value ^= 128),
                _ => {}
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

/// YCbCr as Pillow converts it, where there is no compression, and as libtiff does, where there is one.
fn ycc_to_rgb([y, cb, cr]: [u8; 3], compression: u64) -> [u8; 3] {
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    let chroma = if compression == RAW {
        // In 64ths, cut off towards zero.
        let part = |factor: f64, chroma: i32| (f64::from(64 * chroma) * factor + 0.5) as i32;
        [part(1.402, cr), part(-0.34414, cb) + part(-0.71414, cr), part(1.772, cb)].map(|sum| sum >> 6)
    } else {
        // The same factors, times 2^16.
        [91_881 * cr, -22_553 * cb - 46_802 * cr, 116_130 * cb].map(|sum| (sum + (1 << 15)) >> 16)
    };
    chroma.map(|chroma| (i32::from(y) + chroma).clamp(0, 255) as u8)
}

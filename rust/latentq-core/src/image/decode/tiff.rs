//! TIFF: the first page, in strips or tiles, in every layout that Pillow writes. Other layouts are refused with an error.

use super::jpeg;
use super::picture::{Header, Mode, Picture, check_pixels, palette};
use super::tiff_expand::{JPEG, RAW, ZSTD, broken, expand, expand_fax, read, unpredict, unpredict_floats};
use crate::Result;
use crate::image::orientation;
use crate::image::pixels::check_room;
use crate::image::tiff_directory::Directory;

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

/// The meaning of the extra channel of a pixel.
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
        let integer = |tag| directory.integer(tag);
        let size = |tag| integer(tag).filter(|&side| side > 0 && side <= u32::MAX.into()).map(|side| side as usize);
        let (Some(width), Some(height)) = (size(WIDTH), size(HEIGHT)) else {
            return Err(broken("the size is missing"));
        };
        let samples = integer(SAMPLES).unwrap_or(1);
        let photometric = integer(PHOTOMETRIC).unwrap_or(WHITE_IS_ZERO);
        let compression = integer(COMPRESSION).unwrap_or(RAW);
        // Pillow reads uncompressed files itself and accepts truncated directories; libtiff does not.
        if compression != RAW && !directory.is_whole() {
            return Err(broken("the directory is truncated"));
        }
        let all = |tag, default: u64| -> Vec<u64> {
            directory.integers(tag).map_or(vec![default], |numbers| numbers.take(8).collect())
        };
        let bits = all(BITS, 1);
        let format = all(SAMPLE_FORMAT, UNSIGNED);
        let is_little = directory.is_little();
        // Pillow swaps the bytes of compressed big-endian samples twice, and reads plain 16-bit planes as bytes. Such files
        // must not get to it as other files do that are not supported here.
        let is_scrambled = match compression {
            RAW => integer(PLANAR) == Some(2) && bits[0] > 8,
            _ => !is_little && format[0] != UNSIGNED && bits[0] > 8,
        };
        let refused =
            |what: &str| broken(&format!("{what} is {}", if is_scrambled { "refused" } else { "not supported" }));
        let colors = match photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO | PALETTE => 1,
            RGB | YCC | LAB => 3,
            INK => 4,
            _ => return Err(refused(&format!("photometric interpretation {photometric}"))),
        };
        let extras = directory.integers(EXTRA_SAMPLES).map_or(Vec::new(), |numbers| numbers.take(8).collect());
        let is_uniform = bits.iter().all(|&depth| depth == bits[0]) && format.iter().all(|&kind| kind == format[0]);
        let extra = match (samples.checked_sub(colors), &extras[..]) {
            (Some(0), []) => Extra::None,
            (Some(1), [0]) => Extra::Ignored,
            (Some(1), [1]) if photometric == RGB => Extra::Premultiplied,
            (Some(1), [] | [2 | 999]) if photometric == RGB => Extra::Alpha,
            (Some(1), [2]) if matches!(photometric, BLACK_IS_ZERO | PALETTE) => Extra::Alpha,
            _ => return Err(refused("this combination of channels")),
        };
        let is_known = match (photometric, format[0], bits[0]) {
            (_, UNSIGNED, 8) => true,
            (WHITE_IS_ZERO | BLACK_IS_ZERO | PALETTE, UNSIGNED, 1 | 2 | 4) => samples == 1,
            (BLACK_IS_ZERO, SIGNED, 8) | (BLACK_IS_ZERO, UNSIGNED, 16) => samples == 1,
            (WHITE_IS_ZERO, UNSIGNED, 16) | (BLACK_IS_ZERO, UNSIGNED, 32) => samples == 1 && is_little,
            (BLACK_IS_ZERO, SIGNED, 16 | 32) | (WHITE_IS_ZERO | BLACK_IS_ZERO, FLOAT, 32) => {
                samples == 1 && (is_little || compression == RAW)
            }
            (RGB | INK, UNSIGNED, 16) => true,
            _ => false,
        };
        if !is_uniform || !is_known || compression == JPEG && bits[0] != 8 {
            return Err(refused("the sample format"));
        }
        if photometric == YCC && compression != JPEG && !is_plain_ycc(directory) {
            return Err(refused("this kind of YCbCr"));
        }
        let orientation = orientation::of_directory(Some(directory), directory.bytes(XMP));
        let is_planar = integer(PLANAR) == Some(2) && samples > 1;
        if is_planar && (compression == JPEG || photometric == YCC) {
            return Err(broken("planar JPEG or YCbCr is not supported"));
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

/// True if YCbCr is not subsampled and has the coefficients and range of JPEG.
fn is_plain_ycc(directory: &Directory<'_>) -> bool {
    let is_whole = directory.integers(YCC_SUBSAMPLING).is_some_and(|sides| sides.eq([1, 1]));
    let reference = directory.fractions(YCC_REFERENCE);
    is_whole
        && directory.bytes(YCC_COEFFICIENTS).is_none()
        && reference.is_none_or(|fractions| fractions.eq([0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1]))
}

pub fn header(data: &[u8]) -> Result<Header> {
    let directory = Directory::first(data).ok_or_else(|| broken("the directory is missing"))?;
    let layout = Layout::read(&directory)?;
    let (width, height) = orientation::turned((layout.width, layout.height), layout.orientation);
    Ok(Header { format: "TIFF", width, height, channels: layout.mode().channels() as u8, orientation: 1 })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let directory = Directory::first(data).ok_or_else(|| broken("the directory is missing"))?;
    let layout = Layout::read(&directory)?;
    check_pixels(layout.width, layout.height, max_pixels, 0)?;
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
    // Orientation is part of the format: like Pillow, apply it regardless of the options.
    let size = (layout.width, layout.height);
    let samples = orientation::turn(samples, size, layout.mode().channels(), layout.orientation)?;
    let (width, height) = orientation::turned(size, layout.orientation);
    let icc = directory.bytes(ICC).map(<[u8]>::to_vec);
    Ok(Picture { width, height, mode: layout.mode(), samples, icc, orientation: 1 })
}

/// The strips or tiles of the file.
struct Grid {
    width: usize,
    height: usize,
    offsets: Vec<u64>,
    counts: Vec<u64>,
    /// True if the image is a single strip.
    is_strip: bool,
}

impl Grid {
    fn read(directory: &Directory<'_>, layout: &Layout, max_pixels: u64) -> Result<Self> {
        let side = |tag, default: usize| match directory.integer(tag) {
            Some(0) => Err(broken("the size of strips or tiles is zero")),
            Some(side) => Ok(usize::try_from(side).unwrap_or(usize::MAX)),
            None => Ok(default),
        };
        let list = |tag| directory.integers(tag).map(|numbers| numbers.collect::<Vec<u64>>());
        match (list(STRIP_OFFSETS), list(TILE_OFFSETS)) {
            // libtiff takes both tags for the same; Pillow reads uncompressed files itself, as strips.
            (Some(_), _) if layout.compression != RAW && directory.integer(TILE_WIDTH).is_some() => {
                Err(broken("a list of tiles with the tag of strips is not supported"))
            }
            (Some(offsets), _) => {
                let height = side(ROWS_PER_STRIP, layout.height)?.min(layout.height);
                let counts = list(STRIP_COUNTS).unwrap_or_default();
                let is_strip = height == layout.height && !layout.is_planar;
                Ok(Self { width: layout.width, height, offsets, counts, is_strip })
            }
            (None, Some(offsets)) => {
                let (width, height) = (side(TILE_WIDTH, 0)?, side(TILE_HEIGHT, 0)?);
                check_pixels(width, height, max_pixels, 0)?;
                if width == 0 || height == 0 || !(width * layout.bits).is_multiple_of(8) {
                    return Err(broken("the size of the tiles is not supported"));
                }
                let counts = list(TILE_COUNTS).unwrap_or_default();
                Ok(Self { width, height, offsets, counts, is_strip: false })
            }
            (None, None) => Err(broken("there are neither strips nor tiles")),
        }
    }

    /// The coded bytes of strip or tile `number`, which has `length` bytes once decoded.
    fn coded<'a>(&self, data: &'a [u8], number: usize, length: usize, compression: u64) -> Result<&'a [u8]> {
        let offset = *self.offsets.get(number).ok_or_else(|| broken("strips or tiles are missing"))?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let end = match self.counts.get(number) {
            _ if compression == RAW => start.saturating_add(length),
            // Like libtiff: old software wrote no length for the only strip.
            Some(0) if self.is_strip => data.len(),
            Some(&count) => start.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)),
            None => data.len(),
        };
        Ok(&data[start..end.min(data.len())])
    }
}

/// The coding of strips and tiles.
struct Coding<'a> {
    directory: &'a Directory<'a>,
    layout: &'a Layout,
    /// Channels per strip or tile.
    channels: usize,
    is_reversed: bool,
    predictor: Predictor,
}

/// The prediction that was subtracted from the samples before compression.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Predictor {
    None,
    /// The pixel to the left.
    Left,
    /// The byte to the left, in rows of floats whose bytes are sorted by significance.
    FloatBytes,
}

impl<'a> Coding<'a> {
    fn read(directory: &'a Directory<'a>, layout: &'a Layout) -> Result<Self> {
        // Other compressions have no predictor, and ignore the tag.
        let is_predictable = matches!(layout.compression, 5 | 8 | 32946 | ZSTD);
        let predictor = match directory.integer(PREDICTOR).filter(|_| is_predictable).unwrap_or(1) {
            1 => Predictor::None,
            2 if layout.bits >= 8 => Predictor::Left,
            3 if layout.format == FLOAT => Predictor::FloatBytes,
            _ => return Err(broken("the predictor is not supported")),
        };
        let channels = if layout.is_planar { 1 } else { layout.samples };
        Ok(Self { directory, layout, channels, is_reversed: directory.integer(FILL_ORDER) == Some(2), predictor })
    }

    /// Bytes per row of `width` pixels.
    fn stride(&self, width: usize) -> usize {
        (width * self.channels * self.layout.bits).div_ceil(8)
    }

    /// Decodes a strip or tile of `width` x `rows` pixels.
    fn expand(&self, coded: &[u8], width: usize, rows: usize) -> Result<Vec<u8>> {
        let Self { directory, layout, channels, .. } = *self;
        let reversed: Vec<u8>;
        let coded = if self.is_reversed {
            reversed = coded.iter().map(|byte| byte.reverse_bits()).collect();
            &reversed
        } else {
            coded
        };
        let stride = self.stride(width);
        let mut chunk = Vec::new();
        if layout.compression == JPEG {
            let is_ycc = layout.photometric == YCC;
            let (tables, pixels) = (directory.bytes(JPEG_TABLES), layout.width * layout.height);
            chunk = jpeg::decode_strip(tables, coded, (width, rows), channels, is_ycc, pixels)?;
        } else {
            chunk.resize(rows * stride, 0);
            let is_fax = matches!(layout.compression, 2..=4) && layout.bits * channels == 1;
            let filled = if is_fax {
                let options = directory.integer(FAX_OPTIONS).unwrap_or(0);
                expand_fax(coded, layout.compression, options, width, &mut chunk)
            } else {
                expand(coded, layout.compression, &mut chunk)?
            };
            if filled < chunk.len() {
                // libtiff skips faulty fax rows.
                let what = if is_fax {
                    "repair of fax data is not supported"
                } else {
                    "the image data are broken or truncated"
                };
                return Err(broken(what));
            }
        }
        for row in chunk.chunks_exact_mut(stride) {
            match self.predictor {
                Predictor::None => break,
                Predictor::Left => unpredict(row, channels, layout.bits, directory.is_little()),
                // Floats have one channel and, if compressed, are little-endian.
                Predictor::FloatBytes => unpredict_floats(row, layout.bits / 8),
            }
        }
        Ok(chunk)
    }
}

/// Decompresses all samples, to one plane or one plane per channel.
fn planes(data: &[u8], directory: &Directory<'_>, layout: &Layout, max_pixels: u64) -> Result<Vec<Vec<u8>>> {
    let grid = Grid::read(directory, layout, max_pixels)?;
    let coding = Coding::read(directory, layout)?;
    let (stride, chunk_stride) = (coding.stride(layout.width), coding.stride(grid.width));
    let (across, down) = (layout.width.div_ceil(grid.width), layout.height.div_ceil(grid.height));
    let count = if layout.is_planar { layout.samples } else { 1 };
    check_room(count * stride * layout.height + chunk_stride * grid.height)?;
    let mut planes = Vec::new();
    for plane in 0..count {
        let mut samples = vec![0; stride * layout.height];
        for index in 0..across * down {
            let number = plane * across * down + index;
            let (left, top) = (index % across * grid.width, index / across * grid.height);
            // The last strip ends with the image; a tile is always whole.
            let rows = grid.height.min(layout.height - top);
            let coded_rows = if grid.width == layout.width && across == 1 { rows } else { grid.height };
            let coded = grid.coded(data, number, coded_rows * chunk_stride, layout.compression)?;
            let chunk = coding.expand(coded, grid.width, coded_rows)?;
            let first = left * coding.channels * layout.bits / 8;
            let kept = chunk_stride.min(stride - first);
            for (row, chunk) in chunk.chunks_exact(chunk_stride).take(rows).enumerate() {
                samples[(top + row) * stride + first..][..kept].copy_from_slice(&chunk[..kept]);
            }
        }
        planes.push(samples);
    }
    Ok(planes)
}

/// The colors of the color map; black if the file has no palette.
fn color_map(directory: &Directory<'_>, layout: &Layout) -> Result<[[u8; 3]; 256]> {
    if layout.photometric != PALETTE {
        return palette(&[]);
    }
    let count = 1 << layout.bits;
    let levels = directory.integers(COLOR_MAP).ok_or_else(|| broken("the color map is missing"))?;
    let map: Vec<u8> = levels.take(3 * count).map(|level| (level >> 8) as u8).collect();
    if map.len() < 3 * count {
        return Err(broken("the color map is too short"));
    }
    let triples: Vec<u8> = (0..count).flat_map(|index| [0, 1, 2].map(|channel| map[channel * count + index])).collect();
    palette(&triples)
}

/// Converts the samples of the file to 8 bits per channel.
fn unpack(planes: &[Vec<u8>], directory: &Directory<'_>, layout: &Layout) -> Result<Vec<u8>> {
    let Layout { width, height, bits, samples, photometric, extra, .. } = *layout;
    let colors = color_map(directory, layout)?;
    let in_plane = if layout.is_planar { 1 } else { samples };
    let stride = (width * in_plane * bits).div_ceil(8);
    let is_little = directory.is_little();
    let sample = |y: usize, x: usize, channel: usize| -> u8 {
        let (plane, index) = if layout.is_planar { (channel, x) } else { (0, x * samples + channel) };
        let row = &planes[plane][y * stride..][..stride];
        if bits >= 16 {
            let value = read(&row[index * bits / 8..][..bits / 8], is_little);
            // Pillow keeps the high byte of 16-bit color but saturates gray of 16 bits or more.
            return match (layout.format, bits) {
                (UNSIGNED, 16) if samples > 1 => (value >> 8) as u8,
                (SIGNED, 16) => (value as i16).clamp(0, 255) as u8,
                (FLOAT, _) => f32::from_bits(value) as u8,
                // Pillow treats 32-bit samples as signed.
                (_, 32) => (value as i32).clamp(0, 255) as u8,
                _ => value.min(255) as u8,
            };
        }
        row[index * bits / 8] << (index * bits % 8) >> (8 - bits)
    };
    let channels = layout.mode().channels();
    check_room(width * height * channels)?;
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
                // a and b are signed in the file.
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

/// Converts YCbCr with Pillow's arithmetic if the file is not compressed, else with libtiff's.
fn ycc_to_rgb([y, cb, cr]: [u8; 3], compression: u64) -> [u8; 3] {
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    let chroma = if compression == RAW {
        // In 64ths, truncated towards zero.
        let part = |factor: f64, chroma: i32| (f64::from(64 * chroma) * factor + 0.5) as i32;
        [part(1.402, cr), part(-0.34414, cb) + part(-0.71414, cr), part(1.772, cb)].map(|sum| sum >> 6)
    } else {
        // The same factors, times 2^16.
        [91_881 * cr, -22_553 * cb - 46_802 * cr, 116_130 * cb].map(|sum| (sum + (1 << 15)) >> 16)
    };
    chroma.map(|chroma| (i32::from(y) + chroma).clamp(0, 255) as u8)
}

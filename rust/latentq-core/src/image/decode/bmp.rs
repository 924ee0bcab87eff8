//! BMP, all variants that Pillow reads.

use super::picture::{Header, Mode, Picture, check_pixels, palette};
use crate::{Error, Result};

/// The layout of a pixel in a row.
#[derive(Clone, Copy)]
enum Layout {
    /// Palette indices or gray levels of this many bits.
    Index(usize),
    /// 16 bits, of which green has five or six.
    Short { green_bits: u32 },
    /// Whole bytes: their number, and the positions of red, green and blue (`rgb`) and of alpha.
    Bytes { size: usize, rgb: [usize; 3], alpha: Option<usize> },
}

struct Description<'a> {
    width: usize,
    height: usize,
    is_top_down: bool,
    /// Bits per pixel in the file, which determine the length of a row.
    bits: usize,
    layout: Layout,
    /// Run-length coding: 1 for 8-bit runs, 2 for 4-bit runs.
    runs: Option<u32>,
    colors: Colors<'a>,
    /// Position of the pixels in the file.
    offset: usize,
}

/// The meaning of palette indices.
enum Colors<'a> {
    /// Black and white.
    BlackWhite,
    Gray,
    /// Bytes of the palette, and bytes per color.
    Palette(&'a [u8], usize),
}

fn broken(what: &str) -> Error {
    Error::image(format!("BMP: {what}"))
}

fn read_u32(data: &[u8], at: usize) -> Result<u32> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or_else(|| broken("the header is truncated"))
}

fn read_u16(data: &[u8], at: usize) -> Result<usize> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map(|bytes| u16::from_le_bytes(*bytes).into()).ok_or_else(|| broken("the header is truncated"))
}

/// The fields that both kinds of header have.
struct Fields {
    width: usize,
    height: usize,
    is_top_down: bool,
    bits: usize,
    compression: u32,
    colors: usize,
}

impl Fields {
    fn read(data: &[u8], is_core: bool) -> Result<Self> {
        let is_top_down = !is_core && data[25] == 0xFF;
        if is_core {
            let (width, height, bits) = (read_u16(data, 18)?, read_u16(data, 20)?, read_u16(data, 24)?);
            return Ok(Self { width, height, is_top_down, bits, compression: 0, colors: 0 });
        }
        let height = read_u32(data, 22)?;
        let height = if is_top_down { height.wrapping_neg() } else { height };
        Ok(Self {
            width: read_u32(data, 18)? as usize,
            height: height as usize,
            is_top_down,
            bits: read_u16(data, 28)?,
            compression: read_u32(data, 30)?,
            colors: read_u32(data, 46)? as usize,
        })
    }
}

/// The palette of `colors` entries of `size` bytes, cut short if the file ends.
fn palette_bytes(data: &[u8], start: usize, colors: usize, size: usize) -> Result<&[u8]> {
    if !(1..=65536).contains(&colors) {
        return Err(broken("the palette has an invalid size"));
    }
    let rest = data.get(start..).unwrap_or_default();
    Ok(&rest[..rest.len().min(size * colors)])
}

/// True if entry i of a palette is the gray level i, or black and white for two entries.
fn is_gray_ramp(palette: &[u8], colors: usize, size: usize) -> bool {
    let level = |index: usize| if colors == 2 { index as u8 * 255 } else { index as u8 };
    (0..colors).all(|index| palette.get(index * size..index * size + 3).is_some_and(|color| color == [level(index); 3]))
}

impl<'a> Description<'a> {
    fn read(data: &'a [u8]) -> Result<Self> {
        let mut offset = read_u32(data, 10)? as usize;
        let header_size = read_u32(data, 14)? as usize;
        let end = 14usize.saturating_add(header_size);
        if !matches!(header_size, 12 | 40 | 52 | 56 | 64 | 108 | 124) || data.len() < end {
            return Err(broken("the header is unknown or truncated"));
        }
        let is_core = header_size == 12;
        let Fields { width, height, is_top_down, bits, compression, mut colors } = Fields::read(data, is_core)?;
        if width == 0 || height == 0 {
            return Err(broken("the size is zero"));
        }
        let padding = if is_core { 3 } else { 4 };
        if colors == 0 {
            colors = 1usize.checked_shl(bits as u32).unwrap_or(0);
        }
        if offset == end && bits <= 8 {
            offset = offset.saturating_add(padding * colors.min(65536));
        }
        let mut position = end;
        let mut layout = match bits {
            1 | 4 | 8 => Layout::Index(bits),
            16 => Layout::Short { green_bits: 5 },
            24 => Layout::Bytes { size: 3, rgb: [2, 1, 0], alpha: None },
            32 => Layout::Bytes { size: 4, rgb: [2, 1, 0], alpha: None },
            _ => return Err(broken("unknown bits per pixel")),
        };
        match compression {
            0 => {}
            1 | 2 => {}
            3 => {
                let mut masks = [read_u32(data, 54)?, read_u32(data, 58)?, read_u32(data, 62)?, 0];
                if header_size >= 56 {
                    masks[3] = read_u32(data, 66)?;
                } else if header_size < 52 {
                    position += 12;
                }
                layout = fields(bits, masks).ok_or_else(|| broken("unknown bit fields"))?;
            }
            _ => return Err(broken("unknown compression")),
        }
        let mut meaning = Colors::Gray;
        if bits <= 8 {
            let bytes = palette_bytes(data, position, colors, padding)?;
            position += bytes.len();
            (meaning, layout) = match is_gray_ramp(bytes, colors, padding) {
                true if colors <= 2 => (Colors::BlackWhite, Layout::Index(1)),
                true => (Colors::Gray, Layout::Index(8)),
                false => (Colors::Palette(bytes, padding), layout),
            };
        }
        let offset = if offset == 0 { position } else { offset };
        let runs = Some(compression).filter(|compression| matches!(compression, 1 | 2));
        Ok(Self { width, height, is_top_down, bits, layout, runs, colors: meaning, offset })
    }

    fn mode(&self) -> Mode {
        match (self.layout, &self.colors) {
            (Layout::Bytes { alpha: Some(_), .. }, _) => Mode::Rgba,
            (Layout::Index(_), Colors::BlackWhite | Colors::Gray) => Mode::L,
            _ => Mode::Rgb,
        }
    }
}

/// The layout for bit field masks that Pillow supports.
fn fields(bits: usize, masks: [u32; 4]) -> Option<Layout> {
    let bytes = |size, rgb, alpha| Some(Layout::Bytes { size, rgb, alpha });
    match (bits, masks) {
        (32, [0xFF0000, 0xFF00, 0xFF, 0]) => bytes(4, [2, 1, 0], None),
        (32, [0xFF000000, 0xFF0000, 0xFF00, 0]) => bytes(4, [3, 2, 1], None),
        (32, [0xFF000000, 0xFF00, 0xFF, 0]) => bytes(4, [3, 1, 0], None),
        (32, [0xFF000000, 0xFF0000, 0xFF00, 0xFF]) => bytes(4, [3, 2, 1], Some(0)),
        (32, [0xFF, 0xFF00, 0xFF0000, 0xFF000000]) => bytes(4, [0, 1, 2], Some(3)),
        (32, [0xFF0000, 0xFF00, 0xFF, 0xFF000000] | [0, 0, 0, 0]) => bytes(4, [2, 1, 0], Some(3)),
        (32, [0xFF000000, 0xFF00, 0xFF, 0xFF0000]) => bytes(4, [3, 1, 0], Some(2)),
        (24, [0xFF0000, 0xFF00, 0xFF, _]) => bytes(3, [2, 1, 0], None),
        (16, [0xF800, 0x7E0, 0x1F, _]) => Some(Layout::Short { green_bits: 6 }),
        (16, [0x7C00, 0x3E0, 0x1F, _]) => Some(Layout::Short { green_bits: 5 }),
        _ => None,
    }
}

pub fn header(data: &[u8]) -> Result<Header> {
    let description = Description::read(data)?;
    let channels = description.mode().channels() as u8;
    Ok(Header { format: "BMP", width: description.width, height: description.height, channels, orientation: 1 })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let description = Description::read(data)?;
    let Description { width, height, .. } = description;
    check_pixels(width, height, max_pixels, usize::from(description.runs.is_some()) + description.mode().channels())?;
    let truncated = || broken("the image data are truncated");
    let runs = description.runs.map(|kind| expand_runs(data, description.offset, width, height, kind == 2));
    let (pixels, layout, stride, row_bytes) = match &runs {
        Some(indices) => (&indices[..], Layout::Index(8), width, width),
        None => {
            let bits = match description.layout {
                Layout::Index(bits) => bits,
                Layout::Short { .. } => 16,
                Layout::Bytes { size, .. } => size * 8,
            };
            let stride = (width * description.bits).div_ceil(32) * 4;
            let row_bytes = (width * bits).div_ceil(8);
            if row_bytes > stride {
                return Err(broken("the rows overlap"));
            }
            (data.get(description.offset..).unwrap_or_default(), description.layout, stride, row_bytes)
        }
    };
    if pixels.len() < (height - 1) * stride + row_bytes {
        return Err(truncated());
    }
    let colors = match description.colors {
        Colors::Palette(bytes, size) => {
            let colors: Vec<u8> = bytes.chunks_exact(size).flat_map(|color| [color[2], color[1], color[0]]).collect();
            palette(&colors)?
        }
        _ => palette(&[])?,
    };
    let mode = description.mode();
    let mut samples = vec![0; width * height * mode.channels()];
    for (y, out) in samples.chunks_exact_mut(width * mode.channels()).enumerate() {
        let y = if description.is_top_down { y } else { height - 1 - y };
        let row = &pixels[y * stride..][..row_bytes];
        let black_white = matches!(description.colors, Colors::BlackWhite);
        unpack(row, layout, black_white, mode, &colors, out);
    }
    Ok(Picture { width, height, mode, samples, icc: None, orientation: 1 })
}

fn unpack(row: &[u8], layout: Layout, black_white: bool, mode: Mode, colors: &[[u8; 3]; 256], out: &mut [u8]) {
    for (x, pixel) in out.chunks_exact_mut(mode.channels()).enumerate() {
        match layout {
            Layout::Index(bits) => {
                let index = row[x * bits / 8] << (x * bits % 8) >> (8 - bits);
                match mode {
                    // Runs may have other indices than 0 and 1.
                    Mode::L if black_white => pixel[0] = if index == 0 { 0 } else { 255 },
                    Mode::L => pixel[0] = index,
                    _ => pixel.copy_from_slice(&colors[usize::from(index)]),
                }
            }
            Layout::Short { green_bits } => {
                let value = u32::from(u16::from_le_bytes([row[2 * x], row[2 * x + 1]]));
                let level =
                    |shift: u32, bits: u32| ((value >> shift & ((1 << bits) - 1)) * 255 / ((1 << bits) - 1)) as u8;
                pixel.copy_from_slice(&[level(5 + green_bits, 5), level(5, green_bits), level(0, 5)]);
            }
            Layout::Bytes { size, rgb, alpha } => {
                let bytes = &row[x * size..][..size];
                for (out, position) in pixel.iter_mut().zip(rgb.into_iter().chain(alpha)) {
                    *out = bytes[position];
                }
            }
        }
    }
}

/// Expands run-length coded indices to one byte each. The result may be shorter than the image.
fn expand_runs(data: &[u8], offset: usize, width: usize, height: usize, is_four_bit: bool) -> Vec<u8> {
    let wanted = width * height;
    let mut out: Vec<u8> = Vec::with_capacity(wanted);
    let mut at = offset;
    let mut x = 0;
    while out.len() < wanted {
        let Some(&[count, value]) = data.get(at..at.saturating_add(2)) else { break };
        at += 2;
        match (count, value) {
            (0, 0) => {
                out.resize(out.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let Some(&[right, up]) = data.get(at..at + 2) else { break };
                at += 2;
                let step = usize::from(right) + usize::from(up) * width;
                out.resize((out.len() + step).min(wanted), 0);
                x = out.len() % width;
            }
            (0, length) => {
                let count = usize::from(length).min(wanted - out.len());
                let bytes = if is_four_bit { count.div_ceil(2) } else { count };
                let given = &data[at.min(data.len())..(at + bytes).min(data.len())];
                at += given.len();
                if is_four_bit {
                    out.extend(given.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(count));
                } else {
                    out.extend(given);
                }
                if given.len() < bytes || out.len() == wanted {
                    break;
                }
                x += usize::from(length);
                at += at % 2;
            }
            (count, value) => {
                let count = usize::from(count).min(width.saturating_sub(x));
                let pair = if is_four_bit { [value >> 4, value & 15] } else { [value; 2] };
                out.extend((0..count).map(|index| pair[index % 2]));
                x += count;
            }
        }
    }
    out
}

//! GIF: the first frame on its canvas, with Pillow's strictness.

use super::picture::{Header, Mode, Picture, check_pixels, palette};
use crate::{Error, Result};

/// The header of the first frame.
struct Frame<'a> {
    /// Size of the canvas, enlarged to contain the frame.
    width: usize,
    height: usize,
    /// Left, top, width and height of the frame.
    area: [usize; 4],
    /// `None` if indices are gray levels.
    palette: Option<&'a [u8]>,
    transparent: Option<u8>,
    is_interlaced: bool,
    /// LZW minimum code size, and the bytes from the first code on.
    bits: u8,
    codes: &'a [u8],
}

pub fn header(data: &[u8]) -> Result<Header> {
    let frame = Frame::read(data)?;
    let channels = if frame.palette.is_some() { 3 } else { 1 } + u8::from(frame.transparent.is_some());
    Ok(Header { format: "GIF", width: frame.width, height: frame.height, channels, orientation: 1 })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let frame = Frame::read(data)?;
    let (width, height) = (frame.width, frame.height);
    check_pixels(width, height, max_pixels, if frame.transparent.is_some() { 5 } else { 4 })?;
    let mut indices = vec![frame.transparent.unwrap_or(0); width * height];
    frame.expand(&mut indices)?;
    let colors = match frame.palette {
        Some(given) => palette(given)?,
        None => std::array::from_fn(|level| [level as u8; 3]),
    };
    let (mode, samples) = match frame.transparent {
        None => (Mode::Rgb, indices.iter().flat_map(|&index| colors[usize::from(index)]).collect()),
        Some(transparent) => {
            let pixel = |&index: &u8| {
                let [r, g, b] = colors[usize::from(index)];
                [r, g, b, if index == transparent { 0 } else { 255 }]
            };
            (Mode::Rgba, indices.iter().flat_map(pixel).collect())
        }
    };
    Ok(Picture { width, height, mode, samples, icc: None, orientation: 1 })
}

/// Reads from the front like a file: a read past the end returns fewer bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn read(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn byte(&mut self) -> Option<u8> {
        self.read(1).first().copied()
    }

    /// Reads a block that is preceded by its length; `None` if that is zero.
    fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.byte().filter(|&length| length > 0)?;
        Some(self.read(length.into())).filter(|block| !block.is_empty())
    }
}

impl<'a> Frame<'a> {
    fn read(data: &'a [u8]) -> Result<Self> {
        let mut bytes = Bytes(data);
        let broken = || Error::image("GIF: the header is broken or truncated");
        let &[_, _, _, _, _, _, w0, w1, h0, h1, flags, _, _] = bytes.read(13) else { return Err(broken()) };
        let (mut width, mut height) = (pair(w0, w1), pair(h0, h1));
        let mut colors = None;
        if flags & 128 != 0 {
            colors = used_palette(bytes.read(6 << (flags & 7))).ok_or_else(broken)?;
        }
        let mut transparent = None;
        loop {
            match bytes.byte() {
                None | Some(b';') => return Err(Error::image("GIF: the file has no image")),
                Some(b'!') => {
                    let label = bytes.byte().ok_or_else(broken)?;
                    let mut block = bytes.block();
                    match (label, block) {
                        (249, Some(block)) => {
                            let &[flags, _, _, ref rest @ ..] = block else { return Err(broken()) };
                            if flags & 1 != 0 {
                                transparent = Some(*rest.first().ok_or_else(broken)?);
                            }
                        }
                        (254, _) => {
                            while block.is_some() {
                                block = bytes.block();
                            }
                            continue;
                        }
                        (255, Some(block)) if block.starts_with(b"NETSCAPE2.0") => {
                            bytes.block();
                        }
                        _ => {}
                    }
                    while bytes.block().is_some() {}
                }
                Some(b',') => {
                    let &[x0, x1, y0, y1, w0, w1, h0, h1, flags] = bytes.read(9) else { return Err(broken()) };
                    let area = [pair(x0, x1), pair(y0, y1), pair(w0, w1), pair(h0, h1)];
                    width = width.max(area[0] + area[2]);
                    height = height.max(area[1] + area[3]);
                    if flags & 128 != 0 {
                        colors = used_palette(bytes.read(6 << (flags & 7))).ok_or_else(broken)?;
                    }
                    let bits = bytes.byte().ok_or_else(broken)?;
                    if width == 0 || height == 0 || area[2] == 0 || area[3] == 0 || bits > 12 {
                        return Err(broken());
                    }
                    let is_interlaced = flags & 64 != 0;
                    let codes = bytes.0;
                    return Ok(Self { width, height, area, palette: colors, transparent, is_interlaced, bits, codes });
                }
                Some(_) => {}
            }
        }
    }

    /// Decodes the codes to the frame's area on the canvas.
    fn expand(&self, canvas: &mut [u8]) -> Result<()> {
        let broken = || Error::image("GIF: the image data are broken");
        let truncated = || Error::image("GIF: the image data are truncated");
        let mut codes = Codes { data: self.codes, block: 0, bits: 0, count: 0 };
        let mut cursor = Cursor::new(self);
        let clear = 1usize << self.bits;
        let first_size = u32::from(self.bits) + 1;
        let (mut size, mut next) = (first_size, clear + 2);
        let mut table = vec![(0u8, 0usize); TABLE];
        let mut last: Option<usize> = None;
        let mut first_byte = 0u8;
        let mut string = Vec::with_capacity(TABLE + 1);
        loop {
            let code = codes.next(size).ok_or_else(truncated)?;
            if code == clear {
                (size, next, last) = (first_size, clear + 2, None);
                continue;
            }
            if code == clear + 1 {
                return Err(truncated());
            }
            string.clear();
            match last {
                None if code > clear => return Err(broken()),
                None => first_byte = code as u8,
                Some(last) => {
                    if code > next {
                        return Err(broken());
                    }
                    let mut at = code;
                    if code == next {
                        string.push(first_byte);
                        at = last;
                    }
                    first_byte = unwind(&table, clear, at, &mut string).ok_or_else(broken)?;
                    if next < TABLE {
                        table[next] = (first_byte, last);
                        if next == (1 << size) - 1 && size < 12 {
                            size += 1;
                        }
                        next += 1;
                    }
                }
            }
            last = Some(code);
            string.push(first_byte);
            for &index in string.iter().rev() {
                if cursor.put(canvas, index) {
                    return Ok(());
                }
            }
        }
    }
}

/// Entries of the code table.
const TABLE: usize = 4096;

/// Appends the string of a code to `string`, last byte first, except its first byte, which is returned.
fn unwind(table: &[(u8, usize)], clear: usize, mut code: usize, string: &mut Vec<u8>) -> Option<u8> {
    while code >= clear {
        if string.len() >= TABLE {
            return None;
        }
        let (last, rest) = *table.get(code)?;
        string.push(last);
        code = rest;
    }
    Some(code as u8)
}

/// The palette, or `Some(None)` if it is the identity, so that indices are gray levels. `None` if it is truncated within a
/// color.
#[allow(clippy::option_option)]
fn used_palette(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let is_used =
        bytes.chunks_exact(3).enumerate().any(|(index, color)| color.iter().any(|&value| usize::from(value) != index));
    let is_whole = bytes.len().is_multiple_of(3);
    (is_whole || is_used).then_some(is_used.then_some(bytes))
}

fn pair(low: u8, high: u8) -> usize {
    usize::from(u16::from_le_bytes([low, high]))
}

/// Reads codes of any number of bits from blocks of up to 255 bytes.
struct Codes<'a> {
    data: &'a [u8],
    /// Bytes left in the current block.
    block: usize,
    bits: u32,
    count: u32,
}

impl Codes<'_> {
    fn next(&mut self, size: u32) -> Option<usize> {
        while self.count < size {
            if self.block == 0 {
                let length = usize::from(*self.data.first()?);
                // A truncated block is not read at all.
                if self.data.len() < length + 1 {
                    return None;
                }
                self.block = length;
            } else {
                self.block -= 1;
                self.bits |= u32::from(*self.data.first()?) << self.count;
                self.count += 8;
            }
            self.data = &self.data[1..];
        }
        let code = self.bits & ((1 << size) - 1);
        self.bits >>= size;
        self.count -= size;
        Some(code as usize)
    }
}

/// The position of the next pixel.
struct Cursor {
    area: [usize; 4],
    stride: usize,
    x: usize,
    y: usize,
    /// Rows between consecutive rows of this pass, and the remaining passes of an interlaced image: first row and step.
    step: usize,
    passes: &'static [(usize, usize)],
}

impl Cursor {
    fn new(frame: &Frame<'_>) -> Self {
        let (step, passes): (usize, &[(usize, usize)]) =
            if frame.is_interlaced { (8, &[(4, 8), (2, 4), (1, 2)]) } else { (1, &[]) };
        Self { area: frame.area, stride: frame.width, x: 0, y: 0, step, passes }
    }

    /// Writes a pixel. Returns true after the last one.
    fn put(&mut self, canvas: &mut [u8], index: u8) -> bool {
        let [left, top, width, height] = self.area;
        canvas[(top + self.y) * self.stride + left + self.x] = index;
        self.x += 1;
        if self.x < width {
            return false;
        }
        self.x = 0;
        self.y += self.step;
        while self.y >= height {
            let Some(((first, step), rest)) = self.passes.split_first().map(|(pass, rest)| (*pass, rest)) else {
                return true;
            };
            (self.y, self.step, self.passes) = (first, step, rest);
        }
        false
    }
}

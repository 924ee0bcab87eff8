//! PNG, chunk by chunk as Pillow reads it: what it refuses is refused, what it lets pass gives its pixels. The deflate
//! stream is zlib-rs's, a port of the zlib-ng that Pillow uses, fed in the same pieces.

use flate2::{Decompress, FlushDecompress, Status};

use super::picture::{Header, Mode, Picture, check_pixels, palette};
use crate::image::exif;
use crate::{Error, Result};

pub const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Pillow's limits: of a compressed text or profile, once decompressed; and of all text together.
const MAX_TEXT_CHUNK: usize = 1 << 20;
const MAX_TEXT_MEMORY: usize = 64 * MAX_TEXT_CHUNK;
/// Pillow feeds its decoders pieces of at most so many bytes. Where the pieces end decides what broken data can do.
const PIECE: usize = 65536;

pub fn header(data: &[u8]) -> Result<Header> {
    let mut chunks = Chunks::open(data);
    chunks.until_image()?;
    let (width, height) = chunks.size()?;
    let kind = chunks.kind()?;
    let alpha = usize::from(chunks.transparency.is_some() && kind.color != 4 && kind.color != 6);
    let channels = match kind.color {
        0 => 1 + alpha,
        4 => 2,
        6 => 4,
        _ => 3 + alpha,
    };
    let orientation = chunks.orientation();
    Ok(Header { format: "PNG", width, height, channels: channels as u8, orientation })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let mut chunks = Chunks::open(data);
    chunks.until_image()?;
    let (width, height) = chunks.size()?;
    check_pixels(width, height, max_pixels, 12)?;
    let kind = chunks.kind()?;
    let palette = palette(chunks.palette.unwrap_or_default())?;
    let area = chunks.area(width, height)?;
    // What the first IDAT finds is what decides; chunks after the image may still tell orientation.
    let transparency = chunks.transparency.take();
    // Pillow looks for the one transparent colour in the palette.
    if kind.color == 3 && chunks.palette.is_none() && transparency.is_some_and(is_one_transparent) {
        return Err(Error::image("PNG: a transparent colour of a palette that is not there"));
    }
    let rows = chunks.rows(&kind, &area)?;
    chunks.after_image()?;

    let unpack = Unpack { kind, palette, transparency };
    let mode = unpack.mode();
    let orientation = chunks.orientation();
    if unpack.is_plain() && (area.width, area.height) == (width, height) {
        return Ok(Picture { width, height, mode, samples: rows.bytes, icc: chunks.icc, orientation });
    }
    let mut samples = vec![0; width * height * mode.channels()];
    let stride = width * mode.channels();
    for (y, row) in rows.iter().enumerate() {
        let start = (area.top + y) * stride + area.left * mode.channels();
        unpack.row(row, &mut samples[start..start + area.width * mode.channels()]);
    }
    Ok(Picture { width, height, mode, samples, icc: chunks.icc, orientation })
}

/// Whether all colours of a palette are opaque but one, which is not seen at all.
fn is_one_transparent(alphas: &[u8]) -> bool {
    let mut others = alphas.iter().filter(|&&alpha| alpha != 255);
    others.next() == Some(&0) && others.next().is_none()
}

/// Bit depth and colour type, one of the pairs that PNG allows.
#[derive(Clone, Copy)]
struct Kind {
    depth: usize,
    color: u8,
    interlaced: bool,
}

impl Kind {
    fn channels(&self) -> usize {
        match self.color {
            2 => 3,
            4 => 2,
            6 => 4,
            _ => 1,
        }
    }

    fn bits(&self) -> usize {
        self.depth * self.channels()
    }
}

/// Where the first frame lies on the canvas: all of it, but for some animations.
struct Area {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

/// What the chunks told so far, and where reading goes on.
struct Chunks<'a> {
    data: &'a [u8],
    at: usize,
    size: (u32, u32),
    kind: Option<Kind>,
    palette: Option<&'a [u8]>,
    transparency: Option<&'a [u8]>,
    icc: Option<Vec<u8>>,
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
    /// Of the first frame of an animation: left, top, width, height.
    frame: Option<[u32; 4]>,
    sequence: Option<u32>,
    text: usize,
    /// Bytes left in the IDAT chunk that reading stands in.
    image_left: usize,
}

impl<'a> Chunks<'a> {
    fn open(data: &'a [u8]) -> Self {
        Self {
            data,
            at: SIGNATURE.len(),
            size: (0, 0),
            kind: None,
            palette: None,
            transparency: None,
            icc: None,
            exif: None,
            xmp: None,
            frame: None,
            sequence: None,
            text: 0,
            image_left: 0,
        }
    }

    /// The name and length of the next chunk. `None` where none starts.
    fn next(&mut self) -> Option<([u8; 4], usize)> {
        let head: &[u8; 8] = self.data.get(self.at..)?.first_chunk()?;
        let [a, b, c, d, name @ ..] = *head;
        if !name.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return None;
        }
        self.at += 8;
        Some((name, u32::from_be_bytes([a, b, c, d]) as usize))
    }

    fn broken(&self, what: &str) -> Error {
        Error::image(format!("PNG: {what} at byte {}", self.at))
    }

    fn body(&self, length: usize) -> Result<&'a [u8]> {
        let body = self.at.checked_add(length).and_then(|end| self.data.get(self.at..end));
        body.ok_or_else(|| self.broken("the file ends inside a chunk"))
    }

    /// Reads up to the first byte of image data.
    fn until_image(&mut self) -> Result<()> {
        loop {
            let (name, length) = self.next().ok_or_else(|| self.broken("no chunk, and no image yet,"))?;
            match &name {
                b"IDAT" if self.kind.is_some() => {
                    self.image_left = length;
                    return Ok(());
                }
                b"fdAT" | b"IEND" => return Err(self.broken("no image")),
                _ => {}
            }
            let body = self.body(length)?;
            self.take(&name, body)?;
            let mut crc = crc32fast::Hasher::new();
            crc.update(&name);
            crc.update(body);
            self.at += length;
            if self.data.get(self.at..self.at + 4) != Some(&crc.finalize().to_be_bytes()[..]) {
                return Err(self.broken("a wrong checksum of a chunk that ends"));
            }
            self.at += 4;
        }
    }

    /// Reads what follows the image, as long as chunks start there.
    fn after_image(&mut self) -> Result<()> {
        self.at = self.at.saturating_add(self.image_left).saturating_add(4);
        while let Some((name, length)) = self.next() {
            match &name {
                b"IEND" => break,
                // The next frame of an animation.
                b"fcTL" if self.sequence.is_some() => break,
                _ => {}
            }
            let body = self.body(length)?;
            if &name != b"IDAT" {
                self.take(&name, body)?;
            }
            self.at = self.at.saturating_add(length + 4);
        }
        Ok(())
    }

    /// Learns from one chunk, or refuses it where Pillow does.
    fn take(&mut self, name: &[u8; 4], body: &'a [u8]) -> Result<()> {
        let least = match name {
            b"IHDR" => 13,
            b"tRNS" => match self.kind {
                Some(Kind { color: 0, .. }) => 2,
                Some(Kind { color: 2, .. }) => 6,
                _ => 0,
            },
            b"gAMA" | b"fdAT" => 4,
            b"cHRM" => 32,
            b"sRGB" => 1,
            b"pHYs" => 9,
            b"acTL" => 8,
            b"fcTL" => 26,
            _ => 0,
        };
        if body.len() < least {
            return Err(self.broken("a chunk that is too short"));
        }
        match name {
            b"IHDR" => self.take_header(body)?,
            b"PLTE" if self.kind.is_some_and(|kind| kind.color == 3) => self.palette = Some(body),
            b"tRNS" if self.kind.is_some_and(|kind| matches!(kind.color, 0 | 2 | 3)) => self.transparency = Some(body),
            b"iCCP" => {
                let end = body.iter().position(|&byte| byte == 0);
                let (method, rest) =
                    body[end.map_or(0, |end| end + 1)..].split_first().ok_or_else(|| self.broken("a short profile"))?;
                if *method != 0 {
                    return Err(self.broken("an unknown compression"));
                }
                self.icc = self.inflate(rest)?;
            }
            b"eXIf" => self.exif = Some(body.to_vec()),
            b"tEXt" => {
                let (key, value) = split(body);
                self.take_text(key, value)?;
            }
            b"zTXt" => {
                let (key, value) = split(body);
                if value.first().is_some_and(|&method| method != 0) {
                    return Err(self.broken("an unknown compression"));
                }
                let value = self.inflate(value.get(1..).unwrap_or_default())?.unwrap_or_default();
                self.take_text(key, &value)?;
            }
            b"iTXt" => self.take_international_text(body)?,
            b"fcTL" => {
                let number = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
                self.take_sequence(number(0))?;
                let frame = [number(12), number(16), number(4), number(8)];
                let fits = |start: u32, length: u32, side: u32| u64::from(start) + u64::from(length) <= u64::from(side);
                if !fits(frame[0], frame[2], self.size.0) || !fits(frame[1], frame[3], self.size.1) {
                    return Err(self.broken("a frame outside the image"));
                }
                self.frame = Some(frame);
            }
            b"fdAT" => self.take_sequence(u32::from_be_bytes([body[0], body[1], body[2], body[3]]))?,
            _ => {}
        }
        Ok(())
    }

    fn take_header(&mut self, body: &[u8]) -> Result<()> {
        let number = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        self.size = (number(0), number(4));
        let (depth, color) = (body[8], body[9]);
        let known = match color {
            0 => matches!(depth, 1 | 2 | 4 | 8 | 16),
            3 => matches!(depth, 1 | 2 | 4 | 8),
            2 | 4 | 6 => matches!(depth, 8 | 16),
            _ => false,
        };
        if known {
            self.kind = Some(Kind { depth: depth.into(), color, interlaced: body[12] != 0 });
        }
        if body[11] != 0 { Err(self.broken("an unknown filter category")) } else { Ok(()) }
    }

    fn take_sequence(&mut self, number: u32) -> Result<()> {
        if self.sequence.map_or(0, |last| last.wrapping_add(1)) != number {
            return Err(self.broken("frames out of sequence"));
        }
        self.sequence = Some(number);
        Ok(())
    }

    fn take_text(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if key.is_empty() {
            return Ok(());
        }
        match key {
            b"exif" => self.exif = Some(value.to_vec()),
            b"xmp" | b"XML:com.adobe.xmp" => self.xmp = Some(value.to_vec()),
            b"Raw profile type exif" if self.exif.is_none() => self.exif = raw_profile(value),
            _ => {}
        }
        self.text += value.len();
        if self.text > MAX_TEXT_MEMORY { Err(self.broken("too much text")) } else { Ok(()) }
    }

    fn take_international_text(&mut self, body: &[u8]) -> Result<()> {
        let Some(end) = body.iter().position(|&byte| byte == 0) else { return Ok(()) };
        let (key, rest) = (&body[..end], &body[end + 1..]);
        let [compressed, method, rest @ ..] = rest else { return Ok(()) };
        let mut parts = rest.splitn(3, |&byte| byte == 0).skip(2);
        let Some(value) = parts.next() else { return Ok(()) };
        if *compressed == 0 {
            return self.take_text(key, value);
        }
        if *method != 0 {
            return Ok(());
        }
        match self.inflate(value)? {
            Some(value) => self.take_text(key, &value),
            None => Ok(()),
        }
    }

    /// A whole small deflate stream. `None` if it is broken; an error if it is too large.
    fn inflate(&self, data: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut stream = Decompress::new(true);
        let mut out = vec![0; MAX_TEXT_CHUNK];
        loop {
            let (read, written) = (stream.total_in() as usize, stream.total_out() as usize);
            let status = stream.decompress(&data[read..], &mut out[written..], FlushDecompress::None);
            let (now_read, now_written) = (stream.total_in() as usize, stream.total_out() as usize);
            match status {
                Err(_) => return Ok(None),
                Ok(Status::StreamEnd) => {}
                Ok(_) if now_written == out.len() && now_read < data.len() => {
                    return Err(self.broken("a compressed text or profile that is too large"));
                }
                Ok(_) if now_read == data.len() || (now_read, now_written) == (read, written) => {}
                Ok(_) => continue,
            }
            out.truncate(now_written);
            return Ok(Some(out));
        }
    }

    fn size(&self) -> Result<(usize, usize)> {
        match self.size {
            (0, _) | (_, 0) => Err(Error::image("PNG: a size of zero")),
            (width, height) => Ok((width as usize, height as usize)),
        }
    }

    fn kind(&self) -> Result<Kind> {
        self.kind.ok_or_else(|| Error::image("PNG: an unknown pair of bit depth and colour type"))
    }

    fn area(&self, width: usize, height: usize) -> Result<Area> {
        match self.frame {
            None => Ok(Area { left: 0, top: 0, width, height }),
            Some([_, _, 0, _] | [_, _, _, 0]) => Err(Error::image("PNG: a frame of size zero")),
            Some(frame) => {
                let [left, top, width, height] = frame.map(|number| number as usize);
                Ok(Area { left, top, width, height })
            }
        }
    }

    fn orientation(&self) -> u8 {
        exif::orientation(self.exif.as_deref().unwrap_or_default(), self.xmp.as_deref())
    }

    /// The next piece of image data, or `None` where the image's chunks end.
    fn piece(&mut self) -> Result<Option<&'a [u8]>> {
        while self.image_left == 0 {
            let rewind = self.at;
            self.at = self.at.saturating_add(4);
            match self.next() {
                Some((name, length)) if &name == b"IDAT" || &name == b"DDAT" => self.image_left = length,
                _ => {
                    self.at = rewind;
                    return Ok(None);
                }
            }
        }
        let length = self.image_left.min(PIECE);
        let end = self.at.saturating_add(length).min(self.data.len());
        let piece = &self.data[self.at.min(end)..end];
        self.image_left -= length;
        self.at = end;
        if piece.is_empty() { Ok(None) } else { Ok(Some(piece)) }
    }

    /// The unfiltered rows of the image, one after another, as they stand in the file but for interlacing.
    fn rows(&mut self, kind: &Kind, area: &Area) -> Result<Rows> {
        let bits = kind.bits();
        let stride = (area.width * bits).div_ceil(8);
        let mut rows = Rows { bytes: vec![0; stride * area.height], stride };
        let step = bits.div_ceil(8);
        let mut current = vec![0; stride + 1];
        let mut previous = vec![0; stride + 1];
        let mut passes = Passes::new(kind.interlaced, area);
        let mut stream = Decompress::new(true);
        let mut filled = 0;
        while let Some(mut piece) = self.piece()? {
            while !piece.is_empty() {
                let length = 1 + (passes.columns() * bits).div_ceil(8);
                let (read, written) = (stream.total_in(), stream.total_out());
                let status = stream
                    .decompress(piece, &mut current[filled..length], FlushDecompress::None)
                    .map_err(|_| self.broken("broken image data before"))?;
                piece = &piece[(stream.total_in() - read) as usize..];
                filled += (stream.total_out() - written) as usize;
                if filled < length {
                    if status == Status::StreamEnd {
                        return Err(self.broken("image data that end too early, before"));
                    }
                    break;
                }
                filled = 0;
                unfilter(&mut current[..length], &previous[..length], step).map_err(|what| self.broken(what))?;
                passes.place(&current[1..length], bits, &mut rows);
                let next_pass = passes.advance();
                if passes.done() || status == Status::StreamEnd {
                    return Ok(rows);
                }
                if next_pass {
                    current.fill(0);
                }
                std::mem::swap(&mut current, &mut previous);
            }
        }
        Err(self.broken("the image data are truncated"))
    }
}

/// Key and value around the first zero byte; all key where there is none.
fn split(body: &[u8]) -> (&[u8], &[u8]) {
    match body.iter().position(|&byte| byte == 0) {
        Some(end) => (&body[..end], &body[end + 1..]),
        None => (body, &[]),
    }
}

/// ImageMagick's way to keep EXIF: a name, a length, and hexadecimal digits, in lines.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.split(|&byte| byte == b'\n').skip(3).flatten().copied().collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<Vec<u8>>>()
}

/// Packed rows of equal length.
struct Rows {
    bytes: Vec<u8>,
    stride: usize,
}

impl Rows {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.stride)
    }
}

/// The row that comes next, in the order of Adam7 or top to bottom.
struct Passes<'a> {
    area: &'a Area,
    interlaced: bool,
    pass: usize,
    y: usize,
}

const FIRST_COLUMN: [usize; 7] = [0, 4, 0, 2, 0, 1, 0];
const FIRST_ROW: [usize; 7] = [0, 0, 4, 0, 2, 0, 1];
const COLUMN_STEP: [usize; 7] = [8, 8, 4, 4, 2, 2, 1];
const ROW_STEP: [usize; 7] = [8, 8, 8, 4, 4, 2, 2];

impl<'a> Passes<'a> {
    fn new(interlaced: bool, area: &'a Area) -> Self {
        Self { area, interlaced, pass: 0, y: 0 }
    }

    fn columns(&self) -> usize {
        if self.interlaced {
            self.area.width.saturating_sub(FIRST_COLUMN[self.pass]).div_ceil(COLUMN_STEP[self.pass])
        } else {
            self.area.width
        }
    }

    fn done(&self) -> bool {
        self.y >= self.area.height
    }

    /// Goes to the next row, and says whether it is the first of a pass.
    fn advance(&mut self) -> bool {
        if !self.interlaced {
            self.y += 1;
            return false;
        }
        self.y += ROW_STEP[self.pass];
        let mut next_pass = false;
        while self.y >= self.area.height || self.columns() == 0 {
            if self.pass == 6 {
                self.y = self.area.height;
                break;
            }
            self.pass += 1;
            self.y = FIRST_ROW[self.pass];
            next_pass = true;
        }
        next_pass
    }

    /// Writes an unfiltered row where it belongs.
    fn place(&self, row: &[u8], bits: usize, rows: &mut Rows) {
        let out = &mut rows.bytes[self.y * rows.stride..(self.y + 1) * rows.stride];
        if !self.interlaced {
            out.copy_from_slice(row);
            return;
        }
        for index in 0..self.columns() {
            let column = FIRST_COLUMN[self.pass] + index * COLUMN_STEP[self.pass];
            if bits >= 8 {
                let bytes = bits / 8;
                out[column * bytes..][..bytes].copy_from_slice(&row[index * bytes..][..bytes]);
            } else {
                let shift = 8 - bits - column * bits % 8;
                out[column * bits / 8] |= packed(row, index, bits) << shift;
            }
        }
    }
}

/// The sample of fewer than 8 bits at a place in a row.
fn packed(row: &[u8], index: usize, bits: usize) -> u8 {
    row[index * bits / 8] << (index * bits % 8) >> (8 - bits)
}

/// Undoes the filter of one row: its first byte says which, `step` is the bytes of a pixel.
fn unfilter(row: &mut [u8], previous: &[u8], step: usize) -> std::result::Result<(), &'static str> {
    let (filter, row) = row.split_at_mut(1);
    let previous = &previous[1..];
    match (filter[0], step) {
        (0, _) => {}
        (2, _) => row.iter_mut().zip(previous).for_each(|(value, above)| *value = value.wrapping_add(*above)),
        (filter @ (1 | 3 | 4), 1) => unfilter_pixels::<1>(filter, row, previous),
        (filter @ (1 | 3 | 4), 2) => unfilter_pixels::<2>(filter, row, previous),
        (filter @ (1 | 3 | 4), 3) => unfilter_pixels::<3>(filter, row, previous),
        (filter @ (1 | 3 | 4), 4) => unfilter_pixels::<4>(filter, row, previous),
        (filter @ (1 | 3 | 4), 6) => unfilter_pixels::<6>(filter, row, previous),
        (filter @ (1 | 3 | 4), 8) => unfilter_pixels::<8>(filter, row, previous),
        _ => return Err("an unknown filter before"),
    }
    Ok(())
}

/// The filters that look at the pixel to the left, which is what they wait for: its bytes are kept in registers.
fn unfilter_pixels<const STEP: usize>(filter: u8, row: &mut [u8], previous: &[u8]) {
    match filter {
        1 => predict::<STEP>(row, previous, |left, _, _| left),
        3 => predict::<STEP>(row, previous, |left, above, _| ((u16::from(left) + u16::from(above)) / 2) as u8),
        _ => predict::<STEP>(row, previous, paeth),
    }
}

fn predict<const STEP: usize>(row: &mut [u8], previous: &[u8], predictor: impl Fn(u8, u8, u8) -> u8) {
    let (mut left, mut corner) = ([0; STEP], [0; STEP]);
    for (pixel, above) in row.as_chunks_mut::<STEP>().0.iter_mut().zip(previous.as_chunks::<STEP>().0) {
        for channel in 0..STEP {
            pixel[channel] = pixel[channel].wrapping_add(predictor(left[channel], above[channel], corner[channel]));
        }
        (left, corner) = (*pixel, *above);
    }
}

fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let (a, b, c) = (i16::from(left), i16::from(above), i16::from(corner));
    let (pa, pb, pc) = ((b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs());
    if pa <= pb && pa <= pc {
        left
    } else if pb <= pc {
        above
    } else {
        corner
    }
}

/// How rows become 8-bit samples.
struct Unpack<'a> {
    kind: Kind,
    palette: [[u8; 3]; 256],
    transparency: Option<&'a [u8]>,
}

impl Unpack<'_> {
    fn mode(&self) -> Mode {
        match (self.kind.color, self.transparency.is_some()) {
            (0, false) => Mode::L,
            (0, true) | (4, _) => Mode::La,
            (2 | 3, false) => Mode::Rgb,
            _ => Mode::Rgba,
        }
    }

    /// Whether the samples are what stands in the file.
    fn is_plain(&self) -> bool {
        self.kind.depth == 8 && self.kind.color != 3 && self.transparency.is_none()
    }

    fn row(&self, row: &[u8], out: &mut [u8]) {
        let transparent = self.transparency.unwrap_or_default();
        match (self.kind.color, self.kind.depth) {
            (3, depth) => {
                let channels = self.mode().channels();
                for (x, pixel) in out.chunks_exact_mut(channels).enumerate() {
                    let index = usize::from(packed(row, x, depth));
                    pixel[..3].copy_from_slice(&self.palette[index]);
                    if channels == 4 {
                        pixel[3] = transparent.get(index).copied().unwrap_or(255);
                    }
                }
            }
            _ if self.is_plain() => out.copy_from_slice(row),
            (color, depth) => {
                // A sample, and what it is in 8 bits.
                let sample = |index: usize| match depth {
                    16 => {
                        let value = u16::from_be_bytes([row[2 * index], row[2 * index + 1]]);
                        // Pillow saturates 16-bit grey, and keeps the high byte of 16-bit colour.
                        (value, if color == 0 { value.min(255) as u8 } else { (value >> 8) as u8 })
                    }
                    _ => {
                        let value = packed(row, index, depth);
                        (value.into(), value * (255 / ((1u16 << depth) - 1) as u8))
                    }
                };
                let channels = self.kind.channels();
                for (x, pixel) in out.chunks_exact_mut(self.mode().channels()).enumerate() {
                    let mut same = self.transparency.is_some();
                    for (channel, out) in pixel[..channels].iter_mut().enumerate() {
                        let (value, short) = sample(x * channels + channel);
                        *out = short;
                        same &= transparent.get(2 * channel..2 * channel + 2) == Some(&value.to_be_bytes());
                    }
                    if self.transparency.is_some() && channels < pixel.len() {
                        pixel[channels] = if same { 0 } else { 255 };
                    }
                }
            }
        }
    }
}

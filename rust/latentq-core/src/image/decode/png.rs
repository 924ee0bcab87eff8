//! PNG, read chunk by chunk as in Pillow: the same files are refused, and broken but accepted files give the same pixels.
//! Inflate is zlib-rs, a port of the zlib-ng that Pillow uses, fed in the same pieces.

use flate2::{Decompress, FlushDecompress, Status};

use super::picture::{Header, Picture, check_pixels, palette};
use super::png_rows::{Area, Kind, Passes, Rows, Unpack, unfilter};
use crate::image::orientation;
use crate::image::pixels::check_room;
use crate::{Error, Result};

pub const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Pillow's limits on a decompressed text or profile, and on all text together.
const MAX_TEXT_CHUNK: usize = 1 << 20;
const MAX_TEXT_MEMORY: usize = 64 * MAX_TEXT_CHUNK;
/// Pillow's decoders get pieces of at most this many bytes. Piece boundaries affect how broken data decode.
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
    let _ = chunks.after_image(); // for an orientation there; a fault after the header is for the decoder to find
    let orientation = chunks.orientation();
    Ok(Header { format: "PNG", width, height, channels: channels as u8, orientation })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let mut chunks = Chunks::open(data);
    chunks.until_image()?;
    let (width, height) = chunks.size()?;
    check_pixels(width, height, max_pixels, 0)?;
    let kind = chunks.kind()?;
    let palette = palette(chunks.palette.unwrap_or_default())?;
    let area = chunks.area(width, height)?;
    // Only chunks before the first IDAT count, except that later chunks may have the orientation.
    let transparency = chunks.transparency.take();
    // Pillow looks up the single transparent color in the palette.
    if kind.color == 3 && chunks.palette.is_none() && transparency.is_some_and(is_one_transparent) {
        return Err(Error::image("PNG: a transparent color without a palette"));
    }
    let unpack = Unpack { kind, palette, transparency };
    let mode = unpack.mode();
    let is_plain = unpack.is_plain() && (area.width, area.height) == (width, height);
    let unpacked = if is_plain { 0 } else { width * height * mode.channels() };
    check_room((area.width * kind.bits()).div_ceil(8) * area.height + unpacked)?;
    let rows = chunks.rows(&kind, &area)?;
    chunks.after_image()?;

    let orientation = chunks.orientation();
    if is_plain {
        return Ok(Picture { width, height, mode, samples: rows.bytes, icc: chunks.icc, orientation });
    }
    let mut samples = vec![0; unpacked];
    let stride = width * mode.channels();
    for (y, row) in rows.iter().enumerate() {
        let start = (area.top + y) * stride + area.left * mode.channels();
        unpack.row(row, &mut samples[start..start + area.width * mode.channels()]);
    }
    Ok(Picture { width, height, mode, samples, icc: chunks.icc, orientation })
}

/// True if exactly one color of a palette is not opaque, and that is fully transparent.
fn is_one_transparent(alphas: &[u8]) -> bool {
    let mut others = alphas.iter().filter(|&&alpha| alpha != 255);
    others.next() == Some(&0) && others.next().is_none()
}

/// A reader of chunks, and what the chunks contained so far.
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
    /// Left, top, width and height of the first frame of an animation.
    frame: Option<[u32; 4]>,
    /// Number of frames that a valid acTL chunk announces.
    frames: Option<u32>,
    /// True if the image is followed by frames, at the first of which Pillow stops.
    is_animated: bool,
    sequence: Option<u32>,
    text: usize,
    /// Bytes left in the current IDAT chunk.
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
            frames: None,
            is_animated: false,
            sequence: None,
            text: 0,
            image_left: 0,
        }
    }

    /// The name and length of the next chunk; `None` if there is no valid chunk.
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

    /// An error in image data, which is found after a piece was read.
    fn broken_before(&self, what: &str) -> Error {
        Error::image(format!("PNG: {what} before byte {}", self.at))
    }

    fn body(&self, length: usize) -> Result<&'a [u8]> {
        let body = self.at.checked_add(length).and_then(|end| self.data.get(self.at..end));
        body.ok_or_else(|| self.broken("the file ends inside a chunk"))
    }

    /// Reads to the first byte of image data.
    fn until_image(&mut self) -> Result<()> {
        loop {
            let (name, length) = self.next().ok_or_else(|| self.broken("no chunk before the image,"))?;
            match &name {
                b"IDAT" if self.kind.is_some() => {
                    self.image_left = length;
                    // An image before the first frame is not one of the frames.
                    self.is_animated = self.frames.is_some_and(|frames| frames > 1 || self.frame.is_none());
                    return Ok(());
                }
                b"fdAT" if self.kind.is_some() => {
                    self.begin_frame_data(length)?;
                    self.is_animated = self.frames.is_some_and(|frames| frames > 1);
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
                return Err(self.broken("wrong checksum of the chunk that ends"));
            }
            self.at += 4;
        }
    }

    /// Reads the chunks after the image.
    fn after_image(&mut self) -> Result<()> {
        self.at = self.at.saturating_add(self.image_left).saturating_add(4);
        while let Some((name, length)) = self.next() {
            match &name {
                b"IEND" => break,
                // The next frame of an animation.
                b"fcTL" if self.is_animated => break,
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

    /// Reads one chunk, and refuses it if Pillow does.
    fn take(&mut self, name: &[u8; 4], body: &'a [u8]) -> Result<()> {
        if body.len() < self.least_length(name) {
            return Err(self.broken("a chunk is too short"));
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
            b"acTL" => {
                // A second chunk revokes the first.
                let frames = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                self.frames = Some(frames).filter(|frames| self.frames.is_none() && (1..=1 << 31).contains(frames));
            }
            b"fcTL" => self.take_frame(body)?,
            b"fdAT" => self.take_data_sequence(body)?,
            _ => {}
        }
        Ok(())
    }

    /// The minimum length of a chunk's body.
    fn least_length(&self, name: &[u8; 4]) -> usize {
        match name {
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
        }
    }

    fn take_frame(&mut self, body: &[u8]) -> Result<()> {
        let read_u32 = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        self.take_sequence(read_u32(0))?;
        let frame = [read_u32(12), read_u32(16), read_u32(4), read_u32(8)];
        let fits = |start: u32, length: u32, side: u32| u64::from(start) + u64::from(length) <= u64::from(side);
        if !fits(frame[0], frame[2], self.size.0) || !fits(frame[1], frame[3], self.size.1) {
            return Err(self.broken("a frame outside the image"));
        }
        self.frame = Some(frame);
        Ok(())
    }

    fn take_header(&mut self, body: &[u8]) -> Result<()> {
        let read_u32 = |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        self.size = (read_u32(0), read_u32(4));
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
            return Err(self.broken("frames are out of sequence"));
        }
        self.sequence = Some(number);
        Ok(())
    }

    /// Checks the number with which the data of a frame begin: a frame header must come before.
    fn take_data_sequence(&mut self, body: &[u8]) -> Result<()> {
        match body.first_chunk() {
            Some(&number) if self.sequence.is_some() => self.take_sequence(u32::from_be_bytes(number)),
            _ => Err(self.broken("frames are out of sequence")),
        }
    }

    /// Enters an fdAT chunk, whose data after the number are image data.
    fn begin_frame_data(&mut self, length: usize) -> Result<()> {
        self.take_data_sequence(self.data.get(self.at..self.at.saturating_add(length.min(4))).unwrap_or_default())?;
        self.at += 4;
        self.image_left = length - 4;
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

    /// Decompresses a text or profile. `None` if the stream is broken; an error if the result is too large.
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
                    return Err(self.broken("a compressed text or profile is too large"));
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
            (0, _) | (_, 0) => Err(Error::image("PNG: the size is zero")),
            (width, height) => Ok((width as usize, height as usize)),
        }
    }

    fn kind(&self) -> Result<Kind> {
        self.kind.ok_or_else(|| Error::image("PNG: invalid combination of bit depth and color type"))
    }

    fn area(&self, width: usize, height: usize) -> Result<Area> {
        match self.frame {
            None => Ok(Area { left: 0, top: 0, width, height }),
            Some([_, _, 0, _] | [_, _, _, 0]) => Err(Error::image("PNG: the size of a frame is zero")),
            Some(frame) => {
                let [left, top, width, height] = frame.map(|number| number as usize);
                Ok(Area { left, top, width, height })
            }
        }
    }

    fn orientation(&self) -> u8 {
        orientation::orientation(self.exif.as_deref().unwrap_or_default(), self.xmp.as_deref())
    }

    /// The next piece of image data; `None` after the last IDAT chunk.
    fn piece(&mut self) -> Result<Option<&'a [u8]>> {
        while self.image_left == 0 {
            let rewind = self.at;
            self.at = self.at.saturating_add(4);
            match self.next() {
                Some((name, length)) if &name == b"IDAT" || &name == b"DDAT" => self.image_left = length,
                Some((name, length)) if &name == b"fdAT" => self.begin_frame_data(length)?,
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

    /// Reads the unfiltered, deinterlaced rows of the image.
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
                    .map_err(|_| self.broken_before("broken image data"))?;
                piece = &piece[(stream.total_in() - read) as usize..];
                filled += (stream.total_out() - written) as usize;
                if filled < length {
                    if status == Status::StreamEnd {
                        return Err(self.broken_before("the image data end early"));
                    }
                    break;
                }
                filled = 0;
                unfilter(&mut current[..length], &previous[..length], step).map_err(|what| self.broken_before(what))?;
                passes.scatter(&current[1..length], bits, &mut rows);
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

/// Splits key and value at the first zero byte. Without one, everything is the key.
fn split(body: &[u8]) -> (&[u8], &[u8]) {
    match body.iter().position(|&byte| byte == 0) {
        Some(end) => (&body[..end], &body[end + 1..]),
        None => (body, &[]),
    }
}

/// Decodes ImageMagick's text form of EXIF: lines with a name, a length and hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.split(|&byte| byte == b'\n').skip(3).flatten().copied().collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<Vec<u8>>>()
}

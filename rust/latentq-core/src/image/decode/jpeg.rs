//! JPEG, by libjpeg-turbo, which Pillow also uses, driven in the same way.

use std::ffi::{CStr, c_char};
use std::ops::Range;
use std::ptr::NonNull;

// Only links libjpeg-turbo, which turbojpeg-sys builds. The TurboJPEG API hides details that Pillow's behavior depends on.
use turbojpeg_sys as _;

use super::picture::{Header, Mode, Picture, check_pixels};
use crate::image::orientation;
use crate::image::pixels::check_room;
use crate::{Error, Result};

/// The contents of the markers before the first scan.
struct Markers {
    width: usize,
    height: usize,
    channels: u8,
    /// True for baseline and extended Huffman-coded images, of which libjpeg can skip parts.
    is_sequential: bool,
    exif: Vec<u8>,
    xmp: Option<Vec<u8>>,
    icc: Option<Vec<u8>>,
}

pub fn header(data: &[u8]) -> Result<Header> {
    let markers = markers(data)?;
    Ok(Header {
        format: "JPEG",
        width: markers.width,
        height: markers.height,
        channels: markers.channels,
        orientation: orientation::orientation(&markers.exif, markers.xmp.as_deref()),
    })
}

/// A JPEG that is read a few rows at a time.
pub struct Reader<'a> {
    pub width: usize,
    pub height: usize,
    pub mode: Mode,
    pub orientation: u8,
    pub icc: Option<Vec<u8>>,
    /// True if parts can be skipped without changing pixels. With several scans, libjpeg may smooth blocks by their
    /// neighbors.
    can_skip: bool,
    decoder: Decoder<'a>,
}

/// Rows decoded at a time: the height of the tallest block.
const BATCH: usize = 16;
/// Extra columns decoded on both sides of a crop, because libjpeg upsamples chroma at its edge as if the image ended
/// there.
const MARGIN: usize = 16;
/// Bytes after the rows of a batch, so that resize kernels can read whole vectors.
const PADDING: usize = 256;

impl<'a> Reader<'a> {
    pub fn open(data: &'a [u8], min_side: Option<usize>, max_pixels: u64) -> Result<Self> {
        let markers = markers(data)?;
        // Rows need little memory; libjpeg reports if there is none for the coefficients of several scans.
        check_pixels(markers.width, markers.height, max_pixels, 0)?;
        let shrink = min_side.map_or(1, |side| shrink(markers.width.min(markers.height), side));
        let (mode, space) = match markers.channels {
            1 => (Mode::L, JCS_GRAYSCALE),
            3 => (Mode::Rgb, JCS_RGB),
            _ => (Mode::Cmyk, JCS_CMYK),
        };
        let size = (markers.width, markers.height);
        let max_scans = max_scans(size.0 * size.1);
        let decoder = Decoder::start(data, size, (AS_MARKED, space), mode.channels(), shrink, max_scans)?;
        let orientation = orientation::orientation(&markers.exif, markers.xmp.as_deref());
        let can_skip = markers.is_sequential && !decoder.has_scans();
        let (width, height) = (decoder.width, decoder.height);
        Ok(Self { width, height, mode, orientation, icc: markers.icc, can_skip, decoder })
    }

    /// Decodes to the end, and calls `take(samples, stride, rows)` with the wanted rows, a few at a time. A row starts at
    /// the first wanted column, and there are [`PADDING`] readable bytes after the last row.
    pub fn rows(
        mut self,
        columns: Range<usize>,
        rows: Range<usize>,
        mut take: impl FnMut(&mut [u8], usize, usize),
    ) -> Result<()> {
        let channels = self.mode.channels();
        let wanted = columns.start.saturating_sub(MARGIN)..(columns.end + MARGIN).min(self.width);
        let left = if self.can_skip && wanted.len() < self.width { self.decoder.crop(wanted)? } else { 0 };
        let first = (columns.start - left) * channels;
        let stride = self.decoder.width * channels;
        let mut batch = vec![0; BATCH * stride + PADDING];
        let mut at = 0;
        while at < self.height {
            if self.can_skip {
                let next = if at < rows.start {
                    rows.start
                } else if at >= rows.end {
                    self.height - 1
                } else {
                    at
                };
                self.decoder.skip(next - at)?;
                at = next;
            }
            let stop = if at < rows.start {
                rows.start
            } else if at < rows.end {
                rows.end
            } else {
                self.height
            };
            let count = (stop - at).min(BATCH);
            let samples = &mut batch[..count * stride];
            self.decoder.rows(samples, stride)?;
            if rows.contains(&at) {
                invert_ink(self.mode, samples);
                take(&mut batch[first..count * stride + PADDING], stride, count);
            }
            at += count;
        }
        self.decoder.finish()
    }

    /// Decodes the whole image.
    pub fn picture(mut self) -> Result<Picture> {
        let Self { width, height, mode, orientation, .. } = self;
        check_room(width * height * mode.channels())?;
        let mut samples = vec![0; width * height * mode.channels()];
        self.decoder.rows(&mut samples, width * mode.channels())?;
        self.decoder.finish()?;
        invert_ink(mode, &mut samples);
        Ok(Picture { width, height, mode, samples, icc: self.icc, orientation })
    }
}

/// Inverts CMYK: Adobe stores it inverted, and Pillow assumes that for every JPEG with four channels.
fn invert_ink(mode: Mode, samples: &mut [u8]) {
    if mode == Mode::Cmyk {
        samples.iter_mut().for_each(|value| *value = 255 - *value);
    }
}

/// The largest fast scale of libjpeg that keeps the short side at least `side`.
fn shrink(short: usize, side: usize) -> usize {
    [8, 4, 2].into_iter().find(|scale| short / scale >= side).unwrap_or(1)
}

/// The most scans that an image of `pixels` pixels may have. Every scan visits every block, although an empty scan is a
/// few bytes, so that without a limit a small file takes minutes.
///
/// libjpeg-turbo's fuzz targets allow 500. Large images have a limit of 2^32 pixels in all scans, but at least 24 scans:
/// encoders write 10 for color and 18 for CMYK.
fn max_scans(pixels: usize) -> i32 {
    ((1u64 << 32) / pixels.max(1) as u64).clamp(24, 500) as i32
}

/// Reads the markers up to the first scan, exactly as strictly as Pillow.
fn markers(data: &[u8]) -> Result<Markers> {
    let broken = |offset: usize, what: &str| Error::image(format!("JPEG: {what} at byte {offset}"));
    let mut found =
        Markers { width: 0, height: 0, channels: 0, is_sequential: false, exif: Vec::new(), xmp: None, icc: None };
    let mut profile: Vec<&[u8]> = Vec::new();
    let mut at = 2;
    loop {
        // Other bytes than 0xFF are junk between segments; 0xFF may be repeated as padding.
        match (data.get(at), data.get(at + 1)) {
            (Some(0xFF), Some(0xFF)) => at += 1,
            (Some(0xFF), Some(0)) => at += 2,
            (Some(0xFF), Some(&code)) => {
                if (0x01..0xC0).contains(&code) {
                    return Err(broken(at, "invalid marker"));
                }
                at += 2;
                let bare = matches!(code, 0xC8 | 0xD0..=0xD9 | 0xF0..=0xFD);
                if bare {
                    continue;
                }
                let length = match data.get(at..at + 2) {
                    Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
                    _ => return Err(broken(at, "the file ends inside the header")),
                };
                let body = data
                    .get(at + 2..(at + length).max(at + 2))
                    .ok_or_else(|| broken(at, "the file ends inside the header"))?;
                take_segment(&mut found, &mut profile, code, body).map_err(|what| broken(at, what))?;
                at += 2 + body.len();
                if code == 0xDA {
                    break;
                }
            }
            (Some(0xFF), None) | (None, _) => return Err(broken(data.len(), "the file ends inside the header")),
            (Some(_), _) => at += 1,
        }
    }
    if found.width == 0 || found.height == 0 {
        return Err(Error::image("JPEG: no size in the header"));
    }
    Ok(found)
}

/// Reads one segment, and refuses it if Pillow does. `profile` collects the segments of an ICC profile.
fn take_segment<'a>(
    found: &mut Markers,
    profile: &mut Vec<&'a [u8]>,
    code: u8,
    body: &'a [u8],
) -> std::result::Result<(), &'static str> {
    match code {
        0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | 0xDE => {
            found.is_sequential = matches!(code, 0xC0 | 0xC1);
            frame(found, body)?;
            if !profile.is_empty() {
                found.icc = join_profile(profile)?;
            }
        }
        0xDB => quantization(body)?,
        0xE1 if body.starts_with(b"Exif\0\0") => {
            let skip = if found.exif.is_empty() { 0 } else { 6 };
            found.exif.extend_from_slice(&body[skip..]);
        }
        0xE1 if body.starts_with(b"http://ns.adobe.com/xap/1.0/\0") => found.xmp = Some(body[29..].to_vec()),
        0xE2 if body.starts_with(b"ICC_PROFILE\0") => profile.push(body),
        0xED if body.starts_with(b"Photoshop 3.0\0") => photoshop(body)?,
        0xE0 if body.starts_with(b"JFIF") && body.len() < 7 => return Err("a short JFIF marker"),
        0xEE if body.starts_with(b"Adobe") && body.len() < 7 => return Err("a short Adobe marker"),
        _ => {}
    }
    Ok(())
}

fn frame(found: &mut Markers, body: &[u8]) -> std::result::Result<(), &'static str> {
    let [bits, high_y, low_y, high_x, low_x, channels, layers @ ..] = body else { return Err("a short frame header") };
    found.height = usize::from(u16::from_be_bytes([*high_y, *low_y]));
    found.width = usize::from(u16::from_be_bytes([*high_x, *low_x]));
    found.channels = *channels;
    if *bits != 8 {
        return Err("samples are not 8 bits");
    }
    if !matches!(channels, 1 | 3 | 4) {
        return Err("the number of channels is not 1, 3 or 4");
    }
    if layers.len() % 3 != 0 { Err("a short frame header") } else { Ok(()) }
}

/// Joins the segments of a profile in the order of their numbers; `None` if some are missing.
fn join_profile(segments: &mut Vec<&[u8]>) -> std::result::Result<Option<Vec<u8>>, &'static str> {
    segments.sort();
    let count = *segments[0].get(13).ok_or("a short ICC marker")?;
    let whole = usize::from(count) == segments.len();
    let joined = segments.drain(..).flat_map(|segment| segment.get(14..).unwrap_or_default()).copied().collect();
    Ok(whole.then_some(joined))
}

/// Pillow parses Photoshop resources, and refuses the file if one ends just before the length of its name.
fn photoshop(body: &[u8]) -> std::result::Result<(), &'static str> {
    let mut at = 14;
    while body.get(at..at + 4) == Some(b"8BIM") && body.len() >= at + 6 {
        at += 6;
        at += 1 + usize::from(*body.get(at).ok_or("a short Photoshop marker")?);
        at += at & 1;
        let Some(&[a, b, c, d]) = body.get(at..at + 4) else { break };
        at = at.saturating_add(4 + u32::from_be_bytes([a, b, c, d]) as usize);
        at += at & 1;
    }
    Ok(())
}

fn quantization(mut body: &[u8]) -> std::result::Result<(), &'static str> {
    while let Some(&first) = body.first() {
        let length = if first >> 4 == 0 { 65 } else { 129 };
        body = body.get(length..).ok_or("a short quantization table")?;
    }
    Ok(())
}

/// Decodes a strip or tile of a TIFF of `pixels` pixels, whose streams share their tables. `is_ycc` converts YCbCr to RGB;
/// other channels are left unconverted.
pub fn decode_strip(
    tables: Option<&[u8]>,
    coded: &[u8],
    size: (usize, usize),
    channels: usize,
    is_ycc: bool,
    pixels: usize,
) -> Result<Vec<u8>> {
    let joined: Vec<u8>;
    let data = match tables {
        // The tables without their EOI marker, the stream without its SOI marker.
        Some(tables) if tables.len() > 4 && coded.len() > 2 => {
            joined = [&tables[..tables.len() - 2], &coded[2..]].concat();
            &joined
        }
        _ => coded,
    };
    let spaces = if is_ycc { (JCS_YCBCR, JCS_RGB) } else { (JCS_UNKNOWN, JCS_UNKNOWN) };
    let mut decoder = Decoder::start(data, size, spaces, channels, 1, max_scans(pixels))?;
    let mut samples = vec![0; size.0 * size.1 * channels];
    decoder.rows(&mut samples, size.0 * channels)?;
    decoder.finish()?;
    Ok(samples)
}

const AS_MARKED: i32 = -1;
const JCS_UNKNOWN: i32 = 0;
const JCS_GRAYSCALE: i32 = 1;
const JCS_RGB: i32 = 2;
const JCS_YCBCR: i32 = 3;
const JCS_CMYK: i32 = 4;

/// A decoder of jpeg.c and the bytes that it borrows.
struct Decoder<'a> {
    handle: NonNull<Handle>,
    width: usize,
    height: usize,
    data: std::marker::PhantomData<&'a [u8]>,
}

#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

#[allow(unsafe_code)]
unsafe extern "C" {
    fn latentq_jpeg_new() -> *mut Handle;
    fn latentq_jpeg_free(jpeg: *mut Handle);
    fn latentq_jpeg_message(jpeg: *const Handle) -> *const c_char;
    fn latentq_jpeg_start(
        jpeg: *mut Handle,
        data: *const u8,
        length: usize,
        coded: i32,
        wanted: i32,
        channels: i32,
        shrink: u32,
        max_scans: i32,
        width: *mut u32,
        height: *mut u32,
    ) -> i32;
    fn latentq_jpeg_has_scans(jpeg: *mut Handle) -> i32;
    fn latentq_jpeg_crop(jpeg: *mut Handle, left: *mut u32, width: *mut u32) -> i32;
    fn latentq_jpeg_skip(jpeg: *mut Handle, rows: u32) -> i32;
    fn latentq_jpeg_rows(jpeg: *mut Handle, out: *mut u8, stride: usize, rows: u32) -> i32;
    fn latentq_jpeg_finish(jpeg: *mut Handle) -> i32;
}

#[allow(unsafe_code)]
impl<'a> Decoder<'a> {
    /// Starts decoding an image whose size was checked. The color spaces, of the file and wanted, are libjpeg's numbers.
    fn start(
        data: &'a [u8],
        size: (usize, usize),
        (coded, wanted): (i32, i32),
        channels: usize,
        shrink: usize,
        max_scans: i32,
    ) -> Result<Self> {
        // SAFETY: no arguments; null is handled.
        let handle = NonNull::new(unsafe { latentq_jpeg_new() }).ok_or_else(|| Error::image("JPEG: out of memory"))?;
        let mut decoder = Self { handle, width: 0, height: 0, data: std::marker::PhantomData };
        let (mut width, mut height) = (size.0 as u32, size.1 as u32);
        // SAFETY: the handle is live, the lifetime keeps the data alive, and both outputs are locals.
        let status = unsafe {
            let (data, length, channels, shrink) = (data.as_ptr(), data.len(), channels as i32, shrink as u32);
            let handle = handle.as_ptr();
            let size = (&mut width, &mut height);
            latentq_jpeg_start(handle, data, length, coded, wanted, channels, shrink, max_scans, size.0, size.1)
        };
        decoder.check(status)?;
        decoder.width = width as usize;
        decoder.height = height as usize;
        Ok(decoder)
    }

    fn has_scans(&self) -> bool {
        // SAFETY: the handle is live.
        unsafe { latentq_jpeg_has_scans(self.handle.as_ptr()) != 0 }
    }

    /// Restricts the following rows to `columns`, extended to whole blocks. Returns the first column; `width` is their number.
    fn crop(&mut self, columns: Range<usize>) -> Result<usize> {
        let (mut left, mut width) = (columns.start as u32, columns.len() as u32);
        // SAFETY: the handle is live, and both outputs are locals.
        let status = unsafe { latentq_jpeg_crop(self.handle.as_ptr(), &mut left, &mut width) };
        self.check(status)?;
        self.width = width as usize;
        Ok(left as usize)
    }

    /// Skips rows, which must not include the last row of the image.
    fn skip(&mut self, rows: usize) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the handle is live.
        let status = unsafe { latentq_jpeg_skip(self.handle.as_ptr(), rows as u32) };
        self.check(status)
    }

    /// Fills `out` with rows of `stride` bytes, which must be the size of a decoder row.
    fn rows(&mut self, out: &mut [u8], stride: usize) -> Result<()> {
        // SAFETY: the handle is live, and `out` has room for exactly these rows.
        let status = unsafe {
            let rows = (out.len() / stride) as u32;
            latentq_jpeg_rows(self.handle.as_ptr(), out.as_mut_ptr(), stride, rows)
        };
        self.check(status)
    }

    fn finish(&mut self) -> Result<()> {
        // SAFETY: the handle is live.
        let status = unsafe { latentq_jpeg_finish(self.handle.as_ptr()) };
        self.check(status)
    }

    fn check(&self, status: i32) -> Result<()> {
        match status {
            0 => Ok(()),
            1 => Err(Error::image("JPEG: the file is truncated")),
            _ => {
                // SAFETY: the handle is live, and contains its message as a terminated string.
                let message = unsafe { CStr::from_ptr(latentq_jpeg_message(self.handle.as_ptr())) };
                Err(Error::image(format!("JPEG: {}", message.to_string_lossy())))
            }
        }
    }
}

#[allow(unsafe_code)]
impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and not used after this.
        unsafe { latentq_jpeg_free(self.handle.as_ptr()) }
    }
}

//! WebP, by libwebp's animation decoder as in Pillow: the canvas after the first frame.

use std::ptr::{self, NonNull};

use libwebp_sys::{
    VP8StatusCode, WebPAnimDecoder, WebPAnimDecoderDelete, WebPAnimDecoderGetDemuxer, WebPAnimDecoderGetInfo,
    WebPAnimDecoderGetNext, WebPAnimDecoderNew, WebPAnimInfo, WebPBitstreamFeatures, WebPChunkIterator, WebPData,
    WebPDemuxGetChunk, WebPDemuxReleaseChunkIterator, WebPGetFeatures,
};

use super::picture::{Header, Mode, Picture, check_pixels};
use crate::image::orientation;
use crate::image::pixels::check_room;
use crate::{Error, Result};

pub fn header(data: &[u8]) -> Result<Header> {
    let (width, height, alpha) = features(data)?;
    // Skips over the pixels: RIFF chunks follow each other, with no table.
    let exif = chunks(data).find(|(name, _)| name == b"EXIF").map_or(&[][..], |(_, body)| body);
    let xmp = chunks(data).find(|(name, _)| name == b"XMP ").map(|(_, body)| body);
    let orientation = orientation::orientation(exif, xmp);
    Ok(Header { format: "WEBP", width, height, channels: if alpha { 4 } else { 3 }, orientation })
}

pub fn decode(data: &[u8], max_pixels: u64) -> Result<Picture> {
    let (width, height, alpha) = features(data)?;
    // The decoder has two canvases of four channels.
    check_pixels(width, height, max_pixels, 8)?;
    let mut decoder = Decoder::new(data)?;
    if (decoder.width, decoder.height) != (width, height) {
        return Err(Error::image("WebP: two headers disagree on the size"));
    }
    let exif = decoder.chunk(c"EXIF").unwrap_or_default();
    let orientation = orientation::orientation(&exif, decoder.chunk(c"XMP ").as_deref());
    let icc = decoder.chunk(c"ICCP");
    let canvas = decoder.first_frame()?;
    check_room(width * height * if alpha { 4 } else { 3 })?;
    let (mode, samples) = if alpha {
        (Mode::Rgba, canvas.to_vec())
    } else {
        let mut samples = vec![0; width * height * 3];
        for (pixel, padded) in samples.chunks_exact_mut(3).zip(canvas.chunks_exact(4)) {
            pixel.copy_from_slice(&padded[..3]);
        }
        (Mode::Rgb, samples)
    };
    Ok(Picture { width, height, mode, samples, icc, orientation })
}

fn chunks(data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = data.get(12..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?) as usize;
        let (name, body) = (rest.get(..4)?, rest.get(8..8usize.checked_add(length)?)?);
        rest = rest.get(8 + length + (length & 1)..).unwrap_or_default();
        Some((name, body))
    })
}

/// Width, height, and true if there is an alpha channel.
#[allow(unsafe_code)]
fn features(data: &[u8]) -> Result<(usize, usize, bool)> {
    // SAFETY: a struct of integers, for which zero is valid.
    let mut features: WebPBitstreamFeatures = unsafe { std::mem::zeroed() };
    // SAFETY: the slice is readable for its length, and `features` is a local.
    let status = unsafe { WebPGetFeatures(data.as_ptr(), data.len(), &mut features) };
    if status != VP8StatusCode::VP8_STATUS_OK {
        return Err(Error::image("WebP: the header is broken or truncated"));
    }
    Ok((features.width.max(0) as usize, features.height.max(0) as usize, features.has_alpha != 0))
}

/// An animation decoder and the bytes that it borrows.
struct Decoder<'a> {
    handle: NonNull<WebPAnimDecoder>,
    width: usize,
    height: usize,
    data: std::marker::PhantomData<&'a [u8]>,
}

#[allow(unsafe_code)]
impl<'a> Decoder<'a> {
    fn new(data: &'a [u8]) -> Result<Self> {
        let source = WebPData { bytes: data.as_ptr(), size: data.len() };
        // SAFETY: libwebp copies `source`, and the lifetime keeps the bytes alive; null is handled.
        let handle = NonNull::new(unsafe { WebPAnimDecoderNew(&source, ptr::null()) });
        let handle = handle.ok_or_else(|| Error::image("WebP: the file is broken or truncated"))?;
        let mut decoder = Self { handle, width: 0, height: 0, data: std::marker::PhantomData };
        // SAFETY: a struct of integers, for which zero is valid.
        let mut info: WebPAnimInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the handle is live and `info` is a local.
        if unsafe { WebPAnimDecoderGetInfo(handle.as_ptr(), &mut info) } == 0 {
            return Err(Error::image("WebP: the header is broken"));
        }
        decoder.width = info.canvas_width as usize;
        decoder.height = info.canvas_height as usize;
        Ok(decoder)
    }

    /// Decodes the canvas after the first frame, in RGBA.
    fn first_frame(&mut self) -> Result<&[u8]> {
        let (mut canvas, mut timestamp) = (ptr::null_mut(), 0);
        // SAFETY: the handle is live and both outputs are locals.
        if unsafe { WebPAnimDecoderGetNext(self.handle.as_ptr(), &mut canvas, &mut timestamp) } == 0 {
            // libwebp does not tell why it failed. It needs up to five bytes a pixel besides the canvases.
            check_room(self.width * self.height * 5)?;
            return Err(Error::image("WebP: the image data are broken or truncated"));
        }
        // SAFETY: on success the canvas has width * height * 4 bytes and belongs to the decoder, unchanged until its next call.
        Ok(unsafe { std::slice::from_raw_parts(canvas, self.width * self.height * 4) })
    }

    /// Copies the first chunk of that name.
    fn chunk(&self, name: &std::ffi::CStr) -> Option<Vec<u8>> {
        // SAFETY: a struct of integers and pointers, for which zero is valid.
        let mut found: WebPChunkIterator = unsafe { std::mem::zeroed() };
        // SAFETY: the handle is live, the name has four bytes, and the iterator is released after its bytes are copied.
        unsafe {
            let demuxer = WebPAnimDecoderGetDemuxer(self.handle.as_ptr());
            if WebPDemuxGetChunk(demuxer, name.as_ptr(), 1, &mut found) == 0 {
                return None;
            }
            let chunk = found.chunk;
            let bytes = (chunk.size > 0).then(|| std::slice::from_raw_parts(chunk.bytes, chunk.size).to_vec());
            WebPDemuxReleaseChunkIterator(&mut found);
            bytes
        }
    }
}

#[allow(unsafe_code)]
impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and not used after this.
        unsafe { WebPAnimDecoderDelete(self.handle.as_ptr()) }
    }
}

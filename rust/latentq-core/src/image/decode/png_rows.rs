//! The rows of a PNG: interlacing, filters, and conversion to 8-bit samples.

use super::picture::Mode;

/// A valid combination of bit depth and color type.
#[derive(Clone, Copy)]
pub struct Kind {
    pub depth: usize,
    pub color: u8,
    pub interlaced: bool,
}

impl Kind {
    pub fn channels(&self) -> usize {
        match self.color {
            2 => 3,
            4 => 2,
            6 => 4,
            _ => 1,
        }
    }

    pub fn bits(&self) -> usize {
        self.depth * self.channels()
    }
}

/// The area of the first frame: the whole canvas, except in some animations.
pub struct Area {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// Contiguous rows of equal length.
pub struct Rows {
    pub bytes: Vec<u8>,
    pub stride: usize,
}

impl Rows {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.stride)
    }
}

/// The position of the next row, in Adam7 order or top to bottom.
pub struct Passes<'a> {
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
    pub fn new(interlaced: bool, area: &'a Area) -> Self {
        Self { area, interlaced, pass: 0, y: 0 }
    }

    pub fn columns(&self) -> usize {
        if self.interlaced {
            self.area.width.saturating_sub(FIRST_COLUMN[self.pass]).div_ceil(COLUMN_STEP[self.pass])
        } else {
            self.area.width
        }
    }

    pub fn done(&self) -> bool {
        self.y >= self.area.height
    }

    /// Advances to the next row. Returns true if a new pass starts.
    pub fn advance(&mut self) -> bool {
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

    /// Copies an unfiltered row to its position.
    pub fn scatter(&self, row: &[u8], bits: usize, rows: &mut Rows) {
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

/// Sample `index` of a row with fewer than 8 bits per sample.
fn packed(row: &[u8], index: usize, bits: usize) -> u8 {
    row[index * bits / 8] << (index * bits % 8) >> (8 - bits)
}

/// Reverses the filter of one row, which is named by its first byte. `step` is the bytes per pixel.
pub fn unfilter(row: &mut [u8], previous: &[u8], step: usize) -> std::result::Result<(), &'static str> {
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
        _ => return Err("unknown filter"),
    }
    Ok(())
}

/// Reverses the filters that depend on the pixel to the left, which stays in registers.
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

/// Converts rows to 8-bit samples.
pub struct Unpack<'a> {
    pub kind: Kind,
    pub palette: [[u8; 3]; 256],
    pub transparency: Option<&'a [u8]>,
}

impl Unpack<'_> {
    pub fn mode(&self) -> Mode {
        match (self.kind.color, self.transparency.is_some()) {
            (0, false) => Mode::L,
            (0, true) | (4, _) => Mode::La,
            (2 | 3, false) => Mode::Rgb,
            _ => Mode::Rgba,
        }
    }

    /// True if the samples equal the bytes of the file.
    pub fn is_plain(&self) -> bool {
        self.kind.depth == 8 && self.kind.color != 3 && self.transparency.is_none()
    }

    pub fn row(&self, row: &[u8], out: &mut [u8]) {
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
                // A sample, and its 8-bit value.
                let sample = |index: usize| match depth {
                    16 => {
                        let value = u16::from_be_bytes([row[2 * index], row[2 * index + 1]]);
                        // Pillow saturates 16-bit gray but keeps the high byte of 16-bit color.
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

//! The orientation that a camera recorded (from EXIF, else from XMP, by the rules of Pillow's `exif_transpose`), and its
//! application to pixels.

use super::pixels::{Image, check_room};
use super::tiff_directory::Directory;
use crate::Result;

const ORIENTATION: u16 = 274;

/// The orientation, 1 to 8, from EXIF bytes (with or without their `Exif\0\0` prefix), else from the XMP packet.
/// Unreadable metadata give 1, upright.
pub fn orientation(exif: &[u8], xmp: Option<&[u8]>) -> u8 {
    let mut exif = exif;
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    of_directory(Directory::first(exif).as_ref(), xmp)
}

/// [`orientation`] from a parsed directory.
pub fn of_directory(directory: Option<&Directory<'_>>, xmp: Option<&[u8]>) -> u8 {
    // Pillow compares a number of any type, also a fraction, with 1 to 8. Bytes and texts equal none, but hide the XMP.
    let value = match directory.filter(|directory| directory.bytes(ORIENTATION).is_some()) {
        Some(directory) => directory.real(ORIENTATION),
        None => xmp.and_then(xmp_orientation).map(f64::from),
    };
    (2..=8).find(|&orientation| value == Some(f64::from(orientation))).unwrap_or(1)
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let positions = (0..xmp.len()).filter(|&at| xmp[at] == NAME[0] && xmp[at..].starts_with(NAME));
    positions.map(|at| &xmp[at + NAME.len()..]).find_map(|rest| {
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}

/// Turns an image upright, given its EXIF orientation.
///
/// # Errors
/// An image error if there is not enough memory.
pub fn orient(image: Image, orientation: u8) -> Result<Image> {
    let size = (image.width, image.height);
    let (width, height) = turned(size, orientation);
    Ok(Image { width, height, pixels: turn(image.pixels, size, 3, orientation)? })
}

/// The size of an image after it is turned upright.
pub fn turned((width, height): (usize, usize), orientation: u8) -> (usize, usize) {
    if (5..=8).contains(&orientation) { (height, width) } else { (width, height) }
}

/// Turns samples of `channels` per pixel upright.
///
/// # Errors
/// An image error if there is not enough memory.
pub fn turn(samples: Vec<u8>, (width, height): (usize, usize), channels: usize, orientation: u8) -> Result<Vec<u8>> {
    if !(2..=8).contains(&orientation) {
        return Ok(samples);
    }
    check_room(samples.len())?;
    let (new_width, _) = turned((width, height), orientation);
    let mut out = vec![0; samples.len()];
    for (y, row) in out.chunks_exact_mut(new_width * channels).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            let (from_x, from_y) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                _ => (width - 1 - y, x),
            };
            pixel.copy_from_slice(&samples[(from_y * width + from_x) * channels..][..channels]);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::orientation;

    /// An EXIF block with one entry.
    fn block(little: bool, tag: u16, kind: u16, count: u32, value: [u8; 4]) -> Vec<u8> {
        let short = |number: u16| if little { number.to_le_bytes() } else { number.to_be_bytes() };
        let long = |number: u32| if little { number.to_le_bytes() } else { number.to_be_bytes() };
        let mut bytes = if little { b"Exif\0\0II*\0".to_vec() } else { b"Exif\0\0MM\0*".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(1));
        bytes.extend(short(tag));
        bytes.extend(short(kind));
        bytes.extend(long(count));
        bytes.extend(value);
        bytes.extend(long(0));
        bytes
    }

    #[test]
    fn both_byte_orders_are_read() {
        for value in 1..=8 {
            assert_eq!(orientation(&block(true, 274, 3, 1, [value, 0, 0, 0]), None), value);
            assert_eq!(orientation(&block(false, 274, 3, 1, [0, value, 0, 0]), None), value);
            assert_eq!(orientation(&block(true, 274, 3, 1, [value, 0, 0, 0])[6..], None), value);
        }
    }

    #[test]
    fn invalid_metadata_give_upright() {
        assert_eq!(orientation(&[], None), 1);
        assert_eq!(orientation(&block(true, 274, 3, 1, [9, 0, 0, 0]), None), 1);
        assert_eq!(orientation(&block(true, 274, 2, 1, [6, 0, 0, 0]), None), 1);
        assert_eq!(orientation(&block(true, 275, 3, 1, [6, 0, 0, 0]), None), 1);
        assert_eq!(orientation(&block(true, 274, 3, u32::MAX, [6, 0, 0, 0]), None), 1);
        let whole = block(true, 274, 3, 1, [6, 0, 0, 0]);
        for length in 0..26 {
            assert_eq!(orientation(&whole[..length], None), 1);
        }
    }

    #[test]
    fn numbers_of_every_type_are_read() {
        for kind in [3, 4, 8, 9, 13] {
            assert_eq!(orientation(&block(true, 274, kind, 1, [6, 0, 0, 0]), None), 6);
        }
        assert_eq!(orientation(&block(true, 274, 6, 1, [6, 0, 0, 0]), None), 6);
        assert_eq!(orientation(&block(true, 274, 11, 1, 6f32.to_le_bytes()), None), 6);
        assert_eq!(orientation(&block(true, 274, 11, 1, 6.5f32.to_le_bytes()), None), 1);
        for (kind, value) in [(5, [12, 2]), (10, [6, 1]), (10, [-6, -1])] {
            let mut bytes = block(true, 274, kind, 1, [26, 0, 0, 0]);
            value.iter().for_each(|number: &i32| bytes.extend(number.to_le_bytes()));
            assert_eq!(orientation(&bytes, None), 6);
        }
        let mut bytes = block(false, 274, 12, 1, [0, 0, 0, 26]);
        bytes.extend(8f64.to_be_bytes());
        assert_eq!(orientation(&bytes, None), 8);
    }

    #[test]
    fn bytes_and_texts_are_upright_and_hide_xmp() {
        let xmp = br#"tiff:Orientation="8""#;
        for kind in [1, 2, 7] {
            assert_eq!(orientation(&block(true, 274, kind, 1, [6, 0, 0, 0]), Some(xmp)), 1);
        }
        assert_eq!(orientation(&block(true, 274, 99, 1, [6, 0, 0, 0]), Some(xmp)), 8);
    }

    #[test]
    fn xmp_is_used_if_exif_has_no_orientation() {
        let xmp = br#"<rdf:Description tiff:Orientation="x" tiff:Orientation="8"/>"#;
        assert_eq!(orientation(&[], Some(xmp)), 8);
        assert_eq!(orientation(&block(true, 274, 3, 1, [6, 0, 0, 0]), Some(xmp)), 6);
        assert_eq!(orientation(&[], Some(b"<tiff:Orientation>3</tiff:Orientation>")), 3);
    }
}

//! The orientation that a camera wrote: from EXIF, else from XMP, as Pillow's `exif_transpose` finds it.

use super::tiff_directory::Directory;

const ORIENTATION: u16 = 274;

/// The orientation, 1 to 8, that EXIF bytes tell (with or without their `Exif\0\0` prefix), else the XMP packet.
/// Metadata that cannot be read say nothing: 1.
pub fn orientation(exif: &[u8], xmp: Option<&[u8]>) -> u8 {
    let mut exif = exif;
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    let value = Directory::first(exif).and_then(|directory| directory.number(ORIENTATION));
    let value = value.or_else(|| xmp.and_then(xmp_orientation)).unwrap_or(1);
    if (1..=8).contains(&value) { value as u8 } else { 1 }
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(xmp: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"tiff:Orientation";
    let positions = (0..xmp.len()).filter(|&at| xmp[at] == NAME[0] && xmp[at..].starts_with(NAME));
    positions.map(|at| &xmp[at + NAME.len()..]).find_map(|rest| {
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|digit| digit.is_ascii_digit()).map(|digit| u64::from(digit - b'0'))
    })
}

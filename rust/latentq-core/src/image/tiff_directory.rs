//! The tag directory of TIFF files and EXIF blocks.

use std::collections::BTreeMap;

/// A directory: the raw values of its tags, in the byte order of the file.
pub struct Directory<'a> {
    little: bool,
    /// True if all entries that the directory announces are present.
    is_whole: bool,
    tags: BTreeMap<u16, Value<'a>>,
}

struct Value<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Directory<'a> {
    /// Reads the first directory of a TIFF or BigTIFF structure; `None` if `data` does not start with one.
    ///
    /// An entry that does not fit is skipped, and reading stops at the end of the data, as in Pillow.
    pub fn first(data: &'a [u8]) -> Option<Self> {
        let (little, is_big) = match data.get(..4)? {
            b"II\x2a\0" | b"II\0\x2a" => (true, false),
            b"MM\0\x2a" | b"MM\x2a\0" => (false, false),
            b"II\x2b\0" => (true, true),
            b"MM\0\x2b" => (false, true),
            _ => return None,
        };
        // Size of the entry count, size of counts and offsets, and position of the first offset.
        let (entries, long, first) = if is_big { (8, 8, 8) } else { (2, 4, 4) };
        let mut directory = Self { little, is_whole: false, tags: BTreeMap::new() };
        let start = usize::try_from(directory.read(data.get(first..first + long)?)).ok()?;
        let count = directory.read(data.get(start..start.checked_add(entries)?).unwrap_or_default());
        let mut total = 0usize;
        let rest = data.get(start.saturating_add(entries)..).unwrap_or_default();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let all = rest.chunks_exact(4 + 2 * long);
        directory.is_whole = count <= all.len();
        for entry in all.take(count) {
            let (length, value) = (&entry[4..4 + long], &entry[4 + long..]);
            let tag = directory.read(&entry[..2]) as u16;
            let kind = directory.read(&entry[2..4]) as u16;
            let unit = match kind {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16 => 8,
                _ => continue,
            };
            if directory.tags.contains_key(&tag) {
                continue;
            }
            let size = usize::try_from(directory.read(length)).unwrap_or(usize::MAX).saturating_mul(unit);
            let bytes = if size <= long {
                &value[..size]
            } else {
                total = total.saturating_add(size);
                if total > data.len() {
                    continue;
                }
                let offset = usize::try_from(directory.read(value)).unwrap_or(usize::MAX);
                let Some(bytes) = offset.checked_add(size).and_then(|end| data.get(offset..end)) else { break };
                bytes
            };
            if !bytes.is_empty() {
                directory.tags.insert(tag, Value { kind, bytes });
            }
        }
        Some(directory)
    }

    /// The first integer of a tag, if the tag exists and has integers wider than a byte.
    pub fn integer(&self, tag: u16) -> Option<u64> {
        self.integers(tag)?.next()
    }

    /// The integers of a tag, if the tag exists and has integers.
    pub fn integers(&self, tag: u16) -> Option<impl Iterator<Item = u64> + '_> {
        let value = self.tags.get(&tag)?;
        let unit = match value.kind {
            6 => 1,
            3 | 8 => 2,
            4 | 9 | 13 => 4,
            16 => 8,
            _ => return None,
        };
        Some(value.bytes.chunks_exact(unit).map(|bytes| self.read(bytes)))
    }

    /// The first number of a tag, if the tag exists and has numbers of any type but bytes.
    pub fn real(&self, tag: u16) -> Option<f64> {
        let value = self.tags.get(&tag)?;
        let bits = |bytes: Option<&[u8]>| Some(self.read(bytes?));
        let (four, next, eight) = (value.bytes.get(..4), value.bytes.get(4..8), value.bytes.get(..8));
        match value.kind {
            5 => Some(bits(four)? as f64 / bits(next)? as f64),
            10 => Some(f64::from(bits(four)? as i32) / f64::from(bits(next)? as i32)),
            11 => Some(f64::from(f32::from_bits(bits(four)? as u32))),
            12 => Some(f64::from_bits(bits(eight)?)),
            _ => Some(self.integer(tag)? as f64),
        }
    }

    /// The raw bytes of a tag.
    pub fn bytes(&self, tag: u16) -> Option<&'a [u8]> {
        self.tags.get(&tag).map(|value| value.bytes)
    }

    /// Numerators and denominators, alternating, of a tag of fractions.
    pub fn fractions(&self, tag: u16) -> Option<impl Iterator<Item = u64> + '_> {
        let value = self.tags.get(&tag).filter(|value| value.kind == 5)?;
        Some(value.bytes.chunks_exact(4).map(|bytes| self.read(bytes)))
    }

    /// True if the directory is not truncated.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// True if numbers are little-endian.
    pub fn is_little(&self) -> bool {
        self.little
    }

    fn read(&self, bytes: &[u8]) -> u64 {
        let add = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }
}

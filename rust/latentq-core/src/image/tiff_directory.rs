//! The tagged directory that TIFF files and EXIF blocks share.

use std::collections::BTreeMap;

/// One directory: the raw values of its tags, in the byte order of the file.
pub struct Directory<'a> {
    little: bool,
    tags: BTreeMap<u16, Value<'a>>,
}

struct Value<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Directory<'a> {
    /// The first directory of a TIFF structure (32-bit offsets), or `None` if it does not start as one.
    ///
    /// An entry that does not fit is left out, and reading ends where the bytes do, as in Pillow.
    pub fn first(data: &'a [u8]) -> Option<Self> {
        let little = match data.get(..4)? {
            b"II\x2a\0" | b"II\0\x2a" => true,
            b"MM\0\x2a" | b"MM\x2a\0" => false,
            _ => return None,
        };
        let mut directory = Self { little, tags: BTreeMap::new() };
        let start = directory.read(data.get(4..8)?) as usize;
        let count = directory.read(data.get(start..start.checked_add(2)?).unwrap_or_default());
        let mut total = 0usize;
        for index in 0..count as usize {
            let at = start + 2 + 12 * index;
            let Some(entry) = data.get(at..at + 12) else { break };
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
            let size = (directory.read(&entry[4..8]) as usize).saturating_mul(unit);
            let bytes = if size <= 4 {
                &entry[8..8 + size]
            } else {
                total = total.saturating_add(size);
                if total > data.len() {
                    continue;
                }
                let offset = directory.read(&entry[8..12]) as usize;
                let Some(bytes) = offset.checked_add(size).and_then(|end| data.get(offset..end)) else { break };
                bytes
            };
            if !bytes.is_empty() {
                directory.tags.insert(tag, Value { kind, bytes });
            }
        }
        Some(directory)
    }

    /// The first number of a tag, if it is there and holds non-negative integers wider than a byte.
    pub fn number(&self, tag: u16) -> Option<u64> {
        self.numbers(tag)?.next()
    }

    /// The numbers of a tag, if it is there and holds integers.
    pub fn numbers(&self, tag: u16) -> Option<impl Iterator<Item = u64> + '_> {
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

    /// The bytes of a tag as they stand in the file.
    pub fn bytes(&self, tag: u16) -> Option<&'a [u8]> {
        self.tags.get(&tag).map(|value| value.bytes)
    }

    /// Whether numbers start with their low byte.
    pub fn is_little(&self) -> bool {
        self.little
    }

    fn read(&self, bytes: &[u8]) -> u64 {
        let add = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }
}

//! The layout of a shard: `u32 n, u32 offsets[n + 1], config, samples`.

use std::borrow::Cow;
use std::ops::Range;

use super::Fault;
use super::encoding::u32_at;
use super::index::{Config, Schema, from_bytes};
use crate::Error;
use crate::error::counted;
use crate::memory::with_room;

/// The reason why a table could not be loaded.
#[derive(Debug)]
pub enum Load {
    /// The shard violates its format.
    Fault(Fault),
    /// The shard could not be read, or there is not enough memory.
    Error(Error),
}

impl From<Fault> for Load {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Error> for Load {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The offsets of the samples of a checked shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(Offsets);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Offsets {
    /// `n + 1` ascending offsets. The last one is the size of the file.
    Each(Vec<u32>),
    /// Samples of one size: no offset has to be looked up in memory, from whose caches the samples displace it.
    Even { len: usize, first: u64, size: u64 },
}

impl Table {
    /// Reads the table of a shard of `samples` samples and `len` bytes, and checks table and configuration against `schema`.
    /// `read` returns the bytes of a range within `len`.
    ///
    /// # Errors
    /// Any error of `read`, a memory error, or a fault.
    pub fn load<'a>(
        samples: u64,
        len: u64,
        schema: &Schema,
        mut read: impl FnMut(Range<u64>) -> Result<Cow<'a, [u8]>, Load>,
    ) -> Result<Self, Load> {
        let head = 8u64.saturating_add(samples.saturating_mul(4));
        if head > len {
            return Err(Fault::new(
                len,
                format!("the shard ends before the offsets of {}", counted(samples, "sample")),
            )
            .into());
        }
        let bytes = read(0..head)?;
        let n = u64::from(u32_at(&bytes, 0).unwrap_or_default());
        if n != samples {
            return Err(
                Fault::new(0, format!("the shard has {}, its index says {samples}", counted(n, "sample"))).into()
            );
        }
        let mut offsets: Vec<u32> = with_room(bytes.len() / 4)?;
        offsets.extend(bytes.chunks_exact(4).skip(1).map(|bytes| u32_at(bytes, 0).unwrap_or_default()));
        let least = schema.header + schema.fixed;
        let first = u64::from(offsets[0]);
        if first < head || first > len {
            return Err(Fault::new(4, format!("the first sample starts at {first}")).into());
        }
        for (i, pair) in offsets.windows(2).enumerate() {
            let size = u64::from(pair[1]).checked_sub(u64::from(pair[0]));
            let good = size.is_some_and(|size| if schema.is_fixed() { size == least } else { size >= least });
            if !good {
                let message = format!("sample {i} has the invalid range {} to {}", pair[0], pair[1]);
                return Err(Fault::new(8 + 4 * i as u64, message).into());
            }
        }
        let end = u64::from(offsets[offsets.len() - 1]);
        if end != len {
            return Err(Fault::new(head - 4, format!("the samples end at {end}, the shard ends at {len}")).into());
        }
        let config: Config = from_bytes(&read(head..first)?).map_err(|fault| fault.at(head))?;
        match config.schema() {
            Ok(own) if own == *schema => Ok(Self(match schema.is_fixed() {
                true => Offsets::Even { len: offsets.len() - 1, first, size: least },
                false => Offsets::Each(offsets),
            })),
            Ok(_) => Err(Fault::new(head, "the columns of the shard differ from those in its index").into()),
            Err(message) => Err(Fault::new(head, message).into()),
        }
    }

    /// Number of samples in the shard.
    pub fn len(&self) -> usize {
        match &self.0 {
            Offsets::Each(offsets) => offsets.len() - 1,
            Offsets::Even { len, .. } => *len,
        }
    }

    /// True if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the table takes in memory.
    pub fn weight(&self) -> usize {
        match &self.0 {
            Offsets::Each(offsets) => 4 * offsets.len(),
            Offsets::Even { .. } => size_of::<Self>(),
        }
    }

    /// The range of sample `i`, one of the shard's, in the shard.
    #[inline]
    pub fn range(&self, i: usize) -> Range<u64> {
        match &self.0 {
            Offsets::Each(offsets) => u64::from(offsets[i])..u64::from(offsets[i + 1]),
            Offsets::Even { first, size, .. } => first + i as u64 * size..first + (i as u64 + 1) * size,
        }
    }
}

/// Checks a whole shard in memory. Returns the first fault of its header, or else the first fault of each sample.
///
/// # Errors
/// A memory error.
pub fn check(samples: u64, schema: &Schema, bytes: &[u8]) -> crate::Result<Vec<Fault>> {
    let part = |range: Range<u64>| bytes.get(range.start as usize..range.end as usize).unwrap_or_default();
    let table = match Table::load(samples, bytes.len() as u64, schema, |range| Ok(Cow::Borrowed(part(range)))) {
        Ok(table) => table,
        Err(Load::Fault(fault)) => return Ok(vec![fault]),
        Err(Load::Error(error)) => return Err(error),
    };
    let mut ranges = Vec::new();
    let sample = |i: usize| {
        let range = table.range(i);
        let sample = part(range.clone());
        split(schema, sample, sample.len() as u64, &mut ranges).map_err(|fault| fault.at(range.start))?;
        for (column, at) in schema.columns.iter().zip(&ranges) {
            let value = part(range.start + at.start..range.start + at.end);
            column.encoding.decode(value).map_err(|fault| Fault {
                message: format!("sample {i}, column {:?}: {}", column.name, fault.message),
                offset: range.start + at.start + fault.offset,
            })?;
        }
        Ok(())
    };
    Ok((0..table.len()).map(sample).filter_map(Result::err).collect())
}

/// Reads the number of samples and the configuration from a shard, without an index.
///
/// # Errors
/// A fault if they are missing or invalid.
pub fn own_config(bytes: &[u8]) -> Result<(u64, Config), Fault> {
    let short = || Fault::new(bytes.len() as u64, "the shard ends before its configuration");
    let n = u64::from(u32_at(bytes, 0).ok_or_else(short)?);
    let first = u32_at(bytes, 4).ok_or_else(short)? as usize;
    let head = 8 + 4 * n;
    let config = bytes.get(usize::try_from(head).map_err(|_| short())?..first).ok_or_else(short)?;
    Ok((n, from_bytes(config).map_err(|fault| fault.at(head))?))
}

/// The position of a column of fixed size in a sample, if it does not depend on the header of the sample: all columns before
/// it, or all columns after it, have a fixed size.
#[derive(Clone, Copy, Debug)]
pub enum Position {
    /// Offset from the start of the sample, and size.
    FromStart(u64, u64),
    /// Distance of its first byte from the end of the sample, and size.
    FromEnd(u64, u64),
}

impl Position {
    /// The positions of all columns; `None` for a column whose position depends on the header of the sample.
    pub fn of_all(schema: &Schema) -> Vec<Option<Self>> {
        let mut positions = Vec::with_capacity(schema.columns.len());
        // Where the columns so far end; `None` after one of variable size.
        let mut end = Some(schema.header);
        for column in &schema.columns {
            let size = column.size.map(u64::from);
            positions.push(end.zip(size).map(|(start, size)| Self::FromStart(start, size)));
            end = end.zip(size).map(|(end, size)| end + size);
        }
        let mut left = 0;
        for (column, position) in schema.columns.iter().zip(&mut positions).rev() {
            let Some(size) = column.size.map(u64::from) else { break };
            left += size;
            *position = position.or(Some(Self::FromEnd(left, size)));
        }
        positions
    }

    /// The range in a sample of `len` bytes. `len` must come from a checked table, so that the fixed columns fit.
    #[inline]
    pub fn within(self, len: u64) -> Range<u64> {
        let (start, size) = match self {
            Self::FromStart(start, size) => (start, size),
            Self::FromEnd(left, size) => (len.saturating_sub(left), size),
        };
        start..start + size
    }

    /// The value in a sample. The sample must come from a checked table.
    #[inline]
    pub fn of(self, sample: &[u8]) -> &[u8] {
        let Range { start, end } = self.within(sample.len() as u64);
        sample.get(start as usize..end as usize).unwrap_or_default()
    }
}

/// Computes the range of each column in a sample of `len` bytes from its header (`head`: at least `schema.header` bytes).
///
/// # Errors
/// A fault if the sizes do not add up to `len`.
pub fn split(schema: &Schema, head: &[u8], len: u64, out: &mut Vec<Range<u64>>) -> Result<(), Fault> {
    out.clear();
    let (mut at, mut next) = (schema.header, 0);
    for column in &schema.columns {
        let size = match column.size {
            Some(size) => size,
            None => {
                next += 4;
                u32_at(head, next - 4)
                    .ok_or_else(|| Fault::new(head.len() as u64, "the header of the sample is truncated"))?
            }
        };
        // A sum of u32 sizes cannot overflow.
        out.push(at..at + u64::from(size));
        at += u64::from(size);
    }
    match at == len {
        true => Ok(()),
        false => Err(Fault::new(0, format!("the columns of the sample have {at} bytes, the sample has {len}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Column;
    use super::*;

    proptest! {
        #[test]
        fn positions_are_those_of_split(sizes in proptest::collection::vec((any::<bool>(), 0u8..20), 0..9)) {
            let column = |(at, (is_fixed, size)): (usize, &(bool, u8))| {
                let mut column = Column::new(&at.to_string(), "bytes").unwrap();
                column.size = is_fixed.then_some((*size).into());
                column
            };
            let schema = Schema::new(sizes.iter().enumerate().map(column).collect());
            let mut head = Vec::new();
            for (_, size) in sizes.iter().filter(|(is_fixed, _)| !is_fixed) {
                head.extend(u32::from(*size).to_le_bytes());
            }
            let len = schema.header + sizes.iter().map(|(_, size)| u64::from(*size)).sum::<u64>();
            let mut ranges = Vec::new();
            split(&schema, &head, len, &mut ranges).unwrap();
            let positions = Position::of_all(&schema);
            prop_assert_eq!(positions.len(), sizes.len());
            for (at, position) in positions.into_iter().enumerate() {
                let is_fixed = |columns: &[(bool, u8)]| columns.iter().all(|(is_fixed, _)| *is_fixed);
                prop_assert_eq!(position.is_some(), is_fixed(&sizes[..=at]) || is_fixed(&sizes[at..]));
                if let Some(position) = position {
                    prop_assert_eq!(position.within(len), ranges[at].clone());
                }
            }
        }
    }
}

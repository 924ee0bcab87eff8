//! Reading columns of many samples: shard by shard, asking the system for those that are not in memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Reader;
use super::file::Cached;
use super::index::Schema;
use super::opened::Opened;
use super::shard::Position;
use crate::copy::ahead;
use crate::memory::{prefetch, with_room};
use crate::{Error, Result};

/// Samples up to this size are read whole, even if only some columns are wanted.
const WHOLE: u64 = 1 << 16;

/// Ranges of a file that are no further apart are asked for together: a disk takes as long for one more request as for this
/// many bytes (of those measured, 90,000 requests a second and 3 GB/s).
const NEAR: u64 = 1 << 15;

/// Samples that are asked for before they are read, if they are not in memory: more than a disk reads at a time.
const AHEAD: u64 = 1024;

/// Bytes that they have at most; and the share of the memory for files, which must keep them until they are read.
const AHEAD_BYTES: u64 = 32 << 20;
const AHEAD_SHARE: u64 = 8;

/// The wanted columns of the samples of shards with a schema.
struct Wanted {
    schema: Arc<Schema>,
    /// Their indices in the shard's column order.
    columns: Vec<usize>,
    /// Their positions in a sample, if all of these are known without its header.
    positions: Option<Vec<Position>>,
}

impl Wanted {
    /// The bytes of a sample in its shard that are read first.
    fn needed(&self, sample: Range<u64>) -> Range<u64> {
        let len = sample.end - sample.start;
        let within = match &self.positions {
            Some(positions) => span(positions.iter().map(|position| position.within(len))),
            None => 0..if len <= WHOLE { len } else { self.schema.header },
        };
        sample.start + within.start..sample.start + within.end
    }

    /// Prefetches the first column, if the shard is in memory.
    fn prefetch(&self, shard: &Opened, range: Range<u64>) {
        if let (Some(sample), Some([first, ..])) = (shard.bytes(&range), self.positions.as_deref()) {
            prefetch(first.of(sample));
        }
    }

    /// How many samples after the one that is visited is the one to prefetch.
    fn ahead(&self) -> usize {
        let sizes = self.columns.iter().map(|column| self.schema.columns[*column].size.unwrap_or(0) as usize);
        ahead(sizes.fold(0, usize::saturating_add))
    }
}

/// From the first byte of some ranges to the last.
fn span(ranges: impl Iterator<Item = Range<u64>> + Clone) -> Range<u64> {
    let start = ranges.clone().map(|range| range.start).min().unwrap_or(0);
    start..ranges.map(|range| range.end).max().unwrap_or(start)
}

/// Calls `visit` with the given ranges, whose starts ascend; those that are near to each other as one.
fn joined(ranges: impl Iterator<Item = Range<u64>>, mut visit: impl FnMut(Range<u64>)) {
    let mut last: Option<Range<u64>> = None;
    for range in ranges {
        match &mut last {
            Some(last) if range.start <= last.end.saturating_add(NEAR) => last.end = last.end.max(range.end),
            _ => {
                if let Some(done) = last.replace(range) {
                    visit(done);
                }
            }
        }
    }
    if let Some(done) = last {
        visit(done);
    }
}

impl Reader {
    /// How many samples to [ask for](Self::ask) before they are read; 0 if samples are not waited for.
    pub fn samples_ahead(&self) -> u64 {
        if !self.is_cold.load(Relaxed) {
            return 0;
        }
        let bytes = AHEAD_BYTES.min(self.shards.room() / AHEAD_SHARE);
        AHEAD.min(bytes / (self.shards.stored / self.len().max(1)).max(1))
    }

    /// Asks the system for columns of samples that will be read soon, and does not wait for them. Compressed shards are left to
    /// reading them, as errors are; samples and columns that do not exist are ignored.
    pub fn ask(&self, indices: &[u64], columns: &[usize]) {
        let columns: Vec<usize> = columns.iter().copied().filter(|at| *at < self.schema().columns.len()).collect();
        let Ok(mut order) = with_room(indices.len()) else { return };
        order.extend(indices.iter().copied().zip(0..));
        order.sort_unstable();
        self.is_cold.store(self.ask_for(&order, &columns), Relaxed);
    }

    /// Calls `visit(slot, column, value, coming)` for each value of `columns` in the samples `indices`; `slot` and `column` are
    /// positions in these two lists. Samples are visited shard by shard, each with all its columns: in storage order or, if
    /// the shard is in memory and `by_slot`, in that of `indices`.
    ///
    /// `value` is valid until `visit` returns. It is not copied if its shard is in memory. `coming` is a value of that column
    /// that will be visited soon, or empty.
    ///
    /// # Errors
    /// The errors of [`Reader::sample`] and of `visit`; an argument error for a column that does not exist.
    pub fn for_each_value(
        &self,
        indices: &[u64],
        columns: &[usize],
        by_slot: bool,
        mut visit: impl FnMut(usize, usize, &[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        if columns.iter().any(|column| *column >= self.schema().columns.len()) {
            return Err(Error::argument(format!(
                "the columns {columns:?} do not exist: there are {}",
                self.schema().columns.len()
            )));
        }
        let order = self.visiting_order(indices, by_slot)?;
        let mut scratch = Scratch::default();
        let mut wanted: Option<Wanted> = None;
        let mut coming = Coming { reader: self, samples: &order, columns, is_asked: order.len() < 2 };
        let mut opened = self.open_next(&order, false)?;
        while let Some(shard) = opened.take() {
            let (run, rest) = coming.samples.split_at(self.run(shard.number, coming.samples).len());
            let is_first = wanted.is_none();
            let same = wanted.take().filter(|wanted| Arc::ptr_eq(&wanted.schema, &shard.schema));
            let wanted = wanted.insert(same.unwrap_or_else(|| self.wanted(&shard.schema, columns)));
            let ahead = wanted.ahead();
            if is_first {
                run.iter().take(ahead).for_each(|(index, _)| wanted.prefetch(&shard, self.range(&shard, *index)));
            }
            // While the last samples of a shard are copied, the first ones of the next are prefetched.
            let next = self.open_next(rest, true)?;
            for (at, (index, slot)) in run.iter().enumerate() {
                let range = self.range(&shard, *index);
                if let (Some(positions), Some(sample)) = (&wanted.positions, shard.bytes(&range)) {
                    let later = match run.get(at + ahead) {
                        Some((index, _)) => shard.bytes(&self.range(&shard, *index)),
                        None => next
                            .as_ref()
                            .and_then(|next| self.in_next(next, &shard, rest.get(at + ahead - run.len())?.0)),
                    };
                    for (column, position) in positions.iter().enumerate() {
                        visit(*slot, column, position.of(sample), later.map_or(&[], |later| position.of(later)))?;
                    }
                } else {
                    let (bytes, ranges) = self.values(&shard, wanted, range, &mut coming, &mut scratch)?;
                    for (column, at) in ranges.iter().enumerate() {
                        visit(*slot, column, &bytes[at.start as usize..at.end as usize], &[])?;
                    }
                }
                coming.samples = &coming.samples[1..];
            }
            opened = match next {
                None => self.open_next(rest, false)?,
                next => next,
            };
        }
        Ok(())
    }

    /// The samples, with their positions in `indices`, in the order in which they are visited.
    fn visiting_order(&self, indices: &[u64], by_slot: bool) -> Result<Vec<(u64, usize)>> {
        // Go shard by shard, so that each is opened (and decompressed) once, and read in storage order.
        let mut order: Vec<(u64, usize)> = with_room(indices.len())?;
        order.extend(indices.iter().copied().zip(0..));
        order.sort_unstable_by_key(|(index, _)| *index);
        // Memory is read as fast in any order, and decoded values are written faster one after the other.
        let mut left = if by_slot { &mut order[..] } else { &mut [] };
        while let [(first, _), _, ..] = left {
            let (number, _) = self.locate(*first)?;
            let (run, rest) = left.split_at_mut(self.run(number, left).len());
            if self.shards.is_in_memory(number) {
                run.sort_unstable_by_key(|(_, slot)| *slot);
            }
            left = rest;
        }
        Ok(order)
    }

    /// Opens the shard of the first of some samples, given shard by shard; `early` while another one is in use, and therefore not if
    /// it is compressed: both would be in memory.
    fn open_next(&self, samples: &[(u64, usize)], early: bool) -> Result<Option<Opened>> {
        let Some((first, _)) = samples.first() else { return Ok(None) };
        let (number, _) = self.locate(*first)?;
        if early && self.shards.index.shards[number].zip.is_some() {
            return Ok(None);
        }
        self.shards.open_shard(number, self.run(number, samples).len() as u64).map(Some)
    }

    /// The range of a sample in its shard.
    fn range(&self, shard: &Opened, index: u64) -> Range<u64> {
        shard.table.range((index - self.starts[shard.number]) as usize)
    }

    /// The bytes of a sample, if it is in the shard `next`, in memory, and laid out as in `shard`.
    fn in_next<'a>(&self, next: &'a Opened, shard: &Opened, index: u64) -> Option<&'a [u8]> {
        let is_there = index < self.starts[next.number + 1] && Arc::ptr_eq(&next.schema, &shard.schema);
        is_there.then(|| next.bytes(&self.range(next, index)))?
    }

    /// The samples at the start of `samples`, given shard by shard, that are in a shard.
    fn run<'a>(&self, number: usize, samples: &'a [(u64, usize)]) -> &'a [(u64, usize)] {
        &samples[..samples.partition_point(|(index, _)| *index < self.starts[number + 1])]
    }

    fn wanted(&self, schema: &Arc<Schema>, columns: &[usize]) -> Wanted {
        let own: Vec<usize> = columns.iter().map(|column| self.position(schema, *column)).collect();
        let all = Position::of_all(schema);
        let positions = own.iter().map(|column| all[*column]).collect();
        Wanted { schema: Arc::clone(schema), columns: own, positions }
    }

    /// The bytes of the sample at `range`, and the ranges of the wanted columns in them.
    #[inline]
    fn values<'a>(
        &self,
        shard: &'a Opened,
        wanted: &Wanted,
        range: Range<u64>,
        coming: &mut Coming<'_>,
        scratch: &'a mut Scratch,
    ) -> Result<(&'a [u8], &'a [Range<u64>])> {
        let len = range.end - range.start;
        let Scratch { bytes, all, ranges } = scratch;
        ranges.clear();
        if let Some(positions) = &wanted.positions {
            ranges.extend(positions.iter().map(|position| position.within(len)));
        }
        if let Some(bytes) = shard.bytes(&range) {
            if wanted.positions.is_none() {
                self.split(shard, bytes, &range, all)?;
                ranges.extend(wanted.columns.iter().map(|column| all[*column].clone()));
            }
            return Ok((bytes, ranges));
        }
        // If the positions depend on the header, read a small sample whole, but only the header of a large one.
        let mut read = 0..0;
        if wanted.positions.is_none() {
            read = 0..if len <= WHOLE { len } else { shard.schema.header };
            self.resize(bytes, read.end, shard.number)?;
            coming.read(shard, range.start, bytes)?;
            self.split(shard, bytes, &range, all)?;
            ranges.extend(wanted.columns.iter().map(|column| all[*column].clone()));
        }
        let Range { start, end } = span(ranges.iter().cloned());
        if start < read.start || end > read.end {
            read = start..end;
            self.resize(bytes, end - start, shard.number)?;
            coming.read(shard, range.start + start, bytes)?;
        }
        ranges.iter_mut().for_each(|at| *at = at.start - read.start..at.end - read.start);
        Ok((bytes, ranges))
    }

    /// Asks the system for samples, given shard by shard, and in storage order in those on the disk. Returns true if the first one of some shard was not in memory.
    fn ask_for(&self, mut samples: &[(u64, usize)], columns: &[usize]) -> bool {
        let mut is_cold = false;
        while let Some((first, _)) = samples.first() {
            let Ok((number, _)) = self.locate(*first) else { break };
            let run = self.run(number, samples);
            samples = &samples[run.len()..];
            if self.shards.is_packed(number) {
                continue;
            }
            let Ok(shard) = self.shards.open_shard(number, 0) else { continue };
            let wanted = self.wanted(&shard.schema, columns);
            let needed = run.iter().map(|(index, _)| wanted.needed(self.range(&shard, *index)));
            let mut is_first = true;
            joined(needed, |range| {
                is_cold |= is_first && self.shards.read_cached(&shard, range.start, &mut [0]) == Cached::No;
                is_first = false;
                self.shards.will_need(&shard, range);
            });
        }
        is_cold
    }

    /// The bytes of a sample on average, in the shard of a sample.
    fn sample_bytes(&self, index: u64) -> u64 {
        self.locate(index).map_or(0, |(number, _)| {
            let shard = &self.shards.index.shards[number];
            shard.raw.bytes / shard.samples.max(1)
        })
    }
}

/// The samples of a batch that are still to be read, in the order in which they are visited.
struct Coming<'a> {
    reader: &'a Reader,
    samples: &'a [(u64, usize)],
    columns: &'a [usize],
    /// True if nothing more can be done so that reading them takes less time.
    is_asked: bool,
}

impl Coming<'_> {
    /// Reads bytes of the first of the samples. If they are not in memory, all samples are asked for.
    #[inline]
    fn read(&mut self, shard: &Opened, offset: u64, out: &mut [u8]) -> Result<()> {
        let shards = &self.reader.shards;
        if !self.is_asked {
            match shards.read_cached(shard, offset, out) {
                Cached::Yes => return Ok(()),
                cached => self.ask(cached),
            }
        }
        shards.read(shard, offset, out)
    }

    /// Has the samples brought into memory, all at once.
    #[cold]
    fn ask(&mut self, cached: Cached) {
        self.is_asked = true;
        let missed = match (cached, self.samples) {
            (Cached::No, [(index, _), ..]) => Some(self.samples.len() as u64 * self.reader.sample_bytes(*index)),
            _ => None,
        };
        if !self.reader.shards.read_ahead(missed) {
            self.reader.ask_for(self.samples, self.columns);
            self.reader.is_cold.store(!self.reader.shards.is_reading_ahead(), Relaxed);
        }
    }
}

/// Buffers that are reused from sample to sample.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    /// The ranges of all columns of a sample, and of the wanted ones.
    all: Vec<Range<u64>>,
    ranges: Vec<Range<u64>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{NEAR, joined};

    proptest! {
        #[test]
        fn near_ranges_are_joined_and_all_are_covered(
            parts in prop::collection::vec((0..3 * NEAR, 1..NEAR), 0..20),
        ) {
            let mut at = 0;
            let ranges: Vec<_> = parts.iter().map(|(gap, len)| {
                at += gap;
                at..at + len // the next one may begin inside
            }).collect();
            let mut seen = Vec::new();
            joined(ranges.iter().cloned(), |range| seen.push(range));
            for range in &ranges {
                prop_assert!(seen.iter().any(|one| one.start <= range.start && range.end <= one.end));
            }
            prop_assert!(seen.windows(2).all(|pair| pair[1].start > pair[0].end + NEAR));
            for one in &seen {
                prop_assert!(ranges.iter().any(|range| range.start == one.start));
                prop_assert!(ranges.iter().any(|range| range.end == one.end));
            }
        }
    }
}

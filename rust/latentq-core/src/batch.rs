//! Batches: reads columns of many samples into buffers, and dequantizes latents on the way.

use std::ops::Range;

use crate::copy::{Copier, ahead};
use crate::mds::Reader;
use crate::memory::{append, prefetch, resize, with_room};
use crate::quant::{FloatsMut, Quantizer, Transform, packed_len};
use crate::{Error, Result};

/// A callback that takes the slot, the column and the bytes of a value, and the bytes of a value that it will be called with
/// soon, to prefetch. They are empty if there is no such value, or it is not in memory.
pub type Visit<'a> = dyn FnMut(usize, usize, &[u8], &[u8]) -> Result<()> + 'a;

/// A random-access collection of samples.
pub trait Samples {
    /// Calls `visit(slot, column, value, coming)` for each value of `columns` in the samples `indices`, in any order; if
    /// `by_slot`, best in that of `indices`. `slot` and `column` are positions in these two lists.
    ///
    /// # Errors
    /// An argument error for a sample or column that does not exist, an I/O or format error, and any error of `visit`.
    fn for_each_value(&self, indices: &[u64], columns: &[usize], by_slot: bool, visit: &mut Visit<'_>) -> Result<()>;

    /// Says where a value is, for messages.
    fn place(&self, index: u64, column: usize) -> String;
}

impl Samples for Reader {
    fn for_each_value(&self, indices: &[u64], columns: &[usize], by_slot: bool, visit: &mut Visit<'_>) -> Result<()> {
        Reader::for_each_value(self, indices, columns, by_slot, visit)
    }

    fn place(&self, index: u64, column: usize) -> String {
        Reader::place(self, index, column)
    }
}

/// Columns in memory, each with the size in bytes of one value.
pub struct Tables<'a>(pub Vec<(usize, &'a [u8])>);

impl Tables<'_> {
    fn value(&self, index: u64, column: usize) -> Result<&[u8]> {
        let value = self.0.get(column).and_then(|(size, bytes)| {
            let start = usize::try_from(index).ok()?.checked_mul(*size)?;
            bytes.get(start..start.checked_add(*size)?)
        });
        value.ok_or_else(|| Error::argument(format!("column {column} has no sample {index}")))
    }
}

impl Samples for Tables<'_> {
    fn for_each_value(&self, indices: &[u64], columns: &[usize], _: bool, visit: &mut Visit<'_>) -> Result<()> {
        for (slot, index) in indices.iter().enumerate() {
            for (at, column) in columns.iter().enumerate() {
                let value = self.value(*index, *column)?;
                let coming = indices.get(slot + ahead(value.len())).map(|index| self.value(*index, *column));
                visit(slot, at, value, coming.transpose()?.unwrap_or_default())?;
            }
        }
        Ok(())
    }

    fn place(&self, index: u64, column: usize) -> String {
        format!("sample {index}, column {column} in memory")
    }
}

/// The output of [`gather`] for one column, in the order of the indices.
pub enum Sink<'a> {
    /// Values of exactly this many bytes.
    Fixed(usize, &'a mut [u8]),
    /// Values of any size, concatenated, and the range of each.
    Each(&'a mut Vec<u8>, &'a mut Vec<Range<usize>>),
    /// Dequantized values of packed codes. The number is the elements per channel of a sample.
    Dequantized(&'a Quantizer, usize, FloatsMut<'a>),
    /// Decoded values of samples that a transform encoded. The numbers are the height and width of a sample.
    Transformed(&'a Transform, (usize, usize), FloatsMut<'a>),
}

/// The encoded samples of a [`Sink::Transformed`], which are decoded together after all are read.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

/// Gathers the values of `columns` for the samples `indices`, which may come in any order and repeat.
///
/// # Errors
/// The errors of [`Samples::for_each_value`], an argument error if a value does not have the size of its sink, and a format
/// error if one cannot be decoded.
pub fn gather(samples: &impl Samples, indices: &[u64], columns: &[usize], sinks: &mut [Sink<'_>]) -> Result<()> {
    if columns.len() != sinks.len() {
        return Err(Error::argument(format!("{} outputs for the columns {columns:?}", sinks.len())));
    }
    let mut encoded: Vec<Encoded> = sinks.iter().map(|_| Encoded::default()).collect();
    for (sink, encoded) in sinks.iter_mut().zip(&mut encoded) {
        let fits = match sink {
            Sink::Fixed(size, out) => size.checked_mul(indices.len()) == Some(out.len()),
            Sink::Each(_, ranges) => {
                **ranges = with_room(indices.len())?;
                ranges.resize(indices.len(), 0..0);
                true
            }
            Sink::Dequantized(quantizer, plane, out) => {
                let elements = quantizer.channels().checked_mul(*plane);
                elements.and_then(|elements| elements.checked_mul(indices.len())) == Some(out.len())
            }
            Sink::Transformed(..) => {
                encoded.ranges = with_room(indices.len())?;
                encoded.ranges.resize(indices.len(), 0..0);
                true
            }
        };
        if !fits {
            return Err(Error::argument(format!("an output does not have room for exactly {} values", indices.len())));
        }
    }
    let mut waiting: Vec<Waiting> = sinks.iter().map(|_| Waiting::default()).collect();
    let mut copier = Copier::best();
    // Plain copies gain nothing from the order of the outputs, which takes a second sort.
    let by_slot = sinks.iter().any(|sink| matches!(sink, Sink::Dequantized(..)));
    samples.for_each_value(indices, columns, by_slot, &mut |slot, column, value, coming| match &mut sinks[column] {
        Sink::Fixed(size, out) if *size == value.len() => {
            copier.copy(value, coming, out, slot);
            Ok(())
        }
        Sink::Fixed(size, _) => {
            let place = samples.place(indices[slot], columns[column]);
            Err(Error::argument(format!("{place}: a value has {} bytes, the output expects {size}", value.len())))
        }
        Sink::Each(out, ranges) => {
            prefetch(coming);
            ranges[slot] = out.len()..out.len() + value.len();
            append(out, value)
        }
        Sink::Dequantized(quantizer, plane, out) => {
            let elements = quantizer.channels() * *plane;
            let size = packed_len(elements, quantizer.bits())?;
            if value.len() != size {
                let place = samples.place(indices[slot], columns[column]);
                return Err(Error::format(format!(
                    "{place}: has {} bytes, not {size} for {elements} codes",
                    value.len()
                )));
            }
            if quantizer.together(*plane) == 1 {
                let out = out.range(slot * elements..(slot + 1) * elements);
                return quantizer.dequantize_sample(value, out, *plane, coming);
            }
            let (waiting, together) = (&mut waiting[column], quantizer.together(*plane));
            resize(&mut waiting.packed, together * size)?;
            copier.copy(value, coming, &mut waiting.packed, waiting.slots.len());
            waiting.slots.push(slot);
            if waiting.slots.len() == together {
                waiting.dequantize(quantizer, *plane, out)?;
            }
            Ok(())
        }
        Sink::Transformed(..) => {
            prefetch(coming);
            let Encoded { bytes, ranges } = &mut encoded[column];
            ranges[slot] = bytes.len()..bytes.len() + value.len();
            append(bytes, value)
        }
    })?;
    for (sink, waiting) in sinks.iter_mut().zip(&mut waiting) {
        if let Sink::Dequantized(quantizer, plane, out) = sink {
            waiting.dequantize(quantizer, *plane, out)?;
        }
    }
    for ((sink, Encoded { bytes, ranges }), column) in sinks.iter_mut().zip(&encoded).zip(columns) {
        let Sink::Transformed(transform, shape, out) = sink else { continue };
        let mut values = with_room(ranges.len())?;
        values.extend(ranges.iter().map(|range| &bytes[range.clone()]));
        let all = 0..out.len();
        if let Some((slot, fault)) = transform.decode(&values, out.range(all), *shape, 1)?.first() {
            let place = samples.place(indices[*slot], *column);
            return Err(Error::format(format!("{place}: cannot be decoded: {fault}")));
        }
    }
    Ok(())
}

/// Values that are dequantized together, and their slots.
#[derive(Default)]
struct Waiting {
    slots: Vec<usize>,
    packed: Vec<u8>,
}

impl Waiting {
    fn dequantize(&mut self, quantizer: &Quantizer, plane: usize, out: &mut FloatsMut<'_>) -> Result<()> {
        if !self.slots.is_empty() {
            let len = out.len();
            let used = self.packed.len() / quantizer.together(plane) * self.slots.len();
            quantizer.dequantize_rows(&self.packed[..used], &self.slots, out.range(0..len), plane)?;
        }
        self.slots.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Samples, Sink, Tables, Visit, gather};
    use crate::quant::{FloatsMut, Isa, Quantizer, Rounding, pack, packed_len};
    use crate::{Kind, Result};

    proptest! {
        #[test]
        fn each_sink_gets_the_values_of_its_column(
            indices in prop::collection::vec(0u64..7, 0..20),
            codes in prop::collection::vec(any::<u8>(), 7 * 6),
        ) {
            let quantizer = Quantizer::affine(&[-1.0, 0.5], &[2.0, 3.0], 8, Rounding::Nearest).unwrap();
            let labels: Vec<u8> = (0..7).collect();
            let tables = Tables(vec![(6, &codes), (1, &labels)]);
            let (mut values, mut numbers) = (vec![0.0; 6 * indices.len()], vec![0; indices.len()]);
            let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
            let mut sinks = [
                Sink::Dequantized(&quantizer, 3, FloatsMut::F32(&mut values)),
                Sink::Fixed(1, &mut numbers),
                Sink::Each(&mut bytes, &mut ranges),
            ];
            gather(&tables, &indices, &[0, 1, 1], &mut sinks).unwrap();
            let rows: Vec<u8> =
                indices.iter().flat_map(|index| codes[6 * *index as usize..][..6].to_vec()).collect();
            let mut expected = vec![0.0; rows.len()];
            quantizer.dequantize(&rows, FloatsMut::F32(&mut expected), 3, 1).unwrap();
            prop_assert_eq!(values, expected);
            prop_assert!(numbers.iter().zip(&indices).all(|(number, index)| u64::from(*number) == *index));
            prop_assert!(ranges.iter().zip(&numbers).all(|(range, number)| bytes[range.clone()] == [*number]));
        }
    }

    proptest! {
        #[test]
        fn samples_decoded_in_pieces_have_the_values_of_whole_ones(
            indices in prop::collection::vec(0usize..5, 1..9),
            bits in 2u32..=8,
            plane in 1usize..700,
            seed in any::<u32>(),
        ) {
            let quantizer = Quantizer::affine(&[-1.0, 0.5], &[2.0, 3.0], bits, Rounding::Nearest).unwrap();
            let (elements, size) = (2 * plane, packed_len(2 * plane, bits).unwrap());
            let code = |i: u32| ((i ^ seed).wrapping_mul(0x9e37_79b1) >> (32 - bits)) as u8;
            let codes: Vec<u8> = (0..5 * elements as u32).map(code).collect();
            let mut rows = vec![0; 5 * size];
            pack(&codes, &mut rows, elements, bits, 1).unwrap();
            let chosen: Vec<u8> = indices.iter().flat_map(|index| codes[index * elements..][..elements].to_vec()).collect();
            let tables = Tables(vec![(size, &rows)]);
            let indices: Vec<u64> = indices.into_iter().map(|index| index as u64).collect();
            let (mut values, mut expected) = (vec![0.0; chosen.len()], vec![1.0; chosen.len()]);
            let mut sinks = [Sink::Dequantized(&quantizer, plane, FloatsMut::F32(&mut values))];
            gather(&tables, &indices, &[0], &mut sinks).unwrap();
            quantizer.dequantize(&chosen, FloatsMut::F32(&mut expected), plane, 1).unwrap();
            prop_assert_eq!(values, expected);
            let (mut halves, mut expected) = (vec![0; chosen.len()], vec![1; chosen.len()]);
            let mut sinks = [Sink::Dequantized(&quantizer, plane, FloatsMut::BF16(&mut halves))];
            gather(&tables, &indices, &[0], &mut sinks).unwrap();
            quantizer.dequantize(&chosen, FloatsMut::BF16(&mut expected), plane, 1).unwrap();
            prop_assert_eq!(halves, expected);
        }

        #[test]
        fn a_trellis_of_many_levels_decodes_samples_together(
            indices in prop::collection::vec(0u64..9, 0..40),
            bits in 6u32..=8,
            plane in 1usize..70,
            seed in any::<u32>(),
        ) {
            let size = 2usize << bits;
            let levels: Vec<f32> = (0..32 * size).map(|i| (i % size) as f32 * 0.37 - (i / size) as f32).collect();
            let quantizer = Quantizer::trellis(&levels, bits).unwrap();
            prop_assert!(quantizer.together(plane) > 1);
            let (elements, bytes) = (32 * plane, packed_len(32 * plane, bits).unwrap());
            let rows: Vec<u8> =
                (0..9 * bytes as u32).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
            let tables = Tables(vec![(bytes, &rows)]);
            let mut values = vec![0.0; indices.len() * elements];
            let mut sinks = [Sink::Dequantized(&quantizer, plane, FloatsMut::F32(&mut values))];
            gather(&tables, &indices, &[0], &mut sinks).unwrap();
            let mut expected = vec![0.0; elements];
            for (values, index) in values.chunks(elements).zip(&indices) {
                let packed = &rows[*index as usize * bytes..][..bytes];
                quantizer.dequantize_with(Isa::Baseline, packed, FloatsMut::F32(&mut expected), plane, true, 1).unwrap();
                prop_assert_eq!(values, &expected);
            }
            // Two values of wrong sizes are not taken for two of the right size.
            let wrong = [rows[..bytes - 1].to_vec(), rows[..bytes + 1].to_vec()].concat();
            let mut values = vec![0.0; 2 * elements];
            let mut sinks = [Sink::Dequantized(&quantizer, plane, FloatsMut::F32(&mut values))];
            let each = Each(vec![&wrong[..bytes - 1], &wrong[bytes - 1..]]);
            let error = gather(&each, &[0, 1], &[0], &mut sinks).unwrap_err();
            prop_assert_eq!(error.kind(), Kind::Format);
            prop_assert!(error.to_string().starts_with("value 0 of 0: has "), "{}", error);
        }
    }

    /// Values of any size.
    struct Each<'a>(Vec<&'a [u8]>);

    impl Samples for Each<'_> {
        fn for_each_value(&self, indices: &[u64], columns: &[usize], _: bool, visit: &mut Visit<'_>) -> Result<()> {
            indices
                .iter()
                .enumerate()
                .try_for_each(|(slot, index)| visit(slot, columns[0], self.0[*index as usize], &[]))
        }

        fn place(&self, index: u64, column: usize) -> String {
            format!("value {index} of {column}")
        }
    }

    #[test]
    fn missing_samples_and_mismatched_sizes_are_errors() {
        let tables = Tables(vec![(2, &[1, 2, 3, 4])]);
        let refused = |indices: &[u64], columns: &[usize], size: usize, room: usize| {
            gather(&tables, indices, columns, &mut [Sink::Fixed(size, &mut vec![0; room])]).is_err()
        };
        assert!(!refused(&[1, 0], &[0], 2, 4));
        assert!(refused(&[2], &[0], 2, 2));
        assert!(refused(&[u64::MAX], &[0], 2, 2));
        assert!(refused(&[0], &[1], 2, 2));
        assert!(refused(&[0], &[0], 1, 1));
        assert!(refused(&[0], &[0], 2, 4));
        assert!(refused(&[0], &[0, 0], 2, 2));
    }
}

//! Any bytes as packed codes of a trellis: the same values on every instruction set, alone, together and in any rows.
#![no_main]

use latentq_core::quant::{FloatsMut, Isa, Quantizer, packed_len};
use libfuzzer_sys::fuzz_target;

const CHANNELS: usize = 32;
const SAMPLES: usize = 3;

fuzz_target!(|data: &[u8]| {
    let [first, second, data @ ..] = data else { return };
    let (bits, plane) = (2 + u32::from(first % 7), 1 + usize::from(second % 80));
    let size = 2usize << bits;
    let levels: Vec<f32> = (0..CHANNELS * size).map(|i| (i % size) as f32 * 0.37 - (i / size) as f32).collect();
    let quantizer = Quantizer::trellis(&levels, bits).expect("ascending levels");
    let elements = CHANNELS * plane;
    let bytes = packed_len(elements, bits).expect("a small sample");
    let mut packed = data.to_vec();
    packed.resize(SAMPLES * bytes, 0);
    let mut expected: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let mut values = vec![1.0; SAMPLES * elements];
        quantizer.dequantize_with(isa, &packed, FloatsMut::F32(&mut values), plane, true, 1).expect("packed codes");
        assert_eq!(*expected.get_or_insert_with(|| values.clone()), values);
    }
    let mut rows = vec![1.0; SAMPLES * elements];
    quantizer.dequantize_rows(&packed, &[2, 0, 1], FloatsMut::F32(&mut rows), plane).expect("three rows");
    rows.rotate_left(2 * elements);
    assert_eq!(expected, Some(rows));
    // Any other number of bytes is an error.
    let mut values = vec![0.0; SAMPLES * elements];
    let result = quantizer.dequantize_packed(data, FloatsMut::F32(&mut values), plane, 1);
    assert_eq!(result.is_ok(), data.len() == SAMPLES * bytes);
});

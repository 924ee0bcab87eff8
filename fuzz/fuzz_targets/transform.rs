//! Any bytes as encoded samples, or changes to the bytes of good ones: a fault or values, the same on every instruction set, side
//! by side or alone.
#![no_main]

use std::sync::LazyLock;

use latentq_core::quant::{Floats, FloatsMut, Isa, NumbersMut, Transform, TransformCalibrator};
use libfuzzer_sys::fuzz_target;

const SHAPES: [(usize, usize); 3] = [(8, 8), (9, 13), (16, 8)];
const CHANNELS: usize = 5;

/// Waves, some of them strong, so that there are low bits.
fn waves(elements: usize) -> Vec<f32> {
    (0..elements).map(|i| ((i * i) as f32 * 0.37).sin() * (1 << (i / 64 % CHANNELS * 3)) as f32).collect()
}

/// Good samples of each shape.
static GOOD: LazyLock<[Vec<Vec<u8>>; 3]> = LazyLock::new(|| {
    SHAPES.map(|shape| {
        let x = waves(9 * CHANNELS * shape.0 * shape.1);
        let encoded = TRANSFORM.encode(Floats::F32(&x), shape, None, 1).expect("samples");
        let mut rest = &encoded.bytes[..];
        let cut = |length: &usize| rest.split_off(..*length).expect("all bytes").to_vec();
        encoded.lengths.iter().map(cut).collect()
    })
});

static TRANSFORM: LazyLock<Transform> = LazyLock::new(|| {
    let x = waves(40 * CHANNELS * 64);
    let mut calibrator = TransformCalibrator::new(CHANNELS).expect("five channels");
    calibrator.update(Floats::F32(&x), (8, 8)).expect("whole samples");
    Transform::new(calibrator.tables(4.0, None).expect("samples")).expect("its own tables")
});

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let shape = SHAPES[usize::from(first) % SHAPES.len()];
    let elements = CHANNELS * shape.0 * shape.1;
    // Cut in samples of one length, so that several are side by side.
    let length = (usize::from(first) * 8).max(1);
    let changed: Vec<Vec<u8>> = data
        .chunks(length)
        .zip(&GOOD[usize::from(first) % SHAPES.len()])
        .map(|(changes, good)| {
            let mut row = good.clone();
            row.iter_mut().zip(changes).for_each(|(byte, change)| *byte ^= change);
            row
        })
        .collect();
    let samples: Vec<&[u8]> = match first {
        128.. => changed.iter().map(|row| &row[..]).collect(),
        _ => data.chunks(length).take(9).collect(),
    };
    let mut expected = None;
    for isa in Isa::available() {
        let mut values = vec![1.0; samples.len() * elements];
        let bad = TRANSFORM.decode_with(isa, &samples, FloatsMut::F32(&mut values), shape, 1).expect("one shape");
        let result: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
        assert_eq!(*expected.get_or_insert_with(|| (result.clone(), bad.clone())), (result, bad));
    }
    for sample in &samples {
        let (mut numbers, mut step) = (vec![0; elements], [0.0]);
        TRANSFORM.decode_numbers(&[sample], NumbersMut::I32(&mut numbers), &mut step, shape, 1).expect("one shape");
    }
});

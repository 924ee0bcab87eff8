//! Prints how long each instruction set of this processor takes to encode and decode by a transform, per element on one
//! thread: the least of some runs. The samples are as large as those of f32c32 (32 x 8 x 8) and f8c32 (32 x 32 x 32), and
//! smooth, so that the tables differ between bands. With the path of a file of float32 values and a shape
//! (`transform_rate FILE 32 8 8`), those are measured instead.

use std::time::Instant;

use latentq_core::quant::{Floats, FloatsMut, Isa, NumbersMut, Transform, TransformCalibrator};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [path, channels, height, width] = &arguments[..] {
        let bytes = std::fs::read(path).expect("a readable file");
        let x: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let number = |text: &String| text.parse().expect("a number");
        return measure(&x, number(channels), (number(height), number(width)));
    }
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    for (samples, channels, side) in [(160, 32, 8), (32, 32, 32)] {
        let mut x = Vec::new();
        for _ in 0..samples {
            for channel in 0..channels {
                let (slope, strength) = (noise(), 1.0 + channel as f32 / 8.0);
                for at in 0..side * side {
                    let place = (at / side) as f32 * slope + (at % side) as f32 * 0.3;
                    x.push(strength * place.sin() + noise() + noise());
                }
            }
        }
        measure(&x, channels, (side, side));
    }
}

fn measure(x: &[f32], channels: usize, shape: (usize, usize)) {
    let sample = channels * shape.0 * shape.1;
    let mut calibrator = TransformCalibrator::new(channels).expect("few channels");
    calibrator.update(Floats::F32(x), shape).expect("whole samples");
    let x = &x[..x.len().min(2 << 20) / sample * sample];
    for rate in [2.0, 3.0, 4.0, 6.0, 8.0] {
        let transform = Transform::new(calibrator.tables(rate, None).expect("samples")).expect("tables");
        let budget = sample * rate as usize / 8;
        for isa in Isa::available() {
            let mut best = [f64::INFINITY; 4];
            let (mut length, mut largest, mut numbers) = (0, 0, vec![0i16; x.len()]);
            let (mut values, mut error, mut signal) = (vec![0.0; x.len()], 0.0, 0.0);
            for _ in 0..3 {
                let mut time = |slot: usize, start: Instant| best[slot] = best[slot].min(start.elapsed().as_secs_f64());
                let start = Instant::now();
                let fixed = transform.encode_with(isa, Floats::F32(x), shape, Some(budget), 1).expect("samples");
                time(1, start);
                assert!(fixed.bad.is_empty(), "{:?}", fixed.bad);
                let start = Instant::now();
                let each = transform.encode_with(isa, Floats::F32(x), shape, None, 1).expect("samples");
                time(0, start);
                length = each.bytes.len();
                largest = each.lengths.iter().copied().max().unwrap_or(0);
                let rows: Vec<&[u8]> = fixed.bytes.chunks(budget).collect();
                for _ in 0..5 {
                    let start = Instant::now();
                    transform.decode_with(isa, &rows, FloatsMut::F32(&mut values), shape, 1).expect("samples");
                    time(2, start);
                    let start = Instant::now();
                    let mut steps = vec![0.0; rows.len()];
                    transform.decode_numbers(&rows, NumbersMut::I16(&mut numbers), &mut steps, shape, 1).expect("rows");
                    time(3, start);
                }
                (error, signal) = (0.0, 0.0);
                for (x, value) in x.iter().zip(&values) {
                    error += f64::from(x - value).powi(2);
                    signal += f64::from(*x).powi(2);
                }
            }
            let [encode, budgeted, decode, integers] = best.map(|seconds| seconds * 1e9 / x.len() as f64);
            println!(
                "{channels} x {} x {}, {rate} bits, {isa:?}: encode {encode:.1} ns, with a budget {budgeted:.1} ns; decode \
                 {decode:.2} ns, to integers with the best {integers:.2} ns; {:.3} bits without a budget, at most {largest} \
                 bytes; {:.2} dB with one",
                shape.0,
                shape.1,
                length as f64 * 8.0 / x.len() as f64,
                10.0 * (signal / error).log10()
            );
        }
    }
}

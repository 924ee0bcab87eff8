//! Prints how long each instruction set of this processor takes to encode and decode by a trellis, per element on one
//! thread: the least of 50 runs. The samples are those of f32c32 (32 x 8 x 8) and of f8c32 (32 x 32 x 32).

use std::time::Instant;

use latentq_core::quant::{Floats, FloatsMut, Isa, Quantizer, packed_len};

const CHANNELS: usize = 32;

fn main() {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    for (samples, plane) in [(64, 64), (16, 1024)] {
        // Sums of four are close enough to a normal distribution.
        let x: Vec<f32> =
            (0..samples * CHANNELS * plane).map(|_| uniform() + uniform() + uniform() + uniform()).collect();
        for bits in [2, 3, 4, 5, 6, 8] {
            let size = 2usize << bits;
            let levels: Vec<f32> =
                (0..CHANNELS * size).map(|i| ((i % size) as f32 + 0.5) / size as f32 * 6.0 - 3.0).collect();
            let quantizer = Quantizer::trellis(&levels, bits).expect("ascending levels");
            let mut packed = vec![0; samples * packed_len(CHANNELS * plane, bits).expect("a small sample")];
            let mut values = vec![0.0; x.len()];
            for isa in Isa::available() {
                let (mut encode, mut decode) = (f64::INFINITY, f64::INFINITY);
                for _ in 0..50 {
                    let start = Instant::now();
                    quantizer.quantize_with(isa, Floats::F32(&x), &mut packed, plane, true, 1).expect("finite values");
                    encode = encode.min(start.elapsed().as_secs_f64());
                    let start = Instant::now();
                    let out = FloatsMut::F32(&mut values);
                    quantizer.dequantize_with(isa, &packed, out, plane, true, 1).expect("packed codes");
                    decode = decode.min(start.elapsed().as_secs_f64());
                }
                let each = |seconds: f64| seconds * 1e9 / x.len() as f64;
                println!(
                    "{samples} x {CHANNELS} x {plane}, {bits} bits, {isa:?}: encode {:.2} ns, decode {:.3} ns",
                    each(encode),
                    each(decode)
                );
            }
        }
    }
}

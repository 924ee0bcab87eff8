//! Seconds of quantizing and dequantizing 16 Mi values on one thread, with each instruction set, next to plain reads and
//! writes of the same memory: the median of some rounds in turns. `quantize_rate ROUNDS OFFSET WORDS`: arrays start OFFSET
//! bytes after a page, and only what has all of the words in its name is measured.

use std::hint::black_box;
use std::time::Instant;

use latentq_core::quant::{Floats, FloatsMut, Isa, Quantizer, Rounding, packed_len};

const LEN: usize = 16 << 20;
const CHANNELS: usize = 4;
const PLANE: usize = 1024;

fn array<T: Copy>(value: impl Fn(usize) -> T, offset: usize) -> &'static mut [T] {
    let page = 4096 / size_of::<T>();
    let array = Vec::from_iter((0..LEN + 2 * page).map(value)).leak();
    let start = array.as_ptr().align_offset(4096) + offset / size_of::<T>();
    &mut array[start..start + LEN]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, otherwise| arguments.get(at).map_or(otherwise, |text| text.parse().expect("a number"));
    let (rounds, offset, words) = (number(0, 15), number(1, 0), &arguments[arguments.len().min(2)..]);
    let value = |i: usize| (i as u32).wrapping_mul(0x9e37_79b1) as f32 / (1u64 << 32) as f32 * 26.0 - 13.0;
    let x = &*array(value, offset);
    let half = &*array(|i| half_bits(value(i)), offset);
    let brain = &*array(|i| (value(i).to_bits() >> 16) as u16, offset);
    let (out_x, out_half, codes) = (array(|_| 0f32, offset), array(|_| 0u16, offset), array(|_| 0u8, offset));
    let packed = array(|_| 0u8, offset);
    let uniform =
        |bits| Quantizer::affine(&[-14.0; CHANNELS], &[14.0; CHANNELS], bits, Rounding::Nearest).expect("a quantizer");
    let levels: Vec<f32> = (0..CHANNELS * 256).map(|i| (i % 256) as f32 / 9.0 - 14.0).collect();
    let book = Quantizer::codebook(&levels, 8).expect("a codebook");
    let (eight, six, four) = (uniform(8), uniform(6), uniform(4));
    eight.quantize(Floats::F32(x), codes, PLANE, 1).expect("codes");
    let bytes = |bits| LEN / (CHANNELS * PLANE) * packed_len(CHANNELS * PLANE, bits).expect("a length");
    let (bytes_six, bytes_four) = (bytes(6), bytes(4));

    let mut names: Vec<String> = Vec::new();
    let mut seconds: Vec<Vec<f64>> = Vec::new();
    for round in 0..rounds {
        let mut at = 0;
        let mut time = |name: String, work: &mut dyn FnMut()| {
            if !words.iter().all(|word| name.split(' ').any(|own| own == word)) {
                return;
            }
            work(); // so that nobody pays for writing back what the one before left in the caches
            let start = Instant::now();
            work();
            let took = start.elapsed().as_secs_f64();
            if round == 0 {
                names.push(name);
                seconds.push(Vec::new());
            }
            seconds[at].push(took);
            at += 1;
        };
        time("read".into(), &mut || {
            let mut most = [0f32; 64];
            for x in x.as_chunks::<64>().0 {
                most.iter_mut().zip(x).for_each(|(most, x)| *most = if *x > *most { *x } else { *most });
            }
            black_box(most);
        });
        time("fill".into(), &mut || out_x.fill(black_box(1.0)));
        for isa in Isa::available() {
            let mut quantize = |name: &str, quantizer: &Quantizer, x: Floats<'_>, bytes: Option<usize>| {
                time(format!("{isa:?} quantize {name}"), &mut || {
                    let (out, is_packed) = (&mut packed[..bytes.unwrap_or(LEN)], bytes.is_some());
                    black_box(quantizer.quantize_with(isa, x, out, PLANE, is_packed, 1).expect("codes"));
                });
            };
            quantize("f32", &eight, Floats::F32(x), None);
            quantize("f16", &eight, Floats::F16(half), None);
            quantize("bf16", &eight, Floats::BF16(brain), None);
            quantize("6 bits", &six, Floats::F32(x), Some(bytes_six));
            quantize("4 bits", &four, Floats::F32(x), Some(bytes_four));
            quantize("codebook", &book, Floats::F32(x), None);
            time(format!("{isa:?} dequantize f32"), &mut || {
                eight.dequantize_with(isa, codes, FloatsMut::F32(out_x), PLANE, false, 1).expect("values");
            });
            time(format!("{isa:?} dequantize f16"), &mut || {
                eight.dequantize_with(isa, codes, FloatsMut::F16(out_half), PLANE, false, 1).expect("values");
            });
            time(format!("{isa:?} dequantize bf16"), &mut || {
                eight.dequantize_with(isa, codes, FloatsMut::BF16(out_half), PLANE, false, 1).expect("values");
            });
            time(format!("{isa:?} dequantize 6 bits"), &mut || {
                six.dequantize_with(isa, &packed[..bytes_six], FloatsMut::F32(out_x), PLANE, true, 1).expect("values");
            });
            time(format!("{isa:?} dequantize 4 bits"), &mut || {
                four.dequantize_with(isa, &packed[..bytes_four], FloatsMut::F32(out_x), PLANE, true, 1)
                    .expect("values");
            });
            time(format!("{isa:?} dequantize codebook"), &mut || {
                book.dequantize_with(isa, codes, FloatsMut::F32(out_x), PLANE, false, 1).expect("values");
            });
        }
    }
    for (name, seconds) in names.iter().zip(&mut seconds) {
        seconds.sort_by(f64::total_cmp);
        println!("{name:28} {:8.2} ms, least {:8.2} ms", 1e3 * seconds[seconds.len() / 2], 1e3 * seconds[0]);
    }
}

/// The bits of a float16, truncated.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = (bits & 0x7fff_ffff).saturating_sub((127 - 15) << 23) >> 13;
    (bits >> 16 & 0x8000) as u16 | magnitude as u16
}

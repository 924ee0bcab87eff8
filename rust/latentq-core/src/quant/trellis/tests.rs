//! The kernels against the definition, one sample and one value at a time.

use proptest::prelude::*;

use super::MOST;
use crate::quant::arch::Isa;
use crate::quant::floats::{BF16, F16, Float, Floats, FloatsMut};
use crate::quant::kernel::LABELS;
use crate::quant::{Quantizer, pack, packed_len};

/// Levels, bits and channels of a quantizer, as the definition needs them.
#[derive(Clone, Debug)]
struct Defined {
    levels: Vec<Vec<f32>>,
    bits: u32,
}

impl Defined {
    fn quantizer(&self) -> Quantizer {
        Quantizer::trellis(&self.levels.concat(), self.bits).unwrap()
    }

    /// The number of the nearest level of a label.
    fn nearest(&self, channel: usize, label: usize, x: f32) -> usize {
        let levels: Vec<f32> = self.levels[channel].iter().copied().skip(label).step_by(LABELS).collect();
        let bounds = levels.windows(2).map(|pair| ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32);
        LABELS * bounds.filter(|bound| *bound < x).count() + label
    }

    /// The codes of a sample, and the numbers of its levels.
    fn encode(&self, x: &[f32]) -> (Vec<u8>, Vec<usize>) {
        let plane = x.len() / self.levels.len();
        // A state is the last three u: (u[i-1], u[i-2], u[i-3]) in bits 0, 1 and 2.
        let label = |from: usize, to: usize| {
            let (u, u1, u2, u3) = (to & 1, from & 1, from >> 1 & 1, from >> 2 & 1);
            2 * (u ^ u1 ^ u3) + u2
        };
        let mut metric = [1e30f32; 8];
        metric[0] = 0.0;
        let mut choices = Vec::new();
        for (i, x) in x.iter().enumerate() {
            let costs: Vec<f32> = (0..4)
                .map(|label| {
                    let error = x - self.levels[i / plane][self.nearest(i / plane, label, *x)];
                    error * error
                })
                .collect();
            let (mut next, mut choice) = ([0.0; 8], [0; 8]);
            for to in 0..8 {
                let paths = [to >> 1, to >> 1 | 4].map(|from| metric[from] + costs[label(from, to)]);
                choice[to] = if paths[1] < paths[0] && i >= 3 { to >> 1 | 4 } else { to >> 1 };
                next[to] = if paths[1] < paths[0] { paths[1] } else { paths[0] };
            }
            let least = next.iter().copied().fold(f32::INFINITY, f32::min);
            metric = next.map(|next| next - least);
            choices.push(choice);
        }
        let ends = 1 << x.len().min(3);
        let mut state = (0..ends).fold(0, |best, state| if metric[state] < metric[best] { state } else { best });
        let (mut codes, mut numbers) = (vec![0; x.len()], vec![0; x.len()]);
        for i in (0..x.len()).rev() {
            let from = choices[i][state];
            numbers[i] = self.nearest(i / plane, label(from, state), x[i]);
            codes[i] = (2 * (numbers[i] >> 2) + (state & 1)) as u8;
            state = from;
        }
        assert_eq!(state, 0);
        (codes, numbers)
    }
}

fn defined() -> impl Strategy<Value = Defined> {
    let scale = prop_oneof![6 => Just(1f32), 1 => Just(1e-6), 1 => Just(1e6), 1 => Just(1e17), 1 => Just(1e37)];
    (2u32..=8, 1usize..4, scale, any::<bool>()).prop_flat_map(|(bits, channels, scale, constant)| {
        let levels = proptest::collection::vec(-11f32..11.0, 2 << bits).prop_map(move |mut levels| {
            levels.sort_by(f32::total_cmp);
            let first = levels[0];
            levels.iter().map(|level| scale * if constant { first } else { *level }).collect()
        });
        proptest::collection::vec(levels, channels).prop_map(move |levels| Defined { levels, bits })
    })
}

fn samples() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let plane = prop_oneof![2 => 1usize..8, 1 => 60usize..70, 1 => 120usize..140];
    (plane, 1usize..36).prop_flat_map(|(plane, samples)| {
        let value = prop_oneof![40 => -12f32..12.0, 1 => any::<f32>()];
        (Just(plane), Just(samples), proptest::collection::vec(value, samples * 3 * plane))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_instruction_set_gives_the_codes_and_values_of_the_definition(
        defined in defined(),
        (plane, samples, mut x) in samples(),
        finite in any::<bool>(),
    ) {
        let (channels, bits, quantizer) = (defined.levels.len(), defined.bits, defined.quantizer());
        let sample = channels * plane;
        x.truncate(samples * sample);
        if finite {
            x.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 1.5);
        }
        let (mut codes, mut values) = (vec![0; x.len()], vec![0.0; x.len()]);
        let (mut bad, mut clipped) = (Vec::new(), vec![0; channels]);
        for (number, x) in x.chunks(sample).enumerate() {
            let at = number * sample;
            if let Some(wrong) = x.iter().position(|x| !x.is_finite()) {
                bad.push((number, wrong / plane));
                continue;
            }
            let (sample_codes, numbers) = defined.encode(x);
            codes[at..at + sample].copy_from_slice(&sample_codes);
            for (i, (x, level)) in x.iter().zip(numbers).enumerate() {
                let levels = &defined.levels[i / plane];
                values[at + i] = levels[level];
                clipped[i / plane] += u64::from(*x < levels[0] || *x > levels[levels.len() - 1]);
            }
        }
        let bytes = packed_len(sample, bits).unwrap();
        let mut packed = vec![1; samples * bytes];
        pack(&codes, &mut packed, sample, bits, 1).unwrap();
        for isa in Isa::available() {
            for threads in [1, 3] {
                for (is_packed, expected) in [(false, &codes), (true, &packed)] {
                    let mut out = vec![1; expected.len()];
                    let seen = quantizer.quantize_with(isa, Floats::F32(&x), &mut out, plane, is_packed, threads).unwrap();
                    prop_assert_eq!(&out, expected, "{:?}", isa);
                    prop_assert_eq!((&seen.bad, &seen.clipped), (&bad, &clipped), "{:?}", isa);
                    let mut back = vec![1.0; x.len()];
                    quantizer.dequantize_with(isa, &out, FloatsMut::F32(&mut back), plane, is_packed, threads).unwrap();
                    for (number, (back, values)) in back.chunks(sample).zip(values.chunks(sample)).enumerate() {
                        prop_assert!(bad.iter().any(|bad| bad.0 == number) || back == values, "{:?}", isa);
                    }
                }
            }
        }
    }

    #[test]
    fn other_float_types_are_rounded_values_of_32_bits(defined in defined(), (plane, samples, x) in samples()) {
        let quantizer = defined.quantizer();
        let x = &x[..samples * defined.levels.len() * plane];
        let encode = |isa, x: Floats<'_>| {
            let mut out = vec![0; x.len()];
            let counts = quantizer.quantize_with(isa, x, &mut out, plane, false, 1).unwrap();
            (out, counts)
        };
        let half: Vec<u16> = x.iter().map(|x| F16::narrow(*x)).collect();
        let bfloat: Vec<u16> = x.iter().map(|x| BF16::narrow(*x)).collect();
        let double: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for isa in Isa::available() {
            let widened = |widen: fn(u16) -> f32, bits: &[u16]| bits.iter().map(|bits| widen(*bits)).collect::<Vec<_>>();
            let (codes, _) = encode(isa, Floats::F16(&half));
            prop_assert_eq!(&codes, &encode(isa, Floats::F32(&widened(F16::widen, &half))).0);
            prop_assert_eq!(encode(isa, Floats::BF16(&bfloat)), encode(isa, Floats::F32(&widened(BF16::widen, &bfloat))));
            prop_assert_eq!(encode(isa, Floats::F64(&double)), encode(isa, Floats::F32(x)));
            let (mut wide, mut narrow) = (vec![0.0; x.len()], vec![0; x.len()]);
            quantizer.dequantize_with(isa, &codes, FloatsMut::F32(&mut wide), plane, false, 1).unwrap();
            quantizer.dequantize_with(isa, &codes, FloatsMut::F16(&mut narrow), plane, false, 1).unwrap();
            prop_assert_eq!(&narrow, &wide.iter().map(|x| F16::narrow(*x)).collect::<Vec<_>>());
            quantizer.dequantize_with(isa, &codes, FloatsMut::BF16(&mut narrow), plane, false, 1).unwrap();
            prop_assert_eq!(&narrow, &wide.iter().map(|x| BF16::narrow(*x)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_codes_are_counted_by_level(
        defined in defined(),
        codes in proptest::collection::vec(any::<u8>(), 0..400),
        plane in 1usize..50,
    ) {
        let (channels, bits, quantizer) = (defined.levels.len(), defined.bits, defined.quantizer());
        let sample = channels * plane;
        let codes: Vec<u8> = codes.into_iter().map(|code| code >> (8 - bits)).collect();
        let codes = &codes[..codes.len() / sample * sample];
        let mut counts = vec![0; channels * (2 << bits)];
        for codes in codes.chunks(sample) {
            for (i, number) in numbers(codes).enumerate() {
                counts[i / plane * (2 << bits) + number] += 1;
            }
        }
        let mut seen = vec![0; counts.len()];
        quantizer.histogram(codes, &mut seen, plane).unwrap();
        prop_assert_eq!(seen, counts);
    }
}

/// The number of the level of each code of a sample, by the recursion.
fn numbers(codes: &[u8]) -> impl Iterator<Item = usize> {
    let u = |i: usize, distance: usize| i.checked_sub(distance).map_or(0, |i| usize::from(codes[i] & 1));
    (0..codes.len()).map(move |i| 4 * usize::from(codes[i] >> 1) + 2 * (u(i, 0) ^ u(i, 1) ^ u(i, 3)) + u(i, 2))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn samples_of_any_size_decode_to_any_float_type(
        defined in defined(),
        plane in prop_oneof![1usize..300, 1400usize..2100],
        samples in 1usize..20,
        is_packed in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (bits, quantizer, sample) = (defined.bits, defined.quantizer(), defined.levels.len() * plane);
        let random = |i: u64| (seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).wrapping_mul(0xd6e8_feb9);
        let codes: Vec<u8> = (0..(samples * sample) as u64).map(|i| (random(i) >> 16) as u8 >> (8 - bits)).collect();
        let level = |(i, number): (usize, usize)| defined.levels[i / plane][number];
        let values: Vec<f32> = codes.chunks(sample).flat_map(|codes| numbers(codes).enumerate().map(level)).collect();
        let half: Vec<u16> = values.iter().map(|x| F16::narrow(*x)).collect();
        let bfloat: Vec<u16> = values.iter().map(|x| BF16::narrow(*x)).collect();
        let mut stored = vec![0; samples * packed_len(sample, bits).unwrap()];
        pack(&codes, &mut stored, sample, bits, 1).unwrap();
        let stored = if is_packed { &stored } else { &codes };
        for isa in Isa::available() {
            for threads in [1, 3] {
                let (mut wide, mut narrow) = (vec![1.0; codes.len()], vec![1; codes.len()]);
                let decode = |out: FloatsMut<'_>| quantizer.dequantize_with(isa, stored, out, plane, is_packed, threads);
                decode(FloatsMut::F32(&mut wide)).unwrap();
                prop_assert!(wide == values, "{:?}", isa);
                decode(FloatsMut::F16(&mut narrow)).unwrap();
                prop_assert!(narrow == half, "{:?}", isa);
                decode(FloatsMut::BF16(&mut narrow)).unwrap();
                prop_assert!(narrow == bfloat, "{:?}", isa);
            }
        }
    }
}

#[test]
fn invalid_levels_and_arrays_are_errors() {
    let ascending: Vec<f32> = (0..MOST as u16).map(f32::from).collect();
    for bits in 2..=8 {
        let levels = &ascending[..2 << bits];
        assert!(Quantizer::trellis(levels, bits).is_ok());
        assert!(Quantizer::trellis(&levels[1..], bits).is_err());
        for wrong in [f32::NAN, f32::INFINITY, -1.0] {
            let mut levels = levels.to_vec();
            levels[3] = wrong;
            assert!(Quantizer::trellis(&levels, bits).is_err());
        }
    }
    assert!(Quantizer::trellis(&[], 4).is_err());
    assert!(Quantizer::trellis(&ascending[..4], 1).is_err());
    assert!(Quantizer::trellis(&[ascending.clone(), ascending.clone()].concat(), 9).is_err());
    let quantizer = Quantizer::trellis(&ascending[..32], 4).unwrap();
    for (plane, len) in [(3, 11), (4, 13), (0, 12), (usize::MAX, 12)] {
        assert!(quantizer.quantize(Floats::F32(&[0.5; 12]), &mut vec![0; len], plane, 1).is_err());
        assert!(quantizer.dequantize(&vec![0; len], FloatsMut::F32(&mut [0.0; 12]), plane, 1).is_err());
    }
    assert!(quantizer.quantize(Floats::F32(&[]), &mut [], 0, 1).is_ok());
    assert!(quantizer.dequantize(&[1, 2, 16], FloatsMut::F32(&mut [0.0; 3]), 3, 1).is_err());
    assert!(quantizer.histogram(&[1, 2, 16], &mut [0; 32], 3).is_err());
    assert!(quantizer.histogram(&[1, 2, 3], &mut [0; 16], 3).is_err());
}

//! The kernels against the definition, one sample and one element at a time, and damaged bytes.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::order::Plan;
use super::rates::{LAMBDA, Rates};
use super::tables::{DCT, MANTISSA};
use super::*;
use crate::quant::arch::Isa;
use crate::quant::floats::{BF16, F16, Float, Floats, FloatsMut};

/// Waves and noise, of which a seed chooses the strengths; a channel may be constant.
fn made(seed: u64, samples: usize, channels: usize, (height, width): (usize, usize)) -> Vec<f32> {
    let mut state = seed.wrapping_add(99);
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let strengths: Vec<f32> = (0..channels).map(|_| (4.0 * noise()).exp2()).collect();
    let mut x = Vec::new();
    for _ in 0..samples {
        for (channel, strength) in strengths.iter().enumerate() {
            let (slope, shift) = (noise(), noise());
            for at in 0..height * width {
                let place = (at / width) as f32 * slope + (at % width) as f32 * 0.4 + shift;
                let value = strength * (place.sin() + 0.3 * (noise() + noise())) + 0.25;
                x.push(if channel == 2 && seed.is_multiple_of(3) { 0.7 } else { value });
            }
        }
    }
    x
}

fn calibrated(x: &[f32], channels: usize, shape: (usize, usize), rate: f64) -> Transform {
    let mut calibrator = TransformCalibrator::new(channels).unwrap();
    assert_eq!(calibrator.update(Floats::F32(x), shape).unwrap(), None);
    Transform::new(calibrator.tables(rate, None).unwrap()).unwrap()
}

fn rows(encoded: &EncodedRows) -> Vec<&[u8]> {
    let mut rest = &encoded.bytes[..];
    encoded
        .lengths
        .iter()
        .map(|length| {
            let (row, after) = rest.split_at(*length);
            rest = after;
            row
        })
        .collect()
}

/// The coefficients of a sample in coded order, in steps.
fn forward(transform: &Transform, plan: &Plan, x: &[f32], step: f32) -> Vec<f32> {
    let tables = transform.tables();
    let (channels, plane) = (transform.channels(), plan.height * plan.width);
    let mut y = vec![0.0; x.len()];
    for tile in &plan.tiles {
        let at = |row: usize, column: usize| (tile.row + row) * plan.width + tile.column + column;
        for k in 0..channels {
            let mixed = |i: usize, j: usize| {
                let terms = (0..channels)
                    .map(|c| tables.inverse[k * channels + c] * (x[c * plane + at(i, j)] - tables.mean[c]));
                terms.reduce(|sum, term| sum + term).unwrap()
            };
            let (rows, columns) = (&DCT[tile.height - 1], &DCT[tile.width - 1]);
            let half =
                |u: usize, j: usize| (0..tile.height).map(|i| rows[u][i] * mixed(i, j)).reduce(|a, b| a + b).unwrap();
            for u in 0..tile.height {
                let halves: Vec<f32> = (0..tile.width).map(|j| half(u, j)).collect();
                for v in 0..tile.width {
                    let terms = halves.iter().zip(columns[v]).map(|(half, by)| by * half);
                    y[k * plane + at(u, v)] = terms.reduce(|a, b| a + b).unwrap();
                }
            }
        }
    }
    plan.order.iter().map(|index| y[*index as usize] / step).collect()
}

/// The values of a sample of integers in steps (C, height, width).
fn backward(transform: &Transform, plan: &Plan, numbers: &[i32], step: f32) -> Vec<f32> {
    let tables = transform.tables();
    let (channels, plane) = (transform.channels(), plan.height * plan.width);
    let mut z = vec![0.0; numbers.len()];
    for tile in &plan.tiles {
        let at = |row: usize, column: usize| (tile.row + row) * plan.width + tile.column + column;
        for k in 0..channels {
            let (rows, columns) = (&DCT[tile.height - 1], &DCT[tile.width - 1]);
            for j in 0..tile.width {
                let half = |u: usize| {
                    let terms = (0..tile.width).map(|v| columns[v][j] * numbers[k * plane + at(u, v)] as f32);
                    terms.reduce(|a, b| a + b).unwrap()
                };
                for i in 0..tile.height {
                    z[k * plane + at(i, j)] =
                        (0..tile.height).map(|u| rows[u][i] * half(u)).reduce(|a, b| a + b).unwrap();
                }
            }
        }
    }
    let value = |at: usize| {
        let (c, position) = (at / plane, at % plane);
        let sum = (0..channels).map(|k| tables.basis[c * channels + k] * z[k * plane + position]).reduce(|a, b| a + b);
        (sum.unwrap() + tables.mean[c] / step) * step
    };
    (0..numbers.len()).map(value).collect()
}

/// Encodes coefficients in steps: the levels, and the bytes with this step byte.
fn encode(transform: &Transform, plan: &Plan, y: &[f32], step: u8) -> (Vec<i32>, Vec<u8>) {
    let rates = Rates::new(&transform.tables().frequency).unwrap();
    let offsets: Vec<i8> = (0..plan.tiles.len() as u32)
        .map(|tile| {
            let bits = |offset: i8| -> f32 {
                let members = (0..y.len()).filter(|i| plan.tile[*i] == tile);
                let rate = |i: usize| {
                    rates.bits(usize::from(level_of(plan.base[i], offset)), (y[i] * 0.5).round_ties_even() as i32)
                };
                members.map(rate).sum()
            };
            (-16..=16).fold(-16, |best, offset| if bits(offset) < bits(best) { offset } else { best })
        })
        .collect();
    let t: Vec<u8> = (0..y.len()).map(|i| level_of(plan.base[i], offsets[plan.tile[i] as usize])).collect();
    let choose = |i: usize, label: i32| {
        let near = 4 * ((y[i] - label as f32) * 0.25).round_ties_even() as i32 + label;
        let next = near - 4 * near.signum();
        let cost = |level: i32| {
            (y[i] - level as f32) * (y[i] - level as f32) + LAMBDA * rates.bits(usize::from(t[i]), level >> 1)
        };
        if cost(next) < cost(near) { (next, cost(next)) } else { (near, cost(near)) }
    };
    let label = |from: usize, to: usize| {
        let (u, u1, u2, u3) = (to & 1, from & 1, from >> 1 & 1, from >> 2 & 1);
        2 * (u ^ u1 ^ u3) + u2
    };
    let mut metric = [1e30f32; 8];
    metric[0] = 0.0;
    let mut back = Vec::new();
    for i in 0..y.len() {
        let costs: Vec<f32> = (0..4).map(|label| choose(i, label).1).collect();
        let (mut next, mut from) = ([0.0; 8], [0; 8]);
        for to in 0..8 {
            let paths = [to >> 1, to >> 1 | 4].map(|from| metric[from] + costs[label(from, to)]);
            from[to] = if paths[1] < paths[0] { to >> 1 | 4 } else { to >> 1 };
            next[to] = if paths[1] < paths[0] { paths[1] } else { paths[0] };
        }
        let least = next.iter().copied().fold(f32::INFINITY, f32::min);
        metric = next.map(|next| next - least);
        back.push(from);
    }
    let mut state = (0..8).fold(0, |best, state| if metric[state] < metric[best] { state } else { best });
    let mut levels = vec![0; y.len()];
    for i in (0..y.len()).rev() {
        let from = back[i][state];
        levels[i] = choose(i, label(from, state) as i32).0;
        state = from;
    }
    let bytes = pack(transform, &levels, &t, &offsets, step);
    (levels, bytes)
}

fn pack(transform: &Transform, levels: &[i32], t: &[u8], offsets: &[i8], step: u8) -> Vec<u8> {
    let frequency = &transform.tables().frequency;
    let (mut bits, mut escapes, mut coded) = (VecDeque::new(), Vec::new(), Vec::new());
    for (level, t) in levels.iter().zip(t) {
        let (k, (table, raw)) = (level >> 1, LEVELS[usize::from(*t)]);
        (0..raw).for_each(|bit| bits.push_back((k >> bit & 1) as u8));
        let symbol = k >> raw;
        let mut index = if symbol.abs() <= 63 { (symbol + 64) as usize } else { 0 };
        let row = &frequency[usize::from(table) * SYMBOLS..][..SYMBOLS];
        if row[index] == 0 {
            index = 0;
        }
        if index == 0 {
            escapes.extend((k as i16).to_le_bytes());
        }
        let below: u32 = row[..index].iter().map(|frequency| u32::from(*frequency)).sum();
        coded.push((u32::from(row[index]), below));
    }
    let mut take = |count: u32| (0..count).map(|bit| u32::from(bits.pop_front().unwrap_or(0)) << bit).sum::<u32>();
    let mut states = [0; 4].map(|_: u32| (1 << 16) + take(16));
    let mut bytes = vec![step];
    bytes.extend(offsets.iter().map(|offset| *offset as u8));
    while !bits.is_empty() {
        let mut byte = 0;
        (0..8).for_each(|bit| byte |= bits.pop_front().unwrap_or(0) << bit);
        bytes.push(byte);
    }
    let mut words = Vec::new();
    for (i, (frequency, below)) in coded.iter().enumerate().rev() {
        let state = &mut states[i % 4];
        if u64::from(*state) >= u64::from(*frequency) << 20 {
            words.push(*state as u16);
            *state >>= 16;
        }
        *state = ((*state / frequency) << 12) + *state % frequency + below;
    }
    states.iter().for_each(|state| bytes.extend(state.to_le_bytes()));
    words.iter().rev().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.extend(escapes);
    bytes
}

fn shapes() -> impl Strategy<Value = (usize, (usize, usize))> {
    prop_oneof![
        Just((5, (8, 8))),
        Just((32, (8, 8))),
        Just((4, (16, 24))),
        Just((3, (12, 13))),
        Just((18, (3, 5))),
        Just((7, (9, 7))),
        Just((128, (2, 1))),
        Just((6, (16, 32))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_instruction_set_gives_the_bytes_and_values_of_the_definition(
        (channels, shape) in shapes(),
        seed in any::<u64>(),
        samples in 1usize..20,
        rate in prop_oneof![Just(1.0), Just(2.5), Just(4.0), Just(7.0)],
        scale in prop_oneof![4 => Just(1f32), 1 => Just(30.0), 1 => Just(1e-4), 1 => Just(3e4)],
    ) {
        let mut x = made(seed, samples, channels, shape);
        let transform = calibrated(&x, channels, shape, rate);
        let sample = channels * shape.0 * shape.1;
        x[..sample].iter_mut().for_each(|x| *x *= scale);
        x[seed as usize % sample] = 900.0;
        let plan = transform.plan(shape.0, shape.1).unwrap();
        let (mut bytes, mut values, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let largest = forward(&transform, &plan, &x[..sample], transform.step(128)).iter().fold(0f32, |a, y| a.max(y.abs()));
        prop_assume!(largest < 60_000.0);
        for x in x.chunks(sample) {
            let step = transform.step(128);
            let (levels, row) = encode(&transform, &plan, &forward(&transform, &plan, x, step), 128);
            let mut numbers = vec![0; sample];
            plan.order.iter().zip(levels).for_each(|(index, level)| numbers[*index as usize] = level);
            values.extend(backward(&transform, &plan, &numbers, step));
            all.extend(numbers);
            bytes.push(row);
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                let encoded = transform.encode_with(isa, Floats::F32(&x), shape, None, threads).unwrap();
                prop_assert_eq!(&rows(&encoded), &bytes.iter().map(|row| &row[..]).collect::<Vec<_>>(), "{:?}", isa);
                prop_assert_eq!(&encoded.bad, &[]);
                let mut out = vec![1.0; x.len()];
                let bad = transform.decode_with(isa, &rows(&encoded), FloatsMut::F32(&mut out), shape, threads).unwrap();
                prop_assert_eq!(&bad, &[]);
                prop_assert_eq!(&out, &values, "{:?}", isa);
                let (mut narrow, mut other) = (vec![0; x.len()], vec![0; x.len()]);
                transform.decode_with(isa, &rows(&encoded), FloatsMut::F16(&mut narrow), shape, threads).unwrap();
                transform.decode_with(isa, &rows(&encoded), FloatsMut::BF16(&mut other), shape, threads).unwrap();
                prop_assert!(narrow.iter().zip(&values).all(|(bits, value)| *bits == F16::narrow(*value)));
                prop_assert!(other.iter().zip(&values).all(|(bits, value)| *bits == BF16::narrow(*value)));
            }
        }
        let rows: Vec<&[u8]> = bytes.iter().map(|row| &row[..]).collect();
        let (mut numbers, mut steps) = (vec![0; x.len()], vec![0.0; samples]);
        let bad = transform.decode_numbers(&rows, NumbersMut::I32(&mut numbers), &mut steps, shape, 2).unwrap();
        prop_assert_eq!((&numbers, bad), (&all, vec![]));
        prop_assert!(steps.iter().all(|step| *step == transform.step(128)));
        let mut narrow = vec![0i16; x.len()];
        let bad = transform.decode_numbers(&rows, NumbersMut::I16(&mut narrow), &mut steps, shape, 1).unwrap();
        for (number, (narrow, all)) in narrow.chunks(sample).zip(all.chunks(sample)).enumerate() {
            let fits = all.iter().all(|number| i16::try_from(*number).is_ok());
            prop_assert_eq!(!fits, bad.contains(&(number, Fault::Wide)));
            prop_assert!(!fits || narrow.iter().zip(all).all(|(a, b)| i32::from(*a) == *b));
        }
    }

    #[test]
    fn a_budget_is_met_exactly_by_the_smallest_step(
        (channels, shape) in shapes(),
        seed in any::<u64>(),
        samples in 1usize..20,
        rate in prop_oneof![Just(2.0), Just(4.0)],
    ) {
        let mut x = made(seed, samples, channels, shape);
        let transform = calibrated(&x, channels, shape, rate);
        let sample = channels * shape.0 * shape.1;
        x[..sample].iter_mut().for_each(|x| *x *= 9.0);
        let budget = (sample as f64 * rate / 8.0) as usize + 30;
        let first = transform.encode_with(Isa::Baseline, Floats::F32(&x), shape, Some(budget), 1).unwrap();
        prop_assert!(first.lengths.iter().all(|length| *length == budget));
        for isa in Isa::available() {
            prop_assert_eq!(&first, &transform.encode_with(isa, Floats::F32(&x), shape, Some(budget), 3).unwrap());
        }
        let plan = transform.plan(shape.0, shape.1).unwrap();
        for (number, (x, row)) in x.chunks(sample).zip(rows(&first)).enumerate() {
            if first.bad.contains(&(number, Fault::NoRoom)) {
                continue;
            }
            let (_, mut expected) = encode(&transform, &plan, &forward(&transform, &plan, x, transform.step(row[0])), row[0]);
            prop_assert!(expected.len() <= budget);
            expected.resize(budget, 0);
            prop_assert_eq!(row, expected);
            let smaller = row[0].saturating_sub(1);
            let y = forward(&transform, &plan, x, transform.step(smaller));
            if y.iter().any(|y| y.abs() > 64_900.0) {
                continue; // its integers would not fit in 16 bits
            }
            let (_, bytes) = encode(&transform, &plan, &y, smaller);
            prop_assert!(bytes.len() > budget || row[0] == 0 || bytes.len() + 8 > budget);
        }
    }

    #[test]
    fn other_float_types_are_rounded_values_of_32_bits(seed in any::<u64>()) {
        let (channels, shape) = (4, (16, 9));
        let x = made(seed, 3, channels, shape);
        let transform = calibrated(&x, channels, shape, 4.0);
        let encode = |x: Floats<'_>| transform.encode(x, shape, None, 1).unwrap();
        let half: Vec<u16> = x.iter().map(|x| F16::narrow(*x)).collect();
        let bfloat: Vec<u16> = x.iter().map(|x| BF16::narrow(*x)).collect();
        let double: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let widened = |widen: fn(u16) -> f32, bits: &[u16]| bits.iter().map(|bits| widen(*bits)).collect::<Vec<_>>();
        prop_assert_eq!(encode(Floats::F16(&half)), encode(Floats::F32(&widened(F16::widen, &half))));
        prop_assert_eq!(encode(Floats::BF16(&bfloat)), encode(Floats::F32(&widened(BF16::widen, &bfloat))));
        prop_assert_eq!(encode(Floats::F64(&double)), encode(Floats::F32(&x)));
    }

    #[test]
    fn any_bytes_are_values_or_a_fault_on_every_instruction_set(
        (channels, shape) in shapes(),
        bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..900), 1..12),
    ) {
        let x = made(5, 4, channels, shape);
        let transform = calibrated(&x, channels, shape, 4.0);
        let rows: Vec<&[u8]> = bytes.iter().map(|row| &row[..]).collect();
        let decode = |isa| {
            let mut out = vec![1.0; rows.len() * x.len() / 4];
            let bad = transform.decode_with(isa, &rows, FloatsMut::F32(&mut out), shape, 1).unwrap();
            (out.into_iter().map(f32::to_bits).collect::<Vec<_>>(), bad)
        };
        let expected = decode(Isa::Baseline);
        for isa in Isa::available() {
            prop_assert_eq!(&decode(isa), &expected);
        }
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_a_fault_or_values() {
    for (channels, shape) in [(5, (8, 8)), (3, (9, 11))] {
        let mut x = made(7, 9, channels, shape);
        let transform = calibrated(&x, channels, shape, 3.0);
        x[40] = 700.0; // an escape
        let sample = channels * shape.0 * shape.1;
        let encoded = transform.encode(Floats::F32(&x[..sample]), shape, None, 1).unwrap();
        let decode = |rows: &[&[u8]]| {
            let mut results = Vec::new();
            for isa in Isa::available() {
                let mut out = vec![1.0; rows.len() * sample];
                let bad = transform.decode_with(isa, rows, FloatsMut::F32(&mut out), shape, 1).unwrap();
                for (number, fault) in &bad {
                    assert!(matches!(fault, Fault::Truncated | Fault::Damaged));
                    assert!(out[number * sample..][..sample].iter().all(|value| *value == 0.0));
                }
                results.push((out.into_iter().map(f32::to_bits).collect::<Vec<_>>(), bad));
            }
            assert!(results.iter().all(|result| *result == results[0]));
            results.remove(0).1
        };
        let whole = &encoded.bytes[..];
        let cut: Vec<&[u8]> = (0..whole.len()).map(|length| &whole[..length]).collect();
        assert_eq!(decode(&cut).len(), cut.len(), "a sample without its last byte is refused");
        let flipped: Vec<Vec<u8>> = (0..8 * whole.len())
            .map(|bit| {
                let mut bytes = whole.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            })
            .collect();
        let refused = decode(&flipped.iter().map(|row| &row[..]).collect::<Vec<_>>()).len();
        assert!(refused > flipped.len() / 4, "{refused} of {}", flipped.len());
    }
}

#[test]
fn samples_that_cannot_be_encoded_are_named() {
    let (channels, shape) = (4, (8, 8));
    let mut x = made(1, 6, channels, shape);
    let transform = calibrated(&x, channels, shape, 4.0);
    x[256 + 64 + 3] = f32::NAN;
    x[2 * 256] = f32::INFINITY;
    x[3 * 256..4 * 256].fill(3e38);
    x[5 * 256 + 9] = 1e9;
    let encoded = transform.encode(Floats::F32(&x), shape, Some(200), 2).unwrap();
    let expected = [(1, Fault::NotFinite(1)), (2, Fault::NotFinite(0)), (3, Fault::TooLarge), (5, Fault::TooLarge)];
    assert_eq!(encoded.bad, expected);
    assert!(rows(&encoded)[1].iter().all(|byte| *byte == 0) && encoded.bytes.len() == 6 * 200);
    let short = transform.encode(Floats::F32(&x[..256]), shape, Some(17), 1).unwrap();
    assert_eq!(short.bad, [(0, Fault::NoRoom)]);
    assert!(transform.encode(Floats::F32(&x[..300]), shape, None, 1).is_err());
    assert!(transform.encode(Floats::F32(&x), (0, 8), None, 1).is_err());
    assert!(transform.decode(&[&[0; 20]], FloatsMut::F32(&mut [0.0; 255]), shape, 1).is_err());
    assert!(transform.decode(&[], FloatsMut::F32(&mut []), (usize::MAX, 8), 1).is_err());
}

#[test]
fn tables_out_of_range_are_errors() {
    let good = calibrated(&made(1, 4, 4, (8, 8)), 4, (8, 8), 4.0).tables().clone();
    let refused = |change: fn(&mut TransformTables)| {
        let mut tables = good.clone();
        change(&mut tables);
        Transform::new(tables).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|tables| tables.step = 0.0));
    assert!(refused(|tables| tables.step = f32::NAN));
    assert!(refused(|tables| tables.mean[1] = f32::INFINITY));
    assert!(refused(|tables| tables.basis[5] = f32::NAN));
    assert!(refused(|tables| tables.inverse.truncate(15)));
    assert!(refused(|tables| tables.mean.clear()));
    assert!(refused(|tables| tables.base[3] = 51));
    assert!(refused(|tables| tables.frequency[9] += 1));
    assert!(refused(|tables| {
        tables.frequency[1] += tables.frequency[0];
        tables.frequency[0] = 0;
    }));
}

#[test]
fn batches_do_not_change_the_tables_and_errors_are_small() {
    let (channels, shape) = (6, (8, 16));
    let x = made(4, 40, channels, shape);
    let mut parts = TransformCalibrator::new(channels).unwrap();
    x.chunks(7 * channels * 128).for_each(|x| assert_eq!(parts.update(Floats::F32(x), shape).unwrap(), None));
    let mut errors = Vec::new();
    for rate in [2.0, 4.0, 6.0] {
        let transform = calibrated(&x, channels, shape, rate);
        assert_eq!(*transform.tables(), parts.tables(rate, None).unwrap());
        let encoded = transform.encode(Floats::F32(&x), shape, None, 1).unwrap();
        let bits = encoded.bytes.len() as f64 * 8.0 / x.len() as f64;
        assert!((bits - rate).abs() < 0.35, "{bits} bits for {rate}");
        let mut out = vec![0.0; x.len()];
        transform.decode(&rows(&encoded), FloatsMut::F32(&mut out), shape, 1).unwrap();
        errors.push(x.iter().zip(&out).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>());
    }
    // Two bits are 12 dB.
    assert!(errors[0] > 12.0 * errors[1] && errors[1] > 12.0 * errors[2], "{errors:?}");
}

#[test]
fn a_metric_moves_the_error_to_channels_that_count_less() {
    let (channels, shape) = (4, (8, 8));
    let x = made(11, 60, channels, shape);
    let mut calibrator = TransformCalibrator::new(channels).unwrap();
    calibrator.update(Floats::F32(&x), shape).unwrap();
    let mut metric = vec![0.0; 16];
    (0..4).for_each(|c| metric[5 * c] = if c == 3 { 400.0 } else { 1.0 });
    let error = |metric: Option<(&[f64], f64)>| {
        let transform = Transform::new(calibrator.tables(3.0, metric).unwrap()).unwrap();
        let encoded = transform.encode(Floats::F32(&x), shape, None, 1).unwrap();
        let mut out = vec![0.0; x.len()];
        transform.decode(&rows(&encoded), FloatsMut::F32(&mut out), shape, 1).unwrap();
        let of = |channel: usize| -> f64 {
            let planes = x.chunks(64).zip(out.chunks(64)).skip(channel).step_by(4);
            planes.flat_map(|(x, out)| x.iter().zip(out).map(|(a, b)| f64::from(a - b).powi(2))).sum()
        };
        [of(0), of(3)]
    };
    let (plain, weighted) = (error(None), error(Some((&metric, 0.5))));
    assert!(weighted[1] < plain[1] / 4.0 && weighted[0] > plain[0], "{plain:?} {weighted:?}");
    assert!(calibrator.tables(3.0, Some((&metric[..9], 0.5))).is_err());
    assert!(calibrator.tables(3.0, Some((&[0.0; 16], 0.5))).is_err());
    assert!(calibrator.tables(f64::NAN, None).is_err());
}

#[test]
fn calibration_keeps_few_samples_and_refuses_bad_ones() {
    assert!(TransformCalibrator::new(0).is_err() && TransformCalibrator::new(129).is_err());
    let mut calibrator = TransformCalibrator::new(4).unwrap();
    assert!(calibrator.tables(4.0, None).is_err());
    let message = calibrator.update(Floats::F32(&[0.0; 4]), (1, 1)).unwrap_err().to_string();
    assert!(message.contains("trellis"), "{message}");
    let mut x = made(2, 2, 4, (8, 8));
    x[300] = f32::NAN;
    assert_eq!(calibrator.update(Floats::F32(&x), (8, 8)).unwrap(), Some((1, 0)));
    assert!(calibrator.tables(4.0, None).is_err());
    // A constant column, and shapes that differ.
    calibrator.update(Floats::F32(&[0.5; 256]), (8, 8)).unwrap();
    calibrator.update(Floats::F32(&[0.5; 512]), (8, 16)).unwrap();
    let transform = Transform::new(calibrator.tables(4.0, None).unwrap()).unwrap();
    let encoded = transform.encode(Floats::F32(&[0.5; 512]), (16, 8), Some(64), 1).unwrap();
    let mut out = [0.0; 512];
    assert_eq!(transform.decode(&rows(&encoded), FloatsMut::F32(&mut out), (16, 8), 1).unwrap(), []);
    assert!(out.iter().all(|value| (value - 0.5).abs() < 1e-6));
}

#[test]
fn step_bytes_are_32nds_of_an_octave() {
    let transform = calibrated(&made(1, 4, 4, (8, 8)), 4, (8, 8), 4.0);
    let step = transform.tables().step;
    assert_eq!(transform.step(128), step);
    assert_eq!(transform.step(0), step / 16.0);
    assert_eq!(transform.step(255), step * 8.0 * MANTISSA[31]);
    assert_eq!(transform.step(127), step / 2.0 * MANTISSA[31]);
}

//! Float types of inputs and outputs. All arithmetic is in f32, so a type is defined by how it widens to f32 and how f32
//! narrows to it. Both are branchless, so that loops over them vectorize.

use std::ops::Range;

/// A float type, given by the bits of its array elements.
pub trait Float {
    /// The type of one element in memory.
    type Bits: Copy + Default + Send + Sync;
    /// Widens to f32. Exact, except that f64 is rounded half to even.
    fn widen(bits: Self::Bits) -> f32;
    /// Narrows from f32, rounding half to even.
    fn narrow(value: f32) -> Self::Bits;

    /// Tags an array with its type.
    fn floats(bits: &[Self::Bits]) -> Floats<'_>;

    /// Tags an output array with its type; `None` for f64, which is no output type.
    #[inline(always)]
    fn floats_mut(_: &mut [Self::Bits]) -> Option<FloatsMut<'_>> {
        None
    }
}

/// IEEE binary32.
pub struct F32;
/// IEEE binary64.
pub struct F64;
/// IEEE binary16.
pub struct F16;
/// bfloat16: the upper half of a binary32.
pub struct BF16;

impl Float for F32 {
    type Bits = f32;
    #[inline(always)]
    fn floats(bits: &[Self::Bits]) -> Floats<'_> {
        Floats::F32(bits)
    }
    #[inline(always)]
    fn floats_mut(bits: &mut [Self::Bits]) -> Option<FloatsMut<'_>> {
        Some(FloatsMut::F32(bits))
    }
    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }
    #[inline(always)]
    fn narrow(value: f32) -> f32 {
        value
    }
}

impl Float for F64 {
    type Bits = f64;
    #[inline(always)]
    fn floats(bits: &[Self::Bits]) -> Floats<'_> {
        Floats::F64(bits)
    }
    #[inline(always)]
    fn widen(bits: f64) -> f32 {
        bits as f32
    }
    #[inline(always)]
    fn narrow(value: f32) -> f64 {
        f64::from(value)
    }
}

impl Float for BF16 {
    type Bits = u16;
    #[inline(always)]
    fn floats(bits: &[Self::Bits]) -> Floats<'_> {
        Floats::BF16(bits)
    }
    #[inline(always)]
    fn floats_mut(bits: &mut [Self::Bits]) -> Option<FloatsMut<'_>> {
        Some(FloatsMut::BF16(bits))
    }
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // Rounding could turn a NaN with a small payload into an infinity.
        let quiet = (bits >> 16) | 0x40;
        (if value.is_nan() { quiet } else { rounded }) as u16
    }
}

impl Float for F16 {
    type Bits = u16;
    #[inline(always)]
    fn floats(bits: &[Self::Bits]) -> Floats<'_> {
        Floats::F16(bits)
    }
    #[inline(always)]
    fn floats_mut(bits: &mut [Self::Bits]) -> Option<FloatsMut<'_>> {
        Some(FloatsMut::F16(bits))
    }
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let sign = u32::from(bits & 0x8000) << 16;
        let magnitude = u32::from(bits & 0x7fff) << 13;
        let normal = magnitude + ((127 - 15) << 23);
        // Subnormal: add an implicit leading bit by way of the exponent, then subtract it. No f32 subnormal appears, so
        // flush-to-zero mode (torch.set_flush_denormal) changes nothing.
        let subnormal = (f32::from_bits(normal + (1 << 23)) - f32::from_bits(113 << 23)).to_bits();
        let special = magnitude | 0x7f80_0000;
        let value = if magnitude < (1 << 23) { subnormal } else { normal };
        let value = if magnitude >= (31 << 23) { special } else { value };
        f32::from_bits(value | sign)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        let bits = value.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + odd) >> 13;
        // Subnormal: adding 0.5 aligns the last bit of the half with the last bit of the f32, and the addition rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let half = if magnitude < (113 << 23) { subnormal } else { normal };
        // 65520 is the first value that rounds to infinity.
        let half = if magnitude >= 65520f32.to_bits() { special } else { half };
        (half | sign) as u16
    }
}

/// An input array of one of the float types.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    BF16(&'a [u16]),
    F64(&'a [f64]),
}

/// An output array of one of the float types.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum FloatsMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [u16]),
    BF16(&'a mut [u16]),
}

impl Floats<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::F16(x) | Floats::BF16(x) => x.len(),
            Floats::F64(x) => x.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FloatsMut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(x) => x.len(),
            FloatsMut::F16(x) | FloatsMut::BF16(x) => x.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in `range`.
    pub fn range(&mut self, range: Range<usize>) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(&mut x[range]),
            FloatsMut::F16(x) => FloatsMut::F16(&mut x[range]),
            FloatsMut::BF16(x) => FloatsMut::BF16(&mut x[range]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BF16, F16, Float};

    /// The value of 16 bits with `exponent_bits` exponent bits, by the definition of IEEE 754.
    fn value(bits: u16, exponent_bits: u32) -> f64 {
        let mantissa_bits = 15 - exponent_bits;
        let bias = (1i32 << (exponent_bits - 1)) - 1;
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from((bits & 0x7fff) >> mantissa_bits);
        let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1)) / f64::from(1u32 << mantissa_bits);
        match exponent {
            0 => sign * mantissa * 2f64.powi(1 - bias),
            e if e == (1 << exponent_bits) - 1 => {
                if mantissa == 0.0 {
                    sign * f64::INFINITY
                } else {
                    f64::NAN
                }
            }
            e => sign * (1.0 + mantissa) * 2f64.powi(e - bias),
        }
    }

    fn every_value_widens_exactly_and_comes_back<F: Float<Bits = u16>>(exponent_bits: u32) {
        for bits in 0..=u16::MAX {
            let expected = value(bits, exponent_bits);
            let wide = F::widen(bits);
            if expected.is_nan() {
                assert!(wide.is_nan());
                assert!(F::widen(F::narrow(wide)).is_nan());
            } else {
                assert_eq!(f64::from(wide).to_bits(), expected.to_bits(), "{bits:#06x}");
                assert_eq!(F::narrow(wide), bits);
            }
        }
    }

    #[test]
    fn float16_widens_exactly() {
        every_value_widens_exactly_and_comes_back::<F16>(5);
    }

    #[test]
    fn bfloat16_widens_exactly() {
        every_value_widens_exactly_and_comes_back::<BF16>(8);
    }

    /// Between two neighbors, values below the midpoint round down, values above it up, and the midpoint to even.
    fn narrowing_rounds_to_nearest_even<F: Float<Bits = u16>>(infinity: u16) {
        for bits in 0..infinity - 1 {
            let (low, high) = (F::widen(bits), F::widen(bits + 1));
            let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            for sign in [0, 0x8000] {
                let signed = |x: f32| if sign == 0 { x } else { -x };
                assert_eq!(F::narrow(signed(middle)), even | sign);
                assert_eq!(F::narrow(signed(middle.next_down())), bits | sign);
                assert_eq!(F::narrow(signed(middle.next_up())), (bits + 1) | sign);
            }
        }
        assert_eq!(F::narrow(f32::INFINITY), infinity);
        assert_eq!(F::narrow(f32::MAX), infinity);
        assert_eq!(F::narrow(-f32::MAX), infinity | 0x8000);
    }

    #[test]
    fn float16_rounds_to_nearest_even() {
        narrowing_rounds_to_nearest_even::<F16>(0x7c00);
        assert_eq!(F16::narrow(65519.996), 0x7bff);
        assert_eq!(F16::narrow(65520.0), 0x7c00);
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        narrowing_rounds_to_nearest_even::<BF16>(0x7f80);
    }
}

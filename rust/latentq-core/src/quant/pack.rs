//! Bit packing of codes of fewer than 8 bits.
//!
//! Code i of a sample occupies bits `[i * bits, (i + 1) * bits)` of the sample. Bit b of the sample is bit `b % 8` of byte
//! `b / 8`, least significant bit first. Each sample starts at a byte boundary; the bits after its last code are 0.

use super::arch::Isa;
use super::kernel::Kernel;
use crate::parallel::for_each_chunk;
use crate::{Error, Result};

/// Packed bytes of a sample of `elements` codes.
pub fn packed_len(elements: usize, bits: u32) -> Result<usize> {
    check_bits(bits)?;
    let whole = (elements / 8).checked_mul(bits as usize);
    whole
        .and_then(|whole| whole.checked_add((elements % 8 * bits as usize).div_ceil(8)))
        .ok_or_else(|| Error::argument(format!("{elements} elements are too many to pack")))
}

/// Packs codes (N, elements) to `out` (N, bytes). A code of more than `bits` bits is an error.
pub fn pack(codes: &[u8], out: &mut [u8], elements: usize, bits: u32, threads: usize) -> Result<()> {
    let bytes = check(codes, out, elements, bits)?;
    if bits == 8 {
        out.copy_from_slice(codes);
        return Ok(());
    }
    let isa = Isa::best();
    if isa.run(Largest(codes)) >> bits != 0 {
        let sample = codes.iter().position(|code| code >> bits != 0).unwrap_or_default() / elements;
        return Err(Error::argument(format!("sample {sample} has a code of more than {bits} bits")));
    }
    for_each_chunk(out, bytes, threads, |sample, out| {
        isa.run(Pack { isa, codes: &codes[sample * elements..(sample + 1) * elements], out, bits });
    });
    Ok(())
}

/// Unpacks (N, bytes) to codes (N, elements).
pub fn unpack(packed: &[u8], out: &mut [u8], elements: usize, bits: u32, threads: usize) -> Result<()> {
    let bytes = check(out, packed, elements, bits)?;
    if bits == 8 {
        out.copy_from_slice(packed);
        return Ok(());
    }
    let isa = Isa::best();
    for_each_chunk(out, elements, threads, |sample, out| {
        isa.run(Unpack { isa, packed: &packed[sample * bytes..(sample + 1) * bytes], out, bits });
    });
    Ok(())
}

#[inline(always)]
pub(super) fn largest(codes: &[u8]) -> u8 {
    let mut largest = 0;
    for code in codes {
        largest = largest.max(*code);
    }
    largest
}

struct Largest<'a>(&'a [u8]);

impl Kernel for Largest<'_> {
    type Output = u8;
    #[inline(always)]
    fn run(self) -> u8 {
        largest(self.0)
    }
}

struct Pack<'a> {
    isa: Isa,
    codes: &'a [u8],
    out: &'a mut [u8],
    bits: u32,
}

impl Kernel for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        pack_sample(self.isa, self.codes, self.out, self.bits);
    }
}

struct Unpack<'a> {
    isa: Isa,
    packed: &'a [u8],
    out: &'a mut [u8],
    bits: u32,
}

impl Kernel for Unpack<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        unpack_sample(self.isa, self.packed, self.out, self.bits);
    }
}

/// Packs one sample. Bits of a code above the lowest `bits` must be 0.
#[inline(always)]
pub(super) fn pack_sample(isa: Isa, codes: &[u8], out: &mut [u8], bits: u32) {
    match bits {
        2 => pack_bits::<2>(isa, codes, out),
        3 => pack_bits::<3>(isa, codes, out),
        4 => pack_bits::<4>(isa, codes, out),
        5 => pack_bits::<5>(isa, codes, out),
        6 => pack_bits::<6>(isa, codes, out),
        _ => pack_bits::<7>(isa, codes, out),
    }
}

/// Unpacks one sample.
#[inline(always)]
pub(super) fn unpack_sample(isa: Isa, packed: &[u8], out: &mut [u8], bits: u32) {
    match bits {
        2 => unpack_bits::<2>(isa, packed, out),
        3 => unpack_bits::<3>(isa, packed, out),
        4 => unpack_bits::<4>(isa, packed, out),
        5 => unpack_bits::<5>(isa, packed, out),
        6 => unpack_bits::<6>(isa, packed, out),
        _ => unpack_bits::<7>(isa, packed, out),
    }
}

/// Groups computed at a time as vectors, then written one by one. A group is 8 codes, which pack to BITS bytes.
const GROUPS: usize = 32;

#[inline(always)]
fn pack_bits<const BITS: usize>(isa: Isa, codes: &[u8], out: &mut [u8]) {
    let done = isa.pack::<BITS>(codes, out);
    let (codes, out) = (&codes[done..], &mut out[done / 8 * BITS..]);
    let (blocks, rest) = codes.as_chunks::<{ 8 * GROUPS }>();
    let (out, rest_out) = out.split_at_mut(blocks.len() * GROUPS * BITS);
    for (codes, out) in blocks.iter().zip(out.chunks_exact_mut(GROUPS * BITS)) {
        let mut words = [0; GROUPS];
        for (word, codes) in words.iter_mut().zip(codes.as_chunks::<8>().0) {
            *word = squeeze::<BITS>(u64::from_le_bytes(*codes));
        }
        for (word, out) in words.iter().zip(out.as_chunks_mut::<BITS>().0) {
            out.copy_from_slice(&word.to_le_bytes()[..BITS]);
        }
    }
    for (codes, out) in rest.chunks(8).zip(rest_out.chunks_mut(BITS)) {
        let mut word = [0; 8];
        word[..codes.len()].copy_from_slice(codes);
        out.copy_from_slice(&squeeze::<BITS>(u64::from_le_bytes(word)).to_le_bytes()[..out.len()]);
    }
}

#[inline(always)]
fn unpack_bits<const BITS: usize>(isa: Isa, packed: &[u8], out: &mut [u8]) {
    let done = isa.unpack::<BITS>(packed, out);
    let (packed, out) = (&packed[done / 8 * BITS..], &mut out[done..]);
    let (blocks, rest) = out.as_chunks_mut::<{ 8 * GROUPS }>();
    let (packed, rest_packed) = packed.split_at(blocks.len() * GROUPS * BITS);
    for (out, packed) in blocks.iter_mut().zip(packed.chunks_exact(GROUPS * BITS)) {
        let mut words = [0; GROUPS];
        for (word, packed) in words.iter_mut().zip(packed.as_chunks::<BITS>().0) {
            let mut bytes = [0; 8];
            bytes[..BITS].copy_from_slice(packed);
            *word = u64::from_le_bytes(bytes);
        }
        for (word, out) in words.iter().zip(out.as_chunks_mut::<8>().0) {
            *out = spread::<BITS>(*word).to_le_bytes();
        }
    }
    for (packed, out) in rest_packed.chunks(BITS).zip(rest.chunks_mut(8)) {
        let mut word = [0; 8];
        word[..packed.len()].copy_from_slice(packed);
        out.copy_from_slice(&spread::<BITS>(u64::from_le_bytes(word)).to_le_bytes()[..out.len()]);
    }
}

/// Moves eight codes, one per byte, to the lowest 8 * BITS bits: bytes to pairs, pairs to fours, fours to eight.
#[inline(always)]
fn squeeze<const BITS: usize>(x: u64) -> u64 {
    let x = (x & 0x00ff_00ff_00ff_00ff) | ((x & 0xff00_ff00_ff00_ff00) >> (8 - BITS));
    let x = (x & 0x0000_ffff_0000_ffff) | ((x & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS));
    (x & 0x0000_0000_ffff_ffff) | ((x & 0xffff_ffff_0000_0000) >> (32 - 4 * BITS))
}

/// The inverse of [`squeeze`].
#[inline(always)]
fn spread<const BITS: usize>(x: u64) -> u64 {
    let mask = |bits: usize| (1u64 << bits) - 1;
    let fours = mask(4 * BITS);
    let x = (x & fours) | ((x & (fours << (4 * BITS))) << (32 - 4 * BITS));
    let pairs = mask(2 * BITS) | (mask(2 * BITS) << 32);
    let x = (x & pairs) | ((x & (pairs << (2 * BITS))) << (16 - 2 * BITS));
    let ones = mask(BITS) | (mask(BITS) << 16) | (mask(BITS) << 32) | (mask(BITS) << 48);
    (x & ones) | ((x & (ones << BITS)) << (8 - BITS))
}

fn check_bits(bits: u32) -> Result<()> {
    if (1..=8).contains(&bits) { Ok(()) } else { Err(Error::argument(format!("bits must be 1 to 8, not {bits}"))) }
}

/// Packed bytes of a sample, after checking that both arrays have the same number of whole samples.
fn check(codes: &[u8], packed: &[u8], elements: usize, bits: u32) -> Result<usize> {
    let bytes = packed_len(elements, bits)?;
    let agree = if elements == 0 {
        codes.is_empty() && packed.is_empty()
    } else {
        codes.len().is_multiple_of(elements) && (codes.len() / elements).checked_mul(bytes) == Some(packed.len())
    };
    if agree {
        return Ok(bytes);
    }
    Err(Error::argument(format!(
        "{} codes in samples of {elements} do not match {} packed bytes in samples of {bytes}",
        codes.len(),
        packed.len()
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{pack, packed_len, unpack};
    use crate::quant::Isa;

    #[test]
    fn codes_are_packed_from_the_least_significant_bit() {
        let mut out = [0; 2];
        pack(&[0b001, 0b110, 0b101], &mut out, 3, 3, 1).unwrap();
        assert_eq!(out, [0b0111_0001, 0b1]);
    }

    #[test]
    fn a_code_that_is_too_large_is_an_error() {
        let mut out = [0; 1];
        assert!(pack(&[4, 0], &mut out, 2, 2, 1).is_err());
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(bits in 2u32..=8, samples in 0usize..4, elements in 0usize..300, seed: u64) {
            let codes: Vec<u8> = (0..(samples * elements) as u64)
                .map(|i| (seed.wrapping_mul(i.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 >> (8 - bits))
                .collect();
            let mut packed = vec![0; samples * packed_len(elements, bits).unwrap()];
            let mut back = vec![0; codes.len()];
            pack(&codes, &mut packed, elements, bits, 2).unwrap();
            unpack(&packed, &mut back, elements, bits, 2).unwrap();
            prop_assert_eq!(&back, &codes);
            let bytes = packed_len(elements, bits).unwrap().max(1);
            for isa in Isa::available().into_iter().filter(|_| bits < 8) {
                for (codes, packed) in codes.chunks(elements.max(1)).zip(packed.chunks(bytes)) {
                    let (mut out, mut back) = (vec![255; packed.len()], vec![255; codes.len()]);
                    isa.run(super::Pack { isa, codes, out: &mut out, bits });
                    prop_assert_eq!(&out, packed, "{:?}", isa);
                    isa.run(super::Unpack { isa, packed, out: &mut back, bits });
                    prop_assert_eq!(&back, codes, "{:?}", isa);
                }
            }
            // Compare with the definition, bit by bit.
            for (sample, codes) in codes.chunks(elements.max(1)).enumerate() {
                for (i, code) in codes.iter().enumerate() {
                    for j in 0..bits as usize {
                        let bit = i * bits as usize + j;
                        let byte = packed[sample * packed_len(elements, bits).unwrap() + bit / 8];
                        prop_assert_eq!(byte >> (bit % 8) & 1, code >> j & 1);
                    }
                }
            }
        }
    }
}

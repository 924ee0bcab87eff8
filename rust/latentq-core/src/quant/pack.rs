//! Codes of fewer than 8 bits without gaps: code i of a sample is bits `[i * bits, (i + 1) * bits)` of its bytes, bit b of
//! the sample being bit `b % 8` (the least significant first) of byte `b / 8`. Each sample begins on a byte; the bits after
//! its last code are 0.

use crate::parallel::for_each_chunk;
use crate::{Error, Result};

/// The bytes of a sample of `elements` codes.
pub fn packed_len(elements: usize, bits: u32) -> Result<usize> {
    check_bits(bits)?;
    let whole = (elements / 8).checked_mul(bits as usize);
    whole
        .and_then(|whole| whole.checked_add((elements % 8 * bits as usize).div_ceil(8)))
        .ok_or_else(|| Error::argument(format!("{elements} elements are too many")))
}

/// Packs codes (N, elements) to `out` (N, bytes). A code of more than `bits` bits is an error.
pub fn pack(codes: &[u8], out: &mut [u8], elements: usize, bits: u32, threads: usize) -> Result<()> {
    let bytes = check(codes, out, elements, bits)?;
    let mask = mask(bits);
    if bits == 8 {
        out.copy_from_slice(codes);
        return Ok(());
    }
    if let Some(position) = codes.iter().position(|&code| code & !mask != 0) {
        let sample = position / elements;
        return Err(Error::argument(format!(
            "sample {sample} holds the code {}, more than {bits} bits",
            codes[position]
        )));
    }
    for_each_chunk(out, bytes, threads, |sample, out| {
        let codes = &codes[sample * elements..(sample + 1) * elements];
        for (codes, out) in codes.chunks(8).zip(out.chunks_mut(bits as usize)) {
            let mut word = 0u64;
            for (index, &code) in codes.iter().enumerate() {
                word |= u64::from(code) << (index as u32 * bits);
            }
            out.copy_from_slice(&word.to_le_bytes()[..out.len()]);
        }
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
    let mask = mask(bits);
    for_each_chunk(out, elements, threads, |sample, out| {
        let packed = &packed[sample * bytes..(sample + 1) * bytes];
        for (packed, out) in packed.chunks(bits as usize).zip(out.chunks_mut(8)) {
            let mut word = [0; 8];
            word[..packed.len()].copy_from_slice(packed);
            let word = u64::from_le_bytes(word);
            for (index, code) in out.iter_mut().enumerate() {
                *code = (word >> (index as u32 * bits)) as u8 & mask;
            }
        }
    });
    Ok(())
}

fn mask(bits: u32) -> u8 {
    (0xffu32 >> (8 - bits)) as u8
}

fn check_bits(bits: u32) -> Result<()> {
    if (1..=8).contains(&bits) { Ok(()) } else { Err(Error::argument(format!("bits must be 1 to 8, not {bits}"))) }
}

/// The packed bytes of a sample, after checking that both arrays hold the same number of whole samples.
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
        "{} codes in samples of {elements} do not go with {} packed bytes in samples of {bytes}",
        codes.len(),
        packed.len()
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{pack, packed_len, unpack};

    #[test]
    fn three_codes_of_three_bits_are_nine_bits_from_the_least_significant() {
        let mut out = [0; 2];
        pack(&[0b001, 0b110, 0b101], &mut out, 3, 3, 1).unwrap();
        assert_eq!(out, [0b0111_0001, 0b1]);
    }

    #[test]
    fn a_code_too_large_is_refused() {
        let mut out = [0; 1];
        assert!(pack(&[4, 0], &mut out, 2, 2, 1).is_err());
    }

    proptest! {
        #[test]
        fn unpacking_gives_the_codes_back(bits in 2u32..=8, samples in 0usize..4, elements in 0usize..70, seed: u64) {
            let codes: Vec<u8> = (0..(samples * elements) as u64)
                .map(|i| (seed.wrapping_mul(i.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 >> (8 - bits))
                .collect();
            let mut packed = vec![0; samples * packed_len(elements, bits).unwrap()];
            let mut back = vec![0; codes.len()];
            pack(&codes, &mut packed, elements, bits, 2).unwrap();
            unpack(&packed, &mut back, elements, bits, 2).unwrap();
            prop_assert_eq!(&back, &codes);
            // By definition, bit by bit.
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

//! A pseudorandom permutation that is computed position by position and never stored.

use crate::{Error, Result};

/// The largest size of a permutation.
pub const LARGEST: u64 = 1 << 62;

/// Rounds of the Feistel network; each has a key.
pub const ROUNDS: usize = 6;

/// A permutation of `0..size`.
///
/// A Feistel network on the pairs (x mod a, x div a), where a is the square root of `size` rounded up, permutes a range
/// slightly larger than `size`. A position mapped outside `0..size` is mapped again until it is inside (cycle walking),
/// which keeps the map a permutation. Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    size: u64,
    width: u64,
    height: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Creates the permutation of `0..size` that the keys select.
    pub fn new(size: u64, keys: [u64; ROUNDS]) -> Result<Self> {
        if !(1..=LARGEST).contains(&size) {
            return Err(Error::argument(format!("the size of a permutation must be 1 to {LARGEST}, not {size}")));
        }
        let width = size.isqrt() + u64::from(size.isqrt().pow(2) < size);
        Ok(Self { size, width, height: size.div_ceil(width), keys })
    }

    /// The position that a position is mapped to.
    pub fn apply(&self, position: u64) -> Result<u64> {
        if position >= self.size {
            return Err(Error::argument(format!(
                "position {position} is out of range for a permutation of {}",
                self.size
            )));
        }
        let mut image = self.feistel(position);
        while image >= self.size {
            image = self.feistel(image);
        }
        Ok(image)
    }

    fn feistel(&self, position: u64) -> u64 {
        let (mut low, mut high) = (position % self.width, position / self.width);
        for keys in self.keys.chunks_exact(2) {
            low = add(low, hash(high.wrapping_add(keys[0]), self.width), self.width);
            high = add(high, hash(low.wrapping_add(keys[1]), self.height), self.height);
        }
        high * self.width + low
    }
}

/// The sum of two numbers below `modulus`, modulo it.
fn add(a: u64, b: u64, modulus: u64) -> u64 {
    let sum = a + b;
    if sum >= modulus { sum - modulus } else { sum }
}

/// The finalizer of `SplitMix64`, scaled to `0..below`; `below` is at most 2^32.
fn hash(mut x: u64, below: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x >> 32) * below) >> 32
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, Permutation};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_occurs_once(size in 1u64..5000, keys: [u64; 6]) {
            let permutation = Permutation::new(size, keys).unwrap();
            let mut images: Vec<u64> = (0..size).map(|i| permutation.apply(i).unwrap()).collect();
            images.sort_unstable();
            prop_assert_eq!(images, (0..size).collect::<Vec<_>>());
        }

        #[test]
        fn a_large_range_maps_to_itself(size in LARGEST / 2..=LARGEST, at: prop::sample::Index, keys: [u64; 6]) {
            let permutation = Permutation::new(size, keys).unwrap();
            let position = at.index(usize::MAX) as u64 % size;
            prop_assert!(permutation.apply(position).unwrap() < size);
        }
    }

    #[test]
    fn out_of_range_arguments_are_errors() {
        assert!(Permutation::new(0, [0; 6]).is_err());
        assert!(Permutation::new(LARGEST + 1, [0; 6]).is_err());
        assert!(Permutation::new(3, [0; 6]).unwrap().apply(3).is_err());
    }
}

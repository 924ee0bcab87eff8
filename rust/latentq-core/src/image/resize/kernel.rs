//! The two passes of a resize, dispatched to the kernels of an instruction set. All kernels give identical bits: sums are
//! modulo 2^32, where the digits that a weight is split into add up exactly.

use super::weights::{Axis, GROUP, HALF, Weights, clip};

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{x86, x86_vnni};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::isa::{self, Level};

/// An instruction set that the passes are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2: 16-bit multiply-add, 256-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512: the same, in 512-bit vectors for the vertical pass.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 VNNI and VBMI: 8-bit multiply-add and byte permutation, 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// NEON: 32-bit multiply-add, 128-bit vectors.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The instruction sets that may be used, the fastest last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut found = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let levels =
                [(Level::Avx2, Self::Avx2), (Level::Avx512, Self::Avx512), (Level::Avx512Vbmi, Self::Avx512Vnni)];
            found.extend(levels.into_iter().filter(|(level, _)| isa::best() >= *level).map(|(_, own)| own));
        }
        #[cfg(target_arch = "aarch64")]
        found.extend((isa::best() >= Level::Neon).then_some(Self::Neon));
        found
    }

    /// The fastest instruction set that may be used.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }
}

/// Computes the weights of an axis. All instruction sets give the same: none multiplies and adds in one step.
pub fn weights(axis: Axis, isa: Isa) -> Weights {
    let values = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 | Isa::Avx512Vnni => x86::weights(&axis),
        _ => axis.values(),
    };
    axis.weights(values)
}

/// A horizontal pass, with its weights in the layout of its kernel.
pub struct Horizontal {
    weights: Arranged,
    /// Bytes of the used pixels of a row.
    filled: usize,
    /// Bytes of a row that are read, from the first used pixel on. Those after the used pixels are multiplied by zero.
    reach: usize,
}

enum Arranged {
    Plain(Weights),
    #[cfg(target_arch = "x86_64")]
    Pairs(x86::Pairs),
    #[cfg(target_arch = "x86_64")]
    Blocks(x86_vnni::Blocks),
    #[cfg(target_arch = "aarch64")]
    Neon(Weights),
}

impl Horizontal {
    pub fn new(weights: Weights, isa: Isa) -> Self {
        let filled = weights.inputs().len() * 3;
        let (weights, reach) = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 if weights.fit_digits() => {
                let pairs = x86::Pairs::new(&weights);
                let reach = pairs.reach();
                (Arranged::Pairs(pairs), reach)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni if weights.fit_digits() => {
                let blocks = x86_vnni::Blocks::new(&weights);
                let reach = blocks.reach();
                (Arranged::Blocks(blocks), reach)
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => (Arranged::Neon(weights), filled + 1),
            _ => (Arranged::Plain(weights), filled),
        };
        Self { weights, filled, reach: reach.max(filled) }
    }

    /// Bytes after a row that are read.
    pub fn padding(&self) -> usize {
        self.reach - self.filled
    }

    /// Resamples rows that are `stride` bytes apart to contiguous rows of `width` bytes in `out`. The last row may end with
    /// its last pixel.
    pub fn run(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        let rows = out.len() / width;
        // Kernels read whole vectors, beyond the last pixel of a row, so the last rows are copied to a padded buffer.
        let inside = match input.len().checked_sub(self.reach) {
            Some(spare) => spare.checked_div(stride).map_or(rows, |before| rows.min(before + 1)),
            None => 0,
        };
        let (whole, rest) = out.split_at_mut(inside * width);
        for (index, out) in whole.chunks_mut(width * GROUP).enumerate() {
            self.group(&input[index * GROUP * stride..], stride, out, width);
        }
        if !rest.is_empty() {
            let mut padded = vec![0; self.reach];
            for (row, out) in (inside..rows).zip(rest.chunks_exact_mut(width)) {
                padded[..self.filled].copy_from_slice(&input[row * stride..][..self.filled]);
                self.group(&padded, 0, out, width);
            }
        }
    }

    fn group(&self, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
        match &self.weights {
            Arranged::Plain(weights) => plain(weights, input, stride, out, width),
            #[cfg(target_arch = "x86_64")]
            Arranged::Pairs(pairs) => pairs.rows(input, stride, out, width),
            #[cfg(target_arch = "x86_64")]
            Arranged::Blocks(blocks) => blocks.rows(input, stride, out, width),
            #[cfg(target_arch = "aarch64")]
            Arranged::Neon(weights) => neon::rows(weights, input, stride, out, width),
        }
    }
}

fn plain(weights: &Weights, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
    let first = weights.inputs().start;
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        let row = &input[row * stride..];
        for (pixel, (start, weights)) in out.chunks_exact_mut(3).zip(weights.iter()) {
            let mut sums = [HALF; 3];
            for (input, &weight) in row[(start - first) * 3..].chunks_exact(3).zip(weights) {
                for channel in 0..3 {
                    sums[channel] = sums[channel].wrapping_add(i32::from(input[channel]).wrapping_mul(weight));
                }
            }
            pixel.copy_from_slice(&sums.map(clip));
        }
    }
}

/// Computes one row of a vertical pass: the weighted sum of `weights.len()` rows that are `stride` bytes apart.
pub fn vertical(input: &[u8], stride: usize, weights: &[i32], out: &mut [u8], isa: Isa) {
    let done = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::vertical_avx2(input, stride, weights, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::vertical_avx512(input, stride, weights, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => x86_vnni::vertical_vnni(input, stride, weights, out),
        // The compiler vectorizes the plain loop for NEON.
        _ => 0,
    };
    // The rest of the row, in pieces whose sums fit in registers.
    const PIECE: usize = 64;
    for start in (done..out.len()).step_by(PIECE) {
        let out = &mut out[start..];
        let length = out.len().min(PIECE);
        let mut sums = [HALF; PIECE];
        for (row, &weight) in weights.iter().enumerate() {
            for (sum, &value) in sums.iter_mut().zip(&input[row * stride + start..][..length]) {
                *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
            }
        }
        for (value, &sum) in out.iter_mut().zip(&sums) {
            *value = clip(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The sums over white pixels come to the limits of 16 and of 32 bits, and pass those of `fit_words`.
    #[test]
    fn digits_at_their_limits_add_up() {
        let white = [255; 252 * 64];
        for weight in [32767, 32768, 32769, 65535, 65536, 98303, 98304, 127 << 15] {
            for count in [1, 2, 63, 64, 80, 119, 120, 126, 127, 128, 239, 240, 241, 250, 252] {
                for sign in [1, -1] {
                    let weights = vec![sign * weight; count];
                    let mut plain = [0; 64];
                    vertical(&white, 64, &weights, &mut plain, Isa::Scalar);
                    for isa in Isa::available() {
                        let mut out = [1; 64];
                        vertical(&white, 64, &weights, &mut out, isa);
                        assert_eq!(out, plain, "{isa:?} {weight} {count} {sign}");
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        // Larger weights than those of any filter, so that the sums come to the limits of every kernel.
        #[test]
        fn every_instruction_set_gives_the_column_sums_of_plain_rust(
            weights in prop::collection::vec(-(127 << 16) + 1..127 << 16, 1..260),
            divisor in 1..260,
            random in prop::collection::vec(any::<u8>(), 260 * 70),
            all_white: bool,
            extra in 0usize..70,
        ) {
            let weights: Vec<i32> = weights.iter().map(|weight| weight / divisor).collect();
            let input: Vec<u8> = random.iter().map(|value| if all_white { 255 } else { *value }).collect();
            let mut plain = vec![0; extra + 1];
            vertical(&input, 70, &weights, &mut plain, Isa::Scalar);
            for isa in Isa::available() {
                let mut out = vec![0; extra + 1];
                vertical(&input, 70, &weights, &mut out, isa);
                prop_assert_eq!(&out, &plain, "{:?}", isa);
            }
        }
    }
}

//! Horizontal resize kernel of AArch64: the three channels of a pixel in one vector of 32-bit sums.

#![allow(unsafe_code)]

use std::arch::aarch64::*;

use super::weights::{HALF, PRECISION, Weights};

const _: () = assert!(PRECISION == 22);

/// Resamples rows. Each row must be readable for four bytes beyond its last pixel.
pub fn rows(weights: &Weights, input: &[u8], stride: usize, out: &mut [u8], width: usize) {
    let first = weights.inputs().start;
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        for (pixel, (start, weights)) in out.chunks_exact_mut(3).zip(weights.iter()) {
            let taps = &input[row * stride + (start - first) * 3..];
            // SAFETY: all AArch64 targets of Rust's standard library have NEON.
            let sums = unsafe { sums(taps, weights) };
            pixel.copy_from_slice(&sums[..3]);
        }
    }
}

#[target_feature(enable = "neon")]
fn sums(taps: &[u8], weights: &[i32]) -> [u8; 4] {
    let mut sums = vdupq_n_s32(HALF);
    for (tap, &weight) in weights.iter().enumerate() {
        let Some(bytes) = taps[tap * 3..].first_chunk::<4>() else { break };
        let pixel = vreinterpret_u8_u32(vdup_n_u32(u32::from_le_bytes(*bytes)));
        let pixel = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(pixel))));
        sums = vmlaq_n_s32(sums, pixel, weight);
    }
    let short = vqmovun_s32(vshrq_n_s32::<22>(sums));
    let bytes = vqmovn_u16(vcombine_u16(short, short));
    vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)).to_le_bytes()
}

//! Each kernel is written once, as plain loops, and compiled for several instruction sets; the processor picks at run
//! time. A kernel must be `#[inline(always)]` all the way down, so that its loops are compiled inside the wrappers here.

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86_stream;

use super::floats::{Float, Floats, FloatsMut};
use super::kernel::{Counts, Kernel, Seen};
use super::scheme::Affine;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the architecture has (SSE2, NEON).
    Baseline,
    /// 256-bit vectors, and conversion from and to float16.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors with byte permutes (Ice Lake, Zen 4 and later).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every instruction set that this processor has, the best last.
    #[cfg(test)]
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(x86::has_avx2().then_some(Isa::Avx2));
            all.extend(x86::has_avx512().then_some(Isa::Avx512));
        }
        all
    }

    /// The best instruction set that this processor has.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx512() {
                return Isa::Avx512;
            }
            if x86::has_avx2() {
                return Isa::Avx2;
            }
        }
        Isa::Baseline
    }
}

// SAFETY of all below: the values Avx2 and Avx512 are made by `available` and `best` alone, after asking the processor.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
#[allow(unsafe_code)]
impl Isa {
    /// Runs the kernel as compiled for this instruction set.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Baseline => kernel.run(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
        }
    }

    /// [`Float::widen`] of every element, by the instruction set's own conversion where it has one.
    #[inline(always)]
    pub fn widen<F: Float>(self, bits: &[F::Bits], out: &mut [f32]) {
        let done = match F::floats(bits) {
            Floats::F16(bits) => self.widen_f16(bits, out),
            _ => 0,
        };
        for (bits, out) in bits[done..].iter().zip(&mut out[done..]) {
            *out = F::widen(*bits);
        }
    }

    /// [`Float::narrow`] of every element, by the instruction set's own conversion where it has one.
    #[inline(always)]
    pub fn narrow<F: Float>(self, values: &[f32], out: &mut [F::Bits]) {
        let done = match F::floats_mut(out) {
            Some(FloatsMut::F16(out)) => self.narrow_f16(values, out),
            _ => 0,
        };
        for (value, out) in values[done..].iter().zip(&mut out[done..]) {
            *out = F::narrow(*value);
        }
    }

    /// Widens float16; gives the number of elements done, which may be less than all.
    fn widen_f16(self, bits: &[u16], out: &mut [f32]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86::widen_f16(bits, out) },
        }
    }

    /// Rounds to float16; gives the number of elements done, which may be less than all.
    fn narrow_f16(self, values: &[f32], out: &mut [u16]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => unsafe { x86::narrow_f16(values, out) },
        }
    }

    /// Encodes to the nearest code; gives the number of elements done, which may be less than all.
    pub(super) fn encode(self, affine: &Affine, x: Floats<'_>, out: &mut [u8]) -> (usize, Seen) {
        match (self, x) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, x) => (x.len(), unsafe { x86::encode_avx512(affine, x, out) }),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Floats::F16(x)) => unsafe { x86::encode_f16_avx2(affine, x, out) },
            _ => (0, Seen::NOTHING),
        }
    }

    /// Decodes; gives the number of elements done, which may be less than all.
    pub(super) fn decode(self, affine: &Affine, codes: &[u8], out: FloatsMut<'_>) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::decode_avx512(affine, codes, out) },
            _ => 0,
        }
    }

    /// Looks codes up in a table; gives the number of elements done, which may be less than all.
    pub fn look_up(self, table: &[f32; 256], bits: u32, codes: &[u8], out: &mut [f32]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if bits <= 4 => unsafe { x86::look_up_avx2(table, codes, out) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::look_up_avx512(table, codes, out) },
        }
    }

    /// Searches a code book's tree for each x; gives the number of elements done, which may be less than all.
    pub fn search(self, tree: &[f32; 256], bits: u32, x: &[f32], out: &mut [u8]) -> usize {
        match self {
            Isa::Baseline => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::search_avx512(tree, bits, x, out) },
        }
    }

    /// Quantises to the nearest code, past the caches: for codes that no cache will hold until they are read. `None` where
    /// the instruction set has no such stores, or they would not pay.
    pub(super) fn quantize_past_caches<F: Float>(
        self,
        affine: &[Affine],
        x: &[F::Bits],
        out: &mut [u8],
        plane: usize,
    ) -> Option<Counts> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some(unsafe { x86_stream::quantize::<F>(affine, x, out, plane) }),
            _ => None,
        }
    }
}

//! Each kernel is written once, as plain loops, and compiled for several instruction sets; the processor picks at run
//! time. A kernel must be `#[inline(always)]` all the way down, so that its loops are compiled inside the wrappers here.

/// A piece of work whose body is compiled once for each instruction set.
pub trait Kernel {
    /// What it gives back.
    type Output;
    /// The body. Implementations must be `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the architecture has (SSE2, NEON).
    Baseline,
    /// 256-bit integer and float vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors with bytes, words and byte permutes (Ice Lake, Zen 4 and later).
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
            if is_x86_feature_detected!("avx2") {
                all.push(Isa::Avx2);
            }
            if has_avx512() {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    /// The best instruction set that this processor has.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Isa::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Isa::Avx2;
            }
        }
        Isa::Baseline
    }

    /// Runs the kernel as compiled for this instruction set.
    #[allow(unsafe_code)]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Baseline => kernel.run(),
            // SAFETY: these values are made by `available` and `best` alone, after asking the processor.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vbmi")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

//! The instruction sets that kernels may use: those of this processor, up to the one that the environment variable
//! `LATENTQ_ISA` names. Results do not depend on it.

use std::ffi::OsStr;
use std::sync::OnceLock;

use crate::{Error, Result};

/// Instruction sets. Each x86-64 one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The baseline of the architecture.
    Scalar,
    /// NEON (ARM).
    Neon,
    /// AVX2, with the conversion of float16 and the bit instructions that every processor with AVX2 has.
    Avx2,
    /// AVX-512 of Skylake: F, BW, VL and DQ.
    Avx512,
    /// AVX-512 of Ice Lake and Zen 4: byte permutes (VBMI) and 8-bit multiply-add (VNNI).
    Avx512Vbmi,
}

impl Level {
    /// The value of `LATENTQ_ISA` that allows this instruction set and no better one.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 | Level::Avx512Vbmi => "avx512",
        }
    }
}

/// The best instruction set that may be used. Without a valid cap it is the processor's.
pub fn best() -> Level {
    chosen().clone().unwrap_or_else(|_| of_processor())
}

/// True if the bfloat16 conversion instruction may be used.
#[cfg(target_arch = "x86_64")]
pub fn has_bfloat16() -> bool {
    best() >= Level::Avx512Vbmi && is_x86_feature_detected!("avx512bf16")
}

/// Checks the environment variable.
///
/// # Errors
/// An argument error if it names no instruction set.
pub fn check() -> Result<()> {
    chosen().clone().map(|_| ()).map_err(Error::argument)
}

/// The answer of the environment when it was first asked.
fn chosen() -> &'static std::result::Result<Level, String> {
    static CHOSEN: OnceLock<std::result::Result<Level, String>> = OnceLock::new();
    CHOSEN.get_or_init(|| capped(of_processor(), std::env::var_os("LATENTQ_ISA").as_deref()))
}

/// The best instruction set of the processor under a cap; an empty cap is none. NEON is no part of an x86-64 processor:
/// there it leaves the baseline.
fn capped(found: Level, cap: Option<&OsStr>) -> std::result::Result<Level, String> {
    let Some(cap) = cap.filter(|cap| !cap.is_empty()) else { return Ok(found) };
    let cap = match cap.to_str() {
        Some("scalar") => Level::Scalar,
        Some("neon") => Level::Neon,
        Some("avx2") => Level::Avx2,
        Some("avx512") => Level::Avx512Vbmi,
        _ => return Err(format!("LATENTQ_ISA must be scalar, neon, avx2 or avx512, not {cap:?}")),
    };
    Ok(match found.min(cap) {
        Level::Neon if found != Level::Neon => Level::Scalar,
        level => level,
    })
}

fn of_processor() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("pclmulqdq");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        if avx512
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Level::Avx512Vbmi;
        }
        if avx512 {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    if cfg!(target_arch = "aarch64") { Level::Neon } else { Level::Scalar }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_lowers_and_never_raises() {
        let levels = [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512, Level::Avx512Vbmi];
        for found in levels {
            assert_eq!(capped(found, None), Ok(found));
            assert_eq!(capped(found, Some(OsStr::new(""))), Ok(found));
            for cap in levels {
                let chosen = capped(found, Some(OsStr::new(cap.name()))).unwrap();
                let expected = if cap == Level::Neon && found > cap { "scalar" } else { found.min(cap).name() };
                assert!(chosen <= found && chosen.name() == expected, "{found:?} {cap:?} {chosen:?}");
            }
        }
    }

    #[test]
    fn an_unknown_cap_is_named() {
        for cap in ["avx", "AVX2", "avx512 ", "0"] {
            assert!(capped(Level::Avx2, Some(OsStr::new(cap))).unwrap_err().contains(cap));
        }
    }
}

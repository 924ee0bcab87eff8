//! The core of latentq: pixels, quantized latents and MDS shards. It is independent of Python.

pub mod batch;
mod copy;
pub mod error;
pub mod image;
pub mod isa;
pub mod mds;
mod memory;
pub mod parallel;
pub mod permutation;
pub mod quant;
pub mod recycled;

pub use error::{Error, Kind, Result};

//! The core of latentq: pixels, quantised latents and MDS shards. It knows nothing of Python.

pub mod batch;
pub mod error;
pub mod image;
pub mod mds;
mod memory;
pub mod order;
pub mod parallel;
pub mod quant;

pub use error::{Error, Kind, Result};

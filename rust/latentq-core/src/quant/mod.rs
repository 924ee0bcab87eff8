//! Floats to small integers and back: what a scheme is, the kernels that apply it, bit packing, calibration and sums.
//!
//! Arrays are `(N, C, ...)` in C order. `plane` is the number of elements that one sample holds for one channel, so an
//! array has `N * C * plane` elements. `docs/quantizer.md` writes down the arithmetic and the packed layout.

mod calibrate;
mod half;
mod isa;
mod kernels;
mod moments;
mod pack;
mod scheme;
#[cfg(target_arch = "x86_64")]
mod stream;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use calibrate::{Calibrator, Cost, Method};
pub use half::{BF16, F16, F32, F64, Float, Floats, FloatsMut};
pub use kernels::{Counts, convert};
pub use moments::{Moments, moments};
pub use pack::{pack, packed_len, unpack};
pub use scheme::{Affine, Codebook, Quantizer, Rounding, Scheme};

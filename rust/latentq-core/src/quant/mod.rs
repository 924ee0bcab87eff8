//! Floats to small integers and back: quantizers, the kernels that apply them, bit packing, calibration and sums.
//!
//! Arrays are `(N, C, ...)` in C order. `plane` is the number of elements that one sample has in one channel, so an
//! array has `N * C * plane` elements. `docs/quantizer.md` documents the arithmetic and the packed layout.

mod arch;
mod arrays;
mod calibrate;
mod cells;
mod convert;
mod decode;
mod encode;
mod floats;
mod kernel;
mod moments;
mod pack;
mod scheme;
mod streams;
mod transform;
mod trellis;
mod viterbi;

pub use arch::Isa;
pub use calibrate::{Calibrator, Cost, Method};
pub use convert::convert;
pub use floats::{BF16, F16, F32, F64, Float, Floats, FloatsMut};
pub use kernel::ValueCounts;
pub use moments::{Moments, moments};
pub use pack::{pack, packed_len, unpack};
pub use scheme::{Affine, Codebook, Quantizer, Rounding, Scheme};
pub use transform::{
    BadSample, EncodedRows, Fault, NumbersMut, SYMBOLS, TABLES, Transform, TransformCalibrator, TransformTables,
    check_transform_shape,
};
pub use trellis::{TrellisCalibrator, TrellisLevels};

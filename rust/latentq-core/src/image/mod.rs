//! Images in, pixels out: the pixels of Pillow, to the last bit.

mod color;
mod decode;
mod exif;
mod geometry;
mod load;
mod pixels;
mod resize;
mod tiff_directory;

pub use color::{Alpha, Icc};
pub use decode::{Header, header};
pub use exif::orientation;
pub use geometry::{Crop, Fit};
pub use load::{DecodeOptions, MAX_PIXELS, Source, decode, fit, fit_with, load, load_batch, load_many, resize};
pub use pixels::{Image, Layout, View};
pub use resize::{Filter, Kernel};

//! Encoded images to RGB pixels, bit-exact with Pillow.

mod color;
mod decode;
mod geometry;
mod load;
mod orientation;
mod pixels;
mod resize;
mod tiff_directory;

pub use color::{Alpha, Icc};
pub use decode::{Header, header};
pub use geometry::{Crop, Fit, window};
pub use load::{
    DecodeOptions, Encoded, MAX_PIXELS, decode, decode_and_drop, fit, fit_with, load, load_batch, load_into, load_many,
    resize, upright_size,
};
pub use orientation::orientation;
pub use pixels::{Image, Layout, View};
pub use resize::{Filter, Isa};

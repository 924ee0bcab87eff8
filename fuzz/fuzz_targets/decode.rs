//! Any bytes are an error or an image: no panic, no crash, and no memory that the pixel limit does not allow.
#![no_main]

use latentq_core::image::{Crop, DecodeOptions, Filter, Fit, decode, header, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let options = DecodeOptions { max_pixels: 1 << 16, ..DecodeOptions::default() };
    let _ = header(data);
    let decoded = decode(data, &options);
    for crop in [Crop::Center, Crop::Adm] {
        let loaded = load(data, Fit { size: 16, crop, filter: Filter::Bicubic }, &options);
        assert_eq!(decoded.is_ok(), loaded.is_ok());
    }
});

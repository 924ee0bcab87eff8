//! Any bytes give an error or an image, without a panic, a crash or more memory than the pixel limit allows.
#![no_main]

use latentq_core::image::{Crop, DecodeOptions, Filter, Fit, decode, header, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let options = DecodeOptions { max_pixels: 1 << 16, ..DecodeOptions::default() };
    let _ = header(data);
    let decoded = decode(data, &options);
    for crop in [Crop::Center, Crop::Adm] {
        let loaded = load(data, Fit::square(16, crop, Filter::Bicubic), &options);
        assert_eq!(decoded.is_ok(), loaded.is_ok());
    }
});

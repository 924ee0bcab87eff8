//! Any bytes give an orientation of 1 to 8.
#![no_main]

use latentq_core::image::orientation;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!((1..=8).contains(&orientation(data, None)));
    assert!((1..=8).contains(&orientation(&[], Some(data))));
});

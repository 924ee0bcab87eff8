//! Prints how long each instruction set of this processor takes to fit an image to 256: the median of 50 runs.

use std::time::Instant;

use latentq_core::image::{Crop, Filter, Fit, Isa, View, fit_with};

fn main() {
    let target = Fit::square(256, Crop::Center, Filter::Bicubic);
    for (width, height) in [(500, 375), (2048, 1536), (4000, 3000)] {
        let pixels: Vec<u8> = (0..width * height * 3).map(|index| ((index * 2_654_435_761) >> 13) as u8).collect();
        let view = View::new(width, height, &pixels).expect("pixels of that size");
        let plain = fit_with(view, target, Isa::Scalar).expect("a fit");
        for isa in Isa::available() {
            assert!(fit_with(view, target, isa).expect("a fit") == plain, "{isa:?} gives different pixels");
            let mut seconds: Vec<f64> = (0..50)
                .map(|_| {
                    let start = Instant::now();
                    fit_with(view, target, isa).expect("a fit");
                    start.elapsed().as_secs_f64()
                })
                .collect();
            seconds.sort_by(f64::total_cmp);
            println!("{width} x {height}, {isa:?}: {:.3} ms", seconds[25] * 1e3);
        }
    }
}

//! Measures libjpeg-turbo alone: decodes the files named on the command line into one buffer, and prints the processor
//! seconds of each pass over all files. The first argument is the number of passes.

use turbojpeg_sys::{
    TJINIT_TJINIT_DECOMPRESS, TJPARAM_TJPARAM_JPEGHEIGHT, TJPARAM_TJPARAM_JPEGWIDTH, TJPF_TJPF_RGB, tj3Decompress8,
    tj3DecompressHeader, tj3Destroy, tj3Get, tj3Init,
};

#[allow(unsafe_code)]
fn main() {
    let mut arguments = std::env::args().skip(1);
    let passes: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let files: Vec<Vec<u8>> = arguments.map(|path| std::fs::read(path).expect("a readable file")).collect();
    // SAFETY: only this thread uses the handle, which is destroyed at the end, and the buffer has room for each image.
    unsafe {
        let handle = tj3Init(TJINIT_TJINIT_DECOMPRESS as i32);
        let mut pixels = Vec::new();
        for _ in 0..passes {
            let start = processor_seconds();
            for file in &files {
                assert_eq!(tj3DecompressHeader(handle, file.as_ptr(), file.len() as _), 0);
                let width = tj3Get(handle, TJPARAM_TJPARAM_JPEGWIDTH as i32) as usize;
                let height = tj3Get(handle, TJPARAM_TJPARAM_JPEGHEIGHT as i32) as usize;
                pixels.resize(pixels.len().max(width * height * 3), 0u8);
                let format = TJPF_TJPF_RGB;
                assert_eq!(tj3Decompress8(handle, file.as_ptr(), file.len() as _, pixels.as_mut_ptr(), 0, format), 0);
            }
            println!("{}", processor_seconds() - start);
        }
        tj3Destroy(handle);
    }
}

#[allow(unsafe_code)]
fn processor_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

//! Compiles the only C file of the crate: libjpeg reports errors by `longjmp`, which only C can catch.

fn main() {
    println!("cargo:rerun-if-changed=src/image/decode/jpeg.c");
    // Set by turbojpeg-sys, which builds libjpeg-turbo; a comma-separated list of folders.
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    // The warning is a false positive: no clobbered variable is used after a jump.
    cc::Build::new()
        .file("src/image/decode/jpeg.c")
        .includes(include.split(','))
        .warnings(true)
        .flag_if_supported("-Wno-clobbered")
        .compile("latentq_jpeg");
}

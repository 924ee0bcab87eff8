//! Compiles the one C file of the crate: libjpeg reports errors by `longjmp`, which only C can catch.

fn main() {
    println!("cargo:rerun-if-changed=src/image/decode/jpeg.c");
    // Set by turbojpeg-sys, which builds libjpeg-turbo; several folders are separated by commas.
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    // No variable that a jump could lose is used after one.
    cc::Build::new()
        .file("src/image/decode/jpeg.c")
        .includes(include.split(','))
        .warnings(true)
        .flag_if_supported("-Wno-clobbered")
        .compile("latentq_jpeg");
}

//! Any bytes as a compressed shard decompress to at most the limit.
#![no_main]

use latentq_core::mds::Compression;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, packed)) = data.split_first() else { return };
    let names = ["br", "bz2", "gz", "snappy", "zstd"];
    let compression = Compression::parse(names[usize::from(*first) % names.len()]).expect("a known compression");
    if let Ok(bytes) = compression.decompress_up_to(packed, 1 << 16) {
        assert!(bytes.len() <= 1 << 16);
    }
});

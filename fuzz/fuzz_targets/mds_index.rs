//! Any bytes as an index.json give a value or a fault inside them.
#![no_main]

use latentq_core::mds::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match Index::parse(data) {
        Ok(index) => {
            let columns = index.schema.columns.len();
            assert!(index.shards.iter().all(|shard| shard.schema.columns.len() == columns));
            assert!(index.shards.iter().all(|shard| shard.samples <= shard.raw.bytes / 4));
        }
        Err(fault) => assert!(fault.offset <= data.len() as u64, "{fault:?}"),
    }
});

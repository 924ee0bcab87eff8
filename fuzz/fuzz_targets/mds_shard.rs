//! Any bytes as a shard, with the schema that the first byte selects and with the shard's own configuration: faults inside
//! the shard, or contiguous samples.
#![no_main]

use std::borrow::Cow;
use std::sync::LazyLock;

use latentq_core::mds::{Column, Schema, Table, check, entry_of};
use libfuzzer_sys::fuzz_target;

static SCHEMAS: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    let schema = |columns: &[(&str, &str)]| {
        Schema::new(columns.iter().filter_map(|(name, encoding)| Column::new(name, encoding).ok()).collect())
    };
    vec![
        schema(&[("a", "int")]),
        schema(&[("a", "bytes")]),
        schema(&[("a", "bytes"), ("b", "str"), ("c", "int")]),
        schema(&[("a", "uint8"), ("b", "ndarray:uint8:2,2"), ("c", "raw:uint16"), ("d", "json")]),
        schema(&[("a", "ndarray"), ("b", "float32"), ("c", "ndarray:float16"), ("d", "jpeg_array")]),
    ]
});

fuzz_target!(|data: &[u8]| {
    let Some((first, shard)) = data.split_first() else { return };
    // With the shard's own configuration, as in `repair`.
    if let Ok(Err(fault)) = entry_of("shard.00000.mds", shard) {
        assert!(fault.offset <= shard.len() as u64, "{fault:?}");
    }
    let schema = &SCHEMAS[usize::from(*first) % SCHEMAS.len()];
    let Some(n) = shard.get(..4).map(|n| u64::from(u32::from_le_bytes([n[0], n[1], n[2], n[3]]))) else { return };
    for fault in check(n, schema, shard).into_iter().flatten() {
        assert!(fault.offset <= shard.len() as u64, "{fault:?}");
    }
    let read = |range: std::ops::Range<u64>| {
        Ok(Cow::Borrowed(shard.get(range.start as usize..range.end as usize).expect("a range within the shard")))
    };
    if let Ok(table) = Table::load(n, shard.len() as u64, schema, read) {
        let ends: Vec<u64> = (0..table.len()).map(|i| table.range(i).end).collect();
        assert!(ends.is_sorted() && ends.last().is_none_or(|end| *end == shard.len() as u64));
    }
});

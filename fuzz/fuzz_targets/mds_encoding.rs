//! Any bytes as a value, of the encoding that the first byte selects: decoded within the bytes, or a fault inside them.
#![no_main]

use std::sync::LazyLock;

use latentq_core::mds::{Column, Value, array_header};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 31] = [
    "bytes", "str", "json", "int", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16",
    "float32", "float64", "str_int", "str_float", "str_decimal", "ndarray", "ndarray:float32", "ndarray:uint8:2,3",
    "raw:int16", "raw:uint8", "pil", "jpeg", "png", "jpeg_array", "jpegarray", "list[pil]", "list[jpeg]", "list[png]",
];

static COLUMNS: LazyLock<Vec<Column>> =
    LazyLock::new(|| NAMES.iter().map(|name| Column::new("c", name).expect("a known encoding")).collect());

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let column = &COLUMNS[usize::from(*first) % COLUMNS.len()];
    match column.encoding.decode(bytes) {
        Err(fault) => assert!(fault.offset <= bytes.len() as u64, "{fault:?}"),
        Ok(Value::Array(array)) => {
            let size = array.shape.iter().product::<usize>() * array.dtype.size();
            assert_eq!(size, array.data.len());
            // A decoded array encodes to the same values.
            if NAMES[usize::from(*first) % NAMES.len()] == "ndarray" {
                let header = array_header(None, None, array.dtype, &array.shape).expect("an array that was read");
                let again = [header, array.data.to_vec()].concat();
                assert_eq!(column.encoding.decode(&again), Ok(Value::Array(array)));
            }
        }
        Ok(Value::Blobs(blobs)) => assert!(blobs.iter().map(|blob| blob.len()).sum::<usize>() <= bytes.len()),
        Ok(_) => {}
    }
});

//! `latentq_core::permutation` for Python.

use latentq_core::permutation::{Permutation, ROUNDS};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::error::to_py;

/// Permutes positions, in place: replaces each by the position that it is mapped to.
#[pyfunction]
fn permute(positions: &Bound<'_, PyArray1<i64>>, size: u64, keys: [u64; ROUNDS]) -> PyResult<()> {
    let permutation = Permutation::new(size, keys).map_err(to_py)?;
    for position in positions.try_readwrite()?.as_slice_mut()? {
        // A negative position becomes too large and is refused. A permuted position is below 2^62, so it fits i64.
        *position = permutation.apply(*position as u64).map_err(to_py)? as i64;
    }
    Ok(())
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(permute, module)?)
}

//! `latentq._core`: thin bindings without logic, one file per module of the core.

use pyo3::prelude::*;

mod batch;
mod error;
mod image;
mod mds;
mod permutation;
mod quant;
mod recycled;
mod transform;
mod values;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // A cap that is misspelled would be measured as if it were obeyed.
    latentq_core::isa::check().map_err(error::to_py)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    batch::register(module)?;
    image::register(module)?;
    mds::register(module)?;
    permutation::register(module)?;
    quant::register(module)?;
    recycled::register(module)?;
    transform::register(module)?;
    module.add_function(wrap_pyfunction!(isa, module)?)
}

/// The best instruction set that is used.
#[pyfunction]
fn isa() -> &'static str {
    latentq_core::isa::best().name()
}

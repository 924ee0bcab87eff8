//! `latentq._core`: thin bindings, one file for each module of the core, and no logic.

use pyo3::prelude::*;

mod batch;
mod error;
mod image;
mod mds;
mod order;
mod quant;
mod values;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    batch::register(module)?;
    image::register(module)?;
    mds::register(module)?;
    order::register(module)?;
    quant::register(module)?;
    Ok(())
}

//! The exceptions of latentq, and how the core's error becomes one of them.

use latentq_core::{Error, Kind};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;

create_exception!(latentq, LatentqError, PyException, "The base of latentq's own exceptions.");
create_exception!(latentq, FormatError, LatentqError, "A file or value whose bytes are not what their format demands.");
create_exception!(latentq, ImageError, LatentqError, "An image that cannot be decoded, or that is over a limit.");
create_exception!(
    latentq,
    RecipeError,
    LatentqError,
    "A recipe that cannot be read, or that asks for what cannot be had."
);
create_exception!(
    latentq,
    MismatchError,
    LatentqError,
    "Two things that must agree and do not; the message names both sides."
);

/// The Python exception for an error of the core: `OSError` (with errno and file name, so that Python picks
/// `FileNotFoundError` and its kin), `FormatError`, `ImageError` or `ValueError`.
pub fn to_py(error: Error) -> PyErr {
    match error.kind() {
        Kind::Io => {
            let path = error.path().map(|path| path.as_os_str().to_os_string());
            match error.io_error().and_then(|io| io.raw_os_error().map(|errno| (errno, io))) {
                Some((errno, io)) => {
                    // io::Error writes "No such file or directory (os error 2)"; Python adds its own number.
                    let text = io.to_string();
                    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
                    PyOSError::new_err((errno, text, path))
                }
                None => PyOSError::new_err(error.to_string()),
            }
        }
        Kind::Format => FormatError::new_err(error.to_string()),
        Kind::Image => ImageError::new_err(error.to_string()),
        Kind::Argument => PyValueError::new_err(error.to_string()),
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("LatentqError", py.get_type::<LatentqError>())?;
    module.add("FormatError", py.get_type::<FormatError>())?;
    module.add("ImageError", py.get_type::<ImageError>())?;
    module.add("RecipeError", py.get_type::<RecipeError>())?;
    module.add("MismatchError", py.get_type::<MismatchError>())?;
    Ok(())
}

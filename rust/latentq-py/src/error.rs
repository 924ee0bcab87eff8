//! The exceptions of latentq, and the conversion of core errors to Python exceptions.

use latentq_core::{Error, Kind};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;

create_exception!(latentq, LatentqError, PyException, "Base class of latentq's exceptions.");
create_exception!(latentq, FormatError, LatentqError, "A file or value violates its format.");
create_exception!(latentq, ImageError, LatentqError, "An image cannot be decoded or exceeds a limit.");
create_exception!(
    latentq,
    RecipeError,
    LatentqError,
    "A recipe is invalid, or asks for something that is not available."
);
create_exception!(latentq, MismatchError, LatentqError, "Two things that must agree differ; the message names both.");

/// Converts a core error to `OSError` (with errno and file name, so that Python picks the subclass, such as
/// `FileNotFoundError`), `FormatError`, `ImageError`, `ValueError` or `MemoryError`.
pub fn to_py(error: Error) -> PyErr {
    match error.kind() {
        Kind::Io => {
            let path = error.path().map(|path| path.as_os_str().to_os_string());
            match error.io_error().and_then(|io| io.raw_os_error().map(|errno| (errno, io))) {
                Some((errno, io)) => {
                    // io::Error formats as "No such file or directory (os error 2)"; Python adds the number itself.
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
        Kind::Memory => PyMemoryError::new_err(error.to_string()),
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

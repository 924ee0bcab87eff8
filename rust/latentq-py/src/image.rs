//! `latentq.image`: typed arguments in, the core without the interpreter, arrays out.

use std::path::PathBuf;

use latentq_core::image::{self, Alpha, Crop, DecodeOptions, Filter, Fit, Icc, Image, Layout, Source, View};
use numpy::{PyArray1, PyArray3, PyArrayMethods, PyReadonlyArray3, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::error::to_py;

/// Bytes, or a path: in that order, so that bytes are never taken for one.
#[derive(FromPyObject)]
enum Item {
    Bytes(PyBackedBytes),
    Path(PathBuf),
}

impl From<Item> for Source<PyBackedBytes> {
    fn from(item: Item) -> Self {
        match item {
            Item::Bytes(bytes) => Self::Bytes(bytes),
            Item::Path(path) => Self::Path(path),
        }
    }
}

/// A word for one of the values of an option.
fn choose<T: Copy>(option: &str, word: &str, choices: &[(&str, T)]) -> PyResult<T> {
    let found = choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        PyValueError::new_err(format!("unknown {option} {word:?}: {}", names.join(", ")))
    })
}

fn filter_named(word: &str) -> PyResult<Filter> {
    let choices = [
        ("box", Filter::Box),
        ("bilinear", Filter::Bilinear),
        ("hamming", Filter::Hamming),
        ("bicubic", Filter::Bicubic),
        ("lanczos", Filter::Lanczos),
    ];
    choose("filter", word, &choices)
}

fn fit_named(size: usize, crop: &str, filter: &str) -> PyResult<Fit> {
    let choices = [("center", Crop::Center), ("center-round", Crop::CenterRound), ("adm", Crop::Adm)];
    Ok(Fit { size, crop: choose("crop", crop, &choices)?, filter: filter_named(filter)? })
}

fn options_named(
    orient: bool,
    alpha: &str,
    icc: &str,
    min_side: Option<usize>,
    max_pixels: u64,
) -> PyResult<DecodeOptions> {
    let grounds = [("white", Alpha::White), ("black", Alpha::Black), ("drop", Alpha::Drop)];
    Ok(DecodeOptions {
        orient,
        alpha: choose("alpha", alpha, &grounds)?,
        icc: choose("icc", icc, &[("srgb", Icc::Srgb), ("ignore", Icc::Ignore)])?,
        min_side,
        max_pixels,
    })
}

fn to_array(py: Python<'_>, image: Image) -> PyResult<Bound<'_, PyArray3<u8>>> {
    PyArray1::from_vec(py, image.pixels).reshape([image.height, image.width, 3])
}

fn with_view<T: Send>(
    pixels: &PyReadonlyArray3<'_, u8>,
    work: impl FnOnce(View<'_>) -> latentq_core::Result<T> + Send,
) -> PyResult<T> {
    let py = pixels.py();
    let (height, width) = (pixels.as_array().shape()[0], pixels.as_array().shape()[1]);
    let slice = pixels.as_slice()?;
    py.detach(|| View::new(width, height, slice).and_then(work)).map_err(to_py)
}

#[pyfunction]
fn image_decode<'py>(
    py: Python<'py>,
    data: Item,
    orient: bool,
    alpha: &str,
    icc: &str,
    min_side: Option<usize>,
    max_pixels: u64,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let options = options_named(orient, alpha, icc, min_side, max_pixels)?;
    let source = Source::from(data);
    let image = py.detach(|| source.with_bytes(|bytes| image::decode(bytes, &options))).map_err(to_py)?;
    to_array(py, image)
}

#[pyfunction]
fn image_resize<'py>(
    py: Python<'py>,
    pixels: PyReadonlyArray3<'py, u8>,
    height: usize,
    width: usize,
    filter: &str,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let filter = filter_named(filter)?;
    to_array(py, with_view(&pixels, |view| image::resize(view, width, height, filter))?)
}

#[pyfunction]
fn image_fit<'py>(
    py: Python<'py>,
    pixels: PyReadonlyArray3<'py, u8>,
    size: usize,
    crop: &str,
    filter: &str,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let how = fit_named(size, crop, filter)?;
    to_array(py, with_view(&pixels, |view| image::fit(view, how))?)
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // one for each option of the public function
fn image_load<'py>(
    py: Python<'py>,
    data: Item,
    size: usize,
    crop: &str,
    filter: &str,
    orient: bool,
    alpha: &str,
    icc: &str,
    min_side: Option<usize>,
    max_pixels: u64,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    let how = fit_named(size, crop, filter)?;
    let options = options_named(orient, alpha, icc, min_side, max_pixels)?;
    let source = Source::from(data);
    let image = py.detach(|| source.with_bytes(|bytes| image::load(bytes, how, &options))).map_err(to_py)?;
    to_array(py, image)
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // one for each option of the public function
fn image_load_batch<'py>(
    py: Python<'py>,
    items: Vec<Item>,
    sizes: Vec<usize>,
    threads: usize,
    mut outs: Vec<PyReadwriteArray1<'py, u8>>,
    layout: &str,
    crop: &str,
    filter: &str,
    orient: bool,
    alpha: &str,
    icc: &str,
    min_side: Option<usize>,
    max_pixels: u64,
) -> PyResult<Vec<Option<PyErr>>> {
    let hows = sizes.into_iter().map(|size| fit_named(size, crop, filter)).collect::<PyResult<Vec<_>>>()?;
    let options = options_named(orient, alpha, icc, min_side, max_pixels)?;
    let layout = choose("layout", layout, &[("chw", Layout::Chw), ("hwc", Layout::Hwc)])?;
    let items: Vec<Source<PyBackedBytes>> = items.into_iter().map(Source::from).collect();
    let mut slices = outs.iter_mut().map(|out| out.as_slice_mut()).collect::<Result<Vec<_>, _>>()?;
    let errors =
        py.detach(|| image::load_batch(&items, &hows, &options, layout, threads, &mut slices)).map_err(to_py)?;
    Ok(errors.into_iter().map(|error| error.map(to_py)).collect())
}

#[pyfunction]
fn image_info(py: Python<'_>, data: Item) -> PyResult<(&'static str, usize, usize, u8, u8)> {
    let source = Source::from(data);
    let header = py.detach(|| source.with_bytes(image::header)).map_err(to_py)?;
    Ok((header.format, header.width, header.height, header.channels, header.orientation))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_PIXELS", image::MAX_PIXELS)?;
    module.add_function(wrap_pyfunction!(image_decode, module)?)?;
    module.add_function(wrap_pyfunction!(image_resize, module)?)?;
    module.add_function(wrap_pyfunction!(image_fit, module)?)?;
    module.add_function(wrap_pyfunction!(image_load, module)?)?;
    module.add_function(wrap_pyfunction!(image_load_batch, module)?)?;
    module.add_function(wrap_pyfunction!(image_info, module)?)?;
    Ok(())
}

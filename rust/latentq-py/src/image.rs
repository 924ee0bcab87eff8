//! `latentq_core::image` for Python.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use latentq_core::Error;
use latentq_core::image::{self, Alpha, Crop, DecodeOptions, Encoded, Filter, Fit, Icc, Image, Layout, View};
use latentq_core::mds::content_hash;
use latentq_core::parallel::Job;
use numpy::{
    PyArray1, PyArray3, PyArrayDescr, PyArrayMethods, PyReadonlyArray3, PyReadwriteArray1, PyReadwriteArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyDict;

use crate::batch::{SIGNAL_INTERVAL, Threads};
use crate::error::to_py;
use crate::recycled;

/// An encoded image: its bytes or its path, tried in this order, so that bytes are never mistaken for a path.
#[derive(FromPyObject)]
enum Item {
    Bytes(PyBackedBytes),
    Path(PathBuf),
}

impl From<Item> for Encoded<PyBackedBytes> {
    fn from(item: Item) -> Self {
        match item {
            Item::Bytes(bytes) => Self::Bytes(bytes),
            Item::Path(path) => Self::Path(path),
        }
    }
}

/// Height and width.
type Size = (usize, usize);

/// The options of `latentq.image`, extracted from one dict. A function ignores the options that do not concern it.
struct Options {
    crop: Crop,
    filter: Filter,
    layout: Layout,
    decode: DecodeOptions,
}

impl Options {
    fn fit(&self, (height, width): Size) -> Fit {
        Fit { height, width, crop: self.crop, filter: self.filter }
    }
}

impl<'py> FromPyObject<'_, 'py> for Options {
    type Error = PyErr;

    fn extract(options: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let options = &*options.cast::<PyDict>()?;
        let default = DecodeOptions::default();
        Ok(Self {
            crop: choice(options, "crop", &CROPS)?,
            filter: choice(options, "filter", &FILTERS)?,
            layout: choice(options, "layout", &LAYOUTS)?,
            decode: DecodeOptions {
                alpha: choice(options, "alpha", &ALPHAS)?,
                icc: choice(options, "icc", &ICCS)?,
                orient: value(options, "orient", default.orient)?,
                min_side: value(options, "min_side", default.min_side)?,
                max_pixels: value(options, "max_pixels", default.max_pixels)?,
            },
        })
    }
}

// The first choice is the default.
const CROPS: [(&str, Crop); 3] = [("center", Crop::Center), ("center-round", Crop::CenterRound), ("adm", Crop::Adm)];
const LAYOUTS: [(&str, Layout); 2] = [("chw", Layout::Chw), ("hwc", Layout::Hwc)];
const ALPHAS: [(&str, Alpha); 3] = [("white", Alpha::White), ("black", Alpha::Black), ("drop", Alpha::Drop)];
const ICCS: [(&str, Icc); 2] = [("srgb", Icc::Srgb), ("ignore", Icc::Ignore)];
const FILTERS: [(&str, Filter); 5] = [
    ("bicubic", Filter::Bicubic),
    ("box", Filter::Box),
    ("bilinear", Filter::Bilinear),
    ("hamming", Filter::Hamming),
    ("lanczos", Filter::Lanczos),
];

/// The option `name`, or `default` if it is not given.
fn value<'py, T: FromPyObjectOwned<'py>>(options: &Bound<'py, PyDict>, name: &str, default: T) -> PyResult<T> {
    match options.get_item(name)? {
        Some(value) => value.extract().map_err(Into::into),
        None => Ok(default),
    }
}

/// The choice that the option `name` names, or the first if it is not given.
fn choice<T: Copy>(options: &Bound<'_, PyDict>, name: &str, choices: &[(&str, T)]) -> PyResult<T> {
    let Some(word) = options.get_item(name)? else { return Ok(choices[0].1) };
    let word: PyBackedStr = word.extract()?;
    let found = choices.iter().find(|(choice, _)| *choice == &*word).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let choices: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        PyValueError::new_err(format!("unknown {name} {word:?}: choose one of {}", choices.join(", ")))
    })
}

/// Bytes of an image that is copied to recycled memory. While a program holds many such images, the C library takes new pages
/// from the system for each, and those take ten times as long as the copy. A larger image lies in new pages before it is copied.
const COPIED: std::ops::RangeInclusive<usize> = 128 << 10..=4 << 20;

fn to_array(py: Python<'_>, image: Image) -> PyResult<Bound<'_, PyArray3<u8>>> {
    let shape = [image.height, image.width, 3];
    if !COPIED.contains(&image.pixels.len()) {
        return PyArray1::from_vec(py, image.pixels).reshape(shape);
    }
    let array = recycled::array_from(py, shape.into(), &PyArrayDescr::of::<u8>(py), *COPIED.start())?
        .cast_into::<PyArray3<u8>>()?;
    array.try_readwrite()?.as_slice_mut()?.copy_from_slice(&image.pixels);
    Ok(array)
}

/// Calls `work` on the pixels without the GIL.
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
fn image_decode(py: Python<'_>, data: Item, options: Options) -> PyResult<Bound<'_, PyArray3<u8>>> {
    let encoded = Encoded::from(data);
    let image = py.detach(|| encoded.with_bytes(|bytes| image::decode(bytes, &options.decode))).map_err(to_py)?;
    to_array(py, image)
}

#[pyfunction]
fn image_decode_and_drop(py: Python<'_>, data: Item, size: Option<Size>, options: Options) -> PyResult<()> {
    let (encoded, target) = (Encoded::from(data), size.map(|size| options.fit(size)));
    py.detach(|| encoded.with_bytes(|bytes| image::decode_and_drop(bytes, target, &options.decode))).map_err(to_py)
}

#[pyfunction]
fn image_resize<'py>(
    py: Python<'py>,
    pixels: PyReadonlyArray3<'py, u8>,
    height: usize,
    width: usize,
    options: Options,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    to_array(py, with_view(&pixels, |view| image::resize(view, width, height, options.filter))?)
}

#[pyfunction]
fn image_fit<'py>(
    py: Python<'py>,
    pixels: PyReadonlyArray3<'py, u8>,
    size: Size,
    options: Options,
) -> PyResult<Bound<'py, PyArray3<u8>>> {
    to_array(py, with_view(&pixels, |view| image::fit(view, options.fit(size)))?)
}

#[pyfunction]
fn image_load(py: Python<'_>, data: Item, size: Size, options: Options) -> PyResult<Bound<'_, PyArray3<u8>>> {
    let (encoded, fit) = (Encoded::from(data), options.fit(size));
    let image = py.detach(|| encoded.with_bytes(|bytes| image::load(bytes, fit, &options.decode))).map_err(to_py)?;
    to_array(py, image)
}

#[pyfunction]
fn image_load_batch<'py>(
    py: Python<'py>,
    items: Vec<Item>,
    sizes: Vec<Size>,
    threads: usize,
    mut outs: Vec<PyReadwriteArray1<'py, u8>>,
    options: Options,
) -> PyResult<Vec<Option<PyErr>>> {
    let fits: Vec<Fit> = sizes.into_iter().map(|size| options.fit(size)).collect();
    let items: Vec<Encoded<PyBackedBytes>> = items.into_iter().map(Encoded::from).collect();
    let mut slices = outs.iter_mut().map(|out| out.as_slice_mut()).collect::<Result<Vec<_>, _>>()?;
    let load = || image::load_batch(&items, &fits, &options.decode, options.layout, threads, &mut slices);
    let errors = py.detach(load).map_err(to_py)?;
    Ok(errors.into_iter().map(|error| error.map(to_py)).collect())
}

/// Arrays of images that threads fill, each image at its position, while the caller goes on.
///
/// The arrays, uint8 (N, 3 * height * width), must not be read or written at a position between its `start` and its `result`.
#[pyclass(module = "latentq._core", frozen)]
struct ImageBatch {
    /// The first field, so that it is dropped, which waits for the jobs, before the memory that they write to.
    jobs: Mutex<Vec<Option<Arc<Job<Loaded>>>>>,
    plan: Arc<Plan>,
    threads: Py<Threads>,
    _arrays: Vec<Py<PyAny>>,
}

/// The error of an image; the width and height of the decoded image, if they were asked for and can be read; and the
/// content hash of the file, if it was read.
type Loaded<E = Error> = (Option<E>, Option<(usize, usize)>, Option<u64>);

/// How images are loaded, and the first byte of each array.
struct Plan {
    fits: Vec<Fit>,
    options: Options,
    measure: bool,
    arrays: Vec<*mut u8>,
}

// SAFETY: the `ImageBatch` keeps the arrays alive until its jobs are done, and each job has a position of its own.
#[allow(unsafe_code)]
unsafe impl Send for Plan {}
#[allow(unsafe_code)]
unsafe impl Sync for Plan {}

impl Plan {
    /// Loads an image to `position`, or zeros if it fails.
    #[allow(unsafe_code)]
    fn load(&self, position: usize, item: &Encoded<PyBackedBytes>) -> Loaded {
        let row = |(fit, array): (&Fit, &*mut u8)| {
            let bytes = 3 * fit.height * fit.width;
            // SAFETY: `ImageBatch::new` has checked that the arrays have this row and do not overlap, and `start` that
            // no other job has the position.
            unsafe { std::slice::from_raw_parts_mut(array.add(position * bytes), bytes) }
        };
        let mut rows: Vec<&mut [u8]> = self.fits.iter().zip(&self.arrays).map(row).collect();
        let (mut size, mut hash) = (None, None);
        let loaded = item.with_bytes(|data| {
            hash = Some(content_hash(data));
            if self.measure {
                size = image::upright_size(data, self.options.decode.orient).ok();
            }
            image::load_into(data, &self.fits, &self.options.decode, self.options.layout, &mut rows)
        });
        if loaded.is_err() {
            rows.iter_mut().for_each(|row| row.fill(0));
        }
        (loaded.err(), size, hash)
    }
}

#[pymethods]
impl ImageBatch {
    #[new]
    fn new(
        threads: Py<Threads>,
        sizes: Vec<Size>,
        mut outs: Vec<PyReadwriteArray2<'_, u8>>,
        options: Options,
        measure: bool,
    ) -> PyResult<Self> {
        let n = outs.first().map_or(0, |out| out.shape()[0]);
        let fits: Vec<Fit> = sizes.into_iter().map(|size| options.fit(size)).collect();
        let has_rows =
            |(fit, out): (&Fit, &PyReadwriteArray2<'_, u8>)| fit.bytes().is_some_and(|bytes| out.shape() == [n, bytes]);
        if fits.len() != outs.len() || !fits.iter().zip(&outs).all(has_rows) {
            return Err(PyValueError::new_err("an array must have a row of 3 * height * width bytes for each image"));
        }
        let pointers = outs.iter_mut().map(|out| Ok(out.as_slice_mut()?.as_mut_ptr()));
        let arrays = pointers.collect::<PyResult<_>>()?;
        Ok(Self {
            jobs: Mutex::new((0..n).map(|_| None).collect()),
            plan: Arc::new(Plan { fits, options, measure, arrays }),
            threads,
            _arrays: outs.iter().map(|out| out.as_any().clone().unbind()).collect(),
        })
    }

    /// Starts to load an image to a position, which must not have been used before.
    fn start(&self, position: usize, item: Item) -> PyResult<()> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job @ None) = jobs.get_mut(position) else {
            return Err(PyValueError::new_err(format!("position {position} is used already, or does not exist")));
        };
        let plan = Arc::clone(&self.plan);
        let work = move |item| Ok(plan.load(position, &item));
        *job = Some(Arc::new(self.threads.get().start(|_| vec![Encoded::from(item)], work)?));
        Ok(())
    }

    /// True if every image that was started is loaded.
    fn is_done(&self) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().flatten().all(|job| job.is_done())
    }

    /// Waits for the image of a position. Returns its error, or None; the width and height of the decoded image if `measure`
    /// is true and they can be read; and the content hash of the file if it was read. May be called once.
    fn result(&self, py: Python<'_>, position: usize) -> PyResult<Loaded<PyErr>> {
        let job = match self.jobs.lock().unwrap_or_else(PoisonError::into_inner).get(position) {
            Some(Some(job)) => Arc::clone(job),
            _ => return Err(PyValueError::new_err(format!("no image was started at position {position}"))),
        };
        let mut results = loop {
            match py.detach(|| job.wait(SIGNAL_INTERVAL)) {
                Some(results) => break results.map_err(to_py)?,
                None => py.check_signals()?,
            }
        };
        let (error, size, hash) = results.pop().ok_or_else(|| PyValueError::new_err("the result has been taken"))?;
        Ok((error.map(to_py), size, hash))
    }
}

#[pyfunction]
fn image_info(py: Python<'_>, data: Item) -> PyResult<(&'static str, usize, usize, u8, u8)> {
    let encoded = Encoded::from(data);
    let header = py.detach(|| encoded.with_bytes(image::header)).map_err(to_py)?;
    Ok((header.format, header.width, header.height, header.channels, header.orientation))
}

/// Height and width of a decoded image, from its header.
#[pyfunction]
fn image_size(py: Python<'_>, data: Item, orient: bool) -> PyResult<Size> {
    let encoded = Encoded::from(data);
    let (width, height) = py.detach(|| encoded.size(orient)).map_err(to_py)?;
    Ok((height, width))
}

/// The height and width that an image is resized to for a crop, and the top and left of the part that is kept.
#[pyfunction]
fn image_window(image: Size, size: Size, options: Options) -> PyResult<(usize, usize, usize, usize)> {
    let ((width, height), window) = image::window(image.1, image.0, options.fit(size)).map_err(to_py)?;
    Ok((height, width, window.top, window.left))
}

/// The content hash of an image file.
#[pyfunction]
fn image_hash(py: Python<'_>, data: Item) -> PyResult<u64> {
    let encoded = Encoded::from(data);
    py.detach(|| encoded.with_bytes(|bytes| Ok(content_hash(bytes)))).map_err(to_py)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_PIXELS", image::MAX_PIXELS)?;
    module.add_class::<ImageBatch>()?;
    module.add_function(wrap_pyfunction!(image_decode, module)?)?;
    module.add_function(wrap_pyfunction!(image_decode_and_drop, module)?)?;
    module.add_function(wrap_pyfunction!(image_resize, module)?)?;
    module.add_function(wrap_pyfunction!(image_fit, module)?)?;
    module.add_function(wrap_pyfunction!(image_hash, module)?)?;
    module.add_function(wrap_pyfunction!(image_load, module)?)?;
    module.add_function(wrap_pyfunction!(image_load_batch, module)?)?;
    module.add_function(wrap_pyfunction!(image_info, module)?)?;
    module.add_function(wrap_pyfunction!(image_size, module)?)?;
    module.add_function(wrap_pyfunction!(image_window, module)?)
}

//! `latentq_core::batch` for Python: batches gathered on the calling thread or on background threads that never take the
//! GIL.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use latentq_core::batch::{self, Sink, Tables};
use latentq_core::parallel::{self, Job};
use latentq_core::quant::{self, FloatsMut};
use latentq_core::{Result, mds};
use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::prelude::*;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArray};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::to_py;
use crate::mds::MdsReader;
use crate::quant::{Output, Quantizer};
use crate::recycled::new_array;
use crate::transform::{Transform, sizes};

/// Interval at which a waiting caller checks for Python signals.
pub const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Minimum number of samples per part of a batch; smaller parts cost more than they save.
const MIN_PART: usize = 32;

/// The core's `Threads`, for loaders and for the images of a run.
#[pyclass(module = "latentq._core", frozen)]
pub struct Threads(Mutex<Option<parallel::Threads>>);

#[pymethods]
impl Threads {
    #[new]
    fn new(count: usize) -> Self {
        Self(Mutex::new(Some(parallel::Threads::new(count))))
    }

    /// Asks the system for columns of samples that will be read soon, on a thread: see the core's `Reader::ask`.
    fn ask(
        &self,
        reader: &Bound<'_, MdsReader>,
        indices: PyReadonlyArray1<'_, i64>,
        columns: Vec<usize>,
    ) -> PyResult<()> {
        let (reader, given) = (Arc::clone(&reader.get().reader), indices.as_array());
        let mut indices = room_for(given.len())?;
        indices.extend(given.iter().map(|index| *index as u64)); // those out of range are ignored
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = threads.as_ref().ok_or_else(ended)?;
        threads.post(move || reader.ask(&indices, &columns)).map_err(to_py)
    }

    /// Finishes running tasks, discards queued ones, and joins the threads.
    fn shutdown(&self, py: Python<'_>) {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(threads));
    }
}

impl Threads {
    /// Submits a job of as many parts as `parts` returns for the number of threads.
    pub fn start<P, T, F>(&self, parts: impl FnOnce(usize) -> Vec<P>, work: F) -> PyResult<Job<T>>
    where
        P: Send + 'static,
        T: Send + 'static,
        F: Fn(P) -> Result<T> + Send + Sync + 'static,
    {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = threads.as_ref().ok_or_else(ended)?;
        threads.start(parts(threads.count()), work).map_err(to_py)
    }
}

/// An empty vector with room for as many indices.
fn room_for(count: usize) -> PyResult<Vec<u64>> {
    let mut indices = Vec::new();
    indices.try_reserve_exact(count).map_err(|_| PyMemoryError::new_err("not enough memory for the indices"))?;
    Ok(indices)
}

fn ended() -> PyErr {
    PyValueError::new_err("the threads have been shut down")
}

/// Columns in memory: uint8 arrays (N, bytes per value), which must not be modified during a gather.
#[pyclass(module = "latentq._core", frozen)]
struct MemoryTables {
    tables: Arc<Vec<Table>>,
    _arrays: Vec<Py<PyAny>>,
}

/// Bytes per value, and the pointer and length of all values.
struct Table(usize, *const u8, usize);

// SAFETY: the memory is only read.
#[allow(unsafe_code)]
unsafe impl Send for Table {}
#[allow(unsafe_code)]
unsafe impl Sync for Table {}

#[pymethods]
impl MemoryTables {
    #[new]
    fn new(columns: Vec<PyReadonlyArray2<'_, u8>>) -> PyResult<Self> {
        let table = |column: &PyReadonlyArray2<'_, u8>| {
            let bytes = column.as_slice()?;
            Ok(Table(column.shape()[1], bytes.as_ptr(), bytes.len()))
        };
        let tables = columns.iter().map(table).collect::<PyResult<_>>()?;
        Ok(Self {
            tables: Arc::new(tables),
            _arrays: columns.iter().map(|column| column.as_any().clone().unbind()).collect(),
        })
    }
}

/// The samples to gather from.
#[derive(Clone)]
enum Samples {
    Reader(Arc<mds::Reader>),
    Tables(Arc<Vec<Table>>),
}

/// The output for one column of the whole batch.
enum Destination {
    /// An array of raw values: bytes per value, and the first byte.
    Bytes(usize, *mut u8),
    /// An array of dequantized values: elements per channel, and the first element.
    Values(Arc<quant::Quantizer>, usize, Pointer),
    /// An array of values that a transform decodes: height and width, and the first element.
    Decoded(Arc<quant::Transform>, (usize, usize), Pointer),
    /// A Python list.
    List,
}

/// What decodes a column, from Python.
#[derive(FromPyObject)]
pub enum Codec<'py> {
    Quantizer(PyRef<'py, Quantizer>),
    Transform(PyRef<'py, Transform>),
}

enum Pointer {
    F32(*mut f32),
    F16(*mut u16),
    BF16(*mut u16),
}

impl Pointer {
    /// The address of the first element, and the bytes of a row of this many elements.
    fn row(&self, elements: usize) -> (usize, usize) {
        match self {
            Self::F32(start) => (start.addr(), elements * size_of::<f32>()),
            Self::F16(start) | Self::BF16(start) => (start.addr(), elements * size_of::<u16>()),
        }
    }

    /// The rows `slots` of this many elements.
    ///
    /// # Safety
    /// As for [`Destination::sink`].
    #[allow(unsafe_code)]
    unsafe fn rows<'a>(&self, slots: &Range<usize>, elements: usize) -> FloatsMut<'a> {
        // SAFETY, for all: by the contract of `sink`.
        match self {
            Self::F32(start) => FloatsMut::F32(unsafe { rows(*start, slots, elements) }),
            Self::F16(start) => FloatsMut::F16(unsafe { rows(*start, slots, elements) }),
            Self::BF16(start) => FloatsMut::BF16(unsafe { rows(*start, slots, elements) }),
        }
    }
}

/// The rows `slots` of `size` elements each.
///
/// # Safety
/// As for [`Destination::sink`].
#[allow(unsafe_code)]
unsafe fn rows<'a, T>(start: *mut T, slots: &Range<usize>, size: usize) -> &'a mut [T] {
    // SAFETY: by the contract of `sink`.
    unsafe { std::slice::from_raw_parts_mut(start.add(slots.start * size), slots.len() * size) }
}

/// The bytes of values that become Python objects, and the range of each value.
type ListedValues = (Vec<u8>, Vec<Range<usize>>);

impl Destination {
    fn new(out: &Option<Bound<'_, PyAny>>, codec: &Option<(Codec<'_>, bool)>, n: usize) -> PyResult<Self> {
        let Some(out) = out else { return Ok(Self::List) };
        if out.cast::<PyUntypedArray>()?.shape().first() != Some(&n) {
            return Err(PyValueError::new_err(format!("out must have {n} rows")));
        }
        let Some((codec, bfloat16)) = codec else { return Self::bytes(out.cast()?) };
        let channels = match codec {
            Codec::Quantizer(quantizer) => quantizer.0.channels(),
            Codec::Transform(transform) => transform.0.channels(),
        };
        let (plane, mut out) = Output::of(out, *bfloat16, channels)?;
        let dims = out.shape().to_vec();
        let pointer = match out.floats()? {
            FloatsMut::F32(out) => Pointer::F32(out.as_mut_ptr()),
            FloatsMut::F16(out) => Pointer::F16(out.as_mut_ptr()),
            FloatsMut::BF16(out) => Pointer::BF16(out.as_mut_ptr()),
        };
        Ok(match codec {
            Codec::Quantizer(quantizer) => Self::Values(Arc::clone(&quantizer.0), plane, pointer),
            Codec::Transform(transform) => Self::Decoded(Arc::clone(&transform.0), sizes(&dims, channels)?.1, pointer),
        })
    }

    /// The rows of an array of any dtype without objects.
    #[allow(unsafe_code)]
    fn bytes(out: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let array = out.as_array_ptr();
        // SAFETY: the pointer is to a NumPy array, which is alive.
        let (flags, start) = unsafe { ((*array).fields.flags, (*array).fields.data) };
        if !out.is_c_contiguous() || flags & NPY_ARRAY_WRITEABLE == 0 || out.dtype().has_object() {
            return Err(PyValueError::new_err("out must be a C-contiguous, writable array of numbers"));
        }
        let row = out.shape().iter().skip(1).try_fold(out.dtype().itemsize(), |row, size| row.checked_mul(*size));
        let row = row.ok_or_else(|| PyValueError::new_err("a row of out is too large"))?;
        Ok(Self::Bytes(row, start.cast()))
    }

    /// The addresses of the array's `n` rows; `None` for a list.
    fn addresses(&self, n: usize) -> Option<Range<usize>> {
        let (start, row) = match self {
            Self::Bytes(size, start) => (start.addr(), *size),
            Self::Values(quantizer, plane, pointer) => pointer.row(quantizer.channels() * plane),
            Self::Decoded(transform, (height, width), pointer) => pointer.row(transform.channels() * height * width),
            Self::List => return None,
        };
        Some(start..start + n * row)
    }

    /// The sink for rows `slots`.
    ///
    /// # Safety
    /// The array is alive, has these rows, and nothing else reads or writes them while the sink is used.
    #[allow(unsafe_code)]
    unsafe fn sink<'a>(&'a self, slots: &Range<usize>, listed: &'a mut ListedValues) -> Sink<'a> {
        match self {
            // SAFETY, for all: by the contract of `sink`.
            Self::Bytes(size, start) => Sink::Fixed(*size, unsafe { rows(*start, slots, *size) }),
            Self::Values(quantizer, plane, pointer) => {
                Sink::Dequantized(quantizer, *plane, unsafe { pointer.rows(slots, quantizer.channels() * plane) })
            }
            Self::Decoded(transform, shape, pointer) => {
                let elements = transform.channels() * shape.0 * shape.1;
                Sink::Transformed(transform, *shape, unsafe { pointer.rows(slots, elements) })
            }
            Self::List => Sink::Each(&mut listed.0, &mut listed.1),
        }
    }
}

/// The inputs and outputs of a gather.
struct Plan {
    samples: Samples,
    indices: Vec<u64>,
    columns: Vec<usize>,
    destinations: Vec<Destination>,
}

// SAFETY: the caller, or the `Gathering`, keeps the arrays alive until the job is done, and the parts have disjoint rows.
#[allow(unsafe_code)]
unsafe impl Send for Plan {}
#[allow(unsafe_code)]
unsafe impl Sync for Plan {}

impl Plan {
    fn new(
        samples: &Bound<'_, PyAny>,
        given: &PyReadonlyArray1<'_, i64>,
        columns: Vec<usize>,
        outs: &[Option<Bound<'_, PyAny>>],
        codecs: &[Option<(Codec<'_>, bool)>],
    ) -> PyResult<Self> {
        let reader = samples.cast::<MdsReader>().ok();
        let given = given.as_array();
        let mut indices = room_for(given.len())?;
        for index in given {
            indices.push(match &reader {
                Some(reader) => reader.get().resolve(*index)?,
                None => *index as u64, // a negative index becomes out of range
            });
        }
        let samples = match reader {
            Some(reader) => Samples::Reader(Arc::clone(&reader.get().reader)),
            None => Samples::Tables(Arc::clone(&samples.cast::<MemoryTables>()?.get().tables)),
        };
        let codecs = codecs.iter().chain(std::iter::repeat(&None));
        let destinations = outs.iter().zip(codecs).map(|(out, codec)| Destination::new(out, codec, indices.len()));
        let destinations = destinations.collect::<PyResult<Vec<_>>>()?;
        check_disjoint(&destinations, indices.len())?;
        Ok(Self { samples, indices, columns, destinations })
    }

    /// Converts the values that [`Plan::run`] returned for each part to a list for each column without an array.
    fn lists<'py>(
        &self,
        py: Python<'py>,
        reader: Option<&MdsReader>,
        parts: &[Vec<ListedValues>],
    ) -> PyResult<Vec<Option<Bound<'py, PyList>>>> {
        let lists = self.destinations.iter().zip(&self.columns).enumerate().map(|(at, (destination, column))| {
            let (Destination::List, Some(reader)) = (destination, reader) else { return Ok(None) };
            let values = parts.iter().flat_map(|listed| {
                let (bytes, ranges) = &listed[at];
                ranges.iter().map(|range| &bytes[range.clone()])
            });
            reader.list(py, &self.indices, *column, values).map(Some)
        });
        lists.collect()
    }

    /// Gathers the rows `slots`. Returns the values for lists.
    #[allow(unsafe_code)]
    fn run(&self, slots: Range<usize>) -> Result<Vec<ListedValues>> {
        let mut listed: Vec<ListedValues> = self.destinations.iter().map(|_| Default::default()).collect();
        let destinations = self.destinations.iter().zip(&mut listed);
        // SAFETY: `Destination::new` has checked that each array has a row per index, and the caller keeps it alive. No other
        // part has these rows, and Python gets the arrays after all parts are done.
        let mut sinks: Vec<_> =
            destinations.map(|(destination, listed)| unsafe { destination.sink(&slots, listed) }).collect();
        let indices = &self.indices[slots];
        match &self.samples {
            Samples::Reader(reader) => batch::gather(&**reader, indices, &self.columns, &mut sinks)?,
            Samples::Tables(tables) => {
                // SAFETY: the caller keeps the `MemoryTables` alive, which keeps these arrays alive.
                let table = |table: &Table| (table.0, unsafe { std::slice::from_raw_parts(table.1, table.2) });
                batch::gather(&Tables(tables.iter().map(table).collect()), indices, &self.columns, &mut sinks)?
            }
        }
        Ok(listed)
    }
}

/// Refuses arrays that share memory: each is written as if nothing else had access to it.
fn check_disjoint(destinations: &[Destination], n: usize) -> PyResult<()> {
    if destinations.len() < 2 {
        return Ok(());
    }
    let mut ranges: Vec<_> = destinations.iter().filter_map(|destination| destination.addresses(n)).collect();
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    match ranges.windows(2).any(|pair| pair[0].end > pair[1].start) {
        true => Err(PyValueError::new_err("two outputs share memory")),
        false => Ok(()),
    }
}

/// A running or finished gather.
#[pyclass(module = "latentq._core", frozen)]
pub struct Gathering {
    /// The first field, so that it is dropped, which waits for it, before the memory that it works on.
    job: Job<Vec<ListedValues>>,
    reader: Option<Py<MdsReader>>,
    plan: Arc<Plan>,
    _keep_alive: Vec<Py<PyAny>>,
}

#[pymethods]
impl Gathering {
    /// Waits for the gather. Returns a list for each column without an array. May be called once.
    pub fn result<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyList>>>> {
        while py.detach(|| self.job.help()) {
            py.check_signals()?;
        }
        let parts = loop {
            match py.detach(|| self.job.wait(SIGNAL_INTERVAL)) {
                Some(parts) => break parts.map_err(to_py)?,
                None => py.check_signals()?,
            }
        };
        self.plan.lists(py, self.reader.as_ref().map(Py::get), &parts)
    }
}

/// Gathers columns of samples on the calling thread. A column goes to its array in `outs`, (n, ...) of any dtype without
/// objects, or becomes a list without one.
#[pyfunction]
pub fn gather_now<'py>(
    reader: &Bound<'py, MdsReader>,
    indices: PyReadonlyArray1<'py, i64>,
    columns: Vec<usize>,
    outs: Vec<Option<Bound<'py, PyAny>>>,
) -> PyResult<Vec<Option<Bound<'py, PyList>>>> {
    let py = reader.py();
    let plan = Plan::new(reader, &indices, columns, &outs, &[])?;
    let listed = py.detach(|| plan.run(0..plan.indices.len())).map_err(to_py)?;
    plan.lists(py, Some(reader.get()), &[listed])
}

/// Gathers one column of samples into a new array (n, *shape) on the calling thread.
#[pyfunction]
pub fn gather_array<'py>(
    reader: &Bound<'py, MdsReader>,
    indices: PyReadonlyArray1<'py, i64>,
    column: usize,
    shape: Vec<usize>,
    dtype: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = reader.py();
    let shape = std::iter::once(indices.len()).chain(shape).collect();
    let array = new_array(py, shape, dtype)?;
    let plan = Plan::new(reader, &indices, vec![column], &[Some(array.clone().into_any())], &[])?;
    py.detach(|| plan.run(0..plan.indices.len())).map_err(to_py)?;
    Ok(array)
}

/// Starts to gather columns of a batch, on `threads`, or without them on the calling thread. A column goes to its array in
/// `outs`, or becomes a list without one. Arrays are (n, ...) of any dtype without objects, or, with a codec, floats
/// (n, C, ...); the bool next to a codec is true if uint16 elements are the bits of bfloat16, not float16.
#[pyfunction]
pub fn gather<'py>(
    py: Python<'py>,
    samples: &Bound<'py, PyAny>,
    indices: PyReadonlyArray1<'py, i64>,
    columns: Vec<usize>,
    outs: Vec<Option<Bound<'py, PyAny>>>,
    codecs: Vec<Option<(Codec<'py>, bool)>>,
    threads: Option<PyRef<'py, Threads>>,
) -> PyResult<Gathering> {
    let plan = Arc::new(Plan::new(samples, &indices, columns, &outs, &codecs)?);
    let n = plan.indices.len();
    let work = {
        let plan = Arc::clone(&plan);
        move |slots| plan.run(slots)
    };
    let job = match threads {
        None => Job::done(py.detach(|| work(0..n)).map_err(to_py)?),
        Some(threads) => {
            let parts = |threads| {
                let parts = (n / MIN_PART).clamp(1, threads);
                let cut = |part| n * part / parts;
                (0..parts).map(|part| cut(part)..cut(part + 1)).collect()
            };
            threads.start(parts, work)?
        }
    };
    let _keep_alive = outs.into_iter().flatten().chain([samples.clone()]).map(Bound::unbind).collect();
    let reader = samples.cast::<MdsReader>().ok().map(|reader| reader.clone().unbind());
    Ok(Gathering { job, reader, plan, _keep_alive })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Threads>()?;
    module.add_class::<MemoryTables>()?;
    module.add_class::<Gathering>()?;
    module.add_function(wrap_pyfunction!(gather, module)?)?;
    module.add_function(wrap_pyfunction!(gather_now, module)?)?;
    module.add_function(wrap_pyfunction!(gather_array, module)?)
}

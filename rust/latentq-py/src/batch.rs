//! `latentq_core::batch` for Python: batches gathered by the caller or, ahead of it, by threads that never take the
//! interpreter.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use latentq_core::batch::{self, Sink, Tables};
use latentq_core::parallel::{self, Job};
use latentq_core::quant::{self, FloatsMut};
use latentq_core::{Result, mds};
use numpy::prelude::*;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1, PyReadwriteArray2, PyUntypedArray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::to_py;
use crate::mds::MdsReader;
use crate::quant::{Output, Quantizer};

/// How long a caller waits before it looks whether Python has a signal for it.
const PATIENCE: Duration = Duration::from_millis(50);

/// A part of a batch is not smaller: handing it out would cost as much as it saves.
const PART: usize = 32;

/// The core's threads, as `latentq.loader` uses them.
#[pyclass(module = "latentq._core", frozen)]
pub struct Threads(Mutex<Option<parallel::Threads>>);

#[pymethods]
impl Threads {
    #[new]
    fn new(count: usize) -> Self {
        Self(Mutex::new(Some(parallel::Threads::new(count))))
    }

    /// Finishes what is begun, begins nothing more, and waits for the threads to end.
    fn shutdown(&self, py: Python<'_>) {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(threads));
    }
}

/// Columns in memory, from arrays (N, bytes of a value) uint8, whose memory nobody may change meanwhile.
#[pyclass(module = "latentq._core", frozen)]
struct MemoryTables {
    tables: Arc<Vec<Table>>,
    _arrays: Vec<Py<PyAny>>,
}

/// The bytes of a value, and those of all of them.
struct Table(usize, *const u8, usize);

// SAFETY: what it points to is only read.
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

/// What values are read from.
#[derive(Clone)]
enum Source {
    Reader(Arc<mds::Reader>),
    Tables(Arc<Vec<Table>>),
}

/// Where the values of one column of the whole batch go.
enum Place {
    Bytes(usize, *mut u8),
    Values(Arc<quant::Quantizer>, usize, Pointer),
    List,
}

enum Pointer {
    F32(*mut f32),
    F16(*mut u16),
    BF16(*mut u16),
}

/// Values that Python will make objects of, and where each lies.
type Listed = (Vec<u8>, Vec<Range<usize>>);

impl Place {
    fn new(
        out: &Option<Bound<'_, PyAny>>,
        quantizer: &Option<(PyRef<'_, Quantizer>, bool)>,
        n: usize,
    ) -> PyResult<Self> {
        let Some(out) = out else { return Ok(Self::List) };
        if out.cast::<PyUntypedArray>()?.shape().first() != Some(&n) {
            return Err(PyValueError::new_err(format!("out must have {n} rows")));
        }
        let Some((quantizer, bfloat16)) = quantizer else {
            if let Ok(mut out) = out.extract::<PyReadwriteArray1<'_, i64>>() {
                return Ok(Self::Bytes(size_of::<i64>(), out.as_slice_mut()?.as_mut_ptr().cast()));
            }
            let mut out: PyReadwriteArray2<'_, u8> = out.extract()?;
            return Ok(Self::Bytes(out.shape()[1], out.as_slice_mut()?.as_mut_ptr()));
        };
        let (plane, mut out) = Output::of(out, *bfloat16, quantizer.0.channels())?;
        let pointer = match out.floats()? {
            FloatsMut::F32(out) => Pointer::F32(out.as_mut_ptr()),
            FloatsMut::F16(out) => Pointer::F16(out.as_mut_ptr()),
            FloatsMut::BF16(out) => Pointer::BF16(out.as_mut_ptr()),
        };
        Ok(Self::Values(Arc::clone(&quantizer.0), plane, pointer))
    }

    /// The rows `slots` of it.
    ///
    /// # Safety
    /// The array is there, has these rows, and nobody else reads or writes them while the sink is used.
    #[allow(unsafe_code)]
    unsafe fn sink<'a>(&'a self, slots: &Range<usize>, listed: &'a mut Listed) -> Sink<'a> {
        unsafe fn rows<'a, T>(start: *mut T, slots: &Range<usize>, size: usize) -> &'a mut [T] {
            // SAFETY: as the caller says.
            unsafe { std::slice::from_raw_parts_mut(start.add(slots.start * size), slots.len() * size) }
        }
        match self {
            // SAFETY of all: as the caller says.
            Self::Bytes(size, start) => Sink::Fixed(*size, unsafe { rows(*start, slots, *size) }),
            Self::Values(quantizer, plane, pointer) => {
                let size = quantizer.channels() * plane;
                let out = match pointer {
                    Pointer::F32(start) => FloatsMut::F32(unsafe { rows(*start, slots, size) }),
                    Pointer::F16(start) => FloatsMut::F16(unsafe { rows(*start, slots, size) }),
                    Pointer::BF16(start) => FloatsMut::BF16(unsafe { rows(*start, slots, size) }),
                };
                Sink::Dequantized(quantizer, *plane, out)
            }
            Self::List => Sink::Each(&mut listed.0, &mut listed.1),
        }
    }
}

/// What a batch is gathered from and into.
struct Task {
    source: Source,
    indices: Vec<u64>,
    columns: Vec<usize>,
    places: Vec<Place>,
}

// SAFETY: the pointers are to arrays that the `Gathering` holds until the task is done, and each part has rows of its own.
#[allow(unsafe_code)]
unsafe impl Send for Task {}
#[allow(unsafe_code)]
unsafe impl Sync for Task {}

impl Task {
    /// Gathers some rows; gives what is to become lists.
    #[allow(unsafe_code)]
    fn run(&self, slots: Range<usize>) -> Result<Vec<Listed>> {
        let mut listed: Vec<Listed> = self.places.iter().map(|_| Default::default()).collect();
        let places = self.places.iter().zip(&mut listed);
        // SAFETY: `gather` has seen that each array has a row for each index, and the `Gathering` holds it. Nobody else
        // has these rows: they are one part's, and Python is given the arrays when all parts are done.
        let mut sinks: Vec<_> = places.map(|(place, listed)| unsafe { place.sink(&slots, listed) }).collect();
        let indices = &self.indices[slots];
        match &self.source {
            Source::Reader(reader) => batch::gather(&**reader, indices, &self.columns, &mut sinks)?,
            Source::Tables(tables) => {
                // SAFETY: the `MemoryTables`, which the `Gathering` holds, holds these arrays.
                let table = |table: &Table| (table.0, unsafe { std::slice::from_raw_parts(table.1, table.2) });
                batch::gather(&Tables(tables.iter().map(table).collect()), indices, &self.columns, &mut sinks)?
            }
        }
        Ok(listed)
    }
}

/// A batch that is being gathered.
#[pyclass(module = "latentq._core", frozen)]
pub struct Gathering {
    /// First, so that it is dropped, and so ended, before what it works on.
    job: Job<Vec<Listed>>,
    reader: Option<Py<MdsReader>>,
    task: Arc<Task>,
    _held: Vec<Py<PyAny>>,
}

#[pymethods]
impl Gathering {
    /// Waits for it; for each column that has no array, its list. To be called once.
    pub fn result<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyList>>>> {
        let parts = loop {
            match py.detach(|| self.job.wait(PATIENCE)) {
                Some(parts) => break parts.map_err(to_py)?,
                None => py.check_signals()?,
            }
        };
        let Task { indices, columns, places, .. } = &*self.task;
        let lists = places.iter().zip(columns).enumerate().map(|(at, (place, column))| {
            let (Place::List, Some(reader)) = (place, &self.reader) else { return Ok(None) };
            let values = parts.iter().flat_map(|listed| {
                let (bytes, ranges) = &listed[at];
                ranges.iter().map(|range| &bytes[range.clone()])
            });
            reader.get().list(py, indices, *column, values).map(Some)
        });
        lists.collect()
    }
}

/// Begins to gather columns of a batch, on `threads` or else at once on the caller's: each into its array, or else as a list.
/// An array is (n, bytes of a value) uint8, or (n,) int64, or, with a quantiser, of floats (n, C, ...), which may be bfloat16's bits.
#[pyfunction]
pub fn gather<'py>(
    py: Python<'py>,
    samples: &Bound<'py, PyAny>,
    indices: PyReadonlyArray1<'py, i64>,
    columns: Vec<usize>,
    outs: Vec<Option<Bound<'py, PyAny>>>,
    quantizers: Vec<Option<(PyRef<'py, Quantizer>, bool)>>,
    threads: Option<PyRef<'py, Threads>>,
) -> PyResult<Gathering> {
    let reader = samples.cast::<MdsReader>().ok();
    let source = match &reader {
        Some(reader) => Source::Reader(Arc::clone(&reader.get().reader)),
        None => Source::Tables(Arc::clone(&samples.cast::<MemoryTables>()?.get().tables)),
    };
    let indices = indices.as_array();
    let indices: Vec<u64> = match &reader {
        Some(reader) => indices.iter().map(|index| reader.get().resolve(*index)).collect::<PyResult<_>>()?,
        None => indices.iter().map(|index| *index as u64).collect(), // one below 0 is out of range
    };
    let n = indices.len();
    let places = outs.iter().zip(&quantizers).map(|(out, quantizer)| Place::new(out, quantizer, n));
    let task = Arc::new(Task { source, indices, columns, places: places.collect::<PyResult<_>>()? });
    let work = {
        let task = Arc::clone(&task);
        move |slots| task.run(slots)
    };
    let job = match threads {
        None => Job::done(py.detach(|| work(0..n)).map_err(to_py)?),
        Some(threads) => {
            let threads = threads.0.lock().unwrap_or_else(PoisonError::into_inner);
            let threads = threads.as_ref().ok_or_else(|| PyValueError::new_err("the threads have ended"))?;
            let parts = (n / PART).clamp(1, threads.count());
            let cut = |part| n * part / parts;
            threads.start((0..parts).map(|part| cut(part)..cut(part + 1)).collect(), work).map_err(to_py)?
        }
    };
    let _held = outs.into_iter().flatten().chain([samples.clone()]).map(Bound::unbind).collect();
    Ok(Gathering { job, reader: reader.map(|reader| reader.clone().unbind()), task, _held })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Threads>()?;
    module.add_class::<MemoryTables>()?;
    module.add_class::<Gathering>()?;
    module.add_function(wrap_pyfunction!(gather, module)?)
}

//! `latentq_core::mds` for Python: reader, writer, merge, verify and repair.

use std::path::PathBuf;
use std::sync::Arc;

use latentq_core::Error;
use latentq_core::mds::{self, Column, Groups, Values};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyIndexError, PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::error::to_py;
use crate::values::{EncodedValue, decode, encode, new_bytes};

/// The column names as Python strings, created once instead of per sample.
fn names(py: Python<'_>, columns: &[Column]) -> Vec<Py<PyString>> {
    columns.iter().map(|column| PyString::intern(py, &column.name).unbind()).collect()
}

/// Name and encoding of a column, and dtype and shape if all its values have the same.
type Described = (String, String, Option<(&'static str, Vec<usize>)>);

fn describe(column: &Column) -> Described {
    let fixed = column.fixed().map(|(dtype, shape)| (dtype.name(), shape));
    (column.name.clone(), column.spec(), fixed)
}

/// Memory that writers use in turn.
#[pyclass(module = "latentq._core", frozen)]
struct MdsBuffers(mds::Buffers);

#[pymethods]
impl MdsBuffers {
    #[new]
    fn new() -> Self {
        Self(mds::Buffers::default())
    }
}

/// The core of `latentq.mds.Writer`.
#[pyclass(module = "latentq._core")]
struct MdsWriter {
    /// `None` after `finish` or `abort`.
    writer: Option<mds::Writer>,
    names: Vec<Py<PyString>>,
}

impl MdsWriter {
    /// The writer, or an error if it is closed.
    fn open(&mut self) -> PyResult<&mut mds::Writer> {
        self.writer.as_mut().ok_or_else(closed)
    }
}

/// Columns, given their names and encodings.
fn parse(columns: &[(PyBackedStr, PyBackedStr)]) -> PyResult<Vec<Column>> {
    columns.iter().map(|(name, encoding)| Column::new(name, encoding)).collect::<Result<_, _>>().map_err(to_py)
}

fn closed() -> PyErr {
    PyValueError::new_err("the writer is closed")
}

#[pymethods]
impl MdsWriter {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        columns: Vec<(PyBackedStr, PyBackedStr)>,
        compression: Option<String>,
        hashes: Vec<String>,
        size_limit: u64,
        sync: bool,
        buffers: Option<PyRef<'_, MdsBuffers>>,
    ) -> PyResult<Self> {
        let columns = parse(&columns)?;
        let buffers = buffers.map(|buffers| buffers.0.clone());
        let options = mds::Options { compression, hashes, size_limit, sync, buffers };
        let writer = mds::Writer::create(&path, columns, &options).map_err(to_py)?;
        Ok(Self { names: names(py, writer.columns()), writer: Some(writer) })
    }

    #[getter]
    fn columns(&mut self) -> PyResult<Vec<Described>> {
        Ok(self.open()?.columns().iter().map(describe).collect())
    }

    fn begin_group(&mut self, py: Python<'_>, name: &str, columns: Vec<(PyBackedStr, PyBackedStr)>) -> PyResult<()> {
        let columns = parse(&columns)?;
        let writer = self.open()?;
        py.detach(|| writer.begin_group(name, columns)).map_err(to_py)
    }

    fn write(&mut self, py: Python<'_>, sample: &Bound<'_, PyAny>) -> PyResult<()> {
        let writer = self.writer.as_mut().ok_or_else(closed)?;
        let columns = writer.columns().iter().zip(&self.names);
        let encoded = columns.map(|(column, name)| encode(column, &item(sample, name.bind(py))?));
        let encoded = encoded.collect::<PyResult<Vec<_>>>()?;
        let values: Vec<&[u8]> = encoded.iter().map(EncodedValue::bytes).collect();
        // A buffered write is cheaper than releasing and reacquiring the GIL.
        let written =
            if writer.has_room(&values) { writer.write(&values) } else { py.detach(|| writer.write(&values)) };
        written.map_err(to_py)
    }

    fn write_batch(&mut self, py: Python<'_>, n: usize, batch: &Bound<'_, PyDict>) -> PyResult<()> {
        enum Batch<'py> {
            Rows(PyReadonlyArray1<'py, u8>),
            Each(Vec<EncodedValue<'py>>),
        }
        let writer = self.writer.as_mut().ok_or_else(closed)?;
        let mut columns = Vec::new();
        for (column, name) in writer.columns().iter().zip(&self.names) {
            let values = item(batch.as_any(), name.bind(py))?;
            columns.push(match values.extract::<PyReadonlyArray1<'_, u8>>() {
                Ok(rows) if column.size.is_some() => Batch::Rows(rows),
                _ => {
                    let values = values.try_iter()?.map(|value| encode(column, &value?));
                    Batch::Each(values.collect::<PyResult<_>>()?)
                }
            });
        }
        let values = columns.iter().map(|values| {
            Ok(match values {
                Batch::Rows(rows) => Values::Fixed(rows.as_slice()?),
                Batch::Each(encoded) => Values::Each(encoded.iter().map(EncodedValue::bytes).collect()),
            })
        });
        let values = values.collect::<PyResult<Vec<_>>>()?;
        py.detach(|| writer.write_batch(n, &values)).map_err(to_py)
    }

    fn add_file(&mut self, py: Python<'_>, name: &str, data: &[u8]) -> PyResult<()> {
        let writer = self.open()?;
        py.detach(|| writer.add_file(name, data)).map_err(to_py)
    }

    fn finish(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.writer.take() {
            Some(writer) => py.detach(|| writer.finish()).map_err(to_py),
            None => Ok(()),
        }
    }

    fn abort(&mut self, py: Python<'_>) {
        let writer = self.writer.take();
        py.detach(|| drop(writer));
    }
}

/// Looks up a column in a sample, which may be any mapping.
fn item<'py>(sample: &Bound<'py, PyAny>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
    let Ok(sample) = sample.cast::<PyDict>() else { return sample.get_item(name) };
    sample
        .get_item(name)?
        .ok_or_else(|| PyKeyError::new_err(format!("the sample has no column {:?}", name.to_string())))
}

/// The core of `latentq.mds.Reader`.
#[pyclass(module = "latentq._core", frozen)]
pub struct MdsReader {
    pub reader: Arc<mds::Reader>,
    names: Vec<Py<PyString>>,
}

#[pymethods]
impl MdsReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, memory: usize, raw: usize, page_cache: u64) -> PyResult<Self> {
        let reader = py.detach(|| mds::Reader::open(&path, memory, raw, page_cache)).map_err(to_py)?;
        Ok(Self { names: names(py, &reader.schema().columns), reader: Arc::new(reader) })
    }

    fn __len__(&self) -> usize {
        self.reader.len() as usize
    }

    #[getter]
    fn columns(&self) -> Vec<Described> {
        self.reader.columns().iter().map(describe).collect()
    }

    /// The content hash of the index.
    #[getter]
    fn index_hash(&self) -> u64 {
        self.reader.index_hash()
    }

    /// The names of the groups, and for each run of samples of a group its first sample and the group's position among the
    /// names.
    fn groups<'py>(&self, py: Python<'py>) -> (Vec<String>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i32>>) {
        let Groups { names, starts, which } = py.detach(|| self.reader.groups());
        let starts = starts.into_iter().map(|start| start as i64).collect();
        let which = which.into_iter().map(|group| group as i32).collect();
        (names, PyArray1::from_vec(py, starts), PyArray1::from_vec(py, which))
    }

    fn sample<'py>(&self, py: Python<'py>, index: i64) -> PyResult<Bound<'py, PyDict>> {
        let index = self.resolve(index)?;
        let sample = py.detach(|| self.reader.sample(index)).map_err(to_py)?;
        let out = PyDict::new(py);
        for (at, name) in self.names.iter().enumerate() {
            let value = self.reader.column_of(&sample, at).encoding.decode(sample.value(at));
            let value = value.map_err(|fault| to_py(self.reader.fault(&sample, at, fault)))?;
            out.set_item(name, decode(py, &value)?)?;
        }
        Ok(out)
    }

    /// Closes a shard's file: its space is free once it is removed. It is opened again when it is read.
    fn close_shard(&self, number: usize) {
        self.reader.close_shard(number);
    }

    /// Announces that all samples will be read.
    fn expect_all(&self, page_cache: u64) {
        self.reader.expect_all(page_cache);
    }

    /// How many samples to ask for before they are read: see `Threads.ask`.
    #[getter]
    fn samples_ahead(&self) -> u64 {
        self.reader.samples_ahead()
    }

    /// Stops reading ahead.
    fn stop_ahead(&self) {
        self.reader.stop_ahead();
    }

    /// The file that contains a value, and the offset in it.
    fn location(&self, index: i64, column: usize) -> PyResult<(String, u64)> {
        let sample = self.reader.sample(self.resolve(index)?).map_err(to_py)?;
        Ok(self.reader.value_location(&sample, column))
    }

    /// Raises a `FormatError` for a value that the caller could not decode.
    fn fault(&self, index: i64, column: usize, message: &str) -> PyResult<()> {
        let sample = self.reader.sample(self.resolve(index)?).map_err(to_py)?;
        let fault = mds::Fault { offset: 0, message: message.to_owned() };
        Err(to_py(self.reader.fault(&sample, column, fault)))
    }
}

impl MdsReader {
    /// Converts values of a column to a Python list.
    pub fn list<'a, 'py>(
        &self,
        py: Python<'py>,
        indices: &[u64],
        column: usize,
        values: impl Iterator<Item = &'a [u8]>,
    ) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (value, index) in values.zip(indices) {
            match self.reader.column_at(*index, column).map_err(to_py)?.encoding.decode(value) {
                Ok(value) => list.append(decode(py, &value)?)?,
                Err(fault) => {
                    let sample = self.reader.sample(*index).map_err(to_py)?;
                    return Err(to_py(self.reader.fault(&sample, column, fault)));
                }
            }
        }
        Ok(list)
    }

    /// Resolves an index with NumPy's rules: negative indices count from the end.
    pub fn resolve(&self, index: i64) -> PyResult<u64> {
        let len = self.reader.len();
        let found = if index < 0 { len.checked_sub(index.unsigned_abs()) } else { Some(index as u64) };
        found
            .filter(|found| *found < len)
            .ok_or_else(|| PyIndexError::new_err(format!("index {index} is out of bounds for axis 0 with size {len}")))
    }
}

/// The pieces of a merged index.
#[pyclass(module = "latentq._core")]
struct MdsMergedIndex {
    merged: mds::MergedIndex,
}

#[pymethods]
impl MdsMergedIndex {
    #[new]
    fn new(path: PathBuf) -> Self {
        Self { merged: mds::MergedIndex::new(path) }
    }

    fn start<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        new_bytes(py, &mds::MergedIndex::start())
    }

    fn folder<'py>(&mut self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.merged.folder(name)).map_err(to_py)?;
        new_bytes(py, &bytes)
    }

    fn end<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        new_bytes(py, mds::MergedIndex::END)
    }
}

#[pyfunction]
fn mds_samples_by_folder(py: Python<'_>, path: PathBuf) -> PyResult<Vec<(String, u64)>> {
    py.detach(|| mds::samples_by_folder(&path)).map_err(to_py)
}

#[pyfunction]
fn mds_merge(py: Python<'_>, path: PathBuf, folders: Option<Vec<String>>) -> PyResult<()> {
    py.detach(|| mds::merge(&path, folders.as_deref())).map_err(to_py)
}

/// File, offset and message of each finding.
type Findings = Vec<(String, u64, String)>;

fn findings(found: Vec<mds::Finding>) -> Findings {
    found.into_iter().map(|finding| (finding.file, finding.offset, finding.message)).collect()
}

#[pyfunction]
fn mds_verify(py: Python<'_>, path: PathBuf) -> PyResult<Findings> {
    py.detach(|| mds::verify(&path)).map(findings).map_err(to_py)
}

#[pyfunction]
fn mds_repair(
    py: Python<'_>,
    path: PathBuf,
    folders: Option<Vec<String>>,
    allow_fewer: bool,
    progress: Py<PyAny>,
) -> PyResult<(usize, u64, Findings, Vec<String>)> {
    let mut raised = None;
    let mut step = |step: mds::Step| {
        Python::attach(|py| progress.call1(py, (step.what, step.done, step.total))).map(drop).map_err(|error| {
            raised = Some(error);
            Error::argument("interrupted")
        })
    };
    let done = py.detach(|| mds::repair(&path, folders, allow_fewer, &mut step));
    if let Some(error) = raised {
        return Err(error);
    }
    let done = done.map_err(to_py)?;
    Ok((done.shards, done.samples, findings(done.skipped), done.kept))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<MdsMergedIndex>()?;
    module.add_class::<MdsReader>()?;
    module.add_class::<MdsBuffers>()?;
    module.add_class::<MdsWriter>()?;
    module.add_function(wrap_pyfunction!(mds_merge, module)?)?;
    module.add_function(wrap_pyfunction!(mds_repair, module)?)?;
    module.add_function(wrap_pyfunction!(mds_samples_by_folder, module)?)?;
    module.add_function(wrap_pyfunction!(mds_verify, module)?)?;
    Ok(())
}

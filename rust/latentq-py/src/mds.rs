//! `latentq.mds`: values of Python to bytes and back, and the writer and reader of the core.

use std::path::PathBuf;
use std::sync::Arc;

use bytemuck::{Pod, cast_slice};
use half::f16;
use latentq_core::mds::{self, Column, DType, Encoding, Value, Values};
use numpy::ndarray::IxDyn;
use numpy::prelude::*;
use numpy::{Element, PyArrayDyn, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArray};
use pyo3::exceptions::{PyIndexError, PyKeyError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::batch::gather;
use crate::error::to_py;

/// Runs `$body` with the type `T` that `$dtype` names.
macro_rules! with_type {
    ($dtype:expr, $body:expr) => {
        match $dtype {
            DType::U8 => {
                type T = u8;
                $body
            }
            DType::I8 => {
                type T = i8;
                $body
            }
            DType::U16 => {
                type T = u16;
                $body
            }
            DType::I16 => {
                type T = i16;
                $body
            }
            DType::F16 => {
                type T = f16;
                $body
            }
            DType::U32 => {
                type T = u32;
                $body
            }
            DType::I32 => {
                type T = i32;
                $body
            }
            DType::F32 => {
                type T = f32;
                $body
            }
            DType::U64 => {
                type T = u64;
                $body
            }
            DType::I64 => {
                type T = i64;
                $body
            }
            DType::F64 => {
                type T = f64;
                $body
            }
        }
    };
}

/// The bytes of one value.
enum Held<'py> {
    Bytes(PyBackedBytes),
    Text(PyBackedStr),
    Own(Vec<u8>),
    Array(Box<dyn Contiguous + 'py>),
}

impl Held<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Text(text) => text.as_bytes(),
            Self::Own(bytes) => bytes,
            Self::Array(array) => array.bytes(),
        }
    }
}

/// An array whose values lie one after the other, in C order and the machine's byte order.
trait Contiguous {
    fn bytes(&self) -> &[u8];
}

impl<T: Element + Pod> Contiguous for PyReadonlyArrayDyn<'_, T> {
    fn bytes(&self) -> &[u8] {
        // `contiguous` has seen that it is a slice.
        self.as_slice().map(cast_slice).unwrap_or_default()
    }
}

fn wrong(column: &Column, why: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("column {:?} ({}): {why}", column.name, column.spec()))
}

/// The bytes of an array, in whatever byte order and strides it is, with its dtype (`dtype`, where that is given) and shape.
fn array_bytes<'py>(
    column: &Column,
    dtype: Option<DType>,
    value: &Bound<'py, PyAny>,
) -> PyResult<(DType, Vec<usize>, Held<'py>)> {
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        return Err(needs(column, "an array", value));
    };
    let shape = array.shape().to_vec();
    for dtype in dtype.as_ref().map_or(&DType::ALL[..], std::slice::from_ref) {
        if let Some(bytes) = with_type!(dtype, contiguous::<T>(value)) {
            return Ok((*dtype, shape, bytes));
        }
    }
    // Not as it lies in memory: let NumPy make a copy, of the same type only.
    let own = array.dtype().getattr("name")?.extract::<PyBackedStr>()?;
    let copy = match DType::parse(&own).filter(|own| dtype.is_none_or(|dtype| dtype == *own)) {
        Some(dtype) => {
            let copy = value.py().import("numpy")?.call_method1("ascontiguousarray", (value, dtype.name()))?;
            with_type!(dtype, contiguous::<T>(&copy)).map(|bytes| (dtype, shape, bytes))
        }
        None => None,
    };
    copy.ok_or_else(|| wrong(column, format!("an array of {own}")))
}

/// The bytes of a C-contiguous array of `T` in the machine's byte order.
fn contiguous<'py, T: Element + Pod>(value: &Bound<'py, PyAny>) -> Option<Held<'py>> {
    let array = value.cast::<PyArrayDyn<T>>().ok()?.try_readonly().ok()?;
    (array.is_c_contiguous() && array.as_slice().is_ok()).then(|| Held::Array(Box::new(array)))
}

/// `value` as its column writes it. What is bytes already is written as it is.
fn encode<'py>(column: &Column, value: &Bound<'py, PyAny>) -> PyResult<Held<'py>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(Held::Bytes(bytes.clone().into()));
    }
    match &column.encoding {
        Encoding::Int => number::<i64>(column, value).map(|number| Held::Own(number.to_le_bytes().to_vec())),
        Encoding::Scalar(DType::F16) => {
            let scalar = value.py().import("numpy")?.call_method1("float16", (number::<f64>(column, value)?,))?;
            Ok(Held::Bytes(scalar.call_method0("tobytes")?.extract()?))
        }
        Encoding::Scalar(DType::F32) => Ok(Held::Own((number::<f64>(column, value)? as f32).to_le_bytes().to_vec())),
        Encoding::Scalar(DType::F64) => Ok(Held::Own(number::<f64>(column, value)?.to_le_bytes().to_vec())),
        Encoding::Scalar(DType::U64) => {
            number::<u64>(column, value).map(|number| Held::Own(number.to_le_bytes().to_vec()))
        }
        Encoding::Scalar(dtype) => {
            let wide = number::<i64>(column, value)?;
            let bytes = wide.to_le_bytes();
            let (low, high) = match dtype {
                DType::U8 => (0, i64::from(u8::MAX)),
                DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
                DType::U16 => (0, i64::from(u16::MAX)),
                DType::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
                DType::U32 => (0, i64::from(u32::MAX)),
                DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
                _ => (i64::MIN, i64::MAX),
            };
            if wide < low || wide > high {
                return Err(wrong(column, format!("{wide} is out of range")));
            }
            Ok(Held::Own(bytes[..dtype.size()].to_vec()))
        }
        Encoding::Raw(dtype) => Ok(array_bytes(column, Some(*dtype), value)?.2),
        Encoding::NdArray(dtype, shape) => {
            let (found, dims, data) = array_bytes(column, *dtype, value)?;
            if shape.as_ref().is_some_and(|shape| *shape != dims) {
                return Err(wrong(column, format!("an array of shape {dims:?}")));
            }
            let mut bytes =
                mds::array_header(*dtype, shape.as_deref(), found, &dims).map_err(|why| wrong(column, why))?;
            if bytes.is_empty() {
                return Ok(data);
            }
            bytes.extend_from_slice(data.bytes());
            Ok(Held::Own(bytes))
        }
        Encoding::Str | Encoding::Json | Encoding::StrInt | Encoding::StrFloat | Encoding::StrDecimal => {
            match value.cast::<PyString>() {
                Ok(text) => text.clone().try_into().map(Held::Text).map_err(|_| wrong(column, "a lone surrogate")),
                Err(_) => Err(needs(column, "a str", value)),
            }
        }
        _ => Err(needs(column, "bytes", value)),
    }
}

fn needs(column: &Column, what: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let name = value.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    PyTypeError::new_err(format!("column {:?} ({}): {what} is needed, not {name}", column.name, column.spec()))
}

/// The number that `value` is, or an error that names the column.
fn number<'py, T: FromPyObjectOwned<'py>>(column: &Column, value: &Bound<'py, PyAny>) -> PyResult<T> {
    value.extract::<T>().map_err(|error: T::Error| {
        let error: PyErr = error.into();
        match error.is_instance_of::<PyOverflowError>(value.py()) {
            true => wrong(column, "the number is out of range"),
            false => needs(column, "a number of its kind", value),
        }
    })
}

/// An array of its own, filled with `bytes`, which hold exactly what `shape` says.
fn new_array<'py>(py: Python<'py>, dtype: DType, shape: &[usize], bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    with_type!(dtype, {
        let array = PyArrayDyn::<T>::zeros(py, IxDyn(shape), false);
        bytemuck::cast_slice_mut(array.try_readwrite()?.as_slice_mut()?).copy_from_slice(bytes);
        Ok(array.into_any())
    })
}

/// A NumPy scalar.
fn new_scalar<'py>(py: Python<'py>, dtype: DType, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    new_array(py, dtype, &[], bytes)?.get_item(())
}

/// The value as Python has it; text of JSON and numbers, and images, are left to the caller.
fn decode<'py>(py: Python<'py>, value: &Value<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Value::Text(text) => PyString::new(py, text).into_any(),
        Value::Int(number) => number.into_pyobject(py)?.into_any(),
        Value::Scalar(dtype, bytes) => new_scalar(py, *dtype, bytes)?,
        Value::Array(array) => new_array(py, array.dtype, &array.shape, array.data)?,
        Value::Blobs(blobs) => PyList::new(py, blobs.iter().map(|blob| PyBytes::new(py, blob)))?.into_any(),
    })
}

/// The columns' names as Python has them, made once and not for each sample.
fn names(py: Python<'_>, columns: &[Column]) -> Vec<Py<PyString>> {
    columns.iter().map(|column| PyString::intern(py, &column.name).unbind()).collect()
}

/// A column's name and encoding, and dtype and shape where every value has the same.
type Described = (String, String, Option<(&'static str, Vec<usize>)>);

fn describe(column: &Column) -> Described {
    let fixed = column.fixed().map(|(dtype, shape)| (dtype.name(), shape));
    (column.name.clone(), column.spec(), fixed)
}

/// The core's writer, as `latentq.mds.Writer` uses it.
#[pyclass(module = "latentq._core")]
struct MdsWriter {
    /// `None` when finished or given up.
    writer: Option<mds::Writer>,
    names: Vec<Py<PyString>>,
}

impl MdsWriter {
    fn open(&mut self) -> PyResult<&mut mds::Writer> {
        self.writer.as_mut().ok_or_else(closed)
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("the writer is closed")
}

#[pymethods]
impl MdsWriter {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        columns: Vec<(PyBackedStr, PyBackedStr)>,
        compression: Option<String>,
        hashes: Vec<String>,
        size_limit: u64,
        sync: bool,
    ) -> PyResult<Self> {
        let columns = columns.iter().map(|(name, encoding)| Column::new(name, encoding));
        let columns = columns.collect::<Result<_, _>>().map_err(to_py)?;
        let options = mds::Options { compression, hashes, size_limit, sync };
        let writer = mds::Writer::create(&path, columns, &options).map_err(to_py)?;
        Ok(Self { names: names(py, writer.columns()), writer: Some(writer) })
    }

    #[getter]
    fn columns(&mut self) -> PyResult<Vec<Described>> {
        Ok(self.open()?.columns().iter().map(describe).collect())
    }

    fn write(&mut self, py: Python<'_>, sample: &Bound<'_, PyAny>) -> PyResult<()> {
        let writer = self.writer.as_mut().ok_or_else(closed)?;
        let columns = writer.columns().iter().zip(&self.names);
        let held = columns.map(|(column, name)| encode(column, &item(sample, name.bind(py))?));
        let held = held.collect::<PyResult<Vec<_>>>()?;
        let values: Vec<&[u8]> = held.iter().map(Held::bytes).collect();
        // Where nothing but memory is written, that is done before the interpreter were let go and had again.
        let written =
            if writer.has_room(&values) { writer.write(&values) } else { py.detach(|| writer.write(&values)) };
        written.map_err(to_py)
    }

    fn write_batch(&mut self, py: Python<'_>, n: usize, batch: &Bound<'_, PyDict>) -> PyResult<()> {
        enum Batch<'py> {
            Rows(PyReadonlyArray1<'py, u8>),
            Each(Vec<Held<'py>>),
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
                Batch::Each(held) => Values::Each(held.iter().map(Held::bytes).collect()),
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

fn item<'py>(sample: &Bound<'py, PyAny>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
    let Ok(sample) = sample.cast::<PyDict>() else { return sample.get_item(name) };
    sample
        .get_item(name)?
        .ok_or_else(|| PyKeyError::new_err(format!("the sample has no column {:?}", name.to_string())))
}

/// The core's reader, as `latentq.mds.Reader` uses it.
#[pyclass(module = "latentq._core", frozen)]
pub struct MdsReader {
    pub reader: Arc<mds::Reader>,
    names: Vec<Py<PyString>>,
}

#[pymethods]
impl MdsReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, memory: usize, raw: usize) -> PyResult<Self> {
        let reader = py.detach(|| mds::Reader::open(&path, memory, raw)).map_err(to_py)?;
        Ok(Self { names: names(py, &reader.schema().columns), reader: Arc::new(reader) })
    }

    fn __len__(&self) -> usize {
        self.reader.len() as usize
    }

    #[getter]
    fn columns(&self) -> Vec<Described> {
        self.reader.schema().columns.iter().map(describe).collect()
    }

    fn sample<'py>(&self, py: Python<'py>, index: i64) -> PyResult<Bound<'py, PyDict>> {
        let index = self.resolve(index)?;
        let sample = py.detach(|| self.reader.sample(index)).map_err(to_py)?;
        let out = PyDict::new(py);
        for (at, (column, name)) in self.reader.schema().columns.iter().zip(&self.names).enumerate() {
            let value = column.encoding.decode(sample.value(at));
            let value = value.map_err(|fault| to_py(self.reader.fault(&sample, at, fault)))?;
            out.set_item(name, decode(py, &value)?)?;
        }
        Ok(out)
    }

    /// The file that a value lies in, and where in it.
    fn place(&self, index: i64, column: usize) -> PyResult<(String, u64)> {
        let sample = self.reader.sample(self.resolve(index)?).map_err(to_py)?;
        Ok(self.reader.place(&sample, column))
    }

    /// Raises the error for a value that the caller could not decode.
    fn fault(&self, index: i64, column: usize, message: &str) -> PyResult<()> {
        let sample = self.reader.sample(self.resolve(index)?).map_err(to_py)?;
        let fault = mds::Fault { offset: 0, message: message.to_owned() };
        Err(to_py(self.reader.fault(&sample, column, fault)))
    }

    /// For each column, into the array that is given, of shape (n, bytes of a value), or else as a list.
    fn gather<'py>(
        this: &Bound<'py, Self>,
        indices: PyReadonlyArray1<'py, i64>,
        columns: Vec<usize>,
        outs: Vec<Option<Bound<'py, PyAny>>>,
    ) -> PyResult<Vec<Option<Bound<'py, PyList>>>> {
        let quantizers = outs.iter().map(|_| None).collect();
        gather(this.py(), this.as_any(), indices, columns, outs, quantizers, None)?.result(this.py())
    }
}

impl MdsReader {
    /// Values of a column, as Python has them.
    pub fn list<'a, 'py>(
        &self,
        py: Python<'py>,
        indices: &[u64],
        column: usize,
        values: impl Iterator<Item = &'a [u8]>,
    ) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (value, index) in values.zip(indices) {
            match self.reader.schema().columns[column].encoding.decode(value) {
                Ok(value) => list.append(decode(py, &value)?)?,
                Err(fault) => {
                    let sample = self.reader.sample(*index).map_err(to_py)?;
                    return Err(to_py(self.reader.fault(&sample, column, fault)));
                }
            }
        }
        Ok(list)
    }

    /// An index as NumPy takes it: negative from the end.
    pub fn resolve(&self, index: i64) -> PyResult<u64> {
        let len = self.reader.len();
        let found = if index < 0 { len.checked_sub(index.unsigned_abs()) } else { Some(index as u64) };
        found
            .filter(|found| *found < len)
            .ok_or_else(|| PyIndexError::new_err(format!("index {index} is out of bounds for axis 0 with size {len}")))
    }
}

#[pyfunction]
fn mds_merged_index(py: Python<'_>, path: PathBuf, folders: Vec<String>) -> PyResult<Bound<'_, PyBytes>> {
    let bytes = py.detach(|| mds::merged_index(&path, &folders)).map_err(to_py)?;
    Ok(PyBytes::new(py, &bytes))
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
fn mds_repair(py: Python<'_>, path: PathBuf) -> PyResult<(usize, u64, Findings, Vec<String>)> {
    let done = py.detach(|| mds::repair(&path)).map_err(to_py)?;
    Ok((done.shards, done.samples, findings(done.left_out), done.kept))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<MdsReader>()?;
    module.add_class::<MdsWriter>()?;
    module.add_function(wrap_pyfunction!(mds_merge, module)?)?;
    module.add_function(wrap_pyfunction!(mds_merged_index, module)?)?;
    module.add_function(wrap_pyfunction!(mds_repair, module)?)?;
    module.add_function(wrap_pyfunction!(mds_verify, module)?)?;
    Ok(())
}

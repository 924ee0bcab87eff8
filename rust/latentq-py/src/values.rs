//! Conversion between Python values and the bytes of a column.

use std::ffi::c_int;

use bytemuck::{Pod, cast_slice};
use half::f16;
use latentq_core::mds::{self, Column, DType, Encoding, Value};
use numpy::npyffi::{PY_ARRAY_API, npy_intp};
use numpy::prelude::*;
use numpy::{Element, PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArray};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyList, PyString};

/// Evaluates `$body` with the type `T` of `$dtype`.
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
pub enum EncodedValue<'py> {
    Bytes(PyBackedBytes),
    Text(PyBackedStr),
    Own(Vec<u8>),
    Array(Box<dyn Contiguous + 'py>),
}

impl EncodedValue<'_> {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Text(text) => text.as_bytes(),
            Self::Own(bytes) => bytes,
            Self::Array(array) => array.bytes(),
        }
    }
}

/// A C-contiguous array in native byte order.
pub trait Contiguous {
    fn bytes(&self) -> &[u8];
}

impl<T: Element + Pod> Contiguous for PyReadonlyArrayDyn<'_, T> {
    fn bytes(&self) -> &[u8] {
        // `contiguous` has checked that this is a slice.
        self.as_slice().map(cast_slice).unwrap_or_default()
    }
}

/// The error for a value that does not fit its column.
fn invalid(column: &Column, why: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("column {:?} ({}): {why}", column.name, column.spec()))
}

/// The bytes of an array of any byte order and strides, with its dtype (which must be `dtype` if that is given) and shape.
fn array_bytes<'py>(
    column: &Column,
    dtype: Option<DType>,
    value: &Bound<'py, PyAny>,
) -> PyResult<(DType, Vec<usize>, EncodedValue<'py>)> {
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        return Err(wrong_type(column, "an array", value));
    };
    let shape = array.shape().to_vec();
    for dtype in dtype.as_ref().map_or(&DType::ALL[..], std::slice::from_ref) {
        if let Some(bytes) = with_type!(dtype, contiguous::<T>(value)) {
            return Ok((*dtype, shape, bytes));
        }
    }
    // Not contiguous or not in native byte order: let NumPy make a copy of the same dtype.
    let own = array.dtype().getattr("name")?.extract::<PyBackedStr>()?;
    let copy = match DType::parse(&own).filter(|own| dtype.is_none_or(|dtype| dtype == *own)) {
        Some(dtype) => {
            let copy = value.py().import("numpy")?.call_method1("ascontiguousarray", (value, dtype.name()))?;
            with_type!(dtype, contiguous::<T>(&copy)).map(|bytes| (dtype, shape, bytes))
        }
        None => None,
    };
    copy.ok_or_else(|| invalid(column, format!("an array of {own}")))
}

/// The bytes of a value, if it is a C-contiguous array of `T` in native byte order.
fn contiguous<'py, T: Element + Pod>(value: &Bound<'py, PyAny>) -> Option<EncodedValue<'py>> {
    let array = value.cast::<PyArrayDyn<T>>().ok()?.try_readonly().ok()?;
    (array.is_c_contiguous() && array.as_slice().is_ok()).then(|| EncodedValue::Array(Box::new(array)))
}

/// Encodes a value for its column. A `bytes` value is written unchanged.
pub fn encode<'py>(column: &Column, value: &Bound<'py, PyAny>) -> PyResult<EncodedValue<'py>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(EncodedValue::Bytes(bytes.clone().into()));
    }
    match &column.encoding {
        Encoding::Int => {
            extract_number::<i64>(column, value).map(|number| EncodedValue::Own(number.to_le_bytes().to_vec()))
        }
        Encoding::Scalar(DType::F16) => {
            let scalar =
                value.py().import("numpy")?.call_method1("float16", (extract_number::<f64>(column, value)?,))?;
            Ok(EncodedValue::Bytes(scalar.call_method0("tobytes")?.extract()?))
        }
        Encoding::Scalar(DType::F32) => {
            Ok(EncodedValue::Own((extract_number::<f64>(column, value)? as f32).to_le_bytes().to_vec()))
        }
        Encoding::Scalar(DType::F64) => {
            Ok(EncodedValue::Own(extract_number::<f64>(column, value)?.to_le_bytes().to_vec()))
        }
        Encoding::Scalar(DType::U64) => {
            extract_number::<u64>(column, value).map(|number| EncodedValue::Own(number.to_le_bytes().to_vec()))
        }
        Encoding::Scalar(dtype) => encode_integer(column, *dtype, value),
        Encoding::Raw(dtype) => Ok(array_bytes(column, Some(*dtype), value)?.2),
        Encoding::NdArray(dtype, shape) => {
            let (found, dims, data) = array_bytes(column, *dtype, value)?;
            if shape.as_ref().is_some_and(|shape| *shape != dims) {
                return Err(invalid(column, format!("an array of shape {dims:?}")));
            }
            let mut bytes =
                mds::array_header(*dtype, shape.as_deref(), found, &dims).map_err(|why| invalid(column, why))?;
            if bytes.is_empty() {
                return Ok(data);
            }
            bytes.extend_from_slice(data.bytes());
            Ok(EncodedValue::Own(bytes))
        }
        Encoding::Str | Encoding::Json | Encoding::StrInt | Encoding::StrFloat | Encoding::StrDecimal => {
            match value.cast::<PyString>() {
                Ok(text) => text
                    .clone()
                    .try_into()
                    .map(EncodedValue::Text)
                    .map_err(|_| invalid(column, "the text has a lone surrogate")),
                Err(_) => Err(wrong_type(column, "a str", value)),
            }
        }
        _ => Err(wrong_type(column, "bytes", value)),
    }
}

/// Encodes an integer that fits i64 (every integer dtype but uint64).
fn encode_integer<'py>(column: &Column, dtype: DType, value: &Bound<'py, PyAny>) -> PyResult<EncodedValue<'py>> {
    let number = extract_number::<i64>(column, value)?;
    let (low, high) = match dtype {
        DType::U8 => (0, i64::from(u8::MAX)),
        DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DType::U16 => (0, i64::from(u16::MAX)),
        DType::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DType::U32 => (0, i64::from(u32::MAX)),
        DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    if number < low || number > high {
        return Err(invalid(column, format!("{number} is out of range")));
    }
    Ok(EncodedValue::Own(number.to_le_bytes()[..dtype.size()].to_vec()))
}

/// The error for a value of the wrong Python type.
fn wrong_type(column: &Column, what: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let name = value.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    PyTypeError::new_err(format!("column {:?} ({}): {what} is needed, not {name}", column.name, column.spec()))
}

/// Extracts a number. Errors name the column.
fn extract_number<'py, T: FromPyObjectOwned<'py>>(column: &Column, value: &Bound<'py, PyAny>) -> PyResult<T> {
    value.extract::<T>().map_err(|error: T::Error| {
        let error: PyErr = error.into();
        match error.is_instance_of::<PyOverflowError>(value.py()) {
            true => invalid(column, "the number is out of range"),
            false => wrong_type(column, "a number of this type", value),
        }
    })
}

/// A new `bytes` object.
///
/// # Errors
/// `MemoryError`, where `PyBytes::new` panics.
pub fn new_bytes<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, bytes.len(), |out| {
        out.copy_from_slice(bytes);
        Ok(())
    })
}

/// A new array of zeros that owns its memory.
///
/// # Errors
/// `MemoryError`, where `PyArray::zeros` panics.
#[allow(unsafe_code)]
fn new_zeros<'py, T: Element>(py: Python<'py>, shape: &[usize]) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let mut dims: Vec<npy_intp> = shape.iter().map(|dim| *dim as npy_intp).collect();
    // SAFETY: the call reads `dims.len()` dimensions and takes the reference to the dtype. It returns a new reference to an
    // array of this dtype, or null with an exception set.
    unsafe {
        let dtype = T::get_dtype(py).into_dtype_ptr();
        let array = PY_ARRAY_API.PyArray_Zeros(py, dims.len() as c_int, dims.as_mut_ptr(), dtype, 0);
        Ok(Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked())
    }
}

/// A new array with the contents `bytes`, which must have exactly the size of `shape`.
fn new_array<'py>(py: Python<'py>, dtype: DType, shape: &[usize], bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    with_type!(dtype, {
        let array = new_zeros::<T>(py, shape)?;
        bytemuck::cast_slice_mut(array.try_readwrite()?.as_slice_mut()?).copy_from_slice(bytes);
        Ok(array.into_any())
    })
}

/// A NumPy scalar.
fn new_scalar<'py>(py: Python<'py>, dtype: DType, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    new_array(py, dtype, &[], bytes)?.get_item(())
}

/// Converts a value to Python. JSON, numbers as text, and images are left to the caller, as text or bytes.
pub fn decode<'py>(py: Python<'py>, value: &Value<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Bytes(bytes) => new_bytes(py, bytes)?.into_any(),
        Value::Text(text) => PyString::from_bytes(py, text.as_bytes())?.into_any(),
        Value::Int(number) => number.into_pyobject(py)?.into_any(),
        Value::Scalar(dtype, bytes) => new_scalar(py, *dtype, bytes)?,
        Value::Array(array) => new_array(py, array.dtype, &array.shape, array.data)?,
        Value::Blobs(blobs) => {
            let list = PyList::empty(py);
            blobs.iter().try_for_each(|blob| list.append(new_bytes(py, blob)?))?;
            list.into_any()
        }
    })
}

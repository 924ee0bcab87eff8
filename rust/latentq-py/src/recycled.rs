//! NumPy arrays that own memory of `latentq_core::recycled`, by NumPy's own interface for allocators (NEP 49).

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use latentq_core::recycled;
use numpy::npyffi::{PY_ARRAY_API, npy_intp};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// NumPy's `PyDataMem_Handler`, version 1.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    context: *mut c_void,
    malloc: extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

// SAFETY: the context is null, and nothing is ever written to it.
#[allow(unsafe_code)]
unsafe impl Sync for Handler {}

static HANDLER: Handler =
    Handler { name: name(b"latentq"), version: 1, context: ptr::null_mut(), malloc, calloc, realloc, free };

const fn name(text: &[u8]) -> [c_char; 127] {
    let mut name = [0; 127];
    let mut at = 0;
    while at < text.len() {
        name[at] = text[at] as c_char;
        at += 1;
    }
    name
}

extern "C" fn malloc(_: *mut c_void, len: usize) -> *mut c_void {
    recycled::allocate(len).cast()
}

#[allow(unsafe_code)]
extern "C" fn calloc(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let Some(len) = count.checked_mul(size) else { return ptr::null_mut() };
    let start = recycled::allocate(len);
    if !start.is_null() {
        // SAFETY: as many bytes were allocated.
        unsafe { start.write_bytes(0, len) };
    }
    start.cast()
}

#[allow(unsafe_code)]
unsafe extern "C" fn realloc(_: *mut c_void, start: *mut c_void, len: usize) -> *mut c_void {
    // SAFETY: NumPy gives what these functions returned.
    unsafe { recycled::reallocate(start.cast(), len) }.cast()
}

#[allow(unsafe_code)]
unsafe extern "C" fn free(_: *mut c_void, start: *mut c_void, _: usize) {
    // SAFETY: NumPy gives what these functions returned, once.
    unsafe { recycled::release(start.cast()) }
}

type SetHandler = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject;

/// NumPy's `PyDataMem_SetHandler` (since 1.22), and the capsule of the handler.
struct Api {
    set: SetHandler,
    handler: Py<PyAny>,
}

impl Api {
    /// The position of the function in NumPy's table.
    const SET_HANDLER: usize = 304;

    #[allow(unsafe_code)]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let module = py.import("numpy._core.multiarray").or_else(|_| py.import("numpy.core.multiarray"))?;
        let capsule = module.getattr("_ARRAY_API")?;
        // SAFETY: the capsule, which NumPy names so, holds its table of functions, and this position has had this function
        // since before the oldest version that latentq accepts. The handler lives as long as the process.
        unsafe {
            let table = ffi::PyCapsule_GetPointer(capsule.as_ptr(), ptr::null()).cast::<*const c_void>();
            if table.is_null() {
                return Err(PyErr::fetch(py));
            }
            let set = std::mem::transmute::<*const c_void, SetHandler>(*table.add(Self::SET_HANDLER));
            let handler = ffi::PyCapsule_New(ptr::from_ref(&HANDLER).cast_mut().cast(), c"mem_handler".as_ptr(), None);
            Ok(Self { set, handler: Bound::from_owned_ptr_or_err(py, handler)?.unbind() })
        }
    }
}

/// Bytes from which on arrays take recycled memory: the C library recycles smaller blocks well.
const LARGE: usize = 1 << 20;

/// A new array whose contents are arbitrary. Memory of a large one is kept for the next one when it is freed.
#[pyfunction]
pub fn new_array<'py>(
    py: Python<'py>,
    shape: Vec<usize>,
    dtype: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    array_from(py, shape, &PyArrayDescr::new(py, dtype)?, LARGE)
}

/// [`new_array`] that takes recycled memory from `large` bytes on.
#[allow(unsafe_code)]
pub fn array_from<'py>(
    py: Python<'py>,
    shape: Vec<usize>,
    dtype: &Bound<'py, PyArrayDescr>,
    large: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    static API: PyOnceLock<Api> = PyOnceLock::new();
    let mut dims = Vec::with_capacity(shape.len());
    for dim in &shape {
        dims.push(npy_intp::try_from(*dim).map_err(|_| PyValueError::new_err("a dimension is too large"))?);
    }
    if dtype.has_object() {
        return Err(PyValueError::new_err("an array of objects cannot be recycled"));
    }
    let len = shape.iter().try_fold(dtype.itemsize(), |len, dim| len.checked_mul(*dim));
    let is_large = len.is_none_or(|len| len >= large);
    // SAFETY: `PyArray_Empty` reads as many dimensions and takes the reference to the dtype; it returns a new reference, or null
    // with an exception set.
    let mut empty = || unsafe {
        let dtype = dtype.clone().into_dtype_ptr();
        Bound::from_owned_ptr_or_err(
            py,
            PY_ARRAY_API.PyArray_Empty(py, dims.len() as c_int, dims.as_mut_ptr(), dtype, 0),
        )
    };
    let array = if is_large {
        let api = API.get_or_try_init(py, || Api::new(py))?;
        // SAFETY: NumPy returns the handler that was set before, as a new reference, and it is set again.
        unsafe {
            let before = Bound::from_owned_ptr_or_err(py, (api.set)(api.handler.as_ptr()))?;
            let array = empty();
            drop(Bound::from_owned_ptr_or_err(py, (api.set)(before.as_ptr()))?);
            array?
        }
    } else {
        empty()?
    };
    // SAFETY: it is an array.
    Ok(unsafe { array.cast_into_unchecked() })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("LARGE", LARGE)?;
    module.add_function(wrap_pyfunction!(new_array, module)?)
}

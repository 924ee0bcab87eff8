//! `latentq_core::quant` for Python. Arrays must be C-contiguous, aligned and in native byte order, which `latentq.quantizer`
//! ensures. A 16-bit float array is passed as uint16 with a bool that is true for bfloat16.

use std::sync::Arc;

use latentq_core::Error;
use latentq_core::quant::{self, Floats, FloatsMut, Method, Rounding};
use numpy::{
    Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::error::to_py;

/// Sample and channel of a NaN or an infinity.
pub type Bad = Option<(usize, usize)>;

/// Which of `samples` samples are bad.
fn mask(samples: usize, bad: &[(usize, usize)]) -> PyResult<Vec<bool>> {
    let mut mask = Vec::new();
    mask.try_reserve_exact(samples).map_err(|_| to_py(Error::memory(samples)))?;
    mask.resize(samples, false);
    for (sample, _) in bad {
        mask[*sample] = true;
    }
    Ok(mask)
}

/// Checks that the array's memory can be used as a slice in the order of its elements.
fn check_layout<T>(array: &Bound<'_, PyArrayDyn<T>>) -> PyResult<()> {
    if array.is_c_contiguous() && array.data().is_aligned() {
        return Ok(());
    }
    Err(PyValueError::new_err("expected a C-contiguous, aligned array"))
}

/// A float array that is read.
pub enum Input<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F64(PyReadonlyArrayDyn<'py, f64>),
    Half(PyReadonlyArrayDyn<'py, u16>, bool),
}

impl<'py> Input<'py> {
    pub fn new(array: &Bound<'py, PyAny>, bfloat16: bool) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArrayDyn<f32>>() {
            check_layout(array)?;
            Ok(Self::F32(array.try_readonly()?))
        } else if let Ok(array) = array.cast::<PyArrayDyn<u16>>() {
            check_layout(array)?;
            Ok(Self::Half(array.try_readonly()?, bfloat16))
        } else if let Ok(array) = array.cast::<PyArrayDyn<f64>>() {
            check_layout(array)?;
            Ok(Self::F64(array.try_readonly()?))
        } else {
            Err(PyTypeError::new_err("expected an array of float32, float64 or the bits of a 16-bit float"))
        }
    }

    pub fn floats(&self) -> PyResult<Floats<'_>> {
        Ok(match self {
            Self::F32(x) => Floats::F32(x.as_slice()?),
            Self::F64(x) => Floats::F64(x.as_slice()?),
            Self::Half(x, false) => Floats::F16(x.as_slice()?),
            Self::Half(x, true) => Floats::BF16(x.as_slice()?),
        })
    }

    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(x) => x.shape(),
            Self::F64(x) => x.shape(),
            Self::Half(x, _) => x.shape(),
        }
    }
}

/// Borrows an output array, after checking its dtype, shape and layout.
pub fn output<'py, T: Element>(array: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    if let Ok(array) = array.cast::<PyArrayDyn<T>>()
        && array.shape() == shape
        && check_layout(array).is_ok()
        && let Ok(array) = array.try_readwrite()
    {
        return Ok(array);
    }
    Err(PyValueError::new_err(format!(
        "out must be an array of {} of shape {shape:?}, C-contiguous, aligned, writable, and not shared with the input",
        T::get_dtype(array.py())
    )))
}

/// A float array that is written.
pub enum Output<'py> {
    F32(PyReadwriteArrayDyn<'py, f32>),
    Half(PyReadwriteArrayDyn<'py, u16>, bool),
}

impl<'py> Output<'py> {
    fn new(array: &Bound<'py, PyAny>, bfloat16: bool, shape: &[usize]) -> PyResult<Self> {
        if array.cast::<PyArrayDyn<u16>>().is_ok() {
            return Ok(Self::Half(output(array, shape)?, bfloat16));
        }
        Ok(Self::F32(output(array, shape)?))
    }

    /// Borrows an array (N, C, ...). Also returns the number of elements per channel of a sample.
    pub fn of(array: &Bound<'py, PyAny>, bfloat16: bool, channels: usize) -> PyResult<(usize, Self)> {
        let shape = array.cast::<PyUntypedArray>()?.shape();
        Ok((plane(shape, channels)?, Self::new(array, bfloat16, shape)?))
    }

    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(x) => x.shape(),
            Self::Half(x, _) => x.shape(),
        }
    }

    pub fn floats(&mut self) -> PyResult<FloatsMut<'_>> {
        Ok(match self {
            Self::F32(x) => FloatsMut::F32(x.as_slice_mut()?),
            Self::Half(x, false) => FloatsMut::F16(x.as_slice_mut()?),
            Self::Half(x, true) => FloatsMut::BF16(x.as_slice_mut()?),
        })
    }
}

/// The number of elements per channel of a sample in an array (N, C, ...).
fn plane(shape: &[usize], channels: usize) -> PyResult<usize> {
    match shape {
        [_, c, rest @ ..] if *c == channels => Ok(rest.iter().product()),
        _ => Err(PyValueError::new_err(format!("expected an array (N, {channels}, ...), not one of shape {shape:?}"))),
    }
}

/// The core of `latentq.quantizer.Quantizer`.
#[pyclass(frozen, module = "latentq._core")]
pub struct Quantizer(pub Arc<quant::Quantizer>);

#[pymethods]
impl Quantizer {
    #[staticmethod]
    fn affine(low: Vec<f32>, high: Vec<f32>, bits: u32, truncate: bool) -> PyResult<Self> {
        let rounding = if truncate { Rounding::Truncate } else { Rounding::Nearest };
        quant::Quantizer::affine(&low, &high, bits, rounding).map(Arc::new).map(Self).map_err(to_py)
    }

    #[staticmethod]
    fn codebook(levels: PyReadonlyArrayDyn<'_, f32>, bits: u32) -> PyResult<Self> {
        quant::Quantizer::codebook(levels.as_slice()?, bits).map(Arc::new).map(Self).map_err(to_py)
    }

    #[staticmethod]
    fn trellis(levels: PyReadonlyArrayDyn<'_, f32>, bits: u32) -> PyResult<Self> {
        quant::Quantizer::trellis(levels.as_slice()?, bits).map(Arc::new).map(Self).map_err(to_py)
    }

    /// Quantizes to codes, packed or one byte each. Returns the first bad sample and channel.
    #[allow(clippy::too_many_arguments)]
    fn quantize(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        bfloat16: bool,
        out: &Bound<'_, PyAny>,
        packed: bool,
        threads: usize,
    ) -> PyResult<Bad> {
        let x = Input::new(x, bfloat16)?;
        let plane = plane(x.shape(), self.0.channels())?;
        let mut out = if packed {
            let bytes = quant::packed_len(self.0.channels().saturating_mul(plane), self.0.bits()).map_err(to_py)?;
            output::<u8>(out, &[x.shape()[0], bytes])?
        } else {
            output::<u8>(out, x.shape())?
        };
        let (x, out) = (x.floats()?, out.as_slice_mut()?);
        let counts = py.detach(|| match packed {
            true => self.0.quantize_packed(x, out, plane, threads),
            false => self.0.quantize(x, out, plane, threads),
        });
        let counts = counts.map_err(to_py)?;
        Ok(counts.bad.first().copied())
    }

    /// Quantizes to codes. Returns the number of clipped values per channel, and a mask of bad samples.
    #[allow(clippy::type_complexity)]
    fn quantize_counted<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        bfloat16: bool,
        out: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<bool>>)> {
        let x = Input::new(x, bfloat16)?;
        let plane = plane(x.shape(), self.0.channels())?;
        let mut out = output::<u8>(out, x.shape())?;
        let samples = x.shape()[0];
        let (x, out) = (x.floats()?, out.as_slice_mut()?);
        let counts = py.detach(|| self.0.quantize(x, out, plane, threads)).map_err(to_py)?;
        let bad = mask(samples, &counts.bad)?;
        let clipped = counts.clipped.into_iter().map(|count| count as i64).collect();
        Ok((PyArray1::from_vec(py, clipped), PyArray1::from_vec(py, bad)))
    }

    /// Dequantizes codes of one byte each.
    fn dequantize(
        &self,
        py: Python<'_>,
        codes: PyReadonlyArrayDyn<'_, u8>,
        out: &Bound<'_, PyAny>,
        bfloat16: bool,
        threads: usize,
    ) -> PyResult<()> {
        let plane = plane(codes.shape(), self.0.channels())?;
        let mut out = Output::new(out, bfloat16, codes.shape())?;
        let (codes, out) = (codes.as_slice()?, out.floats()?);
        py.detach(|| self.0.dequantize(codes, out, plane, threads)).map_err(to_py)
    }

    /// Dequantizes packed codes to an array of shape `shape`.
    fn dequantize_packed(
        &self,
        py: Python<'_>,
        packed: PyReadonlyArrayDyn<'_, u8>,
        shape: Vec<usize>,
        out: &Bound<'_, PyAny>,
        bfloat16: bool,
        threads: usize,
    ) -> PyResult<()> {
        let plane = plane(&shape, self.0.channels())?;
        let mut out = Output::new(out, bfloat16, &shape)?;
        let (packed, out) = (packed.as_slice()?, out.floats()?);
        py.detach(|| self.0.dequantize_packed(packed, out, plane, threads)).map_err(to_py)
    }

    /// Adds the counts of all codes to `out` (C, 2^bits), or of all levels of a trellis (C, 2^(bits + 1)).
    fn histogram(
        &self,
        py: Python<'_>,
        codes: PyReadonlyArrayDyn<'_, u8>,
        mut out: PyReadwriteArrayDyn<'_, i64>,
    ) -> PyResult<()> {
        let plane = plane(codes.shape(), self.0.channels())?;
        let (codes, out) = (codes.as_slice()?, out.as_slice_mut()?);
        py.detach(|| self.0.histogram(codes, out, plane)).map_err(to_py)
    }
}

/// Casts floats to the type of `out`. Returns the first bad sample and channel, and a mask of bad samples.
#[pyfunction]
fn convert<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    x_bfloat16: bool,
    out: &Bound<'py, PyAny>,
    out_bfloat16: bool,
    threads: usize,
) -> PyResult<(Bad, Bound<'py, PyArray1<bool>>)> {
    let x = Input::new(x, x_bfloat16)?;
    let &[samples, channels, ..] = x.shape() else {
        return Err(PyValueError::new_err(format!("expected an array (N, C, ...), not one of shape {:?}", x.shape())));
    };
    let plane = plane(x.shape(), channels)?;
    let mut out = Output::new(out, out_bfloat16, x.shape())?;
    let (x, out) = (x.floats()?, out.floats()?);
    let counts = py.detach(|| quant::convert(x, out, channels, plane, threads)).map_err(to_py)?;
    let bad = mask(samples, &counts.bad)?;
    Ok((counts.bad.first().copied(), PyArray1::from_vec(py, bad)))
}

/// Packs codes (N, elements) to (N, bytes).
#[pyfunction]
fn pack(
    py: Python<'_>,
    codes: PyReadonlyArrayDyn<'_, u8>,
    mut out: PyReadwriteArrayDyn<'_, u8>,
    elements: usize,
    bits: u32,
    threads: usize,
) -> PyResult<()> {
    let (codes, out) = (codes.as_slice()?, out.as_slice_mut()?);
    py.detach(|| quant::pack(codes, out, elements, bits, threads)).map_err(to_py)
}

/// Unpacks (N, bytes) to codes (N, elements).
#[pyfunction]
fn unpack(
    py: Python<'_>,
    packed: PyReadonlyArrayDyn<'_, u8>,
    mut out: PyReadwriteArrayDyn<'_, u8>,
    elements: usize,
    bits: u32,
    threads: usize,
) -> PyResult<()> {
    let (packed, out) = (packed.as_slice()?, out.as_slice_mut()?);
    py.detach(|| quant::unpack(packed, out, elements, bits, threads)).map_err(to_py)
}

/// Sum, sum of squares, minimum and maximum of each channel of one sample (C, ...).
#[pyfunction]
fn moments(py: Python<'_>, x: &Bound<'_, PyAny>, bfloat16: bool) -> PyResult<Vec<(f64, f64, f64, f64)>> {
    let x = Input::new(x, bfloat16)?;
    let plane = x.shape().iter().skip(1).product();
    let x = x.floats()?;
    let moments = py.detach(|| quant::moments(x, plane));
    Ok(moments.into_iter().map(|m| (m.sum, m.square, m.min, m.max)).collect())
}

/// The core of `latentq.quantizer.Calibrator`.
#[pyclass(module = "latentq._core")]
struct Calibrator(quant::Calibrator);

#[pymethods]
impl Calibrator {
    #[new]
    fn new(channels: usize) -> PyResult<Self> {
        quant::Calibrator::new(channels).map(Self).map_err(to_py)
    }

    /// Adds values. If a sample is bad, returns it with its first bad channel, and adds nothing.
    fn update(&mut self, py: Python<'_>, x: &Bound<'_, PyAny>, bfloat16: bool) -> PyResult<Bad> {
        let x = Input::new(x, bfloat16)?;
        let plane = plane(x.shape(), self.0.channels())?;
        let x = x.floats()?;
        py.detach(|| self.0.update(x, plane)).map_err(to_py)
    }

    /// Low and high of each channel.
    fn ranges(&self, py: Python<'_>, bits: u32, method: &str) -> PyResult<Vec<(f32, f32)>> {
        let method = match method {
            "minmax" => Method::MinMax,
            "percentile" => Method::Percentile,
            "mse" => Method::Mse,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "unknown method {method:?} for ranges: minmax, percentile, mse"
                )));
            }
        };
        py.detach(|| self.0.ranges(bits, method)).map_err(to_py)
    }

    /// For each channel: number of values, number outside the range, sum of squares, sum of squared errors, largest error.
    #[allow(clippy::type_complexity)]
    fn measure(&self, py: Python<'_>, quantizer: &Quantizer) -> PyResult<Vec<(f64, f64, f64, f64, f64)>> {
        let costs = py.detach(|| self.0.measure(&quantizer.0)).map_err(to_py)?;
        Ok(costs.into_iter().map(|c| (c.count, c.clipped, c.signal, c.noise, c.largest)).collect())
    }

    /// The levels of all channels, channel by channel.
    fn levels(&self, py: Python<'_>, bits: u32) -> PyResult<Vec<f32>> {
        py.detach(|| self.0.levels(bits)).map_err(to_py)
    }
}

/// The core of `latentq.quantizer.Calibrator` for a trellis.
#[pyclass(module = "latentq._core")]
struct TrellisCalibrator(quant::TrellisCalibrator);

#[pymethods]
impl TrellisCalibrator {
    #[new]
    fn new(channels: usize) -> PyResult<Self> {
        quant::TrellisCalibrator::new(channels).map(Self).map_err(to_py)
    }

    /// Adds samples. If one is bad, returns it with its first bad channel, and adds nothing.
    fn update(&mut self, py: Python<'_>, x: &Bound<'_, PyAny>, bfloat16: bool) -> PyResult<Bad> {
        let x = Input::new(x, bfloat16)?;
        let plane = plane(x.shape(), self.0.channels())?;
        let x = x.floats()?;
        py.detach(|| self.0.update(x, plane)).map_err(to_py)
    }

    /// The levels of all channels, channel by channel.
    fn levels(&self, py: Python<'_>, bits: u32) -> PyResult<Vec<f32>> {
        py.detach(|| self.0.levels(bits)).map_err(to_py)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Quantizer>()?;
    module.add_class::<Calibrator>()?;
    module.add_class::<TrellisCalibrator>()?;
    module.add_function(wrap_pyfunction!(convert, module)?)?;
    module.add_function(wrap_pyfunction!(pack, module)?)?;
    module.add_function(wrap_pyfunction!(unpack, module)?)?;
    module.add_function(wrap_pyfunction!(moments, module)?)
}

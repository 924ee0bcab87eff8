//! `latentq_core::quant::Transform` for Python. Arrays are as in `quant.rs`. Encoded samples are one array of bytes, one after
//! the other, with the length of each.

use std::sync::Arc;

use latentq_core::quant::{self, BadSample, Fault, NumbersMut, TransformTables};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArrayDyn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::to_py;
use crate::quant::{Bad, Input, Output, output};

/// A bad sample, the channel of its first NaN or infinity if that is why, and a message.
type Refused = (usize, Option<usize>, String);

fn refused(bad: Vec<BadSample>) -> Vec<Refused> {
    let one = |(sample, fault): BadSample| {
        let channel = if let Fault::NotFinite(channel) = fault { Some(channel) } else { None };
        (sample, channel, fault.to_string())
    };
    bad.into_iter().map(one).collect()
}

/// Number of samples, and their height and width, in an array (N, C, height, width).
pub fn sizes(shape: &[usize], channels: usize) -> PyResult<(usize, (usize, usize))> {
    match *shape {
        [samples, c, height, width] if c == channels => Ok((samples, (height, width))),
        _ => Err(PyValueError::new_err(format!(
            "expected an array (N, {channels}, height, width), not one of shape {shape:?}"
        ))),
    }
}

/// The bytes of each sample.
fn rows<'a>(bytes: &'a [u8], lengths: &[i64], samples: usize) -> PyResult<Vec<&'a [u8]>> {
    let mut rest = bytes;
    let mut rows = Vec::new();
    for length in lengths {
        let length = usize::try_from(*length).ok();
        let cut = length.and_then(|length| rest.split_at_checked(length));
        let (row, after) = cut.ok_or_else(|| PyValueError::new_err("the lengths are not those of the bytes"))?;
        rows.push(row);
        rest = after;
    }
    if rows.len() != samples || !rest.is_empty() {
        return Err(PyValueError::new_err(format!(
            "{} encoded samples of {} bytes do not match {samples} samples of these lengths",
            rows.len(),
            bytes.len()
        )));
    }
    Ok(rows)
}

/// The core of `latentq.quantizer.Transform`.
#[pyclass(frozen, module = "latentq._core")]
pub struct Transform(pub Arc<quant::Transform>);

#[pymethods]
impl Transform {
    #[new]
    fn new(
        step: f32,
        mean: PyReadonlyArrayDyn<'_, f32>,
        basis: PyReadonlyArrayDyn<'_, f32>,
        inverse: PyReadonlyArrayDyn<'_, f32>,
        base: PyReadonlyArrayDyn<'_, u8>,
        frequency: PyReadonlyArrayDyn<'_, u16>,
    ) -> PyResult<Self> {
        let tables = TransformTables {
            step,
            mean: mean.as_slice()?.to_vec(),
            basis: basis.as_slice()?.to_vec(),
            inverse: inverse.as_slice()?.to_vec(),
            base: base.as_slice()?.to_vec(),
            frequency: frequency.as_slice()?.to_vec(),
        };
        quant::Transform::new(tables).map(Arc::new).map(Self).map_err(to_py)
    }

    /// Encodes (N, C, height, width). Returns the bytes, the length of each sample, and the samples that cannot be encoded.
    #[allow(clippy::type_complexity)]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        bfloat16: bool,
        budget: Option<usize>,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i64>>, Vec<Refused>)> {
        let x = Input::new(x, bfloat16)?;
        let (_, shape) = sizes(x.shape(), self.0.channels())?;
        let x = x.floats()?;
        let rows = py.detach(|| self.0.encode(x, shape, budget, threads)).map_err(to_py)?;
        let lengths = rows.lengths.into_iter().map(|length| length as i64).collect();
        Ok((PyArray1::from_vec(py, rows.bytes), PyArray1::from_vec(py, lengths), refused(rows.bad)))
    }

    /// Decodes to `out` (N, C, height, width). Returns the samples that cannot be decoded.
    fn decode(
        &self,
        py: Python<'_>,
        data: PyReadonlyArray1<'_, u8>,
        lengths: PyReadonlyArray1<'_, i64>,
        out: &Bound<'_, PyAny>,
        bfloat16: bool,
        threads: usize,
    ) -> PyResult<Vec<Refused>> {
        let (_, mut out) = Output::of(out, bfloat16, self.0.channels())?;
        let (samples, shape) = sizes(out.shape(), self.0.channels())?;
        let rows = rows(data.as_slice()?, lengths.as_slice()?, samples)?;
        let out = out.floats()?;
        py.detach(|| self.0.decode(&rows, out, shape, threads)).map(refused).map_err(to_py)
    }

    /// Decodes to integers in steps, int16 or int32 (N, C, height, width), and writes the step of each sample to `steps` (N,).
    /// Returns the samples that cannot be decoded or do not fit in `out`.
    fn decode_numbers(
        &self,
        py: Python<'_>,
        data: PyReadonlyArray1<'_, u8>,
        lengths: PyReadonlyArray1<'_, i64>,
        out: &Bound<'_, PyAny>,
        steps: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<Vec<Refused>> {
        let dims = out.cast::<numpy::PyUntypedArray>()?;
        let dims = numpy::PyUntypedArrayMethods::shape(dims).to_vec();
        let (samples, shape) = sizes(&dims, self.0.channels())?;
        let rows = rows(data.as_slice()?, lengths.as_slice()?, samples)?;
        let mut steps = output::<f32>(steps, &[samples])?;
        let steps = steps.as_slice_mut()?;
        let decode = |out: NumbersMut<'_>, steps: &mut [f32]| self.0.decode_numbers(&rows, out, steps, shape, threads);
        let bad = if out.cast::<numpy::PyArrayDyn<i16>>().is_ok() {
            let mut out = output::<i16>(out, &dims)?;
            let out = out.as_slice_mut()?;
            py.detach(|| decode(NumbersMut::I16(out), steps))
        } else {
            let mut out = output::<i32>(out, &dims)?;
            let out = out.as_slice_mut()?;
            py.detach(|| decode(NumbersMut::I32(out), steps))
        };
        bad.map(refused).map_err(to_py)
    }
}

/// The core of `latentq.quantizer.TransformCalibrator`.
#[pyclass(module = "latentq._core")]
struct TransformCalibrator(quant::TransformCalibrator);

#[pymethods]
impl TransformCalibrator {
    #[new]
    fn new(channels: usize) -> PyResult<Self> {
        quant::TransformCalibrator::new(channels).map(Self).map_err(to_py)
    }

    /// Adds samples. If one is bad, returns it with its first bad channel, and adds nothing.
    fn update(&mut self, py: Python<'_>, x: &Bound<'_, PyAny>, bfloat16: bool) -> PyResult<Bad> {
        let x = Input::new(x, bfloat16)?;
        let (_, shape) = sizes(x.shape(), self.0.channels())?;
        let x = x.floats()?;
        py.detach(|| self.0.update(x, shape)).map_err(to_py)
    }

    /// Step, mean, basis, inverse, base and frequency, flattened.
    #[allow(clippy::type_complexity)]
    fn tables<'py>(
        &self,
        py: Python<'py>,
        rate: f64,
        metric: Option<(PyReadonlyArrayDyn<'py, f64>, f64)>,
    ) -> PyResult<(
        f32,
        Bound<'py, PyArray1<f32>>,
        Bound<'py, PyArray1<f32>>,
        Bound<'py, PyArray1<f32>>,
        Bound<'py, PyArray1<u8>>,
        Bound<'py, PyArray1<u16>>,
    )> {
        let metric = match &metric {
            Some((matrix, power)) => Some((matrix.as_slice()?, *power)),
            None => None,
        };
        let tables = py.detach(|| self.0.tables(rate, metric)).map_err(to_py)?;
        Ok((
            tables.step,
            PyArray1::from_vec(py, tables.mean),
            PyArray1::from_vec(py, tables.basis),
            PyArray1::from_vec(py, tables.inverse),
            PyArray1::from_vec(py, tables.base),
            PyArray1::from_vec(py, tables.frequency),
        ))
    }
}

/// Raises ValueError if samples of this shape are too small or too large.
#[pyfunction]
fn check_transform_shape(channels: usize, height: usize, width: usize) -> PyResult<()> {
    quant::check_transform_shape(channels, (height, width)).map_err(to_py)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Transform>()?;
    module.add_class::<TransformCalibrator>()?;
    module.add_function(wrap_pyfunction!(check_transform_shape, module)?)
}

//! The encodings of MDS columns, and the decoding of single values.

use super::Fault;
use crate::{Error, Result};

/// The element type of an array or scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// uint8
    U8,
    /// int8
    I8,
    /// uint16
    U16,
    /// int16
    I16,
    /// float16
    F16,
    /// uint32
    U32,
    /// int32
    I32,
    /// float32
    F32,
    /// uint64
    U64,
    /// int64
    I64,
    /// float64
    F64,
}

/// Name, size in bytes and `ndarray` header code of each dtype.
const DTYPES: [(DType, &str, usize, u8); 11] = [
    (DType::U8, "uint8", 1, 8),
    (DType::I8, "int8", 1, 9),
    (DType::U16, "uint16", 2, 16),
    (DType::I16, "int16", 2, 17),
    (DType::F16, "float16", 2, 18),
    (DType::U32, "uint32", 4, 32),
    (DType::I32, "int32", 4, 33),
    (DType::F32, "float32", 4, 34),
    (DType::U64, "uint64", 8, 64),
    (DType::I64, "int64", 8, 65),
    (DType::F64, "float64", 8, 66),
];

impl DType {
    /// All dtypes.
    pub const ALL: [Self; 11] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::F16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn row(self) -> &'static (DType, &'static str, usize, u8) {
        // Every variant has a row.
        DTYPES.iter().find(|row| row.0 == self).unwrap_or(&DTYPES[0])
    }

    /// NumPy's name of the dtype.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// The dtype byte in the header of an `ndarray` value.
    pub fn code(self) -> u8 {
        self.row().3
    }

    /// Looks up a dtype by name.
    pub fn parse(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    fn from_code(code: u8) -> Option<Self> {
        DTYPES.iter().find(|row| row.3 == code).map(|row| row.0)
    }
}

/// Maximum number of axes that the shape byte of an `ndarray` value can represent.
pub const MAX_NDIM: usize = 63;

/// The encoding of the values of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes as they are.
    Bytes,
    /// UTF-8.
    Str,
    /// JSON text.
    Json,
    /// A Python `int` as int64.
    Int,
    /// One number.
    Scalar(DType),
    /// An integer as text.
    StrInt,
    /// A float as text.
    StrFloat,
    /// A decimal as text.
    StrDecimal,
    /// An array. Dtype and shape are in the header of each value if they are not fixed here.
    NdArray(Option<DType>, Option<Vec<usize>>),
    /// The bytes of an array without a header, as in imagenet.int8. An index lists them as the scalar `uint8` without a size.
    Raw(DType),
    /// Width, height, mode and pixels of an image.
    Pil,
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
    /// Several JPEG files: `jpeg_array`.
    JpegArray,
    /// A list of one of the three kinds of image.
    List(Box<Encoding>),
    /// `pkl` or an unknown encoding: bytes that are never decoded.
    Opaque,
}

/// A decoded value, which borrows its bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Bytes, an image file, or an opaque value.
    Bytes(&'a [u8]),
    /// Text, including JSON and numbers written as text.
    Text(&'a str),
    /// A Python `int`.
    Int(i64),
    /// One number, little-endian.
    Scalar(DType, &'a [u8]),
    /// An array.
    Array(Array<'a>),
    /// Several image files.
    Blobs(Vec<&'a [u8]>),
}

/// An array in C order, little-endian. `data` has exactly the size of `shape`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    /// Element type.
    pub dtype: DType,
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// The values.
    pub data: &'a [u8],
}

impl Encoding {
    /// Parses the encoding in an index; `None` if it is unknown. Does not apply the rule for [`Encoding::Raw`].
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "bytes" => Self::Bytes,
            "str" => Self::Str,
            "json" => Self::Json,
            "int" => Self::Int,
            "str_int" => Self::StrInt,
            "str_float" => Self::StrFloat,
            "str_decimal" => Self::StrDecimal,
            "pil" => Self::Pil,
            "jpeg" => Self::Jpeg,
            "png" => Self::Png,
            "jpeg_array" | "jpegarray" => Self::JpegArray,
            "list[pil]" => Self::List(Box::new(Self::Pil)),
            "list[jpeg]" => Self::List(Box::new(Self::Jpeg)),
            "list[png]" => Self::List(Box::new(Self::Png)),
            "pkl" => Self::Opaque,
            "ndarray" | "ndarray:" => Self::NdArray(None, None),
            _ => match text.strip_prefix("ndarray:") {
                None => Self::Scalar(DType::parse(text)?),
                Some(config) => match config.split_once(':') {
                    None => Self::NdArray(Some(DType::parse(config)?), None),
                    Some((dtype, dims)) => Self::NdArray(Some(DType::parse(dtype)?), Some(parse_dims(dims)?)),
                },
            },
        })
    }

    /// Bytes per value; `None` if that varies or overflows.
    fn size(&self) -> Option<u64> {
        match self {
            Self::Int => Some(8),
            Self::Scalar(dtype) => Some(dtype.size() as u64),
            Self::NdArray(Some(dtype), Some(shape)) => {
                shape.iter().try_fold(dtype.size() as u64, |size, dim| size.checked_mul(*dim as u64))
            }
            _ => None,
        }
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// A fault, with its offset in `bytes`.
    pub fn decode<'a>(&self, bytes: &'a [u8]) -> std::result::Result<Value<'a>, Fault> {
        match self {
            // Stock readers accept any image format in a `jpeg` or `png` column.
            Self::Bytes | Self::Opaque | Self::Jpeg | Self::Png => Ok(Value::Bytes(bytes)),
            Self::Str | Self::Json | Self::StrInt | Self::StrFloat | Self::StrDecimal => {
                let text = std::str::from_utf8(bytes)
                    .map_err(|error| Fault::new(error.valid_up_to() as u64, "the text is not UTF-8"))?;
                if let Some(offset) = self.text_fault(text) {
                    return Err(Fault::new(offset as u64, "the text is not valid for the encoding of its column"));
                }
                Ok(Value::Text(text))
            }
            Self::Int => match bytes.try_into() {
                Ok(bytes) => Ok(Value::Int(i64::from_le_bytes(bytes))),
                Err(_) => Err(Fault::new(0, format!("an int has 8 bytes, not {}", bytes.len()))),
            },
            Self::Scalar(dtype) => {
                if bytes.len() != dtype.size() {
                    let message = format!("{} has {} bytes, not {}", dtype.name(), dtype.size(), bytes.len());
                    return Err(Fault::new(0, message));
                }
                Ok(Value::Scalar(*dtype, bytes))
            }
            Self::NdArray(dtype, shape) => decode_array(*dtype, shape.as_deref(), bytes).map(Value::Array),
            Self::Raw(dtype) => {
                if !bytes.len().is_multiple_of(dtype.size()) {
                    return Err(Fault::new(
                        0,
                        format!("{} bytes are not a whole number of {}", bytes.len(), dtype.name()),
                    ));
                }
                Ok(Value::Array(Array { dtype: *dtype, shape: vec![bytes.len() / dtype.size()], data: bytes }))
            }
            Self::Pil => check_pil(bytes).map(|()| Value::Bytes(bytes)),
            Self::JpegArray => decode_blobs(bytes, 0, &Self::Jpeg).map(Value::Blobs),
            Self::List(element) => decode_blobs(bytes, 4, element).map(Value::Blobs),
        }
    }

    /// The position of the first error in a text of this encoding.
    fn text_fault(&self, text: &str) -> Option<usize> {
        match self {
            Self::StrInt => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let start = text.len() - digits.len();
                let bad = digits.find(|c: char| !c.is_ascii_digit());
                bad.map(|at| start + at).or(digits.is_empty().then_some(start))
            }
            Self::StrFloat => text.parse::<f64>().is_err().then_some(0),
            Self::StrDecimal => {
                let body = text.strip_prefix('-').unwrap_or(text);
                let digits = body.strip_prefix('s').unwrap_or(body).strip_prefix("NaN");
                let special = body == "Infinity" || digits.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
                let numeric = body.starts_with(|c: char| c.is_ascii_digit()) && is_number(body);
                (!special && !numeric).then_some(0)
            }
            Self::Json => super::json::fault(text),
            _ => None,
        }
    }
}

/// True for digits with an optional fraction and exponent, which Python's decimal accepts.
fn is_number(text: &str) -> bool {
    let (mantissa, exponent) = text.split_once(['E', 'e']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    [whole, fraction, exponent].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

fn parse_dims(text: &str) -> Option<Vec<usize>> {
    let dims: Option<Vec<usize>> = text
        .split(',')
        .map(|dim| dim.parse().ok().filter(|value: &usize| *value > 0 && dim.bytes().all(|b| b.is_ascii_digit())))
        .collect();
    dims.filter(|dims| dims.len() <= MAX_NDIM)
}

fn decode_array<'a>(
    dtype: Option<DType>,
    shape: Option<&[usize]>,
    bytes: &'a [u8],
) -> std::result::Result<Array<'a>, Fault> {
    let short = || Fault::new(bytes.len() as u64, "the header of the array is truncated");
    let mut at = 0;
    let dtype = match dtype {
        Some(dtype) => dtype,
        None => {
            let code = *bytes.first().ok_or_else(short)?;
            at = 1;
            DType::from_code(code).ok_or_else(|| Fault::new(0, format!("no dtype has the code {code}")))?
        }
    };
    let shape = match shape {
        Some(shape) => shape.to_vec(),
        None => {
            let byte = *bytes.get(at).ok_or_else(short)?;
            let (ndim, width) = (usize::from(byte >> 2), 1usize << (byte & 3));
            let start = at + 1;
            at = start + ndim * width;
            let dims = bytes.get(start..at).ok_or_else(short)?;
            if ndim == 0 {
                return Err(Fault::new(start as u64 - 1, "an array has at least one axis"));
            }
            let mut shape = Vec::with_capacity(ndim);
            for (axis, dim) in dims.chunks_exact(width).enumerate() {
                let value = dim.iter().rev().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
                let value = usize::try_from(value).ok().filter(|value| *value > 0);
                shape.push(value.ok_or_else(|| Fault::new((start + axis * width) as u64, "an axis has length 0"))?);
            }
            shape
        }
    };
    let data = &bytes[at..];
    let size = shape.iter().try_fold(dtype.size(), |size, dim| size.checked_mul(*dim));
    if size != Some(data.len()) {
        let message = format!("{} bytes are not {} of shape {shape:?}", data.len(), dtype.name());
        return Err(Fault::new(at as u64, message));
    }
    Ok(Array { dtype, shape, data })
}

/// The header of an `ndarray` value of dtype `own` and shape `dims`, in a column that fixes `dtype` and `shape` or not.
///
/// # Errors
/// A message for an array without axes, with an axis of length 0, or with too many axes.
pub fn array_header(
    dtype: Option<DType>,
    shape: Option<&[usize]>,
    own: DType,
    dims: &[usize],
) -> std::result::Result<Vec<u8>, String> {
    let mut out: Vec<u8> = if dtype.is_none() { vec![own.code()] } else { vec![] };
    let largest = dims.iter().copied().max().unwrap_or(0) as u64;
    if dims.is_empty() || dims.contains(&0) || dims.len() > MAX_NDIM {
        return Err(format!("an array of shape {dims:?}: it must have 1 to {MAX_NDIM} axes of length 1 or more"));
    }
    if shape.is_none() {
        let (k, width) = match largest {
            0..=0xff => (0, 1),
            0x100..=0xffff => (1, 2),
            0x1_0000..=0xffff_ffff => (2, 4),
            _ => (3, 8),
        };
        out.push(((dims.len() as u8) << 2) | k);
        dims.iter().for_each(|dim| out.extend_from_slice(&(*dim as u64).to_le_bytes()[..width]));
    }
    Ok(out)
}

/// The little-endian u32 at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Bits per pixel in Pillow's `tobytes`, for the modes that `frombytes` supports.
fn pil_bits(mode: &[u8]) -> Option<u64> {
    Some(match mode {
        b"1" => 1,
        b"L" | b"P" => 8,
        b"LA" | b"PA" | b"La" | b"I;16" | b"I;16L" | b"I;16B" | b"I;16N" => 16,
        b"RGB" | b"YCbCr" | b"LAB" | b"HSV" => 24,
        b"RGBA" | b"RGBX" | b"RGBa" | b"CMYK" | b"I" | b"F" => 32,
        _ => return None,
    })
}

fn check_pil(bytes: &[u8]) -> std::result::Result<(), Fault> {
    let field =
        |at| u32_at(bytes, at).ok_or_else(|| Fault::new(bytes.len() as u64, "the header of the image is truncated"));
    let (width, height, mode_len) = (field(0)?, field(4)?, field(8)? as usize);
    let mode = mode_len.checked_add(12).and_then(|end| bytes.get(12..end));
    let mode = mode.ok_or_else(|| Fault::new(8, "the mode of the image is truncated"))?;
    let bits = pil_bits(mode).ok_or_else(|| Fault::new(12, "unknown image mode"))?;
    let row = (u64::from(width) * bits).div_ceil(8);
    let pixels = bytes.len() as u64 - 12 - mode_len as u64;
    if u128::from(row) * u128::from(height) != u128::from(pixels) {
        return Err(Fault::new(0, format!("{pixels} bytes are not an image of {width} x {height} pixels")));
    }
    Ok(())
}

/// Decodes `u32 n, u32 len[n], blobs` after `start` bytes.
fn decode_blobs<'a>(bytes: &'a [u8], start: usize, element: &Encoding) -> std::result::Result<Vec<&'a [u8]>, Fault> {
    let short = || Fault::new(bytes.len() as u64, "the header of the list is truncated");
    let n = u32_at(bytes, start).ok_or_else(short)? as usize;
    let mut at = n.checked_mul(4).and_then(|lens| lens.checked_add(start + 4)).ok_or_else(short)?;
    let lens = bytes.get(start + 4..at).ok_or_else(short)?;
    let mut blobs = Vec::with_capacity(n);
    for len in lens.chunks_exact(4).map(|len| u32_at(len, 0).unwrap_or_default() as usize) {
        let blob = at.checked_add(len).and_then(|end| bytes.get(at..end));
        let blob = blob.ok_or_else(|| Fault::new(at as u64, format!("an element of {len} bytes is truncated")))?;
        element.decode(blob).map_err(|fault| fault.at(at as u64))?;
        blobs.push(blob);
        at += len;
    }
    match at == bytes.len() {
        true => Ok(blobs),
        false => Err(Fault::new(at as u64, "there are bytes after the last element")),
    }
}

/// A column: its name, its encoding (as written in an index and parsed), and its size if that is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// The encoding as written in an index.
    pub text: String,
    /// The parsed encoding.
    pub encoding: Encoding,
    /// Bytes per value; `None` if that varies.
    pub size: Option<u32>,
}

impl Column {
    /// Creates a column for writing. `encoding` is as in an index, or `raw:DTYPE` for [`Encoding::Raw`].
    ///
    /// # Errors
    /// An argument error for an encoding that is unknown, too large, or `pkl`.
    pub fn new(name: &str, encoding: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::argument(format!("column {name:?}: encoding {encoding:?} {why}")));
        if let Some(dtype) = encoding.strip_prefix("raw:") {
            let Some(dtype) = DType::parse(dtype) else { return refuse("does not name a dtype") };
            let text = dtype.name().to_owned();
            return Ok(Self { name: name.to_owned(), text, encoding: Encoding::Raw(dtype), size: None });
        }
        let Some(parsed) = Encoding::parse(encoding) else { return refuse("is unknown") };
        if parsed == Encoding::Opaque {
            return refuse("is refused: reading a pickle executes code");
        }
        let size = match parsed.size().map(u32::try_from) {
            Some(Ok(size)) => Some(size),
            None if !matches!(parsed, Encoding::NdArray(Some(_), Some(_))) => None,
            _ => return refuse("is larger than a shard can be"),
        };
        Ok(Self { name: name.to_owned(), text: encoding.to_owned(), encoding: parsed, size })
    }

    /// Creates a column from an index. A size of 0 means variable, like `None`.
    ///
    /// # Errors
    /// A message if encoding and size contradict each other.
    pub fn from_index(name: &str, text: &str, size: Option<u64>) -> std::result::Result<Self, String> {
        let size = size.filter(|size| *size != 0);
        let mut encoding = Encoding::parse(text).unwrap_or(Encoding::Opaque);
        let refuse = || Err(format!("column {name:?} of encoding {text:?} cannot have the size {size:?}"));
        let Ok(size32) = size.map(u32::try_from).transpose() else { return refuse() };
        match &encoding {
            Encoding::Scalar(dtype) if size != Some(dtype.size() as u64) => {
                if size.is_some_and(|size| !size.is_multiple_of(dtype.size() as u64)) {
                    return refuse();
                }
                encoding = Encoding::Raw(*dtype);
            }
            Encoding::NdArray(Some(_), Some(_)) | Encoding::Int if size.is_some() && size != encoding.size() => {
                return refuse();
            }
            _ => {}
        }
        Ok(Self { name: name.to_owned(), text: text.to_owned(), encoding, size: size32 })
    }

    /// The encoding in the notation of [`Column::new`].
    pub fn spec(&self) -> String {
        match self.encoding {
            Encoding::Raw(_) => format!("raw:{}", self.text),
            _ => self.text.clone(),
        }
    }

    /// True if the columns are equal, or differ only in the shape of their arrays, which have the same number of axes.
    pub fn equals_but_for_shape(&self, other: &Self) -> bool {
        match (&self.encoding, &other.encoding) {
            (Encoding::NdArray(Some(dtype), Some(shape)), Encoding::NdArray(Some(other_dtype), Some(other_shape))) => {
                self.name == other.name
                    && dtype == other_dtype
                    && shape.len() == other_shape.len()
                    && self.size.is_some() == other.size.is_some()
            }
            _ => self == other,
        }
    }

    /// The column of arrays of any shape. Its values have another form in a shard.
    pub(super) fn without_shape(&self) -> Self {
        let (text, encoding) = match &self.encoding {
            Encoding::NdArray(Some(dtype), _) => {
                (format!("ndarray:{}", dtype.name()), Encoding::NdArray(Some(*dtype), None))
            }
            other => (self.text.clone(), other.clone()),
        };
        Self { name: self.name.clone(), text, encoding, size: None }
    }

    /// Dtype and shape of all values, if they are fixed.
    pub fn fixed(&self) -> Option<(DType, Vec<usize>)> {
        let size = self.size? as usize;
        match &self.encoding {
            Encoding::Int => Some((DType::I64, vec![])),
            Encoding::Scalar(dtype) => Some((*dtype, vec![])),
            Encoding::NdArray(Some(dtype), Some(shape)) => Some((*dtype, shape.clone())),
            Encoding::Raw(dtype) => Some((*dtype, vec![size / dtype.size()])),
            _ => None,
        }
    }
}

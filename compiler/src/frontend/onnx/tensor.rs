//! Literal tensors of a model while shape arithmetic is evaluated, and their decoding.

use super::proto::{TensorProto, elem};
use crate::ir::{ConstData, Shape};
use half::{bf16, f16};
use precast_plan::DType;

/// Element type of an ONNX tensor, as far as import handles it. Narrow integers keep their value
/// range; all reals are computed in f64, and rounded to f32 where their type has no more bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Elem {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Elem {
    pub fn from_onnx(code: i32) -> Option<Elem> {
        Some(match code {
            elem::DOUBLE => Elem::F64,
            elem::FLOAT => Elem::F32,
            elem::FLOAT16 => Elem::F16,
            elem::BFLOAT16 => Elem::Bf16,
            elem::INT64 => Elem::I64,
            elem::INT32 => Elem::I32,
            elem::INT16 => Elem::I16,
            elem::INT8 => Elem::I8,
            elem::UINT64 => Elem::U64,
            elem::UINT32 => Elem::U32,
            elem::UINT16 => Elem::U16,
            elem::UINT8 => Elem::U8,
            elem::BOOL => Elem::Bool,
            _ => return None,
        })
    }

    /// A short name for an ONNX type code, as formats are named elsewhere (`f32`, `i64`).
    pub fn code_name(code: i32) -> String {
        match code {
            elem::STRING => "string".into(),
            14 => "complex64".into(),
            15 => "complex128".into(),
            17..=20 => "float8".into(),
            21 => "uint4".into(),
            22 => "int4".into(),
            _ => Elem::from_onnx(code)
                .map_or_else(|| format!("type code {code}"), |e| format!("{e:?}").to_lowercase()),
        }
    }

    /// Bytes of one element in `raw_data`.
    pub fn size(self) -> usize {
        match self {
            Elem::F64 | Elem::I64 | Elem::U64 => 8,
            Elem::F32 | Elem::I32 | Elem::U32 => 4,
            Elem::F16 | Elem::Bf16 | Elem::I16 | Elem::U16 => 2,
            Elem::I8 | Elem::U8 | Elem::Bool => 1,
        }
    }

    pub fn is_real(self) -> bool {
        matches!(self, Elem::F64 | Elem::F32 | Elem::F16 | Elem::Bf16)
    }

    /// The format of a tensor in a file, where the plan has one.
    pub fn file_dtype(self) -> Option<DType> {
        Some(match self {
            Elem::F32 => DType::F32,
            Elem::F16 => DType::F16,
            Elem::Bf16 => DType::Bf16,
            Elem::I64 => DType::I64,
            Elem::I32 => DType::I32,
            Elem::U8 => DType::U8,
            Elem::Bool => DType::Bool,
            _ => return None,
        })
    }
}

/// Elements by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Real(Vec<f64>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

/// A literal tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub elem: Elem,
    pub shape: Vec<usize>,
    pub data: Data,
}

/// More elements than any machine holds: larger extents are nonsense.
pub const MAX_ELEMENTS: usize = precast_plan::MAX_ELEMENTS as usize;

/// Product of extents.
///
/// # Errors
/// A negative extent, or a product that overflows.
pub fn checked_elements(dims: &[i64]) -> Result<(Vec<usize>, usize), String> {
    let mut n = 1usize;
    let mut out = Vec::with_capacity(dims.len());
    for &d in dims {
        let d = usize::try_from(d).map_err(|_| format!("extent {d} is negative"))?;
        // Zeros are left out here, so that no product of some of the extents overflows either.
        n = n
            .checked_mul(d.max(1))
            .filter(|n| *n <= MAX_ELEMENTS)
            .ok_or_else(|| format!("the extents {dims:?} overflow"))?;
        out.push(d);
    }
    let n = if out.contains(&0) { 0 } else { n };
    Ok((out, n))
}

impl Tensor {
    /// Builds a tensor, rounding or wrapping the elements to `elem`.
    pub fn new(elem: Elem, shape: impl Into<Vec<usize>>, data: Data) -> Tensor {
        let shape = shape.into();
        let mut t = Tensor { elem, shape, data };
        debug_assert_eq!(t.shape.iter().product::<usize>(), t.len());
        t.round();
        t
    }

    pub fn ints(values: Vec<i64>) -> Tensor {
        Tensor { elem: Elem::I64, shape: vec![values.len()], data: Data::Int(values) }
    }

    pub fn len(&self) -> usize {
        match &self.data {
            Data::Real(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn round(&mut self) {
        match &mut self.data {
            Data::Real(v) => match self.elem {
                // Precision is chosen later: as a cast of the model to 16 bits changes no value that
                // is computed, so none changes a literal.
                Elem::F32 | Elem::F16 | Elem::Bf16 => {
                    v.iter_mut().for_each(|x| *x = f64::from(*x as f32));
                }
                _ => {}
            },
            Data::Int(v) => match self.elem {
                Elem::I32 => v.iter_mut().for_each(|x| *x = i64::from(*x as i32)),
                Elem::I16 => v.iter_mut().for_each(|x| *x = i64::from(*x as i16)),
                Elem::I8 => v.iter_mut().for_each(|x| *x = i64::from(*x as i8)),
                Elem::U32 => v.iter_mut().for_each(|x| *x = i64::from(*x as u32)),
                Elem::U16 => v.iter_mut().for_each(|x| *x = i64::from(*x as u16)),
                Elem::U8 => v.iter_mut().for_each(|x| *x = i64::from(*x as u8)),
                _ => {}
            },
            Data::Bool(_) => {}
        }
    }

    /// The elements as f64 (bools as 0 and 1).
    pub fn to_reals(&self) -> Vec<f64> {
        match &self.data {
            Data::Real(v) => v.clone(),
            Data::Int(v) => v.iter().map(|&x| x as f64).collect(),
            Data::Bool(v) => v.iter().map(|&x| f64::from(u8::from(x))).collect(),
        }
    }

    /// The elements as integers, where they are integers or bools.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        match &self.data {
            Data::Real(_) => None,
            Data::Int(v) => Some(v.clone()),
            Data::Bool(v) => Some(v.iter().map(|&x| i64::from(x)).collect()),
        }
    }

    /// The single element as a real.
    pub fn scalar(&self) -> Option<f64> {
        (self.len() == 1).then(|| self.to_reals()[0])
    }

    /// The value of all elements, where they are equal.
    pub fn splat(&self) -> Option<f64> {
        let v = self.to_reals();
        let first = *v.first()?;
        v.iter().all(|x| x.to_bits() == first.to_bits()).then_some(first)
    }

    /// Elementwise conversion, as ONNX `Cast` without saturation.
    pub fn cast(&self, to: Elem) -> Tensor {
        let data = match (to, &self.data) {
            (Elem::Bool, Data::Real(v)) => Data::Bool(v.iter().map(|&x| x != 0.0).collect()),
            (Elem::Bool, Data::Int(v)) => Data::Bool(v.iter().map(|&x| x != 0).collect()),
            (Elem::Bool, Data::Bool(v)) => Data::Bool(v.clone()),
            (e, _) if e.is_real() => Data::Real(self.to_reals()),
            // `as` truncates towards zero and saturates.
            (_, Data::Real(v)) => Data::Int(v.iter().map(|&x| x as i64).collect()),
            (_, Data::Int(v)) => Data::Int(v.clone()),
            (_, Data::Bool(v)) => Data::Int(v.iter().map(|&x| i64::from(x)).collect()),
        };
        Tensor::new(to, self.shape.clone(), data)
    }

    /// The elements at `index`, in that order, as a tensor of the given shape.
    pub fn pick(&self, shape: Vec<usize>, index: &[usize]) -> Tensor {
        let data = match &self.data {
            Data::Real(v) => Data::Real(index.iter().map(|&i| v[i]).collect()),
            Data::Int(v) => Data::Int(index.iter().map(|&i| v[i]).collect()),
            Data::Bool(v) => Data::Bool(index.iter().map(|&i| v[i]).collect()),
        };
        Tensor { elem: self.elem, shape, data }
    }

    /// As an IR literal. Reals become f32, integers i64.
    pub fn to_const(&self) -> ConstData {
        let shape = Shape::new(&self.shape);
        match &self.data {
            Data::Real(v) => {
                ConstData::from_f32(shape, &v.iter().map(|&x| x as f32).collect::<Vec<_>>())
            }
            Data::Int(v) => ConstData::from_i64(shape, v),
            Data::Bool(v) => ConstData::from_bool(shape, v),
        }
    }

    /// Decodes the literal of a message that carries its own data.
    ///
    /// # Errors
    /// In words: unknown element type, extents that overflow, or a data field whose length does not
    /// match them. Nothing is allocated before the length is checked.
    pub fn decode(t: &TensorProto) -> Result<Tensor, String> {
        let code = t.data_type.unwrap_or(0);
        let elem = Elem::from_onnx(code)
            .ok_or_else(|| format!("element type {} is not supported", Elem::code_name(code)))?;
        let (shape, n) = checked_elements(&t.dims)?;
        if let Some(raw) = &t.raw_data {
            return Tensor::from_le_bytes(elem, shape, raw);
        }
        let check = |have: usize| {
            if have == n {
                Ok(())
            } else {
                Err(format!("shape {shape:?} needs {n} elements, the file has {have}"))
            }
        };
        let data = match elem {
            Elem::F32 => {
                check(t.float_data.len())?;
                Data::Real(t.float_data.iter().map(|&x| f64::from(x)).collect())
            }
            Elem::F64 => {
                check(t.double_data.len())?;
                Data::Real(t.double_data.clone())
            }
            Elem::F16 | Elem::Bf16 => {
                check(t.int32_data.len())?;
                let widen = |bits: &i32| match elem {
                    Elem::F16 => f16::from_bits(*bits as u16).to_f64(),
                    _ => bf16::from_bits(*bits as u16).to_f64(),
                };
                Data::Real(t.int32_data.iter().map(widen).collect())
            }
            Elem::I64 => {
                check(t.int64_data.len())?;
                Data::Int(t.int64_data.clone())
            }
            Elem::U64 | Elem::U32 => {
                check(t.uint64_data.len())?;
                Data::Int(t.uint64_data.iter().map(|&x| x as i64).collect())
            }
            Elem::Bool => {
                check(t.int32_data.len())?;
                Data::Bool(t.int32_data.iter().map(|&x| x != 0).collect())
            }
            Elem::I32 | Elem::I16 | Elem::I8 | Elem::U16 | Elem::U8 => {
                check(t.int32_data.len())?;
                Data::Int(t.int32_data.iter().map(|&x| i64::from(x)).collect())
            }
        };
        Ok(Tensor::new(elem, shape, data))
    }

    /// Decodes little-endian bytes.
    ///
    /// # Errors
    /// Where the length is not that of the shape.
    pub fn from_le_bytes(elem: Elem, shape: Vec<usize>, raw: &[u8]) -> Result<Tensor, String> {
        let n: usize = shape.iter().product();
        if n.checked_mul(elem.size()) != Some(raw.len()) {
            return Err(format!(
                "shape {shape:?} needs {n} elements of {} bytes, the file has {} bytes",
                elem.size(),
                raw.len()
            ));
        }
        macro_rules! read {
            ($t:ty, $size:literal) => {
                raw.chunks_exact($size)
                    .map(|b| <$t>::from_le_bytes(b.try_into().expect("chunks have this size")))
            };
        }
        let data = match elem {
            Elem::F64 => Data::Real(read!(f64, 8).collect()),
            Elem::F32 => Data::Real(read!(f32, 4).map(f64::from).collect()),
            Elem::F16 => Data::Real(read!(f16, 2).map(f16::to_f64).collect()),
            Elem::Bf16 => Data::Real(read!(bf16, 2).map(bf16::to_f64).collect()),
            Elem::I64 => Data::Int(read!(i64, 8).collect()),
            Elem::U64 => Data::Int(read!(u64, 8).map(|x| x as i64).collect()),
            Elem::I32 => Data::Int(read!(i32, 4).map(i64::from).collect()),
            Elem::U32 => Data::Int(read!(u32, 4).map(i64::from).collect()),
            Elem::I16 => Data::Int(read!(i16, 2).map(i64::from).collect()),
            Elem::U16 => Data::Int(read!(u16, 2).map(i64::from).collect()),
            Elem::I8 => Data::Int(raw.iter().map(|&b| i64::from(b as i8)).collect()),
            Elem::U8 => Data::Int(raw.iter().map(|&b| i64::from(b)).collect()),
            Elem::Bool => Data::Bool(raw.iter().map(|&b| b != 0).collect()),
        };
        Ok(Tensor { elem, shape, data })
    }
}

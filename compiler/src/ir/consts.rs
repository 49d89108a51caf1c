//! Literal tensors.

use super::types::{Shape, TensorType};
use precast_plan::DType;
use std::sync::Arc;

/// A literal: little-endian elements, row-major. Equality is by content.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConstData {
    pub dtype: DType,
    pub shape: Shape,
    pub bytes: Arc<[u8]>,
}

impl ConstData {
    pub fn from_f32(shape: impl Into<Shape>, values: &[f32]) -> ConstData {
        let shape = shape.into();
        assert_eq!(shape.elements(), values.len());
        ConstData {
            dtype: DType::F32,
            shape,
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    pub fn from_i64(shape: impl Into<Shape>, values: &[i64]) -> ConstData {
        let shape = shape.into();
        assert_eq!(shape.elements(), values.len());
        ConstData {
            dtype: DType::I64,
            shape,
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    pub fn from_i32(shape: impl Into<Shape>, values: &[i32]) -> ConstData {
        let shape = shape.into();
        assert_eq!(shape.elements(), values.len());
        ConstData {
            dtype: DType::I32,
            shape,
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    pub fn from_bool(shape: impl Into<Shape>, values: &[bool]) -> ConstData {
        let shape = shape.into();
        assert_eq!(shape.elements(), values.len());
        ConstData { dtype: DType::Bool, shape, bytes: values.iter().map(|&x| x as u8).collect() }
    }

    pub fn scalar(x: f32) -> ConstData {
        ConstData::from_f32([], &[x])
    }

    pub fn ty(&self) -> TensorType {
        TensorType { dtype: self.dtype, shape: self.shape.clone() }
    }

    /// The elements as f32, where the format is f32.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::F32).then(|| {
            self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        })
    }

    /// The elements as integers, where the format is an integer or bool.
    pub fn ints(&self) -> Option<Vec<i64>> {
        Some(match self.dtype {
            DType::I64 => self
                .bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            DType::I32 => self
                .bytes
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            DType::U8 | DType::Bool => self.bytes.iter().map(|&b| i64::from(b)).collect(),
            _ => return None,
        })
    }

    /// The one value of a real constant all of whose elements are equal.
    pub fn splat(&self) -> Option<f32> {
        let v = self.f32s()?;
        let first = *v.first()?;
        v.iter().all(|x| x.to_bits() == first.to_bits()).then_some(first)
    }

    /// Lower-case base 16 of the bytes.
    pub fn hex(&self) -> String {
        use std::fmt::Write;
        self.bytes.iter().fold(String::with_capacity(2 * self.bytes.len()), |mut s, b| {
            write!(s, "{b:02x}").expect("writing to a String");
            s
        })
    }
}

impl std::fmt::Debug for ConstData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}<{}>", self.ty(), self.hex())
    }
}

//! Tensors of the interpreter.

use crate::ir::{ConstData, Shape, TensorType};
use precast_plan::{DType, Kind};

/// Elements, row-major. Reals are f64 whatever the format of the tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Real(Vec<f64>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

impl Data {
    pub fn kind(&self) -> Kind {
        match self {
            Data::Real(_) => Kind::Real,
            Data::Int(_) => Kind::Int,
            Data::Bool(_) => Kind::Bool,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Data::Real(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn zeros(kind: Kind, n: usize) -> Data {
        match kind {
            Kind::Real => Data::Real(vec![0.0; n]),
            Kind::Int => Data::Int(vec![0; n]),
            Kind::Bool => Data::Bool(vec![false; n]),
        }
    }
}

/// A tensor of the interpreter.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub ty: TensorType,
    pub data: Data,
}

impl Tensor {
    /// # Panics
    /// Where the number or the kind of the elements is not that of the type.
    pub fn new(ty: TensorType, data: Data) -> Tensor {
        assert_eq!(ty.shape.elements(), data.len(), "elements of {ty}");
        assert_eq!(ty.kind(), data.kind(), "kind of {ty}");
        Tensor { ty, data }
    }

    /// An f32 tensor (in name: its elements are not rounded).
    pub fn real(shape: impl Into<Shape>, values: impl Into<Vec<f64>>) -> Tensor {
        Tensor::new(TensorType::f32(shape), Data::Real(values.into()))
    }

    pub fn int(dtype: DType, shape: impl Into<Shape>, values: impl Into<Vec<i64>>) -> Tensor {
        Tensor::new(TensorType::new(dtype, shape), Data::Int(values.into()))
    }

    pub fn bool(shape: impl Into<Shape>, values: impl Into<Vec<bool>>) -> Tensor {
        Tensor::new(TensorType::new(DType::Bool, shape), Data::Bool(values.into()))
    }

    pub fn scalar(x: f64) -> Tensor {
        Tensor::real([], [x])
    }

    pub fn zeros(ty: &TensorType) -> Tensor {
        Tensor::new(ty.clone(), Data::zeros(ty.kind(), ty.shape.elements()))
    }

    pub fn shape(&self) -> &Shape {
        &self.ty.shape
    }

    /// The elements of a real tensor.
    ///
    /// # Panics
    /// On other kinds.
    pub fn reals(&self) -> &[f64] {
        match &self.data {
            Data::Real(v) => v,
            _ => panic!("{} is not real", self.ty),
        }
    }

    /// The elements of a real tensor, to change.
    ///
    /// # Panics
    /// On other kinds.
    pub fn reals_mut(&mut self) -> &mut [f64] {
        match &mut self.data {
            Data::Real(v) => v,
            _ => panic!("{} is not real", self.ty),
        }
    }

    /// The elements of an integer tensor.
    ///
    /// # Panics
    /// On other kinds.
    pub fn ints(&self) -> &[i64] {
        match &self.data {
            Data::Int(v) => v,
            _ => panic!("{} is not an integer tensor", self.ty),
        }
    }

    /// The elements of a bool tensor.
    ///
    /// # Panics
    /// On other kinds.
    pub fn bools(&self) -> &[bool] {
        match &self.data {
            Data::Bool(v) => v,
            _ => panic!("{} is not a bool tensor", self.ty),
        }
    }

    /// Reals rounded to the tensor's format, once to f32 and once from there.
    pub fn rounded(mut self) -> Tensor {
        let dtype = self.ty.dtype;
        if let Data::Real(v) = &mut self.data {
            v.iter_mut().for_each(|x| *x = f64::from(dtype.round(*x as f32)));
        }
        self
    }

    /// The tensor whose row-major element `i` is element `index[i]` of this one.
    pub(super) fn pick(&self, ty: &TensorType, index: &[usize]) -> Tensor {
        let data = match &self.data {
            Data::Real(v) => Data::Real(index.iter().map(|&i| v[i]).collect()),
            Data::Int(v) => Data::Int(index.iter().map(|&i| v[i]).collect()),
            Data::Bool(v) => Data::Bool(index.iter().map(|&i| v[i]).collect()),
        };
        Tensor::new(TensorType::new(self.ty.dtype, ty.shape.clone()), data)
    }

    /// Writes element `k` of `from` to element `index[k]`.
    pub(super) fn place(&mut self, from: &Tensor, index: &[usize]) {
        match (&mut self.data, &from.data) {
            (Data::Real(to), Data::Real(v)) => index.iter().zip(v).for_each(|(&i, &x)| to[i] = x),
            (Data::Int(to), Data::Int(v)) => index.iter().zip(v).for_each(|(&i, &x)| to[i] = x),
            (Data::Bool(to), Data::Bool(v)) => index.iter().zip(v).for_each(|(&i, &x)| to[i] = x),
            _ => panic!("{} placed into {}", from.ty, self.ty),
        }
    }

    /// The value of a literal.
    pub fn from_const(c: &ConstData) -> Tensor {
        fn word<const N: usize>(b: &[u8]) -> [u8; N] {
            b.try_into().expect("a chunk has the size of an element")
        }
        let data = match c.dtype.kind() {
            Kind::Real => Data::Real(
                c.bytes
                    .chunks_exact(c.dtype.size())
                    .map(|b| {
                        let mut w = [0; 4];
                        w[..b.len()].copy_from_slice(b);
                        f64::from(c.dtype.decode(u32::from_le_bytes(w)))
                    })
                    .collect(),
            ),
            Kind::Int => Data::Int(match c.dtype {
                DType::I64 => {
                    c.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(word(b))).collect()
                }
                DType::I32 => {
                    c.bytes.chunks_exact(4).map(|b| i32::from_le_bytes(word(b)).into()).collect()
                }
                _ => c.bytes.iter().map(|&b| i64::from(b)).collect(),
            }),
            Kind::Bool => Data::Bool(c.bytes.iter().map(|&b| b != 0).collect()),
        };
        Tensor::new(c.ty(), data)
    }

    /// The tensor as a literal of its format. Reals are rounded.
    pub fn to_const(&self) -> ConstData {
        let dtype = self.ty.dtype;
        let bytes: Vec<u8> = match &self.data {
            Data::Real(v) => v
                .iter()
                .flat_map(|&x| dtype.encode(x as f32).to_le_bytes().into_iter().take(dtype.size()))
                .collect(),
            Data::Int(v) => {
                v.iter().flat_map(|x| x.to_le_bytes().into_iter().take(dtype.size())).collect()
            }
            Data::Bool(v) => v.iter().map(|&b| u8::from(b)).collect(),
        };
        ConstData { dtype, shape: self.ty.shape.clone(), bytes: bytes.into() }
    }
}

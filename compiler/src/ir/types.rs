//! Tensor types.

use precast_plan::{DType, Kind};
use smallvec::SmallVec;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Extents, outermost first. A scalar has rank 0.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Shape(SmallVec<[usize; 6]>);

impl Shape {
    pub fn new(dims: &[usize]) -> Shape {
        Shape(SmallVec::from_slice(dims))
    }

    /// Product of the extents; 1 for a scalar. Saturates where the shape is not
    /// [addressable](Shape::is_addressable).
    pub fn elements(&self) -> usize {
        self.0.iter().fold(1, |n: usize, &d| n.saturating_mul(d))
    }

    /// Whether a plan may hold a tensor of this shape. Shapes come from files, so operations refuse
    /// others before they calculate with extents; offsets and strides then fit 63 bits.
    pub fn is_addressable(&self) -> bool {
        let n = self.0.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        n.is_some_and(|elements| elements as u64 <= precast_plan::MAX_ELEMENTS)
    }

    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Strides of a dense row-major tensor, in elements.
    pub fn strides(&self) -> Vec<i64> {
        let mut strides = vec![1i64; self.rank()];
        for i in (0..self.rank().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * self.0[i + 1] as i64;
        }
        strides
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.0
    }
}

impl From<Vec<usize>> for Shape {
    fn from(v: Vec<usize>) -> Shape {
        Shape(SmallVec::from_vec(v))
    }
}

impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(it: I) -> Shape {
        Shape(it.into_iter().collect())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(v: [usize; N]) -> Shape {
        Shape::new(&v)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        write!(f, "]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Element format and extents.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Shape,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    pub fn f32(shape: impl Into<Shape>) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    pub fn kind(&self) -> Kind {
        self.dtype.kind()
    }

    pub fn is_real(&self) -> bool {
        self.dtype.is_real()
    }

    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

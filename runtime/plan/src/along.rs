//! Kernels along one axis, and the last index of every row.

use crate::schema::Access;
use serde::{Deserialize, Serialize};

/// `out[t] = 1 +` the last r with `ids[r] = t`, 0 where there is none. Ids are those of
/// [`crate::Gather`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastIndex {
    /// Number of ids.
    pub rows: u64,
    /// Elements of the result, which is i32 and dense.
    pub table_rows: u64,
    /// Stride over r.
    pub ids: Access,
    /// Stride over t.
    pub out: Access,
}

/// Running sums along the middle axis of `dims`: `y[o,i,j] = Σ_{k ≤ i} x[o,k,j]`; over `k < i` where
/// `exclusive`, over `k ≥ i` (`k > i`) where `reverse`. Reals are summed in f64 and rounded to the
/// format of y; integers wrap at 32 bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CumSum {
    pub dims: [u64; 3],
    pub exclusive: bool,
    pub reverse: bool,
    /// Strides over `dims`, as those of `y`.
    pub x: Access,
    pub y: Access,
}

/// Places of the k largest (smallest) elements along the middle axis of `dims`, in order; of equal
/// ones the first first. NaN is larger than any number; zeros of both signs are equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    pub dims: [u64; 3],
    pub k: u64,
    pub largest: bool,
    /// Strides over `dims`.
    pub x: Access,
    /// i32; strides over outer, k, inner.
    pub index: Access,
}

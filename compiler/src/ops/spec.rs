//! Where an operation's tensors lie in its iteration space.

use crate::ir::TensorType;

/// Axis `i` of the tensor runs along axis `map[i]` of the iteration space. Space axes that no
/// tensor axis runs along see the same element.
pub type AxisMap = Vec<usize>;

/// The iteration space of a row program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSpec {
    /// Extents, kept axes first.
    pub dims: Vec<usize>,
    /// How many trailing axes are reduced.
    pub reduced: usize,
    /// One per operand.
    pub inputs: Vec<AxisMap>,
    /// One per result.
    pub outputs: Vec<AxisMap>,
}

impl RowSpec {
    /// All operands and results have one shape; nothing is reduced.
    pub fn elementwise(operands: usize, y: &[&TensorType]) -> RowSpec {
        let map: AxisMap = (0..y[0].shape.rank()).collect();
        RowSpec {
            dims: y[0].shape.to_vec(),
            reduced: 0,
            inputs: vec![map.clone(); operands],
            outputs: vec![map; y.len()],
        }
    }

    /// The last axis of `shape` is reduced; every map starts as the identity and may be changed.
    pub fn last_axis(shape: &[usize], operands: usize, results: usize) -> RowSpec {
        let map: AxisMap = (0..shape.len()).collect();
        RowSpec {
            dims: shape.to_vec(),
            reduced: 1,
            inputs: vec![map.clone(); operands],
            outputs: vec![map; results],
        }
    }
}

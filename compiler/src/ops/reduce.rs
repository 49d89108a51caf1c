//! Sums and extrema over axes.

use super::{
    Bounds, Broadcast, ExtremumGrad, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef,
    ProgramBuilder, Reach, RowSpec, signature,
};
use crate::ir::TensorType;
use precast_plan::{Instr, ReduceOp, Reg};

op! {
    /// Over `axes` (ascending), which disappear. Accumulates in f32.
    Reduce = "reduce" { f: ReduceOp, axes: Vec<usize> }
}

impl crate::ir::AttrValue for ReduceOp {
    fn to_attr(&self) -> crate::ir::Attr {
        crate::ir::Attr::Word(self.name().into())
    }
    fn from_attr(attr: crate::ir::Attr) -> Option<Self> {
        let crate::ir::Attr::Word(w) = attr else { return None };
        ReduceOp::from_name(&w)
    }
}

/// One operand that is reduced over `axes` to one result.
pub(super) fn over_axes(shape: &[usize], axes: &[usize]) -> RowSpec {
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).collect();
    let order: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let mut map = vec![0; shape.len()];
    for (space, &axis) in order.iter().enumerate() {
        map[axis] = space;
    }
    RowSpec {
        dims: order.iter().map(|&d| shape[d]).collect(),
        reduced: axes.len(),
        inputs: vec![map],
        outputs: vec![(0..kept.len()).collect()],
    }
}

impl Reduce {
    /// How many elements become one.
    fn count(&self, k: &Known) -> f64 {
        self.axes.iter().map(|&a| k.shape(0)[a] as f64).product()
    }
}

impl OpDef for Reduce {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        let rank = x[0].shape.rank();
        if self.axes.is_empty()
            || self.axes.windows(2).any(|w| w[0] >= w[1])
            || self.axes.iter().any(|&a| a >= rank)
        {
            return Err(format!(
                "axes {:?} of {} are not distinct ascending axes",
                self.axes, x[0]
            ));
        }
        if self.f != ReduceOp::Sum && self.axes.iter().any(|&a| x[0].shape[a] == 0) {
            return Err(format!("the {} of no elements", self.f.name()));
        }
        let shape: Vec<usize> =
            (0..rank).filter(|d| !self.axes.contains(d)).map(|d| x[0].shape[d]).collect();
        Ok(vec![TensorType::f32(shape)])
    }
    fn class(&self) -> NumericClass {
        if self.f == ReduceOp::Sum { NumericClass::Sensitive } else { NumericClass::Movement }
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        if self.f == ReduceOp::Sum { Linear::All } else { Linear::No }
    }
    fn bounds(&self, k: &Known) -> Bounds {
        match self.f {
            ReduceOp::Sum => k.x(0).times(Bounds::at(self.count(k))),
            ReduceOp::Max | ReduceOp::Min => k.x(0),
        }
    }
    fn reach(&self, k: &Known) -> Reach {
        match self.f {
            ReduceOp::Sum => Reach::Times(k.reach(0) * self.count(k).max(1.0)),
            ReduceOp::Max | ReduceOp::Min => Reach::Times(k.reach(0)),
        }
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, dy) = (cx.x(0), cx.only_dy(0)?);
        if self.f != ReduceOp::Sum {
            // Equal extrema share the cotangent evenly, as PyTorch's amax does.
            let grad = ExtremumGrad { f: self.f, axes: self.axes.clone(), first: false };
            return Ok(vec![Some(cx.op(grad, &[x, dy]))]);
        }
        let shape = cx.shape(x);
        let mut kept = shape.clone();
        for &a in &self.axes {
            kept[a] = 1;
        }
        let dy = cx.reshape(dy, &kept);
        Ok(vec![Some(cx.op(Broadcast { shape: shape.to_vec() }, &[dy]))])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        over_axes(&x[0].shape, &self.axes)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.push(Instr::Reduce(self.f, x[0]))]
    }
}

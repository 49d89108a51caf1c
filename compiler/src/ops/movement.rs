//! Views: the same elements under another index.

use super::{Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, Pad, signature};
use crate::ir::view::View;
use crate::ir::{Shape, TensorType};

op! {
    /// Other extents, same row-major order.
    Reshape = "reshape" { shape: Vec<usize> }
}
op! {
    /// Result axis `i` is operand axis `perm[i]`.
    Transpose = "transpose" { perm: Vec<usize> }
}
op! {
    /// Axes of extent 1 repeated to `shape` (same rank).
    Broadcast = "broadcast" { shape: Vec<usize> }
}
op! {
    /// Elements `starts[d] + k · steps[d]`, `k < sizes[d]`, of each axis. Steps may be negative.
    Slice = "slice" { starts: Vec<usize>, sizes: Vec<usize>, steps: Vec<i64> }
}

macro_rules! view_op {
    ($ty:ident, linear = $linear:expr, |$self:ident, $x:ident| $infer:block, |$cx:ident, $dy:ident| $grad:block, |$v:ident, $y:ident| $view:expr) => {
        impl OpDef for $ty {
            fn infer(&$self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                signature(x, ".")?;
                let $x = x[0];
                let shape: Vec<usize> = $infer;
                Ok(vec![TensorType::new($x.dtype, shape)])
            }
            fn class(&self) -> NumericClass {
                NumericClass::Movement
            }
            fn lowering(&self) -> Lowering {
                Lowering::View
            }
            fn linear(&self) -> Linear {
                $linear
            }
            fn bounds(&self, k: &Known) -> Bounds {
                k.x(0)
            }
            fn gradient(&$self, $cx: &mut GradCx) -> Result<Grads, String> {
                let $dy = $cx.only_dy(0)?;
                Ok(vec![Some($grad)])
            }
            fn view(&$self, $v: &View, $y: &TensorType) -> Option<View> {
                $view
            }
        }
    };
}

view_op!(
    Reshape,
    linear = Linear::All,
    |self, x| {
        let shape = Shape::new(&self.shape);
        if !shape.is_addressable() || shape.elements() != x.shape.elements() {
            return Err(format!("{} does not have the elements of {:?}", x, self.shape));
        }
        self.shape.clone()
    },
    |cx, dy| { cx.reshape(dy, &cx.shape(cx.x(0))) },
    |v, y| v.reshape(&y.shape)
);

view_op!(
    Transpose,
    linear = Linear::All,
    |self, x| {
        let mut seen = vec![false; x.shape.rank()];
        for &p in &self.perm {
            match seen.get_mut(p) {
                Some(s) if !*s => *s = true,
                _ => return Err(format!("{:?} does not permute {}", self.perm, x)),
            }
        }
        if self.perm.len() != x.shape.rank() {
            return Err(format!("{:?} does not permute {}", self.perm, x));
        }
        self.perm.iter().map(|&p| x.shape[p]).collect()
    },
    |cx, dy| {
        let mut inverse = vec![0; self.perm.len()];
        for (i, &p) in self.perm.iter().enumerate() {
            inverse[p] = i;
        }
        cx.transpose(dy, &inverse)
    },
    |v, _y| Some(v.transpose(&self.perm))
);

view_op!(
    Broadcast,
    linear = Linear::All,
    |self, x| {
        if x.shape.rank() != self.shape.len()
            || x.shape.iter().zip(&self.shape).any(|(&a, &b)| a != b && a != 1)
        {
            return Err(format!("{} does not broadcast to {:?}", x, self.shape));
        }
        self.shape.clone()
    },
    |cx, dy| {
        let from = cx.shape(cx.x(0));
        let axes: Vec<usize> = (0..from.rank()).filter(|&d| from[d] != self.shape[d]).collect();
        if axes.is_empty() {
            dy
        } else {
            let s = cx.sum(dy, &axes);
            cx.reshape(s, &from)
        }
    },
    |v, y| Some(v.broadcast(&y.shape))
);

view_op!(
    Slice,
    linear = Linear::All,
    |self, x| {
        let rank = x.shape.rank();
        if [self.starts.len(), self.sizes.len(), self.steps.len()] != [rank; 3] {
            return Err(format!("starts, sizes and steps do not have the rank of {x}"));
        }
        for d in 0..rank {
            // An axis without elements still has a start, which offsets are calculated from.
            if self.sizes[d] == 0 && self.starts[d] <= x.shape[d] {
                continue;
            }
            let last = self.starts[d] as i128 + self.steps[d] as i128 * (self.sizes[d] as i128 - 1);
            if self.starts[d] >= x.shape[d] || last < 0 || last >= x.shape[d] as i128 {
                return Err(format!(
                    "axis {d} of {x}: elements {}..={last} do not exist",
                    self.starts[d]
                ));
            }
            if self.steps[d] == 0 && self.sizes[d] > 1 {
                return Err(format!("axis {d}: the step is 0"));
            }
        }
        self.sizes.clone()
    },
    |cx, dy| {
        let from = cx.shape(cx.x(0));
        cx.op(
            Pad { starts: self.starts.clone(), steps: self.steps.clone(), shape: from.to_vec() },
            &[dy],
        )
    },
    |v, y| Some(v.slice(&self.starts, &self.steps, &y.shape))
);

//! Batch normalisation with batch statistics (Ioffe & Szegedy, 2015), channels on axis 1.

use super::{
    GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, Reach, RowSpec,
    signature,
};
use crate::ir::{Real, Shape, TensorType};
use precast_plan::{Reg, UnaryOp};

op! {
    /// (x [n,c,…], weight [c], bias [c]) → (y, mean [c], var [c]); var is biased (divided by n·…).
    BatchNorm = "batch_norm" { eps: Real }
}
op! {
    /// (x, weight, mean, var, dy) → (dx, dweight, dbias).
    BatchNormGrad = "batch_norm_grad" { eps: Real }
}

fn channels(x: &TensorType) -> Result<Shape, String> {
    if x.shape.rank() < 2 || x.shape.elements() == 0 {
        return Err(format!("{x} has no channel axis, or no elements"));
    }
    Ok(Shape::from([x.shape[1]]))
}

/// Space [c, n, …]; everything but the channel is reduced.
fn spec(x: &TensorType, inputs: &[bool], outputs: &[bool]) -> RowSpec {
    let rank = x.shape.rank();
    let all: Vec<usize> = (0..rank)
        .map(|d| {
            if d == 0 {
                1
            } else if d == 1 {
                0
            } else {
                d
            }
        })
        .collect();
    let mut dims = x.shape.to_vec();
    dims.swap(0, 1);
    let maps =
        |full: &[bool]| full.iter().map(|&f| if f { all.clone() } else { vec![0] }).collect();
    RowSpec { dims, reduced: rank - 1, inputs: maps(inputs), outputs: maps(outputs) }
}

fn rstd(b: &mut ProgramBuilder, var: Reg, eps: f64) -> Reg {
    let eps = b.real(eps);
    let v = b.add(var, eps);
    b.un(UnaryOp::Rsqrt, v)
}

impl OpDef for BatchNorm {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rrr")?;
        let c = channels(x[0])?;
        if x[1].shape != c || x[2].shape != c {
            return Err(format!("weight {} and bias {} are not {c}", x[1], x[2]));
        }
        let stat = TensorType::f32(c);
        Ok(vec![TensorType::f32(x[0].shape.clone()), stat.clone(), stat])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, w, dy) = (cx.x(0), cx.x(1), cx.only_dy(0)?);
        let (mean, var) = (cx.y(1), cx.y(2));
        let d = cx.all(BatchNormGrad { eps: self.eps }, &[x, w, mean, var, dy]);
        Ok(d.into_iter().map(Some).collect())
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        spec(x[0], &[true, false, false], &[true, false, false])
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let n = b.ones_over_count();
        let sum = b.sum(x[0]);
        let mean = b.mul(sum, n);
        let c = b.sub(x[0], mean);
        let sq = b.mul(c, c);
        let sum = b.sum(sq);
        let var = b.mul(sum, n);
        let r = rstd(b, var, self.eps.0);
        let scale = b.mul(r, x[1]);
        let t = b.mul(c, scale);
        vec![b.add(t, x[2]), mean, var]
    }
}

impl OpDef for BatchNormGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rrrrr")?;
        let c = channels(x[0])?;
        if x[1..4].iter().any(|t| t.shape != c) || x[4].shape != x[0].shape {
            return Err(format!("{x:?} are not a batch norm's operands and cotangent"));
        }
        let p = TensorType::f32(c);
        Ok(vec![TensorType::f32(x[0].shape.clone()), p.clone(), p])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[4])
    }
    /// As of a layer normalisation.
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.farthest())
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        spec(x[0], &[true, false, false, false, true], &[true, false, false])
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        // dx = w rstd (dy − mean(dy) − x̂ mean(dy x̂))
        let n = b.ones_over_count();
        let r = rstd(b, x[3], self.eps.0);
        let c = b.sub(x[0], x[2]);
        let hat = b.mul(c, r);
        let dy = x[4];
        let t = b.mul(dy, hat);
        let dw = b.sum(t);
        let db = b.sum(dy);
        let mean_dw = b.mul(dw, n);
        let mean_db = b.mul(db, n);
        let t = b.mul(hat, mean_dw);
        let d = b.sub(dy, mean_db);
        let d = b.sub(d, t);
        let scale = b.mul(x[1], r);
        vec![b.mul(d, scale), dw, db]
    }
}

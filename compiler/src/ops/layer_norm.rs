//! Layer normalisation (Ba et al., 2016) and RMS normalisation (Zhang & Sennrich, 2019) over the
//! trailing axes.

use super::{
    GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, Reach, RowSpec,
    signature,
};
use crate::ir::{Real, Shape, TensorType};
use precast_plan::{Reg, UnaryOp};

op! {
    /// Over the last `axes` axes, of extents D…; biased variance.
    /// `center`: (x, weight [D…], bias [D…]) → (y, mean […], rstd […]), `y = (x−mean)·rstd·w + b`.
    /// Otherwise RMS: (x, weight) → (y, rstd), `y = x·rstd·w`.
    LayerNorm = "layer_norm" { eps: Real, axes: usize, center: bool }
}
op! {
    /// (x, weight, mean, rstd, dy) → dx; without `center`: (x, weight, rstd, dy).
    LayerNormGrad = "layer_norm_grad" { axes: usize, center: bool }
}
op! {
    /// (x, mean, rstd, dy) → (dweight, dbias); without `center`: (x, rstd, dy) → dweight.
    LayerNormParamGrad = "layer_norm_param_grad" { axes: usize, center: bool }
}

/// Splits a shape into kept and normalised extents.
fn split(x: &TensorType, axes: usize) -> Result<(Shape, Shape), String> {
    let rank = x.shape.rank();
    if axes == 0 || axes > rank || x.shape[rank - axes..].contains(&0) {
        return Err(format!("{x} does not have {axes} axes to normalise"));
    }
    Ok((Shape::new(&x.shape[..rank - axes]), Shape::new(&x.shape[rank - axes..])))
}

fn want(what: &str, t: &TensorType, shape: &Shape) -> Result<(), String> {
    if t.shape == *shape { Ok(()) } else { Err(format!("{what} is {t}, not {shape}")) }
}

impl OpDef for LayerNorm {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, if self.center { "rrr" } else { "rr" })?;
        let (rows, cols) = split(x[0], self.axes)?;
        for t in &x[1..] {
            want("a weight", t, &cols)?;
        }
        let stat = TensorType::f32(rows);
        let y = TensorType::f32(x[0].shape.clone());
        Ok(if self.center { vec![y, stat.clone(), stat] } else { vec![y, stat] })
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, w, dy) = (cx.x(0), cx.x(1), cx.only_dy(0)?);
        let &LayerNorm { axes, center, .. } = self;
        if center {
            let (mean, rstd) = (cx.y(1), cx.y(2));
            let dx = cx.op(LayerNormGrad { axes, center }, &[x, w, mean, rstd, dy]);
            let dp = cx.all(LayerNormParamGrad { axes, center }, &[x, mean, rstd, dy]);
            Ok(vec![Some(dx), Some(dp[0]), Some(dp[1])])
        } else {
            let rstd = cx.y(1);
            let dx = cx.op(LayerNormGrad { axes, center }, &[x, w, rstd, dy]);
            let dw = cx.op(LayerNormParamGrad { axes, center }, &[x, rstd, dy]);
            Ok(vec![Some(dx), Some(dw)])
        }
    }
    fn row_spec(&self, x: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        let rank = x[0].shape.rank();
        let (all, rows, cols): (Vec<_>, Vec<_>, Vec<_>) = (
            (0..rank).collect(),
            (0..rank - self.axes).collect(),
            (rank - self.axes..rank).collect(),
        );
        let mut inputs = vec![all.clone(), cols.clone()];
        let mut outputs = vec![all];
        if self.center {
            inputs.push(cols);
        }
        outputs.resize(y.len(), rows);
        RowSpec { dims: x[0].shape.to_vec(), reduced: self.axes, inputs, outputs }
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        // Two passes over the row: the variance of centred values does not cancel.
        let n = b.ones_over_count();
        if self.center {
            let sum = b.sum(x[0]);
            let mean = b.mul(sum, n);
            let c = b.sub(x[0], mean);
            let rstd = self.rstd(b, c, n);
            let t = b.mul(c, rstd);
            let t = b.mul(t, x[1]);
            vec![b.add(t, x[2]), mean, rstd]
        } else {
            let rstd = self.rstd(b, x[0], n);
            let t = b.mul(x[0], rstd);
            vec![b.mul(t, x[1]), rstd]
        }
    }
}

impl LayerNorm {
    fn rstd(&self, b: &mut ProgramBuilder, c: Reg, n: Reg) -> Reg {
        let sq = b.mul(c, c);
        let sum = b.sum(sq);
        let var = b.mul(sum, n);
        let eps = b.real(self.eps.0);
        let v = b.add(var, eps);
        b.un(UnaryOp::Rsqrt, v)
    }
}

impl OpDef for LayerNormGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, if self.center { "rrrrr" } else { "rrrr" })?;
        let (rows, cols) = split(x[0], self.axes)?;
        want("the weight", x[1], &cols)?;
        for t in &x[2..x.len() - 1] {
            want("a statistic", t, &rows)?;
        }
        want("the cotangent", x[x.len() - 1], &x[0].shape)?;
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        if self.center { Linear::Each(&[4]) } else { Linear::Each(&[3]) }
    }
    /// What reaches far has small cotangents, which are as wide apart.
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.farthest())
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        let rank = x[0].shape.rank();
        let (all, rows, cols): (Vec<_>, Vec<_>, Vec<_>) = (
            (0..rank).collect(),
            (0..rank - self.axes).collect(),
            (rank - self.axes..rank).collect(),
        );
        let mut inputs = vec![all.clone(), cols, rows.clone()];
        if self.center {
            inputs.push(rows);
        }
        inputs.push(all.clone());
        RowSpec { dims: x[0].shape.to_vec(), reduced: self.axes, inputs, outputs: vec![all] }
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        // dx = rstd (g − mean(g) − x̂ mean(g x̂)), g = dy·w; RMS lacks the mean(g) term.
        let n = b.ones_over_count();
        let (rstd, dy) = (x[x.len() - 2], x[x.len() - 1]);
        let c = if self.center { b.sub(x[0], x[2]) } else { x[0] };
        let hat = b.mul(c, rstd);
        let g = b.mul(dy, x[1]);
        let gh = b.mul(g, hat);
        let dot = b.sum(gh);
        let dot = b.mul(dot, n);
        let t = b.mul(hat, dot);
        let mut d = b.sub(g, t);
        if self.center {
            let sum = b.sum(g);
            let mean = b.mul(sum, n);
            d = b.sub(d, mean);
        }
        vec![b.mul(d, rstd)]
    }
}

impl OpDef for LayerNormParamGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, if self.center { "rrrr" } else { "rrr" })?;
        let (rows, cols) = split(x[0], self.axes)?;
        for t in &x[1..x.len() - 1] {
            want("a statistic", t, &rows)?;
        }
        want("the cotangent", x[x.len() - 1], &x[0].shape)?;
        Ok(vec![TensorType::f32(cols); if self.center { 2 } else { 1 }])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        if self.center { Linear::Each(&[3]) } else { Linear::Each(&[2]) }
    }
    fn row_spec(&self, x: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        // Columns are kept, rows are reduced.
        let (rank, n) = (x[0].shape.rank(), self.axes);
        let rows = rank - n;
        let all: Vec<usize> = (0..rank).map(|d| if d < rows { d + n } else { d - rows }).collect();
        let stat: Vec<usize> = (n..rank).collect();
        let mut dims = x[0].shape[rows..].to_vec();
        dims.extend_from_slice(&x[0].shape[..rows]);
        let mut inputs = vec![all.clone(), stat.clone()];
        if self.center {
            inputs.push(stat);
        }
        inputs.push(all);
        RowSpec { dims, reduced: rows, inputs, outputs: vec![(0..n).collect(); y.len()] }
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let (rstd, dy) = (x[x.len() - 2], x[x.len() - 1]);
        let c = if self.center { b.sub(x[0], x[1]) } else { x[0] };
        let hat = b.mul(c, rstd);
        let t = b.mul(dy, hat);
        let dw = b.sum(t);
        if self.center { vec![dw, b.sum(dy)] } else { vec![dw] }
    }
}

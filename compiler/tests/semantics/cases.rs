//! Instances of every operation. `every_operation_has_a_case` fails for an operation without one.

use crate::rng::Rng;
use precast_compiler::ir::{ConstData, Real, Shape, TensorType};
use precast_compiler::ops::activation::Act;
use precast_compiler::ops::matmul::Fused;
use precast_compiler::ops::*;
use precast_compiler::reference::Tensor;
use precast_plan::{BinaryOp, DType, Kind, Math, RecurrentCell, ReduceOp, Squash, UnaryOp, Way};

/// What a case says of its gradient.
#[derive(Clone, Debug, PartialEq)]
pub enum Gradient {
    /// Compared with finite differences, for every real operand.
    Checked,
    /// As above, but these operands are constants by definition although the result depends on
    /// them.
    Except(Vec<usize>),
    /// The definition refuses: it is itself a gradient, an update, or made after differentiation.
    Refused,
}

/// An operation and operands for it.
#[derive(Clone, Debug)]
pub struct Case {
    pub op: Op,
    pub x: Vec<Tensor>,
    pub gradient: Gradient,
}

impl Case {
    pub fn types(&self) -> Vec<&TensorType> {
        self.x.iter().map(|t| &t.ty).collect()
    }
}

struct Cases {
    rng: Rng,
    all: Vec<Case>,
}

impl Cases {
    fn real(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.rng.reals(shape, -2.0, 2.0)
    }
    fn positive(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.rng.reals(shape, 0.5, 2.0)
    }
    fn scalar(&mut self) -> Tensor {
        self.positive([])
    }
    fn add(&mut self, op: impl Into<Op>, x: &[Tensor]) {
        self.push(op, x, Gradient::Checked);
    }
    fn refused(&mut self, op: impl Into<Op>, x: &[Tensor]) {
        self.push(op, x, Gradient::Refused);
    }
    fn push(&mut self, op: impl Into<Op>, x: &[Tensor], gradient: Gradient) {
        self.all.push(Case { op: op.into(), x: x.to_vec(), gradient });
    }
}

pub fn ints(dtype: DType, shape: impl Into<Shape>, v: &[i64]) -> Tensor {
    Tensor::int(dtype, shape, v)
}

pub fn bools(shape: impl Into<Shape>, v: &[bool]) -> Tensor {
    Tensor::bool(shape, v)
}

/// Every case, the same at every call.
pub fn cases() -> Vec<Case> {
    let mut c = Cases { rng: Rng(7), all: Vec::new() };
    leaves(&mut c);
    pointwise(&mut c);
    movement(&mut c);
    products(&mut c);
    convolutions(&mut c);
    normalisations(&mut c);
    losses(&mut c);
    attention(&mut c);
    recurrences(&mut c);
    state(&mut c);
    c.all
}

fn leaves(c: &mut Cases) {
    let x = c.real([2, 3]);
    c.push(StopGradient {}, &[x], Gradient::Except(vec![0]));
    let ty = TensorType::new(DType::F16, [2, 3]);
    c.add(Input::new("leaf", &ty), &[]);
    c.add(Var::new("leaf", &ty), &[]);
    c.add(Const { data: ConstData::from_f32([2], &[0.5, -0.0]) }, &[]);
    c.add(Const { data: ConstData::from_i64([], &[-7]) }, &[]);
    c.add(Iota { shape: vec![2, 3, 2], axis: 1 }, &[]);
}

fn pointwise(c: &mut Cases) {
    use UnaryOp::*;
    let shape = [2, 3];
    let int = ints(DType::I32, shape, &[-7, 0, 3, 1, -1, 9]);
    let flags = bools(shape, &[true, false, true, true, false, false]);
    for &f in UnaryOp::ALL {
        let x = match f {
            Log | Sqrt | Rsqrt | Recip | Log1p => vec![c.positive(shape)],
            Tan | Asin | Acos | Atanh => vec![c.rng.reals(shape, -0.9, 0.9)],
            Acosh => vec![c.rng.reals(shape, 1.2, 3.0)],
            Not => vec![flags.clone()],
            ToReal => vec![int.clone(), flags.clone()],
            ToInt => vec![c.real(shape), flags.clone()],
            ToBool => vec![c.real(shape), int.clone()],
            Neg | Abs => vec![c.real(shape), int.clone()],
            _ => vec![c.real(shape)],
        };
        for x in x {
            c.add(Unary { f }, &[x]);
        }
    }
    let other = ints(DType::I64, shape, &[2, 0, 0, 5, -3, 9]);
    let others = bools(shape, &[true, true, false, true, false, true]);
    for &f in BinaryOp::ALL {
        if !matches!(f, BinaryOp::And | BinaryOp::Or) {
            let (a, b) = (c.positive(shape), c.positive(shape));
            c.add(Binary { f }, &[a, b]);
            if f != BinaryOp::Pow {
                c.add(Binary { f }, &[int.clone(), other.clone()]);
                let (a, b) = (c.real(shape), c.positive(shape));
                c.add(Binary { f }, &[a, b]);
            }
        }
        if matches!(f, BinaryOp::And | BinaryOp::Or) {
            c.add(Binary { f }, &[int.clone(), other.clone()]);
        }
        if matches!(f, BinaryOp::And | BinaryOp::Or | BinaryOp::Eq) {
            c.add(Binary { f }, &[flags.clone(), others.clone()]);
        }
    }
    let (a, b) = (c.real(shape), c.real(shape));
    c.add(Select {}, &[flags.clone(), a.clone(), b.clone()]);
    c.add(Select {}, &[flags.clone(), int, other]);
    c.add(Select {}, &[flags.clone(), others, flags]);
    c.add(Cast {}, std::slice::from_ref(&a));
    c.add(Scale { by: Real(-1.5) }, std::slice::from_ref(&a));
    let s = c.scalar();
    c.add(ScaleBy {}, &[s.clone(), a.clone()]);
    c.add(ScaleBy {}, &[s.clone(), s]);
    for act in Act::ALL {
        c.add(Activate { act }, std::slice::from_ref(&a));
        c.refused(ActivateGrad { act }, &[a.clone(), b.clone()]);
    }
    let x = c.positive([8, 8]);
    let key = [5, -3].map(|k| ints(DType::I32, [], &[k]));
    c.add(Dropout { p: Real(0.3), stream: 2 }, &[x, key[0].clone(), key[1].clone()]);
}

fn movement(c: &mut Cases) {
    let x = c.real([2, 3, 4]);
    c.add(Reshape { shape: vec![4, 1, 6] }, std::slice::from_ref(&x));
    c.add(Transpose { perm: vec![2, 0, 1] }, std::slice::from_ref(&x));
    let slice = Slice { starts: vec![0, 2, 1], sizes: vec![2, 2, 2], steps: vec![1, -2, 2] };
    c.add(slice, std::slice::from_ref(&x));
    let n = c.real([2, 1, 4, 1]);
    c.add(Broadcast { shape: vec![2, 3, 4, 2] }, &[n]);
    let n = c.real([]);
    c.add(Reshape { shape: vec![1, 1] }, std::slice::from_ref(&n));
    c.add(Broadcast { shape: vec![] }, &[n]);
    let flags = bools([2], &[true, false]);
    c.add(Broadcast { shape: vec![2] }, &[flags]);
    let (a, b, d) = (c.real([2, 1, 4]), c.real([2, 3, 4]), c.real([2, 2, 4]));
    c.add(Concat { axis: 1 }, &[a, b, d]);
    c.add(Concat { axis: 0 }, &[ints(DType::I64, [2], &[1, 2]), ints(DType::I64, [1], &[3])]);
    let x = c.real([2, 2]);
    c.add(Pad { starts: vec![3, 1], steps: vec![-2, 1], shape: vec![5, 4] }, &[x]);
    let x = c.real([2, 3, 4]);
    for &f in ReduceOp::ALL {
        for axes in [vec![0], vec![1], vec![2], vec![0, 2], vec![0, 1, 2]] {
            c.add(Reduce { f, axes }, std::slice::from_ref(&x));
        }
    }
    c.add(Reduce { f: ReduceOp::Sum, axes: vec![1] }, &[Tensor::real([2, 0], vec![])]);
    let whole = ints(DType::I32, [2, 3], &[-7, 0, i64::from(i32::MAX), 1, -70_000, 9]);
    for &f in ReduceOp::ALL {
        for axes in [vec![0], vec![1], vec![0, 1]] {
            c.add(ReduceInt { f, axes }, std::slice::from_ref(&whole));
        }
    }
    for f in [ReduceOp::Max, ReduceOp::Min] {
        for axis in 0..3 {
            let op = Extremum { f, axis };
            let row = c.real(op.infer(&[&x.ty]).unwrap()[0].shape.clone());
            c.add(op, std::slice::from_ref(&x));
            let grad = ExtremumGrad { f, axes: vec![axis], first: true };
            c.refused(grad, &[x.clone(), row]);
        }
    }
    let row = c.real([3]);
    let grad = ExtremumGrad { f: ReduceOp::Max, axes: vec![0, 2], first: false };
    c.refused(grad, &[x.clone(), row]);
    for axes in [vec![0], vec![1], vec![2], vec![0, 2], vec![0, 1, 2]] {
        let op = LogSumExp { axes: axes.clone() };
        let row = c.real(op.infer(&[&x.ty]).unwrap()[0].shape.clone());
        c.add(op, std::slice::from_ref(&x));
        c.refused(LogSumExpGrad { axes }, &[x.clone(), row]);
    }
    let table = c.real([4, 3]);
    let ids = ints(DType::I64, [2, 2], &[1, -1, 0, 1]);
    c.add(Gather {}, &[table, ids.clone()]);
    c.add(Gather {}, &[ints(DType::I64, [3], &[5, 6, 7]), ids.clone()]);
    let dy = c.real([2, 2, 3]);
    c.add(ScatterAdd { rows: 4 }, &[ids.clone(), dy]);
    c.add(LastIndex { rows: 4 }, &[ids]);
    let whole = ints(DType::I64, [2, 3], &[5, -6, 7, 1, 2, -9]);
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        for axis in 0..3 {
            let x = c.real([2, 3, 4]);
            c.add(CumSum { axis, exclusive, reverse }, &[x]);
        }
        c.add(CumSum { axis: 1, exclusive, reverse }, std::slice::from_ref(&whole));
    }
    for largest in [true, false] {
        for (axis, k) in [(0, 1), (1, 3), (2, 2)] {
            let x = c.real([2, 3, 4]);
            c.add(TopK { axis, k, largest }, &[x]);
        }
        c.add(TopK { axis: 1, k: 2, largest }, std::slice::from_ref(&whole));
    }
}

fn products(c: &mut Cases) {
    for fused in Fused::ALL {
        let (a, b, bias) = (c.real([2, 3, 4]), c.real([2, 4, 5]), c.real([5]));
        if fused == Fused::None {
            c.add(MatMul::with(fused), &[a, b]);
            let (a, b) = (c.real([2, 0]), c.real([0, 3]));
            c.add(MatMul::with(fused), &[a, b]);
        } else {
            c.refused(MatMul::with(fused), &[a, b, bias]);
        }
    }
}

fn convolutions(c: &mut Cases) {
    for (stride, pad, dilation, groups) in [
        ([1, 1], [0, 0, 0, 0], [1, 1], 1),
        ([1, 1], [1, 1, 1, 1], [1, 1], 2),
        ([2, 1], [1, 0, 2, 1], [1, 2], 1),
        ([2, 3], [0, 2, 0, 1], [2, 1], 2),
    ] {
        let conv = Conv2d { stride, pad, dilation, groups, math: Math::Exact };
        let (x, w) = (c.real([2, 4, 5, 6]), c.real([2, 4 / groups, 3, 2]));
        let y = conv.infer(&[&x.ty, &w.ty]).unwrap();
        let dy = c.real(y[0].shape.clone());
        c.add(conv.data_grad([5, 6]), &[dy.clone(), w.clone()]);
        c.add(conv.filter_grad([3, 2]), &[x.clone(), dy]);
        c.add(conv, &[x, w]);
    }
    for (kernel, stride, pad) in [([2, 2], [2, 2], [0, 0, 0, 0]), ([3, 2], [1, 2], [1, 0, 1, 1])] {
        let pool = MaxPool2d { kernel, stride, pad };
        let x = c.real([2, 2, 5, 4]);
        let y = pool.infer(&[&x.ty]).unwrap();
        let dy = c.real(y[0].shape.clone());
        // The first element of the middle of every window, which is never padding here.
        let place = ((kernel[0] / 2) * kernel[1]) as i64;
        let index = ints(DType::U8, y[1].shape.clone(), &vec![place; y[1].shape.elements()]);
        c.refused(MaxPool2dGrad { kernel, stride, pad, size: [5, 4] }, &[dy, index]);
        c.add(pool, &[x]);
    }
}

fn normalisations(c: &mut Cases) {
    for log in [false, true] {
        for shape in [vec![5], vec![2, 3, 4]] {
            let (x, dy) = (c.real(shape.clone()), c.real(shape));
            c.add(Softmax { log }, std::slice::from_ref(&x));
            c.refused(SoftmaxGrad { log }, &[x, dy]);
        }
    }
    for (shape, axes) in [([2, 3, 4], 1), ([2, 3, 4], 2), ([2, 3, 4], 3)] {
        let (rows, cols) = (shape[..3 - axes].to_vec(), shape[3 - axes..].to_vec());
        for center in [true, false] {
            let (x, dy) = (c.real(shape), c.real(shape));
            let (w, bias) = (c.real(cols.clone()), c.real(cols.clone()));
            let (mean, rstd) = (c.real(rows.clone()), c.positive(rows.clone()));
            let op = LayerNorm { eps: Real(1e-5), axes, center };
            let (dx, dp) = (LayerNormGrad { axes, center }, LayerNormParamGrad { axes, center });
            if center {
                c.add(op, &[x.clone(), w.clone(), bias]);
                c.refused(dx, &[x.clone(), w, mean.clone(), rstd.clone(), dy.clone()]);
                c.refused(dp, &[x, mean, rstd, dy]);
            } else {
                c.add(op, &[x.clone(), w.clone()]);
                c.refused(dx, &[x.clone(), w, rstd.clone(), dy.clone()]);
                c.refused(dp, &[x, rstd, dy]);
            }
        }
    }
    for shape in [vec![4, 3], vec![2, 3, 2, 2]] {
        let (x, dy) = (c.real(shape.clone()), c.real(shape));
        let (w, b, mean, var) = (c.real([3]), c.real([3]), c.real([3]), c.positive([3]));
        c.add(BatchNorm { eps: Real(1e-3) }, &[x.clone(), w.clone(), b]);
        c.refused(BatchNormGrad { eps: Real(1e-3) }, &[x, w, mean, var, dy]);
    }
}

fn losses(c: &mut Cases) {
    for (ignore_index, smooth) in [(-100, 0.0), (1, 0.0), (-1, 0.1)] {
        let label_smoothing = Real(smooth);
        for rows in [vec![3], vec![1, 3]] {
            let targets =
                ints(DType::I64, rows.clone(), &[3, 1, if smooth > 0.0 { -1 } else { 0 }]);
            let x = c.real(rows.iter().copied().chain([4]).collect::<Shape>());
            let (max, log, dloss) = (c.real(rows.clone()), c.positive(rows.clone()), c.real(rows));
            c.add(CrossEntropy { ignore_index, label_smoothing }, &[x.clone(), targets.clone()]);
            c.refused(
                CrossEntropyGrad { ignore_index, label_smoothing },
                &[x, targets, max, log, dloss],
            );
        }
    }
}

fn attention(c: &mut Cases) {
    for (causal, mask, tq) in [
        (false, None, 3),
        (true, None, 5),
        (true, None, 3),
        (false, Some(Kind::Real), 3),
        (true, Some(Kind::Real), 5),
        (false, Some(Kind::Bool), 3),
        (true, Some(Kind::Bool), 5),
    ] {
        let (scale, kv) = (Real(0.5), [2, 2, 5, 4]);
        let q = c.real([2, 2, tq, 4]);
        let (k, v) = (c.real(kv), c.real(kv));
        let mut x = vec![q, k, v];
        let (masked, fill, safe) = (mask.is_some(), Real(-2.0), causal);
        match mask {
            None => {}
            Some(Kind::Bool) => {
                // The first row of every head hides all its keys.
                let keep: Vec<bool> =
                    (0..4 * tq * 5).map(|i| i % (tq * 5) >= 5 && i % 3 != 0).collect();
                x.push(bools([2, 2, tq, 5], &keep));
            }
            Some(_) => x.push(c.real([2, 2, tq, 5])),
        }
        let gradient = match mask {
            Some(Kind::Real) => Gradient::Except(vec![3]),
            _ => Gradient::Checked,
        };
        c.push(Attention { scale, causal, masked, fill, safe }, &x, gradient);
        let (o, d) = (c.real([2, 2, tq, 4]), c.real([2, 2, tq, 4]));
        let (lse, low) = (c.positive([2, 2, tq]), c.real([2, 2, tq]));
        x.extend([o, lse, low, d]);
        c.refused(AttentionGrad { scale, causal, masked, fill, safe }, &x);
    }
}

fn recurrences(c: &mut Cases) {
    let (t, b, h) = (4, 3, 2);
    let (sigmoid, tanh, relu) = (Squash::Sigmoid, Squash::Tanh, Squash::Relu);
    for (cell, way, [f, g, s], peephole, lengths) in [
        (RecurrentCell::Rnn, Way::Forward, [tanh, tanh, tanh], false, false),
        (RecurrentCell::Rnn, Way::Both, [relu, tanh, tanh], false, true),
        (RecurrentCell::Lstm, Way::Forward, [sigmoid, tanh, tanh], false, false),
        (RecurrentCell::Lstm, Way::Reverse, [sigmoid, tanh, tanh], true, true),
        (RecurrentCell::Lstm, Way::Both, [tanh, sigmoid, tanh], true, false),
        (RecurrentCell::Gru, Way::Forward, [sigmoid, tanh, tanh], false, true),
        (RecurrentCell::Gru, Way::Both, [sigmoid, tanh, tanh], false, false),
        (RecurrentCell::GruResetAfter, Way::Reverse, [sigmoid, tanh, tanh], false, false),
        (RecurrentCell::GruResetAfter, Way::Both, [sigmoid, tanh, tanh], false, true),
    ] {
        let (d, m) = (way.directions(), cell.gates() * h);
        let op = Recurrence { cell, way, f, g, h: s, peephole, lengths };
        let grad = RecurrenceGrad { cell, way, f, g, h: s, peephole, lengths };
        let (gates, r) = (c.real([t, b, d, m]), c.real([d, m, h]));
        let mut x = vec![gates, r.clone(), c.real([cell.states(), b, d, h])];
        if cell.has_bias() {
            x.push(c.real([d, h]));
        }
        let mut dx = vec![r, c.real([t, b, d, cell.kept() * h]), c.real([t, b, d, h])];
        dx.push(c.real([t + cell.states(), b, d, h]));
        if peephole {
            let p = c.real([d, 3 * h]);
            x.push(p.clone());
            dx.push(p);
        }
        if lengths {
            // One ends early, one is whole, one is empty.
            let l = ints(DType::I64, [b], &[2, t as i64, 0]);
            x.push(l.clone());
            dx.push(l);
        }
        c.add(op, &x);
        c.refused(grad, &dx);
    }
}

fn state(c: &mut Cases) {
    let (g, inverse) = (c.real([2, 3]), c.scalar());
    c.refused(GradStats {}, &[g.clone(), inverse.clone()]);
    c.refused(GradStats {}, &[inverse.clone(), inverse]);
    let (w, v, m) = (c.real([2, 3]), c.positive([2, 3]), c.real([2, 3]));
    let (lr, factor) = (c.scalar(), c.scalar());
    let (c1, c2) = (c.scalar(), c.scalar());
    for apply in [true, false] {
        let apply = bools([], &[apply]);
        for (momentum, nesterov, decay) in
            [(0.0, false, 0.0), (0.0, false, 0.1), (0.9, false, 0.1), (0.9, true, 0.0)]
        {
            let op = SgdUpdate { momentum: Real(momentum), nesterov, weight_decay: Real(decay) };
            let mut x = vec![w.clone()];
            if momentum != 0.0 {
                x.push(m.clone());
            }
            x.extend([g.clone(), lr.clone(), factor.clone(), apply.clone()]);
            c.refused(op, &x);
        }
        for (decay, decoupled) in [(0.0, false), (0.1, false), (0.1, true)] {
            let op = AdamUpdate {
                beta1: Real(0.9),
                beta2: Real(0.99),
                eps: Real(1e-8),
                weight_decay: Real(decay),
                decoupled,
            };
            let x = [&w, &m, &v, &g, &lr, &factor, &apply, &c1, &c2].map(Tensor::clone);
            c.refused(op, &x);
        }
        c.refused(EmaUpdate { decay: Real(0.99) }, &[w.clone(), g.clone(), apply]);
    }
}

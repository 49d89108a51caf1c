//! Random graphs whose kernels read views of everything: transposed, sliced with steps in either
//! direction, broadcast, split and merged; and sums of branches that are enlarged by repetition, whose
//! spaces have many axes. Used by other test binaries too (with `#[path]`), as `random.rs` is.

use crate::random::{Builder, RandomCase};
use precast_compiler::ir::{Real, ValueId};
use precast_compiler::ops::*;
use precast_compiler::reference::Tensor;
use precast_plan::{BinaryOp, DType, Math, ReduceOp, UnaryOp};

/// Kernels that [`of_kernel`] knows.
pub const KERNELS: &[&str] = &[
    "matmul",
    "conv2d",
    "max_pool2d",
    "attention",
    "attention masked",
    "gather",
    "gather of ints",
    "scatter_add",
    "softmax",
    "layer_norm",
    "batch_norm",
    "cross_entropy",
    "select",
    "reduce",
];

/// Makes the operand behind the views.
type Leaf<'a> = &'a mut dyn FnMut(&mut Builder, &[usize]) -> ValueId;

impl Builder {
    /// A value of this shape that is a view of what `leaf` makes, through up to `depth` movements.
    fn seen(&mut self, shape: &[usize], depth: usize, leaf: Leaf) -> ValueId {
        let rank = shape.len();
        if depth == 0 || rank == 0 {
            return leaf(self, shape);
        }
        let d = self.rng.below(rank);
        let mut from = shape.to_vec();
        match self.rng.below(6) {
            0 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                for i in (1..rank).rev() {
                    perm.swap(i, self.rng.below(i + 1));
                }
                perm.iter().zip(shape).for_each(|(&p, &n)| from[p] = n);
                let x = self.seen(&from, depth - 1, leaf);
                self.op(Transpose { perm }, &[x])
            }
            1 => {
                let step = *self.rng.pick(&[1i64, 2, 3, -1, -2]);
                let reach = (shape[d] - 1) * step.unsigned_abs() as usize;
                let lead = self.rng.below(3);
                from[d] = lead + reach + 1 + self.rng.below(2);
                let (mut starts, mut steps) = (vec![0; rank], vec![1; rank]);
                starts[d] = if step > 0 { lead } else { lead + reach };
                steps[d] = step;
                let x = self.seen(&from, depth - 1, leaf);
                self.op(Slice { starts, sizes: shape.to_vec(), steps }, &[x])
            }
            2 => {
                for n in &mut from {
                    if self.rng.chance(40) {
                        *n = 1;
                    }
                }
                let x = self.seen(&from, depth - 1, leaf);
                self.op(Broadcast { shape: shape.to_vec() }, &[x])
            }
            3 if rank < 6 => {
                let f = (2..=from[d]).find(|f| from[d].is_multiple_of(*f)).unwrap_or(1);
                from[d] /= f;
                from.insert(d + self.rng.below(2), f);
                let x = self.seen(&from, depth - 1, leaf);
                self.op(Reshape { shape: shape.to_vec() }, &[x])
            }
            4 if d + 1 < rank => {
                from[d] *= from.remove(d + 1);
                let x = self.seen(&from, depth - 1, leaf);
                self.op(Reshape { shape: shape.to_vec() }, &[x])
            }
            _ => {
                // An axis in front that the operand lacks.
                let n = from.remove(0);
                let x = self.seen(&from, depth - 1, leaf);
                from.insert(0, 1);
                let x = self.op(Reshape { shape: from }, &[x]);
                if n == 1 { x } else { self.op(Broadcast { shape: shape.to_vec() }, &[x]) }
            }
        }
    }

    /// A view of a parameter, or of what is computed of one.
    fn real_view(&mut self, shape: &[usize]) -> ValueId {
        let depth = 1 + self.rng.below(3);
        let computed = self.rng.chance(50);
        self.seen(shape, depth, &mut |b, s| {
            let p = b.param(s);
            if computed { b.op(Unary { f: UnaryOp::Tanh }, &[p]) } else { p }
        })
    }

    /// A view of an integer input with elements below `below`.
    fn int_view(&mut self, shape: &[usize], below: usize) -> ValueId {
        let depth = 1 + self.rng.below(3);
        self.seen(shape, depth, &mut |b, s| {
            let n = s.iter().product();
            let v: Vec<i64> = (0..n).map(|_| b.rng.below(below) as i64).collect();
            let dtype = *b.rng.pick(&[DType::I64, DType::I32]);
            b.input(Tensor::int(dtype, s.to_vec(), v))
        })
    }

    fn extents<const N: usize>(&mut self, most: [usize; N]) -> [usize; N] {
        most.map(|n| 1 + self.rng.below(n))
    }

    fn kernel(&mut self, name: &str) -> ValueId {
        match name {
            "matmul" => {
                let lead = self.rng.below(4);
                let lead: Vec<usize> = (0..lead).map(|_| 1 + self.rng.below(3)).collect();
                let [m, n, k] = self.extents([5, 5, 5]);
                let a = self.real_view(&[&lead[..], &[m, k]].concat());
                let b = self.real_view(&[&lead[..], &[k, n]].concat());
                self.op(MatMul::plain(), &[a, b])
            }
            "conv2d" => {
                let [n, c, h, w] = self.extents([2, 3, 3, 3]);
                let groups = 1 + self.rng.below(2);
                let (c, h, w) = (c * groups, h + 2, w + 2);
                let x = self.real_view(&[n, c, h, w]);
                let [kh, kw] = self.extents([3, 3]);
                let o = groups * (1 + self.rng.below(2));
                let f = self.real_view(&[o, c / groups, kh, kw]);
                let op = Conv2d {
                    stride: [1 + self.rng.below(2), 1 + self.rng.below(2)],
                    pad: [self.rng.below(2), self.rng.below(2), self.rng.below(2), 0],
                    dilation: [1, 1],
                    groups,
                    math: Math::Exact,
                };
                self.op(op, &[x, f])
            }
            "max_pool2d" => {
                let [n, c, h, w] = self.extents([2, 3, 3, 3]);
                let x = self.real_view(&[n, c, h + 1, w + 1]);
                let stride = [1 + self.rng.below(2), 1 + self.rng.below(2)];
                let pad = [self.rng.below(2), 0, 0, self.rng.below(2)];
                self.op(MaxPool2d { kernel: [2, 2], stride, pad }, &[x])
            }
            "attention" | "attention masked" => {
                let masked = name != "attention";
                let [b, h, q, k, d] = self.extents([2, 2, 4, 4, 4]);
                let causal = !masked && self.rng.chance(50);
                let k = if causal { q } else { k };
                let mut x = vec![self.real_view(&[b, h, q, d])];
                x.extend([[b, h, k, d]; 2].map(|s| self.real_view(&s)));
                if masked {
                    // What is added is data: nothing differentiates it.
                    let depth = 1 + self.rng.below(3);
                    x.push(self.seen(&[b, h, q, k], depth, &mut |b, s| {
                        let t = b.rng.reals(s.to_vec(), -1.0, 1.0);
                        b.input(t)
                    }));
                }
                self.op(
                    Attention { scale: Real(0.5), causal, masked, fill: Real(0.0), safe: false },
                    &x,
                )
            }
            "gather" | "gather of ints" => {
                let rest = self.rng.below(3);
                let rest: Vec<usize> = (0..rest).map(|_| 1 + self.rng.below(4)).collect();
                let rows = 1 + self.rng.below(5);
                let rank = 1 + self.rng.below(2);
                let at: Vec<usize> = (0..rank).map(|_| 1 + self.rng.below(4)).collect();
                let ids = self.int_view(&at, rows);
                let shape = [&[rows][..], &rest].concat();
                if name == "gather" {
                    let table = self.real_view(&shape);
                    return self.op(Gather {}, &[table, ids]);
                }
                let table = self.int_view(&shape, 5);
                let picked = self.op(Gather {}, &[table, ids]);
                let picked = self.op(Unary { f: UnaryOp::ToReal }, &[picked]);
                let shape = self.shape(picked);
                let by = self.real_view(&shape);
                self.bin(BinaryOp::Mul, picked, by)
            }
            "scatter_add" => {
                let [rows, n, width] = self.extents([4, 5, 4]);
                let ids = self.int_view(&[n], rows);
                let dy = self.real_view(&[n, width]);
                self.op(ScatterAdd { rows }, &[ids, dy])
            }
            "softmax" => {
                let shape = self.extents([3, 3, 4]);
                let x = self.real_view(&shape);
                let log = self.rng.chance(50);
                self.op(Softmax { log }, &[x])
            }
            "layer_norm" => {
                let [a, b, c] = self.extents([3, 3, 4]);
                let c = c + 1;
                let x = self.real_view(&[a, b, c]);
                let (weight, bias) = (self.real_view(&[c]), self.real_view(&[c]));
                self.op(LayerNorm { eps: Real(0.1), axes: 1, center: true }, &[x, weight, bias])
            }
            "batch_norm" => {
                let [n, c, h] = self.extents([3, 3, 4]);
                let x = self.real_view(&[n + 1, c, h]);
                let (weight, bias) = (self.real_view(&[c]), self.real_view(&[c]));
                self.op(BatchNorm { eps: Real(0.1) }, &[x, weight, bias])
            }
            "cross_entropy" => {
                let [n, m, classes] = self.extents([3, 3, 4]);
                let classes = classes + 1;
                let x = self.real_view(&[n, m, classes]);
                let targets = self.int_view(&[n, m], classes);
                let label_smoothing = Real(*self.rng.pick(&[0.0, 0.1]));
                self.op(CrossEntropy { ignore_index: 0, label_smoothing }, &[x, targets])
            }
            "select" => {
                let shape = self.extents([3, 3, 4]);
                let which = self.int_view(&shape, 2);
                let which = self.op(Unary { f: UnaryOp::ToBool }, &[which]);
                let (x, y) = (self.real_view(&shape), self.real_view(&shape));
                self.op(Select {}, &[which, x, y])
            }
            "reduce" => {
                let shape = self.extents([3, 3, 4, 2]);
                let x = self.real_view(&shape);
                let mut axes: Vec<usize> = (0..4).filter(|_| self.rng.chance(50)).collect();
                if axes.is_empty() {
                    axes.push(self.rng.below(4));
                }
                let f = *self.rng.pick(ReduceOp::ALL);
                self.op(Reduce { f, axes }, &[x])
            }
            name => panic!("no kernel `{name}`"),
        }
    }

    /// The value at another resolution: every element along an axis repeated.
    fn enlarged(&mut self, x: ValueId, factors: &[usize]) -> ValueId {
        let shape = self.shape(x);
        let thin: Vec<usize> = shape.iter().flat_map(|&n| [n, 1]).collect();
        let wide: Vec<usize> = shape.iter().zip(factors).flat_map(|(&n, &f)| [n, f]).collect();
        let to = shape.iter().zip(factors).map(|(n, f)| n * f).collect();
        let x = self.op(Reshape { shape: thin }, &[x]);
        let x = self.op(Broadcast { shape: wide }, &[x]);
        self.op(Reshape { shape: to }, &[x])
    }
}

/// A kernel of [`KERNELS`] all of whose operands are views, and whose result is looked at through
/// another.
pub fn of_kernel(name: &str, seed: u64) -> RandomCase {
    RandomCase::built(seed, |b| {
        let mut y = b.kernel(name);
        for _ in 0..b.rng.below(3) {
            let (shape, before) = (b.shape(y), b.last());
            b.movement(y, &shape);
            if b.last() != before {
                y = b.last();
            }
        }
    })
}

/// Branches at several resolutions, enlarged and added in pairs and in all, among other movements
/// that split and merge axes.
pub fn of_branches(seed: u64) -> RandomCase {
    RandomCase::built(seed, |b| {
        let axes = 1 + b.rng.below(2);
        let lead: Vec<usize> = (axes..3).map(|_| 1 + b.rng.below(2)).collect();
        let whole = [4usize, 8, 12, 16][b.rng.below(4)];
        let whole = if axes == 2 { whole.min(12) } else { whole };
        let mut all = vec![];
        for _ in 0..2 + b.rng.below(3) {
            let mut small = lead.clone();
            let mut factors = vec![1; lead.len()];
            for _ in 0..axes {
                let f = *b.rng.pick(&[1, 2, 4, 8, 3]);
                let f = if whole.is_multiple_of(f) { f } else { 1 };
                small.push(whole / f);
                factors.push(f);
            }
            let p = b.param(&small);
            let x = if b.rng.chance(60) { b.op(Unary { f: UnaryOp::Tanh }, &[p]) } else { p };
            let mut y = b.enlarged(x, &factors);
            if b.rng.chance(30) {
                let rank = lead.len() + axes;
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(rank - 1, rank - axes);
                y = b.op(Transpose { perm }, &[y]);
            }
            all.push(y);
        }
        let mut sum = all[0];
        for &x in &all[1..] {
            sum = b.bin(BinaryOp::Add, sum, x);
            if b.rng.chance(40) {
                sum = b.op(Unary { f: UnaryOp::Sigmoid }, &[sum]);
            }
        }
        let shape = b.shape(sum);
        match b.rng.below(4) {
            0 => b.reduction(sum, &shape),
            1 => b.normalisation(sum, &shape),
            2 => {
                // Blocks of two along the last axis, side by side.
                let last = shape.len() - 1;
                let mut split = shape.clone();
                split[last] /= 2;
                split.insert(last, 2);
                let mut perm: Vec<usize> = (0..=shape.len()).collect();
                perm.swap(0, last);
                let x = b.op(Reshape { shape: split }, &[sum]);
                let x = b.op(Transpose { perm }, &[x]);
                let flat = shape.iter().product();
                let x = b.op(Reshape { shape: vec![flat] }, &[x]);
                let by = b.param(&[flat]);
                b.bin(BinaryOp::Mul, x, by);
            }
            _ => {}
        }
    })
}

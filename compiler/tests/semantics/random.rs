//! Random differentiable graphs, from a seed. Used by other test binaries too (with `#[path]`), so
//! it depends on `rng.rs` and the compiler's public interface alone.

use crate::rng::Rng;
use indexmap::IndexMap;
use precast_compiler::autodiff::backward;
use precast_compiler::ir::{
    ConstData, Graph, Real, Region, Result_, TensorType, ValueId, Var as IrVar, VarInit, VarRole,
};
use precast_compiler::ops::activation::Act;
use precast_compiler::ops::*;
use precast_compiler::reference::Tensor;
use precast_plan::{BinaryOp, DType, Math, ReduceOp, UnaryOp};

/// Values larger than this are not made.
const MAX_ELEMENTS: usize = 160;

/// A forward graph with the scalar result `loss`, and something to run it on.
#[derive(Clone, Debug)]
pub struct RandomCase {
    pub graph: Graph,
    pub loss: ValueId,
    /// Graph inputs by name.
    pub inputs: IndexMap<String, Tensor>,
    /// Parameters by name, all of role `Param`.
    pub vars: IndexMap<String, Tensor>,
}

/// Leaves and some steps.
fn random_steps(b: &mut Builder) {
    b.leaves();
    let steps = 3 + b.rng.below(28);
    for _ in 0..steps {
        if b.edges { b.edge_step() } else { b.step() }
    }
}

impl RandomCase {
    /// The same seed gives the same case.
    pub fn new(seed: u64) -> RandomCase {
        RandomCase::built(seed, random_steps)
    }

    /// A graph full of corners and ties: leaves are halves between −1 and 1, and operations keep
    /// numbers of few bits, so that f32 and f64 agree on which elements are equal.
    #[allow(dead_code, reason = "of the tests that run plans")]
    pub fn at_edges(seed: u64) -> RandomCase {
        RandomCase::built(seed, |b| {
            b.edges = true;
            random_steps(b);
        })
    }

    /// What `make` makes, with a loss of all that nothing reads.
    pub fn built(seed: u64, make: impl FnOnce(&mut Builder)) -> RandomCase {
        let mut rng = Rng(seed);
        rng.next();
        let mut b = Builder {
            rng,
            g: Graph::new("random"),
            inputs: IndexMap::new(),
            vars: IndexMap::new(),
            edges: false,
        };
        make(&mut b);
        let loss = b.loss();
        b.g.results.push(Result_ { name: "loss".into(), value: loss });
        RandomCase { graph: b.g, loss, inputs: b.inputs, vars: b.vars }
    }

    /// The graph with its backward pass: `grad.NAME` is the gradient of every parameter that the
    /// loss depends on.
    pub fn differentiated(&self) -> Graph {
        let mut g = self.graph.clone();
        let one = Const { data: ConstData::scalar(1.0) };
        let seed = g.try_add(one, &[], "seed", Region::Backward).expect("a constant")[0];
        let params: Vec<(String, ValueId)> = g
            .nodes()
            .filter_map(|(_, n)| match &n.op {
                Op::Var(v) => Some((v.name.clone(), n.outputs[0])),
                _ => None,
            })
            .collect();
        let wrt: Vec<ValueId> = params.iter().map(|p| p.1).collect();
        let grads = backward(&mut g, self.loss, seed, &wrt).unwrap_or_else(|e| panic!("{e}"));
        for ((name, _), grad) in params.iter().zip(grads) {
            if let Some(value) = grad {
                g.results.push(Result_ { name: format!("grad.{name}"), value });
            }
        }
        g.without_dead_nodes()
    }
}

/// Appends to a graph; what it draws comes from one generator.
pub struct Builder {
    pub rng: Rng,
    g: Graph,
    inputs: IndexMap<String, Tensor>,
    vars: IndexMap<String, Tensor>,
    edges: bool,
}

impl Builder {
    fn leaf(&mut self, shape: &[usize]) -> Tensor {
        if !self.edges {
            return self.rng.reals(shape.to_vec(), -1.0, 1.0);
        }
        let n = shape.iter().product();
        let halves = (0..n).map(|_| self.rng.below(5) as f64 / 2.0 - 1.0).collect::<Vec<_>>();
        Tensor::real(shape.to_vec(), halves)
    }

    /// One of the operations that have edges, or that move elements.
    fn edge_step(&mut self) {
        use UnaryOp::*;
        let x = self.any();
        let shape = self.shape(x);
        match self.rng.below(9) {
            0 => {
                self.op(Activate { act: Act::Relu }, &[x]);
            }
            1 => {
                let f = *self.rng.pick(&[Abs, Neg, Floor, RoundEven]);
                self.op(Unary { f }, &[x]);
            }
            2 | 3 => {
                let y = self.like(&shape);
                let f =
                    *self.rng.pick(&[BinaryOp::Max, BinaryOp::Min, BinaryOp::Sub, BinaryOp::Rem]);
                if f == BinaryOp::Rem {
                    let half = self.full(0.5, &shape);
                    self.bin(f, x, half);
                } else {
                    self.bin(f, x, y);
                }
            }
            4 => {
                // A clamp whose ends are hit, open or closed.
                let f = *self.rng.pick(&[BinaryOp::Lt, BinaryOp::Le]);
                let low = self.full(-0.5, &shape);
                let under = self.bin(f, x, low);
                self.op(Select {}, &[under, low, x]);
            }
            5 if !shape.is_empty() => {
                let axis = self.rng.below(shape.len());
                let f = *self.rng.pick(&[ReduceOp::Max, ReduceOp::Min]);
                if self.rng.chance(50) {
                    self.op(Extremum { f, axis }, &[x]);
                } else {
                    let axes = (0..shape.len()).filter(|a| *a == axis || self.rng.chance(30));
                    let axes = axes.collect();
                    self.op(Reduce { f, axes }, &[x]);
                }
            }
            6 if shape.len() == 4 && shape[2] > 1 && shape[3] > 1 => {
                self.op(MaxPool2d { kernel: [2, 2], stride: [1, 1], pad: [0, 0, 0, 0] }, &[x]);
            }
            6 => {
                // A norm with zeros in it: 0 where the square is.
                let sq = self.bin(BinaryOp::Mul, x, x);
                let (zero, unit) = (self.full(0.0, &shape), self.full(1.0, &shape));
                let none = self.bin(BinaryOp::Eq, sq, zero);
                let safe = self.op(Select {}, &[none, unit, sq]);
                let root = self.op(Unary { f: Sqrt }, &[safe]);
                self.op(Select {}, &[none, zero, root]);
            }
            _ => self.movement(x, &shape),
        }
    }

    fn all(&mut self, op: impl Into<Op>, x: &[ValueId]) -> Vec<ValueId> {
        let op = op.into();
        let name = format!("{}.{}", op.name(), self.g.node_count());
        let text = format!("{op:?}");
        match self.g.try_add(op, x, name, Region::Forward) {
            Ok(v) => v.to_vec(),
            Err(e) => panic!("the generator built {text}: {e}"),
        }
    }

    pub fn op(&mut self, op: impl Into<Op>, x: &[ValueId]) -> ValueId {
        self.all(op, x)[0]
    }

    /// The value made last.
    #[allow(dead_code, reason = "every test binary uses a part")]
    pub fn last(&self) -> ValueId {
        ValueId(self.g.value_count() as u32 - 1)
    }

    pub fn shape(&self, v: ValueId) -> Vec<usize> {
        self.g.shape(v).to_vec()
    }

    pub fn input(&mut self, t: Tensor) -> ValueId {
        let name = format!("x{}", self.inputs.len());
        let op = Input::new(&name, &t.ty);
        self.inputs.insert(name, t);
        self.op(op, &[])
    }

    pub fn param(&mut self, shape: &[usize]) -> ValueId {
        let name = format!("p{}", self.vars.len());
        let t = self.leaf(shape);
        let init = VarInit::Uniform { bound: 1.0, stream: self.vars.len() as u32 };
        let var = IrVar { ty: t.ty.clone(), role: VarRole::Param, init };
        let op = Var::new(&name, &t.ty);
        self.g.vars.insert(name.clone(), var);
        self.vars.insert(name, t);
        self.op(op, &[])
    }

    fn leaves(&mut self) {
        for _ in 0..1 + self.rng.below(2) {
            let rank = 2 + self.rng.below(3);
            let mut shape: Vec<usize> = (0..rank).map(|_| 1 + self.rng.below(5)).collect();
            while shape.iter().product::<usize>() > MAX_ELEMENTS {
                let d = self.rng.below(rank);
                shape[d] = 2;
            }
            let t = self.leaf(&shape);
            self.input(t);
            self.param(&shape);
        }
    }

    /// A real value made so far; recent ones more often, so that graphs become deep.
    fn any(&mut self) -> ValueId {
        let real: Vec<ValueId> = (0..self.g.value_count() as u32)
            .map(ValueId)
            .filter(|&v| self.g.ty(v).is_real())
            .collect();
        // Statistics are results that nothing can differentiate.
        let real: Vec<ValueId> = real.into_iter().filter(|&v| self.g.value(v).index == 0).collect();
        let from = if self.rng.chance(60) { real.len().saturating_sub(4) } else { 0 };
        *self.rng.pick(&real[from..])
    }

    /// A value of this shape: one that exists, or a parameter, perhaps broadcast.
    fn like(&mut self, shape: &[usize]) -> ValueId {
        let same: Vec<ValueId> = (0..self.g.value_count() as u32)
            .map(ValueId)
            .filter(|&v| {
                let value = self.g.value(v);
                value.ty.is_real() && value.index == 0 && value.ty.shape[..] == *shape
            })
            .collect();
        if !same.is_empty() && self.rng.chance(60) {
            return *self.rng.pick(&same);
        }
        let narrow: Vec<usize> =
            shape.iter().map(|&n| if self.rng.chance(40) { 1 } else { n }).collect();
        let p = self.param(&narrow);
        if narrow == shape { p } else { self.op(Broadcast { shape: shape.to_vec() }, &[p]) }
    }

    fn full(&mut self, x: f32, shape: &[usize]) -> ValueId {
        let c = self.op(Const { data: ConstData::from_f32(vec![1; shape.len()], &[x]) }, &[]);
        self.op(Broadcast { shape: shape.to_vec() }, &[c])
    }

    pub fn bin(&mut self, f: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.op(Binary { f }, &[a, b])
    }

    fn step(&mut self) {
        let x = self.any();
        let shape = self.shape(x);
        match self.rng.below(8) {
            0 => self.pointwise(x),
            1 => self.binary(x, &shape),
            2 | 3 => self.movement(x, &shape),
            4 => self.reduction(x, &shape),
            5 => self.product(x, &shape),
            6 => self.normalisation(x, &shape),
            _ => self.lookup(x, &shape),
        }
    }

    fn pointwise(&mut self, x: ValueId) {
        use UnaryOp::*;
        let bounded = [Tanh, Sigmoid, Sin, Cos, Erf, Neg, Abs];
        match self.rng.below(5) {
            0 => {
                let act = *self.rng.pick(&Act::ALL);
                self.op(Activate { act }, &[x]);
            }
            1 => {
                let by = Real(self.rng.uniform(-1.5, 1.5));
                self.op(Scale { by }, &[x]);
            }
            2 => {
                // Functions with a restricted domain, of something inside it.
                let s = self.op(Unary { f: Sigmoid }, &[x]);
                let f = *self.rng.pick(&[Exp, Expm1, Log, Log1p, Sqrt, Rsqrt, Recip]);
                let half = self.full(0.5, &self.shape(x));
                let s = self.bin(BinaryOp::Add, s, half);
                self.op(Unary { f }, &[s]);
            }
            _ => {
                let f = *self.rng.pick(&bounded);
                self.op(Unary { f }, &[x]);
            }
        }
    }

    fn binary(&mut self, x: ValueId, shape: &[usize]) {
        use BinaryOp::*;
        let y = self.like(shape);
        match self.rng.below(6) {
            0 => {
                let s = self.op(Unary { f: UnaryOp::Sigmoid }, &[y]);
                let f = *self.rng.pick(&[Mul, Div, Pow]);
                if f == Pow {
                    let base = self.op(Unary { f: UnaryOp::Sigmoid }, &[x]);
                    self.bin(f, base, s);
                } else {
                    let half = self.full(0.5, shape);
                    let s = self.bin(Add, s, half);
                    self.bin(f, x, s);
                }
            }
            1 => {
                let less = self.bin(Lt, x, y);
                let z = self.like(shape);
                self.op(Select {}, &[less, x, z]);
            }
            2 => {
                let s = self.param(&[]);
                self.op(ScaleBy {}, &[s, x]);
            }
            _ => {
                let f = *self.rng.pick(&[Add, Sub, Max, Min]);
                self.bin(f, x, y);
            }
        }
    }

    pub fn movement(&mut self, x: ValueId, shape: &[usize]) {
        let rank = shape.len();
        if rank == 0 {
            self.op(Reshape { shape: vec![1, 1] }, &[x]);
            return;
        }
        let d = self.rng.below(rank);
        let elements: usize = shape.iter().product();
        match self.rng.below(6) {
            0 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                for i in (1..rank).rev() {
                    perm.swap(i, self.rng.below(i + 1));
                }
                self.op(Transpose { perm }, &[x]);
            }
            1 => {
                // Merge two axes, or split one.
                let mut to = shape.to_vec();
                if d + 1 < rank && self.rng.chance(50) {
                    to[d] *= to.remove(d + 1);
                } else if rank < 5 {
                    let f = (2..=to[d]).find(|f| to[d].is_multiple_of(*f)).unwrap_or(1);
                    to[d] /= f;
                    to.insert(d + self.rng.below(2), f);
                }
                self.op(Reshape { shape: to }, &[x]);
            }
            2 => {
                let (mut starts, mut sizes, mut steps) =
                    (vec![0; rank], shape.to_vec(), vec![1; rank]);
                let step = *self.rng.pick(&[1, 1, 2, -1]);
                sizes[d] = shape[d].div_ceil(if step == 2 { 2 } else { 1 });
                if step == 1 && shape[d] > 1 {
                    sizes[d] -= 1;
                    starts[d] = self.rng.below(2);
                }
                if step < 0 {
                    starts[d] = shape[d] - 1;
                }
                steps[d] = step;
                self.op(Slice { starts, sizes, steps }, &[x]);
            }
            3 if 2 * elements <= MAX_ELEMENTS => {
                let y = self.like(shape);
                self.op(Concat { axis: d }, &[x, y]);
            }
            4 if 2 * elements <= MAX_ELEMENTS && shape[d] == 1 => {
                let mut to = shape.to_vec();
                to[d] = 2;
                self.op(Broadcast { shape: to }, &[x]);
            }
            5 if elements / shape[d] * (shape[d] + 2) <= MAX_ELEMENTS => {
                let (mut starts, mut to) = (vec![0; rank], shape.to_vec());
                to[d] += 2;
                starts[d] = self.rng.below(3);
                self.op(Pad { starts, steps: vec![1; rank], shape: to }, &[x]);
            }
            _ => {}
        }
    }

    pub fn reduction(&mut self, x: ValueId, shape: &[usize]) {
        let axes: Vec<usize> = (0..shape.len()).filter(|_| self.rng.chance(50)).collect();
        if axes.is_empty() {
            return;
        }
        let n: usize = axes.iter().map(|&a| shape[a]).product();
        let f = *self.rng.pick(ReduceOp::ALL);
        let y = self.op(Reduce { f, axes }, &[x]);
        if f == ReduceOp::Sum {
            self.op(Scale { by: Real(1.0 / n as f64) }, &[y]);
        }
    }

    fn product(&mut self, x: ValueId, shape: &[usize]) {
        let rank = shape.len();
        if rank == 4 && self.rng.chance(70) {
            return self.planes(x, shape);
        }
        if rank < 2 {
            return;
        }
        let (k, n) = (shape[rank - 1], 1 + self.rng.below(4));
        let mut w = shape[..rank - 2].to_vec();
        w.extend([k, n]);
        let w = if self.rng.chance(50) {
            self.like(&w)
        } else {
            // One weight for the whole batch.
            let p = self.param(&[k, n]);
            let mut ones = vec![1; rank - 2];
            ones.extend([k, n]);
            let p = self.op(Reshape { shape: ones }, &[p]);
            self.op(Broadcast { shape: w }, &[p])
        };
        let y = self.op(MatMul::plain(), &[x, w]);
        self.op(Scale { by: Real(1.0 / (k as f64).sqrt()) }, &[y]);
    }

    /// Convolution, pooling or attention of a value of rank 4.
    fn planes(&mut self, x: ValueId, shape: &[usize]) {
        let (c, h, w) = (shape[1], shape[2], shape[3]);
        match self.rng.below(3) {
            0 => {
                let groups = if c % 2 == 0 && self.rng.chance(40) { 2 } else { 1 };
                let kernel = [h, w].map(|n| 1 + self.rng.below(n.min(3)));
                let filters = self.param(&[groups, c / groups, kernel[0], kernel[1]]);
                let conv = Conv2d {
                    stride: [1 + self.rng.below(2), 1],
                    pad: [self.rng.below(2), 0, 1, self.rng.below(2)],
                    dilation: [1, 1],
                    groups,
                    math: Math::Exact,
                };
                let y = self.op(conv, &[x, filters]);
                let fan = (c / groups * kernel[0] * kernel[1]) as f64;
                self.op(Scale { by: Real(1.0 / fan.sqrt()) }, &[y]);
            }
            1 if h > 1 && w > 1 => {
                let stride = [1 + self.rng.below(2), 1 + self.rng.below(2)];
                let pad = [self.rng.below(2), 0, 0, self.rng.below(2)];
                self.op(MaxPool2d { kernel: [2, 2], stride, pad }, &[x]);
            }
            _ => {
                let (k, v) = (self.like(shape), self.like(shape));
                let causal = self.rng.chance(50);
                let (scale, fill) = (Real(0.5), Real(0.0));
                let op = Attention { scale, causal, masked: false, fill, safe: false };
                self.op(op, &[x, k, v]);
            }
        }
    }

    pub fn normalisation(&mut self, x: ValueId, shape: &[usize]) {
        let rank = shape.len();
        if rank < 2 || shape[rank - 1] < 2 {
            return;
        }
        match self.rng.below(4) {
            0 => {
                let log = self.rng.chance(50);
                self.op(Softmax { log }, &[x]);
            }
            1 => {
                let axes = 1 + self.rng.below(rank);
                let center = self.rng.chance(50);
                let weight = self.param(&shape[rank - axes..]);
                let op = LayerNorm { eps: Real(0.1), axes, center };
                if center {
                    let bias = self.param(&shape[rank - axes..]);
                    self.op(op, &[x, weight, bias]);
                } else {
                    self.op(op, &[x, weight]);
                }
            }
            2 => {
                let (weight, bias) = (self.param(&[shape[1]]), self.param(&[shape[1]]));
                self.op(BatchNorm { eps: Real(0.1) }, &[x, weight, bias]);
            }
            _ => {
                let key = self.rng.below(1000) as i64;
                let mut scalar = |k: i64| self.input(Tensor::int(DType::I32, [], [k]));
                let (seed, step) = (scalar(key), scalar(3));
                self.op(Dropout { p: Real(0.25), stream: 1 }, &[x, seed, step]);
            }
        }
    }

    /// Rows of a value by index, or a loss of it.
    fn lookup(&mut self, x: ValueId, shape: &[usize]) {
        let Some((&last, rows)) = shape.split_last() else { return };
        let ids = |b: &mut Builder, n: usize, shape: &[usize]| {
            let count = shape.iter().product();
            let v: Vec<i64> = (0..count).map(|_| b.rng.below(n) as i64).collect();
            b.input(Tensor::int(DType::I64, shape.to_vec(), v))
        };
        if self.rng.chance(50) && 4 * shape.iter().product::<usize>() <= MAX_ELEMENTS {
            let i = ids(self, shape[0], &[2, 2]);
            self.op(Gather {}, &[x, i]);
        } else if last > 1 {
            let t = ids(self, last, rows);
            let label_smoothing = Real(*self.rng.pick(&[0.0, 0.1]));
            self.op(CrossEntropy { ignore_index: 0, label_smoothing }, &[x, t]);
        }
    }

    /// The mean of `v² + v` of every value that nothing reads, added up.
    fn loss(&mut self) -> ValueId {
        let uses = self.g.uses();
        let ends: Vec<ValueId> = (0..self.g.value_count() as u32)
            .map(ValueId)
            .filter(|&v| {
                let value = self.g.value(v);
                uses[v.0 as usize].is_empty() && value.ty.is_real() && value.index == 0
            })
            .collect();
        let mut total: Option<ValueId> = None;
        for v in ends {
            let shape = self.shape(v);
            let n: usize = shape.iter().product();
            let sq = self.bin(BinaryOp::Mul, v, v);
            let mut y = self.bin(BinaryOp::Add, sq, v);
            if !shape.is_empty() {
                y = self.op(Reduce { f: ReduceOp::Sum, axes: (0..shape.len()).collect() }, &[y]);
            }
            let y = self.op(Scale { by: Real(1.0 / n as f64) }, &[y]);
            total = Some(match total {
                None => y,
                Some(t) => self.bin(BinaryOp::Add, t, y),
            });
        }
        total.expect("the last value made is read by nothing")
    }
}

/// Types of the parameters, for messages.
pub fn describe(case: &RandomCase) -> String {
    let types: Vec<TensorType> = case.vars.values().map(|t| t.ty.clone()).collect();
    format!("{types:?}\n{}", precast_compiler::text::print(&case.graph))
}

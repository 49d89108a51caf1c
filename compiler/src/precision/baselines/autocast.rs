//! PyTorch's autocast: casts at the operands of listed operations, in the forward graph.

use super::lists::{self, Torch};
use super::{Baseline, Marks, System, deciding, results};
use crate::ir::{Graph, Node, Region, Result_, ValueId, VarRole};
use crate::ops::{Cast, Lowering, Op};
use precast_plan::{DType, ReduceOp};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// In the name of a cast that type promotion makes inside the kernel that reads it; its gradient
/// is a cast of its own.
pub(super) const PROMOTED: &str = ".promoted.";

/// Casts in a forward graph whose reals are all f32, the loss attached. The result is still all
/// f32: [`super::retype`] comes after differentiation.
///
/// A parameter is cast once, however many operations read it, through the views between; any other
/// tensor is cast for each of its readers.
pub fn autocast(g: &Graph, baseline: Baseline) -> (Graph, Marks) {
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let mut a = Autocast {
        g,
        baseline,
        out,
        map: Vec::with_capacity(g.value_count()),
        format: Vec::with_capacity(g.value_count()),
        weak: super::weak(g),
        cached: FxHashMap::default(),
        marks: Marks::default(),
        uses: g.uses().iter().map(|u| u.iter().map(|x| x.0.0).collect()).collect(),
        read: vec![false; g.node_count()],
    };
    for r in &g.results {
        a.read[g.value(r.value).node.0 as usize] = true;
    }
    for (id, n) in g.nodes().rev() {
        if a.read[id.0 as usize] {
            n.inputs.iter().for_each(|&v| a.read[g.value(v).node.0 as usize] = true);
        }
    }
    for (_, n) in g.nodes() {
        a.node(n);
    }
    let rename = |rs: &[Result_]| -> Vec<Result_> {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: a.map[r.value.0 as usize] })
            .collect()
    };
    a.out.results = rename(&g.results);
    a.out.updates = rename(&g.updates);
    (a.out, a.marks)
}

struct Autocast<'g> {
    g: &'g Graph,
    baseline: Baseline,
    out: Graph,
    map: Vec<ValueId>,
    /// By value of `g`; meaningless for what is not real.
    format: Vec<DType>,
    weak: Vec<bool>,
    /// Cast parameters and views of them, by value of `g`.
    cached: FxHashMap<(ValueId, DType), ValueId>,
    marks: Marks,
    /// Readers of every value.
    uses: Vec<Vec<u32>>,
    /// Nodes that a result depends on. The others keep running statistics: arithmetic of the layer
    /// itself, in f32.
    read: Vec<bool>,
}

impl Autocast<'_> {
    fn node(&mut self, n: &Node) {
        let real = |v: &ValueId| self.g.ty(*v).is_real();
        let loss = n.name == "loss" || n.name.starts_with("loss.");
        let view = n.op.lowering() == Lowering::View;
        let node = self.g.value(n.outputs[0]).node;
        let statistics = !self.read[node.0 as usize];
        if n.op.lowering() == Lowering::Leaf || view || statistics || !n.inputs.iter().any(real) {
            let inputs: SmallVec<[ValueId; 4]> =
                n.inputs.iter().map(|v| self.map[v.0 as usize]).collect();
            let format = match n.inputs.first() {
                Some(v) if view => self.format[v.0 as usize],
                _ => DType::F32,
            };
            return self.push(n, &inputs, |_| format);
        }
        let rule = match self.bias(n) {
            true => Torch::Lower,
            false => lists::torch(self.baseline.system, &n.op, self.mean(n), loss),
        };
        let half = self.baseline.half;
        let deciding = deciding(&n.op, n.inputs.len());
        let strong = |a: &Self, i: usize| {
            let v = n.inputs[i].0 as usize;
            (a.g.ty(n.inputs[i]).is_real() && !a.weak[v]).then(|| a.format[v])
        };
        let widest = deciding
            .iter()
            .filter_map(|&i| strong(self, i))
            .max_by_key(|d| d.size())
            .unwrap_or(DType::F32);
        let mut inputs: SmallVec<[ValueId; 4]> = SmallVec::new();
        let mut formats: SmallVec<[Option<DType>; 6]> = SmallVec::new();
        for (i, &v) in n.inputs.iter().enumerate() {
            let have = strong(self, i);
            let want = match (rule, have) {
                (_, None) => None,
                _ if !deciding.contains(&i) => have,
                (Torch::Lower, _) => Some(half),
                (Torch::Full, _) => Some(DType::F32),
                (Torch::WideResult, _) => have,
                (Torch::Pass, _) => Some(widest),
            };
            formats.push(want);
            let read = match (have, want) {
                (Some(a), Some(b)) if a != b => {
                    // A row program converts while it loads; what copies memory does not.
                    let inside = rule == Torch::Pass && n.op.lowering() == Lowering::Rows;
                    self.cast(n, i, v, b, inside)
                }
                _ => self.map[v.0 as usize],
            };
            inputs.push(read);
        }
        let given = match (rule, &n.op) {
            (Torch::WideResult, op) => {
                if let (Op::Softmax(_), Some(Some(x))) = (op, formats.first()) {
                    self.marks.results.insert(format!("{}.grad", n.name), *x);
                }
                self.marks.results.insert(n.name.clone(), DType::F32);
                Some(DType::F32)
            }
            _ => None,
        };
        let why = match rule {
            Torch::Lower => "on the list of 16-bit operations",
            Torch::Full => "on the list of f32 operations",
            Torch::WideResult => "on the f32 list: reads what there is and writes f32",
            Torch::Pass => "on no list: runs in the widest format of its operands",
        };
        self.marks.reasons.insert(n.name.clone(), why);
        let of = results(&n.op, &formats, given);
        self.push(n, &inputs, of);
    }

    fn push(&mut self, n: &Node, inputs: &[ValueId], format: impl Fn(usize) -> DType) {
        let types = n.outputs.iter().map(|&v| self.g.ty(v).clone()).collect();
        let new = self.out.push(n.op.clone(), inputs, types, n.name.clone(), n.region);
        self.map.extend(new);
        self.format.extend((0..n.outputs.len()).map(format));
    }

    /// Operand `i` of `n` in another format.
    fn cast(&mut self, n: &Node, i: usize, v: ValueId, to: DType, inside: bool) -> ValueId {
        if !inside && self.parameter(v) {
            return self.cached(v, to);
        }
        let name = match inside {
            true => format!("{}{PROMOTED}{i}", n.name),
            false => format!("{}.operand.{i}.{to}", n.name),
        };
        self.mark(name, v, self.map[v.0 as usize], to)
    }

    /// Whether a value is a parameter, seen through views.
    fn parameter(&self, v: ValueId) -> bool {
        let n = self.g.def(v);
        match &n.op {
            Op::Var(var) => self.g.vars[&var.name].role == VarRole::Param,
            op => op.lowering() == Lowering::View && self.parameter(n.inputs[0]),
        }
    }

    fn cached(&mut self, v: ValueId, to: DType) -> ValueId {
        if let Some(&known) = self.cached.get(&(v, to)) {
            return known;
        }
        let n = self.g.def(v);
        let new = match &n.op {
            Op::Var(var) => {
                let name = format!("{}.cast.{to}", var.name);
                self.mark(name, v, self.map[v.0 as usize], to)
            }
            op => {
                let inner = self.cached(n.inputs[0], to);
                let name = format!("{}.{to}", n.name);
                let types = vec![self.g.ty(v).clone()];
                self.out.push(op.clone(), &[inner], types, name, n.region)[0]
            }
        };
        self.cached.insert((v, to), new);
        new
    }

    /// A marked cast; `from` in `out` is `v`. Its gradient is a cast back.
    fn mark(&mut self, name: String, v: ValueId, from: ValueId, to: DType) -> ValueId {
        let back = self.format[v.0 as usize];
        self.marks.casts.insert(format!("{name}.grad"), back);
        self.marks.casts.insert(name.clone(), to);
        let types = vec![self.g.ty(v).clone()];
        self.out.push(Cast {}.into(), &[from], types, name, Region::Forward)[0]
    }

    /// Whether a sum is scaled to a mean.
    fn mean(&self, n: &Node) -> bool {
        is_mean(self.g, &self.uses, n)
    }

    fn bias(&self, n: &Node) -> bool {
        self.baseline.system != System::All && is_bias(self.g, n)
    }
}

/// Whether `n` is a sum that one scale by the reciprocal of its count follows, or that scale.
pub(super) fn is_mean(g: &Graph, uses: &[Vec<u32>], n: &Node) -> bool {
    match &n.op {
        Op::Reduce(r) if r.f == ReduceOp::Sum => {
            let [reader] = uses[n.outputs[0].0 as usize][..] else { return false };
            let reader = g.node(crate::ir::NodeId(reader));
            let count = g.shape(n.inputs[0]).elements() / g.shape(n.outputs[0]).elements().max(1);
            matches!(&reader.op, Op::Scale(s) if (s.by.0 * count as f64 - 1.0).abs() < 1e-6)
        }
        Op::Scale(_) => {
            let sum = g.def(n.inputs[0]);
            matches!(sum.op, Op::Reduce(_)) && is_mean(g, uses, sum)
        }
        _ => false,
    }
}

/// Whether `n` adds a bias to a product that reads a parameter: one operation (`linear`, a
/// convolution) of the framework.
pub(super) fn is_bias(g: &Graph, n: &Node) -> bool {
    if !matches!(&n.op, Op::Binary(b) if b.f == precast_plan::BinaryOp::Add) {
        return false;
    }
    let through = |mut v: ValueId| {
        while g.def(v).op.lowering() == Lowering::View {
            v = g.def(v).inputs[0];
        }
        v
    };
    let param = |v: ValueId| match &g.def(v).op {
        Op::Var(var) => g.vars[&var.name].role == VarRole::Param,
        _ => false,
    };
    [(0, 1), (1, 0)].into_iter().any(|(p, b)| {
        let (product, bias) = (through(n.inputs[p]), through(n.inputs[b]));
        let op = g.def(product);
        matches!(op.op, Op::MatMul(_) | Op::Conv2d(_))
            && param(through(op.inputs[1]))
            && param(bias)
            && g.shape(bias).rank() == 1
    })
}

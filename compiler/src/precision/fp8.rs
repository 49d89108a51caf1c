//! FP8: matrix products whose operands are rounded to 8 bits, after every other format is chosen.
//!
//! An operand is E4M3, or E5M2 where it is a cotangent, whose values spread further. Neither has
//! the range of a tensor of its own accord, so a tensor is multiplied with a scale that takes its
//! largest magnitude to the format's largest value, rounded, and the product's sums are multiplied
//! with the inverse of both scales (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
//!
//! The scale is that of the values themselves (current scaling), computed on the device in the
//! same step. Scaling by the maxima of earlier steps would save a pass over every tensor, and costs
//! state, a first step without scales, and saturation where a tensor grows; here nothing overflows
//! unless it was not finite before, and a step depends on nothing but its inputs.
//!
//! Tensor cores read both operands along the summed axis, so an operand is written in the order its
//! product walks: a tensor that one product sums along its rows and another along its columns is
//! rounded twice, once transposed.

use super::degree::Degree;
use super::{Choices, PrecisionOptions, legal};
use crate::cost::Prices;
use crate::ir::{ConstData, Graph, Node, NodeId, Region, Result_, Shape, TensorType, ValueId};
use crate::ops::{
    Binary, Cast, Const, Lowering, MatMul, NumericClass, Op, Reduce, Scale, ScaleBy, Transpose,
    Unary,
};
use precast_plan::{BinaryOp, DType, ReduceOp, UnaryOp};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Extents that the kernels take are multiples of this (cuBLASLt: rows of 16 bytes).
const MULTIPLE: usize = 16;
/// What stands for the largest magnitude of a tensor of zeros; its inverse is finite.
const LEAST: f32 = 1e-30;

/// One operand of a product as it is to be written: a tensor, and whether its last two axes swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Copy {
    of: ValueId,
    swapped: bool,
}

/// A product that may run in FP8.
struct Candidate {
    node: NodeId,
    operands: [Copy; 2],
    /// What the product gains by it, ns, copies and maxima not counted.
    gain: f64,
}

/// Whether the last two axes of a value are those of another, swapped.
fn swapped(g: &Graph, v: ValueId) -> Option<ValueId> {
    let def = g.def(v);
    let Op::Transpose(t) = &def.op else { return None };
    let r = t.perm.len();
    let swaps = r >= 2
        && t.perm[..r - 2].iter().enumerate().all(|(i, &p)| i == p)
        && t.perm[r - 2..] == [r - 1, r - 2];
    swaps.then(|| def.inputs[0])
}

/// The storage behind a value; behind a copy in another format, that of its original, so that
/// what is rounded to 8 bits was not rounded to 16 before.
fn root(g: &Graph, mut v: ValueId) -> ValueId {
    while g.def(v).op.lowering() == Lowering::View || matches!(g.def(v).op, Op::Cast(_)) {
        v = g.def(v).inputs[0];
    }
    v
}

/// Whether FP8 kernels take a product's operands, as far as shapes say.
pub fn fits(g: &Graph, n: &Node) -> bool {
    let Op::MatMul(_) = n.op else { return false };
    let (a, b) = (g.shape(n.inputs[0]), g.shape(n.inputs[1]));
    let fits = |e: usize| e != 0 && e.is_multiple_of(MULTIPLE);
    a.rank() == 2 && [a[0], a[1], b[1]].into_iter().all(fits)
}

/// Why a product keeps the format it has; `pinned`: as [`super::Legal::product`] and pins say.
fn refusal(
    g: &Graph,
    n: &Node,
    pinned: &BTreeMap<String, String>,
    e5m2: &[bool],
) -> Option<String> {
    let Op::MatMul(_) = n.op else { return Some("FP8 multiplies matrices alone".into()) };
    if let Some(why) = pinned.get(&n.name) {
        return Some(why.clone());
    }
    let (a, b) = (g.shape(n.inputs[0]), g.shape(n.inputs[1]));
    if a.rank() != 2 {
        return Some("batched products stay in 16 bits".into());
    }
    let extents = [a[0], b[1], a[1]];
    if extents.iter().any(|&e| e == 0 || !e.is_multiple_of(MULTIPLE)) {
        let [m, n, k] = extents;
        return Some(format!("{m}×{n}×{k}: FP8 kernels take multiples of {MULTIPLE}"));
    }
    if n.inputs[..2].iter().all(|v| e5m2[v.0 as usize]) {
        return Some("no kernel multiplies E5M2 with E5M2".into());
    }
    None
}

/// Values that are cotangents.
fn cotangents(g: &Graph, options: &PrecisionOptions) -> Vec<bool> {
    let degrees = legal::degrees(g, options);
    degrees.into_iter().map(|(seed, _)| !matches!(seed, Degree::Any | Degree::ZERO)).collect()
}

/// Rounds operands of matrix products to FP8: where it pays, copies and maxima counted once
/// however many products share them, or wherever it is legal with `all`. `g` has its formats and
/// casts; `pinned`: products that may not leave their format, and why.
pub fn quantise(
    g: &Graph,
    options: &PrecisionOptions,
    pinned: &BTreeMap<String, String>,
    prices: &Prices,
    all: bool,
) -> (Graph, Choices) {
    let e5m2 = cotangents(g, options);
    let mut choices = Choices::default();
    let mut candidates = vec![];
    for (id, n) in g.nodes().filter(|(_, n)| n.op.class() == NumericClass::Product) {
        if let Some(why) = refusal(g, n, pinned, &e5m2) {
            choices.refused.insert(n.name.clone(), why);
            continue;
        }
        // The second operand is written with its columns as rows.
        let operands =
            [(n.inputs[0], false), (n.inputs[1], true)].map(|(v, turn)| match swapped(g, v) {
                Some(of) => Copy { of, swapped: !turn },
                None => Copy { of: v, swapped: turn },
            });
        let gain = gain(g, n, prices);
        candidates.push(Candidate { node: id, operands, gain });
    }
    let chosen = if all { vec![true; candidates.len()] } else { pay(g, &candidates, prices) };
    let mut picked: FxHashMap<NodeId, &Candidate> = FxHashMap::default();
    for (c, yes) in candidates.iter().zip(chosen) {
        let name = g.node(c.node).name.clone();
        if yes {
            choices.taken.insert(name, c.gain);
            picked.insert(c.node, c);
        } else {
            let why = "fp8 would not pay for finding its scales and rounding its operands";
            choices.refused.insert(name, why.into());
        }
    }
    if picked.is_empty() {
        return (g.clone(), choices);
    }
    (Writer::new(g, &e5m2).write(&picked), choices)
}

/// What a product gains in FP8 by itself, ns.
fn gain(g: &Graph, n: &Node, prices: &Prices) -> f64 {
    let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
    let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
    let reads = |d: &dyn Fn(&TensorType) -> DType| -> f64 {
        x[..2].iter().map(|t| prices.traffic(t.shape.elements(), d(t))).sum()
    };
    let cost = |d: DType| prices.product(&n.op, &x, &y, d);
    let now = cost(x[0].dtype).map(|ns| ns + reads(&|t| t.dtype));
    let then = cost(DType::F8e4m3).map(|ns| ns + reads(&|_| DType::F8e4m3));
    now.zip(then).map_or(0.0, |(now, then)| now - then)
}

/// Which candidates pay for what they need: the closure of largest gain, by minimum cut (Picard,
/// "Maximal closure of a graph", 1976). A product needs its copies, a copy needs its tensor's
/// largest magnitude; each is paid once.
fn pay(g: &Graph, candidates: &[Candidate], prices: &Prices) -> Vec<bool> {
    use petgraph::graph::{DiGraph, NodeIndex};
    const ALWAYS: u64 = 1 << 50;
    let ps = |ns: f64| (ns.max(0.0) * 1e3).round() as u64;
    let launch = prices.target.launch_ns;
    let mut net: DiGraph<(), u64> = DiGraph::new();
    let (source, sink) = (net.add_node(()), net.add_node(()));
    let mut maxima: BTreeMap<ValueId, NodeIndex> = BTreeMap::new();
    let mut copies: BTreeMap<Copy, NodeIndex> = BTreeMap::new();
    let mut products = vec![];
    for c in candidates {
        let product = net.add_node(());
        net.add_edge(source, product, ps(c.gain));
        for copy in c.operands {
            let at = root(g, copy.of);
            let read = |v: ValueId| prices.traffic(g.shape(v).elements(), g.ty(at).dtype);
            let maximum = *maxima.entry(at).or_insert_with(|| {
                // Rows, then their maxima, then the scale.
                let x = net.add_node(());
                net.add_edge(x, sink, ps(read(at) + 3.0 * launch));
                x
            });
            let copied = *copies.entry(copy).or_insert_with(|| {
                let write = prices.traffic(g.shape(copy.of).elements(), DType::F8e4m3);
                let x = net.add_node(());
                net.add_edge(x, sink, ps(read(copy.of) + write + launch));
                net.add_edge(x, maximum, ALWAYS);
                x
            });
            net.add_edge(product, copied, ALWAYS);
        }
        products.push(product);
    }
    // What the source still reaches gains more than it costs.
    let reached = super::flow::maximum(&net, source, sink).reached(source);
    products.into_iter().map(|p| reached[p.index()]).collect()
}

/// Builds the graph with rounded operands.
struct Writer<'g> {
    g: &'g Graph,
    e5m2: &'g [bool],
    out: Graph,
    map: Vec<ValueId>,
    /// By root: the scale and its inverse.
    scales: FxHashMap<ValueId, (ValueId, ValueId)>,
    copies: FxHashMap<Copy, ValueId>,
    /// Copies seen with their last two axes swapped.
    turned: FxHashMap<ValueId, ValueId>,
    /// Values as they are before a cast, seen through the same views.
    originals: FxHashMap<ValueId, ValueId>,
}

impl<'g> Writer<'g> {
    fn new(g: &'g Graph, e5m2: &'g [bool]) -> Writer<'g> {
        let mut out = Graph::new(g.name.clone());
        out.vars = g.vars.clone();
        let map = vec![ValueId(u32::MAX); g.value_count()];
        let (scales, copies, turned, originals) = Default::default();
        Writer { g, e5m2, out, map, scales, copies, turned, originals }
    }

    fn write(mut self, picked: &FxHashMap<NodeId, &Candidate>) -> Graph {
        let g = self.g;
        for (id, n) in g.nodes() {
            let mut op = n.op.clone();
            let mut inputs: SmallVec<[ValueId; 4]> =
                n.inputs.iter().map(|v| self.map[v.0 as usize]).collect();
            if let (Some(c), Op::MatMul(m)) = (picked.get(&id), &n.op) {
                let [a, b] = c.operands;
                let (a_scale, b_scale) = (self.scale(a, n.region).1, self.scale(b, n.region).1);
                inputs[0] = self.operand(a, false, n.region);
                inputs[1] = self.operand(b, true, n.region);
                let name = format!("{}.descale", n.name);
                let factor =
                    self.scalar(Binary { f: BinaryOp::Mul }, &[a_scale, b_scale], name, n.region);
                inputs.push(factor);
                op = MatMul { scaled: true, ..m.clone() }.into();
            }
            let types = n.outputs.iter().map(|&v| g.ty(v).clone()).collect();
            let new = self.out.push(op, &inputs, types, n.name.clone(), n.region);
            for (old, new) in n.outputs.iter().zip(new) {
                self.map[old.0 as usize] = new;
            }
        }
        let rename = |rs: &[Result_]| -> Vec<Result_> {
            rs.iter()
                .map(|r| Result_ { name: r.name.clone(), value: self.map[r.value.0 as usize] })
                .collect()
        };
        (self.out.results, self.out.updates) = (rename(&g.results), rename(&g.updates));
        self.out.without_dead_nodes()
    }

    fn name(&self, v: ValueId) -> String {
        let def = self.g.def(v);
        match def.outputs.len() {
            1 => def.name.clone(),
            _ => format!("{}.{}", def.name, self.g.value(v).index),
        }
    }

    fn push(
        &mut self,
        op: impl Into<Op>,
        x: &[ValueId],
        ty: TensorType,
        name: String,
        region: Region,
    ) -> ValueId {
        self.out.push(op.into(), x, vec![ty], name, region)[0]
    }

    fn scalar(
        &mut self,
        op: impl Into<Op>,
        x: &[ValueId],
        name: String,
        region: Region,
    ) -> ValueId {
        self.push(op, x, TensorType::f32(Shape::default()), name, region)
    }

    fn format(&self, of: ValueId) -> DType {
        if self.e5m2[of.0 as usize] { DType::F8e5m2 } else { DType::F8e4m3 }
    }

    /// The scale of the tensor behind a copy, and its inverse: the largest magnitude over the
    /// format's largest value.
    fn scale(&mut self, copy: Copy, region: Region) -> (ValueId, ValueId) {
        let of = root(self.g, copy.of);
        if let Some(&scale) = self.scales.get(&of) {
            return scale;
        }
        let (x, name) = (self.map[of.0 as usize], self.name(of));
        let mut ty = TensorType::f32(self.g.shape(of).clone());
        let magnitude = Unary { f: UnaryOp::Abs };
        let mut largest = self.push(magnitude, &[x], ty.clone(), format!("{name}.abs"), region);
        // Row by row first: many rows keep a device busy, and a producer that works in rows takes
        // the first reduction along.
        let f = ReduceOp::Max;
        if let rank @ 2.. = ty.shape.rank() {
            ty.shape = ty.shape[..rank - 1].to_vec().into();
            let rows = Reduce { f, axes: vec![rank - 1] };
            let name = format!("{name}.amax.rows");
            largest = self.push(rows, &[largest], ty.clone(), name, region);
        }
        let all = Reduce { f, axes: (0..ty.shape.rank()).collect() };
        largest = self.scalar(all, &[largest], format!("{name}.amax"), region);
        let least = Const { data: ConstData::scalar(LEAST) };
        let least = self.scalar(least, &[], format!("{name}.amax.least"), region);
        let floor = Binary { f: BinaryOp::Max };
        let largest = self.scalar(floor, &[largest, least], format!("{name}.amax.floor"), region);
        let by = crate::ir::Real(1.0 / self.format(of).facts().max);
        let inverse =
            self.scalar(Scale { by }, &[largest], format!("{name}.scale.inverse"), region);
        let recip = Unary { f: UnaryOp::Recip };
        let scale = self.scalar(recip, &[inverse], format!("{name}.scale"), region);
        self.scales.insert(of, (scale, inverse));
        (scale, inverse)
    }

    /// An operand as the product sees it; `turn`: its columns are the rows of the copy.
    fn operand(&mut self, copy: Copy, turn: bool, region: Region) -> ValueId {
        let rounded = self.copy(copy, region);
        if !turn {
            return rounded;
        }
        if let Some(&v) = self.turned.get(&rounded) {
            return v;
        }
        let ty = self.out.ty(rounded).clone();
        let name = format!("{}.turned", self.out.def(rounded).name);
        let v = self.swap(rounded, ty, name, region);
        self.turned.insert(rounded, v);
        v
    }

    /// A value before it was cast, through the views that were seen of the cast.
    fn original(&mut self, v: ValueId, region: Region) -> ValueId {
        let def = self.g.def(v);
        if self.g.ty(v).dtype == self.g.ty(root(self.g, v)).dtype {
            return self.map[v.0 as usize];
        }
        if let Some(&o) = self.originals.get(&v) {
            return o;
        }
        let inner = self.original(def.inputs[0], region);
        let o = match def.op.lowering() {
            Lowering::View => {
                let ty = TensorType::new(self.out.ty(inner).dtype, self.g.shape(v).clone());
                let name = format!("{}.original", def.name);
                self.push(def.op.clone(), &[inner], ty, name, region)
            }
            _ => inner,
        };
        self.originals.insert(v, o);
        o
    }

    fn swap(&mut self, x: ValueId, mut ty: TensorType, name: String, region: Region) -> ValueId {
        let rank = ty.shape.rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        let (m, n) = (ty.shape[rank - 2], ty.shape[rank - 1]);
        (ty.shape[rank - 2], ty.shape[rank - 1]) = (n, m);
        self.push(Transpose { perm }, &[x], ty, name, region)
    }

    /// The rounded copy of a tensor, written in the order of its own axes or with them swapped.
    fn copy(&mut self, copy: Copy, region: Region) -> ValueId {
        if let Some(&v) = self.copies.get(&copy) {
            return v;
        }
        let scale = self.scale(copy, region).0;
        let format = self.format(copy.of);
        let mut name = self.name(copy.of);
        let mut x = self.original(copy.of, region);
        if copy.swapped {
            name += ".swapped";
            let ty = self.out.ty(x).clone();
            x = self.swap(x, ty, name.clone(), region);
        }
        let shape = self.out.shape(x).clone();
        let ty = TensorType::f32(shape.clone());
        let scaled = self.push(ScaleBy {}, &[scale, x], ty, format!("{name}.scaled"), region);
        let ty = TensorType::new(format, shape);
        let rounded = self.push(Cast {}, &[scaled], ty, format!("{name}.{format}"), region);
        self.copies.insert(copy, rounded);
        rounded
    }
}

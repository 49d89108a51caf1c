//! TensorFlow's `auto_mixed_precision` graph pass: painting the joint graph, then casts wherever
//! the paint changes. Follows `auto_mixed_precision.cc` of TensorFlow 2.21, pass by pass.

use super::autocast::{is_bias, is_mean};
use super::lists::{self, Grappler};
use super::{Marks, deciding, follows, primal};
use crate::ir::{ConstData, Graph, Node, NodeId, Region, Result_, TensorType, ValueId};
use crate::ops::{Binary, Broadcast, Cast, Const, Lowering, Op};
use precast_plan::{BinaryOp, DType, ReduceOp};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Casts in a joint graph whose reals are all f32. The result is still all f32; [`super::retype`]
/// comes next.
pub fn grappler(g: &Graph, half: DType) -> (Graph, Marks) {
    let painter = Painter::new(g, half);
    let allow = painter.paint();
    let mut c = Converter {
        g,
        half,
        painter: &painter,
        allow: &allow,
        out: Graph::new(g.name.clone()),
        map: Vec::with_capacity(g.value_count()),
        casts: FxHashMap::default(),
        marks: Marks::default(),
    };
    c.out.vars = g.vars.clone();
    for (id, n) in g.nodes() {
        c.node(id.0 as usize, n);
    }
    // What is returned and what is kept between steps is read by no painted operation.
    let mut rename = |rs: &[Result_]| -> Vec<Result_> {
        rs.iter()
            .map(|r| {
                let have = c.narrow(r.value);
                let value = c.read(r.value, false, have);
                Result_ { name: r.name.clone(), value }
            })
            .collect()
    };
    let (results, updates) = (rename(&g.results), rename(&g.updates));
    c.out.results = results;
    c.out.updates = updates;
    (c.out, c.marks)
}

struct Painter {
    list: Vec<Grappler>,
    mean: Vec<bool>,
    /// Edges between operations through values of the painted type attribute.
    inputs: Vec<SmallVec<[u32; 4]>>,
    outputs: Vec<Vec<u32>>,
}

impl Painter {
    fn new(g: &Graph, half: DType) -> Painter {
        let uses: Vec<Vec<u32>> =
            g.uses().iter().map(|u| u.iter().map(|x| x.0.0).collect()).collect();
        let by_name: BTreeMap<&str, &Node> = g.nodes().map(|(_, n)| (n.name.as_str(), n)).collect();
        let count = g.node_count();
        let mut p = Painter {
            list: Vec::with_capacity(count),
            mean: Vec::with_capacity(count),
            inputs: vec![SmallVec::new(); count],
            outputs: vec![Vec::new(); count],
        };
        for (id, n) in g.nodes() {
            let mean = n.region == Region::Forward && is_mean(g, &uses, n);
            let real = n.outputs.iter().any(|&v| g.ty(v).is_real());
            let list = match n.region {
                _ if !real => Grappler::Unlisted,
                Region::Update => Grappler::Unlisted,
                _ => lists::grappler(&n.op, half, mean, bias_grad(g, &by_name, &uses, n)),
            };
            p.mean.push(mean);
            p.list.push(list);
            for &i in &deciding(&n.op, n.inputs.len()) {
                let v = n.inputs[i];
                let from = g.value(v);
                if g.ty(v).is_real() && follows(&g.node(from.node).op, from.index as usize) {
                    p.inputs[id.0 as usize].push(from.node.0);
                    p.outputs[from.node.0 as usize].push(id.0);
                }
            }
        }
        p
    }

    fn all(&self, of: &[Grappler]) -> impl Iterator<Item = usize> {
        let of = of.to_vec();
        (0..self.list.len()).filter(move |&i| of.contains(&self.list[i]))
    }

    /// Depth-first from `root`, into what `enter` accepts; everything visited is set in `seen`.
    fn visit(
        &self,
        root: usize,
        seen: &mut [bool],
        (back, forth): (bool, bool),
        enter: impl Fn(usize) -> bool,
    ) {
        seen[root] = true;
        let mut stack = vec![root];
        while let Some(n) = stack.pop() {
            let back = back.then(|| self.inputs[n].iter().copied()).into_iter().flatten();
            let forth = forth.then(|| self.outputs[n].iter().copied()).into_iter().flatten();
            for m in back.chain(forth) {
                if !seen[m as usize] && enter(m as usize) {
                    seen[m as usize] = true;
                    stack.push(m as usize);
                }
            }
        }
    }

    /// Which operations run in 16 bits.
    fn paint(&self) -> Vec<bool> {
        use Grappler::{Allow, Clear, Deny, Infer};
        let none = || vec![false; self.list.len()];
        let is = |i: usize, of: &[Grappler]| of.contains(&self.list[i]);
        // 1: what is on the allow list.
        let mut allow = none();
        self.all(&[Allow]).for_each(|i| allow[i] = true);
        // 2: deny flows forward, through infer, and through clear that leads to deny or infer.
        let mut leads = none();
        for root in self.all(&[Deny, Infer]) {
            self.visit(root, &mut leads, (true, false), |i| is(i, &[Clear]));
        }
        let mut deny = none();
        for root in self.all(&[Deny]) {
            self.visit(root, &mut deny, (false, true), |i| leads[i]);
        }
        // 3: infer and clear between allow become allow.
        let mut after = none();
        for root in self.all(&[Allow]) {
            self.visit(root, &mut after, (false, true), |i| is(i, &[Infer, Clear]) && !deny[i]);
        }
        let mut before = none();
        for root in self.all(&[Allow]) {
            self.visit(root, &mut before, (true, false), |i| after[i] && !is(i, &[Allow]));
        }
        (0..allow.len()).filter(|&i| before[i]).for_each(|i| allow[i] = true);
        // 4: infer directly after allow, unless denied.
        for i in self.all(&[Infer]).filter(|&i| !deny[i]) {
            if self.inputs[i].iter().any(|&f| allow[f as usize]) {
                allow[i] = true;
            }
        }
        // 5: clear that touches allow.
        let roots: Vec<usize> = (0..allow.len()).filter(|&i| allow[i]).collect();
        let mut touched = none();
        for root in roots {
            let enter = |i: usize| !allow[i] && !deny[i] && is(i, &[Clear]);
            self.visit(root, &mut touched, (true, true), enter);
        }
        // 6, taking back what has no kernel in the format, finds nothing: every kernel here reads
        // and writes both formats.
        (0..allow.len()).for_each(|i| allow[i] |= touched[i]);
        allow
    }

    fn reason(&self, i: usize, allow: bool) -> &'static str {
        match (self.list[i], allow) {
            (Grappler::Allow, _) => "on the allow list",
            (Grappler::Deny, _) => "on the deny list",
            (Grappler::Unlisted, _) => "on no list",
            (Grappler::Infer, true) => "infer: beside an allowed operation",
            (Grappler::Infer, false) => {
                "infer: after a denied operation, or far from an allowed one"
            }
            (Grappler::Clear, true) => "clear: touches an allowed operation",
            (Grappler::Clear, false) => "clear: touches no allowed operation",
        }
    }
}

/// Whether `n` is the gradient of a bias, which TensorFlow computes with `BiasAddGrad`.
fn bias_grad(g: &Graph, by_name: &BTreeMap<&str, &Node>, uses: &[Vec<u32>], n: &Node) -> bool {
    if !matches!(&n.op, Op::Reduce(r) if r.f == ReduceOp::Sum) || n.region != Region::Backward {
        return false;
    }
    let Some(broadcast) = primal(g, by_name, n) else { return false };
    matches!(broadcast.op, Op::Broadcast(_))
        && uses[broadcast.outputs[0].0 as usize]
            .iter()
            .any(|&reader| is_bias(g, g.node(NodeId(reader))))
}

struct Converter<'a> {
    g: &'a Graph,
    half: DType,
    painter: &'a Painter,
    allow: &'a [bool],
    out: Graph,
    map: Vec<ValueId>,
    /// One cast a value and direction, shared by its readers: (value, to 16 bits).
    casts: FxHashMap<(ValueId, bool), ValueId>,
    marks: Marks,
}

impl Converter<'_> {
    fn node(&mut self, i: usize, n: &Node) {
        let deciding = deciding(&n.op, n.inputs.len());
        let inputs: SmallVec<[ValueId; 4]> = n
            .inputs
            .iter()
            .enumerate()
            .map(|(k, &v)| {
                let have = self.narrow(v);
                // What does not decide is read in f32.
                self.read(v, self.allow[i] && deciding.contains(&k), have)
            })
            .collect();
        if !matches!(n.op.lowering(), Lowering::Leaf) {
            let why = self.painter.reason(i, self.allow[i]);
            self.marks.reasons.insert(n.name.clone(), why);
        }
        let types: Vec<TensorType> = n.outputs.iter().map(|&v| self.g.ty(v).clone()).collect();
        // The factor is an operand in TensorFlow, a literal that gets a cast of its own.
        if let Op::Scale(s) = &n.op
            && self.allow[i]
            && !self.painter.mean[i]
        {
            let shape = &types[0].shape;
            let one = vec![1; shape.rank()];
            let data = ConstData::from_f32(one.clone(), &[s.by.0 as f32]);
            let c = self.push(Const { data }, &[], one.clone(), format!("{}.factor", n.name), n);
            let name = format!("{}.factor.{}", n.name, self.half);
            self.marks.casts.insert(name.clone(), self.half);
            let c = self.push(Cast {}, &[c], one, name, n);
            let wide = Broadcast { shape: shape.to_vec() };
            let c = self.push(wide, &[c], shape.to_vec(), format!("{}.factors", n.name), n);
            let y = Binary { f: BinaryOp::Mul };
            let y = self.push(y, &[inputs[0], c], shape.to_vec(), n.name.clone(), n);
            self.map.push(y);
            return;
        }
        self.map.extend(self.out.push(n.op.clone(), &inputs, types, n.name.clone(), n.region));
    }

    fn push(
        &mut self,
        op: impl Into<Op>,
        x: &[ValueId],
        shape: Vec<usize>,
        name: String,
        n: &Node,
    ) -> ValueId {
        self.out.push(op.into(), x, vec![TensorType::f32(shape)], name, n.region)[0]
    }

    /// Whether a value is written in 16 bits.
    fn narrow(&self, v: ValueId) -> bool {
        let from = self.g.value(v);
        self.allow[from.node.0 as usize] && follows(&self.g.node(from.node).op, from.index as usize)
    }

    /// A value as its reader is painted.
    fn read(&mut self, v: ValueId, want: bool, have: bool) -> ValueId {
        let real = self.g.ty(v).is_real();
        let scalar_const = matches!(&self.g.def(v).op, Op::Const(c) if c.data.shape.rank() == 0);
        if want == have || !real || scalar_const {
            return self.map[v.0 as usize];
        }
        if let Some(&known) = self.casts.get(&(v, want)) {
            return known;
        }
        let def = self.g.def(v);
        let to = if want { self.half } else { DType::F32 };
        let name = match self.g.value(v).index {
            0 => format!("{}.cast.{to}", def.name),
            i => format!("{}.{i}.cast.{to}", def.name),
        };
        self.marks.casts.insert(name.clone(), to);
        let (shape, from) = (self.g.shape(v).to_vec(), self.map[v.0 as usize]);
        let new = self.push(Cast {}, &[from], shape, name, def);
        self.casts.insert((v, want), new);
        new
    }
}

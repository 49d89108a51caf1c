//! Which operations could share a kernel, whatever formats are chosen.
//!
//! The answer errs on the side of yes: two operations that *cannot* share one never do, in any
//! schedule. The rules are those that the forms of kernels impose:
//!
//! - what is no row program or product runs alone, and a product takes company only on targets
//!   whose products end in any program, but for a gradient that a library's product adds to an
//!   accumulator (`added.rs`), and the derivative of a GELU by tanh, which a library's product ends in
//!   where it makes that derivative's cotangent;
//! - no third kernel lies on a path between two operations of one kernel, so nothing that is
//!   separated by a kernel that runs alone, or by a tensor put together from parts, meets;
//! - a kernel grows along values that one of its operations makes and another reads, so two that
//!   only read the same are together where such values lead from one to the other; programs over a
//!   single element join whatever they are, and so may readers of what a product computes behind
//!   its sums, since that could be a row program (`egraph/dominated.rs`);
//! - a kernel has one iteration space of `kept` by `reduced` points. Reductions in it have that
//!   space; other operations have all its points, or one a row.

use super::added::added;
use crate::ir::{Graph, NodeId, Phase, ValueId};
use crate::ops::activation::Act;
use crate::ops::matmul::Fused;
use crate::ops::{ActivateGrad, Lowering, Op};
use crate::precision::storages;
use precast_plan::Target;
use rustc_hash::{FxHashMap, FxHashSet};

/// What a node becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs nothing of its own: leaves, views.
    Nothing,
    /// Written in parts: what reads it cannot run where the parts are written.
    Parts,
    /// May be copied or computed, or may vanish.
    Maybe,
    Rows,
    Product,
    /// A kernel of its own.
    Alone,
}

/// The iteration space of a node that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub kept: usize,
    /// 1 where nothing is reduced.
    pub reduced: usize,
}

/// One bit for every pair of nodes.
struct Bits {
    words: usize,
    rows: Vec<u64>,
}

impl Bits {
    fn new(n: usize) -> Bits {
        let words = n.div_ceil(64);
        Bits { words, rows: vec![0; words * n] }
    }
    fn set(&mut self, i: usize, j: usize) {
        self.rows[i * self.words + j / 64] |= 1 << (j % 64);
    }
    fn get(&self, i: usize, j: usize) -> bool {
        self.rows[i * self.words + j / 64] >> (j % 64) & 1 == 1
    }
    /// Adds the bits of row `from` to row `to`, which is another row.
    fn add(&mut self, to: usize, from: usize) {
        for w in 0..self.words {
            self.rows[to * self.words + w] |= self.rows[from * self.words + w];
        }
    }
}

/// What products may end in, beside what their own operations fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Any row program without reduction.
    Any,
    /// The derivative of a GELU by tanh whose cotangent the product is.
    Gradients,
    Nothing,
}

impl Ends {
    /// `half`: whether products may be in 16 bits, which a library's derivative is for.
    pub fn of(target: &Target, half: bool) -> Ends {
        match (target.any_epilogue(), half) {
            (true, _) => Ends::Any,
            (false, true) => Ends::Gradients,
            (false, false) => Ends::Nothing,
        }
    }
}

/// See the module.
pub struct Sharing {
    pub kind: Vec<Kind>,
    pub space: Vec<Space>,
    phase: Vec<Phase>,
    /// Position among the nodes that are not [`Kind::Nothing`].
    dense: Vec<usize>,
    /// Node `j` is reached from `i` through a node that parts them.
    parted: Bits,
    /// (kept, all points) of every reduction.
    spaces: FxHashSet<(usize, usize)>,
    /// Kept points of reductions over one element, whose kernels have nothing but rows.
    units: FxHashSet<usize>,
    epilogues: bool,
    /// Products and the additions to accumulators that they could end in, by index.
    added: FxHashSet<(usize, usize)>,
    /// Products and the derivatives that they could end in, by index.
    gradients: FxHashSet<(usize, usize)>,
    /// Nodes that could share a kernel and of which one reads what the other makes, or writes the
    /// variable that the other reads.
    neighbours: Vec<Vec<usize>>,
}

impl Sharing {
    /// `scales`: whether factors may be anywhere, as rules move them, so that a multiplication by one
    /// may vanish.
    pub fn new(g: &Graph, ends: Ends, scales: bool) -> Sharing {
        let epilogues = ends == Ends::Any;
        let n = g.node_count();
        let storage = storages(g);
        let of = |node: &crate::ir::Node| match &node.op {
            Op::ScaleBy(_) if scales => Kind::Maybe,
            _ => kind(g, node),
        };
        let mut kind: Vec<Kind> = g.nodes().map(|(_, node)| of(node)).collect();
        if !epilogues {
            sums_of_operands(g, &storage, &mut kind);
        }
        let mut dense = vec![usize::MAX; n];
        let mut count = 0;
        for (i, k) in kind.iter().enumerate() {
            if *k != Kind::Nothing {
                dense[i] = count;
                count += 1;
            }
        }
        let (mut space, mut spaces) = (vec![Space::default(); n], FxHashSet::default());
        let mut units = FxHashSet::default();
        let mut next: Vec<Vec<(usize, bool)>> = vec![vec![]; n];
        for (id, node) in g.nodes() {
            let i = id.0 as usize;
            match kind[i] {
                // A sum that a product may do is a row program where it does not.
                Kind::Rows | Kind::Maybe if node.op.lowering() == Lowering::Rows => {
                    let x: Vec<_> = node.inputs.iter().map(|&v| g.ty(v)).collect();
                    let y: Vec<_> = node.outputs.iter().map(|&v| g.ty(v)).collect();
                    let spec = node.op.def().row_spec(&x, &y);
                    let kept = spec.dims.len() - spec.reduced;
                    let s = Space {
                        kept: spec.dims[..kept].iter().product(),
                        reduced: spec.dims[kept..].iter().product(),
                    };
                    if kind[i] == Kind::Rows {
                        space[i] = s;
                    }
                    if s.reduced > 1 {
                        spaces.insert((s.kept, s.kept * s.reduced));
                    } else if spec.reduced > 0 {
                        units.insert(s.kept);
                    }
                }
                Kind::Product => {
                    space[i] = Space { kept: g.shape(node.outputs[0]).elements(), reduced: 1 };
                }
                _ => {}
            }
            if kind[i] == Kind::Nothing {
                continue;
            }
            for (at, v) in node.inputs.iter().enumerate() {
                let from = g.value(storage[v.0 as usize]).node.0 as usize;
                if kind[from] != Kind::Nothing {
                    // Operands of a product are in memory when it starts.
                    next[from].push((i, kind[i] == Kind::Product && at < 2));
                }
            }
        }
        let (mut reach, mut parted) = (Bits::new(count), Bits::new(count));
        for i in (0..n).rev().filter(|&i| kind[i] != Kind::Nothing) {
            let a = dense[i];
            for &(j, operand) in &next[i] {
                let b = dense[j];
                reach.set(a, b);
                reach.add(a, b);
                parted.add(a, b);
                if matches!(kind[j], Kind::Alone | Kind::Product | Kind::Parts) {
                    for w in 0..reach.words {
                        parted.rows[a * parted.words + w] |= reach.rows[b * reach.words + w];
                    }
                }
                if operand {
                    parted.set(a, b);
                }
            }
        }
        let phase = g.nodes().map(|(_, node)| node.region.phase()).collect();
        let mut s = Sharing {
            kind,
            space,
            phase,
            dense,
            parted,
            spaces,
            units,
            epilogues,
            added: FxHashSet::default(),
            gradients: FxHashSet::default(),
            neighbours: vec![],
        };
        if !epilogues {
            s.added = added(g, &storage, &s.kind);
        }
        if ends == Ends::Gradients {
            s.gradients = gradients(g, &storage, &s.kind);
        }
        s.neighbours = s.adjacent(g, &storage, &next);
        s
    }

    fn adjacent(
        &self,
        g: &Graph,
        storage: &[ValueId],
        next: &[Vec<(usize, bool)>],
    ) -> Vec<Vec<usize>> {
        let mut out: Vec<Vec<usize>> = vec![vec![]; g.node_count()];
        let mut join = |i: usize, j: usize| {
            let maybe = self.kind[i] == Kind::Maybe || self.kind[j] == Kind::Maybe;
            let phase = self.phase[i] == self.phase[j];
            if i != j && phase && (maybe || self.may(NodeId(i as u32), NodeId(j as u32))) {
                out[i].push(j);
                out[j].push(i);
            }
        };
        for (i, list) in next.iter().enumerate() {
            list.iter().for_each(|&(j, _)| join(i, j));
        }
        // What a product does behind its sums may be a row program instead, from which kernels
        // grow to everything that reads it.
        for (id, n) in g.nodes() {
            if matches!(&n.op, Op::MatMul(m) if m.fused != Fused::None) {
                let list = &next[id.0 as usize];
                for (at, &(a, _)) in list.iter().enumerate() {
                    list[..at].iter().for_each(|&(b, _)| join(a, b));
                }
            }
        }
        let writer: FxHashMap<&str, usize> = g
            .updates
            .iter()
            .map(|u| (u.name.as_str(), storage[u.value.0 as usize]))
            .map(|(name, v)| (name, g.value(v).node.0 as usize))
            .collect();
        for (id, node) in g.nodes() {
            for v in &node.inputs {
                if let Op::Var(var) = &g.def(storage[v.0 as usize]).op
                    && let Some(&w) = writer.get(var.name.as_str())
                    && self.kind[id.0 as usize] != Kind::Nothing
                    && self.kind[w] != Kind::Nothing
                {
                    join(id.0 as usize, w);
                }
            }
        }
        for list in &mut out {
            list.sort_unstable();
            list.dedup();
        }
        out
    }

    /// Nodes next to one another, see [`Sharing::together`].
    pub fn neighbours(&self, i: usize) -> &[usize] {
        &self.neighbours[i]
    }

    /// Whether two nodes could be in one kernel that grew from one to the other.
    pub fn together(&self, a: NodeId, b: NodeId) -> bool {
        if !self.may(a, b) {
            return false;
        }
        let (a, b) = (a.0 as usize, b.0 as usize);
        let single = |i: usize| self.space[i] == Space { kept: 1, reduced: 1 };
        if a == b || (single(a) && single(b)) {
            return true;
        }
        let both = |x: usize| {
            let node = NodeId(x as u32);
            self.kind[x] == Kind::Maybe
                || (self.may(node, NodeId(a as u32)) && self.may(node, NodeId(b as u32)))
        };
        let mut stack = vec![a];
        let mut seen = FxHashSet::from_iter([a]);
        while let Some(i) = stack.pop() {
            if i == b {
                return true;
            }
            let next = self.neighbours[i].iter().copied().filter(|&j| both(j));
            stack.extend(next.filter(|&j| seen.insert(j)));
        }
        false
    }

    /// Whether two nodes could be in one kernel.
    pub fn may(&self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (a.0.min(b.0) as usize, a.0.max(b.0) as usize);
        if a == b {
            return true;
        }
        let company = |i: usize| match self.kind[i] {
            Kind::Rows => true,
            Kind::Product => self.epilogues,
            _ => false,
        };
        let products = [a, b].map(|i| self.kind[i] == Kind::Product);
        if self.phase[a] != self.phase[b] || products == [true; 2] {
            return false;
        }
        if (!company(a) || !company(b)) && !self.ends_in(a, b) {
            return false;
        }
        let (x, y) = (self.space[a], self.space[b]);
        let (px, py) = (x.kept * x.reduced, y.kept * y.reduced);
        let fits = match (x.reduced > 1, y.reduced > 1) {
            _ if products != [false; 2] => x.reduced == 1 && y.reduced == 1 && px == py,
            (true, true) => x == y,
            (true, false) => py == x.kept || py == px,
            (false, true) => px == y.kept || px == py,
            (false, false) => px == py || self.spaces.contains(&(px.min(py), px.max(py))),
        };
        // Indices are a topological order, so only the earlier one can lead to the later.
        fits && !self.parted.get(self.dense[a], self.dense[b])
    }

    /// Whether a library's product may end in an operation.
    fn ends_in(&self, product: usize, operation: usize) -> bool {
        let pair = (product, operation);
        self.added.contains(&pair) || self.gradients.contains(&pair)
    }

    /// Whether a product stores its own results in every schedule.
    pub fn stores(&self, product: NodeId) -> bool {
        let a = product.0 as usize;
        !self.epilogues && self.neighbours[a].iter().all(|&b| !self.ends_in(a, b))
    }

    /// Whether a node without reduction could be computed once a row of a kernel it shares.
    pub fn may_be_of_rows(&self, a: NodeId) -> bool {
        let s = self.space[a.0 as usize];
        let rows = self.units.contains(&s.kept) || self.spaces.iter().any(|&(k, _)| k == s.kept);
        s.reduced == 1 && rows
    }

    /// Whether a kernel that neither can share lies between two nodes, the earlier one first.
    pub fn parted(&self, a: NodeId, b: NodeId) -> bool {
        self.parted.get(self.dense[a.0 as usize], self.dense[b.0 as usize])
    }
}

fn kind(g: &Graph, node: &crate::ir::Node) -> Kind {
    match node.op.lowering() {
        Lowering::Leaf | Lowering::View => Kind::Nothing,
        Lowering::Assemble => {
            let x: Vec<_> = node.inputs.iter().map(|&v| g.ty(v)).collect();
            let covered: usize = x.iter().map(|t| t.shape.elements()).sum();
            let whole = covered == g.shape(node.outputs[0]).elements();
            if whole && x.len() == 1 { Kind::Maybe } else { Kind::Parts }
        }
        Lowering::Rows if sums_parts(g, node) => Kind::Maybe,
        Lowering::Rows => Kind::Rows,
        Lowering::Kernel => match node.op {
            Op::MatMul(_) | Op::Conv2d(_) | Op::Conv2dDataGrad(_) | Op::Conv2dFilterGrad(_) => {
                Kind::Product
            }
            _ => Kind::Alone,
        },
    }
}

/// Derivatives of a GELU by tanh with the products that make their cotangents: up to views, and to what
/// may vanish in between.
fn gradients(g: &Graph, storage: &[ValueId], kind: &[Kind]) -> FxHashSet<(usize, usize)> {
    let mut found = FxHashSet::default();
    for (id, n) in g.nodes() {
        if n.op != Op::ActivateGrad(ActivateGrad { act: Act::GeluTanh }) {
            continue;
        }
        let mut stack = vec![n.inputs[1]];
        let mut seen = FxHashSet::default();
        while let Some(v) = stack.pop() {
            let from = g.value(storage[v.0 as usize]).node;
            let def = g.node(from);
            match kind[from.0 as usize] {
                Kind::Product if matches!(def.op, Op::MatMul(_)) => {
                    found.insert((from.0 as usize, id.0 as usize));
                }
                Kind::Maybe => stack.extend(def.inputs.iter().filter(|v| seen.insert(v.0))),
                _ => {}
            }
        }
    }
    found
}

/// Products of a vendor's library may sum their operands on the way.
fn sums_of_operands(g: &Graph, storage: &[ValueId], kind: &mut [Kind]) {
    let mut operand = vec![false; g.value_count()];
    for (_, n) in g.nodes().filter(|(_, n)| matches!(n.op, Op::MatMul(_))) {
        n.inputs.iter().take(2).for_each(|v| operand[storage[v.0 as usize].0 as usize] = true);
    }
    for (id, n) in g.nodes() {
        let summed = |v: &ValueId| operand[storage[v.0 as usize].0 as usize];
        if matches!(n.op, Op::Reduce(_)) && n.inputs.iter().any(summed) {
            kind[id.0 as usize] = Kind::Maybe;
        }
    }
}

/// A sum of tensors made of parts may itself be written in parts and never be computed.
fn sums_parts(g: &Graph, node: &crate::ir::Node) -> bool {
    let parts = |v: &ValueId| {
        let def = g.def(*v);
        def.op.lowering() == Lowering::Assemble
            || matches!(def.op, Op::Binary(_)) && sums_parts(g, def)
    };
    matches!(&node.op, Op::Binary(b) if b.f == precast_plan::BinaryOp::Add)
        && node.inputs.iter().all(parts)
}

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
use super::company::Company;
use crate::ir::reach::{Forest, Sets};
use crate::ir::{Graph, NodeId, Phase, ValueId};
use crate::ops::activation::Act;
use crate::ops::matmul::Fused;
use crate::ops::{ActivateGrad, Lowering, Op};
use crate::precision::storages;
use crate::work::Work;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Space {
    pub kept: usize,
    /// 1 where nothing is reduced.
    pub reduced: usize,
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

/// What a node leads to through a node that parts the two.
pub struct Parted {
    forest: Forest,
    sets: Sets,
    /// One more than the last node, where edges are followed backwards.
    turned: Option<usize>,
}

impl Parted {
    /// `next`: edges, with whether they part what they join. `parts`: whether a node does.
    fn new(
        next: &[Vec<(usize, bool)>],
        turned: Option<usize>,
        parts: impl Fn(usize) -> bool,
    ) -> Parted {
        let edges: Vec<Vec<usize>> =
            next.iter().map(|list| list.iter().map(|e| e.0).collect()).collect();
        let forest = Forest::new(&edges);
        let reach = forest.reach(&edges);
        let sets = forest.sets(next.len(), |i, found, parted| {
            for &(j, operand) in &next[i] {
                found.extend_from_slice(parted.spans(j));
                if parts(j) || operand {
                    found.extend_from_slice(reach.spans(j));
                }
                if operand {
                    found.push(forest.point(j));
                }
            }
        });
        Parted { forest, sets, turned }
    }

    fn index(&self, node: usize) -> usize {
        self.turned.map_or(node, |n| n - 1 - node)
    }

    pub fn has(&self, from: usize, to: usize) -> bool {
        self.sets.holds(self.index(from), self.place(to))
    }

    /// The number of a node, and the intervals of numbers of what is parted from it.
    pub fn place(&self, node: usize) -> u32 {
        self.forest.place(self.index(node))
    }
    pub fn spans(&self, node: usize) -> &[(u32, u32)] {
        self.sets.spans(self.index(node))
    }
}

/// See the module.
pub struct Sharing {
    pub kind: Vec<Kind>,
    pub space: Vec<Space>,
    phase: Vec<Phase>,
    /// By node: what is reached from it through a node that parts them.
    after: Parted,
    /// By node: what it is reached from so.
    before: Parted,
    /// (kept, all points) of every reduction.
    spaces: FxHashSet<(usize, usize)>,
    /// The same: all points by what is kept, and the other way round, ascending.
    by_kept: FxHashMap<usize, Vec<usize>>,
    by_points: FxHashMap<usize, Vec<usize>>,
    /// Kept points of reductions over one element, whose kernels have nothing but rows.
    units: FxHashSet<usize>,
    epilogues: bool,
    /// Products and the additions to accumulators that they could end in, by index.
    added: FxHashSet<(usize, usize)>,
    /// Products and the derivatives that they could end in, by index.
    gradients: FxHashSet<(usize, usize)>,
    /// The operations of both.
    ends: FxHashSet<usize>,
    /// Nodes that could share a kernel and of which one reads what the other makes, or writes the
    /// variable that the other reads.
    neighbours: Vec<Vec<usize>>,
    company: Company,
}

impl Sharing {
    /// `scales`: whether factors may be anywhere, as rules move them, so that a multiplication by one
    /// may vanish.
    pub fn new(g: &Graph, ends: Ends, scales: bool) -> Sharing {
        let epilogues = ends == Ends::Any;
        let n = g.node_count();
        let storage = storages(g);
        let parts = sums_of_parts(g);
        let of = |(id, node): (NodeId, &crate::ir::Node)| match &node.op {
            Op::ScaleBy(_) if scales => Kind::Maybe,
            _ => kind(g, node, parts[id.0 as usize]),
        };
        let mut kind: Vec<Kind> = g.nodes().map(of).collect();
        if !epilogues {
            sums_of_operands(g, &storage, &mut kind);
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
        let parts = |i: usize| matches!(kind[i], Kind::Alone | Kind::Product | Kind::Parts);
        let after = Parted::new(&next, None, parts);
        // The same of the graph turned round.
        let mut last: Vec<Vec<(usize, bool)>> = vec![vec![]; n];
        for (i, list) in next.iter().enumerate().rev() {
            list.iter().for_each(|&(j, operand)| last[n - 1 - j].push((n - 1 - i, operand)));
        }
        let before = Parted::new(&last, Some(n), |i| parts(n - 1 - i));
        let mut by_kept: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        let mut by_points: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        let mut all: Vec<(usize, usize)> = spaces.iter().copied().collect();
        all.sort_unstable();
        for (kept, points) in all {
            by_kept.entry(kept).or_default().push(points);
            by_points.entry(points).or_default().push(kept);
        }
        let phase = g.nodes().map(|(_, node)| node.region.phase()).collect();
        let mut s = Sharing {
            kind,
            space,
            phase,
            after,
            before,
            by_kept,
            by_points,
            spaces,
            units,
            epilogues,
            added: FxHashSet::default(),
            gradients: FxHashSet::default(),
            ends: FxHashSet::default(),
            neighbours: vec![],
            company: Company::default(),
        };
        if !epilogues {
            s.added = added(g, &storage, &s.kind);
        }
        if ends == Ends::Gradients {
            s.gradients = gradients(g, &storage, &s.kind);
        }
        s.ends = s.added.iter().chain(&s.gradients).map(|p| p.1).collect();
        s.neighbours = s.adjacent(g, &storage, &next);
        s.company = Company::new(&s, &next);
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

    /// Spaces that fit in one kernel with a space.
    pub fn spaces_with(&self, s: Space) -> Vec<Space> {
        let plain = |kept: usize| Space { kept, reduced: 1 };
        if s.reduced > 1 {
            return vec![s, plain(s.kept), plain(s.kept * s.reduced)];
        }
        let mut out = vec![s];
        for &points in self.by_kept.get(&s.kept).into_iter().flatten() {
            out.extend([plain(points), Space { kept: s.kept, reduced: points / s.kept }]);
        }
        for &kept in self.by_points.get(&s.kept).into_iter().flatten() {
            out.extend([plain(kept), Space { kept, reduced: s.kept / kept }]);
        }
        out
    }

    /// Reductions that fit elements in so many kept points: (kept, reduced) of those that have them as
    /// their points, then of those that have them as their rows.
    pub fn reductions_of(&self, kept: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let points = self.by_points.get(&kept).into_iter().flatten();
        let rows = self.by_kept.get(&kept).into_iter().flatten();
        points.map(move |&k| (k, kept / k)).chain(rows.map(move |&p| (kept, p / kept)))
    }

    /// Whether an operation may be what some product ends in.
    pub fn ends_products(&self, operation: usize) -> bool {
        self.epilogues || self.ends.contains(&operation)
    }

    /// What is parted from a node behind it, and before it.
    pub fn parted_after(&self) -> &Parted {
        &self.after
    }
    pub fn parted_before(&self) -> &Parted {
        &self.before
    }

    /// The schedule that a node runs in.
    pub fn phase(&self, i: usize) -> Phase {
        self.phase[i]
    }

    /// See `Company`.
    pub fn company(&self) -> &Company {
        &self.company
    }

    /// Nodes next to one another, see [`Sharing::together`].
    pub fn neighbours(&self, i: usize) -> &[usize] {
        &self.neighbours[i]
    }

    /// Whether two nodes could be in one kernel that grew from one to the other.
    pub fn together(&self, a: NodeId, b: NodeId) -> bool {
        Work::Bound.add(1);
        if !self.may(a, b) {
            return false;
        }
        let (a, b) = (a.0 as usize, b.0 as usize);
        let single = |i: usize| self.space[i] == Space { kept: 1, reduced: 1 };
        if a == b || (single(a) && single(b)) || self.company.surely(a, b) {
            return true;
        }
        if !self.company.joined(a, b) {
            return false;
        }
        if self.neighbours[a].binary_search(&b).is_ok() {
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
            Work::Bound.add(1 + self.neighbours[i].len());
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
        fits && !self.after.has(a, b)
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
        self.after.has(a.0 as usize, b.0 as usize)
    }
}

/// `of_parts`: whether the node sums tensors that are put together from parts.
fn kind(g: &Graph, node: &crate::ir::Node, of_parts: bool) -> Kind {
    match node.op.lowering() {
        Lowering::Leaf | Lowering::View => Kind::Nothing,
        Lowering::Assemble => {
            let x: Vec<_> = node.inputs.iter().map(|&v| g.ty(v)).collect();
            let covered: usize = x.iter().map(|t| t.shape.elements()).sum();
            let whole = covered == g.shape(node.outputs[0]).elements();
            if whole && x.len() == 1 { Kind::Maybe } else { Kind::Parts }
        }
        Lowering::Rows if of_parts => Kind::Maybe,
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

/// By node: a sum of tensors made of parts, which may itself be written in parts and never be computed.
fn sums_of_parts(g: &Graph) -> Vec<bool> {
    let mut out = vec![false; g.node_count()];
    for (id, node) in g.nodes() {
        let parts = |v: &ValueId| {
            let def = g.value(*v).node;
            g.node(def).op.lowering() == Lowering::Assemble || out[def.0 as usize]
        };
        out[id.0 as usize] = matches!(&node.op, Op::Binary(b) if b.f == precast_plan::BinaryOp::Add)
            && node.inputs.iter().all(parts);
    }
    out
}

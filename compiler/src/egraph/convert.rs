//! Graph to e-graph and back.

use super::extract::{Choice, Problem};
use super::lang::{Degree, ENode, Eg, Kernels, Sym};
use crate::ir::{Graph, NodeId, Phase, Region, Result_, TensorType, ValueId};
use crate::ops::{Lowering, NumericClass, Op};
use crate::precision::ranges::Origin;
use egg::{Id, Language};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::{BTreeSet, BinaryHeap};

/// A graph as an e-graph.
pub struct Loaded {
    pub eg: Eg,
    /// The class of every value.
    pub class: Vec<Id>,
    /// The e-node of every node, as first added.
    pub node: Vec<ENode>,
}

impl Loaded {
    /// Original nodes by canonical e-node; of equal ones the first.
    pub fn originals(&self) -> FxHashMap<ENode, u32> {
        let mut original = FxHashMap::default();
        for (i, n) in self.node.iter().enumerate() {
            let canonical = n.clone().map_children(|c| self.eg.find(c));
            original.entry(canonical).or_insert(i as u32);
        }
        original
    }
}

/// Names of the two leaves that degrees are measured in.
pub struct Leaves<'a> {
    /// The node that seeds the backward pass.
    pub seed: &'a str,
    /// The variable that holds the loss scale.
    pub loss_scale: &'a str,
}

/// Loads a graph whose reals are all f32.
pub fn load(g: &Graph, leaves: &Leaves) -> Loaded {
    let mut kernels = Kernels::default();
    if g.vars.contains_key(leaves.loss_scale) {
        kernels.loss_scale = Some(leaves.loss_scale.to_string());
    }
    for (name, var) in &g.vars {
        if var.role == crate::ir::VarRole::Accumulator {
            kernels.accumulators.insert(name.clone());
        }
    }
    let mut eg = Eg::new(kernels);
    let mut class: Vec<Id> = Vec::with_capacity(g.value_count());
    let mut enodes = Vec::with_capacity(g.node_count());
    for (_, node) in g.nodes() {
        let sym = match &node.op {
            Op::Var(_) => Sym::Var(node.op.clone(), node.region.phase()),
            op if node.name == leaves.seed => Sym::Seed(op.clone()),
            op => Sym::Op(op.clone()),
        };
        let children = node.inputs.iter().map(|v| class[v.0 as usize]).collect();
        let enode = eg.analysis.intern(sym, children);
        let id = eg.add(enode.clone());
        enodes.push(enode);
        for (i, v) in node.outputs.iter().enumerate() {
            let id = if node.outputs.len() == 1 {
                id
            } else {
                let p = eg.analysis.intern(Sym::Proj(i as u32), SmallVec::from_slice(&[id]));
                eg.add(p)
            };
            let data = &mut eg[id].data;
            data.origin = data.origin.min(v.0);
            class.push(id);
        }
    }
    eg.rebuild();
    Loaded { eg, class, node: enodes }
}

/// One operation of the graph to be built.
struct Draft {
    /// The class whose chosen e-node this is; a tuple's own class.
    class: u32,
    op: Op,
    inputs: Vec<(u32, u32)>,
    types: Vec<TensorType>,
    region: Region,
    name: String,
    /// Where in the original order it belongs.
    position: u64,
}

/// Builds the chosen graph. Values keep their order and their nodes' names where they survive. With
/// it, by value: the original value that it equals.
pub fn unload(
    g: &Graph,
    loaded: &Loaded,
    problem: &Problem,
    choice: &Choice,
) -> (Graph, Vec<Option<Origin>>) {
    let drafts = Drafts::new(g, loaded, problem, choice);
    let (graph, values) = drafts.build(g, loaded);
    let origins = drafts.origins(&values, graph.value_count());
    (graph, origins)
}

struct Drafts<'a> {
    eg: &'a Eg,
    problem: &'a Problem,
    choice: &'a Choice,
    drafts: Vec<Draft>,
    /// Draft of a class.
    of: FxHashMap<u32, u32>,
    /// Original nodes by canonical e-node.
    original: FxHashMap<ENode, u32>,
    g: &'a Graph,
}

impl<'a> Drafts<'a> {
    fn new(g: &'a Graph, loaded: &'a Loaded, problem: &'a Problem, choice: &'a Choice) -> Self {
        let eg = &loaded.eg;
        let original = loaded.originals();
        let mut d = Drafts {
            eg,
            problem,
            choice,
            drafts: Vec::new(),
            of: FxHashMap::default(),
            original,
            g,
        };
        for &root in &problem.roots {
            d.visit(root);
        }
        d.settle_regions(loaded);
        d.unique_names();
        d
    }

    fn chosen(&self, class: u32) -> (&'a ENode, &'a [u32]) {
        let k = self.choice[class as usize].expect("the class was chosen to be computed");
        let c = &self.problem.candidates[class as usize][k as usize];
        (&c.node, &c.children)
    }

    /// The draft and result index that compute a class.
    fn source(&self, class: u32) -> (u32, u32) {
        let (node, children) = self.chosen(class);
        match self.eg.analysis.sym(node) {
            Sym::Proj(i) => (children[0], *i),
            _ => (class, 0),
        }
    }

    /// Drafts the operations that `root` needs, operands first.
    fn visit(&mut self, root: u32) {
        let mut stack = vec![(self.source(root).0, false)];
        while let Some((class, ready)) = stack.pop() {
            if self.of.contains_key(&class) {
                continue;
            }
            let (_, children) = self.chosen(class);
            if !ready {
                stack.push((class, true));
                stack.extend(children.iter().rev().map(|&c| (self.source(c).0, false)));
                continue;
            }
            let draft = self.draft(class);
            self.of.insert(class, self.drafts.len() as u32);
            self.drafts.push(draft);
        }
    }

    fn draft(&self, class: u32) -> Draft {
        let (enode, children) = self.chosen(class);
        let id = self.problem.classes[class as usize];
        let op = self.eg.analysis.op(enode).expect("projections have no draft").clone();
        let inputs: Vec<(u32, u32)> = children.iter().map(|&c| self.source(c)).collect();
        let operands = || inputs.iter().map(|(c, _)| &self.drafts[self.of[c] as usize]);
        let above = operands().map(|d| d.region).max();
        let after = operands().map(|d| d.position + 1).max();
        let old = self.original.get(enode).map(|&i| self.g.node(NodeId(i)));
        let natural = match op.class() {
            NumericClass::State => Region::Update,
            _ => Region::Forward,
        };
        let region = match old {
            Some(n) => n.region.max(above.unwrap_or(Region::Forward)),
            None => above.unwrap_or(Region::Forward).max(natural),
        };
        let position = match old {
            Some(n) => u64::from(n.outputs.first().map_or(0, |v| v.0)) << 20,
            None => after.unwrap_or(0),
        };
        let name = match old {
            Some(n) => n.name.clone(),
            None => super::names::Names { eg: self.eg, g: self.g, original: &self.original }
                .of(enode, id),
        };
        Draft { class, op, inputs, types: self.eg[id].data.types.to_vec(), region, name, position }
    }

    /// Lowers regions where something of an earlier region reads a value: an equal value of the
    /// two was merged.
    fn settle_regions(&mut self, loaded: &Loaded) {
        let mut limit = vec![Region::Update; self.drafts.len()];
        for u in &self.g.updates {
            if self.g.def(u.value).region.phase() == Phase::Micro {
                let class = self.problem.index[&self.eg.find(loaded.class[u.value.0 as usize])];
                let d = self.of[&self.source(class).0] as usize;
                limit[d] = limit[d].min(Region::Backward);
            }
        }
        for i in (0..self.drafts.len()).rev() {
            let d = &mut self.drafts[i];
            d.region = d.region.min(limit[i]);
            if d.region.phase() == Phase::Micro {
                assert!(
                    d.op.class() != NumericClass::State,
                    "`{}` was made to run in every micro-batch",
                    d.name
                );
            }
            let region = d.region;
            for (class, _) in self.drafts[i].inputs.clone() {
                let j = self.of[&class] as usize;
                limit[j] = limit[j].min(region);
            }
        }
    }

    /// Two drafts may have been named alike; the later one gets a suffix.
    fn unique_names(&mut self) {
        let kept: BTreeSet<String> =
            self.drafts.iter().filter(|d| self.is_original(d)).map(|d| d.name.clone()).collect();
        let mut used = kept;
        let fresh: Vec<usize> =
            (0..self.drafts.len()).filter(|&i| !self.is_original(&self.drafts[i])).collect();
        for i in fresh {
            let base = self.drafts[i].name.clone();
            let mut name = base.clone();
            let mut k = 2;
            while !used.insert(name.clone()) {
                name = format!("{base}.{k}");
                k += 1;
            }
            self.drafts[i].name = name;
        }
    }

    fn is_original(&self, d: &Draft) -> bool {
        self.original.contains_key(self.chosen(d.class).0)
    }

    /// Emits the drafts in the original order as far as operands allow.
    fn build(&self, g: &Graph, loaded: &Loaded) -> (Graph, Vec<SmallVec<[ValueId; 2]>>) {
        let mut out = Graph::new(g.name.clone());
        out.vars = g.vars.clone();
        let n = self.drafts.len();
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); n];
        let mut waits = vec![0usize; n];
        for (i, d) in self.drafts.iter().enumerate() {
            for (class, _) in &d.inputs {
                readers[self.of[class] as usize].push(i);
                waits[i] += 1;
            }
        }
        let key = |i: usize| {
            let d = &self.drafts[i];
            std::cmp::Reverse((d.region, d.position, i))
        };
        let mut ready: BinaryHeap<_> = (0..n).filter(|&i| waits[i] == 0).map(key).collect();
        let mut values: Vec<SmallVec<[ValueId; 2]>> = vec![SmallVec::new(); n];
        while let Some(std::cmp::Reverse((_, _, i))) = ready.pop() {
            let d = &self.drafts[i];
            let inputs: Vec<ValueId> =
                d.inputs.iter().map(|(c, r)| values[self.of[c] as usize][*r as usize]).collect();
            values[i] = out.push(d.op.clone(), &inputs, d.types.clone(), d.name.clone(), d.region);
            for &r in &readers[i] {
                waits[r] -= 1;
                if waits[r] == 0 {
                    ready.push(key(r));
                }
            }
        }
        let find = |v: ValueId| {
            let class = self.problem.index[&self.eg.find(loaded.class[v.0 as usize])];
            let (draft, result) = self.source(class);
            values[self.of[&draft] as usize][result as usize]
        };
        out.results = g
            .results
            .iter()
            .map(|r| Result_ { name: r.name.clone(), value: find(r.value) })
            .collect();
        let mut names: Option<BTreeSet<String>> = None;
        for u in &g.updates {
            let mut value = find(u.value);
            // The value of an update says when it is written. Where it merged with an equal value
            // of the other phase (a literal), it is computed again.
            if g.def(u.value).region.phase() != out.def(value).region.phase() {
                let names =
                    names.get_or_insert_with(|| out.nodes().map(|(_, n)| n.name.clone()).collect());
                let node = g.def(u.value);
                value = again(&mut out, value, node.name.clone(), node.region, names);
            }
            out.updates.push(Result_ { name: u.name.clone(), value });
        }
        (out, values)
    }

    /// Originals of the values of the built graph, `values` by draft.
    fn origins(&self, values: &[SmallVec<[ValueId; 2]>], count: usize) -> Vec<Option<Origin>> {
        let mut out = vec![None; count];
        for class in (0..self.choice.len() as u32).filter(|&c| self.choice[c as usize].is_some()) {
            let (draft, result) = self.source(class);
            let Some(&d) = self.of.get(&draft) else { continue };
            let value = values[d as usize][result as usize];
            let origin = self.origin(self.problem.classes[class as usize]);
            if origin.is_some() {
                out[value.0 as usize] = origin;
            }
        }
        out
    }

    /// The original value that a class is, or is the loss scale times.
    fn origin(&self, class: Id) -> Option<Origin> {
        let named = |id: Id, scaled: bool| {
            let v = self.eg[self.eg.find(id)].data.origin;
            (v != u32::MAX).then(|| Origin { name: self.g.value_name(ValueId(v)), scaled })
        };
        let class = &self.eg[self.eg.find(class)];
        let scaled = class.nodes.iter().find_map(|n| {
            let by = &self.eg[self.eg.find(*n.children.first()?)].data;
            let scale = by.exponent == Degree::Is(1) && by.degree == Degree::ZERO;
            let scales = matches!(self.eg.analysis.op(n), Some(Op::ScaleBy(_)));
            if scale && scales { named(n.children[1], true) } else { None }
        });
        scaled.or_else(|| named(class.id, false))
    }
}

/// Computes a value once more in a later region: what a view looks at too, since a view would only
/// rename a value of the other phase. `names`: of all nodes.
fn again(
    out: &mut Graph,
    v: ValueId,
    name: String,
    region: Region,
    names: &mut BTreeSet<String>,
) -> ValueId {
    let mut chain = vec![(v, name)];
    while let Some((at, name)) = chain.last()
        && let node = out.def(*at)
        && node.op.lowering() == Lowering::View
    {
        chain.push((node.inputs[0], format!("{name}.operand")));
    }
    let mut below: Option<ValueId> = None;
    while let Some((v, name)) = chain.pop() {
        let (node, index) = (out.def(v).clone(), out.value(v).index);
        let inputs = below.map_or(node.inputs.to_vec(), |x| vec![x]);
        let types = node.outputs.iter().map(|&o| out.ty(o).clone()).collect();
        let name = if names.contains(&name) { format!("{name}.again") } else { name };
        names.insert(name.clone());
        below = Some(out.push(node.op, &inputs, types, name, region)[index as usize]);
    }
    below.expect("the value itself")
}

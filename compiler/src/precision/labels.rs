//! Labels by minimum cut.

use super::cut::{Either, NEVER, Net, Price};
use super::{Legal, elementwise, keeps_format, storages, uniform_operands};
use crate::cost::Prices;
use crate::ir::{Graph, NodeId, TensorType, ValueId};
use crate::ops::{Lowering, NumericClass, Op, matmul::Fused};
use petgraph::graph::NodeIndex;
use precast_plan::{DType, Target};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// A storage that has a label.
struct Store {
    value: ValueId,
    own: Either,
    /// Making a copy in the other format, once.
    cast: Either,
}

/// A kernel whose operands share a format.
struct Kernel {
    node: NodeId,
    own: Either,
    /// The f32 price where the policy rules f32 out: legal, only not asked for.
    unasked: Option<Price>,
    /// Storages it reads.
    reads: Vec<usize>,
    /// Storages it writes in the format it reads.
    writes: Vec<usize>,
}

/// What the labels of a graph cost.
pub struct Model {
    half: DType,
    stores: Vec<Store>,
    /// Those of operands by node, then those of biases by node.
    kernels: Vec<Kernel>,
    /// How many of `kernels` are about operands.
    of_operands: usize,
    /// Index into `stores` by value (through views), where it is a real.
    store_of: Vec<Option<usize>>,
    /// What no label changes.
    fixed: Price,
    /// By store: kernels that read or write it, ascending; found when first asked for.
    users: OnceLock<Vec<Vec<usize>>>,
}

/// True where 16-bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    stores: Vec<bool>,
    kernels: Vec<bool>,
}

/// Labels, but for some kernels and storages, both ascending, that have one other label.
#[derive(Clone, Copy)]
struct Changed<'a> {
    labels: &'a Labels,
    kernels: &'a [usize],
    stores: &'a [usize],
    half: bool,
}

impl<'a> Changed<'a> {
    /// The labels as they are.
    fn of(labels: &'a Labels) -> Changed<'a> {
        Changed { labels, kernels: &[], stores: &[], half: false }
    }
    fn kernel(&self, k: usize) -> bool {
        if self.kernels.binary_search(&k).is_ok() { self.half } else { self.labels.kernels[k] }
    }
    fn store(&self, s: usize) -> bool {
        if self.stores.binary_search(&s).is_ok() { self.half } else { self.labels.stores[s] }
    }
}

fn ps(ns: f64) -> Price {
    (ns * 1e3).round() as Price
}

impl Model {
    /// `products`: every product takes the 16-bit format where it may (a fixed policy); otherwise
    /// by price.
    pub fn new(g: &Graph, legal: &Legal, prices: &Prices, products: bool) -> Model {
        let half = legal.half;
        let storage = storages(g);
        let mut m = Model {
            half,
            stores: vec![],
            kernels: vec![],
            of_operands: 0,
            store_of: vec![None; g.value_count()],
            fixed: 0,
            users: OnceLock::new(),
        };
        let internal = internal_values(g, &storage, prices.target.any_epilogue());
        let both = |elements: usize| Either {
            full: ps(prices.traffic(elements, DType::F32)),
            half: ps(prices.traffic(elements, half)),
        };
        for (_, n) in g.nodes() {
            for &v in &n.outputs {
                if storage[v.0 as usize] != v {
                    m.store_of[v.0 as usize] = m.store_of[storage[v.0 as usize].0 as usize];
                } else if g.ty(v).is_real() {
                    m.store_of[v.0 as usize] = Some(m.stores.len());
                    m.stores.push(m.store(g, legal, prices, v, internal[v.0 as usize]));
                }
            }
        }
        let mut biases: Vec<Kernel> = vec![];
        for (id, n) in g.nodes() {
            let x: Vec<&TensorType> = n.inputs.iter().map(|&v| g.ty(v)).collect();
            let y: Vec<&TensorType> = n.outputs.iter().map(|&v| g.ty(v)).collect();
            if matches!(n.op.lowering(), Lowering::Leaf | Lowering::View) {
                continue;
            }
            let joined = elementwise(g, n) && n.inputs.iter().any(|v| internal[v.0 as usize]);
            m.fixed += ps(prices.work(&n.op, &x, &y))
                + if joined { 0 } else { ps(prices.target.launch_ns) };
            let operands = uniform_operands(&n.op, n.inputs.len());
            let mut own = Either::default();
            let bias = library_bias(&n.op, prices.target);
            let mut of_bias = Either::default();
            for (i, &v) in n.inputs.iter().enumerate() {
                if internal[v.0 as usize] {
                    continue;
                }
                // A broadcast reads each element once.
                let root = storage[v.0 as usize];
                let elements = g.shape(v).elements().min(g.shape(root).elements());
                let Some(s) = m.store_of[v.0 as usize] else {
                    let bytes = elements * g.ty(v).dtype.size();
                    m.fixed += ps(bytes as f64 / prices.target.bandwidth_gbs);
                    continue;
                };
                let price = both(elements);
                let at = if operands.contains(&i) {
                    &mut own
                } else if bias == Some(i) {
                    &mut of_bias
                } else {
                    &mut m.stores[s].own
                };
                at.full += price.full;
                at.half += price.half;
            }
            // Operands without a store (a gather of masks or ids) have no format to choose.
            let real = |&i: &usize| m.store_of[n.inputs[i].0 as usize].is_some();
            if !operands.iter().any(real) {
                continue;
            }
            let i = id.0 as usize;
            if n.op.class() == NumericClass::Product {
                own.full += prices.product(&n.op, &x, &y, DType::F32).map_or(0, ps);
                own.half += prices.product(&n.op, &x, &y, half).map_or(NEVER, ps);
            }
            let mut unasked = None;
            if legal.product[i].is_some() {
                own.half = NEVER;
            } else if legal.wanted[i] || (products && n.op.class() == NumericClass::Product) {
                unasked = Some(own.full);
                own.full = NEVER;
            }
            let find = |v: &ValueId| m.store_of[v.0 as usize];
            let reads = operands.iter().filter_map(|&i| find(&n.inputs[i])).collect();
            let writes = if keeps_format(&n.op) {
                n.outputs.iter().take(1).filter_map(find).collect()
            } else {
                vec![]
            };
            m.kernels.push(Kernel { node: id, own, unasked, reads, writes });
            if let Some(i) = bias {
                let v = n.inputs[i];
                let root = storage[v.0 as usize];
                if [v, root].iter().any(|v| legal.copy[v.0 as usize].is_some()) {
                    of_bias.half = NEVER;
                }
                let reads = find(&v).into_iter().collect();
                let writes = n.outputs.iter().filter_map(find).collect();
                biases.push(Kernel { node: id, own: of_bias, unasked: None, reads, writes });
            }
        }
        m.of_operands = m.kernels.len();
        m.kernels.extend(biases);
        m
    }

    fn store(
        &self,
        g: &Graph,
        legal: &Legal,
        prices: &Prices,
        v: ValueId,
        internal: bool,
    ) -> Store {
        let n = g.shape(v).elements();
        let def = g.def(v);
        let write = |d: DType| ps(prices.traffic(n, d));
        let leaf = def.op.lowering() == Lowering::Leaf;
        let mut own = if leaf || internal {
            Either::default()
        } else {
            Either { full: write(DType::F32), half: write(self.half) }
        };
        if legal.store[v.0 as usize].is_some() {
            own.half = NEVER;
        }
        // Row programs, products and the optimizer write a second format as they write the first;
        // other kernels, and tensors that arrive from outside, take a kernel of its own.
        let alongside = match &def.op {
            Op::Var(_) => true,
            op => {
                op.lowering() == Lowering::Rows
                    || matches!(
                        op,
                        Op::MatMul(_)
                            | Op::Conv2d(_)
                            | Op::Conv2dDataGrad(_)
                            | Op::Conv2dFilterGrad(_)
                    )
            }
        };
        let again =
            |from: DType| if alongside { 0 } else { ps(prices.target.launch_ns) + write(from) };
        let cast = Either {
            full: write(DType::F32) + again(self.half),
            half: write(self.half) + again(DType::F32),
        };
        Store { value: v, own, cast }
    }

    /// All in f32.
    pub fn full(&self) -> Labels {
        Labels { stores: vec![false; self.stores.len()], kernels: vec![false; self.kernels.len()] }
    }

    /// The price of the step under given labels, picoseconds; at least `NEVER` where illegal.
    pub fn price(&self, l: &Labels) -> Price {
        let mut total = self.fixed;
        let mut wanted = vec![(false, false); self.stores.len()];
        for (k, &half) in self.kernels.iter().zip(&l.kernels) {
            total += k.own.of(half);
            for &s in &k.reads {
                if half {
                    wanted[s].1 = true;
                } else {
                    wanted[s].0 = true;
                }
            }
            for &s in &k.writes {
                if l.stores[s] != half {
                    total += NEVER;
                }
            }
        }
        for ((s, &half), (full_copy, half_copy)) in self.stores.iter().zip(&l.stores).zip(wanted) {
            total += s.own.of(half);
            if half && full_copy {
                total += s.cast.full;
            }
            if !half && half_copy {
                total += s.cast.half;
            }
        }
        total
    }

    /// The cheapest labels; of equals the one with most in f32.
    ///
    /// Source side: f32. Demand for a copy is a node of its own between the kernels that demand it
    /// and the storage, so that a copy is paid once.
    pub fn cut(&self) -> Labels {
        let mut net = Net::default();
        let stores: Vec<NodeIndex> = self.stores.iter().map(|s| net.variable(s.own)).collect();
        let kernels: Vec<NodeIndex> = self.kernels.iter().map(|k| net.variable(k.own)).collect();
        let mut half_copy: Vec<Option<NodeIndex>> = vec![None; stores.len()];
        let mut full_copy = half_copy.clone();
        for (k, &x) in self.kernels.iter().zip(&kernels) {
            for &s in &k.reads {
                let h = *half_copy[s].get_or_insert_with(|| net.node());
                let f = *full_copy[s].get_or_insert_with(|| net.node());
                // A kernel on the sink side drags the demand for a 16-bit copy there; one on the
                // source side keeps the demand for an f32 copy there.
                net.edge(h, x, NEVER);
                net.edge(x, f, NEVER);
            }
            for &s in &k.writes {
                net.edge(x, stores[s], NEVER);
                net.edge(stores[s], x, NEVER);
            }
        }
        for (i, s) in self.stores.iter().enumerate() {
            if let (Some(h), Some(f)) = (half_copy[i], full_copy[i]) {
                net.edge(stores[i], h, s.cast.half);
                net.edge(f, stores[i], s.cast.full);
            }
        }
        let sink = net.cut().sink;
        let side = |v: &NodeIndex| sink[v.index()];
        Labels {
            stores: stores.iter().map(side).collect(),
            kernels: kernels.iter().map(side).collect(),
        }
    }

    /// Labels by a rule: whether a storage, by its value, and a kernel's operands take the 16-bit
    /// format. `None` where the rule asks for what is illegal.
    pub fn labels(
        &self,
        store: impl Fn(ValueId) -> bool,
        kernel: impl Fn(NodeId) -> bool,
    ) -> Option<Labels> {
        let mut l = self.full();
        for (v, s) in self.store_of.iter().enumerate() {
            if let Some(s) = s
                && self.stores[*s].value.0 as usize == v
            {
                l.stores[*s] = store(ValueId(v as u32));
            }
        }
        for (i, k) in self.kernels.iter().enumerate() {
            // A bias is read in the format of the result.
            l.kernels[i] = match k.writes.first() {
                Some(&y) if i >= self.of_operands => l.stores[y],
                _ => kernel(k.node),
            };
        }
        (self.price(&l) < NEVER).then_some(l)
    }

    /// The format of a value's storage.
    pub fn format(&self, l: &Labels, v: ValueId) -> Option<DType> {
        self.store_of[v.0 as usize].map(|s| if l.stores[s] { self.half } else { DType::F32 })
    }

    /// The format of a kernel's operands, for kernels that have one.
    pub fn operands(&self, l: &Labels, node: NodeId) -> Option<DType> {
        let k = self.operands_of(node)?;
        Some(if l.kernels[k] { self.half } else { DType::F32 })
    }

    /// Which operand of a product is a bias that the library reads in the format of the result,
    /// and that format.
    pub fn bias(&self, l: &Labels, node: NodeId) -> Option<(usize, DType)> {
        let biases = &self.kernels[self.of_operands..];
        let k = self.of_operands + biases.binary_search_by_key(&node, |k| k.node).ok()?;
        Some((BIAS, if l.kernels[k] { self.half } else { DType::F32 }))
    }

    fn operands_of(&self, node: NodeId) -> Option<usize> {
        self.kernels[..self.of_operands].binary_search_by_key(&node, |k| k.node).ok()
    }

    /// What the step would cost more, in ns, with the other format for one kernel's operands and
    /// everything else as it is; `None` where that is illegal.
    pub fn flip(&self, l: &Labels, node: NodeId) -> Option<f64> {
        let k = self.operands_of(node)?;
        let half = !l.kernels[k];
        let other = Changed { labels: l, kernels: &[k], half, stores: &[] };
        let same = Changed::of(l);
        let (before, mut price) = (self.around(&same, &[k], None), self.around(&other, &[k], None));
        if let (false, Some(full)) = (half, self.kernels[k].unasked) {
            price = price - NEVER + full;
        }
        (price < NEVER).then_some((price as f64 - before as f64) * 1e-3)
    }

    fn users(&self) -> &[Vec<usize>] {
        self.users.get_or_init(|| {
            let mut users = vec![vec![]; self.stores.len()];
            for (k, kernel) in self.kernels.iter().enumerate() {
                for &s in kernel.reads.iter().chain(&kernel.writes) {
                    if users[s].last() != Some(&k) {
                        users[s].push(k);
                    }
                }
            }
            users
        })
    }

    /// The part of the price that the labels of some kernels, of what they write, and of `store`,
    /// can change. The difference of two such parts is that of the prices.
    fn around(&self, l: &Changed, kernels: &[usize], store: Option<usize>) -> Price {
        let touched = |&k: &usize| self.kernels[k].reads.iter().chain(&self.kernels[k].writes);
        let stores: BTreeSet<usize> =
            kernels.iter().flat_map(touched).copied().chain(store).collect();
        let users: BTreeSet<usize> =
            stores.iter().flat_map(|&s| &self.users()[s]).chain(kernels).copied().collect();
        let mut total = 0;
        for &k in &users {
            total += self.kernels[k].own.of(l.kernel(k));
            let wrong = self.kernels[k].writes.iter().filter(|&&s| l.store(s) != l.kernel(k));
            total += wrong.count() as Price * NEVER;
        }
        for &s in &stores {
            total += self.stores[s].own.of(l.store(s));
            // A copy, where a kernel reads the other format.
            let reads = |&&k: &&usize| self.kernels[k].reads.contains(&s);
            if self.users()[s].iter().filter(reads).any(|&k| l.kernel(k) != l.store(s)) {
                total += self.stores[s].cast.of(!l.store(s));
            }
        }
        total
    }
}

impl Model {
    /// What the copy of a value in its other format costs, ns.
    pub fn cast_price(&self, l: &Labels, v: ValueId) -> Option<f64> {
        let s = self.store_of[v.0 as usize]?;
        let cast = &self.stores[s].cast;
        Some(if l.stores[s] { cast.full } else { cast.half } as f64 * 1e-3)
    }

    /// What the step would cost more, in ns, if every kernel read a value in the format it is
    /// stored in and everything else stayed; `None` where that is illegal.
    pub fn without_cast(&self, l: &Labels, v: ValueId) -> Option<f64> {
        let s = self.store_of[v.0 as usize]?;
        let mut unasked = 0;
        let (mut changed, mut written) = (vec![], vec![]);
        for &k in &self.users()[s] {
            let kernel = &self.kernels[k];
            if !kernel.reads.contains(&s) || l.kernels[k] == l.stores[s] {
                continue;
            }
            changed.push(k);
            written.extend(&kernel.writes);
            if let (false, Some(full)) = (l.stores[s], kernel.unasked) {
                unasked += NEVER - full;
            }
        }
        written.sort_unstable();
        let half = l.stores[s];
        let other = Changed { labels: l, kernels: &changed, half, stores: &written };
        let same = Changed::of(l);
        let price = self.around(&other, &changed, Some(s)).saturating_sub(unasked);
        let before = self.around(&same, &changed, Some(s));
        (price < NEVER).then_some((price as f64 - before as f64) * 1e-3)
    }
}

/// Where the bias of a product stands among its operands.
const BIAS: usize = 2;

/// The operand of a product that a vendor library adds, which has to be in the format of the
/// results. The GELU by the error function is a kernel of ours, which reads any format.
fn library_bias(op: &Op, target: &Target) -> Option<usize> {
    let added = matches!(op, Op::MatMul(m)
        if matches!(m.fused, Fused::Bias | Fused::BiasRelu | Fused::BiasGeluTanh));
    (added && !target.any_epilogue()).then_some(BIAS)
}

/// Values that only one elementwise operation reads, itself fused behind the producer: they never
/// reach memory. `epilogues`: whether products take elementwise work behind them.
fn internal_values(g: &Graph, storage: &[ValueId], epilogues: bool) -> Vec<bool> {
    let uses = g.uses();
    let mut kept = vec![false; g.value_count()];
    for r in g.results.iter().chain(&g.updates) {
        kept[storage[r.value.0 as usize].0 as usize] = true;
    }
    let mut out = vec![false; g.value_count()];
    for (_, n) in g.nodes() {
        let producer = elementwise(g, n)
            || epilogues
                && matches!(
                    n.op,
                    Op::MatMul(_) | Op::Conv2d(_) | Op::Conv2dDataGrad(_) | Op::Conv2dFilterGrad(_)
                );
        for &v in &n.outputs {
            let &[(reader, _)] = &uses[v.0 as usize][..] else { continue };
            let reader = g.node(reader);
            out[v.0 as usize] = producer
                && !kept[v.0 as usize]
                && elementwise(g, reader)
                && g.shape(reader.outputs[0]) == g.shape(v)
                && reader.region.phase() == n.region.phase();
        }
    }
    out
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod oracle;

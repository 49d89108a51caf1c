//! The terms of the bound, and their least over all formats.

use super::launches::launches;
use super::sharing::{Ends, Kind, Sharing};
use super::touched::{touched, writes_apart, written_by_makers};
use super::work::{self, RowWork};
use crate::cost::Prices;
use crate::ir::{Graph, Node, NodeId, Phase, ValueId, VarRole};
use crate::ops::{Lowering, NumericClass, Op};
use crate::precision::cut::{Either, NEVER, Net, Price};
use crate::precision::{Legal, fp8, keeps_format, storages, uniform_operands};
use petgraph::graph::NodeIndex;
use precast_plan::DType;
use rustc_hash::FxHashMap;

mod again;

/// Which formats products may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Everything in f32.
    Full,
    /// Whatever is legal.
    Any,
    /// The 16-bit format wherever it is legal: a policy that is not by cost.
    Half,
}

/// The bound and what it is made of, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    pub ns: f64,
    /// Launches that are counted in it, as nanoseconds.
    pub launches_ns: f64,
    /// Arithmetic of row programs and epilogues.
    pub work_ns: f64,
}

/// Formats at which the bound is reached; what no term of it asks for is f32.
#[derive(Clone, Debug, Default)]
pub struct Formats {
    /// By value: its storage has the 16-bit format.
    pub stores: Vec<bool>,
    /// By node: its operands have it.
    pub kernels: Vec<bool>,
}

/// The least that a step of `g` can be predicted to take. `micro` counts the batches of one update.
/// With `eight`, matrix products may have their operands in FP8. With `scales`, multiplications by
/// the loss scale are not counted, nor what only they keep in memory, so that the bound covers every
/// place that rules could move them to.
pub fn floor(
    g: &Graph,
    legal: &Legal,
    prices: &Prices,
    admitted: Admitted,
    eight: bool,
    micro: u32,
    scales: bool,
) -> (Floor, Formats) {
    Builder::new(g, legal, prices, admitted, eight, micro, scales).build()
}

/// Below the exact sum: every term is rounded down.
fn down(ns: f64) -> Price {
    (ns * 1e3).floor() as Price
}

struct Builder<'a> {
    g: &'a Graph,
    legal: &'a Legal,
    prices: &'a Prices<'a>,
    admitted: Admitted,
    eight: bool,
    micro: u32,
    sharing: Sharing,
    storage: Vec<ValueId>,
    /// Elements that an operand reads, by node and operand.
    touched: Vec<Vec<usize>>,
    /// Row programs that read a storage, ascending, with the most elements one access reads.
    rows: Vec<Vec<(NodeId, usize)>>,
    /// Storages that a kernel which runs alone reads as they are stored.
    read_alone: Vec<bool>,
    /// Storages that outlive the step, or are put together or read in parts.
    kept: Vec<bool>,
    live: Vec<bool>,
    /// Storages that nothing but parts of other tensors, and views, are made of.
    only_parts: Vec<bool>,
    /// See [`written_by_makers`].
    by_makers: Vec<usize>,
    /// Storages that a kernel reads in a format of its choice.
    demanded: Vec<bool>,
    /// Storages that something is put together from: they may be written there.
    in_part: Vec<bool>,
    /// Products in 8 bits that could read a copy of the storage.
    sharers: Vec<u32>,
    /// See [`Epilogue`].
    epilogues: Vec<Epilogue>,
    /// Programs of row programs that compute something live, by node.
    programs: Vec<Option<RowWork>>,
    /// See [`Builder::apart`].
    outside: Vec<Vec<(NodeId, usize)>>,
    /// See [`Builder::in_memory`].
    must: Vec<bool>,
    /// New values of variables.
    updated: FxHashMap<&'a str, ValueId>,
    /// By value, and by node: the epilogue whose result, or product, it is.
    epilogue_of: FxHashMap<ValueId, usize>,
    epilogue_at: FxHashMap<NodeId, usize>,
    net: Net,
    fixed: Price,
}

/// A product with two results that are read, the activation and what it is of. The activation may as
/// well be a row program, computed wherever it is read, so that what row programs read is the one or
/// the other.
struct Epilogue {
    product: NodeId,
    result: ValueId,
    before: ValueId,
    /// Row programs that read the result.
    rows: Vec<(NodeId, usize)>,
}

/// A storage in the network.
struct Store {
    label: NodeIndex,
    /// On the sink side where a 16-bit copy is read.
    half: NodeIndex,
    /// On the source side where an f32 copy is read.
    full: NodeIndex,
}

impl<'a> Builder<'a> {
    fn new(
        g: &'a Graph,
        legal: &'a Legal,
        prices: &'a Prices<'a>,
        admitted: Admitted,
        eight: bool,
        micro: u32,
        scales: bool,
    ) -> Builder<'a> {
        let ends = Ends::of(prices.target, admitted != Admitted::Full);
        let sharing = Sharing::new(g, ends, scales);
        let storage = storages(g);
        let n = g.value_count();
        let mut b = Builder {
            touched: touched(g),
            by_makers: written_by_makers(g, &storage, &sharing.kind),
            rows: vec![vec![]; n],
            read_alone: vec![false; n],
            kept: vec![false; n],
            live: vec![false; n],
            only_parts: vec![true; n],
            demanded: vec![false; n],
            in_part: vec![false; n],
            sharers: vec![0; n],
            epilogues: vec![],
            programs: (0..g.node_count()).map(|_| None).collect(),
            outside: vec![],
            must: vec![],
            updated: g.updated(),
            epilogue_of: FxHashMap::default(),
            epilogue_at: FxHashMap::default(),
            net: Net::default(),
            fixed: 0,
            g,
            legal,
            prices,
            admitted,
            eight,
            micro,
            sharing,
            storage,
        };
        b.readers();
        b
    }

    /// Finds what reads every storage; an operand that no live result depends on is not read.
    fn readers(&mut self) {
        let g = self.g;
        for r in g.results.iter().chain(&g.updates) {
            let root = self.storage[r.value.0 as usize];
            self.live[root.0 as usize] = true;
            self.live[r.value.0 as usize] = true;
            self.kept[root.0 as usize] = true;
        }
        for (id, n) in g.nodes().rev() {
            let i = id.0 as usize;
            let kind = self.sharing.kind[i];
            if !n.outputs.iter().any(|v| self.live[v.0 as usize]) {
                continue;
            }
            let mut read = vec![true; n.inputs.len()];
            if kind == Kind::Rows {
                let live: Vec<bool> = n.outputs.iter().map(|v| self.live[v.0 as usize]).collect();
                let p = RowWork::new(g, n, &live);
                read = p.read();
                self.programs[i] = Some(p);
            }
            let uniform = uniform_operands(&n.op, n.inputs.len());
            for (at, &v) in n.inputs.iter().enumerate().filter(|(at, _)| read[*at]) {
                self.live[v.0 as usize] = true;
                let root = self.storage[v.0 as usize].0 as usize;
                self.live[root] = true;
                self.only_parts[root] &= matches!(kind, Kind::Parts | Kind::Maybe | Kind::Nothing);
                let whole = matches!(n.op, Op::Reduce(_));
                self.in_part[root] |= matches!(kind, Kind::Parts | Kind::Maybe) && !whole;
                self.demanded[root] |= uniform.contains(&at);
                match kind {
                    Kind::Rows => {
                        let t = self.touched[i][at];
                        match self.rows[root].last_mut() {
                            Some((last, most)) if *last == id => *most = (*most).max(t),
                            _ => self.rows[root].push((id, t)),
                        }
                    }
                    Kind::Alone if !uniform.contains(&at) => self.read_alone[root] = true,
                    _ => {}
                }
            }
        }
        self.rows.iter_mut().for_each(|list| list.reverse());
        for (product, n) in g.nodes() {
            if fp8::fits(g, n) {
                for v in &n.inputs[..2] {
                    self.sharers[self.storage[v.0 as usize].0 as usize] += 1;
                }
            }
            if let (Op::MatMul(_), &[result, before]) = (&n.op, n.outputs.as_slice())
                && self.live[result.0 as usize]
                && self.live[before.0 as usize]
            {
                let rows = std::mem::take(&mut self.rows[result.0 as usize]);
                self.epilogue_of.insert(result, self.epilogues.len());
                self.epilogue_at.insert(product, self.epilogues.len());
                self.epilogues.push(Epilogue { product, result, before, rows });
            }
        }
        self.outside = (0..g.value_count() as u32).map(|v| self.apart(ValueId(v))).collect();
        self.must = (0..g.value_count() as u32).map(|v| self.in_memory(ValueId(v))).collect();
    }

    fn times(&self, phase: Phase) -> f64 {
        if phase == Phase::Micro { f64::from(self.micro.max(1)) } else { 1.0 }
    }

    fn moved(&self, elements: usize, format: DType, phase: Phase) -> f64 {
        let each = match format.is_real() {
            true => self.prices.traffic(elements, format),
            false => elements as f64 * format.size() as f64 / self.prices.target.bandwidth_gbs,
        };
        each * self.times(phase)
    }

    fn both(&self, elements: usize, phase: Phase) -> Either {
        Either {
            full: down(self.moved(elements, DType::F32, phase)),
            half: down(self.moved(elements, self.legal.half, phase)),
        }
    }

    fn build(mut self) -> (Floor, Formats) {
        let g = self.g;
        let (starts, work) = self.constants();
        self.fixed += down(starts) + down(work);
        for e in &self.epilogues {
            self.fixed += down(self.either_result(e));
        }
        let mut stores: Vec<Option<Store>> = Vec::with_capacity(g.value_count());
        for v in (0..g.value_count() as u32).map(ValueId) {
            let own = self.storage[v.0 as usize] == v && self.live[v.0 as usize];
            stores.push(if own { self.store(v) } else { None });
        }
        let kernels: Vec<Option<NodeIndex>> =
            g.nodes().map(|(id, n)| self.kernel(id, n, &stores)).collect();
        let cut = std::mem::take(&mut self.net).cut();
        let floor = Floor {
            ns: (self.fixed + cut.price) as f64 * 1e-3,
            launches_ns: starts,
            work_ns: work,
        };
        let sink = |n: NodeIndex| cut.sink[n.index()];
        let narrow = |(v, s): (usize, &Option<Store>)| {
            let Some(s) = s else { return false };
            // What only products read is stored as they read it.
            let asked = sink(s.half) && sink(s.full) && self.legal.store[v].is_none();
            sink(s.label) || (!self.must[v] && asked)
        };
        let formats = Formats {
            stores: stores.iter().enumerate().map(narrow).collect(),
            kernels: kernels.iter().map(|k| k.is_some_and(sink)).collect(),
        };
        (floor, formats)
    }

    /// Launches, and arithmetic outside products.
    fn constants(&self) -> (f64, f64) {
        let (g, launch) = (self.g, self.prices.target.launch_ns);
        let counts = launches(g, &self.sharing, &self.storage);
        let starts =
            launch * (counts.micro as f64 * self.times(Phase::Micro) + counts.update as f64);
        let rows =
            work::rows(g, &self.sharing, &self.storage, self.prices, &self.programs, &self.touched);
        let mut work = 0.0;
        for (id, n) in g.nodes() {
            let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
            let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
            let own = match self.sharing.kind[id.0 as usize] {
                Kind::Rows => rows[id.0 as usize],
                // Once a row it would cost nothing.
                Kind::Product if self.sharing.may_be_of_rows(id) => 0.0,
                Kind::Product => {
                    let mut live: Vec<bool> =
                        n.outputs.iter().map(|v| self.live[v.0 as usize]).collect();
                    let e = self.epilogue_at.get(&id).map(|&e| &self.epilogues[e]);
                    if e.is_some_and(|e| !self.activates_apart(e)) {
                        live[0] = false;
                    }
                    work::epilogue(&n.op, y[0].shape.elements(), &live, self.prices)
                }
                Kind::Alone => self.prices.alone_work(&n.op, &x, &y),
                _ => 0.0,
            };
            work += own * self.times(n.region.phase());
        }
        (starts, work)
    }

    /// Whether no kernel could hold both an activation and an operation that reads what it is of,
    /// which might share instructions with it.
    fn activates_apart(&self, e: &Epilogue) -> bool {
        let rows = e.rows.iter().chain(&self.rows[e.before.0 as usize]);
        rows.copied().all(|(r, _)| self.sharing.parted(e.product, r))
    }

    /// What row programs that read an activation pay, over what those pay that read its operand:
    /// they read either, in whatever format it has.
    fn either_result(&self, e: &Epilogue) -> f64 {
        let before = e.before.0 as usize;
        let mut seen = self.outside[before].clone();
        let own = seen.len();
        for &(r, t) in &e.rows {
            let apart = |c: NodeId| !self.sharing.together(c, r);
            if t > 1 && apart(e.product) && seen.iter().all(|&(c, _)| apart(c)) {
                seen.push((r, t));
            }
        }
        let least = |elements, phase| {
            let half = match self.admitted {
                Admitted::Full => f64::INFINITY,
                _ => self.moved(elements, self.legal.half, phase),
            };
            self.moved(elements, DType::F32, phase).min(half)
        };
        let phase = |n: NodeId| self.g.node(n).region.phase();
        let read: f64 = seen[own..].iter().map(|&(r, t)| least(t, phase(r))).sum();
        let stored = [e.result, e.before].iter().any(|v| {
            let i = v.0 as usize;
            self.must[i] || self.demanded[i] || self.in_part[i]
        });
        let written = match seen.len() > own && !stored {
            true => least(self.g.shape(e.result).elements(), phase(e.product)),
            false => 0.0,
        };
        read + written
    }

    /// Whether a value that is not a leaf is in memory, whatever the schedule.
    fn in_memory(&self, v: ValueId) -> bool {
        let i = v.0 as usize;
        if self.epilogue_of.contains_key(&v) {
            return self.kept[i] || self.read_alone[i];
        }
        let producer = self.g.value(v).node;
        // What is only a part of something else is written there.
        if self.only_parts[i] && !self.kept[i] {
            return false;
        }
        match self.sharing.kind[producer.0 as usize] {
            Kind::Alone | Kind::Parts => true,
            Kind::Product if self.sharing.stores(producer) => true,
            Kind::Product | Kind::Rows => {
                self.kept[i] || self.read_alone[i] || !self.outside[i].is_empty()
            }
            Kind::Maybe | Kind::Nothing => false,
        }
    }

    /// Row programs that cannot share a kernel with the producer of `v`, no two of which can share
    /// one with each other, and what each reads.
    fn apart(&self, v: ValueId) -> Vec<(NodeId, usize)> {
        let producer = self.g.value(v).node;
        let leaf = self.sharing.kind[producer.0 as usize] == Kind::Nothing;
        let mut chosen: Vec<(NodeId, usize)> = vec![];
        for &(r, touched) in &self.rows[v.0 as usize] {
            let apart = |&(c, _): &(NodeId, usize)| !self.sharing.together(c, r);
            let outside = || leaf || !self.sharing.together(producer, r);
            // A single element costs nothing worth the search, and hundreds may read it.
            if touched > 1 && outside() && chosen.iter().all(apart) {
                chosen.push((r, touched));
            }
        }
        chosen
    }

    fn store(&mut self, v: ValueId) -> Option<Store> {
        let (g, i) = (self.g, v.0 as usize);
        let value = g.value(v);
        let def = g.node(value.node);
        let (phase, elements) = (def.region.phase(), g.shape(v).elements());
        let outside = self.outside[i].clone();
        let leaf = def.op.lowering() == Lowering::Leaf;
        if let Op::Const(c) = &def.op
            && c.data.splat().is_some()
        {
            return None;
        }
        let reads = |b: &Builder, d: DType| -> f64 {
            outside.iter().map(|&(r, t)| b.moved(t, d, g.node(r).region.phase())).sum()
        };
        if !g.ty(v).is_real() {
            let d = g.ty(v).dtype;
            let written = if leaf || !self.must[i] { 0.0 } else { self.moved(elements, d, phase) };
            self.fixed += down(written + reads(self, d));
            return None;
        }
        let illegal = self.legal.store[i].is_some() || self.admitted == Admitted::Full;
        let written = self.both(elements, phase);
        if leaf {
            self.fixed += down(reads(self, DType::F32));
            // The update writes a parameter's copy beside the parameter.
            let copy = match &def.op {
                Op::Var(var) => {
                    let kept = g.vars[&var.name].role == VarRole::Param
                        && self.updated.get(var.name.as_str()).is_some_and(|u| *u != v);
                    if kept { self.both(elements, Phase::Update).half } else { 0 }
                }
                Op::Input(_) => written.half,
                _ => 0,
            };
            let label = self.net.variable(Either { full: 0, half: NEVER });
            let half = self.net.node();
            self.net.edge(self.net.source, half, copy);
            return Some(Store { label, half, full: self.net.node() });
        }
        let mut own = Either::default();
        let again = self.again(value.node) && !self.kept[i] && !self.read_alone[i];
        let must = self.must[i];
        if must && again {
            self.fixed += self.computed_again(v, &outside, illegal);
        } else if must {
            let moves = |d: DType| down(reads(self, d));
            own = Either { full: moves(DType::F32), half: moves(self.legal.half) };
            if writes_apart(&def.op) && !self.in_part[i] {
                let apart = self.both(elements - self.by_makers[i], phase);
                own.full += apart.full;
                own.half += apart.half;
            }
        }
        if illegal {
            own.half = NEVER;
        }
        let label = self.net.variable(own);
        let (half, full) = (self.net.node(), self.net.node());
        if self.in_part[i] || self.sharing.kind[value.node.0 as usize] == Kind::Maybe {
            // Written where it belongs, as a part of what is counted there, or not at all.
        } else if must && !again {
            // The storage is there; a copy in the other format is written beside it.
            self.net.edge(label, half, written.half);
            self.net.edge(full, label, written.full);
        } else {
            self.net.edge(self.net.source, half, written.half);
            self.net.edge(full, self.net.sink, written.full);
        }
        Some(Store { label, half, full })
    }

    /// The operands of a product, or of another kernel with one format for its operands.
    fn kernel(&mut self, id: NodeId, n: &Node, stores: &[Option<Store>]) -> Option<NodeIndex> {
        let (g, i) = (self.g, id.0 as usize);
        let phase = n.region.phase();
        if let Op::ScatterAdd(_) = n.op {
            let v = n.inputs[1];
            let read = self.both(g.shape(v).elements(), phase);
            self.add(&stores[self.storage[v.0 as usize].0 as usize], read);
        }
        let operands = uniform_operands(&n.op, n.inputs.len());
        let of = |&at: &usize| stores[self.storage[n.inputs[at].0 as usize].0 as usize].as_ref();
        if !operands.iter().any(|at| of(at).is_some()) {
            return None;
        }
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let price = |d: DType| -> f64 {
            let multiply = self.prices.product(&n.op, &x, &y, d).unwrap_or(0.0);
            let moved = match self.prices.own_traffic(&n.op, &x, &y, d) {
                Some(ns) => ns,
                None => {
                    operands.iter().map(|&at| self.prices.traffic(self.touched[i][at], d)).sum()
                }
            };
            (multiply + moved) * self.times(phase)
        };
        let product = n.op.class() == NumericClass::Product;
        let mut own = Either { full: down(price(DType::F32)), half: NEVER };
        if self.legal.product[i].is_none() && self.admitted != Admitted::Full {
            own.half = down(price(self.legal.half));
            if self.legal.wanted[i] || (product && self.admitted == Admitted::Half) {
                own.full = NEVER;
            }
        }
        if self.eight && fp8::fits(g, n) {
            let multiply = self.prices.product(&n.op, &x, &y, DType::F8e4m3);
            let multiply = multiply.or_else(|| self.prices.product(&n.op, &x, &y, DType::F32));
            let eight = multiply.unwrap_or(0.0) * self.times(phase);
            let eight = eight + (0..2).map(|at| self.eight_bits(id, n, at)).sum::<f64>();
            self.fixed += own.full.min(own.half).min(down(eight));
            return None;
        }
        let k = self.net.variable(own);
        for s in operands.iter().filter_map(of) {
            self.net.edge(s.half, k, NEVER);
            self.net.edge(k, s.full, NEVER);
        }
        if keeps_format(&n.op)
            && let Some(s) = &stores[n.outputs[0].0 as usize]
        {
            self.net.edge(k, s.label, NEVER);
            self.net.edge(s.label, k, NEVER);
        }
        Some(k)
    }

    /// An operand that is read in 8 bits, and this product's share of writing that copy. What it is
    /// a copy of, and its largest magnitude, are not counted.
    fn eight_bits(&self, id: NodeId, n: &Node, at: usize) -> f64 {
        let root = self.storage[n.inputs[at].0 as usize];
        let elements = self.touched[id.0 as usize][at];
        let moved = |phase| {
            let formats = [DType::F8e4m3, DType::F8e5m2];
            formats
                .map(|d| self.moved(elements, d, phase))
                .into_iter()
                .fold(f64::INFINITY, f64::min)
        };
        // Copies of weights are written by the update.
        let leaf = self.g.def(root).op.lowering() == Lowering::Leaf;
        let written = if leaf { Phase::Update } else { self.g.def(root).region.phase() };
        moved(n.region.phase()) + moved(written) / f64::from(self.sharers[root.0 as usize].max(1))
    }

    /// A price that goes by the label of a storage.
    fn add(&mut self, s: &Option<Store>, e: Either) {
        let Some(s) = s else { return };
        let least = e.full.min(e.half);
        self.fixed += least;
        self.net.edge(s.label, self.net.sink, e.full - least);
        self.net.edge(self.net.source, s.label, e.half - least);
    }
}

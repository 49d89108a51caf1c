//! From schedules to the plan.

mod along;
mod attention;
mod epilogue;
mod geometry;
mod recurrence;
mod watch;

pub use watch::lower_watched;

use crate::diagnostic::{Diagnostic, Place, Result};
use crate::ir::view::View;
use crate::ir::{Graph, Phase, VarInit, VarRole};
use crate::ops::Op;
use crate::schedule::affine::Access as Strided;
use crate::schedule::fuse::{Group, over_product};
use crate::schedule::items::{Body, Source};
use crate::schedule::order::Bundle;
use crate::schedule::program::Built;
use crate::schedule::{
    Capabilities, Schedule, flat, product_strides, rows_of, schedule, space, table,
};
use indexmap::IndexSet;
use precast_plan::{
    Access, Conv, DType, Epilogue, Gather, Gemm, Init, Instance, Kernel, MaxPool, Named, Operand,
    OperandSums, Plan, Program, Role, Rows, Step, Storage, Summary, TargetSummary, Tensor, VERSION,
};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// Nanoseconds that a step of a plan takes.
pub type Price<'a> = dyn Fn(&Step, &Plan) -> f64 + 'a;

/// What lowering needs besides the graphs.
pub struct Options<'a> {
    pub capabilities: Capabilities,
    /// Batches for one update.
    pub accumulate: u32,
    /// Keys drawn first values.
    pub seed: u64,
    pub target: TargetSummary,
    /// Nanoseconds a step is expected to take.
    pub price: Option<&'a Price<'a>>,
}

/// Lowers a training graph, and the graph that evaluates its model, to a plan without summary
/// (other than the predicted time) and journal.
///
/// # Errors
/// P0402: an update of a variable that does not exist; with several batches for one update, an
/// update that reads what only the last batch computed; an evaluation input that differs from the
/// training input of its name.
pub fn lower(train: &Graph, eval: Option<&Graph>, options: &Options) -> Result<Plan> {
    lower_scheduled(&schedule(train, None, &options.capabilities)?, eval, options)
}

/// [`lower`] of a training graph that is scheduled already.
///
/// # Errors
/// As [`lower`].
pub fn lower_scheduled(main: &Schedule, eval: Option<&Graph>, options: &Options) -> Result<Plan> {
    let caps = &options.capabilities;
    if options.accumulate > 1 {
        check_accumulation(main)?;
    }
    let mut e = Emit::new(main.graph.name.clone(), options);
    e.persistent(&main.graph);
    e.plan.results = e.schedule(main, "")?.0;
    if let Some(g) = eval {
        let s = schedule(g, Some(&main.graph), caps)?;
        e.plan.eval_results = e.schedule(&s, "eval.")?.0;
    }
    Ok(e.finish())
}

fn fault(name: &str, message: String) -> Diagnostic {
    Diagnostic::error("P0402", message).at(Place::Node { name: name.to_string() })
}

/// Between batches only variables survive.
fn check_accumulation(s: &Schedule) -> Result<()> {
    let mut micro = BTreeSet::new();
    for step in &s.steps {
        match step.phase {
            Phase::Micro => micro.extend(&step.writes),
            Phase::Update => {
                for v in step.reads.intersection(&micro) {
                    let value = &s.items.values[*v];
                    if value.updates.is_none() {
                        return Err(fault(
                            &value.name,
                            "the update reads this value of the last batch alone; gradients over \
                             several batches go through accumulators"
                                .into(),
                        )
                        .into());
                    }
                }
            }
        }
    }
    Ok(())
}

struct Emit<'a> {
    plan: Plan,
    options: &'a Options<'a>,
    names: BTreeSet<String>,
    /// By name that several tensors want: the number that the last of them took.
    numbers: FxHashMap<String, u32>,
    /// Programs by all that they are but their names.
    programs: FxHashMap<String, u32>,
    /// Tensors of variables and inputs, by name.
    vars: BTreeMap<String, u32>,
    inputs: BTreeMap<String, u32>,
    persistent: u64,
    input_bytes: u64,
}

/// Tensors of one schedule's values.
struct Bind<'s> {
    s: &'s Schedule,
    tensor: BTreeMap<usize, u32>,
}

impl<'a> Emit<'a> {
    fn new(model: String, options: &'a Options<'a>) -> Emit<'a> {
        let plan = Plan {
            version: VERSION,
            model,
            target: options.target.clone(),
            tensors: vec![],
            programs: vec![],
            micro: vec![],
            update: vec![],
            eval: vec![],
            accumulate: options.accumulate,
            arena_bytes: 0,
            arena_bound_bytes: 0,
            persistent_bytes: 0,
            results: vec![],
            eval_results: vec![],
            classes: vec![],
            summary: Summary::default(),
            journal: vec![],
        };
        Emit {
            plan,
            options,
            names: BTreeSet::new(),
            numbers: FxHashMap::default(),
            programs: FxHashMap::default(),
            vars: BTreeMap::new(),
            inputs: BTreeMap::new(),
            persistent: 0,
            input_bytes: 0,
        }
    }

    fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize], storage: Storage) -> u32 {
        let mut unique = name.to_string();
        while !self.names.insert(unique.clone()) {
            let k = self.numbers.entry(name.to_string()).or_insert(1);
            *k += 1;
            unique = format!("{name}#{k}");
        }
        let shape = shape.iter().map(|&n| n as u64).collect();
        self.plan.tensors.push(Tensor { name: unique, dtype, shape, storage });
        (self.plan.tensors.len() - 1) as u32
    }

    fn keep(&mut self, bytes: usize) -> u64 {
        let at = self.persistent;
        self.persistent = (at + bytes as u64).next_multiple_of(64);
        at
    }

    /// All variables, in the graph's order, under their own names.
    fn persistent(&mut self, g: &Graph) {
        for (i, name) in g.vars.keys().enumerate() {
            self.vars.insert(name.clone(), i as u32);
        }
        for (name, var) in &g.vars {
            let seed = self.options.seed;
            let role = match var.role {
                VarRole::Param => Role::Parameter,
                VarRole::Buffer => Role::Buffer,
                VarRole::Optimizer => Role::Optimizer,
                VarRole::Ema => Role::Ema,
                VarRole::Accumulator => Role::Accumulator,
                VarRole::Machine => Role::Machine,
                VarRole::WeightCopy => Role::WeightCopy,
            };
            let init = match &var.init {
                VarInit::Zeros => Init::Zeros,
                VarInit::Value(x) => Init::Value(*x),
                VarInit::Weights(n) => Init::Weights(n.clone()),
                &VarInit::Uniform { bound, stream } => Init::Uniform { bound, seed, stream },
                &VarInit::Normal { mean, std, stream } => Init::Normal { mean, std, seed, stream },
                VarInit::Data(c) => Init::Bytes(c.hex()),
                VarInit::File { path, offset, dtype } => {
                    Init::File { path: path.clone(), offset: *offset, dtype: *dtype }
                }
                VarInit::CopyOf(other) => Init::CopyOf(self.vars[other]),
                VarInit::ChannelsLastOf(other) => Init::ChannelsLastOf(self.vars[other]),
            };
            let offset = self.keep(var.ty.bytes());
            self.tensor(
                name,
                var.ty.dtype,
                &var.ty.shape,
                Storage::Persistent { offset, role, init },
            );
        }
    }

    fn schedule<'s>(&mut self, s: &'s Schedule, prefix: &str) -> Result<(Vec<Named>, Bind<'s>)> {
        let mut bind = Bind { s, tensor: BTreeMap::new() };
        // Only values that a step touches, or a result names, have tensors.
        let mut used: BTreeSet<usize> =
            s.steps.iter().flat_map(|b| b.reads.iter().chain(&b.writes)).copied().collect();
        used.extend(s.items.results.iter().map(|r| s.items.storage(r.1)));
        // Every input is uploaded, read or not.
        used.extend(
            (0..s.items.values.len())
                .filter(|&v| matches!(s.items.values[v].source, Source::Input(_))),
        );
        for v in used {
            let t = self.bind(s, v, prefix)?;
            bind.tensor.insert(v, t);
        }
        for b in &s.steps {
            let step = self.step(&bind, b);
            match (prefix.is_empty(), b.phase) {
                (true, Phase::Micro) => self.plan.micro.push(step),
                (true, Phase::Update) => self.plan.update.push(step),
                (false, _) => self.plan.eval.push(step),
            }
        }
        self.plan.arena_bytes = self.plan.arena_bytes.max(s.layout.bytes);
        self.plan.arena_bound_bytes = self.plan.arena_bound_bytes.max(s.layout.bound);
        let tensor = |v: usize| bind.tensor[&s.items.storage(v)];
        let results = s.items.results.iter();
        let results = results.map(|(name, v)| Named { name: name.clone(), tensor: tensor(*v) });
        Ok((results.collect(), bind))
    }

    fn bind(&mut self, s: &Schedule, v: usize, prefix: &str) -> Result<u32> {
        let value = &s.items.values[v];
        let var = match (&value.source, &value.updates) {
            (Source::Var(name), _) | (_, Some(name)) => Some(name),
            _ => None,
        };
        if let Some(name) = var {
            return self.vars.get(name).copied().ok_or_else(|| {
                fault(name, "the evaluation graph reads a variable that training lacks".into())
                    .into()
            });
        }
        match &value.source {
            Source::Input(name) => {
                if let Some(&t) = self.inputs.get(name) {
                    let have = &self.plan.tensors[t as usize];
                    let same = have.dtype == value.dtype
                        && have.shape.iter().map(|&n| n as usize).eq(value.shape.iter().copied());
                    return if same {
                        Ok(t)
                    } else {
                        Err(fault(name, "the input differs between training and evaluation".into())
                            .into())
                    };
                }
                let offset = self.input_bytes;
                self.input_bytes = (offset + value.bytes() as u64).next_multiple_of(64);
                let t = self.tensor(name, value.dtype, &value.shape, Storage::Input { offset });
                self.inputs.insert(name.clone(), t);
                Ok(t)
            }
            Source::Const(c) => {
                let offset = self.keep(value.bytes());
                let storage = Storage::Persistent {
                    offset,
                    role: Role::Constant,
                    init: Init::Bytes(c.hex()),
                };
                Ok(self.tensor(&value.name, value.dtype, &value.shape, storage))
            }
            Source::Computed => {
                let offset = s
                    .layout
                    .offsets
                    .get(&v)
                    .copied()
                    .unwrap_or_else(|| panic!("`{}` is used and never written", value.name));
                let name = format!("{prefix}{}", value.name);
                Ok(self.tensor(&name, value.dtype, &value.stored(), Storage::Arena { offset }))
            }
            Source::Var(_) => unreachable!("handled above"),
        }
    }

    /// Index of an equal program, or of this one appended.
    fn program(&mut self, p: &Program) -> u32 {
        // `{:?}` tells -0.0 from 0.0 and makes a NaN equal itself.
        let key = format!("{:?} {:?} {:?}", p.inputs, p.outputs, p.code);
        *self.programs.entry(key).or_insert_with(|| {
            self.plan.programs.push(p.clone());
            (self.plan.programs.len() - 1) as u32
        })
    }

    fn step(&mut self, bind: &Bind, b: &Bundle) -> Step {
        let s = bind.s;
        let (group, built) = &s.groups[b.groups[0]];
        let kernel = match built {
            None => bind.kernel(group.items[0]),
            Some(built) if group.product.is_some() => {
                let program = self.program(&built.program);
                bind.product(group, built, program)
            }
            Some(built) => Kernel::Rows(Rows {
                program: self.program(&built.program),
                instances: b
                    .groups
                    .iter()
                    .map(|&g| {
                        let (group, built) = &s.groups[g];
                        bind.instance(group, built.as_ref().expect("a row program"))
                    })
                    .collect(),
            }),
        };
        let mut name = group.name(&s.items);
        if b.groups.len() > 1 {
            name = format!("{name} ×{}", b.groups.len());
        }
        let mut ops = IndexSet::new();
        for &g in &b.groups {
            let group = &s.groups[g].0;
            let all = group.items.iter().copied().chain(group.sums.iter().map(|s| s.item));
            ops.extend(all.filter_map(|i| s.items.items[i].op.as_deref()));
        }
        let ops = ops.into_iter().map(str::to_string).collect();
        Step { name, ops, kernel, predicted_ns: 0.0 }
    }

    fn finish(mut self) -> Plan {
        self.plan.persistent_bytes = self.persistent;
        if let Some(price) = self.options.price {
            let cost = |steps: &[Step], plan: &Plan| -> Vec<f64> {
                steps.iter().map(|s| price(s, plan)).collect()
            };
            let lists =
                [&self.plan.micro, &self.plan.update, &self.plan.eval].map(|l| cost(l, &self.plan));
            let sum = |l: &[f64]| l.iter().sum::<f64>();
            self.plan.summary.predicted_ns =
                sum(&lists[0]) * f64::from(self.plan.accumulate.max(1)) + sum(&lists[1]);
            for (steps, costs) in [&mut self.plan.micro, &mut self.plan.update, &mut self.plan.eval]
                .into_iter()
                .zip(lists)
            {
                steps.iter_mut().zip(costs).for_each(|(s, c)| s.predicted_ns = c);
            }
        }
        self.plan
    }
}

impl Bind<'_> {
    fn access(&self, a: &Strided, dims: &[usize]) -> Access {
        let a = self.s.items.physical(a, dims).expect("placements were checked");
        Access { tensor: self.tensor[&a.value], offset: a.offset as u64, strides: a.strides }
    }

    fn view(&self, (root, view): &(usize, View)) -> Access {
        let a = Strided { value: *root, offset: view.offset, strides: view.strides.clone() };
        self.access(&a, &view.shape)
    }

    fn with(&self, operand: &(usize, View), strides: Vec<i64>) -> Access {
        Access { strides, ..self.view(operand) }
    }

    fn instance(&self, g: &Group, built: &Built) -> Instance {
        let s = space(&self.s.items, g, built).expect("placements were checked");
        let list = |list: Vec<Strided>| -> Vec<Access> {
            let bound = |a: Strided| Access {
                tensor: self.tensor[&a.value],
                offset: a.offset as u64,
                strides: a.strides,
            };
            list.into_iter().map(bound).collect()
        };
        let (inputs, outputs) = (list(s.inputs), list(s.outputs));
        Instance { dims: s.dims, reduced: s.reduced as u32, inputs, outputs }
    }

    fn product(&self, g: &Group, built: &Built, program: u32) -> Kernel {
        let item = &self.s.items.items[g.product.expect("a product's group")];
        let Body::Product { op, operands } = &item.body else { panic!("a product's group") };
        let over = |list: &[Strided]| -> Vec<Access> {
            list.iter()
                .map(|a| {
                    let p = self.s.items.physical(a, &g.dims).expect("placements were checked");
                    let strides =
                        over_product(&g.dims, &p, &item.dims).expect("epilogues were checked");
                    Access { tensor: self.tensor[&p.value], offset: p.offset as u64, strides }
                })
                .collect()
        };
        let (mut inputs, mut outputs) = (over(&built.inputs), over(&built.outputs));
        let rank = item.dims.len();
        let along = if matches!(op, Op::MatMul(_)) { rank - 1 } else { 1 };
        let (kind, scale) = epilogue::kind(op, g, &built.program, &inputs, &outputs, along);
        let (a, b) = (self.view(&operands[0]), self.view(&operands[1]));
        let math = op.math();
        if !matches!(op, Op::MatMul(_)) {
            let epilogue = Epilogue { kind, scale, program, inputs, outputs };
            let (kind, geometry) = geometry::of(op, operands);
            return Kernel::Conv(Conv { kind, geometry, a, b, math, epilogue });
        }
        let strides = |l: &[Access]| l.iter().map(|a| a.strides.clone()).collect::<Vec<_>>();
        let p = product_strides(
            &item.dims,
            &a.strides,
            &b.strides,
            &strides(&inputs),
            &strides(&outputs),
        )
        .expect("epilogues were checked");
        for (a, s) in inputs.iter_mut().zip(p.inputs).chain(outputs.iter_mut().zip(p.outputs)) {
            a.strides = s;
        }
        let k = operands[0].1.shape[rank - 1] as u64;
        Kernel::Gemm(Gemm {
            batch: p.batch,
            m: item.dims[rank - 2] as u64,
            n: item.dims[rank - 1] as u64,
            k,
            a: Access { strides: p.a, ..a },
            b: Access { strides: p.b, ..b },
            math,
            epilogue: Epilogue { kind, scale, program, inputs, outputs },
            sums: g.sums.as_ref().map(|s| OperandSums {
                operand: if s.operand == 0 { Operand::A } else { Operand::B },
                out: self.access(&s.out, &[item.dims[rank - 2 + s.operand]]),
            }),
        })
    }

    fn kernel(&self, i: usize) -> Kernel {
        let item = &self.s.items.items[i];
        let Body::Kernel { op, operands } = &item.body else { panic!("not a kernel") };
        let write = |k: usize| {
            let w = &item.writes[k];
            self.access(w, &self.s.items.values[w.value].shape)
        };
        let shape =
            |k: usize| -> Vec<u64> { operands[k].1.shape.iter().map(|&n| n as u64).collect() };
        match op {
            Op::Attention(a) => self.attention(a, operands, [0, 1, 2].map(write)),
            Op::AttentionGrad(a) => self.attention_grad(a, operands, [0, 1, 2].map(write)),
            Op::MaxPool2d(p) => {
                let g = crate::ops::pool::pool_geometry(
                    &operands[0].1.shape,
                    p.kernel,
                    p.stride,
                    p.pad,
                );
                Kernel::MaxPool(MaxPool {
                    geometry: g.expect("the graph was verified"),
                    x: self.view(&operands[0]),
                    y: write(0),
                    index: write(1),
                })
            }
            Op::MaxPool2dGrad(p) => {
                let x = &self.s.items.values[item.writes[0].value].shape;
                let g = crate::ops::pool::pool_geometry(x, p.kernel, p.stride, p.pad);
                Kernel::MaxPoolGrad(MaxPool {
                    geometry: g.expect("the graph was verified"),
                    x: write(0),
                    y: self.view(&operands[0]),
                    index: self.view(&operands[1]),
                })
            }
            Op::Gather(_) => {
                let t = table(&operands[0].1).expect("operands were checked");
                let ids = &operands[1].1;
                let width = operands[0].1.shape[1..].iter().product::<usize>() as u64;
                Kernel::Gather(Gather {
                    rows: ids.shape.elements() as u64,
                    width,
                    table_rows: shape(0)[0],
                    table: self.with(&operands[0], t.to_vec()),
                    ids: self.with(&operands[1], vec![flat(ids).expect("operands were checked")]),
                    out: Access { strides: vec![width as i64, 1], ..write(0) },
                })
            }
            Op::ScatterAdd(s) => {
                let (ids, dy) = (&operands[0].1, &operands[1].1);
                let rows = ids.shape.elements();
                let width = dy.shape.elements() / rows.max(1);
                let seen = rows_of(dy, ids).expect("operands were checked");
                Kernel::ScatterAdd(Gather {
                    rows: rows as u64,
                    width: width as u64,
                    table_rows: s.rows as u64,
                    table: Access { strides: vec![width as i64, 1], ..write(0) },
                    ids: self.with(&operands[0], vec![flat(ids).expect("operands were checked")]),
                    out: self.with(&operands[1], seen.to_vec()),
                })
            }
            Op::Recurrence(_) | Op::RecurrenceGrad(_) => self.recurrence(i),
            op => {
                let x = &operands[0];
                along::kernel(op, &x.1, |strides| self.with(x, strides), write(0))
            }
        }
    }
}

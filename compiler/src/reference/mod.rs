//! What the IR means: an interpreter by the definitions, in f64.
//!
//! Tests compare everything else with it (gradients with finite differences, rewrite rules, the
//! compiled plan on a backend), and simplification folds constants with it. Nothing that a person
//! runs a model with uses it: it is naive loops.
//!
//! Row programs are interpreted from the operations' own definitions, so the interpreter does not
//! restate them; literals in programs are f32 there, and are so here. Kernels are written out here
//! a second time, from their documentation.

mod along;
mod functions;
mod movement;
mod products;
pub mod rows;
mod tensor;

pub use functions::{erf, philox, uniform};
pub use rows::program_of;
pub use tensor::{Data, Tensor};

use crate::diagnostic::{Diagnostic, Place, Result};
use crate::ir::{Graph, NodeId, Phase, TensorType, ValueId};
use crate::ops::{Lowering, Op};
use indexmap::IndexMap;

/// What arithmetic is done in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    F64,
    /// Every operation in f64, then rounded to f32; sums one element after the other.
    F32,
}

/// How to evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub arithmetic: Arithmetic,
    /// Rounds every value to the format of its type. Without it, formats mean nothing and a
    /// [`crate::ops::Cast`] is the identity.
    pub store: bool,
}

impl Options {
    /// Real numbers, as far as f64 goes.
    pub const EXACT: Options = Options { arithmetic: Arithmetic::F64, store: false };
    /// What a backend without tricks computes.
    pub const STORED: Options = Options { arithmetic: Arithmetic::F32, store: true };

    fn round(&self, x: f64) -> f64 {
        match self.arithmetic {
            Arithmetic::F64 => x,
            Arithmetic::F32 => f64::from(x as f32),
        }
    }

    fn stored(&self, t: Tensor) -> Tensor {
        if self.store { t.rounded() } else { t }
    }
}

/// All that a step computes.
#[derive(Clone, Debug)]
pub struct Evaluated {
    pub results: IndexMap<String, Tensor>,
    /// New values of variables, after both phases.
    pub updates: IndexMap<String, Tensor>,
    /// By [`ValueId`].
    pub values: Vec<Tensor>,
}

impl Evaluated {
    pub fn value(&self, v: ValueId) -> &Tensor {
        &self.values[v.0 as usize]
    }
}

/// Evaluates a verified graph with [`Options::EXACT`].
///
/// # Errors
/// As [`eval_with`].
pub fn eval(
    graph: &Graph,
    inputs: &IndexMap<String, Tensor>,
    vars: &IndexMap<String, Tensor>,
) -> Result<Evaluated> {
    eval_with(graph, inputs, vars, &Options::EXACT)
}

/// Evaluates a verified graph: the micro phase once, then the update phase, whose variables hold
/// what the micro phase wrote.
///
/// # Errors
/// An input or variable that is missing or has another shape or kind than the graph says; an index
/// outside its table (P0410).
pub fn eval_with(
    graph: &Graph,
    inputs: &IndexMap<String, Tensor>,
    vars: &IndexMap<String, Tensor>,
    opt: &Options,
) -> Result<Evaluated> {
    let mut values: Vec<Option<Tensor>> = vec![None; graph.value_count()];
    for phase in [Phase::Micro, Phase::Update] {
        for (id, node) in graph.nodes().filter(|(_, n)| n.region.phase() == phase) {
            let written = |var: &str| {
                let earlier = |v: &ValueId| graph.def(*v).region.phase() < phase;
                let mut updates = graph.updates.iter().filter(|u| u.name == var).map(|u| u.value);
                values[updates.find(earlier)?.0 as usize].clone()
            };
            let results =
                eval_node(graph, id, &values, inputs, vars, written, opt).map_err(|e| {
                    Diagnostic::error("P0410", format!("`{}`: {e}", node.op.name()))
                        .at(Place::Node { name: node.name.clone() })
                })?;
            for (&v, t) in node.outputs.iter().zip(results) {
                values[v.0 as usize] = Some(t);
            }
        }
    }
    let values: Vec<Tensor> =
        values.into_iter().map(|t| t.expect("every node was evaluated")).collect();
    let named = |r: &crate::ir::Result_| (r.name.clone(), values[r.value.0 as usize].clone());
    // A variable written in both phases ends as the later one leaves it.
    let mut updates: Vec<&crate::ir::Result_> = graph.updates.iter().collect();
    updates.sort_by_key(|u| graph.def(u.value).region.phase());
    let results = graph.results.iter().map(named).collect();
    let updates = updates.into_iter().map(named).collect();
    Ok(Evaluated { results, updates, values })
}

fn eval_node(
    graph: &Graph,
    id: NodeId,
    values: &[Option<Tensor>],
    inputs: &IndexMap<String, Tensor>,
    vars: &IndexMap<String, Tensor>,
    written: impl Fn(&str) -> Option<Tensor>,
    opt: &Options,
) -> Result<Vec<Tensor>, String> {
    let node = graph.node(id);
    let given = |what: &str, name: &str, t: Option<Tensor>| {
        let ty = graph.ty(node.outputs[0]);
        let t = t.ok_or_else(|| format!("there is no {what} `{name}`"))?;
        if t.ty.shape != ty.shape || t.ty.kind() != ty.kind() {
            return Err(format!("{what} `{name}` is {}, not {ty}", t.ty));
        }
        Ok(vec![opt.stored(Tensor { ty: ty.clone(), ..t })])
    };
    match &node.op {
        Op::Input(op) => given("input", &op.name, inputs.get(&op.name).cloned()),
        Op::Var(op) => {
            let t = written(&op.name).or_else(|| vars.get(&op.name).cloned());
            given("variable", &op.name, t)
        }
        op => {
            let x: Vec<&Tensor> = node
                .inputs
                .iter()
                .map(|v| values[v.0 as usize].as_ref().expect("operands come first"))
                .collect();
            let y: Vec<TensorType> = node.outputs.iter().map(|&v| graph.ty(v).clone()).collect();
            eval_op(op, &x, &y, opt)
        }
    }
}

/// Applies one operation, other than an input or a variable, to tensors that it infers `y` from.
///
/// # Errors
/// An index outside its table, in words.
///
/// # Panics
/// Where operands are not what the operation takes.
pub fn eval_op(
    op: &Op,
    x: &[&Tensor],
    y: &[TensorType],
    opt: &Options,
) -> Result<Vec<Tensor>, String> {
    let results = match op {
        Op::Const(c) => vec![Tensor::from_const(&c.data)],
        Op::MatMul(op) => products::matmul(op, x, y, opt),
        Op::Conv2d(op) => vec![products::conv(op, x[0], x[1], &y[0], opt)?],
        Op::Conv2dDataGrad(op) => vec![products::conv_data_grad(op, x[0], x[1], &y[0], opt)?],
        Op::Conv2dFilterGrad(op) => vec![products::conv_filter_grad(op, x[0], x[1], &y[0], opt)?],
        Op::Attention(op) => products::attention(op, x, y, opt),
        Op::AttentionGrad(op) => products::attention_grad(op, x, y, opt),
        Op::MaxPool2d(op) => movement::max_pool(op, x[0], y)?,
        Op::MaxPool2dGrad(op) => vec![movement::max_pool_grad(op, x[0], x[1], &y[0])?],
        Op::Gather(op) => vec![movement::gather(op, x[0], x[1], &y[0])?],
        Op::ScatterAdd(op) => vec![movement::scatter_add(op, x[0], x[1], &y[0], opt)?],
        Op::LastIndex(op) => vec![movement::last_index(op, x[0], &y[0])?],
        Op::CumSum(op) => vec![along::cumsum(op, x[0], &y[0], opt)],
        Op::TopK(op) => vec![along::top_k(op, x[0], &y[0])],
        op => match op.lowering() {
            Lowering::View => vec![movement::view(op, x[0], &y[0])],
            Lowering::Assemble => vec![movement::assemble(op, x, &y[0])],
            Lowering::Rows => {
                let types: Vec<&TensorType> = x.iter().map(|t| &t.ty).collect();
                let y: Vec<&TensorType> = y.iter().collect();
                let (spec, program) = program_of(op, &types, &y);
                rows::run(&spec, &program, x, &y, opt)
            }
            Lowering::Leaf | Lowering::Kernel => {
                panic!("the interpreter does not know `{}`", op.name())
            }
        },
    };
    Ok(results.into_iter().map(|t| opt.stored(t)).collect())
}

//! What systems with fixed rules would do to the same graph, casts included.
//!
//! A baseline marks casts in a graph whose reals are all f32 ([`autocast`] on the forward graph,
//! before it is differentiated, so that gradients follow what the forward pass kept; [`grappler`]
//! on the joint graph), and [`retype`] then gives every value the format that follows from them.
//! From there on a baseline is an ordinary graph: the same kernels, schedule and prices. Its casts
//! are kernels of their own, and weights are cast in every batch, as those systems do; neither
//! folds a cast into the kernel before or after it.

pub mod addmm;
pub mod autocast;
pub mod grappler;
mod lists;

pub use crate::frontend::recipe::{Baseline, System};

use crate::ir::{Graph, Node, Region, Result_, TensorType, ValueId};
use crate::ops::{Lowering, NumericClass, Op};
use precast_plan::DType;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Where a baseline casts, and why operations run in the format they run in; by node name.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Formats that casts convert to.
    pub casts: BTreeMap<String, DType>,
    /// Formats of the first result where it does not follow from the operands.
    pub results: BTreeMap<String, DType>,
    /// The rule that an operation fell under.
    pub reasons: BTreeMap<String, &'static str>,
}

/// Operands whose formats decide the format an operation works in; others are statistics and
/// parameters that it reads as they are.
fn deciding(op: &Op, arity: usize) -> SmallVec<[usize; 6]> {
    match op {
        Op::BatchNorm(_) | Op::LayerNorm(_) | Op::Dropout(_) | Op::Gather(_) => {
            SmallVec::from_slice(&[0])
        }
        Op::CrossEntropy(_) | Op::CrossEntropyGrad(_) => SmallVec::from_slice(&[0]),
        Op::BatchNormGrad(_) | Op::LayerNormGrad(_) | Op::LayerNormParamGrad(_) => {
            SmallVec::from_slice(&[0, arity - 1])
        }
        Op::ScaleBy(_) | Op::ScatterAdd(_) => SmallVec::from_slice(&[1]),
        Op::Recurrence(_) => SmallVec::from_slice(&[0]),
        Op::RecurrenceGrad(_) => SmallVec::from_slice(&[3]),
        Op::Attention(_) | Op::AttentionGrad(_) => super::uniform_operands(op, arity).into(),
        _ => (0..arity).collect(),
    }
}

/// Whether a result has the format its operation works in; otherwise it is a statistic or a sum
/// in f32.
fn follows(op: &Op, result: usize) -> bool {
    match op {
        Op::CrossEntropy(_) | Op::ScatterAdd(_) | Op::LayerNormParamGrad(_) => false,
        Op::BatchNorm(_) | Op::LayerNorm(_) | Op::Attention(_) | Op::BatchNormGrad(_) => {
            result == 0
        }
        _ => op.def().narrow().is_none_or(|list| list.contains(&result)),
    }
}

/// The operand that alone decides what a gradient's result is: a cotangent has the format of the
/// cotangent it comes from.
fn leading(op: &Op, arity: usize) -> Option<usize> {
    match op {
        Op::BatchNormGrad(_) | Op::LayerNormGrad(_) => Some(arity - 1),
        _ => None,
    }
}

/// Values that do not decide a format beside a tensor: literals, scalars, and what is computed of
/// them alone.
fn weak(g: &Graph) -> Vec<bool> {
    let mut out = vec![false; g.value_count()];
    for (_, n) in g.nodes() {
        let literal = match &n.op {
            Op::Const(c) => c.data.shape.elements() == 1,
            Op::Input(_) | Op::Var(_) | Op::Iota(_) | Op::Cast(_) => false,
            _ => {
                !n.inputs.is_empty()
                    && n.inputs.iter().all(|&v| out[v.0 as usize] || !g.ty(v).is_real())
                    && n.inputs.iter().any(|&v| out[v.0 as usize])
            }
        };
        for &v in &n.outputs {
            out[v.0 as usize] = literal || g.shape(v).rank() == 0;
        }
    }
    out
}

/// Formats of an operation's results. `x`: formats of its operands, `None` for what is not real
/// or weak.
fn results(op: &Op, x: &[Option<DType>], given: Option<DType>) -> impl Fn(usize) -> DType {
    let wider = |a: DType, b: DType| if a.size() >= b.size() { a } else { b };
    let main = given
        .or_else(|| leading(op, x.len()).and_then(|i| x[i]))
        .or_else(|| deciding(op, x.len()).iter().filter_map(|&i| x[i]).reduce(wider))
        .filter(|_| op.class() != NumericClass::State)
        .unwrap_or(DType::F32);
    let follows: SmallVec<[bool; 4]> = (0..4).map(|i| follows(op, i)).collect();
    move |i| if follows.get(i).copied().unwrap_or(true) { main } else { DType::F32 }
}

/// Gives every value of a marked graph its format. A cast to the format that its operand already
/// has disappears, and so does one that the kernel of its only kind of reader makes while loading
/// (`promoted` of [`autocast`]).
pub fn retype(g: &Graph, marks: &Marks) -> Graph {
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let weak = weak(g);
    let mut map: Vec<ValueId> = Vec::with_capacity(g.value_count());
    for (_, n) in g.nodes() {
        let inputs: SmallVec<[ValueId; 4]> = n.inputs.iter().map(|v| map[v.0 as usize]).collect();
        if let Op::Cast(_) = n.op {
            let to = marks.casts.get(&n.name).copied().unwrap_or(DType::F32);
            let loaded = n.name.contains(autocast::PROMOTED) && n.region == Region::Forward;
            if loaded || out.ty(inputs[0]).dtype == to {
                map.push(inputs[0]);
                continue;
            }
        }
        let types = types(g, n, &inputs, &out, &weak, marks);
        map.extend(out.push(n.op.clone(), &inputs, types, n.name.clone(), n.region));
    }
    let rename = |rs: &[Result_]| -> Vec<Result_> {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: map[r.value.0 as usize] })
            .collect()
    };
    out.results = rename(&g.results);
    out.updates = rename(&g.updates);
    out.without_dead_nodes()
}

fn types(
    g: &Graph,
    n: &Node,
    inputs: &[ValueId],
    out: &Graph,
    weak: &[bool],
    marks: &Marks,
) -> Vec<TensorType> {
    let format = |(i, v): (usize, &ValueId)| {
        let real = out.ty(*v).is_real();
        let counts = real && (n.op.lowering() == Lowering::View || !weak[n.inputs[i].0 as usize]);
        counts.then(|| out.ty(*v).dtype)
    };
    let x: SmallVec<[Option<DType>; 6]> = inputs.iter().enumerate().map(format).collect();
    let cast = matches!(n.op, Op::Cast(_)).then(|| marks.casts.get(&n.name).copied()).flatten();
    let given = cast.or_else(|| marks.results.get(&n.name).copied());
    let of = results(&n.op, &x, given);
    let leaf = n.op.lowering() == Lowering::Leaf || n.region == Region::Update;
    n.outputs
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            let ty = g.ty(v);
            let dtype = if ty.is_real() && !leaf { of(i) } else { ty.dtype };
            TensorType::new(dtype, ty.shape.clone())
        })
        .collect()
}

/// Why an operation of a baseline runs in the format it runs in.
pub fn reason(g: &Graph, n: &Node, marks: &Marks) -> &'static str {
    if let Some(why) = marks.reasons.get(&n.name) {
        return why;
    }
    match (&n.op, n.region) {
        (Op::Cast(_), Region::Forward) => "its reader asks for this format",
        (Op::Cast(_), _) => "a gradient has the format of what it is the gradient of",
        (_, Region::Update) => "the update is f32",
        (_, Region::Backward) => "a gradient runs in the format of the tensors it reads",
        _ if n.inputs.iter().any(|&v| g.ty(v).is_real()) => "follows its operands",
        _ => "no rule: f32",
    }
}

/// The forward node that a node of the backward pass is the gradient of.
fn primal<'g>(g: &'g Graph, by_name: &BTreeMap<&str, &'g Node>, n: &Node) -> Option<&'g Node> {
    debug_assert!(by_name.len() == g.node_count(), "names are unique");
    let at = n.name.rfind(".grad")?;
    let rest = &n.name[at + ".grad".len()..];
    let numbered =
        rest.is_empty() || rest.strip_prefix('.').is_some_and(|k| k.parse::<u32>().is_ok());
    if numbered { by_name.get(&n.name[..at]).copied() } else { None }
}

//! The joint graph.

use super::backward::backward;
use super::build::Build;
use super::counted::{self, Step};
use super::machine::{self, names};
use super::names as own;
use super::spec::{OnNonfinite, OptimizerSpec, TrainSpec};
use super::stops::without_stops;
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::{ConstData, Graph, Real, Region, SEED, TensorType, ValueId, VarInit, VarRole};
use crate::ops::{
    AdamUpdate, Broadcast, Concat, Const, EmaUpdate, GradStats, Op, Reduce, Reshape, ScaleBy,
    SgdUpdate,
};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Turns a forward graph with a scalar result `loss` into the joint graph of a training step.
///
/// Without `keep_gradients` the outputs of the model are no results of the step. Results added:
/// with it `grad.<parameter>` (unscaled), `grad_norm`, `loss_scale`, `skipped` (0 or 1), `lr`, and
/// `counted` where the loss counts targets. The result `loss` is that of the whole step.
///
/// A step with a gradient that is not finite is not applied unless `spec` says so, and neither is one
/// whose loss counts nothing.
///
/// With a loss scale S the gradients are `scale_by(S, g)` and the updates multiply by 1/S. The
/// e-graph's scale motion carries the factor back to the seed of the backward pass; as written
/// here the graph means the same and scales too late, unless [`super::ScaleSpec::at_seed`].
///
/// # Errors
/// P0402, see [`backward`]; P0404 where a parameter has the name of a variable of the step; P0405 where no parameter influences the loss.
pub fn joint(mut g: Graph, loss: ValueId, spec: &TrainSpec, keep_gradients: bool) -> Result<Graph> {
    let first = g.node_count();
    let share = counted::share(&mut g, loss, spec);
    if spec.on_nonfinite != OnNonfinite::Ignore {
        counted::guard_buffers(&mut g);
    }
    let params: Vec<(String, ValueId)> = trained_reads(&g, &spec.frozen);
    let names: Vec<&str> = params.iter().map(|(name, _)| name.as_str()).collect();
    own::check_variables(&g, &names, spec)?;
    let wrt: Vec<ValueId> = params.iter().map(|(_, v)| *v).collect();
    let seed = {
        let data = ConstData::scalar(1.0 / (spec.accumulate as f32 * share.full as f32));
        Build { g: &mut g, region: Region::Backward }.op(SEED, Const { data }, &[])
    };
    let at_seed = spec.scale.is_some_and(|s| s.at_seed);
    let seed = if at_seed {
        let s = loss_scale(&mut g, spec).expect("there is a scale");
        Build { g: &mut g, region: Region::Backward }.op("loss.scaled_seed", ScaleBy {}, &[s, seed])
    } else {
        seed
    };
    let grads = backward(&mut g, share.value, seed, &wrt)?;
    if grads.iter().all(Option::is_none) {
        let stopped = reaches(&g, loss, &wrt);
        let (message, help) = if stopped {
            (STOPPED, "`stop_gradient` and the model's `detach` leave nothing to train: stop less")
        } else if spec.frozen.is_empty() {
            (
                "the loss depends on no parameter",
                "export the model with its weights as initializers, not folded into constants",
            )
        } else {
            ("the loss depends on no parameter that is trained", "freeze fewer parameters")
        };
        return Err(Diagnostic::error("P0405", message).help(help).into());
    }
    let mut trained: Vec<Trained> = Vec::new();
    for ((name, value), grad) in params.into_iter().zip(grads) {
        if let Some(grad) = grad {
            let rows = spec.frozen_rows.iter().find(|(n, _)| *n == name);
            let still = rows.map_or(vec![], |(_, rows)| rows.clone());
            trained.push(Trained { name, value, grad, still });
        }
    }
    if !keep_gradients {
        // Nothing of a step that only trains reads them: a loss is computed, and they are gone.
        g.results.retain(|r| !r.name.starts_with("out."));
    }
    let step = counted::step(&mut g, &share, spec);
    update_region(&mut g, &mut trained, step, spec, keep_gradients);
    own::set_apart(&mut g, first);
    let g = without_stops(&g);
    crate::ir::verify::verify(&g)?;
    Ok(g)
}

/// P0405, where stops are why nothing is trained.
pub const STOPPED: &str = "no gradient reaches a parameter: every path to one is stopped";

/// Whether a value is computed from one of some others, gradients or not.
fn reaches(g: &Graph, value: ValueId, from: &[ValueId]) -> bool {
    let mut seen = vec![false; g.value_count()];
    let mut open = vec![value];
    while let Some(v) = open.pop() {
        if from.contains(&v) {
            return true;
        }
        if !std::mem::replace(&mut seen[v.0 as usize], true) {
            open.extend(&g.def(v).inputs);
        }
    }
    false
}

/// The loss scale as the backward pass reads it.
fn loss_scale(g: &mut Graph, spec: &TrainSpec) -> Option<ValueId> {
    let scale = spec.scale?;
    let read = |op: &Op| matches!(op, Op::Var(v) if v.name == names::LOSS_SCALE);
    let known = g.nodes().find(|(_, n)| read(&n.op)).map(|(_, n)| n.outputs[0]);
    Some(known.unwrap_or_else(|| {
        let mut b = Build { g, region: Region::Backward };
        let init = VarInit::Value(scale.init);
        b.var(names::LOSS_SCALE, TensorType::f32([]), VarRole::Machine, init)
    }))
}

struct Trained {
    name: String,
    /// The parameter as the forward pass read it.
    value: ValueId,
    grad: ValueId,
    /// Rows that keep their values.
    still: Vec<usize>,
}

impl Trained {
    /// `new` with `kept` in the rows that keep their values; all of `new` where none do.
    fn except_still(&self, b: &mut Build, name: &str, new: ValueId, kept: ValueId) -> ValueId {
        if self.still.is_empty() {
            return new;
        }
        let shape = b.g.shape(new).clone();
        let mut column = vec![1; shape.rank()];
        column[0] = shape[0];
        let flags: Vec<bool> = (0..shape[0]).map(|r| self.still.contains(&r)).collect();
        let data = ConstData::from_bool(column, &flags);
        let rows = b.op(&format!("{name}.rows"), Const { data }, &[]);
        let still = b.op(&format!("{name}.still"), Broadcast { shape: shape.to_vec() }, &[rows]);
        b.select(name, still, kept, new)
    }
}

/// Every parameter the graph reads and trains, in the order of [`Graph::vars`].
fn trained_reads(g: &Graph, frozen: &[String]) -> Vec<(String, ValueId)> {
    let mut reads: FxHashMap<&str, ValueId> = FxHashMap::default();
    for (_, n) in g.nodes() {
        if let Op::Var(v) = &n.op {
            reads.entry(&v.name).or_insert(n.outputs[0]);
        }
    }
    let frozen: BTreeSet<&str> = frozen.iter().map(String::as_str).collect();
    let trained = g
        .vars
        .iter()
        .filter(|(name, var)| var.role == VarRole::Param && !frozen.contains(name.as_str()));
    trained.filter_map(|(name, _)| Some((name.clone(), *reads.get(name.as_str())?))).collect()
}

fn update_region(
    g: &mut Graph,
    trained: &mut [Trained],
    step: Step,
    spec: &TrainSpec,
    keep_gradients: bool,
) {
    let scale = loss_scale(g, spec);
    let late = scale.filter(|_| spec.scale.is_some_and(|s| !s.at_seed));
    for t in trained.iter_mut() {
        let mut b = Build { g, region: Region::Backward };
        if let Some(s) = late {
            t.grad = b.op(&format!("{}.scaled_grad", t.name), ScaleBy {}, &[s, t.grad]);
        }
        if spec.accumulate > 1 {
            let name = own::accumulator(&t.name);
            let ty = TensorType::f32(b.g.shape(t.grad).clone());
            let so_far = b.var(&name, ty.clone(), VarRole::Accumulator, VarInit::Zeros);
            let sum = b.bin(&format!("{name}.sum"), BinaryOp::Add, so_far, t.grad);
            b.update(&name, sum);
            b.region = Region::Update;
            t.grad = b.read(&name);
            let zero = b.full(&format!("{name}.reset"), 0.0, &ty.shape);
            b.update(&name, zero);
        }
        if !t.still.is_empty() {
            let shape = b.g.shape(t.grad).clone();
            let zero = b.full(&format!("{}.no_grad", t.name), 0.0, &shape);
            t.grad = t.except_still(&mut b, &format!("{}.masked_grad", t.name), t.grad, zero);
        }
    }
    let mut b = Build { g, region: Region::Update };
    let one = b.real("one", 1.0);
    let (scale_now, inverse) = match scale {
        Some(_) => {
            let s = b.read(names::LOSS_SCALE);
            (s, b.un("machine.inverse_scale", UnaryOp::Recip, s))
        }
        None => (one, one),
    };
    // What stored gradients are multiplied by to be those of the loss.
    let unscale = match (step.correction, scale) {
        (None, _) => inverse,
        (Some(c), None) => c,
        (Some(c), Some(_)) => b.bin("machine.unscale", BinaryOp::Mul, inverse, c),
    };
    if keep_gradients {
        for t in trained.iter() {
            let name = format!("{}.grad", t.name);
            let grad = match unscale == one {
                true => t.grad,
                false => b.op(&name, ScaleBy {}, &[unscale, t.grad]),
            };
            b.result(&format!("grad.{}", t.name), grad);
        }
    }
    let (norm, faults) = norm_and_faults(&mut b, trained, unscale);
    b.result("grad_norm", norm);
    let zero = b.real("zero", 0.0);
    let overflow = match scale {
        // PyTorch's GradScaler looks at every element; squares may overflow where none does.
        Some(_) => b.bin("overflow", BinaryOp::Lt, zero, faults),
        // The norm is there and says it for nothing: it is finite only where every element is.
        None => {
            let finite = b.un("grad_norm.finite", UnaryOp::IsFinite, norm);
            b.un("overflow", UnaryOp::Not, finite)
        }
    };
    let bad = match spec.on_nonfinite {
        // As in PyTorch with a disabled GradScaler.
        OnNonfinite::Ignore => None,
        OnNonfinite::Skip => Some(overflow),
        OnNonfinite::Stop => Some(machine::stop(&mut b, overflow)),
    };
    let go = match bad {
        Some(bad) => b.un("apply", UnaryOp::Not, bad),
        None => b.op("apply", Const { data: ConstData::from_bool([], &[true]) }, &[]),
    };
    let apply = match step.count {
        Some(count) => {
            let some = b.bin("counts", BinaryOp::Lt, zero, count);
            b.bin("apply.counts", BinaryOp::And, go, some)
        }
        None => go,
    };
    let factor = match spec.clip_norm {
        Some(max) => {
            // torch.nn.utils.clip_grad_norm_: max / (norm + 1e-6), at most 1.
            let eps = b.real("clip.eps", 1e-6);
            let d = b.bin("clip.denominator", BinaryOp::Add, norm, eps);
            let max = b.real("clip.max_norm", max);
            let c = b.bin("clip.ratio", BinaryOp::Div, max, d);
            let c = b.bin("clip.coefficient", BinaryOp::Min, c, one);
            b.bin("grad_factor", BinaryOp::Mul, unscale, c)
        }
        None => unscale,
    };
    // A step that the run stops at is not begun either: it is taken again.
    let begun = match spec.on_nonfinite {
        OnNonfinite::Stop => b.un("begun_now", UnaryOp::ToReal, go),
        OnNonfinite::Skip | OnNonfinite::Ignore => one,
    };
    let iteration = machine::counter(&mut b, names::ITERATION, begun);
    let applied_now = b.un("applied_now", UnaryOp::ToReal, apply);
    let applied = machine::counter(&mut b, names::APPLIED, applied_now);
    let lr = machine::learning_rate(&mut b, iteration, &spec.lr);
    b.result("lr", lr);
    let corrections = match spec.optimizer {
        OptimizerSpec::Adam { beta1, beta2, .. } => vec![
            machine::bias_correction(&mut b, "bias_correction1", applied, beta1),
            machine::bias_correction(&mut b, "bias_correction2", applied, beta2),
        ],
        OptimizerSpec::Sgd { .. } => vec![],
    };
    for t in trained.iter() {
        let scalars = Scalars { lr, factor, apply, corrections: &corrections };
        optimize(&mut b, t, spec, &scalars);
    }
    b.result("loss_scale", scale_now);
    if let Some(s) = &spec.scale {
        let stopped = bad.filter(|_| spec.on_nonfinite == OnNonfinite::Stop);
        machine::update_scale(&mut b, scale_now, overflow, stopped, s);
    }
    let skipped = match bad {
        Some(bad) => b.un("skipped", UnaryOp::ToReal, bad),
        None => zero,
    };
    b.result("skipped", skipped);
}

/// Global norm of the gradients times `unscale`, and how many of their elements are not finite.
fn norm_and_faults(b: &mut Build, trained: &[Trained], unscale: ValueId) -> (ValueId, ValueId) {
    let (mut squares, mut faults) = (Vec::new(), Vec::new());
    for t in trained {
        let name = format!("{}.grad_stats", t.name);
        let s = b.all(&name, GradStats {}, &[t.grad, unscale]);
        squares.push(b.op(&format!("{name}.square"), Reshape { shape: vec![1] }, &[s[0]]));
        faults.push(b.op(&format!("{name}.fault"), Reshape { shape: vec![1] }, &[s[1]]));
    }
    let mut total = |name: &str, parts: &[ValueId]| {
        let all = b.op(&format!("{name}.each"), Concat { axis: 0 }, parts);
        b.op(name, Reduce { f: ReduceOp::Sum, axes: vec![0] }, &[all])
    };
    let square = total("grad_norm.square", &squares);
    let bad = total("grad_norm.faults", &faults);
    (b.un("grad_norm", UnaryOp::Sqrt, square), bad)
}

struct Scalars<'a> {
    lr: ValueId,
    factor: ValueId,
    apply: ValueId,
    corrections: &'a [ValueId],
}

fn optimize(b: &mut Build, t: &Trained, spec: &TrainSpec, s: &Scalars) {
    let ty = b.g.ty(t.value).clone();
    let exempt = spec.no_decay_vectors && ty.shape.rank() <= 1;
    let decay = |w: f64| Real(if exempt { 0.0 } else { w });
    let w = b.read(&t.name);
    let states: Vec<(String, ValueId)> = spec
        .optimizer
        .states()
        .iter()
        .map(|what| {
            let name = own::state(&t.name, what);
            let ty = TensorType::f32(ty.shape.clone());
            (name.clone(), b.var(&name, ty, VarRole::Optimizer, VarInit::Zeros))
        })
        .collect();
    let name = format!("{}.update", t.name);
    let new = match spec.optimizer {
        OptimizerSpec::Sgd { momentum, nesterov, weight_decay } => {
            let op =
                SgdUpdate { momentum: Real(momentum), nesterov, weight_decay: decay(weight_decay) };
            match &states[..] {
                [] => b.op(&name, op, &[w, t.grad, s.lr, s.factor, s.apply]),
                [(vn, v)] => {
                    let y = b.all(&name, op, &[w, *v, t.grad, s.lr, s.factor, s.apply]);
                    b.update(vn, y[1]);
                    y[0]
                }
                _ => panic!("SGD has one state"),
            }
        }
        OptimizerSpec::Adam { beta1, beta2, eps, weight_decay, decoupled } => {
            let op = AdamUpdate {
                beta1: Real(beta1),
                beta2: Real(beta2),
                eps: Real(eps),
                weight_decay: decay(weight_decay),
                decoupled,
            };
            let [(mn, m), (vn, v)] = &states[..] else { panic!("Adam has two states") };
            let [c1, c2] = s.corrections else { panic!("Adam has two bias corrections") };
            let y = b.all(&name, op, &[w, *m, *v, t.grad, s.lr, s.factor, s.apply, *c1, *c2]);
            b.update(mn, y[1]);
            b.update(vn, y[2]);
            y[0]
        }
    };
    // A decay would move rows without a gradient too.
    let new = t.except_still(b, &format!("{}.kept", t.name), new, w);
    b.update(&t.name, new);
    if let Some(decay) = spec.ema {
        let ema = own::ema(&t.name);
        let old = b.var(&ema, ty, VarRole::Ema, VarInit::CopyOf(t.name.clone()));
        let op = EmaUpdate { decay: Real(decay) };
        let new = b.op(&format!("{ema}.update"), op, &[old, new, s.apply]);
        b.update(&ema, new);
    }
}

//! Normalisations.

use super::words;
use crate::diagnostic::Diagnostic;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, axis};
use crate::frontend::onnx::node::fail;
use crate::ir::{Real, Result_, ValueId};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "BatchNormalization" => return batch_norm(cx, call).map(Some),
        "LayerNormalization" => return layer_norm(cx, call, true).map(Some),
        "RMSNormalization" => return layer_norm(cx, call, false).map(Some),
        "InstanceNormalization" => group_norm(cx, call, None)?,
        "GroupNormalization" => {
            let g = call.attrs.int("num_groups", 0)?;
            let g = usize::try_from(g).ok().filter(|g| *g > 0);
            group_norm(cx, call, Some(g.ok_or_else(|| fail("P0206", "`num_groups` is missing"))?))?
        }
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

/// A vector over channels, spread over [n,c,…].
fn per_channel(cx: &mut Importer, v: &Val, shape: &[usize]) -> Res<ValueId> {
    let have = cx.shape(v)?;
    if have != [shape[1]] {
        return Err(words(format!("{have:?} is not one number for each of {} channels", shape[1])));
    }
    let mut column = vec![1; shape.len()];
    column[1] = shape[1];
    let v = cx.moved(v, &[Move::Reshape(column)])?;
    cx.spread(&v, shape)
}

fn batch_norm(cx: &mut Importer, call: &Call) -> Res<Vec<Val>> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    if shape.len() < 2 {
        return Err(words(format!("{shape:?} has no channel axis")));
    }
    let eps = call.attrs.real("epsilon", 1e-5)?;
    // Before opset 14 the statistics being results is what says so. The TorchScript exporter writes an
    // instance normalisation that tracks statistics so whatever the opset, with five results.
    let by_results = call.wants(1) && (cx.src.opset < 14 || call.outputs.len() > 3);
    let trains = call.attrs.int("training_mode", 0)? != 0 || by_results;
    // A module without running statistics normalises by those of the batch whenever it runs.
    let kept = |i: usize| match call.input(i) {
        Some(Val::Node(v)) => matches!(cx.graph.def(*v).op, Op::Var(_)),
        _ => false,
    };
    if trains && (cx.opts.training || !(kept(3) && kept(4))) {
        return train_batch_norm(cx, call, x, eps);
    }
    // Statistics that the graph computes are no running ones that should move.
    let computed = |i: usize| matches!(call.input(i), Some(Val::Node(_))) && !kept(i);
    let running = !computed(3) && !computed(4);
    if cx.opts.training && running && !cx.warnings.iter().any(|w| w.code == "P0221") {
        cx.warn(
            Diagnostic::warning(
                "P0221",
                "batch normalisation is in inference form: its statistics stay as they are, and \
                 scale and bias are trained",
            )
            .help(
                "that is right where the module was in evaluation mode to freeze it: then leave the \
                 file as it is. Else export with dynamo=False and training=TrainingMode.TRAINING, \
                 which makes every batch normalisation use the batch's statistics, frozen ones too \
                 (TrainingMode.PRESERVE takes each as it is); torch.export-based export (dynamo=True) \
                 writes inference form in any mode. See docs/EXPORTING.md",
            ),
        );
    }
    let [weight, bias, mean, var] = [1, 2, 3, 4].map(|i| call.need(i).cloned());
    let (weight, bias, mean, var) = (weight?, bias?, mean?, var?);
    let c = vec![shape[1]];
    let (w, b, m, v) = (
        cx.spread(&weight, &c)?,
        cx.spread(&bias, &c)?,
        cx.spread(&mean, &c)?,
        cx.spread(&var, &c)?,
    );
    let e = cx.full(eps, &c)?;
    let v = cx.one("var_eps", ops::Binary { f: B::Add }, &[v, e])?;
    let r = cx.one("rstd", ops::Unary { f: U::Rsqrt }, &[v])?;
    let scale = cx.one("scale", ops::Binary { f: B::Mul }, &[r, w])?;
    let t = cx.one("mean_scaled", ops::Binary { f: B::Mul }, &[m, scale])?;
    let shift = cx.one("shift", ops::Binary { f: B::Sub }, &[b, t])?;
    let scale = per_channel(cx, &Val::Node(scale), &shape)?;
    let shift = per_channel(cx, &Val::Node(shift), &shape)?;
    let y = cx.one("scaled", ops::Binary { f: B::Mul }, &[x, scale])?;
    let y = cx.one("", ops::Binary { f: B::Add }, &[y, shift])?;
    // An inference graph of a training export still names the running statistics.
    Ok(vec![Val::Node(y), mean, var])
}

/// With the batch's statistics. The running variance takes the unbiased one (divided by n−1), as
/// PyTorch does; ONNX's text says the biased one, but exporters write these nodes for PyTorch's.
fn train_batch_norm(cx: &mut Importer, call: &Call, x: ValueId, eps: f64) -> Res<Vec<Val>> {
    let shape = cx.graph.shape(x).to_vec();
    let count: usize = shape.iter().product::<usize>() / shape[1].max(1);
    if count < 2 {
        return Err(fail("P0206", format!("{count} values a channel have no variance"))
            .help("train with a larger batch"));
    }
    let (w, b) = (cx.real(call, 1)?, cx.real(call, 2)?);
    let out = cx.all("", ops::BatchNorm { eps: Real(eps) }, &[x, w, b])?;
    let momentum = call.attrs.real("momentum", 0.9)?;
    let unbiased = count as f64 / (count - 1) as f64;
    let mut results = vec![Val::Node(out[0])];
    for (i, stat, factor) in [(3, out[1], 1.0), (4, out[2], unbiased)] {
        let running = cx.real(call, i)?;
        let name = match &cx.graph.def(running).op {
            Op::Var(var) if cx.opts.training => Some(var.name.clone()),
            _ => None,
        };
        let suffix = if i == 3 { "running_mean" } else { "running_var" };
        let old = cx.one(suffix, ops::Scale { by: Real(momentum) }, &[running])?;
        let by = Real((1.0 - momentum) * factor);
        let new = cx.one(suffix, ops::Scale { by }, &[stat])?;
        let new = cx.one(suffix, ops::Binary { f: B::Add }, &[old, new])?;
        results.push(Val::Node(new));
        // What is no variable of the model is not kept.
        let Some(name) = name else { continue };
        if cx.graph.updates.iter().any(|u| u.name == name) {
            return Err(fail("P0206", format!("`{name}` is updated by two nodes"))
                .help("a module that runs twice in one step has no single running statistic"));
        }
        cx.graph.updates.push(Result_ { name, value: new });
    }
    Ok(results)
}

fn layer_norm(cx: &mut Importer, call: &Call, center: bool) -> Res<Vec<Val>> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let first = axis(call.attrs.int("axis", -1)?, shape.len()).map_err(words)?;
    let cols = shape[first..].to_vec();
    let eps = Real(call.attrs.real("epsilon", 1e-5)?);
    let weight = call.need(1)?.clone();
    let w = cx.spread(&weight, &cols)?;
    let mut inputs = vec![x, w];
    if center {
        inputs.push(match call.input(2).cloned() {
            Some(b) => cx.spread(&b, &cols)?,
            None => cx.full(0.0, &cols)?,
        });
    }
    let axes = cols.len();
    let out = cx.all("", ops::LayerNorm { eps, axes, center }, &inputs)?;
    let mut results = vec![Val::Node(out[0])];
    // ONNX keeps the normalised axes of the statistics as ones.
    let mut kept = shape;
    kept[first..].fill(1);
    for i in 1..call.outputs.len().min(out.len()) {
        let stat = if call.wants(i) { cx.reshape(out[i], &kept)? } else { out[i] };
        results.push(Val::Node(stat));
    }
    Ok(results)
}

/// Group and instance normalisation (`None`: each channel a group), as layer normalisation over
/// rows of one group each.
fn group_norm(cx: &mut Importer, call: &Call, groups: Option<usize>) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    if shape.len() < 3 {
        return Err(words(format!("{shape:?} has no spatial axis")));
    }
    let g = groups.unwrap_or(shape[1]);
    let total: usize = shape.iter().product();
    if g == 0 || !shape[1].is_multiple_of(g) || total == 0 {
        return Err(words(format!("{g} groups of {} channels", shape[1])));
    }
    let row = total / shape[0] / g;
    let rows = cx.reshape(x, &[shape[0], g, row])?;
    let (one, zero) = (cx.full(1.0, &[row])?, cx.full(0.0, &[row])?);
    let eps = Real(call.attrs.real("epsilon", 1e-5)?);
    let y = cx.one("", ops::LayerNorm { eps, axes: 1, center: true }, &[rows, one, zero])?;
    let y = cx.reshape(y, &shape)?;
    let (mut w, mut b) = (call.need(1)?.clone(), call.need(2)?.clone());
    if cx.shape(&w)? == [g] && g != shape[1] {
        // Opset 18 scales groups, not channels: each number is repeated for its channels.
        let each = shape[1] / g;
        let repeat = [
            Move::Reshape(vec![g, 1]),
            Move::Broadcast(vec![g, each]),
            Move::Reshape(vec![shape[1]]),
        ];
        w = cx.moved(&w, &repeat)?;
        b = cx.moved(&b, &repeat)?;
    }
    let (w, b) = (per_channel(cx, &w, &shape)?, per_channel(cx, &b, &shape)?);
    let y = cx.one("scale", ops::Binary { f: B::Mul }, &[y, w])?;
    cx.one("bias", ops::Binary { f: B::Add }, &[y, b])
}

//! Losses inside the model: cross-entropy and negative log-likelihood against classes.

use super::index::{elements, whole};
use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::origin;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{Real, ValueId};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, Kind, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    match call.op {
        "SoftmaxCrossEntropyLoss" => cross_entropy(cx, call).map(Some),
        "NegativeLogLikelihoodLoss" => likelihood(cx, call).map(Some),
        _ => Ok(None),
    }
}

/// The labels, and what they say is not counted: `None` where nothing is.
struct Labels {
    value: ValueId,
    ignore: Option<i64>,
}

impl Labels {
    fn of(cx: &mut Importer, call: &Call, x: ValueId) -> Res<Labels> {
        let v = call.need(1)?.clone();
        let (scores, shape) = (cx.graph.shape(x).to_vec(), cx.shape(&v)?);
        if scores.len() < 2 {
            return Err(words("the scores have no class axis".into()));
        }
        let rows = [&scores[..1], &scores[2..]].concat();
        if cx.kind(&v)? != Kind::Int || shape != rows {
            return Err(words(format!(
                "labels {shape:?} are not one integer for each place of scores {scores:?}, whose \
                 axis 1 counts the classes"
            ))
            .help(
                "where they are probabilities, write the loss out: `-(t * log_softmax(x, \
                 1)).sum(1).mean()`; or export the scores alone and name the loss in the recipe",
            ));
        }
        let ignore = match call.attrs.has("ignore_index") {
            true => Some(call.attrs.int("ignore_index", 0)?),
            false => None,
        };
        let ignore = ignore.filter(|i| i32::try_from(*i).is_ok());
        Ok(Labels { value: cx.value(&v)?, ignore })
    }

    /// Whether each is ignored.
    fn ignored(&self, cx: &mut Importer) -> Res<Option<ValueId>> {
        let Some(ignore) = self.ignore else { return Ok(None) };
        let shape = cx.graph.shape(self.value).to_vec();
        let c = Tensor::new(Elem::I64, [], Data::Int(vec![ignore]));
        let c = cx.spread(&Val::constant(c), &shape)?;
        Ok(Some(cx.one("ignored", ops::Binary { f: B::Eq }, &[self.value, c])?))
    }

    /// Classes that a table has, where the labels are classes or ignored. One that is neither is a row
    /// behind the table, so that it is an error of the data.
    fn safe(&self, cx: &mut Importer, classes: usize) -> Res<ValueId> {
        let shape = cx.graph.shape(self.value).to_vec();
        let (zero, behind) = (whole(cx, 0, &shape)?, whole(cx, classes, &shape)?);
        let below = cx.one("below", ops::Binary { f: B::Lt }, &[self.value, zero])?;
        let label = cx.one("class", ops::Select {}, &[below, behind, self.value])?;
        match self.ignored(cx)? {
            None => Ok(label),
            Some(ignored) => cx.one("class", ops::Select {}, &[ignored, zero, label]),
        }
    }

    /// How much each counts: its class's weight, and nothing where it is ignored. `None`: all count 1.
    fn weights(&self, cx: &mut Importer, call: &Call, classes: usize) -> Res<Option<ValueId>> {
        let ignored = self.ignored(cx)?;
        let shape = cx.graph.shape(self.value).to_vec();
        let weights = match call.input(2).cloned() {
            None => match ignored {
                None => return Ok(None),
                Some(_) => cx.full(1.0, &shape)?,
            },
            Some(w) => {
                let (kind, have) = (cx.kind(&w)?, cx.shape(&w)?);
                if kind != Kind::Real || have != [classes] {
                    return Err(words(format!("weights {have:?} of {classes} classes")));
                }
                let (table, class) = (cx.value(&w)?, self.safe(cx, classes)?);
                cx.one("weights", ops::Gather {}, &[table, class])?
            }
        };
        let Some(ignored) = ignored else { return Ok(Some(weights)) };
        let zero = cx.full(0.0, &shape)?;
        Ok(Some(cx.one("weights", ops::Select {}, &[ignored, zero, weights])?))
    }
}

/// The loss of losses of places: their sum, or, as PyTorch's, their mean by what each counts.
fn reduced(
    cx: &mut Importer,
    call: &Call,
    rows: ValueId,
    weights: Option<ValueId>,
) -> Res<ValueId> {
    let shape = cx.graph.shape(rows).to_vec();
    let axes: Vec<usize> = (0..shape.len()).collect();
    let total = ops::Reduce { f: ReduceOp::Sum, axes };
    match call.attrs.string("reduction", "mean")?.as_str() {
        "none" => Ok(rows),
        "sum" => cx.one("", total, &[rows]),
        "mean" => {
            let s = cx.one("sum", total.clone(), &[rows])?;
            let n = match weights {
                Some(w) => cx.one("count", total, &[w])?,
                None => cx.full(shape.iter().product::<usize>() as f64, &[])?,
            };
            cx.one("", ops::Binary { f: B::Div }, &[s, n])
        }
        other => Err(fail("P0206", format!("`reduction` is \"{other}\""))),
    }
}

/// Axis 1 brought to the end.
fn classes_last(cx: &mut Importer, x: ValueId) -> Res<ValueId> {
    let mut perm: Vec<usize> = (0..cx.graph.shape(x).rank()).collect();
    perm.remove(1);
    perm.push(1);
    cx.transpose(x, &perm)
}

/// −log softmax at the labels, 0 where they are ignored.
fn surprise(cx: &mut Importer, last: ValueId, labels: &Labels, smoothing: f64) -> Res<ValueId> {
    // A class that no label names: nothing is ignored.
    let ignore_index = labels.ignore.unwrap_or(i64::from(i32::MIN));
    let op = ops::CrossEntropy { ignore_index, label_smoothing: Real(smoothing) };
    cx.one("rows", op, &[last, labels.value])
}

/// Losses of places by their classes' weights.
fn weighted(
    cx: &mut Importer,
    call: &Call,
    rows: ValueId,
    weights: Option<ValueId>,
) -> Res<ValueId> {
    match (weights, call.input(2)) {
        (Some(w), Some(_)) => cx.one("weighted", ops::Binary { f: B::Mul }, &[rows, w]),
        _ => Ok(rows),
    }
}

/// The operator has no label smoothing, and torch.export writes a smoothed loss as one that is not; the
/// call beside the node still says it.
fn smoothing(call: &Call) -> f64 {
    let Some(from) = origin::call(call.attrs.node()) else { return 0.0 };
    if from.target != "aten.cross_entropy_loss.default" {
        return 0.0;
    }
    let given = from.arg(5, "label_smoothing").and_then(|a| a.parse::<f64>().ok());
    given.filter(|x| (0.0..=1.0).contains(x)).unwrap_or(0.0)
}

/// Σ over classes of `−log p`, by the classes' weights where there are any; classes are the last axis.
fn surprise_of_all(cx: &mut Importer, call: &Call, log_p: ValueId) -> Res<ValueId> {
    let shape = cx.graph.shape(log_p).to_vec();
    let x = match call.input(2).cloned() {
        None => log_p,
        Some(w) => {
            let w = cx.spread(&w, &shape)?;
            cx.one("by_class", ops::Binary { f: B::Mul }, &[log_p, w])?
        }
    };
    let x = cx.one("negative", ops::Unary { f: U::Neg }, &[x])?;
    cx.one("all", ops::Reduce { f: ReduceOp::Sum, axes: vec![shape.len() - 1] }, &[x])
}

/// `(1 − s) · x + s / n · all`, for a label smoothing s over n classes.
fn smoothed(cx: &mut Importer, x: ValueId, all: ValueId, s: f64, classes: usize) -> Res<ValueId> {
    let x = cx.one("rows", ops::Scale { by: Real(1.0 - s) }, &[x])?;
    let all = cx.one("all", ops::Scale { by: Real(s / classes.max(1) as f64) }, &[all])?;
    cx.one("smoothed", ops::Binary { f: B::Add }, &[x, all])
}

/// Probabilities as targets, which PyTorch has and ONNX has not; its exporters write them all the same.
/// The mean is over places, whatever the classes' weights are.
fn against_probabilities(
    cx: &mut Importer,
    call: &Call,
    last: ValueId,
    targets: &Val,
) -> Res<ValueId> {
    let shape = cx.graph.shape(last).to_vec();
    let classes = shape[shape.len() - 1];
    call.attrs.without_effect(&["ignore_index"]);
    let t = cx.value(targets)?;
    let mut t = classes_last(cx, t)?;
    let s = smoothing(call);
    if s > 0.0 {
        let even = cx.full(1.0, &shape)?;
        t = smoothed(cx, t, even, s, classes)?;
    }
    let log_p = cx.one("log_prob", ops::Softmax { log: true }, &[last])?;
    let x = cx.one("by_target", ops::Binary { f: B::Mul }, &[log_p, t])?;
    let rows = surprise_of_all(cx, call, x)?;
    reduced(cx, call, rows, None)
}

fn against_classes(cx: &mut Importer, call: &Call, last: ValueId, labels: &Labels) -> Res<ValueId> {
    let shape = cx.graph.shape(last).to_vec();
    let classes = shape[shape.len() - 1];
    let (s, by_class) = (smoothing(call), call.input(2).is_some());
    let rows = surprise(cx, last, labels, if by_class { 0.0 } else { s })?;
    let weights = labels.weights(cx, call, classes)?;
    let mut rows = weighted(cx, call, rows, weights)?;
    if by_class && s > 0.0 {
        let log_p = cx.one("log_prob", ops::Softmax { log: true }, &[last])?;
        let mut all = surprise_of_all(cx, call, log_p)?;
        if let Some(ignored) = labels.ignored(cx)? {
            let places = cx.graph.shape(all).to_vec();
            let zero = cx.full(0.0, &places)?;
            all = cx.one("all", ops::Select {}, &[ignored, zero, all])?;
        }
        rows = smoothed(cx, rows, all, s, classes)?;
    }
    reduced(cx, call, rows, weights)
}

fn cross_entropy(cx: &mut Importer, call: &Call) -> Res<Vec<Val>> {
    let x = cx.real(call, 0)?;
    let rank = cx.graph.shape(x).rank();
    let targets = call.need(1)?.clone();
    let soft = cx.kind(&targets)? == Kind::Real
        && rank >= 2
        && cx.shape(&targets)? == cx.graph.shape(x)[..]
        && cx.src.producer.starts_with("pytorch");
    let (last, loss) = if soft {
        let last = classes_last(cx, x)?;
        (last, against_probabilities(cx, call, last, &targets)?)
    } else {
        let labels = Labels::of(cx, call, x)?;
        let last = classes_last(cx, x)?;
        (last, against_classes(cx, call, last, &labels)?)
    };
    let mut results = vec![Val::Node(loss)];
    if call.wants(1) {
        let y = cx.one("log_prob", ops::Softmax { log: true }, &[last])?;
        let mut back = vec![0, rank - 1];
        back.extend(1..rank - 1);
        results.push(Val::Node(cx.transpose(y, &back)?));
    }
    Ok(results)
}

/// `NegativeLogLikelihoodLoss`: minus the first operand at the labels. Of what `LogSoftmax` gives it
/// is the cross-entropy, whose gradient does not cancel.
fn likelihood(cx: &mut Importer, call: &Call) -> Res<Vec<Val>> {
    let x = cx.real(call, 0)?;
    let labels = Labels::of(cx, call, x)?;
    let shape = cx.graph.shape(x).to_vec();
    let rows = match logits(cx, x)? {
        Some(z) => {
            let last = classes_last(cx, z)?;
            surprise(cx, last, &labels, 0.0)?
        }
        None => {
            let class = labels.safe(cx, shape[1])?;
            let places = cx.graph.shape(class).to_vec();
            let mut at = shape.clone();
            at[1] = 1;
            let index = cx.reshape(class, &at)?;
            let e = elements(cx, &Val::Node(index), &shape, 1)?;
            let table = cx.reshape(x, &[e.rows, e.width])?;
            let picked = cx.one("picked", ops::Gather {}, &[table, e.ids])?;
            let picked = cx.reshape(picked, &places)?;
            let rows = cx.one("rows", ops::Unary { f: U::Neg }, &[picked])?;
            match labels.ignored(cx)? {
                None => rows,
                Some(ignored) => {
                    let zero = cx.full(0.0, &places)?;
                    cx.one("rows", ops::Select {}, &[ignored, zero, rows])?
                }
            }
        }
    };
    let weights = labels.weights(cx, call, shape[1])?;
    let rows = weighted(cx, call, rows, weights)?;
    Ok(vec![Val::Node(reduced(cx, call, rows, weights)?)])
}

/// What a log-softmax over axis 1 is of.
fn logits(cx: &mut Importer, x: ValueId) -> Res<Option<ValueId>> {
    let rank = cx.graph.shape(x).rank();
    let n = cx.graph.def(x).clone();
    match &n.op {
        Op::Softmax(s) if s.log && rank == 2 => Ok(Some(n.inputs[0])),
        Op::Transpose(t) if t.perm[1] == rank - 1 => {
            let inner = cx.graph.def(n.inputs[0]).clone();
            match inner.op {
                Op::Softmax(s) if s.log => Ok(Some(cx.transpose(inner.inputs[0], &t.perm)?)),
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

//! Losses: appended to the forward graph as ordinary operations.

use super::build::Build;
use super::names;
use super::soft;
use super::spec::{ClassAxis, LossSpec};
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::{ConstData, Graph, Real, Region, TensorType, ValueId};
use crate::ops::{Broadcast, Const, CrossEntropy, Input, Op, Reduce, Reshape, Transpose};
use precast_plan::{BinaryOp, DType, ReduceOp, UnaryOp};

/// Result names of a loss that is a mean over counted targets: what it divides by what. They are
/// results of the forward graph alone; [`super::joint`] takes them off.
pub const SUM: &str = "loss.sum";
pub const COUNT: &str = "loss.count";

/// Appends the loss and returns it (a scalar, also the result `loss`). A mean over counted targets
/// also gives the results [`SUM`] and [`COUNT`]. Nodes of the model that are named as the step's own
/// are renamed: `loss` becomes `model.loss`.
///
/// # Errors
/// P0403: the prediction is not an output of the model, or has the wrong shape or kind; P0404: the
/// target's name is taken by an input of another type.
pub fn attach_loss(g: &mut Graph, spec: &LossSpec) -> Result<ValueId> {
    names::give_way(g);
    let loss = match spec {
        LossSpec::Sum(terms) if terms.len() != 1 || terms[0].0 != 1.0 => weighted_sum(g, terms)?,
        LossSpec::Sum(terms) => term(g, &terms[0].1, "loss")?,
        one => term(g, one, "loss")?,
    };
    let mut b = Build { g, region: Region::Forward };
    b.result("loss", loss.value);
    if let Some((sum, count)) = loss.counted {
        b.result(SUM, sum);
        b.result(COUNT, count);
    }
    Ok(loss.value)
}

/// A loss, or a part of one.
struct Term {
    /// A scalar.
    value: ValueId,
    /// What it divides by what, where it is a mean over counted targets.
    counted: Option<(ValueId, ValueId)>,
}

/// Σ weight · term, of nodes `loss.0`, `loss.1`, ….
fn weighted_sum(g: &mut Graph, terms: &[(f64, LossSpec)]) -> Result<Term> {
    let mut total: Option<ValueId> = None;
    let mut counted = None;
    for (i, (weight, spec)) in terms.iter().enumerate() {
        let prefix = format!("loss.{i}");
        let part = term(g, spec, &prefix)?;
        let mut b = Build { g, region: Region::Forward };
        // A term of which nothing counts is 0, not 0 / 0: the others are what the step is about.
        let value = match part.counted {
            Some((sum, count)) if terms.len() > 1 => {
                let one = b.real(&format!("{prefix}.one"), 1.0);
                let some = b.bin(&format!("{prefix}.some"), BinaryOp::Max, count, one);
                b.bin(&format!("{prefix}.of_counted"), BinaryOp::Div, sum, some)
            }
            _ => part.value,
        };
        let value = b.scale(&format!("{prefix}.weighted"), value, *weight);
        if let (1, Some((sum, count))) = (terms.len(), part.counted) {
            counted = Some((b.scale(&format!("{prefix}.weighted_sum"), sum, *weight), count));
        }
        total = Some(match total {
            None => value,
            Some(so_far) => b.bin(&format!("{prefix}.total"), BinaryOp::Add, so_far, value),
        });
    }
    let value = total.ok_or_else(|| Diagnostic::error("P0403", "the loss has no term"))?;
    Ok(Term { value, counted })
}

/// Appends a loss of one kind, whose nodes are called `prefix` and what follows it.
fn term(g: &mut Graph, spec: &LossSpec, prefix: &str) -> Result<Term> {
    let output = match spec {
        LossSpec::CrossEntropy { prediction, .. } | LossSpec::Mse { prediction, .. } => prediction,
        LossSpec::Output { output } => output,
        LossSpec::Sum(terms) => return weighted_sum(g, terms),
    };
    let p = g.result(&format!("out.{output}")).ok_or_else(|| {
        let known: Vec<&str> =
            g.results.iter().filter_map(|r| r.name.strip_prefix("out.")).collect();
        Diagnostic::error("P0403", format!("the model has no output `{output}`"))
            .help(crate::diagnostic::suggestion("outputs", output, &known))
    })?;
    if !g.ty(p).is_real() {
        return Err(Diagnostic::error(
            "P0403",
            format!("output `{output}` is {}, not real", g.ty(p)),
        )
        .help("a loss is of a real output, such as logits before `argmax`")
        .into());
    }
    let shape = g.shape(p).clone();
    if shape.rank() == 0 && !matches!(spec, LossSpec::Output { .. }) {
        let message = format!("output `{output}` is one number, not a prediction for each row");
        return Err(Diagnostic::error("P0403", message)
            .help("where it is the loss itself, train it as it is: `[loss] kind = \"output\"`, without a target")
            .into());
    }
    match spec {
        &LossSpec::CrossEntropy {
            ref target,
            ignore_index,
            label_smoothing,
            ref class_axis,
            ..
        } => {
            if shape.rank() < 2 {
                return Err(Diagnostic::error(
                    "P0403",
                    format!(
                        "output `{output}` is {}, without an axis of classes: logits are at least \
                         [rows, classes]",
                        g.ty(p)
                    ),
                )
                .help(
                    "axis 0 is the batch, axis 1 the classes; a regression takes `kind = \"mse\"`",
                )
                .into());
            }
            let existing = existing_input(g, target);
            let own = existing.map(|t| g.shape(t).to_vec());
            // Targets of the logits' extents are probabilities.
            let row = match (&own, class_axis) {
                (Some(t), _) => Some(&t[t.len().min(1)..]),
                (None, ClassAxis::Fits(row) | ClassAxis::Said { row, .. }) => Some(&row[..]),
                (None, _) => None,
            };
            let soft = row.is_some_and(|row| soft::probabilities(&shape, row));
            let axis = match (class_axis, &own) {
                (ClassAxis::At(axis) | ClassAxis::Said { axis, .. }, _) => {
                    given_axis(&shape, *axis)?
                }
                _ if soft => soft::only_axis(&shape, target)?,
                // A target that the model itself takes has extents of its own.
                (_, Some(t)) => fitting_axis(&shape, &t[t.len().min(1)..], target)?,
                (ClassAxis::Fits(row), None) => fitting_axis(&shape, row, target)?,
                (ClassAxis::Last, None) => shape.rank() - 1,
            };
            let t = match existing {
                Some(t) => t,
                None => {
                    let ty = match soft {
                        true => TensorType::f32(shape.clone()),
                        false => TensorType::new(DType::I64, without(&shape, axis)),
                    };
                    declare_input(g, target, &ty)?
                }
            };
            if soft {
                let s = soft::Soft { class_axis: axis, ignore_index, label_smoothing };
                let value = soft::cross_entropy(g, p, (t, target), s, prefix)?;
                return Ok(Term { value, counted: None });
            }
            let ce = CrossEntropy { ignore_index, label_smoothing: Real(label_smoothing) };
            cross_entropy(g, (p, axis), (t, target), ce, prefix)
        }
        LossSpec::Mse { target, .. } => {
            let ty = TensorType::f32(shape);
            let t = match existing_input(g, target) {
                Some(t) if *g.ty(t) == ty => t,
                Some(t) => return Err(taken(target, g.ty(t), &ty)),
                None => declare_input(g, target, &ty)?,
            };
            let mut b = Build { g, region: Region::Forward };
            let d = b.bin(&format!("{prefix}.difference"), BinaryOp::Sub, p, t);
            let sq = b.bin(&format!("{prefix}.square"), BinaryOp::Mul, d, d);
            Ok(mean(&mut b, sq, prefix))
        }
        LossSpec::Output { .. } => {
            let mut b = Build { g, region: Region::Forward };
            match shape.rank() {
                0 => Ok(Term { value: p, counted: None }),
                _ => Ok(mean(&mut b, p, prefix)),
            }
        }
        LossSpec::Sum(_) => unreachable!("sums were taken apart"),
    }
}

/// The mean over all elements.
fn mean(b: &mut Build, x: ValueId, prefix: &str) -> Term {
    let shape = b.g.shape(x).clone();
    let axes = (0..shape.rank()).collect();
    let sum = b.op(&format!("{prefix}.sum"), Reduce { f: ReduceOp::Sum, axes }, &[x]);
    let value = b.scale(prefix, sum, 1.0 / shape.elements() as f64);
    Term { value, counted: None }
}

fn existing_input(g: &Graph, name: &str) -> Option<ValueId> {
    g.nodes().find_map(|(_, n)| match &n.op {
        Op::Input(i) if i.name == name => Some(n.outputs[0]),
        _ => None,
    })
}

fn taken(name: &str, have: &TensorType, want: &TensorType) -> crate::Diagnostics {
    Diagnostic::error(
        "P0404",
        format!("the target `{name}` is an input of type {have}, not {want}"),
    )
    .help("name the target differently in `[loss] target` and `[data] targets`")
    .into()
}

fn declare_input(g: &mut Graph, name: &str, ty: &TensorType) -> Result<ValueId> {
    if g.nodes().any(|(_, n)| n.name == name) {
        return Err(Diagnostic::error("P0404", format!("the name `{name}` is taken in the model"))
            .help("name the target differently in `[loss] target` and `[data] targets`")
            .into());
    }
    Ok(Build { g, region: Region::Forward }.op(name, Input::new(name, ty), &[]))
}

/// Extents without one axis.
fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    shape.iter().enumerate().filter(|&(d, _)| d != axis).map(|(_, &n)| n).collect()
}

fn given_axis(shape: &[usize], axis: i64) -> Result<usize> {
    let rank = shape.len() as i64;
    let at = if axis < 0 { axis + rank } else { axis };
    if (1..rank).contains(&at) {
        return Ok(at as usize);
    }
    Err(Diagnostic::error("P0403", format!("logits of shape {shape:?} have no class axis {axis}"))
        .help("axis 0 is the batch; 1 is PyTorch's convention, -1 the last")
        .into())
}

/// The last axis, or axis 1, whichever leaves extents of the targets: `row`, without the batch.
/// Targets of another rank need only have as many elements, since rows of tables are flat.
fn fitting_axis(shape: &[usize], row: &[usize], target: &str) -> Result<usize> {
    let last = shape.len() - 1;
    if last == 1 {
        // The only one; whether the data fits is said where its file is bound.
        return Ok(last);
    }
    let axes = [last, 1];
    let rest = |axis: usize| without(shape, axis)[1..].to_vec();
    let exact: Vec<usize> = axes.iter().copied().filter(|&a| rest(a) == row).collect();
    let count = |a: &[usize]| a.iter().product::<usize>();
    let flat = || -> Vec<usize> {
        let fits = |&a: &usize| rest(a).len() != row.len() && count(&rest(a)) == count(row);
        axes.iter().copied().filter(fits).collect()
    };
    let found = if exact.is_empty() { flat() } else { exact };
    match found[..] {
        [axis] => Ok(axis),
        [] => {
            let takes: Vec<String> = axes.iter().map(|&a| format!("{:?}", rest(a))).collect();
            let message = format!(
                "a row of the targets `{target}` has shape {row:?}; logits of shape {shape:?} take {}",
                takes.join(" or ")
            );
            Err(Diagnostic::error("P0403", message)
                .help(
                    "targets are class numbers with the axes of the logits but for that of the classes, \
                     which `[loss] class_axis` names",
                )
                .into())
        }
        _ => {
            let message = format!(
                "targets `{target}` fit logits of shape {shape:?} with the classes on axis 1 and on \
                 the last"
            );
            Err(Diagnostic::error("P0403", message)
                .help(
                    "say which: `[loss] class_axis = 1` as in PyTorch's [n, classes, h, w], or -1 \
                     for [batch, tokens, classes]",
                )
                .into())
        }
    }
}

fn cross_entropy(
    g: &mut Graph,
    (logits, class_axis): (ValueId, usize),
    (targets, target_name): (ValueId, &str),
    op: CrossEntropy,
    prefix: &str,
) -> Result<Term> {
    let name = |what: &str| format!("{prefix}.{what}");
    let (shape, t) = (g.shape(logits).clone(), g.ty(targets).clone());
    let rank = shape.rank();
    let mut b = Build { g, region: Region::Forward };
    let mut logits = logits;
    if t.shape[..] != without(&shape, class_axis)[..] {
        return Err(Diagnostic::error(
            "P0403",
            format!(
                "targets `{target_name}` are {t}, which does not fit logits {shape} with the classes on \
                 axis {class_axis}: {}",
                crate::diagnostic::difference(
                    (&t.shape[..], "in the targets"),
                    (&without(&shape, class_axis)[..], "in the logits without it"),
                )
            ),
        )
        .help("`[loss] class_axis` names another axis")
        .into());
    }
    if class_axis != rank - 1 {
        let mut moved: Vec<usize> = (0..rank).filter(|&d| d != class_axis).collect();
        moved.push(class_axis);
        logits = b.op(&name("logits"), Transpose { perm: moved }, &[logits]);
    }
    let classes = b.g.shape(logits)[rank - 1];
    let rows = t.shape.elements();
    let flat = b.op(&name("rows"), Reshape { shape: vec![rows, classes] }, &[logits]);
    let flat_targets = b.op(&name("targets"), Reshape { shape: vec![rows] }, &[targets]);
    let ignore = ConstData::from_i64([1], &[op.ignore_index]);
    let losses = b.op(&name("cross_entropy"), op, &[flat, flat_targets]);
    let sum = b.op(&name("sum"), Reduce { f: ReduceOp::Sum, axes: vec![0] }, &[losses]);
    // The mean over targets that count. Zero of them gives NaN, as in PyTorch.
    let ignore = b.op(&name("ignore_index"), Const { data: ignore }, &[]);
    let ignore = b.op(&name("ignore_all"), Broadcast { shape: vec![rows] }, &[ignore]);
    let ignored = b.bin(&name("ignored"), BinaryOp::Eq, flat_targets, ignore);
    let counts = b.un(&name("counted"), UnaryOp::Not, ignored);
    let ones = b.un(&name("ones"), UnaryOp::ToReal, counts);
    let count = b.op(&name("count"), Reduce { f: ReduceOp::Sum, axes: vec![0] }, &[ones]);
    let value = b.bin(prefix, BinaryOp::Div, sum, count);
    Ok(Term { value, counted: Some((sum, count)) })
}

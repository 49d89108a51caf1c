//! Cross-entropy against probabilities: targets of the logits' extents.

use super::build::Build;
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::{Graph, Region, Shape, TensorType, ValueId};
use crate::ops::{Reduce, Reshape, Softmax, Transpose};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};

/// Whether a row of targets, without the batch, holds a probability for each class rather than the
/// number of one: extents decide, as in PyTorch. One class is a number.
pub fn probabilities(logits: &[usize], row: &[usize]) -> bool {
    logits[1..] == *row && (logits.len() > 2 || logits[1] > 1)
}

/// The axis of the classes, where targets do not say which: axis 1 of two.
///
/// # Errors
/// P0403 where the logits have more axes.
pub fn only_axis(logits: &Shape, target: &str) -> Result<usize> {
    if logits.rank() == 2 {
        return Ok(1);
    }
    let message = format!(
        "targets `{target}` are probabilities of the extents of the logits, {logits}, which do not say \
         which axis counts the classes"
    );
    Err(Diagnostic::error("P0403", message)
        .help(
            "say which: `[loss] class_axis = 1` as in PyTorch's [n, classes, h, w], or -1 for \
             [batch, tokens, classes]",
        )
        .into())
}

/// The mean over rows of `−Σ_c t_c ln softmax(x)_c`, where smoothing ε replaces t by
/// `(1 − ε) t + ε / classes`, as `torch.nn.functional.cross_entropy` with probabilities.
///
/// # Errors
/// P0403 for other extents, or an index to ignore: no target is an index.
pub fn cross_entropy(
    g: &mut Graph,
    logits: ValueId,
    targets: ValueId,
    target_name: &str,
    class_axis: usize,
    ignore_index: i64,
    label_smoothing: f64,
) -> Result<ValueId> {
    let (shape, t): (Shape, TensorType) = (g.shape(logits).clone(), g.ty(targets).clone());
    if t.shape != shape {
        let message = format!("targets `{target_name}` are {t}, which does not fit logits {shape}");
        return Err(Diagnostic::error("P0403", message).into());
    }
    if ignore_index != -100 {
        let message = format!("`ignore_index` with probabilities as targets `{target_name}`");
        return Err(Diagnostic::error("P0403", message)
            .help("leave it out; a row whose probabilities are all 0 adds nothing to the sum")
            .into());
    }
    let rank = shape.rank();
    let classes = shape[class_axis];
    let rows = shape.elements() / classes.max(1);
    let mut moved: Vec<usize> = (0..rank).filter(|&d| d != class_axis).collect();
    moved.push(class_axis);
    let mut b = Build { g, region: Region::Forward };
    let mut flat = |name: &str, v: ValueId| {
        let v = if class_axis == rank - 1 {
            v
        } else {
            b.op(&format!("loss.{name}"), Transpose { perm: moved.clone() }, &[v])
        };
        b.op(&format!("loss.{name}.rows"), Reshape { shape: vec![rows, classes] }, &[v])
    };
    let (x, mut t) = (flat("logits", logits), flat("targets", targets));
    if label_smoothing != 0.0 {
        let kept = b.scale("loss.kept", t, 1.0 - label_smoothing);
        let share = label_smoothing / classes as f64;
        let share = b.full("loss.share", share, &Shape::new(&[rows, classes]));
        t = b.bin("loss.smooth", BinaryOp::Add, kept, share);
    }
    let log = b.op("loss.log_probabilities", Softmax { log: true }, &[x]);
    let products = b.bin("loss.products", BinaryOp::Mul, t, log);
    let each = b.op("loss.each", Reduce { f: ReduceOp::Sum, axes: vec![1] }, &[products]);
    let sum = b.op("loss.sum", Reduce { f: ReduceOp::Sum, axes: vec![0] }, &[each]);
    let minus = b.un("loss.minus", UnaryOp::Neg, sum);
    Ok(b.scale("loss", minus, 1.0 / rows as f64))
}

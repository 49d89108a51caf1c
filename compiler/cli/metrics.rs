//! How good a model is on rows it was not trained on.

use crate::failure::Outcome;
use precast_compiler::frontend::recipe::{LossKind, LossTerm, Recipe};
use precast_plan::Storage;
use precast_runtime::data::{Batch, Dataset};
use precast_runtime::tensors::{Element, HostTensor};
use precast_runtime::{Error, Session};

/// Means over the test rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// The recipe's loss, without label smoothing.
    pub loss: f64,
    /// Share of the targets whose class has the largest logit; of the first cross-entropy.
    pub accuracy: Option<f64>,
}

/// Sums over what was counted, of one term of the loss.
#[derive(Default)]
struct Sums {
    loss: f64,
    right: u64,
    count: u64,
}

/// Runs the held-back rows through the evaluation graph; `None` where no rows were held back, or
/// nothing of them counts.
pub fn test(recipe: &Recipe, session: &mut Session, data: &Dataset) -> Outcome<Option<Metrics>> {
    if data.rows().1 == 0 || session.plan().eval.is_empty() {
        return Ok(None);
    }
    over(recipe, session, data.test_batches())
}

/// Runs batches through the evaluation graph; `None` where nothing of them counts.
pub fn over(
    recipe: &Recipe,
    session: &mut Session,
    batches: impl Iterator<Item = precast_runtime::Result<Batch>>,
) -> Outcome<Option<Metrics>> {
    let terms = &recipe.loss.terms;
    let outputs: Vec<String> =
        terms.iter().map(|t| output_name(t, session)).collect::<Outcome<_>>()?;
    let mut sums: Vec<Sums> = terms.iter().map(|_| Sums::default()).collect();
    for batch in batches {
        let batch = batch?;
        session.eval(&batch)?;
        for ((term, output), sums) in terms.iter().zip(&outputs).zip(&mut sums) {
            add(sums, term, &session.eval_result(output)?, session, &batch)?;
        }
    }
    if sums.iter().any(|s| s.count == 0) {
        return Ok(None);
    }
    let means = sums.iter().map(|s| s.loss / s.count as f64);
    let classified =
        terms.iter().zip(&sums).find(|(t, _)| matches!(t.kind, LossKind::CrossEntropy { .. }));
    Ok(Some(Metrics {
        loss: means.zip(terms).map(|(mean, t)| t.weight * mean).sum(),
        accuracy: classified.map(|(_, s)| s.right as f64 / s.count as f64),
    }))
}

/// What is wrong with a test whose loss is no number; `though` says what was found finite before.
pub fn judge(test: Option<&Metrics>, though: &str) -> Option<Error> {
    let loss = test.map(|t| t.loss).filter(|loss| !loss.is_finite())?;
    let text = format!("the test loss is {loss}{though}");
    Some(Error::new("R0608", text).help(
        "look at the rows of the test, and at what in the model overflows or divides by zero for them",
    ))
}

/// Adds what a batch holds of one term.
fn add(
    sums: &mut Sums,
    term: &LossTerm,
    prediction: &HostTensor,
    session: &Session,
    batch: &Batch,
) -> Outcome {
    // The last batch is padded; rows after `batch.rows` are not data.
    let (rows, used) = (batch_of_plan(session), batch.rows as usize);
    if term.kind == LossKind::Output {
        let x = prediction.to_f64();
        let each_row = prediction.shape.first() == Some(&(rows as u64));
        // What is no longer apart by rows counts where all of them are data.
        let x = match (each_row, used == rows) {
            (true, _) => &x[..x.len() / rows * used],
            (false, true) => &x[..],
            (false, false) => return Ok(()),
        };
        let weight = if each_row { x.len() as f64 } else { used as f64 };
        sums.loss += x.iter().sum::<f64>() / x.len() as f64 * weight;
        sums.count += weight as u64;
        return Ok(());
    }
    let target = target(term, session, batch)?;
    let x = prediction.to_f64();
    let t = target.to_f64();
    let x = &x[..used * (x.len() / session_batch(prediction))];
    let t = &t[..used * (t.len() / session_batch(&target))];
    match term.kind {
        LossKind::CrossEntropy { ignore_index, class_axis, .. } => {
            let soft = prediction.shape == target.shape;
            let axis = match (soft, class_axis) {
                (true, None) => 1,
                _ => axis_of_classes(&prediction.shape, &target.shape, class_axis),
            };
            let extents = &prediction.shape[axis..];
            let classes = extents[0] as usize;
            let inner = extents[1..].iter().product::<u64>() as usize;
            if soft {
                soft_cross_entropy(sums, x, t, (classes, inner));
            } else {
                cross_entropy(sums, x, t, (classes, inner), ignore_index);
            }
        }
        LossKind::Mse => {
            sums.loss += x.iter().zip(t).map(|(x, t)| (x - t) * (x - t)).sum::<f64>();
            sums.count += x.len() as u64;
        }
        LossKind::Output => {}
    }
    Ok(())
}

fn session_batch(t: &HostTensor) -> usize {
    t.shape.first().copied().unwrap_or(1).max(1) as usize
}

/// Rows of a batch, as data is fed to the plan.
fn batch_of_plan(session: &Session) -> usize {
    session.wanted().first().and_then(|w| w.shape.first().copied()).unwrap_or(1).max(1) as usize
}

fn output_name(term: &LossTerm, session: &Session) -> Outcome<String> {
    if let Some(name) = &term.prediction {
        return Ok(format!("out.{name}"));
    }
    let mut outputs = session.plan().eval_results.iter().filter(|r| r.name.starts_with("out."));
    match outputs.next() {
        Some(r) => Ok(r.name.clone()),
        None => Err(Error::new("R0601", "the plan's evaluation has no output").into()),
    }
}

fn target(term: &LossTerm, session: &Session, batch: &Batch) -> Outcome<HostTensor<'static>> {
    let name = term.target.as_deref().unwrap_or_default();
    let tensor = session
        .plan()
        .tensors
        .iter()
        .find(|t| t.name == *name && matches!(t.storage, Storage::Input { .. }));
    let bytes = batch.tensors.iter().find(|(n, _)| n == name);
    match (tensor, bytes) {
        (Some(t), Some((_, bytes))) => Ok(HostTensor {
            element: Element::Plan(t.dtype),
            shape: t.shape.clone(),
            bytes: bytes.clone().into(),
        }),
        _ => Err(Error::new("R0601", format!("the plan has no input `{name}`")).into()),
    }
}

/// The axis that compiling chose: the recipe's, or the one that leaves the extents of the targets,
/// of which compiling found one only.
fn axis_of_classes(logits: &[u64], targets: &[u64], given: Option<i64>) -> usize {
    let last = logits.len() - 1;
    match given {
        Some(axis) if axis < 0 => logits.len() - axis.unsigned_abs() as usize,
        Some(axis) => axis as usize,
        None if logits[..last] == *targets => last,
        None => 1,
    }
}

/// Negative log-likelihoods of logits [rows, classes, inner] at targets [rows, inner]:
/// `ln Σ exp(x − max) + max − x_t`, sums over the classes.
fn cross_entropy(
    sums: &mut Sums,
    x: &[f64],
    targets: &[f64],
    (classes, inner): (usize, usize),
    ignore: i64,
) {
    for (row, &target) in lines(x, (classes, inner)).zip(targets) {
        let target = target as i64;
        if target == ignore {
            continue;
        }
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|x| (x - max).exp()).sum();
        let Some(logit) = usize::try_from(target).ok().and_then(|t| row.get(t)) else { continue };
        sums.loss += total.ln() + max - logit;
        // A NaN among the logits makes the row wrong, since nothing equals it.
        sums.right += u64::from(row.iter().position(|x| *x == max) == Some(target as usize));
        sums.count += 1;
    }
}

/// Lines of classes of a tensor [rows, classes, inner].
fn lines(x: &[f64], (classes, inner): (usize, usize)) -> impl Iterator<Item = Vec<f64>> {
    x.chunks_exact(classes * inner).flat_map(move |part| {
        (0..inner).map(move |i| part[i..].iter().step_by(inner).copied().collect())
    })
}

/// `−Σ_c t_c ln softmax(x)_c` of every row, where targets are probabilities. Right is a row whose
/// largest logit is at the first of its largest probabilities.
fn soft_cross_entropy(sums: &mut Sums, x: &[f64], targets: &[f64], extents: (usize, usize)) {
    for (row, t) in lines(x, extents).zip(lines(targets, extents)) {
        let largest = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let max = largest(&row);
        let log = row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        sums.loss -= row.iter().zip(&t).map(|(x, t)| t * (x - max - log)).sum::<f64>();
        let first = |v: &[f64], m: f64| v.iter().position(|x| *x == m);
        let best = first(&row, max);
        sums.right += u64::from(best.is_some() && best == first(&t, largest(&t)));
        sums.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_targets_are_held_against_every_class() {
        let mut sums = Sums::default();
        soft_cross_entropy(&mut sums, &[0.0, 3f64.ln(), 1.0, 1.0], &[0.25, 0.75, 1.0, 0.0], (2, 1));
        let want = 0.25 * 4f64.ln() + 0.75 * (4.0f64 / 3.0).ln() + 2f64.ln();
        assert!((sums.loss - want).abs() < 1e-12, "{}", sums.loss);
        assert_eq!((sums.count, sums.right), (2, 2));
    }

    #[test]
    fn cross_entropy_is_counted_over_targets_that_count() {
        let mut sums = Sums::default();
        let x = [0.0, 0.0, 5.0, 0.0, 1.0, 2.0];
        cross_entropy(&mut sums, &x, &[1.0, 0.0, -100.0], (2, 1), -100);
        assert_eq!((sums.count, sums.right), (2, 1));
        let want = 2f64.ln() + (1.0 + (-5f64).exp()).ln();
        assert!((sums.loss - want).abs() < 1e-12);
    }

    #[test]
    fn classes_may_lie_before_the_axes_of_an_image() {
        // Logits [1,2,3]: three pixels, each with two classes.
        let x = [0.0, 5.0, 1.0, 0.0, 0.0, 3.0];
        let mut sums = Sums::default();
        cross_entropy(&mut sums, &x, &[1.0, 0.0, 0.0], (2, 3), -100);
        let want = 2f64.ln() + (1.0 + (-5f64).exp()).ln() + (1.0 + 2f64.exp()).ln();
        assert!((sums.loss - want).abs() < 1e-12);
        assert_eq!((sums.count, sums.right), (3, 1));
        assert_eq!(axis_of_classes(&[4, 2, 3], &[4, 3], None), 1);
        assert_eq!(axis_of_classes(&[4, 3, 2], &[4, 3], None), 2);
        assert_eq!(axis_of_classes(&[4, 3, 3], &[4, 3], Some(1)), 1);
        assert_eq!(axis_of_classes(&[4, 3, 3], &[4, 3], Some(-1)), 2);
    }
}

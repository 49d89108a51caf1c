//! `Einsum`: diagonals, sums and transposes of the operands, and a product for each pair.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::Move;
use crate::frontend::onnx::node::fail;
use crate::ir::ValueId;
use crate::ops;
use precast_plan::{BinaryOp as B, ReduceOp};

/// A letter of the equation, or an axis that `...` stands for, counted from the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// A tensor whose axes are called.
#[derive(Clone, Debug)]
struct Named {
    value: ValueId,
    axes: Vec<Label>,
}

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if call.op != "Einsum" {
        return Ok(None);
    }
    let equation = call.attrs.string("equation", "")?;
    let fault = |what: &str| words(format!("`{equation}`: {what}"));
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (&text[..], None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != call.inputs.len() {
        return Err(fault(&format!("{} terms for {} operands", terms.len(), call.inputs.len())));
    }
    let mut operands = Vec::with_capacity(terms.len());
    for (i, term) in terms.iter().enumerate() {
        let value = cx.real(call, i)?;
        let rank = cx.graph.shape(value).rank();
        let axes = labels(term, Some(rank)).map_err(|e| fault(&e))?;
        operands.push(Named { value, axes });
    }
    let deepest = operands
        .iter()
        .flat_map(|o| &o.axes)
        .filter_map(|l| if let Label::Ellipsis(d) = l { Some(d + 1) } else { None })
        .max()
        .unwrap_or(0);
    let wanted = match right {
        Some(r) if r.contains('.') => {
            let letters = r.chars().filter(|c| c.is_ascii_alphabetic()).count();
            labels(r, Some(letters + deepest)).map_err(|e| fault(&e))?
        }
        Some(r) => labels(r, None).map_err(|e| fault(&e))?,
        None => {
            // Letters that occur once, in alphabetic order, behind what `...` stands for.
            let mut all: Vec<Label> =
                operands.iter().flat_map(|o| o.axes.iter().copied()).collect();
            all.sort_unstable();
            let letters: Vec<Label> = all
                .iter()
                .copied()
                .filter(|l| matches!(l, Label::Letter(_)))
                .filter(|l| all.iter().filter(|m| *m == l).count() == 1)
                .collect();
            (0..deepest).rev().map(Label::Ellipsis).chain(letters).collect()
        }
    };
    let mut once = wanted.clone();
    once.sort_unstable();
    once.dedup();
    if once.len() != wanted.len() {
        return Err(fault("an axis of the result is named twice"));
    }
    if let Some(l) = wanted.iter().find(|l| !operands.iter().any(|o| o.axes.contains(l))) {
        return Err(fault(&format!("no operand has {l:?} of the result")));
    }
    for o in &mut operands {
        *o = diagonal(cx, o, &fault)?;
    }
    same_extents(cx, &operands, &fault)?;
    let mut rest = operands.into_iter();
    let mut acc = rest.next().ok_or_else(|| fault("no operands"))?;
    let rest: Vec<Named> = rest.collect();
    for (i, next) in rest.iter().enumerate() {
        // Axes that something later needs.
        let later =
            |l: &Label| wanted.contains(l) || rest[i + 1..].iter().any(|o| o.axes.contains(l));
        acc = pair(cx, acc, next.clone(), &later)?;
    }
    let acc = summed(cx, acc, &|l| wanted.contains(l))?;
    let perm: Vec<usize> =
        wanted.iter().map(|l| place(&acc, *l).expect("axes that are wanted are kept")).collect();
    let y = cx.transpose(acc.value, &perm)?;
    Ok(Some(vec![Val::Node(y)]))
}

/// The labels of a term. `...` stands for as many axes as the rank leaves.
fn labels(term: &str, rank: Option<usize>) -> Result<Vec<Label>, String> {
    let letters = term.chars().filter(|c| c.is_ascii_alphabetic()).count();
    let mut out = Vec::new();
    let mut rest = term;
    let mut ellipsis = false;
    while let Some(c) = rest.chars().next() {
        if let Some(r) = rest.strip_prefix("...") {
            let rank = rank.ok_or("`...` without a rank")?;
            let n = rank.checked_sub(letters).ok_or_else(|| format!("`{term}` for rank {rank}"))?;
            if std::mem::replace(&mut ellipsis, true) {
                return Err(format!("`{term}` has `...` twice"));
            }
            out.extend((0..n).rev().map(Label::Ellipsis));
            rest = r;
        } else if c.is_ascii_alphabetic() {
            out.push(Label::Letter(c));
            rest = &rest[1..];
        } else {
            return Err(format!("`{c}` is no label"));
        }
    }
    match rank {
        Some(rank) if rank != out.len() => Err(format!("`{term}` for rank {rank}")),
        _ => Ok(out),
    }
}

fn place(t: &Named, l: Label) -> Option<usize> {
    t.axes.iter().position(|a| *a == l)
}

/// Axes of one label become one: the diagonal.
fn diagonal(
    cx: &mut Importer,
    t: &Named,
    fault: &dyn Fn(&str) -> crate::diagnostic::Diagnostic,
) -> Res<Named> {
    let mut t = t.clone();
    while let Some((i, j)) =
        (0..t.axes.len()).find_map(|j| (0..j).find(|&i| t.axes[i] == t.axes[j]).map(|i| (i, j)))
    {
        let shape = cx.graph.shape(t.value).to_vec();
        let (n, rank) = (shape[i], shape.len());
        if shape[j] != n {
            return Err(fault(&format!("extents {n} and {} of one axis", shape[j])));
        }
        let rest: Vec<usize> = (0..rank).filter(|d| *d != i && *d != j).collect();
        let perm: Vec<usize> = rest.iter().copied().chain([i, j]).collect();
        let lead: Vec<usize> = rest.iter().map(|&d| shape[d]).collect();
        let flat: Vec<usize> = lead.iter().copied().chain([n * n]).collect();
        let mut steps = vec![1; lead.len()];
        steps.push(n as i64 + 1);
        let sizes: Vec<usize> = lead.iter().copied().chain([n]).collect();
        let moves = [
            Move::Transpose(perm),
            Move::Reshape(flat),
            Move::Slice { starts: vec![0; sizes.len()], sizes, steps },
        ];
        let value = cx.move_value(t.value, &moves)?;
        let label = t.axes[i];
        let mut axes: Vec<Label> = rest.iter().map(|&d| t.axes[d]).collect();
        axes.push(label);
        t = Named { value, axes };
    }
    Ok(t)
}

/// Axes of one label have one extent, or 1.
fn same_extents(
    cx: &Importer,
    operands: &[Named],
    fault: &dyn Fn(&str) -> crate::diagnostic::Diagnostic,
) -> Res<()> {
    let mut known: Vec<(Label, usize)> = vec![];
    for o in operands {
        for (&l, &n) in o.axes.iter().zip(cx.graph.shape(o.value).iter()) {
            match known.iter_mut().find(|k| k.0 == l) {
                None => known.push((l, n)),
                Some(k) if k.1 == 1 => k.1 = n,
                Some(k) if k.1 == n || n == 1 => {}
                Some(k) => return Err(fault(&format!("extents {} and {n} of one axis", k.1))),
            }
        }
    }
    Ok(())
}

/// Sums over the axes that are not kept.
fn summed(cx: &mut Importer, t: Named, kept: &dyn Fn(&Label) -> bool) -> Res<Named> {
    let gone: Vec<usize> = (0..t.axes.len()).filter(|&d| !kept(&t.axes[d])).collect();
    if gone.is_empty() {
        return Ok(t);
    }
    let axes = t.axes.iter().copied().filter(|l| kept(l)).collect();
    let value = cx.one("sum", ops::Reduce { f: ReduceOp::Sum, axes: gone }, &[t.value])?;
    Ok(Named { value, axes })
}

/// A tensor over `order`, of which it may lack some: those have extent 1.
fn ordered(cx: &mut Importer, t: &Named, order: &[Label]) -> Res<ValueId> {
    let mut perm = Vec::with_capacity(t.axes.len());
    let mut shape = Vec::with_capacity(order.len());
    for &l in order {
        match place(t, l) {
            Some(d) => {
                perm.push(d);
                shape.push(cx.graph.shape(t.value)[d]);
            }
            None => shape.push(1),
        }
    }
    cx.move_value(t.value, &[Move::Transpose(perm), Move::Reshape(shape)])
}

/// The product of two tensors, summed over the axes that nothing later needs.
fn pair(cx: &mut Importer, a: Named, b: Named, later: &dyn Fn(&Label) -> bool) -> Res<Named> {
    // What only one of them has and nothing needs is summed before.
    let a = summed(cx, a, &|l| later(l) || b.axes.contains(l))?;
    let b = summed(cx, b, &|l| later(l) || a.axes.contains(l))?;
    let extent =
        |cx: &Importer, t: &Named, l: Label| place(t, l).map_or(1, |d| cx.graph.shape(t.value)[d]);
    let both = |l: &&Label| b.axes.contains(l);
    let (batch, inner): (Vec<Label>, Vec<Label>) =
        a.axes.iter().filter(both).partition(|l| later(l));
    let of_a: Vec<Label> = a.axes.iter().copied().filter(|l| !b.axes.contains(l)).collect();
    let of_b: Vec<Label> = b.axes.iter().copied().filter(|l| !a.axes.contains(l)).collect();
    let axes: Vec<Label> = batch.iter().chain(&of_a).chain(&of_b).copied().collect();
    let wide = |cx: &Importer, l: Label| extent(cx, &a, l).max(extent(cx, &b, l));
    let spread = |cx: &mut Importer, v: ValueId, to: &[usize]| {
        cx.move_value(v, &[Move::Broadcast(to.to_vec())])
    };
    if inner.is_empty() || (of_a.is_empty() && of_b.is_empty()) {
        // Nothing is multiplied more than once: elementwise, and a sum.
        let order: Vec<Label> = axes.iter().chain(&inner).copied().collect();
        let to: Vec<usize> = order.iter().map(|&l| wide(cx, l)).collect();
        let (x, y) = (ordered(cx, &a, &order)?, ordered(cx, &b, &order)?);
        let (x, y) = (spread(cx, x, &to)?, spread(cx, y, &to)?);
        let value = cx.one("", ops::Binary { f: B::Mul }, &[x, y])?;
        return summed(cx, Named { value, axes: order }, &|l| !inner.contains(l));
    }
    let sizes = |cx: &Importer, list: &[Label]| -> Vec<usize> {
        list.iter().map(|&l| wide(cx, l)).collect()
    };
    let (lead, m, n, k) =
        (sizes(cx, &batch), sizes(cx, &of_a), sizes(cx, &of_b), sizes(cx, &inner));
    let count = |v: &[usize]| v.iter().product::<usize>();
    let mut matrix = |t: &Named, first: &[Label], second: &[Label]| -> Res<ValueId> {
        let order: Vec<Label> = batch.iter().chain(first).chain(second).copied().collect();
        let v = ordered(cx, t, &order)?;
        let to = sizes(cx, &order);
        let v = spread(cx, v, &to)?;
        let (rows, cols) = (count(&sizes(cx, first)), count(&sizes(cx, second)));
        let shape: Vec<usize> = lead.iter().copied().chain([rows, cols]).collect();
        cx.reshape(v, &shape)
    };
    let (x, y) = (matrix(&a, &of_a, &inner)?, matrix(&b, &inner, &of_b)?);
    if count(&k) == 0 {
        return Err(fail("P0214", "a sum over no elements"));
    }
    let value = cx.one("", ops::MatMul::plain(), &[x, y])?;
    let shape: Vec<usize> = lead.into_iter().chain(m).chain(n).collect();
    Ok(Named { value: cx.reshape(value, &shape)?, axes })
}

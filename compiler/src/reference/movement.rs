//! Views, assembly, pooling, rows by index.

use super::Tensor;
use crate::ir::TensorType;
use crate::ir::view::View;
use crate::ops::{Gather, LastIndex, MaxPool2d, MaxPool2dGrad, Op, ScatterAdd};
use precast_plan::{ConvGeometry, DType};

/// Buffer elements of a view in row-major order.
fn elements(v: &View) -> Vec<usize> {
    let mut out = vec![v.offset];
    for (&n, &s) in v.shape.iter().zip(&v.strides) {
        out = out.iter().flat_map(|&o| (0..n as i64).map(move |i| o + i * s)).collect();
    }
    out.into_iter().map(|i| i as usize).collect()
}

/// A `View` operation.
pub(super) fn view(op: &Op, x: &Tensor, y: &TensorType) -> Tensor {
    // A dense operand can be seen under any extents, so only an op that never is a view returns
    // nothing here, and there is none.
    let v = op
        .def()
        .view(&View::dense(x.shape()), y)
        .unwrap_or_else(|| panic!("`{}` is no view of a dense operand", op.name()));
    assert_eq!(v.shape, y.shape, "`{}`", op.name());
    x.pick(y, &elements(&v))
}

/// An `Assemble` operation.
pub(super) fn assemble(op: &Op, x: &[&Tensor], y: &TensorType) -> Tensor {
    let types: Vec<&TensorType> = x.iter().map(|t| &t.ty).collect();
    let parts = op.def().parts(&types);
    assert_eq!(parts.len(), x.len(), "`{}` has a part for each operand", op.name());
    let mut out = Tensor::zeros(y);
    for (t, part) in x.iter().zip(parts) {
        if t.shape().elements() > 0 {
            let whole = View::dense(&y.shape);
            out.place(t, &elements(&whole.slice(&part.starts, &part.steps, t.shape())));
        }
    }
    out
}

/// Calls `f(result index, window place, operand index)` for every operand element under every
/// window.
fn windows(g: &ConvGeometry, mut f: impl FnMut(usize, u8, usize)) {
    for plane in 0..g.n * g.c {
        for oy in 0..g.oh {
            for ox in 0..g.ow {
                for ky in 0..g.kh {
                    for kx in 0..g.kw {
                        let y = (oy * g.stride[0] + ky).checked_sub(g.pad[0]);
                        let x = (ox * g.stride[1] + kx).checked_sub(g.pad[1]);
                        let (Some(y), Some(x)) = (y, x) else { continue };
                        if y < g.h && x < g.w {
                            let at = (plane * g.h + y) * g.w + x;
                            let out = (plane * g.oh + oy) * g.ow + ox;
                            f(out as usize, (ky * g.kw + kx) as u8, at as usize);
                        }
                    }
                }
            }
        }
    }
}

/// NaN wins, the last of several, as in PyTorch.
pub(super) fn max_pool(
    op: &MaxPool2d,
    x: &Tensor,
    y: &[TensorType],
) -> Result<Vec<Tensor>, String> {
    let g = crate::ops::pool::pool_geometry(x.shape(), op.kernel, op.stride, op.pad)?;
    let v = x.reals();
    let mut best: Vec<Option<(f64, u8)>> = vec![None; y[0].shape.elements()];
    windows(&g, |out, place, at| {
        let wins = match best[out] {
            None => true,
            Some((b, _)) => v[at] > b || v[at].is_nan(),
        };
        if wins {
            best[out] = Some((v[at], place));
        }
    });
    let best: Vec<(f64, u8)> =
        best.into_iter().collect::<Option<_>>().ok_or("a window lies in the padding alone")?;
    Ok(vec![
        Tensor::new(y[0].clone(), super::Data::Real(best.iter().map(|b| b.0).collect())),
        Tensor::int(
            DType::U8,
            y[1].shape.clone(),
            best.iter().map(|b| i64::from(b.1)).collect::<Vec<_>>(),
        ),
    ])
}

pub(super) fn max_pool_grad(
    op: &MaxPool2dGrad,
    dy: &Tensor,
    index: &Tensor,
    y: &TensorType,
) -> Result<Tensor, String> {
    let g = crate::ops::pool::pool_geometry(&y.shape, op.kernel, op.stride, op.pad)?;
    let mut out = Tensor::zeros(y);
    let (d, dy, index) = (out.reals_mut(), dy.reals(), index.ints());
    let mut used = vec![false; dy.len()];
    windows(&g, |from, place, at| {
        if index[from] == i64::from(place) {
            d[at] += dy[from];
            used[from] = true;
        }
    });
    if used.contains(&false) {
        return Err("an index does not lie in its window".into());
    }
    Ok(out)
}

/// Row numbers of a table with `rows` rows; negative ones count from the end.
fn rows(ids: &Tensor, rows: usize) -> Result<Vec<usize>, String> {
    ids.ints()
        .iter()
        .map(|&id| {
            let at = if id < 0 { id + rows as i64 } else { id };
            usize::try_from(at)
                .ok()
                .filter(|&r| r < rows)
                .ok_or_else(|| format!("index {id} into {rows} rows"))
        })
        .collect()
}

pub(super) fn gather(
    _: &Gather,
    table: &Tensor,
    ids: &Tensor,
    y: &TensorType,
) -> Result<Tensor, String> {
    let width: usize = table.shape()[1..].iter().product();
    let index: Vec<usize> =
        rows(ids, table.shape()[0])?.into_iter().flat_map(|r| r * width..(r + 1) * width).collect();
    Ok(Tensor { ty: y.clone(), ..table.pick(y, &index) })
}

pub(super) fn scatter_add(
    op: &ScatterAdd,
    ids: &Tensor,
    dy: &Tensor,
    y: &TensorType,
    opt: &super::Options,
) -> Result<Tensor, String> {
    let width: usize = y.shape[1..].iter().product();
    let mut out = Tensor::zeros(y);
    let sums = out.reals_mut();
    for (k, r) in rows(ids, op.rows)?.into_iter().enumerate() {
        for c in 0..width {
            let s = &mut sums[r * width + c];
            *s = opt.round(*s + dy.reals()[k * width + c]);
        }
    }
    Ok(out)
}

pub(super) fn last_index(op: &LastIndex, ids: &Tensor, y: &TensorType) -> Result<Tensor, String> {
    let mut out = vec![0; op.rows];
    for (k, r) in rows(ids, op.rows)?.into_iter().enumerate() {
        out[r] = k as i64 + 1;
    }
    Ok(Tensor::new(y.clone(), super::Data::Int(out)))
}

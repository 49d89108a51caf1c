//! Pooling.

use super::window::{Axis, Planar, axes, planes, still};
use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::origin;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{ConstData, Real, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, Math, ReduceOp, UnaryOp as U};

/// Most elements of a window that the kernel counts.
const TAPS: usize = 256;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "MaxPool" => max_pool(cx, call)?,
        "AveragePool" => average_pool(cx, call)?,
        "LpPool" => lp_pool(cx, call)?,
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => global(cx, call)?,
        "LRN" => local_response(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

fn windows(cx: &Importer, call: &Call, x: ValueId) -> Res<Vec<Axis>> {
    let shape = cx.graph.shape(x);
    if !call.attrs.has("kernel_shape") {
        return Err(fail("P0206", "`kernel_shape` is missing"));
    }
    let kernel = call.attrs.sizes("kernel_shape", shape.rank().saturating_sub(2), 1)?;
    axes(call, shape, &kernel)
}

fn max_pool(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let list = windows(cx, call, x)?;
    // Of the places alone.
    call.attrs.without_effect(&["storage_order"]);
    if call.wants(1) {
        return Err(fail("P0206", "`MaxPool` with the places of its maxima as a result")
            .help("take the maxima alone, or find the places with ArgMax"));
    }
    planes(cx, x, &list, &mut max_plane)
}

/// The maximum of a window is that over rows of the maxima along each row; the first of equals in the
/// order of the window is found either way.
fn max_plane(cx: &mut Importer, x: ValueId, h: &Axis, w: &Axis) -> Res<ValueId> {
    let p = Planar::of(h, w);
    let fits = |a: &Axis| a.before.max(a.behind()) < a.kernel;
    let plain = p.dilation == [1, 1] && fits(h) && fits(w);
    if plain && p.kernel[0].saturating_mul(p.kernel[1]) <= TAPS {
        let op = ops::MaxPool2d { kernel: p.kernel, stride: p.stride, pad: p.pad };
        return cx.one("", op, &[x]);
    }
    if !h.is_nothing() && !w.is_nothing() {
        let x = max_plane(cx, x, &still(h.size), w)?;
        return max_plane(cx, x, h, &still(w.out()?));
    }
    let (d, a) = if w.is_nothing() { (2, h) } else { (3, w) };
    max_taps(cx, x, d, a)
}

/// A window along one axis as its taps, each a strided slice of the operand between blocks of −∞.
fn max_taps(cx: &mut Importer, x: ValueId, d: usize, a: &Axis) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let out = a.out()?;
    if a.kernel > 1 << 10 {
        return Err(fail("P0206", format!("a window of {} elements along an axis", a.kernel)));
    }
    let mut parts = vec![];
    for (i, n) in [a.before, usize::MAX, a.behind()].into_iter().enumerate() {
        let mut block = shape.clone();
        match (i, n) {
            (1, _) => parts.push(x),
            (_, 0) => {}
            _ => {
                block[d] = n;
                parts.push(cx.full(f64::NEG_INFINITY, &block)?);
            }
        }
    }
    let whole =
        if parts.len() == 1 { x } else { cx.one("padded", ops::Concat { axis: d }, &parts)? };
    let mut best: Option<ValueId> = None;
    for k in 0..a.kernel {
        let (mut starts, mut steps) = (vec![0; shape.len()], vec![1; shape.len()]);
        let mut sizes = shape.clone();
        (starts[d], sizes[d], steps[d]) = (k * a.dilation, out, a.stride as i64);
        let tap = cx.one("tap", ops::Slice { starts, sizes, steps }, &[whole])?;
        best = Some(match best {
            None => tap,
            Some(old) => {
                // NaN wins, the last of several, as in the kernel.
                let less = cx.one("less", ops::Binary { f: B::Lt }, &[old, tap])?;
                let same = cx.one("same", ops::Binary { f: B::Eq }, &[tap, tap])?;
                let nan = cx.one("nan", ops::Unary { f: U::Not }, &[same])?;
                let wins = cx.one("wins", ops::Binary { f: B::Or }, &[less, nan])?;
                cx.one("", ops::Select {}, &[wins, tap, old])?
            }
        });
    }
    best.ok_or_else(|| words("a window without elements".into()))
}

/// The mean over all places of every window, those outside the operand 0: a convolution of each
/// channel with a constant filter.
fn mean_plane(cx: &mut Importer, x: ValueId, h: &Axis, w: &Axis) -> Res<ValueId> {
    let p = Planar::of(h, w);
    let [kh, kw] = p.kernel;
    let c = cx.graph.shape(x)[1];
    let area = kh.saturating_mul(kw);
    let data = ConstData::from_f32([1, 1, 1, 1], &[(1.0 / area as f64) as f32]);
    let filter = cx.one("filter", ops::Const { data }, &[])?;
    let filter = cx.one("filter", ops::Broadcast { shape: vec![c, 1, kh, kw] }, &[filter])?;
    let op = ops::Conv2d {
        stride: p.stride,
        pad: p.pad,
        dilation: p.dilation,
        groups: c.max(1),
        math: Math::Exact,
    };
    cx.one("", op, &[x, filter])
}

/// What PyTorch divides the sum of every window by where `divisor_override` says so: the operator has no
/// such attribute, and torch.export drops it; the call beside the node still says it.
fn divisor(call: &Call) -> Option<f64> {
    let from = origin::call(call.attrs.node())?;
    if !["aten.avg_pool2d", "aten.avg_pool3d"].iter().any(|f| from.is(f)) {
        return None;
    }
    let given: i64 = from.arg(6, "divisor_override")?.parse().ok()?;
    (given != 0).then_some(given as f64)
}

fn average_pool(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let list = windows(cx, call, x)?;
    let y = planes(cx, x, &list, &mut mean_plane)?;
    let padded = call.attrs.int("count_include_pad", 0)? != 0;
    if let Some(divisor) = divisor(call) {
        let area: usize = list.iter().map(|a| a.kernel).product();
        return cx.one("", ops::Scale { by: Real(area as f64 / divisor) }, &[y]);
    }
    // Where places do not count, the result is rescaled by how many of each window do.
    let mut factors = vec![1.0];
    let mut shape = vec![1, 1];
    for a in &list {
        let counts = a.counts(padded)?;
        crate::frontend::onnx::fold::check_size(&[factors.len(), counts.len()])?;
        let of = |n: &usize| a.kernel as f64 / (*n).max(1) as f64;
        factors = factors.iter().flat_map(|f| counts.iter().map(move |n| f * of(n))).collect();
        shape.push(counts.len());
    }
    if factors.iter().all(|&f| f == 1.0) {
        return Ok(y);
    }
    let to = cx.graph.shape(y).to_vec();
    let f = Tensor::new(Elem::F32, shape, Data::Real(factors));
    let f = cx.spread(&Val::constant(f), &to)?;
    cx.one("counted", ops::Binary { f: B::Mul }, &[y, f])
}

/// `|x|^p`.
fn power(cx: &mut Importer, x: ValueId, p: i64) -> Res<ValueId> {
    match p {
        1 => cx.one("abs", ops::Unary { f: U::Abs }, &[x]),
        2 => cx.one("square", ops::Binary { f: B::Mul }, &[x, x]),
        p if p > 2 => {
            let a = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
            let shape = cx.graph.shape(x).to_vec();
            let p = cx.full(p as f64, &shape)?;
            cx.one("power", ops::Binary { f: B::Pow }, &[a, p])
        }
        p => Err(fail("P0206", format!("a norm of order {p}"))),
    }
}

/// `s^(1/p)` of sums that are not negative; 0 of 0, with the derivative 0 there, as PyTorch's norm.
fn root(cx: &mut Importer, s: ValueId, p: i64) -> Res<ValueId> {
    if p == 1 {
        return Ok(s);
    }
    let shape = cx.graph.shape(s).to_vec();
    let (zero, one) = (cx.full(0.0, &shape)?, cx.full(1.0, &shape)?);
    let some = cx.one("some", ops::Binary { f: B::Lt }, &[zero, s])?;
    let safe = cx.one("safe", ops::Select {}, &[some, s, one])?;
    let r = if p == 2 {
        cx.one("root", ops::Unary { f: U::Sqrt }, &[safe])?
    } else {
        let inverse = cx.full(1.0 / p as f64, &shape)?;
        cx.one("root", ops::Binary { f: B::Pow }, &[safe, inverse])?
    };
    cx.one("", ops::Select {}, &[some, r, zero])
}

fn lp_pool(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let list = windows(cx, call, x)?;
    let p = call.attrs.int("p", 2)?;
    let x = power(cx, x, p)?;
    let m = planes(cx, x, &list, &mut mean_plane)?;
    let area: usize = list.iter().map(|a| a.kernel).product();
    let s = cx.one("sum", ops::Scale { by: Real(area as f64) }, &[m])?;
    root(cx, s, p)
}

fn global(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    if shape.len() < 3 || shape.contains(&0) {
        return Err(words(format!("{shape:?} has no spatial axes")));
    }
    let axes: Vec<usize> = (2..shape.len()).collect();
    let mut kept = shape[..2].to_vec();
    kept.resize(shape.len(), 1);
    let y = match call.op {
        // PyTorch's exporter writes adaptive_max_pool so, whose cotangent goes to one element.
        "GlobalMaxPool" => {
            let flat = cx.reshape(x, &[shape[0], shape[1], shape[2..].iter().product()])?;
            cx.one("", ops::Extremum { f: ReduceOp::Max, axis: 2 }, &[flat])?
        }
        "GlobalLpPool" => {
            let p = call.attrs.int("p", 2)?;
            let x = power(cx, x, p)?;
            let s = cx.one("sum", ops::Reduce { f: ReduceOp::Sum, axes }, &[x])?;
            root(cx, s, p)?
        }
        _ => {
            let count: usize = shape[2..].iter().product();
            let s = cx.one("sum", ops::Reduce { f: ReduceOp::Sum, axes }, &[x])?;
            cx.one("", ops::Scale { by: Real(1.0 / count as f64) }, &[s])?
        }
    };
    cx.reshape(y, &kept)
}

/// `x / (bias + alpha / size · Σ x²)^beta`, the sum over `size` neighbouring channels.
fn local_response(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let size =
        usize::try_from(call.attrs.int("size", 0)?).ok().filter(|n| (1..=1 << 16).contains(n));
    let size = size.ok_or_else(|| fail("P0206", "`size` of `LRN` is missing or not positive"))?;
    if shape.len() < 2 {
        return Err(words(format!("{shape:?} has no channel axis")));
    }
    let (alpha, beta) = (call.attrs.real("alpha", 1e-4)?, call.attrs.real("beta", 0.75)?);
    let bias = call.attrs.real("bias", 1.0)?;
    let channels =
        Axis { kernel: size, before: (size - 1) / 2, after: size / 2, ..still(shape[1]) };
    let rest: usize = shape[2..].iter().product();
    let sq = cx.one("square", ops::Binary { f: B::Mul }, &[x, x])?;
    let sq = cx.reshape(sq, &[shape[0], 1, shape[1], rest])?;
    let mean = mean_plane(cx, sq, &channels, &still(rest))?;
    let mean = cx.reshape(mean, &shape)?;
    let scaled = cx.one("alpha", ops::Scale { by: Real(alpha) }, &[mean])?;
    let bias = cx.full(bias, &shape)?;
    let base = cx.one("base", ops::Binary { f: B::Add }, &[scaled, bias])?;
    let beta = cx.full(beta, &shape)?;
    let by = cx.one("power", ops::Binary { f: B::Pow }, &[base, beta])?;
    cx.one("", ops::Binary { f: B::Div }, &[x, by])
}

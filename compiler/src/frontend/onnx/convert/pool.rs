//! Pooling and resizing.

use super::linear::{linear_again, planar, window};
use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::Move;
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{ConstData, Real, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, Math, ReduceOp};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "MaxPool" => max_pool(cx, call)?,
        "AveragePool" => average_pool(cx, call)?,
        "GlobalAveragePool" | "GlobalMaxPool" => global(cx, call)?,
        "Resize" => resize(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

fn kernel(call: &Call, rank: usize) -> Res<Vec<usize>> {
    if !call.attrs.has("kernel_shape") {
        return Err(fail("P0206", "`kernel_shape` is missing"));
    }
    call.attrs.sizes("kernel_shape", rank.saturating_sub(2), 1)
}

fn max_pool(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let win = window(call, &shape, &kernel(call, shape.len())?)?;
    if win.dilation != [1, 1] || call.wants(1) || call.attrs.int("storage_order", 0)? != 0 {
        return Err(fail("P0206", "`MaxPool` with dilation or with indices as a result"));
    }
    let x = planar(cx, x, &win)?;
    let op = ops::MaxPool2d { kernel: win.kernel, stride: win.stride, pad: win.pad };
    let y = cx.one("", op, &[x])?;
    linear_again(cx, y, shape.len())
}

/// A convolution of each channel with a constant filter; where padding is not counted, the result
/// is rescaled by how many elements each window has.
fn average_pool(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let win = window(call, &shape, &kernel(call, shape.len())?)?;
    let [kh, kw] = win.kernel;
    let (c, area) = (shape[1], kh.saturating_mul(kw));
    let x = planar(cx, x, &win)?;
    let data = ConstData::from_f32([1, 1, 1, 1], &[(1.0 / area as f64) as f32]);
    let filter = cx.one("filter", ops::Const { data }, &[])?;
    let filter = cx.one("filter", ops::Broadcast { shape: vec![c, 1, kh, kw] }, &[filter])?;
    let op = ops::Conv2d {
        stride: win.stride,
        pad: win.pad,
        dilation: win.dilation,
        groups: c.max(1),
        math: Math::Exact,
    };
    let y = cx.one("", op, &[x, filter])?;
    let out = cx.graph.shape(y).to_vec();
    let y = if win.pad == [0; 4] || call.attrs.int("count_include_pad", 0)? != 0 {
        if call.attrs.int("ceil_mode", 0)? != 0 && win.pad != [0; 4] {
            return Err(fail("P0206", "`AveragePool` with `ceil_mode` and `count_include_pad`"));
        }
        y
    } else {
        let inside = |d: usize| -> Vec<f64> {
            (0..out[d + 2])
                .map(|o| {
                    let hits = (0..win.kernel[d]).filter(|k| {
                        let at =
                            (o * win.stride[d] + k * win.dilation[d]) as i64 - win.pad[d] as i64;
                        (0..win.size[d + 2] as i64).contains(&at)
                    });
                    hits.count().max(1) as f64
                })
                .collect()
        };
        crate::frontend::onnx::fold::check_size(&[out[2], out[3], kh.max(kw)])?;
        let (h, w) = (inside(0), inside(1));
        let factors = h.iter().flat_map(|a| w.iter().map(move |b| area as f64 / (a * b))).collect();
        let t = Tensor::new(Elem::F32, [1, 1, out[2], out[3]], Data::Real(factors));
        let f = cx.spread(&Val::constant(t), &out)?;
        cx.one("counted", ops::Binary { f: B::Mul }, &[y, f])?
    };
    linear_again(cx, y, shape.len())
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
    let y = if call.op == "GlobalMaxPool" {
        cx.one("", ops::Reduce { f: ReduceOp::Max, axes }, &[x])?
    } else {
        let count: usize = shape[2..].iter().product();
        let s = cx.one("sum", ops::Reduce { f: ReduceOp::Sum, axes }, &[x])?;
        cx.one("", ops::Scale { by: Real(1.0 / count as f64) }, &[s])?
    };
    cx.reshape(y, &kept)
}

/// Nearest-neighbour enlargement by whole factors: every element repeated.
fn resize(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let mode = call.attrs.string("mode", "nearest")?;
    if mode != "nearest" || call.attrs.has("axes") {
        return Err(fail("P0206", format!("`Resize` with mode \"{mode}\""))
            .help("nearest-neighbour enlargement by whole factors is supported"));
    }
    let sizes = call.ints(3)?.filter(|s| !s.is_empty());
    let scales = call.literal(2)?.filter(|s| !s.is_empty()).map(Tensor::to_reals);
    let factor = |d: usize| -> Option<usize> {
        let n = shape[d] as f64;
        let f = match (&sizes, &scales) {
            (Some(s), _) => *s.get(d)? as f64 / n,
            (None, Some(s)) => *s.get(d)?,
            _ => return None,
        };
        (f.fract() == 0.0 && (1.0..=4096.0).contains(&f)).then_some(f as usize)
    };
    let factors: Option<Vec<usize>> = (0..shape.len()).map(factor).collect();
    let factors = factors.ok_or_else(|| {
        fail("P0206", "`Resize` by a factor that is not whole")
            .help("nearest-neighbour enlargement by whole factors is supported")
    })?;
    // Rounding modes agree for whole factors, except where corners are aligned.
    if call.attrs.string("coordinate_transformation_mode", "half_pixel")? == "align_corners" {
        return Err(fail("P0206", "`Resize` with aligned corners"));
    }
    let thin: Vec<usize> = shape.iter().flat_map(|&n| [n, 1]).collect();
    let wide: Vec<usize> = shape.iter().zip(&factors).flat_map(|(&n, &f)| [n, f]).collect();
    let to: Vec<usize> = shape.iter().zip(&factors).map(|(n, f)| n * f).collect();
    cx.move_value(x, &[Move::Reshape(thin), Move::Broadcast(wide), Move::Reshape(to)])
}

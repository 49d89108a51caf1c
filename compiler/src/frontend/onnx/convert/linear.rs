//! Matrix products and convolutions.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, broadcast_shape};
use crate::frontend::onnx::node::fail;
use crate::ir::{Real, ValueId};
use crate::ops::{self, MatMul};
use precast_plan::{BinaryOp as B, Math};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "MatMul" => {
            let (a, b) = (cx.real(call, 0)?, cx.real(call, 1)?);
            matmul(cx, a, b)?
        }
        "Gemm" => gemm(cx, call)?,
        "Conv" => conv(cx, call)?,
        "ConvTranspose" => conv_transpose(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

/// Numpy's `matmul`. A batched operand times a plain matrix is one product over all its rows.
pub fn matmul(cx: &mut Importer, a: ValueId, b: ValueId) -> Res<ValueId> {
    let (sa, sb) = (cx.graph.shape(a).to_vec(), cx.graph.shape(b).to_vec());
    if sa.is_empty() || sb.is_empty() {
        return Err(words("a scalar operand".into()));
    }
    // Vectors become matrices, and their axis disappears from the result.
    let (row, column) = (sa.len() == 1, sb.len() == 1);
    let a = if row { cx.reshape(a, &[1, sa[0]])? } else { a };
    let b = if column { cx.reshape(b, &[sb[0], 1])? } else { b };
    let (sa, sb) = (cx.graph.shape(a).to_vec(), cx.graph.shape(b).to_vec());
    let (ra, rb) = (sa.len(), sb.len());
    let (m, k, n) = (sa[ra - 2], sa[ra - 1], sb[rb - 1]);
    if sb[rb - 2] != k {
        return Err(words(format!("{sa:?} and {sb:?} cannot be multiplied")));
    }
    let batch = broadcast_shape(&sa[..ra - 2], &sb[..rb - 2]).map_err(words)?;
    let mut out = batch.clone();
    let plain = sb[..rb - 2].iter().all(|&d| d == 1);
    let mut y = if plain {
        let rows = sa[..ra - 1].iter().product();
        let a = cx.reshape(a, &[rows, k])?;
        let b = cx.reshape(b, &[k, n])?;
        cx.one("", MatMul::plain(), &[a, b])?
    } else {
        let spread = |cx: &mut Importer, v, r: usize, s: &[usize]| {
            let mut to = batch.clone();
            to.extend_from_slice(&s[r - 2..]);
            cx.spread(&Val::Node(v), &to)
        };
        let (a, b) = (spread(cx, a, ra, &sa)?, spread(cx, b, rb, &sb)?);
        cx.one("", MatMul::plain(), &[a, b])?
    };
    if !row {
        out.push(m);
    }
    if !column {
        out.push(n);
    }
    y = cx.reshape(y, &out)?;
    Ok(y)
}

fn scaled(cx: &mut Importer, v: ValueId, by: f64, what: &str) -> Res<ValueId> {
    if by == 1.0 { Ok(v) } else { cx.one(what, ops::Scale { by: Real(by) }, &[v]) }
}

fn gemm(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (mut a, mut b) = (cx.real(call, 0)?, cx.real(call, 1)?);
    for (v, flag) in [(&mut a, "transA"), (&mut b, "transB")] {
        if cx.graph.shape(*v).rank() != 2 {
            return Err(words(format!("{} is not a matrix", cx.graph.ty(*v))));
        }
        if call.attrs.int(flag, 0)? != 0 {
            *v = cx.transpose(*v, &[1, 0])?;
        }
    }
    let y = cx.one("", MatMul::plain(), &[a, b])?;
    let y = scaled(cx, y, call.attrs.real("alpha", 1.0)?, "alpha")?;
    let (Some(c), beta) = (call.input(2).cloned(), call.attrs.real("beta", 1.0)?) else {
        return Ok(y);
    };
    if beta == 0.0 {
        return Ok(y);
    }
    let shape = cx.graph.shape(y).to_vec();
    let c = cx.spread(&c, &shape)?;
    let c = scaled(cx, c, beta, "beta")?;
    cx.one("bias", ops::Binary { f: B::Add }, &[y, c])
}

/// Window parameters of a convolution or pool over two axes; one axis becomes two by an extent 1 in
/// front.
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Top, left, bottom, right.
    pub pad: [usize; 4],
    pub dilation: [usize; 2],
    /// Extents of the operand, [n,c,h,w].
    pub size: Vec<usize>,
}

/// Reads `strides`, `pads`, `dilations`, `auto_pad` and `ceil_mode` for an operand [n,c,…] and a
/// kernel.
///
/// # Errors
/// P0206 for three spatial axes and for malformed lists.
pub fn window(call: &Call, x: &[usize], kernel: &[usize]) -> Res<Window> {
    let spatial = x.len().saturating_sub(2);
    if !(1..=2).contains(&spatial) || kernel.len() != spatial {
        return Err(fail(
            "P0206",
            format!("operand {x:?} with kernel {kernel:?}: one or two spatial axes are supported"),
        ));
    }
    let a = &call.attrs;
    let strides = a.sizes("strides", spatial, 1)?;
    let dilations = a.sizes("dilations", spatial, 1)?;
    let mut pads = a.sizes("pads", 2 * spatial, 0)?;
    if kernel.iter().chain(&strides).chain(&dilations).any(|&v| v == 0) {
        return Err(fail("P0206", "kernel, stride and dilation are at least 1"));
    }
    let extent = |d: usize| {
        (kernel[d] - 1)
            .checked_mul(dilations[d])
            .and_then(|w| w.checked_add(1))
            .ok_or_else(|| words("the window overflows".into()))
    };
    match a.string("auto_pad", "NOTSET")?.as_str() {
        "NOTSET" | "" => {}
        "VALID" => pads = vec![0; 2 * spatial],
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            for d in 0..spatial {
                let out = x[d + 2].div_ceil(strides[d]).max(1);
                let total = ((out - 1) * strides[d] + extent(d)?).saturating_sub(x[d + 2]);
                let (small, large) = (total / 2, total - total / 2);
                (pads[d], pads[d + spatial]) =
                    if mode == "SAME_UPPER" { (small, large) } else { (large, small) };
            }
        }
        other => return Err(fail("P0206", format!("`auto_pad` is \"{other}\""))),
    }
    if a.int("ceil_mode", 0)? != 0 {
        for d in 0..spatial {
            let (n, w, s) = (x[d + 2] + pads[d] + pads[d + spatial], extent(d)?, strides[d]);
            if n < w {
                continue;
            }
            let mut out = (n - w).div_ceil(s) + 1;
            // A window that would start in the padding behind the operand is left out.
            if (out - 1) * s >= x[d + 2] + pads[d] {
                out -= 1;
            }
            pads[d + spatial] += ((out - 1) * s + w).saturating_sub(n);
        }
    }
    let pair = |v: &[usize], fill: usize| if spatial == 2 { [v[0], v[1]] } else { [fill, v[0]] };
    let pad =
        if spatial == 2 { [pads[0], pads[1], pads[2], pads[3]] } else { [0, pads[0], 0, pads[1]] };
    let mut size = x.to_vec();
    if spatial == 1 {
        size.insert(2, 1);
    }
    Ok(Window {
        kernel: pair(kernel, 1),
        stride: pair(&strides, 1),
        dilation: pair(&dilations, 1),
        pad,
        size,
    })
}

/// The operand with two spatial axes.
pub fn planar(cx: &mut Importer, v: ValueId, w: &Window) -> Res<ValueId> {
    cx.reshape(v, &w.size)
}

/// A result with as many spatial axes as the operand had.
pub fn linear_again(cx: &mut Importer, v: ValueId, rank: usize) -> Res<ValueId> {
    if rank == 4 {
        return Ok(v);
    }
    let mut shape = cx.graph.shape(v).to_vec();
    shape.remove(2);
    cx.reshape(v, &shape)
}

fn groups(call: &Call) -> Res<usize> {
    let g = call.attrs.int("group", 1)?;
    usize::try_from(g)
        .ok()
        .filter(|g| *g > 0)
        .ok_or_else(|| fail("P0206", format!("`group` is {g}")))
}

fn add_channel_bias(cx: &mut Importer, call: &Call, y: ValueId) -> Res<ValueId> {
    let Some(b) = call.input(2).cloned() else { return Ok(y) };
    let shape = cx.graph.shape(y).to_vec();
    let n = cx.shape(&b)?;
    if n != [shape[1]] {
        return Err(words(format!("the bias is {n:?}, not [{}]", shape[1])));
    }
    let mut column = vec![1; shape.len()];
    column[1] = shape[1];
    let b = cx.moved(&b, &[Move::Reshape(column)])?;
    let b = cx.spread(&b, &shape)?;
    cx.one("bias", ops::Binary { f: B::Add }, &[y, b])
}

fn conv(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (x, w) = (cx.real(call, 0)?, cx.real(call, 1)?);
    let (sx, sw) = (cx.graph.shape(x).to_vec(), cx.graph.shape(w).to_vec());
    if sw.len() != sx.len() {
        return Err(words(format!("filters {sw:?} for an operand {sx:?}")));
    }
    let win = window(call, &sx, sw.get(2..).unwrap_or_default())?;
    let x = planar(cx, x, &win)?;
    let w = cx.reshape(w, &[sw[0], sw[1], win.kernel[0], win.kernel[1]])?;
    let op = ops::Conv2d {
        stride: win.stride,
        pad: win.pad,
        dilation: win.dilation,
        groups: groups(call)?,
        math: Math::Exact,
    };
    let y = cx.one("", op, &[x, w])?;
    let y = linear_again(cx, y, sx.len())?;
    add_channel_bias(cx, call, y)
}

/// The data gradient of a convolution is what ONNX and PyTorch call a transposed convolution.
fn conv_transpose(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (x, w) = (cx.real(call, 0)?, cx.real(call, 1)?);
    let (sx, sw) = (cx.graph.shape(x).to_vec(), cx.graph.shape(w).to_vec());
    let plain = matches!(call.attrs.string("auto_pad", "NOTSET")?.as_str(), "NOTSET" | "");
    if sx.len() != 4 || sw.len() != 4 || !plain || call.attrs.has("output_shape") {
        return Err(fail(
            "P0206",
            "`ConvTranspose` is supported over two axes with explicit `pads`",
        ));
    }
    let win = window(call, &sx, &sw[2..])?;
    let extra = call.attrs.sizes("output_padding", 2, 0)?;
    let mut size = [0; 2];
    for d in 0..2 {
        let full = sx[d + 2]
            .checked_sub(1)
            .and_then(|n| n.checked_mul(win.stride[d]))
            .and_then(|n| n.checked_add((win.kernel[d] - 1) * win.dilation[d] + 1 + extra[d]));
        size[d] = full
            .and_then(|n| n.checked_sub(win.pad[d] + win.pad[d + 2]))
            .ok_or_else(|| words(format!("the padding removes all of the result of {sx:?}")))?;
    }
    let op = ops::Conv2dDataGrad {
        stride: win.stride,
        pad: win.pad,
        dilation: win.dilation,
        groups: groups(call)?,
        size,
        math: Math::Exact,
    };
    let y = cx.one("", op, &[x, w])?;
    add_channel_bias(cx, call, y)
}

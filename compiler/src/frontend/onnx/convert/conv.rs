//! Convolutions and their transposes over one, two and three axes.

use super::window::{Axis, Planar, axes, still};
use super::words;
use crate::diagnostic::Diagnostic;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::Move;
use crate::frontend::onnx::node::fail;
use crate::ir::{ConstData, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, Math};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "Conv" => conv(cx, call)?,
        "ConvTranspose" => conv_transpose(cx, call)?,
        "Col2Im" => columns_to_image(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
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
    // torch.export writes one of zeros where the module has none; over three axes and in groups it has
    // the wrong length.
    if matches!(&b, Val::Const(t) if t.splat() == Some(0.0)) {
        return Ok(y);
    }
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

/// Operands, their extents, the windows and the groups.
struct Operands {
    x: ValueId,
    w: ValueId,
    sx: Vec<usize>,
    sw: Vec<usize>,
    list: Vec<Axis>,
    groups: usize,
}

fn operands(cx: &mut Importer, call: &Call) -> Res<Operands> {
    let (x, w) = (cx.real(call, 0)?, cx.real(call, 1)?);
    let (sx, sw) = (cx.graph.shape(x).to_vec(), cx.graph.shape(w).to_vec());
    if sw.len() != sx.len() || sx.len() < 3 {
        return Err(words(format!("filters {sw:?} for an operand {sx:?}")));
    }
    let kernel = call.attrs.sizes("kernel_shape", sw.len() - 2, 1)?;
    if call.attrs.has("kernel_shape") && kernel != sw[2..] {
        return Err(words(format!("`kernel_shape` is {kernel:?}, the filters are {sw:?}")));
    }
    let list = axes(call, &sx, &sw[2..])?;
    let groups = groups(call)?;
    Ok(Operands { x, w, sx, sw, list, groups })
}

fn conv(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let Operands { x, w, sx, sw, list, groups } = operands(cx, call)?;
    let y = match list[..] {
        [a] => {
            let x = cx.reshape(x, &[sx[0], sx[1], 1, sx[2]])?;
            let w = cx.reshape(w, &[sw[0], sw[1], 1, sw[2]])?;
            let y = planar(cx, x, w, &still(1), &a, groups)?;
            cx.reshape(y, &[sx[0], sw[0], a.out()?])?
        }
        [h, b] => planar(cx, x, w, &h, &b, groups)?,
        [d, h, b] => {
            // Groups own neighbouring channels, so that the taps of a group stay together.
            let per = sw[1];
            if groups.checked_mul(per) != Some(sx[1]) || !sw[0].is_multiple_of(groups) {
                return Err(words(format!("{groups} groups of filters {sw:?} for {sx:?}")));
            }
            let x = depth_taps(cx, x, &sx, &d, groups)?;
            let w = cx.transpose(w, &[0, 2, 1, 3, 4])?;
            let w = cx.reshape(w, &[sw[0], d.kernel * per, sw[3], sw[4]])?;
            let y = planar(cx, x, w, &h, &b, groups)?;
            let y = cx.reshape(y, &[sx[0], d.out()?, sw[0], h.out()?, b.out()?])?;
            cx.transpose(y, &[0, 2, 1, 3, 4])?
        }
        _ => return Err(words(format!("{sx:?} has no spatial axis"))),
    };
    add_channel_bias(cx, call, y)
}

fn planar(
    cx: &mut Importer,
    x: ValueId,
    w: ValueId,
    h: &Axis,
    b: &Axis,
    groups: usize,
) -> Res<ValueId> {
    let p = Planar::of(h, b);
    let Planar { stride, pad, dilation, .. } = p;
    cx.one("", ops::Conv2d { stride, pad, dilation, groups, math: Math::Exact }, &[x, w])
}

/// [n,c,d,h,w] as planes [n·od, c·taps, h, w]: what each plane of the result sees of the operand, for a
/// convolution over planes with taps times as many channels. The operand is stored that many times;
/// the product is one, with the depth of all taps.
fn depth_taps(
    cx: &mut Importer,
    x: ValueId,
    sx: &[usize],
    d: &Axis,
    groups: usize,
) -> Res<ValueId> {
    let out = d.out()?;
    let mut whole = sx.to_vec();
    whole[2] += d.before + d.behind();
    let x = if d.before + d.behind() == 0 {
        x
    } else {
        let op = ops::Pad { starts: vec![0, 0, d.before, 0, 0], steps: vec![1; 5], shape: whole };
        cx.one("padded", op, &[x])?
    };
    let per = sx[1] / groups;
    let mut taps = vec![];
    for k in 0..d.kernel {
        let op = ops::Slice {
            starts: vec![0, 0, k * d.dilation, 0, 0],
            sizes: vec![sx[0], sx[1], out, sx[3], sx[4]],
            steps: vec![1, 1, d.stride as i64, 1, 1],
        };
        let tap = cx.one("tap", op, &[x])?;
        taps.push(cx.reshape(tap, &[sx[0], groups, 1, per, out, sx[3], sx[4]])?);
    }
    let all = match taps[..] {
        [one] => one,
        _ => cx.one("taps", ops::Concat { axis: 2 }, &taps)?,
    };
    let planes = cx.transpose(all, &[0, 4, 1, 2, 3, 5, 6])?;
    cx.reshape(planes, &[sx[0] * out, sx[1] * d.kernel, sx[3], sx[4]])
}

/// An axis of a transposed convolution: the window, and the extent of the result.
struct Grown {
    window: Axis,
    size: usize,
}

/// Reads `output_padding`, `output_shape` and `auto_pad`, which here decides how much is cut off.
fn grown(call: &Call, list: &[Axis]) -> Res<Vec<Grown>> {
    let n = list.len();
    let extra = call.attrs.sizes("output_padding", n, 0)?;
    let mode = call.attrs.string("auto_pad", "NOTSET")?;
    let same = mode.starts_with("SAME");
    let wanted = match call.attrs.has("output_shape") {
        // Older files count all axes.
        true => {
            let given = call.attrs.ints("output_shape")?.unwrap_or_default().len();
            let sizes = call.attrs.sizes("output_shape", given, 0)?;
            Some(sizes.get(given.saturating_sub(n)..).unwrap_or_default().to_vec())
                .filter(|s| s.len() == n)
                .ok_or_else(|| fail("P0206", "`output_shape` has too few entries"))?
        }
        false if same => list.iter().map(|a| a.size * a.stride).collect(),
        false => vec![],
    };
    list.iter()
        .enumerate()
        .map(|(d, &a)| {
            let full = a.size.checked_sub(1).and_then(|n| n.checked_mul(a.stride));
            let full = full
                .and_then(|n| n.checked_add(a.reach() + extra[d]))
                .ok_or_else(|| words("an empty axis".into()))?;
            let mut window = a;
            let size = match wanted.get(d) {
                None => full.checked_sub(a.before + a.after),
                Some(&size) => {
                    let total = full.saturating_sub(size);
                    let (small, large) = (total / 2, total - total / 2);
                    (window.before, window.after) =
                        if mode == "SAME_UPPER" { (small, large) } else { (large, small) };
                    Some(size)
                }
            };
            let size = size
                .filter(|&n| n > 0)
                .ok_or_else(|| words("the padding removes all of the result".into()))?;
            // What is behind the windows of the result is not of this operand's making.
            let reached = (a.size - 1) * a.stride + a.reach();
            window.after = reached.saturating_sub(window.before + size);
            // The depth is put together from planes; of the other axes every element but those of
            // one stride is reached by a window.
            let most = reached + a.stride - 1 - window.before.min(reached);
            if size > most && !(n == 3 && d == 0) {
                let attr = if wanted.is_empty() { "output_padding" } else { "output_shape" };
                return Err(too_long(attr, d, size, &a, most));
            }
            Ok(Grown { window, size })
        })
        .collect()
}

fn too_long(attr: &str, axis: usize, size: usize, a: &Axis, most: usize) -> Diagnostic {
    fail(
        "P0206",
        format!(
            "`{attr}` makes {size} elements along spatial axis {axis}: {} elements under windows of {} \
             with a stride of {} reach {most} at most",
            a.size,
            a.reach(),
            a.stride
        ),
    )
    .help("leave the elements that no window reaches to a `Pad` behind it")
}

/// The data gradient of a convolution is what ONNX and PyTorch call a transposed convolution.
fn conv_transpose(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let Operands { x, w, sx, sw, list, groups } = operands(cx, call)?;
    let list = grown(call, &list)?;
    if sw[0] != sx[1] || !sx[1].is_multiple_of(groups) {
        return Err(words(format!("{groups} groups of filters {sw:?} for {sx:?}")));
    }
    let (n, per) = (sx[0], sw[1]);
    let o = per * groups;
    let y = match &list[..] {
        [a] => {
            let x = cx.reshape(x, &[n, sx[1], 1, sx[2]])?;
            let w = cx.reshape(w, &[sw[0], per, 1, sw[2]])?;
            let one = Grown { window: still(1), size: 1 };
            let y = transposed(cx, x, w, &one, a, groups)?;
            cx.reshape(y, &[n, o, a.size])?
        }
        [h, b] => transposed(cx, x, w, h, b, groups)?,
        [d, h, b] => {
            // Every tap along the depth has channels of its own; its planes go to their places.
            let taps = d.window.kernel;
            let x = cx.transpose(x, &[0, 2, 1, 3, 4])?;
            let x = cx.reshape(x, &[n * sx[2], sx[1], sx[3], sx[4]])?;
            let w = cx.reshape(w, &[sw[0], per * taps, sw[3], sw[4]])?;
            let y = transposed(cx, x, w, h, b, groups)?;
            let y = cx.reshape(y, &[n, sx[2], o, taps, h.size, b.size])?;
            let y = cx.transpose(y, &[0, 2, 3, 1, 4, 5])?;
            depth_sum(cx, y, &[n, o, sx[2], h.size, b.size], d)?
        }
        _ => return Err(words(format!("{sx:?} has no spatial axis"))),
    };
    add_channel_bias(cx, call, y)
}

fn transposed(
    cx: &mut Importer,
    x: ValueId,
    w: ValueId,
    h: &Grown,
    b: &Grown,
    groups: usize,
) -> Res<ValueId> {
    let Planar { stride, pad, dilation, .. } = Planar::of(&h.window, &b.window);
    let size = [h.size, b.size];
    let op = ops::Conv2dDataGrad { stride, pad, dilation, groups, size, math: Math::Exact };
    cx.one("", op, &[x, w])
}

/// `Col2Im`, which is PyTorch's `fold`: columns [n, c·windows, places] are added where their windows lie
/// in [n,c,h,w]. A transposed convolution of every channel alone, each tap with a filter of one 1.
fn columns_to_image(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let list = |i: usize| -> Res<Vec<usize>> {
        let given = call.ints(i)?.unwrap_or_default();
        let sizes =
            given.iter().map(|&n| usize::try_from(n).ok().filter(|n| *n > 0 && *n <= 1 << 20));
        sizes.collect::<Option<Vec<_>>>().ok_or_else(|| words(format!("extents {given:?}")))
    };
    let (image, block) = (list(1)?, list(2)?);
    if image.len() != 2 || block.len() != 2 {
        let what = format!("`Col2Im` over {} axes; two are supported", image.len());
        return Err(fail("P0206", what));
    }
    let [stride, dilation] = ["strides", "dilations"].map(|name| call.attrs.sizes(name, 2, 1));
    let (stride, dilation) = (stride?, dilation?);
    let pads = call.attrs.sizes("pads", 4, 0)?;
    let mut windows = vec![];
    for d in 0..2 {
        let (before, after) = (pads[d], pads[d + 2]);
        let reach = (block[d] - 1) * dilation[d] + 1;
        let places = (image[d] + before + after)
            .checked_sub(reach)
            .map(|n| n / stride[d].max(1) + 1)
            .ok_or_else(|| words(format!("windows {block:?} are larger than {image:?}")))?;
        let (kernel, stride, dilation) = (block[d], stride[d], dilation[d]);
        let window = Axis { size: places, kernel, stride, dilation, before, after, extra: 0 };
        windows.push(Grown { window, size: image[d] });
    }
    let taps = block[0] * block[1];
    let places = windows[0].window.size * windows[1].window.size;
    if shape.len() != 3 || !shape[1].is_multiple_of(taps) || shape[2] != places {
        return Err(words(format!(
            "columns {shape:?} are not [n, c · {taps}, {places}] for windows {block:?} in {image:?}"
        )));
    }
    let channels = shape[1] / taps;
    let x = cx.reshape(x, &[shape[0], shape[1], windows[0].window.size, windows[1].window.size])?;
    let mut filter = vec![0.0; taps * taps];
    (0..taps).for_each(|k| filter[k * taps + k] = 1.0);
    let data = ConstData::from_f32(vec![1, taps, 1, block[0], block[1]], &filter);
    let w = cx.one("filter", ops::Const { data }, &[])?;
    let wide = vec![channels, taps, 1, block[0], block[1]];
    let w = cx.move_value(
        w,
        &[Move::Broadcast(wide), Move::Reshape(vec![shape[1], 1, block[0], block[1]])],
    )?;
    transposed(cx, x, w, &windows[0], &windows[1], channels)
}

/// [n,o,taps,d,h,w] → [n,o,size,h,w]: plane i of tap k is added at `i · stride + k · dilation`.
fn depth_sum(cx: &mut Importer, y: ValueId, shape: &[usize; 5], d: &Grown) -> Res<ValueId> {
    let a = &d.window;
    let [n, o, depth, h, w] = *shape;
    let full = ((depth - 1) * a.stride + a.reach()).max(a.before + d.size);
    let mut sum: Option<ValueId> = None;
    for k in 0..a.kernel {
        let op = ops::Slice {
            starts: vec![0, 0, k, 0, 0, 0],
            sizes: vec![n, o, 1, depth, h, w],
            steps: vec![1; 6],
        };
        let tap = cx.one("tap", op, &[y])?;
        let tap = cx.reshape(tap, shape)?;
        let op = ops::Pad {
            starts: vec![0, 0, k * a.dilation, 0, 0],
            steps: vec![1, 1, a.stride as i64, 1, 1],
            shape: vec![n, o, full, h, w],
        };
        let placed = cx.one("placed", op, &[tap])?;
        sum = Some(match sum {
            None => placed,
            Some(s) => cx.one("taps", ops::Binary { f: B::Add }, &[s, placed])?,
        });
    }
    let sum = sum.ok_or_else(|| words("a window without elements".into()))?;
    let op = ops::Slice {
        starts: vec![0, 0, a.before, 0, 0],
        sizes: vec![n, o, d.size, h, w],
        steps: vec![1; 5],
    };
    cx.one("", op, &[sum])
}

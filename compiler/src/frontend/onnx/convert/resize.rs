//! Resizing, an axis at a time: nearest neighbours as views, slices or rows by index; linear and cubic
//! interpolation as products with constant matrices of weights.
//!
//! A product with [out, in] weights costs `in` multiplications for every element, of which two or four
//! count: the product of a processor or a tensor core still takes less than gathered neighbours up to
//! some hundred elements an axis.

use super::words;
use crate::frontend::onnx::fold::check_size;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, axis};
use crate::frontend::onnx::node::{fail, shortest};
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{ConstData, ValueId};
use crate::ops::{self, MatMul};
use precast_plan::Kind;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    match call.op {
        "Resize" => Ok(Some(vec![Val::Node(resize(cx, call)?)])),
        _ => Ok(None),
    }
}

/// How places of the result are found in the operand (ONNX, `Resize`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    Crop,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

struct Rules {
    mode: Mode,
    coordinates: Coordinates,
    nearest: String,
    /// The free coefficient of the cubic.
    a: f64,
    exclude_outside: bool,
    antialias: bool,
    /// What lies outside of a crop.
    outside: f64,
}

/// One axis: extents, the factor between them, and the part of the operand that a crop shows.
struct Line {
    axis: usize,
    size: usize,
    out: usize,
    scale: f64,
    roi: [f64; 2],
}

/// Where elements of the result come from: weights of elements of the operand; none outside a crop.
type Rows = Vec<Option<Vec<(usize, f64)>>>;

fn rules(call: &Call) -> Res<Rules> {
    let a = &call.attrs;
    let unknown = |what: &str, value: &str| fail("P0206", format!("`{what}` is \"{value}\""));
    let mode = a.string("mode", "nearest")?;
    let mode = match mode.as_str() {
        "nearest" => Mode::Nearest,
        "linear" => Mode::Linear,
        "cubic" => Mode::Cubic,
        other => return Err(unknown("mode", other)),
    };
    let coordinates = a.string("coordinate_transformation_mode", "half_pixel")?;
    let coordinates = match coordinates.as_str() {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "tf_crop_and_resize" => Coordinates::Crop,
        other => return Err(unknown("coordinate_transformation_mode", other)),
    };
    let nearest = a.string("nearest_mode", "round_prefer_floor")?;
    if !["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"].contains(&nearest.as_str()) {
        return Err(unknown("nearest_mode", &nearest));
    }
    Ok(Rules {
        mode,
        coordinates,
        nearest,
        a: a.real("cubic_coeff_a", -0.75)?,
        exclude_outside: a.int("exclude_outside", 0)? != 0,
        antialias: a.int("antialias", 0)? != 0 && mode != Mode::Nearest,
        outside: a.real("extrapolation_value", 0.0)?,
    })
}

/// The axes, their extents and factors.
fn lines(call: &Call, shape: &[usize], r: &Rules) -> Res<Vec<Line>> {
    let rank = shape.len();
    let list: Vec<usize> = match call.attrs.ints("axes")? {
        None => (0..rank).collect(),
        Some(l) => l.iter().map(|&a| axis(a, rank).map_err(words)).collect::<Res<_>>()?,
    };
    let reals = |i: usize| -> Res<Option<Vec<f64>>> {
        Ok(call.literal(i)?.filter(|t| !t.is_empty()).map(Tensor::to_reals))
    };
    let roi = reals(1)?;
    // A factor was written as a decimal: 0.7, not what f32 makes of it.
    let decimal = |l: Vec<f64>| l.iter().map(|&x| shortest(x as f32)).collect::<Vec<f64>>();
    let scales = reals(2)?.map(decimal);
    let sizes = call.ints(3)?.filter(|s| !s.is_empty());
    let fits = |n: usize, what: &str| match n == list.len() {
        true => Ok(()),
        false => Err(words(format!("{n} {what} for {} axes", list.len()))),
    };
    let extent = |n: f64| -> Res<usize> {
        let ok = (1.0..=f64::from(1u32 << 24)).contains(&n);
        ok.then_some(n as usize).ok_or_else(|| words(format!("an extent of {n}")))
    };
    let mut out: Vec<(f64, usize)> = match (scales, sizes) {
        (Some(_), Some(_)) => return Err(words("both scales and sizes are given".into())),
        (Some(s), None) => {
            fits(s.len(), "scales")?;
            let of = |(&s, &d): (&f64, &usize)| -> Res<(f64, usize)> {
                Ok((s, extent((s * shape[d] as f64).floor())?))
            };
            s.iter().zip(&list).map(of).collect::<Res<_>>()?
        }
        (None, Some(s)) => {
            fits(s.len(), "sizes")?;
            let of = |(&s, &d): (&i64, &usize)| -> Res<(f64, usize)> {
                Ok((s as f64 / shape[d] as f64, extent(s as f64)?))
            };
            s.iter().zip(&list).map(of).collect::<Res<_>>()?
        }
        (None, None) => return Err(words("neither scales nor sizes are given".into())),
    };
    let policy = call.attrs.string("keep_aspect_ratio_policy", "stretch")?;
    let pick = |f: fn(f64, f64) -> f64| out.iter().map(|o| o.0).reduce(f).unwrap_or(1.0);
    let one = match policy.as_str() {
        "stretch" => None,
        "not_larger" => Some(pick(f64::min)),
        "not_smaller" => Some(pick(f64::max)),
        other => return Err(fail("P0206", format!("`keep_aspect_ratio_policy` is \"{other}\""))),
    };
    if let Some(scale) = one {
        for (o, &d) in out.iter_mut().zip(&list) {
            *o = (scale, extent((scale * shape[d] as f64 + 0.5).floor())?);
        }
    }
    let crop = r.coordinates == Coordinates::Crop;
    let roi: Vec<[f64; 2]> = match roi {
        Some(l) if crop => {
            fits(l.len() / 2, "pairs of the region")?;
            (0..list.len()).map(|i| [l[i], l[i + list.len()]]).collect()
        }
        None if crop => return Err(words("the region of `tf_crop_and_resize` is missing".into())),
        _ => vec![[0.0, 1.0]; list.len()],
    };
    let made = list.iter().zip(out).zip(roi);
    Ok(made
        .map(|((&axis, (scale, out)), roi)| Line { axis, size: shape[axis], out, scale, roi })
        .collect())
}

impl Line {
    /// The place in the operand of element `x` of the result; `None` outside a crop.
    fn place(&self, x: usize, r: &Rules) -> Option<f64> {
        let (x, size) = (x as f64, self.size as f64);
        let width = self.scale * size;
        let half = (x + 0.5) / self.scale - 0.5;
        Some(match r.coordinates {
            Coordinates::HalfPixel => half,
            Coordinates::PytorchHalfPixel => {
                if width == 1.0 {
                    -0.5
                } else {
                    half
                }
            }
            Coordinates::HalfPixelSymmetric => size / 2.0 * (1.0 - self.out as f64 / width) + half,
            Coordinates::Asymmetric => x / self.scale,
            Coordinates::AlignCorners if self.out == 1 => 0.0,
            Coordinates::AlignCorners => x * (size - 1.0) / (self.out as f64 - 1.0),
            Coordinates::Crop => {
                let span = (self.roi[1] - self.roi[0]) * (size - 1.0);
                let at = if self.out == 1 { span / 2.0 } else { x * span / (width - 1.0) };
                let at = at + self.roi[0] * (size - 1.0);
                return (0.0..=size - 1.0).contains(&at).then_some(at);
            }
        })
    }

    fn rows(&self, r: &Rules) -> Rows {
        (0..self.out).map(|x| Some(self.weights(self.place(x, r)?, r))).collect()
    }

    /// Elements around a place with their weights, in ascending order.
    fn weights(&self, at: f64, r: &Rules) -> Vec<(usize, f64)> {
        let last = self.size as i64 - 1;
        if r.mode == Mode::Nearest {
            // A factor of 1/3 stored in f32 must not put the third element before itself.
            let near = (at * 2.0).round() / 2.0;
            let at = if (at - near).abs() <= 1e-6 * at.abs().max(1.0) { near } else { at };
            let i = match r.nearest.as_str() {
                "floor" => at.floor(),
                "ceil" => at.ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                _ => (at - 0.5).ceil(),
            };
            return vec![((i as i64).clamp(0, last) as usize, 1.0)];
        }
        let a = r.a;
        let kernel = |x: f64| -> f64 {
            let x = x.abs();
            match r.mode {
                Mode::Cubic if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                Mode::Cubic if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
                Mode::Cubic => 0.0,
                _ => (1.0 - x).max(0.0),
            }
        };
        // Before a smaller result the kernel is as wide as its pixels.
        let scale = if r.antialias { self.scale.min(1.0) } else { 1.0 };
        let reach = if r.mode == Mode::Cubic { 2.0 } else { 1.0 } / scale;
        let (from, to) = ((at - reach).floor() as i64, (at + reach).ceil() as i64);
        let inside = |i: i64| (0..=last).contains(&i);
        let taps: Vec<(i64, f64)> = (from..=to)
            .map(|i| (i, kernel((i as f64 - at) * scale)))
            .filter(|&(i, w)| w != 0.0 && (inside(i) || !r.exclude_outside))
            .collect();
        let sum: f64 = taps.iter().map(|t| t.1).sum();
        let sum = if r.antialias || r.exclude_outside { sum } else { 1.0 };
        let mut out: Vec<(usize, f64)> = vec![];
        for (i, w) in taps {
            let i = i.clamp(0, last) as usize;
            match out.last_mut() {
                Some(o) if o.0 == i => o.1 += w / sum,
                _ => out.push((i, w / sum)),
            }
        }
        out
    }
}

fn resize(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let r = rules(call)?;
    let given = call.need(0)?.clone();
    let kind = cx.kind(&given)?;
    if kind != Kind::Real && (r.mode != Mode::Nearest || r.coordinates == Coordinates::Crop) {
        return Err(fail("P0207", format!("the operand is {kind}, not real")));
    }
    cx.moving = r.mode == Mode::Nearest;
    let mut x = cx.value(&given)?;
    let shape = cx.graph.shape(x).to_vec();
    if shape.contains(&0) {
        return Err(words(format!("{shape:?} has no elements to resize")));
    }
    for line in lines(call, &shape, &r)? {
        let whole = line.scale * line.size as f64;
        if r.coordinates == Coordinates::AlignCorners && (whole - line.out as f64).abs() > 1e-4 {
            return Err(fail(
                "P0206",
                format!(
                    "`Resize` with aligned corners to {whole:.3} elements: PyTorch aligns the last of \
                     {}, ONNX a place behind it",
                    line.out
                ),
            )
            .help("give the size of the result instead of the factor"));
        }
        check_size(&[line.out, if r.mode == Mode::Nearest { 1 } else { line.size }])?;
        let rows = line.rows(&r);
        let is_same = |(i, row): (usize, &Option<Vec<(usize, f64)>>)| {
            row.as_ref().is_some_and(|row| row[..] == [(i, 1.0)])
        };
        if line.out == line.size && rows.iter().enumerate().all(is_same) {
            continue;
        }
        x = match r.mode {
            Mode::Nearest => nearest(cx, x, &line, &rows)?,
            _ => product(cx, x, &line, &rows)?,
        };
        if rows.iter().any(Option::is_none) {
            x = outside(cx, x, &line, &rows, r.outside)?;
        }
    }
    Ok(x)
}

/// One element of the operand for each of the result.
fn nearest(cx: &mut Importer, x: ValueId, line: &Line, rows: &Rows) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let (d, n, out) = (line.axis, line.size, line.out);
    let from: Vec<usize> = rows.iter().map(|r| r.as_ref().map_or(0, |r| r[0].0)).collect();
    let mut to = shape.clone();
    to[d] = out;
    // Every element as often as any other.
    if out.is_multiple_of(n) && from.iter().enumerate().all(|(i, &j)| j == i / (out / n)) {
        let mut thin = shape.clone();
        thin.insert(d + 1, 1);
        let mut wide = thin.clone();
        wide[d + 1] = out / n;
        return cx.move_value(x, &[Move::Reshape(thin), Move::Broadcast(wide), Move::Reshape(to)]);
    }
    // Every so manieth element.
    let step = if out > 1 { from[1] as i64 - from[0] as i64 } else { 1 };
    if step > 0 && from.windows(2).all(|w| w[1] as i64 - w[0] as i64 == step) {
        let (mut starts, mut steps) = (vec![0; shape.len()], vec![1; shape.len()]);
        (starts[d], steps[d]) = (from[0], step);
        return cx.move_value(x, &[Move::Slice { starts, sizes: to, steps }]);
    }
    let mut perm: Vec<usize> = (0..shape.len()).collect();
    perm.remove(d);
    perm.insert(0, d);
    let mut back: Vec<usize> = (1..shape.len()).collect();
    back.insert(d, 0);
    let table = cx.transpose(x, &perm)?;
    let ids: Vec<i64> = from.iter().map(|&i| i as i64).collect();
    let ids = cx.one("ids", ops::Const { data: ConstData::from_i64([out], &ids) }, &[])?;
    let y = cx.one("", ops::Gather {}, &[table, ids])?;
    cx.transpose(y, &back)
}

/// The product with a constant matrix along one axis.
fn product(cx: &mut Importer, x: ValueId, line: &Line, rows: &Rows) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let (d, n, out) = (line.axis, line.size, line.out);
    let mut to = shape.clone();
    to[d] = out;
    let (before, after): (usize, usize) =
        (shape[..d].iter().product(), shape[d + 1..].iter().product());
    let last = after == 1;
    // [n, out] behind the operand, [out, n] in front of it.
    let mut w = vec![0f32; n * out];
    for (o, row) in rows.iter().enumerate() {
        for &(i, x) in row.iter().flatten() {
            w[if last { i * out + o } else { o * n + i }] = x as f32;
        }
    }
    let extents = if last { [n, out] } else { [out, n] };
    let w = cx.one("weights", ops::Const { data: ConstData::from_f32(extents, &w) }, &[])?;
    let y = if last {
        let x = cx.reshape(x, &[before, n])?;
        cx.one("", MatMul::plain(), &[x, w])?
    } else {
        let x = cx.reshape(x, &[before, n, after])?;
        let w = cx.spread(&Val::Node(w), &[before, out, n])?;
        cx.one("", MatMul::plain(), &[w, x])?
    };
    cx.reshape(y, &to)
}

/// The value given for what lies outside of a crop.
fn outside(cx: &mut Importer, x: ValueId, line: &Line, rows: &Rows, value: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let mut thin = vec![1; shape.len()];
    thin[line.axis] = line.out;
    let inside = Data::Bool(rows.iter().map(Option::is_some).collect());
    let inside = cx.spread(&Val::constant(Tensor::new(Elem::Bool, thin, inside)), &shape)?;
    let value = cx.full(value, &shape)?;
    cx.one("outside", ops::Select {}, &[inside, x, value])
}

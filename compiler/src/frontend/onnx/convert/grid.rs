//! `GridSample`: every result is a weighted sum of elements around a place that is a value of the
//! model. All that are read go through one gather of rows of channels.

use super::index::whole;
use super::words;
use crate::frontend::onnx::fold::check_size;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, part};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{ConstData, Real, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, ReduceOp, UnaryOp as U};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

impl Mode {
    /// The place of the first element that is read, from the largest whole place that is not behind
    /// the one asked for, and the share of each in the distance t from it: coefficients of 1, t, t², t³.
    /// Keys' kernel with a = -0.75 for `Cubic`.
    fn taps(self) -> (f64, &'static [[f64; 4]]) {
        const A: f64 = -0.75;
        match self {
            Mode::Nearest => (0.0, &[[1.0, 0.0, 0.0, 0.0]]),
            Mode::Linear => (0.0, &[[1.0, -1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]),
            Mode::Cubic => (
                -1.0,
                &[
                    [0.0, A, -2.0 * A, A],
                    [1.0, 0.0, -(A + 3.0), A + 2.0],
                    [0.0, -A, 2.0 * A + 3.0, -(A + 2.0)],
                    [0.0, 0.0, A, -A],
                ],
            ),
        }
    }
}

/// Elements that are read along one axis, over `[taps, places…]`: where, whether they exist, with which
/// share.
struct Taps {
    place: ValueId,
    exists: ValueId,
    share: Option<ValueId>,
}

/// Arithmetic over one shape.
struct Plane<'a, 'b> {
    cx: &'a mut Importer<'b>,
    shape: Vec<usize>,
}

impl Plane<'_, '_> {
    fn bin(&mut self, f: B, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.cx.one("place", ops::Binary { f }, &[a, b])
    }
    fn un(&mut self, f: U, a: ValueId) -> Res<ValueId> {
        self.cx.one("place", ops::Unary { f }, &[a])
    }
    fn number(&mut self, x: f64) -> Res<ValueId> {
        self.cx.full(x, &self.shape)
    }
    fn plus(&mut self, a: ValueId, x: f64) -> Res<ValueId> {
        let x = self.number(x)?;
        self.bin(B::Add, a, x)
    }
    fn times(&mut self, a: ValueId, by: f64) -> Res<ValueId> {
        self.cx.one("place", ops::Scale { by: Real(by) }, &[a])
    }
    fn select(&mut self, c: ValueId, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.cx.one("place", ops::Select {}, &[c, a, b])
    }

    /// Within [0, n − 1]; on the bounds and beyond them nothing depends on `x`, as in PyTorch.
    fn clip(&mut self, x: ValueId, n: usize) -> Res<ValueId> {
        let (zero, last) = (self.number(0.0)?, self.number(n as f64 - 1.0)?);
        let below = self.bin(B::Lt, x, last)?;
        let y = self.select(below, x, last)?;
        let above = self.bin(B::Lt, zero, x)?;
        self.select(above, y, zero)
    }

    /// Mirrored at `low` and `low + span` until it lies between them.
    fn reflect(&mut self, x: ValueId, low: f64, span: f64) -> Res<ValueId> {
        if span == 0.0 {
            return self.number(0.0);
        }
        let from = self.plus(x, -low)?;
        let back = self.un(U::Neg, from)?;
        let zero = self.number(0.0)?;
        let under = self.bin(B::Lt, from, zero)?;
        let t = self.select(under, back, from)?;
        let turns = self.times(t, 1.0 / span)?;
        let turns = self.un(U::Floor, turns)?;
        let whole = self.times(turns, span)?;
        let rest = self.bin(B::Sub, t, whole)?;
        let half = self.times(turns, 0.5)?;
        let even = self.un(U::Floor, half)?;
        let even = self.bin(B::Eq, half, even)?;
        let span = self.number(span)?;
        let mirrored = self.bin(B::Sub, span, rest)?;
        let y = self.select(even, rest, mirrored)?;
        self.plus(y, low)
    }

    fn padded(&mut self, x: ValueId, n: usize, align: bool, padding: Padding) -> Res<ValueId> {
        match padding {
            Padding::Zeros => Ok(x),
            Padding::Border => self.clip(x, n),
            Padding::Reflection => {
                let (low, span) = if align { (0.0, n as f64 - 1.0) } else { (-0.5, n as f64) };
                let x = self.reflect(x, low, span)?;
                self.clip(x, n)
            }
        }
    }

    /// What is read along an axis of `n` elements at a normalised place in [-1, 1].
    fn taps(
        mut self,
        g: ValueId,
        n: usize,
        align: bool,
        mode: Mode,
        padding: Padding,
    ) -> Res<Taps> {
        // -1 and 1 are the centres of the first and last element where `align`, else their edges.
        let x = self.plus(g, 1.0)?;
        let mut x = if align {
            self.times(x, (n as f64 - 1.0) / 2.0)?
        } else {
            let x = self.times(x, n as f64 / 2.0)?;
            self.plus(x, -0.5)?
        };
        if mode != Mode::Cubic {
            x = self.padded(x, n, align, padding)?;
        }
        let whole = if mode == Mode::Nearest { U::RoundEven } else { U::Floor };
        let first = self.un(whole, x)?;
        let (from, shares) = mode.taps();
        let count = shares.len();
        let t = if count > 1 { Some(self.bin(B::Sub, x, first)?) } else { None };
        let first = self.plus(first, from)?;
        // From here on over taps and places.
        let places = std::mem::take(&mut self.shape);
        self.shape = [vec![count], places.clone()].concat();
        let wide = |p: &mut Self, v: ValueId| {
            let thin = [vec![1], places.clone()].concat();
            let shape = p.shape.clone();
            p.cx.move_value(v, &[Move::Reshape(thin), Move::Broadcast(shape)])
        };
        let mut at = wide(&mut self, first)?;
        if count > 1 {
            let k = self.cx.one("tap", ops::Iota { shape: self.shape.clone(), axis: 0 }, &[])?;
            let k = self.un(U::ToReal, k)?;
            at = self.bin(B::Add, at, k)?;
        }
        if mode == Mode::Cubic && padding != Padding::Zeros {
            // Mirrors between elements fall on whole places.
            at = self.padded(at, n, align, padding)?;
            at = self.un(U::RoundEven, at)?;
        }
        let share = match t {
            None => None,
            Some(t) => {
                let t = wide(&mut self, t)?;
                Some(self.polynomial(t, shares)?)
            }
        };
        let (zero, last) = (self.number(0.0)?, self.number(n as f64 - 1.0)?);
        let above = self.bin(B::Le, zero, at)?;
        let below = self.bin(B::Le, at, last)?;
        let exists = self.bin(B::And, above, below)?;
        // A place outside, or no number, is read at 0 and counts nothing.
        let at = self.select(exists, at, zero)?;
        let place = self.un(U::ToInt, at)?;
        Ok(Taps { place, exists, share })
    }

    /// By Horner's scheme, the coefficients along the first axis.
    fn polynomial(&mut self, t: ValueId, shares: &[[f64; 4]]) -> Res<ValueId> {
        let mut sum: Option<ValueId> = None;
        for degree in (0..4).rev() {
            let c: Vec<f64> = shares.iter().map(|s| s[degree]).collect();
            if let Some(s) = sum {
                sum = Some(self.bin(B::Mul, s, t)?);
            }
            if c.iter().all(|c| *c == 0.0) {
                continue;
            }
            let mut shape = vec![1; self.shape.len()];
            shape[0] = c.len();
            let c = Val::constant(Tensor::new(Elem::F32, shape, Data::Real(c)));
            let c = self.cx.spread(&c, &self.shape)?;
            sum = Some(match sum {
                None => c,
                Some(s) => self.bin(B::Add, s, c)?,
            });
        }
        Ok(sum.expect("a share"))
    }
}

/// `AffineGrid`: the places of `GridSample` by matrices [n,d,d+1], as a product with the coordinates of
/// all elements.
fn affine(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let theta = cx.real(call, 0)?;
    let shape = cx.graph.shape(theta).to_vec();
    let align = call.attrs.int("align_corners", 0)? != 0;
    let size = call.ints(1)?.unwrap_or_default();
    let size: Vec<usize> = size.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    let axes = size.len().saturating_sub(2);
    if !matches!(axes, 2 | 3) || size.contains(&0) || shape != [size[0], axes, axes + 1] {
        return Err(words(format!("matrices {shape:?} for a grid of {size:?}")));
    }
    let space = &size[2..];
    let count = space.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let count = count.ok_or_else(|| words(format!("a grid of {size:?}")))?;
    check_size(&[count, axes + 1])?;
    let at = |k: usize, n: usize| match (align, n) {
        (_, 1) => 0.0,
        (true, n) => 2.0 * k as f64 / (n - 1) as f64 - 1.0,
        (false, n) => (2.0 * k as f64 + 1.0) / n as f64 - 1.0,
    };
    let mut places = Vec::with_capacity(count * (axes + 1));
    for k in 0..count {
        // The last axis is x.
        let mut left = k;
        for &n in space.iter().rev() {
            places.push(at(left % n, n) as f32);
            left /= n;
        }
        places.push(1.0);
    }
    let data = ConstData::from_f32(vec![count, axes + 1], &places);
    let places = cx.one("places", ops::Const { data }, &[])?;
    let theta = cx.transpose(theta, &[0, 2, 1])?;
    let y = super::linear::matmul(cx, places, theta)?;
    let mut grid = vec![size[0]];
    grid.extend_from_slice(space);
    grid.push(axes);
    cx.reshape(y, &grid)
}

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if call.op == "AffineGrid" {
        return Ok(Some(vec![Val::Node(affine(cx, call)?)]));
    }
    if call.op != "GridSample" {
        return Ok(None);
    }
    let a = &call.attrs;
    let mode = match a.string("mode", "linear")?.as_str() {
        "bilinear" | "linear" => Mode::Linear,
        "nearest" => Mode::Nearest,
        "bicubic" | "cubic" => Mode::Cubic,
        other => return Err(fail("P0206", format!("`GridSample` with mode \"{other}\""))),
    };
    let padding = match a.string("padding_mode", "zeros")?.as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(fail("P0206", format!("`GridSample` with padding \"{other}\""))),
    };
    let align = a.int("align_corners", 0)? != 0;
    let (x, grid) = (cx.real(call, 0)?, cx.real(call, 1)?);
    let (from, places) = (cx.graph.shape(x).to_vec(), cx.graph.shape(grid).to_vec());
    let space = from.len().saturating_sub(2);
    if space == 0
        || places.len() != from.len()
        || places[0] != from[0]
        || places[places.len() - 1] != space
        || from.contains(&0)
    {
        return Err(words(format!("a grid {places:?} for {from:?}")));
    }
    let (batch, channels) = (from[0], from[1]);
    let shape = places[..places.len() - 1].to_vec();
    let rows: usize = batch * from[2..].iter().product::<usize>();
    if i32::try_from(rows).is_err() {
        return Err(fail("P0206", format!("a grid over {rows} elements")));
    }
    // By axis of space, the slowest first; the grid names the fastest first.
    let mut axes = Vec::with_capacity(space);
    for d in 0..space {
        let one = [part(&places, places.len() - 1, space - 1 - d, 1), Move::Reshape(shape.clone())];
        let g = cx.move_value(grid, &one)?;
        let plane = Plane { cx: &mut *cx, shape: shape.clone() };
        axes.push(plane.taps(g, from[2 + d], align, mode, padding)?);
    }
    // Channels are rows of a table.
    let mut last: Vec<usize> = (0..from.len()).filter(|d| *d != 1).collect();
    last.push(1);
    let table = cx.transpose(x, &last)?;
    let table = cx.reshape(table, &[rows, channels])?;
    // Over the taps of every axis, and places.
    let taps = mode.taps().1.len();
    let all = [vec![taps; space], shape.clone()].concat();
    let mut p = Plane { cx: &mut *cx, shape: all.clone() };
    let mut row = p.cx.one("batch", ops::Iota { shape: all.clone(), axis: space }, &[])?;
    let (mut share, mut exists): (Option<ValueId>, Option<ValueId>) = (None, None);
    for (d, axis) in axes.iter().enumerate() {
        let mut thin = [vec![1; space], shape.clone()].concat();
        thin[d] = taps;
        let wide = [Move::Reshape(thin), Move::Broadcast(all.clone())];
        let by = whole(p.cx, from[2 + d], &p.shape)?;
        row = p.bin(B::Mul, row, by)?;
        let place = p.cx.move_value(axis.place, &wide)?;
        row = p.bin(B::Add, row, place)?;
        if let Some(s) = axis.share {
            let s = p.cx.move_value(s, &wide)?;
            share = Some(match share {
                None => s,
                Some(all) => p.bin(B::Mul, all, s)?,
            });
        }
        let e = p.cx.move_value(axis.exists, &wide)?;
        exists = Some(match exists {
            None => e,
            Some(all) => p.bin(B::And, all, e)?,
        });
    }
    let (zero, one) = (p.number(0.0)?, p.number(1.0)?);
    let exists = exists.expect("an axis of space");
    let share = p.select(exists, share.unwrap_or(one), zero)?;
    let flat = [vec![taps.pow(space as u32)], shape.clone()].concat();
    let (ids, shares) = (cx.reshape(row, &flat)?, cx.reshape(share, &flat)?);
    let read = cx.one("read", ops::Gather {}, &[table, ids])?;
    let all = cx.graph.shape(read).to_vec();
    let mut thin = all.clone();
    thin[all.len() - 1] = 1;
    let shares = cx.move_value(shares, &[Move::Reshape(thin), Move::Broadcast(all)])?;
    let parts = cx.one("parts", ops::Binary { f: B::Mul }, &[read, shares])?;
    let y = cx.one("", ops::Reduce { f: ReduceOp::Sum, axes: vec![0] }, &[parts])?;
    let mut back: Vec<usize> = (0..shape.len()).collect();
    back.insert(1, shape.len());
    Ok(Some(vec![Val::Node(cx.transpose(y, &back)?)]))
}

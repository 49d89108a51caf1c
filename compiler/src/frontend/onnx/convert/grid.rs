//! `GridSample`: every result is a weighted sum of elements around a place that is a value of the
//! model. All that are read go through one gather of rows of channels.

use super::index::whole;
use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, part};
use crate::frontend::onnx::node::fail;
use crate::ir::{Real, ValueId};
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

/// An element that is read along one axis: its place, whether it exists, its share.
struct Tap {
    place: ValueId,
    exists: Option<ValueId>,
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

    /// An element at a whole place.
    fn tap(&mut self, place: ValueId, share: Option<ValueId>, n: usize) -> Res<Tap> {
        let (zero, last) = (self.number(0.0)?, self.number(n as f64 - 1.0)?);
        let above = self.bin(B::Le, zero, place)?;
        let below = self.bin(B::Le, place, last)?;
        let inside = self.bin(B::And, above, below)?;
        // A place far outside, or no number, is read at 0 and counts nothing.
        let at = self.select(inside, place, zero)?;
        let place = self.un(U::ToInt, at)?;
        Ok(Tap { place, exists: Some(inside), share })
    }

    /// What is read along an axis of `n` elements at a normalised place in [-1, 1].
    fn taps(
        &mut self,
        g: ValueId,
        n: usize,
        align: bool,
        mode: Mode,
        padding: Padding,
    ) -> Res<Vec<Tap>> {
        // -1 and 1 are the centres of the first and last element where `align`, else their edges.
        let x = self.plus(g, 1.0)?;
        let x = if align {
            self.times(x, (n as f64 - 1.0) / 2.0)?
        } else {
            let x = self.times(x, n as f64 / 2.0)?;
            self.plus(x, -0.5)?
        };
        match mode {
            Mode::Nearest => {
                let x = self.padded(x, n, align, padding)?;
                let at = self.un(U::RoundEven, x)?;
                Ok(vec![self.tap(at, None, n)?])
            }
            Mode::Linear => {
                let x = self.padded(x, n, align, padding)?;
                let first = self.un(U::Floor, x)?;
                let next = self.plus(first, 1.0)?;
                let (near, far) = (self.bin(B::Sub, next, x)?, self.bin(B::Sub, x, first)?);
                Ok(vec![self.tap(first, Some(near), n)?, self.tap(next, Some(far), n)?])
            }
            Mode::Cubic => {
                let first = self.un(U::Floor, x)?;
                let t = self.bin(B::Sub, x, first)?;
                let mut taps = Vec::with_capacity(4);
                for i in 0..4i32 {
                    let at = self.plus(first, f64::from(i - 1))?;
                    let at = self.padded(at, n, align, padding)?;
                    let at = self.un(U::RoundEven, at)?;
                    let share = self.cubic(t, i)?;
                    taps.push(self.tap(at, Some(share), n)?);
                }
                Ok(taps)
            }
        }
    }

    /// Keys' kernel with a = -0.75 at the distances t + 1, t, 1 - t, 2 - t.
    fn cubic(&mut self, t: ValueId, i: i32) -> Res<ValueId> {
        const A: f64 = -0.75;
        let d = match i {
            0 => self.plus(t, 1.0)?,
            1 => t,
            _ => {
                let minus = self.un(U::Neg, t)?;
                self.plus(minus, f64::from(i - 1))?
            }
        };
        // Horner's scheme.
        let terms = if i == 1 || i == 2 {
            [A + 2.0, -(A + 3.0), 0.0, 1.0]
        } else {
            [A, -5.0 * A, 8.0 * A, -4.0 * A]
        };
        let mut sum = self.times(d, terms[0])?;
        for (k, c) in terms[1..].iter().enumerate() {
            sum = self.plus(sum, *c)?;
            if k < 2 {
                sum = self.bin(B::Mul, sum, d)?;
            }
        }
        Ok(sum)
    }
}

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
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
        axes.push(Plane { cx: &mut *cx, shape: shape.clone() }.taps(
            g,
            from[2 + d],
            align,
            mode,
            padding,
        )?);
    }
    // Channels are rows of a table.
    let mut last: Vec<usize> = (0..from.len()).filter(|d| *d != 1).collect();
    last.push(1);
    let table = cx.transpose(x, &last)?;
    let table = cx.reshape(table, &[rows, channels])?;
    let mut layer = shape.clone();
    layer.insert(0, 1);
    let count = axes.iter().map(Vec::len).product::<usize>();
    let (mut ids, mut shares) = (vec![], vec![]);
    for corner in 0..count {
        let mut row = cx.one("batch", ops::Iota { shape: shape.clone(), axis: 0 }, &[])?;
        let (mut share, mut exists): (Option<ValueId>, Option<ValueId>) = (None, None);
        let mut rest = corner;
        let mut p = Plane { cx: &mut *cx, shape: shape.clone() };
        for (d, taps) in axes.iter().enumerate() {
            let tap = &taps[rest % taps.len()];
            rest /= taps.len();
            let by = whole(p.cx, from[2 + d], &p.shape)?;
            row = p.bin(B::Mul, row, by)?;
            row = p.bin(B::Add, row, tap.place)?;
            share = match (share, tap.share) {
                (Some(a), Some(b)) => Some(p.bin(B::Mul, a, b)?),
                (a, b) => a.or(b),
            };
            exists = match (exists, tap.exists) {
                (Some(a), Some(b)) => Some(p.bin(B::And, a, b)?),
                (a, b) => a.or(b),
            };
        }
        let one = p.number(1.0)?;
        let mut share = share.unwrap_or(one);
        if let Some(exists) = exists {
            let zero = p.number(0.0)?;
            share = p.select(exists, share, zero)?;
        }
        ids.push(cx.reshape(row, &layer)?);
        shares.push(cx.reshape(share, &layer)?);
    }
    let joined = |cx: &mut Importer, list: &[ValueId]| match list {
        [one] => Ok(*one),
        list => cx.one("taps", ops::Concat { axis: 0 }, list),
    };
    let (ids, shares) = (joined(cx, &ids)?, joined(cx, &shares)?);
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

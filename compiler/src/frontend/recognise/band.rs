//! Values that follow from the positions of query and key alone: literals, coordinates, and what is
//! computed of them element by element. Masks that hide the future or what is far in the past are such
//! values, whether they arrive as literals or as comparisons of positions.

use crate::ir::{Graph, Node, ValueId};
use crate::ops::Op;
use crate::reference::rows::{Scalar, binary, unary};
use precast_plan::{BinaryOp, DType, UnaryOp};
use std::collections::BTreeMap;

/// What a value is at row i and column j of its last two axes, in every batch. A vector is one row.
#[derive(Clone, Debug)]
enum Positional {
    /// `row · i + col · j + by`, whole numbers.
    Line { row: i64, col: i64, by: i64 },
    /// A function of j − i.
    Band(Band),
}

/// A function of the distance d = j − i of a column from a row: from each number on, the value up to
/// the next. The first begins below all distances.
#[derive(Clone, Debug)]
pub struct Band(Vec<(i64, Scalar)>);

/// Whole numbers below this are exact in f32.
const EXACT: usize = 1 << 24;

/// Nodes between a mask and what it is computed of, at most.
const DEPTH: usize = 64;

impl Band {
    fn constant(x: Scalar) -> Band {
        Band(vec![(i64::MIN, x)])
    }

    /// The value at distance `d`.
    pub fn at(&self, d: i64) -> Scalar {
        let k = self.0.partition_point(|(from, _)| *from <= d);
        self.0[k - 1].1
    }

    /// The values at the distances from `first` to `last`, each once for as long as it stays.
    pub fn between(&self, first: i64, last: i64) -> impl Iterator<Item = Scalar> {
        let next = |k: usize| self.0.get(k + 1).map_or(i64::MAX, |p| p.0);
        self.0
            .iter()
            .enumerate()
            .filter(move |(k, p)| first <= last && p.0 <= last && next(*k) > first)
            .map(|(_, p)| p.1)
    }

    fn new(mut pieces: Vec<(i64, Scalar)>) -> Band {
        pieces.dedup_by(|b, a| same(a.1, b.1));
        Band(pieces)
    }

    fn map(&self, f: impl Fn(Scalar) -> Option<Scalar>) -> Option<Band> {
        let pieces = self.0.iter().map(|&(d, x)| Some((d, f(x)?)));
        pieces.collect::<Option<_>>().map(Band::new)
    }

    /// `f` of several functions of the same distance.
    fn join(of: &[&Band], f: impl Fn(&[Scalar]) -> Option<Scalar>) -> Option<Band> {
        let mut starts: Vec<i64> = of.iter().flat_map(|b| b.0.iter().map(|p| p.0)).collect();
        starts.sort_unstable();
        starts.dedup();
        let value = |d: i64| f(&of.iter().map(|b| b.at(d)).collect::<Vec<_>>());
        let pieces = starts.into_iter().map(|d| Some((d, value(d)?)));
        pieces.collect::<Option<_>>().map(Band::new)
    }

    /// The function of `d + by`.
    fn moved(&self, by: i64) -> Band {
        let from = |d: i64| if d == i64::MIN { d } else { d - by };
        Band(self.0.iter().map(|&(d, x)| (from(d), x)).collect())
    }

    /// The function of −d.
    fn mirrored(&self) -> Band {
        let ends = self.0.iter().skip(1).map(|p| Some(p.0)).chain([None]);
        let mut pieces: Vec<(i64, Scalar)> =
            ends.zip(&self.0).map(|(end, p)| (end.map_or(i64::MIN, |e| 1 - e), p.1)).collect();
        pieces.reverse();
        Band(pieces)
    }

    /// Whether distances up to `d` have `below`, others the opposite.
    fn step(d: i64, below: bool) -> Band {
        Band(vec![(i64::MIN, Scalar::Bool(below)), (d + 1, Scalar::Bool(!below))])
    }
}

/// Equality by bits, so that NaN is itself.
fn same(a: Scalar, b: Scalar) -> bool {
    match (a, b) {
        (Scalar::Real(a), Scalar::Real(b)) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}

/// A real as f32 holds it.
fn rounded(x: Scalar) -> Scalar {
    match x {
        Scalar::Real(x) => Scalar::Real(f64::from(x as f32)),
        x => x,
    }
}

fn whole(x: Scalar) -> Option<i64> {
    match x {
        Scalar::Int(x) => Some(x.into()),
        Scalar::Real(x) => (x.fract() == 0.0 && x.abs() < EXACT as f64).then_some(x as i64),
        Scalar::Bool(_) => None,
    }
}

/// What is known of the values of a graph.
pub struct Bands<'a> {
    graph: &'a Graph,
    known: BTreeMap<ValueId, Option<Positional>>,
}

impl<'a> Bands<'a> {
    pub fn new(graph: &'a Graph) -> Bands<'a> {
        Bands { graph, known: BTreeMap::new() }
    }

    /// A value behind movements, outermost first, as a function of the distance of key and query.
    pub fn of(&mut self, v: ValueId, through: &[&Node]) -> Option<Band> {
        let mut p = self.positional(v, DEPTH)?;
        for n in through.iter().rev() {
            p = self.moved(&p, n)?;
        }
        match p {
            Positional::Band(b) => Some(b),
            Positional::Line { .. } => None,
        }
    }

    /// The extents of the last two axes.
    fn extents(&self, v: ValueId) -> (i64, i64) {
        match self.graph.shape(v)[..] {
            [] => (1, 1),
            [n] => (1, n as i64),
            [.., r, c] => (r as i64, c as i64),
        }
    }

    fn positional(&mut self, v: ValueId, depth: usize) -> Option<Positional> {
        if let Some(known) = self.known.get(&v) {
            return known.clone();
        }
        let p = if depth == 0 { None } else { self.found(v, depth - 1) };
        self.known.insert(v, p.clone());
        p
    }

    fn found(&mut self, v: ValueId, depth: usize) -> Option<Positional> {
        let g = self.graph;
        let n = g.def(v);
        let rank = g.shape(v).rank();
        match &n.op {
            Op::Const(c) => self.literal(v, &c.data),
            Op::Iota(i) if g.shape(v).iter().all(|n| *n <= EXACT) => match rank - i.axis {
                1 => Some(Positional::Line { row: 0, col: 1, by: 0 }),
                2 => Some(Positional::Line { row: 1, col: 0, by: 0 }),
                _ => None,
            },
            Op::Broadcast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => {
                let p = self.positional(n.inputs[0], depth)?;
                self.moved(&p, n)
            }
            Op::Unary(u) => self.unary(u.f, n.inputs[0], depth),
            Op::Scale(s) => {
                let by = f64::from(s.by.0 as f32);
                let b = self.band(n.inputs[0], depth)?;
                let product = |x| binary(BinaryOp::Mul, x, Scalar::Real(by));
                b.map(|x| Some(rounded(product(x)))).map(Positional::Band)
            }
            Op::Binary(f) => self.binary(f.f, [n.inputs[0], n.inputs[1]], depth),
            Op::Select(_) => {
                let [c, a, b] = [0, 1, 2].map(|i| self.band(n.inputs[i], depth));
                let chosen = |x: &[Scalar]| match x[0] {
                    Scalar::Bool(c) => Some(if c { x[1] } else { x[2] }),
                    _ => None,
                };
                Band::join(&[&c?, &a?, &b?], chosen).map(Positional::Band)
            }
            _ => None,
        }
    }

    fn band(&mut self, v: ValueId, depth: usize) -> Option<Band> {
        match self.positional(v, depth)? {
            Positional::Band(b) => Some(b),
            Positional::Line { .. } => None,
        }
    }

    /// A literal: a vector of evenly spaced numbers, or a matrix that is constant along diagonals.
    fn literal(&self, v: ValueId, data: &crate::ir::ConstData) -> Option<Positional> {
        let bools = data.dtype == DType::Bool;
        let values: Vec<Scalar> = match data.f32s() {
            Some(x) => x.into_iter().map(|x| Scalar::Real(x.into())).collect(),
            None => {
                let x = data.ints()?.into_iter();
                let int = |x: i64| i32::try_from(x).ok().map(Scalar::Int);
                x.map(|x| if bools { Some(Scalar::Bool(x != 0)) } else { int(x) })
                    .collect::<Option<_>>()?
            }
        };
        let (rows, cols) = self.extents(v);
        let (r, c) = (rows as usize, cols as usize);
        let first = values.get(..r * c).filter(|m| !m.is_empty())?;
        let alike = |m: &[Scalar]| m.iter().zip(first).all(|(a, b)| same(*a, *b));
        if !values.chunks(r * c).all(alike) {
            return None;
        }
        let constant = first.iter().all(|x| same(*x, first[0]));
        if !constant && r.min(c) == 1 {
            let numbers: Option<Vec<i64>> = first.iter().map(|x| whole(*x)).collect();
            if let Some(x) = numbers.filter(|x| x.windows(2).all(|w| w[1] - w[0] == x[1] - x[0])) {
                let step = x[1] - x[0];
                let (row, col) = if c > 1 { (0, step) } else { (step, 0) };
                return Some(Positional::Line { row, col, by: x[0] });
            }
        }
        // The first column from below, then the first row.
        let ends = (0..r).rev().map(|i| i * c).chain(1..c);
        let diagonals: Vec<Scalar> = ends.map(|at| first[at]).collect();
        if !(0..r * c).all(|at| same(first[at], diagonals[r - 1 - at / c + at % c])) {
            return None;
        }
        let from = |k: usize| if k == 0 { i64::MIN } else { k as i64 - (rows - 1) };
        let pieces = diagonals.iter().enumerate().map(|(k, x)| (from(k), *x)).collect();
        Some(Positional::Band(Band::new(pieces)))
    }

    fn moved(&self, p: &Positional, n: &Node) -> Option<Positional> {
        let from = self.extents(n.inputs[0]);
        let to = self.extents(n.outputs[0]);
        let (mut p, rank) = (p.clone(), self.graph.shape(n.outputs[0]).rank());
        if let Positional::Band(b) = &p {
            // What has one value has it wherever it is moved.
            let mut all = b.between(1 - from.0, from.1 - 1);
            let first = all.next()?;
            if all.all(|x| same(x, first)) {
                return Some(Positional::Band(Band::constant(first)));
            }
        }
        match (&n.op, &mut p) {
            (Op::Broadcast(_), Positional::Line { row, col, .. }) => {
                *row = if from.0 == to.0 { *row } else { 0 };
                *col = if from.1 == to.1 { *col } else { 0 };
                Some(p)
            }
            (Op::Reshape(_) | Op::Broadcast(_), _) if from == to => Some(p),
            (Op::Reshape(_), Positional::Line { row, col, .. }) if from == (to.1, to.0) => {
                if from.0.min(from.1) > 1 {
                    return None;
                }
                std::mem::swap(row, col);
                Some(p)
            }
            (Op::Transpose(t), _) if rank >= 2 => match t.perm[rank - 2..] {
                [a, b] if (a, b) == (rank - 2, rank - 1) => Some(p),
                [a, b] if (a, b) == (rank - 1, rank - 2) => Some(match p {
                    Positional::Line { row, col, by } => {
                        Positional::Line { row: col, col: row, by }
                    }
                    Positional::Band(b) => Positional::Band(b.mirrored()),
                }),
                _ => None,
            },
            (Op::Slice(s), _) => {
                let (start, step) = (|d: usize| s.starts[d] as i64, |d: usize| s.steps[d]);
                let last = rank.checked_sub(1)?;
                let (mut first_row, first_col) = (0, start(last));
                let mut steps = vec![step(last)];
                if rank >= 2 {
                    first_row = start(last - 1);
                    steps.push(step(last - 1));
                }
                if steps.iter().any(|s| *s != 1) {
                    return None;
                }
                Some(match p {
                    Positional::Line { row, col, by } => {
                        let by = by + row * first_row + col * first_col;
                        Positional::Line { row, col, by }
                    }
                    Positional::Band(b) => Positional::Band(b.moved(first_col - first_row)),
                })
            }
            _ => None,
        }
    }

    fn unary(&mut self, f: UnaryOp, x: ValueId, depth: usize) -> Option<Positional> {
        use UnaryOp::*;
        let exact =
            [Neg, Abs, Not, ToReal, ToInt, ToBool, Floor, Ceil, RoundEven, IsFinite].contains(&f);
        match self.positional(x, depth)? {
            Positional::Band(b) if exact => {
                b.map(|x| Some(rounded(unary(f, x)))).map(Positional::Band)
            }
            Positional::Line { row, col, by } if f == Neg => {
                Some(Positional::Line { row: -row, col: -col, by: -by })
            }
            p @ Positional::Line { .. } if matches!(f, ToReal | ToInt) => Some(p),
            _ => None,
        }
    }

    fn binary(&mut self, f: BinaryOp, x: [ValueId; 2], depth: usize) -> Option<Positional> {
        use BinaryOp::*;
        let [a, b] = x.map(|v| self.positional(v, depth));
        let (a, b) = (a?, b?);
        if let (Positional::Band(a), Positional::Band(b)) = (&a, &b) {
            if !matches!(f, Add | Sub | Mul | Div | Max | Min | And | Or | Eq | Lt | Le) {
                return None;
            }
            let value = |x: &[Scalar]| Some(rounded(binary(f, x[0], x[1])));
            return Band::join(&[a, b], value).map(Positional::Band);
        }
        // Numbers beside lines are lines.
        let line = |p: &Positional| match p {
            Positional::Line { row, col, by } => Some((*row, *col, *by)),
            Positional::Band(b) if b.0.len() == 1 => whole(b.0[0].1).map(|by| (0, 0, by)),
            Positional::Band(_) => None,
        };
        let (a, b) = (line(&a)?, line(&b)?);
        let least = |(a, b): ((i64, i64, i64), (i64, i64, i64))| -> Option<Band> {
            let (row, col, by) = (a.0 - b.0, a.1 - b.1, a.2 - b.2);
            // row · i + col · j + by ≤ 0
            match (row + col, col) {
                (0, 0) => Some(Band::constant(Scalar::Bool(by <= 0))),
                (0, k) if k > 0 => Some(Band::step((-by).div_euclid(k), true)),
                // d ≥ by / k
                (0, k) => Some(Band::step(-(-by).div_euclid(-k) - 1, false)),
                _ => None,
            }
        };
        let not = |b: &Band| b.map(|x| Some(unary(UnaryOp::Not, x)));
        let band = match f {
            Add => return Some(Positional::Line { row: a.0 + b.0, col: a.1 + b.1, by: a.2 + b.2 }),
            Sub => return Some(Positional::Line { row: a.0 - b.0, col: a.1 - b.1, by: a.2 - b.2 }),
            Le => least((a, b)),
            Lt => least((b, a)).and_then(|b| not(&b)),
            Eq => {
                let (x, y) = (least((a, b))?, least((b, a))?);
                Band::join(&[&x, &y], |x| Some(binary(And, x[0], x[1])))
            }
            _ => None,
        };
        band.map(Positional::Band)
    }
}

#[cfg(test)]
mod tests {
    use super::{Bands, Scalar};
    use crate::reference::{self, Data};

    /// Every band is what the graph computes, at every row and column.
    #[test]
    fn bands_are_what_the_graph_computes() {
        let g = crate::text::parse(
            "test",
            "graph g
forward:
  %row = iota {shape=[1,5,7], axis=1} @row
  %col = iota {shape=[1,5,7], axis=2} @col
  %flat = iota {shape=[7], axis=0} @flat
  %flat2 = reshape %flat {shape=[1,1,7]} @flat2
  %cols = broadcast %flat2 {shape=[1,5,7]} @cols
  %tall = reshape %flat {shape=[7,1]} @tall
  %some = slice %tall {starts=[2,0], sizes=[5,1], steps=[1,1]} @some
  %some3 = reshape %some {shape=[1,5,1]} @some3
  %rows = broadcast %some3 {shape=[1,5,7]} @rows
  %ahead = binary %cols, %rows {f=sub} @ahead
  %back = unary %ahead {f=neg} @back
  %one = const {data=i32[1,1,1](1)} @one
  %ones = broadcast %one {shape=[1,5,7]} @ones
  %three = binary %ones, %ones {f=add} @two
  %le = binary %col, %row {f=le} @out0
  %lt = binary %col, %row {f=lt} @out1
  %eq = binary %cols, %rows {f=eq} @out2
  %near = binary %back, %three {f=le} @out3
  %far = binary %ones, %back {f=lt} @out4
  %both = binary %le, %near {f=and} @out5
  %not = unary %both {f=not} @out6
  %real = unary %not {f=to_real} @out7
  %big = scale %real {by=-3e38} @out8
  %twice = binary %big, %big {f=add} @out9
  %turned = transpose %twice {perm=[0,2,1]} @out10
  %part = slice %turned {starts=[0,1,2], sizes=[1,5,3], steps=[1,1,1]} @out11
  %zero = const {data=f32[1,1,1](0.0)} @zero
  %zeros = broadcast %zero {shape=[1,5,3]} @zeros
  %none = binary %part, %zeros {f=eq} @out12
  %pick = select %none, %part, %zeros @out13
  %literal = const {data=f32[2,3,2](1.0,2.0,5.0,1.0,7.0,5.0,1.0,2.0,5.0,1.0,7.0,5.0)} @out14
result out.0 = %le
result out.1 = %lt
result out.2 = %eq
result out.3 = %near
result out.4 = %far
result out.5 = %both
result out.6 = %not
result out.7 = %real
result out.8 = %big
result out.9 = %twice
result out.10 = %turned
result out.11 = %part
result out.12 = %none
result out.13 = %pick
result out.14 = %literal
",
        )
        .unwrap_or_else(|e| panic!("{e}"));
        let none = indexmap::IndexMap::new();
        let all = reference::eval(&g, &none, &none).expect("runs");
        let mut bands = Bands::new(&g);
        for r in &g.results {
            let b = bands.of(r.value, &[]).unwrap_or_else(|| panic!("{} is no band", r.name));
            let t = &all.results[&r.name];
            let [.., rows, cols] = t.shape()[..] else { panic!("two axes") };
            for at in 0..t.shape().elements() {
                let d = (at % cols) as i64 - (at / cols % rows) as i64;
                let (have, same) = match (b.at(d), &t.data) {
                    (Scalar::Bool(x), Data::Bool(v)) => (f64::from(u8::from(x)), v[at] == x),
                    (Scalar::Int(x), Data::Int(v)) => (f64::from(x), v[at] == i64::from(x)),
                    (Scalar::Real(x), Data::Real(v)) => (x, (v[at] as f32) == x as f32),
                    (x, _) => panic!("{}: {x:?}", r.name),
                };
                assert!(same, "{} at {at}: {have}", r.name);
            }
        }
        // Neither a learned vector nor one axis alone is a function of the distance.
        for name in ["col", "ahead"] {
            let v = g.nodes().find(|(_, n)| n.name == name).map(|(_, n)| n.outputs[0]);
            assert!(bands.of(v.expect("is there"), &[]).is_none(), "{name}");
        }
    }
}

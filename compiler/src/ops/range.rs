//! What is known of the numbers in a graph where a format of narrow range, f16, is to hold them:
//! between which bounds they lie, and how far they reach beyond numbers of ordinary size.

use crate::ir::{Graph, Node, Shape, ValueId};
use crate::ops::Op;

/// Real numbers from `lo` to `hi`, both included. NaN is not spoken of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub lo: f64,
    pub hi: f64,
}

/// 0 where one factor is 0: infinity here stands for numbers as large as one likes, all finite.
fn times(a: f64, b: f64) -> f64 {
    if a == 0.0 || b == 0.0 { 0.0 } else { a * b }
}

impl Bounds {
    pub const ALL: Bounds = Bounds { lo: f64::NEG_INFINITY, hi: f64::INFINITY };

    pub fn new(lo: f64, hi: f64) -> Bounds {
        if lo <= hi { Bounds { lo, hi } } else { Bounds::ALL }
    }

    pub fn at(x: f64) -> Bounds {
        Bounds::new(x, x)
    }

    /// The smallest bounds around all of `x`; [`Bounds::ALL`] of none.
    pub fn around(x: impl IntoIterator<Item = f64>) -> Bounds {
        let none = Bounds { lo: f64::INFINITY, hi: f64::NEG_INFINITY };
        let b = x.into_iter().fold(none, |b, x| match x.is_nan() {
            true => Bounds::ALL,
            false => Bounds { lo: b.lo.min(x), hi: b.hi.max(x) },
        });
        Bounds::new(b.lo, b.hi)
    }

    pub fn hull(self, o: Bounds) -> Bounds {
        Bounds::new(self.lo.min(o.lo), self.hi.max(o.hi))
    }

    /// Whether this is one known number.
    pub fn is_number(self) -> bool {
        self.lo == self.hi
    }

    /// Whether no magnitude is above `most`.
    pub fn within(self, most: f64) -> bool {
        self.lo >= -most && self.hi <= most
    }

    /// How far every number is from `point`; 0 where `point` is inside.
    pub fn away(self, point: f64) -> f64 {
        (self.lo - point).max(point - self.hi).max(0.0)
    }

    /// Under a function that grows.
    pub fn growing(self, f: impl Fn(f64) -> f64) -> Bounds {
        Bounds::new(f(self.lo), f(self.hi))
    }

    pub fn negated(self) -> Bounds {
        Bounds::new(-self.hi, -self.lo)
    }

    pub fn abs(self) -> Bounds {
        Bounds::new(self.away(0.0), self.hi.max(-self.lo))
    }

    pub fn plus(self, o: Bounds) -> Bounds {
        Bounds::new(self.lo + o.lo, self.hi + o.hi)
    }

    pub fn times(self, o: Bounds) -> Bounds {
        let all = [(self.lo, o.lo), (self.lo, o.hi), (self.hi, o.lo), (self.hi, o.hi)];
        Bounds::around(all.map(|(a, b)| times(a, b)))
    }

    /// `1 / x`.
    pub fn inverse(self) -> Bounds {
        if self.away(0.0) > 0.0 { Bounds::new(1.0 / self.hi, 1.0 / self.lo) } else { Bounds::ALL }
    }

    pub fn max(self, o: Bounds) -> Bounds {
        Bounds::new(self.lo.max(o.lo), self.hi.max(o.hi))
    }

    pub fn min(self, o: Bounds) -> Bounds {
        Bounds::new(self.lo.min(o.lo), self.hi.min(o.hi))
    }
}

/// How far results reach beyond numbers of ordinary size, which f16 holds: what activations are
/// taken for where nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reach {
    /// This many times as far. A sum of n ordinary numbers reaches n.
    Times(f64),
    /// Of no order that ordinary operands say anything about, in words: results are f32, and so is
    /// what is computed from them element by element, as under PyTorch's autocast.
    Beyond(&'static str),
}

impl Reach {
    /// Ordinary whatever the operands are.
    pub const ORDINARY: Reach = Reach::Times(1.0);

    pub fn factor(self) -> f64 {
        match self {
            Reach::Times(n) => n,
            Reach::Beyond(_) => f64::INFINITY,
        }
    }
}

/// A point at which an operation, or its derivative, is infinite: near it an operand's rounding to
/// f16, below 6e-8 to 0, is the difference between a large number and none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pole {
    /// Which operand.
    pub operand: usize,
    pub at: f64,
    /// The operation divides by a power of the operand, so that a linear operand is multiplied by
    /// what grows without limit.
    pub divides: bool,
}

impl Pole {
    pub const fn of(operand: usize, at: f64) -> Pole {
        Pole { operand, at, divides: false }
    }

    pub const fn divisor(operand: usize) -> Pole {
        Pole { operand, at: 0.0, divides: true }
    }
}

/// What is known of one node's operands.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    /// By value.
    pub bounds: &'a [Bounds],
    /// By value: see [`Reach`].
    pub reach: &'a [f64],
    /// By value: the value that it is a multiple of, element by element.
    pub base: &'a [ValueId],
}

impl Known<'_> {
    pub fn x(&self, i: usize) -> Bounds {
        self.bounds[self.node.inputs[i].0 as usize]
    }

    pub fn reach(&self, i: usize) -> f64 {
        self.reach[self.node.inputs[i].0 as usize]
    }

    /// What an operand does to the reach of a product: one that is known to be small shortens it.
    pub fn factor(&self, i: usize) -> f64 {
        self.reach(i) * self.x(i).abs().hi.clamp(f64::MIN_POSITIVE, 1.0)
    }

    pub fn shape(&self, i: usize) -> &Shape {
        self.graph.shape(self.node.inputs[i])
    }

    /// The definition of an operand.
    pub fn def(&self, i: usize) -> &Node {
        self.graph.def(self.node.inputs[i])
    }

    /// Whether two operands are the same tensor.
    pub fn same(&self, i: usize, j: usize) -> bool {
        self.node.inputs[i] == self.node.inputs[j]
    }

    /// Whether two operands are the same tensor but for factors.
    pub fn alike(&self, i: usize, j: usize) -> bool {
        let base = |i: usize| self.base[self.node.inputs[i].0 as usize];
        base(i) == base(j)
    }

    /// The farthest of the real operands.
    pub fn farthest(&self) -> f64 {
        let real = self.node.inputs.iter().filter(|&&v| self.graph.ty(v).is_real());
        real.map(|v| self.reach[v.0 as usize]).reduce(f64::max).unwrap_or(1.0)
    }

    /// Whether the values, operands of other nodes maybe, are equal as far as one sees.
    pub fn equal(&self, a: ValueId, b: ValueId) -> bool {
        let (x, y) = (self.bounds[a.0 as usize], self.bounds[b.0 as usize]);
        a == b || (x.is_number() && x == y)
    }
}

/// Bounds, reach and base of every value of a graph, from the definitions of its operations.
pub struct Ranges {
    pub bounds: Vec<Bounds>,
    /// See [`Reach`]. A scalar counts as ordinary, as one does in PyTorch's type promotion.
    pub reach: Vec<f64>,
    /// By value that reaches beyond ordinary numbers and is not bounded: the value where that began.
    pub from: Vec<Option<ValueId>>,
    /// By value: why it is f32 itself, whatever its operands are.
    pub beyond: Vec<Option<&'static str>>,
}

/// What reaches at most this many times as far as ordinary numbers is taken for ordinary: sums over
/// a few heads or taps.
pub const ORDINARY: f64 = 16.0;

impl Ranges {
    /// `most`: what lies within this is ordinary, wherever it comes from.
    pub fn of(g: &Graph, most: f64) -> Ranges {
        let n = g.value_count();
        let mut r = Ranges {
            bounds: vec![Bounds::ALL; n],
            reach: vec![1.0; n],
            from: vec![None; n],
            beyond: vec![None; n],
        };
        let mut base: Vec<ValueId> = (0..n as u32).map(ValueId).collect();
        for (_, node) in g.nodes() {
            let known = Known { graph: g, node, bounds: &r.bounds, reach: &r.reach, base: &base };
            let def = node.op.def();
            let (bounds, reach) = (def.bounds(&known), def.reach(&known));
            let from = node.inputs.iter().filter(|v| r.from[v.0 as usize].is_some());
            let from = from.max_by(|a, b| r.reach[a.0 as usize].total_cmp(&r.reach[b.0 as usize]));
            let from = from.and_then(|v| r.from[v.0 as usize]);
            for (i, &v) in node.outputs.iter().enumerate() {
                let at = v.0 as usize;
                if !g.ty(v).is_real() || i > 0 {
                    continue;
                }
                r.bounds[at] = bounds;
                if let Reach::Beyond(why) = reach {
                    r.beyond[at] = Some(why);
                }
                if g.shape(v).elements() <= 1 {
                    continue;
                }
                let (factor, within) = (reach.factor(), bounds.within(most));
                // A mean of bounded numbers is a sum first, so a finite reach is kept.
                r.reach[at] = if within && factor.is_infinite() { 1.0 } else { factor };
                if factor > ORDINARY && !within {
                    let own = r.beyond[at].is_some();
                    r.from[at] = if own { Some(v) } else { from.or(Some(v)) };
                }
                if multiple(g, node) {
                    base[at] = base[node.inputs[0].0 as usize];
                }
            }
        }
        r
    }
}

/// Whether every element of a result is a multiple of the operand's element in its place.
fn multiple(g: &Graph, node: &Node) -> bool {
    let [x] = node.inputs[..] else { return false };
    let in_place = g.shape(x) == g.shape(node.outputs[0]) && g.ty(x).is_real();
    let linear = node.op.def().linear() == super::Linear::All;
    let keeps = matches!(node.op.class(), super::NumericClass::Movement) && !is_view(&node.op);
    in_place && (keeps || (linear && !is_view(&node.op)))
}

fn is_view(op: &Op) -> bool {
    op.lowering() == super::Lowering::View
}

//! GELU in both forms, and SiLU.

use super::matcher::{Matcher, Rewriter, close};
use crate::ir::ValueId;
use crate::ops::{Activate, Op, activation::Act};
use precast_plan::{BinaryOp, UnaryOp};
use smallvec::{SmallVec, smallvec};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Scale(_))
        || matches!(op, Op::Binary(b) if matches!(b.f, BinaryOp::Mul | BinaryOp::Div))
}

/// The two factors of the root product, either way round, with the literal.
fn pairs(m: &Matcher) -> Option<(f64, [(ValueId, ValueId); 2])> {
    let node = m.node();
    if !is_product(&node.op) {
        return None;
    }
    match m.factors(node.outputs[0]) {
        (by, f) if f.len() == 2 => Some((by, [(f[0], f[1]), (f[1], f[0])])),
        _ => None,
    }
}

/// `½ x (1 + erf(x/√2))` and `½ x (1 + tanh(√(2/π)(x + 0.044715 x³)))`, factors in any order, the
/// cube as a power or factored out (Hendrycks & Gimpel, 2016).
pub fn gelu(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let (by, pairs) = pairs(m)?;
    let (x, act) = pairs.iter().find_map(|&(x, t)| {
        // (1 + f(u)) · ½ may also have been multiplied out: ½ + ½ f(u).
        let (f, c) = m.plus(t).filter(|_| m.once(t))?;
        let (inner, f) = m.factors(f);
        let &[f] = &f[..] else { return None };
        if !(close(by * c, 0.5) && close(inner, c) && m.once(f)) {
            return None;
        }
        if let Some(u) = m.unary(f, UnaryOp::Erf) {
            return (m.once(u) && m.factors(u).1 == [x] && close(m.factors(u).0, FRAC_1_SQRT_2))
                .then_some((x, Act::Gelu));
        }
        let u = m.unary(f, UnaryOp::Tanh).filter(|u| m.once(*u))?;
        is_cubic(m, u, x).then_some((x, Act::GeluTanh))
    })?;
    let x = rw.get(x);
    Some(smallvec![rw.one(m.node(), "", Activate { act }, &[x])])
}

/// `u = √(2/π) (x + 0.044715 x³)`, or `√(2/π) x (1 + 0.044715 x²)`.
fn is_cubic(m: &Matcher, u: ValueId, x: ValueId) -> bool {
    let (by, f) = m.factors(u);
    if !close(by, (2.0 / PI).sqrt()) {
        return false;
    }
    let powers = |v: ValueId, n: usize| {
        let (c, f) = m.factors(v);
        m.once(v) && close(c, 0.044715) && f.len() == n && f.iter().all(|&g| g == x)
    };
    match f[..] {
        [s] if m.once(s) => match m.binary(s, BinaryOp::Add) {
            Some((a, b)) => (a == x && powers(b, 3)) || (b == x && powers(a, 3)),
            None => false,
        },
        [a, b] => [(a, b), (b, a)].into_iter().any(|(y, s)| {
            y == x && m.once(s) && m.plus(s).is_some_and(|(v, one)| close(one, 1.0) && powers(v, 2))
        }),
        _ => false,
    }
}

/// `x σ(x)` (Elfwing et al., 2017).
pub fn silu(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let (by, pairs) = pairs(m)?;
    let (x, _) = pairs
        .into_iter()
        .find(|&(x, s)| m.once(s) && m.unary(s, UnaryOp::Sigmoid) == Some(x))
        .filter(|_| by == 1.0)?;
    let x = rw.get(x);
    Some(smallvec![rw.one(m.node(), "", Activate { act: Act::Silu }, &[x])])
}

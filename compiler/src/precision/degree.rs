//! How values depend on the seed of the backward pass and on the loss scale: which are cotangents,
//! and which of them carry the scale.

use crate::ops::{Linear, Op};

/// How a value depends on one leaf: `f(c·leaf) = c^d f(leaf)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degree {
    /// Zero: of every degree.
    Any,
    Is(i8),
    /// Not homogeneous.
    Mixed,
}

impl Degree {
    pub const ZERO: Degree = Degree::Is(0);

    fn plus(self, o: Degree) -> Degree {
        match (self, o) {
            (Degree::Any, _) | (_, Degree::Any) => Degree::Any,
            (Degree::Is(a), Degree::Is(b)) => Degree::Is(a + b),
            _ => Degree::Mixed,
        }
    }

    fn same(self, o: Degree) -> Degree {
        match (self, o) {
            (Degree::Any, x) | (x, Degree::Any) => x,
            (a, b) if a == b => a,
            _ => Degree::Mixed,
        }
    }

    /// The degree of a value whose operation gives it `self`: a zero is of every degree, and so is
    /// a condition or an index that does not depend on the leaf, beside reals that do.
    pub fn settled(self, zero: bool, real: bool) -> Degree {
        if zero || (!real && self == Degree::ZERO) { Degree::Any } else { self }
    }

    /// Of an operation's results, from its operands'.
    pub fn of(op: &Op, x: &[Degree]) -> Degree {
        let free = |d: &Degree| matches!(*d, Degree::Any | Degree::ZERO);
        match linear(op) {
            Linear::All => x.iter().copied().fold(Degree::Any, Degree::same),
            Linear::Each(_) | Linear::No if x.iter().all(free) => Degree::ZERO,
            Linear::Each(list) => {
                let others = x.iter().enumerate().any(|(i, d)| !list.contains(&i) && !free(d));
                if others {
                    return Degree::Mixed;
                }
                list.iter().fold(Degree::ZERO, |d, &i| d.plus(x[i]))
            }
            Linear::No => Degree::Mixed,
        }
    }
}

/// [`crate::ops::OpDef::linear`].
pub fn linear(op: &Op) -> Linear {
    op.def().linear()
}

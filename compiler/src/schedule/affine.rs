//! Index arithmetic: strided accesses to dense values, how two iteration spaces over one value
//! match axis by axis, and how an access follows a value that was placed inside another.

use crate::ir::view::View;

/// At point `x`, element `offset + Σ strides_i x_i` of the row-major order of `value`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    pub value: usize,
    pub offset: i64,
    pub strides: Vec<i64>,
}

/// Old axes in terms of new ones: `x_old = Σ factor · x_new` over its pieces, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remap {
    pub pieces: Vec<Vec<(usize, i64)>>,
    pub rank: usize,
}

impl Remap {
    /// Strides over the old axes as strides over the new ones.
    pub fn apply(&self, strides: &[i64]) -> Vec<i64> {
        let mut out = vec![0; self.rank];
        for (s, pieces) in strides.iter().zip(&self.pieces) {
            for &(axis, factor) in pieces {
                out[axis] += s * factor;
            }
        }
        out
    }

    /// Whether every old axis is the new one of its place.
    pub fn is_identity(&self) -> bool {
        self.pieces.len() == self.rank
            && self.pieces.iter().enumerate().all(|(i, p)| p[..] == [(i, 1)])
    }

    /// Whether the linear index of every point is kept.
    pub fn keeps_order(&self, dims: &[usize]) -> bool {
        let mut at = 0;
        for pieces in &self.pieces {
            for &(axis, _) in pieces {
                // Axes of extent 1 that the other side brought do not change the linear index.
                while at < axis && dims[at] == 1 {
                    at += 1;
                }
                if axis != at {
                    return false;
                }
                at += 1;
            }
        }
        dims[at.min(dims.len())..].iter().all(|&n| n == 1)
    }
}

/// One side of a match: extents, and strides into the common value.
pub struct Side<'a> {
    pub dims: &'a [usize],
    pub strides: &'a [i64],
}

/// The space that two sides share: the axes of the leading side, split where the other side's are
/// finer.
pub struct Matched {
    pub dims: Vec<usize>,
    pub lead: Remap,
    pub other: Remap,
    /// For each axis of the result, whether the other side runs along it.
    pub shared: Vec<bool>,
    /// For each axis of the result, the axis of the leading side it is a piece of.
    pub lead_axis: Vec<usize>,
}

/// Matches two spaces through accesses to one value. Axes of extent above 1 with stride 0 stay
/// the leading side's own; the other side must have none of those.
pub fn match_axes(lead: &Side, other: &Side) -> Option<Matched> {
    let sorted = |s: &Side| -> Option<Vec<(i64, usize, usize)>> {
        let mut axes = vec![];
        for (i, (&n, &st)) in s.dims.iter().zip(s.strides).enumerate() {
            if n == 0 || st < 0 {
                return None;
            }
            if n > 1 && st > 0 {
                axes.push((st, n, i));
            }
        }
        axes.sort_unstable();
        // Two axes of one stride, or axes that overlap, would visit elements twice.
        axes.windows(2).all(|w| w[0].0 * w[0].1 as i64 <= w[1].0).then_some(axes)
    };
    let (a, b) = (sorted(lead)?, sorted(other)?);
    if other.dims.iter().zip(other.strides).any(|(&n, &s)| n > 1 && s == 0) {
        return None;
    }
    // (extent, lead axis, other axis), innermost first.
    let mut pieces: Vec<(usize, usize, usize)> = vec![];
    let (mut i, mut j) = (0, 0);
    let (mut left, mut right) = (a.first().copied(), b.first().copied());
    while let (Some((s1, n1, x1)), Some((s2, n2, x2))) = (left, right) {
        let n = n1.min(n2);
        if s1 != s2 || n1 % n != 0 || n2 % n != 0 {
            return None;
        }
        pieces.push((n, x1, x2));
        let step = |rest: usize, s: i64, x: usize, at: &mut usize, list: &[(i64, usize, usize)]| {
            if rest > 1 {
                Some((s * n as i64, rest, x))
            } else {
                *at += 1;
                list.get(*at).copied()
            }
        };
        left = step(n1 / n, s1, x1, &mut i, &a);
        right = step(n2 / n, s2, x2, &mut j, &b);
    }
    if left.is_some() || right.is_some() {
        return None;
    }
    let mut dims = vec![];
    let mut lead_axis = vec![];
    let mut shared = vec![];
    let mut lead_map = vec![vec![]; lead.dims.len()];
    // For each piece its new axis.
    let mut place = vec![0; pieces.len()];
    for (axis, &n) in lead.dims.iter().enumerate() {
        let own: Vec<usize> = (0..pieces.len()).rev().filter(|&p| pieces[p].1 == axis).collect();
        if own.is_empty() {
            lead_map[axis].push((dims.len(), 1));
            dims.push(n);
            lead_axis.push(axis);
            shared.push(false);
        }
        let mut inner = n as i64;
        for p in own {
            inner /= pieces[p].0 as i64;
            lead_map[axis].push((dims.len(), inner));
            place[p] = dims.len();
            dims.push(pieces[p].0);
            lead_axis.push(axis);
            shared.push(true);
        }
    }
    let other_map = other
        .dims
        .iter()
        .enumerate()
        .map(|(axis, &n)| {
            let mut inner = n as i64;
            (0..pieces.len())
                .rev()
                .filter(|&p| pieces[p].2 == axis)
                .map(|p| {
                    inner /= pieces[p].0 as i64;
                    (place[p], inner)
                })
                .collect()
        })
        .collect();
    let rank = dims.len();
    Some(Matched {
        dims,
        lead: Remap { pieces: lead_map, rank },
        other: Remap { pieces: other_map, rank },
        shared,
        lead_axis,
    })
}

/// Where the elements of a value lie inside another one: mixed-radix digits of the row-major index
/// (outermost first) and what each is worth there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub offset: i64,
    /// Extent, stride in the value's own order, stride in the other's.
    pub digits: Vec<(usize, i64, i64)>,
}

impl Placement {
    /// The placement under which `from` (a view of a dense value that visits each element once)
    /// and `to` (strides over the same axes) are the same elements.
    pub fn new(from: &View, to_offset: i64, to: &[i64]) -> Option<Placement> {
        let mut digits: Vec<(usize, i64, i64)> = from
            .shape
            .iter()
            .zip(&from.strides)
            .zip(to)
            .filter(|((n, _), _)| **n != 1)
            .map(|((&n, &s), &t)| (n, s, t))
            .collect();
        digits.sort_by_key(|d| std::cmp::Reverse(d.1));
        let mut want = 1;
        for &(n, s, _) in digits.iter().rev() {
            if s != want {
                return None;
            }
            want *= n as i64;
        }
        (from.offset == 0).then_some(Placement { offset: to_offset, digits: merged(digits) })
    }

    /// The placement in what the other value is placed in, where strides can say it.
    pub fn within(&self, outer: &Placement) -> Option<Placement> {
        let dims: Vec<usize> = self.digits.iter().map(|d| d.0).collect();
        let strides: Vec<i64> = self.digits.iter().map(|d| d.2).collect();
        let (offset, strides) = outer.convert(&dims, self.offset, &strides)?;
        let digits = self.digits.iter().zip(strides).map(|(d, t)| (d.0, d.1, t)).collect();
        Some(Placement { offset, digits: merged(digits) })
    }

    /// An access to the value as an access to the other one, where strides can say it.
    pub fn convert(&self, dims: &[usize], offset: i64, strides: &[i64]) -> Option<(i64, Vec<i64>)> {
        let mut reach = vec![0i64; self.digits.len()];
        let mut convert = |x: i64, extent: i64| -> Option<i64> {
            let (mut rest, mut out) = (x, 0);
            for (d, &(_, s, t)) in self.digits.iter().enumerate() {
                let digit = rest / s;
                rest -= digit * s;
                reach[d] += digit * extent;
                out += digit * t;
            }
            (x >= 0 && rest == 0).then_some(out)
        };
        let offset = self.offset + convert(offset, 1)?;
        let mut out = Vec::with_capacity(strides.len());
        for (&s, &n) in strides.iter().zip(dims) {
            out.push(if n == 1 { 0 } else { convert(s, n as i64 - 1)? });
        }
        reach.iter().zip(&self.digits).all(|(&r, d)| r < d.0 as i64).then_some((offset, out))
    }
}

/// Neighbours that the other order steps through evenly are one digit, so that an access along both
/// at once can be said.
fn merged(digits: Vec<(usize, i64, i64)>) -> Vec<(usize, i64, i64)> {
    let mut merged: Vec<(usize, i64, i64)> = vec![];
    for d in digits.into_iter().rev() {
        match merged.last_mut() {
            Some(inner) if d.2 == inner.2 * inner.0 as i64 => inner.0 *= d.0,
            _ => merged.push(d),
        }
    }
    merged.reverse();
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_match_through_a_transposed_read() {
        // Lead [c, n, hw] reading an [n, c, hw] value; other [n, c·hw].
        let m = match_axes(
            &Side { dims: &[3, 2, 20], strides: &[20, 60, 1] },
            &Side { dims: &[2, 60], strides: &[60, 1] },
        )
        .unwrap();
        assert_eq!(m.dims, [3, 2, 20]);
        assert_eq!(m.other.apply(&[60, 1]), [20, 60, 1]);
        assert!(!m.other.keeps_order(&m.dims));
        assert!(m.lead.keeps_order(&m.dims));
    }

    #[test]
    fn the_leading_side_keeps_axes_of_its_own() {
        let m = match_axes(
            &Side { dims: &[6, 5], strides: &[1, 0] },
            &Side { dims: &[2, 3], strides: &[3, 1] },
        )
        .unwrap();
        assert_eq!(m.dims, [2, 3, 5]);
        assert_eq!(m.shared, [true, true, false]);
        assert_eq!(m.lead.apply(&[5, 1]), [15, 5, 1]);
        assert!(
            match_axes(&Side { dims: &[4], strides: &[1] }, &Side { dims: &[6], strides: &[1] })
                .is_none()
        );
    }

    #[test]
    fn placement_follows_permuted_parts() {
        // A [b=2,h=3,t=4,d=5] value seen as [b,t,h,d], written at column 7 of a [b,t,30] one.
        let from = View::dense(&[2usize, 3, 4, 5].into()).transpose(&[0, 2, 1, 3]);
        let p = Placement::new(&from, 7, &[120, 30, 5, 1]).unwrap();
        let (offset, strides) = p.convert(&[2, 3, 4, 5], 0, &[60, 20, 5, 1]).unwrap();
        assert_eq!((offset, strides.as_slice()), (7, &[120i64, 5, 30, 1][..]));
        // Batches and rows of a part of a matrix are one digit, so an axis over both is an access.
        let rows = View::dense(&[2usize, 3, 5].into());
        let p = Placement::new(&rows, 7, &[90, 30, 1]).unwrap();
        assert_eq!(p.convert(&[6, 5], 0, &[5, 1]).unwrap(), (7, vec![30, 1]));
        let p = Placement::new(&from, 7, &[120, 30, 5, 1]).unwrap();
        // Heads and positions as one axis are not evenly spaced there.
        assert!(p.convert(&[2, 12, 5], 0, &[60, 5, 1]).is_none());
    }
}

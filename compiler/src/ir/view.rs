//! Strided views: what movement operations do to an index, without moving anything.

use super::types::Shape;

/// Element `i` of a tensor with extents `shape` is element `offset + Σ i_d strides_d` of a buffer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    pub shape: Shape,
    pub offset: i64,
    pub strides: Vec<i64>,
}

impl View {
    /// A dense row-major buffer seen as itself.
    pub fn dense(shape: &Shape) -> View {
        View { shape: shape.clone(), offset: 0, strides: shape.strides() }
    }

    /// Whether elements lie in row-major order without gaps, starting at the offset.
    pub fn is_contiguous(&self) -> bool {
        let dense = self.shape.strides();
        self.shape.iter().zip(&self.strides).zip(&dense).all(|((&n, s), d)| n == 1 || s == d)
    }

    /// The view with axes in another order: result axis `i` is axis `perm[i]`.
    pub fn transpose(&self, perm: &[usize]) -> View {
        View {
            shape: perm.iter().map(|&p| self.shape[p]).collect(),
            offset: self.offset,
            strides: perm.iter().map(|&p| self.strides[p]).collect(),
        }
    }

    /// Axes of extent 1 repeated to `shape` (same rank).
    pub fn broadcast(&self, shape: &Shape) -> View {
        let strides = self
            .shape
            .iter()
            .zip(&self.strides)
            .zip(shape.iter())
            .map(|((&from, &s), &to)| if from == to { s } else { 0 })
            .collect();
        View { shape: shape.clone(), offset: self.offset, strides }
    }

    /// Elements `starts[d] + k * steps[d]` of each axis; `shape` holds the resulting extents.
    pub fn slice(&self, starts: &[usize], steps: &[i64], shape: &Shape) -> View {
        let offset = self.offset
            + starts.iter().zip(&self.strides).map(|(&b, &s)| b as i64 * s).sum::<i64>();
        // The step along a single element means nothing and may be any number.
        let strides = (0..shape.rank())
            .map(|d| if shape[d] > 1 { self.strides[d] * steps[d] } else { self.strides[d] })
            .collect();
        View { shape: shape.clone(), offset, strides }
    }

    /// The same elements in row-major order under other extents, where strides can express it.
    pub fn reshape(&self, shape: &Shape) -> Option<View> {
        if self.shape.elements() != shape.elements() {
            return None;
        }
        if shape.elements() == 0 {
            return Some(View {
                strides: shape.strides(),
                shape: shape.clone(),
                offset: self.offset,
            });
        }
        // Walk both shapes in blocks of equal element counts; within a block the old axes must be
        // one run (stride of each = stride × extent of the next).
        let old: Vec<(usize, i64)> = self
            .shape
            .iter()
            .copied()
            .zip(self.strides.iter().copied())
            .filter(|(n, _)| *n != 1)
            .collect();
        let mut strides = vec![0i64; shape.rank()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (mut have, first) = (old[i].0, i);
            let begin = j;
            let mut want = 1;
            while j < shape.rank() && want < have {
                want *= shape[j];
                j += 1;
            }
            while want != have {
                if want > have {
                    i += 1;
                    have *= old.get(i)?.0;
                } else {
                    want *= *shape.get(j)?;
                    j += 1;
                }
            }
            if (first..i).any(|d| old[d].1 != old[d + 1].1 * old[d + 1].0 as i64) {
                return None;
            }
            let mut s = old[i].1;
            for d in (begin..j).rev() {
                strides[d] = s;
                s *= shape[d] as i64;
            }
            i += 1;
        }
        Some(View { shape: shape.clone(), offset: self.offset, strides })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(v: &View) -> Vec<i64> {
        let mut out = vec![v.offset];
        for (n, s) in v.shape.iter().zip(&v.strides) {
            out = out.iter().flat_map(|&o| (0..*n as i64).map(move |i| o + i * s)).collect();
        }
        out
    }

    #[test]
    fn reshape_keeps_row_major_order_or_refuses() {
        let base = View::dense(&Shape::from([4, 6, 10]));
        for view in [
            base.clone(),
            base.transpose(&[1, 0, 2]),
            base.slice(&[1, 2, 0], &[1, 2, 1], &[3, 2, 10].into()),
        ] {
            let n = view.shape.elements();
            let mut done = 0;
            for a in (1..=n).filter(|a| n % a == 0) {
                for b in (1..=n / a).filter(|b| (n / a) % b == 0) {
                    let shape = Shape::from([a, 1, b, n / a / b]);
                    if let Some(r) = view.reshape(&shape) {
                        assert_eq!(elements(&r), elements(&view), "{shape}");
                        done += 1;
                    }
                }
            }
            assert!(done > 0);
        }
        assert!(base.transpose(&[2, 1, 0]).reshape(&[240].into()).is_none());
        assert_eq!(
            base.transpose(&[1, 0, 2]).reshape(&[6, 4, 2, 5].into()).unwrap().strides,
            [10, 60, 5, 1]
        );
    }
}

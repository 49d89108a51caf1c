//! Iteration spaces: coalesced axes, tiles, and the runs of memory a tile touches.

use smallvec::SmallVec;

pub type Dims = SmallVec<[usize; 8]>;
pub type Steps = SmallVec<[i64; 8]>;

/// An iteration space split into two groups of axes. A tile is a range of linear indices of the
/// outer group times a range of the inner group; its lanes are laid out outer-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// At least one axis.
    pub outer: Dims,
    /// At least one axis.
    pub inner: Dims,
    pub outer_len: usize,
    pub inner_len: usize,
}

/// Where the elements of one port lie: offset and strides in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Strides {
    pub base: i64,
    pub outer: Steps,
    pub inner: Steps,
}

/// A rectangle of a [`Space`], in linear indices of its two groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    pub o0: usize,
    pub on: usize,
    pub i0: usize,
    pub n: usize,
}

impl Tile {
    pub fn lanes(&self) -> usize {
        self.on * self.n
    }
}

/// Drops unit axes and merges neighbours that every port steps through evenly.
/// `strides[p]` are the strides of port `p` over `dims`.
pub fn coalesce(dims: &[usize], strides: &[Steps]) -> (Dims, Vec<Steps>) {
    let mut out_dims = Dims::new();
    let mut out: Vec<Steps> = vec![Steps::new(); strides.len()];
    for d in 0..dims.len() {
        if dims[d] == 1 {
            continue;
        }
        let merges = !out_dims.is_empty()
            && strides
                .iter()
                .zip(&out)
                .all(|(s, o)| *o.last().expect("an axis") == s[d].wrapping_mul(dims[d] as i64));
        if merges {
            *out_dims.last_mut().expect("an axis") *= dims[d];
            for (s, o) in strides.iter().zip(&mut out) {
                *o.last_mut().expect("an axis") = s[d];
            }
        } else {
            out_dims.push(dims[d]);
            for (s, o) in strides.iter().zip(&mut out) {
                o.push(s[d]);
            }
        }
    }
    if out_dims.is_empty() {
        out_dims.push(1);
        out.iter_mut().for_each(|o| o.push(0));
    }
    (out_dims, out)
}

/// Whether one step of the last axis, repeated, walks all axes.
fn even(dims: &[usize], steps: &[i64]) -> bool {
    (1..dims.len()).all(|d| steps[d - 1] == steps[d] * dims[d] as i64)
}

impl Strides {
    /// Stride of the innermost axis.
    pub fn step(&self) -> i64 {
        self.inner[self.inner.len() - 1]
    }
}

/// Splits a linear index into coordinates.
fn locate(dims: &[usize], mut linear: usize, at: &mut [usize; 8]) {
    for d in (0..dims.len()).rev() {
        at[d] = linear % dims[d];
        linear /= dims[d];
    }
}

fn dot(at: &[usize; 8], steps: &[i64]) -> i64 {
    steps.iter().zip(at).map(|(&s, &i)| s * i as i64).sum()
}

/// Moves to the next index; returns by how much the offset changes.
fn advance(dims: &[usize], steps: &[i64], at: &mut [usize; 8]) -> i64 {
    let mut delta = 0;
    for d in (0..dims.len()).rev() {
        at[d] += 1;
        delta += steps[d];
        if at[d] < dims[d] {
            return delta;
        }
        delta -= steps[d] * dims[d] as i64;
        at[d] = 0;
    }
    delta
}

impl Space {
    pub fn new(outer: Dims, inner: Dims) -> Space {
        let outer_len = outer.iter().product();
        let inner_len = inner.iter().product();
        Space { outer, inner, outer_len, inner_len }
    }

    /// Whether every tile of `outer` rows by `inner` lanes is one evenly spaced run for this port.
    pub fn is_one_run(&self, s: &Strides, outer: usize, inner: usize) -> bool {
        let step = s.step();
        even(&self.inner, &s.inner)
            && (outer == 1
                || inner == self.inner_len
                    && s.outer[s.outer.len() - 1] == step * inner as i64
                    && even(&self.outer, &s.outer))
    }

    /// Offset of the first element of a tile.
    pub fn offset(&self, s: &Strides, tile: Tile) -> i64 {
        if self.outer.len() == 1 && self.inner.len() == 1 {
            return s.base + s.outer[0] * tile.o0 as i64 + s.inner[0] * tile.i0 as i64;
        }
        let mut at = [0; 8];
        locate(&self.outer, tile.o0, &mut at);
        let o = dot(&at, &s.outer);
        locate(&self.inner, tile.i0, &mut at);
        s.base + o + dot(&at, &s.inner)
    }

    /// Calls `f(lane, offset, stride, count)` for the evenly spaced runs of a tile, in lane order.
    #[inline]
    pub fn runs(&self, s: &Strides, tile: Tile, mut f: impl FnMut(usize, i64, i64, usize)) {
        if self.is_one_run(s, tile.on, tile.n) {
            return f(0, self.offset(s, tile), s.step(), tile.lanes());
        }
        let mut o_at = [0; 8];
        locate(&self.outer, tile.o0, &mut o_at);
        let mut o_off = s.base + dot(&o_at, &s.outer);
        let last = self.inner.len() - 1;
        let (lead, lead_steps) = (&self.inner[..last], &s.inner[..last]);
        let (width, step) = (self.inner[last], s.inner[last]);
        let mut first = [0; 8];
        locate(lead, tile.i0 / width, &mut first);
        let first_off = dot(&first, lead_steps);
        let first_col = tile.i0 % width;
        let mut lane = 0;
        for _ in 0..tile.on {
            let (mut at, mut off, mut col) = (first, o_off + first_off, first_col);
            let mut left = tile.n;
            while left > 0 {
                let run = left.min(width - col);
                f(lane, off + step * col as i64, step, run);
                lane += run;
                left -= run;
                col = 0;
                if left > 0 {
                    off += advance(lead, lead_steps, &mut at);
                }
            }
            o_off += advance(&self.outer, &s.outer, &mut o_at);
        }
    }

    /// The runs along the outer axes only (`inner` index 0).
    #[inline]
    pub fn outer_runs(
        &self,
        s: &Strides,
        o0: usize,
        on: usize,
        f: impl FnMut(usize, i64, i64, usize),
    ) {
        let one: Dims = smallvec::smallvec![1];
        let space = Space {
            outer: one,
            inner: self.outer.clone(),
            outer_len: 1,
            inner_len: self.outer_len,
        };
        let steps = Strides { base: s.base, outer: smallvec::smallvec![0], inner: s.outer.clone() };
        space.runs(&steps, Tile { o0: 0, on: 1, i0: o0, n: on }, f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn axes_that_every_port_steps_through_evenly_merge() {
        let (dims, s) = coalesce(&[2, 1, 3, 4], &[smallvec![12, 99, 4, 1], smallvec![0, 5, 0, 0]]);
        assert_eq!(dims.as_slice(), [24]);
        assert_eq!((s[0].as_slice(), s[1].as_slice()), (&[1i64][..], &[0i64][..]));
        let (dims, _) = coalesce(&[2, 3, 4], &[smallvec![12, 4, 1], smallvec![0, 0, 1]]);
        assert_eq!(dims.as_slice(), [6, 4]);
    }

    #[test]
    fn runs_visit_the_elements_of_a_tile_in_lane_order() {
        let space = Space::new(smallvec![2, 3], smallvec![4, 5]);
        let s = Strides { base: 7, outer: smallvec![1000, 100], inner: smallvec![1, 10] };
        for (o0, on) in [(0, 6), (1, 4), (5, 1)] {
            for (i0, n) in [(0, 20), (3, 9), (19, 1), (4, 16)] {
                let mut got = vec![];
                space.runs(&s, Tile { o0, on, i0, n }, |lane, off, st, count| {
                    assert_eq!(lane, got.len());
                    got.extend((0..count as i64).map(|i| off + i * st));
                });
                let want: Vec<i64> = (o0..o0 + on)
                    .flat_map(|o| (i0..i0 + n).map(move |i| (o, i)))
                    .map(|(o, i)| (7 + o / 3 * 1000 + o % 3 * 100 + i / 5 + i % 5 * 10) as i64)
                    .collect();
                assert_eq!(got, want);
            }
        }
    }
}

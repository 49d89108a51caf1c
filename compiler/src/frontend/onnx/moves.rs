//! Movement operators of ONNX as the four views of the IR, resolved to concrete extents. Folding
//! applies them to literals, import turns them into nodes; the arithmetic on extents is here once.

use super::tensor::{Data, Tensor, checked_elements};
use crate::ir::Shape;
use crate::ir::view::View;

/// One step of moving elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    Reshape(Vec<usize>),
    Transpose(Vec<usize>),
    /// Axes of extent 1 repeated; same rank.
    Broadcast(Vec<usize>),
    Slice {
        starts: Vec<usize>,
        sizes: Vec<usize>,
        steps: Vec<i64>,
    },
}

impl Move {
    /// Extents of the result.
    pub fn shape(&self, from: &[usize]) -> Vec<usize> {
        match self {
            Move::Reshape(s) | Move::Broadcast(s) => s.clone(),
            Move::Transpose(p) => p.iter().map(|&i| from[i]).collect(),
            Move::Slice { sizes, .. } => sizes.clone(),
        }
    }

    /// Whether the move changes nothing.
    pub fn is_identity(&self, from: &[usize]) -> bool {
        match self {
            Move::Reshape(s) | Move::Broadcast(s) => s == from,
            Move::Transpose(p) => p.iter().enumerate().all(|(i, &q)| i == q),
            Move::Slice { starts, sizes, steps } => {
                sizes == from && starts.iter().all(|&s| s == 0) && steps.iter().all(|&s| s == 1)
            }
        }
    }

    /// Applies the move to a literal.
    pub fn apply(&self, t: &Tensor) -> Tensor {
        let from = Shape::new(&t.shape);
        let dense = View::dense(&from);
        let view = match self {
            Move::Reshape(s) => return Tensor { shape: s.clone(), ..t.clone() },
            Move::Transpose(p) => dense.transpose(p),
            Move::Broadcast(s) => dense.broadcast(&Shape::new(s)),
            Move::Slice { starts, sizes, steps } => dense.slice(starts, steps, &Shape::new(sizes)),
        };
        let index = elements_of(&view);
        t.pick(view.shape.to_vec(), &index)
    }
}

/// The literal with every axis along which it repeats cut to one element.
pub fn without_repeats(t: &Tensor) -> Tensor {
    let mut t = t.clone();
    for d in 0..t.shape.len() {
        let n = t.shape[d];
        if n <= 1 {
            continue;
        }
        let first = part(&t.shape, d, 0, 1).apply(&t);
        let spread = Move::Broadcast(t.shape.clone()).apply(&first);
        let same = match (&spread.data, &t.data) {
            (Data::Real(a), Data::Real(b)) => {
                a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
            }
            (a, b) => a == b,
        };
        if same {
            t = first;
        }
    }
    t
}

/// Buffer positions of a view's elements in row-major order.
pub fn elements_of(v: &View) -> Vec<usize> {
    let n = v.shape.elements();
    let mut out = Vec::with_capacity(n);
    let mut at = vec![0usize; v.shape.rank()];
    let mut position = v.offset;
    for _ in 0..n {
        out.push(position as usize);
        for d in (0..at.len()).rev() {
            at[d] += 1;
            position += v.strides[d];
            if at[d] < v.shape[d] {
                break;
            }
            position -= v.strides[d] * at[d] as i64;
            at[d] = 0;
        }
    }
    out
}

/// An axis that may count from the end.
///
/// # Errors
/// Where it is out of range.
pub fn axis(a: i64, rank: usize) -> Result<usize, String> {
    let r = rank as i64;
    if (-r..r).contains(&a) {
        Ok((if a < 0 { a + r } else { a }) as usize)
    } else {
        Err(format!("axis {a} does not exist in rank {rank}"))
    }
}

/// Ascending distinct axes.
///
/// # Errors
/// Out of range or repeated.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut out = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(format!("axes {list:?} repeat"));
    }
    Ok(out)
}

/// Numpy's common shape of two operands.
///
/// # Errors
/// Where extents differ and neither is 1.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], d: usize| {
        let pad = rank - s.len();
        if d < pad { 1 } else { s[d - pad] }
    };
    (0..rank)
        .map(|d| match (at(a, d), at(b, d)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// Moves that bring `from` to `to` by numpy's rule (leading axes added, extents 1 repeated).
///
/// # Errors
/// Where it does not broadcast.
pub fn broadcast(from: &[usize], to: &[usize]) -> Result<Vec<Move>, String> {
    if broadcast_shape(from, to)? != to {
        return Err(format!("{from:?} does not broadcast to {to:?}"));
    }
    let mut aligned = vec![1; to.len() - from.len()];
    aligned.extend_from_slice(from);
    Ok(vec![Move::Reshape(aligned), Move::Broadcast(to.to_vec())])
}

/// `Reshape`.
///
/// # Errors
/// Where element counts differ or several extents are −1.
pub fn reshape(from: &[usize], target: &[i64], allow_zero: bool) -> Result<Vec<Move>, String> {
    let n: usize = from.iter().product();
    let mut to = Vec::with_capacity(target.len());
    let mut wild = None;
    for (i, &t) in target.iter().enumerate() {
        match t {
            -1 if wild.is_some() => return Err(format!("{target:?} has several -1")),
            -1 => {
                wild = Some(i);
                to.push(1);
            }
            0 if !allow_zero => {
                to.push(
                    *from.get(i).ok_or_else(|| format!("{target:?} copies axis {i} of {from:?}"))?
                        as i64,
                );
            }
            t => to.push(t),
        }
    }
    let (mut to, known) = checked_elements(&to)?;
    if let Some(i) = wild {
        if known == 0 || !n.is_multiple_of(known) {
            return Err(format!("{from:?} cannot be reshaped to {target:?}"));
        }
        to[i] = n / known;
    } else if known != n {
        return Err(format!("{from:?} cannot be reshaped to {target:?}"));
    }
    Ok(vec![Move::Reshape(to)])
}

/// `Squeeze`; `None`: every axis of extent 1.
///
/// # Errors
/// Where an axis has another extent.
pub fn squeeze(from: &[usize], list: Option<&[i64]>) -> Result<Vec<Move>, String> {
    let gone = match list {
        Some(l) => axes(l, from.len())?,
        None => (0..from.len()).filter(|&d| from[d] == 1).collect(),
    };
    if let Some(&d) = gone.iter().find(|&&d| from[d] != 1) {
        return Err(format!("axis {d} of {from:?} is not 1"));
    }
    let to = (0..from.len()).filter(|d| !gone.contains(d)).map(|d| from[d]).collect();
    Ok(vec![Move::Reshape(to)])
}

/// `Unsqueeze`.
///
/// # Errors
/// Where an axis is out of range or repeated.
pub fn unsqueeze(from: &[usize], list: &[i64]) -> Result<Vec<Move>, String> {
    let rank = from.len() + list.len();
    let new = axes(list, rank)?;
    let mut rest = from.iter();
    let to = (0..rank)
        .map(|d| if new.contains(&d) { 1 } else { *rest.next().expect("ranks add up") })
        .collect();
    Ok(vec![Move::Reshape(to)])
}

/// `Flatten` at an axis.
///
/// # Errors
/// Where the axis is out of range.
pub fn flatten(from: &[usize], at: i64) -> Result<Vec<Move>, String> {
    let rank = from.len();
    let at = if at == rank as i64 { rank } else { axis(at, rank)? };
    Ok(vec![Move::Reshape(vec![from[..at].iter().product(), from[at..].iter().product()])])
}

/// `Transpose`; without `perm`, the axes in reverse order.
///
/// # Errors
/// Where `perm` is not a permutation.
pub fn transpose(from: &[usize], perm: Option<&[i64]>) -> Result<Vec<Move>, String> {
    let rank = from.len();
    let perm: Vec<usize> = match perm {
        None => (0..rank).rev().collect(),
        Some(p) => {
            axes(p, rank)?;
            p.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?
        }
    };
    if perm.len() != rank {
        return Err(format!("{perm:?} does not permute {from:?}"));
    }
    Ok(vec![Move::Transpose(perm)])
}

/// `Expand`: numpy broadcasting of the operand with `target`, which may be smaller.
///
/// # Errors
/// Where it does not broadcast.
pub fn expand(from: &[usize], target: &[i64]) -> Result<Vec<Move>, String> {
    let (target, _) = checked_elements(target)?;
    let to = broadcast_shape(from, &target)?;
    broadcast(from, &to)
}

/// `Slice` with ONNX's clamping.
///
/// # Errors
/// Lists of unequal length, a step of zero, axes out of range.
pub fn slice(
    from: &[usize],
    begin: &[i64],
    end: &[i64],
    list: Option<&[i64]>,
    step: Option<&[i64]>,
) -> Result<Vec<Move>, String> {
    let rank = from.len();
    let list: Vec<i64> = list.map_or_else(|| (0..begin.len() as i64).collect(), <[i64]>::to_vec);
    let step: Vec<i64> = step.map_or_else(|| vec![1; begin.len()], <[i64]>::to_vec);
    if [end.len(), list.len(), step.len()] != [begin.len(); 3] {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    axes(&list, rank)?;
    let mut starts = vec![0; rank];
    let mut sizes = from.to_vec();
    let mut steps = vec![1i64; rank];
    for i in 0..list.len() {
        let d = axis(list[i], rank)?;
        let (n, s) = (from[d] as i64, step[i]);
        if s == 0 || s == i64::MIN {
            return Err(format!("step {s}"));
        }
        let wrap = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
        let (lo, hi) = if s > 0 { (0, n) } else { (-1, n - 1) };
        let b = wrap(begin[i]).clamp(lo.max(0), hi.max(0));
        let e = wrap(end[i]).clamp(lo, hi.max(lo));
        let span = if s > 0 { e - b } else { b - e };
        let count = if n == 0 || span <= 0 { 0 } else { (span - 1) / s.abs() + 1 };
        sizes[d] = count as usize;
        (starts[d], steps[d]) = if count == 0 { (0, 1) } else { (b as usize, s) };
    }
    Ok(vec![Move::Slice { starts, sizes, steps }])
}

/// The part `[at, at + size)` of one axis.
pub fn part(from: &[usize], axis: usize, at: usize, size: usize) -> Move {
    let mut starts = vec![0; from.len()];
    let mut sizes = from.to_vec();
    starts[axis] = at;
    sizes[axis] = size;
    Move::Slice { starts, sizes, steps: vec![1; from.len()] }
}

/// Extents of the parts of `Split`: as given, or `count` equal ones of which the last may be
/// smaller.
///
/// # Errors
/// Where they do not add up to the extent.
pub fn split_sizes(
    extent: usize,
    given: Option<&[i64]>,
    count: Option<usize>,
) -> Result<Vec<usize>, String> {
    match (given, count) {
        (Some(list), _) => {
            let sizes: Vec<usize> = list
                .iter()
                .map(|&s| usize::try_from(s).map_err(|_| format!("a part of {s} elements")))
                .collect::<Result<_, _>>()?;
            let total = sizes.iter().try_fold(0usize, |a, &s| a.checked_add(s));
            if total != Some(extent) {
                return Err(format!("parts {list:?} do not add up to {extent}"));
            }
            Ok(sizes)
        }
        (None, Some(n)) if n > 0 && n <= extent => {
            let each = extent.div_ceil(n);
            (0..n)
                .map(|i| {
                    let at = i * each;
                    if at >= extent {
                        return Err(format!("{extent} elements do not make {n} parts"));
                    }
                    Ok(each.min(extent - at))
                })
                .collect()
        }
        (None, Some(n)) => Err(format!("{extent} elements cannot be split into {n} parts")),
        (None, None) => Err("neither the parts nor their number is known".into()),
    }
}

/// `Tile`. Only an axis of several elements that is repeated becomes two on the way, and no more of
/// them at once than a tensor may have axes.
///
/// # Errors
/// Where the repeats do not match the rank, are negative or overflow.
pub fn tile(from: &[usize], repeats: &[i64]) -> Result<Vec<Move>, String> {
    if repeats.len() != from.len() {
        return Err(format!("{} repeats for rank {}", repeats.len(), from.len()));
    }
    let (repeats, _) = checked_elements(repeats)?;
    let pairs = from.iter().zip(&repeats);
    let whole: Vec<i64> = pairs.flat_map(|(&n, &r)| [r as i64, n as i64]).collect();
    checked_elements(&whole)?;
    let split = |d: &usize| from[*d] != 1 && repeats[*d] != 1;
    let all: Vec<usize> = (0..from.len()).filter(split).collect();
    let room = precast_plan::MAX_RANK.saturating_sub(from.len()).max(1);
    let mut at = from.to_vec();
    let mut moves = vec![];
    // Axes of one element are repeated by the first.
    for (first, group) in all.chunks(room).chain(all.is_empty().then_some(&[][..])).enumerate() {
        let (mut thin, mut wide) = (vec![], vec![]);
        for d in 0..at.len() {
            if group.contains(&d) {
                thin.extend([1, at[d]]);
                wide.extend([repeats[d], at[d]]);
                at[d] *= repeats[d];
            } else {
                thin.push(at[d]);
                if first == 0 && from[d] == 1 {
                    at[d] = repeats[d];
                }
                wide.push(at[d]);
            }
        }
        moves.extend([Move::Reshape(thin), Move::Broadcast(wide), Move::Reshape(at.clone())]);
    }
    Ok(moves)
}

#[cfg(test)]
mod tests {
    use super::super::tensor::Elem;
    use super::*;

    fn run(from: &[usize], moves: Result<Vec<Move>, String>) -> (Vec<usize>, Vec<i64>) {
        let n: usize = from.iter().product();
        let mut t = Tensor::new(Elem::I64, from, Data::Int((0..n as i64).collect()));
        for m in moves.unwrap() {
            assert_eq!(m.apply(&t).shape, m.shape(&t.shape));
            t = m.apply(&t);
        }
        let Data::Int(v) = t.data else { panic!("ints") };
        (t.shape, v)
    }

    #[test]
    fn slices_clamp_as_numpy_does() {
        let cases: [(i64, i64, i64, &[i64]); 7] = [
            (1, 4, 1, &[1, 2, 3]),
            (-2, i64::MAX, 1, &[3, 4]),
            (0, 100, 2, &[0, 2, 4]),
            (4, 1, 1, &[]),
            (-1, i64::MIN, -1, &[4, 3, 2, 1, 0]),
            (3, 0, -2, &[3, 1]),
            (100, -100, -3, &[4, 1]),
        ];
        for (b, e, s, want) in cases {
            let (_, got) = run(&[5], slice(&[5], &[b], &[e], None, Some(&[s])));
            assert_eq!(got, want, "[{b}:{e}:{s}]");
        }
    }

    #[test]
    fn shapes_move_as_onnx_says() {
        assert_eq!(run(&[2, 3], transpose(&[2, 3], None)), (vec![3, 2], vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(run(&[2, 1], tile(&[2, 1], &[1, 2])), (vec![2, 2], vec![0, 0, 1, 1]));
        assert_eq!(run(&[2], tile(&[2], &[2])), (vec![4], vec![0, 1, 0, 1]));
        assert_eq!(run(&[2], tile(&[2], &[0])).0, [0]);
        assert_eq!(run(&[], tile(&[], &[])).0, [] as [usize; 0]);
        assert_eq!(run(&[2, 1], expand(&[2, 1], &[3])), (vec![2, 3], vec![0, 0, 0, 1, 1, 1]));
        assert_eq!(run(&[4, 3], reshape(&[4, 3], &[0, -1, 1], false)).0, [4, 3, 1]);
        assert_eq!(run(&[4, 3], flatten(&[4, 3], -1)).0, [4, 3]);
        assert_eq!(run(&[1, 3, 1], squeeze(&[1, 3, 1], None)).0, [3]);
        assert_eq!(run(&[3], unsqueeze(&[3], &[0, -1])).0, [1, 3, 1]);
        assert_eq!(split_sizes(10, None, Some(4)).unwrap(), [3, 3, 3, 1]);
    }

    #[test]
    fn tiles_of_many_axes_pass_through_few() {
        for (from, repeats) in [
            (vec![2, 3, 1, 4, 5], vec![1, 1, 2, 1, 1]),
            (vec![2, 3, 1, 2, 2], vec![2, 1, 3, 2, 2]),
            (vec![2, 1, 2, 1, 2, 2, 2, 1], vec![2, 2, 2, 1, 2, 2, 2, 1]),
        ] {
            let moves = tile(&from, &repeats).unwrap();
            let axes = |m: &Move| match m {
                Move::Reshape(s) | Move::Broadcast(s) => s.len(),
                _ => 0,
            };
            let most = moves.iter().map(axes).max().unwrap();
            assert!(most <= precast_plan::MAX_RANK.max(from.len() + 1), "{moves:?}");
            let (shape, got) = run(&from, Ok(moves));
            // Element by element, as numpy's tile.
            let to: Vec<usize> = from.iter().zip(&repeats).map(|(n, r)| n * *r as usize).collect();
            assert_eq!(shape, to);
            let strides = Shape::new(&from).strides();
            for (k, &x) in got.iter().enumerate() {
                let (mut left, mut want) = (k, 0);
                for d in (0..to.len()).rev() {
                    want += (left % to[d] % from[d]) as i64 * strides[d];
                    left /= to[d];
                }
                assert_eq!(x, want, "{from:?} {repeats:?}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(reshape(&[4], &[3, -1], false).is_err());
        assert!(reshape(&[4], &[-1, -1], false).is_err());
        assert!(reshape(&[4], &[i64::MAX, i64::MAX], false).is_err());
        assert!(transpose(&[2, 2], Some(&[0, 0])).is_err());
        assert!(transpose(&[2, 2], Some(&[0])).is_err());
        assert!(slice(&[5], &[0], &[1], None, Some(&[0])).is_err());
        assert!(slice(&[5], &[0, 0], &[1, 1], Some(&[0, 0]), None).is_err());
        assert!(tile(&[2], &[i64::MAX]).is_err());
        assert!(split_sizes(4, Some(&[3, -1, 2]), None).is_err());
    }
}

//! Evaluation of operators whose operands are all literals: shape, index and mask arithmetic.

use super::moves::{self, axis, broadcast_shape, elements_of};
use super::node::{Attrs, fail};
use super::tensor::{Data, Elem, Tensor, checked_elements};
use crate::diagnostic::Diagnostic;
use crate::ir::Shape;
use crate::ir::view::View;

pub use super::sizes::{MAX_FOLDED, check_size, folds, is_beyond};

type Res<T> = Result<T, Diagnostic>;

fn words(e: impl Into<String>) -> Diagnostic {
    fail("P0214", e)
}

fn need(x: &[Option<Tensor>], i: usize) -> Res<&Tensor> {
    x.get(i).and_then(Option::as_ref).ok_or_else(|| words(format!("operand {i} is missing")))
}

fn ints(t: &Tensor) -> Res<Vec<i64>> {
    t.to_ints().ok_or_else(|| words(format!("operand is {:?}, not integer", t.elem)))
}

fn int(t: &Tensor) -> Res<i64> {
    match ints(t)?[..] {
        [x] => Ok(x),
        _ => Err(words(format!("operand of shape {:?} is not a scalar", t.shape))),
    }
}

/// Evaluates a node; `None`: this operator is not evaluated here. Movement operators are handled by
/// [`super::moves`].
///
/// # Errors
/// P0213, P0214: sizes, shapes, types.
pub fn eval(op: &str, x: &[Option<Tensor>], attrs: &Attrs) -> Res<Option<Tensor>> {
    Ok(Some(match op {
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "And" | "Or" | "Xor"
        | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "BitwiseAnd"
        | "BitwiseOr" | "BitwiseXor" => {
            let mut acc = need(x, 0)?.clone();
            let fmod = op == "Mod" && attrs.int("fmod", 0)? != 0;
            for i in 1..x.len() {
                acc = binary(op, fmod, &acc, need(x, i)?)?;
            }
            acc
        }
        "Neg" | "Abs" | "Floor" | "Ceil" | "Round" | "Sqrt" | "Reciprocal" | "Exp" | "Log"
        | "Sin" | "Cos" | "Tanh" | "Sigmoid" | "Erf" | "Sign" | "Not" | "IsNaN" | "BitwiseNot" => {
            match unary(op, need(x, 0)?)? {
                Some(t) => t,
                None => return Ok(None),
            }
        }
        "IsInf" => {
            let t = need(x, 0)?;
            let Data::Real(v) = &t.data else {
                return Err(words(format!("`IsInf` does not take {:?}", t.elem)));
            };
            let below = attrs.int("detect_negative", 1)? != 0;
            let above = attrs.int("detect_positive", 1)? != 0;
            let is = |x: &f64| x.is_infinite() && if *x < 0.0 { below } else { above };
            Tensor::new(Elem::Bool, t.shape.clone(), Data::Bool(v.iter().map(is).collect()))
        }
        "Clip" => {
            let bound = |i: usize| x.get(i).and_then(Option::as_ref);
            let mut t = need(x, 0)?.clone();
            for (op, by) in [("Max", bound(1)), ("Min", bound(2))] {
                if let Some(by) = by {
                    t = binary(op, false, &t, by)?;
                }
            }
            t
        }
        "Cast" => need(x, 0)?.cast(cast_target(attrs)?),
        "CastLike" => need(x, 0)?.cast(need(x, 1)?.elem),
        "Where" => select(need(x, 0)?, need(x, 1)?, need(x, 2)?)?,
        "Gather" => gather(need(x, 0)?, need(x, 1)?, attrs.int("axis", 0)?)?,
        "GatherElements" => gather_elements(need(x, 0)?, need(x, 1)?, attrs.int("axis", 0)?)?,
        "GatherND" => gather_nd(need(x, 0)?, need(x, 1)?, attrs.int("batch_dims", 0)?)?,
        "Concat" => {
            let parts: Vec<&Tensor> = (0..x.len()).map(|i| need(x, i)).collect::<Res<_>>()?;
            concat(&parts, attrs.int("axis", 0)?)?
        }
        "ConstantOfShape" => {
            let (shape, _) = checked_elements(&ints(need(x, 0)?)?).map_err(words)?;
            check_size(&shape)?;
            let value = match attrs.tensor("value") {
                Some(t) => Tensor::decode(t).map_err(words)?,
                None => Tensor::new(Elem::F32, [], Data::Real(vec![0.0])),
            };
            if value.len() != 1 {
                return Err(words("`value` is not one element"));
            }
            let n = shape.iter().product();
            value.pick(shape, &vec![0; n])
        }
        "Range" => range(need(x, 0)?, need(x, 1)?, need(x, 2)?)?,
        "CumSum" => cumsum(need(x, 0)?, int(need(x, 1)?)?, attrs)?,
        "NonZero" => non_zero(need(x, 0)?)?,
        "Trilu" => {
            let k = x.get(1).and_then(Option::as_ref).map_or(Ok(0), int)?;
            trilu(need(x, 0)?, k, attrs.int("upper", 1)? != 0)?
        }
        "ReduceProd" | "ReduceMax" | "ReduceMin" | "ReduceSum" | "ReduceMean" => {
            reduce(op, need(x, 0)?, x.get(1).and_then(Option::as_ref), attrs)?
        }
        _ => return Ok(None),
    }))
}

/// The element type that a `Cast` names.
///
/// # Errors
/// P0207.
pub fn cast_target(attrs: &Attrs) -> Res<Elem> {
    let code = attrs.int("to", 0)?;
    let code = i32::try_from(code).unwrap_or(0);
    Elem::from_onnx(code)
        .ok_or_else(|| fail("P0207", format!("cast to {} is not supported", Elem::code_name(code))))
}

fn spread(t: &Tensor, to: &[usize]) -> Res<Vec<usize>> {
    let mut aligned = vec![1; to.len() - t.shape.len()];
    aligned.extend_from_slice(&t.shape);
    Ok(elements_of(&View::dense(&Shape::new(&aligned)).broadcast(&Shape::new(to))))
}

fn binary(op: &str, fmod: bool, a: &Tensor, b: &Tensor) -> Res<Tensor> {
    let shape = broadcast_shape(&a.shape, &b.shape).map_err(words)?;
    check_size(&shape)?;
    // `Pow` alone may have operands of two types.
    let (b, differ) =
        if op == "Pow" { (b.cast(a.elem), false) } else { (b.clone(), a.elem != b.elem) };
    if differ {
        return Err(words(format!("operands are {:?} and {:?}", a.elem, b.elem)));
    }
    let (ia, ib) = (spread(a, &shape)?, spread(&b, &shape)?);
    let pairs = ia.iter().zip(&ib);
    let bad = || words(format!("`{op}` does not take {:?}", a.elem));
    let data = match (&a.data, &b.data) {
        (Data::Real(u), Data::Real(v)) => {
            let p = pairs.map(|(&i, &j)| (u[i], v[j]));
            match op {
                "Add" => Data::Real(p.map(|(x, y)| x + y).collect()),
                "Sub" => Data::Real(p.map(|(x, y)| x - y).collect()),
                "Mul" => Data::Real(p.map(|(x, y)| x * y).collect()),
                "Div" => Data::Real(p.map(|(x, y)| x / y).collect()),
                "Pow" => Data::Real(p.map(|(x, y)| x.powf(y)).collect()),
                "Mod" if fmod => Data::Real(p.map(|(x, y)| x % y).collect()),
                // NaN wins, as in numpy.
                "Max" => {
                    Data::Real(p.map(|(x, y)| if x > y || x.is_nan() { x } else { y }).collect())
                }
                "Min" => {
                    Data::Real(p.map(|(x, y)| if x < y || x.is_nan() { x } else { y }).collect())
                }
                "Equal" => Data::Bool(p.map(|(x, y)| x == y).collect()),
                "Less" => Data::Bool(p.map(|(x, y)| x < y).collect()),
                "LessOrEqual" => Data::Bool(p.map(|(x, y)| x <= y).collect()),
                "Greater" => Data::Bool(p.map(|(x, y)| x > y).collect()),
                "GreaterOrEqual" => Data::Bool(p.map(|(x, y)| x >= y).collect()),
                _ => return Err(bad()),
            }
        }
        (Data::Int(u), Data::Int(v)) => {
            if matches!(op, "Div" | "Mod") && v.contains(&0) {
                return Err(words("integer division by zero"));
            }
            let p = pairs.map(|(&i, &j)| (u[i], v[j]));
            match op {
                "Add" => Data::Int(p.map(|(x, y)| x.wrapping_add(y)).collect()),
                "Sub" => Data::Int(p.map(|(x, y)| x.wrapping_sub(y)).collect()),
                "Mul" => Data::Int(p.map(|(x, y)| x.wrapping_mul(y)).collect()),
                "Div" => Data::Int(p.map(|(x, y)| x.wrapping_div(y)).collect()),
                "Mod" if fmod => Data::Int(p.map(|(x, y)| x.wrapping_rem(y)).collect()),
                // The remainder has the divisor's sign.
                "Mod" => Data::Int(
                    p.map(|(x, y)| {
                        let r = x.wrapping_rem(y);
                        if r != 0 && (r < 0) != (y < 0) { r + y } else { r }
                    })
                    .collect(),
                ),
                "Pow" => Data::Int(p.map(|(x, y)| (x as f64).powf(y as f64) as i64).collect()),
                "Max" => Data::Int(p.map(|(x, y)| x.max(y)).collect()),
                "Min" => Data::Int(p.map(|(x, y)| x.min(y)).collect()),
                "BitwiseAnd" => Data::Int(p.map(|(x, y)| x & y).collect()),
                "BitwiseOr" => Data::Int(p.map(|(x, y)| x | y).collect()),
                "BitwiseXor" => Data::Int(p.map(|(x, y)| x ^ y).collect()),
                "Equal" => Data::Bool(p.map(|(x, y)| x == y).collect()),
                "Less" => Data::Bool(p.map(|(x, y)| x < y).collect()),
                "LessOrEqual" => Data::Bool(p.map(|(x, y)| x <= y).collect()),
                "Greater" => Data::Bool(p.map(|(x, y)| x > y).collect()),
                "GreaterOrEqual" => Data::Bool(p.map(|(x, y)| x >= y).collect()),
                _ => return Err(bad()),
            }
        }
        (Data::Bool(u), Data::Bool(v)) => {
            let p = pairs.map(|(&i, &j)| (u[i], v[j]));
            Data::Bool(match op {
                "And" => p.map(|(x, y)| x && y).collect(),
                "Or" => p.map(|(x, y)| x || y).collect(),
                "Xor" => p.map(|(x, y)| x != y).collect(),
                "Equal" => p.map(|(x, y)| x == y).collect(),
                _ => return Err(bad()),
            })
        }
        _ => return Err(bad()),
    };
    let elem = if matches!(data, Data::Bool(_)) { Elem::Bool } else { a.elem };
    Ok(Tensor::new(elem, shape, data))
}

fn unary(op: &str, t: &Tensor) -> Res<Option<Tensor>> {
    check_size(&t.shape)?;
    let data = match (&t.data, op) {
        (Data::Bool(v), "Not") => Data::Bool(v.iter().map(|x| !x).collect()),
        (Data::Bool(v), "BitwiseNot") => Data::Bool(v.iter().map(|x| !x).collect()),
        (Data::Int(v), "BitwiseNot") => {
            // An unsigned number keeps its bits.
            let mask = match t.elem {
                Elem::U8 => 0xff,
                Elem::U16 => 0xffff,
                Elem::U32 => 0xffff_ffff,
                _ => -1,
            };
            Data::Int(v.iter().map(|x| !x & mask).collect())
        }
        (Data::Int(v), "Neg") => Data::Int(v.iter().map(|x| x.wrapping_neg()).collect()),
        (Data::Int(v), "Abs") => Data::Int(v.iter().map(|x| x.wrapping_abs()).collect()),
        (Data::Int(v), "Sign") => Data::Int(v.iter().map(|x| x.signum()).collect()),
        (Data::Real(v), "IsNaN") => Data::Bool(v.iter().map(|x| x.is_nan()).collect()),
        (Data::Real(v), _) => {
            let f: fn(f64) -> f64 = match op {
                "Neg" => |x| -x,
                "Abs" => f64::abs,
                "Floor" => f64::floor,
                "Ceil" => f64::ceil,
                "Round" => f64::round_ties_even,
                "Sqrt" => f64::sqrt,
                "Reciprocal" => f64::recip,
                "Exp" => f64::exp,
                "Log" => f64::ln,
                "Sin" => f64::sin,
                "Cos" => f64::cos,
                "Tanh" => f64::tanh,
                "Sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
                "Sign" => |x| if x == 0.0 || x.is_nan() { x } else { x.signum() },
                // Left to the program that runs it.
                _ => return Ok(None),
            };
            Data::Real(v.iter().map(|&x| f(x)).collect())
        }
        _ => return Err(words(format!("`{op}` does not take {:?}", t.elem))),
    };
    let elem = if matches!(data, Data::Bool(_)) { Elem::Bool } else { t.elem };
    Ok(Some(Tensor::new(elem, t.shape.clone(), data)))
}

fn select(c: &Tensor, a: &Tensor, b: &Tensor) -> Res<Tensor> {
    let shape = broadcast_shape(&c.shape, &a.shape)
        .and_then(|s| broadcast_shape(&s, &b.shape))
        .map_err(words)?;
    check_size(&shape)?;
    let Data::Bool(cond) = &c.data else {
        return Err(words(format!("the condition is {:?}, not bool", c.elem)));
    };
    let (ic, ia, ib) = (spread(c, &shape)?, spread(a, &shape)?, spread(b, &shape)?);
    macro_rules! choose {
        ($u:expr, $v:expr) => {
            (0..ic.len()).map(|k| if cond[ic[k]] { $u[ia[k]] } else { $v[ib[k]] }).collect()
        };
    }
    let data = match (&a.data, &b.data) {
        (Data::Real(u), Data::Real(v)) => Data::Real(choose!(u, v)),
        (Data::Int(u), Data::Int(v)) => Data::Int(choose!(u, v)),
        (Data::Bool(u), Data::Bool(v)) => Data::Bool(choose!(u, v)),
        _ => return Err(words(format!("branches are {:?} and {:?}", a.elem, b.elem))),
    };
    Ok(Tensor::new(a.elem, shape, data))
}

/// An index that may count from the end.
fn wrap(i: i64, n: usize) -> Res<usize> {
    let n = n as i64;
    let j = if i < 0 { i.saturating_add(n) } else { i };
    if (0..n).contains(&j) {
        Ok(j as usize)
    } else {
        Err(words(format!("index {i} of {n} elements")))
    }
}

fn gather(t: &Tensor, index: &Tensor, a: i64) -> Res<Tensor> {
    let a = axis(a, t.shape.len()).map_err(words)?;
    let mut shape = t.shape[..a].to_vec();
    shape.extend_from_slice(&index.shape);
    shape.extend_from_slice(&t.shape[a + 1..]);
    check_size(&shape)?;
    let rows: Vec<usize> = ints(index)?.iter().map(|&i| wrap(i, t.shape[a])).collect::<Res<_>>()?;
    let (outer, inner): (usize, usize) =
        (t.shape[..a].iter().product(), t.shape[a + 1..].iter().product());
    let mut at = Vec::with_capacity(outer * rows.len() * inner);
    for o in 0..outer {
        for &r in &rows {
            let base = (o * t.shape[a] + r) * inner;
            at.extend(base..base + inner);
        }
    }
    Ok(t.pick(shape, &at))
}

fn gather_elements(t: &Tensor, index: &Tensor, a: i64) -> Res<Tensor> {
    let a = axis(a, t.shape.len()).map_err(words)?;
    let fits = index.shape.len() == t.shape.len()
        && (0..t.shape.len()).all(|d| d == a || index.shape[d] <= t.shape[d]);
    if !fits {
        return Err(words(format!("indices {:?} do not fit {:?}", index.shape, t.shape)));
    }
    check_size(&index.shape)?;
    Ok(t.pick(index.shape.clone(), &element_positions(&t.shape, index, a)?))
}

/// Positions, in a tensor of extents `from`, of the elements that indices along axis `a` name.
///
/// # Errors
/// Indices that are not integer or out of range.
pub fn element_positions(from: &[usize], index: &Tensor, a: usize) -> Res<Vec<usize>> {
    let strides = Shape::new(from).strides();
    // Positions with the gathered axis at zero; the index adds the rest.
    let mut masked = strides.clone();
    masked[a] = 0;
    let base = elements_of(&View { shape: Shape::new(&index.shape), offset: 0, strides: masked });
    ints(index)?
        .iter()
        .zip(base)
        .map(|(&i, b)| Ok(b + wrap(i, from[a])? * strides[a] as usize))
        .collect()
}

fn gather_nd(t: &Tensor, index: &Tensor, batch: i64) -> Res<Tensor> {
    let (rows, shape, inner) = gather_nd_rows(&t.shape, index, batch)?;
    check_size(&shape)?;
    let at: Vec<usize> = rows.iter().flat_map(|&r| r * inner..(r + 1) * inner).collect();
    Ok(t.pick(shape, &at))
}

/// `GatherND` as a gather of rows: the row numbers of the table whose leading indexed axes are one,
/// the result's extents, and the elements in a row.
///
/// # Errors
/// Indices that do not fit or are out of range.
pub fn gather_nd_rows(
    from: &[usize],
    index: &Tensor,
    batch: i64,
) -> Res<(Vec<usize>, Vec<usize>, usize)> {
    let batch = usize::try_from(batch).map_err(|_| words(format!("{batch} batch axes")))?;
    let (&k, places) = index.shape.split_last().ok_or_else(|| words("indices are a scalar"))?;
    let reach = batch.saturating_add(k);
    if reach > from.len() || k == 0 || batch > places.len() || places[..batch] != from[..batch] {
        return Err(words(format!(
            "indices {:?} with {batch} batch axes into {from:?}",
            index.shape
        )));
    }
    let mut shape = places.to_vec();
    shape.extend_from_slice(&from[reach..]);
    let inner = from[reach..].iter().product();
    let each = places[batch..].iter().product::<usize>().max(1);
    let rows = ints(index)?
        .chunks(k)
        .enumerate()
        .map(|(at, c)| {
            // Batch axes are the leading ones of both, so that the place says where in them it is.
            let mut row = at / each;
            for (&n, &i) in from[batch..].iter().zip(c) {
                row = row * n + wrap(i, n)?;
            }
            Ok(row)
        })
        .collect::<Res<Vec<_>>>()?;
    Ok((rows, shape, inner))
}

/// Literals one after the other along an axis.
///
/// # Errors
/// Where they do not fit each other.
pub fn concat(parts: &[&Tensor], a: i64) -> Res<Tensor> {
    let first = parts.first().ok_or_else(|| words("no operands"))?;
    let a = axis(a, first.shape.len()).map_err(words)?;
    let mut shape = first.shape.clone();
    shape[a] = 0;
    for p in parts {
        let fits = p.elem == first.elem
            && p.shape.len() == shape.len()
            && (0..shape.len()).all(|d| d == a || p.shape[d] == shape[d]);
        if !fits {
            return Err(words(format!(
                "{:?}{:?} and {:?}{:?} do not fit along axis {a}",
                first.elem, first.shape, p.elem, p.shape
            )));
        }
        shape[a] += p.shape[a];
    }
    check_size(&shape)?;
    let outer: usize = shape[..a].iter().product();
    macro_rules! join {
        ($kind:path) => {{
            let mut out = Vec::with_capacity(shape.iter().product());
            for o in 0..outer {
                for p in parts {
                    let $kind(v) = &p.data else { unreachable!("element types were compared") };
                    let run = p.shape[a..].iter().product::<usize>();
                    out.extend_from_slice(&v[o * run..(o + 1) * run]);
                }
            }
            $kind(out)
        }};
    }
    let data = match first.data {
        Data::Real(_) => join!(Data::Real),
        Data::Int(_) => join!(Data::Int),
        Data::Bool(_) => join!(Data::Bool),
    };
    Ok(Tensor { elem: first.elem, shape, data })
}

fn range(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Res<Tensor> {
    let (Some(a), Some(b), Some(d)) = (start.scalar(), limit.scalar(), delta.scalar()) else {
        return Err(words("start, limit and delta are scalars"));
    };
    if d == 0.0 || !(a.is_finite() && b.is_finite() && d.is_finite()) {
        return Err(words(format!("a range from {a} to {b} by {d}")));
    }
    let n = ((b - a) / d).ceil().max(0.0);
    if n > MAX_FOLDED as f64 {
        check_size(&[usize::MAX])?;
    }
    let n = n as usize;
    let data = match &start.data {
        Data::Int(_) => {
            let (a, d) = (int(start)?, delta.cast(start.elem));
            let d = int(&d)?;
            Data::Int((0..n as i64).map(|i| a.wrapping_add(i.wrapping_mul(d))).collect())
        }
        _ => Data::Real((0..n).map(|i| a + i as f64 * d).collect()),
    };
    Ok(Tensor::new(start.elem, [n], data))
}

fn cumsum(t: &Tensor, a: i64, attrs: &Attrs) -> Res<Tensor> {
    check_size(&t.shape)?;
    let a = axis(a, t.shape.len()).map_err(words)?;
    let (exclusive, reverse) = (attrs.int("exclusive", 0)? != 0, attrs.int("reverse", 0)? != 0);
    let n = t.shape[a];
    let inner: usize = t.shape[a + 1..].iter().product();
    let mut out = t.to_reals();
    let source = out.clone();
    for o in 0..t.shape[..a].iter().product::<usize>() {
        for i in 0..inner {
            let mut sum = 0.0;
            for k in 0..n {
                let k = if reverse { n - 1 - k } else { k };
                let at = (o * n + k) * inner + i;
                let before = sum;
                sum += source[at];
                out[at] = if exclusive { before } else { sum };
            }
        }
    }
    Ok(Tensor::new(Elem::F64, t.shape.clone(), Data::Real(out)).cast(t.elem))
}

/// Coordinates of the elements that are not zero, `[rank, count]`.
fn non_zero(t: &Tensor) -> Res<Tensor> {
    check_size(&t.shape)?;
    let x = t.to_reals();
    let at: Vec<usize> = (0..x.len()).filter(|&i| x[i] != 0.0).collect();
    let rank = t.shape.len();
    check_size(&[rank, at.len()])?;
    let strides = Shape::new(&t.shape).strides();
    let coordinates = (0..rank)
        .flat_map(|d| at.iter().map(move |&i| (d, i)))
        .map(|(d, i)| (i as i64 / strides[d]) % t.shape[d] as i64)
        .collect();
    Ok(Tensor::new(Elem::I64, [rank, at.len()], Data::Int(coordinates)))
}

fn trilu(t: &Tensor, k: i64, upper: bool) -> Res<Tensor> {
    check_size(&t.shape)?;
    let rank = t.shape.len();
    if rank < 2 {
        return Err(words("operand has fewer than two axes"));
    }
    let (h, w) = (t.shape[rank - 2], t.shape[rank - 1]);
    let keep = |i: usize| {
        let (r, c) = (((i / w.max(1)) % h.max(1)) as i64, (i % w.max(1)) as i64);
        let diagonal = r.saturating_add(k);
        if upper { c >= diagonal } else { c <= diagonal }
    };
    let mut t = t.clone();
    match &mut t.data {
        Data::Real(v) => {
            v.iter_mut().enumerate().filter(|(i, _)| !keep(*i)).for_each(|(_, x)| *x = 0.0)
        }
        Data::Int(v) => {
            v.iter_mut().enumerate().filter(|(i, _)| !keep(*i)).for_each(|(_, x)| *x = 0)
        }
        Data::Bool(v) => {
            v.iter_mut().enumerate().filter(|(i, _)| !keep(*i)).for_each(|(_, x)| *x = false);
        }
    }
    Ok(t)
}

fn reduce(op: &str, t: &Tensor, list: Option<&Tensor>, attrs: &Attrs) -> Res<Tensor> {
    check_size(&t.shape)?;
    let rank = t.shape.len();
    let list = match list {
        Some(l) => Some(ints(l)?),
        None => attrs.ints("axes")?,
    };
    let noop = attrs.int("noop_with_empty_axes", 0)? != 0;
    let gone = match list {
        Some(l) if !l.is_empty() => moves::axes(&l, rank).map_err(words)?,
        _ if noop => vec![],
        _ => (0..rank).collect(),
    };
    let keep = attrs.int("keepdims", 1)? != 0;
    let mut kept = t.shape.clone();
    gone.iter().for_each(|&d| kept[d] = 1);
    // Where each element goes: the result's strides with those of the gone axes zero.
    let mut strides = Shape::new(&kept).strides();
    gone.iter().for_each(|&d| strides[d] = 0);
    let into = elements_of(&View { shape: Shape::new(&t.shape), offset: 0, strides });
    let n: usize = kept.iter().product();
    let (start, f): (f64, fn(f64, f64) -> f64) = match op {
        "ReduceProd" => (1.0, |a, b| a * b),
        // Of no bools none is true, and all are.
        "ReduceMax" if t.elem == Elem::Bool => (0.0, f64::max),
        "ReduceMin" if t.elem == Elem::Bool => (1.0, f64::min),
        "ReduceMax" => (f64::NEG_INFINITY, f64::max),
        "ReduceMin" => (f64::INFINITY, f64::min),
        _ => (0.0, |a, b| a + b),
    };
    let mut out = vec![start; n];
    for (x, at) in t.to_reals().into_iter().zip(into) {
        out[at] = f(out[at], x);
    }
    if op == "ReduceMean" {
        let count = (t.len() / n.max(1)).max(1) as f64;
        out.iter_mut().for_each(|x| *x /= count);
    }
    let shape = if keep {
        kept
    } else {
        (0..rank).filter(|d| !gone.contains(d)).map(|d| t.shape[d]).collect()
    };
    Ok(Tensor::new(Elem::F64, shape, Data::Real(out)).cast(t.elem))
}

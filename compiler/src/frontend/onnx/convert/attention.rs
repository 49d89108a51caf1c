//! The `Attention` operator of opsets 23 to 25, by the operations that its specification names; those
//! that the attention kernels do become one again when composite operations are recognised.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::node::fail;
use crate::ir::{ConstData, Real, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, Kind, UnaryOp as U};

/// What follows from the distances of this many pairs of a query and a key at most is a literal. That of
/// more is computed from positions where a step needs it, which is nowhere where it is causality.
const LITERAL_PAIRS: usize = 4096;

/// Which results hold scores, `qk_matmul_output_mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Product,
    Capped,
    Masked,
    Probabilities,
}

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if call.op != "Attention" {
        return Ok(None);
    }
    let a = &call.attrs;
    let [q, k, v] = [cx.real(call, 0)?, cx.real(call, 1)?, cx.real(call, 2)?];
    let rank = cx.graph.shape(q).rank();
    let heads = |name: &str| -> Res<usize> {
        let n = a.int(name, 0)?;
        usize::try_from(n)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| fail("P0206", format!("`{name}` is {n}")))
    };
    let (q, k, v) = if rank == 3 {
        let (hq, hk) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        (split_heads(cx, q, hq)?, split_heads(cx, k, hk)?, split_heads(cx, v, hk)?)
    } else {
        (q, k, v)
    };
    let (k, v, past) = cached(cx, call, k, v)?;
    let (qs, ks) = (cx.graph.shape(q).to_vec(), cx.graph.shape(k).to_vec());
    if qs.len() != 4 || ks.len() != 4 {
        return Err(words(format!("{qs:?} and {ks:?} are not [batch, heads, length, size]")));
    }
    let [batch, heads, tq, _] = qs[..] else { unreachable!("four axes") };
    let full = [batch, heads, tq, ks[2]];
    let (keys, values) = (repeat_heads(cx, k, heads)?, repeat_heads(cx, v, heads)?);
    let scale = match a.real("scale", 0.0)? {
        0.0 => 1.0 / (qs[3] as f64).sqrt(),
        s => s,
    };
    let shown = match a.int("qk_matmul_output_mode", 0)? {
        0 => Shown::Product,
        1 => Shown::Capped,
        2 => Shown::Masked,
        3 => Shown::Probabilities,
        n => return Err(fail("P0206", format!("`qk_matmul_output_mode` is {n}"))),
    };

    let kt = cx.transpose(keys, &[0, 1, 3, 2])?;
    let product = cx.one("scores", ops::MatMul::plain(), &[q, kt])?;
    let product = cx.one("scaled", ops::Scale { by: Real(scale) }, &[product])?;
    let capped = capped(cx, product, a.real("softcap", 0.0)?)?;
    let mask = masks(cx, call, past, &full)?;
    let mut scores = capped;
    if let Some(added) = mask.added {
        scores = cx.one("masked", ops::Binary { f: B::Add }, &[scores, added])?;
    }
    if let Some(kept) = mask.kept {
        let never = cx.full(f64::NEG_INFINITY, &full)?;
        scores = cx.one("masked", ops::Select {}, &[kept, scores, never])?;
    }
    let mut p = cx.one("softmax", ops::Softmax { log: false }, &[scores])?;
    if mask.hides_rows {
        // A query that sees no key gets 0.
        let same = cx.one("same", ops::Binary { f: B::Eq }, &[p, p])?;
        let nan = cx.one("nan", ops::Unary { f: U::Not }, &[same])?;
        let zero = cx.full(0.0, &full)?;
        p = cx.one("safe", ops::Select {}, &[nan, zero, p])?;
    }
    let y = cx.one("", ops::MatMul::plain(), &[p, values])?;
    let y = if rank == 3 {
        let width = cx.graph.shape(y)[3];
        let t = cx.transpose(y, &[0, 2, 1, 3])?;
        cx.reshape(t, &[batch, tq, heads * width])?
    } else {
        y
    };
    let shown = match shown {
        Shown::Product => product,
        Shown::Capped => capped,
        Shown::Masked => scores,
        Shown::Probabilities => p,
    };
    Ok(Some([y, k, v, shown].map(Val::Node).to_vec()))
}

/// Keys and values behind those of a cache, and how many it has.
fn cached(
    cx: &mut Importer,
    call: &Call,
    k: ValueId,
    v: ValueId,
) -> Res<(ValueId, ValueId, Option<usize>)> {
    match (call.input(4).is_some(), call.input(5).is_some()) {
        (false, false) => Ok((k, v, None)),
        (true, true) if call.input(6).is_none() => {
            let (pk, pv) = (cx.real(call, 4)?, cx.real(call, 5)?);
            let past = cx.graph.shape(pk).get(2).copied().unwrap_or(0);
            let k = cx.one("present_key", ops::Concat { axis: 2 }, &[pk, k])?;
            let v = cx.one("present_value", ops::Concat { axis: 2 }, &[pv, v])?;
            Ok((k, v, Some(past)))
        }
        (true, true) => Err(fail("P0206", "`past_key` and `nonpad_kv_seqlen` together")),
        _ => Err(fail("P0206", "one of `past_key` and `past_value` without the other")),
    }
}

/// `cap · tanh(x / cap)`.
fn capped(cx: &mut Importer, x: ValueId, cap: f64) -> Res<ValueId> {
    if cap == 0.0 {
        return Ok(x);
    }
    if cap < 0.0 {
        return Err(fail("P0206", format!("`softcap` is {cap}")));
    }
    let x = cx.one("uncapped", ops::Scale { by: Real(1.0 / cap) }, &[x])?;
    let x = cx.one("tanh", ops::Unary { f: U::Tanh }, &[x])?;
    cx.one("capped", ops::Scale { by: Real(cap) }, &[x])
}

/// What hides keys, spread over [batch, heads, queries, keys].
#[derive(Default)]
struct Masks {
    /// Reals that are added to the scores.
    added: Option<ValueId>,
    /// Bools, false where a score counts as −∞.
    kept: Option<ValueId>,
    /// Whether a query may be left without a key.
    hides_rows: bool,
}

fn masks(cx: &mut Importer, call: &Call, past: Option<usize>, full: &[usize; 4]) -> Res<Masks> {
    let (tq, tk) = (full[2], full[3]);
    let mut out = Masks::default();
    let mut kept = vec![];
    if let Some(mask) = call.input(3).cloned() {
        out.hides_rows = true;
        let mask = lengthened(cx, &mask, tk)?;
        match cx.kind(&mask)? {
            Kind::Real => out.added = Some(cx.spread(&mask, full)?),
            Kind::Bool => kept.push(mask),
            Kind::Int => return Err(fail("P0207", "the mask is integer")),
        }
    }
    let window = |name: &str| -> Res<Option<i64>> {
        match call.attrs.int(name, -1)? {
            -1 => Ok(None),
            n if n >= 0 => Ok(Some(n)),
            n => Err(fail("P0206", format!("`{name}` is {n}"))),
        }
    };
    let (left, right) = (window("left_window_size")?, window("right_window_size")?);
    let causal = call.attrs.int("is_causal", 0)? != 0;
    // Keys up to so many behind and before the position of a query, which is its own plus an offset.
    let right = if causal { Some(right.unwrap_or(0).min(0)) } else { right };
    match call.input(6).cloned() {
        None => {
            let offset = past.unwrap_or(0) as i64;
            // A key's place less a query's is at most, and at least, so much.
            let most = right.map(|r| r.saturating_add(offset));
            let least = left.map(|l| offset.saturating_sub(l));
            out.hides_rows |= (0..tq as i64).any(|i| {
                let first = least.map_or(0, |l| i.saturating_add(l).max(0));
                let last = most.map_or(i64::MAX, |m| i.saturating_add(m)).min(tk as i64 - 1);
                first > last
            });
            for (bound, upper) in [(most, true), (least, false)] {
                if let Some(bound) = bound {
                    kept.push(Val::Node(near(cx, [tq, tk], bound, upper)?));
                }
            }
        }
        Some(lengths) => {
            out.hides_rows = true;
            if cx.shape(&lengths)? != [full[0]] || cx.kind(&lengths)? != Kind::Int {
                return Err(words("`nonpad_kv_seqlen` is not one integer for each sample".into()));
            }
            let lengths = cx.value(&lengths)?;
            let lengths = cx.reshape(lengths, &[full[0], 1, 1, 1])?;
            // Bools `a(i, j) ≤ length`, or `length ≤ a(i, j)`.
            let mut within = |cx: &mut Importer, a: ValueId, least: bool| -> Res<()> {
                let shape = [full[0], 1, cx.graph.shape(a)[2], tk];
                let (a, n) =
                    (cx.spread(&Val::Node(a), &shape)?, cx.spread(&Val::Node(lengths), &shape)?);
                let x = if least { [a, n] } else { [n, a] };
                kept.push(Val::Node(cx.one("window", ops::Binary { f: B::Le }, &x)?));
                Ok(())
            };
            // Key j counts where j + 1 ≤ length.
            let places = distances(cx, [1, tk], 1)?;
            within(cx, places, true)?;
            // The offset is the length less the number of queries.
            if let Some(r) = right {
                let a = distances(cx, [tq, tk], (tq as i64).saturating_sub(r))?;
                within(cx, a, true)?;
            }
            if let Some(l) = left {
                let a = distances(cx, [tq, tk], (tq as i64).saturating_add(l))?;
                within(cx, a, false)?;
            }
        }
    }
    for mask in kept {
        out.kept = Some(match out.kept {
            None => {
                let s = [vec![1; 4 - cx.shape(&mask)?.len().min(4)], cx.shape(&mask)?].concat();
                cx.spread(&mask, &s)?
            }
            Some(x) => both(cx, x, &mask)?,
        });
    }
    if let Some(x) = out.kept {
        out.kept = Some(cx.spread(&Val::Node(x), full)?);
    }
    Ok(out)
}

/// Bools [1, 1, queries, keys]: whether a key's place less a query's is at most a bound, or at least.
fn near(cx: &mut Importer, [tq, tk]: [usize; 2], bound: i64, upper: bool) -> Res<ValueId> {
    // Beyond the keys in either direction all bounds are alike.
    let reach = (tq + tk) as i64;
    let bound = bound.clamp(-reach, reach);
    if tq.saturating_mul(tk) <= LITERAL_PAIRS {
        let within = |d: i64| if upper { d <= bound } else { d >= bound };
        let row = |i: usize| (0..tk).map(move |j| within(j as i64 - i as i64));
        let bools: Vec<bool> = (0..tq).flat_map(row).collect();
        let data = ConstData::from_bool([1, 1, tq, tk], &bools);
        return cx.one("window", ops::Const { data }, &[]);
    }
    let d = distances(cx, [tq, tk], 0)?;
    let data = ConstData::from_i32([1; 4], &[bound as i32]);
    let bound = cx.one("bound", ops::Const { data }, &[])?;
    let bound = cx.spread(&Val::Node(bound), &[1, 1, tq, tk])?;
    let x = if upper { [d, bound] } else { [bound, d] };
    cx.one("window", ops::Binary { f: B::Le }, &x)
}

/// `j − i + by` for queries i and keys j, [1, 1, queries, keys] integers.
fn distances(cx: &mut Importer, [tq, tk]: [usize; 2], by: i64) -> Res<ValueId> {
    let shape = vec![1, 1, tq, tk];
    // No length of a sequence is beyond the keys.
    let reach = 2 * (tq + tk) as i64;
    let by = by.clamp(-reach, reach) as i32;
    if tq.saturating_mul(tk) <= LITERAL_PAIRS {
        let of = |i: usize| (0..tk).map(move |j| j as i32 - i as i32 + by);
        let all: Vec<i32> = (0..tq).flat_map(of).collect();
        return cx.one("distance", ops::Const { data: ConstData::from_i32(shape, &all) }, &[]);
    }
    let query = cx.one("query", ops::Iota { shape: shape.clone(), axis: 2 }, &[])?;
    let key = cx.one("key", ops::Iota { shape: shape.clone(), axis: 3 }, &[])?;
    let d = cx.one("distance", ops::Binary { f: B::Sub }, &[key, query])?;
    if by == 0 {
        return Ok(d);
    }
    let by = cx.one("by", ops::Const { data: ConstData::from_i32([1; 4], &[by]) }, &[])?;
    let by = cx.spread(&Val::Node(by), &shape)?;
    cx.one("distance", ops::Binary { f: B::Add }, &[d, by])
}

/// A mask for fewer keys than there are: the others are hidden.
fn lengthened(cx: &mut Importer, mask: &Val, keys: usize) -> Res<Val> {
    let mut shape = cx.shape(mask)?;
    let Some(last) = shape.last_mut() else { return Ok(mask.clone()) };
    if *last == keys || *last == 1 || *last > keys {
        return Ok(mask.clone());
    }
    let axis = cx.shape(mask)?.len() - 1;
    *last = keys - *last;
    let ones = vec![1; shape.len()];
    let data = match cx.kind(mask)? {
        Kind::Real => ConstData::from_f32(ones, &[f32::NEG_INFINITY]),
        Kind::Bool => ConstData::from_bool(ones, &[false]),
        Kind::Int => return Err(fail("P0207", "the mask is integer")),
    };
    let hidden = cx.one("hidden", ops::Const { data }, &[])?;
    let hidden = cx.spread(&Val::Node(hidden), &shape)?;
    let mask = cx.value(mask)?;
    Ok(Val::Node(cx.one("mask", ops::Concat { axis }, &[mask, hidden])?))
}

/// `x ∧ y` over what both are spread to.
fn both(cx: &mut Importer, x: ValueId, y: &Val) -> Res<ValueId> {
    let (a, b) = (cx.graph.shape(x).to_vec(), cx.shape(y)?);
    let b = [vec![1; a.len().saturating_sub(b.len())], b].concat();
    let joint: Vec<usize> = a.iter().zip(&b).map(|(&a, &b)| if a == 1 { b } else { a }).collect();
    let (x, y) = (cx.spread(&Val::Node(x), &joint)?, cx.spread(y, &joint)?);
    cx.one("mask", ops::Binary { f: B::And }, &[x, y])
}

/// [b,t,h·d] → [b,h,t,d].
fn split_heads(cx: &mut Importer, v: ValueId, heads: usize) -> Res<ValueId> {
    let s = cx.graph.shape(v).to_vec();
    if s.len() != 3 || !s[2].is_multiple_of(heads) {
        return Err(words(format!("{s:?} does not have {heads} heads")));
    }
    let v = cx.reshape(v, &[s[0], s[1], heads, s[2] / heads])?;
    cx.transpose(v, &[0, 2, 1, 3])
}

/// Grouped keys and values: each head serves several query heads.
fn repeat_heads(cx: &mut Importer, v: ValueId, heads: usize) -> Res<ValueId> {
    let s = cx.graph.shape(v).to_vec();
    if s.len() != 4 || s[1] == heads {
        return Ok(v);
    }
    if s[1] == 0 || !heads.is_multiple_of(s[1]) {
        return Err(words(format!("{} key heads for {heads} query heads", s[1])));
    }
    let v = cx.reshape(v, &[s[0], s[1], 1, s[2], s[3]])?;
    let v = cx.spread(&Val::Node(v), &[s[0], s[1], heads / s[1], s[2], s[3]])?;
    cx.reshape(v, &[s[0], heads, s[2], s[3]])
}

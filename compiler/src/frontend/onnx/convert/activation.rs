//! Activations, with PyTorch's derivative at every corner (docs/NUMERICS.md).

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::axis;
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::origin;
use crate::ir::{Real, ValueId};
use crate::ops;
use crate::ops::activation::Act;
use precast_plan::{BinaryOp as B, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let known = [
        "Relu",
        "Gelu",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "PRelu",
        "HardSigmoid",
        "HardSwish",
        "Hardmax",
        "Shrink",
        "Softplus",
        "Softsign",
        "Swish",
        "SwiGLU",
        "ThresholdedRelu",
        "Mish",
        "Clip",
    ];
    if !known.contains(&call.op) {
        return Ok(None);
    }
    let a = &call.attrs;
    let x = if call.op == "Clip" {
        let v = call.need(0)?.clone();
        cx.value(&v)?
    } else {
        cx.real(call, 0)?
    };
    let shape = cx.graph.shape(x).to_vec();
    let act = |cx: &mut Importer, act: Act| cx.one("", ops::Activate { act }, &[x]);
    let y = match call.op {
        "Relu" => act(cx, Act::Relu)?,
        "Gelu" => match a.string("approximate", "none")?.as_str() {
            "tanh" => act(cx, Act::GeluTanh)?,
            "none" => act(cx, Act::Gelu)?,
            other => return Err(fail("P0206", format!("`approximate` is \"{other}\""))),
        },
        "LeakyRelu" => {
            let low = cx.one("low", ops::Scale { by: Real(a.real("alpha", 0.01)?) }, &[x])?;
            not_positive(cx, x, low, x)?
        }
        "PRelu" => {
            let slope = call.need(1)?.clone();
            let slope = cx.spread(&slope, &shape)?;
            let low = cx.one("low", ops::Binary { f: B::Mul }, &[x, slope])?;
            not_positive(cx, x, low, x)?
        }
        "Elu" => exponential(cx, x, a.real("alpha", 1.0)?, 1.0, 1.0)?,
        "Celu" => {
            let alpha = a.real("alpha", 1.0)?;
            if alpha == 0.0 {
                return Err(words("`alpha` is 0".into()));
            }
            exponential(cx, x, alpha, 1.0 / alpha, 1.0)?
        }
        "Selu" => {
            exponential(cx, x, a.real("alpha", 1.673_263_2)?, 1.0, a.real("gamma", 1.050_700_9)?)?
        }
        "HardSigmoid" => hard_sigmoid(cx, x, a.real("alpha", 0.2)?, a.real("beta", 0.5)?)?,
        "HardSwish" => {
            let s = hard_sigmoid(cx, x, 1.0 / 6.0, 0.5)?;
            cx.one("", ops::Binary { f: B::Mul }, &[x, s])?
        }
        "Hardmax" => hardmax(cx, call, x)?,
        "Shrink" => shrink(cx, x, a.real("lambd", 0.5)?, a.real("bias", 0.0)?)?,
        "Softplus" => act(cx, Act::Softplus)?,
        "Swish" => swish(cx, call, x, "")?,
        "SwiGLU" => {
            let gate = swish(cx, call, x, "swish")?;
            let v = call.need(1)?.clone();
            let v = cx.spread(&v, &shape)?;
            cx.one("", ops::Binary { f: B::Mul }, &[gate, v])?
        }
        "ThresholdedRelu" => {
            let (alpha, zero) = (cx.full(a.real("alpha", 1.0)?, &shape)?, cx.full(0.0, &shape)?);
            let above = cx.one("above", ops::Binary { f: B::Lt }, &[alpha, x])?;
            cx.one("", ops::Select {}, &[above, x, zero])?
        }
        "Mish" => {
            let s = cx.one("softplus", ops::Activate { act: Act::Softplus }, &[x])?;
            let t = cx.one("tanh", ops::Unary { f: U::Tanh }, &[s])?;
            cx.one("", ops::Binary { f: B::Mul }, &[x, t])?
        }
        "Softsign" => {
            let m = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
            let unit = cx.full(1.0, &shape)?;
            let d = cx.one("sum", ops::Binary { f: B::Add }, &[m, unit])?;
            cx.one("", ops::Binary { f: B::Div }, &[x, d])?
        }
        _ => clip(cx, call, x)?,
    };
    Ok(Some(vec![Val::Node(y)]))
}

/// `x σ(alpha x)`.
fn swish(cx: &mut Importer, call: &Call, x: ValueId, suffix: &str) -> Res<ValueId> {
    let alpha = call.attrs.real("alpha", 1.0)?;
    if alpha == 1.0 {
        return cx.one(suffix, ops::Activate { act: Act::Silu }, &[x]);
    }
    let t = cx.one("alpha", ops::Scale { by: Real(alpha) }, &[x])?;
    let s = cx.one("sigmoid", ops::Unary { f: U::Sigmoid }, &[t])?;
    cx.one(suffix, ops::Binary { f: B::Mul }, &[x, s])
}

/// `x ≤ 0 ? low : high`: at 0 the derivative is that of `low`, as PyTorch's leaky_relu, prelu and elu
/// have it.
fn not_positive(cx: &mut Importer, x: ValueId, low: ValueId, high: ValueId) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let zero = cx.full(0.0, &shape)?;
    let below = cx.one("below", ops::Binary { f: B::Le }, &[x, zero])?;
    cx.one("", ops::Select {}, &[below, low, high])
}

/// `gain · (x ≤ 0 ? alpha (exp(inner x) − 1) : x)`. The exponential sees no positive number, or an
/// overflow there would make the gradient of the branch not taken NaN.
fn exponential(cx: &mut Importer, x: ValueId, alpha: f64, inner: f64, gain: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let zero = cx.full(0.0, &shape)?;
    let below = cx.one("below", ops::Binary { f: B::Le }, &[x, zero])?;
    let low = cx.one("low", ops::Select {}, &[below, x, zero])?;
    let low = cx.one("inner", ops::Scale { by: Real(inner) }, &[low])?;
    let e = cx.one("expm1", ops::Unary { f: U::Expm1 }, &[low])?;
    let e = cx.one("alpha", ops::Scale { by: Real(alpha) }, &[e])?;
    let y = cx.one("", ops::Select {}, &[below, e, x])?;
    if gain == 1.0 { Ok(y) } else { cx.one("gain", ops::Scale { by: Real(gain) }, &[y]) }
}

fn hard_sigmoid(cx: &mut Importer, x: ValueId, alpha: f64, beta: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let t = cx.one("alpha", ops::Scale { by: Real(alpha) }, &[x])?;
    let b = cx.full(beta, &shape)?;
    let t = cx.one("beta", ops::Binary { f: B::Add }, &[t, b])?;
    let (zero, unit) = (cx.full(0.0, &shape)?, cx.full(1.0, &shape)?);
    bounded(cx, t, Some(Bound::Number(zero)), Some(Bound::Number(unit)))
}

/// One at the first of the largest elements along an axis, zero elsewhere.
fn hardmax(cx: &mut Importer, call: &Call, x: ValueId) -> Res<ValueId> {
    let rank = cx.graph.shape(x).rank();
    let axis = axis(call.attrs.int("axis", -1)?, rank).map_err(words)?;
    let f = ReduceOp::Max;
    let mut rows = cx.graph.shape(x).to_vec();
    rows.remove(axis);
    let unit = cx.full(1.0, &rows)?;
    let hit = cx.one("hit", ops::ExtremumGrad { f, axes: vec![axis], first: true }, &[x, unit])?;
    // Through a bool, so that nothing is differentiated.
    let hit = cx.one("first", ops::Unary { f: U::ToBool }, &[hit])?;
    cx.one("", ops::Unary { f: U::ToReal }, &[hit])
}

/// `x < −lambd ? x + bias : (x > lambd ? x − bias : 0)`.
fn shrink(cx: &mut Importer, x: ValueId, lambd: f64, bias: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let (low, high) = (cx.full(-lambd, &shape)?, cx.full(lambd, &shape)?);
    let (zero, by) = (cx.full(0.0, &shape)?, cx.full(bias, &shape)?);
    let under = cx.one("under", ops::Binary { f: B::Lt }, &[x, low])?;
    let over = cx.one("over", ops::Binary { f: B::Lt }, &[high, x])?;
    let up = cx.one("up", ops::Binary { f: B::Add }, &[x, by])?;
    let down = cx.one("down", ops::Binary { f: B::Sub }, &[x, by])?;
    let y = cx.one("shrunk", ops::Select {}, &[over, down, zero])?;
    cx.one("", ops::Select {}, &[under, up, y])
}

fn clip(cx: &mut Importer, call: &Call, x: ValueId) -> Res<ValueId> {
    let low = bound(cx, call, x, 1, "min")?;
    let high = bound(cx, call, x, 2, "max")?;
    bounded(cx, x, low, high)
}

/// An end of an interval.
enum Bound {
    /// One number: the derivative is 0 there, as torch.clamp, hardtanh and relu6 have it.
    Number(ValueId),
    /// A tensor, which shares the cotangent where it equals the operand, as torch.clamp has it.
    Tensor(ValueId),
}

fn bound(cx: &mut Importer, call: &Call, x: ValueId, i: usize, attr: &str) -> Res<Option<Bound>> {
    let shape = cx.graph.shape(x).to_vec();
    Ok(match call.input(i).cloned() {
        None if call.attrs.has(attr) => {
            let v = call.attrs.real(attr, 0.0)?;
            Some(Bound::Number(cx.full(v, &shape)?))
        }
        None => None,
        Some(v) => {
            let number = matches!(&v, Val::Const(t) if t.splat().is_some());
            let v = cx.spread(&v, &shape)?;
            Some(if number { Bound::Number(v) } else { Bound::Tensor(v) })
        }
    })
}

fn bounded(cx: &mut Importer, x: ValueId, low: Option<Bound>, high: Option<Bound>) -> Res<ValueId> {
    let mut y = x;
    for (bound, f) in [(low, B::Max), (high, B::Min)] {
        y = match bound {
            None => y,
            Some(Bound::Tensor(v)) => cx.one("", ops::Binary { f }, &[y, v])?,
            Some(Bound::Number(v)) => clamped(cx, y, v, f)?,
        };
    }
    Ok(y)
}

/// `max(x, at)` or `min(x, at)` with the derivative 0 where they are equal.
fn clamped(cx: &mut Importer, x: ValueId, at: ValueId, f: B) -> Res<ValueId> {
    let (suffix, a, b) = if f == B::Max { ("under", x, at) } else { ("over", at, x) };
    let beyond = cx.one(suffix, ops::Binary { f: B::Le }, &[a, b])?;
    cx.one("", ops::Select {}, &[beyond, at, x])
}

/// `Max` and `Min` of a tensor and a number, where torch.export's exporter notes that they are
/// torch.clamp with one bound.
pub(super) fn one_sided_clamp(cx: &mut Importer, call: &Call, f: B) -> Res<Option<ValueId>> {
    let clamp = origin::call(call.attrs.node()).is_some_and(|c| c.target.starts_with("aten.clamp"));
    let number = |v: &Option<Val>| matches!(v, Some(Val::Const(t)) if t.shape.is_empty());
    if !clamp || call.inputs.len() != 2 || !number(&call.inputs[1]) {
        return Ok(None);
    }
    let (x, at) = (call.need(0)?.clone(), call.need(1)?.clone());
    let x = cx.value(&x)?;
    let shape = cx.graph.shape(x).to_vec();
    let at = cx.spread(&at, &shape)?;
    clamped(cx, x, at, f).map(Some)
}

//! Arithmetic, comparisons, activations, casts, dropout.

use super::words;
use crate::diagnostic::Diagnostic;
use crate::frontend::onnx::fold::cast_target;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::broadcast_shape;
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{Real, ValueId};
use crate::ops;
use crate::ops::activation::Act;
use precast_plan::{BinaryOp as B, Kind, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let one = |v: ValueId| Ok(Some(vec![Val::Node(v)]));
    match call.op {
        "Add" => one(binary(cx, call, B::Add)?),
        "Sub" => one(binary(cx, call, B::Sub)?),
        "Mul" => scaled(cx, call, false),
        "Div" => scaled(cx, call, true),
        "Max" => one(chain(cx, call, B::Max)?),
        "Min" => one(chain(cx, call, B::Min)?),
        "Sum" => one(chain(cx, call, B::Add)?),
        "Mean" => {
            let sum = chain(cx, call, B::Add)?;
            let by = Real(1.0 / call.inputs.len() as f64);
            one(cx.one("", ops::Scale { by }, &[sum])?)
        }
        "And" => one(binary(cx, call, B::And)?),
        "Or" => one(binary(cx, call, B::Or)?),
        "Equal" => one(binary(cx, call, B::Eq)?),
        "Less" => one(binary(cx, call, B::Lt)?),
        "LessOrEqual" => one(binary(cx, call, B::Le)?),
        "Greater" => one(flipped(cx, call, B::Lt)?),
        "GreaterOrEqual" => one(flipped(cx, call, B::Le)?),
        "Xor" => {
            let same = binary(cx, call, B::Eq)?;
            one(cx.one("", ops::Unary { f: U::Not }, &[same])?)
        }
        "Pow" => one(power(cx, call)?),
        "Where" => one(select(cx, call)?),
        "Cast" => cast(cx, call, cast_target(&call.attrs)?),
        "CastLike" => {
            let to = match call.need(1)? {
                Val::Const(t) => t.elem,
                v => match cx.kind(v)? {
                    Kind::Real => Elem::F32,
                    Kind::Int => Elem::I64,
                    Kind::Bool => Elem::Bool,
                },
            };
            cast(cx, call, to)
        }
        "Dropout" => dropout(cx, call),
        _ => match plain(call.op) {
            Some(f) => {
                let v = call.need(0)?.clone();
                let x = cx.value(&v)?;
                one(cx.one("", ops::Unary { f }, &[x])?)
            }
            None => activation(cx, call),
        },
    }
}

/// Operators that are one elementwise function.
fn plain(op: &str) -> Option<U> {
    Some(match op {
        "Neg" => U::Neg,
        "Abs" => U::Abs,
        "Exp" => U::Exp,
        "Log" => U::Log,
        "Sqrt" => U::Sqrt,
        "Reciprocal" => U::Recip,
        "Sin" => U::Sin,
        "Cos" => U::Cos,
        "Tanh" => U::Tanh,
        "Erf" => U::Erf,
        "Sigmoid" => U::Sigmoid,
        "Floor" => U::Floor,
        "Ceil" => U::Ceil,
        "Round" => U::RoundEven,
        "Not" => U::Not,
        _ => return None,
    })
}

/// Both operands at their common shape.
fn operands(cx: &mut Importer, a: &Val, b: &Val) -> Res<(ValueId, ValueId)> {
    let shape = broadcast_shape(&cx.shape(a)?, &cx.shape(b)?).map_err(words)?;
    Ok((cx.spread(a, &shape)?, cx.spread(b, &shape)?))
}

fn binary(cx: &mut Importer, call: &Call, f: B) -> Res<ValueId> {
    let (a, b) = operands(cx, call.need(0)?, call.need(1)?)?;
    cx.one("", ops::Binary { f }, &[a, b])
}

fn flipped(cx: &mut Importer, call: &Call, f: B) -> Res<ValueId> {
    let (a, b) = operands(cx, call.need(0)?, call.need(1)?)?;
    cx.one("", ops::Binary { f }, &[b, a])
}

fn chain(cx: &mut Importer, call: &Call, f: B) -> Res<ValueId> {
    let mut acc = call.need(0)?.clone();
    for i in 1..call.inputs.len() {
        let (a, b) = operands(cx, &acc, call.need(i)?)?;
        acc = Val::Node(cx.one("", ops::Binary { f }, &[a, b])?);
    }
    cx.value(&acc)
}

/// The single real value of a literal operand.
fn number(v: &Val) -> Option<f64> {
    match v {
        Val::Const(t) if matches!(t.data, Data::Real(_)) => t.splat(),
        _ => None,
    }
}

/// `Mul` and `Div`; by a literal that has one value, a scaling.
fn scaled(cx: &mut Importer, call: &Call, divide: bool) -> Res<Option<Vec<Val>>> {
    let (a, b) = (call.need(0)?, call.need(1)?);
    let (x, by) = match (number(a), number(b)) {
        (None, Some(c)) if divide => (a, Some(1.0 / c)),
        (None, Some(c)) => (a, Some(c)),
        (Some(c), None) if !divide => (b, Some(c)),
        _ => (a, None),
    };
    // Only a factor that is exact enough as an f32 keeps the quotient to one rounding.
    if let Some(by) = by.filter(|c| c.is_finite() && (*c as f32).is_normal()) {
        let shape = broadcast_shape(&cx.shape(a)?, &cx.shape(b)?).map_err(words)?;
        let x = cx.spread(x, &shape)?;
        // 0.1 rather than 0.10000000149…: the same f32, and what the author wrote.
        let by = if divide { by } else { crate::frontend::onnx::node::shortest(by as f32) };
        return Ok(Some(vec![Val::Node(cx.one("", ops::Scale { by: Real(by) }, &[x])?)]));
    }
    let f = if divide { B::Div } else { B::Mul };
    Ok(Some(vec![Val::Node(binary(cx, call, f)?)]))
}

fn power(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let Val::Const(e) = call.need(1)? else {
        return binary(cx, call, B::Pow);
    };
    let e = e.cast(Elem::F64);
    let (base, p) = (call.need(0)?.clone(), e.splat());
    let exponent = Val::constant(Tensor { elem: Elem::F32, ..e.clone() });
    let shape = broadcast_shape(&cx.shape(&base)?, &e.shape).map_err(words)?;
    let x = cx.spread(&base, &shape)?;
    let simple = match p {
        Some(0.5) => Some(cx.one("", ops::Unary { f: U::Sqrt }, &[x])?),
        Some(-0.5) => Some(cx.one("", ops::Unary { f: U::Rsqrt }, &[x])?),
        Some(p) if p.fract() == 0.0 && (1.0..=8.0).contains(&p.abs()) => {
            let n = p.abs() as u32;
            let mut acc = x;
            for _ in 1..n {
                acc = cx.one("", ops::Binary { f: B::Mul }, &[acc, x])?;
            }
            Some(if p < 0.0 { cx.one("", ops::Unary { f: U::Recip }, &[acc])? } else { acc })
        }
        _ => None,
    };
    match simple {
        Some(v) => Ok(v),
        None => {
            let e = cx.spread(&exponent, &shape)?;
            cx.one("", ops::Binary { f: B::Pow }, &[x, e])
        }
    }
}

fn select(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (c, a, b) = (call.need(0)?, call.need(1)?, call.need(2)?);
    let shape = broadcast_shape(&cx.shape(c)?, &cx.shape(a)?)
        .and_then(|s| broadcast_shape(&s, &cx.shape(b).unwrap_or_default()))
        .map_err(words)?;
    let (c, a, b) = (cx.spread(c, &shape)?, cx.spread(a, &shape)?, cx.spread(b, &shape)?);
    cx.one("", ops::Select {}, &[c, a, b])
}

fn cast(cx: &mut Importer, call: &Call, to: Elem) -> Res<Option<Vec<Val>>> {
    let v = call.need(0)?;
    if let Val::Const(t) = v {
        return Ok(Some(vec![Val::constant(t.cast(to))]));
    }
    let f = match (cx.kind(v)?, to) {
        (Kind::Real, e) if e.is_real() => {
            let seen = cx.warnings.iter().any(|w| w.code == "P0222");
            if matches!(e, Elem::F16 | Elem::Bf16) && !seen {
                let name = format!("{e:?}").to_lowercase();
                cx.warn(
                    Diagnostic::warning(
                        "P0222",
                        format!("the model casts to {name}; the cast is dropped"),
                    )
                    .help("precision is the compiler's choice: pin operations under [precision]"),
                );
            }
            return Ok(Some(vec![v.clone()]));
        }
        (Kind::Int, e) if !e.is_real() && e != Elem::Bool => return Ok(Some(vec![v.clone()])),
        (Kind::Bool, Elem::Bool) => return Ok(Some(vec![v.clone()])),
        (_, e) if e.is_real() => U::ToReal,
        (_, Elem::Bool) => U::ToBool,
        _ => U::ToInt,
    };
    let x = cx.value(&v.clone())?;
    Ok(Some(vec![Val::Node(cx.one("", ops::Unary { f }, &[x])?)]))
}

fn dropout(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = call.need(0)?.clone();
    let p = match call.literal(1)? {
        Some(t) => t.scalar().ok_or_else(|| words("the ratio is not a scalar".into()))?,
        None => call.attrs.real("ratio", 0.5)?,
    };
    let active = match call.literal(2)? {
        Some(t) => t.scalar() == Some(1.0),
        None => false,
    };
    if call.wants(1) && cx.src.graph.node.iter().any(|n| n.input.contains(&call.outputs[1])) {
        return Err(fail("P0206", "the mask of `Dropout` is read by the graph"));
    }
    if !(0.0..1.0).contains(&p) {
        return Err(fail("P0206", format!("the dropout ratio is {p}, not in [0, 1)")));
    }
    if p == 0.0 || !cx.opts.training || !active {
        if p > 0.0 && cx.opts.training && !cx.warnings.iter().any(|w| w.code == "P0223") {
            cx.warn(
                Diagnostic::warning(
                    "P0223",
                    "dropout is in inference form and will not drop anything",
                )
                .help("export with training=TrainingMode.TRAINING; see docs/EXPORTING.md"),
            );
        }
        return Ok(Some(vec![v]));
    }
    let x = cx.real(call, 0)?;
    let (seed, batch) = ops::dropout::key(&mut cx.graph).map_err(|name| {
        let message = format!("the training step has a variable `{name}` of its own");
        fail("P0404", message)
    })?;
    let stream = cx.dropouts;
    cx.dropouts += 1;
    let p = crate::frontend::onnx::node::shortest(p as f32);
    Ok(Some(vec![Val::Node(cx.one("", ops::Dropout { p: Real(p), stream }, &[x, seed, batch])?)]))
}

fn activation(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
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
        "Softplus",
        "Softsign",
        "Mish",
        "Clip",
        "Mod",
        "IsNaN",
        "Sign",
    ];
    if !known.contains(&call.op) {
        return Ok(None);
    }
    let a = &call.attrs;
    if matches!(call.op, "Mod" | "Sign") {
        return Ok(None);
    }
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
            below_zero(cx, x, low, x)?
        }
        "PRelu" => {
            let slope = call.need(1)?.clone();
            let slope = cx.spread(&slope, &shape)?;
            let low = cx.one("low", ops::Binary { f: B::Mul }, &[x, slope])?;
            below_zero(cx, x, low, x)?
        }
        "Elu" => exponential(cx, x, a.real("alpha", 1.0)?, 1.0, 1.0)?,
        "Celu" => {
            let alpha = a.real("alpha", 1.0)?;
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
        "Softplus" => softplus(cx, x)?,
        "Mish" => {
            let s = softplus(cx, x)?;
            let t = cx.one("tanh", ops::Unary { f: U::Tanh }, &[s])?;
            cx.one("", ops::Binary { f: B::Mul }, &[x, t])?
        }
        "Softsign" => {
            let m = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
            let unit = cx.full(1.0, &shape)?;
            let d = cx.one("sum", ops::Binary { f: B::Add }, &[m, unit])?;
            cx.one("", ops::Binary { f: B::Div }, &[x, d])?
        }
        "IsNaN" => {
            let same = cx.one("same", ops::Binary { f: B::Eq }, &[x, x])?;
            cx.one("", ops::Unary { f: U::Not }, &[same])?
        }
        _ => clip(cx, call, x)?,
    };
    Ok(Some(vec![Val::Node(y)]))
}

/// `x < 0 ? low : high`.
fn below_zero(cx: &mut Importer, x: ValueId, low: ValueId, high: ValueId) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let zero = cx.full(0.0, &shape)?;
    let negative = cx.one("negative", ops::Binary { f: B::Lt }, &[x, zero])?;
    cx.one("", ops::Select {}, &[negative, low, high])
}

/// `gain · (x < 0 ? alpha (exp(inner x) − 1) : x)`. The exponential sees no positive number, or an
/// overflow there would make the gradient of the branch not taken NaN.
fn exponential(cx: &mut Importer, x: ValueId, alpha: f64, inner: f64, gain: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let zero = cx.full(0.0, &shape)?;
    let negative = cx.one("negative", ops::Binary { f: B::Lt }, &[x, zero])?;
    let low = cx.one("low", ops::Select {}, &[negative, x, zero])?;
    let low = cx.one("inner", ops::Scale { by: Real(inner) }, &[low])?;
    let e = cx.one("expm1", ops::Unary { f: U::Expm1 }, &[low])?;
    let e = cx.one("alpha", ops::Scale { by: Real(alpha) }, &[e])?;
    let y = cx.one("", ops::Select {}, &[negative, e, x])?;
    if gain == 1.0 { Ok(y) } else { cx.one("gain", ops::Scale { by: Real(gain) }, &[y]) }
}

fn hard_sigmoid(cx: &mut Importer, x: ValueId, alpha: f64, beta: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let t = cx.one("alpha", ops::Scale { by: Real(alpha) }, &[x])?;
    let b = cx.full(beta, &shape)?;
    let t = cx.one("beta", ops::Binary { f: B::Add }, &[t, b])?;
    let (zero, unit) = (cx.full(0.0, &shape)?, cx.full(1.0, &shape)?);
    bounded(cx, t, Some(zero), Some(unit))
}

/// `log(1 + exp(x))` as `max(x, 0) + log1p(exp(−|x|))`.
fn softplus(cx: &mut Importer, x: ValueId) -> Res<ValueId> {
    let m = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
    let m = cx.one("neg", ops::Unary { f: U::Neg }, &[m])?;
    let e = cx.one("exp", ops::Unary { f: U::Exp }, &[m])?;
    let l = cx.one("log1p", ops::Unary { f: U::Log1p }, &[e])?;
    let shape = cx.graph.shape(x).to_vec();
    let zero = cx.full(0.0, &shape)?;
    // At 0 the maximum shares the cotangent, which gives the derivative ½ that softplus has there.
    let p = cx.one("max", ops::Binary { f: B::Max }, &[x, zero])?;
    cx.one("", ops::Binary { f: B::Add }, &[p, l])
}

fn clip(cx: &mut Importer, call: &Call, x: ValueId) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let bound = |cx: &mut Importer, i: usize| match call.input(i).cloned() {
        None => Ok(None),
        Some(v) => cx.spread(&v, &shape).map(Some),
    };
    let (low, high) = (bound(cx, 1)?, bound(cx, 2)?);
    bounded(cx, x, low, high)
}

/// Selections rather than extrema: on a bound the cotangent passes whole, as in PyTorch's clamp.
fn bounded(
    cx: &mut Importer,
    x: ValueId,
    low: Option<ValueId>,
    high: Option<ValueId>,
) -> Res<ValueId> {
    let mut y = x;
    if let Some(low) = low {
        let under = cx.one("under", ops::Binary { f: B::Lt }, &[y, low])?;
        y = cx.one("", ops::Select {}, &[under, low, y])?;
    }
    if let Some(high) = high {
        let over = cx.one("over", ops::Binary { f: B::Lt }, &[high, y])?;
        y = cx.one("", ops::Select {}, &[over, high, y])?;
    }
    Ok(y)
}

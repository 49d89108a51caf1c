//! Arithmetic, comparisons, casts, dropout.

use super::words;
use crate::diagnostic::Diagnostic;
use crate::frontend::onnx::fold::cast_target;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::broadcast_shape;
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{Real, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, Kind, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let one = |v: ValueId| Ok(Some(vec![Val::Node(v)]));
    match call.op {
        "Add" => one(binary(cx, call, B::Add)?),
        "Sub" => one(binary(cx, call, B::Sub)?),
        "Mul" => scaled(cx, call, false),
        "Div" => scaled(cx, call, true),
        "Max" | "Min" => {
            let f = if call.op == "Max" { B::Max } else { B::Min };
            match super::activation::one_sided_clamp(cx, call, f)? {
                Some(v) => one(v),
                None => one(chain(cx, call, f)?),
            }
        }
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
        "Mod" => one(modulo(cx, call)?),
        "Sign" => one(sign(cx, call)?),
        "IsNaN" => {
            let x = cx.real(call, 0)?;
            let same = cx.one("same", ops::Binary { f: B::Eq }, &[x, x])?;
            one(cx.one("", ops::Unary { f: U::Not }, &[same])?)
        }
        "IsInf" => one(is_inf(cx, call)?),
        "BitwiseAnd" => one(binary(cx, call, B::And)?),
        "BitwiseOr" => one(binary(cx, call, B::Or)?),
        // Of integers −1 − x, of which bytes keep eight bits.
        "BitwiseNot" => {
            let v = call.need(0)?.clone();
            let x = cx.value(&v)?;
            if cx.kind(&v)? == Kind::Bool {
                return one(cx.one("", ops::Unary { f: U::Not }, &[x])?);
            }
            let shape = cx.graph.shape(x).to_vec();
            let ones = whole_number(cx, -1, &shape)?;
            one(cx.one("", ops::Binary { f: B::Sub }, &[ones, x])?)
        }
        "BitwiseXor" => {
            let (a, b) = operands(cx, call.need(0)?, call.need(1)?)?;
            let either = cx.one("or", ops::Binary { f: B::Or }, &[a, b])?;
            let both = cx.one("and", ops::Binary { f: B::And }, &[a, b])?;
            one(cx.one("", ops::Binary { f: B::Sub }, &[either, both])?)
        }
        "Where" => one(select(cx, call)?),
        "Cast" => cast(cx, call, cast_target(&call.attrs)?),
        "CastLike" => {
            let to = match call.need(1)? {
                Val::Const(t) => t.elem,
                v => match cx.kind(v)? {
                    Kind::Real => Elem::F32,
                    Kind::Int => {
                        let name = call.attrs.node().input.get(1);
                        name.and_then(|n| cx.narrow_type(n)).unwrap_or(Elem::I64)
                    }
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
            None => Ok(None),
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
        "Tan" => U::Tan,
        "Asin" => U::Asin,
        "Acos" => U::Acos,
        "Atan" => U::Atan,
        "Sinh" => U::Sinh,
        "Cosh" => U::Cosh,
        "Asinh" => U::Asinh,
        "Acosh" => U::Acosh,
        "Atanh" => U::Atanh,
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
    // PyTorch adds and multiplies bools, and its exporters write what ONNX does not allow.
    let bools = [a, b].iter().all(|v| cx.graph.ty(*v).kind() == Kind::Bool);
    let f = match f {
        B::Add if bools => B::Or,
        B::Mul if bools => B::And,
        f => f,
    };
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

/// The result has the kind of the base, whatever the exponent is.
fn power(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let integers = cx.kind(call.need(0)?)? == Kind::Int;
    let e = match call.need(1)? {
        Val::Const(e) => Some(e.cast(Elem::F64)),
        _ => None,
    };
    let whole = e.as_ref().and_then(Tensor::splat).filter(|p| p.fract() == 0.0 && *p >= 1.0);
    if e.is_none() || (integers && whole.is_none_or(|p| p > 8.0)) {
        let (a, b) = operands(cx, call.need(0)?, call.need(1)?)?;
        let (a, b) = (as_real(cx, a, "base")?, as_real(cx, b, "exponent")?);
        if !integers {
            return cx.one("", ops::Binary { f: B::Pow }, &[a, b]);
        }
        // What rounding leaves beside an integer must not be cut off.
        let y = cx.one("real", ops::Binary { f: B::Pow }, &[a, b])?;
        let near = cx.one("near", ops::Unary { f: U::RoundEven }, &[y])?;
        let exponents_are_integers = cx.kind(call.need(1)?)? == Kind::Int;
        let y = if exponents_are_integers { near } else { y };
        return cx.one("", ops::Unary { f: U::ToInt }, &[y]);
    }
    let e = e.expect("returned above");
    let (base, p) = (call.need(0)?.clone(), e.splat());
    let exponent = Val::constant(Tensor { elem: Elem::F32, ..e.clone() });
    let shape = broadcast_shape(&cx.shape(&base)?, &e.shape).map_err(words)?;
    let x = cx.spread(&base, &shape)?;
    let simple = match p {
        Some(0.5) => Some(cx.one("", ops::Unary { f: U::Sqrt }, &[x])?),
        Some(-0.5) => Some(cx.one("", ops::Unary { f: U::Rsqrt }, &[x])?),
        Some(p) if p.fract() == 0.0 && (1.0..=8.0).contains(&p.abs()) => {
            // The reciprocal first: that of a power has the derivative 0 · ∞ at 0.
            let x = if p < 0.0 { cx.one("recip", ops::Unary { f: U::Recip }, &[x])? } else { x };
            let mut acc = x;
            for _ in 1..p.abs() as u32 {
                acc = cx.one("", ops::Binary { f: B::Mul }, &[acc, x])?;
            }
            Some(acc)
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

/// A value of any kind as reals.
fn as_real(cx: &mut Importer, v: ValueId, suffix: &str) -> Res<ValueId> {
    if cx.graph.ty(v).is_real() {
        return Ok(v);
    }
    cx.one(suffix, ops::Unary { f: U::ToReal }, &[v])
}

/// With `fmod` C's remainder, which has the dividend's sign; else that of the divisor.
fn modulo(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (a, b) = operands(cx, call.need(0)?, call.need(1)?)?;
    let fmod = call.attrs.int("fmod", 0)? != 0;
    let r = cx.one(if fmod { "" } else { "rem" }, ops::Binary { f: B::Rem }, &[a, b])?;
    if fmod {
        return Ok(r);
    }
    let shape = cx.graph.shape(r).to_vec();
    let zero = zeros(cx, r, &shape)?;
    let below = |cx: &mut Importer, v| cx.one("below", ops::Binary { f: B::Lt }, &[v, zero]);
    let (r_below, b_below) = (below(cx, r)?, below(cx, b)?);
    let same = cx.one("same", ops::Binary { f: B::Eq }, &[r_below, b_below])?;
    let none = cx.one("none", ops::Binary { f: B::Eq }, &[r, zero])?;
    let keeps = cx.one("keeps", ops::Binary { f: B::Or }, &[same, none])?;
    let moved = cx.one("moved", ops::Binary { f: B::Add }, &[r, b])?;
    cx.one("", ops::Select {}, &[keeps, r, moved])
}

/// Zeros of the kind of a value.
fn zeros(cx: &mut Importer, like: ValueId, shape: &[usize]) -> Res<ValueId> {
    literal(cx, like, shape, 0)
}

/// A small integer of the kind of a value, at every element.
fn literal(cx: &mut Importer, like: ValueId, shape: &[usize], x: i64) -> Res<ValueId> {
    if cx.graph.ty(like).is_real() {
        return cx.full(x as f64, shape);
    }
    whole_number(cx, x, shape)
}

/// A small integer at every element.
fn whole_number(cx: &mut Importer, x: i64, shape: &[usize]) -> Res<ValueId> {
    cx.spread(&Val::constant(Tensor::new(Elem::I32, [], Data::Int(vec![x]))), shape)
}

/// −1, 0 or 1; NaN gives 0, as torch.sign. Its derivative is 0.
fn sign(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let v = call.need(0)?.clone();
    let x = cx.value(&v)?;
    let shape = cx.graph.shape(x).to_vec();
    let zero = zeros(cx, x, &shape)?;
    let (plus, minus) = (literal(cx, x, &shape, 1)?, literal(cx, x, &shape, -1)?);
    let below = cx.one("below", ops::Binary { f: B::Lt }, &[x, zero])?;
    let above = cx.one("above", ops::Binary { f: B::Lt }, &[zero, x])?;
    let y = cx.one("or_zero", ops::Select {}, &[below, minus, zero])?;
    cx.one("", ops::Select {}, &[above, plus, y])
}

fn is_inf(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let wanted = |name: &str| Ok(call.attrs.int(name, 1)? != 0);
    let is = |cx: &mut Importer, suffix: &str, what: f64| {
        let c = cx.full(what, &shape)?;
        cx.one(suffix, ops::Binary { f: B::Eq }, &[x, c])
    };
    match (wanted("detect_negative")?, wanted("detect_positive")?) {
        (true, true) => {
            let (a, b) = (is(cx, "minus", f64::NEG_INFINITY)?, is(cx, "plus", f64::INFINITY)?);
            cx.one("", ops::Binary { f: B::Or }, &[a, b])
        }
        (true, false) => is(cx, "", f64::NEG_INFINITY),
        (false, true) => is(cx, "", f64::INFINITY),
        (false, false) => {
            let none = Tensor::new(Elem::Bool, [], Data::Bool(vec![false]));
            cx.spread(&Val::constant(none), &shape)
        }
    }
}

fn select(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (c, a, b) = (call.need(0)?, call.need(1)?, call.need(2)?);
    let hidden = super::safe::hidden(call, b);
    let b = hidden.as_ref().unwrap_or(b);
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

/// P0223, once for dropout of attention and once for all other.
fn warn_of_idle_dropout(cx: &mut Importer, call: &Call, p: f64) {
    // Exporters write the dropout of `scaled_dot_product_attention` without a training mode, whatever
    // the module's mode was.
    let (message, help) = if call.inputs.len() < 3 && behind_softmax(cx) {
        (
            format!(
                "the dropout of attention weights (`dropout_p` = {p}) is written without a training mode, \
                 and will not drop anything"
            ),
            "exporters lose `dropout_p` of `scaled_dot_product_attention` however they are called: \
             compute the weights in the module, with `nn.Dropout`, or set `dropout_p` to 0; see \
             docs/EXPORTING.md, Dropout",
        )
    } else {
        (
            format!("dropout (ratio {p}) is in inference form and will not drop anything"),
            "export with training=TrainingMode.TRAINING; see docs/EXPORTING.md",
        )
    };
    let begin = &message[..message.find('(').unwrap_or(message.len())];
    let known = |w: &Diagnostic| w.code == "P0223" && w.message.starts_with(begin);
    if !cx.warnings.iter().any(known) {
        cx.warn(Diagnostic::warning("P0223", message).help(help));
    }
}

/// Whether a softmax is among what the present node's operand is computed of, a few nodes back: what
/// guards rows without a key may lie between.
fn behind_softmax(cx: &Importer) -> bool {
    let nodes = &cx.src.graph.node;
    let mut names: Vec<&str> = nodes[cx.at].input.iter().take(1).map(String::as_str).collect();
    for _ in 0..4 {
        let makes = |n: &&crate::frontend::onnx::proto::NodeProto| {
            n.output.iter().any(|y| names.contains(&y.as_str()))
        };
        let made_by: Vec<_> = nodes.iter().filter(makes).collect();
        if made_by.iter().any(|n| n.op_type.as_deref() == Some("Softmax")) {
            return true;
        }
        names = made_by
            .iter()
            .filter(|n| matches!(n.op_type.as_deref(), Some("Where" | "Cast" | "Mul")))
            .flat_map(|n| n.input.iter().map(String::as_str))
            .collect();
    }
    false
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
    if call.wants(1) && cx.src.every_node().any(|n| n.input.contains(&call.outputs[1])) {
        return Err(fail("P0206", "the mask of `Dropout` is read by the graph"));
    }
    if !(0.0..1.0).contains(&p) {
        return Err(fail("P0206", format!("the dropout ratio is {p}, not in [0, 1)")));
    }
    if p == 0.0 || !cx.opts.training || !active {
        if p > 0.0 && cx.opts.training {
            warn_of_idle_dropout(cx, call, p);
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

//! LSTM, GRU and RNN.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::Move;
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::Data;
use crate::ir::ValueId;
use crate::ops::{self, MatMul};
use precast_plan::{BinaryOp as B, Kind, RecurrentCell as Cell, Squash, Way};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let cell = match call.op {
        "RNN" => Cell::Rnn,
        "LSTM" => Cell::Lstm,
        "GRU" if call.attrs.int("linear_before_reset", 0)? != 0 => Cell::GruResetAfter,
        "GRU" => Cell::Gru,
        _ => return Ok(None),
    };
    recurrence(cx, call, cell).map(Some)
}

fn way(call: &Call) -> Res<Way> {
    match call.attrs.string("direction", "forward")?.as_str() {
        "forward" => Ok(Way::Forward),
        "reverse" => Ok(Way::Reverse),
        "bidirectional" => Ok(Way::Both),
        other => Err(fail("P0206", format!("`direction` is \"{other}\""))),
    }
}

/// The activations, the same in both directions.
fn activations(call: &Call, cell: Cell, directions: usize) -> Res<[Squash; 3]> {
    for name in ["activation_alpha", "activation_beta"] {
        if call.attrs.reals(name).is_some_and(|v| !v.is_empty()) {
            return Err(fail("P0206", format!("`{name}`: activations with parameters"))
                .help("Sigmoid, Tanh and Relu are supported, which have none"));
        }
    }
    let each = match cell {
        Cell::Rnn => 1,
        Cell::Gru | Cell::GruResetAfter => 2,
        Cell::Lstm => 3,
    };
    let default = if cell == Cell::Rnn { Squash::Tanh } else { Squash::Sigmoid };
    let mut out = [default, Squash::Tanh, Squash::Tanh];
    let names = call.attrs.strings("activations")?;
    if names.is_empty() {
        return Ok(out);
    }
    if names.len() != each * directions {
        let text = format!("`activations` has {} entries, not {}", names.len(), each * directions);
        return Err(fail("P0206", text));
    }
    if names.iter().zip(names.iter().cycle().skip(each)).any(|(a, b)| !a.eq_ignore_ascii_case(b)) {
        return Err(fail("P0206", "`activations` differ between the two directions")
            .help("write the directions as two nodes and concatenate their results"));
    }
    for (slot, name) in out.iter_mut().zip(&names[..each]) {
        *slot = match name.to_ascii_lowercase().as_str() {
            "sigmoid" => Squash::Sigmoid,
            "tanh" => Squash::Tanh,
            "relu" => Squash::Relu,
            _ => {
                return Err(fail("P0206", format!("the activation \"{name}\" of a recurrence"))
                    .help(
                        "Sigmoid, Tanh and Relu are supported; other cells can be written out \
                           step by step",
                    ));
            }
        };
    }
    Ok(out)
}

/// Operand `i` as a value, unless it is absent or nothing but zeros. Zeros of other extents than
/// `shape` are an error too: exporters that lost something of a module show it there.
fn given(
    cx: &mut Importer,
    call: &Call,
    (i, what): (usize, &str),
    shape: &[usize],
) -> Res<Option<ValueId>> {
    let Some(v) = call.input(i).cloned() else { return Ok(None) };
    let have = cx.shape(&v)?;
    if have != shape {
        return Err(words(format!("{what} is {have:?}, not {shape:?}")).help(PROJECTION));
    }
    match &v {
        Val::Const(t) if matches!(&t.data, Data::Real(v) if v.iter().all(|x| *x == 0.0)) => {
            Ok(None)
        }
        _ => cx.real(call, i).map(Some),
    }
}

/// Where extents do not fit, this may be why.
const PROJECTION: &str = "a projection of the state (`proj_size`) has no ONNX operator";

fn expect(cx: &Importer, what: &str, v: ValueId, shape: &[usize]) -> Res<()> {
    let have = cx.graph.shape(v);
    if have[..] == *shape { Ok(()) } else { Err(words(format!("{what} is {have}, not {shape:?}"))) }
}

fn slice(cx: &mut Importer, v: ValueId, axis: usize, from: usize, n: usize) -> Res<ValueId> {
    let mut sizes = cx.graph.shape(v).to_vec();
    let mut starts = vec![0; sizes.len()];
    (starts[axis], sizes[axis]) = (from, n);
    let steps = vec![1; sizes.len()];
    cx.move_value(v, &[Move::Slice { starts, sizes, steps }])
}

/// Lengths of the sequences, unless all are whole.
fn lengths(cx: &mut Importer, call: &Call, steps: usize, batch: usize) -> Res<Option<ValueId>> {
    let Some(v) = call.input(4).cloned() else { return Ok(None) };
    if cx.kind(&v)? != Kind::Int || cx.shape(&v)? != [batch] {
        return Err(words(format!("`sequence_lens` is not one integer for each of {batch}")));
    }
    if let Val::Const(t) = &v
        && let Data::Int(list) = &t.data
    {
        if let Some(n) = list.iter().find(|n| !(0..=steps as i64).contains(*n)) {
            return Err(words(format!("a sequence of {n} of {steps} steps in `sequence_lens`")));
        }
        if list.iter().all(|&n| n == steps as i64) {
            return Ok(None);
        }
    }
    cx.value(&v).map(Some)
}

fn recurrence(cx: &mut Importer, call: &Call, cell: Cell) -> Res<Vec<Val>> {
    let way = way(call)?;
    let d = way.directions();
    let [f, g, h] = activations(call, cell, d)?;
    if call.attrs.real("clip", 0.0)? != 0.0 {
        return Err(fail("P0206", "`clip` of a recurrence")
            .help("leave it out; `clip_norm` of the recipe's optimizer limits gradients"));
    }
    if call.attrs.int("input_forget", 0)? != 0 {
        return Err(fail("P0206", "`input_forget`: coupled input and forget gates")
            .help("write the cell out step by step"));
    }
    let batch_first = call.attrs.int("layout", 0)? != 0;
    let x = cx.real(call, 0)?;
    let (w, r) = (cx.real(call, 1)?, cx.real(call, 2)?);
    let (sx, sr) = (cx.graph.shape(x).to_vec(), cx.graph.shape(r).to_vec());
    if sx.len() != 3 || sr.len() != 3 {
        return Err(words(format!(
            "an input {sx:?} and recurrent weights {sr:?}: three axes each"
        )));
    }
    let x = if batch_first { cx.transpose(x, &[1, 0, 2])? } else { x };
    let (t, b, n, hidden) =
        if batch_first { (sx[1], sx[0], sx[2], sr[2]) } else { (sx[0], sx[1], sx[2], sr[2]) };
    if t * b * hidden == 0 {
        return Err(words(format!("an input {sx:?} has no steps")));
    }
    let stated = call.attrs.int("hidden_size", hidden as i64)?;
    if stated != hidden as i64 {
        let text = format!("`hidden_size` is {stated}, the recurrent weights are {sr:?}");
        return Err(words(text).help(PROJECTION));
    }
    let m = cell.gates() * hidden;
    expect(cx, "the recurrent weight", r, &[d, m, hidden])?;
    expect(cx, "the input weight", w, &[d, m, n])?;

    // All steps and directions in one product.
    let rows = cx.reshape(x, &[t * b, n])?;
    let columns = cx.reshape(w, &[d * m, n])?;
    let columns = cx.transpose(columns, &[1, 0])?;
    let mut gates = cx.one("input", MatMul::plain(), &[rows, columns])?;
    let mut inner = None;
    if let Some(bias) = given(cx, call, (3, "the bias"), &[d, 2 * m])? {
        let own = slice(cx, bias, 1, 0, m)?;
        let mut other = slice(cx, bias, 1, m, m)?;
        if cell.has_bias() {
            // That of the last gate is behind the product with the state.
            let first = slice(cx, bias, 1, m, 2 * hidden)?;
            inner = Some(slice(cx, bias, 1, m + 2 * hidden, hidden)?);
            let pad = ops::Pad { starts: vec![0, 0], steps: vec![1, 1], shape: vec![d, m] };
            other = cx.one("bias", pad, &[first])?;
        }
        let sum = cx.one("bias", ops::Binary { f: B::Add }, &[own, other])?;
        let sum = cx.reshape(sum, &[d * m])?;
        let sum = cx.spread(&Val::Node(sum), &[t * b, d * m])?;
        gates = cx.one("gates", ops::Binary { f: B::Add }, &[gates, sum])?;
    }
    let gates = cx.reshape(gates, &[t, b, d, m])?;

    let mut operands = vec![gates, r, states(cx, call, cell, batch_first, [b, d, hidden])?];
    if cell.has_bias() {
        operands.push(match inner {
            Some(v) => v,
            None => cx.full(0.0, &[d, hidden])?,
        });
    }
    let peephole = match cell {
        Cell::Lstm => given(cx, call, (7, "the peephole weight"), &[d, 3 * hidden])?,
        _ => None,
    };
    operands.extend(peephole);
    let lengths = lengths(cx, call, t, b)?;
    operands.extend(lengths);
    let (peephole, lengths) = (peephole.is_some(), lengths.is_some());
    let op = ops::Recurrence { cell, way, f, g, h, peephole, lengths };
    let out = cx.one("", op, &operands)?;

    // [t,b,d,h] to ONNX's [t,d,b,h], or [b,t,d,h]; final states [b,d,h] to [d,b,h].
    let y = slice(cx, out, 0, 0, t)?;
    let y = cx.transpose(y, if batch_first { &[1, 0, 2, 3] } else { &[0, 2, 1, 3] })?;
    let mut results = vec![Val::Node(y)];
    for state in 0..cell.states() {
        let v = slice(cx, out, 0, t + state, 1)?;
        let v = cx.reshape(v, &[b, d, hidden])?;
        let v = if batch_first { v } else { cx.transpose(v, &[1, 0, 2])? };
        results.push(Val::Node(v));
    }
    Ok(results)
}

/// First states of all sequences, [states,b,d,h].
fn states(
    cx: &mut Importer,
    call: &Call,
    cell: Cell,
    batch_first: bool,
    [b, d, hidden]: [usize; 3],
) -> Res<ValueId> {
    let mut parts = vec![];
    for i in 5..5 + cell.states() {
        let own = if batch_first { [b, d, hidden] } else { [d, b, hidden] };
        let what = if i == 5 { "`initial_h`" } else { "`initial_c`" };
        parts.push(given(cx, call, (i, what), &own)?);
    }
    if parts.iter().all(Option::is_none) {
        return cx.full(0.0, &[cell.states(), b, d, hidden]);
    }
    let mut list = vec![];
    for v in parts {
        list.push(match v {
            None => cx.full(0.0, &[1, b, d, hidden])?,
            Some(v) => {
                let v = if batch_first { v } else { cx.transpose(v, &[1, 0, 2])? };
                cx.reshape(v, &[1, b, d, hidden])?
            }
        });
    }
    if let [one] = list[..] { Ok(one) } else { cx.one("states", ops::Concat { axis: 0 }, &list) }
}

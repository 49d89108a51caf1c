//! What operations say of their numbers, over the table of operations: bounds hold, poles are
//! declared, and f16 is at least as careful as PyTorch's autocast.

use crate::cases::cases;
use crate::table::graph_of;
use precast_compiler::ir::{Graph, NodeId, Region, TensorType, ValueId};
use precast_compiler::ops::range::Ranges;
use precast_compiler::ops::{Binary, Bounds, Input, Known, MatMul, Op, Unary};
use precast_compiler::precision::{Policy, PrecisionOptions, legal};
use precast_compiler::reference::{self, Tensor};
use precast_plan::{BinaryOp, DType, Kind, Target, UnaryOp};

fn around(t: &Tensor) -> Bounds {
    match t.ty.kind() {
        Kind::Real => Bounds::around(t.reals().iter().copied()),
        _ => Bounds::ALL,
    }
}

#[test]
fn bounds_hold_what_is_computed() {
    let mut narrower = 0;
    for case in cases() {
        let (g, inputs, node) = graph_of(&case);
        let out = reference::eval(&g, &inputs, &inputs).unwrap_or_else(|e| panic!("{e}"));
        let mut bounds = vec![Bounds::ALL; g.value_count()];
        for &v in &g.node(node).inputs {
            bounds[v.0 as usize] = around(out.value(v));
        }
        let base: Vec<ValueId> = (0..g.value_count() as u32).map(ValueId).collect();
        let reach = vec![1.0; g.value_count()];
        let n = g.node(node);
        let known = Known { graph: &g, node: n, bounds: &bounds, reach: &reach, base: &base };
        let b = case.op.def().bounds(&known);
        let y = out.value(n.outputs[0]);
        if y.ty.kind() != Kind::Real {
            continue;
        }
        narrower += usize::from(b != Bounds::ALL);
        for &v in y.reals().iter().filter(|v| v.is_finite()) {
            let slack = 1e-6 * v.abs();
            assert!(v >= b.lo - slack && v <= b.hi + slack, "{:?}: {v} not in {b:?}", case.op);
        }
    }
    assert!(narrower > 40, "most operations know bounds: {narrower}");
}

/// A product's result under a function, and whether f16 may store either.
fn stored(op: impl Into<Op>, operands: usize) -> Option<(Vec<Option<String>>, Option<String>)> {
    let mut g = Graph::new("row");
    let ty = TensorType::f32([8, 8]);
    let mut products = vec![];
    for i in 0..operands {
        let x = format!("x{i}");
        let x = g.try_add(Input::new(&x, &ty), &[], &x, Region::Forward).expect("an input")[0];
        let name = format!("p{i}");
        products.push(g.try_add(MatMul::plain(), &[x, x], name, Region::Forward).expect("p")[0]);
    }
    let y = g.try_add(op, &products, "y", Region::Forward).ok()?[0];
    if !g.ty(y).is_real() {
        return None;
    }
    g.try_add(MatMul::plain(), &[y, y], "reader", Region::Forward).expect("a reader");
    let options = PrecisionOptions::new(Policy::F16);
    let target = Target::shipped("v100").expect("shipped");
    let legal = legal::legality(&g, DType::F16, &options, &target).expect("no pins");
    let why = |v: ValueId| legal.store[v.0 as usize].as_ref().map(ToString::to_string);
    Some((products.into_iter().map(why).collect(), why(y)))
}

/// Names of PyTorch's list of operations that run in f32 under `autocast` on CUDA
/// (`torch/csrc/autograd`, `autocast_mode.h` of 2.15), as far as they are functions of one or two
/// numbers, by what rows of the tables may be called.
const FULL: &[&str] = &[
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "pow",
    "recip",
    "reciprocal",
    "rsqrt",
    "sinh",
    "softplus",
    "tan",
    "cumsum",
    "cumprod",
    "prod",
];

#[test]
fn f16_is_at_least_as_careful_as_autocast() {
    let mut seen = 0;
    let mut check = |name: &str, y: Option<String>| {
        if FULL.contains(&name) {
            seen += 1;
            assert!(y.is_some(), "f16 may store the result of `{name}`, autocast does not");
        }
    };
    for &f in UnaryOp::ALL {
        if let Some((_, y)) = stored(Unary { f }, 1) {
            check(f.name(), y);
        }
    }
    for &f in BinaryOp::ALL {
        if let Some((_, y)) = stored(Binary { f }, 2) {
            check(f.name(), y);
        }
    }
    assert!(seen >= 7, "the rows were not found: {seen}");
    // `pow` by 2 is a product, and so is a root a function of its own.
    let square = |by: f64| {
        let mut g = Graph::new("square");
        let ty = TensorType::f32([8, 8]);
        let x = g.try_add(Input::new("x", &ty), &[], "x", Region::Forward).expect("x")[0];
        let p = g.try_add(MatMul::plain(), &[x, x], "p", Region::Forward).expect("p")[0];
        let by = precast_compiler::ir::Real(by);
        let q = g.try_add(precast_compiler::ops::Scale { by }, &[p], "q", Region::Forward);
        let f = BinaryOp::Mul;
        let y = g.try_add(Binary { f }, &[p, q.expect("q")[0]], "y", Region::Forward);
        let r = Ranges::of(&g, 32752.0);
        r.beyond[y.expect("y")[0].0 as usize].is_some()
    };
    assert!(square(1.0) && square(-3.0));
    for act in precast_compiler::ops::activation::Act::ALL {
        let attr = precast_compiler::ir::AttrValue::to_attr(&act);
        let precast_compiler::ir::Attr::Word(name) = attr else {
            panic!("an activation is a word")
        };
        if let Some((_, y)) = stored(precast_compiler::ops::Activate { act }, 1) {
            assert_eq!(y.is_some(), FULL.contains(&name.as_str()), "{name}: {y:?}");
        }
    }
    let (_, product) = stored(Binary { f: BinaryOp::Mul }, 2).expect("real");
    assert_eq!(product, None, "a product of two tensors, a gate, is what it is");
    assert!(stored(Unary { f: UnaryOp::Sqrt }, 1).expect("real").1.is_some());
}

/// Near every point where a function or its slope is infinite f16 does not round its operand.
#[test]
fn poles_are_declared() {
    let eval = |op: &Op, x: &[f64]| -> f64 {
        let x: Vec<Tensor> = x.iter().map(|&v| Tensor::real([1], vec![v])).collect();
        let types: Vec<&TensorType> = x.iter().map(|t| &t.ty).collect();
        let y = op.def().infer(&types).expect("real operands");
        let operands: Vec<&Tensor> = x.iter().collect();
        let y = reference::eval_op(op, &operands, &y, &reference::Options::EXACT);
        y.expect("evaluates")[0].reals()[0]
    };
    let steep = |op: &Op, x: &mut [f64], i: usize, at: f64| {
        [-1.0, 1.0].iter().any(|side| {
            let mut f = |d: f64| {
                x[i] = at + side * d;
                eval(op, x)
            };
            let (near, nearer) = (f(1e-8), f(1e-10));
            near.is_finite() && nearer.is_finite() && (near - nearer).abs() > 1e-5
        })
    };
    let mut found = 0;
    let mut check = |op: Op, operands: usize| {
        let Some((x, _)) = stored(op.clone(), operands) else { return };
        for (i, stored) in x.iter().enumerate() {
            // Of powers the exponents below 1 are steep.
            let poles = [-1.0, 0.0, 1.0].map(|at| steep(&op, &mut vec![0.5; operands], i, at));
            for (steep, at) in poles.into_iter().zip([-1.0, 0.0, 1.0]) {
                let stated = op.def().poles().iter().any(|p| p.operand == i && p.at == at);
                assert!(stated || !steep, "{op:?} is steep at {at} of operand {i}");
                assert!(!stated || stored.is_some(), "{op:?} reads operand {i} in f16");
                found += usize::from(steep);
            }
        }
    };
    let real = TensorType::f32([1]);
    for &f in UnaryOp::ALL {
        let op = Op::from(Unary { f });
        if op.def().infer(&[&real]).is_ok_and(|y| y[0].is_real()) {
            check(op, 1);
        }
    }
    for &f in BinaryOp::ALL {
        check(Binary { f }.into(), 2);
    }
    assert!(found >= 7, "{found}");
}

#[test]
fn sums_and_means_reach_as_far_as_they_may() {
    let text = "graph g\n\nforward:\n  %x = input {name=\"x\"} : f32[4,100] @x\n  \
                %s = reduce %x {f=sum, axes=[1]} @s\n  %m = scale %s {by=0.01} @m\n  \
                %q = binary %s, %m {f=add} @q\n  %t = scale %s {by=1e-9} @t\n  \
                %e = unary %x {f=exp} @e\n  %n = unary %e {f=neg} @n\n  \
                %b = unary %n {f=sigmoid} @b\n\nresult q = %q\nresult t = %t\nresult b = %b\n";
    let g = precast_compiler::text::parse(std::path::Path::new("g.pir"), text).expect("parses");
    let r = Ranges::of(&g, 32752.0);
    let of = |name: &str| {
        let at = g.nodes().find(|(_, n)| n.name == name).map(|(NodeId(i), _)| i);
        g.node(NodeId(at.expect("there"))).outputs[0].0 as usize
    };
    assert_eq!(r.reach[of("s")], 100.0);
    assert!((r.reach[of("m")] - 1.0).abs() < 1e-9);
    assert_eq!(r.reach[of("q")], 100.0);
    assert!(r.reach[of("t")] < 1e-6);
    assert_eq!(r.reach[of("n")], f64::INFINITY);
    assert_eq!(r.reach[of("b")], 1.0);
    assert_eq!(r.bounds[of("e")].lo, 0.0);
    assert_eq!(r.bounds[of("b")], Bounds::new(0.0, 0.5));
    let from = r.from[of("n")].expect("it began somewhere");
    assert_eq!(g.def(from).name, "e");
}

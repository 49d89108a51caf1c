//! Tests that walk the table of operations.

use crate::cases::{Case, Gradient, cases};
use crate::rng::Rng;
use indexmap::IndexMap;
use precast_compiler::ir::view::View;
use precast_compiler::ir::{
    AttrMap, Graph, NodeId, Region, Shape, TensorType, ValueId, Var, VarInit, VarRole, verify,
};
use precast_compiler::ops::{GradCx, Linear, Lowering, Op};
use precast_compiler::reference::{self, Options, Tensor, program_of};

/// A graph of one operation whose operands are the inputs `x0`, `x1`, …
pub fn graph_of(case: &Case) -> (Graph, IndexMap<String, Tensor>, NodeId) {
    let mut g = Graph::new("case");
    let mut inputs = IndexMap::new();
    let mut x = Vec::new();
    for (i, t) in case.x.iter().enumerate() {
        let name = format!("x{i}");
        let op = precast_compiler::ops::Input::new(&name, &t.ty);
        x.push(g.try_add(op, &[], &name, Region::Forward).unwrap()[0]);
        inputs.insert(name, t.clone());
    }
    let ty = TensorType::new(precast_plan::DType::F16, [2, 3]);
    let var = Var { ty: ty.clone(), role: VarRole::Param, init: VarInit::Zeros };
    g.vars.insert("leaf".into(), var);
    inputs.insert("leaf".into(), Tensor::zeros(&ty));
    g.try_add(case.op.clone(), &x, "node", Region::Forward)
        .unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
    let node = NodeId(g.node_count() as u32 - 1);
    (g, inputs, node)
}

fn results(case: &Case, x: &[Tensor]) -> Vec<Tensor> {
    let (g, mut inputs, node) = graph_of(case);
    for (i, t) in x.iter().enumerate() {
        inputs.insert(format!("x{i}"), t.clone());
    }
    let out =
        reference::eval(&g, &inputs, &inputs).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
    g.node(node).outputs.iter().map(|&v| out.value(v).clone()).collect()
}

#[test]
fn every_operation_has_a_case() {
    let cases = cases();
    for name in Op::NAMES {
        assert!(cases.iter().any(|c| c.op.name() == *name), "`{name}` has no case in cases.rs");
    }
}

#[test]
fn cases_verify_and_evaluate_to_the_inferred_types() {
    for case in cases() {
        let (g, _, node) = graph_of(&case);
        verify::verify(&g).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        for (t, &v) in results(&case, &case.x).iter().zip(&g.node(node).outputs) {
            assert_eq!(t.ty, *g.ty(v), "{:?}", case.op);
        }
    }
}

#[test]
fn attributes_read_back() {
    for case in cases() {
        let attrs: IndexMap<_, _> =
            case.op.def().attrs().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let mut extra = attrs.clone();
        assert_eq!(Op::parse(case.op.name(), AttrMap(attrs.clone())).as_ref(), Ok(&case.op));
        for name in attrs.keys() {
            let mut fewer = attrs.clone();
            fewer.shift_remove(name);
            match Op::parse(case.op.name(), AttrMap(fewer)) {
                Err(e) => assert!(e.contains(name.as_str()), "{e}"),
                // It has a default, which is not written.
                Ok(op) => assert_ne!(op, case.op, "{name}"),
            }
        }
        extra.insert("surplus".into(), precast_compiler::ir::Attr::Int(1));
        assert!(Op::parse(case.op.name(), AttrMap(extra)).unwrap_err().contains("surplus"));
    }
}

#[test]
fn wrong_operands_are_refused() {
    for case in cases() {
        let def = case.op.def();
        let types = case.types();
        if case.op.name() != "concat" {
            let mut more = types.clone();
            let scalar = TensorType::f32([]);
            more.push(&scalar);
            assert!(def.infer(&more).is_err(), "{:?} takes a surplus operand", case.op);
        }
        for i in 0..types.len() {
            let mut fewer = types.clone();
            fewer.remove(i);
            if case.op.name() != "concat" || fewer.is_empty() {
                assert!(def.infer(&fewer).is_err(), "{:?} lacks operand {i}", case.op);
            }
        }
    }
}

/// Gradients against central differences of a random projection of the first result, the only one
/// that definitions differentiate.
#[test]
fn gradients_match_finite_differences() {
    let mut rng = Rng(11);
    for case in cases().iter().filter(|c| c.gradient != Gradient::Refused) {
        let (mut g, mut inputs, node) = graph_of(case);
        let y = g.node(node).outputs[0];
        if !g.ty(y).is_real() || case.x.is_empty() {
            continue;
        }
        let dy = rng.reals(g.shape(y).clone(), -1.0, 1.0);
        let op = precast_compiler::ops::Input::new("dy", &dy.ty);
        let seed = g.try_add(op, &[], "dy", Region::Backward).unwrap()[0];
        inputs.insert("dy".into(), dy.clone());
        let mut cotangents = vec![None; g.node(node).outputs.len()];
        cotangents[0] = Some(seed);
        let grads = case
            .op
            .def()
            .gradient(&mut GradCx::new(&mut g, node, cotangents))
            .unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        verify::verify(&g).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        assert_eq!(grads.len(), case.x.len(), "{:?}", case.op);
        let values = reference::eval(&g, &inputs, &inputs).unwrap();
        for (i, grad) in grads.iter().enumerate() {
            if matches!(&case.gradient, Gradient::Except(e) if e.contains(&i)) {
                assert!(grad.is_none(), "{:?}, operand {i}", case.op);
                continue;
            }
            if !case.x[i].ty.is_real() {
                assert!(grad.is_none(), "{:?}: cotangent of the integer operand {i}", case.op);
                continue;
            }
            let want = differences(case, i, &dy);
            let have = match grad {
                Some(v) => {
                    assert_eq!(g.shape(*v), case.x[i].shape(), "{:?}, operand {i}", case.op);
                    values.value(*v).reals().to_vec()
                }
                None => vec![0.0; want.len()],
            };
            let size = want.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
            for (e, (h, w)) in have.iter().zip(&want).enumerate() {
                assert!(
                    (h - w).abs() <= 1e-6 * size,
                    "{:?}, operand {i}, element {e}: {h}, by differences {w}",
                    case.op
                );
            }
        }
    }
}

fn differences(case: &Case, operand: usize, dy: &Tensor) -> Vec<f64> {
    let project = |x: &[Tensor]| -> f64 {
        results(case, x)[0].reals().iter().zip(dy.reals()).map(|(a, b)| a * b).sum()
    };
    let mut x = case.x.clone();
    (0..case.x[operand].data.len())
        .map(|e| {
            let at = case.x[operand].reals()[e];
            let h = 1e-5;
            let mut side = |s: f64| {
                x[operand].reals_mut()[e] = at + s * h;
                project(&x)
            };
            let d = (side(1.0) - side(-1.0)) / (2.0 * h);
            x[operand].reals_mut()[e] = at;
            d
        })
        .collect()
}

#[test]
fn operations_without_a_gradient_say_so() {
    for case in cases() {
        let (mut g, _, node) = graph_of(&case);
        let outputs = g.node(node).outputs.clone();
        let seeds: Vec<ValueId> = outputs
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let op = precast_compiler::ops::Input::new(format!("dy{i}"), g.ty(v));
                g.try_add(op, &[], format!("dy{i}"), Region::Backward).unwrap()[0]
            })
            .collect();
        if case.gradient == Gradient::Refused {
            let mut cx = GradCx::new(&mut g, node, seeds.iter().copied().map(Some).collect());
            assert!(case.op.def().gradient(&mut cx).is_err(), "{:?}", case.op);
            continue;
        }
        // Results after the first are statistics and places; a cotangent of one is an error, not
        // a term that is forgotten.
        for i in (1..outputs.len()).filter(|&i| g.ty(outputs[i]).is_real()).collect::<Vec<_>>() {
            for first in [None, Some(seeds[0])] {
                let mut cotangents = vec![None; outputs.len()];
                cotangents[0] = first;
                cotangents[i] = Some(seeds[i]);
                let mut cx = GradCx::new(&mut g, node, cotangents);
                assert!(case.op.def().gradient(&mut cx).is_err(), "{:?}, result {i}", case.op);
            }
        }
    }
}

#[test]
fn linearity_is_as_declared() {
    for case in cases() {
        let groups: Vec<Vec<usize>> = match case.op.def().linear() {
            Linear::No => continue,
            Linear::Each(operands) => operands.iter().map(|&i| vec![i]).collect(),
            // Conditions and indices are held fixed.
            Linear::All => vec![(0..case.x.len()).filter(|&i| case.x[i].ty.is_real()).collect()],
        };
        let before = results(&case, &case.x);
        if !case.x.iter().any(|t| t.ty.is_real()) || !before[0].ty.is_real() {
            continue;
        }
        for group in groups {
            let mut x = case.x.clone();
            for &i in &group {
                x[i].reals_mut().iter_mut().for_each(|v| *v *= -3.0);
            }
            for (b, a) in before.iter().zip(results(&case, &x)) {
                for (b, a) in b.reals().iter().zip(a.reals()) {
                    assert!(
                        (a + 3.0 * b).abs() <= 1e-9 * (1.0 + b.abs()),
                        "{:?} is not linear in {group:?}: {b} becomes {a}",
                        case.op
                    );
                }
            }
        }
    }
}

#[test]
fn lowerings_are_consistent() {
    for case in cases() {
        let x = case.types();
        let y = case.op.def().infer(&x).unwrap();
        check_lowering(&case.op, &x, &y.iter().collect::<Vec<_>>());
    }
}

/// Axis maps, parts and views lie within their tensors.
pub fn check_lowering(op: &Op, x: &[&TensorType], y: &[&TensorType]) {
    let covers = |whole: &TensorType, starts: &[i64], steps: &[i64], sizes: &Shape| {
        assert_eq!([starts.len(), steps.len(), sizes.rank()], [whole.shape.rank(); 3], "{op:?}");
        for d in (0..starts.len()).filter(|_| sizes.elements() > 0) {
            let last = starts[d] + steps[d] * (sizes[d] as i64 - 1);
            let inside = 0..whole.shape[d] as i64;
            assert!(inside.contains(&starts[d]) && inside.contains(&last), "{op:?}, axis {d}");
        }
    };
    match op.lowering() {
        Lowering::Rows => {
            let (spec, program) = program_of(op, x, y);
            program.check().unwrap_or_else(|e| panic!("{op:?}: {e}\n{program}"));
            assert!(spec.reduced <= spec.dims.len(), "{op:?}");
            assert_eq!([spec.inputs.len(), spec.outputs.len()], [x.len(), y.len()], "{op:?}");
            let maps = spec.inputs.iter().chain(&spec.outputs);
            for (t, map) in x.iter().chain(y).zip(maps) {
                assert_eq!(map.len(), t.shape.rank(), "{op:?}: {map:?} of {t}");
                for (i, &d) in map.iter().enumerate() {
                    assert_eq!(spec.dims.get(d), Some(&t.shape[i]), "{op:?}: {map:?} of {t}");
                    assert!(!map[..i].contains(&d), "{op:?}: {map:?} repeats an axis");
                }
            }
            // Otherwise points that differ would be stored in one place.
            let kept = spec.dims.len() - spec.reduced;
            for map in &spec.outputs {
                for d in 0..kept {
                    assert!(spec.dims[d] == 1 || map.contains(&d), "{op:?}: {map:?} lacks {d}");
                }
                let reduced = map.iter().filter(|&&d| d >= kept).count();
                assert!(reduced == 0 || reduced == spec.reduced, "{op:?}: {map:?}");
            }
        }
        Lowering::Assemble => {
            for (part, t) in op.def().parts(x).iter().zip(x) {
                let starts: Vec<i64> = part.starts.iter().map(|&s| s as i64).collect();
                covers(y[0], &starts, &part.steps, &t.shape);
            }
        }
        Lowering::View => {
            let v = op.def().view(&View::dense(&x[0].shape), y[0]).expect("a dense view");
            assert_eq!(v.shape, y[0].shape, "{op:?}");
            if v.shape.elements() > 0 {
                let reach = |negative: bool| -> i64 {
                    let far = v.shape.iter().zip(&v.strides).map(|(&n, &s)| (n as i64 - 1) * s);
                    v.offset + far.filter(|f| (*f < 0) == negative).sum::<i64>()
                };
                let (low, high) = (reach(true), reach(false));
                assert!(low >= 0 && high < x[0].shape.elements() as i64, "{op:?}: {low}..={high}");
            }
        }
        Lowering::Leaf | Lowering::Kernel => {}
    }
}

/// The stored formats matter only where asked for.
#[test]
fn f32_evaluation_is_close_to_exact() {
    for case in cases() {
        let (g, inputs, node) = graph_of(&case);
        let exact = reference::eval(&g, &inputs, &inputs).unwrap();
        let stored = reference::eval_with(&g, &inputs, &inputs, &Options::STORED).unwrap();
        for &v in &g.node(node).outputs {
            let (a, b) = (exact.value(v), stored.value(v));
            if !a.ty.is_real() {
                assert_eq!(a, b, "{:?}", case.op);
                continue;
            }
            for (a, b) in a.reals().iter().zip(b.reals()) {
                assert!((a - b).abs() <= 2e-5 * (1.0 + a.abs()), "{:?}: {a} and {b}", case.op);
                assert_eq!(f64::from(*b as f32), *b, "{:?}", case.op);
            }
        }
    }
}

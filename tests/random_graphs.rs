//! Random differentiated graphs through e-graph, schedule and the CPU backend, against the
//! interpreter.

mod common;
#[path = "../compiler/tests/semantics/random.rs"]
mod random;
#[path = "../compiler/tests/semantics/rng.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod rng;

use precast_compiler::ir::{Graph, ValueId};
use precast_compiler::ops::{Lowering, Op};
use precast_compiler::precision::Policy;
use precast_compiler::reference::{self, Data, Evaluated, Tensor, eval, eval_with};
use precast_plan::{DType, Plan};
use precast_runtime::data::batch_of;
use precast_runtime::tensors::Element;
use precast_runtime::{HostTensor, Options, Session};
use random::{RandomCase, describe};
use std::collections::{BTreeMap, BTreeSet};

fn host(t: &Tensor) -> HostTensor<'static> {
    let shape: Vec<u64> = t.shape().iter().map(|&n| n as u64).collect();
    match &t.data {
        Data::Real(v) => {
            HostTensor::from_f32(&shape, &v.iter().map(|&x| x as f32).collect::<Vec<_>>())
        }
        Data::Int(v) => {
            let size = t.ty.dtype.size();
            let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()[..size].to_vec()).collect();
            HostTensor { element: Element::Plan(t.ty.dtype), shape, bytes: bytes.into() }
        }
        Data::Bool(_) => panic!("no input is a bool"),
    }
}

/// All results of one step, by name.
fn run(plan: &Plan, case: &RandomCase, threads: usize) -> Vec<(String, Vec<f32>)> {
    let none: BTreeMap<String, HostTensor> = BTreeMap::new();
    let options = Options { threads, ..Options::default() };
    let mut s = Session::new(plan.clone(), &none, &options).unwrap_or_else(|e| panic!("{e}"));
    for (name, t) in &case.vars {
        // A parameter that nothing reads has no tensor.
        if plan.tensors.iter().any(|t| t.name == *name) {
            s.write(name, &host(t)).unwrap_or_else(|e| panic!("{e}"));
        }
    }
    let fed: Vec<(&str, HostTensor)> =
        case.inputs.iter().map(|(n, t)| (n.as_str(), host(t))).collect();
    let wanted = s.wanted();
    let fed: Vec<_> =
        fed.into_iter().filter(|(n, _)| wanted.iter().any(|w| w.name == *n)).collect();
    let batch = batch_of(&wanted, &fed).unwrap_or_else(|e| panic!("{e}"));
    s.micro(&batch).unwrap_or_else(|e| panic!("{e}"));
    plan.results
        .iter()
        .map(|r| (r.name.clone(), s.result(&r.name).unwrap_or_else(|e| panic!("{e}")).to_f32()))
        .collect()
}

/// Largest distance of a result from what it should be, relative to the largest element.
fn distance(have: &[(String, Vec<f32>)], want: &Evaluated) -> (f64, String) {
    let mut worst = (0.0, String::new());
    assert_eq!(have.len(), want.results.len());
    for (name, values) in have {
        let exact = want.results[name].reals();
        assert_eq!(values.len(), exact.len(), "{name}");
        let size = exact.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        for (a, b) in values.iter().zip(exact) {
            let e = (f64::from(*a) - b).abs() / size;
            if e > worst.0 || e.is_nan() {
                worst = (if e.is_nan() { f64::INFINITY } else { e }, name.clone());
            }
        }
    }
    worst
}

/// The graph that was scheduled, with 16-bit formats on those values alone that the plan stores: a
/// chain of operations that is one kernel rounds only where it stores.
fn rounds_where_stored(g: &Graph, plan: &Plan) -> Graph {
    let narrow = |d: DType| d.is_real() && d.size() < 4;
    let stored: BTreeSet<&str> =
        plan.tensors.iter().filter(|t| narrow(t.dtype)).map(|t| t.name.as_str()).collect();
    // A cast of a parameter, or of a view of one, is the copy that the update writes.
    let of_parameter = |mut v: ValueId| loop {
        let def = g.def(v);
        match def.op {
            Op::Var(_) => return true,
            ref op if op.lowering() == Lowering::View => v = def.inputs[0],
            _ => return false,
        }
    };
    let mut out = g.clone();
    for (_, node) in g.nodes() {
        for (i, &v) in node.outputs.iter().enumerate() {
            let name = match node.outputs.len() {
                1 => node.name.clone(),
                _ => format!("{}.{i}", node.name),
            };
            let copy = matches!(node.op, Op::Cast(_)) && of_parameter(node.inputs[0]);
            if narrow(g.ty(v).dtype) && !copy && !stored.contains(name.as_str()) {
                out.set_dtype(v, DType::F32);
            }
        }
    }
    out
}

#[test]
fn plans_compute_what_graphs_mean() {
    for seed in 0..300 {
        let case = RandomCase::new(seed);
        let g = case.differentiated();
        let plan = common::lower(&g, Policy::F32);
        let one = run(&plan, &case, 1);
        assert!(one == run(&plan, &case, 2), "seed {seed}: two threads differ from one");
        let want = eval(&g, &case.inputs, &case.vars).unwrap_or_else(|e| panic!("{e}"));
        let (e, name) = distance(&one, &want);
        assert!(e <= 2e-5, "seed {seed}, {name}: off by {e:e}\n{}", describe(&case));
    }
}

#[test]
fn plans_in_16_bits_round_where_they_store() {
    let (mut off, mut narrow) = (vec![], 0);
    for seed in 0..200 {
        let case = RandomCase::new(seed);
        let (g, plan) = common::lowered(&case.differentiated(), Policy::Bf16);
        narrow += u32::from(plan.tensors.iter().any(|t| t.dtype == DType::Bf16));
        let g = rounds_where_stored(&g, &plan);
        let want = eval_with(&g, &case.inputs, &case.vars, &reference::Options::STORED)
            .unwrap_or_else(|e| panic!("{e}"));
        let (e, name) = distance(&run(&plan, &case, 2), &want);
        if e > 2e-5 {
            println!("seed {seed}, {name}: {e:e}");
            off.push((seed, name, e));
        }
    }
    assert!(off.is_empty(), "{off:?}");
    assert!(narrow > 60, "{narrow} plans with bf16 in them");
}

//! Random differentiated graphs through e-graph, schedule and the CPU backend, against the
//! interpreter.

mod common;
#[path = "../compiler/tests/semantics/random.rs"]
mod random;
#[path = "../compiler/tests/semantics/rng.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod rng;
mod run_case;
#[path = "../compiler/tests/semantics/views.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod views;

use precast_compiler::ir::{Graph, Result_, ValueId};
use precast_compiler::ops::{Cast, Lowering, Op};
use precast_compiler::precision::Policy;
use precast_compiler::reference::{self, eval, eval_with};
use precast_plan::{DType, Plan};
use random::{RandomCase, describe};
use run_case::{distance, run};
use std::collections::{BTreeMap, BTreeSet};

/// A value of a graph that was scheduled, in one that rounds where the plan does.
#[derive(Clone)]
struct Seen {
    /// By step that computes it: what that kernel has in registers.
    raw: BTreeMap<usize, ValueId>,
    /// What others read.
    stored: ValueId,
}

/// The graph that was scheduled, rounding where the plan does: a value is rounded where it is stored,
/// and the kernel that computes it goes on with what it has in registers. So a 16-bit value is an f32
/// one in every step that computes it, for the schedule may have it computed again where it is read,
/// and for readers in other steps it is the cast of what its first step has.
fn rounds_where_stored(g: &Graph, plan: &Plan) -> Graph {
    let narrow = |d: DType| d.is_real() && d.size() < 4;
    let stored: BTreeSet<&str> =
        plan.tensors.iter().filter(|t| narrow(t.dtype)).map(|t| t.name.as_str()).collect();
    let mut steps: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (k, step) in plan.micro.iter().chain(&plan.update).enumerate() {
        for op in &step.ops {
            steps.entry(op).or_default().insert(k);
        }
    }
    // What no step computes, such as a parameter.
    let nowhere = BTreeSet::from([usize::MAX]);
    // A cast of a parameter, or of a view of one, is the copy that the update writes.
    let of_parameter = |mut v: ValueId| loop {
        let def = g.def(v);
        match def.op {
            Op::Var(_) => return true,
            ref op if op.lowering() == Lowering::View => v = def.inputs[0],
            _ => return false,
        }
    };
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let mut seen: Vec<Seen> = vec![];
    for (_, node) in g.nodes() {
        let mut push = |inputs: &[ValueId], round: bool, name: String| {
            let types = node.outputs.iter().map(|&v| {
                let mut ty = g.ty(v).clone();
                if narrow(ty.dtype) && !round {
                    ty.dtype = DType::F32;
                }
                ty
            });
            out.push(node.op.clone(), inputs, types.collect(), name, node.region)
        };
        if node.op.lowering() == Lowering::View {
            let of = seen[node.inputs[0].0 as usize].clone();
            let raw = of.raw.iter().map(|(&k, &v)| {
                let name = format!("{}.in{k}", node.name);
                (k, push(&[v], false, name)[0])
            });
            let raw = raw.collect();
            let stored = push(&[of.stored], true, format!("{}.read", node.name))[0];
            seen.push(Seen { raw, stored });
            continue;
        }
        let copy = matches!(node.op, Op::Cast(_)) && of_parameter(node.inputs[0]);
        let own = steps.get(node.name.as_str()).unwrap_or(&nowhere);
        let mut raw = vec![BTreeMap::new(); node.outputs.len()];
        for &k in own {
            let read = |v: &ValueId| {
                let of = &seen[v.0 as usize];
                *of.raw.get(&k).filter(|_| k != usize::MAX).unwrap_or(&of.stored)
            };
            let inputs: Vec<ValueId> = node.inputs.iter().map(read).collect();
            let made = push(&inputs, copy, format!("{}.in{k}", node.name));
            raw.iter_mut().zip(made).for_each(|(raw, v)| _ = raw.insert(k, v));
        }
        for (i, (&v, raw)) in node.outputs.iter().zip(raw).enumerate() {
            let name = match node.outputs.len() {
                1 => node.name.clone(),
                _ => format!("{}.{i}", node.name),
            };
            // What is computed again is read where it was computed first.
            let first = *raw.values().next().expect("a step at least");
            let stored = if narrow(g.ty(v).dtype) && !copy && stored.contains(name.as_str()) {
                let (ty, name) = (g.ty(v).clone(), format!("{name}.stored"));
                out.push(Op::Cast(Cast {}), &[first], vec![ty], name, node.region)[0]
            } else {
                first
            };
            seen.push(Seen { raw, stored });
        }
    }
    let read = |rs: &[Result_]| -> Vec<Result_> {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: seen[r.value.0 as usize].stored })
            .collect()
    };
    (out.results, out.updates) = (read(&g.results), read(&g.updates));
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

/// Where finite differences are no judge: every corner and tie of these graphs is exact in f32.
#[test]
fn plans_at_edges_compute_what_graphs_mean() {
    let mut ties = 0;
    for seed in 0..300 {
        let case = RandomCase::at_edges(seed);
        let g = case.differentiated();
        let plan = common::lower(&g, Policy::F32);
        let want = eval(&g, &case.inputs, &case.vars).unwrap_or_else(|e| panic!("{e}"));
        let (e, name) = distance(&run(&plan, &case, 1), &want);
        assert!(e <= 2e-6, "seed {seed}, {name}: off by {e:e}\n{}", describe(&case));
        ties += g.nodes().filter(|(_, n)| matches!(n.op, Op::ExtremumGrad(_))).count();
    }
    assert!(ties > 100, "{ties} extrema");
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
        // A sum in another order may fall on the other side of a rounding, which is one unit of bf16
        // in one value.
        assert!(e <= 1.0 / 256.0, "seed {seed}, {name}: off by {e:e}\n{}", describe(&case));
        if e > 2e-5 {
            off.push((seed, name, e));
        }
    }
    assert!(off.len() <= 4, "{off:?}");
    assert!(narrow > 60, "{narrow} plans with bf16 in them");
}

/// The plan of a case for a target, run by the CPU backend whatever the target.
fn follows(case: &RandomCase, target: &str, what: &str) {
    let g = case.differentiated();
    let (_, mut plan) = common::lowered_for(target, &g, Policy::F32);
    plan.target.device = "cpu".into();
    let want = eval(&g, &case.inputs, &case.vars).unwrap_or_else(|e| panic!("{e}"));
    let (e, name) = distance(&run(&plan, case, 2), &want);
    assert!(e <= 2e-5, "{what} for {target}, {name}: off by {e:e}\n{}", describe(case));
}

/// Plans of both kinds of target, for kernels all of whose operands are views.
#[test]
fn kernels_take_any_view() {
    for kernel in views::KERNELS {
        for seed in 0..60 {
            let case = views::of_kernel(kernel, seed);
            let what = format!("`{kernel}`, seed {seed}");
            ["cpu-generic", "h100"].iter().for_each(|t| follows(&case, t, &what));
        }
    }
}

/// Sums of branches that are enlarged: fusion splits their axes, and a plan's spaces have few.
#[test]
fn enlarged_branches_make_valid_plans() {
    for seed in 0..150 {
        let case = views::of_branches(seed);
        let what = format!("branches, seed {seed}");
        ["cpu-generic", "h100"].iter().for_each(|t| follows(&case, t, &what));
    }
}

//! Properties of random graphs.

use crate::random::{RandomCase, describe};
use crate::rng::Rng;
use precast_compiler::ir::verify;
use precast_compiler::ops::Op;
use precast_compiler::reference::{Options, eval, eval_with};
use precast_compiler::text;

const CASES: u64 = 300;

fn loss(case: &RandomCase) -> f64 {
    let out = eval(&case.graph, &case.inputs, &case.vars).unwrap_or_else(|e| panic!("{e}"));
    out.results["loss"].reals()[0]
}

#[test]
fn the_reverse_sweep_matches_finite_differences() {
    let (mut checked, mut kinks) = (0, 0);
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        let g = case.differentiated();
        verify::verify(&g).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", text::print(&g)));
        let out = eval(&g, &case.inputs, &case.vars).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(out.results["loss"].reals()[0], loss(&case), "seed {seed}");
        let mut rng = Rng(seed);
        for (name, t) in &case.vars {
            let direction = rng.reals(t.shape().clone(), -1.0, 1.0);
            let slope = |h: f64| {
                let side = |s: f64| {
                    let mut moved = case.clone();
                    let p = moved.vars[name].reals_mut();
                    p.iter_mut().zip(direction.reals()).for_each(|(p, d)| *p += s * d);
                    loss(&moved)
                };
                (side(h) - side(-h)) / (2.0 * h)
            };
            let have: f64 = out
                .results
                .get(&format!("grad.{name}"))
                .map_or(0.0, |g| g.reals().iter().zip(direction.reals()).map(|(g, d)| g * d).sum());
            let (wide, narrow) = (slope(1e-5), slope(2.5e-6));
            let tolerance = 1e-6 * (1.0 + have.abs());
            if (wide - narrow).abs() > tolerance {
                // A maximum changes hands within the step: there is no derivative to compare with.
                kinks += 1;
                continue;
            }
            checked += 1;
            assert!(
                (wide - have).abs() <= 2.0 * tolerance,
                "seed {seed}, {name}: {have}, by differences {wide}\n{}",
                describe(&case)
            );
        }
    }
    assert!(checked > 1000 && kinks * 100 < checked, "{checked} checked, {kinks} left out");
}

#[test]
fn f32_evaluation_is_close() {
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        let exact = loss(&case);
        let out = eval_with(&case.graph, &case.inputs, &case.vars, &Options::STORED).unwrap();
        let stored = out.results["loss"].reals()[0];
        assert!(exact.is_finite() && exact.abs() < 1e6, "seed {seed}: {exact}");
        let close = (exact - stored).abs() <= 1e-4 * (1.0 + exact.abs());
        assert!(close, "seed {seed}: {exact} and {stored}\n{}", describe(&case));
    }
}

#[test]
fn text_reads_back() {
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        for g in [case.graph.clone(), case.differentiated()] {
            let printed = text::print(&g);
            let read = text::parse("random.ir", &printed)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}\n{printed}"));
            assert_eq!(text::print(&read), printed, "seed {seed}");
            assert_eq!(read.vars, g.vars, "seed {seed}");
            let ops = |g: &precast_compiler::ir::Graph| -> Vec<Op> {
                g.nodes().map(|(_, n)| n.op.clone()).collect()
            };
            assert_eq!(ops(&read), ops(&g), "seed {seed}");
        }
    }
}

#[test]
fn cases_are_varied_and_repeat() {
    let mut seen = std::collections::BTreeSet::new();
    let mut sizes = vec![];
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        assert_eq!(text::print(&case.graph), text::print(&RandomCase::new(seed).graph));
        assert_eq!(case.vars, RandomCase::new(seed).vars);
        seen.extend(case.graph.nodes().map(|(_, n)| n.op.name()));
        sizes.push(case.graph.node_count());
    }
    for name in [
        "unary",
        "binary",
        "select",
        "scale",
        "scale_by",
        "activate",
        "dropout",
        "reshape",
        "transpose",
        "broadcast",
        "slice",
        "concat",
        "pad",
        "reduce",
        "matmul",
        "conv2d",
        "max_pool2d",
        "gather",
        "softmax",
        "layer_norm",
        "batch_norm",
        "cross_entropy",
        "attention",
    ] {
        assert!(seen.contains(name), "no case has `{name}`");
    }
    assert!(sizes.iter().max() > Some(&60), "the largest has {:?} nodes", sizes.iter().max());
}

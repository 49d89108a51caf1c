//! The joint graph of a training step on random models, through the interpreter.

use crate::random::RandomCase;
use indexmap::IndexMap;
use precast_compiler::autodiff::{
    LrCurve, LrSpec, Normalize, OnNonfinite, OptimizerSpec, ScaleSpec, TrainSpec, joint,
};
use precast_compiler::ir::{Graph, VarInit, VarRole};
use precast_compiler::reference::{Evaluated, Options, Tensor, eval, eval_with};

const LR: f64 = 0.125;
const CASES: u64 = 60;

fn spec() -> TrainSpec {
    TrainSpec {
        optimizer: OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
        lr: LrSpec { lr: LR, warmup_steps: 0, curve: LrCurve::Constant },
        accumulate: 1,
        normalize: Normalize::Whole,
        on_nonfinite: OnNonfinite::Skip,
        clip_norm: None,
        ema: None,
        no_decay_vectors: false,
        frozen: vec![],
        frozen_rows: vec![],
        scale: None,
    }
}

/// The joint graph and every variable as it begins; `None` where the loss is constant.
fn step(case: &RandomCase, spec: &TrainSpec) -> Option<(Graph, IndexMap<String, Tensor>)> {
    let g = match joint(case.graph.clone(), case.loss, spec, true) {
        Ok(g) => g,
        Err(e) if e.0[0].code == "P0405" => return None,
        Err(e) => panic!("{e}"),
    };
    let mut vars = case.vars.clone();
    for (name, var) in &g.vars {
        let t = match &var.init {
            VarInit::Value(x) => Tensor::scalar(*x),
            VarInit::CopyOf(of) => vars[of].clone(),
            VarInit::Zeros => Tensor::zeros(&var.ty),
            _ => continue,
        };
        vars.insert(name.clone(), t);
    }
    Some((g, vars))
}

fn gradients(case: &RandomCase) -> IndexMap<String, Tensor> {
    let out = eval(&case.differentiated(), &case.inputs, &case.vars).unwrap();
    let named = |(k, v): (String, Tensor)| Some((k.strip_prefix("grad.")?.to_string(), v));
    out.results.into_iter().filter_map(named).collect()
}

/// Every parameter with a gradient moved by `−LR · factor · gradient`.
fn check_step(case: &RandomCase, out: &Evaluated, factor: f64, tolerance: f64) {
    for (name, g) in gradients(case) {
        let (old, new) = (case.vars[&name].reals(), out.updates[&name].reals());
        for ((o, n), g) in old.iter().zip(new).zip(g.reals()) {
            let want = o - LR * factor * g;
            assert!((n - want).abs() <= tolerance * (1.0 + want.abs()), "{name}: {n}, not {want}");
        }
    }
}

#[test]
fn plain_sgd_scaled_or_not_moves_against_the_gradient() {
    let mut done = 0;
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        for scale in [None, Some(ScaleSpec { init: 1024.0, ..ScaleSpec::default() })] {
            let Some((g, vars)) = step(&case, &TrainSpec { scale, ..spec() }) else { continue };
            let out = eval(&g, &case.inputs, &vars).unwrap();
            check_step(&case, &out, 1.0, 1e-12);
            let square: f64 =
                gradients(&case).values().flat_map(|g| g.reals()).map(|x| x * x).sum();
            let norm = out.results["grad_norm"].reals()[0];
            assert!((norm - square.sqrt()).abs() <= 1e-9 * (1.0 + norm), "seed {seed}: {norm}");
            done += 1;
        }
    }
    assert!(done > CASES, "{done}");
}

#[test]
fn the_last_batch_of_an_accumulation_applies_the_mean_and_resets() {
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        let scale = Some(ScaleSpec { init: 64.0, ..ScaleSpec::default() });
        let spec = TrainSpec { accumulate: 4, scale, ..spec() };
        let Some((g, mut vars)) = step(&case, &spec) else { continue };
        // Three equal batches have gone before.
        for (name, grad) in gradients(&case) {
            let mut sum = grad;
            sum.reals_mut().iter_mut().for_each(|x| *x *= 64.0 * 0.75);
            vars.insert(format!("{name}.accumulated"), sum);
        }
        let out = eval(&g, &case.inputs, &vars).unwrap();
        check_step(&case, &out, 1.0, 1e-12);
        for name in gradients(&case).keys() {
            let left = &out.updates[&format!("{name}.accumulated")];
            assert!(left.reals().iter().all(|&x| x == 0.0), "seed {seed}, {name}");
        }
    }
}

#[test]
fn clipping_scales_every_gradient_by_one_factor() {
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        let Some((g, vars)) = step(&case, &TrainSpec { clip_norm: Some(0.25), ..spec() }) else {
            continue;
        };
        let out = eval(&g, &case.inputs, &vars).unwrap();
        let norm = out.results["grad_norm"].reals()[0];
        check_step(&case, &out, (0.25 / (norm + 1e-6)).min(1.0), 1e-7);
    }
}

#[test]
fn an_overflow_changes_nothing_but_the_scale() {
    let (mut skipped, mut applied) = (0, 0);
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        let scale = ScaleSpec { interval: 2, ..ScaleSpec::default() };
        let optimizer = OptimizerSpec::Adam {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            decoupled: true,
        };
        let spec = TrainSpec { optimizer, scale: Some(scale), ema: Some(0.9), ..spec() };
        let Some((g, mut vars)) = step(&case, &spec) else { continue };
        let mut run = |scale: f64, tracker: f64| {
            vars.insert("machine.loss_scale".into(), Tensor::scalar(scale));
            vars.insert("machine.growth_tracker".into(), Tensor::scalar(tracker));
            eval_with(&g, &case.inputs, &vars, &Options::STORED).unwrap()
        };
        let real = |out: &Evaluated, name: &str| out.updates[name].reals()[0];
        let state = |out: &Evaluated| {
            (real(out, "machine.loss_scale"), real(out, "machine.growth_tracker"))
        };
        let huge = 2f64.powi(127);
        let out = run(huge, 1.0);
        if out.results["skipped"].reals() == [1.0] {
            skipped += 1;
            assert_eq!(state(&out), (huge / 2.0, 0.0), "seed {seed}");
            assert_eq!(real(&out, "machine.iteration"), 1.0);
            assert_eq!(real(&out, "machine.applied"), 0.0);
            for (name, new) in &out.updates {
                if !name.starts_with("machine.") {
                    assert_eq!(new, &g_value(&case, &g, name), "seed {seed}, {name}");
                }
            }
        }
        for (tracker, after) in [(0.0, (4.0, 1.0)), (1.0, (8.0, 0.0))] {
            let out = run(4.0, tracker);
            assert_eq!(out.results["skipped"].reals(), [0.0], "seed {seed}");
            assert_eq!((state(&out), real(&out, "machine.applied")), (after, 1.0), "seed {seed}");
            applied += 1;
        }
    }
    assert!(skipped > 10 && applied > 10, "{skipped} skipped, {applied} applied");
}

/// Without a loss scale: a step with an infinite gradient changes no variable but the mark that the
/// run has stopped, behind which a step in order changes nothing either.
#[test]
fn a_gradient_that_is_not_finite_stops_every_later_step() {
    let mut stopped = 0;
    for seed in 0..CASES {
        let case = RandomCase::new(seed);
        let spec = TrainSpec { on_nonfinite: OnNonfinite::Stop, ema: Some(0.9), ..spec() };
        let Some((g, vars)) = step(&case, &spec) else { continue };
        let mut bad = vars.clone();
        for (name, t) in &mut bad {
            if g.vars[name].role == VarRole::Param {
                t.reals_mut().iter_mut().for_each(|x| *x = f64::INFINITY);
            }
        }
        let out = eval_with(&g, &case.inputs, &bad, &Options::STORED).unwrap();
        if out.results["skipped"].reals() != [1.0] {
            continue;
        }
        stopped += 1;
        assert_eq!(out.updates["machine.step.stopped"].reals(), [1.0], "seed {seed}");
        let mut after = vars.clone();
        after.insert("machine.step.stopped".into(), Tensor::scalar(1.0));
        for (what, out, vars) in [
            ("at fault", out, &bad),
            ("behind", eval_with(&g, &case.inputs, &after, &Options::STORED).unwrap(), &after),
        ] {
            assert_eq!(out.results["skipped"].reals(), [1.0], "seed {seed}, {what}");
            for (name, new) in &out.updates {
                if name != "machine.step.stopped" {
                    assert_eq!(new, &vars[name], "seed {seed}, {what}: {name}");
                }
            }
        }
        // In order, and nothing before it was not: as without the mark.
        let out = eval(&g, &case.inputs, &vars).unwrap();
        assert_eq!(out.updates["machine.step.stopped"].reals(), [0.0], "seed {seed}");
        check_step(&case, &out, 1.0, 1e-12);
    }
    assert!(stopped > 10, "{stopped}");
}

/// How a variable begins.
fn g_value(case: &RandomCase, g: &Graph, name: &str) -> Tensor {
    match &g.vars[name].init {
        VarInit::CopyOf(of) => case.vars[of].clone(),
        VarInit::Zeros => Tensor::zeros(&g.vars[name].ty),
        _ => case.vars[name].clone(),
    }
}

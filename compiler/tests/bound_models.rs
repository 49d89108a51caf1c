//! Whole compilations of random models: no plan is predicted below its own bound, nor below the
//! bound of `auto`, whatever policy and pins it was made under.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Options};
use precast_plan::{Plan, Target};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

mod tables;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.roll(list.len())]
    }
}

/// A graph as text, while it is made.
#[derive(Default)]
struct Text {
    vars: String,
    code: String,
}

impl Text {
    fn param(&mut self, name: &str, dims: &str) {
        writeln!(self.vars, "var {name}: f32[{dims}] param uniform(0.2, 1)").unwrap();
        self.line(format!("%{name} = var {{name=\"{name}\"}} : f32[{dims}] @{name}"));
    }

    fn line(&mut self, line: String) {
        writeln!(self.code, "  {line}").unwrap();
    }

    /// A vector, repeated along rows, as `%a{i}`.
    fn row(&mut self, i: usize, name: &str, rows: usize, w: usize) {
        self.line(format!("%r{i} = reshape %{name} {{shape=[1,{w}]}} @r{i}"));
        self.line(format!("%a{i} = broadcast %r{i} {{shape=[{rows},{w}]}} @a{i}"));
    }

    fn finish(mut self, at: &str, features: usize) -> String {
        self.param("head", &format!("{features},16"));
        self.line(format!("%logits = matmul %{at}, %head {{fused=none}} @logits"));
        let Text { vars, code } = self;
        format!("graph random\n\n{vars}\nforward:\n{code}\nresult out.logits = %logits\n")
    }
}

/// Rows of features: products with a bias and activations that are read twice, norms, softmax also
/// over an axis of one element, attention, parts put together.
fn rows(dice: &mut Dice) -> (usize, String) {
    let (n, w) = (dice.of(&[16, 64, 256]), dice.of(&[16, 32, 128, 512]));
    let mut t = Text::default();
    t.line(format!("%v0 = input {{name=\"x\"}} : f32[{n},{w}] @x"));
    let (mut at, mut older) = (0, 0);
    for i in 1..=3 + dice.roll(5) {
        match dice.roll(14) {
            0 | 1 => {
                t.param(&format!("w{i}"), &format!("{w},{w}"));
                t.param(&format!("b{i}"), &w.to_string());
                t.line(format!("%p{i} = matmul %v{at}, %w{i} {{fused=none}} @p{i}"));
                t.row(i, &format!("b{i}"), n, w);
                let act = dice.of(&["gelu", "gelu_tanh", "relu"]);
                t.line(format!("%s{i} = binary %p{i}, %a{i} {{f=add}} @s{i}"));
                t.line(format!("%g{i} = activate %s{i} {{act={act}}} @g{i}"));
                let second = dice.of(&["s", "p", "a", "g"]);
                t.line(format!("%v{i} = binary %g{i}, %{second}{i} {{f=add}} @v{i}"));
            }
            2 => {
                t.param(&format!("w{i}"), &format!("{w},{w}"));
                t.line(format!("%v{i} = matmul %v{at}, %w{i} {{fused=none}} @v{i}"));
            }
            13 => {
                t.param(&format!("w{i}"), &format!("{w},{}", 3 * w));
                t.line(format!("%p{i} = matmul %v{at}, %w{i} {{fused=none}} @p{i}"));
                for (part, start) in [("q", 0), ("k", w), ("u", 2 * w)] {
                    t.line(format!(
                        "%{part}s{i} = slice %p{i} {{starts=[0,{start}], sizes=[{n},{w}], \
                         steps=[1,1]}} @{part}s{i}"
                    ));
                    let half = w / 2;
                    t.line(format!(
                        "%{part}h{i} = reshape %{part}s{i} {{shape=[1,{n},2,{half}]}} @{part}h{i}"
                    ));
                    t.line(format!(
                        "%{part}t{i} = transpose %{part}h{i} {{perm=[0,2,1,3]}} @{part}t{i}"
                    ));
                }
                t.line(format!(
                    "%o{i}, %lse{i}, %low{i} = attention %qt{i}, %kt{i}, %ut{i} \
                     {{scale=0.25, causal=true, masked=false}} @o{i}"
                ));
                t.line(format!("%x{i} = transpose %o{i} {{perm=[0,2,1,3]}} @x{i}"));
                t.line(format!("%v{i} = reshape %x{i} {{shape=[{n},{w}]}} @v{i}"));
            }
            // The gradient of this activation may leave the product that makes its cotangent.
            12 => {
                t.param(&format!("w{i}"), &format!("{w},{}", 2 * w));
                t.param(&format!("b{i}"), &(2 * w).to_string());
                t.param(&format!("u{i}"), &format!("{},{w}", 2 * w));
                t.line(format!("%p{i} = matmul %v{at}, %w{i} {{fused=none}} @p{i}"));
                t.row(i, &format!("b{i}"), n, 2 * w);
                t.line(format!("%s{i} = binary %p{i}, %a{i} {{f=add}} @s{i}"));
                t.line(format!("%g{i} = activate %s{i} {{act=gelu_tanh}} @g{i}"));
                t.line(format!("%v{i} = matmul %g{i}, %u{i} {{fused=none}} @v{i}"));
            }
            3 => {
                let act = dice.of(&["gelu", "gelu_tanh", "relu", "silu"]);
                t.line(format!("%v{i} = activate %v{at} {{act={act}}} @v{i}"));
            }
            4 => {
                t.param(&format!("g{i}"), &w.to_string());
                t.param(&format!("o{i}"), &w.to_string());
                t.line(format!(
                    "%v{i}, %m{i}, %s{i} = layer_norm %v{at}, %g{i}, %o{i} \
                     {{eps=1e-5, axes=1, center=true}} @v{i}"
                ));
            }
            5 => {
                let f = dice.of(&["add", "mul", "sub"]);
                t.line(format!("%v{i} = binary %v{at}, %v{older} {{f={f}}} @v{i}"));
            }
            6 => {
                t.line(format!("%t{i} = transpose %v{older} {{perm=[1,0]}} @t{i}"));
                t.line(format!("%q{i} = matmul %v{at}, %t{i} {{fused=none}} @q{i}"));
                t.line(format!("%f{i} = softmax %q{i} {{log=false}} @f{i}"));
                t.line(format!("%v{i} = matmul %f{i}, %v{at} {{fused=none}} @v{i}"));
            }
            7 => {
                let half = w / 2;
                for (part, start) in [("l", half), ("h", 0)] {
                    t.line(format!(
                        "%{part}{i} = slice %v{at} {{starts=[0,{start}], sizes=[{n},{half}], \
                         steps=[1,1]}} @{part}{i}"
                    ));
                }
                t.line(format!("%e{i} = activate %l{i} {{act=silu}} @e{i}"));
                t.line(format!("%c{i} = concat %e{i}, %h{i} {{axis=1}} @c{i}"));
                t.line(format!("%y{i} = activate %e{i} {{act=relu}} @y{i}"));
                t.line(format!("%z{i} = concat %y{i}, %e{i} {{axis=1}} @z{i}"));
                t.line(format!("%v{i} = binary %c{i}, %z{i} {{f=add}} @v{i}"));
            }
            8 => {
                t.line(format!("%k{i} = reshape %v{at} {{shape=[{},1]}} @k{i}", n * w));
                t.line(format!("%n{i} = softmax %k{i} {{log=false}} @n{i}"));
                t.line(format!("%y{i} = reshape %n{i} {{shape=[{n},{w}]}} @y{i}"));
                t.line(format!("%v{i} = binary %y{i}, %v{at} {{f=mul}} @v{i}"));
            }
            9 => {
                t.line(format!("%s{i} = softmax %v{at} {{log=false}} @s{i}"));
                t.line(format!("%v{i} = binary %s{i}, %v{at} {{f=mul}} @v{i}"));
            }
            10 => {
                t.line(format!("%d{i} = reduce %v{at} {{f=sum, axes=[1]}} @d{i}"));
                t.line(format!("%e{i} = reshape %d{i} {{shape=[{n},1]}} @e{i}"));
                t.line(format!("%f{i} = broadcast %e{i} {{shape=[{n},{w}]}} @f{i}"));
                t.line(format!("%v{i} = binary %f{i}, %v{at} {{f=sub}} @v{i}"));
            }
            _ => {
                t.line(format!("%y{i} = unary %v{at} {{f=tanh}} @y{i}"));
                t.line(format!("%v{i} = binary %y{i}, %v{at} {{f=mul}} @v{i}"));
            }
        }
        if dice.roll(3) == 0 {
            older = at;
        }
        at = i;
    }
    (n, t.finish(&format!("v{at}"), w))
}

/// Images: convolutions, batch norms, pools, residuals.
fn images(dice: &mut Dice) -> (usize, String) {
    let n = dice.of(&[4, 16, 64]);
    let (mut c, mut side) = (dice.of(&[3, 8, 16, 64]), dice.of(&[4, 8, 16]));
    let mut t = Text::default();
    t.line(format!("%v0 = input {{name=\"x\"}} : f32[{n},{c},{side},{side}] @x"));
    let mut at = 0;
    // What has the shape of the last value.
    let mut like = vec![0];
    for i in 1..=3 + dice.roll(5) {
        match dice.roll(7) {
            k @ (0..=2) if k < 2 || i == 1 => {
                let (out, kernel) = (dice.of(&[c, 16, 32]), dice.of(&[1, 3]));
                let p = kernel / 2;
                t.param(&format!("w{i}"), &format!("{out},{c},{kernel},{kernel}"));
                t.line(format!(
                    "%v{i} = conv2d %v{at}, %w{i} {{stride=[1,1], pad=[{p},{p},{p},{p}], \
                     dilation=[1,1], groups=1}} @v{i}"
                ));
                if out != c {
                    like.clear();
                }
                c = out;
            }
            2 => {
                t.param(&format!("g{i}"), &c.to_string());
                t.param(&format!("o{i}"), &c.to_string());
                t.line(format!(
                    "%v{i}, %m{i}, %s{i} = batch_norm %v{at}, %g{i}, %o{i} {{eps=1e-5}} @v{i}"
                ));
            }
            3 if !like.is_empty() => {
                let other = dice.of(&like);
                t.line(format!("%v{i} = binary %v{at}, %v{other} {{f=add}} @v{i}"));
            }
            4 if side >= 4 => {
                t.line(format!(
                    "%v{i}, %x{i} = max_pool2d %v{at} {{kernel=[2,2], stride=[2,2], \
                     pad=[0,0,0,0]}} @v{i}"
                ));
                side /= 2;
                like.clear();
            }
            _ => {
                let act = dice.of(&["relu", "relu", "silu"]);
                t.line(format!("%v{i} = activate %v{at} {{act={act}}} @v{i}"));
            }
        }
        at = i;
        like.push(i);
    }
    let features = c * side * side;
    t.line(format!("%flat = reshape %v{at} {{shape=[{n},{features}]}} @flat"));
    (n, t.finish("flat", features))
}

struct Model<'a> {
    folder: &'a Path,
    batch: usize,
    train: String,
    /// `device = …` or `table = …`.
    target: String,
    allow: &'a str,
}

impl Model<'_> {
    /// `None` where the target has not what the policy asks for, or pins are refused.
    fn plan(&self, policy: &str, pins: &[(String, &str)]) -> Option<Plan> {
        let file = self.folder.join("random.pir");
        let pins: Vec<String> =
            pins.iter().map(|(op, d)| format!("{{ op = \"{op}\", dtype = \"{d}\" }}")).collect();
        let Model { train, target, allow, .. } = self;
        let recipe = format!(
            "model = {file:?}\n[data]\ntargets = {{ targets = \"targets\" }}\n\
             [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
             {train}\n[precision]\npolicy = \"{policy}\"\nallow = [{allow}]\npins = [{}]\n\
             [target]\n{target}\n",
            pins.join(", ")
        );
        let recipe = Recipe::parse(Path::new("recipe.toml"), &recipe);
        let recipe = recipe.unwrap_or_else(|e| panic!("{e}"));
        let shapes = BTreeMap::from([("targets".to_string(), vec![self.batch])]);
        match pipeline::compile(&recipe, &Options { shapes, ..Options::default() }) {
            Ok(c) => Some(c.plan),
            Err(e) => {
                let e = e.to_string();
                assert!(policy != "auto" || !pins.is_empty(), "{e}");
                assert!(e.contains("P05"), "{e}");
                None
            }
        }
    }
}

#[test]
fn no_policy_is_below_the_bound_of_auto() {
    let folder = tempfile::tempdir().unwrap();
    let mut dice = Dice(7);
    let mut targets = Target::SHIPPED.iter().cycle();
    let (mut plans, mut gaps, mut open) = (0, vec![], 0);
    for seed in 0..66 {
        let (batch, text) = if seed % 2 == 0 { rows(&mut dice) } else { images(&mut dice) };
        std::fs::write(folder.path().join("random.pir"), &text).unwrap();
        let optimizer = dice.of(&[
            "kind = \"sgd\"\nlr = 0.1",
            "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9",
            "kind = \"adamw\"\nlr = 1e-3",
        ]);
        let (micro, clip) = (dice.of(&[1, 1, 3]), dice.of(&["", "clip_norm = 1.0\n"]));
        let allow = dice.of(&["", "\"tf32\"", "\"fp8\"", "\"tf32\", \"fp8\""]);
        let model = Model {
            folder: folder.path(),
            batch,
            train: format!(
                "[optimizer]\n{optimizer}\n[train]\nsteps = 1\naccumulate = {micro}\n{clip}"
            ),
            target: format!("device = \"{}\"", targets.next().unwrap()),
            allow,
        };
        let auto = model.plan("auto", &[]).expect("auto has a plan");
        let bound = auto.summary.bound.clone().expect("formats were chosen");
        let mut check = |plan: &Plan, what: &str| {
            let s = &plan.summary;
            let own = s.bound.as_ref().expect("formats were chosen");
            let least = if bound.open == 0 { bound.ns.max(own.ns) } else { own.ns };
            assert!(
                least <= s.predicted_ns * (1.0 + 1e-9),
                "{} {what}: predicted {} ns, bounds {own:?} and {bound:?}\n{text}",
                model.target,
                s.predicted_ns
            );
            plans += 1;
        };
        check(&auto, "auto");
        gaps.push(bound.gap(auto.summary.predicted_ns));
        open += usize::from(bound.open > 0);
        let mut policies = vec!["f32", "bf16", "f16"];
        policies.extend(["tf32", "fp8"].iter().filter(|p| allow.contains(**p)));
        for policy in policies {
            if let Some(plan) = model.plan(policy, &[]) {
                check(&plan, policy);
            }
        }
        let formats = |w: &str| w.starts_with("operands in");
        let names: Vec<String> = auto
            .journal
            .iter()
            .filter(|d| d.rejected.iter().any(|r| formats(&r.what)))
            .map(|d| d.op.clone())
            .filter(|n| !n.contains(['*', '[']))
            .collect();
        for policy in ["auto", "bf16"] {
            let mut pins = vec![];
            for name in &names {
                if dice.roll(2) == 0 {
                    pins.push((name.clone(), dice.of(&["f32", "bf16", "f16"])));
                }
            }
            if let Some(plan) = model.plan(policy, &pins) {
                check(&plan, &format!("{policy} with {pins:?}"));
            }
        }
    }
    gaps.sort_by(f64::total_cmp);
    println!("{plans} plans, {open} models with open alternatives, gaps {gaps:?}");
    assert!(plans > 66 * 5, "most policies have plans: {plans}");
    assert!(open * 2 < gaps.len(), "most models are settled: {open}");
    assert!(gaps[gaps.len() / 2] < 0.35, "the bound is loose: {gaps:?}");
}

/// The same of every candidate of `auto`, which compilation checks in a build like this one, and with tables
/// that no machine need have: conversion that takes longer than what it saves, starts that take nothing.
#[test]
fn no_plan_is_below_its_bound_whatever_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.toml");
    let mut dice = Dice(5);
    for seed in 0..40 {
        let (batch, text) = if seed % 2 == 0 { rows(&mut dice) } else { images(&mut dice) };
        std::fs::write(folder.path().join("random.pir"), &text).unwrap();
        let table = tables::random(&mut |n| dice.roll(n));
        std::fs::write(&file, toml::to_string(&table).unwrap()).unwrap();
        let model = Model {
            folder: folder.path(),
            batch,
            train: "[optimizer]\nkind = \"adamw\"\nlr = 1e-3\n[train]\nsteps = 1".into(),
            target: format!("table = {file:?}"),
            allow: dice.of(&["", "\"tf32\"", "\"fp8\""]),
        };
        let auto = model.plan("auto", &[]).expect("auto has a plan");
        let bound = auto.summary.bound.as_ref().expect("formats were chosen");
        let ns = auto.summary.predicted_ns;
        assert!(bound.ns <= ns * (1.0 + 1e-9), "{ns} ns, {bound:?}, {table:?}\n{text}");
    }
}

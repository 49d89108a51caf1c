//! What a run says of a step it skipped is what `blame` says of it: with dropout, batch normalisation
//! and several batches a step, together.

use super::lab::Lab;
use serde_json::Value;

/// Dropout, batch normalisation, running means.
pub const MODEL: &str = r#"graph noisy
var machine.batch: i32[] machine value(0.0)
var machine.seed: i32[] machine value(0.0)
var w1: f32[3,16] param uniform(0.8, 1)
var g: f32[16] param value(1.0)
var b: f32[16] param zeros
var mean: f32[16] buffer zeros
var w2: f32[16,3] param uniform(0.6, 2)
forward:
  %x = input {name="x"} : f32[6,3] @x
  %w1 = var {name="w1"} : f32[3,16] @w1
  %g = var {name="g"} : f32[16] @g
  %b = var {name="b"} : f32[16] @b
  %old = var {name="mean"} : f32[16] @mean
  %w2 = var {name="w2"} : f32[16,3] @w2
  %seed = var {name="machine.seed"} : i32[] @seed
  %batch = var {name="machine.batch"} : i32[] @batch
  %one = const {data=i32[](1)} : i32[] @batch.one
  %next = binary %batch, %one {f=add} : i32[] @batch.next
  %h = matmul %x, %w1 {fused=none} @fc1
  %n, %m, %v = batch_norm %h, %g, %b {eps=1e-5} @norm
  %kept = scale %old {by=0.9} @mean.kept
  %new = scale %m {by=0.1} @mean.new
  %mean = binary %kept, %new {f=add} @mean.next
  %a = activate %n {act=relu} @act
  %d = dropout %a, %seed, %batch {p=0.3, stream=0} @drop
  %y = matmul %d, %w2 {fused=none} @fc2
result out.y = %y
update mean = %mean
update machine.batch = %next
"#;

/// Three batches a step, a loss scale that overflows now and then, averages.
pub const RECIPE: &str = r#"model = "model.pir"
[data]
format = "csv"
file = "data.csv"
batch = 6
inputs = { x = "a..c" }
targets = { t = "label" }
[loss]
kind = "cross_entropy"
[optimizer]
kind = "adamw"
lr = 0.01
[precision]
policy = "f16"
[loss_scale]
init = 16777216
interval = 2
[schedule]
kind = "cosine"
warmup = 2
[train]
steps = 14
accumulate = 3
ema = 0.9
clip_norm = 0.5
log = "log.jsonl"
checkpoint = 5
"#;

pub fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("model.pir", MODEL);
    lab.write("recipe.toml", RECIPE);
    let mut text = "a,b,c,label\n".to_string();
    for i in 0..50u32 {
        let x = |k: u32| f64::from((i * 7 + k * 5 + i * i) % 23) / 11.0 - 1.0;
        text += &format!("{:.3},{:.3},{:.3},{}\n", x(0), x(1), x(2), (i * 5 + i / 7) % 3);
    }
    lab.write("data.csv", &text);
    lab
}

#[test]
fn the_replay_of_a_run_is_that_of_blame() {
    let lab = lab();
    lab.ok(&["train", "recipe.toml"]);
    let lines = lab.text("log.jsonl");
    let lines: Vec<Value> =
        lines.lines().map(|l| serde_json::from_str(l).expect("an object")).collect();
    let skipped: Vec<&Value> = lines.iter().filter(|l| l["skipped"] == true).collect();
    let late = skipped.iter().filter(|l| l["step"].as_u64() > Some(6)).count();
    assert!(late > 0 && skipped.len() < lines.len(), "steps are skipped late, too: {lines:?}");
    for line in skipped {
        let step = line["step"].as_u64().expect("a number");
        let args = ["blame", "recipe.toml", "--json", "--step"];
        let of = |more: &[&str]| -> Value {
            let text = lab.ok(&[&args[..], &[&step.to_string()], more].concat());
            serde_json::from_str(&text).expect("one object")
        };
        let mut again = of(&[]);
        again["blame"]["updates_since"] = 0.into();
        assert_eq!(again["blame"], line["blame"], "step {step}");
        assert_eq!(again["loss"], line["loss"], "step {step}");
        assert_eq!((&again["scale"], &again["skipped"]), (&line["scale"], &true.into()));
        assert!(line["blame"]["operands"][0]["max"].is_number(), "{line}");
        if step > 5 {
            let mut resumed = of(&["--resume", "trained/checkpoint-5.safetensors"]);
            resumed["blame"]["updates_since"] = 0.into();
            assert_eq!(resumed["blame"], line["blame"], "step {step}");
        }
    }
}

//! A small model, its recipe and its data, as texts.

/// Two layers, 26 weights, batches of four.
pub const MODEL: &str = r#"graph small
var w1: f32[3,4] param uniform(0.5, 1)
var b1: f32[4] param zeros
var w2: f32[4,2] param uniform(0.5, 2)
forward:
  %x = input {name="x"} : f32[4,3]
  %w1 = var {name="w1"} : f32[3,4] @w1
  %b1 = var {name="b1"} : f32[4] @b1
  %w2 = var {name="w2"} : f32[4,2] @w2
  %h = matmul %x, %w1 {fused=none} @fc1
  %row = reshape %b1 {shape=[1,4]}
  %bias = broadcast %row {shape=[4,4]}
  %sum = binary %h, %bias {f=add}
  %act = activate %sum {act=relu}
  %y = matmul %act, %w2 {fused=none} @fc2
result out.y = %y
"#;

pub const RECIPE: &str = r#"model = "model.pir"
[data]
format = "csv"
file = "data.csv"
batch = 4
inputs = { x = "a..c" }
targets = { t = "label" }
[loss]
kind = "cross_entropy"
[optimizer]
kind = "sgd"
lr = 0.5
momentum = 0.9
[train]
steps = 4
seed = 3
"#;

/// Rows of three features and a label that they decide.
pub fn table(rows: u32) -> String {
    let mut text = "a,b,c,label\n".to_string();
    for i in 0..rows {
        let x = |k: u32| f64::from((i * 7 + k * 5) % 11) / 5.5 - 1.0;
        let label = u32::from(x(0) + x(1) > x(2));
        text += &format!("{:.3},{:.3},{:.3},{label}\n", x(0), x(1), x(2));
    }
    text
}

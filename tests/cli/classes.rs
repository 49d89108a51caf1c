//! Which axis of the prediction counts the classes.

use super::lab::Lab;
use super::stdout;
use precast_runtime::TensorFile;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// Logits of one row, [3,height,width], and its targets, [height,width].
fn row(height: usize, width: usize) -> (Vec<f32>, Vec<i64>) {
    let logits = (0..3 * height * width).map(|i| ((i * 7 + 3) % 11) as f32 / 4.0 - 1.0);
    let targets = (0..height * width).map(|i| [2, 0, -100, 1, 1][i % 5]);
    (logits.collect(), targets.collect())
}

/// A bias for each class on logits [2,3,height,width] that are data, eight rows of it, all alike.
fn pixels(height: usize, width: usize, loss: &str) -> Lab {
    let lab = Lab::new();
    let dims = format!("[2,3,{height},{width}]");
    lab.write(
        "model.pir",
        &format!(
            "graph pixels\nvar b: f32[3] param zeros\nforward:\n  \
             %x = input {{name=\"x\"}} : f32{dims}\n  %b = var {{name=\"b\"}} : f32[3] @b\n  \
             %row = reshape %b {{shape=[1,3,1,1]}}\n  %bias = broadcast %row {{shape={dims}}}\n  \
             %y = binary %x, %bias {{f=add}}\nresult out.y = %y\n"
        ),
    );
    let (x, t) = row(height, width);
    let x: Vec<u8> = x.repeat(8).iter().flat_map(|x| x.to_le_bytes()).collect();
    let t: Vec<u8> = t.repeat(8).iter().flat_map(|t| t.to_le_bytes()).collect();
    let tensors = [
        ("x", TensorView::new(Dtype::F32, vec![8, 3, height, width], &x).unwrap()),
        ("t", TensorView::new(Dtype::I64, vec![8, height, width], &t).unwrap()),
    ];
    serialize_to_file(tensors, None, &lab.path("data.safetensors")).unwrap();
    lab.write(
        "recipe.toml",
        &format!(
            "model = \"model.pir\"\n[data]\nformat = \"safetensors\"\nfile = \"data.safetensors\"\n\
             batch = 2\nsplit = 0.25\ninputs = {{ x = \"x\" }}\ntargets = {{ t = \"t\" }}\n[loss]\n\
             kind = \"cross_entropy\"\n{loss}[optimizer]\nkind = \"sgd\"\nlr = 1e-30\n[train]\n\
             steps = 2\n"
        ),
    );
    lab
}

/// Mean of −ln softmax over the pixels that count, its gradient for a bias for each class of axis
/// 1, and the share of pixels that are right. Written out over the pixels, in f64.
fn expected(height: usize, width: usize) -> (f64, [f64; 3], f64) {
    let (x, t) = row(height, width);
    let (mut loss, mut gradient, mut right, mut count) = (0.0, [0.0; 3], 0.0, 0.0);
    for (pixel, &target) in t.iter().enumerate().filter(|(_, t)| **t >= 0) {
        let logit = |c: usize| f64::from(x[c * height * width + pixel]);
        let total: f64 = (0..3).map(|c| logit(c).exp()).sum();
        loss += total.ln() - logit(target as usize);
        for (c, g) in gradient.iter_mut().enumerate() {
            *g += logit(c).exp() / total - f64::from(u8::from(c == target as usize));
        }
        right += f64::from(u8::from((0..3).all(|c| logit(c) <= logit(target as usize))));
        count += 1.0;
    }
    (loss / count, gradient.map(|g| g / count), right / count)
}

#[test]
fn classes_on_axis_1_are_pytorchs() {
    // Square images of three classes fit both ways and need the key.
    for (height, width, loss) in
        [(2, 5, ""), (2, 5, "class_axis = 1\n"), (3, 3, "class_axis = 1\n")]
    {
        let lab = pixels(height, width, loss);
        let (want, gradient, right) = expected(height, width);
        lab.ok(&["grad", "recipe.toml", "-o", "g.safetensors", "--policy", "f32", "--verify"]);
        let file = TensorFile::open(&lab.path("g.safetensors")).unwrap();
        let read = |name: &str| file.tensor(name).unwrap_or_else(|e| panic!("{e}")).to_f32();
        assert!((f64::from(read("loss")[0]) - want).abs() < 1e-6);
        for (got, want) in read("grad.b").iter().zip(gradient) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} is not {want}");
        }
        let o = lab.run(&["train", "recipe.toml", "--policy", "f32", "--json"]);
        let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
        assert!((v["test_loss"].as_f64().unwrap() - want).abs() < 1e-6, "{v}");
        assert!((v["test_accuracy"].as_f64().unwrap() - right).abs() < 1e-12, "{v}");
    }
}

#[test]
fn an_axis_that_is_not_clear_or_not_there_is_an_error_with_a_place() {
    let compile = ["compile", "recipe.toml"];
    let (code, text) = pixels(3, 3, "").fails(&compile);
    assert_eq!(code, "P0403", "{text}");
    assert!(text.contains("class_axis = 1") && text.contains("recipe.toml:10:"), "{text}");
    // The last axis: another loss than on axis 1, of the same extents.
    pixels(3, 3, "class_axis = -1\n").ok(&compile);
    for axis in ["4", "-4"] {
        let (code, text) = pixels(3, 3, &format!("class_axis = {axis}\n")).fails(&compile);
        assert_eq!(code, "P0403", "{text}");
        assert!(text.contains("recipe.toml:11:"), "{text}");
    }
    assert_eq!(pixels(3, 3, "class_axis = 0\n").fails(&compile).0, "P0105");
    // Targets of [2,5] for images of [5,2] have as many elements and are still wrong.
    let lab = pixels(2, 5, "");
    lab.write("model.pir", &lab.text("model.pir").replace("3,2,5]", "3,5,2]"));
    let (code, text) = lab.fails(&compile);
    assert_eq!(code, "P0403", "{text}");
    assert!(text.contains("[2, 5]") && text.contains("[5, 2] or [3, 5]"), "{text}");
}

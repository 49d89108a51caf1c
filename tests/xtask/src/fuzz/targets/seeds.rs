//! Inputs to begin with, made by the writers of what the readers read.

use super::{Lab, T, Target, bound, compile, recipe_text, small, small_data};
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Options};
use precast_plan::{RANGES_VERSION, Ranges, Target as Description};
use precast_runtime::ranges::Meter;
use precast_runtime::{ModelWeights, Session};

impl Lab {
    /// Inputs of a target that need no file of the repository.
    ///
    /// # Panics
    /// If the small model does not compile.
    pub fn seeds(&self, target: Target) -> Vec<Vec<u8>> {
        match target {
            T::Recipe => vec![recipe_text(target).into_bytes(), EVERY_SECTION.into()],
            T::Csv => vec![small::table(24).into_bytes()],
            T::Ir => vec![small::MODEL.into()],
            T::Plan => {
                let policies = ["f32", "bf16", "f16", "auto"];
                let text = |p: &str| {
                    small::RECIPE.replace(
                        "[train]",
                        &format!("[precision]\npolicy = \"{p}\"\n[train]\nclip_norm = 1.0\nema = 0.9\naccumulate = 2"),
                    )
                };
                let plan = |p: &&str| {
                    let recipe = Recipe::parse(self.folder.join("recipe.toml"), &text(p))
                        .unwrap_or_else(|e| panic!("{e}"));
                    compile(&recipe, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
                };
                policies.iter().map(|p| plan(p).to_json().into_bytes()).collect()
            }
            T::Weights | T::Checkpoint | T::Data => {
                let plan = self.small_plan();
                let weights = ModelWeights::for_plan(&plan, &self.folder, None).expect("drawn");
                let options = precast_runtime::Options {
                    threads: 1,
                    seed: 3,
                    ..precast_runtime::Options::default()
                };
                let mut session = Session::new(plan, &weights, &options).expect("a session");
                let mut data = small_data(&self.folder, &session.wanted());
                session.step_from(|| data.next_batch()).expect("a step");
                let path = self.path(target);
                match target {
                    T::Weights => session.save_weights(&path).expect("written"),
                    T::Checkpoint => {
                        session.save_checkpoint(&path, &data.state()).expect("written")
                    }
                    _ => std::fs::write(&path, tensors(24)).expect("written"),
                }
                vec![std::fs::read(&path).expect("just written")]
            }
            T::Table => Description::SHIPPED
                .iter()
                .filter_map(|name| Description::shipped(name))
                .map(|t| toml::to_string(&t).expect("plain data").into_bytes())
                .collect(),
            T::Onnx => vec![],
            T::Ranges => vec![self.ranges().to_json().into_bytes()],
        }
    }

    /// Ranges of the small model, of made-up values.
    fn ranges(&self) -> Ranges {
        let recipe = Recipe::parse(self.folder.join("recipe.toml"), small::RECIPE)
            .unwrap_or_else(|e| panic!("{e}"));
        let (recipe, options) = bound(&recipe).unwrap_or_else(|e| panic!("{e}"));
        let watched = pipeline::profile(&recipe, &options).unwrap_or_else(|e| panic!("{e}"));
        let mut meter = Meter::new(watched.watches.len());
        for (i, w) in watched.watches.iter().enumerate() {
            let n = w.shape.iter().product::<u64>();
            let values: Vec<f32> =
                (0..n).map(|k| (k as f32 - 3.0) * 10f32.powi(i as i32 % 7)).collect();
            meter.see(i, &values);
        }
        Ranges {
            version: RANGES_VERSION,
            model: watched.plan.model.clone(),
            digest: watched.digest,
            steps: 2,
            accumulate: 1,
            tensors: meter.ranges(&watched.watches),
        }
    }
}

/// The small data as tensors.
fn tensors(rows: usize) -> Vec<u8> {
    let x: Vec<u8> = (0..rows * 3).flat_map(|i| ((i % 7) as f32 / 7.0).to_le_bytes()).collect();
    let label: Vec<u8> = (0..rows).flat_map(|i| ((i % 2) as i64).to_le_bytes()).collect();
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let x = TensorView::new(Dtype::F32, vec![rows, 3], &x).expect("the sizes agree");
    let label = TensorView::new(Dtype::I64, vec![rows], &label).expect("the sizes agree");
    serialize([("x", x), ("label", label)], None).expect("plain data")
}

/// A recipe that writes most keys there are.
const EVERY_SECTION: &str = r#"model = "model.pir"
[data]
format = "csv"
files = ["data.csv", "data.csv"]
header = true
batch = 4
split = 0.25
shuffle = true
inputs = { x = ["a", "b", "c"] }
targets = { t = "label" }
scale = { x = 0.5 }
shift = { x = 0.25 }
[loss]
kind = "cross_entropy"
prediction = "y"
target = "t"
ignore_index = -1
label_smoothing = 0.1
[optimizer]
kind = "adamw"
lr = 1e-2
betas = [0.9, 0.95]
eps = 1e-8
weight_decay = 0.1
[schedule]
kind = "cosine"
warmup = 2
[precision]
policy = "f16"
pins = [{ op = "fc1*", dtype = "f32" }]
[loss_scale]
init = 1024.0
[train]
epochs = 2
accumulate = 2
clip_norm = 1.0
ema = 0.9
freeze = ["b1"]
seed = 3
[target]
device = "cpu"
"#;

//! Training plans of the test models, for checks of the CUDA backend that need no GPU.

#![allow(dead_code, reason = "every check uses a part")]

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Options};
use precast_plan::Plan;
use std::path::Path;

pub const ADAMW: &str = "kind = \"adamw\"\nlr = 1e-3";
pub const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";
pub const CROSS_ENTROPY: &str = "kind = \"cross_entropy\"";

/// A model, and the extents of its input and of the loss's targets.
#[derive(Clone, Copy)]
pub struct Model {
    /// A file below `tests`.
    pub file: &'static str,
    pub input: (&'static str, &'static [usize]),
    pub targets: &'static [usize],
}

pub const MLP: Model =
    Model { file: "fixtures/mlp_mnist/model.onnx", input: ("x", &[64, 784]), targets: &[64] };
pub const CNN: Model =
    Model { file: "fixtures/cifar_cnn/model.onnx", input: ("x", &[16, 3, 32, 32]), targets: &[16] };
pub const GPT: Model = Model {
    file: "fixtures/tiny_gpt/model.onnx",
    input: ("input_ids", &[4, 32]),
    targets: &[4, 32],
};
/// Convolutions in groups, with strides, biases and activations.
pub const CONVOLUTIONS: Model =
    Model { file: "gpu/convolutions.pir", input: ("x", &[16, 3, 32, 32]), targets: &[16] };
pub const RESNET: Model = Model {
    file: "models/resnet18.ts.op17.train.onnx",
    input: ("x", &[32, 3, 224, 224]),
    targets: &[32],
};

/// A recipe; what is behind the first line of a section may begin further ones.
#[derive(Clone, Copy)]
pub struct Training<'a> {
    pub model: Model,
    pub loss: &'a str,
    pub optimizer: &'a str,
    pub policy: &'a str,
    /// Lines of the section `[train]`.
    pub train: &'a str,
    pub target: &'a str,
}

impl Training<'_> {
    /// The plan, trained from the start.
    ///
    /// # Panics
    /// If the compiler refuses the recipe.
    pub fn plan(&self) -> Plan {
        let Model { file, input: (input, extents), targets } = self.model;
        let Training { loss, optimizer, policy, train, target, .. } = self;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let text = format!(
            "model = \"{file}\"\n\
             [weights]\ninit = \"default\"\n\
             [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
             inputs = {{ {input} = \"in.{input}\" }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
             [loss]\n{loss}\nprediction = \"logits\"\ntarget = \"targets\"\n\
             [optimizer]\n{optimizer}\n\
             [precision]\npolicy = \"{policy}\"\n\
             [target]\ndevice = \"{target}\"\n\
             [train]\nsteps = 20\n{train}\n"
        );
        let recipe =
            Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
        let mut options = Options::default();
        options.shapes.insert(input.into(), extents.to_vec());
        options.shapes.insert("targets".into(), targets.to_vec());
        pipeline::compile(&recipe, &options)
            .unwrap_or_else(|e| panic!("{file} {policy} {optimizer} {train}: {e}"))
            .plan
    }
}

//! The recipe: everything about a training run that is not the model.
//!
//! A recipe is a plain value. Reading one is strict (an unknown key is an error with a suggestion)
//! and collects every error. Paths stay as they were written, so that a recipe means the same on
//! two machines; [`Recipe::resolve`] makes one usable. `docs/RECIPE.md` describes every key.

mod extents;
mod idle;
mod loss;
mod names;
mod origin;
mod read;
mod sections;
mod set;
mod table;
#[cfg(test)]
mod tests;

pub use extents::{DataExtents, MAX_STEPS};
pub use idle::Facts;
pub use origin::Origin;

use crate::diagnostic::{Diagnostic, Place, Result};
use indexmap::IndexMap;
use precast_plan::DType;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A validated recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// The recipe's own path; its folder is what other paths are relative to.
    #[serde(skip)]
    pub path: PathBuf,
    /// Where its keys are in the text.
    #[serde(skip)]
    pub origin: Origin,
    /// ONNX or textual IR.
    pub model: PathBuf,
    pub weights: Weights,
    pub data: Data,
    pub loss: Loss,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub precision: Precision,
    pub loss_scale: LossScale,
    pub train: Train,
    pub target: Target,
}

/// Where first values of parameters come from when the model does not hold them, or should not be
/// believed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Weights {
    /// A safetensors file under the model's own names; wins over what the model holds.
    pub file: Option<PathBuf>,
    /// How to draw weights that neither the file nor the model holds; `None`: they are an error.
    pub init: Option<WeightInit>,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightInit {
    /// What PyTorch's layers draw by default.
    Default,
}

/// What is fed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Data {
    /// `None`: the recipe can be planned but not trained.
    pub source: Option<DataSource>,
    /// Rows of one batch; `None`: the whole file is one batch.
    pub batch: Option<usize>,
    /// Extents of the model's dynamic dimensions, by their names.
    pub dims: IndexMap<String, usize>,
    /// Graph input → columns in the data.
    pub inputs: IndexMap<String, Columns>,
    /// Loss target → columns in the data.
    pub targets: IndexMap<String, Columns>,
    /// Graph input → factor applied as the data is read.
    pub scale: IndexMap<String, f64>,
    /// Graph input → term added after `scale`.
    pub shift: IndexMap<String, f64>,
    /// A new order every epoch, drawn from `train.seed`.
    pub shuffle: bool,
    /// Share of the rows held back for testing, in [0, 1).
    pub split: f64,
    #[serde(skip_serializing_if = "DataNonfinite::is_default")]
    pub on_nonfinite: DataNonfinite,
}

/// What becomes of NaN and infinities in the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataNonfinite {
    /// They end the run, with the file and the row.
    #[default]
    Error,
    /// They are data.
    Allow,
}

impl DataNonfinite {
    fn is_default(&self) -> bool {
        *self == DataNonfinite::Error
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "format")]
pub enum DataSource {
    /// Named tensors with one row per example.
    Safetensors { files: Vec<PathBuf> },
    /// Numbers, one example a line.
    Csv { files: Vec<PathBuf>, header: bool },
    /// Byte-level text: inputs are `context` bytes, targets the bytes one further. Files may be
    /// globs.
    Bytes { files: Vec<PathBuf>, context: usize },
}

/// Which part of the data a tensor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Columns {
    /// A tensor of a safetensors file; a column, or `first..last` inclusive, of a CSV file.
    Name(String),
    /// Columns of a CSV file.
    List(Vec<String>),
}

/// Σ weight · term.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Loss {
    /// At least one.
    pub terms: Vec<LossTerm>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossTerm {
    pub kind: LossKind,
    /// Graph output; `None`: the model's only output.
    pub prediction: Option<String>,
    /// A key of [`Data::targets`]; `None` where the kind takes none.
    pub target: Option<String>,
    #[serde(skip_serializing_if = "is_one")]
    pub weight: f64,
}

fn is_one(weight: &f64) -> bool {
    *weight == 1.0
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum LossKind {
    /// Mean over targets that are not `ignore_index`.
    CrossEntropy {
        ignore_index: i64,
        label_smoothing: f64,
        /// Axis of the logits that counts the classes; `None`: decided by the data's targets.
        #[serde(skip_serializing_if = "Option::is_none")]
        class_axis: Option<i64>,
    },
    /// Mean of squared differences.
    Mse,
    /// The output itself: the mean of its elements.
    Output,
}

impl Loss {
    /// Targets that the data feeds for the loss.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().filter_map(|t| t.target.as_deref())
    }

    /// Whether a part of the loss is computed by the model, which then takes targets as inputs.
    pub fn in_model(&self) -> bool {
        self.terms.iter().any(|t| t.kind == LossKind::Output)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    pub kind: OptimizerKind,
    pub lr: f64,
    pub weight_decay: f64,
    pub no_decay: NoDecay,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum OptimizerKind {
    /// `v = momentum v + g; p -= lr v` (Nesterov: `p -= lr (g + momentum v)`), `v` starts as `g`.
    Sgd { momentum: f64, nesterov: bool },
    /// Decay is added to the gradient.
    Adam { betas: [f64; 2], eps: f64 },
    /// Decay is decoupled: `p -= lr weight_decay p`.
    Adamw { betas: [f64; 2], eps: f64 },
}

/// Which parameters weight decay leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoDecay {
    None,
    /// Parameters of rank below 2: biases, gains of normalisation layers.
    BiasAndNorm,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Steps over which the rate rises linearly from 0.
    pub warmup: u64,
    /// Step at which the final rate is reached; `None`: the last step of the run.
    pub steps: Option<u64>,
    /// Final rate as a share of `optimizer.lr`.
    pub final_ratio: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    Constant,
    Cosine,
    Linear,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Precision {
    pub policy: Policy,
    pub pins: Vec<Pin>,
    pub allow: Allow,
    /// Ranges of this model's tensors, such as `precast profile` writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<PathBuf>,
}

/// Precisions that any policy may use beside its own, where the target has them and the prices say
/// that they pay. None is used unless a person allows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Allow {
    /// f32 operands of matrix products and convolutions rounded to TF32.
    pub tf32: bool,
    /// Operands of matrix products in FP8, scaled per tensor.
    pub fp8: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Everything by cost, FP32 included.
    Auto,
    F32,
    /// Products, convolutions and attention in bf16 wherever it is legal, the rest by cost.
    Bf16,
    F16,
    /// Everything stored in f32, matrix products and convolutions in TF32.
    Tf32,
    /// Matrix products in FP8 wherever it is legal, the rest as under `Bf16`.
    Fp8,
    /// What another system would do, casts and all.
    Baseline(Baseline),
}

/// Operations whose format the person chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// A glob over names of operations.
    pub op: String,
    /// `F32`, `Bf16` or `F16`.
    pub dtype: DType,
    /// Where the recipe says so.
    #[serde(skip)]
    pub place: Option<Place>,
}

/// Loss scaling; defaults are those of PyTorch's `GradScaler`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossScale {
    pub mode: LossScaleMode,
    /// First scale, or the scale where `mode` is static.
    pub init: f64,
    pub growth: f64,
    pub backoff: f64,
    /// Clean steps before the scale grows.
    pub interval: u64,
    /// Overflows in a row before the scale backs off.
    pub hysteresis: u64,
    /// `None`: [`LossScale::FLOOR`].
    pub min: Option<f64>,
    pub max: Option<f64>,
}

impl LossScale {
    /// 2^-24. Under a smaller scale f16 would hold cotangents beyond 65504 · 2^24, about 1e12: what
    /// still overflows is no matter of scale.
    pub const FLOOR: f64 = 1.0 / 16_777_216.0;

    /// What a dynamic scale does not fall below.
    pub fn floor(&self) -> f64 {
        self.min.unwrap_or(LossScale::FLOOR)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossScaleMode {
    /// Dynamic where a cotangent is f16, off elsewhere.
    Auto,
    Off,
    Static,
    Dynamic,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    pub length: TrainLength,
    /// Batches whose gradients are summed before an update.
    pub accumulate: u32,
    /// What the loss of several batches is the mean of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,
    /// What becomes of a step whose gradients are not finite; `None`: it stops the run, and is
    /// skipped under a loss scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_nonfinite: Option<OnNonfinite>,
    /// Skipped steps in a row that end the run.
    pub max_skips: u64,
    /// Largest global L2 norm of the gradient.
    pub clip_norm: Option<f64>,
    /// Decay of an exponential moving average of the parameters.
    pub ema: Option<f64>,
    pub seed: u64,
    /// Globs over names of parameters that keep their first values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Rows of parameters that keep their first values, along the first axis; negative ones count
    /// from the end.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub freeze_rows: IndexMap<String, Vec<i64>>,
    /// Globs over names of initializers that are parameters whatever the model file says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
    /// Globs over names of the model's nodes and values that no gradient passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_gradient: Vec<String>,
    /// One JSON line a step.
    pub log: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint: Option<u64>,
    /// Checkpoints that are kept, the newest, besides the best by the test loss; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<u64>,
    /// Folder of what is saved; `None`: `trained` beside the recipe.
    pub out: Option<PathBuf>,
}

/// What the loss of a step over several batches is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// All that the loss counts in them.
    Whole,
    /// The means of the batches.
    Micro,
}

/// What becomes of a step with a gradient that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// It is not applied, and the run ends.
    Stop,
    /// It is not applied.
    Skip,
    /// It is applied.
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainLength {
    Steps(u64),
    Epochs(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// `cpu`, or the name of a described target.
    pub device: String,
    /// A target description, such as `precast calibrate` writes.
    pub table: Option<PathBuf>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// `P0100` where the file cannot be read, else what [`Recipe::parse`] gives.
    pub fn load(path: impl AsRef<Path>) -> Result<Recipe> {
        Recipe::load_with(path, &[])
    }

    /// Reads a recipe with settings such as `optimizer.lr=1e-4`, each a dotted key and a value, in the
    /// place of what the file says. A value is one of TOML, or a word; paths are relative to the recipe.
    ///
    /// # Errors
    /// As [`Recipe::load`]; those of a setting are at the place `--set`.
    pub fn load_with(path: impl AsRef<Path>, settings: &[String]) -> Result<Recipe> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| {
            let d = Diagnostic::error("P0100", format!("cannot read the recipe: {e}"))
                .at(Place::File { path: path.into() });
            match precast_plan::instead_of(path).filter(|_| !path.exists()) {
                Some(help) => d.help(help),
                None => d,
            }
        })?;
        sections::parse(path, &text, settings)
    }

    /// Reads a recipe from text; `path` labels errors and is what paths are relative to.
    ///
    /// # Errors
    /// Everything that is wrong with it, `P0101` to `P0107`, in the order of the text.
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Recipe> {
        sections::parse(path.as_ref(), text, &[])
    }

    /// A path of the recipe, from the working directory.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(folder) => folder.join(path),
            None => path.into(),
        }
    }

    /// The model's path, from the working directory.
    pub fn model_path(&self) -> PathBuf {
        self.resolve(&self.model)
    }

    /// The folder results are saved in, from the working directory.
    pub fn out_dir(&self) -> PathBuf {
        self.resolve(self.train.out.as_deref().unwrap_or(Path::new("trained")))
    }
}

/// A system with fixed rules, and the 16-bit format it runs them with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Baseline {
    pub system: System,
    pub half: DType,
}

/// Systems whose rules [`crate::precision::baselines`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// `torch.autocast("cuda")`.
    TorchCuda,
    /// `torch.autocast("cpu")`.
    TorchCpu,
    /// TensorFlow's graph pass, on its lists for the format.
    Grappler,
    /// Every operation of the model in 16 bits.
    All,
}

impl Baseline {
    pub const fn new(system: System, half: DType) -> Baseline {
        Baseline { system, half }
    }
}

impl Policy {
    /// Every policy with its word.
    pub const WORDS: &'static [(&'static str, Policy)] = &[
        ("auto", Policy::Auto),
        ("f32", Policy::F32),
        ("bf16", Policy::Bf16),
        ("f16", Policy::F16),
        ("tf32", Policy::Tf32),
        ("fp8", Policy::Fp8),
        ("torch-autocast", Policy::Baseline(Baseline::new(System::TorchCuda, DType::F16))),
        ("torch-autocast-bf16", Policy::Baseline(Baseline::new(System::TorchCuda, DType::Bf16))),
        ("torch-autocast-cpu", Policy::Baseline(Baseline::new(System::TorchCpu, DType::Bf16))),
        ("tf-grappler", Policy::Baseline(Baseline::new(System::Grappler, DType::F16))),
        ("tf-grappler-bf16", Policy::Baseline(Baseline::new(System::Grappler, DType::Bf16))),
        ("all-16", Policy::Baseline(Baseline::new(System::All, DType::F16))),
        ("all-16-bf16", Policy::Baseline(Baseline::new(System::All, DType::Bf16))),
    ];

    pub fn name(self) -> &'static str {
        Policy::WORDS.iter().find(|(_, p)| *p == self).expect("every policy has a word").0
    }
}

impl std::str::FromStr for Policy {
    type Err = String;
    fn from_str(s: &str) -> std::result::Result<Policy, String> {
        Policy::WORDS.iter().find(|(w, _)| *w == s).map(|(_, p)| *p).ok_or_else(|| {
            format!("unknown policy `{s}`; there are {}", read::listed(Policy::WORDS))
        })
    }
}

//! What a training step consists of, apart from the model. A plain value; the recipe is turned
//! into it.

/// The loss, attached to one result of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum LossSpec {
    /// Mean over targets that are not `ignore_index`, as `torch.nn.functional.cross_entropy`; over
    /// all rows where the targets are probabilities.
    CrossEntropy {
        prediction: String,
        target: String,
        ignore_index: i64,
        label_smoothing: f64,
        class_axis: ClassAxis,
    },
    /// Mean over all elements.
    Mse { prediction: String, target: String },
}

/// Which axis of the logits counts the classes; the others are those of the targets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ClassAxis {
    /// The last: [rows, classes], [batch, tokens, classes].
    #[default]
    Last,
    /// As said; negative counts from the end.
    At(i64),
    /// As said, where the extents of the data's targets are known too, here without the batch.
    Said { axis: i64, row: Vec<usize> },
    /// The last, or axis 1 as in PyTorch's [n, classes, d1, …]: the one that leaves the extents of
    /// the data's targets, given here without the batch.
    Fits(Vec<usize>),
}

/// The optimizer and its constants, in PyTorch's terms.
#[derive(Clone, Debug, PartialEq)]
pub enum OptimizerSpec {
    Sgd {
        momentum: f64,
        nesterov: bool,
        weight_decay: f64,
    },
    /// `decoupled`: AdamW.
    Adam {
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        decoupled: bool,
    },
}

impl OptimizerSpec {
    /// What is kept for each parameter, as the variables are named: `<parameter>.<state>`.
    pub fn states(&self) -> &'static [&'static str] {
        match self {
            OptimizerSpec::Sgd { momentum: 0.0, .. } => &[],
            OptimizerSpec::Sgd { .. } => &["momentum"],
            OptimizerSpec::Adam { .. } => &["exp_avg", "exp_avg_sq"],
        }
    }
}

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LrCurve {
    Constant,
    /// Half a cosine from `lr` to `min_lr` over the steps that remain after warm-up.
    Cosine {
        total_steps: u64,
        min_lr: f64,
    },
    /// A straight line to `min_lr`.
    Linear {
        total_steps: u64,
        min_lr: f64,
    },
}

/// Learning rate at iteration i (from 0; skipped steps count): during warm-up
/// `lr · (i + 1) / warmup_steps`, then the curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSpec {
    pub lr: f64,
    pub warmup_steps: u64,
    pub curve: LrCurve,
}

/// Loss scaling. Dynamic scaling follows PyTorch's `GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleSpec {
    /// The factor enters at the seed of the backward pass, as frameworks scale a loss; otherwise at
    /// the gradients, from where the e-graph moves it.
    pub at_seed: bool,
    pub init: f64,
    /// Off for a static scale.
    pub dynamic: bool,
    pub growth: f64,
    pub backoff: f64,
    /// Clean steps before the scale grows.
    pub interval: u64,
    /// Overflows tolerated before the scale backs off (1: the first backs off); refilled when the
    /// scale grows, as Megatron does.
    pub hysteresis: u64,
    pub min: f64,
    pub max: f64,
}

impl Default for ScaleSpec {
    /// PyTorch's defaults.
    fn default() -> ScaleSpec {
        ScaleSpec {
            at_seed: false,
            init: 65536.0,
            dynamic: true,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
            hysteresis: 1,
            min: 0.0,
            max: f64::from(f32::MAX),
        }
    }
}

/// Everything [`super::joint`] needs besides the forward graph.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSpec {
    pub optimizer: OptimizerSpec,
    pub lr: LrSpec,
    /// Batches whose gradients are averaged before an update, at least 1.
    pub accumulate: u32,
    /// Largest global gradient norm.
    pub clip_norm: Option<f64>,
    /// Decay of the moving average of the weights.
    pub ema: Option<f64>,
    /// Parameters of rank 0 or 1 (biases, norm weights) are not decayed.
    pub no_decay_vectors: bool,
    /// Parameters that keep their values: no gradient, no optimizer state, no part in the norm.
    pub frozen: Vec<String>,
    /// Rows (along the first axis) of parameters that keep their values: their gradients are zero
    /// before the norm is taken, and no decay and no average moves them.
    pub frozen_rows: Vec<(String, Vec<usize>)>,
    pub scale: Option<ScaleSpec>,
}

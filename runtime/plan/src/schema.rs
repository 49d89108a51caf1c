//! The plan: one training step, complete, and why it is what it is.

use crate::along::{CumSum, LastIndex, TopK};
use crate::dtype::DType;
use crate::precision::Precision;
use crate::program::{InPort, Instr, OutPort, Program, ReduceOp};
use serde::{Deserialize, Serialize};

/// Index into [`Plan::tensors`].
pub type TensorId = u32;
/// Index into [`Plan::programs`].
pub type ProgramId = u32;

/// The version this crate reads and writes.
pub const VERSION: u32 = 1;

/// A compiled training step.
///
/// One optimizer step runs `micro` once for each of [`Plan::accumulate`] batches and then
/// `update` once. The gradients live in persistent accumulators between the two when
/// `accumulate > 1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    /// The model's name, for people.
    pub model: String,
    pub target: TargetSummary,
    pub tensors: Vec<Tensor>,
    pub programs: Vec<Program>,
    /// Forward and backward over one batch, in order.
    pub micro: Vec<Step>,
    /// Gradient norm, finite check, optimizer update, loss scale, step counters.
    pub update: Vec<Step>,
    /// Forward only, for evaluation (running statistics instead of batch statistics, no dropout);
    /// empty when the model has nothing that can be evaluated.
    #[serde(default)]
    pub eval: Vec<Step>,
    /// Batches whose gradients are summed before an update.
    pub accumulate: u32,
    /// Bytes of the arena that temporaries share.
    pub arena_bytes: u64,
    /// Largest sum of live temporaries at any step: no arena can be smaller.
    pub arena_bound_bytes: u64,
    /// Bytes of everything that outlives a step.
    pub persistent_bytes: u64,
    /// Where named results are found after a step: `loss`, `grad_norm`, `out.logits`, ….
    pub results: Vec<Named>,
    /// Named results of `eval`.
    #[serde(default)]
    pub eval_results: Vec<Named>,
    /// Inputs whose elements are numbers of classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<Classes>,
    pub summary: Summary,
    pub journal: Vec<Decision>,
}

/// A named tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub name: String,
    pub tensor: TensorId,
}

/// What the elements of an integer input may be: 0 to `count` - 1, or `ignore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    pub tensor: TensorId,
    pub count: u64,
    pub ignore: i64,
}

/// The target a plan was priced for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSummary {
    pub name: String,
    /// Which runtime backend can run the plan: `cpu` or `cuda`.
    pub device: String,
}

/// A dense row-major buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Unique, stable under changes to unrelated layers.
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub storage: Storage,
}

/// Where a tensor lives and how it begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Storage {
    /// In the shared arena at a byte offset (64-byte aligned), from step `first` to step `last`
    /// of the phase that writes it. Temporaries of `micro` that `update` reads live to its end.
    Arena { offset: u64 },
    /// Outlives the step, at a byte offset in the persistent region.
    Persistent { offset: u64, role: Role, init: Init },
    /// Uploaded by the host before every batch, at a byte offset in the input region.
    Input { offset: u64 },
}

/// What a persistent tensor is to a person, and to a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// FP32 master weight, under the model's own name.
    Parameter,
    /// Low-precision copy of a master weight, written by the update.
    WeightCopy,
    /// Momentum, first and second moments.
    Optimizer,
    /// Model buffers such as running statistics, under the model's own name.
    Buffer,
    /// Exponential moving average of a parameter.
    Ema,
    /// Gradient accumulator.
    Accumulator,
    /// Loss scale, growth tracker, step counters.
    Machine,
    /// Never written.
    Constant,
}

/// First value of a persistent tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Init {
    Zeros,
    /// Every element.
    Value(f64),
    /// From the weight file, by name.
    Weights(String),
    /// Little-endian elements of format `dtype` in a file (a path relative to the model's folder,
    /// inside it), from byte `offset`, as many as the tensor has; rounded to its own format.
    File {
        path: String,
        offset: u64,
        dtype: DType,
    },
    /// Drawn: uniform in [-bound, bound], Philox keyed by the recipe's seed and `stream`.
    Uniform {
        bound: f64,
        seed: u64,
        stream: u32,
    },
    /// Drawn: normal with the given mean and standard deviation, Philox as above (Box–Muller).
    Normal {
        mean: f64,
        std: f64,
        seed: u64,
        stream: u32,
    },
    /// The first value of another persistent tensor, rounded to this one's format.
    CopyOf(TensorId),
    /// The first value of another persistent tensor of [o,c,h,w], rounded to this one's format, as
    /// [o,h,w,c]: a filter for a kernel that wants its channels innermost in memory.
    ChannelsLastOf(TensorId),
    /// Little-endian bytes in base 16, of the tensor's own format.
    Bytes(String),
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Stable, for people: the operations it computes, `fc1.matmul+bias+relu`.
    pub name: String,
    /// Names of the model's operations this step computes (cotangents carry a `.grad` suffix).
    pub ops: Vec<String>,
    pub kernel: Kernel,
    /// What the cost model expects, in nanoseconds.
    pub predicted_ns: f64,
}

/// What a step runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    Rows(Rows),
    Gemm(Gemm),
    Conv(Conv),
    Attention(Attention),
    AttentionGrad(AttentionGrad),
    MaxPool(MaxPool),
    MaxPoolGrad(MaxPool),
    Gather(Gather),
    ScatterAdd(Gather),
    LastIndex(LastIndex),
    CumSum(CumSum),
    TopK(TopK),
}

/// A strided view: element at index `i` is `tensor[offset + Σ i_d strides_d]`, all in elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    pub tensor: TensorId,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    pub strides: Vec<i64>,
}

fn is_zero(x: &u64) -> bool {
    *x == 0
}

/// A row program over one or more iteration spaces (several for multi-tensor updates).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    pub program: ProgramId,
    pub instances: Vec<Instance>,
}

/// One iteration space and what its ports are bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Row-major extents, kept axes first.
    pub dims: Vec<u64>,
    /// How many trailing axes are reduced; 0 where the program does not reduce.
    pub reduced: u32,
    /// One per input port, strides per axis of `dims`.
    pub inputs: Vec<Access>,
    /// One per output port. Strides of reduced axes are 0 where the register is per row.
    pub outputs: Vec<Access>,
}

/// How the inputs of a product are multiplied.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Math {
    /// In the format they are stored in (products of 16-bit formats are exact in f32).
    #[default]
    Exact,
    /// f32 inputs rounded to TF32 (10 stored significand bits).
    Tf32,
}

/// `acc[b0,b1,m,n] = Σ_k a[b0,b1,m,k] · b[b0,b1,k,n]` in f32, then the epilogue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    pub batch: [u64; 2],
    pub m: u64,
    pub n: u64,
    pub k: u64,
    /// Strides over b0, b1, m, k.
    pub a: Access,
    /// Strides over b0, b1, k, n.
    pub b: Access,
    pub math: Math,
    pub epilogue: Epilogue,
    /// What is stored beside the result: the gradient of a bias with that of its matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<OperandSums>,
}

/// Sums of an operand of a product, without batch, over its inner axis, in f32: `Σ_k a[m,k]` or
/// `Σ_k b[k,n]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperandSums {
    pub operand: Operand,
    /// Stride along m, or along n.
    pub out: Access,
}

/// Which operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operand {
    A,
    B,
}

impl Gemm {
    /// The program that the sums of an operand are: for kernels that have no such epilogue. Its space
    /// is the vector, then the summed axis.
    pub fn sums_alone(&self, dtype: DType, stored: DType) -> Option<(Program, Instance)> {
        let sums = self.sums.as_ref()?;
        let (n, from, axes) = match sums.operand {
            Operand::A => (self.m, &self.a, [2, 3]),
            Operand::B => (self.n, &self.b, [3, 2]),
        };
        let program = Program {
            name: "operand_sums".into(),
            inputs: vec![InPort { dtype, row: false }],
            code: vec![Instr::Load { port: 0 }, Instr::Reduce(ReduceOp::Sum, 0)],
            outputs: vec![OutPort { dtype: stored, reg: 1 }],
        };
        let input = Access { strides: axes.map(|d| from.strides[d]).to_vec(), ..from.clone() };
        let output = Access { strides: vec![sums.out.strides[0], 0], ..sums.out.clone() };
        let instance = Instance {
            dims: vec![n, self.k],
            reduced: 1,
            inputs: vec![input],
            outputs: vec![output],
        };
        Some((program, instance))
    }
}

/// What happens to an f32 accumulator before it is stored.
///
/// The program does not reduce. Its input port 0 is the accumulator (f32, not in `inputs`); the
/// others are bound to `inputs` in order, strides over the axes of the result: b0, b1, m, n for a
/// product; n, c, h, w for a convolution. `kind` names the common ones, so that a vendor library's
/// fused epilogue can be chosen without reading the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epilogue {
    pub kind: EpilogueKind,
    /// Which of `inputs` is an f32 scalar that the program multiplies the accumulator with before
    /// anything else reads it; `kind` names the rest. What undoes the scales of FP8 operands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<u32>,
    pub program: ProgramId,
    pub inputs: Vec<Access>,
    pub outputs: Vec<Access>,
}

/// Epilogues that libraries know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpilogueKind {
    /// Store only.
    Store,
    /// Add a vector along n (a product) or c (a convolution).
    Bias,
    BiasRelu,
    /// With the pre-activation stored as output 1.
    BiasGeluAux,
    BiasGeluTanhAux,
    /// Multiply by the derivative of GELU by tanh at the input, which lies as the result does.
    GeluTanhGrad,
    /// Add the f32 values that stand where the result goes.
    Accumulate,
    /// Anything else: run the program.
    Program,
}

/// Which of the three products of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvKind {
    /// a = x [n,c,h,w], b = w [o,c/g,kh,kw] → y [n,o,oh,ow]
    Forward,
    /// a = dy [n,o,oh,ow], b = w → dx [n,c,h,w]
    DataGrad,
    /// a = x, b = dy → dw [o,c/g,kh,kw]
    FilterGrad,
}

/// 2-d convolution (cross-correlation, as in ONNX). Strides of a, b and the result run over the axes
/// that [`ConvKind`] names, whatever the order of memory. 1-d convolutions have h = kh = 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    pub kind: ConvKind,
    pub geometry: ConvGeometry,
    pub a: Access,
    pub b: Access,
    pub math: Math,
    pub epilogue: Epilogue,
}

/// Sizes of a 2-d convolution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvGeometry {
    pub n: u64,
    pub c: u64,
    pub h: u64,
    pub w: u64,
    pub o: u64,
    pub kh: u64,
    pub kw: u64,
    pub oh: u64,
    pub ow: u64,
    pub stride: [u64; 2],
    /// top, left, bottom, right
    pub pad: [u64; 4],
    pub dilation: [u64; 2],
    pub groups: u64,
}

/// Scaled dot-product attention: `o = softmax(scale · q kᵀ + mask) v`, softmax in f32.
/// Strides of q, k, v, o over batch, head, position, channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    pub batch: u64,
    pub heads: u64,
    /// Query positions.
    pub tq: u64,
    /// Key positions.
    pub tk: u64,
    /// Channels of q and k, and of v and o.
    pub d: u64,
    pub scale: f32,
    /// Position i sees positions j ≤ i + tk − tq.
    pub causal: bool,
    /// Added to the scores: strides over batch, head, query, key.
    pub mask: Option<Access>,
    pub q: Access,
    pub k: Access,
    pub v: Access,
    pub o: Access,
    /// Natural logarithm of the softmax denominators, f32, strides over batch, head, query.
    pub lse: Access,
}

/// Gradient of [`Attention`] with respect to q, k, v (recomputes the scores from `lse`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionGrad {
    /// The forward call whose gradient this is; `o` and `lse` are read.
    pub forward: Attention,
    /// Cotangent of o.
    pub d_o: Access,
    pub d_q: Access,
    pub d_k: Access,
    pub d_v: Access,
}

/// Max pooling; strides run over [n,c,h,w], whatever the order of memory. `MaxPool` reads x and writes y and the window index of each maximum
/// (`u8`: kernel row × kernel width + kernel column, the first of equals); `MaxPoolGrad` reads dy
/// (as `y`) and the indices and writes dx (as `x`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaxPool {
    /// `o` equals `c`, `groups` is 1.
    pub geometry: ConvGeometry,
    pub x: Access,
    pub y: Access,
    pub index: Access,
}

/// `Gather`: out[r, :] = table[ids[r], :]. `ScatterAdd`: table[ids[r], :] += out[r, :], rows summed
/// in order of r in f32, starting from zero. Ids count from the end when negative; out of range is
/// an error of the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// Number of ids.
    pub rows: u64,
    /// Elements of one row.
    pub width: u64,
    /// Rows of the table.
    pub table_rows: u64,
    /// Strides over row, column.
    pub table: Access,
    /// Stride over r.
    pub ids: Access,
    /// Strides over r, column.
    pub out: Access,
}

/// What `show` and `train` print about a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The policy asked for.
    pub policy: String,
    /// One sentence: what was compared and why this won.
    pub choice: String,
    /// Modelled step time of every candidate that was compared.
    pub candidates: Vec<Candidate>,
    /// Whether cotangents carry a loss scale.
    pub scaled: bool,
    pub predicted_ns: f64,
    pub casts: u64,
    pub cast_elements: u64,
    /// Share of the floating-point operations of products that run in each precision.
    pub product_flops: Vec<(Precision, f64)>,
    /// Absent where the formats follow another system's rules, and where it proved wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
}

/// A time below which no plan that the policy admits can be predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// Nanoseconds of one step.
    pub ns: f64,
    /// Of these, starts of kernels.
    pub launches_ns: f64,
    /// Other ways to compute a tensor, not chosen, which the bound is known to cover.
    pub settled: u64,
    /// Those that it does not cover.
    pub open: u64,
}

impl Bound {
    /// How far a prediction is above the bound, as a share of the bound.
    pub fn gap(&self, predicted_ns: f64) -> f64 {
        predicted_ns / self.ns - 1.0
    }
}

/// A whole plan that was priced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    pub name: String,
    pub predicted_ns: f64,
    pub legal: bool,
    pub note: String,
}

/// Why one operation is what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Stable name of the operation.
    pub op: String,
    /// Inputs → output formats, `bf16,bf16->f32`.
    pub chosen: String,
    pub reason: String,
    pub cost_ns: f64,
    pub rejected: Vec<Rejected>,
}

/// An alternative that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    pub what: String,
    /// Step cost with this alternative minus the chosen one's; `None` where it was not legal.
    pub extra_ns: Option<f64>,
    pub why: String,
}

//! Which initializers are parameters, which are constants, and how a parameter begins where the
//! model has no values for it.

use super::buffers;
use super::inputs::true_inputs;
use super::node::{Attrs, Seen};
use super::origin::{self, Origin};
use super::proto::{NodeProto, ValueInfoProto};
use super::scalar::{self, Named};
use super::source::{Initializer, Source, Storage};
use super::tensor::{Data, Elem, Tensor};
use crate::ir::VarInit;
use std::collections::{BTreeMap, BTreeSet};

/// What an initializer is to the graph, told from how it is used. The first that applies, in this
/// order, decides: a tied embedding and output projection begins as an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    RunningMean,
    RunningVar,
    /// Rows picked by index, or added with two or more axes (positions).
    Embedding,
    /// A factor of a matrix product or convolution that sums over `fan_in` of its elements.
    Weight {
        fan_in: usize,
    },
    /// Scale of a normalisation, or a factor of an elementwise product.
    Scale,
    /// Added.
    Bias,
    /// Differentiable in a way that no rule above covers.
    Other,
    /// Read by nothing that has a gradient: shape, index and mask arithmetic. Also scalars whose
    /// names are an exporter's for literals.
    Constant,
    /// A scalar with a gradient whose name does not say whether it is a parameter: a constant, with
    /// a warning.
    Unclear,
    /// A buffer that has a gradient and is not trained: it keeps its value, and is saved.
    Buffer,
}

impl Role {
    /// Whether the initializer's values are part of the graph.
    pub fn is_constant(self) -> bool {
        matches!(self, Role::Constant | Role::Unclear)
    }
}

/// What made an initializer a buffer or a parameter, where the file does not say which it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A buffer by its name.
    Name,
    /// A buffer by its values, a table of sinusoids.
    Sinusoids,
    /// A parameter, whose name a buffer may have.
    Trained,
    /// A parameter that the exporter computed from these.
    Computed(Vec<String>),
}

/// What is known of a float initializer.
#[derive(Clone, Debug)]
pub struct Known {
    pub role: Role,
    /// How many normalisations it scales, as a parameter of a module that is not theirs.
    pub foreign: usize,
    /// Whether it is a running statistic and a parameter at once: the exporter merged equal values.
    pub merged: bool,
    /// Whether all that it does is to shift or scale an input of the model.
    pub of_input: bool,
    pub doubt: Option<Doubt>,
}

/// Most elements of a buffer that is taken for a literal.
const LITERAL: usize = 1 << 16;

/// What the float initializers are. Everything else is a constant. `trained` says of names that a
/// person wants them trained, whatever the file says.
pub fn roles(src: &Source, trained: &dyn Fn(&str) -> bool) -> BTreeMap<String, Known> {
    let mut readers: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    let nodes: Vec<&NodeProto> = src.every_node().collect();
    for (i, node) in nodes.iter().enumerate() {
        for (k, x) in node.input.iter().enumerate() {
            readers.entry(x).or_default().push((i, k));
        }
    }
    // What a subgraph gives is read under another name.
    let outputs = src.graph.output.iter().filter_map(|o| o.name.as_deref());
    let outputs: BTreeSet<&str> = outputs.chain(src.given.iter().map(String::as_str)).collect();
    let origins = origin::origins(src);
    let near = near_inputs(src);
    let mut out = BTreeMap::new();
    for (name, init) in &src.initializers {
        if !init.elem.is_real() {
            continue;
        }
        let mut use_ = used(&nodes, name, &init.shape, &readers, &outputs, &near);
        if trained(name) {
            // Where only constants can be, it stays one.
            out.insert(name.clone(), Known { doubt: None, ..use_ });
            continue;
        }
        let (scalar, named) = (init.shape.is_empty(), scalar::named(name));
        let origin = origins.get(name);
        if scalar && named == Named::Literal && origin != Some(&Origin::Parameter) {
            continue;
        }
        let by_use = use_.role;
        let is_running = matches!(by_use, Role::RunningMean | Role::RunningVar);
        let from = origin::parameters_of(&origins, name);
        if by_use != Role::Constant && !is_running {
            let mask = || {
                matches!(by_use, Role::Embedding | Role::Bias | Role::Other)
                    && is_mask(src, name, init)
            };
            // A matrix of a product is nobody's table of positions, and long to read.
            let table = !matches!(by_use, Role::Weight { .. });
            let waves = || table && buffers::is_sinusoidal(src, name, init);
            let (role, doubt) = match origin {
                Some(Origin::Parameter) if waves() => (Role::Buffer, Some(Doubt::Sinusoids)),
                Some(Origin::Parameter) => (by_use, None),
                // An additive mask stored as a float initializer is data, not a parameter.
                _ if mask() => (Role::Constant, None),
                // A literal, as the TorchScript exporter makes of it, unless a plan would be large.
                Some(Origin::Constant) if init.elements() <= LITERAL => (Role::Constant, None),
                Some(Origin::Buffer | Origin::Constant) => (Role::Buffer, None),
                Some(Origin::Computed(_)) if from.is_empty() => (Role::Constant, None),
                Some(Origin::Computed(_)) if scalar => (Role::Unclear, None),
                Some(Origin::Computed(_)) => {
                    let from = from.iter().map(|n| (*n).to_string()).collect();
                    (by_use, Some(Doubt::Computed(from)))
                }
                // A first state that an exporter wrote out: nobody's parameter.
                None if by_use == Role::Other
                    && named == Named::Literal
                    && is_zero(src, name, init) =>
                {
                    (Role::Constant, None)
                }
                None if scalar && named == Named::Unclear => (Role::Unclear, None),
                None if buffers::named(name, &|n| src.initializers.contains_key(n)) => {
                    (Role::Buffer, Some(Doubt::Name))
                }
                // The mean and the deviation of the data.
                None if use_.of_input && buffers::doubtful(name) => {
                    (Role::Buffer, Some(Doubt::Name))
                }
                None if waves() => (Role::Buffer, Some(Doubt::Sinusoids)),
                None if buffers::doubtful(name) => (by_use, Some(Doubt::Trained)),
                None => (by_use, None),
            };
            (use_.role, use_.doubt) = (role, doubt);
        }
        out.insert(name.clone(), use_);
    }
    out
}

/// What an initializer is by what reads it.
fn used(
    nodes: &[&NodeProto],
    name: &str,
    shape: &[usize],
    readers: &BTreeMap<&str, Vec<(usize, usize)>>,
    outputs: &BTreeSet<&str>,
    near: &BTreeSet<&str>,
) -> Known {
    let mut role = Role::Constant;
    let (mut running, mut learned) = (false, false);
    let (mut scaled, mut away) = (0, false);
    let mut of_input = true;
    let mut seen = BTreeSet::from([name]);
    let mut work = vec![(name, shape.to_vec())];
    while let Some((value, shape)) = work.pop() {
        if outputs.contains(value) {
            role = role.min(Role::Other);
        }
        for &(i, k) in readers.get(value).into_iter().flatten() {
            let node = nodes[i];
            match use_of(node, k, &shape) {
                Use::Is(r) => {
                    let norm =
                        node.op_type.as_deref().is_some_and(|o| o.ends_with("Normalization"));
                    if r == Role::Scale && norm {
                        scaled += 1;
                        away |= !origin::is_at_home(node, name);
                    }
                    let statistic = matches!(r, Role::RunningMean | Role::RunningVar);
                    running |= statistic;
                    learned |= !statistic && r != Role::Constant;
                    of_input &= node.input.iter().any(|x| near.contains(x.as_str()))
                        && node.output.iter().all(|y| near.contains(y.as_str()));
                    role = role.min(r);
                }
                Use::Moves(shape) => {
                    for y in node.output.iter().filter(|y| !y.is_empty()) {
                        if seen.insert(y) {
                            work.push((y, shape.clone()));
                        }
                    }
                }
            }
        }
    }
    // A module that is used several times reads its own parameters each time.
    let foreign = if away && scaled > 1 { scaled } else { 0 };
    let of_input = of_input && matches!(role, Role::Scale | Role::Bias | Role::Embedding);
    Known { role, foreign, merged: running && learned, of_input, doubt: None }
}

/// The model's real inputs, and what shifting and scaling by initializers makes of them.
fn near_inputs(src: &Source) -> BTreeSet<&str> {
    let real = |v: &ValueInfoProto| {
        let tensor = v.r#type.as_ref()?.tensor_type.as_ref()?;
        Elem::from_onnx(tensor.elem_type?)
    };
    // Pictures may come as bytes.
    let inputs =
        true_inputs(src).filter(|(_, v)| real(v).is_some_and(|e| e.is_real() || e == Elem::U8));
    let mut near: BTreeSet<&str> = inputs.map(|(name, _)| name.as_str()).collect();
    let mut fixed: BTreeSet<&str> = src.initializers.keys().map(String::as_str).collect();
    for node in &src.graph.node {
        let op = node.op_type.as_deref().unwrap_or_default();
        let moves = matches!(
            op,
            "Identity"
                | "Cast"
                | "Reshape"
                | "Unsqueeze"
                | "Squeeze"
                | "Expand"
                | "Transpose"
                | "Slice"
        );
        let scales = matches!(op, "Sub" | "Add" | "Mul" | "Div");
        let known = |x: &String| fixed.contains(x.as_str());
        let one = |x: &String| near.contains(x.as_str());
        let of_near = node.input.iter().filter(|x| one(x)).count() == 1
            && node.input.iter().all(|x| one(x) || known(x));
        let all_known = node.input.iter().all(known);
        for y in node.output.iter().filter(|y| !y.is_empty()) {
            if op == "Constant" || (all_known && (moves || scales)) {
                fixed.insert(y);
            } else if of_near && (moves || scales) {
                near.insert(y);
            }
        }
    }
    near
}

/// Whether a tensor holds minus infinity, or nothing but zeros and one very negative number. A
/// scalar may be what a mask is filled with.
fn is_mask(src: &Source, name: &str, init: &Initializer) -> bool {
    if init.shape.len() == 1
        || matches!(init.storage, Storage::External { .. })
        || init.elements() > super::fold::MAX_FOLDED
    {
        return false;
    }
    let Ok(Tensor { data: Data::Real(v), .. }) = src.literal(name) else { return false };
    v.contains(&f64::NEG_INFINITY)
        || (v.iter().all(|&x| x == 0.0 || x <= -1e4) && v.iter().any(|&x| x != 0.0))
}

/// Whether a tensor is small enough to look at, and holds nothing but zeros.
fn is_zero(src: &Source, name: &str, init: &Initializer) -> bool {
    if matches!(init.storage, Storage::External { .. }) || init.elements() > super::fold::MAX_FOLDED
    {
        return false;
    }
    let literal = src.literal(name);
    matches!(literal, Ok(Tensor { data: Data::Real(v), .. }) if v.iter().all(|&x| x == 0.0))
}

enum Use {
    Is(Role),
    /// The elements reappear in the node's results, which have (about) these extents.
    Moves(Vec<usize>),
}

fn use_of(node: &NodeProto, k: usize, shape: &[usize]) -> Use {
    let op = node.op_type.as_deref().unwrap_or_default();
    let seen = Seen::default();
    let attrs = Attrs::new(node, &seen);
    let rank = shape.len();
    let last = |back: usize| if rank >= back { shape[rank - back] } else { 1 };
    Use::Is(match (op, k) {
        ("MatMul", 0) => Role::Weight { fan_in: last(1) },
        ("MatMul", 1) => Role::Weight { fan_in: last(2) },
        ("Gemm", 0 | 1) => {
            let flag = if k == 0 { "transA" } else { "transB" };
            let flipped = attrs.int(flag, 0).unwrap_or(0) != 0;
            // A is [m,k], B is [k,n].
            let inner = if (k == 0) == flipped { last(2) } else { last(1) };
            Role::Weight { fan_in: inner }
        }
        ("Conv" | "ConvTranspose", 1) => {
            Role::Weight { fan_in: shape.iter().skip(1).product::<usize>().max(1) }
        }
        ("Gemm" | "Conv" | "ConvTranspose", 2) => Role::Bias,
        ("BatchNormalization", 3) => Role::RunningMean,
        ("BatchNormalization", 4) => Role::RunningVar,
        (
            "BatchNormalization"
            | "LayerNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "RMSNormalization",
            1,
        ) => Role::Scale,
        (
            "BatchNormalization"
            | "LayerNormalization"
            | "InstanceNormalization"
            | "GroupNormalization",
            2,
        ) => Role::Bias,
        // PyTorch draws all of a recurrence by the size of its state.
        ("LSTM" | "GRU" | "RNN", 1 | 2) => {
            let hidden = usize::try_from(attrs.int("hidden_size", 0).unwrap_or(0)).unwrap_or(0);
            Role::Weight { fan_in: if hidden > 0 { hidden } else { last(1) } }
        }
        ("LSTM" | "GRU" | "RNN", 3) => Role::Bias,
        ("LSTM" | "GRU" | "RNN", 7) => Role::Scale,
        ("Gather" | "GatherND" | "GatherElements", 0) => Role::Embedding,
        ("Add" | "Sub" | "Sum", _) => {
            // [1,n] and the like are biases too; two real axes are a table of positions.
            if shape.iter().filter(|&&n| n > 1).count() >= 2 { Role::Embedding } else { Role::Bias }
        }
        ("Mul" | "Div", _) => Role::Scale,
        ("Transpose", 0) => {
            let mut moved: Vec<usize> = shape.iter().rev().copied().collect();
            if let Ok(Some(perm)) = attrs.ints("perm")
                && let Ok(moves) = super::moves::transpose(shape, Some(&perm))
            {
                moved = moves[0].shape(shape);
            }
            return Use::Moves(moved);
        }
        (
            "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Slice" | "Expand"
            | "Split" | "Tile" | "SplitToSequence" | "SequenceAt" | "CastLike" | "Dropout",
            0,
        )
        | ("Concat", _)
        | ("Where", 1 | 2) => return Use::Moves(shape.to_vec()),
        ("Cast", 0) => match super::fold::cast_target(&attrs) {
            Ok(e) if e.is_real() => return Use::Moves(shape.to_vec()),
            _ => Role::Constant,
        },
        (
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Not" | "And" | "Or"
            | "Xor" | "IsNaN" | "IsInf" | "Shape" | "Size" | "Range" | "ConstantOfShape" | "Where"
            | "Reshape" | "Expand" | "Slice" | "Split" | "Squeeze" | "Unsqueeze" | "Tile"
            | "Gather" | "GatherND" | "GatherElements" | "CastLike" | "ArgMax" | "Floor" | "Sign"
            | "Dropout",
            _,
        )
        | ("EyeLike", 0)
        | ("Resize" | "Clip" | "Pad" | "OneHot" | "TopK" | "CumSum" | "Trilu", 1..)
        // Tables of cosines and sines.
        | ("RotaryEmbedding", 1..) => Role::Constant,
        _ => Role::Other,
    })
}

/// How values that the model lacks are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum InitScheme {
    /// By use: weights uniform within ±1/√fan_in (Kaiming uniform with a = √5, what PyTorch's
    /// `Linear` and `Conv` do), embeddings normal with deviation 0.02, biases 0, scales 1, running
    /// mean 0 and variance 1. PyTorch draws biases too; which fan-in they had is not in the model.
    #[default]
    Default,
}

impl InitScheme {
    /// The first value of a parameter; `stream` tells parameters apart.
    pub fn of(self, role: Role, stream: u32) -> VarInit {
        match role {
            Role::Weight { fan_in } => {
                VarInit::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt(), stream }
            }
            Role::Embedding | Role::Other => VarInit::Normal { mean: 0.0, std: 0.02, stream },
            Role::Scale | Role::RunningVar => VarInit::Value(1.0),
            Role::Bias | Role::RunningMean | Role::Constant | Role::Unclear | Role::Buffer => {
                VarInit::Zeros
            }
        }
    }
}

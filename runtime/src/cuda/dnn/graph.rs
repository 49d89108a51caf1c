//! Graphs of operations, the engines that can run them, and running one.

use super::api::Cudnn;
use super::desc::{Desc, Kind, Name, Refusal, Values};
use super::engines::{
    Candidate, Remembered, Wanted, candidate, configurations, engines_first, saved, tagged,
};
use super::handle::Handle;
use super::{Limits, Target};
use crate::error::{Error, Result};
use cudarc::cudnn::sys as dnn;
use dnn::cudnnBackendAttributeType_t as Type;
use dnn::cudnnBackendHeurMode_t as Mode;
use dnn::cudnnPointwiseMode_t as Pointwise;
use dnn::cudnnReduceTensorOp_t as Reduce;
use precast_plan::DType;
use precast_plan::units;
use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// Formats of tensors of a graph, those that never reach memory included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    I32,
    Bool,
}

impl Format {
    /// `None` for formats that no graph here takes.
    pub fn of(dtype: DType) -> Option<Format> {
        Some(match dtype {
            DType::F32 => Format::F32,
            DType::F16 => Format::F16,
            DType::Bf16 => Format::Bf16,
            _ => return None,
        })
    }

    const fn number(self) -> c_int {
        use dnn::cudnnDataType_t as D;
        (match self {
            Format::F32 => D::CUDNN_DATA_FLOAT,
            Format::F16 => D::CUDNN_DATA_HALF,
            Format::Bf16 => D::CUDNN_DATA_BFLOAT16,
            Format::I32 => D::CUDNN_DATA_INT32,
            Format::Bool => D::CUDNN_DATA_BOOLEAN,
        }) as c_int
    }

    const fn value(self) -> Values<'static> {
        Values::Number(Type::CUDNN_TYPE_DATA_TYPE, self.number())
    }
}

/// Where the elements of a graph's tensor are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Home {
    /// In registers, between operations.
    Nowhere,
    /// One of the tensors that a run is given, by its number.
    Slot(usize),
    /// In the graph's own part of the workspace.
    Own { bytes: u64 },
    /// A number that the graph is given with its pointers, as its bits.
    Value(u32),
}

/// A tensor of a graph under construction.
#[derive(Clone)]
pub struct Tensor {
    pub dims: Vec<i64>,
    pub strides: Vec<i64>,
    desc: Arc<Desc>,
}

/// A graph under construction.
pub struct Builder {
    api: &'static Cudnn,
    ops: Vec<Desc>,
    tensors: Vec<Arc<Desc>>,
    bound: Vec<(i64, Home)>,
    next: i64,
}

/// Row-major strides.
pub fn dense(dims: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d] * dims[d];
    }
    strides
}

impl Builder {
    pub fn new(api: &'static Cudnn) -> Builder {
        Builder { api, ops: vec![], tensors: vec![], bound: vec![], next: 1 }
    }

    pub fn tensor(
        &mut self,
        dims: &[i64],
        strides: &[i64],
        format: Format,
        home: Home,
    ) -> std::result::Result<Tensor, Refusal> {
        let uid = self.next;
        self.next += 1;
        let mut d = Desc::new(self.api, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, Values::Ints(&[uid]))?
            .set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, format.value())?
            .set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, Values::Ints(dims))?
            .set(Name::CUDNN_ATTR_TENSOR_STRIDES, Values::Ints(strides))?
            .set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, Values::Ints(&[alignment(home)]))?;
        match home {
            Home::Nowhere => d = d.set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, Values::Bool(true))?,
            Home::Value(_) => d = d.set(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, Values::Bool(true))?,
            Home::Slot(_) | Home::Own { .. } => {}
        }
        let desc = Arc::new(d.finalize()?);
        self.tensors.push(desc.clone());
        if home != Home::Nowhere {
            self.bound.push((uid, home));
        }
        Ok(Tensor { dims: dims.to_vec(), strides: strides.to_vec(), desc })
    }

    /// A tensor of `like`'s extents that never reaches memory.
    pub fn inner(&mut self, like: &Tensor, f: Format) -> std::result::Result<Tensor, Refusal> {
        self.tensor(&like.dims.clone(), &like.strides.clone(), f, Home::Nowhere)
    }

    pub fn number(&mut self, x: f32) -> std::result::Result<Tensor, Refusal> {
        self.tensor(&[1; 4], &[1; 4], Format::F32, Home::Value(x.to_bits()))
    }

    /// `y = mode(x)` or `mode(x, b)`; with `t`, `y = t ? x : b`.
    pub fn pointwise(
        &mut self,
        mode: Pointwise,
        math: Format,
        x: &Tensor,
        b: Option<&Tensor>,
        t: Option<&Tensor>,
        y: &Tensor,
    ) -> std::result::Result<(), Refusal> {
        self.pointwise_on(mode, math, None, x, b, t, y)
    }

    /// The index along `axis` of every element of `like`.
    pub fn index(&mut self, axis: i64, like: &Tensor) -> std::result::Result<Tensor, Refusal> {
        let y = self.inner(like, Format::I32)?;
        let mode = Pointwise::CUDNN_POINTWISE_GEN_INDEX;
        self.pointwise_on(mode, Format::F32, Some(axis), like, None, None, &y)?;
        Ok(y)
    }

    #[allow(clippy::too_many_arguments)]
    fn pointwise_on(
        &mut self,
        mode: Pointwise,
        math: Format,
        axis: Option<i64>,
        x: &Tensor,
        b: Option<&Tensor>,
        t: Option<&Tensor>,
        y: &Tensor,
    ) -> std::result::Result<(), Refusal> {
        let mut p = Desc::new(self.api, Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?
            .set(
                Name::CUDNN_ATTR_POINTWISE_MODE,
                Values::Number(Type::CUDNN_TYPE_POINTWISE_MODE, mode as c_int),
            )?
            .set(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, math.value())?;
        if let Some(axis) = axis {
            p = p.set(Name::CUDNN_ATTR_POINTWISE_AXIS, Values::Ints(&[axis]))?;
        }
        let p = p.finalize()?;
        let mut op = Desc::new(self.api, Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?
            .with(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &p)?
            .with(Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &x.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &y.desc)?;
        if let Some(b) = b {
            op = op.with(Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, &b.desc)?;
        }
        if let Some(t) = t {
            op = op.with(Name::CUDNN_ATTR_OPERATION_POINTWISE_TDESC, &t.desc)?;
        }
        self.ops.push(op.finalize()?);
        Ok(())
    }

    /// `y` is `x` reduced along the axes where `y` has extent 1, in f32.
    pub fn reduce(
        &mut self,
        op: Reduce,
        x: &Tensor,
        y: &Tensor,
    ) -> std::result::Result<(), Refusal> {
        let r = Desc::new(self.api, Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_REDUCTION_COMP_TYPE, Format::F32.value())?
            .set(
                Name::CUDNN_ATTR_REDUCTION_OPERATOR,
                Values::Number(Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, op as c_int),
            )?
            .finalize()?;
        let op = Desc::new(self.api, Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)?
            .with(Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, &x.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, &y.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC, &r)?
            .finalize()?;
        self.ops.push(op);
        Ok(())
    }

    /// `c = a b` over the last two axes, sums in f32.
    pub fn matmul(
        &mut self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
    ) -> std::result::Result<(), Refusal> {
        let m = Desc::new(self.api, Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_MATMUL_COMP_TYPE, Format::F32.value())?
            .finalize()?;
        let op = Desc::new(self.api, Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)?
            .with(Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, &a.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, &b.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, &c.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_MATMUL_DESC, &m)?
            .finalize()?;
        self.ops.push(op);
        Ok(())
    }

    /// `y` is `x` under `y`'s extents and strides.
    pub fn reshape(&mut self, x: &Tensor, y: &Tensor) -> std::result::Result<(), Refusal> {
        let op = Desc::new(self.api, Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR)?
            .with(Name::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, &x.desc)?
            .with(Name::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, &y.desc)?
            .finalize()?;
        self.ops.push(op);
        Ok(())
    }

    /// A convolution; `names` are the attributes of x, w, y, the convolution, alpha and beta.
    pub fn convolution(
        &mut self,
        kind: Kind,
        names: [Name; 6],
        tensors: [&Tensor; 3],
        shape: &Convolution,
    ) -> std::result::Result<(), Refusal> {
        let mode = dnn::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION as c_int;
        let c = Desc::new(self.api, Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, Values::Ints(&[2]))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, Format::F32.value())?
            .set(
                Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
                Values::Number(Type::CUDNN_TYPE_CONVOLUTION_MODE, mode),
            )?
            .set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, Values::Ints(&shape.before))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, Values::Ints(&shape.after))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, Values::Ints(&shape.dilation))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, Values::Ints(&shape.stride))?
            .finalize()?;
        let [x, w, y, conv, alpha, beta] = names;
        let op = Desc::new(self.api, kind)?
            .with(x, &tensors[0].desc)?
            .with(w, &tensors[1].desc)?
            .with(y, &tensors[2].desc)?
            .with(conv, &c)?
            .set(alpha, Values::Float(1.0))?
            .set(beta, Values::Float(if shape.adds { 1.0 } else { 0.0 }))?
            .finalize()?;
        self.ops.push(op);
        Ok(())
    }

    /// The graph with engines that can run it and that `wanted` lets through, best first by cuDNN's
    /// own estimate, then with other knobs of them, within the limits; with `only` that one,
    /// where there is one.
    pub fn build(
        self,
        target: &Target,
        wanted: &Wanted,
        only: Option<&Remembered>,
        limits: Limits,
    ) -> std::result::Result<Graph, Refusal> {
        let own = self.bound.iter().map(|b| match b.1 {
            Home::Own { bytes } => aligned(bytes),
            _ => 0,
        });
        let own: u64 = own.sum();
        let workspace = limits.workspace.saturating_sub(own);
        if own > limits.workspace {
            let (need, most) = (units::bytes(own), units::bytes(limits.workspace));
            return Err(format!("it needs {need} of workspace, and it may have {most}"));
        }
        if let Some(c) = only.and_then(|r| saved(self.api, target, r, workspace)) {
            return Ok(Graph { api: self.api, candidates: vec![c], bound: self.bound, own });
        }
        let ops: Vec<&Desc> = self.ops.iter().collect();
        let graph = Desc::new(self.api, Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, Values::Of(&ops))?;
        let graph = target.graph(graph)?.finalize()?;
        if let Some(r) = only
            && let Some(c) = tagged(self.api, &graph, target, wanted, workspace, &r.tag)
        {
            return Ok(Graph { api: self.api, candidates: vec![c], bound: self.bound, own });
        }
        let mut candidates: Vec<Candidate> = vec![];
        let mut refused = vec![];
        let mut tried = BTreeSet::new();
        let mut compiled = 0;
        for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
            if candidates.len() >= limits.candidates {
                break;
            }
            let list = match configurations(self.api, &graph, target, mode) {
                Ok(list) => list,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            for config in engines_first(list) {
                if candidates.len() >= limits.candidates {
                    break;
                }
                // The list to fall back on says nothing of speed, and may repeat what was tried.
                let fallback = mode == Mode::CUDNN_HEUR_MODE_FALLBACK;
                let most = if fallback && !candidates.is_empty() { 0 } else { wanted.compiled };
                if (compiled >= most && config.compiles()) || !tried.insert(config.name.clone()) {
                    continue;
                }
                match candidate(self.api, &config, target, wanted, workspace) {
                    Ok(c) => {
                        compiled += usize::from(config.compiles());
                        candidates.push(c);
                    }
                    Err(why) => refused.push(why),
                }
            }
        }
        if candidates.is_empty() {
            refused.dedup();
            refused.truncate(3);
            return Err(if refused.is_empty() {
                "cuDNN has no engine for it".into()
            } else {
                refused.join("; ")
            });
        }
        Ok(Graph { api: self.api, candidates, bound: self.bound, own })
    }
}

const fn alignment(home: Home) -> i64 {
    match home {
        Home::Value(_) => 4,
        _ => 16,
    }
}

const fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(256)
}

/// Sizes of a 2-d convolution; pairs are along height and width.
pub struct Convolution {
    pub before: [i64; 2],
    pub after: [i64; 2],
    pub dilation: [i64; 2],
    pub stride: [i64; 2],
    /// The result is added to what stands where it goes: β is 1.
    pub adds: bool,
}

/// A graph and the ways of running it.
pub struct Graph {
    api: &'static Cudnn,
    candidates: Vec<Candidate>,
    bound: Vec<(i64, Home)>,
    own: u64,
}

impl Graph {
    /// How many ways there are; at least one. The first is cuDNN's own choice.
    pub fn candidates(&self) -> usize {
        self.candidates.len()
    }

    /// What tells a candidate from the others of this graph and release, for remembering a choice.
    pub fn tag(&self, candidate: usize) -> &str {
        &self.candidates[candidate].tag
    }

    /// A candidate as text that another process makes it from again, with the kernels that were
    /// compiled for it; `None` where cuDNN has none.
    pub fn saved(&self, candidate: usize) -> Option<Vec<u8>> {
        let name = Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION;
        self.candidates[candidate].plan.text(name).ok().filter(|t| !t.is_empty())
    }

    /// Bytes of workspace that a candidate needs, to be 256-byte aligned.
    pub fn workspace(&self, candidate: usize) -> u64 {
        self.own + self.candidates[candidate].workspace
    }

    /// Enqueues a candidate on the handle's stream. May be captured into a CUDA graph.
    ///
    /// # Errors
    /// `R0720` with cuDNN's words.
    ///
    /// # Safety
    /// `slots` are device addresses of the tensors that the graph was built for, 16-byte aligned,
    /// and `workspace` is the address of [`Graph::workspace`] bytes; all stay valid until the
    /// stream has run what was enqueued.
    pub unsafe fn run(
        &self,
        candidate: usize,
        handle: &Handle,
        slots: &[u64],
        workspace: u64,
    ) -> Result<()> {
        let chosen = &self.candidates[candidate];
        let mut numbers: Vec<Box<u32>> = vec![];
        let mut own = workspace;
        let mut uids = Vec::with_capacity(self.bound.len());
        let mut pointers: Vec<*mut c_void> = Vec::with_capacity(self.bound.len());
        for &(uid, home) in &self.bound {
            uids.push(uid);
            pointers.push(match home {
                Home::Slot(i) => slots[i] as *mut c_void,
                Home::Own { bytes } => {
                    let at = own;
                    own += aligned(bytes);
                    at as *mut c_void
                }
                Home::Value(bits) => {
                    numbers.push(Box::new(bits));
                    let last = numbers.last_mut().expect("just pushed");
                    (&raw mut **last).cast()
                }
                Home::Nowhere => unreachable!("only tensors in memory are bound"),
            });
        }
        let pack = || -> std::result::Result<Desc, Refusal> {
            Desc::new(self.api, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
                .set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Values::Ints(&uids))?
                .set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Values::Pointers(&pointers))?
                .set(
                    Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                    Values::Pointers(&[own as *mut c_void]),
                )?
                .finalize()
        };
        let pack =
            pack().map_err(|why| Error::new("R0720", format!("binding a cuDNN graph: {why}")))?;
        // SAFETY: the handle and both descriptors are live and finalised; the caller's contract.
        let status =
            unsafe { self.api.cudnnBackendExecute(handle.raw, chosen.plan.raw(), pack.raw()) };
        self.api.check(status, "running a cuDNN graph")
    }
}

//! Convolutions: forward with bias and ReLU, data gradient, filter gradient.

use super::Dnn;
use super::desc::{Kind, Name, Refusal};
use super::engines::Wanted;
use super::graph::{Builder, Convolution, Format, Graph, Home, Tensor, dense};
use cudarc::cudnn::sys::cudnnPointwiseMode_t as Pointwise;
use precast_plan::{
    Access, Conv, ConvGeometry, ConvKind, DType, Epilogue, EpilogueKind, Math, Plan, TensorId,
};

/// What a convolution stores. Its slots are a, b, the result, and the epilogue's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stores {
    /// What the epilogue makes, which must be one that cuDNN knows: `Store`, `Accumulate`, `Bias` or
    /// `BiasRelu`.
    Epilogue,
    /// The f32 sums, with `sums_strides`, for a kernel that runs the epilogue's program afterwards.
    Sums,
}

/// Extents of x, w and y.
fn extents(g: &ConvGeometry) -> [[i64; 4]; 3] {
    let n = |x: u64| x as i64;
    [
        [n(g.n), n(g.c), n(g.h), n(g.w)],
        [n(g.o), n(g.c / g.groups), n(g.kh), n(g.kw)],
        [n(g.n), n(g.o), n(g.oh), n(g.ow)],
    ]
}

pub(super) fn dtype(plan: &Plan, tensor: TensorId) -> DType {
    plan.tensors[tensor as usize].dtype
}

/// Strides where axes of extent 1 have what a dense tensor has there, in the order of its axes or
/// with its channels `last`: plans may write 0, which cuDNN takes for a broadcast.
fn strides(dims: &[i64; 4], a: &[i64], last: bool) -> Vec<i64> {
    let mut out = a.to_vec();
    let mut reach = 1;
    for d in if last { [1, 3, 2, 0] } else { [3, 2, 1, 0] } {
        if dims[d] == 1 {
            // One channel steps by 1 in either order.
            out[d] = if d == 1 { 1 } else { reach };
        }
        reach = reach.max(dims[d] * out[d]);
    }
    out
}

/// Whether a tensor has its channels innermost, where that can be told from its strides.
fn is_last(dims: &[i64; 4], a: &[i64]) -> bool {
    dims[1] > 1 && dims[2] * dims[3] > 1 && a[1] == 1
}

/// Strides of f32 sums that an epilogue reads: their channels are innermost where the result's are.
pub fn sums_strides(dims: &[i64; 4], e: &Epilogue) -> Vec<i64> {
    let [_, c, h, w] = *dims;
    match e.outputs.first() {
        Some(out) if out.strides[1] == 1 && c > 1 => vec![h * w * c, 1, w * c, c],
        _ => dense(dims),
    }
}

impl Dnn {
    /// A convolution of the plan.
    pub(super) fn build_conv(
        &self,
        c: &Conv,
        plan: &Plan,
        stores: Stores,
    ) -> Result<Graph, Refusal> {
        let f32_result = match stores {
            Stores::Sums => true,
            Stores::Epilogue => {
                matches!(c.epilogue.kind, EpilogueKind::Store | EpilogueKind::Accumulate)
                    && c.epilogue.outputs.iter().all(|o| dtype(plan, o.tensor) == DType::F32)
            }
        };
        // Most releases have no engine for f32 sums of 16-bit operands, but engines that fuse what
        // follows a convolution keep those sums in f32 and store them as any format.
        if f32_result && dtype(plan, c.a.tensor) != DType::F32 {
            let copied = self.conv_graph(c, plan, stores, true);
            if copied.is_ok() {
                return copied;
            }
        }
        self.conv_graph(c, plan, stores, false)
    }

    /// With `copied`, a result without an epilogue is stored by an operation of its own.
    fn conv_graph(
        &self,
        c: &Conv,
        plan: &Plan,
        stores: Stores,
        copied: bool,
    ) -> Result<Graph, Refusal> {
        let mut b = Builder::new(self.api);
        let [x, w, y] = extents(&c.geometry);
        let (a_dims, b_dims, out_dims) = match c.kind {
            ConvKind::Forward => (x, w, y),
            ConvKind::DataGrad => (y, w, x),
            ConvKind::FilterGrad => (x, y, w),
        };
        let format = |t: TensorId| {
            let d = dtype(plan, t);
            Format::of(d).ok_or_else(|| format!("cuDNN does not convolve {d}"))
        };
        // Tensors of one pixel lie either way; they are described as the others.
        let results = c.epilogue.outputs.iter().map(|o| (&out_dims, o));
        let last = [(&a_dims, &c.a), (&b_dims, &c.b)]
            .into_iter()
            .chain(results)
            .any(|(dims, a)| is_last(dims, &a.strides));
        let operand = |b: &mut Builder, a: &Access, dims: &[i64; 4], slot: usize| {
            b.tensor(dims, &strides(dims, &a.strides, last), format(a.tensor)?, Home::Slot(slot))
        };
        let left = operand(&mut b, &c.a, &a_dims, 0)?;
        let right = operand(&mut b, &c.b, &b_dims, 1)?;
        let e = &c.epilogue;
        let (out_strides, out_format, kind) = match stores {
            Stores::Sums => (sums_strides(&out_dims, e), Format::F32, EpilogueKind::Store),
            Stores::Epilogue => {
                let [out] = &e.outputs[..] else {
                    return Err("the epilogue stores two results".into());
                };
                (strides(&out_dims, &out.strides, last), format(out.tensor)?, e.kind)
            }
        };
        let result = |b: &mut Builder| b.tensor(&out_dims, &out_strides, out_format, Home::Slot(2));
        match kind {
            EpilogueKind::Store | EpilogueKind::Accumulate => {
                let y = result(&mut b)?;
                let adds = kind == EpilogueKind::Accumulate;
                if copied {
                    let sums = b.inner(&y, Format::F32)?;
                    convolve(&mut b, c, [&left, &right, &sums], false)?;
                    if adds {
                        let slot = Home::Slot(3);
                        let old = b.tensor(&out_dims, &out_strides, out_format, slot)?;
                        let add = Pointwise::CUDNN_POINTWISE_ADD;
                        b.pointwise(add, Format::F32, &sums, Some(&old), None, &y)?;
                    } else {
                        let copy = Pointwise::CUDNN_POINTWISE_IDENTITY;
                        b.pointwise(copy, Format::F32, &sums, None, None, &y)?;
                    }
                } else {
                    convolve(&mut b, c, [&left, &right, &y], adds)?;
                }
            }
            EpilogueKind::Bias | EpilogueKind::BiasRelu => {
                let sums = b.tensor(&out_dims, &out_strides, Format::F32, Home::Nowhere)?;
                convolve(&mut b, c, [&left, &right, &sums], false)?;
                let vector = &e.inputs[0];
                let n = out_dims[1];
                let bias =
                    b.tensor(&[1, n, 1, 1], &[n, 1, n, n], format(vector.tensor)?, Home::Slot(3))?;
                if vector.strides[1] != 1 && n > 1 {
                    return Err("the bias is not dense".into());
                }
                let add = Pointwise::CUDNN_POINTWISE_ADD;
                if kind == EpilogueKind::Bias {
                    let y = result(&mut b)?;
                    b.pointwise(add, Format::F32, &sums, Some(&bias), None, &y)?;
                } else {
                    let pre = b.inner(&sums, Format::F32)?;
                    b.pointwise(add, Format::F32, &sums, Some(&bias), None, &pre)?;
                    let y = result(&mut b)?;
                    relu(&mut b, &pre, &y)?;
                }
            }
            kind => return Err(format!("cuDNN has no epilogue {kind:?}")),
        }
        let f32s = dtype(plan, c.a.tensor) == DType::F32;
        let exact = f32s && c.math == Math::Exact;
        self.build(b, &Wanted { compiled: COMPILED, exact, deterministic: true })
    }
}

/// Candidates that may compile their kernel: a network has dozens of convolutions, and those that no
/// other engine runs wait for each.
const COMPILED: usize = 2;

/// `y = x < 0 ? 0 : x`. NaN compares false and stays: one made 0 would hide an overflow. cuDNN's own
/// ReLU keeps it by the promise of an engine alone, and those on tensor cores promise nothing.
fn relu(b: &mut Builder, x: &Tensor, y: &Tensor) -> Result<(), Refusal> {
    let zero = b.number(0.0)?;
    let below = b.inner(x, Format::Bool)?;
    let (lt, select) =
        (Pointwise::CUDNN_POINTWISE_CMP_LT, Pointwise::CUDNN_POINTWISE_BINARY_SELECT);
    b.pointwise(lt, Format::F32, x, Some(&zero), None, &below)?;
    b.pointwise(select, Format::F32, &zero, Some(x), Some(&below), y)
}

fn convolve(
    b: &mut Builder,
    c: &Conv,
    [left, right, out]: [&Tensor; 3],
    adds: bool,
) -> Result<(), Refusal> {
    use Name::*;
    let g = &c.geometry;
    let pair = |p: [u64; 2]| [p[0] as i64, p[1] as i64];
    let shape = Convolution {
        before: [g.pad[0] as i64, g.pad[1] as i64],
        after: [g.pad[2] as i64, g.pad[3] as i64],
        dilation: pair(g.dilation),
        stride: pair(g.stride),
        adds,
    };
    match c.kind {
        ConvKind::Forward => b.convolution(
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            [
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
            ],
            [left, right, out],
            &shape,
        ),
        ConvKind::DataGrad => b.convolution(
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            [
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
            ],
            [out, right, left],
            &shape,
        ),
        ConvKind::FilterGrad => b.convolution(
            Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            [
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
            ],
            [left, out, right],
            &shape,
        ),
    }
}

//! Convolutions: forward with bias and ReLU, data gradient, filter gradient.

use super::Dnn;
use super::desc::{Kind, Name, Refusal};
use super::graph::{Builder, Convolution, Format, Graph, Home, Tensor, Wanted, dense};
use cudarc::cudnn::sys::cudnnPointwiseMode_t as Pointwise;
use precast_plan::{
    Access, Conv, ConvGeometry, ConvKind, DType, EpilogueKind, Math, Plan, TensorId,
};

/// What a convolution stores. Its slots are a, b, the result, and the epilogue's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stores {
    /// What the epilogue makes, which must be one that cuDNN knows: `Store`, `Bias` or `BiasRelu`.
    Epilogue,
    /// The f32 sums, dense, for a kernel that runs the epilogue's program afterwards.
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

/// Strides where axes of extent 1 have what a dense tensor of the same order would have: plans
/// write 0 there, which cuDNN takes for a broadcast.
fn strides(dims: &[i64], a: &[i64]) -> Vec<i64> {
    let reach = |d: usize| dims[d] * a[d];
    let mut out = a.to_vec();
    for d in 0..dims.len() {
        if dims[d] == 1 {
            // As far as everything inside it reaches; the innermost axis steps by 1.
            let channels_last = dims.len() == 4 && dims[1] > 1 && a[1] == 1;
            out[d] = if d == 1 || (d == 3 && !channels_last) {
                1
            } else {
                (0..dims.len()).filter(|&e| dims[e] > 1).map(reach).max().unwrap_or(1)
            };
        }
    }
    out
}

impl Dnn {
    /// A convolution of the plan.
    pub(super) fn build_conv(
        &self,
        c: &Conv,
        plan: &Plan,
        stores: Stores,
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
        let operand = |b: &mut Builder, a: &Access, dims: &[i64; 4], slot: usize| {
            b.tensor(dims, &strides(dims, &a.strides), format(a.tensor)?, Home::Slot(slot))
        };
        let left = operand(&mut b, &c.a, &a_dims, 0)?;
        let right = operand(&mut b, &c.b, &b_dims, 1)?;
        let e = &c.epilogue;
        let (out_strides, out_format, kind) = match stores {
            Stores::Sums => (dense(&out_dims), Format::F32, EpilogueKind::Store),
            Stores::Epilogue => {
                let [out] = &e.outputs[..] else {
                    return Err("the epilogue stores two results".into());
                };
                (strides(&out_dims, &out.strides), format(out.tensor)?, e.kind)
            }
        };
        let last = |b: &mut Builder| b.tensor(&out_dims, &out_strides, out_format, Home::Slot(2));
        match kind {
            EpilogueKind::Store => {
                let y = last(&mut b)?;
                convolve(&mut b, c, &left, &right, &y)?;
            }
            EpilogueKind::Bias | EpilogueKind::BiasRelu => {
                let sums = b.tensor(&out_dims, &out_strides, Format::F32, Home::Nowhere)?;
                convolve(&mut b, c, &left, &right, &sums)?;
                let vector = &e.inputs[0];
                let n = out_dims[1];
                let bias =
                    b.tensor(&[1, n, 1, 1], &[n, 1, n, n], format(vector.tensor)?, Home::Slot(3))?;
                if vector.strides[1] != 1 && n > 1 {
                    return Err("the bias is not dense".into());
                }
                let add = Pointwise::CUDNN_POINTWISE_ADD;
                if kind == EpilogueKind::Bias {
                    let y = last(&mut b)?;
                    b.pointwise(add, Format::F32, &sums, Some(&bias), None, &y)?;
                } else {
                    let pre = b.inner(&sums, Format::F32)?;
                    b.pointwise(add, Format::F32, &sums, Some(&bias), None, &pre)?;
                    let y = last(&mut b)?;
                    let relu = Pointwise::CUDNN_POINTWISE_RELU_FWD;
                    b.pointwise(relu, Format::F32, &pre, None, None, &y)?;
                }
            }
            kind => return Err(format!("cuDNN has no epilogue {kind:?}")),
        }
        let f32s = dtype(plan, c.a.tensor) == DType::F32;
        let wanted = Wanted { exact: f32s && c.math == Math::Exact, deterministic: true };
        self.build(b, &wanted)
    }
}

fn convolve(
    b: &mut Builder,
    c: &Conv,
    left: &Tensor,
    right: &Tensor,
    out: &Tensor,
) -> Result<(), Refusal> {
    use Name::*;
    let g = &c.geometry;
    let pair = |p: [u64; 2]| [p[0] as i64, p[1] as i64];
    let shape = Convolution {
        before: [g.pad[0] as i64, g.pad[1] as i64],
        after: [g.pad[2] as i64, g.pad[3] as i64],
        dilation: pair(g.dilation),
        stride: pair(g.stride),
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

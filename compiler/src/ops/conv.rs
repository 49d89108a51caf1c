//! 2-d convolution and its two gradients, NCHW (cross-correlation, as in ONNX and PyTorch).

use super::{GradCx, Grads, Linear, Lowering, NumericClass, OpDef, signature};
use crate::ir::TensorType;
use precast_plan::{ConvGeometry, Math};

op! {
    /// x [n,c,h,w], w [o,c/groups,kh,kw] → y [n,o,oh,ow]. `pad`: top, left, bottom, right.
    Conv2d = "conv2d" { stride: [usize; 2], pad: [usize; 4], dilation: [usize; 2], groups: usize }
        or { math: Math }
}
op! {
    /// dy [n,o,oh,ow], w → dx [n,c,h,w] with `size` = [h,w].
    Conv2dDataGrad = "conv2d_data_grad" {
        stride: [usize; 2], pad: [usize; 4], dilation: [usize; 2], groups: usize, size: [usize; 2],
    } or { math: Math }
}
op! {
    /// x, dy → dw [o,c/groups,kh,kw] with `kernel` = [kh,kw].
    Conv2dFilterGrad = "conv2d_filter_grad" {
        stride: [usize; 2], pad: [usize; 4], dilation: [usize; 2], groups: usize, kernel: [usize; 2],
    } or { math: Math }
}

/// Extent of a convolution's or pool's result along one axis.
///
/// # Errors
/// Where the window does not fit into the padded operand, or a stride or dilation is zero.
pub fn out_extent(
    size: usize,
    kernel: usize,
    stride: usize,
    pad: (usize, usize),
    dilation: usize,
) -> Result<usize, String> {
    if kernel == 0 || stride == 0 || dilation == 0 {
        return Err("kernel, stride and dilation are at least 1".into());
    }
    let window = (kernel - 1)
        .checked_mul(dilation)
        .and_then(|w| w.checked_add(1))
        .ok_or("the window overflows")?;
    let padded = size
        .checked_add(pad.0)
        .and_then(|s| s.checked_add(pad.1))
        .ok_or("the padding overflows")?;
    if padded < window {
        return Err(format!("a window of {window} does not fit into {padded} (with padding)"));
    }
    Ok((padded - window) / stride + 1)
}

/// Sizes from operand shapes [n,c,h,w] and [o,c/g,kh,kw].
pub fn geometry(
    x: &[usize],
    w: &[usize],
    stride: [usize; 2],
    pad: [usize; 4],
    dilation: [usize; 2],
    groups: usize,
) -> Result<ConvGeometry, String> {
    if x.len() != 4 || w.len() != 4 {
        return Err(format!("{x:?} and {w:?} are not 4-dimensional"));
    }
    if groups == 0
        || !x[1].is_multiple_of(groups)
        || !w[0].is_multiple_of(groups)
        || x[1] / groups != w[1]
    {
        return Err(format!("channels of {x:?} and filters {w:?} do not fit {groups} groups"));
    }
    let oh = out_extent(x[2], w[2], stride[0], (pad[0], pad[2]), dilation[0])?;
    let ow = out_extent(x[3], w[3], stride[1], (pad[1], pad[3]), dilation[1])?;
    let u = |n: usize| n as u64;
    Ok(ConvGeometry {
        n: u(x[0]),
        c: u(x[1]),
        h: u(x[2]),
        w: u(x[3]),
        o: u(w[0]),
        kh: u(w[2]),
        kw: u(w[3]),
        oh: u(oh),
        ow: u(ow),
        stride: stride.map(u),
        pad: pad.map(u),
        dilation: dilation.map(u),
        groups: u(groups),
    })
}

fn conv_flops(g: &ConvGeometry) -> f64 {
    2.0 * (g.n * g.o * g.oh * g.ow) as f64 * (g.c / g.groups * g.kh * g.kw) as f64
}

impl Conv2d {
    pub fn geometry(&self, x: &TensorType, w: &TensorType) -> Result<ConvGeometry, String> {
        geometry(&x.shape, &w.shape, self.stride, self.pad, self.dilation, self.groups)
    }
}

impl Conv2dDataGrad {
    pub fn geometry(&self, dy: &TensorType, w: &TensorType) -> Result<ConvGeometry, String> {
        if dy.shape.rank() != 4 || w.shape.rank() != 4 {
            return Err(format!("{dy} and {w} are not 4-dimensional"));
        }
        let c = w.shape[1].checked_mul(self.groups).ok_or("the channels overflow")?;
        let x = [dy.shape[0], c, self.size[0], self.size[1]];
        let g = geometry(&x, &w.shape, self.stride, self.pad, self.dilation, self.groups)?;
        if dy.shape[..] != [g.n, g.o, g.oh, g.ow].map(|v| v as usize) {
            return Err(format!("the cotangent is {dy}, not that of a result of {x:?}"));
        }
        Ok(g)
    }
}

impl Conv2dFilterGrad {
    pub fn geometry(&self, x: &TensorType, dy: &TensorType) -> Result<ConvGeometry, String> {
        if dy.shape.rank() != 4 || x.shape.rank() != 4 || self.groups == 0 {
            return Err(format!("{x} and {dy} are not 4-dimensional"));
        }
        let w = [dy.shape[1], x.shape[1] / self.groups, self.kernel[0], self.kernel[1]];
        let g = geometry(&x.shape, &w, self.stride, self.pad, self.dilation, self.groups)?;
        if dy.shape[..] != [g.n, g.o, g.oh, g.ow].map(|v| v as usize) {
            return Err(format!("the cotangent is {dy}, not that of a result of {x}"));
        }
        Ok(g)
    }
}

macro_rules! conv_op {
    ($ty:ident, |$g:ident| $shape:expr, |$self:ident, $cx:ident, $a:ident, $b:ident, $dy:ident| $grad:expr) => {
        impl OpDef for $ty {
            fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                signature(x, "rr")?;
                let $g = self.geometry(x[0], x[1])?;
                let shape: Vec<usize> = $shape.map(|v: u64| v as usize).to_vec();
                Ok(vec![TensorType::f32(shape)])
            }
            fn class(&self) -> NumericClass {
                NumericClass::Product
            }
            fn lowering(&self) -> Lowering {
                Lowering::Kernel
            }
            fn linear(&self) -> Linear {
                Linear::Each(&[0, 1])
            }
            fn gradient(&$self, $cx: &mut GradCx) -> Result<Grads, String> {
                let ($a, $b, $dy) = ($cx.x(0), $cx.x(1), $cx.only_dy(0)?);
                let (da, db) = $grad;
                Ok(vec![Some(da), Some(db)])
            }
            fn flops(&self, x: &[&TensorType], _: &[&TensorType]) -> f64 {
                self.geometry(x[0], x[1]).map_or(0.0, |g| conv_flops(&g))
            }
        }
    };
}

conv_op!(Conv2d, |g| [g.n, g.o, g.oh, g.ow], |self, cx, x, w, dy| {
    let (xs, ws) = (cx.shape(x), cx.shape(w));
    let (da, db) = (self.data_grad([xs[2], xs[3]]), self.filter_grad([ws[2], ws[3]]));
    (cx.op(da, &[dy, w]), cx.op(db, &[x, dy]))
});
conv_op!(Conv2dDataGrad, |g| [g.n, g.c, g.h, g.w], |self, cx, y, w, dx| {
    let ws = cx.shape(w);
    let conv = self.forward();
    let dw = conv.filter_grad([ws[2], ws[3]]);
    (cx.op(conv, &[dx, w]), cx.op(dw, &[dx, y]))
});
conv_op!(Conv2dFilterGrad, |g| [g.o, g.c / g.groups, g.kh, g.kw], |self, cx, x, y, dw| {
    let xs = cx.shape(x);
    let conv = self.forward();
    let da = conv.data_grad([xs[2], xs[3]]);
    (cx.op(da, &[y, dw]), cx.op(conv, &[x, dw]))
});

impl Conv2d {
    /// The gradient with respect to an operand of extents `size`.
    pub fn data_grad(&self, size: [usize; 2]) -> Conv2dDataGrad {
        let Conv2d { stride, pad, dilation, groups, math } = *self;
        Conv2dDataGrad { stride, pad, dilation, groups, size, math }
    }
    /// The gradient with respect to filters of extents `kernel`.
    pub fn filter_grad(&self, kernel: [usize; 2]) -> Conv2dFilterGrad {
        let Conv2d { stride, pad, dilation, groups, math } = *self;
        Conv2dFilterGrad { stride, pad, dilation, groups, kernel, math }
    }
}

impl Conv2dDataGrad {
    fn forward(&self) -> Conv2d {
        let Conv2dDataGrad { stride, pad, dilation, groups, math, .. } = *self;
        Conv2d { stride, pad, dilation, groups, math }
    }
}

impl Conv2dFilterGrad {
    fn forward(&self) -> Conv2d {
        let Conv2dFilterGrad { stride, pad, dilation, groups, math, .. } = *self;
        Conv2d { stride, pad, dilation, groups, math }
    }
}

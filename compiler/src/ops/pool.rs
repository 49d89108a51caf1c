//! 2-d max pooling, NCHW.

use super::conv::out_extent;
use super::{GradCx, Grads, Linear, Lowering, NumericClass, OpDef, signature};
use crate::ir::TensorType;
use precast_plan::{ConvGeometry, DType};

op! {
    /// x [n,c,h,w] → y [n,c,oh,ow] and the place of each maximum in its window, u8 (row × kernel
    /// width + column; the first of equals). Padding never wins.
    MaxPool2d = "max_pool2d" { kernel: [usize; 2], stride: [usize; 2], pad: [usize; 4] }
}
op! {
    /// dy, index → dx [n,c,h,w] with `size` = [h,w].
    MaxPool2dGrad = "max_pool2d_grad" {
        kernel: [usize; 2], stride: [usize; 2], pad: [usize; 4], size: [usize; 2],
    }
}

/// Sizes of a pool over [n,c,h,w].
pub fn pool_geometry(
    x: &[usize],
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 4],
) -> Result<ConvGeometry, String> {
    if x.len() != 4 {
        return Err(format!("{x:?} is not 4-dimensional"));
    }
    if kernel[0].saturating_mul(kernel[1]) > 256 {
        return Err(format!("a window of {kernel:?} has more than 256 elements"));
    }
    if pad[0].max(pad[2]) >= kernel[0].max(1) || pad[1].max(pad[3]) >= kernel[1].max(1) {
        return Err(format!("padding {pad:?} reaches the window {kernel:?}"));
    }
    if x[2] == 0 || x[3] == 0 {
        return Err(format!("{x:?} has no elements to pool"));
    }
    let oh = out_extent(x[2], kernel[0], stride[0], (pad[0], pad[2]), 1)?;
    let ow = out_extent(x[3], kernel[1], stride[1], (pad[1], pad[3]), 1)?;
    let u = |n: usize| n as u64;
    Ok(ConvGeometry {
        n: u(x[0]),
        c: u(x[1]),
        h: u(x[2]),
        w: u(x[3]),
        o: u(x[1]),
        kh: u(kernel[0]),
        kw: u(kernel[1]),
        oh: u(oh),
        ow: u(ow),
        stride: stride.map(u),
        pad: pad.map(u),
        dilation: [1, 1],
        groups: 1,
    })
}

impl OpDef for MaxPool2d {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        let g = pool_geometry(&x[0].shape, self.kernel, self.stride, self.pad)?;
        let y = [g.n, g.c, g.oh, g.ow].map(|v| v as usize);
        Ok(vec![TensorType::f32(y), TensorType::new(DType::U8, y)])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn visited(&self, _: &[&TensorType], y: &[&TensorType]) -> usize {
        y[0].shape.elements() * self.kernel[0] * self.kernel[1]
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (index, dy) = (cx.y(1), cx.only_dy(0)?);
        let x = cx.shape(cx.x(0));
        let MaxPool2d { kernel, stride, pad } = *self;
        let grad = MaxPool2dGrad { kernel, stride, pad, size: [x[2], x[3]] };
        Ok(vec![Some(cx.op(grad, &[dy, index]))])
    }
}

impl OpDef for MaxPool2dGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "ri")?;
        super::same_shape(x)?;
        if x[0].shape.rank() != 4 || x[1].dtype != DType::U8 {
            return Err(format!("{} and {} are not a cotangent and its indices", x[0], x[1]));
        }
        let y = &x[0].shape;
        let size = [y[0], y[1], self.size[0], self.size[1]];
        let g = pool_geometry(&size, self.kernel, self.stride, self.pad)?;
        if [g.oh as usize, g.ow as usize] != y[2..] {
            return Err(format!("the cotangent is {}, not that of a pool of {size:?}", x[0]));
        }
        Ok(vec![TensorType::f32(size)])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[0])
    }
    fn visited(&self, x: &[&TensorType], _: &[&TensorType]) -> usize {
        x[0].shape.elements() * self.kernel[0] * self.kernel[1]
    }
}

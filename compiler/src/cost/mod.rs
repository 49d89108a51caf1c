//! What a kernel costs on a target, in nanoseconds.
//!
//! The model is a sum of four terms, so that it splits into one price for every value and reader,
//! which is what makes precision labels an exact minimum cut:
//!
//! - *launch*: starting a kernel;
//! - *traffic*: bytes read and written over the bandwidth; a value between elementwise operations
//!   that run as one kernel has none;
//! - *conversion*: widening on load and rounding on store, a price an element;
//! - *work*: floating-point operations of a product over the measured speed of its family, format
//!   and size; instructions of a row program by class (simple, division, transcendental).

mod step;
mod working_set;

pub use step::{step_bytes, step_ns};
pub use working_set::working_set;

use crate::ir::TensorType;
use crate::ops::{Lowering, Op, matmul::Fused};
use crate::reference;
use precast_plan::{
    BinaryOp, ConvGeometry, DType, Family, Instr, Precision, RecurrenceShape, Target,
};

/// Prices on one target.
#[derive(Clone, Copy, Debug)]
pub struct Prices<'t> {
    pub target: &'t Target,
}

/// Extents of one matrix of a product, as (m, n, k).
fn extents(op: &Op, x: &[&TensorType]) -> Option<(Family, f64)> {
    let conv = |g: &ConvGeometry| {
        let m = (g.n * g.oh * g.ow) as f64;
        m * (g.o / g.groups) as f64 * (g.c / g.groups * g.kh * g.kw) as f64
    };
    let attention = || {
        let (q, k) = (&x[0].shape, &x[1].shape);
        (q[2] * k[2] * q[3]) as f64
    };
    let (family, volume) = match op {
        Op::MatMul(_) => {
            let (a, b) = (&x[0].shape, &x[1].shape);
            let r = a.rank();
            (Family::Gemm, (a[r - 2] * a[r - 1] * b[r - 1]) as f64)
        }
        Op::Conv2d(c) => (Family::Conv, conv(&c.geometry(x[0], x[1]).ok()?)),
        Op::Conv2dDataGrad(c) => (Family::ConvDataGrad, conv(&c.geometry(x[0], x[1]).ok()?)),
        Op::Conv2dFilterGrad(c) => (Family::ConvFilterGrad, conv(&c.geometry(x[0], x[1]).ok()?)),
        Op::Attention(_) => (Family::Attention, attention()),
        Op::AttentionGrad(_) => (Family::AttentionGrad, attention()),
        _ => return None,
    };
    Some((family, volume.cbrt()))
}

/// Nanoseconds of a recurrence's products with its matrix, in f32, and of its gates. The products of
/// one step are small, and each waits for the one before.
fn recurrence_ns(target: &Target, s: &RecurrenceShape) -> f64 {
    let (b, h, m) = (s.batch as f64, s.hidden as f64, (s.cell.gates() as u64 * s.hidden) as f64);
    let speed = target.gflops(Family::Gemm, DType::F32, (b * h * m).cbrt()).unwrap_or(1.0);
    s.flops() / speed + s.squashed() * target.transcendental_ns
}

impl Prices<'_> {
    /// Moving `elements` between memory and registers, in one direction.
    pub fn traffic(&self, elements: usize, format: DType) -> f64 {
        let n = elements as f64;
        n * format.size() as f64 / self.target.bandwidth_gbs
            + n * self.target.convert(format).unwrap_or(0.0)
    }

    /// The multiplications of a product whose operands are in `format`, f32 ones in TF32 where that
    /// is faster; `None` where the target has no such kernel, or the operation is no product.
    pub fn product(
        &self,
        op: &Op,
        x: &[&TensorType],
        y: &[&TensorType],
        format: DType,
    ) -> Option<f64> {
        let exact = self.multiply(op, x, y, format.into());
        match format {
            DType::F32 => {
                let rounded = self.multiply(op, x, y, Precision::Tf32);
                exact.map(|e| rounded.map_or(e, |r| r.min(e)))
            }
            _ => exact,
        }
    }

    /// The multiplications of a product in a precision; `None` as above.
    pub fn multiply(
        &self,
        op: &Op,
        x: &[&TensorType],
        y: &[&TensorType],
        precision: Precision,
    ) -> Option<f64> {
        let (family, size) = extents(op, x)?;
        Some(op.def().flops(x, y) / self.target.gflops(family, precision, size)?)
    }

    /// Work that does not depend on formats: the arithmetic of a row program, and of kernels that
    /// are not products.
    pub fn work(&self, op: &Op, x: &[&TensorType], y: &[&TensorType]) -> f64 {
        match op.lowering() {
            Lowering::Leaf | Lowering::View | Lowering::Assemble => 0.0,
            Lowering::Kernel => match op {
                // An epilogue works on results.
                Op::MatMul(m) => {
                    let n = y[0].shape.elements() as f64;
                    let per = match m.fused.act() {
                        None => 0.0,
                        Some(crate::ops::activation::Act::Relu) => self.target.simple_ns,
                        Some(_) => self.target.transcendental_ns,
                    };
                    n * per
                }
                _ if op.def().recurrence(x).is_some() => self.walk(op, x),
                _ if extents(op, x).is_some() => 0.0,
                _ => {
                    let n = x.iter().chain(y).map(|t| t.shape.elements()).max().unwrap_or(0);
                    n as f64 * self.target.simple_ns * 4.0
                }
            },
            Lowering::Rows => {
                let (spec, program) = reference::program_of(op, x, y);
                let points: usize = spec.dims.iter().product();
                let per: f64 = program.code.iter().map(|i| self.instruction(i)).sum();
                points as f64 * per
            }
        }
    }

    /// What a kernel that is priced as a whole moves where its operands are in `format`: all it
    /// reads and writes. `None` for kernels whose operands and results are priced one by one.
    pub fn own_traffic(
        &self,
        op: &Op,
        x: &[&TensorType],
        y: &[&TensorType],
        format: DType,
    ) -> Option<f64> {
        let attention = |passes: f64| {
            let (q, k) = (x[0].shape.elements() as f64, x[1].shape.elements() as f64);
            let moved = 2.0 * (q + k) * passes;
            moved * format.size() as f64 / self.target.bandwidth_gbs
        };
        match op {
            Op::Attention(_) => Some(attention(1.0)),
            Op::AttentionGrad(_) => Some(attention(2.5)),
            Op::Gather(_) => Some(2.0 * self.traffic(y[0].shape.elements(), format)),
            _ => None,
        }
    }

    /// The arithmetic of a recurrence: its products with the recurrent matrix and its gates.
    fn walk(&self, op: &Op, x: &[&TensorType]) -> f64 {
        op.def().recurrence(x).map_or(0.0, |s| recurrence_ns(self.target, &s))
    }

    /// The arithmetic of kernels that run alone: every element of every window of a pool, every step
    /// of a recurrence.
    pub fn alone_work(&self, op: &Op, x: &[&TensorType], y: &[&TensorType]) -> f64 {
        op.def().visited(x, y) as f64 * self.target.simple_ns + self.walk(op, x)
    }

    /// One instruction of a row program on one element.
    pub fn instruction(&self, i: &Instr) -> f64 {
        let t = self.target;
        match i {
            Instr::Load { .. } | Instr::Real(_) | Instr::Int(_) | Instr::Bool(_) => 0.0,
            Instr::Index { .. } | Instr::Select { .. } | Instr::Reduce(..) => t.simple_ns,
            Instr::Unary(op, _) => t.unary_ns(*op),
            Instr::Binary(BinaryOp::Div, ..) => t.divide_ns,
            Instr::Binary(BinaryOp::Pow, ..) => 2.0 * t.transcendental_ns,
            Instr::Binary(..) => t.simple_ns,
            Instr::Round(..) => t.simple_ns,
            // Philox is ten rounds of two wide multiplications.
            Instr::Uniform { .. } => 40.0 * t.simple_ns,
        }
    }

    /// The whole price of an operation on its own: what structure is chosen by. Products that the
    /// target has in `format` read and multiply it; all else is f32.
    pub fn alone(&self, op: &Op, x: &[&TensorType], y: &[&TensorType], format: DType) -> f64 {
        if matches!(op.lowering(), Lowering::Leaf | Lowering::View) {
            return 0.0;
        }
        let bytes: usize = x.iter().chain(y).map(|t| t.bytes()).sum();
        let plain = bytes as f64 / self.target.bandwidth_gbs
            + self.product(op, x, y, DType::F32).unwrap_or(0.0);
        let in_format = self.product(op, x, y, format).map(|multiply| {
            // The two operands of a product; three of attention, whose price they dominate.
            let narrow: usize = x.iter().take(2).map(|t| t.shape.elements()).sum();
            let less = narrow * (4 - format.size().min(4));
            (bytes - less) as f64 / self.target.bandwidth_gbs + multiply
        });
        self.beside(op, y, format)
            + self.target.launch_ns
            + self.work(op, x, y)
            + in_format.map_or(plain, |narrow| narrow.min(plain))
    }

    /// What an epilogue costs that the target's product cannot run itself: vendor libraries know
    /// the tanh form of GELU alone, approximately and so in 16 bits only, so that the others are a
    /// kernel of its own over sums that are stored in between.
    fn beside(&self, op: &Op, y: &[&TensorType], format: DType) -> f64 {
        let Op::MatMul(m) = op else { return 0.0 };
        let apart = match m.fused {
            Fused::BiasGelu => true,
            Fused::BiasGeluTanh => format.size() > 2,
            Fused::None | Fused::Bias | Fused::BiasRelu => false,
        };
        if self.target.any_epilogue() || !apart {
            return 0.0;
        }
        self.target.launch_ns + 2.0 * y[0].bytes() as f64 / self.target.bandwidth_gbs
    }
}

//! Matrix products in the terms of cuBLASLt, which counts columns first.
//!
//! A row-major matrix is the transpose of the column-major matrix in the same memory, so the plan's
//! `D[m,n] = A[m,k] · B[k,n]` with contiguous rows is asked for as `Dᵀ = Bᵀ · Aᵀ`; a result whose
//! columns are contiguous is asked for as it stands. Nothing here knows a device.

use super::launch::Place;
use precast_plan::{
    Access, BinaryOp, DType, EpilogueKind, Gemm, Instr, Math, Operand, Plan, Program,
};

/// A matrix in memory, column-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub place: Place,
    pub dtype: DType,
    /// Extents of the memory, before any transposition.
    pub rows: u64,
    pub columns: u64,
    /// Elements from one column to the next.
    pub ld: u64,
    /// Elements from one matrix of the batch to the next.
    pub batch_stride: u64,
    /// The product reads the transpose.
    pub transposed: bool,
}

/// What cuBLASLt does to the sums before it stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    None,
    /// Adds a vector of D's format along the rows of the result.
    Bias(Vector),
    /// Then `max(x, 0)`.
    BiasRelu(Vector),
    /// Then GELU by tanh, with its argument stored beside the result.
    BiasGeluTanhAux {
        bias: Vector,
        aux: Place,
        aux_ld: u64,
        aux_batch_stride: u64,
    },
    /// Multiplies by the derivative of GELU by tanh at an argument of D's format.
    GeluTanhGrad {
        aux: Place,
        aux_ld: u64,
        aux_batch_stride: u64,
    },
    /// Stores the sums of A, or of B, over the inner extent in a vector: along the rows of the
    /// result, or along its columns.
    Sums {
        of_a: bool,
        vector: Vector,
    },
}

/// A vector in memory, contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    pub place: Place,
    pub dtype: DType,
}

/// One call: `D = epilogue(alpha · op(A) · op(B) + C)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Rows of D, columns of D, and the extent that is summed over.
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub batch: u64,
    pub a: Matrix,
    pub b: Matrix,
    /// Added to the product; laid out as `d` and of its format.
    pub c: Option<Place>,
    pub d: Matrix,
    /// f32 operands are rounded to TF32.
    pub tf32: bool,
    pub fused: Fused,
    /// An f32 on the device that the sums are multiplied with; 1 without.
    pub alpha: Option<Place>,
}

/// Most calls that one product with two batch axes is split into.
const MOST_CALLS: u64 = 64;

/// The calls that compute a product and its whole epilogue; `None` where cuBLASLt has no such
/// epilogue, or cannot read or write the memory as it lies.
pub fn fused(plan: &Plan, g: &Gemm) -> Option<Vec<Product>> {
    let e = &g.epilogue;
    let program = &plan.programs[e.program as usize];
    let d = View::of(plan, e.outputs.first()?);
    // What the sums are multiplied with first is no input of the rest.
    let alpha = e.scale.map(|i| place(plan, &e.inputs[i as usize]));
    let inputs: Vec<&Access> = e
        .inputs
        .iter()
        .enumerate()
        .filter(|(i, _)| e.scale != Some(*i as u32))
        .map(|(_, a)| a)
        .collect();
    let input = |i: usize| inputs.get(i).copied();
    let finish = || Finish { alpha, ..Finish::default() };
    let format = d.dtype;
    // The order of a vector along n is that of D's rows, which only one of the two readings has.
    let bias = |rows: Rows| -> Option<Vector> {
        let a = input(0)?;
        let along = a.strides[..3].iter().zip([g.batch[0], g.batch[1], g.m]);
        let still = along.into_iter().all(|(&s, n)| s == 0 || n == 1);
        let fits = rows == Rows::N && still && (a.strides[3] == 1 || g.n == 1);
        // The library's header: bias elements are of D's type (but for integers and FP8).
        let fits = fits && dtype(plan, a) == format;
        fits.then(|| Vector { place: place(plan, a), dtype: dtype(plan, a) })
    };
    let sums = |rows: Rows| -> Option<Fused> {
        let Some(s) = &g.sums else { return Some(Fused::None) };
        let vector = Vector { place: place(plan, &s.out), dtype: dtype(plan, &s.out) };
        let n = if s.operand == Operand::A { g.m } else { g.n };
        // The vector of the library has the format of the result.
        let fits = (s.out.strides[0] == 1 || n == 1) && vector.dtype == format;
        // With rows along n the plan's second operand is the library's first.
        let of_a = (rows == Rows::N) == (s.operand == Operand::B);
        fits.then_some(Fused::Sums { of_a, vector })
    };
    match e.kind {
        EpilogueKind::Store => {
            calls(plan, g, d, |rows, _| Some(Finish { fused: sums(rows)?, ..finish() }))
        }
        EpilogueKind::Bias if inputs.len() == 1 => calls(plan, g, d, |rows, _| {
            Some(Finish { fused: Fused::Bias(bias(rows)?), ..finish() })
        }),
        EpilogueKind::BiasRelu if inputs.len() == 1 => calls(plan, g, d, |rows, _| {
            Some(Finish { fused: Fused::BiasRelu(bias(rows)?), ..finish() })
        }),
        // cuBLASLt's GELU is the one by tanh; the one by erf is another function. Its tanh is
        // approximate, which 16 bits do not show.
        EpilogueKind::BiasGeluTanhAux if inputs.len() == 1 && e.outputs.len() == 2 => {
            let aux = View::of(plan, &e.outputs[1]);
            if d.dtype.size() != 2 || aux.dtype != d.dtype || aux.strides != d.strides {
                return None;
            }
            calls(plan, g, d.clone(), |rows, shift| {
                let matrix = d.result(g, rows)?;
                // The library's bound on the pre-activation's columns.
                let fits = matrix.ld % 8 == 0;
                fits.then_some(())?;
                Some(Finish {
                    fused: Fused::BiasGeluTanhAux {
                        bias: bias(rows)?,
                        aux: aux.shifted(shift),
                        aux_ld: matrix.ld,
                        aux_batch_stride: matrix.batch_stride,
                    },
                    ..finish()
                })
            })
        }
        // C and D are one matrix, which the library's documentation allows where they lie alike.
        EpilogueKind::Accumulate if inputs.len() == 1 => {
            let old = View::of(plan, input(0)?);
            let same = old.place == d.place && old.dtype == d.dtype && old.strides == d.strides;
            same.then_some(())?;
            calls(plan, g, d, |rows, shift| {
                Some(Finish { c: Some(old.shifted(shift)), fused: sums(rows)?, ..finish() })
            })
        }
        EpilogueKind::GeluTanhGrad if inputs.len() == 1 && e.outputs.len() == 1 => {
            let aux = View::of(plan, inputs[0]);
            let dims = [g.batch[0], g.batch[1], g.m, g.n];
            let mut strides = aux.strides.iter().zip(&d.strides).zip(dims);
            if d.dtype.size() != 2
                || aux.dtype != d.dtype
                || !strides.all(|((x, y), n)| x == y || n == 1)
            {
                return None;
            }
            calls(plan, g, d.clone(), |rows, shift| {
                let matrix = d.result(g, rows)?;
                // As for what the forward product stores.
                (matrix.ld % 8 == 0).then_some(())?;
                let fused = Fused::GeluTanhGrad {
                    aux: aux.shifted(shift),
                    aux_ld: matrix.ld,
                    aux_batch_stride: matrix.batch_stride,
                };
                Some(Finish { fused, ..finish() })
            })
        }
        EpilogueKind::Program
            if e.outputs.len() == 1 && e.inputs.len() == 1 && e.scale.is_none() =>
        {
            let other = View::of(plan, &e.inputs[0]);
            if other.dtype != DType::F32 {
                return None;
            }
            match over_one_input(program)? {
                BinaryOp::Add => {
                    let same = other.dtype == d.dtype && other.strides == d.strides;
                    same.then_some(())?;
                    calls(plan, g, d, |_, shift| {
                        Some(Finish { c: Some(other.shifted(shift)), ..Finish::default() })
                    })
                }
                // A factor that another step computed, such as the inverse of the loss scale.
                BinaryOp::Mul => {
                    let dims = [g.batch[0], g.batch[1], g.m, g.n];
                    let one = other.strides.iter().zip(dims).all(|(&s, n)| s == 0 || n == 1);
                    one.then_some(())?;
                    calls(plan, g, d, |_, _| {
                        Some(Finish { alpha: Some(other.shifted(0)), ..Finish::default() })
                    })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Why [`fused`] has no calls for a product, in words.
pub fn why_apart(plan: &Plan, g: &Gemm) -> &'static str {
    let e = &g.epilogue;
    let Some(d) = e.outputs.first().map(|a| dtype(plan, a)) else { return "no result" };
    let one_format = e.inputs.iter().chain(&e.outputs).all(|a| dtype(plan, a) == d);
    match e.kind {
        EpilogueKind::BiasGeluAux => "cuBLASLt's GELU is the one by tanh",
        EpilogueKind::BiasGeluTanhAux | EpilogueKind::GeluTanhGrad if d.size() != 2 => {
            "cuBLASLt's tanh is too coarse for an f32 result"
        }
        EpilogueKind::Bias | EpilogueKind::BiasRelu | EpilogueKind::BiasGeluTanhAux
            if !one_format =>
        {
            "cuBLASLt's bias has the format of the result"
        }
        EpilogueKind::GeluTanhGrad if !one_format => {
            "cuBLASLt's derivative of GELU reads the format of the result"
        }
        EpilogueKind::Program => "cuBLASLt has no such epilogue",
        _ => "cuBLASLt cannot read or write the tensors as they lie",
    }
}

/// The calls that leave the f32 sums, dense over b0, b1, m, n, at byte `offset` of the scratch
/// region; `None` where cuBLASLt cannot read the operands as they lie.
pub fn plain(plan: &Plan, g: &Gemm, offset: u64) -> Option<Vec<Product>> {
    let strides = [g.batch[1] * g.m * g.n, g.m * g.n, g.n, 1].map(|s| s as i64).to_vec();
    let d = View { place: Place::Scratch { offset }, dtype: DType::F32, strides };
    calls(plan, g, d, |_, _| Some(Finish::default()))
}

/// Operation of a program that combines the sums with one other input and stores the result.
fn over_one_input(p: &Program) -> Option<BinaryOp> {
    match p.code[..] {
        [Instr::Load { port: 0 }, Instr::Load { port: 1 }, Instr::Binary(op, x, y)]
        | [Instr::Load { port: 1 }, Instr::Load { port: 0 }, Instr::Binary(op, x, y)]
            if x != y && p.outputs.len() == 1 && p.outputs[0].reg == 2 =>
        {
            Some(op)
        }
        _ => None,
    }
}

/// Which axis of the plan's product runs along D's columns in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    N,
    M,
}

struct Finish {
    fused: Fused,
    c: Option<Place>,
    alpha: Option<Place>,
}

impl Default for Finish {
    fn default() -> Finish {
        Finish { fused: Fused::None, c: None, alpha: None }
    }
}

/// An access, resolved: strides over b0, b1 and two more axes, in elements.
#[derive(Clone, Debug)]
struct View {
    place: Place,
    dtype: DType,
    strides: Vec<i64>,
}

fn dtype(plan: &Plan, a: &Access) -> DType {
    plan.tensors[a.tensor as usize].dtype
}

fn place(plan: &Plan, a: &Access) -> Place {
    Place::Tensor { tensor: a.tensor, offset: a.offset * dtype(plan, a).size() as u64 }
}

impl View {
    fn of(plan: &Plan, a: &Access) -> View {
        View { place: place(plan, a), dtype: dtype(plan, a), strides: a.strides.clone() }
    }

    /// The place `index` matrices further along the batch axis that is looped over.
    fn shifted(&self, steps: i64) -> Place {
        let by = (steps * self.dtype.size() as i64) as u64;
        match self.place {
            Place::Tensor { tensor, offset } => {
                Place::Tensor { tensor, offset: offset.wrapping_add(by) }
            }
            Place::Scratch { offset } => Place::Scratch { offset: offset.wrapping_add(by) },
        }
    }

    /// The last two axes, `rows` × `columns` with strides `rs` and `cs`, as a column-major matrix.
    fn matrix(&self, (rows, rs): (u64, i64), (columns, cs): (u64, i64)) -> Option<Matrix> {
        // Contiguous along its first axis, and no column inside another.
        let fits = |n: u64, s: i64, other: u64, ld: i64| {
            (s == 1 || n == 1) && (other == 1 || ld >= n as i64)
        };
        let of = |n: u64, other: u64, ld: i64, transposed: bool| Matrix {
            place: self.place,
            dtype: self.dtype,
            rows: n,
            columns: other,
            ld: if other == 1 { n } else { ld as u64 },
            batch_stride: 0,
            transposed,
        };
        if fits(rows, rs, columns, cs) {
            Some(of(rows, columns, cs, false))
        } else if fits(columns, cs, rows, rs) {
            Some(of(columns, rows, rs, true))
        } else {
            None
        }
    }

    /// This as D in one of the two readings.
    fn result(&self, g: &Gemm, rows: Rows) -> Option<Matrix> {
        let (m, n) = ((g.m, self.strides[2]), (g.n, self.strides[3]));
        let matrix = match rows {
            Rows::N => self.matrix(n, m),
            Rows::M => self.matrix(m, n),
        };
        matrix.filter(|m| !m.transposed)
    }
}

/// Formats that cuBLASLt multiplies with f32 sums, and those it stores the result in.
fn formats(a: DType, b: DType, d: DType) -> bool {
    match (a, b) {
        (DType::F32, DType::F32) => d == DType::F32,
        (DType::F16 | DType::Bf16, _) => a == b && (d == DType::F32 || d == a),
        (DType::F8e4m3, DType::F8e4m3 | DType::F8e5m2) | (DType::F8e5m2, DType::F8e4m3) => {
            matches!(d, DType::F32 | DType::F16 | DType::Bf16)
        }
        _ => false,
    }
}

/// What the library asks of FP8 operands: both run along the summed axis in memory, columns begin
/// at multiples of 16 bytes, and a bias is bf16, or f16 beside an f16 result.
fn eight_bits(p: &Product) -> bool {
    let aligned = |m: &Matrix| {
        let unit = 16 / m.dtype.size() as u64;
        let offset = match m.place {
            Place::Tensor { offset, .. } | Place::Scratch { offset } => offset,
        };
        m.ld.is_multiple_of(unit) && m.batch_stride.is_multiple_of(unit) && offset % 16 == 0
    };
    let bias = match &p.fused {
        Fused::None => None,
        Fused::Bias(v) | Fused::BiasRelu(v) => Some(v.dtype),
        Fused::BiasGeluTanhAux { bias, .. } => Some(bias.dtype),
        // Sums of rounded operands are not sums of the tensor, and no derivative is asked for.
        Fused::Sums { .. } | Fused::GeluTanhGrad { .. } => return false,
    };
    let fits = if p.d.dtype == DType::F16 { DType::F16 } else { DType::Bf16 };
    p.a.transposed
        && !p.b.transposed
        && [p.m, p.n, p.k].iter().all(|n| n.is_multiple_of(16))
        && [&p.a, &p.b, &p.d].into_iter().all(aligned)
        && bias.is_none_or(|d| d == fits)
}

/// One call, or one for every index of a batch axis that cannot be joined with the other.
/// `finish` gets the reading and the elements of D (and of what lies as D does) to skip.
fn calls(
    plan: &Plan,
    g: &Gemm,
    d: View,
    finish: impl Fn(Rows, i64) -> Option<Finish>,
) -> Option<Vec<Product>> {
    let (a, b) = (View::of(plan, &g.a), View::of(plan, &g.b));
    if !formats(a.dtype, b.dtype, d.dtype) || (g.math == Math::Tf32 && a.dtype != DType::F32) {
        return None;
    }
    // cuBLASLt counts extents in 32 bits.
    let sizes = [g.m, g.n, g.k, g.batch[0] * g.batch[1]];
    if sizes.iter().any(|&n| n > i32::MAX as u64) {
        return None;
    }
    let views = [&a, &b, &d];
    let [b0, b1] = g.batch;
    let joined = views.iter().all(|v| v.strides[0] == b1 as i64 * v.strides[1]);
    // (extent and axis of the batch, extent and axis of the loop)
    let ((batch, axis), (count, outer)) = if b0 == 1 || joined {
        ((b0 * b1, 1), (1, 0))
    } else if b1 == 1 {
        ((b0, 0), (1, 1))
    } else if b0 <= b1 {
        ((b1, 1), (b0, 0))
    } else {
        ((b0, 0), (b1, 1))
    };
    if count > MOST_CALLS || views.iter().any(|v| v.strides[axis] < 0 && batch > 1) {
        return None;
    }
    let rows = [Rows::N, Rows::M].into_iter().find(|&r| d.result(g, r).is_some())?;
    // D's rows are n or m; the operand that has them comes first.
    let (first, second) = match rows {
        Rows::N => (
            (&b, b.matrix((g.n, b.strides[3]), (g.k, b.strides[2]))?),
            (&a, a.matrix((g.k, a.strides[3]), (g.m, a.strides[2]))?),
        ),
        Rows::M => (
            (&a, a.matrix((g.m, a.strides[2]), (g.k, a.strides[3]))?),
            (&b, b.matrix((g.k, b.strides[2]), (g.n, b.strides[3]))?),
        ),
    };
    let result = d.result(g, rows)?;
    let stride = |v: &View| if batch > 1 { v.strides[axis] as u64 } else { 0 };
    let at = |v: &View, m: Matrix, i: u64| Matrix {
        place: v.shifted(i as i64 * v.strides[outer]),
        batch_stride: stride(v),
        ..m
    };
    (0..count)
        .map(|i| {
            let shift = i as i64 * if count > 1 { d.strides[outer] } else { 0 };
            let finish = finish(rows, shift)?;
            let fused = match finish.fused {
                Fused::BiasGeluTanhAux { bias, aux, aux_ld, .. } => {
                    Fused::BiasGeluTanhAux { bias, aux, aux_ld, aux_batch_stride: stride(&d) }
                }
                Fused::GeluTanhGrad { aux, aux_ld, .. } => {
                    Fused::GeluTanhGrad { aux, aux_ld, aux_batch_stride: stride(&d) }
                }
                other => other,
            };
            let product = Product {
                m: result.rows,
                n: result.columns,
                k: g.k,
                batch,
                a: at(first.0, first.1, i),
                b: at(second.0, second.1, i),
                c: finish.c,
                d: at(&d, result, i),
                tf32: g.math == Math::Tf32,
                fused,
                alpha: finish.alpha,
            };
            (a.dtype.size() > 1 || eight_bits(&product)).then_some(product)
        })
        .collect()
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;

//! What kernels ask of their operands beyond bounds, shapes and kinds. Stated here once: the validator
//! refuses a plan that lacks any of it, so that backends rely on it, and no backend asks for more.
//! Everything else an access may be: of any strides, backwards, repeated where it is read.

use crate::dtype::{DType, Kind};
use crate::schema::{Access, Attention, Kernel, Math, Plan};

/// Accesses by name, with their extents.
pub(crate) type Uses<'a> = Vec<(&'static str, &'a Access, Vec<u64>)>;

/// What an operand has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Is<'k> {
    /// Of one of these formats.
    Of(&'static [DType]),
    /// Of the format of another operand.
    Like(&'static str, &'k Access),
    /// Of the format of another operand, unless both are real: those are rounded.
    CopyOf(&'static str, &'k Access),
    /// Row-major without gaps over these extents.
    Dense(Vec<u64>),
}

/// One requirement.
#[derive(Clone, Debug, PartialEq)]
pub struct Need<'k> {
    pub what: &'static str,
    pub access: &'k Access,
    pub is: Is<'k>,
}

const F32: &[DType] = &[DType::F32];
const I32: &[DType] = &[DType::I32];
const U8: &[DType] = &[DType::U8];
/// Integers that count rows of a table.
const IDS: &[DType] = &[DType::I32, DType::I64, DType::U8];
/// Integers that count steps of a sequence.
const LENGTHS: &[DType] = &[DType::I32, DType::I64];
/// What sums are stored in: integers wrap at 32 bits.
const SUMS: &[DType] = &[DType::F32, DType::F16, DType::Bf16, DType::I32];

/// The requirements of a kernel.
pub fn needs(kernel: &Kernel) -> Vec<Need<'_>> {
    match kernel {
        // The formats of ports are the program's, which the validator holds against the tensors.
        Kernel::Rows(_) => vec![],
        Kernel::Gemm(g) => {
            let mut list = multiplied(g.math, &g.a, &g.b);
            list.extend(g.sums.iter().map(|s| need("operand sums", &s.out, Is::Of(F32))));
            list
        }
        Kernel::Conv(c) => multiplied(c.math, &c.a, &c.b),
        Kernel::Attention(a) => statistics(a),
        Kernel::AttentionGrad(g) => statistics(&g.forward),
        Kernel::MaxPool(p) | Kernel::MaxPoolGrad(p) => {
            vec![need("y", &p.y, Is::Like("x", &p.x)), need("index", &p.index, Is::Of(U8))]
        }
        Kernel::Gather(g) => vec![
            need("ids", &g.ids, Is::Of(IDS)),
            need("out", &g.out, Is::CopyOf("the table", &g.table)),
        ],
        Kernel::ScatterAdd(g) => {
            vec![need("ids", &g.ids, Is::Of(IDS)), need("the table", &g.table, Is::Of(F32))]
        }
        Kernel::LastIndex(l) => vec![
            need("ids", &l.ids, Is::Of(IDS)),
            need("out", &l.out, Is::Of(I32)),
            need("out", &l.out, Is::Dense(vec![l.table_rows])),
        ],
        Kernel::CumSum(s) => vec![need("running sums", &s.y, Is::Of(SUMS))],
        Kernel::TopK(t) => vec![need("index", &t.index, Is::Of(I32))],
        // Others are another fault, of the sizes.
        Kernel::Recurrence(r) if r.shape.is_sound() => {
            let mut list = walked(r.reads(), r.writes(), r.lengths.as_ref(), r.shape.batch);
            list.push(need("kept", &r.kept, Is::Of(F32)));
            list
        }
        Kernel::RecurrenceGrad(g) if g.shape.is_sound() => {
            let mut list = walked(g.reads(), g.writes(), g.lengths.as_ref(), g.shape.batch);
            list.push(need("kept", &g.kept, Is::Of(F32)));
            list.push(need("d_states", &g.d_states, Is::Of(F32)));
            list
        }
        Kernel::Recurrence(_) | Kernel::RecurrenceGrad(_) => vec![],
    }
}

/// A recurrence walks dense tensors.
fn walked<'k>(
    reads: Uses<'k>,
    writes: Uses<'k>,
    lengths: Option<&'k Access>,
    batch: u64,
) -> Vec<Need<'k>> {
    let all = reads.into_iter().chain(writes);
    let mut list: Vec<Need> =
        all.map(|(what, access, dims)| need(what, access, Is::Dense(dims))).collect();
    if let Some(a) = lengths {
        list.push(need("lengths", a, Is::Of(LENGTHS)));
        list.push(need("lengths", a, Is::Dense(vec![batch])));
    }
    list
}

fn need<'k>(what: &'static str, access: &'k Access, is: Is<'k>) -> Need<'k> {
    Need { what, access, is }
}

/// TF32 is a way of multiplying f32.
fn multiplied<'k>(math: Math, a: &'k Access, b: &'k Access) -> Vec<Need<'k>> {
    match math {
        Math::Exact => vec![],
        Math::Tf32 => {
            vec![
                need("operand a of a TF32 product", a, Is::Of(F32)),
                need("operand b of a TF32 product", b, Is::Of(F32)),
            ]
        }
    }
}

/// What an attention keeps of its rows has one order for all kernels that read it.
fn statistics(a: &Attention) -> Vec<Need<'_>> {
    let rows = || Is::Dense(vec![a.batch, a.heads, a.tq]);
    [("lse", &a.lse), ("low", &a.low)]
        .into_iter()
        .flat_map(|(what, x)| [need(what, x, Is::Of(F32)), need(what, x, rows())])
        .collect()
}

impl Plan {
    /// Why an operand is not what its kernel needs. One whose tensor does not exist is another fault.
    pub(crate) fn lacks(&self, need: &Need) -> Option<String> {
        let dtype = |a: &Access| self.tensors.get(a.tensor as usize).map(|t| t.dtype);
        let have = dtype(need.access)?;
        let what = need.what;
        let differs = |other: &str, want: DType| format!("{what} is {have}, but {other} is {want}");
        match &need.is {
            Is::Of(formats) => (!formats.contains(&have)).then(|| {
                let names: Vec<String> = formats.iter().map(ToString::to_string).collect();
                format!("{what} is {have}, not {}", names.join(" or "))
            }),
            &Is::Like(other, a) => dtype(a).filter(|&d| d != have).map(|d| differs(other, d)),
            &Is::CopyOf(other, a) => dtype(a)
                .filter(|&d| d != have && [d, have].iter().any(|d| d.kind() != Kind::Real))
                .map(|d| differs(other, d)),
            Is::Dense(dims) => {
                (!dense(&need.access.strides, dims)).then(|| format!("{what} is not dense"))
            }
        }
    }
}

/// Whether strides are those of a row-major tensor without gaps.
fn dense(strides: &[i64], dims: &[u64]) -> bool {
    let mut step = 1i128;
    strides.len() == dims.len()
        && (0..dims.len()).rev().all(|d| {
            let ok = dims[d] == 1 || i128::from(strides[d]) == step;
            step = step.saturating_mul(i128::from(dims[d]));
            ok
        })
}

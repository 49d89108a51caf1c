//! Matrix products that cuBLASLt does not take, or all of them where it is absent.

use super::product::{Kind, Map, Operand, Product, lower};
use super::text::dtype;
use crate::cuda::launch::{Facts, Lowered};
use crate::error::Result;
use precast_plan::{Access, DType, EpilogueKind, Gemm, Plan};

/// Appends the launches of a product with its epilogue: any strides, formats and alignments.
///
/// # Errors
/// `R0131` for sizes beyond 2^31.
pub fn lower_gemm_fallback(plan: &Plan, g: &Gemm, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let (a, b) = (&g.a.strides, &g.b.strides);
    let side = |access, outer, k, s: &[i64]| Operand {
        access,
        outer,
        k,
        image: None,
        batch: [s[0], s[1]],
    };
    let p = Product {
        family: "gemm",
        kind: Kind::Matrix,
        m: g.m,
        n: g.n,
        k: g.k,
        batch: g.batch,
        a: side(&g.a, Map::line(g.m, a[2]), Map::line(g.k, a[3]), a),
        b: side(&g.b, Map::line(g.n, b[3]), Map::line(g.k, b[2]), b),
        math: g.math,
        epilogue: &g.epilogue,
        dims: [g.batch[0], g.batch[1], g.m, g.n],
        columns: ([1, g.n], [0, 1, 0, 1]),
    };
    lower(plan, &p, facts, out)
}

/// Whether one cuBLASLt call of strided batches can read both operands (and write the result,
/// where the library's own epilogue does): formats it multiplies, one unit stride in each matrix,
/// rows that do not overlap, both batch axes as one, sizes of 31 bits.
pub fn library_can(plan: &Plan, g: &Gemm) -> bool {
    let formats = matches!(
        (dtype(plan, &g.a), dtype(plan, &g.b)),
        (DType::F32, DType::F32) | (DType::F16, DType::F16) | (DType::Bf16, DType::Bf16)
    );
    let small = [g.m, g.n, g.k, g.batch[0].saturating_mul(g.batch[1])].iter().all(|&n| n < 1 << 31);
    // A program runs after the product, on a dense result.
    let result = g.epilogue.kind == EpilogueKind::Program
        || g.epilogue.outputs.iter().all(|o| layout(o, g.batch, [g.m, g.n], true));
    formats
        && small
        && result
        && layout(&g.a, g.batch, [g.m, g.k], false)
        && layout(&g.b, g.batch, [g.k, g.n], false)
}

/// Whether an access over b0, b1 and a matrix of `extents` is a strided batch of matrices with a
/// leading dimension. Batches that are written must not coincide.
fn layout(a: &Access, batch: [u64; 2], extents: [u64; 2], written: bool) -> bool {
    let s = &a.strides;
    // An axis of one element may have any stride.
    let unit = |i: usize| extents[i] == 1 || s[2 + i] == 1;
    let leads =
        |i: usize, inner: u64| extents[i] == 1 || (s[2 + i] >= inner as i64 && s[2 + i] < 1 << 31);
    let rows = (unit(1) && leads(0, extents[1])) || (unit(0) && leads(1, extents[0]));
    let one = batch[0] == 1 || batch[1] == 1 || s[0] == s[1] * batch[1] as i64;
    let axes = [(batch[0], s[0]), (batch[1], s[1])];
    let steps = axes.iter().all(|&(n, s)| n == 1 || if written { s > 0 } else { s >= 0 });
    rows && one && steps
}

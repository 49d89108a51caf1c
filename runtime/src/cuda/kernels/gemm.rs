//! Matrix products that cuBLASLt does not take, or all of them where it is absent.

use super::product::{Kind, Map, Operand, Product, lower};
use crate::cuda::launch::{Facts, Lowered};
use crate::error::Result;
use precast_plan::{Gemm, Plan};

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

//! `DFT`: the discrete Fourier transform along one axis, as one product with a constant matrix.

use super::linear::matmul;
use super::words;
use crate::frontend::onnx::fold::check_size;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{self, axis};
use crate::frontend::onnx::node::fail;
use crate::ir::{ConstData, ValueId};
use crate::ops;
use std::f64::consts::TAU;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    match call.op {
        "DFT" => Ok(Some(vec![Val::Node(transform(cx, call)?)])),
        _ => Ok(None),
    }
}

/// `X_k = Σ_n x_n exp(∓2πi kn / N)`, inverse divided by N; the last axis holds real and imaginary
/// parts, or real ones alone. One-sided are the k up to N/2, and the inverse of those is real, as
/// torch.export writes `irfft`.
struct Transform {
    /// Extents before and after; components of the numbers before and after.
    from: usize,
    to: usize,
    parts: [usize; 2],
    length: usize,
    inverse: bool,
    onesided: bool,
}

impl Transform {
    /// The matrix `[parts · from, to · parts]`, real parts of the operand first.
    fn matrix(&self) -> Vec<f32> {
        let [p, q] = self.parts;
        let n = self.length;
        let mut m = vec![0.0; p * self.from * self.to * q];
        for a in 0..self.from {
            for b in 0..self.to {
                let angle = TAU * ((a * b % n) as f64) / n as f64;
                let (sin, cos) = if self.inverse { (-angle).sin_cos() } else { angle.sin_cos() };
                // A frequency that is its own mirror image counts once.
                let mirrored = self.inverse && self.onesided && a != 0 && 2 * a != n;
                let by = if mirrored { 2.0 } else { 1.0 };
                let by = if self.inverse { by / n as f64 } else { by };
                // (x + iy)(cos − i sin)
                let entries = [[cos, -sin], [sin, cos]];
                for (i, row) in entries.iter().enumerate().take(p) {
                    for (j, x) in row.iter().enumerate().take(q) {
                        m[((i * self.from + a) * self.to + b) * q + j] = (x * by) as f32;
                    }
                }
            }
        }
        m
    }
}

fn transform(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let rank = shape.len();
    let along = match (cx.src.opset >= 20, call.ints(2)?.as_deref()) {
        (true, Some(&[a])) => a,
        (true, _) => -2,
        (false, _) => call.attrs.int("axis", 1)?,
    };
    let along = axis(along, rank).map_err(words)?;
    if rank < 2 || along == rank - 1 || !matches!(shape[rank - 1], 1 | 2) {
        return Err(words(format!("a transform along axis {along} of numbers {shape:?}")));
    }
    let (inverse, onesided) =
        (call.attrs.int("inverse", 0)? != 0, call.attrs.int("onesided", 0)? != 0);
    let given = match call.ints(1)?.as_deref() {
        None => None,
        Some(&[n]) if n > 0 => usize::try_from(n).ok(),
        Some(n) => return Err(words(format!("a transform of length {n:?}"))),
    };
    let extent = shape[along];
    let length = match (given, inverse && onesided) {
        (Some(n), _) => n,
        (None, true) => extent.saturating_sub(1) * 2,
        (None, false) => extent,
    };
    if length == 0 {
        return Err(words("a transform of no elements".into()));
    }
    let half = length / 2 + 1;
    let (most, to, components) = match (inverse, onesided) {
        (true, true) => (half, length, 1),
        (false, true) => (length, half, 2),
        (_, false) => (length, length, 2),
    };
    if inverse && onesided && shape[rank - 1] != 2 {
        return Err(fail("P0206", "the inverse of a one-sided transform of real numbers"));
    }
    // What is behind the length is cut off, and what is missing is zeros.
    let from = extent.min(most);
    let parts = [shape[rank - 1], components];
    let t = Transform { from, to, parts, length, inverse, onesided };
    check_size(&[parts[0] * from, to * parts[1]])?;
    let x = cx.move_value(x, &[moves::part(&shape, along, 0, from)])?;
    let others: Vec<usize> = (0..rank - 1).filter(|&d| d != along).collect();
    let perm: Vec<usize> = others.iter().copied().chain([rank - 1, along]).collect();
    let x = cx.transpose(x, &perm)?;
    let rows: usize = others.iter().map(|&d| shape[d]).product();
    let x = cx.reshape(x, &[rows, parts[0] * from])?;
    let data = ConstData::from_f32(vec![parts[0] * from, to * parts[1]], &t.matrix());
    let m = cx.one("waves", ops::Const { data }, &[])?;
    let y = matmul(cx, x, m)?;
    let mut wide: Vec<usize> = others.iter().map(|&d| shape[d]).collect();
    wide.extend([to, parts[1]]);
    let y = cx.reshape(y, &wide)?;
    // The axis goes back to its place.
    let mut back: Vec<usize> = (0..rank - 2).collect();
    back.insert(along, rank - 2);
    back.push(rank - 1);
    cx.transpose(y, &back)
}

//! Along one axis.

use super::Options;
use super::tensor::{Data, Tensor};
use crate::ir::{Shape, TensorType};
use crate::ops::{CumSum, TopK};
use std::cmp::Ordering;

/// First elements of the lines along `axis`, and the distance of neighbours on them.
fn lines(shape: &Shape, axis: usize) -> (Vec<usize>, usize) {
    let step: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let n = shape[axis];
    ((0..outer).flat_map(|o| (0..step).map(move |i| o * n * step + i)).collect(), step)
}

pub(super) fn cumsum(op: &CumSum, x: &Tensor, y: &TensorType, opt: &Options) -> Tensor {
    let n = x.shape()[op.axis];
    let (starts, step) = lines(&x.ty.shape, op.axis);
    let order: Vec<usize> = if op.reverse { (0..n).rev().collect() } else { (0..n).collect() };
    let places = starts.iter().map(|s| order.iter().map(move |i| s + i * step));
    let data = match &x.data {
        Data::Real(v) => {
            let mut out = v.clone();
            for line in places {
                let mut sum = 0.0;
                for at in line {
                    let before = sum;
                    sum = opt.round(sum + v[at]);
                    out[at] = if op.exclusive { before } else { sum };
                }
            }
            Data::Real(out)
        }
        Data::Int(v) => {
            let mut out = v.clone();
            for line in places {
                let mut sum = 0i32;
                for at in line {
                    let before = sum;
                    sum = sum.wrapping_add(v[at] as i32);
                    out[at] = i64::from(if op.exclusive { before } else { sum });
                }
            }
            Data::Int(out)
        }
        Data::Bool(_) => unreachable!("refused by inference"),
    };
    Tensor::new(y.clone(), data)
}

/// Ascending, NaN last.
fn order(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

pub(super) fn top_k(op: &TopK, x: &Tensor, y: &TensorType) -> Tensor {
    let n = x.shape()[op.axis];
    let (starts, step) = lines(&x.ty.shape, op.axis);
    let value = |at: usize| match &x.data {
        Data::Real(v) => v[at],
        Data::Int(v) => v[at] as f64,
        Data::Bool(_) => unreachable!("refused by inference"),
    };
    let mut out = vec![0; y.shape.elements()];
    let (into, _) = lines(&y.shape, op.axis);
    for (s, to) in starts.into_iter().zip(into) {
        let mut places: Vec<usize> = (0..n).collect();
        places.sort_by(|&a, &b| {
            let c = order(value(s + a * step), value(s + b * step));
            if op.largest { c.reverse() } else { c }
        });
        for (j, p) in places.into_iter().take(op.k).enumerate() {
            out[to + j * step] = p as i64;
        }
    }
    Tensor::new(y.clone(), Data::Int(out))
}

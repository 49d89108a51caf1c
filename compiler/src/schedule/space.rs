//! The iteration space of a row program as a plan writes it: accesses to the tensors that store the
//! values, with neighbouring axes as one where every access steps through them evenly.
//!
//! Fusion splits axes wherever one of its members is finer than another, so that a group may have
//! more axes than a plan's space. It asks here before two groups become one.

use super::affine::Access;
use super::fuse::Group;
use super::items::Items;
use super::program::Built;
use precast_plan::{Instr, MAX_RANK};

/// A space, kept axes first, and its accesses.
pub struct Space {
    pub dims: Vec<u64>,
    pub reduced: usize,
    pub inputs: Vec<Access>,
    pub outputs: Vec<Access>,
}

/// Whether a plan can hold the row program of a group.
pub fn holds(items: &Items, g: &Group, built: &Built) -> bool {
    space(items, g, built).is_some_and(|s| s.dims.len() <= MAX_RANK)
}

/// The space of a group's row program; `None` where strides cannot say an access to what stores a
/// value.
pub fn space(items: &Items, g: &Group, built: &Built) -> Option<Space> {
    let kept = g.dims.len() - g.reduced;
    let list = |list: &[Access]| -> Option<Vec<Access>> {
        list.iter().map(|a| items.physical(a, &g.dims)).collect()
    };
    let (mut inputs, mut outputs) = (list(&built.inputs)?, list(&built.outputs)?);
    if g.reduced > 0 {
        let infos = built.program.check().expect("programs were checked");
        for (a, port) in outputs.iter_mut().zip(&built.program.outputs) {
            if infos[port.reg as usize].row {
                a.strides[kept..].fill(0);
            }
        }
    }
    let counts = |i: &Instr| matches!(i, Instr::Index { .. } | Instr::Uniform { .. });
    let mut dims: Vec<u64> = g.dims.iter().map(|&n| n as u64).collect();
    let mut reduced = g.reduced;
    if !built.program.code.iter().any(counts) {
        let merge = |from: usize, to: usize| -> Vec<usize> {
            // The last axis of every run of axes that all ports step through evenly.
            let mut keep: Vec<usize> = vec![];
            for d in (from..to).filter(|&d| g.dims[d] != 1) {
                let joins = keep.last().is_some_and(|&l| {
                    inputs
                        .iter()
                        .chain(&outputs)
                        .all(|a| a.strides[l] == a.strides[d] * g.dims[d] as i64)
                });
                if joins {
                    *keep.last_mut().expect("joins a run") = d;
                } else {
                    keep.push(d);
                }
            }
            keep
        };
        let (front, back) = (merge(0, kept), merge(kept, g.dims.len()));
        let extent = |keep: &[usize], from: usize| -> Vec<u64> {
            let mut start = from;
            keep.iter()
                .map(|&d| {
                    let n = g.dims[start..=d].iter().map(|&n| n as u64).product();
                    start = d + 1;
                    n
                })
                .collect()
        };
        dims = extent(&front, 0);
        dims.extend(extent(&back, kept));
        reduced = back.len();
        for a in inputs.iter_mut().chain(&mut outputs) {
            a.strides = front.iter().chain(&back).map(|&d| a.strides[d]).collect();
        }
    }
    // A reduction has an axis to reduce, a space has an axis.
    if (built.program.reduces() && reduced == 0) || dims.is_empty() {
        dims.push(1);
        reduced = usize::from(built.program.reduces());
        inputs.iter_mut().chain(&mut outputs).for_each(|a| a.strides.push(0));
    }
    Some(Space { dims, reduced, inputs, outputs })
}

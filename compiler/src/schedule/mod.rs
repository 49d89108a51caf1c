//! From a graph whose values carry storage formats to steps in order over planned memory.
//!
//! `weight copies → layouts → items → parts placed → fusion → rows aligned → order → arena`. Views cost nothing, values
//! that only one fused program reads are never stored, and the optimizer writes weights, moments
//! and low-precision copies in place.

pub mod affine;
mod aligned;
pub mod channels;
mod copies;
mod deps;
pub mod fuse;
pub mod items;
mod kernels;
mod links;
pub mod memory;
pub mod order;
mod place;
pub mod program;
mod recompute;
mod sums;
mod taps;

pub use copies::{copy_name, weight_copies};
pub(crate) use kernels::{dense_lines, flat, lines, product_strides, rows as rows_of, table};

use crate::diagnostic::Result;
use crate::ir::Graph;
use fuse::Group;
use items::Items;
use order::Bundle;
use precast_plan::Target;
use program::Built;
use std::collections::BTreeSet;

/// What the target's kernels can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Any elementwise program may finish a product. Otherwise a product carries only what its own
    /// operation fuses.
    pub any_epilogue: bool,
    /// Casts are kernels of their own, also those of weights, instead of being folded into what
    /// writes or reads them: how systems behave that cast eagerly.
    pub casts_alone: bool,
    /// Convolutions whose operands have at most this many bytes an element read and write their
    /// channels innermost in memory ([`channels`]); 0 where none does.
    pub channels_last: usize,
    /// A product that only stores its result may store the sums of an operand beside it.
    pub operand_sums: bool,
    /// A product that only stores its result may be added to an f32 variable where it stands, where
    /// [`Capabilities::any_epilogue`] does not say so of every program.
    pub accumulates: bool,
    /// A product in 16 bits may end in the derivative of a GELU by tanh, where it cannot end in any
    /// program.
    pub gelu_gradients: bool,
    /// Rows of what products of two axes read and write begin on multiples of this many bytes
    /// (`schedule/aligned.rs`); 0 leaves them dense.
    pub row_bytes: usize,
}

impl Capabilities {
    pub const CPU: Capabilities = Capabilities {
        any_epilogue: true,
        casts_alone: false,
        channels_last: 0,
        operand_sums: false,
        accumulates: false,
        gelu_gradients: false,
        row_bytes: 0,
    };

    /// What the kernels of a target can do; with `eager`, for systems that cast, sum bias gradients,
    /// add up gradients and differentiate activations in kernels of their own.
    pub fn of(target: &Target, eager: bool) -> Capabilities {
        let library = !target.any_epilogue() && !eager;
        Capabilities {
            any_epilogue: target.any_epilogue(),
            casts_alone: eager,
            channels_last: target.channels_last(),
            operand_sums: library,
            accumulates: library,
            gelu_gradients: library,
            row_bytes: target.row_bytes(),
        }
    }
}

/// A graph, scheduled.
#[derive(Debug)]
pub struct Schedule {
    /// After weight copies; names the variables.
    pub graph: Graph,
    pub items: Items,
    pub groups: Vec<(Group, Option<Built>)>,
    pub steps: Vec<Bundle>,
    pub layout: memory::Layout,
    /// Values that are stored to be looked at, and would otherwise stay in registers.
    pub tapped: BTreeSet<usize>,
}

/// Schedules a verified graph; `existing` is the training graph where `graph` evaluates its model.
///
/// # Errors
/// An update of a variable that does not exist (P0402).
pub fn schedule(graph: &Graph, existing: Option<&Graph>, caps: &Capabilities) -> Result<Schedule> {
    let graph = match caps.casts_alone {
        true => graph.without_dead_nodes(),
        false => weight_copies(graph, existing, caps.channels_last).without_dead_nodes(),
    };
    let mut items = items::lower(&graph, caps.channels_last)?;
    deps::sort(&mut items);
    place::place_parts(&mut items);
    deps::sort(&mut items);
    let fused = fuse::fuse(&items, caps);
    let again = recompute::recompute(&items, &fused);
    let mut groups = fused;
    if caps.operand_sums {
        sums::join(&items, &mut groups);
    }
    aligned::align_rows(&mut items, &groups, caps.row_bytes);
    let mut steps = order::order(&items, &groups);
    let mut layout = memory::layout(&items, &groups, &steps);
    // What can be computed again is, where every clone fuses and less memory is needed.
    if let Some(mut again) = again {
        deps::sort(&mut again);
        let mut fused = fuse::fuse(&again, caps);
        if recompute::all_fused(&again, &fused) {
            if caps.operand_sums {
                sums::join(&again, &mut fused);
            }
            aligned::align_rows(&mut again, &fused, caps.row_bytes);
            let order = order::order(&again, &fused);
            let less = memory::layout(&again, &fused, &order);
            if less.bytes < layout.bytes {
                (items, groups, steps, layout) = (again, fused, order, less);
            }
        }
    }
    Ok(Schedule { graph, items, groups, steps, layout, tapped: BTreeSet::new() })
}

/// The schedule of a training graph with everything that can be watched stored: the same programs,
/// and beside them copies that store what they keep in registers.
///
/// # Errors
/// As [`schedule`].
pub fn schedule_watched(graph: &Graph, caps: &Capabilities) -> Result<Schedule> {
    let mut s = schedule(graph, None, caps)?;
    s.tapped = taps::tap(&mut s);
    s.layout = memory::layout(&s.items, &s.groups, &s.steps);
    Ok(s)
}

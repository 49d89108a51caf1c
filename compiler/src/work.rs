//! Counts of what passes look at, so that a test can say that their work grows with the graph and not
//! with its square. Nothing is decided by them.

use std::cell::Cell;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Candidates looked at, and parts of sets joined, by extraction.
    Extraction,
    /// References taken and given back while extraction tries other candidates.
    Climbing,
    /// Nodes met while the bound asks what could share a kernel.
    Bound,
    /// Intervals of sets of what leads to what.
    Reach,
    /// Arcs looked at for minimum cuts.
    Flow,
    /// Pairs of groups that were asked whether they are one kernel.
    Pairs,
    /// Items written into programs.
    Programs,
    /// Groups met on walks between two groups.
    Walks,
    /// What must run before what: edges between items.
    Edges,
    /// Bundles looked at for an order.
    Order,
    /// Blocks met by other blocks in memory.
    Memory,
}

impl Work {
    pub const ALL: [Work; 11] = [
        Work::Extraction,
        Work::Climbing,
        Work::Bound,
        Work::Reach,
        Work::Flow,
        Work::Pairs,
        Work::Programs,
        Work::Walks,
        Work::Edges,
        Work::Order,
        Work::Memory,
    ];

    /// Counts so many more, in this thread.
    #[inline]
    pub(crate) fn add(self, n: usize) {
        COUNTS.with(|c| {
            let at = &c[self as usize];
            at.set(at.get().wrapping_add(n as u64));
        });
    }
}

thread_local! {
    static COUNTS: [Cell<u64>; Work::ALL.len()] = const { [const { Cell::new(0) }; Work::ALL.len()] };
}

/// All that this thread has counted so far, in the order of [`Work::ALL`].
pub fn counts() -> [u64; Work::ALL.len()] {
    COUNTS.with(|c| std::array::from_fn(|i| c[i].get()))
}

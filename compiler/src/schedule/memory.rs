//! Lifetimes of temporaries, in-place reuse, and offsets in one arena.

use super::affine::Access;
use super::fuse::Group;
use super::items::{Items, Source, Value};
use super::order::Bundle;
use super::program::Built;
use crate::work::Work;
use std::collections::{BTreeMap, BTreeSet};

/// Offsets and sizes are multiples of this many bytes.
pub const ALIGN: u64 = 64;

/// Most blocks that are placed in more than one order.
const MOST_PAIRED: usize = 8192;

/// Where temporaries lie.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Byte offset of each value that has one.
    pub offsets: BTreeMap<usize, u64>,
    pub bytes: u64,
    /// Largest sum of live temporaries at any step.
    pub bound: u64,
}

fn aligned(bytes: usize) -> u64 {
    (bytes as u64).max(1).next_multiple_of(ALIGN)
}

fn is_temporary(items: &Items, v: usize) -> bool {
    let x = &items.values[v];
    x.source == Source::Computed && x.updates.is_none() && x.placed.is_none()
}

/// First and last step that touches each temporary. Results live to the end; with several batches
/// for one update, what the first one writes must not be overwritten by the next before it is
/// read, which a lifetime within one pass over the steps ensures.
fn lifetimes(items: &Items, steps: &[Bundle]) -> BTreeMap<usize, (usize, usize)> {
    let mut out: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        for &v in step.writes.iter().chain(&step.reads) {
            if is_temporary(items, v) {
                let e = out.entry(v).or_insert((at, at));
                e.1 = at;
            }
        }
    }
    for r in &items.results {
        if let Some(e) = out.get_mut(&items.storage(r.1)) {
            e.1 = steps.len();
        }
    }
    out
}

/// Largest sum of live temporaries, without reuse in place.
pub fn live_bound(items: &Items, steps: &[Bundle]) -> u64 {
    let blocks: Vec<Block> = lifetimes(items, steps)
        .into_iter()
        .map(|(v, (first, last))| Block {
            values: vec![v],
            bytes: aligned(items.values[v].bytes()),
            first,
            last,
        })
        .collect();
    bound(&blocks, steps.len())
}

/// Memory that one or more values use one after the other.
#[derive(Clone, Debug)]
struct Block {
    values: Vec<usize>,
    bytes: u64,
    first: usize,
    last: usize,
}

fn bound(blocks: &[Block], steps: usize) -> u64 {
    let mut change = vec![0i64; steps + 2];
    for b in blocks {
        change[b.first] += b.bytes as i64;
        change[b.last + 1] -= b.bytes as i64;
    }
    let mut live = 0;
    change.iter().fold(0, |top, c| {
        live += c;
        top.max(live)
    }) as u64
}

/// Lays out the temporaries of a schedule.
pub fn layout(items: &Items, groups: &[(Group, Option<Built>)], steps: &[Bundle]) -> Layout {
    let lives = lifetimes(items, steps);
    // By value: how many others are parts of it.
    let mut parts = vec![0usize; items.values.len()];
    items.values.iter().filter_map(|x| x.placed.as_ref()).for_each(|p| parts[p.0] += 1);
    let mut block_of: BTreeMap<usize, usize> = BTreeMap::new();
    let mut blocks: Vec<Block> = vec![];
    for (at, step) in steps.iter().enumerate() {
        for &v in &step.writes {
            let Some(&(first, last)) = lives.get(&v).filter(|_| !block_of.contains_key(&v)) else {
                continue;
            };
            let bytes = aligned(items.values[v].bytes());
            let reuse = (first == at)
                .then(|| {
                    dying_twin(items, &parts, groups, step, v, |i| {
                        let b = *block_of.get(&i)?;
                        // Another result of this step that nobody reads may have taken it.
                        let taken = blocks[b].values.iter().any(|w| step.writes.contains(w));
                        let free =
                            lives[&i].1 == at && blocks[b].last == at && blocks[b].bytes >= bytes;
                        (free && !taken).then_some(b)
                    })
                })
                .flatten();
            let b = reuse.unwrap_or_else(|| {
                blocks.push(Block { values: vec![], bytes, first, last });
                blocks.len() - 1
            });
            blocks[b].values.push(v);
            blocks[b].last = blocks[b].last.max(last);
            block_of.insert(v, b);
        }
    }
    let bound = bound(&blocks, steps.len());
    let by_size = |b: &Block| (std::cmp::Reverse(b.bytes), b.first, b.values[0]);
    let by_area = |b: &Block| {
        (std::cmp::Reverse(b.bytes * (b.last - b.first + 1) as u64), b.first, b.values[0])
    };
    // Of several ways the one that needs least. Those that place blocks in another order than that of
    // time look at every pair of them, which is for as many as fit.
    let mut ways = vec![in_time(&blocks)];
    if blocks.len() <= MOST_PAIRED {
        ways.splice(0..0, [assign(&blocks, by_size), assign(&blocks, by_area)]);
    }
    let (offsets, bytes) = ways.into_iter().min_by_key(|x| x.1).expect("at least one way");
    let mut out = Layout { bytes, bound, ..Layout::default() };
    for (b, offset) in blocks.iter().zip(offsets) {
        b.values.iter().for_each(|&v| {
            out.offsets.insert(v, offset);
        });
    }
    out
}

/// [`assign`] in the order of the blocks' first steps: what is alive when a block begins is all that it
/// must not touch, and what is free between is kept by size.
fn in_time(blocks: &[Block]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&b| (blocks[b].first, blocks[b].values[0]));
    let mut offsets = vec![0; blocks.len()];
    let mut space = Space::default();
    let mut ends: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut top = 0;
    for b in order {
        Work::Memory.add(1);
        let x = &blocks[b];
        while let Some(&(last, dead)) = ends.first()
            && last < x.first
        {
            ends.pop_first();
            space.free(offsets[dead]);
        }
        offsets[b] = space.take(x.bytes);
        ends.insert((x.last, b));
        top = top.max(offsets[b] + x.bytes);
    }
    (offsets, top)
}

/// Memory with blocks in it, and the gaps between them.
#[derive(Default)]
struct Space {
    /// First byte and end of every block.
    used: BTreeMap<u64, u64>,
    /// Size and first byte of every gap.
    gaps: BTreeSet<(u64, u64)>,
}

impl Space {
    /// The smallest gap that is large enough, the first of equals, or else the end.
    fn take(&mut self, bytes: u64) -> u64 {
        let at = match self.gaps.range((bytes, 0)..).next().copied() {
            Some((size, from)) => {
                self.gaps.remove(&(size, from));
                if size > bytes {
                    self.gaps.insert((size - bytes, from + bytes));
                }
                from
            }
            None => self.used.last_key_value().map_or(0, |b| *b.1),
        };
        self.used.insert(at, at + bytes);
        at
    }

    fn free(&mut self, at: u64) {
        let end = self.used.remove(&at).expect("a block is there");
        let from = self.used.range(..at).next_back().map_or(0, |b| *b.1);
        if from < at {
            self.gaps.remove(&(at - from, from));
        }
        if let Some((&to, _)) = self.used.range(at..).next() {
            if end < to {
                self.gaps.remove(&(to - end, end));
            }
            self.gaps.insert((to - from, from));
        }
    }
}

/// Places blocks in the given order, each at the lowest gap that fits best among those that are
/// alive with it.
fn assign<K: Ord>(blocks: &[Block], key: impl Fn(&Block) -> K) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&b| key(&blocks[b]));
    let mut offsets = vec![0; blocks.len()];
    // Where blocks are, ascending, with their first and last steps.
    let mut placed: Vec<(u64, u64, usize, usize)> = vec![];
    let mut top = 0;
    for b in order {
        let x = &blocks[b];
        let taken = placed
            .iter()
            .filter(|&&(_, _, first, last)| first <= x.last && x.first <= last)
            .map(|&(from, to, ..)| (from, to));
        let mut best: Option<(u64, u64)> = None;
        let mut end = 0;
        for (from, to) in taken {
            if from >= end + x.bytes && best.is_none_or(|(gap, _)| from - end < gap) {
                best = Some((from - end, end));
            }
            end = end.max(to);
        }
        offsets[b] = best.map_or(end, |x| x.1);
        top = top.max(offsets[b] + x.bytes);
        let place = (offsets[b], offsets[b] + x.bytes, x.first, x.last);
        placed.insert(placed.partition_point(|p| *p < place), place);
    }
    (offsets, top)
}

fn alike(a: &Access, b: &Access) -> bool {
    (a.offset, &a.strides) == (b.offset, &b.strides)
}

/// A block whose value dies in this step and is read only at the elements that `v` is written at.
fn dying_twin(
    items: &Items,
    parts: &[usize],
    groups: &[(Group, Option<Built>)],
    step: &Bundle,
    v: usize,
    block: impl Fn(usize) -> Option<usize>,
) -> Option<usize> {
    let &[g] = step.groups.as_slice() else { return None };
    let (group, Some(built)) = &groups[g] else { return None };
    if group.gelu_gradient {
        return None;
    }
    // Inside a part-filled tensor other parts may already lie.
    let mut writes = built
        .outputs
        .iter()
        .zip(&built.program.outputs)
        .filter(|(a, _)| items.storage(a.value) == v);
    let (Some((out, port)), None) = (writes.next(), writes.next()) else { return None };
    // All that lies in a tensor, but for gaps behind rows.
    let whole = |a: &Access, s: usize| {
        let inside = |x: &Value| x.placed.as_ref().is_some_and(|p| p.0 == s);
        a.value == s || inside(&items.values[a.value]) && parts[s] == 1
    };
    let physical = |a: &Access| items.physical(a, &group.dims);
    let written = physical(out).filter(|_| whole(out, v))?;
    let infos = built.program.check().expect("programs were checked");
    let last = infos.iter().map(|i| i.stage).max().unwrap_or(0);
    let info = infos[port.reg as usize];
    // Only what is stored in the last pass over a row comes after every load of it.
    if last > 0 && (info.row || info.stage < last) {
        return None;
    }
    let operands: Vec<usize> =
        group.product.map(|i| items.items[i].read_values().collect::<Vec<_>>()).unwrap_or_default();
    let product_operands = |value: usize| {
        group.product.is_some_and(|i| match &items.items[i].body {
            super::items::Body::Product { operands, .. } => {
                operands.iter().any(|o| items.storage(o.0) == value)
            }
            _ => false,
        }) && operands.iter().any(|&o| items.storage(o) == value)
    };
    let size = port.dtype.size();
    for a in &built.inputs {
        let i = items.storage(a.value);
        if !whole(a, i)
            || !is_temporary(items, i)
            || step.writes.contains(&i)
            || product_operands(i)
        {
            continue;
        }
        let own = built
            .inputs
            .iter()
            .filter(|x| items.storage(x.value) == i)
            .all(|x| whole(x, i) && physical(x).is_some_and(|x| alike(&x, &written)));
        if own
            && items.values[i].dtype.size() == size
            && let Some(b) = block(i)
        {
            return Some(b);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_time_is_what_placing_in_the_order_of_time_gives() {
        let mut state = 5u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for _ in 0..200 {
            let n = 1 + next(60);
            let blocks: Vec<Block> = (0..n)
                .map(|v| {
                    let first = next(40);
                    let bytes = 64 * (1 + next(6) as u64);
                    Block { values: vec![v], bytes, first, last: first + next(12) }
                })
                .collect();
            let by_time = |b: &Block| (b.first, b.values[0]);
            assert_eq!(in_time(&blocks), assign(&blocks, by_time));
        }
    }
}

//! Lifetimes of temporaries, in-place reuse, and offsets in one arena.

use super::affine::Access;
use super::fuse::Group;
use super::items::{Items, Source, Value};
use super::order::Bundle;
use super::program::Built;
use crate::work::Work;
use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap};
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
        let dies = |i: usize| lives.get(&i).is_some_and(|l| l.1 == at);
        let mut twins: Option<Option<Twins>> = None;
        for &v in &step.writes {
            let Some(&(first, last)) = lives.get(&v).filter(|_| !block_of.contains_key(&v)) else {
                continue;
            };
            let bytes = aligned(items.values[v].bytes());
            let reuse = (first == at)
                .then(|| {
                    let twins =
                        twins.get_or_insert_with(|| Twins::of(items, &parts, groups, step, &dies));
                    twins.as_mut()?.take(v, |i| {
                        let b = *block_of.get(&i)?;
                        // Another result of this step that nobody reads may have taken it: the last
                        // values of a block are those that live longest.
                        let alive = |w: &&usize| lives[*w].1 >= at;
                        let mut now = blocks[b].values.iter().rev().take_while(alive);
                        let taken = now.any(|w| step.writes.contains(w));
                        let free = blocks[b].last == at && blocks[b].bytes >= bytes;
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

/// What a step could write over: values that die in it and are read only at the elements that something is
/// written at. Found once for all that the step writes.
struct Twins<'a> {
    items: &'a Items,
    parts: &'a [usize],
    group: &'a Group,
    built: &'a Built,
    infos: Vec<precast_plan::RegInfo>,
    /// The last pass over a row.
    last: u32,
    /// Outputs by what stores them.
    outputs: FxHashMap<usize, Vec<usize>>,
    /// What may be written over and how all of it is read, in the order of the program's inputs.
    dying: Vec<(usize, Access)>,
}

impl<'a> Twins<'a> {
    fn of(
        items: &'a Items,
        parts: &'a [usize],
        groups: &'a [(Group, Option<Built>)],
        step: &Bundle,
        dies: &impl Fn(usize) -> bool,
    ) -> Option<Twins<'a>> {
        let &[g] = step.groups.as_slice() else { return None };
        let (group, Some(built)) = &groups[g] else { return None };
        if group.gelu_gradient {
            return None;
        }
        let infos = built.program.check().expect("programs were checked");
        let mut outputs: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        for (at, a) in built.outputs.iter().enumerate() {
            outputs.entry(items.storage(a.value)).or_default().push(at);
        }
        let last = infos.iter().map(|i| i.stage).max().unwrap_or(0);
        let mut x = Twins { items, parts, group, built, infos, last, outputs, dying: vec![] };
        let operands: Vec<usize> = match group.product.map(|i| &items.items[i]) {
            Some(item) => match &item.body {
                super::items::Body::Product { operands, .. } => {
                    let read: Vec<usize> = item.read_values().map(|o| items.storage(o)).collect();
                    let all = operands.iter().map(|o| items.storage(o.0));
                    all.filter(|o| read.contains(o)).collect()
                }
                _ => vec![],
            },
            None => vec![],
        };
        let mut reads: IndexMap<usize, Vec<&Access>, FxBuildHasher> = IndexMap::default();
        for a in &built.inputs {
            reads.entry(items.storage(a.value)).or_default().push(a);
        }
        for (i, list) in reads {
            if !dies(i)
                || !is_temporary(items, i)
                || step.writes.contains(&i)
                || operands.contains(&i)
                || !list.iter().all(|a| x.whole(a, i))
            {
                continue;
            }
            let places: Option<Vec<Access>> =
                list.iter().map(|a| items.physical(a, &group.dims)).collect();
            let Some(mut places) = places else { continue };
            let first = places.swap_remove(0);
            if places.iter().all(|a| alike(a, &first)) {
                x.dying.push((i, first));
            }
        }
        Some(x)
    }

    /// All that lies in a tensor, but for gaps behind rows.
    fn whole(&self, a: &Access, s: usize) -> bool {
        let inside = |x: &Value| x.placed.as_ref().is_some_and(|p| p.0 == s);
        a.value == s || inside(&self.items.values[a.value]) && self.parts[s] == 1
    }

    /// The block that `v` is written over, of those that `block` gives.
    fn take(&mut self, v: usize, block: impl Fn(usize) -> Option<usize>) -> Option<usize> {
        // Inside a part-filled tensor other parts may already lie.
        let &[at] = &self.outputs.get(&v)?[..] else { return None };
        let (out, port) = (&self.built.outputs[at], &self.built.program.outputs[at]);
        let written = self.items.physical(out, &self.group.dims).filter(|_| self.whole(out, v))?;
        let info = self.infos[port.reg as usize];
        // Only what is stored in the last pass over a row comes after every load of it.
        if self.last > 0 && (info.row || info.stage < self.last) {
            return None;
        }
        let size = port.dtype.size();
        let fits = |(i, read): &(usize, Access)| -> Option<usize> {
            let same = alike(read, &written) && self.items.values[*i].dtype.size() == size;
            if same { block(*i) } else { None }
        };
        let (at, b) = self.dying.iter().enumerate().find_map(|(at, x)| fits(x).map(|b| (at, b)))?;
        self.dying.remove(at);
        Some(b)
    }
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

//! What leads to what among groups, while groups merge.
//!
//! Two groups may become one where no third lies on a path between them. That is asked for every pair
//! that might merge, mostly of neighbours, and the answer must not cost a walk through the graph:
//!
//! - what leads to what among *items* never changes, and a path of items is one of groups, so sets of
//!   it (`ir/reach.rs`) find most paths at once;
//! - groups keep a topological order, so a walk never leaves the part between the two, and it walks
//!   from both ends at once until either has no more;
//! - a group that was found on a path stays on it however others merge.

use crate::ir::reach::{Forest, Sets};
use crate::work::Work;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Between two positions when all are given anew.
const STEP: u64 = 1 << 32;
/// Pairs of items that are looked up before a walk begins, and edges that are looked at for them.
const LOOKUPS: usize = 64;

/// See the module.
pub struct Paths {
    next: Vec<Vec<usize>>,
    before: Vec<Vec<usize>>,
    group_of: Vec<usize>,
    /// Items of every group, in no order.
    members: Vec<Vec<usize>>,
    forest: Forest,
    reach: Sets,
    /// Where in a topological order each group is, and the group at each place.
    position: Vec<u64>,
    order: BTreeMap<u64, usize>,
    /// An item on a path between two groups, in a third.
    between: RefCell<FxHashMap<(usize, usize), usize>>,
    scratch: RefCell<Scratch>,
}

/// What a walk has seen, by group: the number of the walk that saw it last.
#[derive(Default)]
struct Scratch {
    walk: u32,
    forwards: Vec<u32>,
    backwards: Vec<u32>,
}

/// How a walk between two groups that have no third between them ended.
enum Side {
    /// All groups between them that come after the first.
    After(Vec<usize>),
    /// All that come before the second.
    Before(Vec<usize>),
}

impl Paths {
    /// Every item a group of its own; `next`: items that must run after each, all of larger indices.
    pub fn new(next: Vec<Vec<usize>>) -> Paths {
        let n = next.len();
        let mut before = vec![vec![]; n];
        for (i, list) in next.iter().enumerate() {
            list.iter().for_each(|&j| before[j].push(i));
        }
        let forest = Forest::new(&next);
        let reach = forest.reach(&next);
        let position: Vec<u64> = (1..=n as u64).map(|i| i * STEP).collect();
        let scratch = Scratch { walk: 0, forwards: vec![0; n], backwards: vec![0; n] };
        Paths {
            before,
            group_of: (0..n).collect(),
            members: (0..n).map(|i| vec![i]).collect(),
            forest,
            reach,
            order: position.iter().copied().zip(0..n).collect(),
            position,
            between: RefCell::default(),
            scratch: RefCell::new(scratch),
            next,
        }
    }

    pub fn group_of(&self, item: usize) -> usize {
        self.group_of[item]
    }

    /// A number of a group by which [`Paths::not_led_to`] finds it, until it merges.
    pub fn place(&self, group: usize) -> u32 {
        self.forest.place(group)
    }

    /// Of groups by their numbers, those whose own item no item of a group leads to.
    pub fn not_led_to<'a>(
        &self,
        group: usize,
        among: &'a BTreeMap<u32, usize>,
    ) -> impl Iterator<Item = usize> + use<'a> {
        let spans = self.members[group].iter().flat_map(|&i| self.reach.spans(i));
        let mut spans: Vec<(u32, u32)> = spans.copied().collect();
        spans.sort_unstable();
        let (mut from, mut gaps) = (0, vec![]);
        for (a, b) in spans {
            if from < a {
                gaps.push(from..a);
            }
            from = from.max(b);
        }
        gaps.push(from..u32::MAX);
        gaps.into_iter().flat_map(|gap| among.range(gap)).map(|x| *x.1)
    }

    /// Groups that must run after a group, with repetitions.
    pub fn after(&self, group: usize) -> impl Iterator<Item = usize> + '_ {
        self.neighbours(group, &self.next)
    }

    fn neighbours<'a>(
        &'a self,
        group: usize,
        edges: &'a [Vec<usize>],
    ) -> impl Iterator<Item = usize> + 'a {
        let all = self.members[group].iter().flat_map(move |&i| &edges[i]);
        all.map(|&j| self.group_of[j]).filter(move |&j| j != group)
    }

    /// Whether a path leads from `a` to `b` through a third group, or from `b` to `a` at all.
    pub fn parted(&self, a: usize, b: usize) -> bool {
        if self.position[b] < self.position[a] {
            // Only `b` can lead to `a`.
            return self.after(b).any(|j| j == a) || self.through(b, a);
        }
        self.through(a, b)
    }

    /// Whether a path leads from `a` to `b`, which comes after it in the order, through a third group.
    fn through(&self, a: usize, b: usize) -> bool {
        if let Some(&item) = self.between.borrow().get(&(a, b)) {
            let third = self.group_of[item];
            if third != a && third != b {
                return true;
            }
        }
        let found = self.looked_up(a, b).or_else(|| self.walk(a, b).err());
        if let Some(item) = found {
            self.between.borrow_mut().insert((a, b), item);
        }
        found.is_some()
    }

    /// An item of a third group that is on a path, where a few lookups find one.
    fn looked_up(&self, a: usize, b: usize) -> Option<usize> {
        let end = self.position[b];
        let third = |j: &usize| {
            let g = self.group_of[*j];
            g != a && g != b && self.position[g] < end
        };
        let edges = self.members[a].iter().flat_map(|&i| &self.next[i]).copied();
        let from = edges.take(4 * LOOKUPS).filter(third);
        let pairs = from.flat_map(|j| self.members[b].iter().map(move |&y| (j, y)));
        pairs.take(LOOKUPS).find(|&(j, y)| self.reach.holds(j, self.forest.place(y))).map(|p| p.0)
    }

    /// Walks from both ends: what lies on one side of the two, or an item between them.
    fn walk(&self, a: usize, b: usize) -> Result<Side, usize> {
        let mut scratch = self.scratch.borrow_mut();
        let Scratch { walk, forwards, backwards } = &mut *scratch;
        *walk += 1;
        let (start, end) = (self.position[a], self.position[b]);
        let inside = |g: usize| start < self.position[g] && self.position[g] < end;
        // What a group leads to, or comes after, on one side; `origin` and `target`: the two groups.
        let step = |from: usize,
                    [origin, target]: [usize; 2],
                    edges: &[Vec<usize>],
                    seen: &mut Vec<u32>,
                    other: &[u32],
                    list: &mut Vec<usize>| {
            let mut met = 0;
            for j in self.neighbours(from, edges) {
                met += 1;
                if j == target && from != origin {
                    return Err(self.members[from][0]);
                }
                if j != a && j != b && inside(j) && seen[j] != *walk {
                    if other[j] == *walk {
                        return Err(self.members[j][0]);
                    }
                    seen[j] = *walk;
                    list.push(j);
                }
            }
            Work::Walks.add(met);
            Ok(())
        };
        // From the end that has cost less, each group about as much as it has members.
        let (mut after, mut ahead) = (vec![a], vec![b]);
        let (mut i, mut j) = (0, 0);
        let (mut cost, mut other_cost) = (0, 0);
        loop {
            let Some(&g) = after.get(i) else { return Ok(Side::After(after.split_off(1))) };
            let Some(&h) = ahead.get(j) else { return Ok(Side::Before(ahead.split_off(1))) };
            let [from, to] = [g, h].map(|x| self.members[x].len());
            if cost + from <= other_cost + to {
                step(g, [a, b], &self.next, forwards, backwards, &mut after)?;
                cost += from;
                i += 1;
            } else {
                step(h, [b, a], &self.before, backwards, forwards, &mut ahead)?;
                other_cost += to;
                j += 1;
            }
        }
    }

    /// Makes `b` a part of `a`; no third group is between them.
    pub fn merge(&mut self, a: usize, b: usize) {
        let (first, second) = if self.position[a] < self.position[b] { (a, b) } else { (b, a) };
        let side = match self.walk(first, second) {
            Ok(side) => side,
            Err(_) => panic!("a third group is on a path between the two"),
        };
        self.order.remove(&self.position[first]);
        self.order.remove(&self.position[second]);
        // The one that stays where it is gives its place to both.
        let (at, behind) = match side {
            Side::After(_) => (self.position[second], true),
            Side::Before(_) => (self.position[first], false),
        };
        self.order.insert(at, a);
        self.position[a] = at;
        let (Side::After(list) | Side::Before(list)) = side;
        if behind {
            self.move_behind(a, list)
        } else {
            self.move_ahead(a, list)
        }
        let mut moved = std::mem::take(&mut self.members[b]);
        moved.iter().for_each(|&i| self.group_of[i] = a);
        if moved.len() > self.members[a].len() {
            std::mem::swap(&mut moved, &mut self.members[a]);
        }
        self.members[a].append(&mut moved);
    }

    /// Puts groups directly behind `a`, in their order.
    fn move_behind(&mut self, a: usize, list: Vec<usize>) {
        let from = self.position[a];
        let to = self.order.range(from + 1..).next().map_or(from.saturating_add(STEP), |x| *x.0);
        self.put(from, to, list);
    }

    /// Puts groups directly before `a`, in their order.
    fn move_ahead(&mut self, a: usize, list: Vec<usize>) {
        let to = self.position[a];
        let from = self.order.range(..to).next_back().map_or(0, |x| *x.0);
        self.put(from, to, list);
    }

    /// Puts groups between two positions that nothing is between.
    fn put(&mut self, from: u64, to: u64, mut list: Vec<usize>) {
        if list.is_empty() {
            return;
        }
        list.sort_unstable_by_key(|&g| self.position[g]);
        for &g in &list {
            self.order.remove(&self.position[g]);
        }
        // What was behind the end of the gap may have been moved away with the list.
        let count = list.len() as u64;
        let step = (to - from) / (count + 1);
        if step > 0 {
            for (i, g) in (1..).zip(list) {
                self.position[g] = from + i * step;
                self.order.insert(self.position[g], g);
            }
            return;
        }
        let behind = self.order.split_off(&(from + 1));
        let all: Vec<usize> =
            self.order.values().copied().chain(list).chain(behind.into_values()).collect();
        self.order = BTreeMap::new();
        for (i, g) in (1..).zip(all) {
            self.position[g] = i * STEP;
            self.order.insert(self.position[g], g);
        }
    }
}

//! Nodes of which any two could be in one kernel, found once for all: what the search in
//! [`super::Sharing::together`] would find again for every pair.

use super::sharing::{Kind, Sharing, Space};
use petgraph::unionfind::UnionFind;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

/// Most families of spaces that are kept of a node that any number of reductions would fit. Only what
/// is found at once depends on it.
const FAMILIES: usize = 4;

/// The spaces that fit in one kernel with a reduction: its own, its points, its rows. 0 reduced: those
/// of so many points.
type Family = (usize, usize);

/// See the module.
#[derive(Debug, Default)]
pub struct Company {
    /// By node: sets of nodes that are pairwise in one kernel in some schedule, and are led to from
    /// each other within the set.
    sure: Vec<SmallVec<[u32; 2]>>,
    /// By node: what is joined at all by nodes next to one another.
    joined: Vec<u32>,
    /// By set of `sure`: products next to a member.
    products: Vec<Vec<u32>>,
    /// Components of `joined` that hold a product of so many points.
    with_product: FxHashSet<(u32, usize)>,
}

impl Company {
    /// `next`: edges as [`Sharing`] follows them, with whether they part what they join.
    pub fn new(s: &Sharing, next: &[Vec<(usize, bool)>]) -> Company {
        let n = s.kind.len();
        let depth = depths(s, next);
        let families = |x: Space| -> SmallVec<[Family; FAMILIES]> {
            if x.reduced > 1 {
                return SmallVec::from_slice(&[(x.kept, x.reduced)]);
            }
            std::iter::once((x.kept, 0)).chain(s.reductions_of(x.kept)).take(FAMILIES).collect()
        };
        // Pairs of a node and a family, in which kernels grow.
        let mut pairs: FxHashMap<(usize, Family, usize, usize), u32> = FxHashMap::default();
        let mut members: Vec<(usize, bool)> = vec![];
        let mut unions: Vec<(u32, u32)> = vec![];
        let mut joined = UnionFind::<u32>::new(n);
        for i in 0..n {
            for &j in s.neighbours(i).iter().filter(|&&j| i < j) {
                joined.union(i as u32, j as u32);
            }
            if s.kind[i] != Kind::Rows {
                continue;
            }
            let phase = s.phase(i) as usize;
            for family in families(s.space[i]) {
                let mut pair = |node: usize, own: bool| {
                    *pairs.entry((node, family, depth[i] as usize, phase)).or_insert_with(|| {
                        members.push((node, own));
                        members.len() as u32 - 1
                    })
                };
                let a = pair(i, true);
                for &j in s.neighbours(i) {
                    // What may vanish is passed by any kernel.
                    let passes = s.kind[j] == Kind::Maybe;
                    let fits = s.kind[j] == Kind::Rows
                        && depth[j] == depth[i]
                        && families(s.space[j]).contains(&family);
                    if passes || fits {
                        unions.push((a, pair(j, !passes)));
                    }
                }
            }
        }
        let mut sets = UnionFind::<u32>::new(members.len());
        for (a, b) in unions {
            sets.union(a, b);
        }
        let mut out = Company {
            sure: vec![SmallVec::new(); n],
            joined: (0..n as u32).map(|i| joined.find(i)).collect(),
            products: vec![vec![]; members.len()],
            with_product: FxHashSet::default(),
        };
        for (at, &(node, _)) in members.iter().enumerate().filter(|(_, m)| m.1) {
            out.sure[node].push(sets.find(at as u32));
        }
        for p in (0..n).filter(|&p| s.kind[p] == Kind::Product) {
            out.with_product.insert((out.joined[p], s.space[p].kept));
            for &j in s.neighbours(p) {
                for &set in &out.sure[j] {
                    let list = &mut out.products[set as usize];
                    if list.last() != Some(&(p as u32)) {
                        list.push(p as u32);
                    }
                }
            }
        }
        out
    }

    /// Whether two row programs are known to be in one kernel in some schedule.
    pub fn surely(&self, a: usize, b: usize) -> bool {
        self.sure[a].iter().any(|s| self.sure[b].contains(s))
    }

    /// Whether nodes next to one another lead from the one to the other at all.
    pub fn joined(&self, a: usize, b: usize) -> bool {
        self.joined[a] == self.joined[b]
    }

    /// Products next to a node that is in one kernel with `a` in some schedule.
    pub fn products(&self, a: usize) -> impl Iterator<Item = usize> + '_ {
        self.sure[a].iter().flat_map(|&s| &self.products[s as usize]).map(|&p| p as usize)
    }

    /// Whether a product of so many points is joined to a node at all.
    pub fn product_of(&self, a: usize, points: usize) -> bool {
        self.with_product.contains(&(self.joined[a], points))
    }
}

/// The most nodes that part what is around them on a path to every node: of two nodes at one depth
/// neither is parted from the other.
fn depths(s: &Sharing, next: &[Vec<(usize, bool)>]) -> Vec<u32> {
    let mut depth = vec![0; next.len()];
    for (i, list) in next.iter().enumerate() {
        let parts = matches!(s.kind[i], Kind::Alone | Kind::Product | Kind::Parts);
        for &(j, operand) in list {
            depth[j] = depth[j].max(depth[i] + u32::from(parts || operand));
        }
    }
    depth
}

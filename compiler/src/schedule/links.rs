//! What must run after what while items are still being made: the successors of one item at a time.

use super::deps;
use super::items::{Items, Source};
use crate::ir::Phase;
use std::collections::{BTreeMap, BTreeSet};

/// Readers and writers of every value, kept up to date as items are appended.
#[derive(Debug, Default)]
pub struct Links {
    items: usize,
    readers: Vec<Vec<usize>>,
    writers: Vec<Vec<usize>>,
    /// Values that read an old variable, and that write a new one.
    old: BTreeMap<String, Vec<usize>>,
    new: BTreeMap<String, Vec<usize>>,
}

impl Links {
    /// Takes in items that were appended since. Nothing is placed inside anything yet.
    pub fn refresh(&mut self, items: &Items) {
        let known = self.readers.len();
        for (v, value) in items.values.iter().enumerate().skip(known) {
            if let Source::Var(name) = &value.source {
                self.old.entry(name.clone()).or_default().push(v);
            }
        }
        self.readers.resize(items.values.len(), vec![]);
        self.writers.resize(items.values.len(), vec![]);
        for (i, item) in items.items.iter().enumerate().skip(self.items) {
            let reads: BTreeSet<usize> = item.read_values().collect();
            reads.into_iter().for_each(|v| self.readers[v].push(i));
            let writes: BTreeSet<usize> = item.writes.iter().map(|w| w.value).collect();
            writes.into_iter().for_each(|v| self.writers[v].push(i));
        }
        self.items = items.items.len();
    }

    /// Notes that a value is the new one of a variable.
    pub fn updates(&mut self, value: usize, variable: &str) {
        self.new.entry(variable.to_string()).or_default().push(value);
    }

    /// Items that write a value.
    pub fn writers(&self, value: usize) -> &[usize] {
        &self.writers[value]
    }

    /// Items that read the old value of a variable.
    pub fn read_old(&self, variable: &str) -> impl Iterator<Item = usize> + '_ {
        self.old.get(variable).into_iter().flatten().flat_map(|&v| self.readers[v].iter().copied())
    }

    /// Whether any of `targets` comes after `from`, at any distance: as
    /// a walk over [`deps::successors`].
    pub fn leads(&self, items: &Items, from: usize, targets: &BTreeSet<usize>) -> bool {
        let mut seen = BTreeSet::new();
        let mut stack = vec![from];
        while let Some(i) = stack.pop() {
            let mut visit = |j: usize| {
                if seen.insert(j) {
                    stack.push(j);
                }
            };
            let item = &items.items[i];
            for w in &item.writes {
                self.readers[w.value].iter().copied().for_each(&mut visit);
                if deps::is_fill(items, item) {
                    self.writers[w.value].iter().copied().filter(|&x| x != i).for_each(&mut visit);
                }
            }
            for v in item.read_values() {
                let Source::Var(name) = &items.values[v].source else { continue };
                let phase = |j: &usize| *j != i && items.items[*j].phase == item.phase;
                for &new in self.new.get(name).into_iter().flatten() {
                    self.writers[new].iter().copied().filter(phase).for_each(&mut visit);
                }
            }
        }
        seen.iter().any(|j| targets.contains(j))
    }

    /// Readers of the old value of a variable in a phase, other than one item.
    pub fn old_readers(
        &self,
        items: &Items,
        variable: &str,
        phase: Phase,
        except: usize,
    ) -> BTreeSet<usize> {
        self.read_old(variable).filter(|&i| i != except && items.items[i].phase == phase).collect()
    }
}

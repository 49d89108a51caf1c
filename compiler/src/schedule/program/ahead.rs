//! Items put ahead of a program over a single element, at the cost of what they add.
//!
//! [`Draft::added`] writes the later of two programs behind the earlier. Where the later one is the longer,
//! it stays as it is here, and only its loads of what the earlier one computes give way.

use super::*;
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

/// Which instructions read each register, and the loads that are written as they are.
#[derive(Clone, Default)]
pub(super) struct Uses {
    of: Vec<SmallVec<[Reg; 2]>>,
    stored: FxHashSet<Reg>,
}

impl Uses {
    pub(super) fn of(d: &Draft) -> Uses {
        let mut u = Uses::default();
        u.add(&d.b.code, 0, d.regs.values().map(|x| x.0));
        u
    }

    /// Takes in the instructions from one on, and registers that are written.
    pub(super) fn add(&mut self, code: &[Instr], from: usize, written: impl Iterator<Item = Reg>) {
        self.of.resize(code.len(), SmallVec::new());
        for (at, i) in code.iter().enumerate().skip(from) {
            i.operands().for_each(|r| self.of[r as usize].push(at as Reg));
        }
        let loads = written.filter(|&r| matches!(code[r as usize], Instr::Load { .. }));
        self.stored.extend(loads);
    }
}

/// What putting items ahead of a draft changes.
pub struct Ahead {
    patch: Patch,
    /// Loads of what is computed now, and the registers that hold it.
    loads: Vec<(Reg, Reg)>,
    /// What reads them, as it is then.
    readers: Vec<(Reg, Instr)>,
}

impl Ahead {
    /// Instructions and ports that a draft has more, or less, with it.
    pub fn growth(&self) -> [isize; 2] {
        let gone = self.loads.len() as isize;
        [self.patch.code.len(), self.patch.ports.len()].map(|n| n as isize - gone)
    }
}

impl Draft {
    /// Whether instructions come after all that they read.
    pub fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// What the items of `earlier` change where they run before those of this draft, both over a single
    /// element. `None` where that would make equal what was not, or cannot be told from the two.
    pub fn ahead(&self, earlier: &Draft) -> Option<Ahead> {
        let both = |v: &usize| self.regs.contains_key(v);
        if !earlier.in_order || earlier.product || self.product || earlier.regs.keys().any(both) {
            return None;
        }
        let mut p = Patch::default();
        Work::Programs.add(earlier.b.code.len() / 8 + 1);
        let base = self.b.code.len();
        let mut moved: Vec<Reg> = Vec::with_capacity(earlier.b.code.len());
        for instr in &earlier.b.code {
            let new = match *instr {
                Instr::Load { port } => {
                    let (port, a) = &earlier.ports[port as usize];
                    let a = a.as_ref()?;
                    if self.regs.contains_key(&a.value) {
                        return None;
                    }
                    let at = self.known.get(a).or_else(|| p.known.get(a)).copied();
                    let at = at.unwrap_or_else(|| {
                        let at = (self.ports.len() + p.ports.len()) as u32;
                        p.ports.push((*port, Some(a.clone())));
                        p.known.insert(a.clone(), at);
                        at
                    });
                    Instr::Load { port: at }
                }
                other => other.map_operands(|r| moved[r as usize]),
            };
            let k = key(&new);
            let known = self.b.seen.get(&k).copied();
            moved.push(known.unwrap_or_else(|| {
                *p.seen.entry(k).or_insert_with(|| {
                    p.code.push(new);
                    (base + p.code.len() - 1) as Reg
                })
            }));
        }
        p.writes = earlier
            .writes
            .iter()
            .map(|(v, o, a)| {
                (*v, OutPort { dtype: o.dtype, reg: moved[o.reg as usize] }, a.clone())
            })
            .collect();
        let uses = self.uses.get_or_init(|| Uses::of(self));
        let mut loads = vec![];
        for (_, o, a) in &p.writes {
            let Some(&port) = self.known.get(a) else { continue };
            let load = *self.b.seen.get(&key(&Instr::Load { port }))?;
            if uses.stored.contains(&load) {
                return None;
            }
            loads.push((load, o.reg));
        }
        let mut reading: Vec<Reg> =
            loads.iter().flat_map(|l| &uses.of[l.0 as usize]).copied().collect();
        reading.sort_unstable();
        reading.dedup();
        let taken = |r: Reg| loads.iter().find(|l| l.0 == r).map_or(r, |l| l.1);
        let mut made: FxHashSet<Key> = FxHashSet::default();
        let mut readers = Vec::with_capacity(reading.len());
        for at in reading {
            let new = self.b.code[at as usize].map_operands(taken);
            let k = key(&new);
            if self.b.seen.contains_key(&k) || p.seen.contains_key(&k) || !made.insert(k) {
                return None;
            }
            readers.push((at, new));
        }
        Some(Ahead { patch: p, loads, readers })
    }

    /// Puts the items ahead.
    pub fn put_ahead(&mut self, a: Ahead) {
        self.apply(a.patch);
        let mut uses = self.uses.take().unwrap_or_else(|| Uses::of(self));
        for (load, to) in a.loads {
            let old = self.b.code[load as usize];
            self.b.seen.remove(&key(&old));
            if let Instr::Load { port } = old
                && let Some(access) = &self.ports[port as usize].1
            {
                self.known.remove(access);
            }
            let moved = std::mem::take(&mut uses.of[load as usize]);
            uses.of[to as usize].extend(moved);
            self.gone += 1;
        }
        for (at, new) in a.readers {
            let old = std::mem::replace(&mut self.b.code[at as usize], new);
            self.b.seen.remove(&key(&old));
            self.b.seen.insert(key(&new), at);
        }
        self.uses = uses.into();
        self.in_order = false;
    }
}

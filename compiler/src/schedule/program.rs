//! The row program of a fused group.

use super::affine::Access;
use super::fuse::Group;
use super::items::{Body, Item, Items, Read, Source};
use crate::ops::builder::{Key, key};
use crate::ops::{Op, ProgramBuilder};
use crate::work::Work;
use precast_plan::{BinaryOp, DType, InPort, Instr, MAX_CODE, OutPort, Program, Reg};
use rustc_hash::FxHashMap;
use std::borrow::Cow;
use std::cell::OnceCell;

mod ahead;

pub use ahead::Ahead;

/// A program and what its ports are bound to, over the space of the group. Port 0 of a product's
/// epilogue is the accumulator and has no access.
#[derive(Clone, Debug)]
pub struct Built {
    pub program: Program,
    pub inputs: Vec<Access>,
    pub outputs: Vec<Access>,
}

/// Most instructions and ports of a program over more than one element.
pub const MOST: (usize, usize) = (192, 32);

/// A program as far as it was written, and what it was written for. It can go on with more items.
#[derive(Clone, Default)]
pub struct Draft {
    dims: Vec<usize>,
    reduced: usize,
    product: bool,
    b: ProgramBuilder,
    ports: Vec<(InPort, Option<Access>)>,
    /// Ports by what they read.
    known: FxHashMap<Access, u32>,
    regs: FxHashMap<usize, (Reg, Access)>,
    /// Every value that is computed, stored or not.
    writes: Vec<(usize, OutPort, Access)>,
    /// Loads that do not vary along the reduced axes are of the row.
    rows: bool,
    /// Loads that gave way to what computes them, each with its port.
    gone: usize,
    in_order: bool,
    uses: OnceCell<ahead::Uses>,
}

impl Draft {
    fn new(group: &Group, rows: bool) -> Draft {
        let mut d = Draft {
            dims: group.dims.clone(),
            reduced: group.reduced,
            product: group.product.is_some(),
            rows,
            in_order: true,
            ..Draft::default()
        };
        if d.product {
            d.ports.push((InPort { dtype: DType::F32, row: false }, None));
        }
        d
    }

    /// Whether it was written over the space of a group, as a product's or as one of rows.
    pub fn is_in(&self, group: &Group) -> bool {
        self.dims == group.dims
            && self.reduced == group.reduced
            && (group.product.is_some() || !self.product)
    }
}

/// Writes items into a draft.
struct Builder<'a> {
    items: &'a Items,
    d: &'a mut Draft,
}

/// Builds the program of a group, or says why the group cannot be one.
pub fn build(
    items: &Items,
    group: &Group,
    stored: impl Fn(usize) -> bool,
) -> Result<Built, &'static str> {
    build_within(items, group, stored, MOST)
}

/// [`build`] with at most so many instructions and ports.
pub fn build_within(
    items: &Items,
    group: &Group,
    stored: impl Fn(usize) -> bool,
    most: (usize, usize),
) -> Result<Built, &'static str> {
    build_drafted(items, group, &stored, most).map(|(built, _)| built)
}

/// [`build_within`], with the draft that more items can be added to, where there is one.
pub fn build_drafted(
    items: &Items,
    group: &Group,
    stored: &impl Fn(usize) -> bool,
    most: (usize, usize),
) -> Result<(Built, Option<Draft>), &'static str> {
    let with = |rows: bool| {
        let mut d = Draft::new(group, rows);
        append(items, group, &mut d)?;
        Ok((finished(items, group, &d.whole(None), stored, most)?, d))
    };
    // An operand repeated along the reduced axes looks like one of the row, and what is computed
    // from it like a value of the row. Where that does not fit, it is loaded for every element.
    match with(true) {
        Ok((built, d)) => Ok((built, Some(d))),
        Err(why) if group.reduced == 0 => Err(why),
        Err(why) => with(false).map(|(built, _)| (built, None)).map_err(|_| why),
    }
}

/// What a union makes of the draft of its first group.
pub enum Change {
    /// Goes on with this.
    Added(Patch),
    /// Is another one.
    New(Draft),
}

/// Builds the program of a union of two groups from what is written of both over its space; `Err(None)`
/// where that does not say it and the whole has to be written anew.
pub fn build_of(
    items: &Items,
    group: &Group,
    (first, second): (&Draft, &Draft),
    stored: &impl Fn(usize) -> bool,
) -> Result<(Built, Change), Option<&'static str>> {
    let anew = |why| if group.reduced > 0 { None } else { Some(why) };
    if second.product && !first.product {
        let mut draft = Draft::new(group, true);
        for d in [first, second] {
            let patch = draft.patch(d).map_err(anew)?.ok_or(None)?;
            draft.apply(patch);
        }
        let built = finished(items, group, &draft.whole(None), stored, MOST).map_err(anew)?;
        return Ok((built, Change::New(draft)));
    }
    let patch = first.patch(second).map_err(anew)?.ok_or(None)?;
    let whole = first.whole(Some(&patch));
    let built = finished(items, group, &whole, stored, MOST).map_err(anew)?;
    Ok((built, Change::Added(patch)))
}

/// A draft, with what is added to it.
struct Whole<'a> {
    code: Cow<'a, [Instr]>,
    ports: Vec<&'a (InPort, Option<Access>)>,
    writes: Vec<&'a (usize, OutPort, Access)>,
    product: bool,
}

/// What one draft adds to another.
#[derive(Default)]
pub struct Patch {
    code: Vec<Instr>,
    seen: FxHashMap<Key, Reg>,
    ports: Vec<(InPort, Option<Access>)>,
    known: FxHashMap<Access, u32>,
    writes: Vec<(usize, OutPort, Access)>,
}

impl Patch {
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
    pub fn ports(&self) -> usize {
        self.ports.len()
    }
}

impl Draft {
    /// Of a group over its own space, with all loads along reduced axes of the row.
    pub fn of(items: &Items, group: &Group) -> Option<Draft> {
        let mut d = Draft::new(group, true);
        append(items, group, &mut d).ok()?;
        Some(d)
    }

    pub fn instructions(&self) -> usize {
        self.b.code.len() - self.gone
    }
    pub fn ports(&self) -> usize {
        self.ports.len() - self.gone
    }
    /// Values that it computes, in no order.
    pub fn values(&self) -> impl Iterator<Item = usize> + '_ {
        self.regs.keys().copied()
    }
    /// Whether it loads a value of one element.
    pub fn loads(&self, value: usize) -> bool {
        self.known.contains_key(&Access { value, offset: 0, strides: vec![] })
    }
    /// Whether a value that it computes is one of a reduction.
    pub fn reduces_to(&self, value: usize) -> bool {
        let Some((reg, _)) = self.regs.get(&value) else { return false };
        let mut needed = vec![false; self.b.code.len()];
        needed[*reg as usize] = true;
        (0..=*reg as usize).rev().any(|i| {
            let i = (needed[i]).then_some(&self.b.code[i]);
            i.is_some_and(|i| {
                i.operands().for_each(|r| needed[r as usize] = true);
                matches!(i, Instr::Reduce(..))
            })
        })
    }
    pub fn computes(&self, value: usize) -> bool {
        self.regs.contains_key(&value)
    }

    /// Whether every instruction is needed for what is stored.
    pub fn is_live(&self, stored: &impl Fn(usize) -> bool) -> bool {
        let mut live = vec![false; self.b.code.len()];
        for (_, o, _) in self.writes.iter().filter(|w| stored(w.0)) {
            live[o.reg as usize] = true;
        }
        for i in (0..live.len()).rev().filter(|&i| live[i]).collect::<Vec<_>>() {
            self.b.code[i].operands().for_each(|r| live[r as usize] = true);
        }
        live.into_iter().all(|l| l)
    }

    /// What the items of `later`, over the same space, add behind those of this draft: equal
    /// instructions are one, whatever the order in which they are written. `None` where the order of the
    /// items counts, since both write a value.
    fn patch(&self, later: &Draft) -> Result<Option<Patch>, &'static str> {
        let (few, many) = match self.regs.len() < later.regs.len() {
            true => (&self.regs, &later.regs),
            false => (&later.regs, &self.regs),
        };
        if few.keys().any(|v| many.contains_key(v)) {
            return Ok(None);
        }
        debug_assert!(later.in_order, "written on in the order of its instructions");
        let mut p = Patch::default();
        Work::Programs.add(later.b.code.len() / 8 + 1);
        let base = self.b.code.len();
        let mut moved: Vec<Reg> = Vec::with_capacity(later.b.code.len());
        for instr in &later.b.code {
            let new = match *instr {
                Instr::Load { port } => match &later.ports[port as usize] {
                    (_, None) => Instr::Load { port: 0 },
                    (port, Some(a)) => match self.regs.get(&a.value) {
                        Some((reg, write)) if write == a => {
                            moved.push(*reg);
                            continue;
                        }
                        Some(_) => return Err("reads other elements of a fused value"),
                        None => {
                            let at = self.known.get(a).or_else(|| p.known.get(a)).copied();
                            let at = at.unwrap_or_else(|| {
                                let at = (self.ports.len() + p.ports.len()) as u32;
                                p.ports.push((*port, Some(a.clone())));
                                p.known.insert(a.clone(), at);
                                at
                            });
                            Instr::Load { port: at }
                        }
                    },
                },
                Instr::Index { .. } if self.product => return Err("coordinates in an epilogue"),
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
        p.writes = later
            .writes
            .iter()
            .map(|(v, o, a)| {
                (*v, OutPort { dtype: o.dtype, reg: moved[o.reg as usize] }, a.clone())
            })
            .collect();
        Ok(Some(p))
    }

    fn whole<'a>(&'a self, added: Option<&'a Patch>) -> Whole<'a> {
        let own = Cow::Borrowed(&self.b.code[..]);
        Whole {
            code: added.map_or(own, |p| [&self.b.code[..], &p.code[..]].concat().into()),
            ports: self.ports.iter().chain(added.iter().flat_map(|p| &p.ports)).collect(),
            writes: self.writes.iter().chain(added.iter().flat_map(|p| &p.writes)).collect(),
            product: self.product,
        }
    }

    /// `Draft::patch`, where there is one.
    pub fn added(&self, later: &Draft) -> Option<Patch> {
        self.patch(later).ok().flatten()
    }

    pub fn apply(&mut self, p: Patch) {
        let from = self.b.code.len();
        self.b.code.extend(p.code);
        if let Some(uses) = self.uses.get_mut() {
            uses.add(&self.b.code, from, p.writes.iter().map(|w| w.1.reg));
        }
        self.b.seen.extend(p.seen);
        self.ports.extend(p.ports);
        self.known.extend(p.known);
        self.regs.extend(p.writes.iter().map(|(v, o, a)| (*v, (o.reg, a.clone()))));
        self.writes.extend(p.writes);
    }
}

fn append(items: &Items, group: &Group, d: &mut Draft) -> Result<(), &'static str> {
    let mut x = Builder { items, d };
    Work::Programs.add(group.items.len());
    for (&i, axes) in group.items.iter().zip(&group.maps) {
        x.item(&items.items[i], axes)?;
    }
    Ok(())
}

fn finished(
    items: &Items,
    group: &Group,
    d: &Whole,
    stored: &impl Fn(usize) -> bool,
    most: (usize, usize),
) -> Result<Built, &'static str> {
    let outputs: Vec<&(usize, OutPort, Access)> =
        d.writes.iter().copied().filter(|w| stored(w.0)).collect();
    check_variables(items, d, &outputs)?;
    let built = finish(items, group, d, &outputs);
    let single = group.dims.iter().product::<usize>() == 1;
    let ports = built.inputs.len() + built.outputs.len();
    let code = built.program.code.len();
    if !single && group.items.len() > 1 && (code > most.0 || ports > most.1) {
        return Err("too large");
    }
    if code.max(ports) > MAX_CODE {
        return Err("more instructions or ports than a plan holds");
    }
    let infos = built.program.check().map_err(|_| "faulty program")?;
    check_levels(group, &built, &infos)?;
    Ok(built)
}

/// A register that exists once a row is stored once a row, and the other way round.
fn check_levels(
    group: &Group,
    built: &Built,
    infos: &[precast_plan::RegInfo],
) -> Result<(), &'static str> {
    if group.reduced == 0 {
        return Ok(());
    }
    let kept = group.dims.len() - group.reduced;
    for (port, access) in built.program.outputs.iter().zip(&built.outputs) {
        let row = infos[port.reg as usize].row;
        let wide = (kept..group.dims.len()).filter(|&d| group.dims[d] > 1);
        let (mut moves, mut any) = (false, false);
        for d in wide {
            any = true;
            moves |= access.strides[d] != 0;
        }
        if row && moves {
            return Err("a value of the row stored for every element");
        }
        if !row && any && !moves {
            return Err("an element stored for the row");
        }
    }
    Ok(())
}

/// A step along an axis of one element goes nowhere: written as 0, so that equal accesses compare
/// equal whichever side such an axis came from.
pub fn still(strides: &mut [i64], dims: &[usize]) {
    strides.iter_mut().zip(dims).filter(|(_, n)| **n == 1).for_each(|(s, _)| *s = 0);
}

impl Builder<'_> {
    /// The access over the item's axes as one over the group's.
    fn map(&self, a: &Access, axes: &[Vec<i64>]) -> Access {
        let mut strides = vec![0; self.d.dims.len()];
        for (s, row) in a.strides.iter().zip(axes) {
            for (out, m) in strides.iter_mut().zip(row) {
                *out += s * m;
            }
        }
        still(&mut strides, &self.d.dims);
        Access { value: a.value, offset: a.offset, strides }
    }

    fn is_row(&self, a: &Access) -> bool {
        let kept = self.d.dims.len() - self.d.reduced;
        if self.d.reduced == 0 {
            // Every point is a row of its own; only a scalar is said to be one, for random keys.
            return self.items.values[a.value].shape.is_empty();
        }
        self.d.rows && a.strides[kept..].iter().all(|&s| s == 0)
    }

    fn load(&mut self, a: Access) -> Reg {
        let row = self.is_row(&a);
        let port = InPort { dtype: self.items.values[a.value].dtype, row };
        let d = &mut *self.d;
        let at = *d.known.entry(a).or_insert_with_key(|a| {
            d.ports.push((port, Some(a.clone())));
            d.ports.len() as u32 - 1
        });
        d.b.push(Instr::Load { port: at })
    }

    fn operand(&mut self, read: &Read, axes: &[Vec<i64>]) -> Result<Reg, &'static str> {
        Ok(match read {
            Read::Literal(i) if self.d.rows => self.d.b.push(*i),
            Read::Literal(i) => {
                // A literal that differs, in form, from element to element of the row.
                let axis = self.d.b.index(self.d.dims.len() - 1);
                let zero = self.d.b.int(0);
                let cond = self.d.b.bin(BinaryOp::Le, zero, axis);
                let value = self.d.b.push(*i);
                self.d.b.push(Instr::Select { cond, then: value, otherwise: value })
            }
            Read::At(a) => {
                let a = self.map(a, axes);
                match self.d.regs.get(&a.value) {
                    Some((reg, write)) if *write == a => *reg,
                    Some(_) => return Err("reads other elements of a fused value"),
                    None => self.load(a),
                }
            }
        })
    }

    fn item(&mut self, item: &Item, axes: &[Vec<i64>]) -> Result<(), &'static str> {
        let x: Vec<Reg> =
            item.reads.iter().map(|r| self.operand(r, axes)).collect::<Result<_, _>>()?;
        let kept = item.dims.len() - item.reduced;
        // The operation sees its own space; its instructions are then moved into the group's.
        let mut own = ProgramBuilder {
            row_elements: item.dims[kept..].iter().product(),
            last_axis: item.dims.len().saturating_sub(1),
            last_extent: item.dims.last().copied().unwrap_or(1),
            ..ProgramBuilder::default()
        };
        let acc = matches!(item.body, Body::Product { .. });
        let mut sources = x;
        if acc {
            let reg = self.d.b.push(Instr::Load { port: 0 });
            sources.insert(0, reg);
        }
        let given: Vec<Reg> =
            (0..sources.len()).map(|p| own.push(Instr::Load { port: p as u32 })).collect();
        let results = match &item.body {
            Body::Copy => vec![given[0]],
            Body::Rows(op) => op.def().emit(&mut own, &given),
            Body::Product { op: Op::MatMul(p), .. } => p.emit(&mut own, given[0], &given[1..]),
            Body::Product { .. } => vec![given[0]],
            Body::Kernel { .. } => return Err("a kernel of its own"),
        };
        let mut moved: Vec<Reg> = Vec::with_capacity(own.code.len());
        for instr in &own.code {
            let reg = match *instr {
                Instr::Load { port } => sources[port as usize],
                Instr::Index { axis } => self.index(&axes[axis as usize])?,
                // The item's rows have one element, the group's may have more.
                Instr::Reduce(_, a) if item.reduced == 0 => moved[a as usize],
                other => self.d.b.push(other.map_operands(|r| moved[r as usize])),
            };
            moved.push(reg);
        }
        for (w, r) in item.writes.iter().zip(results) {
            let (reg, a) = (moved[r as usize], self.map(w, axes));
            let dtype = self.items.values[w.value].dtype;
            self.d.writes.push((w.value, OutPort { dtype, reg }, a.clone()));
            self.d.regs.insert(w.value, (reg, a));
        }
        Ok(())
    }

    /// The coordinate along an item's axis.
    fn index(&mut self, axis: &[i64]) -> Result<Reg, &'static str> {
        if self.d.product {
            return Err("coordinates in an epilogue");
        }
        let mut sum: Option<Reg> = None;
        for (d, &factor) in axis.iter().enumerate() {
            if factor == 0 {
                continue;
            }
            let mut t = self.d.b.index(d);
            if factor != 1 {
                let factor = i32::try_from(factor).map_err(|_| "an axis beyond 32 bits")?;
                let f = self.d.b.int(factor);
                t = self.d.b.bin(BinaryOp::Mul, t, f);
            }
            sum = Some(sum.map_or(t, |s| self.d.b.add(s, t)));
        }
        Ok(sum.unwrap_or_else(|| self.d.b.int(0)))
    }
}

/// A new value of a variable goes where the old one is: every read of it in the group must be of the
/// element that is written.
fn check_variables(
    items: &Items,
    d: &Whole,
    outputs: &[&(usize, OutPort, Access)],
) -> Result<(), &'static str> {
    let mut written: FxHashMap<&str, &Access> = FxHashMap::default();
    for (v, _, w) in outputs {
        let Some(var) = &items.values[*v].updates else { continue };
        written.insert(var, w);
    }
    if written.is_empty() {
        return Ok(());
    }
    for a in d.ports.iter().filter_map(|(_, a)| a.as_ref()) {
        let Source::Var(var) = &items.values[a.value].source else { continue };
        let other = |w: &&Access| a.offset != w.offset || a.strides != w.strides;
        if written.get(var.as_str()).is_some_and(other) {
            return Err("reads other elements of a variable it writes");
        }
    }
    Ok(())
}

/// Drops what no output depends on and numbers the rest.
fn finish(items: &Items, group: &Group, d: &Whole, outputs: &[&(usize, OutPort, Access)]) -> Built {
    let code = &d.code[..];
    let mut live = vec![false; code.len()];
    for (_, o, _) in outputs {
        live[o.reg as usize] = true;
    }
    for i in (0..code.len()).rev() {
        if live[i] {
            code[i].operands().for_each(|r| live[r as usize] = true);
        }
    }
    let mut port_map = vec![u32::MAX; d.ports.len()];
    let mut inputs = vec![];
    let mut accesses = vec![];
    // The accumulator is port 0 whether it is read or not.
    if d.product {
        port_map[0] = 0;
        inputs.push(d.ports[0].0);
    }
    let mut map = vec![u32::MAX; code.len()];
    let mut out = vec![];
    for (i, instr) in code.iter().enumerate() {
        if !live[i] {
            continue;
        }
        map[i] = out.len() as Reg;
        out.push(match *instr {
            Instr::Load { port } => {
                let p = port as usize;
                if port_map[p] == u32::MAX {
                    port_map[p] = inputs.len() as u32;
                    inputs.push(d.ports[p].0);
                    accesses.push(d.ports[p].1.clone().expect("only port 0 has none"));
                }
                Instr::Load { port: port_map[p] }
            }
            other => other.map_operands(|r| map[r as usize]),
        });
    }
    let (ports, outputs) = outputs
        .iter()
        .map(|(_, o, a)| (OutPort { dtype: o.dtype, reg: map[o.reg as usize] }, a.clone()))
        .unzip();
    Built {
        program: Program { name: group.name(items), inputs, code: out, outputs: ports },
        inputs: accesses,
        outputs,
    }
}

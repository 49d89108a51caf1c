//! The row program of a fused group.

use super::affine::Access;
use super::fuse::Group;
use super::items::{Body, Item, Items, Read, Source};
use crate::ops::{Op, ProgramBuilder};
use precast_plan::{BinaryOp, DType, InPort, Instr, MAX_CODE, OutPort, Program, Reg};
use rustc_hash::FxHashMap;

/// A program and what its ports are bound to, over the space of the group. Port 0 of a product's
/// epilogue is the accumulator and has no access.
#[derive(Clone, Debug)]
pub struct Built {
    pub program: Program,
    pub inputs: Vec<Access>,
    pub outputs: Vec<Access>,
}

/// Most instructions and ports of a program over more than one element.
const MOST_INSTRUCTIONS: usize = 192;
const MOST_PORTS: usize = 32;

struct Builder<'a> {
    items: &'a Items,
    group: &'a Group,
    b: ProgramBuilder,
    ports: Vec<(InPort, Option<Access>)>,
    regs: FxHashMap<usize, (Reg, Access)>,
    outputs: Vec<(OutPort, Access)>,
    /// Loads that do not vary along the reduced axes are of the row.
    rows: bool,
}

/// Builds the program of a group, or says why the group cannot be one.
pub fn build(
    items: &Items,
    group: &Group,
    stored: impl Fn(usize) -> bool,
) -> Result<Built, &'static str> {
    build_within(items, group, stored, (MOST_INSTRUCTIONS, MOST_PORTS))
}

/// [`build`] with at most so many instructions and ports.
pub fn build_within(
    items: &Items,
    group: &Group,
    stored: impl Fn(usize) -> bool,
    most: (usize, usize),
) -> Result<Built, &'static str> {
    // An operand repeated along the reduced axes looks like one of the row, and what is computed
    // from it like a value of the row. Where that does not fit, it is loaded for every element.
    build_with(items, group, &stored, true, most).or_else(|why| match group.reduced {
        0 => Err(why),
        _ => build_with(items, group, &stored, false, most).map_err(|_| why),
    })
}

fn build_with(
    items: &Items,
    group: &Group,
    stored: &impl Fn(usize) -> bool,
    rows: bool,
    most: (usize, usize),
) -> Result<Built, &'static str> {
    let mut x = Builder {
        rows,
        items,
        group,
        b: ProgramBuilder::default(),
        ports: vec![],
        regs: FxHashMap::default(),
        outputs: vec![],
    };
    if group.product.is_some() {
        x.ports.push((InPort { dtype: DType::F32, row: false }, None));
    }
    for (k, &i) in group.items.iter().enumerate() {
        x.item(&items.items[i], &group.maps[k], stored)?;
    }
    x.check_variables()?;
    let built = x.finish();
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
        let mut strides = vec![0; self.group.dims.len()];
        for (s, row) in a.strides.iter().zip(axes) {
            for (out, m) in strides.iter_mut().zip(row) {
                *out += s * m;
            }
        }
        still(&mut strides, &self.group.dims);
        Access { value: a.value, offset: a.offset, strides }
    }

    fn is_row(&self, a: &Access) -> bool {
        let kept = self.group.dims.len() - self.group.reduced;
        if self.group.reduced == 0 {
            // Every point is a row of its own; only a scalar is said to be one, for random keys.
            return self.items.values[a.value].shape.is_empty();
        }
        self.rows && a.strides[kept..].iter().all(|&s| s == 0)
    }

    fn load(&mut self, a: Access) -> Reg {
        let row = self.is_row(&a);
        let port = InPort { dtype: self.items.values[a.value].dtype, row };
        let at = self.ports.iter().position(|(_, p)| p.as_ref() == Some(&a));
        let at = at.unwrap_or_else(|| {
            self.ports.push((port, Some(a)));
            self.ports.len() - 1
        });
        self.b.push(Instr::Load { port: at as u32 })
    }

    fn operand(&mut self, read: &Read, axes: &[Vec<i64>]) -> Result<Reg, &'static str> {
        Ok(match read {
            Read::Literal(i) if self.rows => self.b.push(*i),
            Read::Literal(i) => {
                // A literal that differs, in form, from element to element of the row.
                let axis = self.b.index(self.group.dims.len() - 1);
                let zero = self.b.int(0);
                let cond = self.b.bin(BinaryOp::Le, zero, axis);
                let value = self.b.push(*i);
                self.b.push(Instr::Select { cond, then: value, otherwise: value })
            }
            Read::At(a) => {
                let a = self.map(a, axes);
                match self.regs.get(&a.value) {
                    Some((reg, write)) if *write == a => *reg,
                    Some(_) => return Err("reads other elements of a fused value"),
                    None => self.load(a),
                }
            }
        })
    }

    fn item(
        &mut self,
        item: &Item,
        axes: &[Vec<i64>],
        stored: &impl Fn(usize) -> bool,
    ) -> Result<(), &'static str> {
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
            let reg = self.b.push(Instr::Load { port: 0 });
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
                other => self.b.push(other.map_operands(|r| moved[r as usize])),
            };
            moved.push(reg);
        }
        for (w, r) in item.writes.iter().zip(results) {
            let (reg, a) = (moved[r as usize], self.map(w, axes));
            if stored(w.value) {
                let dtype = self.items.values[w.value].dtype;
                self.outputs.push((OutPort { dtype, reg }, a.clone()));
            }
            self.regs.insert(w.value, (reg, a));
        }
        Ok(())
    }

    /// The coordinate along an item's axis.
    fn index(&mut self, axis: &[i64]) -> Result<Reg, &'static str> {
        if self.group.product.is_some() {
            return Err("coordinates in an epilogue");
        }
        let mut sum: Option<Reg> = None;
        for (d, &factor) in axis.iter().enumerate() {
            if factor == 0 {
                continue;
            }
            let mut t = self.b.index(d);
            if factor != 1 {
                let factor = i32::try_from(factor).map_err(|_| "an axis beyond 32 bits")?;
                let f = self.b.int(factor);
                t = self.b.bin(BinaryOp::Mul, t, f);
            }
            sum = Some(sum.map_or(t, |s| self.b.add(s, t)));
        }
        Ok(sum.unwrap_or_else(|| self.b.int(0)))
    }

    /// A new value of a variable goes where the old one is: every read of it in the group must be
    /// of the element that is written.
    fn check_variables(&self) -> Result<(), &'static str> {
        for (_, w) in &self.outputs {
            let Some(var) = &self.items.values[w.value].updates else { continue };
            for a in self.ports.iter().filter_map(|(_, a)| a.as_ref()) {
                let reads = self.items.values[a.value].source == Source::Var(var.clone());
                if reads && (a.offset != w.offset || a.strides != w.strides) {
                    return Err("reads other elements of a variable it writes");
                }
            }
        }
        Ok(())
    }

    /// Drops what no output depends on and numbers the rest.
    fn finish(self) -> Built {
        let code = self.b.code;
        let mut live = vec![false; code.len()];
        for (o, _) in &self.outputs {
            live[o.reg as usize] = true;
        }
        for i in (0..code.len()).rev() {
            if live[i] {
                code[i].operands().for_each(|r| live[r as usize] = true);
            }
        }
        let mut port_map = vec![u32::MAX; self.ports.len()];
        let mut inputs = vec![];
        let mut accesses = vec![];
        // The accumulator is port 0 whether it is read or not.
        if self.group.product.is_some() {
            port_map[0] = 0;
            inputs.push(self.ports[0].0);
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
                        inputs.push(self.ports[p].0);
                        accesses.push(self.ports[p].1.clone().expect("only port 0 has none"));
                    }
                    Instr::Load { port: port_map[p] }
                }
                other => other.map_operands(|r| map[r as usize]),
            });
        }
        let (ports, outputs) = self
            .outputs
            .into_iter()
            .map(|(o, a)| (OutPort { dtype: o.dtype, reg: map[o.reg as usize] }, a))
            .unzip();
        let name = self.group.name(self.items);
        Built {
            program: Program { name, inputs, code: out, outputs: ports },
            inputs: accesses,
            outputs,
        }
    }
}

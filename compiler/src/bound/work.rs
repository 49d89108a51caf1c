//! Arithmetic that no schedule avoids.
//!
//! Programs that share a kernel may share instructions, and what does not vary along a reduced axis
//! runs once a row there. So an instruction counts where it depends on an operand that has every
//! point of the space, and where no earlier operation that could share the kernel reads the same.

use super::sharing::{Kind, Sharing};
use crate::cost::Prices;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::ops::{Op, ProgramBuilder, RowSpec};
use crate::reference::program_of;
use precast_plan::{Instr, Program, Reg};

/// The program of a node, and what of it runs.
pub struct RowWork {
    spec: RowSpec,
    program: Program,
    used: Vec<bool>,
}

impl RowWork {
    /// `live`: by result, whether anything reads it.
    pub fn new(g: &Graph, n: &Node, live: &[bool]) -> RowWork {
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let (spec, program) = program_of(&n.op, &x, &y);
        let outputs = program.outputs.iter().zip(live).filter(|(_, l)| **l);
        let used = used(&program.code, outputs.map(|(o, _)| o.reg));
        RowWork { spec, program, used }
    }

    /// Operands that what runs depends on.
    pub fn read(&self) -> Vec<bool> {
        let mut read = vec![false; self.program.inputs.len()];
        for (i, _) in self.program.code.iter().zip(&self.used).filter(|(_, u)| **u) {
            if let Instr::Load { port } = i {
                read[*port as usize] = true;
            }
        }
        read
    }
}

/// Nanoseconds of the instructions of every row program, by node. `touched`: by node and operand,
/// elements that are read.
pub fn rows(
    g: &Graph,
    sharing: &Sharing,
    storage: &[ValueId],
    prices: &Prices,
    programs: &[Option<RowWork>],
    touched: &[Vec<usize>],
) -> Vec<f64> {
    // Row programs that read each stored value, ascending.
    let mut readers: Vec<Vec<NodeId>> = vec![vec![]; g.value_count()];
    for (id, n) in g.nodes().filter(|(id, _)| sharing.kind[id.0 as usize] == Kind::Rows) {
        for v in &n.inputs {
            let list = &mut readers[storage[v.0 as usize].0 as usize];
            if list.last() != Some(&id) {
                list.push(id);
            }
        }
    }
    let mut ns = vec![0.0; g.node_count()];
    for (id, n) in g.nodes() {
        let Some(w) = &programs[id.0 as usize] else { continue };
        let points: usize = w.spec.dims.iter().product();
        if points <= 1 || sharing.may_be_of_rows(id) {
            continue;
        }
        let Ok(infos) = w.program.check() else { continue };
        let code = &w.program.code;
        let whole = |port: usize| touched[id.0 as usize][port] == points;
        // Operands that every instruction depends on, as bits.
        let mut on: Vec<u64> = Vec::with_capacity(code.len());
        for i in code {
            let mut bits = i.operands().fold(0, |b, r| b | on[r as usize]);
            if let Instr::Load { port } = i {
                bits |= 1 << (*port).min(63);
            }
            on.push(bits);
        }
        let full: u64 = (0..n.inputs.len().min(63)).filter(|&p| whole(p)).map(|p| 1 << p).sum();
        let mut sum = 0.0;
        for (i, instr) in code.iter().enumerate() {
            // A random number is of its own operation, which has a stream of its own.
            let random = matches!(instr, Instr::Uniform { .. });
            let counted = match instr {
                Instr::Index { .. } => false,
                // Nothing is reduced along axes of one element.
                Instr::Reduce(..) => sharing.space[id.0 as usize].reduced > 1,
                // Without a reduced axis every point is a row of its own.
                _ => w.spec.reduced == 0 || !infos[i].row,
            };
            let varies = on[i] & full != 0 || random;
            if w.used[i]
                && counted
                && varies
                && (random || !elsewhere(g, sharing, storage, &readers, id, on[i]))
            {
                sum += prices.instruction(instr);
            }
        }
        ns[id.0 as usize] = sum * points as f64;
    }
    ns
}

/// Whether an earlier operation that could share the kernel reads all of these operands.
fn elsewhere(
    g: &Graph,
    sharing: &Sharing,
    storage: &[ValueId],
    readers: &[Vec<NodeId>],
    id: NodeId,
    ports: u64,
) -> bool {
    let n = g.node(id);
    let reads = |m: NodeId, v: ValueId| {
        let root = storage[v.0 as usize];
        g.node(m).inputs.iter().any(|&x| storage[x.0 as usize] == root)
    };
    let of = |p: usize| n.inputs.get(p).copied();
    let ports: Vec<ValueId> = (0..63).filter(|p| ports >> p & 1 == 1).filter_map(of).collect();
    let readers_of = |v: &ValueId| &readers[storage[v.0 as usize].0 as usize];
    let Some(list) = ports.iter().map(readers_of).min_by_key(|l| l.len()) else { return true };
    list.iter()
        .take_while(|&&m| m < id)
        .any(|&m| ports.iter().all(|&v| reads(m, v)) && sharing.together(m, id))
}

/// Instructions that the given registers need.
fn used(code: &[Instr], outputs: impl Iterator<Item = Reg>) -> Vec<bool> {
    let mut used = vec![false; code.len()];
    outputs.for_each(|r| used[r as usize] = true);
    for i in (0..code.len()).rev() {
        if used[i] {
            code[i].operands().for_each(|r| used[r as usize] = true);
        }
    }
    used
}

/// Nanoseconds of what a product does to its sums before it stores those results that are `live`.
pub fn epilogue(op: &Op, elements: usize, live: &[bool], prices: &Prices) -> f64 {
    let Op::MatMul(m) = op else { return 0.0 };
    let mut b = ProgramBuilder::default();
    let acc = b.push(Instr::Load { port: 0 });
    let bias = m.fused.has_bias().then(|| b.push(Instr::Load { port: 1 }));
    let results = m.fused.emit(&mut b, acc, bias);
    let used = used(&b.code, results.iter().zip(live).filter(|(_, l)| **l).map(|(&r, _)| r));
    let each: f64 =
        b.code.iter().zip(used).filter(|(_, u)| *u).map(|(i, _)| prices.instruction(i)).sum();
    each * elements as f64
}

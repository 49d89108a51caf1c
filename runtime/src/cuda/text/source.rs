//! Parts that every generated kernel has: its comment, parameters and name.

use super::code::{Class, Code, Text, stored};
use super::space::{Bound, Space};
use crate::cuda::launch::{Arg, Launch, Place, Source, Table};
use precast_plan::Program;
use std::sync::Arc;

/// A kernel with its launch.
pub struct Built {
    pub source: Source,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub args: Vec<Arg>,
}

impl Built {
    pub fn launch(self) -> Launch {
        Launch {
            source: Arc::new(self.source),
            grid: self.grid,
            block: self.block,
            shared: self.shared,
            args: self.args,
        }
    }
}

/// The program as a comment.
pub fn comment(t: &mut Text, program: &Program) {
    program.to_string().lines().for_each(|l| t.line(format!("// {l}")));
}

/// Parameters for the ports: inputs that are loaded, then outputs.
pub fn parameters(space: &Space, code: &Code) -> String {
    let loaded: Vec<usize> = used_inputs(code);
    let restrict = |b: &Bound| {
        // A tensor that is written in place must not go through the read-only cache twice.
        if space.outputs.iter().any(|o| o.meets(b)) { "" } else { " __restrict__" }
    };
    let inputs = loaded
        .into_iter()
        .map(|p| (p, &space.inputs[p]))
        .map(|(p, b)| format!("const {}*{} in{p}", stored(b.dtype), restrict(b)));
    let outputs = space.outputs.iter().enumerate().map(|(o, b)| {
        let met = space.inputs.iter().any(|i| i.meets(b));
        format!("{}*{} out{o}", stored(b.dtype), if met { "" } else { " __restrict__" })
    });
    inputs.chain(outputs).collect::<Vec<_>>().join(", ")
}

fn used_inputs(code: &Code) -> Vec<usize> {
    let mut all = code.loads(Class::Scalar);
    all.extend(code.loads(Class::Row));
    all.extend(code.loads(Class::Elem));
    all.into_iter().collect()
}

/// The arguments for [`parameters`].
pub fn addresses(space: &Space, code: &Code) -> Vec<Arg> {
    let inputs = used_inputs(code).into_iter().map(|p| &space.inputs[p]);
    inputs.chain(&space.outputs).map(|b| arg(b.place)).collect()
}

pub fn arg(place: Place) -> Arg {
    match place {
        Place::Tensor { tensor, offset } => Arg::Tensor { tensor, offset },
        Place::Scratch { offset } => Arg::Scratch { offset },
    }
}

/// A literal that makes a product with it an index.
pub fn number(n: u32, wide: bool) -> String {
    if wide { format!("(i64){n}") } else { n.to_string() }
}

/// An address and an offset from it.
pub fn address(base: &str, offset: &str) -> String {
    match offset {
        "0" => base.into(),
        _ if offset.contains(' ') => format!("{base} + ({offset})"),
        _ => format!("{base} + {offset}"),
    }
}

/// Adds a row to a table: the addresses of all ports, then `words`.
pub fn row(table: &mut Table, space: &Space, words: &[u64]) {
    for b in space.ports() {
        let Place::Tensor { tensor, offset } = b.place else {
            unreachable!("tables hold tensors only")
        };
        table.addresses.push((table.bytes.len() as u32, tensor, offset));
        table.bytes.extend([0; 8]);
    }
    words.iter().for_each(|w| table.bytes.extend(w.to_le_bytes()));
}

/// A table of 32-bit words.
pub fn words(words: &[u32]) -> Arg {
    let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Arg::Table(Arc::new(Table { bytes, addresses: vec![] }))
}

/// Names the kernel `KERNEL` of a text after its program and a hash of the text.
pub fn finish(program: &Program, text: Text, max_threads: u32) -> Source {
    // FNV-1a (Fowler, Noll, Vo).
    let hash = text
        .out
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut stem = String::from("rows");
    let mut gap = true;
    for c in program.name.chars() {
        if c.is_ascii_alphanumeric() {
            if gap {
                stem.push('_');
            }
            gap = false;
            stem.push(c);
        } else {
            gap = true;
        }
        if stem.len() >= 48 {
            break;
        }
    }
    let entry = format!("{stem}_{hash:016x}");
    Source { text: text.out.replace("KERNEL", &entry), entry, max_threads }
}

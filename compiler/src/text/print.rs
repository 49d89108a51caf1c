//! Graph to text.

use super::{ROLES, is_bare, repeats_type};
use crate::ir::{Attr, ConstData, Graph, Node, TensorType, Var, VarInit};
use std::fmt::{self, Display, Write};

/// Elements that a literal may have to be written as numbers.
const MAX_LISTED: usize = 8;

/// The graph as canonical text.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    write_graph(&mut out, graph).expect("writing to a String");
    out
}

fn write_graph(out: &mut String, graph: &Graph) -> fmt::Result {
    writeln!(out, "graph {}", Name(&graph.name))?;
    if !graph.vars.is_empty() {
        writeln!(out)?;
    }
    for (name, var) in &graph.vars {
        write_var(out, name, var)?;
    }
    let mut region = None;
    for (_, node) in graph.nodes() {
        if region != Some(node.region) {
            region = Some(node.region);
            writeln!(out, "\n{}:", node.region.name())?;
        }
        write_node(out, graph, node)?;
    }
    if !graph.results.is_empty() || !graph.updates.is_empty() {
        writeln!(out)?;
    }
    for r in &graph.results {
        writeln!(out, "result {} = {}", Name(&r.name), r.value)?;
    }
    for u in &graph.updates {
        writeln!(out, "update {} = {}", Name(&u.name), u.value)?;
    }
    Ok(())
}

fn write_var(out: &mut String, name: &str, var: &Var) -> fmt::Result {
    let role = ROLES.iter().find(|(_, r)| *r == var.role).expect("every role has a word").0;
    write!(out, "var {}: {} {role} ", Name(name), var.ty)?;
    match &var.init {
        VarInit::Zeros => writeln!(out, "zeros"),
        VarInit::Value(x) => writeln!(out, "value({})", Number(*x)),
        VarInit::Weights(name) => writeln!(out, "weights({})", Quoted(name)),
        VarInit::Uniform { bound, stream } => {
            writeln!(out, "uniform({}, {stream})", Number(*bound))
        }
        VarInit::Normal { mean, std, stream } => {
            writeln!(out, "normal({}, {}, {stream})", Number(*mean), Number(*std))
        }
        VarInit::Data(data) => writeln!(out, "data({})", Literal(data)),
        VarInit::File { path, offset, dtype } => {
            writeln!(out, "file({}, {offset}, {dtype})", Quoted(path))
        }
        VarInit::CopyOf(name) => writeln!(out, "copy_of({})", Quoted(name)),
        VarInit::ChannelsLastOf(name) => writeln!(out, "channels_last_of({})", Quoted(name)),
    }
}

fn write_node(out: &mut String, graph: &Graph, node: &Node) -> fmt::Result {
    write!(out, "  ")?;
    for (i, v) in node.outputs.iter().enumerate() {
        write!(out, "{}{v}", comma(i))?;
    }
    write!(out, " = {}", node.op.name())?;
    for (i, v) in node.inputs.iter().enumerate() {
        write!(out, "{}{v}", if i > 0 { ", " } else { " " })?;
    }
    let mut attrs = node.op.def().attrs();
    if repeats_type(node.op.name()) {
        let ty = graph.ty(node.outputs[0]);
        let stated = [dtype_attr(ty), shape_attr(ty)];
        if stated.iter().all(|s| attrs.contains(s)) {
            attrs.retain(|a| !stated.contains(a));
        }
    }
    if !attrs.is_empty() {
        write!(out, " {{")?;
        for (i, (name, attr)) in attrs.iter().enumerate() {
            write!(out, "{}{name}={}", comma(i), Value(attr))?;
        }
        write!(out, "}}")?;
    }
    write!(out, " : ")?;
    for (i, &v) in node.outputs.iter().enumerate() {
        write!(out, "{}{}", comma(i), graph.ty(v))?;
    }
    writeln!(out, " @{}", Name(&node.name))
}

/// The `dtype` attribute that a result type implies.
pub fn dtype_attr(ty: &TensorType) -> (&'static str, Attr) {
    ("dtype", Attr::Str(ty.dtype.name().into()))
}

/// The `shape` attribute that a result type implies.
pub fn shape_attr(ty: &TensorType) -> (&'static str, Attr) {
    ("shape", Attr::Ints(ty.shape.iter().map(|&d| d as i64).collect()))
}

fn comma(i: usize) -> &'static str {
    if i > 0 { ", " } else { "" }
}

/// Bare where it can be.
struct Name<'a>(&'a str);
struct Quoted<'a>(&'a str);
struct Number(f64);
struct Literal<'a>(&'a ConstData);
struct Value<'a>(&'a Attr);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_bare(self.0) { f.write_str(self.0) } else { Quoted(self.0).fmt(f) }
    }
}

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            return f.write_str("nan");
        }
        // Debug is the shortest text that reads back to the same number, and keeps `1.0` apart
        // from the integer `1`.
        write!(f, "{:?}", self.0)
    }
}

impl Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = self.0;
        write!(f, "{}", data.ty())?;
        let listed = |f: &mut fmt::Formatter<'_>, n: usize, item: &dyn Fn(usize) -> String| {
            // Longer literals come here only when all their elements are equal.
            if n > MAX_LISTED {
                return write!(f, "(splat {})", item(0));
            }
            let items: Vec<String> = (0..n).map(item).collect();
            write!(f, "({})", items.join(", "))
        };
        let n = data.shape.elements();
        let short = n <= MAX_LISTED || {
            let size = data.dtype.size();
            data.bytes.chunks(size).all(|c| c == &data.bytes[..size])
        };
        match (data.f32s(), data.ints()) {
            (Some(v), _) if short && v.iter().all(|&x| reads_back(x)) => {
                listed(f, n, &|i| format!("{:?}", v[i]))
            }
            (_, Some(v)) if short => listed(f, n, &|i| v[i].to_string()),
            _ => write!(f, "<{}>", data.hex()),
        }
    }
}

/// Whether the decimal of `x` gives its bits back through f64, as the parser reads it; false for
/// NaN, whose payload it would lose.
fn reads_back(x: f32) -> bool {
    !x.is_nan()
        && format!("{x:?}").parse::<f64>().is_ok_and(|y| (y as f32).to_bits() == x.to_bits())
}

impl Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Attr::Int(x) => write!(f, "{x}"),
            Attr::Ints(v) => {
                f.write_char('[')?;
                for (i, x) in v.iter().enumerate() {
                    write!(f, "{}{x}", if i > 0 { "," } else { "" })?;
                }
                f.write_char(']')
            }
            Attr::Real(x) => Number(*x).fmt(f),
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::Word(w) => f.write_str(w),
            Attr::Str(s) => Quoted(s).fmt(f),
            Attr::Tensor(t) => Literal(t).fmt(f),
        }
    }
}

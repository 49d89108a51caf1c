//! Control flow that is known when compiling: the branch that an `If` takes, and the steps of a `Loop`,
//! in their place. Exporters write the one where a rank or an extent could be other than that of the
//! example, the other for `nn.EmbeddingBag`.

use super::convert::stacked;
use super::import::{Importer, Res, Val};
use super::node::fail;
use super::origin;
use super::proto::{AttributeProto, GraphProto, NodeProto};
use super::source::{Source, check_node};
use super::tensor::{Data, Elem, Tensor};
use crate::diagnostic::Diagnostic;
use prost::Message;
use std::collections::BTreeSet;

/// Most subgraphs that lie in one another.
const DEPTH: usize = 8;

/// Most nodes that subgraphs become.
const NODES: usize = 1 << 14;

fn refused(what: impl Into<String>) -> Diagnostic {
    fail("P0215", what).help(
        "a plan has fixed steps; trace the model with fixed branches and loops, or use `nn.LSTM`, \
         `nn.GRU` or `nn.RNN` where the loop is one",
    )
}

const BAGS: &str = "a plan has fixed bags: make the offsets a buffer of the module and leave out `padding_idx` (the ids may be data), \
                    or pad the ids to one length and sum under a mask: `(nn.Embedding(…)(ids) * \
                    mask[..., None]).sum(1)`";

/// Whether a loop is an `nn.EmbeddingBag`: each step looks rows up and reduces them.
fn is_bag(node: &NodeProto) -> bool {
    if let Some(from) = origin::call(node) {
        return from.is("aten.embedding_bag") || from.is("aten._embedding_bag");
    }
    let body = node.attribute.iter().find_map(|a| decoded(a).ok().flatten());
    body.is_some_and(|g| {
        let has =
            |ops: &[&str]| g.node.iter().any(|n| ops.contains(&n.op_type.as_deref().unwrap_or("")));
        has(&["Slice"]) && has(&["Gather"]) && has(&["ReduceSum", "ReduceMean", "ReduceMax"])
    })
}

/// Names that the subgraphs of a node read, their own among them.
///
/// # Errors
/// P0202.
pub(super) fn captured(node: &NodeProto) -> Res<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut work: Vec<GraphProto> = vec![];
    let attributes = |all: &[AttributeProto], work: &mut Vec<GraphProto>| -> Res<()> {
        for a in all {
            work.extend(decoded(a)?);
        }
        Ok(())
    };
    attributes(&node.attribute, &mut work)?;
    while let Some(graph) = work.pop() {
        found.extend(graph.output.into_iter().filter_map(|o| o.name));
        for node in graph.node {
            attributes(&node.attribute, &mut work)?;
            found.extend(node.input);
        }
    }
    Ok(found)
}

fn decoded(a: &AttributeProto) -> Res<Option<GraphProto>> {
    let Some(bytes) = &a.g else { return Ok(None) };
    let name = a.name.as_deref().unwrap_or_default();
    let graph = GraphProto::decode(bytes.clone());
    graph.map(Some).map_err(|e| fail("P0202", format!("`{name}` cannot be decoded: {e}")))
}

impl Source {
    /// Notes the nodes and outputs of the subgraphs among these attributes, and of those in them.
    ///
    /// # Errors
    /// P0202, P0215.
    pub(super) fn read_inner(&mut self, attributes: &[AttributeProto], depth: usize) -> Res<()> {
        for a in attributes {
            let Some(graph) = decoded(a)? else { continue };
            if depth == DEPTH {
                return Err(refused(format!("more than {DEPTH} subgraphs in one another")));
            }
            self.given.extend(graph.output.into_iter().filter_map(|o| o.name));
            for node in graph.node {
                self.read_inner(&node.attribute, depth + 1)?;
                self.inner.push(node);
            }
        }
        Ok(())
    }

    /// All nodes, those of subgraphs last.
    pub fn every_node(&self) -> impl Iterator<Item = &NodeProto> {
        self.graph.node.iter().chain(&self.inner)
    }
}

/// A subgraph of a node, which has no attributes but these.
fn subgraph(node: &NodeProto, name: &str, all: &[&str]) -> Res<GraphProto> {
    let op = node.op_type.as_deref().unwrap_or_default();
    let named = |a: &AttributeProto| a.name.as_deref().unwrap_or_default().to_string();
    if let Some(a) = node.attribute.iter().find(|a| !all.contains(&named(a).as_str())) {
        return Err(fail("P0206", format!("attribute `{}` of `{op}` is not supported", named(a))));
    }
    let given = node.attribute.iter().find(|a| named(a) == name);
    let graph = given.map(decoded).transpose()?.flatten();
    let graph = graph.ok_or_else(|| fail("P0214", format!("`{op}` has no `{name}`")))?;
    if !graph.initializer.is_empty() || !graph.sparse_initializer.is_empty() {
        return Err(refused(format!("`{name}` has initializers of its own")));
    }
    Ok(graph)
}

impl Importer<'_> {
    /// The one number of a literal, where an operand is there at all.
    fn number(&mut self, node: &NodeProto, i: usize, what: &str) -> Res<Option<f64>> {
        match node.input.get(i).map(String::as_str) {
            None | Some("") => Ok(None),
            Some(name) => match self.operand(name)? {
                Val::Const(t) if t.len() == 1 => Ok(t.to_reals().first().copied()),
                Val::Const(_) => Err(fail("P0214", format!("{what} is not one number"))),
                _ => Err(refused(format!("{what} depends on data"))),
            },
        }
    }

    /// The results of the branch of an `If` that its condition chooses.
    ///
    /// # Errors
    /// P0215 where the condition depends on data; what is wrong with the nodes of the branch.
    pub(super) fn branch(&mut self, node: &NodeProto) -> Res<Vec<Val>> {
        if node.input.len() != 1 {
            return Err(fail("P0214", "`If` has one operand, its condition"));
        }
        let chosen = self.number(node, 0, "the condition of `If`")?;
        let chosen = chosen.ok_or_else(|| fail("P0214", "`If` has no condition"))? != 0.0;
        let name = if chosen { "then_branch" } else { "else_branch" };
        let graph = subgraph(node, name, &["then_branch", "else_branch"])?;
        let results = self.nodes_of(&graph)?;
        for (name, o) in node.output.iter().zip(&graph.output) {
            let elem = self.narrow_type(o.name.as_deref().unwrap_or_default());
            self.set_narrow_type(name, elem);
        }
        Ok(results)
    }

    /// The results of a `Loop` step by step, where the number of its steps is known.
    ///
    /// # Errors
    /// P0215 where that depends on data; what is wrong with the nodes of a step.
    pub(super) fn unrolled(&mut self, node: &NodeProto) -> Res<Vec<Val>> {
        self.looping += 1;
        let results = self.steps(node);
        self.looping -= 1;
        results.map_err(|e| match e.code {
            "P0215" | "P0216" if is_bag(node) => Diagnostic {
                message: format!("the bags of an `nn.EmbeddingBag` depend on data: {}", e.message),
                ..e.help(BAGS)
            },
            _ => e,
        })
    }

    fn steps(&mut self, node: &NodeProto) -> Res<Vec<Val>> {
        let graph = subgraph(node, "body", &["body"])?;
        let steps = self.number(node, 0, "the number of steps of `Loop`")?;
        let mut goes_on = self.number(node, 1, "the condition of `Loop`")?.is_none_or(|c| c != 0.0);
        let carried = node.input.get(2..).unwrap_or_default();
        let names: Vec<&str> =
            graph.input.iter().map(|v| v.name.as_deref().unwrap_or_default()).collect();
        if names.len() != carried.len() + 2 || graph.output.len() < carried.len() + 1 {
            return Err(fail("P0214", "the body of `Loop` has other operands than the loop"));
        }
        let mut state: Vec<Val> = carried.iter().map(|x| self.operand(x)).collect::<Res<_>>()?;
        let mut kept: Vec<Vec<Val>> = vec![vec![]; graph.output.len() - carried.len() - 1];
        let narrow: Vec<Option<Elem>> = carried.iter().map(|x| self.narrow_type(x)).collect();
        let mut step = 0i64;
        while goes_on && steps.is_none_or(|n| (step as f64) < n) {
            let number = Tensor::new(Elem::I64, [], Data::Int(vec![step]));
            let condition = Tensor::new(Elem::Bool, [], Data::Bool(vec![true]));
            self.values.insert(names[0].into(), Val::constant(number));
            self.values.insert(names[1].into(), Val::constant(condition));
            for ((name, value), elem) in names[2..].iter().zip(state).zip(&narrow) {
                self.set_narrow_type(name, *elem);
                self.values.insert((*name).into(), value);
            }
            let mut results = self.nodes_of(&graph)?;
            let scans = results.split_off(carried.len() + 1);
            kept.iter_mut().zip(scans).for_each(|(all, one)| all.push(one));
            state = results.split_off(1);
            goes_on = match &results[0] {
                Val::Const(t) => t.splat().is_some_and(|c| c != 0.0),
                _ => return Err(refused("the condition of `Loop` depends on data")),
            };
            step += 1;
            // A body without nodes would never end.
            self.spend(1)?;
        }
        for all in kept {
            if all.is_empty() {
                return Err(refused("a `Loop` of no steps whose results are kept"));
            }
            state.push(stacked(self, &all)?);
        }
        let scanned = graph.output.iter().skip(carried.len() + 1);
        let scanned = scanned.map(|o| self.narrow_type(o.name.as_deref().unwrap_or_default()));
        let elems: Vec<Option<Elem>> = narrow.into_iter().chain(scanned).collect();
        for (name, elem) in node.output.iter().zip(elems) {
            self.set_narrow_type(name, elem);
        }
        Ok(state)
    }

    fn spend(&mut self, nodes: usize) -> Res<()> {
        self.inner += nodes;
        if self.inner > NODES {
            return Err(refused(format!("subgraphs become more than {NODES} nodes")));
        }
        Ok(())
    }

    fn nodes_of(&mut self, graph: &GraphProto) -> Res<Vec<Val>> {
        for node in &graph.node {
            check_node(node)?;
            self.spend(1)?;
            self.convert(node)?;
        }
        let names = graph.output.iter().map(|o| o.name.as_deref().unwrap_or_default());
        names.map(|name| self.operand(name)).collect()
    }
}

//! `If` whose condition is known when compiling: the branch that is taken, in its place. Exporters write
//! it where a rank or an extent could be other than that of the example.

use super::import::{Importer, Res, Val};
use super::node::fail;
use super::proto::{AttributeProto, GraphProto, NodeProto};
use super::source::check_node;
use crate::diagnostic::Diagnostic;
use prost::Message;

/// Most branches that lie in one another.
const DEPTH: usize = 8;

fn refused(what: impl Into<String>) -> Diagnostic {
    fail("P0215", what)
        .help("control flow is not supported; trace the model with fixed branches and loops")
}

impl Importer<'_> {
    /// The results of the branch of `node`, an `If`, that its condition chooses.
    ///
    /// # Errors
    /// P0215 where the condition depends on data; what is wrong with the nodes of the branch.
    pub(super) fn branch(&mut self, node: &NodeProto) -> Res<Vec<Val>> {
        let [condition] = &node.input[..] else {
            return Err(fail("P0214", "`If` has one operand, its condition"));
        };
        let branches = [Some("then_branch"), Some("else_branch")];
        if let Some(a) = node.attribute.iter().find(|a| !branches.contains(&a.name.as_deref())) {
            let name = a.name.as_deref().unwrap_or_default();
            return Err(fail("P0206", format!("attribute `{name}` of `If` is not supported")));
        }
        let chosen = match self.operand(condition)? {
            Val::Const(t) => t.scalar().map(|c| c != 0.0),
            _ => return Err(refused("the condition of `If` depends on data")),
        };
        let chosen = chosen.ok_or_else(|| fail("P0214", "the condition is not a scalar"))?;
        let name = if chosen { "then_branch" } else { "else_branch" };
        let is = |a: &&AttributeProto| a.name.as_deref() == Some(name);
        let bytes = node.attribute.iter().find(is).and_then(|a| a.g.clone());
        let bytes = bytes.ok_or_else(|| fail("P0214", format!("`If` has no `{name}`")))?;
        let graph = GraphProto::decode(bytes)
            .map_err(|e| fail("P0202", format!("`{name}` cannot be decoded: {e}")))?;
        if !graph.initializer.is_empty() || !graph.sparse_initializer.is_empty() {
            return Err(refused(format!("`{name}` has initializers of its own")));
        }
        if self.depth == DEPTH {
            return Err(refused(format!("more than {DEPTH} branches in one another")));
        }
        self.depth += 1;
        let results = self.nodes_of(&graph);
        self.depth -= 1;
        results
    }

    fn nodes_of(&mut self, graph: &GraphProto) -> Res<Vec<Val>> {
        for node in &graph.node {
            check_node(node)?;
            // What an initializer is, is seen by who reads it, outside of branches.
            let hidden = |x: &&String| {
                self.src.initializers.contains_key(*x) && !self.values.contains_key(*x)
            };
            if let Some(x) = node.input.iter().find(hidden) {
                return Err(refused(format!("a branch of `If` alone reads `{x}`")));
            }
            self.convert(node)?;
        }
        let names = graph.output.iter().map(|o| o.name.as_deref().unwrap_or_default());
        names.map(|name| self.operand(name)).collect()
    }
}

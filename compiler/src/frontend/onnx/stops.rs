//! Where gradients stop: at `detach()`, where the file still has it, and where a person says so.

use super::buffers;
use super::import::{Importer, Res, Val};
use super::origin;
use super::params::{Known, Role};
use super::proto::NodeProto;
use super::source::{Source, node_label};
use crate::diagnostic::{Diagnostic, Diagnostics, Result, suggestion};
use crate::ir::{ConstData, Graph, ValueId, VarInit, VarRole};
use crate::ops;
use globset::{Glob, GlobMatcher};
use precast_plan::{BinaryOp, Kind};
use std::collections::{BTreeMap, BTreeSet};

/// Globs over names, as a recipe gives them.
pub struct Globs<'a> {
    list: Vec<(&'a str, Option<GlobMatcher>)>,
}

impl<'a> Globs<'a> {
    /// A text that is no glob matches nothing.
    pub fn new(globs: &'a [String]) -> Globs<'a> {
        let matcher = |g: &str| Glob::new(g).ok().map(|g| g.compile_matcher());
        Globs { list: globs.iter().map(|g| (g.as_str(), matcher(g))).collect() }
    }

    pub fn matches(&self, name: &str) -> bool {
        self.list.iter().any(|(g, m)| *g == name || m.as_ref().is_some_and(|m| m.is_match(name)))
    }

    /// Those that match none of some names.
    fn idle(&self, names: &BTreeSet<&str>) -> Vec<&'a str> {
        let hit = |(g, m): &&(&str, Option<GlobMatcher>)| {
            names.contains(g) || names.iter().any(|n| m.as_ref().is_some_and(|m| m.is_match(n)))
        };
        self.list.iter().filter(|g| !hit(g)).map(|(g, _)| *g).collect()
    }

    /// Checks that every glob names something that can be trained.
    ///
    /// # Errors
    /// P0112 for each that does not.
    pub fn all_found(&self, roles: &BTreeMap<String, Known>) -> Result<()> {
        let can = roles.iter().filter(|(_, k)| !k.role.is_constant());
        let names: BTreeSet<&str> = can.map(|(n, _)| n.as_str()).collect();
        let known: Vec<&str> = names.iter().copied().collect();
        let error = |g: &str| {
            let message = format!("`{g}` matches no tensor of the model that has a gradient");
            Diagnostic::error("P0112", message).help(suggestion("parameters", g, &known))
        };
        let errors: Vec<Diagnostic> = self.idle(&names).into_iter().map(error).collect();
        if errors.is_empty() { Ok(()) } else { Err(Diagnostics(errors)) }
    }
}

/// Nodes behind which a person stops gradients, by index, and what import finds on its way.
#[derive(Default)]
pub struct Stops {
    /// Names of the results of those nodes that stop.
    values: BTreeSet<String>,
    /// Results of nodes of regions that were exported apart, with the nodes' indices.
    pub apart: Vec<(usize, ValueId)>,
}

impl Stops {
    /// Finds the nodes and values that the globs name.
    ///
    /// # Errors
    /// P0112 for a glob that names none.
    pub fn new(src: &Source, globs: &[String]) -> Result<Stops> {
        if globs.is_empty() {
            return Ok(Stops::default());
        }
        let stops = Globs::new(globs);
        let mut names = BTreeSet::new();
        let mut values = BTreeSet::new();
        for node in &src.graph.node {
            let own = node.name.as_deref().unwrap_or_default();
            names.insert(own);
            for y in node.output.iter().filter(|y| !y.is_empty()) {
                names.insert(y.as_str());
                if stops.matches(y) || (!own.is_empty() && stops.matches(own)) {
                    values.insert(y.clone());
                }
            }
        }
        names.remove("");
        let known: Vec<&str> = names.iter().copied().collect();
        let error = |g: &str| {
            let message = format!("`{g}` names no node and no value of the model");
            Diagnostic::error("P0112", message).help(suggestion("nodes", g, &known))
        };
        let errors: Vec<Diagnostic> = stops.idle(&names).into_iter().map(error).collect();
        if errors.is_empty() {
            Ok(Stops { values, ..Stops::default() })
        } else {
            Err(Diagnostics(errors))
        }
    }
}

impl Importer<'_> {
    /// The results of a node, behind a stop where gradients do not pass it.
    pub(super) fn stopped(&mut self, node: &NodeProto, results: Vec<Val>) -> Res<Vec<Val>> {
        let detach = origin::is_detach(node);
        let apart = origin::is_apart(node);
        let mut out = Vec::with_capacity(results.len());
        for (i, v) in results.into_iter().enumerate() {
            let named = node.output.get(i).is_some_and(|y| self.stops.values.contains(y));
            let v = match v {
                Val::Node(v) if (detach || named) && self.graph.ty(v).is_real() => {
                    Val::Node(self.one("stopped", ops::StopGradient {}, &[v])?)
                }
                other => other,
            };
            if let (Val::Node(v), true) = (&v, apart) {
                self.stops.apart.push((self.at, *v));
            }
            out.push(v);
        }
        Ok(out)
    }

    /// The rows that a lookup found, with the gradient of each divided by how often its id is among `ids`,
    /// as `nn.Embedding(scale_grad_by_freq=True)` has it.
    pub fn by_frequency(&mut self, y: ValueId, ids: ValueId, rows: usize) -> Res<ValueId> {
        if !origin::is_by_frequency(&self.src.graph.node[self.at]) {
            return Ok(y);
        }
        let (shape, of_ids) = (self.graph.shape(y).to_vec(), self.graph.shape(ids).to_vec());
        let count: usize = of_ids.iter().product();
        if count == 0 {
            return Ok(y);
        }
        let flat = self.one("flat", ops::Reshape { shape: vec![count] }, &[ids])?;
        let ones = self.full(1.0, &[count, 1])?;
        let times = self.one("times", ops::ScatterAdd { rows }, &[flat, ones])?;
        let times = self.one("times", ops::Gather {}, &[times, flat])?;
        let mut column = of_ids;
        column.resize(shape.len(), 1);
        let times = self.one("times", ops::Reshape { shape: column }, &[times])?;
        let times = self.one("times", ops::Broadcast { shape }, &[times])?;
        // Nothing is added to the rows themselves.
        let kept = self.one("kept", ops::StopGradient {}, &[y])?;
        let none = self.one("none", ops::Binary { f: BinaryOp::Sub }, &[y, kept])?;
        let none = self.one("none", ops::Binary { f: BinaryOp::Div }, &[none, times])?;
        self.one("by_frequency", ops::Binary { f: BinaryOp::Add }, &[kept, none])
    }

    /// The rows that a lookup found, without a gradient for those of the table's padding row, which
    /// `nn.Embedding(padding_idx=…)` never trains.
    pub fn without_padding(&mut self, y: ValueId, ids: ValueId) -> Res<ValueId> {
        let Some(row) = origin::padding_row(&self.src.graph.node[self.at]) else { return Ok(y) };
        if self.graph.ty(ids).kind() != Kind::Int {
            return Ok(y);
        }
        let (shape, of_ids) = (self.graph.shape(y).to_vec(), self.graph.shape(ids).to_vec());
        let data = ConstData::from_i64(vec![1; of_ids.len()], &[row]);
        let row = self.one("padding", ops::Const { data }, &[])?;
        let row = self.one("padding", ops::Broadcast { shape: of_ids.clone() }, &[row])?;
        let is = self.one("is_padding", ops::Binary { f: BinaryOp::Eq }, &[ids, row])?;
        let mut column = of_ids;
        column.resize(shape.len(), 1);
        let is = self.one("is_padding", ops::Reshape { shape: column }, &[is])?;
        let is = self.one("is_padding", ops::Broadcast { shape }, &[is])?;
        let kept = self.one("padding_row", ops::StopGradient {}, &[y])?;
        self.one("padded", ops::Select {}, &[is, kept, y])
    }

    /// What exporters lost on the way, as far as the file shows it.
    pub(super) fn warn_about_losses(&mut self) {
        if self.opts.training {
            self.warn_about_detaches();
            self.warn_about_regions();
            self.warn_about_folded_norms();
            self.warn_about_padding();
        }
    }

    fn warn_about_detaches(&mut self) {
        let lost: Vec<(usize, String)> = origin::lost_detaches(self.src)
            .into_iter()
            .filter(|(_, x)| !self.stops.values.contains(x))
            .collect();
        let Some((first, _)) = lost.first() else { return };
        let names: BTreeSet<&str> = lost.iter().map(|(_, x)| x.as_str()).collect();
        let message = format!(
            "`{}` read what `detach()` returned, and the exporter's optimizer removed that: gradients \
             flow through",
            node_label(*first, &self.src.graph.node[*first])
        );
        let keys: Vec<String> = names.iter().map(|x| format!("\"{x}\"")).collect();
        let place = self.src.node_place(*first);
        self.warnings.push(Diagnostic::warning("P0228", message).at(place).help(format!(
            "export with optimize=False, which keeps it, or name the value in the recipe: [train] \
             stop_gradient = [{}]",
            keys.join(", ")
        )));
    }

    /// A region that depends on parameters and was exported apart.
    fn warn_about_regions(&mut self) {
        let apart = std::mem::take(&mut self.stops.apart);
        if apart.is_empty() {
            return;
        }
        let depends = depends_on_parameters(&self.graph);
        let inside: BTreeSet<usize> = apart.iter().map(|(at, _)| *at).collect();
        let nodes = &self.src.graph.node;
        // Those that something outside reads.
        let read: BTreeSet<&str> = nodes
            .iter()
            .enumerate()
            .filter(|(i, _)| !inside.contains(i))
            .flat_map(|(_, n)| n.input.iter().map(String::as_str))
            .chain(self.src.graph.output.iter().filter_map(|o| o.name.as_deref()))
            .collect();
        let real = |v: ValueId| depends[v.0 as usize] && self.graph.ty(v).is_real();
        let open = |at: usize| {
            nodes[at].output.iter().any(|y| read.contains(y.as_str()))
                && nodes[at].output.iter().all(|y| !self.stops.values.contains(y))
        };
        let ends: BTreeSet<usize> =
            apart.iter().filter(|(at, v)| real(*v) && open(*at)).map(|(at, _)| *at).collect();
        let Some(&first) = ends.first() else { return };
        let names: Vec<String> =
            ends.iter().map(|&i| format!("\"{}\"", node_label(i, &nodes[i]))).collect();
        let message = format!(
            "{} nodes end regions that PyTorch exports apart, such as `torch.no_grad()`; what it was \
             is not in the file, and gradients flow through",
            ends.len()
        );
        let place = self.src.node_place(first);
        self.warnings.push(Diagnostic::warning("P0228", message).at(place).help(format!(
            "where it was `torch.no_grad()`, name them in the recipe: [train] stop_gradient = [{}]; \
             where it was `torch.autocast`, nothing is lost",
            names.join(", ")
        )));
    }

    fn warn_about_folded_norms(&mut self) {
        let nodes = &self.src.graph.node;
        let marked = |i: &usize| origin::is_folded_batch_norm(&nodes[*i]);
        // The TorchScript exporter's folded weight and bias have numbers for names, both of them.
        let computed = |x: Option<&String>| x.is_some_and(|x| x.starts_with("onnx::Conv_"));
        let renamed = |i: &usize| {
            let n = &nodes[*i];
            matches!(n.op_type.as_deref(), Some("Conv" | "ConvTranspose"))
                && computed(n.input.get(1))
                && computed(n.input.get(2))
        };
        let folded: Vec<usize> = (0..nodes.len()).filter(|i| marked(i) || renamed(i)).collect();
        let Some(&first) = folded.first() else { return };
        let message = format!(
            "batch normalisation was folded into {} convolutions when the model was exported, and will \
             not be trained as such",
            folded.len()
        );
        let place = self.src.node_place(first);
        self.warnings.push(Diagnostic::warning("P0231", message).at(place).help(
            "export with dynamo=False, training=TrainingMode.TRAINING and do_constant_folding=False; \
             for batch normalisation that stays frozen, training=TrainingMode.PRESERVE; see \
             docs/EXPORTING.md",
        ));
    }

    /// Tables that begin with one row of zeros, where nothing says that it is padding.
    fn warn_about_padding(&mut self) {
        let known: BTreeSet<&str> = self
            .src
            .graph
            .node
            .iter()
            .filter(|n| origin::call(n).is_some())
            .flat_map(|n| n.input.first().map(String::as_str))
            .collect();
        let mut rows = Vec::new();
        for node in self.src.graph.node.iter().filter(|n| n.op_type.as_deref() == Some("Gather")) {
            let Some(name) = node.input.first().filter(|x| !known.contains(x.as_str())) else {
                continue;
            };
            let Some(init) = self.src.initializers.get(name) else { continue };
            let own = !matches!(
                self.graph.vars.get(name).map(|v| &v.init),
                None | Some(VarInit::Weights(_))
            );
            let trained = self.roles.get(name).is_some_and(|k| k.role == Role::Embedding);
            if let Some(row) = buffers::zero_row(self.src, name, init).filter(|_| own && trained)
                && !rows.iter().any(|(n, _)| n == name)
            {
                rows.push((name.clone(), row));
            }
        }
        let settled = Globs::new(&self.opts.settled);
        rows.retain(|(n, _)| !settled.matches(n));
        for (name, row) in rows {
            let message = format!(
                "row {row} of `{name}` is all zeros, as the padding of an embedding is; it will be \
                 trained"
            );
            let place = self.src.tensor_place(&name);
            let lookup = |n: &NodeProto| n.op_type.as_deref() == Some("Gather");
            let tied = self.src.graph.node.iter().any(|n| !lookup(n) && n.input.contains(&name));
            let mends = if tied && origin::is_program(self.src) {
                "Where it was one, a tied head trains the row all the same, and only lookups do not: what \
                 torch.export notes beside the node says so, and is not in the file; keep \
                 `metadata_props` when the file is changed"
                    .to_string()
            } else if tied {
                "Where it was one, a tied head trains the row all the same, and only lookups do not: \
                 export with dynamo=True and optimize=False, which keeps it"
                    .to_string()
            } else {
                format!("Where it was one: [train] freeze_rows = {{ \"{name}\" = [{row}] }}")
            };
            let help = format!("ONNX has no `padding_idx`. {mends}");
            self.warnings.push(Diagnostic::warning("P0232", message).at(place).help(help));
        }
    }
}

/// Which values depend on a parameter, of every value of the graph.
fn depends_on_parameters(g: &Graph) -> Vec<bool> {
    let mut depends = vec![false; g.value_count()];
    for (_, node) in g.nodes() {
        let var = match &node.op {
            ops::Op::Var(v) => g.vars.get(&v.name).is_some_and(|v| v.role == VarRole::Param),
            _ => node.inputs.iter().any(|x| depends[x.0 as usize]),
        };
        for y in &node.outputs {
            depends[y.0 as usize] = var;
        }
    }
    depends
}

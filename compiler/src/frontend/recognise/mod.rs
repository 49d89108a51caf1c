//! Composite operations found in graphs of small ones.
//!
//! Exporters decompose what a framework calls GELU, layer normalisation or attention. Each file
//! here recognises one of them on the graph and puts the composite operation in its place: the same
//! function up to rounding, with a gradient and kernels of its own. A pattern is taken only where
//! nothing outside it reads its intermediate values. Run on a simplified graph, and simplify again
//! afterwards.

mod activation;
mod attention;
mod band;
mod layer_norm;
mod logarithm;
mod masks;
mod matcher;
mod norm;
mod rows;
#[cfg(test)]
mod tests;

use crate::ir::{Graph, Result_, ValueId};
use matcher::{Matcher, Rewriter};
use smallvec::SmallVec;

/// Tries to compute a node's results in another way; new values, as many as are read.
type Pattern = fn(&Matcher, &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>>;

/// The passes, in order: a sigmoid is found before what is made of it, normalisations get their scale and shift after their core is found, and
/// biases reach their product after that.
pub const PASSES: &[(&str, Pattern)] = &[
    ("centring", logarithm::centring),
    ("sigmoid", logarithm::sigmoid),
    ("expm1", logarithm::expm1),
    ("logarithm", logarithm::logarithm),
    ("norm", norm::norm),
    ("gelu", activation::gelu),
    ("silu", activation::silu),
    ("layer_norm", layer_norm::core),
    ("layer_norm_scale", layer_norm::scale),
    ("layer_norm_shift", layer_norm::shift),
    ("attention", attention::attention),
    ("rows", rows::sink),
];

/// Runs all passes.
pub fn recognise(g: &Graph) -> Graph {
    PASSES.iter().fold(g.clone(), |g, (_, p)| run(&g, *p))
}

/// Runs one pass over every node, first to last.
pub fn run(g: &Graph, pattern: Pattern) -> Graph {
    let uses = g.uses();
    let mut kept = vec![false; g.value_count()];
    for r in g.results.iter().chain(&g.updates) {
        kept[r.value.0 as usize] = true;
    }
    let mut rw = Rewriter::new(g);
    for (id, node) in g.nodes() {
        let m = Matcher { graph: g, uses: &uses, kept: &kept, root: id };
        match pattern(&m, &mut rw) {
            Some(values) => rw.replace(node, &values),
            None => rw.copy(node),
        }
    }
    let Rewriter { mut out, map, .. } = rw;
    let rename = |rs: &[Result_]| {
        rs.iter()
            .map(|r| Result_ {
                name: r.name.clone(),
                value: map[r.value.0 as usize].expect("every node was copied or replaced"),
            })
            .collect()
    };
    out.results = rename(&g.results);
    out.updates = rename(&g.updates);
    out.without_dead_nodes()
}

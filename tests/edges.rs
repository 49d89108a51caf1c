//! Derivatives at corners, ties and extremes are PyTorch's: what graphs mean, and the CPU backend.

mod common;
mod edge_points;

use edge_points::{EXPORTERS, Edges};
use indexmap::IndexMap;
use precast_compiler::precision::Policy;
use precast_compiler::reference::eval;

#[test]
fn graphs_have_pytorchs_derivatives_at_edges() {
    for exporter in EXPORTERS {
        let e = Edges::open(exporter);
        let out = eval(&e.graph, &e.inputs, &IndexMap::new()).unwrap_or_else(|e| panic!("{e}"));
        let have: Vec<(String, Vec<f64>)> =
            out.results.iter().map(|(n, t)| (n.clone(), t.reals().to_vec())).collect();
        // Literals of programs are f32.
        e.check(exporter, &have, 1e-6);
    }
}

#[test]
fn the_cpu_has_pytorchs_derivatives_at_edges() {
    for exporter in EXPORTERS {
        let e = Edges::open(exporter);
        e.check(exporter, &e.run(common::lower(&e.graph, Policy::F32)), 1e-5);
    }
}

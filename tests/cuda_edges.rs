//! Derivatives at corners, ties and extremes, on the software device (a test tool,
//! `tests/software_device`).

mod common;
mod edge_points;

use edge_points::{EXPORTERS, Edges};
use precast_compiler::precision::Policy;

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

#[test]
fn kernels_have_pytorchs_derivatives_at_edges() {
    for exporter in EXPORTERS {
        let e = Edges::open(exporter);
        let plan = common::lowered_for("sm_90", &e.graph, Policy::F32).1;
        e.check(exporter, &e.run(plan), 1e-5);
    }
}

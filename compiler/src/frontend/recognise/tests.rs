//! Each `tests/*.pir` beside the graph that recognition makes of it, and the same values from both.

use super::recognise;
use crate::ir::verify::verify;
use crate::ir::{Graph, TensorType};
use crate::ops::Op;
use crate::reference::{self, Tensor};
use crate::simplify::simplify;
use indexmap::IndexMap;
use precast_plan::Kind;

/// Reproducible values in [−2, 2); ints and bools from their sign.
fn tensor(name: &str, ty: &TensorType) -> Tensor {
    let mut state = name.bytes().fold(1u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1u64 << 29) as f64 - 2.0
    };
    let v: Vec<f64> = (0..ty.shape.elements()).map(|_| draw()).collect();
    let shape = ty.shape.clone();
    match ty.kind() {
        Kind::Real => Tensor::real(shape, v),
        // The first of each row is one, so that no row of a mask is empty.
        Kind::Int => Tensor::int(
            ty.dtype,
            shape,
            v.iter()
                .enumerate()
                .map(|(i, &x)| i64::from(x > 0.0 || i % 3 == 0))
                .collect::<Vec<_>>(),
        ),
        Kind::Bool => Tensor::bool(shape, v.iter().map(|&x| x > 0.0).collect::<Vec<_>>()),
    }
}

fn values(g: &Graph) -> IndexMap<String, Tensor> {
    let inputs = g
        .nodes()
        .filter_map(|(_, n)| match &n.op {
            Op::Input(i) => Some((i.name.clone(), tensor(&i.name, g.ty(n.outputs[0])))),
            _ => None,
        })
        .collect();
    let vars = g.vars.iter().map(|(n, v)| (n.clone(), tensor(n, &v.ty))).collect();
    reference::eval(g, &inputs, &vars).unwrap().results
}

/// Recognition between two simplifications; values must agree up to the rounding of f32 literals.
pub fn checked(g: &Graph) -> Graph {
    verify(g).unwrap();
    let before = simplify(g).unwrap();
    let after = simplify(&recognise(&before)).unwrap();
    verify(&after).unwrap();
    assert_eq!(after.vars, before.vars);
    let (a, b) = (values(&before), values(&after));
    assert!(!a.is_empty() && a.keys().eq(b.keys()));
    for (name, x) in &a {
        let size = x.reals().iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (u, v) in x.reals().iter().zip(b[name].reals()) {
            assert!((u - v).abs() <= 3e-7 * size, "{name}: {u} became {v}");
        }
    }
    after
}

#[test]
fn files() {
    insta::glob!("tests/*.pir", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let g = crate::text::parse(path, &text).unwrap();
        insta::with_settings!({ snapshot_path => "tests", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(crate::text::print(&checked(&g)));
        });
    });
}

//! Pools at ties and NaN, which are PyTorch's.

use super::super::malformed::{attr, load_in, model, node};
use super::super::proto::AttributeProto;
use super::*;
use crate::autodiff::backward;
use crate::ir::{ConstData, Region, Result_};
use crate::ops::Const;
use crate::reference::{self, Tensor};
use crate::simplify::simplify;
use indexmap::IndexMap;

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), r#type: Some(7), ..attr(name) }
}

/// The sum of what a pool makes of [1,1,h,w], and its gradient.
fn run(op: &str, attributes: Vec<AttributeProto>, shape: [usize; 2], x: &[f64]) -> (f64, Vec<f64>) {
    let axes = [ints("axes", &[0, 1, 2, 3]), super::super::malformed::int("keepdims", 0)];
    let pool = node(op, &["x"], &["pooled"], attributes);
    let sum = node("ReduceMean", &["pooled"], &["y"], axes.to_vec());
    let mut m = model(vec![pool, sum], vec![]);
    let dims = [1, 1, shape[0] as i64, shape[1] as i64];
    m.graph.as_mut().unwrap().input = vec![super::super::malformed::value("x", &dims)];
    let mut g = load_in(Path::new("."), &m).unwrap().graph;
    let (y, x_in) = (g.result("out.y").unwrap(), g.nodes().next().unwrap().1.outputs[0]);
    let one = Const { data: ConstData::scalar(1.0) };
    let seed = g.try_add(one, &[], "seed", Region::Backward).unwrap()[0];
    let dx = backward(&mut g, y, seed, &[x_in]).unwrap()[0].unwrap();
    g.results.push(Result_ { name: "dx".into(), value: dx });
    let inputs: IndexMap<String, Tensor> =
        [("x".to_string(), Tensor::real([1, 1, shape[0], shape[1]], x))].into();
    let all = reference::eval(&simplify(&g).unwrap(), &inputs, &IndexMap::new()).unwrap();
    (all.results["out.y"].reals()[0], all.results["dx"].reals().to_vec())
}

/// `GlobalMaxPool` is how PyTorch's exporter writes adaptive_max_pool of extents that it does not know.
#[test]
fn a_global_maximum_has_one_place() {
    let (y, dx) = run("GlobalMaxPool", vec![], [2, 3], &[1.0, 4.0, 0.0, 4.0, 4.0, -1.0]);
    assert_eq!((y, dx), (4.0, vec![0.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
    let (y, dx) = run("GlobalMaxPool", vec![], [2, 3], &[1.0, 4.0, 0.0, f64::NAN, 4.0, -1.0]);
    assert!(y.is_nan());
    assert_eq!(dx, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
}

/// Windows that the kernel does not count, tap by tap.
#[test]
fn nan_is_the_maximum_of_every_window() {
    let nan = f64::NAN;
    let kernel = || vec![ints("kernel_shape", &[1, 2]), ints("dilations", &[1, 2])];
    for (x, place) in
        [([1.0, 0.0, nan], 2), ([nan, 0.0, 1.0], 0), ([nan, 0.0, nan], 2), ([1.0, nan, 1.0], 0)]
    {
        let (y, dx) = run("MaxPool", kernel(), [1, 3], &x);
        assert_eq!(y.is_nan(), x[place].is_nan(), "{x:?}");
        let want: Vec<f64> = (0..3).map(|i| f64::from(u8::from(i == place))).collect();
        assert_eq!(dx, want, "{x:?}");
    }
}

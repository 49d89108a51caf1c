//! One step of a random case in a session, and how far its results are from what they should be.

use crate::random::RandomCase;
use precast_compiler::reference::{Data, Evaluated, Tensor};
use precast_plan::Plan;
use precast_runtime::data::batch_of;
use precast_runtime::tensors::Element;
use precast_runtime::{HostTensor, Options, Session};
use std::collections::BTreeMap;

fn host(t: &Tensor) -> HostTensor<'static> {
    let shape: Vec<u64> = t.shape().iter().map(|&n| n as u64).collect();
    match &t.data {
        Data::Real(v) => {
            HostTensor::from_f32(&shape, &v.iter().map(|&x| x as f32).collect::<Vec<_>>())
        }
        Data::Int(v) => {
            let size = t.ty.dtype.size();
            let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()[..size].to_vec()).collect();
            HostTensor { element: Element::Plan(t.ty.dtype), shape, bytes: bytes.into() }
        }
        Data::Bool(_) => panic!("no input is a bool"),
    }
}

/// All results of one step, by name.
pub fn run(plan: &Plan, case: &RandomCase, threads: usize) -> Vec<(String, Vec<f32>)> {
    let none: BTreeMap<String, HostTensor> = BTreeMap::new();
    let options = Options { threads, ..Options::default() };
    let mut s = Session::new(plan.clone(), &none, &options).unwrap_or_else(|e| panic!("{e}"));
    for (name, t) in &case.vars {
        // A parameter that nothing reads has no tensor.
        if plan.tensors.iter().any(|t| t.name == *name) {
            s.write(name, &host(t)).unwrap_or_else(|e| panic!("{e}"));
        }
    }
    let fed: Vec<(&str, HostTensor)> =
        case.inputs.iter().map(|(n, t)| (n.as_str(), host(t))).collect();
    let wanted = s.wanted();
    let fed: Vec<_> =
        fed.into_iter().filter(|(n, _)| wanted.iter().any(|w| w.name == *n)).collect();
    let batch = batch_of(&wanted, &fed).unwrap_or_else(|e| panic!("{e}"));
    s.micro(&batch).unwrap_or_else(|e| panic!("{e}"));
    plan.results
        .iter()
        .map(|r| (r.name.clone(), s.result(&r.name).unwrap_or_else(|e| panic!("{e}")).to_f32()))
        .collect()
}

/// Largest distance of a result from what it should be, relative to the largest element.
pub fn distance(have: &[(String, Vec<f32>)], want: &Evaluated) -> (f64, String) {
    let mut worst = (0.0, String::new());
    assert_eq!(have.len(), want.results.len());
    for (name, values) in have {
        let exact = want.results[name].reals();
        assert_eq!(values.len(), exact.len(), "{name}");
        let size = exact.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        for (a, b) in values.iter().zip(exact) {
            let e = (f64::from(*a) - b).abs() / size;
            if e > worst.0 || e.is_nan() {
                worst = (if e.is_nan() { f64::INFINITY } else { e }, name.clone());
            }
        }
    }
    worst
}

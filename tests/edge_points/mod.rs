//! The fixture `edges`: functions of torch at corners, ties and extremes, one graph an exporter, and
//! PyTorch's gradients in f64 (`tests/peers/make_edges.py`).

use crate::common;
use indexmap::IndexMap;
use precast_compiler::autodiff::backward;
use precast_compiler::frontend::onnx::{ImportOptions, load};
use precast_compiler::frontend::recognise::recognise;
use precast_compiler::ir::{ConstData, Graph, Region, Result_, ValueId};
use precast_compiler::ops::{Const, Op};
use precast_compiler::reference::Tensor;
use precast_compiler::simplify::simplify;
use precast_plan::{DType, Plan};
use precast_runtime::data::batch_of;
use precast_runtime::tensors::Element;
use precast_runtime::{HostTensor, Options, Session, TensorFile};
use std::collections::BTreeMap;

pub const EXPORTERS: [&str; 2] = ["ts", "dynamo"];

/// Functions whose results must be right in the relative sense, however small they are: what was
/// written would have cancelled or rounded away.
const TO_THE_LAST: &[&str] = &[
    "cross_entropy",
    "exp_minus_one",
    "expm1",
    "log1p",
    "log_add_exp",
    "log_of_rest",
    "log_of_sigmoid",
    "log_one_plus",
    "log_one_plus_exp",
    "log_sigmoid",
    "log_sum_exp_written",
    "softplus",
];

pub struct Edges {
    pub graph: Graph,
    pub inputs: IndexMap<String, Tensor>,
    want: IndexMap<String, Vec<f64>>,
}

impl Edges {
    pub fn open(exporter: &str) -> Edges {
        let folder = common::folder("edges");
        let file = TensorFile::open(&folder.join("reference.safetensors")).expect("complete");
        let options = ImportOptions { training: true, ..ImportOptions::default() };
        let model = load(&folder.join(format!("{exporter}.onnx")), &options)
            .unwrap_or_else(|e| panic!("{exporter}: {e}"));
        let ok = |g| simplify(&g).unwrap_or_else(|e| panic!("{exporter}: {e}"));
        let mut g = ok(recognise(&ok(model.graph)));
        let (mut inputs, mut names, mut wrt) = (IndexMap::new(), vec![], vec![]);
        for (_, n) in g.nodes() {
            if let Op::Input(i) = &n.op {
                let t = file.tensor(&format!("in.{}", i.name)).expect("listed").to_f32();
                let values: Vec<f64> = t.into_iter().map(f64::from).collect();
                inputs.insert(i.name.clone(), Tensor::real(g.shape(n.outputs[0]).clone(), values));
                if i.name != "weights" {
                    names.push(i.name.clone());
                    wrt.push(n.outputs[0]);
                }
            }
        }
        let sum = g.result("out.sum").expect("the output");
        let one = Const { data: ConstData::scalar(1.0) };
        let seed = g.try_add(one, &[], "seed", Region::Backward).expect("a constant")[0];
        let grads: Vec<Option<ValueId>> =
            backward(&mut g, sum, seed, &wrt).unwrap_or_else(|e| panic!("{exporter}: {e}"));
        g.results.clear();
        let mut want = IndexMap::new();
        for (name, grad) in names.into_iter().zip(grads) {
            let t = file.tensor(&format!("{exporter}.grad.{name}")).expect("listed");
            let bytes = t.bytes.chunks_exact(8);
            let values: Vec<f64> =
                bytes.map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
            match grad {
                Some(value) => g.results.push(Result_ { name: format!("grad.{name}"), value }),
                None => assert!(values.iter().all(|x| *x == 0.0), "{name} has no gradient"),
            }
            want.insert(name, values);
        }
        Edges { graph: ok(g.without_dead_nodes()), inputs, want }
    }

    /// Gradients of one step of a plan, by input.
    pub fn run(&self, plan: Plan) -> Vec<(String, Vec<f64>)> {
        let none: BTreeMap<String, HostTensor> = BTreeMap::new();
        let names: Vec<String> = plan.results.iter().map(|r| r.name.clone()).collect();
        let mut s =
            Session::new(plan, &none, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let fed: Vec<(&str, HostTensor)> =
            self.inputs.iter().map(|(n, t)| (n.as_str(), host(t))).collect();
        let wanted = s.wanted();
        let fed: Vec<_> =
            fed.into_iter().filter(|(n, _)| wanted.iter().any(|w| w.name == *n)).collect();
        let batch = batch_of(&wanted, &fed).unwrap_or_else(|e| panic!("{e}"));
        s.micro(&batch).unwrap_or_else(|e| panic!("{e}"));
        let value = |name: &String| {
            let t = s.result(name).unwrap_or_else(|e| panic!("{e}")).to_f32();
            (name.clone(), t.into_iter().map(f64::from).collect())
        };
        names.iter().map(value).collect()
    }

    /// Holds gradients against PyTorch's.
    pub fn check(&self, what: &str, have: &[(String, Vec<f64>)], relative: f64) {
        let mut faults = vec![];
        for (name, values) in have {
            let name = name.strip_prefix("grad.").expect("a gradient");
            let want = &self.want[name];
            assert_eq!(values.len(), want.len(), "{name}");
            let size = want.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
            let function = name.split('.').next().expect("a name");
            let floor = match TO_THE_LAST.contains(&function) {
                // Below the smallest normal f32.
                true => 2e-38,
                false => relative * size + 2e-38,
            };
            for (i, (&a, &b)) in values.iter().zip(want).enumerate() {
                let same = a == b || (a.is_nan() && b.is_nan());
                if !(same || (a - b).abs() <= relative * b.abs() + floor) {
                    let x = self.inputs[name].reals()[i];
                    faults.push(format!("{name}[{i}] at {x}: {a:e}, PyTorch {b:e}"));
                }
            }
        }
        assert!(have.len() > 80, "{} gradients", have.len());
        assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
    }
}

fn host(t: &Tensor) -> HostTensor<'static> {
    let shape: Vec<u64> = t.shape().iter().map(|&n| n as u64).collect();
    assert_eq!(t.ty.dtype, DType::F32);
    let bytes: Vec<u8> = t.reals().iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    HostTensor { element: Element::Plan(DType::F32), shape, bytes: bytes.into() }
}

//! Operands and attributes nobody meant: an error in words, never a panic; and what is accepted
//! can be lowered and evaluated.

use crate::cases::cases;
use crate::rng::Rng;
use crate::table::check_lowering;
use indexmap::IndexMap;
use precast_compiler::ir::{Attr, AttrMap, Graph, Region, TensorType, verify};
use precast_compiler::ops::{Input, Op};
use precast_compiler::reference::{self, Tensor};
use precast_plan::{DType, Kind};

const HOSTILE: [usize; 9] = [0, 1, 2, 3, 255, 1 << 31, 1 << 33, 1 << 62, usize::MAX];

fn random_type(rng: &mut Rng, extents: &[usize]) -> TensorType {
    let rank = rng.below(6);
    let shape: Vec<usize> = (0..rank).map(|_| *rng.pick(extents)).collect();
    TensorType::new(*rng.pick(&DType::ALL), shape)
}

/// A type near one that fits: an extent, the rank or the format is another.
fn near(rng: &mut Rng, t: &TensorType, extents: &[usize]) -> TensorType {
    let mut shape = t.shape.to_vec();
    let mut dtype = t.dtype;
    match rng.below(5) {
        0 if !shape.is_empty() => {
            let d = rng.below(shape.len());
            shape[d] = *rng.pick(extents);
        }
        1 => shape.push(*rng.pick(extents)),
        2 => {
            shape.pop();
        }
        3 => dtype = *rng.pick(&DType::ALL),
        _ => {}
    }
    TensorType::new(dtype, shape)
}

/// The operation with some number among its attributes replaced.
fn near_op(rng: &mut Rng, op: &Op, numbers: &[i64]) -> Option<Op> {
    let mut attrs: IndexMap<String, Attr> =
        op.def().attrs().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    if attrs.is_empty() {
        return Some(op.clone());
    }
    let k = rng.below(attrs.len());
    let (_, v) = attrs.get_index_mut(k)?;
    match v {
        Attr::Int(i) => *i = *rng.pick(numbers),
        Attr::Ints(v) => match rng.below(4) {
            0 => {
                v.pop();
            }
            1 => v.push(*rng.pick(numbers)),
            _ if !v.is_empty() => {
                let i = rng.below(v.len());
                v[i] = *rng.pick(numbers);
            }
            _ => {}
        },
        Attr::Real(x) => *x = *rng.pick(&[0.0, -1.0, 2.0, f64::NAN, f64::INFINITY]),
        Attr::Bool(b) => *b = !*b,
        Attr::Str(s) => *s = rng.pick(&["", "f32", "i64", "bool", "nonsense"]).to_string(),
        Attr::Word(_) | Attr::Tensor(_) => {}
    }
    Op::parse(op.name(), AttrMap(attrs)).ok()
}

fn operands(rng: &mut Rng, fit: &[&TensorType], extents: &[usize]) -> Vec<TensorType> {
    let mut x: Vec<TensorType> = fit
        .iter()
        .map(|t| if rng.chance(20) { random_type(rng, extents) } else { near(rng, t, extents) })
        .collect();
    match rng.below(10) {
        0 => x.push(random_type(rng, extents)),
        1 => {
            x.pop();
        }
        2 if !x.is_empty() => {
            // One type for all operands, which elementwise operations accept.
            let t = random_type(rng, extents);
            x = x.iter().map(|o| TensorType::new(o.dtype, t.shape.clone())).collect();
        }
        _ => {}
    }
    x
}

#[test]
fn no_type_or_attribute_makes_inference_panic() {
    let mut rng = Rng(3);
    let numbers = [0, 1, 2, 3, -1, i64::MAX, i64::MIN, 1 << 31, 1 << 33, 1 << 62];
    let mut accepted = 0;
    for case in cases() {
        for _ in 0..1500 {
            let op = match rng.chance(50) {
                true => Some(case.op.clone()),
                false => near_op(&mut rng, &case.op, &numbers),
            };
            let Some(op) = op else { continue };
            let x = operands(&mut rng, &case.types(), &HOSTILE);
            let x: Vec<&TensorType> = x.iter().collect();
            let mut g = Graph::new("fuzz");
            let mut ids = Vec::new();
            for (i, t) in x.iter().enumerate() {
                let name = format!("x{i}");
                if let Ok(v) = g.try_add(Input::new(&name, t), &[], name, Region::Forward) {
                    ids.push(v[0]);
                }
            }
            // Inference sees the types even where the graph would not hold them.
            let inferred = op.def().infer(&x);
            if ids.len() == x.len() && g.try_add(op.clone(), &ids, "node", Region::Forward).is_ok()
            {
                accepted += 1;
                let y = inferred.unwrap_or_else(|e| panic!("{op:?}: {e}"));
                check_lowering(&op, &x, &y.iter().collect::<Vec<_>>());
                op.def().flops(&x, &y.iter().collect::<Vec<_>>());
            }
        }
    }
    assert!(accepted > 10_000, "only {accepted} instances were accepted");
}

#[test]
fn what_inference_accepts_evaluates() {
    let mut rng = Rng(5);
    let numbers = [0, 1, 2, 3, 4, -1, -2];
    let mut evaluated = 0;
    for case in cases() {
        if matches!(case.op, Op::Var(_)) {
            continue;
        }
        for _ in 0..200 {
            let op = match rng.chance(50) {
                true => Some(case.op.clone()),
                false => near_op(&mut rng, &case.op, &numbers),
            };
            let Some(op) = op else { continue };
            let types = operands(&mut rng, &case.types(), &[0, 1, 2, 3, 4]);
            if types.iter().any(|t| t.shape.elements() > 1000) {
                continue;
            }
            let mut g = Graph::new("fuzz");
            let mut inputs = IndexMap::new();
            let mut ids = Vec::new();
            for (i, t) in types.iter().enumerate() {
                let name = format!("x{i}");
                let v = g.try_add(Input::new(&name, t), &[], &name, Region::Forward).unwrap();
                ids.push(v[0]);
                inputs.insert(name, values(&mut rng, t));
            }
            let Ok(y) = g.try_add(op.clone(), &ids, "node", Region::Forward) else { continue };
            if y.iter().any(|&v| g.shape(v).elements() > 1000) {
                continue;
            }
            verify::verify(&g).unwrap_or_else(|e| panic!("{op:?} of {types:?}: {e}"));
            if let Op::Input(leaf) = &op {
                inputs.insert(leaf.name.clone(), Tensor::zeros(g.ty(y[0])));
            }
            evaluated += 1;
            match reference::eval(&g, &inputs, &IndexMap::new()) {
                Ok(out) => {
                    for &v in &y {
                        assert_eq!(out.value(v).ty, *g.ty(v), "{op:?}");
                    }
                }
                // The data, not the graph, is at fault.
                Err(e) => assert!(
                    ["index", "an index does not lie in its window"]
                        .iter()
                        .any(|m| e.to_string().contains(m)),
                    "{op:?} of {types:?}: {e}"
                ),
            }
        }
    }
    assert!(evaluated > 3_000, "only {evaluated} instances were evaluated");
}

fn values(rng: &mut Rng, t: &TensorType) -> Tensor {
    let n = t.shape.elements();
    match t.kind() {
        Kind::Real => Tensor { ty: t.clone(), ..rng.reals(t.shape.clone(), -2.0, 2.0) },
        Kind::Int => {
            let v: Vec<i64> = (0..n).map(|_| rng.below(3) as i64).collect();
            Tensor::int(t.dtype, t.shape.clone(), v)
        }
        Kind::Bool => {
            Tensor::bool(t.shape.clone(), (0..n).map(|_| rng.chance(50)).collect::<Vec<_>>())
        }
    }
}

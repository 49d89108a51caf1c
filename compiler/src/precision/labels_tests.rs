//! The cut against every labelling of small random graphs.

use super::super::{Policy, PrecisionOptions, legal};
use super::*;
use crate::ir::{Region, Result_};
use crate::ops::activation::Act;
use crate::ops::{Activate, Binary, Gather, Input, MatMul, Reshape, Softmax, Transpose};
use precast_plan::{BinaryOp, Target};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Products with and without a bias, views, elementwise steps and a gather over square matrices of a side that makes
/// products and traffic cost about the same.
fn random(dice: &mut Dice) -> Graph {
    let side = [16, 64, 256][dice.roll(3)];
    let mut g = Graph::new("random");
    let add = |g: &mut Graph, op: Op, x: &[ValueId]| {
        let name = format!("n{}", g.node_count());
        g.try_add(op, x, name, Region::Forward).unwrap()[0]
    };
    let ty = TensorType::f32([side, side]);
    let ids = TensorType::new(DType::I32, [side]);
    let index = add(&mut g, Input::new("ids", &ids).into(), &[]);
    let bias = TensorType::f32([side]);
    // Computed, so that the kernel that makes it writes a narrow copy beside it.
    let bias = add(&mut g, Input::new("bias", &bias).into(), &[]);
    let bias = add(&mut g, Activate { act: Act::Relu }.into(), &[bias]);
    let mut values = vec![
        add(&mut g, Input::new("a", &ty).into(), &[]),
        add(&mut g, Input::new("b", &ty).into(), &[]),
    ];
    for _ in 0..5 {
        let a = values[dice.roll(values.len())];
        let b = values[dice.roll(values.len())];
        let v = match dice.roll(9) {
            8 => add(
                &mut g,
                MatMul { fused: Fused::BiasRelu, ..MatMul::plain() }.into(),
                &[a, b, bias],
            ),
            0..=2 => add(&mut g, MatMul::plain().into(), &[a, b]),
            3 => add(&mut g, Transpose { perm: vec![1, 0] }.into(), &[a]),
            4 => add(&mut g, Binary { f: BinaryOp::Add }.into(), &[a, b]),
            5 => add(&mut g, Activate { act: Act::Gelu }.into(), &[a]),
            6 => add(&mut g, Softmax { log: false }.into(), &[a]),
            _ => add(&mut g, Gather {}.into(), &[a, index]),
        };
        values.push(v);
    }
    let last = *values.last().unwrap();
    let flat = add(&mut g, Reshape { shape: vec![side * side] }.into(), &[last]);
    g.results.push(Result_ { name: "y".into(), value: flat });
    g
}

fn labels(m: &Model, bits: u64) -> Labels {
    let s = m.stores.len();
    Labels {
        stores: (0..s).map(|i| bits >> i & 1 == 1).collect(),
        kernels: (0..m.kernels.len()).map(|i| bits >> (s + i) & 1 == 1).collect(),
    }
}

#[test]
fn the_cut_is_the_cheapest_of_all_labels() {
    let mut dice = Dice(7);
    let (mut mixed, mut biased) = (0, 0);
    for round in 0..200 {
        let g = random(&mut dice);
        let target = Target::shipped(Target::SHIPPED[round % 6]).unwrap();
        let options = PrecisionOptions::new(Policy::Auto);
        let legal = legal::legality(&g, DType::Bf16, &options, &target).unwrap();
        let model = Model::new(&g, &legal, &Prices { target: &target }, round % 3 == 0);
        let count = model.stores.len() + model.kernels.len();
        assert!(count <= 20, "too many to enumerate");
        let cut = model.cut();
        let best = (0..1u64 << count).map(|b| model.price(&labels(&model, b))).min().unwrap();
        assert!(best < NEVER);
        assert_eq!(model.price(&cut), best, "round {round}");
        biased += library_biases(&g, &model, &cut, &target);
        differences_are_local(&model, &cut);
        mixed += usize::from(cut.kernels.contains(&true) && cut.stores.contains(&false));
    }
    assert!(mixed > 20, "the graphs do not exercise the cut: {mixed}");
    assert!(biased > 20, "few biases were cast for a library: {biased}");
}

/// What one kernel's other format, and doing without the copies of one store, change in the whole
/// price is what they change around them.
fn differences_are_local(model: &Model, l: &Labels) {
    for k in 0..model.kernels.len() {
        let mut other = l.clone();
        other.kernels[k] = !other.kernels[k];
        let part = |l: &Labels| model.around(&Changed::of(l), &[k], None) as i128;
        let whole = |l: &Labels| model.price(l) as i128;
        assert_eq!(part(&other) - part(l), whole(&other) - whole(l));
    }
    for s in 0..model.stores.len() {
        let mut other = l.clone();
        other.stores[s] = !other.stores[s];
        let part = |l: &Labels| model.around(&Changed::of(l), &[], Some(s)) as i128;
        let whole = |l: &Labels| model.price(l) as i128;
        assert_eq!(part(&other) - part(l), whole(&other) - whole(l));
    }
}

/// Checks that a library's bias is read in the format of the result, and counts those cast.
fn library_biases(g: &Graph, model: &Model, l: &Labels, target: &Target) -> usize {
    let placed = crate::precision::place::place(g, model, l);
    crate::ir::verify::verify(&placed).unwrap();
    let mut cast = 0;
    for (_, n) in placed.nodes() {
        if !matches!(&n.op, Op::MatMul(m) if m.fused.has_bias()) {
            continue;
        }
        let (bias, result) = (placed.ty(n.inputs[2]).dtype, placed.ty(n.outputs[0]).dtype);
        if !target.any_epilogue() {
            assert_eq!(bias, result, "{}", target.name);
            cast += usize::from(bias != DType::F32);
        }
    }
    cast
}

/// A gather of a mask (an embedding of positions does this) has no format to choose.
#[test]
fn a_gather_of_booleans_has_no_label() {
    let mut g = Graph::new("mask");
    let mut add =
        |op: Op, x: &[ValueId], name: &str| g.try_add(op, x, name, Region::Forward).unwrap()[0];
    let mask = TensorType::new(DType::Bool, [64, 8]);
    let mask = add(Input::new("mask", &mask).into(), &[], "mask");
    let ids = TensorType::new(DType::I32, [16]);
    let ids = add(Input::new("ids", &ids).into(), &[], "ids");
    let rows = add(Gather {}.into(), &[mask, ids], "rows");
    g.results.push(Result_ { name: "y".into(), value: rows });
    let target = Target::shipped("sm_90").unwrap();
    let options = PrecisionOptions::new(Policy::Bf16);
    let legal = legal::legality(&g, DType::Bf16, &options, &target).unwrap();
    let model = Model::new(&g, &legal, &Prices { target: &target }, true);
    let placed = crate::precision::place::place(&g, &model, &model.cut());
    crate::ir::verify::verify(&placed).unwrap();
    assert!(placed.nodes().all(|(_, n)| !matches!(n.op, Op::Cast(_))));
}

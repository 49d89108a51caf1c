//! Damaged plan files: an error or a plan that runs, never a panic.

mod common;

use common::{Builder, mlp};
use precast_plan::{Init, Plan, Role, Storage};
use precast_runtime::{Backend, CpuBackend, Phase};
use serde_json::{Value, json};

/// Every place in a value, as a path of keys.
fn paths(v: &Value, at: &mut Vec<Value>, out: &mut Vec<Vec<Value>>) {
    out.push(at.clone());
    let mut visit = |key: Value, child: &Value| {
        at.push(key);
        paths(child, at, out);
        at.pop();
    };
    match v {
        Value::Array(list) => list.iter().enumerate().for_each(|(i, c)| visit(json!(i), c)),
        Value::Object(map) => map.iter().for_each(|(k, c)| visit(json!(k), c)),
        _ => {}
    }
}

fn find<'a>(v: &'a mut Value, path: &[Value]) -> &'a mut Value {
    path.iter().fold(v, |v, key| match key {
        Value::String(k) => v.get_mut(k).unwrap(),
        k => v.get_mut(k.as_u64().unwrap() as usize).unwrap(),
    })
}

fn replacements(v: &Value) -> Vec<Value> {
    match v {
        Value::Number(n) => {
            let x = n.as_i64().unwrap_or(0);
            let around = [x + 1, x - 1, x * 2, -x, 0, 1, 7, 64, 1 << 40, i64::MAX, i64::MIN];
            let mut list: Vec<Value> = around.iter().map(|x| json!(x)).collect();
            list.extend([json!(u64::MAX), json!(0.5), json!("1"), Value::Null]);
            list
        }
        Value::String(_) => {
            vec![json!(""), json!("x"), json!("load 1"), json!("real nan"), json!(3)]
        }
        Value::Array(list) => {
            let mut out = vec![json!([]), json!({}), Value::Null];
            if let Some(first) = list.first() {
                out.push(Value::Array([list.clone(), vec![first.clone()]].concat()));
                out.push(Value::Array(list[1..].to_vec()));
                let mut reversed = list.clone();
                reversed.reverse();
                out.push(Value::Array(reversed));
            }
            out
        }
        Value::Object(map) => {
            let mut out = vec![json!({}), json!([])];
            for k in map.keys() {
                let mut less = map.clone();
                less.remove(k);
                out.push(Value::Object(less));
            }
            out
        }
        _ => vec![json!(true), json!("x")],
    }
}

#[test]
fn damaged_files_never_panic() {
    let whole: Value = serde_json::from_str(&mlp().to_json()).unwrap();
    let mut all = vec![];
    paths(&whole, &mut vec![], &mut all);
    let (mut refused, mut accepted) = (0, 0);
    for path in &all {
        let old = find(&mut whole.clone(), path).clone();
        for new in replacements(&old) {
            if new == old {
                continue;
            }
            let mut damaged = whole.clone();
            *find(&mut damaged, path) = new;
            // As if a person had written it: no digest stands in the way of validation.
            let Ok((plan, _)) = Plan::unsealed(&damaged.to_string()) else {
                refused += 1;
                continue;
            };
            match plan.validate() {
                Err(errors) => {
                    assert!(!errors.is_empty());
                    refused += 1;
                }
                Ok(()) => {
                    accepted += 1;
                    // A valid plan may be wrong, but it runs inside its memory.
                    if plan.arena_bytes + plan.persistent_bytes < 1 << 24
                        && let Ok(mut backend) = CpuBackend::new(&plan, 1)
                    {
                        backend.run(Phase::Micro).unwrap();
                        backend.run(Phase::Update).unwrap();
                    }
                }
            }
            let _ = plan.to_string();
        }
    }
    assert!(refused > 3 * accepted && accepted > 0, "{refused} refused, {accepted} accepted");
}

#[test]
fn truncated_files_are_errors() {
    let text = mlp().to_json();
    for n in (0..text.len() - 1).step_by(61) {
        assert!(Plan::from_json(&text[..n]).is_err());
    }
    let newer = text.replacen("\"version\": 1", "\"version\": 9", 1);
    assert!(Plan::from_json(&newer).unwrap_err().contains("version 9"));
}

fn faults(change: impl FnOnce(&mut Plan)) -> Vec<String> {
    let mut plan = mlp();
    change(&mut plan);
    plan.validate().err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn offset<'a>(plan: &'a mut Plan, name: &str) -> &'a mut u64 {
    match &mut plan.tensors.iter_mut().find(|t| t.name == name).unwrap().storage {
        Storage::Arena { offset }
        | Storage::Persistent { offset, .. }
        | Storage::Input { offset } => offset,
    }
}

#[test]
fn each_rule_has_a_message() {
    assert_eq!(mlp().validate(), Ok(()));
    let one = |change: &dyn Fn(&mut Plan), want: &str| {
        let list = faults(|p| change(p));
        assert!(list.iter().any(|e| e.contains(want)), "{want}: {list:#?}");
    };
    one(&|p| *offset(p, "h") += 4, "is not a multiple of 64");
    one(&|p| *offset(p, "h") += 1 << 30, "exceed the region");
    one(&|p| *offset(p, "w2") = 0, "overlaps `w1`");
    one(&|p| p.tensors[1].name = "in.x".into(), "have the same name");
    one(&|p| p.tensors[0].shape[0] = u64::MAX, "at most");
    one(&|p| p.micro.swap(0, 1), "reads `h`, which no step has written");
    // `dp` in the memory of `h`, which is read later.
    one(
        &|p| {
            let h = *offset(p, "h");
            *offset(p, "dp") = h;
        },
        "alive at step",
    );
    one(&|p| p.results[0].tensor = 999, "there is no tensor 999");
    one(&|p| p.accumulate = 0, "accumulate is 0");
    // A report would show the first of its elements.
    let tensor = |p: &Plan, name: &str| p.tensors.iter().position(|t| t.name == name).unwrap();
    one(
        &|p| {
            let h = tensor(p, "h") as u32;
            p.results.iter_mut().find(|r| r.name == "loss").unwrap().tensor = h;
        },
        "`h` is not one number",
    );
    let begins = |p: &mut Plan, name: &str, role: Role, init: Init| {
        let at = tensor(p, name);
        let Storage::Persistent { offset, .. } = p.tensors[at].storage else { panic!("{name}") };
        p.tensors[at].storage = Storage::Persistent { offset, role, init };
    };
    let weight = Role::Parameter;
    one(&|p| begins(p, "w1", weight, Init::Value(1e39)), "the initial value 1e39 is none of f32");
    one(
        &|p| begins(p, "w1", weight, Init::Value(f64::NAN)),
        "the initial value NaN is none of f32",
    );
    let copy = Role::WeightCopy;
    one(
        &|p| begins(p, "w1", copy, Init::Zeros),
        "a copy of a weight that begins as something else",
    );
    one(&|p| p.programs[0].outputs[0].reg = 9, "which does not exist");
    let rows = |p: &mut Plan, step: usize, f: &dyn Fn(&mut precast_plan::Instance)| {
        if let precast_plan::Kernel::Rows(r) = &mut p.update[step].kernel {
            f(&mut r.instances[0]);
        }
    };
    one(&|p| rows(p, 2, &|i| i.outputs[0].strides[0] = -1), "reaches elements");
    one(&|p| rows(p, 2, &|i| i.outputs[0].strides[0] = 0), "more than once");
    one(&|p| rows(p, 2, &|i| i.inputs[0].strides[0] = 0), "through different maps");
    one(&|p| rows(p, 2, &|i| i.outputs[1].tensor = i.outputs[0].tensor), "which overlap");
    one(&|p| rows(p, 2, &|i| (i.outputs[0].tensor, i.dims[0]) = (0, 100)), "writes the input");
    one(&|p| rows(p, 2, &|i| i.dims[0] = 1 << 41), "reaches elements");
    one(&|p| rows(p, 0, &|i| i.reduced = 0), "reduces no axis");
    one(&|p| rows(p, 0, &|i| i.inputs.clear()), "binds other ports");
    let gemm = |p: &mut Plan, f: &dyn Fn(&mut precast_plan::Gemm)| {
        if let precast_plan::Kernel::Gemm(g) = &mut p.micro[0].kernel {
            f(g);
        }
    };
    one(&|p| gemm(p, &|g| g.k += 1), "reaches elements");
    one(&|p| gemm(p, &|g| g.epilogue.program = 77), "there is no program 77");
    let sums = |p: &mut Plan, name: &str, batch: [u64; 2]| {
        let tensor = p.tensors.iter().position(|t| t.name == name).unwrap() as u32;
        let out = precast_plan::Access { tensor, offset: 0, strides: vec![1] };
        let operand = precast_plan::Operand::B;
        gemm(p, &|g| {
            g.batch = batch;
            g.epilogue.kind = precast_plan::EpilogueKind::Store;
            g.sums = Some(precast_plan::OperandSums { operand, out: out.clone() });
        });
    };
    one(&|p| sums(p, "in.x", [1, 1]), "writes the input");
    one(&|p| sums(p, "count", [1, 1]), "is i32, not f32");
    one(&|p| sums(p, "w2", [2, 1]), "does not sum an operand");
    one(
        &|p| gemm(p, &|g| g.epilogue.kind = precast_plan::EpilogueKind::Accumulate),
        "does not add its sums to what stands there",
    );
    one(
        &|p| {
            let ema = p.tensors.iter_mut().find(|t| t.name == "ema.w2").unwrap();
            if let Storage::Persistent { init, .. } = &mut ema.storage
                && let precast_plan::Init::CopyOf(w2) = *init
            {
                *init = precast_plan::Init::ChannelsLastOf(w2);
            }
        },
        "has another shape or kind",
    );
    let several = faults(|p| {
        *offset(p, "h") += 4;
        p.accumulate = 0;
    });
    assert!(several.len() >= 2, "all faults are collected: {several:?}");
}

#[test]
fn the_text_form() {
    insta::assert_snapshot!(mlp().to_string());
}

/// What kernels ask of their operands (`plan/src/needs.rs`), for every kernel that asks.
#[test]
fn operands_that_kernels_do_not_take() {
    use precast_plan::{
        Access, Attention, AttentionGrad, ConvGeometry, DType, Gather, Kernel, MaxPool, Role,
    };
    let refused = |make: &dyn Fn(&mut Builder) -> Kernel| -> String {
        let mut b = Builder::new();
        let kernel = make(&mut b);
        b.plan.micro.push(Builder::step("step", kernel));
        let faults = b.plan.validate().expect_err("a kernel does not take this");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let keep = |b: &mut Builder, name: &str, dtype: DType, shape: &[u64]| -> Access {
        let t = b.keep(name, dtype, shape, Role::Buffer, precast_plan::Init::Zeros);
        b.all(t)
    };
    let gather = |b: &mut Builder, [table, ids, out]: [DType; 3]| Gather {
        rows: 3,
        width: 4,
        table_rows: 5,
        table: keep(b, "table", table, &[5, 4]),
        ids: keep(b, "ids", ids, &[3]),
        out: keep(b, "out", out, &[3, 4]),
    };
    use DType::{Bf16, Bool, F32, I32, I64};
    let said = refused(&|b| Kernel::Gather(gather(b, [F32, Bool, F32])));
    assert!(said.contains("ids is bool, not i32 or i64 or u8"), "{said}");
    let said = refused(&|b| Kernel::Gather(gather(b, [I64, I32, I32])));
    assert!(said.contains("out is i32, but the table is i64"), "{said}");
    let said = refused(&|b| Kernel::ScatterAdd(gather(b, [Bf16, I32, F32])));
    assert!(said.contains("the table is bf16, not f32"), "{said}");
    let pool = |b: &mut Builder, y: DType, index: DType| MaxPool {
        geometry: ConvGeometry {
            n: 1,
            c: 2,
            h: 4,
            w: 4,
            o: 2,
            kh: 2,
            kw: 2,
            oh: 2,
            ow: 2,
            stride: [2, 2],
            pad: [0; 4],
            dilation: [1, 1],
            groups: 1,
        },
        x: keep(b, "x", F32, &[1, 2, 4, 4]),
        y: keep(b, "y", y, &[1, 2, 2, 2]),
        index: keep(b, "index", index, &[1, 2, 2, 2]),
    };
    let said = refused(&|b| Kernel::MaxPool(pool(b, Bf16, DType::U8)));
    assert!(said.contains("y is bf16, but x is f32"), "{said}");
    let said = refused(&|b| Kernel::MaxPoolGrad(pool(b, F32, I32)));
    assert!(said.contains("index is i32, not u8"), "{said}");
    let attention = |b: &mut Builder, lse: [i64; 3], low: [i64; 3]| {
        let mut row = |name: &str| keep(b, name, F32, &[1, 1, 3, 4]);
        let (q, k, v, o) = (row("q"), row("k"), row("v"), row("o"));
        let lse = Access { strides: lse.to_vec(), ..keep(b, "lse", F32, &[1, 1, 6]) };
        let low = Access { strides: low.to_vec(), ..keep(b, "low", F32, &[1, 1, 6]) };
        let (batch, heads, tq, tk, d) = (1, 1, 3, 3, 4);
        let (scale, causal, mask) = (1.0, false, None);
        Attention {
            batch,
            heads,
            tq,
            tk,
            d,
            scale,
            causal,
            mask,
            q,
            k,
            v,
            o,
            lse,
            low,
            fill: None,
            safe: false,
        }
    };
    let (dense, gaps) = ([3, 3, 1], [6, 6, 2]);
    let said = refused(&|b| Kernel::Attention(attention(b, gaps, dense)));
    assert!(said.contains("lse is not dense") && !said.contains("low is"), "{said}");
    let said = refused(&|b| Kernel::Attention(attention(b, dense, gaps)));
    assert!(said.contains("low is not dense") && !said.contains("lse is"), "{said}");
    let said = refused(&|b| {
        let forward = attention(b, dense, gaps);
        let mut row = |name: &str| keep(b, name, F32, &[1, 1, 3, 4]);
        let (d_o, d_q, d_k, d_v) = (row("d_o"), row("d_q"), row("d_k"), row("d_v"));
        Kernel::AttentionGrad(AttentionGrad { forward, d_o, d_q, d_k, d_v })
    });
    assert!(said.contains("low is not dense"), "{said}");
    // An axis of one element has no step, so that any stride will do.
    let mut b = Builder::new();
    let kernel = Kernel::Attention(attention(&mut b, [0, 7, 1], [5, 0, 1]));
    b.plan.micro.push(Builder::step("step", kernel));
    assert_eq!(b.plan.validate(), Ok(()));
}

/// The same, of kernels along one axis and of recurrences.
#[test]
fn operands_that_kernels_along_an_axis_do_not_take() {
    use DType::{Bf16, Bool, F32, I32, I64};
    use precast_plan::{
        CumSum, DType, Kernel, LastIndex, Recurrence, RecurrenceGrad, RecurrenceShape,
        RecurrentCell, Role, Squash, TopK, Way,
    };
    let refused = |make: &dyn Fn(&mut Builder) -> Kernel| -> String {
        let mut b = Builder::new();
        let kernel = make(&mut b);
        b.plan.micro.push(Builder::step("step", kernel));
        let faults = b.plan.validate().expect_err("a kernel does not take this");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let keep = |b: &mut Builder, name: &str, dtype: DType, shape: &[u64]| {
        let t = b.keep(name, dtype, shape, Role::Buffer, precast_plan::Init::Zeros);
        b.all(t)
    };
    let last = |b: &mut Builder, ids: DType, out: DType, step: i64| LastIndex {
        rows: 3,
        table_rows: 5,
        ids: keep(b, "ids", ids, &[3]),
        out: precast_plan::Access { strides: vec![step], ..keep(b, "out", out, &[10]) },
    };
    let said = refused(&|b| Kernel::LastIndex(last(b, Bool, I32, 1)));
    assert!(said.contains("ids is bool, not i32 or i64 or u8"), "{said}");
    let said = refused(&|b| Kernel::LastIndex(last(b, I32, I64, 1)));
    assert!(said.contains("out is i64, not i32"), "{said}");
    let said = refused(&|b| Kernel::LastIndex(last(b, I32, I32, 2)));
    assert!(said.contains("out is not dense"), "{said}");
    let sums = |b: &mut Builder, x: DType, y: DType| CumSum {
        dims: [2, 3, 4],
        exclusive: false,
        reverse: false,
        x: keep(b, "x", x, &[2, 3, 4]),
        y: keep(b, "y", y, &[2, 3, 4]),
    };
    let said = refused(&|b| Kernel::CumSum(sums(b, I64, I64)));
    assert!(said.contains("running sums is i64, not f32 or f16 or bf16 or i32"), "{said}");
    let said = refused(&|b| Kernel::CumSum(sums(b, F32, I32)));
    assert!(said.contains("y is i32, not real"), "{said}");
    let top = |b: &mut Builder, index: DType, k: u64| TopK {
        dims: [2, 3, 4],
        k,
        largest: true,
        x: keep(b, "x", F32, &[2, 3, 4]),
        index: keep(b, "index", index, &[2, 4, 4]),
    };
    let said = refused(&|b| Kernel::TopK(top(b, I64, 2)));
    assert!(said.contains("index is i64, not i32"), "{said}");
    let said = refused(&|b| Kernel::TopK(top(b, I32, 4)));
    assert!(said.contains("the 4 largest of 3 elements"), "{said}");

    let shape = || RecurrenceShape {
        cell: RecurrentCell::GruResetAfter,
        squash: [Squash::Sigmoid, Squash::Tanh, Squash::Tanh],
        way: Way::Forward,
        steps: 3,
        batch: 2,
        hidden: 4,
    };
    let forward = |b: &mut Builder, kept: DType, lengths: DType| {
        let s = shape();
        Recurrence {
            gates: keep(b, "gates", Bf16, &s.gates_dims()),
            matrix: keep(b, "matrix", F32, &s.matrix_dims()),
            states: keep(b, "states", F32, &s.states_dims()),
            bias: Some(keep(b, "bias", F32, &s.bias_dims())),
            peephole: None,
            lengths: Some(keep(b, "lengths", lengths, &[2])),
            y: keep(b, "y", Bf16, &s.y_dims()),
            kept: keep(b, "kept", kept, &s.kept_dims()),
            before: keep(b, "before", F32, &s.before_dims()),
            shape: s,
        }
    };
    let said = refused(&|b| Kernel::Recurrence(forward(b, Bf16, I32)));
    assert!(said.contains("kept is bf16, not f32"), "{said}");
    let said = refused(&|b| Kernel::Recurrence(forward(b, F32, DType::U8)));
    assert!(said.contains("lengths is u8, not i32 or i64"), "{said}");
    for (name, change) in [
        ("gates", &(|r: &mut Recurrence| r.gates.strides.swap(0, 1)) as &dyn Fn(&mut Recurrence)),
        ("matrix", &|r| r.matrix.strides.swap(1, 2)),
        ("bias", &|r| r.bias.as_mut().unwrap().strides[1] = 0),
        ("lengths", &|r| r.lengths.as_mut().unwrap().strides[0] = -1),
        ("before", &|r| r.before.strides[3] = 2),
    ] {
        let said = refused(&|b| {
            let mut r = forward(b, F32, I64);
            change(&mut r);
            Kernel::Recurrence(r)
        });
        assert!(said.contains(&format!("{name} is not dense")), "{name}: {said}");
    }
    let back = |b: &mut Builder, d_states: DType| {
        let s = shape();
        RecurrenceGrad {
            matrix: keep(b, "matrix", F32, &s.matrix_dims()),
            kept: keep(b, "kept", F32, &s.kept_dims()),
            before: keep(b, "before", F32, &s.before_dims()),
            d_y: keep(b, "d_y", Bf16, &s.y_dims()),
            peephole: None,
            lengths: None,
            d_gates: keep(b, "d_gates", Bf16, &s.gates_dims()),
            d_states: keep(b, "d_states", d_states, &s.states_dims()),
            shape: s,
        }
    };
    let said = refused(&|b| Kernel::RecurrenceGrad(back(b, Bf16)));
    assert!(said.contains("d_states is bf16, not f32"), "{said}");
    let said = refused(&|b| {
        let mut g = back(b, F32);
        g.d_y.strides.swap(0, 1);
        Kernel::RecurrenceGrad(g)
    });
    assert!(said.contains("d_y is not dense"), "{said}");
    let said = refused(&|b| {
        let mut g = back(b, F32);
        g.shape.hidden = u64::MAX;
        Kernel::RecurrenceGrad(g)
    });
    assert!(said.contains("a recurrence has an empty or huge size"), "{said}");
}

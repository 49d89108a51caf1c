//! The mapping against the meaning of a plan's product, on memory filled with small integers.

use super::*;
use precast_plan::{Epilogue, InPort, OutPort, Storage, TargetSummary, Tensor};

/// Memory of the tests: tensor `t` begins at `SIZE * t`.
const SIZE: usize = 4096;

struct Case {
    g: Gemm,
    plan: Plan,
}

fn access(tensor: u32, offset: u64, strides: [i64; 4]) -> Access {
    Access { tensor, offset, strides: strides.to_vec() }
}

/// Tensors 0 (a), 1 (b), 2 (d), 3 (another input), 4 (a second result).
fn case(batch: [u64; 2], (m, n, k): (u64, u64, u64), strides: [[i64; 4]; 3]) -> Case {
    let tensor = |name: &str, dtype: DType| Tensor {
        name: name.into(),
        dtype,
        shape: vec![SIZE as u64],
        storage: Storage::Input { offset: 0 },
    };
    let plan = Plan {
        version: precast_plan::VERSION,
        model: String::new(),
        target: TargetSummary { name: "sm_90".into(), device: "cuda".into() },
        tensors: ["a", "b", "d", "x", "aux"].map(|n| tensor(n, DType::F32)).to_vec(),
        programs: vec![Program {
            name: "store".into(),
            inputs: vec![InPort { dtype: DType::F32, row: false }],
            code: vec![Instr::Load { port: 0 }],
            outputs: vec![OutPort { dtype: DType::F32, reg: 0 }],
        }],
        micro: vec![],
        update: vec![],
        eval: vec![],
        accumulate: 1,
        arena_bytes: 0,
        arena_bound_bytes: 0,
        persistent_bytes: 0,
        results: vec![],
        eval_results: vec![],
        classes: vec![],
        summary: precast_plan::Summary::default(),
        journal: vec![],
    };
    let [a, b, d] = strides;
    let g = Gemm {
        batch,
        m,
        n,
        k,
        a: access(0, 3, a),
        b: access(1, 5, b),
        math: Math::Exact,
        epilogue: Epilogue {
            kind: EpilogueKind::Store,
            scale: None,
            program: 0,
            inputs: vec![],
            outputs: vec![access(2, 7, d)],
        },
        sums: None,
    };
    Case { g, plan }
}

impl Case {
    /// Ends the product with a program over one other input (tensor 3).
    fn end(mut self, kind: EpilogueKind, code: &str, input: Access) -> Case {
        let program = &mut self.plan.programs[0];
        program.inputs.push(InPort { dtype: DType::F32, row: false });
        program.code = code.split('|').map(|l| l.parse().unwrap()).collect();
        program.outputs[0].reg = program.code.len() as u32 - 1;
        self.g.epilogue.kind = kind;
        self.g.epilogue.inputs = vec![input];
        self
    }

    fn dtypes(mut self, dtype: DType) -> Case {
        self.plan.tensors.iter_mut().for_each(|t| t.dtype = dtype);
        self
    }
}

fn filled() -> Vec<f64> {
    (0..5 * SIZE).map(|i| ((i * 7919 + i / 13) % 17) as f64 - 8.0).collect()
}

fn index(place: Place, dtype: DType) -> usize {
    match place {
        Place::Tensor { tensor, offset } => SIZE * tensor as usize + offset as usize / dtype.size(),
        Place::Scratch { .. } => panic!("the tests use no scratch memory"),
    }
}

/// What cuBLASLt is documented to do.
fn run(memory: &mut [f64], p: &Product) {
    let element = |memory: &[f64], x: &Matrix, batch: u64, i: u64, j: u64| {
        let (row, column) = if x.transposed { (j, i) } else { (i, j) };
        assert!(row < x.rows && column < x.columns, "outside of {x:?}");
        let at = batch * x.batch_stride + row + column * x.ld;
        memory[index(x.place, x.dtype) + at as usize]
    };
    let alpha = p.alpha.map_or(1.0, |a| memory[index(a, DType::F32)]);
    let before = memory.to_vec();
    for batch in 0..p.batch {
        for i in 0..p.m {
            for j in 0..p.n {
                let mut x: f64 = (0..p.k)
                    .map(|k| {
                        element(&before, &p.a, batch, i, k) * element(&before, &p.b, batch, k, j)
                    })
                    .sum();
                x *= alpha;
                let at = (batch * p.d.batch_stride + i + j * p.d.ld) as usize;
                if let Some(c) = p.c {
                    x += before[index(c, p.d.dtype) + at];
                }
                match p.fused {
                    Fused::None | Fused::Sums { .. } => {}
                    Fused::Bias(v) => x += before[index(v.place, v.dtype) + i as usize],
                    Fused::BiasRelu(v) => {
                        x = (x + before[index(v.place, v.dtype) + i as usize]).max(0.0);
                    }
                    Fused::BiasGeluTanhAux { bias, aux, aux_ld, aux_batch_stride } => {
                        x += before[index(bias.place, bias.dtype) + i as usize];
                        let at = (batch * aux_batch_stride + i + j * aux_ld) as usize;
                        memory[index(aux, p.d.dtype) + at] = x;
                        x = x.tanh();
                    }
                    Fused::GeluTanhGrad { aux, aux_ld, aux_batch_stride } => {
                        let at = (batch * aux_batch_stride + i + j * aux_ld) as usize;
                        // A stand-in for the derivative that small integers keep exact.
                        x *= before[index(aux, p.d.dtype) + at];
                    }
                }
                memory[index(p.d.place, p.d.dtype) + at] = x;
            }
        }
    }
    if let Fused::Sums { of_a, vector } = p.fused {
        for i in 0..if of_a { p.m } else { p.n } {
            let of = |k| match of_a {
                true => element(&before, &p.a, 0, i, k),
                false => element(&before, &p.b, 0, k, i),
            };
            memory[index(vector.place, vector.dtype) + i as usize] = (0..p.k).map(of).sum();
        }
    }
}

/// What the plan means; `finish(sum, other input, d before)`.
fn meant(memory: &mut [f64], c: &Case, finish: impl Fn(f64, f64) -> f64) {
    let g = &c.g;
    let at = |a: &Access, i: [u64; 4]| {
        let steps: i64 = i.iter().zip(&a.strides).map(|(&i, &s)| i as i64 * s).sum();
        SIZE * a.tensor as usize + (a.offset as i64 + steps) as usize
    };
    let before = memory.to_vec();
    for b0 in 0..g.batch[0] {
        for b1 in 0..g.batch[1] {
            for m in 0..g.m {
                for n in 0..g.n {
                    let sum: f64 = (0..g.k)
                        .map(|k| {
                            before[at(&g.a, [b0, b1, m, k])] * before[at(&g.b, [b0, b1, k, n])]
                        })
                        .sum();
                    let i = [b0, b1, m, n];
                    let other = g.epilogue.inputs.first().map_or(0.0, |a| before[at(a, i)]);
                    memory[at(&g.epilogue.outputs[0], i)] = finish(sum, other);
                }
            }
        }
    }
    let Some(s) = &g.sums else { return };
    for i in 0..if s.operand == Operand::A { g.m } else { g.n } {
        let of = |k| match s.operand {
            Operand::A => before[at(&g.a, [0, 0, i, k])],
            Operand::B => before[at(&g.b, [0, 0, k, i])],
        };
        let to = SIZE * s.out.tensor as usize + (s.out.offset + i) as usize;
        memory[to] = (0..g.k).map(of).sum();
    }
}

fn agree(c: &Case, count: usize, finish: impl Fn(f64, f64) -> f64) {
    let list = fused(&c.plan, &c.g).expect("fits");
    assert_eq!(list.len(), count);
    let (mut got, mut want) = (filled(), filled());
    list.iter().for_each(|p| run(&mut got, p));
    meant(&mut want, c, finish);
    assert!(got == want, "{:#?}", list[0]);
}

#[test]
fn every_order_of_both_operands_and_the_result_is_found() {
    let (m, n, k) = (3, 4, 5);
    for a in [[0, 0, 5, 1], [0, 0, 1, 3], [0, 0, 9, 1], [0, 0, 1, 8]] {
        for b in [[0, 0, 4, 1], [0, 0, 1, 5], [0, 0, 6, 1]] {
            for d in [[0, 0, 4, 1], [0, 0, 1, 3], [0, 0, 11, 1]] {
                agree(&case([1, 1], (m, n, k), [a, b, d]), 1, |x, _| x);
            }
        }
    }
}

#[test]
fn extents_of_one_do_not_need_strides() {
    for (m, n, k) in [(1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 5), (1, 1, 1)] {
        let a = [0, 0, if m == 1 { 0 } else { k as i64 }, 1];
        let b = [0, 0, if k == 1 { 0 } else { n as i64 }, 1];
        agree(&case([1, 1], (m, n, k), [a, b, [0, 0, n as i64, 1]]), 1, |x, _| x);
    }
}

#[test]
fn operands_are_summed_beside_the_product() {
    let (m, n, k) = (3, 4, 5);
    for a in [[0, 0, 5, 1], [0, 0, 1, 3]] {
        for b in [[0, 0, 4, 1], [0, 0, 1, 5]] {
            for d in [[0, 0, 4, 1], [0, 0, 1, 3]] {
                for operand in [Operand::A, Operand::B] {
                    let mut c = case([1, 1], (m, n, k), [a, b, d]);
                    let out = Access { tensor: 4, offset: 3, strides: vec![1] };
                    c.g.sums = Some(precast_plan::OperandSums { operand, out });
                    agree(&c, 1, |x, _| x);
                    // The library's vector is dense, and of the result's format.
                    let mut apart = c.g.clone();
                    apart.sums.as_mut().unwrap().out.strides[0] = 2;
                    assert!(fused(&c.plan, &apart).is_none());
                    c.plan.tensors[4].dtype = DType::Bf16;
                    assert!(fused(&c.plan, &c.g).is_none());
                }
            }
        }
    }
}

#[test]
fn batches_are_joined_where_they_can_be_and_looped_over_where_not() {
    let (m, n, k) = (2, 3, 2);
    // Dense over both axes: one call. An operand that all matrices share has stride 0.
    agree(&case([2, 3], (m, n, k), [[12, 4, 2, 1], [0, 0, 3, 1], [18, 6, 3, 1]]), 1, |x, _| x);
    // Heads inside of positions: b0 strides skip whole sequences, b1 strides a head.
    let heads = [[2 * 6, 2, 6, 1], [24, 6, 3, 1], [18, 6, 3, 1]];
    agree(&case([2, 3], (m, n, k), heads), 2, |x, _| x);
    let c = case([4, 3], (m, n, k), [[8, 40, 2, 1], [24, 6, 3, 1], [18, 6, 3, 1]]);
    agree(&c, 3, |x, _| x);
    agree(&case([3, 1], (m, n, k), [[4, 0, 2, 1], [6, 1, 3, 1], [6, 9, 3, 1]]), 1, |x, _| x);
}

#[test]
fn biases_go_along_the_rows_of_the_result() {
    let dense = [[0, 0, 5, 1], [0, 0, 4, 1], [0, 0, 4, 1]];
    let bias = || access(3, 2, [0, 0, 0, 1]);
    let c = case([1, 1], (3, 4, 5), dense);
    agree(&c.end(EpilogueKind::Bias, "load 0|load 1|add %0 %1", bias()), 1, |x, b| x + b);
    let relu = "load 0|load 1|add %0 %1|real 0.0|max %2 %3";
    let c = case([1, 1], (3, 4, 5), dense).end(EpilogueKind::BiasRelu, relu, bias());
    agree(&c, 1, |x, b| (x + b).max(0.0));
    // A transposed result has its bias along columns, which cuBLASLt cannot add.
    let transposed = [dense[0], dense[1], [0, 0, 1, 3]];
    let c = case([1, 1], (3, 4, 5), transposed);
    let c = c.end(EpilogueKind::Bias, "load 0|load 1|add %0 %1", bias());
    assert_eq!(fused(&c.plan, &c.g), None);
    assert!(plain(&c.plan, &c.g, 0).is_some());
}

#[test]
fn a_bias_has_the_format_of_the_result() {
    let dense = [[0, 0, 5, 1], [0, 0, 8, 1], [0, 0, 8, 1]];
    for (kind, code) in [
        (EpilogueKind::Bias, "load 0|load 1|add %0 %1"),
        (EpilogueKind::BiasRelu, "load 0|load 1|add %0 %1|real 0.0|max %2 %3"),
    ] {
        let c = case([1, 1], (3, 8, 5), dense).dtypes(DType::Bf16);
        let mut c = c.end(kind, code, access(3, 2, [0, 0, 0, 1]));
        assert!(fused(&c.plan, &c.g).is_some(), "{kind:?}");
        c.plan.tensors[3].dtype = DType::F32;
        assert_eq!(fused(&c.plan, &c.g), None, "{kind:?}: f32 to a bf16 result");
        c.plan.tensors[2].dtype = DType::F32;
        assert!(fused(&c.plan, &c.g).is_some(), "{kind:?}: all but the operands in f32");
        c.plan.tensors[3].dtype = DType::Bf16;
        assert_eq!(fused(&c.plan, &c.g), None, "{kind:?}: bf16 to an f32 result");
    }
}

#[test]
fn sums_are_added_to_what_lies_in_the_same_order() {
    let strides = [[12, 4, 2, 1], [18, 6, 3, 1], [18, 6, 3, 1]];
    let add = "load 0|load 1|add %1 %0";
    let c = case([2, 3], (2, 3, 2), strides);
    let c = c.end(EpilogueKind::Program, add, access(3, 1, [18, 6, 3, 1]));
    agree(&c, 1, |x, y| x + y);
    let c = case([2, 3], (2, 3, 2), strides);
    let c = c.end(EpilogueKind::Program, add, access(3, 1, [18, 6, 1, 2]));
    assert_eq!(fused(&c.plan, &c.g), None, "another order");
}

#[test]
fn gradients_are_added_where_they_stand() {
    let add = "load 0|load 1|add %1 %0";
    // Rows of the result along n, and along m as of a product that is computed turned.
    for d in [[18, 6, 3, 1], [18, 6, 1, 2]] {
        let strides = [[12, 4, 2, 1], [18, 6, 3, 1], d];
        let c = case([2, 3], (2, 3, 2), strides);
        let c = c.end(EpilogueKind::Accumulate, add, access(2, 7, d));
        agree(&c, 1, |x, y| x + y);
        let calls = fused(&c.plan, &c.g).expect("found");
        assert!(calls.iter().all(|p| p.c == Some(p.d.place)), "in place: {calls:?}");
    }
    // The sums of an operand beside it are stored, not added.
    let strides = [[0, 0, 5, 1], [0, 0, 4, 1], [0, 0, 4, 1]];
    let mut c = case([1, 1], (3, 4, 5), strides);
    c = c.end(EpilogueKind::Accumulate, add, access(2, 7, strides[2]));
    let out = Access { tensor: 4, offset: 2, strides: vec![1] };
    c.g.sums = Some(precast_plan::OperandSums { operand: Operand::B, out });
    agree(&c, 1, |x, y| x + y);
    // FP8's factor comes first.
    let mut c = case([1, 1], (3, 4, 5), strides).end(
        EpilogueKind::Accumulate,
        "load 0|load 2|mul %0 %1|load 1|add %2 %3",
        access(2, 7, strides[2]),
    );
    c.plan.programs[0].inputs.push(InPort { dtype: DType::F32, row: false });
    c.g.epilogue.inputs.push(access(3, 9, [0; 4]));
    c.g.epilogue.scale = Some(1);
    let [p] = &fused(&c.plan, &c.g).expect("found")[..] else { panic!("one call") };
    assert_eq!(p.alpha, Some(Place::Tensor { tensor: 3, offset: 36 }));
    assert_eq!(p.c, Some(p.d.place));
    // What is not where the result goes is another matter.
    let c = case([2, 3], (2, 3, 2), [[12, 4, 2, 1], [18, 6, 3, 1], [18, 6, 3, 1]]);
    let c = c.end(EpilogueKind::Accumulate, add, access(3, 7, [18, 6, 3, 1]));
    assert_eq!(fused(&c.plan, &c.g), None);
}

#[test]
fn a_factor_of_one_element_becomes_alpha() {
    let strides = [[0, 0, 5, 1], [0, 0, 4, 1], [0, 0, 4, 1]];
    let scale = "load 0|load 1|mul %0 %1";
    let c = case([1, 1], (3, 4, 5), strides);
    agree(&c.end(EpilogueKind::Program, scale, access(3, 9, [0; 4])), 1, |x, y| x * y);
    let c = case([1, 1], (3, 4, 5), strides);
    let c = c.end(EpilogueKind::Program, scale, access(3, 9, [0, 0, 0, 1]));
    assert_eq!(fused(&c.plan, &c.g), None, "a vector is no factor");
}

#[test]
fn the_gelu_by_tanh_keeps_its_argument_and_the_one_by_erf_is_never_asked_for() {
    let strides = [[0, 0, 5, 1], [0, 0, 8, 1], [0, 0, 8, 1]];
    let make = |kind| {
        let mut c = case([1, 1], (3, 8, 5), strides).dtypes(DType::Bf16);
        c = c.end(kind, "load 0|load 1|add %0 %1|tanh %2", access(3, 2, [0, 0, 0, 1]));
        c.plan.programs[0].outputs =
            vec![OutPort { dtype: DType::Bf16, reg: 3 }, OutPort { dtype: DType::Bf16, reg: 2 }];
        c.g.epilogue.outputs.push(access(4, 0, [0, 0, 8, 1]));
        c
    };
    let c = make(EpilogueKind::BiasGeluTanhAux);
    let list = fused(&c.plan, &c.g).unwrap();
    let mut memory = filled();
    run(&mut memory, &list[0]);
    let mut want = filled();
    meant(&mut want, &c, |x, b| (x + b).tanh());
    let results = 2 * SIZE..3 * SIZE;
    assert_eq!(memory[results.clone()], want[results]);
    assert_eq!(memory[4 * SIZE + 9].tanh(), memory[2 * SIZE + 7 + 9]);
    let c = make(EpilogueKind::BiasGeluAux);
    assert_eq!(fused(&c.plan, &c.g), None);
    // f32 would show the library's approximate tanh.
    let c = make(EpilogueKind::BiasGeluTanhAux).dtypes(DType::F32);
    assert_eq!(fused(&c.plan, &c.g), None);
}

/// A product with the derivative of a GELU behind it; its argument (tensor 3) lies as the result.
fn derivative(batch: [u64; 2], (m, n, k): (u64, u64, u64), strides: [[i64; 4]; 3]) -> Case {
    let c = case(batch, (m, n, k), strides).dtypes(DType::F16);
    c.end(EpilogueKind::GeluTanhGrad, "load 0|load 1|mul %0 %1", access(3, 8, strides[2]))
}

#[test]
fn the_derivative_of_a_gelu_is_taken_at_what_lies_as_the_result() {
    let (a, b) = ([0, 0, 5, 1], [0, 0, 8, 1]);
    agree(&derivative([1, 1], (3, 8, 5), [a, b, [0, 0, 8, 1]]), 1, |x, y| x * y);
    // In the other order; with gaps between lines; a single row.
    agree(&derivative([1, 1], (8, 3, 5), [a, [0, 0, 3, 1], [0, 0, 1, 8]]), 1, |x, y| x * y);
    agree(&derivative([1, 1], (3, 8, 5), [a, b, [0, 0, 16, 1]]), 1, |x, y| x * y);
    agree(&derivative([1, 1], (1, 8, 5), [[0, 0, 0, 1], b, [0, 0, 0, 1]]), 1, |x, y| x * y);
    // Batches that are one call, and that are many.
    let dense = [[30, 10, 5, 1], [0, 0, 8, 1], [48, 16, 8, 1]];
    agree(&derivative([2, 3], (2, 8, 5), dense), 1, |x, y| x * y);
    let heads = [[10, 20, 5, 1], [0, 0, 8, 1], [16, 32, 8, 1]];
    agree(&derivative([2, 3], (2, 8, 5), heads), 2, |x, y| x * y);
}

#[test]
fn a_derivative_that_cublaslt_has_not_is_refused() {
    let lies = [[0, 0, 5, 1], [0, 0, 8, 1], [0, 0, 8, 1]];
    let make = || derivative([1, 1], (3, 8, 5), lies);
    let refused = |c: &Case, why: &str| {
        assert_eq!(fused(&c.plan, &c.g), None, "{why}");
        assert_eq!(why_apart(&c.plan, &c.g), why);
        // The sums and the derivative are two kernels then.
        assert!(plain(&c.plan, &c.g, 0).is_some(), "{why}");
    };
    let c = make();
    assert!(fused(&c.plan, &c.g).is_some());
    refused(&make().dtypes(DType::F32), "cuBLASLt's tanh is too coarse for an f32 result");
    let mut c = make();
    c.plan.tensors[3].dtype = DType::F32;
    refused(&c, "cuBLASLt's derivative of GELU reads the format of the result");
    let elsewhere = "cuBLASLt cannot read or write the tensors as they lie";
    let mut c = make();
    c.g.epilogue.inputs[0].strides = vec![0, 0, 1, 3];
    refused(&c, elsewhere);
    let narrow = derivative([1, 1], (3, 4, 5), [lies[0], [0, 0, 4, 1], [0, 0, 4, 1]]);
    refused(&narrow, elsewhere);
}

#[test]
fn what_cublaslt_cannot_read_is_refused() {
    let ok = [[0, 0, 5, 1], [0, 0, 4, 1], [0, 0, 4, 1]];
    let refused = |strides: [[i64; 4]; 3]| {
        fused(&case([1, 1], (3, 4, 5), strides).plan, &case([1, 1], (3, 4, 5), strides).g).is_none()
    };
    assert!(!refused(ok));
    assert!(refused([[0, 0, 10, 2], ok[1], ok[2]]), "every second element");
    assert!(refused([[0, 0, 0, 1], ok[1], ok[2]]), "one row for all");
    assert!(refused([[0, 0, -5, 1], ok[1], ok[2]]), "backwards");
    assert!(refused([ok[0], ok[1], [0, 0, 8, 2]]), "a result with gaps");
    assert!(refused([ok[0], [0, 0, 3, 1], ok[2]]), "rows inside each other");
    let mut c = case([1, 1], (3, 4, 5), ok);
    c.plan.tensors[0].dtype = DType::F16;
    assert_eq!(fused(&c.plan, &c.g), None, "two formats");
    let mut c = case([1, 1], (3, 4, 5), ok).dtypes(DType::F16);
    c.plan.tensors[2].dtype = DType::Bf16;
    assert_eq!(fused(&c.plan, &c.g), None, "a result of another 16-bit format");
    assert_eq!(plain(&c.plan, &c.g, 256).unwrap()[0].d.place, Place::Scratch { offset: 256 });
    let mut c = case([1, 1], (3, 4, 5), ok);
    c.g.batch = [200, 300];
    c.g.a.strides = vec![7, 40_000, 5, 1];
    assert_eq!(fused(&c.plan, &c.g), None, "too many calls");
}

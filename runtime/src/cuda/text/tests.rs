//! Generated kernels on host memory against the interpreter: random programs, spaces, layouts and
//! formats, and the forms that real plans take.

use super::{PRELUDE, lower_rows};
use crate::cuda::launch::{Facts, Lowered, Task};
use crate::cuda::testing::{Kernels, Memory, Tolerance, difference, expected};
use precast_plan::*;

mod random;

/// A small device, so that small spaces fill it and rows are split.
pub fn facts() -> Facts {
    Facts {
        capability: (9, 0),
        multiprocessors: 4,
        shared_per_block: 227 * 1024,
        threads_per_multiprocessor: 512,
    }
}

/// A plan that holds the tensors of a test.
pub struct Case {
    pub plan: Plan,
    pub rows: Rows,
}

impl Case {
    pub fn new(program: Program) -> Case {
        let plan = Plan {
            version: VERSION,
            model: "test".into(),
            target: TargetSummary { name: "test".into(), device: "cuda".into() },
            tensors: vec![],
            programs: vec![program],
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
            summary: Summary::default(),
            journal: vec![],
        };
        Case { plan, rows: Rows { program: 0, instances: vec![] } }
    }

    /// A new tensor with a gap behind it; the access covers it.
    pub fn access(&mut self, dtype: DType, dims: &[u64], offset: u64, strides: &[i64]) -> Access {
        let last: i64 = dims.iter().zip(strides).map(|(&n, &s)| (n as i64 - 1) * s).sum();
        let elements = offset + last as u64 + 1;
        let tensor = self.plan.tensors.len() as TensorId;
        let at = self.plan.persistent_bytes;
        let role = Role::Buffer;
        self.plan.tensors.push(Tensor {
            name: format!("t{tensor}"),
            dtype,
            shape: vec![elements],
            storage: Storage::Persistent { offset: at, role, init: Init::Zeros },
        });
        self.plan.persistent_bytes =
            (at + elements * dtype.size() as u64).next_multiple_of(ALIGN) + ALIGN;
        Access { tensor, offset, strides: strides.to_vec() }
    }

    pub fn instance(
        &mut self,
        dims: &[u64],
        reduced: u32,
        inputs: Vec<Access>,
        outputs: Vec<Access>,
    ) {
        let dims = dims.to_vec();
        self.rows.instances.push(Instance { dims, reduced, inputs, outputs });
    }

    /// The plan with the step in it, so that it can be validated.
    pub fn whole(mut self) -> Case {
        self.plan.micro = vec![Step {
            name: "test".into(),
            ops: vec![],
            kernel: Kernel::Rows(self.rows.clone()),
            predicted_ns: 0.0,
        }];
        if let Err(e) = self.plan.validate() {
            panic!("{e:?}\n{}", self.plan.programs[0]);
        }
        self
    }

    /// Every element set by `f(tensor, element)`.
    pub fn memory(&self, f: impl Fn(TensorId, u64) -> f32) -> Memory {
        let mut m = Memory::new(&self.plan, 0xA5);
        for t in 0..self.plan.tensors.len() as TensorId {
            for i in 0..m.elements(t) {
                let x = f(t, i);
                let v = match m.dtype(t) {
                    DType::U8 => Value::Int(x.abs() as i32),
                    d => match d.kind() {
                        Kind::Real => Value::Real(x),
                        Kind::Int => Value::Int(x as i32),
                        Kind::Bool => Value::Bool(x > 0.0),
                    },
                };
                m.set(t, i, v);
            }
        }
        m
    }

    pub fn lower(&self, facts: &Facts) -> Lowered {
        let mut out = Lowered::default();
        lower_rows(&self.plan, &self.rows, "test", facts, &mut out).expect("a valid step");
        out
    }
}

pub fn program(inputs: &[(DType, bool)], code: &str, outputs: &[(DType, u32)]) -> Program {
    Program {
        name: "test".into(),
        inputs: inputs.iter().map(|&(dtype, row)| InPort { dtype, row }).collect(),
        code: code.split('|').map(|l| l.parse().expect("an instruction")).collect(),
        outputs: outputs.iter().map(|&(dtype, reg)| OutPort { dtype, reg }).collect(),
    }
}

/// Lowers, compiles and runs every case with shuffled threads, twice in different orders.
pub fn check(cases: &[(Case, f32)], fill: impl Fn(TensorId, u64) -> f32 + Copy) {
    let lowered: Vec<Lowered> = cases.iter().map(|(c, _)| c.lower(&facts())).collect();
    let kernels = Kernels::compile(PRELUDE, &lowered);
    for (i, ((case, tolerance), lowered)) in cases.iter().zip(&lowered).enumerate() {
        let before = case.memory(fill);
        let want = expected(&case.plan, &case.rows, &before);
        let mut first = before.clone();
        let describe = || {
            let dims: Vec<_> = case.rows.instances.iter().map(|i| (&i.dims, i.reduced)).collect();
            format!("case {i}, {dims:?}\n{}", case.plan.programs[0])
        };
        kernels.run(&mut first, lowered, 0).unwrap_or_else(|e| panic!("{}\n{e}", describe()));
        let all = 0..case.plan.tensors.len() as TensorId;
        let tolerance = Tolerance { relative: *tolerance, floor: 1e-3 };
        if let Some(text) = difference(&case.plan, all, &first, &want, tolerance) {
            panic!("{text}\n{}\n{:#?}", describe(), case.rows.instances);
        }
        let mut second = before.clone();
        kernels
            .run(&mut second, lowered, 1 + i as u64)
            .unwrap_or_else(|e| panic!("{}\n{e}", describe()));
        assert!(first.same_bytes(&second), "the order of threads matters: {}", describe());
    }
}

fn dense(dims: &[u64]) -> Vec<i64> {
    super::space::dense_strides(dims)
}

/// Values between -4 and 4 with all bits of a significand.
fn spread(t: TensorId, i: u64) -> f32 {
    let h = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ u64::from(t) << 20) >> 40;
    (h as f32 / 16_777_216.0 - 0.5) * 8.0
}

/// One instance over dense tensors; row ports and row outputs have no reduced axes.
fn simple(p: Program, dims: &[u64], reduced: u32) -> Case {
    let infos = p.check().expect("well formed");
    let kept = dims.len() - reduced as usize;
    let row = || [dense(&dims[..kept]), vec![0; reduced as usize]].concat();
    let (inputs, outputs) = (p.inputs.clone(), p.outputs.clone());
    let mut case = Case::new(p);
    let ins = inputs
        .iter()
        .map(|i| case.access(i.dtype, dims, 0, &if i.row { row() } else { dense(dims) }))
        .collect();
    let outs = outputs
        .iter()
        .map(|o| {
            let s = if infos[o.reg as usize].row { row() } else { dense(dims) };
            case.access(o.dtype, dims, 0, &s)
        })
        .collect();
    case.instance(dims, reduced, ins, outs);
    case.whole()
}

#[test]
fn every_operation_on_every_format() {
    let mut cases = vec![];
    for d in DType::ALL {
        // One program a format, so that few kernels are compiled.
        let mut p = program(&[(d, false), (d, false)], "load 0|load 1|abs %0|bool true", &[]);
        if p.check().is_err() {
            p.code[2] = Instr::Bool(false);
        }
        for &op in UnaryOp::ALL {
            // Arguments where the function is defined and smooth.
            let at = match op {
                UnaryOp::Log | UnaryOp::Log1p | UnaryOp::Sqrt | UnaryOp::Rsqrt => 2,
                _ => 0,
            };
            p.code.push(Instr::Unary(op, at));
            if p.check().is_err() {
                p.code.pop();
            }
        }
        for &op in BinaryOp::ALL {
            p.code.push(Instr::Binary(op, if op == BinaryOp::Pow { 2 } else { 0 }, 1));
            if p.check().is_err() {
                p.code.pop();
            }
        }
        for r in DType::ALL {
            p.code.push(Instr::Round(r, 0));
            if p.check().is_err() {
                p.code.pop();
            }
        }
        let infos = p.check().expect("well formed");
        for (r, info) in infos.iter().enumerate().skip(4) {
            let dtype = match info.kind {
                Kind::Real => DType::F32,
                Kind::Int => DType::I32,
                Kind::Bool => DType::Bool,
            };
            p.outputs.push(OutPort { dtype, reg: r as Reg });
        }
        cases.push((simple(p, &[1003], 0), 1e-6));
        // Stores in every format of the same kind.
        let kind = d.kind();
        let formats = DType::ALL.into_iter().filter(|f| f.kind() == kind);
        let mut p = program(&[(d, false)], "load 0", &[]);
        p.outputs = formats.map(|dtype| OutPort { dtype, reg: 0 }).collect();
        cases.push((simple(p, &[7, 130], 0), 0.0));
    }
    check(&cases, spread);
}

#[test]
fn special_values_are_what_the_interpreter_makes_of_them() {
    let values = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-45,
        -1e-40,
        f32::MAX,
        65520.0,
        -3e9,
        3e9,
        2.5,
        -0.5,
        464.0,
        480.0,
        61440.0,
        1e-8,
        f32::MIN_POSITIVE,
    ];
    let fill = move |_, i: u64| values[i as usize % values.len()];
    let code = "load 0|load 1|max %0 %1|min %0 %1|to_int %0|is_finite %0|round.f16 %0|\
        round.bf16 %0|round.f8e4m3 %0|round.f8e5m2 %0|lt %0 %1|reduce.max %0|reduce.min %0|\
        floor %0|round_even %0|to_bool %0|neg %0";
    let f = DType::F32;
    let mut outputs: Vec<(DType, u32)> =
        [2, 3, 6, 7, 8, 9, 11, 12, 13, 14, 16].map(|r| (f, r)).into();
    outputs.extend([(DType::I32, 4), (DType::Bool, 5), (DType::Bool, 10), (DType::Bool, 15)]);
    outputs.extend([(DType::F16, 0), (DType::Bf16, 0), (DType::F8e4m3, 0), (DType::F8e5m2, 0)]);
    let p = program(&[(f, false), (f, false)], code, &outputs);
    check(&[(simple(p, &[18, 19], 1), 0.0)], fill);
}

#[test]
fn uniform_is_the_same_stream_in_every_layout() {
    // Dense, transposed and reduced spaces, alone and in a table: every element exactly.
    let code = "load 0|load 1|load 2|uniform %1 %2 7|real 0.25|lt %4 %3|real 0|select %5 %0 %6";
    let ports = [(DType::Bf16, false), (DType::I32, true), (DType::I32, true)];
    let p = program(&ports, code, &[(DType::Bf16, 7), (DType::F32, 3)]);
    let mut cases = vec![];
    for strides in [[96, 1], [1, 64]] {
        let mut case = Case::new(p.clone());
        for dims in [[64u64, 96], [64, 96]] {
            let mut list = vec![case.access(DType::Bf16, &dims, 0, &strides)];
            list.extend([0, 1].map(|_| case.access(DType::I32, &dims, 0, &[0, 0])));
            let outs = [DType::Bf16, DType::F32].map(|d| case.access(d, &dims, 0, &[96, 1])).into();
            case.instance(&dims, 0, list, outs);
        }
        cases.push((case.whole(), 0.0));
    }
    let p = program(
        &ports,
        "load 0|load 1|load 2|uniform %1 %2 7|mul %0 %3|reduce.max %4|sub %4 %5",
        &[(DType::F32, 6), (DType::F32, 5)],
    );
    cases.push((simple(p, &[33, 200], 1), 0.0));
    check(&cases, spread);
}

/// Softmax with two stages, LayerNorm with a scale, their parts stored per row.
fn stages() -> Vec<Program> {
    let softmax = "load 0|reduce.max %0|sub %0 %1|exp %2|reduce.sum %3|div %3 %4|log %4|add %6 %1";
    let norm = "load 0|load 1|reduce.sum %0|real 0.001|mul %2 %3|sub %0 %4|mul %5 %5|reduce.sum %6|\
        mul %7 %3|real 1e-5|add %8 %9|rsqrt %10|mul %5 %11|mul %12 %1";
    let bf = (DType::Bf16, false);
    vec![
        program(&[bf], softmax, &[(DType::Bf16, 5), (DType::F32, 7)]),
        program(
            &[bf, (DType::F32, false)],
            norm,
            &[(DType::Bf16, 13), (DType::F32, 4), (DType::F32, 11)],
        ),
        program(&[(DType::F32, false)], softmax, &[(DType::F32, 5), (DType::F32, 7)]),
    ]
}

#[test]
fn rows_of_every_length_and_orientation() {
    let mut cases = vec![];
    for p in stages() {
        // Part of a warp, a warp, a block, values in shared memory, read again, several blocks.
        for (m, n) in
            [(37, 5), (19, 64), (9, 1000), (5, 6001), (3, 24_576), (2, 66_000), (1, 600_000)]
        {
            if n > 100_000 && p.inputs.len() > 1 {
                continue;
            }
            cases.push((simple(p.clone(), &[m, n], 1), 3e-4));
        }
        for (n, m) in [(700, 24), (40, 520), (3000, 3)] {
            let mut case = Case::new(p.clone());
            let ins =
                p.inputs.iter().map(|i| case.access(i.dtype, &[m, n], 0, &[1, m as i64])).collect();
            let infos = p.check().expect("well formed");
            let outs = p
                .outputs
                .iter()
                .map(|o| {
                    let row = infos[o.reg as usize].row;
                    case.access(o.dtype, &[m, n], 0, &[1, if row { 0 } else { m as i64 }])
                })
                .collect();
            case.instance(&[m, n], 1, ins, outs);
            cases.push((case.whole(), 3e-4));
        }
    }
    check(&cases, spread);
}

#[test]
fn what_is_written_in_place_is_read_first() {
    // Running statistics: a row output where a row input lies, with a pass over long rows.
    let code = "load 0|load 1|reduce.sum %0|real 1e-5|mul %2 %3|real 0.9|mul %1 %5|add %6 %4|\
        sub %0 %7";
    let p = program(
        &[(DType::F32, false), (DType::F32, true)],
        code,
        &[(DType::F32, 7), (DType::F32, 8)],
    );
    let mut cases = vec![];
    for (m, n) in [(3u64, 100u64), (2, 300_000), (300, 40)] {
        let mut case = Case::new(p.clone());
        let x = case.access(DType::F32, &[m, n], 0, &[n as i64, 1]);
        let r = case.access(DType::F32, &[m, n], 0, &[1, 0]);
        case.instance(&[m, n], 1, vec![x.clone(), r.clone()], vec![r, x]);
        cases.push((case.whole(), 1e-5));
    }
    // A counter: one point.
    let p = program(&[(DType::F32, true)], "load 0|real 1|add %0 %1", &[(DType::F32, 2)]);
    let mut case = Case::new(p);
    let t = case.access(DType::F32, &[1], 0, &[0]);
    case.instance(&[1], 0, vec![t.clone()], vec![t]);
    cases.push((case.whole(), 0.0));
    check(&cases, spread);
}

#[test]
fn many_tensors_share_launches() {
    // An update in place with a low-precision copy, and the norm of every gradient.
    let update = "load 0|load 1|load 2|mul %1 %2|sub %0 %3";
    let (f, bf) = (DType::F32, DType::Bf16);
    let p = program(&[(f, false), (f, false), (f, true)], update, &[(f, 4), (bf, 4)]);
    let mut updates = Case::new(p);
    let norm = "load 0|load 1|mul %0 %1|mul %2 %2|reduce.sum %3|is_finite %0|real 0|real 1|\
        select %5 %6 %7|reduce.sum %8";
    let mut norms = Case::new(program(&[(f, false), (f, true)], norm, &[(f, 4), (f, 9)]));
    let rate = updates.access(f, &[1], 0, &[0]);
    let scale = norms.access(f, &[1], 0, &[0]);
    let sums = norms.access(f, &[40, 2], 0, &[2, 1]);
    for (i, n) in [1u64, 3, 10, 64, 2048, 2049, 5000, 70_001].into_iter().enumerate() {
        let flat = |case: &mut Case, d| case.access(d, &[n], 0, &[1]);
        let one = |a: &Access| Access { strides: vec![0], ..a.clone() };
        let (w, g, copy) = (flat(&mut updates, f), flat(&mut updates, f), flat(&mut updates, bf));
        updates.instance(&[n], 0, vec![w.clone(), g, one(&rate)], vec![w, copy]);
        let g = flat(&mut norms, f);
        let at = |k: u64| Access { offset: 2 * i as u64 + k, ..one(&sums) };
        norms.instance(&[n], 1, vec![g, one(&scale)], vec![at(0), at(1)]);
    }
    let (updates, norms) = (updates.whole(), norms.whole());
    assert_eq!(updates.lower(&facts()).tasks.len(), 1);
    assert_eq!(norms.lower(&facts()).tasks.len(), 2);
    check(&[(updates, 1e-6), (norms, 2e-5)], spread);
}

#[test]
fn transposed_inputs_pass_through_tiles() {
    let p = program(
        &[(DType::Bf16, false), (DType::F32, false)],
        "load 0|load 1|add %0 %1",
        &[(DType::Bf16, 2)],
    );
    let mut cases = vec![];
    for (b, m, n) in [(1u64, 64u64, 96u64), (3, 33, 70), (2, 8, 300)] {
        let mut case = Case::new(p.clone());
        let (mi, ni) = (m as i64, n as i64);
        let dims = [b, m, n];
        let x = case.access(DType::Bf16, &dims, 0, &[mi * ni, 1, mi]);
        let y = case.access(DType::F32, &dims, 0, &[mi * ni, ni, 1]);
        let z = case.access(DType::Bf16, &dims, 0, &[mi * ni, ni, 1]);
        case.instance(&dims, 0, vec![x, y], vec![z]);
        cases.push((case.whole(), 0.0));
    }
    let tiled = cases.iter().filter(|(c, _)| {
        let crate::cuda::launch::Task::Launch(l) = &c.lower(&facts()).tasks[0] else {
            return false;
        };
        l.source.text.contains("tile0")
    });
    assert_eq!(tiled.count(), 3);
    check(&cases, spread);
}

/// The texts of a lowered step, without the hashes in their names.
fn shown(case: &Case) -> String {
    use crate::cuda::launch::Task;
    let h200 = Facts { multiprocessors: 132, threads_per_multiprocessor: 2048, ..facts() };
    let texts = case.lower(&h200).tasks.into_iter().map(|t| {
        let Task::Launch(l) = t else { unreachable!("row programs are launches") };
        let hash = l.source.entry.rfind('_').expect("a hash");
        let text = l.source.text.replace(&l.source.entry[hash..], "");
        format!("grid {:?} block {:?} shared {}\n{text}", l.grid, l.block, l.shared)
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn texts_a_person_may_read() {
    let [softmax, norm, _] = <[Program; 3]>::try_from(stages()).expect("three programs");
    let gelu = "load 0|load 1|add %0 %1|real 0.70710677|mul %2 %3|erf %4|real 1|add %5 %6|\
        real 0.5|mul %2 %8|mul %9 %7";
    let bf = DType::Bf16;
    let mut case = Case::new(program(&[(bf, false), (DType::F32, false)], gelu, &[(bf, 10)]));
    let dims = [512, 768];
    let x = case.access(bf, &dims, 0, &[768, 1]);
    let b = case.access(DType::F32, &dims, 0, &[0, 1]);
    let y = case.access(bf, &dims, 0, &[768, 1]);
    case.instance(&dims, 0, vec![x, b], vec![y]);
    insta::assert_snapshot!("bias_gelu", shown(&case.whole()));
    let mut case = Case::new(norm);
    let dims = [8192, 768];
    let x = case.access(bf, &dims, 0, &[768, 1]);
    let g = case.access(DType::F32, &dims, 0, &[0, 1]);
    let outs = [(bf, [768, 1]), (DType::F32, [1, 0]), (DType::F32, [1, 0])];
    let outs = outs.map(|(d, s)| case.access(d, &dims, 0, &s)).into();
    case.instance(&dims, 1, vec![x, g], outs);
    insta::assert_snapshot!("norm_of_short_rows", shown(&case.whole()));
    insta::assert_snapshot!("softmax_of_few_long_rows", shown(&simple(softmax, &[4, 1 << 18], 1)));
    let p = program(&[(bf, false)], "load 0|reduce.sum %0", &[(DType::F32, 1)]);
    let mut case = Case::new(p);
    let x = case.access(bf, &[768, 8192], 0, &[1, 768]);
    let y = case.access(DType::F32, &[768, 8192], 0, &[1, 0]);
    case.instance(&[768, 8192], 1, vec![x], vec![y]);
    insta::assert_snapshot!("column_sums", shown(&case.whole()));
}

/// A batch normalisation over columns that several blocks share: mean and variance in one pass, also
/// where the mean is large beside what surrounds it.
#[test]
fn means_and_squares_are_found_in_one_pass() {
    let code = |n: u64| {
        let share = 1.0 / n as f32;
        format!(
            "load 0|load 1|real {share:?}|reduce.sum %0|mul %3 %2|sub %0 %4|mul %5 %5|\
             reduce.sum %6|mul %7 %2|real 1e-5|add %8 %9|rsqrt %10|mul %5 %11|add %12 %1"
        )
    };
    let mut cases = vec![];
    for (columns, n) in [(24, 1500), (3, 4099), (64, 777)] {
        let (f32s, outs) = (DType::F32, [(DType::F32, 4), (DType::F32, 8), (DType::Bf16, 13)]);
        let mut case = Case::new(program(&[(f32s, false), (f32s, true)], &code(n), &outs));
        let dims = [columns, n];
        let (across, row) = ([1, columns as i64], [1, 0]);
        let inputs =
            vec![case.access(f32s, &dims, 0, &across), case.access(f32s, &[columns, 1], 0, &row)];
        let outputs = vec![
            case.access(f32s, &[columns, 1], 0, &row),
            case.access(f32s, &[columns, 1], 0, &row),
            case.access(DType::Bf16, &dims, 0, &across),
        ];
        case.instance(&dims, 1, inputs, outputs);
        let case = case.whole();
        let lowered = case.lower(&facts());
        let passes = lowered.tasks.len();
        assert_eq!(passes, 3, "{columns} columns of {n}: moments, their results, the rest");
        cases.push((case, 2e-4));
    }
    check(&cases, |t, i| match t {
        0 => 30.0 + ((i * 7919) % 1009) as f32 / 500.0,
        _ => spread(t, i),
    });
}

/// Rows of odd length that begin on boundaries, with gaps between them: vectors, and a tail.
#[test]
fn rows_with_gaps_are_read_in_vectors() {
    let mut cases = vec![];
    let sum = program(&[(DType::F16, false)], "load 0|reduce.sum %0", &[(DType::F32, 1)]);
    for p in stages().into_iter().chain([sum]) {
        for (m, n, gap) in [(70, 2051, 5), (5, 6001, 7), (3, 25_003, 5), (2, 66_005, 3)] {
            let mut case = Case::new(p.clone());
            let infos = p.check().expect("well formed");
            let pitch = (n + gap) as i64;
            let ins =
                p.inputs.iter().map(|i| case.access(i.dtype, &[m, n], 0, &[pitch, 1])).collect();
            let outs = p
                .outputs
                .iter()
                .map(|o| match infos[o.reg as usize].row {
                    true => case.access(o.dtype, &[m, 1], 0, &[1, 0]),
                    false => case.access(o.dtype, &[m, n], 0, &[pitch, 1]),
                })
                .collect();
            case.instance(&[m, n], 1, ins, outs);
            let case = case.whole();
            let lowered = case.lower(&facts());
            let Some(Task::Launch(first)) = lowered.tasks.first() else { panic!("a launch") };
            let text = &first.source.text;
            assert!(text.contains("lane < ") && !text.contains("v += 1)"), "{text}");
            assert!(text.contains("load<8>(") || text.contains("load<4>("), "{text}");
            cases.push((case, 3e-4));
        }
    }
    check(&cases, spread);
}

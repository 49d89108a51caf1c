//! Row programs of every form: what tests run on host memory, and what `tests/gpu/nvrtc_check`
//! compiles beside the kernels of the test plans.

use super::lower_rows;
use crate::cuda::launch::{Facts, Lowered, Source, Task};
use precast_plan::*;
use std::collections::BTreeSet;
use std::sync::Arc;

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

    /// The plan with the step in it.
    ///
    /// # Panics
    /// If the plan is not valid: a bug of whoever made the case.
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

    /// The step's launches.
    pub fn lower(&self, facts: &Facts) -> Lowered {
        let mut out = Lowered::default();
        lower_rows(&self.plan, &self.rows, "test", facts, &mut out).expect("a valid step");
        out
    }
}

/// A program of inputs (format, once a row), instructions apart by `|`, and stored registers.
pub fn program(inputs: &[(DType, bool)], code: &str, outputs: &[(DType, u32)]) -> Program {
    Program {
        name: "test".into(),
        inputs: inputs.iter().map(|&(dtype, row)| InPort { dtype, row }).collect(),
        code: code.split('|').map(|l| l.parse().expect("an instruction")).collect(),
        outputs: outputs.iter().map(|&(dtype, reg)| OutPort { dtype, reg }).collect(),
    }
}

pub fn dense(dims: &[u64]) -> Vec<i64> {
    super::space::dense_strides(dims)
}

/// One instance over dense tensors; row ports and row outputs have no reduced axes.
pub fn simple(p: Program, dims: &[u64], reduced: u32) -> Case {
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

/// All operations on ports of every format: a program a format and some outputs, so that few kernels
/// are compiled.
pub fn operations() -> Vec<Case> {
    let mut cases = vec![];
    for d in DType::ALL {
        let mut p = program(&[(d, false), (d, false)], "load 0|load 1|abs %0|bool true", &[]);
        if p.check().is_err() {
            p.code[2] = Instr::Bool(false);
        }
        let add = |p: &mut Program, i: Instr| {
            p.code.push(i);
            if p.check().is_err() {
                p.code.pop();
            }
        };
        // An eighth of the operand, and at least 2: exact, or rounded once, like the operand itself.
        p.code.extend([Instr::Real(0.125), Instr::Real(2.0)]);
        add(&mut p, Instr::Binary(BinaryOp::Mul, 0, 4));
        add(&mut p, Instr::Binary(BinaryOp::Add, 2, 5));
        let first = p.code.len();
        let (eighth, above) = if first == 8 { (6, 7) } else { (0, 0) };
        for &op in UnaryOp::ALL {
            // Arguments where the function is defined and smooth.
            let at = match op {
                UnaryOp::Log | UnaryOp::Log1p | UnaryOp::Sqrt | UnaryOp::Rsqrt => 2,
                UnaryOp::Asin | UnaryOp::Acos | UnaryOp::Atanh => eighth,
                UnaryOp::Acosh => above,
                _ => 0,
            };
            add(&mut p, Instr::Unary(op, at));
        }
        for &op in BinaryOp::ALL {
            add(&mut p, Instr::Binary(op, if op == BinaryOp::Pow { 2 } else { 0 }, 1));
        }
        for r in DType::ALL {
            add(&mut p, Instr::Round(r, 0));
        }
        let infos = p.check().expect("well formed");
        let all: Vec<OutPort> = (first..infos.len())
            .map(|r| {
                let dtype = match infos[r].kind {
                    Kind::Real => DType::F32,
                    Kind::Int => DType::I32,
                    Kind::Bool => DType::Bool,
                };
                OutPort { dtype, reg: r as Reg }
            })
            .collect();
        // What a program stores at once is in registers at once.
        for outputs in all.chunks(AT_ONCE) {
            cases.push(simple(Program { outputs: outputs.to_vec(), ..p.clone() }, &[1003], 0));
        }
    }
    cases
}

/// Outputs of one program of [`operations`].
const AT_ONCE: usize = 12;

/// Stores in every format of the kind that is loaded.
pub fn copies() -> Vec<Case> {
    let copy = |d: DType| {
        let mut p = program(&[(d, false)], "load 0", &[]);
        let formats = DType::ALL.into_iter().filter(|f| f.kind() == d.kind());
        p.outputs = formats.map(|dtype| OutPort { dtype, reg: 0 }).collect();
        simple(p, &[7, 130], 0)
    };
    DType::ALL.into_iter().map(copy).collect()
}

/// Random numbers over dense, transposed and reduced spaces, alone and in a table.
pub fn uniforms() -> Vec<Case> {
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
        cases.push(case.whole());
    }
    let p = program(
        &ports,
        "load 0|load 1|load 2|uniform %1 %2 7|mul %0 %3|reduce.max %4|sub %4 %5",
        &[(DType::F32, 6), (DType::F32, 5)],
    );
    cases.push(simple(p, &[33, 200], 1));
    cases
}

/// Softmax with two stages, LayerNorm with a scale, their parts stored per row.
pub fn stages() -> Vec<Program> {
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

/// Rows of every length and orientation: part of a warp, a warp, a block, values in shared memory,
/// read again, several blocks; columns of one block and of several.
pub fn lengths() -> Vec<Case> {
    let mut cases = vec![];
    for p in stages() {
        for (m, n) in
            [(37, 5), (19, 64), (9, 1000), (5, 6001), (3, 24_576), (2, 66_000), (1, 600_000)]
        {
            if n > 100_000 && p.inputs.len() > 1 {
                continue;
            }
            cases.push(simple(p.clone(), &[m, n], 1));
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
            cases.push(case.whole());
        }
    }
    cases
}

/// Outputs where inputs lie: running statistics beside a pass over long rows, and a counter.
pub fn in_place() -> Vec<Case> {
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
        cases.push(case.whole());
    }
    // A counter: one point.
    let p = program(&[(DType::F32, true)], "load 0|real 1|add %0 %1", &[(DType::F32, 2)]);
    let mut case = Case::new(p);
    let t = case.access(DType::F32, &[1], 0, &[0]);
    case.instance(&[1], 0, vec![t.clone()], vec![t]);
    cases.push(case.whole());
    cases
}

/// Spaces that share launches: updates in place with a low-precision copy, and the norm of every
/// gradient.
pub fn many() -> [Case; 3] {
    let update = "load 0|load 1|load 2|mul %1 %2|sub %0 %3";
    let (f, bf) = (DType::F32, DType::Bf16);
    let p = program(&[(f, false), (f, false), (f, true)], update, &[(f, 4), (bf, 4)]);
    let mut updates = Case::new(p);
    let norm = "load 0|load 1|mul %0 %1|mul %2 %2|reduce.sum %3|is_finite %0|real 0|real 1|\
        select %5 %6 %7|reduce.sum %8";
    let mut norms = Case::new(program(&[(f, false), (f, true)], norm, &[(f, 4), (f, 9)]));
    let mut halves = Case::new(program(&[(bf, false)], "load 0|reduce.max %0", &[(f, 1)]));
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
        let (g, most) = (flat(&mut halves, bf), halves.access(f, &[1], 0, &[0]));
        halves.instance(&[n], 1, vec![g], vec![most]);
    }
    [updates.whole(), norms.whole(), halves.whole()]
}

/// Inputs that run along another axis than the outputs.
pub fn transposed() -> Vec<Case> {
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
        cases.push(case.whole());
    }
    // A mask and indices, turned too.
    let code = "load 0|load 1|load 2|to_real %2|select %0 %1 %3";
    let ports = [(DType::Bool, false), (DType::F16, false), (DType::I32, false)];
    let mut case = Case::new(program(&ports, code, &[(DType::F32, 4)]));
    let dims = [96, 64];
    let ins = ports.map(|(d, _)| case.access(d, &dims, 0, &[1, 96])).into();
    let out = case.access(DType::F32, &dims, 0, &[64, 1]);
    case.instance(&dims, 0, ins, vec![out]);
    cases.push(case.whole());
    cases
}

/// A batch normalisation over columns that several blocks share: mean and variance in one pass, also
/// where the mean is large beside what surrounds it.
pub fn moments() -> Vec<Case> {
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
        cases.push(case.whole());
    }
    cases
}

/// Rows of odd length that begin on boundaries, with gaps between them: vectors, and a tail.
pub fn gaps() -> Vec<Case> {
    let mut cases = vec![];
    let sum = program(&[(DType::F16, false)], "load 0|reduce.sum %0", &[(DType::F32, 1)]);
    for p in stages().into_iter().chain([sum]) {
        for (m, n, gap) in
            [(70, 2051, 5), (5, 6001, 7), (3, 25_003, 5), (2, 66_005, 3), (1, 600_005, 3)]
        {
            if n > 100_000 && p.code.len() > 2 {
                continue;
            }
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
            cases.push(case.whole());
        }
    }
    cases
}

/// Spaces of more than 2^30 elements, which 64-bit indices run through. No test runs them.
fn wide() -> Vec<Case> {
    let softmax = stages().swap_remove(0);
    let bf = DType::Bf16;
    let double = program(&[(bf, false)], "load 0|add %0 %0", &[(bf, 1)]);
    let mut cases = vec![
        simple(double, &[1 << 15, 1 << 16], 0),
        simple(softmax.clone(), &[1 << 21, 1 << 10], 1),
        simple(softmax.clone(), &[2, 1 << 30], 1),
    ];
    let mut case = Case::new(softmax);
    let dims = [1 << 10, 1 << 21];
    let [x, y] = [0, 1].map(|_| case.access(bf, &dims, 0, &[1, 1 << 10]));
    let sums = case.access(DType::F32, &[1 << 10, 1], 0, &[1, 0]);
    case.instance(&dims, 1, vec![x], vec![y, sums]);
    cases.push(case.whole());
    cases
}

/// Points that are no neighbours, and a number that decimals do not say.
pub fn strided() -> Vec<Case> {
    let mut p = program(&[(DType::F32, false)], "load 0|real 1|min %0 %1", &[]);
    p.code[1] = Instr::Real(f32::INFINITY);
    p.outputs = [0, 2].map(|reg| OutPort { dtype: DType::F32, reg }).into();
    let mut case = Case::new(p);
    let [x, y] = [0, 1].map(|_| case.access(DType::F32, &[1001], 0, &[1]));
    let apart = case.access(DType::F32, &[1001], 0, &[2]);
    case.instance(&[1001], 0, vec![x], vec![y, apart]);
    vec![case.whole()]
}

/// Columns whose results are smallest, and stored beside what they come from.
pub fn least() -> Vec<Case> {
    let code = "load 0|reduce.min %0|reduce.max %0|sub %2 %1|sub %0 %1|div %4 %3";
    let p = |d| program(&[(d, false)], code, &[(d, 5), (DType::F32, 1)]);
    let mut cases = vec![];
    for d in [DType::F32, DType::F16] {
        for dims in [[19, 64], [3, 3000], [2, 70_000]] {
            cases.push(simple(p(d), &dims, 1));
        }
        for [n, m] in [[40, 520], [5000, 24]] {
            let mut case = Case::new(p(d));
            let across = [1, m as i64];
            let (x, y) = (case.access(d, &[m, n], 0, &across), case.access(d, &[m, n], 0, &across));
            let out = case.access(DType::F32, &[m, 1], 0, &[1, 0]);
            case.instance(&[m, n], 1, vec![x], vec![y, out]);
            cases.push(case.whole());
        }
    }
    cases
}

/// Texts of every form that row programs take, on a device of these facts and on a small part of it,
/// which few points fill.
///
/// # Panics
/// If a sample does not lower: a bug of this crate.
pub fn samples(facts: &Facts) -> BTreeSet<Arc<Source>> {
    let part = Facts { multiprocessors: 4, threads_per_multiprocessor: 512, ..facts.clone() };
    let all = [
        operations(),
        copies(),
        uniforms(),
        lengths(),
        in_place(),
        many().into(),
        transposed(),
        moments(),
        gaps(),
        least(),
        strided(),
        wide(),
    ];
    let mut texts = BTreeSet::new();
    for case in all.iter().flatten() {
        for f in [facts, &part] {
            texts.extend(case.lower(f).tasks.into_iter().filter_map(|t| match t {
                Task::Launch(l) => Some(l.source),
                _ => None,
            }));
        }
    }
    texts
}

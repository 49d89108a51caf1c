//! Row programs against the interpreter: every operation, and random programs, spaces, layouts
//! and formats.

use super::{Bound, RowsKernel, Space, philox};
use crate::cpu::pool::Pool;
use precast_plan::{
    BinaryOp, DType, InPort, Instr, Kind, OutPort, Program, ReduceOp, UnaryOp, Value, interpret,
};

/// A stream of random words.
struct Rng(u32, u32);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        ((u64::from(philox([self.1, 0, 0, 0], [self.0, 0])[0]) * n as u64) >> 32) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A tensor in memory with its view.
struct Buffer {
    bytes: Vec<u64>,
    elements: usize,
    dtype: DType,
    offset: usize,
    strides: Vec<i64>,
}

impl Buffer {
    fn new(dtype: DType, offset: usize, strides: &[i64], dims: &[usize]) -> Buffer {
        let last: i64 = dims.iter().zip(strides).map(|(&n, &s)| (n as i64 - 1) * s).sum();
        let elements = offset + last as usize + 1;
        let bytes = vec![0; (elements * dtype.size()).div_ceil(8)];
        Buffer { bytes, elements, dtype, offset, strides: strides.to_vec() }
    }

    fn bound(&self) -> Bound {
        Bound {
            ptr: self.bytes.as_ptr() as *mut u8,
            bytes: self.elements * self.dtype.size(),
            dtype: self.dtype,
            offset: self.offset as u64,
            strides: self.strides.clone(),
        }
    }

    fn raw(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.bytes)
    }

    fn set(&mut self, i: usize, v: Value) {
        let (d, size) = (self.dtype, self.dtype.size());
        let bits: u64 = match v {
            Value::Real(x) => u64::from(d.encode(x)),
            Value::Int(x) => i64::from(x) as u64,
            Value::Bool(x) => u64::from(x),
        };
        self.raw()[i * size..(i + 1) * size].copy_from_slice(&bits.to_le_bytes()[..size]);
    }

    fn get(&self, i: usize) -> Value {
        let size = self.dtype.size();
        let raw: &[u8] = bytemuck::cast_slice(&self.bytes);
        let mut word = [0u8; 8];
        word[..size].copy_from_slice(&raw[i * size..(i + 1) * size]);
        let bits = u64::from_le_bytes(word);
        match self.dtype.kind() {
            Kind::Real => Value::Real(self.dtype.decode(bits as u32)),
            Kind::Int => Value::Int(bits as i32),
            Kind::Bool => Value::Bool(bits != 0),
        }
    }

    fn at(&self, point: &[usize]) -> usize {
        let s: i64 = point.iter().zip(&self.strides).map(|(&i, &s)| i as i64 * s).sum();
        self.offset + s as usize
    }
}

fn same(got: Value, want: Value, dtype: DType, tolerance: f32) -> bool {
    match (got, want) {
        (Value::Real(a), Value::Real(b)) => {
            let step = 2f32.powi(-(dtype.facts().mantissa_bits as i32));
            let tolerance = if dtype == DType::F32 || tolerance == 0.0 { tolerance } else { step };
            a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * b.abs().max(1e-3)
        }
        (a, b) => a == b,
    }
}

/// Runs a program both ways and compares every output element.
fn check(
    p: &Program,
    dims: &[usize],
    reduced: usize,
    ins: &[Buffer],
    outs: &mut [Buffer],
    tol: f32,
) {
    let infos = p.check().unwrap();
    let want = interpret(p, dims, reduced, |port, at| ins[port].get(ins[port].at(at))).unwrap();
    let inputs: Vec<Bound> = ins.iter().map(Buffer::bound).collect();
    let mut first: Vec<Vec<u64>> = vec![];
    for threads in [1, 3] {
        let outputs: Vec<Bound> = outs.iter().map(Buffer::bound).collect();
        let space = Space { dims, reduced, inputs: &inputs, outputs: &outputs };
        let kernel = RowsKernel::new(p, &infos, &[space]).unwrap();
        let mut pool = Pool::new(threads).unwrap();
        pool.reserve(kernel.scratch_bytes()).unwrap();
        // SAFETY: the buffers are alive and outputs overlap nothing.
        unsafe { kernel.run(&pool) };
        let now: Vec<Vec<u64>> = outs.iter().map(|o| o.bytes.clone()).collect();
        if threads == 1 {
            first = now;
        } else {
            assert_eq!(first, now, "threads change the result of\n{p}over {dims:?}/{reduced}");
        }
    }
    for (o, (out, want)) in outs.iter().zip(&want).enumerate() {
        let row = infos[p.outputs[o].reg as usize].row;
        let kept = if row { dims.len() - reduced } else { dims.len() };
        for (i, w) in want.iter().enumerate() {
            let mut point = vec![0; dims.len()];
            let mut linear = i;
            for d in (0..kept).rev() {
                point[d] = linear % dims[d];
                linear /= dims[d];
            }
            let (got, want) = (out.get(out.at(&point)), w.stored(out.dtype));
            assert!(
                same(got, want, out.dtype, tol),
                "{p}over {dims:?}/{reduced}: output {o} at {point:?}: {got:?}, not {want:?}\n\
                 in strides {:?}",
                ins.iter().map(|b| (b.offset, b.strides.clone())).collect::<Vec<_>>()
            );
        }
    }
}

fn dense(dims: &[usize]) -> Vec<i64> {
    let mut s = vec![1; dims.len()];
    for d in (0..dims.len().saturating_sub(1)).rev() {
        s[d] = s[d + 1] * dims[d + 1] as i64;
    }
    s
}

/// Dense strides over the axes in random order, some axes broadcast, sometimes with gaps.
fn strides(rng: &mut Rng, dims: &[usize], may: impl Fn(usize) -> bool, must: bool) -> Vec<i64> {
    let mut order: Vec<usize> = (0..dims.len()).collect();
    if rng.chance(40) {
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
    }
    let mut out = vec![0; dims.len()];
    let mut step = if rng.chance(10) { 2 } else { 1 };
    for &d in order.iter().rev() {
        if may(d) && (must || !rng.chance(15)) {
            out[d] = step;
            step *= dims[d] as i64 + i64::from(rng.chance(10));
        }
    }
    out
}

fn random_program(rng: &mut Rng, reduces: bool, axes: usize) -> Program {
    let real = [DType::F32, DType::F32, DType::F32, DType::F16, DType::Bf16, DType::F8e4m3];
    let mut inputs: Vec<InPort> = (0..1 + rng.below(3))
        .map(|_| InPort { dtype: rng.pick(&real), row: reduces && rng.chance(25) })
        .collect();
    inputs.push(InPort { dtype: rng.pick(&DType::ALL), row: false });
    let mut code: Vec<Instr> = (0..inputs.len()).map(|p| Instr::Load { port: p as u32 }).collect();
    code.push(Instr::Real(rng.pick(&[0.5, -1.0, 2.0, 0.0])));
    code.push(Instr::Int(rng.below(9) as i32 - 4));
    code.push(Instr::Bool(rng.chance(50)));
    let program = |code: &Vec<Instr>| Program {
        name: "random".into(),
        inputs: inputs.clone(),
        code: code.clone(),
        outputs: vec![],
    };
    for _ in 0..3 + rng.below(14) {
        let infos = program(&code).check().unwrap();
        let of = |rng: &mut Rng, kind: Kind| {
            let list: Vec<u32> =
                (0..infos.len() as u32).filter(|&r| infos[r as usize].kind == kind).collect();
            rng.pick(&list)
        };
        let exact = [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Floor, UnaryOp::Ceil, UnaryOp::RoundEven];
        let two = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Max, BinaryOp::Min];
        let cmp = [BinaryOp::Eq, BinaryOp::Lt, BinaryOp::Le];
        let instr = match rng.below(if reduces { 16 } else { 13 }) {
            0..3 => Instr::Binary(rng.pick(&two), of(rng, Kind::Real), of(rng, Kind::Real)),
            3 => Instr::Unary(rng.pick(&exact), of(rng, Kind::Real)),
            4 => Instr::Binary(rng.pick(&cmp), of(rng, Kind::Real), of(rng, Kind::Real)),
            5 => Instr::Binary(rng.pick(&two), of(rng, Kind::Int), of(rng, Kind::Int)),
            6 | 7 => Instr::Select {
                cond: of(rng, Kind::Bool),
                then: of(rng, Kind::Real),
                otherwise: of(rng, Kind::Real),
            },
            8 => Instr::Unary(UnaryOp::ToReal, of(rng, Kind::Bool)),
            9 => Instr::Unary(UnaryOp::ToReal, of(rng, Kind::Int)),
            10 => Instr::Index { axis: rng.below(axes) as u32 },
            11 => Instr::Binary(rng.pick(&cmp), of(rng, Kind::Int), of(rng, Kind::Int)),
            12 => Instr::Binary(
                rng.pick(&[BinaryOp::And, BinaryOp::Or, BinaryOp::Eq]),
                of(rng, Kind::Bool),
                of(rng, Kind::Bool),
            ),
            13 => Instr::Reduce(rng.pick(&[ReduceOp::Max, ReduceOp::Min]), of(rng, Kind::Real)),
            _ => Instr::Reduce(rng.pick(ReduceOp::ALL), of(rng, Kind::Real)),
        };
        code.push(instr);
        if matches!(instr, Instr::Reduce(ReduceOp::Sum, _)) {
            // Keeps magnitudes small and sums exact: a power of two.
            let sum = code.len() as u32 - 1;
            code.push(Instr::Real(1.0 / 4096.0));
            code.push(Instr::Binary(BinaryOp::Mul, sum, sum + 1));
        }
    }
    let infos = program(&code).check().unwrap();
    let mut p = program(&code);
    for _ in 0..1 + rng.below(3) {
        let reg = (code.len() - 1 - rng.below(code.len().min(6))) as u32;
        let dtype = match infos[reg as usize].kind {
            Kind::Real => rng.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16]),
            Kind::Int => rng.pick(&[DType::I64, DType::I32, DType::U8]),
            Kind::Bool => DType::Bool,
        };
        p.outputs.push(OutPort { dtype, reg });
    }
    p
}

fn random_case(seed: u32) {
    let rng = &mut Rng(seed, 0);
    let axes = 1 + rng.below(4);
    let reduces = rng.chance(60);
    let reduced = if reduces { 1 + rng.below(axes) } else { 0 };
    let mut dims: Vec<usize> = (0..axes).map(|_| rng.pick(&[1, 2, 3, 4, 5, 8, 17])).collect();
    let big = rng.below(axes);
    dims[big] = rng.pick(&[7, 64, 300, 1100, 4500, 9000]);
    while dims.iter().product::<usize>() > 60_000 {
        let d = rng.below(axes);
        dims[d] = dims[d].div_ceil(2);
    }
    let kept = axes - reduced;
    let p = random_program(rng, reduces, axes);
    let infos = p.check().unwrap();
    let ins: Vec<Buffer> = p
        .inputs
        .iter()
        .map(|port| {
            let s = strides(rng, &dims, |d| !port.row || d < kept, false);
            let mut b = Buffer::new(port.dtype, rng.pick(&[0, 0, 3]), &s, &dims);
            for i in 0..b.elements {
                let x = rng.below(17) as i32 - 8;
                b.set(
                    i,
                    match port.dtype.kind() {
                        Kind::Real => Value::Real(x as f32 / 2.0),
                        Kind::Int if port.dtype == DType::U8 => Value::Int(x.abs()),
                        Kind::Int => Value::Int(x),
                        Kind::Bool => Value::Bool(x > 0),
                    },
                );
            }
            b
        })
        .collect();
    let mut outs: Vec<Buffer> = p
        .outputs
        .iter()
        .map(|o| {
            let row = infos[o.reg as usize].row;
            let s = strides(rng, &dims, |d| !row || d < kept, true);
            Buffer::new(o.dtype, rng.pick(&[0, 2]), &s, &dims)
        })
        .collect();
    check(&p, &dims, reduced, &ins, &mut outs, 2e-5);
}

#[test]
fn random_programs_mean_what_the_interpreter_says() {
    for seed in 0..250 {
        random_case(seed);
    }
}

fn program(inputs: &[(DType, bool)], code: &str, outputs: &[(DType, u32)]) -> Program {
    Program {
        name: "test".into(),
        inputs: inputs.iter().map(|&(dtype, row)| InPort { dtype, row }).collect(),
        code: code.split('|').map(|l| l.parse().unwrap()).collect(),
        outputs: outputs.iter().map(|&(dtype, reg)| OutPort { dtype, reg }).collect(),
    }
}

fn filled(dtype: DType, dims: &[usize], f: impl Fn(usize) -> f32) -> Buffer {
    let mut b = Buffer::new(dtype, 0, &dense(dims), dims);
    for i in 0..b.elements {
        let x = f(i);
        let v = match dtype.kind() {
            Kind::Real => Value::Real(x),
            Kind::Int => Value::Int(x as i32),
            Kind::Bool => Value::Bool(x > 0.0),
        };
        b.set(i, v);
    }
    b
}

#[test]
fn every_unary_operation_on_every_format() {
    let dims = [3000];
    for &op in UnaryOp::ALL {
        for d in DType::ALL {
            let mut p = program(&[(d, false)], "load 0", &[]);
            p.code.push(Instr::Unary(op, 0));
            let Ok(infos) = p.check() else { continue };
            let out = match infos[1].kind {
                Kind::Real => DType::F32,
                Kind::Int => DType::I32,
                Kind::Bool => DType::Bool,
            };
            p.outputs.push(OutPort { dtype: out, reg: 1 });
            let domain = |i: usize| match op {
                UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Rsqrt | UnaryOp::Recip => {
                    0.01 + i as f32 / 50.0
                }
                UnaryOp::Log1p => -0.9 + i as f32 / 400.0,
                UnaryOp::Asin | UnaryOp::Acos | UnaryOp::Atanh => (i as f32 - 1500.0) / 1700.0,
                UnaryOp::Acosh => 1.1 + i as f32 / 50.0,
                _ => (i as f32 - 1500.0) / 173.0,
            };
            let x = filled(d, &dims, domain);
            let mut out = [filled(out, &dims, |_| 0.0)];
            check(&p, &dims, 0, &[x], &mut out, 1e-6);
        }
    }
}

#[test]
fn every_binary_operation_in_every_operand_form() {
    let dims = [40, 50];
    for &op in BinaryOp::ALL {
        for (d, out) in
            [(DType::F32, DType::F32), (DType::I32, DType::I32), (DType::Bool, DType::Bool)]
        {
            for form in 0..4 {
                let mut p = program(&[(d, false), (d, false)], "load 0|load 1", &[]);
                p.code.push(Instr::Binary(op, 0, 1));
                let Ok(infos) = p.check() else { continue };
                let out = if infos[2].kind == Kind::Bool { DType::Bool } else { out };
                p.outputs.push(OutPort { dtype: out, reg: 2 });
                let f = |i: usize| {
                    ((i * 7919 % 41) as f32 - 20.0) / if op == BinaryOp::Pow { -9.0 } else { 3.0 }
                };
                let mut a =
                    filled(d, &dims, |i| if op == BinaryOp::Pow { f(i).abs() } else { f(i) });
                let mut b = filled(d, &dims, |i| f(i + 5));
                if form & 1 == 1 {
                    a.strides = vec![0, 0];
                }
                if form & 2 == 2 {
                    b.strides = vec![0, 0];
                }
                let mut outs = [filled(out, &dims, |_| 0.0)];
                check(&p, &dims, 0, &[a, b], &mut outs, 1e-6);
            }
        }
    }
}

#[test]
fn every_reduction_in_every_layout() {
    for &op in ReduceOp::ALL {
        // Short rows, whole rows, long rows, split rows, columns few and many.
        for (dims, reduced, column) in [
            (vec![500, 10], 1, false),
            (vec![70, 768], 1, false),
            (vec![3, 9000], 1, false),
            (vec![20, 5000], 1, false),
            (vec![1, 300_000], 1, false),
            (vec![10, 3000], 1, true),
            (vec![2000, 100], 1, true),
            (vec![64, 5000], 1, true),
            (vec![17_000, 9], 1, true),
        ] {
            for dtype in [DType::F32, DType::Bf16] {
                let code = "load 0|real 0.25|mul %0 %1";
                let mut p = program(&[(dtype, false)], code, &[]);
                p.code.push(Instr::Reduce(op, 2));
                p.code.push(Instr::Binary(BinaryOp::Sub, 0, 3));
                p.outputs = vec![
                    OutPort { dtype: DType::F32, reg: 3 },
                    OutPort { dtype: DType::F32, reg: 4 },
                ];
                let mut x = filled(dtype, &dims, |i| ((i * 7919 % 257) as f32 - 128.0) / 64.0);
                if column {
                    x.strides = vec![1, dims[0] as i64];
                }
                let mut row = filled(DType::F32, &dims[..1], |_| 0.0);
                row.strides = vec![1, 0];
                let mut y = filled(DType::F32, &dims, |_| 0.0);
                y.strides = x.strides.clone();
                check(&p, &dims, reduced, &[x], &mut [row, y], 1e-4);
            }
        }
    }
}

#[test]
fn philox_masks_do_not_depend_on_the_layout() {
    let p = program(
        &[(DType::F32, false), (DType::I32, true)],
        "load 0|load 1|int 7|uniform %2 %1 3|real 0.25|lt %3 %4|real 0.0|select %5 %6 %0",
        &[(DType::F32, 7), (DType::F32, 3)],
    );
    for dims in [vec![6, 700], vec![3, 33, 21]] {
        for permuted in [false, true] {
            let mut x = filled(DType::F32, &dims, |i| i as f32);
            if permuted {
                let mut rev: Vec<usize> = dims.clone();
                rev.reverse();
                x.strides = dense(&rev);
                x.strides.reverse();
            }
            let mut step = filled(DType::I32, &[1], |_| 12.0);
            step.strides = vec![0; dims.len()];
            let mut outs = [filled(DType::F32, &dims, |_| 0.0), filled(DType::F32, &dims, |_| 0.0)];
            check(&p, &dims, 0, &[x, step], &mut outs, 0.0);
        }
    }
}

#[test]
fn updates_in_place_over_many_tensors() {
    // Momentum: v = 0.9 v + g; p = p - 0.1 v, with a bf16 copy, over tensors of many sizes.
    let p = program(
        &[(DType::F32, false), (DType::F32, false), (DType::F32, false)],
        "load 0|load 1|load 2|real 0.9|mul %3 %1|add %4 %2|real 0.1|mul %6 %5|sub %0 %7",
        &[(DType::F32, 8), (DType::F32, 5), (DType::Bf16, 8)],
    );
    let infos = p.check().unwrap();
    let sizes = [1, 10, 1000, 70_000, 3, 200_000, 64];
    let make = |k: f32| -> Vec<Buffer> {
        sizes.iter().map(|&n| filled(DType::F32, &[n], |i| (i % 13) as f32 * k)).collect()
    };
    let (w, v, g) = (make(0.5), make(0.25), make(0.125));
    let copy: Vec<Buffer> = sizes.iter().map(|&n| filled(DType::Bf16, &[n], |_| 0.0)).collect();
    let dims: Vec<[usize; 1]> = sizes.iter().map(|&n| [n]).collect();
    let inputs: Vec<[Bound; 3]> =
        (0..sizes.len()).map(|i| [w[i].bound(), v[i].bound(), g[i].bound()]).collect();
    let outputs: Vec<[Bound; 3]> =
        (0..sizes.len()).map(|i| [w[i].bound(), v[i].bound(), copy[i].bound()]).collect();
    let spaces: Vec<Space> = (0..sizes.len())
        .map(|i| Space { dims: &dims[i], reduced: 0, inputs: &inputs[i], outputs: &outputs[i] })
        .collect();
    let kernel = RowsKernel::new(&p, &infos, &spaces).unwrap();
    let mut pool = Pool::new(2).unwrap();
    pool.reserve(kernel.scratch_bytes()).unwrap();
    // SAFETY: the buffers are alive; inputs that overlap outputs have the same layout.
    unsafe { kernel.run(&pool) };
    for (t, &n) in sizes.iter().enumerate() {
        for i in 0..n {
            let k = (i % 13) as f32;
            let vel = 0.9 * (k * 0.25) + k * 0.125;
            let new = k * 0.5 - 0.1 * vel;
            assert_eq!(v[t].get(i), Value::Real(vel));
            assert_eq!(w[t].get(i), Value::Real(new));
            assert_eq!(copy[t].get(i), Value::Real(DType::Bf16.round(new)));
        }
    }
}

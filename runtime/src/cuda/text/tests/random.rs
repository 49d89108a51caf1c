//! Random programs, spaces, layouts and formats.

use super::{Case, check};
use precast_plan::*;

/// A stream of random words (SplitMix64, Steele et al. 2014).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((((z ^ (z >> 31)) >> 32) * n as u64) >> 32) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// Small halves: sums of many are exact in f32.
fn halves(t: TensorId, i: u64) -> f32 {
    let h = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ u64::from(t) << 20);
    ((h >> 40) % 17) as f32 / 2.0 - 4.0
}

fn random_program(rng: &mut Rng, reduces: bool, axes: usize) -> Program {
    let real = [DType::F32, DType::F32, DType::F16, DType::Bf16, DType::Bf16, DType::F8e4m3];
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
        let infos = program(&code).check().expect("well formed so far");
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
    let infos = program(&code).check().expect("well formed");
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

/// Dense strides over the axes in random order, some axes broadcast, sometimes with gaps.
fn strides(rng: &mut Rng, dims: &[u64], may: impl Fn(usize) -> bool, must: bool) -> Vec<i64> {
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

fn random_case(seed: u64) -> Case {
    let rng = &mut Rng(seed);
    let axes = 1 + rng.below(4);
    let reduces = rng.chance(60);
    let reduced = if reduces { 1 + rng.below(axes) } else { 0 };
    let p = random_program(rng, reduces, axes);
    let infos = p.check().expect("well formed");
    let kept = axes - reduced;
    let (inputs, outputs) = (p.inputs.clone(), p.outputs.clone());
    let mut case = Case::new(p);
    let instances = if rng.chance(20) { 2 + rng.below(3) } else { 1 };
    for _ in 0..instances {
        let mut dims: Vec<u64> = (0..axes).map(|_| rng.pick(&[1, 2, 3, 4, 5, 8, 16, 17])).collect();
        let big = rng.below(axes);
        dims[big] = rng.pick(&[7, 64, 304, 1100, 4500, 9000]);
        while dims.iter().product::<u64>() > 40_000 / instances as u64 {
            let d = rng.below(axes);
            dims[d] = dims[d].div_ceil(2);
        }
        let ins = inputs.iter().map(|port| {
            let s = strides(rng, &dims, |d| !port.row || d < kept, false);
            let offset = rng.pick(&[0, 0, 0, 3]);
            case.access(port.dtype, &dims, offset, &s)
        });
        let ins = ins.collect();
        let outs = outputs.iter().map(|o| {
            let row = infos[o.reg as usize].row;
            let s = strides(rng, &dims, |d| !row || d < kept, true);
            let offset = rng.pick(&[0, 0, 2]);
            case.access(o.dtype, &dims, offset, &s)
        });
        let outs = outs.collect();
        case.instance(&dims, reduced as u32, ins, outs);
    }
    case.whole()
}

#[test]
fn random_programs_mean_what_the_interpreter_says() {
    let first = std::env::var("PRECAST_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let cases: Vec<(Case, f32)> = (first..first + 96).map(|s| (random_case(s), 2e-5)).collect();
    check(&cases, halves);
}

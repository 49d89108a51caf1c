//! Speed of row programs on this machine, against a plain copy: `cargo run --release -p
//! precast-runtime --example rows_speed [threads]`.
//!
//! Bytes are those read and written once; a figure is the best of several runs.

use precast_plan::{DType, InPort, OutPort, Program};
use precast_runtime::cpu::pool::{Aligned, Pool};
use precast_runtime::cpu::rows::{Bound, RowsKernel, Space};
use std::time::Instant;

struct Case {
    name: &'static str,
    dims: Vec<usize>,
    reduced: usize,
    code: String,
    /// Format and strides of the inputs and outputs; the register of outputs.
    inputs: Vec<(DType, bool, Vec<i64>)>,
    outputs: Vec<(DType, u32, Vec<i64>)>,
}

fn best(mut f: impl FnMut()) -> f64 {
    f();
    (0..7)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn copy_speed(pool: &Pool) -> f64 {
    let n = 64 << 20;
    let (a, b) = (Aligned::new(n).unwrap(), Aligned::new(n).unwrap());
    // SAFETY: both blocks are alive, apart, and have n bytes; tasks touch their own parts.
    unsafe { std::ptr::write_bytes(a.ptr(), 1, n) };
    let parts = pool.threads();
    let (from, to) = (a.ptr() as usize, b.ptr() as usize);
    let t = best(|| {
        pool.for_each(parts, |i, _| {
            let (at, len) = (n / parts * i, n / parts);
            // SAFETY: as above.
            unsafe {
                std::ptr::copy_nonoverlapping((from + at) as *const u8, (to + at) as *mut u8, len)
            };
        });
    });
    2.0 * n as f64 / t / 1e9
}

fn run(case: &Case, pool: &mut Pool, copy: f64) {
    let program = Program {
        name: case.name.into(),
        inputs: case.inputs.iter().map(|&(dtype, row, _)| InPort { dtype, row }).collect(),
        code: case.code.split('|').map(|l| l.parse().expect("an instruction")).collect(),
        outputs: case.outputs.iter().map(|&(dtype, reg, _)| OutPort { dtype, reg }).collect(),
    };
    let infos = program.check().expect("a program");
    let mut memory = vec![];
    let mut bytes = 0;
    let mut bind = |dtype: DType, strides: &[i64]| {
        let last: i64 = case.dims.iter().zip(strides).map(|(&n, &s)| (n as i64 - 1) * s).sum();
        let len = (last as usize + 1) * dtype.size();
        bytes += len;
        let m = Aligned::new(len).unwrap();
        if dtype == DType::F32 {
            let p = m.ptr().cast::<f32>();
            // SAFETY: the block holds the elements.
            (0..len / 4).for_each(|i| unsafe { p.add(i).write((i % 97) as f32 / 50.0 - 0.9) });
        }
        let ptr = m.ptr();
        memory.push(m);
        Bound { ptr, bytes: len, dtype, offset: 0, strides: strides.to_vec() }
    };
    let inputs: Vec<Bound> = case.inputs.iter().map(|(d, _, s)| bind(*d, s)).collect();
    let outputs: Vec<Bound> = case.outputs.iter().map(|(d, _, s)| bind(*d, s)).collect();
    let space =
        Space { dims: &case.dims, reduced: case.reduced, inputs: &inputs, outputs: &outputs };
    let kernel = RowsKernel::new(&program, &infos, &[space]).unwrap();
    pool.reserve(kernel.scratch_bytes()).unwrap();
    // SAFETY: the blocks are alive and bound as the program wants them.
    let t = best(|| pool.install(|| unsafe { kernel.run(pool) }));
    let speed = bytes as f64 / t / 1e9;
    let instructions = program.code.len();
    println!(
        "{:28} {:>9.3} ms {:>7.2} GB/s {:>5.0} % of copy  {instructions} instructions",
        case.name,
        t * 1e3,
        speed,
        100.0 * speed / copy
    );
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1);
    let mut pool = Pool::new(threads).unwrap();
    let copy = copy_speed(&pool);
    println!("{threads} threads; copy {copy:.2} GB/s");
    let f = DType::F32;
    let n = 8 << 20;
    let (rows, cols) = (8192, 768);
    let c = cols as i64;
    let flat = |code: &str, ins: &[DType], outs: &[(DType, u32)], name| Case {
        name,
        dims: vec![n],
        reduced: 0,
        code: code.into(),
        inputs: ins.iter().map(|&d| (d, false, vec![1])).collect(),
        outputs: outs.iter().map(|&(d, r)| (d, r, vec![1])).collect(),
    };
    let cheap = "load 0|real 0.5|mul %0 %1|add %2 %0|max %3 %1|sub %4 %2|abs %5|mul %6 %6|min %7 %3|neg %8|add %9 %0|mul %10 %1";
    let adamw = "load 0|load 1|load 2|load 3|real 0.9|mul %1 %4|real 0.1|mul %3 %6|add %5 %7|real 0.999|mul %2 %9|mul %3 %3|real 0.001|mul %11 %12|add %10 %13|sqrt %14|real 1e-8|add %15 %16|div %8 %17|real 0.01|mul %0 %19|add %18 %20|real 0.001|mul %21 %22|sub %0 %23";
    let gelu = "load 0|load 1|add %0 %1|real 0.70710677|mul %2 %3|erf %4|real 1.0|add %5 %6|real 0.5|mul %2 %8|mul %9 %7";
    let softmax = "load 0|reduce.max %0|sub %0 %1|exp %2|reduce.sum %3|div %3 %4";
    let norm = "load 0|reduce.sum %0|real 0.0013020834|mul %1 %2|sub %0 %3|mul %4 %4|reduce.sum %5|mul %6 %2|real 1e-5|add %7 %8|rsqrt %9|mul %4 %10|load 1|load 2|mul %11 %12|add %14 %13";
    let cases = [
        flat("load 0|load 1|add %0 %1", &[f, f], &[(f, 2)], "add"),
        flat(cheap, &[f], &[(f, 11)], "10 cheap operations"),
        flat(cheap, &[DType::Bf16], &[(DType::Bf16, 11)], "10 cheap operations, bf16"),
        flat(adamw, &[f; 4], &[(f, 24), (f, 8), (f, 14)], "AdamW"),
        flat("load 0|exp %0", &[f], &[(f, 1)], "exp"),
        Case {
            name: "bias + GELU",
            dims: vec![rows, cols],
            reduced: 0,
            code: gelu.into(),
            inputs: vec![(f, false, vec![c, 1]), (f, false, vec![0, 1])],
            outputs: vec![(f, 10, vec![c, 1])],
        },
        Case {
            name: "softmax",
            dims: vec![rows, cols],
            reduced: 1,
            code: softmax.into(),
            inputs: vec![(f, false, vec![c, 1])],
            outputs: vec![(f, 5, vec![c, 1])],
        },
        Case {
            name: "softmax, long rows",
            dims: vec![128, 50_257],
            reduced: 1,
            code: softmax.into(),
            inputs: vec![(f, false, vec![50_257, 1])],
            outputs: vec![(f, 5, vec![50_257, 1])],
        },
        Case {
            name: "layer norm",
            dims: vec![rows, cols],
            reduced: 1,
            code: norm.into(),
            inputs: vec![(f, false, vec![c, 1]), (f, false, vec![0, 1]), (f, false, vec![0, 1])],
            outputs: vec![(f, 15, vec![c, 1])],
        },
        Case {
            name: "column sum",
            dims: vec![cols, rows],
            reduced: 1,
            code: "load 0|reduce.sum %0".into(),
            inputs: vec![(f, false, vec![1, c])],
            outputs: vec![(f, 1, vec![1, 0])],
        },
        Case {
            name: "column sum, 64 columns",
            dims: vec![64, 65_536],
            reduced: 1,
            code: "load 0|reduce.sum %0".into(),
            inputs: vec![(f, false, vec![1, 64])],
            outputs: vec![(f, 1, vec![1, 0])],
        },
        Case {
            name: "full sum of squares",
            dims: vec![1, n],
            reduced: 1,
            code: "load 0|mul %0 %0|reduce.sum %1".into(),
            inputs: vec![(f, false, vec![0, 1])],
            outputs: vec![(f, 2, vec![1, 0])],
        },
        Case {
            name: "transpose",
            dims: vec![4096, 1024],
            reduced: 0,
            code: "load 0".into(),
            inputs: vec![(f, false, vec![1, 4096])],
            outputs: vec![(f, 0, vec![1024, 1])],
        },
    ];
    for case in &cases {
        run(case, &mut pool, copy);
    }
}

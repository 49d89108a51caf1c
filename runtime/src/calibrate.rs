//! Measures this machine's CPU backend and writes a target description.
//!
//! Every figure comes from running a small plan on the real backend, so that it includes packing,
//! epilogue and thread start. Each is the best of several runs: other work on the machine can only
//! slow a run down. A plan never depends on this clock by itself: the description is a file that a
//! person chooses to compile with.

use crate::backend::{Backend, Phase};
use crate::cpu::CpuBackend;
use crate::error::Result;
use precast_plan::{
    Access, Attention, AttentionGrad, BinaryOp, Conv, ConvGeometry, ConvKind, DType, Epilogue,
    EpilogueKind, Family, Gemm, InPort, Init, Instance, Instr, Kernel, Math, OutPort, Plan,
    Program, Role, Rows, Speed, Step, Storage, Summary, Target, TargetSummary, Tensor, UnaryOp,
    VERSION,
};
use std::time::Instant;

/// Formats whose products are measured.
const FORMATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Measures everything, with `threads` threads (0: every core). `progress` is told what comes next.
///
/// # Errors
/// If memory cannot be had.
pub fn calibrate(name: &str, threads: usize, progress: &mut dyn FnMut(&str)) -> Result<Target> {
    progress("row programs");
    let (entry, launch_ns) = starts(threads)?;
    let clock = Clock { threads, entry };
    // 64 MB read and 64 MB written: beyond any cache that a core has to itself.
    let stream = 16 << 20;
    let streamed = rows(&clock, stream, &[DType::F32; 2], |_| vec![])?;
    let bandwidth_gbs = (8 * stream) as f64 / streamed;
    // In cache, the difference to a copy is the instructions; 64 of them make it large.
    let n = 1 << 16;
    let copy = rows(&clock, n, &[DType::F32; 2], |_| vec![])?;
    let per_element = |t: f64, times: u64| ((t - copy) / (n * times) as f64).max(0.0);
    let chain =
        |times: u64, f: &dyn Fn(u32) -> Instr| -> Vec<Instr> { (0..times as u32).map(f).collect() };
    let simple = |r: u32| {
        Instr::Binary(if r.is_multiple_of(2) { BinaryOp::Add } else { BinaryOp::Mul }, r, 0)
    };
    let simple_ns = per_element(rows(&clock, n, &[DType::F32; 2], |_| chain(64, &simple))?, 64);
    let divide = |r: u32| Instr::Binary(BinaryOp::Div, r, 0);
    let divide_ns = per_element(rows(&clock, n, &[DType::F32; 2], |_| chain(16, &divide))?, 16);
    let tanh = |r: u32| Instr::Unary(UnaryOp::Tanh, r);
    let transcendental_ns = per_element(rows(&clock, n, &[DType::F32; 2], |_| chain(8, &tanh))?, 8);
    let mut convert_ns = vec![];
    for format in FORMATS.into_iter().filter(|f| f.is_low_precision()) {
        let round = |r: u32| Instr::Round(format, r);
        convert_ns.push((
            format,
            per_element(rows(&clock, n, &[DType::F32; 2], |_| chain(16, &round))?, 16),
        ));
    }
    let mut products = vec![];
    for format in FORMATS {
        for family in Family::ALL {
            progress(&format!("{family:?} in {format}"));
            products.push(Speed { family, format, points: points(family, format, &clock)? });
        }
    }
    let target = Target {
        name: name.into(),
        device: "cpu".into(),
        source: format!("measured: {}", describe(threads)?),
        bandwidth_gbs,
        launch_ns,
        simple_ns,
        divide_ns,
        transcendental_ns,
        convert_ns,
        products,
    };
    Ok(target)
}

fn describe(threads: usize) -> Result<String> {
    let mut plan = Builder::default();
    plan.rows(16, &[DType::F32; 2], vec![]);
    Ok(CpuBackend::new(&plan.finish(), threads)?.describe())
}

/// Nanoseconds of a row program `out = code(in)` over `n` elements; `code` lists what follows the
/// load (register 0), each instruction reading earlier ones.
fn rows(
    clock: &Clock,
    n: u64,
    formats: &[DType; 2],
    code: impl Fn(u32) -> Vec<Instr>,
) -> Result<f64> {
    let mut plan = Builder::default();
    plan.rows(n, formats, code(0));
    clock.time(plan.finish())
}

/// Speed by size, GFLOP/s. Sizes are as [`Speed::points`] defines them.
fn points(family: Family, format: DType, clock: &Clock) -> Result<Vec<(f64, f64)>> {
    let mut list = vec![];
    let mut add = |size: f64, flops: f64, plan: Builder| -> Result<()> {
        list.push((size, flops / clock.time(plan.finish())?));
        Ok(())
    };
    match family {
        Family::Gemm => {
            for n in [16u64, 64, 192, 384, 1024] {
                let mut plan = Builder::default();
                plan.gemm(n, format);
                add(n as f64, 2.0 * (n * n * n) as f64, plan)?;
            }
        }
        Family::Conv | Family::ConvDataGrad | Family::ConvFilterGrad => {
            for (n, c, size) in [(4u64, 8u64, 8u64), (16, 32, 16), (16, 64, 16), (16, 128, 16)] {
                let g = geometry(n, c, size);
                let kind = match family {
                    Family::Conv => ConvKind::Forward,
                    Family::ConvDataGrad => ConvKind::DataGrad,
                    _ => ConvKind::FilterGrad,
                };
                // As a product: o × (n·oh·ow) × (c·kh·kw).
                let (m, cols, k) = (g.o, g.n * g.oh * g.ow, g.c * g.kh * g.kw);
                let volume = (m * cols * k) as f64;
                let mut plan = Builder::default();
                plan.conv(kind, g, format);
                add(volume.cbrt(), 2.0 * volume, plan)?;
            }
        }
        Family::Attention | Family::AttentionGrad => {
            for (batch, t) in [(8u64, 32u64), (8, 128), (2, 512)] {
                let (heads, d) = (4u64, 64u64);
                let flops = 4.0 * (batch * heads * t * t * d) as f64;
                let mut plan = Builder::default();
                plan.attention(batch, heads, t, d, format, family == Family::AttentionGrad);
                let flops = if family == Family::AttentionGrad { 2.5 * flops } else { flops };
                add((t as f64 * t as f64 * d as f64).cbrt(), flops, plan)?;
            }
        }
    }
    Ok(list)
}

fn geometry(n: u64, c: u64, size: u64) -> ConvGeometry {
    ConvGeometry {
        n,
        c,
        h: size,
        w: size,
        o: c,
        kh: 3,
        kw: 3,
        oh: size,
        ow: size,
        stride: [1, 1],
        pad: [1; 4],
        dilation: [1, 1],
        groups: 1,
    }
}

/// Nanoseconds that a phase takes before its first kernel (waking the threads), and that each of
/// its kernels takes to start: the ends and the slope of phases of 1 and of 33 tiny kernels.
fn starts(threads: usize) -> Result<(f64, f64)> {
    let of = |kernels: usize| {
        let mut plan = Builder::default();
        (0..kernels).for_each(|_| plan.rows(16, &[DType::F32; 2], vec![]));
        time(plan.finish(), threads)
    };
    let (one, many) = (of(1)?, of(33)?);
    let launch = ((many - one) / 32.0).max(1.0);
    Ok(((one - launch).max(0.0), launch))
}

/// Times plans of one kernel without the entry into their phase, which a step pays once.
struct Clock {
    threads: usize,
    entry: f64,
}

impl Clock {
    fn time(&self, plan: Plan) -> Result<f64> {
        // At least a tenth of what was measured: the entry varies, and speed must be positive.
        let all = time(plan, self.threads)?;
        Ok((all - self.entry).max(0.1 * all))
    }
}

/// Best nanoseconds of one run of the plan: at least 5 runs and 30 ms after a warm-up.
fn time(plan: Plan, threads: usize) -> Result<f64> {
    let mut backend = CpuBackend::new(&plan, threads)?;
    for (id, t) in plan.tensors.iter().enumerate() {
        // Numbers that neither overflow nor vanish: zeros multiply faster than real data.
        let n = t.shape.iter().product::<u64>();
        let bytes: Vec<u8> = (0..n)
            .flat_map(|i| {
                let x = ((i.wrapping_mul(2_654_435_761) >> 7) % 1000) as f32 / 1000.0 + 0.25;
                t.dtype.encode(x).to_le_bytes().into_iter().take(t.dtype.size())
            })
            .collect();
        backend.write(id as u32, &bytes)?;
    }
    backend.run(Phase::Micro)?;
    let start = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < 5 || (start.elapsed().as_millis() < 30 && runs < 2000) {
        let one = Instant::now();
        backend.run(Phase::Micro)?;
        best = best.min(one.elapsed().as_secs_f64() * 1e9);
        runs += 1;
    }
    Ok(best)
}

/// A plan of one step over persistent tensors.
#[derive(Default)]
struct Builder {
    tensors: Vec<Tensor>,
    programs: Vec<Program>,
    steps: Vec<Step>,
    bytes: u64,
}

impl Builder {
    fn tensor(&mut self, shape: &[u64], dtype: DType) -> Access {
        let id = self.tensors.len() as u32;
        let storage =
            Storage::Persistent { offset: self.bytes, role: Role::Buffer, init: Init::Zeros };
        let elements: u64 = shape.iter().product();
        self.bytes += (elements * dtype.size() as u64).next_multiple_of(64);
        self.tensors.push(Tensor { name: format!("t{id}"), dtype, shape: shape.to_vec(), storage });
        let mut strides = vec![1i64; shape.len()];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * shape[i + 1] as i64;
        }
        Access { tensor: id, offset: 0, strides }
    }

    fn step(&mut self, kernel: Kernel) {
        self.steps.push(Step { name: "step".into(), ops: vec![], kernel, predicted_ns: 0.0 });
    }

    fn rows(&mut self, n: u64, formats: &[DType; 2], rest: Vec<Instr>) {
        let (x, y) = (self.tensor(&[n], formats[0]), self.tensor(&[n], formats[1]));
        let mut code = vec![Instr::Load { port: 0 }];
        code.extend(rest);
        let reg = code.len() as u32 - 1;
        self.programs.push(Program {
            name: "rows".into(),
            inputs: vec![InPort { dtype: formats[0], row: false }],
            code,
            outputs: vec![OutPort { dtype: formats[1], reg }],
        });
        let instance = Instance { dims: vec![n], reduced: 0, inputs: vec![x], outputs: vec![y] };
        self.step(Kernel::Rows(Rows { program: 0, instances: vec![instance] }));
    }

    /// An epilogue that stores the accumulator as f32.
    fn store(&mut self, output: Access) -> Epilogue {
        self.programs.push(Program {
            name: "store".into(),
            inputs: vec![InPort { dtype: DType::F32, row: false }],
            code: vec![Instr::Load { port: 0 }],
            outputs: vec![OutPort { dtype: DType::F32, reg: 0 }],
        });
        Epilogue { kind: EpilogueKind::Store, program: 0, inputs: vec![], outputs: vec![output] }
    }

    fn gemm(&mut self, n: u64, format: DType) {
        let square = |s: &mut Builder, dtype| {
            let mut a = s.tensor(&[n, n], dtype);
            a.strides = vec![0, 0, n as i64, 1];
            a
        };
        let (a, b) = (square(self, format), square(self, format));
        let y = square(self, DType::F32);
        let epilogue = self.store(y);
        let (batch, math) = ([1, 1], Math::Exact);
        self.step(Kernel::Gemm(Gemm { batch, m: n, n, k: n, a, b, math, epilogue, sums: None }));
    }

    fn conv(&mut self, kind: ConvKind, g: ConvGeometry, format: DType) {
        let x = [g.n, g.c, g.h, g.w];
        let w = [g.o, g.c, g.kh, g.kw];
        let y = [g.n, g.o, g.oh, g.ow];
        let (a, b, out) = match kind {
            ConvKind::Forward => (x, w, y),
            ConvKind::DataGrad => (y, w, x),
            ConvKind::FilterGrad => (x, y, w),
        };
        let (a, b) = (self.tensor(&a, format), self.tensor(&b, format));
        let out = self.tensor(&out, DType::F32);
        let epilogue = self.store(out);
        let math = Math::Exact;
        self.step(Kernel::Conv(Conv { kind, geometry: g, a, b, math, epilogue }));
    }

    fn attention(&mut self, batch: u64, heads: u64, t: u64, d: u64, format: DType, grad: bool) {
        let one = |s: &mut Builder| s.tensor(&[batch, heads, t, d], format);
        let (q, k, v, o) = (one(self), one(self), one(self), one(self));
        let lse = self.tensor(&[batch, heads, t], DType::F32);
        let scale = 1.0 / (d as f32).sqrt();
        let forward = Attention {
            batch,
            heads,
            tq: t,
            tk: t,
            d,
            scale,
            causal: false,
            mask: None,
            q,
            k,
            v,
            o,
            lse,
        };
        if grad {
            let (d_o, d_q) = (one(self), one(self));
            let (d_k, d_v) = (one(self), one(self));
            self.step(Kernel::AttentionGrad(AttentionGrad { forward, d_o, d_q, d_k, d_v }));
        } else {
            self.step(Kernel::Attention(forward));
        }
    }

    fn finish(self) -> Plan {
        Plan {
            version: VERSION,
            model: "calibration".into(),
            target: TargetSummary { name: "cpu".into(), device: "cpu".into() },
            tensors: self.tensors,
            programs: self.programs,
            micro: self.steps,
            update: vec![],
            eval: vec![],
            accumulate: 1,
            arena_bytes: 0,
            arena_bound_bytes: 0,
            persistent_bytes: self.bytes,
            results: vec![],
            eval_results: vec![],
            classes: vec![],
            summary: Summary::default(),
            journal: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_and_format_can_be_measured() {
        for family in Family::ALL {
            for format in FORMATS {
                // The smallest size alone: the numbers are the machine's business.
                let p = match family {
                    Family::Gemm => {
                        let mut b = Builder::default();
                        b.gemm(16, format);
                        b
                    }
                    Family::Conv | Family::ConvDataGrad | Family::ConvFilterGrad => {
                        let kind = match family {
                            Family::Conv => ConvKind::Forward,
                            Family::ConvDataGrad => ConvKind::DataGrad,
                            _ => ConvKind::FilterGrad,
                        };
                        let mut b = Builder::default();
                        b.conv(kind, geometry(1, 4, 4), format);
                        b
                    }
                    Family::Attention | Family::AttentionGrad => {
                        let mut b = Builder::default();
                        b.attention(1, 1, 8, 8, format, family == Family::AttentionGrad);
                        b
                    }
                };
                let ns = time(p.finish(), 1).unwrap_or_else(|e| panic!("{family:?} {format}: {e}"));
                assert!(ns > 0.0 && ns.is_finite());
            }
        }
    }
}

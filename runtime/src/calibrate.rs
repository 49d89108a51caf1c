//! Measures this machine's CPU backend and writes a target description.
//!
//! Every figure comes from running a small plan on the real backend, so that it includes packing,
//! epilogue and thread start. Each is a median of several runs, over rounds that are repeated until they
//! agree ([`settle`]). A plan never depends on this clock by itself: the description is a file that a
//! person chooses to compile with.

use crate::backend::{Backend, Phase};
use crate::cpu::CpuBackend;
use crate::error::Result;
use precast_plan::{
    Access, Attention, AttentionGrad, BinaryOp, Cache, Conv, ConvGeometry, ConvKind, DType,
    Epilogue, EpilogueKind, Family, Gemm, InPort, Init, Instance, Instr, Kernel, Math, OutPort,
    Plan, Program, Role, Rows, Speed, Step, Storage, Summary, Target, TargetSummary, Tensor,
    UnaryOp, VERSION,
};
use settle::{Samples, settle};
use std::cell::RefCell;
use std::time::{Duration, Instant};

mod settle;

pub use settle::{Limits, Unsteady};

/// Formats whose products are measured.
const FORMATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// A description of this machine, and whether what it was measured by could be believed.
#[derive(Clone, Debug)]
pub struct Calibrated {
    pub target: Target,
    /// Times that did not settle within the limits.
    pub unsteady: Option<Unsteady>,
    pub rounds: u32,
}

/// Measures everything, with `threads` threads (0: every core). `progress` is told what comes next.
///
/// # Errors
/// If memory cannot be had.
pub fn calibrate(
    name: &str,
    threads: usize,
    limits: &Limits,
    progress: &mut dyn FnMut(&str),
) -> Result<Calibrated> {
    let begin = Instant::now();
    let source = format!("measured: {}", describe(threads)?);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let run = Run {
        name,
        source,
        threads: if threads == 0 { cores } else { threads },
        timer: &|plan| time(plan, threads),
    };
    with(&run, limits, &mut || begin.elapsed(), progress)
}

/// What is measured, and by which clock.
struct Run<'r> {
    name: &'r str,
    source: String,
    threads: usize,
    /// Median nanoseconds of a phase.
    timer: &'r dyn Fn(Plan) -> Result<f64>,
}

/// [`calibrate`] with any clock.
fn with(
    run: &Run,
    limits: &Limits,
    elapsed: &mut dyn FnMut() -> Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Calibrated> {
    let (mut target, mut rounds) = (None, 0);
    let (_, unsteady) = settle(limits, elapsed, |round, samples| {
        rounds = round;
        let record = Record { samples: std::mem::take(samples), next: 0, spread: limits.spread };
        let mut say = |what: &str| progress(&format!("{what} (round {round})"));
        let (description, record) = measure(run, record, &mut say)?;
        target = Some(description);
        *samples = record.samples;
        Ok(())
    })?;
    Ok(Calibrated { target: target.expect("there is a first round"), unsteady, rounds })
}

/// Every measurement so far, in the order in which they are made.
struct Record {
    samples: Vec<Samples>,
    next: usize,
    /// [`Limits::spread`]
    spread: f64,
}

/// One round: a description from the times of this round and those before.
fn measure(run: &Run, record: Record, progress: &mut dyn FnMut(&str)) -> Result<(Target, Record)> {
    progress("row programs");
    let mut clock = Clock {
        timer: run.timer,
        record: RefCell::new(record),
        what: RefCell::default(),
        entry: 0.0,
        launch: 0.0,
        bandwidth_gbs: 0.0,
        cache: None,
        convert_ns: vec![],
    };
    clock.is("the start of a kernel");
    (clock.entry, clock.launch) = clock.starts()?;
    clock.is("row programs");
    // 64 MB read and 64 MB written: beyond any cache that a core has to itself.
    let stream = 16 << 20;
    let streamed = rows(&clock, stream, &[DType::F32; 2], |_| vec![])?;
    let bandwidth_gbs = (8 * stream) as f64 / streamed;
    clock.bandwidth_gbs = bandwidth_gbs;
    clock.cache = cache(&clock)?;
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
    clock.convert_ns.clone_from(&convert_ns);
    let handover_ns = handover(&clock, run.threads)?;
    let mut products = vec![];
    for format in FORMATS {
        for family in Family::ALL {
            let what = format!("{family:?} in {format}");
            progress(&what);
            clock.is(&what);
            let points = points(family, format, &clock)?;
            products.push(Speed { family, format: format.into(), points });
        }
    }
    let target = Target {
        name: run.name.into(),
        device: "cpu".into(),
        source: run.source.clone(),
        bandwidth_gbs,
        cache: clock.cache,
        launch_ns: clock.launch,
        handover_ns,
        simple_ns,
        divide_ns,
        transcendental_ns,
        convert_ns,
        products,
    };
    Ok((target, clock.record.into_inner()))
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
    Ok(clock.time(|plan| plan.rows(n, formats, code(0)))?.1)
}

/// What a kernel takes longer that every thread has a part of than one of a single part: nanoseconds, of
/// many such kernels in a row. `None` where there is one thread.
fn handover(clock: &Clock, threads: usize) -> Result<Option<f64>> {
    if threads < 2 {
        return Ok(None);
    }
    clock.is("the hand-over between threads");
    // Little work, so that what is left beside it can be seen: a part of 1024 elements and 63
    // instructions, just short of what is shared, and as many parts as there are threads.
    let part = 1024;
    let chain = |plan: &mut Builder, n: u64| {
        let simple = |r: u32| {
            Instr::Binary(if r.is_multiple_of(2) { BinaryOp::Add } else { BinaryOp::Mul }, r, 0)
        };
        plan.rows(n, &[DType::F32; 2], (0..62).map(simple).collect());
    };
    let one = clock.phase(|| 33, |plan| chain(plan, part))?.1;
    let all = clock.phase(|| 33, |plan| chain(plan, part * threads as u64))?.1;
    // Those of the first kind lie behind one another on one thread.
    Ok(Some(((all - one) / 33.0).max(0.0)))
}

/// The largest set of tensors that is copied at least half again as fast as memory is, and the
/// slowest speed of sets up to that size; `None` where even the smallest is not.
fn cache(clock: &Clock) -> Result<Option<Cache>> {
    let mut speeds = vec![];
    // All sizes in every round: rounds measure the same things in the same order.
    for bytes in (20..=26).map(|power| 1u64 << power) {
        // A copy reads the half of them and writes the other.
        let ns = rows(clock, bytes / 8, &[DType::F32; 2], |_| vec![])?;
        speeds.push((bytes, bytes as f64 / ns));
    }
    let mut found: Option<Cache> = None;
    for (bytes, speed) in speeds.into_iter().take_while(|s| s.1 >= 1.5 * clock.bandwidth_gbs) {
        let slowest = found.map_or(speed, |c| c.bandwidth_gbs.min(speed));
        found = Some(Cache { bytes, bandwidth_gbs: slowest });
    }
    Ok(found)
}

/// Speed by size, GFLOP/s. Sizes are as [`Speed::points`] defines them.
fn points(family: Family, format: DType, clock: &Clock) -> Result<Vec<(f64, f64)>> {
    let mut list = vec![];
    let mut add = |size: f64, flops: f64, build: &dyn Fn(&mut Builder)| -> Result<()> {
        list.push((size, flops / clock.multiplication(build)?));
        Ok(())
    };
    match family {
        Family::Gemm => {
            for n in [16u64, 64, 192, 384, 1024] {
                add(n as f64, 2.0 * (n * n * n) as f64, &|plan| plan.gemm(n, format))?;
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
                add(volume.cbrt(), 2.0 * volume, &|plan| plan.conv(kind, g.clone(), format))?;
            }
        }
        Family::Attention | Family::AttentionGrad => {
            for (batch, t) in [(8u64, 32u64), (8, 128), (2, 512)] {
                let (heads, d) = (4u64, 64u64);
                let flops = 4.0 * (batch * heads * t * t * d) as f64;
                let grad = family == Family::AttentionGrad;
                let flops = if grad { 2.5 * flops } else { flops };
                add((t as f64 * t as f64 * d as f64).cbrt(), flops, &|plan| {
                    plan.attention(batch, heads, t, d, format, grad);
                })?;
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

/// A phase of this many nanoseconds is long against what varies in entering it.
const LONG: f64 = 300e3;

/// Times single kernels: without the entry into their phase, which a step pays once, and without
/// their start, which the cost model charges for every kernel.
struct Clock<'t> {
    timer: &'t dyn Fn(Plan) -> Result<f64>,
    record: RefCell<Record>,
    /// What is measured now, for people.
    what: RefCell<String>,
    /// Entering a phase, and starting one of its kernels, ns; 0 until they are known.
    entry: f64,
    launch: f64,
    /// Of a streaming kernel; 0 until it is known.
    bandwidth_gbs: f64,
    cache: Option<Cache>,
    /// As [`Target::convert_ns`]; empty until it is known.
    convert_ns: Vec<(DType, f64)>,
}

impl Clock<'_> {
    fn is(&self, what: &str) {
        *self.what.borrow_mut() = what.into();
    }

    /// Nanoseconds of a phase of as many kernels as `copies` says, which is asked in the first round
    /// alone so that every round measures the same; and how many they are.
    fn phase(
        &self,
        copies: impl FnOnce() -> u32,
        build: impl Fn(&mut Builder),
    ) -> Result<(u32, f64)> {
        let mut record = self.record.borrow_mut();
        let at = record.next;
        record.next += 1;
        // What is measured must not depend on times, or one figure would be taken for another.
        if at == record.samples.len() {
            record.samples.push(Samples::new(&self.what.borrow(), copies()));
        }
        let spread = record.spread;
        let entry = &mut record.samples[at];
        if entry.spread() > spread {
            let mut plan = Builder::default();
            (0..entry.copies).for_each(|_| build(&mut plan));
            entry.add((self.timer)(plan.finish())?);
        }
        Ok((entry.copies, entry.ns()))
    }

    /// Nanoseconds that a phase takes before its first kernel (waking the threads), and that each
    /// of its kernels takes to start: the ends and the slope of phases of 1 and of 33 tiny kernels.
    fn starts(&self) -> Result<(f64, f64)> {
        let of = |n: u32| self.phase(|| n, |plan| plan.rows(16, &[DType::F32; 2], vec![]));
        let ((_, one), (_, many)) = (of(1)?, of(33)?);
        let launch = ((many - one) / 32.0).max(1.0);
        Ok(((one - launch).max(0.0), launch))
    }

    /// Nanoseconds of the kernel that `build` adds to a plan, and how many ran at a time.
    fn time(&self, build: impl Fn(&mut Builder)) -> Result<(u32, f64)> {
        let (_, one) = self.phase(|| 1, &build)?;
        // Short kernels are measured many at a time, each over tensors of its own.
        let copies = || {
            let alone = (one - self.entry).max(self.launch);
            (LONG / alone).ceil().clamp(1.0, 128.0) as u32
        };
        let (n, all) = self.phase(copies, &build)?;
        let each = (all - self.entry) / f64::from(n);
        // Speed must be positive, however noisy the machine is.
        Ok((n, (each - self.launch).max(0.1 * each).max(1e-3)))
    }

    /// Nanoseconds of a product without the traffic of its operands and result, which the cost
    /// model charges beside the multiplication: so that the two together are what was measured.
    fn multiplication(&self, build: &dyn Fn(&mut Builder)) -> Result<f64> {
        let mut plan = Builder::default();
        build(&mut plan);
        // Attention's price has no term for conversion.
        let converts =
            !matches!(plan.steps[0].kernel, Kernel::Attention(_) | Kernel::AttentionGrad(_));
        let convert = |t: &Tensor| {
            let ns = self.convert_ns.iter().find(|(d, _)| *d == t.dtype).map_or(0.0, |(_, ns)| *ns);
            t.shape.iter().product::<u64>() as f64 * if converts { ns } else { 0.0 }
        };
        let (n, all) = self.time(build)?;
        let cached = self.cache.filter(|c| plan.bytes * u64::from(n) <= c.bytes);
        let bandwidth = cached.map_or(self.bandwidth_gbs, |c| c.bandwidth_gbs);
        let traffic = plan.bytes as f64 / bandwidth + plan.tensors.iter().map(convert).sum::<f64>();
        // Small operands stay in a cache, where they move faster than the model knows.
        Ok((all - traffic).max(0.25 * all))
    }
}

/// Median nanoseconds of a run of the plan: at least 5 runs and 30 ms after a warm-up.
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
    let mut runs = vec![];
    while runs.len() < 5 || (start.elapsed().as_millis() < 30 && runs.len() < 2000) {
        let one = Instant::now();
        backend.run(Phase::Micro)?;
        runs.push(one.elapsed().as_secs_f64() * 1e9);
    }
    runs.sort_by(f64::total_cmp);
    Ok(runs[runs.len() / 2])
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
        let program = self.programs.len() as u32 - 1;
        self.step(Kernel::Rows(Rows { program, instances: vec![instance] }));
    }

    /// An epilogue that stores the accumulator as f32.
    fn store(&mut self, output: Access) -> Epilogue {
        self.programs.push(Program {
            name: "store".into(),
            inputs: vec![InPort { dtype: DType::F32, row: false }],
            code: vec![Instr::Load { port: 0 }],
            outputs: vec![OutPort { dtype: DType::F32, reg: 0 }],
        });
        let program = self.programs.len() as u32 - 1;
        Epilogue {
            kind: EpilogueKind::Store,
            scale: None,
            program,
            inputs: vec![],
            outputs: vec![output],
        }
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
        let [lse, low] = [0, 1].map(|_| self.tensor(&[batch, heads, t], DType::F32));
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
            fill: None,
            safe: false,
            q,
            k,
            v,
            o,
            lse,
            low,
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
mod tests;

//! Every step of a plan on a GPU beside the CPU backend, which runs the very same plan. Before each
//! step the GPU is given the CPU's bytes of all it touches, so that a difference is that step's own.

use crate::common::Fixture;
use precast_plan::{
    Access, ConvKind, DType, Epilogue, Instr, Kernel, Plan, ReduceOp, Step, Storage, TensorId,
};
use precast_runtime::cuda::CudaBackend;
use precast_runtime::init::initialise;
use precast_runtime::{Backend, CpuBackend, Phase};
use std::collections::BTreeSet;

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    pub steps: usize,
    pub tensors: usize,
    /// The largest part of what was allowed that any element took, and where.
    pub worst: (f64, String),
}

/// Runs `micro` and `update` step by step.
///
/// # Errors
/// Every step that differs by more than its formats explain, in order: the kernel, the tensor, the
/// first element that is too far and both values.
pub fn compare(f: &Fixture, plan: &Plan) -> Result<Compared, String> {
    let mut on_cpu = plan.clone();
    on_cpu.target.device = "cpu".into();
    let mut cpu = CpuBackend::new(&on_cpu, 0).map_err(|e| format!("the CPU backend: {e}"))?;
    let mut gpu = CudaBackend::with(plan, 0, false).map_err(|e| format!("the GPU: {e}"))?;
    let weights = f.weights(plan);
    let (_, batch) = f.session(on_cpu);
    let backends: [&mut dyn Backend; 2] = [&mut cpu, &mut gpu];
    for backend in backends {
        initialise(plan, &weights, backend).map_err(|e| e.to_string())?;
        for (id, t) in plan.tensors.iter().enumerate() {
            if !matches!(t.storage, Storage::Input { .. }) {
                continue;
            }
            // What the batch lacks are the number of the step and the seed.
            let fed = batch.tensors.iter().find(|(name, _)| **name == *t.name);
            let bytes =
                fed.map_or_else(|| vec![0; bytes_of(plan, id as TensorId)], |b| b.1.clone());
            backend.write(id as TensorId, &bytes).map_err(|e| e.to_string())?;
        }
    }
    let mut compared = Compared::default();
    let mut faults = vec![];
    for (phase, steps) in [(Phase::Micro, &plan.micro), (Phase::Update, &plan.update)] {
        for (i, step) in steps.iter().enumerate() {
            let found = one(plan, &mut cpu, &mut gpu, phase, i, &mut compared);
            if let Err(fault) = found {
                let kernel = kernel(plan, step);
                faults.push(format!("{phase:?} step {i} `{}`, {kernel}: {fault}", step.name));
            }
        }
    }
    match faults.is_empty() {
        true => Ok(compared),
        false => {
            Err(format!("{} of {} steps:\n  {}", faults.len(), compared.steps, faults.join("\n  ")))
        }
    }
}

fn one(
    plan: &Plan,
    cpu: &mut CpuBackend,
    gpu: &mut CudaBackend,
    phase: Phase,
    index: usize,
    compared: &mut Compared,
) -> Result<(), String> {
    let steps = if phase == Phase::Micro { &plan.micro } else { &plan.update };
    let step = &steps[index];
    let (reads, writes) = touched(&step.kernel);
    let writes: BTreeSet<TensorId> = writes.into_iter().map(|a| a.tensor).collect();
    // What is written too: a step may write a part of a tensor.
    let all: BTreeSet<TensorId> = reads.iter().map(|a| a.tensor).chain(writes.clone()).collect();
    for &t in &all {
        // Inputs are the same from the beginning, and no step writes them.
        if !matches!(plan.tensors[t as usize].storage, Storage::Input { .. }) {
            gpu.write(t, cpu.bytes(t)).map_err(|e| e.to_string())?;
        }
    }
    compared.steps += 1;
    cpu.run_step(phase, index).map_err(|e| format!("on the CPU: {e}"))?;
    gpu.run_step(phase, index).map_err(|e| format!("on the GPU: {e}"))?;
    let slack = Slack::of(plan, &step.kernel);
    for t in writes {
        let mut got = vec![0; bytes_of(plan, t)];
        gpu.read(t, &mut got).map_err(|e| format!("on the GPU: {e}"))?;
        compared.tensors += 1;
        let worst = difference(plan, t, &got, cpu.bytes(t), slack)?;
        if worst > compared.worst.0 {
            let name = &plan.tensors[t as usize].name;
            compared.worst = (worst, format!("`{name}` of step `{}`", step.name));
        }
    }
    Ok(())
}

fn bytes_of(plan: &Plan, t: TensorId) -> usize {
    let t = &plan.tensors[t as usize];
    t.shape.iter().product::<u64>() as usize * t.dtype.size()
}

/// What a step may be off by beyond the rounding of its result, as parts of the largest magnitude
/// of the tensor.
#[derive(Clone, Copy, Debug)]
struct Slack {
    /// Of f32 sums in another order and of other implementations of `exp` and the like.
    sums: f64,
    /// Of values inside the step that are rounded to 16 bits, to the other side of a tie.
    inside: f64,
}

impl Slack {
    /// The step only copies.
    fn exact(self) -> bool {
        self.sums == 0.0 && self.inside == 0.0
    }

    fn of(plan: &Plan, kernel: &Kernel) -> Slack {
        let step = |d: DType| 2f64.powi(-(d.facts().mantissa_bits as i32));
        let dtype = |a: &Access| plan.tensors[a.tensor as usize].dtype;
        let rounds = |program: u32| {
            let code = plan.programs[program as usize].code.iter();
            code.filter_map(
                |i| if let Instr::Round(d, _) = i { Some(2.0 * step(*d)) } else { None },
            )
            .fold(0.0, f64::max)
        };
        // Errors of f32 sums of n terms grow like √n where their signs are mixed.
        let sums = |n: u64| 1e-5 * (n as f64 / 1024.0).sqrt().max(1.0);
        match kernel {
            Kernel::Rows(r) => {
                let reduces = |op| matches!(op, &Instr::Reduce(ReduceOp::Sum, _));
                let n = r
                    .instances
                    .iter()
                    .map(|i| i.dims[i.dims.len() - i.reduced as usize..].iter().product::<u64>());
                let reduces = plan.programs[r.program as usize].code.iter().any(reduces);
                let n = n.max().filter(|_| reduces).unwrap_or(1);
                Slack { sums: sums(n), inside: rounds(r.program) }
            }
            Kernel::Gemm(g) => Slack { sums: sums(g.k), inside: rounds(g.epilogue.program) },
            Kernel::Conv(c) => {
                let g = &c.geometry;
                let k = match c.kind {
                    ConvKind::Forward => g.c / g.groups * g.kh * g.kw,
                    ConvKind::DataGrad => g.o / g.groups * g.kh * g.kw,
                    ConvKind::FilterGrad => g.n * g.oh * g.ow,
                };
                Slack { sums: sums(k), inside: rounds(c.epilogue.program) }
            }
            // Tensor cores take the probabilities, and the cotangents of the scores, in the format
            // of the operands.
            Kernel::Attention(a) => Slack { sums: sums(a.tk * a.d), inside: inner(dtype(&a.q)) },
            Kernel::AttentionGrad(g) => {
                let a = &g.forward;
                Slack { sums: sums(a.tq.max(a.tk) * a.d), inside: 2.0 * inner(dtype(&a.q)) }
            }
            Kernel::ScatterAdd(g) => Slack { sums: sums(g.rows), inside: 0.0 },
            Kernel::MaxPoolGrad(p) => {
                Slack { sums: sums(p.geometry.kh * p.geometry.kw), inside: 0.0 }
            }
            // In f64, so that only what is stored is rounded.
            Kernel::CumSum(_) => Slack { sums: sums(1), inside: 0.0 },
            // Copies and places.
            Kernel::LastIndex(_) | Kernel::TopK(_) => Slack { sums: 0.0, inside: 0.0 },
            Kernel::Gather(_) | Kernel::MaxPool(_) => Slack { sums: 0.0, inside: 0.0 },
        }
    }
}

fn inner(d: DType) -> f64 {
    if d.is_low_precision() { 2.0 * 2f64.powi(-(d.facts().mantissa_bits as i32)) } else { 0.0 }
}

/// Elements as numbers: every format here but i64 fits f64, and ids are small.
fn values(d: DType, bytes: &[u8]) -> Vec<f64> {
    let word = |element: &[u8]| {
        let mut word = [0; 8];
        word[..element.len()].copy_from_slice(element);
        u64::from_le_bytes(word)
    };
    let value = |element: &[u8]| match d {
        DType::I64 => word(element) as i64 as f64,
        DType::I32 => f64::from(word(element) as i32),
        DType::U8 | DType::Bool => word(element) as f64,
        real => f64::from(real.decode(word(element) as u32)),
    };
    bytes.chunks_exact(d.size()).map(value).collect()
}

/// The largest part of what is allowed that any element of a tensor takes.
///
/// # Errors
/// In words: the first element that takes more, and how many do.
fn difference(
    plan: &Plan,
    t: TensorId,
    got: &[u8],
    want: &[u8],
    slack: Slack,
) -> Result<f64, String> {
    let tensor = &plan.tensors[t as usize];
    let d = tensor.dtype;
    let (got, want) = (values(d, got), values(d, want));
    let largest = want.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    let facts = d.facts();
    let allowed = |x: f64| {
        if slack.exact() || !d.is_real() {
            return 0.0;
        }
        // Two steps of a 16-bit format; f32 has its share in `sums`.
        let ulps = match d.is_low_precision() {
            true => {
                2.0 * 2f64.powi(-(facts.mantissa_bits as i32)) * x.abs() + 2.0 * facts.min_subnormal
            }
            false => 0.0,
        };
        ulps + (slack.sums + slack.inside) * largest
    };
    let part = |(&g, &w): (&f64, &f64)| match g == w || g.is_nan() && w.is_nan() {
        true => 0.0,
        // A NaN or an infinity on one side alone is never allowed.
        false => {
            Some((g - w).abs() / allowed(w)).filter(|p| p.is_finite()).unwrap_or(f64::INFINITY)
        }
    };
    let parts: Vec<f64> = got.iter().zip(&want).map(part).collect();
    let Some(first) = parts.iter().position(|p| *p > 1.0) else {
        return Ok(parts.into_iter().fold(0.0, f64::max));
    };
    let wrong = parts.iter().filter(|p| **p > 1.0).count();
    let worst = (0..parts.len()).max_by(|&a, &b| parts[a].total_cmp(&parts[b])).expect("not empty");
    let element = |i: usize| {
        let place = at(&tensor.shape, i);
        format!(
            "at {place:?} {:e} on the GPU, {:e} on the CPU (allowed {:.1e} apart)",
            got[i],
            want[i],
            allowed(want[i])
        )
    };
    let mut text = format!("`{}` {:?} {d} {}", tensor.name, tensor.shape, element(first));
    if worst != first {
        text += &format!("; worst {}", element(worst));
    }
    Err(format!("{text}; {wrong} of {} elements, largest {largest:e}", want.len()))
}

/// Indices of the element with this number.
fn at(shape: &[u64], element: usize) -> Vec<u64> {
    let mut rest = element as u64;
    let mut place: Vec<u64> = shape
        .iter()
        .rev()
        .map(|&n| {
            let i = rest % n;
            rest /= n;
            i
        })
        .collect();
    place.reverse();
    place
}

fn with<'a>(mut reads: Vec<&'a Access>, e: &'a Epilogue) -> (Vec<&'a Access>, Vec<&'a Access>) {
    reads.extend(&e.inputs);
    (reads, e.outputs.iter().collect())
}

/// What a step reads, and what it writes.
fn touched(kernel: &Kernel) -> (Vec<&Access>, Vec<&Access>) {
    match kernel {
        Kernel::Rows(r) => (
            r.instances.iter().flat_map(|i| &i.inputs).collect(),
            r.instances.iter().flat_map(|i| &i.outputs).collect(),
        ),
        Kernel::Gemm(g) => {
            let (reads, mut writes) = with(vec![&g.a, &g.b], &g.epilogue);
            writes.extend(g.sums.as_ref().map(|s| &s.out));
            (reads, writes)
        }
        Kernel::Conv(c) => with(vec![&c.a, &c.b], &c.epilogue),
        Kernel::Attention(a) => {
            let mut reads = vec![&a.q, &a.k, &a.v];
            reads.extend(&a.mask);
            (reads, vec![&a.o, &a.lse])
        }
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            let mut reads = vec![&a.q, &a.k, &a.v, &a.o, &a.lse, &g.d_o];
            reads.extend(&a.mask);
            (reads, vec![&g.d_q, &g.d_k, &g.d_v])
        }
        Kernel::MaxPool(p) => (vec![&p.x], vec![&p.y, &p.index]),
        Kernel::MaxPoolGrad(p) => (vec![&p.y, &p.index], vec![&p.x]),
        Kernel::Gather(g) => (vec![&g.table, &g.ids], vec![&g.out]),
        Kernel::ScatterAdd(g) => (vec![&g.out, &g.ids], vec![&g.table]),
        Kernel::LastIndex(l) => (vec![&l.ids], vec![&l.out]),
        Kernel::CumSum(s) => (vec![&s.x], vec![&s.y]),
        Kernel::TopK(t) => (vec![&t.x], vec![&t.index]),
    }
}

/// The kernel for people: its kind, sizes and formats.
fn kernel(plan: &Plan, step: &Step) -> String {
    let dtype = |a: &Access| plan.tensors[a.tensor as usize].dtype;
    let program = |p: u32| &plan.programs[p as usize].name;
    match &step.kernel {
        Kernel::Rows(r) => {
            let dims: Vec<_> = r.instances.iter().map(|i| (&i.dims, i.reduced)).take(4).collect();
            format!("rows `{}`, (dims, reduced) {dims:?}", program(r.program))
        }
        Kernel::Gemm(g) => format!(
            "product {}x{} of {}x{}x{}, {} by {}, {:?} `{}`",
            g.batch[0],
            g.batch[1],
            g.m,
            g.n,
            g.k,
            dtype(&g.a),
            dtype(&g.b),
            g.epilogue.kind,
            program(g.epilogue.program),
        ),
        Kernel::Conv(c) => format!(
            "convolution {:?}, {} by {}, {:?} `{}`, {:?}",
            c.kind,
            dtype(&c.a),
            dtype(&c.b),
            c.epilogue.kind,
            program(c.epilogue.program),
            c.geometry,
        ),
        Kernel::Attention(a) => {
            format!("attention {}x{}x{}x{}x{} {}", a.batch, a.heads, a.tq, a.tk, a.d, dtype(&a.q))
        }
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            format!(
                "attention's gradient {}x{}x{}x{}x{} {}",
                a.batch,
                a.heads,
                a.tq,
                a.tk,
                a.d,
                dtype(&a.q)
            )
        }
        Kernel::MaxPool(p) => format!("max pool {:?}", p.geometry),
        Kernel::MaxPoolGrad(p) => format!("max pool's gradient {:?}", p.geometry),
        Kernel::Gather(g) => {
            format!("gather of {} of {} rows of {}", g.rows, g.table_rows, g.width)
        }
        Kernel::ScatterAdd(g) => {
            format!("scatter of {} into {} rows of {}", g.rows, g.table_rows, g.width)
        }
        Kernel::LastIndex(l) => format!("last of {} ids of {} rows", l.rows, l.table_rows),
        Kernel::CumSum(s) => format!("running sums of {:?}", s.dims),
        Kernel::TopK(t) => format!("the {} first of {:?}", t.k, t.dims),
    }
}

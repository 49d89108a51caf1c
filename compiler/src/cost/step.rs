//! What a step of a finished plan takes: the same terms as before scheduling, over what the
//! schedule made of it.

use precast_plan::{
    Access, Attention, Conv, ConvGeometry, DType, Epilogue, EpilogueKind, Family, Gemm, Instance,
    Instr, Kernel, Math, Operand, Plan, Precision, Program, Step, Target,
};

/// Nanoseconds of one step on a target.
pub fn step_ns(target: &Target, step: &Step, plan: &Plan) -> f64 {
    let c = Coster { target, plan };
    let start = match &step.kernel {
        Kernel::Rows(r) => {
            let code = plan.programs[r.program as usize].code.len() as u64;
            let points = r.instances.iter().map(|i| i.dims.iter().product::<u64>());
            target.start_ns(points.fold(0u64, |n, p| n.saturating_add(p.saturating_mul(code))))
        }
        _ => target.launch_ns,
    };
    start
        + match &step.kernel {
            Kernel::Rows(r) => {
                let p = &plan.programs[r.program as usize];
                r.instances.iter().map(|i| c.rows(p, i)).sum()
            }
            Kernel::Gemm(g) => {
                let volume = (g.m * g.n * g.k) as f64;
                let batch = (g.batch[0] * g.batch[1]) as f64;
                let dims = [g.batch[0], g.batch[1], g.m, g.n];
                c.misaligned(g)
                    * c.product((Family::Gemm, g.math), &g.a, volume.cbrt(), 2.0 * volume * batch)
                    + c.reads(&[
                        (&g.a, &[g.batch[0], g.batch[1], g.m, g.k]),
                        (&g.b, &[g.batch[0], g.batch[1], g.k, g.n]),
                    ])
                    + c.epilogue(&g.epilogue, &dims)
                    + c.apart(&g.epilogue, dims.iter().product())
                    + g.sums.as_ref().map_or(0.0, |s| c.bytes(&s.out, sums_len(g)))
            }
            Kernel::Conv(conv) => c.conv(conv),
            Kernel::Attention(a) => c.attention(
                Family::Attention,
                &a.q,
                [a.batch, a.heads, a.tq, a.tk, a.d],
                a.causal,
                1.0,
            ),
            Kernel::AttentionGrad(g) => {
                let a = &g.forward;
                let sizes = [a.batch, a.heads, a.tq, a.tk, a.d];
                c.attention(Family::AttentionGrad, &a.q, sizes, a.causal, 2.5)
            }
            Kernel::Recurrence(r) => {
                super::recurrence_ns(target, &r.shape) + c.walked(&r.reads(), &r.writes())
            }
            Kernel::RecurrenceGrad(r) => {
                super::recurrence_ns(target, &r.shape) + c.walked(&r.reads(), &r.writes())
            }
            Kernel::MaxPool(p) | Kernel::MaxPoolGrad(p) => {
                let g = &p.geometry;
                let window = (g.n * g.c * g.oh * g.ow * g.kh * g.kw) as f64;
                let x = g.n * g.c * g.h * g.w;
                let y = g.n * g.c * g.oh * g.ow;
                c.bytes(&p.x, x)
                    + c.bytes(&p.y, y)
                    + c.bytes(&p.index, y)
                    + window * target.simple_ns
            }
            Kernel::Gather(g) => 2.0 * c.bytes(&g.out, g.rows * g.width),
            Kernel::ScatterAdd(g) => {
                c.bytes(&g.out, g.rows * g.width) + c.bytes(&g.table, g.table_rows * g.width)
            }
            Kernel::LastIndex(l) => c.bytes(&l.ids, l.rows) + c.bytes(&l.out, l.table_rows),
            Kernel::CumSum(s) => {
                let n = s.dims.iter().product();
                c.bytes(&s.x, n) + c.bytes(&s.y, n) + n as f64 * target.simple_ns
            }
            Kernel::TopK(t) => {
                let [outer, n, inner] = t.dims;
                let (all, found) = (outer * n * inner, outer * t.k * inner);
                // A comparison sort of every line.
                let depth = n.max(2).ilog2() + 1;
                c.bytes(&t.x, all)
                    + c.bytes(&t.index, found)
                    + all as f64 * f64::from(depth) * target.simple_ns
            }
        }
}

/// Products of misaligned operands take this many times longer. An estimate, not measured: users of
/// GPT-2 report that padding 50257 classes to 50304 makes a whole step about a quarter faster, which,
/// with a quarter of the operations in products with the classes, says about 3 for those. cuBLAS's
/// documentation names the boundary of 16 bytes and no figure.
const MISALIGNED_OPERAND: f64 = 3.0;
/// Where only the result is misaligned, tiles are stored piecemeal. An estimate.
const MISALIGNED_RESULT: f64 = 1.3;

/// A named access with its extents.
type Sized<'a> = (&'static str, &'a Access, Vec<u64>);

struct Coster<'a> {
    target: &'a Target,
    plan: &'a Plan,
}

impl Coster<'_> {
    fn format(&self, a: &Access) -> DType {
        self.plan.tensors[a.tensor as usize].dtype
    }

    /// Moving `n` elements of an access, with their conversion.
    fn bytes(&self, a: &Access, n: u64) -> f64 {
        let d = self.format(a);
        let convert = if d.is_real() { self.target.convert(d).unwrap_or(0.0) } else { 0.0 };
        n as f64 * (d.size() as f64 / self.target.bandwidth_gbs + convert)
    }

    fn touched(dims: &[u64], a: &Access) -> u64 {
        dims.iter().zip(&a.strides).map(|(&n, &s)| if s == 0 { 1 } else { n }).product()
    }

    fn reads(&self, list: &[(&Access, &[u64])]) -> f64 {
        list.iter().map(|(a, dims)| self.bytes(a, Self::touched(dims, a))).sum()
    }

    /// What a recurrence reads and writes, each once.
    fn walked(&self, reads: &[Sized<'_>], writes: &[Sized<'_>]) -> f64 {
        reads.iter().chain(writes).map(|(_, a, d)| self.bytes(a, d.iter().product())).sum()
    }

    fn rows(&self, p: &Program, i: &Instance) -> f64 {
        let traffic: f64 = i
            .inputs
            .iter()
            .chain(&i.outputs)
            .map(|a| self.bytes(a, Self::touched(&i.dims, a)))
            .sum();
        traffic + self.code(p, i.dims.iter().product())
    }

    /// Instructions that run for each of `elements` points.
    fn code(&self, p: &Program, elements: u64) -> f64 {
        let Ok(infos) = p.check() else { return 0.0 };
        let prices = super::Prices { target: self.target };
        let each: f64 = p
            .code
            .iter()
            .zip(&infos)
            .map(|(instr, info)| match instr {
                // A reduction reads every element, though its result is per row.
                Instr::Reduce(..) => prices.instruction(instr),
                _ if info.row => 0.0,
                _ => prices.instruction(instr),
            })
            .sum();
        each * elements as f64
    }

    fn epilogue(&self, e: &Epilogue, dims: &[u64]) -> f64 {
        let traffic: f64 =
            e.inputs.iter().chain(&e.outputs).map(|a| self.bytes(a, Self::touched(dims, a))).sum();
        traffic + self.code(&self.plan.programs[e.program as usize], dims.iter().product())
    }

    /// What an epilogue costs more that the vendor's library has not: its product leaves f32 sums,
    /// and a kernel of its own reads them. A library's bias has the format of the result, and its
    /// GELU, an approximation of the one by tanh, is for 16 bits.
    fn apart(&self, e: &Epilogue, elements: u64) -> f64 {
        let Some(d) = e.outputs.first().map(|a| self.format(a)) else { return 0.0 };
        let one_format = e.inputs.iter().chain(&e.outputs).all(|a| self.format(a) == d);
        let apart = match e.kind {
            EpilogueKind::BiasGeluAux => true,
            EpilogueKind::BiasGeluTanhAux | EpilogueKind::GeluTanhGrad => {
                !one_format || d.size() != 2
            }
            EpilogueKind::Bias | EpilogueKind::BiasRelu => !one_format,
            _ => false,
        };
        if self.target.any_epilogue() || !apart {
            return 0.0;
        }
        self.target.launch_ns + 8.0 * elements as f64 / self.target.bandwidth_gbs
    }

    fn product(&self, (family, math): (Family, Math), a: &Access, size: f64, flops: f64) -> f64 {
        let precision = Precision::of(self.format(a), math);
        let speed = self.target.gflops(family, precision, size);
        // A target without the kernel was refused before, but for what a CPU computes in f32 from
        // operands of any format; f32 is always there.
        let speed = speed.or_else(|| self.target.gflops(family, DType::F32, size));
        flops / speed.unwrap_or(1.0)
    }

    /// How many times longer a product multiplies whose matrices do not begin their rows on the
    /// boundaries that the target's fast kernels want. An estimate.
    fn misaligned(&self, g: &Gemm) -> f64 {
        let bytes = self.target.row_bytes();
        if bytes == 0 || g.m.min(g.n).min(g.k) < 16 {
            return 1.0;
        }
        let off = |a: &Access| {
            let size = self.format(a).size() as u64;
            // Rows or columns, whichever are contiguous, begin this many elements apart.
            let apart = a.strides.iter().map(|s| s.unsigned_abs()).filter(|&s| s > 1);
            apart.chain([a.offset]).any(|s| !(s * size).is_multiple_of(bytes as u64))
        };
        match (off(&g.a) || off(&g.b), g.epilogue.outputs.iter().any(off)) {
            (true, _) => MISALIGNED_OPERAND,
            (false, true) => MISALIGNED_RESULT,
            (false, false) => 1.0,
        }
    }

    fn conv(&self, conv: &Conv) -> f64 {
        use precast_plan::ConvKind::{DataGrad, FilterGrad, Forward};
        let g: &ConvGeometry = &conv.geometry;
        let volume = (g.n * g.oh * g.ow * (g.o / g.groups) * (g.c / g.groups) * g.kh * g.kw) as f64;
        let (a, b, out) = conv_extents(conv);
        let family = match conv.kind {
            Forward => Family::Conv,
            DataGrad => Family::ConvDataGrad,
            FilterGrad => Family::ConvFilterGrad,
        };
        self.product((family, conv.math), &conv.a, volume.cbrt(), 2.0 * volume * g.groups as f64)
            + self.reads(&[(&conv.a, &a), (&conv.b, &b)])
            + self.epilogue(&conv.epilogue, &out)
            + self.transposed(conv, &[(&conv.a, a), (&conv.b, b)])
            + self.transposed(
                conv,
                &conv.epilogue.outputs.iter().map(|o| (o, out)).collect::<Vec<_>>(),
            )
    }

    /// What a library adds for tensors that lie otherwise than its kernel wants: it writes and reads
    /// each once more, in kernels of its own.
    fn transposed(&self, conv: &Conv, list: &[(&Access, [u64; 4])]) -> f64 {
        if self.format(&conv.a).size() > self.target.channels_last() {
            return 0.0;
        }
        let price = |(a, dims): &(&Access, [u64; 4])| {
            let [_, c, h, w] = *dims;
            let differs = c > 1 && h * w > 1;
            let moved = 2.0 * self.bytes(a, dims.iter().product());
            if differs && a.strides[1] != 1 { self.target.launch_ns + moved } else { 0.0 }
        };
        list.iter().map(price).sum()
    }

    fn attention(&self, family: Family, q: &Access, s: [u64; 5], causal: bool, passes: f64) -> f64 {
        let [batch, heads, tq, tk, d] = s;
        let volume = (tq * tk * d) as f64;
        let share = if causal { 0.5 } else { 1.0 };
        let flops = 4.0 * volume * (batch * heads) as f64 * passes * share;
        let moved = (batch * heads * (2 * tq + 2 * tk) * d) as f64 * passes;
        self.product((family, Math::Exact), q, volume.cbrt(), flops)
            + moved * self.format(q).size() as f64 / self.target.bandwidth_gbs
    }
}

/// Bytes that one run of a step reads and writes, every tensor once an access.
pub fn step_bytes(step: &Step, plan: &Plan) -> u64 {
    let size = |a: &Access| plan.tensors[a.tensor as usize].dtype.size() as u64;
    let touched = |a: &Access, dims: &[u64]| Coster::touched(dims, a) * size(a);
    let all = |list: &[Access], dims: &[u64]| list.iter().map(|a| touched(a, dims)).sum::<u64>();
    let epilogue = |e: &Epilogue, dims: &[u64]| all(&e.inputs, dims) + all(&e.outputs, dims);
    let statistics = |a: &Attention| {
        [&a.lse, &a.low].iter().map(|x| touched(x, &[a.batch, a.heads, a.tq])).sum::<u64>()
    };
    match &step.kernel {
        Kernel::Rows(r) => {
            r.instances.iter().map(|i| all(&i.inputs, &i.dims) + all(&i.outputs, &i.dims)).sum()
        }
        Kernel::Gemm(g) => {
            let [b0, b1] = g.batch;
            touched(&g.a, &[b0, b1, g.m, g.k])
                + touched(&g.b, &[b0, b1, g.k, g.n])
                + epilogue(&g.epilogue, &[b0, b1, g.m, g.n])
                + g.sums.as_ref().map_or(0, |s| touched(&s.out, &[sums_len(g)]))
        }
        Kernel::Conv(c) => {
            let (a, b, out) = conv_extents(c);
            touched(&c.a, &a) + touched(&c.b, &b) + epilogue(&c.epilogue, &out)
        }
        Kernel::Attention(a) => {
            let (q, k) = ([a.batch, a.heads, a.tq, a.d], [a.batch, a.heads, a.tk, a.d]);
            touched(&a.q, &q)
                + touched(&a.k, &k)
                + touched(&a.v, &k)
                + touched(&a.o, &q)
                + statistics(a)
        }
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            let (q, k) = ([a.batch, a.heads, a.tq, a.d], [a.batch, a.heads, a.tk, a.d]);
            let long = [&a.q, &a.o, &g.d_o, &g.d_q].map(|x| touched(x, &q));
            let short = [&a.k, &a.v, &g.d_k, &g.d_v].map(|x| touched(x, &k));
            long.iter().chain(&short).sum::<u64>() + statistics(a)
        }
        Kernel::Recurrence(r) => {
            r.reads().iter().chain(&r.writes()).map(|(_, a, d)| touched(a, d)).sum()
        }
        Kernel::RecurrenceGrad(r) => {
            r.reads().iter().chain(&r.writes()).map(|(_, a, d)| touched(a, d)).sum()
        }
        Kernel::MaxPool(p) | Kernel::MaxPoolGrad(p) => {
            let g = &p.geometry;
            let y = [g.n, g.c, g.oh, g.ow];
            touched(&p.x, &[g.n, g.c, g.h, g.w]) + touched(&p.y, &y) + touched(&p.index, &y)
        }
        Kernel::Gather(g) | Kernel::ScatterAdd(g) => {
            let rows = touched(&g.out, &[g.rows, g.width]);
            // A gather reads the rows it copies; a sum writes its whole table.
            let table = match &step.kernel {
                Kernel::Gather(_) => g.rows * g.width * size(&g.table),
                _ => touched(&g.table, &[g.table_rows, g.width]),
            };
            rows + table + g.rows * size(&g.ids)
        }
        Kernel::LastIndex(l) => touched(&l.ids, &[l.rows]) + touched(&l.out, &[l.table_rows]),
        Kernel::CumSum(s) => touched(&s.x, &s.dims) + touched(&s.y, &s.dims),
        Kernel::TopK(t) => {
            let [outer, _, inner] = t.dims;
            touched(&t.x, &t.dims) + touched(&t.index, &[outer, t.k, inner])
        }
    }
}

/// Extents of a convolution's operands and result.
/// Elements of the sums of an operand.
fn sums_len(g: &Gemm) -> u64 {
    match g.sums.as_ref().map(|s| s.operand) {
        Some(Operand::A) => g.m,
        Some(Operand::B) => g.n,
        None => 0,
    }
}

fn conv_extents(conv: &Conv) -> ([u64; 4], [u64; 4], [u64; 4]) {
    use precast_plan::ConvKind::{DataGrad, FilterGrad, Forward};
    let g: &ConvGeometry = &conv.geometry;
    let (x, w, y) =
        ([g.n, g.c, g.h, g.w], [g.o, g.c / g.groups, g.kh, g.kw], [g.n, g.o, g.oh, g.ow]);
    match conv.kind {
        Forward => (x, w, y),
        DataGrad => (y, w, x),
        FilterGrad => (x, y, w),
    }
}

//! Which elements of which tensors a step reads and writes.

use crate::dtype::{DType, Kind};
use crate::needs::{Uses, needs};
use crate::program::{BinaryOp, Instr, Reg};
use crate::recurrence::{RecurrenceShape, RecurrentCell};
use crate::schema::{
    Access, Attention, ConvGeometry, ConvKind, Epilogue, EpilogueKind, Gather, Gemm, Instance,
    Kernel, MaxPool, Operand, ProgramId, TensorId,
};
use crate::validate::{Context, MAX_ELEMENTS, MAX_RANK, kind_is};

/// One access of a step over its space.
pub(crate) struct Use {
    pub tensor: TensorId,
    pub offset: u64,
    pub dims: Vec<u64>,
    pub strides: Vec<i64>,
    pub write: bool,
    /// Axes along which a write stays in place (reduced axes of a row output).
    pub still: Vec<usize>,
    /// Uses of the same space read and write point by point; `None`: all reads come first or mix
    /// with writes, so nothing may overlap.
    pub space: Option<usize>,
    pub what: &'static str,
}

struct Collector<'a, 'b> {
    cx: &'a mut Context<'b>,
    place: &'a str,
    list: Vec<Use>,
}

/// The uses of a kernel; faults of its own are reported to `cx`. Accesses are not yet checked
/// against their tensors' bounds.
pub(crate) fn uses(cx: &mut Context, place: &str, kernel: &Kernel) -> Vec<Use> {
    for need in needs(kernel) {
        if let Some(fault) = cx.plan.lacks(&need) {
            cx.error(place, fault);
        }
    }
    let mut c = Collector { cx, place, list: vec![] };
    match kernel {
        Kernel::Rows(r) => {
            for (i, instance) in r.instances.iter().enumerate() {
                c.instance(r.program, instance, i);
            }
        }
        Kernel::Gemm(g) => {
            let [b0, b1] = g.batch;
            let dims = vec![b0, b1, g.m, g.n];
            if c.sizes(&[b0, b1, g.m, g.n, g.k]) {
                c.operand("a", &g.a, vec![b0, b1, g.m, g.k], Kind::Real);
                c.operand("b", &g.b, vec![b0, b1, g.k, g.n], Kind::Real);
                c.epilogue(&g.epilogue, dims);
                c.sums(g);
            }
        }
        Kernel::Conv(k) => {
            let g = &k.geometry;
            if c.geometry(g) {
                let x = vec![g.n, g.c, g.h, g.w];
                let w = vec![g.o, g.c / g.groups, g.kh, g.kw];
                let y = vec![g.n, g.o, g.oh, g.ow];
                let (a, b, out) = match k.kind {
                    ConvKind::Forward => (x, w, y),
                    ConvKind::DataGrad => (y, w, x),
                    ConvKind::FilterGrad => (x, y, w),
                };
                c.operand("a", &k.a, a, Kind::Real);
                c.operand("b", &k.b, b, Kind::Real);
                c.epilogue(&k.epilogue, out);
            }
        }
        Kernel::Attention(a) => c.attention(a, true),
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            c.attention(a, false);
            let (q, kv) = (vec![a.batch, a.heads, a.tq, a.d], vec![a.batch, a.heads, a.tk, a.d]);
            c.operand("d_o", &g.d_o, q.clone(), Kind::Real);
            c.result("d_q", &g.d_q, q, Kind::Real);
            c.result("d_k", &g.d_k, kv.clone(), Kind::Real);
            c.result("d_v", &g.d_v, kv, Kind::Real);
        }
        Kernel::Recurrence(r) => {
            let (shape, lengths) = (&r.shape, r.lengths.as_ref());
            if c.recurrence(shape, r.peephole.is_some(), lengths) {
                if r.bias.is_some() != shape.cell.has_bias() {
                    c.error(format!("a bias of a {} cell", shape.cell.name()));
                }
                c.walked(r.reads(), r.writes());
            }
        }
        Kernel::RecurrenceGrad(g) => {
            if c.recurrence(&g.shape, g.peephole.is_some(), g.lengths.as_ref()) {
                c.walked(g.reads(), g.writes());
            }
        }
        Kernel::MaxPool(p) => c.pool(p, true),
        Kernel::MaxPoolGrad(p) => c.pool(p, false),
        Kernel::Gather(g) => c.gather(g, false),
        Kernel::ScatterAdd(g) => c.gather(g, true),
        Kernel::LastIndex(l) => {
            if c.sizes(&[l.rows]) && c.sizes(&[l.table_rows]) {
                c.operand("ids", &l.ids, vec![l.rows], Kind::Int);
                c.result("out", &l.out, vec![l.table_rows], Kind::Int);
                if l.rows > i32::MAX as u64 {
                    c.error(format!("the places of {} ids do not fit 32 bits", l.rows));
                }
            }
        }
        Kernel::CumSum(s) => {
            if c.sizes(&s.dims)
                && let Some(d) = c.dtype("x", &s.x)
            {
                let kind = if d.is_real() { Kind::Real } else { Kind::Int };
                c.operand("x", &s.x, s.dims.to_vec(), kind);
                c.result("y", &s.y, s.dims.to_vec(), kind);
            }
        }
        Kernel::TopK(t) => {
            let [outer, n, inner] = t.dims;
            if c.sizes(&t.dims)
                && let Some(d) = c.dtype("x", &t.x)
            {
                let kind = if d.is_real() { Kind::Real } else { Kind::Int };
                c.operand("x", &t.x, t.dims.to_vec(), kind);
                c.result("index", &t.index, vec![outer, t.k, inner], Kind::Int);
                if t.k == 0 || t.k > n || n > i32::MAX as u64 {
                    c.error(format!("the {} largest of {n} elements", t.k));
                }
            }
        }
    }
    c.list
}

impl Collector<'_, '_> {
    fn error(&mut self, message: impl Into<String>) {
        self.cx.error(self.place, message);
    }

    fn dtype(&mut self, what: &str, a: &Access) -> Option<DType> {
        let t = self.cx.plan.tensors.get(a.tensor as usize).map(|t| t.dtype);
        if t.is_none() {
            self.error(format!("{what}: there is no tensor {}", a.tensor));
        }
        t.filter(|_| self.cx.elements[a.tensor as usize] > 0)
    }

    fn push(
        &mut self,
        what: &'static str,
        a: &Access,
        dims: Vec<u64>,
        write: bool,
        space: Option<usize>,
    ) {
        self.list.push(Use {
            tensor: a.tensor,
            offset: a.offset,
            dims,
            strides: a.strides.clone(),
            write,
            still: vec![],
            space,
            what,
        });
    }

    fn typed(&mut self, what: &'static str, a: &Access, dims: Vec<u64>, kind: Kind, write: bool) {
        let Some(d) = self.dtype(what, a) else { return };
        if !kind_is(d, kind) {
            return self.error(format!("{what} is {d}, not {kind}"));
        }
        self.push(what, a, dims, write, None);
    }

    fn operand(&mut self, what: &'static str, a: &Access, dims: Vec<u64>, kind: Kind) {
        self.typed(what, a, dims, kind, false);
    }

    fn result(&mut self, what: &'static str, a: &Access, dims: Vec<u64>, kind: Kind) {
        self.typed(what, a, dims, kind, true);
    }

    /// Whether sizes are at least 1 and their product is within reach.
    fn sizes(&mut self, sizes: &[u64]) -> bool {
        let n = sizes.iter().try_fold(1u64, |n, &d| n.checked_mul(d).filter(|&n| n > 0));
        // Products over all axes are work, not memory: a wider bound.
        let ok = n.is_some_and(|n| n <= MAX_ELEMENTS << 16);
        if !ok {
            self.error(format!("sizes {sizes:?} are empty or too large"));
        }
        ok
    }

    fn instance(&mut self, program: ProgramId, i: &Instance, at: usize) {
        let cx = &self.cx;
        let Some(p) = cx.plan.programs.get(program as usize) else {
            return self.error(format!("there is no program {program}"));
        };
        let Some(infos) = cx.infos[program as usize].clone() else { return };
        let rank = i.dims.len();
        let reduced = i.reduced as usize;
        if rank > MAX_RANK || reduced > rank {
            return self.error(format!("instance {at}: {rank} axes, {reduced} of them reduced"));
        }
        if !self.sizes(&i.dims) {
            return;
        }
        if i.inputs.len() != p.inputs.len() || i.outputs.len() != p.outputs.len() {
            return self.error(format!("instance {at} binds other ports than `{}` has", p.name));
        }
        if p.reduces() && reduced == 0 {
            self.error(format!("instance {at} reduces no axis, but `{}` does", p.name));
        }
        for instr in &p.code {
            if let Instr::Index { axis } = instr
                && *axis as usize >= rank
            {
                self.error(format!("instance {at} has no axis {axis}, which `{}` reads", p.name));
            }
        }
        let kept = rank - reduced;
        for (k, (a, port)) in i.inputs.iter().zip(&p.inputs).enumerate() {
            let Some(d) = self.dtype("input", a) else { continue };
            if d != port.dtype {
                self.error(format!("instance {at}: input {k} is {d}, the port {}", port.dtype));
            }
            if port.row && a.strides.iter().zip(&i.dims).skip(kept).any(|(&s, &n)| s != 0 && n > 1)
            {
                self.error(format!("instance {at}: input {k} is per row but varies along it"));
            }
            self.push("input", a, i.dims.clone(), false, Some(at));
        }
        for (k, (a, port)) in i.outputs.iter().zip(&p.outputs).enumerate() {
            let Some(d) = self.dtype("output", a) else { continue };
            if d != port.dtype {
                self.error(format!("instance {at}: output {k} is {d}, the port {}", port.dtype));
            }
            let row = infos[port.reg as usize].row;
            if row && a.strides.iter().zip(&i.dims).skip(kept).any(|(&s, &n)| s != 0 && n > 1) {
                self.error(format!("instance {at}: output {k} is per row but varies along it"));
            }
            self.push("output", a, i.dims.clone(), true, Some(at));
            if row {
                self.list.last_mut().expect("just pushed").still = (kept..rank).collect();
            }
        }
    }

    /// An accumulator that is scaled is read by that multiplication alone.
    fn scale(&mut self, e: &Epilogue, scale: u32) {
        let (p, k) = (&self.cx.plan.programs[e.program as usize], scale as usize);
        let fits = e.inputs.get(k).is_some_and(|a| {
            p.inputs[k + 1].dtype == DType::F32 && a.strides.iter().all(|&s| s == 0)
        });
        let loads = |r: &Reg, port: u32| p.code[*r as usize] == Instr::Load { port };
        let sums = p.code.iter().filter(|i| i.operands().any(|r| loads(&r, 0))).all(|i| match i {
            Instr::Binary(BinaryOp::Mul, a, b) => {
                (loads(a, 0) && loads(b, scale + 1)) || (loads(b, 0) && loads(a, scale + 1))
            }
            _ => false,
        });
        let stored = p.outputs.iter().any(|o| loads(&o.reg, 0));
        if !fits || !sums || stored {
            self.error(format!("`{}` does not scale its sums with input {k}", p.name));
        }
    }

    /// What is said to add up in place does that and nothing else.
    fn accumulates(&mut self, e: &Epilogue) {
        let p = &self.cx.plan.programs[e.program as usize];
        let loads = |r: Reg, port: usize| p.code[r as usize] == Instr::Load { port: port as u32 };
        let scales = |r: Reg| match (e.scale, &p.code[r as usize]) {
            (None, _) => loads(r, 0),
            (Some(k), &Instr::Binary(BinaryOp::Mul, a, b)) => {
                let k = k as usize + 1;
                (loads(a, 0) && loads(b, k)) || (loads(b, 0) && loads(a, k))
            }
            _ => false,
        };
        let adds = |r: Reg, k: usize| match p.code[r as usize] {
            Instr::Binary(BinaryOp::Add, a, b) => {
                (scales(a) && loads(b, k + 1)) || (scales(b) && loads(a, k + 1))
            }
            _ => false,
        };
        let old = (0..e.inputs.len()).find(|&k| e.scale != Some(k as u32));
        let fits = match (&e.outputs[..], old) {
            ([y], Some(k)) => {
                e.inputs.len() == 1 + usize::from(e.scale.is_some())
                    && e.inputs[k] == *y
                    && p.outputs[0].dtype == DType::F32
                    && adds(p.outputs[0].reg, k)
            }
            _ => false,
        };
        if !fits {
            self.error(format!("`{}` does not add its sums to what stands there", p.name));
        }
    }

    /// Sums of an operand, beside a result that is only stored.
    fn sums(&mut self, g: &Gemm) {
        let Some(s) = &g.sums else { return };
        if g.batch != [1, 1] {
            self.error("a product of many matrices does not sum an operand");
        }
        if !matches!(g.epilogue.kind, EpilogueKind::Store | EpilogueKind::Accumulate) {
            self.error("a product that sums an operand only stores or accumulates its result");
        }
        let n = if s.operand == Operand::A { g.m } else { g.n };
        self.result("operand sums", &s.out, vec![n], Kind::Real);
    }

    fn epilogue(&mut self, e: &Epilogue, dims: Vec<u64>) {
        let Some(p) = self.cx.plan.programs.get(e.program as usize) else {
            return self.error(format!("there is no program {}", e.program));
        };
        if self.cx.infos[e.program as usize].is_none() {
            return;
        }
        if p.reduces() {
            self.error(format!("the epilogue `{}` reduces", p.name));
        }
        let sums = p.inputs.first().is_some_and(|i| i.dtype == DType::F32 && !i.row);
        if !sums || p.inputs.len() != e.inputs.len() + 1 || p.outputs.len() != e.outputs.len() {
            return self.error(format!("the epilogue binds other ports than `{}` has", p.name));
        }
        if e.outputs.is_empty() {
            self.error("the epilogue stores nothing");
        }
        for instr in &p.code {
            if let Instr::Index { axis } = instr
                && *axis as usize >= dims.len()
            {
                self.error(format!("the result has no axis {axis}, which `{}` reads", p.name));
            }
        }
        if let Some(scale) = e.scale {
            self.scale(e, scale);
        }
        if e.kind == EpilogueKind::Accumulate {
            self.accumulates(e);
        }
        for (k, (a, port)) in e.inputs.iter().zip(&p.inputs[1..]).enumerate() {
            let Some(d) = self.dtype("epilogue input", a) else { continue };
            if d != port.dtype {
                self.error(format!("epilogue input {k} is {d}, the port {}", port.dtype));
            }
            self.push("epilogue input", a, dims.clone(), false, Some(0));
        }
        for (k, (a, port)) in e.outputs.iter().zip(&p.outputs).enumerate() {
            let Some(d) = self.dtype("epilogue output", a) else { continue };
            if d != port.dtype {
                self.error(format!("epilogue output {k} is {d}, the port {}", port.dtype));
            }
            self.push("epilogue output", a, dims.clone(), true, Some(0));
        }
    }

    /// Whether the sizes of a convolution agree with each other.
    fn geometry(&mut self, g: &ConvGeometry) -> bool {
        let sizes = [g.n, g.c, g.h, g.w, g.o, g.kh, g.kw, g.oh, g.ow, g.groups];
        let steps = [g.stride[0], g.stride[1], g.dilation[0], g.dilation[1]];
        let small = |x: &u64| (1..=MAX_ELEMENTS).contains(x);
        if !sizes.iter().chain(&steps).all(small) || g.pad.iter().any(|&p| p > MAX_ELEMENTS) {
            self.error("the geometry has an empty or huge size");
            return false;
        }
        if !g.c.is_multiple_of(g.groups) || !g.o.is_multiple_of(g.groups) {
            self.error(format!("{} groups do not divide {} and {} channels", g.groups, g.c, g.o));
            return false;
        }
        let out = |n: u64, before: u64, after: u64, k: u64, stride: u64, dilation: u64| {
            let reach = u128::from(dilation) * u128::from(k - 1) + 1;
            let room = u128::from(n) + u128::from(before) + u128::from(after);
            room.checked_sub(reach).map(|r| r / u128::from(stride) + 1)
        };
        let oh = out(g.h, g.pad[0], g.pad[2], g.kh, g.stride[0], g.dilation[0]);
        let ow = out(g.w, g.pad[1], g.pad[3], g.kw, g.stride[1], g.dilation[1]);
        if oh != Some(u128::from(g.oh)) || ow != Some(u128::from(g.ow)) {
            self.error(format!(
                "an output of {} x {} does not follow from the geometry",
                g.oh, g.ow
            ));
            return false;
        }
        self.sizes(&[g.n, g.c, g.h, g.w])
            && self.sizes(&[g.o, g.c, g.kh, g.kw])
            && self.sizes(&[g.n, g.o, g.oh, g.ow])
    }

    fn attention(&mut self, a: &Attention, forward: bool) {
        if !self.sizes(&[a.batch, a.heads, a.tq, a.tk, a.d]) {
            return;
        }
        if a.causal && a.tk < a.tq {
            self.error(format!("causal attention of {} queries over {} keys", a.tq, a.tk));
        }
        if !a.scale.is_finite() {
            self.error("the attention scale is not finite");
        }
        let (q, kv) = (vec![a.batch, a.heads, a.tq, a.d], vec![a.batch, a.heads, a.tk, a.d]);
        self.operand("q", &a.q, q.clone(), Kind::Real);
        self.operand("k", &a.k, kv.clone(), Kind::Real);
        self.operand("v", &a.v, kv, Kind::Real);
        if let Some(m) = &a.mask {
            let bools = self.dtype("mask", m).is_some_and(|d| kind_is(d, Kind::Bool));
            let kind = if bools { Kind::Bool } else { Kind::Real };
            self.operand("mask", m, vec![a.batch, a.heads, a.tq, a.tk], kind);
            if a.fill.is_some() && !bools {
                self.error("scores are filled without a mask of bools");
            }
        } else if a.fill.is_some() {
            self.error("scores are filled without a mask");
        }
        if a.fill.is_some_and(|f| !f.is_finite()) {
            self.error("what scores are filled with is not finite");
        }
        self.typed("o", &a.o, q, Kind::Real, forward);
        for (what, x) in [("lse", &a.lse), ("low", &a.low)] {
            self.typed(what, x, vec![a.batch, a.heads, a.tq], Kind::Real, forward);
        }
    }

    /// Whether the sizes of a recurrence are usable.
    fn recurrence(
        &mut self,
        s: &RecurrenceShape,
        peephole: bool,
        lengths: Option<&Access>,
    ) -> bool {
        if !s.is_sound() {
            self.error("a recurrence has an empty or huge size");
            return false;
        }
        if peephole && s.cell != RecurrentCell::Lstm {
            self.error(format!("a {} cell has no peepholes", s.cell.name()));
        }
        if let Some(a) = lengths {
            self.operand("lengths", a, vec![s.batch], Kind::Int);
        }
        [s.gates_dims(), s.matrix_dims(), s.y_dims(), s.kept_dims()].iter().all(|d| self.sizes(d))
    }

    /// Operands and results of a recurrence.
    fn walked(&mut self, reads: Uses, writes: Uses) {
        for (list, write) in [(reads, false), (writes, true)] {
            for (what, a, dims) in list {
                self.typed(what, a, dims, Kind::Real, write);
            }
        }
    }

    fn pool(&mut self, p: &MaxPool, forward: bool) {
        let g = &p.geometry;
        if !self.geometry(g) {
            return;
        }
        if g.o != g.c || g.groups != 1 || g.kh.saturating_mul(g.kw) > 256 {
            return self.error("a pool keeps its channels, has one group and at most 256 taps");
        }
        let (x, y) = (vec![g.n, g.c, g.h, g.w], vec![g.n, g.o, g.oh, g.ow]);
        self.typed("x", &p.x, x, Kind::Real, !forward);
        self.typed("y", &p.y, y.clone(), Kind::Real, forward);
        self.typed("index", &p.index, y, Kind::Int, forward);
    }

    fn gather(&mut self, g: &Gather, scatter: bool) {
        if !self.sizes(&[g.rows, g.width]) || !self.sizes(&[g.table_rows, g.width]) {
            return;
        }
        let kind = match self.dtype("table", &g.table) {
            Some(d) if !scatter => d.kind(),
            Some(_) => Kind::Real,
            None => return,
        };
        self.typed("table", &g.table, vec![g.table_rows, g.width], kind, scatter);
        self.operand("ids", &g.ids, vec![g.rows], Kind::Int);
        self.typed("out", &g.out, vec![g.rows, g.width], kind, !scatter);
    }
}

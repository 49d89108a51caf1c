//! A plan as text for people: diffable, one step a line.

use crate::recurrence::{RecurrenceShape, Way};
use crate::schema::{Access, Epilogue, EpilogueKind, Kernel, Plan, Role, Step, Storage, Tensor};
use crate::units;
use std::fmt;

const ROLES: [(Role, &str); 8] = [
    (Role::Parameter, "parameters"),
    (Role::WeightCopy, "weight copies"),
    (Role::Optimizer, "optimizer state"),
    (Role::Buffer, "buffers"),
    (Role::Ema, "moving averages"),
    (Role::Accumulator, "gradient accumulators"),
    (Role::Machine, "loss scale and counters"),
    (Role::Constant, "constants"),
];

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.summary;
        writeln!(f, "plan {} for {} ({})", self.model, self.target.name, self.target.device)?;
        writeln!(f, "  policy {}: {}", s.policy, s.choice)?;
        for c in &s.candidates {
            let legal = if c.legal { "" } else { ", not legal" };
            let note = if c.note.is_empty() { String::new() } else { format!(": {}", c.note) };
            writeln!(f, "    {} {}{legal}{note}", c.name, units::time(c.predicted_ns))?;
        }
        if let Some(b) = &s.bound {
            let gap = units::percent(b.gap(s.predicted_ns));
            writeln!(f, "  bound {}: the plan is {gap} above", units::time(b.ns))?;
        }
        let share: Vec<String> =
            s.product_flops.iter().map(|(d, x)| format!("{d} {:.1} %", x * 100.0)).collect();
        writeln!(
            f,
            "  products: {}",
            if share.is_empty() { "none".into() } else { share.join(", ") }
        )?;
        writeln!(
            f,
            "  casts: {} of {} elements; loss {}",
            s.casts,
            s.cast_elements,
            if s.scaled { "scaled" } else { "not scaled" }
        )?;
        writeln!(
            f,
            "  predicted step {}; arena {} (bound {}), persistent {}",
            units::time(s.predicted_ns),
            units::bytes(self.arena_bytes),
            units::bytes(self.arena_bound_bytes),
            units::bytes(self.persistent_bytes)
        )?;
        if self.accumulate > 1 {
            writeln!(f, "  gradients of {} batches are summed before an update", self.accumulate)?;
        }
        let list = |f: &mut fmt::Formatter<'_>, title: &str, pick: &dyn Fn(&Tensor) -> bool| {
            let mut first = true;
            for (i, t) in self.tensors.iter().enumerate().filter(|(_, t)| pick(t)) {
                if std::mem::take(&mut first) {
                    writeln!(f, "{title}:")?;
                }
                let offset = match t.storage {
                    Storage::Arena { offset }
                    | Storage::Persistent { offset, .. }
                    | Storage::Input { offset } => offset,
                };
                writeln!(f, "  t{i} {} {} {} @{offset}", t.name, t.dtype, Shape(&t.shape))?;
            }
            Ok(())
        };
        list(f, "inputs", &|t| matches!(t.storage, Storage::Input { .. }))?;
        for (role, title) in ROLES {
            list(
                f,
                title,
                &|t| matches!(&t.storage, Storage::Persistent { role: r, .. } if *r == role),
            )?;
        }
        list(f, "temporaries", &|t| matches!(t.storage, Storage::Arena { .. }))?;
        for p in &self.programs {
            write!(f, "{p}")?;
        }
        for (phase, steps) in
            [("micro", &self.micro), ("update", &self.update), ("eval", &self.eval)]
        {
            if !steps.is_empty() {
                writeln!(f, "{phase}:")?;
            }
            for s in steps {
                writeln!(f, "  {}", Line(self, s))?;
            }
        }
        for (title, results) in [("results", &self.results), ("eval results", &self.eval_results)] {
            for r in results {
                writeln!(f, "{title}: {} = {}", r.name, self.name(r.tensor))?;
            }
        }
        Ok(())
    }
}

impl Plan {
    fn name(&self, t: u32) -> String {
        self.tensors
            .get(t as usize)
            .map_or_else(|| format!("t{t}?"), |t| format!("{}:{}", t.name, t.dtype))
    }
}

struct Shape<'a>(&'a [u64]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "[{}]", list.join(","))
    }
}

/// Cell, direction and sizes of a recurrence.
struct Walk<'a>(&'a RecurrenceShape);

impl fmt::Display for Walk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        let way = match s.way {
            Way::Forward => "",
            Way::Reverse => " reverse",
            Way::Both => " both",
        };
        write!(f, "{}{way} t{} b{} h{}", s.cell.name(), s.steps, s.batch, s.hidden)
    }
}

struct Line<'a>(&'a Plan, &'a Step);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(plan, step) = *self;
        let one = |a: &Access| plan.name(a.tensor);
        let names = |l: &[Access]| l.iter().map(one).collect::<Vec<_>>().join(", ");
        let program = |p: u32| plan.programs.get(p as usize).map_or("?", |p| p.name.as_str());
        let epilogue = |e: &Epilogue| {
            let with =
                if e.inputs.is_empty() { String::new() } else { format!("({})", names(&e.inputs)) };
            match e.kind {
                EpilogueKind::Store => format!(" -> {}", names(&e.outputs)),
                _ => format!(" then {}{with} -> {}", program(e.program), names(&e.outputs)),
            }
        };
        write!(f, "{} = ", step.name)?;
        match &step.kernel {
            Kernel::Rows(r) => {
                write!(f, "rows {}", program(r.program))?;
                for i in &r.instances {
                    let cut = i.dims.len().saturating_sub(i.reduced as usize);
                    write!(f, " {}", Shape(&i.dims[..cut]))?;
                    if i.reduced > 0 {
                        write!(f, "x{}", Shape(&i.dims[cut..]))?;
                    }
                    write!(f, " ({}) -> ({})", names(&i.inputs), names(&i.outputs))?;
                }
            }
            Kernel::Gemm(g) => {
                let [b0, b1] = g.batch;
                write!(
                    f,
                    "gemm {b0}x{b1} m{} n{} k{} ({}, {})",
                    g.m,
                    g.n,
                    g.k,
                    one(&g.a),
                    one(&g.b)
                )?;
                write!(f, "{}", epilogue(&g.epilogue))?;
                if let Some(s) = &g.sums {
                    let of = if s.operand == crate::schema::Operand::A { &g.a } else { &g.b };
                    write!(f, ", sums of {} -> {}", one(of), one(&s.out))?;
                }
            }
            Kernel::Conv(c) => {
                let g = &c.geometry;
                let kind = match c.kind {
                    crate::schema::ConvKind::Forward => "forward",
                    crate::schema::ConvKind::DataGrad => "data_grad",
                    crate::schema::ConvKind::FilterGrad => "filter_grad",
                };
                write!(
                    f,
                    "conv {kind} n{} c{} {}x{} o{} k{}x{} s{}x{} g{} ({}, {})",
                    g.n,
                    g.c,
                    g.h,
                    g.w,
                    g.o,
                    g.kh,
                    g.kw,
                    g.stride[0],
                    g.stride[1],
                    g.groups,
                    one(&c.a),
                    one(&c.b)
                )?;
                write!(f, "{}", epilogue(&c.epilogue))?;
            }
            Kernel::Attention(a) => write!(
                f,
                "attention b{} h{} q{} k{} d{}{}{} ({}, {}, {}) -> {}, {}, {}",
                a.batch,
                a.heads,
                a.tq,
                a.tk,
                a.d,
                if a.causal { " causal" } else { "" },
                if a.safe { " safe" } else { "" },
                one(&a.q),
                one(&a.k),
                one(&a.v),
                one(&a.o),
                one(&a.lse),
                one(&a.low)
            )?,
            Kernel::AttentionGrad(g) => write!(
                f,
                "attention_grad ({}, {}, {}, {}) -> {}, {}, {}",
                one(&g.forward.q),
                one(&g.forward.k),
                one(&g.forward.v),
                one(&g.d_o),
                one(&g.d_q),
                one(&g.d_k),
                one(&g.d_v)
            )?,
            Kernel::Recurrence(r) => {
                write!(f, "recurrence {}", Walk(&r.shape))?;
                let read = r.reads();
                let list: Vec<String> = read.iter().map(|(_, a, _)| one(a)).collect();
                let lengths = r.lengths.as_ref().map(|a| format!(", {}", one(a)));
                write!(f, " ({}{})", list.join(", "), lengths.unwrap_or_default())?;
                write!(f, " -> {}, {}, {}", one(&r.y), one(&r.kept), one(&r.before))?;
            }
            Kernel::RecurrenceGrad(g) => {
                write!(f, "recurrence_grad {}", Walk(&g.shape))?;
                let read = g.reads();
                let list: Vec<String> = read.iter().map(|(_, a, _)| one(a)).collect();
                let lengths = g.lengths.as_ref().map(|a| format!(", {}", one(a)));
                write!(f, " ({}{})", list.join(", "), lengths.unwrap_or_default())?;
                write!(f, " -> {}, {}", one(&g.d_gates), one(&g.d_states))?;
            }
            Kernel::MaxPool(p) => {
                write!(f, "max_pool ({}) -> {}, {}", one(&p.x), one(&p.y), one(&p.index))?;
            }
            Kernel::MaxPoolGrad(p) => {
                write!(f, "max_pool_grad ({}, {}) -> {}", one(&p.y), one(&p.index), one(&p.x))?;
            }
            Kernel::Gather(g) => {
                write!(f, "gather ({}, {}) -> {}", one(&g.table), one(&g.ids), one(&g.out))?;
            }
            Kernel::ScatterAdd(g) => {
                write!(f, "scatter_add ({}, {}) -> {}", one(&g.out), one(&g.ids), one(&g.table))?;
            }
            Kernel::LastIndex(l) => write!(f, "last_index ({}) -> {}", one(&l.ids), one(&l.out))?,
            Kernel::CumSum(s) => write!(
                f,
                "cumsum{}{} ({}) -> {}",
                if s.exclusive { " exclusive" } else { "" },
                if s.reverse { " reverse" } else { "" },
                one(&s.x),
                one(&s.y)
            )?,
            Kernel::TopK(t) => write!(
                f,
                "top_k {} {} ({}) -> {}",
                t.k,
                if t.largest { "largest" } else { "smallest" },
                one(&t.x),
                one(&t.index)
            )?,
        }
        write!(f, "  # {}", units::time(step.predicted_ns))
    }
}

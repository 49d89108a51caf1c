//! Plans of one step each, for tests and for checks that compile every kernel.

use super::{
    lower_attention, lower_attention_grad, lower_gather, lower_max_pool, lower_max_pool_grad,
    lower_scatter_add,
};
use crate::cuda::launch::{Facts, Lowered, Source, Task};
use precast_plan::{
    Access, Attention, AttentionGrad, ConvGeometry, DType, Gather, MaxPool, Plan, Program, Storage,
    Summary, TargetSummary, Tensor, VERSION,
};
use std::sync::Arc;

/// A plan without steps, to which tensors and programs are added.
pub(super) struct Sample {
    pub plan: Plan,
}

impl Sample {
    pub fn new() -> Sample {
        let plan = Plan {
            version: VERSION,
            model: "sample".into(),
            target: TargetSummary { name: "sample".into(), device: "cuda".into() },
            tensors: vec![],
            programs: vec![],
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
        Sample { plan }
    }

    /// A tensor of `dims` whose axes lie in memory in the order `axes` (slowest first), each row
    /// padded by `pad` elements.
    pub fn tensor(&mut self, dtype: DType, dims: &[u64], axes: &[usize], pad: u64) -> Access {
        let mut strides = vec![0; dims.len()];
        let mut step = 1;
        for (i, &axis) in axes.iter().rev().enumerate() {
            strides[axis] = step as i64;
            step *= dims[axis];
            if i == 0 {
                step += pad;
            }
        }
        let offset = pad;
        self.plan.tensors.push(Tensor {
            name: format!("t{}", self.plan.tensors.len()),
            dtype,
            shape: vec![step + offset],
            storage: Storage::Arena { offset: 0 },
        });
        Access { tensor: self.plan.tensors.len() as u32 - 1, offset, strides }
    }

    /// Row-major.
    pub fn dense(&mut self, dtype: DType, dims: &[u64]) -> Access {
        let axes: Vec<usize> = (0..dims.len()).collect();
        self.tensor(dtype, dims, &axes, 0)
    }

    pub fn program(&mut self, p: Program) -> u32 {
        self.plan.programs.push(p);
        self.plan.programs.len() as u32 - 1
    }
}

/// What varies between samples of attention.
#[derive(Clone, Debug)]
pub(super) struct AttentionSample {
    pub batch: u64,
    pub heads: u64,
    pub tq: u64,
    pub tk: u64,
    pub d: u64,
    pub scale: f32,
    pub causal: bool,
    pub mask: Option<DType>,
    /// q, k, v, o and cotangents.
    pub dtypes: [DType; 5],
    /// Order of batch, head, position, channel in memory.
    pub axes: [usize; 4],
    pub pad: u64,
}

impl AttentionSample {
    pub fn new(dtype: DType, tq: u64, tk: u64, d: u64) -> AttentionSample {
        AttentionSample {
            batch: 1,
            heads: 2,
            tq,
            tk,
            d,
            scale: 1.0 / (d as f32).sqrt(),
            causal: false,
            mask: None,
            dtypes: [dtype; 5],
            axes: [0, 2, 1, 3],
            pad: 0,
        }
    }

    pub fn build(&self, s: &mut Sample) -> AttentionGrad {
        let (q, kv) =
            ([self.batch, self.heads, self.tq, self.d], [self.batch, self.heads, self.tk, self.d]);
        let [tq, tk, tv, to, tg] = self.dtypes;
        let mut view = |dtype, dims: &[u64]| s.tensor(dtype, dims, &self.axes, self.pad);
        let (q_, k, v, o) = (view(tq, &q), view(tk, &kv), view(tv, &kv), view(to, &q));
        let (d_o, d_q, d_k, d_v) = (view(tg, &q), view(tq, &q), view(tk, &kv), view(tv, &kv));
        let lse = s.dense(DType::F32, &[self.batch, self.heads, self.tq]);
        let mask = self.mask.map(|dtype| {
            // One mask for all heads.
            let mut m = s.dense(dtype, &[self.batch, self.tq, self.tk]);
            m.strides.insert(1, 0);
            m
        });
        AttentionGrad {
            forward: Attention {
                batch: self.batch,
                heads: self.heads,
                tq: self.tq,
                tk: self.tk,
                d: self.d,
                scale: self.scale,
                causal: self.causal,
                mask,
                q: q_,
                k,
                v,
                o,
                lse,
            },
            d_o,
            d_q,
            d_k,
            d_v,
        }
    }
}

pub(super) fn gather(
    s: &mut Sample,
    [rows, width, table_rows]: [u64; 3],
    [table, ids, out]: [DType; 3],
    pad: u64,
) -> Gather {
    Gather {
        rows,
        width,
        table_rows,
        table: s.tensor(table, &[table_rows, width], &[0, 1], pad),
        ids: s.dense(ids, &[rows]),
        out: s.tensor(out, &[rows, width], &[0, 1], pad),
    }
}

pub(super) fn pool(
    s: &mut Sample,
    geometry: ConvGeometry,
    dtype: DType,
    channels_last: bool,
) -> MaxPool {
    let g = &geometry;
    let (x, y) = ([g.n, g.c, g.h, g.w], [g.n, g.c, g.oh, g.ow]);
    let axes = if channels_last { [0, 2, 3, 1] } else { [0, 1, 2, 3] };
    MaxPool {
        x: s.tensor(dtype, &x, &axes, 0),
        y: s.tensor(dtype, &y, &axes, 0),
        index: s.tensor(DType::U8, &y, &axes, 0),
        geometry,
    }
}

/// Texts of every family in the formats and tile sizes that plans ask for, for a device of these
/// facts; for checks that compile them.
///
/// # Panics
/// If a sample does not lower: a bug of this crate.
pub fn samples(facts: &Facts) -> Vec<Arc<Source>> {
    let mut out = Lowered::default();
    let mut s = Sample::new();
    let fine = "samples lower";
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let g = gather(&mut s, [64, 96, 100], [dtype, DType::I64, dtype], 0);
        lower_gather(&s.plan, &g, 0, facts, &mut out).expect(fine);
        let g = gather(&mut s, [64, 96, 100], [DType::F32, DType::I32, dtype], 0);
        lower_gather(&s.plan, &g, 0, facts, &mut out).expect(fine);
        lower_scatter_add(&s.plan, &g, 0, facts, &mut out).expect(fine);
        for channels_last in [false, true] {
            let p =
                pool(&mut s, geometry([2, 8, 14, 14], 8, [3, 3], 2, 1, 1), dtype, channels_last);
            lower_max_pool(&s.plan, &p, facts, &mut out).expect(fine);
            lower_max_pool_grad(&s.plan, &p, facts, &mut out).expect(fine);
        }
        for (d, causal, mask) in [
            (64, true, false),
            (64, false, true),
            (128, true, false),
            (128, false, false),
            (96, true, false),
            (256, true, false),
            (20, false, false),
        ] {
            let mut a = AttentionSample::new(dtype, 256, 256, d);
            a.causal = causal;
            a.mask = mask.then_some(DType::F32);
            let g = a.build(&mut s);
            lower_attention(&s.plan, &g.forward, facts, &mut out).expect(fine);
            lower_attention_grad(&s.plan, &g, facts, &mut out).expect(fine);
        }
    }
    let mut list: Vec<Arc<Source>> = out
        .tasks
        .into_iter()
        .filter_map(|t| match t {
            Task::Launch(l) => Some(l.source),
            _ => None,
        })
        .collect();
    list.sort();
    list.dedup();
    list
}

/// A geometry with equal padding on all sides.
pub(super) fn geometry(
    [n, c, h, w]: [u64; 4],
    o: u64,
    [kh, kw]: [u64; 2],
    stride: u64,
    pad: u64,
    dilation: u64,
) -> ConvGeometry {
    let out = |x: u64, k: u64| (x + 2 * pad - dilation * (k - 1) - 1) / stride + 1;
    ConvGeometry {
        n,
        c,
        h,
        w,
        o,
        kh,
        kw,
        oh: out(h, kh),
        ow: out(w, kw),
        stride: [stride; 2],
        pad: [pad; 4],
        dilation: [dilation; 2],
        groups: 1,
    }
}

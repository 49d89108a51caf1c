//! Plans of one step each, for tests and for checks that compile every kernel.

use super::{
    lower_attention, lower_attention_grad, lower_conv, lower_cumsum, lower_gather,
    lower_gemm_fallback, lower_last_index, lower_max_pool, lower_max_pool_grad, lower_scatter_add,
    lower_top_k,
};
use crate::cuda::launch::{Facts, Lowered, Source, Task};
use precast_plan::{
    Access, Attention, AttentionGrad, BinaryOp, Conv, ConvGeometry, ConvKind, CumSum, DType,
    Epilogue, EpilogueKind, Gather, Gemm, InPort, Instr, LastIndex, Math, MaxPool, OutPort, Plan,
    Program, Storage, Summary, TargetSummary, Tensor, TopK, VERSION,
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

    /// Stores the sums in `out`, after adding `bias` (strides over the axes of the result) and a
    /// ReLU if there is one.
    pub fn epilogue(&mut self, out: Access, bias: Option<Access>) -> Epilogue {
        let port = |dtype| InPort { dtype, row: false };
        let dtype = |a: &Access| self.plan.tensors[a.tensor as usize].dtype;
        let mut p = Program {
            name: "end".into(),
            inputs: vec![port(DType::F32)],
            code: vec![Instr::Load { port: 0 }],
            outputs: vec![OutPort { dtype: dtype(&out), reg: 0 }],
        };
        if let Some(b) = &bias {
            p.inputs.push(port(dtype(b)));
            p.code.extend([
                Instr::Load { port: 1 },
                Instr::Binary(BinaryOp::Add, 0, 1),
                Instr::Real(0.0),
                Instr::Binary(BinaryOp::Max, 2, 3),
            ]);
            p.outputs[0].reg = 4;
        }
        self.plan.programs.push(p);
        Epilogue {
            kind: if bias.is_some() { EpilogueKind::BiasRelu } else { EpilogueKind::Store },
            scale: None,
            program: self.plan.programs.len() as u32 - 1,
            inputs: bias.into_iter().collect(),
            outputs: vec![out],
        }
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
    pub fill: Option<f32>,
    pub safe: bool,
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
            fill: None,
            safe: false,
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
        let [lse, low] = [(); 2].map(|()| s.dense(DType::F32, &[self.batch, self.heads, self.tq]));
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
                fill: self.fill,
                safe: self.safe,
                q: q_,
                k,
                v,
                o,
                lse,
                low,
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

pub(super) fn last_index(s: &mut Sample, rows: u64, table_rows: u64, ids: DType) -> LastIndex {
    let ids = s.dense(ids, &[rows]);
    LastIndex { rows, table_rows, ids, out: s.dense(DType::I32, &[table_rows]) }
}

/// Running sums whose operand lies in the order `axes`.
pub(super) fn cumsum(
    s: &mut Sample,
    dims: [u64; 3],
    [from, to]: [DType; 2],
    [exclusive, reverse]: [bool; 2],
    axes: [usize; 3],
) -> CumSum {
    let x = s.tensor(from, &dims, &axes, 0);
    CumSum { dims, exclusive, reverse, x, y: s.dense(to, &dims) }
}

pub(super) fn top_k(
    s: &mut Sample,
    dims: [u64; 3],
    k: u64,
    from: DType,
    largest: bool,
    axes: [usize; 3],
) -> TopK {
    let x = s.tensor(from, &dims, &axes, 0);
    TopK { dims, k, largest, x, index: s.dense(DType::I32, &[dims[0], k, dims[2]]) }
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

/// A convolution of a kind; dtypes of its operands and result. With a bias where it is forward.
pub(super) fn conv(
    s: &mut Sample,
    kind: ConvKind,
    g: &ConvGeometry,
    [da, db, out]: [DType; 3],
    channels_last: bool,
) -> Conv {
    let x = [g.n, g.c, g.h, g.w];
    let w = [g.o, g.c / g.groups, g.kh, g.kw];
    let y = [g.n, g.o, g.oh, g.ow];
    let (a, b, d) = match kind {
        ConvKind::Forward => (x, w, y),
        ConvKind::DataGrad => (y, w, x),
        ConvKind::FilterGrad => (x, y, w),
    };
    let axes = if channels_last { [0, 2, 3, 1] } else { [0, 1, 2, 3] };
    let (a, b) = (s.tensor(da, &a, &axes, 0), s.tensor(db, &b, &axes, 0));
    let result = s.tensor(out, &d, &axes, 0);
    let bias = (kind == ConvKind::Forward).then(|| {
        let mut b = s.dense(DType::F32, &[g.o]);
        b.strides = vec![0, 1, 0, 0];
        b
    });
    let epilogue = s.epilogue(result, bias);
    Conv { kind, geometry: g.clone(), a, b, math: Math::Exact, epilogue }
}

/// A product; `axes` are the orders of b0, b1 and the two matrix axes of a, b and the result.
pub(super) fn gemm(
    s: &mut Sample,
    batch: [u64; 2],
    [m, n, k]: [u64; 3],
    [da, db, out]: [DType; 3],
    axes: [[usize; 4]; 3],
    pad: u64,
) -> Gemm {
    let [b0, b1] = batch;
    let a = s.tensor(da, &[b0, b1, m, k], &axes[0], pad);
    let b = s.tensor(db, &[b0, b1, k, n], &axes[1], pad);
    let d = s.tensor(out, &[b0, b1, m, n], &axes[2], pad);
    let epilogue = s.epilogue(d, None);
    Gemm { batch, m, n, k, a, b, math: Math::Exact, epilogue, sums: None }
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
        // A gap behind every row of the table keeps its rows from being whole vectors.
        for (ids, pad) in [(DType::I64, 0), (DType::I32, 3)] {
            for table in [dtype, DType::F32] {
                let g = gather(&mut s, [64, 96, 100], [table, ids, dtype], pad);
                lower_gather(&s.plan, &g, 0, facts, &mut out).expect(fine);
                lower_scatter_add(&s.plan, &g, 0, facts, &mut out).expect(fine);
            }
        }
        for (turned, n) in [(false, 100), (true, 100), (false, 9000)] {
            let flags = [turned, !turned];
            let axes = if turned { [0, 2, 1] } else { [0, 1, 2] };
            for inner in [1, 5] {
                // Short lines that are neighbours are a thread's, all others a block's.
                let c = cumsum(&mut s, [3, n / inner, inner], [dtype, DType::F32], flags, axes);
                lower_cumsum(&s.plan, &c, facts, &mut out).expect(fine);
            }
            let t = top_k(&mut s, [3, n, 2], 7, dtype, turned, axes);
            lower_top_k(&s.plan, &t, facts, &mut out).expect(fine);
        }
        for (channels_last, c) in [(false, 8), (true, 8), (true, 3)] {
            let p =
                pool(&mut s, geometry([2, c, 14, 14], c, [3, 3], 2, 1, 1), dtype, channels_last);
            lower_max_pool(&s.plan, &p, facts, &mut out).expect(fine);
            lower_max_pool_grad(&s.plan, &p, facts, &mut out).expect(fine);
        }
    }
    for ids in [DType::I64, DType::I32, DType::U8] {
        if ids != DType::U8 {
            let l = last_index(&mut s, 64, 100, ids);
            lower_last_index(&s.plan, &l, 0, facts, &mut out).expect(fine);
        }
        for (flags, inner) in [([false, false], 1), ([true, true], 1), ([false, true], 5)] {
            let c = cumsum(&mut s, [3, 100, inner], [ids, DType::I32], flags, [0, 1, 2]);
            lower_cumsum(&s.plan, &c, facts, &mut out).expect(fine);
        }
        let t = top_k(&mut s, [3, 64, 2], 7, ids, true, [0, 1, 2]);
        lower_top_k(&s.plan, &t, facts, &mut out).expect(fine);
    }
    use DType::{Bf16, F16, F32};
    for (dtype, d, causal, mask) in [
        (Bf16, 64, true, false),
        (Bf16, 64, false, true),
        (Bf16, 128, true, false),
        (Bf16, 128, false, false),
        (Bf16, 96, true, false),
        (Bf16, 256, true, false),
        (Bf16, 20, false, false),
        (F16, 64, true, false),
        (F16, 128, false, true),
        (F32, 64, true, false),
        (F32, 128, false, true),
        (F32, 256, true, false),
    ] {
        let mut a = AttentionSample::new(dtype, 256, 256, d);
        a.causal = causal;
        // A mask that is added, and one that chooses, where rows without keys are 0.
        let masks: &[_] = if mask { &[Some(dtype), Some(DType::Bool)] } else { &[None] };
        for &mask in masks {
            a.mask = mask;
            a.safe = mask == Some(DType::Bool);
            let g = a.build(&mut s);
            lower_attention(&s.plan, &g.forward, facts, &mut out).expect(fine);
            lower_attention_grad(&s.plan, &g, facts, &mut out).expect(fine);
        }
    }
    // Rows that are no whole vectors, and formats that no tensor core takes together.
    let mut apart = AttentionSample::new(Bf16, 64, 64, 20);
    apart.pad = 1;
    let mut mixed = [F16, Bf16, F32, F16, Bf16];
    let rotated: Vec<AttentionSample> = (0..3)
        .map(|_| {
            mixed.rotate_left(1);
            AttentionSample { dtypes: mixed, ..AttentionSample::new(F32, 64, 64, 32) }
        })
        .collect();
    for a in rotated.into_iter().chain([apart]) {
        let g = a.build(&mut s);
        lower_attention(&s.plan, &g.forward, facts, &mut out).expect(fine);
        lower_attention_grad(&s.plan, &g, facts, &mut out).expect(fine);
    }
    super::recurrence_samples::recurrences(&mut s, facts, &mut out);
    products(&mut s, facts, &mut out);
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

fn products(s: &mut Sample, facts: &Facts, out: &mut Lowered) {
    let fine = "samples lower";
    let (rows, columns) = ([0, 1, 2, 3], [0, 1, 3, 2]);
    use DType::{Bf16, F16, F32};
    let large = [4096, 4096, 512];
    for (dtype, axes, mnk) in [
        (Bf16, [rows; 3], large),
        (Bf16, [columns, rows, rows], large),
        (Bf16, [rows, columns, columns], large),
        (Bf16, [rows; 3], [96, 64, 100]),
        (Bf16, [columns, rows, rows], [64, 64, 65536]),
        (F16, [rows, columns, rows], large),
        (F32, [rows; 3], large),
        (F32, [columns, rows, columns], large),
        (F32, [columns, rows, rows], [64, 64, 65536]),
    ] {
        let g = gemm(s, [1, 2], mnk, [dtype; 3], axes, 0);
        lower_gemm_fallback(&s.plan, &g, facts, out).expect(fine);
    }
    let three = geometry([32, 64, 56, 56], 64, [3, 3], 1, 1, 1);
    let strided = geometry([32, 128, 56, 56], 256, [3, 3], 2, 1, 1);
    let mut depthwise = geometry([32, 64, 28, 28], 64, [3, 3], 1, 1, 1);
    depthwise.groups = 64;
    for kind in [ConvKind::Forward, ConvKind::DataGrad, ConvKind::FilterGrad] {
        for (dtype, channels_last, g) in [
            (Bf16, false, &three),
            (Bf16, true, &three),
            (Bf16, true, &strided),
            (Bf16, false, &geometry([32, 256, 56, 56], 64, [1, 1], 1, 0, 1)),
            (Bf16, true, &geometry([32, 256, 56, 56], 512, [1, 1], 1, 0, 1)),
            (Bf16, false, &geometry([32, 3, 224, 224], 64, [7, 7], 2, 3, 1)),
            (F16, false, &strided),
            (F32, false, &three),
            (F32, true, &strided),
            (Bf16, false, &depthwise),
            (F32, true, &depthwise),
        ] {
            let out_dtype = if kind == ConvKind::FilterGrad { F32 } else { dtype };
            let c = conv(s, kind, g, [dtype, dtype, out_dtype], channels_last);
            lower_conv(&s.plan, &c, facts, out).expect(fine);
        }
    }
    // Sums over far more than the result has elements; images of more than 2^30 elements.
    let deep = geometry([1, 512, 7, 7], 512, [3, 3], 1, 1, 1);
    let far = geometry([1024, 64, 128, 160], 64, [1, 1], 1, 0, 1);
    for kind in [ConvKind::Forward, ConvKind::DataGrad, ConvKind::FilterGrad] {
        for (dtype, g) in [(Bf16, &deep), (F32, &deep), (Bf16, &far)] {
            let mut c = conv(s, kind, g, [dtype; 3], true);
            lower_conv(&s.plan, &c, facts, out).expect(fine);
            c.math = Math::Tf32;
            if dtype == F32 {
                lower_conv(&s.plan, &c, facts, out).expect(fine);
                c = conv(s, kind, &depthwise, [F32; 3], true);
                c.math = Math::Tf32;
                lower_conv(&s.plan, &c, facts, out).expect(fine);
            }
        }
    }
    let g = gemm(s, [1, 1], [1 << 16, 64, 1 << 15], [Bf16; 3], [rows; 3], 0);
    lower_gemm_fallback(&s.plan, &g, facts, out).expect(fine);
    let (e4, e5) = (DType::F8e4m3, DType::F8e5m2);
    for (formats, axes) in [
        ([e4, e5, Bf16], [rows, columns, rows]),
        ([e5, e4, F16], [rows, columns, rows]),
        ([e4, e4, F32], [rows; 3]),
        ([e5, Bf16, F32], [rows; 3]),
        ([F32, Bf16, F32], [rows; 3]),
    ] {
        let mut g = gemm(s, [1, 1], [256, 256, 256], formats, axes, 0);
        lower_gemm_fallback(&s.plan, &g, facts, out).expect(fine);
        if formats[0] == F32 {
            g.math = Math::Tf32;
            lower_gemm_fallback(&s.plan, &g, facts, out).expect(fine);
        }
    }
}

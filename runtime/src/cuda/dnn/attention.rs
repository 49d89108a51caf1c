//! Attention forward and backward without the scores in memory, as graphs of products, pointwise
//! operations and reductions in the shape that cuDNN's fused engines know (cudnn-frontend's
//! composite graphs; the single operation for the backward pass is newer than many releases).

use super::Dnn;
use super::api::spelled;
use super::conv::dtype;
use super::desc::Refusal;
use super::engines::Wanted;
use super::graph::{Builder, Format, Graph, Home, Tensor, dense};
use cudarc::cudnn::sys::cudnnPointwiseMode_t as Pointwise;
use cudarc::cudnn::sys::cudnnReduceTensorOp_t as Reduce;
use precast_plan::{Access, Attention, AttentionGrad, Plan};

/// Slots are q, k, v, o, then this, then do, dq, dk, dv.
const LSE: usize = 4;

/// Candidates that compile their kernel, as all engines of attention do: a plan has few such graphs,
/// since layers share them, and each takes much of a step.
const COMPILED: usize = 4;

/// The first release whose attention is trusted. Before 9.15.1 the backward pass reads what is not its
/// own where the number of keys is no multiple of 128, there is no mask of padding and a graph is
/// replayed; 9.10.0 and 9.10.1 have faults in 16 bits; before 9.10 minus infinity is no mask
/// (cudnn-frontend, release notes of 1.16 and `scaled_dot_product_flash_attention.h`).
const TRUSTED: usize = 91_501;

/// The accesses of attention in the order of its slots.
pub(super) fn slots(a: &Attention) -> Vec<&Access> {
    vec![&a.q, &a.k, &a.v, &a.o, &a.lse]
}

/// The accesses of its gradient in the order of its slots.
pub(super) fn gradient_slots(g: &AttentionGrad) -> Vec<&Access> {
    let mut all = slots(&g.forward);
    all.extend([&g.d_o, &g.d_q, &g.d_k, &g.d_v]);
    all
}

/// Strides where axes of extent 1 step over the whole tensor: plans write 0 there, which is no stride
/// of cuDNN's.
fn steps(dims: &[i64; 4], strides: &[i64]) -> Vec<i64> {
    let whole = dims.iter().zip(strides).map(|(n, s)| n * s).max().unwrap_or(1).max(1);
    dims.iter().zip(strides).map(|(&n, &s)| if n == 1 && s == 0 { whole } else { s }).collect()
}

/// A graph under construction and what its parts share.
struct Scores<'p> {
    b: Builder,
    plan: &'p Plan,
    a: &'p Attention,
    /// Format of q, k, v and the result.
    io: Format,
}

impl<'p> Scores<'p> {
    fn new(dnn: &Dnn, plan: &'p Plan, a: &'p Attention) -> Result<Scores<'p>, Refusal> {
        let d = dtype(plan, a.q.tensor);
        let io = Format::of(d).filter(|f| *f != Format::F32);
        let io = io.ok_or_else(|| format!("cuDNN's attention takes f16 and bf16, not {d}"))?;
        let version = dnn.api.version();
        if version < TRUSTED {
            let (is, first) = (spelled(version), spelled(TRUSTED));
            return Err(format!("attention of cuDNN {is} has faults that {first} mends"));
        }
        if a.causal && a.tq != a.tk {
            return Err("causal attention with unequal numbers of queries and keys".into());
        }
        if a.mask.is_some() {
            // Its engines keep one number of a row, the logarithm of its sum. Where a mask leaves no
            // key, every score is as large as the mask's numbers, next to which f32 holds nothing of
            // that logarithm, and the gradient's probabilities are not those of the forward pass; what
            // engines make of rows of minus infinity is not documented. No mask is known to do neither.
            return Err("under a mask cuDNN's statistics do not give every row's gradient".into());
        }
        Ok(Scores { b: Builder::new(dnn.api), plan, a, io })
    }

    fn extents(&self, positions: u64, width: u64) -> [i64; 4] {
        [self.a.batch as i64, self.a.heads as i64, positions as i64, width as i64]
    }

    /// A tensor of the plan over batch, head, position, channel.
    fn stored(&mut self, a: &Access, positions: u64, slot: usize) -> Result<Tensor, Refusal> {
        let dims = self.extents(positions, self.a.d);
        self.same_format(a)?;
        self.b.tensor(&dims, &steps(&dims, &a.strides), self.io, Home::Slot(slot))
    }

    /// The same with the last two axes exchanged.
    fn transposed(&mut self, a: &Access, positions: u64, slot: usize) -> Result<Tensor, Refusal> {
        let [b, h, t, d] = self.extents(positions, self.a.d);
        let s = &a.strides;
        self.same_format(a)?;
        let (dims, strides) = ([b, h, d, t], [s[0], s[1], s[3], s[2]]);
        self.b.tensor(&dims, &steps(&dims, &strides), self.io, Home::Slot(slot))
    }

    fn same_format(&self, a: &Access) -> Result<(), Refusal> {
        let same = Format::of(dtype(self.plan, a.tensor)) == Some(self.io);
        if same { Ok(()) } else { Err("operands of several formats".into()) }
    }

    /// The logarithms of the denominators, over batch, head, query.
    fn statistics(&mut self) -> Result<Tensor, Refusal> {
        let lse = &self.a.lse;
        let dims = self.extents(self.a.tq, 1);
        let strides = [lse.strides[0], lse.strides[1], lse.strides[2], 1];
        self.b.tensor(&dims, &steps(&dims, &strides), Format::F32, Home::Slot(LSE))
    }

    fn rows(&mut self, home: Home) -> Result<Tensor, Refusal> {
        let dims = self.extents(self.a.tq, 1);
        self.b.tensor(&dims, &dense(&dims), Format::F32, home)
    }

    /// `scale · q kᵀ`, minus infinity where causality hides a key.
    fn scores(&mut self, q: &Tensor, kt: &Tensor) -> Result<Tensor, Refusal> {
        let dims = self.extents(self.a.tq, self.a.tk);
        let product = self.b.tensor(&dims, &dense(&dims), Format::F32, Home::Nowhere)?;
        self.b.matmul(q, kt, &product)?;
        let mut s = self.scaled(&product)?;
        if self.a.causal {
            let row = self.b.index(2, &s)?;
            let column = self.b.index(3, &s)?;
            let seen = self.b.inner(&s, Format::Bool)?;
            let ge = Pointwise::CUDNN_POINTWISE_CMP_GE;
            self.b.pointwise(ge, Format::Bool, &row, Some(&column), None, &seen)?;
            let never = self.b.number(f32::NEG_INFINITY)?;
            let y = self.b.inner(&s, Format::F32)?;
            let select = Pointwise::CUDNN_POINTWISE_BINARY_SELECT;
            self.b.pointwise(select, Format::F32, &s, Some(&never), Some(&seen), &y)?;
            s = y;
        }
        Ok(s)
    }

    fn scaled(&mut self, x: &Tensor) -> Result<Tensor, Refusal> {
        let scale = self.b.number(self.a.scale)?;
        self.with(Pointwise::CUDNN_POINTWISE_MUL, x, &scale)
    }

    /// `mode(x, y)` in f32.
    fn with(&mut self, mode: Pointwise, x: &Tensor, y: &Tensor) -> Result<Tensor, Refusal> {
        let out = self.b.inner(x, Format::F32)?;
        self.b.pointwise(mode, Format::F32, x, Some(y), None, &out)?;
        Ok(out)
    }

    fn exp(&mut self, x: &Tensor) -> Result<Tensor, Refusal> {
        let out = self.b.inner(x, Format::F32)?;
        let exp = Pointwise::CUDNN_POINTWISE_EXP;
        self.b.pointwise(exp, Format::F32, x, None, None, &out)?;
        Ok(out)
    }

    /// A probability-like tensor with queries and keys exchanged, in the operands' format.
    fn exchanged(&mut self, x: &Tensor) -> Result<Tensor, Refusal> {
        let [b, h, q, k] = self.extents(self.a.tq, self.a.tk);
        let strides = [h * q * k, q * k, 1, k];
        let y = self.b.tensor(&[b, h, k, q], &strides, self.io, Home::Nowhere)?;
        self.b.reshape(x, &y)?;
        Ok(y)
    }
}

impl Dnn {
    /// Attention that also stores the logarithms of its denominators, as one number each; what that
    /// loses, [`Attention::low`], is as small as the rounding of the scores themselves where no mask
    /// makes them large, and 0 takes its place.
    pub(super) fn build_attention(&self, a: &Attention, plan: &Plan) -> Result<Graph, Refusal> {
        let mut s = Scores::new(self, plan, a)?;
        let q = s.stored(&a.q, a.tq, 0)?;
        let kt = s.transposed(&a.k, a.tk, 1)?;
        let v = s.stored(&a.v, a.tk, 2)?;
        let o = s.stored(&a.o, a.tq, 3)?;
        let stats = s.statistics()?;
        let scores = s.scores(&q, &kt)?;
        let most = s.rows(Home::Nowhere)?;
        s.b.reduce(Reduce::CUDNN_REDUCE_TENSOR_MAX, &scores, &most)?;
        let below = s.with(Pointwise::CUDNN_POINTWISE_SUB, &scores, &most)?;
        let e = s.exp(&below)?;
        let sum = s.rows(Home::Nowhere)?;
        s.b.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, &e, &sum)?;
        let log = s.b.inner(&sum, Format::F32)?;
        s.b.pointwise(Pointwise::CUDNN_POINTWISE_LOG, Format::F32, &sum, None, None, &log)?;
        let add = Pointwise::CUDNN_POINTWISE_ADD;
        s.b.pointwise(add, Format::F32, &most, Some(&log), None, &stats)?;
        let p = s.b.inner(&e, s.io)?;
        s.b.pointwise(Pointwise::CUDNN_POINTWISE_DIV, Format::F32, &e, Some(&sum), None, &p)?;
        s.b.matmul(&p, &v, &o)?;
        self.build(s.b, &Wanted { compiled: COMPILED, exact: false, deterministic: true })
    }

    /// Cotangents of q, k and v. `deterministic` keeps the order of the sums of dq, at the price
    /// of a workspace as large as the scores in 16 bits.
    pub(super) fn build_attention_grad(
        &self,
        g: &AttentionGrad,
        plan: &Plan,
        deterministic: bool,
    ) -> Result<Graph, Refusal> {
        let a = &g.forward;
        // On sm_90 the last half of a tile of keys that are not there makes NaN of rows whose scores
        // are all far below zero (pytorch#196678, cudnn-frontend#628); a causal mask hides them.
        if a.tk % 128 == 64 && !a.causal {
            return Err(format!("cuDNN's gradient for {} keys may be NaN", a.tk));
        }
        if a.tq == 1 && a.tk == 1 {
            return Err("cuDNN has no gradient for one query and one key".into());
        }
        let mut s = Scores::new(self, plan, a)?;
        let q = s.stored(&a.q, a.tq, 0)?;
        let kt = s.transposed(&a.k, a.tk, 1)?;
        let vt = s.transposed(&a.v, a.tk, 2)?;
        let o = s.stored(&a.o, a.tq, 3)?;
        let stats = s.statistics()?;
        let d_o = s.stored(&g.d_o, a.tq, 5)?;
        let d_q = s.stored(&g.d_q, a.tq, 6)?;
        let d_k = s.stored(&g.d_k, a.tk, 7)?;
        let d_v = s.stored(&g.d_v, a.tk, 8)?;
        let mul = Pointwise::CUDNN_POINTWISE_MUL;
        let sub = Pointwise::CUDNN_POINTWISE_SUB;

        // Rows of do ∘ o, summed: what softmax's gradient takes away.
        let [b, h, t, d] = s.extents(a.tq, a.d);
        let strides = [h * t * d, t * d, h * d, 1];
        let each = s.b.tensor(&[b, h, t, d], &strides, Format::F32, Home::Nowhere)?;
        s.b.pointwise(mul, Format::F32, &d_o, Some(&o), None, &each)?;
        let sums = s.rows(Home::Nowhere)?;
        s.b.reduce(Reduce::CUDNN_REDUCE_TENSOR_ADD, &each, &sums)?;
        let bytes = a.batch * a.heads * a.tq * 4;
        let taken = s.rows(Home::Own { bytes })?;
        let one = s.b.number(1.0)?;
        s.b.pointwise(mul, Format::F32, &sums, Some(&one), None, &taken)?;

        // The probabilities again.
        let scores = s.scores(&q, &kt)?;
        let below = s.with(sub, &scores, &stats)?;
        let p = s.exp(&below)?;
        let pt = s.exchanged(&p)?;
        s.b.matmul(&pt, &d_o, &d_v)?;

        // ds = p ∘ (do vᵀ − taken) · scale
        let dims = s.extents(a.tq, a.tk);
        let d_p = s.b.tensor(&dims, &dense(&dims), Format::F32, Home::Nowhere)?;
        s.b.matmul(&d_o, &vt, &d_p)?;
        let less = s.with(sub, &d_p, &taken)?;
        let unscaled = s.with(mul, &less, &p)?;
        let scale = s.b.number(a.scale)?;
        let d_s = s.b.inner(&unscaled, Format::F32)?;
        s.b.pointwise(mul, Format::F32, &unscaled, Some(&scale), None, &d_s)?;
        let d_st = s.exchanged(&d_s)?;
        s.b.matmul(&d_st, &q, &d_k)?;

        // dq = ds k
        let dims = s.extents(a.tk, a.d);
        let k = s.b.tensor(&dims, &steps(&dims, &a.k.strides), s.io, Home::Nowhere)?;
        s.b.reshape(&kt, &k)?;
        if deterministic {
            s.b.matmul(&d_s, &k, &d_q)?;
        } else {
            let dims = s.extents(a.tq, a.d);
            let home = Home::Own { bytes: a.batch * a.heads * a.tq * a.d * 4 };
            let sum = s.b.tensor(&dims, &dense(&dims), Format::F32, home)?;
            s.b.matmul(&d_s, &k, &sum)?;
            let copy = Pointwise::CUDNN_POINTWISE_IDENTITY;
            s.b.pointwise(copy, Format::F32, &sum, None, None, &d_q)?;
        }
        self.build(s.b, &Wanted { compiled: COMPILED, exact: false, deterministic })
    }
}

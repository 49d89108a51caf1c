//! Steps whose kernels are neither products nor row programs: attention, pooling, gathered rows.

use super::exec::Memory;
use super::kernels::along::{self, Lines};
use super::kernels::attention::{Attention, Backward, View4};
use super::kernels::gather::{BadIndex, Indices, gather_rows, last_index, scatter_add_rows};
use super::kernels::pool::MaxPool2d;
use super::pool::Pool;
use super::reorder::Reorder;
use super::rows::Bound;
use crate::error::{Error, Result};
use plan::{Access, DType, Kernel, Plan};
use precast_plan as plan;

/// A bound special step.
pub enum Special {
    Attention {
        problem: Attention,
        q: View4,
        k: View4,
        v: View4,
        mask: Option<View4>,
        o: View4,
        lse: *mut f32,
    },
    AttentionGrad {
        problem: Attention,
        views: Box<Backward>,
        lse: *const f32,
    },
    MaxPool {
        problem: MaxPool2d,
        x: *mut u8,
        y: *mut u8,
        index: *mut u8,
        dtype: DType,
        forward: bool,
        reorder: Box<Reorder>,
    },
    Gather {
        table: *const u8,
        rows: usize,
        width: usize,
        ids: Indices,
        dtypes: (DType, DType),
        out: *mut u8,
    },
    ScatterAdd {
        table: *mut f32,
        rows: usize,
        width: usize,
        ids: Indices,
        out: *const u8,
        dtype: DType,
    },
    LastIndex {
        out: *mut i32,
        rows: usize,
        ids: Indices,
    },
    CumSum {
        dims: [usize; 3],
        exclusive: bool,
        reverse: bool,
        x: Lines,
        y: Lines,
    },
    TopK {
        dims: [usize; 3],
        k: usize,
        largest: bool,
        x: Lines,
        index: Lines,
    },
}

// SAFETY: addresses of tensors that outlive the step; races are the executor's business.
unsafe impl Send for Special {}
// SAFETY: as above.
unsafe impl Sync for Special {}

struct Ctx<'a> {
    plan: &'a Plan,
    memory: &'a Memory,
}

impl Ctx<'_> {
    fn first(&self, a: &Access) -> (*mut u8, DType) {
        let dtype = self.plan.tensors[a.tensor as usize].dtype;
        let (ptr, _) = self.memory.tensor(a.tensor);
        (ptr.wrapping_add(a.offset as usize * dtype.size()), dtype)
    }

    fn bound(&self, a: &Access) -> Bound {
        let (ptr, bytes) = self.memory.tensor(a.tensor);
        let dtype = self.plan.tensors[a.tensor as usize].dtype;
        Bound { ptr, bytes, dtype, offset: a.offset, strides: a.strides.clone() }
    }

    fn view(&self, a: &Access) -> View4 {
        let (ptr, dtype) = self.first(a);
        let s = &a.strides;
        View4 { ptr, dtype, strides: [s[0], s[1], s[2], s[3]].map(|s| s as isize) }
    }

    fn dense(&self, what: &str, a: &Access, dims: &[u64]) -> Result<(*mut u8, DType)> {
        let dims: Vec<usize> = dims.iter().map(|&n| n as usize).collect();
        if super::exec::dense(&a.strides, &dims) {
            return Ok(self.first(a));
        }
        Err(Error::new("R0108", format!("{what} is not dense")))
    }

    fn attention(&self, a: &plan::Attention) -> Result<(Attention, *mut f32)> {
        if a.causal && a.tq != a.tk {
            let text = format!("causal attention of {} queries over {} keys", a.tq, a.tk);
            return Err(
                Error::new("R0109", text).help("the CPU kernel takes as many keys as queries")
            );
        }
        let problem = Attention {
            batch: a.batch as usize,
            heads: a.heads as usize,
            queries: a.tq as usize,
            keys: a.tk as usize,
            features: a.d as usize,
            value_features: a.d as usize,
            causal: a.causal,
            scale: a.scale,
        };
        let (lse, _) = self.dense("lse", &a.lse, &[a.batch, a.heads, a.tq])?;
        Ok((problem, lse.cast()))
    }

    fn lines(&self, a: &Access) -> Lines {
        let (ptr, dtype) = self.first(a);
        let s = &a.strides;
        Lines { ptr, dtype, strides: [s[0], s[1], s[2]].map(|s| s as isize) }
    }

    fn ids(&self, ids: &Access, rows: u64) -> Result<Indices> {
        let (ptr, dtype) = self.dense("ids", ids, &[rows])?;
        if !matches!(dtype, DType::I64 | DType::I32) {
            return Err(Error::new("R0110", format!("ids of format {dtype}")).help("i64 or i32"));
        }
        Ok(Indices { ptr, dtype, len: rows as usize })
    }
}

/// Binds the kernel if it is one of these.
///
/// # Errors
/// If the CPU kernels do not take the layout or the formats.
pub fn bind(plan: &Plan, memory: &Memory, kernel: &Kernel) -> Result<Option<Special>> {
    let c = Ctx { plan, memory };
    Ok(Some(match kernel {
        Kernel::Attention(a) => {
            let (problem, lse) = c.attention(a)?;
            let mask = a.mask.as_ref().map(|m| c.view(m));
            let (q, k, v, o) = (c.view(&a.q), c.view(&a.k), c.view(&a.v), c.view(&a.o));
            Special::Attention { problem, q, k, v, mask, o, lse }
        }
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            let (problem, lse) = c.attention(a)?;
            let views = Box::new(Backward {
                q: c.view(&a.q),
                k: c.view(&a.k),
                v: c.view(&a.v),
                o: c.view(&a.o),
                grad_o: c.view(&g.d_o),
                mask: a.mask.as_ref().map(|m| c.view(m)),
                grad_q: c.view(&g.d_q),
                grad_k: c.view(&g.d_k),
                grad_v: c.view(&g.d_v),
            });
            Special::AttentionGrad { problem, views, lse }
        }
        Kernel::MaxPool(p) | Kernel::MaxPoolGrad(p) => {
            let g = &p.geometry;
            let pair = |a: u64, b: u64| [a as usize, b as usize];
            let problem = MaxPool2d {
                planes: (g.n * g.c) as usize,
                input: pair(g.h, g.w),
                output: pair(g.oh, g.ow),
                kernel: pair(g.kh, g.kw),
                stride: g.stride.map(|s| s as usize),
                dilation: g.dilation.map(|s| s as usize),
                pad: pair(g.pad[0], g.pad[1]),
            };
            let dims = |d: [u64; 4]| d.map(|n| n as usize);
            let (x_dims, y_dims) = (dims([g.n, g.c, g.h, g.w]), dims([g.n, g.o, g.oh, g.ow]));
            let forward = matches!(kernel, Kernel::MaxPool(_));
            let (from, to) = (c.bound(&p.x), c.bound(&p.y));
            let (dtype, y_dtype) = (from.dtype, to.dtype);
            let mut r = Reorder::default();
            let (x, y, index) = if forward {
                let x = r.read(from, &x_dims)?;
                (x, r.write(to, &y_dims)?, r.write(c.bound(&p.index), &y_dims)?)
            } else {
                let x = r.write(from, &x_dims)?;
                (x, r.read(to, &y_dims)?, r.read(c.bound(&p.index), &y_dims)?)
            };
            let reorder = Box::new(r);
            if dtype != y_dtype {
                return Err(Error::new(
                    "R0111",
                    format!("max pooling between {dtype} and {y_dtype}"),
                ));
            }
            Special::MaxPool { problem, x, y, index, dtype, forward, reorder }
        }
        Kernel::Gather(g) => {
            let (table, from) = c.dense("the table", &g.table, &[g.table_rows, g.width])?;
            let (out, to) = c.dense("the result", &g.out, &[g.rows, g.width])?;
            let (rows, width) = (g.table_rows as usize, g.width as usize);
            let ids = c.ids(&g.ids, g.rows)?;
            Special::Gather { table, rows, width, ids, dtypes: (from, to), out }
        }
        Kernel::ScatterAdd(g) => {
            let (table, dtype) = c.dense("the table", &g.table, &[g.table_rows, g.width])?;
            if dtype != DType::F32 {
                return Err(Error::new("R0110", format!("rows are added into {dtype}, not f32")));
            }
            let (out, dtype) = c.dense("the rows", &g.out, &[g.rows, g.width])?;
            let (rows, width) = (g.table_rows as usize, g.width as usize);
            let ids = c.ids(&g.ids, g.rows)?;
            Special::ScatterAdd { table: table.cast(), rows, width, ids, out, dtype }
        }
        Kernel::LastIndex(l) => {
            let (out, _) = c.dense("the result", &l.out, &[l.table_rows])?;
            let ids = c.ids(&l.ids, l.rows)?;
            Special::LastIndex { out: out.cast(), rows: l.table_rows as usize, ids }
        }
        Kernel::CumSum(s) => Special::CumSum {
            dims: s.dims.map(|n| n as usize),
            exclusive: s.exclusive,
            reverse: s.reverse,
            x: c.lines(&s.x),
            y: c.lines(&s.y),
        },
        Kernel::TopK(t) => Special::TopK {
            dims: t.dims.map(|n| n as usize),
            k: t.k as usize,
            largest: t.largest,
            x: c.lines(&t.x),
            index: c.lines(&t.index),
        },
        Kernel::Rows(_) | Kernel::Gemm(_) | Kernel::Conv(_) => return Ok(None),
    }))
}

fn bad_index(e: BadIndex) -> Error {
    Error::new("R0112", e.to_string()).help("check the data against the size of the embedding")
}

impl Special {
    /// Bytes of scratch memory that the kernel divides among threads; asked on the pool.
    pub fn shared_scratch(&self) -> usize {
        match self {
            Special::Attention { problem, .. } => problem.forward_scratch_bytes(),
            Special::AttentionGrad { problem, .. } => problem.backward_scratch_bytes(),
            Special::MaxPool { problem, forward: true, .. } => problem.forward_scratch_bytes(),
            Special::MaxPool { problem, .. } => problem.backward_scratch_bytes(),
            Special::TopK { dims, .. } => along::top_k_scratch_bytes(dims[1]),
            Special::Gather { .. }
            | Special::ScatterAdd { .. }
            | Special::LastIndex { .. }
            | Special::CumSum { .. } => 0,
        }
    }

    /// Bytes of scratch memory that each worker owns.
    pub fn worker_scratch(&self) -> usize {
        match self {
            Special::MaxPool { reorder, .. } => reorder.scratch_bytes(),
            _ => 0,
        }
    }

    /// Runs the step on the workers of `pool`, from one of them.
    ///
    /// # Safety
    /// As [`super::exec::Bound::run`].
    ///
    /// # Errors
    /// If an id of the data lies outside its table.
    pub unsafe fn run(&self, pool: &Pool, scratch: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's contract; bounds were validated with the plan.
        unsafe {
            match *self {
                Special::Attention { problem, q, k, v, mask, o, lse } => {
                    problem.forward(q, k, v, mask, o, lse, scratch);
                }
                Special::AttentionGrad { problem, ref views, lse } => {
                    problem.backward(views, lse, scratch);
                }
                Special::MaxPool { problem, x, y, index, dtype, forward, ref reorder } => {
                    reorder.before(pool);
                    if forward {
                        problem.forward(x, y, index, dtype, scratch);
                    } else {
                        problem.backward(y, index, x, dtype, scratch);
                    }
                    reorder.after(pool);
                }
                Special::Gather { table, rows, width, ids, dtypes, out } => {
                    gather_rows(table, (rows, width), ids, dtypes, out).map_err(bad_index)?;
                }
                Special::ScatterAdd { table, rows, width, ids, out, dtype } => {
                    scatter_add_rows(table, (rows, width), ids, out, dtype, false)
                        .map_err(bad_index)?;
                }
                Special::LastIndex { out, rows, ids } => {
                    last_index(out, rows, ids).map_err(bad_index)?;
                }
                Special::CumSum { dims, exclusive, reverse, x, y } => {
                    along::cumsum(dims, exclusive, reverse, x, y);
                }
                Special::TopK { dims, k, largest, x, index } => {
                    along::top_k(dims, k, largest, x, index, scratch);
                }
            }
        }
        Ok(())
    }
}

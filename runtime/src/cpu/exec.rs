//! Binds the steps of a plan to kernels and memory.

use super::kernels::conv::{Conv2d, ConvPlan};
use super::kernels::conv_wgrad::ConvWeightGradPlan;
use super::kernels::gemm::{self, MatMut, MatRef, Shape};
use super::pool::{Aligned, Pool};
use super::reorder::{Reorder, first};
use super::rows::{self, EpilogueKernel, RowsKernel};
use super::special::{self, Special};
use super::tf32::{Operands, Rounding};
use crate::error::Result;
use plan::{Access, Conv, ConvGeometry, ConvKind, DType, Gemm, Kernel, Math, Plan, RegInfo, Rows};
use plan::{Step, Storage, TensorId};
use precast_plan as plan;

/// The memory of a loaded plan.
pub struct Memory {
    arena: Aligned,
    persistent: Aligned,
    inputs: Aligned,
    rounded: Operands,
    /// Region (0 arena, 1 persistent, 2 inputs), offset and bytes of every tensor.
    places: Vec<(u8, usize, usize)>,
}

impl Memory {
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(plan: &Plan) -> Result<Memory> {
        let mut input_bytes = 0;
        let mut places = vec![];
        for t in &plan.tensors {
            let len = t.shape.iter().product::<u64>() as usize * t.dtype.size();
            places.push(match t.storage {
                Storage::Arena { offset } => (0, offset as usize, len),
                Storage::Persistent { offset, .. } => (1, offset as usize, len),
                Storage::Input { offset } => {
                    input_bytes = input_bytes.max(offset as usize + len);
                    (2, offset as usize, len)
                }
            });
        }
        Ok(Memory {
            arena: Aligned::new(plan.arena_bytes as usize).map_err(|e| e.at("the arena"))?,
            persistent: Aligned::new(plan.persistent_bytes as usize)
                .map_err(|e| e.at("weights and optimizer state"))?,
            inputs: Aligned::new(input_bytes).map_err(|e| e.at("the batch"))?,
            rounded: Operands::new(plan)?,
            places,
        })
    }

    /// Bytes of the plan's tensors.
    pub fn bytes(&self) -> u64 {
        [&self.arena, &self.persistent, &self.inputs].map(|b| b.len().max(64) as u64).iter().sum()
    }

    /// First byte and length of a tensor.
    pub fn tensor(&self, id: TensorId) -> (*mut u8, usize) {
        let (region, offset, len) = self.places[id as usize];
        let base = [&self.arena, &self.persistent, &self.inputs][region as usize].ptr();
        (base.wrapping_add(offset), len)
    }
}

/// A product with its epilogue.
pub struct GemmStep {
    shape: Shape,
    a: MatRef,
    b: MatRef,
    rounded: [Option<Rounding>; 2],
    /// Where the product stores by itself.
    d: Option<MatMut>,
    epilogue: Option<EpilogueKernel>,
    /// The sums of an operand, which vendor libraries store beside a product.
    sums: Option<RowsKernel>,
}

enum ConvPlans {
    Tiles(ConvPlan),
    Filter(ConvWeightGradPlan),
}

/// A convolution with its epilogue.
pub struct ConvStep {
    plans: ConvPlans,
    a: *const u8,
    b: *const u8,
    rounded: [Option<Rounding>; 2],
    target: *mut u8,
    epilogue: Option<EpilogueKernel>,
    /// Operands that are copied first.
    reorder: Reorder,
    /// Where the kernel cannot store as the plan wants: sums go here and a row program follows.
    after: Option<(RowsKernel, Aligned)>,
}

// SAFETY: addresses of tensors that outlive the step; races are the executor's business.
unsafe impl Send for ConvStep {}
// SAFETY: as above.
unsafe impl Sync for ConvStep {}

/// A step, ready to run.
pub enum Bound {
    Rows(RowsKernel),
    Gemm(Box<GemmStep>),
    Conv(Box<ConvStep>),
    Special(Special),
}

impl Bound {
    /// Bytes of scratch memory that a kernel divides among threads itself; asked on the pool.
    pub fn shared_scratch(&self) -> usize {
        match self {
            Bound::Rows(_) => 0,
            Bound::Gemm(g) => gemm::scratch_bytes(&g.shape, g.a.dtype, g.b.dtype),
            Bound::Conv(c) => match &c.plans {
                ConvPlans::Tiles(p) => p.scratch_bytes(),
                ConvPlans::Filter(p) => p.scratch_bytes(),
            },
            Bound::Special(s) => s.shared_scratch(),
        }
    }

    /// Bytes of scratch memory that each worker owns.
    pub fn worker_scratch(&self) -> usize {
        let of = |e: &Option<EpilogueKernel>| e.as_ref().map_or(0, EpilogueKernel::scratch_bytes);
        match self {
            Bound::Rows(k) => k.scratch_bytes(),
            Bound::Special(s) => s.worker_scratch(),
            Bound::Gemm(g) => {
                of(&g.epilogue).max(g.sums.as_ref().map_or(0, RowsKernel::scratch_bytes))
            }
            Bound::Conv(c) => {
                let after = c.after.as_ref().map_or(0, |a| a.0.scratch_bytes());
                of(&c.epilogue).max(after).max(c.reorder.scratch_bytes())
            }
        }
    }

    /// Runs the step on the workers of `pool`, from one of them.
    ///
    /// # Safety
    /// The memory the step was bound to is alive and nobody else touches it; scratch memory is as
    /// large as the step asked for.
    ///
    /// # Errors
    /// If the data made the step impossible.
    pub unsafe fn run(&self, pool: &Pool, scratch: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Bound::Rows(k) => k.run(pool),
                Bound::Special(s) => s.run(pool, scratch)?,
                Bound::Gemm(g) => {
                    g.rounded.iter().flatten().for_each(|r| r.run());
                    let epilogue = g.epilogue.as_ref().map(|e| e.on(pool));
                    gemm::Gemm {
                        shape: g.shape,
                        a: g.a,
                        b: g.b,
                        c: None,
                        d: g.d,
                        alpha: 1.0,
                        beta: 0.0,
                        epilogue: epilogue.as_ref().map(|e| e as _),
                    }
                    .run(scratch);
                    if let Some(sums) = &g.sums {
                        sums.run(pool);
                    }
                }
                Bound::Conv(c) => {
                    c.rounded.iter().flatten().for_each(|r| r.run());
                    let epilogue = c.epilogue.as_ref().map(|e| e.on(pool));
                    let target = c.after.as_ref().map_or(c.target, |(_, sums)| sums.ptr());
                    c.reorder.before(pool);
                    match &c.plans {
                        ConvPlans::Tiles(p) => {
                            let epilogue = epilogue.as_ref().map(|e| e as _);
                            p.run(c.a, c.b, target, epilogue, scratch);
                        }
                        ConvPlans::Filter(p) => p.run(c.a, c.b, target, false, scratch),
                    }
                    if let Some((rows, _)) = &c.after {
                        rows.run(pool);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Binds steps of one plan.
pub struct Binder<'a> {
    plan: &'a Plan,
    memory: &'a Memory,
    infos: Vec<Vec<RegInfo>>,
}

impl<'a> Binder<'a> {
    /// The plan has been validated.
    pub fn new(plan: &'a Plan, memory: &'a Memory) -> Binder<'a> {
        let infos = plan.programs.iter().map(|p| p.check().expect("validated")).collect();
        Binder { plan, memory, infos }
    }

    fn access(&self, a: &Access) -> rows::Bound {
        let (ptr, bytes) = self.memory.tensor(a.tensor);
        rows::Bound {
            ptr,
            bytes,
            dtype: self.plan.tensors[a.tensor as usize].dtype,
            offset: a.offset,
            strides: a.strides.clone(),
        }
    }

    fn list(&self, list: &[Access]) -> Vec<rows::Bound> {
        list.iter().map(|a| self.access(a)).collect()
    }

    /// Binds one step.
    ///
    /// # Errors
    /// If this backend has no kernel for it, or memory cannot be had.
    pub fn bind(&self, step: &Step) -> Result<Bound> {
        match &step.kernel {
            Kernel::Rows(r) => self.rows(r),
            Kernel::Gemm(g) => self.gemm(g),
            Kernel::Conv(c) => self.conv(c),
            other => {
                let bound = special::bind(self.plan, self.memory, other)?;
                Ok(Bound::Special(bound.expect("every other kernel is special")))
            }
        }
    }

    fn rows(&self, r: &Rows) -> Result<Bound> {
        struct Owned {
            dims: Vec<usize>,
            inputs: Vec<rows::Bound>,
            outputs: Vec<rows::Bound>,
        }
        let owned: Vec<Owned> = r
            .instances
            .iter()
            .map(|i| Owned {
                dims: i.dims.iter().map(|&n| n as usize).collect(),
                inputs: self.list(&i.inputs),
                outputs: self.list(&i.outputs),
            })
            .collect();
        let spaces: Vec<rows::Space> = owned
            .iter()
            .zip(&r.instances)
            .map(|(o, i)| rows::Space {
                dims: &o.dims,
                reduced: i.reduced as usize,
                inputs: &o.inputs,
                outputs: &o.outputs,
            })
            .collect();
        let p = r.program as usize;
        Ok(Bound::Rows(RowsKernel::new(&self.plan.programs[p], &self.infos[p], &spaces)?))
    }

    /// The tensor of a TF32 product's operand, to be rounded before the product reads it.
    fn rounding(&self, math: Math, operand: usize, a: &Access) -> Option<Rounding> {
        let (ptr, bytes) = self.memory.tensor(a.tensor);
        (math == Math::Tf32).then(|| self.memory.rounded.rounding(operand, ptr, bytes))
    }

    /// Whether a program stores its port 0 once and does nothing else.
    fn only_stores(&self, e: &plan::Epilogue) -> bool {
        let p = &self.plan.programs[e.program as usize];
        let loads = |reg: u32| matches!(p.code[reg as usize], plan::Instr::Load { port: 0 });
        p.outputs.len() == 1 && loads(p.outputs[0].reg)
    }

    fn gemm(&self, g: &Gemm) -> Result<Bound> {
        let rounded = [self.rounding(g.math, 0, &g.a), self.rounding(g.math, 1, &g.b)];
        let shape = Shape {
            batch: g.batch.map(|n| n as usize),
            m: g.m as usize,
            n: g.n as usize,
            k: g.k as usize,
        };
        let view = |a: &Access, rounded: Option<&Rounding>| {
            let mut b = self.access(a);
            b.ptr = rounded.map_or(b.ptr, Rounding::target);
            let s: Vec<isize> = b.strides.iter().map(|&s| s as isize).collect();
            let ptr = b.ptr.wrapping_add(b.offset as usize * b.dtype.size());
            (ptr, b.dtype, s)
        };
        let operand = |a: &Access, i: usize| {
            let (ptr, dtype, s) = view(a, rounded[i].as_ref());
            MatRef { ptr, dtype, rs: s[2], cs: s[3], bs: [s[0], s[1]] }
        };
        let (a, b) = (operand(&g.a, 0), operand(&g.b, 1));
        let sums = self.operand_sums(g)?;
        if self.only_stores(&g.epilogue) {
            let (ptr, dtype, s) = view(&g.epilogue.outputs[0], None);
            let d = Some(MatMut { ptr, dtype, rs: s[2], cs: s[3], bs: [s[0], s[1]] });
            let step = GemmStep { shape, a, b, rounded, d, epilogue: None, sums };
            return Ok(Bound::Gemm(Box::new(step)));
        }
        let dims = [shape.batch[0], shape.batch[1], shape.m, shape.n];
        let epilogue = Some(self.epilogue(&g.epilogue, &dims, 1, None));
        let step = GemmStep { shape, a, b, rounded, d: None, epilogue, sums };
        Ok(Bound::Gemm(Box::new(step)))
    }

    fn operand_sums(&self, g: &Gemm) -> Result<Option<RowsKernel>> {
        let dtype = |a: &Access| self.plan.tensors[a.tensor as usize].dtype;
        let Some(sums) = &g.sums else { return Ok(None) };
        let from = if sums.operand == plan::Operand::A { &g.a } else { &g.b };
        let alone = g.sums_alone(dtype(from), dtype(&sums.out));
        let (program, instance) = alone.expect("the product has sums");
        let infos = program.check().expect("a program that sums");
        let dims: Vec<usize> = instance.dims.iter().map(|&n| n as usize).collect();
        let (inputs, outputs) = (self.list(&instance.inputs), self.list(&instance.outputs));
        let space = rows::Space { dims: &dims, reduced: 1, inputs: &inputs, outputs: &outputs };
        Ok(Some(RowsKernel::new(&program, &infos, &[space])?))
    }

    fn epilogue(
        &self,
        e: &plan::Epilogue,
        dims: &[usize],
        columns: usize,
        over_sums: Option<usize>,
    ) -> EpilogueKernel {
        let p = e.program as usize;
        let (inputs, outputs) = (self.list(&e.inputs), self.list(&e.outputs));
        let program = &self.plan.programs[p];
        EpilogueKernel::new(program, &self.infos[p], dims, columns, &inputs, &outputs, over_sums)
    }

    fn conv(&self, c: &Conv) -> Result<Bound> {
        let rounded = [self.rounding(c.math, 0, &c.a), self.rounding(c.math, 1, &c.b)];
        let g = &c.geometry;
        let conv = conv2d(g);
        let u = |x: u64| x as usize;
        let x = [u(g.n), u(g.c), u(g.h), u(g.w)];
        let w = [u(g.o), u(g.c / g.groups), u(g.kh), u(g.kw)];
        let y = [u(g.n), u(g.o), u(g.oh), u(g.ow)];
        let (a_dims, b_dims, dims) = match c.kind {
            ConvKind::Forward => (x, w, y),
            ConvKind::DataGrad => (y, w, x),
            ConvKind::FilterGrad => (x, y, w),
        };
        let mut reorder = Reorder::default();
        let mut operand = |a: &Access, dims: &[usize], i: usize| -> Result<(*const u8, DType)> {
            let mut b = self.access(a);
            b.ptr = rounded[i].as_ref().map_or(b.ptr, Rounding::target);
            let dtype = b.dtype;
            Ok((reorder.read(b, dims)?.cast_const(), dtype))
        };
        let (a, a_type) = operand(&c.a, &a_dims, 0)?;
        let (b, b_type) = operand(&c.b, &b_dims, 1)?;
        let e = &c.epilogue;
        // The kernel stores one dense output of real numbers by itself, after an epilogue over its tile.
        // The sums may pass through that output's memory before the epilogue reads its inputs.
        let clobbers = |o: &Access| {
            let (p, n) = self.memory.tensor(o.tensor);
            let begins_in = |a: *mut u8, p: *mut u8, n: usize| {
                (p as usize..p as usize + n).contains(&(a as usize))
            };
            e.inputs.iter().any(|i| {
                let (q, m) = self.memory.tensor(i.tensor);
                begins_in(p, q, m) || begins_in(q, p, n)
            })
        };
        let own = e.outputs.iter().position(|o| {
            self.access(o).dtype.is_real() && dense(&o.strides, &dims) && !clobbers(o)
        });
        let tiles = c.kind != ConvKind::FilterGrad;
        let by_itself = own.filter(|_| tiles || self.only_stores(e));
        let (target, target_type) = match by_itself {
            Some(o) => {
                let b = self.access(&e.outputs[o]);
                (first(&b), b.dtype)
            }
            None => (std::ptr::null_mut(), DType::F32),
        };
        let epilogue =
            by_itself.filter(|_| !self.only_stores(e)).map(|o| self.epilogue(e, &dims, 2, Some(o)));
        let after = match by_itself {
            Some(_) => None,
            None => {
                let sums = Aligned::new(dims.iter().product::<usize>() * 4)?;
                let mut strides = vec![1i64; 4];
                for d in (0..3).rev() {
                    strides[d] = strides[d + 1] * dims[d + 1] as i64;
                }
                let bytes = sums.len();
                let port =
                    rows::Bound { ptr: sums.ptr(), bytes, dtype: DType::F32, offset: 0, strides };
                let mut inputs = vec![port];
                inputs.extend(self.list(&e.inputs));
                let outputs = self.list(&e.outputs);
                let space =
                    rows::Space { dims: &dims, reduced: 0, inputs: &inputs, outputs: &outputs };
                let p = e.program as usize;
                let kernel = RowsKernel::new(&self.plan.programs[p], &self.infos[p], &[space])?;
                Some((kernel, sums))
            }
        };
        let plans = match c.kind {
            ConvKind::Forward => {
                ConvPlans::Tiles(ConvPlan::forward(conv, a_type, b_type, target_type))
            }
            ConvKind::DataGrad => {
                ConvPlans::Tiles(ConvPlan::backward_data(conv, a_type, b_type, target_type))
            }
            ConvKind::FilterGrad => {
                ConvPlans::Filter(ConvWeightGradPlan::new(conv, a_type, b_type, target_type))
            }
        };
        let step = ConvStep { plans, a, b, rounded, target, epilogue, reorder, after };
        Ok(Bound::Conv(Box::new(step)))
    }
}

fn conv2d(g: &ConvGeometry) -> Conv2d {
    let u = |x: u64| x as usize;
    let [top, left, bottom, right] = g.pad.map(u);
    Conv2d {
        n: u(g.n),
        cin: u(g.c),
        cout: u(g.o),
        groups: u(g.groups),
        input: [u(g.h), u(g.w)],
        kernel: [u(g.kh), u(g.kw)],
        stride: g.stride.map(u),
        dilation: g.dilation.map(u),
        pad: [[top, bottom], [left, right]],
    }
}

/// Whether strides are those of a dense row-major tensor.
pub(super) fn dense(strides: &[i64], dims: &[usize]) -> bool {
    let mut step = 1;
    strides.len() == dims.len()
        && (0..dims.len()).rev().all(|d| {
            let ok = dims[d] == 1 || strides[d] == step;
            step *= dims[d] as i64;
            ok
        })
}

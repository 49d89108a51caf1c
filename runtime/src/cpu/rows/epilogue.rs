//! A program without reductions as the epilogue of a product: its port 0 is the tile of sums.

use super::geom::{Dims, Space, Steps, Strides, Tile, coalesce};
use super::io::Port;
use super::lower::{Class, Code, Form, RowForm, Style, lower};
use super::prepare::{Bound, Inst};
use super::run::{self, Machine, Regs};
use crate::cpu::kernels::epilogue::{Epilogue, Tile as SumTile};
use crate::cpu::pool::Pool;
use precast_plan::{DType, Instr, Program, RegInfo};

/// Lanes that are handled at once; larger tiles are cut.
const LANES: usize = 1024;

/// An epilogue bound to its tensors.
pub struct EpilogueKernel {
    inst: Inst,
    code: Code,
    /// Rows of the result in one batch entry.
    rows: usize,
    over_sums: Option<u16>,
}

impl EpilogueKernel {
    /// `dims` are the axes of the result; the last `columns` of them are the columns of a tile of
    /// sums, the one before them its rows, and those before it the batch. `inputs` are bound to
    /// ports 1, 2, …
    ///
    /// The output `over_sums` is not stored in its tensor but written over the sums, in f32, for
    /// kernels that store the tile themselves.
    pub fn new(
        program: &Program,
        infos: &[RegInfo],
        dims: &[usize],
        columns: usize,
        inputs: &[Bound],
        outputs: &[Bound],
        over_sums: Option<usize>,
    ) -> EpilogueKernel {
        let cut = dims.len() - columns;
        let mut all: Vec<Steps> = vec![Steps::from_elem(0, dims.len())];
        all.extend(inputs.iter().chain(outputs).map(|b| Steps::from_slice(&b.strides)));
        for i in &program.code {
            if let Instr::Index { axis } = i {
                let mut s = Steps::from_elem(0, dims.len());
                s[*axis as usize] = 1;
                all.push(s);
            }
        }
        let mut linear = Steps::from_elem(1, dims.len());
        for d in (0..dims.len() - 1).rev() {
            linear[d] = linear[d + 1] * dims[d + 1] as i64;
        }
        all.push(linear);
        let inner: Vec<Steps> = all.iter().map(|s| Steps::from_slice(&s[cut..])).collect();
        let (inner_dims, inner) = coalesce(&dims[cut..], &inner);
        let space = Space::new(Dims::from_slice(&dims[..cut]), inner_dims);
        let strides = |i: usize, base: u64| Strides {
            base: base as i64,
            outer: Steps::from_slice(&all[i][..cut]),
            inner: inner[i].clone(),
        };
        let ports = |from: usize, list: &[Bound]| -> Vec<Port> {
            list.iter()
                .enumerate()
                .map(|(i, b)| Port {
                    ptr: b.ptr,
                    dtype: b.dtype,
                    strides: strides(from + i, b.offset),
                })
                .collect()
        };
        // The tile of sums is read in place, row by row, at a pointer set for each call.
        let mut in_ports =
            vec![Port { ptr: std::ptr::null_mut(), dtype: DType::F32, strides: strides(0, 0) }];
        in_ports.extend(ports(1, inputs));
        let out_ports = ports(1 + inputs.len(), outputs);
        let first_index = 1 + inputs.len() + outputs.len();
        let index: Vec<Strides> = (first_index..all.len() - 1).map(|i| strides(i, 0)).collect();
        let linear = strides(all.len() - 1, 0);
        let constant = |b: &Bound| b.strides.iter().zip(dims).all(|(&s, &n)| s == 0 || n == 1);
        let mut classes = vec![Class::Elem];
        classes
            .extend(inputs.iter().map(|b| if constant(b) { Class::Scalar } else { Class::Elem }));
        let contiguous = |p: &Port| p.strides.inner.len() == 1 && p.strides.inner[0] == 1;
        let overlaps = |o: &Bound| {
            let end = |b: &Bound| b.ptr as usize + b.bytes;
            inputs.iter().any(|i| (i.ptr as usize) < end(o) && (o.ptr as usize) < end(i))
        };
        let mut direct_in: Vec<bool> =
            in_ports.iter().map(|p| p.dtype == DType::F32 && contiguous(p)).collect();
        // Sums that are overwritten are copied first: they may lie in an output's own memory.
        direct_in[0] = over_sums.is_none();
        let form = Form {
            style: Style::Whole,
            row_form: RowForm::Scalar,
            rows: false,
            inputs: classes,
            direct_in,
            direct_out: out_ports
                .iter()
                .zip(outputs)
                .enumerate()
                .map(|(o, (p, b))| {
                    over_sums != Some(o) && p.dtype == DType::F32 && contiguous(p) && !overlaps(b)
                })
                .collect(),
            index: vec![Class::Elem; program.code.len()],
        };
        let code = lower(program, infos, &form);
        let rows = dims[cut - 1];
        let inst = Inst {
            code: 0,
            tile: (1, LANES.min(space.inner_len)),
            space,
            inputs: in_ports,
            outputs: out_ports,
            index,
            linear,
            columns: false,
            style: Style::Whole,
            groups: 1,
            chunk: 0,
            chunks: 1,
            split: false,
            cost: 0,
        };
        EpilogueKernel { inst, code, rows, over_sums: over_sums.map(|o| o as u16) }
    }

    /// Bytes of scratch memory that each worker must own.
    pub fn scratch_bytes(&self) -> usize {
        run::scratch_words(&self.inst, &self.code) * 4
    }

    /// The epilogue as a kernel calls it, on the workers of `pool`.
    ///
    /// # Safety
    /// While the result is used: the bound tensors are live, nobody else touches what the program
    /// reads or writes, and the pool's workers own [`EpilogueKernel::scratch_bytes`].
    pub unsafe fn on<'a>(&'a self, pool: &'a Pool) -> impl Epilogue + 'a {
        OnPool { kernel: self, pool }
    }
}

struct OnPool<'a> {
    kernel: &'a EpilogueKernel,
    pool: &'a Pool,
}

impl Epilogue for OnPool<'_> {
    fn apply(&self, tile: &mut SumTile) {
        let k = self.kernel;
        let scratch: *mut f32 = self.pool.mine().cast();
        // SAFETY: `on`'s contract; the kernel calls once for every part of the result.
        unsafe {
            let regs = Regs::new(&k.inst, &k.code, scratch, None);
            let mut machine =
                Machine { inst: &k.inst, code: &k.code, regs, sums: None, over_sums: k.over_sums };
            machine.scalars();
            for i in 0..tile.rows {
                let o0 = tile.batch * k.rows + tile.row0 + i;
                for at in (0..tile.cols).step_by(LANES) {
                    let n = LANES.min(tile.cols - at);
                    let sums = &mut tile.row_mut(i)[at..at + n];
                    machine.sums = Some(sums.as_mut_ptr());
                    machine.once(Tile { o0, on: 1, i0: tile.col0 + at, n });
                }
            }
        }
    }
}

//! Convolutions and pools of this backend take their axes in order. Where a plan stores channels
//! last, the elements are copied before the kernel and after it.

use super::pool::{Aligned, Pool};
use super::rows::{Bound, RowsKernel, Space};
use crate::error::Result;
use precast_plan::{DType, InPort, Instr, OutPort, Program};

/// Copies around one kernel.
#[derive(Default)]
pub struct Reorder {
    before: Vec<RowsKernel>,
    after: Vec<RowsKernel>,
    memory: Vec<Aligned>,
}

impl Reorder {
    /// The first element of an operand of `dims` in row-major order: where it is, or where it will
    /// be copied to.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn read(&mut self, from: Bound, dims: &[usize]) -> Result<*mut u8> {
        if super::exec::dense(&from.strides, dims) {
            return Ok(first(&from));
        }
        let to = self.memory(&from, dims)?;
        let at = to.ptr;
        self.before.push(copy(dims, from, to)?);
        Ok(at)
    }

    /// The same for a result.
    ///
    /// # Errors
    /// As [`Reorder::read`].
    pub fn write(&mut self, to: Bound, dims: &[usize]) -> Result<*mut u8> {
        if super::exec::dense(&to.strides, dims) {
            return Ok(first(&to));
        }
        let from = self.memory(&to, dims)?;
        let at = from.ptr;
        self.after.push(copy(dims, from, to)?);
        Ok(at)
    }

    fn memory(&mut self, like: &Bound, dims: &[usize]) -> Result<Bound> {
        let mut strides = vec![1i64; dims.len()];
        for d in (1..dims.len()).rev() {
            strides[d - 1] = strides[d] * dims[d] as i64;
        }
        let memory = Aligned::new(dims.iter().product::<usize>() * like.dtype.size())?;
        let (ptr, bytes) = (memory.ptr(), memory.len());
        self.memory.push(memory);
        Ok(Bound { ptr, bytes, dtype: like.dtype, offset: 0, strides })
    }

    /// Bytes of scratch memory that each worker must own.
    pub fn scratch_bytes(&self) -> usize {
        let all = self.before.iter().chain(&self.after);
        all.map(RowsKernel::scratch_bytes).max().unwrap_or(0)
    }

    /// Copies the operands.
    ///
    /// # Safety
    /// As [`RowsKernel::run`].
    pub unsafe fn before(&self, pool: &Pool) {
        // SAFETY: the caller's contract.
        self.before.iter().for_each(|k| unsafe { k.run(pool) });
    }

    /// Copies the results.
    ///
    /// # Safety
    /// As [`RowsKernel::run`].
    pub unsafe fn after(&self, pool: &Pool) {
        // SAFETY: the caller's contract.
        self.after.iter().for_each(|k| unsafe { k.run(pool) });
    }
}

/// The address of the element at index 0.
pub fn first(b: &Bound) -> *mut u8 {
    b.ptr.wrapping_add(b.offset as usize * b.dtype.size())
}

fn copy(dims: &[usize], from: Bound, to: Bound) -> Result<RowsKernel> {
    let dtype: DType = from.dtype;
    let program = Program {
        name: "reorder".into(),
        inputs: vec![InPort { dtype, row: false }],
        code: vec![Instr::Load { port: 0 }],
        outputs: vec![OutPort { dtype, reg: 0 }],
    };
    let infos = program.check().expect("a program that copies");
    let space = Space { dims, reduced: 0, inputs: &[from], outputs: &[to] };
    RowsKernel::new(&program, &infos, &[space])
}

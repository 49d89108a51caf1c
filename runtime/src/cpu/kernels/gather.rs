//! Rows of a table by index (embedding), and the gradient: rows added at indices.

use super::convert;
use super::par::{self, SharedPtr};
use precast_plan::DType;

/// Indices, `I64` or `I32`; negative ones count from the end of the table.
#[derive(Clone, Copy, Debug)]
pub struct Indices {
    pub ptr: *const u8,
    pub dtype: DType,
    pub len: usize,
}

// SAFETY: a bare address; whoever dereferences it answers for races.
unsafe impl Send for Indices {}
// SAFETY: as above.
unsafe impl Sync for Indices {}

/// An index outside the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex {
    /// Position in the indices.
    pub at: usize,
    pub value: i64,
    pub rows: usize,
}

impl std::fmt::Display for BadIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BadIndex { at, value, rows } = self;
        write!(f, "index {value} at position {at} is outside a table of {rows} rows")
    }
}

impl std::error::Error for BadIndex {}

impl Indices {
    /// # Safety
    /// `i` is below the length, and the indices are readable.
    unsafe fn raw(&self, i: usize) -> i64 {
        // SAFETY: the caller's contract.
        unsafe {
            match self.dtype {
                DType::I64 => self.ptr.cast::<i64>().add(i).read(),
                DType::I32 => i64::from(self.ptr.cast::<i32>().add(i).read()),
                other => panic!("indices of {other}"),
            }
        }
    }

    /// The row that index `i` names; the indices have been checked.
    unsafe fn row(&self, i: usize, rows: usize) -> usize {
        // SAFETY: the caller's contract.
        let v = unsafe { self.raw(i) };
        (if v < 0 { v + rows as i64 } else { v }) as usize
    }

    /// # Safety
    /// The indices are readable.
    unsafe fn check(&self, rows: usize) -> Result<(), BadIndex> {
        let end = rows as i64;
        for at in 0..self.len {
            // SAFETY: at is below the length.
            let value = unsafe { self.raw(at) };
            if value < -end || value >= end {
                return Err(BadIndex { at, value, rows });
            }
        }
        Ok(())
    }
}

/// Elements in a task.
const TASK: usize = 16_384;

/// `out[i, :] = table[indices[i], :]`, converted from `from` to `to` (through f32 if they differ).
///
/// # Errors
/// [`BadIndex`] for the first index outside the table; nothing is written then.
///
/// # Safety
/// `table` is dense `[rows, width]` of `from`, `out` dense `[indices.len, width]` of `to`; they do
/// not overlap.
///
/// # Panics
/// If the indices are not `I64` or `I32`, or the formats differ and are not real.
pub unsafe fn gather_rows(
    table: *const u8,
    (rows, width): (usize, usize),
    indices: Indices,
    (from, to): (DType, DType),
    out: *mut u8,
) -> Result<(), BadIndex> {
    // SAFETY: the caller's contract.
    unsafe { indices.check(rows)? };
    let (table, out) = (SharedPtr::new(table.cast_mut()), SharedPtr::new(out));
    let per_task = (TASK / width.max(1)).max(1);
    par::for_each(indices.len.div_ceil(per_task), &|task, _| {
        for i in task * per_task..((task + 1) * per_task).min(indices.len) {
            // SAFETY: row i of out belongs to this task; the index has been checked.
            unsafe {
                let src = table.get().add(indices.row(i, rows) * width * from.size()).cast_const();
                let dst = out.get().add(i * width * to.size());
                if from == to {
                    std::ptr::copy_nonoverlapping(src, dst, width * from.size());
                    continue;
                }
                let mut buf = [0f32; 256];
                for j in (0..width).step_by(buf.len()) {
                    let buf = &mut buf[..256.min(width - j)];
                    convert::widen(from, src.add(j * from.size()), buf);
                    convert::narrow(to, buf, dst.add(j * to.size()));
                }
            }
        }
    });
    Ok(())
}

/// `table[indices[i], :] += grad[i, :]` in f32, in the order of i; the table starts from zeros
/// unless `accumulate`.
///
/// # Errors
/// [`BadIndex`] for the first index outside the table; nothing is written then.
///
/// # Safety
/// `table` is dense `[rows, width]` of f32, `grad` dense `[indices.len, width]` of `dtype`; they do
/// not overlap.
///
/// # Panics
/// If the indices are not `I64` or `I32`, or `dtype` is not real.
pub unsafe fn scatter_add_rows(
    table: *mut f32,
    (rows, width): (usize, usize),
    indices: Indices,
    grad: *const u8,
    dtype: DType,
    accumulate: bool,
) -> Result<(), BadIndex> {
    // SAFETY: the caller's contract.
    unsafe { indices.check(rows)? };
    let (table, grad) = (SharedPtr::new(table), SharedPtr::new(grad.cast_mut()));
    // A task owns a rectangle of the table and reads all indices; so every sum has one order.
    const COLS: usize = 256;
    let col_blocks = width.div_ceil(COLS);
    let row_blocks = rows.clamp(1, 8usize.div_ceil(col_blocks.max(1)).max(1));
    let per_block = rows.div_ceil(row_blocks);
    par::for_each(row_blocks * col_blocks, &|task, _| {
        let (rb, cb) = (task / col_blocks, task % col_blocks);
        let r0 = (rb * per_block).min(rows);
        let r1 = (r0 + per_block).min(rows);
        let c0 = cb * COLS;
        let cols = COLS.min(width - c0);
        let mut buf = [0f32; COLS];
        // SAFETY: this rectangle of the table belongs to this task.
        unsafe {
            let row =
                |r: usize| std::slice::from_raw_parts_mut(table.get().add(r * width + c0), cols);
            if !accumulate {
                (r0..r1).for_each(|r| row(r).fill(0.0));
            }
            for i in 0..indices.len {
                let r = indices.row(i, rows);
                if r < r0 || r >= r1 {
                    continue;
                }
                let src = grad.get().add((i * width + c0) * dtype.size());
                convert::widen(dtype, src, &mut buf[..cols]);
                for (t, g) in row(r).iter_mut().zip(&buf) {
                    *t += g;
                }
            }
        }
    });
    Ok(())
}

/// `out[t] = 1 +` the last i with `indices[i] = t`, 0 where there is none.
///
/// # Errors
/// [`BadIndex`] for the first index outside the table; nothing is written then.
///
/// # Safety
/// `out` is dense `[rows]`; it does not overlap the indices.
///
/// # Panics
/// If the indices are not `I64` or `I32`.
pub unsafe fn last_index(out: *mut i32, rows: usize, indices: Indices) -> Result<(), BadIndex> {
    // SAFETY: the caller's contract.
    unsafe {
        indices.check(rows)?;
        let out = std::slice::from_raw_parts_mut(out, rows);
        out.fill(0);
        for i in 0..indices.len {
            out[indices.row(i, rows)] = i as i32 + 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Buf, Rng, rounding, same_for_any_thread_count};
    use super::*;

    fn indices(v: &[i64]) -> Indices {
        Indices { ptr: v.as_ptr().cast(), dtype: DType::I64, len: v.len() }
    }

    #[test]
    fn rows_come_out_and_gradients_go_back() {
        let mut rng = Rng(67);
        for _ in 0..60 {
            let (rows, width) = (1 + rng.below(40), rng.pick(&[0, 1, 3, 8, 255, 256, 300, 600]));
            let count = rng.pick(&[0, 1, 5, 64, 200]);
            let (from, to) = (
                rng.pick(&[DType::F32, DType::Bf16, DType::F16]),
                rng.pick(&[DType::F32, DType::Bf16, DType::F16]),
            );
            let idx: Vec<i64> =
                (0..count).map(|_| rng.below(2 * rows) as i64 - rows as i64).collect();
            let idx32: Vec<i32> = idx.iter().map(|&i| i as i32).collect();
            let which = if rng.below(2) == 0 {
                indices(&idx)
            } else {
                Indices { ptr: idx32.as_ptr().cast(), dtype: DType::I32, len: count }
            };
            let row = |i: usize| idx[i].rem_euclid(rows as i64) as usize;
            let table = Buf::random(&mut rng, from, rows * width);
            let mut out = Buf::poisoned(to, count * width);
            // SAFETY: dense matrices of these sizes.
            unsafe {
                gather_rows(table.ptr(), (rows, width), which, (from, to), out.ptr_mut())
                    .expect("indices are in range");
            }
            for i in 0..count {
                for j in 0..width {
                    let want = table.get(row(i) * width + j);
                    assert!((out.get(i * width + j) - want).abs() <= rounding(to, want));
                }
            }
            let grad = Buf::random(&mut rng, from, count * width);
            let accumulate = rng.below(2) == 0;
            let bytes = same_for_any_thread_count(|| {
                let mut sums = Buf::new(DType::F32, &vec![0.5; rows * width]);
                // SAFETY: dense matrices of these sizes.
                unsafe {
                    let t = sums.ptr_mut().cast();
                    scatter_add_rows(t, (rows, width), which, grad.ptr(), from, accumulate)
                        .expect("indices are in range");
                }
                sums.values()
            });
            let mut want = vec![if accumulate { 0.5 } else { 0.0 }; rows * width];
            for i in 0..count {
                for j in 0..width {
                    want[row(i) * width + j] += grad.get(i * width + j);
                }
            }
            for (got, want) in bytes.iter().zip(&want) {
                assert!((got - want).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn an_index_outside_the_table_is_an_error() {
        let table = Buf::new(DType::F32, &[1.0, 2.0, 3.0]);
        let mut out = Buf::new(DType::F32, &[7.0, 7.0]);
        for bad in [3, -4, i64::MAX, i64::MIN] {
            let idx = [2, bad];
            // SAFETY: dense matrices of these sizes.
            let e = unsafe {
                gather_rows(
                    table.ptr(),
                    (3, 1),
                    indices(&idx),
                    (DType::F32, DType::F32),
                    out.ptr_mut(),
                )
            };
            assert_eq!(e, Err(BadIndex { at: 1, value: bad, rows: 3 }));
            assert_eq!(out.values(), [7.0, 7.0]);
        }
    }
}

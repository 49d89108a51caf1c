//! Rows of a table by index (embedding), and the gradient: rows added at indices. Tables, rows and
//! indices lie in memory by any strides.

use super::convert;
use super::par;
use precast_plan::DType;

/// Indices of an integer format; negative ones count from the end of the table.
#[derive(Clone, Copy, Debug)]
pub struct Indices {
    pub ptr: *const u8,
    pub dtype: DType,
    pub len: usize,
    /// In elements.
    pub stride: isize,
}

// SAFETY: a bare address; whoever dereferences it answers for races.
unsafe impl Send for Indices {}
// SAFETY: as above.
unsafe impl Sync for Indices {}

/// Rows of equal width at some address.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub ptr: *mut u8,
    pub dtype: DType,
    /// From row to row, and from column to column, in elements.
    pub strides: [isize; 2],
}

// SAFETY: as above.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// # Safety
    /// The element is one of the matrix.
    unsafe fn at(&self, row: usize, column: usize) -> *mut u8 {
        let e = row as isize * self.strides[0] + column as isize * self.strides[1];
        // SAFETY: the caller's contract.
        unsafe { self.ptr.offset(e * self.dtype.size() as isize) }
    }

    /// Whether the columns of a row lie one after the other.
    fn runs(&self) -> bool {
        self.strides[1] == 1
    }
}

/// Columns that are converted at a time.
const COLUMNS: usize = 256;

/// Widens columns `from..from + out.len()` of a row.
///
/// # Safety
/// They are columns of the matrix, which is readable.
unsafe fn widen(m: &Matrix, row: usize, from: usize, out: &mut [f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        if m.runs() {
            return convert::widen(m.dtype, m.at(row, from), out);
        }
        for (j, x) in out.iter_mut().enumerate() {
            *x = convert::read(m.dtype, m.at(row, from + j));
        }
    }
}

/// Rounds into columns `from..from + src.len()` of a row.
///
/// # Safety
/// They are columns of the matrix, which is writable.
unsafe fn narrow(m: &Matrix, row: usize, from: usize, src: &[f32]) {
    // SAFETY: the caller's contract.
    unsafe {
        if m.runs() {
            return convert::narrow(m.dtype, src, m.at(row, from));
        }
        for (j, &x) in src.iter().enumerate() {
            convert::write(m.dtype, m.at(row, from + j), x);
        }
    }
}

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
        let i = i as isize * self.stride;
        // SAFETY: the caller's contract.
        unsafe {
            match self.dtype {
                DType::I64 => self.ptr.cast::<i64>().offset(i).read(),
                DType::I32 => i64::from(self.ptr.cast::<i32>().offset(i).read()),
                DType::U8 => i64::from(self.ptr.offset(i).read()),
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

/// `out[i, :] = table[indices[i], :]`, through f32 if the formats differ.
///
/// # Errors
/// [`BadIndex`] for the first index outside the table; nothing is written then.
///
/// # Safety
/// `table` has so many rows and columns, `out` as many columns and a row for every index; they do
/// not overlap.
///
/// # Panics
/// If the indices are no integers, or the formats differ and are not real.
pub unsafe fn gather_rows(
    table: Matrix,
    (rows, width): (usize, usize),
    indices: Indices,
    out: Matrix,
) -> Result<(), BadIndex> {
    // SAFETY: the caller's contract.
    unsafe { indices.check(rows)? };
    let per_task = (TASK / width.max(1)).max(1);
    let size = table.dtype.size();
    par::for_each(indices.len.div_ceil(per_task), &|task, _| {
        for i in task * per_task..((task + 1) * per_task).min(indices.len) {
            // SAFETY: row i of out belongs to this task; the index has been checked.
            unsafe {
                let row = indices.row(i, rows);
                if table.dtype == out.dtype {
                    if table.runs() && out.runs() {
                        let (src, dst) = (table.at(row, 0), out.at(i, 0));
                        std::ptr::copy_nonoverlapping(src.cast_const(), dst, width * size);
                        continue;
                    }
                    for j in 0..width {
                        let (src, dst) = (table.at(row, j), out.at(i, j));
                        std::ptr::copy_nonoverlapping(src.cast_const(), dst, size);
                    }
                    continue;
                }
                let mut buf = [0f32; COLUMNS];
                for j in (0..width).step_by(buf.len()) {
                    let buf = &mut buf[..COLUMNS.min(width - j)];
                    widen(&table, row, j, buf);
                    narrow(&out, i, j, buf);
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
/// `table` is f32 and has so many rows and columns, `grad` as many columns and a row for every
/// index; they do not overlap, and no two elements of the table are one.
///
/// # Panics
/// If the indices are no integers, or `grad` is not real.
pub unsafe fn scatter_add_rows(
    table: Matrix,
    (rows, width): (usize, usize),
    indices: Indices,
    grad: Matrix,
    accumulate: bool,
) -> Result<(), BadIndex> {
    // SAFETY: the caller's contract.
    unsafe { indices.check(rows)? };
    debug_assert_eq!(table.dtype, DType::F32);
    // A task owns a rectangle of the table and reads all indices; so every sum has one order.
    let col_blocks = width.div_ceil(COLUMNS);
    let row_blocks = rows.clamp(1, 8usize.div_ceil(col_blocks.max(1)).max(1));
    let per_block = rows.div_ceil(row_blocks);
    par::for_each(row_blocks * col_blocks, &|task, _| {
        let (rb, cb) = (task / col_blocks, task % col_blocks);
        let r0 = (rb * per_block).min(rows);
        let r1 = (r0 + per_block).min(rows);
        let c0 = cb * COLUMNS;
        let cols = COLUMNS.min(width - c0);
        let mut buf = [0f32; COLUMNS];
        // SAFETY: this rectangle of the table belongs to this task.
        unsafe {
            let cell = |r: usize, j: usize| table.at(r, c0 + j).cast::<f32>();
            if !accumulate {
                for r in r0..r1 {
                    (0..cols).for_each(|j| cell(r, j).write(0.0));
                }
            }
            for i in 0..indices.len {
                let r = indices.row(i, rows);
                if r < r0 || r >= r1 {
                    continue;
                }
                widen(&grad, i, c0, &mut buf[..cols]);
                if table.runs() {
                    let row = std::slice::from_raw_parts_mut(cell(r, 0), cols);
                    row.iter_mut().zip(&buf).for_each(|(t, g)| *t += g);
                } else {
                    buf[..cols].iter().enumerate().for_each(|(j, g)| *cell(r, j) += g);
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
        Indices { ptr: v.as_ptr().cast(), dtype: DType::I64, len: v.len(), stride: 1 }
    }

    /// A matrix somewhere inside a buffer: rows or columns first, with gaps, perhaps backwards.
    struct Laid {
        first: usize,
        strides: [isize; 2],
        elements: usize,
    }

    impl Laid {
        fn random(rng: &mut Rng, rows: usize, width: usize) -> Laid {
            let (r, w) = (rows.max(1), width.max(1));
            let gap = rng.pick(&[1, 1, 2, 3]);
            let (mut strides, elements) = if rng.below(2) == 0 {
                let pitch = w * gap + rng.below(3);
                ([pitch, gap], r * pitch)
            } else {
                let pitch = r * gap + rng.below(3);
                ([gap, pitch], w * pitch)
            };
            if rng.below(2) == 0 {
                strides = [w, 1];
            }
            let elements = elements.max(r * w);
            let mut laid = Laid { first: 0, strides: strides.map(|s| s as isize), elements };
            for (d, n) in [r, w].into_iter().enumerate() {
                if rng.below(4) == 0 {
                    laid.first += (n - 1) * strides[d];
                    laid.strides[d] = -laid.strides[d];
                }
            }
            laid
        }

        fn at(&self, r: usize, c: usize) -> usize {
            let e = r as isize * self.strides[0] + c as isize * self.strides[1];
            (self.first as isize + e) as usize
        }

        fn of(&self, ptr: *const u8, dtype: DType) -> Matrix {
            let ptr = ptr.wrapping_add(self.first * dtype.size()).cast_mut();
            Matrix { ptr, dtype, strides: self.strides }
        }
    }

    #[test]
    fn rows_come_out_and_gradients_go_back() {
        let mut rng = Rng(67);
        for _ in 0..200 {
            let (rows, width) = (1 + rng.below(40), rng.pick(&[0, 1, 3, 8, 255, 256, 300, 600]));
            let count = rng.pick(&[0, 1, 5, 64, 200]);
            let (from, to) = (
                rng.pick(&[DType::F32, DType::Bf16, DType::F16]),
                rng.pick(&[DType::F32, DType::Bf16, DType::F16]),
            );
            let stride = rng.pick(&[1usize, 1, 3, 0]);
            let held: Vec<i64> = (0..(count * stride).max(1))
                .map(|_| rng.below(2 * rows) as i64 - rows as i64)
                .collect();
            let held32: Vec<i32> = held.iter().map(|&i| i as i32).collect();
            let which = match rng.below(2) {
                0 => indices(&held),
                _ => Indices { ptr: held32.as_ptr().cast(), dtype: DType::I32, ..indices(&[]) },
            };
            let which = Indices { len: count, stride: stride as isize, ..which };
            let row = |i: usize| held[i * stride].rem_euclid(rows as i64) as usize;
            let [t, o] = [rows, count].map(|n| Laid::random(&mut rng, n, width));
            let table = Buf::random(&mut rng, from, t.elements);
            let mut out = Buf::poisoned(to, o.elements);
            // SAFETY: matrices of these sizes inside their buffers.
            unsafe {
                let to = o.of(out.ptr_mut(), to);
                gather_rows(t.of(table.ptr(), from), (rows, width), which, to)
                    .expect("indices are in range");
            }
            for i in 0..count {
                for j in 0..width {
                    let want = table.get(t.at(row(i), j));
                    assert!((out.get(o.at(i, j)) - want).abs() <= rounding(to, want));
                }
            }
            let grad = Buf::random(&mut rng, from, o.elements);
            let accumulate = rng.below(2) == 0;
            let bytes = same_for_any_thread_count(|| {
                let mut sums = Buf::new(DType::F32, &vec![0.5; t.elements]);
                // SAFETY: matrices of these sizes inside their buffers.
                unsafe {
                    let to = t.of(sums.ptr_mut(), DType::F32);
                    let from = o.of(grad.ptr(), from);
                    scatter_add_rows(to, (rows, width), which, from, accumulate)
                        .expect("indices are in range");
                }
                sums.values()
            });
            // What is no element of the table is left alone.
            let mut want = vec![0.5; t.elements];
            if !accumulate {
                for r in 0..rows {
                    (0..width).for_each(|j| want[t.at(r, j)] = 0.0);
                }
            }
            for i in 0..count {
                for j in 0..width {
                    want[t.at(row(i), j)] += grad.get(o.at(i, j));
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
                let column = |ptr: *const u8| Matrix {
                    ptr: ptr.cast_mut(),
                    dtype: DType::F32,
                    strides: [1, 1],
                };
                gather_rows(column(table.ptr()), (3, 1), indices(&idx), column(out.ptr_mut()))
            };
            assert_eq!(e, Err(BadIndex { at: 1, value: bad, rows: 3 }));
            assert_eq!(out.values(), [7.0, 7.0]);
        }
    }
}

//! The reference product, D = epilogue(alpha op(A) op(B) + beta C), as cuBLASLt documents it.

use super::{INVALID_VALUE, NOT_SUPPORTED, Status};
use crate::arena::Arena;
use half::{bf16, f16};

/// `cudaDataType`
pub const F32: u32 = 0;
pub const F16: u32 = 2;
pub const BF16: u32 = 14;
pub const E4M3: u32 = 28;
pub const E5M2: u32 = 29;
const F32_COMPUTE: u32 = 68;
const TF32_COMPUTE: u32 = 77;

/// Bytes of an element, for the types that are supported.
pub fn size_of(dtype: u32) -> Option<usize> {
    match dtype {
        F32 => Some(4),
        F16 | BF16 => Some(2),
        E4M3 | E5M2 => Some(1),
        _ => None,
    }
}

/// `cublasLtMatrixLayout_t`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub dtype: u32,
    pub rows: u64,
    pub columns: u64,
    pub ld: i64,
    /// 0 columns one after another, 1 rows.
    pub order: u32,
    pub batch: i32,
    /// Elements from one matrix of the batch to the next.
    pub stride: i64,
}

impl Layout {
    fn index(&self, row: usize, column: usize) -> usize {
        if self.order == 0 {
            row + column * self.ld as usize
        } else {
            row * self.ld as usize + column
        }
    }

    /// Bytes from the first element to the end of the last.
    fn extent(&self) -> Option<usize> {
        let last =
            self.index(self.rows.checked_sub(1)? as usize, self.columns.checked_sub(1)? as usize);
        let before = usize::try_from(self.stride.checked_mul(i64::from(self.batch) - 1)?).ok()?;
        Some((before + last + 1) * size_of(self.dtype)?)
    }

    fn check(&self) -> Result<(), Status> {
        let shortest = if self.order == 0 { self.rows } else { self.columns };
        if self.order > 1 || size_of(self.dtype).is_none() {
            return Err(NOT_SUPPORTED);
        }
        if self.ld < shortest as i64 || self.batch < 1 || self.rows == 0 || self.columns == 0 {
            return Err(INVALID_VALUE);
        }
        Ok(())
    }
}

/// `cublasLtMatmulDesc_t`
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub compute: u32,
    pub scale: u32,
    /// 0 scalars of the host, 1 of the device.
    pub pointer_mode: u32,
    pub transpose_a: bool,
    pub transpose_b: bool,
    pub epilogue: u32,
    pub bias: u64,
    pub bias_dtype: Option<u32>,
    pub bias_stride: i64,
    pub aux: u64,
    pub aux_ld: i64,
    pub aux_dtype: Option<u32>,
    pub aux_stride: i64,
    /// Addresses of the f32 factors of FP8 operands A and B; 0 is 1.
    pub scales: [u64; 2],
}

/// What an epilogue does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Epilogue {
    bias: bool,
    relu: bool,
    gelu: bool,
    save: bool,
    drelu: bool,
    dgelu: bool,
    /// The bias gradient: 1 of rows of D, 2 of rows of A, 3 of columns of B.
    bgrad: u8,
}

fn epilogue(code: u32) -> Option<Epilogue> {
    let none = Epilogue::default();
    Some(match code {
        1 => none,
        2 => Epilogue { relu: true, ..none },
        4 => Epilogue { bias: true, ..none },
        6 => Epilogue { relu: true, bias: true, ..none },
        130 => Epilogue { relu: true, save: true, ..none },
        134 => Epilogue { relu: true, save: true, bias: true, ..none },
        136 => Epilogue { drelu: true, ..none },
        152 => Epilogue { drelu: true, bgrad: 1, ..none },
        32 => Epilogue { gelu: true, ..none },
        36 => Epilogue { gelu: true, bias: true, ..none },
        160 => Epilogue { gelu: true, save: true, ..none },
        164 => Epilogue { gelu: true, save: true, bias: true, ..none },
        192 => Epilogue { dgelu: true, ..none },
        208 => Epilogue { dgelu: true, bgrad: 1, ..none },
        256 => Epilogue { bgrad: 2, ..none },
        512 => Epilogue { bgrad: 3, ..none },
        _ => return None,
    })
}

/// A scalar, read when the call is made or when the product runs.
#[derive(Clone, Copy, Debug)]
pub enum Scalar {
    Value(f32),
    Device(u64),
}

/// A product that a stream runs.
pub struct Product {
    pub desc: Desc,
    /// Addresses and layouts of A, B, C and D.
    pub at: [u64; 4],
    pub layout: [Layout; 4],
    pub alpha: Scalar,
    pub beta: Scalar,
    pub workspace: u64,
    pub workspace_bytes: usize,
    /// Which candidate; they differ in the order of the sum.
    pub candidate: u64,
}

/// Whether a product of these layouts is one, and supported.
pub fn check(desc: &Desc, [a, b, c, d]: [&Layout; 4]) -> Result<(), Status> {
    for layout in [a, b, c, d] {
        layout.check()?;
    }
    let flip = |t: bool, l: &Layout| if t { (l.columns, l.rows) } else { (l.rows, l.columns) };
    let ((m, k), (k2, n)) = (flip(desc.transpose_a, a), flip(desc.transpose_b, b));
    if k != k2 || (d.rows, d.columns) != (m, n) || (c.rows, c.columns) != (m, n) {
        return Err(INVALID_VALUE);
    }
    // In place or not, C lies in the order that D does.
    if d.order != c.order {
        return Err(NOT_SUPPORTED);
    }
    if d.batch != c.batch || [a, b].iter().any(|l| l.batch != d.batch) {
        return Err(INVALID_VALUE);
    }
    let eight = [a, b].map(|l| matches!(l.dtype, E4M3 | E5M2));
    if eight != [false; 2] {
        return check_eight_bits(desc, [a, b, c, d], (m, n, k));
    }
    if matches!(d.dtype, E4M3 | E5M2) {
        return Err(NOT_SUPPORTED);
    }
    if desc.scales != [0; 2] {
        return Err(INVALID_VALUE);
    }
    if a.dtype != b.dtype || c.dtype != d.dtype || desc.scale != F32 || desc.pointer_mode > 1 {
        return Err(NOT_SUPPORTED);
    }
    // The compute types of f32, and what may leave 16-bit operands.
    let f32_compute = matches!(desc.compute, 68 | 69 | 74 | 75 | TF32_COMPUTE);
    if !f32_compute || (a.dtype == F32 && d.dtype != F32) {
        return Err(NOT_SUPPORTED);
    }
    let e = epilogue(desc.epilogue).ok_or(NOT_SUPPORTED)?;
    if e.bgrad == 1 && d.batch > 1 {
        return Err(NOT_SUPPORTED);
    }
    if e != Epilogue::default() && d.order != 0 {
        return Err(NOT_SUPPORTED);
    }
    // The header's rule for a bias and for its gradient; its exceptions are integers and FP8.
    if (e.bias || e.bgrad > 0) && desc.bias_dtype.is_some_and(|b| b != d.dtype) {
        return Err(INVALID_VALUE);
    }
    if e.save || e.drelu || e.dgelu {
        // Bits of a mask, or elements.
        let unit = if e.relu || e.drelu { 128 } else { 8 };
        if desc.aux_ld < m as i64 || desc.aux_ld % unit != 0 {
            return Err(INVALID_VALUE);
        }
        if d.batch > 1 && desc.aux_stride % unit != 0 {
            return Err(INVALID_VALUE);
        }
        // What GELU takes has D's format; a mask has none.
        if unit == 8 && desc.aux_dtype.is_some_and(|t| t != d.dtype) {
            return Err(INVALID_VALUE);
        }
    }
    Ok(())
}

/// What the library's documentation asks of FP8 products: both operands in 8 bits and not both E5M2,
/// transposed and not transposed, extents in whole groups of 16, f32 sums, and a bias of bf16, or of
/// f16 beside an f16 result.
fn check_eight_bits(
    desc: &Desc,
    [a, b, c, d]: [&Layout; 4],
    (m, n, k): (u64, u64, u64),
) -> Result<(), Status> {
    let types = [a, b].map(|l| l.dtype);
    if !types.iter().all(|t| matches!(*t, E4M3 | E5M2)) || types == [E5M2; 2] {
        return Err(NOT_SUPPORTED);
    }
    if c.dtype != d.dtype || !matches!(d.dtype, F32 | F16 | BF16) || desc.compute != F32_COMPUTE {
        return Err(NOT_SUPPORTED);
    }
    if !desc.transpose_a || desc.transpose_b || desc.scale != F32 || desc.pointer_mode > 1 {
        return Err(NOT_SUPPORTED);
    }
    let lines = [a, b, c, d].into_iter().all(|l| {
        let bytes = size_of(l.dtype).unwrap_or(1) as u64;
        let whole = |x: i64| (x as u64 * bytes).is_multiple_of(16);
        l.order == 0 && whole(l.ld) && whole(l.stride)
    });
    if !lines || [m, n, k].iter().any(|x| x % 16 != 0) {
        return Err(NOT_SUPPORTED);
    }
    let e = epilogue(desc.epilogue).ok_or(NOT_SUPPORTED)?;
    if e.bgrad > 0 {
        return Err(NOT_SUPPORTED);
    }
    let bias = if d.dtype == F16 { F16 } else { BF16 };
    if e.bias && desc.bias_dtype.unwrap_or(bias) != bias {
        return Err(INVALID_VALUE);
    }
    if (e.save || e.drelu || e.dgelu) && (desc.aux_ld < m as i64 || desc.aux_ld % 16 != 0) {
        return Err(INVALID_VALUE);
    }
    Ok(())
}

/// The value of an FP8 number (Open Compute's 8-bit formats): E4M3 has no infinity.
fn eight_bits(bits: u8, dtype: u32) -> f32 {
    let (mantissa_bits, bias) = if dtype == E4M3 { (3, 7) } else { (2, 15) };
    let mantissa = f32::from(bits & ((1 << mantissa_bits) - 1)) / f32::from(1u8 << mantissa_bits);
    let exponent = i32::from(bits & 0x7f) >> mantissa_bits;
    let value = match (dtype, bits & 0x7f) {
        (E4M3, 0x7f) => f32::NAN,
        (E5M2, 0x7c) => f32::INFINITY,
        (E5M2, 0x7d..) => f32::NAN,
        _ if exponent == 0 => mantissa * 2f32.powi(1 - bias),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - bias),
    };
    if bits & 0x80 != 0 { -value } else { value }
}

fn read(at: u64, dtype: u32, index: usize) -> f32 {
    // SAFETY: the extents were checked against allocations before the product ran.
    unsafe {
        match dtype {
            F32 => (at as *const f32).add(index).read_unaligned(),
            F16 => (at as *const f16).add(index).read_unaligned().to_f32(),
            E4M3 | E5M2 => eight_bits((at as *const u8).add(index).read(), dtype),
            _ => (at as *const bf16).add(index).read_unaligned().to_f32(),
        }
    }
}

fn write(at: u64, dtype: u32, index: usize, value: f32) {
    // SAFETY: as for `read`.
    unsafe {
        match dtype {
            F32 => (at as *mut f32).add(index).write_unaligned(value),
            F16 => (at as *mut f16).add(index).write_unaligned(f16::from_f32(value)),
            _ => (at as *mut bf16).add(index).write_unaligned(bf16::from_f32(value)),
        }
    }
}

/// To 10 bits of mantissa, to nearest.
fn tf32(value: f32) -> f32 {
    if !value.is_finite() {
        return value;
    }
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// The approximation by tanh, which is cuBLASLt's.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}

fn gelu_derivative(x: f32) -> f32 {
    let t = (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
}

impl Product {
    fn bias_dtype(&self) -> u32 {
        let eight = size_of(self.layout[0].dtype) == Some(1);
        let result = self.layout[3].dtype;
        self.desc.bias_dtype.unwrap_or(if eight && result == F32 { BF16 } else { result })
    }

    fn aux_dtype(&self) -> u32 {
        self.desc.aux_dtype.unwrap_or(self.layout[3].dtype)
    }

    /// Everything the product reads or writes: what it is, where, and bytes.
    fn ranges(&self) -> Option<Vec<(&'static str, u64, usize)>> {
        let mut list = vec![];
        let e = epilogue(self.desc.epilogue)?;
        let [_, _, _, d] = &self.layout;
        let no_c = matches!(self.beta, Scalar::Value(0.0));
        for (i, what) in ["A", "B", "C", "D"].into_iter().enumerate() {
            if !(what == "C" && no_c) {
                list.push((what, self.at[i], self.layout[i].extent()?));
            }
        }
        if e.bias || e.bgrad > 0 {
            let len = if e.bgrad == 3 { d.columns } else { d.rows } as usize;
            let before = usize::try_from(self.desc.bias_stride).ok()? * (d.batch as usize - 1);
            list.push(("the bias", self.desc.bias, (before + len) * size_of(self.bias_dtype())?));
        }
        if e.save || e.drelu || e.dgelu {
            let before = self.desc.aux_stride as usize * (d.batch as usize - 1);
            let last =
                before + self.desc.aux_ld as usize * (d.columns as usize - 1) + d.rows as usize;
            let bytes = if e.relu || e.drelu {
                last.div_ceil(8)
            } else {
                last * size_of(self.aux_dtype())?
            };
            list.push(("the auxiliary matrix", self.desc.aux, bytes));
        }
        for (what, scalar) in [("alpha", self.alpha), ("beta", self.beta)] {
            if let Scalar::Device(at) = scalar {
                list.push((what, at, 4));
            }
        }
        for (what, at) in ["the scale of A", "the scale of B"].into_iter().zip(self.desc.scales) {
            if at != 0 {
                list.push((what, at, 4));
            }
        }
        if self.workspace_bytes > 0 {
            list.push(("the workspace", self.workspace, self.workspace_bytes));
        }
        Some(list)
    }

    /// Whether everything lies in allocations.
    pub fn check_memory(&self, arena: &Arena) -> Result<(), String> {
        let ranges = self.ranges().ok_or("extents overflow")?;
        let eight = size_of(self.layout[0].dtype) == Some(1);
        if eight && self.at.iter().any(|at| at % 16 != 0) {
            return Err(format!("FP8 operands at {:x?}, which are not multiples of 16", self.at));
        }
        // The documentation: in place, C and D are one matrix; otherwise they do not overlap.
        let (c, d) = (&self.layout[2], &self.layout[3]);
        let adds = !matches!(self.beta, Scalar::Value(0.0));
        let reach = |i: usize| self.at[i]..self.at[i] + self.layout[i].extent().unwrap_or(0) as u64;
        let apart = reach(2).end <= reach(3).start || reach(3).end <= reach(2).start;
        if adds && !apart && (self.at[2] != self.at[3] || c != d) {
            return Err(format!(
                "C {c:?} at {:#x} overlaps D {d:?} at {:#x} and is not the same",
                self.at[2], self.at[3]
            ));
        }
        for &(what, at, bytes) in &ranges {
            if !arena.holds(at, bytes) {
                let [a, b, _, d] = &self.layout;
                return Err(format!(
                    "a product {}x{} by {}x{} to {}x{}, epilogue {}: {what} has {bytes} bytes at {at:#x}, which are not \
                     one allocation's",
                    a.rows, a.columns, b.rows, b.columns, d.rows, d.columns, self.desc.epilogue
                ));
            }
        }
        // Nothing is said of a derivative whose argument lies where the result goes.
        let range =
            |name: &str| ranges.iter().find(|r| r.0 == name).map(|r| (r.1, r.1 + r.2 as u64));
        let derivative = epilogue(self.desc.epilogue).is_some_and(|e| e.drelu || e.dgelu);
        if let (true, Some(x), Some(d)) = (derivative, range("the auxiliary matrix"), range("D"))
            && x.0 < d.1
            && d.0 < x.1
        {
            return Err(format!("a derivative reads {x:x?}, over which D lies, {d:x?}"));
        }
        Ok(())
    }

    /// Computes the product; sums are in f64, or for the second candidate in f32.
    pub fn run(&self, arena: &Arena) -> Result<(), String> {
        self.check_memory(arena)?;
        if self.workspace_bytes > 0 {
            // SAFETY: just checked. Nobody may keep anything in a workspace.
            unsafe { std::ptr::write_bytes(self.workspace as *mut u8, 0xff, self.workspace_bytes) };
        }
        let scalar = |s: Scalar| match s {
            Scalar::Value(v) => v,
            Scalar::Device(at) => read(at, F32, 0),
        };
        let scale = |at: u64| if at == 0 { 1.0 } else { read(at, F32, 0) };
        let scales = self.desc.scales.map(scale);
        let (alpha, beta) = (scalar(self.alpha) * scales[0] * scales[1], scalar(self.beta));
        for batch in 0..self.layout[3].batch as usize {
            self.one(batch, alpha, beta);
        }
        Ok(())
    }

    fn one(&self, batch: usize, alpha: f32, beta: f32) {
        let [la, lb, lc, ld] = &self.layout;
        let base = |i: usize| {
            let l = &self.layout[i];
            self.at[i].wrapping_add(
                (l.stride * batch as i64 * size_of(l.dtype).unwrap_or(0) as i64) as u64,
            )
        };
        let (m, n) = (ld.rows as usize, ld.columns as usize);
        let k = if self.desc.transpose_a { la.rows } else { la.columns } as usize;
        let round = |v: f32| if self.desc.compute == TF32_COMPUTE { tf32(v) } else { v };
        let gather = |at: u64, l: &Layout, lines: usize, by_row: bool| -> Vec<f32> {
            let mut out = Vec::with_capacity(lines * k);
            for i in 0..lines {
                for j in 0..k {
                    let index = if by_row { l.index(i, j) } else { l.index(j, i) };
                    out.push(round(read(at, l.dtype, index)));
                }
            }
            out
        };
        // Lines of op(A) by rows and of op(B) by columns, each k long.
        let a = gather(base(0), la, m, !self.desc.transpose_a);
        let b = gather(base(1), lb, n, self.desc.transpose_b);
        let e = epilogue(self.desc.epilogue).expect("checked");
        let bias_at = self.desc.bias
            + (self.desc.bias_stride as usize * batch * size_of(self.bias_dtype()).unwrap_or(0))
                as u64;
        let aux_at = self.desc.aux;
        let aux_before = self.desc.aux_stride as usize * batch;
        let aux_type = self.aux_dtype();
        let mut column_sums = vec![0f64; m];
        for j in 0..n {
            let bj = &b[j * k..][..k];
            for i in 0..m {
                let sum = dot(&a[i * k..][..k], bj, self.candidate);
                let mut v = alpha * sum;
                if beta != 0.0 {
                    v += beta * read(base(2), lc.dtype, lc.index(i, j));
                }
                if e.bias {
                    v += read(bias_at, self.bias_dtype(), i);
                }
                let aux = aux_before + i + j * self.desc.aux_ld as usize;
                if e.relu {
                    if e.save {
                        write_bit(aux_at, aux, v > 0.0);
                    }
                    v = if v > 0.0 || v.is_nan() { v } else { 0.0 };
                }
                if e.gelu {
                    if e.save {
                        write(aux_at, aux_type, aux, v);
                    }
                    v = gelu(v);
                }
                if e.drelu && !read_bit(aux_at, aux) {
                    v = 0.0;
                }
                if e.dgelu {
                    v *= gelu_derivative(read(aux_at, aux_type, aux));
                }
                column_sums[i] += f64::from(v);
                write(base(3), ld.dtype, ld.index(i, j), v);
            }
        }
        let bias = |i: usize, v: f64| write(bias_at, self.bias_dtype(), i, v as f32);
        let line = |x: &[f32], i: usize| x[i * k..][..k].iter().map(|&v| f64::from(v)).sum::<f64>();
        match e.bgrad {
            1 => (0..m).for_each(|i| bias(i, column_sums[i])),
            2 => (0..m).for_each(|i| bias(i, line(&a, i))),
            3 => (0..n).for_each(|j| bias(j, line(&b, j))),
            _ => {}
        }
    }
}

fn dot(a: &[f32], b: &[f32], candidate: u64) -> f32 {
    if candidate == 1 {
        // As a split along k: two sums in f32.
        let (first, second) = (a.len() / 2, a.len());
        let part = |r: std::ops::Range<usize>| {
            a[r.clone()].iter().zip(&b[r]).map(|(x, y)| x * y).sum::<f32>()
        };
        return part(0..first) + part(first..second);
    }
    let mut sums = [0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 =
        a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += f64::from(x[i]) * f64::from(y[i]);
        }
    }
    (sums.iter().sum::<f64>() + rest) as f32
}

fn write_bit(at: u64, index: usize, on: bool) {
    let byte = (at as *mut u8).wrapping_add(index / 8);
    // SAFETY: the extent was checked.
    unsafe { *byte = *byte & !(1 << (index % 8)) | u8::from(on) << (index % 8) };
}

fn read_bit(at: u64, index: usize) -> bool {
    // SAFETY: the extent was checked.
    unsafe { *(at as *const u8).wrapping_add(index / 8) >> (index % 8) & 1 == 1 }
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;

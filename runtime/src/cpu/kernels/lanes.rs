//! Vector registers behind one trait, and the three inner loops of every product.
//!
//! A product is computed in tiles of `MR` rows by `NR = NV * N` columns whose accumulators stay in
//! registers. The inner loops differ in where their operands lie:
//! - [`Lanes::panel`]: both packed (matrix products);
//! - [`Lanes::gather`]: the column operand in place, at a table of offsets (convolution);
//! - [`Lanes::taps`]: the row operand in place, at one offset per row (weight gradient).

#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of the short methods is stated on the trait"
)]
#![allow(clippy::too_many_arguments, reason = "inner loops: each argument is a register")]
#![allow(
    clippy::needless_range_loop,
    reason = "loops over constant ranges unroll into registers; some iterator chains do not"
)]

/// A vector register and its multiply-accumulate.
///
/// # Safety
/// Implementations read and write exactly the elements their methods name. Every method requires
/// that the processor has the instructions of the implementation; those that take a pointer, that
/// `N` elements (for `splat`, one) are readable or writable there.
pub unsafe trait Lanes: Copy + Send + Sync + 'static {
    /// What one lane multiplies: an f32, or two bf16 values of consecutive k.
    type El: Copy + Send + Sync;
    /// `N` elements.
    type V: Copy;
    /// `N` f32 sums.
    type Acc: Copy;
    const N: usize;
    /// Rows of the tile.
    const MR: usize;
    /// Columns of the tile.
    const NR: usize;
    /// Values of k that one element holds.
    const KU: usize;
    /// Elements of k in a cache block: a panel of B of this length fits the first-level cache.
    const KC: usize;

    unsafe fn zero() -> Self::Acc;
    unsafe fn load(p: *const Self::El) -> Self::V;
    /// One element, perhaps unaligned, in every lane.
    unsafe fn splat(p: *const Self::El) -> Self::V;
    /// `acc + a * b`.
    unsafe fn mac(acc: Self::Acc, a: Self::V, b: Self::V) -> Self::Acc;
    unsafe fn load_acc(p: *const f32) -> Self::Acc;
    unsafe fn store_acc(p: *mut f32, a: Self::Acc);
    unsafe fn add(a: Self::Acc, b: Self::Acc) -> Self::Acc;

    /// `c[i, j] (+)= sum_p a[p, i] * b[p, j]` for packed panels `a: [kc, MR]`, `b: [kc, NR]`.
    ///
    /// # Safety
    /// The panels are readable and `c` is writable for `MR` rows of `NR` at stride `ldc`.
    unsafe fn panel(
        kc: usize,
        a: *const Self::El,
        b: *const Self::El,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    );

    /// As [`Lanes::panel`] for the first `rows` rows, with `b[p, j] = *(base[j / N] + off[p] + j % N)`.
    ///
    /// # Safety
    /// As [`Lanes::panel`]; `1 <= rows <= MR`, `base` has `NR / N` entries, `off` has `kc`, and
    /// every address is readable.
    unsafe fn gather(
        rows: usize,
        kc: usize,
        a: *const Self::El,
        base: &[*const Self::El],
        off: *const usize,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    );

    /// `c[i, j] (+)= sum over r < rows, q < cols of a(i, r, q) * b[r * cols + q, j]`, where
    /// `a(i, r, q)` lies `off[i] + r * row_step + q * col_step` bytes after `a`.
    ///
    /// # Safety
    /// As [`Lanes::panel`]; `off` has `MR` entries and every address is readable.
    unsafe fn taps(
        rows: usize,
        cols: usize,
        a: *const u8,
        off: &[usize],
        row_step: usize,
        col_step: usize,
        b: *const Self::El,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    );
}

#[inline(always)]
unsafe fn store<L: Lanes, const MR: usize, const NV: usize>(
    acc: &[[L::Acc; NV]; MR],
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: the caller gives MR rows of NV * N at stride ldc.
    unsafe {
        for (i, row) in acc.iter().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                let p = c.add(i * ldc + j * L::N);
                L::store_acc(p, if accumulate { L::add(L::load_acc(p), v) } else { v });
            }
        }
    }
}

#[inline(always)]
unsafe fn panel<L: Lanes, const MR: usize, const NV: usize>(
    kc: usize,
    mut a: *const L::El,
    mut b: *const L::El,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's contract is that of `Lanes::panel`.
    unsafe {
        let mut acc = [[L::zero(); NV]; MR];
        for _ in 0..kc {
            let mut bv = [L::load(b); NV];
            for j in 1..NV {
                bv[j] = L::load(b.add(j * L::N));
            }
            for i in 0..MR {
                let av = L::splat(a.add(i));
                for j in 0..NV {
                    acc[i][j] = L::mac(acc[i][j], av, bv[j]);
                }
            }
            a = a.add(MR);
            b = b.add(NV * L::N);
        }
        store::<L, MR, NV>(&acc, c, ldc, accumulate);
    }
}

#[inline(always)]
unsafe fn gather<L: Lanes, const MR: usize, const NV: usize>(
    kc: usize,
    mut a: *const L::El,
    base: &[*const L::El; NV],
    off: *const usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's contract is that of `Lanes::gather`.
    unsafe {
        let mut acc = [[L::zero(); NV]; MR];
        for p in 0..kc {
            let o = *off.add(p);
            let mut bv = [L::load(base[0].add(o)); NV];
            for j in 1..NV {
                bv[j] = L::load(base[j].add(o));
            }
            for i in 0..MR {
                let av = L::splat(a.add(i));
                for j in 0..NV {
                    acc[i][j] = L::mac(acc[i][j], av, bv[j]);
                }
            }
            a = a.add(L::MR);
        }
        store::<L, MR, NV>(&acc, c, ldc, accumulate);
    }
}

#[inline(always)]
unsafe fn taps<L: Lanes, const MR: usize, const NV: usize>(
    rows: usize,
    cols: usize,
    a: *const u8,
    off: &[usize; MR],
    row_step: usize,
    col_step: usize,
    mut b: *const L::El,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's contract is that of `Lanes::taps`.
    unsafe {
        let mut acc = [[L::zero(); NV]; MR];
        for r in 0..rows {
            let mut ar = a.add(r * row_step);
            for _ in 0..cols {
                let mut bv = [L::load(b); NV];
                for j in 1..NV {
                    bv[j] = L::load(b.add(j * L::N));
                }
                for i in 0..MR {
                    let av = L::splat(ar.add(off[i]).cast());
                    for j in 0..NV {
                        acc[i][j] = L::mac(acc[i][j], av, bv[j]);
                    }
                }
                ar = ar.add(col_step);
                b = b.add(NV * L::N);
            }
        }
        store::<L, MR, NV>(&acc, c, ldc, accumulate);
    }
}

/// The three loops of an implementation, compiled with its instructions.
macro_rules! loops {
    ($mr:literal, $nv:literal, [$($r:literal)*] $(, $feature:literal)?) => {
        const MR: usize = $mr;
        const NR: usize = $nv * Self::N;
        unsafe fn panel(
            kc: usize, a: *const Self::El, b: *const Self::El, c: *mut f32, ldc: usize,
            accumulate: bool,
        ) {
            $(#[target_feature(enable = $feature)])?
            unsafe fn run<L: Lanes>(
                kc: usize, a: *const L::El, b: *const L::El, c: *mut f32, ldc: usize,
                accumulate: bool,
            ) {
                // SAFETY: the caller's contract.
                unsafe { panel::<L, $mr, $nv>(kc, a, b, c, ldc, accumulate) }
            }
            // SAFETY: the caller's contract.
            unsafe { run::<Self>(kc, a, b, c, ldc, accumulate) }
        }
        unsafe fn gather(
            rows: usize, kc: usize, a: *const Self::El, base: &[*const Self::El],
            off: *const usize, c: *mut f32, ldc: usize, accumulate: bool,
        ) {
            $(#[target_feature(enable = $feature)])?
            #[allow(clippy::too_many_arguments)]
            unsafe fn run<L: Lanes>(
                rows: usize, kc: usize, a: *const L::El, base: &[*const L::El; $nv],
                off: *const usize, c: *mut f32, ldc: usize, accumulate: bool,
            ) {
                // SAFETY: the caller's contract.
                unsafe {
                    match rows {
                        $($r => gather::<L, $r, $nv>(kc, a, base, off, c, ldc, accumulate),)*
                        _ => unreachable!("{rows} rows in a tile of {}", $mr),
                    }
                }
            }
            let base = base.try_into().expect("one base per vector of the tile");
            // SAFETY: the caller's contract.
            unsafe { run::<Self>(rows, kc, a, base, off, c, ldc, accumulate) }
        }
        unsafe fn taps(
            rows: usize, cols: usize, a: *const u8, off: &[usize], row_step: usize,
            col_step: usize, b: *const Self::El, c: *mut f32, ldc: usize, accumulate: bool,
        ) {
            $(#[target_feature(enable = $feature)])?
            #[allow(clippy::too_many_arguments)]
            unsafe fn run<L: Lanes>(
                rows: usize, cols: usize, a: *const u8, off: &[usize; $mr], row_step: usize,
                col_step: usize, b: *const L::El, c: *mut f32, ldc: usize, accumulate: bool,
            ) {
                // SAFETY: the caller's contract.
                unsafe {
                    taps::<L, $mr, $nv>(
                        rows, cols, a, off, row_step, col_step, b, c, ldc, accumulate,
                    )
                }
            }
            let off = off.try_into().expect("one offset per row of the tile");
            // SAFETY: the caller's contract.
            unsafe {
                run::<Self>(rows, cols, a, off, row_step, col_step, b, c, ldc, accumulate)
            }
        }
    };
}

/// Four f32 lanes of plain Rust; LLVM maps them to whatever the target's baseline has.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

// SAFETY: every method touches the N elements it names.
unsafe impl Lanes for Plain {
    type El = f32;
    type V = [f32; 4];
    type Acc = [f32; 4];
    const N: usize = 4;
    const KU: usize = 1;
    const KC: usize = 384;
    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller gives four elements.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller gives one element.
        [unsafe { p.read_unaligned() }; 4]
    }
    #[inline(always)]
    unsafe fn mac(mut acc: [f32; 4], a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        for i in 0..4 {
            acc[i] += a[i] * b[i];
        }
        acc
    }
    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller gives four elements.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_acc(p: *mut f32, a: [f32; 4]) {
        // SAFETY: the caller gives four elements.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn add(mut a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        for i in 0..4 {
            a[i] += b[i];
        }
        a
    }
    loops!(4, 2, [1 2 3 4]);
}

/// A pair of bf16 values, the one of smaller k in the low half.
pub type Pair = u32;

#[cfg(test)]
#[path = "lanes_emulated.rs"]
mod emulated;
#[cfg(test)]
pub use emulated::{EmulatedBf16, EmulatedF32};

#[cfg(target_arch = "x86_64")]
pub use x86::{Bf16x32, F32x8, F32x16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// AVX2 and FMA.
    #[derive(Clone, Copy, Debug)]
    pub struct F32x8;

    // SAFETY: every method touches the N elements it names.
    unsafe impl Lanes for F32x8 {
        type El = f32;
        type V = __m256;
        type Acc = __m256;
        const N: usize = 8;
        const KU: usize = 1;
        const KC: usize = 384;
        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: the caller has AVX2; so in every method below.
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m256 {
            unsafe { _mm256_set1_ps(p.read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn mac(acc: __m256, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, acc) }
        }
        #[inline(always)]
        unsafe fn load_acc(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store_acc(p: *mut f32, a: __m256) {
            unsafe { _mm256_storeu_ps(p, a) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        loops!(6, 2, [1 2 3 4 5 6], "avx2,fma");
    }

    /// AVX-512.
    #[derive(Clone, Copy, Debug)]
    pub struct F32x16;

    // SAFETY: every method touches the N elements it names.
    unsafe impl Lanes for F32x16 {
        type El = f32;
        type V = __m512;
        type Acc = __m512;
        const N: usize = 16;
        const KU: usize = 1;
        const KC: usize = 256;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller has AVX-512; so in every method below.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m512 {
            unsafe { _mm512_set1_ps(p.read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn mac(acc: __m512, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, acc) }
        }
        #[inline(always)]
        unsafe fn load_acc(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store_acc(p: *mut f32, a: __m512) {
            unsafe { _mm512_storeu_ps(p, a) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        loops!(12, 2, [1 2 3 4 5 6 7 8 9 10 11 12], "avx512f");
    }

    /// AVX512-BF16: two products a lane.
    #[derive(Clone, Copy, Debug)]
    pub struct Bf16x32;

    // SAFETY: every method touches the N elements it names.
    unsafe impl Lanes for Bf16x32 {
        type El = Pair;
        type V = __m512i;
        type Acc = __m512;
        const N: usize = 16;
        const KU: usize = 2;
        const KC: usize = 256;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller has AVX512-BF16; so in every method below.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const Pair) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(p: *const Pair) -> __m512i {
            unsafe { _mm512_set1_epi32(p.read_unaligned().cast_signed()) }
        }
        #[inline(always)]
        unsafe fn mac(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: both are 32 bf16 values in 512 bits.
            unsafe {
                _mm512_dpbf16_ps(
                    acc,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                )
            }
        }
        #[inline(always)]
        unsafe fn load_acc(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store_acc(p: *mut f32, a: __m512) {
            unsafe { _mm512_storeu_ps(p, a) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        loops!(12, 2, [1 2 3 4 5 6 7 8 9 10 11 12], "avx512f,avx512bf16");
    }
}

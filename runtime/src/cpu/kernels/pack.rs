//! Packing: copies a block of an operand into the order in which the inner loops read it.
//!
//! A packed block is a row of panels. A panel holds `w` lanes (rows of A, columns of B) for every
//! k: element `(x, k)` of the block lies at `((x / w) * nk + k) * w + x % w`, where k counts
//! elements of `nk` (pairs of values for bf16). Lanes and odd values of k beyond the block are 0.

use super::convert;
use super::lanes::Pair;
use crate::multiversion;
use precast_plan::DType;

/// A matrix seen as lanes by k, somewhere in memory; strides in elements.
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    pub ptr: *const u8,
    pub dtype: DType,
    /// From one lane to the next.
    pub sx: isize,
    /// From one k to the next.
    pub sk: isize,
}

impl Strided {
    /// The view that starts at lane `x`, value `k`.
    ///
    /// # Safety
    /// The element lies inside the matrix, or one past its end.
    pub unsafe fn at(self, x: usize, k: usize) -> Strided {
        // SAFETY: the caller keeps it inside the matrix.
        let ptr = unsafe { self.element(x, k) };
        Strided { ptr, ..self }
    }

    unsafe fn element(self, x: usize, k: usize) -> *const u8 {
        let e = x as isize * self.sx + k as isize * self.sk;
        // SAFETY: as above.
        unsafe { self.ptr.offset(e * self.dtype.size() as isize) }
    }
}

/// What panels hold: f32 values, or pairs of bf16 values.
pub trait Packed: Copy + Send + Sync {
    /// Packs `nx` lanes by `k` values into panels of `w` lanes.
    ///
    /// # Safety
    /// `src` is readable there; `out` is writable for `nx` rounded up to `w`, times `k` rounded up
    /// to whole elements.
    ///
    /// # Panics
    /// If `w` is more than 32, or `src` has a format this kind of panel cannot hold.
    unsafe fn pack(src: Strided, nx: usize, k: usize, w: usize, out: *mut Self);
}

impl Packed for f32 {
    unsafe fn pack(src: Strided, nx: usize, k: usize, w: usize, out: *mut f32) {
        let whole = nx / w;
        let mut x = 0;
        let mut dst = out;
        if src.dtype == DType::F32 && src.sx == 1 && whole > 1 && [6, 12, 16, 32].contains(&w) {
            let p: *const f32 = src.ptr.cast();
            // SAFETY: `whole` panels of `w` lanes exist, and `out` has room for them.
            unsafe {
                match w {
                    6 => copy_panels::<6>(p, src.sk, k, whole, out),
                    12 => copy_panels::<12>(p, src.sk, k, whole, out),
                    32 => copy_panels::<32>(p, src.sk, k, whole, out),
                    _ => copy_panels::<16>(p, src.sk, k, whole, out),
                }
                dst = out.add(whole * w * k);
            }
            x = whole * w;
        }
        while x < nx {
            let lanes = w.min(nx - x);
            // SAFETY: lanes x..x + lanes exist, and each panel takes w * k elements of `out`.
            unsafe {
                let panel = src.at(x, 0);
                if src.dtype == DType::F32 {
                    pack_f32(panel, lanes, k, w, dst);
                } else {
                    pack_widened(panel, lanes, k, w, dst);
                }
                dst = dst.add(w * k);
            }
            x += w;
        }
    }
}

/// One panel of f32 from f32.
unsafe fn pack_f32(src: Strided, lanes: usize, k: usize, w: usize, out: *mut f32) {
    let p: *const f32 = src.ptr.cast();
    // SAFETY: the caller's contract.
    unsafe {
        if lanes < w {
            std::slice::from_raw_parts_mut(out, w * k).fill(0.0);
        }
        match (src.sx, w, lanes == w) {
            (1, 16, true) => copy_lanes::<16>(p, src.sk, k, out),
            (1, 32, true) => copy_lanes::<32>(p, src.sk, k, out),
            (1, 8, true) => copy_lanes::<8>(p, src.sk, k, out),
            (1, 6, true) => copy_lanes::<6>(p, src.sk, k, out),
            (1, 12, true) => copy_lanes::<12>(p, src.sk, k, out),
            (1, 4, true) => copy_lanes::<4>(p, src.sk, k, out),
            _ if src.sk == 1 => transpose(p, src.sx, lanes, k, w, out),
            _ => {
                for i in 0..k {
                    for x in 0..lanes {
                        let e = x as isize * src.sx + i as isize * src.sk;
                        *out.add(i * w + x) = *p.offset(e);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// `k` rows of `W` contiguous values for each of several panels, side by side in memory. Row by
    /// row, since the rows of a large matrix lie a page apart: a cache line that a panel ends in
    /// would be gone before the next panel came back to it.
    unsafe fn copy_panels<L, const W: usize>(
        p: *const f32,
        sk: isize,
        k: usize,
        panels: usize,
        out: *mut f32,
    ) {
        for i in 0..k {
            // SAFETY: the caller's contract.
            unsafe {
                let row = p.offset(i as isize * sk);
                let out = out.add(i * W);
                for x in 0..panels {
                    let lanes = row.add(x * W).cast::<[f32; W]>().read_unaligned();
                    out.add(x * W * k).cast::<[f32; W]>().write_unaligned(lanes);
                }
            }
        }
    }

    /// `k` rows of `W` contiguous values.
    unsafe fn copy_lanes<L, const W: usize>(p: *const f32, sk: isize, k: usize, out: *mut f32) {
        for i in 0..k {
            // SAFETY: the caller's contract.
            unsafe {
                let row = p.offset(i as isize * sk).cast::<[f32; W]>().read_unaligned();
                out.add(i * W).cast::<[f32; W]>().write_unaligned(row);
            }
        }
    }
}

/// `out[i * w + x] = p[x * sx + i]`.
unsafe fn transpose(p: *const f32, sx: isize, lanes: usize, k: usize, w: usize, out: *mut f32) {
    let mut x = 0;
    // SAFETY: the caller's contract.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if crate::cpu::simd::isa() >= crate::cpu::simd::Isa::Avx2 {
            if w == 6 && lanes == 6 {
                transpose6(p, sx, k, out);
                return;
            }
            while x + 8 <= lanes {
                transpose8(p.offset(x as isize * sx), sx, k, w, out.add(x));
                x += 8;
            }
        }
        // Four lanes at a time share the write of a cache line.
        while x + 4 <= lanes {
            let r: [*const f32; 4] = std::array::from_fn(|i| p.offset((x + i) as isize * sx));
            for i in 0..k {
                let v = [*r[0].add(i), *r[1].add(i), *r[2].add(i), *r[3].add(i)];
                out.add(i * w + x).cast::<[f32; 4]>().write_unaligned(v);
            }
            x += 4;
        }
        while x < lanes {
            let row = p.offset(x as isize * sx);
            for i in 0..k {
                *out.add(i * w + x) = *row.add(i);
            }
            x += 1;
        }
    }
}

/// Eight rows become eight columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn transpose_8x8(r: [std::arch::x86_64::__m256; 8]) -> [std::arch::x86_64::__m256; 8] {
    use std::arch::x86_64::*;
    let a0 = _mm256_unpacklo_ps(r[0], r[1]);
    let a1 = _mm256_unpackhi_ps(r[0], r[1]);
    let a2 = _mm256_unpacklo_ps(r[2], r[3]);
    let a3 = _mm256_unpackhi_ps(r[2], r[3]);
    let a4 = _mm256_unpacklo_ps(r[4], r[5]);
    let a5 = _mm256_unpackhi_ps(r[4], r[5]);
    let a6 = _mm256_unpacklo_ps(r[6], r[7]);
    let a7 = _mm256_unpackhi_ps(r[6], r[7]);
    let b0 = _mm256_shuffle_ps::<0x44>(a0, a2);
    let b1 = _mm256_shuffle_ps::<0xee>(a0, a2);
    let b2 = _mm256_shuffle_ps::<0x44>(a1, a3);
    let b3 = _mm256_shuffle_ps::<0xee>(a1, a3);
    let b4 = _mm256_shuffle_ps::<0x44>(a4, a6);
    let b5 = _mm256_shuffle_ps::<0xee>(a4, a6);
    let b6 = _mm256_shuffle_ps::<0x44>(a5, a7);
    let b7 = _mm256_shuffle_ps::<0xee>(a5, a7);
    [
        _mm256_permute2f128_ps::<0x20>(b0, b4),
        _mm256_permute2f128_ps::<0x20>(b1, b5),
        _mm256_permute2f128_ps::<0x20>(b2, b6),
        _mm256_permute2f128_ps::<0x20>(b3, b7),
        _mm256_permute2f128_ps::<0x31>(b0, b4),
        _mm256_permute2f128_ps::<0x31>(b1, b5),
        _mm256_permute2f128_ps::<0x31>(b2, b6),
        _mm256_permute2f128_ps::<0x31>(b3, b7),
    ]
}

/// Eight lanes of [`transpose`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose8(p: *const f32, sx: isize, k: usize, w: usize, out: *mut f32) {
    use std::arch::x86_64::*;
    let blocks = k / 8 * 8;
    // SAFETY: the caller gives eight lanes of k values and room for k rows of w.
    unsafe {
        for i in (0..blocks).step_by(8) {
            let mut r = [_mm256_setzero_ps(); 8];
            for (x, r) in r.iter_mut().enumerate() {
                *r = _mm256_loadu_ps(p.offset(x as isize * sx).add(i));
            }
            for (y, c) in transpose_8x8(r).into_iter().enumerate() {
                _mm256_storeu_ps(out.add((i + y) * w), c);
            }
        }
        for i in blocks..k {
            for x in 0..8 {
                *out.add(i * w + x) = *p.offset(x as isize * sx).add(i);
            }
        }
    }
}

/// [`transpose`] of six lanes into panels of six.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose6(p: *const f32, sx: isize, k: usize, out: *mut f32) {
    use std::arch::x86_64::*;
    let blocks = k / 8 * 8;
    // SAFETY: the caller gives six lanes of k values and room for k rows of six. A row is stored
    // as eight values, of which the next row overwrites two; the last of a block is stored in parts.
    unsafe {
        for i in (0..blocks).step_by(8) {
            let mut r = [_mm256_setzero_ps(); 8];
            for (x, r) in r.iter_mut().enumerate().take(6) {
                *r = _mm256_loadu_ps(p.offset(x as isize * sx).add(i));
            }
            let c = transpose_8x8(r);
            let o = out.add(i * 6);
            for (y, &c) in c.iter().enumerate().take(7) {
                _mm256_storeu_ps(o.add(y * 6), c);
            }
            _mm_storeu_ps(o.add(42), _mm256_castps256_ps128(c[7]));
            _mm_storel_pd(o.add(46).cast(), _mm_castps_pd(_mm256_extractf128_ps::<1>(c[7])));
        }
        for i in blocks..k {
            for x in 0..6 {
                *out.add(i * 6 + x) = *p.offset(x as isize * sx).add(i);
            }
        }
    }
}

/// One panel of f32 from a narrower format.
unsafe fn pack_widened(src: Strided, lanes: usize, k: usize, w: usize, out: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        if src.sx == 1 {
            for i in 0..k {
                let row = std::slice::from_raw_parts_mut(out.add(i * w), w);
                convert::widen(src.dtype, src.at(0, i).ptr, &mut row[..lanes]);
                row[lanes..].fill(0.0);
            }
            return;
        }
        // Through a block of rows with contiguous k, widened.
        const K: usize = 64;
        let mut buf = [0f32; 32 * K];
        assert!(w <= 32, "panels have at most 32 lanes");
        for i0 in (0..k).step_by(K) {
            let n = K.min(k - i0);
            for (x, row) in buf.chunks_mut(K).enumerate().take(lanes) {
                if src.sk == 1 {
                    convert::widen(src.dtype, src.at(x, i0).ptr, &mut row[..n]);
                } else {
                    for (i, v) in row[..n].iter_mut().enumerate() {
                        *v = convert::read(src.dtype, src.at(x, i0 + i).ptr);
                    }
                }
            }
            let block =
                Strided { ptr: buf.as_ptr().cast(), dtype: DType::F32, sx: K as isize, sk: 1 };
            pack_f32(block, lanes, n, w, out.add(i0 * w));
        }
    }
}

impl Packed for Pair {
    unsafe fn pack(src: Strided, nx: usize, k: usize, w: usize, out: *mut Pair) {
        assert_eq!(src.dtype, DType::Bf16, "pairs are of bf16");
        let nk = k.div_ceil(2);
        let mut x = 0;
        let mut dst = out;
        while x < nx {
            let lanes = w.min(nx - x);
            // SAFETY: lanes x..x + lanes exist, and each panel takes w * nk elements of `out`.
            unsafe {
                pack_pairs(src.at(x, 0), lanes, k, w, dst);
                dst = dst.add(w * nk);
            }
            x += w;
        }
    }
}

/// One panel of pairs.
unsafe fn pack_pairs(src: Strided, lanes: usize, k: usize, w: usize, out: *mut Pair) {
    let nk = k.div_ceil(2);
    let p: *const u16 = src.ptr.cast();
    // SAFETY: the caller's contract.
    unsafe {
        if lanes < w {
            std::slice::from_raw_parts_mut(out, w * nk).fill(0);
        }
        let pair = |x: usize, i: usize| {
            let e = p.offset(x as isize * src.sx + 2 * i as isize * src.sk);
            let lo = u32::from(*e);
            let hi = if 2 * i + 1 < k { u32::from(*e.offset(src.sk)) } else { 0 };
            lo | (hi << 16)
        };
        if src.sk == 1 {
            // Two consecutive values are a pair already: a transpose of 32-bit elements.
            let whole = k / 2;
            pack_f32_bits(p, src.sx, lanes, whole, w, out);
            for i in whole..nk {
                for x in 0..lanes {
                    *out.add(i * w + x) = pair(x, i);
                }
            }
        } else if src.sx == 1 && lanes == w && (w == 32 || w == 12) {
            let whole = k / 2;
            if w == 32 {
                interleave::<32>(p, src.sk, whole, out);
            } else {
                interleave::<12>(p, src.sk, whole, out);
            }
            for i in whole..nk {
                for x in 0..lanes {
                    *out.add(i * w + x) = pair(x, i);
                }
            }
        } else {
            for i in 0..nk {
                for x in 0..lanes {
                    *out.add(i * w + x) = pair(x, i);
                }
            }
        }
    }
}

multiversion! {
    /// Pairs of rows of `W` contiguous values.
    unsafe fn interleave<L, const W: usize>(p: *const u16, sk: isize, pairs: usize, out: *mut Pair) {
        for i in 0..pairs {
            // SAFETY: the caller's contract.
            unsafe {
                let lo = p.offset(2 * i as isize * sk).cast::<[u16; W]>().read_unaligned();
                let hi = p.offset((2 * i as isize + 1) * sk).cast::<[u16; W]>().read_unaligned();
                let mut row = [0u32; W];
                for x in 0..W {
                    row[x] = u32::from(lo[x]) | (u32::from(hi[x]) << 16);
                }
                out.add(i * W).cast::<[u32; W]>().write_unaligned(row);
            }
        }
    }
}

/// `out[i * w + x]` = the pair at `p[x * sx + 2 i]`, for whole pairs.
unsafe fn pack_f32_bits(
    p: *const u16,
    sx: isize,
    lanes: usize,
    pairs: usize,
    w: usize,
    out: *mut Pair,
) {
    // SAFETY: the caller's contract. The rows need not be aligned to four bytes, and the copy goes
    // bit for bit through f32 registers (the transpose does no arithmetic).
    unsafe {
        if sx % 2 == 0 && p.addr().is_multiple_of(4) {
            transpose(p.cast(), sx / 2, lanes, pairs, w, out.cast());
            return;
        }
        for x in 0..lanes {
            let row: *const Pair = p.offset(x as isize * sx).cast();
            for i in 0..pairs {
                *out.add(i * w + x) = row.add(i).read_unaligned();
            }
        }
    }
}

/// Elements of a padded block of a convolution's source: f32 values, bf16 values (`u16`), or pairs
/// of bf16 values of two consecutive channels.
pub trait Plane: Copy {
    fn zero() -> Self;

    /// The element for one weight, or for the weights of two consecutive channels.
    ///
    /// # Safety
    /// The pointers are readable elements of `dtype`.
    unsafe fn from_weights(dtype: DType, first: *const u8, second: Option<*const u8>) -> Self;

    /// `n` pixels of one channel, or of two consecutive ones.
    ///
    /// # Safety
    /// The pointers are readable for `n` elements of `dtype`, `out` is writable for `n`.
    unsafe fn copy_row(
        dtype: DType,
        first: *const u8,
        second: Option<*const u8>,
        n: usize,
        out: *mut Self,
    );
}

/// Fills `n` elements with zeros.
///
/// # Safety
/// `out` is writable for `n` elements.
pub unsafe fn fill<T: Plane>(out: *mut T, n: usize) {
    for i in 0..n {
        // SAFETY: the caller's contract.
        unsafe { out.add(i).write(T::zero()) };
    }
}

impl Plane for f32 {
    fn zero() -> f32 {
        0.0
    }

    unsafe fn from_weights(dtype: DType, first: *const u8, _: Option<*const u8>) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { convert::read(dtype, first) }
    }

    unsafe fn copy_row(
        dtype: DType,
        first: *const u8,
        _: Option<*const u8>,
        n: usize,
        out: *mut f32,
    ) {
        // SAFETY: the caller's contract.
        unsafe { convert::widen(dtype, first, std::slice::from_raw_parts_mut(out, n)) };
    }
}

impl Plane for u16 {
    fn zero() -> u16 {
        0
    }

    unsafe fn from_weights(dtype: DType, first: *const u8, _: Option<*const u8>) -> u16 {
        assert_eq!(dtype, DType::Bf16, "values of two bytes are bf16");
        // SAFETY: the caller's contract.
        unsafe { first.cast::<u16>().read() }
    }

    unsafe fn copy_row(
        dtype: DType,
        first: *const u8,
        _: Option<*const u8>,
        n: usize,
        out: *mut u16,
    ) {
        assert_eq!(dtype, DType::Bf16, "values of two bytes are bf16");
        // SAFETY: the caller's contract.
        unsafe { std::ptr::copy_nonoverlapping(first.cast(), out, n) };
    }
}

impl Plane for Pair {
    fn zero() -> Pair {
        0
    }

    unsafe fn from_weights(dtype: DType, first: *const u8, second: Option<*const u8>) -> Pair {
        assert_eq!(dtype, DType::Bf16, "pairs are of bf16");
        // SAFETY: the caller's contract.
        unsafe {
            let hi = second.map_or(0, |p| u32::from(p.cast::<u16>().read()));
            u32::from(first.cast::<u16>().read()) | (hi << 16)
        }
    }

    unsafe fn copy_row(
        dtype: DType,
        first: *const u8,
        second: Option<*const u8>,
        n: usize,
        out: *mut Pair,
    ) {
        assert_eq!(dtype, DType::Bf16, "pairs are of bf16");
        let first: *const u16 = first.cast();
        // SAFETY: the caller's contract.
        unsafe {
            if let Some(second) = second {
                let second: *const u16 = second.cast();
                for i in 0..n {
                    let pair = u32::from(*first.add(i)) | (u32::from(*second.add(i)) << 16);
                    out.add(i).write(pair);
                }
            } else {
                for i in 0..n {
                    out.add(i).write(u32::from(*first.add(i)));
                }
            }
        }
    }
}

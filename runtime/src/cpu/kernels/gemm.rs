//! Matrix products of any strides: `D = epilogue(alpha A B + beta C)`.
//!
//! Sums are in f32. f32 operands, and narrow ones widened while packing (exact), go through the f32
//! tile of the processor; two bf16 operands go through the bf16 dot product where there is one.
//!
//! D is cut into tiles, the tasks of the thread pool. A task packs its columns of B, then for each
//! block of k its rows of A, and multiplies panel by panel (Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", 2008). Where D is too small for enough tasks and k is
//! long, k is cut into a number of parts that depends on the shape alone, summed in order.

use super::convert;
use super::epilogue::{Epilogue, Tile};
use super::lanes::Lanes;
use super::pack::{Packed, Strided};
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use crate::cpu::simd::{Isa, isa};
use precast_plan::DType;

/// An operand: element `(i, j)` of matrix `(b0, b1)` lies `b0 bs[0] + b1 bs[1] + i rs + j cs`
/// elements after `ptr`. Strides may be 0 or negative.
#[derive(Clone, Copy, Debug)]
pub struct MatRef {
    pub ptr: *const u8,
    pub dtype: DType,
    pub rs: isize,
    pub cs: isize,
    pub bs: [isize; 2],
}

/// The result, addressed as [`MatRef`]. No two elements may coincide.
#[derive(Clone, Copy, Debug)]
pub struct MatMut {
    pub ptr: *mut u8,
    pub dtype: DType,
    pub rs: isize,
    pub cs: isize,
    pub bs: [isize; 2],
}

// SAFETY: bare addresses; whoever dereferences them answers for races.
unsafe impl Send for MatRef {}
// SAFETY: as above.
unsafe impl Sync for MatRef {}
// SAFETY: as above.
unsafe impl Send for MatMut {}
// SAFETY: as above.
unsafe impl Sync for MatMut {}

/// Sizes of a product: `A: [m, k]`, `B: [k, n]`, `D: [m, n]`, for `batch[0] * batch[1]` matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: [usize; 2],
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// A product.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    pub shape: Shape,
    pub a: MatRef,
    pub b: MatRef,
    /// Read where `beta != 0`. May be D itself, if format and strides are the same.
    pub c: Option<MatRef>,
    /// `None` leaves storing to the epilogue.
    pub d: Option<MatMut>,
    pub alpha: f32,
    pub beta: f32,
    pub epilogue: Option<&'a dyn Epilogue>,
}

/// Which inner loop a product uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    F32(Isa),
    Bf16Dot,
    /// AVX-512 and AVX512-BF16 without their instructions.
    #[cfg(test)]
    EmulatedF32,
    #[cfg(test)]
    EmulatedBf16,
}

impl Path {
    /// Whether panels hold pairs of bf16 values.
    #[cfg(test)]
    pub(crate) fn pairs(self) -> bool {
        matches!(self, Path::Bf16Dot | Path::EmulatedBf16)
    }

    /// The fastest path for operands of these formats on this processor.
    pub fn select(a: DType, b: DType) -> Path {
        match isa() {
            Isa::Avx512Bf16 if a == DType::Bf16 && b == DType::Bf16 => Path::Bf16Dot,
            isa => Path::F32(isa),
        }
    }
}

/// Calls `$body` with `$L` bound to the implementation of a path.
macro_rules! with_lanes {
    ($path:expr, $L:ident => $body:expr) => {
        match $path {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::kernels::gemm::Path::F32($crate::cpu::simd::Isa::Avx2) => {
                type $L = $crate::cpu::kernels::lanes::F32x8;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::kernels::gemm::Path::F32(
                $crate::cpu::simd::Isa::Avx512 | $crate::cpu::simd::Isa::Avx512Bf16,
            ) => {
                type $L = $crate::cpu::kernels::lanes::F32x16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::kernels::gemm::Path::Bf16Dot => {
                type $L = $crate::cpu::kernels::lanes::Bf16x32;
                $body
            }
            #[cfg(test)]
            $crate::cpu::kernels::gemm::Path::EmulatedF32 => {
                type $L = $crate::cpu::kernels::lanes::EmulatedF32;
                $body
            }
            #[cfg(test)]
            $crate::cpu::kernels::gemm::Path::EmulatedBf16 => {
                type $L = $crate::cpu::kernels::lanes::EmulatedBf16;
                $body
            }
            _ => {
                type $L = $crate::cpu::kernels::lanes::Plain;
                $body
            }
        }
    };
}
pub(crate) use with_lanes;

/// As [`with_lanes`], for the f32 path of an instruction set.
macro_rules! with_f32_lanes {
    ($isa:expr, $L:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx2 => {
                type $L = $crate::cpu::kernels::lanes::F32x8;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx512 | $crate::cpu::simd::Isa::Avx512Bf16 => {
                type $L = $crate::cpu::kernels::lanes::F32x16;
                $body
            }
            _ => {
                type $L = $crate::cpu::kernels::lanes::Plain;
                $body
            }
        }
    };
}
pub(crate) use with_f32_lanes;

/// Bytes of packed B kept per thread when all of k fits; more is packed block by block.
const B_WHOLE: usize = 2 << 20;
/// Most columns and rows of a tile.
const N_MAX: usize = 512;
const M_MAX: usize = 128;

/// How a shape is cut up; a function of the shape and the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocking {
    /// Rows and columns of a tile, multiples of the micro tile.
    pub mt: usize,
    pub nt: usize,
    /// Elements (not values) of k in a block.
    pub kc: usize,
    /// Parts of k, each summed on its own.
    parts: usize,
    /// Values of k in a part.
    part: usize,
    /// All of k is packed at once.
    whole: bool,
}

impl Blocking {
    fn new<L: Lanes>(s: &Shape) -> Blocking {
        let batch = s.batch[0] * s.batch[1];
        let flops = 2.0 * batch as f64 * s.m as f64 * s.n as f64 * s.k as f64;
        let (mr, nr) = (L::MR, L::NR);
        let (mut mt, mut nt) = (s.m.min(M_MAX), s.n.min(N_MAX));
        let tiles = |mt: usize, nt: usize| batch * s.m.div_ceil(mt) * s.n.div_ceil(nt);
        // A task below some 20 microseconds costs more to hand out than it saves.
        let wanted = ((flops / 1e6) as usize).clamp(1, 12);
        while tiles(mt, nt) < wanted && (nt > 4 * nr || mt > 4 * mr) {
            if nt > 4 * nr && nt >= 2 * mt {
                nt = (nt / 2).next_multiple_of(nr);
            } else if mt > 4 * mr {
                mt = (mt * 2 / 3).next_multiple_of(mr);
            } else {
                nt = (nt / 2).next_multiple_of(nr);
            }
        }
        // Equal tiles.
        let even = |size: usize, tile: usize, unit: usize| {
            size.div_ceil(size.div_ceil(tile)).next_multiple_of(unit)
        };
        let (mt, nt) = (even(s.m, mt, mr), even(s.n, nt, nr));
        let parts = if batch == 1 && tiles(mt, nt) < 8 && s.k >= 4096 {
            (s.k / 2048).clamp(2, 8)
        } else {
            1
        };
        let part = s.k.div_ceil(parts).next_multiple_of(L::KU).max(1);
        let parts = s.k.div_ceil(part).max(1);
        let elements = part.div_ceil(L::KU).max(1);
        let kc = even(elements, L::KC, 8).min(elements);
        let whole = elements * nt * size_of::<L::El>() <= B_WHOLE;
        Blocking { mt, nt, kc, parts, part, whole }
    }

    fn slot_elements<L: Lanes>(&self) -> usize {
        let k = if self.whole { self.part.div_ceil(L::KU) } else { self.kc };
        self.mt * self.kc + self.nt * k
    }

    fn slot_bytes<L: Lanes>(&self) -> usize {
        piece_bytes::<L::El>(self.slot_elements::<L>())
            + piece_bytes::<f32>(self.mt * self.nt)
            + piece_bytes::<usize>(1)
    }
}

/// Scratch bytes for products of this shape and these formats, for the current pool.
pub fn scratch_bytes(s: &Shape, a: DType, b: DType) -> usize {
    scratch_bytes_on(Path::select(a, b), s)
}

pub(crate) fn scratch_bytes_on(path: Path, s: &Shape) -> usize {
    if s.m == 0 || s.n == 0 || s.batch.contains(&0) {
        return 0;
    }
    with_lanes!(path, L => {
        let blocking = Blocking::new::<L>(s);
        let parts = if blocking.parts > 1 { blocking.parts * s.m * s.n } else { 0 };
        par::slots() * blocking.slot_bytes::<L>() + piece_bytes::<f32>(parts)
    })
}

/// Multiplies packed blocks: `c[0..m, 0..n] (+)= a b`, `c` with unit column stride.
///
/// # Safety
/// The caller has the instructions of `L`; `a` and `b` hold the panels of `m` rows and `n` columns
/// by `kc` elements; `c` is writable for `m` rows of `n` at stride `ld`.
pub(crate) unsafe fn multiply_packed<L: Lanes>(
    (m, n, kc): (usize, usize, usize),
    a: *const L::El,
    b: *const L::El,
    c: *mut f32,
    ld: usize,
    accumulate: bool,
) {
    // The largest tile of any path.
    let mut edge = [0f32; 12 * 32];
    debug_assert!(L::MR * L::NR <= edge.len());
    for j in (0..n).step_by(L::NR) {
        // SAFETY: the caller's contract; a partial tile goes through `edge`.
        unsafe {
            let b = b.add(j * kc);
            for i in (0..m).step_by(L::MR) {
                let a = a.add(i * kc);
                let c = c.add(i * ld + j);
                let (rows, cols) = (L::MR.min(m - i), L::NR.min(n - j));
                if rows == L::MR && cols == L::NR {
                    L::panel(kc, a, b, c, ld, accumulate);
                } else {
                    L::panel(kc, a, b, edge.as_mut_ptr(), L::NR, false);
                    merge_edge(&edge, L::NR, rows, cols, c, ld, accumulate);
                }
            }
        }
    }
}

/// Adds or copies the valid corner of a partial tile.
///
/// # Safety
/// `c` is writable for `rows` rows of `cols` at stride `ld`.
pub(crate) unsafe fn merge_edge(
    edge: &[f32],
    width: usize,
    rows: usize,
    cols: usize,
    c: *mut f32,
    ld: usize,
    accumulate: bool,
) {
    for i in 0..rows {
        let src = &edge[i * width..][..cols];
        // SAFETY: the caller's contract.
        let dst = unsafe { std::slice::from_raw_parts_mut(c.add(i * ld), cols) };
        if accumulate {
            for (d, s) in dst.iter_mut().zip(src) {
                *d += s;
            }
        } else {
            dst.copy_from_slice(src);
        }
    }
}

impl Gemm<'_> {
    /// Computes the product on the current rayon pool.
    ///
    /// # Safety
    /// A, B and C are readable and D is writable at every element their strides name; D overlaps
    /// neither A nor B, and overlaps C only if it is C.
    ///
    /// # Panics
    /// If `scratch` is smaller than [`scratch_bytes`], or an operand is not of a real format.
    pub unsafe fn run(&self, scratch: &mut [u8]) {
        // SAFETY: the caller's contract; `select` names a path this processor has.
        unsafe { self.run_on(Path::select(self.a.dtype, self.b.dtype), scratch) }
    }

    pub(crate) unsafe fn run_on(&self, path: Path, scratch: &mut [u8]) {
        let s = &self.shape;
        if s.m == 0 || s.n == 0 || s.batch.contains(&0) {
            return;
        }
        // SAFETY: the caller's contract.
        with_lanes!(path, L => unsafe { self.run_with::<L>(scratch) });
    }

    unsafe fn run_with<L: Lanes<El: Packed>>(&self, scratch: &mut [u8]) {
        let s = self.shape;
        let blocking = Blocking::new::<L>(&s);
        let (m_tiles, n_tiles) = (s.m.div_ceil(blocking.mt), s.n.div_ceil(blocking.nt));
        let mut scratch = Scratch::new(scratch);
        let slots = Slots::<L>::new(&mut scratch, &blocking);
        let batch = s.batch[0] * s.batch[1];
        if blocking.parts == 1 {
            par::for_each(batch * n_tiles * m_tiles, &|task, slot| {
                let (bj, i) = (task / m_tiles, task % m_tiles);
                let (b, j) = (bj / n_tiles, bj % n_tiles);
                let tile = TileAt { b, i0: i * blocking.mt, j0: j * blocking.nt, part: 0, key: bj };
                // SAFETY: each task has a tile of its own, and its slot to itself.
                unsafe { self.tile::<L>(&blocking, &tile, None, slots.get(slot)) };
            });
            return;
        }
        let sums = scratch.take::<f32>(blocking.parts * s.m * s.n);
        par::for_each(blocking.parts * n_tiles * m_tiles, &|task, slot| {
            let (key, i) = (task / m_tiles, task % m_tiles);
            let (part, j) = (key / n_tiles, key % n_tiles);
            let tile = TileAt { b: 0, i0: i * blocking.mt, j0: j * blocking.nt, part, key };
            // SAFETY: each task has a tile of its own of its part's sums.
            unsafe {
                let sum = sums.get().add(part * s.m * s.n);
                self.tile::<L>(&blocking, &tile, Some(sum), slots.get(slot));
            }
        });
        par::for_each(n_tiles * m_tiles, &|task, _| {
            let (j, i) = (task / m_tiles, task % m_tiles);
            let (i0, j0) = (i * blocking.mt, j * blocking.nt);
            let (rows, cols) = (blocking.mt.min(s.m - i0), blocking.nt.min(s.n - j0));
            let at = |part: usize, i: usize| {
                // SAFETY: row i0 + i of the sums of `part`; no other task touches these columns.
                unsafe { sums.get().add((part * s.m + i0 + i) * s.n + j0) }
            };
            for i in 0..rows {
                // SAFETY: as above; the parts do not overlap.
                let sum = unsafe { std::slice::from_raw_parts_mut(at(0, i), cols) };
                for part in 1..blocking.parts {
                    // SAFETY: as above.
                    let other = unsafe { std::slice::from_raw_parts(at(part, i), cols) };
                    for (s, o) in sum.iter_mut().zip(other) {
                        *s += o;
                    }
                }
            }
            let mut tile =
                Tile { batch: 0, row0: i0, col0: j0, rows, cols, data: at(0, 0), ld: s.n };
            // SAFETY: the caller's contract.
            unsafe { self.finish(&mut tile, false) };
        });
    }

    /// Whether sums may go straight into D: then no other term reads or rescales them.
    fn direct(&self) -> Option<MatMut> {
        let d = self.d?;
        let plain = self.beta == 0.0 || self.in_place();
        (d.dtype == DType::F32 && d.cs == 1 && d.rs >= 0 && self.alpha == 1.0 && plain).then_some(d)
    }

    /// `D += A B`.
    fn in_place(&self) -> bool {
        match (self.c, self.d) {
            (Some(c), Some(d)) => {
                self.beta == 1.0
                    && self.alpha == 1.0
                    && c.ptr == d.ptr.cast_const()
                    && c.dtype == d.dtype
                    && c.dtype == DType::F32
                    && (c.rs, c.cs, c.bs) == (d.rs, d.cs, d.bs)
            }
            _ => false,
        }
    }

    /// Computes one tile, into `sum` (an `[m, n]` matrix) if given.
    unsafe fn tile<L: Lanes<El: Packed>>(
        &self,
        blocking: &Blocking,
        at: &TileAt,
        sum: Option<*mut f32>,
        slot: Slot<L>,
    ) {
        let s = &self.shape;
        let (b0, b1) = (at.b / s.batch[1], at.b % s.batch[1]);
        let (rows, cols) = (blocking.mt.min(s.m - at.i0), blocking.nt.min(s.n - at.j0));
        let k0 = at.part * blocking.part;
        let k = blocking.part.min(s.k - k0);
        let offset = |bs: [isize; 2]| b0 as isize * bs[0] + b1 as isize * bs[1];
        // SAFETY: all blocks lie inside the operands, whose elements the caller vouches for.
        unsafe {
            let view = |m: &MatRef, lanes: isize, k: isize| Strided {
                ptr: m.ptr.offset(offset(m.bs) * m.dtype.size() as isize),
                dtype: m.dtype,
                sx: lanes,
                sk: k,
            };
            let a = view(&self.a, self.a.rs, self.a.cs).at(at.i0, k0);
            let b = view(&self.b, self.b.cs, self.b.rs).at(at.j0, k0);
            let (data, ld, mut accumulate, direct) = match (sum, self.direct()) {
                (Some(sum), _) => (sum.add(at.i0 * s.n + at.j0), s.n, false, false),
                (None, Some(d)) => {
                    let e = offset(d.bs) + at.i0 as isize * d.rs + at.j0 as isize;
                    let p = d.ptr.cast::<f32>().offset(e);
                    (p, d.rs as usize, self.in_place(), true)
                }
                (None, None) => (slot.tile, blocking.nt, false, false),
            };
            let step = blocking.kc * L::KU;
            let reuse = blocking.whole && *slot.key == at.key;
            if k == 0 && !accumulate {
                for i in 0..rows {
                    std::slice::from_raw_parts_mut(data.add(i * ld), cols).fill(0.0);
                }
            }
            for p in (0..k).step_by(step) {
                let kv = step.min(k - p);
                let kc = kv.div_ceil(L::KU);
                let bp = if blocking.whole { slot.b.add(p / L::KU * blocking.nt) } else { slot.b };
                if !reuse {
                    L::El::pack(b.at(0, p), cols, kv, L::NR, bp);
                }
                L::El::pack(a.at(0, p), rows, kv, L::MR, slot.a);
                multiply_packed::<L>((rows, cols, kc), slot.a, bp, data, ld, accumulate);
                accumulate = true;
            }
            *slot.key = if blocking.whole { at.key } else { usize::MAX };
            if sum.is_none() {
                let mut tile = Tile { batch: at.b, row0: at.i0, col0: at.j0, rows, cols, data, ld };
                self.finish(&mut tile, direct);
            }
        }
    }

    /// Scales, adds C, applies the epilogue and stores.
    unsafe fn finish(&self, tile: &mut Tile, direct: bool) {
        let s = &self.shape;
        let (b0, b1) = ((tile.batch / s.batch[1]) as isize, (tile.batch % s.batch[1]) as isize);
        let (i0, j0) = (tile.row0 as isize, tile.col0 as isize);
        let first =
            |bs: [isize; 2], rs: isize, cs: isize| b0 * bs[0] + b1 * bs[1] + i0 * rs + j0 * cs;
        if !direct {
            let c = self.c.filter(|_| self.beta != 0.0);
            let c = c.map(|c| (c, first(c.bs, c.rs, c.cs)));
            for i in 0..tile.rows {
                let row = tile.row_mut(i);
                if self.alpha != 1.0 {
                    row.iter_mut().for_each(|v| *v *= self.alpha);
                }
                if let Some((c, e)) = c {
                    for (j, v) in row.iter_mut().enumerate() {
                        let e = e + i as isize * c.rs + j as isize * c.cs;
                        // SAFETY: an element of C.
                        let x = unsafe {
                            convert::read(c.dtype, c.ptr.offset(e * c.dtype.size() as isize))
                        };
                        *v += self.beta * x;
                    }
                }
            }
        }
        let Some(d) = self.d else {
            if let Some(e) = self.epilogue {
                e.apply(tile);
            }
            return;
        };
        let e = first(d.bs, d.rs, d.cs);
        if let Some(epilogue) = self.epilogue {
            epilogue.apply(tile);
        }
        if direct {
            return;
        }
        let size = d.dtype.size() as isize;
        for i in 0..tile.rows {
            let e = e + i as isize * d.rs;
            let row = tile.row_mut(i);
            // SAFETY: elements of D that belong to this tile.
            unsafe {
                if d.cs == 1 {
                    convert::narrow(d.dtype, row, d.ptr.offset(e * size));
                } else {
                    for (j, &v) in row.iter().enumerate() {
                        convert::write(d.dtype, d.ptr.offset((e + j as isize * d.cs) * size), v);
                    }
                }
            }
        }
    }
}

/// Where a tile lies, and the name of the columns of B it needs.
struct TileAt {
    b: usize,
    i0: usize,
    j0: usize,
    part: usize,
    key: usize,
}

/// The packing buffers of one thread.
struct Slot<L: Lanes> {
    a: *mut L::El,
    b: *mut L::El,
    tile: *mut f32,
    /// Which columns of B are packed.
    key: *mut usize,
}

struct Slots<L: Lanes> {
    elements: SharedPtr<L::El>,
    tiles: SharedPtr<f32>,
    keys: SharedPtr<usize>,
    blocking: Blocking,
}

/// Distance between the keys of two threads: a cache line.
const KEY_STEP: usize = par::ALIGN / size_of::<usize>();

impl<L: Lanes> Slots<L> {
    fn new(scratch: &mut Scratch<'_>, blocking: &Blocking) -> Self {
        let n = par::slots();
        let keys = scratch.take::<usize>(n * KEY_STEP);
        for i in 0..n * KEY_STEP {
            // SAFETY: inside the piece.
            unsafe { keys.get().add(i).write(usize::MAX) };
        }
        Slots {
            elements: scratch.take(n * blocking.slot_elements::<L>()),
            tiles: scratch.take(n * blocking.mt * blocking.nt),
            keys,
            blocking: *blocking,
        }
    }

    /// # Safety
    /// No other thread uses the slot.
    unsafe fn get(&self, slot: usize) -> Slot<L> {
        let b = &self.blocking;
        // SAFETY: `new` took this many of each.
        unsafe {
            let a = self.elements.get().add(slot * b.slot_elements::<L>());
            Slot {
                a,
                b: a.add(b.mt * b.kc),
                tile: self.tiles.get().add(slot * b.mt * b.nt),
                key: self.keys.get().add(slot * KEY_STEP),
            }
        }
    }
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;

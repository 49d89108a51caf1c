//! Typed loads into lanes and rounding stores out of them.

use super::geom::{Space, Strides, Tile};
use crate::cpu::kernels::convert;
use precast_plan::DType;

/// An input or output of one instance: memory, format and layout.
#[derive(Clone, Debug)]
pub struct Port {
    /// First byte of the tensor.
    pub ptr: *mut u8,
    pub dtype: DType,
    pub strides: Strides,
}

// SAFETY: a port is an address with a format. Those who dereference it (the executor's steps)
// keep writers apart: tiles of different threads are disjoint, and plans are validated.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

fn lane(x: i32) -> f32 {
    f32::from_bits(x as u32)
}

/// Integers are computed in 32 bits: what does not fit is the nearest that does, so that an index
/// out of range stays one.
fn narrow(x: i64) -> i32 {
    x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

fn int(x: f32) -> i32 {
    x.to_bits() as i32
}

impl Port {
    /// The address of the element at `offset`.
    pub fn at(&self, offset: i64) -> *mut u8 {
        self.ptr.wrapping_offset(offset as isize * self.dtype.size() as isize)
    }

    /// Reads one element as a lane.
    ///
    /// # Safety
    /// The offset lies inside the live tensor, which nobody writes meanwhile.
    #[inline]
    pub unsafe fn get(&self, offset: i64) -> f32 {
        let p = self.at(offset);
        // SAFETY: the caller's contract.
        unsafe {
            match self.dtype {
                DType::F32 => p.cast::<f32>().read(),
                DType::I64 => lane(narrow(p.cast::<i64>().read())),
                DType::I32 => p.cast::<f32>().read(),
                DType::U8 => lane(i32::from(p.read())),
                DType::Bool => lane(i32::from(p.read() != 0)),
                real => convert::read(real, p),
            }
        }
    }

    /// Stores one lane, rounded to the format.
    ///
    /// # Safety
    /// The offset lies inside the live tensor, which nobody else touches meanwhile.
    #[inline]
    pub unsafe fn set(&self, offset: i64, x: f32) {
        let p = self.at(offset);
        // SAFETY: the caller's contract.
        unsafe {
            match self.dtype {
                DType::F32 | DType::I32 => p.cast::<f32>().write(x),
                DType::I64 => p.cast::<i64>().write(i64::from(int(x))),
                DType::U8 => p.write(int(x) as u8),
                DType::Bool => p.write(u8::from(int(x) != 0)),
                real => convert::write(real, p, x),
            }
        }
    }

    unsafe fn load_run(&self, offset: i64, stride: i64, out: &mut [f32]) {
        // SAFETY: the caller's contract covers every offset of the run.
        unsafe {
            match (stride, self.dtype) {
                (1, DType::F32 | DType::I32) => {
                    let src = self.at(offset).cast::<f32>();
                    out.copy_from_slice(std::slice::from_raw_parts(src, out.len()));
                }
                (1, DType::I64) => {
                    let src = std::slice::from_raw_parts(self.at(offset).cast::<i64>(), out.len());
                    out.iter_mut().zip(src).for_each(|(o, &x)| *o = lane(narrow(x)));
                }
                (1, DType::U8) => {
                    let src = std::slice::from_raw_parts(self.at(offset), out.len());
                    out.iter_mut().zip(src).for_each(|(o, &x)| *o = lane(i32::from(x)));
                }
                (1, DType::Bool) => {
                    let src = std::slice::from_raw_parts(self.at(offset), out.len());
                    out.iter_mut().zip(src).for_each(|(o, &x)| *o = lane(i32::from(x != 0)));
                }
                (1, real) => convert::widen(real, self.at(offset), out),
                (0, _) => out.fill(self.get(offset)),
                (s, DType::F32 | DType::I32) => {
                    let mut p = self.at(offset).cast::<f32>();
                    for o in out {
                        *o = p.read();
                        p = p.wrapping_offset(s as isize);
                    }
                }
                (s, _) => {
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = self.get(offset + s * i as i64);
                    }
                }
            }
        }
    }

    unsafe fn store_run(&self, offset: i64, stride: i64, x: &[f32]) {
        // SAFETY: the caller's contract covers every offset of the run.
        unsafe {
            match (stride, self.dtype) {
                (1, DType::F32 | DType::I32) => {
                    let dst = self.at(offset).cast::<f32>();
                    std::slice::from_raw_parts_mut(dst, x.len()).copy_from_slice(x);
                }
                (1, real) if real.is_real() => convert::narrow(real, x, self.at(offset)),
                (s, _) => {
                    for (i, &x) in x.iter().enumerate() {
                        self.set(offset + s * i as i64, x);
                    }
                }
            }
        }
    }

    /// Loads a tile into lanes.
    ///
    /// # Safety
    /// Every element of the tile lies inside the live tensor, which nobody writes meanwhile;
    /// `out` holds the tile's lanes and does not overlap the tensor.
    pub unsafe fn load(&self, space: &Space, tile: Tile, out: &mut [f32]) {
        if let Some((o_stride, i_stride)) = self.transposed(space, tile) {
            // SAFETY: the caller's contract.
            return unsafe { self.load_transposed(space, tile, o_stride, i_stride, out) };
        }
        space.runs(&self.strides, tile, |lane, off, stride, count| {
            // SAFETY: the caller's contract.
            unsafe { self.load_run(off, stride, &mut out[lane..lane + count]) }
        });
    }

    /// Strides (outer, inner) of a tile whose columns are the contiguous runs.
    fn transposed(&self, space: &Space, tile: Tile) -> Option<(i64, i64)> {
        let s = &self.strides;
        (tile.on >= 4
            && tile.n >= 4
            && space.outer.len() == 1
            && space.inner.len() == 1
            && s.outer[0] == 1
            && s.inner[0] != 1
            && s.inner[0] != 0
            && self.dtype == DType::F32)
            .then(|| (s.outer[0], s.inner[0]))
    }

    unsafe fn load_transposed(
        &self,
        space: &Space,
        tile: Tile,
        _o_stride: i64,
        i_stride: i64,
        out: &mut [f32],
    ) {
        let base = self.at(space.offset(&self.strides, tile)).cast::<f32>();
        // 8 x 8 blocks: each cache line read once, each written once.
        for o0 in (0..tile.on).step_by(8) {
            let on = (tile.on - o0).min(8);
            for i in 0..tile.n {
                let col = base.wrapping_offset(i as isize * i_stride as isize + o0 as isize);
                for o in 0..on {
                    // SAFETY: the caller's contract; `o0 + o` and `i` lie in the tile.
                    out[(o0 + o) * tile.n + i] = unsafe { col.add(o).read() };
                }
            }
        }
    }

    /// Stores the lanes of a tile, rounded.
    ///
    /// # Safety
    /// Every element of the tile lies inside the live tensor, which nobody else touches meanwhile;
    /// `x` holds the tile's lanes and does not overlap the tensor.
    pub unsafe fn store(&self, space: &Space, tile: Tile, x: &[f32]) {
        space.runs(&self.strides, tile, |lane, off, stride, count| {
            // SAFETY: the caller's contract.
            unsafe { self.store_run(off, stride, &x[lane..lane + count]) }
        });
    }

    /// Loads one lane per outer index.
    ///
    /// # Safety
    /// As [`Port::load`].
    pub unsafe fn load_outer(&self, space: &Space, o0: usize, out: &mut [f32]) {
        space.outer_runs(&self.strides, o0, out.len(), |lane, off, stride, count| {
            // SAFETY: the caller's contract.
            unsafe { self.load_run(off, stride, &mut out[lane..lane + count]) }
        });
    }

    /// Stores one lane per outer index.
    ///
    /// # Safety
    /// As [`Port::store`].
    pub unsafe fn store_outer(&self, space: &Space, o0: usize, x: &[f32]) {
        space.outer_runs(&self.strides, o0, x.len(), |lane, off, stride, count| {
            // SAFETY: the caller's contract.
            unsafe { self.store_run(off, stride, &x[lane..lane + count]) }
        });
    }
}

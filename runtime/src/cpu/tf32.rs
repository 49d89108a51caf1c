//! Operands of TF32 products, which a processor has no instructions for: rounded into memory of
//! their own before the product, whose kernels then multiply them exactly. For studying a GPU's
//! numerics; slower than f32.

use super::kernels::par::{self, SharedPtr};
use super::pool::Aligned;
use crate::error::Result;
use precast_plan::{Access, Kernel, Math, Plan, round_tf32};

/// Values one task rounds.
const CHUNK: usize = 1 << 14;

/// Room for both operands of the largest TF32 product; products run one after the other.
pub struct Operands([Aligned; 2]);

impl Operands {
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(plan: &Plan) -> Result<Operands> {
        let mut most = [0usize; 2];
        for step in plan.micro.iter().chain(&plan.update).chain(&plan.eval) {
            let (a, b) = match &step.kernel {
                Kernel::Gemm(g) if g.math == Math::Tf32 => (&g.a, &g.b),
                Kernel::Conv(c) if c.math == Math::Tf32 => (&c.a, &c.b),
                _ => continue,
            };
            let bytes = |x: &Access| {
                let t = &plan.tensors[x.tensor as usize];
                t.shape.iter().product::<u64>() as usize * t.dtype.size()
            };
            most = [most[0].max(bytes(a)), most[1].max(bytes(b))];
        }
        let room = |bytes| Aligned::new(bytes).map_err(|e| e.at("operands of TF32 products"));
        Ok(Operands([room(most[0])?, room(most[1])?]))
    }

    /// The rounding of a whole tensor of f32 (`bytes` of them at `from`) as operand 0 or 1.
    ///
    /// # Panics
    /// If the tensor is none that [`Operands::new`] was shown.
    pub fn rounding(&self, operand: usize, from: *const u8, bytes: usize) -> Rounding {
        let room = &self.0[operand];
        assert!(bytes <= room.len(), "an operand of {bytes} bytes, room for {}", room.len());
        Rounding { from: from.cast(), to: room.ptr().cast(), len: bytes / 4 }
    }
}

/// A tensor to be rounded.
pub struct Rounding {
    from: *const f32,
    to: *mut f32,
    len: usize,
}

// SAFETY: addresses of memory that outlives the step; races are the executor's business.
unsafe impl Send for Rounding {}
// SAFETY: as above.
unsafe impl Sync for Rounding {}

impl Rounding {
    /// First byte of the rounded tensor.
    pub fn target(&self) -> *mut u8 {
        self.to.cast()
    }

    /// Rounds on the current pool.
    ///
    /// # Safety
    /// Both tensors are alive, and nobody else touches them.
    pub unsafe fn run(&self) {
        let (from, to) = (SharedPtr::new(self.from.cast_mut()), SharedPtr::new(self.to));
        par::for_each(self.len.div_ceil(CHUNK), &|task, _| {
            let first = task * CHUNK;
            let n = CHUNK.min(self.len - first);
            // SAFETY: the caller's contract; tasks have parts of their own, and the two tensors lie
            // in different regions.
            let (x, y) = unsafe {
                (
                    std::slice::from_raw_parts(from.get().add(first), n),
                    std::slice::from_raw_parts_mut(to.get().add(first), n),
                )
            };
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = round_tf32(x));
        });
    }
}

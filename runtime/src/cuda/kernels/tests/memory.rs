//! Host memory for a plan's tensors, and the tasks of a lowering run over it.

use crate::cuda::launch::{Arg, Launch, Lowered, Place, Task};
use crate::cuda::text::PRELUDE;
use precast_plan::{Access, DType, Kind, Plan, TensorId};
use precast_software_device::host::HostModule;
use std::ffi::c_void;

/// Bytes around a buffer that nothing may write.
const GUARD: usize = 256;

struct Buffer {
    words: Vec<u64>,
    /// First byte, 64-byte aligned.
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize, fill: u8) -> Buffer {
        let total = len + 2 * GUARD + 64;
        let mut words = vec![0xa5a5_a5a5_a5a5_a5a5u64; total.div_ceil(8)];
        let at = words.as_ptr() as usize;
        let start = (at + GUARD).next_multiple_of(64) - at;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        bytes[start..start + len].fill(fill);
        Buffer { words, start, len }
    }

    fn ptr(&self) -> *mut u8 {
        // SAFETY: the start lies inside the words.
        unsafe { self.words.as_ptr().cast::<u8>().add(self.start).cast_mut() }
    }

    fn intact(&self) -> bool {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        bytes[..self.start].iter().chain(&bytes[self.start + self.len..]).all(|&b| b == 0xa5)
    }
}

/// The tensors of a plan; what nothing has written is NaN.
pub struct Memory {
    dtypes: Vec<DType>,
    tensors: Vec<Buffer>,
    pub fault: u64,
}

impl Memory {
    pub fn new(plan: &Plan) -> Memory {
        let bytes =
            |t: &precast_plan::Tensor| t.shape.iter().product::<u64>() as usize * t.dtype.size();
        Memory {
            dtypes: plan.tensors.iter().map(|t| t.dtype).collect(),
            tensors: plan.tensors.iter().map(|t| Buffer::new(bytes(t), 0xff)).collect(),
            fault: 0,
        }
    }

    pub fn element(&self, a: &Access, i: &[usize]) -> (DType, *mut u8) {
        let dtype = self.dtypes[a.tensor as usize];
        let steps: i64 = i.iter().zip(&a.strides).map(|(&i, s)| i as i64 * s).sum();
        let at = (a.offset as i64 + steps) as usize * dtype.size();
        let buffer = &self.tensors[a.tensor as usize];
        assert!(at < buffer.len, "index {i:?} of {a:?}");
        // SAFETY: inside the buffer.
        (dtype, unsafe { buffer.ptr().add(at) })
    }

    pub fn get(&self, a: &Access, i: &[usize]) -> f64 {
        let (dtype, p) = self.element(a, i);
        let mut bytes = [0; 8];
        // SAFETY: an element of this format.
        unsafe { p.copy_to_nonoverlapping(bytes.as_mut_ptr(), dtype.size()) };
        let bits = u64::from_le_bytes(bytes);
        match dtype {
            DType::I64 => bits.cast_signed() as f64,
            DType::I32 => f64::from((bits as u32).cast_signed()),
            DType::U8 | DType::Bool => bits as f64,
            _ => f64::from(dtype.decode(bits as u32)),
        }
    }

    pub fn set(&mut self, a: &Access, i: &[usize], x: f64) {
        let (dtype, p) = self.element(a, i);
        let bits = match dtype {
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => (x as i64).cast_unsigned(),
            _ => u64::from(dtype.encode(x as f32)),
        };
        let bytes = bits.to_le_bytes();
        // SAFETY: an element of this format.
        unsafe { p.copy_from_nonoverlapping(bytes.as_ptr(), dtype.size()) };
    }

    /// Every element of a tensor, in [-1, 1).
    pub fn random(&mut self, tensor: TensorId, seed: u64) {
        let dtype = self.dtypes[tensor as usize];
        assert_eq!(dtype.kind(), Kind::Real);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(tensor);
        let buffer = &self.tensors[tensor as usize];
        for i in 0..buffer.len / dtype.size() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let x = (state >> 40) as f32 / 8388608.0 - 1.0;
            let bytes = dtype.encode(x).to_le_bytes();
            // SAFETY: inside the buffer.
            unsafe {
                let to = buffer.ptr().add(i * dtype.size());
                to.copy_from_nonoverlapping(bytes.as_ptr(), dtype.size());
            }
        }
    }

    pub fn bytes(&self, tensor: TensorId) -> &[u8] {
        let b = &self.tensors[tensor as usize];
        &bytemuck::cast_slice::<u64, u8>(&b.words)[b.start..b.start + b.len]
    }

    /// Runs the tasks; `seed` shuffles blocks and threads.
    pub fn run(&mut self, lowered: &Lowered, seed: u64) {
        let scratch = Buffer::new(lowered.scratch as usize, 0xff);
        for task in &lowered.tasks {
            match task {
                Task::Clear { place, bytes } => {
                    let (p, len) = match *place {
                        Place::Tensor { tensor, offset } => {
                            let b = &self.tensors[tensor as usize];
                            (b.ptr().wrapping_add(offset as usize), b.len - offset as usize)
                        }
                        Place::Scratch { offset } => {
                            let p = scratch.ptr().wrapping_add(offset as usize);
                            (p, scratch.len - offset as usize)
                        }
                    };
                    assert!(*bytes as usize <= len, "{task:?}");
                    // SAFETY: inside the buffer.
                    unsafe { p.write_bytes(0, *bytes as usize) };
                }
                Task::Launch(l) => self.launch(l, &scratch, seed),
                other => panic!("{other:?} is no kernel of ours"),
            }
        }
        assert!(scratch.intact(), "something was written around the scratch region");
        for (t, b) in self.tensors.iter().enumerate() {
            assert!(b.intact(), "something was written around tensor {t}");
        }
    }

    fn launch(&mut self, l: &Launch, scratch: &Buffer, seed: u64) {
        let text = format!("{PRELUDE}{}", l.source.text);
        let module = HostModule::compile(&text, &[]).unwrap_or_else(|e| {
            panic!("{} does not compile: {e}", l.source.entry);
        });
        let words: Vec<u64> = l
            .args
            .iter()
            .map(|a| match *a {
                Arg::Tensor { tensor, offset } => {
                    self.tensors[tensor as usize].ptr() as u64 + offset
                }
                Arg::Scratch { offset } => scratch.ptr() as u64 + offset,
                Arg::Fault => (&raw mut self.fault) as u64,
                Arg::I32(x) => u64::from(x.cast_unsigned()),
                Arg::U32(x) => u64::from(x),
                Arg::I64(x) => x.cast_unsigned(),
                Arg::F32(x) => u64::from(x.to_bits()),
                Arg::Table(_) => panic!("no kernel here has tables"),
            })
            .collect();
        let kernel = module.kernel(&l.source.entry).expect("the entry is in its text");
        let sizes: Vec<u32> = l
            .args
            .iter()
            .map(|a| if matches!(a, Arg::I32(_) | Arg::U32(_) | Arg::F32(_)) { 4 } else { 8 })
            .collect();
        assert_eq!(kernel.parameter_sizes(), sizes, "parameters of {}", l.source.entry);
        assert!(l.block.iter().product::<u32>() <= l.source.max_threads);
        let mut args: Vec<*mut c_void> =
            words.iter().map(|w| std::ptr::from_ref(w).cast_mut().cast()).collect();
        // SAFETY: the arguments have the sizes of the parameters and name memory of this test.
        unsafe { kernel.launch(l.grid, l.block, l.shared, seed, &mut args) }
            .unwrap_or_else(|e| panic!("{}: {e}", l.source.entry));
    }
}

/// Half a unit in the last place of `dtype` at `x`.
pub fn rounding(dtype: DType, x: f64) -> f64 {
    let f = dtype.facts();
    let e = x.abs().max(f.min_normal).log2().floor();
    (e - f64::from(f.mantissa_bits) - 1.0).exp2()
}

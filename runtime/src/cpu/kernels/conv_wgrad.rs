//! The weight gradient of a convolution:
//! `dw[co, c, th, tw] = sum over images and pixels of dy[n, co, i, j] x[n, c, i s + th d - pad, ...]`.
//!
//! The vector runs over output channels and the sum over pixels, so x is read in place (one value
//! in all lanes) and only dy is packed. Images are cut into a number of chunks that depends on the
//! shape alone; each chunk has its own sums, added in order at the end.

use super::conv_shape::Conv2d;
use super::convert;
use super::gemm::{Path, with_lanes};
use super::lanes::Lanes;
use super::pack::{Packed, Plane, Strided, fill};
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use crate::cpu::simd::isa;
use precast_plan::DType;

/// A prepared weight gradient.
#[derive(Clone, Debug)]
pub struct ConvWeightGradPlan {
    path: Path,
    conv: Conv2d,
    /// Chunks of images, and images in each but the last.
    chunks: usize,
    images: usize,
    /// Parts of k = (channel, tap), and rows of k in each but the last; multiples of the tile.
    parts: usize,
    part: usize,
    /// Output rows summed at a time.
    block: usize,
    padded: [usize; 2],
    /// Byte offset in the padded block of each k, continued past the end with zeros.
    offsets: Vec<usize>,
    k: usize,
    x_dtype: DType,
    dy_dtype: DType,
    dw_dtype: DType,
}

/// Pixels whose packed gradients (NR channels) fit the first-level cache.
const PIXELS: usize = 256;
/// Rows of k that a task of the last step sums and transposes.
const ROWS: usize = 16;
/// Bytes of the sums of all chunks.
const SUM_BYTES: usize = 16 << 20;

impl ConvWeightGradPlan {
    /// Formats of x, dy and dw.
    pub fn new(conv: Conv2d, x: DType, dy: DType, dw: DType) -> ConvWeightGradPlan {
        // A pair of the bf16 dot product is two neighbouring pixels of a row.
        let pairs = conv.stride[1] == 1 && conv.output()[1].is_multiple_of(2);
        let path = if pairs { Path::select(x, dy) } else { Path::F32(isa()) };
        ConvWeightGradPlan::new_on(path, conv, x, dy, dw)
    }

    pub(crate) fn new_on(path: Path, conv: Conv2d, x: DType, dy: DType, dw: DType) -> Self {
        conv.check();
        let [oh, ow] = conv.output();
        let block = (PIXELS / ow.max(1)).clamp(1, oh.max(1));
        let extent = |d: usize, count: usize| {
            (count.max(1) - 1) * conv.stride[d] + (conv.kernel[d] - 1) * conv.dilation[d] + 1
        };
        let padded = [extent(0, block), extent(1, ow)];
        let (ci, taps) = (conv.cin_group(), conv.kernel[0] * conv.kernel[1]);
        let k = ci * taps;
        let (mr, nr, ku) = with_lanes!(path, L => (L::MR, L::NR, L::KU));
        assert!(ku == 1 || (conv.stride[1] == 1 && ow.is_multiple_of(2)), "pairs of pixels");
        let mut offsets: Vec<usize> = (0..k)
            .map(|p| {
                let (c, t) = (p / taps, p % taps);
                let (th, tw) = (t / conv.kernel[1], t % conv.kernel[1]);
                let row = c * padded[0] + th * conv.dilation[0];
                (row * padded[1] + tw * conv.dilation[1]) * (size_of::<f32>() / ku)
            })
            .collect();
        offsets.resize(k.next_multiple_of(mr), 0);
        let sum = offsets.len() * conv.cout_group().next_multiple_of(nr) * size_of::<f32>();
        let most = (SUM_BYTES / (sum * conv.groups).max(1)).max(1);
        let chunks = conv.n.min(8).min(most).max(1);
        let images = conv.n.div_ceil(chunks).max(1);
        let chunks = conv.n.div_ceil(images).max(1);
        // Enough tasks where there are few images.
        let tiles = offsets.len() / mr;
        let parts = 8usize.div_ceil(chunks * conv.groups).min(tiles.max(1));
        let part = tiles.div_ceil(parts.max(1)).max(1) * mr;
        let parts = offsets.len().div_ceil(part).max(1);
        ConvWeightGradPlan {
            path,
            conv,
            chunks,
            images,
            parts,
            part,
            block,
            padded,
            offsets,
            k,
            x_dtype: x,
            dy_dtype: dy,
            dw_dtype: dw,
        }
    }

    /// Columns of the sums: output channels of a group, whole vectors.
    fn columns<L: Lanes>(&self) -> usize {
        self.conv.cout_group().next_multiple_of(L::NR)
    }

    fn slot_elements<L: Lanes>(&self) -> usize {
        let pixels = self.block * self.conv.output()[1];
        self.padded_elements::<L>() + pixels / L::KU * self.columns::<L>()
    }

    /// Elements of four bytes that hold a padded block, of f32 or bf16 values.
    fn padded_elements<L: Lanes>(&self) -> usize {
        let values = self.conv.cin_group() * self.padded[0] * self.padded[1];
        values.div_ceil(L::KU).next_multiple_of(16)
    }

    fn sum_elements<L: Lanes>(&self) -> usize {
        self.offsets.len() * self.columns::<L>()
    }

    /// Scratch bytes for [`ConvWeightGradPlan::run`] on the current pool.
    pub fn scratch_bytes(&self) -> usize {
        if self.conv.is_depthwise() {
            return self.conv.depthwise_scratch_bytes();
        }
        with_lanes!(self.path, L => {
            piece_bytes::<<L as Lanes>::El>(self.slot_elements::<L>() * par::slots())
                + piece_bytes::<f32>(self.sum_elements::<L>() * self.conv.groups * self.chunks)
        })
    }

    /// Computes dw, or adds to it where `accumulate`.
    ///
    /// # Safety
    /// The tensors have the shapes and formats of the plan; dw overlaps neither operand.
    ///
    /// # Panics
    /// If `scratch` is smaller than [`ConvWeightGradPlan::scratch_bytes`].
    pub unsafe fn run(
        &self,
        x: *const u8,
        dy: *const u8,
        dw: *mut u8,
        accumulate: bool,
        scratch: &mut [u8],
    ) {
        if self.conv.is_depthwise() {
            let tensors = [x.cast_mut(), dy.cast_mut(), dw];
            let formats = [self.x_dtype, self.dy_dtype, self.dw_dtype];
            // SAFETY: the caller's contract.
            unsafe { self.conv.depthwise_weight_grad(tensors, formats, accumulate, scratch) };
            return;
        }
        // SAFETY: the caller's contract; the processor has this instruction set.
        with_lanes!(self.path, L => unsafe {
            self.run_with::<L>(x, dy, dw, accumulate, scratch)
        });
    }

    unsafe fn run_with<L: Lanes<El: Packed>>(
        &self,
        x: *const u8,
        dy: *const u8,
        dw: *mut u8,
        accumulate: bool,
        scratch: &mut [u8],
    ) {
        let c = &self.conv;
        let (x, dy) = (SharedPtr::new(x.cast_mut()), SharedPtr::new(dy.cast_mut()));
        let dw = SharedPtr::new(dw);
        let mut scratch = Scratch::new(scratch);
        let slot_elements = self.slot_elements::<L>();
        let slots = scratch.take::<L::El>(slot_elements * par::slots());
        let sum_elements = self.sum_elements::<L>();
        let sums = scratch.take::<f32>(sum_elements * c.groups * self.chunks);

        par::for_each(self.chunks * c.groups * self.parts, &|task, slot| {
            let (cg, part) = (task / self.parts, task % self.parts);
            let (chunk, g) = (cg / c.groups, cg % c.groups);
            // SAFETY: each task writes its own rows of its chunk's sums, and its own slot.
            unsafe {
                let sum = sums.get().add(cg * sum_elements);
                let slot = slots.get().add(slot * slot_elements);
                self.task::<L>(x.get(), dy.get(), (chunk, g, part), sum, slot);
            }
        });

        let co = c.cout_group();
        let columns = self.columns::<L>();
        let blocks = self.k.div_ceil(ROWS);
        par::for_each(c.groups * blocks, &|task, _| {
            let (g, p0) = (task / blocks, task % blocks * ROWS);
            let rows = ROWS.min(self.k - p0);
            // SAFETY: rows p0.. of the sums of group g, complete, belong to this task; so do the
            // same columns of dw.
            unsafe {
                let at = |chunk: usize| {
                    sums.get().add((chunk * c.groups + g) * sum_elements + p0 * columns)
                };
                let sum = std::slice::from_raw_parts_mut(at(0), rows * columns);
                for chunk in 1..self.chunks {
                    let other = std::slice::from_raw_parts(at(chunk), rows * columns);
                    for (s, o) in sum.iter_mut().zip(other) {
                        *s += o;
                    }
                }
                for i in 0..co {
                    let e = (g * co + i) * self.k + p0;
                    let out = dw.get().add(e * self.dw_dtype.size());
                    let mut buf = [0f32; ROWS];
                    let buf = &mut buf[..rows];
                    if accumulate {
                        convert::widen(self.dw_dtype, out, buf);
                    }
                    for (p, v) in buf.iter_mut().enumerate() {
                        *v += sum[p * columns + i];
                    }
                    convert::narrow(self.dw_dtype, buf, out);
                }
            }
        });
    }

    /// The sums of one chunk of images for one part of k.
    unsafe fn task<L: Lanes<El: Packed>>(
        &self,
        x: *const u8,
        dy: *const u8,
        (chunk, g, part): (usize, usize, usize),
        sum: *mut f32,
        slot: *mut L::El,
    ) {
        let c = &self.conv;
        let [oh, ow] = c.output();
        let (ci, co) = (c.cin_group(), c.cout_group());
        let columns = self.columns::<L>();
        let k0 = part * self.part;
        let k1 = (k0 + self.part).min(self.offsets.len());
        // SAFETY: the slot holds a padded block and the packed gradients of a block of rows.
        let (padded, packed) = unsafe { (slot, slot.add(self.padded_elements::<L>())) };
        let value = size_of::<f32>() / L::KU;
        let images = chunk * self.images..((chunk + 1) * self.images).min(c.n);
        let mut first = true;
        for n in images {
            for i0 in (0..oh).step_by(self.block) {
                let rows = self.block.min(oh - i0);
                // SAFETY: image n, group g, output rows i0..i0 + rows.
                unsafe {
                    let plane = c.input[0] * c.input[1];
                    let xe = (n * c.groups + g) * ci * plane;
                    let x = x.add(xe * self.x_dtype.size());
                    if L::KU == 1 {
                        self.copy_padded::<f32>(x, i0, padded.cast());
                    } else {
                        self.copy_padded::<u16>(x, i0, padded.cast());
                    }
                    let de = (n * c.groups + g) * co * oh * ow + i0 * ow;
                    let gradient = Strided {
                        ptr: dy.add(de * self.dy_dtype.size()),
                        dtype: self.dy_dtype,
                        sx: (oh * ow) as isize,
                        sk: 1,
                    };
                    L::El::pack(gradient, co, rows * ow, L::NR, packed);
                    for j in (0..columns).step_by(L::NR) {
                        let b = packed.add(j * rows * ow / L::KU);
                        for p in (k0..k1).step_by(L::MR) {
                            L::taps(
                                rows,
                                ow / L::KU,
                                padded.cast_const().cast(),
                                &self.offsets[p..p + L::MR],
                                c.stride[0] * self.padded[1] * value,
                                c.stride[1] * value * L::KU,
                                b,
                                sum.add(p * columns + j),
                                columns,
                                !first,
                            );
                        }
                    }
                }
                first = false;
            }
        }
        if first {
            // No images or no pixels: the sum is 0.
            for p in k0..k1 {
                // SAFETY: a row of this part's sums.
                unsafe { std::slice::from_raw_parts_mut(sum.add(p * columns), columns).fill(0.0) };
            }
        }
    }

    /// Copies the rows of x that output rows `i0..` read, with zeros around them.
    unsafe fn copy_padded<T: Plane>(&self, x: *const u8, i0: usize, out: *mut T) {
        let c = &self.conv;
        let [ph, pw] = self.padded;
        let [h, w] = c.input;
        let left = c.pad[1][0];
        let q0 = left.min(pw);
        let q1 = (left + w).min(pw);
        for channel in 0..c.cin_group() {
            for r in 0..ph {
                let row = i0 * c.stride[0] + r;
                let inside = row >= c.pad[0][0] && row < c.pad[0][0] + h && q1 > q0;
                // SAFETY: row r of this channel of the block, and a row of x if there is one.
                unsafe {
                    let out = out.add((channel * ph + r) * pw);
                    if !inside {
                        fill::<T>(out, pw);
                        continue;
                    }
                    fill::<T>(out, q0);
                    fill::<T>(out.add(q1), pw - q1);
                    let e = (channel * h + row - c.pad[0][0]) * w;
                    let src = x.add(e * self.x_dtype.size());
                    T::copy_row(self.x_dtype, src, None, q1 - q0, out.add(q0));
                }
            }
        }
    }
}

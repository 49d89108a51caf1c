//! Convolutions with one channel per group: too few products for a tile of sums, so each tap is a
//! multiply-add over a row of pixels.

use super::conv_shape::Conv2d;
use super::convert;
use super::epilogue::{Epilogue, Tile};
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use super::rows;
use crate::multiversion;
use precast_plan::DType;

multiversion! {
    /// `y[j] += a * x[j * step]`.
    fn add_scaled<L>(a: f32, x: &[f32], step: usize, y: &mut [f32]) {
        if step == 1 {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = L::fma(a, x, *y);
            }
        } else {
            for (y, x) in y.iter_mut().zip(x.chunks(step)) {
                *y = L::fma(a, x[0], *y);
            }
        }
    }

    /// `y[j * step] += a * x[j]`.
    fn add_scaled_apart<L>(a: f32, x: &[f32], step: usize, y: &mut [f32]) {
        for (y, &x) in y.chunks_mut(step).zip(x) {
            y[0] = L::fma(a, x, y[0]);
        }
    }
}

impl Conv2d {
    /// One channel of x and one of y per group.
    pub(crate) fn is_depthwise(&self) -> bool {
        self.groups == self.cin && self.groups == self.cout
    }

    /// Height and width of x with its padding.
    fn padded(&self) -> [usize; 2] {
        std::array::from_fn(|d| self.input[d] + self.pad[d][0] + self.pad[d][1])
    }

    /// Where tap `t` reads for output row `i`, in a padded plane.
    fn tap_at(&self, i: usize, t: usize) -> usize {
        let (th, tw) = (t / self.kernel[1], t % self.kernel[1]);
        (i * self.stride[0] + th * self.dilation[0]) * self.padded()[1] + tw * self.dilation[1]
    }

    fn depthwise_slot(&self) -> usize {
        let [ph, pw] = self.padded();
        let [oh, ow] = self.output();
        ph * pw + oh * ow + self.kernel[0] * self.kernel[1]
    }

    pub(crate) fn depthwise_scratch_bytes(&self) -> usize {
        piece_bytes::<f32>(self.depthwise_slot() * par::slots())
    }

    /// Copies a plane of x into a padded one.
    ///
    /// # Safety
    /// `x` is a plane of `dtype`.
    unsafe fn pad_plane(&self, x: *const u8, dtype: DType, out: &mut [f32]) {
        let [h, w] = self.input;
        let pw = self.padded()[1];
        out.fill(0.0);
        for r in 0..h {
            let at = (r + self.pad[0][0]) * pw + self.pad[1][0];
            // SAFETY: row r of the plane.
            unsafe { convert::widen(dtype, x.add(r * w * dtype.size()), &mut out[at..at + w]) };
        }
    }

    /// Forward, or with `back` the data gradient (source dy, target dx).
    ///
    /// # Safety
    /// The tensors have the shapes of the convolution and the given formats (source, weight,
    /// target); the target overlaps neither operand.
    pub(crate) unsafe fn depthwise(
        &self,
        back: bool,
        [source, weight, target]: [*mut u8; 3],
        [ts, tw, tt]: [DType; 3],
        epilogue: Option<&dyn Epilogue>,
        scratch: &mut [u8],
    ) {
        let [source, weight, target] = [source, weight, target].map(SharedPtr::new);
        let [ph, pw] = self.padded();
        let [oh, ow] = self.output();
        let [h, w] = self.input;
        let taps = self.kernel[0] * self.kernel[1];
        let slot_elements = self.depthwise_slot();
        let slots = Scratch::new(scratch).take::<f32>(slot_elements * par::slots());
        par::for_each(self.n * self.groups, &|plane, slot| {
            let channel = plane % self.groups;
            // SAFETY: each task writes its own plane of the target, and its own slot.
            unsafe {
                let slot = slots.get().add(slot * slot_elements);
                let padded = std::slice::from_raw_parts_mut(slot, ph * pw);
                let out = std::slice::from_raw_parts_mut(slot.add(ph * pw), oh * ow);
                let weights = std::slice::from_raw_parts_mut(slot.add(ph * pw + oh * ow), taps);
                convert::widen(tw, weight.get().add(channel * taps * tw.size()), weights);
                let (sy, sx) = (oh * ow * plane, h * w * plane);
                let (data, elements, cols) = if back {
                    let dy = source.get().add(sy * ts.size());
                    convert::widen(ts, dy, out);
                    padded.fill(0.0);
                    for (i, row) in out.chunks(ow).enumerate() {
                        for (t, &a) in weights.iter().enumerate() {
                            let dx = &mut padded[self.tap_at(i, t)..];
                            if self.stride[1] == 1 {
                                add_scaled(a, row, 1, &mut dx[..ow]);
                            } else {
                                add_scaled_apart(a, row, self.stride[1], dx);
                            }
                        }
                    }
                    // Together at the front: rows move towards the start, so in order.
                    for r in 0..h {
                        let at = (r + self.pad[0][0]) * pw + self.pad[1][0];
                        padded.copy_within(at..at + w, r * w);
                    }
                    (padded.as_mut_ptr(), sx, h * w)
                } else {
                    self.pad_plane(source.get().add(sx * ts.size()), ts, padded);
                    out.fill(0.0);
                    for (i, row) in out.chunks_mut(ow).enumerate() {
                        for (t, &a) in weights.iter().enumerate() {
                            add_scaled(a, &padded[self.tap_at(i, t)..], self.stride[1], row);
                        }
                    }
                    (out.as_mut_ptr(), sy, oh * ow)
                };
                let mut tile = Tile {
                    batch: plane / self.groups,
                    row0: channel,
                    col0: 0,
                    rows: 1,
                    cols,
                    data,
                    ld: cols,
                };
                if let Some(e) = epilogue {
                    e.apply(&mut tile);
                }
                convert::narrow(tt, tile.row_mut(0), target.get().add(elements * tt.size()));
            }
        });
    }

    /// The weight gradient; a task sums one channel over all images in order.
    ///
    /// # Safety
    /// As [`Conv2d::depthwise`], for x, dy and dw.
    pub(crate) unsafe fn depthwise_weight_grad(
        &self,
        [x, dy, dw]: [*mut u8; 3],
        [tx, ty, tw]: [DType; 3],
        accumulate: bool,
        scratch: &mut [u8],
    ) {
        let [x, dy, dw] = [x, dy, dw].map(SharedPtr::new);
        let [ph, pw] = self.padded();
        let [oh, ow] = self.output();
        let [h, w] = self.input;
        let taps = self.kernel[0] * self.kernel[1];
        let slot_elements = self.depthwise_slot();
        let slots = Scratch::new(scratch).take::<f32>(slot_elements * par::slots());
        par::for_each(self.groups, &|channel, slot| {
            // SAFETY: each task writes its own channel of dw, and its own slot.
            unsafe {
                let slot = slots.get().add(slot * slot_elements);
                let padded = std::slice::from_raw_parts_mut(slot, ph * pw);
                let grads = std::slice::from_raw_parts_mut(slot.add(ph * pw), oh * ow);
                let sums = std::slice::from_raw_parts_mut(slot.add(ph * pw + oh * ow), taps);
                let out = dw.get().add(channel * taps * tw.size());
                if accumulate {
                    convert::widen(tw, out, sums);
                } else {
                    sums.fill(0.0);
                }
                for n in 0..self.n {
                    let plane = n * self.groups + channel;
                    self.pad_plane(x.get().add(plane * h * w * tx.size()), tx, padded);
                    convert::widen(ty, dy.get().add(plane * oh * ow * ty.size()), grads);
                    for (t, sum) in sums.iter_mut().enumerate() {
                        for (i, row) in grads.chunks(ow).enumerate() {
                            let xs = &padded[self.tap_at(i, t)..];
                            *sum += if self.stride[1] == 1 {
                                rows::dot(&xs[..ow], row)
                            } else {
                                let xs = xs.iter().step_by(self.stride[1]);
                                xs.zip(row).map(|(x, g)| x * g).sum::<f32>()
                            };
                        }
                    }
                }
                convert::narrow(tw, sums, out);
            }
        });
    }
}

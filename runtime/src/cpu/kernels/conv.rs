//! Two-dimensional convolution in NCHW: forward and data gradient. (`conv_wgrad` has the weight
//! gradient.)
//!
//! Both are sums over taps of a source tensor (x, or the gradient of y) at shifted positions, so
//! one loop serves both; only the tables differ. A task copies the rows of the source that it needs
//! into a padded, widened block that stays in the second-level cache, and multiplies packed weights
//! with vectors of neighbouring pixels read in place, at a table of offsets: im2col is never formed.
//!
//! The data gradient of a strided convolution is split by the residue of the output position
//! modulo the stride (a phase); each phase sees a dense subset of the taps.

use super::conv_shape::Axis;
pub use super::conv_shape::Conv2d;
use super::convert;
use super::epilogue::{Epilogue, Tile};
use super::gemm::{Path, with_lanes};
use super::lanes::Lanes;
use super::pack::{Packed, Plane, fill};
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use precast_plan::DType;

/// The taps of a pair of phases.
#[derive(Clone, Debug)]
struct Grid {
    rows: usize,
    cols: usize,
    first: [usize; 2],
    /// Offset in the padded block, per element of k.
    offsets: Vec<usize>,
    /// Offset in the weight, per element of k; for pairs, of the first of the two.
    weights: Vec<usize>,
    /// Start of this grid's packed weights, within a group's.
    packed: usize,
}

/// A prepared convolution (or its data gradient): tables for one shape and one processor.
#[derive(Clone, Debug)]
pub struct ConvPlan {
    path: Path,
    conv: Conv2d,
    /// Channels of source and target per group, and their planes.
    source_channels: usize,
    target_channels: usize,
    source: [usize; 2],
    target: [usize; 2],
    /// The data gradient rather than the convolution.
    back: bool,
    axes: [Axis; 2],
    grids: Vec<Grid>,
    /// Grid rows in a task.
    block: usize,
    /// Shape of the padded block of one channel (or pair of channels).
    padded: [usize; 2],
    /// From one target channel, and from one group, to the next in the weight.
    weight_row: usize,
    weight_group: usize,
    /// From one source channel to the next in the weight.
    weight_channel: usize,
    /// Packed weights of a group, in elements.
    packed: usize,
    /// Where row p of a packed panel starts, for pixels that cannot be read in place.
    panel_offsets: Vec<usize>,
    source_dtype: DType,
    weight_dtype: DType,
    target_dtype: DType,
}

/// Pixels of a task, about.
const PIXELS: usize = 1024;

impl ConvPlan {
    /// `y = conv(x, w)`; formats of x, w and y.
    pub fn forward(conv: Conv2d, x: DType, w: DType, y: DType) -> ConvPlan {
        ConvPlan::forward_on(Path::select(x, w), conv, x, w, y)
    }

    /// `dx` from `dy` and `w`; formats of dy, w and dx.
    pub fn backward_data(conv: Conv2d, dy: DType, w: DType, dx: DType) -> ConvPlan {
        ConvPlan::backward_data_on(Path::select(dy, w), conv, dy, w, dx)
    }

    pub(crate) fn forward_on(path: Path, conv: Conv2d, x: DType, w: DType, y: DType) -> ConvPlan {
        let axes = [Axis::forward(&conv, 0), Axis::forward(&conv, 1)];
        ConvPlan::new(path, conv, axes, false, [x, w, y])
    }

    pub(crate) fn backward_data_on(
        path: Path,
        conv: Conv2d,
        dy: DType,
        w: DType,
        dx: DType,
    ) -> ConvPlan {
        let axes = [Axis::backward(&conv, 0), Axis::backward(&conv, 1)];
        ConvPlan::new(path, conv, axes, true, [dy, w, dx])
    }

    fn new(path: Path, conv: Conv2d, axes: [Axis; 2], back: bool, dtypes: [DType; 3]) -> ConvPlan {
        conv.check();
        let (ci, co) = (conv.cin_group(), conv.cout_group());
        let taps = conv.kernel[0] * conv.kernel[1];
        let (source_channels, target_channels) = if back { (co, ci) } else { (ci, co) };
        let (source, target) =
            if back { (conv.output(), conv.input) } else { (conv.input, conv.output()) };
        let (weight_row, weight_channel) = if back { (taps, ci * taps) } else { (ci * taps, taps) };
        let grid_rows = axes[0].phases.iter().map(|p| p.count).max().unwrap_or(0);
        let grid_cols = axes[1].phases.iter().map(|p| p.count).max().unwrap_or(0);
        let pixels = target[1] * axes[0].step_out;
        let block = (PIXELS / pixels.max(1)).clamp(1, grid_rows.max(1));
        // Equal blocks.
        let block = grid_rows.max(1).div_ceil(grid_rows.max(1).div_ceil(block));
        let padded = [axes[0].extent(block), axes[1].extent(grid_cols.max(1))];
        let (mr, nr, kc, ku) = with_lanes!(path, L => (L::MR, L::NR, L::KC, L::KU));
        let mut grids = Vec::new();
        let mut packed = 0;
        for ph in &axes[0].phases {
            for pw in &axes[1].phases {
                let (mut offsets, mut weights) = (Vec::new(), Vec::new());
                for c in 0..source_channels.div_ceil(ku) {
                    for &(th, oh) in &ph.taps {
                        for &(tw, ow) in &pw.taps {
                            let (r, q) = ((oh - axes[0].min) as usize, (ow - axes[1].min) as usize);
                            offsets.push((c * padded[0] + r) * padded[1] + q);
                            weights.push(c * ku * weight_channel + th * conv.kernel[1] + tw);
                        }
                    }
                }
                let k = offsets.len();
                grids.push(Grid {
                    rows: ph.count,
                    cols: pw.count,
                    first: [ph.first, pw.first],
                    offsets,
                    weights,
                    packed,
                });
                packed += target_channels.div_ceil(mr) * mr * k;
            }
        }
        ConvPlan {
            path,
            conv,
            source_channels,
            target_channels,
            source,
            target,
            back,
            axes,
            grids,
            block,
            padded,
            weight_row,
            weight_group: co * ci * taps,
            weight_channel,
            packed,
            panel_offsets: (0..kc).map(|p| p * nr).collect(),
            source_dtype: dtypes[0],
            weight_dtype: dtypes[1],
            target_dtype: dtypes[2],
        }
    }

    /// Elements of a padded block, with room for a vector that ends past its last row.
    fn padded_elements<L: Lanes>(&self) -> usize {
        self.source_channels.div_ceil(L::KU) * self.padded[0] * self.padded[1] + L::NR
    }

    fn tile_elements(&self) -> usize {
        self.target_channels * self.block * self.axes[0].step_out * self.target[1]
    }

    fn panel_elements<L: Lanes>(&self) -> usize {
        L::KC * L::NR
    }

    /// Scratch bytes for [`ConvPlan::run`] on the current pool.
    pub fn scratch_bytes(&self) -> usize {
        if self.conv.is_depthwise() {
            return self.conv.depthwise_scratch_bytes();
        }
        with_lanes!(self.path, L => {
            let slot = self.padded_elements::<L>() + self.panel_elements::<L>();
            piece_bytes::<<L as Lanes>::El>(self.packed * self.conv.groups)
                + piece_bytes::<<L as Lanes>::El>(slot * par::slots())
                + piece_bytes::<f32>(self.tile_elements() * par::slots())
        })
    }

    /// Computes the target, then applies the epilogue to tiles of it: a row is a target channel, a
    /// column a pixel. Tiles are whole rows of the plane, all channels of a group.
    ///
    /// # Safety
    /// The tensors have the shapes and formats of the plan; `target` overlaps neither operand.
    ///
    /// # Panics
    /// If `scratch` is smaller than [`ConvPlan::scratch_bytes`].
    pub unsafe fn run(
        &self,
        source: *const u8,
        weight: *const u8,
        target: *mut u8,
        epilogue: Option<&dyn Epilogue>,
        scratch: &mut [u8],
    ) {
        if self.conv.is_depthwise() {
            let tensors = [source.cast_mut(), weight.cast_mut(), target];
            let formats = [self.source_dtype, self.weight_dtype, self.target_dtype];
            // SAFETY: the caller's contract.
            unsafe { self.conv.depthwise(self.back, tensors, formats, epilogue, scratch) };
            return;
        }
        let call = Call { source, weight, target: SharedPtr::new(target), epilogue };
        // SAFETY: the caller's contract; the path was selected for this processor.
        with_lanes!(self.path, L => unsafe { self.run_with::<L>(&call, scratch) });
    }

    unsafe fn run_with<L: Lanes<El: Packed + Plane>>(&self, call: &Call<'_>, scratch: &mut [u8]) {
        let groups = self.conv.groups;
        let mut scratch = Scratch::new(scratch);
        let packed = scratch.take::<L::El>(self.packed * groups);
        let slot_elements = self.padded_elements::<L>() + self.panel_elements::<L>();
        let slots = scratch.take::<L::El>(slot_elements * par::slots());
        let tiles = scratch.take::<f32>(self.tile_elements() * par::slots());

        let slivers = self.target_channels.div_ceil(L::MR);
        par::for_each(groups * slivers, &|task, _| {
            let (g, s) = (task / slivers, task % slivers);
            for grid in &self.grids {
                // SAFETY: each task writes its own sliver of each grid.
                unsafe {
                    let first = packed.get().add(g * self.packed + grid.packed);
                    self.pack_weights::<L>(call.weight, g, s, grid, first);
                }
            }
        });

        let grid_rows = self.grids.iter().map(|g| g.rows).max().unwrap_or(0);
        let blocks = grid_rows.div_ceil(self.block);
        par::for_each(self.conv.n * groups * blocks, &|task, slot| {
            let (ng, block) = (task / blocks, task % blocks);
            let (n, g) = (ng / groups, ng % groups);
            // SAFETY: each task writes its own rows of the target and its own slot.
            unsafe {
                let slot_el = slots.get().add(slot * slot_elements);
                let tile = tiles.get().add(slot * self.tile_elements());
                let weights = packed.get().add(g * self.packed).cast_const();
                self.task::<L>(call, (n, g, block * self.block), weights, slot_el, tile);
            }
        });
    }

    /// Rows of sliver `s`: slivers are equal to within a row, since a tile of `r < MR` rows takes
    /// `r / MR` of the time of a full one.
    fn sliver<L: Lanes>(&self, s: usize) -> (usize, usize) {
        let m = self.target_channels;
        let slivers = m.div_ceil(L::MR);
        let start = |s: usize| s * m / slivers;
        (start(s), start(s + 1) - start(s))
    }

    /// Packs one sliver of one grid: `out[p * MR + i]`, block of k by block of k.
    unsafe fn pack_weights<L: Lanes<El: Packed + Plane>>(
        &self,
        weight: *const u8,
        group: usize,
        s: usize,
        grid: &Grid,
        out: *mut L::El,
    ) {
        let (row0, rows) = self.sliver::<L>(s);
        let k = grid.weights.len();
        let size = self.weight_dtype.size();
        for i in 0..L::MR {
            let base = group * self.weight_group + (row0 + i) * self.weight_row;
            for (p, &e) in grid.weights.iter().enumerate() {
                // The last pair of an odd number of channels has one weight.
                let channel = p / (k / self.source_channels.div_ceil(L::KU)) * L::KU;
                let both = channel + 1 < self.source_channels;
                // SAFETY: a weight of row row0 + i < target_channels; the sliver has k * MR elements.
                unsafe {
                    let at = |e: usize| weight.add((base + e) * size);
                    let v = if i < rows {
                        let second = both.then(|| at(e + self.weight_channel));
                        L::El::from_weights(self.weight_dtype, at(e), second)
                    } else {
                        L::El::zero()
                    };
                    out.add(s * L::MR * k + p * L::MR + i).write(v);
                }
            }
        }
    }

    unsafe fn task<L: Lanes<El: Packed + Plane>>(
        &self,
        call: &Call<'_>,
        (n, g, i0): (usize, usize, usize),
        weights: *const L::El,
        padded: *mut L::El,
        tile: *mut f32,
    ) {
        let [th, tw] = self.target;
        let plane = th * tw;
        let step = self.axes[0].step_out;
        // Rows of the target in this task.
        let (h0, h1) = (i0 * step, ((i0 + self.block) * step).min(th));
        let channel0 = g * self.target_channels;
        let first = (n * self.conv.groups * self.target_channels + channel0) * plane + h0 * tw;
        let direct = self.target_dtype == DType::F32;
        // SAFETY: the rows h0..h1 of this group's channels.
        let (data, ld) = unsafe {
            if direct {
                (call.target.get().cast::<f32>().add(first), plane)
            } else {
                (tile, (h1 - h0) * tw)
            }
        };
        // SAFETY: the slot has room for a padded block and a panel.
        unsafe {
            let source_plane = self.source[0] * self.source[1];
            let source_first = (n * self.conv.groups + g) * self.source_channels * source_plane;
            let source = call.source.add(source_first * self.source_dtype.size());
            self.copy_padded::<L>(source, i0, padded);
            let panel = padded.add(self.padded_elements::<L>());
            for grid in &self.grids {
                self.grid::<L>(grid, (i0, h0), weights, padded, panel, data, ld);
            }
        }
        let mut tile = Tile {
            batch: n,
            row0: channel0,
            col0: h0 * tw,
            rows: self.target_channels,
            cols: (h1 - h0) * tw,
            data,
            ld,
        };
        if let Some(e) = call.epilogue {
            e.apply(&mut tile);
        }
        if !direct {
            for c in 0..self.target_channels {
                let e = (first + c * plane) * self.target_dtype.size();
                // SAFETY: the rows h0..h1 of channel c.
                unsafe {
                    convert::narrow(self.target_dtype, tile.row_mut(c), call.target.get().add(e));
                }
            }
        }
    }

    /// Copies the source rows that grid rows `i0..` read, with zeros around them.
    unsafe fn copy_padded<L: Lanes<El: Packed + Plane>>(
        &self,
        source: *const u8,
        i0: usize,
        out: *mut L::El,
    ) {
        let [ph, pw] = self.padded;
        let [sh, sw] = self.source;
        let top = (i0 * self.axes[0].step_in) as isize + self.axes[0].min;
        let left = self.axes[1].min;
        // Columns of the block that exist in the source.
        let q0 = (-left).clamp(0, pw as isize) as usize;
        let q1 = (sw as isize - left).clamp(q0 as isize, pw as isize) as usize;
        let size = self.source_dtype.size();
        for c in 0..self.source_channels.div_ceil(L::KU) {
            let both = c * L::KU + 1 < self.source_channels;
            for r in 0..ph {
                let h = top + r as isize;
                // SAFETY: row r of channel c of the block; source row h if it exists.
                unsafe {
                    let row = out.add((c * ph + r) * pw);
                    if h < 0 || h >= sh as isize || q0 == q1 {
                        fill::<L::El>(row, pw);
                        continue;
                    }
                    fill::<L::El>(row, q0);
                    fill::<L::El>(row.add(q1), pw - q1);
                    let w = (left + q0 as isize) as usize;
                    let e = (c * L::KU * sh + h as usize) * sw + w;
                    let first = source.add(e * size);
                    let second = (both && L::KU == 2).then(|| first.add(sh * sw * size));
                    L::El::copy_row(self.source_dtype, first, second, q1 - q0, row.add(q0));
                }
            }
        }
        // What a vector that ends past the last row may read.
        let end = self.padded_elements::<L>();
        // SAFETY: the last NR elements of the block.
        unsafe { fill::<L::El>(out.add(end - L::NR), L::NR) };
    }

    /// Multiplies the pixels of one phase into the tile whose first row is target row `h0`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn grid<L: Lanes<El: Packed + Plane>>(
        &self,
        grid: &Grid,
        (i0, h0): (usize, usize),
        weights: *const L::El,
        padded: *const L::El,
        panel: *mut L::El,
        data: *mut f32,
        ld: usize,
    ) {
        let rows = self.block.min(grid.rows.saturating_sub(i0));
        let k = grid.offsets.len();
        let (sh, sw) = (self.axes[0].step_in, self.axes[1].step_in);
        let step = [self.axes[0].step_out, self.axes[1].step_out];
        let tw = self.target[1];
        // Column of the tile of grid position (i, j).
        let column = |i: usize, j: usize| {
            (grid.first[0] + (i0 + i) * step[0] - h0) * tw + grid.first[1] + j * step[1]
        };
        if k == 0 {
            for c in 0..self.target_channels {
                for i in 0..rows {
                    for j in 0..grid.cols {
                        // SAFETY: a pixel of the tile.
                        unsafe { *data.add(c * ld + column(i, j)) = 0.0 };
                    }
                }
            }
            return;
        }
        // Vectors lie inside a row. In place if few of their lanes are lost at its end.
        let per_row = grid.cols.div_ceil(L::N);
        let in_place = sw == 1 && grid.cols * 4 >= per_row * L::N * 3;
        let vectors = if in_place { rows * per_row } else { (rows * grid.cols).div_ceil(L::N) };
        let slivers = self.target_channels.div_ceil(L::MR);
        let kc = k.div_ceil(k.div_ceil(L::KC));
        let nv = L::NR / L::N;
        let mut edge = [0f32; 12 * 32];
        for k0 in (0..k).step_by(kc) {
            let kc = kc.min(k - k0);
            let accumulate = k0 > 0;
            for v0 in (0..vectors).step_by(nv) {
                // Where the lanes of this panel come from and go to.
                let mut lanes = [(0usize, 0usize); 32];
                let mut bases = [padded; 2];
                let mut valid = [0usize; 2];
                for v in 0..nv.min(vectors - v0) {
                    let at = v0 + v;
                    let lanes = &mut lanes[v * L::N..][..L::N];
                    if in_place {
                        let (i, j0) = (at / per_row, at % per_row * L::N);
                        valid[v] = L::N.min(grid.cols - j0);
                        // SAFETY: a position of the block.
                        bases[v] = unsafe { padded.add(i * sh * self.padded[1] + j0) };
                        for (l, lane) in lanes[..valid[v]].iter_mut().enumerate() {
                            *lane = (0, column(i, j0 + l));
                        }
                    } else {
                        let q0 = at * L::N;
                        valid[v] = L::N.min(rows * grid.cols - q0);
                        for (l, lane) in lanes[..valid[v]].iter_mut().enumerate() {
                            let (i, j) = ((q0 + l) / grid.cols, (q0 + l) % grid.cols);
                            *lane = (i * sh * self.padded[1] + j * sw, column(i, j));
                        }
                    }
                }
                if !in_place {
                    for (p, &o) in grid.offsets[k0..k0 + kc].iter().enumerate() {
                        for (l, lane) in lanes[..L::NR].iter().enumerate() {
                            // SAFETY: the panel has KC * NR elements.
                            unsafe { *panel.add(p * L::NR + l) = *padded.add(o + lane.0) };
                        }
                    }
                }
                let c0 = lanes[0].1;
                let full = valid[..nv].iter().all(|&v| v == L::N)
                    && lanes[..L::NR].iter().enumerate().all(|(l, lane)| lane.1 == c0 + l);
                for s in 0..slivers {
                    let (row0, rows) = self.sliver::<L>(s);
                    // SAFETY: packed weights of this sliver from k0 on; rows of the tile.
                    unsafe {
                        let a = weights.add(grid.packed + s * L::MR * k + k0 * L::MR);
                        let c = data.add(row0 * ld);
                        let (out, out_ld) =
                            if full { (c.add(c0), ld) } else { (edge.as_mut_ptr(), L::NR) };
                        let add = accumulate && full;
                        let off = if in_place {
                            grid.offsets.as_ptr().add(k0)
                        } else {
                            bases = [panel.cast_const(), panel.add(L::N).cast_const()];
                            self.panel_offsets.as_ptr()
                        };
                        L::gather(rows, kc, a, &bases[..nv], off, out, out_ld, add);
                        if full {
                            continue;
                        }
                        for i in 0..rows {
                            for (v, &valid) in valid[..nv].iter().enumerate() {
                                for l in v * L::N..v * L::N + valid {
                                    let dst = c.add(i * ld + lanes[l].1);
                                    let x = edge[i * L::NR + l];
                                    *dst = if accumulate { *dst + x } else { x };
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a call works on.
struct Call<'a> {
    source: *const u8,
    weight: *const u8,
    target: SharedPtr<u8>,
    epilogue: Option<&'a dyn Epilogue>,
}

// SAFETY: the addresses are shared read-only, except the target, of which each task writes a part.
unsafe impl Sync for Call<'_> {}

#[cfg(test)]
#[path = "conv_tests.rs"]
mod tests;

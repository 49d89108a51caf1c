//! Decides, once at load, how an instance is laid over tiles and units of work. Every decision
//! depends on shapes alone, so results do not depend on the number of threads.

use super::geom::{Dims, Space, Steps, Strides, coalesce};
use super::io::Port;
use super::lower::{Class, Code, Form, RowForm, Style, lower};
use precast_plan::{DType, Instr, Program, RegInfo};

/// A tensor bound to a port of an instance.
#[derive(Clone, Debug)]
pub struct Bound {
    /// First byte of the tensor.
    pub ptr: *mut u8,
    /// Bytes of the tensor.
    pub bytes: usize,
    pub dtype: DType,
    /// In elements.
    pub offset: u64,
    /// In elements, one per axis of the space.
    pub strides: Vec<i64>,
}

impl Bound {
    fn overlaps(&self, other: &Bound) -> bool {
        let (a, b) = (self.ptr as usize, other.ptr as usize);
        a < b + other.bytes && b < a + self.bytes
    }
}

/// Lanes of a full tile: registers of this many lanes, a dozen of them, fit the first-level cache.
const LANES: usize = 1024;
/// Longest row that is kept whole in registers; longer ones take one pass per stage.
const WHOLE_ROW: usize = 4096;
/// Fewest groups of rows that are worth spreading over threads without splitting rows.
const MANY_GROUPS: usize = 16;
/// Elements from which a reduction with few groups is split over threads.
const SPLIT_ELEMENTS: usize = 1 << 17;
/// Most partial results of one row.
const MOST_CHUNKS: usize = 128;

/// One iteration space, ready to run.
pub struct Inst {
    pub code: usize,
    pub space: Space,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Coordinates read by `index` instructions, as offsets.
    pub index: Vec<Strides>,
    /// The linear index of a point in the original space, as an offset.
    pub linear: Strides,
    /// Outer and inner extent of a full tile.
    pub tile: (usize, usize),
    /// Are the reduced axes the outer ones?
    pub columns: bool,
    pub style: Style,
    /// Groups of rows that share a tile's row registers ([`Style::Passes`]), or tiles.
    pub groups: usize,
    /// Reduced indices of one chunk, and how many chunks make a row.
    pub chunk: usize,
    pub chunks: usize,
    /// Chunks of one group may run on several threads.
    pub split: bool,
    /// Element operations, roughly.
    pub cost: usize,
}

impl Inst {
    /// Lanes of a row register.
    pub fn row_lanes(&self) -> usize {
        if self.columns { self.tile.1 } else { self.tile.0 }
    }

    /// Lanes of an element register.
    pub fn elem_lanes(&self) -> usize {
        self.tile.0 * self.tile.1
    }
}

/// Prepares one instance; `codes` collects lowered programs, shared between instances.
pub fn prepare(
    program: &Program,
    infos: &[RegInfo],
    dims: &[usize],
    reduced: usize,
    inputs: &[Bound],
    outputs: &[Bound],
    codes: &mut Vec<(Form, Code)>,
) -> Inst {
    let kept = dims.len() - reduced;
    let index_axes: Vec<usize> = program
        .code
        .iter()
        .filter_map(|i| if let Instr::Index { axis } = i { Some(*axis as usize) } else { None })
        .collect();
    let uses_linear = program.code.iter().any(|i| matches!(i, Instr::Uniform { .. }));
    let mut linear = Steps::from_elem(1, dims.len());
    for d in (0..dims.len().saturating_sub(1)).rev() {
        linear[d] = linear[d + 1] * dims[d + 1] as i64;
    }
    // All ports, then the coordinates, then the linear index (constant where nobody reads it).
    let mut strides: Vec<Steps> =
        inputs.iter().chain(outputs).map(|b| Steps::from_slice(&b.strides)).collect();
    for &axis in &index_axes {
        let mut s = Steps::from_elem(0, dims.len());
        s[axis] = 1;
        strides.push(s);
    }
    strides.push(if uses_linear { linear } else { Steps::from_elem(0, dims.len()) });

    let rows = program.reduces()
        || reduced > 0 && program.outputs.iter().any(|o| infos[o.reg as usize].row);
    let part = |range: std::ops::Range<usize>| -> (Dims, Vec<Steps>) {
        let cut: Vec<Steps> =
            strides.iter().map(|s| Steps::from_slice(&s[range.clone()])).collect();
        coalesce(&dims[range], &cut)
    };
    let layout = if rows {
        Layout::rows(part(0..kept), part(kept..dims.len()), inputs)
    } else {
        Layout::flat(part(0..dims.len()), inputs.len())
    };
    let Layout { space, outer_steps, inner_steps, columns, tile, style } = layout;
    let port = |i: usize, base: u64| Strides {
        base: base as i64,
        outer: outer_steps[i].clone(),
        inner: inner_steps[i].clone(),
    };
    let ports = |from: usize, list: &[Bound]| -> Vec<Port> {
        list.iter()
            .enumerate()
            .map(|(i, b)| Port { ptr: b.ptr, dtype: b.dtype, strides: port(from + i, b.offset) })
            .collect()
    };
    let in_ports = ports(0, inputs);
    let out_ports = ports(inputs.len(), outputs);
    let virt = inputs.len() + outputs.len();
    let index: Vec<Strides> = (0..index_axes.len()).map(|k| port(virt + k, 0)).collect();
    let linear = port(virt + index_axes.len(), 0);

    let class = |s: &Strides| {
        let still =
            |steps: &Steps, len: &Dims| steps.iter().zip(len).all(|(&s, &n)| s == 0 || n == 1);
        let outer = still(&s.outer, &space.outer);
        let inner = still(&s.inner, &space.inner);
        let (along_kept, along_reduced) = if columns { (inner, outer) } else { (outer, inner) };
        match (outer && inner, rows && along_reduced) {
            (true, _) => Class::Scalar,
            (_, true) if !along_kept => Class::Row,
            _ => Class::Elem,
        }
    };
    let contiguous = |s: &Strides| {
        s.step() == 1 && space.is_one_run(s, tile.0, tile.1) || space.inner_len == 1 && tile.0 == 1
    };
    let mut k = 0;
    let form = Form {
        style,
        row_form: match (columns, tile.0) {
            (false, 1) => RowForm::Scalar,
            (true, 1) => RowForm::Lanes,
            _ => RowForm::Spread,
        },
        rows,
        inputs: in_ports.iter().map(|p| class(&p.strides)).collect(),
        direct_in: in_ports
            .iter()
            .map(|p| matches!(p.dtype, DType::F32 | DType::I32) && contiguous(&p.strides))
            .collect(),
        direct_out: out_ports
            .iter()
            .zip(outputs)
            .map(|(p, b)| {
                p.dtype == DType::F32
                    && contiguous(&p.strides)
                    && !inputs.iter().any(|i| i.overlaps(b))
            })
            .collect(),
        index: program
            .code
            .iter()
            .map(|i| {
                if matches!(i, Instr::Index { .. }) {
                    k += 1;
                    class(&index[k - 1])
                } else {
                    Class::Scalar
                }
            })
            .collect(),
    };
    let code = codes.iter().position(|(f, _)| *f == form).unwrap_or_else(|| {
        let code = lower(program, infos, &form);
        codes.push((form, code));
        codes.len() - 1
    });
    let c = &codes[code].1;
    let ops =
        c.body.len() + c.stores.len() + c.passes.iter().map(|p| p.elem.len() + 1).sum::<usize>();
    let points = space.outer_len * space.inner_len;

    let mut inst = Inst {
        code,
        inputs: in_ports,
        outputs: out_ports,
        index,
        linear,
        tile,
        columns,
        style,
        groups: 0,
        chunk: 0,
        chunks: 1,
        split: false,
        cost: points * ops.max(1) + 64,
        space,
    };
    match style {
        Style::Whole => {
            let (o, i) = tile;
            inst.groups = inst.space.outer_len.div_ceil(o) * inst.space.inner_len.div_ceil(i);
        }
        Style::Passes => {
            let (reduced_len, step) = if columns {
                inst.groups = inst.space.inner_len.div_ceil(tile.1);
                (inst.space.outer_len, tile.0)
            } else {
                inst.groups = inst.space.outer_len;
                (inst.space.inner_len, tile.1)
            };
            let least = reduced_len.div_ceil(MOST_CHUNKS).next_multiple_of(step);
            inst.chunk = least.max(32 * step).min(reduced_len.next_multiple_of(step));
            inst.chunks = reduced_len.div_ceil(inst.chunk);
            inst.split = inst.groups < MANY_GROUPS && points >= SPLIT_ELEMENTS && inst.chunks > 1;
        }
    }
    inst
}

struct Layout {
    space: Space,
    outer_steps: Vec<Steps>,
    inner_steps: Vec<Steps>,
    columns: bool,
    tile: (usize, usize),
    style: Style,
}

impl Layout {
    /// No rows: one group of axes, or two where an input is transposed against the outputs.
    fn flat((dims, steps): (Dims, Vec<Steps>), inputs: usize) -> Layout {
        let last = dims.len() - 1;
        // An axis that some input walks contiguously while it jumps along the last one.
        let across = steps[..inputs].iter().find_map(|s| {
            let jumps = s[last].unsigned_abs() > 1 && dims[last] >= 4;
            (0..last).rev().find(|&d| jumps && s[d] == 1 && dims[d] >= 4)
        });
        if let Some(axis) = across {
            let order: Vec<usize> = (0..last).filter(|&d| d != axis).chain([axis]).collect();
            let outer: Dims = order.iter().map(|&d| dims[d]).collect();
            let outer_steps = steps.iter().map(|s| order.iter().map(|&d| s[d]).collect()).collect();
            let inner_steps = steps.iter().map(|s| Steps::from_elem(s[last], 1)).collect();
            let i = dims[last].min(64);
            let o = dims[axis].min(LANES / i);
            let space = Space::new(outer, Dims::from_elem(dims[last], 1));
            return Layout {
                space,
                outer_steps,
                inner_steps,
                columns: false,
                tile: (o, i),
                style: Style::Whole,
            };
        }
        let outer_steps = vec![Steps::from_elem(0, 1); steps.len()];
        let space = Space::new(Dims::from_elem(1, 1), dims);
        let tile = (1, space.inner_len.min(LANES));
        Layout { space, outer_steps, inner_steps: steps, columns: false, tile, style: Style::Whole }
    }

    /// Kept and reduced axes: lanes run along whichever the inputs walk contiguously.
    fn rows(
        (kept, kept_steps): (Dims, Vec<Steps>),
        (red, red_steps): (Dims, Vec<Steps>),
        inputs: &[Bound],
    ) -> Layout {
        let bytes = |steps: &[Steps]| -> usize {
            let contiguous = |s: &Steps| *s.last().expect("an axis") == 1;
            let list = inputs.iter().zip(steps).filter(|(_, s)| contiguous(s));
            list.map(|(b, _)| b.dtype.size()).sum()
        };
        // Inputs that vary along both groups decide; a vector along one group does not.
        let both: Vec<usize> = (0..inputs.len())
            .filter(|&i| {
                kept_steps[i].iter().any(|&s| s != 0) && red_steps[i].iter().any(|&s| s != 0)
            })
            .collect();
        let of = |steps: &[Steps]| -> usize {
            both.iter()
                .filter(|&&i| *steps[i].last().expect("an axis") == 1)
                .map(|&i| inputs[i].dtype.size())
                .sum()
        };
        let (along_kept, along_reduced) = if both.is_empty() {
            (0, bytes(&red_steps))
        } else {
            (of(&kept_steps), of(&red_steps))
        };
        let kept_len: usize = kept.iter().product();
        let red_len: usize = red.iter().product();
        let columns = along_kept > along_reduced && kept_len > 1;
        if columns {
            let i = kept_len.min(LANES);
            let o = if i >= 256 { 1 } else { (LANES / i).min(red_len) };
            let space = Space::new(red, kept);
            return Layout {
                space,
                outer_steps: red_steps,
                inner_steps: kept_steps,
                columns,
                tile: (o, i),
                style: Style::Passes,
            };
        }
        let space = Space::new(kept, red);
        let (tile, style) = if red_len <= WHOLE_ROW {
            (((LANES / red_len).max(1).min(kept_len), red_len), Style::Whole)
        } else {
            ((1, LANES), Style::Passes)
        };
        Layout { space, outer_steps: kept_steps, inner_steps: red_steps, columns, tile, style }
    }
}

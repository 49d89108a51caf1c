//! Products whose operands are found through index maps: matrix products of any strides, and
//! convolutions as implicit products.

use super::end::{End, end};
use super::text::{Head, MMA, Params, Size, blocks, c_type, dtype, launch, small};
use crate::cuda::launch::{Arg, Facts, Lowered, Task};
use crate::error::Result;
use precast_plan::{Access, DType, Epilogue, Math, Plan};

/// An index as a number of three digits, each with a step in elements, in rows and in columns of
/// an image.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    /// Extents of the digits, slowest first.
    pub d: [u64; 3],
    pub s: [i64; 3],
    pub y: [i64; 3],
    pub x: [i64; 3],
    /// What index 0 contributes: elements, row, column.
    pub at: [i64; 3],
}

impl Map {
    /// Digits of extents `d` with steps `s`, outside images.
    pub fn new(d: [u64; 3], s: [i64; 3]) -> Map {
        Map { d, s, y: [0; 3], x: [0; 3], at: [0; 3] }
    }

    /// One digit.
    pub fn line(n: u64, s: i64) -> Map {
        Map::new([1, 1, n], [0, 0, s])
    }

    pub fn len(&self) -> u64 {
        self.d.iter().product()
    }

    /// Least and greatest of what an index contributes to a row or column.
    fn range(&self, steps: [i64; 3], at: i64) -> (i64, i64) {
        let reach = self.d.iter().zip(steps).map(|(&n, s)| (n as i64 - 1).max(0) * s);
        reach.fold((at, at), |(low, high), r| (low + r.min(0), high + r.max(0)))
    }

    /// Digits that walk on where the next one ends become one; those of extent 1 go to the front.
    fn merged(&self) -> Map {
        let mut list: Vec<(u64, [i64; 3])> = vec![];
        for i in 0..3 {
            let step = [self.s[i], self.y[i], self.x[i]];
            match list.last_mut() {
                _ if self.d[i] == 1 => {}
                Some((n, last)) if (0..3).all(|k| last[k] == step[k] * self.d[i] as i64) => {
                    *n *= self.d[i];
                    *last = step;
                }
                _ => list.push((self.d[i], step)),
            }
        }
        while list.len() < 3 {
            list.insert(0, (1, [0; 3]));
        }
        let column = |k: usize| [list[0].1[k], list[1].1[k], list[2].1[k]];
        let d = [list[0].0, list[1].0, list[2].0];
        Map { d, s: column(0), y: column(1), x: column(2), at: self.at }
    }

    fn plain(&self) -> bool {
        self.d[0] == 1 && self.d[1] == 1
    }
}

/// One side of a product.
#[derive(Clone, Debug)]
pub(super) struct Operand<'a> {
    pub access: &'a Access,
    /// Rows of a, or columns of b.
    pub outer: Map,
    pub k: Map,
    /// Rows and columns of the image that elements must lie in; `None` where all exist.
    pub image: Option<[u64; 2]>,
    /// Elements between matrices along both batch axes.
    pub batch: [i64; 2],
}

/// Where results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// (z0, z1, row, column).
    Matrix,
    /// Rows are channels, columns pixels (image, row, column).
    Pixels,
    /// Rows are output channels, columns (channel, kernel row, kernel column).
    Filter,
    /// As [`Kind::Filter`], columns (kernel row, kernel column, channel).
    FilterLast,
}

/// A product to lower.
pub(super) struct Product<'a> {
    pub family: &'static str,
    pub kind: Kind,
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub batch: [u64; 2],
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    pub math: Math,
    pub epilogue: &'a Epilogue,
    /// Extents of the result's axes.
    pub dims: [u64; 4],
    /// Extents of the last two digits of a column, then first row, step of rows, first column,
    /// step of columns.
    pub columns: ([u64; 2], [u64; 4]),
}

/// The format that operands are multiplied in, if tensor cores take it: exact for both.
pub(super) fn tensor_format(a: DType, b: DType) -> Option<DType> {
    let eight = |d| matches!(d, DType::F8e4m3 | DType::F8e5m2);
    match (a, b) {
        (DType::F16, DType::F16) | (DType::Bf16, DType::Bf16) => Some(a),
        (x, y) if eight(x) && eight(y) => Some(DType::F16),
        (x, y @ (DType::F16 | DType::Bf16)) | (y @ (DType::F16 | DType::Bf16), x) if eight(x) => {
            Some(y)
        }
        _ => None,
    }
}

/// What the text must know of one side.
struct Plane {
    outer: Map,
    k: Map,
    check: bool,
    /// Threads side by side along the outer index.
    lanes_outer: bool,
    /// 16 bytes at a time.
    vec: bool,
}

fn plane(plan: &Plan, o: &Operand, format: DType) -> Plane {
    let own = dtype(plan, o.access);
    let mut check = false;
    if let Some([h, w]) = o.image {
        let sum = |a: (i64, i64), b: (i64, i64)| (a.0 + b.0, a.1 + b.1);
        let y = sum(o.outer.range(o.outer.y, o.outer.at[1]), o.k.range(o.k.y, o.k.at[1]));
        let x = sum(o.outer.range(o.outer.x, o.outer.at[2]), o.k.range(o.k.x, o.k.at[2]));
        check = y.0 < 0 || y.1 >= h as i64 || x.0 < 0 || x.1 >= w as i64;
    }
    let (mut outer, mut k) = (o.outer.clone(), o.k.clone());
    if !check {
        for map in [&mut outer, &mut k] {
            map.y = [0; 3];
            map.x = [0; 3];
            map.at = [map.at[0], 0, 0];
        }
    }
    let (outer, k) = (outer.merged(), k.merged());
    let per = 16 / own.size() as i64;
    let whole = |s: i64| s % per == 0;
    let vec = |lane: &Map, other: &Map| {
        own == format
            && lane.s[2] == 1
            && whole(lane.d[2] as i64)
            && lane.y[2] == 0
            && lane.x[2] == 0
            && whole(lane.s[0])
            && whole(lane.s[1])
            && other.s.iter().all(|&s| whole(s))
            && whole(lane.at[0] + other.at[0] + o.access.offset as i64)
            && o.batch.iter().all(|&s| whole(s))
    };
    let (by_outer, by_k) = (vec(&outer, &k), vec(&k, &outer));
    let step = |m: &Map| if m.len() == 1 { i64::MAX } else { m.s[2].abs() };
    let near = |m: &Map| if step(m) == 0 { i64::MAX } else { step(m) };
    let lanes_outer = by_outer || !by_k && near(&outer) <= near(&k);
    Plane { outer, k, check, lanes_outer, vec: by_outer || by_k }
}

/// How the result is cut up.
#[derive(Clone, Copy, Debug)]
struct Cut {
    bm: u64,
    bn: u64,
    bk: u64,
    /// Fragments per warp (tensor cores) or rows and columns per thread.
    fm: u64,
    fn_: u64,
    warps_n: u64,
    threads: u64,
}

fn cut(p: &Product, tensor: bool, facts: &Facts) -> Cut {
    let tiles = |bm: u64, bn: u64| {
        p.m.div_ceil(bm).saturating_mul(p.n.div_ceil(bn)).saturating_mul(p.batch[0] * p.batch[1])
    };
    let few = tiles(128, 128) < u64::from(facts.multiprocessors);
    let side = |n: u64| if n <= 64 || few { 64 } else { 128 };
    let (bm, bn) = (side(p.m), side(p.n));
    if !tensor {
        let (fm, fn_) = (bm / 16, bn / 16);
        return Cut { bm, bn, bk: 16, fm, fn_, warps_n: 1, threads: 256 };
    }
    let (fm, fn_, warps_n, threads) = match (bm, bn) {
        (128, 128) => (4, 4, 4, 256),
        (64, 64) => (2, 4, 2, 128),
        (128, _) => (4, 4, 2, 128),
        _ => (4, 4, 4, 128),
    };
    Cut { bm, bn, bk: 32, fm, fn_, warps_n, threads }
}

/// Parts of k, and the length of one: enough blocks to fill the device, each with work to do.
fn split(p: &Product, c: &Cut, facts: &Facts) -> (u64, u64) {
    let batches = p.batch[0] * p.batch[1];
    let tiles = p.m.div_ceil(c.bm) * p.n.div_ceil(c.bn) * batches;
    let wanted = (2 * u64::from(facts.multiprocessors)).div_ceil(tiles);
    let memory = (1 << 28) / (p.m * p.n * batches * 4).max(1);
    let parts = wanted.min(p.k / (8 * c.bk)).min(memory).min(256);
    if tiles >= u64::from(facts.multiprocessors) || parts < 2 {
        return (1, p.k.next_multiple_of(c.bk).max(c.bk));
    }
    let part = p.k.div_ceil(parts).next_multiple_of(c.bk);
    (p.k.div_ceil(part), part)
}

/// Neighbours that one thread finishes together, along which axis of the result.
fn lanes(p: &Product) -> (usize, bool) {
    let (row, column) = match p.kind {
        Kind::Matrix => (2, 3),
        Kind::Pixels => (1, 3),
        Kind::Filter => (0, 3),
        Kind::FilterLast => (0, 1),
    };
    let out = &p.epilogue.outputs[0].strides;
    let rows_fast = p.m > 1 && out[row] == 1 && (out[column] != 1 || p.n == 1);
    (if rows_fast { row } else { column }, rows_fast)
}

fn wide_lanes(p: &Product, e: &End, rows_fast: bool) -> u64 {
    let width = e.width;
    let fits = match (rows_fast, p.kind) {
        (true, _) => p.m.is_multiple_of(width),
        (false, Kind::Matrix) => p.n.is_multiple_of(width),
        (false, _) => p.columns.0[1].is_multiple_of(width) && p.columns.1[3] == 1,
    };
    if fits { width } else { 1 }
}

/// Appends the launches of a product.
pub(super) fn lower(plan: &Plan, p: &Product, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let (da, db) = (dtype(plan, p.a.access), dtype(plan, p.b.access));
    let format = tensor_format(da, db).filter(|_| facts.capability >= (8, 0));
    let tensor = format.is_some();
    let format = format.unwrap_or(DType::F32);
    let c = cut(p, tensor, facts);
    let (parts, part) = split(p, &c, facts);
    let (a, b) = (plane(plan, &p.a, format), plane(plan, &p.b, format));
    let elements = |x: &Access| plan.tensors[x.tensor as usize].shape.iter().product::<u64>();
    let far = elements(p.a.access).max(elements(p.b.access)) >= 1 << 30;
    let (lane_axis, rows_fast) = lanes(p);
    let epilogue = end(plan, p.epilogue, &p.dims, lane_axis)?;
    let width = if parts > 1 { 1 } else { wide_lanes(p, &epilogue, rows_fast) };

    let pad = if tensor { 8 } else { 4 };
    let side = |o: u64, outer: bool| {
        if outer || !tensor { c.bk * (o + pad) } else { o * (c.bk + pad) }
    };
    let tiles = 2 * (side(c.bm, a.lanes_outer) + side(c.bn, b.lanes_outer)) * format.size() as u64;
    let tiles = tiles.max(32 * (c.bn + 4) * 4).next_multiple_of(16);
    let shared = tiles + (c.bm + c.bn + 4 * c.bk) * 16;

    // Operands that need no registers on their way leave room for two blocks.
    let resident = if tensor && a.vec && b.vec { 512 / c.threads } else { 1 };

    let mut head = Head::default();
    head.flag("TENSOR", tensor)
        .flag("TF32", p.math == Math::Tf32)
        .constant("BM", c.bm)
        .constant("BN", c.bn)
        .constant("BK", c.bk)
        .constant("FM", c.fm)
        .constant("FN", c.fn_)
        .constant("WARPS_N", c.warps_n)
        .constant("THREADS", c.threads)
        .constant("MINBLOCKS", resident)
        .constant("PAD", pad)
        .constant("TILES_BYTES", tiles)
        .constant("LANES", width)
        .flag("ROWS_FAST", rows_fast && parts == 1)
        .flag("SPLIT", parts > 1)
        .alias("CT", c_type(format))
        .alias("AT", c_type(da))
        .alias("BT", c_type(db))
        .alias("Off", if far { "i64" } else { "int" });
    let mut params = Params::default();
    let mut setup = String::new();
    for (name, o, x) in [("a", &p.a, &a), ("b", &p.b, &b)] {
        let upper = name.to_uppercase();
        head.flag(&format!("{upper}_OUTER"), x.lanes_outer)
            .flag(&format!("{upper}_VEC"), x.vec)
            .flag(&format!("{upper}_CHECK"), x.check)
            .flag(&format!("{upper}_PLAIN_O"), x.outer.plain())
            .flag(&format!("{upper}_PLAIN_K"), x.k.plain());
        params.pointer(c_type(dtype(plan, o.access)), name, super::text::address(plan, o.access));
        for (d, &s) in o.batch.iter().enumerate() {
            params.i64(&format!("{name}_z{d}"), s);
        }
        let [h, w] = if x.check { o.image.unwrap_or([0; 2]) } else { [0; 2] };
        params.i32(&format!("{name}_h"), small("rows of an image", h)?);
        params.i32(&format!("{name}_w"), small("columns of an image", w)?);
        map_params(&mut params, &mut setup, &format!("{name}_outer"), &x.outer, far)?;
        map_params(&mut params, &mut setup, &format!("{name}_ks"), &x.k, far)?;
    }
    let batches = p.batch[0] * p.batch[1];
    let (m_tiles, n_tiles) = (p.m.div_ceil(c.bm), p.n.div_ceil(c.bn));
    let matrix = |params: &mut Params| -> Result<()> {
        for (name, v) in [
            ("m", p.m),
            ("n", p.n),
            ("batches", batches),
            ("batch1", p.batch[1]),
            ("splits", parts),
        ] {
            params.u32(name, small("sizes of a product", v)?);
        }
        Ok(())
    };
    matrix(&mut params)?;
    for (name, v) in [("m_tiles", m_tiles), ("n_tiles", n_tiles), ("k_part", part)] {
        params.u32(name, small("sizes of a product", v)?);
    }
    let finish = finish_text(p, &epilogue);
    let columns = |params: &mut Params, setup: &mut String| -> Result<()> {
        for (name, v) in ["q_d1", "q_d2"].iter().zip(p.columns.0) {
            params.u32(name, small("columns of a product", v)?);
        }
        for (name, v) in ["q_y", "q_ys", "q_x", "q_xs"].iter().zip(p.columns.1) {
            params.i32(name, small("columns of a product", v)?);
        }
        params.raw(&epilogue.parameters, &epilogue.args);
        setup.push_str("const Out q = {q_d1, q_d2, q_y, q_ys, q_x, q_xs};\n");
        Ok(())
    };
    let scratch = 4 * parts * batches * p.m * p.n;
    let partial = if parts > 1 { out.reserve(scratch) } else { 0 };
    if parts > 1 {
        params.pointer_mut("float", "partial", Arg::Scratch { offset: partial });
    } else {
        head.constant("KIND", p.kind as u64).text(&finish);
        columns(&mut params, &mut setup)?;
    }
    let count = m_tiles.saturating_mul(n_tiles).saturating_mul(batches).saturating_mul(parts);
    let grid = [small("blocks of a product", count)?, 1, 1];
    let text =
        include_str!("product.cuh").replace("SETUP", &setup).replace("EPI_NAMES", &epilogue.names);
    let threads = c.threads as u32;
    let one = launch(
        p.family,
        &[MMA],
        &head,
        &text,
        params,
        Size { grid, threads, shared: shared as u32 },
    );
    out.tasks.push(Task::Launch(one));
    if parts == 1 {
        return Ok(());
    }
    let mut head = Head::default();
    head.constant("KIND", p.kind as u64).text(&finish);
    let mut params = Params::default();
    let mut setup = String::new();
    params.pointer("float", "partial", Arg::Scratch { offset: partial });
    matrix(&mut params)?;
    columns(&mut params, &mut setup)?;
    let text = include_str!("product_sum.cuh")
        .replace("SETUP", &setup)
        .replace("EPI_NAMES", &epilogue.names);
    let grid = [blocks(batches * p.m * p.n, 256, facts.multiprocessors * 16), 1, 1];
    let family = format!("{}_sum", p.family);
    out.tasks.push(Task::Launch(launch(
        &family,
        &[],
        &head,
        &text,
        params,
        Size { grid, threads: 256, shared: 0 },
    )));
    Ok(())
}

/// The function `finish` with the epilogue before it.
fn finish_text(p: &Product, e: &End) -> String {
    debug_assert!(p.dims.iter().all(|&d| d > 0));
    let text = include_str!("finish.cuh")
        .replace("EPI_PARAMETERS", &e.parameters)
        .replace("EPI_NAMES", &e.names);
    format!("{}{text}", e.text)
}

fn map_params(
    params: &mut Params,
    setup: &mut String,
    name: &str,
    m: &Map,
    far: bool,
) -> Result<()> {
    let mut names = vec![];
    for (part, v) in [("n", m.len()), ("d1", m.d[1]), ("d2", m.d[2])] {
        let name = format!("{name}_{part}");
        params.u32(&name, small("sizes of an operand", v)?);
        names.push(name);
    }
    for (part, v) in [("at", m.at[0]), ("s0", m.s[0]), ("s1", m.s[1]), ("s2", m.s[2])] {
        let name = format!("{name}_{part}");
        if far {
            params.i64(&name, v);
        } else {
            params.add("int", &name, Arg::I32(v as i32));
        }
        names.push(name);
    }
    let images = [m.at[1], m.y[0], m.y[1], m.y[2], m.at[2], m.x[0], m.x[1], m.x[2]];
    for (part, v) in ["y", "y0", "y1", "y2", "x", "x0", "x1", "x2"].iter().zip(images) {
        let name = format!("{name}_{part}");
        small("steps of a convolution", v.unsigned_abs())?;
        params.add("int", &name, Arg::I32(v as i32));
        names.push(name);
    }
    setup.push_str(&format!("const Map {name} = {{{}}};\n", names.join(", ")));
    Ok(())
}

//! Convolutions without a library: implicit products on tensor cores or in f32, and loops over
//! taps where groups are narrow.

use super::end::end;
use super::product::{Kind, Map, Operand, Product, lower};
use super::text::{Head, MMA, Params, Size, address, blocks, c_type, dtype, launch, small};
use crate::cuda::launch::{Facts, Lowered, Task};
use crate::error::Result;
use precast_plan::{Conv, ConvGeometry, ConvKind, Math, Plan};

/// Appends the launches of a convolution, or of one of its gradients, with the epilogue.
///
/// The gradient of the data is one product for each residue of rows and columns modulo the stride,
/// so that no multiplication by zero is spent. The gradient of the filter cuts its long sum into
/// parts, which a second launch adds in order.
///
/// # Errors
/// `R0131` for sizes beyond 2^31.
pub fn lower_conv(plan: &Plan, c: &Conv, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let g = &c.geometry;
    let narrow = (g.c / g.groups).min(g.o / g.groups) <= 8;
    if g.groups > 1 && narrow {
        return direct(plan, c, facts, out);
    }
    match c.kind {
        ConvKind::Forward => forward(plan, c, facts, out),
        ConvKind::DataGrad => data_grad(plan, c, facts, out),
        ConvKind::FilterGrad => filter_grad(plan, c, facts, out),
    }
}

fn signed(x: u64) -> i64 {
    x as i64
}

/// Output pixels (image, row, column) as places in an input image, the padding before row 0.
fn pixels(g: &ConvGeometry, s: &[i64]) -> Map {
    let (sh, sw) = (signed(g.stride[0]), signed(g.stride[1]));
    let (top, left) = (-signed(g.pad[0]), -signed(g.pad[1]));
    Map {
        d: [g.n, g.oh, g.ow],
        s: [s[0], sh * s[2], sw * s[3]],
        y: [0, sh, 0],
        x: [0, 0, sw],
        at: [top * s[2] + left * s[3], top, left],
    }
}

/// Digits (channel, row, column), or (row, column, channel) where `last`.
fn order(m: Map, last: bool) -> Map {
    if !last {
        return m;
    }
    fn turn<T: Copy>([a, b, c]: [T; 3]) -> [T; 3] {
        [b, c, a]
    }
    Map { d: turn(m.d), s: turn(m.s), y: turn(m.y), x: turn(m.x), at: m.at }
}

/// Channels and taps as places in an input image.
fn taps(g: &ConvGeometry, channels: u64, s: &[i64]) -> Map {
    let (dh, dw) = (signed(g.dilation[0]), signed(g.dilation[1]));
    Map {
        d: [channels, g.kh, g.kw],
        s: [s[1], dh * s[2], dw * s[3]],
        y: [0, dh, 0],
        x: [0, 0, dw],
        at: [0; 3],
    }
}

fn forward(plan: &Plan, c: &Conv, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let g = &c.geometry;
    let (cg, og) = (g.c / g.groups, g.o / g.groups);
    let (x, w) = (&c.a.strides, &c.b.strides);
    let last = x[1] == 1 && cg > 1;
    let filter = Map::new([cg, g.kh, g.kw], [w[1], w[2], w[3]]);
    let p = Product {
        family: "conv",
        kind: Kind::Pixels,
        m: og,
        n: g.n * g.oh * g.ow,
        k: cg * g.kh * g.kw,
        batch: [1, g.groups],
        a: Operand {
            access: &c.b,
            outer: Map::line(og, w[0]),
            k: order(filter, last),
            image: None,
            batch: [0, signed(og) * w[0]],
        },
        b: Operand {
            access: &c.a,
            outer: pixels(g, x),
            k: order(taps(g, cg, x), last),
            image: Some([g.h, g.w]),
            batch: [0, signed(cg) * x[1]],
        },
        math: c.math,
        epilogue: &c.epilogue,
        dims: [g.n, g.o, g.oh, g.ow],
        columns: ([g.oh, g.ow], [0, 1, 0, 1]),
    };
    lower(plan, &p, facts, out)
}

/// The taps that reach inputs of one residue modulo the stride.
struct Residue {
    first: u64,
    step: u64,
    count: u64,
    /// Output of the first input by the first tap, and how far each further tap goes back.
    start: i64,
    back: i64,
}

fn residue(r: u64, pad: u64, taps: u64, stride: u64, dilation: u64) -> Residue {
    let meets = |t: &u64| (signed(r + pad) - signed(t * dilation)) % signed(stride) == 0;
    let all: Vec<u64> = (0..taps).filter(meets).collect();
    let first = all.first().copied().unwrap_or(0);
    let step = all.get(1).map_or(1, |second| second - first);
    Residue {
        first,
        step,
        count: all.len() as u64,
        start: (signed(r + pad) - signed(first * dilation)) / signed(stride),
        back: signed(step * dilation) / signed(stride),
    }
}

fn data_grad(plan: &Plan, c: &Conv, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let g = &c.geometry;
    let (cg, og) = (g.c / g.groups, g.o / g.groups);
    let (dy, w) = (&c.a.strides, &c.b.strides);
    let last = dy[1] == 1 && og > 1;
    let [sh, sw] = g.stride;
    for py in 0..sh.min(g.h) {
        for px in 0..sw.min(g.w) {
            let ry = residue(py, g.pad[0], g.kh, sh, g.dilation[0]);
            let rx = residue(px, g.pad[1], g.kw, sw, g.dilation[1]);
            let (rows, columns) = ((g.h - py).div_ceil(sh), (g.w - px).div_ceil(sw));
            let none = ry.count * rx.count == 0;
            // Inputs that no output saw get the epilogue of zero.
            let d = if none { [0, 1, 1] } else { [og, ry.count, rx.count] };
            let filter = Map {
                at: [signed(ry.first) * w[2] + signed(rx.first) * w[3], 0, 0],
                ..Map::new(d, [w[0], signed(ry.step) * w[2], signed(rx.step) * w[3]])
            };
            let places = Map {
                d: [g.n, rows, columns],
                s: [dy[0], dy[2], dy[3]],
                y: [0, 1, 0],
                x: [0, 0, 1],
                at: [ry.start * dy[2] + rx.start * dy[3], ry.start, rx.start],
            };
            let back = Map {
                d,
                s: [dy[1], -ry.back * dy[2], -rx.back * dy[3]],
                y: [0, -ry.back, 0],
                x: [0, 0, -rx.back],
                at: [0; 3],
            };
            let p = Product {
                family: "conv_data_grad",
                kind: Kind::Pixels,
                m: cg,
                n: g.n * rows * columns,
                k: d.iter().product(),
                batch: [1, g.groups],
                a: Operand {
                    access: &c.b,
                    outer: Map::line(cg, w[1]),
                    k: order(filter, last),
                    image: None,
                    batch: [0, signed(og) * w[0]],
                },
                b: Operand {
                    access: &c.a,
                    outer: places,
                    k: order(back, last),
                    image: Some([g.oh, g.ow]),
                    batch: [0, signed(og) * dy[1]],
                },
                math: c.math,
                epilogue: &c.epilogue,
                dims: [g.n, g.c, g.h, g.w],
                columns: ([rows, columns], [py, sh, px, sw]),
            };
            lower(plan, &p, facts, out)?;
        }
    }
    Ok(())
}

fn filter_grad(plan: &Plan, c: &Conv, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let g = &c.geometry;
    let (cg, og) = (g.c / g.groups, g.o / g.groups);
    let (x, dy) = (&c.a.strides, &c.b.strides);
    let last = x[1] == 1 && cg > 1;
    let p = Product {
        family: "conv_filter_grad",
        kind: if last { Kind::FilterLast } else { Kind::Filter },
        m: og,
        n: cg * g.kh * g.kw,
        k: g.n * g.oh * g.ow,
        batch: [1, g.groups],
        a: Operand {
            access: &c.b,
            outer: Map::line(og, dy[1]),
            k: Map::new([g.n, g.oh, g.ow], [dy[0], dy[2], dy[3]]),
            image: None,
            batch: [0, signed(og) * dy[1]],
        },
        b: Operand {
            access: &c.a,
            outer: order(taps(g, cg, x), last),
            k: pixels(g, x),
            image: Some([g.h, g.w]),
            batch: [0, signed(cg) * x[1]],
        },
        math: c.math,
        epilogue: &c.epilogue,
        dims: [g.o, cg, g.kh, g.kw],
        columns: (if last { [g.kw, cg] } else { [g.kh, g.kw] }, [0, 1, 0, 1]),
    };
    lower(plan, &p, facts, out)
}

fn direct(plan: &Plan, c: &Conv, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let g = &c.geometry;
    let (cg, og) = (g.c / g.groups, g.o / g.groups);
    let (kind, dims) = match c.kind {
        ConvKind::Forward => (0, [g.n, g.o, g.oh, g.ow]),
        ConvKind::DataGrad => (1, [g.n, g.c, g.h, g.w]),
        ConvKind::FilterGrad => (2, [g.o, cg, g.kh, g.kw]),
    };
    let e = end(plan, &c.epilogue, &dims, 3)?;
    let mut head = Head::default();
    head.constant("KIND", kind).flag("TF32", c.math == Math::Tf32).text(&e.text);
    let mut p = Params::default();
    p.pointer(c_type(dtype(plan, &c.a)), "a", address(plan, &c.a));
    p.pointer(c_type(dtype(plan, &c.b)), "b", address(plan, &c.b));
    p.strides("a", &c.a.strides);
    p.strides("b", &c.b.strides);
    let mut names = vec![];
    for (name, v) in [
        ("n", g.n),
        ("c", g.c),
        ("h", g.h),
        ("w", g.w),
        ("o", g.o),
        ("kh", g.kh),
        ("kw", g.kw),
        ("oh", g.oh),
        ("ow", g.ow),
        ("sh", g.stride[0]),
        ("sw", g.stride[1]),
        ("ph", g.pad[0]),
        ("pw", g.pad[1]),
        ("dh", g.dilation[0]),
        ("dw", g.dilation[1]),
        ("cg", cg),
        ("og", og),
    ] {
        let name = format!("g_{name}");
        p.i32(&name, small("sizes of a convolution", v)?);
        names.push(name);
    }
    for (d, &v) in dims.iter().enumerate() {
        p.i64(&format!("e_d{d}"), signed(v));
    }
    p.raw(&e.parameters, &e.args);
    let setup = format!("const Geometry g = {{{}}};\n", names.join(", "));
    let total: u64 = dims.iter().product();
    let grid = if kind == 2 {
        small("elements of a filter", total)?
    } else {
        blocks(total, 256, facts.multiprocessors * 32)
    };
    let text =
        include_str!("direct_conv.cuh").replace("SETUP", &setup).replace("EPI_NAMES", &e.names);
    let family = ["conv_direct", "conv_direct_data_grad", "conv_direct_filter_grad"][kind as usize];
    let one = launch(
        family,
        &[MMA],
        &head,
        &text,
        p,
        Size { grid: [grid, 1, 1], threads: 256, shared: 0 },
    );
    out.tasks.push(Task::Launch(one));
    Ok(())
}

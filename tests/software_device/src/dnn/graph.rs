//! Graphs of operations, read from their descriptors and run one operation after another by their
//! definitions. Every tensor is a dense row-major list of f32, rounded to its type where it is
//! made; sums are in f64.

use super::desc::{Descriptor, kind};
use crate::arena::Arena;
use half::{bf16, f16};
use std::collections::BTreeMap;

// `cudnnDataType_t`
const FLOAT: i32 = 0;
const HALF: i32 = 2;
const BFLOAT16: i32 = 9;
const INT32: i32 = 4;
const BOOLEAN: i32 = 11;

// Attributes, by the numbers of NVIDIA's header.
const TENSOR_ALIGNMENT: u32 = 900;
const TENSOR_TYPE: u32 = 901;
const TENSOR_DIMS: u32 = 902;
const TENSOR_STRIDES: u32 = 903;
const TENSOR_UID: u32 = 906;
const TENSOR_VIRTUAL: u32 = 907;
const TENSOR_BY_VALUE: u32 = 908;
const GRAPH_OPS: u32 = 801;

/// `cudnnBackendTensorDescriptor`
#[derive(Clone, Debug)]
struct Tensor {
    uid: i64,
    dtype: i32,
    dims: Vec<usize>,
    strides: Vec<i64>,
    alignment: u64,
    inner: bool,
    by_value: bool,
}

impl Tensor {
    fn new(d: &Descriptor) -> Result<Tensor, String> {
        if d.kind != kind::TENSOR {
            return Err(format!("descriptor {} where a tensor is due", d.kind));
        }
        let dims: Vec<usize> = d.ints(TENSOR_DIMS)?.iter().map(|&n| n as usize).collect();
        let t = Tensor {
            uid: d.int(TENSOR_UID)?,
            dtype: d.number(TENSOR_TYPE)?,
            strides: d.ints(TENSOR_STRIDES)?.to_vec(),
            alignment: d.int(TENSOR_ALIGNMENT)? as u64,
            inner: d.flag(TENSOR_VIRTUAL),
            by_value: d.flag(TENSOR_BY_VALUE),
            dims,
        };
        if t.dims.contains(&0)
            || t.dims.len() != t.strides.len()
            || t.strides.iter().any(|&s| s <= 0)
        {
            return Err(format!("tensor {t:?}"));
        }
        size_of(t.dtype).ok_or_else(|| format!("data type {}", t.dtype))?;
        Ok(t)
    }

    fn count(&self) -> usize {
        self.dims.iter().product()
    }

    fn bytes(&self) -> usize {
        let last: i64 =
            self.dims.iter().zip(&self.strides).map(|(&n, &s)| (n as i64 - 1) * s).sum();
        (last as usize + 1) * size_of(self.dtype).unwrap_or(0)
    }

    /// Position in memory of the element of a dense index.
    fn at(&self, mut index: usize) -> usize {
        let mut at = 0;
        for (&n, &s) in self.dims.iter().zip(&self.strides).rev() {
            at += (index % n) * s as usize;
            index /= n;
        }
        at
    }
}

fn size_of(dtype: i32) -> Option<usize> {
    match dtype {
        FLOAT | INT32 => Some(4),
        HALF | BFLOAT16 => Some(2),
        BOOLEAN => Some(1),
        _ => None,
    }
}

fn round(dtype: i32, x: f32) -> f32 {
    match dtype {
        HALF => f16::from_f32(x).to_f32(),
        BFLOAT16 => bf16::from_f32(x).to_f32(),
        INT32 => x.trunc(),
        BOOLEAN => f32::from(u8::from(x != 0.0)),
        _ => x,
    }
}

/// `cudnnPointwiseMode_t`
#[derive(Clone, Copy, Debug)]
enum Pointwise {
    Add,
    Mul,
    Sub,
    Div,
    Exp,
    Log,
    Relu,
    Identity,
    Index,
    AtLeast,
    Below,
    Select,
}

impl Pointwise {
    fn new(mode: i32) -> Option<Pointwise> {
        Some(match mode {
            0 => Pointwise::Add,
            1 => Pointwise::Mul,
            6 => Pointwise::Div,
            9 => Pointwise::Sub,
            13 => Pointwise::Exp,
            15 => Pointwise::Log,
            21 => Pointwise::Identity,
            100 => Pointwise::Relu,
            303 => Pointwise::AtLeast,
            304 => Pointwise::Below,
            501 => Pointwise::Index,
            601 => Pointwise::Select,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Data,
    Filter,
}

#[derive(Clone, Debug)]
enum Operation {
    Pointwise {
        mode: Pointwise,
        axis: usize,
        x: Tensor,
        b: Option<Tensor>,
        t: Option<Tensor>,
    },
    Reduce {
        most: bool,
        x: Tensor,
    },
    MatMul {
        a: Tensor,
        b: Tensor,
    },
    Reshape {
        x: Tensor,
    },
    /// Pairs are along height and width; `x`, `w` and `y` are those of the forward direction.
    Convolve {
        direction: Direction,
        before: [i64; 2],
        dilation: [i64; 2],
        stride: [i64; 2],
        x: Tensor,
        w: Tensor,
        y: Tensor,
        /// What stood where the result goes is added times this.
        beta: f32,
    },
}

/// A graph of operations, each with what it writes.
#[derive(Clone, Debug)]
pub struct Graph {
    steps: Vec<(Operation, Tensor)>,
}

fn pair(d: &Descriptor, name: u32) -> Result<[i64; 2], String> {
    d.ints(name)?.try_into().map_err(|_| "a convolution that is not over two axes".to_string())
}

impl Graph {
    /// Reads a graph.
    ///
    /// # Errors
    /// What is not supported, or wrong with it.
    pub fn new(d: &Descriptor) -> Result<Graph, String> {
        let steps: Vec<_> =
            d.all(GRAPH_OPS)?.iter().map(|op| step(op)).collect::<Result<_, _>>()?;
        // Whatever is read within the graph alone was made before.
        let mut made = vec![];
        for (operation, y) in &steps {
            for x in reads(operation) {
                if x.inner && !made.contains(&x.uid) {
                    return Err(format!("tensor {} is read before it is made", x.uid));
                }
            }
            made.push(y.uid);
        }
        Ok(Graph { steps })
    }

    /// Tensors in memory, each once, and whether the graph writes them.
    fn bound(&self) -> BTreeMap<i64, (&Tensor, bool)> {
        let mut all: BTreeMap<i64, (&Tensor, bool)> = BTreeMap::new();
        for (operation, y) in &self.steps {
            for t in reads(operation) {
                all.entry(t.uid).or_insert((t, false));
            }
            all.entry(y.uid).or_insert((y, true)).1 = true;
        }
        all.retain(|_, (t, _)| !t.inner);
        all
    }
}

fn reads(operation: &Operation) -> Vec<&Tensor> {
    match operation {
        Operation::Convolve { x, w, y, beta, .. } if *beta != 0.0 => vec![x, w, y],
        Operation::Pointwise { x, b, t, .. } => {
            [Some(x), b.as_ref(), t.as_ref()].into_iter().flatten().collect()
        }
        Operation::Reduce { x, .. } | Operation::Reshape { x } => vec![x],
        Operation::MatMul { a, b } => vec![a, b],
        Operation::Convolve { direction: Direction::Forward, x, w, .. } => vec![x, w],
        Operation::Convolve { direction: Direction::Data, w, y, .. } => vec![w, y],
        Operation::Convolve { direction: Direction::Filter, x, y, .. } => vec![x, y],
    }
}

/// An operation and the tensor it writes.
fn step(d: &Descriptor) -> Result<(Operation, Tensor), String> {
    let tensor = |name: u32| -> Result<Tensor, String> { Tensor::new(d.of(name)?) };
    let convolve = |direction, [x, w, y, conv]: [u32; 4]| -> Result<(Operation, Tensor), String> {
        let c = d.of(conv)?;
        // The factors stand before the description, in the header's numbers.
        if d.float(conv - 2)? != 1.0 {
            return Err("a convolution whose sums have a factor".into());
        }
        let beta = d.float(conv - 1)?;
        let (x, w, y) = (tensor(x)?, tensor(w)?, tensor(y)?);
        // 1 is a cross-correlation, which is what networks call a convolution.
        if c.number(101)? != 1 || [&x, &w, &y].iter().any(|t| t.dims.len() != 4) {
            return Err("convolutions over two axes that do not turn the filter around".into());
        }
        let (before, after, dilation, stride) =
            (pair(c, 105)?, pair(c, 104)?, pair(c, 102)?, pair(c, 103)?);
        for i in 0..2 {
            let (n, k) = (x.dims[2 + i] as i64, w.dims[2 + i] as i64);
            let out = (n + before[i] + after[i] - dilation[i] * (k - 1) - 1) / stride[i] + 1;
            if out != y.dims[2 + i] as i64 {
                return Err(format!("a result of {} instead of {out}", y.dims[2 + i]));
            }
        }
        if x.dims[1] % w.dims[1] != 0 || x.dims[0] != y.dims[0] || w.dims[0] != y.dims[1] {
            return Err(format!("channels {:?} {:?} {:?}", x.dims, w.dims, y.dims));
        }
        let out = match direction {
            Direction::Forward => y.clone(),
            Direction::Data => x.clone(),
            Direction::Filter => w.clone(),
        };
        if beta != 0.0 && out.inner {
            return Err("a result that only the graph sees held nothing to add to".into());
        }
        Ok((Operation::Convolve { direction, before, dilation, stride, x, w, y, beta }, out))
    };
    Ok(match d.kind {
        kind::OPERATION_POINTWISE => {
            let p = d.of(750)?;
            let mode = Pointwise::new(p.number(0)?).ok_or("a pointwise mode")?;
            let axis = p.int(9).unwrap_or(0) as usize;
            let optional = |name: u32| d.of(name).ok().map(|t| Tensor::new(t)).transpose();
            let (x, y, b, t) = (tensor(751)?, tensor(753)?, optional(752)?, optional(758)?);
            for operand in [Some(&x), b.as_ref(), t.as_ref()].into_iter().flatten() {
                let fits = operand.dims.len() == y.dims.len()
                    && operand.dims.iter().zip(&y.dims).all(|(&n, &m)| n == m || n == 1);
                if !fits {
                    return Err(format!("{:?} does not repeat to {:?}", operand.dims, y.dims));
                }
            }
            let wants = match mode {
                Pointwise::Add | Pointwise::Mul | Pointwise::Sub | Pointwise::Div => (true, false),
                Pointwise::AtLeast | Pointwise::Below => (true, false),
                Pointwise::Select => (true, true),
                _ => (false, false),
            };
            if wants != (b.is_some(), t.is_some()) {
                return Err(format!("operands of {mode:?}"));
            }
            (Operation::Pointwise { mode, axis, x, b, t }, y)
        }
        kind::OPERATION_REDUCTION => {
            let most = match d.of(1612)?.number(1600)? {
                0 => false,
                3 => true,
                other => return Err(format!("reduction {other}")),
            };
            let (x, y) = (tensor(1610)?, tensor(1611)?);
            if !x.dims.iter().zip(&y.dims).all(|(&n, &m)| n == m || m == 1) {
                return Err(format!("a reduction of {:?} to {:?}", x.dims, y.dims));
            }
            (Operation::Reduce { most, x }, y)
        }
        kind::OPERATION_MATMUL => {
            let (a, b, y) = (tensor(1520)?, tensor(1521)?, tensor(1522)?);
            let r = y.dims.len();
            let fits = r >= 2
                && a.dims[..r - 2] == y.dims[..r - 2]
                && b.dims[..r - 2] == y.dims[..r - 2]
                && (a.dims[r - 2], a.dims[r - 1]) == (y.dims[r - 2], b.dims[r - 2])
                && b.dims[r - 1] == y.dims[r - 1];
            if !fits {
                return Err(format!("a product of {:?} and {:?}", a.dims, b.dims));
            }
            (Operation::MatMul { a, b }, y)
        }
        kind::OPERATION_RESHAPE => {
            let (x, y) = (tensor(2200)?, tensor(2201)?);
            if x.count() != y.count() {
                return Err(format!("{:?} as {:?}", x.dims, y.dims));
            }
            (Operation::Reshape { x }, y)
        }
        kind::CONV_FORWARD => convolve(Direction::Forward, [704, 703, 705, 702])?,
        kind::CONV_DATA => convolve(Direction::Data, [710, 709, 711, 708])?,
        kind::CONV_FILTER => convolve(Direction::Filter, [716, 715, 717, 714])?,
        other => return Err(format!("operation {other}")),
    })
}

/// A graph on its addresses, that a stream runs.
pub struct Run {
    graph: Graph,
    /// Addresses by the numbers of tensors.
    at: BTreeMap<i64, u64>,
    /// Numbers that came with the call.
    numbers: BTreeMap<i64, f32>,
    workspace: (u64, usize),
}

impl Run {
    /// # Errors
    /// If a tensor of the graph has no address, or one that is not aligned as was promised.
    ///
    /// # Safety
    /// Addresses of numbers by value are those of four bytes of the host.
    pub unsafe fn new(
        graph: Graph,
        at: BTreeMap<i64, u64>,
        workspace: (u64, usize),
    ) -> Result<Run, String> {
        let mut numbers = BTreeMap::new();
        for (uid, (t, _)) in graph.bound() {
            let &address = at.get(&uid).ok_or_else(|| format!("tensor {uid} has no address"))?;
            if t.by_value {
                // SAFETY: the caller's promise.
                numbers.insert(uid, unsafe { (address as *const f32).read_unaligned() });
            } else if address == 0 || address % t.alignment != 0 {
                return Err(format!("tensor {uid} at {address:#x}, aligned to {}", t.alignment));
            }
        }
        Ok(Run { graph, at, numbers, workspace })
    }

    /// Whether everything lies in allocations.
    ///
    /// # Errors
    /// What does not.
    pub fn check_memory(&self, arena: &Arena) -> Result<(), String> {
        let (at, bytes) = self.workspace;
        if bytes > 0 && !arena.holds(at, bytes) {
            return Err(format!("{bytes} bytes of workspace at {at:#x} are not one allocation's"));
        }
        for (uid, (t, _)) in self.graph.bound() {
            if !t.by_value && !arena.holds(self.at[&uid], t.bytes()) {
                return Err(format!("{t:?} at {:#x} is not in one allocation", self.at[&uid]));
            }
        }
        Ok(())
    }

    /// Runs the graph.
    ///
    /// # Errors
    /// If what it reads or writes was freed.
    pub fn run(&self, arena: &Arena) -> Result<(), String> {
        self.check_memory(arena)?;
        let (at, bytes) = self.workspace;
        if bytes > 0 {
            // SAFETY: just checked. Nobody may keep anything in a workspace.
            unsafe { std::ptr::write_bytes(at as *mut u8, 0xff, bytes) };
        }
        let mut values: BTreeMap<i64, Vec<f32>> = BTreeMap::new();
        for (operation, y) in &self.graph.steps {
            for x in reads(operation) {
                values.entry(x.uid).or_insert_with(|| self.load(x));
            }
            let mut out = compute(operation, y, &values);
            out.iter_mut().for_each(|v| *v = round(y.dtype, *v));
            if !y.inner {
                self.store(y, &out);
            }
            values.insert(y.uid, out);
        }
        Ok(())
    }

    fn load(&self, t: &Tensor) -> Vec<f32> {
        if let Some(&number) = self.numbers.get(&t.uid) {
            return vec![number; t.count()];
        }
        let base = self.at[&t.uid];
        let one = |i: usize| {
            let at = t.at(i);
            // SAFETY: the extent was checked.
            unsafe {
                match t.dtype {
                    HALF => (base as *const f16).add(at).read_unaligned().to_f32(),
                    BFLOAT16 => (base as *const bf16).add(at).read_unaligned().to_f32(),
                    INT32 => (base as *const i32).add(at).read_unaligned() as f32,
                    BOOLEAN => f32::from((base as *const u8).add(at).read()),
                    _ => (base as *const f32).add(at).read_unaligned(),
                }
            }
        };
        (0..t.count()).map(one).collect()
    }

    fn store(&self, t: &Tensor, values: &[f32]) {
        let base = self.at[&t.uid];
        for (i, &v) in values.iter().enumerate() {
            let at = t.at(i);
            // SAFETY: the extent was checked.
            unsafe {
                match t.dtype {
                    HALF => (base as *mut f16).add(at).write_unaligned(f16::from_f32(v)),
                    BFLOAT16 => (base as *mut bf16).add(at).write_unaligned(bf16::from_f32(v)),
                    INT32 => (base as *mut i32).add(at).write_unaligned(v as i32),
                    BOOLEAN => (base as *mut u8).add(at).write(u8::from(v != 0.0)),
                    _ => (base as *mut f32).add(at).write_unaligned(v),
                }
            }
        }
    }
}

/// Dense index in a tensor of `dims` of an element of `over`, along whose axes it may repeat.
fn repeated(dims: &[usize], over: &[usize], mut index: usize) -> usize {
    let (mut at, mut step) = (0, 1);
    for (&n, &m) in dims.iter().zip(over).rev() {
        if n > 1 {
            at += (index % m) * step;
        }
        step *= n;
        index /= m;
    }
    at
}

fn compute(operation: &Operation, y: &Tensor, values: &BTreeMap<i64, Vec<f32>>) -> Vec<f32> {
    let of = |t: &Tensor| &values[&t.uid][..];
    match operation {
        Operation::Pointwise { mode, axis, x, b, t } => {
            // What has the result's extents is read in its order.
            let reader = |o: &Tensor| {
                let (values, dims) = (of(o).to_vec(), o.dims.clone());
                let same = dims == y.dims;
                move |i: usize| values[if same { i } else { repeated(&dims, &y.dims, i) }]
            };
            let (first, second) = (reader(x), b.as_ref().map(reader));
            let third = t.as_ref().map(reader);
            let inner: usize = y.dims[axis + 1..].iter().product();
            let one = |i: usize| {
                let x = first(i);
                let b = second.as_ref().map_or(0.0, |b| b(i));
                match mode {
                    Pointwise::Add => x + b,
                    Pointwise::Mul => x * b,
                    Pointwise::Sub => x - b,
                    Pointwise::Div => x / b,
                    Pointwise::Exp => x.exp(),
                    Pointwise::Log => x.ln(),
                    Pointwise::Identity => x,
                    Pointwise::Relu if x > 0.0 || x.is_nan() => x,
                    Pointwise::Relu => 0.0,
                    Pointwise::Index => (i / inner % y.dims[*axis]) as f32,
                    Pointwise::AtLeast => f32::from(u8::from(x >= b)),
                    Pointwise::Below => f32::from(u8::from(x < b)),
                    Pointwise::Select => {
                        if third.as_ref().is_some_and(|t| t(i) != 0.0) {
                            x
                        } else {
                            b
                        }
                    }
                }
            };
            (0..y.count()).map(one).collect()
        }
        Operation::Reduce { most, x } => {
            let start = if *most { f64::NEG_INFINITY } else { 0.0 };
            let mut out = vec![start; y.count()];
            for (i, &v) in of(x).iter().enumerate() {
                let at = &mut out[repeated(&y.dims, &x.dims, i)];
                *at = if *most { at.max(f64::from(v)) } else { *at + f64::from(v) };
            }
            out.into_iter().map(|v| v as f32).collect()
        }
        // The same memory under other extents: this is how axes are exchanged.
        Operation::Reshape { x } => {
            let memory: BTreeMap<usize, f32> =
                of(x).iter().enumerate().map(|(i, &v)| (x.at(i), v)).collect();
            (0..y.count()).map(|i| memory.get(&y.at(i)).copied().unwrap_or(f32::NAN)).collect()
        }
        Operation::MatMul { a, b } => {
            let r = y.dims.len();
            let (m, n, k) = (y.dims[r - 2], y.dims[r - 1], a.dims[r - 1]);
            let (a, b) = (of(a), of(b));
            let one = |i: usize| {
                let (batch, row, column) = (i / (m * n), i / n % m, i % n);
                let (a, b) = (&a[(batch * m + row) * k..], &b[batch * k * n + column..]);
                (0..k).map(|l| f64::from(a[l]) * f64::from(b[l * n])).sum::<f64>() as f32
            };
            (0..y.count()).map(one).collect()
        }
        Operation::Convolve { direction, before, dilation, stride, x, w, y: forward, beta } => {
            let mut out = vec![0f64; y.count()];
            let dense =
                |d: &[usize], i: [usize; 4]| ((i[0] * d[1] + i[1]) * d[2] + i[2]) * d[3] + i[3];
            let (per_group, groups) = (w.dims[1], x.dims[1] / w.dims[1]);
            let filters = w.dims[0] / groups;
            let along = |axis: usize, out: usize, tap: usize| -> Option<usize> {
                let at = out as i64 * stride[axis] - before[axis] + tap as i64 * dilation[axis];
                usize::try_from(at).ok().filter(|&at| at < x.dims[2 + axis])
            };
            let [n, o, oh, ow] = [0, 1, 2, 3].map(|i| forward.dims[i]);
            let (kh, kw) = (w.dims[2], w.dims[3]);
            // Whichever of the three is written is read as nothing.
            let (xs, ws, ys) = match direction {
                Direction::Forward => (of(x), of(w), &[][..]),
                Direction::Data => (&[][..], of(w), of(forward)),
                Direction::Filter => (of(x), &[][..], of(forward)),
            };
            for p in 0..n * o * oh * ow {
                let (b, f, i, j) = (p / (o * oh * ow), p / (oh * ow) % o, p / ow % oh, p % ow);
                let at_y = dense(&forward.dims, [b, f, i, j]);
                let first = f / filters * per_group;
                let mut sum = 0f64;
                for (c, r) in (0..per_group).flat_map(|c| (0..kh).map(move |r| (c, r))) {
                    let Some(h) = along(0, i, r) else { continue };
                    let row_x = dense(&x.dims, [b, first + c, h, 0]);
                    let row_w = dense(&w.dims, [f, c, r, 0]);
                    for s in 0..kw {
                        let Some(v) = along(1, j, s) else { continue };
                        let (at_x, at_w) = (row_x + v, row_w + s);
                        match direction {
                            Direction::Forward => sum += f64::from(xs[at_x]) * f64::from(ws[at_w]),
                            Direction::Data => {
                                out[at_x] += f64::from(ys[at_y]) * f64::from(ws[at_w]);
                            }
                            Direction::Filter => {
                                out[at_w] += f64::from(ys[at_y]) * f64::from(xs[at_x]);
                            }
                        }
                    }
                }
                if *direction == Direction::Forward {
                    out[at_y] = sum;
                }
            }
            let sums = out.into_iter().map(|v| v as f32);
            match *beta {
                0.0 => sums.collect(),
                beta => sums.zip(of(y)).map(|(v, old)| v + beta * old).collect(),
            }
        }
    }
}

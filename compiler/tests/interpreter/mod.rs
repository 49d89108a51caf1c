//! Plans by their definition: every step in order over the plan's own memory layout, so that wrong
//! offsets, lifetimes and reuse show as wrong numbers.

use precast_plan::{
    Access, Conv, ConvGeometry, ConvKind, DType, Epilogue, Gather, Gemm, Kernel, Kind, MaxPool,
    Operand, Plan, Storage, Value, interpret,
};

pub struct Machine<'p> {
    plan: &'p Plan,
    arena: Vec<u8>,
    persistent: Vec<u8>,
    input: Vec<u8>,
}

fn points(dims: &[u64]) -> Vec<Vec<usize>> {
    let mut out = vec![vec![]];
    for &n in dims {
        out = out
            .into_iter()
            .flat_map(|p| {
                (0..n as usize).map(move |i| {
                    let mut p = p.clone();
                    p.push(i);
                    p
                })
            })
            .collect();
    }
    out
}

fn at(a: &Access, p: &[usize]) -> usize {
    let shift: i64 = a.strides.iter().zip(p).map(|(s, &i)| s * i as i64).sum();
    (a.offset as i64 + shift) as usize
}

impl<'p> Machine<'p> {
    /// Memory starts as rubbish, so that what is read before it is written shows.
    pub fn new(plan: &'p Plan) -> Machine<'p> {
        let inputs = plan.tensors.iter().map(|t| match t.storage {
            Storage::Input { offset } => {
                offset + t.shape.iter().product::<u64>() * t.dtype.size() as u64
            }
            _ => 0,
        });
        let bytes = |n: u64| vec![0xFF; n as usize];
        Machine {
            plan,
            arena: bytes(plan.arena_bytes),
            persistent: bytes(plan.persistent_bytes),
            input: bytes(inputs.max().unwrap_or(0)),
        }
    }

    fn place(&self, tensor: u32, element: usize) -> (u8, std::ops::Range<usize>) {
        let t = &self.plan.tensors[tensor as usize];
        let (region, offset) = match t.storage {
            Storage::Arena { offset } => (0, offset),
            Storage::Persistent { offset, .. } => (1, offset),
            Storage::Input { offset } => (2, offset),
        };
        let size = t.dtype.size();
        let from = offset as usize + element * size;
        (region, from..from + size)
    }

    pub fn get(&self, tensor: u32, element: usize) -> Value {
        let (region, range) = self.place(tensor, element);
        let b = &[&self.arena, &self.persistent, &self.input][region as usize][range];
        match self.plan.tensors[tensor as usize].dtype {
            DType::F32 => Value::Real(f32::from_le_bytes(b.try_into().unwrap())),
            DType::Bf16 => Value::Real(half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32()),
            DType::F16 => Value::Real(half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()),
            DType::I64 => Value::Int(i64::from_le_bytes(b.try_into().unwrap()) as i32),
            DType::I32 => Value::Int(i32::from_le_bytes(b.try_into().unwrap())),
            DType::U8 => Value::Int(i32::from(b[0])),
            DType::Bool => Value::Bool(b[0] != 0),
            d => panic!("no {d} in these plans"),
        }
    }

    pub fn set(&mut self, tensor: u32, element: usize, v: Value) {
        let (region, range) = self.place(tensor, element);
        let bytes = match (v, self.plan.tensors[tensor as usize].dtype) {
            (Value::Real(x), DType::F32) => x.to_le_bytes().to_vec(),
            (Value::Real(x), DType::Bf16) => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            (Value::Real(x), DType::F16) => half::f16::from_f32(x).to_le_bytes().to_vec(),
            (Value::Int(x), DType::I64) => i64::from(x).to_le_bytes().to_vec(),
            (Value::Int(x), DType::I32) => x.to_le_bytes().to_vec(),
            (Value::Int(x), DType::U8) => vec![x as u8],
            (Value::Bool(x), DType::Bool) => vec![u8::from(x)],
            (v, d) => panic!("{v:?} is not {d}"),
        };
        let memory = [&mut self.arena, &mut self.persistent, &mut self.input];
        memory.into_iter().nth(region as usize).unwrap()[range].copy_from_slice(&bytes);
    }

    fn real(&self, a: &Access, p: &[usize]) -> f64 {
        match self.get(a.tensor, at(a, p)) {
            Value::Real(x) => f64::from(x),
            v => panic!("{v:?} is not real"),
        }
    }

    fn int(&self, a: &Access, p: &[usize]) -> usize {
        match self.get(a.tensor, at(a, p)) {
            Value::Int(x) => x as usize,
            v => panic!("{v:?} is not an int"),
        }
    }

    pub fn reals(&self, tensor: u32) -> Vec<f64> {
        let n: u64 = self.plan.tensors[tensor as usize].shape.iter().product();
        (0..n as usize)
            .map(|i| match self.get(tensor, i) {
                Value::Real(x) => f64::from(x),
                Value::Int(x) => f64::from(x),
                Value::Bool(x) => f64::from(u8::from(x)),
            })
            .collect()
    }

    pub fn run(&mut self) {
        let plan = self.plan;
        for s in plan.micro.iter().chain(&plan.update) {
            self.step(&s.kernel);
        }
    }

    fn step(&mut self, kernel: &Kernel) {
        match kernel {
            Kernel::Rows(r) => {
                for i in &r.instances {
                    let load = |k: usize| &i.inputs[k];
                    self.program(
                        r.program,
                        &i.dims,
                        i.reduced as usize,
                        &i.outputs,
                        |m, port, p| {
                            let a = load(port);
                            m.get(a.tensor, at(a, p))
                        },
                    );
                }
            }
            Kernel::Gemm(g) => self.gemm(g),
            Kernel::Conv(c) => self.conv(c),
            Kernel::MaxPool(p) => self.pool(p),
            Kernel::MaxPoolGrad(p) => self.pool_grad(p),
            Kernel::Gather(g) => self.gather(g),
            Kernel::ScatterAdd(g) => self.scatter(g),
            Kernel::Attention(_)
            | Kernel::AttentionGrad(_)
            | Kernel::LastIndex(_)
            | Kernel::CumSum(_)
            | Kernel::TopK(_) => {
                panic!("none of these models has such a kernel")
            }
        }
    }

    fn program(
        &mut self,
        program: u32,
        dims: &[u64],
        reduced: usize,
        outputs: &[Access],
        load: impl Fn(&Self, usize, &[usize]) -> Value,
    ) {
        let p = &self.plan.programs[program as usize];
        let sizes: Vec<usize> = dims.iter().map(|&n| n as usize).collect();
        let results = interpret(p, &sizes, reduced, |port, at| load(self, port, at)).unwrap();
        let (all, kept) = (points(dims), points(&dims[..dims.len() - reduced]));
        for (a, values) in outputs.iter().zip(results) {
            let list = if values.len() == all.len() { &all } else { &kept };
            for (p, v) in list.iter().zip(values) {
                self.set(a.tensor, at(a, p), v);
            }
        }
    }

    fn epilogue(&mut self, e: &Epilogue, dims: [u64; 4], acc: &[f64]) {
        let linear = |p: &[usize]| p.iter().zip(dims).fold(0, |l, (&i, n)| l * n as usize + i);
        self.program(e.program, &dims, 0, &e.outputs, |m, port, p| match port {
            0 => Value::Real(acc[linear(p)] as f32),
            k => m.get(e.inputs[k - 1].tensor, at(&e.inputs[k - 1], p)),
        });
    }

    fn gemm(&mut self, g: &Gemm) {
        let dims = [g.batch[0], g.batch[1], g.m, g.n];
        let acc: Vec<f64> = points(&dims)
            .iter()
            .map(|p| {
                (0..g.k as usize)
                    .map(|k| {
                        self.real(&g.a, &[p[0], p[1], p[2], k])
                            * self.real(&g.b, &[p[0], p[1], k, p[3]])
                    })
                    .sum()
            })
            .collect();
        self.epilogue(&g.epilogue, dims, &acc);
        let Some(s) = &g.sums else { return };
        let n = if s.operand == Operand::A { g.m } else { g.n };
        for i in 0..n as usize {
            let sum: f64 = (0..g.k as usize)
                .map(|k| match s.operand {
                    Operand::A => self.real(&g.a, &[0, 0, i, k]),
                    Operand::B => self.real(&g.b, &[0, 0, k, i]),
                })
                .sum();
            self.set(s.out.tensor, at(&s.out, &[i]), Value::Real(sum as f32));
        }
    }

    fn conv(&mut self, c: &Conv) {
        let g = &c.geometry;
        assert_eq!(g.groups, 1, "none of these models has groups");
        let (x, w, y) = ([g.n, g.c, g.h, g.w], [g.o, g.c, g.kh, g.kw], [g.n, g.o, g.oh, g.ow]);
        let out = match c.kind {
            ConvKind::Forward => y,
            ConvKind::DataGrad => x,
            ConvKind::FilterGrad => w,
        };
        let mut acc = vec![0.0; out.iter().product::<u64>() as usize];
        let linear =
            |d: [u64; 4], p: [usize; 4]| p.iter().zip(d).fold(0, |l, (&i, n)| l * n as usize + i);
        for yp in points(&y) {
            let yp: [usize; 4] = yp.try_into().unwrap();
            windows(g, yp[2], yp[3], |ky, kx, iy, ix| {
                for ch in 0..g.c as usize {
                    let xp = [yp[0], ch, iy, ix];
                    let wp = [yp[1], ch, ky, kx];
                    let (pa, pb, po) = match c.kind {
                        ConvKind::Forward => (xp, wp, linear(y, yp)),
                        ConvKind::DataGrad => (yp, wp, linear(x, xp)),
                        ConvKind::FilterGrad => (xp, yp, linear(w, wp)),
                    };
                    acc[po] += self.real(&c.a, &pa) * self.real(&c.b, &pb);
                }
            });
        }
        self.epilogue(&c.epilogue, out, &acc);
    }

    fn pool(&mut self, p: &MaxPool) {
        let g = &p.geometry;
        for at_y in points(&[g.n, g.c, g.oh, g.ow]) {
            let mut best = (f64::NEG_INFINITY, 0);
            windows(g, at_y[2], at_y[3], |ky, kx, iy, ix| {
                let v = self.real(&p.x, &[at_y[0], at_y[1], iy, ix]);
                if v > best.0 {
                    best = (v, ky * g.kw as usize + kx);
                }
            });
            self.set(p.y.tensor, at(&p.y, &at_y), Value::Real(best.0 as f32));
            self.set(p.index.tensor, at(&p.index, &at_y), Value::Int(best.1 as i32));
        }
    }

    fn pool_grad(&mut self, p: &MaxPool) {
        let g = &p.geometry;
        for x in points(&[g.n, g.c, g.h, g.w]) {
            self.set(p.x.tensor, at(&p.x, &x), Value::Real(0.0));
        }
        for at_y in points(&[g.n, g.c, g.oh, g.ow]) {
            let (dy, place) = (self.real(&p.y, &at_y), self.int(&p.index, &at_y));
            let mut found = None;
            windows(g, at_y[2], at_y[3], |ky, kx, iy, ix| {
                if ky * g.kw as usize + kx == place {
                    found = Some([at_y[0], at_y[1], iy, ix]);
                }
            });
            let x = found.expect("the index lies in the window");
            let sum = self.real(&p.x, &x) + dy;
            self.set(p.x.tensor, at(&p.x, &x), Value::Real(sum as f32));
        }
    }

    fn gather(&mut self, g: &Gather) {
        for r in 0..g.rows as usize {
            let id = self.int(&g.ids, &[r]);
            for c in 0..g.width as usize {
                let v = self.real(&g.table, &[id, c]);
                self.set(g.out.tensor, at(&g.out, &[r, c]), Value::Real(v as f32));
            }
        }
    }

    fn scatter(&mut self, g: &Gather) {
        for p in points(&[g.table_rows, g.width]) {
            self.set(g.table.tensor, at(&g.table, &p), Value::Real(0.0));
        }
        for r in 0..g.rows as usize {
            let id = self.int(&g.ids, &[r]);
            for c in 0..g.width as usize {
                let v = self.real(&g.table, &[id, c]) + self.real(&g.out, &[r, c]);
                self.set(g.table.tensor, at(&g.table, &[id, c]), Value::Real(v as f32));
            }
        }
    }

    /// Fills a tensor with bytes given in base 16.
    pub fn write_hex(&mut self, tensor: u32, hex: &str) {
        let (region, first) = self.place(tensor, 0);
        assert_eq!(region, 1, "literals are persistent");
        for (i, digits) in hex.as_bytes().chunks(2).enumerate() {
            let digits = std::str::from_utf8(digits).unwrap();
            self.persistent[first.start + i] = u8::from_str_radix(digits, 16).unwrap();
        }
    }

    /// Fills a tensor with numbers that `next` makes.
    pub fn fill(&mut self, tensor: u32, mut next: impl FnMut() -> f64) {
        let t = &self.plan.tensors[tensor as usize];
        let (n, kind) = (t.shape.iter().product::<u64>(), t.dtype.kind());
        for i in 0..n as usize {
            let x = next();
            let v = match kind {
                Kind::Real => Value::Real(x as f32),
                Kind::Int => Value::Int(x as i32),
                Kind::Bool => Value::Bool(x != 0.0),
            };
            self.set(tensor, i, v);
        }
    }
}

/// Taps of the window at result position (oy, ox) that lie inside: kernel row and column, operand
/// row and column.
fn windows(g: &ConvGeometry, oy: usize, ox: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let u = |x: u64| x as usize;
    for ky in 0..u(g.kh) {
        for kx in 0..u(g.kw) {
            let y = (oy * u(g.stride[0]) + ky * u(g.dilation[0])).checked_sub(u(g.pad[0]));
            let x = (ox * u(g.stride[1]) + kx * u(g.dilation[1])).checked_sub(u(g.pad[1]));
            if let (Some(y), Some(x)) = (y, x)
                && y < u(g.h)
                && x < u(g.w)
            {
                f(ky, kx, y, x);
            }
        }
    }
}

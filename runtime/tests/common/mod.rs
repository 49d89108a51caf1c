//! A small plan built by hand: `p = relu(x w1 + b1) w2`, mean squared error, momentum.

use precast_plan::*;

pub const BATCH: u64 = 24;
pub const IN: u64 = 10;
pub const HIDDEN: u64 = 33;
pub const OUT: u64 = 5;

pub struct Builder {
    pub plan: Plan,
    inputs: u64,
}

fn align(n: u64) -> u64 {
    n.next_multiple_of(64)
}

fn dense(shape: &[u64]) -> Vec<i64> {
    let mut s = vec![1; shape.len()];
    for d in (0..shape.len().saturating_sub(1)).rev() {
        s[d] = s[d + 1] * shape[d + 1] as i64;
    }
    s
}

impl Builder {
    pub fn new() -> Builder {
        let plan = Plan {
            version: VERSION,
            model: "mlp".into(),
            target: TargetSummary { name: "test".into(), device: "cpu".into() },
            tensors: vec![],
            programs: vec![],
            micro: vec![],
            update: vec![],
            eval: vec![],
            accumulate: 1,
            arena_bytes: 0,
            arena_bound_bytes: 0,
            persistent_bytes: 0,
            results: vec![],
            eval_results: vec![],
            classes: vec![],
            summary: Summary::default(),
            journal: vec![],
        };
        Builder { plan, inputs: 0 }
    }

    fn push(&mut self, name: &str, dtype: DType, shape: &[u64], storage: Storage) -> TensorId {
        self.plan.tensors.push(Tensor { name: name.into(), dtype, shape: shape.to_vec(), storage });
        self.plan.tensors.len() as TensorId - 1
    }

    fn bytes(dtype: DType, shape: &[u64]) -> u64 {
        align(shape.iter().product::<u64>() * dtype.size() as u64)
    }

    pub fn input(&mut self, name: &str, dtype: DType, shape: &[u64]) -> TensorId {
        let offset = self.inputs;
        self.inputs += Self::bytes(dtype, shape);
        self.push(name, dtype, shape, Storage::Input { offset })
    }

    pub fn temp(&mut self, name: &str, dtype: DType, shape: &[u64]) -> TensorId {
        let offset = self.plan.arena_bytes;
        self.plan.arena_bytes += Self::bytes(dtype, shape);
        self.push(name, dtype, shape, Storage::Arena { offset })
    }

    pub fn keep(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        role: Role,
        init: Init,
    ) -> TensorId {
        let offset = self.plan.persistent_bytes;
        self.plan.persistent_bytes += Self::bytes(dtype, shape);
        self.push(name, dtype, shape, Storage::Persistent { offset, role, init })
    }

    pub fn all(&self, t: TensorId) -> Access {
        Access { tensor: t, offset: 0, strides: dense(&self.plan.tensors[t as usize].shape) }
    }

    pub fn program(
        &mut self,
        name: &str,
        ins: &[(DType, bool)],
        code: &str,
        outs: &[(DType, u32)],
    ) -> ProgramId {
        self.plan.programs.push(Program {
            name: name.into(),
            inputs: ins.iter().map(|&(dtype, row)| InPort { dtype, row }).collect(),
            code: code.split('|').map(|l| l.parse().unwrap()).collect(),
            outputs: outs.iter().map(|&(dtype, reg)| OutPort { dtype, reg }).collect(),
        });
        self.plan.programs.len() as ProgramId - 1
    }

    pub fn step(name: &str, kernel: Kernel) -> Step {
        Step { name: name.into(), ops: vec![name.into()], kernel, predicted_ns: 100.0 }
    }

    /// A product of matrices with strides (rows, columns).
    #[allow(clippy::too_many_arguments)]
    pub fn gemm(
        &self,
        name: &str,
        [m, n, k]: [u64; 3],
        a: (TensorId, [i64; 2]),
        b: (TensorId, [i64; 2]),
        kind: EpilogueKind,
        program: ProgramId,
        inputs: Vec<Access>,
        out: TensorId,
    ) -> Step {
        let view = |(tensor, [r, c]): (TensorId, [i64; 2])| Access {
            tensor,
            offset: 0,
            strides: vec![0, 0, r, c],
        };
        let outputs = vec![view((out, [n as i64, 1]))];
        let epilogue = Epilogue { kind, program, inputs, outputs };
        Self::step(
            name,
            Kernel::Gemm(Gemm {
                batch: [1, 1],
                m,
                n,
                k,
                a: view(a),
                b: view(b),
                math: Math::Exact,
                epilogue,
                sums: None,
            }),
        )
    }
}

/// The plan; parameters are drawn, so it needs no weight file.
pub fn mlp() -> Plan {
    let mut b = Builder::new();
    let f = DType::F32;
    let draw = |stream| Init::Uniform { bound: 0.5, seed: 9, stream };
    let x = b.input("in.x", f, &[BATCH, IN]);
    let t = b.input("targets", f, &[BATCH, OUT]);
    let w1 = b.keep("w1", f, &[IN, HIDDEN], Role::Parameter, draw(1));
    let b1 = b.keep("b1", f, &[HIDDEN], Role::Parameter, draw(2));
    let w2 = b.keep("w2", f, &[HIDDEN, OUT], Role::Parameter, draw(3));
    let params = [w1, b1, w2];
    let moments: Vec<TensorId> = ["w1", "b1", "w2"]
        .iter()
        .zip(params)
        .map(|(n, p)| {
            let shape = b.plan.tensors[p as usize].shape.clone();
            b.keep(&format!("{n}.momentum"), f, &shape, Role::Optimizer, Init::Zeros)
        })
        .collect();
    let ema = b.keep("ema.w2", f, &[HIDDEN, OUT], Role::Ema, Init::CopyOf(w2));
    let count = b.keep("count", DType::I32, &[1], Role::Machine, Init::Value(0.0));
    let h = b.temp("h", f, &[BATCH, HIDDEN]);
    let p = b.temp("p", f, &[BATCH, OUT]);
    let dp = b.temp("dp", f, &[BATCH, OUT]);
    let loss = b.temp("loss", f, &[1]);
    let dh = b.temp("dh", f, &[BATCH, HIDDEN]);
    let grads: Vec<TensorId> = ["w1", "b1", "w2"]
        .iter()
        .zip(params)
        .map(|(n, p)| {
            let shape = b.plan.tensors[p as usize].shape.clone();
            b.temp(&format!("{n}.grad"), f, &shape)
        })
        .collect();
    let norm = b.temp("norm", f, &[1]);
    let squares = b.temp("squares", f, &[3]);

    let store = b.program("store", &[(f, false)], "load 0", &[(f, 0)]);
    let bias_relu = b.program(
        "bias_relu",
        &[(f, false), (f, false)],
        "load 0|load 1|add %0 %1|real 0.0|max %2 %3",
        &[(f, 4)],
    );
    let mask = b.program(
        "relu_grad",
        &[(f, false), (f, false)],
        "load 0|load 1|real 0.0|lt %2 %1|select %3 %0 %2",
        &[(f, 4)],
    );
    let n = (BATCH * OUT) as f32;
    let mse = b.program(
        "mse",
        &[(f, false), (f, false)],
        &format!(
            "load 0|load 1|sub %0 %1|mul %2 %2|reduce.sum %3|real {:?}|mul %4 %5|real {:?}|mul %2 %7",
            1.0 / n,
            2.0 / n
        ),
        &[(f, 6), (f, 8)],
    );
    let sum = b.program("sum", &[(f, false)], "load 0|reduce.sum %0", &[(f, 1)]);
    let square = b.program("square", &[(f, false)], "load 0|mul %0 %0|reduce.sum %1", &[(f, 2)]);
    let root = b.program("root", &[(f, false)], "load 0|reduce.sum %0|sqrt %1", &[(f, 2)]);
    let update = b.program(
        "momentum",
        &[(f, false), (f, false), (f, false)],
        "load 0|load 1|load 2|real 0.9|mul %3 %1|add %4 %2|real 0.1|mul %6 %5|sub %0 %7",
        &[(f, 8), (f, 5)],
    );
    let average = b.program(
        "ema",
        &[(f, false), (f, false)],
        "load 0|load 1|real 0.99|mul %0 %2|real 0.01|mul %1 %4|add %3 %5",
        &[(f, 6)],
    );
    let tick =
        b.program("tick", &[(DType::I32, false)], "load 0|int 1|add %0 %1", &[(DType::I32, 2)]);

    let (i, hd, o) = (IN as i64, HIDDEN as i64, OUT as i64);
    let vector = Access { tensor: b1, offset: 0, strides: vec![0, 0, 0, 1] };
    let like = Access { tensor: h, offset: 0, strides: vec![0, 0, hd, 1] };
    let rows = |program, instances| Kernel::Rows(Rows { program, instances });
    let micro = vec![
        b.gemm(
            "h",
            [BATCH, HIDDEN, IN],
            (x, [i, 1]),
            (w1, [hd, 1]),
            EpilogueKind::BiasRelu,
            bias_relu,
            vec![vector],
            h,
        ),
        b.gemm(
            "p",
            [BATCH, OUT, HIDDEN],
            (h, [hd, 1]),
            (w2, [o, 1]),
            EpilogueKind::Store,
            store,
            vec![],
            p,
        ),
        Builder::step(
            "loss",
            rows(
                mse,
                vec![Instance {
                    dims: vec![BATCH, OUT],
                    reduced: 2,
                    inputs: vec![b.all(p), b.all(t)],
                    outputs: vec![
                        Access { tensor: loss, offset: 0, strides: vec![0, 0] },
                        b.all(dp),
                    ],
                }],
            ),
        ),
        b.gemm(
            "w2.grad",
            [HIDDEN, OUT, BATCH],
            (h, [1, hd]),
            (dp, [o, 1]),
            EpilogueKind::Store,
            store,
            vec![],
            grads[2],
        ),
        b.gemm(
            "dh",
            [BATCH, HIDDEN, OUT],
            (dp, [o, 1]),
            (w2, [1, o]),
            EpilogueKind::Program,
            mask,
            vec![like],
            dh,
        ),
        b.gemm(
            "w1.grad",
            [IN, HIDDEN, BATCH],
            (x, [1, i]),
            (dh, [hd, 1]),
            EpilogueKind::Store,
            store,
            vec![],
            grads[0],
        ),
        Builder::step(
            "b1.grad",
            rows(
                sum,
                vec![Instance {
                    dims: vec![HIDDEN, BATCH],
                    reduced: 1,
                    inputs: vec![Access { tensor: dh, offset: 0, strides: vec![1, hd] }],
                    outputs: vec![Access { tensor: grads[1], offset: 0, strides: vec![1, 0] }],
                }],
            ),
        ),
    ];
    let size = |b: &Builder, t: TensorId| b.plan.tensors[t as usize].shape.iter().product::<u64>();
    let flat = |t: TensorId| Access { tensor: t, offset: 0, strides: vec![1] };
    let updates = vec![
        Builder::step(
            "squares",
            rows(
                square,
                (0..3u64)
                    .map(|k| Instance {
                        dims: vec![1, size(&b, grads[k as usize])],
                        reduced: 1,
                        inputs: vec![Access {
                            tensor: grads[k as usize],
                            offset: 0,
                            strides: vec![0, 1],
                        }],
                        outputs: vec![Access { tensor: squares, offset: k, strides: vec![1, 0] }],
                    })
                    .collect(),
            ),
        ),
        Builder::step(
            "norm",
            rows(
                root,
                vec![Instance {
                    dims: vec![1, 3],
                    reduced: 1,
                    inputs: vec![Access { tensor: squares, offset: 0, strides: vec![0, 1] }],
                    outputs: vec![Access { tensor: norm, offset: 0, strides: vec![1, 0] }],
                }],
            ),
        ),
        Builder::step(
            "update",
            rows(
                update,
                (0..3)
                    .map(|k| Instance {
                        dims: vec![size(&b, params[k])],
                        reduced: 0,
                        inputs: vec![flat(params[k]), flat(moments[k]), flat(grads[k])],
                        outputs: vec![flat(params[k]), flat(moments[k])],
                    })
                    .collect(),
            ),
        ),
        Builder::step(
            "ema",
            rows(
                average,
                vec![Instance {
                    dims: vec![size(&b, w2)],
                    reduced: 0,
                    inputs: vec![flat(ema), flat(w2)],
                    outputs: vec![flat(ema)],
                }],
            ),
        ),
        Builder::step(
            "count",
            rows(
                tick,
                vec![Instance {
                    dims: vec![1],
                    reduced: 0,
                    inputs: vec![flat(count)],
                    outputs: vec![flat(count)],
                }],
            ),
        ),
    ];
    b.plan.eval = micro[..2].to_vec();
    b.plan.micro = micro;
    b.plan.update = updates;
    b.plan.arena_bound_bytes = b.plan.arena_bytes;
    let named = |name: &str, tensor| Named { name: name.into(), tensor };
    b.plan.results = vec![named("loss", loss), named("grad_norm", norm), named("out.p", p)];
    b.plan.eval_results = vec![named("out.p", p)];
    b.plan
}

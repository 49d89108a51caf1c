//! Kernels work in the scratch memory they are given: a step must not allocate.

use precast_plan::{DType, RecurrentCell, Squash, Way};
use precast_runtime::cpu::kernels::attention::{Attention, Backward, View4};
use precast_runtime::cpu::kernels::conv::{Conv2d, ConvPlan};
use precast_runtime::cpu::kernels::conv_wgrad::ConvWeightGradPlan;
use precast_runtime::cpu::kernels::gather::{Indices, Matrix, gather_rows, scatter_add_rows};
use precast_runtime::cpu::kernels::gemm::{Gemm, MatMut, MatRef, Shape, scratch_bytes};
use precast_runtime::cpu::kernels::pool::MaxPool2d;
use precast_runtime::cpu::kernels::recurrence::{
    Backward as WalkBack, Dense, Forward as Walk, Recurrence,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every request to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const T: DType = DType::F32;

#[test]
fn no_kernel_allocates() {
    // Products with and without a cut of k, in f32 and in narrow formats.
    let shapes =
        [(300, 200, 100), (20, 30, 9000)].map(|(m, n, k)| Shape { batch: [1, 1], m, n, k });
    let conv = Conv2d {
        n: 5,
        cin: 8,
        cout: 20,
        groups: 1,
        input: [14, 15],
        kernel: [3, 3],
        stride: [2, 2],
        dilation: [1, 1],
        pad: [[1, 1], [1, 1]],
    };
    let depthwise = Conv2d { cout: 8, groups: 8, ..conv };
    let convs = [conv, Conv2d { stride: [1, 1], ..conv }, depthwise].map(|c| {
        (
            ConvPlan::forward(c, T, T, T),
            ConvPlan::backward_data(c, T, T, T),
            ConvWeightGradPlan::new(c, T, T, T),
        )
    });
    let attention = Attention {
        batch: 2,
        heads: 2,
        queries: 100,
        keys: 100,
        features: 16,
        value_features: 16,
        causal: true,
        scale: 0.25,
        fill: f32::NEG_INFINITY,
        safe: false,
    };
    let pool = MaxPool2d {
        planes: 40,
        input: [14, 15],
        output: [7, 7],
        kernel: [2, 2],
        stride: [2, 2],
        dilation: [1, 1],
        pad: [0, 0],
    };
    let recurrence = Recurrence {
        cell: RecurrentCell::Lstm,
        squash: [Squash::Sigmoid, Squash::Tanh, Squash::Tanh],
        way: Way::Both,
        steps: 5,
        batch: 50,
        hidden: 40,
    };
    let indices: Vec<i64> = (0..500).map(|i| i % 7).collect();
    let mut buffers: Vec<Vec<f32>> = (0..9).map(|_| vec![0.5; 300_000]).collect();
    let mut args = vec![0u8; 40 * 49];

    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    threads.install(|| {
        let bytes = shapes.iter().map(|s| scratch_bytes(s, T, T)).chain(
            convs
                .iter()
                .flat_map(|c| [c.0.scratch_bytes(), c.1.scratch_bytes(), c.2.scratch_bytes()]),
        );
        let bytes = bytes
            .chain([attention.forward_scratch_bytes(), attention.backward_scratch_bytes()])
            .chain([true, false].map(|forward| recurrence.scratch_bytes(forward)))
            .chain([pool.forward_scratch_bytes(), pool.backward_scratch_bytes()])
            .max();
        let mut scratch = vec![0u8; bytes.unwrap_or(0)];
        let p: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
        let mut step = || {
            // SAFETY: every tensor fits its buffer, and no result is also an operand.
            unsafe {
                for shape in shapes {
                    for dtype in [DType::F32, DType::F16, DType::F8e4m3] {
                        let (m, n, k) = (shape.m, shape.n as isize, shape.k as isize);
                        assert!(m * shape.k <= 300_000 && shape.n * shape.k <= 300_000);
                        let mat = |ptr: *mut u8, rs| MatRef { ptr, dtype, rs, cs: 1, bs: [0, 0] };
                        let product = Gemm {
                            shape,
                            a: mat(p[0], k),
                            b: mat(p[1], n),
                            c: None,
                            d: Some(MatMut { ptr: p[2], dtype: T, rs: n, cs: 1, bs: [0, 0] }),
                            alpha: 1.0,
                            beta: 0.0,
                            epilogue: None,
                        };
                        product.run(&mut scratch);
                    }
                }
                for (forward, data, weight) in &convs {
                    forward.run(p[0], p[1], p[2], None, &mut scratch);
                    data.run(p[2], p[1], p[3], None, &mut scratch);
                    weight.run(p[0], p[2], p[4], false, &mut scratch);
                }
                let view = |i: usize| View4::dense(p[i], T, [2, 2, 100, 16]);
                let lse: [*mut f32; 2] = [p[8].cast(), p[8].cast::<f32>().add(1000)];
                attention.forward(view(0), view(1), view(2), None, view(3), lse, &mut scratch);
                let backward = Backward {
                    q: view(0),
                    k: view(1),
                    v: view(2),
                    o: view(3),
                    grad_o: view(4),
                    mask: None,
                    grad_q: view(5),
                    grad_k: view(6),
                    grad_v: view(7),
                };
                attention.backward(&backward, lse.map(|p| p.cast_const()), &mut scratch);
                let dense = |i: usize| Dense { ptr: p[i], dtype: T };
                let walk = Walk {
                    gates: dense(0),
                    matrix: dense(1),
                    states: dense(2),
                    bias: None,
                    peephole: None,
                    lengths: None,
                    y: dense(3),
                    kept: dense(4),
                    before: dense(5),
                };
                recurrence.forward(&walk, &mut scratch);
                let back = WalkBack {
                    matrix: dense(1),
                    kept: dense(4),
                    before: dense(5),
                    d_y: dense(3),
                    peephole: None,
                    lengths: None,
                    d_gates: dense(6),
                    d_states: dense(7),
                };
                recurrence.backward(&back, &mut scratch);
                pool.forward(p[0], p[1], args.as_mut_ptr(), T, &mut scratch);
                pool.backward(p[1], args.as_ptr(), p[2], T, &mut scratch);
                let ptr = indices.as_ptr().cast();
                let which = Indices { ptr, dtype: DType::I64, len: 500, stride: 1 };
                let rows = |i: usize| Matrix { ptr: p[i], dtype: T, strides: [100, 1] };
                gather_rows(rows(0), (7, 100), which, rows(1)).expect("indices in range");
                scatter_add_rows(rows(2), (7, 100), which, rows(1), false)
                    .expect("indices in range");
            }
        };
        // Tables of formats and of the pool are made once.
        for _ in 0..3 {
            step();
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..5 {
            step();
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "allocations in five steps");
    });
}

//! cuBLASLt of the software device against a naive loop in f64.

#![allow(clippy::needless_range_loop)] // indices of matrices

use cudarc::cublaslt::sys as lt;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys};
use half::{bf16, f16};
use precast_software_device::SoftwareDevice;
use std::ffi::c_void;
use std::sync::Arc;

precast_software_device::use_software_device!();

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    fn code(self) -> lt::cudaDataType_t {
        match self {
            Type::F32 => lt::cudaDataType_t::CUDA_R_32F,
            Type::F16 => lt::cudaDataType_t::CUDA_R_16F,
            Type::Bf16 => lt::cudaDataType_t::CUDA_R_16BF,
        }
    }
    fn bytes(self, x: &[f64]) -> Vec<u8> {
        x.iter()
            .flat_map(|&v| match self {
                Type::F32 => (v as f32).to_le_bytes().to_vec(),
                Type::F16 => f16::from_f64(v).to_le_bytes().to_vec(),
                Type::Bf16 => bf16::from_f64(v).to_le_bytes().to_vec(),
            })
            .collect()
    }
    fn values(self, x: &[u8]) -> Vec<f64> {
        match self {
            Type::F32 => {
                x.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).into()).collect()
            }
            Type::F16 => {
                x.chunks(2).map(|c| f16::from_le_bytes(c.try_into().unwrap()).into()).collect()
            }
            Type::Bf16 => {
                x.chunks(2).map(|c| bf16::from_le_bytes(c.try_into().unwrap()).into()).collect()
            }
        }
    }
    /// Relative rounding of a result.
    fn epsilon(self) -> f64 {
        match self {
            Type::F32 => 1e-5,
            Type::F16 => 1e-3,
            Type::Bf16 => 8e-3,
        }
    }
}

/// A product to try.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    batch: usize,
    ta: bool,
    tb: bool,
    input: Type,
    output: Type,
    alpha: f32,
    beta: f32,
    device_scalars: bool,
    epilogue: lt::cublasLtEpilogue_t,
    candidate: usize,
    captured: bool,
}

use lt::cublasLtEpilogue_t as E;

const PLAIN: Case = Case {
    m: 6,
    n: 5,
    k: 19,
    batch: 1,
    ta: false,
    tb: false,
    input: Type::F32,
    output: Type::F32,
    alpha: 1.0,
    beta: 0.0,
    device_scalars: false,
    epilogue: E::CUBLASLT_EPILOGUE_DEFAULT,
    candidate: 0,
    captured: false,
};

fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // Exact in every type.
            ((x >> 40) % 33) as f64 / 16.0 - 1.0
        })
        .collect()
}

struct Set {
    stream: Arc<CudaStream>,
    handle: lt::cublasLtHandle_t,
}

impl Set {
    fn new() -> Set {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: every buffer is used in one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        Set { stream, handle: cudarc::cublaslt::result::create_handle().unwrap() }
    }

    fn upload(&self, bytes: &[u8]) -> CudaSlice<u8> {
        self.stream.clone_htod(bytes).unwrap()
    }

    fn at(&self, x: &CudaSlice<u8>) -> u64 {
        x.device_ptr(&self.stream).0
    }

    /// Runs a case and compares everything it writes.
    fn check(&self, case: Case) {
        let Case { m, n, k, batch, .. } = case;
        let (input, output) = (case.input, case.output);
        // Leading dimensions and strides that leave gaps.
        let (rows_a, cols_a) = if case.ta { (k, m) } else { (m, k) };
        let (rows_b, cols_b) = if case.tb { (n, k) } else { (k, n) };
        let (lda, ldb, ldd) = (rows_a + 3, rows_b + 1, m + 2);
        let (sa, sb, sd) = (lda * cols_a + 5, ldb * cols_b, ldd * n + 7);
        let relu = matches!(
            case.epilogue,
            E::CUBLASLT_EPILOGUE_RELU_AUX
                | E::CUBLASLT_EPILOGUE_RELU_AUX_BIAS
                | E::CUBLASLT_EPILOGUE_DRELU
                | E::CUBLASLT_EPILOGUE_DRELU_BGRAD
        );
        let ld_aux = if relu { 128 } else { m.next_multiple_of(8) };
        let s_aux = ld_aux * n;
        let (a, b) = (numbers(sa * batch, 1), numbers(sb * batch, 2));
        let (c, bias) = (numbers(sd * batch, 3), numbers(m.max(n) * batch, 4));
        let aux = numbers(s_aux * batch, 5);
        let aux_bytes = if relu {
            (0..s_aux * batch / 8).map(|i| (i * 37 % 251) as u8).collect()
        } else {
            output.bytes(&aux)
        };
        let (da, db, dc) = (
            self.upload(&input.bytes(&a)),
            self.upload(&input.bytes(&b)),
            self.upload(&output.bytes(&c)),
        );
        let mut dd = self.upload(&output.bytes(&vec![7.0; sd * batch]));
        let dbias = self.upload(&output.bytes(&bias));
        let daux = self.upload(&aux_bytes);
        let scalars = self.upload(&Type::F32.bytes(&[case.alpha.into(), case.beta.into()]));
        let workspace = self.upload(&[0; 1 << 16]);
        let (alpha, beta) = if case.device_scalars {
            let at = self.at(&scalars);
            (at as *const c_void, (at + 4) as *const c_void)
        } else {
            ((&raw const case.alpha).cast(), (&raw const case.beta).cast())
        };
        // SAFETY: the descriptions and memory live to the end of the block.
        unsafe {
            use lt::cublasLtMatmulDescAttributes_t as D;
            let ok = lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
            let mut desc = std::ptr::null_mut();
            let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
            assert_eq!(lt::cublasLtMatmulDescCreate(&mut desc, compute, Type::F32.code()), ok);
            let set = |d: D, v: &[u8]| {
                assert_eq!(
                    lt::cublasLtMatmulDescSetAttribute(desc, d, v.as_ptr().cast(), v.len()),
                    ok,
                    "{d:?}"
                );
            };
            set(D::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(case.ta).to_le_bytes());
            set(D::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(case.tb).to_le_bytes());
            set(
                D::CUBLASLT_MATMUL_DESC_POINTER_MODE,
                &i32::from(case.device_scalars).to_le_bytes(),
            );
            set(D::CUBLASLT_MATMUL_DESC_EPILOGUE, &(case.epilogue as u32).to_le_bytes());
            set(D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &self.at(&dbias).to_le_bytes());
            set(
                D::CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE,
                &(if batch > 1 { m.max(n) } else { 0 } as i64).to_le_bytes(),
            );
            set(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &self.at(&daux).to_le_bytes());
            set(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &(ld_aux as i64).to_le_bytes());
            set(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, &(s_aux as i64).to_le_bytes());
            let layout = |t: Type, rows: usize, cols: usize, ld: usize, stride: usize| {
                let mut l = std::ptr::null_mut();
                assert_eq!(
                    lt::cublasLtMatrixLayoutCreate(
                        &mut l,
                        t.code(),
                        rows as u64,
                        cols as u64,
                        ld as i64
                    ),
                    ok
                );
                use lt::cublasLtMatrixLayoutAttribute_t as L;
                let (count, stride) = (batch as i32, stride as i64);
                let at = (&raw const count).cast();
                assert_eq!(
                    lt::cublasLtMatrixLayoutSetAttribute(
                        l,
                        L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                        at,
                        4
                    ),
                    ok
                );
                let at = (&raw const stride).cast();
                assert_eq!(
                    lt::cublasLtMatrixLayoutSetAttribute(
                        l,
                        L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                        at,
                        8
                    ),
                    ok
                );
                l
            };
            let la = layout(input, rows_a, cols_a, lda, sa);
            let lb = layout(input, rows_b, cols_b, ldb, sb);
            let ld = layout(output, m, n, ldd, sd);
            let mut preference = std::ptr::null_mut();
            assert_eq!(lt::cublasLtMatmulPreferenceCreate(&mut preference), ok);
            let most = 1usize << 16;
            let which =
                lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            assert_eq!(
                lt::cublasLtMatmulPreferenceSetAttribute(
                    preference,
                    which,
                    (&raw const most).cast(),
                    8
                ),
                ok
            );
            let mut results = vec![std::mem::zeroed::<lt::cublasLtMatmulHeuristicResult_t>(); 8];
            let mut found = 0;
            let status = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                la,
                lb,
                ld,
                ld,
                preference,
                8,
                results.as_mut_ptr(),
                &mut found,
            );
            assert_eq!(status, ok, "{case:?}");
            assert!(found >= 2);
            let candidate = results[case.candidate];
            assert!(candidate.workspaceSize <= most);
            if case.captured {
                self.stream
                    .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
                    .unwrap();
            }
            let status = lt::cublasLtMatmul(
                self.handle,
                desc,
                alpha,
                self.at(&da) as *const c_void,
                la,
                self.at(&db) as *const c_void,
                lb,
                beta,
                self.at(&dc) as *const c_void,
                ld,
                dd.device_ptr_mut(&self.stream).0 as *mut c_void,
                ld,
                &candidate.algo,
                self.at(&workspace) as *mut c_void,
                candidate.workspaceSize,
                self.stream.cu_stream().cast(),
            );
            assert_eq!(status, ok, "{case:?}");
            if case.captured {
                let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
                let graph = self.stream.end_capture(flags).unwrap().unwrap();
                let before = output.values(&self.stream.clone_dtoh(&dd).unwrap());
                assert!(before.iter().all(|&v| v == 7.0), "a captured product does not run");
                graph.launch().unwrap();
                self.stream.synchronize().unwrap();
            }
            lt::cublasLtMatmulPreferenceDestroy(preference);
            for l in [la, lb, ld] {
                lt::cublasLtMatrixLayoutDestroy(l);
            }
            lt::cublasLtMatmulDescDestroy(desc);
        }
        let d = output.values(&self.stream.clone_dtoh(&dd).unwrap());
        let bias_after = output.values(&self.stream.clone_dtoh(&dbias).unwrap());
        let aux_raw = self.stream.clone_dtoh(&daux).unwrap();
        let epsilon = output.epsilon();
        let near = |have: f64, want: f64, scale: f64, what: &str| {
            assert!(
                (have - want).abs() <= epsilon * scale.max(want.abs()),
                "{what}: {have} for {want}, {case:?}"
            );
        };
        for z in 0..batch {
            let at_a =
                |i: usize, l: usize| a[z * sa + if case.ta { l + i * lda } else { i + l * lda }];
            let at_b =
                |l: usize, j: usize| b[z * sb + if case.tb { j + l * ldb } else { l + j * ldb }];
            let bias_z = |i: usize| bias[z * m.max(n) + i];
            let mut row_sums = vec![0f64; m];
            for j in 0..n {
                for i in 0..m {
                    let sum: f64 = (0..k).map(|l| at_a(i, l) * at_b(l, j)).sum();
                    let at = z * sd + i + j * ldd;
                    let mut v = f64::from(case.alpha) * sum + f64::from(case.beta) * c[at];
                    let (x, bit) = (z * s_aux + i + j * ld_aux, |raw: &[u8], x: usize| {
                        raw[x / 8] >> (x % 8) & 1 == 1
                    });
                    match case.epilogue {
                        E::CUBLASLT_EPILOGUE_BIAS
                        | E::CUBLASLT_EPILOGUE_RELU_BIAS
                        | E::CUBLASLT_EPILOGUE_GELU_BIAS
                        | E::CUBLASLT_EPILOGUE_RELU_AUX_BIAS
                        | E::CUBLASLT_EPILOGUE_GELU_AUX_BIAS => v += bias_z(i),
                        _ => {}
                    }
                    let before = v;
                    match case.epilogue {
                        E::CUBLASLT_EPILOGUE_RELU | E::CUBLASLT_EPILOGUE_RELU_BIAS => {
                            v = v.max(0.0)
                        }
                        E::CUBLASLT_EPILOGUE_RELU_AUX | E::CUBLASLT_EPILOGUE_RELU_AUX_BIAS => {
                            v = v.max(0.0);
                            assert_eq!(bit(&aux_raw, x), before > 0.0);
                        }
                        E::CUBLASLT_EPILOGUE_GELU | E::CUBLASLT_EPILOGUE_GELU_BIAS => v = gelu(v),
                        E::CUBLASLT_EPILOGUE_GELU_AUX | E::CUBLASLT_EPILOGUE_GELU_AUX_BIAS => {
                            v = gelu(v);
                            near(output.values(&aux_raw)[x], before, 1.0, "aux");
                        }
                        E::CUBLASLT_EPILOGUE_DRELU | E::CUBLASLT_EPILOGUE_DRELU_BGRAD => {
                            v = if bit(&aux_bytes, x) { v } else { 0.0 };
                        }
                        E::CUBLASLT_EPILOGUE_DGELU | E::CUBLASLT_EPILOGUE_DGELU_BGRAD => {
                            // The central difference of GELU, which needs no formula of its derivative.
                            v *= (gelu(aux[x] + 1e-5) - gelu(aux[x] - 1e-5)) / 2e-5;
                        }
                        _ => {}
                    }
                    row_sums[i] += v;
                    near(d[at], v, 1.0, "d");
                }
            }
            let after = |i: usize| bias_after[z * m.max(n) + i];
            match case.epilogue {
                E::CUBLASLT_EPILOGUE_DRELU_BGRAD | E::CUBLASLT_EPILOGUE_DGELU_BGRAD => {
                    (0..m).for_each(|i| near(after(i), row_sums[i], n as f64, "bias gradient"));
                }
                E::CUBLASLT_EPILOGUE_BGRADA => {
                    (0..m).for_each(|i| {
                        near(after(i), (0..k).map(|l| at_a(i, l)).sum(), 1.0, "bias gradient of A")
                    });
                }
                E::CUBLASLT_EPILOGUE_BGRADB => {
                    (0..n).for_each(|j| {
                        near(after(j), (0..k).map(|l| at_b(l, j)).sum(), 1.0, "bias gradient of B")
                    });
                }
                _ => (0..m).for_each(|i| assert_eq!(after(i), bias_z(i))),
            }
            // What lies between the columns is left alone.
            for j in 0..n {
                assert!((m..ldd).all(|i| d[z * sd + i + j * ldd] == 7.0));
            }
        }
    }
}

/// The approximation by tanh.
fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

#[test]
fn transposes_types_and_batches() {
    let set = Set::new();
    for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
        for (input, output) in [
            (Type::F32, Type::F32),
            (Type::F16, Type::F16),
            (Type::F16, Type::F32),
            (Type::Bf16, Type::Bf16),
            (Type::Bf16, Type::F32),
        ] {
            for batch in [1, 3] {
                set.check(Case { ta, tb, input, output, batch, ..PLAIN });
            }
        }
    }
}

#[test]
fn scalars_of_the_host_and_of_the_device() {
    let set = Set::new();
    for device_scalars in [false, true] {
        for (alpha, beta) in [(0.5, 0.0), (2.0, 1.0), (-1.0, 0.25)] {
            set.check(Case { alpha, beta, device_scalars, batch: 2, ..PLAIN });
        }
    }
}

#[test]
fn every_candidate_and_every_epilogue() {
    let set = Set::new();
    for epilogue in [
        E::CUBLASLT_EPILOGUE_DEFAULT,
        E::CUBLASLT_EPILOGUE_BIAS,
        E::CUBLASLT_EPILOGUE_RELU,
        E::CUBLASLT_EPILOGUE_RELU_BIAS,
        E::CUBLASLT_EPILOGUE_RELU_AUX,
        E::CUBLASLT_EPILOGUE_RELU_AUX_BIAS,
        E::CUBLASLT_EPILOGUE_DRELU,
        E::CUBLASLT_EPILOGUE_DRELU_BGRAD,
        E::CUBLASLT_EPILOGUE_GELU,
        E::CUBLASLT_EPILOGUE_GELU_BIAS,
        E::CUBLASLT_EPILOGUE_GELU_AUX,
        E::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        E::CUBLASLT_EPILOGUE_DGELU,
        E::CUBLASLT_EPILOGUE_DGELU_BGRAD,
        E::CUBLASLT_EPILOGUE_BGRADA,
        E::CUBLASLT_EPILOGUE_BGRADB,
    ] {
        for candidate in 0..2 {
            set.check(Case { epilogue, candidate, tb: true, ..PLAIN });
            set.check(Case {
                epilogue,
                candidate,
                ta: true,
                input: Type::Bf16,
                output: Type::Bf16,
                ..PLAIN
            });
        }
    }
}

#[test]
fn a_captured_product_runs_with_its_graph() {
    let set = Set::new();
    set.check(Case { captured: true, beta: 1.0, ..PLAIN });
    set.check(Case { captured: true, device_scalars: true, alpha: 3.0, candidate: 1, ..PLAIN });
}

#[test]
fn what_does_not_fit_is_refused() {
    let set = Set::new();
    let message = || SoftwareDevice::open().unwrap().message();
    let memory = set.upload(&[0; 4096]);
    let at = set.at(&memory);
    // SAFETY: refused before anything is read.
    unsafe {
        let ok = lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        let mut desc = std::ptr::null_mut();
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        assert_eq!(lt::cublasLtMatmulDescCreate(&mut desc, compute, Type::F32.code()), ok);
        let layout = |rows: u64, cols: u64| {
            let mut l = std::ptr::null_mut();
            assert_eq!(
                lt::cublasLtMatrixLayoutCreate(&mut l, Type::F32.code(), rows, cols, rows as i64),
                ok
            );
            l
        };
        let (small, wide, large) = (layout(16, 16), layout(16, 17), layout(64, 64));
        let one = 1f32;
        let product = |a, b, d| {
            let scalar = (&raw const one).cast();
            let p = at as *mut c_void;
            lt::cublasLtMatmul(
                set.handle,
                desc,
                scalar,
                p,
                a,
                p,
                b,
                scalar,
                p,
                d,
                p,
                d,
                std::ptr::null(),
                std::ptr::null_mut(),
                0,
                set.stream.cu_stream().cast(),
            )
        };
        let invalid = lt::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE;
        assert_eq!(product(small, small, small), ok);
        assert_eq!(product(small, small, wide), invalid, "shapes");
        assert_eq!(product(wide, wide, wide), invalid, "shapes");
        assert_eq!(product(large, large, large), invalid, "memory");
        assert!(message().contains("A has 16384 bytes"), "{}", message());
        use lt::cublasLtMatmulDescAttributes_t as D;
        let set_desc = |d: D, v: &[u8]| {
            let v = (v.as_ptr().cast(), v.len());
            assert_eq!(lt::cublasLtMatmulDescSetAttribute(desc, d, v.0, v.1), ok);
        };
        let bias = (E::CUBLASLT_EPILOGUE_BIAS as u32).to_le_bytes();
        set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE, &bias);
        set_desc(D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.to_le_bytes());
        let of = |t: Type| (t.code() as u32).to_le_bytes();
        set_desc(D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &of(Type::Bf16));
        assert_eq!(product(small, small, small), invalid, "a bias of another type than D's");
        set_desc(D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &of(Type::F32));
        assert_eq!(product(small, small, small), ok);
        let derivative = (E::CUBLASLT_EPILOGUE_DGELU as u32).to_le_bytes();
        set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE, &derivative);
        assert_eq!(product(small, small, small), invalid, "no argument");
        let beside = at + 2048;
        set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &beside.to_le_bytes());
        for (ld, fits) in [(8i64, false), (20, false), (24, true), (16, true)] {
            set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld.to_le_bytes());
            assert_eq!(product(small, small, small) == ok, fits, "lines of {ld}");
        }
        set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, &of(Type::Bf16));
        assert_eq!(product(small, small, small), invalid, "an argument of another type than D's");
        set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, &of(Type::F32));
        assert_eq!(product(small, small, small), ok);
        set_desc(D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &at.to_le_bytes());
        assert_eq!(product(small, small, small), invalid, "an argument that D lies over");
        for l in [small, wide, large] {
            lt::cublasLtMatrixLayoutDestroy(l);
        }
        lt::cublasLtMatmulDescDestroy(desc);
    }
    assert!(message().contains("over which D lies"), "{}", message());
    set.stream.synchronize().unwrap();
}

//! Kernel text on the host: what it computes, and that misuse is found.

use precast_software_device::host::{Entry, HostModule, LaunchError, entries};
use std::ffi::c_void;

const TEXT: &str = r#"
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
extern "C" __global__ void __launch_bounds__(256) row_mean(const float* __restrict__ x, float* __restrict__ y, int c) {
  __shared__ float red[8];
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  float* row = (float*)dyn_smem;
  float s = 0.f;
  for (int i = threadIdx.x; i < c; i += blockDim.x) s += row[i] = x[(size_t)blockIdx.x * c + i];
  s = warp_sum(s);
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = s;
  __syncthreads();
  s = 0.f;
  for (int i = 0; i < 8; i++) s += red[i];
  for (int i = threadIdx.x; i < c; i += blockDim.x) y[(size_t)blockIdx.x * c + i] = row[i] - s / c;
}
extern "C" __global__ void no_barrier(float* o) {
  __shared__ float s[64];
  s[threadIdx.x] = threadIdx.x;
  o[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void missing_arrival(float* o) {
  if (threadIdx.x < 40) __syncwarp();
  if (threadIdx.x == 3) __shfl_sync(0xffffffffu, 1.f, 0);
  else
    __syncthreads();
  o[threadIdx.x] = 1;
}
extern "C" __global__ void divergent(float* o) {
  if (threadIdx.x & 1)
    __syncthreads();
  else
    __syncthreads();
  o[threadIdx.x] = 1;
}
extern "C" __global__ void outside(float* o) { o[threadIdx.x == 7 ? 1 << 28 : 0] = 1; }
extern "C" __global__ void shared_overrun(float* o) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  ((float*)dyn_smem)[threadIdx.x] = 1;
  o[0] = 1;
}
extern "C" __global__ void misaligned(float* o) {
  *(float4*)(o + 1) = make_float4(1, 2, 3, 4);
}
extern "C" __global__ void round_all(const float* x, __half* h, __nv_bfloat16* b, __nv_fp8_e4m3* e, __nv_fp8_e5m2* f, float* back, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  h[i] = __float2half_rn(x[i]);
  b[i] = __float2bfloat16_rn(x[i]);
  e[i] = __nv_fp8_e4m3(x[i]);
  f[i] = __nv_fp8_e5m2(x[i]);
  back[4 * i] = __half2float(h[i]);
  back[4 * i + 1] = __bfloat162float(b[i]);
  back[4 * i + 2] = (float)e[i];
  back[4 * i + 3] = (float)f[i];
}
extern "C" __global__ void tile(const __nv_bfloat16* A, const __nv_bfloat16* B, float* D, int K) {
  int l = threadIdx.x, g = l >> 2, t = l & 3;
  float d[4] = {0, 0, 0, 0};
  for (int k = 0; k < K; k += 16) {
    unsigned a[4] = {*(const unsigned*)(A + g * K + k + t * 2), *(const unsigned*)(A + (g + 8) * K + k + t * 2),
                     *(const unsigned*)(A + g * K + k + t * 2 + 8), *(const unsigned*)(A + (g + 8) * K + k + t * 2 + 8)};
    unsigned b[2] = {*(const unsigned*)(B + g * K + k + t * 2), *(const unsigned*)(B + g * K + k + t * 2 + 8)};
    mma_m16n8k16_bf16(d, a, b);
  }
  D[g * 8 + t * 2] = d[0]; D[g * 8 + t * 2 + 1] = d[1];
  D[(g + 8) * 8 + t * 2] = d[2]; D[(g + 8) * 8 + t * 2 + 1] = d[3];
}
extern "C" __global__ void staged(const float4* x, float4* y, int wait) {
  __shared__ float4 s[32];
  cp_async_16(&s[threadIdx.x], x + threadIdx.x);
  cp_async_commit();
  if (wait) cp_async_wait<0>();
  __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}
"#;

fn module() -> HostModule {
    HostModule::compile(TEXT, &[]).expect("the text compiles")
}

fn pointers<const N: usize>(values: &mut [*mut c_void; N]) -> [*mut c_void; N] {
    std::array::from_fn(|i| (&raw mut values[i]).cast())
}

fn one_pointer(entry: &str, threads: u32, shared: u32) -> (Result<(), LaunchError>, Vec<f32>) {
    #[repr(align(16))]
    struct Out([f32; 512]);
    let mut out = Box::new(Out([0.0; 512]));
    let mut values = [out.0.as_mut_ptr().cast()];
    let mut args = pointers(&mut values);
    // SAFETY: the kernels take one pointer to at least 512 floats.
    let result = unsafe { module().launch(entry, [1; 3], [threads, 1, 1], shared, 5, &mut args) };
    (result, out.0.to_vec())
}

#[test]
fn names_are_found() {
    assert_eq!(
        entries(
            "extern \"C\" __global__ void\n__launch_bounds__(256, 2) a(int x) {}\n__global__ void b (int y);"
        ),
        [
            Entry { name: "a".into(), bounds: Some("256".into()) },
            Entry { name: "b".into(), bounds: None }
        ]
    );
}

#[test]
fn a_row_is_centred_whatever_the_order_of_threads() {
    let (rows, columns) = (7usize, 300usize);
    let x: Vec<f32> = (0..rows * columns).map(|i| ((i * 37) % 101) as f32 * 0.25).collect();
    let module = module();
    let mut first: Option<Vec<f32>> = None;
    for seed in 0..6 {
        let mut y = vec![0f32; x.len()];
        let mut values = [x.as_ptr().cast_mut().cast(), y.as_mut_ptr().cast()];
        let mut c = columns as i32;
        let [a, b] = pointers(&mut values);
        let mut args = [a, b, (&raw mut c).cast()];
        // SAFETY: the arguments are those of `row_mean`.
        unsafe {
            module.launch("row_mean", [rows as u32, 1, 1], [256, 1, 1], 1200, seed, &mut args)
        }
        .unwrap();
        for (x, y) in x.chunks(columns).zip(y.chunks(columns)) {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / columns as f64;
            for (x, y) in x.iter().zip(y) {
                assert!((f64::from(*x) - mean - f64::from(*y)).abs() < 1e-5);
            }
        }
        assert_eq!(first.get_or_insert_with(|| y.clone()), &y);
    }
}

#[test]
fn a_race_shows_as_nan() {
    let (result, out) = one_pointer("no_barrier", 64, 0);
    result.unwrap();
    let wrong = (0..64).filter(|&i| out[i] != (63 - i) as f32).count();
    assert!(wrong > 0 && out[..64].iter().any(|v| v.is_nan()));
}

#[test]
fn misuse_is_reported() {
    for (entry, threads, shared, code, text) in [
        ("missing_arrival", 64, 0, 2, "deadlock"),
        ("divergent", 64, 0, 2, "divergent barrier"),
        ("outside", 32, 0, 700, "illegal address"),
        ("shared_overrun", 64, 252, 700, "past its 252 bytes"),
        ("misaligned", 1, 0, 719, "misaligned"),
        ("outside", 2048, 0, 1, "bad launch"),
        ("absent", 1, 0, 1, "no kernel `absent`"),
    ] {
        let error = one_pointer(entry, threads, shared).0.expect_err(entry);
        assert_eq!(error.code, code, "{entry}: {error}");
        assert!(error.message.contains(text), "{entry}: {error}");
    }
}

#[test]
fn every_half_and_bf16_rounds_as_the_half_crate_does() {
    // Every 16-bit pattern as a value, and the points half way between neighbours.
    let mut x = Vec::new();
    for b in 0..=u16::MAX {
        let h = half::f16::from_bits(b).to_f32();
        let g = half::bf16::from_bits(b).to_f32();
        let next_h = half::f16::from_bits(b.wrapping_add(1)).to_f32();
        x.extend([
            h,
            g,
            (h + next_h) * 0.5,
            f32::from_bits(g.to_bits() | 0x8000),
            f32::from_bits(g.to_bits() | 0x8001),
        ]);
    }
    let n = x.len();
    let (mut h, mut b, mut e, mut f) = (vec![0u16; n], vec![0u16; n], vec![0u8; n], vec![0u8; n]);
    let mut back = vec![0f32; 4 * n];
    let mut values = [
        x.as_ptr().cast_mut().cast(),
        h.as_mut_ptr().cast(),
        b.as_mut_ptr().cast(),
        e.as_mut_ptr().cast(),
        f.as_mut_ptr().cast(),
        back.as_mut_ptr().cast(),
    ];
    let mut count = n as i32;
    let mut args = pointers(&mut values).to_vec();
    args.push((&raw mut count).cast());
    // SAFETY: the arguments are those of `round_all`.
    unsafe {
        module().launch("round_all", [n.div_ceil(256) as u32, 1, 1], [256, 1, 1], 0, 3, &mut args)
    }
    .unwrap();
    for i in 0..n {
        let v = x[i];
        if v.is_nan() {
            assert!(half::f16::from_bits(h[i]).is_nan() && half::bf16::from_bits(b[i]).is_nan());
            assert!(back[4 * i..][..4].iter().all(|v| v.is_nan()));
            continue;
        }
        assert_eq!(h[i], half::f16::from_f32(v).to_bits(), "{v} as half");
        assert_eq!(b[i], half::bf16::from_f32(v).to_bits(), "{v} as bfloat16");
        assert_eq!(back[4 * i], half::f16::from_bits(h[i]).to_f32());
        // FP8 by search over all values: nothing is nearer, and a tie is even.
        for (code, back, most) in
            [(e[i], back[4 * i + 2], 448f32), (f[i], back[4 * i + 3], 57344.0)]
        {
            if v.abs() >= most {
                assert_eq!(back.abs(), most, "{v} saturates");
            } else {
                let ulp = |c: u8| fp8(c, most) - fp8(c.saturating_sub(1), most);
                let below = if code & 127 == 0 { ulp(1) } else { ulp(code & 127) };
                let above = fp8((code & 127) + 1, most) - fp8(code & 127, most);
                let off = v.abs() - back.abs();
                assert!(off <= above / 2.0 && off >= -below / 2.0, "{v} became {back}");
                if (off == above / 2.0 || off == -below / 2.0) && off != 0.0 {
                    assert_eq!(code & 1, 0, "{v} is a tie");
                }
            }
        }
    }
}

/// Magnitudes of an FP8 type by its largest value, from the definition.
fn fp8(code: u8, most: f32) -> f32 {
    let (m_bits, bias) = if most == 448.0 { (3, 7) } else { (2, 15) };
    let (e, m) =
        (i32::from(code >> m_bits), f32::from(code & ((1 << m_bits) - 1)) / (1 << m_bits) as f32);
    if e == 0 { m * 2f32.powi(1 - bias) } else { (1.0 + m) * 2f32.powi(e - bias) }
}

#[test]
fn a_warp_multiplies_matrices() {
    let k = 48usize;
    let value = |i: usize| half::bf16::from_f32(((i * 29) % 23) as f32 - 11.0);
    let a: Vec<_> = (0..16 * k).map(value).collect();
    let b: Vec<_> = (0..8 * k).map(|i| value(i + 5)).collect();
    let mut d = vec![0f32; 128];
    let mut values =
        [a.as_ptr().cast_mut().cast(), b.as_ptr().cast_mut().cast(), d.as_mut_ptr().cast()];
    let mut count = k as i32;
    let mut args = pointers(&mut values).to_vec();
    args.push((&raw mut count).cast());
    // SAFETY: the arguments are those of `tile`.
    unsafe { module().launch("tile", [1; 3], [32, 1, 1], 0, 9, &mut args) }.unwrap();
    for i in 0..16 {
        for j in 0..8 {
            let exact: f32 = (0..k).map(|l| a[i * k + l].to_f32() * b[j * k + l].to_f32()).sum();
            assert_eq!(d[i * 8 + j], exact);
        }
    }
}

#[test]
fn an_asynchronous_copy_arrives_at_its_wait() {
    #[repr(align(16))]
    struct Floats([f32; 128]);
    let x = Floats(std::array::from_fn(|i| i as f32));
    for wait in [0i32, 1] {
        let mut y = Floats([0.0; 128]);
        let mut wait = wait;
        let mut values = [x.0.as_ptr().cast_mut().cast(), y.0.as_mut_ptr().cast()];
        let [a, b] = pointers(&mut values);
        let mut args = [a, b, (&raw mut wait).cast()];
        // SAFETY: the arguments are those of `staged`.
        unsafe { module().launch("staged", [1; 3], [32, 1, 1], 0, 1, &mut args) }.unwrap();
        let right = (0..128).all(|i| y.0[i] == x.0[(31 - i / 4) * 4 + i % 4]);
        assert_eq!(right, wait == 1);
        assert!(wait == 1 || y.0.iter().all(|v| v.is_nan()));
    }
}

// y[o, i, j] = the sum of x[o, k, j] over k <= i (k < i where EXCLUSIVE), from the end where REVERSE.
#if REAL
__device__ __forceinline__ double k_load(const XT *p) { return (double)widen(*p); }
__device__ __forceinline__ void k_store(YT *p, double v) { narrow(*p, (float)v); }
#else
__device__ __forceinline__ int k_load(const XT *p) { return widen((i64)*p); }
__device__ __forceinline__ void k_store(YT *p, int v) { *p = (YT)v; }
#endif
// Integers wrap.
__device__ __forceinline__ double k_sum(double a, double b) { return a + b; }
__device__ __forceinline__ int k_sum(int a, int b) { return (int)((u32)a + (u32)b); }
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  const i64 lines = outer * inner;
#if LINE_A_THREAD
  for (i64 line = (i64)blockIdx.x * 256 + threadIdx.x; line < lines; line += (i64)gridDim.x * 256) {
    const i64 o = line / inner, j = line - o * inner;
    const XT *from = x + (o * x_s0 + j * x_s2);
    YT *to = y + (o * y_s0 + j * y_s2);
    SumT sum = 0;
    for (i64 i = 0; i < n; i++) {
      const i64 at = REVERSE ? n - 1 - i : i;
      const SumT before = sum;
      sum = k_sum(sum, k_load(from + at * x_s1));
      k_store(to + at * y_s1, EXCLUSIVE ? before : sum);
    }
  }
#else
  __shared__ SumT part[256];
  const u32 t = threadIdx.x;
  for (i64 line = blockIdx.x; line < lines; line += gridDim.x) {
    const i64 o = line / inner, j = line - o * inner;
    const XT *from = x + (o * x_s0 + j * x_s2);
    YT *to = y + (o * y_s0 + j * y_s2);
    SumT sum = 0;
    for (i64 first = 0; first < n; first += 256) {
      const i64 i = first + t, at = REVERSE ? n - 1 - i : i;
      part[t] = i < n ? k_load(from + at * x_s1) : (SumT)0;
      __syncthreads();
      for (u32 step = 1; step < 256u; step *= 2u) {
        const SumT left = t >= step ? part[t - step] : (SumT)0;
        __syncthreads();
        part[t] = k_sum(left, part[t]);
        __syncthreads();
      }
      const SumT own = EXCLUSIVE ? (t > 0 ? part[t - 1] : (SumT)0) : part[t];
      if (i < n) k_store(to + at * y_s1, k_sum(sum, own));
      sum = k_sum(sum, part[255]);
      __syncthreads();
    }
  }
#endif
}

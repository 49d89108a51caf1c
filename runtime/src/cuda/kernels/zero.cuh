// Zeros of a strided matrix.
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  const u64 total = (u64)table_rows * (u64)width;
  for (u64 at = (u64)blockIdx.x * 256u + threadIdx.x; at < total; at += (u64)gridDim.x * 256u) {
    u64 r = at / (u64)width, c = at - r * (u64)width;
    narrow(table[(i64)r * table_s0 + (i64)c * table_s1], 0.0f);
  }
}

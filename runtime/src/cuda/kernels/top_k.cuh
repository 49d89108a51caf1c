// Places of the k largest (smallest) elements of every line: keys of a value and its place, sorted.
__device__ __forceinline__ u64 k_key(const XT *p, u32 i) {
#if REAL
  const float v = widen(*p) + 0.0f;
  const u32 bits = bits_of(v);
  u32 rank = bits >> 31 ? ~bits : bits | 0x80000000u;
  if (v != v) rank = 0xffffffffu;
#else
  u32 rank = (u32)widen((i64)*p) ^ 0x80000000u;
#endif
  if (LARGEST) rank = ~rank;
  return ((u64)rank << 32) | i;
}
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
#if SHARED
  __shared__ u64 keys[KEYS];
#else
  u64 *keys = scratch + (u64)blockIdx.x * keys_all;
#endif
  for (i64 line = blockIdx.x; line < lines; line += gridDim.x) {
    const i64 o = line / inner, j = line - o * inner;
    const XT *from = x + (o * x_s0 + j * x_s2);
    for (u32 i = threadIdx.x; i < keys_all; i += 256u)
      keys[i] = i < n ? k_key(from + (i64)i * x_s1, i) : 0xffffffffffffffffull;
    __syncthreads();
    for (u32 size = 2; size <= keys_all; size *= 2u) {
      for (u32 gap = size / 2u; gap > 0u; gap /= 2u) {
        for (u32 i = threadIdx.x; i < keys_all; i += 256u) {
          const u32 other = i ^ gap;
          if (other > i) {
            const u64 a = keys[i], b = keys[other];
            if ((a > b) == ((i & size) == 0u)) {
              keys[i] = b;
              keys[other] = a;
            }
          }
        }
        __syncthreads();
      }
    }
    for (u32 i = threadIdx.x; i < k; i += 256u)
      index[o * index_s0 + (i64)i * index_s1 + j * index_s2] = (int)(u32)keys[i];
    __syncthreads();
  }
}

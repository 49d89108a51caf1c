// A block sums the rows of one table row, in order of r, in f32. Few rows are sorted by counting;
// many are found again by looking through all ids, which gives them in order.
__shared__ u32 list[4096];
__device__ __forceinline__ void k_sum(const u32 *rs, u32 n, const GradT *grad, i64 s0, float (&sum)[VEC], i64 s1) {
  u32 i = 0;
  for (; i + 4 <= n; i += 4) {
    float v[4][VEC];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const GradT *g = grad + (i64)rs[i + j] * s0;
      if (WIDE) {
        load<VEC>(v[j], g);
      } else {
#pragma unroll
        for (int e = 0; e < VEC; e++) v[j][e] = widen(g[e * s1]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < VEC; e++) sum[e] += v[j][e];
  }
  for (; i < n; i++) {
    const GradT *g = grad + (i64)rs[i] * s0;
#pragma unroll
    for (int e = 0; e < VEC; e++) sum[e] += widen(g[e * s1]);
  }
}
extern "C" __global__ void __launch_bounds__(128, 4) ENTRY(PARAMS) {
  __shared__ u32 before[5];
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5;
  const i64 column = ((i64)blockIdx.y * 128 + threadIdx.x) * VEC;
  const bool mine = column < width;
  const GradT *from = grad + (mine ? column : 0) * grad_s1;
  const u32 count = cursor[1];
  for (u32 t = blockIdx.x; t < count; t += gridDim.x) {
    const u32 id = touched[t], n = counts[id];
    float sum[VEC];
#pragma unroll
    for (int e = 0; e < VEC; e++) sum[e] = 0.0f;
    if (n <= 512) {
      const u32 *rs = order + start[id];
      __syncthreads();
      for (u32 i = threadIdx.x; i < n; i += 128u) list[512 + i] = rs[i];
      __syncthreads();
      for (u32 i = threadIdx.x; i < n; i += 128u) {
        u32 r = list[512 + i], rank = 0;
        for (u32 j = 0; j < n; j++) rank += list[512 + j] < r;
        list[rank] = r;
      }
      __syncthreads();
      if (mine) k_sum(list, n, from, grad_s0, sum, grad_s1);
    } else {
      for (u32 w0 = 0; w0 < rows; w0 += 4096u) {
        u32 word = 0;
        for (u32 j = 0; j < 32; j++) {
          u32 r = w0 + (warp * 32u + j) * 32u + lane;
          i64 other = r < rows ? (i64)ids[(i64)r * ids_s0] : table_rows;
          if (other < 0) other += table_rows;
          u32 vote = __ballot_sync(0xffffffffu, other == (i64)id);
          if (lane == j) word = vote;
        }
        u32 own = (u32)__popc(word), upto = own;
        for (int d = 1; d < 32; d <<= 1) {
          u32 v = __shfl_up_sync(0xffffffffu, upto, d);
          if ((int)lane >= d) upto += v;
        }
        __syncthreads();
        if (lane == 31) before[warp + 1] = upto;
        if (threadIdx.x == 0) before[0] = 0;
        __syncthreads();
        u32 at = upto - own, found = 0;
        for (u32 w = 0; w <= 4; w++) {
          found += before[w];
          if (w <= warp) at += before[w];
        }
        while (word) {
          u32 bit = (u32)__ffs((int)word) - 1u;
          word &= word - 1u;
          list[at++] = w0 + threadIdx.x * 32u + bit;
        }
        __syncthreads();
        if (mine) k_sum(list, found, from, grad_s0, sum, grad_s1);
      }
    }
    if (mine) {
      TableT *to = table + (i64)id * table_s0 + column * table_s1;
#pragma unroll
      for (int e = 0; e < VEC; e++) narrow(to[e * table_s1], sum[e]);
    }
  }
}

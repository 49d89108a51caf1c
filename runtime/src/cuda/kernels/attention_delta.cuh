// delta[b, h, i] = sum over channels of d_o o; a warp makes one. Beside it the logarithm of the
// softmax's denominator in base 2, infinite for rows without visible keys, whose gradient is zero.
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  const i64 row = (i64)blockIdx.x * 8 + (threadIdx.x >> 5);
  const int lane = threadIdx.x & 31;
  if (row >= rows) return;
  const i64 i = row % tq, bh = row / tq, h = bh % heads, b = bh / heads;
  const OT *x = o + b * o_s0 + h * o_s1 + i * o_s2;
  const GT *y = d_o + b * d_o_s0 + h * d_o_s1 + i * d_o_s2;
  float sum = 0.0f;
  for (int c = lane; c < D; c += 32) sum += widen(x[c * o_s3]) * widen(y[c * d_o_s3]);
#pragma unroll
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) {
    float l = lse[b * lse_s0 + h * lse_s1 + i * lse_s2];
    delta[row] = sum;
    lse2[row] = l == -infinity() ? infinity() : l * 1.4426950408889634f;
  }
}

// delta[b, h, i] = sum over channels of d_o o; a warp makes one. Beside it the logarithm of the
// softmax's denominator as two numbers, the first infinite where there is no gradient and every
// probability counts as 0: rows without visible keys, and rows whose cotangent is 0, of which nothing
// comes even where their probabilities are NaN.
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  const i64 row = (i64)blockIdx.x * 8 + (threadIdx.x >> 5);
  const int lane = threadIdx.x & 31;
  if (row >= rows) return;
  const i64 i = row % tq, bh = row / tq, h = bh % heads, b = bh / heads;
  const OT *x = o + b * o_s0 + h * o_s1 + i * o_s2;
  const GT *y = d_o + b * d_o_s0 + h * d_o_s1 + i * d_o_s2;
  float sum = 0.0f, some = 0.0f;
  for (int c = lane; c < D; c += 32) {
    const float g = widen(y[c * d_o_s3]);
    sum += widen(x[c * o_s3]) * g;
    if (g != 0.0f) some = 1.0f;
  }
#pragma unroll
  for (int d = 16; d; d >>= 1) {
    sum += __shfl_xor_sync(0xffffffffu, sum, d);
    some = fmaxf(some, __shfl_xor_sync(0xffffffffu, some, d));
  }
  if (lane == 0) {
    const float l = lse[b * lse_s0 + h * lse_s1 + i * lse_s2];
    const bool idle = some == 0.0f || l == -infinity();
    delta[row] = idle ? 0.0f : sum;
    high[row] = idle ? infinity() : l;
    rest[row] = idle ? 0.0f : low[b * low_s0 + h * low_s1 + i * low_s2];
  }
}

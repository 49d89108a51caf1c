// Max pooling; a thread makes VEC neighbouring outputs (channels, where those are neighbours).
// Padding never wins; the first of equals wins; a NaN wins.
__device__ __forceinline__ void k_point(u64 at, u32 n1, u32 n2, u32 n3, u32 (&i)[4]) {
  // Axes from slowest to fastest: n, c, h, w, or n, h, w, c where channels are neighbours.
  if (at >> 32) {
    u64 rest = at / n3, next = rest / n2;
    i[3] = (u32)(at - rest * n3);
    i[2] = (u32)(rest - next * n2);
    i[0] = (u32)(next / n1);
    i[1] = (u32)(next - (u64)i[0] * n1);
  } else {
    u32 rest = (u32)at / n3, next = rest / n2;
    i[3] = (u32)at - rest * n3;
    i[2] = rest - next * n2;
    i[0] = next / n1;
    i[1] = next - i[0] * n1;
  }
  if (CHANNELS_LAST) {
    u32 h = i[1], w = i[2], c = i[3];
    i[1] = c * VEC;
    i[2] = h;
    i[3] = w;
  }
}
extern "C" __global__ void __launch_bounds__(256, 4) ENTRY(PARAMS) {
#if FORWARD
  const u32 ph = oh, pw = ow;
#else
  const u32 ph = h, pw = w;
#endif
  const u64 total = (u64)n * (c / VEC) * ph * pw;
  for (u64 at = (u64)blockIdx.x * 256u + threadIdx.x; at < total; at += (u64)gridDim.x * 256u) {
    u32 i[4];
    if (CHANNELS_LAST) k_point(at, ph, pw, c / VEC, i);
    else k_point(at, c, ph, pw, i);
    const i64 plane_x = (i64)i[0] * x_s0 + (i64)i[1] * x_s1;
    const i64 plane_y = (i64)i[0] * y_s0 + (i64)i[1] * y_s1;
    const i64 plane_i = (i64)i[0] * index_s0 + (i64)i[1] * index_s1;
#if FORWARD
    float best[VEC];
    int tap[VEC];
#pragma unroll
    for (int e = 0; e < VEC; e++) {
      best[e] = -infinity();
      tap[e] = 0;
    }
    for (int a = 0; a < KH; a++) {
      const int row = (int)i[2] * STRIDE_H + a * DILATION_H - pad_h;
      if ((u32)row >= h) continue;
      for (int b = 0; b < KW; b++) {
        const int col = (int)i[3] * STRIDE_W + b * DILATION_W - pad_w;
        if ((u32)col >= w) continue;
        float v[VEC];
        load<VEC>(v, x + (plane_x + row * x_s2 + col * x_s3));
#pragma unroll
        for (int e = 0; e < VEC; e++) {
          if (v[e] > best[e] || v[e] != v[e]) {
            best[e] = v[e];
            tap[e] = a * KW + b;
          }
        }
      }
    }
    store<VEC>(y + (plane_y + (i64)i[2] * y_s2 + (i64)i[3] * y_s3), best);
    store<VEC>(index + (plane_i + (i64)i[2] * index_s2 + (i64)i[3] * index_s3), tap);
#else
    // Windows in row order, so that sums have the order of a loop over outputs.
    float sum[VEC];
#pragma unroll
    for (int e = 0; e < VEC; e++) sum[e] = 0.0f;
    for (int a = KH - 1; a >= 0; a--) {
      const int row = (int)i[2] + pad_h - a * DILATION_H, oy = row / STRIDE_H;
      if (row < 0 || row != oy * STRIDE_H || oy >= (int)oh) continue;
      for (int b = KW - 1; b >= 0; b--) {
        const int col = (int)i[3] + pad_w - b * DILATION_W, ox = col / STRIDE_W;
        if (col < 0 || col != ox * STRIDE_W || ox >= (int)ow) continue;
        int tap[VEC];
        float dy[VEC];
        load<VEC>(tap, index + (plane_i + oy * index_s2 + ox * index_s3));
        load<VEC>(dy, y + (plane_y + oy * y_s2 + ox * y_s3));
#pragma unroll
        for (int e = 0; e < VEC; e++)
          if (tap[e] == a * KW + b) sum[e] += dy[e];
      }
    }
    store<VEC>(x + (plane_x + (i64)i[2] * x_s2 + (i64)i[3] * x_s3), sum);
#endif
  }
}

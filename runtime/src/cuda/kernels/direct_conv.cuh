// Convolutions whose groups have few channels: a thread makes one output of the forward pass or of
// the gradient of the data, a block one element of the gradient of the filter.
struct Geometry { int n, c, h, w, o, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw, cg, og; };
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return TF32 ? fmaf(k_tf32(a), k_tf32(b), c) : fmaf(a, b, c);
}
extern "C" __global__ void __launch_bounds__(256, 3) ENTRY(PARAMS) {
  SETUP
#if KIND == 2
  __shared__ float sums[32];
  // Element (oc, ic, r, s) of the filter.
  u32 at = blockIdx.x;
  const int s = (int)(at % g.kw);
  at /= g.kw;
  const int r = (int)(at % g.kh);
  at /= g.kh;
  const int ic = (int)(at % g.cg), oc = (int)(at / g.cg), c = oc / g.og * g.cg + ic;
  const i64 plane = (i64)g.oh * g.ow;
  float sum = 0.0f;
  for (i64 i = threadIdx.x; i < plane * g.n; i += 256) {
    const int image = (int)(i / plane), p = (int)(i - image * plane), y = p / g.ow, x = p - y * g.ow;
    const int iy = y * g.sh + r * g.dh - g.ph, ix = x * g.sw + s * g.dw - g.pw;
    if ((u32)iy >= (u32)g.h || (u32)ix >= (u32)g.w) continue;
    sum = multiply_add(widen(a[image * a_s0 + c * a_s1 + iy * a_s2 + ix * a_s3]),
                   widen(b[image * b_s0 + oc * b_s1 + y * b_s2 + x * b_s3]), sum);
  }
  sum = reduce_block<Sum, 256>(sum, sums);
  const float v[1] = {sum};
  if (threadIdx.x == 0) epilogue(v, EPI_NAMES, oc, ic, r, s);
#else
  const u64 total = (u64)e_d0 * e_d1 * e_d2 * e_d3;
  for (u64 at = (u64)blockIdx.x * 256u + threadIdx.x; at < total; at += (u64)gridDim.x * 256u) {
    u64 rest = at / e_d3;
    const int x = (int)(at - rest * e_d3);
    u64 next = rest / e_d2;
    const int y = (int)(rest - next * e_d2), image = (int)(next / e_d1), ch = (int)(next - (u64)image * e_d1);
    float sum = 0.0f;
#if KIND == 0
    const int group = ch / g.og;
    for (int ic = 0; ic < g.cg; ic++)
      for (int r = 0; r < g.kh; r++) {
        const int iy = y * g.sh + r * g.dh - g.ph;
        if ((u32)iy >= (u32)g.h) continue;
        for (int s = 0; s < g.kw; s++) {
          const int ix = x * g.sw + s * g.dw - g.pw;
          if ((u32)ix >= (u32)g.w) continue;
          sum = multiply_add(widen(a[image * a_s0 + (group * g.cg + ic) * a_s1 + iy * a_s2 + ix * a_s3]),
                         widen(b[ch * b_s0 + ic * b_s1 + r * b_s2 + s * b_s3]), sum);
        }
      }
#else
    const int group = ch / g.cg, ic = ch - group * g.cg;
    for (int oc = group * g.og; oc < (group + 1) * g.og; oc++)
      for (int r = 0; r < g.kh; r++) {
        const int ty = y + g.ph - r * g.dh, oy = ty / g.sh;
        if (ty < 0 || oy * g.sh != ty || oy >= g.oh) continue;
        for (int s = 0; s < g.kw; s++) {
          const int tx = x + g.pw - s * g.dw, ox = tx / g.sw;
          if (tx < 0 || ox * g.sw != tx || ox >= g.ow) continue;
          sum = multiply_add(widen(a[image * a_s0 + oc * a_s1 + oy * a_s2 + ox * a_s3]),
                         widen(b[oc * b_s0 + ic * b_s1 + r * b_s2 + s * b_s3]), sum);
        }
      }
#endif
    const float v[1] = {sum};
    epilogue(v, EPI_NAMES, image, ch, y, x);
  }
#endif
}

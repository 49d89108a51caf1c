// Attention in f32 arithmetic, for f32 tensors and for mixed formats. 256 threads as 16 x 16; a
// thread holds rows ty + 16 i and columns tx + 16 j of a tile of scores.
#define DC ((D + 3) / 4 * 4)
#define ROW (DC + 4)
#define PROW (TILE + 4)
#define OWN (16 * RO)
#define TILE (16 * RT)
#define GROUPS ((D + 63) / 64)

struct __align__(16) k_f4 { float x, y, z, w; };

template <class E>
__device__ __forceinline__ void load_tile(float *to, const E *p, i64 s, i64 s1, int r0, int rows, int count) {
  for (int i = threadIdx.x; i < count * DC; i += 256) {
    int r = i / DC, c = i % DC;
    to[r * ROW + c] = r0 + r < rows && c < D ? widen(p[(i64)(r0 + r) * s + (i64)c * s1]) : 0.0f;
  }
}
__device__ __forceinline__ void scores(float (&s)[RO][RT], const float *own, const float *other) {
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
#pragma unroll
  for (int i = 0; i < RO; i++)
#pragma unroll
    for (int j = 0; j < RT; j++) s[i][j] = 0.0f;
#pragma unroll 4
  for (int c = 0; c < DC; c += 4) {
    k_f4 a[RO], b[RT];
#pragma unroll
    for (int i = 0; i < RO; i++) a[i] = *(const k_f4 *)(own + (ty + 16 * i) * ROW + c);
#pragma unroll
    for (int j = 0; j < RT; j++) b[j] = *(const k_f4 *)(other + (tx + 16 * j) * ROW + c);
#pragma unroll
    for (int i = 0; i < RO; i++)
#pragma unroll
      for (int j = 0; j < RT; j++) {
        s[i][j] = fmaf(a[i].x, b[j].x, s[i][j]);
        s[i][j] = fmaf(a[i].y, b[j].y, s[i][j]);
        s[i][j] = fmaf(a[i].z, b[j].z, s[i][j]);
        s[i][j] = fmaf(a[i].w, b[j].w, s[i][j]);
      }
  }
}
// acc[i] += weights of row ty + 16 i times rows of `other`; columns (16 g + tx) 4 to + 3.
__device__ __forceinline__ void spread(float (&acc)[RO][GROUPS][4], const float *weights, const float *other) {
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
#pragma unroll 2
  for (int n = 0; n < TILE; n++) {
    float w[RO];
#pragma unroll
    for (int i = 0; i < RO; i++) w[i] = weights[(ty + 16 * i) * PROW + n];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      const int c = (16 * g + tx) * 4;
      if (c >= DC) continue;
      k_f4 x = *(const k_f4 *)(other + n * ROW + c);
#pragma unroll
      for (int i = 0; i < RO; i++) {
        acc[i][g][0] = fmaf(w[i], x.x, acc[i][g][0]);
        acc[i][g][1] = fmaf(w[i], x.y, acc[i][g][1]);
        acc[i][g][2] = fmaf(w[i], x.z, acc[i][g][2]);
        acc[i][g][3] = fmaf(w[i], x.w, acc[i][g][3]);
      }
    }
  }
}
template <class O>
__device__ __forceinline__ void store(O *p, i64 s, i64 s1, const float (&acc)[RO][GROUPS][4], const float (&factor)[RO],
                                      int r0, int rows) {
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
#pragma unroll
  for (int i = 0; i < RO; i++) {
    const int r = r0 + ty + 16 * i;
    if (r >= rows) continue;
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int c = (16 * g + tx) * 4 + e;
        if (c < D) narrow(p[(i64)r * s + (i64)c * s1], acc[i][g][e] * factor[i]);
      }
  }
}
__device__ __forceinline__ void clear(float (&acc)[RO][GROUPS][4]) {
#pragma unroll
  for (int i = 0; i < RO; i++)
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][g][e] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
  const u32 bh = blockIdx.x % (u32)pairs;
  const i64 b = bh / (u32)heads, h = bh % (u32)heads;
  const QT *q_h = q + b * q_s0 + h * q_s1;
  const KT *k_h = k + b * k_s0 + h * k_s1;
  const VT *v_h = v + b * v_s0 + h * v_s1;
#if MASK
  const MaskT *mask_h = mask + b * mask_s0 + h * mask_s1;
#endif
#if FORWARD
  float *qs = (float *)dyn_smem, *ks = qs + OWN * ROW, *vs = ks + TILE * ROW, *ws = vs + TILE * ROW;
  const int q0 = (int)(blocks - 1 - blockIdx.x / (u32)pairs) * OWN;
  const int seen = CAUSAL ? min(tk, q0 + OWN + tk - tq) : tk;
  load_tile(qs, q_h, q_s2, q_s3, q0, tq, OWN);
  float acc[RO][GROUPS][4], top[RO], sum[RO];
  clear(acc);
#pragma unroll
  for (int i = 0; i < RO; i++) {
    top[i] = -infinity();
    sum[i] = 0.0f;
  }
  for (int j0 = 0; j0 < seen; j0 += TILE) {
    __syncthreads();
    load_tile(ks, k_h, k_s2, k_s3, j0, tk, TILE);
    load_tile(vs, v_h, v_s2, v_s3, j0, tk, TILE);
    __syncthreads();
    float s[RO][RT];
    scores(s, qs, ks);
#pragma unroll
    for (int i = 0; i < RO; i++) {
      const int r = q0 + ty + 16 * i;
      float high = top[i];
#pragma unroll
      for (int j = 0; j < RT; j++) {
        const int c = j0 + tx + 16 * j;
        s[i][j] *= scale;
#if MASK
        if (r < tq && c < tk) s[i][j] = MASKED(s[i][j], mask_h[r * mask_s2 + c * mask_s3]);
#endif
        if (c >= tk || (CAUSAL && c > r + tk - tq)) s[i][j] = -infinity();
        high = fmaxf(high, s[i][j]);
      }
#pragma unroll
      for (int d = 8; d; d >>= 1) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, d));
      float base = high == -infinity() ? 0.0f : high, shrink = expf(top[i] - base), part = 0.0f;
      top[i] = high;
#pragma unroll
      for (int j = 0; j < RT; j++) {
        s[i][j] = expf(s[i][j] - base);
        part += s[i][j];
        ws[(ty + 16 * i) * PROW + tx + 16 * j] = s[i][j];
      }
      sum[i] = sum[i] * shrink + part;
#pragma unroll
      for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[i][g][e] *= shrink;
    }
    __syncwarp();
    spread(acc, ws, vs);
  }
  float factor[RO];
#pragma unroll
  for (int i = 0; i < RO; i++) {
    const int r = q0 + ty + 16 * i;
    float all = sum[i];
#pragma unroll
    for (int d = 8; d; d >>= 1) all += __shfl_xor_sync(0xffffffffu, all, d);
    const bool none = all == 0.0f;
    factor[i] = none ? NONE(0.0f) : 1.0f / all;
    if (tx == 0 && r < tq) {
      float lost = 0.0f;
      float log = none ? NONE(-infinity()) : (top[i] == -infinity() ? all : two_sum(top[i], logf(all), lost));
      lse[b * lse_s0 + h * lse_s1 + r * lse_s2] = log;
      low[b * low_s0 + h * low_s1 + r * low_s2] = lost;
    }
  }
  store(o + b * o_s0 + h * o_s1, o_s2, o_s3, acc, factor, q0, tq);
#else
  const GT *g_h = d_o + b * d_o_s0 + h * d_o_s1;
  const float *high_h = high + (i64)bh * tq, *low_h = low + (i64)bh * tq, *delta_h = delta + (i64)bh * tq;
#if KEYS
  float *ks = (float *)dyn_smem, *vs = ks + OWN * ROW, *qs = vs + OWN * ROW, *gs = qs + TILE * ROW;
  float *ws = gs + TILE * ROW, *us = ws + OWN * PROW;
  const int k0 = (int)(blockIdx.x / (u32)pairs) * OWN;
  load_tile(ks, k_h, k_s2, k_s3, k0, tk, OWN);
  load_tile(vs, v_h, v_s2, v_s3, k0, tk, OWN);
  float dk_acc[RO][GROUPS][4], dv_acc[RO][GROUPS][4];
  clear(dk_acc);
  clear(dv_acc);
  for (int i0 = CAUSAL ? max(0, k0 - (tk - tq)) / TILE * TILE : 0; i0 < tq; i0 += TILE) {
    __syncthreads();
    load_tile(qs, q_h, q_s2, q_s3, i0, tq, TILE);
    load_tile(gs, g_h, d_o_s2, d_o_s3, i0, tq, TILE);
    __syncthreads();
    float s[RO][RT], dp[RO][RT];
    scores(s, ks, qs);
    scores(dp, vs, gs);
#pragma unroll
    for (int i = 0; i < RO; i++)
#pragma unroll
      for (int j = 0; j < RT; j++) {
        const int key = k0 + ty + 16 * i, query = i0 + tx + 16 * j;
        float w = 0.0f, u = 0.0f;
        if (key < tk && query < tq && !(CAUSAL && key > query + tk - tq)) {
          float x = s[i][j] * scale;
#if MASK
          x = MASKED(x, mask_h[query * mask_s2 + key * mask_s3]);
#endif
          w = expf((x - high_h[query]) - low_h[query]);
          u = w * (dp[i][j] - delta_h[query]);
#if SELECT
          u = KEPT(u, mask_h[query * mask_s2 + key * mask_s3]);
#endif
        }
        ws[(ty + 16 * i) * PROW + tx + 16 * j] = w;
        us[(ty + 16 * i) * PROW + tx + 16 * j] = u;
      }
    __syncwarp();
    spread(dv_acc, ws, gs);
    spread(dk_acc, us, qs);
  }
  float one[RO], factor[RO];
#pragma unroll
  for (int i = 0; i < RO; i++) {
    one[i] = 1.0f;
    factor[i] = scale;
  }
  store(d_k + b * d_k_s0 + h * d_k_s1, d_k_s2, d_k_s3, dk_acc, factor, k0, tk);
  store(d_v + b * d_v_s0 + h * d_v_s1, d_v_s2, d_v_s3, dv_acc, one, k0, tk);
#else
  float *qs = (float *)dyn_smem, *gs = qs + OWN * ROW, *ks = gs + OWN * ROW, *vs = ks + TILE * ROW;
  float *ws = vs + TILE * ROW;
  const int q0 = (int)(blocks - 1 - blockIdx.x / (u32)pairs) * OWN;
  const int seen = CAUSAL ? min(tk, q0 + OWN + tk - tq) : tk;
  load_tile(qs, q_h, q_s2, q_s3, q0, tq, OWN);
  load_tile(gs, g_h, d_o_s2, d_o_s3, q0, tq, OWN);
  float acc[RO][GROUPS][4], factor[RO];
  clear(acc);
#pragma unroll
  for (int i = 0; i < RO; i++) factor[i] = scale;
  for (int j0 = 0; j0 < seen; j0 += TILE) {
    __syncthreads();
    load_tile(ks, k_h, k_s2, k_s3, j0, tk, TILE);
    load_tile(vs, v_h, v_s2, v_s3, j0, tk, TILE);
    __syncthreads();
    float s[RO][RT], dp[RO][RT];
    scores(s, qs, ks);
    scores(dp, gs, vs);
#pragma unroll
    for (int i = 0; i < RO; i++)
#pragma unroll
      for (int j = 0; j < RT; j++) {
        const int query = q0 + ty + 16 * i, key = j0 + tx + 16 * j;
        float u = 0.0f;
        if (key < tk && query < tq && !(CAUSAL && key > query + tk - tq)) {
          float x = s[i][j] * scale;
#if MASK
          x = MASKED(x, mask_h[query * mask_s2 + key * mask_s3]);
#endif
          u = expf((x - high_h[query]) - low_h[query]) * (dp[i][j] - delta_h[query]);
#if SELECT
          u = KEPT(u, mask_h[query * mask_s2 + key * mask_s3]);
#endif
        }
        ws[(ty + 16 * i) * PROW + tx + 16 * j] = u;
      }
    __syncwarp();
    spread(acc, ws, ks);
  }
  store(d_q + b * d_q_s0 + h * d_q_s1, d_q_s2, d_q_s3, acc, factor, q0, tq);
#endif
#endif
}

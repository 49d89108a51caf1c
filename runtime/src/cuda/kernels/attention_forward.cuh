extern "C" __global__ void __launch_bounds__(THREADS, MINBLOCKS) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  T *qs = (T *)dyn_smem, *ks = qs + OWN * ROW, *vs = ks + 2 * TILE * ROW;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  // Blocks with most keys first.
  const u32 bh = blockIdx.x % (u32)pairs;
  const int q0 = (int)(blocks - 1 - blockIdx.x / (u32)pairs) * OWN;
  const i64 b = bh / (u32)heads, h = bh % (u32)heads;
  const int col0 = blockIdx.y * SLICE;
  const View qv = {q + b * q_s0 + h * q_s1, q_s2, q_s3};
  const View kv = {k + b * k_s0 + h * k_s1, k_s2, k_s3};
  const View vv = {v + b * v_s0 + h * v_s1, v_s2, v_s3};
#if MASK
  const MaskT *mask_h = mask + b * mask_s0 + h * mask_s1;
#endif
  const int seen = CAUSAL ? min(tk, q0 + OWN + tk - tq) : tk;
  const int tiles = (seen + TILE - 1) / TILE;

  load_tile<OWN, VEC_Q>(qs, qv, q0, tq);
  load_tile<TILE, VEC_K>(ks, kv, 0, tk);
  load_tile<TILE, VEC_V>(vs, vv, 0, tk);
  cp_async_commit();

  float o_acc[MT][SLICE / 8][4];
  float top[MT][2], sum[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++) {
#pragma unroll
    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) o_acc[m][n][e] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      top[m][i] = -infinity();
      sum[m][i] = 0.0f;
    }
  }
  const float scale2 = scale * LOG2E;
  for (int t = 0; t < tiles; t++) {
    const T *kt = ks + (t & 1) * TILE * ROW, *vt = vs + (t & 1) * TILE * ROW;
    if (t + 1 < tiles) {
      load_tile<TILE, VEC_K>(ks + (t + 1 & 1) * TILE * ROW, kv, (t + 1) * TILE, tk);
      load_tile<TILE, VEC_V>(vs + (t + 1 & 1) * TILE * ROW, vv, (t + 1) * TILE, tk);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float s[MT][TILE / 8][4];
    scores<TILE>(s, qs, warp * MT * 16, kt);
    const int j0 = t * TILE;
    const bool edge = j0 + TILE > tk || (CAUSAL && j0 + TILE > q0 + tk - tq + 1);
#if !RAW_MAX
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          s[m][n][e] *= scale;
#if MASK
          int i = q0 + (warp * MT + m) * 16 + (e >> 1) * 8 + (lane >> 2), j = j0 + n * 8 + (lane & 3) * 2 + (e & 1);
          if (i < tq && j < tk) s[m][n][e] = MASKED(s[m][n][e], mask_h[i * mask_s2 + j * mask_s3]);
#endif
        }
#endif
    if (edge) {
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int i = q0 + (warp * MT + m) * 16 + (e >> 1) * 8 + (lane >> 2), j = j0 + n * 8 + (lane & 3) * 2 + (e & 1);
            if (j >= tk || (CAUSAL && j > i + tk - tq)) s[m][n][e] = -infinity();
          }
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float high = top[m][i];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) high = fmaxf(high, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
        // A row without visible keys so far has nothing to rescale.
#if RAW_MAX
        float base = high == -infinity() ? 0.0f : high * scale2;
        float shrink = k_exp2(top[m][i] * scale2 - base);
#else
        float base = high == -infinity() ? 0.0f : high;
        float shrink = k_exp2((top[m][i] - base) * LOG2E);
#endif
        top[m][i] = high;
        float part = 0.0f;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
          for (int e = 2 * i; e < 2 * i + 2; e++) {
#if RAW_MAX
            s[m][n][e] = k_exp2(fmaf(s[m][n][e], scale2, -base));
#else
            s[m][n][e] = k_exp2((s[m][n][e] - base) * LOG2E);
#endif
            part += s[m][n][e];
          }
        sum[m][i] = sum[m][i] * shrink + part;
#pragma unroll
        for (int n = 0; n < SLICE / 8; n++) {
          o_acc[m][n][2 * i] *= shrink;
          o_acc[m][n][2 * i + 1] *= shrink;
        }
      }
    spread<TILE>(o_acc, s, vt, col0);
    __syncthreads();
  }
  float factor[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float all = sum[m][i];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const bool none = all == 0.0f;
      factor[m][i] = none ? NONE(0.0f) : 1.0f / all;
      int r = q0 + (warp * MT + m) * 16 + i * 8 + (lane >> 2);
#if RAW_MAX
      // From base 2, in which the maximum was taken away, with what the product loses.
      const float base = top[m][i] * scale2, high = base * LN2;
      const float rest = logf(all) + (fmaf(base, LN2, -high) + base * LN2_LOW);
#else
      const float high = top[m][i], rest = logf(all);
#endif
      if ((lane & 3) == 0 && blockIdx.y == 0 && r < tq) {
        float lost = 0.0f;
        float log = none ? NONE(-infinity()) : (top[m][i] == -infinity() ? all : two_sum(high, rest, lost));
        lse[b * lse_s0 + h * lse_s1 + r * lse_s2] = log;
        low[b * low_s0 + h * low_s1 + r * low_s2] = lost;
      }
    }
  store(o + b * o_s0 + h * o_s1, o_s2, o_s3, PAIR_O, o_acc, factor, q0 + warp * MT * 16, tq, col0);
}

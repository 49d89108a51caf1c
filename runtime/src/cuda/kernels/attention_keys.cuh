// Gradients of k and v. A warp owns keys; scores are transposed: rows are keys, columns queries.
extern "C" __global__ void __launch_bounds__(THREADS, MINBLOCKS) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  T *ks = (T *)dyn_smem, *vs = ks + OWN * ROW, *qs = vs + OWN * ROW, *gs = qs + 2 * TILE * ROW;
  float *hs = (float *)(gs + 2 * TILE * ROW), *ls = hs + 2 * TILE, *ds = ls + 2 * TILE;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u32 bh = blockIdx.x % (u32)pairs;
  // Blocks that most queries see first.
  const int k0 = (int)(blockIdx.x / (u32)pairs) * OWN;
  const i64 b = bh / (u32)heads, h = bh % (u32)heads;
  const int col0 = blockIdx.y * SLICE;
  const View qv = {q + b * q_s0 + h * q_s1, q_s2, q_s3};
  const View kv = {k + b * k_s0 + h * k_s1, k_s2, k_s3};
  const View vv = {v + b * v_s0 + h * v_s1, v_s2, v_s3};
  const View gv = {d_o + b * d_o_s0 + h * d_o_s1, d_o_s2, d_o_s3};
  const float *high_h = high + (i64)bh * tq, *low_h = low + (i64)bh * tq, *delta_h = delta + (i64)bh * tq;
#if MASK
  const MaskT *mask_h = mask + b * mask_s0 + h * mask_s1;
#endif
  const int first = CAUSAL ? max(0, k0 - (tk - tq)) / TILE : 0;
  const int tiles = (tq + TILE - 1) / TILE;

  auto load = [&](int t) {
    int at = t & 1;
    load_tile<TILE, VEC_Q>(qs + at * TILE * ROW, qv, t * TILE, tq);
    load_tile<TILE, VEC_G>(gs + at * TILE * ROW, gv, t * TILE, tq);
    for (int i = threadIdx.x; i < TILE; i += THREADS) {
      int r = t * TILE + i;
      // No query: its weights are exp(-infinity).
      bool query = r < tq;
      statistics(query ? high_h[r] : infinity(), query ? low_h[r] : 0.0f, hs[at * TILE + i], ls[at * TILE + i]);
      ds[at * TILE + i] = r < tq ? delta_h[r] : 0.0f;
    }
  };
  load_tile<OWN, VEC_K>(ks, kv, k0, tk);
  load_tile<OWN, VEC_V>(vs, vv, k0, tk);
  if (first < tiles) load(first);
  cp_async_commit();

  float dk_acc[MT][SLICE / 8][4], dv_acc[MT][SLICE / 8][4];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) dk_acc[m][n][e] = dv_acc[m][n][e] = 0.0f;
  const float scale2 = scale * LOG2E;
  const int row = warp * MT * 16;
  for (int t = first; t < tiles; t++) {
    const int at = t & 1, i0 = t * TILE;
    const T *qt = qs + at * TILE * ROW, *gt = gs + at * TILE * ROW;
    if (t + 1 < tiles) load(t + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float s[MT][TILE / 8][4];
    scores<TILE>(s, ks, row, qt);
    const bool edge = CAUSAL && i0 + tk - tq < k0 + OWN - 1;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int c = n * 8 + (lane & 3) * 2 + (e & 1);
          float x = s[m][n][e];
#if !RAW_MAX
          x *= scale;
#endif
#if MASK
          {
            int i = i0 + c, j = k0 + row + m * 16 + (e >> 1) * 8 + (lane >> 2);
            if (i < tq && j < tk) x = MASKED(x, mask_h[i * mask_s2 + j * mask_s3]);
          }
#endif
          x = weight(x, scale2, hs[at * TILE + c], ls[at * TILE + c]);
          if (edge && k0 + row + m * 16 + (e >> 1) * 8 + (lane >> 2) > i0 + c + tk - tq) x = 0.0f;
          s[m][n][e] = x;
        }
    spread<TILE>(dv_acc, s, gt, col0);
    float dp[MT][TILE / 8][4];
    scores<TILE>(dp, vs, row, gt);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int c = n * 8 + (lane & 3) * 2 + (e & 1);
          s[m][n][e] *= dp[m][n][e] - ds[at * TILE + c];
#if SELECT
          int i = i0 + c, j = k0 + row + m * 16 + (e >> 1) * 8 + (lane >> 2);
          if (i < tq && j < tk) s[m][n][e] = KEPT(s[m][n][e], mask_h[i * mask_s2 + j * mask_s3]);
#endif
        }
    spread<TILE>(dk_acc, s, qt, col0);
    __syncthreads();
  }
  float one[MT][2], factor[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    one[m][0] = one[m][1] = 1.0f;
    factor[m][0] = factor[m][1] = scale;
  }
  store(d_k + b * d_k_s0 + h * d_k_s1, d_k_s2, d_k_s3, PAIR_K, dk_acc, factor, k0 + row, tk, col0);
  store(d_v + b * d_v_s0 + h * d_v_s1, d_v_s2, d_v_s3, PAIR_V, dv_acc, one, k0 + row, tk, col0);
}

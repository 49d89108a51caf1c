// Gradient of q. A warp owns queries.
extern "C" __global__ void __launch_bounds__(THREADS, MINBLOCKS) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  T *qs = (T *)dyn_smem, *gs = qs + OWN * ROW, *ks = gs + OWN * ROW, *vs = ks + 2 * TILE * ROW;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u32 bh = blockIdx.x % (u32)pairs;
  const int q0 = (int)(blocks - 1 - blockIdx.x / (u32)pairs) * OWN;
  const i64 b = bh / (u32)heads, h = bh % (u32)heads;
  const int col0 = blockIdx.y * SLICE;
  const View qv = {q + b * q_s0 + h * q_s1, q_s2, q_s3};
  const View kv = {k + b * k_s0 + h * k_s1, k_s2, k_s3};
  const View vv = {v + b * v_s0 + h * v_s1, v_s2, v_s3};
  const View gv = {d_o + b * d_o_s0 + h * d_o_s1, d_o_s2, d_o_s3};
#if MASK
  const MaskT *mask_h = mask + b * mask_s0 + h * mask_s1;
#endif
  const int seen = CAUSAL ? min(tk, q0 + OWN + tk - tq) : tk;
  const int tiles = (seen + TILE - 1) / TILE;
  const int row = warp * MT * 16;

  load_tile<OWN, VEC_Q>(qs, qv, q0, tq);
  load_tile<OWN, VEC_G>(gs, gv, q0, tq);
  load_tile<TILE, VEC_K>(ks, kv, 0, tk);
  load_tile<TILE, VEC_V>(vs, vv, 0, tk);
  cp_async_commit();

  float acc[MT][SLICE / 8][4], hs[MT][2], ls[MT][2], dl[MT][2], factor[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++) {
#pragma unroll
    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[m][n][e] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int r = q0 + row + m * 16 + i * 8 + (lane >> 2);
      bool query = r < tq;
      statistics(query ? high[(i64)bh * tq + r] : infinity(), query ? low[(i64)bh * tq + r] : 0.0f, hs[m][i], ls[m][i]);
      dl[m][i] = r < tq ? delta[(i64)bh * tq + r] : 0.0f;
      factor[m][i] = scale;
    }
  }
  const float scale2 = scale * LOG2E;
  for (int t = 0; t < tiles; t++) {
    const int at = t & 1, j0 = t * TILE;
    const T *kt = ks + at * TILE * ROW, *vt = vs + at * TILE * ROW;
    if (t + 1 < tiles) {
      load_tile<TILE, VEC_K>(ks + (t + 1 & 1) * TILE * ROW, kv, (t + 1) * TILE, tk);
      load_tile<TILE, VEC_V>(vs + (t + 1 & 1) * TILE * ROW, vv, (t + 1) * TILE, tk);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float s[MT][TILE / 8][4], dp[MT][TILE / 8][4];
    scores<TILE>(s, qs, row, kt);
    scores<TILE>(dp, gs, row, vt);
    const bool edge = j0 + TILE > tk || (CAUSAL && j0 + TILE > q0 + tk - tq + 1);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int i = q0 + row + m * 16 + (e >> 1) * 8 + (lane >> 2), j = j0 + n * 8 + (lane & 3) * 2 + (e & 1);
          float x = s[m][n][e];
#if !RAW_MAX
          x *= scale;
#endif
#if MASK
          if (i < tq && j < tk) x = MASKED(x, mask_h[i * mask_s2 + j * mask_s3]);
#endif
          x = weight(x, scale2, hs[m][e >> 1], ls[m][e >> 1]);
          if (edge && (j >= tk || (CAUSAL && j > i + tk - tq))) x = 0.0f;
          x *= dp[m][n][e] - dl[m][e >> 1];
#if SELECT
          if (i < tq && j < tk) x = KEPT(x, mask_h[i * mask_s2 + j * mask_s3]);
#endif
          s[m][n][e] = x;
        }
    spread<TILE>(acc, s, kt, col0);
    __syncthreads();
  }
  store(d_q + b * d_q_s0 + h * d_q_s1, d_q_s2, d_q_s3, PAIR_Q, acc, factor, q0 + row, tq, col0);
}

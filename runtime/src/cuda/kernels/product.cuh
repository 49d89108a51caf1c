// Products of two operands that are found through index maps: matrix products of any strides, and
// convolutions as implicit products. Tiles of both operands pass through shared memory, double
// buffered; sums live in registers.
//
// An operand's element at (outer, k) lies at the sum of what both indices contribute; each index is
// a number of up to three digits. Rows and columns of an image are carried along, since an element
// outside it counts as zero.
struct __align__(16) Entry { Off off; int y, x; };
struct Map {
  u32 n, d1, d2;  // extent; digits are i / (d1 d2), i / d2 % d1, i % d2
  Off at, s0, s1, s2;
  int y, y0, y1, y2, x, x0, x1, x2;
};
template <bool PLAIN, bool CHECK>
__device__ __forceinline__ Entry entry(const Map &m, u32 i, u32 end) {
  Entry e = {0, -(1 << 30), 0};
  if (i >= end) return e;
  if (PLAIN) {
    e.off = m.at + (Off)i * m.s2;
    e.y = 0;
    if (CHECK) {
      e.y = m.y + (int)i * m.y2;
      e.x = m.x + (int)i * m.x2;
    }
  } else {
    u32 rest = i / m.d2, i2 = i - rest * m.d2, i0 = rest / m.d1, i1 = rest - i0 * m.d1;
    e.off = m.at + (Off)i0 * m.s0 + (Off)i1 * m.s1 + (Off)i2 * m.s2;
    e.y = 0;
    if (CHECK) {
      e.y = m.y + (int)i0 * m.y0 + (int)i1 * m.y1 + (int)i2 * m.y2;
      e.x = m.x + (int)i0 * m.x0 + (int)i1 * m.x1 + (int)i2 * m.x2;
    }
  }
  return e;
}
// What a product of this kind multiplies.
__device__ __forceinline__ void convert(float &to, float x) { to = TF32 ? k_tf32(x) : x; }
template <class E>
__device__ __forceinline__ void convert(float &to, E x) { convert(to, widen(x)); }
__device__ __forceinline__ void convert(f16 &to, f16 x) { to = x; }
__device__ __forceinline__ void convert(bf16 &to, bf16 x) { to = x; }
template <class E>
__device__ __forceinline__ void convert(f16 &to, E x) { narrow(to, widen(x)); }
template <class E>
__device__ __forceinline__ void convert(bf16 &to, E x) { narrow(to, widen(x)); }

// One operand: OUT rows of its tile, threads side by side along the outer index or along k.
template <class E, int OUT, bool OUTER, bool VEC, bool CHECK>
struct Side {
  static const int V = VEC ? 16 / (int)sizeof(E) : 1;
  static const int COUNT = OUT * BK / V / THREADS;
  static const bool COPY = VEC && TENSOR;
  static const int LD = OUTER || !TENSOR ? OUT + PAD : BK + PAD;
  static const int SIZE = OUTER || !TENSOR ? BK * LD : OUT * LD;
  static __device__ __forceinline__ int slot(int o, int k) { return OUTER || !TENSOR ? k * LD + o : o * LD + k; }
  static __device__ __forceinline__ void place(int i, int &o, int &k) {
    const int c = (int)threadIdx.x + i * THREADS;
    if (OUTER) {
      o = c % (OUT / V) * V;
      k = c / (OUT / V);
    } else {
      k = c % (BK / V) * V;
      o = c / (BK / V);
    }
  }
  CT held[COPY ? 1 : COUNT * V];
  __device__ __forceinline__ void fetch(CT *tile, const E *base, const Entry *outer, const Entry *ks, int h, int w) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      int o, k;
      place(i, o, k);
      const Entry a = outer[o], b = ks[k];
      const bool ok = CHECK ? (u32)(a.y + b.y) < (u32)h && (u32)(a.x + b.x) < (u32)w : a.y + b.y >= 0;
      const E *p = ok ? base + a.off + b.off : base;
      if (COPY) {
        cp_async_16_zfill(tile + slot(o, k), p, ok ? 16u : 0u);
      } else if (VEC) {
        Pack<E, V> pack;
        if (ok) copy_pack(&pack, (const Pack<E, V> *)p);
#pragma unroll
        for (int e = 0; e < V; e++) {
          held[i * V + e] = CT();
          if (ok) convert(held[i * V + e], pack.at[e]);
        }
      } else {
        held[i] = CT();
        if (ok) convert(held[i], *p);
      }
    }
  }
  __device__ __forceinline__ void put(CT *tile) {
#pragma unroll
    for (int i = 0; i < (COPY ? 0 : COUNT); i++) {
      int o, k;
      place(i, o, k);
#pragma unroll
      for (int e = 0; e < V; e++) tile[OUTER ? slot(o + e, k) : slot(o, k + e)] = held[i * V + e];
    }
  }
};
typedef Side<AT, BM, A_OUTER, A_VEC, A_CHECK> SideA;
typedef Side<BT, BN, B_OUTER, B_VEC, B_CHECK> SideB;

extern "C" __global__ void __launch_bounds__(THREADS, MINBLOCKS) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  SETUP
  CT *as = (CT *)dyn_smem, *bs = as + 2 * SideA::SIZE;
  Entry *ao = (Entry *)(dyn_smem + TILES_BYTES), *bo = ao + BM, *ak = bo + BN, *bk = ak + 2 * BK;
  const int tid = threadIdx.x;
  u32 at = blockIdx.x;
  const u32 mt = at % m_tiles;
  at /= m_tiles;
  const u32 nt = at % n_tiles;
  at /= n_tiles;
  const u32 part = at % splits, z = at / splits, z0 = z / batch1, z1 = z - z0 * batch1;
  const AT *pa = a + (i64)z0 * a_z0 + (i64)z1 * a_z1;
  const BT *pb = b + (i64)z0 * b_z0 + (i64)z1 * b_z1;
  const u32 k0 = part * k_part, k1 = min(a_ks.n, k0 + k_part);
  const int tiles = k1 > k0 ? (int)((k1 - k0 + BK - 1) / BK) : 0;
  const u32 row0 = mt * BM, col0 = nt * BN;

  for (int i = tid; i < BM; i += THREADS) ao[i] = entry<A_PLAIN_O, A_CHECK>(a_outer, row0 + i, a_outer.n);
  for (int i = tid; i < BN; i += THREADS) bo[i] = entry<B_PLAIN_O, B_CHECK>(b_outer, col0 + i, b_outer.n);
  for (int i = tid; i < 2 * BK; i += THREADS) {
    ak[i] = entry<A_PLAIN_K, A_CHECK>(a_ks, k0 + i, k1);
    bk[i] = entry<B_PLAIN_K, B_CHECK>(b_ks, k0 + i, k1);
  }
  __syncthreads();
  SideA sa;
  SideB sb;
  if (tiles > 0) {
    sa.fetch(as, pa, ao, ak, a_h, a_w);
    sb.fetch(bs, pb, bo, bk, b_h, b_w);
    sa.put(as);
    sb.put(bs);
  }
  cp_async_commit();
#if TENSOR
  const int warp = tid >> 5, lane = tid & 31, wm = warp / WARPS_N * (FM * 16), wn = warp % WARPS_N * (FN * 8);
  float acc[FM][FN][4];
#pragma unroll
  for (int i = 0; i < FM; i++)
#pragma unroll
    for (int j = 0; j < FN; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;
#else
  const int tx = tid % (BN / FN), ty = tid / (BN / FN);
  float acc[FM][FN];
#pragma unroll
  for (int i = 0; i < FM; i++)
#pragma unroll
    for (int j = 0; j < FN; j++) acc[i][j] = 0.0f;
#endif
#pragma unroll 1
  for (int t = 0; t < tiles; t++) {
    const int now = t & 1, next = now ^ 1;
    cp_async_wait<0>();
    __syncthreads();
    const bool more = t + 1 < tiles;
    if (more) {
      sa.fetch(as + next * SideA::SIZE, pa, ao, ak + next * BK, a_h, a_w);
      sb.fetch(bs + next * SideB::SIZE, pb, bo, bk + next * BK, b_h, b_w);
    }
    cp_async_commit();
    const CT *at_ = as + now * SideA::SIZE, *bt_ = bs + now * SideB::SIZE;
#if TENSOR
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
      u32 fa[FM][4];
#pragma unroll
      for (int i = 0; i < FM; i++) {
        const int r = wm + i * 16;
        if (A_OUTER)
          ldmatrix_x4_trans(fa[i], at_ + (k + (lane >> 4) * 8 + (lane & 7)) * SideA::LD + r + (lane >> 3 & 1) * 8);
        else
          ldmatrix_x4(fa[i], at_ + (r + (lane & 15)) * SideA::LD + k + (lane >> 4) * 8);
      }
#pragma unroll
      for (int j = 0; j < FN; j += 2) {
        const int c = wn + j * 8;
        u32 fb[4];
        if (B_OUTER)
          ldmatrix_x4_trans(fb, bt_ + (k + (lane & 15)) * SideB::LD + c + (lane >> 4) * 8);
        else
          ldmatrix_x4(fb, bt_ + (c + (lane >> 4) * 8 + (lane & 7)) * SideB::LD + k + (lane >> 3 & 1) * 8);
#pragma unroll
        for (int i = 0; i < FM; i++) {
          k_mma(CT(), acc[i][j], fa[i], fb[0], fb[1]);
          k_mma(CT(), acc[i][j + 1], fa[i], fb[2], fb[3]);
        }
      }
    }
#else
#pragma unroll 4
    for (int k = 0; k < BK; k++) {
      float x[FM], y[FN];
#pragma unroll
      for (int i = 0; i < FM; i++) x[i] = at_[k * SideA::LD + i / 4 * (BM * 4 / FM) + ty * 4 + i % 4];
#pragma unroll
      for (int j = 0; j < FN; j++) y[j] = bt_[k * SideB::LD + j / 4 * (BN * 4 / FN) + tx * 4 + j % 4];
#pragma unroll
      for (int i = 0; i < FM; i++)
#pragma unroll
        for (int j = 0; j < FN; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
#endif
    if (more) {
      sa.put(as + next * SideA::SIZE);
      sb.put(bs + next * SideB::SIZE);
      for (int i = tid; i < BK; i += THREADS) {
        ak[now * BK + i] = entry<A_PLAIN_K, A_CHECK>(a_ks, k0 + (t + 2) * BK + i, k1);
        bk[now * BK + i] = entry<B_PLAIN_K, B_CHECK>(b_ks, k0 + (t + 2) * BK + i, k1);
      }
    }
  }
  // Sums leave through shared memory, 32 rows at a time, so that neighbours are stored together.
  float *sums = (float *)dyn_smem;
  const int LDO = BN + 4;
#pragma unroll 1
  for (int s = 0; s < BM / 32; s++) {
    __syncthreads();
#if TENSOR
#pragma unroll
    for (int i = 0; i < FM; i++) {
      const int r = wm + i * 16 - s * 32;
      if (r < 0 || r >= 32) continue;
#pragma unroll
      for (int j = 0; j < FN; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          sums[(r + (e >> 1) * 8 + (lane >> 2)) * LDO + wn + j * 8 + (lane & 3) * 2 + (e & 1)] = acc[i][j][e];
    }
#else
#pragma unroll
    for (int i = 0; i < FM; i++) {
      const int r = i / 4 * (BM * 4 / FM) + ty * 4 + i % 4 - s * 32;
      if (r < 0 || r >= 32) continue;
#pragma unroll
      for (int j = 0; j < FN; j++) sums[r * LDO + j / 4 * (BN * 4 / FN) + tx * 4 + j % 4] = acc[i][j];
    }
#endif
    __syncthreads();
#pragma unroll 1
    for (int i = tid; i < 32 * BN / LANES; i += THREADS) {
      const int r = ROWS_FAST ? i % (32 / LANES) * LANES : i / (BN / LANES);
      const int c = ROWS_FAST ? i / (32 / LANES) : i % (BN / LANES) * LANES;
      const u32 row = row0 + s * 32 + r, col = col0 + c;
      if (row >= m || col >= n) continue;
      float v[LANES];
#pragma unroll
      for (int e = 0; e < LANES; e++) v[e] = ROWS_FAST ? sums[(r + e) * LDO + c] : sums[r * LDO + c + e];
#if SPLIT
      partial[(((u64)part * batches + z) * m + row) * n + col] = v[0];
#else
      finish(v, EPI_NAMES, q, z0, z1, m, row, col);
#endif
    }
  }
}

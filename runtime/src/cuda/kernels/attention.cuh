// Attention on tensor cores: scores of a block of queries against tiles of keys live in registers
// alone (Dao, "FlashAttention-2", 2023). Warps own rows (queries, or keys for their gradients), and
// what they own stays in registers; the other side comes in double-buffered tiles.
#define ROW (DP + 8)
#define THREADS (WARPS * 32)
#define OWN (WARPS * MT * 16)
#define KSTEPS (DP / 16)
#define LOG2E 1.4426950408889634f
// What the f32 nearest to log2 e and to ln 2 lack.
#define LOG2E_LOW 1.9259630335e-8f
#define LN2 0.6931471805599453f
#define LN2_LOW -1.9046542999577e-9f

// The logarithm of a row's sum, high + low, as the kernels take it away from scores. Scores without a
// mask are products in base 2, an exponent is one multiplication and addition; a mask's numbers may be
// as large as f32 holds, and their scores stay in base e until the row's maximum is taken away.
__device__ __forceinline__ void statistics(float high, float low, float &h, float &l) {
#if RAW_MAX
  h = high * LOG2E;
  l = high == infinity() ? 0.0f : fmaf(high, LOG2E, -h) + (high * LOG2E_LOW + low * LOG2E);
#else
  h = high;
  l = low * LOG2E;
#endif
}
// The probability of a product, or of a masked score.
__device__ __forceinline__ float weight(float x, float scale2, float h, float l) {
#if RAW_MAX
  return k_exp2(fmaf(x, scale2, -h) - l);
#else
  return k_exp2(fmaf(x - h, LOG2E, -l));
#endif
}

struct View {
  const T *p;
  i64 s;   // between positions
  i64 s1;  // between channels
};

// Rows [r0, r0 + ROWS) of a matrix of `rows` rows and D columns to shared memory, zeros outside.
template <int ROWS, bool VEC>
__device__ __forceinline__ void load_tile(T *to, View v, int r0, int rows) {
  if (VEC) {
    // Not unrolled: addresses in flight would cost the registers of the accumulators.
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * (DP / 8); i += THREADS) {
      int r = i / (DP / 8), c = (i % (DP / 8)) * 8;
      bool ok = r0 + r < rows && c < D;
      cp_async_16_zfill(to + r * ROW + c, ok ? v.p + (i64)(r0 + r) * v.s + c : v.p, ok ? 16u : 0u);
    }
  } else {
    for (int i = threadIdx.x; i < ROWS * DP; i += THREADS) {
      int r = i / DP, c = i % DP;
      T e = {0};
      if (r0 + r < rows && c < D) e = v.p[(i64)(r0 + r) * v.s + (i64)c * v.s1];
      to[r * ROW + c] = e;
    }
  }
}
// Fragment of 16 rows from `row` and 16 columns from `col`, as a left operand.
__device__ __forceinline__ void left(u32 (&a)[4], const T *tile, int row, int col) {
  int l = threadIdx.x & 31;
  ldmatrix_x4(a, tile + (row + (l & 15)) * ROW + col + (l >> 4) * 8);
}
// Right operands for 16 columns of the result, which are rows of the tile; k is a column of it.
__device__ __forceinline__ void right(u32 (&b)[4], const T *tile, int row, int col) {
  int l = threadIdx.x & 31;
  ldmatrix_x4(b, tile + (row + (l >> 4) * 8 + (l & 7)) * ROW + col + (l >> 3 & 1) * 8);
}
// Right operands for 16 columns of the result, which are columns of the tile; k is a row of it.
__device__ __forceinline__ void right_t(u32 (&b)[4], const T *tile, int row, int col) {
  int l = threadIdx.x & 31;
  ldmatrix_x4_trans(b, tile + (row + (l & 15)) * ROW + col + (l >> 4) * 8);
}
// s[m][n] = rows of `own` (from `row`) times rows of `other`, over channels.
template <int N>
__device__ __forceinline__ void scores(float (&s)[MT][N / 8][4], const T *own, int row, const T *other) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][n][e] = 0.0f;
#pragma unroll
  for (int k = 0; k < KSTEPS; k++) {
    u32 a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) left(a[m], own, row + m * 16, k * 16);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      u32 b[4];
      right(b, other, n * 16, k * 16);
#pragma unroll
      for (int m = 0; m < MT; m++) {
        k_mma(T(), s[m][2 * n], a[m], b[0], b[1]);
        k_mma(T(), s[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}
// acc += round(s) times rows of `other`, whose columns from `col` are the result's.
template <int N>
__device__ __forceinline__ void spread(float (&acc)[MT][SLICE / 8][4], const float (&s)[MT][N / 8][4], const T *other,
                                       int col) {
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    u32 a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) {
      a[m][0] = k_pack(T(), s[m][2 * k][0], s[m][2 * k][1]);
      a[m][1] = k_pack(T(), s[m][2 * k][2], s[m][2 * k][3]);
      a[m][2] = k_pack(T(), s[m][2 * k + 1][0], s[m][2 * k + 1][1]);
      a[m][3] = k_pack(T(), s[m][2 * k + 1][2], s[m][2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < SLICE / 16; n++) {
      u32 b[4];
      right_t(b, other, k * 16, col + n * 16);
#pragma unroll
      for (int m = 0; m < MT; m++) {
        k_mma(T(), acc[m][2 * n], a[m], b[0], b[1]);
        k_mma(T(), acc[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}
// Writes accumulators times `factor[m][half]` to positions of a tensor.
template <class O>
__device__ __forceinline__ void store(O *p, i64 s, i64 s1, bool pairs, const float (&acc)[MT][SLICE / 8][4],
                                      const float (&factor)[MT][2], int row0, int rows, int col) {
  int l = threadIdx.x & 31;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int r = row0 + m * 16 + half * 8 + (l >> 2);
      if (r >= rows) continue;
      O *o = p + (i64)r * s;
#pragma unroll
      for (int n = 0; n < SLICE / 8; n++) {
        int c = col + n * 8 + (l & 3) * 2;
        if (c >= D) continue;
        float x = acc[m][n][half * 2] * factor[m][half], y = acc[m][n][half * 2 + 1] * factor[m][half];
        if (pairs && sizeof(O) == 2) {
          *(u32 *)(o + c) = k_pack(T(), x, y);
        } else {
          narrow(o[(i64)c * s1], x);
          if (c + 1 < D) narrow(o[(i64)(c + 1) * s1], y);
        }
      }
    }
}

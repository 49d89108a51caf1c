// What both directions of a recurrence share. A block takes ROWS sequences of one direction through
// all steps; states and gates stay in shared memory. SPLIT parts of each sum run beside each other and
// are added in order.
#define COLUMNS (THREADS / SPLIT)
#define RNN 0
#define LSTM 1
#define GRU 2
#define GRU_RESET_AFTER 3
#define SIGMOID 0
#define TANH 1

__device__ __forceinline__ float squash(int kind, float x) {
  if (kind == SIGMOID) return sigmoid(x);
  if (kind == TANH) return tanhf(x);
  return x < 0.0f ? 0.0f : x;
}
// The derivative, from the value. Its factors are exact where the value is near 1.
__device__ __forceinline__ float slope(int kind, float y) {
  if (kind == SIGMOID) return y * (1.0f - y);
  if (kind == TANH) return (1.0f + y) * (1.0f - y);
  return y > 0.0f ? 1.0f : 0.0f;
}
// to[r, n] += sum over k of x[r, k] w[k, n]; rows of `to` and x lie in shared memory, of w in global.
template <class T>
__device__ __forceinline__ void multiply(float *to, i64 to_row, const float *x, i64 x_row, const T *w, i64 w_row, int n,
                                         int k, float *part) {
  const int column = threadIdx.x % COLUMNS, share = threadIdx.x / COLUMNS;
  const int each = (k + SPLIT - 1) / SPLIT, from = share * each, end = min(k, from + each);
  for (int n0 = 0; n0 < n; n0 += COLUMNS) {
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = 0.0f;
    if (n0 + column < n) {
      const T *at = w + n0 + column;
#pragma unroll 8
      for (int i = from; i < end; i++) {
        const float v = widen(at[i * w_row]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r] = fmaf(x[r * x_row + i], v, sum[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) part[(share * ROWS + r) * COLUMNS + column] = sum[r];
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
      const int r = i / COLUMNS, c = i % COLUMNS;
      if (n0 + c < n) {
        float all = to[r * to_row + n0 + c];
#pragma unroll
        for (int s = 0; s < SPLIT; s++) all += part[(s * ROWS + r) * COLUMNS + c];
        to[r * to_row + n0 + c] = all;
      }
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  const i64 m = (i64)GATES * hidden, kept_row = (i64)KEPT * hidden;
  // Cotangents of h; of c of an LSTM, or of r h of a GRU; of the gates before their activations.
  float *state = (float *)dyn_smem, *second = state + ROWS * hidden, *g = second + ROWS * hidden;
  float *part = g + ROWS * m;
  const int d = blockIdx.x % directions, first = blockIdx.x / directions * ROWS;
  const int rows = min(ROWS, batch - first);
  const bool reverse = (REVERSE >> d & 1) != 0;
  const MatrixT *w = matrix + d * m * hidden;
  for (int i = threadIdx.x; i < ROWS * hidden; i += THREADS) {
    const int r = i / hidden, j = i % hidden;
    const i64 row = ((i64)steps * batch + first + r) * directions + d;
    state[i] = r < rows ? widen(d_y[row * hidden + j]) : 0.0f;
    second[i] = 0.0f;
#if CELL == LSTM
    if (r < rows) second[i] = widen(d_y[(row + (i64)batch * directions) * hidden + j]);
#endif
  }
  for (i64 i = threadIdx.x; i < ROWS * m; i += THREADS) g[i] = 0.0f;
  __syncthreads();
  for (int step = 0; step < steps; step++) {
    const int t = reverse ? step : steps - 1 - step;
    for (int i = threadIdx.x; i < rows * hidden; i += THREADS) {
      const int r = i / hidden, j = i % hidden;
      const i64 row = ((i64)t * batch + first + r) * directions + d;
      const float *keep = kept + row * kept_row + j;
      float *q = g + r * m + j;
      DGatesT *to = d_gates + row * m + j;
#if LENGTHS
      if ((i64)lengths[first + r] <= (i64)t) {
        for (int gate = 0; gate < GATES; gate++) {
          q[(i64)gate * hidden] = 0.0f;
          narrow(to[(i64)gate * hidden], 0.0f);
        }
        continue;
      }
#endif
      const float dh = state[i] + widen(d_y[row * hidden + j]);
#if CELL == RNN
      const float d_in = dh * slope(SQUASH1, keep[0]);
      q[0] = d_in;
      narrow(to[0], d_in);
      state[i] = 0.0f;
#elif CELL == LSTM
      const float in = keep[0], out = keep[hidden], forget = keep[2 * hidden];
      const float fresh = keep[3 * hidden], c = keep[4 * hidden];
      const float top = squash(SQUASH3, fmaf(forget, c, in * fresh));
      const float d_out = dh * top * slope(SQUASH1, out);
      float all = fmaf(dh * out, slope(SQUASH3, top), second[i]);
#if PEEPHOLE
      const PeepholeT *hole = peephole + (i64)d * 3 * hidden + j;
      all = fmaf(d_out, widen(hole[hidden]), all);
#endif
      const float d_in = all * fresh * slope(SQUASH1, in), d_forget = all * c * slope(SQUASH1, forget);
      const float d_fresh = all * in * slope(SQUASH2, fresh);
      float memory = all * forget;
#if PEEPHOLE
      memory = fmaf(d_forget, widen(hole[2 * hidden]), fmaf(d_in, widen(hole[0]), memory));
#endif
      second[i] = memory;
      q[0] = d_in;
      q[hidden] = d_out;
      q[2 * hidden] = d_forget;
      q[3 * hidden] = d_fresh;
      narrow(to[0], d_in);
      narrow(to[hidden], d_out);
      narrow(to[2 * hidden], d_forget);
      narrow(to[3 * hidden], d_fresh);
      state[i] = 0.0f;
#else
      const float z = keep[0], reset = keep[hidden], fresh = keep[2 * hidden];
      const float old = widen(before[row * hidden + j]);
      const float d_z = dh * (old - fresh) * slope(SQUASH1, z);
      const float d_fresh = dh * (1.0f - z) * slope(SQUASH2, fresh);
      q[0] = d_z;
      narrow(to[0], d_z);
      narrow(to[2 * hidden], d_fresh);
      state[i] = dh * z;
#if CELL == GRU
      q[hidden] = 0.0f;
      q[2 * hidden] = d_fresh;
#else
      const float d_reset = d_fresh * keep[3 * hidden] * slope(SQUASH1, reset);
      q[hidden] = d_reset;
      q[2 * hidden] = d_fresh * reset;
      narrow(to[hidden], d_reset);
#endif
#endif
    }
    __syncthreads();
#if CELL == GRU
    for (int i = threadIdx.x; i < ROWS * hidden; i += THREADS) second[i] = 0.0f;
    __syncthreads();
    multiply(second, hidden, g + 2 * hidden, m, w + (i64)2 * hidden * hidden, hidden, hidden, hidden, part);
    for (int i = threadIdx.x; i < rows * hidden; i += THREADS) {
      const int r = i / hidden, j = i % hidden;
      const i64 row = ((i64)t * batch + first + r) * directions + d;
#if LENGTHS
      if ((i64)lengths[first + r] <= (i64)t) continue;
#endif
      const float reset = kept[row * kept_row + hidden + j];
      const float d_reset = second[i] * widen(before[row * hidden + j]) * slope(SQUASH1, reset);
      g[r * m + hidden + j] = d_reset;
      narrow(d_gates[row * m + hidden + j], d_reset);
      state[i] = fmaf(second[i], reset, state[i]);
    }
    __syncthreads();
    multiply(state, hidden, g, m, w, hidden, hidden, 2 * hidden, part);
#else
    multiply(state, hidden, g, m, w, hidden, hidden, (int)m, part);
#endif
  }
  for (int i = threadIdx.x; i < rows * hidden; i += THREADS) {
    const int r = i / hidden, j = i % hidden;
    const i64 at = ((i64)(first + r) * directions + d) * hidden + j;
    d_states[at] = state[i];
#if CELL == LSTM
    d_states[(i64)batch * directions * hidden + at] = second[i];
#endif
  }
}

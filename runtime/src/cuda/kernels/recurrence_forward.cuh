extern "C" __global__ void __launch_bounds__(THREADS, 1) ENTRY(PARAMS) {
  extern __shared__ __align__(128) unsigned char dyn_smem[];
  const i64 m = (i64)GATES * hidden, kept_row = (i64)KEPT * hidden;
  // The second vector of a row is c of an LSTM, and r h of a GRU.
  float *state = (float *)dyn_smem, *second = state + ROWS * hidden, *pre = second + ROWS * hidden;
  float *part = pre + ROWS * m;
  const int d = blockIdx.x % directions, first = blockIdx.x / directions * ROWS;
  const int rows = min(ROWS, batch - first);
  const bool reverse = (REVERSE >> d & 1) != 0;
  const float *w = turned + d * m * hidden;
  for (int i = threadIdx.x; i < ROWS * hidden; i += THREADS) {
    const int r = i / hidden, j = i % hidden;
    const i64 at = ((i64)(first + r) * directions + d) * hidden + j;
    state[i] = r < rows ? widen(states[at]) : 0.0f;
    second[i] = 0.0f;
#if CELL == LSTM
    if (r < rows) second[i] = widen(states[(i64)batch * directions * hidden + at]);
#endif
  }
  for (int step = 0; step < steps; step++) {
    const int t = reverse ? steps - 1 - step : step;
    for (int i = threadIdx.x; i < ROWS * m; i += THREADS) {
      const int r = i / m, n = i % m;
      float x = 0.0f;
      if (r < rows) x = widen(gates[(((i64)t * batch + first + r) * directions + d) * m + n]);
#if CELL == GRU_RESET_AFTER
      // The product of the last gate has its own bias; x comes behind the reset gate.
      if (n >= 2 * hidden) x = widen(bias[d * hidden + n - 2 * hidden]);
#endif
      pre[i] = x;
    }
    __syncthreads();
#if CELL == GRU
    multiply(pre, m, state, hidden, w, m, 2 * hidden, hidden, part);
    for (int i = threadIdx.x; i < ROWS * hidden; i += THREADS) {
      float *row = pre + i / hidden * m;
      const int j = i % hidden;
      row[j] = squash(SQUASH1, row[j]);
      row[hidden + j] = squash(SQUASH1, row[hidden + j]);
      second[i] = row[hidden + j] * state[i];
    }
    __syncthreads();
    multiply(pre + 2 * hidden, m, second, hidden, w + 2 * hidden, m, hidden, hidden, part);
#else
    multiply(pre, m, state, hidden, w, m, (int)m, hidden, part);
#endif
    for (int i = threadIdx.x; i < rows * hidden; i += THREADS) {
      const int r = i / hidden, j = i % hidden;
      const i64 row = ((i64)t * batch + first + r) * directions + d;
      const float *p = pre + r * m;
      float *keep = kept + row * kept_row + j;
      const float old = state[i];
      narrow(before[row * hidden + j], old);
#if LENGTHS
      if ((i64)lengths[first + r] <= (i64)t) {
        for (int slot = 0; slot < KEPT; slot++) keep[(i64)slot * hidden] = 0.0f;
        narrow(y[row * hidden + j], 0.0f);
        continue;
      }
#endif
      float now;
#if CELL == RNN
      now = squash(SQUASH1, p[j]);
      keep[0] = now;
#elif CELL == LSTM
      const float c = second[i];
      float in = p[j], out = p[hidden + j], forget = p[2 * hidden + j];
#if PEEPHOLE
      const PeepholeT *hole = peephole + (i64)d * 3 * hidden + j;
      in = fmaf(widen(hole[0]), c, in);
      forget = fmaf(widen(hole[2 * hidden]), c, forget);
#endif
      in = squash(SQUASH1, in);
      forget = squash(SQUASH1, forget);
      const float fresh = squash(SQUASH2, p[3 * hidden + j]);
      const float memory = fmaf(forget, c, in * fresh);
#if PEEPHOLE
      out = fmaf(widen(hole[hidden]), memory, out);
#endif
      out = squash(SQUASH1, out);
      now = out * squash(SQUASH3, memory);
      second[i] = memory;
      keep[0] = in;
      keep[hidden] = out;
      keep[2 * hidden] = forget;
      keep[3 * hidden] = fresh;
      keep[4 * hidden] = c;
#else
#if CELL == GRU
      const float z = p[j], reset = p[hidden + j], inner = second[i];
      const float fresh = squash(SQUASH2, p[2 * hidden + j]);
#else
      const float z = squash(SQUASH1, p[j]), reset = squash(SQUASH1, p[hidden + j]);
      const float inner = p[2 * hidden + j];
      const float fresh = squash(SQUASH2, fmaf(reset, inner, widen(gates[row * m + 2 * hidden + j])));
#endif
      now = fmaf(z, old, (1.0f - z) * fresh);
      keep[0] = z;
      keep[hidden] = reset;
      keep[2 * hidden] = fresh;
      keep[3 * hidden] = inner;
#endif
      state[i] = now;
      narrow(y[row * hidden + j], now);
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < rows * hidden; i += THREADS) {
    const int r = i / hidden, j = i % hidden;
    const i64 row = ((i64)steps * batch + first + r) * directions + d;
    narrow(y[row * hidden + j], state[i]);
#if CELL == LSTM
    narrow(y[(row + (i64)batch * directions) * hidden + j], second[i]);
#endif
  }
}

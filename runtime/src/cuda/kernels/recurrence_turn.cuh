// The recurrent matrix of each direction turned, in f32: lanes of the walk read neighbouring gates.
extern "C" __global__ void __launch_bounds__(256, 4) ENTRY(PARAMS) {
  const i64 each = gates * hidden;
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < total; at += (i64)gridDim.x * 256) {
    const i64 d = at / each, rest = at - d * each, k = rest / gates, n = rest - k * gates;
    turned[at] = widen(matrix[d * each + n * hidden + k]);
  }
}

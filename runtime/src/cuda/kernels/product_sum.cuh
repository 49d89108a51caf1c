// Adds the parts of k in order, and ends the product.
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  SETUP
  const u64 matrix = (u64)m * n, total = matrix * batches;
  for (u64 at = (u64)blockIdx.x * 256u + threadIdx.x; at < total; at += (u64)gridDim.x * 256u) {
    const u32 z = (u32)(at / matrix), z0 = z / batch1;
    const u64 in = at - z * matrix;
    const u32 row = (u32)(in / n), col = (u32)(in - (u64)row * n);
    float sum[1] = {0.0f};
    for (u32 p = 0; p < splits; p++) sum[0] += partial[p * total + at];
    finish(sum, EPI_NAMES, q, z0, z - z0 * batch1, m, row, col);
  }
}

// Rows of each table row, and which of its rows each one is, in order of arrival.
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  for (u32 r = blockIdx.x * 256u + threadIdx.x; r < rows; r += gridDim.x * 256u) {
    i64 id = (i64)ids[(i64)r * ids_s0];
    if (id < 0) id += table_rows;
    if (id < 0 || id >= table_rows) {
      atomicCAS(fault, 0ull, fault_value | (u64)r << 8);
      arrival[r] = 0xffffffffu;
    } else {
      arrival[r] = atomicAdd(&counts[id], 1u);
    }
  }
}

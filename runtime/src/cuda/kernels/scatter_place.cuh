extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  for (u32 r = blockIdx.x * 256u + threadIdx.x; r < rows; r += gridDim.x * 256u) {
    if (arrival[r] == 0xffffffffu) continue;
    i64 id = (i64)ids[(i64)r * ids_s0];
    if (id < 0) id += table_rows;
    order[start[id] + arrival[r]] = r;
  }
}

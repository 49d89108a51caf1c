// A stretch of `order` for every table row that has rows. Where the stretch lies differs from run
// to run; what is summed, and in which order, does not.
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  for (u32 r = blockIdx.x * 256u + threadIdx.x; r < rows; r += gridDim.x * 256u) {
    if (arrival[r] != 0) continue;
    i64 id = (i64)ids[(i64)r * ids_s0];
    if (id < 0) id += table_rows;
    start[id] = atomicAdd(&cursor[0], counts[id]);
    touched[atomicAdd(&cursor[1], 1u)] = (u32)id;
  }
}

// out[r, :] = table[ids[r], :]. A thread moves VEC neighbouring elements.
__device__ __forceinline__ bool k_row(const IdT *ids, i64 at, i64 table_rows, i64 *row) {
  i64 id = (i64)ids[at];
  if (id < 0) id += table_rows;
  *row = id;
  return id >= 0 && id < table_rows;
}
// Integers and booleans are copied, and so are reals that keep their format.
template <class T> __device__ __forceinline__ void k_move(T *o, const T *t, bool ok) {
  *o = ok ? *t : T{};
}
template <class O, class T> __device__ __forceinline__ void k_move(O *o, const T *t, bool ok) {
  narrow(*o, ok ? widen(*t) : 0.0f);
}
extern "C" __global__ void __launch_bounds__(256) ENTRY(PARAMS) {
  const u64 per_row = (u64)(width / VEC), total = (u64)rows * per_row;
  for (u64 at = (u64)blockIdx.x * 256u + threadIdx.x; at < total; at += (u64)gridDim.x * 256u) {
    u64 r, c;
    if (total >> 32) {
      r = at / per_row;
      c = at - r * per_row;
    } else {
      r = (u32)at / (u32)per_row;
      c = (u32)at - (u32)r * (u32)per_row;
    }
    i64 row;
    bool ok = k_row(ids, (i64)r * ids_s0, table_rows, &row);
    if (!ok && c == 0) atomicCAS(fault, 0ull, fault_value | (r < 0xffffffffull ? r : 0xffffffffull) << 8);
    OutT *o = out + (i64)r * out_s0 + (i64)c * VEC * out_s1;
    const TableT *t = table + (ok ? row : 0) * table_s0 + (i64)c * VEC * table_s1;
    if (COPY16) {
      Chunk<16> v = {{0, 0, 0, 0}};
      if (ok) v = *(const Chunk<16> *)t;
      *(Chunk<16> *)o = v;
    } else {
      k_move(o, t, ok);
    }
  }
}

// From a row and a column of a product to the coordinates of its result.
struct Out { u32 d1, d2; int y, ys, x, xs; };
template <int V>
__device__ __forceinline__ void finish(const float (&v)[V], EPI_PARAMETERS, const Out &q, u32 z0, u32 z1, u32 m, u32 row,
                                       u32 col) {
#if KIND == 0
  epilogue(v, EPI_NAMES, z0, z1, row, col);
#else
  const u32 rest = col / q.d2, c2 = col - rest * q.d2, c0 = rest / q.d1, c1 = rest - c0 * q.d1;
  const u32 channel = z1 * m + row;
#if KIND == 1
  epilogue(v, EPI_NAMES, c0, channel, q.y + (int)c1 * q.ys, q.x + (int)c2 * q.xs);
#elif KIND == 2
  epilogue(v, EPI_NAMES, channel, c0, c1, c2);
#else
  epilogue(v, EPI_NAMES, channel, c2, c0, c1);
#endif
#endif
}

// Barriers, warp operations and atomics.
#ifndef PRECAST_SOFTDEV_WARP_H
#define PRECAST_SOFTDEV_WARP_H
inline void __syncthreads(int line = __builtin_LINE()) { softdev::sync_block(0, 0, 0, "__syncthreads", line); }
inline int __syncthreads_or(int p, int line = __builtin_LINE()) { return softdev::sync_block(0, 0, p != 0, "__syncthreads_or", line) > 0; }
inline int __syncthreads_and(int p, int line = __builtin_LINE()) { return softdev::sync_block(0, 0, p == 0, "__syncthreads_and", line) == 0; }
inline int __syncthreads_count(int p, int line = __builtin_LINE()) { return softdev::sync_block(0, 0, p != 0, "__syncthreads_count", line); }
// `bar.sync index, count`
inline void __barrier_sync_count(unsigned index, unsigned count, int line = __builtin_LINE()) { softdev::sync_block(index, count, 0, "__barrier_sync", line); }
inline void __barrier_sync(unsigned index, int line = __builtin_LINE()) { softdev::sync_block(index, 0, 0, "__barrier_sync", line); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  char c = 0;
  softdev::exchange(mask, &c, 1, "__syncwarp", line);
}
inline unsigned __activemask() { return softdev::cur->warp->live; }
namespace softdev {
template <class T> T shuffle(unsigned mask, T v, int from, const char *what, int line) {
  static_assert(sizeof(T) <= 32, "");
  Came c = exchange(mask, &v, sizeof(T), what, line);
  T r;
  if (c.lanes >> from & 1) memcpy((void *)&r, c.slot[from], sizeof(T));
  else memset((void *)&r, 0xff, sizeof(T));  // what a lane that did not take part holds is undefined
  return r;
}
inline unsigned ballot(unsigned mask, int p, const char *what, int line) {
  unsigned char v = p != 0;
  Came c = exchange(mask, &v, 1, what, line);
  unsigned r = 0;
  for (int i = 0; i < 32; i++) if (c.lanes >> i & 1) r |= (unsigned)c.slot[i][0] << i;
  return r;
}
template <class T, class F> T reduce(unsigned mask, T v, F f, const char *what, int line) {
  Came c = exchange(mask, &v, sizeof(T), what, line);
  T r = v;
  for (int i = 0; i < 32; i++) if ((c.lanes >> i & 1) && i != cur->lane) {
    T o;
    memcpy(&o, c.slot[i], sizeof o);
    r = f(r, o);
  }
  return r;
}
}  // namespace softdev
template <class T> T __shfl_sync(unsigned m, T v, int s, int w = 32, int line = __builtin_LINE()) {
  int l = softdev::cur->lane;
  return softdev::shuffle(m, v, (l & ~(w - 1)) | (s & (w - 1)), "__shfl_sync", line);
}
template <class T> T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, int line = __builtin_LINE()) {
  int l = softdev::cur->lane, s = l ^ x;
  return softdev::shuffle(m, v, (s & ~(w - 1)) > (l & ~(w - 1)) ? l : s, "__shfl_xor_sync", line);
}
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, int line = __builtin_LINE()) {
  int l = softdev::cur->lane;
  return softdev::shuffle(m, v, (l & (w - 1)) + (int)d < w ? l + (int)d : l, "__shfl_down_sync", line);
}
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, int line = __builtin_LINE()) {
  int l = softdev::cur->lane;
  return softdev::shuffle(m, v, (l & (w - 1)) - (int)d >= 0 ? l - (int)d : l, "__shfl_up_sync", line);
}
inline unsigned __ballot_sync(unsigned m, int p, int line = __builtin_LINE()) { return softdev::ballot(m, p, "__ballot_sync", line); }
inline int __any_sync(unsigned m, int p, int line = __builtin_LINE()) { return softdev::ballot(m, p, "__any_sync", line) != 0; }
inline int __all_sync(unsigned m, int p, int line = __builtin_LINE()) { return softdev::ballot(m, !p, "__all_sync", line) == 0; }
#define SOFTDEV_REDUCE(name, T, expression)                                                   \
  inline T __reduce_##name##_sync(unsigned m, T v, int line = __builtin_LINE()) {             \
    return softdev::reduce(m, v, [](T a, T b) -> T { return expression; }, "__reduce_" #name "_sync", line); \
  }
SOFTDEV_REDUCE(add, unsigned, a + b)
SOFTDEV_REDUCE(add, int, a + b)
SOFTDEV_REDUCE(max, unsigned, a > b ? a : b)
SOFTDEV_REDUCE(max, int, a > b ? a : b)
SOFTDEV_REDUCE(min, unsigned, a < b ? a : b)
SOFTDEV_REDUCE(min, int, a < b ? a : b)
SOFTDEV_REDUCE(and, unsigned, a & b)
SOFTDEV_REDUCE(or, unsigned, a | b)
SOFTDEV_REDUCE(xor, unsigned, a ^ b)

// Fibers give way only where they wait, so that a read and a write are one.
template <class T, class F> T softdev_rmw(T *p, F f) {
  T old = *p;
  *p = f(old);
  return old;
}
template <class T> struct softdev_same { typedef T type; };
template <class T> using softdev_same_t = typename softdev_same<T>::type;
template <class T> T atomicAdd(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return (T)(o + v); }); }
template <class T> T atomicSub(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return (T)(o - v); }); }
template <class T> T atomicMax(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return o > v ? o : v; }); }
template <class T> T atomicMin(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return o < v ? o : v; }); }
template <class T> T atomicAnd(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return (T)(o & v); }); }
template <class T> T atomicOr(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return (T)(o | v); }); }
template <class T> T atomicXor(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return (T)(o ^ v); }); }
template <class T> T atomicExch(T *p, softdev_same_t<T> v) { return softdev_rmw(p, [&](T) { return v; }); }
template <class T> T atomicCAS(T *p, softdev_same_t<T> c, softdev_same_t<T> v) { return softdev_rmw(p, [&](T o) { return o == c ? v : o; }); }
inline unsigned atomicInc(unsigned *p, unsigned v) { return softdev_rmw(p, [&](unsigned o) { return o >= v ? 0u : o + 1; }); }
inline unsigned atomicDec(unsigned *p, unsigned v) { return softdev_rmw(p, [&](unsigned o) { return o == 0 || o > v ? v : o - 1; }); }
inline float2 atomicAdd(float2 *p, float2 v) { float2 o = *p; *p = {o.x + v.x, o.y + v.y}; return o; }
inline float4 atomicAdd(float4 *p, float4 v) { float4 o = *p; *p = {o.x + v.x, o.y + v.y, o.z + v.z, o.w + v.w}; return o; }
template <class T> T atomicAdd_block(T *p, softdev_same_t<T> v) { return atomicAdd(p, v); }
template <class T> T atomicAdd_system(T *p, softdev_same_t<T> v) { return atomicAdd(p, v); }
#endif

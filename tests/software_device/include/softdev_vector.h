// Vector types with the alignments of CUDA.
#ifndef PRECAST_SOFTDEV_VECTOR_H
#define PRECAST_SOFTDEV_VECTOR_H
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#define SOFTDEV_VECTOR(T, N)                                                                 \
  struct N##1 { T x; };                                                                      \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; };                                            \
  struct N##3 { T x, y, z; };                                                                \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; };            \
  inline N##1 make_##N##1(T x) { return {x}; }                                               \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                       \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                               \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SOFTDEV_VECTOR(signed char, char)
SOFTDEV_VECTOR(unsigned char, uchar)
SOFTDEV_VECTOR(short, short)
SOFTDEV_VECTOR(unsigned short, ushort)
SOFTDEV_VECTOR(int, int)
SOFTDEV_VECTOR(unsigned, uint)
SOFTDEV_VECTOR(long, long)
SOFTDEV_VECTOR(unsigned long, ulong)
SOFTDEV_VECTOR(long long, longlong)
SOFTDEV_VECTOR(unsigned long long, ulonglong)
SOFTDEV_VECTOR(float, float)
SOFTDEV_VECTOR(double, double)
#endif

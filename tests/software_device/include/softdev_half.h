// __half and __nv_bfloat16 with the conversions of the hardware: to nearest, ties to even.
#ifndef PRECAST_SOFTDEV_HALF_H
#define PRECAST_SOFTDEV_HALF_H
// Sums and products of two 11-bit (or 8-bit) numbers in f32 and then rounded are rounded once;
// a fused multiply-add is computed in f64 and brought to f32 by rounding to odd first.
inline float softdev_round_odd(double d) {
  float f = (float)d;
  if ((double)f == d || d != d || isinf(f)) return f;
  unsigned u = __float_as_uint(f);
  if (fabs((double)f) > fabs(d)) u -= 1;
  return __uint_as_float(u | 1);
}
inline unsigned short softdev_half_bits(float f) {
  unsigned u = __float_as_uint(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return 0x7fff;
  if (a >= 0x477ff000) return (unsigned short)(sign | 0x7c00);  // 65520 and above
  if (a < 0x38800000) {  // below 2^-14: units of 2^-24
    float scaled = __uint_as_float(a) * 16777216.f;
    return (unsigned short)(sign | (unsigned)nearbyintf(scaled));
  }
  unsigned r = a + 0xfff + (a >> 13 & 1);
  return (unsigned short)(sign | ((r - 0x38000000) >> 13));
}
inline float softdev_half_value(unsigned short b) {
  unsigned sign = (unsigned)(b & 0x8000) << 16, e = b >> 10 & 31, m = b & 0x3ff;
  if (e == 31) return __uint_as_float(sign | 0x7f800000 | m << 13);
  if (e == 0) {
    float f = (float)m * 5.9604644775390625e-08f;
    return __uint_as_float(__float_as_uint(f) | sign);
  }
  return __uint_as_float(sign | (e + 112) << 23 | m << 13);
}
inline unsigned short softdev_bf16_bits(float f) {
  unsigned u = __float_as_uint(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
struct __half_raw { unsigned short x; };
struct __nv_bfloat16_raw { unsigned short x; };
struct alignas(2) __half {
  unsigned short __x;
  __half() = default;
  __half(__half_raw r) : __x(r.x) {}
#if defined(__F16C__)
  __half(float f) { _Float16 h = (_Float16)f; __x = f != f ? 0x7fff : softdev_bits<unsigned short>(h); }
  operator float() const { return (float)softdev_bits<_Float16>(__x); }
#else
  __half(float f) : __x(softdev_half_bits(f)) {}
  operator float() const { return softdev_half_value(__x); }
#endif
  __half(double d) : __half(softdev_round_odd(d)) {}
  __half(int i) : __half((double)i) {}
  __half(unsigned i) : __half((double)i) {}
  operator __half_raw() const { return {__x}; }
};
struct alignas(2) __nv_bfloat16 {
  unsigned short __x;
  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw r) : __x(r.x) {}
  __nv_bfloat16(float f) : __x(softdev_bf16_bits(f)) {}
  __nv_bfloat16(double d) : __nv_bfloat16(softdev_round_odd(d)) {}
  __nv_bfloat16(int i) : __nv_bfloat16((double)i) {}
  __nv_bfloat16(unsigned i) : __nv_bfloat16((double)i) {}
  operator float() const { return __uint_as_float((unsigned)__x << 16); }
  operator __nv_bfloat16_raw() const { return {__x}; }
};
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half a, __half b) : x(a), y(b) {}
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) : x(a), y(b) {}
};
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
inline __half __double2half(double f) { return f; }
inline __half __int2half_rn(int i) { return i; }
inline __half __uint2half_rn(unsigned i) { return i; }
inline __half2 __float2half2_rn(float a) { return {a, a}; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __lows2half2(__half2 a, __half2 b) { return {a.x, b.x}; }
inline __half2 __highs2half2(__half2 a, __half2 b) { return {a.y, b.y}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline unsigned short __half_as_ushort(__half h) { return h.__x; }
inline __half __ushort_as_half(unsigned short u) { return __half_raw{u}; }
inline short __half_as_short(__half h) { return (short)h.__x; }
inline __half __short_as_half(short u) { return __half_raw{(unsigned short)u}; }

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline __nv_bfloat16 __double2bfloat16(double f) { return f; }
inline __nv_bfloat16 __int2bfloat16_rn(int i) { return i; }
inline __nv_bfloat16 __uint2bfloat16_rn(unsigned i) { return i; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return __nv_bfloat16_raw{u}; }
inline short __bfloat16_as_short(__nv_bfloat16 h) { return (short)h.__x; }
inline __nv_bfloat16 __short_as_bfloat16(short u) { return __nv_bfloat16_raw{(unsigned short)u}; }

#define SOFTDEV_HALF(T, T2)                                                                   \
  inline T operator+(T a, T b) { return (float)a + (float)b; }                                \
  inline T operator-(T a, T b) { return (float)a - (float)b; }                                \
  inline T operator*(T a, T b) { return (float)a * (float)b; }                                \
  inline T operator/(T a, T b) { return (float)a / (float)b; }                                \
  inline T operator-(T a) { T r; r.__x = a.__x ^ 0x8000; return r; }                          \
  inline T &operator+=(T &a, T b) { return a = a + b; }                                       \
  inline T &operator-=(T &a, T b) { return a = a - b; }                                       \
  inline T &operator*=(T &a, T b) { return a = a * b; }                                       \
  inline T &operator/=(T &a, T b) { return a = a / b; }                                       \
  inline bool operator<(T a, T b) { return (float)a < (float)b; }                             \
  inline bool operator>(T a, T b) { return (float)a > (float)b; }                             \
  inline bool operator<=(T a, T b) { return (float)a <= (float)b; }                           \
  inline bool operator>=(T a, T b) { return (float)a >= (float)b; }                           \
  inline bool operator==(T a, T b) { return (float)a == (float)b; }                           \
  inline bool operator!=(T a, T b) { return (float)a != (float)b; }                           \
  inline T __hadd(T a, T b) { return a + b; }                                                 \
  inline T __hsub(T a, T b) { return a - b; }                                                 \
  inline T __hmul(T a, T b) { return a * b; }                                                 \
  inline T __hdiv(T a, T b) { return a / b; }                                                 \
  inline T __hneg(T a) { return -a; }                                                         \
  inline T __habs(T a) { T r; r.__x = a.__x & 0x7fff; return r; }                             \
  inline T __hfma(T a, T b, T c) { return softdev_round_odd((double)(float)a * (double)(float)b + (double)(float)c); } \
  inline T __hmax(T a, T b) { return fmaxf(a, b); }                                           \
  inline T __hmin(T a, T b) { return fminf(a, b); }                                           \
  inline bool __heq(T a, T b) { return a == b; }                                              \
  inline bool __hne(T a, T b) { return a != b; }                                              \
  inline bool __hlt(T a, T b) { return a < b; }                                               \
  inline bool __hle(T a, T b) { return a <= b; }                                              \
  inline bool __hgt(T a, T b) { return a > b; }                                               \
  inline bool __hge(T a, T b) { return a >= b; }                                              \
  inline bool __hisnan(T a) { return (float)a != (float)a; }                                  \
  inline int __hisinf(T a) { return isinf((float)a) ? ((float)a > 0 ? 1 : -1) : 0; }          \
  inline T hexp(T a) { return expf(a); }                                                      \
  inline T hlog(T a) { return logf(a); }                                                      \
  inline T hsqrt(T a) { return sqrtf(a); }                                                    \
  inline T hrsqrt(T a) { return rsqrtf(a); }                                                  \
  inline T hrcp(T a) { return 1.f / (float)a; }                                               \
  inline T hsin(T a) { return sinf(a); }                                                      \
  inline T hcos(T a) { return cosf(a); }                                                      \
  inline T htanh(T a) { return tanhf(a); }                                                    \
  inline T2 __hadd2(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }                            \
  inline T2 __hsub2(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }                            \
  inline T2 __hmul2(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }                            \
  inline T2 __h2div(T2 a, T2 b) { return {a.x / b.x, a.y / b.y}; }                            \
  inline T2 __hneg2(T2 a) { return {-a.x, -a.y}; }                                            \
  inline T2 __habs2(T2 a) { return {__habs(a.x), __habs(a.y)}; }                              \
  inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }              \
  inline T2 __hmin2(T2 a, T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }              \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
  inline T atomicAdd(T *p, T v) { T o = *p; *p = o + v; return o; }                           \
  inline T2 atomicAdd(T2 *p, T2 v) { T2 o = *p; *p = __hadd2(o, v); return o; }
SOFTDEV_HALF(__half, __half2)
SOFTDEV_HALF(__nv_bfloat16, __nv_bfloat162)
#endif

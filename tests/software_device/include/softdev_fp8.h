// FP8 by the OCP definitions: E4M3 has no infinity, E5M2 has.
#ifndef PRECAST_SOFTDEV_FP8_H
#define PRECAST_SOFTDEV_FP8_H
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
typedef unsigned __nv_fp8x4_storage_t;
inline unsigned char softdev_fp8_bits(double f, int m_bits, bool saturate) {
  int e_bits = 7 - m_bits, bias = (1 << (e_bits - 1)) - 1;
  unsigned char sign = signbit(f) ? 128 : 0, most = m_bits == 3 ? 0x7e : 0x7b;
  if (f != f) return m_bits == 3 ? 0x7f | sign : 0x7f;
  unsigned char over = saturate ? most : m_bits == 3 ? 0x7f : 0x7c;
  double a = fabs(f);
  if (a == 0) return sign;
  if (isinf(a)) return sign | over;
  int exponent;
  frexp(a, &exponent);
  int q = exponent - 1 > 1 - bias ? exponent - 1 : 1 - bias;
  double units = nearbyint(ldexp(a, m_bits - q));  // of 2^(q - m_bits)
  long v = (long)units + ((long)(q + bias - 1) << m_bits);
  return v > most ? sign | over : sign | (unsigned char)v;
}
inline float softdev_fp8_value(unsigned char b, int m_bits) {
  int e_bits = 7 - m_bits, bias = (1 << (e_bits - 1)) - 1;
  int e = b >> m_bits & ((1 << e_bits) - 1), m = b & ((1 << m_bits) - 1);
  float s = b & 128 ? -1.f : 1.f;
  if (m_bits == 3 && (b & 127) == 127) return NAN;
  if (m_bits == 2 && e == 31) return m ? NAN : s * INFINITY;
  return s * (e ? ldexpf(1.f + ldexpf((float)m, -m_bits), e - bias) : ldexpf((float)m, 1 - bias - m_bits));
}
#define SOFTDEV_FP8(T, M)                                                                     \
  struct alignas(1) T {                                                                       \
    __nv_fp8_storage_t __x;                                                                   \
    T() = default;                                                                            \
    explicit T(float f) : __x(softdev_fp8_bits(f, M, true)) {}                                \
    explicit T(double f) : __x(softdev_fp8_bits(f, M, true)) {}                               \
    explicit T(__half f) : T((float)f) {}                                                     \
    explicit T(__nv_bfloat16 f) : T((float)f) {}                                              \
    explicit operator float() const { return softdev_fp8_value(__x, M); }                     \
    explicit operator __half() const { return softdev_fp8_value(__x, M); }                    \
    explicit operator __nv_bfloat16() const { return softdev_fp8_value(__x, M); }             \
  };
SOFTDEV_FP8(__nv_fp8_e4m3, 3)
SOFTDEV_FP8(__nv_fp8_e5m2, 2)
inline int softdev_fp8_mantissa(__nv_fp8_interpretation_t i) { return i == __NV_E4M3 ? 3 : 2; }
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float f, __nv_saturation_t s, __nv_fp8_interpretation_t i) {
  return softdev_fp8_bits(f, softdev_fp8_mantissa(i), s == __NV_SATFINITE);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t s, __nv_fp8_interpretation_t i) {
  return (unsigned short)(__nv_cvt_float_to_fp8(v.x, s, i) | __nv_cvt_float_to_fp8(v.y, s, i) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t b, __nv_fp8_interpretation_t i) {
  return __half(softdev_fp8_value(b, softdev_fp8_mantissa(i)));
}
#endif

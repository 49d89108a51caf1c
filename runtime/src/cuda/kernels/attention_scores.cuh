// What all kernels of attention make of masks and of rows without keys.
#if MASK
#if SELECT
#define MASKED(x, m) ((m) ? (x) : fill)
// The cotangent of a score, 0 where something else stands in its place.
#define KEPT(x, m) ((m) ? (x) : 0.0f)
#else
#define MASKED(x, m) ((x) + widen(m))
#endif
#endif
// The value of a row all of whose scores are minus infinity: softmax has none.
#if SAFE
#define NONE(x) (x)
#else
#define NONE(x) (infinity() - infinity())
#endif

// The rounded sum of two numbers and what it lost (Knuth, The Art of Computer Programming, 4.2.2).
__device__ __forceinline__ float two_sum(float a, float b, float &lost) {
  float sum = a + b, of_b = sum - a;
  lost = (a - (sum - of_b)) + (b - of_b);
  return sum;
}

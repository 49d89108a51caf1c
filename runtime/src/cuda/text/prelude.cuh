// Common to all generated kernels: formats, vector access, Philox, reductions.
//
// Needs no header of the CUDA toolkit: what NVRTC does not have built in is inline PTX here. On the
// host (the software device of the tests) a header with the thread model is included before this
// text, and the functions that are PTX below have a portable form.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Stored formats that C++ lacks. A register of a program is float, int or bool.
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct f8e4m3 { u8 bits; };
struct f8e5m2 { u8 bits; };
struct flag { u8 bits; };

#ifndef PRECAST_SOFTWARE_DEVICE
#pragma nv_diag_suppress 177 // a kernel uses some of the functions
#define DEVICE static __device__ __forceinline__
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
#else
#define DEVICE static inline
DEVICE u32 bits_of(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
DEVICE float float_of(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
#endif

// ---- Formats ------------------------------------------------------------------------------------
// Widening is exact. Narrowing rounds to nearest, ties to even; what exceeds the largest finite
// value becomes infinite (NaN in E4M3, which has no infinity).

#ifndef PRECAST_SOFTWARE_DEVICE
DEVICE u16 half_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
DEVICE float half_value(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
DEVICE u16 bfloat_bits(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// Two at once: `low` in the low half.
DEVICE u32 half_pair(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
DEVICE u32 bfloat_pair(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
#else
DEVICE u16 half_bits(float x) {
    const u32 u = bits_of(x), a = u & 0x7fffffffu, sign = u >> 16 & 0x8000u;
    if (a > 0x7f800000u) return (u16)(sign | 0x7fffu);
    if (a >= 0x47800000u) return (u16)(sign | 0x7c00u);
    if (a >= 0x38800000u) return (u16)(sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13));
    // Subnormal: the sum with 0.5 puts the rounded significand in the low bits.
    return (u16)(sign | (bits_of(float_of(a) + 0.5f) - 0x3f000000u));
}
DEVICE float half_value(u16 bits) {
    const u32 sign = (u32)(bits & 0x8000u) << 16, a = bits & 0x7fffu;
    if (a >= 0x7c00u) return float_of(sign | 0x7f800000u | (a & 0x3ffu) << 13);
    if (a >= 0x400u) return float_of(sign | ((a << 13) + 0x38000000u));
    const float x = (float)a * 5.9604644775390625e-8f;
    return sign ? -x : x;
}
DEVICE u16 bfloat_bits(float x) {
    const u32 u = bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
DEVICE u32 half_pair(float low, float high) { return half_bits(low) | (u32)half_bits(high) << 16; }
DEVICE u32 bfloat_pair(float low, float high) {
    return bfloat_bits(low) | (u32)bfloat_bits(high) << 16;
}
#endif
DEVICE float bfloat_value(u16 bits) { return float_of((u32)bits << 16); }

// An 8-bit float with E exponent bits (4: E4M3 without infinities, 5: E5M2, as IEEE 754).
template <int E> DEVICE float eight_value(u8 bits) {
    const int mantissa = 7 - E, bias = (1 << (E - 1)) - 1;
    const u32 sign = (u32)(bits & 0x80u) << 24, code = bits & 0x7fu;
    if (E == 4 && code == 0x7fu) return float_of(sign | 0x7fc00000u);
    if (E == 5 && code >= 0x7cu) return float_of(sign | 0x7f800000u | (code == 0x7cu ? 0u : 0x400000u));
    if (code >= 1u << mantissa) return float_of(sign | ((code << (23 - mantissa)) + ((127u - bias) << 23)));
    // Subnormals are multiples of the smallest one, whose exponent is 1 - bias - mantissa.
    const float x = (float)code * float_of((u32)(128 - bias - mantissa) << 23);
    return sign ? -x : x;
}
template <int E> DEVICE u8 eight_bits(float x) {
    const int mantissa = 7 - E, bias = (1 << (E - 1)) - 1;
    const u32 u = bits_of(x), a = u & 0x7fffffffu, sign = u >> 24 & 0x80u;
    const u32 largest = E == 4 ? 0x7eu : 0x7bu, overflow = E == 4 ? 0x7fu : 0x7cu;
    if (a > 0x7f800000u) return (u8)(sign | 0x7fu);
    u32 code;
    if (a >= (u32)(128 - bias) << 23) {
        const int drop = 23 - mantissa;
        code = (a - ((127u - bias) << 23) + (1u << (drop - 1)) - 1u + (a >> drop & 1u)) >> drop;
    } else {
        // The sum with 2^23 subnormal steps leaves the rounded multiple in the low bits.
        const float magic = float_of((u32)(151 - bias - mantissa) << 23);
        code = bits_of(float_of(a) + magic) - bits_of(magic);
    }
    return (u8)(sign | (code > largest ? overflow : code));
}

DEVICE float widen(float x) { return x; }
DEVICE float widen(f16 x) { return half_value(x.bits); }
DEVICE float widen(bf16 x) { return bfloat_value(x.bits); }
DEVICE float widen(f8e4m3 x) { return eight_value<4>(x.bits); }
DEVICE float widen(f8e5m2 x) { return eight_value<5>(x.bits); }
// What 32 bits do not hold is the nearest that they do.
DEVICE int widen(i64 x) { return x > 2147483647ll ? 2147483647 : x < -2147483648ll ? -2147483647 - 1 : (int)x; }
DEVICE int widen(int x) { return x; }
DEVICE int widen(u8 x) { return x; }
DEVICE bool widen(flag x) { return x.bits != 0; }
DEVICE void narrow(float& y, float x) { y = x; }
DEVICE void narrow(f16& y, float x) { y.bits = half_bits(x); }
DEVICE void narrow(bf16& y, float x) { y.bits = bfloat_bits(x); }
DEVICE void narrow(f8e4m3& y, float x) { y.bits = eight_bits<4>(x); }
DEVICE void narrow(f8e5m2& y, float x) { y.bits = eight_bits<5>(x); }
DEVICE void narrow(i64& y, int x) { y = x; }
DEVICE void narrow(int& y, int x) { y = x; }
DEVICE void narrow(u8& y, int x) { y = (u8)x; }
DEVICE void narrow(flag& y, bool x) { y.bits = x ? 1 : 0; }

// Rounds to a narrower format and widens back.
template <class T> DEVICE float rounded(float x) {
    T y;
    narrow(y, x);
    return widen(y);
}

// ---- Vector access ------------------------------------------------------------------------------

// N bytes that move as one access.
template <int N> struct Chunk;
template <> struct __align__(1) Chunk<1> { u8 raw; };
template <> struct __align__(2) Chunk<2> { u16 raw; };
template <> struct __align__(4) Chunk<4> { u32 raw; };
template <> struct __align__(8) Chunk<8> { u32 raw[2]; };
template <> struct __align__(16) Chunk<16> { u32 raw[4]; };

// V neighbours of a format as they lie in memory; `PIECES` accesses of at most 16 bytes.
template <class T, int V> struct __align__(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack { T at[V]; };

#ifndef PRECAST_SOFTWARE_DEVICE
DEVICE void copy_piece(Chunk<1>* to, const Chunk<1>* from) { *to = *from; }
DEVICE void copy_piece(Chunk<2>* to, const Chunk<2>* from) { *to = *from; }
DEVICE void copy_piece(Chunk<4>* to, const Chunk<4>* from) { *to = *from; }
DEVICE void copy_piece(Chunk<8>* to, const Chunk<8>* from) {
    *(uint2*)to = *(const uint2*)from;
}
DEVICE void copy_piece(Chunk<16>* to, const Chunk<16>* from) {
    *(uint4*)to = *(const uint4*)from;
}
template <class T, int V> DEVICE void copy_pack(Pack<T, V>* to, const Pack<T, V>* from) {
    const int bytes = V * sizeof(T), piece = bytes < 16 ? bytes : 16;
#pragma unroll
    for (int i = 0; i < bytes / piece; ++i) {
        copy_piece((Chunk<piece>*)to + i, (const Chunk<piece>*)from + i);
    }
}
#else
template <class T, int V> DEVICE void copy_pack(Pack<T, V>* to, const Pack<T, V>* from) {
    // A misaligned access is an error on the device, so it is one here.
    const u64 piece = sizeof(Pack<T, V>) < 16 ? sizeof(Pack<T, V>) : 16;
    if ((u64)to % piece || (u64)from % piece) __builtin_trap();
    __builtin_memcpy(to, from, sizeof(Pack<T, V>));
}
#endif

// V neighbours; `from` is aligned to V elements or 16 bytes, whichever is less.
template <int V, class T, class X> DEVICE void load(X (&x)[V], const T* from) {
    Pack<T, V> pack;
    copy_pack(&pack, (const Pack<T, V>*)from);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = widen(pack.at[j]);
}
// V elements, `step` apart.
template <int V, class T, class X> DEVICE void load_apart(X (&x)[V], const T* from, i64 step) {
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = widen(from[j * step]);
}
template <int V, class T, class X> DEVICE void narrow_pack(Pack<T, V>& pack, const X (&x)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) narrow(pack.at[j], x[j]);
}
template <int V> DEVICE void narrow_pack(Pack<f16, V>& pack, const float (&x)[V]) {
    if (V == 1) return narrow(pack.at[0], x[0]);
#pragma unroll
    for (int j = 0; j + 1 < V; j += 2) {
        const u32 two = half_pair(x[j], x[j + 1]);
        pack.at[j].bits = (u16)two;
        pack.at[j + 1].bits = (u16)(two >> 16);
    }
}
template <int V> DEVICE void narrow_pack(Pack<bf16, V>& pack, const float (&x)[V]) {
    if (V == 1) return narrow(pack.at[0], x[0]);
#pragma unroll
    for (int j = 0; j + 1 < V; j += 2) {
        const u32 two = bfloat_pair(x[j], x[j + 1]);
        pack.at[j].bits = (u16)two;
        pack.at[j + 1].bits = (u16)(two >> 16);
    }
}
template <int V, class T, class X> DEVICE void store(T* to, const X (&x)[V]) {
    Pack<T, V> pack;
    narrow_pack<V>(pack, x);
    copy_pack((Pack<T, V>*)to, &pack);
}
template <int V, class T, class X> DEVICE void store_apart(T* to, i64 step, const X (&x)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) narrow(to[j * step], x[j]);
}
template <class T, class X> DEVICE void store_one(T* to, X x) { narrow(*to, x); }

// ---- Arithmetic of programs ---------------------------------------------------------------------
// Reals: +, -, *, / and the square root are rounded once (kernels are compiled without contraction
// and without flushing); elementary functions are CUDA's single-precision ones, 1 to 4 ulp.

DEVICE float infinity() { return float_of(0x7f800000u); }
DEVICE bool finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }
#ifndef PRECAST_SOFTWARE_DEVICE
// A NaN operand gives NaN.
DEVICE float largest(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
DEVICE float smallest(float a, float b) {
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
DEVICE int to_int(float x) { return __float2int_rz(x); }
DEVICE float reciprocal(float x) { return __frcp_rn(x); }
#else
DEVICE float largest(float a, float b) {
    return a != a || b != b ? float_of(0x7fffffffu) : a > b ? a : b;
}
DEVICE float smallest(float a, float b) {
    return a != a || b != b ? float_of(0x7fffffffu) : a < b ? a : b;
}
DEVICE int to_int(float x) {
    if (x != x) return 0;
    return x >= 2147483648.0f ? 2147483647 : x <= -2147483648.0f ? -2147483647 - 1 : (int)x;
}
DEVICE float reciprocal(float x) { return 1.0f / x; }
#endif
DEVICE float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }
DEVICE float reciprocal_root(float x) { return reciprocal(sqrtf(x)); }

// Ints wrap.
DEVICE int int_add(int a, int b) { return (int)((u32)a + (u32)b); }
DEVICE int int_sub(int a, int b) { return (int)((u32)a - (u32)b); }
DEVICE int int_mul(int a, int b) { return (int)((u32)a * (u32)b); }
DEVICE int int_div(int a, int b) { return b == 0 ? 0 : b == -1 ? int_sub(0, a) : a / b; }
DEVICE int int_max(int a, int b) { return a > b ? a : b; }
DEVICE int int_min(int a, int b) { return a < b ? a : b; }
DEVICE int int_abs(int a) { return a < 0 ? int_sub(0, a) : a; }

// Philox 4x32-10 (Salmon et al., SC'11), word 0.
DEVICE u32 philox(u64 point, u32 stream, u32 key0, u32 key1) {
    u32 c0 = (u32)point, c1 = (u32)(point >> 32), c2 = stream, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
        c0 = (u32)(p1 >> 32) ^ c1 ^ key0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ key1;
        c3 = (u32)p0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c0;
}
// Uniform in [0, 1): the top 24 bits.
DEVICE float uniform(u64 point, u32 stream, int seed, int step) {
    return (float)(philox(point, stream, (u32)seed, (u32)step) >> 8) * (1.0f / 16777216.0f);
}

// ---- Reductions ---------------------------------------------------------------------------------
// Always in the same order, so that equal inputs give equal bits.

struct Sum {
    static __device__ __forceinline__ float first() { return 0.0f; }
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ float first() { return -infinity(); }
    static __device__ __forceinline__ float of(float a, float b) { return largest(a, b); }
};
struct Min {
    static __device__ __forceinline__ float first() { return infinity(); }
    static __device__ __forceinline__ float of(float a, float b) { return smallest(a, b); }
};

// Over groups of WIDTH neighbouring lanes of a warp (a power of two); every lane has the result.
template <class Op, int WIDTH> DEVICE float reduce_lanes(float x) {
#pragma unroll
    for (int apart = WIDTH / 2; apart > 0; apart /= 2) {
        x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, apart));
    }
    return x;
}
// Over a block of THREADS (a multiple of 32); every thread has the result. `shared` holds 32 floats.
template <class Op, int THREADS> DEVICE float reduce_block(float x, float* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = reduce_lanes<Op, 32>(x);
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    x = lane < THREADS / 32 ? shared[lane] : Op::first();
    return reduce_lanes<Op, 32>(x);
}
// Over the TY threads of a block that share a column vector; thread (tx, ty) is number
// ty * TX + tx. Every thread has the result. `shared` holds TX * TY * V floats.
template <class Op, int TX, int TY, int V> DEVICE void reduce_columns(float (&x)[V], float* shared) {
    if (TY == 1) return;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < V; ++j) shared[(ty * V + j) * TX + tx] = x[j];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < V; ++j) {
        float y = shared[j * TX + tx];
#pragma unroll 4
        for (int k = 1; k < TY; ++k) y = Op::of(y, shared[(k * V + j) * TX + tx]);
        x[j] = y;
    }
}

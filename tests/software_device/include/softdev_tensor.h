// Warp-wide tensor-core operations and asynchronous copies. On the device functions of the same
// names hold inline PTX (README.md lists it).
#ifndef PRECAST_SOFTDEV_TENSOR_H
#define PRECAST_SOFTDEV_TENSOR_H
namespace softdev {
struct MmaOperands { unsigned a[4], b[2]; };
// D[16,8] += A[16,16] B[16,8]; fragments as PTX lays out mma.m16n8k16 for 16-bit types.
template <class Decode>
inline void mma_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Decode decode, int line) {
  MmaOperands mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  Came c = exchange(~0u, &mine, sizeof mine, "mma", line);
  if (c.lanes != ~0u) {
    report(kBarrier, "mma of line %d without all 32 lanes", line);
    leave();
  }
  int l = cur->lane;
  float rows[2][16], columns[2][16];
  for (int i = 0; i < 4; i++) {
    const MmaOperands *of_row = (const MmaOperands *)c.slot[(l / 4) * 4 + i];
    const MmaOperands *first = (const MmaOperands *)c.slot[((l % 4) * 2) * 4 + i];
    const MmaOperands *second = (const MmaOperands *)c.slot[((l % 4) * 2 + 1) * 4 + i];
    for (int half = 0; half < 2; half++)
      for (int low = 0; low < 2; low++) {
        int k = 8 * half + 2 * i + low;
        rows[0][k] = decode((unsigned short)(of_row->a[2 * half] >> (16 * low)));
        rows[1][k] = decode((unsigned short)(of_row->a[2 * half + 1] >> (16 * low)));
        columns[0][k] = decode((unsigned short)(first->b[half] >> (16 * low)));
        columns[1][k] = decode((unsigned short)(second->b[half] >> (16 * low)));
      }
  }
  for (int e = 0; e < 4; e++) {
    double sum = 0;
    for (int k = 0; k < 16; k++) sum += (double)rows[e >> 1][k] * (double)columns[e & 1][k];
    d[e] = (float)((double)d[e] + sum);
  }
}
}  // namespace softdev
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 and .f32.f16.f16.f32, d += a b.
inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
  softdev::mma_16816(d, a, b, [](unsigned short u) { return __uint_as_float((unsigned)u << 16); }, line);
}
inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
  softdev::mma_16816(d, a, b, [](unsigned short u) { return (float)(__half)__half_raw{u}; }, line);
}
namespace softdev {
// Lane i gives the address of row i % 8 of matrix i / 8; each row is 16 bytes.
template <int N> inline void ldmatrix(unsigned (&r)[N], const void *row, bool transposed, int line) {
  if ((uintptr_t)row & 15) {
    report(kTrap, "ldmatrix of line %d: row address %p is not 16-byte aligned", line, row);
    leave();
  }
  Came c = exchange(~0u, &row, sizeof row, "ldmatrix", line);
  int l = cur->lane;
  for (int m = 0; m < N; m++) {
    unsigned short v[2];
    for (int k = 0; k < 2; k++) {
      int i = l / 4, j = (l % 4) * 2 + k;
      const unsigned short *p;
      memcpy(&p, c.slot[8 * m + (transposed ? j : i)], sizeof p);
      v[k] = p[transposed ? i : j];
    }
    r[m] = v[0] | (unsigned)v[1] << 16;
  }
}
inline void finish_copies(int newest_kept) {
  Thread *t = cur;
  int kept = 0;
  for (int i = 0; i < t->pending_count; i++) {
    Pending &p = t->pending[i];
    if (p.group < t->group - newest_kept) {
      memcpy(p.to, p.from, p.bytes);
      memset((char *)p.to + p.bytes, 0, p.zero);
    } else {
      t->pending[kept++] = p;
    }
  }
  t->pending_count = kept;
}
inline void copy_later(void *to, const void *from, unsigned size, unsigned bytes, int line) {
  if (((uintptr_t)to | (uintptr_t)from) & (size - 1)) {
    report(kTrap, "cp.async of line %d: misaligned address", line);
    leave();
  }
  Thread *t = cur;
  if (t->pending_count % 16 == 0)
    t->pending = (Pending *)realloc(t->pending, sizeof(Pending) * (t->pending_count + 16));
  t->pending[t->pending_count++] = {to, from, bytes, size - bytes, t->group};
  memset(to, 0xff, size);  // nothing may be read here before the wait
}
}  // namespace softdev
inline void ldmatrix_x1(unsigned (&r)[1], const void *row, int line = __builtin_LINE()) { softdev::ldmatrix(r, row, false, line); }
inline void ldmatrix_x2(unsigned (&r)[2], const void *row, int line = __builtin_LINE()) { softdev::ldmatrix(r, row, false, line); }
inline void ldmatrix_x4(unsigned (&r)[4], const void *row, int line = __builtin_LINE()) { softdev::ldmatrix(r, row, false, line); }
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void *row, int line = __builtin_LINE()) { softdev::ldmatrix(r, row, true, line); }
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void *row, int line = __builtin_LINE()) { softdev::ldmatrix(r, row, true, line); }
// cp.async: the bytes arrive at the wait, not before; `bytes` < 16 fills up with zeros.
inline void cp_async_16(void *shared, const void *global, int line = __builtin_LINE()) { softdev::copy_later(shared, global, 16, 16, line); }
inline void cp_async_16_zfill(void *shared, const void *global, unsigned bytes, int line = __builtin_LINE()) { softdev::copy_later(shared, global, 16, bytes, line); }
inline void cp_async_8(void *shared, const void *global, int line = __builtin_LINE()) { softdev::copy_later(shared, global, 8, 8, line); }
inline void cp_async_4(void *shared, const void *global, int line = __builtin_LINE()) { softdev::copy_later(shared, global, 4, 4, line); }
inline void cp_async_commit() { softdev::cur->group++; }
template <int N> inline void cp_async_wait() { softdev::finish_copies(N); }
inline void cp_async_wait_all() { softdev::cur->group++; softdev::finish_copies(0); }
#endif

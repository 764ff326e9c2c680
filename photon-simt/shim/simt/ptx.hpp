// What photon-cuda/kernels/ptx.cuh wraps, defined instead of assembled. Fragments are laid out as the PTX manual says:
// lane = 4 g + t; of A a lane holds rows g and g + 8, of B column g, of D rows g and g + 8 at columns 2 t and 2 t + 1.
//
// Products are exact and sums are float, in the order of k: what tensor cores do is close to that and not specified.
#pragma once
#ifdef PHOTON_SIM_PREPROCESS
#define PHOTON_FP8_MMA 1
#else

#include "cuda.hpp"

inline uint32_t pack_bf16(float lo, float hi) { return __float2bfloat16_rn(lo).bits | static_cast<uint32_t>(__float2bfloat16_rn(hi).bits) << 16; }
inline uint32_t pack_f16(float lo, float hi) { return __float2half_rn(lo).bits | static_cast<uint32_t>(__float2half_rn(hi).bits) << 16; }
inline float2 unpack_bf16(uint32_t x) { return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)}; }
inline float2 unpack_f16(uint32_t x) {
  return {static_cast<float>(std::bit_cast<simt_half>(static_cast<uint16_t>(x))), static_cast<float>(std::bit_cast<simt_half>(static_cast<uint16_t>(x >> 16)))};
}

namespace simt {
uint16_t fma_bf16(uint16_t a, uint16_t b, uint16_t c);
uint16_t fma_f16(uint16_t a, uint16_t b, uint16_t c);
uint8_t to_e4m3(float x);
}  // namespace simt

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto part = [&](int by) { return static_cast<uint32_t>(simt::fma_bf16(static_cast<uint16_t>(a >> by), static_cast<uint16_t>(b >> by), static_cast<uint16_t>(c >> by))) << by; };
  return part(0) | part(16);
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto part = [&](int by) { return static_cast<uint32_t>(simt::fma_f16(static_cast<uint16_t>(a >> by), static_cast<uint16_t>(b >> by), static_cast<uint16_t>(c >> by))) << by; };
  return part(0) | part(16);
}
inline uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  return simt::to_e4m3(x0) | static_cast<uint32_t>(simt::to_e4m3(x1)) << 8 | static_cast<uint32_t>(simt::to_e4m3(x2)) << 16 |
         static_cast<uint32_t>(simt::to_e4m3(x3)) << 24;
}

namespace simt {
inline float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
}  // namespace simt
inline float fast_exp2(float x) { return simt::flushed(exp2f(simt::flushed(x))); }
inline float fast_rcp(float x) { return simt::flushed(1.0f / simt::flushed(x)); }

namespace simt {

void ldmatrix_combine(const Slot* in, Slot* out, uint32_t mask);
void ldmatrix_trans_combine(const Slot* in, Slot* out, uint32_t mask);
void mma_bf16_combine(const Slot* in, Slot* out, uint32_t mask);
void mma_f16_combine(const Slot* in, Slot* out, uint32_t mask);
void mma_s8_combine(const Slot* in, Slot* out, uint32_t mask);
void mma_e4m3_combine(const Slot* in, Slot* out, uint32_t mask);
void whole_warp(uint32_t mask, Site site);

SIMT_LANE void give_row(const uint64_t* row) {
  current->give->u64[0] = row[0];
  current->give->u64[1] = row[1];
}

// The lane itself reads its row, so that the race detector sees who did.
template <unsigned N>
SIMT_LANE void get_matrices(uint32_t (&r)[N], Combine combine, Site site) {
  meet(0xffffffff, site, combine);
  for (unsigned i = 0; i < N; i++) r[i] = current->got->u32[i];
}
template <unsigned N>
inline void ldmatrix(uint32_t (&r)[N], const void* row, Combine combine, Site site) {
  if (current->number < 8 * N) {
    if (reinterpret_cast<uintptr_t>(row) % 16) fail(site, "the address %p of a row is not a multiple of 16", row);
    if (!is_shared(row)) fail(site, "a row that is not in shared memory");
    const uint64_t* p = static_cast<const uint64_t*>(row);
    const uint64_t words[2] = {p[0], p[1]};
    give_row(words);
  }
  get_matrices(r, combine, site);
}

template <class T>
SIMT_LANE void mma(T (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Combine combine, Site site) {
  Slot& give = *current->give;
  memcpy(&give.u32[0], a, 16);
  memcpy(&give.u32[4], b, 8);
  memcpy(&give.u32[8], d, 16);
  meet(0xffffffff, site, combine);
  memcpy(d, &current->got->u32[0], 16);
}

}  // namespace simt

#define SIMT_LDMATRIX(N)                                                                                      \
  inline void ldmatrix_x##N(uint32_t (&r)[N], const void* row, SIMT_PLACE) {                                  \
    simt::ldmatrix(r, row, simt::ldmatrix_combine, SIMT_SITE("ldmatrix"));                                    \
  }                                                                                                           \
  inline void ldmatrix_x##N##_trans(uint32_t (&r)[N], const void* row, SIMT_PLACE) {                          \
    simt::ldmatrix(r, row, simt::ldmatrix_trans_combine, SIMT_SITE("ldmatrix.trans"));                        \
  }
SIMT_LDMATRIX(1)
SIMT_LDMATRIX(2)
SIMT_LDMATRIX(4)
#undef SIMT_LDMATRIX

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::mma(d, a, b, simt::mma_bf16_combine, SIMT_SITE("mma"));
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::mma(d, a, b, simt::mma_f16_combine, SIMT_SITE("mma"));
}
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::mma(d, a, b, simt::mma_s8_combine, SIMT_SITE("mma"));
}
inline void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::mma(d, a, b, simt::mma_e4m3_combine, SIMT_SITE("mma"));
}

inline void cp_async_4(void* to, const void* from, SIMT_PLACE) { simt::copy_async(to, from, 4, 4, SIMT_SITE("cp.async")); }
inline void cp_async_8(void* to, const void* from, SIMT_PLACE) { simt::copy_async(to, from, 8, 8, SIMT_SITE("cp.async")); }
inline void cp_async_16(void* to, const void* from, SIMT_PLACE) { simt::copy_async(to, from, 16, 16, SIMT_SITE("cp.async")); }
inline void cp_async_4_zfill(void* to, const void* from, bool valid, SIMT_PLACE) { simt::copy_async(to, from, 4, valid ? 4 : 0, SIMT_SITE("cp.async")); }
inline void cp_async_8_zfill(void* to, const void* from, bool valid, SIMT_PLACE) { simt::copy_async(to, from, 8, valid ? 8 : 0, SIMT_SITE("cp.async")); }
inline void cp_async_16_zfill(void* to, const void* from, bool valid, SIMT_PLACE) { simt::copy_async(to, from, 16, valid ? 16 : 0, SIMT_SITE("cp.async")); }
inline void cp_async_commit() { simt::copy_async_commit(); }
template <int N>
inline void cp_async_wait() { simt::copy_async_wait(N); }

template <class T>
inline T simt_stream(const void* p, const char* file, uint32_t line) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) simt::fail({"ld.global", file, line}, "the address %p is not a multiple of %zu", p, sizeof(T));
  if (simt::is_shared(p)) simt::fail({"ld.global", file, line}, "an address in shared memory");
  return *static_cast<const T*>(p);
}
inline uint4 ld_stream_16(const void* p, SIMT_PLACE) { return simt_stream<uint4>(p, simt_file, simt_line); }
inline uint2 ld_stream_8(const void* p, SIMT_PLACE) { return simt_stream<uint2>(p, simt_file, simt_line); }
inline uint32_t ld_stream_4(const void* p, SIMT_PLACE) { return simt_stream<uint32_t>(p, simt_file, simt_line); }
inline void prefetch_l2(const void*) {}

inline uint32_t ld_acquire(const uint32_t* p, SIMT_PLACE) {
  simt::relax(SIMT_SITE("ld.acquire"), true);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void st_release(uint32_t* p, uint32_t x) { __atomic_store_n(p, x, __ATOMIC_RELEASE); }
inline uint32_t atomic_add_acq_rel(uint32_t* p, uint32_t x, SIMT_PLACE) {
  simt::relax(SIMT_SITE("atom.add"), false);
  return __atomic_fetch_add(p, x, __ATOMIC_ACQ_REL);
}

inline void bar_sync(uint32_t id, uint32_t threads, SIMT_PLACE) { simt::barrier(id, threads, SIMT_SITE("bar.sync")); }
inline void bar_arrive(uint32_t id, uint32_t threads, SIMT_PLACE) { simt::arrive(id, threads, SIMT_SITE("bar.arrive")); }

inline void grid_wait() { simt::current->has_waited = true; }
inline void grid_launch_next() {}

#endif

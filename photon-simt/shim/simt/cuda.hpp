// CUDA C++ as host C++: types, what a thread knows of itself, and the functions kernels call.
//
// Kernels are preprocessed first (PHOTON_SIM_PREPROCESS: only the macros they use), then the generator rewrites kernels and
// `__shared__`, then all of this is included before the result. Rounding is to nearest even wherever CUDA's is; functions
// that CUDA approximates are exact here. Of NaN, conversions make 0x7fff, as the hardware does.
#pragma once

#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::simt::dynamic_shared())
#ifdef PHOTON_SIM_PREPROCESS
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#else

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "engine.hpp"

#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// ---- Vectors

#define SIMT_VECTORS(T, name, align2, align4)                                            \
  struct name##1 { T x; };                                                               \
  struct alignas(align2) name##2 { T x, y; };                                            \
  struct name##3 { T x, y, z; };                                                         \
  struct alignas(align4) name##4 { T x, y, z, w; };                                      \
  inline name##1 make_##name##1(T x) { return {x}; }                                     \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                             \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                     \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(signed char, char, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(unsigned, uint, 8, 16)
SIMT_VECTORS(long long, longlong, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(double, double, 16, 16)
#undef SIMT_VECTORS

// ---- Who a thread is

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::block_index())
#define blockDim (::simt::shape().block)
#define gridDim (::simt::shape().grid)
constexpr int warpSize = 32;

// ---- Bits

inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; i++) out |= (x >> i & 1) << (31 - i);
  return out;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned nibble = selector >> 4 * i & 15;
    unsigned byte = both >> (nibble & 7) * 8 & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << 8 * i;
  }
  return out;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned by) {
  return static_cast<unsigned>((static_cast<unsigned long long>(hi) << 32 | lo) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned by) {
  return static_cast<unsigned>((static_cast<unsigned long long>(hi) << 32 | lo) >> (by & 31));
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);  // Which wraps.
  for (int i = 0; i < 4; i++) sum += static_cast<unsigned>(static_cast<signed char>(a >> 8 * i) * static_cast<signed char>(b >> 8 * i));
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
  return c;
}

// ---- Arithmetic

#define SIMT_MIN_MAX(T)                                \
  inline T min(T a, T b) { return b < a ? b : a; }     \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
using std::abs;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }
inline float __fdividef(float a, float b) { return a / b; }

// Out of range, the hardware's conversions give the nearest integer there is, and 0 for NaN.
template <class To>
inline To simt_to_integer(float x) {
  if (x != x) return 0;
  constexpr float past = -2.0f * static_cast<float>(std::is_signed_v<To> ? std::numeric_limits<To>::min() : -(std::numeric_limits<To>::max() / 2 + 1.0f));
  if (std::is_signed_v<To> ? x >= past / 2 : x >= past) return std::numeric_limits<To>::max();
  if (std::is_signed_v<To> ? x < -past / 2 : x < 0) return std::numeric_limits<To>::min();
  return static_cast<To>(x);
}
inline int __float2int_rn(float x) { return simt_to_integer<int>(rintf(x)); }
inline int __float2int_rz(float x) { return simt_to_integer<int>(truncf(x)); }
inline int __float2int_rd(float x) { return simt_to_integer<int>(floorf(x)); }
inline int __float2int_ru(float x) { return simt_to_integer<int>(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return simt_to_integer<unsigned>(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return simt_to_integer<unsigned>(truncf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }

// The C library keeps some of these names for itself.
#define __expf(x) ::expf(x)
#define __exp10f(x) ::exp10f(x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __log10f(x) ::log10f(x)
#define __powf(x, y) ::powf(x, y)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)

// ---- Element types

struct alignas(2) bf16 {
  uint16_t bits;
  bf16() = default;
  explicit bf16(float x);
  explicit operator float() const;
};
struct alignas(2) f16 {
  uint16_t bits;
  f16() = default;
  explicit f16(float x);
  explicit operator float() const;
};
#if defined(__aarch64__) && !defined(__clang__)
using simt_half = __fp16;
#else
using simt_half = _Float16;
#endif

inline float __bfloat162float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline bf16 __float2bfloat16_rn(float x) {
  bf16 out;
  const uint32_t bits = __float_as_uint(x);
  out.bits = x != x ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  return out;
}
inline float __half2float(f16 x) { return static_cast<float>(std::bit_cast<simt_half>(x.bits)); }
inline f16 __float2half_rn(float x) {
  f16 out;
  out.bits = x != x ? 0x7fff : std::bit_cast<uint16_t>(static_cast<simt_half>(x));
  return out;
}
inline bf16::bf16(float x) : bits(__float2bfloat16_rn(x).bits) {}
inline bf16::operator float() const { return __bfloat162float(*this); }
inline f16::f16(float x) : bits(__float2half_rn(x).bits) {}
inline f16::operator float() const { return __half2float(*this); }

// ---- Memory

template <class T>
inline T __ldg(const T* p) { return *p; }
template <class T>
inline T __ldcs(const T* p) { return *p; }
template <class T>
inline T __ldcg(const T* p) { return *p; }
template <class T>
inline void __stcs(T* p, T x) { *p = x; }
template <class T>
inline void __stcg(T* p, T x) { *p = x; }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned, SIMT_PLACE) { simt::relax(SIMT_SITE("__nanosleep"), true); }
[[noreturn]] inline void __trap(SIMT_PLACE) { simt::fail(SIMT_SITE("__trap"), "the kernel gave up"); }

namespace simt {

// What is there becomes `make(what is there)`; gives what was there.
template <class T, class Make>
inline T exchange(T* p, Make make, Site site) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  relax(site, false);
  Bits* bits = reinterpret_cast<Bits*>(p);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(static_cast<T>(make(std::bit_cast<T>(old)))), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}

}  // namespace simt

template <class T>
concept SimtAtomic = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;
template <class T>
concept SimtAddable = SimtAtomic<T> || std::is_same_v<T, float> || std::is_same_v<T, double>;

#define SIMT_ATOMIC(name, Concept, expression)                                                             \
  template <Concept T>                                                                                     \
  inline T name(T* p, std::type_identity_t<T> x, SIMT_PLACE) {                                             \
    return simt::exchange(p, [x](T old) { return static_cast<T>(expression); }, SIMT_SITE(#name));         \
  }
SIMT_ATOMIC(atomicAdd, SimtAddable, old + x)
SIMT_ATOMIC(atomicSub, SimtAtomic, old - x)
SIMT_ATOMIC(atomicMin, SimtAtomic, x < old ? x : old)
SIMT_ATOMIC(atomicMax, SimtAtomic, old < x ? x : old)
SIMT_ATOMIC(atomicAnd, SimtAtomic, old & x)
SIMT_ATOMIC(atomicOr, SimtAtomic, old | x)
SIMT_ATOMIC(atomicXor, SimtAtomic, old ^ x)
SIMT_ATOMIC(atomicExch, SimtAddable, ((void)old, x))
SIMT_ATOMIC(atomicInc, SimtAtomic, old >= x ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, SimtAtomic, old == 0 || old > x ? x : old - 1)
#undef SIMT_ATOMIC
template <SimtAtomic T>
inline T atomicCAS(T* p, std::type_identity_t<T> is, std::type_identity_t<T> becomes, SIMT_PLACE) {
  return simt::exchange(p, [=](T old) { return old == is ? becomes : old; }, SIMT_SITE("atomicCAS"));
}

// ---- Meetings of a block

inline void __syncthreads(SIMT_PLACE) { simt::barrier(0, 0, SIMT_SITE("__syncthreads")); }
inline int __syncthreads_count(int x, SIMT_PLACE) {
  return static_cast<int>(simt::barrier(0, 0, SIMT_SITE("__syncthreads_count"), simt::Reduce::Count, x != 0));
}
inline int __syncthreads_and(int x, SIMT_PLACE) {
  return static_cast<int>(simt::barrier(0, 0, SIMT_SITE("__syncthreads_and"), simt::Reduce::And, x != 0));
}
inline int __syncthreads_or(int x, SIMT_PLACE) {
  return static_cast<int>(simt::barrier(0, 0, SIMT_SITE("__syncthreads_or"), simt::Reduce::Or, x != 0));
}

// ---- Meetings of a warp

inline void __syncwarp(unsigned mask = 0xffffffff, SIMT_PLACE) { simt::meet_in_order(mask, SIMT_SITE("__syncwarp")); }

namespace simt {

// A lane gives a value and the number of the lane it wants one of; of one that is not there it gets poison.
void shuffle(const Slot* in, Slot* out, uint32_t mask);

template <class T>
  requires(std::is_arithmetic_v<T> && sizeof(T) <= 8)
SIMT_LANE T shuffled(uint32_t mask, T x, uint32_t from, Site site) {
  Slot& give = *current->give;
  give.u64[0] = 0;
  memcpy(give.u8, &x, sizeof x);
  give.u32[2] = from;
  meet(mask, site, shuffle);
  T out;
  memcpy(&out, current->got->u8, sizeof out);
  return out;
}

// Every lane gives a word, and gets one made of all of them.
SIMT_LANE uint32_t voted(uint32_t mask, uint32_t x, Site site, Combine combine) {
  current->give->u32[0] = x;
  meet(mask, site, combine);
  return current->got->u32[0];
}
void ballot(const Slot* in, Slot* out, uint32_t mask);
void reduce_add(const Slot* in, Slot* out, uint32_t mask);
void reduce_min(const Slot* in, Slot* out, uint32_t mask);
void reduce_max(const Slot* in, Slot* out, uint32_t mask);
void reduce_min_signed(const Slot* in, Slot* out, uint32_t mask);
void reduce_max_signed(const Slot* in, Slot* out, uint32_t mask);
void reduce_and(const Slot* in, Slot* out, uint32_t mask);
void reduce_or(const Slot* in, Slot* out, uint32_t mask);
void reduce_xor(const Slot* in, Slot* out, uint32_t mask);
void match(const Slot* in, Slot* out, uint32_t mask);

template <class T>
SIMT_LANE uint32_t matched(uint32_t mask, T x, Site site) {
  Slot& give = *current->give;
  give.u64[0] = 0;
  memcpy(give.u8, &x, sizeof x);
  meet(mask, site, match);
  return current->got->u32[0];
}

}  // namespace simt

template <class T>
inline T __shfl_sync(unsigned mask, T x, int from, int width = 32, SIMT_PLACE) {
  const uint32_t w = static_cast<uint32_t>(width), lane = simt::current->number;
  return simt::shuffled(mask, x, (lane & ~(w - 1)) | (static_cast<uint32_t>(from) & (w - 1)), SIMT_SITE("__shfl_sync"));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, SIMT_PLACE) {
  const uint32_t w = static_cast<uint32_t>(width), lane = simt::current->number;
  return simt::shuffled(mask, x, (lane & (w - 1)) >= by ? lane - by : lane, SIMT_SITE("__shfl_up_sync"));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, SIMT_PLACE) {
  const uint32_t w = static_cast<uint32_t>(width), lane = simt::current->number;
  return simt::shuffled(mask, x, (lane & (w - 1)) + by < w ? lane + by : lane, SIMT_SITE("__shfl_down_sync"));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, SIMT_PLACE) {
  const uint32_t w = static_cast<uint32_t>(width), lane = simt::current->number, to = (lane ^ static_cast<uint32_t>(bits)) & 31;
  return simt::shuffled(mask, x, to <= (lane | (w - 1)) ? to : lane, SIMT_SITE("__shfl_xor_sync"));
}
inline unsigned __ballot_sync(unsigned mask, int x, SIMT_PLACE) { return simt::voted(mask, x != 0, SIMT_SITE("__ballot_sync"), simt::ballot); }
inline int __any_sync(unsigned mask, int x, SIMT_PLACE) { return simt::voted(mask, x != 0, SIMT_SITE("__any_sync"), simt::reduce_or) != 0; }
inline int __all_sync(unsigned mask, int x, SIMT_PLACE) { return simt::voted(mask, x != 0, SIMT_SITE("__all_sync"), simt::reduce_and) != 0; }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T x, SIMT_PLACE) { return simt::matched(mask, x, SIMT_SITE("__match_any_sync")); }
template <class T>
inline unsigned __match_all_sync(unsigned mask, T x, int* all, SIMT_PLACE) {
  const unsigned same = simt::matched(mask, x, SIMT_SITE("__match_all_sync"));
  *all = same == mask;
  return same == mask ? mask : 0;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned x, SIMT_PLACE) { return simt::voted(mask, x, SIMT_SITE("__reduce_add_sync"), simt::reduce_add); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned x, SIMT_PLACE) { return simt::voted(mask, x, SIMT_SITE("__reduce_min_sync"), simt::reduce_min); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned x, SIMT_PLACE) { return simt::voted(mask, x, SIMT_SITE("__reduce_max_sync"), simt::reduce_max); }
inline int __reduce_add_sync(unsigned mask, int x, SIMT_PLACE) {
  return static_cast<int>(simt::voted(mask, static_cast<unsigned>(x), SIMT_SITE("__reduce_add_sync"), simt::reduce_add));
}
inline int __reduce_min_sync(unsigned mask, int x, SIMT_PLACE) {
  return static_cast<int>(simt::voted(mask, static_cast<unsigned>(x), SIMT_SITE("__reduce_min_sync"), simt::reduce_min_signed));
}
inline int __reduce_max_sync(unsigned mask, int x, SIMT_PLACE) {
  return static_cast<int>(simt::voted(mask, static_cast<unsigned>(x), SIMT_SITE("__reduce_max_sync"), simt::reduce_max_signed));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned x, SIMT_PLACE) { return simt::voted(mask, x, SIMT_SITE("__reduce_and_sync"), simt::reduce_and); }
inline unsigned __reduce_or_sync(unsigned mask, unsigned x, SIMT_PLACE) { return simt::voted(mask, x, SIMT_SITE("__reduce_or_sync"), simt::reduce_or); }
inline unsigned __reduce_xor_sync(unsigned mask, unsigned x, SIMT_PLACE) { return simt::voted(mask, x, SIMT_SITE("__reduce_xor_sync"), simt::reduce_xor); }

#endif

// The Metal shading language as host C++: types, functions of `namespace metal`, and how a kernel gets its arguments.
//
// Address spaces are gone (the generator drops the words; `cargo xtask msl-check` checks them with another compiler),
// vectors have .x .y .z .w and no swizzles, and `half` is computed as the host does. Sums over a SIMD-group go as a tree.
// A SIMD-group has 32 lanes; of an 8x8 matrix a lane holds two neighbors of a row, as Apple's GPUs do.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "engine.hpp"

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;
#if defined(__aarch64__) && !defined(__clang__)
typedef __fp16 half;
#else
typedef _Float16 half;
#endif

// bfloat16, computed with as float.
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  template <class T>
    requires std::is_arithmetic_v<T> || std::is_same_v<T, half>
  bfloat(T x) {
    const uint32_t word = std::bit_cast<uint32_t>(static_cast<float>(x));
    bits = static_cast<uint16_t>((word & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

namespace metal {

template <class T>
concept Scalar = std::is_arithmetic_v<T> || std::is_same_v<T, half> || std::is_same_v<T, bfloat>;
template <class T>
concept Floating = std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat>;

template <Scalar T, int N>
struct Members;
template <Scalar T>
struct Members<T, 2> {
  T x, y;
};
template <Scalar T>
struct Members<T, 3> {
  T x, y, z;
};
template <Scalar T>
struct Members<T, 4> {
  T x, y, z, w;
};

template <Scalar T, int N>
struct alignas(sizeof(T) * (N == 3 ? 4 : N)) vec : Members<T, N> {
  vec() = default;
  vec(T all) {
    for (int i = 0; i < N; i++) (*this)[i] = all;
  }
  template <class U>
    requires(!std::is_same_v<T, U>)
  explicit vec(const vec<U, N>& from) {
    for (int i = 0; i < N; i++) (*this)[i] = T(from[i]);
  }
  // Numbers and shorter vectors, N in all.
  template <class... A>
    requires(sizeof...(A) > 1)
  vec(const A&... parts) {
    int at = 0;
    (put(at, parts), ...);
  }
  T& operator[](int i) { return (&this->x)[i]; }
  const T& operator[](int i) const { return (&this->x)[i]; }

 private:
  template <class U>
  void put(int& at, const U& x) {
    if constexpr (requires { x.x; }) {
      for (int i = 0; i < static_cast<int>(sizeof(U) / sizeof(x.x)); i++) (*this)[at++] = T(x[i]);
    } else {
      (*this)[at++] = T(x);
    }
  }
};

#define SIMT_OPERATOR(op)                                                          \
  template <Scalar T, int N>                                                       \
  vec<T, N> operator op(vec<T, N> a, const vec<T, N>& b) {                         \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                            \
    return a;                                                                      \
  }                                                                                \
  template <Scalar T, int N>                                                       \
  vec<T, N> operator op(const vec<T, N>& a, std::type_identity_t<T> b) {           \
    return a op vec<T, N>(b);                                                      \
  }                                                                                \
  template <Scalar T, int N>                                                       \
  vec<T, N> operator op(std::type_identity_t<T> a, const vec<T, N>& b) {           \
    return vec<T, N>(a) op b;                                                      \
  }                                                                                \
  template <Scalar T, int N, class U>                                              \
  vec<T, N>& operator op##=(vec<T, N>& a, const U& b) {                            \
    return a = a op b;                                                             \
  }
SIMT_OPERATOR(+)
SIMT_OPERATOR(-)
SIMT_OPERATOR(*)
SIMT_OPERATOR(/)
#undef SIMT_OPERATOR
#define SIMT_OPERATOR(op)                                                          \
  template <Scalar T, int N>                                                       \
    requires std::is_integral_v<T>                                                 \
  vec<T, N> operator op(vec<T, N> a, const vec<T, N>& b) {                         \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                            \
    return a;                                                                      \
  }
SIMT_OPERATOR(&)
SIMT_OPERATOR(|)
SIMT_OPERATOR(^)
SIMT_OPERATOR(<<)
SIMT_OPERATOR(>>)
SIMT_OPERATOR(%)
#undef SIMT_OPERATOR
template <Scalar T, int N>
vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = T(-a[i]);
  return a;
}

// ---- Functions of one number, and of vectors part by part

#define SIMT_FUNCTION(name, expression)                     \
  template <Floating T>                                     \
  T name(T value) {                                         \
    const float x = static_cast<float>(value);              \
    return T(expression);                                   \
  }                                                         \
  template <Floating T, int N>                              \
  vec<T, N> name(vec<T, N> value) {                         \
    for (int i = 0; i < N; i++) value[i] = name(value[i]);  \
    return value;                                           \
  }
#define SIMT_FUNCTIONS                        \
  SIMT_FUNCTION(exp, std::exp(x))             \
  SIMT_FUNCTION(exp2, std::exp2(x))           \
  SIMT_FUNCTION(log, std::log(x))             \
  SIMT_FUNCTION(log2, std::log2(x))           \
  SIMT_FUNCTION(sqrt, std::sqrt(x))           \
  SIMT_FUNCTION(rsqrt, 1.0f / std::sqrt(x))   \
  SIMT_FUNCTION(sin, std::sin(x))             \
  SIMT_FUNCTION(cos, std::cos(x))             \
  SIMT_FUNCTION(tanh, std::tanh(x))           \
  SIMT_FUNCTION(fabs, std::fabs(x))           \
  SIMT_FUNCTION(floor, std::floor(x))         \
  SIMT_FUNCTION(ceil, std::ceil(x))           \
  SIMT_FUNCTION(trunc, std::trunc(x))         \
  SIMT_FUNCTION(rint, std::rint(x))           \
  SIMT_FUNCTION(round, std::round(x))         \
  SIMT_FUNCTION(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)
SIMT_FUNCTIONS
namespace precise {
SIMT_FUNCTIONS
}
namespace fast {
SIMT_FUNCTIONS
}
#undef SIMT_FUNCTIONS
#undef SIMT_FUNCTION

template <Floating T>
bool isnan(T x) { return static_cast<float>(x) != static_cast<float>(x); }
template <Floating T>
bool isinf(T x) { return std::isinf(static_cast<float>(x)); }
template <Scalar T>
  requires(std::is_signed_v<T> || Floating<T>)
T abs(T x) { return x < T(0) ? T(-x) : x; }
inline float pow(float x, float y) { return std::pow(x, y); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline half fma(half a, half b, half c) { return static_cast<half>(std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c))); }
// Of a number and NaN, the number.
template <Scalar T>
T min(T a, T b) { return b < a || a != a ? b : a; }
template <Scalar T>
T max(T a, T b) { return a < b || a != a ? b : a; }
template <Scalar T>
T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <Scalar T, int N>
vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) a[i] = min(a[i], b[i]);
  return a;
}
template <Scalar T, int N>
vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) a[i] = max(a[i], b[i]);
  return a;
}
template <class T>
T select(T otherwise, T then, bool condition) { return condition ? then : otherwise; }
template <Floating T, int N>
T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(0);
  for (int i = 0; i < N; i++) sum = T(sum + a[i] * b[i]);
  return sum;
}
inline uint popcount(uint x) { return static_cast<uint>(__builtin_popcount(x)); }
inline uint clz(uint x) { return x ? static_cast<uint>(__builtin_clz(x)) : 32; }
inline uint ctz(uint x) { return x ? static_cast<uint>(__builtin_ctz(x)) : 32; }
inline uint mulhi(uint a, uint b) { return static_cast<uint>(static_cast<ulong>(a) * b >> 32); }
inline ulong mulhi(ulong a, ulong b) { return static_cast<ulong>(static_cast<unsigned __int128>(a) * b >> 64); }
template <class To, class From>
To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  memcpy(&out, &x, sizeof out);
  return out;
}

// ---- Barriers

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return static_cast<mem_flags>(static_cast<int>(a) | static_cast<int>(b)); }
inline void threadgroup_barrier(mem_flags, SIMT_PLACE) { simt::barrier(0, 0, SIMT_SITE("threadgroup_barrier")); }
inline void simdgroup_barrier(mem_flags, SIMT_PLACE) { simt::meet_in_order(0xffffffff, SIMT_SITE("simdgroup_barrier")); }

// ---- Lanes of a SIMD-group

template <class T>
concept Exchanged = sizeof(T) <= 16 && std::is_trivially_copyable_v<T>;

template <Exchanged T>
SIMT_QUIET T given(const simt::Slot& slot) {
  T x;
  memcpy(&x, slot.u8, sizeof x);
  return x;
}
template <Exchanged T>
SIMT_QUIET void take_one(const simt::Slot* in, simt::Slot* out, uint32_t mask) {
  for (uint32_t l = 0; l < simt::LANES; l++)
    if (mask >> l & 1) {
      const uint32_t from = in[l].u32[8];
      // Of a lane that is not there, poison.
      if (from < 32 && mask >> from & 1) memcpy(out[l].u8, in[from].u8, sizeof(T));
      else memset(out[l].u8, 0xff, sizeof(T));
    }
}
template <Exchanged T>
SIMT_LANE T meet(T x, uint32_t from, simt::Combine combine, simt::Site site) {
  memcpy(simt::current->give->u8, &x, sizeof x);
  simt::current->give->u32[8] = from;
  simt::meet(0xffffffff, site, combine);
  return given<T>(*simt::current->got);
}
template <Exchanged T>
T simd_shuffle(T x, ushort lane, SIMT_PLACE) { return meet(x, lane, take_one<T>, SIMT_SITE("simd_shuffle")); }
template <Exchanged T>
T simd_broadcast(T x, ushort lane, SIMT_PLACE) { return meet(x, lane, take_one<T>, SIMT_SITE("simd_broadcast")); }
template <Exchanged T>
T simd_shuffle_xor(T x, ushort mask, SIMT_PLACE) { return meet(x, simt::current->number ^ mask, take_one<T>, SIMT_SITE("simd_shuffle_xor")); }
template <Exchanged T>
T simd_shuffle_down(T x, ushort by, SIMT_PLACE) {
  // Beyond the last lane the result is not defined: poison.
  return meet(x, simt::current->number + by, take_one<T>, SIMT_SITE("simd_shuffle_down"));
}
template <Exchanged T>
T simd_shuffle_up(T x, ushort by, SIMT_PLACE) {
  return meet(x, simt::current->number - by, take_one<T>, SIMT_SITE("simd_shuffle_up"));
}

struct Add {
  template <class T>
  static T of(T a, T b) { return T(a + b); }
};
struct Multiply {
  template <class T>
  static T of(T a, T b) { return T(a * b); }
};
struct Least {
  template <class T>
  static T of(T a, T b) { return min(a, b); }
};
struct Most {
  template <class T>
  static T of(T a, T b) { return max(a, b); }
};
struct And {
  template <class T>
  static T of(T a, T b) { return T(a & b); }
};
struct Or {
  template <class T>
  static T of(T a, T b) { return T(a | b); }
};
struct Xor {
  template <class T>
  static T of(T a, T b) { return T(a ^ b); }
};

template <class T, class Op>
SIMT_QUIET void reduce(const simt::Slot* in, simt::Slot* out, uint32_t mask) {
  T x[simt::LANES];
  bool there[simt::LANES];
  for (uint32_t l = 0; l < simt::LANES; l++) {
    there[l] = mask >> l & 1;
    if (there[l]) x[l] = given<T>(in[l]);
  }
  for (uint32_t step = simt::LANES / 2; step; step /= 2)
    for (uint32_t l = 0; l < step; l++) {
      if (there[l + step]) x[l] = there[l] ? Op::of(x[l], x[l + step]) : x[l + step];
      there[l] |= there[l + step];
    }
  for (uint32_t l = 0; l < simt::LANES; l++)
    if (mask >> l & 1) memcpy(out[l].u8, &x[0], sizeof(T));
}
template <class T, bool INCLUSIVE>
SIMT_QUIET void prefix(const simt::Slot* in, simt::Slot* out, uint32_t mask) {
  T sum = T(0);
  for (uint32_t l = 0; l < simt::LANES; l++)
    if (mask >> l & 1) {
      const T next = T(sum + given<T>(in[l]));
      memcpy(out[l].u8, INCLUSIVE ? &next : &sum, sizeof(T));
      sum = next;
    }
}
#define SIMT_REDUCTION(name, Op)                                                                  \
  template <Exchanged T>                                                                          \
  T name(T x, SIMT_PLACE) { return meet(x, 0, reduce<T, Op>, SIMT_SITE(#name)); }
SIMT_REDUCTION(simd_sum, Add)
SIMT_REDUCTION(simd_product, Multiply)
SIMT_REDUCTION(simd_min, Least)
SIMT_REDUCTION(simd_max, Most)
SIMT_REDUCTION(simd_and, And)
SIMT_REDUCTION(simd_or, Or)
SIMT_REDUCTION(simd_xor, Xor)
#undef SIMT_REDUCTION
template <Exchanged T>
T simd_prefix_inclusive_sum(T x, SIMT_PLACE) { return meet(x, 0, prefix<T, true>, SIMT_SITE("simd_prefix_inclusive_sum")); }
template <Exchanged T>
T simd_prefix_exclusive_sum(T x, SIMT_PLACE) { return meet(x, 0, prefix<T, false>, SIMT_SITE("simd_prefix_exclusive_sum")); }
inline bool simd_any(bool x, SIMT_PLACE) { return meet(static_cast<uint>(x), 0, reduce<uint, Or>, SIMT_SITE("simd_any")); }
inline bool simd_all(bool x, SIMT_PLACE) { return meet(static_cast<uint>(x), 0, reduce<uint, And>, SIMT_SITE("simd_all")); }
struct simd_vote {
  typedef ulong vote_t;
  ulong bits;
  explicit operator ulong() const { return bits; }
};
inline simd_vote simd_ballot(bool x, SIMT_PLACE) {
  return {meet(static_cast<uint>(x) << simt::current->number, 0, reduce<uint, Or>, SIMT_SITE("simd_ballot"))};
}
template <Exchanged T>
SIMT_QUIET void take_first(const simt::Slot* in, simt::Slot* out, uint32_t mask) {
  for (uint32_t l = 0; l < simt::LANES; l++)
    if (mask >> l & 1) memcpy(out[l].u8, in[__builtin_ctz(mask)].u8, sizeof(T));
}
template <Exchanged T>
T simd_broadcast_first(T x, SIMT_PLACE) { return meet(x, 0, take_first<T>, SIMT_SITE("simd_broadcast_first")); }

// ---- Matrices of a SIMD-group

// Row and first column of a lane's two elements: bits of the lane are column 1, row 0, row 1, column 2, row 2.
inline uint matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline uint matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <Floating T, int ROWS = 8, int COLUMNS = 8>
struct simdgroup_matrix {
  static_assert(ROWS == 8 && COLUMNS == 8, "8x8 is what there is");
  T elements[2];
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const uint lane = simt::current->number;
    for (uint i = 0; i < 2; i++) elements[i] = matrix_row(lane) == matrix_column(lane) + i ? diagonal : T(0);
  }
  T (&thread_elements())[2] { return elements; }
};
template <Floating T, int ROWS, int COLUMNS>
simdgroup_matrix<T, ROWS, COLUMNS> make_filled_simdgroup_matrix(T x) {
  simdgroup_matrix<T, ROWS, COLUMNS> m;
  m.elements[0] = m.elements[1] = x;
  return m;
}
inline void simdgroup_meets(simt::Site site) {
  simt::meet(0xffffffff, site, [](const simt::Slot*, simt::Slot*, uint32_t mask) {
    if (mask != 0xffffffff) simt::fail(simt::current->site, "threads of the SIMD-group have returned, and this needs all,");
  });
}
template <class T, class U>
void simdgroup_load(simdgroup_matrix<T>& m, const U* from, ulong stride = 8, vec<ulong, 2> origin = vec<ulong, 2>(0ul), bool transposed = false, SIMT_PLACE) {
  simdgroup_meets(SIMT_SITE("simdgroup_load"));
  const ulong row = matrix_row(simt::current->number), column = matrix_column(simt::current->number);
  from += origin.y * stride + origin.x;
  for (ulong i = 0; i < 2; i++) m.elements[i] = T(transposed ? from[(column + i) * stride + row] : from[row * stride + column + i]);
}
template <class T, class U>
void simdgroup_store(const simdgroup_matrix<T>& m, U* to, ulong stride = 8, vec<ulong, 2> origin = vec<ulong, 2>(0ul), bool transposed = false, SIMT_PLACE) {
  simdgroup_meets(SIMT_SITE("simdgroup_store"));
  const ulong row = matrix_row(simt::current->number), column = matrix_column(simt::current->number);
  to += origin.y * stride + origin.x;
  for (ulong i = 0; i < 2; i++) (transposed ? to[(column + i) * stride + row] : to[row * stride + column + i]) = U(m.elements[i]);
}
// d = a b + c, in float: products added one after the other, each rounded once.
inline SIMT_QUIET void multiply_matrices(const simt::Slot* in, simt::Slot* out, uint32_t mask) {
  if (mask != 0xffffffff) simt::fail(simt::current->site, "threads of the SIMD-group have returned, and this needs all,");
  float a[64], b[64], d[64];
  // A lane's two elements are neighbors.
  for (uint l = 0; l < simt::LANES; l++) {
    const uint at = 8 * matrix_row(l) + matrix_column(l);
    memcpy(a + at, in[l].f32, 8), memcpy(b + at, in[l].f32 + 2, 8), memcpy(d + at, in[l].f32 + 4, 8);
  }
  for (uint row = 0; row < 8; row++)
    for (uint k = 0; k < 8; k++)
      for (uint column = 0; column < 8; column++) d[8 * row + column] = std::fma(a[8 * row + k], b[8 * k + column], d[8 * row + column]);
  for (uint l = 0; l < simt::LANES; l++) memcpy(out[l].f32, d + 8 * matrix_row(l) + matrix_column(l), 8);
}
template <class D, class A, class B, class C>
SIMT_LANE void simdgroup_multiply_accumulate(simdgroup_matrix<D>& d, const simdgroup_matrix<A>& a, const simdgroup_matrix<B>& b, const simdgroup_matrix<C>& c, SIMT_PLACE) {
  float* give = simt::current->give->f32;
  for (int i = 0; i < 2; i++) give[i] = float(a.elements[i]), give[2 + i] = float(b.elements[i]), give[4 + i] = float(c.elements[i]);
  simt::meet(0xffffffff, SIMT_SITE("simdgroup_multiply_accumulate"), multiply_matrices);
  for (int i = 0; i < 2; i++) d.elements[i] = D(simt::current->got->f32[i]);
}
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D>& d, const simdgroup_matrix<A>& a, const simdgroup_matrix<B>& b, SIMT_PLACE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), simt_file, simt_line);
}
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

// ---- Atomics

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
template <class T, class Make>
T change(volatile atomic<T>* a, Make make, simt::Site site) {
  simt::relax(site, false);
  volatile uint32_t* bits = reinterpret_cast<volatile uint32_t*>(&a->value);
  uint32_t old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<uint32_t>(static_cast<T>(make(std::bit_cast<T>(old)))), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}
#define SIMT_ATOMIC(name, expression)                                                                       \
  template <class T>                                                                                        \
  T name(volatile atomic<T>* a, std::type_identity_t<T> x, memory_order, SIMT_PLACE) {                      \
    return change(a, [x](T old) { return expression; }, SIMT_SITE(#name));                                  \
  }
SIMT_ATOMIC(atomic_fetch_add_explicit, old + x)
SIMT_ATOMIC(atomic_fetch_sub_explicit, old - x)
SIMT_ATOMIC(atomic_fetch_min_explicit, min(old, x))
SIMT_ATOMIC(atomic_fetch_max_explicit, max(old, x))
SIMT_ATOMIC(atomic_fetch_and_explicit, old & x)
SIMT_ATOMIC(atomic_fetch_or_explicit, old | x)
SIMT_ATOMIC(atomic_fetch_xor_explicit, old ^ x)
SIMT_ATOMIC(atomic_exchange_explicit, ((void)old, x))
#undef SIMT_ATOMIC
template <class T>
T atomic_load_explicit(const volatile atomic<T>* a, memory_order, SIMT_PLACE) {
  simt::relax(SIMT_SITE("atomic_load_explicit"), true);
  return std::bit_cast<T>(__atomic_load_n(reinterpret_cast<const volatile uint32_t*>(&a->value), __ATOMIC_RELAXED));
}
template <class T>
void atomic_store_explicit(volatile atomic<T>* a, std::type_identity_t<T> x, memory_order) {
  __atomic_store_n(reinterpret_cast<volatile uint32_t*>(&a->value), std::bit_cast<uint32_t>(x), __ATOMIC_RELAXED);
}
template <class T>
bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* a, T* expected, std::type_identity_t<T> x, memory_order, memory_order, SIMT_PLACE) {
  const T is = *expected;
  *expected = change(a, [=](T old) { return old == is ? x : old; }, SIMT_SITE("atomic_compare_exchange_weak_explicit"));
  return *expected == is;
}

}  // namespace metal

#define SIMT_VECTORS(T)               \
  typedef metal::vec<T, 2> T##2;      \
  typedef metal::vec<T, 3> T##3;      \
  typedef metal::vec<T, 4> T##4;
SIMT_VECTORS(float)
SIMT_VECTORS(half)
SIMT_VECTORS(bfloat)
SIMT_VECTORS(int)
SIMT_VECTORS(uint)
SIMT_VECTORS(short)
SIMT_VECTORS(ushort)
SIMT_VECTORS(char)
SIMT_VECTORS(uchar)
SIMT_VECTORS(long)
SIMT_VECTORS(ulong)
#undef SIMT_VECTORS

// ---- How a kernel gets its arguments

namespace simt::msl {

constexpr uint32_t MAX_BUFFERS = 31, MAX_THREADGROUP = 8, MAX_CONSTANTS = 32;

// As `metal::raw::Arguments` in Rust.
struct Arguments {
  void* buffers[MAX_BUFFERS];
  uint32_t threadgroup_bytes[MAX_THREADGROUP];
  uint64_t constants[MAX_CONSTANTS];
  uint32_t constants_given;
};
inline const Arguments& arguments() { return *static_cast<const Arguments*>(simt::arguments()); }

// A constant that a pipeline is made with; read from the launch.
template <class T, uint32_t INDEX>
struct FunctionConstant {
  const char* name;
  operator T() const {
    if (!(arguments().constants_given >> INDEX & 1)) fail({}, "function constant %u, `%s`, was not given", INDEX, name);
    T x;
    memcpy(&x, &arguments().constants[INDEX], sizeof x);
    return x;
  }
  bool defined() const { return arguments().constants_given >> INDEX & 1; }
};
template <class T, uint32_t INDEX>
bool is_function_constant_defined(const FunctionConstant<T, INDEX>& c) { return c.defined(); }

// What a parameter is bound to; as `MetalSource` in Rust.
enum class Source : uint32_t {
  Buffer,
  OptionalBuffer,
  Threadgroup,
  Constant,
  ThreadPositionInGrid,
  ThreadgroupPositionInGrid,
  ThreadPositionInThreadgroup,
  ThreadIndexInThreadgroup,
  ThreadsPerThreadgroup,
  ThreadgroupsPerGrid,
  ThreadsPerGrid,
  ThreadIndexInSimdgroup,
  SimdgroupIndexInThreadgroup,
  ThreadsPerSimdgroup,
  SimdgroupsPerThreadgroup,
};
struct Parameter {
  const char* name;
  Source source;
  uint32_t index;
};

inline Dim3 built_in(Source source) {
  const Dim3 size = shape().block, grid = shape().grid, at = block_index(), in = current->index;
  const uint32_t threads = size.x * size.y * size.z;
  switch (source) {
    case Source::ThreadPositionInGrid: return {at.x * size.x + in.x, at.y * size.y + in.y, at.z * size.z + in.z};
    case Source::ThreadgroupPositionInGrid: return at;
    case Source::ThreadPositionInThreadgroup: return in;
    case Source::ThreadIndexInThreadgroup: return {current->thread, 0, 0};
    case Source::ThreadsPerThreadgroup: return size;
    case Source::ThreadgroupsPerGrid: return grid;
    case Source::ThreadsPerGrid: return {grid.x * size.x, grid.y * size.y, grid.z * size.z};
    case Source::ThreadIndexInSimdgroup: return {current->number, 0, 0};
    case Source::SimdgroupIndexInThreadgroup: return {current->thread / LANES, 0, 0};
    case Source::ThreadsPerSimdgroup: return {LANES, 0, 0};
    default: return {(threads + LANES - 1) / LANES, 0, 0};
  }
}

template <class P>
P argument(const Parameter& p) {
  using Bare = std::remove_cv_t<std::remove_reference_t<P>>;
  if constexpr (std::is_pointer_v<Bare>) {
    if (p.source == Source::Threadgroup) {
      uint32_t before = 0;
      for (uint32_t i = 0; i < p.index; i++) before += (arguments().threadgroup_bytes[i] + 15) / 16 * 16;
      if (arguments().threadgroup_bytes[p.index] == 0) fail({}, "threadgroup memory %u, `%s`, has no length", p.index, p.name);
      return reinterpret_cast<P>(static_cast<uint8_t*>(dynamic_shared()) + before);
    }
    void* const buffer = arguments().buffers[p.index];
    if (!buffer && p.source == Source::Buffer) fail({}, "buffer %u, `%s`, is not bound", p.index, p.name);
    return static_cast<P>(buffer);
  } else if constexpr (std::is_reference_v<P>) {
    void* const buffer = arguments().buffers[p.index];
    if (!buffer) fail({}, "buffer %u, `%s`, is not bound", p.index, p.name);
    return *static_cast<Bare*>(buffer);
  } else {
    const Dim3 x = built_in(p.source);
    if constexpr (requires { Bare{}.z; }) return Bare(x.x, x.y, x.z);
    else if constexpr (requires { Bare{}.y; }) return Bare(x.x, x.y);
    else return static_cast<Bare>(x.x);
  }
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), const Parameter* parameters, std::index_sequence<I...>) {
  kernel(argument<P>(parameters[I])...);
}
template <class... P>
void call(void (*kernel)(P...), const Parameter* parameters) {
  call(kernel, parameters, std::index_sequence_for<P...>());
}

}  // namespace simt::msl

using simt::msl::is_function_constant_defined;

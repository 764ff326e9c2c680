// Declarations only: Metal's sources as C++ for OpenCL, whose address spaces are the same and are checked. Nothing runs.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define threadgroup __local
#define thread __private
#define constant __constant
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;
typedef unsigned long size_t;
#ifndef INFINITY
#define INFINITY __builtin_inff()
#endif

struct bfloat {
  ushort bits;
  bfloat() = default;
  bfloat(float);
  bfloat(float) __global;
  bfloat(float) __local;
  operator float() const;
  operator float() const __global;
  operator float() const __local;
  operator float() const __constant;
};

#define VECTORS(T)                                      \
  typedef T T##2 __attribute__((ext_vector_type(2)));   \
  typedef T T##3 __attribute__((ext_vector_type(3)));   \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(float)
VECTORS(half)
VECTORS(int)
VECTORS(uint)
VECTORS(short)
VECTORS(ushort)
VECTORS(char)
VECTORS(uchar)
VECTORS(long)
VECTORS(ulong)
#undef VECTORS
// Vectors are made by calls in Metal, by casts of lists in OpenCL.
float2 make_float2(float, float);
float4 make_float4(float, float, float, float);
half4 make_half4(half, half, half, half);
uint2 make_uint2(uint, uint);
uint3 make_uint3(uint, uint, uint);
uint4 make_uint4(uint);
uint4 make_uint4(uint, uint, uint, uint);
ulong2 make_ulong2(ulong, ulong);
#define float2(...) make_float2(__VA_ARGS__)
#define float4(...) make_float4(__VA_ARGS__)
#define half4(...) make_half4(__VA_ARGS__)
#define uint2(...) make_uint2(__VA_ARGS__)
#define uint3(...) make_uint3(__VA_ARGS__)
#define uint4(...) make_uint4(__VA_ARGS__)
#define ulong2(...) make_ulong2(__VA_ARGS__)

// What OpenCL's vectors cannot hold.
struct bfloat2 {
  bfloat parts[2];
  bfloat2() = default;
  bfloat2(bfloat);
  __private bfloat& operator[](int);
  bfloat operator[](int) const;
};
struct bfloat4 {
  bfloat parts[4];
  bfloat4() = default;
  bfloat4(bfloat);
  __private bfloat& operator[](int);
  bfloat operator[](int) const;
};

// OpenCL has these names built in.
#define atomic_uint metal_atomic_uint
#define atomic_int metal_atomic_int
#define atomic_float metal_atomic_float

template <class T>
bool is_function_constant_defined(T);

namespace metal {
struct mem_flags {
  enum flags { mem_none, mem_device, mem_threadgroup };
};
mem_flags::flags operator|(mem_flags::flags, mem_flags::flags);
void threadgroup_barrier(mem_flags::flags);
void simdgroup_barrier(mem_flags::flags);

#define FUNCTION(name) \
  template <class T>   \
  T name(T);
#define FUNCTIONS                                                                                                     \
  FUNCTION(exp) FUNCTION(exp2) FUNCTION(log) FUNCTION(log2) FUNCTION(sqrt) FUNCTION(rsqrt) FUNCTION(sin) FUNCTION(cos) \
  FUNCTION(tanh) FUNCTION(fabs) FUNCTION(floor) FUNCTION(ceil) FUNCTION(trunc) FUNCTION(rint) FUNCTION(round) FUNCTION(sign)
FUNCTIONS
namespace fast {
FUNCTIONS
}
namespace precise {
FUNCTIONS
}
FUNCTION(abs) FUNCTION(popcount) FUNCTION(clz) FUNCTION(ctz)
FUNCTION(simd_sum) FUNCTION(simd_product) FUNCTION(simd_min) FUNCTION(simd_max) FUNCTION(simd_and) FUNCTION(simd_or) FUNCTION(simd_xor)
FUNCTION(simd_prefix_inclusive_sum) FUNCTION(simd_prefix_exclusive_sum) FUNCTION(simd_broadcast_first)
#undef FUNCTION
#undef FUNCTIONS
template <class T>
T simd_shuffle(T, ushort);
template <class T>
T simd_shuffle_xor(T, ushort);
template <class T>
T simd_shuffle_up(T, ushort);
template <class T>
T simd_shuffle_down(T, ushort);
template <class T>
T simd_broadcast(T, ushort);
bool simd_any(bool);
bool simd_all(bool);
struct simd_vote {
  typedef ulong vote_t;
  explicit operator ulong() const;
};
simd_vote simd_ballot(bool);
bool isnan(float);
bool isinf(float);
float pow(float, float);
template <class T>
T mulhi(T, T);
template <class T>
T fma(T, T, T);
template <class T>
T min(T, T);
template <class T>
T max(T, T);
template <class T>
T clamp(T, T, T);
template <class T>
T select(T, T, bool);
float dot(float2, float2);
float dot(float3, float3);
float dot(float4, float4);
template <class To, class From>
To as_type(From);

template <class T, int N>
struct vector_of;
#define VECTOR(T, N)          \
  template <>                 \
  struct vector_of<T, N> {    \
    typedef T##N type;        \
  };
VECTOR(float, 2) VECTOR(float, 4) VECTOR(half, 2) VECTOR(half, 4) VECTOR(bfloat, 2) VECTOR(bfloat, 4)
#undef VECTOR
template <class T, int N>
using vec = typename vector_of<T, N>::type;

template <class T, int ROWS = 8, int COLUMNS = 8>
struct simdgroup_matrix {
  T elements[2];
  __private T* thread_elements();
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;
template <class T, int ROWS, int COLUMNS>
simdgroup_matrix<T, ROWS, COLUMNS> make_filled_simdgroup_matrix(T);
#define MATRICES(space)                                                                                     \
  template <class T>                                                                                        \
  void simdgroup_load(__private simdgroup_matrix<T>&, space const T*, ulong = 8, ulong2 = {0, 0}, bool = false); \
  template <class T>                                                                                        \
  void simdgroup_store(simdgroup_matrix<T>, space T*, ulong = 8, ulong2 = {0, 0}, bool = false);
MATRICES(__global)
MATRICES(__local)
#undef MATRICES
template <class A, class B, class C, class D>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D>&, simdgroup_matrix<A>, simdgroup_matrix<B>, simdgroup_matrix<C>);
template <class A, class B, class D>
void simdgroup_multiply(__private simdgroup_matrix<D>&, simdgroup_matrix<A>, simdgroup_matrix<B>);

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
#define ATOMICS(space)                                                                                  \
  template <class T> T atomic_fetch_add_explicit(volatile space atomic<T>*, T, memory_order);           \
  template <class T> T atomic_fetch_sub_explicit(volatile space atomic<T>*, T, memory_order);           \
  template <class T> T atomic_fetch_min_explicit(volatile space atomic<T>*, T, memory_order);           \
  template <class T> T atomic_fetch_max_explicit(volatile space atomic<T>*, T, memory_order);           \
  template <class T> T atomic_fetch_and_explicit(volatile space atomic<T>*, T, memory_order);           \
  template <class T> T atomic_fetch_or_explicit(volatile space atomic<T>*, T, memory_order);            \
  template <class T> T atomic_fetch_xor_explicit(volatile space atomic<T>*, T, memory_order);           \
  template <class T> T atomic_exchange_explicit(volatile space atomic<T>*, T, memory_order);            \
  template <class T> T atomic_load_explicit(volatile space const atomic<T>*, memory_order);             \
  template <class T> void atomic_store_explicit(volatile space atomic<T>*, T, memory_order);            \
  template <class T> bool atomic_compare_exchange_weak_explicit(volatile space atomic<T>*, __private T*, T, memory_order, memory_order);
ATOMICS(__global)
ATOMICS(__local)
#undef ATOMICS
}  // namespace metal

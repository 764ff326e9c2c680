// Element types, fixed-width integers and the few words every kernel uses.
//
// NVRTC compiles this where a driver is installed and no toolkit is: no header of CUDA's is included. Under PHOTON_SIM
// the simulator (photon-simt/shim) gives the same names, with the same rounding. Types carry bits and conversions only;
// arithmetic is done in float, or on packed pairs by ptx.cuh, which this file brings along.
#pragma once

#ifdef PHOTON_SIM
#include "simt/cuda.hpp"
#else

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

// Functions that kernels call.
#define DEVICE __device__ __forceinline__
// The block's dynamic shared memory as `T* name`; at most once in a kernel, whose host side gives the bytes.
#define DYNAMIC_SHARED(T, name)                                     \
  alignas(128) extern __shared__ unsigned char photon_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(photon_dynamic_shared)

// bfloat16: the upper half of a float.
struct alignas(2) bf16 {
  uint16_t bits;
  bf16() = default;
  DEVICE explicit bf16(float x);
  DEVICE explicit operator float() const;
};

// IEEE binary16.
struct alignas(2) f16 {
  uint16_t bits;
  f16() = default;
  DEVICE explicit f16(float x);
  DEVICE explicit operator float() const;
};

#endif

#include "ptx.cuh"

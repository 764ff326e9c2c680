// Elements of any type, and what every kernel shares: conversions, activations, sums over a threadgroup.
//
// Arithmetic is f32; a result is rounded once, to nearest even, when it is stored. Kernels that are not hot take types as
// the numbers below and go through `load` and `store`; hot ones are templates of the element type. Sources are compiled
// without fast math: what may be less exact says `fast::`.
#pragma once
#include "types.h"

// `photon_core::DType`, in its order; the Rust side is `kernels::elements::type_code`.
enum : uint { TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_I32, TYPE_U8, TYPE_INT8, TYPE_FP8 };

// `photon_core::Activation`, in its order.
enum : uint { ACTIVATION_NONE, ACTIVATION_GELU_TANH, ACTIVATION_GELU_ERF };

// Element `i` of an array of floats of this type.
DEVICE float load(device const void* p, size_t i, uint type) {
  if (type == TYPE_F32) return ((device const float*)p)[i];
  if (type == TYPE_F16) return (float)((device const half*)p)[i];
  return bf16_to_float(((device const ushort*)p)[i]);
}

DEVICE void store(device void* p, size_t i, uint type, float x) {
  if (type == TYPE_F32) ((device float*)p)[i] = x;
  else if (type == TYPE_F16) ((device half*)p)[i] = (half)x;
  else ((device ushort*)p)[i] = float_to_bf16(x);
}

// Eight elements of any float type from `i` on as f32, of which the first `count` exist; the others are zero. `align`: what
// the place of element `i` is a multiple of, in bytes.
DEVICE void load8(device const void* p, size_t i, uint type, int count, uint align, thread float (&out)[8]) {
  if (type == TYPE_F32 || align < 16 || count < 8) {
    UNROLL for (int j = 0; j < 8; j++) out[j] = j < count ? load(p, i + j, type) : 0.0f;
    return;
  }
  const uint4 bits = *(device const uint4*)((device const ushort*)p + i);
  UNROLL for (int j = 0; j < 8; j++) {
    const ushort one = (ushort)(bits[j / 2] >> (j % 2 * 16));
    out[j] = type == TYPE_F16 ? (float)as_type<half>(one) : bf16_to_float(one);
  }
}

// The first `count` of eight elements, likewise.
DEVICE void store8(device void* p, size_t i, uint type, int count, uint align, thread const float (&x)[8]) {
  if (type == TYPE_F32 || align < 16 || count < 8) {
    UNROLL for (int j = 0; j < 8; j++) {
      if (j < count) store(p, i + j, type, x[j]);
    }
    return;
  }
  uint words[4];
  UNROLL for (int j = 0; j < 4; j++) {
    const ushort low = type == TYPE_F16 ? as_type<ushort>((half)x[2 * j]) : float_to_bf16(x[2 * j]);
    const ushort high = type == TYPE_F16 ? as_type<ushort>((half)x[2 * j + 1]) : float_to_bf16(x[2 * j + 1]);
    words[j] = (uint)low | (uint)high << 16;
  }
  *(device uint4*)((device ushort*)p + i) = uint4(words[0], words[1], words[2], words[3]);
}

// The int8 nearest to `x`, ties to even, at most 127 in size; 0 for NaN: `photon_core::kv::to_int8`.
DEVICE char to_int8(float x) { return isnan(x) ? (char)0 : (char)(int)rint(min(max(x, -127.0f), 127.0f)); }

// The e4m3 nearest to `x`, ties to even, at most 448 in size; some finite code for NaN: `photon_core::kv::to_fp8`, bit for
// bit.
DEVICE uchar to_fp8(float x) {
  const uint sign = as_type<uint>(x) >> 24 & 0x80;
  const float size = min(fabs(x), 448.0f);
  const uint bits = as_type<uint>(size);
  // 20 bits go: half of the last place kept, less where that is even, carries into it.
  const uint normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
  // Codes below 2^-6 are multiples of 2^-9, the last place of numbers from 2^14 on.
  const uint subnormal = as_type<uint>(size + 16384.0f) - as_type<uint>(16384.0f);
  return (uchar)(sign | (size < 0.015625f ? subnormal : normal));
}

// The number that a code of e4m3 stands for; the NaN codes, which nobody stores, as 480: `photon_core::kv::from_fp8`.
DEVICE float from_fp8(uchar code) {
  // By way of integers where there is no exponent: a subnormal f32 may count as zero on a GPU.
  const uint size = code & 0x7f;
  const float x = size < 8 ? (float)size * as_type<float>((127 - 9) << 23) : as_type<float>((size << 20) + (120 << 23));
  return code & 0x80 ? -x : x;
}

// `0.5 x (1 + tanh u)` is `x / (1 + e^(-2 u))`: one exponential, and no cancellation.
DEVICE float gelu_tanh(float x) {
  const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp(-2.0f * u));
}

// `1 - erf x` for `x >= 0`, which Metal does not have: Chebyshev's fit of its logarithm (Numerical Recipes, 6.2), whose
// relative error is at most 1.2e-7 anywhere.
DEVICE float erfc_of_positive(float x) {
  const float t = 1.0f / (1.0f + 0.5f * x);
  float fit = 0.17087277f;
  fit = fma(fit, t, -0.82215223f);
  fit = fma(fit, t, 1.48851587f);
  fit = fma(fit, t, -1.13520398f);
  fit = fma(fit, t, 0.27886807f);
  fit = fma(fit, t, -0.18628806f);
  fit = fma(fit, t, 0.09678418f);
  fit = fma(fit, t, 0.37409196f);
  fit = fma(fit, t, 1.00002368f);
  fit = fma(fit, t, -1.26551223f);
  return t * exp(fma(-x, x, fit));
}

// `0.5 x (1 + erf(x / sqrt 2))`; below zero by erfc, which does not cancel.
DEVICE float gelu_erf(float x) {
  const float rest = erfc_of_positive(fabs(x) * 0.7071067812f);
  return 0.5f * x * (x < 0.0f ? rest : 2.0f - rest);
}

DEVICE float activate(float x, uint activation) {
  if (activation == ACTIVATION_GELU_TANH) return gelu_tanh(x);
  if (activation == ACTIVATION_GELU_ERF) return gelu_erf(x);
  return x;
}

// In which lanes it is so, a bit each.
DEVICE uint ballot(bool x) { return uint(simd_vote::vote_t(simd_ballot(x))); }

// Of all threads, in all threads; every thread of whole SIMD-groups must call, with its place among them. `scratch` has an
// element for each SIMD-group and is free again for whatever comes after the caller's next barrier.
DEVICE float threadgroup_sum(float x, threadgroup float* scratch, uint index, uint threads) {
  const uint lane = index % 32, group = index / 32;
  x = simd_sum(x);
  if (lane == 0) scratch[group] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(lane < threads / 32 ? scratch[lane] : 0.0f);
}

DEVICE float threadgroup_max(float x, threadgroup float* scratch, uint index, uint threads) {
  const uint lane = index % 32, group = index / 32;
  x = simd_max(x);
  if (lane == 0) scratch[group] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_max(lane < threads / 32 ? scratch[lane] : -INFINITY);
}

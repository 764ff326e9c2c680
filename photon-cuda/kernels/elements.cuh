// Elements of any type, and what every kernel shares: conversions, activations, sums over a warp or a block.
//
// Arithmetic is f32; a result is rounded once, to nearest even, when it is stored. Kernels that are not hot take types as
// the numbers below and go through `load` and `store`; hot ones are templates of the element type.
#pragma once
#include "types.cuh"

// `photon_core::DType`, in its order; the Rust side is `kernels::elements::type_code`.
enum : uint32_t { TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_I32, TYPE_U8, TYPE_INT8, TYPE_FP8 };

// `photon_core::Activation`, in its order.
enum : uint32_t { ACTIVATION_NONE, ACTIVATION_GELU_TANH, ACTIVATION_GELU_ERF };

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(f16 x) { return __half2float(x); }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }

template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE f16 from_float<f16>(float x) { return __float2half_rn(x); }
template <> DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// What a kernel begins with, as it may start before the one before it has ended: from here on everything launched before is
// seen, and what comes after may get ready. Every thread calls it, before it touches memory.
DEVICE void enter() {
  grid_wait();
  grid_launch_next();
}

// Element `i` of an array of floats of this type.
DEVICE float load(const void* p, size_t i, uint32_t type) {
  if (type == TYPE_F32) return ((const float*)p)[i];
  if (type == TYPE_F16) return to_float(((const f16*)p)[i]);
  return to_float(((const bf16*)p)[i]);
}

DEVICE void store(void* p, size_t i, uint32_t type, float x) {
  if (type == TYPE_F32) ((float*)p)[i] = x;
  else if (type == TYPE_F16) ((f16*)p)[i] = from_float<f16>(x);
  else ((bf16*)p)[i] = from_float<bf16>(x);
}

// Two 16-bit elements as one register, the first in the lower half.
template <class T> DEVICE uint32_t pack2(float first, float second);
template <> DEVICE uint32_t pack2<f16>(float first, float second) { return pack_f16(first, second); }
template <> DEVICE uint32_t pack2<bf16>(float first, float second) { return pack_bf16(first, second); }

template <class T> DEVICE float2 unpack2(uint32_t bits);
template <> DEVICE float2 unpack2<f16>(uint32_t bits) { return unpack_f16(bits); }
template <> DEVICE float2 unpack2<bf16>(uint32_t bits) { return unpack_bf16(bits); }

// The bits of eight 16-bit elements from `p` on, of which the first `count` exist; the others are zero. `align` says how
// many bytes `p` is a multiple of and is the same for the whole launch.
template <class T> DEVICE uint4 load8_bits(const T* p, int count, uint32_t align) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  if (count >= 8 && align >= 16) return *(const uint4*)p;
  if (count >= 8 && align >= 8) {
    const uint2 low = *(const uint2*)p, high = *(const uint2*)(p + 4);
    return make_uint4(low.x, low.y, high.x, high.y);
  }
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (i < count) words[i / 2] |= (uint32_t)((const uint16_t*)p)[i] << (i % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Eight elements of any float type from `i` on as f32, of which the first `count` exist; the others are zero. `align`: what
// the place of element `i` is a multiple of, in bytes.
DEVICE void load8(const void* p, size_t i, uint32_t type, int count, uint32_t align, float (&out)[8]) {
  if (type == TYPE_F32 || align < 16 || count < 8) {
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = j < count ? load(p, i + j, type) : 0.0f;
    return;
  }
  const uint4 bits = *(const uint4*)((const uint16_t*)p + i);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 pair = type == TYPE_F16 ? unpack2<f16>(words[j]) : unpack2<bf16>(words[j]);
    out[2 * j] = pair.x;
    out[2 * j + 1] = pair.y;
  }
}

// The first `count` of eight elements, likewise.
DEVICE void store8(void* p, size_t i, uint32_t type, int count, uint32_t align, const float (&x)[8]) {
  if (type == TYPE_F32 || align < 16 || count < 8) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (j < count) store(p, i + j, type, x[j]);
    }
    return;
  }
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    words[j] = type == TYPE_F16 ? pack2<f16>(x[2 * j], x[2 * j + 1]) : pack2<bf16>(x[2 * j], x[2 * j + 1]);
  }
  *(uint4*)((uint16_t*)p + i) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The int8 nearest to `x`, ties to even, at most 127 in size; 0 for NaN: `photon_core::kv::to_int8`.
DEVICE int8_t to_int8(float x) {
  return x != x ? 0 : (int8_t)rintf(fminf(fmaxf(x, -127.0f), 127.0f));
}

// The e4m3 nearest to `x`, ties to even, at most 448 in size; some finite code for NaN: `photon_core::kv::to_fp8`, bit for
// bit.
DEVICE uint8_t to_fp8(float x) {
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
  const float size = fminf(fabsf(x), 448.0f);
  const uint32_t bits = __float_as_uint(size);
  // 20 bits go: half of the last place kept, less where that is even, carries into it.
  const uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
  // Codes below 2^-6 are multiples of 2^-9, the last place of numbers from 2^14 on.
  const uint32_t subnormal = __float_as_uint(size + 16384.0f) - __float_as_uint(16384.0f);
  return (uint8_t)(sign | (size < 0.015625f ? subnormal : normal));
}

// The number that a code of e4m3 stands for; the NaN codes, which nobody stores, as 480: `photon_core::kv::from_fp8`.
DEVICE float from_fp8(uint8_t code) {
  // Moved to f32's place the exponent is short by the difference of the biases, subnormals included.
  const uint32_t bits = (uint32_t)(code & 0x80) << 24 | (uint32_t)(code & 0x7f) << 20;
  return __uint_as_float(bits) * __uint_as_float((127 + 120) << 23);
}

// `0.5 x (1 + tanh u)` is `x / (1 + e^(-2 u))`: one exponential, and no cancellation.
DEVICE float gelu_tanh(float x) {
  const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + expf(-2.0f * u));
}

DEVICE float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.7071067812f)); }

DEVICE float activate(float x, uint32_t activation) {
  if (activation == ACTIVATION_GELU_TANH) return gelu_tanh(x);
  if (activation == ACTIVATION_GELU_ERF) return gelu_erf(x);
  return x;
}

// Of all lanes, in all lanes; every lane must call.
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
  return x;
}

DEVICE float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lanes));
  return x;
}

// Of all threads, in all threads; every thread of whole warps must call. `scratch` has an element for each warp and is
// free again for whatever comes after the caller's next barrier.
DEVICE float block_sum(float x, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

DEVICE float block_max(float x, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_max(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? scratch[lane] : -INFINITY);
}

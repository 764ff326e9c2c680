// How weight matrices lie on the device. One layout for every kernel, whether it has one row or ten thousand.
//
// A matrix is cut into blocks of 16 features by 64 elements of k: block after block along k, then the next 16 features; both
// ends are padded with zeros. In a block, lane `l` of whatever warp comes along owns 32 elements, of features `l / 4` and
// `l / 4 + 8`: those that `mma.m16n8k16` wants from it as its first operand. They come as vectors of 16 bytes, vector `v` of
// lane `l` at `(32 v + l) 16`, so a warp reads 512 bytes at a time, straight into the registers of the multiplication: no
// shared memory, no `ldmatrix`, no swizzle.
//
// The order of k within a multiplication does not matter as long as both operands agree, so it is chosen for the
// activations: with `t = l % 4`, a lane's elements of 32 consecutive `k` are `8 t .. 8 t + 8`, which for a row of
// activations is one vector of 16 bytes. In full: element `i` of a lane is at feature `l / 4 + 8 (i / 2 % 2)` and
// `k = 32 (i / 16) + 8 t + 4 (i / 8 % 2) + 2 (i / 4 % 2) + i % 2`. Eight of them, a step, are the four registers of one
// multiplication.
//
// Behind the blocks lie scales, f32: of int8 and fp8 one per feature; of int4, for each 16 features and each group along k,
// eight times the scale and offset of features `f` and `f + 8`. The Rust side is `kernels::weights`.
#pragma once
#include "elements.cuh"
#include "ptx.cuh"

enum : uint32_t { FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_INT8, FORMAT_FP8, FORMAT_INT4 };

// Features and elements of k of a block.
constexpr int BLOCK_N = 16, BLOCK_K = 64;

// One, twice.
template <class T> constexpr uint32_t ONES = 0;
template <> constexpr uint32_t ONES<bf16> = 0x3f803f80;
template <> constexpr uint32_t ONES<f16> = 0x3c003c00;

template <class T> DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c);
template <> DEVICE uint32_t fma2<bf16>(uint32_t a, uint32_t b, uint32_t c) { return fma_bf16x2(a, b, c); }
template <> DEVICE uint32_t fma2<f16>(uint32_t a, uint32_t b, uint32_t c) { return fma_f16x2(a, b, c); }

template <class T> DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> DEVICE void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  mma_m16n8k16_bf16(d, a, b);
}
template <> DEVICE void mma<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  mma_m16n8k16_f16(d, a, b);
}

// What a format is: `WORDS` registers of a lane hold a step, and `fragment` makes them the operand. Every code is a number
// of bf16 and of f16, so nothing is rounded.
struct Float {
  static constexpr int WORDS = 4;
  static constexpr bool ROW_SCALES = false, GROUP_SCALES = false;

  template <class T> DEVICE static void fragment(const uint32_t* words, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = words[i];
  }
};

struct Int8 {
  static constexpr int WORDS = 2;
  static constexpr bool ROW_SCALES = true, GROUP_SCALES = false;

  template <class T> DEVICE static uint32_t pair(uint32_t word, uint32_t bytes);
  template <class T> DEVICE static void fragment(const uint32_t* words, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pair<T>(words[i / 2], i % 2 ? 0x4342 : 0x4140);
  }
};

// 0x43xx is `128 + low seven bits` in bf16 where the top bit is clear: the code is that less 128, or less 256 where it is set.
template <> DEVICE uint32_t Int8::pair<bf16>(uint32_t word, uint32_t bytes) {
  const uint32_t v = __byte_perm(word, 0x43434343, bytes);
  return fma2<bf16>(v & 0xff80ff80, 0xbf80bf80, v & 0xff7fff7f);
}
// 0x64xx is `1024 + xx` in f16; the code with its top bit flipped is the code plus 128.
template <> DEVICE uint32_t Int8::pair<f16>(uint32_t word, uint32_t bytes) {
  return fma2<f16>(__byte_perm(word ^ 0x80808080, 0x64646464, bytes), ONES<f16>, 0xe480e480);
}

// e4m3: exponent and mantissa are moved to their places; what the exponent is then short of is multiplied, which makes
// normal numbers of subnormal ones too.
struct Fp8 {
  static constexpr int WORDS = 2;
  static constexpr bool ROW_SCALES = true, GROUP_SCALES = false;

  template <class T> DEVICE static uint32_t pair(uint32_t word, uint32_t bytes);
  template <class T> DEVICE static void fragment(const uint32_t* words, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pair<T>(words[i / 2], i % 2 ? 0x3424 : 0x1404);
  }
};

template <> DEVICE uint32_t Fp8::pair<bf16>(uint32_t word, uint32_t bytes) {
  const uint32_t v = __byte_perm(word, 0, bytes);
  return fma2<bf16>((v & 0x80008000) | (v >> 4 & 0x07f007f0), 0x7b807b80, 0x80008000);
}
template <> DEVICE uint32_t Fp8::pair<f16>(uint32_t word, uint32_t bytes) {
  const uint32_t v = __byte_perm(word, 0, bytes);
  return fma2<f16>((v & 0x80008000) | (v >> 1 & 0x3f803f80), 0x5c005c00, 0x80008000);
}

// Element `i` of a step is bits `4 (i / 2) + 16 (i % 2)` of its word. Scale and offset of a group are applied to the sum of
// its codes' products, and to the sum of its activations.
struct Int4 {
  static constexpr int WORDS = 1;
  static constexpr bool ROW_SCALES = false, GROUP_SCALES = true;

  template <class T> DEVICE static void fragment(const uint32_t* words, uint32_t (&a)[4]);
};

template <> DEVICE void Int4::fragment<bf16>(const uint32_t* words, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = fma2<bf16>((*words >> 4 * i & 0x000f000f) | 0x43004300, ONES<bf16>, 0xc300c300);
}
template <> DEVICE void Int4::fragment<f16>(const uint32_t* words, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = fma2<f16>((*words >> 4 * i & 0x000f000f) | 0x64006400, ONES<f16>, 0xe400e400);
}

// Vectors a lane reads of a block, and the bytes of it.
template <class F> constexpr int VECTORS = F::WORDS;
template <class F> constexpr int BLOCK_BYTES = F::WORDS * 512;

// Lane `lane`'s elements of the half `half` (32 elements of k) of a block as f32, for kernels that multiply those: of feature
// `lane / 4` and of feature `lane / 4 + 8`, eight consecutive ones of k from `8 (lane % 4)` on. Scales of rows are not applied,
// those of groups are: `scales` holds scale and offset of either feature.
DEVICE void unpack_half(const uint8_t* block, uint32_t format, int lane, int half, float4 scales,
                                   float (&low)[8], float (&high)[8]) {
  float e[16];
  const uint4* vectors = (const uint4*)block + lane;
  if (format == FORMAT_F32) {
#pragma unroll
    for (int v = 0; v < 4; v++) {
      const uint4 bits = vectors[32 * (4 * half + v)];
      const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; i++) e[4 * v + i] = __uint_as_float(words[i]);
    }
  } else if (format == FORMAT_F16 || format == FORMAT_BF16) {
#pragma unroll
    for (int v = 0; v < 2; v++) {
      const uint4 bits = vectors[32 * (2 * half + v)];
      const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float2 pair = format == FORMAT_F16 ? unpack2<f16>(words[i]) : unpack2<bf16>(words[i]);
        e[8 * v + 2 * i] = pair.x;
        e[8 * v + 2 * i + 1] = pair.y;
      }
    }
  } else if (format == FORMAT_INT4) {
    const uint4 bits = *vectors;
    const uint32_t words[2] = {half ? bits.z : bits.x, half ? bits.w : bits.y};
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const float code = (float)(words[i / 8] >> (4 * (i % 8 / 2) + 16 * (i % 2)) & 15);
      const bool upper = i / 2 % 2;
      e[i] = fmaf(code, upper ? scales.z : scales.x, upper ? scales.w : scales.y);
    }
  } else {
    const uint4 bits = vectors[32 * half];
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const uint8_t code = (uint8_t)(words[i / 4] >> 8 * (i % 4));
      e[i] = format == FORMAT_INT8 ? (float)(int8_t)code : from_fp8(code);
    }
  }
#pragma unroll
  for (int i = 0; i < 16; i++) (i / 2 % 2 ? high : low)[i / 8 * 4 + i / 4 % 2 * 2 + i % 2] = e[i];
}

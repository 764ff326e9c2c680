// How weight matrices lie on the device. One layout for every kernel, whether it has one row or ten thousand.
//
// A matrix is cut into blocks of 16 features by 64 elements of k; both ends are padded with zeros. The multiplication is
// `mma.m16n8k16` with the matrix as its first operand, so of a block, lane `l` of whatever warp comes along wants 32
// elements, of features `l / 4` and `l / 4 + 8`. The order of k within a multiplication does not matter as long as both
// operands agree, so it is chosen for the loads: with `t = l % 4`, a lane's elements of 32 consecutive `k` (a half of the
// block) are `8 t .. 8 t + 8`. Of a row of 16-bit elements, activations or weights, that is one vector of 16 bytes.
//
// Floats lie row by row, a row padded to whole blocks: a lane's half is a vector of either feature, straight from memory to
// the registers of the multiplication, without shared memory, `ldmatrix` or swizzle; and the copy engine can read them too.
//
// Codes lie block after block along k, then the next 16 features. A lane's 32 elements come as vectors of 16 bytes, vector
// `v` of lane `l` at `(32 v + l) 16`, so a warp reads 512 bytes at a time. Element `i` of a lane is at feature
// `l / 4 + 8 (i / 2 % 2)` and `k = 32 (i / 16) + 8 t + 4 (i / 8 % 2) + 2 (i / 4 % 2) + i % 2`: eight of them, a step, are
// the four registers of one multiplication, in order.
//
// Behind the codes lie scales, f32: of int8 and fp8 one per feature; of int4, for each 16 features and each group along k,
// eight times the scale and offset of features `f` and `f + 8`. The Rust side is `kernels::weights`.
#pragma once
#include "elements.cuh"
#include "ptx.cuh"

// Of floats the numbers of their types.
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

// What a format is: `WORDS` registers of a lane hold a step, and `fragments` makes those of a half the operands of two
// multiplications. Every code is a number of bf16 and of f16, so nothing is rounded.
struct Float {
  static constexpr int WORDS = 4;
  static constexpr bool ROW_SCALES = false, GROUP_SCALES = false;

  // Four words of either feature.
  template <class T> DEVICE static void fragments(const uint32_t* words, uint32_t (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = words[i / 4 * 2 + i % 2 * 4 + i % 4 / 2];
  }
};

// Formats of bytes. `pair` makes numbers of two of a word's four codes: by LOW of the first two, by HIGH of the others.
template <class F> struct Bytes {
  static constexpr int WORDS = 2;
  static constexpr bool ROW_SCALES = true, GROUP_SCALES = false;

  template <class T> DEVICE static void fragments(const uint32_t* words, uint32_t (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = F::template pair<T>(words[i / 2], i % 2 ? F::HIGH : F::LOW);
  }
};

struct Int8 : Bytes<Int8> {
  static constexpr uint32_t LOW = 0x4140, HIGH = 0x4342;
  template <class T> DEVICE static uint32_t pair(uint32_t word, uint32_t bytes);
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
struct Fp8 : Bytes<Fp8> {
  static constexpr uint32_t LOW = 0x1404, HIGH = 0x3424;
  template <class T> DEVICE static uint32_t pair(uint32_t word, uint32_t bytes);
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

  template <class T> DEVICE static uint32_t pair(uint32_t codes);
  template <class T> DEVICE static void fragments(const uint32_t* words, uint32_t (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = pair<T>(words[i / 4] >> 4 * (i % 4) & 0x000f000f);
  }
};

template <> DEVICE uint32_t Int4::pair<bf16>(uint32_t codes) {
  return fma2<bf16>(codes | 0x43004300, ONES<bf16>, 0xc300c300);
}
template <> DEVICE uint32_t Int4::pair<f16>(uint32_t codes) {
  return fma2<f16>(codes | 0x64006400, ONES<f16>, 0xe400e400);
}

// Vectors a lane reads of a block, and the bytes of it.
template <class F> constexpr int VECTORS = F::WORDS;
template <class F> constexpr int BLOCK_BYTES = F::WORDS * 512;

// Where lane `lane` finds vector `v` of block `block` of 16 features `tile`; a matrix has `k_blocks` blocks along k.
template <class F>
DEVICE const uint8_t* vector_of(const uint8_t* matrix, uint32_t k_blocks, uint32_t tile, uint32_t block, int lane, int v) {
  if (F::WORDS < 4) return matrix + ((size_t)tile * k_blocks + block) * BLOCK_BYTES<F> + 512 * v + 16 * lane;
  const size_t row = tile * BLOCK_N + lane / 4 + v % 2 * 8;
  return matrix + (row * k_blocks + block) * (2 * BLOCK_K) + v / 2 * 64 + 16 * (lane % 4);
}

// As f32, for kernels that multiply those: the elements of k from `32 half + 8 (lane % 4)` on of features `lane / 4` and
// `lane / 4 + 8` of 16, where `half` counts halves of blocks. Scales of rows are not applied, those of groups are: `scales`
// holds scale and offset of either feature.
DEVICE void unpack_half(const uint8_t* matrix, uint32_t format, uint32_t k_blocks, uint32_t tile, uint32_t half, float4 scales,
                        float (&low)[8], float (&high)[8]) {
  const int lane = threadIdx.x % 32;
  if (format <= FORMAT_BF16) {
    const size_t at = ((size_t)tile * BLOCK_N + lane / 4) * k_blocks * BLOCK_K + 32 * half + 8 * (lane % 4);
    load8(matrix, at, format, 8, 16, low);
    load8(matrix, at + (size_t)8 * k_blocks * BLOCK_K, format, 8, 16, high);
    return;
  }
  const bool is_int4 = format == FORMAT_INT4;
  const uint8_t* block = matrix + ((size_t)tile * k_blocks + half / 2) * (is_int4 ? 512 : 1024);
  const uint4 bits = *(const uint4*)(block + (is_int4 ? 0 : half % 2 * 512) + 16 * lane);
  const bool second = is_int4 && half % 2;
  const uint32_t words[4] = {second ? bits.z : bits.x, second ? bits.w : bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const bool upper = i / 2 % 2;
    float x;
    if (is_int4) {
      const float code = (float)(words[i / 8] >> (4 * (i % 8 / 2) + 16 * (i % 2)) & 15);
      x = fmaf(code, upper ? scales.z : scales.x, upper ? scales.w : scales.y);
    } else {
      const uint8_t code = (uint8_t)(words[i / 4] >> 8 * (i % 4));
      x = format == FORMAT_INT8 ? (float)(int8_t)code : from_fp8(code);
    }
    (upper ? high : low)[i / 8 * 4 + i / 4 % 2 * 2 + i % 2] = x;
  }
}

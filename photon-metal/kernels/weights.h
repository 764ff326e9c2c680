// How weight matrices lie in memory. One layout for every kernel, whether it has one row or ten thousand.
//
// A matrix is cut into tiles of 32 features, a tile into blocks of 32 elements of k; both ends are padded with zeros. Within a
// tile lie vectors of 16 bytes: the first 16 bytes of each of the 32 features, then the next 16 of each, and so on. So
// - lanes that have a feature each read 512 bytes in a row with every load, of whatever format, and four times that before
//   they have multiplied anything;
// - lanes that have a part of a matrix of 8 by 8 read whole cache lines (128 bytes) of eight features.
//
// A block is 1 to 8 vectors, its elements eight fours: four `p` is elements `4 p .. 4 p + 4` of k. In a multiplication of
// matrices of 8 by 8 one lane has, of one or two features, an element of one four, so `k = 4 p + j` is place `p` of
// multiplication `j` of the four that make up a block. Activations are loaded to suit: a lane that has two places of a row has
// two fours in a row, which are 16 bytes of 16-bit elements.
//
// Behind the vectors lie scales. Of int8 and fp8 one per feature, f32. Of int4 first 16 bytes, of which the first word is a number of
// a type; then, for each tile and each group along k, something of 32 features: of FORMAT_F32 scale and offset, f32; of FORMAT_BF16
// the ends of the group, two bf16. What `photon_core::quant` quantized has such ends, and an int4 weight in groups of 32 is 5 bits
// of memory's speed instead of 6. The Rust side is `kernels::weights`.
#pragma once
#include "elements.h"

// Of floats the numbers of their types.
enum : uint { FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_INT8, FORMAT_FP8, FORMAT_INT4 };

// Features of a tile, elements of k of a block, fours of a block.
enum : uint { TILE_N = 32, BLOCK_K = 32, FOURS = 8 };

// 16 bytes of a feature, or of a row of activations.
typedef uint4 Vector;

// Two 16-bit elements, the first in the lower half, as f32. bf16 needs no type of its own, and runs on every device.
struct F16 {
  static float2 unpack(uint bits) {
    const half2 pair = as_type<half2>(bits);
    return float2((float)pair.x, (float)pair.y);
  }
};

struct Bf16 {
  static float2 unpack(uint bits) { return float2(as_type<float>(bits << 16), as_type<float>(bits & 0xffff0000u)); }
};

// What a format is: `Four` holds four elements of a feature, and there are `FOURS_OF_VECTOR` in a vector. As f32 they are
// codes where a row has a scale, and weights otherwise.
struct Float32 {
  typedef float4 Four;
  enum : uint { FOURS_OF_VECTOR = 1, ROW_SCALES = 0, GROUP_SCALES = 0 };

  static float4 unpack(float4 four, float2) { return four; }
};

// 16-bit floats.
template <class X> struct Float {
  typedef uint2 Four;
  enum : uint { FOURS_OF_VECTOR = 2, ROW_SCALES = 0, GROUP_SCALES = 0 };

  static uint2 four(Vector vector, uint i) { return i % 2 ? uint2(vector.z, vector.w) : uint2(vector.x, vector.y); }
  static float4 unpack(uint2 four, float2) {
    const float2 low = X::unpack(four.x), high = X::unpack(four.y);
    return float4(low.x, low.y, high.x, high.y);
  }
};

struct Int8 {
  typedef uint Four;
  enum : uint { FOURS_OF_VECTOR = 4, ROW_SCALES = 1, GROUP_SCALES = 0 };

  static uint four(Vector vector, uint i) { return vector[i % 4]; }
  static float4 unpack(uint four, float2) {
    const char4 codes = as_type<char4>(four);
    return float4((float)codes.x, (float)codes.y, (float)codes.z, (float)codes.w);
  }
};

struct Fp8 {
  typedef uint Four;
  enum : uint { FOURS_OF_VECTOR = 4, ROW_SCALES = 1, GROUP_SCALES = 0 };

  static uint four(Vector vector, uint i) { return vector[i % 4]; }
  static float4 unpack(uint four, float2) {
    const uchar4 codes = as_type<uchar4>(four);
    return float4(from_fp8(codes.x), from_fp8(codes.y), from_fp8(codes.z), from_fp8(codes.w));
  }
};

// `code scale + offset`, rounded once.
struct Int4 {
  typedef ushort Four;
  enum : uint { FOURS_OF_VECTOR = 8, ROW_SCALES = 0, GROUP_SCALES = 1 };

  static ushort four(Vector vector, uint i) { return (ushort)(vector[i / 2 % 4] >> 16 * (i % 2)); }
  static float4 unpack(ushort four, float2 scale) {
    const uint codes = four;
    return float4(fma((float)(codes & 15), scale.x, scale.y), fma((float)(codes >> 4 & 15), scale.x, scale.y),
                  fma((float)(codes >> 8 & 15), scale.x, scale.y), fma((float)(codes >> 12), scale.x, scale.y));
  }
};

// Vectors of a feature in a block; bytes of a block of a tile.
template <class F> struct Block {
  enum : uint { VECTORS = FOURS / F::FOURS_OF_VECTOR, BYTES = 16 * TILE_N * VECTORS };
};

// Four `p` of feature `f` of a block.
template <class F> DEVICE typename F::Four four_at(device const uchar* block, uint p, uint f) {
  device const uchar* vector = block + 16 * (p / F::FOURS_OF_VECTOR * TILE_N + f);
  return ((device const typename F::Four*)vector)[p % F::FOURS_OF_VECTOR];
}

// As f32, in kernels that are told the format.
DEVICE float4 any_four_at(device const uchar* block, uint format, uint p, uint f, float2 scale) {
  if (format == FORMAT_F32) return four_at<Float32>(block, p, f);
  if (format == FORMAT_F16) return Float<F16>::unpack(four_at<Float<F16> >(block, p, f), scale);
  if (format == FORMAT_BF16) return Float<Bf16>::unpack(four_at<Float<Bf16> >(block, p, f), scale);
  if (format == FORMAT_INT8) return Int8::unpack(four_at<Int8>(block, p, f), scale);
  if (format == FORMAT_FP8) return Fp8::unpack(four_at<Fp8>(block, p, f), scale);
  return Int4::unpack(four_at<Int4>(block, p, f), scale);
}

DEVICE uint any_block_bytes(uint format) {
  if (format == FORMAT_F32) return Block<Float32>::BYTES;
  if (format == FORMAT_F16 || format == FORMAT_BF16) return Block<Float<F16> >::BYTES;
  return format == FORMAT_INT4 ? Block<Int4>::BYTES : Block<Int8>::BYTES;
}

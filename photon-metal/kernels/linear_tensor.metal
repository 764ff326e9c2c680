// Not simulated: tensor operations are a library that only Apple's compiler has.
//
// Linear layers of many rows on M5, whose matrix units only Metal 4's tensor operations reach. Written to Apple's documentation
// and run by nobody yet.
//
// The twin of linear_8x8_* with another order of summation, which Apple does not tell, and with int4 rounded to 16 bits; so it is
// used only where a device was opened to prefer speed. Compiled only where the device has tensor operations, as Metal 4.
//
// A threadgroup has 64 rows and 128 features. For every 64 elements of k both operands are laid out in threadgroup memory, weights
// as 16-bit floats, a row 16 bytes longer than need be so that lanes meet different banks; four SIMD-groups multiply them
// together, sums staying in their registers.
//
// Bytes: weights once per 64 rows, activations once per 128 features, from L2.  FLOPs: 2 n k rows, padded to tiles.
// threadgroups = (features / 128, rows / 64), threads = 128.
#include "linear_skinny.h"

#include <metal_tensor>

#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

// Rows, features and elements of k of a stage; elements from a row of a stage to the next.
constant constexpr int TENSOR_ROWS = 64, TENSOR_N = 128, TENSOR_K = 64, TENSOR_STRIDE = 72;

// Of two blocks of k, what a lane's feature has, as 16-bit floats. Tiles past the last are read as the last, and dropped.
template <class T, class F>
DEVICE void stage_weights(constant LinearArgs& a, threadgroup T* to, uint feature, uint first) {
  const uint tile = min(feature / TILE_N, (a.n - 1) / TILE_N), lane = feature % TILE_N;
  const uint type = F::GROUP_SCALES ? scale_type(a, a.w) : 0;
  for (uint b = 0; b < 2; b++) {
    // Past the last block activations are zero.
    const uint block = min(first + b, a.k_blocks - 1);
    const float2 scale = F::GROUP_SCALES ? group_scale(a, a.w, type, tile, block, lane) : float2(0.0f, 0.0f);
    device const uchar* from = block_of<F>(a, a.w, tile, block);
    UNROLL for (uint p = 0; p < FOURS; p++) {
      const float4 w = F::unpack(four_at<F>(from, p, lane), scale);
      UNROLL for (uint j = 0; j < 4; j++) to[BLOCK_K * b + 4 * p + j] = T(w[j]);
    }
  }
}

template <class T, class F>
[[kernel, max_total_threads_per_threadgroup(128)]] void linear_tensor(constant LinearArgs& a [[buffer(0)]],
                                                                     uint2 at [[threadgroup_position_in_grid]],
                                                                     uint index [[thread_index_in_threadgroup]]) {
  // Vectors, for their alignment.
  threadgroup uint4 stage[(TENSOR_ROWS + TENSOR_N) * TENSOR_STRIDE / 8];
  threadgroup T* x = (threadgroup T*)stage;
  threadgroup T* w = x + TENSOR_ROWS * TENSOR_STRIDE;
  typedef tensor<threadgroup T, dextents<int, 2>, tensor_inline> Operand;
  Operand left(x, dextents<int, 2>(TENSOR_K, TENSOR_ROWS), array<int, 2>{1, TENSOR_STRIDE});
  Operand right(w, dextents<int, 2>(TENSOR_K, TENSOR_N), array<int, 2>{1, TENSOR_STRIDE});
  constexpr auto descriptor =
      mpp::tensor_ops::matmul2d_descriptor(TENSOR_ROWS, TENSOR_N, TENSOR_K, false, true, false,
                                           mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
  mpp::tensor_ops::matmul2d<descriptor, execution_simdgroups<4>> multiply;
  auto sums = multiply.template get_destination_cooperative_tensor<Operand, Operand, float>();
  for (ushort i = 0; i < sums.get_capacity(); i++) {
    if (sums.is_valid_element(i)) sums[i] = 0.0f;
  }
  const uint row0 = at.y * TENSOR_ROWS, feature0 = at.x * TENSOR_N;
  for (uint block = 0; block < a.k_blocks; block += 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = index; i < TENSOR_ROWS * 8; i += 128) {
      const uint row = row0 + i / 8;
      const uint4 bits = load_x8(a, row < a.rows ? row : NO_ROW, block * BLOCK_K + 8 * (i % 8));
      *(threadgroup uint4*)(x + i / 8 * TENSOR_STRIDE + 8 * (i % 8)) = bits;
    }
    stage_weights<T, F>(a, w + index * TENSOR_STRIDE, feature0 + index, block);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply.run(left, right, sums);
  }
  for (ushort i = 0; i < sums.get_capacity(); i++) {
    if (!sums.is_valid_element(i)) continue;
    const auto place = sums.get_multidimensional_index(i);
    const uint row = row0 + (uint)place[1], feature = feature0 + (uint)place[0];
    if (row < a.rows && feature < a.n) put(a, a.w, F::ROW_SCALES, row, feature, sums[i]);
  }
}

#define TENSOR_KERNELS(type, T, X)                                                                                               \
  template [[host_name("linear_tensor_" #type "_float")]] [[kernel]] decltype(linear_tensor<T, Float<X>>) linear_tensor<T, Float<X>>; \
  template [[host_name("linear_tensor_" #type "_int8")]] [[kernel]] decltype(linear_tensor<T, Int8>) linear_tensor<T, Int8>;     \
  template [[host_name("linear_tensor_" #type "_fp8")]] [[kernel]] decltype(linear_tensor<T, Fp8>) linear_tensor<T, Fp8>;        \
  template [[host_name("linear_tensor_" #type "_int4")]] [[kernel]] decltype(linear_tensor<T, Int4>) linear_tensor<T, Int4>;

TENSOR_KERNELS(f16, half, F16)
TENSOR_KERNELS(bf16, bfloat, Bf16)

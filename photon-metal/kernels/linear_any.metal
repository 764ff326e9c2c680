// Linear layers of any types: what has a 32-bit operand, or two of different types, and need not be fast.
//
// A threadgroup has 32 features and a few rows; each of its SIMD-groups sums one part of k, each lane one feature, in order of k,
// and the threadgroup adds the parts. Weights are read once per threadgroup from L2; activations are the same for all lanes.
// threadgroups = (rows / ROWS, features / 32), threads = 32 parts.
#include "linear.h"

// The matrix of a row of the output, or null.
DEVICE device const uchar* matrix_of_row(constant LinearArgs& a, uint row) {
  if (row >= a.rows) return nullptr;
  const int group = a.groups ? a.groups[row] : 0;
  return group >= 0 && group < (int)a.count ? matrix_of(a, (uint)group) : nullptr;
}

// The sums of this lane's feature over this SIMD-group's part, of rows that share a matrix.
template <uint R>
DEVICE void sum_part(constant LinearArgs& a, device const uchar* matrix, uint tile, uint part, uint lane, uint first,
                     thread float (&sums)[R]) {
  const uint begin = part * a.part_blocks, end = min(begin + a.part_blocks, a.k_blocks), bytes = any_block_bytes(a.format);
  const bool is_int4 = a.format == FORMAT_INT4;
  size_t x[R];
  UNROLL for (uint r = 0; r < R; r++) x[r] = (size_t)((first + r) / a.per_row) * a.x_stride;
  const uint scales = is_int4 ? scale_type(a, matrix) : 0;
  for (uint block = begin; block < end; block++) {
    device const uchar* from = matrix + ((size_t)tile * a.k_blocks + block) * bytes;
    const float2 scale = is_int4 ? group_scale(a, matrix, scales, tile, block, lane) : float2(0.0f, 0.0f);
    for (uint p = 0; p < FOURS; p++) {
      const float4 w = any_four_at(from, a.format, p, lane, scale);
      const uint k = block * BLOCK_K + 4 * p;
      UNROLL for (uint r = 0; r < R; r++) {
        if (first + r >= a.rows) continue;
        UNROLL for (uint j = 0; j < 4; j++) {
          if (k + j < a.k) sums[r] = fma(load(a.x, x[r] + k + j, a.x_type), w[j], sums[r]);
        }
      }
    }
  }
}

template <uint R>
[[kernel, max_total_threads_per_threadgroup(512)]] void any_rows(constant LinearArgs& a [[buffer(0)]],
                                                                uint2 at [[threadgroup_position_in_grid]],
                                                                uint part [[simdgroup_index_in_threadgroup]],
                                                                uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float parts[MAX_PARTS * R * TILE_N];
  const uint first = at.x * R, tile = at.y;
  // Rows of a threadgroup share their matrix: where they need not, it has one.
  device const uchar* matrix = matrix_of_row(a, first);
  if (!matrix) return;
  float sums[R];
  UNROLL for (uint r = 0; r < R; r++) sums[r] = 0.0f;
  sum_part<R>(a, matrix, tile, part, lane, first, sums);
  UNROLL for (uint r = 0; r < R; r++) parts[(part * R + r) * TILE_N + lane] = sums[r];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint feature = tile * TILE_N + lane;
  for (uint r = part; r < R; r += a.parts) {
    if (first + r >= a.rows || feature >= a.n) continue;
    float sum = 0.0f;
    for (uint p = 0; p < a.parts; p++) sum += parts[(p * R + r) * TILE_N + lane];
    put(a, matrix, a.format == FORMAT_INT8 || a.format == FORMAT_FP8, first + r, feature, sum);
  }
}

template [[host_name("linear_any")]] [[kernel]] decltype(any_rows<4>) any_rows<4>;

// Rows that differ in their matrix.
template [[host_name("grouped_any")]] [[kernel]] decltype(any_rows<1>) any_rows<1>;

// Linear layers of one to four rows: bound by the bytes of the weights.
//
// A threadgroup has 32 features, each of its SIMD-groups one part of k, each lane one feature: a sum is one lane's chain, nothing
// is added across lanes, and every load of weights is 512 bytes in a row, several of them under way per SIMD-group before the
// first is multiplied. All lanes want the same activations: one small transaction, from L1 after the first. At the end the
// SIMD-groups hand their sums over through threadgroup memory and the parts are added in order: see linear.h.
//
// Per weight: an fma for each row, and what unpacking costs: 1 instruction for 16-bit floats, some 4 for int4. M2 has room for
// some 18 per byte of memory, so that all formats stay bound by bytes.
//
// Bytes: the matrix once, activations once per threadgroup.
// threadgroups = features / 32, threads = 32 parts.
#pragma once
#include "linear.h"

// The vectors that a lane loads ahead: four to eight.
template <class F> struct Depth {
  enum : uint { BLOCKS = F::FOURS_OF_VECTOR == 2 ? 2 : 4 };
};

// Element `k` of 32 activations.
template <class X> DEVICE float element(thread const Vector (&x)[4], uint k) {
  const float2 pair = X::unpack(x[k / 8][k % 8 / 2]);
  return k % 2 ? pair.y : pair.x;
}

// The row of activations that a row of the output is made of.
DEVICE uint x_row(constant LinearArgs& a, uint row) { return row == NO_ROW ? NO_ROW : row / a.per_row; }

// Adds the products of a block: of a lane's feature with each row of activations.
template <class X, class F, uint R>
DEVICE void multiply_block(constant LinearArgs& a, thread const Vector (&vectors)[Block<F>::VECTORS], float2 scale, uint block,
                           thread const uint (&rows)[R], thread float (&sums)[R]) {
  float4 w[FOURS];
  UNROLL for (uint p = 0; p < FOURS; p++) w[p] = F::unpack(F::four(vectors[p / F::FOURS_OF_VECTOR], p), scale);
  UNROLL for (uint r = 0; r < R; r++) {
    if (rows[r] == NO_ROW) continue;
    Vector x[4];
    UNROLL for (uint v = 0; v < 4; v++) x[v] = load_x8(a, rows[r], block * BLOCK_K + 8 * v);
    UNROLL for (uint j = 0; j < 4; j++) {
      UNROLL for (uint p = 0; p < FOURS; p++) sums[r] = fma(element<X>(x, 4 * p + j), w[p][j], sums[r]);
    }
  }
}

// Rows of the output, of which some may be none. `parts` has room for 32 R sums of each part; a barrier must come before it is
// used again.
template <class X, class F, uint R>
DEVICE void few_rows(constant LinearArgs& a, device const uchar* matrix, uint tile, thread const uint (&rows)[R],
                     threadgroup float* parts, uint part, uint lane) {
  typedef Depth<F> D;
  uint x_rows[R];
  float sums[R];
  UNROLL for (uint r = 0; r < R; r++) {
    x_rows[r] = x_row(a, rows[r]);
    sums[r] = 0.0f;
  }
  const uint type = F::GROUP_SCALES ? scale_type(a, matrix) : 0;
  const uint begin = part * a.part_blocks, end = min(begin + a.part_blocks, a.k_blocks);
  for (uint first = begin; first < end; first += D::BLOCKS) {
    Vector vectors[D::BLOCKS][Block<F>::VECTORS];
    float2 scales[D::BLOCKS];
    UNROLL for (uint d = 0; d < D::BLOCKS; d++) {
      // Past the last block it is read again, and dropped.
      const uint block = min(first + d, end - 1);
      device const uint4* from = (device const uint4*)block_of<F>(a, matrix, tile, block) + lane;
      UNROLL for (uint v = 0; v < Block<F>::VECTORS; v++) vectors[d][v] = from[v * TILE_N];
      scales[d] = F::GROUP_SCALES ? group_scale(a, matrix, type, tile, block, lane) : float2(0.0f, 0.0f);
    }
    UNROLL for (uint d = 0; d < D::BLOCKS; d++) {
      if (first + d < end) multiply_block<X, F, R>(a, vectors[d], scales[d], first + d, x_rows, sums);
    }
  }
  UNROLL for (uint r = 0; r < R; r++) parts[(part * R + r) * TILE_N + lane] = sums[r];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint feature = tile * TILE_N + lane;
  UNROLL for (uint r = 0; r < R; r++) {
    if (r % a.parts != part || rows[r] == NO_ROW || feature >= a.n) continue;
    float sum = 0.0f;
    for (uint p = 0; p < a.parts; p++) sum += parts[(p * R + r) * TILE_N + lane];
    put(a, matrix, F::ROW_SCALES, rows[r], feature, sum);
  }
}

template <class X, class F, uint R>
[[kernel, max_total_threads_per_threadgroup(512)]] void linear_row(constant LinearArgs& a [[buffer(0)]],
                                                                  uint tile [[threadgroup_position_in_grid]],
                                                                  uint part [[simdgroup_index_in_threadgroup]],
                                                                  uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float parts[MAX_PARTS * R * TILE_N];
  uint rows[R];
  UNROLL for (uint r = 0; r < R; r++) rows[r] = r < a.rows ? r : NO_ROW;
  few_rows<X, F, R>(a, a.w, tile, rows, parts, part, lane);
}

// Linear layers of many rows, by matrices of 8 by 8: bound by arithmetic.
//
// A threadgroup of four SIMD-groups has 64 features and 64 rows, a SIMD-group 32 by 32: 16 multiplications for every 8 elements
// of k, with their sums and what earlier parts of k added up to in 64 registers. Activations of 64 elements of k at a time lie in
// threadgroup memory in the order that multiplications want them, so that each is read from L2 once per 64 features and read
// by a SIMD-group in whole rows of banks. Weights go from memory to registers, where they become f32: two SIMD-groups want the
// same ones, and the second finds them in L1.
//
// Threadgroups of 128 threads, so that three fit a core and one computes while another waits at its barriers. f32 operands: the
// multiplication runs at the same rate as with half on Apple7 to Apple9, bf16 needs no hardware, and every product is exact.
//
// Bytes: weights once per 64 rows, activations once per 64 features, from L2.  FLOPs: 2 n k rows, padded to tiles.
// threadgroups = (features / 64, rows / 64), threads = 128.
#pragma once
#include "linear_skinny.h"

// Features, rows and elements of k of a stage.
enum : uint { WIDE_N = 64, WIDE_ROWS = 64, STAGE_BLOCKS = 2 };

// Words of a stage: for each multiplication, 64 rows of 4 lanes' pairs of elements. Between the blocks there is room enough that
// eight lanes that store both meet different banks.
enum : uint { STAGE_STRIDE = 4 * WIDE_ROWS * 4 + 16, STAGE_WORDS = STAGE_BLOCKS * STAGE_STRIDE };

// Puts a lane's fours of a row where multiplications find them.
DEVICE void stage_x(threadgroup uint* stage, uint row, uint v, uint4 x) {
  threadgroup uint* to = stage + v / 4 * STAGE_STRIDE + row * 4 + v % 4;
  to[0 * 4 * WIDE_ROWS] = (x.x & 0xffff) | x.z << 16;
  to[1 * 4 * WIDE_ROWS] = x.x >> 16 | (x.z & 0xffff0000u);
  to[2 * 4 * WIDE_ROWS] = (x.y & 0xffff) | x.w << 16;
  to[3 * 4 * WIDE_ROWS] = x.y >> 16 | (x.w & 0xffff0000u);
}

// Adds the products of a block, 32 rows by 32 features: `stage` begins at the rows.
template <class X, class F>
DEVICE void multiply_stage(constant LinearArgs& a, device const uchar* matrix, uint type, uint tile, uint block,
                           threadgroup const uint* stage, uint lane, thread simdgroup_float8x8 (&sums)[4][4]) {
  const uint p = matrix_row(lane), mine = matrix_column(lane);
  device const uchar* from = block_of<F>(a, matrix, tile, block);
  typename F::Four first[4], second[4];
  float2 scale[4], next[4];
  UNROLL for (uint m = 0; m < 4; m++) {
    first[m] = four_at<F>(from, p, 8 * m + mine);
    second[m] = four_at<F>(from, p, 8 * m + mine + 1);
    scale[m] = next[m] = float2(0.0f, 0.0f);
    if (F::GROUP_SCALES) {
      scale[m] = group_scale(a, matrix, type, tile, block, 8 * m + mine);
      next[m] = group_scale(a, matrix, type, tile, block, 8 * m + mine + 1);
    }
  }
  UNROLL for (uint j = 0; j < 4; j++) {
    simdgroup_float8x8 left[4];
    UNROLL for (uint i = 0; i < 4; i++) {
      const float2 pair = X::unpack(stage[(j * WIDE_ROWS + 8 * i + p) * 4 + mine / 2]);
      set(left[i], pair.x, pair.y);
    }
    UNROLL for (uint m = 0; m < 4; m++) {
      simdgroup_float8x8 right;
      set(right, F::unpack(first[m], scale[m])[j], F::unpack(second[m], next[m])[j]);
      UNROLL for (uint i = 0; i < 4; i++) simdgroup_multiply_accumulate(sums[i][m], left[i], right, sums[i][m]);
    }
  }
}

// One tile of the output: rows `row_of[0 .. 64]`, of which some may be none, made of the rows `x_of[0 .. 64]` of activations, by
// the 64 features from `feature` on.
template <class X, class F>
DEVICE void tile_rows(constant LinearArgs& a, device const uchar* matrix, uint feature, threadgroup const uint* row_of,
                      threadgroup const uint* x_of, threadgroup uint* stage, uint index, uint group, uint lane) {
  const uint row0 = group / 2 * 32, type = F::GROUP_SCALES ? scale_type(a, matrix) : 0;
  // Past the last feature the last ones are multiplied again, and dropped.
  const uint tile = feature / TILE_N + group % 2, last = (a.n - 1) / TILE_N, from = min(tile, last);
  simdgroup_float8x8 sums[4][4], total[4][4];
  UNROLL for (uint i = 0; i < 16; i++) {
    set(sums[i / 4][i % 4], 0.0f, 0.0f);
    set(total[i / 4][i % 4], 0.0f, 0.0f);
  }
  uint left = a.part_blocks;
  for (uint first = 0; first < a.k_blocks; first += STAGE_BLOCKS) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (uint s = 0; s < WIDE_ROWS * 4 * STAGE_BLOCKS / 128; s++) {
      const uint i = 128 * s + index, place = i / (4 * STAGE_BLOCKS), v = i % (4 * STAGE_BLOCKS);
      stage_x(stage, place, v, load_x8(a, x_of[place], first * BLOCK_K + 8 * v));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint end = min(first + STAGE_BLOCKS, a.k_blocks);
    for (uint block = first; block < end; block++) {
      threadgroup const uint* mine = stage + (block - first) * STAGE_STRIDE + row0 * 4;
      multiply_stage<X, F>(a, matrix, type, from, block, mine, lane, sums);
      if (--left > 0 && block + 1 < a.k_blocks) continue;
      left = a.part_blocks;
      UNROLL for (uint i = 0; i < 4; i++) {
        UNROLL for (uint m = 0; m < 4; m++) {
          set(total[i][m], total[i][m].thread_elements()[0] + sums[i][m].thread_elements()[0],
              total[i][m].thread_elements()[1] + sums[i][m].thread_elements()[1]);
          set(sums[i][m], 0.0f, 0.0f);
        }
      }
    }
  }
  UNROLL for (uint i = 0; i < 4; i++) {
    const uint row = row_of[row0 + 8 * i + matrix_row(lane)];
    UNROLL for (uint m = 0; m < 4; m++) {
      UNROLL for (uint e = 0; e < 2; e++) {
        const uint at = tile * TILE_N + 8 * m + matrix_column(lane) + e;
        if (row != NO_ROW && at < a.n) put(a, matrix, F::ROW_SCALES, row, at, total[i][m].thread_elements()[e]);
      }
    }
  }
}

// Row tiles whose threadgroups follow each other, so that those which run at the same time share features: a matrix that no cache
// holds is read once for so many.
enum : uint { PANEL = 8 };

// The tile (features, rows) of a threadgroup: panel after panel, within one feature after feature.
DEVICE uint2 panel_place(uint2 at, uint feature_tiles, uint row_tiles) {
  const uint number = at.y * feature_tiles + at.x, panel = number / (PANEL * feature_tiles);
  const uint within = number - panel * PANEL * feature_tiles, height = min(row_tiles - panel * PANEL, (uint)PANEL);
  return uint2(within / height, panel * PANEL + within % height);
}

template <class X, class F>
[[kernel, max_total_threads_per_threadgroup(128)]] void linear_tile(constant LinearArgs& a [[buffer(0)]],
                                                                   uint2 at [[threadgroup_position_in_grid]],
                                                                   uint index [[thread_index_in_threadgroup]],
                                                                   uint group [[simdgroup_index_in_threadgroup]],
                                                                   uint lane [[thread_index_in_simdgroup]]) {
  threadgroup uint stage[STAGE_WORDS];
  threadgroup uint row_of[WIDE_ROWS];
  const uint2 place = panel_place(at, (a.n - 1) / WIDE_N + 1, (a.rows - 1) / WIDE_ROWS + 1);
  const uint row = place.y * WIDE_ROWS + index;
  if (index < WIDE_ROWS) row_of[index] = row < a.rows ? row : NO_ROW;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  tile_rows<X, F>(a, a.w, place.x * WIDE_N, row_of, row_of, stage, index, group, lane);
}

// Many rows that differ in their matrix, sorted by it: `tiles` holds a group, a first place and a number of rows, three words
// for each tile there may be, group -1 past the last; behind them the rows, in order of groups. group_rows makes it.
// threadgroups = (features / 64, tiles).
template <class X, class F>
[[kernel, max_total_threads_per_threadgroup(128)]] void grouped_tile(constant LinearArgs& a [[buffer(0)]],
                                                                    uint2 at [[threadgroup_position_in_grid]],
                                                                    uint index [[thread_index_in_threadgroup]],
                                                                    uint group [[simdgroup_index_in_threadgroup]],
                                                                    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup uint stage[STAGE_WORDS];
  threadgroup uint row_of[WIDE_ROWS], x_of[WIDE_ROWS];
  device const int* mine = a.tiles + 3 * at.y;
  if (mine[0] < 0) return;
  device const int* list = a.tiles + 3 * a.num_tiles + mine[1];
  if (index < WIDE_ROWS) {
    row_of[index] = index < (uint)mine[2] ? (uint)list[index] : NO_ROW;
    x_of[index] = x_row(a, row_of[index]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  tile_rows<X, F>(a, matrix_of(a, (uint)mine[0]), at.x * WIDE_N, row_of, x_of, stage, index, group, lane);
}

// Linear layers of few rows, by matrices of 8 by 8: bound by the bytes of the weights or, from some 16 rows on and of int4 from
// the first, by arithmetic.
//
// A SIMD-group has 8 MT features and up to 8 NT rows, and one part of k; activations are the first operand, weights the second,
// and both come from device memory as the multiplication wants them, without threadgroup memory, transposition or barriers:
// see weights.h. At the end the SIMD-groups hand their sums over, eight rows at a time, and the parts are added in order.
//
// Bytes: the matrix once per row tile, activations once per threadgroup.  FLOPs: 2 n k rows, padded to multiples of 8 rows.
// threadgroups = (features / (8 MT), rows / (8 NT)), threads = 32 parts.
#pragma once
#include "linear_row.h"

// The operands of the four multiplications of a block, of eight rows: the lane's two fours of its row.
template <class X> DEVICE void rows_of_x(thread simdgroup_float8x8 (&left)[4], uint4 x) {
  const float2 a = X::unpack(x.x), b = X::unpack(x.y), c = X::unpack(x.z), d = X::unpack(x.w);
  set(left[0], a.x, c.x);
  set(left[1], a.y, c.y);
  set(left[2], b.x, d.x);
  set(left[3], b.y, d.y);
}

// What a lane has of a block of eight features: four `p` of two of them, as f32.
struct Pair {
  float4 first, second;
};

// Of the features from `f` on, a multiple of 8.
template <class F>
DEVICE Pair load_pair(constant LinearArgs& a, device const uchar* matrix, uint type, uint tile, uint block, uint f, uint lane) {
  const uint p = matrix_row(lane), mine = f + matrix_column(lane);
  device const uchar* from = block_of<F>(a, matrix, tile, block);
  float2 scale = float2(0.0f, 0.0f), next = scale;
  if (F::GROUP_SCALES) {
    scale = group_scale(a, matrix, type, tile, block, mine);
    next = group_scale(a, matrix, type, tile, block, mine + 1);
  }
  Pair pair;
  pair.first = F::unpack(four_at<F>(from, p, mine), scale);
  pair.second = F::unpack(four_at<F>(from, p, mine + 1), next);
  return pair;
}

// Rows of the output: `rows` are those that a lane loads activations of, number `matrix_row(lane)` of each eight. The features
// are those from `f` on of a tile. `buffer` has room for 64 MT sums of each part; a barrier must come before it is used again.
template <class X, class F, uint MT, uint NT>
DEVICE void skinny_rows(constant LinearArgs& a, device const uchar* matrix, uint tile, uint f, thread const uint (&rows)[NT],
                        threadgroup float* buffer, uint part, uint lane) {
  simdgroup_float8x8 sums[NT][MT];
  UNROLL for (uint i = 0; i < NT * MT; i++) set(sums[i / MT][i % MT], 0.0f, 0.0f);
  uint x_rows[NT];
  UNROLL for (uint i = 0; i < NT; i++) x_rows[i] = x_row(a, rows[i]);
  const uint t = matrix_column(lane) / 2, type = F::GROUP_SCALES ? scale_type(a, matrix) : 0;
  const uint begin = part * a.part_blocks, end = min(begin + a.part_blocks, a.k_blocks);
  for (uint block = begin; block < end; block++) {
    simdgroup_float8x8 left[NT][4];
    UNROLL for (uint i = 0; i < NT; i++) rows_of_x<X>(left[i], load_x8(a, x_rows[i], block * BLOCK_K + 8 * t));
    UNROLL for (uint m = 0; m < MT; m++) {
      const Pair pair = load_pair<F>(a, matrix, type, tile, block, f + 8 * m, lane);
      UNROLL for (uint j = 0; j < 4; j++) {
        simdgroup_float8x8 right;
        set(right, pair.first[j], pair.second[j]);
        UNROLL for (uint i = 0; i < NT; i++) simdgroup_multiply_accumulate(sums[i][m], left[i][j], right, sums[i][m]);
      }
    }
  }

  const uint at = matrix_row(lane) * 8 * MT + matrix_column(lane), size = 64 * MT;
  UNROLL for (uint i = 0; i < NT; i++) {
    if (i > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (uint m = 0; m < MT; m++) {
      buffer[part * size + at + 8 * m] = sums[i][m].thread_elements()[0];
      buffer[part * size + at + 8 * m + 1] = sums[i][m].thread_elements()[1];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = part * 32 + lane; j < size; j += a.parts * 32) {
      const uint number = j / (8 * MT), feature = tile * TILE_N + f + j % (8 * MT);
      // The row of a number is known to a lane that has that row of matrices.
      const uint row = simd_shuffle(rows[i], (ushort)((number & 4) * 4 + number % 4 * 2));
      if (row == NO_ROW || feature >= a.n) continue;
      float sum = 0.0f;
      for (uint p = 0; p < a.parts; p++) sum += buffer[p * size + j];
      put(a, matrix, F::ROW_SCALES, row, feature, sum);
    }
  }
}

template <class X, class F, uint MT, uint NT>
[[kernel, max_total_threads_per_threadgroup(512)]] void linear_skinny(constant LinearArgs& a [[buffer(0)]],
                                                                     uint2 at [[threadgroup_position_in_grid]],
                                                                     uint part [[simdgroup_index_in_threadgroup]],
                                                                     uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float buffer[MAX_PARTS * 64 * MT];
  uint rows[NT];
  UNROLL for (uint i = 0; i < NT; i++) {
    const uint row = at.y * 8 * NT + 8 * i + matrix_row(lane);
    rows[i] = row < a.rows ? row : NO_ROW;
  }
  const uint feature = at.x * 8 * MT;
  skinny_rows<X, F, MT, NT>(a, a.w, feature / TILE_N, feature % TILE_N, rows, buffer, part, lane);
}

// Most rows of the kernels below.
enum : uint { SKINNY_GROUPED_ROWS = 128 };

// Threadgroup memory of the kernels below.
struct GroupList {
  int groups[SKINNY_GROUPED_ROWS];
  uint is_first[SKINNY_GROUPED_ROWS];
  uint list[SKINNY_GROUPED_ROWS];
};

// Finds matrix number `which` of the distinct ones among those of the rows, or -1, and lists the rows that go through it,
// `count` of them. Ends with a barrier.
DEVICE int find_group(constant LinearArgs& a, threadgroup GroupList& shared, uint which, uint index, uint lane, thread uint& count) {
  const uint threads = a.parts * 32;
  for (uint i = index; i < SKINNY_GROUPED_ROWS; i += threads) {
    const int group = i < a.rows ? a.groups[i] : -1;
    shared.groups[i] = group < (int)a.count ? group : -1;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < SKINNY_GROUPED_ROWS; i += threads) {
    bool first = shared.groups[i] >= 0;
    for (uint j = 0; j < i && first; j++) first = shared.groups[j] != shared.groups[i];
    shared.is_first[i] = first;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // Every SIMD-group finds this for itself.
  int group = -1;
  uint before = 0;
  for (uint i = lane; i < SKINNY_GROUPED_ROWS; i += 32) {
    const uint firsts = ballot(shared.is_first[i] != 0);
    const uint place = before + popcount(firsts & ((1u << lane) - 1));
    const uint found = ballot(shared.is_first[i] != 0 && place == which);
    if (found) group = shared.groups[i - lane + ctz(found)];
    before += popcount(firsts);
  }
  count = 0;
  for (uint i = lane; i < SKINNY_GROUPED_ROWS && group >= 0; i += 32) {
    const uint mine = ballot(shared.groups[i] == group);
    if (index < 32 && shared.groups[i] == group) shared.list[count + popcount(mine & ((1u << lane) - 1))] = i;
    count += popcount(mine);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return group;
}

// Few rows that differ in their matrix. Threadgroup (i, j) finds the j-th distinct matrix and reads its 32 features of that once
// for each 8 NT of the rows that go through it: as long as no more share one, a matrix is read once however many rows need it.
// threadgroups = (features / 32, min(rows, count)), threads = 32 parts.
template <class X, class F, uint NT>
[[kernel, max_total_threads_per_threadgroup(512)]] void grouped_skinny(constant LinearArgs& a [[buffer(0)]],
                                                                      uint2 at [[threadgroup_position_in_grid]],
                                                                      uint index [[thread_index_in_threadgroup]],
                                                                      uint part [[simdgroup_index_in_threadgroup]],
                                                                      uint lane [[thread_index_in_simdgroup]]) {
  threadgroup GroupList shared;
  threadgroup float buffer[MAX_PARTS * 256];
  uint count = 0;
  const int group = find_group(a, shared, at.y, index, lane, count);
  if (group < 0) return;
  for (uint first = 0; first < count; first += 8 * NT) {
    uint rows[NT];
    UNROLL for (uint i = 0; i < NT; i++) {
      const uint place = first + 8 * i + matrix_row(lane);
      rows[i] = place < count ? shared.list[place] : NO_ROW;
    }
    skinny_rows<X, F, 4, NT>(a, matrix_of(a, group), at.x, 0, rows, buffer, part, lane);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// The same for rows of which few share a matrix, made of fma: up to four at a time.
template <class X, class F>
[[kernel, max_total_threads_per_threadgroup(512)]] void grouped_row(constant LinearArgs& a [[buffer(0)]],
                                                                   uint2 at [[threadgroup_position_in_grid]],
                                                                   uint index [[thread_index_in_threadgroup]],
                                                                   uint part [[simdgroup_index_in_threadgroup]],
                                                                   uint lane [[thread_index_in_simdgroup]]) {
  threadgroup GroupList shared;
  threadgroup float parts[MAX_PARTS * 4 * TILE_N];
  uint count = 0;
  const int group = find_group(a, shared, at.y, index, lane, count);
  if (group < 0) return;
  device const uchar* matrix = matrix_of(a, group);
  for (uint first = 0; first < count; first += 4) {
    if (count - first == 1) {
      const uint rows[1] = {shared.list[first]};
      few_rows<X, F, 1>(a, matrix, at.x, rows, parts, part, lane);
    } else {
      uint rows[4];
      UNROLL for (uint r = 0; r < 4; r++) rows[r] = first + r < count ? shared.list[first + r] : NO_ROW;
      few_rows<X, F, 4>(a, matrix, at.x, rows, parts, part, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// Attention over the paged cache for heads of 64, by SIMD-group matrices.
//
// # The arithmetic
// Two kernels answer the same queries with the same bits, so that a token's answer does not depend on its batch or on how its
// row was cut into steps. A context is cut into tiles of 64 positions, from position 0 on. Of a tile and a query:
//
//   x[u] = scale log2(e) (q . k[u]), lowest where the query does not see u;  m = max x;  p[u] = 2^(x[u] - m)
//   l = sum p;  o = sum p[u] v[u], from zero on
//
// and tiles join from left to right: M' = max(M, m), a = 2^(M - M'), b = 2^(m - M'), L' = L a + l b, O' = O a + o b. What a
// query does not see adds exact zeros, and a tile it sees nothing of changes nothing, whoever else is in the threadgroup.
//
// Of an 8-bit cache codes are numbers of 16-bit floats too; a key's scale multiplies its score, a value's scale its share.
//
// # Who does what
// A SIMD-group has 8 queries by 64 positions, as the fragments of `attention.h`: all of a score, a share or an answer that a
// lane has is of one query, its row.
#pragma once
#include "attention.h"

constant constexpr int HEAD = 64, TILE = 64, STEPS = HEAD / 8, FRAGMENTS = TILE / 8;
// SIMD-groups of a threadgroup.
constant constexpr uint PAGED_SIMDGROUPS = 8;

// What a cache holds: floats of the queries' type, or codes.
enum : int { FLOATS, INT8_CODES, FP8_CODES };

template <int KIND>
DEVICE uint bytes_of(uint elements) {
  return KIND == FLOATS ? 2 * elements : elements;
}

// COUNT elements from `p` on: floats at a multiple of 8 bytes, or codes at a multiple of 4. Zeros if they are not there.
template <typename T, int KIND, int COUNT>
DEVICE void read_cached(device const uchar* p, bool is_there, thread T (&x)[COUNT]) {
  UNROLL
  for (int i = 0; i < COUNT; i++) x[i] = T(0.0f);
  if (!is_there) return;
  if (KIND == FLOATS) {
    read((device const vec<T, 4>*)p, x);
    return;
  }
  UNROLL
  for (int i = 0; i < COUNT / 4; i++) {
    const uint codes = ((device const uint*)p)[i];
    UNROLL
    for (int j = 0; j < 4; j++) {
      const uchar code = uchar(codes >> 8 * j);
      x[4 * i + j] = T(KIND == FP8_CODES ? from_fp8(code) : float(as_type<char>(code)));
    }
  }
}

// The scale of a head of a row of codes.
DEVICE float scale_at(device const uchar* row, uint kv_heads, uint kv_head) {
  return *(device const float*)(row + kv_heads * HEAD + kv_head * 4);
}

// Eight queries as operands, and what the lane's row of them sees: nothing, if it is not there.
template <typename T>
struct Rows {
  simdgroup_matrix<T, 8, 8> q[STEPS];
  uint visible;
  uint longest, shortest;  // of all that are there

  void load(constant PagedAttentionArgs& a, Queries queries, uint kv_head, uint first, uint lane) {
    const uint i = first + row_in_fragment(lane);
    const bool is_there = queries.first + i < queries.end;
    T x[2 * STEPS];
    UNROLL
    for (int j = 0; j < 2 * STEPS; j++) x[j] = T(0.0f);
    visible = 0;
    if (is_there) {
      const uint token = queries.token(i);
      device const T* from = (device const T*)a.q + size_t(token) * a.q_stride + queries.head(i, kv_head) * HEAD;
      read((device const vec<T, 4>*)(from + STEPS * column_in_fragment(lane)), x);
      visible = visible_to(a, token);
    }
    UNROLL
    for (int s = 0; s < STEPS; s++) q[s] = fragment_of(x[s], x[STEPS + s]);
    longest = simd_max(visible);
    shortest = simd_min(is_there ? visible : 0xffffffffu);
  }
};

// The scores of the lane's row with two keys, of which the lane has `STEPS` elements each.
template <typename T>
DEVICE void score(thread const Rows<T>& rows, thread const T (&one)[STEPS], thread const T (&two)[STEPS], thread float (&scores)[2]) {
  simdgroup_matrix<float, 8, 8> sum = zero_fragment();
  UNROLL
  for (int s = 0; s < STEPS; s++) simdgroup_multiply_accumulate(sum, rows.q[s], fragment_of(one[s], two[s]), sum);
  scores[0] = sum.thread_elements()[0];
  scores[1] = sum.thread_elements()[1];
}

// Scores become shares relative to the largest of the tile, which begins at position `first`; `there`: which of its positions
// are in a block, a bit each; `factors`: what turns scores into exponents.
DEVICE void soften(thread float (&scores)[FRAGMENTS][2], thread const float (&factors)[FRAGMENTS][2], bool is_whole, uint visible, uint first,
                   uint2 there, uint column, thread float& largest, thread float& sum) {
  largest = LOWEST;
  UNROLL
  for (int i = 0; i < FRAGMENTS; i++) {
    UNROLL
    for (int j = 0; j < 2; j++) {
      float x = scores[i][j] * factors[i][j];
      if (!is_whole) {
        const uint at = 8 * i + column + j;
        const bool is_seen = first + at < visible && (i < FRAGMENTS / 2 ? there.x : there.y) >> at % 32 & 1;
        x = is_seen ? x : LOWEST;
      }
      scores[i][j] = x;
      largest = max(largest, x);
    }
  }
  largest = row_max(largest);
  const float base = largest == LOWEST ? 0.0f : largest;
  sum = 0.0f;
  UNROLL
  for (int i = 0; i < FRAGMENTS; i++) {
    UNROLL
    for (int j = 0; j < 2; j++) {
      scores[i][j] = fast::exp2(scores[i][j] - base);
      sum += scores[i][j];
    }
  }
  sum = row_sum(sum);
}

// Adds what the lane's row gives of eight values, of which the lane has the row's `2 STEPS` elements.
template <typename T>
DEVICE void weigh(thread const float (&shares)[2], thread const T (&value)[2 * STEPS], thread simdgroup_matrix<float, 8, 8> (&sums)[STEPS]) {
  const simdgroup_matrix<float, 8, 8> p = fragment_of(shares[0], shares[1]);
  UNROLL
  for (int s = 0; s < STEPS; s++) simdgroup_multiply_accumulate(sums[s], p, fragment_of(value[s], value[STEPS + s]), sums[s]);
}

// What joins a tile to those before it.
struct Join {
  float old_factor, new_factor;

  float of(float old, float tile) const { return fma(old, old_factor, tile * new_factor); }
};

// Takes a tile's largest score and sum to those before it.
DEVICE Join join(thread float& largest, thread float& sum, float tile_largest, float tile_sum) {
  const float top = max(largest, tile_largest), base = top == LOWEST ? 0.0f : top;
  Join join;
  join.old_factor = fast::exp2(largest - base);
  join.new_factor = fast::exp2(tile_largest - base);
  sum = join.of(sum, tile_sum);
  largest = top;
  return join;
}

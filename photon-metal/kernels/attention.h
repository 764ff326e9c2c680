// What the attentions share: arguments, who answers which queries, fragments.
#pragma once
#include "elements.h"

// A product and a sum are fused where `fma` is written and nowhere else.
#pragma STDC FP_CONTRACT OFF

constant constexpr float LOG2_E = 1.44269504088896340736f;
// Below every score, and a number: `fast::exp2` promises nothing of infinities.
constant constexpr float LOWEST = -3.402823466e38f;

struct AttentionArgs {
  device void* out;        // [num_seqs seq_len, heads head_dim], stride out_stride
  device const void* qkv;  // [num_seqs seq_len, 3 heads head_dim], stride qkv_stride: q, k, v
  uint seq_len, heads, head_dim;
  uint out_stride, qkv_stride;
  uint qkv_type;  // and that of `out`
  float scale;
  uint padding;
};

struct PagedAttentionArgs {
  device void* out;                 // [tokens, heads head_dim], stride out_stride
  device const void* q;             // [tokens, heads head_dim], stride q_stride
  device const uchar* k_cache;      // [slots], rows of k_stride bytes: `photon_core::kv`
  device const uchar* v_cache;      // likewise
  device const int* block_tables;   // [rows, max_blocks]
  device const int* row_starts;     // [rows + 1]
  device const int* visible;        // [tokens]
  uint rows, tokens;
  uint max_blocks, num_blocks, block_size;
  uint heads, kv_heads, head_dim;
  uint out_stride, q_stride, k_stride, v_stride;
  uint q_type, cache_type;  // `out` is of the type of q
  uint least, most;  // rows with this many queries for a head of keys are answered, the others by another launch
  float scale;
  uint padding;
};

// Some queries of one row that share a head of keys: its tokens, and for each the heads of the group, one after the other.
struct Queries {
  uint row, first_token, group;
  uint first, end;  // which of the row's queries

  uint token(uint i) const { return first_token + (first + i) / group; }
  uint head(uint i, uint kv_head) const { return kv_head * group + (first + i) % group; }
};

// The queries of the threadgroup that has this index among those of `per` queries each. Every lane of a SIMD-group must call.
// False if there are none.
DEVICE bool find_queries(constant PagedAttentionArgs& a, uint index, uint per, uint lane, thread Queries& queries) {
  const uint group = a.heads / a.kv_heads;
  for (uint r0 = 0; r0 < a.rows; r0 += 32) {
    uint start = 0, count = 0;
    if (r0 + lane < a.rows) {
      start = uint(clamp(a.row_starts[r0 + lane], 0, int(a.tokens)));
      const uint end = uint(clamp(a.row_starts[r0 + lane + 1], 0, int(a.tokens)));
      count = end > start ? (end - start) * group : 0;
      if (count < a.least || count > a.most) count = 0;
    }
    const uint blocks = (count + per - 1) / per;
    const uint sum = simd_prefix_inclusive_sum(blocks);
    const uint passed = ballot(sum > index);
    if (passed != 0) {
      const ushort found = ushort(ctz(passed));
      queries.row = r0 + found;
      queries.group = group;
      queries.first_token = simd_shuffle(start, found);
      queries.first = (index - simd_shuffle(sum - blocks, found)) * per;
      queries.end = min(queries.first + per, simd_shuffle(count, found));
      return true;
    }
    index -= simd_shuffle(sum, ushort(31));
  }
  return false;
}

// How many first positions a token sees; what lies past the table is in no block.
DEVICE uint visible_to(constant PagedAttentionArgs& a, uint token) {
  const int visible = a.visible[token];
  return visible < 0 ? 0 : min(uint(visible), a.max_blocks * a.block_size);
}

// The cache row of position `u`, below `max_blocks * block_size`; -1 if its block is bad.
DEVICE int slot_of(constant PagedAttentionArgs& a, uint row, uint u) {
  const uint in_row = u / a.block_size;
  const uint block = uint(a.block_tables[size_t(row) * a.max_blocks + in_row]);
  return block < a.num_blocks ? int(block * a.block_size + (u - in_row * a.block_size)) : -1;
}

// # Fragments
// Of an 8x8 matrix a lane has two neighbors of a row, at `row_in_fragment` and `column_in_fragment`. The order of k within a
// multiplication is ours to choose, and so is the order of columns: of a head, multiplication `s` takes elements `E k + s`,
// and fragment `s` of the answers has columns `E n + s`. So a lane has E successive elements of two keys, and 2 E successive
// elements of a query, a value and an answer: it reads and writes whole vectors, and no fragment is transposed.
//
// The rest of a head, eight elements behind the first 8 E, is in its natural order.
DEVICE uint row_in_fragment(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
DEVICE uint column_in_fragment(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <typename T>
DEVICE simdgroup_matrix<T, 8, 8> fragment_of(T first, T second) {
  simdgroup_matrix<T, 8, 8> m;
  m.thread_elements()[0] = first;
  m.thread_elements()[1] = second;
  return m;
}

DEVICE simdgroup_matrix<float, 8, 8> zero_fragment() { return fragment_of(0.0f, 0.0f); }

// Of the lanes that have a row of a fragment, in all of them.
DEVICE float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(8)));
}

DEVICE float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  x += simd_shuffle_xor(x, ushort(8));
  return x;
}

// COUNT elements from `p` on, which counts in vectors of four.
template <typename T, int COUNT, typename P>
DEVICE void read(P p, thread T (&x)[COUNT]) {
  UNROLL
  for (int i = 0; i < COUNT / 4; i++) {
    const vec<T, 4> v = p[i];
    UNROLL
    for (int j = 0; j < 4; j++) x[4 * i + j] = v[j];
  }
}

// COUNT elements to `p`, likewise.
template <typename T, int COUNT, typename P>
DEVICE void write(thread const T (&x)[COUNT], P p) {
  UNROLL
  for (int i = 0; i < COUNT / 4; i++) {
    vec<T, 4> v;
    UNROLL
    for (int j = 0; j < 4; j++) v[j] = x[4 * i + j];
    p[i] = v;
  }
}

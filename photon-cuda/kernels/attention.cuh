// What the attentions share: their arguments, and who answers which queries.
#pragma once
#include "elements.cuh"

constexpr float LOG2_E = 1.44269504088896340736f;

struct AttentionArgs {
  void* out;        // [num_seqs seq_len, heads head_dim], stride out_stride
  const void* qkv;  // [num_seqs seq_len, 3 heads head_dim], stride qkv_stride: q, k, v
  uint32_t seq_len, heads, head_dim;
  uint32_t out_stride, qkv_stride;
  uint32_t type;
  float scale;
  uint32_t padding;
};

struct PagedAttentionArgs {
  void* out;                    // [tokens, heads head_dim], stride out_stride
  const void* q;                // [tokens, heads head_dim], stride q_stride
  const uint8_t* k_cache;       // [slots], rows of k_stride bytes: `photon_core::kv`
  const uint8_t* v_cache;       // likewise
  const int32_t* block_tables;  // [rows, max_blocks]
  const int32_t* row_starts;    // [rows + 1]
  const int32_t* visible;       // [tokens]
  float* partials;              // of kernels that split contexts: room for what their parts found
  uint32_t* counters;           // and for how many parts are done, zero
  uint32_t rows, tokens;
  uint32_t max_blocks, num_blocks, block_size;
  uint32_t heads, kv_heads, head_dim;
  uint32_t out_stride, q_stride, k_stride, v_stride;
  uint32_t type, cache_type;
  uint32_t least, most;  // rows with this many queries for a head of keys are answered, the others by another launch
  float scale;
  uint32_t max_tiles;  // of partials, for a token and head
};

// Some queries of one row that share a head of keys: its tokens, and for each the heads of the group, one after the other.
struct Queries {
  uint32_t row, first_token, group;
  uint32_t first, end;  // which of the row's queries

  DEVICE uint32_t token(uint32_t i) const { return first_token + (first + i) / group; }
  DEVICE uint32_t head(uint32_t i, uint32_t kv_head) const { return kv_head * group + (first + i) % group; }
};

// The queries of the block that has this index among those of `per` queries each. Every lane of a warp must call. False if
// there are none.
DEVICE bool find_queries(const PagedAttentionArgs& a, uint32_t index, uint32_t per, Queries& queries) {
  const uint32_t lane = threadIdx.x % 32, group = a.heads / a.kv_heads;
  for (uint32_t r0 = 0; r0 < a.rows; r0 += 32) {
    uint32_t start = 0, count = 0;
    if (r0 + lane < a.rows) {
      start = (uint32_t)min(max(a.row_starts[r0 + lane], 0), (int)a.tokens);
      const uint32_t end = (uint32_t)min(max(a.row_starts[r0 + lane + 1], 0), (int)a.tokens);
      count = end > start ? (end - start) * group : 0;
      if (count < a.least || count > a.most) count = 0;
    }
    const uint32_t blocks = (count + per - 1) / per;
    uint32_t sum = blocks;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const uint32_t before = __shfl_up_sync(0xffffffff, sum, lanes);
      if (lane >= lanes) sum += before;
    }
    const uint32_t passed = __ballot_sync(0xffffffff, sum > index);
    if (passed != 0) {
      const int found = __ffs((int)passed) - 1;
      queries.row = r0 + found;
      queries.group = group;
      queries.first_token = __shfl_sync(0xffffffff, start, found);
      queries.first = (index - __shfl_sync(0xffffffff, sum - blocks, found)) * per;
      queries.end = min(queries.first + per, __shfl_sync(0xffffffff, count, found));
      return true;
    }
    index -= __shfl_sync(0xffffffff, sum, 31);
  }
  return false;
}

// How many first positions a token sees; what lies past the table is in no block.
DEVICE uint32_t visible_to(const PagedAttentionArgs& a, uint32_t token) {
  const int32_t visible = a.visible[token];
  return visible < 0 ? 0 : min((uint32_t)visible, a.max_blocks * a.block_size);
}

// The cache row of position `u`, below `max_blocks * block_size`; -1 if its block is bad.
DEVICE int32_t slot_of(const PagedAttentionArgs& a, uint32_t row, uint32_t u) {
  const uint32_t in_row = u / a.block_size;
  const uint32_t block = (uint32_t)a.block_tables[(size_t)row * a.max_blocks + in_row];
  return block < a.num_blocks ? (int32_t)(block * a.block_size + (u - in_row * a.block_size)) : -1;
}

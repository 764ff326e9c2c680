// Attention over the paged cache where rows have many queries: prompts.
//
// A threadgroup has 64 queries of one row and head of keys, eight a SIMD-group, in registers. Tiles of 64 positions go through
// threadgroup memory, codes widened on the way. Positions beyond what the threadgroup's queries see are not read, and scores are
// only masked in tiles that need it: a picture's 730 positions see each other both ways because `visible` says so.
//
// FLOPs: 4 * 64 for a query, head and position it sees; 740 tokens of 32 heads are 4.5 G. For the 16 multiplications of eight
// queries and keys a lane reads 4 vectors of keys and 4 of values. 19 KiB of threadgroup memory.
#include "paged_attention.h"

constant constexpr uint PROMPT_QUERIES = 8 * PAGED_SIMDGROUPS, PROMPT_THREADS = 32 * PAGED_SIMDGROUPS;
// Rows begin in different banks.
constant constexpr int STRIDE = HEAD + 8;

// The cache rows of tile `i`, two tiles of them being kept, and which there are: work of the first two SIMD-groups.
DEVICE void look_up(constant PagedAttentionArgs& a, uint row, uint i, uint len, uint thread_index, threadgroup int* slots,
                    threadgroup uint* theres) {
  if (thread_index >= uint(TILE)) return;
  const uint u = i * TILE + thread_index;
  const int slot = u < len ? slot_of(a, row, u) : -1;
  slots[i % 2 * TILE + thread_index] = slot;
  const uint there = ballot(slot >= 0);
  if (thread_index % 32 == 0) theres[i % 2 * 2 + thread_index / 32] = there;
}

// Puts a key and a value where the SIMD-groups look for them, zeros if there is no such row: a thread has 16 elements of each.
template <typename T, int KIND>
DEVICE void fetch(constant PagedAttentionArgs& a, int slot, uint kv_head, uint thread_index, threadgroup T* keys, threadgroup T* values,
                  threadgroup float* key_scales, threadgroup float* value_scales) {
  const uint position = thread_index / 4, part = thread_index % 4 * 16;
  device const uchar* k = a.k_cache + size_t(max(slot, 0)) * a.k_stride;
  device const uchar* v = a.v_cache + size_t(max(slot, 0)) * a.v_stride;
  const uint at = bytes_of<KIND>(kv_head * HEAD + part), to = position * STRIDE + part;
  T x[16];
  read_cached<T, KIND>(k + at, slot >= 0, x);
  write(x, (threadgroup vec<T, 4>*)(keys + to));
  read_cached<T, KIND>(v + at, slot >= 0, x);
  write(x, (threadgroup vec<T, 4>*)(values + to));
  if (KIND != FLOATS && part == 0) {
    key_scales[position] = slot < 0 ? 0.0f : scale_at(k, a.kv_heads, kv_head);
    value_scales[position] = slot < 0 ? 0.0f : scale_at(v, a.kv_heads, kv_head);
  }
}

template <typename T, int KIND>
[[kernel, max_total_threads_per_threadgroup(PROMPT_THREADS)]] void prompt(
    constant PagedAttentionArgs& a [[buffer(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup T keys[TILE * STRIDE];
  threadgroup T values[TILE * STRIDE];
  threadgroup float key_scales[TILE];
  threadgroup float value_scales[TILE];
  threadgroup int slots[2 * TILE];
  threadgroup uint theres[2 * 2];
  threadgroup uint lengths[PAGED_SIMDGROUPS];
  Queries queries;
  if (!find_queries(a, group.x, PROMPT_QUERIES, lane, queries)) return;
  const uint kv_head = group.y, row = row_in_fragment(lane), column = column_in_fragment(lane);
  Rows<T> rows;
  rows.load(a, queries, kv_head, 8 * simdgroup, lane);
  if (lane == 0) lengths[simdgroup] = rows.longest;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint len = simd_max(lengths[lane % PAGED_SIMDGROUPS]);
  const float exponent = a.scale * LOG2_E;
  look_up(a, queries.row, 0, len, thread_index, slots, theres);

  simdgroup_matrix<float, 8, 8> answer[STEPS];
  UNROLL
  for (int s = 0; s < STEPS; s++) answer[s] = zero_fragment();
  float largest = LOWEST, sum = 0.0f;
  for (uint first = 0; first < len; first += TILE) {
    const uint tile = first / TILE;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    fetch<T, KIND>(a, slots[tile % 2 * TILE + thread_index / 4], kv_head, thread_index, keys, values, key_scales, value_scales);
    look_up(a, queries.row, tile + 1, len, thread_index, slots, theres);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (first >= rows.longest) continue;

    float scores[FRAGMENTS][2], factors[FRAGMENTS][2];
    UNROLL
    for (int i = 0; i < FRAGMENTS; i++) {
      const uint key = 8 * i + column;
      T one[STEPS], two[STEPS];
      read((threadgroup const vec<T, 4>*)(keys + key * STRIDE + STEPS * row), one);
      read((threadgroup const vec<T, 4>*)(keys + (key + 1) * STRIDE + STEPS * row), two);
      score(rows, one, two, scores[i]);
      UNROLL
      for (int j = 0; j < 2; j++) factors[i][j] = KIND == FLOATS ? exponent : key_scales[key + j] * exponent;
    }
    const uint2 there = uint2(theres[tile % 2 * 2], theres[tile % 2 * 2 + 1]);
    const bool is_whole = first + TILE <= rows.shortest && (there.x & there.y) == 0xffffffffu;
    float tile_largest, tile_sum;
    soften(scores, factors, is_whole, rows.visible, first, there, column, tile_largest, tile_sum);

    simdgroup_matrix<float, 8, 8> sums[STEPS];
    UNROLL
    for (int s = 0; s < STEPS; s++) sums[s] = zero_fragment();
    UNROLL
    for (int i = 0; i < FRAGMENTS; i++) {
      UNROLL
      for (int j = 0; j < 2; j++) {
        if (KIND != FLOATS) scores[i][j] *= value_scales[8 * i + column + j];
      }
      T value[2 * STEPS];
      read((threadgroup const vec<T, 4>*)(values + (8 * i + row) * STRIDE + STEPS * column), value);
      weigh(scores[i], value, sums);
    }
    const Join tiles = join(largest, sum, tile_largest, tile_sum);
    UNROLL
    for (int s = 0; s < STEPS; s++) {
      UNROLL
      for (int i = 0; i < 2; i++) answer[s].thread_elements()[i] = tiles.of(answer[s].thread_elements()[i], sums[s].thread_elements()[i]);
    }
  }

  const uint query = 8 * simdgroup + row;
  if (queries.first + query >= queries.end || sum == 0.0f) return;
  const float inverse = 1.0f / sum;
  device T* out = (device T*)a.out + size_t(queries.token(query)) * a.out_stride + queries.head(query, kv_head) * HEAD + STEPS * column;
  T x[2 * STEPS];
  UNROLL
  for (int i = 0; i < 2 * STEPS; i++) x[i] = T(answer[i % STEPS].thread_elements()[i / STEPS] * inverse);
  write(x, (device vec<T, 4>*)out);
}

// threadgroups = (at least as many as find_queries finds, kv_heads), threads = 256.
#define PROMPT(name, T, KIND) \
  template [[host_name(name)]] [[kernel]] decltype(prompt<T, KIND>) prompt<T, KIND>;
PROMPT("paged_attention_f16", half, FLOATS)
PROMPT("paged_attention_f16_int8", half, INT8_CODES)
PROMPT("paged_attention_f16_fp8", half, FP8_CODES)
#ifdef PHOTON_BFLOAT
PROMPT("paged_attention_bf16", bfloat, FLOATS)
PROMPT("paged_attention_bf16_int8", bfloat, INT8_CODES)
PROMPT("paged_attention_bf16_fp8", bfloat, FP8_CODES)
#endif

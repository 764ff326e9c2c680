// Both attentions for any types and any size of head, in f32.
//
// A threadgroup answers up to 16 queries that share keys, 128 positions at a time from position 0 on, whoever the queries are:
// first a thread has a position and its scores, then a SIMD-group has a query and its softmax, then a thread has a column of the
// values. Nothing a query gets depends on the others: what it does not see counts as adding zero.
//
// Not fast: keys are read by one thread a row, and nothing overlaps. It is what f32, and odd sizes, run on; heads of up to 320,
// for what threadgroup memory has room.
#include "attention.h"

constant constexpr uint QUERIES = 16, POSITIONS = 128;
constant constexpr uint SCORE_STRIDE = POSITIONS + 1;

DEVICE float load_cached(device const uchar* row, uint i, uint type) {
  if (type == TYPE_INT8) return float(as_type<char>(row[i]));
  if (type == TYPE_FP8) return from_fp8(row[i]);
  return load(row, i, type);
}

// Where one head of keys and values lies.
struct Cached {
  device const uchar* k;
  device const uchar* v;
  uint k_stride, v_stride;  // in bytes
  uint type;
  uint first;  // of the head's elements in a row
  uint scale;  // the byte of a row with the head's scale, of an 8-bit cache

  // Byte by byte: a head of odd size puts it anywhere.
  float scale_of(device const uchar* row) const {
    if (type != TYPE_INT8 && type != TYPE_FP8) return 1.0f;
    device const uchar* p = row + scale;
    return as_type<float>(uint(p[0]) | uint(p[1]) << 8 | uint(p[2]) << 16 | uint(p[3]) << 24);
  }
};

// Threadgroup memory: the queries and, of a tile, scores.
struct Scratch {
  threadgroup float* queries;       // [QUERIES, head_dim]
  threadgroup float* scores;        // [QUERIES, SCORE_STRIDE]
  threadgroup int* slots;           // [POSITIONS]
  threadgroup float* value_scales;  // [POSITIONS]
  threadgroup float* maxima;        // [QUERIES]
  threadgroup float* sums;          // likewise
  threadgroup float* shrinks;       // likewise
};

// Positions of a sequence, all of which its queries see.
struct Sequence {
  uint first_row, first_query, len, head_first;
  uint qkv_stride, out_stride;

  int slot(uint u) const { return int(first_row + u); }
  uint visible(uint) const { return len; }
  size_t q_at(uint i) const { return size_t(first_row + first_query + i) * qkv_stride + head_first; }
  size_t out_at(uint i) const { return size_t(first_row + first_query + i) * out_stride + head_first; }
};

// Positions of a row of the paged cache.
struct Paged {
  constant PagedAttentionArgs* a;
  Queries queries;
  uint kv_head;
  threadgroup const uint* seen;  // by each query

  int slot(uint u) const { return slot_of(*a, queries.row, u); }
  uint visible(uint i) const { return seen[i]; }
  size_t q_at(uint i) const { return size_t(queries.token(i)) * a->q_stride + queries.head(i, kv_head) * a->head_dim; }
  size_t out_at(uint i) const { return size_t(queries.token(i)) * a->out_stride + queries.head(i, kv_head) * a->head_dim; }
};

template <typename Positions>
DEVICE void attend(Cached cached, Positions positions, Scratch s, device const void* q, device void* out, uint type, uint count, uint head_dim,
                   uint first_column, float scale, uint thread_index) {
  const uint lane = thread_index % 32, simdgroup = thread_index / 32, column = first_column + thread_index;
  for (uint i = thread_index; i < count * head_dim; i += POSITIONS) {
    s.queries[i] = load(q, positions.q_at(i / head_dim) + i % head_dim, type);
  }
  uint len = 0;
  for (uint i = 0; i < count; i++) len = max(len, positions.visible(i));
  if (thread_index < QUERIES) {
    s.maxima[thread_index] = LOWEST;
    s.sums[thread_index] = 0.0f;
  }
  float answer[QUERIES] = {};
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint first = 0; first < len; first += POSITIONS) {
    const uint u = first + thread_index;
    const int slot = u < len ? positions.slot(u) : -1;
    float dots[QUERIES] = {};
    float key_scale = 0.0f;
    s.slots[thread_index] = slot;
    if (slot >= 0) {
      device const uchar* k = cached.k + size_t(slot) * cached.k_stride;
      key_scale = cached.scale_of(k) * (scale * LOG2_E);
      s.value_scales[thread_index] = cached.scale_of(cached.v + size_t(slot) * cached.v_stride);
      for (uint d = 0; d < head_dim; d++) {
        const float x = load_cached(k, cached.first + d, cached.type);
        UNROLL
        for (uint i = 0; i < QUERIES; i++) {
          if (i < count) dots[i] = fma(s.queries[i * head_dim + d], x, dots[i]);
        }
      }
    }
    UNROLL
    for (uint i = 0; i < QUERIES; i++) {
      if (i < count) s.scores[i * SCORE_STRIDE + thread_index] = slot >= 0 && u < positions.visible(i) ? dots[i] * key_scale : LOWEST;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint i = simdgroup; i < count; i += POSITIONS / 32) {
      threadgroup float* row = s.scores + i * SCORE_STRIDE;
      float top = s.maxima[i];
      for (uint j = lane; j < POSITIONS; j += 32) top = max(top, row[j]);
      top = simd_max(top);
      const float base = top == LOWEST ? 0.0f : top;
      float sum = 0.0f;
      for (uint j = lane; j < POSITIONS; j += 32) {
        row[j] = exp2(row[j] - base);
        sum += row[j];
      }
      // All lanes have read the row's maximum.
      sum = simd_sum(sum);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      if (lane == 0) {
        s.shrinks[i] = exp2(s.maxima[i] - base);
        s.sums[i] = fma(s.sums[i], s.shrinks[i], sum);
        s.maxima[i] = top;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (column < head_dim) {
      UNROLL
      for (uint i = 0; i < QUERIES; i++) {
        if (i < count) answer[i] *= s.shrinks[i];
      }
      for (uint j = 0; j < POSITIONS; j++) {
        if (s.slots[j] < 0) continue;
        device const uchar* v = cached.v + size_t(s.slots[j]) * cached.v_stride;
        const float x = load_cached(v, cached.first + column, cached.type) * s.value_scales[j];
        UNROLL
        for (uint i = 0; i < QUERIES; i++) {
          if (i < count) answer[i] = fma(s.scores[i * SCORE_STRIDE + j], x, answer[i]);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  if (column >= head_dim) return;
  UNROLL
  for (uint i = 0; i < QUERIES; i++) {
    if (i < count && s.sums[i] != 0.0f) store(out, positions.out_at(i) + column, type, answer[i] / s.sums[i]);
  }
}

// threadgroups = (seq_len / QUERIES, heads, num_seqs head_dim / 128), threads = 128, threadgroup memory: QUERIES head_dim floats.
[[kernel, max_total_threads_per_threadgroup(POSITIONS)]] void attention_any(
    constant AttentionArgs& a [[buffer(0)]],
    threadgroup float* query_values [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float scores[QUERIES * SCORE_STRIDE];
  threadgroup int slots[POSITIONS];
  threadgroup float value_scales[POSITIONS];
  threadgroup float maxima[QUERIES];
  threadgroup float sums[QUERIES];
  threadgroup float shrinks[QUERIES];
  const uint columns = (a.head_dim + POSITIONS - 1) / POSITIONS;
  const uint seq = group.z / columns, width = a.heads * a.head_dim, first = group.x * QUERIES;
  const uint size = a.qkv_type == TYPE_F32 ? 4 : 2;
  device const uchar* qkv = (device const uchar*)a.qkv;
  const Scratch scratch = {query_values, scores, slots, value_scales, maxima, sums, shrinks};
  const uint head_first = group.y * a.head_dim;
  const Cached cached = {qkv + size_t(width) * size, qkv + size_t(2 * width) * size, a.qkv_stride * size, a.qkv_stride * size, a.qkv_type, head_first, 0};
  const Sequence sequence = {seq * a.seq_len, first, a.seq_len, head_first, a.qkv_stride, a.out_stride};
  attend(cached, sequence, scratch, a.qkv, a.out, a.qkv_type, min(QUERIES, a.seq_len - first), a.head_dim, group.z % columns * POSITIONS, a.scale,
         thread_index);
}

// threadgroups = (at least as many as find_queries finds, kv_heads, head_dim / 128), threads and threadgroup memory as above.
[[kernel, max_total_threads_per_threadgroup(POSITIONS)]] void paged_attention_any(
    constant PagedAttentionArgs& a [[buffer(0)]],
    threadgroup float* query_values [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float scores[QUERIES * SCORE_STRIDE];
  threadgroup int slots[POSITIONS];
  threadgroup float value_scales[POSITIONS];
  threadgroup float maxima[QUERIES];
  threadgroup float sums[QUERIES];
  threadgroup float shrinks[QUERIES];
  threadgroup uint visible[QUERIES];
  Queries queries;
  if (!find_queries(a, group.x, QUERIES, thread_index % 32, queries)) return;
  const uint kv_head = group.y, count = queries.end - queries.first;
  if (thread_index < count) visible[thread_index] = visible_to(a, queries.token(thread_index));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const Scratch scratch = {query_values, scores, slots, value_scales, maxima, sums, shrinks};
  const Cached cached = {a.k_cache, a.v_cache, a.k_stride, a.v_stride, a.cache_type, kv_head * a.head_dim,
                         a.kv_heads * a.head_dim + kv_head * 4};
  const Paged paged = {&a, queries, kv_head, visible};
  attend(cached, paged, scratch, a.q, a.out, a.q_type, count, a.head_dim, group.z * POSITIONS, a.scale, thread_index);
}

// Attention over the paged cache where rows have few queries: decoding.
//
// A threadgroup has up to 8 queries that share keys (the heads of a group, the tokens of a guess), a SIMD-group a tile of 64
// positions of theirs at a time, which it reads from memory straight to the registers of the multiplication. Eight tiles are
// computed at once and then joined, in order, through threadgroup memory. A context is split over the SIMD-groups of one
// threadgroup and no further: 32 heads are as many threadgroups, a context of 770 positions 13 tiles, which is enough under way for 40
// cores, and threadgroups could only meet in another launch.
//
// Matrices are used for one query too, as prompts use them, with most of their rows idle: 14 us of an M2's arithmetic where
// reading takes 68 us. Bound by bytes: 256 for a position and head of 16-bit floats, 136 of codes; at 770 positions and 32 heads
// that is 6.3 MB. 17 KiB of threadgroup memory.
#include "paged_attention.h"

constant constexpr uint FEW = 8, FEW_THREADS = 32 * PAGED_SIMDGROUPS;
// Floats of a tile's result for a query: the columns, its largest score, its sum, padding.
constant constexpr uint PARTIAL = HEAD + 4;

template <typename T, int KIND>
[[kernel, max_total_threads_per_threadgroup(FEW_THREADS)]] void few(
    constant PagedAttentionArgs& a [[buffer(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partials[PAGED_SIMDGROUPS * FEW * PARTIAL];
  Queries queries;
  if (!find_queries(a, group.x, FEW, lane, queries)) return;
  const uint kv_head = group.y, row = row_in_fragment(lane), column = column_in_fragment(lane);
  Rows<T> rows;
  rows.load(a, queries, kv_head, 0, lane);
  const uint len = rows.longest, tiles = (len + TILE - 1) / TILE;
  const float exponent = a.scale * LOG2_E;

  // A SIMD-group joins the tiles of a query, a lane those of two columns.
  const uint query = simdgroup;
  const bool has_query = queries.first + query < queries.end;
  float2 answer = float2(0.0f, 0.0f);
  float largest = LOWEST, sum = 0.0f;

  for (uint base = 0; base < tiles; base += PAGED_SIMDGROUPS) {
    const uint tile = base + simdgroup, first = tile * TILE;
    if (tile < tiles) {
      int slots[2];
      float key_scales[2] = {0.0f, 0.0f}, value_scales[2] = {0.0f, 0.0f};
      UNROLL
      for (uint i = 0; i < 2; i++) {
        const uint u = first + 32 * i + lane;
        slots[i] = u < len ? slot_of(a, queries.row, u) : -1;
        if (KIND != FLOATS && slots[i] >= 0) {
          key_scales[i] = scale_at(a.k_cache + size_t(slots[i]) * a.k_stride, a.kv_heads, kv_head);
          value_scales[i] = scale_at(a.v_cache + size_t(slots[i]) * a.v_stride, a.kv_heads, kv_head);
        }
      }
      const uint2 there = uint2(ballot(slots[0] >= 0), ballot(slots[1] >= 0));

      float scores[FRAGMENTS][2], factors[FRAGMENTS][2];
      UNROLL
      for (int i = 0; i < FRAGMENTS; i++) {
        T keys[2][STEPS];
        UNROLL
        for (uint j = 0; j < 2; j++) {
          const ushort at = ushort(8 * (i % 4) + column + j);
          const int slot = simd_shuffle(slots[i / 4], at);
          device const uchar* k = a.k_cache + size_t(max(slot, 0)) * a.k_stride;
          read_cached<T, KIND>(k + bytes_of<KIND>(kv_head * HEAD + STEPS * row), slot >= 0, keys[j]);
          factors[i][j] = KIND == FLOATS ? exponent : simd_shuffle(key_scales[i / 4], at) * exponent;
        }
        score(rows, keys[0], keys[1], scores[i]);
      }
      const bool is_whole = first + TILE <= rows.shortest && (there.x & there.y) == 0xffffffffu;
      float tile_largest, tile_sum;
      soften(scores, factors, is_whole, rows.visible, first, there, column, tile_largest, tile_sum);

      simdgroup_matrix<float, 8, 8> sums[STEPS];
      UNROLL
      for (int s = 0; s < STEPS; s++) sums[s] = zero_fragment();
      UNROLL
      for (int i = 0; i < FRAGMENTS; i++) {
        UNROLL
        for (uint j = 0; j < 2; j++) {
          if (KIND != FLOATS) scores[i][j] *= simd_shuffle(value_scales[i / 4], ushort(8 * (i % 4) + column + j));
        }
        const int slot = simd_shuffle(slots[i / 4], ushort(8 * (i % 4) + row));
        device const uchar* v = a.v_cache + size_t(max(slot, 0)) * a.v_stride;
        T value[2 * STEPS];
        read_cached<T, KIND>(v + bytes_of<KIND>(kv_head * HEAD + STEPS * column), slot >= 0, value);
        weigh(scores[i], value, sums);
      }
      if (queries.first + row < queries.end) {
        threadgroup float* out = partials + (simdgroup * FEW + row) * PARTIAL;
        UNROLL
        for (int i = 0; i < 2 * STEPS; i++) out[STEPS * column + i] = sums[i % STEPS].thread_elements()[i / STEPS];
        if (column == 0) {
          out[HEAD] = tile_largest;
          out[HEAD + 1] = tile_sum;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (has_query) {
      for (uint i = 0; i < min(tiles - base, PAGED_SIMDGROUPS); i++) {
        threadgroup const float* partial = partials + (i * FEW + query) * PARTIAL;
        const Join tile_join = join(largest, sum, partial[HEAD], partial[HEAD + 1]);
        answer = float2(tile_join.of(answer.x, partial[2 * lane]), tile_join.of(answer.y, partial[2 * lane + 1]));
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  if (!has_query || sum == 0.0f) return;
  const float inverse = 1.0f / sum;
  device T* out = (device T*)a.out + size_t(queries.token(query)) * a.out_stride + queries.head(query, kv_head) * HEAD + 2 * lane;
  out[0] = T(answer.x * inverse);
  out[1] = T(answer.y * inverse);
}

// threadgroups = (at least as many as find_queries finds, kv_heads), threads = 256.
#define FEW_KERNEL(name, T, KIND) \
  template [[host_name(name)]] [[kernel]] decltype(few<T, KIND>) few<T, KIND>;
FEW_KERNEL("paged_attention_split_f16", half, FLOATS)
FEW_KERNEL("paged_attention_split_f16_int8", half, INT8_CODES)
FEW_KERNEL("paged_attention_split_f16_fp8", half, FP8_CODES)
#ifdef PHOTON_BFLOAT
FEW_KERNEL("paged_attention_split_bf16", bfloat, FLOATS)
FEW_KERNEL("paged_attention_split_bf16_int8", bfloat, INT8_CODES)
FEW_KERNEL("paged_attention_split_bf16_fp8", bfloat, FP8_CODES)
#endif

// Rotation by position, what scales queries and values, and the store of keys and values in the paged cache.
#include "elements.h"

struct RopeStoreArgs {
  device void* qkv;             // [tokens, (heads + 2 kv_heads) head_dim], stride qkv_stride
  device uchar* k_cache;        // [num_slots, kv::row_len], stride k_stride, in bytes
  device uchar* v_cache;        // likewise
  device const int* positions;  // [tokens]
  device const int* slots;      // [tokens]
  device const float* table;    // [max_context, rotary_dims]: cosines, then sines
  device const void* scores;    // [tokens, 2 heads], stride scores_stride; null if nothing is scaled
  device const float* alpha;    // [heads]
  uint heads, kv_heads, head_dim;
  uint rotary_dims, max_context, num_slots;
  uint qkv_stride, k_stride, v_stride, scores_stride;
  uint qkv_type, cache_type, scores_type;
  uint padding;
};

// SIMD-groups of a threadgroup.
constant constexpr uint ROPE_SIMDGROUPS = 4;

// What a head is scaled by: score `i` of a token, at its position.
DEVICE float tau(constant RopeStoreArgs& a, uint token, uint i, uint position) {
  const float score = load(a.scores, size_t(token) * a.scores_stride + i, a.scores_type);
  const float depth = a.alpha[i % a.heads] * log(float(position) + 1.0f);
  return tanh(score) + 1.0f / (1.0f + exp(-depth)) + 0.5f;
}

// Stores a SIMD-group's head `x` as codes with a scale: `photon_core::kv`.
DEVICE void store_codes(constant RopeStoreArgs& a, device uchar* row, uint head, threadgroup const float* x, uint lane) {
  // As integers, infinity is above every number and NaN above infinity.
  uint top = 0;
  for (uint d = lane; d < a.head_dim; d += 32) top = max(top, as_type<uint>(x[d]) & 0x7fffffffu);
  top = simd_max(top);
  float scale = as_type<float>(top) / (a.cache_type == TYPE_FP8 ? 448.0f : 127.0f);
  if (scale < 1.17549435e-38f) scale = 1.17549435e-38f;
  device uchar* codes = row + size_t(head) * a.head_dim;
  for (uint d = lane; d < a.head_dim; d += 32) {
    const float scaled = x[d] / scale;
    codes[d] = a.cache_type == TYPE_FP8 ? to_fp8(scaled) : as_type<uchar>(to_int8(scaled));
  }
  // Byte by byte: a head of odd size puts it anywhere.
  if (lane < 4) row[size_t(a.kv_heads) * a.head_dim + head * 4 + lane] = uchar(as_type<uint>(scale) >> 8 * lane);
}

// One SIMD-group a head of a token, which lies in threadgroup memory as f32 between what is done to it: there a lane can reach
// both elements of a pair, and every element is read once and written once.  threadgroups = (tokens, (heads + 2 kv_heads) /
// ROPE_SIMDGROUPS), threads = 32 ROPE_SIMDGROUPS, threadgroup memory: ROPE_SIMDGROUPS heads of floats. Bound by bytes: qkv is
// read, q and the cache rows are written.
[[kernel, max_total_threads_per_threadgroup(32 * ROPE_SIMDGROUPS)]] void rope_store(
    constant RopeStoreArgs& a [[buffer(0)]],
    threadgroup float* staged [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint token = group.x, head = group.y * ROPE_SIMDGROUPS + simdgroup;
  if (head >= a.heads + 2 * a.kv_heads) return;
  const uint position = uint(a.positions[token]), slot = uint(a.slots[token]);
  const bool is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;
  if (position >= a.max_context || (!is_query && slot >= a.num_slots)) return;

  // The scores of v lie behind those of q, and of k there are none.
  float factor = 1.0f;
  if (a.scores != nullptr && (is_query || is_value)) factor = tau(a, token, is_value ? head - a.kv_heads : head, position);
  const size_t at = size_t(token) * a.qkv_stride + size_t(head) * a.head_dim;
  threadgroup float* x = staged + simdgroup * a.head_dim;
  for (uint d = lane; d < a.head_dim; d += 32) x[d] = load(a.qkv, at + d, a.qkv_type) * factor;
  simdgroup_barrier(mem_flags::mem_threadgroup);

  if (!is_value) {
    device const float* turns = a.table + size_t(position) * a.rotary_dims;
    const uint pairs = a.rotary_dims / 2;
    for (uint d = lane; d < pairs; d += 32) {
      const float low = x[d], high = x[d + pairs], c = turns[d], s = turns[d + pairs];
      x[d] = low * c - high * s;
      x[d + pairs] = low * s + high * c;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  if (is_query) {
    for (uint d = lane; d < a.head_dim; d += 32) store(a.qkv, at + d, a.qkv_type, x[d]);
    return;
  }
  const uint kv_head = head - a.heads - (is_value ? a.kv_heads : 0);
  device uchar* row = is_value ? a.v_cache + size_t(slot) * a.v_stride : a.k_cache + size_t(slot) * a.k_stride;
  if (a.cache_type == TYPE_INT8 || a.cache_type == TYPE_FP8) {
    store_codes(a, row, kv_head, x, lane);
    return;
  }
  for (uint d = lane; d < a.head_dim; d += 32) store(row, size_t(kv_head) * a.head_dim + d, a.cache_type, x[d]);
}

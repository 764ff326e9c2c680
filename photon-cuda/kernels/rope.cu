// Rotation by position, and the store of keys and values in the paged cache.
#include "elements.cuh"

struct RopeStoreArgs {
  void* qkv;                 // [tokens, (heads + 2 kv_heads) head_dim], stride qkv_stride
  void* k_cache;             // [num_slots, kv::row_len], stride cache_stride, in bytes
  void* v_cache;             // likewise
  const int32_t* positions;  // [tokens]
  const int32_t* slots;      // [tokens]
  const float* table;        // [max_context, rotary_dims]: cosines, then sines
  uint32_t heads, kv_heads, head_dim;
  uint32_t rotary_dims, max_context, num_slots;
  uint32_t qkv_stride, k_stride, v_stride;
  uint32_t qkv_type, cache_type;
  uint32_t padding;
};

constexpr int ROPE_WARPS = 4;

// Element `d` of a head that lies at `at`, rotated.
DEVICE float rotated(const RopeStoreArgs& a, size_t at, const float* turns, uint32_t d) {
  const uint32_t half = a.rotary_dims / 2;
  const float x = load(a.qkv, at + d, a.qkv_type);
  if (d >= a.rotary_dims) return x;
  if (d < half) return x * turns[d] - load(a.qkv, at + d + half, a.qkv_type) * turns[d + half];
  return load(a.qkv, at + d - half, a.qkv_type) * turns[d] + x * turns[d - half];
}

// One warp a head of a token.  grid = (tokens, (heads + 2 kv_heads) / WARPS), block = 32 WARPS. Bound by bytes: q is read and
// written, k and v are read and their cache rows written.
extern "C" __global__ void __launch_bounds__(32 * ROPE_WARPS) rope_store(const RopeStoreArgs a) {
  enter();
  const uint32_t token = blockIdx.x, lane = threadIdx.x % 32;
  const uint32_t head = blockIdx.y * ROPE_WARPS + threadIdx.x / 32;
  const uint32_t position = (uint32_t)a.positions[token];
  if (head >= a.heads + 2 * a.kv_heads || position >= a.max_context) return;
  const float* turns = a.table + (size_t)position * a.rotary_dims;
  const size_t at = (size_t)token * a.qkv_stride + (size_t)head * a.head_dim;

  if (head < a.heads) {
    // A lane has both elements of a pair, so that none is overwritten before it is used.
    const uint32_t half = a.rotary_dims / 2;
    for (uint32_t d = lane; d < half; d += 32) {
      const float low = rotated(a, at, turns, d), high = rotated(a, at, turns, d + half);
      store(a.qkv, at + d, a.qkv_type, low);
      store(a.qkv, at + d + half, a.qkv_type, high);
    }
    return;
  }

  const uint32_t slot = (uint32_t)a.slots[token];
  if (slot >= a.num_slots) return;
  const bool is_key = head < a.heads + a.kv_heads;
  const uint32_t kv_head = head - a.heads - (is_key ? 0 : a.kv_heads);
  uint8_t* row = is_key ? (uint8_t*)a.k_cache + (size_t)slot * a.k_stride : (uint8_t*)a.v_cache + (size_t)slot * a.v_stride;
  if (a.cache_type != TYPE_INT8 && a.cache_type != TYPE_FP8) {
    for (uint32_t d = lane; d < a.head_dim; d += 32) {
      const float x = is_key ? rotated(a, at, turns, d) : load(a.qkv, at + d, a.qkv_type);
      store(row, (size_t)kv_head * a.head_dim + d, a.cache_type, x);
    }
    return;
  }

  // `photon_core::kv`: as integers, infinity is above every number and NaN above infinity.
  uint32_t top = 0;
  for (uint32_t d = lane; d < a.head_dim; d += 32) {
    const float x = is_key ? rotated(a, at, turns, d) : load(a.qkv, at + d, a.qkv_type);
    top = max(top, __float_as_uint(x) & 0x7fffffff);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) top = max(top, __shfl_xor_sync(0xffffffff, top, lanes));
  float scale = __fdiv_rn(__uint_as_float(top), a.cache_type == TYPE_FP8 ? 448.0f : 127.0f);
  if (scale < 1.17549435e-38f) scale = 1.17549435e-38f;
  for (uint32_t d = lane; d < a.head_dim; d += 32) {
    const float x = (is_key ? rotated(a, at, turns, d) : load(a.qkv, at + d, a.qkv_type)) / scale;
    row[(size_t)kv_head * a.head_dim + d] = a.cache_type == TYPE_FP8 ? to_fp8(x) : (uint8_t)to_int8(x);
  }
  // Byte by byte: a head of odd size puts it anywhere.
  if (lane < 4) row[(size_t)a.kv_heads * a.head_dim + kv_head * 4 + lane] = (uint8_t)(__float_as_uint(scale) >> 8 * lane);
}

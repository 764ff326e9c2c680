// Rotation by position, what scales queries and values, and the store of keys and values in the paged cache.
#include "elements.cuh"

struct RopeStoreArgs {
  void* qkv;                 // [tokens, (heads + 2 kv_heads) head_dim], stride qkv_stride
  void* k_cache;             // [num_slots, kv::row_len], stride k_stride, in bytes
  void* v_cache;             // likewise
  const int32_t* positions;  // [tokens]
  const int32_t* slots;      // [tokens]
  const float* table;        // [max_context, rotary_dims]: cosines, then sines
  const void* scores;        // [tokens, 2 heads], stride scores_stride; null if nothing is scaled
  const float* alpha;        // [heads]
  uint32_t heads, kv_heads, head_dim;
  uint32_t rotary_dims, max_context, num_slots;
  uint32_t qkv_stride, k_stride, v_stride, scores_stride;
  uint32_t qkv_type, cache_type, scores_type;
  uint32_t padding;
};

constexpr int ROPE_WARPS = 4;

// What a head is scaled by: score `i` of a token, at its position.
DEVICE float tau(const RopeStoreArgs& a, uint32_t token, uint32_t i, uint32_t position) {
  const float score = load(a.scores, (size_t)token * a.scores_stride + i, a.scores_type);
  const float depth = a.alpha[i % a.heads] * logf((float)position + 1.0f);
  return tanhf(score) + 1.0f / (1.0f + expf(-depth)) + 0.5f;
}

// Stores a warp's head `x` as codes with a scale: `photon_core::kv`.
DEVICE void store_codes(const RopeStoreArgs& a, uint8_t* row, uint32_t head, const float* x) {
  const uint32_t lane = threadIdx.x % 32;
  // As integers, infinity is above every number and NaN above infinity.
  uint32_t top = 0;
  for (uint32_t d = lane; d < a.head_dim; d += 32) top = max(top, __float_as_uint(x[d]) & 0x7fffffff);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) top = max(top, __shfl_xor_sync(0xffffffff, top, lanes));
  float scale = __fdiv_rn(__uint_as_float(top), a.cache_type == TYPE_FP8 ? 448.0f : 127.0f);
  if (scale < 1.17549435e-38f) scale = 1.17549435e-38f;
  uint8_t* codes = row + (size_t)head * a.head_dim;
  for (uint32_t d = lane; d < a.head_dim; d += 32) {
    const float scaled = x[d] / scale;
    codes[d] = a.cache_type == TYPE_FP8 ? to_fp8(scaled) : (uint8_t)to_int8(scaled);
  }
  // Byte by byte: a head of odd size puts it anywhere.
  if (lane < 4) row[(size_t)a.kv_heads * a.head_dim + head * 4 + lane] = (uint8_t)(__float_as_uint(scale) >> 8 * lane);
}

// One warp a head of a token, which lies in shared memory as f32 between what is done to it: there a lane can reach both
// elements of a pair, and every element is read once and written once.  grid = (tokens, (heads + 2 kv_heads) / WARPS),
// block = 32 WARPS, dynamic shared memory: WARPS heads of floats. Bound by bytes: qkv is read, q and the cache rows are
// written.
extern "C" __global__ void __launch_bounds__(32 * ROPE_WARPS) rope_store(const RopeStoreArgs a) {
  enter();
  DYNAMIC_SHARED(float, staged);
  const uint32_t token = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t head = blockIdx.y * ROPE_WARPS + warp;
  if (head >= a.heads + 2 * a.kv_heads) return;
  const uint32_t position = (uint32_t)a.positions[token], slot = (uint32_t)a.slots[token];
  const bool is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;
  if (position >= a.max_context || (!is_query && slot >= a.num_slots)) return;

  // The scores of v lie behind those of q, and of k there are none.
  float factor = 1.0f;
  if (a.scores && (is_query || is_value)) factor = tau(a, token, is_value ? head - a.kv_heads : head, position);
  const size_t at = (size_t)token * a.qkv_stride + (size_t)head * a.head_dim;
  float* x = staged + warp * a.head_dim;
  for (uint32_t d = lane; d < a.head_dim; d += 32) x[d] = load(a.qkv, at + d, a.qkv_type) * factor;
  __syncwarp();

  if (!is_value) {
    const float* turns = a.table + (size_t)position * a.rotary_dims;
    const uint32_t half = a.rotary_dims / 2;
    for (uint32_t d = lane; d < half; d += 32) {
      const float low = x[d], high = x[d + half], c = turns[d], s = turns[d + half];
      x[d] = low * c - high * s;
      x[d + half] = low * s + high * c;
    }
    __syncwarp();
  }

  if (is_query) {
    for (uint32_t d = lane; d < a.head_dim; d += 32) store(a.qkv, at + d, a.qkv_type, x[d]);
    return;
  }
  const uint32_t kv_head = head - a.heads - (is_value ? a.kv_heads : 0);
  uint8_t* row = is_value ? (uint8_t*)a.v_cache + (size_t)slot * a.v_stride : (uint8_t*)a.k_cache + (size_t)slot * a.k_stride;
  if (a.cache_type == TYPE_INT8 || a.cache_type == TYPE_FP8) return store_codes(a, row, kv_head, x);
  for (uint32_t d = lane; d < a.head_dim; d += 32) store(row, (size_t)kv_head * a.head_dim + d, a.cache_type, x[d]);
}

// Both attentions for any types and any size of head, in f32.
//
// A block answers up to 16 queries that share keys, 128 positions at a time from position 0 on, whoever the queries are:
// first a thread has a position and its scores, then a warp has a query and its softmax, then a thread has a column of the
// values. Nothing a query gets depends on the others: what it does not see counts as adding zero.
//
// Not fast: keys are read by one thread a row, and nothing overlaps. It is what f32, and odd sizes, run on.
#include "attention.cuh"

constexpr uint32_t QUERIES = 16, POSITIONS = 128;

DEVICE float load_cached(const uint8_t* row, size_t i, uint32_t type) {
  if (type == TYPE_INT8) return (float)(int8_t)row[i];
  if (type == TYPE_FP8) return from_fp8(row[i]);
  return load(row, i, type);
}

// Where one head of keys and values lies.
struct Cached {
  const uint8_t* k;
  const uint8_t* v;
  uint32_t k_stride, v_stride;  // in bytes
  uint32_t type;
  size_t first;  // of the head's elements in a row
  size_t scale;  // the byte of a row with the head's scale, of an 8-bit cache

  DEVICE float scale_of(const uint8_t* row) const {
    if (type != TYPE_INT8 && type != TYPE_FP8) return 1.0f;
    const uint8_t* p = row + scale;
    return __uint_as_float(p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
  }
};

// From the scores of a position, one a query, to those of the next: odd, so that either order meets all banks.
constexpr uint32_t SCORE_STRIDE = QUERIES + 1;

// `slot_of(u)`: the row of position `u`, or -1. `visible(i)`, `q_at(i)`, `out_at(i)`: of query `i`.
template <class Slot, class Visible, class At, class OutAt>
DEVICE void attend(const Cached& cached, const void* q, void* out, uint32_t type, uint32_t count, uint32_t head_dim, uint32_t first_column,
                   float scale, Slot slot_of, Visible visible, At q_at, OutAt out_at) {
  DYNAMIC_SHARED(float, queries);  // [head_dim, QUERIES], zero where there is no query
  alignas(16) __shared__ float scores[POSITIONS * SCORE_STRIDE];
  alignas(16) __shared__ int32_t slots[POSITIONS];
  alignas(16) __shared__ float value_scales[POSITIONS];
  alignas(16) __shared__ float maxima[QUERIES];
  alignas(16) __shared__ float sums[QUERIES];
  alignas(16) __shared__ float shrinks[QUERIES];
  const uint32_t thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (uint32_t i = thread; i < QUERIES * head_dim; i += POSITIONS) {
    const uint32_t query = i / head_dim, d = i % head_dim;
    queries[d * QUERIES + query] = query < count ? load(q, q_at(query) + d, type) : 0.0f;
  }
  uint32_t len = 0;
  for (uint32_t i = 0; i < count; i++) len = max(len, visible(i));
  if (thread < QUERIES) {
    maxima[thread] = -INFINITY;
    sums[thread] = 0.0f;
  }
  float answer[QUERIES] = {};
  __syncthreads();

  for (uint32_t first = 0; first < len; first += POSITIONS) {
    const uint32_t u = first + thread;
    const int32_t slot = u < len ? slot_of(u) : -1;
    float dots[QUERIES] = {};
    float key_scale = 0.0f;
    slots[thread] = slot;
    if (slot >= 0) {
      const uint8_t* k = cached.k + (size_t)slot * cached.k_stride;
      key_scale = cached.scale_of(k) * (scale * LOG2_E);
      value_scales[thread] = cached.scale_of(cached.v + (size_t)slot * cached.v_stride);
      for (uint32_t d = 0; d < head_dim; d++) {
        const float x = load_cached(k, cached.first + d, cached.type);
#pragma unroll
        for (uint32_t i = 0; i < QUERIES; i++) dots[i] += queries[d * QUERIES + i] * x;
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < QUERIES; i++) {
      const bool is_seen = i < count && slot >= 0 && u < visible(i);
      scores[thread * SCORE_STRIDE + i] = is_seen ? dots[i] * key_scale : -INFINITY;
    }
    __syncthreads();

    for (uint32_t i = warp; i < count; i += POSITIONS / 32) {
      float top = maxima[i];
      for (uint32_t j = lane; j < POSITIONS; j += 32) top = fmaxf(top, scores[j * SCORE_STRIDE + i]);
      top = warp_max(top);
      const float base = top == -INFINITY ? 0.0f : top;
      float sum = 0.0f;
      for (uint32_t j = lane; j < POSITIONS; j += 32) {
        float& score = scores[j * SCORE_STRIDE + i];
        score = exp2f(score - base);
        sum += score;
      }
      sum = warp_sum(sum);
      // All lanes have read the row's maximum.
      __syncwarp();
      if (lane == 0) {
        shrinks[i] = exp2f(maxima[i] - base);
        sums[i] = sums[i] * shrinks[i] + sum;
        maxima[i] = top;
      }
    }
    __syncthreads();

    const uint32_t column = first_column + thread;
    if (column < head_dim) {
#pragma unroll
      for (uint32_t i = 0; i < QUERIES; i++) {
        if (i < count) answer[i] *= shrinks[i];
      }
      for (uint32_t j = 0; j < POSITIONS; j++) {
        if (slots[j] < 0) continue;
        const float x = load_cached(cached.v + (size_t)slots[j] * cached.v_stride, cached.first + column, cached.type) * value_scales[j];
#pragma unroll
        for (uint32_t i = 0; i < QUERIES; i++) answer[i] += scores[j * SCORE_STRIDE + i] * x;
      }
    }
    __syncthreads();
  }

  const uint32_t column = first_column + thread;
  if (column >= head_dim) return;
#pragma unroll
  for (uint32_t i = 0; i < QUERIES; i++) {
    if (i < count && sums[i] != 0.0f) store(out, out_at(i) + column, type, answer[i] / sums[i]);
  }
}

// Four blocks a multiprocessor at least: left to itself the compiler makes room for eight on Blackwell, and spills.
//
// grid = (tokens / QUERIES, heads, num_seqs head_dim / 128), block = 128, dynamic shared memory: QUERIES head_dim floats.
extern "C" __global__ void __launch_bounds__(POSITIONS, 4) attention_any(const AttentionArgs a) {
  enter();
  const uint32_t columns = (a.head_dim + POSITIONS - 1) / POSITIONS;
  const uint32_t head = blockIdx.y, seq = blockIdx.z / columns, width = a.heads * a.head_dim;
  const uint32_t first = blockIdx.x * QUERIES, first_row = seq * a.seq_len;
  const uint32_t size = a.type == TYPE_F32 ? 4 : 2;
  const uint8_t* qkv = (const uint8_t*)a.qkv;
  const Cached cached = {qkv + (size_t)width * size, qkv + (size_t)2 * width * size, a.qkv_stride * size, a.qkv_stride * size, a.type,
                         (size_t)head * a.head_dim, 0};
  attend(
      cached, a.qkv, a.out, a.type, min(QUERIES, a.seq_len - first), a.head_dim, blockIdx.z % columns * POSITIONS, a.scale,
      [&](uint32_t u) { return (int32_t)(first_row + u); }, [&](uint32_t) { return a.seq_len; },
      [&](uint32_t i) { return (size_t)(first_row + first + i) * a.qkv_stride + (size_t)head * a.head_dim; },
      [&](uint32_t i) { return (size_t)(first_row + first + i) * a.out_stride + (size_t)head * a.head_dim; });
}

// grid = (at least as many as find_queries finds, kv_heads, head_dim / 128), block and shared memory as above.
extern "C" __global__ void __launch_bounds__(POSITIONS, 4) paged_attention_any(const PagedAttentionArgs a) {
  enter();
  alignas(16) __shared__ uint32_t visible[QUERIES];
  Queries queries;
  if (!find_queries(a, blockIdx.x, QUERIES, queries)) return;
  const uint32_t kv_head = blockIdx.y, count = queries.end - queries.first;
  if (threadIdx.x < count) visible[threadIdx.x] = visible_to(a, queries.token(threadIdx.x));
  __syncthreads();
  const Cached cached = {a.k_cache, a.v_cache, a.k_stride, a.v_stride, a.cache_type,
                         (size_t)kv_head * a.head_dim, (size_t)a.kv_heads * a.head_dim + kv_head * 4};
  attend(
      cached, a.q, a.out, a.type, count, a.head_dim, blockIdx.z * POSITIONS, a.scale, [&](uint32_t u) { return slot_of(a, queries.row, u); },
      [&](uint32_t i) { return visible[i]; },
      [&](uint32_t i) { return (size_t)queries.token(i) * a.q_stride + (size_t)queries.head(i, kv_head) * a.head_dim; },
      [&](uint32_t i) { return (size_t)queries.token(i) * a.out_stride + (size_t)queries.head(i, kv_head) * a.head_dim; });
}

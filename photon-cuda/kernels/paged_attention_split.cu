// Attention over the paged cache where rows have few queries: decoding.
//
// A warp has up to 8 queries that share keys (the heads of a group, the tokens of a guess) and a tile of 64 positions, which
// it reads from memory straight to the registers of the multiplication: 16 KiB under way for each warp. A block has four
// consecutive tiles at a time; contexts are split over blocks until there are enough of them to fill the device. Without a
// split a block joins its tiles through shared memory. With one, each tile's result goes to memory (272 bytes for 16 KiB
// read), and the last block of a context joins them, in order, so that the bits are the same.
//
// Bound by bytes: 256 for a position and head of bf16, 136 of 8 bits. At 770 positions, 32 heads and batch 1 that is 6.3 MB.
#include "paged_attention.cuh"

constexpr uint32_t FEW = 8, SPLIT_WARPS = 4;
// Floats of a tile's result for a query: the columns, its largest score, its sum, padding.
constexpr uint32_t PARTIAL = HEAD + 4;

// Row vectors of two keys as pairs of one column each: column `i` of 8.
DEVICE uint32_t pair_of(const uint32_t (&first)[4], const uint32_t (&second)[4], int i) {
  return __byte_perm(first[i / 2], second[i / 2], i % 2 ? 0x7632 : 0x5410);
}

// What a lane reads of a tile: of keys 8 i + g elements 16 t .. 16 t + 16; of values 16 i + {0, 1, 8, 9} + 2 t columns 8 g ..
// 8 g + 8.
template <class T, class F> struct Few {
  static constexpr bool IS_SCALED = F::IS_SCALED;
  static constexpr int KEY_WORDS = IS_SCALED ? 4 : 8, VALUE_WORDS = IS_SCALED ? 2 : 4;
  static constexpr uint32_t ELEMENT = IS_SCALED ? 1 : sizeof(T);
  uint32_t keys[8][KEY_WORDS];
  uint32_t values[16][VALUE_WORDS];
  float key_scales[2], value_scales[2];  // of positions `lane` and `lane + 32`

  template <bool IS_ALIGNED> DEVICE void read(const PagedAttentionArgs& a, uint32_t kv_head, const int32_t (&slots)[2]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int32_t slot = __shfl_sync(0xffffffff, slots[i / 4], 8 * (i % 4) + g);
      const uint8_t* p = a.k_cache + (size_t)max(slot, 0) * a.k_stride + (kv_head * HEAD + 16 * t) * ELEMENT;
      words<KEY_WORDS, IS_ALIGNED>(p, slot >= 0, keys[i]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const uint32_t position = 16 * (i / 4) + 2 * t + i % 2 + i / 2 % 2 * 8;
      const int32_t slot = __shfl_sync(0xffffffff, slots[i / 8], position % 32);
      const uint8_t* p = a.v_cache + (size_t)max(slot, 0) * a.v_stride + (kv_head * HEAD + 8 * g) * ELEMENT;
      words<VALUE_WORDS, IS_ALIGNED>(p, slot >= 0, values[i]);
    }
    if constexpr (IS_SCALED) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        key_scales[i] = slots[i] < 0 ? 0.0f : scale_at(a, a.k_cache + (size_t)slots[i] * a.k_stride, kv_head);
        value_scales[i] = slots[i] < 0 ? 0.0f : scale_at(a, a.v_cache + (size_t)slots[i] * a.v_stride, kv_head);
      }
    }
  }

  // `COUNT` words from `p` on, which is a multiple of their bytes up to 16 or, if not aligned, of 4.
  template <int COUNT, bool IS_ALIGNED> DEVICE static void words(const uint8_t* p, bool is_there, uint32_t (&out)[COUNT]) {
    constexpr int VECTOR = !IS_ALIGNED ? 1 : COUNT == 2 ? 2 : 4;
#pragma unroll
    for (int i = 0; i < COUNT; i += VECTOR) {
      if constexpr (VECTOR == 4) {
        const uint4 v = is_there ? ((const uint4*)p)[i / 4] : make_uint4(0, 0, 0, 0);
        out[i] = v.x;
        out[i + 1] = v.y;
        out[i + 2] = v.z;
        out[i + 3] = v.w;
      } else if constexpr (VECTOR == 2) {
        const uint2 v = is_there ? ((const uint2*)p)[i / 2] : make_uint2(0, 0);
        out[i] = v.x;
        out[i + 1] = v.y;
      } else {
        out[i] = is_there ? ((const uint32_t*)p)[i] : 0;
      }
    }
  }

  // Key `i` and value row `i` as elements of T.
  DEVICE void key(int i, uint32_t (&k)[8]) const {
#pragma unroll
    for (int j = 0; j < KEY_WORDS; j++) {
      if constexpr (IS_SCALED) F::widen(keys[i][j], k[2 * j], k[2 * j + 1]);
      else k[j] = keys[i][j];
    }
  }
  DEVICE void value(int i, uint32_t (&v)[4]) const {
#pragma unroll
    for (int j = 0; j < VALUE_WORDS; j++) {
      if constexpr (IS_SCALED) F::widen(values[i][j], v[2 * j], v[2 * j + 1]);
      else v[j] = values[i][j];
    }
  }

  // Of the lane's columns of the scores.
  DEVICE static void spread(const float (&of_lane)[2], float factor, float (&scales)[IS_SCALED ? 8 : 1][2]) {
    if constexpr (IS_SCALED) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float scale = __shfl_sync(0xffffffff, of_lane[i / 4], 8 * (i % 4) + 2 * (threadIdx.x % 4) + j);
          scales[i][j] = __fmul_rn(scale, factor);
        }
      }
    }
  }
};

// Joins `count` partial results, `stride` floats apart, to what a thread has: columns 4 (thread % 16) .. + 4 of a query.
DEVICE void join(const float* partial, size_t stride, uint32_t count, float4& answer, float& largest, float& sum) {
  const uint32_t column = threadIdx.x % 16 * 4;
#pragma unroll 4
  for (uint32_t i = 0; i < count; i++) {
    const float4 tile = *(const float4*)(partial + i * stride + column);
    const float2 softmax = *(const float2*)(partial + i * stride + HEAD);
    const Join join(largest, sum, softmax.x, softmax.y);
    answer = make_float4(join(answer.x, tile.x), join(answer.y, tile.y), join(answer.z, tile.z), join(answer.w, tile.w));
  }
}

template <class T, class F> DEVICE void few(const PagedAttentionArgs& a) {
  enter();
  constexpr bool IS_SCALED = F::IS_SCALED;
  alignas(16) __shared__ float partials[SPLIT_WARPS * FEW * PARTIAL];
  alignas(16) __shared__ uint32_t is_last[4];
  Queries queries;
  if (!find_queries(a, blockIdx.x, FEW, queries)) return;
  const uint32_t kv_head = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Fragments<T> rows;
  rows.load(a, queries, kv_head, 0, FEW);
  const uint32_t len = rows.longest, tiles = (len + TILE - 1) / TILE;

  // The query and columns that this thread joins.
  const uint32_t query = threadIdx.x / 16;
  const bool has_query = queries.first + query < queries.end;
  const size_t result = has_query ? (size_t)queries.token(query) * a.heads + queries.head(query, kv_head) : 0;
  float4 answer = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float largest = -INFINITY, sum = 0.0f;

  for (uint32_t base = split * SPLIT_WARPS; base < tiles; base += splits * SPLIT_WARPS) {
    const uint32_t tile = base + warp, first = tile * TILE;
    if (tile < tiles) {
      int32_t slots[2];
      uint32_t there[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t u = first + 32 * i + lane;
        slots[i] = u < len ? slot_of(a, queries.row, u) : -1;
        there[i] = __ballot_sync(0xffffffff, slots[i] >= 0);
      }
      Few<T, F> words;
      if (!IS_SCALED || is_aligned(a)) words.template read<true>(a, kv_head, slots);
      else words.template read<false>(a, kv_head, slots);

      float scores[8][4];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        uint32_t k[8];
        words.key(i, k);
        score<T>(rows.q, k, scores[i]);
      }
      float scales[IS_SCALED ? 8 : 1][2];
      words.spread(words.key_scales, a.scale * LOG2_E, scales);
      const bool is_whole = first + TILE <= rows.shortest && (there[0] & there[1]) == 0xffffffff;
      float tile_largest[2], tile_sums[2];
      soften<FEW, IS_SCALED>(scores, scales, a.scale * LOG2_E, is_whole, rows.visible, first, there, tile_largest, tile_sums);
      words.spread(words.value_scales, 1.0f, scales);
      uint32_t p[4][4];
      pack<T, FEW, IS_SCALED>(scores, scales, p);

      float sums[8][4] = {};
#pragma unroll
      for (int step = 0; step < 4; step++) {
        uint32_t v[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) words.value(4 * step + i, v[i]);
#pragma unroll
        for (int i = 0; i < 8; i++) mma<T>(sums[i], p[step], pair_of(v[0], v[1], i), pair_of(v[2], v[3], i));
      }
      if (queries.first + g < queries.end) {
        float* out = partials + (warp * FEW + g) * PARTIAL;
        if (splits > 1) {
          out = a.partials + (((size_t)queries.token(g) * a.heads + queries.head(g, kv_head)) * a.max_tiles + tile) * PARTIAL;
        }
        // The lane's columns are 16 t + i and 16 t + 8 + i.
#pragma unroll
        for (int i = 0; i < 2; i++) {
          ((float4*)(out + 16 * t))[i] = make_float4(sums[4 * i][0], sums[4 * i + 1][0], sums[4 * i + 2][0], sums[4 * i + 3][0]);
          ((float4*)(out + 16 * t + 8))[i] = make_float4(sums[4 * i][1], sums[4 * i + 1][1], sums[4 * i + 2][1], sums[4 * i + 3][1]);
        }
        if (t == 0) *(float2*)(out + HEAD) = make_float2(tile_largest[0], tile_sums[0]);
      }
    }
    if (splits > 1) continue;
    __syncthreads();
    if (has_query) join(partials + query * PARTIAL, FEW * PARTIAL, min(tiles - base, SPLIT_WARPS), answer, largest, sum);
    __syncthreads();
  }

  if (splits > 1) {
    // Everything written before is seen by the block that counts last.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t* counter = a.counters + blockIdx.x * a.kv_heads + kv_head;
      is_last[0] = atomic_add_acq_rel(counter, 1) == splits - 1;
      if (is_last[0]) *counter = 0;
    }
    __syncthreads();
    if (!is_last[0]) return;
    if (has_query) join(a.partials + result * a.max_tiles * PARTIAL, PARTIAL, tiles, answer, largest, sum);
  }
  if (!has_query || sum == 0.0f) return;
  const float inverse = __frcp_rn(sum);
  uint32_t* out = (uint32_t*)((T*)a.out + (size_t)queries.token(query) * a.out_stride + queries.head(query, kv_head) * HEAD) + threadIdx.x % 16 * 2;
  out[0] = pack2<T>(answer.x * inverse, answer.y * inverse);
  out[1] = pack2<T>(answer.z * inverse, answer.w * inverse);
}

// grid = (at least as many as find_queries finds, kv_heads, splits), block = 128.
#define FEW_KERNEL(name, T, F) \
  extern "C" __global__ void __launch_bounds__(128, 2) name(const PagedAttentionArgs a) { few<T, F>(a); }
FEW_KERNEL(paged_attention_split_bf16, bf16, Floats)
FEW_KERNEL(paged_attention_split_f16, f16, Floats)
FEW_KERNEL(paged_attention_split_bf16_int8, bf16, Codes<Int8>)
FEW_KERNEL(paged_attention_split_bf16_fp8, bf16, Codes<Fp8>)

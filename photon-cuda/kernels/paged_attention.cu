// Attention over the paged cache where rows have many queries: prompts.
//
// A block has 64 queries of one row and head of keys, 16 a warp, in registers. Tiles of 64 positions go through shared memory,
// the next one under way while one is computed (floats by `cp.async`; codes through registers, where they are widened).
// Positions beyond what the block's queries see are not read, and scores are only masked in tiles that need it.
//
// FLOPs: 4 * 64 for a query, head and position it sees; 740 tokens of 32 heads are 4.5 G. Shared memory moves 16 KiB for the
// 64 multiplications of a warp and tile.
#include "paged_attention.cuh"

constexpr uint32_t BLOCK_QUERIES = 64;

// Rows of 128 bytes, whose pieces of 16 change places from row to row, so that neither reads nor writes meet in a bank.
template <class T> DEVICE T* piece(T* tile, uint32_t row, uint32_t i) { return tile + row * HEAD + (i ^ row % 8) * 8; }

template <class T, class F> struct Prompt {
  static constexpr bool IS_SCALED = F::IS_SCALED;
  const PagedAttentionArgs& a;
  const uint32_t kv_head;
  T* const keys;     // [2, TILE, HEAD]
  T* const values;   // likewise
  float* const key_scales;    // [2, TILE]
  float* const value_scales;  // likewise
  int32_t* const slots;       // [2, TILE]
  // The next tile's codes: of half a key and half a value, with their scales.
  uint4 codes[IS_SCALED ? 4 : 1];
  float scale;

  // Begins to read tile `i`, whose slots are known.
  DEVICE void fetch(uint32_t i) {
    const uint32_t buffer = i % 2;
    if constexpr (IS_SCALED) {
      const uint32_t position = threadIdx.x / 2, half = threadIdx.x % 2;
      const int32_t slot = slots[buffer * TILE + position];
      const bool aligned = is_aligned(a);
#pragma unroll
      for (int j = 0; j < 4; j++) codes[j] = make_uint4(0, 0, 0, 0);
      scale = 0.0f;
      if (slot < 0) return;
      const uint8_t* k = a.k_cache + (size_t)slot * a.k_stride;
      const uint8_t* v = a.v_cache + (size_t)slot * a.v_stride;
      const uint32_t at = kv_head * HEAD + half * 32;
      codes[0] = load_16(k + at, aligned);
      codes[1] = load_16(k + at + 16, aligned);
      codes[2] = load_16(v + at, aligned);
      codes[3] = load_16(v + at + 16, aligned);
      scale = scale_at(a, half == 0 ? k : v, kv_head);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint32_t position = threadIdx.x / 8 + 16 * j, part = threadIdx.x % 8;
        const int32_t slot = slots[buffer * TILE + position];
        const bool is_there = slot >= 0;
        const size_t at = kv_head * HEAD * sizeof(T) + part * 16, row = is_there ? slot : 0;
        cp_async_16_zfill(piece(keys + buffer * TILE * HEAD, position, part), a.k_cache + row * a.k_stride + at, is_there);
        cp_async_16_zfill(piece(values + buffer * TILE * HEAD, position, part), a.v_cache + row * a.v_stride + at, is_there);
      }
      cp_async_commit();
    }
  }

  // Puts what was read of tile `i` where the warps look for it, as far as that is not done yet.
  DEVICE void deposit(uint32_t i) {
    const uint32_t buffer = i % 2;
    if constexpr (IS_SCALED) {
      const uint32_t position = threadIdx.x / 2, half = threadIdx.x % 2;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        T* tile = (j < 2 ? keys : values) + buffer * TILE * HEAD;
        uint4 low, high;
        F::widen(codes[j].x, low.x, low.y);
        F::widen(codes[j].y, low.z, low.w);
        F::widen(codes[j].z, high.x, high.y);
        F::widen(codes[j].w, high.z, high.w);
        *(uint4*)piece(tile, position, half * 4 + j % 2 * 2) = low;
        *(uint4*)piece(tile, position, half * 4 + j % 2 * 2 + 1) = high;
      }
      (half == 0 ? key_scales : value_scales)[buffer * TILE + position] = scale;
    } else {
      cp_async_wait<0>();
    }
  }
};

template <class T, class F> DEVICE void prompt(const PagedAttentionArgs& a) {
  enter();
  constexpr bool IS_SCALED = F::IS_SCALED;
  alignas(16) __shared__ T keys[2 * TILE * HEAD];
  alignas(16) __shared__ T values[2 * TILE * HEAD];
  alignas(16) __shared__ float key_scales[IS_SCALED ? 2 * TILE : 4];
  alignas(16) __shared__ float value_scales[IS_SCALED ? 2 * TILE : 4];
  alignas(16) __shared__ int32_t slots[2 * TILE];
  alignas(16) __shared__ uint32_t theres[4 * 2];  // which positions of a tile are in a block, a bit each
  alignas(16) __shared__ uint32_t lengths[4];
  Queries queries;
  if (!find_queries(a, blockIdx.x, BLOCK_QUERIES, queries)) return;
  const uint32_t kv_head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Fragments<T> rows;
  rows.load(a, queries, kv_head, warp * 16, 16);
  if (lane == 0) lengths[warp] = rows.longest;
  __syncthreads();
  const uint32_t len = max(max(lengths[0], lengths[1]), max(lengths[2], lengths[3]));
  const uint32_t tiles = (len + TILE - 1) / TILE;

  auto look_up = [&](uint32_t i) {
    if (threadIdx.x >= TILE || i >= tiles) return;
    const uint32_t u = i * TILE + threadIdx.x;
    const int32_t slot = u < len ? slot_of(a, queries.row, u) : -1;
    slots[i % 2 * TILE + threadIdx.x] = slot;
    const uint32_t there = __ballot_sync(0xffffffff, slot >= 0);
    if (lane == 0) theres[i % 4 * 2 + warp] = there;
  };

  Prompt<T, F> tile = {a, kv_head, keys, values, key_scales, value_scales, slots};
  float answer[8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sums[2] = {0.0f, 0.0f};
  look_up(0);
  __syncthreads();
  if (tiles > 0) tile.fetch(0);
  look_up(1);
  for (uint32_t i = 0; i < tiles; i++) {
    tile.deposit(i);
    __syncthreads();
    if (i + 1 < tiles) tile.fetch(i + 1);
    look_up(i + 2);
    const uint32_t first = i * TILE, buffer = i % 2;
    if (first >= rows.longest) continue;

    float scores[8][4];
    const T* key_tile = keys + buffer * TILE * HEAD;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const uint4 low = *(const uint4*)piece(key_tile, 8 * j + g, 2 * t), high = *(const uint4*)piece(key_tile, 8 * j + g, 2 * t + 1);
      const uint32_t k[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      score<T>(rows.q, k, scores[j]);
    }
    float scales[IS_SCALED ? 8 : 1][2];
    if constexpr (IS_SCALED) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float2 pair = *(const float2*)(key_scales + buffer * TILE + 8 * j + 2 * t);
        scales[j][0] = __fmul_rn(pair.x, a.scale * LOG2_E);
        scales[j][1] = __fmul_rn(pair.y, a.scale * LOG2_E);
      }
    }
    const uint32_t there[2] = {theres[i % 4 * 2], theres[i % 4 * 2 + 1]};
    const bool is_whole = first + TILE <= rows.shortest && (there[0] & there[1]) == 0xffffffff;
    float tile_largest[2], tile_sums[2];
    soften<16, IS_SCALED>(scores, scales, a.scale * LOG2_E, is_whole, rows.visible, first, there, tile_largest, tile_sums);
    if constexpr (IS_SCALED) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float2 pair = *(const float2*)(value_scales + buffer * TILE + 8 * j + 2 * t);
        scales[j][0] = pair.x;
        scales[j][1] = pair.y;
      }
    }
    uint32_t p[4][4];
    pack<T, 16, IS_SCALED>(scores, scales, p);

    const Join joins[2] = {{largest[0], sums[0], tile_largest[0], tile_sums[0]}, {largest[1], sums[1], tile_largest[1], tile_sums[1]}};
    const T* value_tile = values + buffer * TILE * HEAD;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      float sum[2][4] = {};
#pragma unroll
      for (int step = 0; step < 4; step++) {
        // Positions 0 to 16 of the step, of columns 8 j to 8 j + 16.
        uint32_t v[4];
        ldmatrix_x4_trans(v, piece(value_tile, 16 * step + lane % 16, j + lane / 16));
        mma<T>(sum[0], p[step], v[0], v[1]);
        mma<T>(sum[1], p[step], v[2], v[3]);
      }
#pragma unroll
      for (int c = 0; c < 4; c++) {
        answer[j][c] = joins[c / 2](answer[j][c], sum[0][c]);
        answer[j + 1][c] = joins[c / 2](answer[j + 1][c], sum[1][c]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t i = warp * 16 + g + 8 * half;
    if (queries.first + i >= queries.end || sums[half] == 0.0f) continue;
    const float inverse = __frcp_rn(sums[half]);
    uint32_t* out = (uint32_t*)((T*)a.out + (size_t)queries.token(i) * a.out_stride + queries.head(i, kv_head) * HEAD);
#pragma unroll
    for (int j = 0; j < 8; j++) out[4 * j + t] = pack2<T>(answer[j][2 * half] * inverse, answer[j][2 * half + 1] * inverse);
  }
}

// grid = (at least as many as find_queries finds, kv_heads), block = 128.
#define PROMPT(name, T, F) \
  extern "C" __global__ void __launch_bounds__(128, 2) name(const PagedAttentionArgs a) { prompt<T, F>(a); }
PROMPT(paged_attention_bf16, bf16, Floats)
PROMPT(paged_attention_f16, f16, Floats)
PROMPT(paged_attention_bf16_int8, bf16, Codes<Int8>)
PROMPT(paged_attention_bf16_fp8, bf16, Codes<Fp8>)

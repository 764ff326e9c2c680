// Attention over the paged cache for heads of 64, by tensor cores.
//
// # The arithmetic
// Two kernels answer the same queries with the same bits, so that a token's answer does not depend on its batch or on how its
// row was cut into steps. A context is cut into tiles of 64 positions, from position 0 on. Of a tile and a query:
//
//   x[u] = scale log2(e) (q . k[u]), minus infinity where the query does not see u;  m = max x;  p[u] = 2^(x[u] - m)
//   l = sum p;  o = sum round(p[u]) v[u], from zero on
//
// and tiles join from left to right: M' = max(M, m), a = 2^(M - M'), b = 2^(m - M'), L' = L a + l b, O' = O a + o b. Shares
// are rounded to the type of the values, as every kernel on tensor cores does. What a query does not see adds exact zeros, and
// a tile it sees nothing of changes nothing, whoever else is in the block.
//
// Of an 8-bit cache codes are numbers of bf16 too; a key's scale multiplies its score, a value's scale its share.
//
// # Fragments
// A warp has 16 queries (rows) by 64 positions. The order of k within a multiplication is ours to choose, so for q . k lane
// (g, t) has elements 16 t .. 16 t + 16 of key g: 32 bytes of a row, straight from memory. For p v the order is the usual one,
// as p comes out of the first multiplication that way.
#pragma once
#include "attention.cuh"
#include "weights.cuh"

constexpr int HEAD = 64, TILE = 64;

// What a cache holds: floats of the queries' type, or codes.
struct Floats {
  static constexpr bool IS_SCALED = false;
};
template <class F> struct Codes {
  static constexpr bool IS_SCALED = true;
  // The pairs of bf16 that four codes are.
  DEVICE static void widen(uint32_t codes, uint32_t& low, uint32_t& high) {
    low = F::template pair<bf16>(codes, F::LOW);
    high = F::template pair<bf16>(codes, F::HIGH);
  }
};

// The queries of a warp as operands, and what each sees. Rows are g and g + 8; one that is not there sees nothing.
template <class T> struct Fragments {
  uint32_t q[4][4];
  uint32_t visible[2];
  uint32_t longest, shortest;  // of all that are there

  DEVICE void load(const PagedAttentionArgs& a, const Queries& queries, uint32_t kv_head, uint32_t first, int rows) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    longest = 0;
    shortest = 0xffffffff;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t i = first + g + 8 * half;
      uint4 low = make_uint4(0, 0, 0, 0), high = low;
      visible[half] = 0;
      if (half * 8 < rows && queries.first + i < queries.end) {
        const uint32_t token = queries.token(i);
        const uint4* p = (const uint4*)((const T*)a.q + (size_t)token * a.q_stride + queries.head(i, kv_head) * HEAD + 16 * t);
        low = p[0];
        high = p[1];
        visible[half] = visible_to(a, token);
        longest = max(longest, visible[half]);
        shortest = min(shortest, visible[half]);
      }
      const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 8; i++) q[i / 2][i % 2 * 2 + half] = words[i];
    }
    longest = __reduce_max_sync(0xffffffff, longest);
    shortest = __reduce_min_sync(0xffffffff, shortest);
  }
};

// The scores of 8 keys, of which the lane holds its 16 elements of key g.
template <class T> DEVICE void score(const uint32_t (&q)[4][4], const uint32_t (&k)[8], float (&scores)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) scores[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) mma<T>(scores, q[i], k[2 * i], k[2 * i + 1]);
}

// Scores become shares relative to the largest of the tile: of row g in [0] and [1], of row g + 8, if ROWS is 16, in [2] and
// [3]. `scales`: of the lane's keys, if the cache has any.
template <int ROWS, bool IS_SCALED>
DEVICE void soften(float (&scores)[8][4], const float (&scales)[IS_SCALED ? 8 : 1][2], float scale, bool is_whole, const uint32_t (&visible)[2],
                   uint32_t first, const uint32_t (&there)[2], float (&largest)[2], float (&sums)[2]) {
  const uint32_t t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < ROWS / 8; half++) {
    float top = -INFINITY;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float& x = scores[i][2 * half + j];
        x = __fmul_rn(x, IS_SCALED ? scales[IS_SCALED ? i : 0][j] : scale);
        if (!is_whole) {
          const uint32_t at = 8 * i + 2 * t + j;
          if (first + at >= visible[half] || !(there[i / 4] >> (at % 32) & 1)) x = -INFINITY;
        }
        top = fmaxf(top, x);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
    const float base = top == -INFINITY ? 0.0f : top;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float& x = scores[i][2 * half + j];
        x = fast_exp2(__fsub_rn(x, base));
        sum = __fadd_rn(sum, x);
      }
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffff, sum, 1));
    sums[half] = __fadd_rn(sum, __shfl_xor_sync(0xffffffff, sum, 2));
    largest[half] = top;
  }
}

// Shares as operands, 16 positions a step. `scales`: of the lane's values.
template <class T, int ROWS, bool IS_SCALED>
DEVICE void pack(const float (&shares)[8][4], const float (&scales)[IS_SCALED ? 8 : 1][2], uint32_t (&p)[4][4]) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float low = shares[i][2 * half], high = shares[i][2 * half + 1];
      if (IS_SCALED) {
        low = __fmul_rn(low, scales[IS_SCALED ? i : 0][0]);
        high = __fmul_rn(high, scales[IS_SCALED ? i : 0][1]);
      }
      p[i / 2][i % 2 * 2 + half] = half * 8 < ROWS ? pack2<T>(low, high) : 0;
    }
  }
}

// What joins a tile to those before it.
struct Join {
  float old_factor, new_factor;

  DEVICE Join(float& largest, float& sum, float tile_largest, float tile_sum) {
    const float top = fmaxf(largest, tile_largest), base = top == -INFINITY ? 0.0f : top;
    old_factor = fast_exp2(__fsub_rn(largest, base));
    new_factor = fast_exp2(__fsub_rn(tile_largest, base));
    sum = __fmaf_rn(sum, old_factor, __fmul_rn(tile_sum, new_factor));
    largest = top;
  }
  DEVICE float operator()(float old, float tile) const { return __fmaf_rn(old, old_factor, __fmul_rn(tile, new_factor)); }
};

DEVICE uint4 load_16(const uint8_t* p, bool is_aligned) {
  if (is_aligned) return *(const uint4*)p;
  const uint32_t* w = (const uint32_t*)p;
  return make_uint4(w[0], w[1], w[2], w[3]);
}

// Whether what a lane takes of a row at a time begins at multiples of its size; else of 4.
DEVICE bool is_aligned(const PagedAttentionArgs& a) {
  return ((size_t)a.k_cache | (size_t)a.v_cache | a.k_stride | a.v_stride) % 16 == 0;
}

DEVICE float scale_at(const PagedAttentionArgs& a, const uint8_t* row, uint32_t kv_head) {
  return *(const float*)(row + (size_t)a.kv_heads * HEAD + kv_head * 4);
}

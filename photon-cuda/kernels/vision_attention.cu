// Attention within sequences of equal length, by tensor cores: the vision tower's, 729 positions of heads of 72.
//
// A block has 128 queries of a head, 32 a warp, which stay in registers: every fragment of keys and values that a warp takes
// from shared memory serves two multiplications, as shared memory would else be what it waits for. Tiles of 48 or 64
// positions (what registers allow) come in by `cp.async`, one while another is computed; only the last one, if it is not whole, is masked. Softmax is kept as it
// goes: the largest score so far, the sum, and answers relative to it. Shares are rounded to the type of the values.
//
// A head of 72 is four and a half steps of the multiplication: the last half is zero in registers and neither read nor stored.
// Rows of 144 bytes begin in different banks, eight after each other, so nothing is swizzled.
//
// FLOPs: 4 * 72 for each pair of positions and head, 2.45 G a crop and block of the model; of 16 tiles 5 % are padding, of
// the fifth step of q . k half: 1.1 times the useful. Reads 6.9 KiB a position from DRAM, and K and V six times from L2.
#include "attention.cuh"
#include "weights.cuh"

constexpr uint32_t VISION_QUERIES = 128;

template <class T, int DIM, int TILE> DEVICE void vision(const AttentionArgs& a) {
  enter();
  static_assert(DIM % 8 == 0 && TILE % 16 == 0, "whole vectors, whole steps");
  constexpr int STRIDE = DIM % 16 == 0 ? DIM + 8 : DIM, STEPS = (DIM + 15) / 16, COLUMNS = DIM / 8, VECTORS = DIM / 8;
  constexpr bool HAS_HALF = DIM % 16 != 0;
  alignas(16) __shared__ T keys[2 * TILE * STRIDE];
  alignas(16) __shared__ T values[2 * TILE * STRIDE];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t head = blockIdx.y, width = a.heads * DIM;
  const T* qkv = (const T*)a.qkv + (size_t)blockIdx.z * a.seq_len * a.qkv_stride + head * DIM;

  auto fetch = [&](uint32_t tile) {
    T* k = keys + tile % 2 * TILE * STRIDE;
    T* v = values + tile % 2 * TILE * STRIDE;
    for (uint32_t i = threadIdx.x; i < TILE * VECTORS; i += 128) {
      const uint32_t row = i / VECTORS, column = i % VECTORS * 8, position = tile * TILE + row;
      const bool is_there = position < a.seq_len;
      const T* from = qkv + (size_t)(is_there ? position : 0) * a.qkv_stride + width + column;
      cp_async_16_zfill(k + row * STRIDE + column, from, is_there);
      cp_async_16_zfill(v + row * STRIDE + column, from + width, is_there);
    }
    cp_async_commit();
  };
  fetch(0);

  uint32_t q[2][STEPS][4];
#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t i = blockIdx.x * VISION_QUERIES + warp * 32 + m * 16 + half * 8 + g;
      const uint32_t* row = (const uint32_t*)(qkv + (size_t)min(i, a.seq_len - 1) * a.qkv_stride);
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        q[m][step][half] = row[8 * step + t];
        q[m][step][half + 2] = HAS_HALF && step == STEPS - 1 ? 0 : row[8 * step + 4 + t];
      }
    }
  }

  float answer[2][COLUMNS][4] = {};
  float largest[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, sums[2][2] = {};
  const float scale = a.scale * LOG2_E;
  const uint32_t tiles = (a.seq_len + TILE - 1) / TILE;
  for (uint32_t tile = 0; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < tiles) fetch(tile + 1);
    const T* key_tile = keys + tile % 2 * TILE * STRIDE;
    const T* value_tile = values + tile % 2 * TILE * STRIDE;

    float scores[2][TILE / 8][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
      for (int j = 0; j < TILE / 8; j += 2) {
        // Keys 8 j to 8 j + 16.
        uint32_t k[4];
        if (HAS_HALF && step == STEPS - 1) {
          uint32_t half[2];
          ldmatrix_x2(half, key_tile + (8 * j + lane % 16) * STRIDE + 16 * step);
          k[0] = half[0];
          k[2] = half[1];
          k[1] = k[3] = 0;
        } else {
          ldmatrix_x4(k, key_tile + (8 * j + lane % 8 + lane / 16 * 8) * STRIDE + 16 * step + lane / 8 % 2 * 8);
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
          mma<T>(scores[m][j], q[m][step], k[0], k[1]);
          mma<T>(scores[m][j + 1], q[m][step], k[2], k[3]);
        }
      }
    }
    if ((tile + 1) * TILE > a.seq_len) {
#pragma unroll
      for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
          if (tile * TILE + 8 * j + 2 * t + c % 2 < a.seq_len) continue;
          scores[0][j][c] = scores[1][j][c] = -INFINITY;
        }
      }
    }

    uint32_t p[2][TILE / 16][4];
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = largest[m][half];
#pragma unroll
        for (int j = 0; j < TILE / 8; j++) top = fmaxf(top, fmaxf(scores[m][j][2 * half], scores[m][j][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
        // Of the first tile the old one is minus infinity, and the factor 0.
        const float factor = fast_exp2((largest[m][half] - top) * scale), base = top * scale;
        largest[m][half] = top;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < TILE / 8; j++) {
          const float low = fast_exp2(fmaf(scores[m][j][2 * half], scale, -base));
          const float high = fast_exp2(fmaf(scores[m][j][2 * half + 1], scale, -base));
          sum += low + high;
          p[m][j / 2][j % 2 * 2 + half] = pack2<T>(low, high);
        }
        sums[m][half] = sums[m][half] * factor + sum;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
          answer[m][j][2 * half] *= factor;
          answer[m][j][2 * half + 1] *= factor;
        }
      }
    }

#pragma unroll
    for (int step = 0; step < TILE / 16; step++) {
      const T* rows = value_tile + (16 * step + lane % 16) * STRIDE;
#pragma unroll
      for (int j = 0; j < COLUMNS; j += 2) {
        uint32_t v[4];
        if (j + 1 == COLUMNS) {
          uint32_t one[2];
          ldmatrix_x2_trans(one, rows + 8 * j);
          v[0] = one[0];
          v[1] = one[1];
        } else {
          ldmatrix_x4_trans(v, rows + 8 * (j + lane / 16));
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
          mma<T>(answer[m][j], p[m][step], v[0], v[1]);
          if (j + 1 < COLUMNS) mma<T>(answer[m][j + 1 < COLUMNS ? j + 1 : j], p[m][step], v[2], v[3]);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = sums[m][half];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      const float inverse = 1.0f / sum;
      const uint32_t i = blockIdx.x * VISION_QUERIES + warp * 32 + m * 16 + half * 8 + g;
      if (i >= a.seq_len) continue;
      uint32_t* out = (uint32_t*)((T*)a.out + ((size_t)blockIdx.z * a.seq_len + i) * a.out_stride + head * DIM);
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) out[4 * j + t] = pack2<T>(answer[m][j][2 * half] * inverse, answer[m][j][2 * half + 1] * inverse);
    }
  }
}

// grid = (seq_len / 128, heads, num_seqs), block = 128. Scale is positive; rows begin at multiples of 16 bytes.
#define VISION(name, T, DIM, TILE) \
  extern "C" __global__ void __launch_bounds__(128, 2) name(const AttentionArgs a) { vision<T, DIM, TILE>(a); }
VISION(attention_bf16_32, bf16, 32, 64)
VISION(attention_bf16_64, bf16, 64, 64)
VISION(attention_bf16_72, bf16, 72, 48)
VISION(attention_f16_32, f16, 32, 64)
VISION(attention_f16_64, f16, 64, 64)
VISION(attention_f16_72, f16, 72, 48)

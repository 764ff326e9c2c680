// Linear layers of many rows, on tensor cores.
//
// A block of eight warps has 128 features and ROWS rows. Weights and activations pass through a ring of STAGES stages of 64
// elements of k in shared memory, filled by cp.async two stages or more ahead. Codes lie there as they lie in memory, and
// become 16-bit numbers on the way to the multiplication. Floats, weights and activations, are rows of 128 bytes, the two
// halves of odd ones exchanged, so that eight lanes that read two rows meet 32 different banks.
// A part of k that is done is added to `total`: see linear.cuh.
//
// Bytes: weights once per row tile, activations once per 128 features, from L2.  FLOPs: 2 n k rows, padded to tiles.
// grid = (features / 128, rows / ROWS), block = 256, shared = TILE_SHARED.
#pragma once
#include "linear_skinny.cuh"

// Features of a tile, in blocks of 16; threads.
constexpr int TILE_M = 8, TILE_THREADS = 256;

template <class F, int ROWS> struct Tile {
  static constexpr int CODES = TILE_M * BLOCK_BYTES<F>;
  static constexpr int SCALES = F::GROUP_SCALES ? TILE_M * 2 * 128 : 0;
  static constexpr int STAGE = CODES + SCALES + ROWS * 128;
  // What fits in 96 KiB, which every architecture has: 3 of floats, 4 of codes.
  static constexpr int STAGES = F::WORDS == 4 ? 3 : 4;
  // Warps side by side along the features; a warp has MT x 16 features and 32 rows.
  static constexpr int WARPS_N = ROWS / 32, WARPS_M = 8 / WARPS_N, MT = TILE_M / WARPS_M, NT = 4;
};

// Where vector `vector` of row `row` of a stage's floats lies.
DEVICE uint32_t swizzled(uint32_t row, uint32_t vector) { return 128 * row + 16 * (vector ^ (row % 2 * 4)); }

// Starts the copies of block `block` of k to a stage: of 8 x 16 features from `tile` on, and of `rows` rows, those from
// `first` on or those of `list`.
template <class T, class F, int ROWS>
DEVICE void load_stage(const LinearArgs& a, const uint8_t* matrix, const uint32_t* list, uint32_t first, uint32_t rows,
                       uint32_t block, uint8_t* stage) {
  typedef Tile<F, ROWS> S;
  const uint32_t tile = blockIdx.x * TILE_M;
#pragma unroll
  for (int i = threadIdx.x; i < S::CODES / 16; i += TILE_THREADS) {
    const uint32_t m = tile + i / (BLOCK_BYTES<F> / 16);
    const bool valid = m * BLOCK_N < a.n;
    uint32_t to = 16 * i;
    size_t from = ((size_t)m * a.k_blocks + block) * BLOCK_BYTES<F> + i % (BLOCK_BYTES<F> / 16) * 16;
    if (F::WORDS == 4) {
      const uint32_t row = i / 8;
      to = swizzled(row, i % 8);
      from = ((size_t)(tile * BLOCK_N + row) * a.k_blocks + block) * (2 * BLOCK_K) + i % 8 * 16;
    }
    cp_async_16_zfill(stage + to, matrix + (valid ? from : 0), valid);
  }
  if (S::SCALES && threadIdx.x < S::SCALES / 16) {
    const uint32_t i = threadIdx.x, m = tile + i / 16;
    const bool valid = m * BLOCK_N < a.n;
    const float4* scales = group_scales(a, matrix, valid ? m : 0, 2 * block + i / 8 % 2, i % 8);
    cp_async_16_zfill(stage + S::CODES + 16 * i, scales, valid);
  }
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * 8; i += TILE_THREADS) {
    const uint32_t row = i / 8, vector = i % 8, k = block * BLOCK_K + 8 * vector;
    uint8_t* to = stage + S::CODES + S::SCALES + swizzled(row, vector);
    const bool valid = row < rows && k < a.k;
    const T* from = (const T*)a.x;
    if (valid) from += (size_t)(list ? list[row] / a.per_row : first + row) * a.x_stride + k;
    if (a.x_align >= 16 && k + 8 <= a.k) {
      cp_async_16_zfill(to, from, valid);
    } else if (a.x_align >= 8 && k + 8 <= a.k) {
      cp_async_8_zfill(to, from, valid);
      cp_async_8_zfill(to + 8, valid ? from + 4 : from, valid);
    } else {
      *(uint4*)to = load8_bits(from, valid ? (int)(a.k - k) : 0, a.x_align);
    }
  }
}

template <class T, class F, int ROWS>
DEVICE void multiply_stage(const uint8_t* stage, float (&sums)[4][Tile<F, ROWS>::MT][4]) {
  typedef Tile<F, ROWS> S;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4;
  const int m0 = warp / S::WARPS_N * S::MT, row0 = warp % S::WARPS_N * 32 + lane / 4;
#pragma unroll(F::GROUP_SCALES ? 1 : 2)
  for (int half = 0; half < 2; half++) {
    uint4 x[S::NT];
    float all[S::NT][4];
#pragma unroll
    for (int i = 0; i < S::NT; i++) {
      const int row = row0 + 8 * i;
      x[i] = *(const uint4*)(stage + S::CODES + S::SCALES + swizzled(row, 4 * half + t));
      sum_activations<T, F>(all[i], x[i]);
    }
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
      const uint8_t* block = stage + (m0 + m) * BLOCK_BYTES<F> + 16 * lane;
      uint32_t words[2 * F::WORDS], fragments[2][4];
      if constexpr (F::WORDS == 1) {
        const uint2 v = *(const uint2*)(block + 8 * half);
        words[0] = v.x;
        words[1] = v.y;
      } else {
#pragma unroll
        for (int i = 0; i < F::WORDS / 2; i++) {
          const uint32_t row = (m0 + m) * BLOCK_N + lane / 4 + 8 * i;
          const uint4 v = *(const uint4*)(F::WORDS == 4 ? stage + swizzled(row, 4 * half + t) : block + 512 * half);
          words[4 * i] = v.x;
          words[4 * i + 1] = v.y;
          words[4 * i + 2] = v.z;
          words[4 * i + 3] = v.w;
        }
      }
      F::template fragments<T>(words, fragments);
      float4 factors = make_float4(0, 0, 0, 0);
      if (F::GROUP_SCALES) factors = *(const float4*)(stage + S::CODES + ((m0 + m) * 2 + half) * 128 + lane / 4 * 16);
#pragma unroll
      for (int i = 0; i < S::NT; i++) multiply<T, F>(sums[i][m], fragments, factors, all[i], x[i]);
    }
  }
}

// One tile of the output: `rows` rows from `first` on, or those of `list`.
template <class T, class F, int ROWS>
DEVICE void tile_rows(const LinearArgs& a, const uint8_t* matrix, const uint32_t* list, uint32_t first, uint32_t rows,
                      uint8_t* shared) {
  typedef Tile<F, ROWS> S;
  float sums[S::NT][S::MT][4] = {}, total[S::NT][S::MT][4] = {};
#pragma unroll
  for (int s = 0; s < S::STAGES - 1; s++) {
    if (s < a.k_blocks) load_stage<T, F, ROWS>(a, matrix, list, first, rows, s, shared + s * S::STAGE);
    cp_async_commit();
  }
  uint32_t left = a.part_blocks;
  for (uint32_t block = 0; block < a.k_blocks; block++) {
    cp_async_wait<S::STAGES - 2>();
    // All have what was copied, and are done with the stage that is filled next.
    __syncthreads();
    const uint32_t ahead = block + S::STAGES - 1;
    if (ahead < a.k_blocks) load_stage<T, F, ROWS>(a, matrix, list, first, rows, ahead, shared + ahead % S::STAGES * S::STAGE);
    cp_async_commit();
    multiply_stage<T, F, ROWS>(shared + block % S::STAGES * S::STAGE, sums);
    if (--left == 0 || block + 1 == a.k_blocks) {
      left = a.part_blocks;
#pragma unroll
      for (int i = 0; i < S::NT; i++) {
#pragma unroll
        for (int m = 0; m < S::MT; m++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            total[i][m][e] += sums[i][m][e];
            sums[i][m][e] = 0.0f;
          }
        }
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();

  // A lane has two features of two rows; to write rows, eight of them at a time pass through shared memory.
  constexpr int WIDTH = 16 * S::MT, STRIDE = WIDTH + 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const uint32_t feature0 = (blockIdx.x * TILE_M + warp / S::WARPS_N * S::MT) * BLOCK_N, row0 = warp % S::WARPS_N * 32;
  float* mine = (float*)shared + warp * 8 * STRIDE;
#pragma unroll
  for (int i = 0; i < S::NT; i++) {
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) mine[(2 * t + e % 2) * STRIDE + 16 * m + g + 8 * (e / 2)] = total[i][m][e];
    }
    __syncwarp();
#pragma unroll
    for (int j = lane; j < WIDTH; j += 32) {
      const uint32_t row = row0 + 8 * i + j / (WIDTH / 8), feature = j % (WIDTH / 8) * 8;
      float out[8];
#pragma unroll
      for (int e = 0; e < 8; e++) out[e] = mine[j / (WIDTH / 8) * STRIDE + feature + e];
      if (row < rows && feature0 + feature < a.n) {
        put8<F::ROW_SCALES>(a, matrix, list ? list[row] : first + row, feature0 + feature, out);
      }
    }
    __syncwarp();
  }
}

template <class T, class F> DEVICE void tile(const LinearArgs& a) {
  DYNAMIC_SHARED(uint8_t, shared);
  enter();
  const uint32_t first = blockIdx.y * 128;
  tile_rows<T, F, 128>(a, a.w, nullptr, first, min(a.rows - first, 128u), shared);
}

// Rows of a tile of `grouped_tile`.
constexpr uint32_t GROUPED_ROWS = 64;

// Many rows that differ in their matrix, sorted by it: `tiles` holds a group, a first place and a number of rows, three words
// for each tile there may be, group -1 past the last; behind them the rows, in order of groups. group_rows makes it.
// grid = (features / 128, tiles).
template <class T, class F> DEVICE void tile_grouped(const LinearArgs& a) {
  DYNAMIC_SHARED(uint8_t, shared);
  __shared__ uint32_t list[GROUPED_ROWS];
  enter();
  const int32_t* mine = a.tiles + 3 * blockIdx.y;
  const int32_t group = mine[0];
  if (group < 0) return;
  const uint32_t rows = mine[2];
  if (threadIdx.x < rows) list[threadIdx.x] = a.tiles[3 * gridDim.y + mine[1] + threadIdx.x];
  __syncthreads();
  tile_rows<T, F, GROUPED_ROWS>(a, matrix_of(a, group), list, 0, rows, shared);
}

// Linear layers of any types, in f32: what the tensor cores cannot multiply exactly, and what need not be fast.
//
// A block has 16 features and a few rows; each of its warps sums one part of k, and the block adds the parts. A lane
// multiplies as it would load a fragment: two features, eight elements of k at a time. Weights are read once per block from
// L2, activations once per warp.  grid = (rows / ROWS, features / 16), block = 32 parts.
#include "linear.cuh"

constexpr int MAX_PARTS = 16;

// The sums of features `lane / 4` and `lane / 4 + 8` over this warp's part, in the lanes with `lane % 4 == 0`.
template <int ROWS>
DEVICE void sum_part(const LinearArgs& a, const uint8_t* const (&matrices)[ROWS], const size_t (&x)[ROWS],
                                float (&sums)[ROWS][2]) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  const uint32_t part = threadIdx.x / 32, tile = blockIdx.y;
  const uint32_t begin = part * a.part_blocks, end = min(begin + a.part_blocks, a.k_blocks);
  for (uint32_t half = 2 * begin; half < 2 * end; half++) {
    float low[8], high[8];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (r == 0 || matrices[r] != matrices[r - 1]) {
        if (!matrices[r]) continue;
        const float4 scales = a.format == FORMAT_INT4 ? *group_scales(a, matrices[r], tile, half, lane / 4) : float4{};
        unpack_half(matrices[r], a.format, a.k_blocks, tile, half, scales, low, high);
      }
      if (!matrices[r]) continue;
      const uint32_t k = 32 * half + 8 * t;
      float xs[8];
      load8(a.x, x[r] + k, a.x_type, (int)a.k - (int)k, a.x_align, xs);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        sums[r][0] += xs[i] * low[i];
        sums[r][1] += xs[i] * high[i];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      sums[r][i] += __shfl_xor_sync(0xffffffff, sums[r][i], 1);
      sums[r][i] += __shfl_xor_sync(0xffffffff, sums[r][i], 2);
    }
  }
}

template <int ROWS> DEVICE void any_rows(const LinearArgs& a) {
  __shared__ float parts[MAX_PARTS][ROWS][BLOCK_N];
  enter();
  const uint32_t first = blockIdx.x * ROWS;
  const uint8_t* matrices[ROWS];
  size_t x[ROWS];
  float sums[ROWS][2] = {};
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const uint32_t row = first + r;
    matrices[r] = nullptr;
    if (row < a.rows) {
      const int32_t group = a.groups ? a.groups[row] : 0;
      if (group >= 0 && group < (int32_t)a.count) matrices[r] = matrix_of(a, group);
    }
    x[r] = (size_t)(row / a.per_row) * a.x_stride;
  }
  sum_part<ROWS>(a, matrices, x, sums);
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  if (lane % 4 == 0) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      parts[part][r][lane / 4] = sums[r][0];
      parts[part][r][lane / 4 + 8] = sums[r][1];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * BLOCK_N; i += blockDim.x) {
    const uint32_t row = first + i / BLOCK_N, feature = blockIdx.y * BLOCK_N + i % BLOCK_N;
    const int32_t group = row < a.rows && a.groups ? a.groups[row] : 0;
    if (row >= a.rows || feature >= a.n || group < 0 || group >= (int32_t)a.count) continue;
    float sum = 0.0f;
    for (uint32_t p = 0; p < a.parts; p++) sum += parts[p][i / BLOCK_N][i % BLOCK_N];
    if (a.format == FORMAT_INT8 || a.format == FORMAT_FP8) put<true>(a, matrix_of(a, group), row, feature, sum);
    else put<false>(a, matrix_of(a, group), row, feature, sum);
  }
}

extern "C" __global__ void __launch_bounds__(32 * MAX_PARTS, 1) linear_any(const LinearArgs a) { any_rows<4>(a); }

// Rows that differ in their matrix.
extern "C" __global__ void __launch_bounds__(32 * MAX_PARTS, 1) grouped_any(const LinearArgs a) { any_rows<1>(a); }

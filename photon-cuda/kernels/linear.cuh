// What the kernels of linear layers share: their arguments, and what happens to a finished sum.
//
// # The order of summation
// An element of the output is `scale sum + bias`, activated, plus what was there. Its sum is the same expression in every
// kernel that a row can move between, whatever the number of rows: k is cut into `parts` stretches of `part_blocks` blocks, a
// matter of the weight alone; the sum of a part is one chain of multiplications of 16 elements of k from zero, in order of k;
// parts are added to zero in order. Kernels for few rows give each part to a warp of one block and add at the end; kernels for
// many walk through the parts and add as they go. So a row has the same bits alone and among thousands. Which chain (tensor
// cores for 16-bit activations, f32 elsewhere) is a matter of the types.
#pragma once
#include "weights.cuh"

struct LinearArgs {
  void* out;               // [rows, n], stride out_stride
  const void* x;           // [rows / per_row, k], stride x_stride
  const uint8_t* w;        // matrices of matrix_bytes, laid out as weights.cuh says
  const float* bias;       // [n], or null
  const void* add;         // added after the activation: row i % add_period, stride add_stride; or null. May be out
  const int32_t* groups;   // [rows], the matrix of each row, or null
  const int32_t* tiles;    // of grouped tiles: what group_rows made
  uint32_t rows, n, k;
  uint32_t x_stride, out_stride, add_stride, add_period;  // in elements; rows of the table
  uint32_t x_type, out_type, add_type;
  uint32_t x_align, out_align, add_align;  // bytes that every row's beginning is a multiple of: 16, 8 or less
  uint32_t activation;
  uint32_t format;
  uint32_t k_blocks, part_blocks, parts;
  uint32_t scales, group_shift;  // bytes from a matrix to its scales; int4: 2^group_shift halves of blocks share them
  uint32_t matrix_bytes, count, per_row;  // of groups: matrices, and rows of out to a row of x
  uint32_t padding;
};

// Matrix `group`.
DEVICE const uint8_t* matrix_of(const LinearArgs& a, int32_t group) {
  return a.w + (size_t)group * a.matrix_bytes;
}

// Scale and offset of features f and f + 8 of 16, for 32 elements of k.
DEVICE const float4* group_scales(const LinearArgs& a, const uint8_t* matrix, uint32_t tile, uint32_t half, int f) {
  const uint32_t groups = ((2 * a.k_blocks - 1) >> a.group_shift) + 1;
  return (const float4*)(matrix + a.scales) + ((size_t)tile * groups + (half >> a.group_shift)) * 8 + f;
}

template <bool ROW_SCALES>
DEVICE float finish(const LinearArgs& a, const uint8_t* matrix, uint32_t feature, float sum) {
  const float scale = ROW_SCALES ? ((const float*)(matrix + a.scales))[feature] : 1.0f;
  const float bias = a.bias ? a.bias[feature] : 0.0f;
  return activate(fmaf(sum, scale, bias), a.activation);
}

// Finishes and stores one element.
template <bool ROW_SCALES>
DEVICE void put(const LinearArgs& a, const uint8_t* matrix, uint32_t row, uint32_t feature, float sum) {
  float value = finish<ROW_SCALES>(a, matrix, feature, sum);
  if (a.add) value += load(a.add, (size_t)(row % a.add_period) * a.add_stride + feature, a.add_type);
  store(a.out, (size_t)row * a.out_stride + feature, a.out_type, value);
}

// Finishes and stores those of eight elements from `feature` on, a multiple of eight, that there are.
template <bool ROW_SCALES>
DEVICE void put8(const LinearArgs& a, const uint8_t* matrix, uint32_t row, uint32_t feature, float (&sums)[8]) {
  const int count = (int)(a.n - feature);
  float old[8] = {};
  if (a.add) load8(a.add, (size_t)(row % a.add_period) * a.add_stride + feature, a.add_type, count, a.add_align, old);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (i < count) sums[i] = finish<ROW_SCALES>(a, matrix, feature + i, sums[i]);
    if (a.add) sums[i] += old[i];
  }
  store8(a.out, (size_t)row * a.out_stride + feature, a.out_type, count, a.out_align, sums);
}

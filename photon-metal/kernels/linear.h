// What the kernels of linear layers share: their arguments, activations, and what happens to a finished sum.
//
// # The order of summation
// An element of the output is `scale sum + bias`, activated, plus what was there. Its sum is the same expression in every
// kernel that a row can move between, whatever the number of rows: k is cut into `parts` stretches of `part_blocks` blocks, a
// matter of the weight alone; the sum of a part is one chain from zero, `sum = fma(x, w, sum)`, block after block, within a block
// in the order of the multiplications of matrices (`for j in 0 .. 4, for p in 0 .. 8: k = 4 p + j`); parts are added to zero in
// order. Kernels for few rows give each part to a SIMD-group of one threadgroup and add at the end; kernels for many walk through
// the parts and add as they go. So a row has the same bits alone and among thousands.
//
// That a multiplication of matrices adds eight products to its sum one after the other, each rounded once, nobody promises; it
// is what GPUs that multiply matrices on their ordinary units do. `matrix_chain` asks the device, and where the answer is no,
// no row goes through the kernels of linear_row.h, which are made of fma.
#pragma once
#include "weights.h"

struct LinearArgs {
  device void* out;           // [rows, n], stride out_stride
  device const void* x;       // [rows / per_row, k], stride x_stride
  device const uchar* w;      // matrices of matrix_bytes, laid out as weights.h says
  device const float* bias;   // [n], or null
  device const void* add;     // added after the activation: row i % add_period, stride add_stride; or null. May be out
  device const int* groups;   // [rows], the matrix of each row, or null
  device const int* tiles;    // of grouped tiles: what group_rows made, num_tiles of them
  uint rows, n, k;
  uint x_stride, out_stride, add_stride, add_period;  // in elements; rows of the table
  uint x_type, out_type, add_type;
  uint x_align;  // bytes that every row's beginning is a multiple of: 16 or less
  uint activation;
  uint format;
  uint k_blocks, part_blocks, parts;
  uint scales, group_shift;  // bytes from a matrix to its scales; int4: 2^group_shift blocks share them
  uint matrix_bytes, count, per_row;  // of groups: matrices, and rows of out to a row of x
  uint num_tiles;
};

// Most parts.
enum : uint { MAX_PARTS = 16 };

// Instead of a row: none.
constant uint NO_ROW = 0xffffffff;

// Matrix `group`.
DEVICE device const uchar* matrix_of(constant LinearArgs& a, uint group) { return a.w + (size_t)group * a.matrix_bytes; }

// A block of a tile.
template <class F> DEVICE device const uchar* block_of(constant LinearArgs& a, device const uchar* matrix, uint tile, uint block) {
  return matrix + ((size_t)tile * a.k_blocks + block) * Block<F>::BYTES;
}

// How the scales of an int4 matrix are written: see weights.h.
DEVICE uint scale_type(constant LinearArgs& a, device const uchar* matrix) { return *(device const uint*)(matrix + a.scales); }

// Scale and offset of feature `f` of a tile of such a matrix, for the elements of a block.
DEVICE float2 group_scale(constant LinearArgs& a, device const uchar* matrix, uint type, uint tile, uint block, uint f) {
  const uint groups = ((a.k_blocks - 1) >> a.group_shift) + 1;
  const size_t at = ((size_t)tile * groups + (block >> a.group_shift)) * TILE_N + f;
  device const uchar* scales = matrix + a.scales + 16;
  if (type == FORMAT_F32) return ((device const float2*)scales)[at];
  const uint bits = ((device const uint*)scales)[at];
  const float2 ends = Bf16::unpack(bits);
  return float2((ends.y - ends.x) * (1.0f / 15.0f), ends.x);
}

// Finishes and stores one element; `has_scale`: whether rows of the matrix have scales.
DEVICE void put(constant LinearArgs& a, device const uchar* matrix, bool has_scale, uint row, uint feature, float sum) {
  const float scale = has_scale ? ((device const float*)(matrix + a.scales))[feature] : 1.0f;
  const float bias = a.bias ? a.bias[feature] : 0.0f;
  float value = activate(fma(sum, scale, bias), a.activation);
  if (a.add) value += load(a.add, (size_t)(row % a.add_period) * a.add_stride + feature, a.add_type);
  store(a.out, (size_t)row * a.out_stride + feature, a.out_type, value);
}

// The bits of eight 16-bit activations of row `row` of x from `k` on; those past the end are zero. Without a row all are.
DEVICE uint4 load_x8(constant LinearArgs& a, uint row, uint k) {
  if (row == NO_ROW || k >= a.k) return uint4(0);
  device const ushort* p = (device const ushort*)a.x + (size_t)row * a.x_stride + k;
  if (a.x_align >= 16 && k + 8 <= a.k) return *(device const uint4*)p;
  uint words[4];
  UNROLL for (uint i = 0; i < 4; i++) {
    const uint low = k + 2 * i < a.k ? p[2 * i] : 0, high = k + 2 * i + 1 < a.k ? p[2 * i + 1] : 0;
    words[i] = low | high << 16;
  }
  return uint4(words[0], words[1], words[2], words[3]);
}

// Row and first column of the two elements that a lane has of a matrix of 8 by 8, on every GPU so far.
DEVICE uint matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
DEVICE uint matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

DEVICE void set(thread simdgroup_float8x8& matrix, float first, float second) {
  matrix.thread_elements()[0] = first;
  matrix.thread_elements()[1] = second;
}

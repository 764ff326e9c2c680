// Layer norm. A row is held on chip in f32 and summed twice, so that a large mean does not cost precision; no sum depends on
// other rows. Bound by bytes: x once, out once (w and b stay in the cache).
#include "elements.cuh"

struct LayerNormArgs {
  void* out;       // [rows, dim], stride out_stride
  const void* x;   // [rows, dim], stride x_stride
  const float* w;  // [dim]
  const float* b;  // [dim]
  uint32_t rows, dim;
  uint32_t out_stride, x_stride;
  uint32_t out_type, x_type;
  float eps;
  uint32_t padding;
};

// One warp a row, eight columns a lane and turn, in registers.  grid = rows / WARPS, block = 32 WARPS. `dim` is a multiple
// of 8 and at most 256 TURNS; rows begin at multiples of 16 bytes.
template <class T, int TURNS, int WARPS> DEVICE void norm_warp(const LayerNormArgs& a) {
  enter();
  const uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= a.rows) return;
  const uint4* x = (const uint4*)((const T*)a.x + (size_t)row * a.x_stride);
  float v[TURNS][8];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const uint32_t vector = i * 32 + lane;
    const uint4 bits = vector < a.dim / 8 ? x[vector] : make_uint4(0, 0, 0, 0);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 pair = unpack2<T>(words[j]);
      v[i][2 * j] = pair.x;
      v[i][2 * j + 1] = pair.y;
      sum += pair.x + pair.y;
    }
  }
  const float mean = warp_sum(sum) / (float)a.dim;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const bool exists = i * 32 + lane < a.dim / 8;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      v[i][j] -= mean;
      squares += exists ? v[i][j] * v[i][j] : 0.0f;
    }
  }
  const float scale = 1.0f / sqrtf(warp_sum(squares) / (float)a.dim + a.eps);
  uint4* out = (uint4*)((T*)a.out + (size_t)row * a.out_stride);
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const uint32_t vector = i * 32 + lane;
    if (vector >= a.dim / 8) break;
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float4 w = ((const float4*)a.w)[2 * vector + j], b = ((const float4*)a.b)[2 * vector + j];
      const float* y = v[i] + 4 * j;
      words[2 * j] = pack2<T>(y[0] * scale * w.x + b.x, y[1] * scale * w.y + b.y);
      words[2 * j + 1] = pack2<T>(y[2] * scale * w.z + b.z, y[3] * scale * w.w + b.w);
    }
    out[vector] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

extern "C" __global__ void __launch_bounds__(128) layer_norm_bf16_1280(const LayerNormArgs a) { norm_warp<bf16, 5, 4>(a); }
extern "C" __global__ void __launch_bounds__(128) layer_norm_bf16_2048(const LayerNormArgs a) { norm_warp<bf16, 8, 4>(a); }
extern "C" __global__ void __launch_bounds__(128) layer_norm_f16_1280(const LayerNormArgs a) { norm_warp<f16, 5, 4>(a); }
extern "C" __global__ void __launch_bounds__(128) layer_norm_f16_2048(const LayerNormArgs a) { norm_warp<f16, 8, 4>(a); }

// Any types and any dim: one block a row, which it reads three times.  grid = rows, block = 256.
extern "C" __global__ void __launch_bounds__(256) layer_norm(const LayerNormArgs a) {
  enter();
  alignas(16) __shared__ float means[8];
  alignas(16) __shared__ float variances[8];
  const size_t x = (size_t)blockIdx.x * a.x_stride, out = (size_t)blockIdx.x * a.out_stride;
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x; i < a.dim; i += 256) sum += load(a.x, x + i, a.x_type);
  const float mean = block_sum(sum, means) / (float)a.dim;
  float squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < a.dim; i += 256) {
    const float d = load(a.x, x + i, a.x_type) - mean;
    squares += d * d;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, variances) / (float)a.dim + a.eps);
  for (uint32_t i = threadIdx.x; i < a.dim; i += 256) {
    store(a.out, out + i, a.out_type, (load(a.x, x + i, a.x_type) - mean) * scale * a.w[i] + a.b[i]);
  }
}

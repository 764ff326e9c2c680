// Layer norm. A row is held on chip and summed twice, so that a large mean does not cost precision; no sum depends on other
// rows. Bound by bytes: x once, out once (w and b stay in the cache).
#include "elements.h"

struct LayerNormArgs {
  device void* out;       // [rows, dim], stride out_stride
  device const void* x;   // [rows, dim], stride x_stride
  device const float* w;  // [dim]
  device const float* b;  // [dim]
  uint rows, dim;
  uint out_stride, x_stride;
  uint out_type, x_type;
  float eps;
  uint padding;
};

// SIMD-groups of a threadgroup.
constant constexpr uint NORM_SIMDGROUPS = 4;

// One SIMD-group a row, four columns a lane and turn, kept as they came: half the registers of floats, and occupancy is what hides
// the reads.  threadgroups = rows / NORM_SIMDGROUPS, threads = 32 NORM_SIMDGROUPS. `dim` is a multiple of 4 and at most
// 128 TURNS; rows begin at multiples of 8 bytes, w and b of 16.
template <typename T, int TURNS>
[[kernel, max_total_threads_per_threadgroup(32 * NORM_SIMDGROUPS)]] void norm(
    constant LayerNormArgs& a [[buffer(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group * NORM_SIMDGROUPS + simdgroup, vectors = a.dim / 4;
  if (row >= a.rows) return;
  device const vec<T, 4>* x = (device const vec<T, 4>*)((device const T*)a.x + size_t(row) * a.x_stride);
  vec<T, 4> v[TURNS];
  float sum = 0.0f;
  UNROLL
  for (int i = 0; i < TURNS; i++) {
    const uint vector = i * 32 + lane;
    v[i] = vec<T, 4>(T(0.0f));
    if (vector < vectors) v[i] = x[vector];
    sum += (float(v[i][0]) + float(v[i][1])) + (float(v[i][2]) + float(v[i][3]));
  }
  const float mean = simd_sum(sum) / float(a.dim);
  float squares = 0.0f;
  UNROLL
  for (int i = 0; i < TURNS; i++) {
    if (i * 32 + lane >= vectors) break;
    UNROLL
    for (int j = 0; j < 4; j++) {
      const float d = float(v[i][j]) - mean;
      squares = fma(d, d, squares);
    }
  }
  const float scale = 1.0f / sqrt(simd_sum(squares) / float(a.dim) + a.eps);
  device vec<T, 4>* out = (device vec<T, 4>*)((device T*)a.out + size_t(row) * a.out_stride);
  UNROLL
  for (int i = 0; i < TURNS; i++) {
    const uint vector = i * 32 + lane;
    if (vector >= vectors) break;
    const float4 w = ((device const float4*)a.w)[vector], b = ((device const float4*)a.b)[vector];
    vec<T, 4> y;
    UNROLL
    for (int j = 0; j < 4; j++) y[j] = T(fma((float(v[i][j]) - mean) * scale, w[j], b[j]));
    out[vector] = y;
  }
}

#define NORM(name, T, TURNS) template [[host_name(name)]] [[kernel]] decltype(norm<T, TURNS>) norm<T, TURNS>;
NORM("layer_norm_f16_1280", half, 10)
NORM("layer_norm_f16_2048", half, 16)
#ifdef PHOTON_BFLOAT
NORM("layer_norm_bf16_1280", bfloat, 10)
NORM("layer_norm_bf16_2048", bfloat, 16)
#endif

// Any types and any dim: one threadgroup a row, which it reads three times.  threadgroups = rows, threads = 256.
[[kernel, max_total_threads_per_threadgroup(256)]] void layer_norm(
    constant LayerNormArgs& a [[buffer(0)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float means[8];
  threadgroup float variances[8];
  const size_t x = size_t(row) * a.x_stride, out = size_t(row) * a.out_stride;
  float sum = 0.0f;
  for (uint i = thread_index; i < a.dim; i += 256) sum += load(a.x, x + i, a.x_type);
  const float mean = threadgroup_sum(sum, means, thread_index, 256) / float(a.dim);
  float squares = 0.0f;
  for (uint i = thread_index; i < a.dim; i += 256) {
    const float d = load(a.x, x + i, a.x_type) - mean;
    squares = fma(d, d, squares);
  }
  const float scale = 1.0f / sqrt(threadgroup_sum(squares, variances, thread_index, 256) / float(a.dim) + a.eps);
  for (uint i = thread_index; i < a.dim; i += 256) {
    store(a.out, out + i, a.out_type, fma((load(a.x, x + i, a.x_type) - mean) * scale, a.w[i], a.b[i]));
  }
}

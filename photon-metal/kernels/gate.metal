// Functions of single elements.
#include "elements.h"

struct GateArgs {
  device void* out;      // [rows, dim], stride out_stride
  device const void* x;  // [rows, dim] or, of gated_gelu, [rows, 2 dim]; stride x_stride
  uint rows, dim;
  uint out_stride, x_stride;
  uint out_type, x_type;
  uint out_align, x_align, gate_align;  // of gated_gelu: of the second halves too
  uint activation;
};

// A thread has eight columns of a row.  threadgroups = (rows, columns / 8 / 128), threads = 128. Bound by bytes: x once, out
// once.
[[kernel, max_total_threads_per_threadgroup(128)]] void activate_rows(constant GateArgs& a [[buffer(0)]],
                                                                     uint2 at [[threadgroup_position_in_grid]],
                                                                     uint index [[thread_index_in_threadgroup]]) {
  const uint row = at.x, column = (at.y * 128 + index) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  float x[8];
  load8(a.x, (size_t)row * a.x_stride + column, a.x_type, count, a.x_align, x);
  UNROLL for (uint i = 0; i < 8; i++) x[i] = activate(x[i], a.activation);
  store8(a.out, (size_t)row * a.out_stride + column, a.out_type, count, a.out_align, x);
}

// The gate of an expert. As above.
[[kernel, max_total_threads_per_threadgroup(128)]] void gated_gelu(constant GateArgs& a [[buffer(0)]],
                                                                  uint2 at [[threadgroup_position_in_grid]],
                                                                  uint index [[thread_index_in_threadgroup]]) {
  const uint row = at.x, column = (at.y * 128 + index) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  float h[8], g[8];
  load8(a.x, (size_t)row * a.x_stride + column, a.x_type, count, a.x_align, h);
  load8(a.x, (size_t)row * a.x_stride + a.dim + column, a.x_type, count, a.gate_align, g);
  UNROLL for (uint i = 0; i < 8; i++) h[i] = gelu_erf(h[i]) * (g[i] + 1.0f);
  store8(a.out, (size_t)row * a.out_stride + column, a.out_type, count, a.out_align, h);
}

// Functions of single elements.
#include "elements.cuh"

struct GateArgs {
  void* out;      // [rows, dim], stride out_stride
  const void* x;  // [rows, dim] or, of gated_gelu, [rows, 2 dim]; stride x_stride
  uint32_t rows, dim;
  uint32_t out_stride, x_stride;
  uint32_t out_type, x_type;
  uint32_t out_align, x_align, gate_align;  // of gated_gelu: of the second halves too
  uint32_t activation;
};

// A thread has eight columns of a row.  grid = (rows, columns / 8 / 128), block = 128. Bound by bytes: x once, out once.
extern "C" __global__ void __launch_bounds__(128) activate_rows(const GateArgs a) {
  enter();
  const uint32_t row = blockIdx.x, column = (blockIdx.y * 128 + threadIdx.x) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  float x[8];
  load8(a.x, (size_t)row * a.x_stride + column, a.x_type, count, a.x_align, x);
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = activate(x[i], a.activation);
  store8(a.out, (size_t)row * a.out_stride + column, a.out_type, count, a.out_align, x);
}

// The gate of an expert. As above.
extern "C" __global__ void __launch_bounds__(128) gated_gelu(const GateArgs a) {
  enter();
  const uint32_t row = blockIdx.x, column = (blockIdx.y * 128 + threadIdx.x) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  float h[8], g[8];
  load8(a.x, (size_t)row * a.x_stride + column, a.x_type, count, a.x_align, h);
  load8(a.x, (size_t)row * a.x_stride + a.dim + column, a.x_type, count, a.gate_align, g);
#pragma unroll
  for (int i = 0; i < 8; i++) h[i] = gelu_erf(h[i]) * (g[i] + 1.0f);
  store8(a.out, (size_t)row * a.out_stride + column, a.out_type, count, a.out_align, h);
}

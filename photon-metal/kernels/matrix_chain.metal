// Whether a multiplication of matrices is what linear.h would like it to be: eight products added one after the other, in order
// of k, each rounded once. Asked when a device is opened; what to do where it is not so is decided in `kernels::linear`.
#include "linear.h"

struct ChainArgs {
  device const float* matrices;  // [matrices, 3, 8, 8]: two factors, and what their product is added to
  device uint* differs;          // [matrices]: whether an element is another than the chain of fma
};

// A SIMD-group has a multiplication.  threadgroups = matrices, threads = 32.
[[kernel, max_total_threads_per_threadgroup(32)]] void matrix_chain(constant ChainArgs& a [[buffer(0)]],
                                                                   uint number [[threadgroup_position_in_grid]],
                                                                   uint lane [[thread_index_in_simdgroup]]) {
  device const float* left = a.matrices + number * 192;
  device const float* right = left + 64;
  device const float* added = right + 64;
  const uint row = matrix_row(lane), column = matrix_column(lane);
  simdgroup_float8x8 first, second, sum;
  set(first, left[8 * row + column], left[8 * row + column + 1]);
  set(second, right[8 * row + column], right[8 * row + column + 1]);
  set(sum, added[8 * row + column], added[8 * row + column + 1]);
  simdgroup_multiply_accumulate(sum, first, second, sum);
  bool differs = false;
  for (uint e = 0; e < 2; e++) {
    float chain = added[8 * row + column + e];
    for (uint k = 0; k < 8; k++) {
      const uint at = k;
      chain = fma(left[8 * row + at], right[8 * at + column + e], chain);
    }
    if (as_type<uint>(chain) != as_type<uint>((float)sum.thread_elements()[e])) differs = true;
  }
  const bool any = simd_any(differs);
  if (lane == 0) a.differs[number] = any;
}

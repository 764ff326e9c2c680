// Every function of a warp and a block, each thread writing what it got: compared with definitions by the tests.
#include "types.cuh"

struct LanesArgs {
  const uint32_t* in;
  uint32_t* out;  // [results, threads]
  int32_t width, by;
};

extern "C" __global__ void __launch_bounds__(256) lanes(const LanesArgs a) {
  const uint32_t i = threadIdx.y * blockDim.x + threadIdx.x, n = blockDim.x * blockDim.y;
  const uint32_t x = a.in[i];
  uint32_t* out = a.out + i;
  out[0 * n] = __shfl_sync(0xffffffff, x, a.by, a.width);
  out[1 * n] = __shfl_up_sync(0xffffffff, x, a.by, a.width);
  out[2 * n] = __shfl_down_sync(0xffffffff, x, a.by, a.width);
  out[3 * n] = __shfl_xor_sync(0xffffffff, x, a.by, a.width);
  out[4 * n] = __ballot_sync(0xffffffff, x & 1);
  out[5 * n] = __any_sync(0xffffffff, x & 2);
  out[6 * n] = __all_sync(0xffffffff, x & 3);
  out[7 * n] = __match_any_sync(0xffffffff, x & 7);
  out[8 * n] = __reduce_add_sync(0xffffffff, x);
  out[9 * n] = __reduce_min_sync(0xffffffff, x);
  out[10 * n] = static_cast<uint32_t>(__reduce_max_sync(0xffffffff, static_cast<int>(x)));
  out[11 * n] = __reduce_xor_sync(0xffffffff, x);
  out[12 * n] = __syncthreads_count(x & 1);
  out[13 * n] = __syncthreads_or(x == 7);
  out[14 * n] = __syncthreads_and(x != 7);
  int all;
  out[15 * n] = __match_all_sync(0xffffffff, x >> 8, &all);
  out[16 * n] = all;
  // The halves of a warp meet on their own, one of them twice.
  const uint32_t half = i % 32 < 16 ? 0xffff : 0xffff0000;
  uint32_t sum = __reduce_add_sync(half, x);
  if (i % 32 >= 16) sum += __reduce_add_sync(half, 1u);
  out[17 * n] = sum;
  out[18 * n] = __float_as_uint(__shfl_xor_sync(0xffffffff, __uint_as_float(x), 1));
  const double wide = __shfl_sync(0xffffffff, static_cast<double>(x) / 3.0, 5);
  out[19 * n] = static_cast<uint32_t>(__double_as_longlong(wide) >> 20);
}

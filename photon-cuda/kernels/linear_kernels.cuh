// The kernels of one type of activations and one format of weights. Each such pair is a file of its own: a model uses few of
// them, and only those are compiled.
#pragma once
#include "linear_tile.cuh"

// A name says what its kernel has in a block: features in units of 16 by rows in units of 8.
#define LINEAR_KERNEL(name, threads, body) \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const LinearArgs a) { body(a); }

#define LINEAR_KERNELS(types, T, F)                                            \
  LINEAR_KERNEL(linear_1x1_##types, 512, (skinny<T, F, 1, 1>))                  \
  LINEAR_KERNEL(linear_1x2_##types, 512, (skinny<T, F, 1, 2>))                  \
  LINEAR_KERNEL(linear_1x4_##types, 512, (skinny<T, F, 1, 4>))                  \
  LINEAR_KERNEL(linear_2x1_##types, 256, (skinny<T, F, 2, 1>))                  \
  LINEAR_KERNEL(linear_2x2_##types, 256, (skinny<T, F, 2, 2>))                  \
  LINEAR_KERNEL(linear_2x4_##types, 256, (skinny<T, F, 2, 4>))                  \
  LINEAR_KERNEL(linear_2x8_##types, 256, (skinny<T, F, 2, 8>))                  \
  LINEAR_KERNEL(linear_8x16_##types, TILE_THREADS, (tile<T, F>))                \
  LINEAR_KERNEL(grouped_1x1_##types, 512, (skinny_grouped<T, F, 1>))            \
  LINEAR_KERNEL(grouped_1x2_##types, 512, (skinny_grouped<T, F, 2>))            \
  LINEAR_KERNEL(grouped_8x8_##types, TILE_THREADS, (tile_grouped<T, F>))

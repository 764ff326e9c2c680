// The kernels of one type of activations and one format of weights. Each such pair is a file of its own: a model uses few of
// them, and only those are compiled.
#pragma once
#include "linear_tile.h"

// A name says what its kernel has in a threadgroup: rows, or features in units of 8 by rows in units of 8.
#define HOST_NAME(name) #name
#define LINEAR_KERNELS(types, X, F)                                                                                           \
  template [[host_name(HOST_NAME(linear_1_##types))]] [[kernel]] decltype(linear_row<X, F, 1>) linear_row<X, F, 1>;           \
  template [[host_name(HOST_NAME(linear_2_##types))]] [[kernel]] decltype(linear_row<X, F, 2>) linear_row<X, F, 2>;           \
  template [[host_name(HOST_NAME(linear_4_##types))]] [[kernel]] decltype(linear_row<X, F, 4>) linear_row<X, F, 4>;           \
  template [[host_name(HOST_NAME(linear_4x1_##types))]] [[kernel]] decltype(linear_skinny<X, F, 4, 1>) linear_skinny<X, F, 4, 1>;\
  template [[host_name(HOST_NAME(linear_4x2_##types))]] [[kernel]] decltype(linear_skinny<X, F, 4, 2>) linear_skinny<X, F, 4, 2>;\
  template [[host_name(HOST_NAME(linear_2x4_##types))]] [[kernel]] decltype(linear_skinny<X, F, 2, 4>) linear_skinny<X, F, 2, 4>;\
  template [[host_name(HOST_NAME(linear_8x8_##types))]] [[kernel]] decltype(linear_tile<X, F>) linear_tile<X, F>;             \
  template [[host_name(HOST_NAME(grouped_4_##types))]] [[kernel]] decltype(grouped_row<X, F>) grouped_row<X, F>;              \
  template [[host_name(HOST_NAME(grouped_4x1_##types))]] [[kernel]] decltype(grouped_skinny<X, F, 1>) grouped_skinny<X, F, 1>;\
  template [[host_name(HOST_NAME(grouped_4x2_##types))]] [[kernel]] decltype(grouped_skinny<X, F, 2>) grouped_skinny<X, F, 2>;\
  template [[host_name(HOST_NAME(grouped_8x8_##types))]] [[kernel]] decltype(grouped_tile<X, F>) grouped_tile<X, F>;

// Linear layers of f16 activations with int4 weights.
#include "linear_kernels.cuh"

LINEAR_KERNELS(f16_int4, f16, Int4)

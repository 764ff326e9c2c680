// Linear layers of f16 activations with int8 weights.
#include "linear_kernels.cuh"

LINEAR_KERNELS(f16_int8, f16, Int8)

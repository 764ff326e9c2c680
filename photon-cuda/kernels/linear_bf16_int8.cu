// Linear layers of bf16 activations with int8 weights.
#include "linear_kernels.cuh"

LINEAR_KERNELS(bf16_int8, bf16, Int8)

// Linear layers of bf16 activations with int4 weights.
#include "linear_kernels.cuh"

LINEAR_KERNELS(bf16_int4, bf16, Int4)

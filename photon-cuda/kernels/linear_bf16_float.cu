// Linear layers of bf16 activations with weights of the same type.
#include "linear_kernels.cuh"

LINEAR_KERNELS(bf16_float, bf16, Float)

// Linear layers of bf16 activations with fp8 weights.
#include "linear_kernels.cuh"

LINEAR_KERNELS(bf16_fp8, bf16, Fp8)

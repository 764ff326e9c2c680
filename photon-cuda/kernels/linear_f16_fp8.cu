// Linear layers of f16 activations with fp8 weights.
#include "linear_kernels.cuh"

LINEAR_KERNELS(f16_fp8, f16, Fp8)

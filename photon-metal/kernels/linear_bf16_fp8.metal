// Linear layers of bf16 activations with fp8 weights.
#include "linear_kernels.h"

LINEAR_KERNELS(bf16_fp8, Bf16, Fp8)

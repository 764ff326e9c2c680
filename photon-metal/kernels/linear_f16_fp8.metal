// Linear layers of f16 activations with fp8 weights.
#include "linear_kernels.h"

LINEAR_KERNELS(f16_fp8, F16, Fp8)

// Linear layers of f16 activations with int4 weights.
#include "linear_kernels.h"

LINEAR_KERNELS(f16_int4, F16, Int4)

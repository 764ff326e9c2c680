// Linear layers of f16 activations with int8 weights.
#include "linear_kernels.h"

LINEAR_KERNELS(f16_int8, F16, Int8)

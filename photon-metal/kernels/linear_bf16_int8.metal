// Linear layers of bf16 activations with int8 weights.
#include "linear_kernels.h"

LINEAR_KERNELS(bf16_int8, Bf16, Int8)

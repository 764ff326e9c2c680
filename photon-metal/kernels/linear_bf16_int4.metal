// Linear layers of bf16 activations with int4 weights.
#include "linear_kernels.h"

LINEAR_KERNELS(bf16_int4, Bf16, Int4)

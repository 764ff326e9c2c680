// Linear layers of bf16 activations with weights of the same type.
#include "linear_kernels.h"

LINEAR_KERNELS(bf16_float, Bf16, Float<Bf16>)

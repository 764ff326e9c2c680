// Linear layers of f16 activations with weights of the same type.
#include "linear_kernels.cuh"

LINEAR_KERNELS(f16_float, f16, Float)

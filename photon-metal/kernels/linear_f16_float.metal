// Linear layers of f16 activations with weights of the same type.
#include "linear_kernels.h"

LINEAR_KERNELS(f16_float, F16, Float<F16>)

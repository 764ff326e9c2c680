// Atomics from every thread of every block.
#include "types.cuh"

struct AtomicsArgs {
  uint32_t* out;  // [8]
};

extern "C" __global__ void __launch_bounds__(128) atomics(const AtomicsArgs a) {
  __shared__ uint32_t in_block;
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (threadIdx.x == 0) in_block = 0;
  __syncthreads();
  atomicAdd(&in_block, i);
  atomicMax(a.out + 1, i);
  atomicMin(a.out + 2, i);
  atomicInc(a.out + 3, 7);
  uint32_t seen = ld_acquire(a.out + 4);
  for (uint32_t old; (old = atomicCAS(a.out + 4, seen, seen + 1)) != seen;) seen = old;
  atomicAdd(reinterpret_cast<float*>(a.out + 5), 0.5f);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(a.out, in_block);
}

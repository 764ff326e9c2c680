// Everything a kernel can do wrong, chosen by `what`: the tests say what the simulator must answer.
#include "ptx.cuh"

struct FaultyArgs {
  uint32_t* data;
  int32_t what, at;
};

// Has 256 KiB on its stack.
__device__ __noinline__ uint32_t large_frame(int at) {
  volatile uint32_t large[64 << 10];
  for (int j = 0; j < 64 << 10; j += 256) large[j] = j;
  return large[at];
}

extern "C" __global__ void __launch_bounds__(128) faulty(const FaultyArgs a) {
  alignas(16) __shared__ uint32_t shared[64];
  const int i = threadIdx.x;
  switch (a.what) {
    case 0:  // Fine.
      shared[i % 64] = 1;
      break;
    case 1:  // Past global memory.
      if (i == 5) a.data[a.at] = 1;
      break;
    case 2:
      if (i == 5) shared[0] = a.data[a.at];
      break;
    case 3:  // Past shared memory.
      if (i == 7) shared[a.at] = 1;
      break;
    case 4:  // A barrier that some threads do not reach, and wait elsewhere.
      if (i < 32) __syncthreads();
      else bar_sync(1, 128);
      break;
    case 5:  // Two barriers.
      if (i < 64) __syncthreads();
      else
        __syncthreads();
      break;
    case 6:  // A shuffle in a divergent branch.
      if (i % 2) a.data[i] = __shfl_xor_sync(0xffffffff, i, 1);
      else a.data[i] = __reduce_add_sync(0xffffffff, i);
      break;
    case 7:  // A lane that is not in its mask.
      __shfl_sync(0xffff, i, 0);
      break;
    case 8:  // Half a warp multiplies.
      if (i % 32 < 16) return;
      {
        float d[4] = {};
        uint32_t x[4] = {}, y[2] = {};
        mma_m16n8k16_bf16(d, x, y);
        a.data[i] = d[0];
      }
      break;
    case 9:  // Misaligned.
      cp_async_16(shared + i % 16 * 4, a.data + a.at);
      break;
    case 10: {
      uint32_t r[1];
      ldmatrix_x1(r, shared + a.at);
      a.data[i] = r[0];
      break;
    }
    case 11:  // Nobody sets the flag.
      while (ld_acquire(a.data) == 77) {
      }
      break;
    case 12:
      a.data[i] = 7 / a.at;
      break;
    case 13:
      a.data[i] = large_frame(a.at);
      break;
    case 14:
      __trap();
    case 15: {  // More than 48 KiB.
      __shared__ uint32_t large[48 << 8];
      large[i] = 1;
      break;
    }
    case 16: {
      DYNAMIC_SHARED(uint32_t, dynamic);
      dynamic[a.at] = 1;
      break;
    }
    case 17:  // Reads what nobody wrote.
      a.data[i] = shared[i % 64];
      break;
    case 18:  // From shared memory, as if it were global.
      cp_async_4(shared + i % 64, shared);
      break;
  }
}

struct GridArgs {
  uint32_t* data;  // [blocks]
  uint32_t* out;
};

// Waits for all blocks by counting them.
extern "C" __global__ void __launch_bounds__(64) rendezvous(const GridArgs a) {
  if (threadIdx.x == 0) {
    st_release(a.data + 1 + blockIdx.x, blockIdx.x * 3 + 1);
    atomic_add_acq_rel(a.data, 1);
    while (ld_acquire(a.data) != gridDim.x) {
    }
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x; i++) sum += ld_acquire(a.data + 1 + i);
    a.out[blockIdx.x] = sum;
  }
}

// Linear layers of many rows on sm_90a: the copy engine fills shared memory, four warps at a time multiply from there.
//
// The twin of linear_8x16_*_float for activations and weights of the same 16-bit type, with another order of summation: one
// chain over k. So it is used only where a device was opened to prefer speed, and has run nowhere yet but in a compiler.
//
// A block stays on its processor and takes every gridDim-th tile of 128 rows by FEATURES features. Of its three groups of
// four warps one gives most of its registers away, and one of its threads orders copies of 64 elements of k, a ring of STAGES
// ahead of the others, into the next tile if need be; two multiply, 64 rows each, and store. Both operands lie in rows of 128
// bytes as the copy engine swizzles them; what is past the end of either matrix it fills with zeros.
//
// Bytes: weights once per 128 rows, activations once per FEATURES features, from L2.  FLOPs: 2 n k rows, padded to tiles.
// grid = min(tiles, processors), block = 384, shared = WGMMA_SHARED.
#include "linear.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr uint32_t WGMMA_ROWS = 128;

struct WgmmaArgs {
  TensorMap x;  // [rows, k], tiles of 64 by 128
  TensorMap w;  // [features, k], tiles of 64 by FEATURES
  LinearArgs linear;
  uint32_t row_tiles, feature_tiles;
  uint32_t padding[8];
};

template <class T> DEVICE void wgmma(float (&d)[64], uint64_t a, uint64_t b, int32_t keep);
template <class T> DEVICE void wgmma(float (&d)[128], uint64_t a, uint64_t b, int32_t keep);
template <> DEVICE void wgmma<bf16>(float (&d)[64], uint64_t a, uint64_t b, int32_t keep) { wgmma_m64n128k16_bf16(d, a, b, keep); }
template <> DEVICE void wgmma<f16>(float (&d)[64], uint64_t a, uint64_t b, int32_t keep) { wgmma_m64n128k16_f16(d, a, b, keep); }
template <> DEVICE void wgmma<bf16>(float (&d)[128], uint64_t a, uint64_t b, int32_t keep) { wgmma_m64n256k16_bf16(d, a, b, keep); }
template <> DEVICE void wgmma<f16>(float (&d)[128], uint64_t a, uint64_t b, int32_t keep) { wgmma_m64n256k16_f16(d, a, b, keep); }

template <class T, int FEATURES> struct Wgmma {
  static constexpr uint32_t X = WGMMA_ROWS * 128, STAGE = X + FEATURES * 128, STAGES = FEATURES == 256 ? 4 : 6;
  // Of a warp's output 16 rows by 32 features at a time, as f32.
  static constexpr uint32_t STRIDE = 36, OUT = 16 * STRIDE;
  uint8_t* shared;
  uint64_t* full;
  uint64_t* empty;

  DEVICE void produce(const WgmmaArgs& a) {
    uint32_t step = 0;
    for (uint32_t tile = blockIdx.x; tile < a.row_tiles * a.feature_tiles; tile += gridDim.x) {
      const int32_t row = tile / a.feature_tiles * WGMMA_ROWS, feature = tile % a.feature_tiles * FEATURES;
      for (uint32_t block = 0; block < a.linear.k_blocks; block++, step++) {
        const uint32_t s = step % STAGES;
        uint8_t* stage = shared + s * STAGE;
        mbarrier_wait(&empty[s], (step / STAGES & 1) ^ 1);
        mbarrier_expect(&full[s], STAGE);
        tma_load_2d(stage, &a.x, &full[s], (int32_t)(block * BLOCK_K), row);
        tma_load_2d(stage + X, &a.w, &full[s], (int32_t)(block * BLOCK_K), feature);
      }
    }
  }

  DEVICE void consume(const WgmmaArgs& a, uint32_t group) {
    uint32_t step = 0;
    for (uint32_t tile = blockIdx.x; tile < a.row_tiles * a.feature_tiles; tile += gridDim.x) {
      float sums[FEATURES / 2];
      for (uint32_t block = 0; block < a.linear.k_blocks; block++, step++) {
        const uint32_t s = step % STAGES;
        const uint8_t* stage = shared + s * STAGE;
        mbarrier_wait(&full[s], step / STAGES & 1);
        const uint64_t x = wgmma_operand(stage + group * (X / 2)), w = wgmma_operand(stage + X);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < 4; i++) wgmma<T>(sums, x + 2 * i, w + 2 * i, block > 0 || i > 0);
        wgmma_commit();
        // The stage before is done with when at most this one is under way.
        wgmma_wait<1>();
        if (block > 0 && threadIdx.x % 32 == 0) mbarrier_arrive(&empty[(step - 1) % STAGES]);
      }
      wgmma_wait<0>();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[(step - 1) % STAGES]);
      const uint32_t row = tile / a.feature_tiles * WGMMA_ROWS + group * 64, feature = tile % a.feature_tiles * FEATURES;
      write(a.linear, sums, row, feature, group);
    }
  }

  // Stores 64 rows from `row` on; a warp has 16 of them, which pass through shared memory to be written whole.
  DEVICE void write(const LinearArgs& a, const float (&sums)[FEATURES / 2], uint32_t row, uint32_t feature, uint32_t group) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    float* mine = (float*)(shared + STAGES * STAGE) + (group * 4 + warp) * OUT;
#pragma unroll
    for (int part = 0; part < FEATURES / 32; part++) {
#pragma unroll
      for (int i = 0; i < 16; i += 2) {
        const int place = i % 4 / 2 * 8 * STRIDE + i / 4 * 8;
        *(float2*)(mine + lane / 4 * STRIDE + lane % 4 * 2 + place) = make_float2(sums[part * 16 + i], sums[part * 16 + i + 1]);
      }
      __syncwarp();
#pragma unroll
      for (uint32_t j = 0; j < 2; j++) {
        const uint32_t r = j * 8 + lane / 4, f = lane % 4 * 8, to = feature + 32 * part + f;
        float out[8];
#pragma unroll
        for (int e = 0; e < 8; e++) out[e] = mine[r * STRIDE + f + e];
        if (row + warp * 16 + r < a.rows && to < a.n) put8<false>(a, a.w, row + warp * 16 + r, to, out);
      }
      __syncwarp();
    }
  }
};

template <class T, int FEATURES> DEVICE void linear_wgmma(const WgmmaArgs& a) {
  typedef Wgmma<T, FEATURES> W;
  DYNAMIC_SHARED(uint8_t, raw);
  __shared__ uint64_t full[W::STAGES];
  __shared__ uint64_t empty[W::STAGES];
  // The swizzle counts rows from a multiple of 1024 bytes.
  W w = {raw + (1024 - shared_address(raw) % 1024) % 1024, full, empty};
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < W::STAGES; s++) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 8);  // Of each warp that multiplies one thread arrives.
    }
    mbarrier_init_done();
    tma_prefetch(&a.x);
    tma_prefetch(&a.w);
  }
  __syncthreads();
  enter();
  const uint32_t group = threadIdx.x / 128;
  if (group == 2) {
    registers_down<40>();
    if (threadIdx.x == 256) w.produce(a);
  } else {
    registers_up<232>();
    w.consume(a, group);
  }
}

#define WGMMA_KERNEL(name, T, FEATURES) \
  extern "C" __global__ void __launch_bounds__(384, 1) name(const __grid_constant__ WgmmaArgs a) { linear_wgmma<T, FEATURES>(a); }

WGMMA_KERNEL(linear_wgmma_128_bf16, bf16, 128)
WGMMA_KERNEL(linear_wgmma_256_bf16, bf16, 256)
WGMMA_KERNEL(linear_wgmma_128_f16, f16, 128)
WGMMA_KERNEL(linear_wgmma_256_f16, f16, 256)

#endif

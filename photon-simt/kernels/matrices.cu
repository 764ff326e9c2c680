// Fragments and background copies, written out as the lanes hold them: compared with definitions by the tests.
#include "ptx.cuh"

struct MatricesArgs {
  const void* a;  // [32] lanes of 4 registers
  const void* b;  // [32] lanes of 2 registers
  void* d;        // [32] lanes of 4 sums, in and out
  int32_t kind, pad;
};

extern "C" __global__ void __launch_bounds__(32) mma(const MatricesArgs a) {
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; i++) fa[i] = ((const uint32_t*)a.a)[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; i++) fb[i] = ((const uint32_t*)a.b)[threadIdx.x * 2 + i];
  if (a.kind == 2) {
    int32_t d[4];
    for (int i = 0; i < 4; i++) d[i] = ((const int32_t*)a.d)[threadIdx.x * 4 + i];
    mma_m16n8k32_s8(d, fa, fb);
    for (int i = 0; i < 4; i++) ((int32_t*)a.d)[threadIdx.x * 4 + i] = d[i];
    return;
  }
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = ((const float*)a.d)[threadIdx.x * 4 + i];
  if (a.kind == 0) mma_m16n8k16_bf16(d, fa, fb);
  if (a.kind == 1) mma_m16n8k16_f16(d, fa, fb);
#ifdef PHOTON_FP8_MMA
  if (a.kind == 3) mma_m16n8k32_e4m3(d, fa, fb);
#endif
  for (int i = 0; i < 4; i++) ((float*)a.d)[threadIdx.x * 4 + i] = d[i];
}

struct LdmatrixArgs {
  const uint16_t* in;  // [32, 8]
  uint32_t* out;       // [6, 32, 4]
};

extern "C" __global__ void __launch_bounds__(32) ldmatrix(const LdmatrixArgs a) {
  // Rows lie 24 elements apart, so that a wrong stride shows.
  alignas(16) __shared__ uint16_t rows[32][24];
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; i++) rows[lane][i] = a.in[lane * 8 + i];
  __syncwarp();
  uint32_t r1[1], r2[2], r4[4];
  uint32_t* out = a.out + lane * 4;
  const auto write = [&](int which, const uint32_t* r, int n) {
    for (int i = 0; i < n; i++) out[which * 128 + i] = r[i];
  };
  ldmatrix_x1(r1, rows[lane % 8]), write(0, r1, 1);
  ldmatrix_x2(r2, rows[lane % 16]), write(1, r2, 2);
  ldmatrix_x4(r4, rows[lane]), write(2, r4, 4);
  ldmatrix_x1_trans(r1, rows[lane % 8]), write(3, r1, 1);
  ldmatrix_x2_trans(r2, rows[lane % 16]), write(4, r2, 2);
  ldmatrix_x4_trans(r4, rows[lane]), write(5, r4, 4);
}

struct CopiesArgs {
  const uint32_t* in;  // [blocks, threads, 4]
  uint32_t* out;
  int32_t valid, pad;
};

// Every thread copies with each size, in three groups; `valid` threads have something to copy.
extern "C" __global__ void __launch_bounds__(64) copies(const CopiesArgs a) {
  alignas(16) __shared__ uint32_t by16[64][4], by8[64][4], by4[64][4];
  const int i = threadIdx.x;
  const bool valid = i < a.valid;
  const uint32_t* in = a.in + (blockIdx.x * 64 + i) * 4;
  cp_async_16_zfill(by16[i], in, valid);
  cp_async_commit();
  cp_async_8_zfill(by8[i], in, valid);
  cp_async_8(by8[i] + 2, in + 2);
  cp_async_commit();
  for (int j = 1; j < 4; j++) cp_async_4(by4[i] + j, in + j);
  cp_async_4_zfill(by4[i], in, valid);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  const int other = 63 - i;
  uint32_t sum[4];
  for (int j = 0; j < 4; j++) sum[j] = by16[other][j] ^ by8[other][j] * 3;
  cp_async_wait<0>();
  __syncthreads();
  for (int j = 0; j < 4; j++) a.out[(blockIdx.x * 64 + i) * 4 + j] = sum[j] ^ by4[other][j] * 5;
}

// Every line of inline assembly. A wrapper is one instruction, named after it; what it computes is in the PTX manual and,
// executably, in the simulator's half (photon-simt/shim/simt/ptx.hpp), which defines the same names under PHOTON_SIM.
//
// Fragments of mma: lane = 4 * g + t. Of A [16, K] a lane holds rows g and g + 8, of B [K, 8] (given as its transpose's
// rows) column g, of D [16, 8] rows g and g + 8 at columns 2 t and 2 t + 1: d[0] d[1] of row g, d[2] d[3] of row g + 8.
#pragma once
#include "types.cuh"

#ifdef PHOTON_SIM
#include "simt/ptx.hpp"
#else

// ---- Conversions: to nearest, ties to even; NaN becomes 0x7fff.

DEVICE bf16 __float2bfloat16_rn(float x) {
  bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}
DEVICE float __bfloat162float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEVICE f16 __float2half_rn(float x) {
  f16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}
DEVICE float __half2float(f16 x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}
DEVICE bf16::bf16(float x) : bits(__float2bfloat16_rn(x).bits) {}
DEVICE bf16::operator float() const { return __bfloat162float(*this); }
DEVICE f16::f16(float x) : bits(__float2half_rn(x).bits) {}
DEVICE f16::operator float() const { return __half2float(*this); }

// Two floats as one register of two elements, `lo` in the lower half.
DEVICE uint32_t pack_bf16(float lo, float hi) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}
DEVICE uint32_t pack_f16(float lo, float hi) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}
DEVICE float2 unpack_bf16(uint32_t x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }
DEVICE float2 unpack_f16(uint32_t x) {
  float2 out;
  asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %2;\ncvt.f32.f16 %0, lo;\ncvt.f32.f16 %1, hi;\n}"
      : "=f"(out.x), "=f"(out.y)
      : "r"(x));
  return out;
}

// a * b + c on pairs, rounded once; subnormals are kept.
DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}
DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}

// ---- Fast functions: a few units in the last place, subnormals flushed.

DEVICE float fast_exp2(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
DEVICE float fast_rcp(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// ---- Matrices. ldmatrix: lane i gives the address (16-byte aligned) of row i % 8 of matrix i / 8, 8 elements of 2 bytes;
// it receives elements 2 t and 2 t + 1 of row g of each, transposed: of column g.

DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

DEVICE void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += A B, in float.
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += A B in 32-bit integers; four elements a register, A's lower 16 columns in a[0] and a[1].
DEVICE void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#if __CUDA_ARCH__ >= 890
#define PHOTON_FP8_MMA 1
DEVICE void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four e4m3 codes, the first lowest; at most 448 in size, NaN becomes 0x7f.
DEVICE uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  uint32_t out;
  asm("{\n.reg .b16 lo, hi;\ncvt.rn.satfinite.e4m3x2.f32 lo, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 hi, %4, %3;\n"
      "mov.b32 %0, {lo, hi};\n}"
      : "=r"(out)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return out;
}
#endif

// ---- Copies to shared memory that run on while the thread computes. Both addresses are multiples of the size. The `zfill`
// forms write zeros where `valid` is false and then read nothing.

DEVICE void cp_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void cp_async_8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void cp_async_4_zfill(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}
DEVICE void cp_async_8_zfill(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 8 : 0)
               : "memory");
}
DEVICE void cp_async_16_zfill(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The copies so far, since the last commit, become a group.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `N` of this thread's groups, the newest, are under way.
template <int N>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- Reads of what no thread writes and nobody reads again (weights), past the first cache.

DEVICE uint4 ld_stream_16(const void* p) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(p));
  return out;
}
DEVICE uint2 ld_stream_8(const void* p) {
  uint2 out;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(out.x), "=r"(out.y) : "l"(p));
  return out;
}
DEVICE uint32_t ld_stream_4(const void* p) {
  uint32_t out;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(out) : "l"(p));
  return out;
}
DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// ---- Flags in global memory between blocks: what a thread wrote before `st_release` is seen after `ld_acquire` of it.

DEVICE uint32_t ld_acquire(const uint32_t* p) {
  uint32_t out;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(out) : "l"(p) : "memory");
  return out;
}
DEVICE void st_release(uint32_t* p, uint32_t x) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
DEVICE uint32_t atomic_add_acq_rel(uint32_t* p, uint32_t x) {
  uint32_t out;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(out) : "l"(p), "r"(x) : "memory");
  return out;
}

// ---- Barriers of a part of the block: `threads` (a multiple of 32) meet at barrier `id` (1 to 15; 0 is __syncthreads).

DEVICE void bar_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void bar_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Programmatic dependent launch (sm_90 and later; before, kernels of a stream follow each other and both are nothing).
// After `grid_wait` all writes of the kernels before are seen; `grid_launch_next` lets the next one begin up to its own wait.

DEVICE void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void grid_launch_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" :::);
#endif
}

// ---- Of sm_90a alone: the copy engine, barriers that count its bytes, and multiplications by four warps at once, straight
// from shared memory. The simulator has none of it; a kernel that uses them has a twin that does not.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A matrix as the copy engine sees it; made by the driver.
struct alignas(64) TensorMap {
  uint64_t bits[16];
};

DEVICE void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Barriers that were made are seen by the copy engine.
DEVICE void mbarrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and announces bytes that the phase waits for as well.
DEVICE void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits until the phase of this parity is over.
DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
      ::"r"(shared_address(barrier)), "r"(parity)
      : "memory");
}
// Copies a tile from column `x` and row `y` on to shared memory; its bytes count at the barrier.
DEVICE void tma_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int32_t x, int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}
DEVICE void tma_prefetch(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Registers of a thread of this warpgroup from now on.
template <int N>
DEVICE void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEVICE void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `N` groups are under way.
template <int N>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Rows of 128 bytes, swizzled as the copy engine does, eight of them every 1024 bytes.
DEVICE uint64_t wgmma_operand(const void* shared) {
  return (uint64_t)(shared_address(shared) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
// d = A B + (keep ? d : 0). Of D [64, N] warp w of the four has rows 16 w on, each as in mma; eight columns after the other.
#define WGMMA_0_TO_63 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_64_TO_127 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_SUMS_8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_SUMS_64(i)                                                                                  \
  WGMMA_SUMS_8(i), WGMMA_SUMS_8(i + 8), WGMMA_SUMS_8(i + 16), WGMMA_SUMS_8(i + 24), WGMMA_SUMS_8(i + 32), \
      WGMMA_SUMS_8(i + 40), WGMMA_SUMS_8(i + 48), WGMMA_SUMS_8(i + 56)
#define WGMMA_128(type)                                                                            \
  DEVICE void wgmma_m64n128k16_##type(float (&d)[64], uint64_t a, uint64_t b, int32_t keep) {      \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"                                \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." #type "." #type " {" WGMMA_0_TO_63 \
                 "}, %64, %65, keep, 1, 1, 0, 0;\n}"                                               \
                 : WGMMA_SUMS_64(0)                                                                \
                 : "l"(a), "l"(b), "r"(keep));                                                     \
  }
#define WGMMA_256(type)                                                                                                 \
  DEVICE void wgmma_m64n256k16_##type(float (&d)[128], uint64_t a, uint64_t b, int32_t keep) {                          \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %130, 0;\n"                                                    \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." #type "." #type " {" WGMMA_0_TO_63 ", " WGMMA_64_TO_127 \
                 "}, %128, %129, keep, 1, 1, 0, 0;\n}"                                                                  \
                 : WGMMA_SUMS_64(0), WGMMA_SUMS_64(64)                                                                  \
                 : "l"(a), "l"(b), "r"(keep));                                                                          \
  }
WGMMA_128(bf16)
WGMMA_128(f16)
WGMMA_256(bf16)
WGMMA_256(f16)
#undef WGMMA_0_TO_63
#undef WGMMA_64_TO_127
#undef WGMMA_SUMS_8
#undef WGMMA_SUMS_64
#undef WGMMA_128
#undef WGMMA_256
#endif

#endif

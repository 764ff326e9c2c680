// `c = a b^T` by SIMD-group matrices, and every function of lanes and atomics once; for the simulator's tests.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

struct ProductParams {
  uint m, n, k;
};

// Tiles of 32x32; four SIMD-groups of 16x16.
kernel void product(device const half* a [[buffer(0)]],  // [m, k]
                    device const half* b [[buffer(1)]],  // [n, k]
                    device float* c [[buffer(2)]],       // [m, n]
                    constant ProductParams& p [[buffer(3)]],
                    uint2 at [[threadgroup_position_in_grid]],
                    uint thread_index [[thread_index_in_threadgroup]],
                    uint group [[simdgroup_index_in_threadgroup]]) {
  threadgroup half rows[32 * 32];
  threadgroup half columns[32 * 32];
  simdgroup_float8x8 sums[2][2];
  for (int i = 0; i < 4; i++) sums[i / 2][i % 2] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint k0 = 0; k0 < p.k; k0 += 32) {
    for (uint i = thread_index; i < 256; i += 128) {
      const uint row = i / 8, column = i % 8 * 4;
      *(threadgroup half4*)(rows + row * 32 + column) = *(device const half4*)(a + (at.y * 32 + row) * p.k + k0 + column);
      *(threadgroup half4*)(columns + row * 32 + column) = *(device const half4*)(b + (at.x * 32 + row) * p.k + k0 + column);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup const half* x = rows + group / 2 * 16 * 32;
    threadgroup const half* y = columns + group % 2 * 16 * 32;
    for (uint k = 0; k < 32; k += 8) {
      simdgroup_half8x8 left[2], right[2];
      for (int i = 0; i < 2; i++) simdgroup_load(left[i], x + i * 8 * 32 + k, 32);
      for (int i = 0; i < 2; i++) simdgroup_load(right[i], y + i * 8 * 32 + k, 32, ulong2(0, 0), true);
      for (int i = 0; i < 4; i++) simdgroup_multiply_accumulate(sums[i / 2][i % 2], left[i / 2], right[i % 2], sums[i / 2][i % 2]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  device float* out = c + (at.y * 32 + group / 2 * 16) * p.n + at.x * 32 + group % 2 * 16;
  for (int i = 0; i < 4; i++) simdgroup_store(sums[i / 2][i % 2], out + i / 2 * 8 * p.n + i % 2 * 8, p.n);
}

kernel void simd_functions(device const uint* in [[buffer(0)]],  // [threads]
                           device uint* out [[buffer(1)]],       // [results, threads]
                           device atomic_uint* counts [[buffer(2)]],
                           uint at [[thread_position_in_grid]],
                           uint n [[threads_per_grid]],
                           uint lane [[thread_index_in_simdgroup]]) {
  const uint x = in[at];
  out += at;
  out[0 * n] = simd_sum(x);
  out[1 * n] = simd_min(x);
  out[2 * n] = simd_max(x);
  out[3 * n] = simd_xor(x);
  out[4 * n] = simd_shuffle(x, ushort(31 - lane));
  out[5 * n] = simd_shuffle_xor(x, 5);
  out[6 * n] = simd_broadcast(x, 9);
  out[7 * n] = simd_prefix_exclusive_sum(x);
  out[8 * n] = simd_prefix_inclusive_sum(x);
  out[9 * n] = uint(ulong(simd_ballot((x & 1) != 0)));
  out[10 * n] = simd_any((x & 3) == 3);
  out[11 * n] = simd_broadcast_first(x);
  const float2 pair = float2(as_type<float>(x & 0x3fffffffu), 2.0f) * 0.5f;
  out[12 * n] = as_type<uint>(pair.x + dot(pair, float2(0.0f, 1.0f)) - 1.0f);
  atomic_fetch_add_explicit(counts, 1u, memory_order_relaxed);
  atomic_fetch_max_explicit(counts + 1, x, memory_order_relaxed);
}

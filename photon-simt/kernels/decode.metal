// A query over cached keys in parts, as a decoding step does: SIMD-groups take keys in turn, then merge. With sums and
// largest values over lanes, vectors, bfloat, function constants and an optional buffer; for the simulator's tests.
//
// threadgroups = heads, threads = SIMD_GROUPS * 32.
#include <metal_stdlib>
using namespace metal;

struct DecodeParams {
  uint keys;
  float scale;
};

constant bool masked [[function_constant(0)]];

template <typename T, int DIM, int SIMD_GROUPS>
[[kernel, max_total_threads_per_threadgroup(SIMD_GROUPS * 32)]] void decode(
    device const T* q [[buffer(0)]],       // [heads, DIM]
    device const T* k [[buffer(1)]],       // [heads, keys, DIM]
    device const T* v [[buffer(2)]],
    device float* out [[buffer(3)]],       // [heads, DIM]
    constant DecodeParams& p [[buffer(4)]],
    device const uchar* mask [[buffer(5), function_constant(masked)]],  // [keys]
    threadgroup float* sums [[threadgroup(0)]],                         // [SIMD_GROUPS, DIM]
    uint head [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]]) {
  constexpr int PER = DIM / 32;
  threadgroup float largest[SIMD_GROUPS], totals[SIMD_GROUPS];
  float query[PER], sum[PER] = {}, most = -INFINITY, total = 0;
  for (int i = 0; i < PER; i++) query[i] = float(q[head * DIM + lane * PER + i]) * p.scale;
  for (uint key = group; key < p.keys; key += SIMD_GROUPS) {
    if (masked && mask[key] == 0) continue;
    const size_t row = (size_t(head) * p.keys + key) * DIM + lane * PER;
    float score = 0;
    for (int i = 0; i < PER; i++) score += query[i] * float(k[row + i]);
    score = simd_sum(score);
    const float now = max(most, score), before = fast::exp(most - now), weight = fast::exp(score - now);
    for (int i = 0; i < PER; i++) sum[i] = sum[i] * before + weight * float(v[row + i]);
    total = total * before + weight;
    most = now;
  }
  for (int i = 0; i < PER; i++) sums[group * DIM + lane * PER + i] = sum[i];
  if (lane == 0) {
    largest[group] = most;
    totals[group] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (group == 0) {
    const float mine = lane < SIMD_GROUPS ? largest[lane] : -INFINITY;
    const float all = simd_max(mine);
    const float part = lane < SIMD_GROUPS ? exp(mine - all) * totals[lane] : 0.0f;
    const float whole = simd_sum(part);
    for (int i = 0; i < PER; i++) {
      float x = 0;
      for (int g = 0; g < SIMD_GROUPS; g++) x += exp(largest[g] - all) * sums[g * DIM + lane * PER + i];
      out[head * DIM + lane * PER + i] = x / whole;
    }
  }
}

#define DECODE(name, T, DIM, SIMD_GROUPS) \
  template [[host_name(name)]] [[kernel]] decltype(decode<T, DIM, SIMD_GROUPS>) decode<T, DIM, SIMD_GROUPS>;
DECODE("decode_f16", half, 64, 4)
DECODE("decode_bf16", bfloat, 96, 3)

// Attention within sequences of equal length, by SIMD-group matrices: the vision tower's, 729 positions of heads of 72.
//
// A threadgroup has 64 queries of a head, eight a SIMD-group, which stay in registers. Tiles of 32 positions go through
// threadgroup memory; while a threadgroup waits for one, others of the core compute. Softmax is kept as it goes: the largest
// score so far, the sum, and answers relative to it. Products are of 16-bit numbers, sums and shares f32.
//
// A head of 72 is nine fragments, nothing is padded: eight with elements `8 k + s`, and the last eight elements (see
// `attention.h`). For the 18 multiplications of eight queries and keys a lane reads 4 vectors of keys and 3 of values.
//
// FLOPs: 4 * 72 for each pair of positions and head, 2.45 G a crop and block of the model; 23 tiles are 1 % too many, 12
// threadgroups 5 %. Reads 6.9 KiB a position, K and V 12 times, which the last cache level holds. 9 KiB of threadgroup memory.
#include "attention.h"

constant constexpr uint VISION_QUERIES = 64, VISION_THREADS = 256;

// The keys and values of a tile from position `first` on, zeros behind the last; `kv`: the first position's key, a value being
// `width` elements further on.
template <typename T, int DIM, int TILE, int STRIDE>
DEVICE void fetch(device const T* kv, uint width, uint first, uint seq_len, uint stride, uint thread_index, threadgroup T* keys,
                  threadgroup T* values) {
  constexpr uint VECTORS = DIM / 4;
  for (uint i = thread_index; i < 2 * TILE * VECTORS; i += VISION_THREADS) {
    const uint is_value = i / (TILE * VECTORS), in_tile = i % (TILE * VECTORS);
    const uint position = in_tile / VECTORS, at = in_tile % VECTORS * 4;
    vec<T, 4> x = vec<T, 4>(T(0.0f));
    if (first + position < seq_len) x = *(device const vec<T, 4>*)(kv + size_t(first + position) * stride + is_value * width + at);
    *(threadgroup vec<T, 4>*)((is_value ? values : keys) + position * STRIDE + at) = x;
  }
}

template <typename T, int DIM, int TILE>
[[kernel, max_total_threads_per_threadgroup(VISION_THREADS)]] void vision(
    constant AttentionArgs& a [[buffer(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr int E = DIM < 64 ? 4 : 8, REST = DIM - 8 * E;
  // Rows of other than a multiple of 32 bytes begin in different banks.
  constexpr int STRIDE = DIM % 16 == 0 ? DIM + 8 : DIM;
  static_assert(REST == 0 || REST == 8, "eight fragments, or four, and perhaps one more");
  threadgroup T keys[TILE * STRIDE];
  threadgroup T values[TILE * STRIDE];
  const uint row = row_in_fragment(lane), column = column_in_fragment(lane);
  const uint width = a.heads * DIM;
  device const T* qkv = (device const T*)a.qkv + size_t(group.z) * a.seq_len * a.qkv_stride + group.y * DIM;
  const uint query = group.x * VISION_QUERIES + simdgroup * 8 + row;

  simdgroup_matrix<T, 8, 8> q[E + 1];
  {
    device const T* from = qkv + size_t(min(query, a.seq_len - 1)) * a.qkv_stride;
    T x[2 * E];
    read((device const vec<T, 4>*)(from + E * column), x);
    UNROLL
    for (int s = 0; s < E; s++) q[s] = fragment_of(x[s], x[E + s]);
    if (REST) q[E] = fragment_of(from[8 * E + column], from[8 * E + column + 1]);
  }

  simdgroup_matrix<float, 8, 8> answer[E + 1];
  UNROLL
  for (int s = 0; s <= E; s++) answer[s] = zero_fragment();
  float largest = LOWEST, sum = 0.0f;
  const float scale = a.scale * LOG2_E;
  for (uint first = 0; first < a.seq_len; first += TILE) {
    fetch<T, DIM, TILE, STRIDE>(qkv + width, width, first, a.seq_len, a.qkv_stride, thread_index, keys, values);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float scores[TILE / 8][2];
    float top = largest;
    UNROLL
    for (int j = 0; j < TILE / 8; j++) {
      threadgroup const T* key = keys + (8 * j + column) * STRIDE;
      T one[E], two[E];
      read((threadgroup const vec<T, 4>*)(key + E * row), one);
      read((threadgroup const vec<T, 4>*)(key + STRIDE + E * row), two);
      simdgroup_matrix<float, 8, 8> score = zero_fragment();
      UNROLL
      for (int s = 0; s < E; s++) simdgroup_multiply_accumulate(score, q[s], fragment_of(one[s], two[s]), score);
      if (REST) {
        simdgroup_multiply_accumulate(score, q[E], fragment_of(key[8 * E + row], key[STRIDE + 8 * E + row]), score);
      }
      UNROLL
      for (uint i = 0; i < 2; i++) {
        const bool is_there = first + 8 * j + column + i < a.seq_len;
        scores[j][i] = is_there ? score.thread_elements()[i] * scale : LOWEST;
        top = max(top, scores[j][i]);
      }
    }
    top = row_max(top);
    // Of the first tile the old one is lowest, and the factor 0.
    const float factor = fast::exp2(largest - top);
    largest = top;
    sum *= factor;
    UNROLL
    for (int s = 0; s <= E; s++) {
      answer[s].thread_elements()[0] *= factor;
      answer[s].thread_elements()[1] *= factor;
    }

    UNROLL
    for (int j = 0; j < TILE / 8; j++) {
      const float one = fast::exp2(scores[j][0] - top), two = fast::exp2(scores[j][1] - top);
      sum += one + two;
      const simdgroup_matrix<float, 8, 8> shares = fragment_of(one, two);
      threadgroup const T* value = values + (8 * j + row) * STRIDE;
      T x[2 * E];
      read((threadgroup const vec<T, 4>*)(value + E * column), x);
      UNROLL
      for (int s = 0; s < E; s++) simdgroup_multiply_accumulate(answer[s], shares, fragment_of(x[s], x[E + s]), answer[s]);
      if (REST) {
        const simdgroup_matrix<T, 8, 8> rest = fragment_of(value[8 * E + column], value[8 * E + column + 1]);
        simdgroup_multiply_accumulate(answer[E], shares, rest, answer[E]);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  const float inverse = 1.0f / row_sum(sum);
  if (query >= a.seq_len) return;
  device T* out = (device T*)a.out + (size_t(group.z) * a.seq_len + query) * a.out_stride + group.y * DIM;
  T x[2 * E];
  UNROLL
  for (int i = 0; i < 2 * E; i++) x[i] = T(answer[i % E].thread_elements()[i / E] * inverse);
  write(x, (device vec<T, 4>*)(out + E * column));
  if (REST) {
    UNROLL
    for (int i = 0; i < 2; i++) out[8 * E + column + i] = T(answer[E].thread_elements()[i] * inverse);
  }
}

// threadgroups = (seq_len / 64, heads, num_seqs), threads = 256. Rows begin at multiples of 8 bytes.
#define VISION(name, T, DIM) \
  template [[host_name(name)]] [[kernel]] decltype(vision<T, DIM, 32>) vision<T, DIM, 32>;
VISION("attention_f16_32", half, 32)
VISION("attention_f16_64", half, 64)
VISION("attention_f16_72", half, 72)
#ifdef PHOTON_BFLOAT
VISION("attention_bf16_32", bfloat, 32)
VISION("attention_bf16_64", bfloat, 64)
VISION("attention_bf16_72", bfloat, 72)
#endif

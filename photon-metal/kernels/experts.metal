// Which experts a token goes to, whose adapter's, and how their results are joined.
#include "elements.h"

struct RouteArgs {
  device int* experts;        // [rows, top]
  device float* weights;      // [rows, top]
  device const void* logits;  // [rows, count]
  uint rows, count, top, stride, logits_type;
  uint padding;
};

// Whether (value, place) comes before (other, at) in the order of choice: larger first, of equals the lower place.
DEVICE bool precedes(float value, uint place, float other, uint at) { return value > other || (value == other && place < at); }

// Chooses the largest logits and gives each its share. A SIMD-group has a row and looks at it once for every choice: the best
// that comes after the choice before, so nothing is stored and any number of experts will do. Logits are read `top` times, from
// L1 but for the first.  threadgroups = rows / 4, threads = 128.
[[kernel, max_total_threads_per_threadgroup(128)]] void route(constant RouteArgs& a [[buffer(0)]],
                                                             uint at [[threadgroup_position_in_grid]],
                                                             uint group [[simdgroup_index_in_threadgroup]],
                                                             uint lane [[thread_index_in_simdgroup]]) {
  const uint row = at * 4 + group;
  if (row >= a.rows) return;
  device int* experts = a.experts + (size_t)row * a.top;
  device float* weights = a.weights + (size_t)row * a.top;
  float last = INFINITY, first = 0.0f, sum = 0.0f;
  uint last_place = 0;
  for (uint choice = 0; choice < a.top; choice++) {
    float best = -INFINITY;
    uint best_place = 0xffffffff;
    for (uint place = lane; place < a.count; place += 32) {
      const float logit = load(a.logits, (size_t)row * a.stride + place, a.logits_type);
      // A NaN counts as less than any number; zeros of either sign are equal as they are.
      const float value = isnan(logit) ? -INFINITY : logit;
      const bool is_left = choice == 0 || value < last || (value == last && place > last_place);
      if (is_left && precedes(value, place, best, best_place)) {
        best = value;
        best_place = place;
      }
    }
    UNROLL for (uint lanes = 16; lanes > 0; lanes /= 2) {
      const float other = simd_shuffle_xor(best, (ushort)lanes);
      const uint place = simd_shuffle_xor(best_place, (ushort)lanes);
      if (precedes(other, place, best, best_place)) {
        best = other;
        best_place = place;
      }
    }
    last = best;
    last_place = best_place;
    if (choice == 0) first = best;
    // Every lane sums for itself; of a row of infinities the weights are NaN, as its softmax is.
    const float share = exp(best - first);
    sum += share;
    if (lane == choice % 32) {
      experts[choice] = (int)best_place;
      weights[choice] = share;
    }
  }
  // A lane divides what it wrote itself.
  for (uint choice = lane; choice < a.top; choice += 32) weights[choice] /= sum;
}

struct NestArgs {
  device int* out;          // [rows, top]
  device const int* outer;  // [rows]
  device const int* inner;  // [rows, top]
  uint rows, top, count;
  uint padding;
};

// A thread has an element.  threadgroups = elements / 128, threads = 128.
[[kernel, max_total_threads_per_threadgroup(128)]] void nest(constant NestArgs& a [[buffer(0)]],
                                                            uint i [[thread_position_in_grid]]) {
  if (i >= a.rows * a.top) return;
  const int outer = a.outer[i / a.top], inner = a.inner[i];
  const bool is_good = outer >= 0 && inner >= 0 && (uint)inner < a.count;
  a.out[i] = is_good ? (int)((uint)outer * a.count + (uint)inner) : -1;
}

struct WeightedSumArgs {
  device void* out;             // [rows, dim], stride out_stride
  device const void* x;         // [rows * top, dim], stride x_stride
  device const float* weights;  // [rows, top]
  uint rows, dim, top;
  uint out_stride, x_stride;
  uint out_type, x_type;
  uint out_align, x_align;
  uint padding;
};

// A thread has eight columns of a row; what it adds up is added to the output last. Bytes: x once, the output twice.
// threadgroups = (rows, columns / 8 / 128), threads = 128.
[[kernel, max_total_threads_per_threadgroup(128)]] void weighted_sum(constant WeightedSumArgs& a [[buffer(0)]],
                                                                    uint2 at [[threadgroup_position_in_grid]],
                                                                    uint index [[thread_index_in_threadgroup]]) {
  const uint row = at.x, column = (at.y * 128 + index) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  float sum[8];
  UNROLL for (uint i = 0; i < 8; i++) sum[i] = 0.0f;
  for (uint j = 0; j < a.top; j++) {
    const uint part = row * a.top + j;
    const float weight = a.weights[part];
    float x[8];
    load8(a.x, (size_t)part * a.x_stride + column, a.x_type, count, a.x_align, x);
    UNROLL for (uint i = 0; i < 8; i++) sum[i] += weight * x[i];
  }
  float out[8];
  const size_t from = (size_t)row * a.out_stride + column;
  load8(a.out, from, a.out_type, count, a.out_align, out);
  UNROLL for (uint i = 0; i < 8; i++) out[i] += sum[i];
  store8(a.out, from, a.out_type, count, a.out_align, out);
}

struct GroupRowsArgs {
  device const int* groups;  // [rows]
  device int* tiles;         // [num_tiles, 3]: group or -1, first place in the list, rows
  device int* list;          // [rows]
  uint rows, count, tile_rows, num_tiles;
};

// Rows sorted by their group, and cut into tiles of one group each, for grouped_8x8: a counting sort in one threadgroup. Where
// in its group a row stands is left to chance, as no row's result depends on it.
// threadgroups = 1, threads = 512, threadgroup memory = 4 count bytes.
[[kernel, max_total_threads_per_threadgroup(512)]] void group_rows(constant GroupRowsArgs& a [[buffer(0)]],
                                                                  threadgroup atomic_uint* places [[threadgroup(0)]],
                                                                  uint index [[thread_index_in_threadgroup]]) {
  for (uint g = index; g < a.count; g += 512) atomic_store_explicit(places + g, 0u, memory_order_relaxed);
  for (uint i = index; i < a.num_tiles; i += 512) a.tiles[3 * i] = -1;
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  for (uint i = index; i < a.rows; i += 512) {
    const int g = a.groups[i];
    if (g >= 0 && g < (int)a.count) atomic_fetch_add_explicit(places + g, 1u, memory_order_relaxed);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // Numbers become first places; the first SIMD-group writes the tiles on its way.
  if (index < 32) {
    uint rows_before = 0, tiles_before = 0;
    for (uint base = 0; base < a.count; base += 32) {
      const uint g = base + index;
      const uint rows = g < a.count ? atomic_load_explicit(places + g, memory_order_relaxed) : 0;
      const uint tiles = (rows + a.tile_rows - 1) / a.tile_rows;
      const uint first = rows_before + simd_prefix_exclusive_sum(rows);
      const uint first_tile = tiles_before + simd_prefix_exclusive_sum(tiles);
      if (g < a.count) atomic_store_explicit(places + g, first, memory_order_relaxed);
      for (uint t = 0; t < tiles; t++) {
        device int* tile = a.tiles + 3 * (first_tile + t);
        tile[0] = (int)g;
        tile[1] = (int)(first + t * a.tile_rows);
        tile[2] = (int)min(rows - t * a.tile_rows, a.tile_rows);
      }
      rows_before += simd_sum(rows);
      tiles_before += simd_sum(tiles);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < a.rows; i += 512) {
    const int g = a.groups[i];
    if (g >= 0 && g < (int)a.count) a.list[atomic_fetch_add_explicit(places + g, 1u, memory_order_relaxed)] = (int)i;
  }
}

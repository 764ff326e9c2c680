// Which experts a token goes to, whose adapter's, and how their results are joined.
#include "elements.cuh"

struct RouteArgs {
  int32_t* experts;    // [rows, top]
  float* weights;      // [rows, top]
  const void* logits;  // [rows, count]
  uint32_t rows, count, top, stride, type;
  uint32_t padding;
};

// Whether (value, place) comes before (other, at) in the order of choice: larger first, of equals the lower place.
DEVICE bool precedes(float value, uint32_t place, float other, uint32_t at) {
  return value > other || (value == other && place < at);
}

// Chooses the largest logits and gives each its share. A warp has a row and looks at it once for every choice: the best that
// comes after the choice before, so nothing is stored and any number of experts will do. Logits are read `top` times, from
// L1 but for the first.  grid = rows / 8, block = 256.
extern "C" __global__ void __launch_bounds__(256) route(const RouteArgs a) {
  enter();
  const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
  if (row >= a.rows) return;
  float last = INFINITY;
  int64_t last_place = -1;
  float first = 0.0f, sum = 0.0f;
  for (uint32_t choice = 0; choice < a.top; choice++) {
    float best = -INFINITY;
    uint32_t best_place = 0xffffffff;
    for (uint32_t place = lane; place < a.count; place += 32) {
      const float logit = load(a.logits, (size_t)row * a.stride + place, a.type);
      // A NaN counts as less than any number; zeros of either sign are equal as they are.
      const float value = logit != logit ? -INFINITY : logit;
      const bool is_left = value < last || (value == last && (int64_t)place > last_place);
      if (is_left && precedes(value, place, best, best_place)) {
        best = value;
        best_place = place;
      }
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(0xffffffff, best, lanes);
      const uint32_t at = __shfl_xor_sync(0xffffffff, best_place, lanes);
      if (precedes(other, at, best, best_place)) {
        best = other;
        best_place = at;
      }
    }
    last = best;
    last_place = best_place;
    if (choice == 0) first = best;
    // Every lane sums for itself; of a row of infinities the weights are NaN, as its softmax is.
    const float share = expf(best - first);
    sum += share;
    if (lane == 0) {
      a.experts[(size_t)row * a.top + choice] = (int32_t)best_place;
      a.weights[(size_t)row * a.top + choice] = share;
    }
  }
  __syncwarp();
  for (uint32_t choice = lane; choice < a.top; choice += 32) a.weights[(size_t)row * a.top + choice] /= sum;
}

struct NestArgs {
  int32_t* out;          // [rows, top]
  const int32_t* outer;  // [rows]
  const int32_t* inner;  // [rows, top]
  uint32_t rows, top, count;
  uint32_t padding;
};

// A thread has an element.  grid = elements / 256, block = 256.
extern "C" __global__ void __launch_bounds__(256) nest(const NestArgs a) {
  enter();
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= a.rows * a.top) return;
  const int32_t outer = a.outer[i / a.top], inner = a.inner[i];
  const bool is_good = outer >= 0 && inner >= 0 && (uint32_t)inner < a.count;
  a.out[i] = is_good ? (int32_t)((uint32_t)outer * a.count + (uint32_t)inner) : -1;
}

struct WeightedSumArgs {
  void* out;             // [rows, dim], stride out_stride
  const void* x;         // [rows * top, dim], stride x_stride
  const float* weights;  // [rows, top]
  uint32_t rows, dim, top;
  uint32_t out_stride, x_stride;
  uint32_t out_type, x_type;
  uint32_t out_align, x_align;
  uint32_t padding;
};

// A thread has eight columns of a row; what it adds up is added to the output last. Bytes: x once, the output twice.
// grid = (rows, columns / 8 / 128), block = 128.
extern "C" __global__ void __launch_bounds__(128) weighted_sum(const WeightedSumArgs a) {
  enter();
  const uint32_t row = blockIdx.x, column = (blockIdx.y * 128 + threadIdx.x) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  float sum[8] = {};
  for (uint32_t j = 0; j < a.top; j++) {
    const uint32_t part = row * a.top + j;
    const float weight = a.weights[part];
    float x[8];
    load8(a.x, (size_t)part * a.x_stride + column, a.x_type, count, a.x_align, x);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += weight * x[i];
  }
  float out[8];
  const size_t at = (size_t)row * a.out_stride + column;
  load8(a.out, at, a.out_type, count, a.out_align, out);
#pragma unroll
  for (int i = 0; i < 8; i++) out[i] += sum[i];
  store8(a.out, at, a.out_type, count, a.out_align, out);
}

struct GroupRowsArgs {
  const int32_t* groups;  // [rows]
  int32_t* tiles;         // [tiles, 3]: group or -1, first place in the list, rows
  int32_t* list;          // [rows]
  uint32_t rows, count, tile_rows, tiles_len;
};

// Rows sorted by their group, and cut into tiles of one group each, for grouped_8x8: a counting sort in one block. Where in
// its group a row stands is left to chance, as no row's result depends on it.
// grid = 1, block = 1024, shared = 4 count bytes.
extern "C" __global__ void __launch_bounds__(1024) group_rows(const GroupRowsArgs a) {
  DYNAMIC_SHARED(uint32_t, places);
  enter();
  for (uint32_t g = threadIdx.x; g < a.count; g += 1024) places[g] = 0;
  for (uint32_t i = threadIdx.x; i < a.tiles_len; i += 1024) a.tiles[3 * i] = -1;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < a.rows; i += 1024) {
    const int32_t g = a.groups[i];
    if (g >= 0 && g < (int32_t)a.count) atomicAdd(&places[g], 1u);
  }
  __syncthreads();
  // Numbers become first places; the first warp writes the tiles on its way.
  if (threadIdx.x < 32) {
    const uint32_t lane = threadIdx.x;
    uint32_t rows_before = 0, tiles_before = 0;
    for (uint32_t base = 0; base < a.count; base += 32) {
      const uint32_t g = base + lane, rows = g < a.count ? places[g] : 0;
      const uint32_t tiles = (rows + a.tile_rows - 1) / a.tile_rows;
      uint32_t row_end = rows, tile_end = tiles;
#pragma unroll
      for (uint32_t lanes = 1; lanes < 32; lanes *= 2) {
        const uint32_t r = __shfl_sync(0xffffffff, row_end, (lane - lanes) & 31);
        const uint32_t t = __shfl_sync(0xffffffff, tile_end, (lane - lanes) & 31);
        if (lane >= lanes) {
          row_end += r;
          tile_end += t;
        }
      }
      const uint32_t first = rows_before + row_end - rows;
      if (g < a.count) places[g] = first;
      for (uint32_t t = 0; t < tiles; t++) {
        int32_t* tile = a.tiles + 3 * (tiles_before + tile_end - tiles + t);
        tile[0] = (int32_t)g;
        tile[1] = (int32_t)(first + t * a.tile_rows);
        tile[2] = (int32_t)min(rows - t * a.tile_rows, a.tile_rows);
      }
      rows_before += __shfl_sync(0xffffffff, row_end, 31);
      tiles_before += __shfl_sync(0xffffffff, tile_end, 31);
    }
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < a.rows; i += 1024) {
    const int32_t g = a.groups[i];
    if (g >= 0 && g < (int32_t)a.count) a.list[atomicAdd(&places[g], 1u)] = (int32_t)i;
  }
}

// Joins the crops of one picture.
#include "elements.cuh"

struct StitchPoolArgs {
  void* out;      // [grid^2, 2 dim], stride out_stride
  const void* x;  // [crops grid^2, dim], stride x_stride
  uint32_t dim;
  uint32_t out_stride, x_stride;
  uint32_t out_type, x_type;
  uint32_t grid, margin;
  uint32_t tile_rows, tile_columns;
  uint32_t first_local;  // the first local crop: 0 where the global one is the local one too
  uint32_t vectors;      // whether eight columns from a multiple of eight on can be moved at a time
  uint32_t padding;
};

// Along one axis: the places of the map that cell `cell` averages.
DEVICE void covered(const StitchPoolArgs& a, uint32_t cell, uint32_t tiles, uint32_t& first, uint32_t& end) {
  const uint32_t side = (a.grid - 2 * a.margin) * tiles + 2 * a.margin;
  first = cell * side / a.grid;
  end = ((cell + 1) * side + a.grid - 1) / a.grid;
}

// Along one axis: the tile that place `at` of the map comes from; `at` becomes the patch within it.
DEVICE uint32_t tile_of(const StitchPoolArgs& a, uint32_t& at, uint32_t tiles) {
  const uint32_t step = a.grid - 2 * a.margin;
  const uint32_t tile = min((at > a.margin ? at - a.margin : 0) / step, tiles - 1);
  at -= tile * step;
  return tile;
}

// A thread has eight columns of a cell, in both halves.  grid = (grid^2, dim / 8 / 128), block = 128. Every patch of the map
// is read about once, every element of out written once: 13 crops of 1152 in bf16 are 25 MB.
extern "C" __global__ void __launch_bounds__(128) stitch_pool(const StitchPoolArgs a) {
  enter();
  const uint32_t cell = blockIdx.x, column = (blockIdx.y * 128 + threadIdx.x) * 8;
  if (column >= a.dim) return;
  const int count = (int)(a.dim - column);
  const uint32_t align = a.vectors ? 16 : 1;
  float v[8];
  load8(a.x, (size_t)cell * a.x_stride + column, a.x_type, count, align, v);
  store8(a.out, (size_t)cell * a.out_stride + column, a.out_type, count, align, v);
  uint32_t first_y, end_y, first_x, end_x;
  covered(a, cell / a.grid, a.tile_rows, first_y, end_y);
  covered(a, cell % a.grid, a.tile_columns, first_x, end_x);
  float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  for (uint32_t map_y = first_y; map_y < end_y; map_y++) {
    uint32_t y = map_y;
    const uint32_t tile_y = tile_of(a, y, a.tile_rows);
    for (uint32_t map_x = first_x; map_x < end_x; map_x++) {
      uint32_t x = map_x;
      const uint32_t crop = a.first_local + tile_y * a.tile_columns + tile_of(a, x, a.tile_columns);
      load8(a.x, ((size_t)(crop * a.grid + y) * a.grid + x) * a.x_stride + column, a.x_type, count, align, v);
#pragma unroll
      for (int i = 0; i < 8; i++) sum[i] += v[i];
    }
  }
  const float cells = (float)((end_y - first_y) * (end_x - first_x));
#pragma unroll
  for (int i = 0; i < 8; i++) sum[i] /= cells;
  store8(a.out, (size_t)cell * a.out_stride + a.dim + column, a.out_type, count, align, sum);
}

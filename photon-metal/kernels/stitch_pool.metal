// Joins the crops of one picture.
#include "elements.h"

struct StitchPoolArgs {
  device void* out;      // [grid^2, 2 dim], stride out_stride
  device const void* x;  // [crops grid^2, dim], stride x_stride
  uint dim;
  uint out_stride, x_stride;
  uint out_type, x_type;
  uint grid, margin;
  uint tile_rows, tile_columns;
  uint first_local;  // the first local crop: 0 where the global one is the local one too
};

// Along one axis: the places of the map that cell `cell` averages.
DEVICE uint2 covered(constant StitchPoolArgs& a, uint cell, uint tiles) {
  const uint side = (a.grid - 2 * a.margin) * tiles + 2 * a.margin;
  return uint2(cell * side / a.grid, ((cell + 1) * side + a.grid - 1) / a.grid);
}

// Along one axis: the tile that place `at` of the map comes from, and the patch within it.
DEVICE uint2 tile_of(constant StitchPoolArgs& a, uint at, uint tiles) {
  const uint step = a.grid - 2 * a.margin;
  const uint tile = min((at > a.margin ? at - a.margin : 0) / step, tiles - 1);
  return uint2(tile, at - tile * step);
}

// A thread has a column of a cell, in both halves.  threadgroups = (grid^2, dim / 128), threads = 128. Every patch of the map is
// read about once, every element of out written once: 13 crops of 1152 in 16 bits are 25 MB.
[[kernel, max_total_threads_per_threadgroup(128)]] void stitch_pool(
    constant StitchPoolArgs& a [[buffer(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  const uint cell = group.x, column = group.y * 128 + thread_index;
  if (column >= a.dim) return;
  const size_t out = size_t(cell) * a.out_stride + column;
  store(a.out, out, a.out_type, load(a.x, size_t(cell) * a.x_stride + column, a.x_type));
  const uint2 y = covered(a, cell / a.grid, a.tile_rows), x = covered(a, cell % a.grid, a.tile_columns);
  float sum = 0.0f;
  for (uint map_y = y.x; map_y < y.y; map_y++) {
    const uint2 tile_y = tile_of(a, map_y, a.tile_rows);
    for (uint map_x = x.x; map_x < x.y; map_x++) {
      const uint2 tile_x = tile_of(a, map_x, a.tile_columns);
      const uint crop = a.first_local + tile_y.x * a.tile_columns + tile_x.x;
      sum += load(a.x, (size_t(crop * a.grid + tile_y.y) * a.grid + tile_x.y) * a.x_stride + column, a.x_type);
    }
  }
  store(a.out, out + a.dim, a.out_type, sum / float((y.y - y.x) * (x.y - x.x)));
}

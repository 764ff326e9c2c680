// Pictures to patches.
#include "elements.h"

struct PatchifyArgs {
  device void* out;           // [rows, 3 patch^2], stride out_stride
  device const uchar* crops;  // [crops, size, size, 3]
  uint rows, size, patch, out_stride, out_type;
  uint padding;
};

// A threadgroup has a patch, a thread every 128th of its elements: channels first, then lines. Divided as written, so that every
// backend gives the same bits.  threadgroups = rows, threads = 128. Bytes: 1 read and 2 or 4 written per element.
[[kernel, max_total_threads_per_threadgroup(128)]] void patchify(constant PatchifyArgs& a [[buffer(0)]],
                                                                uint row [[threadgroup_position_in_grid]],
                                                                uint index [[thread_index_in_threadgroup]]) {
  const uint grid = a.size / a.patch, area = a.patch * a.patch;
  const uint crop = row / (grid * grid), top = row / grid % grid * a.patch, left = row % grid * a.patch;
  for (uint i = index; i < 3 * area; i += 128) {
    const uint channel = i / area, y = top + i % area / a.patch, x = left + i % a.patch;
    const float level = (float)a.crops[(((size_t)crop * a.size + y) * a.size + x) * 3 + channel];
    store(a.out, (size_t)row * a.out_stride + i, a.out_type, (level / 255.0f - 0.5f) / 0.5f);
  }
}

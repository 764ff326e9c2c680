// Pictures to patches.
#include "elements.cuh"

struct PatchifyArgs {
  void* out;             // [rows, 3 patch^2], stride out_stride
  const uint8_t* crops;  // [crops, size, size, 3]
  uint32_t rows, size, patch, out_stride, out_type;
  uint32_t padding;
};

// A block has a patch, a thread every 128th of its elements: channels first, then lines. Divided as written, so that every
// backend gives the same bits.  grid = rows, block = 128. Bytes: 1 read and 2 or 4 written per element.
extern "C" __global__ void __launch_bounds__(128) patchify(const PatchifyArgs a) {
  enter();
  const uint32_t row = blockIdx.x, grid = a.size / a.patch, area = a.patch * a.patch;
  const uint32_t crop = row / (grid * grid), top = row / grid % grid * a.patch, left = row % grid * a.patch;
  for (uint32_t i = threadIdx.x; i < 3 * area; i += 128) {
    const uint32_t channel = i / area, y = top + i % area / a.patch, x = left + i % a.patch;
    const float level = a.crops[(((size_t)crop * a.size + y) * a.size + x) * 3 + channel];
    store(a.out, (size_t)row * a.out_stride + i, a.out_type, (level / 255.0f - 0.5f) / 0.5f);
  }
}
